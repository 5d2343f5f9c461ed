//! `gdoictl member show …`: pure functions from a snapshot to text.

use ctl::event::printable;
use ctl::observe::{GmSnapshot, KekView, VpnView};
use ctl::time::span;
use serde_json::{Value, json};

use crate::Failure;
use crate::args::{Associations, IpsecShow, MemberShow};
use crate::server::{approved_only, counters, ike, kek_table, policy, teks};
use crate::table::{self, Table, dash, list};

/// What `what` asks for, as a table or JSON.
///
/// # Errors
/// [`Failure::Refused`] when a named VPN is not there.
pub fn show(snapshot: &GmSnapshot, what: &MemberShow, json: bool) -> Result<String, Failure> {
    match what {
        MemberShow::Kek(Associations::SecurityAssociations { size, group }) => {
            let vpns = select(snapshot, group.as_deref())?;
            if json {
                return each(&vpns, |vpn| json!({"vpn": vpn.name, "server": vpn.server, "kek": vpn.kek}));
            }
            let all: Vec<(&str, &KekView)> =
                vpns.iter().filter_map(|vpn| Some((vpn.name.as_str(), vpn.kek.as_ref()?))).collect();
            Ok(kek_table(&all, *size))
        }
        MemberShow::Ipsec(IpsecShow::SecurityAssociations { size, group }) => {
            let vpns = select(snapshot, group.as_deref())?;
            if json {
                return each(&vpns, |vpn| {
                    json!({
                        "vpn": vpn.name, "group": vpn.group, "state": vpn.state, "server": vpn.server, "teks": vpn.teks,
                        "sender_ids": vpn.sender_ids, "sid_bits": vpn.sid_bits,
                        "reregister_in_seconds": vpn.reregister_in_seconds,
                        "keys_end_in_seconds": vpn.keys_end_in_seconds,
                    })
                });
            }
            let keys = teks(vpns.iter().map(|vpn| (vpn.name.as_str(), vpn.teks.as_slice())), *size);
            Ok(states(&vpns) + "\n" + &keys)
        }
        MemberShow::Ipsec(IpsecShow::Statistics { group }) => {
            let vpns = select(snapshot, group.as_deref())?;
            if json {
                return each(
                    &vpns,
                    |vpn| json!({"vpn": vpn.name, "group": vpn.group, "traffic": vpn.traffic}),
                );
            }
            Ok(vpns.iter().map(|vpn| traffic(vpn)).collect())
        }
        MemberShow::Ike(Associations::SecurityAssociations { group: Some(_), .. }) => {
            Err(Failure::Usage("an IKE SA belongs to a peer, not to a group: leave --group out".to_owned()))
        }
        MemberShow::Ike(Associations::SecurityAssociations { size, group: None }) => {
            if json {
                table::json(&snapshot.ike_sas)
            } else {
                Ok(ike(&snapshot.ike_sas, *size))
            }
        }
        MemberShow::Policy => {
            if json {
                return each(&select(snapshot, None)?, |vpn| json!({"vpn": vpn.name, "policy": vpn.policy}));
            }
            let vpns = snapshot.vpns.iter().map(|vpn| (vpn.name.as_str(), vpn.policy.as_slice()));
            Ok(approved_only(snapshot.approved_only) + &policy(vpns))
        }
        MemberShow::Statistics => statistics(snapshot, json),
        // Answered before a snapshot is asked for.
        MemberShow::InactiveTunnels(_) => Err(Failure::Refused("not supported yet".to_owned())),
    }
}

fn each(vpns: &[&VpnView], of: impl Fn(&VpnView) -> Value) -> Result<String, Failure> {
    table::json(&vpns.iter().map(|vpn| of(vpn)).collect::<Vec<_>>())
}

fn select<'a>(snapshot: &'a GmSnapshot, wanted: Option<&str>) -> Result<Vec<&'a VpnView>, Failure> {
    let Some(wanted) = wanted else { return Ok(snapshot.vpns.iter().collect()) };
    let found: Vec<&VpnView> =
        snapshot.vpns.iter().filter(|vpn| vpn.name == wanted || vpn.group == wanted).collect();
    if found.is_empty() {
        let known = list(&snapshot.vpns.iter().map(|vpn| &vpn.name).collect::<Vec<_>>());
        return Err(Failure::Refused(format!("no VPN {wanted}; there are: {known}")));
    }
    Ok(found)
}

fn states(vpns: &[&VpnView]) -> String {
    let mut table =
        Table::new(&["VPN", "Group", "State", "Server", "SIDs", "Registers again in", "Keys end in"]);
    for vpn in vpns {
        table.row([
            vpn.name.clone(),
            vpn.group.clone(),
            vpn.state.clone(),
            vpn.server.clone(),
            list(&vpn.sender_ids),
            dash(vpn.reregister_in_seconds.map(span)),
            dash(vpn.keys_end_in_seconds.map(span)),
        ]);
    }
    table.or("no VPNs")
}

fn statistics(snapshot: &GmSnapshot, json: bool) -> Result<String, Failure> {
    if json {
        let of = |vpn: &VpnView| json!({"vpn": vpn.name, "group": vpn.group, "statistics": vpn.statistics});
        let vpns: Vec<Value> = snapshot.vpns.iter().map(of).collect();
        return table::json(&json!({
            "approved_only": snapshot.approved_only,
            "member": snapshot.statistics,
            "vpns": vpns,
        }));
    }
    let mut out = approved_only(snapshot.approved_only) + &counters("Member", &snapshot.statistics)?;
    for vpn in &snapshot.vpns {
        out.push_str(&counters(&format!("VPN: {}, Group: {}", vpn.name, vpn.group), &vpn.statistics)?);
    }
    Ok(out)
}

