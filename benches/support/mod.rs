//! What the benches share: a group's settings, a policy of the usual size, a key server full of members, main mode.

#![allow(dead_code, reason = "every bench uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gcks::engine::KeyServer;
use gcks::engine::durable::{Change, Kind, Row};
use gcks::engine::io::{Command, Input, Output};
use gcks::engine::settings::{
    Acknowledgement, CommunicationSettings, GatewaySettings, GroupSettings, SaSettings, Settings, Way,
};
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, GroupId, KekSpi, SeqNumber, Spi};
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{
    AckRequest, AddressPreservation, Direction, Encapsulation, GroupPolicy, KekCipher, KekKey, KekPolicy,
    KeySet, SignatureAlgorithm, SignatureHash, TekCipher, TekKey, TekPolicy,
};
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Datagram, Instant, JobResult, Machine, Now};
use ike::phase1::{Credentials, Ends, Initiator, Mode, Offer, PeerPolicy, Responder, Step};
use ike::sa::IkeSa;

/// When everything happens.
pub const NOW: Now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
/// Where the key server is.
pub const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)), 848);

/// The address of member `index`.
pub fn address(index: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 1).to_bits() + index).into(), 848)
}

/// Main mode with a pre-shared key, AES-256, SHA-256.
pub fn peer_policy(group: DhGroup) -> PeerPolicy {
    let suite =
        Suite { cipher: Cipher::Aes256Cbc, hash: Hash::Sha256, group, method: AuthMethod::PreSharedKey };
    PeerPolicy {
        mode: Mode::Main,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
        credentials: Credentials::pre_shared(SecretBytes::copy(b"a key for benches of the engine")),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    }
}

fn any() -> Endpoint {
    Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![10, 0, 0, 0, 255, 0, 0, 0] }
}

const TEK: TekCipher =
    TekCipher::AesCbc { key_octets: 32, authentication: gdoi_proto::policy::TekAuthentication::HmacSha256 };

/// One group of one SA without Sender-IDs, acknowledged, signed by ECDSA P-256.
pub fn settings() -> Settings {
    Settings {
        gateways: vec![GatewaySettings {
            name: "gw".to_owned(),
            address: Some((IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)),
            policy: Arc::new(peer_policy(DhGroup::Curve25519)),
            dead_peer_detection: None,
            valid_until: None,
            line: 1,
        }],
        groups: vec![GroupSettings {
            line: 20,
            name: "g1".to_owned(),
            id: GroupId::number(1),
            address: None,
            push_dialect: Dialect::STRICT,
            gateways: ["gw".to_owned()].into(),
            member_threshold: None,
            sender_id_bits: 8,
            rekey_on_leave: true,
            rekey_on_join: false,
            communication: Some(CommunicationSettings {
                cipher: Cipher::Aes256Cbc,
                signature_hash: SignatureHash::Sha256,
                signature: SignatureAlgorithm::Ecdsa256,
                signature_key_bits: 256,
                signing_key: None,
                lifetime: Duration::from_secs(86_400),
                retransmissions: 2,
                retransmission_period: Duration::from_secs(10),
                acknowledgement: Acknowledgement::Required,
                missed_rekeys: 1,
                lkh: false,
                max_push_size: 1280,
                way: Way::Unicast,
                activation_delay: 30,
                deactivation_delay: 45,
                margin: Duration::from_secs(720),
            }),
            sas: vec![SaSettings {
                name: "S/m".to_owned(),
                cipher: TEK,
                lifetime: Duration::from_secs(3600),
                margin: Duration::from_secs(360),
                encapsulation: Encapsulation::Tunnel,
                ip_protocol: 0,
                source: any(),
                destination: any(),
                delay_window: None,
            }],
        }],
        half_open_limit: 4096,
        half_open_limit_per_address: 16,
        half_open_timeout: Duration::from_secs(30),
        approved_only: false,
    }
}

