//! `[group.NAME]` of `gcks.toml`: who may join, how keys are renewed, what they protect.

use std::net::IpAddr;

use gdoi_proto::ids::GroupId;
use gdoi_proto::policy::TekCipher;

use crate::Options;
use crate::common::{self, Named, narrow};
use crate::communication::{self, Communication};
use crate::gcks::Gateway;
use crate::ipsec::{self, IpsecProposal, IpsecSa};
use crate::table::Table;

/// `[group.NAME]`.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its name on the wire; unique.
    pub id: GroupId,
    /// Its second name, for gateways with `group-id-address`; unique.
    pub address: Option<IpAddr>,
    /// Gateways that may register, each exists.
    pub gateways: Vec<String>,
    /// Most members; none: no limit.
    pub member_threshold: Option<u32>,
    /// Window of IP-D3P in milliseconds, 1-60000; none: packets carry no time.
    pub anti_replay_time_window_ms: Option<u32>,
    /// 8, 12 or 16 (default).
    pub sender_id_bits: u8,
    /// New keys when a member is expelled, default true.
    pub rekey_on_leave: bool,
    /// Always false in this build.
    pub rekey_on_join: bool,
    /// Rekeying; none: no KEK, members register again.
    pub communication: Option<Communication>,
    /// At least one, in the order of the file.
    pub sas: Vec<IpsecSa>,
    /// Line of the statement, from 1.
    pub line: usize,
}

/// Reads `[ipsec]` and `[group]`; none when one of them is unusable.
pub(crate) fn read_groups(
    root: &Table<'_>,
    gateways: &Named<Gateway>,
    options: Options,
) -> Option<Vec<Group>> {
    let report = root.report();
    let proposals = ipsec::read_proposals(root, options);
    let mut ids: Vec<(GroupId, &str)> = Vec::new();
    let mut addresses: Vec<(IpAddr, &str)> = Vec::new();
    let mut groups = Vec::new();
    for (name, table) in root.named_tables("group") {
        // The name heads the keys of the group's stored rows, and stands in logs.
        if name.is_empty() || name.contains(|letter: char| letter == '/' || letter.is_control()) {
            report.problem(
                &table.place,
                "the name of a group is empty, or has a / or a control character",
                "",
            );
        }
        let id = read_group_id(&table);
        if let Some(id) = &id {
            match ids.iter().find(|(other, _)| other == id) {
                Some((_, other)) => report.problem(
                    &table.place_of("group-id"),
                    format!("group-id {id} is that of group.{other} already"),
                    "a number of its own for every group",
                ),
                None => ids.push((id.clone(), name)),
            }
        }
        let group = read_group(name, id, &table, gateways, &proposals, options);
        if let Some(address) = group.as_ref().and_then(|group| group.address) {
            match addresses.iter().find(|(other, _)| *other == address) {
                Some((_, other)) => report.problem(
                    &table.place_of("group-address"),
                    format!("{address} is the address of group.{other} already"),
                    "an address of its own for every group",
                ),
                None => addresses.push((address, name)),
            }
        }
        groups.push(group);
    }
    groups.into_iter().collect()
}

fn read_group_id(table: &Table<'_>) -> Option<GroupId> {
    table.later("group-oid", "names a group of RFC 8052; group-id takes a number");
    let item = match table.get("group-id") {
        None if table.states("group-oid") => return None,
        None => table.require("group-id", "a number, 1-4294967295"),
        item => item,
    };
    let number = item?.number(table.report(), (1, u64::from(u32::MAX)))?;
    Some(GroupId::number(narrow(number)))
}

