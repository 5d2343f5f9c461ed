//! The key server's engine against a member played by hand: registration, rekeys, acknowledgements, expiry, refusals,
//! and a server that dies between any two writes.

#[path = "engine/changes.rs"]
mod changes;
mod common;
#[path = "engine/explains.rs"]
mod explains;
#[path = "engine/memberships.rs"]
mod memberships;
#[path = "engine/multicast.rs"]
mod multicast;
#[path = "engine/pacing.rs"]
mod pacing;
#[path = "engine/rekeys.rs"]
mod rekeys;
#[cfg(feature = "daemon")]
#[path = "engine/storms.rs"]
mod storms;
#[path = "engine/torn.rs"]
mod torn;
#[path = "engine/trees.rs"]
mod trees;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gcks::engine::KeyServer;
use gcks::engine::durable::{Change, Kind, Row};
use gcks::engine::io::{Command, Input, Outcome, Output};
use gcks::engine::settings::{Acknowledgement, SaSettings, Settings};
use gdoi_proto::header::Header;
use gdoi_proto::ids::{GroupId, KekSpi, SenderId, SeqNumber, Spi};
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{
    Carriage, GroupPolicy, KekPolicy, KeySet, SignatureAlgorithm, SignatureHash, TekCipher,
};
use gdoi_proto::registry::{ExchangeType, IdType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{CryptoError, Done, Job, Provider, Random, Verification, default_provider, run};
use ike::io::{Datagram, Entropy, Instant, JobRequest, JobResult, Machine, Now};
use ike::phase1::{Ends, Initiator, NONCE_LEN, Step};
use ike::protect::ack::AckKey;
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::protect::push::{self, KekCipherKey};
use ike::sa::IkeSa;

use common::{SERVER, peer_policy, settings};

/// The server with its stored rows and the datagrams it sent.
struct Bench {
    provider: Arc<dyn Provider>,
    now: Now,
    /// Wall clock at [`Instant`] zero.
    epoch: u64,
    server: KeyServer,
    rows: BTreeMap<(Kind, String), Row>,
    /// Everything that was written, in order.
    batches: Vec<Vec<Change>>,
    sent: VecDeque<Datagram>,
    events: Vec<Event>,
    replies: Vec<Result<(String, Option<u32>), String>>,
    /// Batches until the server dies; what it wants after that is lost.
    lives_for: Option<u32>,
    dead: bool,
    settings: Settings,
    /// Jobs that wait.
    hold: fn(&Job) -> bool,
    /// Jobs of the signing key that fail from now on.
    failing: u32,
    held: Vec<JobRequest>,
    /// What went to multicast groups.
    multicasts: Vec<(Bytes, SocketAddr)>,
}

impl Bench {
    fn new() -> Bench {
        let mut bench = Bench::with(settings());
        bench.drain();
        bench
    }

    /// A server that was not listened to yet.
    fn with(settings: Settings) -> Bench {
        let provider = default_provider();
        let now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
        let server = KeyServer::new(settings.clone(), Vec::new(), now, Box::new(Random(provider.clone())))
            .expect("no rows");
        Bench {
            provider,
            now,
            epoch: now.unix_seconds - 1,
            server,
            rows: BTreeMap::new(),
            batches: Vec::new(),
            sent: VecDeque::new(),
            events: Vec::new(),
            replies: Vec::new(),
            lives_for: None,
            dead: false,
            settings,
            hold: |_| false,
            failing: 0,
            held: Vec::new(),
            multicasts: Vec::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.server.poll() {
            if self.dead {
                continue;
            }
            match output {
                Output::Transmit(datagram) => self.sent.push_back(datagram),
                Output::Multicast { octets, channel } => self.multicasts.push((octets, channel.group)),
                Output::Fanout { octets, to } => {
                    for (local, peer) in to {
                        self.sent.push_back(Datagram { local, peer, octets: octets.clone() });
                    }
                }
                Output::Persist(changes) => self.persist(changes),
                Output::Job(request) if (self.hold)(&request.job) => self.held.push(request),
                Output::Job(request) => {
                    let error = CryptoError::Library("told to fail");
                    let done = match request.job {
                        Job::Sign { .. } if self.failing > 0 => Done::Signed(Err(error)),
                        Job::MakeSigner { .. } | Job::LoadSigner { .. } if self.failing > 0 => {
                            Done::Signer(Err(error))
                        }
                        job => run(self.provider.as_ref(), job),
                    };
                    if matches!(done, Done::Signed(Err(_)) | Done::Signer(Err(_))) {
                        self.failing -= 1;
                    }
                    self.server.handle(self.now, Input::Job(JobResult { id: request.id, done }));
                }
                Output::Event(event) => self.events.push(event),
                Output::Reply { result, .. } => {
                    let told = |outcome: Outcome| (outcome.text, outcome.push.map(|(_, seq)| seq.0));
                    self.replies.push(result.map(told));
                }
            }
        }
    }

    fn persist(&mut self, changes: Vec<Change>) {
        self.batches.push(changes.clone());
        for change in changes {
            match change {
                Change::Put(row) => drop(self.rows.insert((row.kind, row.key.clone()), row)),
                Change::Remove { kind, key } => drop(self.rows.remove(&(kind, key))),
            }
        }
        if let Some(lives_for) = &mut self.lives_for {
            *lives_for -= 1;
            self.dead = *lives_for == 0;
        }
    }

    /// The server dies and starts again from what was written.
    fn restart(&mut self) {
        self.dead = false;
        self.lives_for = None;
        self.sent.clear();
        let rows = self.rows.values().cloned().collect();
        let entropy = Box::new(Random(self.provider.clone()));
        self.server = KeyServer::new(self.settings.clone(), rows, self.now, entropy).expect("our own rows");
        self.drain();
    }

    fn tell(&mut self, from: SocketAddr, octets: Bytes) {
        self.server.handle(self.now, Input::Datagram(Datagram { local: SERVER, peer: from, octets }));
        self.drain();
    }

    /// What was sent to `address`, in order.
    fn received(&mut self, address: SocketAddr) -> Vec<Bytes> {
        let (mine, others): (Vec<_>, Vec<_>) =
            self.sent.drain(..).partition(|datagram| datagram.peer == address);
        self.sent = others.into();
        mine.into_iter().map(|datagram| datagram.octets).collect()
    }

    /// Lets time pass, stopping at each timer of the server.
    fn pass(&mut self, time: Duration) {
        let end = self.now.at + time;
        while let Some(wakeup) = self.server.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.set(wakeup.at.max(self.now.at));
            self.server.handle(self.now, Input::Timeout);
            self.drain();
        }
        self.set(end);
    }

    fn set(&mut self, at: Instant) {
        self.now = Now { at, unix_seconds: self.epoch + at.0 / 1_000_000 };
    }

    fn command(&mut self, command: Command) -> Result<(String, Option<u32>), String> {
        self.server.handle(self.now, Input::Command { ticket: 1, command });
        self.drain();
        self.replies.pop().expect("every command is answered")
    }

    fn rekey(&mut self, kek: bool) -> u32 {
        let command = Command::Rekey { group: "g1".to_owned(), tek: true, kek };
        self.command(command).expect("a rekey").1.expect("members to tell")
    }

    fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }

    fn members(&self) -> usize {
        self.server.groups()["g1"].members().count()
    }

    fn seq(&self) -> (KekSpi, SeqNumber) {
        let kek = self.server.groups()["g1"].kek().expect("a KEK");
        (kek.spi, kek.seq)
    }
}

