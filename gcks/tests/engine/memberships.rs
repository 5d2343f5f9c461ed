//! Memberships that end: through suspicion, or by themselves at a moment of the wall clock.

use super::*;
use crate::common::gateway;
use gcks::engine::membership::Gone;

/// Two statements, each for one of the members below; that of the second ends `seconds` from the start.
fn limited(seconds: u64) -> Settings {
    let mut settings = settings();
    let mut guests = gateway("guests", 1);
    guests.valid_until = Some(1_800_000_000 + seconds);
    settings.gateways.push(guests);
    settings.groups[0].gateways.insert("guests".to_owned());
    settings
}

fn guest() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 1, 2)), 848)
}

fn both(bench: &mut Bench) -> [Member; 2] {
    bench.drain();
    let two = register(bench, guest(), GroupId::number(1)).expect("a member");
    [joined(bench, 1), two]
}

fn refused(bench: &mut Bench) {
    let said = register(bench, guest(), GroupId::number(1));
    assert!(matches!(said, Err(Stopped::Notified(_))), "refused by a protected notification");
    let Some(Event::PullRefused { reason, .. }) =
        bench.events.iter().rev().find(|event| matches!(event, Event::PullRefused { .. }))
    else {
        panic!("not told")
    };
    assert!(reason.contains("valid-until of gateway guests (line 7)"), "{reason}");
}

/// Lets time pass with member one acknowledging whatever comes; its PUSHes.
fn pass_with_one(bench: &mut Bench, one: &mut Member, seconds: u64) -> usize {
    let mut taken = 0;
    for _ in 0..seconds {
        bench.pass(Duration::from_secs(1));
        for octets in pushes(bench, one.address) {
            let ack = one.take(bench, &octets);
            bench.tell(one.address, ack);
            taken += 1;
        }
    }
    taken
}

#[test]
fn a_member_is_suspect_before_it_expires_and_a_restart_gives_it_no_other_chance() {
    let mut settings = settings();
    settings.groups[0].communication.as_mut().expect("rekeying").missed_rekeys = 3;
    let mut bench = Bench::with(settings);
    bench.drain();
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    let state = |bench: &Bench| {
        let snapshot = bench.server.snapshot(bench.now, false);
        let member = snapshot.groups[0].members.iter().find(|it| it.identity == "10.1.0.2").cloned();
        member.map(|it| (it.state, it.missed_rekeys))
    };
    let (registered, suspect) = ("registered".to_owned(), "suspect".to_owned());
    assert_eq!(state(&bench), Some((registered.clone(), 0)));
    for missed in 1..=2 {
        bench.rekey(false);
        pass_with_one(&mut bench, &mut one, 31);
        assert_eq!(state(&bench), Some((suspect.clone(), missed)));
        assert_eq!(bench.count("member_suspect"), missed as usize);
        bench.restart();
        assert_eq!(state(&bench), Some((suspect.clone(), missed)), "after a restart");
    }
    bench.rekey(false);
    pass_with_one(&mut bench, &mut one, 31);
    assert_eq!((state(&bench), bench.members(), bench.count("member_expired")), (None, 1, 1));
    let former: Vec<_> = bench.server.groups()["g1"].former().cloned().collect();
    assert_eq!((former.len(), former[0].gone, former[0].member.missed), (1, Gone::Expired, 3));
    assert_eq!(bench.server.snapshot(bench.now, false).groups[0].former_members[0].state, "expired");
    // It comes back, and a single acknowledgement clears the next suspicion.
    let mut two = register(&mut bench, two.address, GroupId::number(1)).expect("a member");
    assert!(bench.server.groups()["g1"].former().next().is_none() && state(&bench) == Some((registered, 0)));
    bench.rekey(false);
    pass_with_one(&mut bench, &mut one, 31);
    // It hears nothing of the first, and all of the second.
    bench.received(two.address);
    two.last = two.last.next().expect("a number");
    bench.rekey(false);
    let octets = pushes(&mut bench, two.address).remove(0);
    let ack = two.take(&bench, &octets);
    bench.tell(two.address, ack);
    assert_eq!((bench.count("member_recovered"), state(&bench).expect("a member").1), (1, 0));
    bench.restart();
    assert_eq!(state(&bench).expect("a member").1, 0, "stored too");
}

