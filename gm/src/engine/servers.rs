//! One key server of a gateway: its phase 1, and the PULLs of all VPNs that register there.
//!
//! ```text
//! Down --a VPN wants to register--> Routing --our address--> Negotiating --established--> Up: one PULL per VPN
//!   ^--------------------------------no route'                    |                       |  the SA is kept for later ones
//!   |-------------------------------- no answer, refused ---------'                       |
//!   '-------------------------------- deleted, expired, stale, policy refused ------------'
//! ```
//!
//! Which server a VPN asks, and when again, is the VPN's business.

mod informational;
pub mod pulls;
mod renewal;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::ids::Cookie;
use gdoi_proto::registry::NotifyType;
use ike::crypto::provider::{Done, Job};
use ike::dpd::{self, Verdict, Watch};
use ike::fragment::{self, Assembly};
use ike::io::{Datagram, Instant, Wakeup};
use ike::phase1::{Answered, Behind, Ends, Initiator, PeerPolicy, Refusal, Step};
use ike::protect::notify;
use ike::sa::IkeSa;

use super::io::{Locals, Output};
use super::path::Path;
use super::pull::{Download, Progress, PullError};
use super::settings::{GatewaySettings, VpnSettings};
use super::{Cx, Owner};
use pulls::{Pulls, Waiting};
use renewal::renewal;

/// An SA with less life than this is not used for another PULL.
const REUSE: Duration = Duration::from_secs(10);

/// Which server of which gateway.
pub type ServerName = (String, usize);

/// One key server.
#[derive(Debug)]
pub struct Server {
    name: ServerName,
    /// Our address and port.
    pub local: SocketAddr,
    /// Its address and port.
    pub peer: SocketAddr,
    path: Path,
    policy: PeerPolicy,
    /// Our address is asked for before each phase 1; the file may name one.
    ask_route: Option<Option<IpAddr>>,
    dead_peer_detection: Option<dpd::Settings>,
    phase: Phase,
    /// The SA before, until one that replaces it is up or does not come up.
    former: Option<Box<IkeSa>>,
    waiting: Waiting,
    assembly: Assembly,
    /// The configuration changed since its SA was negotiated: the next registration takes another.
    outdated: bool,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a member has few servers, and each is up most of the time")]
enum Phase {
    Down,
    Routing,
    Negotiating {
        initiator: Box<Initiator>,
        /// An error the server seems to have stated in clear.
        hint: Option<NotifyType>,
    },
    Up {
        sa: Box<IkeSa>,
        /// From then on another takes its place as soon as one is needed.
        renewed: Instant,
        pulls: Pulls,
        watch: Option<Watch>,
        /// Aggressive mode: message 3 may be lost, and message 2 comes again.
        answered: Option<Answered>,
    },
}

/// What a server has to say to a VPN.
#[derive(Debug)]
pub enum News {
    /// Registration is complete.
    Keys(Box<Download>),
    /// It did not work out with this server.
    Failed {
        /// Why.
        reason: String,
        /// How.
        kind: Failure,
    },
}

/// How a registration failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// This machine knows no way there.
    NoRoute,
    /// No answer.
    Silence,
    /// The server refused, or phase 1 failed.
    Refused,
    /// We refused its policy.
    Policy,
}

/// News with the VPN it is for.
pub type Letters = Vec<(String, News)>;

impl Server {
    /// Server `index` of a gateway, not talked to yet; none without an address or a policy.
    pub fn new(gateway: &GatewaySettings, index: usize) -> Option<Server> {
        let peer = *gateway.servers.get(index)?;
        Some(Server {
            name: (gateway.name.clone(), index),
            local: gateway.local,
            peer,
            path: Path::new(peer, Locals { first: gateway.local, float: None }),
            policy: gateway.policies.get(index).or(gateway.policies.last())?.clone(),
            ask_route: gateway.ask_route.then_some(gateway.local_address),
            dead_peer_detection: gateway.dead_peer_detection,
            phase: Phase::Down,
            former: None,
            waiting: Waiting::new(),
            assembly: Assembly::default(),
            outdated: false,
        })
    }

