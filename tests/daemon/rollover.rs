//! Keys change under load: a paced TCP stream and a thousand pings a second cross two members while TEK and KEK are replaced
//! again and again. Raw ESP and ESP in UDP. Skipped like `traffic`, and without iperf3.

use std::collections::BTreeMap;
use std::time::Duration;

use ctl::traffic::{DirectionView, TrafficView};
use gdoi_lab::daemon::Daemon;
use gdoi_lab::lans::FAR;
use gdoi_lab::network::MEMBERS;
use gdoi_lab::site::MemberPlan;

use crate::support::SOON;
use crate::traffic::{Ground, ground_with, in_namespaces};

/// How often keys are replaced, for each carrier; a long run sets it to 200.
const ROLLOVERS: &str = "GDOI_ROLLOVERS";
/// What the stream is paced at.
const MEGABITS: u32 = 200;

#[test]
fn rollovers_under_load_lose_nothing_with_raw_esp() {
    in_namespaces("rollover::raw");
}

#[test]
fn rollovers_under_load_lose_nothing_with_esp_in_udp() {
    in_namespaces("rollover::udp");
}

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn raw() {
    rollovers_lose_nothing(false);
}

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn udp() {
    rollovers_lose_nothing(true);
}

fn rollovers_lose_nothing(udp: bool) {
    if !gdoi_lab::lans::has_iperf3() {
        gdoi_lab::skipped("daemon rollover", "iperf3");
        return;
    }
    let plan = MemberPlan { traffic: true, udp, ..MemberPlan::default() };
    let Some(ground) = ground_with(&plan).map(Ground::up) else { return };
    let rollovers = std::env::var(ROLLOVERS).ok().and_then(|text| text.parse().ok()).unwrap_or(5u64);
    let network = &ground.lab.site.network;
    let mut lost = Lost::default();
    for part in 0..rollovers.div_ceil(PART) {
        let before = (traffic(&ground), network.queue_drops().unwrap());
        let stream = network.stream(FAR[0], MEGABITS).unwrap();
        let train = network.train(FAR[0], Duration::from_millis(1)).unwrap();
        for number in part * PART..rollovers.min((part + 1) * PART) {
            std::thread::sleep(Duration::from_millis(50 + number * 137 % 700));
            rollover(&ground);
        }
        // What was sent last has been answered when one more question has been.
        network.ping(FAR[0], 1).unwrap();
        let pings = train.end().unwrap();
        stream.end().unwrap();
        let full = network.queue_drops().unwrap() - before.1;
        let dropped = dropped_since(&before.0, &traffic(&ground));
        println!(
            "rollovers to {}: {pings:?}, {full} dropped by full queues",
            rollovers.min((part + 1) * PART)
        );
        assert_eq!(dropped, BTreeMap::new(), "no packet for any reason of ours");
        assert!(pings.sent > 1000, "{pings:?}");
        lost.pings += pings.sent - pings.answered;
        lost.last += 1;
        lost.full += full;
        ground.nothing_in_clear();
    }
    // The last of each train may be on its way; a full queue of a busy machine drops what it likes.
    assert!(lost.pings <= lost.last + lost.full, "{lost:?}");
    let [first, _] = traffic(&ground);
    // 200 Mbit/s for more than 3 s at each rollover, less what a busy machine did not manage.
    assert!(first.outbound.protected > rollovers * 10_000, "{first:#?}");
    assert_eq!(clear(&first.outbound) + clear(&first.inbound), 0, "{first:#?}");
}

/// Rollovers under one train of pings.
const PART: u64 = 10;

#[derive(Debug, Default)]
struct Lost {
    pings: u64,
    last: u64,
    full: u64,
}

fn traffic(ground: &Ground) -> [TrafficView; 2] {
    ground.lab.members.each_ref().map(|member| member.vpn().unwrap().traffic.expect("a data plane"))
}

fn clear(direction: &DirectionView) -> u64 {
    direction.clear_control + direction.clear_exclude + direction.clear_fail_open
}

/// What members dropped or could not send since `before`, by cause.
fn dropped_since(before: &[TrafficView; 2], now: &[TrafficView; 2]) -> BTreeMap<String, u64> {
    let mut dropped = BTreeMap::new();
    for ((before, now), member) in before.iter().zip(now).zip(MEMBERS) {
        let ways = [("out", &before.outbound, &now.outbound), ("in", &before.inbound, &now.inbound)];
        for (way, before, now) in ways {
            for (cause, count) in &now.dropped {
                let more = count - before.dropped.get(cause).copied().unwrap_or_default();
                dropped.insert(format!("{member} {way} {cause}"), more);
            }
            dropped.insert(format!("{member} {way} not_sent"), now.not_sent - before.not_sent);
        }
    }
    // Too long for the tunnel: so a new stream learns the path MTU.
    dropped.retain(|cause, count| *count > 0 && !cause.ends_with("too_big"));
    dropped
}

/// New TEKs and a new KEK: in use, and the old ones gone.
fn rollover(ground: &Ground) {
    let marks = ground.lab.members.each_ref().map(Daemon::mark);
    let (seq, mark) = ground.lab.rekey();
    assert_eq!(ground.lab.over(seq, mark), (2, vec![]));
    for (member, mark) in ground.lab.members.iter().zip(marks) {
        for what in ["tek_activated", "tek_removed"] {
            member.wait_named(mark, SOON, what).unwrap();
        }
    }
}
