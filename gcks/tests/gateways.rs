//! Which gateway statement a peer comes in by: its address, the identity it claims, or the one it proved.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gcks::engine::peers::{Ask, PeerOutput, Peers};
use gcks::engine::settings::{GatewaySettings, Settings};
use gdoi_proto::header::Header;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::SignatureAlgorithm;
use gdoi_proto::registry::{ExchangeType, IdType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Instant, Now};
use ike::phase1::{
    CertifiedKey, Credentials, Ends, Initiator, Mode, Offer, OwnCertificate, PeerPolicy, PeerTrust, Step,
};
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn server() -> SocketAddr {
    address("10.0.0.1:848")
}

fn named(id_type: IdType, name: &str) -> Identification {
    Identification { id_type, protocol: 0, port: 0, data: name.as_bytes().to_vec() }
}

fn exactly(id: &Identification) -> IdentityRule {
    IdentityRule::Exactly { id_type: id.id_type, data: id.data.clone() }
}

fn policy(mode: Mode, method: AuthMethod, credentials: Credentials, remote: Vec<IdentityRule>) -> PeerPolicy {
    let suite = Suite { cipher: Cipher::Aes256Cbc, hash: Hash::Sha256, group: DhGroup::Curve25519, method };
    PeerPolicy {
        mode,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(3600) }],
        credentials,
        local_identity: Some(named(IdType::Fqdn, "gcks.example")),
        remote,
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    }
}

fn shared(mode: Mode, key: &str, remote: Vec<IdentityRule>) -> PeerPolicy {
    let credentials = Credentials::pre_shared(SecretBytes::copy(key.as_bytes()));
    policy(mode, AuthMethod::PreSharedKey, credentials, remote)
}

fn gateway(name: &str, address: Option<(IpAddr, u8)>, policy: PeerPolicy) -> GatewaySettings {
    GatewaySettings {
        name: name.to_owned(),
        address,
        policy: Arc::new(policy),
        dead_peer_detection: None,
        valid_until: None,
        line: 1,
    }
}

/// The server's peer table, with jobs run at once.
struct Bench {
    provider: Arc<dyn Provider>,
    now: Now,
    peers: Peers,
    /// Jobs run so far.
    jobs: usize,
}

impl Bench {
    fn new(gateways: Vec<GatewaySettings>) -> Bench {
        Bench::with_room(gateways, 8)
    }

