//! A member and a key server of phase 1 with real crypto and a network that can repeat and lose.
#![cfg_attr(not(feature = "aws-lc"), allow(dead_code))]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::Cookie;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Identification;
use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::registry::{ExchangeType, IdType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Instant, Now};
use ike::phase1::{
    CertifiedKey, Credentials, Ends, Established, FirstAggressive, Initiator, Mode, Offer, OwnCertificate,
    PeerPolicy, PeerTrust, Refusal, Responder, Step,
};
use ike::protect::notify::{self, Informational};

pub const NOW: Now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
pub const KEY: &str = "a shared secret of some length";

pub fn member() -> SocketAddr {
    "192.0.2.10:848".parse().expect("an address")
}

pub fn server() -> SocketAddr {
    "192.0.2.1:848".parse().expect("an address")
}

pub fn suite(group: DhGroup, hash: Hash, cipher: Cipher, method: AuthMethod) -> Suite {
    Suite { cipher, hash, group, method }
}

pub fn policy(suites: &[Suite], credentials: Credentials) -> PeerPolicy {
    PeerPolicy {
        mode: Mode::Main,
        offers: suites
            .iter()
            .map(|suite| Offer { suite: *suite, lifetime: Duration::from_secs(3600) })
            .collect(),
        credentials,
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    }
}

/// A policy with a pre-shared key.
pub fn shared(suites: &[Suite], key: &str) -> PeerPolicy {
    policy(suites, Credentials::pre_shared(SecretBytes::copy(key.as_bytes())))
}

pub fn fqdn(name: &str) -> Identification {
    Identification { id_type: IdType::Fqdn, protocol: 0, port: 0, data: name.as_bytes().to_vec() }
}

/// A trust that knows every certificate by heart: whose it is, and its key.
#[derive(Debug, Default)]
pub struct Known(pub Vec<(Vec<u8>, Identification, Vec<u8>)>);

impl PeerTrust for Known {
    fn check(
        &self,
        chain: &[Vec<u8>],
        id: &Identification,
        unix_seconds: u64,
    ) -> Result<CertifiedKey, String> {
        assert_eq!(unix_seconds, NOW.unix_seconds, "the wall clock of the message");
        let found = chain.first().and_then(|first| self.0.iter().find(|(known, _, _)| known == first));
        match found {
            None => Err("chain: no trust anchor".to_owned()),
            Some((_, name, _)) if name != id => Err("name: the certificate is of another".to_owned()),
            Some((_, _, key)) => {
                Ok(CertifiedKey { public_key: key.clone(), remark: None, certificate: None })
            }
        }
    }

    fn anchors(&self) -> Vec<Vec<u8>> {
        vec![b"an authority".to_vec()]
    }
}

/// A fresh key with a certificate that only [`Known`] can read.
pub struct Party {
    pub id: Identification,
    pub certificates: Vec<OwnCertificate>,
}

impl Party {
    /// `name` with one certificate per method.
    pub fn new(name: &str, methods: &[AuthMethod]) -> Party {
        let provider = default_provider();
        let certificates = methods.iter().map(|method| {
            let (algorithm, bits) = match method {
                AuthMethod::RsaSignature => (SignatureAlgorithm::Rsa, 2048),
                AuthMethod::Ecdsa256 => (SignatureAlgorithm::Ecdsa256, 256),
                AuthMethod::Ecdsa384 => (SignatureAlgorithm::Ecdsa384, 384),
                AuthMethod::Ecdsa521 => (SignatureAlgorithm::Ecdsa521, 521),
                AuthMethod::PreSharedKey => panic!("no certificate for it"),
            };
            let key = provider.generate_signing_key(algorithm, bits).expect("a key");
            let signer = provider.proof_signer(*method, &key).expect("its own key");
            let end = format!("certificate of {name} for {method:?}").into_bytes();
            OwnCertificate { chain: vec![end, b"an intermediate".to_vec()], signer }
        });
        Party { id: fqdn(name), certificates: certificates.collect() }
    }

