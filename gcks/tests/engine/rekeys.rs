//! Rekeys when something around them fails: the store, the signing key, numbers that end, members that were cleared.

use gdoi_proto::policy::TekAuthentication;

use super::*;

#[test]
fn a_store_that_refuses_writes_stops_the_clock_of_pushes_and_nobody_is_expired_for_it() {
    let mut bench = Bench::new();
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    bench.rekey(false);
    let failing = |bench: &mut Bench, failing| {
        bench.server.handle(bench.now, Input::StoreFailing(failing));
        bench.drain();
    };
    assert_eq!(bench.received(two.address).len(), 1, "what left before");
    let first = bench.received(one.address);
    failing(&mut bench, true);
    bench.pass(Duration::from_secs(60));
    let group = &bench.server.groups()["g1"];
    assert_eq!((group.poll_timeout(), group.teks().len()), (None, 2), "nothing is due, no key went");
    assert_eq!((bench.members(), bench.count("push_sent"), bench.count("rekey_completed")), (2, 1, 0));
    failing(&mut bench, false);
    bench.pass(Duration::from_secs(25));
    let copies = pushes(&mut bench, one.address);
    assert_eq!((copies.len(), copies.first()), (3, first.first()), "the whole schedule, the same octets");
    let three = joined(&mut bench, 3);
    assert_eq!(three.teks.len(), 2, "the old TEK still has its overlap");
    let ack = one.take(&bench, &copies[0]);
    bench.tell(one.address, ack);
    assert_eq!((bench.count("member_expired"), bench.count("ack_refused")), (0, 0));
    bench.pass(Duration::from_secs(6));
    assert_eq!((bench.members(), bench.count("member_expired")), (2, 1), "one stayed silent for all of it");
}

#[test]
fn a_signature_that_fails_is_tried_again_and_keys_get_successors_meanwhile() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    bench.failing = 3;
    bench.rekey(true);
    assert!(pushes(&mut bench, one.address).is_empty());
    // 1, 2 and 4 s later.
    bench.pass(Duration::from_secs(7));
    assert_eq!(bench.count("group_failed"), 3, "each time it is told");
    let octets = pushes(&mut bench, one.address).pop().expect("signed at last");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.pass(Duration::from_secs(44));
    assert_eq!(bench.server.groups()["g1"].teks().len(), 2, "the overlap counts from the push");
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.server.groups()["g1"].teks().len(), 1);

    // It fails for longer than keys live.
    bench.failing = u32::MAX;
    let fails = bench.count("group_failed");
    bench.pass(Duration::from_secs(10_000));
    let group = &bench.server.groups()["g1"];
    assert!(bench.count("group_failed") - fails < 200, "a minute between tries");
    assert!(group.teks().iter().any(|tek| tek.life(bench.now.at) > Duration::from_secs(300)));
    let behind = group.deliveries().len();
    assert!(behind >= 3 && pushes(&mut bench, one.address).is_empty());
    bench.failing = 0;
    bench.pass(Duration::from_secs(60));
    let mut taken: Vec<Bytes> = Vec::new();
    for octets in pushes(&mut bench, one.address) {
        if !taken.contains(&octets) {
            one.take(&bench, &octets);
            taken.push(octets);
        }
    }
    assert_eq!((one.kek.spi, one.last), bench.seq(), "every push that waited, in order");
}

#[test]
fn a_signing_key_that_cannot_be_made_or_read_is_tried_again() {
    let mut bench = Bench::with(settings());
    bench.failing = 2;
    bench.drain();
    bench.pass(Duration::from_secs(4));
    assert_eq!((bench.count("group_failed"), bench.count("group_created")), (2, 1));
    let one = joined(&mut bench, 1);
    bench.failing = 2;
    bench.restart();
    bench.pass(Duration::from_secs(4));
    assert_eq!((bench.count("group_failed"), bench.seq().0), (4, one.kek.spi), "the same key and KEK");
    bench.rekey(false);
    // One that stays unreadable is replaced, and with it the rekey SA.
    bench.failing = 5;
    bench.restart();
    bench.pass(Duration::from_secs(60));
    assert_ne!(joined(&mut bench, 1).public_key, one.public_key);
}

