//! The stored state as an operator meets it: sealed, verified, backed up, damaged, restored, and that of the last release.

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use ctl::control::{Reply, Request};
use ctl::observe::GcksSnapshot;

use support::member::Member;
use support::{Daemon, Site, set_mode};

const STATE_KEY: &str = "0123456789abcdef0123456789abcdef";

fn write_key(site: &Site, key: &str) {
    std::fs::write(site.path("state-key"), key).unwrap();
    set_mode(&site.path("state-key"), 0o600);
}

fn seal(site: &Site, key: &str) {
    write_key(site, key);
    site.configure("[server]\n", "[server]\nstate-key = { file = \"state-key\" }\n");
}

/// Key octets as they stand in a row, and some that no row in clear lacks.
fn secrets(snapshot: &GcksSnapshot) -> Vec<String> {
    let group = &snapshot.groups[0];
    let shown = [group.kek.as_ref().unwrap().key_hex.clone(), group.teks[0].key_hex.clone()];
    shown.into_iter().map(|key| key.expect("--show-keys")).chain(["signing_key".to_owned()]).collect()
}

/// True when one of the files of the state has one of these texts, or the octets they stand for.
fn finds(directory: &Path, texts: &[String]) -> bool {
    let mut needles: Vec<Vec<u8>> = texts.iter().map(|text| text.clone().into_bytes()).collect();
    needles.extend(texts.iter().filter_map(|text| hex::decode(text).ok()));
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let octets = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        needles.iter().any(|needle| octets.windows(needle.len()).any(|window| window == needle.as_slice()))
    })
}

fn done(daemon: &Daemon, request: &Request) -> String {
    match daemon.ask(request) {
        Reply::Done { text, .. } => text,
        other => panic!("{other:?}"),
    }
}

fn refused(daemon: &Daemon, request: &Request) -> String {
    match daemon.ask(request) {
        Reply::Refused { reason } => reason,
        other => panic!("{other:?}"),
    }
}

fn backup(daemon: &Daemon, file: &Path) -> String {
    done(daemon, &Request::StateBackup { file: file.to_str().unwrap().to_owned() })
}

/// KEK and TEKs; a restart may list the latter in another order.
fn spis(daemon: &Daemon) -> (String, BTreeSet<String>) {
    let group = &daemon.snapshot().groups[0];
    (group.kek.as_ref().unwrap().spi.clone(), group.teks.iter().map(|tek| tek.spi.clone()).collect())
}

#[test]
fn a_sealed_state_has_no_secret_in_its_files_and_is_unreadable_without_its_key() {
    let site = Site::new();
    // First in clear: switching the seal on must leave nothing behind.
    let daemon = site.start(&["--show-keys"]);
    Member::new(daemon.address()).register();
    daemon.rekey(true);
    let keys = secrets(&daemon.snapshot());
    let before = spis(&daemon);
    assert!(finds(&site.path("state"), &keys), "the search finds what is there");
    daemon.kill();

    seal(&site, STATE_KEY);
    let daemon = site.start(&["--show-keys"]);
    assert_eq!(spis(&daemon), before, "the keys are the same");
    assert!(!finds(&site.path("state"), &keys), "left behind by sealing");
    daemon.rekey(true);
    let mut all = keys;
    all.extend(secrets(&daemon.snapshot()));
    assert!(!finds(&site.path("state"), &all), "written in clear");
    assert!(done(&daemon, &Request::StateVerify).ends_with(", sealed"));
    let before = spis(&daemon);
    assert_eq!(daemon.stop().0, Some(0));
    assert!(!finds(&site.path("state"), &all));

    let octets = std::fs::read(site.path("state/state.sqlite")).unwrap();
    for (key, what) in [("x".repeat(32), "under another state-key"), (String::new(), "has no state-key")] {
        if key.is_empty() {
            site.configure("state-key = { file = \"state-key\" }\n", "");
        } else {
            write_key(&site, &key);
        }
        for arguments in [&[][..], &["--verify-state"]] {
            let (code, text) = site.ends(arguments);
            assert!(
                code == Some(4) && text.contains(what) && text.contains("nothing was changed"),
                "{code:?} {text}"
            );
        }
    }
    assert_eq!(std::fs::read(site.path("state/state.sqlite")).unwrap(), octets, "nothing was changed");
    seal(&site, STATE_KEY);
    assert_eq!(spis(&site.start(&[])), before);
}

