//! The configuration changes while members are registered: `gdoictl server plan` says what will happen and does nothing,
//! `apply` (or SIGHUP) does it by exactly one rekey, and both members follow without registering again.

use std::collections::BTreeSet;

use ctl::event::Event;
use ctl::observe::{GroupView, IkeSaView};
use ctl::plan::{GroupPlan, Plan};
use gdoi_lab::daemon::Mark;
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{GROUP, ServerPlan, Timing};

use crate::support::{LATER, Lab, SOON};

/// A change of the file, and what its plan must say.
struct Kind {
    name: &'static str,
    from: &'static str,
    to: &'static str,
    /// Pushes of its rekey.
    pushes: usize,
    check: fn(&GroupPlan),
}

/// More policies after the last one of the file, each an SA of its own.
const ONE: &str = r#"[[group.lab.ipsec-sa.SA1.match-policy]]
name = "voice"
source = "10.20.0.0/16"
destination = "10.20.0.0/16"
"#;
const TWO: &str = r#"[[group.lab.ipsec-sa.SA1.match-policy]]
name = "voice"
source = "10.20.0.0/16"
destination = "10.21.0.0/16"
protocol = "udp"
destination-port = 5060
"#;
const MANY: &str = r#"[[group.lab.ipsec-sa.SA1.match-policy]]
name = "a"
source = "10.1.0.0/16"
destination = "10.1.0.0/16"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "b"
source = "10.2.0.0/16"
destination = "10.2.0.0/16"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "c"
source = "10.3.0.0/16"
destination = "10.3.0.0/16"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "d"
source = "10.4.0.0/16"
destination = "10.4.0.0/16"
"#;

/// Of an hour less the activation delay, in whole seconds.
const FIVE_PERCENT: u64 = 179;

const fn kind(name: &'static str, from: &'static str, to: &'static str, check: fn(&GroupPlan)) -> Kind {
    Kind { name, from, to, pushes: 1, check }
}

/// One after the other: each changes what the one before left.
const KINDS: [Kind; 14] = [
    kind("SA added", "# end\n", ONE, |plan| {
        assert_eq!((plan.sas_added.len(), plan.pushes[0].teks, plan.pushes[0].deletes), (1, 1, 0));
    }),
    kind("match policy changed", ONE, TWO, |plan| {
        assert_eq!((plan.sas_changed.len(), plan.pushes[0].teks, plan.pushes[0].deletes), (1, 1, 1));
        assert_eq!(plan.deactivation_delay, Some(FIVE_PERCENT));
    }),
    kind("SA removed", TWO, "# end\n", |plan| {
        assert_eq!((plan.sas_removed.len(), plan.pushes[0].teks, plan.pushes[0].deletes), (1, 0, 1));
    }),
    kind("cipher changed", "\"aes-256-gcm\"", "\"aes-128-gcm\"", |plan| {
        assert_eq!((plan.sas_changed.len(), plan.pushes[0].teks, plan.pushes[0].deletes), (1, 1, 0));
    }),
    kind("TEK life shortened", "lifetime-seconds = 3600", "lifetime-seconds = 1500", |plan| {
        assert_eq!((plan.sas_shortened.len(), plan.deactivation_delay), (1, Some(FIVE_PERCENT)));
    }),
    kind(
        "encapsulation changed",
        "lifetime-seconds = 1500\n",
        "lifetime-seconds = 1500\nencapsulation = \"transport\"\n",
        |plan| {
            assert_eq!((plan.sas_changed.len(), plan.deactivation_delay), (1, Some(90)), "5 % are less");
        },
    ),
    kind(
        "anti-replay window",
        "group-id = 1\n",
        "group-id = 1\nanti-replay-time-window = \"1s\"\n",
        |plan| {
            assert_eq!((plan.sas_changed.len(), plan.pushes[0].teks), (1, 1));
        },
    ),
    kind("KEK cipher changed", "\"aes-256-cbc\"\nsig-hash", "\"aes-128-cbc\"\nsig-hash", |plan| {
        assert!(plan.new_kek && plan.pushes[0].new_kek && plan.pushes[0].teks == 0);
    }),
    kind("KEK life shortened", "lifetime-seconds = 7200", "lifetime-seconds = 3600", |plan| {
        assert!(plan.new_kek && plan.pushes[0].new_kek && plan.pushes[0].teks == 0);
    }),
    kind("signing key changed", "signature = \"ecdsa-256\"", "signature = \"rsa-2048\"", |plan| {
        assert!(plan.new_kek && plan.pushes[0].new_kek && plan.pushes[0].teks == 0);
        assert!(plan.notes.iter().any(|note| note.contains("signed with the one before")));
    }),
    // KEK_ACK_REQUESTED becomes that of SHA-512 with it.
    kind(
        "hash of signature and acknowledgement changed",
        "\"sha-256\"\nsignature",
        "\"sha-512\"\nsignature",
        |plan| {
            assert!(plan.new_kek && plan.pushes[0].new_kek);
        },
    ),
    kind(
        "acknowledgements not asked for",
        "acknowledgement = \"required\"",
        "acknowledgement = \"none\"",
        |plan| {
            assert!(plan.new_kek && plan.pushes[0].new_kek);
        },
    ),
    kind(
        "acknowledgements asked for again",
        "acknowledgement = \"none\"",
        "acknowledgement = \"required\"",
        |plan| {
            assert!(plan.new_kek && plan.pushes[0].new_kek);
        },
    ),
    Kind {
        name: "four SAs in small pushes",
        from: "# end\n",
        to: MANY,
        pushes: 2,
        check: |plan| {
            assert_eq!(plan.pushes.iter().map(|push| push.teks).sum::<u64>(), 4);
            assert!(plan.pushes.iter().all(|push| push.octets <= 600 && push.limit == 600), "{plan:?}");
        },
    },
];

