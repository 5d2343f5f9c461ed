//! The key server in main mode: identities, payloads out of the ordinary, and what phase 1 leaves behind.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use gcks::engine::settings::{GatewaySettings, Settings};
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::{Certificate, CertificateRequest, Identification, Notify, Payload};
use gdoi_proto::registry::{Doi, ExchangeType, IdType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::identity::{IdentityRule, address_identity};
use ike::phase1::messages::{self, Extras};
use ike::phase1::{Credentials, PeerPolicy, VENDOR_DPD};
use ike::protect::notify::{self, Informational};

use super::gcks::{Gcks, settings};
use super::hand::{Opening, established, registered, told};
use super::{at, exchanges, header, only};

const PEER: &str = "10.1.0.1:848";

fn named(name: &str) -> Identification {
    Identification { id_type: IdType::Fqdn, protocol: 0, port: 0, data: name.as_bytes().to_vec() }
}

/// Settings in which every gateway's policy was changed.
fn with_policy(change: impl Fn(&mut PeerPolicy)) -> Settings {
    let mut settings = settings();
    for gateway in &mut settings.gateways {
        change(Arc::make_mut(&mut gateway.policy));
    }
    settings
}

fn any_name(policy: &mut PeerPolicy) {
    policy.remote = vec![IdentityRule::AnyOf { id_type: IdType::Fqdn }];
}

#[test]
fn cookies_keep_their_order_whoever_speaks() {
    let mut gcks = Gcks::new();
    let (mut sa, hand) = established(&mut gcks, at(PEER), &Opening::of(1));
    let initiator = hand.cookies.initiator;
    for octets in &hand.said[1..] {
        assert_eq!(header(octets).cookies, hand.cookies);
    }
    registered(&mut gcks, at(PEER), &mut sa, &[]);
    // The server speaks first now: a Delete when the SA is idle.
    gcks.pass(Duration::from_secs(61));
    let farewell = only(gcks.to(at(PEER)));
    assert_eq!(header(&farewell).cookies, CookiePair { initiator, ..hand.cookies });
    assert_eq!(told(&mut sa, &[farewell]), [Informational::DeleteIsakmp]);
}

#[test]
fn certificates_requests_vendor_ids_and_notifications_may_stand_in_any_message() {
    let certificate = |encoding, data: &[u8]| Payload::Cert(Certificate { encoding, data: data.to_vec() });
    let request = |encoding, authority: &[u8]| {
        Payload::CertRequest(CertificateRequest { encoding, authority: authority.to_vec() })
    };
    let more = vec![
        request(4, b"nobody"),
        certificate(7, b"a list of another kind"),
        certificate(4, b"not a certificate"),
        request(4, b"nobody"),
        certificate(4, b"not a certificate"),
        request(200, b""),
        Payload::VendorId(b"somebody".to_vec()),
    ];
    let mut gcks = Gcks::new();
    let mut hand = Opening { more: more.clone(), ..Opening::of(1) }.keyed(&mut gcks, at(PEER));
    let id = address_identity(at(PEER).ip());
    // HASH first and ID last: the order is free.
    let fifth = hand.seal(&[vec![hand.hash(&id)], more, vec![Payload::Id(id)]].concat());
    let sixth = only(gcks.tell(at(PEER), &fifth));
    assert!(hand.open(&sixth).hash.is_some());
    assert_eq!(gcks.peers(), (0, 1));
}

#[test]
fn a_first_message_has_one_sa_and_it_stands_first() {
    let mut gcks = Gcks::new();
    let first = Opening::of(1).first();
    let message = Message::decode(&first, Rules::PHASE1_CLEAR).expect("our own");
    let [sa, vendor] = &message.payloads[..] else { panic!("{message:?}") };
    for payloads in [vec![vendor.clone(), sa.clone()], vec![sa.clone(), sa.clone()], vec![vendor.clone()]] {
        let odd = Message { payloads, ..message.clone() }.encode();
        assert!(gcks.tell(at(PEER), &odd).is_empty());
    }
    assert_eq!(gcks.peers(), (0, 0));
    assert_eq!(gcks.tell(at(PEER), &first).len(), 1);
}

#[test]
fn a_proof_without_an_identity_leads_nowhere() {
    let mut gcks = Gcks::new();
    let mut hand = Opening::of(1).keyed(&mut gcks, at(PEER));
    let fifth = hand.seal(&[hand.hash(&address_identity(at(PEER).ip()))]);
    assert!(gcks.tell(at(PEER), &fifth).is_empty());
    assert_eq!(gcks.peers(), (1, 0));
}

#[test]
fn protocol_and_port_of_an_identity_are_those_peers_send_and_no_others() {
    let mut number = 0;
    for (protocol, port, good) in [
        (0, 0, true),
        (17, 500, true),
        (17, 0, true),
        (17, 848, true),
        (17, 4500, true),
        (6, 80, false),
        (17, 53, false),
        (0, 500, false),
        (6, 0, false),
    ] {
        number += 1;
        let mut gcks = Gcks::new();
        let mut hand = Opening::of(number).keyed(&mut gcks, at(PEER));
        let id = Identification { protocol, port, ..address_identity(at(PEER).ip()) };
        let fifth = hand.prove(&id);
        let answer = only(gcks.tell(at(PEER), &fifth));
        assert_eq!(gcks.peers(), (0, usize::from(good)), "{protocol}/{port}");
        if good {
            let ours = hand.open(&answer).id.expect("the server's identity");
            assert_eq!((ours.protocol, ours.port), (0, 0));
        } else {
            let said = told(&mut hand.sa(), &[answer]);
            assert_eq!(said, [Informational::Notified(NotifyType::InvalidIdInformation)]);
        }
    }
}

#[test]
fn the_right_pre_shared_key_does_not_open_another_identity() {
    let mut gcks = Gcks::new();
    let mut hand = Opening::of(1).keyed(&mut gcks, at(PEER));
    let fifth = hand.prove(&address_identity(at("10.1.0.2:848").ip()));
    let answer = gcks.tell(at(PEER), &fifth);
    assert_eq!(told(&mut hand.sa(), &answer), [Informational::Notified(NotifyType::InvalidIdInformation)]);
    assert_eq!((gcks.peers(), gcks.count("phase1_established")), ((0, 0), 0));
}

#[test]
fn main_mode_chooses_the_pre_shared_key_by_the_address() {
    let mut settings = settings();
    let other = SecretBytes::copy(b"the key of one address only");
    let gateway = &settings.gateways[0];
    let mut policy = gateway.policy.as_ref().clone();
    policy.credentials = Credentials::pre_shared(other.clone());
    let address: IpAddr = at("10.1.7.7:848").ip();
    let one = GatewaySettings {
        name: "one".to_owned(),
        address: Some((address, 32)),
        policy: Arc::new(policy),
        ..gateway.clone()
    };
    settings.gateways.push(one);
    let mut gcks = Gcks::with(settings);
    let usual = Opening::of(1);
    let own = Opening { key: other, ..Opening::of(2) };
    for (opening, peer, fits) in [
        (&usual, "10.1.0.1:848", true),
        (&own, "10.1.7.7:848", true),
        (&own, "10.1.0.2:848", false),
        (&usual, "10.1.7.7:848", false),
    ] {
        let mut hand = opening.keyed(&mut gcks, at(peer));
        let fifth = hand.prove(&address_identity(at(peer).ip()));
        assert_eq!(gcks.tell(at(peer), &fifth).len(), usize::from(fits), "{peer}");
    }
    assert_eq!(gcks.peers().1, 2);
}

/// INITIAL-CONTACT as a member adds it to message 5.
fn with_initial_contact(gcks: &mut Gcks, peer: &str, opening: &Opening, id: &Identification) -> bool {
    with_contact_about(gcks, peer, opening, id, |cookies| cookies)
}

/// The same about the SA of other cookies.
fn with_contact_about(
    gcks: &mut Gcks,
    peer: &str,
    opening: &Opening,
    id: &Identification,
    about: impl Fn(CookiePair) -> CookiePair,
) -> bool {
    let mut hand = opening.keyed(gcks, at(peer));
    let hash = hand.hash(id);
    let contact = notify::initial_contact(about(hand.cookies));
    let fifth = hand.seal(&[Payload::Id(id.clone()), hash, contact]);
    gcks.tell(at(peer), &fifth);
    gcks.engine.peers().established().any(|(sa, ..)| sa.cookies == hand.cookies)
}

#[test]
fn initial_contact_ends_the_other_sas_of_that_identity_and_no_others() {
    let mut gcks = Gcks::with(with_policy(any_name));
    let first = |gcks: &mut Gcks, number, peer: &str, name: &str| {
        let mut hand = Opening::of(number).keyed(gcks, at(peer));
        let fifth = hand.prove(&named(name));
        assert_eq!(gcks.tell(at(peer), &fifth).len(), 1);
        hand.cookies
    };
    // Two members behind one address, and one of them at another address as well.
    let one = first(&mut gcks, 1, "10.1.0.1:848", "one.example");
    let two = first(&mut gcks, 2, "10.1.0.1:5000", "two.example");
    let elsewhere = first(&mut gcks, 3, "10.1.0.9:848", "one.example");
    let known =
        |gcks: &Gcks, cookies| gcks.engine.peers().established().any(|(sa, ..)| sa.cookies == cookies);

    // Whoever cannot prove the identity ends nothing.
    let wrong = Opening { key: SecretBytes::copy(b"another pre-shared key"), ..Opening::of(4) };
    assert!(!with_initial_contact(&mut gcks, "10.1.0.1:6000", &wrong, &named("one.example")));
    assert!(known(&gcks, one) && known(&gcks, two) && known(&gcks, elsewhere));

    // Said of other cookies it ends nothing either.
    let stale = |cookies| CookiePair { responder: Cookie([9; 8]), ..cookies };
    let third = Opening::of(6);
    assert!(with_contact_about(&mut gcks, "10.1.0.1:8000", &third, &named("one.example"), stale));
    assert!(known(&gcks, one) && known(&gcks, two) && known(&gcks, elsewhere));

    assert!(with_initial_contact(&mut gcks, "10.1.0.1:7000", &Opening::of(5), &named("one.example")));
    assert!(!known(&gcks, one) && !known(&gcks, elsewhere), "both SAs of the identity");
    assert!(known(&gcks, two), "the same address, another identity");
}

#[test]
fn a_lost_message_6_comes_again_for_the_same_message_5_and_for_no_other() {
    let mut gcks = Gcks::new();
    let (mut sa, hand) = established(&mut gcks, at(PEER), &Opening::of(1));
    let [.., third, _, fifth, sixth] = &hand.said[..] else { panic!("six messages") };
    assert_eq!(only(gcks.tell(at(PEER), fifth)), *sixth);
    assert!(gcks.tell(at(PEER), third).is_empty(), "an earlier message");
    assert!(gcks.tell(at("10.1.0.1:849"), fifth).is_empty(), "another port");
    let mut changed = fifth.to_vec();
    changed[40] ^= 1;
    assert!(gcks.tell(at(PEER), &changed).is_empty());
    registered(&mut gcks, at(PEER), &mut sa, &[]);
    let answers: usize = (0..20).map(|_| gcks.tell(at(PEER), fifth).len()).sum();
    assert_eq!(answers, 9, "ten in all");
}

#[test]
fn a_bad_key_exchange_is_silent_and_keeps_the_negotiation() {
    let mut gcks = Gcks::new();
    let opening = Opening::of(1);
    let second = only(gcks.tell(at(PEER), &opening.first()));
    let cookies = header(&second).cookies;
    for (ke, nonce) in [(vec![1; 63], 32), (vec![0; 64], 32), (vec![1; 64], 7)] {
        let payloads = messages::key_exchange(&ke, &vec![9; nonce], &[], &Extras::default());
        let third = messages::clear(ExchangeType::MainMode, cookies, payloads);
        assert!(gcks.tell(at(PEER), &third).is_empty());
        assert_eq!(gcks.peers(), (1, 0));
    }
}

#[test]
fn dead_peer_detection_needs_the_vendor_id_of_both() {
    for announced in [true, false] {
        let mut settings = settings();
        let asks = ike::dpd::Settings { interval: Duration::from_secs(10), threshold: 3 };
        settings.gateways[0].dead_peer_detection = Some(asks);
        let mut gcks = Gcks::with(settings);
        let vendors = if announced { vec![VENDOR_DPD.to_vec()] } else { vec![b"another".to_vec()] };
        let opening = Opening { extras: Extras { vendors, ..Extras::default() }, ..Opening::of(1) };
        let (mut sa, hand) = established(&mut gcks, at(PEER), &opening);
        let second = Message::decode(&hand.said[1], Rules::PHASE1_CLEAR).expect("message 2");
        let echoed = second.payloads.contains(&Payload::VendorId(VENDOR_DPD.to_vec()));
        assert_eq!(echoed, announced);

        let question = notify::dpd(sa.cookies, NotifyType::RUThere, 77);
        let octets = notify::seal(&mut sa, &[question], &mut gcks.entropy());
        let answers = gcks.tell(at(PEER), &octets);
        let expected = [Informational::RUThereAck(77)];
        assert_eq!(told(&mut sa, &answers), expected[..usize::from(announced)]);

        // The server asks only a member that owes it message 3.
        let (_, first) = super::hand::Asking::begin(&mut sa, 1, 5);
        assert_eq!(gcks.tell(at(PEER), &first).len(), 1);
        gcks.pass(Duration::from_secs(25));
        let asked = gcks.to(at(PEER));
        let asked = told(&mut sa, &asked);
        assert_eq!(asked.len(), if announced { 2 } else { 0 }, "{asked:?}");
        assert!(asked.iter().all(|said| matches!(said, Informational::RUThere(_))));
    }
}

#[test]
fn every_informational_exchange_has_a_message_id_of_its_own() {
    /// Says everything twice, zero included.
    struct Stutter(u32);
    impl ike::io::Entropy for Stutter {
        fn fill(&mut self, out: &mut [u8]) {
            let value = (self.0 / 2).to_be_bytes();
            self.0 += 1;
            out.iter_mut().zip(value.iter().cycle()).for_each(|(octet, value)| *octet = *value);
        }
    }
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let (asking, _) = super::hand::Asking::begin(&mut sa, 1, 5);
    let mut stutter = Stutter(0);
    let mut seen = vec![0, asking.exchange.message_id().0];
    let delete = notify::delete_isakmp(sa.cookies);
    for _ in 0..20 {
        let octets = notify::seal(&mut sa, std::slice::from_ref(&delete), &mut stutter);
        let id = header(&octets).message_id.0;
        assert!(!seen.contains(&id));
        seen.push(id);
    }
}

#[test]
fn the_delete_of_the_isakmp_sa_is_under_doi_0_and_names_both_cookies() {
    let mut gcks = Gcks::new();
    let (sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    gcks.pass(Duration::from_secs(61));
    let farewell = only(gcks.to(at(PEER)));
    let header = header(&farewell);
    let mut exchange = ike::protect::phase2::Exchange::new(&sa, header.exchange, header.message_id);
    let opened = exchange.open(&sa, &header, &farewell, &[]).expect("protected").into_inner();
    let [Payload::Delete(delete)] = &opened[..] else { panic!("{opened:?}") };
    assert_eq!((delete.doi, delete.protocol, delete.spi_size), (Doi::Isakmp, 1, 16));
    assert_eq!(delete.spis, [sa.cookies.octets().to_vec()]);
}

#[test]
fn error_notifications_are_never_answered() {
    let mut gcks = Gcks::new();
    let (mut sa, hand) = established(&mut gcks, at(PEER), &Opening::of(1));
    for kind in [1, 4, 14, 16, 24, 36136, 16384] {
        let notification = Payload::Notify(Notify {
            doi: Doi::Isakmp,
            protocol: 1,
            spi: hand.cookies.octets().to_vec(),
            kind,
            data: Vec::new(),
        });
        let clear = messages::clear(ExchangeType::Informational, hand.cookies, vec![notification.clone()]);
        assert!(gcks.tell(at(PEER), &clear).is_empty());
        let sealed = notify::seal(&mut sa, &[notification], &mut gcks.entropy());
        assert!(gcks.tell(at(PEER), &sealed).is_empty(), "{kind}");
        gcks.pass(Duration::from_millis(1));
    }
    assert_eq!(gcks.peers(), (0, 1), "and change nothing");
}

#[test]
fn an_informational_message_counts_only_encrypted_with_hash_first_and_once() {
    let mut gcks = Gcks::new();
    let (mut sa, hand) = established(&mut gcks, at(PEER), &Opening::of(1));
    let delete = notify::delete_isakmp(hand.cookies);
    let question = notify::dpd(hand.cookies, NotifyType::RUThere, 1);
    for payload in [delete.clone(), question.clone(), notify::dpd(hand.cookies, NotifyType::RUThereAck, 1)] {
        let clear = messages::clear(ExchangeType::Informational, hand.cookies, vec![payload.clone()]);
        assert!(gcks.tell(at(PEER), &clear).is_empty());
        // Encrypted, but a HASH is missing or wrong.
        let (bare, _) = hand.proof.seal(&hand.iv, std::slice::from_ref(&payload));
        let (wrong, _) = hand.proof.seal(&hand.iv, &[Payload::Hash(vec![7; 32]), payload]);
        for octets in [bare, wrong] {
            let mut octets = octets.to_vec();
            // Informational, message ID 0x01020304.
            octets[18] = 5;
            octets[20..24].copy_from_slice(&[1, 2, 3, 4]);
            assert!(gcks.tell(at(PEER), &octets).is_empty());
        }
        assert_eq!(gcks.peers(), (0, 1));
    }
    let good = notify::seal(&mut sa, &[question], &mut gcks.entropy());
    assert_eq!(exchanges(&gcks.tell(at(PEER), &good)), [ExchangeType::Informational]);
    assert!(gcks.tell(at(PEER), &good).is_empty(), "a replay");
    gcks.pass(Duration::from_secs(1));
    let octets = notify::seal(&mut sa, &[delete], &mut gcks.entropy());
    assert!(gcks.tell(at(PEER), &octets).is_empty());
    assert_eq!((gcks.peers(), gcks.count("phase1_deleted")), ((0, 0), 1));
}

#[test]
fn a_body_that_is_not_whole_blocks_is_dropped_before_it_is_decrypted() {
    let mut gcks = Gcks::new();
    let mut hand = Opening::of(1).keyed(&mut gcks, at(PEER));
    let fifth = hand.prove(&address_identity(at(PEER).ip()));
    let cut = |octets: &[u8], by: usize| {
        let mut octets = octets[..octets.len() - by].to_vec();
        let length = u32::try_from(octets.len()).expect("short");
        octets[24..28].copy_from_slice(&length.to_be_bytes());
        octets
    };
    for by in [1, 8] {
        assert!(gcks.tell(at(PEER), &cut(&fifth, by)).is_empty());
        let dropped = gcks.events.pop().map(|event| event.to_string()).unwrap_or_default();
        assert!(dropped.contains("not whole cipher blocks"), "{dropped}");
    }
    let sixth = only(gcks.tell(at(PEER), &fifth));
    hand.open(&sixth);
    let mut sa = hand.sa();
    let (_, first) = super::hand::Asking::begin(&mut sa, 1, 5);
    let informational = notify::seal(&mut sa, &[notify::delete_isakmp(hand.cookies)], &mut gcks.entropy());
    for octets in [cut(&first, 5), cut(&informational, 5)] {
        assert!(gcks.tell(at(PEER), &octets).is_empty());
        let dropped = gcks.events.pop().map(|event| event.to_string()).unwrap_or_default();
        assert!(dropped.contains("not whole blocks"), "{dropped}");
    }
    assert_eq!(only(gcks.tell(at(PEER), &first)).len() % 16, 28 % 16, "and the length counts the padding");
}

#[test]
fn messages_with_unknown_cookies_get_no_answer() {
    let mut gcks = Gcks::new();
    let (mut sa, hand) = established(&mut gcks, at(PEER), &Opening::of(1));
    let (_, first) = super::hand::Asking::begin(&mut sa, 1, 5);
    let informational = notify::seal(&mut sa, &[notify::delete_isakmp(hand.cookies)], &mut gcks.entropy());
    for octets in hand.said[2..].iter().chain([&first, &informational]) {
        for at_octet in [0, 15] {
            let mut octets = octets.to_vec();
            octets[at_octet] ^= 0x80;
            assert!(gcks.tell(at("10.1.0.2:848"), &octets).is_empty());
            assert!(gcks.tell(at(PEER), &octets).is_empty());
        }
    }
    assert_eq!(gcks.peers(), (0, 1));
}

#[test]
fn every_negotiation_has_key_pairs_of_its_own() {
    let mut gcks = Gcks::new();
    let mut seen = Vec::new();
    for number in 1..=4 {
        let (_, hand) = established(&mut gcks, at(PEER), &Opening::of(number));
        seen.push(super::hand::key_exchange(&hand.said[3]).0);
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4);
    assert_eq!(gcks.jobs.iter().filter(|job| *job == "DhRespond").count(), 4);
}
