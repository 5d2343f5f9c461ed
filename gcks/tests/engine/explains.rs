//! What `explain` says of a peer at every step where a registration can stop.

use ctl::control::Explanation;

use super::*;

fn explain(bench: &Bench, member: &str) -> Vec<Explanation> {
    bench.server.explain(bench.now, member, None).expect("one is meant")
}

/// The step that says no, its line, and what it says; the ones before say yes.
fn no(bench: &Bench, member: &str) -> (String, Option<u64>, String) {
    let steps = explain(bench, member);
    let (last, before) = steps.split_last().expect("a step");
    assert!(!last.yes && before.iter().all(|step| step.yes), "{steps:#?}");
    (last.step.clone(), last.line, last.text.clone())
}

#[test]
fn every_step_says_yes_for_a_member() {
    let mut bench = Bench::new();
    let one = joined(&mut bench, 1);
    for name in ["10.1.0.1", "10.1.0.1:848"] {
        let steps = explain(&bench, name);
        assert!(steps.iter().all(|step| step.yes), "{steps:#?}");
        let names: Vec<&str> = steps.iter().map(|step| step.step.as_str()).collect();
        let way =
            ["gateway", "phase 1", "identity", "authorisation", "threshold", "policy", "sender ID", "keys"];
        assert_eq!(names, way);
        assert_eq!((steps[0].line, steps[3].line), (Some(7), Some(20)));
        assert!(
            steps[7].text.contains("member at 10.1.0.1:848")
                && steps[7].text.contains(&one.kek.spi.to_string())
        );
    }
    // Its phase 1 is gone after a minute, its membership is not.
    bench.pass(Duration::from_secs(120));
    assert!(explain(&bench, "10.1.0.1").iter().all(|step| step.yes));
}

#[test]
fn the_first_no_is_the_last_step_and_names_its_line() {
    let mut bench = Bench::new();
    let (step, line, text) = no(&bench, "192.0.2.1");
    assert_eq!((step.as_str(), line), ("gateway", None), "{text}");
    let (step, line, text) = no(&bench, "10.1.0.1");
    assert_eq!((step.as_str(), line), ("phase 1", Some(7)), "{text}");
    assert!(text.contains("nothing came"), "{text}");

    // A gateway that no group lists.
    let stranger = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 9, 1)), 848);
    phase1(&mut bench, stranger).expect("phase 1 is for all gateways");
    let (step, line, text) = no(&bench, "10.1.9.1");
    assert_eq!((step.as_str(), line), ("authorisation", Some(7)), "{text}");
    let steps = bench.server.explain(bench.now, "10.1.9.1", Some("g1")).unwrap();
    let last = steps.last().unwrap();
    assert_eq!(
        (last.step.as_str(), last.line, last.group.as_deref()),
        ("authorisation", Some(20), Some("g1"))
    );
    assert!(last.text.contains("ike.gateway.strangers is not among the ike-gateways of group.g1"));

    // Three are enough.
    for last in 1..=3 {
        joined(&mut bench, last);
    }
    phase1(&mut bench, address(4)).expect("phase 1");
    let (step, line, text) = no(&bench, "10.1.0.4");
    assert_eq!((step.as_str(), line), ("threshold", Some(20)), "{text}");

    let revoke = Command::Revoke { group: "g1".to_owned(), member: "10.1.0.2".to_owned() };
    bench.command(revoke).expect("revoked");
    phase1(&mut bench, address(2)).expect("phase 1");
    let (step, line, text) = no(&bench, "10.1.0.2");
    assert_eq!((step.as_str(), line), ("authorisation", None));
    assert!(text.contains("revoked by an operator") && text.contains("unrevoke"), "{text}");

    bench.server.handle(bench.now, Input::StoreFailing(true));
    let (step, _, text) = no(&bench, "10.1.0.1");
    assert_eq!(step, "keys");
    assert!(text.contains("cannot be written"), "{text}");
    assert!(bench.server.explain(bench.now, "10.1.0.1", Some("g2")).unwrap_err().contains("no group g2"));
}