/// The lab with the text of its configuration.
struct Changing {
    lab: Lab,
    text: String,
}

/// What must not change when something is planned: keys, numbers, counters.
fn state(group: &GroupView) -> (Option<(String, u64)>, Vec<String>, u64, usize) {
    let kek = group.kek.as_ref().map(|kek| (kek.spi.clone(), kek.seq));
    let teks = group.teks.iter().map(|tek| tek.spi.clone()).collect();
    (kek, teks, group.statistics.rekeys, group.members.len())
}

fn cookies(sas: &[IkeSaView]) -> BTreeSet<String> {
    sas.iter().map(|sa| sa.initiator_cookie.clone()).collect()
}

impl Changing {
    fn new() -> Changing {
        let lab = Lab::planned(&ServerPlan { more: "# end\n".to_owned(), ..ServerPlan::new(Timing::LONG) });
        lab.same_keys();
        let text = std::fs::read_to_string(lab.site.path("gcks.toml")).unwrap();
        Changing { lab, text }
    }

    fn edit(&mut self, from: &str, to: &str) {
        assert_eq!(self.text.matches(from).count(), 1, "{from:?} in {}", self.text);
        self.text = self.text.replace(from, to);
        std::fs::write(self.lab.site.path("next.toml"), &self.text).unwrap();
    }