/// A member: what it was given.
struct Member {
    address: SocketAddr,
    sa: IkeSa,
    kek: KekPolicy,
    cipher: KekCipherKey,
    key: SecretBytes,
    public_key: Vec<u8>,
    last: SeqNumber,
    teks: Vec<(Spi, Vec<u8>)>,
    /// Lives it was told.
    tek_lives: Vec<u32>,
    /// Seconds after which it sends under what is newest.
    activation: u16,
    sids: Vec<SenderId>,
}

/// Why a hand-played registration stopped.
#[derive(Debug, PartialEq)]
enum Stopped {
    Silence,
    Notified(Vec<Informational>),
}

fn phase1(bench: &mut Bench, address: SocketAddr) -> Option<IkeSa> {
    let mut random = Random(bench.provider.clone());
    let (mut initiator, steps) = Initiator::start(
        peer_policy(),
        Ends { local: address, peer: SERVER },
        false,
        bench.now.at,
        &mut random,
    );
    let mut todo: VecDeque<Step> = steps.into();
    while let Some(step) = todo.pop_front() {
        match step {
            Step::Send(octets) => bench.tell(address, octets),
            Step::Run(job) => {
                let done = run(bench.provider.as_ref(), job);
                todo.extend(initiator.on_done(bench.now, done, &mut random).expect("our own job"));
            }
            Step::Established(done) => return Some(done.sa),
        }
        for octets in bench.received(address) {
            let header = Header::decode(&octets).expect("the server's header");
            if header.cookies.initiator == initiator.cookie() {
                todo.extend(
                    initiator
                        .on_message(bench.now, &header, &octets, &mut random)
                        .expect("the server's message"),
                );
            }
        }
    }
    None
}