    /// Which of which gateway.
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// True when the one a new configuration has at this place is reached in the same way.
    pub fn is_at(&self, new: &Server) -> bool {
        let ours = |server: &Server| server.ask_route.is_none().then_some(server.local);
        self.path.server() == new.path.server() && ours(self) == ours(new)
    }

    /// True when that one is another, or when we are another for it.
    pub fn is_another(&self, new: &Server) -> bool {
        let identities =
            |server: &Server| (server.policy.local_identity.clone(), server.policy.remote.clone());
        !self.is_at(new)
            || self.ask_route != new.ask_route
            || identities(self) != identities(new)
            || self.policy.dialect != new.policy.dialect
    }

    /// The same with the settings of `new`, which hold from the next phase 1 on. One that is being negotiated begins again.
    #[must_use]
    pub fn reconfigured(self, new: Server) -> Server {
        let Server { policy, ask_route, dead_peer_detection, .. } = new;
        let phase = match self.phase {
            Phase::Down | Phase::Routing | Phase::Negotiating { .. } => Phase::Down,
            up @ Phase::Up { .. } => up,
        };
        Server { policy, ask_route, dead_peer_detection, phase, outdated: true, ..self }
    }

    /// Goes on with what waits, if nothing else does.
    pub fn resume(&mut self, cx: &mut Cx<'_>) -> Letters {
        match self.phase {
            Phase::Down => {
                self.end_former(cx);
                self.begin(cx)
            }
            Phase::Routing | Phase::Negotiating { .. } | Phase::Up { .. } => Letters::new(),
        }
    }

    /// A VPN wants nothing any more.
    pub fn forget(&mut self, vpn: &str) {
        self.waiting.remove(vpn);
        if let Phase::Up { pulls, .. } = &mut self.phase {
            pulls.forget(vpn);
        }
    }

    /// Its established SA.
    pub fn sa(&self) -> Option<&IkeSa> {
        match &self.phase {
            Phase::Up { sa, .. } => Some(sa),
            Phase::Down | Phase::Routing | Phase::Negotiating { .. } => None,
        }
    }

    /// The cookie of the negotiation under way.
    pub fn negotiating(&self) -> Option<Cookie> {
        match &self.phase {
            Phase::Negotiating { initiator, .. } => Some(initiator.cookie()),
            Phase::Down | Phase::Routing | Phase::Up { .. } => None,
        }
    }

    fn transmit(&mut self, octets: Bytes, cx: &mut Cx<'_>) {
        self.path.sent(Ends { local: self.local, peer: self.peer }, cx.now.at);
        let fragments = match &self.phase {
            Phase::Down | Phase::Routing => false,
            Phase::Negotiating { initiator, .. } => initiator.fragments(),
            Phase::Up { sa, .. } => sa.fragments,
        };
        let parts = if fragments { fragment::split(&octets) } else { vec![octets] };
        for octets in parts {
            cx.out.transmit(Datagram { local: self.local, peer: self.peer, octets });
        }
    }

    /// A fragment of a message of this server; the message it completes.
    pub fn on_fragment(&mut self, octets: &[u8], cx: &mut Cx<'_>) -> Option<Bytes> {
        let whole = self.assembly.take(octets);
        whole.map_err(|reason| cx.out.dropped(self.peer, reason.to_owned())).ok().flatten()
    }

    /// A VPN wants to register here.
    pub fn register(&mut self, vpn: &Arc<VpnSettings>, cx: &mut Cx<'_>) -> Letters {
        if matches!(&self.phase, Phase::Up { pulls, .. } if pulls.has(&vpn.name)) {
            return Letters::new();
        }
        self.waiting.insert(vpn.name.clone(), vpn.clone());
        self.begin(cx)
    }