/// A policy of one KEK and one TEK, as most groups have, with its keys.
pub fn policy(signature: SignatureAlgorithm, key_bits: u16, public_key: Vec<u8>) -> (GroupPolicy, KeySet) {
    let spi = KekSpi([7; 16]);
    let kek = KekPolicy {
        spi,
        source: any(),
        destination: any(),
        cipher: KekCipher::AesCbc { key_octets: 32 },
        lifetime_seconds: 86_400,
        signature_hash: match signature {
            SignatureAlgorithm::Ecdsa384 => SignatureHash::Sha384,
            _ => SignatureHash::Sha256,
        },
        signature,
        signature_key_bits: Some(key_bits),
        acknowledgement: Some(AckRequest::KekSha256),
        lkh: false,
    };
    let tek = TekPolicy {
        spi: Spi(0x1000_0001),
        ip_protocol: 0,
        source: any(),
        destination: any(),
        cipher: TEK,
        lifetime_seconds: 3600,
        lifetime_kilobytes: None,
        encapsulation: Encapsulation::Tunnel,
        address_preservation: AddressPreservation::Both,
        direction: Direction::Symmetric,
        delay_window: None,
    };
    let key =
        TekKey { encryption: SecretBytes::copy(&[3; 32]), integrity: Some(SecretBytes::copy(&[4; 32])) };
    let keys = KeySet {
        kek: Some(KekKey { iv: vec![5; 16], key: SecretBytes::copy(&[6; 32]), public_key: Some(public_key) }),
        teks: vec![(tek.spi, key)],
        ..KeySet::default()
    };
    let policy =
        GroupPolicy { kek: Some(kek), activation_delay: 30, deactivation_delay: Some(45), teks: vec![tek] };
    (policy, keys)
}

/// A main mode between a member and a key server, both played here.
pub struct MainMode {
    provider: Arc<dyn Provider>,
    random: Random,
    /// The member.
    pub initiator: Initiator,
    policy: Arc<PeerPolicy>,
}

/// The one message among steps.
pub fn sent(steps: &[Step]) -> Bytes {
    let found = steps.iter().find_map(|step| match step {
        Step::Send(octets) => Some(octets.clone()),
        Step::Run(_) | Step::Established(_) => None,
    });
    found.expect("a message")
}

/// The SA among steps.
pub fn established(steps: Vec<Step>) -> IkeSa {
    let found = steps.into_iter().find_map(|step| match step {
        Step::Established(done) => Some(done.sa),
        Step::Run(_) | Step::Send(_) => None,
    });
    found.expect("an SA")
}

impl MainMode {
    /// Message 1 is made.
    pub fn start(group: DhGroup) -> (MainMode, Bytes) {
        let provider = default_provider();
        let mut random = Random(Arc::clone(&provider));
        let policy = peer_policy(group);
        let (initiator, steps) = Initiator::start(
            policy.clone(),
            Ends { local: address(0), peer: SERVER },
            false,
            NOW.at,
            &mut random,
        );
        (MainMode { provider, random, initiator, policy: Arc::new(policy) }, sent(&steps))
    }

    /// The key server takes message 1: message 2.
    pub fn respond(&self, first: &[u8]) -> (Responder, Bytes) {
        let header = Header::decode(first).expect("a header");
        let cookie = Cookie([9; 8]);
        let (responder, steps) = Responder::start(
            Arc::clone(&self.policy),
            cookie,
            Ends { local: SERVER, peer: address(0) },
            &header,
            first,
        )
        .expect("message 1");
        (responder, sent(&steps))
    }

    /// The member takes message 2 or 4, its job included: message 3 or 5.
    pub fn at_member(&mut self, octets: &[u8]) -> Bytes {
        let header = Header::decode(octets).expect("a header");
        let steps =
            self.initiator.on_message(NOW, &header, octets, &mut self.random).expect("message 2 or 4");
        let Some(Step::Run(job)) = steps.into_iter().next() else { panic!("a job is due") };
        let done = run(self.provider.as_ref(), job);
        sent(&self.initiator.on_done(NOW, done, &mut self.random).expect("our own job"))
    }

    /// The key server takes message 3, its job included: message 4.
    pub fn at_server(&mut self, responder: &mut Responder, octets: &[u8]) -> Bytes {
        let header = Header::decode(octets).expect("a header");
        let steps = responder
            .on_message(NOW, Ends { local: SERVER, peer: address(0) }, &header, octets, &mut self.random)
            .expect("message 3");
        let Some(Step::Run(job)) = steps.into_iter().next() else { panic!("a job is due") };
        sent(
            &responder.on_done(NOW, run(self.provider.as_ref(), job), &mut self.random).expect("our own job"),
        )
    }