fn register(bench: &mut Bench, address: SocketAddr, group: GroupId) -> Result<Member, Stopped> {
    register_around(bench, address, group, |_| {})
}

/// Registers; `between` happens after message 2 and before message 3.
fn register_around(
    bench: &mut Bench,
    address: SocketAddr,
    group: GroupId,
    between: impl FnOnce(&mut Bench),
) -> Result<Member, Stopped> {
    let mut sa = phase1(bench, address).expect("phase 1");
    let mut random = Random(bench.provider.clone());
    let mid = sa.fresh_message_id(&mut random);
    let mut exchange = Exchange::new(&sa, ExchangeType::GroupkeyPull, mid);
    let ni: [u8; NONCE_LEN] = random.array();
    let id = Identification { id_type: group.id_type, protocol: 0, port: 0, data: group.data };
    let first = exchange.seal(&sa, &[], &[Payload::Nonce(ni.to_vec()), Payload::Id(id)]);
    bench.tell(address, first.clone());
    let answer = only(bench.received(address))?;
    let header = Header::decode(&answer).expect("a header");
    if header.exchange == ExchangeType::Informational {
        let said = notify::open(&mut sa, &header, &answer).expect("protected").into_inner();
        return Err(Stopped::Notified(said));
    }
    bench.tell(address, first);
    assert_eq!(
        only(bench.received(address)),
        Ok(answer.clone()),
        "a repeated message 1 gets the same octets"
    );
    let opened = exchange.open(&sa, &header, &answer, &[&ni]).expect("message 2").into_inner();
    let [Payload::Nonce(nr), Payload::GdoiSa(policy)] = &opened[..] else { panic!("{opened:?}") };
    let policy = GroupPolicy::read(policy, Carriage::Pull).expect("a policy");
    between(bench);
    let third = exchange.seal(&sa, &[&ni, nr], &[]);
    bench.tell(address, third.clone());
    let mut received = bench.received(address);
    let answer = if received.is_empty() { return Err(Stopped::Silence) } else { received.remove(0) };
    bench.tell(address, third);
    assert_eq!(
        only(bench.received(address)),
        Ok(answer.clone()),
        "a repeated message 3 gets the same octets"
    );
    // PUSHes may follow message 4.
    let pushes = received.into_iter().map(|octets| Datagram { local: SERVER, peer: address, octets });
    bench.sent.extend(pushes);
    let header = Header::decode(&answer).expect("a header");
    let opened = exchange.open(&sa, &header, &answer, &[&ni, nr]).expect("message 4").into_inner();
    let [Payload::Seq(seq), Payload::Kd(kd)] = &opened[..] else { panic!("{opened:?}") };
    let keys = KeySet::read(kd, &policy, Carriage::Pull).expect("keys");
    let kek = policy.kek.expect("a rekey SA");
    let kek_key = keys.kek.expect("a KEK");
    Ok(Member {
        address,
        sa,
        cipher: cipher(kek.spi, &kek_key.iv, &kek_key.key),
        kek,
        key: kek_key.key,
        public_key: kek_key.public_key.expect("the signing key"),
        last: *seq,
        activation: policy.activation_delay,
        tek_lives: policy.teks.iter().map(|tek| tek.lifetime_seconds).collect(),
        teks: keys.teks.iter().map(|(spi, key)| (*spi, key.encryption.expose().to_vec())).collect(),
        sids: keys.sender_ids.expect("SIDs").values,
    })
}

fn cipher(spi: KekSpi, iv: &[u8], key: &SecretBytes) -> KekCipherKey {
    let cipher = Cipher::with_key_len(key.len()).expect("AES");
    KekCipherKey {
        spi,
        iv: iv.try_into().expect("16 octets"),
        key: CipherKey::new(cipher, key.clone()).expect("fits"),
    }
}

fn only(mut received: Vec<Bytes>) -> Result<Bytes, Stopped> {
    match received.len() {
        0 => Err(Stopped::Silence),
        _ => Ok(received.remove(0)),
    }
}

