//! One lab per test, each on loopback addresses of its own.

use std::sync::OnceLock;
use std::time::Duration;

use ctl::control::{Reply, Request};
use ctl::event::Event;
use ctl::observe::{GroupView, TekView, VpnView};
use gdoi_lab::binaries::{Binaries, Profile};
use gdoi_lab::daemon::{Daemon, Mark};
use gdoi_lab::network::{GCKS, MEMBERS, Network};
use gdoi_lab::site::{GROUP, MemberPlan, ServerPlan, Site, Timing};

/// Limit of what happens at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// Limit of what waits for a key to near its end.
pub const LATER: Duration = Duration::from_secs(90);

/// The programs, built once by the first test that needs them.
pub fn binaries() -> Binaries {
    static BUILT: OnceLock<Binaries> = OnceLock::new();
    BUILT.get_or_init(|| Binaries::build(Profile::Debug).expect("the programs are built")).clone()
}

/// A lab on its own addresses.
pub fn site() -> Site {
    Site::new(Network::own_loopback().expect("a free port"), binaries()).expect("a directory")
}

/// A key server with keys and two registered members.
pub struct Lab {
    pub site: Site,
    pub server: Daemon,
    pub members: [Daemon; 2],
}

impl Lab {
    /// Starts all three and waits until both members are registered.
    pub fn registered(timing: Timing) -> Lab {
        Lab::planned(&ServerPlan::new(timing))
    }

    /// The same with another configuration of the server.
    pub fn planned(plan: &ServerPlan) -> Lab {
        let site = site();
        site.write_server(plan).unwrap();
        let server = site.start(GCKS, None).unwrap();
        server.wait_named(server.beginning(), SOON, "group_created").unwrap();
        let members = MEMBERS.map(|host| {
            site.write_member(host, &MemberPlan::default()).unwrap();
            site.start(host, None).unwrap()
        });
        for member in &members {
            member.wait_named(member.beginning(), SOON, "registered").unwrap();
        }
        server.wait_until(SOON, "two members", |server| Ok(server.group()?.members.len() == 2)).unwrap();
        Lab { site, server, members }
    }

    /// A rekey now, of TEK and KEK; its number and where it is in the log of the server.
    pub fn rekey(&self) -> (u64, Mark) {
        let mark = self.server.mark();
        let rekey = Request::Rekey { group: GROUP.to_owned(), tek: true, kek: true };
        let mut reply = None;
        // A server that has just started reads its signing key first.
        self.server
            .wait_until(SOON, "the signing key", |server| {
                let said = server.ask(&rekey)?;
                let ready = !matches!(&said, Reply::Refused { reason } if reason.contains("not ready"));
                reply = Some(said);
                Ok(ready)
            })
            .unwrap();
        let Some(Reply::Done { seq: Some(seq), .. }) = reply else { panic!("no rekey: {reply:?}") };
        (u64::from(seq), mark)
    }

    /// Waits until the rekey is over: who acknowledged, who is missing.
    pub fn over(&self, number: u64, since: Mark) -> (u64, Vec<String>) {
        let what = format!("the end of rekey SEQ {number}");
        let is_it = |event: &Event| matches!(event, Event::RekeyCompleted { seq, .. } if *seq == number);
        match self.server.wait(since, SOON, &what, is_it).unwrap() {
            Event::RekeyCompleted { acknowledged, missing, .. } => (acknowledged, missing),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until both members have the current keys of the server, octet for octet.
    pub fn same_keys(&self) {
        for member in &self.members {
            let same = |member: &Daemon| Ok(have_same_keys(&self.server.group()?, &member.vpn()?));
            member.wait_until(SOON, "the keys of the server", same).unwrap();
        }
    }
}

/// True when the member has the KEK and every TEK of the server that is not about to go.
pub fn have_same_keys(group: &GroupView, vpn: &VpnView) -> bool {
    let key = |kek: &Option<ctl::observe::KekView>| kek.as_ref().and_then(|kek| kek.key_hex.clone());
    let held = |tek: &TekView| {
        tek.key_hex.is_some()
            && vpn.teks.iter().any(|other| other.spi == tek.spi && other.key_hex == tek.key_hex)
    };
    let mut staying = group.teks.iter().filter(|tek| tek.state != "retiring").peekable();
    key(&group.kek).is_some()
        && key(&group.kek) == key(&vpn.kek)
        && staying.peek().is_some()
        && staying.all(held)
}
