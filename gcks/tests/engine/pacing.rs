//! Pushes to hundreds of members whose acknowledgements take a while, in virtual time.

use super::*;

/// Octets of receive buffer that 64 acknowledgements find room in.
const SMALL_BUFFER: usize = 64 * 1024;
const MANY: usize = 300;

/// A network with one latency, and what was seen of a rekey.
struct Delivered {
    /// Most acknowledgements on their way at a time.
    most: usize,
    /// From the first to the last first copy.
    took: Duration,
    /// Datagrams to each member.
    copies: BTreeMap<SocketAddr, usize>,
}

fn settings_of(activation: u16) -> Settings {
    let mut settings = settings();
    settings.gateways[0].address = Some((IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)), 16));
    let group = &mut settings.groups[0];
    (group.member_threshold, group.sender_id_bits) = (None, 16);
    let communication = group.communication.as_mut().expect("rekeying");
    communication.activation_delay = activation;
    settings
}

fn crowd(activation: u16) -> (Bench, BTreeMap<SocketAddr, Member>) {
    let mut bench = Bench::with(settings_of(activation));
    bench.server.set_receive_buffer(SMALL_BUFFER);
    bench.drain();
    let members = (0..MANY).map(|number| {
        let [high, low] = u16::try_from(number + 1).expect("few").to_be_bytes();
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, high, low)), 848);
        (address, register(&mut bench, address, GroupId::number(1)).expect("a member"))
    });
    let members = members.collect();
    (bench, members)
}

/// A rekey: every `answering` member acknowledges each copy after `latency`.
fn deliver(
    bench: &mut Bench,
    members: &mut BTreeMap<SocketAddr, Member>,
    latency: Duration,
    answering: impl Fn(SocketAddr) -> bool,
) -> Delivered {
    bench.sent.clear();
    bench.rekey(false);
    let began = bench.now.at;
    let mut on_their_way: VecDeque<(Instant, SocketAddr, Bytes)> = VecDeque::new();
    let mut seen = Delivered { most: 0, took: Duration::ZERO, copies: BTreeMap::new() };
    let mut acks: BTreeMap<SocketAddr, Bytes> = BTreeMap::new();
    let end = began + Duration::from_secs(60);
    loop {
        for datagram in std::mem::take(&mut bench.sent) {
            let to = datagram.peer;
            let copies = seen.copies.entry(to).or_insert(0);
            *copies += 1;
            if *copies == 1 {
                seen.took = bench.now.at.since(began);
            }
            if answering(to) {
                let member = members.get_mut(&to).expect("a member");
                let ack = match acks.get(&to) {
                    Some(ack) => ack.clone(),
                    None => member.take(bench, &datagram.octets),
                };
                acks.insert(to, ack.clone());
                on_their_way.push_back((bench.now.at + latency, to, ack));
            }
        }
        seen.most = seen.most.max(on_their_way.len());
        let server = bench.server.poll_timeout().map(|wakeup| wakeup.at.max(bench.now.at));
        let network = on_their_way.front().map(|(at, _, _)| *at);
        let Some(next) = server.into_iter().chain(network).min().filter(|next| *next < end) else { break };
        bench.set(next);
        if network == Some(next) {
            let (_, from, ack) = on_their_way.pop_front().expect("one");
            bench.tell(from, ack);
        } else {
            bench.server.handle(bench.now, Input::Timeout);
            bench.drain();
        }
        let done = bench.server.groups()["g1"].deliveries().is_empty();
        if done && on_their_way.is_empty() {
            break;
        }
    }
    seen
}

