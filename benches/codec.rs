//! Every message both ways: octets to payloads and back. What is encrypted on the wire is measured in its plaintext;
//! sealing and opening are in the other benches.

mod support;

use divan::{Bencher, black_box};
use gdoi_proto::header::Header;
use gdoi_proto::ids::{GroupId, KekSpi, SeqNumber};
use gdoi_proto::message::{Chain, Message, Rules, encode_chain};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{AckRequest, Carriage, SignatureAlgorithm};
use gdoi_proto::registry::PayloadType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::DhGroup;
use ike::identity::address_identity;
use ike::protect::ack::{Ack, AckKey};

fn main() {
    divan::main();
}

/// Messages 1 to 4 of main mode, in clear.
#[divan::bench(args = [1, 2, 3, 4])]
fn main_mode_decode(bencher: Bencher<'_, '_>, number: usize) {
    let (messages, _, _) = support::MainMode::whole(DhGroup::Curve25519);
    let octets = &messages[number - 1];
    bencher.bench(|| Message::decode(black_box(octets), Rules::PHASE1_CLEAR).expect("our own message"));
}

/// The same, encoded.
#[divan::bench(args = [1, 2, 3, 4])]
fn main_mode_encode(bencher: Bencher<'_, '_>, number: usize) {
    let (messages, _, _) = support::MainMode::whole(DhGroup::Curve25519);
    let message = Message::decode(&messages[number - 1], Rules::PHASE1_CLEAR).expect("our own message");
    bencher.bench(|| black_box(&message).encode());
}

/// The plaintext of every protected message.
#[derive(Debug, Clone, Copy)]
enum Protected {
    /// Main mode 5 and 6: ID, HASH.
    MainMode5And6,
    /// PULL 1: HASH, Ni, ID.
    Pull1,
    /// PULL 2: HASH, Nr, SA.
    Pull2,
    /// PULL 3: HASH.
    Pull3,
    /// PULL 4: HASH, SEQ, KD.
    Pull4,
    /// PUSH: SEQ, SA, KD, SIG.
    Push,
}

const PROTECTED: [Protected; 6] = [
    Protected::MainMode5And6,
    Protected::Pull1,
    Protected::Pull2,
    Protected::Pull3,
    Protected::Pull4,
    Protected::Push,
];

impl Protected {
    fn payloads(self) -> Vec<Payload> {
        let (hash, nonce) = (Payload::Hash(vec![1; 32]), Payload::Nonce(vec![2; 32]));
        let (policy, keys) = support::policy(SignatureAlgorithm::Ecdsa256, 256, vec![8; 91]);
        let sa = |carriage| Payload::GdoiSa(policy.write(carriage));
        let (seq, kd) = (Payload::Seq(SeqNumber(7)), Payload::Kd(keys.write(&policy)));
        match self {
            Protected::MainMode5And6 => {
                vec![Payload::Id(address_identity(support::address(0).ip())), hash]
            }
            Protected::Pull1 => vec![hash, nonce, Payload::Id(Identification::from(&GroupId::number(1)))],
            Protected::Pull2 => vec![hash, nonce, sa(Carriage::Pull)],
            Protected::Pull3 => vec![hash],
            Protected::Pull4 => vec![hash, seq, kd],
            Protected::Push => vec![seq, sa(Carriage::Push), kd, Payload::Sig(vec![9; 64])],
        }
    }

    fn rules(self) -> Rules {
        match self {
            Protected::MainMode5And6 => Rules::PHASE1_OPENED,
            _ => Rules::GROUP_OPENED,
        }
    }
}

#[divan::bench(args = PROTECTED)]
fn protected_decode(bencher: Bencher<'_, '_>, message: Protected) {
    let (first, octets): (PayloadType, Vec<u8>) = encode_chain(&message.payloads());
    bencher.bench(|| Chain::decode(first, black_box(&octets), message.rules()).expect("our own message"));
}

#[divan::bench(args = PROTECTED)]
fn protected_encode(bencher: Bencher<'_, '_>, message: Protected) {
    let payloads = message.payloads();
    bencher.bench(|| encode_chain(black_box(&payloads)));
}

#[divan::bench]
fn header_decode(bencher: Bencher<'_, '_>) {
    let (messages, _, _) = support::MainMode::whole(DhGroup::Curve25519);
    bencher.bench(|| Header::decode(black_box(&messages[0])).expect("our own header"));
}

fn ack_key() -> (AckKey, KekSpi) {
    let spi = KekSpi([7; 16]);
    (AckKey::derive(AckRequest::KekSha256, &SecretBytes::copy(&[6; 32]), spi), spi)
}

/// Decoded and its HASH checked.
#[divan::bench]
fn acknowledgement_open(bencher: Bencher<'_, '_>) {
    let (key, spi) = ack_key();
    let octets = key.seal(spi, SeqNumber(7), support::address(0).ip());
    bencher.bench(|| key.verify(Ack::decode(black_box(&octets)).expect("our own")).expect("our own"));
}

/// With its HASH made.
#[divan::bench]
fn acknowledgement_seal(bencher: Bencher<'_, '_>) {
    let (key, spi) = ack_key();
    bencher.bench(|| key.seal(spi, SeqNumber(7), support::address(0).ip()));
}
