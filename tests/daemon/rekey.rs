//! Rekeys and their acknowledgements; silence and return.

use ctl::event::Event;
use gdoi_lab::network::MEMBERS;
use gdoi_lab::site::Timing;

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