#[test]
fn a_signature_that_takes_longer_than_its_kek_is_kept_makes_no_timer_of_the_past() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    bench.hold = |job| matches!(job, Job::Sign { .. });
    bench.rekey(true);
    bench.set(bench.now.at + Duration::from_secs(70));
    bench.server.handle(bench.now, Input::Timeout);
    bench.drain();
    let next = bench.server.groups()["g1"].poll_timeout().expect("keys end");
    assert!(next.at > bench.now.at, "{next:?} would be due for ever");
    let request = bench.held.pop().expect("a signature is being made");
    let done = run(bench.provider.as_ref(), request.job);
    bench.server.handle(bench.now, Input::Job(JobResult { id: request.id, done }));
    bench.drain();
    let octets = pushes(&mut bench, one.address).pop().expect("a push");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.server.groups()["g1"].kek_spis().count(), 1, "the old KEK goes with its last push");
}

#[test]
fn a_member_that_was_only_asked_to_acknowledge_is_missing_after_10_s_and_not_before() {
    let mut settings = settings();
    let communication = settings.groups[0].communication.as_mut().expect("rekeying");
    communication.acknowledgement = Acknowledgement::Requested;
    (communication.retransmissions, communication.retransmission_period) = (1, Duration::from_secs(2));
    let mut bench = Bench::with(settings);
    bench.drain();
    let mut one = joined(&mut bench, 1);
    bench.rekey(false);
    bench.pass(Duration::from_millis(11_900));
    let copies = pushes(&mut bench, one.address);
    assert_eq!((copies.len(), bench.count("rekey_completed")), (2, 0));
    let ack = one.take(&bench, &copies[0]);
    bench.tell(one.address, ack);
    let Some(Event::RekeyCompleted { acknowledged: 1, missing, .. }) = bench.events.last() else {
        panic!("{:?}", bench.events.last())
    };
    assert!(missing.is_empty());
    bench.rekey(false);
    bench.pass(Duration::from_millis(12_100));
    assert_eq!((bench.count("rekey_completed"), bench.members()), (2, 1));
}

/// Octets of a small cycle: what is drawn for a TEK SPI comes again and again.
struct Cycle(u8);

impl Entropy for Cycle {
    fn fill(&mut self, out: &mut [u8]) {
        self.0 = self.0 % 6 + 1;
        out.fill(self.0);
    }
}

#[test]
fn a_member_that_never_acknowledged_stays_where_acknowledgements_are_only_requested() {
    let mut settings = settings();
    settings.groups[0].communication.as_mut().expect("rekeying").acknowledgement = Acknowledgement::Requested;
    let mut bench = Bench::with(settings);
    bench.drain();
    let one = joined(&mut bench, 1);
    for rekeys in 1..=4 {
        bench.rekey(false);
        bench.pass(Duration::from_secs(60));
        assert!(!pushes(&mut bench, one.address).is_empty(), "it is still told");
        assert_eq!((bench.count("rekey_completed"), bench.members()), (rekeys, 1));
    }
    assert_eq!(bench.count("member_expired"), 0);
}

#[test]
fn no_two_groups_of_a_server_share_the_spi_of_a_tek() {
    let mut settings = settings();
    let mut second = settings.groups[0].clone();
    (second.name, second.id) = ("g2".to_owned(), GroupId::number(2));
    settings.groups.push(second);
    for group in &mut settings.groups {
        group.communication = None;
    }
    let now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
    let mut server = KeyServer::new(settings, Vec::new(), now, Box::new(Cycle(0))).expect("no rows");
    for _ in 0..4 {
        let command = Command::Rekey { group: "g2".to_owned(), tek: true, kek: false };
        server.handle(now, Input::Command { ticket: 1, command });
    }
    let spis: Vec<Spi> =
        server.groups().values().flat_map(|group| group.teks().iter().map(|tek| tek.spi)).collect();
    assert_eq!(spis.len(), 6);
    assert_eq!(spis.iter().collect::<BTreeSet<_>>().len(), 6, "{spis:?}");
}