    /// What `trust` must know of it.
    pub fn known(&self) -> impl Iterator<Item = (Vec<u8>, Identification, Vec<u8>)> + '_ {
        self.certificates
            .iter()
            .map(|own| (own.chain[0].clone(), self.id.clone(), own.signer.public_key().to_vec()))
    }

    /// The policy of this party towards `other`.
    pub fn policy(&self, suites: &[Suite], other: &Party, trust: &Arc<Known>) -> PeerPolicy {
        let mut policy = policy(suites, Credentials::certificates(self.certificates.clone(), trust.clone()));
        policy.local_identity = Some(self.id.clone());
        policy.remote = vec![IdentityRule::Exactly { id_type: IdType::Fqdn, data: other.id.data.clone() }];
        policy
    }
}

/// The two sides and what became of them.
pub struct Pair {
    pub provider: Arc<dyn Provider>,
    pub initiator: Initiator,
    pub responder: Option<Responder>,
    responder_policy: Arc<PeerPolicy>,
    /// Where the server sees the member, and itself.
    at_server: Ends,
    floated: bool,
    pub member_sa: Option<Box<Established>>,
    pub server_sa: Option<Box<Established>>,
    pub refusals: Vec<Refusal>,
    /// Everything sent, with true for the member's.
    pub sent: Vec<(bool, Bytes)>,
}

impl Pair {
    /// Both to the end; every message of the member arrives `copies` times.
    pub fn run(member_policy: PeerPolicy, server_policy: PeerPolicy, copies: usize) -> Pair {
        Pair::through(member(), member_policy, server_policy, copies)
    }

    /// The same; the server sees the member's packets come from `outside`.
    pub fn through(
        outside: SocketAddr,
        member_policy: PeerPolicy,
        server_policy: PeerPolicy,
        copies: usize,
    ) -> Pair {
        let mut pair = Pair::strangers(outside, member_policy, server_policy);
        let mut to_server: Vec<Bytes> = pair.sent.iter().map(|(_, octets)| octets.clone()).collect();
        for _ in 0..6 {
            let mut to_member = Vec::new();
            for octets in to_server.drain(..) {
                for _ in 0..copies {
                    to_member.extend(pair.at_server(&octets));
                }
            }
            for octets in to_member {
                to_server.extend(pair.at_member(&octets));
            }
        }
        pair
    }

    /// The member has sent its first message, which is the only one in `sent`, and nothing has arrived.
    pub fn strangers(outside: SocketAddr, member_policy: PeerPolicy, server_policy: PeerPolicy) -> Pair {
        let provider = default_provider();
        let mut random = Random(provider.clone());
        let (initiator, steps) = Initiator::start(
            member_policy,
            Ends { local: member(), peer: server() },
            true,
            NOW.at,
            &mut random,
        );
        let mut pair = Pair {
            provider,
            initiator,
            responder: None,
            responder_policy: Arc::new(server_policy),
            at_server: Ends { local: server(), peer: outside },
            floated: false,
            member_sa: None,
            server_sa: None,
            refusals: Vec::new(),
            sent: Vec::new(),
        };
        pair.member_steps(Ok(steps));
        pair
    }

    /// A datagram arrives at the member; what it sends in turn.
    pub fn at_member(&mut self, octets: &Bytes) -> Vec<Bytes> {
        let header = Header::decode(octets).expect("our own header");
        if header.exchange == ExchangeType::Informational {
            self.refusals.extend(self.initiator.on_informational(NOW, &header, octets).err());
            return Vec::new();
        }
        let answered = self.member_sa.as_mut().and_then(|up| up.answered.as_mut());
        if let Some(answer) = answered.and_then(|answered| answered.repeat(octets)) {
            return vec![answer];
        }
        let mut random = Random(self.provider.clone());
        let steps = self.initiator.on_message(NOW, &header, octets, &mut random);
        if self.initiator.nat().any() && !self.floated {
            self.floated = true;
            let float = |end: SocketAddr| SocketAddr::new(end.ip(), 4500);
            self.initiator.moved(Ends { local: float(member()), peer: float(server()) });
            // The NAT chooses another port for the new flow.
            let Ends { local, peer } = self.at_server;
            let outside = SocketAddr::new(peer.ip(), if peer == member() { 4500 } else { 61_000 });
            self.at_server = Ends { local: float(local), peer: outside };
        }
        self.member_steps(steps)
    }

