//! `gdoictl server show …`: pure functions from a snapshot to text.

use ctl::observe::{GcksSnapshot, GroupView, IkeSaView, KekView, MemberView, PolicyView, TekView};
use ctl::time::span;
use serde_json::{Value, json};

use crate::Failure;
use crate::args::{Associations, ServerShow, Size};
use crate::table::{self, Table, block, dash, list};
use crate::trace::is_at;

/// What `what` asks for, as a table or JSON.
///
/// # Errors
/// [`Failure::Refused`] when a named group is not there.
pub fn show(snapshot: &GcksSnapshot, what: &ServerShow, json: bool) -> Result<String, Failure> {
    match what {
        ServerShow::RegisteredMembers { size, group, peer } => {
            let groups = select(snapshot, group.as_deref())?;
            let waiting =
                snapshot.statistics.registration_storm.then_some(snapshot.statistics.registrations_waiting);
            registered_members(&groups, *size, peer.as_deref(), (json, waiting))
        }
        ServerShow::Kek(Associations::SecurityAssociations { size, group }) => {
            keks(&select(snapshot, group.as_deref())?, *size, json)
        }
        ServerShow::Ipsec(Associations::SecurityAssociations { size, group }) => {
            let groups = select(snapshot, group.as_deref())?;
            if json {
                return table::json(
                    &groups.iter().map(|g| json!({"group": g.name, "teks": g.teks})).collect::<Vec<_>>(),
                );
            }
            Ok(teks(groups.iter().map(|group| (group.name.as_str(), group.teks.as_slice())), *size))
        }
        ServerShow::Ike(Associations::SecurityAssociations { group: Some(_), .. }) => {
            Err(Failure::Usage("an IKE SA belongs to a peer, not to a group: leave --group out".to_owned()))
        }
        ServerShow::Ike(Associations::SecurityAssociations { size, group: None }) => {
            if json {
                table::json(&snapshot.ike_sas)
            } else {
                Ok(ike(&snapshot.ike_sas, *size))
            }
        }
        ServerShow::Statistics { group } => statistics(snapshot, group.as_deref(), json),
        ServerShow::ServerMemberCommunication => communication(snapshot, json),
        ServerShow::Groups => groups(snapshot, json),
        ServerShow::Policy => {
            if json {
                let all: Vec<Value> = snapshot
                    .groups
                    .iter()
                    .map(|group| json!({"group": group.name, "policy": group.policy}))
                    .collect();
                return table::json(&all);
            }
            let groups = snapshot.groups.iter().map(|group| (group.name.as_str(), group.policy.as_slice()));
            Ok(approved_only(snapshot.approved_only) + &policy(groups))
        }
        ServerShow::Certificates => crate::calendar::show(snapshot, json),
        // Answered before a snapshot is asked for.
        ServerShow::Audit { .. } => Err(Failure::Usage("the audit log is not in a snapshot".to_owned())),
    }
}

/// The group of a name or number, or all.
pub fn select<'a>(snapshot: &'a GcksSnapshot, wanted: Option<&str>) -> Result<Vec<&'a GroupView>, Failure> {
    let Some(wanted) = wanted else { return Ok(snapshot.groups.iter().collect()) };
    // A name wins over another group's number.
    let by_name = snapshot.groups.iter().find(|group| group.name == wanted);
    match by_name.or_else(|| snapshot.groups.iter().find(|group| group.id == wanted)) {
        Some(group) => Ok(vec![group]),
        None => {
            let known = list(&snapshot.groups.iter().map(|group| &group.name).collect::<Vec<_>>());
            Err(Failure::Refused(format!("no group {wanted}; there are: {known}")))
        }
    }
}

