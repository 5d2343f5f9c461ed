//! The shell around the engine: one loop that tells the engine what happens and does what it wants, in its order.
//!
//! ```text
//! datagrams ┐                     ┌─ Persist ──> writer thread ──> disk
//! jobs done │                     │                  │ written
//! requests  ├──> engine ──> wish ─┤                  v
//! timers    │                     └─ all else ──> gate ──> sockets, workers, replies, events
//! signals   ┘
//! ```
//!
//! What follows a write waits at the gate until the write is on disk; inputs are taken meanwhile. When too much waits, no
//! datagrams are taken: the queue of the sockets fills and drops, as the network would.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::Gcks;
use ctl::control::{Reply, Request};
use ctl::event::Event;
use ctl::observe::{GcksSnapshot, ProcessView, Snapshot};
use ctl::plan::Plan;
use ctl::tap::Tapped;
use gdoi_proto::header::Header;
use ike::crypto::provider::{Random, default_provider};
use ike::io::{Instant, JobResult, Machine};
use runtime::clock::Clock;
use runtime::confine::{Account, ConfineError, Confined};
use runtime::control::{Asked, Operator};
use runtime::hub::{Hub, Tap};
use runtime::incoming::Incoming;
use runtime::local::{LocalError, LocalSocket};
use runtime::lock::{LockError, StateLock};
use runtime::signals::{Signal, Signals};
use runtime::supervisor::Supervisor;
use runtime::udp::{BindError, Sockets, UdpCounters};
use runtime::workers::Workers;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::audit::statements::Statements;
use crate::audit::{self, Audit};
use crate::confine;
use crate::convert;
use crate::engine::io::{Command, Input, Outcome, Output};
use crate::engine::settings::Settings;
use crate::engine::{KeyServer, RestoreError};
use crate::inbox::Inbox;
use crate::keeper::Keeper;
use crate::reload;
use crate::store::embedded::{Embedded, private_to};
use crate::store::gate::Gate;
use crate::store::writer::{Report, Writer};
use crate::store::{Store, StoreError};
use crate::teller::Teller;

/// Outputs that may wait for the disk before no more datagrams are taken.
const HELD: usize = 65_536;
/// Requests of local sockets that may wait for the loop.
const ASKED: usize = 64;
/// Results and datagrams taken in one go.
const BATCH: usize = 64;
/// Longest sleep of the loop without a timer.
const IDLE: Duration = Duration::from_secs(10);
/// Given to those who watch to read that the daemon stops.
const FAREWELL: Duration = Duration::from_millis(50);

/// How to run, from the command line.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file, read again on SIGHUP.
    pub path: PathBuf,
    /// The files it names.
    pub files: Vec<PathBuf>,
    /// `--lab`: lifetimes down to 20 s, and `show_keys`.
    pub lab: bool,
    /// `--show-keys`: key octets on the control socket.
    pub show_keys: bool,
}