/// The server starts again with this SEQ under its KEK; members are told of it.
fn numbered(bench: &mut Bench, member: &mut Member, seq: u32) {
    let rows = bench.rows.iter_mut().filter(|((kind, _), _)| *kind == Kind::Kek);
    for (_, row) in rows {
        let body = std::str::from_utf8(row.body.expose()).expect("JSON");
        assert!(body.contains("\"seq\":0"), "{body}");
        let body = body.replace("\"seq\":0", &format!("\"seq\":{seq}"));
        row.body = SecretBytes::copy(body.as_bytes());
    }
    bench.restart();
    member.last = SeqNumber(seq);
}

#[test]
fn a_kek_whose_numbers_end_is_replaced_while_it_can_still_tell() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    numbered(&mut bench, &mut one, u32::MAX - 1);
    bench.pass(Duration::from_millis(1));
    let octets = pushes(&mut bench, one.address).pop().expect("a new KEK at once");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    assert_eq!((one.kek.spi, one.last), bench.seq());
    assert_eq!(bench.rekey(false), 1, "and then the next");
    let octets = pushes(&mut bench, one.address).pop().expect("a push");
    one.take(&bench, &octets);
}

#[test]
fn a_kek_without_numbers_changes_no_tek_under_its_members() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    numbered(&mut bench, &mut one, u32::MAX);
    let command = Command::Rekey { group: "g1".to_owned(), tek: true, kek: true };
    assert_eq!(bench.command(command).expect("a rekey").1, None);
    bench.pass(Duration::from_secs(600));
    let two = joined(&mut bench, 2);
    assert_eq!(two.teks[0], one.teks[0], "the old TEK is still there for who was not told");
}

#[test]
fn cleared_members_are_told_to_come_again_and_a_rekey_meanwhile_keeps_the_overlap() {
    let mut bench = Bench::new();
    let (mut one, two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    let command = Command::ClearMembers { group: "g1".to_owned() };
    let (text, seq) = bench.command(command).expect("cleared");
    assert!(text.starts_with("2 members cleared"), "{text}");
    assert_eq!((seq, bench.members()), (Some(1), 0));
    let octets = pushes(&mut bench, one.address).pop().expect("a push that tells them");
    let header = Header::decode(&octets).expect("a header");
    let opened =
        push::open(&one.cipher, one.last, &header, &octets, Dialect::STRICT).expect("under their KEK");
    let content = opened.verified().into_inner();
    assert!(content.keys.is_none());
    assert_eq!(content.deletes.len(), 1);
    assert_eq!((content.deletes[0].protocol, &content.deletes[0].spis), (0, &vec![vec![0; 16]]));

    let rekey = Command::Rekey { group: "g1".to_owned(), tek: true, kek: false };
    assert_eq!(bench.command(rekey).expect("a rekey").1, None);
    bench.restart();
    bench.pass(Duration::from_secs(20));
    let copies = pushes(&mut bench, one.address);
    assert_eq!((copies.len(), &copies[0]), (3, &octets), "also after a restart");
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    let back = joined(&mut bench, 1);
    assert_eq!((back.teks.len(), &back.teks[0]), (2, &one.teks[0]), "who is not back yet encrypts with it");
    let again = joined(&mut bench, 2);
    bench.pass(Duration::from_secs(60));
    assert!(pushes(&mut bench, back.address).is_empty(), "who is back is not told any more");
    assert!(pushes(&mut bench, again.address).is_empty());
    assert_eq!((bench.count("member_expired"), bench.count("ack_refused"), bench.members()), (0, 0, 2));
    assert!(bench.server.groups()["g1"].deliveries().is_empty());
    assert_eq!(two.teks, one.teks);
}

#[test]
fn two_rekeys_in_one_moment_are_told_apart_by_their_number_and_their_kek() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    let rekey = Command::Rekey { group: "g1".to_owned(), tek: true, kek: true };
    bench.hold = |job| matches!(job, Job::Sign { .. });
    for ticket in [1, 2] {
        bench.server.handle(bench.now, Input::Command { ticket, command: rekey.clone() });
        while let Some(output) = bench.server.poll() {
            match output {
                Output::Reply { result, .. } => {
                    let outcome = result.expect("a rekey");
                    assert_eq!((outcome.rekey, outcome.push.is_some()), (Some(ticket), ticket == 1));
                }
                Output::Job(request) => bench.held.push(request),
                Output::Event(event) => bench.events.push(event),
                Output::Persist(changes) => bench.persist(changes),
                Output::Transmit(_) | Output::Fanout { .. } | Output::Multicast { .. } => {}
            }
        }
    }
    bench.hold = |_| false;
    let request = bench.held.pop().expect("the first is being signed, the second is queued");
    let done = run(bench.provider.as_ref(), request.job);
    bench.server.handle(bench.now, Input::Job(JobResult { id: request.id, done }));
    bench.drain();
    for octets in pushes(&mut bench, one.address) {
        let ack = one.take(&bench, &octets);
        bench.tell(one.address, ack);
    }
    let names = |of: fn(&Event) -> Option<(u64, &String)>| -> Vec<(u64, String)> {
        bench.events.iter().filter_map(of).map(|(seq, spi)| (seq, spi.clone())).collect()
    };
    let started = names(|event| match event {
        Event::RekeyStarted { rekey: 1 | 2, seq, kek_spi, .. } => Some((*seq, kek_spi)),
        _ => None,
    });
    assert_eq!((started.len(), started[0].0, started[1].0), (2, 1, 1));
    assert_ne!(started[0].1, started[1].1);
    let sent = names(|event| match event {
        Event::PushSent { seq, kek_spi, .. } => Some((*seq, kek_spi)),
        _ => None,
    });
    let acked = names(|event| match event {
        Event::AckReceived { seq, kek_spi, .. } => Some((*seq, kek_spi)),
        _ => None,
    });
    let completed = names(|event| match event {
        Event::RekeyCompleted { seq, kek_spi, .. } => Some((*seq, kek_spi)),
        _ => None,
    });
    assert_eq!((&sent, &acked, &completed), (&started, &started, &started));
}