    fn member_steps(&mut self, steps: Result<Vec<Step>, Refusal>) -> Vec<Bytes> {
        let mut out = Vec::new();
        let steps = steps.unwrap_or_else(|refusal| self.refuse(refusal, &mut out));
        for step in steps {
            match step {
                Step::Send(octets) => {
                    self.sent.push((true, octets.clone()));
                    out.push(octets);
                }
                Step::Run(job) => {
                    let done = run(self.provider.as_ref(), job);
                    let steps = self.initiator.on_done(NOW, done, &mut Random(self.provider.clone()));
                    out.extend(self.member_steps(steps));
                }
                Step::Established(done) => self.member_sa = Some(done),
            }
        }
        out
    }

    fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Bytes>) -> Vec<Step> {
        if let Refusal::Failed { answer: Some(answer), .. } = &refusal {
            out.push(answer.clone());
        }
        self.refusals.push(refusal);
        Vec::new()
    }

    /// A datagram arrives at the server; what it sends in turn.
    pub fn at_server(&mut self, octets: &[u8]) -> Vec<Bytes> {
        let header = Header::decode(octets).expect("our own header");
        if header.exchange == ExchangeType::Informational {
            return Vec::new();
        }
        let mut random = Random(self.provider.clone());
        let steps = match &mut self.responder {
            None => {
                let (policy, cookie) = (self.responder_policy.clone(), Cookie([7; 8]));
                let started = match policy.mode {
                    Mode::Main => Responder::start(policy, cookie, self.at_server, &header, octets),
                    Mode::Aggressive => FirstAggressive::read(&header, octets).and_then(|first| {
                        Responder::start_aggressive(policy, cookie, self.at_server, first, &mut random)
                    }),
                };
                started.map(|(responder, steps)| {
                    self.responder = Some(responder);
                    steps
                })
            }
            Some(responder) => responder.on_message(NOW, self.at_server, &header, octets, &mut random),
        };
        self.server_steps(steps)
    }

    fn server_steps(&mut self, steps: Result<Vec<Step>, Refusal>) -> Vec<Bytes> {
        let mut out = Vec::new();
        let steps = steps.unwrap_or_else(|refusal| self.refuse(refusal, &mut out));
        for step in steps {
            match step {
                Step::Send(octets) => {
                    self.sent.push((false, octets.clone()));
                    out.push(octets);
                }
                Step::Run(job) => {
                    let done = run(self.provider.as_ref(), job);
                    let mut random = Random(self.provider.clone());
                    let steps = self.responder.as_mut().expect("its owner").on_done(NOW, done, &mut random);
                    out.extend(self.server_steps(steps));
                }
                Step::Established(done) => self.server_sa = Some(done),
            }
        }
        out
    }

    /// A message sealed by one side opens at the other.
    pub fn talks(&mut self) -> bool {
        let (Some(member), Some(server)) = (&mut self.member_sa, &mut self.server_sa) else { return false };
        let delete = notify::delete_isakmp(member.sa.cookies);
        let sealed = notify::seal(&mut member.sa, &[delete], &mut Random(self.provider.clone()));
        let header = Header::decode(&sealed).expect("our own header");
        let opened = notify::open(&mut server.sa, &header, &sealed);
        opened.is_ok_and(|said| said.into_inner() == [Informational::DeleteIsakmp])
    }

    /// Every refusal of both sides, one per line.
    pub fn said(&self) -> String {
        self.refusals.iter().map(|refusal| format!("{refusal}\n")).collect()
    }
}
