//! What a key server's snapshot says, as metrics.

use ctl::observe::{GcksSnapshot, GroupView, KekView, ServerStatistics};

use super::page::{Page, names};

/// Puts it on the page.
pub fn put(page: &mut Page, snapshot: &GcksSnapshot) {
    let members = |group: &GroupView| group.counts.registered + group.counts.suspect;
    page.whole(&names::REGISTERED, &[], snapshot.groups.iter().map(members).sum());
    whole_server(page, &snapshot.statistics);
    for it in &snapshot.certificates {
        // One certificate may serve in several places: it is the same sample, which may stand here once.
        let place = [it.kind.as_str(), it.subject.as_str(), it.serial.as_str()];
        let key = |other: &&ctl::observe::CertificateView| {
            [other.kind.as_str(), other.subject.as_str(), other.serial.as_str()] == place
        };
        if snapshot.certificates.iter().find(key).is_some_and(|first| std::ptr::eq(first, it)) {
            page.whole(&names::CERTIFICATE_EXPIRES, &place, it.remaining_seconds);
        }
    }
    for group in &snapshot.groups {
        self::group(page, group);
    }
}

fn whole_server(page: &mut Page, it: &ServerStatistics) {
    page.whole(&names::IKE_SAS, &[], it.ike_sas);
    page.counter(&names::PHASE1_ESTABLISHED, &[], it.phase1_established);
    page.counter(&names::PHASE1_FAILED, &[], it.phase1_failed);
    page.whole(&names::HALF_OPEN, &[], it.half_open);
    page.counter(&names::HALF_OPEN_LIMITED, &[], it.half_open_limited);
    page.counter(&names::MESSAGES_DROPPED, &[], it.messages_dropped);
    page.counter(&names::ACKS_UNKNOWN, &[], it.acks_unknown_sa);
    page.whole(&names::STORM, &[], u64::from(it.registration_storm));
    page.counter(&names::STORMS, &[], it.registration_storms);
    page.whole(&names::STORM_QUEUE, &[], it.registrations_waiting);
    page.counter(&names::DELAYED, &[], it.registrations_delayed);
    page.whole(&names::PUSH_WINDOW, &[], it.push_window);
    page.whole(&names::PUSH_UNANSWERED, &[], it.push_unanswered);
    if let Some(milliseconds) = it.ack_latency_milliseconds {
        page.gauge(&names::ACK_LATENCY, &[], std::time::Duration::from_millis(milliseconds).as_secs_f64());
    }
    page.counter(&names::DATAGRAMS, &["received"], it.datagrams_received);
    page.counter(&names::DATAGRAMS, &["sent"], it.datagrams_sent);
    page.counter(&names::OVERFLOWED, &[], it.datagrams_overflowed);
    page.counter(&names::SEND_ERRORS, &[], it.send_errors);
}

fn group(page: &mut Page, group: &GroupView) {
    let name = group.name.as_str();
    page.whole(&names::MEMBERS, &[name, "registered"], group.counts.registered);
    page.whole(&names::MEMBERS, &[name, "suspect"], group.counts.suspect);
    if let Some(threshold) = group.member_threshold {
        page.whole(&names::THRESHOLD, &[name], threshold);
    }
    page.whole(&names::REVOKED, &[name], group.counts.revoked);
    for (anchor, count) in &group.counts.by_anchor {
        page.whole(&names::BY_ANCHOR, &[name, anchor], *count);
    }
    let it = &group.statistics;
    for (metric, value) in [
        (&names::PULL_SUCCEEDED, it.pull_succeeded),
        (&names::PULL_FAILED, it.pull_failed),
        (&names::PULL_OVER, it.pull_exceed_member_threshold),
        (&names::PUSH_SENT, it.push_sent),
        (&names::PUSH_MULTICAST, it.push_multicast),
        (&names::PUSH_RETRANSMITTED, it.push_retransmitted),
        (&names::PUSH_ACKED, it.push_acknowledged),
        (&names::PUSH_UNACKED, it.push_unacknowledged),
        (&names::REKEYS, it.rekeys),
        (&names::SUSPECTED, it.members_suspected),
        (&names::EXPIRED, it.members_expired),
        (&names::ENDED, it.memberships_ended),
        (&names::LKH_KEYS, it.lkh_keys_sent),
    ] {
        page.counter(metric, &[name], value);
    }
    for (cause, value) in [
        ("duplicate", it.acks_duplicate),
        ("late", it.acks_late),
        ("unexpected", it.acks_unexpected),
        ("forged", it.acks_forged),
        ("stranger", it.acks_stranger),
    ] {
        page.counter(&names::ACKS_REFUSED, &[name, cause], value);
    }
    page.durations(&names::REGISTRATION, &[name], group.durations.registration);
    page.durations(&names::PUSH_ACK, &[name], group.durations.acknowledgement);
    page.durations(&names::FANOUT, &[name], group.durations.rekey);
    if let Some(last) = &group.last_push {
        page.gauge(&names::LAST_SECONDS, &[name], last.seconds);
        page.whole(&names::LAST_RETRANSMITS, &[name], last.retransmits);
        page.whole(&names::LAST_MISSING, &[name], last.missing);
    }
    let outstanding = group.pending_push.as_ref().map_or(0, |push| push.outstanding_count);
    page.whole(&names::OUTSTANDING, &[name], outstanding);
    if let Some(kek) = &group.kek {
        self::kek(page, name, kek);
    }
    if let Some(communication) = &group.communication {
        page.whole(&names::KEK_LIFETIME, &[name], communication.lifetime_seconds);
    }
    for tek in &group.teks {
        page.whole(&names::TEK_REMAINING, &[name, &tek.sa, &tek.spi, &tek.state], tek.remaining_seconds);
    }
    for sa in &group.policy {
        page.whole(&names::TEK_LIFETIME, &[name, &sa.sa], sa.lifetime_seconds);
        let numbers = [sa.source_port, sa.destination_port, sa.protocol].map(|number| number.to_string());
        let [from, to, protocol] = numbers.each_ref().map(String::as_str);
        let ends = [name, &sa.sa, &sa.source, &sa.destination, from, to, protocol];
        page.whole(
            &names::SELECTOR,
            &[&ends[..], &[sa.algorithm.as_str(), sa.encapsulation.as_str()]].concat(),
            1,
        );
    }
    page.whole(&names::SID_BITS, &[name], group.sender_id_bits);
    page.whole(&names::SID_REMAINING, &[name], group.sender_ids_left);
    if let Some(depth) = group.lkh_depth {
        page.whole(&names::LKH_DEPTH, &[name], depth);
    }
}

fn kek(page: &mut Page, name: &str, kek: &KekView) {
    let labels = [name, &kek.spi, &kek.algorithm, &kek.signature, &kek.signature_hash, &kek.acknowledgement];
    page.whole(&names::KEK, &labels, 1);
    page.whole(&names::KEK_REMAINING, &[name], kek.remaining_seconds);
    page.whole(&names::PUSH_SEQ, &[name], kek.seq);
}
