//! Other configurations while members are registered: what the plan says is what happens, as one rekey each.

use super::*;
use crate::common::gateway;
use ctl::plan::{GroupPlan, Plan};
use gcks::engine::settings::CommunicationSettings;
use gdoi_proto::policy::{AckRequest, Encapsulation};
use ike::protect::ack::Ack;

/// What a change is called, how it changes the settings, and what must follow.
struct Kind10 {
    name: &'static str,
    change: fn(&mut Settings),
    check: fn(&GroupPlan),
}

fn sa(name: &str, second: u8) -> SaSettings {
    let mut sa = settings().groups.remove(0).sas.remove(0);
    sa.name = name.to_owned();
    sa.source.data[1] = second;
    sa
}

/// Two members under statements of their own, two SAs.
fn before() -> Settings {
    let mut settings = settings();
    settings.gateways.push(gateway("others", 1));
    let group = &mut settings.groups[0];
    group.gateways.insert("others".to_owned());
    group.sas.push(sa("SA2/more", 64));
    settings
}

fn communication(settings: &mut Settings) -> &mut CommunicationSettings {
    settings.groups[0].communication.as_mut().expect("rekeying")
}

fn sign_otherwise(communication: &mut CommunicationSettings) {
    (communication.signature, communication.signature_key_bits) = (SignatureAlgorithm::Ecdsa384, 384);
    communication.signature_hash = SignatureHash::Sha384;
}

fn signing_key() -> SecretBytes {
    default_provider().generate_signing_key(SignatureAlgorithm::Ecdsa256, 256).expect("a key")
}

const KINDS: [Kind10; 12] = [
    Kind10 {
        name: "SA added",
        change: |it| it.groups[0].sas.push(sa("SA3/new", 96)),
        check: |plan| {
            assert_eq!((plan.sas_added.len(), plan.pushes[0].teks, plan.pushes[0].deletes), (1, 1, 0))
        },
    },
    Kind10 {
        name: "SA removed",
        change: |it| drop(it.groups[0].sas.pop()),
        check: |plan| {
            assert_eq!((plan.sas_removed.len(), plan.pushes[0].teks, plan.pushes[0].deletes), (1, 0, 1))
        },
    },
    Kind10 {
        name: "cipher changed",
        change: |it| it.groups[0].sas[0].cipher = TekCipher::AesGcm { key_octets: 16, icv_octets: 16 },
        check: |plan| assert_eq!((plan.sas_changed.len(), plan.pushes[0].deletes), (1, 0)),
    },
    Kind10 {
        name: "selector changed",
        change: |it| it.groups[0].sas[0].destination.port = 53,
        check: |plan| assert_eq!((plan.sas_changed.len(), plan.pushes[0].deletes), (1, 1)),
    },
    Kind10 {
        name: "encapsulation changed",
        change: |it| it.groups[0].sas[1].encapsulation = Encapsulation::Transport,
        check: |plan| assert_eq!((plan.sas_changed.len(), plan.deactivation_delay), (1, Some(180))),
    },
    Kind10 {
        name: "TEK life shortened",
        change: |it| {
            (it.groups[0].sas[0].lifetime, it.groups[0].sas[0].margin) =
                (Duration::from_secs(600), Duration::from_secs(90))
        },
        check: |plan| assert_eq!(plan.sas_shortened, ["SA1/all"]),
    },
    Kind10 {
        name: "KEK life shortened",
        change: |it| communication(it).lifetime = Duration::from_secs(3600),
        check: |plan| assert!(plan.new_kek && plan.pushes[0].new_kek && plan.pushes[0].teks == 0),
    },
    Kind10 {
        name: "KEK cipher changed",
        change: |it| communication(it).cipher = Cipher::Aes128Cbc,
        check: |plan| assert!(plan.new_kek && plan.pushes[0].new_kek),
    },
    Kind10 {
        name: "kind of signature changed",
        change: |it| sign_otherwise(communication(it)),
        check: |plan| assert!(plan.new_kek && plan.pushes[0].new_kek && plan.pushes[0].teks == 0),
    },
    Kind10 {
        name: "signing key given",
        change: |it| communication(it).signing_key = Some(signing_key()),
        check: |plan| assert!(plan.new_kek && plan.pushes[0].new_kek && plan.pushes[0].teks == 0),
    },
    Kind10 {
        name: "gateway removed",
        change: |it| it.groups[0].gateways.retain(|name| name != "others"),
        check: |plan| {
            assert_eq!((plan.expelled.len(), plan.pushes[0].members, plan.pushes[0].teks), (1, 1, 2))
        },
    },
    Kind10 {
        name: "an SA added, one removed, one changed",
        change: |it| {
            let sas = &mut it.groups[0].sas;
            sas.pop();
            sas.push(sa("SA3/new", 96));
            sas[0].encapsulation = Encapsulation::Transport;
        },
        check: |plan| assert_eq!((plan.pushes[0].teks, plan.pushes[0].deletes), (2, 1)),
    },
];

