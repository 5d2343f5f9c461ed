//! `gcksd` as a process: exit codes, a registration over UDP, the operator's sockets, and a restart after a sudden end.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::client::{self, Client};
use ctl::control::{Reply, Request};
use ctl::observe::{GcksSnapshot, Snapshot};
use gdoi_proto::header::Header;
use gdoi_proto::ids::GroupId;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::ExchangeType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::{Provider, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Entropy, Instant, Now};
use ike::phase1::{Credentials, Initiator, Mode, NONCE_LEN, Offer, PeerPolicy, Step};
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;
use rustix::process::{Pid, Signal, kill_process};

const KEY: &str = "a secret of more than 16 octets";

/// A directory with a configuration; port 0 lets the system choose.
struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let site = Site { directory: tempfile::tempdir().unwrap() };
        std::fs::write(site.path("key"), KEY).unwrap();
        std::fs::set_permissions(site.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let (state, control, observe) = (site.path("state"), site.path("c.sock"), site.path("o.sock"));
        let text = format!(
            r#"
[server]
listen = ["127.0.0.1:0"]
state-directory = {state:?}
control-socket = {control:?}
observe-socket = {observe:?}
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = {{ file = "key" }}
[ike.gateway.gw]
ike-policy = "pol"
address = "127.0.0.0/8"
[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.g1]
group-id = 1
ike-gateways = ["gw"]
[group.g1.server-member-communication]
encryption-algorithm = "aes-256-cbc"
signature = "ecdsa-256"
sig-hash-algorithm = "sha-256"
[group.g1.ipsec-sa.S]
proposal = "esp"
[[group.g1.ipsec-sa.S.match-policy]]
name = "m"
source = "10.0.0.0/8"
destination = "10.0.0.0/8"
"#
        );
        std::fs::write(site.path("gcks.toml"), text).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gcksd"));
        command.arg("--config").arg(self.path("gcks.toml")).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Exit code and everything printed.
    fn ends(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.command(arguments).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    fn start(&self, arguments: &[&str]) -> Daemon {
        let mut child = self.command(arguments).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        let mut address = None;
        // The first keys, or the state: from then on members and operators are served.
        while !(seen.contains("group_created") || seen.contains("state_restored")) {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended: {seen}");
            if let Some((_, listening)) = line.split_once("listening on ") {
                address = Some(listening.trim().parse().unwrap());
            }
            seen.push_str(&line);
        }
        Daemon {
            child,
            log,
            seen,
            address: address.expect("an address"),
            site: self.directory.path().to_owned(),
        }
    }
}

/// A running `gcksd`; killed when a test fails.
struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    seen: String,
    address: SocketAddr,
    site: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    fn ask(&self, request: &Request) -> Reply {
        Client::connect(&self.site.join("c.sock")).unwrap().ask(request).unwrap()
    }

    fn snapshot(&self) -> GcksSnapshot {
        let Reply::Snapshot(snapshot) = self.ask(&Request::Snapshot) else { panic!("no snapshot") };
        server(*snapshot)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it; exit code and the whole log.
    fn stop(mut self) -> (Option<i32>, String) {
        self.signal(Signal::TERM);
        let mut log = std::mem::take(&mut self.seen);
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

fn server(snapshot: Snapshot) -> GcksSnapshot {
    match snapshot {
        Snapshot::Gcks(server) => server,
        Snapshot::Gm(_) => panic!("not a key server"),
    }
}

struct Random(Arc<dyn Provider>);

impl Entropy for Random {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

/// A member with a socket of its own.
struct Member {
    socket: UdpSocket,
    provider: Arc<dyn Provider>,
}

impl Member {
    fn new(server: SocketAddr) -> Member {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Member { socket, provider: default_provider() }
    }

    fn receive(&self) -> (Header, Bytes) {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).expect("an answer within 10 s");
        buffer.truncate(length);
        (Header::decode(&buffer).unwrap(), buffer.into())
    }

    fn phase1(&self) -> IkeSa {
        let suite = Suite {
            cipher: Cipher::Aes256Cbc,
            hash: Hash::Sha256,
            group: DhGroup::Ecp256,
            method: AuthMethod::PreSharedKey,
        };
        let policy = PeerPolicy {
            mode: Mode::Main,
            offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
            credentials: Credentials::pre_shared(SecretBytes::copy(KEY.as_bytes())),
            local_identity: None,
            remote: vec![IdentityRule::PeerAddress],
            doi_ipsec: false,
            ecdsa_double_hash: false,
            dialect: Dialect::STRICT,
        };
        let (here, there) = (self.socket.local_addr().unwrap(), self.socket.peer_addr().unwrap());
        let mut random = Random(self.provider.clone());
        let now = Now { at: Instant(1), unix_seconds: 0 };
        let (mut initiator, mut todo) =
            Initiator::start(policy, here.ip(), there.ip(), false, now.at, &mut random);
        loop {
            for step in std::mem::take(&mut todo) {
                match step {
                    Step::Send(octets) => drop(self.socket.send(&octets).unwrap()),
                    Step::Run(job) => {
                        let done = run(self.provider.as_ref(), job);
                        todo.extend(initiator.on_done(now, done, &mut random).unwrap());
                    }
                    Step::Established(done) => return done.sa,
                }
            }
            if todo.is_empty() {
                let (header, octets) = self.receive();
                todo.extend(initiator.on_message(now, &header, &octets).unwrap());
            }
        }
    }

    /// The SPIs of the TEKs it was given.
    fn register(&self) -> Vec<String> {
        let mut sa = self.phase1();
        let mut random = Random(self.provider.clone());
        let mid = sa.fresh_message_id(&mut random);
        let mut exchange = Exchange::new(&sa, ExchangeType::GroupkeyPull, mid);
        let ni: [u8; NONCE_LEN] = random.array();
        let GroupId { id_type, data } = GroupId::number(1);
        let id = Identification { id_type, protocol: 0, port: 0, data };
        let first = exchange.seal(&sa, &[], &[Payload::Nonce(ni.to_vec()), Payload::Id(id)]);
        self.socket.send(&first).unwrap();
        let (header, octets) = self.receive();
        let opened = exchange.open(&sa, &header, &octets, &[&ni]).unwrap().into_inner();
        let [Payload::Nonce(nr), Payload::GdoiSa(policy)] = &opened[..] else { panic!("{opened:?}") };
        let policy = GroupPolicy::read(policy, Carriage::Pull).unwrap();
        let third = exchange.seal(&sa, &[&ni, nr], &[]);
        self.socket.send(&third).unwrap();
        let (header, octets) = self.receive();
        let opened = exchange.open(&sa, &header, &octets, &[&ni, nr]).unwrap().into_inner();
        let [Payload::Seq(_), Payload::Kd(kd)] = &opened[..] else { panic!("{opened:?}") };
        let keys = KeySet::read(kd, &policy, Carriage::Pull).unwrap();
        keys.teks.iter().map(|(spi, _)| format!("{:#010x}", spi.0)).collect()
    }
}

fn spis(snapshot: &GcksSnapshot) -> Vec<String> {
    snapshot.groups[0].teks.iter().map(|tek| tek.spi.clone()).collect()
}

#[test]
fn a_member_registers_and_a_sudden_end_loses_nothing() {
    let site = Site::new();
    let first = site.start(&[]);
    let member = Member::new(first.address);
    let given = member.register();
    let before = first.snapshot();
    assert_eq!(spis(&before), given);
    assert_eq!(before.groups[0].members.len(), 1);
    assert!(before.statistics.datagrams_received >= 5 && before.statistics.datagrams_sent >= 5);
    // Members expect pushes from where they registered.
    let fixed = site.read().replace("127.0.0.1:0", &first.address.to_string());
    std::fs::write(site.path("gcks.toml"), fixed).unwrap();
    // SIGKILL: nothing is closed, flushed or told.
    drop(first);

    let second = site.start(&[]);
    assert!(second.seen.contains("state restored: 1 groups, 1 members"), "{}", second.seen);
    assert_eq!(spis(&second.snapshot()), given);
    let rekey = Request::Rekey { group: "g1".to_owned(), tek: true, kek: false };
    let not_ready =
        |reply: &Reply| matches!(reply, Reply::Refused { reason } if reason.contains("not ready"));
    let mut reply = second.ask(&rekey);
    // The stored signing key is being read; at most 10 s.
    for _ in 0..1000 {
        if !not_ready(&reply) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        reply = second.ask(&rekey);
    }
    assert!(matches!(reply, Reply::Done { seq: Some(_), .. }), "{reply:?}");
    assert_eq!(member.receive().0.exchange, ExchangeType::GroupkeyPush);
    let after = second.snapshot();
    assert_eq!((after.groups[0].teks.len(), after.groups[0].statistics.rekeys), (2, 1));
    let (code, log) = second.stop();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("daemon_stopping: stopping"), "{log}");
    assert!(!site.path("c.sock").exists() && !site.path("o.sock").exists());
}

#[test]
fn keys_are_shown_on_the_control_socket_only_when_asked_for_and_never_on_the_observe_socket() {
    let site = Site::new();
    let daemon = site.start(&["--show-keys", "--log", "text"]);
    assert!(daemon.seen.contains("KEYS ARE SHOWN"), "{}", daemon.seen);
    let group = &daemon.snapshot().groups[0];
    assert!(group.kek.as_ref().unwrap().key_hex.is_some() && group.teks[0].key_hex.is_some());
    let (observed, _events) = client::observe(&site.path("o.sock")).unwrap();
    let group = &server(observed).groups[0];
    assert!(group.kek.as_ref().unwrap().key_hex.is_none() && group.teks[0].key_hex.is_none());
    assert_eq!(daemon.stop().0, Some(0));
    let daemon = site.start(&[]);
    assert!(daemon.snapshot().groups[0].teks[0].key_hex.is_none());
}

#[test]
fn a_hang_up_names_what_is_wrong_with_the_file_and_keeps_running() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let events = Client::connect(&site.path("c.sock")).unwrap().watch().unwrap();
    std::fs::write(site.path("gcks.toml"), "[servre]\n").unwrap();
    daemon.signal(Signal::HUP);
    // What was logged just before the watch began may still arrive.
    let said = events.map(|event| event.unwrap().event).find(|event| event.name() == "configuration_refused");
    assert!(said.unwrap().to_string().contains("servre"));
    assert!(matches!(daemon.ask(&Request::Version), Reply::Done { .. }));
}

#[test]
fn every_reason_not_to_run_has_its_exit_code() {
    let site = Site::new();
    let (code, text) = site.ends(&["--check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("good: 1 gateways, 1 groups\n"), "{text}");
    assert_eq!(site.ends(&["--bogus"]).0, Some(2));
    for arguments in [&["--verify-state"][..], &["--restore", "backup"]] {
        let (code, text) = site.ends(arguments);
        assert!(code == Some(1) && text.contains("not supported yet: --"), "{text}");
    }

    let daemon = site.start(&[]);
    let (code, text) = site.ends(&[]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("in use by another daemon (pid"), "{text}");
    // Another state, the same port.
    let other = Site::new();
    let busy = other.read().replace("127.0.0.1:0", &daemon.address.to_string());
    std::fs::write(other.path("gcks.toml"), busy).unwrap();
    let (code, text) = other.ends(&[]);
    assert!(code == Some(3) && text.contains("is in use by another process"), "{text}");
    assert_eq!(daemon.stop().0, Some(0));

    set_mode(&site.path("state"), 0o750);
    let (code, text) = site.ends(&[]);
    assert!(code == Some(3) && text.contains("chmod 0700"), "{text}");
    set_mode(&site.path("state"), 0o700);

    let state = std::fs::OpenOptions::new().write(true).open(site.path("state/state.sqlite")).unwrap();
    state.write_all_at(&[0x5a; 64], 0).unwrap();
    let (code, text) = site.ends(&[]);
    assert!(code == Some(4) && text.contains("the state is damaged"), "{text}");

    std::fs::write(site.path("gcks.toml"), "[server]\nlisten = 7\n").unwrap();
    let (code, text) = site.ends(&[]);
    assert!(code == Some(1) && text.contains("gcks.toml:2:"), "{text}");
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

impl Site {
    fn read(&self) -> String {
        std::fs::read_to_string(self.path("gcks.toml")).unwrap()
    }
}
