//! Who may not register, and how both sides say so.

use ctl::event::Event;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};

use crate::support::{SOON, site};

/// A key server and one member, both running.
fn pair(server: &ServerPlan, member: &MemberPlan) -> (Site, Daemon, Daemon) {
    let site = site();
    site.write_server(server).unwrap();
    let gcks = site.start(GCKS, None).unwrap();
    gcks.wait_named(gcks.beginning(), SOON, "group_created").unwrap();
    site.write_member(MEMBERS[0], member).unwrap();
    let gm1 = site.start(MEMBERS[0], None).unwrap();
    (site, gcks, gm1)
}

/// What the member says when the server refuses: a notify under phase 1, which it believes.
fn refused(gcks: &Daemon, gm1: &Daemon, reason: &str) {
    let refused = gcks.wait_named(gcks.beginning(), SOON, "pull_refused").unwrap().to_string();
    assert!(refused.contains(reason), "{refused}");
    let failed = gm1.wait_named(gm1.beginning(), SOON, "registration_failed").unwrap();
    let Event::RegistrationFailed { reason, retry_seconds, .. } = failed else { panic!("{failed:?}") };
    assert!(reason.contains("INVALID-ID-INFORMATION") && retry_seconds >= 24, "{reason}, {retry_seconds} s");
    let (group, vpn) = (gcks.group().unwrap(), gm1.vpn().unwrap());
    assert!(group.members.is_empty() && vpn.teks.is_empty() && vpn.kek.is_none());
    assert_eq!((vpn.state.as_str(), vpn.statistics.pull_failed), ("unregistered", 1));
}

#[test]
fn a_wrong_pre_shared_key_is_told_by_the_server_and_gives_the_member_nothing() {
    let plan = MemberPlan { pre_shared_key: Some("marianne trench, 10935 m"), ..MemberPlan::default() };
    let (_site, gcks, gm1) = pair(&ServerPlan::new(Timing::LONG), &plan);
    let refused = gcks.wait_named(gcks.beginning(), SOON, "phase1_refused").unwrap();
    assert_eq!(refused.level(), ctl::event::Level::Warn, "operators see it");
    assert!(refused.to_string().contains("probable pre-shared key mismatch"), "{refused}");
    let failed = gcks.wait_named(gcks.beginning(), SOON, "phase1_failed").unwrap().to_string();
    assert!(failed.contains("probable pre-shared key mismatch"), "{failed}");
    assert_eq!(gcks.server().unwrap().statistics.phase1_failed, 1);
    assert_eq!(
        (gcks.count(gcks.beginning(), "phase1_established"), gcks.group().unwrap().members.len()),
        (0, 0)
    );
    let vpn = gm1.vpn().unwrap();
    assert_eq!((vpn.state.as_str(), vpn.teks.len()), ("registering", 0));
}

#[test]
fn an_unknown_group_is_refused_and_both_say_so() {
    let plan = MemberPlan { group: Some(77), ..MemberPlan::default() };
    let (_site, gcks, gm1) = pair(&ServerPlan::new(Timing::LONG), &plan);
    refused(&gcks, &gm1, "to 77 refused: no such group");
}

#[test]
fn a_member_the_group_does_not_admit_is_refused_and_both_say_so() {
    let server = ServerPlan { admitted: vec![MEMBERS[1]], ..ServerPlan::new(Timing::LONG) };
    let (_site, gcks, gm1) = pair(&server, &MemberPlan::default());
    refused(&gcks, &gm1, "gateway gm1 (line ");
    assert_eq!(gcks.group().unwrap().statistics.pull_failed, 1);
}

#[test]
fn a_full_group_leaves_the_next_member_unanswered_and_counts_it() {
    let server = ServerPlan { threshold: Some(1), ..ServerPlan::new(Timing::LONG) };
    let (site, gcks, gm1) = pair(&server, &MemberPlan::default());
    gm1.wait_named(gm1.beginning(), SOON, "registered").unwrap();
    site.write_member(MEMBERS[1], &MemberPlan::default()).unwrap();
    let gm2 = site.start(MEMBERS[1], None).unwrap();
    let full = gcks.wait_named(gcks.beginning(), SOON, "member_threshold_reached").unwrap();
    let outside = site.network.ip(MEMBERS[1]).to_string();
    assert!(matches!(full, Event::MemberThresholdReached { threshold: 1, member, .. } if member == outside));
    let group = gcks.group().unwrap();
    assert_eq!((group.members.len(), group.statistics.pull_exceed_member_threshold), (1, 1));
    assert_eq!(gm2.vpn().unwrap().state, "registering");
}