fn group(plan: &Plan) -> &GroupPlan {
    let [group] = &plan.groups[..] else { panic!("{plan:?}") };
    group
}

fn apply(bench: &mut Bench, new: &Settings) {
    bench.settings = new.clone();
    bench.server.handle(bench.now, Input::Apply(Box::new(new.clone())));
    bench.drain();
}

fn others(last: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 1, last)), 848)
}

fn both(bench: &mut Bench) -> [Member; 2] {
    bench.drain();
    let two = register(bench, others(2), GroupId::number(1)).expect("a member");
    [joined(bench, 1), two]
}

#[test]
fn each_of_ten_kinds_of_change_is_planned_and_is_exactly_one_rekey() {
    for kind in KINDS {
        let mut bench = Bench::with(before());
        let [mut one, _] = both(&mut bench);
        let (rows, events) = (bench.rows.clone(), bench.events.len());
        let mut new = before();
        (kind.change)(&mut new);
        let plan = bench.server.plan(bench.now, &new);
        bench.drain();
        assert!(bench.events.len() == events && bench.rows.len() == rows.len(), "{}: a plan", kind.name);
        let planned = group(&plan).clone();
        assert_eq!((planned.change.as_str(), planned.rekeys), ("changed", 1), "{}: {planned:?}", kind.name);
        assert!(!planned.pushes.is_empty(), "{}: {planned:?}", kind.name);
        (kind.check)(&planned);
        apply(&mut bench, &new);
        let started: Vec<(u64, u64)> = bench
            .events
            .iter()
            .filter_map(|event| match event {
                Event::RekeyStarted { rekey, octets, .. } => Some((*rekey, *octets)),
                _ => None,
            })
            .collect();
        let octets: Vec<u64> = planned.pushes.iter().map(|push| push.octets).collect();
        assert_eq!(started.iter().map(|(_, octets)| *octets).collect::<Vec<_>>(), octets, "{}", kind.name);
        assert!(started.iter().all(|(rekey, _)| *rekey == started[0].0), "{}: {started:?}", kind.name);
        // It verifies, and nothing more comes of it.
        let came = pushes(&mut bench, one.address);
        assert_eq!(came.len(), planned.pushes.len(), "{}", kind.name);
        for octets in &came {
            let ack = one.take(&bench, octets);
            bench.tell(one.address, ack);
        }
        bench.pass(Duration::from_secs(5));
        assert_eq!(bench.server.groups()["g1"].counters.rekeys, 1, "{}", kind.name);
        assert_eq!(group(&bench.server.plan(bench.now, &new)).rekeys, 0, "{}: it is done", kind.name);
    }
}

#[test]
fn a_server_that_dies_around_a_change_has_the_old_keys_or_the_new_and_members_are_told_once() {
    for kind in KINDS {
        let mut bench = Bench::with(before());
        both(&mut bench);
        let old = bench.rows.clone();
        let mut new = before();
        (kind.change)(&mut new);
        // One write holds all of it.
        bench.lives_for = Some(1);
        apply(&mut bench, &new);
        assert!(bench.dead && bench.rows.len() >= old.len() - 2, "{}", kind.name);
        bench.restart();
        bench.pass(Duration::from_secs(1));
        assert_eq!(group(&bench.server.plan(bench.now, &new)).rekeys, 0, "{}", kind.name);
        assert!(bench.count("push_sent") >= 1, "{}: the push of the change goes out", kind.name);
        // And before that write: the file is new, the keys are old.
        bench.rows = old;
        let sent = bench.count("push_sent");
        bench.restart();
        bench.pass(Duration::from_secs(1));
        assert_eq!(group(&bench.server.plan(bench.now, &new)).rekeys, 0, "{}", kind.name);
        let expected =
            if kind.name == "gateway removed" || kind.name.ends_with("life shortened") { 0 } else { 1 };
        assert!(bench.count("push_sent") >= sent + expected, "{}", kind.name);
    }
}

