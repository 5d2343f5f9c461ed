//! `gdoictl member show …`: pure functions from a snapshot to text.

use ctl::observe::{GmSnapshot, KekView, VpnView};
use ctl::time::span;
use serde_json::{Value, json};

use crate::Failure;
use crate::args::{Associations, IpsecShow, MemberShow};
use crate::server::{counters, ike, kek_table, policy, teks};
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
            Ok(policy(snapshot.vpns.iter().map(|vpn| (vpn.name.as_str(), vpn.policy.as_slice()))))
        }
        MemberShow::Statistics => statistics(snapshot, json),
        // Answered before a snapshot is asked for.
        MemberShow::Ipsec(IpsecShow::Statistics(_)) | MemberShow::InactiveTunnels(_) => {
            Err(Failure::Refused("not supported yet".to_owned()))
        }
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
        return table::json(&json!({"member": snapshot.statistics, "vpns": vpns}));
    }
    let mut out = counters("Member", &snapshot.statistics)?;
    for vpn in &snapshot.vpns {
        out.push_str(&counters(&format!("VPN: {}, Group: {}", vpn.name, vpn.group), &vpn.statistics)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command, MemberCommand};
    use clap::Parser;
    use ctl::observe::TekView;

    fn shown(line: &str) -> Result<String, Failure> {
        let args =
            Args::try_parse_from(format!("gdoictl member show {line}").split(' ')).expect("a command line");
        let Command::Member(MemberCommand::Show(what)) = args.command else { panic!("not a show") };
        let tek = TekView { spi: "0x00000100".to_owned(), remaining_seconds: 600, ..TekView::default() };
        let vpn = VpnView {
            name: "v1".to_owned(),
            state: "registered".to_owned(),
            teks: vec![tek],
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
    fn every_show_is_json_too() {
        for what in [
            "kek security-associations",
            "ipsec security-associations",
            "ike security-associations",
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
