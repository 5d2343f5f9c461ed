//! Both sides of main mode against each other, with real crypto: every group, every hash, repetition and refusals.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::Cookie;
use gdoi_proto::message::Dialect;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Entropy, Instant};
use ike::phase1::{Established, Initiator, Offer, PeerPolicy, Refusal, Responder, Step};
use ike::protect::notify::{self, Informational};

struct Random(Arc<dyn Provider>);

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

const NOW: Instant = Instant(1_000_000);

fn member() -> IpAddr {
    "192.0.2.10".parse().expect("an address")
}

fn server() -> IpAddr {
    "192.0.2.1".parse().expect("an address")
}

fn policy(suites: &[Suite], key: &str) -> PeerPolicy {
    PeerPolicy {
        offers: suites
            .iter()
            .map(|suite| Offer { suite: *suite, lifetime: Duration::from_secs(3600) })
            .collect(),
        pre_shared_key: SecretBytes::copy(key.as_bytes()),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        dialect: Dialect::STRICT,
    }
}

fn suite(group: DhGroup, hash: Hash, cipher: Cipher) -> Suite {
    Suite { cipher, hash, group, method: AuthMethod::PreSharedKey }
}

/// The two sides and what became of them.
struct Pair {
    provider: Arc<dyn Provider>,
    initiator: Initiator,
    responder: Option<Responder>,
    responder_policy: Arc<PeerPolicy>,
    member_sa: Option<Box<Established>>,
    server_sa: Option<Box<Established>>,
    refusals: Vec<Refusal>,
}

impl Pair {
    fn run(member_policy: PeerPolicy, server_policy: PeerPolicy, copies: usize) -> Pair {
        let provider = default_provider();
        let mut random = Random(provider.clone());
        let (initiator, steps) = Initiator::start(member_policy, member(), server(), true, NOW, &mut random);
        let mut pair = Pair {
            provider,
            initiator,
            responder: None,
            responder_policy: Arc::new(server_policy),
            member_sa: None,
            server_sa: None,
            refusals: Vec::new(),
        };
        let mut to_server: Vec<Bytes> = pair.member_steps(steps);
        for _ in 0..6 {
            let mut to_member = Vec::new();
            for octets in to_server.drain(..) {
                for _ in 0..copies {
                    to_member.extend(pair.at_server(&octets));
                }
            }
            for octets in to_member {
                let header = Header::decode(&octets).expect("our own header");
                match pair.initiator.on_message(NOW, &header, &octets) {
                    Ok(steps) => to_server.extend(pair.member_steps(steps)),
                    Err(refusal) => pair.refusals.push(refusal),
                }
            }
        }
        pair
    }

    fn member_steps(&mut self, steps: Vec<Step>) -> Vec<Bytes> {
        let mut out = Vec::new();
        for step in steps {
            match step {
                Step::Send(octets) => out.push(octets),
                Step::Run(job) => {
                    let done = run(self.provider.as_ref(), job);
                    let steps = self.initiator.on_done(NOW, done, &mut Random(self.provider.clone()));
                    out.extend(self.member_steps(steps.expect("our own job")));
                }
                Step::Established(done) => self.member_sa = Some(done),
            }
        }
        out
    }

    fn at_server(&mut self, octets: &[u8]) -> Vec<Bytes> {
        let header = Header::decode(octets).expect("our own header");
        let mut random = Random(self.provider.clone());
        let steps = match &mut self.responder {
            None => {
                let policy = self.responder_policy.clone();
                Responder::start(policy, Cookie([7; 8]), server(), member(), &header, octets).map(
                    |(responder, steps)| {
                        self.responder = Some(responder);
                        steps
                    },
                )
            }
            Some(responder) => responder.on_message(NOW, &header, octets, &mut random),
        };
        match steps {
            Ok(steps) => self.server_steps(steps),
            Err(refusal) => {
                self.refusals.push(refusal);
                Vec::new()
            }
        }
    }