fn registered_members(
    groups: &[&GroupView],
    size: Option<Size>,
    peer: Option<&str>,
    (json, storm): (bool, Option<u64>),
) -> Result<String, Failure> {
    let members = |group: &GroupView| -> Vec<MemberView> {
        group
            .members
            .iter()
            .filter(|member| peer.is_none_or(|peer| is_at(&member.address, peer)))
            .cloned()
            .collect()
    };
    if json {
        let all: Vec<Value> = groups
            .iter()
            .map(|group| json!({"group": group.name, "group_id": group.id, "members": members(group), "former_members": group.former_members}))
            .collect();
        return table::json(&all);
    }
    let mut out = String::new();
    if let Some(waiting) = storm {
        out.push_str(&format!("Registration storm: {waiting} wait\n"));
    }
    for group in groups {
        let members = members(group);
        out.push_str(&format!("Group: {}, Group Id: {}\n", group.name, group.id));
        out.push_str(&format!("Total number of registered members: {}\n", members.len()));
        if size == Some(Size::Detail) {
            for member in &members {
                out.push_str(&member_detail(member));
            }
        } else if !members.is_empty() {
            let mut table = Table::new(&["Member", "Address", "Registered", "State", "Last ack", "SIDs"]);
            for member in &members {
                table.row([
                    member.identity.clone(),
                    member.address.clone(),
                    format!("{} ago", span(member.registered_seconds_ago)),
                    state(&member.state, member.missed_rekeys),
                    dash(member.last_ack_seq),
                    list(&member.sender_ids),
                ]);
            }
            out.push_str(&table.or(""));
        }
        for former in &group.former_members {
            out.push_str(&format!(
                "No member any more: {} at {}, {} {} ago\n",
                ctl::event::printable(&former.identity),
                former.address,
                state(&former.state, former.missed_rekeys),
                span(former.seconds_ago)
            ));
        }
        out.push('\n');
    }
    Ok(out)
}

/// `suspect (missed 2)`.
fn state(state: &str, missed: u64) -> String {
    match missed {
        0 => state.to_owned(),
        missed => format!("{state} (missed {missed})"),
    }
}

fn member_detail(member: &MemberView) -> String {
    let ends = member.membership_remaining_seconds.map(|left| format!(", {} left", span(left)));
    let valid_until = member.valid_until.clone().map(|end| end + &ends.unwrap_or_default());
    block(
        &member.identity,
        &[
            ("Address", member.address.clone()),
            ("Gateway", member.gateway.clone()),
            ("Registered", format!("{} ago", span(member.registered_seconds_ago))),
            ("State", member.state.clone()),
            ("Valid until", valid_until.unwrap_or_else(|| "-".to_owned())),
            ("Sender IDs", list(&member.sender_ids)),
            ("Push sent", member.pushes_sent.to_string()),
            ("Push acknowledged", member.acks.to_string()),
            ("Last acknowledged SEQ", dash(member.last_ack_seq)),
            ("Missed in a row", member.missed_rekeys.to_string()),
        ],
    )
}

fn keks(groups: &[&GroupView], size: Option<Size>, json: bool) -> Result<String, Failure> {
    if json {
        let all: Vec<Value> = groups
            .iter()
            .map(|group| json!({"group": group.name, "kek": group.kek, "pending_push": group.pending_push}))
            .collect();
        return table::json(&all);
    }
    let all: Vec<(&str, &KekView)> =
        groups.iter().filter_map(|group| Some((group.name.as_str(), group.kek.as_ref()?))).collect();
    let mut out = kek_table(&all, size);
    for (group, push) in groups.iter().filter_map(|group| Some((group, group.pending_push.as_ref()?))) {
        out.push_str(&format!(
            "{}: PUSH SEQ {} on its way for {}, attempt {}, waiting for [{}]\n",
            group.name,
            push.seq,
            span(push.started_seconds_ago),
            push.attempt,
            push.outstanding.iter().map(|member| ctl::event::printable(member)).collect::<Vec<_>>().join(" ")
        ));
    }
    Ok(out)
}

/// Rekey SAs, of either daemon.
pub fn kek_table(all: &[(&str, &KekView)], size: Option<Size>) -> String {
    if size == Some(Size::Detail) {
        return all.iter().map(|(name, kek)| kek_detail(name, kek)).collect();
    }
    let mut table = Table::new(&["Group", "SPI", "Algorithm", "Life left", "SEQ", "Key"]);
    for (name, kek) in all {
        table.row([
            (*name).to_owned(),
            kek.spi.clone(),
            kek.algorithm.clone(),
            span(kek.remaining_seconds),
            kek.seq.to_string(),
            short(&kek.key_fingerprint),
        ]);
    }
    table.or("no KEK")
}

fn kek_detail(name: &str, kek: &KekView) -> String {
    let mut lines = vec![
        ("SPI", kek.spi.clone()),
        ("Encryption", kek.algorithm.clone()),
        ("Key", format!("{} octets, SHA-256 {}", kek.key_octets, kek.key_fingerprint)),
        ("Signature", format!("{} with {}", kek.signature, kek.signature_hash)),
        ("Signing key", format!("SHA-256 {}", kek.signing_key_fingerprint)),
        ("Acknowledgement", kek.acknowledgement.clone()),
        ("Lifetime", format!("expires in {} seconds", kek.remaining_seconds)),
        ("Push sequence number", kek.seq.to_string()),
    ];
    lines.extend(kek.key_hex.clone().map(|key| ("KEY OCTETS", key)));
    block(name, &lines)
}