#[test]
fn a_key_whose_copies_go_round_is_told_again_with_its_successor() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    let rekey = Command::Rekey { group: "g1".to_owned(), tek: true, kek: false };
    let mut teks = Vec::new();
    for missed in [true, false] {
        bench.command(rekey.clone()).expect("a rekey");
        teks = bench.server.groups()["g1"].teks().iter().map(|tek| tek.spi).collect();
        let push = pushes(&mut bench, one.address).pop().expect("a push");
        if missed {
            one.last = one.last.next().expect("a number");
        } else {
            let ack = one.take(&bench, &push);
            bench.tell(one.address, ack);
        }
        bench.pass(Duration::from_secs(5));
    }
    let told: Vec<_> = one.teks.iter().map(|(spi, _)| *spi).collect();
    assert_eq!((told.len(), &told), (3, &teks), "the second push brought both");
    bench.pass(Duration::from_secs(60));
    bench.command(rekey).expect("a rekey");
    let latest = pushes(&mut bench, one.address).pop().expect("a push");
    one.take(&bench, &latest);
    assert_eq!(one.teks.len(), 4, "what everybody has is not told again");
}

fn stored(bench: &Bench) -> Vec<(Kind, String)> {
    bench.rows.keys().cloned().collect()
}

#[test]
fn keys_of_what_is_no_longer_configured_leave_the_store() {
    let mut bench = Bench::new();
    joined(&mut bench, 1);
    bench.rekey(true);
    let kinds: BTreeSet<Kind> = stored(&bench).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds.len(), 5, "there is one of each");
    let (before, rows) = (bench.settings.clone(), bench.rows.clone());

    bench.settings.groups[0].gateways = ["strangers".to_owned()].into();
    bench.restart();
    assert!(!stored(&bench).iter().any(|(kind, _)| *kind == Kind::Member), "its gateway may not register");

    (bench.settings, bench.rows) = (before.clone(), rows.clone());
    bench.settings.groups[0].communication = None;
    bench.restart();
    assert!(!stored(&bench).iter().any(|(kind, _)| matches!(kind, Kind::Kek | Kind::Push)));

    (bench.settings, bench.rows) = (before.clone(), rows.clone());
    let communication = bench.settings.groups[0].communication.as_mut().expect("rekeying");
    (communication.signature, communication.signature_key_bits) = (SignatureAlgorithm::Ecdsa384, 384);
    communication.signature_hash = SignatureHash::Sha384;
    bench.restart();
    // Members are told of the new signing key under the old KEK, whose end nothing shortens.
    let keks = |bench: &Bench| stored(bench).iter().filter(|(kind, _)| *kind == Kind::Kek).count();
    bench.pass(Duration::from_millis(1));
    assert_eq!(keks(&bench), 3);
    bench.pass(Duration::from_secs(300));
    assert!(keks(&bench) == 1 && !stored(&bench).iter().any(|(kind, _)| *kind == Kind::Push));

    (bench.settings, bench.rows) = (before, rows);
    bench.settings.groups[0].name = "another".to_owned();
    bench.restart();
    assert!(stored(&bench).iter().all(|(_, key)| key.starts_with("another")), "{:?}", stored(&bench));
}

