//! What a running member takes by SIGHUP and `gdoictl member apply`: certificates, anchors, revocation lists. And what it
//! does not take.

use std::process::Output;

use ctl::event::Event;
use ctl::observe::GmSnapshot;
use gdoi_lab::daemon::{Daemon, Mark};
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};

use crate::certificates::{anchors, certify, issue, reload, replace, revoke, root};
use crate::support::{SOON, have_same_keys, site};

const MEMBER: &str = MEMBERS[0];

/// A key server and a member that trust one authority and have a certificate of it each.
fn certified() -> (Site, Daemon, Daemon) {
    let site = site();
    let (old, new) = (root("Old"), root("New"));
    for (name, ca) in [("old.pem", &old), ("new.pem", &new)] {
        std::fs::write(site.path(name), ca.pem()).unwrap();
    }
    site.write_server(&ServerPlan { admitted: vec![MEMBER], ..ServerPlan::new(Timing::LONG) }).unwrap();
    certify(&site, GCKS, &old, &["old.pem", "new.pem"]);
    site.write_member(MEMBER, &MemberPlan::default()).unwrap();
    certify(&site, MEMBER, &old, &["old.pem"]);
    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "group_created").unwrap();
    let member = site.start(MEMBER, None).unwrap();
    member.wait_named(member.beginning(), SOON, "registered").unwrap();
    (site, server, member)
}

/// Keys and IKE SAs by their names.
fn held(member: &Daemon) -> (Vec<String>, Option<String>, Vec<String>) {
    let GmSnapshot { vpns, ike_sas, .. } = member.member().unwrap();
    let [vpn] = &vpns[..] else { panic!("{vpns:?}") };
    let teks = vpn.teks.iter().map(|tek| tek.spi.clone()).collect();
    (
        teks,
        vpn.kek.as_ref().map(|kek| kek.spi.clone()),
        ike_sas.into_iter().map(|sa| sa.initiator_cookie).collect(),
    )
}

/// `gdoictl member …` and what it said.
fn gdoictl(site: &Site, words: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        site.gdoictl(MEMBER).arg("member").args(words).output().expect("gdoictl runs");
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

/// Waits until the member is registered under a phase 1 of later than the mark.
fn registered_anew(member: &Daemon, since: Mark) {
    for name in ["phase1_established", "registered"] {
        member
            .wait_named(since, SOON, name)
            .unwrap_or_else(|error| panic!("{error}: {:#?}", member.tail(20)));
    }
}

#[test]
fn a_member_takes_a_certificate_an_anchor_and_a_revocation_list_by_sighup_and_keeps_its_keys() {
    let (site, server, member) = certified();
    let before = held(&member);
    assert_eq!((before.0.len(), before.1.is_some(), before.2.len()), (1, true, 1), "{before:?}");
    // Both go over to the other authority: the files of the same names say something else, and an anchor is added.
    let new = root("New");
    std::fs::write(site.path("new.pem"), new.pem()).unwrap();
    issue(&site, GCKS, &new);
    issue(&site, MEMBER, &new);
    reload(&server);
    replace(&site, MEMBER, "trust-anchors = [\"old.pem\"]", "trust-anchors = [\"old.pem\", \"new.pem\"]");
    let taken = reload(&member);
    assert_eq!(held(&member), before, "no SA is dropped");
    assert_eq!(anchors(&server), [Some("CN=Old".to_owned())]);

    let mark = member.mark();
    let (code, said) = gdoictl(&site, &["register"]);
    assert_eq!(code, Some(0), "{said}");
    registered_anew(&member, mark);
    assert_eq!(anchors(&server), [Some("CN=New".to_owned())], "the new certificate, against the new anchor");
    assert_eq!(member.count(taken, "tek_removed"), 0);
    assert_eq!((held(&member).0, held(&member).1), (before.0.clone(), before.1.clone()));
    member
        .wait_until(SOON, "the keys of the server", |member| {
            Ok(have_same_keys(&server.group()?, &member.vpn()?))
        })
        .unwrap();

    // The server's certificate is revoked: the SA that there is stays, another is not made.
    revoke(&site, &new, &[GCKS]);
    replace(&site, MEMBER, "trust-anchors", "crls = [\"ca.crl\"]\ntrust-anchors");
    let second = held(&member);
    reload(&member);
    assert_eq!(held(&member), second);
    let mark = member.mark();
    gdoictl(&site, &["register"]);
    let revoked = |event: &Event| matches!(event, Event::Phase1Failed { reason, .. } if reason.contains("revoked by the list of \"CN=New\""));
    member
        .wait(mark, SOON, "revoked", revoked)
        .unwrap_or_else(|error| panic!("{error}: {:#?}", member.tail(20)));
    assert_eq!((held(&member).0, held(&member).1), (before.0, before.1), "keys outlive what registered them");
}

#[test]
fn a_bad_file_changes_nothing_and_says_why_and_so_does_one_that_takes_a_restart() {
    let (site, _server, member) = certified();
    let before = held(&member);
    let file = site.path(&format!("{MEMBER}.toml"));
    let good = std::fs::read_to_string(&file).unwrap();
    let bad = good.replace("ike-gateway = \"servers\"", "ike-gateway = \"nobody\"");
    let line = bad.lines().position(|line| line.contains("nobody")).unwrap() + 1;
    let place = format!("{MEMBER}.toml:{line}:");
    std::fs::write(&file, bad).unwrap();
    let mark = member.mark();
    member.reload().unwrap();
    let refused = member.wait_named(mark, SOON, "configuration_refused").unwrap().to_string();
    assert!(refused.contains(&place) && refused.contains("nobody"), "{refused}");
    let (code, said) = gdoictl(&site, &["apply"]);
    assert!(code == Some(1) && said.contains(&place), "{code:?} {said}");

    // Another socket, and another group that a running member could take by itself: neither is taken.
    let other = site.path("other.toml");
    let port = site.network.address(MEMBER).port();
    let listen = format!("listen = [\"{}:{}\"]", site.network.ip(MEMBER), port.wrapping_add(1).max(1024));
    let (own, _) = good.split_once('\n').and_then(|(_, rest)| rest.split_once('\n')).unwrap();
    assert!(own.starts_with("listen"), "{own}");
    std::fs::write(&other, good.replace(own, &listen).replace("group = 1", "group = 2")).unwrap();
    let (code, said) = gdoictl(&site, &["apply", other.to_str().unwrap()]);
    assert!(code == Some(1) && said.contains("takes a restart: member.listen"), "{code:?} {said}");
    assert_eq!(held(&member), before);
    assert_eq!(member.count(mark, "registering"), 0);

    std::fs::write(&file, good).unwrap();
    let (code, said) = gdoictl(&site, &["apply"]);
    assert!(code == Some(0) && said.contains("in use; vpns going on: lab;"), "{code:?} {said}");
    // Its answer may be here before the line of its log.
    member.wait_named(mark, SOON, "configuration_reloaded").unwrap();
    assert_eq!(held(&member), before);
}