/// The same group with a key tree, and its two members.
fn in_a_tree() -> (Bench, Settings) {
    let mut settings = before();
    communication(&mut settings).lkh = true;
    let mut bench = Bench::with(settings.clone());
    both(&mut bench);
    (bench, settings)
}

/// PUSHes as they began: octets, TEKs, and whether a new KEK is in it.
fn began(bench: &Bench) -> Vec<(u64, u64, bool)> {
    let started = bench.events.iter().filter_map(|event| match event {
        Event::RekeyStarted { octets, teks, new_kek, .. } => {
            Some((*octets, teks.len() as u64, new_kek.is_some()))
        }
        _ => None,
    });
    started.collect()
}

#[test]
fn a_member_whose_gateway_goes_is_shut_out_of_the_key_tree_as_planned() {
    let (mut bench, mut new) = in_a_tree();
    new.groups[0].gateways.retain(|name| name != "others");
    let planned = group(&bench.server.plan(bench.now, &new)).clone();
    let pushes: Vec<(u64, u64, bool)> =
        planned.pushes.iter().map(|push| (push.octets, push.teks, push.new_kek)).collect();
    // The new TEKs go under the new KEK, which the expelled member cannot find.
    assert_eq!(pushes.iter().map(|push| (push.1, push.2)).collect::<Vec<_>>(), [(0, true), (2, false)]);
    assert_eq!((planned.rekeys, planned.expelled.len()), (1, 1));
    apply(&mut bench, &new);
    assert_eq!(began(&bench), pushes);
    assert_eq!(bench.members(), 1);
}

#[test]
fn another_key_management_is_one_rekey_that_calls_every_member_again() {
    type Change = fn(&mut Settings);
    let changes: [Change; 2] =
        [|it| communication(it).lkh = false, |it| communication(it).cipher = Cipher::Aes128Cbc];
    for change in changes {
        let (mut bench, mut new) = in_a_tree();
        change(&mut new);
        new.groups[0].sas.push(sa("SA3/new", 96));
        let planned = group(&bench.server.plan(bench.now, &new)).clone();
        assert_eq!((planned.rekeys, planned.pushes.len(), planned.new_kek), (1, 1, true), "{planned:?}");
        apply(&mut bench, &new);
        assert_eq!(began(&bench), [(planned.pushes[0].octets, 0, false)], "a Delete of the rekey SA");
        assert_eq!(bench.members(), 0, "they come again");
        let lkh = communication(&mut new.clone()).lkh;
        assert_eq!(
            bench.rows.values().any(|row| row.kind == Kind::Node),
            lkh,
            "of the old tree nothing is kept"
        );
        bench.restart();
        bench.pass(Duration::from_secs(1));
        assert_eq!(group(&bench.server.plan(bench.now, &new)).rekeys, 0, "it is done");
    }
}

#[test]
fn a_group_that_is_removed_tells_its_members_and_one_that_is_added_takes_them() {
    let mut bench = Bench::with(before());
    let [one, _] = both(&mut bench);
    let mut new = before();
    new.groups[0].name = "g2".to_owned();
    let plan = bench.server.plan(bench.now, &new);
    let changes: Vec<&str> = plan.groups.iter().map(|group| group.change.as_str()).collect();
    assert_eq!(changes, ["removed", "added"]);
    apply(&mut bench, &new);
    assert_eq!(pushes(&mut bench, one.address).len(), 1, "a Delete of everything");
    assert!(bench.rows.values().all(|row| row.kind == Kind::Push || row.key.starts_with("g2")));
    bench.pass(Duration::from_secs(60));
    assert!(!bench.server.groups().contains_key("g1"), "it is over");
    assert!(bench.rows.values().all(|row| row.key.starts_with("g2")));
    joined(&mut bench, 1);
    assert_eq!(bench.server.groups()["g2"].members().count(), 1);
}

