//! `[ipsec.proposal.NAME]` and `[group.NAME.ipsec-sa.NAME]` of `gcks.toml`: what the TEKs of a group protect.

use gdoi_proto::policy::{Encapsulation, TekAuthentication, TekCipher};

use crate::Options;
use crate::common::{self, Named, narrow};
use crate::communication::rekey_margin;
use crate::table::Table;
use crate::units::AddressPrefix;

/// `[group.NAME.ipsec-sa.NAME]` with its proposal resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpsecSa {
    /// Its name.
    pub name: String,
    /// Cipher and integrity.
    pub cipher: TekCipher,
    /// TEK life, 180-2592000 s (from 20 s in a lab), default 3600.
    pub lifetime_seconds: u32,
    /// Tunnel (default) or transport.
    pub encapsulation: Encapsulation,
    /// At least one; each becomes a data-security SA of its own.
    pub policies: Vec<MatchPolicy>,
    /// Seconds before the TEK's end at which its successor goes out; derived.
    pub rekey_margin_seconds: u32,
}

/// `[[group.NAME.ipsec-sa.NAME.match-policy]]`: selectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatchPolicy {
    /// Its name, unique in the SA.
    pub name: String,
    /// Source addresses.
    pub source: AddressPrefix,
    /// Destination addresses, same family.
    pub destination: AddressPrefix,
    /// 0 any.
    pub source_port: u16,
    /// 0 any.
    pub destination_port: u16,
    /// IP protocol, 0 any.
    pub protocol: u8,
}

/// `[ipsec.proposal.NAME]`.
#[derive(Debug, Clone)]
pub(crate) struct IpsecProposal {
    cipher: TekCipher,
    lifetime_seconds: u32,
    encapsulation: Encapsulation,
}

/// Reads `[ipsec.proposal.*]`.
pub(crate) fn read_proposals(root: &Table<'_>, options: Options) -> Named<IpsecProposal> {
    let ipsec = root.section("ipsec");
    let tables = ipsec.named_tables("proposal");
    ipsec.finish();
    tables.iter().map(|(name, table)| ((*name).to_owned(), read_ipsec_proposal(table, options))).collect()
}

fn read_ipsec_proposal(table: &Table<'_>, options: Options) -> Option<IpsecProposal> {
    let report = table.report();
    let cbc = |key_octets| TekCipher::AesCbc { key_octets, authentication: TekAuthentication::HmacSha256 };
    let gcm = |key_octets| TekCipher::AesGcm { key_octets, icv_octets: 16 };
    let ciphers = [
        ("aes-128-cbc", cbc(16)),
        ("aes-192-cbc", cbc(24)),
        ("aes-256-cbc", cbc(32)),
        ("aes-128-gcm", gcm(16)),
        ("aes-256-gcm", gcm(32)),
    ];
    let hmacs = [
        ("hmac-sha-256-128", TekAuthentication::HmacSha256),
        ("hmac-sha-384-192", TekAuthentication::HmacSha384),
        ("hmac-sha-512-256", TekAuthentication::HmacSha512),
    ];
    let protocol = table.word("protocol", &[("esp", ())], Some(()));
    let cipher = table.word("encryption-algorithm", &ciphers, None);
    let cipher = match (cipher, table.get("authentication-algorithm")) {
        (Some(TekCipher::AesCbc { key_octets, .. }), Some(item)) => {
            item.word(report, &hmacs).map(|authentication| TekCipher::AesCbc { key_octets, authentication })
        }
        (Some(TekCipher::AesCbc { .. }), None) => {
            let words = hmacs.map(|(word, _)| word).join(" | ");
            report.problem(
                &table.place,
                "authentication-algorithm is missing: CBC alone protects nothing",
                words,
            );
            None
        }
        (Some(_), Some(item)) => {
            report.problem(&item.place, "GCM authenticates by itself", "leave it out");
            None
        }
        (other, _) => other,
    };
    let range = (common::smallest_life(180, options), 2_592_000);
    let lifetime = table.seconds("lifetime-seconds", range).unwrap_or(3600);
    let encapsulations = [("tunnel", Encapsulation::Tunnel), ("transport", Encapsulation::Transport)];
    let encapsulation = table.word("encapsulation", &encapsulations, Some(Encapsulation::Tunnel));
    table.finish();
    protocol?;
    Some(IpsecProposal { cipher: cipher?, lifetime_seconds: narrow(lifetime), encapsulation: encapsulation? })
}