    fn with_room(gateways: Vec<GatewaySettings>, half_open_limit: usize) -> Bench {
        let provider = default_provider();
        let settings = Settings {
            gateways,
            groups: Vec::new(),
            half_open_limit,
            half_open_limit_per_address: 2,
            half_open_timeout: Duration::from_secs(30),
            approved_only: false,
        };
        let peers = Peers::new(&settings, &mut Random(provider.clone()));
        Bench { provider, now: Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 }, peers, jobs: 0 }
    }

    /// What the server sends to, and asks about, after `octets` came from `peer`.
    fn tell(&mut self, peer: SocketAddr, octets: &Bytes) -> (Vec<Bytes>, Vec<Ask>) {
        let mut random = Random(self.provider.clone());
        let header = Header::decode(octets).expect("our own header");
        match header.exchange {
            ExchangeType::GroupkeyPull => self.peers.on_pull(self.now.at, (server(), peer), &header, octets),
            _ => self.peers.on_phase1(self.now, (server(), peer), &header, octets, &mut random),
        }
        self.drain()
    }

    fn drain(&mut self) -> (Vec<Bytes>, Vec<Ask>) {
        let (mut sent, mut asked) = (Vec::new(), Vec::new());
        let mut random = Random(self.provider.clone());
        while let Some(output) = self.peers.poll() {
            match output {
                PeerOutput::Transmit(_, _, octets) => sent.push(octets),
                PeerOutput::Job(cookies, job) => {
                    self.jobs += 1;
                    let done = run(self.provider.as_ref(), job);
                    self.peers.on_done(self.now, cookies, done, &mut random);
                }
                PeerOutput::Ask(ask) => asked.push(ask),
                PeerOutput::Event(_) | PeerOutput::Moved(..) => {}
            }
        }
        (sent, asked)
    }

    /// Lets time pass to each timer until `end`; what was sent.
    fn pass(&mut self, time: Duration) -> Vec<Bytes> {
        let end = self.now.at + time;
        let mut sent = Vec::new();
        while let Some(wakeup) = self.peers.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.now.at = wakeup.at;
            self.peers.on_timeout(wakeup.at, &mut Random(self.provider.clone()));
            sent.extend(self.drain().0);
        }
        self.now.at = end;
        sent
    }

    /// Phase 1 of a member at `peer`; `until` messages of it reach the server.
    fn negotiate(&mut self, peer: SocketAddr, mut policy: PeerPolicy, until: usize) -> Option<IkeSa> {
        policy.remote = vec![exactly(&named(IdType::Fqdn, "gcks.example"))];
        let mut random = Random(self.provider.clone());
        let (mut initiator, mut todo) =
            Initiator::start(policy, Ends { local: peer, peer: server() }, false, self.now.at, &mut random);
        let (mut arrived, mut sa) = (0, None);
        while !todo.is_empty() {
            let mut answers = Vec::new();
            for step in std::mem::take(&mut todo) {
                match step {
                    Step::Send(octets) if arrived < until => {
                        arrived += 1;
                        answers.extend(self.tell(peer, &octets).0);
                    }
                    Step::Send(_) => {}
                    Step::Run(job) => {
                        let done = run(self.provider.as_ref(), job);
                        let steps = initiator.on_done(self.now, done, &mut random);
                        todo.extend(steps.unwrap_or_default());
                    }
                    Step::Established(done) => sa = Some(done.sa),
                }
            }
            for answer in answers {
                let header = Header::decode(&answer).expect("the server's header");
                todo.extend(
                    initiator.on_message(self.now, &header, &answer, &mut random).unwrap_or_default(),
                );
            }
        }
        sa
    }

    /// Message 1 of a phase 1, and no more: how many messages it was answered with, and jobs run for it.
    fn knock(&mut self, peer: SocketAddr, policy: PeerPolicy) -> (usize, usize) {
        let before = self.jobs;
        let mut random = Random(self.provider.clone());
        let ends = Ends { local: peer, peer: server() };
        let (mut initiator, mut todo) = Initiator::start(policy, ends, false, self.now.at, &mut random);
        loop {
            match todo.pop().expect("a first message") {
                Step::Send(first) => return (self.tell(peer, &first).0.len(), self.jobs - before),
                Step::Run(job) => {
                    let done = run(self.provider.as_ref(), job);
                    todo.extend(initiator.on_done(self.now, done, &mut random).expect("our own key pair"));
                }
                Step::Established(_) => panic!("nobody answered"),
            }
        }
    }

    /// Message 1 of a PULL.
    fn pull(&self, sa: &mut IkeSa) -> Bytes {
        let mut random = Random(self.provider.clone());
        let mid = sa.fresh_message_id(&mut random);
        let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, mid);
        let group = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![0, 0, 0, 1] };
        exchange.seal(sa, &[], &[Payload::Nonce(vec![7; 32]), Payload::Id(group)])
    }

    /// The gateway by whose name the server asks its groups.
    fn gateway_of(&mut self, peer: SocketAddr, sa: &mut IkeSa) -> Option<String> {
        let first = self.pull(sa);
        let (_, asked) = self.tell(peer, &first);
        match &asked[..] {
            [Ask::Policy(_, asker, _)] => Some(asker.gateway.name.clone()),
            _ => None,
        }
    }
}

const MANY: Option<(IpAddr, u8)> = Some((IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 0)), 16));