fn read_group(
    name: &str,
    id: Option<GroupId>,
    table: &Table<'_>,
    known: &Named<Gateway>,
    proposals: &Named<IpsecProposal>,
    options: Options,
) -> Option<Group> {
    let report = table.report();
    let mut gateways: Vec<String> = Vec::new();
    let mut resolved = Vec::new();
    let list = table.require("ike-gateways", "a list of ike.gateway names");
    for item in list.map(|list| list.items(report)).unwrap_or_default() {
        let gateway = common::resolve(&item, report, "ike.gateway", known);
        let Some(name) = item.value.as_str().map(str::to_owned) else { continue };
        if gateways.contains(&name) {
            report.problem(&item.place, format!("{name:?} is named twice"), "");
            continue;
        }
        resolved.extend(gateway);
        gateways.push(name);
    }
    if gateways.is_empty() {
        report.warning(&table.place, "no gateway may register", "");
    }
    let address = table.get("group-address").and_then(|item| item.address(report));
    if resolved.iter().any(|gateway| gateway.compat.group_id_address) && address.is_none() {
        report.problem(&table.place, "a gateway has group-id-address", "group-address = \"239.192.0.1\"");
    }
    refuse_mixed_pushes(&resolved, table);
    let threshold =
        table.get("member-threshold").and_then(|item| item.number(report, (1, u64::from(u32::MAX))));
    let anti_replay_time_window_ms = table
        .milliseconds("anti-replay-time-window", (1, 60_000))
        .and_then(|width| u32::try_from(width).ok());
    let sender_id_bits = match table.get("sender-id-bits").map(|item| item.number(report, (8, 16))) {
        Some(Some(bits @ (8 | 12 | 16))) => bits,
        Some(Some(bits)) => {
            report.problem(&table.place_of("sender-id-bits"), format!("{bits} is not known"), "8 | 12 | 16");
            16
        }
        _ => 16,
    };
    let rekey_on_leave = table.boolean("rekey-on-leave", true);
    let rekey_on_join = table.boolean("rekey-on-join", false);
    let section = table.table("server-member-communication");
    if rekey_on_join && section.is_none() {
        report.problem(
            &table.place_of("rekey-on-join"),
            "without server-member-communication nobody can be told of new keys",
            "a server-member-communication section, or false",
        );
    }
    let (communication, span) = match &section {
        None => (Some(None), 0),
        Some(section) => {
            let (communication, span) = communication::read(section, options);
            (communication.map(Some), span)
        }
    };
    let sas = ipsec::read_sas(table, proposals, span);
    table.finish();
    let group = Group {
        name: name.to_owned(),
        id: id?,
        address,
        gateways,
        member_threshold: threshold.map(narrow),
        anti_replay_time_window_ms,
        sender_id_bits: u8::try_from(sender_id_bits).unwrap_or(16),
        rekey_on_leave,
        rekey_on_join,
        communication: communication?,
        sas: sas?,
        line: report.line(&table.place),
    };
    warn_weak_phase1(&group, &resolved, table);
    Some(group)
}

/// One push is signed for the whole group: its gateways must agree on the `compat` words that shape it.
fn refuse_mixed_pushes(gateways: &[&Gateway], table: &Table<'_>) {
    let Some((first, others)) = gateways.split_first() else { return };
    for other in others.iter().filter(|other| other.compat.of_push() != first.compat.of_push()) {
        let words = |gateway: &Gateway| {
            let words: Vec<&str> = gateway.compat.of_push().words().collect();
            if words.is_empty() { "none".to_owned() } else { words.join(", ") }
        };
        table.report().problem(
            &table.place_of("ike-gateways"),
            format!(
                "one push is signed for the whole group, but ike.gateway.{} needs compat {} and ike.gateway.{} {}",
                first.name,
                words(first),
                other.name,
                words(other)
            ),
            "a group of its own for old peers",
        );
    }
}

/// A phase 1 cipher weaker than the keys that travel under it is the weakest link of the group.
fn warn_weak_phase1(group: &Group, gateways: &[&Gateway], table: &Table<'_>) {
    let keys = group.sas.iter().map(|sa| match sa.cipher {
        TekCipher::AesCbc { key_octets, .. }
        | TekCipher::AesGcm { key_octets, .. }
        | TekCipher::AesGmac { key_octets } => key_octets,
        TekCipher::Null { .. } => 0,
    });
    let kek = group.communication.iter().map(|communication| communication.cipher.key_len());
    let strongest = keys.chain(kek).max().unwrap_or(0);
    for gateway in gateways {
        for proposal in gateway.proposals.iter().filter(|proposal| proposal.cipher.key_len() < strongest) {
            table.report().weak(
                &table.place_of("ike-gateways"),
                format!(
                    "ike.gateway.{} may use ike.proposal.{}, whose cipher of {} bits carries keys of {} bits",
                    gateway.name,
                    proposal.name,
                    proposal.cipher.key_len() * 8,
                    strongest * 8
                ),
                "a stronger phase 1 cipher",
            );
        }
    }
}