/// Reads the SAs of a group, at least one; `span` is the span of the group's rekey margins.
pub(crate) fn read_sas(
    group: &Table<'_>,
    proposals: &Named<IpsecProposal>,
    span: u32,
) -> Option<Vec<IpsecSa>> {
    let report = group.report();
    let tables = group.named_tables("ipsec-sa");
    if tables.is_empty() {
        report.problem(
            &group.place,
            "ipsec-sa is missing",
            "a group protects something: [group.NAME.ipsec-sa.SA1]",
        );
    }
    let mut all: Vec<(MatchPolicy, String)> = Vec::new();
    let mut sas = Vec::new();
    for (name, table) in &tables {
        let proposal = table
            .require("proposal", "the name of an ipsec.proposal")
            .and_then(|item| common::resolve(&item, report, "ipsec.proposal", proposals));
        if let Some(proposal) = proposal {
            check_tek_life(table, proposal, span);
        }
        let policies = read_policies(name, table, &mut all);
        table.finish();
        sas.push(proposal.zip(policies).map(|(proposal, policies)| IpsecSa {
            name: (*name).to_owned(),
            cipher: proposal.cipher,
            lifetime_seconds: proposal.lifetime_seconds,
            encapsulation: proposal.encapsulation,
            policies,
            rekey_margin_seconds: rekey_margin(proposal.lifetime_seconds, span),
        }));
    }
    sas.into_iter().collect()
}

/// The life stands in the proposal, the margin comes from the group: the problem is where they meet.
fn check_tek_life(sa: &Table<'_>, proposal: &IpsecProposal, span: u32) {
    let smallest = span * 2;
    if proposal.lifetime_seconds < smallest {
        sa.report().problem(
            &sa.place_of("proposal"),
            format!(
                "its TEK life of {} s cannot hold the group's rekey margin of {span} s twice",
                proposal.lifetime_seconds
            ),
            format!("lifetime-seconds of at least {smallest}"),
        );
    }
}

fn read_policies(
    sa: &str,
    table: &Table<'_>,
    all: &mut Vec<(MatchPolicy, String)>,
) -> Option<Vec<MatchPolicy>> {
    let report = table.report();
    let tables = table.table_list("match-policy");
    if tables.is_empty() && !table.states("match-policy") {
        report.problem(&table.place, "match-policy is missing", "[[group.NAME.ipsec-sa.SA1.match-policy]]");
    }
    let mut names: Vec<String> = Vec::new();
    let mut policies = Vec::new();
    for policy_table in &tables {
        let policy = read_policy(policy_table);
        if let Some(policy) = &policy {
            if names.contains(&policy.name) {
                report.problem(
                    &policy_table.place_of("name"),
                    format!("{:?} is the name of another match-policy of this SA", policy.name),
                    "",
                );
            }
            names.push(policy.name.clone());
            let same = all
                .iter()
                .find(|(other, _)| MatchPolicy { name: policy.name.clone(), ..other.clone() } == *policy);
            match same {
                Some((_, other)) => report.problem(
                    &policy_table.place,
                    format!("match-policy {:?} is identical to {other}", policy.name),
                    "every match-policy of a group selects something else",
                ),
                None => all.push((policy.clone(), format!("{:?} of ipsec-sa {sa}", policy.name))),
            }
        }
        policies.push(policy);
    }
    policies.into_iter().collect::<Option<Vec<_>>>().filter(|policies| !policies.is_empty())
}

fn read_policy(table: &Table<'_>) -> Option<MatchPolicy> {
    let report = table.report();
    let name = table.require("name", "a name").and_then(|item| item.filled_text(report));
    let prefix = |side: &str| table.require(side, "a prefix").and_then(|item| item.prefix(report));
    let (source, destination) = (prefix("source"), prefix("destination"));
    let port = |side: &str| u16::try_from(table.number(side, (0, 65_535), 0)).unwrap_or(0);
    let (source_port, destination_port) = (port("source-port"), port("destination-port"));
    let protocol = table.get("protocol").map_or(Some(0), |item| item.protocol(report));
    if (source_port, destination_port) != (0, 0)
        && protocol.is_some_and(|number| !matches!(number, 6 | 17 | 132))
    {
        report.warning(
            &table.place,
            "a port without a protocol that has ports selects nothing",
            "protocol = \"tcp\"",
        );
    }
    table.finish();
    let (source, destination) = (source?, destination?);
    if source.address.is_ipv4() != destination.address.is_ipv4() {
        report.problem(&table.place_of("destination"), "not the address family of source", "");
        return None;
    }
    Some(MatchPolicy {
        name: name?.to_owned(),
        source,
        destination,
        source_port,
        destination_port,
        protocol: protocol?,
    })
}