#[test]
fn aggressive_mode_finds_key_and_gateway_by_the_claimed_identity() {
    let ids = [named(IdType::KeyId, "\0one"), named(IdType::Fqdn, "two.example")];
    let of = |id: &Identification, key: &str| shared(Mode::Aggressive, key, vec![exactly(id)]);
    let mut bench = Bench::new(vec![
        gateway("one", None, of(&ids[0], "the key of one, 16 octets")),
        gateway("two", None, of(&ids[1], "the key of two, 16 octets")),
        gateway("main", MANY, shared(Mode::Main, "the key of an address", vec![IdentityRule::PeerAddress])),
    ]);
    for (name, id, peer) in [
        ("one", &ids[0], "198.51.100.7:848"),
        ("two", &ids[1], "198.51.100.7:850"),
        ("two", &ids[1], "10.1.0.9:848"),
    ] {
        let peer = address(peer);
        let key = format!("the key of {name}, 16 octets");
        let member = PeerPolicy { local_identity: Some(id.clone()), ..of(id, &key) };
        let mut sa = bench.negotiate(peer, member, 9).expect("phase 1");
        assert_eq!(bench.gateway_of(peer, &mut sa).as_deref(), Some(name));
    }
    // The key of one does not open the name of two, and a name nobody has gets no answer.
    let thief =
        PeerPolicy { local_identity: Some(ids[1].clone()), ..of(&ids[1], "the key of one, 16 octets") };
    assert!(bench.negotiate(address("198.51.100.8:848"), thief, 9).is_none());
    let stranger = named(IdType::Fqdn, "three.example");
    let before = bench.peers.half_open();
    let member = PeerPolicy { local_identity: Some(stranger.clone()), ..of(&stranger, "any key of length") };
    assert!(bench.negotiate(address("198.51.100.9:848"), member, 9).is_none());
    assert_eq!(bench.peers.half_open(), before, "no state for a stranger");
}

/// Knows one key per name.
#[derive(Debug)]
struct Known(Vec<(Identification, Vec<u8>)>);

impl PeerTrust for Known {
    fn check(&self, _: &[Vec<u8>], id: &Identification, _: u64) -> Result<CertifiedKey, String> {
        let found = self.0.iter().find(|(name, _)| name == id).ok_or("name: nobody's certificate")?;
        Ok(CertifiedKey { public_key: found.1.clone(), remark: None, certificate: None })
    }

    fn anchors(&self) -> Vec<Vec<u8>> {
        vec![b"an authority".to_vec()]
    }
}

#[test]
fn dynamic_members_with_certificates_are_found_by_the_identity_they_prove() {
    let provider = default_provider();
    let names = ["gcks.example", "gm1.example", "gm2.example", "gm3.example"];
    let ids: Vec<_> = names.iter().map(|name| named(IdType::Fqdn, name)).collect();
    let own: Vec<OwnCertificate> = names
        .iter()
        .map(|name| {
            let key = provider.generate_signing_key(SignatureAlgorithm::Ecdsa256, 256).expect("a key");
            let signer = provider.proof_signer(AuthMethod::Ecdsa256, &key).expect("its own key");
            OwnCertificate { chain: vec![name.as_bytes().to_vec()], signer }
        })
        .collect();
    let keys = own.iter().map(|own| own.signer.public_key().to_vec());
    let trust = Arc::new(Known(ids.iter().cloned().zip(keys).collect()));
    let of = |index: usize, remote: &Identification| PeerPolicy {
        local_identity: Some(ids[index].clone()),
        ..policy(
            Mode::Main,
            AuthMethod::Ecdsa256,
            Credentials::certificates(vec![own[index].clone()], trust.clone()),
            vec![exactly(remote)],
        )
    };
    let mut bench =
        Bench::new(vec![gateway("one", None, of(0, &ids[1])), gateway("two", None, of(0, &ids[2]))]);
    for (index, name) in [(1, "one"), (2, "two"), (1, "one")] {
        let peer = address(&format!("203.0.113.{}:848", 10 + index));
        let mut sa = bench.negotiate(peer, of(index, &ids[0]), 9).expect("phase 1");
        assert_eq!(bench.gateway_of(peer, &mut sa).as_deref(), Some(name));
    }
    // A good certificate is not enough: somebody must expect it.
    assert!(bench.negotiate(address("203.0.113.13:848"), of(3, &ids[0]), 9).is_none());
    assert_eq!(bench.peers.counters.failed, 1);
}

/// A gateway in aggressive mode, at an address or anywhere, and its member.
fn aggressive_pair(at: Option<(IpAddr, u8)>, room: usize) -> (Bench, impl Fn() -> PeerPolicy) {
    let id = named(IdType::Fqdn, "gm1.example");
    let policy = shared(Mode::Aggressive, "a key of one, 16 octets", vec![exactly(&id)]);
    let bench = Bench::with_room(vec![gateway("one", at, policy.clone())], room);
    (bench, move || PeerPolicy { local_identity: Some(id.clone()), ..policy.clone() })
}