impl Member {
    /// Takes a PUSH: decrypts, checks SEQ and signature, applies keys; the acknowledgement to send.
    fn take(&mut self, bench: &Bench, octets: &Bytes) -> Bytes {
        let header = Header::decode(octets).expect("a header");
        let opened =
            push::open(&self.cipher, self.last, &header, octets, Dialect::STRICT).expect("a good push");
        let check = Verification {
            algorithm: self.kek.signature,
            hash: self.kek.signature_hash,
            public_key: self.public_key.clone().into(),
            input: opened.signature_input.clone(),
            signature: opened.signature.clone(),
            or_input: None,
            bare_digest: false,
        };
        bench.provider.verify(&check).expect("a good signature");
        let content = opened.verified().into_inner();
        assert_eq!(Some(content.seq), self.last.next(), "no SEQ is skipped");
        self.last = content.seq;
        let request = self.kek.acknowledgement.expect("acknowledgements are asked for");
        let ack = AckKey::derive(request, &self.key, self.kek.spi).seal(
            self.kek.spi,
            content.seq,
            self.address.ip(),
        );
        if let Some((sa, kd)) = content.keys {
            let policy = GroupPolicy::read(&sa, Carriage::Push).expect("a policy");
            let keys = KeySet::read(&kd, &policy, Carriage::Push).expect("keys");
            for (spi, key) in &keys.teks {
                let tek = (*spi, key.encryption.expose().to_vec());
                if !self.teks.contains(&tek) {
                    self.teks.push(tek);
                }
            }
            if let (Some(kek), Some(key)) = (policy.kek, keys.kek) {
                self.cipher = cipher(kek.spi, &key.iv, &key.key);
                self.key = key.key;
                self.public_key = key.public_key.expect("the signing key");
                self.kek = kek;
                self.last = SeqNumber(0);
            }
        }
        ack
    }
}

/// PUSHes sent to `address`, in order.
fn pushes(bench: &mut Bench, address: SocketAddr) -> Vec<Bytes> {
    let push =
        |octets: &Bytes| Header::decode(octets).expect("a header").exchange == ExchangeType::GroupkeyPush;
    bench.received(address).into_iter().filter(push).collect()
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 0, last)), 848)
}

fn joined(bench: &mut Bench, last: u8) -> Member {
    register(bench, address(last), GroupId::number(1)).expect("a registration")
}

