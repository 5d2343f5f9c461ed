//! What `cargo lab` shows, in its order. Every step waits for what the daemons themselves report.
//!
//! ```text
//! register -> same keys -> pings as ESP -> rekey by hand under pings -> rekey on schedule -> gmd killed under pings
//!          -> gm2 silent, expired -> gm2 back -> same keys -> gcksd killed, restarted: same keys, nobody registers
//!          -> rekey on schedule
//! ```
//!
//! Traffic is sent where [`Network::no_traffic`] has no reason against it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ctl::event::{Event, Level};
use ctl::observe::{GroupView, TekView};
use gdoi_lab::LabError;
use gdoi_lab::binaries::Binaries;
use gdoi_lab::daemon::{Daemon, Mark, Watcher};
use gdoi_lab::lans::FAR;
use gdoi_lab::network::{GCKS, MEMBERS, Network};
use gdoi_lab::site::{GROUP, MemberPlan, ServerPlan, Site, Timing};
use gdoi_lab::table::Table;
use gdoi_lab::wire::{Seen, Wire};
use runtime::clock::Clock;

/// Limit of what happens at once, on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Limit of what waits for a key to near its end: two lives of a TEK.
const LATER: Duration = Duration::from_secs(60);
/// Lines of each log that are printed when something fails.
const TAIL: usize = 15;
/// Events everybody has often and that show nothing here.
const QUIET: &[&str] = &["started", "listening", "lab_mode", "phase1_deleted", "kek_installed"];

/// Shows everything.
///
/// # Errors
/// What did not hold; the ends of the logs are on stderr then.
pub fn tell(network: Network, binaries: Binaries) -> Result<(), LabError> {
    let mut story = Story::begin(network, binaries)?;
    let result = story.all();
    println!("\n{}", story.table);
    match &result {
        Ok(()) => {
            println!("Everything held, in {:.0} s.", story.now());
            if let Some(reason) = story.site.network.no_traffic() {
                println!("Traffic is not shown: {reason}.");
            }
        }
        Err(_) => story.print_logs(),
    }
    result
}

struct Story {
    site: Site,
    clock: Clock,
    table: Table,
    watcher: Watcher,
    server: Daemon,
    members: Vec<Daemon>,
    /// Where the members' logs were when the server was killed.
    before_kill: Vec<Mark>,
    /// The network between the members, where there is traffic.
    wire: Option<Wire>,
}

impl Story {
    fn begin(network: Network, binaries: Binaries) -> Result<Story, LabError> {
        let clock = Clock::start();
        let site = Site::new(network, binaries)?;
        let hosts: Vec<String> = [GCKS, MEMBERS[0], MEMBERS[1]]
            .iter()
            .map(|host| format!("{host} {}", site.network.address(host)))
            .collect();
        let place = if site.network.is_namespaces() {
            "in a network namespace each"
        } else {
            "on loopback addresses"
        };
        println!("Key server and two members, {place}: {}", hosts.join(", "));
        let Timing { tek_life, kek_life, copies, period, .. } = Timing::SHORT;
        println!(
            "Lives of a lab: TEK {tek_life} s, KEK {kek_life} s; a push is sent {} times, {period} s apart.\n",
            copies + 1
        );
        let traffic = site.network.no_traffic().is_none();
        let wire = if traffic {
            site.network.add_lans()?;
            Some(Wire::watch()?)
        } else {
            None
        };
        site.write_server(&ServerPlan { ipv6: traffic, ..ServerPlan::new(Timing::SHORT) })?;
        for member in MEMBERS {
            site.write_member(member, &MemberPlan { traffic, ..MemberPlan::default() })?;
        }
        // One line at a time, whoever has something to say.
        let turn = Arc::new(Mutex::new(()));
        let watcher: Watcher = Arc::new(move |name: &str, event: &Event| {
            if event.level() >= Level::Info && !QUIET.contains(&event.name()) {
                let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                println!("{:6.1} s  {name:5} {event}", seconds(&clock));
            }
        });
        let server = site.start(GCKS, Some(Arc::clone(&watcher)))?;
        Ok(Story {
            site,
            clock,
            table: Table::default(),
            watcher,
            server,
            members: Vec::new(),
            before_kill: Vec::new(),
            wire,
        })
    }