/// Twenty SAs of three kinds.
fn many_sas() -> Settings {
    let mut settings = settings();
    let ciphers = [
        TekCipher::AesGcm { key_octets: 32, icv_octets: 16 },
        TekCipher::AesCbc { key_octets: 32, authentication: TekAuthentication::HmacSha512 },
        TekCipher::AesCbc { key_octets: 16, authentication: TekAuthentication::HmacSha256 },
    ];
    let sa = settings.groups[0].sas[0].clone();
    settings.groups[0].sas = (0..20u8)
        .zip(ciphers.into_iter().cycle())
        .map(|(index, cipher)| {
            let mut sa = SaSettings { name: format!("SA{index}/net"), cipher, ..sa.clone() };
            sa.source.data[2] = index;
            sa
        })
        .collect();
    settings
}

#[test]
fn a_rekey_too_large_for_one_push_is_several_that_a_restart_keeps() {
    let mut bench = Bench::with(many_sas());
    bench.drain();
    let (mut one, mut two) = (joined(&mut bench, 1), joined(&mut bench, 2));
    assert_eq!(one.teks.len(), 20);
    let last = bench.rekey(true);
    let to_one = pushes(&mut bench, one.address);
    assert_eq!(to_one.len(), last as usize, "each with a number of its own");
    assert!((3..8).contains(&to_one.len()), "{} pushes", to_one.len());
    assert!(to_one.iter().all(|octets| octets.len() <= 1280), "{:?}", to_one.iter().map(Bytes::len));
    assert_eq!((bench.count("push_too_large"), bench.count("rekey_started")), (0, to_one.len()));
    let first = one.take(&bench, &to_one[0]);
    bench.tell(one.address, first);
    bench.restart();
    bench.pass(Duration::from_secs(1));
    let again = pushes(&mut bench, two.address);
    assert_eq!(again, to_one, "all of them, the same octets");
    for octets in &again[1..] {
        let ack = one.take(&bench, octets);
        bench.tell(one.address, ack);
    }
    for octets in &again {
        let ack = two.take(&bench, octets);
        bench.tell(two.address, ack);
    }
    assert!(bench.server.groups()["g1"].deliveries().is_empty(), "everybody acknowledged everything");
    assert_eq!((one.teks.len(), two.teks.len(), one.kek.spi), (40, 40, bench.seq().0));
    let three = joined(&mut bench, 3);
    assert!(one.teks.iter().all(|tek| three.teks.contains(tek)), "the same keys");
    // Copies of what it took from the other's.
    pushes(&mut bench, one.address);
    answered_all(&mut bench, &mut [&mut one, &mut two]);
    assert_eq!((one.teks.len(), two.teks.len()), (60, 60), "and the next");
}

/// A rekey of several PUSHes that everyone answers.
fn answered_all(bench: &mut Bench, members: &mut [&mut Member]) {
    bench.rekey(false);
    for member in members {
        for octets in pushes(bench, member.address) {
            let ack = member.take(bench, &octets);
            bench.tell(member.address, ack);
        }
    }
}