#[test]
fn a_lost_third_message_of_aggressive_mode_costs_two_repeats_and_thirty_seconds() {
    let (mut bench, member) = aggressive_pair(Some((address("198.51.100.7:848").ip(), 32)), 8);
    let peer = address("198.51.100.7:848");
    assert!(bench.negotiate(peer, member(), 1).is_some(), "the member is content with message 2");
    assert_eq!((bench.peers.half_open(), bench.peers.established().count()), (1, 0));
    assert_eq!(bench.pass(Duration::from_secs(29)).len(), 2);
    bench.pass(Duration::from_secs(2));
    assert_eq!(bench.peers.half_open(), 0);

    // The timers of repeats end with the negotiation: an SA without a PULL lives its idle life.
    assert!(bench.negotiate(peer, member(), 9).is_some());
    assert!(bench.pass(Duration::from_secs(59)).is_empty());
    assert_eq!(bench.peers.established().count(), 1);
    assert_eq!(bench.pass(Duration::from_secs(1)).len(), 1, "a Delete");
    assert_eq!(bench.peers.established().count(), 0);
}

#[test]
fn a_stranger_is_sent_the_second_message_again_when_it_asks_and_not_unasked() {
    let (mut bench, member) = aggressive_pair(None, 8);
    let peer = address("198.51.100.7:848");
    let mut sa = bench.negotiate(peer, member(), 1).expect("the member is content with message 2");
    assert!(bench.pass(Duration::from_secs(20)).is_empty(), "nothing shows that it can receive");
    // Its PULL says that message 3 was lost: message 2 comes again, and with it message 3.
    let pull = bench.pull(&mut sa);
    let (again, asked) = bench.tell(peer, &pull);
    assert!(asked.is_empty());
    let [second] = &again[..] else { panic!("{again:?}") };
    assert_eq!(Header::decode(second).expect("a header").exchange, ExchangeType::Aggressive);
    // From elsewhere it brings nothing.
    let (elsewhere, _) = bench.tell(address("198.51.100.8:848"), &pull);
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

#[test]
fn a_flood_of_aggressive_mode_is_worked_on_and_answered_within_its_share() {
    let (mut bench, member) = aggressive_pair(None, 5000);
    let (mut jobs, mut answers) = (0, 0);
    for number in 0..2000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let peer = SocketAddr::from(([203, 0, high, low], 848));
        let (sent, ran) = bench.knock(peer, member());
        (jobs, answers) = (jobs + ran, answers + sent);
    }
    assert_eq!((jobs, answers), (50, 50), "a second's share of strangers");
    // One address is answered four times, whatever it begins and repeats.
    bench.pass(Duration::from_secs(31));
    let peer = address("203.0.113.1:848");
    let counted: Vec<(usize, usize)> = (0..10).map(|_| bench.knock(peer, member())).collect();
    let sent: usize = counted.iter().map(|(sent, _)| sent).sum();
    assert!(sent <= 4, "{counted:?}");
    bench.pass(Duration::from_secs(31));
    // Who proves an identity is known from then on, and what strangers forge takes nothing from it.
    assert!(bench.negotiate(peer, member(), 9).is_some());
    for number in 0..200_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        bench.knock(SocketAddr::from(([203, 0, high, low], 848)), member());
    }
    let mut sa = bench.negotiate(peer, member(), 9).expect("a known address");
    assert_eq!(bench.gateway_of(peer, &mut sa).as_deref(), Some("one"));
}

#[test]
fn first_messages_of_aggressive_mode_count_against_the_limits() {
    let id = named(IdType::Fqdn, "gm1.example");
    let rules = vec![exactly(&id)];
    let mut bench = Bench::new(vec![gateway(
        "one",
        None,
        shared(Mode::Aggressive, "a key of one, 16 octets", rules.clone()),
    )]);
    for number in 0..40 {
        let member = PeerPolicy {
            local_identity: Some(id.clone()),
            ..shared(Mode::Aggressive, "a key of one, 16 octets", rules.clone())
        };
        bench.negotiate(address(&format!("198.51.100.{}:848", number % 10)), member, 1);
        assert!(bench.peers.half_open() <= 8);
    }
    assert!(bench.peers.counters.limited >= 30);
}