    fn now(&self) -> f64 {
        seconds(&self.clock)
    }

    fn all(&mut self) -> Result<(), LabError> {
        self.step("both members register", Story::register)?;
        self.step("all three hold the same keys", Story::same_keys)?;
        self.traffic_step("hosts behind gm1 and gm2 ping, only ESP between", Story::cross)?;
        match self.site.network.no_traffic() {
            None => {
                self.step("rekey by hand (gdoictl) under 100 pings/s, none lost", Story::rekey_under_pings)?
            }
            Some(_) => self.step("rekey by hand (gdoictl), both acknowledge", Story::rekey_by_hand)?,
        }
        self.step("rekey on schedule, both acknowledge", Story::rekey_on_schedule)?;
        self.traffic_step("gmd killed (SIGKILL): nothing in clear, it returns", Story::kill_member)?;
        self.step("gm2 falls silent and is expired", Story::silence)?;
        self.step("gm2 comes back by itself", Story::come_back)?;
        self.step("all three hold the same keys again", Story::same_keys)?;
        self.step("gcksd killed (SIGKILL): same keys after restart", Story::kill_server)?;
        self.step("next rekey: both acknowledge, nobody registers", Story::rekey_after_restart)
    }

    fn step(&mut self, what: &str, act: fn(&mut Story) -> Result<String, LabError>) -> Result<(), LabError> {
        println!("{:6.1} s  ----- {what}", self.now());
        let begun = self.clock.now().at;
        let result = act(self);
        let time = self.clock.now().at.since(begun);
        match result {
            Ok(said) => {
                println!("{:6.1} s  ===== {said}\n", self.now());
                self.table.push(what, "held", time);
                Ok(())
            }
            Err(error) => {
                self.table.push(what, "FAILED", time);
                Err(error)
            }
        }
    }

    /// A step that needs traffic; where there is none the table says why.
    fn traffic_step(
        &mut self,
        what: &str,
        act: fn(&mut Story) -> Result<String, LabError>,
    ) -> Result<(), LabError> {
        match self.site.network.no_traffic() {
            None => self.step(what, act),
            Some(reason) => {
                self.table.push(what, &format!("skipped: {reason}"), Duration::ZERO);
                Ok(())
            }
        }
    }

    /// What passed between the members; an error when any of it was a clear packet of the hosts.
    fn on_the_wire(&self) -> Result<Seen, LabError> {
        let seen = self.wire.as_ref().map(Wire::seen).unwrap_or_default();
        match seen.examples.first() {
            Some(packet) => {
                Err(LabError::Wrong(format!("{} packets in clear, the first: {packet}", seen.clear)))
            }
            None => Ok(seen),
        }
    }

    fn pings(&self) -> Result<String, LabError> {
        for to in FAR {
            // The first may wait for the address of a neighbour.
            self.site.network.ping(to, 1)?;
            let pings = self.site.network.ping(to, 5)?;
            if !pings.all_answered() {
                return Err(LabError::Wrong(format!(
                    "{to}: {} of {} pings answered",
                    pings.answered, pings.sent
                )));
            }
        }
        let seen = self.on_the_wire()?;
        Ok(format!("{} and {} answer; on the wire {} frames of ESP, none in clear", FAR[0], FAR[1], seen.esp))
    }

    fn cross(&mut self) -> Result<String, LabError> {
        for member in &self.members {
            member.wait_named(member.beginning(), SOON, "tek_activated")?;
        }
        self.pings()
    }

