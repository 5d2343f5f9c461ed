//! Every case of the reject vectors, sent over a socket to a running `gcksd`: silence or the right notification, and
//! nothing left of it.

#[path = "../../tests/conformance/expected.rs"]
#[allow(dead_code, reason = "the faults of the decoder are told elsewhere")]
mod expected;
mod support;

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use gdoi_proto::header::Header;
use gdoi_proto::ids::MessageId;
use gdoi_proto::message::{Dialect, Message, Rules};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::{ExchangeType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::prf::prf;
use ike::crypto::provider::{Done, Random, default_provider, run};
use ike::crypto::skeyid::exchange_iv;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Instant, Now};
use ike::phase1::auth::{Basis, Facts, Proof};
use ike::phase1::{Credentials, Ends, Initiator, Mode, Offer, PeerPolicy, Step};
use serde_json::Value;

use support::member::Member;
use support::{Daemon, Site};

const NOW: Now = Now { at: Instant(1), unix_seconds: 0 };
const HASH: Hash = Hash::Sha256;

fn vectors(name: &str) -> Value {
    let path = format!("{}/../tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn octets(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(value[field].as_str().unwrap()).unwrap()
}

/// A server that takes the suite of the vectors, and their key.
fn server() -> (Site, Daemon) {
    let site = Site::new();
    site.configure("[server]\n", "[server]\nhalf-open-timeout-seconds = 3\n");
    site.configure("proposals = [\"p\"]", "proposals = [\"p\", \"q\"]");
    site.configure(
        "[ike.policy.pol]",
        r#"[ike.proposal.q]
authentication-method = "pre-shared-keys"
dh-group = "group14"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-128-cbc"
[ike.policy.pol]"#,
    );
    let daemon = site.start(&[]);
    (site, daemon)
}

fn socket(number: usize) -> UdpSocket {
    let [high, low] = (number as u16 + 1).to_be_bytes();
    let socket = UdpSocket::bind((Ipv4Addr::new(127, 3, high, low), 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    let (length, _) = socket.recv_from(&mut buffer).expect("an answer within 10 s");
    buffer.truncate(length);
    buffer
}

/// The notification in a clear message.
fn notified(answer: &[u8]) -> NotifyType {
    let message = Message::decode(answer, Rules::PHASE1_CLEAR).unwrap();
    assert_eq!(message.header.exchange, ExchangeType::Informational);
    let [Payload::Notify(notify)] = &message.payloads[..] else { panic!("{message:?}") };
    NotifyType::from_number(notify.kind)
}

/// Waits until nothing is under way.
fn quiet(daemon: &Daemon) {
    for _ in 0..2000 {
        if daemon.snapshot().statistics.half_open == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("negotiations are left");
}

#[test]
fn every_bad_message_of_phase_1_gets_silence_or_its_notification_and_leaves_nothing() {
    let (_site, daemon) = server();
    let expected = BTreeMap::from(expected::PHASE1);
    let good = vectors("phase1-psk-modp14-aes128-sha256");
    let first = octets(&good["messages"][0], "packet");
    let mut probe = first.clone();
    probe[..8].fill(0x77);
    let file = vectors("phase1-parser-rejects");
    let (mut told, mut sockets) = (0, Vec::new());
    for (number, case) in file["cases"].as_array().unwrap().iter().enumerate() {
        let reason = case["reason"].as_str().unwrap();
        let (socket, mut packet) = (socket(number), octets(case, "packet"));
        socket.connect(daemon.address()).unwrap();
        if case["based_on"] == "m3" {
            socket.send(&first).unwrap();
            packet[8..16].copy_from_slice(&receive(&socket)[8..16]);
        }
        socket.send(&packet).unwrap();
        // The answer to a good message says that the bad one was dealt with.
        socket.send(&probe).unwrap();
        let mut answer = receive(&socket);
        if answer[..8] != probe[..8] {
            assert!(answer.len() <= packet.len(), "{reason}: amplified");
            let kind = notified(&answer).to_string();
            assert!(expected[reason].starts_with(&format!("{kind}: ")), "{reason}: {kind}");
            told += 1;
            answer = receive(&socket);
        }
        assert_eq!(answer[..8], probe[..8], "{reason}");
        sockets.push((reason, socket));
    }
    assert_eq!(sockets.len(), expected.len());
    assert!(told >= 3, "{told}");
    quiet(&daemon);
    for (reason, socket) in &sockets {
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv_from(&mut [0; 1]).is_err(), "{reason}: answered later");
    }
    let snapshot = daemon.snapshot();
    assert_eq!((snapshot.ike_sas.len(), snapshot.groups[0].members.len()), (0, 0));
    assert_eq!(snapshot.statistics.phase1_established, 0);
    Member::new(daemon.address()).register();
}

/// A peer that proved who it is and holds the keys of its SA, to say with them what no library would.
struct Insider {
    socket: UdpSocket,
    cookies: Vec<u8>,
    skeyid_a: SecretBytes,
    key: CipherKey,
    last_block: [u8; 16],
}

/// KE and nonce of message 3 or 4.
fn exchanged(octets: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let message = Message::decode(octets, Rules::PHASE1_CLEAR).unwrap();
    let [Payload::Ke(ke), Payload::Nonce(nonce), ..] = &message.payloads[..] else { panic!("{message:?}") };
    (ke.clone(), nonce.clone())
}

impl Insider {
    fn new(server: SocketAddr) -> Insider {
        let socket = socket(1000);
        socket.connect(server).unwrap();
        let key = SecretBytes::copy(support::KEY.as_bytes());
        let suite = Suite {
            cipher: Cipher::Aes256Cbc,
            hash: HASH,
            group: DhGroup::Ecp256,
            method: AuthMethod::PreSharedKey,
        };
        let policy = PeerPolicy {
            mode: Mode::Main,
            offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
            credentials: Credentials::pre_shared(key.clone()),
            local_identity: None,
            remote: vec![IdentityRule::PeerAddress],
            nat_traversal: false,
            fragmentation: false,
            dialect: Dialect::STRICT,
        };
        let provider = default_provider();
        let mut random = Random(provider.clone());
        let ends = Ends { local: socket.local_addr().unwrap(), peer: server };
        let (mut initiator, steps) = Initiator::start(policy, ends, false, NOW.at, &mut random);
        let mut todo: VecDeque<Step> = steps.into();
        let (mut sent, mut received, mut shared) = (Vec::new(), Vec::new(), None);
        let sa = loop {
            match todo.pop_front() {
                Some(Step::Send(octets)) => {
                    socket.send(&octets).unwrap();
                    sent.push(octets);
                }
                Some(Step::Run(job)) => {
                    let done = run(provider.as_ref(), job);
                    if let Done::Shared(Ok(secret)) = &done {
                        shared = Some(SecretBytes::copy(secret.expose()));
                    }
                    todo.extend(initiator.on_done(NOW, done, &mut random).unwrap());
                }
                Some(Step::Established(done)) => break done.sa,
                None => {
                    let octets = receive(&socket);
                    let header = Header::decode(&octets).unwrap();
                    todo.extend(initiator.on_message(NOW, &header, &octets, &mut random).unwrap());
                    received.push(octets);
                }
            }
        };
        let ((g_xi, ni), (g_xr, nr)) = (exchanged(&sent[1]), exchanged(&received[1]));
        let sa_length = usize::from(u16::from_be_bytes([sent[0][30], sent[0][31]]));
        let proof = Proof::new(&Facts {
            exchange: ExchangeType::MainMode,
            suite,
            cookies: sa.cookies,
            basis: Basis::PreSharedKey(&key),
            ni: &ni,
            nr: &nr,
            g_xi: &g_xi,
            g_xr: &g_xr,
            shared: &shared.expect("a shared secret"),
            sai_b: &sent[0][32..28 + sa_length],
            double_hash: false,
        });
        Insider {
            socket,
            cookies: sa.cookies.octets().to_vec(),
            skeyid_a: proof.skeyid_a.clone(),
            key: proof.key.clone(),
            last_block: *received[2].last_chunk().unwrap(),
        }
    }

    /// Message 1 of a PULL with a good HASH over these payloads, types and bodies.
    fn seal(&self, message_id: u32, payloads: &[(u8, &[u8])]) -> Vec<u8> {
        let id = MessageId(message_id);
        let rest = chain(payloads);
        let hash = prf(HASH, self.skeyid_a.expose(), &[&message_id.to_be_bytes(), &rest]);
        let mut plain = chain(&[(8, hash.expose())]);
        plain[0] = payloads[0].0;
        plain.extend(rest);
        let sealed = self.key.encrypt(&exchange_iv(HASH, &self.last_block, id), &plain);
        packet(&self.cookies, 8, (32, 1), message_id, &sealed)
    }
}

/// Payloads one after the other, whatever is in them.
fn chain(payloads: &[(u8, &[u8])]) -> Vec<u8> {
    let nexts = payloads.iter().skip(1).map(|(kind, _)| *kind).chain([0]);
    let encode = |((_, body), next): (&(u8, &[u8]), u8)| {
        [&[next, 0], &(body.len() as u16 + 4).to_be_bytes()[..], body].concat()
    };
    payloads.iter().zip(nexts).flat_map(encode).collect()
}

fn packet(cookies: &[u8], next: u8, (exchange, flags): (u8, u8), message_id: u32, rest: &[u8]) -> Vec<u8> {
    let length = (28 + rest.len()) as u32;
    let parts: [&[u8]; 5] =
        [cookies, &[next, 0x10, exchange, flags], &message_id.to_be_bytes(), &length.to_be_bytes(), rest];
    parts.concat()
}

#[test]
fn every_forbidden_group_structure_gets_silence_even_under_keys_that_fit_and_leaves_nothing() {
    let (_site, daemon) = server();
    let insider = Insider::new(daemon.address());
    let (nonce, group): ([u8; 32], [u8; 8]) = ([5; 32], [11, 0, 0, 0, 0, 0, 0, 1]);
    let file = vectors("gdoi-rejects");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), expected::GROUP.len());
    for (number, case) in (1..).zip(cases) {
        let kind = case["payload"].as_u64().unwrap() as u8;
        let body = octets(case, "body");
        let payloads: Vec<(u8, &[u8])> = match kind {
            10 => vec![(10, &body), (5, &group)],
            5 => vec![(10, &nonce), (5, &body)],
            _ => vec![(10, &nonce), (5, &group), (kind, &body)],
        };
        insider.socket.send(&insider.seal(number, &payloads)).unwrap();
        // The same in clear: as a PULL, a PUSH and an acknowledgement.
        for exchange in [32, 33, 35] {
            let clear = packet(&insider.cookies, kind, (exchange, 0), 0, &chain(&[(kind, &body)]));
            insider.socket.send(&clear).unwrap();
        }
    }
    // The first thing that is answered is the good one.
    insider.socket.send(&insider.seal(1000, &[(10, &nonce), (5, &group)])).unwrap();
    let header = Header::decode(&receive(&insider.socket)).unwrap();
    assert_eq!((header.exchange, header.message_id), (ExchangeType::GroupkeyPull, MessageId(1000)));
    let snapshot = daemon.snapshot();
    assert_eq!((snapshot.ike_sas.len(), snapshot.groups[0].members.len()), (1, 0));
    assert!(snapshot.statistics.messages_dropped >= 4 * cases.len() as u64);
    Member::new(daemon.address()).register();
}