#[test]
fn two_members_get_the_same_keys_and_different_sender_ids() {
    let mut bench = Bench::new();
    let (one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    assert_eq!(one.teks, two.teks);
    assert_eq!(one.kek.spi, two.kek.spi);
    assert_ne!(one.sids, two.sids);
    assert_eq!((one.last, bench.members()), (SeqNumber(0), 2));
    assert_eq!(bench.count("member_registered"), 2);
}

#[test]
fn a_rekey_is_one_signed_message_for_all_and_ends_when_all_acknowledged() {
    let mut bench = Bench::new();
    let (mut one, mut two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    assert_eq!(bench.rekey(true), 1);
    let (first, second) = (bench.received(one.address), bench.received(two.address));
    assert_eq!((first.len(), &first), (1, &second), "the same octets for every member");
    let (ack_one, ack_two) = (one.take(&bench, &first[0]), two.take(&bench, &second[0]));
    bench.tell(one.address, ack_one.clone());
    assert_eq!(bench.count("rekey_completed"), 0);
    bench.tell(two.address, ack_one.clone());
    assert_eq!(bench.count("ack_refused"), 1, "one member cannot acknowledge for another from its address");
    bench.tell(two.address, ack_two);
    assert_eq!(bench.count("rekey_completed"), 1);
    assert_eq!(one.kek.spi, bench.seq().0, "both hold the new KEK");
    assert_eq!(bench.rekey(false), 1, "the first push under a new KEK has SEQ 1");
    let octets = bench.received(one.address).remove(0);
    one.take(&bench, &octets);
}

#[test]
fn a_silent_member_is_expired_after_all_copies_and_its_ike_sa_deleted() {
    let mut bench = Bench::new();
    let (mut one, mut two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    bench.rekey(false);
    let octets = bench.received(one.address).remove(0);
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    assert_eq!(bench.received(two.address).len(), 1);
    bench.pass(Duration::from_secs(29));
    assert_eq!(
        (bench.members(), bench.received(two.address).len()),
        (2, 2),
        "two more copies, not removed yet"
    );
    bench.pass(Duration::from_secs(2));
    assert_eq!((bench.members(), bench.count("member_expired")), (1, 1));
    let farewell = bench.received(two.address).remove(0);
    let header = Header::decode(&farewell).expect("a header");
    let said = notify::open(&mut two.sa, &header, &farewell).expect("protected").into_inner();
    assert_eq!(said, [Informational::DeleteIsakmp]);
    let back = joined(&mut bench, 2);
    assert_eq!((bench.members(), back.last), (2, SeqNumber(1)), "it comes back with the current SEQ");
}

/// Message 1 of a PULL answered, message 3 not sent.
fn half_a_pull(bench: &mut Bench, last: u8) -> IkeSa {
    let mut sa = phase1(bench, address(last)).expect("phase 1");
    let mut random = Random(bench.provider.clone());
    let mid = sa.fresh_message_id(&mut random);
    let mut exchange = Exchange::new(&sa, ExchangeType::GroupkeyPull, mid);
    let ni: [u8; NONCE_LEN] = random.array();
    let id = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![0, 0, 0, 1] };
    bench.tell(address(last), exchange.seal(&sa, &[], &[Payload::Nonce(ni.to_vec()), Payload::Id(id)]));
    only(bench.received(address(last))).expect("message 2");
    sa
}

/// What the server said under `sa`, informational messages only.
fn said(bench: &mut Bench, sa: &mut IkeSa, last: u8) -> Vec<Informational> {
    let mut said = Vec::new();
    for octets in bench.received(address(last)) {
        let header = Header::decode(&octets).expect("a header");
        said.extend(notify::open(sa, &header, &octets).expect("protected").into_inner());
    }
    said
}

#[test]
fn a_member_that_falls_silent_in_a_registration_is_asked_and_then_its_sa_goes() {
    let mut bench = Bench::new();
    let mut sa = half_a_pull(&mut bench, 1);
    bench.pass(Duration::from_secs(39));
    let asked = said(&mut bench, &mut sa, 1);
    assert!(
        matches!(asked[..], [Informational::RUThere(a), Informational::RUThere(b), Informational::RUThere(c)]
        if b == a + 1 && c == a + 2),
        "{asked:?}"
    );
    bench.pass(Duration::from_secs(1));
    assert_eq!(said(&mut bench, &mut sa, 1), [Informational::DeleteIsakmp]);
    assert_eq!((bench.server.peers().established().count(), bench.members()), (0, 0));
}

#[test]
fn a_member_that_answers_is_there_and_a_registered_one_is_not_asked() {
    let mut bench = Bench::new();
    let mut sa = half_a_pull(&mut bench, 1);
    bench.pass(Duration::from_secs(10));
    let asked = said(&mut bench, &mut sa, 1);
    let [Informational::RUThere(number)] = asked[..] else { panic!("{asked:?}") };
    let answer = notify::dpd(sa.cookies, NotifyType::RUThereAck, number);
    let octets = notify::seal(&mut sa, &[answer], &mut Random(bench.provider.clone()));
    bench.tell(address(1), octets);
    let mut member = joined(&mut bench, 2);
    bench.pass(Duration::from_secs(49));
    assert!(said(&mut bench, &mut sa, 1).is_empty() && said(&mut bench, &mut member.sa, 2).is_empty());
    // 60 s after the last message of a PULL nobody needs the SA any more; the membership stays.
    bench.pass(Duration::from_secs(11));
    assert_eq!(said(&mut bench, &mut sa, 1), [Informational::DeleteIsakmp]);
    assert_eq!(said(&mut bench, &mut member.sa, 2), [Informational::DeleteIsakmp]);
    assert_eq!((bench.server.peers().established().count(), bench.members()), (0, 1));
}

#[test]
fn keys_are_replaced_before_they_end() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    let first = one.teks.clone();
    for _ in 0..2400 {
        bench.pass(Duration::from_secs(5));
        for octets in bench.received(one.address) {
            if Header::decode(&octets).expect("a header").exchange == ExchangeType::GroupkeyPush {
                let ack = one.take(&bench, &octets);
                bench.tell(one.address, ack);
            }
        }
        let live = bench.server.groups()["g1"]
            .teks()
            .iter()
            .any(|tek| one.teks.iter().any(|(spi, _)| *spi == tek.spi));
        assert!(live, "the member always holds a live TEK");
    }
    assert_eq!(bench.count("member_expired"), 0);
    assert!(one.teks.len() >= first.len() + 3, "12000 s hold at least three TEK rekeys: {}", one.teks.len());
    assert!(bench.seq().0 == one.kek.spi && bench.count("rekey_completed") >= 3);
}

#[test]
fn strangers_unknown_groups_and_members_beyond_the_threshold_are_refused() {
    let mut bench = Bench::new();
    let stranger = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 9, 1)), 848);
    let refused = |result: Result<Member, Stopped>| match result {
        Err(Stopped::Notified(said)) => said,
        other => panic!("{:?}", other.err()),
    };
    let invalid = [Informational::Notified(gdoi_proto::registry::NotifyType::InvalidIdInformation)];
    assert_eq!(refused(register(&mut bench, stranger, GroupId::number(1))), invalid);
    assert_eq!(refused(register(&mut bench, address(1), GroupId::number(2))), invalid, "the same answer");
    for last in 1..=3 {
        joined(&mut bench, last);
    }
    let fourth = register(&mut bench, address(4), GroupId::number(1));
    assert_eq!(fourth.err(), Some(Stopped::Silence), "member-threshold: no answer");
    assert_eq!((bench.members(), bench.count("member_threshold_reached")), (3, 1));
    joined(&mut bench, 2);
    assert_eq!(bench.members(), 3, "a known member may come again");
}

