//! First messages at the key server: cookies, limits, cached answers, refusals in clear.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::{Doi, ExchangeType, NotifyType};
use gdoi_sim::provider::SeededEntropy;
use ike::io::Instant;
use ike::phase1::messages::{self, Extras};

use super::gcks::{Gcks, settings};
use super::hand::Opening;
use super::{at, exchanges, header, only};

const PEER: &str = "10.1.0.1:848";

#[test]
fn no_key_is_computed_before_a_message_3_with_our_cookie() {
    let mut gcks = Gcks::new();
    gcks.jobs.clear();
    let second = only(gcks.tell(at(PEER), &Opening::of(1).first()));
    let cookies = header(&second).cookies;
    let payloads = messages::key_exchange(&[4; 64], &[5; 32], &[], &Extras::default());
    let mut wrong = cookies;
    wrong.responder.0[7] ^= 1;
    assert!(
        gcks.tell(at(PEER), &messages::clear(ExchangeType::MainMode, wrong, payloads.clone())).is_empty()
    );
    let right = messages::clear(ExchangeType::MainMode, cookies, payloads);
    assert!(gcks.tell(at("10.1.0.2:848"), &right).is_empty(), "from another address");
    assert!(gcks.jobs.is_empty(), "{:?}", gcks.jobs);
    gcks.tell(at(PEER), &right);
    assert_eq!(gcks.jobs, ["DhRespond"]);
}

/// Says the same for ever.
struct Constant;
impl ike::io::Entropy for Constant {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(7);
    }
}

#[test]
fn a_cookie_follows_from_secret_address_and_time_and_is_never_given_twice() {
    // Without randomness only what goes into the cookie can tell two of them apart.
    let cookie = |peer: &str, seconds: u64, number: u8| {
        let mut gcks = Gcks::random(settings(), Box::new(Constant));
        gcks.set(Instant(seconds * 1_000_000));
        header(&only(gcks.tell(at(peer), &Opening::of(number).first()))).cookies.responder
    };
    let one = cookie(PEER, 10, 1);
    assert_eq!(one, cookie(PEER, 10, 1));
    assert_ne!(one, cookie("10.1.0.2:848", 10, 1), "the address");
    assert_ne!(one, cookie("10.1.0.1:849", 10, 1), "the port");
    assert_ne!(one, cookie(PEER, 11, 1), "the time");
    let mut other = Gcks::random(settings(), Box::new(SeededEntropy::new(2)));
    other.set(Instant(10_000_000));
    assert_ne!(one, header(&only(other.tell(at(PEER), &Opening::of(1).first()))).cookies.responder);

    let mut gcks = Gcks::random(settings(), Box::new(Constant));
    let given: BTreeSet<_> = (1..=10)
        .map(|number| header(&only(gcks.tell(at(PEER), &Opening::of(number).first()))).cookies.responder)
        .collect();
    assert_eq!(given.len(), 10, "one address, one second, no randomness");
}

#[test]
fn negotiations_are_limited_in_all_and_per_address_and_end_after_thirty_seconds() {
    let mut settings = settings();
    (settings.half_open_limit, settings.half_open_limit_per_address) = (40, 5);
    let mut gcks = Gcks::with(settings);
    for number in 0..=255 {
        gcks.tell(at("10.1.0.1:848"), &Opening::of(number).first());
    }
    assert!((1..=5).contains(&gcks.peers().0));
    for last in 1..=200 {
        gcks.tell(at(&format!("10.1.1.{last}:848")), &Opening::of(last).first());
        assert!(gcks.peers().0 <= 40);
    }
    gcks.pass(Duration::from_secs(30));
    assert_eq!(gcks.peers(), (0, 0));
}

#[test]
fn a_repeated_first_message_gets_the_same_answer_ten_times_and_nothing_is_sent_unasked() {
    let mut gcks = Gcks::new();
    let first = Opening::of(1).first();
    let second = only(gcks.tell(at(PEER), &first));
    gcks.pass(Duration::from_secs(29));
    assert!(gcks.to(at(PEER)).is_empty(), "no timer of ours repeats it");
    let answers: Vec<Bytes> = (0..20).flat_map(|_| gcks.tell(at(PEER), &first)).collect();
    assert_eq!(answers, vec![second; 10]);
    assert_eq!(gcks.peers(), (1, 0), "one negotiation");
}

#[test]
fn answers_go_to_the_port_a_message_came_from_and_leave_where_it_came_to() {
    let mut gcks = Gcks::new();
    for peer in ["10.1.0.1:1", "10.1.0.1:848", "10.1.0.1:65535"] {
        let octets = Opening::of(1).first();
        let datagram = ike::io::Datagram { local: at("10.0.0.9:4848"), peer: at(peer), octets };
        let now = gcks.now;
        ike::io::Machine::handle(&mut gcks.engine, now, gcks::engine::io::Input::Datagram(datagram));
        gcks.pass(Duration::ZERO);
        let sent = ike::io::Machine::poll(&mut gcks.engine);
        let Some(gcks::engine::io::Output::Transmit(sent)) = sent else { panic!("{sent:?}") };
        assert_eq!((sent.local, sent.peer), (at("10.0.0.9:4848"), at(peer)));
    }
}

/// A first message whose only transform nobody accepts.
fn unacceptable(number: u8) -> Bytes {
    let first = Opening::of(number).first();
    let mut message = Message::decode(&first, Rules::PHASE1_CLEAR).expect("our own");
    let Some(Payload::Sa(sa)) = message.payloads.first_mut() else { panic!("no SA") };
    // The group.
    sa.proposals[0].transforms[0].attributes[3] = gdoi_proto::attribute::Attribute::basic(4, 2);
    message.encode().into()
}

#[test]
fn a_refusal_in_clear_is_small_rare_and_creates_nothing() {
    let mut gcks = Gcks::new();
    let mut answered = 0;
    for last in 1..=60 {
        let peer = at(&format!("10.1.0.{last}:848"));
        for number in 1..=3 {
            let question = unacceptable(number);
            for answer in gcks.tell(peer, &question) {
                answered += 1;
                assert!(answer.len() <= question.len());
                assert_eq!(exchanges(std::slice::from_ref(&answer)), [ExchangeType::Informational]);
                let said = Message::decode(&answer, Rules::PHASE1_CLEAR).expect("clear");
                let [Payload::Notify(said)] = &said.payloads[..] else { panic!("{said:?}") };
                assert_eq!((said.doi, said.kind), (Doi::Isakmp, NotifyType::NoProposalChosen.number()));
            }
        }
    }
    assert_eq!(answered, 10, "ten per second");
    gcks.pass(Duration::from_secs(1));
    let peer = at("10.1.0.1:848");
    let again: usize = (1..=9).map(|number| gcks.tell(peer, &unacceptable(number)).len()).sum();
    assert_eq!((again, gcks.peers()), (1, (0, 0)), "one per second to one address");
}
