//! A key server that proved who it is and then says what no key server may: every structure of the reject vectors that a
//! member would read, under keys that fit, to a running gmd. Nothing of it is installed, the daemon lives, and what is good is
//! taken right after.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ctl::event::Event;
use gdoi_lab::daemon::{Daemon, Mark};
use gdoi_lab::network::Network;
use gdoi_lab::site::Site;
use gdoi_proto::header::{HEADER_LEN, Header};
use gdoi_proto::ids::Cookie;
use gdoi_proto::message::{Chain, Dialect, Message, Rules};
use gdoi_proto::payload::Payload;
use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::prf::prf;
use ike::crypto::provider::{Done, Provider, Random, default_provider, run};
use ike::crypto::skeyid::exchange_iv;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Entropy, Instant, Now};
use ike::phase1::auth::{Basis, Facts, Proof};
use ike::phase1::{Credentials, Ends, Mode, Offer, PeerPolicy, Responder, Step};
use serde_json::Value;

use crate::support::{SOON, binaries};

const NOW: Now = Now { at: Instant(1), unix_seconds: 0 };
const HASH: Hash = Hash::Sha256;
const KEY: &str = "romanche furrow, 7760 m";
const PULL: u8 = 32;
const PUSH: u8 = 33;

fn vectors(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/vectors/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn octets(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

/// Payload type and body.
type Raw = (u8, Vec<u8>);

/// Payloads one after the other, whatever is in them.
fn chain(payloads: &[Raw]) -> Vec<u8> {
    let nexts = payloads.iter().skip(1).map(|(kind, _)| *kind).chain([0]);
    let encode = |((_, body), next): (&Raw, u8)| {
        [&[next, 0], &(body.len() as u16 + 4).to_be_bytes()[..], body].concat()
    };
    payloads.iter().zip(nexts).flat_map(encode).collect()
}

/// The payloads of a plaintext of the vectors.
fn raw(first: PayloadType, plain: &[u8]) -> Vec<Raw> {
    let found = Chain::decode(first, plain, Rules::GROUP_OPENED).unwrap();
    let body = |at: &gdoi_proto::message::Located| plain[at.start + 4..at.end].to_vec();
    found.payloads.iter().map(|it| (it.payload.payload_type().number(), body(it))).collect()
}

fn packet(cookies: &[u8], next: u8, (exchange, flags): (u8, u8), message_id: u32, rest: &[u8]) -> Vec<u8> {
    let length = (HEADER_LEN + rest.len()) as u32;
    let parts: [&[u8]; 5] =
        [cookies, &[next, 0x10, exchange, flags], &message_id.to_be_bytes(), &length.to_be_bytes(), rest];
    parts.concat()
}

/// KE and nonce of message 3 or 4.
fn exchanged(octets: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let message = Message::decode(octets, Rules::PHASE1_CLEAR).unwrap();
    let [Payload::Ke(ke), Payload::Nonce(nonce), ..] = &message.payloads[..] else { panic!("{message:?}") };
    (ke.clone(), nonce.clone())
}

/// What the vectors' PULL says in messages 2 and 4, and their KEK.
struct Script {
    nonce: Vec<u8>,
    sa: Raw,
    seq: Raw,
    kd: Raw,
    kek_spi: Vec<u8>,
    kek_iv: [u8; 16],
    kek: CipherKey,
    /// SA and KD of the good PUSH.
    push_sa: Raw,
    push_kd: Raw,
    signer: Arc<dyn ike::crypto::provider::Signer>,
}

impl Script {
    fn read(provider: &dyn Provider) -> Script {
        let (pull, push) = (vectors("gdoi-pull"), vectors("gdoi-push"));
        let plain = |number: usize| octets(&pull["cases"][0]["messages"][number]["plaintext"]);
        let [_, (_, nonce), sa] = <[Raw; 3]>::try_from(raw(PayloadType::Hash, &plain(1))).unwrap();
        let [_, seq, kd] = <[Raw; 3]>::try_from(raw(PayloadType::Hash, &plain(3))).unwrap();
        let push = &push["cases"][0];
        let said = raw(PayloadType::Seq, &octets(&push["plaintext"]));
        let [_, push_sa, push_kd, _] = <[Raw; 4]>::try_from(said).unwrap();
        let key = octets(&vectors("gdoi-test-keys")["rsa2048_pkcs8_der"]);
        let signer = provider.signer(SignatureAlgorithm::Rsa, &SecretBytes::new(key)).unwrap();
        let kek = SecretBytes::new(octets(&push["kek_key"]));
        Script {
            nonce,
            sa,
            seq,
            kd,
            kek_spi: octets(&push["kek_spi"]),
            kek_iv: octets(&push["kek_iv"]).try_into().unwrap(),
            kek: CipherKey::new(Cipher::Aes128Cbc, kek).unwrap(),
            push_sa,
            push_kd,
            signer,
        }
    }

    /// A PUSH that is signed and sealed as it must be, with `payloads` behind its number.
    fn push(&self, seq: u32, payloads: &[Raw]) -> Vec<u8> {
        let number = (18, seq.to_be_bytes().to_vec());
        let signature = (9, vec![0; 256]);
        let mut plain = chain(&[&[number], payloads, &[signature]].concat());
        let signed = plain.len() - 260;
        let whole = packet(&self.kek_spi, 18, (PUSH, 1), 0, &plain);
        let input = [b"rekey", &whole[..HEADER_LEN], &plain[..signed]].concat();
        let signature = self.signer.sign(SignatureHash::Sha256, &input).unwrap();
        plain.truncate(signed + 4);
        plain.extend(signature);
        packet(&self.kek_spi, 18, (PUSH, 1), 0, &self.kek.encrypt(&self.kek_iv, &plain))
    }
}

/// A key server at one address.
struct Server {
    socket: UdpSocket,
    provider: Arc<dyn Provider>,
    script: Script,
}

/// A PULL under an SA that was just made, up to its message 1.
struct Served {
    cookies: Vec<u8>,
    skeyid_a: SecretBytes,
    key: CipherKey,
    message_id: u32,
    iv: [u8; 16],
    ni: Vec<u8>,
    last: Vec<u8>,
}

fn last_block(octets: &[u8]) -> [u8; 16] {
    *octets.last_chunk().unwrap()
}

impl Server {
    fn new() -> Server {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let provider = default_provider();
        Server { socket, script: Script::read(provider.as_ref()), provider }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    fn receive(&self) -> (Header, Vec<u8>) {
        let mut buffer = vec![0; 65_536];
        let (length, _) = self.socket.recv_from(&mut buffer).expect("a message of the member");
        buffer.truncate(length);
        (Header::decode(&buffer).unwrap(), buffer)
    }

    /// Phase 1 with the member at `peer`, and message 1 of its PULL.
    fn begin(&self, peer: SocketAddr) -> Served {
        let suite = Suite {
            cipher: Cipher::Aes256Cbc,
            hash: HASH,
            group: DhGroup::Ecp256,
            method: AuthMethod::PreSharedKey,
        };
        let key = SecretBytes::copy(KEY.as_bytes());
        let policy = Arc::new(PeerPolicy {
            mode: Mode::Main,
            offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
            credentials: Credentials::pre_shared(key.clone()),
            local_identity: None,
            remote: vec![IdentityRule::PeerAddress],
            nat_traversal: false,
            fragmentation: false,
            dialect: Dialect::STRICT,
        });
        let mut random = Random(self.provider.clone());
        let ends = Ends { local: self.address(), peer };
        let (mut received, mut sent, mut shared) = (Vec::new(), Vec::new(), None);
        let mut responder: Option<Responder> = None;
        let mut todo = VecDeque::new();
        let sa = loop {
            match todo.pop_front() {
                Some(Step::Send(octets)) => {
                    self.socket.send_to(&octets, peer).unwrap();
                    sent.push(octets);
                }
                Some(Step::Run(job)) => {
                    let done = run(self.provider.as_ref(), job);
                    if let Done::Responded(Ok((_, secret))) = &done {
                        shared = Some(SecretBytes::copy(secret.expose()));
                    }
                    todo.extend(responder.as_mut().unwrap().on_done(NOW, done, &mut random).unwrap());
                }
                Some(Step::Established(done)) => break done.sa,
                None => {
                    let (header, octets) = self.receive();
                    if header.exchange != ExchangeType::MainMode {
                        // A farewell of the gmd before.
                        continue;
                    }
                    let steps = match &mut responder {
                        Some(responder) => responder.on_message(NOW, ends, &header, &octets, &mut random),
                        None => {
                            let cookie = Cookie(random.array());
                            let started =
                                Responder::start(Arc::clone(&policy), cookie, ends, &header, &octets);
                            started.map(|(started, steps)| {
                                responder = Some(started);
                                steps
                            })
                        }
                    };
                    todo.extend(steps.unwrap());
                    received.push(octets);
                }
            }
        };
        let ((g_xi, ni), (g_xr, nr)) = (exchanged(&received[1]), exchanged(&sent[1]));
        let first = &received[0];
        let sa_length = usize::from(u16::from_be_bytes([first[30], first[31]]));
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
            sai_b: &first[32..28 + sa_length],
            double_hash: false,
        });
        let (header, octets) = self.receive();
        assert_eq!(header.exchange, ExchangeType::GroupkeyPull);
        let iv = exchange_iv(HASH, &last_block(&sent[2]), header.message_id);
        let plain = proof.key.decrypt(&iv, &octets[HEADER_LEN..]).unwrap();
        let padded = Rules { trailing: gdoi_proto::message::Trailing::Padding, ..Rules::GROUP_OPENED };
        let opened = Chain::decode(PayloadType::Hash, &plain, padded).unwrap();
        let ni = opened.payloads.into_iter().find_map(|it| match it.payload {
            Payload::Nonce(ni) => Some(ni),
            _ => None,
        });
        Served {
            cookies: sa.cookies.octets().to_vec(),
            skeyid_a: proof.skeyid_a.clone(),
            key: proof.key.clone(),
            message_id: header.message_id.0,
            iv: last_block(&octets),
            ni: ni.expect("a nonce"),
            last: octets,
        }
    }

    /// Message 2 with this SA.
    fn second(&self, served: &Served, sa: &Raw) -> Vec<u8> {
        let nonce = (10, self.script.nonce.clone());
        served.seal(&[&served.ni], &[nonce, sa.clone()])
    }

    /// Message 4 with these payloads.
    fn fourth(&self, served: &Served, payloads: &[Raw]) -> Vec<u8> {
        served.seal(&[&served.ni, &self.script.nonce], payloads)
    }

    /// Sends message 2 and takes message 3.
    fn exchange(&self, served: &mut Served, second: &[u8], peer: SocketAddr) {
        self.socket.send_to(second, peer).unwrap();
        // Message 1 may come again while it waits.
        let third = std::iter::from_fn(|| Some(self.receive().1)).find(|octets| *octets != served.last);
        served.iv = last_block(&third.expect("message 3"));
    }
}

impl Served {
    /// A message of this PULL with a good HASH over these payloads.
    fn seal(&self, said: &[&[u8]], payloads: &[Raw]) -> Vec<u8> {
        let (id, rest) = (self.message_id.to_be_bytes(), chain(payloads));
        let parts = [&[&id[..]], said, &[&rest[..]]].concat();
        let hash = prf(HASH, self.skeyid_a.expose(), &parts);
        let mut plain = chain(&[(8, hash.expose().to_vec())]);
        plain[0] = payloads[0].0;
        plain.extend(rest);
        packet(&self.cookies, 8, (PULL, 1), self.message_id, &self.key.encrypt(&self.iv, &plain))
    }
}

/// A member of the group of the vectors.
struct Member {
    site: Site,
    address: SocketAddr,
}

impl Member {
    fn of(server: SocketAddr) -> Member {
        let site = Site::new(Network::own_loopback().expect("a free port"), binaries()).unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).unwrap();
        site.write_secret("psk", KEY).unwrap();
        let text = format!(
            r#"[member]
listen = ["{free}"]
nat-traversal = false
control-socket = {:?}
observe-socket = {:?}
log-level = "debug"
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.p]
proposals = ["p"]
pre-shared-key = {{ file = "psk" }}
[ike.gateway.g]
ike-policy = "p"
server-address = ["{server}"]
[vpn.v]
ike-gateway = "g"
group = 257
[data-plane]
backend = "none"
"#,
            site.control("gm1"),
            site.path("gm1.observe"),
        );
        std::fs::write(site.path("gm1.toml"), text).unwrap();
        Member { site, address: free }
    }

    fn start(&self) -> Daemon {
        self.site.start("gm1", None).unwrap()
    }
}