    /// Serves who waits: under the SA there is, or a new one.
    fn begin(&mut self, cx: &mut Cx<'_>) -> Letters {
        if self.waiting.is_empty() {
            return Letters::new();
        }
        match &self.phase {
            Phase::Up { .. } if self.outdated => drop(self.close("the configuration changed", true, cx)),
            Phase::Up { sa, renewed, .. } if *renewed <= cx.now.at || sa.expires <= cx.now.at + REUSE => {
                self.replace_sa();
            }
            Phase::Up { .. } | Phase::Down | Phase::Routing | Phase::Negotiating { .. } => {}
        }
        match (&self.phase, self.ask_route) {
            (Phase::Up { .. }, _) => {
                self.start_pulls(cx);
                Letters::new()
            }
            (Phase::Routing | Phase::Negotiating { .. }, _) => Letters::new(),
            (Phase::Down, Some(address)) => {
                self.phase = Phase::Routing;
                let (server, peer) = (self.name.clone(), self.path.server());
                cx.out.push(Output::Route { server, peer, address });
                Letters::new()
            }
            (Phase::Down, None) => self.negotiate(cx),
        }
    }

    /// The SA has another made in its place and ends after that.
    fn replace_sa(&mut self) {
        if let Phase::Up { sa, pulls, .. } = std::mem::replace(&mut self.phase, Phase::Down) {
            self.former = Some(sa);
            pulls.orphans(&mut self.waiting);
        }
    }

    /// The SA before the present one, or before an attempt that failed, ends.
    fn end_former(&mut self, cx: &mut Cx<'_>) {
        if let Some(sa) = self.former.take() {
            self.end(*sa, "its life ends", true, cx);
        }
    }

    /// Our addresses towards this server, or why there are none.
    pub fn on_route(&mut self, locals: Result<Locals, String>, cx: &mut Cx<'_>) -> Letters {
        if !matches!(self.phase, Phase::Routing) {
            return Letters::new();
        }
        match locals {
            Ok(locals) => {
                self.path.route(locals);
                self.negotiate(cx)
            }
            Err(reason) => {
                self.phase = Phase::Down;
                self.end_former(cx);
                self.fail_waiting(&reason, Failure::NoRoute)
            }
        }
    }

    fn negotiate(&mut self, cx: &mut Cx<'_>) -> Letters {
        // The server may hold an SA of an earlier life of ours: it learns so once (RFC 2407 section 4.6.3.3).
        let first = cx.out.first_contact(&self.name.0);
        self.outdated = false;
        let ends = self.path.first();
        (self.local, self.peer) = (ends.local, ends.peer);
        let mut policy = self.policy.clone();
        policy.nat_traversal &= self.path.can_float();
        let (initiator, steps) = Initiator::start(policy, ends, first, cx.now.at, cx.entropy);
        self.phase = Phase::Negotiating { initiator: Box::new(initiator), hint: None };
        self.take_steps(Ok(steps), cx)
    }

    fn fail_waiting(&mut self, reason: &str, kind: Failure) -> Letters {
        let failed = std::mem::take(&mut self.waiting).into_keys();
        failed.map(|vpn| (vpn, News::Failed { reason: reason.to_owned(), kind })).collect()
    }

    fn start_pulls(&mut self, cx: &mut Cx<'_>) {
        let Phase::Up { sa, pulls, .. } = &mut self.phase else { return };
        let firsts = pulls.start(&mut self.waiting, sa, cx.now.at, cx.entropy);
        for first in firsts {
            self.transmit(first, cx);
        }
    }

