//! The shell around the engine: one loop that tells the engine what happens and does what it wants, in its order.
//!
//! ```text
//! datagrams, jobs done, requests, timers, signals --> engine --> sockets, workers, data plane, replies, events
//! ```
//!
//! A stopping member tells its key servers that their ISAKMP SAs are gone; nothing is kept over a restart.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use config::Gm;
use ctl::control::{Reply, Request};
use ctl::event::Event;
use ctl::observe::{GmSnapshot, ProcessView, Snapshot};
use dataplane::tun::Random as Octets;
use dataplane::{DataPlane, DataPlaneError, Fault, Recorder};
use ike::crypto::provider::{Random, default_provider};
use ike::io::{Instant, JobResult, Machine};
use runtime::clock::Clock;
use runtime::confine::Confined;
use runtime::control::Asked;
use runtime::hub::Hub;
use runtime::incoming::Incoming;
use runtime::local::{LocalError, LocalSocket};
use runtime::signals::{Signal, Signals};
use runtime::supervisor::Supervisor;
use runtime::udp::{BindError, Sockets};
use runtime::workers::Workers;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::convert;
use crate::engine::GroupMember;
use crate::engine::io::{Command, Input, Output};
use crate::engine::settings::Settings;
use crate::notify::Notifier;
use crate::{plane, reload};

/// Requests of local sockets that may wait for the loop.
const ASKED: usize = 64;
/// Faults of the data plane that may wait for the loop.
const FAULTS: usize = 64;
/// Longest sleep of the loop without a timer.
const IDLE: Duration = Duration::from_secs(10);
/// Until a multicast group that could not be listened to is tried again; as long as the loop sleeps at most.
const LISTEN_AGAIN: Duration = IDLE;
/// Given to those who watch to read that the daemon stops.
const FAREWELL: Duration = Duration::from_millis(50);

/// How to run, from the command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file, read again on SIGHUP.
    pub path: PathBuf,
    /// `--lab`: `show_keys` too.
    pub lab: bool,
    /// `--show-keys`: key octets on the control socket.
    pub show_keys: bool,
    /// What the process gave up; none in tests.
    pub confined: Option<Confined>,
}

/// Why the daemon does not run. The exit code is 3 for all of them.
#[derive(Debug, Error)]
pub enum StartError {
    /// A UDP socket cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A local socket cannot be opened.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The data plane cannot be set up; what was steered stays closed.
    #[error("data plane: {0}")]
    DataPlane(#[from] DataPlaneError),
    /// The system refuses a thread or a signal.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Runs the member until SIGTERM or SIGINT.
///
/// # Errors
/// [`StartError`].
pub fn run(config: &Gm, options: Options) -> Result<(), StartError> {
    let _log = runtime::log::in_background();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "tokio cannot be started", source })?;
    let result = tokio.block_on(serve(config, options));
    tokio.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: &Gm, options: Options) -> Result<(), StartError> {
    let member = &config.member;
    // Taken first: a signal during the start ends the daemon in order too.
    let mut system =
        Signals::listen().map_err(|source| StartError::System { what: "signals cannot be taken", source })?;
    let (signal, signals) = mpsc::channel(4);
    tokio::spawn(async move { while signal.send(system.next().await).await.is_ok() {} });
    let floating = if member.nat_traversal { &member.nat_traversal_listen[..] } else { &[] };
    let (sockets, taken) = Sockets::bind_with_nat_traversal(&member.listen, floating)?;
    let settings = convert::settings(config, !sockets.nat_traversal().is_empty());
    let control = LocalSocket::bind(&member.control_socket, runtime::control::MODE, "")?;
    let observe = LocalSocket::bind(&member.observe_socket, runtime::observe::MODE, &member.socket_group)?;
    let hub = Hub::new();
    let (sender, asked) = mpsc::channel(ASKED);
    let (teller, faults) = mpsc::channel(FAULTS);
    let (data_plane, steered) = data_plane(config, teller)?;
    let (mut daemon, mut inlets) = Daemon::start(settings, options, data_plane, sockets, hub.clone())?;
    daemon.configured(config.clone());
    if let Some(path) = &member.notify_socket {
        let failed = |source| StartError::System { what: "no socket for notify-socket", source };
        daemon.notifier = Some(Mutex::new(Notifier::new(path.clone()).map_err(failed)?));
    }
    if !steered.is_empty() {
        let backend = daemon.data_plane.name().to_owned();
        daemon.publish(&Event::DataPlaneStarted { backend, pairs: steered });
        for note in plane::notes(config) {
            tracing::info!(target: "gdoi", "{note}");
        }
        // The kernel backend routes nothing.
        let routing = config.backend == config::Backend::Tun;
        for doubt in plane::doubts().into_iter().filter(|_| routing) {
            tracing::warn!(target: "gdoi", "{doubt}");
        }
    }
    inlets.faults = faults;
    if let Some(error) = taken {
        daemon.publish(&Event::NatTraversalOff { reason: error.to_string() });
    }
    inlets.signals = signals;
    inlets.asked = asked;
    let locals = [
        runtime::control::serve(control, sender.clone(), hub.clone(), None),
        runtime::observe::serve(observe, sender, hub),
    ];
    daemon.work(inlets).await;
    tokio::time::sleep(FAREWELL).await;
    for local in locals {
        local.abort();
        // Awaited so that the file of the socket is gone when the process is.
        let _ = local.await;
    }
    Ok(())
}

