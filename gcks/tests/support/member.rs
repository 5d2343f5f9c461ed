//! A member played by hand on a socket of its own: phase 1, the four messages of a PULL, PUSHes and acknowledgements. It
//! shares the codecs with the daemon and none of the engines.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{GroupId, KekSpi, SenderId, SeqNumber, Spi};
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KekKey, KekPolicy, KeySet};
use gdoi_proto::registry::ExchangeType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{Provider, Random, Verification, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Entropy, Instant, Now};
use ike::phase1::{Credentials, Ends, Initiator, Mode, NONCE_LEN, Offer, PeerPolicy, Refusal, Step};
use ike::protect::OpenError;
use ike::protect::ack::AckKey;
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::protect::push::{self, KekCipherKey, Unverified};
use ike::sa::IkeSa;

/// How often a waiting member looks whether it is still worth waiting.
const LOOK: Duration = Duration::from_millis(5);

/// For about 10 s of looking in vain.
pub fn patience() -> impl Fn() -> bool {
    let left = Cell::new(2000_u32);
    move || left.replace(left.get().saturating_sub(1)) > 0
}

/// Why a registration stopped.
#[derive(Debug, PartialEq)]
pub enum Stopped {
    /// No answer while it was worth waiting.
    Silence,
    /// Refused in a protected message.
    Notified(Vec<Informational>),
}

/// A rekey SA as a member holds it.
#[derive(Debug, Clone)]
pub struct Kek {
    pub policy: KekPolicy,
    pub cipher: KekCipherKey,
    pub key: SecretBytes,
    pub public_key: Vec<u8>,
    /// Last number taken.
    pub last: SeqNumber,
}

impl Kek {
    fn new(policy: KekPolicy, key: KekKey, last: SeqNumber) -> Kek {
        let cipher = Cipher::with_key_len(key.key.len()).expect("AES");
        let cipher = KekCipherKey {
            spi: policy.spi,
            iv: key.iv.try_into().expect("16 octets"),
            key: CipherKey::new(cipher, key.key.clone()).expect("fits"),
        };
        Kek { policy, cipher, key: key.key, public_key: key.public_key.expect("the signing key"), last }
    }

    /// The number of a PUSH under this KEK.
    pub fn number(&self, octets: &Bytes) -> SeqNumber {
        self.open(octets, SeqNumber(0)).expect("a number above 0").seq()
    }