/// Data-security SAs, of either daemon.
pub fn teks<'a>(all: impl Iterator<Item = (&'a str, &'a [TekView])>, size: Option<Size>) -> String {
    let mut out = String::new();
    let mut table = Table::new(&["Group", "SA", "SPI", "Algorithm", "Life left", "State", "Key"]);
    for (name, tek) in all.flat_map(|(name, teks)| teks.iter().map(move |tek| (name, tek))) {
        if size == Some(Size::Detail) {
            let mut lines = vec![
                ("IPsec SA", tek.sa.clone()),
                ("Algorithm", tek.algorithm.clone()),
                ("Key", format!("{} octets, SHA-256 {}", tek.key_octets, tek.key_fingerprint)),
                ("Lifetime", format!("expires in {} seconds", tek.remaining_seconds)),
                ("State", tek.state.clone()),
            ];
            lines.extend(
                tek.activates_in_seconds.map(|seconds| ("Encrypts in", format!("{seconds} seconds"))),
            );
            lines.extend(tek.key_hex.clone().map(|key| ("KEY OCTETS", key)));
            out.push_str(&block(&format!("{name} {}", tek.spi), &lines));
        } else {
            table.row([
                name.to_owned(),
                tek.sa.clone(),
                tek.spi.clone(),
                tek.algorithm.clone(),
                span(tek.remaining_seconds),
                tek.state.clone(),
                short(&tek.key_fingerprint),
            ]);
        }
    }
    if size == Some(Size::Detail) { out } else { table.or("no TEK") }
}

/// The first 8 hexadecimal digits tell two keys apart by eye.
fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(8).collect()
}

/// Phase 1 SAs, of either daemon.
pub fn ike(all: &[IkeSaView], size: Option<Size>) -> String {
    if size == Some(Size::Detail) {
        let detail = |sa: &IkeSaView| {
            let lines = [
                ("Peer", sa.peer.clone()),
                ("Local", sa.local.clone()),
                ("Role", sa.role.clone()),
                ("Initiator cookie", sa.initiator_cookie.clone()),
                ("Responder cookie", sa.responder_cookie.clone()),
                ("Algorithms", sa.suite.clone()),
                ("Lifetime", format!("expires in {} seconds", sa.remaining_seconds)),
            ];
            block(&sa.identity, &lines)
        };
        return all.iter().map(detail).collect();
    }
    let mut table =
        Table::new(&["Peer", "Identity", "Role", "Initiator cookie", "Responder cookie", "Life left"]);
    for sa in all {
        table.row([
            sa.peer.clone(),
            sa.identity.clone(),
            sa.role.clone(),
            sa.initiator_cookie.clone(),
            sa.responder_cookie.clone(),
            span(sa.remaining_seconds),
        ]);
    }
    table.or("no IKE SA")
}

fn statistics(snapshot: &GcksSnapshot, group: Option<&str>, json: bool) -> Result<String, Failure> {
    let groups = select(snapshot, group)?;
    if json {
        let of = |group: &&GroupView| json!({"group": group.name, "group_id": group.id, "statistics": group.statistics});
        let groups: Vec<Value> = groups.iter().map(of).collect();
        return table::json(&json!({
            "approved_only": snapshot.approved_only,
            "server": snapshot.statistics,
            "groups": groups,
        }));
    }
    let mut out = String::new();
    if group.is_none() {
        out.push_str(&approved_only(snapshot.approved_only));
        out.push_str(&counters("Server", &snapshot.statistics)?);
    }
    for group in groups {
        out.push_str(&counters(
            &format!("Group: {}, Group Id: {}", group.name, group.id),
            &group.statistics,
        )?);
    }
    Ok(out)
}

/// Every counter of a statistics struct under its JSON name.
///
/// # Errors
/// As [`table::json`].
pub fn counters<T: serde::Serialize>(heading: &str, statistics: &T) -> Result<String, Failure> {
    let value = serde_json::to_value(statistics).map_err(|error| Failure::Refused(error.to_string()))?;
    let named: Vec<(String, String)> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, count)| (name.replace('_', " "), count.to_string()))
        .collect();
    let lines: Vec<(&str, String)> =
        named.iter().map(|(name, count)| (name.as_str(), count.clone())).collect();
    Ok(block(heading, &lines))
}

