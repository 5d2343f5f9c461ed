//! Months of a group: members join, leave and are revoked, the configuration changes, the server dies, a tenth of all
//! datagrams is lost. At every moment what is sent can be opened by everybody it is for, and by nobody who was revoked.
//!
//! `GDOI_SIMULATION=seeds` runs 200 seeds of 50 members for 30 days, `=days` 10,000 members for 2 days, `=month` the same for
//! 30 days; `FROM-TO` runs those seeds. `=sample` is what CI runs: eight seeds and the two days.

mod watch;

use std::net::SocketAddr;
use std::time::Duration;

use gcks::engine::io::Command;
use gcks::engine::member::MemberKey;
use gcks::engine::settings::Settings;
use gdoi_proto::message::Dialect;
use gdoi_proto::policy::TekCipher;
use gdoi_sim::provider::SeededEntropy;
use gdoi_sim::world::{GROUP, member_address, member_index, server_settings};
use gdoi_sim::{Timing, Weather, World};

use super::revocation::revoke;
use watch::Watch;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// What a run is like.
#[derive(Debug, Clone, Copy)]
struct Plan {
    seed: u64,
    members: usize,
    time: Duration,
    /// Disturbances a day.
    events: u64,
    /// Copies after the first.
    retransmissions: u32,
    lkh: bool,
}

/// A world and what is known of it.
struct Run {
    plan: Plan,
    world: World,
    watch: Watch,
    dice: SeededEntropy,
    settings: Settings,
    revoked: Vec<usize>,
    /// Members without a network, and until when.
    cut: Vec<(usize, ike::io::Instant)>,
    /// When a server that died starts again.
    starts: Option<ike::io::Instant>,
    /// Members that were ever started.
    born: usize,
}

fn settings(plan: Plan) -> Settings {
    let timing = Timing { retransmissions: plan.retransmissions, ..Timing::USUAL };
    let mut settings = server_settings(timing, Dialect::STRICT, true);
    let span = timing.period * (timing.retransmissions + 1);
    for group in &mut settings.groups {
        let Some(communication) = &mut group.communication else { continue };
        communication.lkh = plan.lkh;
        // The last copy is missed before anybody sends under the new key, and who got it sends under the old one until then.
        communication.activation_delay += 5;
        let delay = communication.activation_delay + span.as_secs() as u16;
        communication.deactivation_delay = delay;
        let margin = span + Duration::from_secs(u64::from(delay) + 5);
        communication.margin = communication.margin.max(margin);
        group.sas.iter_mut().for_each(|sa| sa.margin = sa.margin.max(margin));
    }
    settings
}

impl Run {
    fn new(plan: Plan) -> Run {
        let settings = settings(plan);
        let world = World::configured(plan.seed, Weather::bad(10), settings.clone());
        let mut run = Run {
            watch: Watch::new(plan.seed, &settings),
            dice: SeededEntropy::new(plan.seed ^ 0x5eed),
            plan,
            world,
            settings,
            revoked: Vec::new(),
            cut: Vec::new(),
            starts: None,
            born: 0,
        };
        run.look();
        // Not all in the same second.
        let pause = (10 * MINUTE) / plan.members.max(1) as u32;
        for _ in 0..plan.members {
            run.start(run.born);
            run.pass(pause);
        }
        run.pass(HOUR);
        assert!(
            run.watch.synced() * 10 >= plan.members * 9,
            "seed {}: {} members",
            plan.seed,
            run.watch.synced()
        );
        run
    }

    fn look(&mut self) {
        self.watch.look(&mut self.world);
        if !self.world.server_runs() && self.starts.is_none() {
            self.server_died(true);
        }
    }

    /// A server that died may not have written the last thing that it was told.
    fn agree_on_revoked(&mut self) {
        let group = &self.world.server().groups()[GROUP];
        let named = |key: &MemberKey| key.to_string().parse().ok().map(|ip| SocketAddr::new(ip, 848));
        let written: Vec<usize> =
            group.revoked().filter_map(|(key, _)| named(key)).filter_map(member_index).collect();
        for index in self.revoked.extract_if(.., |index| !written.contains(index)).collect::<Vec<_>>() {
            self.watch.unrevoked(index);
        }
        for index in written {
            if !self.revoked.contains(&index) {
                self.watch.still_revoked(index, &self.world);
                self.revoked.push(index);
            }
        }
    }