    fn open(&self, octets: &Bytes, last: SeqNumber) -> Option<Unverified> {
        let header = Header::decode(octets).unwrap();
        assert_eq!(KekSpi::from(header.cookies), self.policy.spi);
        match push::open(&self.cipher, last, &header, octets, Dialect::STRICT) {
            Ok(opened) => Some(opened),
            Err(OpenError::Sequence { .. }) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// What message 4 gave.
pub struct Registration {
    pub kek: Kek,
    pub teks: BTreeMap<Spi, Vec<u8>>,
    pub sids: Vec<SenderId>,
}

/// What a PUSH gave.
pub struct Taken {
    pub ack: Bytes,
    pub teks: BTreeMap<Spi, Vec<u8>>,
    /// The successor of the KEK that protected it.
    pub kek: Option<Kek>,
}

/// A member with a socket of its own.
pub struct Member {
    socket: UdpSocket,
    server: SocketAddr,
    provider: Arc<dyn Provider>,
    pub pre_shared_key: String,
    /// Copies of each message of phase 1 after the first.
    pub repeats: u32,
    /// PUSHes that came while it waited for something else.
    pub pushes: VecDeque<Bytes>,
}

impl Member {
    /// At an address of its own; port 0 lets the system choose.
    pub fn at(address: SocketAddr, server: SocketAddr) -> Member {
        let socket = UdpSocket::bind(address).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        let provider = default_provider();
        let pre_shared_key = super::KEY.to_owned();
        Member { socket, server, provider, pre_shared_key, repeats: 0, pushes: VecDeque::new() }
    }

    pub fn new(server: SocketAddr) -> Member {
        Member::at(SocketAddr::new(server.ip(), 0), server)
    }

    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    pub fn send(&self, octets: &[u8]) {
        self.socket.send_to(octets, self.server).unwrap();
    }

    /// A datagram that is already there.
    pub fn look_now(&self) -> Option<(Header, Bytes)> {
        self.socket.set_nonblocking(true).unwrap();
        let found = self.look();
        self.socket.set_nonblocking(false).unwrap();
        found
    }

    /// The next datagram, none within 5 ms.
    pub fn look(&self) -> Option<(Header, Bytes)> {
        let mut buffer = vec![0; 65_536];
        let (length, from) = self.socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, self.server);
        buffer.truncate(length);
        Some((Header::decode(&buffer).unwrap(), buffer.into()))
    }

    /// The next datagram that is no PUSH, while `patient`.
    fn receive(&mut self, patient: &dyn Fn() -> bool) -> Result<(Header, Bytes), Stopped> {
        while patient() {
            match self.look() {
                Some((header, octets)) if header.exchange == ExchangeType::GroupkeyPush => {
                    self.pushes.push_back(octets);
                }
                Some(answer) => return Ok(answer),
                None => {}
            }
        }
        Err(Stopped::Silence)
    }

    /// The next PUSH within 10 s.
    pub fn push(&mut self) -> Bytes {
        for _ in 0..2000 {
            if let Some(octets) = self.pushes.pop_front() {
                return octets;
            }
            if let Some((header, octets)) = self.look() {
                assert_eq!(header.exchange, ExchangeType::GroupkeyPush);
                return octets;
            }
        }
        panic!("no push within 10 s");
    }

    fn policy(&self) -> PeerPolicy {
        let suite = Suite {
            cipher: Cipher::Aes256Cbc,
            hash: Hash::Sha256,
            group: DhGroup::Ecp256,
            method: AuthMethod::PreSharedKey,
        };
        PeerPolicy {
            mode: Mode::Main,
            offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
            credentials: Credentials::pre_shared(SecretBytes::copy(self.pre_shared_key.as_bytes())),
            local_identity: None,
            remote: vec![IdentityRule::PeerAddress],
            nat_traversal: false,
            fragmentation: false,
            dialect: Dialect::STRICT,
        }
    }

    fn phase1(&mut self, patient: &dyn Fn() -> bool) -> Result<IkeSa, Stopped> {
        let ends = Ends { local: self.address(), peer: self.server };
        let mut random = Random(self.provider.clone());
        let now = Now { at: Instant(1), unix_seconds: 0 };
        let (mut initiator, mut todo) = Initiator::start(self.policy(), ends, false, now.at, &mut random);
        loop {
            for step in std::mem::take(&mut todo) {
                match step {
                    Step::Send(octets) => (0..=self.repeats).for_each(|_| self.send(&octets)),
                    Step::Run(job) => {
                        let done = run(self.provider.as_ref(), job);
                        todo.extend(initiator.on_done(now, done, &mut random).unwrap());
                    }
                    Step::Established(done) => return Ok(done.sa),
                }
            }
            if todo.is_empty() {
                let (header, octets) = self.receive(patient)?;
                // An answer to an earlier attempt may still be on its way.
                if header.cookies.initiator == initiator.cookie() {
                    match initiator.on_message(now, &header, &octets, &mut random) {
                        Ok(steps) => todo.extend(steps),
                        // A copy of what was answered.
                        Err(Refusal::Dropped(_)) => {}
                        Err(refusal) => panic!("{refusal}"),
                    }
                }
            }
        }
    }

    /// Registers with group 1 within about 10 s.
    pub fn register(&mut self) -> Registration {
        self.register_with(1, &patience()).expect("a registration")
    }

    /// Registers while `patient`; every message is sent once.
    pub fn register_with(&mut self, group: u32, patient: &dyn Fn() -> bool) -> Result<Registration, Stopped> {
        let mut sa = self.phase1(patient)?;
        let mut random = Random(self.provider.clone());
        let mid = sa.fresh_message_id(&mut random);
        let mut exchange = Exchange::new(&sa, ExchangeType::GroupkeyPull, mid);
        let ni: [u8; NONCE_LEN] = random.array();
        let GroupId { id_type, data } = GroupId::number(group);
        let id = Identification { id_type, protocol: 0, port: 0, data };
        self.send(&exchange.seal(&sa, &[], &[Payload::Nonce(ni.to_vec()), Payload::Id(id)]));
        let (header, octets) = self.receive(patient)?;
        if header.exchange == ExchangeType::Informational {
            let said = notify::open(&mut sa, &header, &octets).unwrap().into_inner();
            return Err(Stopped::Notified(said));
        }
        let opened = exchange.open(&sa, &header, &octets, &[&ni]).unwrap().into_inner();
        let [Payload::Nonce(nr), Payload::GdoiSa(policy)] = &opened[..] else { panic!("{opened:?}") };
        let policy = GroupPolicy::read(policy, Carriage::Pull).unwrap();
        self.send(&exchange.seal(&sa, &[&ni, nr], &[]));
        let (header, octets) = self.receive(patient)?;
        let opened = exchange.open(&sa, &header, &octets, &[&ni, nr]).unwrap().into_inner();
        let [Payload::Seq(seq), Payload::Kd(kd)] = &opened[..] else { panic!("{opened:?}") };
        let keys = KeySet::read(kd, &policy, Carriage::Pull).unwrap();
        Ok(Registration {
            kek: Kek::new(policy.kek.unwrap(), keys.kek.unwrap(), *seq),
            teks: keys.teks.iter().map(|(spi, key)| (*spi, key.encryption.expose().to_vec())).collect(),
            sids: keys.sender_ids.map(|sids| sids.values).unwrap_or_default(),
        })
    }

    /// Opens a PUSH under `kek` and checks SEQ, signature and content; none when its number is not above the last.
    pub fn take(&self, kek: &mut Kek, octets: &Bytes) -> Option<Taken> {
        let opened = kek.open(octets, kek.last)?;
        let check = Verification {
            algorithm: kek.policy.signature,
            hash: kek.policy.signature_hash,
            public_key: kek.public_key.clone().into(),
            input: opened.signature_input.clone(),
            signature: opened.signature.clone(),
            or_input: None,
            bare_digest: false,
        };
        self.provider.verify(&check).expect("a good signature");
        let content = opened.verified().into_inner();
        assert_eq!(Some(content.seq), kek.last.next(), "a gap: the member would have to register again");
        kek.last = content.seq;
        let request = kek.policy.acknowledgement.expect("acknowledgements are asked for");
        let ack = AckKey::derive(request, &kek.key, kek.policy.spi).seal(
            kek.policy.spi,
            content.seq,
            self.address().ip(),
        );
        let (sa, kd) = content.keys.expect("keys");
        let policy = GroupPolicy::read(&sa, Carriage::Push).unwrap();
        let keys = KeySet::read(&kd, &policy, Carriage::Push).unwrap();
        Some(Taken {
            ack,
            teks: keys.teks.iter().map(|(spi, key)| (*spi, key.encryption.expose().to_vec())).collect(),
            kek: policy.kek.zip(keys.kek).map(|(policy, key)| Kek::new(policy, key, SeqNumber(0))),
        })
    }
}