#[test]
fn an_expelled_member_gets_none_of_the_new_keys() {
    let mut bench = Bench::new();
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    let member = "10.1.0.2".to_owned();
    let (text, seq) = bench.command(Command::Expel { group: "g1".to_owned(), member }).expect("expelled");
    assert_eq!(seq, Some(1), "{text}");
    let to_one = bench.received(one.address);
    one.take(&bench, &to_one[0]);
    let pushes = bench.received(two.address);
    let push =
        |octets: &Bytes| Header::decode(octets).expect("a header").exchange == ExchangeType::GroupkeyPush;
    assert!(!pushes.iter().any(push), "the expelled member is not sent the push");
}

/// After a death at any write: same keys, SEQ never lower and never used twice for other octets, no SID twice, members
/// still known.
#[test]
fn a_server_that_dies_at_any_write_goes_on_where_it_was() {
    let mut deaths = 0;
    for lives_for in 1..12 {
        let mut bench = Bench::new();
        let mut one = joined(&mut bench, 1);
        bench.lives_for = Some(lives_for);
        let joined_two =
            if bench.dead { None } else { register(&mut bench, address(2), GroupId::number(1)).ok() };
        if !bench.dead {
            bench.server.handle(
                bench.now,
                Input::Command {
                    ticket: 1,
                    command: Command::Rekey { group: "g1".to_owned(), tek: true, kek: lives_for % 2 == 0 },
                },
            );
            bench.drain();
        }
        let before = bench.received(one.address);
        deaths += usize::from(bench.dead);
        bench.restart();
        bench.pass(Duration::from_secs(1));
        let after = bench.received(one.address);
        let pushes: Vec<&Bytes> = before
            .iter()
            .chain(&after)
            .filter(|octets| Header::decode(octets).expect("a header").exchange == ExchangeType::GroupkeyPush)
            .collect();
        assert!(
            pushes.windows(2).all(|pair| pair[0] == pair[1]),
            "life {lives_for}: two messages under one SEQ"
        );
        if let Some(octets) = pushes.first() {
            let ack = one.take(&bench, octets);
            bench.tell(one.address, ack);
        }
        assert_eq!((bench.seq().0, bench.seq().1), (one.kek.spi, one.last), "life {lives_for}");
        assert!(bench.members() > usize::from(joined_two.is_some()), "life {lives_for}: members are known");
        let three = joined(&mut bench, 3);
        let fresh = three.sids.iter().all(|sid| !one.sids.contains(sid))
            && joined_two.is_none_or(|two| three.sids.iter().all(|sid| !two.sids.contains(sid)));
        assert!(fresh, "life {lives_for}: a SID was given out twice");
        assert_eq!(bench.rekey(false), bench.seq().1.0, "life {lives_for}");
        let octets = bench.received(one.address).into_iter().next_back().expect("a push");
        one.take(&bench, &octets);
    }
    assert!(deaths >= 3, "the server died {deaths} times");
}

/// A PUSH to everyone that everyone answers.
fn answered_rekey(bench: &mut Bench, kek: bool, members: &mut [&mut Member]) {
    bench.rekey(kek);
    for member in members {
        let octets = bench.received(member.address).pop().expect("a push");
        let ack = member.take(bench, &octets);
        bench.tell(member.address, ack);
    }
}

#[test]
fn a_rekey_between_messages_2_and_3_reaches_the_member_after_message_4() {
    for rekeys in [&[false][..], &[true], &[true, false], &[false, true, true]] {
        let mut bench = Bench::new();
        let mut one = joined(&mut bench, 1);
        let mut two = register_around(&mut bench, address(2), GroupId::number(1), |bench| {
            for kek in rekeys {
                answered_rekey(bench, *kek, &mut [&mut one]);
            }
        })
        .expect("a registration");
        let completed = bench.count("rekey_completed");
        for octets in bench.received(two.address) {
            let ack = two.take(&bench, &octets);
            bench.tell(two.address, ack);
        }
        assert_eq!((two.kek.spi, two.last), bench.seq(), "{rekeys:?}");
        assert_eq!((two.kek.spi, two.last), (one.kek.spi, one.last));
        assert!(bench.server.groups()["g1"].deliveries().is_empty());
        assert_eq!((completed, bench.count("rekey_completed")), (rekeys.len(), rekeys.len()));
        answered_rekey(&mut bench, false, &mut [&mut one, &mut two]);
    }
}

