//! What the daemons give up once they run, as the kernel tells it, and that they do all of their work without it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use ctl::control::{Reply, Request};
use ctl::event::Event;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};
use gdoi_lab::skipped;

use crate::support::{Lab, SOON, site};

/// An account that every system has.
const USER: &str = "nobody";

/// What `/proc` says of each thread of a daemon.
fn threads(daemon: &Daemon) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.process())).unwrap();
    // One may end meanwhile.
    let status = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    status.collect()
}

fn field<'s>(status: &'s str, name: &str) -> &'s str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

/// Capabilities as a mask.
fn mask(status: &str, name: &str) -> u64 {
    u64::from_str_radix(field(status, name), 16).unwrap()
}

/// Every thread has no more than these capabilities, gains none again, and has a filter of system calls.
fn is_confined(daemon: &Daemon, capabilities: u64) {
    let threads = threads(daemon);
    assert!(threads.len() > 2);
    for status in threads {
        for name in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(mask(&status, name) & !capabilities, 0, "{name} of {status}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1");
        if has_seccomp() {
            assert_eq!(field(&status, "Seccomp"), "2", "a filter");
        }
    }
}

fn has_seccomp() -> bool {
    Path::new("/proc/sys/kernel/seccomp").exists()
        && cfg!(any(target_arch = "x86_64", target_arch = "aarch64"))
}

/// The line of the log that says what holds.
fn said(daemon: &Daemon) -> String {
    daemon.tail(usize::MAX).into_iter().find(|line| line.contains("no new privileges")).expect("said once")
}

/// SIGHUP, and what came of it.
fn reload(daemon: &Daemon) -> Event {
    let mark = daemon.mark();
    daemon.reload().unwrap();
    let over = |event: &Event| ["configuration_reloaded", "configuration_refused"].contains(&event.name());
    daemon.wait(mark, SOON, "a reload", over).unwrap()
}

fn backup(daemon: &Daemon, file: &Path) -> Reply {
    daemon.ask(&Request::StateBackup { file: file.to_str().unwrap().to_owned() }).unwrap()
}

fn registers(site: &Site, host: &str) -> Daemon {
    site.write_member(host, &MemberPlan::default()).unwrap();
    let member = site.start(host, None).unwrap();
    member.wait_named(member.beginning(), SOON, "registered").unwrap();
    member
}

/// The number of [`USER`], when this process can become it: a user namespace may know no other than ours.
fn other_user(site: &Site) -> Option<u32> {
    let accounts = fs::read_to_string("/etc/passwd").ok()?;
    let line = accounts.lines().find(|line| line.split(':').next() == Some(USER))?;
    let uid = line.split(':').nth(2)?.parse().ok()?;
    let probe = site.path("probe");
    fs::write(&probe, "").ok()?;
    chown(&probe, Some(uid), None).is_ok().then_some(uid)
}

#[test]
fn a_key_server_becomes_its_own_user_and_does_all_of_its_work_as_that() {
    let site = site();
    let Some(uid) = other_user(&site) else {
        return skipped("a key server of its own user", "root, and a user nobody");
    };
    site.write_server(&ServerPlan { more: "# end\n".to_owned(), ..ServerPlan::new(Timing::LONG) }).unwrap();
    let (file, key) = (site.path("gcks.toml"), site.path("gcks.psk"));
    let text = fs::read_to_string(&file).unwrap().replace("[server]\n", "[server]\nuser = \"nobody\"\n");
    fs::write(&file, &text).unwrap();
    fs::set_permissions(site.directory(), fs::Permissions::from_mode(0o755)).unwrap();
    chown(&key, Some(uid), None).unwrap();

    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "group_created").unwrap();
    is_confined(&server, 0);
    for status in threads(&server) {
        let users: Vec<&str> = field(&status, "Uid").split_whitespace().collect();
        assert_eq!(users, [uid.to_string().as_str(); 4]);
        assert_eq!((field(&status, "Groups"), mask(&status, "CapBnd")), ("", 0));
    }
    assert!(said(&server).contains(&format!("user nobody (uid {uid}), no capability")), "{}", said(&server));
    let _first = registers(&site, MEMBERS[0]);

    fs::write(&file, text.replace("# end\n", "# still the end\n")).unwrap();
    assert_eq!(reload(&server).name(), "configuration_reloaded");
    // A key that only root can read was good enough at the start.
    chown(&key, Some(0), None).unwrap();
    let Event::ConfigurationRefused { reason } = reload(&server) else { panic!("it read a file of root") };
    assert!(reason.contains("gcks.psk cannot be read: Permission denied"), "{reason}");
    assert!(reason.contains("reads as user nobody"), "{reason}");
    chown(&key, Some(uid), None).unwrap();
    assert_eq!(reload(&server).name(), "configuration_reloaded");

    let Reply::Done { text, .. } = backup(&server, &site.path("state/backup/one")) else {
        panic!("no backup")
    };
    assert!(text.contains("1 member"), "{text}");
    let Reply::Refused { reason } = backup(&server, &site.path("one")) else { panic!("a backup anywhere") };
    assert!(reason.contains("backups go below") && reason.contains("backup-directory"), "{reason}");
    let verified = server.ask(&Request::Audit { last: 10, verify: true }).unwrap();
    assert!(matches!(&verified, Reply::Audit { records, .. } if !records.is_empty()), "{verified:?}");

    let _second = registers(&site, MEMBERS[1]);
    assert_eq!(server.stop().unwrap().0, Some(0));
    let checked = site.gcksd(&["--verify-state"]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "state_restored").unwrap();
    assert_eq!(server.group().unwrap().members.len(), 2, "read by the user that wrote it");
}

#[test]
fn both_daemons_keep_no_right_that_they_do_not_need_and_say_so() {
    const BIND_SERVICE: u64 = 1 << 10;
    const ADMIN: u64 = 1 << 12;
    const RAW: u64 = 1 << 13;
    let lab = Lab::planned(&ServerPlan { more: "# end\n".to_owned(), ..ServerPlan::new(Timing::LONG) });
    is_confined(&lab.server, 0);
    for member in &lab.members {
        is_confined(member, BIND_SERVICE | ADMIN | RAW);
        assert_eq!(reload(member).name(), "configuration_reloaded");
    }
    assert_eq!(reload(&lab.server).name(), "configuration_reloaded");
    let said = said(&lab.server);
    assert!(said.contains("no capability"), "{said}");
    // A file that the daemon was not started to read.
    if !said.contains("no landlock here") {
        let elsewhere = tempfile::tempdir().unwrap();
        let file = elsewhere.path().join("next.toml");
        fs::copy(lab.site.path("gcks.toml"), &file).unwrap();
        let plan = Request::Plan { file: file.to_str().unwrap().to_owned() };
        let Reply::Refused { reason } = lab.server.ask(&plan).unwrap() else { panic!("it read {plan:?}") };
        assert!(reason.contains("Permission denied") && reason.contains("another place takes a restart"));
        assert!(reason.contains(lab.site.directory().to_str().unwrap()), "{reason}");
    }
}

#[test]
fn a_user_that_does_not_exist_is_named_and_nothing_is_started() {
    let site = site();
    site.write_server(&ServerPlan::new(Timing::LONG)).unwrap();
    let file = site.path("gcks.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("[server]\n", "[server]\nuser = \"no-such-user-here\"\n")).unwrap();
    let ended = site.gcksd(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(3), "{said}");
    assert!(said.contains("user \"no-such-user-here\": no such user on this machine"), "{said}");
    assert!(!site.path("state").exists() && !site.control(GCKS).exists());
}
