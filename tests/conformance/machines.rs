//! The vectors of phase 1 through the state machines of both roles: what a vector fixes (cookies, nonces, key exchange,
//! signatures) is handed in, and what the machines say is what the vectors say. Those whose nonces have our length.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::Cookie;
use gdoi_proto::message::{Dialect, Message, Rules};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{CryptoError, DhKey, Done, Job, default_provider, run};
use ike::crypto::{AuthMethod, Suite};
use ike::identity::IdentityRule;
use ike::io::{Entropy, Instant, Now};
use ike::phase1::{Credentials, Ends, Initiator, Mode, Offer, OwnCertificate, PeerPolicy, Responder, Step};
use ike::trust::{Trust, Verification};
use serde_json::Value;

use crate::phase1::{identity, suite};
use crate::support::{array, list, octets, secret, text, vectors};

const NOW: Now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };

/// Says what it was given, in order.
struct Script(Vec<u8>);

impl Entropy for Script {
    fn fill(&mut self, out: &mut [u8]) {
        let rest = self.0.split_off(out.len());
        out.copy_from_slice(&std::mem::replace(&mut self.0, rest));
    }
}

/// The vector's half of Diffie-Hellman.
struct Given {
    public: Vec<u8>,
    shared: SecretBytes,
}

impl DhKey for Given {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, _: &[u8]) -> Result<SecretBytes, CryptoError> {
        Ok(self.shared)
    }
}

/// One role of a vector.
struct Side<'v> {
    vector: &'v Value,
    suite: Suite,
    own: &'static str,
    peer: &'static str,
}

impl Side<'_> {
    fn end(&self, side: &str) -> SocketAddr {
        let address: IpAddr = text(self.vector, &format!("{side}_ip")).parse().expect("an address");
        SocketAddr::new(
            address,
            u16::try_from(self.vector["udp_port"].as_u64().expect("a port")).expect("16 bits"),
        )
    }

    fn ends(&self) -> Ends {
        Ends { local: self.end(self.own), peer: self.end(self.peer) }
    }

    fn identity(&self, side: &str) -> Identification {
        identity(&octets(self.vector, if side == "initiator" { "idii_b" } else { "idir_b" }))
    }

    fn policy(&self) -> PeerPolicy {
        let held = &self.vector["credentials"];
        let credentials = match self.suite.method {
            AuthMethod::PreSharedKey => Credentials::pre_shared(secret(self.vector, "psk")),
            method => {
                let key = secret(held, &format!("{}_key_pkcs8", self.own));
                let signer = default_provider().proof_signer(method, &key).expect("a key");
                let own = OwnCertificate { chain: vec![octets(held, self.own)], signer };
                let trust = Trust::new(vec![octets(held, "ca")], Vec::new(), Verification::Enforce);
                Credentials::certificates(vec![own], Arc::new(trust.expect("an anchor")))
            }
        };
        let peer = self.identity(self.peer);
        let life = self.vector["negotiated"]["life_seconds"].as_u64().expect("seconds");
        PeerPolicy {
            mode: Mode::Main,
            offers: vec![Offer { suite: self.suite, lifetime: Duration::from_secs(life) }],
            credentials,
            local_identity: Some(self.identity(self.own)),
            remote: vec![IdentityRule::Exactly { id_type: peer.id_type, data: peer.data }],
            nat_traversal: true,
            fragmentation: false,
            dialect: Dialect::STRICT,
        }
    }

    fn message(&self, number: usize) -> Bytes {
        octets(&list(self.vector, "messages")[number - 1], "packet").into()
    }

    /// The result of a job: the vector's where it is a matter of chance, else the provider's.
    fn done(&self, job: Job) -> Done {
        let dh = &self.vector["dh"];
        let shared = || secret(dh, "g_xy");
        match job {
            Job::DhGenerate { .. } => {
                Done::DhKey(Ok(Box::new(Given { public: octets(dh, "g_xi"), shared: shared() })))
            }
            Job::DhRespond { peer_public, .. } => {
                assert_eq!(peer_public, octets(dh, "g_xi"));
                Done::Responded(Ok((octets(dh, "g_xr"), shared())))
            }
            Job::Phase1Sign { digest, .. } => {
                let (hash, signature) =
                    if self.own == "initiator" { ("hash_i", "sig_i") } else { ("hash_r", "sig_r") };
                assert_eq!(digest.expose(), octets(self.vector, hash));
                Done::Phase1Signed(Ok(octets(self.vector, signature)))
            }
            job => run(default_provider().as_ref(), job),
        }
    }
}