#[test]
fn the_push_that_brings_a_signing_key_is_signed_with_the_one_before_whenever_the_server_dies() {
    for lives_for in 0..6 {
        let mut bench = Bench::with(before());
        let [mut one, mut two] = both(&mut bench);
        let first = one.public_key.clone();
        let mut new = before();
        sign_otherwise(communication(&mut new));
        bench.lives_for = (lives_for > 0).then_some(lives_for);
        apply(&mut bench, &new);
        if bench.dead {
            bench.restart();
        }
        bench.lives_for = None;
        bench.pass(Duration::from_millis(1));
        // `take` verifies with the key that the member holds.
        for member in [&mut one, &mut two] {
            let came = pushes(&mut bench, member.address);
            let came = came.last().unwrap_or_else(|| panic!("life {lives_for}: nothing came"));
            let ack = member.take(&bench, came);
            bench.tell(member.address, ack);
        }
        assert_ne!(one.public_key, first, "life {lives_for}");
        assert_eq!((one.kek.spi, one.kek.signature), (bench.seq().0, SignatureAlgorithm::Ecdsa384));
        bench.pass(Duration::from_secs(300));
        bench.rekey(true);
        let octets = pushes(&mut bench, one.address).remove(0);
        one.take(&bench, &octets);
        assert_eq!((bench.members(), bench.count("member_reregistered")), (2, 0), "life {lives_for}");
        // Once nobody needs the former key it is forgotten.
        let former = |row: &Row| row.kind == Kind::Group && contains(row.body.expose(), b"former");
        assert!(!bench.rows.values().any(former), "life {lives_for}");
    }
}

fn contains(octets: &[u8], text: &[u8]) -> bool {
    octets.windows(text.len()).any(|window| window == text)
}

#[test]
fn a_signing_key_that_changes_twice_before_it_is_read_is_one_rekey_with_the_last() {
    let mut bench = Bench::with(before());
    let [mut one, _] = both(&mut bench);
    bench.hold = |job| matches!(job, Job::LoadSigner { .. });
    let (mut new, last) = (before(), signing_key());
    for key in [signing_key(), last.clone()] {
        communication(&mut new).signing_key = Some(key);
        new.groups[0].sas.push(sa("SA3/new", 96));
        new.groups[0].sas.dedup_by(|left, right| left.name == right.name);
        apply(&mut bench, &new);
    }
    bench.hold = |_| false;
    for _ in 0..2 {
        let Some(request) = bench.held.pop() else { break };
        let done = run(bench.provider.as_ref(), request.job);
        bench.server.handle(bench.now, Input::Job(JobResult { id: request.id, done }));
        bench.drain();
    }
    let came = pushes(&mut bench, one.address);
    assert_eq!(came.len(), 1, "one PUSH says all of it");
    one.take(&bench, &came[0]);
    let signer = bench.provider.signer(SignatureAlgorithm::Ecdsa256, &last).expect("a key");
    assert_eq!(one.public_key, signer.public_key());
    assert_eq!(bench.server.groups()["g1"].counters.rekeys, 1);
}

#[test]
fn a_rekey_that_was_queued_is_made_by_the_next_life_of_the_server() {
    for dies in [false, true] {
        let mut bench = Bench::with(before());
        let [mut one, _] = both(&mut bench);
        bench.hold = |job| matches!(job, Job::Sign { .. });
        let rekey = |kek| Command::Rekey { group: "g1".to_owned(), tek: true, kek };
        bench.command(rekey(false)).expect("the first");
        let queued = bench.command(rekey(true)).expect("the second");
        assert!(queued.0.starts_with("queued"), "{queued:?}");
        bench.hold = |_| false;
        if dies {
            bench.held.clear();
            bench.restart();
        } else {
            let request = bench.held.pop().expect("a signature is being made");
            let done = run(bench.provider.as_ref(), request.job);
            bench.server.handle(bench.now, Input::Job(JobResult { id: request.id, done }));
            bench.drain();
        }
        let before = one.kek.spi;
        let came = pushes(&mut bench, one.address);
        assert_eq!(came.len(), 2, "dies {dies}: the queued one as well");
        for octets in &came {
            one.take(&bench, octets);
        }
        assert_ne!(one.kek.spi, before, "dies {dies}: it brought the new KEK");
        assert!(
            bench.events.iter().any(
                |event| matches!(event, Event::RekeyStarted { new_kek: Some(_), why, .. } if why == "operator")
            ),
            "it says who asked"
        );
        // It is made once.
        bench.restart();
        assert!(!bench.rows.values().any(|row| contains(row.body.expose(), b"wanted")));
        assert_eq!(bench.seq().0, one.kek.spi);
    }
}

