//! One of many members is revoked. `GDOI_MEMBERS` says how many there are: 8 when absent, 64 for the figures.

use std::collections::BTreeSet;

use ctl::control::{Reply, Request};
use ctl::event::Event;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::GCKS;
use gdoi_lab::site::{GROUP, MemberPlan, ServerPlan, Timing};

use crate::support::{LATER, SOON, have_same_keys, site};

#[test]
fn one_of_many_is_revoked_and_the_others_work_on_without_registering() {
    let count: usize = std::env::var("GDOI_MEMBERS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let site = site();
    let server = site.network.ip(GCKS).to_string();
    let (net, _) = server.rsplit_once('.').unwrap();
    let more = format!("[ike.gateway.crowd]\nike-policy = \"branches\"\naddress = \"{net}.0/24\"\n");
    let timing = Timing { copies: 4, ..Timing::LONG };
    let plan = ServerPlan {
        key_management: "lkh",
        // The tree is made for all of them: it does not grow while they come.
        threshold: Some(u32::try_from(count).unwrap()),
        admitted: vec!["gm1", "gm2", "crowd"],
        more,
        ..ServerPlan::new(timing)
    };
    site.write_server(&plan).unwrap();
    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "group_created").unwrap();
    let names: Vec<String> = (1..=count).map(|number| format!("gm{number}")).collect();
    let mut members: Vec<Daemon> = names
        .iter()
        .map(|name| {
            site.write_member(name, &MemberPlan::default()).unwrap();
            site.start(name, None).unwrap()
        })
        .collect();
    for member in &members {
        member.wait_named(member.beginning(), LATER, "registered").unwrap();
    }
    // Nobody is in the middle of something: the tree has grown as far as it must.
    server
        .wait_until(LATER, "a quiet group", |server| {
            let group = server.group()?;
            Ok(group.members.len() == count && group.pending_push.is_none())
        })
        .unwrap();
    let in_step = |server: &Daemon, members: &[Daemon]| {
        for member in members {
            let same = |member: &Daemon| Ok(have_same_keys(&server.group()?, &member.vpn()?));
            member.wait_until(LATER, "the keys of the server", same).unwrap();
        }
    };
    in_step(&server, &members);

    let marks: Vec<_> = members.iter().map(Daemon::mark).collect();
    let revoked = members.remove(count / 2);
    let address = site.network.ip(revoked.name()).to_string();
    let (before, mark) = (server.group().unwrap(), server.mark());
    let known: BTreeSet<String> = before.teks.iter().map(|tek| tek.spi.clone()).collect();
    let request = Request::Revoke { group: GROUP.to_owned(), member: address.clone() };
    let Reply::Done { text, rekey: Some(number), .. } = server.ask(&request).unwrap() else { panic!() };
    in_step(&server, &members);
    server
        .wait_until(LATER, "the end of the rekey", |server| Ok(server.group()?.pending_push.is_none()))
        .unwrap();
    let after = server.group().unwrap();
    assert_eq!((after.members.len(), after.statistics.members_expired), (count - 1, 0));
    let pushes: Vec<(u64, u64)> = server
        .events(mark)
        .iter()
        .filter_map(|event| match event {
            Event::RekeyStarted { rekey, octets, members, .. } if *rekey == number => {
                Some((*octets, *members))
            }
            _ => None,
        })
        .collect();
    let others = count as u64 - 1;
    let Some(((_, told), arrays)) = pushes.split_last() else { panic!("no push") };
    let readers: u64 = arrays.iter().map(|(_, told)| told).sum();
    assert_eq!((readers, *told), (others, others), "its array for each, then the TEKs: {pushes:?}");
    let once = |members: &[Daemon]| {
        let marks = marks.iter().zip(&names).filter(|(_, name)| *name != revoked.name());
        for (member, (mark, _)) in members.iter().zip(marks) {
            assert_eq!(member.count(*mark, "registering"), 0, "{}: {:#?}", member.name(), member.tail(40));
        }
    };
    once(&members);
    // It has what it had, and nothing of what came after.
    let held = revoked.vpn().unwrap();
    assert!(held.teks.iter().all(|tek| known.contains(&tek.spi)), "{:?}", held.teks);
    let new_kek = after.kek.unwrap();
    assert!(held.kek.is_none_or(|kek| kek.spi != new_kek.spi && kek.key_hex != new_kek.key_hex));
    let refused = |event: &Event| matches!(event, Event::PullRefused { identity, reason, .. } if *identity == address && reason.contains("revoked"));
    // It is told nothing, and would come when its keys end.
    revoked.ask(&Request::Register { vpn: None }).unwrap();
    server.wait(mark, LATER, "its refusal", refused).unwrap();

    // The others are rekeyed on.
    let rekey = Request::Rekey { group: GROUP.to_owned(), tek: true, kek: true };
    assert!(matches!(server.ask(&rekey).unwrap(), Reply::Done { seq: Some(_), .. }));
    in_step(&server, &members);
    once(&members);
    let figures: Vec<String> = pushes.iter().map(|(octets, _)| format!("{octets} octets")).collect();
    let head = text.lines().next().unwrap_or_default();
    println!("{count} members: {head}: pushes of {}", figures.join(", "));
}
