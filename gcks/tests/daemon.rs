//! `gcksd` as a process: exit codes, a registration over UDP, the operator's sockets, and a restart after a sudden end.

mod support;

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use ctl::client::{self, Client};
use ctl::control::{Reply, Request};
use ctl::observe::GcksSnapshot;
use gdoi_proto::header::Flags;
use gdoi_proto::registry::ExchangeType;
use rustix::process::Signal;

use support::member::Member;
use support::{Site, server, set_mode};

fn spis(snapshot: &GcksSnapshot) -> Vec<String> {
    snapshot.groups[0].teks.iter().map(|tek| tek.spi.clone()).collect()
}

#[test]
fn a_key_server_that_is_stopped_says_goodbye_and_keeps_its_members() {
    let site = Site::new();
    let first = site.start(&[]);
    let mut member = Member::new(first.address());
    member.register();
    let (code, log) = first.stop();
    assert_eq!(code, Some(0), "{log}");
    let (header, _) = member.look().expect("a Delete");
    assert_eq!((header.exchange, header.flags), (ExchangeType::Informational, Flags::ENCRYPTION));
    assert_eq!(site.start(&[]).snapshot().groups[0].members.len(), 1);
}

#[test]
fn a_member_registers_and_a_sudden_end_loses_nothing() {
    let site = Site::new();
    let first = site.start(&[]);
    let mut member = Member::new(first.address());
    let given: Vec<String> = member.register().teks.keys().map(|spi| format!("{:#010x}", spi.0)).collect();
    let before = first.snapshot();
    assert_eq!(spis(&before), given);
    assert_eq!(before.groups[0].members.len(), 1);
    assert!(before.statistics.datagrams_received >= 5 && before.statistics.datagrams_sent >= 5);
    // Members expect pushes from where they registered.
    site.configure("127.0.0.1:0", &first.address().to_string());
    first.kill();

    let second = site.start(&[]);
    assert!(second.seen.contains("state restored: 1 groups, 1 members"), "{}", second.seen);
    assert_eq!(spis(&second.snapshot()), given);
    assert_eq!(second.rekey(false), Some(1));
    member.push();
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
fn approved_only_is_shown_and_a_file_with_anything_else_does_not_start() {
    let site = Site::new();
    assert!(!site.start(&[]).snapshot().approved_only);
    site.configure("[server]\n", "[server]\napproved-only = true\n");
    let daemon = site.start(&[]);
    Member::new(daemon.address()).register();
    assert!(daemon.snapshot().approved_only);
    daemon.stop();
    site.configure("group19", "group31");
    let (code, text) = site.ends(&[]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("gcks.toml:11:1: ike.proposal.p.dh-group: group31 is outside approved-only"),
        "{text}"
    );
}

#[test]
fn every_reason_not_to_run_has_its_exit_code() {
    let site = Site::new();
    let (code, text) = site.ends(&["--check"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with("good: 1 gateways, 1 groups\n"), "{text}");
    assert_eq!(site.ends(&["--bogus"]).0, Some(2));
    let (code, text) = site.ends(&["--verify-state"]);
    assert!(code == Some(3) && text.contains("no such directory"), "{text}");
    assert_eq!(site.ends(&["--yes"]).0, Some(2));

    let daemon = site.start(&[]);
    let (code, text) = site.ends(&[]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("in use by another daemon (pid"), "{text}");
    // Another state, the same port.
    let other = Site::new();
    other.configure("127.0.0.1:0", &daemon.address().to_string());
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
    assert_eq!(site.ends(&["--verify-state"]).0, Some(4));

    std::fs::write(site.path("gcks.toml"), "[server]\nlisten = 7\n").unwrap();
    let (code, text) = site.ends(&[]);
    assert!(code == Some(1) && text.contains("gcks.toml:2:"), "{text}");
}

#[test]
fn who_does_not_read_the_log_stops_nobody_and_finds_every_line() {
    let site = Site::new();
    let mut command = site.command(&["--log", "json"]);
    let mut daemon =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let patience = support::member::patience();
    let mut client = loop {
        assert!(patience(), "no control socket");
        match Client::connect(&site.path("c.sock")) {
            Ok(client) => break client,
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    // Each is logged by some 300 octets; a pipe holds 65,536.
    for _ in 0..500 {
        let reply = client.ask(&Request::ClearStatistics { group: None }).expect("an answer");
        assert!(matches!(reply, Reply::Done { .. }), "{reply:?}");
    }
    let mut stderr = daemon.stderr.take().unwrap();
    let read = std::thread::spawn(move || {
        let mut log = String::new();
        stderr.read_to_string(&mut log).unwrap();
        log
    });
    let pid = rustix::process::Pid::from_raw(daemon.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    assert!(daemon.wait().unwrap().success());
    let log = read.join().unwrap();
    assert!(log.len() > 100_000, "{} octets", log.len());
    let requests = log.lines().filter(|line| line.contains("\"operator_request\"")).count();
    assert_eq!((requests, log.contains("lines are lost")), (500, false));
    assert!(log.contains("daemon_stopping"), "what waits at the end is written");
}