    /// `gdoictl server plan` or `apply` of the changed file.
    fn ask(&self, what: &str) -> Plan {
        let file = self.lab.site.path("next.toml");
        let output =
            self.lab.site.gdoictl(GCKS).args(["server", what]).arg(file).arg("--json").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn group(plan: &Plan) -> GroupPlan {
        let [group] = &plan.groups[..] else { panic!("{plan:?}") };
        group.clone()
    }

    /// What a plan says; it changes nothing.
    fn plan(&self) -> GroupPlan {
        let (before, mark) = (state(&self.lab.server.group().unwrap()), self.lab.server.mark());
        let plan = self.ask("plan");
        assert!(!plan.applied);
        assert_eq!(state(&self.lab.server.group().unwrap()), before, "a plan");
        assert_eq!(self.lab.server.count(mark, "rekey_started"), 0, "a plan");
        Changing::group(&plan)
    }

    /// SIGHUP: the daemon reads the file it was started with.
    fn hang_up(&self, mark: Mark) {
        std::fs::write(self.lab.site.path("gcks.toml"), &self.text).unwrap();
        self.lab.server.reload().unwrap();
        self.lab.server.wait_named(mark, SOON, "configuration_reloaded").unwrap();
    }

    /// Waits for the end of the pushes that a plan named: one rekey, in these octets.
    fn one_rekey(&self, name: &str, planned: &GroupPlan, rekeys: u64, mark: Mark) {
        let server = &self.lab.server;
        let over = |server: &gdoi_lab::daemon::Daemon| {
            Ok(server.count(mark, "rekey_completed") >= planned.pushes.len()
                && server.group()?.pending_push.is_none())
        };
        server.wait_until(SOON, name, over).unwrap();
        let started: Vec<(u64, u64, u64)> = server
            .events(mark)
            .into_iter()
            .filter_map(|event| match event {
                Event::RekeyStarted { rekey, pushes, octets, .. } => Some((rekey, pushes, octets)),
                _ => None,
            })
            .collect();
        let octets: Vec<u64> = planned.pushes.iter().map(|push| push.octets).collect();
        assert_eq!(started.iter().map(|push| push.2).collect::<Vec<_>>(), octets, "{name}");
        assert!(started.iter().all(|push| (push.0, push.1) == (started[0].0, octets.len() as u64)), "{name}");
        assert_eq!(server.group().unwrap().statistics.rekeys, rekeys + 1, "{name}");
        for event in server.events(mark) {
            if let Event::RekeyCompleted { missing, .. } = event {
                assert!(missing.is_empty(), "{name}: {missing:?}");
            }
        }
    }
}

#[test]
fn each_kind_of_change_is_planned_and_is_exactly_one_rekey_that_both_members_follow() {
    let mut it = Changing::new();
    for (kind, number) in KINDS.iter().zip(0..) {
        if kind.name.starts_with("four SAs") {
            // This alone says nothing to members.
            it.edit("key-management = \"flat\"", "max-push-size = 600\nkey-management = \"flat\"");
            let planned = it.plan();
            assert_eq!((planned.change.as_str(), planned.rekeys), ("changed", 0), "max-push-size");
        }
        it.edit(kind.from, kind.to);
        let planned = it.plan();
        assert_eq!((planned.change.as_str(), planned.rekeys), ("changed", 1), "{}: {planned:?}", kind.name);
        assert_eq!(planned.pushes.len(), kind.pushes, "{}: {planned:?}", kind.name);
        (kind.check)(&planned);
        let before = it.lab.server.server().unwrap();
        let (rekeys, mark) = (before.groups[0].statistics.rekeys, it.lab.server.mark());
        // Every third one by signal.
        if number % 3 == 2 {
            it.hang_up(mark);
        } else {
            assert!(it.ask("apply").applied);
        }
        it.one_rekey(kind.name, &planned, rekeys, mark);
        it.lab.same_keys();
        assert_eq!(it.plan().rekeys, 0, "{}: it is done", kind.name);
        let after = it.lab.server.server().unwrap();
        // A phase 1 SA that served no PULL for a minute ends by itself.
        let idle = it.lab.server.events(mark).into_iter().filter(
            |event| matches!(event, Event::Phase1Deleted { reason, .. } if reason.starts_with("idle")),
        );
        let gone = cookies(&before.ike_sas).difference(&cookies(&after.ike_sas)).count();
        assert_eq!(gone, idle.count(), "{}: phase 1 SAs stay", kind.name);
        for member in &it.lab.members {
            assert_eq!(member.count(member.beginning(), "registering"), 1, "{}", kind.name);
            assert_eq!(member.count(member.beginning(), "push_refused"), 0, "{}", kind.name);
        }
        let statistics = after.groups[0].statistics;
        let odd = (statistics.acks_forged, statistics.acks_unexpected, statistics.members_expired);
        assert_eq!(odd, (0, 0, 0), "{}", kind.name);
        // A replaced key ends early, by the DTD of that push.
        if let Some(delay) = planned.deactivation_delay {
            let retiring = after.groups[0].teks.iter().filter(|tek| tek.state == "retiring");
            assert!(retiring.clone().count() > 0, "{}", kind.name);
            let spis: BTreeSet<&String> = retiring.map(|tek| &tek.spi).collect();
            for member in &it.lab.members {
                let vpn = member.vpn().unwrap();
                let held = vpn.teks.iter().filter(|tek| spis.contains(&tek.spi));
                assert!(held.clone().all(|tek| tek.remaining_seconds <= delay.max(180)), "{}", kind.name);
            }
        }
    }
    members_that_leave_and_come(&mut it);
    a_key_tree_calls_every_member_again(&mut it);
}

/// A gateway that is removed takes its member with it; added again, it may register.
fn members_that_leave_and_come(it: &mut Changing) {
    it.edit("ike-gateways = [\"gm1\", \"gm2\"]", "ike-gateways = [\"gm1\"]");
    let planned = it.plan();
    let gm2 = it.lab.site.network.ip(MEMBERS[1]).to_string();
    assert_eq!((planned.rekeys, &planned.expelled[..]), (1, &[gm2][..]), "{planned:?}");
    assert!(planned.pushes.iter().all(|push| push.members == 1));
    let (rekeys, mark) = (it.lab.server.group().unwrap().statistics.rekeys, it.lab.server.mark());
    it.ask("apply");
    it.one_rekey("gateway removed", &planned, rekeys, mark);
    let stays = &it.lab.members[0];
    let server = &it.lab.server;
    let same = |member: &gdoi_lab::daemon::Daemon| {
        Ok(crate::support::have_same_keys(&server.group()?, &member.vpn()?))
    };
    stays.wait_until(SOON, "the new keys", same).unwrap();
    assert!(!same(&it.lab.members[1]).unwrap(), "it is told nothing");
    assert_eq!(server.group().unwrap().members.len(), 1);

    it.edit("ike-gateways = [\"gm1\"]", "ike-gateways = [\"gm1\", \"gm2\"]");
    let planned = it.plan();
    assert_eq!((planned.change.as_str(), planned.rekeys, planned.pushes.len()), ("changed", 0, 0));
    let mark = it.lab.server.mark();
    it.ask("apply");
    // What it tries by itself comes later than anybody wants to wait.
    it.lab.members[1].kill();
    it.lab.members[1] = it.lab.site.start(MEMBERS[1], None).unwrap();
    it.lab.members[1].wait_named(it.lab.members[1].beginning(), SOON, "registered").unwrap();
    it.lab.same_keys();
    assert_eq!(it.lab.server.count(mark, "rekey_started"), 0, "a newcomer takes no rekey");
}

/// From flat keys nothing leads to a tree: one rekey deletes the rekey SA, and members come again.
fn a_key_tree_calls_every_member_again(it: &mut Changing) {
    it.edit("key-management = \"flat\"", "key-management = \"lkh\"");
    let planned = it.plan();
    assert_eq!((planned.rekeys, planned.pushes.len(), planned.new_kek), (1, 1, true), "{planned:?}");
    let marks = it.lab.members.each_ref().map(|member| member.mark());
    it.ask("apply");
    for (member, mark) in it.lab.members.iter().zip(marks) {
        member.wait_named(mark, LATER, "registered").unwrap();
    }
    it.lab.same_keys();
    assert_eq!(it.plan().rekeys, 0, "it is done");
    // LKH acknowledgements, with the keys of their leaves.
    let (seq, mark) = it.lab.rekey();
    assert_eq!(it.lab.over(seq, mark), (2, vec![]));
    it.lab.same_keys();
    assert_eq!(it.lab.server.group().unwrap().name, GROUP);
}