/// What was said of a message since `mark`, and that it installed nothing.
fn refused(gm: &Daemon, mark: Mark, name: &str) -> Event {
    let told = |event: &Event| {
        matches!(
            event,
            Event::MessageDropped { .. } | Event::PolicyRefused { .. } | Event::PushRefused { .. }
        )
    };
    let event = gm.wait(mark, SOON, name, told).unwrap_or_else(|error| panic!("{name}: {error}"));
    for accepted in ["registered", "tek_installed", "kek_installed", "push_accepted"] {
        assert_eq!(gm.count(mark, accepted), 0, "{name}");
    }
    event
}

/// Gives a member what `bad` is said instead of, and what became of it: true where it waits for a better one.
fn waits_for_better(gm: &Daemon, mark: Mark, name: &str) -> bool {
    let event = refused(gm, mark, name);
    let vpn = gm.vpn().unwrap();
    assert!(vpn.teks.is_empty() && vpn.kek.is_none(), "{name}");
    matches!(event, Event::MessageDropped { .. })
}

fn cases(place: &str) -> Vec<(String, Raw)> {
    let file = vectors("gdoi-rejects");
    let of_place = file["cases"].as_array().unwrap().iter().filter(|case| case["where"] == place);
    let read = |case: &Value| {
        let kind = case["payload"].as_u64().unwrap() as u8;
        (case["name"].as_str().unwrap().to_owned(), (kind, octets(&case["body"])))
    };
    of_place.map(read).collect()
}