    fn start(&mut self, index: usize) {
        self.born = self.born.max(index + 1);
        self.world.start_member(index);
        self.watch.lost(index, &self.world);
        self.look();
    }

    fn pass(&mut self, time: Duration) {
        let end = self.world.now().at + time;
        loop {
            let pauses = self.starts.into_iter().chain(self.cut.iter().map(|(_, until)| *until));
            let next = pauses.fold(end, |first, at| first.min(at));
            while self.world.advance(next) {
                let waits = self.starts;
                self.look();
                if self.starts != waits {
                    break;
                }
            }
            let now = self.world.now().at;
            if self.starts.is_some_and(|at| at <= now) {
                self.starts = None;
                self.world.start_server();
                match self.world.server_runs() {
                    true => {
                        self.watch.server_started(&self.world);
                        self.agree_on_revoked();
                    }
                    // The write at which it was to die was one of its start.
                    false => self.server_died(true),
                }
                self.look();
            }
            let over: Vec<usize> =
                self.cut.iter().filter(|(_, until)| *until <= now).map(|(index, _)| *index).collect();
            for index in over {
                self.cut.retain(|(other, _)| *other != index);
                self.world.net.mend(member_address(index).ip());
                self.watch.reachable(index, true, &self.world);
            }
            if now >= end {
                return;
            }
        }
    }

    fn server_died(&mut self, at_a_write: bool) {
        self.watch.server_died(at_a_write, &self.world);
        let seconds = 1 + self.dice.below(60);
        self.starts = Some(self.world.now().at + Duration::from_secs(seconds));
    }

    /// A member that runs, can be reached and is not revoked.
    fn somebody(&mut self) -> Option<usize> {
        let able = |index: &usize| {
            self.world.member_runs(*index)
                && !self.revoked.contains(index)
                && self.cut.iter().all(|(cut, _)| cut != index)
        };
        let all: Vec<usize> = (0..self.born).filter(able).collect();
        let place = self.dice.below(all.len() as u64) as usize;
        all.get(place).copied()
    }

    fn command(&mut self, command: Command) {
        if self.world.server_runs() {
            let what = format!("{command:?}");
            let rekeys = !matches!(command, Command::Unrevoke { .. });
            let answer = self.world.command(command);
            self.watch.commanded(rekeys);
            match answer {
                Some(Ok(_)) => {}
                // It died of it, or is not ready yet.
                None => {}
                Some(Err(reason)) => panic!("seed {}: {what}: {reason}", self.plan.seed),
            }
            self.look();
        }
    }

    /// Something happens.
    fn disturb(&mut self) {
        let Some(somebody) = self.somebody() else { return };
        let name = member_address(somebody).ip().to_string();
        let group = GROUP.to_owned();
        match self.dice.below(12) {
            0 | 1 => self.start(self.born),
            2 if self.born > self.plan.members => {
                self.world.kill_member(somebody);
                self.watch.lost(somebody, &self.world);
            }
            2 | 3 => self.start(somebody),
            4 if self.plan.lkh && self.watch.is_synced(somebody) && self.world.server_runs() => {
                self.watch.revoked(somebody, &self.world);
                self.revoked.push(somebody);
                self.command(revoke(somebody));
            }
            4 => self.command(Command::Rekey { group, tek: true, kek: false }),
            5 if self.world.server_runs() => match self.revoked.pop() {
                Some(index) => {
                    let member = member_address(index).ip().to_string();
                    self.watch.unrevoked(index);
                    self.command(Command::Unrevoke { group, member });
                    self.start(index);
                }
                None => self.command(Command::Rekey { group, tek: true, kek: true }),
            },
            6 | 7 => self.reload(),
            8 | 9 if self.world.server_runs() => {
                let batches = 1 + self.dice.below(5);
                let at_a_write = self.dice.below(2) == 0;
                if at_a_write {
                    self.world.kill_server_after(batches);
                    self.command(Command::Rekey { group, tek: true, kek: batches.is_multiple_of(2) });
                } else {
                    self.world.kill_server();
                    self.server_died(false);
                }
            }
            10 if self.watch.is_listed(somebody) && self.world.server_runs() => {
                self.watch.lost(somebody, &self.world);
                self.command(Command::Expel { group, member: name });
                self.start(somebody);
            }
            _ => {
                let until = self.world.now().at + MINUTE * (1 + self.dice.below(120) as u32);
                self.world.net.cut(member_address(somebody).ip());
                self.watch.reachable(somebody, false, &self.world);
                self.cut.push((somebody, until));
            }
        }
    }

