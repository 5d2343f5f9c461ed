//! A key server whose state is sealed, lost, and restored from a backup that is older than what its members hold.

use std::collections::BTreeSet;
use std::path::Path;

use ctl::control::{Reply, Request};
use ctl::observe::GroupView;
use gdoi_lab::network::GCKS;
use gdoi_lab::site::{ServerPlan, Timing};

use crate::support::{LATER, Lab, SOON};

/// Keys that end soon, for members that nobody tells of the new ones.
const ENDING: Timing = Timing { tek_life: 40, kek_life: 60, ..Timing::SHORT };

#[test]
fn after_a_restore_members_register_again_under_keys_and_numbers_made_anew() {
    let mut lab = Lab::planned(&ServerPlan { sealed: true, ..ServerPlan::new(ENDING) });
    let backup = lab.site.path("state/backup/one");
    let file = backup.to_str().unwrap().to_owned();
    let Reply::Done { text, .. } = lab.server.ask(&Request::StateBackup { file: file.clone() }).unwrap()
    else {
        panic!("no backup")
    };
    assert!(text.contains("2 member") && text.ends_with(", sealed"), "{text}");
    // Keys and a number that the backup does not know.
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    lab.same_keys();
    let before = lab.server.group().unwrap();
    let marks = lab.members.each_ref().map(|member| member.mark());
    lab.server.kill();

    let secrets = secrets(&before);
    assert!(secrets.len() >= 2);
    let kept = std::fs::read(&backup).unwrap();
    assert!(!holds(&lab.site.path("state"), &secrets), "a secret in clear");
    assert!(!secrets.iter().any(|secret| contains(&kept, secret)), "a secret in the backup");
    std::fs::remove_file(lab.site.path("state-key")).unwrap();
    let refused = lab.site.gcksd(&["--verify-state"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1), "the configuration names a key that is not there");
    lab.site.write_server(&ServerPlan::new(ENDING)).unwrap();
    let refused = lab.site.gcksd(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(4) && said.contains("it is sealed"), "{said}");

    lab.site.write_server(&ServerPlan { sealed: true, ..ServerPlan::new(ENDING) }).unwrap();
    let restored = lab.site.gcksd(&["--restore", &file, "--yes"]).output().unwrap();
    let said = String::from_utf8_lossy(&restored.stdout);
    assert!(restored.status.success() && said.contains("restored; start gcksd now"), "{said}");

    lab.server = lab.site.start(GCKS, None).unwrap();
    lab.server.wait_named(lab.server.beginning(), SOON, "group_created").unwrap();
    let after = lab.server.group().unwrap();
    assert!(after.members.is_empty(), "nobody is a member until it registers");
    assert!(spis(&before).is_disjoint(&spis(&after)), "every KEK and TEK is another");
    assert_eq!(after.kek.unwrap().seq, 0);
    for (member, mark) in lab.members.iter().zip(marks) {
        member.wait_named(mark, LATER, "registered").unwrap();
    }
    lab.same_keys();
    let sids: BTreeSet<_> = lab
        .server
        .group()
        .unwrap()
        .members
        .iter()
        .flat_map(|member| member.sender_ids.iter().map(ToString::to_string).collect::<Vec<_>>())
        .collect();
    assert!(sids.contains("0"), "sender IDs begin again: {sids:?}");
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    lab.same_keys();
}

/// Key octets as they are and as the text of a row.
fn secrets(group: &GroupView) -> Vec<Vec<u8>> {
    let keks = group.kek.iter().filter_map(|kek| kek.key_hex.clone());
    let shown = keks.chain(group.teks.iter().filter_map(|tek| tek.key_hex.clone()));
    shown.flat_map(|text| [hex::decode(&text).unwrap(), text.into_bytes()]).collect()
}

fn contains(file: &[u8], secret: &[u8]) -> bool {
    file.windows(secret.len()).any(|window| window == secret)
}

fn holds(directory: &Path, secrets: &[Vec<u8>]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let file = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        secrets.iter().any(|secret| contains(&file, secret))
    })
}

fn spis(group: &GroupView) -> BTreeSet<String> {
    group.kek.iter().map(|kek| kek.spi.clone()).chain(group.teks.iter().map(|tek| tek.spi.clone())).collect()
}