    fn rekey_under_pings(&mut self) -> Result<String, LabError> {
        let train = self.site.network.train(FAR[0], Duration::from_millis(10))?;
        let marks = self.marks();
        self.gdoictl(&["server", "rekey", "--group", GROUP])?;
        self.rekeyed(&marks, "operator")?;
        for (member, mark) in self.members.iter().zip(&marks.members) {
            for what in ["tek_activated", "tek_removed"] {
                member.wait_named(*mark, SOON, what)?;
            }
        }
        let pings = train.end()?;
        // The last question may still be on its way.
        if pings.sent - pings.answered > 1 {
            return Err(LabError::Wrong(format!("{} of {} pings answered", pings.answered, pings.sent)));
        }
        self.on_the_wire()?;
        Ok(format!("the old TEK went and the new one came under {} pings; none was lost", pings.sent))
    }

    fn kill_member(&mut self) -> Result<String, LabError> {
        let train = self.site.network.train(FAR[0], Duration::from_millis(10))?;
        println!("{:6.1} s  gm1   killed", self.now());
        let watcher = Some(Arc::clone(&self.watcher));
        self.members.first_mut().ok_or_else(|| LabError::Wrong("gm1 does not run".to_owned()))?.kill();
        if self.site.network.ping(FAR[0], 3)?.answered > 0 {
            return Err(LabError::Wrong("pings pass without gmd".to_owned()));
        }
        self.on_the_wire()?;
        let gm1 = self.site.start(MEMBERS[0], watcher)?;
        gm1.wait_named(gm1.beginning(), SOON, "tek_activated")?;
        if let Some(place) = self.members.first_mut() {
            *place = gm1;
        }
        let said = self.pings()?;
        drop(train);
        Ok(format!("blocked while gmd was dead; registered again: {said}"))
    }

    fn register(&mut self) -> Result<String, LabError> {
        self.server.wait_named(self.server.beginning(), SOON, "group_created")?;
        for member in MEMBERS {
            let daemon = self.site.start(member, Some(Arc::clone(&self.watcher)))?;
            self.members.push(daemon);
        }
        for member in &self.members {
            member.wait_named(member.beginning(), SOON, "registered")?;
        }
        self.server
            .wait_until(SOON, "two members registered", |server| Ok(server.group()?.members.len() == 2))?;
        self.gdoictl(&["server", "show", "registered-members"])?;
        Ok("2 members registered, each with its own Sender-ID".to_owned())
    }

    /// Compares key octets, which nothing prints; what is printed are fingerprints of them.
    fn same_keys(&mut self) -> Result<String, LabError> {
        let mut said = String::new();
        for member in &self.members {
            member.wait_until(SOON, "the key server's keys", |member| {
                let (group, vpn) = (self.server.group()?, member.vpn()?);
                said = fingerprints(&group);
                let keks = (group.kek.and_then(|kek| kek.key_hex), vpn.kek.and_then(|kek| kek.key_hex));
                Ok(keks.0.is_some() && keks.0 == keks.1 && holds_all(&vpn.teks, &group.teks))
            })?;
        }
        Ok(format!("gm1 and gm2 hold the keys of gcks: {said}"))
    }

    fn rekey_by_hand(&mut self) -> Result<String, LabError> {
        let marks = self.marks();
        self.gdoictl(&["server", "rekey", "--group", GROUP])?;
        self.rekeyed(&marks, "operator")
    }

    fn rekey_on_schedule(&mut self) -> Result<String, LabError> {
        let marks = self.marks();
        self.rekeyed(&marks, "before keys end")
    }

