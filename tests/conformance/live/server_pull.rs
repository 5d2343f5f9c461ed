//! The key server in GROUPKEY-PULL: what counts, what is silent, and what is in its answers.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::{SenderId, SeqNumber};
use gdoi_proto::message::{Chain, Dialect, Rules};
use gdoi_proto::payload::{Gap, Payload};
use gdoi_proto::policy::{AckRequest, Direction, SignatureAlgorithm, SignatureHash};
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_sim::world::{GROUP, Timing, server_settings};
use ike::crypto::provider::{Verification, default_provider};
use ike::protect::ack::AckKey;
use ike::protect::push::{self, KekCipherKey, PushContent};
use ike::sa::IkeSa;

use super::gcks::{Gcks, settings};
use super::hand::{Asking, Opening, established, registered};
use super::{at, header, only};

const PEER: &str = "10.1.0.1:848";

/// The same octets with one of them changed.
fn changed(octets: &Bytes, index: usize) -> Vec<u8> {
    let mut octets = octets.to_vec();
    octets[index] ^= 1;
    octets
}

#[test]
fn a_pull_in_clear_or_without_phase_1_is_dropped_in_silence() {
    let mut gcks = Gcks::new();
    let (mut sa, hand) = established(&mut gcks, at(PEER), &Opening::of(1));
    let (asking, first) = Asking::begin(&mut sa, 1, 5);
    let mut clear = first.to_vec();
    clear[19] = 0;
    assert!(gcks.tell(at(PEER), &clear).is_empty());
    let plain = ike::phase1::messages::clear(
        ExchangeType::GroupkeyPull,
        hand.cookies,
        vec![Payload::Nonce(asking.ni.clone())],
    );
    let mut plain = plain.to_vec();
    plain[20..24].copy_from_slice(&[1, 2, 3, 4]);
    assert!(gcks.tell(at(PEER), &plain).is_empty());
    // The same message under cookies nobody negotiated, or while phase 1 is under way.
    assert!(gcks.tell(at(PEER), &changed(&first, 0)).is_empty());
    let early = Opening::of(9).keyed(&mut gcks, at("10.1.0.2:848"));
    let (_, under_way) = Asking::begin(&mut early.sa(), 1, 6);
    assert!(gcks.tell(at("10.1.0.2:848"), &under_way).is_empty());
    assert_eq!(gcks.count("notify_sent"), 0);
    assert_eq!(gcks.tell(at(PEER), &first).len(), 1, "the good one is answered");
}

#[test]
fn a_wrong_hash_of_message_1_or_3_is_silent_and_leaves_nothing() {
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let (mut asking, first) = Asking::begin(&mut sa, 1, 5);
    for index in [28, 40, 60, first.len() - 17] {
        assert!(gcks.tell(at(PEER), &changed(&first, index)).is_empty(), "octet {index}");
    }
    let second = only(gcks.tell(at(PEER), &first));
    asking.offered(&sa, &second);
    // HASH(3) over the nonces in another order, and with any octet changed.
    let before = asking.exchange.clone();
    let swapped = before.clone().seal(&sa, &[&asking.nr, &asking.ni], &[]);
    assert!(gcks.tell(at(PEER), &swapped).is_empty());
    let third = asking.receipt(&sa, &[Payload::Gap(Gap::sender_ids(2))]);
    for index in 28..third.len() {
        assert!(gcks.tell(at(PEER), &changed(&third, index)).is_empty(), "octet {index}");
        assert_eq!(gcks.members(), 0);
    }
    let fourth = only(gcks.tell(at(PEER), &third));
    assert_eq!(asking.keys(&sa, &fourth).1.sender_ids.expect("SIDs").values.len(), 2);
}

