//! A flood of ESP under invented SPIs against a running member: it stays alive and small, asks its key server as slowly as it
//! must, and its traffic goes on. Skipped like `traffic`.

use std::time::Duration;

use ctl::event::Event;
use gdoi_lab::daemon::{Daemon, Mark};
use gdoi_lab::lans::FAR;
use gdoi_lab::site::MemberPlan;
use runtime::clock::Clock;

use crate::support::SOON;
use crate::traffic::{Ground, ground_with, in_namespaces};

/// Packets of the flood; a long run sets it to 1000000.
const PACKETS: &str = "GDOI_SPOOFED_PACKETS";
/// From the trigger to the first probe.
const FIRST_PROBE: Duration = Duration::from_secs(10);
/// From the first trigger to the probes of a row, in seconds.
const ROW: [u64; 6] = [10, 30, 70, 150, 310, 630];
/// What a flood may add to the memory of a member, in octets.
const GROWTH: u64 = 32 << 20;

#[test]
fn spoofed_spis_drive_no_registration_and_stop_no_traffic() {
    in_namespaces("spoofed::flood");
}

/// Resident octets of a daemon.
fn resident(daemon: &Daemon) -> u64 {
    let kibibytes = daemon.status("VmRSS").unwrap();
    kibibytes.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn unknown(member: &Daemon) -> u64 {
    member.vpn().unwrap().traffic.expect("a data plane").inbound.dropped["unknown_spi"]
}

/// Seconds until each probe that was planned since.
fn planned(member: &Daemon, since: Mark) -> Vec<u64> {
    let seconds = |event: &Event| match event {
        Event::ReregistrationScheduled { seconds, .. } => Some(*seconds),
        _ => None,
    };
    member.events(since).iter().filter_map(seconds).collect()
}

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn flood() {
    let rules = "recovery-probe = true\n".to_owned();
    let plan = MemberPlan { traffic: true, rules, ..MemberPlan::default() };
    let Some(ground) = ground_with(&plan).map(Ground::up) else { return };
    let packets = std::env::var(PACKETS).ok().and_then(|text| text.parse().ok()).unwrap_or(50_000u32);
    let (network, member) = (&ground.lab.site.network, &ground.lab.members[0]);
    assert!(network.ping(FAR[0], 3).unwrap().answered > 0);
    let (mark, before, clock) = (member.mark(), resident(member), Clock::start());

    let began = clock.now().at;
    let drops = network.queue_drops().unwrap();
    let sent = u64::from(network.spoof_esp(packets).unwrap());
    assert_eq!(sent, u64::from(packets));
    // All that no queue dropped arrives, is told apart and counted.
    member
        .wait_until(SOON * 4, "all spoofed packets", |member| {
            Ok(unknown(member) + network.queue_drops()? - drops >= sent)
        })
        .unwrap();
    assert!(unknown(member) > 0 && unknown(member) <= sent);
    assert!(network.ping(FAR[0], 3).unwrap().answered > 0, "traffic goes on");

    // One probe is planned, by the first of them, and made no sooner than it must be; it succeeds. A flood that goes on longer
    // plans the next ones, each at its moment in the row.
    let plans = planned(member, mark);
    let flooded = clock.now().at.since(began).as_secs();
    let made = ROW.iter().filter(|at| **at <= flooded).count();
    assert_eq!(plans[0], FIRST_PROBE.as_secs());
    assert!(plans.len() <= made + 1, "{plans:?} in {flooded} s");
    member.wait_named(mark, SOON * 2, "registered").unwrap();
    let took = clock.now().at.since(began);
    assert!(took >= FIRST_PROBE, "{took:?}");
    if plans.len() > 1 {
        println!(
            "{} of {sent} spoofed packets came in {flooded} s, probes planned {plans:?}",
            unknown(member)
        );
        assert!(member.count(mark, "registered") <= ROW.iter().filter(|at| **at <= took.as_secs()).count());
        assert!(resident(member).saturating_sub(before) < GROWTH);
        ground.nothing_in_clear();
        return;
    }
    // More of the same plans another, whose moment in the row is long after.
    network.spoof_esp(packets / 10).unwrap();
    member.wait_until(SOON, "a second probe", |member| Ok(planned(member, mark).len() == 2)).unwrap();
    network.spoof_esp(packets / 10).unwrap();
    let [_, second] = planned(member, mark)[..] else { panic!("{:?}", planned(member, mark)) };
    assert!((FIRST_PROBE.as_secs()..=20).contains(&second), "{second} s: the second interval of the row");
    assert_eq!(member.count(mark, "registered"), 1, "{:#?}", member.tail(20));

    let grown = resident(member).saturating_sub(before);
    println!("{} of {sent} spoofed packets came, memory grew by {} kB", unknown(member), grown / 1024);
    assert!(grown < GROWTH, "{grown} octets more than before");
    assert!(network.ping(FAR[0], 3).unwrap().answered > 0);
    ground.nothing_in_clear();
}
