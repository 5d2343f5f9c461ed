//! Phase 1 and PULL played by hand: every message is made by the test, right or wrong.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::{Cookie, CookiePair, MessageId, SeqNumber};
use gdoi_proto::message::{Dialect, Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::{ExchangeType, IdType, PayloadType};
use gdoi_proto::secret::SecretBytes;
use gdoi_sim::provider::SeededEntropy;
use gdoi_sim::world::peer_policy;
use ike::crypto::Suite;
use ike::crypto::provider::default_provider;
use ike::identity::address_identity;
use ike::io::{Entropy, Instant};
use ike::phase1::auth::{Basis, Facts, Proof};
use ike::phase1::messages::{self, Extras, Heard};
use ike::phase1::{VENDOR_DPD, proposal};
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::sa::{IkeSa, Role, SaKeys};

use super::gcks::Gcks;
use super::{header, only};

/// What both sides negotiate.
pub fn suite() -> Suite {
    peer_policy(Dialect::STRICT).offers[0].suite
}

/// The pre-shared key of both sides.
pub fn key() -> SecretBytes {
    peer_policy(Dialect::STRICT).credentials.pre_shared_key.expect("a pre-shared key")
}

/// SA body of a first message as it was sent.
pub fn sa_body(first: &[u8]) -> &[u8] {
    let length = usize::from(u16::from_be_bytes([first[30], first[31]]));
    &first[32..28 + length]
}

/// A phase 1 in which both sides hold the keys and nobody has proved anything.
pub struct Hand {
    pub side: Role,
    pub cookies: CookiePair,
    pub proof: Proof,
    /// IV of the next message.
    pub iv: [u8; 16],
    /// Everything said so far, both sides.
    pub said: Vec<Bytes>,
}

/// How the hand begins.
#[derive(Clone)]
pub struct Opening {
    pub cookie: [u8; 8],
    pub key: SecretBytes,
    pub extras: Extras,
    /// Payloads added at the end of messages 1 and 3.
    pub more: Vec<Payload>,
}

impl Opening {
    pub fn of(number: u8) -> Opening {
        let extras = Extras { vendors: vec![VENDOR_DPD.to_vec()], ..Extras::default() };
        Opening { cookie: [number; 8], key: key(), extras, more: Vec::new() }
    }

    /// Message 1 of main mode.
    pub fn first(&self) -> Bytes {
        let offer = proposal::offer(&peer_policy(Dialect::STRICT));
        let mut payloads = messages::offer(offer, &self.extras);
        payloads.extend(self.more.clone());
        let cookies = CookiePair { initiator: Cookie(self.cookie), responder: Cookie::ZERO };
        messages::clear(ExchangeType::MainMode, cookies, payloads)
    }

    /// Messages 1 to 4 with a key server.
    pub fn keyed(&self, gcks: &mut Gcks, peer: SocketAddr) -> Hand {
        let first = self.first();
        let second = only(gcks.tell(peer, &first));
        let cookies = header(&second).cookies;
        let own = default_provider().dh_generate(suite().group).expect("a key");
        let g_xi = own.public().to_vec();
        let ni: [u8; 32] = SeededEntropy::new(u64::from(self.cookie[0])).array();
        let mut payloads = messages::key_exchange(&g_xi, &ni, &[], &Extras::default());
        payloads.extend(self.more.clone());
        let third = messages::clear(ExchangeType::MainMode, cookies, payloads);
        let fourth = only(gcks.tell(peer, &third));
        let (g_xr, nr) = key_exchange(&fourth);
        let shared = own.agree(&g_xr).expect("the server's public value");
        let proof = Proof::new(&Facts {
            exchange: ExchangeType::MainMode,
            suite: suite(),
            cookies,
            basis: Basis::PreSharedKey(&self.key),
            ni: &ni,
            nr: &nr,
            g_xi: &g_xi,
            g_xr: &g_xr,
            shared: &shared,
            sai_b: sa_body(&first),
            double_hash: false,
        });
        let iv = proof.first_iv;
        Hand { side: Role::Initiator, cookies, proof, iv, said: vec![first, second, third, fourth] }
    }
}

/// KE and nonce of a message 3 or 4.
pub fn key_exchange(octets: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let message = Message::decode(octets, Rules::PHASE1_CLEAR).expect("a message");
    let expected = [PayloadType::Ke, PayloadType::Nonce, PayloadType::NatD];
    let heard = Heard::from_payloads(message.payloads, &expected).expect("KE and nonce");
    (heard.ke.expect("KE"), heard.nonce.expect("a nonce"))
}

impl Hand {
    /// HASH_I or HASH_R over an identity.
    pub fn hash(&self, id: &Identification) -> Payload {
        Payload::Hash(self.proof.hash(self.side, id).expose().to_vec())
    }

    /// Message 5 or 6 with these payloads.
    pub fn seal(&mut self, payloads: &[Payload]) -> Bytes {
        let (octets, iv) = self.proof.seal(&self.iv, payloads);
        self.iv = iv;
        self.said.push(octets.clone());
        octets
    }

    /// Message 5 or 6 as it should be.
    pub fn prove(&mut self, id: &Identification) -> Bytes {
        let hash = self.hash(id);
        self.seal(&[Payload::Id(id.clone()), hash])
    }

    /// Takes message 5 or 6 of the other side.
    pub fn open(&mut self, octets: &Bytes) -> Heard {
        let (heard, iv) = self.proof.open(&self.iv, &header(octets), octets).expect("a proof");
        self.iv = iv;
        self.said.push(octets.clone());
        heard
    }

    /// The SA, or what it would be.
    pub fn sa(&self) -> IkeSa {
        let keys = SaKeys {
            skeyid_a: self.proof.skeyid_a.clone(),
            key: self.proof.key.clone(),
            last_phase1_block: self.iv,
        };
        let nobody = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![1] };
        let ends = Instant(0) + Duration::from_secs(86_400);
        let (cookies, dialect) = (self.cookies, Dialect::STRICT);
        IkeSa::new(cookies, suite(), self.side, nobody.clone(), nobody, ends, dialect, keys)
    }
}