#[test]
fn until_message_3_there_is_no_member_no_sender_id_and_no_asymmetric_work() {
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    gcks.jobs.clear();
    for seed in 1..=5 {
        let (_, first) = Asking::begin(&mut sa, 1, seed);
        assert_eq!(gcks.tell(at(PEER), &first).len(), 1);
    }
    assert!(gcks.jobs.is_empty() && gcks.members() == 0, "{:?}", gcks.jobs);
    let two = at("10.1.0.2:848");
    let (mut sa, _) = established(&mut gcks, two, &Opening::of(2));
    let (_, _, keys) = registered(&mut gcks, two, &mut sa, &[]);
    assert_eq!(keys.sender_ids.expect("SIDs").values, [SenderId(0)], "none was given before");
}

#[test]
fn sender_ids_rise_from_0_and_every_registration_gets_new_ones() {
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let mut given = Vec::new();
    for count in [1, 3, 2] {
        gcks.pass(Duration::from_secs(1));
        let gap = Payload::Gap(Gap::sender_ids(count));
        let (_, _, keys) = registered(&mut gcks, at(PEER), &mut sa, &[gap]);
        given.extend(keys.sender_ids.expect("SIDs").values);
    }
    assert_eq!(given, [0, 1, 2, 3, 4, 5].map(SenderId));
    assert_eq!(gcks.members(), 1);
}

#[test]
fn counting_sas_have_keys_of_their_own_and_serve_both_directions() {
    let mut settings = settings();
    let mut second = settings.groups[0].sas[0].clone();
    second.name = "SA1/other".to_owned();
    second.source.data[1] = 32;
    settings.groups[0].sas.push(second);
    let mut gcks = Gcks::with(settings);
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let (policy, _, keys) = registered(&mut gcks, at(PEER), &mut sa, &[]);
    assert!(policy.teks.iter().all(|tek| tek.direction == Direction::Symmetric));
    let secrets: BTreeSet<_> = keys.teks.iter().map(|(_, key)| key.encryption.expose()).collect();
    let spis: BTreeSet<_> = keys.teks.iter().map(|(spi, _)| *spi).collect();
    assert_eq!((policy.teks.len(), secrets.len(), spis.len()), (2, 2, 2));
}

#[test]
fn without_a_rekey_sa_message_2_has_no_sak_and_message_4_no_seq() {
    let mut gcks = Gcks::with(server_settings(Timing::USUAL, Dialect::STRICT, false));
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let (policy, seq, keys) = registered(&mut gcks, at(PEER), &mut sa, &[]);
    assert!(policy.kek.is_none() && seq.is_none() && keys.kek.is_none());
    assert_eq!((policy.teks.len(), keys.teks.len()), (1, 1));
}

/// What a registered member needs for PUSHes.
struct Rekeyed {
    cipher: KekCipherKey,
    ack: AckKey,
    public_key: Vec<u8>,
}

fn rekeyed(gcks: &mut Gcks, sa: &mut IkeSa) -> Rekeyed {
    let (policy, _, keys) = registered(gcks, at(PEER), sa, &[]);
    let (kek, key) = (policy.kek.expect("a SAK"), keys.kek.expect("a KEK"));
    let cipher = ike::crypto::Cipher::with_key_len(key.key.len()).expect("AES");
    Rekeyed {
        public_key: key.public_key.expect("the signing key"),
        ack: AckKey::derive(AckRequest::KekSha256, &key.key, kek.spi),
        cipher: KekCipherKey {
            spi: kek.spi,
            iv: key.iv.try_into().expect("16 octets"),
            key: ike::crypto::cipher::CipherKey::new(cipher, key.key).expect("it fits"),
        },
    }
}

impl Rekeyed {
    fn open(&self, octets: &Bytes, last: u32) -> PushContent {
        let last = SeqNumber(last);
        let opened = push::open(&self.cipher, last, &header(octets), octets, Dialect::STRICT);
        opened.expect("a push").verified().into_inner()
    }
}

