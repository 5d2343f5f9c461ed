//! PUSHes by multicast: who gets which copy, who must not hear it, and acknowledgements counted by cause.

use gcks::engine::group::GroupCounters;
use gcks::engine::settings::{Channel, Way};

use super::*;

fn channel(text: &str) -> Channel {
    Channel { group: text.parse().expect("an address"), interface: "eth0".to_owned() }
}

fn bench(way: Way, change: impl FnOnce(&mut Settings)) -> Bench {
    let mut settings = settings();
    settings.groups[0].communication.as_mut().expect("pushes").way = way;
    change(&mut settings);
    let mut bench = Bench::with(settings);
    bench.drain();
    bench
}

fn counters(bench: &Bench) -> GroupCounters {
    bench.server.groups()["g1"].counters.clone()
}

#[test]
fn every_copy_goes_to_the_group_until_all_have_acknowledged() {
    let mut bench = bench(Way::Multicast(channel("239.192.0.1:848")), |_| {});
    let (mut one, mut two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    let destination = &one.kek.destination;
    assert_eq!((destination.data.as_slice(), destination.port), (&[239, 192, 0, 1][..], 848), "in the SAK");
    bench.rekey(true);
    let (octets, group) = bench.multicasts.pop().expect("the first copy");
    assert_eq!((group, bench.multicasts.len()), ("239.192.0.1:848".parse().unwrap(), 0));
    assert!(pushes(&mut bench, one.address).is_empty() && pushes(&mut bench, two.address).is_empty());
    let ack = one.take(&bench, &octets);
    assert_eq!(one.kek.destination.data, [239, 192, 0, 1], "in a pushed SAK too");
    bench.tell(one.address, ack);
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.multicasts, [(octets.clone(), group)], "two was not heard of: the same octets");
    // From the port the PUSH came to, which is not where it registered from.
    bench.server.handle(bench.now, Input::Timeout);
    let ack = two.take(&bench, &octets);
    bench.tell(two.address, ack);
    bench.pass(Duration::from_secs(30));
    assert_eq!((bench.count("rekey_completed"), bench.count("member_expired")), (1, 0));
    let counters = counters(&bench);
    assert_eq!((counters.pushes_sent, counters.pushes_multicast, counters.retransmissions), (2, 2, 1));
}

#[test]
fn with_both_only_the_silent_get_the_other_copies_each_for_itself() {
    let mut bench = bench(Way::Both(channel("239.192.0.1:848")), |_| {});
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    bench.rekey(false);
    let (octets, _) = bench.multicasts.pop().expect("the first copy");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.pass(Duration::from_secs(21));
    assert!(bench.multicasts.is_empty() && pushes(&mut bench, one.address).is_empty());
    assert_eq!(pushes(&mut bench, two.address), [octets.clone(), octets]);
    bench.pass(Duration::from_secs(10));
    assert_eq!((bench.count("member_expired"), bench.members()), (1, 1));
}

#[test]
fn who_cannot_hear_the_group_gets_every_copy_by_unicast() {
    let mut bench = bench(Way::Multicast(channel("[ff08::1]:848")), |_| {});
    let one = joined(&mut bench, 1);
    bench.rekey(true);
    assert_eq!(bench.multicasts.len(), 1);
    assert_eq!(pushes(&mut bench, one.address).len(), 1, "IPv4 hears no IPv6");
}

#[test]
fn new_keys_are_not_told_where_the_expelled_one_listens() {
    let mut bench = bench(Way::Multicast(channel("239.192.0.1:848")), |_| {});
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    let expel = Command::Expel { group: "g1".to_owned(), member: two.address.ip().to_string() };
    bench.command(expel).expect("expelled");
    assert!(bench.multicasts.is_empty(), "it still holds the KEK");
    assert!(pushes(&mut bench, two.address).is_empty());
    // Nor after a restart.
    bench.restart();
    bench.pass(Duration::from_secs(1));
    let octets = pushes(&mut bench, one.address).pop().expect("the push");
    assert!(bench.multicasts.is_empty());
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.rekey(true);
    assert_eq!(bench.multicasts.len(), 1, "under the KEK it does not have");
}