/// Why the daemon does not run.
#[derive(Debug, Error)]
pub enum StartError {
    /// The state directory is another daemon's.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state was read, but one of its rows cannot be used.
    #[error("{0}; the state is left as it is")]
    Restore(#[from] RestoreError),
    /// A UDP socket cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A local socket cannot be opened.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// The daemon cannot give up what it should not have.
    #[error("giving up privileges: {0}")]
    Confine(#[from] ConfineError),
    /// The system refuses a thread or a signal.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that writes the state ended by itself.
    #[error("the thread that writes the state ended; stopping, since nothing can be kept any more")]
    WriterEnded,
}

impl StartError {
    /// 4 for a damaged state, else 3.
    pub fn exit_code(&self) -> u8 {
        match self {
            StartError::Store(StoreError::Damaged { .. } | StoreError::Sealed { .. })
            | StartError::Restore(_) => 4,
            StartError::Store(StoreError::Refused { .. } | StoreError::Failed(_))
            | StartError::Lock(_)
            | StartError::Bind(_)
            | StartError::Local(_)
            | StartError::Confine(_)
            | StartError::System { .. }
            | StartError::WriterEnded => 3,
        }
    }
}

/// Runs the key server until SIGTERM or SIGINT.
///
/// # Errors
/// [`StartError`]; [`StartError::exit_code`] is for the caller of the process.
pub fn run(config: &Gcks, options: Options) -> Result<(), StartError> {
    let opened = Opened::open(&config.server, &options)?;
    let _log = runtime::log::in_background();
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| StartError::System { what: "tokio cannot be started", source })?;
    let result = tokio.block_on(serve(config, options, opened));
    tokio.shutdown_timeout(Duration::from_secs(1));
    result
}

/// What needs the rights of whoever started the daemon, or must be there before its first thread.
struct Opened {
    lock: StateLock,
    sockets: Sockets,
    /// Why there is no NAT traversal.
    taken: Option<BindError>,
    control: LocalSocket,
    observe: LocalSocket,
    confined: Confined,
}

impl Opened {
    /// Opens it, and gives up all rights that are needed no more.
    fn open(server: &config::Server, options: &Options) -> Result<Opened, StartError> {
        let account = Account::to_become(&server.user)?;
        let made = |path: &Path| {
            confine::private_directory(path, account.as_ref())
                .map_err(|source| LockError::System { path: path.to_owned(), source })
        };
        made(&server.state_directory)?;
        let uid = account.as_ref().map_or_else(|| rustix::process::geteuid().as_raw(), |it| it.owner().0);
        private_to(&server.state_directory, 0o700, uid)?;
        let lock = StateLock::take_for(&server.state_directory, account.as_ref().map(Account::owner))?;
        let floating = if server.nat_traversal { &server.nat_traversal_listen[..] } else { &[] };
        let (sockets, taken) = Sockets::bind_with_nat_traversal(&server.listen, floating)?;
        let bind = |path, mode, group| LocalSocket::bind(path, mode, group);
        let control = bind(&server.control_socket, runtime::control::MODE, "")?;
        let observe = bind(&server.observe_socket, runtime::observe::MODE, &server.socket_group)?;
        let read: Vec<PathBuf> = options.files.iter().chain([&options.path]).cloned().collect();
        let confined = confine::of_server(server, account, &read)?;
        Ok(Opened { lock, sockets, taken, control, observe, confined })
    }
}

async fn serve(config: &Gcks, options: Options, opened: Opened) -> Result<(), StartError> {
    let server = &config.server;
    // Taken first: a signal during the start ends the daemon in order too.
    let mut system =
        Signals::listen().map_err(|source| StartError::System { what: "signals cannot be taken", source })?;
    let (signal, signals) = mpsc::channel(4);
    tokio::spawn(async move { while signal.send(system.next().await).await.is_ok() {} });
    let Opened { lock: _lock, sockets, taken, control, observe, confined } = opened;
    let store = {
        let key = server.state_key.as_ref().map(|key| &key.0);
        Embedded::open(&server.state_directory, key)?
    };
    let hub = Hub::new();
    let (sender, asked) = mpsc::channel(ASKED);
    let nat_bound = !sockets.nat_traversal().is_empty();
    let settings = convert::settings(config, nat_bound);
    let teller = hub.clone();
    let tell = move |event: &Event| teller.publish(runtime::clock::unix_seconds(), event);
    let directory = server.state_directory.join(audit::DIRECTORY);
    let audit = Audit::start(&directory, tell).map_err(|source| StartError::System {
        what: "the thread of the audit log cannot be started",
        source,
    })?;
    let teller = Teller::new(hub.clone(), audit.recorder(), Statements::new(&options.path, config));
    let (mut daemon, mut inlets) = Daemon::start(settings, options, store, sockets, teller.clone())?;
    daemon.audit = Some(audit);
    let tell = Arc::new(move |event: &Event| teller.publish(runtime::clock::unix_seconds(), event));
    let state_key = server.state_key.as_ref().map(|key| key.0.clone());
    daemon.keeper =
        Some(Keeper::new(server.state_directory.clone(), server.backup_directory.clone(), state_key, tell));
    daemon.confined = Some(confined);
    daemon.started = Some((server.clone(), nat_bound));
    if let Some(error) = taken {
        daemon.publish(&Event::NatTraversalOff { reason: error.to_string() });
    }
    inlets.signals = signals;
    inlets.asked = asked;
    let locals = [
        runtime::control::serve(control, sender.clone(), hub.clone(), daemon.tap.clone()),
        runtime::observe::serve(observe, sender, hub),
    ];
    let result = daemon.work(inlets).await;
    tokio::time::sleep(FAREWELL).await;
    for local in locals {
        local.abort();
        // Awaited so that the file of the socket is gone when the process is.
        let _ = local.await;
    }
    result
}

/// Where inputs come from.
struct Inlets {
    reports: mpsc::UnboundedReceiver<Report>,
    results: mpsc::UnboundedReceiver<JobResult>,
    datagrams: Incoming,
    asked: mpsc::Receiver<Asked>,
    signals: mpsc::Receiver<Signal>,
}

/// The engine with everything it acts on.
struct Daemon {
    clock: Clock,
    engine: KeyServer,
    gate: Gate<Output>,
    writer: Writer,
    sockets: Sockets,
    /// Datagrams on their way in.
    inbox: Inbox,
    /// Counters of the sockets when statistics were cleared last.
    cleared: UdpCounters,
    workers: Workers,
    teller: Teller,
    /// In a lab: where datagrams are shown.
    tap: Option<Tap>,
    /// Who waits for which ticket.
    waiting: BTreeMap<u64, oneshot::Sender<Reply>>,
    last_ticket: u64,
    /// What was applied, until it is on disk and its operator is told.
    plans: BTreeMap<u64, Plan>,
    /// `[server]` as it was at the start, and whether NAT traversal has a socket.
    started: Option<(config::Server, bool)>,
    /// What the store says while it refuses writes.
    store_failing: Option<String>,
    options: Options,
    /// None in tests without a disk.
    keeper: Option<Keeper>,
    /// Closed when all else is gone.
    audit: Option<Audit>,
    /// Told of the life of this process.
    supervisor: Supervisor,
    /// What the process gave up; none in tests.
    confined: Option<Confined>,
}

impl Daemon {
    /// Restores the engine and starts the threads. The inlets for requests and signals are closed ones.
    fn start(
        settings: Settings,
        options: Options,
        mut store: impl Store + 'static,
        mut sockets: Sockets,
        teller: impl Into<Teller>,
    ) -> Result<(Daemon, Inlets), StartError> {
        let system = |what| move |source| StartError::System { what, source };
        let teller = teller.into();
        let clock = Clock::start();
        let provider = default_provider();
        let started = Event::Started {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            provider: provider.name().to_owned(),
        };
        teller.publish(clock.now().unix_seconds, &started);
        let rows = store.load()?;
        let mut engine =
            KeyServer::new(settings, rows, clock.now(), Box::new(Random(Arc::clone(&provider))))?;
        engine.set_receive_buffer(sockets.receive_buffer());
        let (report, reports) = mpsc::unbounded_channel();
        let writer = Writer::start(store, move |said| drop(report.send(said)))
            .map_err(system("the writing thread cannot be started"))?;
        let (workers, results) =
            Workers::start(provider, None).map_err(system("the crypto threads cannot be started"))?;
        let datagrams = sockets.receive().map_err(system("the receiving threads cannot be started"))?;
        let daemon = Daemon {
            clock,
            engine,
            gate: Gate::new(),
            writer,
            inbox: Inbox::default(),
            sockets,
            cleared: UdpCounters::default(),
            workers,
            teller,
            tap: options.lab.then(Tap::new),
            waiting: BTreeMap::new(),
            last_ticket: 0,
            plans: BTreeMap::new(),
            started: None,
            store_failing: None,
            options,
            keeper: None,
            audit: None,
            supervisor: Supervisor::from_environment(),
            confined: None,
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
        let (asked, signals) = (mpsc::channel(1).1, mpsc::channel(1).1);
        Ok((daemon, Inlets { reports, results, datagrams, asked, signals }))
    }

    async fn work(mut self, mut inlets: Inlets) -> Result<(), StartError> {
        self.drain();
        self.supervisor.ready();
        loop {
            let sleep = self.on_timers();
            let sleep = self.supervisor.alive(self.clock.now().at).map_or(sleep, |sign| sign.min(sleep));
            let waits = !self.inbox.is_empty() && self.gate.held() < HELD;
            let sleep = if waits { Duration::ZERO } else { sleep };
            tokio::select! {
                // What finishes something goes before what begins something.
                biased;
                Some(signal) = inlets.signals.recv() => match signal {
                    Signal::Stop => break,
                    Signal::Reload => self.on_reload(),
                },
                report = inlets.reports.recv() => match report {
                    Some(report) => self.on_report(report),
                    None => return Err(StartError::WriterEnded),
                },
                Some(result) = inlets.results.recv() => {
                    self.tell(Input::Job(result));
                    for _ in 1..BATCH {
                        let Ok(result) = inlets.results.try_recv() else { break };
                        self.tell(Input::Job(result));
                    }
                }
                Some(asked) = inlets.asked.recv() => self.on_asked(asked),
                Some(datagram) = inlets.datagrams.recv(), if self.gate.held() < HELD && self.inbox.has_room() => {
                    self.inbox.put(datagram);
                    while self.inbox.has_room() {
                        let Ok(datagram) = inlets.datagrams.try_recv() else { break };
                        self.inbox.put(datagram);
                    }
                    self.on_datagrams();
                }
                () = std::future::ready(()), if sleep.is_zero() => self.on_datagrams(),
                () = tokio::time::sleep(sleep) => {}
            }
        }
        self.stop(inlets.reports);
        Ok(())
    }

    /// What is due by now; how long nothing else is.
    fn on_timers(&mut self) -> Duration {
        if let Some(wakeup) = self.engine.poll_timeout()
            && wakeup.at <= self.clock.now().at
        {
            tracing::trace!(why = wakeup.why, "timer");
            self.tell(Input::Timeout);
        }
        self.engine.poll_timeout().map_or(IDLE, |wakeup| self.clock.until(wakeup.at))
    }

    /// Ends the IKE SAs and writes what waits; what waited for that still leaves, so that nobody misses an answer that is
    /// true.
    fn stop(mut self, mut reports: mpsc::UnboundedReceiver<Report>) {
        self.publish(&Event::DaemonStopping);
        self.supervisor.stopping();
        self.tell(Input::Stop);
        self.writer.finish();
        while let Ok(report) = reports.try_recv() {
            match report {
                Report::Written(ticket) => self.gate.written(ticket),
                Report::Failing(reason) => self.publish(&Event::StoreFailed { reason }),
                Report::Recovered => {}
            }
        }
        self.release();
    }

    fn publish(&self, event: &Event) {
        self.teller.publish(self.clock.now().unix_seconds, event);
    }

    /// Tells the engine of some datagrams that wait.
    fn on_datagrams(&mut self) {
        for _ in 0..BATCH {
            let true = self.gate.held() < HELD else { break };
            let Some(datagram) = self.inbox.take() else { break };
            self.show(&datagram.octets, &[(datagram.peer, datagram.local)]);
            self.tell(Input::Datagram(datagram));
        }
    }

    /// Shows a message on its ways, from and to, to who traces a member in a lab.
    fn show(&self, message: &[u8], ways: &[(SocketAddr, SocketAddr)]) {
        let Some(tap) = self.tap.as_ref().filter(|tap| tap.is_open()) else { return };
        let opener = Header::decode(message).ok().and_then(|header| self.engine.opener(&header));
        for way in ways {
            tap.show(&Tapped::new(runtime::clock::unix_micros(), *way, message, opener.clone()));
        }
    }

    /// Counters of the sockets; what the inbox dropped is dropped because the engine was behind.
    fn counters(&self) -> UdpCounters {
        let counters = self.sockets.counters();
        UdpCounters { overflowed: counters.overflowed + self.inbox.shed(), ..counters }
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(self.clock.now(), input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Persist(changes) => self.gate.submitted(self.writer.write(changes)),
                // It says nothing of the state, and a stranger must not fill the gate with it.
                Output::Event(
                    event @ (Event::MessageDropped { .. }
                    | Event::HalfOpenLimit { .. }
                    | Event::AckRefused { .. }),
                ) => self.publish(&event),
                output => self.gate.push(output),
            }
        }
        self.release();
    }