/// The data plane the configuration wants, and the pairs of zones it steers, for people.
fn data_plane(
    config: &Gm,
    faults: mpsc::Sender<Fault>,
) -> Result<(Box<dyn DataPlane>, Vec<String>), DataPlaneError> {
    let Some(wanted) = plane::settings(config) else {
        return Ok((Box::new(Recorder::new()), Vec::new()));
    };
    let provider = default_provider();
    let random: Octets = Box::new(move |out: &mut [u8]| provider.fill(out));
    let pairs = plane::describe(&wanted);
    Ok((plane::start(config, wanted, random, plane::teller(faults))?, pairs))
}

/// Where inputs come from.
struct Inlets {
    results: mpsc::UnboundedReceiver<JobResult>,
    datagrams: Incoming,
    asked: mpsc::Receiver<Asked>,
    signals: mpsc::Receiver<Signal>,
    faults: mpsc::Receiver<Fault>,
}

/// The engine with everything it acts on.
struct Daemon {
    clock: Clock,
    engine: GroupMember,
    data_plane: Box<dyn DataPlane>,
    sockets: Sockets,
    workers: Workers,
    hub: Hub,
    /// Who waits for which ticket.
    waiting: BTreeMap<u64, oneshot::Sender<Reply>>,
    last_ticket: u64,
    options: Options,
    /// Other programs that follow the keys.
    notifier: Option<Mutex<Notifier>>,
    observer: plane::Observer,
    next_look: Instant,
    /// What is in use; none in tests without a file.
    config: Option<Gm>,
    /// The interface each VPN hears multicast on, where the configuration names one.
    interfaces: BTreeMap<String, String>,
    /// Multicast groups each VPN wants, and our address towards its key server.
    listening: BTreeMap<String, (Vec<SocketAddr>, Option<IpAddr>)>,
    /// When those that failed are tried again.
    listen_again: Option<Instant>,
    /// Told of the life of this process.
    supervisor: Supervisor,
}