    /// The key server takes message 5: message 6 and its SA.
    pub fn finish(&mut self, responder: &mut Responder, octets: &[u8]) -> (Bytes, IkeSa) {
        let header = Header::decode(octets).expect("a header");
        let steps = responder
            .on_message(NOW, Ends { local: SERVER, peer: address(0) }, &header, octets, &mut self.random)
            .expect("message 5");
        (sent(&steps), established(steps))
    }

    /// The member takes message 6: its SA.
    pub fn end(&mut self, octets: &[u8]) -> IkeSa {
        let header = Header::decode(octets).expect("a header");
        established(self.initiator.on_message(NOW, &header, octets, &mut self.random).expect("message 6"))
    }

    /// Every message of a main mode, and the SA of either side: member, key server.
    pub fn whole(group: DhGroup) -> ([Bytes; 6], IkeSa, IkeSa) {
        let (mut mode, first) = MainMode::start(group);
        let (mut responder, second) = mode.respond(&first);
        let third = mode.at_member(&second);
        let fourth = mode.at_server(&mut responder, &third);
        let fifth = mode.at_member(&fourth);
        let (sixth, server) = mode.finish(&mut responder, &fifth);
        let member = mode.end(&sixth);
        ([first, second, third, fourth, fifth, sixth], member, server)
    }
}

/// A key server and what it stored.
pub struct Server {
    /// The engine.
    pub engine: KeyServer,
    provider: Arc<dyn Provider>,
    /// Rows written, in order.
    pub rows: Vec<Row>,
    /// Fan-outs wanted.
    pub fanouts: Vec<(Bytes, Vec<(SocketAddr, SocketAddr)>)>,
    /// Single datagrams wanted.
    pub transmits: Vec<Datagram>,
}

impl Server {
    /// From stored rows; its signing key is ready.
    pub fn new(rows: Vec<Row>) -> Server {
        let provider = default_provider();
        let engine = KeyServer::new(settings(), rows, NOW, Box::new(Random(Arc::clone(&provider))));
        let engine = engine.unwrap_or_else(|error| panic!("{error}"));
        let mut server =
            Server { engine, provider, rows: Vec::new(), fanouts: Vec::new(), transmits: Vec::new() };
        server.drain();
        server
    }

    /// With `members` registered.
    pub fn with_members(members: u32) -> Server {
        let mut rows: Vec<Row> = (0..members).map(member_row).collect();
        rows.extend(Server::new(Vec::new()).rows);
        Server::new(rows)
    }

    /// Tells it one thing and carries its wishes out.
    pub fn handle(&mut self, input: Input) {
        self.engine.handle(NOW, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Transmit(datagram) => self.transmits.push(datagram),
                Output::Multicast { .. } => {}
                Output::Fanout { octets, to } => self.fanouts.push((octets, to)),
                Output::Persist(changes) => {
                    self.rows.extend(changes.into_iter().filter_map(|change| match change {
                        Change::Put(row) => Some(row),
                        Change::Remove { .. } => None,
                    }));
                }
                Output::Job(request) => {
                    let done = run(self.provider.as_ref(), request.job);
                    self.engine.handle(NOW, Input::Job(JobResult { id: request.id, done }));
                }
                Output::Event(_) | Output::Reply { .. } => {}
            }
        }
    }

    /// Replaces the group's TEK; the datagram that goes out.
    pub fn rekey(&mut self) -> Bytes {
        self.fanouts.clear();
        let command = Command::Rekey { group: "g1".to_owned(), tek: true, kek: false };
        self.handle(Input::Command { ticket: 1, command });
        self.fanouts.first().map(|(octets, _)| octets.clone()).expect("a push")
    }

    /// SPI, last SEQ and key of the group's KEK.
    pub fn kek(&self) -> (KekSpi, SeqNumber, SecretBytes) {
        let kek = self.engine.groups()["g1"].kek().expect("a KEK");
        (kek.spi, kek.seq, kek.key.clone())
    }
}

/// The stored record of member `index`.
pub fn member_row(index: u32) -> Row {
    let peer = address(index);
    let IpAddr::V4(ip) = peer.ip() else { panic!("members are IPv4") };
    let data = hex::encode(ip.octets());
    let body = format!(
        r#"{{"version":1,"id_type":1,"data":"{data}","protocol":0,"port":0,"peer":"{peer}","local":"{SERVER}","gateway":"gw","sids":[]}}"#
    );
    Row { kind: Kind::Member, key: format!("g1/1:{data}"), body: SecretBytes::new(body.into_bytes()) }
}
