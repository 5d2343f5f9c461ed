//! `[vpn.NAME]` of `gm.toml`, and what steers traffic into it: rules, zones, policies.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gdoi_proto::ids::GroupId;
use gdoi_proto::policy::{SignatureAlgorithm, TekCipher};

use crate::common::{self, Named, narrow};
use crate::communication::SIGNATURES;
use crate::gm::GmGateway;
use crate::table::Table;
use crate::units::{self, AddressPrefix};

/// Rules of one kind a VPN may have.
const MAX_RULES: usize = 10;

/// `[vpn.NAME]`: one group this member belongs to.
#[derive(Debug, Clone)]
pub struct Vpn {
    /// Its name.
    pub name: String,
    /// The `ike-gateway`; it exists.
    pub gateway: String,
    /// The group's number.
    pub group: GroupId,
    /// `group-address`: its name for servers with `group-id-address`.
    pub group_address: Option<IpAddr>,
    /// `group-vpn-external-interface`; no effect without a data plane.
    pub external_interface: Option<String>,
    /// `recovery-probe`: traffic under unknown keys may lead to a registration.
    pub recovery_probe: bool,
    /// Algorithms this member accepts; none: what this build supports.
    pub accept: Option<Accept>,
    /// Source and destination that the server's policies must stay within; empty: all.
    pub allowed_flows: Vec<(AddressPrefix, AddressPrefix)>,
    /// Never encrypted; always empty in this build.
    pub exclude: Vec<Rule>,
    /// Clear while there is no valid TEK; always empty in this build.
    pub fail_open: Vec<Rule>,
    /// Line of the statement, from 1.
    pub line: usize,
}

impl Vpn {
    /// True when the server may have this member protect `source` to `destination`.
    pub fn allows(&self, source: &AddressPrefix, destination: &AddressPrefix) -> bool {
        self.allowed_flows.is_empty()
            || self.allowed_flows.iter().any(|(from, to)| from.covers(source) && to.covers(destination))
    }
}

/// `accept`: an empty list accepts everything of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accept {
    /// TEK ciphers.
    pub encryption: Vec<Encryption>,
    /// Signatures of pushes.
    pub rekey_signature: Vec<RekeySignature>,
}

/// A TEK cipher without its integrity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// AES-CBC.
    AesCbc {
        /// 16, 24 or 32 octets of key.
        key_octets: usize,
    },
    /// AES-GCM.
    AesGcm {
        /// 16 or 32 octets of key.
        key_octets: usize,
    },
}

/// A signature of pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RekeySignature {
    /// Algorithm.
    pub algorithm: SignatureAlgorithm,
    /// RSA modulus, or the curve's bits.
    pub key_bits: u16,
}

impl Accept {
    /// True when TEKs of `cipher` may be installed.
    pub fn accepts_encryption(&self, cipher: &TekCipher) -> bool {
        let wanted = match *cipher {
            TekCipher::AesCbc { key_octets, .. } => Encryption::AesCbc { key_octets },
            TekCipher::AesGcm { key_octets, .. } => Encryption::AesGcm { key_octets },
            TekCipher::AesGmac { .. } | TekCipher::Null { .. } => return self.encryption.is_empty(),
        };
        self.encryption.is_empty() || self.encryption.contains(&wanted)
    }

    /// True when pushes signed like this may be taken; `key_bits` is the size of the key itself.
    pub fn accepts_signature(&self, algorithm: SignatureAlgorithm, key_bits: u16) -> bool {
        self.rekey_signature.is_empty()
            || self.rekey_signature.contains(&RekeySignature { algorithm, key_bits })
    }
}

/// `[[vpn.NAME.exclude]]` or `[[vpn.NAME.fail-open]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Source addresses.
    pub source: AddressPrefix,
    /// Destination addresses.
    pub destination: AddressPrefix,
    /// IP protocol, 0 any.
    pub protocol: u8,
    /// Port of either side, 0 any.
    pub port: u16,
}

/// `[zone.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its name; `host` is built in.
    pub name: String,
    /// Interfaces.
    pub interfaces: Vec<String>,
}

/// `[[ipsec-policy]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpsecPolicy {
    /// Zone the traffic comes from.
    pub from_zone: String,
    /// Zone it goes to.
    pub to_zone: String,
    /// VPN that protects it.
    pub vpn: String,
}

