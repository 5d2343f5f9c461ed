//! One joined group: which server it asks, when again, and what it does with what it gets.
//!
//! ```text
//! Idle --start, soft expiry, gap, clean slate, operator--> Trying(server) --keys--> Idle
//!                                    ^  next server  --failed--'   |
//!                                    '--- Backoff <--- all failed -'   30 s doubling to 600 s, each +-20 %
//! ```
//!
//! Registering again never takes a working key away: the new set comes first.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ctl::event::Event;
use ctl::observe::VpnStatistics;
use dataplane::Fault;
use gdoi_proto::message::Dialect;
use ike::io::{Instant, Wakeup};
use ike::retransmit::{below, spread};

use super::Cx;
use super::accept;
use super::kek::Kek;
use super::keyring::Keyring;
use super::pull::Download;
use super::push::Pushes;
use super::servers::Failure;
use super::settings::{GatewaySettings, VpnSettings};

/// Backoff after the first full round.
const FIRST_BACKOFF: Duration = Duration::from_secs(30);
/// Longest wait before new keys are asked for because the data plane uses up the present ones.
const SOFT_LIMIT_WAIT: Duration = Duration::from_secs(10);
/// Longest backoff.
const LONGEST_BACKOFF: Duration = Duration::from_secs(600);

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
    registered_once: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registration {
    Idle,
    Trying { server: usize, failed: usize },
    Backoff { until: Instant },
}