#[test]
fn a_rekey_that_told_nobody_leaves_no_member_with_what_it_replaced() {
    let mut bench = Bench::new();
    let rekey = |bench: &mut Bench| {
        let command = Command::Rekey { group: "g1".to_owned(), tek: true, kek: true };
        assert_eq!(bench.command(command).expect("a rekey").1, None);
    };
    let outdated = register_around(&mut bench, address(1), GroupId::number(1), rekey);
    assert_eq!((outdated.err(), bench.members()), (Some(Stopped::Silence), 0));
    let mut one = joined(&mut bench, 1);
    answered_rekey(&mut bench, true, &mut [&mut one]);
}

#[test]
fn after_a_restart_the_answer_to_the_last_push_is_enough() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    for kek in [true, true, false] {
        bench.rekey(kek);
    }
    for octets in bench.received(one.address) {
        one.take(&bench, &octets);
    }
    bench.restart();
    bench.pass(Duration::from_secs(1));
    // Copies: the member acknowledges that of its last PUSH and no other.
    assert_eq!(bench.received(one.address).len(), 3);
    let (spi, seq) = bench.seq();
    let request = one.kek.acknowledgement.expect("asked for");
    let ack = AckKey::derive(request, &one.key, spi).seal(spi, seq, one.address.ip());
    bench.tell(one.address, ack);
    assert!(bench.server.groups()["g1"].deliveries().is_empty());
    bench.pass(Duration::from_secs(60));
    assert_eq!((bench.members(), bench.count("member_expired")), (1, 0));
}

#[test]
fn after_a_restart_a_push_goes_to_nobody_who_registered_with_its_content() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    bench.rekey(true);
    bench.received(one.address);
    let mut two = joined(&mut bench, 2);
    bench.restart();
    bench.pass(Duration::from_secs(1));
    assert!(bench.received(two.address).is_empty(), "it cannot read a push under a KEK it never had");
    let octets = bench.received(one.address).pop().expect("the push again");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.pass(Duration::from_secs(60));
    assert_eq!((bench.members(), bench.count("member_expired")), (2, 0));
    answered_rekey(&mut bench, false, &mut [&mut one, &mut two]);
}

fn tek_spis(bench: &Bench) -> Vec<Spi> {
    bench.server.groups()["g1"].teks().iter().map(|tek| tek.spi).collect()
}

#[test]
fn a_wall_clock_set_while_the_server_runs_ends_no_key_at_the_next_start() {
    for moved in [86_400 * 365, -86_400] {
        let mut bench = Bench::new();
        let one = joined(&mut bench, 1);
        let before = tek_spis(&bench);
        bench.pass(Duration::from_secs(60));
        bench.epoch = bench.epoch.saturating_add_signed(moved);
        bench.pass(Duration::from_secs(600));
        bench.server.handle(bench.now, Input::Timeout);
        bench.drain();
        bench.restart();
        bench.pass(Duration::from_secs(1));
        assert_eq!((tek_spis(&bench), bench.seq()), (before, (one.kek.spi, SeqNumber(0))), "{moved}");
        let left = bench.server.groups()["g1"].teks()[0].ends.since(bench.now.at).as_secs();
        assert!((2935..=2945).contains(&left), "{moved}: {left} s of 3600 are left after 661");
    }
}

#[test]
fn a_wall_clock_set_back_between_two_starts_replaces_keys_whose_end_is_unknown() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    bench.epoch -= 86_400;
    bench.set(bench.now.at);
    bench.restart();
    bench.pass(Duration::from_secs(1));
    let octets = bench.received(one.address).pop().expect("a rekey at once");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    let group = &bench.server.groups()["g1"];
    assert_eq!(one.kek.spi, bench.seq().0);
    assert!(group.kek().expect("a KEK").ends.since(bench.now.at) <= Duration::from_secs(7200));
    assert!(group.teks().iter().all(|tek| tek.ends.since(bench.now.at) <= Duration::from_secs(3600)));
}

#[test]
fn keys_that_ended_while_nobody_ran_do_not_come_back_when_the_clock_is_set_back() {
    let mut bench = Bench::new();
    let kek = bench.seq().0;
    bench.epoch += 86_400;
    bench.set(bench.now.at);
    bench.restart();
    assert_ne!(bench.seq().0, kek);
    let stored = |kind| bench.rows.keys().filter(|(stored, _)| *stored == kind).count();
    assert_eq!((stored(Kind::Kek), stored(Kind::Tek)), (1, 1), "rows of keys that ended are gone");
}

