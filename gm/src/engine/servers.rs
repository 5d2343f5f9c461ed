//! One key server of a gateway: its phase 1, and the PULLs of all VPNs that register there.
//!
//! ```text
//! Down --a VPN wants to register--> Negotiating --established--> Up: one PULL per VPN, the SA is kept for later ones
//!   ^---------------- no answer, refused ----'                   |
//!   '---------------- deleted, expired, stale, policy refused ---'
//! ```
//!
//! Which server a VPN asks, and when again, is the VPN's business.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, MessageId};
use gdoi_proto::registry::NotifyType;
use ike::crypto::provider::{Done, Job};
use ike::dpd::{self, Verdict, Watch};
use ike::fragment::{self, Assembly};
use ike::io::{Datagram, Instant, Wakeup};
use ike::phase1::{Answered, Behind, Ends, Initiator, PeerPolicy, Refusal, Step};
use ike::protect::notify::{self, Informational};
use ike::sa::IkeSa;

use super::path::Path;
use super::pull::{Download, Progress, Pull, PullError, Repeat};
use super::settings::VpnSettings;
use super::{Cx, Owner};

/// An SA with less life than this is not used for another PULL.
const REUSE: std::time::Duration = std::time::Duration::from_secs(10);
/// Notify types below this say that something failed (RFC 2408 section 3.14.1).
const FIRST_STATUS: u16 = 16384;

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
    dead_peer_detection: Option<dpd::Settings>,
    phase: Phase,
    waiting: BTreeMap<String, Arc<VpnSettings>>,
    assembly: Assembly,
}