    fn take_steps(&mut self, steps: Result<Vec<Step>, Refusal>, cx: &mut Cx<'_>) -> Letters {
        let steps = match steps {
            Ok(steps) => steps,
            Err(Refusal::Failed { reason, answer }) => {
                if let Some(answer) = answer {
                    self.transmit(answer, cx);
                }
                return self.phase1_failed(&reason, cx);
            }
            // A clear message proves nothing: an answer that cannot be used is as good as none.
            Err(Refusal::Dropped(reason) | Refusal::Unacceptable { reason, .. }) => {
                cx.out.dropped(self.peer, reason);
                return Letters::new();
            }
        };
        for step in steps {
            match step {
                Step::Send(octets) => self.transmit(octets, cx),
                Step::Run(job) => self.request(job, cx),
                Step::Established(done) => {
                    cx.out.statistics.phase1_established += 1;
                    cx.out.contacted(&self.name.0);
                    self.on_nat(done.sa.nat, cx);
                    cx.out.event(Event::Phase1Established {
                        peer: self.peer.to_string(),
                        identity: done.sa.peer_identity.to_string(),
                        suite: done.sa.suite.to_string(),
                        role: "initiator".to_owned(),
                    });
                    if done.sa.suite.is_legacy() {
                        cx.out.event(Event::LegacyAlgorithm {
                            peer: self.peer.to_string(),
                            identity: done.sa.peer_identity.to_string(),
                            suite: done.sa.suite.to_string(),
                        });
                    }
                    if let Some(reason) = done.remark {
                        cx.out.event(Event::CertificateRehearsed {
                            peer: self.peer.to_string(),
                            identity: done.sa.peer_identity.to_string(),
                            reason,
                        });
                    }
                    let asks = self.dead_peer_detection.filter(|_| done.sa.peer_does_dpd);
                    let mut watch = asks.map(|settings| Watch::new(settings, cx.entropy));
                    expect_more(&mut watch, cx.now.at);
                    let renewed = renewal(cx.now.at, done.sa.expires, cx.entropy);
                    self.phase = Phase::Up {
                        sa: Box::new(done.sa),
                        renewed,
                        pulls: Pulls::for_waiting(&self.waiting),
                        watch,
                        answered: done.answered,
                    };
                    self.end_former(cx);
                    self.start_pulls(cx);
                }
            }
        }
        Letters::new()
    }

    fn request(&self, job: Job, cx: &mut Cx<'_>) {
        if let Some(cookie) = self.negotiating() {
            cx.out.request(Owner::Server(self.name.clone(), cookie), job);
        }
    }

    fn phase1_failed(&mut self, reason: &str, cx: &mut Cx<'_>) -> Letters {
        let (stage, kind) = match &self.phase {
            Phase::Negotiating { initiator, hint: None } if initiator.is_unanswered() => {
                (initiator.state().to_owned(), Failure::Silence)
            }
            Phase::Negotiating { initiator, .. } => (initiator.state().to_owned(), Failure::Refused),
            Phase::Down | Phase::Routing | Phase::Up { .. } => (String::new(), Failure::Refused),
        };
        cx.out.statistics.phase1_failed += 1;
        cx.out.event(Event::Phase1Failed { peer: self.peer.to_string(), reason: reason.to_owned(), stage });
        self.phase = Phase::Down;
        self.end_former(cx);
        self.fail_waiting(&format!("phase 1: {reason}"), kind)
    }

    /// The result of a job of the negotiation `cookie`.
    pub fn on_done(&mut self, cookie: Cookie, done: Done, cx: &mut Cx<'_>) -> Letters {
        let Phase::Negotiating { initiator, .. } = &mut self.phase else { return Letters::new() };
        if initiator.cookie() != cookie {
            return Letters::new();
        }
        let steps = initiator.on_done(cx.now, done, cx.entropy);
        self.take_steps(steps, cx)
    }

    /// A message of main mode or aggressive mode.
    pub fn on_phase1(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let steps = match &mut self.phase {
            Phase::Negotiating { initiator, hint } => {
                let steps = initiator.on_message(cx.now, header, octets, cx.entropy);
                if steps.is_ok() {
                    // It goes on all the same.
                    *hint = None;
                }
                let here = Ends { local: self.local, peer: self.peer };
                if let Some(ends) = self.path.floats(here, initiator.nat()) {
                    (self.local, self.peer) = (ends.local, ends.peer);
                    initiator.moved(ends);
                }
                steps
            }
            Phase::Up { answered, .. } => answered
                .as_mut()
                .and_then(|answered| answered.repeat(octets))
                .map(|answer| vec![Step::Send(answer)])
                .ok_or_else(|| Refusal::Dropped("phase 1 is over".to_owned())),
            Phase::Down | Phase::Routing => return Letters::new(),
        };
        self.take_steps(steps, cx)
    }