#[test]
fn the_state_key_is_changed_while_the_server_runs() {
    let site = Site::new();
    let daemon = site.start(&[]);
    assert!(refused(&daemon, &Request::StateReseal).contains("not configured"));
    seal(&site, STATE_KEY);
    assert!(done(&daemon, &Request::StateReseal).contains("sealed under the configured state-key"));
    let other = "f".repeat(40);
    write_key(&site, &other);
    done(&daemon, &Request::StateReseal);
    // Later writes are sealed under it too, and reading knows it.
    daemon.rekey(true);
    assert!(done(&daemon, &Request::StateVerify).ends_with("sealed"));
    let before = spis(&daemon);
    daemon.kill();
    write_key(&site, STATE_KEY);
    assert_eq!(site.ends(&[]).0, Some(4));
    write_key(&site, &other);
    assert_eq!(spis(&site.start(&[])), before);
}

#[test]
fn after_a_restore_no_key_number_or_sender_id_of_before_is_used() {
    for sealed in [false, true] {
        let site = Site::new();
        if sealed {
            seal(&site, STATE_KEY);
        }
        let daemon = site.start(&["--show-keys"]);
        let mut member = Member::new(daemon.address());
        member.register();
        let copy = site.path("state/backup/one");
        let text = backup(&daemon, &copy);
        assert!(text.contains("1 member"), "{text}");
        let again = Request::StateBackup { file: copy.to_str().unwrap().to_owned() };
        assert!(refused(&daemon, &again).contains("never overwrites"));
        assert_eq!(
            finds(copy.parent().unwrap(), &secrets(&daemon.snapshot())),
            !sealed,
            "a backup is sealed as its state is"
        );
        // Numbers that the backup does not know.
        daemon.rekey(false);
        let before = spis(&daemon);
        let (code, text) = site.ends(&["--restore", copy.to_str().unwrap(), "--yes"]);
        assert!(code == Some(3) && text.contains("in use by another daemon"), "{text}");
        let address = daemon.address();
        daemon.kill();

        let (code, text) = site.ends(&["--restore", copy.to_str().unwrap()]);
        assert!(code == Some(2) && text.contains("--yes") && text.contains("registers again"), "{text}");
        let (code, text) = site.ends(&["--restore", copy.to_str().unwrap(), "--yes"]);
        assert!(
            code == Some(0) && text.contains("kept: ") && text.contains("restored; start gcksd now"),
            "{text}"
        );
        assert!(site.ends(&["--verify-state"]).1.starts_with("good: "));

        site.configure("127.0.0.1:0", &address.to_string());
        let mut daemon = site.start(&["--show-keys"]);
        daemon.until("first keys made");
        let group = &daemon.snapshot().groups[0];
        assert!(group.members.is_empty(), "all register again");
        let after = spis(&daemon);
        assert!(before.0 != after.0 && before.1.is_disjoint(&after.1), "{before:?} {after:?}");
        assert_eq!(group.kek.as_ref().unwrap().seq, 0);
        let mut member = Member::new(daemon.address());
        member.register();
        assert_eq!(
            daemon.snapshot().groups[0].members[0].sender_ids,
            [0],
            "they begin again under the new keys"
        );
    }
}