#[test]
fn acknowledgements_fit_the_receive_buffer_and_the_last_member_has_the_key_before_it_is_used() {
    let (mut bench, mut members) = crowd(30);
    for milliseconds in [50, 5, 400, 50] {
        let latency = Duration::from_millis(milliseconds);
        let seen = deliver(&mut bench, &mut members, latency, |_| true);
        // While a longer latency is learnt, some that are on their way still are taken for lost.
        let most = if milliseconds == 400 { 3 * 64 } else { 64 };
        assert!(seen.most <= most, "{} on their way at {milliseconds} ms", seen.most);
        assert_eq!(seen.copies.len(), MANY);
        assert!(seen.copies.values().all(|copies| *copies == 1), "one each: {milliseconds} ms");
        assert!(seen.took < latency * 12, "{:?} at {milliseconds} ms", seen.took);
        let statistics = bench.server.snapshot(bench.now, false).statistics;
        assert_eq!((statistics.push_window, statistics.push_unanswered), (64, 0));
    }
    assert_eq!((bench.members(), bench.count("delivery_late")), (MANY, 0));
    assert_eq!(bench.count("push_sent"), 4, "one round each");
}

#[test]
fn who_is_silent_holds_nobody_up_and_gets_every_copy() {
    let (mut bench, mut members) = crowd(30);
    let silent = |address: SocketAddr| matches!(address.ip(), IpAddr::V4(ip) if ip.octets()[3] % 4 == 0);
    let seen = deliver(&mut bench, &mut members, Duration::from_millis(50), |address| !silent(address));
    assert!(seen.most <= 64 && seen.took < Duration::from_secs(2), "{:?}", seen.took);
    let copies: Vec<(bool, usize)> = seen.copies.iter().map(|(to, copies)| (silent(*to), *copies)).collect();
    assert!(copies.iter().all(|(silent, copies)| *copies == if *silent { 3 } else { 1 }));
    let gone = copies.iter().filter(|(silent, _)| *silent).count();
    assert_eq!((bench.members(), bench.count("member_expired")), (MANY - gone, gone));
}

#[test]
fn a_delivery_that_takes_longer_than_the_activation_delay_is_told_once() {
    let (mut bench, mut members) = crowd(1);
    let seen = deliver(&mut bench, &mut members, Duration::from_millis(150), |_| true);
    assert!(seen.took < Duration::from_secs(1) && bench.count("delivery_late") == 0, "{:?}", seen.took);
    let seen = deliver(&mut bench, &mut members, Duration::from_millis(800), |_| true);
    assert!(seen.took > Duration::from_secs(1), "{:?}", seen.took);
    let late: Vec<&Event> =
        bench.events.iter().filter(|it| matches!(it, Event::DeliveryLate { .. })).collect();
    let [Event::DeliveryLate { left, seconds, activation_seconds, .. }] = &late[..] else {
        panic!("{late:?}")
    };
    assert!(*left > 0 && *seconds > 1.0 && *activation_seconds == 1);
}

#[test]
fn members_that_are_cleared_are_told_at_the_same_pace() {
    let (mut bench, _) = crowd(30);
    bench.sent.clear();
    bench.command(Command::ClearMembers { group: "g1".to_owned() }).expect("cleared");
    let told = |bench: &mut Bench| -> usize {
        let push =
            |octets: &Bytes| Header::decode(octets).expect("a header").exchange == ExchangeType::GroupkeyPush;
        std::mem::take(&mut bench.sent).iter().filter(|datagram| push(&datagram.octets)).count()
    };
    assert_eq!(told(&mut bench), 64);
    bench.pass(Duration::from_secs(5));
    assert_eq!(told(&mut bench), MANY - 64, "nobody answers, and all are told");
}

#[test]
fn a_server_that_stops_sends_the_rest_at_once() {
    let (mut bench, _) = crowd(30);
    bench.sent.clear();
    bench.rekey(false);
    assert_eq!(bench.sent.len(), 64);
    bench.server.handle(bench.now, Input::Stop);
    bench.drain();
    let push =
        |octets: &Bytes| Header::decode(octets).expect("a header").exchange == ExchangeType::GroupkeyPush;
    assert_eq!(bench.sent.iter().filter(|datagram| push(&datagram.octets)).count(), MANY);
}