    /// A PULL message under our SA.
    pub fn on_pull(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let Phase::Up { sa, pulls, watch, .. } = &mut self.phase else { return Letters::new() };
        let Some(pull) = pulls.get_mut(header.message_id) else {
            cx.out.dropped(self.peer, "no such exchange".to_owned());
            return Letters::new();
        };
        let vpn = pull.vpn().name.clone();
        match pull.on_message(sa, cx.now.at, header, octets, cx.entropy) {
            Ok(Progress::Send(third)) => {
                expect_more(watch, cx.now.at);
                let refused = pulls.refused();
                self.transmit(third, cx);
                self.fail_refused(refused, cx)
            }
            Ok(Progress::Complete(download)) => {
                expect_more(watch, cx.now.at);
                let settings = pull.vpn().clone();
                pulls.finish(header.message_id);
                if download.age.is_vague(&download.policy) {
                    let reason = "the answer may be older than the others' keys".to_owned();
                    cx.out.event(Event::ReregistrationScheduled { vpn: vpn.clone(), seconds: 0, reason });
                    self.waiting.insert(vpn, settings);
                    return self.begin(cx);
                }
                let mut letters = vec![(vpn, News::Keys(download))];
                letters.extend(self.begin(cx));
                letters
            }
            Err(PullError::Dropped(error)) => {
                cx.out.dropped(self.peer, error.to_string());
                Letters::new()
            }
            Err(PullError::Refused(reason)) => {
                pulls.finish(header.message_id);
                self.policy_refused(vpn, reason, cx)
            }
        }
    }

    /// The server's policy is not ours: phase 1 goes (RFC 6407 section 3.3); the PULLs of other VPNs begin again.
    pub fn policy_refused(&mut self, vpn: String, reason: String, cx: &mut Cx<'_>) -> Letters {
        cx.out.event(Event::PolicyRefused { vpn: vpn.clone(), reason: reason.clone() });
        self.close("its policy was refused", true, cx);
        let mut letters = vec![(vpn, News::Failed { reason, kind: Failure::Policy })];
        letters.extend(self.begin(cx));
        letters
    }

    /// VPNs that the server refused; others take their places.
    fn fail_refused(&mut self, refused: Vec<(String, String)>, cx: &mut Cx<'_>) -> Letters {
        if refused.is_empty() {
            return Letters::new();
        }
        let mut letters = self.begin(cx);
        let failed = |(vpn, reason)| (vpn, News::Failed { reason, kind: Failure::Refused });
        letters.extend(refused.into_iter().map(failed));
        letters
    }

    /// Ends the SA; its PULLs wait for a new one. The VPNs it was made for, as far as they wait.
    fn close(&mut self, reason: &str, tell: bool, cx: &mut Cx<'_>) -> Vec<String> {
        if !matches!(self.phase, Phase::Up { .. }) {
            return Vec::new();
        }
        let Phase::Up { sa, pulls, .. } = std::mem::replace(&mut self.phase, Phase::Down) else {
            return Vec::new();
        };
        self.end(*sa, reason, tell, cx);
        pulls.orphans(&mut self.waiting)
    }

    /// The end of an SA, told to the server or not.
    fn end(&mut self, mut sa: IkeSa, reason: &str, tell: bool, cx: &mut Cx<'_>) {
        if tell {
            let delete = notify::delete_isakmp(sa.cookies);
            let octets = notify::seal(&mut sa, &[delete], cx.entropy);
            self.transmit(octets, cx);
        }
        cx.out.event(Event::Phase1Deleted {
            peer: self.peer.to_string(),
            identity: sa.peer_identity.to_string(),
            reason: reason.to_owned(),
        });
    }

    /// Who is behind a NAT keeps its mapping alive for as long as pushes may come through it.
    fn on_nat(&mut self, nat: Behind, cx: &mut Cx<'_>) {
        self.path.established(Ends { local: self.local, peer: self.peer }, nat, cx.now.at);
        if nat.any() {
            cx.out.event(Event::NatFound {
                peer: self.peer.to_string(),
                local: self.local.to_string(),
                ours: nat.ours,
                theirs: nat.theirs,
            });
        }
    }

