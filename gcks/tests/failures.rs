//! What can go wrong around a `gcksd`: a full disk, a state it cannot use, files of the wrong mode or owner, and peers
//! that are refused. Each is told in words that say what to do, with the right exit code or event.
//!
//! Exit codes, ports in use and two daemons on one directory: `daemon.rs`.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ctl::client::{Client, Events};
use ctl::control::{Reply, Request};
use ctl::event::Event;
use gdoi_proto::registry::NotifyType;
use ike::protect::notify::Informational;
use rustix::process::{Resource, Rlimit, prlimit};

use support::member::{Member, Stopped, patience};
use support::{Daemon, KEY, Site, ends, set_mode};

fn watch(daemon: &Daemon) -> Events {
    let events = Client::connect(&daemon.control()).unwrap().watch().unwrap();
    events.set_timeout(Some(Duration::from_secs(10))).unwrap();
    events
}

/// The next event of this name, within 10 s of the one before it.
fn told(events: &mut Events, name: &str) -> Event {
    let mut named = events.map(|event| event.expect("an event within 10 s").event);
    named.find(|event| event.name() == name).unwrap_or_else(|| panic!("it ended without {name}"))
}

/// Registers without an answer until the daemon tells of it.
fn unanswered(member: &mut Member, events: &mut Events, name: &str) -> String {
    let waits = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| member.register_with(1, &|| waits.load(Ordering::Relaxed)).err());
        let said = told(events, name).to_string();
        waits.store(false, Ordering::Relaxed);
        assert_eq!(asking.join().unwrap(), Some(Stopped::Silence));
        said
    })
}

/// Between the only copy of a PUSH and the end of its rekey, in seconds.
const PERIOD: u64 = 8;

/// A site where each PUSH has one copy, so that a silent member is soon expired.
fn impatient() -> Site {
    let site = Site::new();
    let hash = "sig-hash-algorithm = \"sha-256\"\n";
    let once = format!("{hash}number-of-retransmission = 0\nretransmission-period = {PERIOD}\n");
    site.configure(hash, &once);
    site
}

/// A disk that fills while a PUSH is delivered and another rekey is asked for: nothing of that leaves before it is
/// written, and then all of it does; nobody is expired for what could not be sent, however long it takes.
fn full_disk(daemon: &Daemon, fill: impl FnOnce(), free: impl FnOnce()) {
    let mut member = Member::new(daemon.address());
    let mut registration = member.register();
    let mut events = watch(daemon);
    assert_eq!(daemon.rekey(false), Some(1));
    let unanswered = member.push();
    fill();
    let rekey = Request::Rekey { group: "g1".to_owned(), tek: true, kek: false };
    let (control, first) = (daemon.control(), rekey.clone());
    let waiting = std::thread::spawn(move || Client::connect(&control).unwrap().ask(&first).unwrap());
    let said = told(&mut events, "store_failed").to_string();
    assert!(said.contains("the state cannot be written"), "{said}");
    let Reply::Refused { reason } = daemon.ask(&rekey) else { panic!("a rekey that cannot be kept") };
    assert!(reason.starts_with("the state cannot be written: "), "{reason}");
    let group = daemon.snapshot().groups.remove(0);
    assert_eq!((group.members.len(), group.kek.unwrap().seq), (1, 2), "it answers and keeps everything");
    std::thread::sleep(Duration::from_secs(PERIOD + 1));
    assert!(member.look_now().is_none() && !waiting.is_finished(), "nothing leaves before it is written");
    free();
    told(&mut events, "store_recovered");
    let Reply::Done { seq: Some(2), .. } = waiting.join().unwrap() else { panic!("the rekey is done now") };
    let again = member.push();
    assert_eq!(again, unanswered, "the same octets");
    for push in [again, member.push()] {
        let taken = member.take(&mut registration.kek, &push).expect("the next push");
        member.send(&taken.ack);
    }
    for expected in [1, 2] {
        let Event::RekeyCompleted { seq, acknowledged, missing, .. } = told(&mut events, "rekey_completed")
        else {
            panic!("another event of that name");
        };
        assert_eq!((seq, acknowledged, missing.len()), (expected, 1, 0));
    }
    assert_eq!(daemon.snapshot().groups[0].members.len(), 1);
}