#[test]
fn an_acknowledgement_counts_once_and_only_where_it_is_asked_for() {
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let member = rekeyed(&mut gcks, &mut sa);
    gcks.rekey(false);
    let push = only(gcks.to(at(PEER)));
    let seq = member.open(&push, 0).seq;
    let ack = member.ack.seal(member.cipher.spi, seq, at(PEER).ip());
    for (octets, name) in [
        (changed(&ack, 40), "ack_refused"),
        (ack[..ack.len() - 1].to_vec(), "message_dropped"),
        (changed(&ack, 19), "message_dropped"),
        (changed(&ack, 23), "message_dropped"),
        (changed(&ack, 15), "message_dropped"),
    ] {
        let before = gcks.count(name);
        assert!(gcks.tell(at(PEER), &octets).is_empty());
        assert_eq!((gcks.count("ack_received"), gcks.count(name)), (0, before + 1));
    }
    gcks.tell(at(PEER), &ack);
    gcks.tell(at(PEER), &ack);
    assert_eq!((gcks.count("ack_received"), gcks.count("rekey_completed")), (1, 1));

    let mut settings = settings();
    let communication = settings.groups[0].communication.as_mut().expect("rekeying");
    communication.acknowledgement = gcks::engine::settings::Acknowledgement::None;
    let mut gcks = Gcks::with(settings);
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let member = rekeyed(&mut gcks, &mut sa);
    gcks.rekey(false);
    let push = only(gcks.to(at(PEER)));
    let seq = member.open(&push, 0).seq;
    gcks.tell(at(PEER), &member.ack.seal(member.cipher.spi, seq, at(PEER).ip()));
    assert_eq!((gcks.count("ack_received"), gcks.count("ack_refused")), (0, 1));
    gcks.pass(Duration::from_secs(60));
    assert_eq!((gcks.members(), gcks.count("member_expired")), (1, 0));
}

#[test]
fn signatures_of_pushes_have_the_length_of_their_curve() {
    for (signature, hash, bits, octets) in [
        (SignatureAlgorithm::Ecdsa256, SignatureHash::Sha256, 256, 64),
        (SignatureAlgorithm::Ecdsa384, SignatureHash::Sha384, 384, 96),
        (SignatureAlgorithm::Ecdsa521, SignatureHash::Sha512, 521, 132),
    ] {
        let mut settings = settings();
        let communication = settings.groups[0].communication.as_mut().expect("rekeying");
        (communication.signature, communication.signature_hash) = (signature, hash);
        communication.signature_key_bits = bits;
        let mut gcks = Gcks::with(settings);
        let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
        let member = rekeyed(&mut gcks, &mut sa);
        gcks.rekey(false);
        let push = only(gcks.to(at(PEER)));
        let opened = push::open(&member.cipher, SeqNumber(0), &header(&push), &push, Dialect::STRICT);
        let opened = opened.expect("a push");
        assert_eq!(opened.signature.len(), octets);
        let check = Verification {
            algorithm: signature,
            hash,
            public_key: member.public_key.into(),
            input: opened.signature_input,
            signature: opened.signature,
            or_input: None,
            bare_digest: false,
        };
        default_provider().verify(&check).expect("it verifies");
    }
}

#[test]
fn a_missing_acknowledgement_is_told_by_name_after_at_least_ten_seconds() {
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    rekeyed(&mut gcks, &mut sa);
    gcks.rekey(false);
    gcks.pass(Duration::from_secs(10));
    assert_eq!((gcks.count("rekey_completed"), gcks.members()), (0, 1));
    gcks.pass(Duration::from_secs(30));
    let told = gcks.events.iter().find(|event| event.name() == "rekey_completed").expect("told");
    assert!(told.to_string().contains("10.1.0.1"), "{told}");
}

