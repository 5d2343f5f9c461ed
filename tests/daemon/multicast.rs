//! Pushes by multicast over cables between network namespaces. Skipped where user namespaces are missing.

use ctl::event::Event;
use gdoi_lab::binaries::Binaries;
use gdoi_lab::network::{MEMBERS, Network};
use gdoi_lab::site::{ServerPlan, Site, Timing};

use crate::support::{Lab, SOON};
use crate::traffic::{PROGRAMS, in_namespaces};

#[test]
fn members_on_cables_are_rekeyed_by_multicast_and_the_silent_one_by_unicast() {
    in_namespaces("multicast::by_multicast_and_by_unicast");
}

/// `way` of each round of a PUSH, and how many members it was for.
fn rounds(lab: &Lab, mark: gdoi_lab::daemon::Mark) -> Vec<(String, u64)> {
    let round = |event| match event {
        Event::PushSent { way, members, .. } => Some((way, members)),
        _ => None,
    };
    lab.server.events(mark).into_iter().filter_map(round).collect()
}

#[test]
#[ignore = "runs inside namespaces: started by the test above"]
fn by_multicast_and_by_unicast() {
    let Some(programs) = std::env::var_os(PROGRAMS) else { return };
    let network = Network::namespaces().unwrap();
    let mut site = Site::new(network, Binaries::in_directory(programs.as_ref()).unwrap()).unwrap();
    let group = "multicast 239.192.0.1:848".to_owned();
    for (communication_type, key_management) in [("multicast", "flat"), ("both", "flat"), ("both", "lkh")] {
        let timing = Timing { copies: 3, ..Timing::LONG };
        let plan = ServerPlan { communication_type, key_management, ..ServerPlan::new(timing) };
        let lab = Lab::at(site, &plan);
        lab.same_keys();
        for _ in 0..2 {
            let (seq, mark) = lab.rekey();
            assert_eq!(lab.over(seq, mark), (2, vec![]), "{communication_type}, {key_management}");
            lab.same_keys();
            let rounds = rounds(&lab, mark);
            assert!(rounds.iter().any(|(way, members)| (way, *members) == (&group, 2)), "{rounds:?}");
        }
        // One is deaf for the first copy.
        let deaf = &lab.members[1];
        deaf.freeze().unwrap();
        let (seq, mark) = lab.rekey();
        let second = |event: &Event| matches!(event, Event::PushSent { attempt: 2, .. });
        lab.server.wait(mark, SOON, "the second copy", second).unwrap();
        deaf.thaw().unwrap();
        assert_eq!(lab.over(seq, mark), (2, vec![]), "{communication_type}, {key_management}");
        lab.same_keys();
        let later = if communication_type == "both" { "unicast".to_owned() } else { group.clone() };
        let rounds = rounds(&lab, mark);
        // On a busy machine the acknowledgement of the other is late, too.
        let again = rounds.iter().skip(1).find(|(_, members)| *members >= 1);
        assert_eq!(again.map(|(way, _)| way), Some(&later), "{communication_type}: {rounds:?}");
        let member = deaf.vpn().unwrap();
        assert!(member.statistics.push_duplicate >= 1, "both copies waited for it: one was enough");
        assert_eq!(member.statistics.push_failed, 0);
        let group = lab.server.group().unwrap();
        assert_eq!((group.members.len(), group.statistics.members_expired), (MEMBERS.len(), 0));
        assert!(group.statistics.push_multicast >= 3 && group.statistics.acks_stranger == 0);
        site = lab.stop();
    }
}