    /// Timers of phase 1, of PULLs, of the SA's life and of the NAT on the way.
    pub fn on_timeout(&mut self, cx: &mut Cx<'_>) -> Letters {
        if let Some(datagram) = self.path.keepalive(cx.now.at) {
            cx.out.transmit(datagram);
        }
        match &mut self.phase {
            Phase::Down | Phase::Routing => Letters::new(),
            Phase::Negotiating { initiator, hint: Some(kind) } if initiator.due() <= cx.now.at => {
                let reason = format!("the server said {kind} (in clear)");
                self.phase1_failed(&reason, cx)
            }
            Phase::Negotiating { initiator, .. } => {
                let steps = initiator.on_timeout(cx.now.at, cx.entropy);
                self.take_steps(steps, cx)
            }
            Phase::Up { .. } => {
                if self.is_dead(cx) {
                    self.close("dead: no answer to dead-peer detection", false, cx);
                    return self.begin(cx);
                }
                self.on_pull_timeouts(cx)
            }
        }
    }

    /// Asks the server whether it is there when it owes us a word; true when it stayed silent.
    fn is_dead(&mut self, cx: &mut Cx<'_>) -> bool {
        let Phase::Up { sa, watch: Some(watch), .. } = &mut self.phase else { return false };
        match watch.on_timeout(cx.now.at) {
            Verdict::Wait => false,
            Verdict::Dead => true,
            Verdict::Ask(number) => {
                let question = notify::dpd(sa.cookies, NotifyType::RUThere, number);
                let octets = notify::seal(sa, &[question], cx.entropy);
                self.transmit(octets, cx);
                false
            }
        }
    }

    fn on_pull_timeouts(&mut self, cx: &mut Cx<'_>) -> Letters {
        let Phase::Up { sa, pulls, .. } = &mut self.phase else { return Letters::new() };
        let due = pulls.on_timeout(cx.now.at, cx.entropy);
        let (expired, silent) = (sa.expires <= cx.now.at, due.silent);
        for octets in due.again {
            self.transmit(octets, cx);
        }
        if due.stale {
            self.close("two messages under it stayed unanswered", false, cx);
        } else if !silent.is_empty() {
            self.close("the server is silent", false, cx);
        } else if expired {
            self.close("its life ended", false, cx);
        }
        let mut letters: Letters = silent
            .into_iter()
            .map(|vpn| {
                let reason = "no answer to the registration".to_owned();
                (vpn, News::Failed { reason, kind: Failure::Silence })
            })
            .collect();
        letters.extend(self.begin(cx));
        letters
    }

    /// It is not needed any more: the server is told.
    pub fn stop(&mut self, reason: &str, cx: &mut Cx<'_>) {
        self.close(reason, true, cx);
        self.end_former(cx);
        self.path.stop();
        self.phase = Phase::Down;
        self.waiting.clear();
    }

    /// The next timer.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        Wakeup::earlier(self.phase_timeout(), self.path.due())
    }

    fn phase_timeout(&self) -> Option<Wakeup> {
        match &self.phase {
            Phase::Down | Phase::Routing => None,
            Phase::Negotiating { initiator, .. } => {
                Some(Wakeup { at: initiator.due(), why: "phase 1 repeat" })
            }
            Phase::Up { sa, pulls, watch, .. } => {
                let asking = watch.as_ref().and_then(Watch::due);
                let asking = asking.map(|at| Wakeup { at, why: "dead-peer detection" });
                let end = Wakeup { at: sa.expires, why: "end of phase 1" };
                let repeat = pulls.due().map(|at| Wakeup { at, why: "registration repeat" });
                Wakeup::earlier(Wakeup::earlier(Some(end), repeat), asking)
            }
        }
    }
}

/// The server spoke, and from now on owes us another word: a member that watches at all watches all the time.
fn expect_more(watch: &mut Option<Watch>, now: Instant) {
    if let Some(watch) = watch {
        watch.heard();
        watch.expect(now);
    }
}