/// Reads `[vpn.*]`; none when one of them is unusable.
pub(crate) fn read_vpns(root: &Table<'_>, gateways: &Named<GmGateway>) -> Option<Vec<Vpn>> {
    let mut taken: BTreeMap<(String, GroupId), &str> = BTreeMap::new();
    let mut vpns = Vec::new();
    for (name, table) in root.named_tables("vpn") {
        let vpn = read_vpn(name, &table, gateways);
        if let Some(vpn) = &vpn
            && let Some(other) = taken.insert((vpn.gateway.clone(), vpn.group.clone()), name)
        {
            root.report().problem(
                &table.place_of("group"),
                format!("group {} of this ike-gateway is that of vpn.{other} already", vpn.group),
                "one vpn per group",
            );
        }
        vpns.push(vpn);
    }
    vpns.into_iter().collect()
}

fn read_vpn(name: &str, table: &Table<'_>, gateways: &Named<GmGateway>) -> Option<Vpn> {
    let report = table.report();
    let gateway = table.require("ike-gateway", "the name of an ike.gateway").and_then(|item| {
        let found = common::resolve(&item, report, "ike.gateway", gateways);
        found.map(|gateway| gateway.name.clone())
    });
    let group = table
        .require("group", "a number, 1-4294967295")
        .and_then(|item| item.number(report, (1, u64::from(u32::MAX))));
    let group_address = table.get("group-address").and_then(|item| item.address(report));
    let by_address = gateway.as_ref().and_then(|name| gateways.get(name)?.as_ref());
    if by_address.is_some_and(|gateway| gateway.compat.group_id_address) && group_address.is_none() {
        report.problem(&table.place, "its gateway has group-id-address", "group-address = \"239.192.0.1\"");
    }
    let interface = table.get("group-vpn-external-interface").and_then(|item| item.filled_text(report));
    let recovery_probe = table.boolean("recovery-probe", false);
    refuse_data_plane(table);
    let accept = table.table("accept").map(|accept| read_accept(&accept));
    let allowed_flows = read_flows(table);
    let exclude = read_rules(table, "exclude");
    let fail_open = read_rules(table, "fail-open");
    table.finish();
    Some(Vpn {
        name: name.to_owned(),
        gateway: gateway?,
        group: GroupId::number(narrow(group?)),
        group_address,
        external_interface: interface.map(str::to_owned),
        recovery_probe,
        accept,
        allowed_flows,
        exclude,
        fail_open,
        line: report.line(&table.place),
    })
}

/// Statements about packets: their defaults do nothing, anything else needs a data plane.
fn refuse_data_plane(table: &Table<'_>) {
    let report = table.report();
    let bits = [("clear", false), ("set", true), ("copy", true)];
    let needs = [
        ("df-bit", table.word("df-bit", &bits, Some(false)) == Some(true)),
        ("tunnel-mtu", table.number("tunnel-mtu", (256, 9192), 1500) != 1500),
        (
            "esp-encapsulation",
            table.word("esp-encapsulation", &[("raw", false), ("udp", true)], Some(false)) == Some(true),
        ),
    ];
    for (name, stated) in needs {
        if stated {
            report.not_supported(&table.place_of(name), "needs the data plane");
        }
    }
}

fn read_accept(table: &Table<'_>) -> Accept {
    let report = table.report();
    let encryptions = [
        ("aes-128-cbc", Encryption::AesCbc { key_octets: 16 }),
        ("aes-192-cbc", Encryption::AesCbc { key_octets: 24 }),
        ("aes-256-cbc", Encryption::AesCbc { key_octets: 32 }),
        ("aes-128-gcm", Encryption::AesGcm { key_octets: 16 }),
        ("aes-256-gcm", Encryption::AesGcm { key_octets: 32 }),
    ];
    let list = |name: &str| {
        let Some(item) = table.get(name) else { return Vec::new() };
        let items = item.items(report);
        if items.is_empty() && item.value.is_array() {
            report.problem(&item.place, "accepts nothing", "leave it out to accept what this build supports");
        }
        items
    };
    let encryption = list("encryption").iter().filter_map(|item| item.word(report, &encryptions)).collect();
    let rekey_signature = list("rekey-signature")
        .iter()
        .filter_map(|item| item.word(report, SIGNATURES))
        .map(|(algorithm, key_bits)| RekeySignature { algorithm, key_bits })
        .collect();
    table.finish();
    Accept { encryption, rekey_signature }
}