#[test]
fn a_death_at_any_write_of_a_split_rekey_keeps_all_of_it_or_nothing() {
    for lives_for in 1..8 {
        let mut bench = Bench::with(many_sas());
        bench.drain();
        let mut one = joined(&mut bench, 1);
        bench.lives_for = Some(lives_for);
        let command = Command::Rekey { group: "g1".to_owned(), tek: true, kek: true };
        bench.server.handle(bench.now, Input::Command { ticket: 1, command });
        bench.drain();
        bench.restart();
        bench.pass(Duration::from_secs(1));
        for octets in pushes(&mut bench, one.address) {
            let ack = one.take(&bench, &octets);
            bench.tell(one.address, ack);
        }
        assert_eq!(
            (one.teks.len(), one.kek.spi, one.last),
            (40, bench.seq().0, bench.seq().1),
            "{lives_for}"
        );
    }
}

#[test]
fn a_key_too_large_by_itself_goes_alone_and_is_told_of() {
    let mut settings = many_sas();
    settings.groups[0].sas.truncate(3);
    settings.groups[0].communication.as_mut().expect("rekeying").max_push_size = 200;
    let mut bench = Bench::with(settings);
    bench.drain();
    let mut one = joined(&mut bench, 1);
    assert_eq!(bench.rekey(true), 4, "three TEKs and a KEK");
    assert_eq!(bench.count("push_too_large"), 4);
    for octets in pushes(&mut bench, one.address) {
        one.take(&bench, &octets);
    }
    assert_eq!((one.teks.len(), one.kek.spi), (6, bench.seq().0));
}

#[test]
fn who_registers_sends_as_soon_as_the_others_do() {
    let mut bench = Bench::new();
    let mut one = joined(&mut bench, 1);
    assert_eq!(one.activation, 0, "nothing is being replaced");
    bench.rekey(false);
    let octets = pushes(&mut bench, one.address).remove(0);
    let ack = one.take(&bench, &octets);
    bench.tell(one.address, ack);
    bench.pass(Duration::from_secs(10));
    assert_eq!(joined(&mut bench, 2).activation, 20, "the others wait for so long yet");
    // The old TEK is gone everywhere: whoever comes again with it alone must not go on sending under it.
    bench.pass(Duration::from_secs(60));
    assert_eq!(joined(&mut bench, 2).activation, 0);
}

#[test]
fn a_key_whose_copies_go_round_is_told_again_by_a_rekey_that_is_not_about_it() {
    for (heard, restarts) in [(false, false), (false, true), (true, false)] {
        let mut bench = Bench::new();
        let mut one = joined(&mut bench, 1);
        bench.rekey(false);
        let octets = pushes(&mut bench, one.address).remove(0);
        if heard {
            let ack = one.take(&bench, &octets);
            bench.tell(one.address, ack);
        } else {
            // Who takes a later PUSH first takes no copy of this one any more.
            one.last = one.last.next().expect("a number");
        }
        if restarts {
            bench.restart();
            bench.pass(Duration::from_secs(1));
            pushes(&mut bench, one.address);
        }
        let kek = Command::Rekey { group: "g1".to_owned(), tek: false, kek: true };
        bench.command(kek).expect("a rekey");
        let octets = pushes(&mut bench, one.address).remove(0);
        let ack = one.take(&bench, &octets);
        bench.tell(one.address, ack);
        let group = &bench.server.groups()["g1"];
        let all: BTreeSet<Spi> = group.teks().iter().map(|tek| tek.spi).collect();
        assert_eq!(one.teks.iter().map(|(spi, _)| *spi).collect::<BTreeSet<_>>(), all, "{heard} {restarts}");
        assert_eq!((one.teks.len(), one.kek.spi), (2, bench.seq().0));
        // With it goes the one in use: its life says when the others turn.
        assert_eq!(octets.len() > 500, !heard, "{} octets: and only where it must be", octets.len());
        assert!(group.deliveries().is_empty());
    }
}