impl Vpn {
    /// A group not joined yet.
    pub fn new(settings: VpnSettings, gateway: &GatewaySettings) -> Vpn {
        Vpn {
            keyring: Keyring::new(&settings.name),
            settings: Arc::new(settings),
            pushes: Pushes::default(),
            statistics: VpnStatistics::default(),
            address: None,
            dialect: gateway.policies.first().map_or(Dialect::STRICT, |policy| policy.dialect),
            servers: gateway.servers.clone(),
            registration: Registration::Idle,
            current: 0,
            rounds: 0,
            planned: None,
            registered_once: false,
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

    /// When it registers again by plan.
    pub fn planned(&self) -> Option<Instant> {
        match self.registration {
            Registration::Backoff { until } => Some(until),
            Registration::Idle | Registration::Trying { .. } => self.planned,
        }
    }

    /// Begins a registration: the server to ask, none without servers or when one is under way.
    pub fn begin(&mut self, cx: &mut Cx<'_>) -> Option<usize> {
        if self.is_trying() {
            return None;
        }
        let server = if matches!(self.registration, Registration::Backoff { .. }) { 0 } else { self.current };
        self.planned = None;
        self.try_server(server, 0, cx)
    }

    fn try_server(&mut self, server: usize, failed: usize, cx: &mut Cx<'_>) -> Option<usize> {
        let address = self.servers.get(server)?;
        self.registration = Registration::Trying { server, failed };
        cx.out.event(Event::Registering { vpn: self.name().to_owned(), server: address.to_string() });
        Some(server)
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
        let Registration::Trying { server, failed } = self.registration else { return None };
        let (vpn, address) =
            (self.name().to_owned(), self.server().map(|a| a.to_string()).unwrap_or_default());
        match kind {
            Failure::Silence => {
                self.statistics.pull_timeout += 1;
                cx.out.event(Event::ServerUnreachable { vpn: vpn.clone(), server: address.clone() });
            }
            Failure::Refused => self.statistics.pull_failed += 1,
            Failure::Policy => {
                self.statistics.pull_aborted += 1;
                self.statistics.unsupported_algorithm += 1;
            }
        }
        let failed = failed + 1;
        let another = failed < self.servers.len();
        let wait = if another {
            Duration::ZERO
        } else {
            let wait = FIRST_BACKOFF.saturating_mul(1 << self.rounds.min(8)).min(LONGEST_BACKOFF);
            self.rounds += 1;
            spread(wait, 20, cx.entropy)
        };
        cx.out.event(Event::RegistrationFailed {
            vpn,
            server: address,
            reason: reason.to_owned(),
            retry_seconds: wait.as_secs(),
        });
        if another {
            self.statistics.server_failover += 1;
            return self.try_server((server + 1) % self.servers.len(), failed, cx);
        }
        self.registration = Registration::Backoff { until: cx.now.at + wait };
        None
    }

    /// Message 4 brought keys.
    ///
    /// # Errors
    /// Why they cannot be used; nothing is installed.
    pub fn on_keys(&mut self, download: Download, local: IpAddr, cx: &mut Cx<'_>) -> Result<(), String> {
        let Registration::Trying { server, .. } = self.registration else { return Ok(()) };
        let Download { policy, mut keys, seq } = download;
        let kek = match (&policy.kek, keys.kek.take()) {
            (Some(sak), Some(key)) => {
                let kek = Kek::new(sak.clone(), key, self.keyring.kek(), cx.now.at, cx.entropy)?;
                accept::check_signing_key(&self.settings, sak, &kek.public_key)?;
                Some(kek)
            }
            (Some(_), None) => return Err("the KEK is missing".to_owned()),
            (None, _) => None,
        };
        let outside = self.report_outside(&policy, cx);
        self.registration = Registration::Idle;
        self.current = server;
        self.rounds = 0;
        self.registered_once = true;
        self.address = Some(local);
        self.statistics.pull_succeeded += 1;
        self.keyring.apply_pull(&policy, keys, kek, seq, &outside, cx);
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
    pub fn report_outside(
        &self,
        policy: &gdoi_proto::policy::GroupPolicy,
        cx: &mut Cx<'_>,
    ) -> Vec<gdoi_proto::ids::Spi> {
        let outside = accept::outside(&self.settings.allowed_flows, policy);
        for spi in &outside {
            let reason = format!("SA {spi} lies outside the allowed flows and is left out");
            cx.out.event(Event::PolicyRefused { vpn: self.name().to_owned(), reason });
        }
        outside
    }

    /// The data plane noticed something: keys that near their end are replaced before it.
    pub fn on_fault(&mut self, fault: &Fault, cx: &mut Cx<'_>) {
        let vpn = self.name().to_owned();
        match fault {
            Fault::SoftLimit { spi, .. } => {
                let reason = format!("TEK {spi} is nearly used up");
                self.plan(Duration::from_secs(1), SOFT_LIMIT_WAIT, &reason, cx);
            }
            Fault::Spent { spi, .. } => {
                // Every packet that finds it spent tells so; one registration answers all.
                if !self.is_trying() && self.planned().is_none() {
                    cx.out.event(Event::TekSpent { vpn, spi: spi.to_string() });
                    self.plan(Duration::from_secs(1), SOFT_LIMIT_WAIT, "a TEK is used up", cx);
                }
            }
            Fault::UnknownSpi { spi, source, .. } => {
                let (spi, source) = (spi.to_string(), source.to_string());
                cx.out.event(Event::UnknownSpi { vpn, spi, source });
            }
        }
    }

    /// Timers: the server to ask, when a registration must begin.
    pub fn on_timeout(&mut self, cx: &mut Cx<'_>) -> Option<usize> {
        let now = cx.now.at;
        let wish = self.keyring.on_timeout(cx);
        let planned = self.planned.is_some_and(|planned| planned <= now);
        if planned {
            self.planned = None;
        }
        match self.registration {
            Registration::Trying { .. } => None,
            Registration::Backoff { until } => (until <= now).then(|| self.begin(cx)).flatten(),
            Registration::Idle => {
                if let Some(reason) = wish {
                    let (vpn, reason) = (self.name().to_owned(), reason.to_owned());
                    cx.out.event(Event::ReregistrationScheduled { vpn, seconds: 0, reason });
                }
                (planned || wish.is_some()).then(|| self.begin(cx)).flatten()
            }
        }
    }

    /// The next timer.
    pub fn poll_timeout(&self) -> Option<Wakeup> {
        let again = match self.registration {
            Registration::Trying { .. } => None,
            Registration::Backoff { until } => Some(Wakeup { at: until, why: "next try to register" }),
            Registration::Idle => self.planned.map(|at| Wakeup { at, why: "planned registration" }),
        };
        Wakeup::earlier(again, self.keyring.poll_timeout())
    }
}