    fn release(&mut self) {
        while let Some(output) = self.gate.release() {
            match output {
                Output::Transmit(datagram) => {
                    self.show(&datagram.octets, &[(datagram.local, datagram.peer)]);
                    if let Err(error) = self.sockets.send(&datagram) {
                        tracing::debug!(target: "gdoi", "datagram to {} not sent: {error}", datagram.peer);
                    }
                }
                Output::Fanout { octets, to } => {
                    self.show(&octets, &to);
                    let sent = self.sockets.send_many(&octets, &to);
                    if sent < to.len() {
                        let (lost, all) = (to.len() - sent, to.len());
                        tracing::warn!(target: "gdoi", "{lost} of {all} pushes not taken by the system");
                    }
                }
                Output::Multicast { octets, channel } => {
                    let from = self.sockets.addresses().into_iter().next();
                    self.show(&octets, from.map(|from| (from, channel.group)).as_slice());
                    if let Err(error) =
                        self.sockets.send_multicast(&octets, channel.group, &channel.interface)
                    {
                        let (group, interface) = (channel.group.to_string(), channel.interface);
                        self.publish(&Event::MulticastFailed { group, interface, reason: error.to_string() });
                    }
                }
                Output::Job(request) => self.workers.submit(request),
                Output::Event(event) => self.publish(&event),
                Output::Reply { ticket, result } => {
                    let plan = self.plans.remove(&ticket);
                    if let Some(reply) = self.waiting.remove(&ticket) {
                        // Who asked may be gone.
                        let _ = reply.send(match (result, plan) {
                            (Ok(_), Some(plan)) => Reply::Plan(Box::new(plan)),
                            (Ok(Outcome { text, rekey, push }), None) => Reply::Done {
                                text,
                                seq: push.map(|(_, seq)| seq.0),
                                kek_spi: push.map(|(spi, _)| spi.to_string()),
                                rekey,
                            },
                            (Err(reason), _) => Reply::Refused { reason },
                        });
                    }
                }
                // Writes pass beside the gate, see `drain`.
                Output::Persist(changes) => self.gate.submitted(self.writer.write(changes)),
            }
        }
    }