#[test]
fn who_registers_while_the_signing_key_is_made_is_served_by_its_next_repeat() {
    let mut bench = Bench::with(settings());
    bench.hold = |job| matches!(job, Job::MakeSigner { .. });
    bench.drain();
    let mut sa = phase1(&mut bench, address(1)).expect("phase 1");
    let mut random = Random(bench.provider.clone());
    let mid = sa.fresh_message_id(&mut random);
    let mut exchange = Exchange::new(&sa, ExchangeType::GroupkeyPull, mid);
    let id = Identification { id_type: IdType::KeyId, protocol: 0, port: 0, data: vec![0, 0, 0, 1] };
    let first = exchange.seal(&sa, &[], &[Payload::Nonce(vec![7; 32]), Payload::Id(id)]);
    bench.tell(address(1), first.clone());
    assert!(bench.received(address(1)).is_empty(), "no keys yet");
    let request = bench.held.pop().expect("a signing key is being made");
    let done = run(bench.provider.as_ref(), request.job);
    bench.server.handle(bench.now, Input::Job(JobResult { id: request.id, done }));
    bench.drain();
    bench.tell(address(1), first);
    let answer = only(bench.received(address(1))).expect("message 2");
    assert_eq!(Header::decode(&answer).expect("a header").exchange, ExchangeType::GroupkeyPull);
}

#[test]
fn sender_ids_that_end_begin_anew_with_new_keys_and_a_clean_slate() {
    let mut settings = settings();
    settings.groups[0].sender_id_bits = 8;
    settings.groups[0].member_threshold = None;
    let mut bench = Bench::with(settings);
    bench.drain();
    let mut given: BTreeMap<Spi, BTreeSet<SenderId>> = BTreeMap::new();
    let mut witness = joined(&mut bench, 200);
    let mut slates = 0;
    for round in 0..300u32 {
        let last = u8::try_from(round % 100).expect("small") + 1;
        // Its copy of a push, which a member that comes back did not wait for.
        bench.received(address(last));
        let member = joined(&mut bench, last);
        for (spi, _) in &member.teks {
            for sid in &member.sids {
                assert!(
                    given.entry(*spi).or_default().insert(*sid),
                    "round {round}: {sid:?} twice under {spi}"
                );
            }
        }
        // What an operator's shell would do: the timer is due at once.
        bench.pass(Duration::from_millis(1));
        for octets in bench.received(witness.address) {
            let header = Header::decode(&octets).expect("a header");
            if header.exchange != ExchangeType::GroupkeyPush {
                continue;
            }
            let opened =
                push::open(&witness.cipher, witness.last, &header, &octets, Dialect::STRICT).expect("a push");
            let content = opened.verified().into_inner();
            assert_eq!(content.deletes.len(), 2, "TEKs and KEK");
            assert!(content.keys.is_none());
            slates += 1;
            witness = joined(&mut bench, 200);
        }
    }
    assert_eq!((slates, bench.count("sender_ids_exhausted")), (1, 1));
    assert_eq!(given.len(), 2, "one set of keys before, one after");
}

#[test]
fn keys_made_for_another_configuration_describe_themselves_and_are_replaced_at_once() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    let old = one.teks[0].0;
    let sa = &mut bench.settings.groups[0].sas[0];
    sa.cipher = TekCipher::AesGcm { key_octets: 16, icv_octets: 16 };
    let kek = bench.settings.groups[0].communication.as_mut().expect("rekeying");
    kek.cipher = Cipher::Aes128Cbc;
    bench.restart();
    // Message 4 of whoever comes first has keys that fit their policy: the hand-played member reads them strictly.
    bench.pass(Duration::from_millis(1));
    let octets = bench.received(address(1)).pop().expect("a push to the new policy");
    let ack = one.take(&bench, &octets);
    bench.tell(address(1), ack);
    let two = joined(&mut bench, 2);
    assert_eq!((one.kek.spi, one.key.len()), (two.kek.spi, 16));
    let lengths: Vec<usize> = two.teks.iter().map(|(_, key)| key.len()).collect();
    assert_eq!(lengths, [36, 20], "the old TEK as it was made, the new one as it is asked for");
    assert_eq!(two.teks[0].0, old);
}

#[test]
fn another_kind_of_signature_makes_a_new_signing_key_and_rekey_sa() {
    let mut bench = Bench::new();
    let one = joined(&mut bench, 1);
    let communication = bench.settings.groups[0].communication.as_mut().expect("rekeying");
    communication.signature = SignatureAlgorithm::Ecdsa384;
    communication.signature_key_bits = 384;
    communication.signature_hash = SignatureHash::Sha384;
    bench.restart();
    bench.pass(Duration::from_millis(1));
    let again = joined(&mut bench, 1);
    assert_ne!((&one.public_key, one.kek.spi), (&again.public_key, again.kek.spi));
    assert_eq!(again.kek.signature, SignatureAlgorithm::Ecdsa384);
    assert_eq!(bench.count("group_failed"), 0);
}
