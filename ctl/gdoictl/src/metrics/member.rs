//! What a member's snapshot says, as metrics.

use ctl::observe::{GmSnapshot, VpnView};
use ctl::traffic::{DirectionView, TrafficView};

use super::page::{Page, names};

/// States of a VPN.
const STATES: [&str; 4] = ["unregistered", "registering", "registered", "expired"];
/// States of a TEK.
const TEK_STATES: [&str; 3] = ["current", "next", "retiring"];

/// Puts it on the page.
pub fn put(page: &mut Page, snapshot: &GmSnapshot) {
    let it = &snapshot.statistics;
    page.whole(&names::GM_IKE_SAS, &[], snapshot.ike_sas.len() as u64);
    page.counter(&names::GM_PHASE1_ESTABLISHED, &[], it.phase1_established);
    page.counter(&names::GM_PHASE1_FAILED, &[], it.phase1_failed);
    page.counter(&names::GM_MESSAGES_DROPPED, &[], it.messages_dropped);
    page.counter(&names::GM_DATAGRAMS, &["received"], it.datagrams_received);
    page.counter(&names::GM_DATAGRAMS, &["sent"], it.datagrams_sent);
    page.counter(&names::GM_OVERFLOWED, &[], it.datagrams_overflowed);
    page.counter(&names::GM_SEND_ERRORS, &[], it.send_errors);
    for vpn in &snapshot.vpns {
        self::vpn(page, vpn);
        if let Some(traffic) = &vpn.traffic {
            self::traffic(page, &vpn.name, traffic);
        }
    }
}

fn vpn(page: &mut Page, vpn: &VpnView) {
    let name = vpn.name.as_str();
    for state in STATES {
        page.whole(&names::GM_STATE, &[name, state], u64::from(vpn.state == state));
    }
    page.whole(&names::GM_SERVER, &[name, &vpn.group, &vpn.server], 1);
    let it = &vpn.statistics;
    for (result, value) in [
        ("succeeded", it.pull_succeeded),
        ("failed", it.pull_failed),
        ("timeout", it.pull_timeout),
        ("aborted", it.pull_aborted),
    ] {
        page.counter(&names::GM_PULLS, &[name, result], value);
    }
    for (metric, value) in [
        (&names::GM_REKEYS, it.push_succeeded),
        (&names::GM_REFUSED, it.push_failed),
        (&names::GM_DUPLICATE, it.push_duplicate),
        (&names::GM_GAPS, it.push_gaps),
        (&names::GM_ACKS, it.acks_sent),
        (&names::GM_FAILOVERS, it.server_failover),
        (&names::GM_DELETES, it.delete_received),
        (&names::GM_UNSUPPORTED, it.unsupported_algorithm),
    ] {
        page.counter(metric, &[name], value);
    }
    if let Some(kek) = &vpn.kek {
        page.whole(&names::GM_KEK_REMAINING, &[name], kek.remaining_seconds);
        page.whole(&names::GM_PUSH_SEQ, &[name], kek.seq);
    }
    for state in TEK_STATES {
        let count = vpn.teks.iter().filter(|tek| tek.state == state).count();
        page.whole(&names::GM_TEKS, &[name, state], count as u64);
    }
    for tek in &vpn.teks {
        page.whole(&names::GM_TEK_REMAINING, &[name, &tek.sa, &tek.spi, &tek.state], tek.remaining_seconds);
    }
    if let Some(seconds) = vpn.keys_end_in_seconds {
        page.whole(&names::GM_KEYS_END, &[name], seconds);
    }
    if let Some(seconds) = vpn.reregister_in_seconds {
        page.whole(&names::GM_REREGISTER, &[name], seconds);
    }
    page.whole(&names::GM_SIDS, &[name], vpn.sender_ids.len() as u64);
}

fn traffic(page: &mut Page, vpn: &str, traffic: &TrafficView) {
    for (dir, it) in [("out", &traffic.outbound), ("in", &traffic.inbound)] {
        direction(page, vpn, dir, it);
    }
    for (cause, count) in &traffic.inbound.dropped {
        let time = cause.strip_prefix("d3p_");
        if let Some(cause) = time.or_else(|| (cause == "replay").then_some("replay")) {
            page.counter(&names::GM_REPLAY, &[vpn, cause], *count);
        }
    }
    for sa in &traffic.sas {
        page.counter(&names::GM_SA_PACKETS, &[vpn, &sa.spi, "out"], sa.packets_out);
        page.counter(&names::GM_SA_PACKETS, &[vpn, &sa.spi, "in"], sa.packets_in);
        page.counter(&names::GM_SA_BYTES, &[vpn, &sa.spi, "out"], sa.octets_out);
        page.counter(&names::GM_SA_BYTES, &[vpn, &sa.spi, "in"], sa.octets_in);
    }
    for skew in &traffic.skews {
        let most = skew.least_microseconds.unsigned_abs().max(skew.most_microseconds.unsigned_abs());
        page.gauge(&names::GM_SKEW, &[vpn, &skew.sender], seconds(skew.last_microseconds));
        page.gauge(
            &names::GM_SKEW_MOST,
            &[vpn, &skew.sender],
            seconds(i64::try_from(most).unwrap_or(i64::MAX)),
        );
    }
}

fn direction(page: &mut Page, vpn: &str, dir: &str, it: &DirectionView) {
    for (op, count) in [("protected", it.protected), ("fragmented", it.fragmented), ("not_sent", it.not_sent)]
    {
        page.counter(&names::GM_PACKETS, &[vpn, dir, op], count);
    }
    for (rule, count) in [
        ("control", it.clear_control),
        ("exclude", it.clear_exclude),
        ("fail_open", it.clear_fail_open),
        ("fail_close", it.dropped.get("no_key").copied().unwrap_or(0)),
    ] {
        page.counter(&names::GM_RULES, &[vpn, dir, rule], count);
    }
    for (cause, count) in &it.dropped {
        page.counter(&names::GM_DROPPED, &[vpn, dir, cause], *count);
    }
}

fn seconds(microseconds: i64) -> f64 {
    microseconds as f64 / 1_000_000.0
}
