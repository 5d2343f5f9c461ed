//! `gcks.toml`: the server itself and the gateways; groups are in [`crate::group`].

use std::net::SocketAddr;
use std::path::PathBuf;

use gdoi_proto::Dialect;
use gdoi_proto::payload::Identification;
use ike::crypto::AuthMethod;
use ike::phase1::{Credentials, Mode};

use crate::Options;
use crate::common::{self, DeadPeerDetection, Named, Phase1Proposal, Policy, narrow};
use crate::error::Report;
use crate::group::{self, Group};
use crate::identity::{self, IdentityPattern};
use crate::secret_source::{self, StateKey};
use crate::table::Table;
use crate::units::AddressPrefix;

/// The configuration of a key server.
#[derive(Debug, Clone)]
pub struct Gcks {
    /// `[server]`.
    pub server: Server,
    /// `[ike.gateway.*]` in the order of the file.
    pub gateways: Vec<Gateway>,
    /// `[group.*]` in the order of the file.
    pub groups: Vec<Group>,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// UDP addresses, default `0.0.0.0:848` and `[::]:848`.
    pub listen: Vec<SocketAddr>,
    /// Float to `nat_traversal_listen` when a NAT is on the way (RFC 3947), default true.
    pub nat_traversal: bool,
    /// UDP addresses for NAT traversal, default port 4500.
    pub nat_traversal_listen: Vec<SocketAddr>,
    /// Account the daemon has of its own once its sockets are open; empty: it stays who started it.
    pub user: String,
    /// Directory of the embedded database, default `/var/lib/gcks`.
    pub state_directory: PathBuf,
    /// Backups go below it, default `backup` in the state directory.
    pub backup_directory: PathBuf,
    /// Seals the secrets in the database, at least 32 octets; none: they are not sealed.
    pub state_key: Option<StateKey>,
    /// Default `/run/gcks/observe.sock`.
    pub observe_socket: PathBuf,
    /// Default `/run/gcks/control.sock`.
    pub control_socket: PathBuf,
    /// Group that may open the observe socket; empty: root only.
    pub socket_group: String,
    /// Nothing but approved algorithms is configured, negotiated or taken (see `ike::approved`), default false.
    pub approved_only: bool,
    /// Phase 1 negotiations not yet authenticated, in all: 1-1000000, default 4096.
    pub half_open_limit: u32,
    /// The same per source address, default 16; at most the limit in all.
    pub half_open_limit_per_address: u32,
    /// Life of a negotiation not yet authenticated, 1-3600 s, default 30.
    pub half_open_timeout_seconds: u64,
    /// Long messages go and come in fragments where the peer announces it too, default true.
    pub ike_fragmentation: bool,
    /// `error`, `warn`, `info` (default), `debug` or `trace`.
    pub log_level: String,
}

/// `[ike.gateway.NAME]`: one member, or many.
#[derive(Debug, Clone)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// Where it comes from; the longest prefix wins. None for `dynamic`: found by its identity.
    pub address: Option<AddressPrefix>,
    /// Who it must be, from `remote-identity` or `dynamic`; none: the peer's address.
    pub remote_identity: Option<IdentityPattern>,
    /// Who we say we are; none: the local address.
    pub local_identity: Option<Identification>,
    /// In order of preference.
    pub proposals: Vec<Phase1Proposal>,
    /// The mode of its policy.
    pub mode: Mode,
    /// What its policy proves identities with.
    pub credentials: Credentials,
    /// Default 10 s and 5; none: off.
    pub dead_peer_detection: Option<DeadPeerDetection>,
    /// Memberships by this statement end then, Unix seconds; none: never.
    pub valid_until: Option<u64>,
    /// Deviations it needs.
    pub compat: Dialect,
    /// Line of the statement, from 1.
    pub line: usize,
}

/// Reads the root table.
pub(crate) fn read(root: &Table<'_>, report: &Report<'_>, options: Options) -> Option<Gcks> {
    let server = read_server(root);
    let ike = root.section("ike");
    let proposals = common::read_proposals(&ike, options);
    let policies = common::read_policies(&ike, &proposals);
    let gateways = read_gateways(&ike, &policies, report);
    ike.finish();
    let groups = group::read_groups(root, &gateways, options);
    let mut gateways = gateways.into_values().collect::<Option<Vec<_>>>()?;
    gateways.sort_by_key(|gateway| gateway.line);
    Some(Gcks { server, gateways, groups: groups? })
}

fn read_server(root: &Table<'_>) -> Server {
    let report = root.report();
    let table = &root.section("server");
    let listen = common::read_listen(table, "listen", &["0.0.0.0:848", "[::]:848"]);
    let (nat_traversal, nat_traversal_listen) = common::read_nat_traversal(table, &listen);
    let state_key = table.get("state-key").and_then(|item| secret_source::read_state_key(&item, report));
    let half_open_limit = narrow(table.number("half-open-limit", (1, 1_000_000), 4096));
    let default_per_address = u64::from(half_open_limit.min(16));
    let per_address = table.number("half-open-limit-per-address", (1, 1_000_000), default_per_address);
    if per_address > u64::from(half_open_limit) {
        report.problem(
            &table.place_of("half-open-limit-per-address"),
            format!("{per_address} is more than half-open-limit"),
            format!("1-{half_open_limit}"),
        );
    }
    let state_directory = common::read_path(table, "state-directory", "/var/lib/gcks");
    let backup = table.get("backup-directory").and_then(|item| item.filled_text(report).map(PathBuf::from));
    let server = Server {
        listen,
        nat_traversal,
        nat_traversal_listen,
        user: table.text("user", ""),
        backup_directory: backup.unwrap_or_else(|| state_directory.join("backup")),
        state_directory,
        state_key,
        observe_socket: common::read_path(table, "observe-socket", "/run/gcks/observe.sock"),
        control_socket: common::read_path(table, "control-socket", "/run/gcks/control.sock"),
        socket_group: table.text("socket-group", ""),
        approved_only: common::read_approved_only(table),
        half_open_limit,
        half_open_limit_per_address: narrow(per_address),
        half_open_timeout_seconds: table.seconds("half-open-timeout-seconds", (1, 3600)).unwrap_or(30),
        ike_fragmentation: table.boolean("ike-fragmentation", true),
        log_level: common::read_log_level(table),
    };
    if server.observe_socket == server.control_socket {
        report.problem(&table.place, "observe-socket and control-socket are the same", "two paths");
    }
    table.finish();
    server
}

