//! First messages forged in numbers no table can hold, in virtual time, while members register.

#[path = "common/bench.rs"]
mod bench;
mod common;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use ike::crypto::provider::{Random, run};
use ike::phase1::{Initiator, PeerPolicy, Step};
use ike::sa::IkeSa;

use bench::{Bench, address, first_message, negotiate, only, registered, settings};
use common::peer_policy;

/// The `number`-th forged source within the configured prefix.
fn forged(number: u16) -> SocketAddr {
    let [high, low] = number.to_be_bytes();
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 77, high, low)), 848)
}

/// A server whose members come from anywhere in 10.0.0.0/8.
fn wide() -> Bench {
    let mut settings = settings();
    settings.gateways[0].address = Some((IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8));
    settings.groups[0].member_threshold = None;
    let mut bench = Bench::with(settings);
    bench.drain();
    bench
}

/// What no member offers.
fn strange() -> PeerPolicy {
    let mut policy = peer_policy();
    policy.offers[0].lifetime = Duration::from_secs(40_000);
    policy
}

/// A flood of `messages`, each from another source; the answers are lost.
fn flood(bench: &mut Bench, messages: u16) {
    let (_, octets) = first_message(bench, forged(0), strange());
    for number in 0..messages {
        let mut forgery = octets.to_vec();
        forgery[..2].copy_from_slice(&number.to_be_bytes());
        bench.tell(forged(number), forgery.into());
        assert!(bench.server.peers().half_open() <= 64);
    }
    bench.sent.clear();
}

/// Forgers that never pause.
struct Forgers {
    octets: Vec<u8>,
    sent: u32,
    seed: u64,
    /// Messages per second. The table has 64 places: 4096 and as many times this are the same to it.
    rate: u32,
}

impl Forgers {
    fn new(bench: &Bench, offer: PeerPolicy, rate: u32) -> Forgers {
        Forgers { octets: first_message(bench, forged(0), offer).1.to_vec(), sent: 0, seed: 7, rate }
    }

    /// A part of the time to the next but one message: nobody sends like clockwork.
    fn pause(&mut self) -> Duration {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Duration::from_secs(2) / self.rate / 1_000 * u32::try_from((self.seed >> 32) % 1_000).expect("less")
    }

    /// They send for so long, each message from another source; the answers are lost.
    fn go_on(&mut self, bench: &mut Bench, time: Duration) {
        let end = bench.now.at + time;
        while bench.now.at < end {
            let pause = self.pause();
            bench.pass(pause);
            self.sent += 1;
            let [_, b, c, d] = self.sent.to_be_bytes();
            self.octets[..4].copy_from_slice(&self.sent.to_be_bytes());
            let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, b | 64, c, d)), 848);
            bench.tell(from, Bytes::copy_from_slice(&self.octets));
            bench.sent.retain(|datagram| datagram.peer != from);
            bench.events.clear();
            assert!(bench.server.peers().half_open() <= 64);
        }
    }
}

/// Phase 1 of a member whose message 3 comes after `between`.
fn phase1_around(bench: &mut Bench, address: SocketAddr, between: impl FnOnce(&mut Bench)) -> Option<IkeSa> {
    negotiate(bench, address, peer_policy(), between)
}

#[test]
fn a_member_comes_back_while_ten_times_the_limit_is_forged_around_each_of_its_messages() {
    let mut bench = wide();
    registered(&mut bench, address(1), peer_policy());
    bench.pass(Duration::from_secs(120));
    assert_eq!(bench.server.peers().established().count(), 0, "known by its address, not by an SA");
    for restarts in 0..2 {
        flood(&mut bench, 640);
        let sa = phase1_around(&mut bench, address(1), |bench| {
            bench.pass(Duration::from_secs(5));
            flood(bench, 640);
        });
        assert!(sa.is_some(), "after {restarts} restarts");
        assert!(bench.count("half_open_limit") > 1000);
        bench.restart();
    }
}

