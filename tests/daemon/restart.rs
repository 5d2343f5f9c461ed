//! A key server that is killed and started again.

use gdoi_lab::network::GCKS;
use gdoi_lab::site::Timing;

use crate::support::{Lab, SOON};

#[test]
fn a_killed_key_server_comes_back_with_its_keys_and_no_member_registers_again() {
    let mut lab = Lab::registered(Timing::LONG);
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    lab.same_keys();
    let marks = lab.members.each_ref().map(|member| member.mark());
    let before = lab.server.group().unwrap();

    lab.server.kill();
    lab.server = lab.site.start(GCKS, None).unwrap();
    lab.server.wait_named(lab.server.beginning(), SOON, "state_restored").unwrap();
    let after = lab.server.group().unwrap();
    let (old, new) = (before.kek.unwrap(), after.kek.unwrap());
    assert_eq!((&old.spi, &old.key_hex), (&new.spi, &new.key_hex));
    assert!(new.seq >= old.seq, "{} after {}", new.seq, old.seq);
    assert_eq!(before.members.len(), after.members.len());
    lab.same_keys();

    let (seq, mark) = lab.rekey();
    assert!(seq > old.seq, "a number is used once");
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    lab.same_keys();
    for (member, mark) in lab.members.iter().zip(marks) {
        let names = ["registering", "push_gap", "push_refused"];
        let counts = names.map(|name| member.count(mark, name));
        assert_eq!(counts, [0, 0, 0], "{names:?}\n{:#?}", member.tail(20));
    }
}