    fn on_report(&mut self, report: Report) {
        match report {
            Report::Written(ticket) => {
                self.gate.written(ticket);
                self.release();
            }
            Report::Failing(reason) => {
                self.publish(&Event::StoreFailed { reason: reason.clone() });
                self.store_failing = Some(reason);
                self.tell(Input::StoreFailing(true));
            }
            Report::Recovered => {
                self.publish(&Event::StoreRecovered);
                self.store_failing = None;
                self.tell(Input::StoreFailing(false));
            }
        }
    }

    fn on_reload(&mut self) {
        self.supervisor.reloading();
        let path = self.options.path.clone();
        if let Err(reason) = self.change(&path, true) {
            self.publish(&Event::ConfigurationRefused { reason: reason.replace('\n', "; ") });
        }
        self.supervisor.ready();
    }

    /// Reads a configuration. What cannot be read any more is explained.
    fn read(&self, path: &Path) -> Result<Gcks, String> {
        let read = reload::read(path, config::Options { lab: self.options.lab });
        read.map_err(|reason| match &self.confined {
            Some(confined) => confined.explained(reason),
            None => reason,
        })
    }

    /// Reads a file whole and says what it changes, or changes it. A file that is not good changes nothing.
    fn change(&mut self, path: &Path, apply: bool) -> Result<Plan, String> {
        let config = self.read(path)?;
        let nat_bound = self.started.as_ref().is_some_and(|(_, nat_bound)| *nat_bound);
        let settings = convert::settings(&config, nat_bound);
        let mut plan = self.engine.plan(self.clock.now(), &settings);
        plan.restart =
            self.started.as_ref().map(|(old, _)| reload::restart(old, &config.server)).unwrap_or_default();
        if apply {
            if let Some(reason) = &self.store_failing {
                return Err(format!("the state cannot be written: {reason}"));
            }
            plan.applied = true;
            // Before its first decision.
            self.teller.configured(Statements::new(path, &config));
            self.tell(Input::Apply(Box::new(settings)));
            for needs in &plan.restart {
                tracing::warn!(target: "configuration", "only a restart takes {needs}");
            }
        }
        Ok(plan)
    }