#[test]
fn a_stranger_is_admitted_by_a_retry_within_a_minute_and_then_has_time_for_a_round_trip() {
    let mut bench = wide();
    flood(&mut bench, 640);
    let newcomer = address(9);
    // Nobody who was admitted is thrown out before half a second, not even for this one.
    let (_, first) = first_message(&bench, newcomer, peer_policy());
    bench.tell(newcomer, first);
    assert!(bench.received(newcomer).is_empty());
    // Forgers that go on at 20 times the limit per minute.
    let mut established = None;
    for _ in 0..12 {
        bench.pass(Duration::from_secs(5));
        flood(&mut bench, 16);
        established = phase1_around(&mut bench, newcomer, |bench| {
            bench.pass(Duration::from_millis(200));
            flood(bench, 128);
        });
        if established.is_some() {
            break;
        }
    }
    assert!(established.is_some());
}

#[test]
fn an_address_that_is_forged_does_not_push_out_who_answered_from_it() {
    let mut bench = wide();
    let peer = address(5);
    let sa = phase1_around(&mut bench, peer, |bench| {
        let (_, octets) = first_message(bench, peer, peer_policy());
        for number in 0..40_u16 {
            let mut forgery = octets.to_vec();
            forgery[..2].copy_from_slice(&number.to_be_bytes());
            bench.tell(peer, forgery.into());
        }
        bench.sent.clear();
        assert!(bench.server.peers().half_open() <= 4);
    });
    assert!(sa.is_some());
}

/// A round trip by satellite.
const FAR: Duration = Duration::from_millis(600);

#[test]
fn who_offers_what_a_member_offered_gets_through_at_once_whatever_is_forged_and_however_fast() {
    // As many as 1,280,000 per second against 4096 places.
    for offer in [peer_policy(), strange()] {
        let mut bench = wide();
        assert!(negotiate(&mut bench, address(1), peer_policy(), |_| {}).is_some(), "the offer is known");
        let mut forgers = Forgers::new(&bench, offer, 20_000);
        forgers.go_on(&mut bench, Duration::from_secs(1));
        let jobs = bench.jobs;
        for stranger in 10..15 {
            let sa = phase1_around(&mut bench, address(stranger), |bench| forgers.go_on(bench, FAR));
            assert!(sa.is_some(), "{stranger}");
        }
        assert_eq!(bench.jobs - jobs, 5, "keys are exchanged with those alone");
    }
}

#[test]
fn who_was_admitted_before_a_flood_and_is_pushed_out_comes_back_with_message_3() {
    let mut bench = wide();
    assert!(negotiate(&mut bench, address(1), peer_policy(), |_| {}).is_some(), "the offer is known");
    let mut forgers = Forgers::new(&bench, strange(), 20_000);
    let sa = phase1_around(&mut bench, address(2), |bench| {
        assert_eq!(bench.server.peers().half_open(), 1);
        forgers.go_on(bench, Duration::from_secs(14));
    });
    assert!(sa.is_some());
}

#[test]
fn a_cookie_serves_one_negotiation_for_its_own_address_and_a_replay_costs_nothing() {
    let mut bench = wide();
    assert!(negotiate(&mut bench, address(1), peer_policy(), |_| {}).is_some(), "the offer is known");
    let mut forgers = Forgers::new(&bench, peer_policy(), 1_000);
    forgers.go_on(&mut bench, Duration::from_secs(1));
    let peer = address(2);
    let (mut initiator, first) = first_message(&bench, peer, peer_policy());
    bench.tell(peer, first.clone());
    bench.tell(peer, first.clone());
    let seconds = bench.received(peer);
    assert_eq!(seconds.len(), 2, "not stored, answered again");
    assert_eq!(seconds[0], seconds[1]);
    let third = third(&bench, &mut initiator, &seconds[0]);
    let jobs = bench.jobs;
    bench.tell(address(3), third.clone());
    let mut forged = third.to_vec();
    forged[15] ^= 1;
    bench.tell(peer, forged.into());
    assert_eq!(bench.jobs, jobs);
    bench.tell(peer, third.clone());
    let fourth = bench.received(peer);
    assert_eq!((fourth.len(), bench.jobs), (1, jobs + 1));
    bench.tell(peer, third.clone());
    assert_eq!((bench.received(peer), bench.jobs), (fourth, jobs + 1), "the same answer");
    // Three messages 5 that are none end it.
    for number in 0..3 {
        let mut garbage = third.to_vec();
        (garbage[16], garbage[19]) = (5, 1);
        garbage.truncate(28 + 32);
        garbage[24..28].copy_from_slice(&60_u32.to_be_bytes());
        garbage[30] = number;
        bench.tell(peer, garbage.into());
    }
    bench.tell(peer, third);
    assert_eq!((bench.received(peer).len(), bench.jobs), (0, jobs + 1), "once");
    bench.tell(peer, first);
    let again = only(bench.received(peer)).map(|octets| Header::decode(&octets).expect("a header").cookies);
    let cookies = Header::decode(&seconds[0]).expect("a header").cookies;
    assert!(again.is_none_or(|again| again.responder != cookies.responder), "never given twice");
}