    /// Another configuration.
    fn reload(&mut self) {
        if !self.world.server_runs() {
            return;
        }
        let kind = self.dice.below(4);
        let mut added = None;
        let group = &mut self.settings.groups[0];
        match kind {
            0 if group.sas.len() > 1 => drop(group.sas.pop()),
            0 => {
                let mut sa = group.sas[0].clone();
                sa.name = "SA2/more".to_owned();
                sa.source.data[1] = 64;
                added = Some(sa.name.clone());
                group.sas.push(sa);
            }
            1 => {
                let long = group.sas[0].cipher == TekCipher::AesGcm { key_octets: 32, icv_octets: 16 };
                let key_octets = if long { 16 } else { 32 };
                group.sas[0].cipher = TekCipher::AesGcm { key_octets, icv_octets: 16 };
            }
            2 => {
                let short = group.sas[0].lifetime < HOUR;
                group.sas[0].lifetime = if short { HOUR } else { HOUR / 2 };
            }
            _ => {
                if let Some(communication) = &mut group.communication {
                    let short = communication.lifetime < HOUR * 2;
                    communication.lifetime = if short { HOUR * 2 } else { HOUR };
                }
            }
        }
        let planned = self.world.plan(&self.settings);
        self.watch.reloads(planned, &self.settings, &self.world);
        self.world.apply(self.settings.clone());
        self.watch.reloaded(added.as_deref(), &self.world);
        self.look();
    }

    fn run(mut self) -> Watch {
        let end = self.world.now().at + self.plan.time;
        while self.world.now().at < end {
            let seconds = 86_400 * 2 / self.plan.events.max(1);
            let pause = Duration::from_secs(1 + self.dice.below(seconds));
            self.pass(pause.min(end.since(self.world.now().at)));
            if self.world.now().at < end {
                self.disturb();
            }
        }
        // Whoever is there comes to the same keys when nothing disturbs.
        self.world.net.weather = Weather::FAIR;
        let now = self.world.now().at;
        self.cut.iter_mut().for_each(|(_, until)| *until = now);
        self.pass(3 * HOUR);
        let should: Vec<usize> = (0..self.born)
            .filter(|index| self.world.member_runs(*index) && !self.revoked.contains(index))
            .collect();
        let lost: Vec<usize> = should.iter().copied().filter(|index| !self.watch.is_synced(*index)).collect();
        assert!(lost.is_empty(), "seed {}: never came back: {lost:?}", self.plan.seed);
        self.watch.over(&self.world);
        self.watch
    }
}

fn run(plan: Plan) -> Watch {
    Run::new(plan).run()
}

fn wanted(what: &str) -> bool {
    std::env::var("GDOI_SIMULATION").is_ok_and(|word| word == what)
}

/// Seeds to run, from the environment.
fn seeds(default: std::ops::RangeInclusive<u64>) -> std::ops::RangeInclusive<u64> {
    let Ok(word) = std::env::var("GDOI_SIMULATION") else { return default };
    match word.as_str() {
        "seeds" => return 1..=200,
        "sample" => return 1..=8,
        _ => {}
    }
    match word.split_once('-').map(|(from, to)| (from.parse(), to.parse())) {
        Some((Ok(from), Ok(to))) => from..=to,
        _ => default,
    }
}

fn month_of(seed: u64, days: u32) -> Plan {
    Plan { seed, members: 50, time: DAY * days, events: 8, retransmissions: 2, lkh: seed.is_multiple_of(2) }
}

#[test]
fn members_of_a_disturbed_group_can_always_open_what_the_others_send() {
    let full = std::env::var("GDOI_SIMULATION").is_ok();
    for seed in seeds(1..=2) {
        let watch = run(month_of(seed, if full { 30 } else { 4 }));
        if full {
            println!("seed {seed}: {watch}");
        }
    }
}

#[test]
fn ten_thousand_members_can_always_open_what_the_others_send() {
    let (members, days) = match (wanted("days") || wanted("sample"), wanted("month")) {
        (true, _) => (10_000, 2),
        (_, true) => (10_000, 30),
        _ => (300, 1),
    };
    let plan = Plan { seed: 77, members, time: DAY * days, events: 24, retransmissions: 3, lkh: true };
    let watch = run(plan);
    println!("{members} members, {days} days: {watch}");
}