#[test]
fn every_forbidden_structure_of_a_pull_installs_nothing_and_a_good_one_after_it_does() {
    let server = Server::new();
    let member = Member::of(server.address());
    let (seconds, fourths) = (cases("pull-2"), cases("pull-4"));
    assert_eq!((seconds.len(), fourths.len()), (23, 16));
    let mut good = 0;
    for (fourth, (name, body)) in
        seconds.into_iter().map(|it| (false, it)).chain(fourths.into_iter().map(|it| (true, it)))
    {
        let gm = member.start();
        let mut served = server.begin(member.address);
        let mark = gm.mark();
        let script = &server.script;
        let good_second = server.second(&served, &script.sa);
        let good_fourth = [script.seq.clone(), script.kd.clone()];
        let waits = if fourth {
            server.exchange(&mut served, &good_second, member.address);
            let payloads =
                if body.0 == 18 { vec![body, script.kd.clone()] } else { vec![script.seq.clone(), body] };
            let bad = server.fourth(&served, &payloads);
            server.socket.send_to(&bad, member.address).unwrap();
            waits_for_better(&gm, mark, &name)
        } else {
            let bad = server.second(&served, &body);
            server.socket.send_to(&bad, member.address).unwrap();
            let waits = waits_for_better(&gm, mark, &name);
            if waits {
                server.exchange(&mut served, &good_second, member.address);
            }
            waits
        };
        if waits {
            let last = server.fourth(&served, &good_fourth);
            server.socket.send_to(&last, member.address).unwrap();
            gm.wait_named(mark, SOON, "registered").unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(gm.vpn().unwrap().teks.len(), 2, "{name}");
            good += 1;
        }
        assert_eq!(gm.stop().unwrap().0, Some(0), "{name}");
    }
    assert!(good >= 10, "{good} were followed by a good one");
}