impl Daemon {
    /// Starts the engine and the threads. The inlets for requests, signals and faults are closed ones.
    fn start(
        settings: Settings,
        options: Options,
        data_plane: Box<dyn DataPlane>,
        mut sockets: Sockets,
        hub: Hub,
    ) -> Result<(Daemon, Inlets), StartError> {
        let system = |what| move |source| StartError::System { what, source };
        let clock = Clock::start();
        let clock_start = clock.now().at;
        let provider = default_provider();
        let started = Event::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            provider: provider.name().to_owned(),
        };
        hub.publish(clock.now().unix_seconds, &started);
        let engine = GroupMember::new(settings, clock.now(), Box::new(Random(Arc::clone(&provider))));
        let (workers, results) =
            Workers::start(provider, None).map_err(system("the crypto threads cannot be started"))?;
        let datagrams = sockets.receive().map_err(system("the receiving threads cannot be started"))?;
        let daemon = Daemon {
            clock,
            engine,
            data_plane,
            sockets,
            workers,
            hub,
            waiting: BTreeMap::new(),
            last_ticket: 0,
            options,
            notifier: None,
            supervisor: Supervisor::from_environment(),
            observer: plane::Observer::default(),
            next_look: clock_start,
            config: None,
            interfaces: BTreeMap::new(),
            listening: BTreeMap::new(),
            listen_again: None,
        };
        for address in daemon.sockets.addresses() {
            daemon.publish(&Event::Listening { address: address.to_string() });
        }
        for (on, event) in [(daemon.options.lab, Event::LabMode), (daemon.options.show_keys, Event::ShowKeys)]
        {
            if on {
                daemon.publish(&event);
            }
        }
        let (asked, signals, faults) = (mpsc::channel(1).1, mpsc::channel(1).1, mpsc::channel(1).1);
        Ok((daemon, Inlets { results, datagrams, asked, signals, faults }))
    }

    async fn work(mut self, mut inlets: Inlets) {
        self.drain();
        self.supervisor.ready();
        loop {
            let mut sleep = IDLE;
            if let Some(wakeup) = self.engine.poll_timeout() {
                if wakeup.at <= self.clock.now().at {
                    tracing::trace!(why = wakeup.why, "timer");
                    self.tell(Input::Timeout);
                }
                sleep = self.engine.poll_timeout().map_or(IDLE, |wakeup| self.clock.until(wakeup.at));
            }
            let sleep = self.supervisor.alive(self.clock.now().at).map_or(sleep, |sign| sign.min(sleep));
            tokio::select! {
                // What finishes something goes before what begins something.
                biased;
                Some(signal) = inlets.signals.recv() => match signal {
                    Signal::Stop => break,
                    Signal::Reload => self.on_reload(),
                },
                Some(result) = inlets.results.recv() => self.tell(Input::Job(result)),
                Some(asked) = inlets.asked.recv() => self.on_asked(asked),
                Some(datagram) = inlets.datagrams.recv() => self.tell(Input::Datagram(datagram)),
                Some(fault) = inlets.faults.recv() => self.on_fault(fault),
                () = tokio::time::sleep(sleep) => {}
            }
            self.look_at_traffic();
            if self.listen_again.is_some_and(|at| at <= self.clock.now().at) {
                self.listen();
            }
        }
        self.publish(&Event::DaemonStopping);
        self.supervisor.stopping();
        self.tell(Input::Stop);
    }

    fn publish(&self, event: &Event) {
        let now = self.clock.now().unix_seconds;
        self.hub.publish(now, event);
        let said = self.notifier.as_ref().and_then(|it| it.lock().ok()?.tell(now, event));
        if let Some(said) = said {
            tracing::warn!(target: "gdoi", "{said}");
        }
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(self.clock.now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        let mut routes = Vec::new();
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Transmit(datagram) => {
                    if let Err(error) = self.sockets.send(&datagram) {
                        tracing::debug!(target: "gdoi", "datagram to {} not sent: {error}", datagram.peer);
                    }
                }
                Output::Listen { vpn, groups, address } => {
                    self.listening.insert(vpn, (groups, address));
                    self.listen();
                }
                Output::Route { server, peer, address } => routes.push((server, peer, address)),
                Output::Job(request) => self.workers.submit(request),
                Output::Install(tek) => self.at_data_plane(|plane| plane.install(tek)),
                Output::Activate { vpn, spi } => self.at_data_plane(|plane| plane.activate(&vpn, spi)),
                Output::SenderIds { vpn, spi, sender_ids } => {
                    self.at_data_plane(|plane| plane.set_sender_ids(&vpn, spi, sender_ids))
                }
                Output::Remove { vpn, spi } => self.at_data_plane(|plane| plane.remove(&vpn, spi)),
                Output::Event(event) => self.publish(&event),
                Output::Reply { ticket, result } => {
                    if let Some(reply) = self.waiting.remove(&ticket) {
                        // Who asked may be gone.
                        let _ = reply.send(match result {
                            Ok(text) => Reply::done(text),
                            Err(reason) => Reply::Refused { reason },
                        });
                    }
                }
            }
        }
        for (server, peer, address) in routes {
            let (listening, floated) = (self.sockets.listening(), self.sockets.nat_traversal());
            let locals = convert::locals(address, peer, &listening, &floated);
            self.tell(Input::Route { server, locals: locals.map_err(|error| error.to_string()) });
        }
    }

    /// Listens to the multicast groups that any VPN wants; what fails is tried again.
    fn listen(&mut self) {
        let wanted: Vec<SocketAddr> =
            self.listening.values().flat_map(|(groups, _)| groups.clone()).collect();
        let left: Vec<SocketAddr> = self.sockets.joined().filter(|group| !wanted.contains(group)).collect();
        left.into_iter().for_each(|group| self.sockets.leave(group));
        let mut failed = false;
        for (vpn, (groups, address)) in &self.listening {
            let interface = self.interfaces.get(vpn).map(String::as_str);
            for group in groups {
                let any =
                    if group.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                if let Err(error) = self.sockets.join(*group, interface, address.unwrap_or(any)) {
                    failed = true;
                    let interface = interface.unwrap_or_default().to_owned();
                    let (group, reason) = (group.to_string(), error.to_string());
                    self.publish(&Event::MulticastFailed { group, interface, reason });
                }
            }
        }
        self.listen_again = failed.then(|| self.clock.now().at + LISTEN_AGAIN);
    }

    fn at_data_plane(&mut self, act: impl FnOnce(&mut dyn DataPlane) -> Result<(), DataPlaneError>) {
        let plane = self.data_plane.as_mut();
        if let Err(error) = act(plane) {
            let backend = plane.name().to_owned();
            self.publish(&Event::DataPlaneFailed { backend, reason: error.to_string() });
        }
    }

    fn on_fault(&mut self, fault: Fault) {
        if let Some(event) = plane::event(&fault) {
            self.publish(&event);
        }
        self.tell(plane::input(fault));
    }

    /// Looks whether traffic goes one way only, now and then.
    fn look_at_traffic(&mut self) {
        let at = self.clock.now().at;
        if at < self.next_look {
            return;
        }
        self.next_look = at + plane::LOOK;
        let names: Vec<String> = self.engine.vpns().keys().cloned().collect();
        for vpn in names {
            let Some(traffic) = self.data_plane.traffic(&vpn) else { continue };
            let packets = (traffic.outbound.protected, traffic.inbound.protected);
            if let Some(input) = self.observer.look(at, &vpn, packets) {
                self.tell(input);
            }
        }
    }

    /// What a file says beside the settings of the engine.
    fn configured(&mut self, config: Gm) {
        let named = |vpn: &config::Vpn| Some((vpn.name.clone(), vpn.external_interface.clone()?));
        self.interfaces = config.vpns.iter().filter_map(named).collect();
        for vpn in &config.vpns {
            self.data_plane.set_rules(&vpn.name, plane::rules(&config, vpn));
        }
        self.config = Some(config);
    }

    fn on_reload(&mut self) {
        self.supervisor.reloading();
        let path = self.options.path.clone();
        if let Err(reason) = self.change(&path) {
            self.publish(&Event::ConfigurationRefused { reason: reason.replace('\n', "; ") });
        }
        self.supervisor.ready();
    }

    /// Reads a file whole and uses it. A file that is not good, or that only a restart takes whole, changes nothing.
    fn change(&mut self, path: &Path) -> Result<String, String> {
        let read = reload::read(path, config::Options { lab: self.options.lab });
        let config = read.map_err(|reason| match &self.options.confined {
            Some(confined) => confined.explained(reason),
            None => reason,
        })?;
        let needs = self.config.as_ref().map(|old| reload::restart(old, &config)).unwrap_or_default();
        if !needs.is_empty() {
            let differ = needs.join(", ");
            return Err(format!(
                "{}: nothing is changed, for this takes a restart: {differ}",
                path.display()
            ));
        }
        let settings = convert::settings(&config, !self.sockets.nat_traversal().is_empty());
        let change = self.engine.plan(&settings);
        self.configured(config);
        self.tell(Input::Apply(Box::new(settings)));
        Ok(change.to_string())
    }

    fn on_asked(&mut self, Asked { request, reply, .. }: Asked) {
        let command = match request {
            Request::Snapshot | Request::Summary => {
                let snapshot = Snapshot::Gm(self.snapshot(request == Request::Snapshot));
                return drop(reply.send(Reply::Snapshot(Box::new(snapshot))));
            }
            Request::Version => {
                let text = format!("gmd {}", env!("CARGO_PKG_VERSION"));
                return drop(reply.send(Reply::done(text)));
            }
            Request::Apply { file } => {
                let path = file.map_or_else(|| self.options.path.clone(), PathBuf::from);
                return drop(reply.send(match self.change(&path) {
                    Ok(text) => Reply::done(text),
                    Err(reason) => Reply::Refused { reason },
                }));
            }
            Request::Register { vpn } => Command::Register { vpn },
            // The local sockets answer it themselves.
            Request::Watch | Request::Tap => return refuse(reply, "not on this way"),
            Request::Rekey { .. }
            | Request::ClearMembers { .. }
            | Request::ClearStatistics { .. }
            | Request::StateVerify
            | Request::StateBackup { .. }
            | Request::StateReseal
            | Request::Audit { .. }
            | Request::Explain { .. }
            | Request::Plan { .. }
            | Request::Expel { .. }
            | Request::Revoke { .. }
            | Request::Unrevoke { .. } => {
                return refuse(reply, "this is a member; only a key server does that");
            }
        };
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.waiting.insert(ticket, reply);
        self.tell(Input::Command { ticket, command });
    }

    /// What is; key octets only in a `whole` one.
    fn snapshot(&self, whole: bool) -> GmSnapshot {
        let show_keys = whole && (self.options.show_keys || self.options.lab);
        let mut snapshot = self.engine.snapshot(self.clock.now(), show_keys);
        for vpn in &mut snapshot.vpns {
            vpn.traffic = self.data_plane.traffic(&vpn.name).as_ref().map(plane::view);
        }
        snapshot.process = ProcessView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.clock.now().at.since(Instant::default()).as_secs(),
            events: self.hub.told(),
        };
        let counters = self.sockets.counters();
        let statistics = &mut snapshot.statistics;
        statistics.datagrams_received = counters.received;
        statistics.datagrams_sent = counters.sent;
        statistics.datagrams_overflowed = counters.overflowed;
        statistics.send_errors = counters.send_errors;
        snapshot
    }
}

