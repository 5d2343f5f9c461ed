//! What the loop does with what comes from outside.

use std::os::unix::fs::PermissionsExt;

use config::Gcks;

use super::*;
use crate::store::memory::Memory;

const FILE: &str = r#"
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = { file = "key" }
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
"#;

/// A daemon over a store in memory, and the ends of its inlets.
struct Bench {
    lines: runtime::hub::Lines,
    asked: mpsc::Sender<Asked>,
    signals: mpsc::Sender<Signal>,
    ended: tokio::task::JoinHandle<Result<(), StartError>>,
}

impl Bench {
    fn start(store: Memory) -> Bench {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (directory.path().join("gcks.toml"), directory.path().join("key"));
        std::fs::write(&path, FILE).unwrap();
        std::fs::write(&key, "a secret of more than 16 octets").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let config: Gcks = config::load_gcks(&path, config::Options::default())
            .unwrap_or_else(|errors| panic!("{errors}"))
            .config;
        let address = "127.0.0.1:0".parse().unwrap();
        let sockets = Sockets::bind(&[runtime::udp::Listen { address, marker: false }]).unwrap();
        let hub = Hub::new();
        let lines = hub.subscribe();
        let options = Options { path, files: Vec::new(), lab: false, show_keys: false };
        let (daemon, mut inlets) =
            Daemon::start(convert::settings(&config, false), options, store, sockets, hub).unwrap();
        let (signals, taken) = mpsc::channel(4);
        let (asked, requests) = mpsc::channel(4);
        (inlets.signals, inlets.asked) = (taken, requests);
        Bench { lines, asked, signals, ended: tokio::spawn(daemon.work(inlets)) }
    }

    /// Names of the events up to and including `name`.
    async fn until(&mut self, name: &str) -> Vec<String> {
        let mut names = Vec::new();
        let wait = async {
            while names.last().is_none_or(|last| last != name) {
                let line = self.lines.next().await.expect("the daemon runs");
                let stamped: ctl::event::Stamped = ctl::control::from_line(&line).unwrap();
                names.push(stamped.event.name().to_owned());
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), wait).await;
        assert!(waited.is_ok(), "no {name} within 10 s");
        names
    }

    async fn ask(&self, request: Request) -> Reply {
        let (reply, answer) = oneshot::channel();
        self.asked.send(Asked { request, reply, operator: None }).await.unwrap();
        tokio::time::timeout(Duration::from_secs(10), answer).await.expect("within 10 s").expect("an answer")
    }

    async fn stop(self) {
        self.signals.send(Signal::Stop).await.unwrap();
        self.ended.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn what_is_not_on_disk_is_not_told_and_a_refusing_disk_is_recovered_from() {
    let store = Memory::default();
    store.fail(true);
    let mut bench = Bench::start(store.clone());
    let names = bench.until("store_failed").await;
    assert!(!names.contains(&"group_created".to_owned()), "keys that are not on disk: {names:?}");
    let rekey = Request::Rekey { group: "g1".to_owned(), tek: true, kek: true };
    let Reply::Refused { reason } = bench.ask(rekey.clone()).await else { panic!("not refused") };
    assert_eq!(reason, "the state cannot be written: told to fail");
    store.fail(false);
    bench.until("store_recovered").await;
    bench.until("group_created").await;
    assert!(matches!(bench.ask(rekey).await, Reply::Done { .. }));
    bench.stop().await;
    assert!(!store.clone().load().unwrap().is_empty());
}

#[tokio::test]
async fn a_stopping_daemon_writes_what_waits_and_the_next_one_goes_on() {
    let store = Memory::default();
    let mut first = Bench::start(store.clone());
    first.until("group_created").await;
    let Reply::Snapshot(snapshot) = first.ask(Request::Snapshot).await else { panic!("no snapshot") };
    let Snapshot::Gcks(before) = *snapshot else { panic!("not a key server") };
    assert_eq!(before.groups[0].kek.as_ref().unwrap().key_hex, None, "only with --show-keys");
    first.stop().await;
    let mut second = Bench::start(store);
    let names = second.until("state_restored").await;
    assert!(!names.contains(&"group_created".to_owned()), "{names:?}");
    let Reply::Snapshot(snapshot) = second.ask(Request::Snapshot).await else { panic!("no snapshot") };
    let Snapshot::Gcks(after) = *snapshot else { panic!("not a key server") };
    let spis = |snapshot: &GcksSnapshot| {
        let group = &snapshot.groups[0];
        (
            group.kek.as_ref().unwrap().spi.clone(),
            group.teks.iter().map(|tek| tek.spi.clone()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(spis(&before), spis(&after));
    second.stop().await;
}

#[tokio::test]
async fn a_hang_up_checks_the_file_and_changes_nothing() {
    let mut bench = Bench::start(Memory::default());
    bench.until("group_created").await;
    // The directory of the file is gone by now.
    bench.signals.send(Signal::Reload).await.unwrap();
    bench.until("configuration_refused").await;
    let reply = bench.ask(Request::Register { vpn: None }).await;
    assert!(matches!(reply, Reply::Refused { .. }));
    bench.stop().await;
}
