//! What the tests of the engine share: a VPN with keys, a server's hand, a clock.

pub mod site;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::ids::{GroupId, KekSpi, SenderId, SeqNumber, Spi};
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Delete, Endpoint, LkhDownload};
use gdoi_proto::policy::{
    AckRequest, AddressPreservation, Carriage, Direction, Encapsulation, GroupPolicy, KekCipher, KekKey,
    KekPolicy, KeySet, SenderIds, SignatureAlgorithm, SignatureHash, TekCipher, TekKey, TekPolicy,
};
use gdoi_proto::registry::{Doi, IdType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{Provider, Signer, default_provider, run};
use ike::identity::IdentityRule;
use ike::io::{Datagram, Entropy, Instant, JobRequest, Now};
use ike::phase1::{Credentials, Mode, PeerPolicy};
use ike::protect::push::{KekCipherKey, PushContent, Unsigned};

use super::io::Output;
use super::pull::Download;
use super::settings::{GatewaySettings, VpnSettings};
use super::terms::Age;
use super::vpn::Vpn;
use super::{Cx, Outputs};

/// Entropy that always says the same.
pub struct Fixed(pub u8);

impl Entropy for Fixed {
    fn fill(&mut self, out: &mut [u8]) {
        out.fill(self.0);
    }
}

/// Where PUSHes come from.
pub const SERVER: &str = "192.0.2.1:848";
/// Our socket.
pub const MEMBER: &str = "192.0.2.10:848";

/// A policy for negotiations that never happen.
pub fn peer_policy() -> PeerPolicy {
    PeerPolicy {
        mode: Mode::Main,
        offers: Vec::new(),
        credentials: Credentials::pre_shared(SecretBytes::copy(b"not used in these tests")),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    }
}

/// The settings of the only VPN.
pub fn vpn_settings() -> VpnSettings {
    VpnSettings {
        name: "v".to_owned(),
        gateway: "servers".to_owned(),
        group: GroupId::number(1),
        ..VpnSettings::default()
    }
}

/// A TEK policy with 172.16.0.0/12 on both sides.
pub fn tek(spi: u32, lifetime_seconds: u32) -> TekPolicy {
    let subnet = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![172, 16, 0, 0, 255, 240, 0, 0] };
    TekPolicy {
        spi: Spi(spi),
        ip_protocol: 0,
        source: subnet.clone(),
        destination: subnet,
        cipher: TekCipher::AesGcm { key_octets: 16, icv_octets: 16 },
        lifetime_seconds,
        lifetime_kilobytes: None,
        encapsulation: Encapsulation::Tunnel,
        address_preservation: AddressPreservation::Both,
        direction: Direction::Symmetric,
        delay_window: None,
    }
}

/// The key of that TEK.
pub fn tek_key(spi: u32) -> TekKey {
    TekKey { encryption: SecretBytes::copy(&[spi as u8; 20]), integrity: None }
}

/// A KEK policy.
pub fn kek(spi: u8, lifetime_seconds: u32) -> KekPolicy {
    let endpoint = Endpoint { id_type: IdType::Ipv4Addr, port: 848, data: vec![192, 0, 2, 1] };
    KekPolicy {
        spi: KekSpi([spi; 16]),
        source: endpoint.clone(),
        destination: endpoint,
        cipher: KekCipher::AesCbc { key_octets: 16 },
        lifetime_seconds,
        signature_hash: SignatureHash::Sha256,
        signature: SignatureAlgorithm::Ecdsa256,
        signature_key_bits: Some(256),
        acknowledgement: Some(AckRequest::KekSha256),
        lkh: false,
    }
}

/// A whole policy with ATD 30 and DTD 45.
pub fn policy(kek: Option<KekPolicy>, teks: Vec<TekPolicy>) -> GroupPolicy {
    GroupPolicy { kek, activation_delay: 30, deactivation_delay: Some(45), teks }
}

