//! `gm.toml`: the member itself and its key servers; VPNs are in [`crate::vpn`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use gdoi_proto::Dialect;
use gdoi_proto::payload::Identification;
use ike::phase1::{Credentials, Mode};

use crate::Options;
use crate::common::{self, DeadPeerDetection, Named, Phase1Proposal, Policy};
use crate::error::Report;
use crate::identity::{self, IdentityPattern};
use crate::table::Table;
use crate::units;
use crate::vpn::{self, DfBit, EspEncapsulation, IpsecPolicy, Vpn, Zone};

/// The port of a key server where `server-address` names none (RFC 6407 section 1.5).
const GDOI_PORT: u16 = 848;

/// The configuration of a member.
#[derive(Debug, Clone)]
pub struct Gm {
    /// `[member]`.
    pub member: Member,
    /// `[ike.gateway.*]` in the order of the file.
    pub gateways: Vec<GmGateway>,
    /// `[vpn.*]` in the order of the file.
    pub vpns: Vec<Vpn>,
    /// `[data-plane] backend`, default tun.
    pub backend: Backend,
    /// `[zone.*]` by name.
    pub zones: Vec<Zone>,
    /// `[[ipsec-policy]]`; without any, keys protect no traffic.
    pub policies: Vec<IpsecPolicy>,
}

/// `[member]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// UDP addresses, default `0.0.0.0:848` and `[::]:848`.
    pub listen: Vec<SocketAddr>,
    /// Float to `nat_traversal_listen` when a NAT is on the way (RFC 3947), default true.
    pub nat_traversal: bool,
    /// UDP addresses for NAT traversal, default port 4500.
    pub nat_traversal_listen: Vec<SocketAddr>,
    /// Default `/run/gm/observe.sock`.
    pub observe_socket: PathBuf,
    /// Default `/run/gm/control.sock`.
    pub control_socket: PathBuf,
    /// Unix datagram socket that gets one JSON line per key change; default none.
    pub notify_socket: Option<PathBuf>,
    /// Group that may open the observe socket; empty: root only.
    pub socket_group: String,
    /// Nothing but approved algorithms is configured, negotiated or taken (see `ike::approved`), default false.
    pub approved_only: bool,
    /// `error`, `warn`, `info` (default), `debug` or `trace`.
    pub log_level: String,
}

/// What carries the keys into traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// Nothing: keys are shown by `gdoictl` only.
    None,
    /// Userspace ESP.
    #[default]
    Tun,
    /// The Linux kernel, for the traffic of this machine itself.
    Xfrm,
}

/// `[ike.gateway.NAME]` of a member: its key servers.
#[derive(Debug, Clone)]
pub struct GmGateway {
    /// Its name.
    pub name: String,
    /// 1-4, tried in order; port 848 unless stated.
    pub servers: Vec<SocketAddr>,
    /// None: chosen by the route.
    pub local_address: Option<IpAddr>,
    /// Who we say we are; none: the local address.
    pub local_identity: Option<Identification>,
    /// Who may be our key server: empty, the server's address; one, for all servers; else one per server.
    pub remote_identity: Vec<IdentityPattern>,
    /// In order of preference.
    pub proposals: Vec<Phase1Proposal>,
    /// The mode of its policy.
    pub mode: Mode,
    /// What its policy proves identities with.
    pub credentials: Credentials,
    /// Deviations the server needs.
    pub compat: Dialect,
    /// None (the default): off.
    pub dead_peer_detection: Option<DeadPeerDetection>,
    /// Line of the statement, from 1.
    pub line: usize,
}

impl GmGateway {
    /// Who server number `index` must be; none: its address.
    pub fn identity_of(&self, index: usize) -> Option<&IdentityPattern> {
        match self.remote_identity.as_slice() {
            [] => None,
            [one] => Some(one),
            several => several.get(index),
        }
    }
}

/// Reads the root table.
pub(crate) fn read(root: &Table<'_>, report: &Report<'_>, options: Options) -> Option<Gm> {
    let member = read_member(root);
    let ike = root.section("ike");
    let proposals = common::read_proposals(&ike, options);
    let policies = common::read_policies(&ike, &proposals);
    let gateways: Named<GmGateway> = ike
        .named_tables("gateway")
        .iter()
        .map(|(name, table)| ((*name).to_owned(), read_gateway(name, table, &policies)))
        .collect();
    ike.finish();
    let vpns = vpn::read_vpns(root, &gateways);
    let (zones, policies) = vpn::read_zones_and_policies(root);
    let backend = read_backend(root, &policies, vpns.as_deref().unwrap_or_default());
    let mut gateways = gateways.into_values().collect::<Option<Vec<_>>>()?;
    gateways.sort_by_key(|gateway| gateway.line);
    if let Some(local) = gateways.iter().find_map(|gateway| unreachable_from(gateway, &member)) {
        report.warning(&ike.place, format!("no listen socket has the family of {local}"), "");
    }
    Some(Gm { member, gateways, vpns: vpns?, backend, zones, policies })
}

/// The first server for which the member has no socket.
fn unreachable_from(gateway: &GmGateway, member: &Member) -> Option<SocketAddr> {
    let reachable = |server: &SocketAddr| member.listen.iter().any(|own| own.is_ipv4() == server.is_ipv4());
    gateway.servers.iter().find(|server| !reachable(server)).copied()
}