fn read_gateways(ike: &Table<'_>, policies: &Named<Policy>, report: &Report<'_>) -> Named<Gateway> {
    let mut gateways = Named::new();
    let mut addresses: Vec<(AddressPrefix, String)> = Vec::new();
    let mut dynamic: Vec<(Gateway, String)> = Vec::new();
    for (name, table) in ike.named_tables("gateway") {
        let (gateway, address, policy) = read_gateway(name, &table, policies);
        if let (Some(gateway), Some(policy), None) = (&gateway, policy, address) {
            check_dynamic(gateway, &policy, &dynamic, &table);
            dynamic.push((gateway.clone(), policy));
        }
        if let Some(address) = address {
            // The longest prefix wins, so the second of two equal ones would never be chosen.
            match addresses.iter().find(|(other, _)| *other == address) {
                Some((_, other)) => report.problem(
                    &table.place_of("address"),
                    format!("{address} is the address of ike.gateway.{other} already"),
                    "one gateway per address or prefix; one gateway may serve many members",
                ),
                None => addresses.push((address, name.to_owned())),
            }
        }
        gateways.insert(name.to_owned(), gateway);
    }
    gateways
}

/// Whoever may come from anywhere is told apart by its identity: in aggressive mode at once, in main mode when it has
/// proved it, after everything else was negotiated.
fn check_dynamic(gateway: &Gateway, policy: &str, others: &[(Gateway, String)], table: &Table<'_>) {
    let report = table.report();
    if let Some((other, _)) =
        others.iter().find(|(other, _)| other.remote_identity == gateway.remote_identity)
    {
        report.problem(
            &table.place_of("dynamic"),
            format!("this is the identity of ike.gateway.{} already", other.name),
            "one gateway per identity; one gateway may serve many members",
        );
    }
    if gateway.mode == Mode::Aggressive {
        return;
    }
    let mut main = others.iter().filter(|(other, _)| other.mode == Mode::Main);
    let Some((first, first_policy)) = main.next() else {
        if gateway.proposals.iter().any(|proposal| proposal.method == AuthMethod::PreSharedKey) {
            report.warning(
                &table.place_of("dynamic"),
                "main mode takes one pre-shared key for all addresses: whoever holds it can pose as this server",
                "certificates, or mode = \"aggressive\" with a key for each identity",
            );
        }
        return;
    };
    let shares = |gateway: &Gateway| (gateway.local_identity.clone(), gateway.compat);
    if policy != first_policy || shares(gateway) != shares(first) {
        report.problem(
            &table.place_of("dynamic"),
            format!("another ike-policy, local-identity or compat than ike.gateway.{}", first.name),
            "main mode knows a dynamic peer when phase 1 is complete: one of each for all of them",
        );
    }
}

fn read_gateway(
    name: &str,
    table: &Table<'_>,
    policies: &Named<Policy>,
) -> (Option<Gateway>, Option<AddressPrefix>, Option<String>) {
    let report = table.report();
    let policy = common::read_gateway_policy(table, policies);
    let valid_until = table.get("valid-until").and_then(|item| item.moment(report));
    let dynamic = table.get("dynamic");
    let address = match (table.get("address"), &dynamic) {
        (Some(item), None) => item.prefix(report),
        (None, Some(_)) => None,
        (Some(_), Some(item)) => {
            report.problem(&item.place, "address is stated already", "one of address and dynamic");
            None
        }
        (None, None) => table.require("address", "an address, a prefix, or dynamic").and(None),
    };
    let remote = match (table.get("remote-identity"), &dynamic) {
        (Some(item), Some(_)) => {
            report.problem(&item.place, "dynamic says already who it must be", "leave it out");
            None
        }
        (stated, dynamic) => {
            stated.as_ref().or(dynamic.as_ref()).map(|item| identity::read_pattern(item, report))
        }
    };
    let local_identity = common::read_local_identity(table, policy.as_ref());
    let usual = DeadPeerDetection { interval_seconds: 10, threshold: 5 };
    let dead_peer_detection = common::read_dead_peer_detection(table, Some(usual));
    let compat = common::read_compat(table);
    table.finish();
    let policy_name = policy.as_ref().map(|policy| policy.name.clone());
    let gateway = policy.map(|policy| Gateway {
        name: name.to_owned(),
        address,
        remote_identity: remote.flatten(),
        local_identity,
        proposals: policy.proposals,
        mode: policy.mode,
        credentials: policy.credentials,
        dead_peer_detection,
        valid_until,
        compat,
        line: report.line(&table.place),
    });
    // What has problems of its own is compared with nothing.
    let policy_name = policy_name.filter(|_| dynamic.is_some());
    (gateway, address, policy_name)
}