    /// Waits for a rekey since the marks, and for both acknowledgements of it.
    fn rekeyed(&self, marks: &Marks, reason: &str) -> Result<String, LabError> {
        let is_start = |event: &Event| matches!(event, Event::RekeyStarted { why, .. } if why == reason);
        let started = self.server.wait(marks.server, LATER, &format!("a rekey ({reason})"), is_start)?;
        let Event::RekeyStarted { seq, kek_spi, new_kek, .. } = started else {
            return Err(LabError::Wrong("no rekey".to_owned()));
        };
        // Numbers begin again with every KEK: only what follows the start is meant.
        let mut begun = false;
        let end = self.server.wait(marks.server, SOON, &format!("the end of rekey SEQ {seq}"), |event| {
            begun |= is_start(event);
            begun && matches!(event, Event::RekeyCompleted { seq: number, .. } if *number == seq)
        })?;
        if let Event::RekeyCompleted { acknowledged, missing, .. } = end
            && (acknowledged != 2 || !missing.is_empty())
        {
            let missing = missing.join(", ");
            return Err(LabError::Wrong(format!(
                "rekey SEQ {seq}: {acknowledged} acknowledged, missing {missing}"
            )));
        }
        for (member, mark) in self.members.iter().zip(&marks.members) {
            member.wait(
                *mark,
                SOON,
                &format!("its acknowledgement of SEQ {seq}"),
                |event| matches!(event, Event::AckSent { seq: number, .. } if *number == seq),
            )?;
        }
        let keys = if new_kek.is_some() { "a TEK and a KEK" } else { "a TEK" };
        let under = kek_spi.get(..10).unwrap_or_default();
        Ok(format!("SEQ {seq} under KEK {under}... carried {keys}; gm1 and gm2 acknowledged"))
    }

    /// In namespaces the cable is pulled; on loopback the process is stopped, which looks the same from outside.
    fn silence(&mut self) -> Result<String, LabError> {
        let mark = self.server.mark();
        let how = if self.site.network.cut(MEMBERS[1])? {
            "its cable is pulled"
        } else {
            self.gm2()?.freeze()?;
            "its process is stopped (SIGSTOP)"
        };
        println!("{:6.1} s  gm2   {how}; the operator wants a rekey", self.now());
        self.gdoictl(&["server", "rekey", "--group", GROUP])?;
        let expired = self.server.wait_named(mark, SOON, "member_expired")?;
        let Event::MemberExpired { member, .. } = expired else {
            return Err(LabError::Wrong("nobody expired".to_owned()));
        };
        let gm2 = self.site.network.ip(MEMBERS[1]).to_string();
        let left = self.server.group()?.members.len();
        if member != gm2 || left != 1 {
            return Err(LabError::Wrong(format!("{member} expired, {left} members are left")));
        }
        Ok("gm2 was removed for its silence; gm1 acknowledged and stays".to_owned())
    }

    fn come_back(&mut self) -> Result<String, LabError> {
        let (server, member) = (self.server.mark(), self.gm2()?.mark());
        let cable = self.site.network.is_namespaces();
        let how = if cable { "its cable is plugged in again" } else { "its process goes on (SIGCONT)" };
        println!(
            "{:6.1} s  gm2   {how}; it registers again when no rekey came before its keys end",
            self.now()
        );
        if !self.site.network.mend(MEMBERS[1])? {
            self.gm2()?.thaw()?;
        }
        self.gm2()?.wait_named(member, LATER, "registered")?;
        let back = |event: &Event| matches!(event.name(), "member_registered" | "member_reregistered");
        self.server.wait(server, SOON, "gm2 registered again", back)?;
        Ok("gm2 noticed, registered again and has the current keys".to_owned())
    }

    fn kill_server(&mut self) -> Result<String, LabError> {
        let before = self.server.group()?;
        self.before_kill = self.member_marks();
        self.restart()?;
        let after = self.server.group()?;
        let keks = (before.kek.as_ref().map(|kek| &kek.key_hex), after.kek.as_ref().map(|kek| &kek.key_hex));
        let seq = |group: &GroupView| group.kek.as_ref().map(|kek| kek.seq);
        if keks.0 != keks.1 || !holds_all(&after.teks, &before.teks) {
            return Err(LabError::Wrong("the restarted key server has other keys".to_owned()));
        }
        if seq(&after) < seq(&before) || after.members.len() != 2 {
            let (members, seq) = (after.members.len(), seq(&after));
            return Err(LabError::Wrong(format!(
                "the restarted key server knows {members} members, SEQ {seq:?}"
            )));
        }
        Ok("the restarted gcksd has the same keys, the same SEQ and both members".to_owned())
    }

