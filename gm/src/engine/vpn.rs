//! One joined group: which server it asks, when again, and what it does with what it gets.
//!
//! ```text
//! Idle --start, soft expiry, doubt, clean slate, operator--> Trying(server) --keys--> Idle
//!                                    ^  next server  --failed--'   |
//!                                    '--- Backoff <--- all failed -'   30 s doubling to 600 s, each +-20 %
//! ```
//!
//! A registration begins with the server in use, after a backoff with the first. Who is registered with another than the
//! first looks every now and then whether those before it are back (`Purpose::Return`).
//!
//! Registering again never takes a working key away: the new set comes first.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ctl::event::Event;
use ctl::observe::VpnStatistics;
use gdoi_proto::ids::Spi;
use gdoi_proto::message::Dialect;
use ike::io::{Instant, Wakeup};
use ike::retransmit::{below, spread};

use super::accept;
use super::doubts::Doubts;
use super::io::Output;
use super::kek::Kek;
use super::keyring::{Keyring, Limit, Standing};
use super::lkh::KeyPath;
use super::probe::{Probe, Trigger};
use super::pull::Download;
use super::push::Pushes;
use super::servers::Failure;
use super::settings::{GatewaySettings, VpnSettings};
use super::{Cx, Outputs};

/// Backoff after the first full round.
const FIRST_BACKOFF: Duration = Duration::from_secs(30);
/// Longest backoff.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);
/// The first look whether an earlier server is back, +-20 %.
const FIRST_RETURN: Duration = Duration::from_secs(1800);
/// Longest time between such looks.
const LONGEST_RETURN: Duration = Duration::from_secs(14_400);
/// A server that is away costs no more than this.
const SILENCE: Duration = Duration::from_secs(95);

/// One joined group.
#[derive(Debug)]
pub struct Vpn {
    /// Its settings.
    pub settings: Arc<VpnSettings>,
    /// Its keys.
    pub keyring: Keyring,
    /// PUSHes seen and under verification.
    pub pushes: Pushes,
    /// Counters.
    pub statistics: VpnStatistics,
    /// Address of the last PULL, which acknowledgements name.
    pub address: Option<IpAddr>,
    /// Deviations of its servers.
    pub dialect: Dialect,
    servers: Vec<SocketAddr>,
    registration: Registration,
    current: usize,
    rounds: u32,
    planned: Option<Instant>,
    /// What may lead to a registration too, unless another PUSH settles it.
    pub(super) doubts: Doubts,
    /// When to look whether an earlier server is back.
    returns: Option<Instant>,
    fruitless_returns: u32,
    probe: Option<Probe>,
    registered_once: bool,
    /// Multicast groups we asked to listen to.
    listens: Vec<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    Idle,
    Trying { server: usize, failed: usize, purpose: Purpose },
    Backoff { until: Instant },
}

/// What a registration is for, which decides where it ends when servers fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// We need keys: it goes round all servers, again and again.
    Keys,
    /// The recovery probe, which has its own schedule: one round; then a backoff goes on that it interrupted.
    Probe { backoff: Option<Instant> },
    /// Is a server before the one in use back? One round up to that one.
    Return,
}

fn dialect(gateway: &GatewaySettings) -> Dialect {
    gateway.policies.first().map_or(Dialect::STRICT, |policy| policy.dialect)
}

