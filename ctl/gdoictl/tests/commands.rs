//! The built command against a daemon that is only a control socket: what it prints and how it exits.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ctl::control::{Reply, Request, Snapshot};
use ctl::event::Event;
use ctl::observe::{GcksSnapshot, GroupView, MemberView};
use runtime::control::{Asked, MODE, serve};
use runtime::hub::Hub;
use runtime::local::LocalSocket;
use tokio::sync::mpsc;

/// A key server with group `g1` (number 7) of two members, of which one never acknowledges.
struct FakeServer {
    directory: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl FakeServer {
    fn start() -> FakeServer {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let (path, observe) = (directory.path().join("control.sock"), directory.path().join("observe.sock"));
        runtime.block_on(async {
            let (hub, (sender, mut asked)) = (Hub::new(), mpsc::channel::<Asked>(4));
            serve(LocalSocket::bind(&path, MODE, "").expect("a socket"), sender.clone(), hub.clone(), None);
            let observe = LocalSocket::bind(&observe, runtime::observe::MODE, "").expect("a socket");
            runtime::observe::serve(observe, sender, hub.clone());
            tokio::spawn(async move {
                while let Some(Asked { request, reply, .. }) = asked.recv().await {
                    let begun = matches!(request, Request::Rekey { .. });
                    let _ = reply.send(answer(request));
                    if begun {
                        events().iter().for_each(|event| hub.publish(0, event));
                    }
                }
            });
        });
        FakeServer { directory, _runtime: runtime }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn run(&self, line: &str) -> Output {
        gdoictl(&self.socket(), line)
    }
}

fn answer(request: Request) -> Reply {
    let member = |identity: &str| MemberView { identity: identity.to_owned(), ..MemberView::default() };
    match request {
        Request::Snapshot => {
            let members = vec![member("gm1"), member("gm2")];
            let group =
                GroupView { name: "g1".to_owned(), id: "7".to_owned(), members, ..GroupView::default() };
            Reply::Snapshot(Box::new(Snapshot::Gcks(GcksSnapshot {
                groups: vec![group],
                ..GcksSnapshot::default()
            })))
        }
        Request::Rekey { group, tek: true, kek: false } if group == "g1" => Reply::Done {
            text: "rekey SEQ 4: the plan".to_owned(),
            seq: Some(4),
            kek_spi: Some("0x0b".to_owned()),
            rekey: Some(3),
        },
        Request::Expel { group, member } if group == "g1" && member == "gm2" => {
            Reply::done("gm2 expelled".to_owned())
        }
        _ => Reply::Refused { reason: "no such member".to_owned() },
    }
}

fn events() -> [Event; 4] {
    let (group, member, kek_spi) = ("g1".to_owned(), "gm1".to_owned(), "0x0b".to_owned());
    let missing = vec!["gm2".to_owned()];
    [
        Event::RekeyStarted {
            group: group.clone(),
            rekey: 3,
            pushes: 1,
            seq: 4,
            kek_spi: kek_spi.clone(),
            teks: Vec::new(),
            new_kek: None,
            members: 2,
            octets: 300,
            why: "operator".to_owned(),
        },
        Event::PushSent {
            group: group.clone(),
            seq: 4,
            kek_spi: kek_spi.clone(),
            attempt: 1,
            members: 2,
            way: "unicast".to_owned(),
        },
        Event::AckReceived {
            group: group.clone(),
            member,
            seq: 4,
            kek_spi: kek_spi.clone(),
            milliseconds: 5,
        },
        Event::RekeyCompleted { group, seq: 4, kek_spi, acknowledged: 1, missing, seconds: 20.0 },
    ]
}

fn gdoictl(socket: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gdoictl"));
    command.arg("--socket").arg(socket).args(line.split(' ')).output().expect("the command runs")
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).expect("text")
}

#[test]
fn a_rekey_shows_the_plan_the_acknowledgements_and_who_is_missing() {
    let server = FakeServer::start();
    let output = server.run("server rekey --group 7 --tek");
    assert_eq!(
        text(&output.stdout),
        "rekey SEQ 4: the plan\n\
         sent to 2 members by unicast, attempt 1\n\
         [##########..........] 1/2 gm1 acknowledged after 5 ms\n\
         done in 20.0 s, 1 acknowledged, 1 did not answer: gm2\n"
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn a_rekey_in_json_is_one_object_per_line() {
    let output = FakeServer::start().run("--json server rekey --group g1 --tek");
    let lines: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[0]["seq"], &lines[3]["missing"][0]), (&4.into(), &"gm2".into()));
}

#[test]
fn exit_codes_tell_done_refused_usage_and_unreachable_apart() {
    let server = FakeServer::start();
    for (line, code, reason) in [
        ("server expel --group g1 --member gm2", 0, ""),
        ("server expel --group g1 --member gm9", 1, "gdoictl: no such member\n"),
        ("server show groups --json", 0, ""),
        ("server show registered-members --group g9", 1, "gdoictl: no group g9; there are: g1\n"),
        ("server explain --member gm9", 1, "gdoictl: no such member\n"),
        (
            "server trace --member gm1 --pcap f",
            1,
            "gdoictl: only a key server that was started with --lab shows decrypted messages\n",
        ),
    ] {
        let output = server.run(line);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(code), reason), "{line}");
    }
    assert_eq!(server.run("member show policy").status.code(), Some(2), "a key server is no member");
    assert_eq!(server.run("server dance").status.code(), Some(2));
    let nowhere = gdoictl(&server.directory.path().join("nowhere"), "server show groups");
    assert_eq!(nowhere.status.code(), Some(3));
    assert!(text(&nowhere.stderr).contains("no daemon answers on"), "{}", text(&nowhere.stderr));
}

#[test]
fn show_works_over_the_observe_socket_too() {
    let server = FakeServer::start();
    let output = gdoictl(&server.directory.path().join("observe.sock"), "server show registered-members");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("Total number of registered members: 2"));
}

#[test]
fn completions_need_no_daemon() {
    let output = gdoictl(Path::new("/nonexistent"), "completions bash");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).contains("registered-members"));
}