#[test]
fn a_backup_is_never_run_and_a_broken_one_never_restored() {
    let site = Site::new();
    let daemon = site.start(&[]);
    Member::new(daemon.address()).register();
    let copy = site.path("state/backup/one");
    backup(&daemon, &copy);
    assert_eq!(daemon.stop().0, Some(0));
    let (state, good) = (site.path("state/state.sqlite"), std::fs::read(&copy).unwrap());
    let before = std::fs::read(&state).unwrap();
    let place = good.windows(11).position(|window| window == b"signing_key").unwrap() + 20;
    let mut flipped = good.clone();
    flipped[place] ^= 1;
    let mut page = good.clone();
    page[0..16].fill(0);
    let long = site.path("missing");
    for (octets, what) in [
        (flipped.as_slice(), "record group g1: it was changed"),
        (&good[..good.len() / 2], "damaged"),
        (&good[..100], "damaged"),
        (&[][..], "there is nothing in it"),
        (page.as_slice(), "damaged"),
    ] {
        let broken = site.path("broken");
        std::fs::write(&broken, octets).unwrap();
        let (code, text) = site.ends(&["--restore", broken.to_str().unwrap(), "--yes"]);
        assert!(code == Some(4) && text.contains(what), "{what}: {code:?} {text}");
    }
    let (code, text) = site.ends(&["--restore", long.to_str().unwrap(), "--yes"]);
    assert!(code == Some(3) && text.contains("no such file"), "{text}");
    assert_eq!(std::fs::read(&state).unwrap(), before, "the state is untouched");

    // The same flipped bit in the state itself is named, and the file stays.
    std::fs::write(&state, &flipped).unwrap();
    for arguments in [&["--verify-state"][..], &[]] {
        let (code, text) = site.ends(arguments);
        let says = if arguments.is_empty() { "--restore FILE" } else { "record group g1: it was changed" };
        assert!(code != Some(0) && text.contains(says), "{code:?} {text}");
    }
    assert_eq!(std::fs::read(&state).unwrap(), flipped);
    std::fs::write(&state, &good).unwrap();
    let (code, text) = site.ends(&[]);
    assert!(code == Some(3) && text.contains("this is a backup"), "{text}");
}

#[test]
fn an_interrupted_restore_refuses_the_start_until_it_is_done_again() {
    let site = Site::new();
    let daemon = site.start(&[]);
    let copy = site.path("state/backup/one");
    backup(&daemon, &copy);
    daemon.kill();
    std::fs::write(site.path("state/restore-pending"), "").unwrap();
    std::fs::remove_file(site.path("state/state.sqlite")).unwrap();
    let (code, text) = site.ends(&[]);
    assert!(code == Some(3) && text.contains("restore was interrupted"), "{text}");
    let (code, text) = site.ends(&["--restore", copy.to_str().unwrap(), "--yes"]);
    assert_eq!(code, Some(0), "{text}");
    site.start(&[]);
}

#[test]
fn a_state_of_the_last_release_opens_in_this_one() {
    for sealed in [false, true] {
        let site = Site::new();
        std::fs::create_dir(site.path("state")).unwrap();
        set_mode(&site.path("state"), 0o700);
        let file = site.path("state/state.sqlite");
        let sql = include_str!("data/state-0.1.0.sql");
        // Keys that end in half an hour: those of 2100 would be a clock gone wrong.
        let soon = "UPDATE record SET body = CAST(replace(CAST(body AS TEXT), '4102444800',
            strftime('%s', 'now', '+30 minutes')) AS BLOB)";
        rusqlite::Connection::open(&file).unwrap().execute_batch(&format!("{sql};{soon}")).unwrap();
        set_mode(&file, 0o600);
        assert!(
            site.ends(&["--verify-state"]).1.starts_with("good: 4 records"),
            "{}",
            site.ends(&["--verify-state"]).1
        );
        if sealed {
            seal(&site, STATE_KEY);
        }
        let daemon = site.start(&["--show-keys"]);
        assert!(daemon.seen.contains("state restored: 1 groups, 1 members"), "{}", daemon.seen);
        let keys = secrets(&daemon.snapshot());
        assert_eq!(keys[0], "5aa9f797a75a2fe2c20b3b1399c1b1cb486c8e065ff10ef6e30f0c2bcd0d643a");
        assert_eq!(spis(&daemon).1, BTreeSet::from(["0x16519df7".to_owned()]));
        assert_eq!(finds(&site.path("state"), &keys), !sealed);
        daemon.kill();
        assert!(spis(&site.start(&[])).1.contains("0x16519df7"), "and in its new form again");
    }
}