#[test]
fn every_forbidden_structure_of_a_push_changes_nothing_and_a_good_one_after_it_does() {
    let server = Server::new();
    let member = Member::of(server.address());
    let gm = member.start();
    let mut served = server.begin(member.address);
    let mark = gm.mark();
    let second = server.second(&served, &server.script.sa);
    server.exchange(&mut served, &second, member.address);
    let fourth = server.fourth(&served, &[server.script.seq.clone(), server.script.kd.clone()]);
    server.socket.send_to(&fourth, member.address).unwrap();
    gm.wait_named(mark, SOON, "registered").unwrap();
    // Not its number: a PUSH that is signed has used it up, whatever else it says.
    let keys = || {
        let vpn = gm.vpn().unwrap();
        let teks = vpn.teks.into_iter().map(|tek| (tek.spi, tek.key_fingerprint));
        let kek = vpn.kek.expect("a KEK");
        (teks.collect::<Vec<_>>(), kek.spi, kek.key_fingerprint)
    };
    let before = keys();
    let bad = cases("push");
    assert_eq!(bad.len(), 4);
    // What else would be read in a PUSH.
    let others = cases("pull-2").into_iter().chain(cases("pull-4"));
    let (script, mut seq) = (&server.script, 0);
    for (name, body) in bad.into_iter().chain(others) {
        let payloads = match body.0 {
            1 => vec![body, script.kd.clone()],
            17 => vec![script.push_sa.clone(), body],
            _ => vec![body],
        };
        let mark = gm.mark();
        seq += 1;
        server.socket.send_to(&script.push(seq, &payloads), member.address).unwrap();
        let _ = refused(&gm, mark, &name);
        assert_eq!(keys(), before, "{name}");
    }
    let mark = gm.mark();
    let good = script.push(seq + 1, &[script.push_sa.clone(), script.push_kd.clone()]);
    server.socket.send_to(&good, member.address).unwrap();
    gm.wait_named(mark, SOON, "push_accepted").unwrap();
    assert!(keys().0.len() > before.0.len());
    assert_eq!(gm.stop().unwrap().0, Some(0));
}