fn communication(snapshot: &GcksSnapshot, json: bool) -> Result<String, Failure> {
    if json {
        let of = |group: &GroupView| json!({"group": group.name, "communication": group.communication});
        return table::json(&snapshot.groups.iter().map(of).collect::<Vec<_>>());
    }
    let mut out = String::new();
    for group in &snapshot.groups {
        let Some(it) = &group.communication else {
            out.push_str(&format!("{}\n  no pushes: members register again\n", group.name));
            continue;
        };
        out.push_str(&block(
            &group.name,
            &[
                ("Server Member Communication", it.communication_type.clone()),
                ("Multicast group", it.multicast_group.clone().unwrap_or_else(|| "-".to_owned())),
                (
                    "Multicast outgoing interface",
                    it.multicast_outgoing_interface.clone().unwrap_or_else(|| "-".to_owned()),
                ),
                ("Encryption", it.encryption_algorithm.clone()),
                ("Signature", format!("{} with {}", it.signature, it.sig_hash_algorithm)),
                ("KEK lifetime", format!("{} seconds", it.lifetime_seconds)),
                ("Number of Retransmissions", it.number_of_retransmission.to_string()),
                ("Retransmission Period", format!("{} seconds", it.retransmission_period)),
                ("Acknowledgement", it.acknowledgement.clone()),
                ("Missed rekeys before removal", it.missed_rekeys.to_string()),
                ("Activation time delay", format!("{} seconds", it.activation_time_delay)),
                ("Deactivation time delay", format!("{} seconds", it.deactivation_time_delay)),
                ("Rekey margin", format!("{} seconds", it.rekey_margin_seconds)),
            ],
        ));
    }
    Ok(out)
}

fn groups(snapshot: &GcksSnapshot, json: bool) -> Result<String, Failure> {
    if json {
        let of = |group: &GroupView| {
            json!({
                "name": group.name,
                "group_id": group.id,
                "members": group.members.len(),
                "member_threshold": group.member_threshold,
                "kek_spi": group.kek.as_ref().map(|kek| &kek.spi),
                "seq": group.kek.as_ref().map(|kek| kek.seq),
                "teks": group.teks.iter().map(|tek| &tek.spi).collect::<Vec<_>>(),
                "rekeys": group.statistics.rekeys,
            })
        };
        return table::json(&snapshot.groups.iter().map(of).collect::<Vec<_>>());
    }
    let mut table = Table::new(&["Group", "Id", "Members", "KEK left", "SEQ", "TEKs", "Rekeys"]);
    for group in &snapshot.groups {
        let limit = group.member_threshold.map(|limit| format!("/{limit}")).unwrap_or_default();
        table.row([
            group.name.clone(),
            group.id.clone(),
            format!("{}{limit}", group.members.len()),
            dash(group.kek.as_ref().map(|kek| span(kek.remaining_seconds))),
            dash(group.kek.as_ref().map(|kek| kek.seq)),
            group.teks.len().to_string(),
            group.statistics.rekeys.to_string(),
        ]);
    }
    Ok(table.or("no groups"))
}

/// The line on `approved-only`, of either daemon.
pub fn approved_only(on: bool) -> String {
    format!("Approved algorithms only: {}\n", if on { "yes" } else { "no" })
}