#[test]
fn an_acknowledgement_from_the_port_of_the_group_is_the_members_that_is_alone_at_its_address() {
    let mut bench = bench(Way::Multicast(channel("239.192.0.1:8480")), |_| {});
    let mut one = joined(&mut bench, 1);
    bench.rekey(false);
    let (octets, _) = bench.multicasts.pop().expect("a copy");
    let ack = one.take(&bench, &octets);
    let from = |port| SocketAddr::new(one.address.ip(), port);
    bench.tell(from(850), ack.clone());
    assert_eq!((counters(&bench).acks, counters(&bench).acks_stranger), (0, 1));
    bench.tell(from(8480), ack);
    assert_eq!((counters(&bench).acks, bench.count("rekey_completed")), (1, 1));
}

#[test]
fn acknowledgements_are_counted_by_what_is_wrong_with_them() {
    let mut bench = Bench::new();
    let (mut one, mut two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    bench.rekey(false);
    let octets = pushes(&mut bench, one.address).pop().expect("a push");
    let (good, other) = (one.take(&bench, &octets), two.take(&bench, &octets));
    let mut forged = good.to_vec();
    // The first octet of the HASH.
    forged[28 + 4] ^= 1;
    bench.tell(one.address, forged.into());
    bench.tell(one.address, other.clone());
    assert_eq!(counters(&bench).acks_forged, 2, "a wrong HASH, and another member's");
    bench.tell(address(9), good.clone());
    assert_eq!(counters(&bench).acks_stranger, 1);
    bench.tell(one.address, good.clone());
    bench.tell(one.address, good.clone());
    assert_eq!((counters(&bench).acks, counters(&bench).acks_duplicate), (1, 1), "replayed");
    bench.tell(two.address, other.clone());
    assert_eq!(bench.count("rekey_completed"), 1);
    bench.tell(two.address, other);
    assert_eq!(counters(&bench).acks_late, 1);
    let key = AckKey::derive(two.kek.acknowledgement.expect("asked"), &two.key, two.kek.spi);
    bench.tell(two.address, key.seal(two.kek.spi, SeqNumber(77), two.address.ip()));
    assert_eq!(counters(&bench).acks_unexpected, 1, "never sent");
    let unknown = KekSpi([7; 16]);
    bench.tell(two.address, key.seal(unknown, SeqNumber(1), two.address.ip()));
    assert_eq!(bench.server.peers().counters.acks_unknown, 1);
    assert_eq!(counters(&bench).acks, 2);
}

#[test]
fn acknowledgements_nobody_asked_for_are_unsolicited() {
    let mut bench = bench(Way::Unicast, |settings| {
        let communication = settings.groups[0].communication.as_mut().expect("pushes");
        communication.acknowledgement = Acknowledgement::None;
    });
    let one = joined(&mut bench, 1);
    bench.rekey(false);
    let key = AckKey::derive(gdoi_proto::policy::AckRequest::KekSha256, &one.key, one.kek.spi);
    bench.tell(one.address, key.seal(one.kek.spi, SeqNumber(1), one.address.ip()));
    assert_eq!((counters(&bench).acks_unexpected, counters(&bench).acks), (1, 0));
}

#[test]
fn a_change_of_the_way_is_told_on_the_old_one_with_a_new_kek() {
    let mut bench = bench(Way::Unicast, |_| {});
    let mut one = joined(&mut bench, 1);
    bench.settings.groups[0].communication.as_mut().expect("pushes").way =
        Way::Multicast(channel("239.192.0.1:848"));
    bench.restart();
    bench.pass(Duration::from_secs(1));
    assert!(bench.multicasts.is_empty(), "nobody listens there yet");
    let octets = pushes(&mut bench, one.address).pop().expect("the push");
    let ack = one.take(&bench, &octets);
    assert_eq!(one.kek.destination.data, [239, 192, 0, 1]);
    bench.tell(one.address, ack);
    bench.rekey(false);
    assert_eq!(bench.multicasts.len(), 1);
}