    fn server_steps(&mut self, steps: Vec<Step>) -> Vec<Bytes> {
        let mut out = Vec::new();
        for step in steps {
            match step {
                Step::Send(octets) => out.push(octets),
                Step::Run(job) => {
                    let done = run(self.provider.as_ref(), job);
                    match self.responder.as_mut().map(|responder| responder.on_done(done)) {
                        Some(Ok(steps)) => out.extend(self.server_steps(steps)),
                        Some(Err(refusal)) => self.refusals.push(refusal),
                        None => {}
                    }
                }
                Step::Established(done) => self.server_sa = Some(done),
            }
        }
        out
    }

    /// A message sealed by one side opens at the other.
    fn talks(&mut self) -> bool {
        let (Some(member), Some(server)) = (&mut self.member_sa, &mut self.server_sa) else { return false };
        let delete = notify::delete_isakmp(member.sa.cookies);
        let sealed = notify::seal(&mut member.sa, &[delete], &mut Random(self.provider.clone()));
        let header = Header::decode(&sealed).expect("our own header");
        let opened = notify::open(&mut server.sa, &header, &sealed);
        opened.is_ok_and(|said| said.into_inner() == [Informational::DeleteIsakmp])
    }
}

const KEY: &str = "a shared secret of some length";

#[test]
fn every_group_establishes_in_both_roles() {
    for group in DhGroup::ALL {
        let suites = [suite(group, Hash::Sha256, Cipher::Aes256Cbc)];
        let mut pair = Pair::run(policy(&suites, KEY), policy(&suites, KEY), 1);
        assert!(pair.talks(), "group {}: {:?}", group.number(), pair.refusals);
    }
}

#[test]
fn every_hash_and_key_length_establishes() {
    for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
        for cipher in [Cipher::Aes128Cbc, Cipher::Aes192Cbc, Cipher::Aes256Cbc] {
            let suites = [suite(DhGroup::Ecp256, hash, cipher)];
            let mut pair = Pair::run(policy(&suites, KEY), policy(&suites, KEY), 1);
            assert!(pair.talks(), "{}: {:?}", suites[0], pair.refusals);
        }
    }
}

#[test]
fn the_responder_takes_the_first_offer_it_accepts() {
    let first = suite(DhGroup::Modp2048, Hash::Sha256, Cipher::Aes128Cbc);
    let second = suite(DhGroup::Curve25519, Hash::Sha512, Cipher::Aes256Cbc);
    let mut pair = Pair::run(policy(&[first, second], KEY), policy(&[second], KEY), 1);
    assert!(pair.talks());
    assert_eq!(pair.server_sa.expect("established").sa.suite, second);
}

#[test]
fn repeated_messages_change_nothing() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc)];
    let mut pair = Pair::run(policy(&suites, KEY), policy(&suites, KEY), 2);
    assert!(pair.talks(), "{:?}", pair.refusals);
}

#[test]
fn another_pre_shared_key_ends_without_an_sa_and_says_what_is_probable() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc)];
    let pair = Pair::run(policy(&suites, KEY), policy(&suites, "another secret"), 1);
    assert!(pair.member_sa.is_none() && pair.server_sa.is_none());
    let said: String = pair.refusals.iter().map(ToString::to_string).collect();
    assert!(said.contains("pre-shared key mismatch"), "{said}");
}

#[test]
fn an_unacceptable_offer_is_refused_with_the_reason() {
    let offered = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc)];
    let accepted = [suite(DhGroup::Ecp384, Hash::Sha256, Cipher::Aes256Cbc)];
    let pair = Pair::run(policy(&offered, KEY), policy(&accepted, KEY), 1);
    let [Refusal::Unacceptable { reason, .. }] = &pair.refusals[..] else { panic!("{:?}", pair.refusals) };
    assert!(reason.contains("group20"), "{reason}");
}

#[test]
fn a_member_refuses_a_server_of_another_name() {
    let suites = [suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc)];
    let mut strict = policy(&suites, KEY);
    let id_type = gdoi_proto::registry::IdType::Fqdn;
    strict.remote = vec![IdentityRule::Exactly { id_type, data: b"gcks.example".to_vec() }];
    let pair = Pair::run(strict, policy(&suites, KEY), 1);
    assert!(pair.member_sa.is_none());
    assert!(
        pair.refusals.iter().any(|refusal| matches!(refusal, Refusal::Failed { .. })),
        "{:?}",
        pair.refusals
    );
}