    fn on_change(&mut self, path: &Path, apply: bool, reply: oneshot::Sender<Reply>) {
        match self.change(path, apply) {
            Ok(plan) if apply => {
                self.last_ticket += 1;
                let ticket = self.last_ticket;
                self.waiting.insert(ticket, reply);
                self.plans.insert(ticket, plan);
                // Behind what the change wrote: who is told that it is done can rely on it.
                self.gate.push(Output::Reply { ticket, result: Ok(String::new().into()) });
                self.release();
            }
            Ok(plan) => drop(reply.send(Reply::Plan(Box::new(plan)))),
            Err(reason) => refuse(reply, &reason),
        }
    }

    /// A way to answer that also tells who asked for what, when it is something that changes the server.
    fn told(
        &self,
        request: &Request,
        operator: Option<Operator>,
        reply: oneshot::Sender<Reply>,
    ) -> oneshot::Sender<Reply> {
        if !changes_the_server(request) {
            return reply;
        }
        let (sender, answer) = oneshot::channel();
        let teller = self.teller.clone();
        let request = serde_json::to_string(request).unwrap_or_default();
        tokio::spawn(async move {
            let Ok(answer) = answer.await else { return };
            let (done, text) = match &answer {
                Reply::Refused { reason } => (false, reason.clone()),
                Reply::Done { text, .. } => (true, text.clone()),
                _ => (true, "done".to_owned()),
            };
            let event = Event::OperatorRequest {
                uid: operator.map(|operator| u64::from(operator.uid)),
                pid: operator.and_then(|operator| operator.pid).and_then(|pid| u64::try_from(pid).ok()),
                request,
                done,
                answer: text,
            };
            teller.publish(runtime::clock::unix_seconds(), &event);
            // Who asked may be gone.
            let _ = reply.send(answer);
        });
        sender
    }