/// Payloads of a clear message, vendor IDs aside: their order is free.
fn said(octets: &[u8]) -> (Vec<Payload>, Vec<Vec<u8>>) {
    let (mut payloads, mut vendors) = (Vec::new(), Vec::new());
    for payload in Message::decode(octets, Rules::PHASE1_CLEAR).expect("a clear message").payloads {
        match payload {
            Payload::VendorId(vendor) => vendors.push(vendor),
            other => payloads.push(other),
        }
    }
    vendors.sort();
    (payloads, vendors)
}

const CERTIFIED: [&str; 2] = ["phase1-ecdsa256-ecp256-aes128-sha256", "phase1-ecdsa521-ecp384-aes256-sha256"];

#[test]
fn the_responder_says_what_the_vectors_say() {
    for file in CERTIFIED {
        let vector = vectors(file);
        let side = Side { vector: &vector, suite: suite(&vector), own: "responder", peer: "initiator" };
        let mut entropy = Script(octets(&vector, "nr_b"));
        let header = |octets: &Bytes| Header::decode(octets).expect("a header");
        let (first, third, fifth) = (side.message(1), side.message(3), side.message(5));
        let cookie = Cookie(array(&vector, "cky_r"));
        let started = Responder::start(Arc::new(side.policy()), cookie, side.ends(), &header(&first), &first);
        let (mut responder, steps) = started.expect("message 1");
        let mut sent = Vec::new();
        let mut established = None;
        let mut take = |responder: &mut Responder, mut steps: Vec<Step>, entropy: &mut Script| {
            while !steps.is_empty() {
                match steps.remove(0) {
                    Step::Send(octets) => sent.push(octets),
                    Step::Run(job) => {
                        steps.extend(responder.on_done(NOW, side.done(job), entropy).expect("a result"));
                    }
                    Step::Established(done) => established = Some(done),
                }
            }
        };
        take(&mut responder, steps, &mut entropy);
        for message in [&third, &fifth] {
            let steps = responder.on_message(NOW, side.ends(), &header(message), message, &mut entropy);
            take(&mut responder, steps.unwrap_or_else(|error| panic!("{file}: {error}")), &mut entropy);
        }
        let [second, fourth, sixth] = &sent[..] else { panic!("{file}: {} messages", sent.len()) };
        assert_eq!(said(second), said(&side.message(2)), "{file}");
        assert_eq!(said(fourth), said(&side.message(4)), "{file}");
        assert_eq!(sixth, &side.message(6), "{file}");
        let done = established.expect("established");
        assert_eq!(done.sa.peer_identity, side.identity("initiator"), "{file}");
        assert!(!done.sa.nat.any() && done.sa.peer_does_dpd, "{file}");
    }
}

#[test]
fn the_initiator_says_what_the_vectors_say() {
    for file in [&CERTIFIED[..], &["phase1-psk-ecp256-aes256-sha384"]].concat() {
        let vector = vectors(file);
        let side = Side { vector: &vector, suite: suite(&vector), own: "initiator", peer: "responder" };
        let spare = vec![7; 64];
        let mut entropy = Script([octets(&vector, "cky_i"), octets(&vector, "ni_b"), spare].concat());
        let (mut initiator, steps) =
            Initiator::start(side.policy(), side.ends(), false, NOW.at, &mut entropy);
        let mut sent = Vec::new();
        let mut established = None;
        let mut take = |initiator: &mut Initiator, mut steps: Vec<Step>, entropy: &mut Script| {
            entropy.0.resize(256, 7);
            while !steps.is_empty() {
                match steps.remove(0) {
                    Step::Send(octets) => sent.push(octets),
                    Step::Run(job) => {
                        steps.extend(initiator.on_done(NOW, side.done(job), entropy).expect("a result"));
                    }
                    Step::Established(done) => established = Some(done),
                }
            }
        };
        take(&mut initiator, steps, &mut entropy);
        for number in [2, 4, 6] {
            let message = side.message(number);
            let header = Header::decode(&message).expect("a header");
            let steps = initiator.on_message(NOW, &header, &message, &mut entropy);
            take(&mut initiator, steps.unwrap_or_else(|error| panic!("{file}: {error}")), &mut entropy);
        }
        let [first, third, fifth] = &sent[..] else { panic!("{file}: {} messages", sent.len()) };
        assert_eq!(said(first), said(&side.message(1)), "{file}");
        assert_eq!(said(third), said(&side.message(3)), "{file}");
        assert_eq!(fifth, &side.message(5), "{file}");
        let done = established.expect("established");
        assert_eq!(done.sa.peer_identity, side.identity("responder"), "{file}");
        assert!(!done.sa.nat.any() && done.sa.peer_does_dpd, "{file}");
    }
}
