//! Real traffic between hosts behind two members, in network namespaces: only ESP on the wire between them, whatever
//! happens to the daemons. Skipped where user namespaces, TUN devices or ping are missing.

use std::process::{Command, Stdio};
use std::time::Duration;

use ctl::event::Event;
use gdoi_lab::binaries::Binaries;
use gdoi_lab::daemon::Daemon;
use gdoi_lab::lans::FAR;
use gdoi_lab::network::{GCKS, MEMBERS, Network};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};
use gdoi_lab::wire::Wire;

use crate::support::{self, Lab, SOON};

/// Where the inner process finds the programs; set only by the outer one.
pub const PROGRAMS: &str = "GDOI_TRAFFIC_PROGRAMS";
/// How often a member is killed; a long run sets it to 100.
const KILLS: &str = "GDOI_TRAFFIC_KILLS";

/// Runs an ignored test, `module::name`, in user, network and mount namespaces of its own.
pub fn in_namespaces(test: &str) {
    let unshare = ["--user", "--map-root-user", "--net", "--mount", "--"];
    let mut probe = Command::new("unshare");
    if !probe.args(unshare).arg("true").output().is_ok_and(|output| output.status.success()) {
        gdoi_lab::skipped(&format!("daemon {test}"), "network namespaces");
        return;
    }
    let programs = support::binaries();
    let mut inner = Command::new("unshare");
    inner.args(unshare).arg(std::env::current_exe().unwrap());
    inner.args(["--ignored", "--exact", "--nocapture", test]);
    inner.env(PROGRAMS, programs.directory()).stdin(Stdio::null());
    let output = inner.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "{said}");
}

#[test]
fn hosts_talk_through_esp_and_never_in_clear_whatever_happens_to_the_daemons() {
    in_namespaces("traffic::esp_and_never_in_clear");
}

/// Key server and members with LANs behind them, running, and the network between them watched.
pub struct Ground {
    pub lab: Lab,
    wire: Wire,
}

fn ground() -> Option<(Site, Wire)> {
    ground_with(&MemberPlan { traffic: true, ..MemberPlan::default() })
}

/// The same, not running, with members as planned; none when this is not the place.
pub fn ground_with(plan: &MemberPlan) -> Option<(Site, Wire)> {
    let programs = std::env::var_os(PROGRAMS)?;
    let network = Network::namespaces().unwrap();
    if let Some(reason) = network.no_traffic() {
        gdoi_lab::skipped("daemon traffic", reason);
        return None;
    }
    network.add_lans().unwrap();
    let site = Site::new(network, Binaries::in_directory(programs.as_ref()).unwrap()).unwrap();
    site.write_server(&ServerPlan { ipv6: true, ..ServerPlan::new(Timing::LONG) }).unwrap();
    for member in MEMBERS {
        site.write_member(member, plan).unwrap();
    }
    Some((site, Wire::watch().unwrap()))
}

impl Ground {
    fn network(&self) -> &Network {
        &self.lab.site.network
    }

    /// Starts everything and waits until both members encrypt.
    pub fn up((site, wire): (Site, Wire)) -> Ground {
        let server = site.start(GCKS, None).unwrap();
        server.wait_named(server.beginning(), SOON, "group_created").unwrap();
        let members = MEMBERS.map(|host| site.start(host, None).unwrap());
        for member in &members {
            member.wait_named(member.beginning(), SOON, "tek_activated").unwrap();
        }
        Ground { lab: Lab { site, server, members }, wire }
    }

    #[track_caller]
    pub fn nothing_in_clear(&self) {
        let seen = self.wire.seen();
        assert_eq!(seen.clear, 0, "{:?}", seen.examples);
    }

    #[track_caller]
    fn all_pass(&self) {
        for to in FAR {
            // The first may wait for a neighbour's address.
            self.network().ping(to, 1).unwrap();
            let pings = self.network().ping(to, 3).unwrap();
            let traffic = |daemon: &Daemon| daemon.vpn().unwrap().traffic;
            assert!(pings.all_answered(), "{to}: {pings:?} {:#?}", self.lab.members.each_ref().map(traffic));
        }
    }

    #[track_caller]
    fn nothing_passes(&self) {
        for to in FAR {
            assert_eq!(self.network().ping(to, 2).unwrap().answered, 0, "{to}");
        }
    }

    /// Starts `gm1` again and waits until it encrypts.
    fn restart(&mut self) {
        let member = self.lab.site.start(MEMBERS[0], None).unwrap();
        member.wait_named(member.beginning(), SOON, "data_plane_started").unwrap();
        member.wait_named(member.beginning(), SOON, "tek_activated").unwrap();
        self.lab.members[0] = member;
    }
}