/// Packets of a VPN by direction, by cause where they were dropped, by SA, and the clocks of senders.
fn traffic(vpn: &VpnView) -> String {
    let heading = format!("VPN: {}, Group: {}", vpn.name, vpn.group);
    let Some(traffic) = &vpn.traffic else {
        return format!("{}\n  carries no traffic: no ipsec-policy, or no data plane\n", printable(&heading));
    };
    let (out, inn) = (&traffic.outbound, &traffic.inbound);
    let pair = |out: u64, inn: u64| [out.to_string(), inn.to_string()];
    let mut packets = Table::new(&["Packets", "Out", "In"]);
    let mut row = |name: String, out: u64, inn: u64| {
        let [out, inn] = pair(out, inn);
        packets.row([name, out, inn]);
    };
    row("protected by ESP".to_owned(), out.protected, inn.protected);
    row("clear, key management".to_owned(), out.clear_control, inn.clear_control);
    row("clear, exclude rule".to_owned(), out.clear_exclude, inn.clear_exclude);
    row("clear, fail-open rule".to_owned(), out.clear_fail_open, inn.clear_fail_open);
    row("in fragments".to_owned(), out.fragmented, inn.fragmented);
    row("not sent by the system".to_owned(), out.not_sent, inn.not_sent);
    for (cause, dropped) in &out.dropped {
        let other = inn.dropped.get(cause).copied().unwrap_or_default();
        // Causes that never occur are in the JSON; those of delay detection are always shown, as operators know them.
        if *dropped + other > 0 || cause.starts_with("d3p_") {
            row(format!("dropped, {}", cause.replace('_', " ")), *dropped, other);
        }
    }
    let mut sas = Table::new(&["SPI", "Packets out", "Octets out", "Packets in", "Octets in"]);
    for sa in &traffic.sas {
        let [packets_out, octets_out] = pair(sa.packets_out, sa.octets_out);
        let [packets_in, octets_in] = pair(sa.packets_in, sa.octets_in);
        sas.row([sa.spi.clone(), packets_out, octets_out, packets_in, octets_in]);
    }
    let mut text = format!("{}\n{}\n{}", printable(&heading), packets.or(""), sas.or("no SAs"));
    if !traffic.skews.is_empty() {
        let mut skews = Table::new(&["Sender", "Skew now, ms", "Least", "Most", "Refused"]);
        let milliseconds = |microseconds: i64| format!("{:.1}", microseconds as f64 / 1000.0);
        for skew in &traffic.skews {
            skews.row([
                skew.sender.clone(),
                milliseconds(skew.last_microseconds),
                milliseconds(skew.least_microseconds),
                milliseconds(skew.most_microseconds),
                skew.refused.to_string(),
            ]);
        }
        text.push_str(&format!("\n{}", skews.or("")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command, MemberCommand};
    use clap::Parser;
    use ctl::observe::TekView;
    use ctl::traffic::{SaTrafficView, SkewView, TrafficView};

    fn shown(line: &str) -> Result<String, Failure> {
        let args =
            Args::try_parse_from(format!("gdoictl member show {line}").split(' ')).expect("a command line");
        let Command::Member(MemberCommand::Show(what)) = args.command else { panic!("not a show") };
        let tek = TekView { spi: "0x00000100".to_owned(), remaining_seconds: 600, ..TekView::default() };
        let mut traffic = TrafficView::default();
        traffic.outbound.protected = 77;
        traffic.inbound.dropped = [("d3p_too_old", 3), ("icv", 5), ("seal", 0)]
            .map(|(cause, count)| (cause.to_owned(), count))
            .into();
        traffic.outbound.dropped = traffic.inbound.dropped.keys().map(|cause| (cause.clone(), 0)).collect();
        traffic.sas =
            vec![SaTrafficView { spi: "0x00000100".to_owned(), octets_in: 99, ..Default::default() }];
        traffic.skews =
            vec![SkewView { sender: "10.1.0.9".to_owned(), last_microseconds: -1500, ..Default::default() }];
        let vpn = VpnView {
            name: "v1".to_owned(),
            state: "registered".to_owned(),
            teks: vec![tek],
            traffic: Some(traffic),
            ..VpnView::default()
        };
        show(&GmSnapshot { vpns: vec![vpn], ..GmSnapshot::default() }, &what, args.json)
    }

    #[test]
    fn ipsec_shows_the_state_of_the_vpn_and_its_keys() {
        let text = shown("ipsec security-associations").unwrap();
        assert!(
            text.contains("registered") && text.contains("0x00000100") && text.contains("10m00s"),
            "{text}"
        );
    }

    #[test]
    fn ipsec_statistics_tell_packets_by_direction_cause_sa_and_sender() {
        let text = shown("ipsec statistics").unwrap();
        for line in ["protected by ESP", "dropped, icv", "dropped, d3p too old", "0x00000100", "-1.5"] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(!text.contains("dropped, seal"), "{text}");
    }

    #[test]
    fn every_show_is_json_too() {
        for what in [
            "kek security-associations",
            "ipsec security-associations",
            "ike security-associations",
            "ipsec statistics",
            "policy",
            "statistics",
        ] {
            let text = shown(&format!("{what} --json")).unwrap();
            serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(!shown(what).unwrap().is_empty(), "{what}");
        }
        assert!(matches!(shown("kek security-associations --group v2"), Err(Failure::Refused(_))));
    }
}