    fn restart(&mut self) -> Result<(), LabError> {
        let watcher = Some(Arc::clone(&self.watcher));
        println!("{:6.1} s  gcks  killed", self.now());
        self.server.kill();
        self.server = self.site.start(GCKS, watcher)?;
        self.server.wait_named(self.server.beginning(), SOON, "state_restored")?;
        Ok(())
    }

    /// Everything since the kill counts: the whole log of the restarted server, and what the members did.
    fn rekey_after_restart(&mut self) -> Result<String, LabError> {
        let marks = Marks { server: self.server.beginning(), members: self.before_kill.clone() };
        let said = self.rekeyed(&marks, "before keys end")?;
        let tries = |(member, mark): (&Daemon, &Mark)| member.count(*mark, "registering");
        let registered: usize = self.members.iter().zip(&self.before_kill).map(tries).sum();
        if registered > 0 {
            return Err(LabError::Wrong(format!(
                "{registered} members had to register again after the restart"
            )));
        }
        Ok(said)
    }

    fn gm2(&self) -> Result<&Daemon, LabError> {
        self.members.get(1).ok_or_else(|| LabError::Wrong("gm2 does not run".to_owned()))
    }

    fn marks(&self) -> Marks {
        Marks { server: self.server.mark(), members: self.member_marks() }
    }

    fn member_marks(&self) -> Vec<Mark> {
        self.members.iter().map(Daemon::mark).collect()
    }

    /// Runs gdoictl for the key server and prints what it prints.
    fn gdoictl(&self, arguments: &[&str]) -> Result<(), LabError> {
        let line = format!("gdoictl {}", arguments.join(" "));
        println!("{:6.1} s  $ {line}", self.now());
        let mut command = self.site.gdoictl(GCKS);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(LabError::system("gdoictl cannot be run"))?;
        for text in
            child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok)
        {
            println!("{:6.1} s    | {text}", self.now());
        }
        let status = child.wait().map_err(LabError::system("the exit code of gdoictl"))?;
        if status.success() { Ok(()) } else { Err(LabError::Program(format!("{line}: {status}"))) }
    }

    fn print_logs(&self) {
        for daemon in std::iter::once(&self.server).chain(&self.members) {
            eprintln!("--- the end of the log of {}:", daemon.name());
            for line in daemon.tail(TAIL) {
                eprintln!("{line}");
            }
        }
    }
}

/// A place in every log.
struct Marks {
    server: Mark,
    members: Vec<Mark>,
}

fn seconds(clock: &Clock) -> f64 {
    Duration::from_micros(clock.now().at.0).as_secs_f64()
}

/// True when `held` has every TEK of `wanted` that is not about to go, with the same key.
fn holds_all(held: &[TekView], wanted: &[TekView]) -> bool {
    let staying = || wanted.iter().filter(|tek| tek.state != "retiring");
    let same = |one: &TekView, other: &TekView| one.spi == other.spi && one.key_hex == other.key_hex;
    staying().count() > 0
        && staying().all(|tek| tek.key_hex.is_some() && held.iter().any(|other| same(tek, other)))
}

fn fingerprints(group: &GroupView) -> String {
    let short = |text: &str| text.get(..8).unwrap_or(text).to_owned();
    let kek = group.kek.as_ref().map_or("none".to_owned(), |kek| short(&kek.key_fingerprint));
    let teks: Vec<String> =
        group.teks.iter().map(|tek| format!("{} {}", tek.spi, short(&tek.key_fingerprint))).collect();
    format!("KEK fingerprint {kek}..., TEK [{}...]", teks.join("..., "))
}