    fn on_asked(&mut self, Asked { request, reply, operator }: Asked) {
        let reply = self.told(&request, operator, reply);
        let command = match request {
            Request::Snapshot | Request::Summary => {
                let snapshot = Snapshot::Gcks(self.snapshot(request == Request::Snapshot));
                return drop(reply.send(Reply::Snapshot(Box::new(snapshot))));
            }
            Request::Version => {
                let text = format!("gcksd {}", env!("CARGO_PKG_VERSION"));
                return drop(reply.send(Reply::done(text)));
            }
            Request::StateVerify | Request::StateBackup { .. } | Request::StateReseal => {
                return self.on_state(request, reply);
            }
            Request::Audit { last, verify } => {
                let Some(keeper) = &self.keeper else { return refuse(reply, "there is no audit log") };
                return keeper.audit(last, verify, reply);
            }
            Request::Explain { member, group } => {
                let steps = self.engine.explain(self.clock.now(), &member, group.as_deref());
                return drop(reply.send(match steps {
                    Ok(steps) => Reply::Explained { steps },
                    Err(reason) => Reply::Refused { reason },
                }));
            }
            Request::Register { .. } => return refuse(reply, "this is a key server; a member registers"),
            Request::Plan { file } => return self.on_change(Path::new(&file), false, reply),
            Request::Apply { file } => {
                let path = file.map_or_else(|| self.options.path.clone(), PathBuf::from);
                return self.on_change(&path, true, reply);
            }
            // The local sockets answer it themselves.
            Request::Watch | Request::Tap => return refuse(reply, "not on this way"),
            Request::ClearStatistics { group } => {
                if group.is_none() {
                    self.cleared = self.counters();
                }
                Command::ClearStatistics { group }
            }
            Request::Rekey { group, tek, kek } => Command::Rekey { group, tek, kek },
            Request::ClearMembers { group } => Command::ClearMembers { group },
            Request::Expel { group, member } => Command::Expel { group, member },
            Request::Revoke { group, member } => Command::Revoke { group, member },
            Request::Unrevoke { group, member } => Command::Unrevoke { group, member },
        };
        if let Some(reason) = &self.store_failing {
            return refuse(reply, &format!("the state cannot be written: {reason}"));
        }
        self.last_ticket += 1;
        let ticket = self.last_ticket;
        self.waiting.insert(ticket, reply);
        self.tell(Input::Command { ticket, command });
    }

