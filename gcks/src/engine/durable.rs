//! What survives a restart: rows of versioned records. State is the fold of its rows, so restore is replay and a
//! simulator can crash a server between any two batches.
//!
//! | kind | key | body |
//! | --- | --- | --- |
//! | `group` | group name | signing keys and their kind, reserved SIDs and their width, a rekey that waits for its turn |
//! | `kek` | group name/SPI | rekey SA with its last SEQ, end, generation, acknowledgement type and what signs its PUSHes |
//! | `tek` | group name/SPI | data-security SA with its keys, end and the policy it was made for |
//! | `push` | group name/KEK SPI/SEQ | content to sign or the signed datagram |
//! | `member` | group name/identity | address, gateway, SIDs, last PUSH its PULL contained, leaf |
//! | `node` | group name/level/index | handle and key of a node of the key tree |
//! | `revoked` | group name/identity | who may not register, and since when |

use gdoi_proto::secret::SecretBytes;

/// The table a record lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One per group.
    Group,
    /// One per rekey SA.
    Kek,
    /// One per data-security SA.
    Tek,
    /// One per PUSH that is being delivered.
    Push,
    /// One per member.
    Member,
    /// One per node of the key tree.
    Node,
    /// One per revoked identity.
    Revoked,
}

impl Kind {
    /// Every kind, in the order restore reads them.
    pub const ALL: [Kind; 7] =
        [Kind::Group, Kind::Kek, Kind::Tek, Kind::Push, Kind::Member, Kind::Node, Kind::Revoked];

    /// The name in the store.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Group => "group",
            Kind::Kek => "kek",
            Kind::Tek => "tek",
            Kind::Push => "push",
            Kind::Member => "member",
            Kind::Node => "node",
            Kind::Revoked => "revoked",
        }
    }

    /// The kind of a name in the store.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// One stored record: kind and key name it; the body is JSON with a `version` and may hold keys.
#[derive(Debug, Clone)]
pub struct Row {
    /// Kind.
    pub kind: Kind,
    /// Key within the kind.
    pub key: String,
    /// JSON.
    pub body: SecretBytes,
}

/// One change of the stored state. A batch is applied whole or not at all.
#[derive(Debug, Clone)]
pub enum Change {
    /// Insert or replace.
    Put(Row),
    /// Remove, if there.
    Remove {
        /// Kind.
        kind: Kind,
        /// Key.
        key: String,
    },
}
