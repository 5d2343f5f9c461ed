//! Rekeys and their acknowledgements; silence and return.

use ctl::control::{Reply, Request};
use ctl::event::Event;
use gdoi_lab::network::MEMBERS;
use gdoi_lab::site::{GROUP, ServerPlan, Timing};

use crate::support::{LATER, Lab, SOON};

#[test]
fn two_members_register_and_acknowledge_a_rekey_by_hand_and_one_on_schedule() {
    let lab = Lab::registered(Timing::SHORT);
    lab.same_keys();
    let first = lab.server.group().unwrap();
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    lab.same_keys();
    let second = lab.server.group().unwrap();
    assert_ne!(first.kek.unwrap().spi, second.kek.unwrap().spi, "a new KEK");
    let marks = lab.members.each_ref().map(|member| member.mark());

    let mark = lab.server.mark();
    let scheduled = lab
        .server
        .wait(
            mark,
            LATER,
            "a rekey on schedule",
            |event| matches!(event, Event::RekeyStarted { why, .. } if why == "before keys end"),
        )
        .unwrap();
    let Event::RekeyStarted { seq, teks, .. } = scheduled else { panic!("{scheduled:?}") };
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    for (member, mark) in lab.members.iter().zip(marks) {
        let accepted =
            |event: &Event| matches!(event, Event::PushAccepted { new_teks, .. } if *new_teks == teks);
        member.wait(mark, SOON, "the new TEK", accepted).unwrap();
        member.wait_named(mark, SOON, "tek_activated").unwrap();
        assert_eq!(member.count(member.beginning(), "registering"), 1, "once, at the start");
    }
    lab.same_keys();
    for member in lab.members {
        let (code, log) = member.stop().unwrap();
        assert_eq!(code, Some(0), "{log:#?}");
    }
}

#[test]
fn a_member_that_falls_silent_is_expired_and_registers_again_by_itself() {
    let lab = Lab::registered(Timing::SHORT);
    let [_, silent] = &lab.members;
    silent.freeze().unwrap();
    let (seq, mark) = lab.rekey();
    let gm2 = lab.site.network.ip(MEMBERS[1]).to_string();
    assert_eq!(lab.over(seq, mark), (1, vec![gm2.clone()]));
    let expired = lab.server.wait_named(mark, SOON, "member_expired").unwrap();
    assert!(matches!(expired, Event::MemberExpired { member, missed: 1, .. } if member == gm2));
    let group = lab.server.group().unwrap();
    assert_eq!((group.members.len(), group.statistics.members_expired), (1, 1));

    let (server, member) = (lab.server.mark(), silent.mark());
    silent.thaw().unwrap();
    silent.wait_named(member, LATER, "registered").unwrap();
    lab.server.wait_named(server, SOON, "member_registered").unwrap();
    lab.same_keys();
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]));
}

#[test]
fn a_revoked_member_is_locked_out_and_the_other_follows_the_key_tree_without_registering() {
    let lab = Lab::planned(&ServerPlan { key_management: "lkh", ..ServerPlan::new(Timing::SHORT) });
    lab.same_keys();
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]), "acknowledged with the keys of two leaves");
    lab.same_keys();
    let [stays, revoked] = &lab.members;
    let (mark, before) = (lab.server.mark(), lab.server.group().unwrap());
    let gm2 = lab.site.network.ip(MEMBERS[1]).to_string();
    let revoke = Request::Revoke { group: GROUP.to_owned(), member: gm2.clone() };
    let Reply::Done { text, rekey: Some(number), .. } = lab.server.ask(&revoke).unwrap() else { panic!() };
    assert!(text.contains(&before.kek.unwrap().spi), "the last key it held: {text}");
    let first = |event: &Event| matches!(event, Event::RekeyStarted { rekey, .. } if *rekey == number);
    let Event::RekeyStarted { pushes, new_kek, teks, .. } =
        lab.server.wait(mark, SOON, "the first PUSH", first).unwrap()
    else {
        panic!()
    };
    assert_eq!((pushes, new_kek.is_some(), teks.len()), (2, true, 0), "TEKs come under the new KEK");
    let same = |member: &gdoi_lab::daemon::Daemon| {
        Ok(crate::support::have_same_keys(&lab.server.group()?, &member.vpn()?))
    };
    stays.wait_until(SOON, "the new keys", same).unwrap();
    assert_eq!(stays.count(stays.beginning(), "registering"), 1, "once, at the start");
    let group = lab.server.group().unwrap();
    let held = revoked.vpn().unwrap();
    let fresh = group.teks.iter().filter(|tek| tek.state != "retiring");
    assert!(fresh.map(|tek| &tek.spi).all(|spi| held.teks.iter().all(|tek| tek.spi != *spi)));
    let refused = |event: &Event| matches!(event, Event::PullRefused { identity, reason, .. } if *identity == gm2 && reason.contains("revoked"));
    lab.server.wait(mark, LATER, "its refusal", refused).unwrap();
    assert_eq!(lab.server.group().unwrap().members.len(), 1);
    let unrevoke = Request::Unrevoke { group: GROUP.to_owned(), member: gm2 };
    assert!(matches!(lab.server.ask(&unrevoke).unwrap(), Reply::Done { .. }));
}