    fn on_state(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let Some(keeper) = &self.keeper else { return refuse(reply, "the state is not kept in a file") };
        match request {
            Request::StateBackup { file } => {
                let time = ctl::time::rfc3339(self.clock.now().unix_seconds);
                keeper.backup(PathBuf::from(file), time, reply);
            }
            Request::StateReseal => {
                let key = match self.read(&self.options.path) {
                    Ok(config) => config.server.state_key,
                    Err(errors) => {
                        return refuse(reply, &format!("the configuration cannot be used: {errors}"));
                    }
                };
                match key {
                    Some(key) => keeper.reseal(&mut self.writer, key.0, reply),
                    None => {
                        refuse(reply, "server.state-key is not configured: there is nothing to seal with")
                    }
                }
            }
            _ => keeper.verify(reply),
        }
    }

    /// What is: `whole`, or counted.
    fn snapshot(&self, whole: bool) -> GcksSnapshot {
        let (now, show_keys) = (self.clock.now(), self.options.show_keys || self.options.lab);
        let mut snapshot =
            if whole { self.engine.snapshot(now, show_keys) } else { self.engine.summary(now) };
        snapshot.process = ProcessView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.clock.now().at.since(Instant::default()).as_secs(),
            events: self.teller.told(),
        };
        let (counters, cleared) = (self.counters(), &self.cleared);
        let statistics = &mut snapshot.statistics;
        statistics.datagrams_received = counters.received - cleared.received;
        statistics.datagrams_sent = counters.sent - cleared.sent;
        statistics.datagrams_overflowed = counters.overflowed - cleared.overflowed;
        statistics.send_errors = counters.send_errors - cleared.send_errors;
        snapshot
    }
}

/// True for what an operator does to members, keys or the state; looking and counting is not.
fn changes_the_server(request: &Request) -> bool {
    match request {
        Request::Rekey { .. }
        | Request::ClearMembers { .. }
        | Request::ClearStatistics { .. }
        | Request::Expel { .. }
        | Request::Revoke { .. }
        | Request::Unrevoke { .. }
        | Request::Apply { .. }
        | Request::StateBackup { .. }
        | Request::StateReseal => true,
        Request::Snapshot
        | Request::Summary
        | Request::StateVerify
        | Request::Audit { .. }
        | Request::Explain { .. }
        | Request::Plan { .. }
        | Request::Register { .. }
        | Request::Watch
        | Request::Tap
        | Request::Version => false,
    }
}

fn refuse(reply: oneshot::Sender<Reply>, reason: &str) {
    let _ = reply.send(Reply::Refused { reason: reason.to_owned() });
}
