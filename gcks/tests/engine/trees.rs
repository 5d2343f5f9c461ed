//! PUSHes of key arrays: whom they go to.

use super::*;

#[test]
fn key_arrays_go_to_those_who_can_open_them_and_a_restart_knows_whom() {
    let mut settings = settings();
    settings.groups[0].member_threshold = None;
    let communication = settings.groups[0].communication.as_mut().expect("rekeying");
    communication.lkh = true;
    communication.max_push_size = 400;
    let mut bench = Bench::with(settings);
    bench.drain();
    for last in 1..=9 {
        joined(&mut bench, last);
    }
    bench.pass(Duration::from_secs(60));
    bench.sent.clear();
    let revoke = Command::Revoke { group: "g1".to_owned(), member: address(4).ip().to_string() };
    bench.command(revoke).expect("revoked");
    bench.pass(Duration::from_secs(2));
    assert!(pushes(&mut bench, address(4)).is_empty());
    let others = || (1..=9).filter(|last| *last != 4).map(address);
    let told: Vec<Vec<Bytes>> = others().map(|address| pushes(&mut bench, address)).collect();
    let arrays: BTreeSet<&Bytes> = told.iter().map(|pushes| &pushes[0]).collect();
    assert!(arrays.len() >= 2, "leaf 4 has a sibling, and so has every node above it");
    for pushes in &told {
        assert_eq!(pushes.len(), 2, "its array, and the TEKs under the new KEK");
        assert_eq!(pushes[1], told[0][1]);
    }
    let begun = bench.events.iter().filter_map(|event| match event {
        Event::RekeyStarted { members, why, .. } if why == "member revoked" => Some(*members),
        _ => None,
    });
    let begun: Vec<u64> = begun.collect();
    assert_eq!((begun.len(), begun.iter().sum::<u64>()), (arrays.len() + 1, 16));
    bench.restart();
    bench.pass(Duration::from_secs(2));
    let again: Vec<Vec<Bytes>> = others().map(|address| pushes(&mut bench, address)).collect();
    assert_eq!(again, told, "the same octets for each");
    assert!(pushes(&mut bench, address(4)).is_empty());
}