#[test]
fn a_full_disk_stops_what_must_be_written_and_loses_nothing() {
    let site = impatient();
    fs::create_dir(site.path("state")).unwrap();
    // A file system of its own, in a mount namespace of its own.
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let mount = r#"mount -t tmpfs -o size=1m,mode=700 none "$0" && exec "$@""#;
    command.args(["--mount", "sh", "-c", mount]).arg(site.path("state"));
    let probe = ends(wrapped(&command, Path::new("true"), &[]));
    if probe.0 != Some(0) {
        gdoi_lab::skipped("full disk", &format!("mount namespaces: {}", probe.1));
        return;
    }
    let gcksd = PathBuf::from(env!("CARGO_BIN_EXE_gcksd"));
    let command = wrapped(&command, &gcksd, &site.arguments(&[]));
    let daemon = Daemon::spawn(command, site.root()).ready();
    let root = format!("/proc/{}/root", daemon.pid().as_raw_nonzero());
    let filler = PathBuf::from(root + site.path("state/filler").to_str().unwrap());
    let fill = || {
        let file = fs::File::create(&filler).unwrap();
        let mut at = 0;
        while file.write_all_at(&[0; 512], at).is_ok() {
            at += 512;
        }
    };
    full_disk(&daemon, fill, || fs::remove_file(&filler).unwrap());
    assert_eq!(daemon.stop().0, Some(0));
}

#[test]
fn a_disk_that_takes_no_more_is_written_to_again_and_a_restart_finds_all_of_it() {
    let site = impatient();
    let mut command = Command::new("sh");
    command.args(["-c", r#"trap "" XFSZ; exec "$0" "$@""#]);
    let gcksd = PathBuf::from(env!("CARGO_BIN_EXE_gcksd"));
    let daemon = Daemon::spawn(wrapped(&command, &gcksd, &site.arguments(&[])), site.root()).ready();
    let limit = |current| {
        let limit = Rlimit { current, maximum: None };
        prlimit(Some(daemon.pid()), Resource::Fsize, limit).unwrap();
    };
    full_disk(&daemon, || limit(Some(0)), || limit(None));
    let teks = |daemon: &Daemon| -> BTreeSet<String> {
        daemon.snapshot().groups.remove(0).teks.into_iter().map(|tek| tek.spi).collect()
    };
    let before = teks(&daemon);
    daemon.kill();
    let daemon = site.start(&[]);
    assert_eq!((teks(&daemon), daemon.snapshot().groups[0].members.len()), (before, 1));
}

/// `command` with what it shall run.
fn wrapped(command: &Command, program: &Path, arguments: &[String]) -> Command {
    let mut wrapped = Command::new(command.get_program());
    wrapped.args(command.get_args()).arg(program).args(arguments);
    wrapped
}

/// Every file of the state with its content; SQLite's index of the log holds nothing that lasts.
fn state(site: &Site) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(site.path("state"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && !path.ends_with("lock") && !path.ends_with("state.sqlite-shm"))
        .map(|path| (path.clone(), fs::read(&path).unwrap()))
        .filter(|(_, content)| !content.is_empty())
        .collect();
    files.sort();
    files
}

#[test]
fn a_state_that_cannot_be_read_ends_with_4_and_is_left_as_it_is() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("garbage", |file| fs::write(file, vec![0xa5; 20_000]).unwrap()),
        ("half of it", |file| {
            let file = fs::OpenOptions::new().write(true).open(file).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2 + 100).unwrap();
        }),
        ("a page of garbage", |file| {
            let file = fs::OpenOptions::new().write(true).open(file).unwrap();
            file.write_all_at(&[0xa5; 4096], file.metadata().unwrap().len() - 4096).unwrap();
        }),
    ];
    for (what, damage) in damages {
        // A single page may be whole in the log: then nothing is lost, and nothing refused.
        let stops: &[bool] = if what == "garbage" { &[true, false] } else { &[true] };
        for clean in stops.iter().copied() {
            let site = Site::new();
            let daemon = site.start(&[]);
            daemon.stop();
            if !clean {
                // The log of what was written last stays beside the file.
                let daemon = site.start(&[]);
                assert_eq!(daemon.rekey(true), None, "nobody to tell");
                daemon.kill();
                assert!(fs::metadata(site.path("state/state.sqlite-wal")).unwrap().len() > 0);
            }
            damage(&site.path("state/state.sqlite"));
            let before = state(&site);
            let (code, text) = site.ends(&[]);
            assert_eq!(code, Some(4), "{what}: {text}");
            assert!(text.contains("state.sqlite: the state is damaged"), "{what}: {text}");
            assert!(
                text.contains("restore a backup (gcksd --restore FILE), or move it away"),
                "{what}: {text}"
            );
            assert!(state(&site) == before, "{what}, clean {clean}: the state was touched");
        }
    }
}