/// Message 3 for message 2.
fn third(bench: &Bench, initiator: &mut Initiator, second: &Bytes) -> Bytes {
    let header = Header::decode(second).expect("a header");
    let mut steps: VecDeque<Step> = initiator
        .on_message(bench.now, &header, second, &mut Random(bench.provider.clone()))
        .expect("message 2")
        .into();
    while let Some(step) = steps.pop_front() {
        match step {
            Step::Send(octets) => return octets,
            Step::Run(job) => {
                let done = run(bench.provider.as_ref(), job);
                let mut random = Random(bench.provider.clone());
                steps.extend(initiator.on_done(bench.now, done, &mut random).expect("our own job"));
            }
            Step::Established(_) => {}
        }
    }
    panic!("no message 3")
}

#[test]
fn a_site_that_was_never_seen_gets_through_a_flood_of_a_hundred_thousand_a_second_within_a_minute() {
    // A member repeats its first message after these times, in milliseconds.
    const REPEATS: [u64; 6] = [0, 2_000, 5_600, 12_080, 23_744, 44_739];
    const MEMBERS: u8 = 30;
    let mut bench = wide();
    // 100,000 per second against 4096 places.
    let mut forgers = Forgers::new(&bench, strange(), 1_562);
    forgers.go_on(&mut bench, Duration::from_secs(1));
    let begin = bench.now.at;
    let (mut waiting, mut schedule) = (Vec::new(), Vec::new());
    for member in 0..MEMBERS {
        waiting.push(Some(first_message(&bench, address(member), peer_policy())));
        // They begin within two seconds.
        let start = u64::from(member) * 1_999 / u64::from(MEMBERS);
        schedule.extend(REPEATS.map(|after| (Duration::from_millis(start + after), member)));
    }
    schedule.sort();
    let mut through = Vec::new();
    for (at, member) in schedule {
        if let Some(left) = at.checked_sub(bench.now.at.since(begin)) {
            forgers.go_on(&mut bench, left);
        }
        let pause = forgers.pause() / 2;
        bench.pass(pause);
        let peer = address(member);
        let Some((_, first)) = &waiting[usize::from(member)] else { continue };
        bench.tell(peer, first.clone());
        let Some(second) = only(bench.received(peer)) else { continue };
        let Some((mut initiator, _)) = waiting[usize::from(member)].take() else { continue };
        let third = third(&bench, &mut initiator, &second);
        bench.pass(Duration::from_millis(50));
        bench.tell(peer, third);
        let mut fourth = only(bench.received(peer));
        while let Some(octets) = fourth.take() {
            let header = Header::decode(&octets).expect("a header");
            let mut random = Random(bench.provider.clone());
            let mut steps: VecDeque<Step> =
                initiator.on_message(bench.now, &header, &octets, &mut random).expect("the server's").into();
            while let Some(step) = steps.pop_front() {
                match step {
                    Step::Send(octets) => bench.tell(peer, octets),
                    Step::Run(job) => {
                        let done = run(bench.provider.as_ref(), job);
                        steps.extend(initiator.on_done(bench.now, done, &mut random).expect("ours"));
                    }
                    Step::Established(_) => through.push(bench.now.at.since(begin)),
                }
            }
            fourth = only(bench.received(peer));
        }
    }
    assert_eq!(through.len(), usize::from(MEMBERS), "{through:?}");
    assert!(through.iter().all(|time| *time < Duration::from_secs(60)), "{through:?}");
}