#[track_caller]
pub(crate) fn runs(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
#[ignore = "in namespaces only, where another test starts it"]
fn esp_and_never_in_clear() {
    let Some((site, wire)) = ground() else { return };
    // Before any daemon: nothing steers, and the routes of the machines carry clear packets; --hold ends that.
    assert!(site.network.ping(FAR[0], 2).unwrap().answered > 0);
    assert!(wire.seen().clear > 0, "the wire is watched");
    drop(wire);
    for member in MEMBERS {
        let (code, said) = runs(&mut site.gmd(member, "--hold"));
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("lan -> wan"), "{said}");
    }
    let wire = Wire::watch().unwrap();
    assert_eq!(site.network.ping(FAR[0], 2).unwrap().answered, 0);
    assert_eq!(wire.seen().clear, 0, "held");

    // No key server: members run, and fail closed.
    let members = MEMBERS.map(|host| site.start(host, None).unwrap());
    for member in &members {
        member.wait_named(member.beginning(), SOON, "data_plane_started").unwrap();
    }
    assert_eq!(site.network.ping(FAR[0], 2).unwrap().answered, 0);
    let (code, said) = runs(&mut site.gmd(MEMBERS[0], "--release"));
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("stop gmd first"), "{said}");

    // Keys: both families pass, as ESP.
    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "group_created").unwrap();
    for member in &members {
        member.wait_named(member.beginning(), SOON * 2, "tek_activated").unwrap();
    }
    let mut ground = Ground { lab: Lab { site, server, members }, wire };
    ground.all_pass();
    ground.nothing_in_clear();
    assert!(ground.wire.seen().esp >= 12, "three pings and their answers, two families");
    let traffic = ground.lab.members[0].vpn().unwrap().traffic.expect("a data plane");
    assert!(traffic.outbound.protected >= 6 && traffic.inbound.protected >= 6, "{traffic:#?}");
    assert!(traffic.outbound.dropped["no_policy"] > 0, "{traffic:#?}");
    assert_eq!(traffic.sas.len(), 2, "{traffic:#?}");

    rekeys_lose_nothing(&ground);
    kills_leak_nothing(&mut ground);

    // Stopped in order: fail-close holds, until the release leaves nothing behind.
    let Ground { lab: Lab { site, server, members }, wire } = ground;
    for member in members {
        let (code, log) = member.stop().unwrap();
        assert_eq!(code, Some(0), "{log:#?}");
    }
    assert_eq!(site.network.ping(FAR[0], 2).unwrap().answered, 0);
    assert_eq!(wire.seen().clear, 0, "stopped, not released");
    assert!(!site.network.steering(MEMBERS[0]).unwrap().is_empty());
    for member in MEMBERS {
        let (code, said) = runs(&mut site.gmd(member, "--release"));
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(site.network.steering(member).unwrap(), Vec::<String>::new());
    }
    assert!(site.network.ping(FAR[0], 2).unwrap().all_answered(), "in clear, as the operator wants it now");
    drop(server);
}

/// Two rekeys of TEK and KEK under a train of pings.
fn rekeys_lose_nothing(ground: &Ground) {
    let train = ground.network().train(FAR[0], Duration::from_millis(10)).unwrap();
    for _ in 0..2 {
        let marks = ground.lab.members.each_ref().map(Daemon::mark);
        let (seq, mark) = ground.lab.rekey();
        assert_eq!(ground.lab.over(seq, mark), (2, vec![]));
        for (member, mark) in ground.lab.members.iter().zip(marks) {
            for what in ["tek_activated", "tek_removed"] {
                member.wait_named(mark, SOON, what).unwrap();
            }
        }
    }
    // What was sent last has been answered when one more question has been.
    assert!(ground.network().ping(FAR[0], 1).unwrap().all_answered());
    let pings = train.end().unwrap();
    assert!(pings.sent >= 200 && pings.sent - pings.answered <= 1, "{pings:?}: the last may be on its way");
    ground.nothing_in_clear();
}

/// A member is killed under traffic, at another moment each time.
fn kills_leak_nothing(ground: &mut Ground) {
    let kills = std::env::var(KILLS).ok().and_then(|text| text.parse().ok()).unwrap_or(3u64);
    for kill in 0..kills {
        let train = ground.network().train(FAR[0], Duration::from_millis(5)).unwrap();
        std::thread::sleep(Duration::from_millis(20 + kill * 37 % 400));
        ground.lab.members[0].kill();
        if kill == 0 {
            ground.nothing_passes();
        }
        ground.nothing_in_clear();
        ground.restart();
        ground.all_pass();
        ground.nothing_in_clear();
        let pings = train.end().unwrap();
        assert!(pings.answered > 0 && pings.answered < pings.sent, "kill {kill}: {pings:?}");
    }
    let again = |event: &Event| matches!(event, Event::DataPlaneFailed { .. });
    for member in &ground.lab.members {
        assert!(!member.events(member.beginning()).iter().any(again), "{:#?}", member.tail(20));
    }
}
