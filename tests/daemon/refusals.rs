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

#[test]
fn a_wrong_pre_shared_key_is_said_on_both_sides() {
    let plan = MemberPlan { pre_shared_key: Some("marianne trench, 10935 m"), ..MemberPlan::default() };
    let (_site, gcks, gm1) = pair(&ServerPlan::new(Timing::LONG), &plan);
    std::thread::sleep(std::time::Duration::from_secs(10));
    panic!("{:#?} {:#?}", gcks.tail(100), gm1.tail(100));
}

#[test]
fn an_unknown_group_is_refused() {
    let plan = MemberPlan { group: Some(77), ..MemberPlan::default() };
    let (_site, gcks, gm1) = pair(&ServerPlan::new(Timing::LONG), &plan);
    std::thread::sleep(std::time::Duration::from_secs(10));
    panic!("{:#?} {:#?}", gcks.tail(100), gm1.tail(100));
}

#[test]
fn a_member_the_group_does_not_admit_is_refused() {
    let server = ServerPlan { admitted: vec![MEMBERS[1]], ..ServerPlan::new(Timing::LONG) };
    let (_site, gcks, gm1) = pair(&server, &MemberPlan::default());
    std::thread::sleep(std::time::Duration::from_secs(10));
    panic!("{:#?} {:#?}", gcks.tail(100), gm1.tail(100));
}
#[test]
fn threshold() {
    let server = ServerPlan { threshold: Some(1), ..ServerPlan::new(Timing::LONG) };
    let (site, gcks, gm1) = pair(&server, &MemberPlan::default());
    gm1.wait_named(gm1.beginning(), SOON, "registered").unwrap();
    site.write_member(MEMBERS[1], &MemberPlan::default()).unwrap();
    let gm2 = site.start(MEMBERS[1], None).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(10));
    panic!("{:#?} {:#?}", gcks.tail(100), gm2.tail(100));
}