#[test]
fn a_clean_slate_deletes_teks_then_the_kek_and_its_acknowledgement_counts() {
    let mut settings = settings();
    settings.groups[0].sender_id_bits = 8;
    let mut gcks = Gcks::with(settings);
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let member = rekeyed(&mut gcks, &mut sa);
    let mut number = 1;
    while gcks.count("sender_ids_exhausted") == 0 {
        number += 1;
        let peer = at(&format!("10.1.0.{number}:848"));
        let (mut sa, _) = established(&mut gcks, peer, &Opening::of(number));
        let (mut asking, first) = Asking::begin(&mut sa, 1, u64::from(number));
        asking.offered(&sa, &only(gcks.tell(peer, &first)));
        let third = asking.receipt(&sa, &[Payload::Gap(Gap::sender_ids(16))]);
        gcks.tell(peer, &third);
        gcks.pass(Duration::from_millis(1));
        assert!(number < 30, "255 Sender-IDs in lots of 16");
    }
    let pushes = gcks.to(at(PEER));
    let push = pushes.into_iter().find(|octets| header(octets).exchange == ExchangeType::GroupkeyPush);
    let content = member.open(&push.expect("a push"), 0);
    let deletes: Vec<_> =
        content.deletes.iter().map(|it| (it.protocol, it.spi_size, it.spis.clone())).collect();
    assert_eq!(deletes, [(1, 4, vec![vec![0; 4]]), (0, 16, vec![vec![0; 16]])]);
    assert!(content.keys.is_none());
    // Copies go on for 20 s, and the KEK that deletes itself is remembered for their answers.
    gcks.pass(Duration::from_secs(25));
    let ack = member.ack.seal(member.cipher.spi, content.seq, at(PEER).ip());
    gcks.tell(at(PEER), &ack);
    assert_eq!(gcks.count("ack_received"), 1);
}

#[test]
fn a_push_with_payloads_in_another_order_is_refused() {
    let mut gcks = Gcks::new();
    let (mut sa, _) = established(&mut gcks, at(PEER), &Opening::of(1));
    let member = rekeyed(&mut gcks, &mut sa);
    gcks.rekey(false);
    let push = only(gcks.to(at(PEER)));
    let plain = member.cipher.key.decrypt(&member.cipher.iv, &push[28..]).expect("whole blocks");
    let chain = Chain::decode(PayloadType::Seq, &plain, Rules::GROUP_OPENED).expect("a chain");
    let payloads: Vec<Payload> = chain.payloads.into_iter().map(|located| located.payload).collect();
    let [seq, sa, kd, sig] = &payloads[..] else { panic!("SEQ, SA, KD, SIG") };
    let delete = Payload::Delete(gdoi_proto::payload::Delete {
        doi: gdoi_proto::registry::Doi::Gdoi,
        protocol: 1,
        spi_size: 4,
        spis: vec![vec![0; 4]],
    });
    let vendor = Payload::VendorId(b"unknown".to_vec());
    let gap = Payload::Gap(Gap::delays(1, 2));
    let open = |order: &[&Payload]| {
        let order: Vec<Payload> = order.iter().map(|payload| (*payload).clone()).collect();
        let (next, plain) = gdoi_proto::message::encode_chain(&order);
        let sealed = member.cipher.key.encrypt(&member.cipher.iv, &plain);
        let length = u32::try_from(28 + sealed.len()).expect("short");
        let head = gdoi_proto::header::Header { next, length, ..header(&push) };
        let octets = [&head.encode()[..], &sealed].concat();
        push::open(&member.cipher, SeqNumber(0), &head, &octets, Dialect::STRICT).is_ok()
    };
    assert!(open(&[seq, sa, kd, sig]) && open(&[seq, &delete, sa, kd, sig]) && open(&[seq, &delete, sig]));
    for order in [
        &[sa, seq, kd, sig][..],
        &[seq, kd, sa, sig],
        &[seq, sa, sig, kd],
        &[sig, seq, sa, kd],
        &[seq, sa, kd, &delete, sig],
        &[seq, sa, &delete, kd, sig],
        &[seq, sa, sig],
        &[seq, kd, sig],
        &[seq, sa, kd],
        &[seq, sa, kd, sig, &vendor],
        &[seq, &vendor, sa, kd, sig],
        &[seq, &gap, sa, kd, sig],
        &[sa, kd, sig],
        &[seq, seq, sa, kd, sig],
    ] {
        let types: Vec<_> = order.iter().map(|payload| payload.payload_type()).collect();
        assert!(!open(order), "{types:?}");
    }
    assert_eq!(gcks.engine.groups()[GROUP].teks().len(), 2);
}