fn refuse(reply: oneshot::Sender<Reply>, reason: &str) {
    let _ = reply.send(Reply::Refused { reason: reason.to_owned() });
}

#[cfg(test)]
mod tests {
    use gdoi_proto::ids::GroupId;

    use runtime::udp::Listen;

    use super::*;
    use crate::engine::settings::VpnSettings;

    #[tokio::test]
    async fn a_member_answers_requests_and_stops_in_order() {
        let address = "127.0.0.1:0".parse().unwrap();
        let sockets = Sockets::bind(&[Listen { address, marker: false }]).unwrap();
        let hub = Hub::new();
        let mut lines = hub.subscribe();
        let vpn = VpnSettings { name: "v".to_owned(), group: GroupId::number(1), ..VpnSettings::default() };
        let gateway = crate::engine::settings::GatewaySettings::default();
        let settings = Settings { gateways: vec![gateway], vpns: vec![vpn], ..Settings::default() };
        let path = PathBuf::from("/nonexistent/gm.toml");
        let options = Options { path, lab: false, show_keys: false, confined: None };
        let (daemon, mut inlets) =
            Daemon::start(settings, options, Box::new(Recorder::new()), sockets, hub).unwrap();
        let (signals, taken) = mpsc::channel(4);
        let (asked, requests) = mpsc::channel(4);
        (inlets.signals, inlets.asked) = (taken, requests);
        let ended = tokio::spawn(daemon.work(inlets));
        let ask = async |request| {
            let (reply, answer) = oneshot::channel();
            asked.send(Asked { request, reply, operator: None }).await.unwrap();
            answer.await.unwrap()
        };
        let Reply::Snapshot(snapshot) = ask(Request::Snapshot).await else { panic!("no snapshot") };
        let Snapshot::Gm(member) = *snapshot else { panic!("not a member") };
        assert_eq!((member.vpns[0].name.as_str(), member.vpns[0].state.as_str()), ("v", "unregistered"));
        assert!(matches!(ask(Request::Register { vpn: Some("w".to_owned()) }).await, Reply::Refused { .. }));
        assert!(matches!(ask(Request::ClearStatistics { group: None }).await, Reply::Refused { .. }));
        signals.send(Signal::Reload).await.unwrap();
        signals.send(Signal::Stop).await.unwrap();
        ended.await.unwrap();
        let mut names = Vec::new();
        while let Some(line) = lines.next().await {
            let stamped: ctl::event::Stamped = ctl::control::from_line(&line).unwrap();
            names.push(stamped.event.name());
        }
        assert_eq!(names, ["started", "listening", "configuration_refused", "daemon_stopping"]);
    }
}