/// What an unprivileged user runs into. Root reads everything: when this is root, `gcksd` runs as nobody.
#[test]
fn files_of_the_wrong_mode_or_owner_are_refused_by_name() {
    const NOBODY: u32 = 65_534;
    let root = rustix::process::geteuid().is_root();
    let site = Site::new();
    let gcksd = site.path("gcksd");
    fs::copy(env!("CARGO_BIN_EXE_gcksd"), &gcksd).unwrap();
    fs::create_dir(site.path("state")).unwrap();
    let ours = |path: &Path| {
        if root {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    };
    for name in ["", "key", "gcks.toml", "state", "gcksd"] {
        ours(&site.path(name));
    }
    set_mode(&site.path("state"), 0o700);
    let run = || {
        if root {
            let user = NOBODY.to_string();
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
            wrapped(&command, &gcksd, &site.arguments(&[]))
        } else {
            wrapped(&Command::new("env"), &gcksd, &site.arguments(&[]))
        }
    };
    // The first state, so that there is a file.
    assert_eq!(Daemon::spawn(run(), site.root()).ready().stop().0, Some(0));
    let key = site.path("key");
    let cases = [
        ("key", 0o000, 1, "key cannot be read: Permission denied"),
        ("key", 0o640, 1, "key may be read by group or others (mode 640)"),
        ("key", 0o604, 1, "chmod 600"),
        ("gcks.toml", 0o000, 1, "gcks.toml"),
        ("state", 0o755, 3, "mode 0755 lets others in; it holds keys: chmod 0700 it"),
        ("state", 0o000, 3, "state/lock: Permission denied"),
        ("state/state.sqlite", 0o000, 3, "state.sqlite: cannot be opened: Permission denied"),
        ("state/state.sqlite", 0o644, 3, "mode 0644 lets others in; it holds keys: chmod 0600 it"),
    ];
    for (name, mode, expected, message) in cases {
        let path = site.path(name);
        let before = fs::metadata(&path).unwrap().permissions().mode();
        set_mode(&path, mode);
        let (code, text) = ends(run());
        set_mode(&path, before);
        assert_eq!(code, Some(expected), "{name} {mode:o}: {text}");
        assert!(text.contains(message) && text.contains(name), "{name} {mode:o}: {text}");
        assert!(!text.contains(KEY) && !text.contains("panicked"), "{text}");
    }
    if root {
        // Somebody else's directory: they could read the keys, whatever its mode.
        let (code, text) = ends(site.command(&[]));
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains(&format!("belongs to user {NOBODY}, this daemon runs as 0")), "{text}");
    }
    assert!(key.exists());
    assert_eq!(Daemon::spawn(run(), site.root()).ready().stop().0, Some(0), "all of it in order again");
}

#[test]
fn a_wrong_pre_shared_key_is_named_as_what_it_probably_is() {
    let site = Site::new();
    site.configure("[server]\n", "[server]\nlog-level = \"debug\"\n");
    let daemon = site.start(&[]);
    let mut events = watch(&daemon);
    let mut member = Member::new(daemon.address());
    member.pre_shared_key = "another secret of 16 octets".to_owned();
    member.repeats = 2;
    let failed = unanswered(&mut member, &mut events, "phase1_failed");
    assert!(failed.contains(&member.address().to_string()), "{failed}");
    assert!(failed.contains("probable pre-shared key mismatch"), "{failed}");
    assert!(!failed.contains(KEY));
    assert_eq!(daemon.snapshot().statistics.phase1_failed, 1);
    Member::new(daemon.address()).register();
}

#[test]
fn who_asks_for_what_it_may_not_have_is_refused_and_told_of() {
    let site = Site::new();
    site.configure("group-id = 1\n", "group-id = 1\nmember-threshold = 1\n");
    site.configure(
        "[ipsec.proposal.esp]",
        "[ike.gateway.other]\nike-policy = \"pol\"\naddress = \"127.9.0.0/16\"\n[ipsec.proposal.esp]",
    );
    let daemon = site.start(&[]);
    let mut events = watch(&daemon);
    let refused = [Informational::Notified(NotifyType::InvalidIdInformation)];
    let notified = |result: Result<_, Stopped>| match result.err() {
        Some(Stopped::Notified(said)) => said,
        other => panic!("{other:?}"),
    };

    let mut member = Member::new(daemon.address());
    assert_eq!(notified(member.register_with(7, &patience())), refused);
    let said = told(&mut events, "pull_refused").to_string();
    assert!(said.contains("no such group") && said.contains('7'), "{said}");

    let mut stranger = Member::at("127.9.0.1:0".parse().unwrap(), daemon.address());
    assert_eq!(
        notified(stranger.register_with(1, &patience())),
        refused,
        "the same answer: nothing to learn"
    );
    let said = told(&mut events, "pull_refused").to_string();
    assert!(said.contains("gateway other (line ") && said.contains("ike-gateways"), "{said}");

    member.register();
    let mut second = Member::at("127.0.0.2:0".parse().unwrap(), daemon.address());
    let over = unanswered(&mut second, &mut events, "member_threshold_reached");
    assert!(over.contains("127.0.0.2") && over.contains('1'), "{over}");
    let group = daemon.snapshot().groups.remove(0);
    assert_eq!((group.members.len(), group.statistics.pull_exceed_member_threshold), (1, 1));
    assert_eq!(group.statistics.pull_failed, 1);
}