/// A VPN, its clock and its server's signing key.
pub struct Bench {
    /// The VPN.
    pub vpn: Vpn,
    /// Both clocks.
    pub now: Now,
    /// Wishes not looked at yet.
    pub out: Outputs,
    /// What happened to keys, one word and SPI each, in order.
    pub told: Vec<String>,
    /// Events.
    pub events: Vec<Event>,
    /// Datagrams sent.
    pub sent: Vec<Datagram>,
    /// Keys of a tree that the next registration brings instead of a flat KEK.
    pub download: Option<LkhDownload>,
    /// Jobs wait for [`Bench::run_held_jobs`].
    pub hold_jobs: bool,
    /// Every octet of randomness.
    pub entropy: u8,
    held: Vec<JobRequest>,
    sid: u32,
    provider: Arc<dyn Provider>,
    signer: Arc<dyn Signer>,
}

impl Bench {
    /// A VPN that knows nothing.
    pub fn new() -> Bench {
        let provider = default_provider();
        let algorithm = SignatureAlgorithm::Ecdsa256;
        let pkcs8 = provider.generate_signing_key(algorithm, 256).expect("a key");
        let signer = provider.signer(algorithm, &pkcs8).expect("a signer");
        let gateway = GatewaySettings {
            name: "servers".to_owned(),
            servers: vec![SERVER.parse().expect("an address")],
            policies: vec![peer_policy()],
            ..GatewaySettings::default()
        };
        Bench {
            vpn: Vpn::new(vpn_settings(), &gateway),
            now: Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 },
            out: Outputs::default(),
            told: Vec::new(),
            events: Vec::new(),
            sent: Vec::new(),
            download: None,
            hold_jobs: false,
            entropy: 0,
            held: Vec::new(),
            sid: 6,
            provider,
            signer,
        }
    }

    /// Runs a step and carries out what it wants, jobs included.
    pub fn step<T>(&mut self, run_step: impl FnOnce(&mut Vpn, &mut Cx<'_>) -> T) -> T {
        let mut entropy = Fixed(self.entropy);
        let result =
            run_step(&mut self.vpn, &mut Cx { now: self.now, entropy: &mut entropy, out: &mut self.out });
        while let Some(output) = self.out.queue.pop_front() {
            match output {
                Output::Install(install) => self.told.push(format!("install {}", install.spi().0)),
                Output::Activate { spi, .. } => self.told.push(format!("activate {}", spi.0)),
                Output::SenderIds { spi, sender_ids, .. } => {
                    let sids: Vec<String> = sender_ids.values.iter().map(|sid| sid.0.to_string()).collect();
                    self.told.push(format!("sids {} of {}", sids.join("+"), spi.0));
                }
                Output::Remove { spi, .. } => self.told.push(format!("remove {}", spi.0)),
                Output::Event(event) => self.events.push(event),
                Output::Transmit(datagram) => self.sent.push(datagram),
                Output::Job(request) if self.hold_jobs => self.held.push(request),
                Output::Job(request) => {
                    let done = run(self.provider.as_ref(), request.job);
                    let mut cx = Cx { now: self.now, entropy: &mut entropy, out: &mut self.out };
                    self.vpn.on_verified(request.id, done, &mut cx);
                }
                Output::Reply { .. } | Output::Route { .. } | Output::Listen { .. } => {}
            }
        }
        result
    }

    /// Runs the jobs that wait, in the order they were asked for; how many.
    pub fn run_held_jobs(&mut self) -> usize {
        let held = std::mem::take(&mut self.held);
        let count = held.len();
        for request in held {
            let done = run(self.provider.as_ref(), request.job);
            self.step(|vpn, cx| vpn.on_verified(request.id, done, cx));
        }
        count
    }

    /// Lets time pass, stopping at every timer; true when the VPN wanted to register.
    pub fn pass(&mut self, seconds: u64) -> bool {
        let end = self.now.at + Duration::from_secs(seconds);
        let mut registers = false;
        while let Some(wakeup) = self.vpn.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.now.at = wakeup.at.max(self.now.at);
            registers |= self.step(|vpn, cx| vpn.on_timeout(cx)).is_some();
        }
        self.now.at = end;
        registers
    }

    /// What was told since the last call.
    pub fn take_told(&mut self) -> String {
        std::mem::take(&mut self.told).join(", ")
    }

    /// True when such an event happened.
    pub fn happened(&self, name: &str) -> bool {
        self.events.iter().any(|event| event.name() == name)
    }

    /// The keys of a policy.
    pub fn keys(&self, policy: &GroupPolicy, sender: bool) -> KeySet {
        KeySet {
            kek: policy.kek.as_ref().map(|kek| KekKey {
                iv: vec![1; 16],
                key: SecretBytes::copy(&[kek.spi.0[0]; 16]),
                public_key: Some(self.signer.public_key().to_vec()),
            }),
            teks: policy.teks.iter().map(|tek| (tek.spi, tek_key(tek.spi.0))).collect(),
            sender_ids: sender.then(|| SenderIds { bits: 16, values: vec![SenderId(7)] }),
            ..KeySet::default()
        }
    }

    /// Registers with these keys.
    pub fn registered(&mut self, policy: GroupPolicy, seq: u32) -> Result<(), String> {
        self.begin();
        self.download(policy, seq)
    }

    /// Begins a registration.
    pub fn begin(&mut self) {
        self.step(|vpn, cx| vpn.begin(cx));
    }

    /// Message 4 of the registration under way brings these keys.
    pub fn download(&mut self, policy: GroupPolicy, seq: u32) -> Result<(), String> {
        let mut keys = self.keys(&policy, true);
        keys.lkh_download = self.download.take();
        self.sid += 1;
        keys.sender_ids = Some(SenderIds { bits: 16, values: vec![SenderId(self.sid)] });
        let local = MEMBER.parse::<SocketAddr>().expect("an address").ip();
        self.step(|vpn, cx| {
            vpn.on_keys(Download { policy, keys, seq: SeqNumber(seq), age: Age::default() }, local, cx)
        })
    }

    /// A PUSH under the KEK `spi`.
    pub fn push(&self, spi: u8, content: &PushContent) -> Bytes {
        let unsigned = Unsigned::new(KekSpi([spi; 16]), content, 64);
        let signature =
            self.signer.sign(SignatureHash::Sha256, &unsigned.signature_input(false)).expect("a signature");
        unsigned.seal(&cipher(spi), &signature)
    }

    /// A PUSH with new keys.
    pub fn push_keys(&self, spi: u8, seq: u32, policy: &GroupPolicy) -> Bytes {
        let kd = self.keys(policy, false).write(policy);
        let keys = Some((policy.write(Carriage::Push), kd));
        self.push(spi, &PushContent { seq: SeqNumber(seq), deletes: Vec::new(), keys })
    }

    /// A PUSH that deletes one SPI.
    pub fn push_delete(&self, spi: u8, seq: u32, protocol: u8, deleted: &[u8]) -> Bytes {
        let delete =
            Delete { doi: Doi::Gdoi, protocol, spi_size: deleted.len() as u8, spis: vec![deleted.to_vec()] };
        self.push(spi, &PushContent { seq: SeqNumber(seq), deletes: vec![delete], keys: None })
    }

    /// Hands a PUSH over.
    pub fn receive(&mut self, octets: &Bytes) {
        self.receive_at(MEMBER.parse().expect("an address"), octets);
    }

    /// The same where it came to.
    pub fn receive_at(&mut self, local: SocketAddr, octets: &Bytes) {
        let header = gdoi_proto::header::Header::decode(octets).expect("a header");
        let datagram = Datagram { local, peer: SERVER.parse().expect("an address"), octets: octets.clone() };
        self.step(|vpn, cx| vpn.on_push(&datagram, &header, cx));
    }
}

/// The cipher of the KEK `spi`.
pub fn cipher(spi: u8) -> KekCipherKey {
    let key = CipherKey::new(Cipher::Aes128Cbc, SecretBytes::copy(&[spi; 16])).expect("16 octets");
    KekCipherKey { spi: KekSpi([spi; 16]), key, iv: [1; 16] }
}