#[test]
fn a_reload_while_the_signing_key_is_being_read_loses_no_rekey() {
    let mut bench = Bench::with(before());
    let [mut one, _] = both(&mut bench);
    bench.hold = |job| matches!(job, Job::LoadSigner { .. });
    bench.restart();
    let mut new = before();
    new.groups[0].gateways.retain(|name| name != "others");
    apply(&mut bench, &new);
    assert!(pushes(&mut bench, one.address).is_empty() && bench.members() == 1);
    // And dies before it is read.
    bench.held.clear();
    bench.hold = |_| false;
    bench.restart();
    let came = pushes(&mut bench, one.address);
    assert_eq!(came.len(), 1, "whoever was expelled is shut out");
    let teks = one.teks.len();
    one.take(&bench, &came[0]);
    assert_eq!(one.teks.len(), teks + 2);
}

#[test]
fn a_change_of_the_acknowledgement_type_takes_both_the_type_before_and_the_new_one() {
    type Change = (AckRequest, fn(&mut CommunicationSettings));
    let (hash, begin): (Change, Change) = (
        (AckRequest::KekSha512, |it| it.signature_hash = SignatureHash::Sha512),
        (AckRequest::KekSha256, |it| it.acknowledgement = Acknowledgement::Required),
    );
    for (number, (request, change)) in [(0, hash), (1, begin)] {
        let mut settings = before();
        let it = communication(&mut settings);
        (it.signature, it.signature_key_bits) = (SignatureAlgorithm::Rsa, 2048);
        if number == 1 {
            it.acknowledgement = Acknowledgement::None;
        }
        let mut bench = Bench::with(settings.clone());
        let [mut one, two] = both(&mut bench);
        change(communication(&mut settings));
        apply(&mut bench, &settings);
        let octets = pushes(&mut bench, one.address).remove(0);
        // The most recent SAK is that of the KEK for one member, that of the PUSH for the other.
        let later = |member: &Member| {
            let key = AckKey::derive(request, &member.key, member.kek.spi);
            key.seal(member.kek.spi, SeqNumber(1), member.address.ip())
        };
        let ack = later(&two);
        assert!(Ack::decode(&ack).is_ok());
        bench.tell(two.address, ack);
        let ack = if number == 0 { one.take(&bench, &octets) } else { later(&one) };
        bench.tell(one.address, ack);
        let counters = &bench.server.groups()["g1"].counters;
        assert_eq!((counters.acks, counters.acks_forged, counters.acks_unexpected), (2, 0, 0), "{request:?}");
        bench.pass(Duration::from_secs(60));
        assert_eq!((bench.members(), bench.count("member_suspect")), (2, 0), "{request:?}");
        // Another type than either is still a forgery.
        bench.rekey(false);
        let wrong = AckKey::derive(AckRequest::KekSha512, &two.key, two.kek.spi);
        bench.tell(two.address, wrong.seal(two.kek.spi, SeqNumber(9), two.address.ip()));
        assert_eq!(bench.server.groups()["g1"].counters.acks, 2);
    }
}

#[test]
fn members_whose_rekey_sa_asks_for_no_acknowledgement_are_not_missed_for_one() {
    let mut settings = before();
    communication(&mut settings).acknowledgement = Acknowledgement::None;
    let mut bench = Bench::with(settings.clone());
    both(&mut bench);
    communication(&mut settings).acknowledgement = Acknowledgement::Required;
    apply(&mut bench, &settings);
    bench.pass(Duration::from_secs(60));
    assert_eq!((bench.members(), bench.count("member_expired"), bench.count("member_suspect")), (2, 0, 0));
}