fn read_flows(table: &Table<'_>) -> Vec<(AddressPrefix, AddressPrefix)> {
    let report = table.report();
    let mut flows = Vec::new();
    let tables = table.table_list("allowed-flows");
    if tables.is_empty() && table.get("allowed-flows").is_some_and(|item| item.value.is_array()) {
        report.problem(&table.place_of("allowed-flows"), "allows nothing", "leave it out to allow all");
    }
    for flow in tables {
        let prefix = |side: &str| flow.require(side, "a prefix").and_then(|item| item.prefix(report));
        if let (Some(source), Some(destination)) = (prefix("source"), prefix("destination")) {
            if source.address.is_ipv4() != destination.address.is_ipv4() {
                report.problem(&flow.place_of("destination"), "not the address family of source", "");
            }
            flows.push((source, destination));
        }
        flow.finish();
    }
    flows
}

fn read_rules(table: &Table<'_>, kind: &str) -> Vec<Rule> {
    let report = table.report();
    let tables = table.table_list(kind);
    if tables.len() > MAX_RULES {
        report.problem(
            &table.place_of(kind),
            format!("{} rules", tables.len()),
            format!("at most {MAX_RULES}"),
        );
    }
    tables
        .iter()
        .filter_map(|rule| {
            report.not_supported(&rule.place, "rules steer traffic and need the data plane");
            let read = read_rule(rule);
            rule.finish();
            read
        })
        .collect()
}

fn read_rule(table: &Table<'_>) -> Option<Rule> {
    let report = table.report();
    let name = table.require("name", "a name").and_then(|item| item.filled_text(report));
    let prefix = |side: &str| table.require(side, "a prefix").and_then(|item| item.prefix(report));
    let (source, destination) = (prefix("source-address"), prefix("destination-address"));
    let application = match table.get("application") {
        None => Some((0, 0)),
        Some(item) => item.text(report).and_then(|text| {
            let read = read_application(text);
            if read.is_none() {
                report.problem(
                    &item.place,
                    format!("{text:?} is no application"),
                    "\"any\", \"tcp\" or \"tcp/179\"",
                );
            }
            read
        }),
    };
    let (protocol, port) = application?;
    Some(Rule { name: name?.to_owned(), source: source?, destination: destination?, protocol, port })
}

/// `any`, a protocol, or `protocol/port` where the protocol has ports.
fn read_application(text: &str) -> Option<(u8, u16)> {
    match text.split_once('/') {
        None => Some((units::protocol(text)?, 0)),
        Some((protocol, port)) => {
            let protocol = units::protocol(protocol).filter(|number| matches!(number, 6 | 17 | 132))?;
            Some((protocol, port.parse().ok().filter(|port| *port > 0)?))
        }
    }
}

/// Reads `[zone.*]` and `[[ipsec-policy]]`, checks their references, and refuses them: they steer traffic.
pub(crate) fn read_zones_and_policies(root: &Table<'_>) -> (Vec<Zone>, Vec<IpsecPolicy>) {
    let report = root.report();
    let mut zones = Named::new();
    let mut vpns = Named::new();
    root.later("zone", "steers traffic and needs the data plane");
    for (name, table) in root.named_tables("zone") {
        let list = table.require("interfaces", "a list of interfaces");
        let items = list.map(|list| list.items(report)).unwrap_or_default();
        let interfaces =
            items.iter().filter_map(|item| item.filled_text(report)).map(str::to_owned).collect();
        if name == "host" {
            report.problem(&table.place, "host is a built-in zone", "another name");
        }
        table.finish();
        zones.insert(name.to_owned(), Some(Zone { name: name.to_owned(), interfaces }));
    }
    zones.entry("host".into()).or_insert(None);
    for (name, _) in root.named_tables("vpn") {
        vpns.insert(name.to_owned(), Some(()));
    }
    let mut policies: Vec<IpsecPolicy> = Vec::new();
    for table in root.table_list("ipsec-policy") {
        report.not_supported(&table.place, "steers traffic and needs the data plane");
        let named = |name: &str| {
            let item = table.require(name, "a name")?;
            let _ = match name {
                "vpn" => common::resolve(&item, report, "vpn", &vpns).copied(),
                _ => common::resolve(&item, report, "zone", &zones).map(|_| ()),
            };
            item.value.as_str().map(str::to_owned)
        };
        let (from_zone, to_zone, vpn) = (named("from-zone"), named("to-zone"), named("vpn"));
        table.finish();
        let (Some(from_zone), Some(to_zone), Some(vpn)) = (from_zone, to_zone, vpn) else { continue };
        if policies.iter().any(|other| other.from_zone == from_zone && other.to_zone == to_zone) {
            report.problem(
                &table.place,
                format!("{from_zone} to {to_zone} has a vpn already"),
                "one vpn per zone pair",
            );
        }
        policies.push(IpsecPolicy { from_zone, to_zone, vpn });
    }
    (zones.into_values().flatten().collect(), policies)
}
