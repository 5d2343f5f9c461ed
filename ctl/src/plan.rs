//! What a changed configuration of a key server does: shown by `gdoictl server plan`, done by `server apply` and SIGHUP.

use serde::{Deserialize, Serialize};

/// The whole difference.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// It is done; else nothing changed.
    pub applied: bool,
    /// Groups that change, by name.
    pub groups: Vec<GroupPlan>,
    /// Names of new gateways.
    pub gateways_added: Vec<String>,
    /// Names of gateways that are gone.
    pub gateways_removed: Vec<String>,
    /// Statements that only a restart takes, with what they say.
    pub restart: Vec<String>,
}

/// One group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlan {
    /// Its name.
    pub group: String,
    /// `added`, `removed`, `changed` or `unchanged`.
    pub change: String,
    /// Members before.
    pub members: u64,
    /// Members that go because no gateway admits them any more, by identity.
    pub expelled: Vec<String>,
    /// SAs that are new: `SA1/lan-to-lan`.
    pub sas_added: Vec<String>,
    /// SAs that go, by a Delete payload.
    pub sas_removed: Vec<String>,
    /// SAs whose policy is another: a new key replaces the old one early.
    pub sas_changed: Vec<String>,
    /// SAs whose key would outlive its new life: likewise.
    pub sas_shortened: Vec<String>,
    /// The rekey SA is replaced.
    pub new_kek: bool,
    /// Seconds until replaced and removed keys go, when some do.
    pub deactivation_delay: Option<u64>,
    /// Rekey events: one or none.
    pub rekeys: u64,
    /// Pushes of that rekey, in order.
    pub pushes: Vec<PushPlan>,
    /// What else an operator should know.
    pub notes: Vec<String>,
}

/// One push of the rekey.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushPlan {
    /// Octets of UDP payload.
    pub octets: u64,
    /// `max-push-size`.
    pub limit: u64,
    /// New TEKs in it.
    pub teks: u64,
    /// SPIs that it deletes.
    pub deletes: u64,
    /// It carries a new KEK.
    pub new_kek: bool,
    /// Members it goes to.
    pub members: u64,
}