fn read_member(root: &Table<'_>) -> Member {
    let report = root.report();
    let table = &root.section("member");
    let listen = common::read_listen(table, "listen", &["0.0.0.0:848", "[::]:848"]);
    let (nat_traversal, nat_traversal_listen) = common::read_nat_traversal(table, &listen);
    let notify_socket = Some(table.text("notify-socket", "")).filter(|path| !path.is_empty());
    let member = Member {
        listen,
        nat_traversal,
        nat_traversal_listen,
        observe_socket: common::read_path(table, "observe-socket", "/run/gm/observe.sock"),
        control_socket: common::read_path(table, "control-socket", "/run/gm/control.sock"),
        notify_socket: notify_socket.map(PathBuf::from),
        socket_group: table.text("socket-group", ""),
        approved_only: common::read_approved_only(table),
        log_level: common::read_log_level(table),
    };
    if member.observe_socket == member.control_socket {
        report.problem(&table.place, "observe-socket and control-socket are the same", "two paths");
    }
    table.finish();
    member
}

fn read_backend(root: &Table<'_>, policies: &[IpsecPolicy], vpns: &[Vpn]) -> Backend {
    let table = root.section("data-plane");
    let words = [("none", Backend::None), ("tun", Backend::Tun), ("xfrm", Backend::Xfrm)];
    let backend = table.word("backend", &words, Some(Backend::Tun)).unwrap_or_default();
    if backend == Backend::Xfrm {
        for (problem, instead) in beyond_the_kernel(policies, vpns) {
            root.report().problem(&table.place_of("backend"), problem, instead);
        }
    }
    if backend == Backend::None && !policies.is_empty() {
        root.report().warning(
            &table.place_of("backend"),
            "nothing obeys the ipsec-policies, traffic passes in clear",
            "tun",
        );
    }
    if backend != Backend::None && policies.is_empty() {
        root.report().notice("no ipsec-policy: keys are shown and protect no traffic");
    }
    table.finish();
    backend
}

/// What the kernel backend does not do, and what would be right.
fn beyond_the_kernel(policies: &[IpsecPolicy], vpns: &[Vpn]) -> Vec<(String, &'static str)> {
    let mut found = Vec::new();
    for policy in policies.iter().filter(|policy| policy.from_zone != "host") {
        let zone = &policy.from_zone;
        found.push((
            format!("xfrm protects traffic of this machine only, not from zone {zone}"),
            "\"tun\", or from-zone = \"host\"",
        ));
    }
    for vpn in vpns.iter().filter(|vpn| policies.iter().any(|policy| policy.vpn == vpn.name)) {
        let name = &vpn.name;
        if vpn.esp_encapsulation == EspEncapsulation::Udp {
            found.push((format!("xfrm has no esp-encapsulation \"udp\" (vpn {name})"), "\"raw\""));
        }
        if vpn.df_bit == DfBit::Set {
            found.push((format!("xfrm has no df-bit \"set\" (vpn {name})"), "\"clear\" or \"copy\""));
        }
        if vpn.tunnel_mtu != vpn::TUNNEL_MTU {
            found.push((format!("xfrm follows the path MTU, not tunnel-mtu (vpn {name})"), "no tunnel-mtu"));
        }
    }
    found
}

fn read_gateway(name: &str, table: &Table<'_>, policies: &Named<Policy>) -> Option<GmGateway> {
    let report = table.report();
    let policy = common::read_gateway_policy(table, policies);
    let servers = read_servers(table);
    let local_address = table.get("local-address").map(|item| item.address(report));
    if let Some(Some(local)) = local_address
        && servers.iter().flatten().any(|server| server.is_ipv4() != local.is_ipv4())
    {
        report.problem(
            &table.place_of("local-address"),
            "not the address family of every server-address",
            "",
        );
    }
    let local_identity = common::read_local_identity(table, policy.as_ref());
    let remote_identity = table.get("remote-identity").map(|item| {
        let items = item.one_or_more(report);
        if items.is_empty() {
            report.problem(
                &item.place,
                "an identity rule must not be empty",
                "{ hostname = \"gcks.example\" }",
            );
        }
        let count = servers.as_ref().map_or(items.len(), Vec::len);
        if items.len() > 1 && items.len() != count {
            report.problem(
                &item.place,
                format!("{} identities for {count} servers", items.len()),
                "one for all, or one per server-address",
            );
        }
        items.iter().map(|item| identity::read_pattern(item, report)).collect::<Option<Vec<_>>>()
    });
    let compat = common::read_compat(table);
    let dead_peer_detection = common::read_dead_peer_detection(table, None);
    table.finish();
    let policy = policy?;
    Some(GmGateway {
        name: name.to_owned(),
        servers: servers?,
        local_address: local_address.flatten(),
        local_identity,
        remote_identity: remote_identity.flatten().unwrap_or_default(),
        proposals: policy.proposals,
        mode: policy.mode,
        credentials: policy.credentials,
        compat,
        dead_peer_detection,
        line: report.line(&table.place),
    })
}

fn read_servers(table: &Table<'_>) -> Option<Vec<SocketAddr>> {
    let report = table.report();
    let list = table.require("server-address", "1-4 addresses of key servers")?;
    let items = list.one_or_more(report);
    if !(1..=4).contains(&items.len()) {
        report.problem(&list.place, format!("{} servers", items.len()), "1-4, tried in order");
    }
    let mut servers = Vec::new();
    for item in &items {
        let server = item.text(report).and_then(|text| {
            let server = units::socket_address(text, GDOI_PORT);
            if server.is_none() {
                report.problem(
                    &item.place,
                    format!("{text:?} is not an address"),
                    "\"192.0.2.1\", \"192.0.2.1:848\" or \"[2001:db8::1]:848\"",
                );
            }
            server
        });
        if server.is_some() && servers.contains(&server) {
            report.problem(&item.place, "this server is listed twice", "");
        }
        servers.push(server);
    }
    servers.into_iter().collect()
}