#[derive(Debug)]
enum Phase {
    Down,
    Negotiating(Box<Initiator>),
    Up {
        sa: Box<IkeSa>,
        pulls: BTreeMap<MessageId, Pull>,
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
    /// A server not talked to yet.
    pub fn new(
        name: ServerName,
        path: Path,
        policy: PeerPolicy,
        dead_peer_detection: Option<dpd::Settings>,
    ) -> Server {
        let waiting = BTreeMap::new();
        let Ends { local, peer } = path.first();
        Server {
            name,
            local,
            peer,
            path,
            policy,
            dead_peer_detection,
            phase: Phase::Down,
            waiting,
            assembly: Assembly::default(),
        }
    }

    /// Its established SA.
    pub fn sa(&self) -> Option<&IkeSa> {
        match &self.phase {
            Phase::Up { sa, .. } => Some(sa),
            Phase::Down | Phase::Negotiating(_) => None,
        }
    }

    /// The cookie of the negotiation under way.
    pub fn negotiating(&self) -> Option<Cookie> {
        match &self.phase {
            Phase::Negotiating(initiator) => Some(initiator.cookie()),
            Phase::Down | Phase::Up { .. } => None,
        }
    }

    fn transmit(&mut self, octets: Bytes, cx: &mut Cx<'_>) {
        self.path.sent(Ends { local: self.local, peer: self.peer }, cx.now.at);
        let fragments = match &self.phase {
            Phase::Down => false,
            Phase::Negotiating(initiator) => initiator.fragments(),
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
        if let Phase::Up { pulls, .. } = &self.phase
            && pulls.values().any(|pull| pull.vpn().name == vpn.name)
        {
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
        if self.sa().is_some_and(|sa| sa.expires <= cx.now.at + REUSE) {
            self.close("its life ends", true, cx);
        }
        match &self.phase {
            Phase::Up { .. } => {
                self.start_pulls(false, cx);
                Letters::new()
            }
            Phase::Negotiating(_) => Letters::new(),
            Phase::Down => {
                // The server may hold an SA of an earlier life of ours: it learns so once (RFC 2407 section 4.6.3.3).
                let first = cx.out.first_contact(&self.name.0);
                let ends = self.path.first();
                (self.local, self.peer) = (ends.local, ends.peer);
                let (initiator, steps) =
                    Initiator::start(self.policy.clone(), ends, first, cx.now.at, cx.entropy);
                self.phase = Phase::Negotiating(Box::new(initiator));
                self.take_steps(Ok(steps), cx)
            }
        }
    }

    fn start_pulls(&mut self, fresh_sa: bool, cx: &mut Cx<'_>) {
        let Phase::Up { sa, pulls, .. } = &mut self.phase else { return };
        let mut firsts = Vec::new();
        for (_, vpn) in std::mem::take(&mut self.waiting) {
            let (pull, first) = Pull::start(vpn, sa, fresh_sa, cx.now.at, cx.entropy);
            pulls.insert(pull.message_id(), pull);
            firsts.push(first);
        }
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
                    self.phase = Phase::Up {
                        sa: Box::new(done.sa),
                        pulls: BTreeMap::new(),
                        watch,
                        answered: done.answered,
                    };
                    self.start_pulls(true, cx);
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
            Phase::Negotiating(initiator) if initiator.is_unanswered() => {
                (initiator.state().to_owned(), Failure::Silence)
            }
            Phase::Negotiating(initiator) => (initiator.state().to_owned(), Failure::Refused),
            Phase::Down | Phase::Up { .. } => (String::new(), Failure::Refused),
        };
        cx.out.statistics.phase1_failed += 1;
        cx.out.event(Event::Phase1Failed { peer: self.peer.to_string(), reason: reason.to_owned(), stage });
        self.phase = Phase::Down;
        let reason = format!("phase 1: {reason}");
        std::mem::take(&mut self.waiting)
            .into_keys()
            .map(|vpn| (vpn, News::Failed { reason: reason.clone(), kind }))
            .collect()
    }

    /// The result of a job of the negotiation `cookie`.
    pub fn on_done(&mut self, cookie: Cookie, done: Done, cx: &mut Cx<'_>) -> Letters {
        let Phase::Negotiating(initiator) = &mut self.phase else { return Letters::new() };
        if initiator.cookie() != cookie {
            return Letters::new();
        }
        let steps = initiator.on_done(cx.now, done, cx.entropy);
        self.take_steps(steps, cx)
    }

    /// A message of main mode or aggressive mode.
    pub fn on_phase1(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let steps = match &mut self.phase {
            Phase::Negotiating(initiator) => {
                let steps = initiator.on_message(cx.now, header, octets);
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
            Phase::Down => return Letters::new(),
        };
        self.take_steps(steps, cx)
    }

    /// A protected informational message while phase 1 is negotiated: an error in it ends the attempt.
    pub fn on_early_informational(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let Phase::Negotiating(initiator) = &mut self.phase else { return Letters::new() };
        let steps = initiator.on_informational(cx.now, header, octets).map(|()| Vec::new());
        self.take_steps(steps, cx)
    }

    /// A PULL message under our SA.
    pub fn on_pull(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let Phase::Up { sa, pulls, watch, .. } = &mut self.phase else { return Letters::new() };
        let Some(pull) = pulls.get_mut(&header.message_id) else {
            cx.out.dropped(self.peer, "no such exchange".to_owned());
            return Letters::new();
        };
        let vpn = pull.vpn().name.clone();
        match pull.on_message(sa, cx.now.at, header, octets, cx.entropy) {
            Ok(Progress::Send(third)) => {
                expect_more(watch, cx.now.at);
                self.transmit(third, cx);
                Letters::new()
            }
            Ok(Progress::Complete(download)) => {
                expect_more(watch, cx.now.at);
                pulls.remove(&header.message_id);
                vec![(vpn, News::Keys(download))]
            }
            Err(PullError::Dropped(error)) => {
                cx.out.dropped(self.peer, error.to_string());
                Letters::new()
            }
            Err(PullError::Refused(reason)) => {
                pulls.remove(&header.message_id);
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

    /// Ends the SA; its PULLs wait for a new one.
    fn close(&mut self, reason: &str, tell: bool, cx: &mut Cx<'_>) {
        let Phase::Up { mut sa, pulls, .. } = std::mem::replace(&mut self.phase, Phase::Down) else { return };
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
        for pull in pulls.into_values() {
            self.waiting.insert(pull.vpn().name.clone(), pull.vpn().clone());
        }
    }

    /// A protected informational message under our SA.
    pub fn on_informational(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let Phase::Up { sa, pulls, watch, .. } = &mut self.phase else { return Letters::new() };
        let said = match notify::open(sa, header, octets) {
            Ok(opened) => opened.into_inner(),
            Err(error) => {
                cx.out.dropped(self.peer, error.to_string());
                return Letters::new();
            }
        };
        expect_more(watch, cx.now.at);
        let mut answers = Vec::new();
        let mut failed: BTreeSet<String> = BTreeSet::new();
        let mut reason = String::new();
        let mut deleted = false;
        for item in said {
            match item {
                Informational::DeleteIsakmp => deleted = true,
                Informational::RUThere(number) if sa.questions.take(number) => {
                    let payload = notify::dpd(sa.cookies, NotifyType::RUThereAck, number);
                    answers.push(notify::seal(sa, &[payload], cx.entropy));
                }
                Informational::RUThere(_) | Informational::RUThereAck(_) | Informational::InitialContact => {}
                Informational::Notified(kind) => {
                    cx.out.event(Event::NotifyReceived {
                        peer: self.peer.to_string(),
                        kind: kind.to_string(),
                        protected: true,
                    });
                    if kind.number() < FIRST_STATUS {
                        // A notify does not say which PULL it is about: every one under this SA may be meant.
                        reason = format!("the server said {kind}");
                        failed
                            .extend(std::mem::take(pulls).into_values().map(|pull| pull.vpn().name.clone()));
                    }
                }
            }
        }
        for answer in answers {
            self.transmit(answer, cx);
        }
        if deleted {
            self.close("deleted by the key server", false, cx);
            reason = "the server deleted phase 1".to_owned();
            failed.extend(std::mem::take(&mut self.waiting).into_keys());
        }
        failed
            .into_iter()
            .map(|vpn| (vpn, News::Failed { reason: reason.clone(), kind: Failure::Refused }))
            .collect()
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
            Phase::Down => Letters::new(),
            Phase::Negotiating(initiator) => {
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
        let (mut again, mut over, mut stale) = (Vec::new(), Vec::new(), false);
        for (message_id, pull) in pulls.iter_mut() {
            match pull.on_timeout(cx.now.at, cx.entropy) {
                Repeat::Wait => {}
                Repeat::Again(octets) => again.push(octets),
                Repeat::StaleSa => stale = true,
                Repeat::GiveUp => over.push(*message_id),
            }
        }
        let silent: Vec<String> = over
            .iter()
            .filter_map(|message_id| pulls.remove(message_id))
            .map(|pull| pull.vpn().name.clone())
            .collect();
        let expired = sa.expires <= cx.now.at;
        for octets in again {
            self.transmit(octets, cx);
        }
        if stale {
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

    /// The daemon ends: the server is told.
    pub fn stop(&mut self, cx: &mut Cx<'_>) {
        self.close("the member stops", true, cx);
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
            Phase::Down => None,
            Phase::Negotiating(initiator) => Some(Wakeup { at: initiator.due(), why: "phase 1 repeat" }),
            Phase::Up { sa, pulls, watch, .. } => {
                let asking = watch.as_ref().and_then(Watch::due);
                let asking = asking.map(|at| Wakeup { at, why: "dead-peer detection" });
                let end = Wakeup { at: sa.expires, why: "end of phase 1" };
                let repeat = pulls.values().map(Pull::due).min();
                let repeat = repeat.map(|at: Instant| Wakeup { at, why: "registration repeat" });
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