/// What traffic is protected, of either daemon.
pub fn policy<'a>(all: impl Iterator<Item = (&'a str, &'a [PolicyView])>) -> String {
    let any = |number: u64| if number == 0 { "any".to_owned() } else { number.to_string() };
    let headings =
        ["Group", "SA", "Policy", "Source", "Destination", "Ports", "Protocol", "Algorithm", "Mode"];
    let mut table = Table::new(&headings);
    for (name, policy) in all.flat_map(|(name, policies)| policies.iter().map(move |policy| (name, policy))) {
        table.row([
            name.to_owned(),
            policy.sa.clone(),
            policy.name.clone(),
            policy.source.clone(),
            policy.destination.clone(),
            format!("{}-{}", any(policy.source_port), any(policy.destination_port)),
            any(policy.protocol),
            policy.algorithm.clone(),
            policy.encapsulation.clone(),
        ]);
    }
    table.or("no policy")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::Parser;
    use ctl::observe::{FormerMemberView, PendingPushView};

    fn snapshot() -> GcksSnapshot {
        let member = |identity: &str, address: &str| MemberView {
            identity: identity.to_owned(),
            address: address.to_owned(),
            registered_seconds_ago: 61,
            last_ack_seq: Some(3),
            state: "registered".to_owned(),
            sender_ids: vec![1, 2],
            ..MemberView::default()
        };
        let group = GroupView {
            name: "g1".to_owned(),
            id: "1".to_owned(),
            members: vec![
                member("gm1", "10.0.0.1:848"),
                MemberView {
                    state: "suspect".to_owned(),
                    missed_rekeys: 2,
                    ..member("gm2", "10.0.0.2:4500")
                },
            ],
            former_members: vec![FormerMemberView {
                identity: "gm3".to_owned(),
                address: "10.0.0.3:848".to_owned(),
                state: "expired".to_owned(),
                missed_rekeys: 3,
                seconds_ago: 5,
                ..FormerMemberView::default()
            }],
            kek: Some(KekView {
                spi: "0x0a".to_owned(),
                seq: 3,
                remaining_seconds: 90,
                ..KekView::default()
            }),
            teks: vec![TekView {
                spi: "0x00000100".to_owned(),
                state: "current".to_owned(),
                ..TekView::default()
            }],
            pending_push: Some(PendingPushView {
                seq: 3,
                outstanding: vec!["gm2".to_owned()],
                ..PendingPushView::default()
            }),
            ..GroupView::default()
        };
        GcksSnapshot { groups: vec![group], ..GcksSnapshot::default() }
    }

    fn shown(line: &str) -> Result<String, Failure> {
        let args =
            Args::try_parse_from(format!("gdoictl server show {line}").split(' ')).expect("a command line");
        let crate::args::Command::Server(crate::args::ServerCommand::Show(what)) = args.command else {
            panic!("not a show")
        };
        show(&snapshot(), &what, args.json)
    }

    #[test]
    fn members_are_a_table_under_their_group() {
        assert_eq!(
            shown("registered-members").unwrap(),
            "Group: g1, Group Id: 1\n\
             Total number of registered members: 2\n\
             Member  Address        Registered  State               Last ack  SIDs\n\
             gm1     10.0.0.1:848   1m01s ago   registered          3         1 2\n\
             gm2     10.0.0.2:4500  1m01s ago   suspect (missed 2)  3         1 2\n\
             No member any more: gm3 at 10.0.0.3:848, expired (missed 3) 5s ago\n\n"
        );
    }

    #[test]
    fn members_can_be_picked_by_address_and_groups_by_number() {
        let text = shown("registered-members --group 1 --peer 10.0.0.2").unwrap();
        assert!(text.contains("gm2") && !text.contains("gm1"), "{text}");
        assert!(
            matches!(shown("registered-members --group 2"), Err(Failure::Refused(reason)) if reason.contains("g1"))
        );
    }

    #[test]
    fn policy_and_statistics_say_whether_only_approved_algorithms_count() {
        for what in ["policy", "statistics"] {
            assert!(shown(what).unwrap().starts_with("Approved algorithms only: no\n"), "{what}");
        }
        let statistics: Value = serde_json::from_str(&shown("statistics --json").unwrap()).unwrap();
        assert_eq!(statistics["approved_only"], false);
        assert_eq!(approved_only(true), "Approved algorithms only: yes\n");
    }

    #[test]
    fn every_counter_of_the_documentation_is_shown() {
        let page = include_str!("../../../docs/counters.md");
        let section =
            page.split("\n## ").find(|section| section.starts_with("`gdoictl server show statistics`"));
        let (text, json) = (shown("statistics").unwrap(), shown("statistics --json").unwrap());
        let mut found = 0;
        for row in section.unwrap().lines().filter(|line| line.starts_with("| ")).skip(2) {
            let column = row.split('|').nth(2).unwrap();
            if column.contains("show registered-members") {
                continue;
            }
            for name in column.split('`').skip(1).step_by(2) {
                assert!(json.contains(&format!("\"{name}\":")), "{name} is not in the JSON");
                assert!(text.contains(&name.replace('_', " ")), "{name} is not in {text}");
                found += 1;
            }
        }
        assert!(found >= 18, "only {found} names were found");
        assert!(text.contains("Group: g1, Group Id: 1"), "{text}");
    }

    #[test]
    fn the_kek_table_ends_with_the_push_on_its_way() {
        let text = shown("kek security-associations").unwrap();
        assert!(text.starts_with("Group  SPI   Algorithm  Life left  SEQ  Key\ng1     0x0a"), "{text}");
        assert!(text.contains("PUSH SEQ 3 on its way") && text.contains("[gm2]"), "{text}");
    }

    #[test]
    fn every_show_is_json_too() {
        for what in [
            "registered-members",
            "kek security-associations",
            "ipsec security-associations",
            "ike security-associations",
            "statistics",
            "server-member-communication",
            "groups",
            "policy",
        ] {
            let text = shown(&format!("{what} --json")).unwrap();
            serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!shown(what).unwrap().is_empty(), "{what}");
        }
    }
}