/// A whole phase 1 as initiator; the SA and what was said.
pub fn established(gcks: &mut Gcks, peer: SocketAddr, opening: &Opening) -> (IkeSa, Hand) {
    let mut hand = opening.keyed(gcks, peer);
    let fifth = hand.prove(&address_identity(peer.ip()));
    let sixth = only(gcks.tell(peer, &fifth));
    hand.open(&sixth);
    (hand.sa(), hand)
}

/// What informational messages under `sa` say.
pub fn told(sa: &mut IkeSa, datagrams: &[Bytes]) -> Vec<Informational> {
    let open = |octets: &Bytes| notify::open(sa, &header(octets), octets).expect("protected").into_inner();
    datagrams.iter().flat_map(open).collect()
}

/// A PULL by hand.
pub struct Asking {
    pub exchange: Exchange,
    pub ni: Vec<u8>,
    pub nr: Vec<u8>,
    pub policy: Option<GroupPolicy>,
}

impl Asking {
    /// Message 1.
    pub fn begin(sa: &mut IkeSa, group: u32, seed: u64) -> (Asking, Bytes) {
        let mut entropy = SeededEntropy::new(seed);
        let message_id: MessageId = sa.fresh_message_id(&mut entropy);
        let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, message_id);
        let ni: Vec<u8> = entropy.array::<32>().to_vec();
        let data = group.to_be_bytes().to_vec();
        let id = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data };
        let first = exchange.seal(sa, &[], &[Payload::Nonce(ni.clone()), Payload::Id(id)]);
        (Asking { exchange, ni, nr: Vec::new(), policy: None }, first)
    }

    /// Takes message 2.
    pub fn offered(&mut self, sa: &IkeSa, second: &Bytes) {
        let opened = self.exchange.open(sa, &header(second), second, &[&self.ni]).expect("message 2");
        let [Payload::Nonce(nr), Payload::GdoiSa(offer)] = &opened.get()[..] else { panic!("{opened:?}") };
        self.nr = nr.clone();
        self.policy = Some(GroupPolicy::read(offer, Carriage::Pull).expect("a policy"));
    }

    /// Message 3.
    pub fn receipt(&mut self, sa: &IkeSa, payloads: &[Payload]) -> Bytes {
        self.exchange.seal(sa, &[&self.ni, &self.nr], payloads)
    }

    /// Takes message 4.
    pub fn keys(&mut self, sa: &IkeSa, fourth: &Bytes) -> (Option<SeqNumber>, KeySet) {
        let said: [&[u8]; 2] = [&self.ni, &self.nr];
        let opened = self.exchange.open(sa, &header(fourth), fourth, &said).expect("message 4").into_inner();
        let (seq, kd) = match &opened[..] {
            [Payload::Seq(seq), Payload::Kd(kd)] => (Some(*seq), kd),
            [Payload::Kd(kd)] => (None, kd),
            other => panic!("{other:?}"),
        };
        let policy = self.policy.as_ref().expect("message 2 came before");
        (seq, KeySet::read(kd, policy, Carriage::Pull).expect("keys"))
    }
}

/// A whole PULL of group 1; its policy and what message 4 brought.
pub fn registered(
    gcks: &mut Gcks,
    peer: SocketAddr,
    sa: &mut IkeSa,
    receipt: &[Payload],
) -> (GroupPolicy, Option<SeqNumber>, KeySet) {
    let seed = u64::from(sa.cookies.initiator.0[0]) << 32 | gcks.now.at.0;
    let (mut asking, first) = Asking::begin(sa, 1, seed);
    asking.offered(sa, &only(gcks.tell(peer, &first)));
    let third = asking.receipt(sa, receipt);
    let (seq, keys) = asking.keys(sa, &gcks.tell(peer, &third).remove(0));
    (asking.policy.expect("message 2"), seq, keys)
}
