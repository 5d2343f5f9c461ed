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

/// Octets of the largest ESP packet where the file says nothing.
pub(crate) const TUNNEL_MTU: u16 = 1500;

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
    /// `group-vpn-external-interface`; where ESP goes is the matter of zones.
    pub external_interface: Option<String>,
    /// `recovery-probe`: traffic under unknown keys may lead to a registration.
    pub recovery_probe: bool,
    /// Algorithms this member accepts; none: what this build supports.
    pub accept: Option<Accept>,
    /// Source and destination that the server's policies must stay within; empty: all.
    pub allowed_flows: Vec<(AddressPrefix, AddressPrefix)>,
    /// DF of outer headers.
    pub df_bit: DfBit,
    /// Octets of the largest ESP packet with its outer header, 256-9192, default 1500.
    pub tunnel_mtu: u16,
    /// What carries ESP.
    pub esp_encapsulation: EspEncapsulation,
    /// Never encrypted, at most 10.
    pub exclude: Vec<Rule>,
    /// Clear while there is no valid TEK, at most 10.
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

/// `df-bit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DfBit {
    /// Routers may fragment ESP.
    #[default]
    Clear,
    /// They must not.
    Set,
    /// As the inner packet says.
    Copy,
}

/// `esp-encapsulation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EspEncapsulation {
    /// IP protocol 50.
    #[default]
    Raw,
    /// UDP port 4500, addresses preserved all the same.
    Udp,
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
    let bits = [("clear", DfBit::Clear), ("set", DfBit::Set), ("copy", DfBit::Copy)];
    let df_bit = table.word("df-bit", &bits, Some(DfBit::Clear)).unwrap_or_default();
    let tunnel_mtu =
        u16::try_from(table.number("tunnel-mtu", (256, 9192), TUNNEL_MTU.into())).unwrap_or(TUNNEL_MTU);
    let encapsulations = [("raw", EspEncapsulation::Raw), ("udp", EspEncapsulation::Udp)];
    let esp_encapsulation = table.word("esp-encapsulation", &encapsulations, Some(EspEncapsulation::Raw));
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
        df_bit,
        tunnel_mtu,
        esp_encapsulation: esp_encapsulation.unwrap_or_default(),
        exclude,
        fail_open,
        line: report.line(&table.place),
    })
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

/// Longest name of an interface Linux has, in octets.
const MAX_INTERFACE: usize = 15;
/// The zone of this machine's own traffic.
pub const HOST: &str = "host";

fn read_zone(name: &str, table: &Table<'_>, taken: &mut BTreeMap<String, String>) -> Zone {
    let report = table.report();
    if name == HOST {
        report.problem(&table.place, "host is a built-in zone", "another name");
    }
    let list = table.require("interfaces", "a list of interfaces");
    let items = list.as_ref().map(|list| list.items(report)).unwrap_or_default();
    if let Some(list) = list.filter(|list| items.is_empty() && list.value.is_array()) {
        report.problem(&list.place, "a zone without interfaces", "[\"eth1\"]");
    }
    let mut interfaces = Vec::new();
    for item in items {
        let Some(interface) = item.filled_text(report) else { continue };
        let possible = interface.len() <= MAX_INTERFACE
            && !interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !possible {
            report.problem(&item.place, format!("{interface:?} is no name of an interface"), "\"eth1\"");
        } else if let Some(other) = taken.insert(interface.to_owned(), name.to_owned()) {
            report.problem(
                &item.place,
                format!("{interface} is in zone {other} already"),
                "one zone per interface",
            );
        }
        interfaces.push(interface.to_owned());
    }
    table.finish();
    Zone { name: name.to_owned(), interfaces }
}

/// Reads `[zone.*]` and `[[ipsec-policy]]` and checks their references.
pub(crate) fn read_zones_and_policies(root: &Table<'_>) -> (Vec<Zone>, Vec<IpsecPolicy>) {
    let report = root.report();
    let mut zones = Named::new();
    let mut vpns = Named::new();
    let mut taken = BTreeMap::new();
    for (name, table) in root.named_tables("zone") {
        zones.insert(name.to_owned(), Some(read_zone(name, &table, &mut taken)));
    }
    zones.entry(HOST.into()).or_insert(None);
    for (name, _) in root.named_tables("vpn") {
        vpns.insert(name.to_owned(), Some(()));
    }
    let mut policies: Vec<IpsecPolicy> = Vec::new();
    for table in root.table_list("ipsec-policy") {
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
        if to_zone == HOST {
            report.problem(
                &table.place_of("to-zone"),
                "ESP goes to a zone of interfaces",
                "from-zone = \"host\"; it holds for answers too",
            );
        }
        if from_zone == to_zone {
            report.problem(&table.place, "from a zone to itself", "two zones");
        }
        let same = |other: &IpsecPolicy| {
            [&other.from_zone, &other.to_zone] == [&from_zone, &to_zone]
                || [&other.to_zone, &other.from_zone] == [&from_zone, &to_zone]
        };
        if policies.iter().any(same) {
            report.problem(
                &table.place,
                format!("between {from_zone} and {to_zone} there is a vpn already"),
                "one vpn per zone pair; it holds for answers too",
            );
        }
        policies.push(IpsecPolicy { from_zone, to_zone, vpn });
    }
    (zones.into_values().flatten().collect(), policies)
}