impl Vpn {
    /// A group not joined yet.
    pub fn new(settings: VpnSettings, gateway: &GatewaySettings) -> Vpn {
        Vpn {
            keyring: Keyring::new(&settings.name),
            probe: settings.recovery_probe.then(Probe::default),
            settings: Arc::new(settings),
            pushes: Pushes::default(),
            statistics: VpnStatistics::default(),
            address: None,
            dialect: dialect(gateway),
            servers: gateway.servers.clone(),
            registration: Registration::Idle,
            current: 0,
            rounds: 0,
            planned: None,
            doubts: Doubts::default(),
            returns: None,
            fruitless_returns: 0,
            registered_once: false,
            listens: Vec::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// `unregistered`, `registering`, `registered` or `expired`.
    pub fn state(&self) -> &'static str {
        if !self.keyring.teks().is_empty() || (self.registered_once && self.keyring.kek().is_some()) {
            return "registered";
        }
        match (self.registration, self.registered_once) {
            (Registration::Trying { .. }, _) => "registering",
            (_, true) => "expired",
            (_, false) => "unregistered",
        }
    }

    /// The server in use or tried last.
    pub fn server(&self) -> Option<SocketAddr> {
        let index = match self.registration {
            Registration::Trying { server, .. } => server,
            Registration::Idle | Registration::Backoff { .. } => self.current,
        };
        self.servers.get(index).copied()
    }

    /// True while a registration is under way.
    pub fn is_trying(&self) -> bool {
        matches!(self.registration, Registration::Trying { .. })
    }

    /// True while it is registering with that server.
    pub fn tries(&self, server: usize) -> bool {
        matches!(self.registration, Registration::Trying { server: current, .. } if current == server)
    }

    /// True while it waits for its next try after all servers failed.
    pub fn pauses(&self) -> bool {
        matches!(self.registration, Registration::Backoff { .. })
    }

    /// True when other settings are a reason to register anew.
    pub fn wants_other(&self, new: &VpnSettings) -> bool {
        VpnSettings { recovery_probe: self.settings.recovery_probe, ..new.clone() } != *self.settings
    }

    /// Takes other settings. To register `anew` what is under way ends. Keys in use stay; of a group that is not ours any
    /// more, nothing else does.
    pub fn reconfigure(&mut self, settings: VpnSettings, gateway: &GatewaySettings, anew: bool) {
        let group = |settings: &VpnSettings| (settings.gateway.clone(), settings.group.clone());
        let other = group(&settings) != group(&self.settings);
        let in_use = self.servers.get(self.current).copied();
        self.current = gateway.servers.iter().position(|server| Some(*server) == in_use).unwrap_or(0);
        self.returns = self.returns.filter(|_| self.current > 0);
        self.servers.clone_from(&gateway.servers);
        self.dialect = dialect(gateway);
        self.probe = settings.recovery_probe.then(|| self.probe.take().unwrap_or_default());
        self.settings = Arc::new(settings);
        if anew {
            self.registration = Registration::Idle;
            self.rounds = 0;
        }
        if other {
            self.keyring.leave_group();
            self.pushes = Pushes::default();
            self.doubts = Doubts::default();
        }
    }

    /// It is gone from the configuration: so are its keys.
    pub fn leave(&mut self, cx: &mut Cx<'_>) {
        self.keyring.wipe("its vpn is gone from the configuration", cx);
        self.listen(cx.out);
    }

    /// When it registers again by plan.
    pub fn planned(&self) -> Option<Instant> {
        match self.registration {
            Registration::Backoff { until } => Some(until),
            Registration::Idle | Registration::Trying { .. } => {
                let probe = self.probe.as_ref().and_then(Probe::due);
                self.plan_or_doubt().into_iter().chain(probe).min()
            }
        }
    }

    /// When a registration must begin: by plan, or for what is open.
    pub(super) fn plan_or_doubt(&self) -> Option<Instant> {
        self.planned.into_iter().chain(self.doubts.due()).min()
    }

    /// True when what missed rekeys did to TEKs in use is not known yet.
    pub fn misses_rekeys(&self) -> bool {
        self.doubts.misses_rekeys()
    }

    /// Begins a registration: the server to ask, none without servers or when one is under way.
    pub fn begin(&mut self, cx: &mut Cx<'_>) -> Option<usize> {
        if let Registration::Trying { purpose, .. } = &mut self.registration {
            // From now on it must not end before it brings keys.
            *purpose = Purpose::Keys;
            return None;
        }
        let server = if matches!(self.registration, Registration::Backoff { .. }) { 0 } else { self.current };
        self.planned = None;
        self.doubts = Doubts::default();
        self.try_server(server, 0, Purpose::Keys, cx)
    }

    fn try_server(
        &mut self,
        server: usize,
        failed: usize,
        purpose: Purpose,
        cx: &mut Cx<'_>,
    ) -> Option<usize> {
        let address = self.servers.get(server)?;
        self.registration = Registration::Trying { server, failed, purpose };
        cx.out.event(Event::Registering { vpn: self.name().to_owned(), server: address.to_string() });
        Some(server)
    }

    /// ESP came with an SPI that the data plane does not have; it may have been told meanwhile.
    pub fn on_unknown_spi(&mut self, spi: Spi, cx: &mut Cx<'_>) {
        if self.keyring.teks().iter().all(|tek| tek.policy.spi != spi) {
            self.on_trouble(Trigger::UnknownSpi, cx);
        }
    }

    /// Traffic looks as if our keys were not those of the group.
    pub fn on_trouble(&mut self, trigger: Trigger, cx: &mut Cx<'_>) {
        let Some(wait) = self.probe.as_mut().and_then(|probe| probe.trigger(trigger, cx.now.at)) else {
            return;
        };
        let (vpn, reason) = (self.name().to_owned(), trigger.reason().to_owned());
        cx.out.event(Event::ReregistrationScheduled { vpn, seconds: wait.as_secs(), reason });
    }

    /// What the probe was wanted for is over.
    pub fn on_recovery(&mut self, trigger: Trigger) {
        if let Some(probe) = &mut self.probe {
            probe.resolved(trigger);
        }
    }

    /// Keys came.
    pub fn settle_probe(&mut self) {
        if let Some(probe) = &mut self.probe {
            probe.settled();
        }
    }

    /// The data plane says that a TEK's packets, octets or IVs run out, or are spent.
    pub fn on_limit(&mut self, spi: Spi, limit: Limit, cx: &mut Cx<'_>) {
        if self.keyring.on_limit(spi, limit) {
            let (latest, reason) = match limit {
                Limit::Soft => (Duration::from_secs(5), "the packets, octets or IVs of a TEK run out"),
                Limit::Spent => (Duration::from_secs(1), "a TEK encrypts nothing more: it is spent"),
            };
            self.plan(Duration::ZERO, latest, reason, cx);
        }
    }

    /// A probe or a look at earlier servers that is due.
    fn begin_aside(&mut self, cx: &mut Cx<'_>) -> Option<usize> {
        let now = cx.now.at;
        let probes = self.probe.as_mut().is_some_and(|probe| probe.fire(now));
        let returns = self.returns.is_some_and(|at| at <= now);
        match self.registration {
            // What is under way is as good as a probe.
            Registration::Trying { .. } => None,
            Registration::Backoff { until } if probes => {
                self.try_server(0, 0, Purpose::Probe { backoff: Some(until) }, cx)
            }
            Registration::Idle if probes => {
                self.try_server(self.current, 0, Purpose::Probe { backoff: None }, cx)
            }
            Registration::Idle if returns => {
                self.plan_return(cx);
                // Not when our keys may want the servers while those that are away are waited for.
                let quiet = self.keyring.quiet_until()? > now + SILENCE * self.current as u32;
                quiet.then(|| self.try_server(0, 0, Purpose::Return, cx)).flatten()
            }
            Registration::Backoff { .. } | Registration::Idle => None,
        }
    }

    fn plan_return(&mut self, cx: &mut Cx<'_>) {
        let wait = FIRST_RETURN.saturating_mul(1 << self.fruitless_returns.min(8)).min(LONGEST_RETURN);
        self.fruitless_returns += 1;
        self.returns = (self.current > 0).then(|| cx.now.at + spread(wait, 20, cx.entropy));
    }

    /// Plans a registration within `earliest..=latest` from now; an earlier plan stays.
    pub fn plan(&mut self, earliest: Duration, latest: Duration, reason: &str, cx: &mut Cx<'_>) {
        let wait = earliest + below(latest.saturating_sub(earliest), cx.entropy);
        let at = cx.now.at + wait;
        if self.planned.is_some_and(|planned| planned <= at) {
            return;
        }
        self.planned = Some(at);
        cx.out.event(Event::ReregistrationScheduled {
            vpn: self.name().to_owned(),
            seconds: wait.as_secs(),
            reason: reason.to_owned(),
        });
    }

    /// The registration with the present server failed: the next server, or none and a pause.
    pub fn on_failed(&mut self, reason: &str, kind: Failure, cx: &mut Cx<'_>) -> Option<usize> {
        let Registration::Trying { server, failed, purpose } = self.registration else { return None };
        let (vpn, address) =
            (self.name().to_owned(), self.server().map(|a| a.to_string()).unwrap_or_default());
        match kind {
            Failure::Silence => {
                self.statistics.pull_timeout += 1;
                cx.out.event(Event::ServerUnreachable { vpn: vpn.clone(), server: address.clone() });
            }
            Failure::NoRoute | Failure::Refused => self.statistics.pull_failed += 1,
            Failure::Policy => {
                self.statistics.pull_aborted += 1;
                self.statistics.unsupported_algorithm += 1;
            }
        }
        let failed = failed + 1;
        let round = if purpose == Purpose::Return { self.current } else { self.servers.len() };
        let another = failed < round;
        let wait = match purpose {
            _ if another => Duration::ZERO,
            Purpose::Keys => {
                let wait = FIRST_BACKOFF.saturating_mul(1 << self.rounds.min(8)).min(LONGEST_BACKOFF);
                // A route may come any moment, and looking for it costs the servers nothing.
                self.rounds += u32::from(kind != Failure::NoRoute);
                spread(wait, 20, cx.entropy)
            }
            Purpose::Probe { backoff } => {
                backoff.or(self.probe.as_ref().and_then(Probe::due)).unwrap_or(cx.now.at).since(cx.now.at)
            }
            Purpose::Return => self.returns.unwrap_or(cx.now.at).since(cx.now.at),
        };
        cx.out.event(Event::RegistrationFailed {
            vpn,
            server: address,
            reason: reason.to_owned(),
            retry_seconds: wait.as_secs(),
        });
        if another {
            self.statistics.server_failover += 1;
            return self.try_server((server + 1) % self.servers.len(), failed, purpose, cx);
        }
        self.registration = match purpose {
            Purpose::Keys => Registration::Backoff { until: cx.now.at + wait },
            Purpose::Probe { backoff: Some(until) } => Registration::Backoff { until: until.max(cx.now.at) },
            Purpose::Probe { backoff: None } | Purpose::Return => Registration::Idle,
        };
        None
    }

    /// Message 4 brought keys.
    ///
    /// # Errors
    /// Why they cannot be used; nothing is installed.
    pub fn on_keys(&mut self, download: Download, local: IpAddr, cx: &mut Cx<'_>) -> Result<(), String> {
        let Registration::Trying { server, .. } = self.registration else { return Ok(()) };
        let Download { policy, mut keys, seq, age } = download;
        let kek = match (&policy.kek, keys.kek.take()) {
            (Some(sak), Some(key)) => {
                let kek = Kek::new(sak.clone(), key, self.keyring.kek(), cx.now.at, cx.entropy)?
                    .with_path(keys.lkh_download.take().map(KeyPath::new));
                accept::check_signing_key(&self.settings, sak, &kek.public_key)?;
                Some(kek)
            }
            (Some(_), None) => return Err("the KEK is missing".to_owned()),
            (None, _) => None,
        };
        let standing = self.keyring.standing(policy.kek.as_ref().map(|sak| sak.spi), seq);
        let outside = self.report_outside(&policy, cx);
        self.registration = Registration::Idle;
        let moved = self.current != server || !self.registered_once;
        self.current = server;
        self.rounds = 0;
        if moved {
            self.fruitless_returns = 0;
            self.plan_return(cx);
        }
        self.settle_probe();
        self.registered_once = true;
        self.address = Some(local);
        self.statistics.pull_succeeded += 1;
        if standing == Standing::Gone {
            // Its TEKs may have been deleted with it.
            let why = "the key server's terms were older than its last push";
            self.plan(Duration::from_secs(1), Duration::from_secs(10), why, cx);
            return Ok(());
        }
        self.keyring.apply_pull(&policy, keys, kek, (seq, age), &outside, cx);
        self.doubts.settle_kek(|spi| self.keyring.find_kek(spi).is_some());
        if standing == Standing::Current {
            self.doubts.settle_teks(&BTreeSet::new());
        }
        let sids = self.keyring.sender_ids.iter().flat_map(|sids| &sids.values);
        cx.out.event(Event::Registered {
            vpn: self.name().to_owned(),
            server: self.server().map(|address| address.to_string()).unwrap_or_default(),
            kek_spi: self.keyring.kek().map(|kek| kek.policy.spi.to_string()),
            teks: self.keyring.teks().iter().map(|tek| tek.policy.spi.to_string()).collect(),
            sender_ids: sids.map(|sid| u64::from(sid.0)).collect(),
        });
        Ok(())
    }

    /// SAs outside the allowed flows, told.
    pub fn report_outside(&self, policy: &gdoi_proto::policy::GroupPolicy, cx: &mut Cx<'_>) -> Vec<Spi> {
        let outside = accept::outside(&self.settings.allowed_flows, policy);
        for spi in &outside {
            let reason = format!("SA {spi} lies outside the allowed flows and is left out");
            cx.out.event(Event::PolicyRefused { vpn: self.name().to_owned(), reason });
        }
        outside
    }

    /// Timers: the server to ask, when a registration must begin.
    pub fn on_timeout(&mut self, cx: &mut Cx<'_>) -> Option<usize> {
        let now = cx.now.at;
        self.send_late_acks(cx);
        let wish = self.keyring.on_timeout(cx);
        let planned = self.plan_or_doubt().is_some_and(|planned| planned <= now);
        if wish.is_some()
            && let Registration::Trying { purpose, .. } = &mut self.registration
        {
            *purpose = Purpose::Keys;
        }
        let begun = match self.registration {
            // A plan that falls due meanwhile stays: it may know of something newer than this registration brings.
            Registration::Trying { .. } => None,
            Registration::Backoff { until } => (until <= now).then(|| self.begin(cx)).flatten(),
            Registration::Idle => {
                if let Some(reason) = wish.or(self.doubts.untold(now)) {
                    let (vpn, reason) = (self.name().to_owned(), reason.to_owned());
                    cx.out.event(Event::ReregistrationScheduled { vpn, seconds: 0, reason });
                }
                (planned || wish.is_some()).then(|| self.begin(cx)).flatten()
            }
        };
        let aside = self.begin_aside(cx);
        begun.or(aside)
    }

    /// Asks to listen where the PUSHes of our KEKs come, when that changed.
    pub fn listen(&mut self, out: &mut Outputs) {
        let groups = self.keyring.channels();
        if groups != self.listens {
            self.listens.clone_from(&groups);
            out.push(Output::Listen { vpn: self.name().to_owned(), groups, address: self.address });
        }
    }

    /// The next timer.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        let again = match self.registration {
            Registration::Trying { .. } => None,
            Registration::Backoff { until } => Some(Wakeup { at: until, why: "next try to register" }),
            Registration::Idle => {
                let returns = self.returns.map(|at| Wakeup { at, why: "is an earlier server back" });
                let planned = self.plan_or_doubt().map(|at| Wakeup { at, why: "planned registration" });
                Wakeup::earlier(planned, returns)
            }
        };
        let probe = self.probe.as_ref().and_then(Probe::due).map(|at| Wakeup { at, why: "recovery probe" });
        let acks = self.pushes.poll_timeout();
        Wakeup::earlier(Wakeup::earlier(again, acks), Wakeup::earlier(probe, self.keyring.poll_timeout()))
    }
}
