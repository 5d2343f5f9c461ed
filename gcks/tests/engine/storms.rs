//! More registrations than the server can take at a time, and lives that keep them apart.

use super::*;
use gcks::engine::admission::{ADMITTED, STORM};

fn many() -> Settings {
    let mut settings = settings();
    (settings.half_open_limit, settings.half_open_limit_per_address) = (4096, 16);
    settings.gateways[0].address = Some((IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), 16));
    let group = &mut settings.groups[0];
    (group.member_threshold, group.sender_id_bits) = (None, 16);
    settings
}

fn newcomer(number: usize) -> SocketAddr {
    let [high, low] = u16::try_from(number + 0x1000).expect("few").to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, high, low)), 848)
}

/// Sends messages 1 and 3 of a phase 1: the server owes a Diffie-Hellman then.
fn half_way(bench: &mut Bench, address: SocketAddr) {
    bench.received(address);
    assert!(phase1(bench, address).is_none(), "it waits");
    assert!(bench.received(address).is_empty());
}

/// One Diffie-Hellman is done; who gets an answer.
fn release(bench: &mut Bench) -> Vec<SocketAddr> {
    let request = bench.held.remove(0);
    let done = run(bench.provider.as_ref(), request.job);
    bench.server.handle(bench.now, Input::Job(JobResult { id: request.id, done }));
    bench.drain();
    let answers = bench.sent.iter().map(|datagram| datagram.peer).collect();
    bench.sent.clear();
    answers
}

#[test]
fn in_a_storm_members_whose_keys_end_soonest_go_first() {
    let mut bench = Bench::with(many());
    bench.drain();
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    // Member two leaves a rekey unanswered: the others change keys without it soon.
    let three = bench.settings.groups[0].communication.as_mut().expect("rekeying");
    three.missed_rekeys = 3;
    let new = bench.settings.clone();
    bench.server.handle(bench.now, Input::Apply(Box::new(new)));
    bench.drain();
    bench.rekey(false);
    let octets = pushes(&mut bench, one.address).remove(0);
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.pass(Duration::from_secs(31));
    bench.sent.clear();
    bench.hold = |job| matches!(job, Job::DhRespond { .. });
    for number in 0..ADMITTED + STORM {
        half_way(&mut bench, newcomer(number));
        let storm = number + 1 == ADMITTED + STORM;
        assert_eq!(bench.server.snapshot(bench.now, false).statistics.registration_storm, storm, "{number}");
    }
    assert_eq!((bench.held.len(), bench.count("registration_storm")), (ADMITTED, 1));
    for address in [one.address, two.address] {
        half_way(&mut bench, address);
    }
    let statistics = bench.server.snapshot(bench.now, false).statistics;
    assert_eq!(statistics.registrations_waiting, STORM as u64 + 2);
    // First those that began before anybody waited, then by the end of their keys, then as they came.
    let order: Vec<SocketAddr> = (0..ADMITTED + STORM + 2).flat_map(|_| release(&mut bench)).collect();
    let newcomers: Vec<SocketAddr> = (0..ADMITTED + STORM).map(newcomer).collect();
    assert_eq!(order[..ADMITTED], newcomers[..ADMITTED]);
    assert_eq!(order[ADMITTED..ADMITTED + 2], [two.address, one.address]);
    assert_eq!(order[ADMITTED + 2..], newcomers[ADMITTED..]);
    bench.pass(Duration::from_secs(6));
    let statistics = bench.server.snapshot(bench.now, false).statistics;
    assert_eq!((statistics.registration_storm, statistics.registration_storms), (false, 1));
    assert_eq!(
        (bench.count("registration_storm_over"), statistics.registrations_delayed),
        (1, STORM as u64 + 2)
    );
}

#[test]
fn who_gave_up_while_it_waited_costs_nothing() {
    let mut bench = Bench::with(many());
    bench.drain();
    bench.hold = |job| matches!(job, Job::DhRespond { .. });
    (0..ADMITTED + 5).for_each(|number| half_way(&mut bench, newcomer(number)));
    bench.pass(Duration::from_secs(31));
    assert_eq!(bench.server.peers().half_open(), 0);
    release(&mut bench);
    assert_eq!(bench.held.len(), ADMITTED - 1, "nothing new");
    assert_eq!(bench.server.snapshot(bench.now, false).statistics.registrations_waiting, 0);
}

#[test]
fn lives_handed_out_differ_a_little_between_members_and_never_for_one() {
    let mut bench = Bench::with(many());
    bench.drain();
    let lives = |bench: &mut Bench, last| {
        let member = joined(bench, last);
        (member.kek.lifetime_seconds, member.tek_lives[0])
    };
    let first: Vec<(u32, u32)> = (1..=20).map(|last| lives(&mut bench, last)).collect();
    let again: Vec<(u32, u32)> = (1..=20).map(|last| lives(&mut bench, last)).collect();
    assert_eq!(first, again);
    assert!(
        first.iter().all(|(kek, tek)| (7128..=7200).contains(kek) && (3564..=3600).contains(tek)),
        "{first:?}"
    );
    let mut teks: Vec<u32> = first.iter().map(|(_, tek)| *tek).collect();
    teks.sort_unstable();
    teks.dedup();
    assert!(teks.len() >= 8, "{teks:?}");
}