#[test]
fn a_membership_ends_at_its_moment_and_the_rest_is_rekeyed_then() {
    let mut bench = Bench::with(limited(600));
    let [mut one, two] = both(&mut bench);
    let views = bench.server.snapshot(bench.now, false).groups.remove(0).members;
    let view = views.iter().find(|it| it.gateway == "guests").expect("the guest");
    assert_eq!(view.valid_until.as_deref(), Some("2027-01-15T08:10:00Z"));
    assert_eq!(view.membership_remaining_seconds, Some(600));
    assert_eq!(pass_with_one(&mut bench, &mut one, 599), 0);
    assert_eq!((bench.members(), bench.count("membership_ended")), (2, 0));
    let before = bench.seq().0;
    bench.received(two.address);
    assert_eq!(pass_with_one(&mut bench, &mut one, 2), 1, "one PUSH with new keys");
    assert_eq!((bench.members(), bench.count("membership_ended"), bench.count("rekey_started")), (1, 1, 1));
    assert_ne!(bench.seq().0, before, "a new KEK");
    // It is told that its phase 1 is gone, if it had one, and gets no key.
    assert!(pushes(&mut bench, two.address).is_empty());
    let Some(Event::MembershipEnded { keys_end_seconds, next_keys_seconds, valid_until, .. }) =
        bench.events.iter().find(|event| matches!(event, Event::MembershipEnded { .. }))
    else {
        panic!("not told")
    };
    assert_eq!((*keys_end_seconds, *next_keys_seconds), (45, Some(3600)));
    assert_eq!(valid_until, "2027-01-15T08:10:00Z");
    assert_eq!(bench.server.snapshot(bench.now, false).groups[0].former_members[0].state, "ended");
    refused(&mut bench);
    let steps = bench.server.explain(bench.now, "10.1.1.2", None).expect("one is meant");
    let last = steps.last().expect("a step");
    assert!(!last.yes && last.line == Some(7) && last.text.contains("valid-until"), "{last:?}");
    // Nothing more comes of it.
    pass_with_one(&mut bench, &mut one, 100);
    assert_eq!(bench.count("rekey_started"), 1);
}

#[test]
fn memberships_that_end_while_nobody_serves_end_at_the_start() {
    for down in [false, true] {
        let mut bench = Bench::with(limited(600));
        let [mut one, _] = both(&mut bench);
        if down {
            bench.set(bench.now.at + Duration::from_secs(700));
        }
        bench.restart();
        assert_eq!(bench.members(), 2);
        pass_with_one(&mut bench, &mut one, 650);
        assert_eq!((bench.members(), bench.count("membership_ended")), (1, 1), "down: {down}");
        refused(&mut bench);
    }
}

#[test]
fn a_clock_that_is_set_moves_the_moment() {
    let mut bench = Bench::with(limited(6000));
    let [mut one, _] = both(&mut bench);
    bench.epoch += 5700;
    pass_with_one(&mut bench, &mut one, 2);
    assert_eq!(bench.members(), 2, "300 s are left");
    // Another input lets the server see the clock.
    bench.server.handle(bench.now, Input::Timeout);
    pass_with_one(&mut bench, &mut one, 300);
    assert_eq!((bench.members(), bench.count("membership_ended")), (1, 1));
}

#[test]
fn a_reload_shortens_a_membership_with_one_rekey_and_prolongs_it_with_none() {
    let mut bench = Bench::with(limited(600));
    let [mut one, _] = both(&mut bench);
    let apply = |bench: &mut Bench, new: Settings| {
        let plan = bench.server.plan(bench.now, &new).groups.remove(0);
        bench.settings = new.clone();
        bench.server.handle(bench.now, Input::Apply(Box::new(new)));
        bench.drain();
        plan
    };
    let plan = apply(&mut bench, limited(7000));
    assert_eq!((plan.rekeys, plan.expelled.len()), (0, 0));
    pass_with_one(&mut bench, &mut one, 700);
    assert_eq!(bench.members(), 2, "prolonged");
    let plan = apply(&mut bench, limited(1));
    assert_eq!((plan.rekeys, plan.expelled), (1, vec!["10.1.1.2".to_owned()]));
    pass_with_one(&mut bench, &mut one, 60);
    assert_eq!((bench.members(), bench.count("rekey_started")), (1, 1));
    refused(&mut bench);
    let plan = apply(&mut bench, limited(9000));
    assert_eq!(plan.rekeys, 0);
    register(&mut bench, guest(), GroupId::number(1)).expect("a member again");
}

#[test]
fn a_registration_that_began_before_the_end_gets_no_keys_after_it() {
    let mut bench = Bench::with(limited(10));
    bench.drain();
    let said = register_around(&mut bench, guest(), GroupId::number(1), |bench| {
        bench.set(bench.now.at + Duration::from_secs(10));
    });
    assert!(matches!(said, Err(Stopped::Silence)));
    assert_eq!(bench.members(), 0);
}
