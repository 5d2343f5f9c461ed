//! Members of one thread: many addresses behind one socket. Each is the member's ladder and nothing else: main mode,
//! PULL, and acknowledgements; keys are learned but installed nowhere, and phase 1 is forgotten once keys are there.
//!
//! ```text
//! Waiting -> Phase1 -> Pull -> Registered (acknowledges pushes)
//!                 \-------\--> Failed (cause counted)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::GroupId;
use gdoi_proto::registry::ExchangeType;
use gdoi_proto::secret::SecretBytes;
use gm::engine::pull::{Progress, Pull, PullError, Repeat};
use gm::engine::settings::VpnSettings;
use ike::crypto::provider::{Provider, Random, default_provider, run};
use ike::io::{Datagram, Instant};
use ike::phase1::{Ends, Initiator, PeerPolicy, Refusal, Step};
use ike::protect::notify::{self, Informational};
use ike::sa::IkeSa;
use runtime::clock::Clock;
use runtime::incoming::Incoming;
use runtime::udp::{Listen, Sockets};

use super::keys::Keys;
use super::options::LoadArgs;

/// Datagrams that may wait for this thread: a push to each of its members.
const QUEUE: usize = 1 << 18;

/// What a thread did.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Microseconds from message 1 of phase 1 to the keys, one per registration.
    pub registrations: Vec<u32>,
    /// Registrations that failed, by cause.
    pub failures: BTreeMap<String, u64>,
    /// Messages sent again for want of an answer.
    pub repeats: u64,
    /// Distinct pushes.
    pub pushes: u64,
    /// Push datagrams.
    pub datagrams: u64,
    /// Of these, for a member that had acknowledged that push.
    pub copies: u64,
    /// Push datagrams that were not accepted.
    pub refused: u64,
    /// Microseconds from the first datagram of a push to each member's first acknowledgement of it.
    pub acknowledgements: Vec<u32>,
    /// Datagrams dropped here because this thread was behind.
    pub overflowed: u64,
}

struct Member {
    started: Instant,
    /// Ordinal of the last push acknowledged.
    acknowledged: u32,
    /// Key of its leaf, where there is a tree.
    leaf: Option<SecretBytes>,
    state: State,
}

enum State {
    Waiting,
    Phase1(Box<Initiator>),
    Pull(Box<(IkeSa, Pull)>),
    Registered,
    Failed,
}

/// The members of one thread.
pub struct Crowd {
    options: Arc<LoadArgs>,
    number: u32,
    policy: PeerPolicy,
    vpn: Arc<VpnSettings>,
    provider: Arc<dyn Provider>,
    random: Random,
    clock: Clock,
    sockets: Sockets,
    port: u16,
    datagrams: Incoming,
    members: Vec<Member>,
    /// Repeats and the end of patience of those under way.
    timers: BTreeSet<(Instant, usize)>,
    next: usize,
    under_way: usize,
    window: usize,
    keys: Keys,
    tally: Tally,
}

impl Crowd {
    /// Every `options.threads`-th member from `number` on, with its socket.
    ///
    /// # Errors
    /// When the socket or its thread cannot be had.
    pub fn new(
        options: Arc<LoadArgs>,
        number: u32,
        policy: PeerPolicy,
        clock: Clock,
    ) -> Result<Crowd, String> {
        let listen = Listen { address: (Ipv4Addr::UNSPECIFIED, 0).into(), marker: false };
        let mut sockets = Sockets::bind(&[listen]).map_err(|error| error.to_string())?;
        let datagrams = sockets.receive_within(QUEUE).map_err(|error: io::Error| error.to_string())?;
        let port = sockets.addresses().first().map_or(0, SocketAddr::port);
        let count = (options.members.saturating_sub(number)).div_ceil(options.threads);
        let members = (0..count)
            .map(|_| Member { started: Instant(0), acknowledged: 0, leaf: None, state: State::Waiting })
            .collect();
        let provider = default_provider();
        let group = GroupId::number(options.group);
        Ok(Crowd {
            vpn: Arc::new(VpnSettings { name: "load".to_owned(), group, ..VpnSettings::default() }),
            random: Random(Arc::clone(&provider)),
            window: options.window.div_ceil(options.threads) as usize,
            number,
            policy,
            provider,
            clock,
            sockets,
            port,
            datagrams,
            members,
            timers: BTreeSet::new(),
            next: 0,
            under_way: 0,
            keys: Keys::default(),
            tally: Tally::default(),
            options,
        })
    }

    /// Registers every member; what was done so far.
    pub async fn register(&mut self) -> Tally {
        let begin = self.clock.now().at;
        while self.next < self.members.len() || self.under_way > 0 {
            self.start_due(begin);
            let wait = self.wait(begin);
            self.listen(wait).await;
            self.repeat_due();
        }
        self.tally()
    }

    /// Acknowledges pushes for `time`; what was done in all.
    pub async fn acknowledge(&mut self, time: Duration) -> Tally {
        let end = self.clock.now().at + time;
        loop {
            let left = end.since(self.clock.now().at);
            if left.is_zero() {
                return self.tally();
            }
            self.listen(left).await;
        }
    }

    fn tally(&mut self) -> Tally {
        self.tally.pushes = u64::from(self.keys.pushes());
        self.tally.overflowed = self.sockets.counters().overflowed;
        self.tally.clone()
    }

    /// The moment the `slot`-th member may begin, by the rate.
    fn turn(&self, begin: Instant, slot: usize) -> Instant {
        let Some(rate) = std::num::NonZeroU32::new(self.options.rate) else { return begin };
        let place = slot as u64 * u64::from(self.options.threads) + u64::from(self.number);
        begin + Duration::from_micros(place.saturating_mul(1_000_000) / u64::from(rate.get()))
    }

    fn start_due(&mut self, begin: Instant) {
        while self.next < self.members.len()
            && self.under_way < self.window
            && self.turn(begin, self.next) <= self.clock.now().at
        {
            let slot = self.next;
            self.next += 1;
            self.under_way += 1;
            self.start(slot);
        }
    }

    fn wait(&self, begin: Instant) -> Duration {
        let timer = self.timers.first().map(|(at, _)| *at);
        let turn = (self.next < self.members.len() && self.under_way < self.window)
            .then(|| self.turn(begin, self.next));
        let at = match (timer, turn) {
            (Some(timer), Some(turn)) => Some(timer.min(turn)),
            (timer, turn) => timer.or(turn),
        };
        at.map_or(Duration::from_secs(1), |at| at.since(self.clock.now().at))
    }

    async fn listen(&mut self, wait: Duration) {
        let first = match self.datagrams.try_recv() {
            Ok(datagram) => Some(datagram),
            Err(_) => tokio::time::timeout(wait, self.datagrams.recv()).await.ok().flatten(),
        };
        if let Some(datagram) = first {
            self.on_datagram(&datagram);
        }
    }

    fn address(&self, slot: usize) -> Ipv4Addr {
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        self.options.address(slot.saturating_mul(self.options.threads).saturating_add(self.number))
    }

    fn slot(&self, local: SocketAddr) -> Option<usize> {
        let IpAddr::V4(address) = local.ip() else { return None };
        let index = self.options.index(address)?;
        (index % self.options.threads == self.number).then_some((index / self.options.threads) as usize)
    }

    fn send(&self, slot: usize, octets: Bytes) {
        let local = SocketAddr::new(self.address(slot).into(), self.port);
        // A datagram that does not leave is one that got lost.
        let _ = self.sockets.send(&Datagram { local, peer: self.options.server.into(), octets });
    }

    fn start(&mut self, slot: usize) {
        let now = self.clock.now().at;
        let ends = Ends {
            local: SocketAddr::new(self.address(slot).into(), self.port),
            peer: self.options.server.into(),
        };
        let (initiator, steps) = Initiator::start(self.policy.clone(), ends, false, now, &mut self.random);
        self.put(slot, State::Phase1(Box::new(initiator)));
        if let Some(member) = self.members.get_mut(slot) {
            member.started = now;
        }
        self.on_steps(slot, Ok(steps));
    }

    /// Changes a member's state and its timer.
    fn put(&mut self, slot: usize, state: State) {
        if let Some(due) = state.due() {
            self.timers.insert((due, slot));
        }
        if let Some(member) = self.members.get_mut(slot) {
            member.state = state;
        }
    }

    /// Takes a member's state out, and its timer; to be put back.
    fn pull_out(&mut self, slot: usize) -> State {
        let Some(member) = self.members.get_mut(slot) else { return State::Failed };
        let state = std::mem::replace(&mut member.state, State::Failed);
        if let Some(due) = state.due() {
            self.timers.remove(&(due, slot));
        }
        state
    }

    fn fail(&mut self, slot: usize, cause: String) {
        *self.tally.failures.entry(cause).or_default() += 1;
        self.under_way -= 1;
        self.put(slot, State::Failed);
    }

    fn on_datagram(&mut self, datagram: &Datagram) {
        let Some(slot) = self.slot(datagram.local) else { return };
        let Ok(header) = Header::decode(&datagram.octets) else { return };
        match header.exchange {
            ExchangeType::GroupkeyPush => self.on_push(slot, &header, datagram),
            ExchangeType::MainMode => {
                let State::Phase1(mut initiator) = self.pull_out_if(slot, State::is_phase1) else { return };
                let result =
                    initiator.on_message(self.clock.now(), &header, &datagram.octets, &mut self.random);
                self.put(slot, State::Phase1(initiator));
                self.on_steps(slot, result);
            }
            ExchangeType::GroupkeyPull => self.on_pull(slot, &header, &datagram.octets),
            ExchangeType::Informational => self.on_informational(slot, &header, &datagram.octets),
            _ => {}
        }
    }

    /// The state when `wanted`, taken out; else left where it is, and [`State::Waiting`].
    fn pull_out_if(&mut self, slot: usize, wanted: fn(&State) -> bool) -> State {
        match self.members.get(slot) {
            Some(member) if wanted(&member.state) => self.pull_out(slot),
            _ => State::Waiting,
        }
    }

    fn on_steps(&mut self, slot: usize, result: Result<Vec<Step>, Refusal>) {
        let mut steps = match result {
            Ok(steps) => std::collections::VecDeque::from(steps),
            Err(Refusal::Dropped(_)) => return,
            Err(refusal) => {
                self.pull_out(slot);
                return self.fail(slot, format!("phase 1: {refusal}"));
            }
        };
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(octets) => self.send(slot, octets),
                Step::Run(job) => {
                    let done = run(self.provider.as_ref(), job);
                    let State::Phase1(mut initiator) = self.pull_out(slot) else { return };
                    let result = initiator.on_done(self.clock.now(), done, &mut self.random);
                    self.put(slot, State::Phase1(initiator));
                    match result {
                        Ok(more) => steps.extend(more),
                        Err(refusal) => {
                            self.pull_out(slot);
                            return self.fail(slot, format!("phase 1: {refusal}"));
                        }
                    }
                }
                Step::Established(done) => {
                    self.pull_out(slot);
                    let (mut sa, now) = (done.sa, self.clock.now().at);
                    let (pull, first) =
                        Pull::start(Arc::clone(&self.vpn), &mut sa, true, now, &mut self.random);
                    self.put(slot, State::Pull(Box::new((sa, pull))));
                    self.send(slot, first);
                }
            }
        }
    }

    fn on_pull(&mut self, slot: usize, header: &Header, octets: &[u8]) {
        let State::Pull(mut at) = self.pull_out_if(slot, State::is_pull) else { return };
        let now = self.clock.now().at;
        let (sa, pull) = &mut *at;
        match pull.on_message(sa, now, header, octets, &mut self.random) {
            Ok(Progress::Send(third)) => {
                self.put(slot, State::Pull(at));
                self.send(slot, third);
            }
            Ok(Progress::Complete(download)) => match self.keys.learn(*download, now, &mut self.random) {
                Ok(leaf) => {
                    let began = self.members.get(slot).map_or(now, |member| member.started);
                    if let Some(member) = self.members.get_mut(slot) {
                        member.leaf = leaf;
                    }
                    self.tally.registrations.push(micros(now.since(began)));
                    self.under_way -= 1;
                    self.put(slot, State::Registered);
                }
                Err(reason) => self.fail(slot, format!("keys: {reason}")),
            },
            Err(PullError::Dropped(_)) => self.put(slot, State::Pull(at)),
            Err(PullError::Refused(reason)) => self.fail(slot, format!("policy: {reason}")),
        }
    }

    fn on_informational(&mut self, slot: usize, header: &Header, octets: &[u8]) {
        let State::Pull(mut at) = self.pull_out_if(slot, State::is_pull) else { return };
        let said = notify::open(&mut at.0, header, octets).map(|said| said.into_inner()).unwrap_or_default();
        let refused = said.iter().find_map(|said| match said {
            Informational::Notified(kind) => Some(format!("refused by the key server: {kind}")),
            Informational::DeleteIsakmp => Some("the key server deleted phase 1".to_owned()),
            _ => None,
        });
        match refused {
            Some(cause) => self.fail(slot, cause),
            None => self.put(slot, State::Pull(at)),
        }
    }

    fn on_push(&mut self, slot: usize, header: &Header, datagram: &Datagram) {
        self.tally.datagrams += 1;
        if !matches!(self.members.get(slot), Some(Member { state: State::Registered, .. })) {
            return;
        }
        let now = self.clock.now().at;
        let provider = self.provider.as_ref();
        let push = match self.keys.take(provider, header, &datagram.octets, now, &mut self.random) {
            Ok(push) => push,
            Err(_) => {
                self.tally.refused += 1;
                return;
            }
        };
        let leaf = self.members.get(slot).and_then(|member| member.leaf.as_ref());
        if let Some(octets) = self.keys.acknowledgement(&push, datagram.local.ip(), leaf) {
            self.send(slot, octets);
            let Some(member) = self.members.get_mut(slot) else { return };
            if member.acknowledged < push.ordinal {
                member.acknowledged = push.ordinal;
                self.tally.acknowledgements.push(micros(now.since(push.first)));
            } else {
                self.tally.copies += 1;
            }
        }
    }

    /// Repeats what is due; gives up what took too long.
    fn repeat_due(&mut self) {
        let now = self.clock.now().at;
        let patience = Duration::from_secs(u64::from(self.options.patience));
        while let Some((_, slot)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            let began = self.members.get(slot).map_or(now, |member| member.started);
            let over = now.since(began) >= patience;
            match self.pull_out(slot) {
                State::Phase1(initiator) if over => {
                    self.fail(slot, format!("phase 1: no answer in state {}", initiator.state()));
                }
                State::Phase1(mut initiator) => {
                    let result = initiator.on_timeout(now, &mut self.random);
                    self.put(slot, State::Phase1(initiator));
                    self.tally.repeats += 1;
                    self.on_steps(slot, result);
                }
                State::Pull(_) if over => self.fail(slot, "PULL: no answer".to_owned()),
                State::Pull(mut at) => match at.1.on_timeout(now, &mut self.random) {
                    Repeat::Again(octets) => {
                        self.tally.repeats += 1;
                        self.put(slot, State::Pull(at));
                        self.send(slot, octets);
                    }
                    Repeat::Wait => self.put(slot, State::Pull(at)),
                    Repeat::StaleSa | Repeat::GiveUp => self.fail(slot, "PULL: no answer".to_owned()),
                },
                state @ (State::Waiting | State::Registered | State::Failed) => self.put(slot, state),
            }
        }
    }
}

impl State {
    fn due(&self) -> Option<Instant> {
        match self {
            State::Phase1(initiator) => Some(initiator.due()),
            State::Pull(at) => Some(at.1.due()),
            State::Waiting | State::Registered | State::Failed => None,
        }
    }

    fn is_phase1(&self) -> bool {
        matches!(self, State::Phase1(_))
    }

    fn is_pull(&self) -> bool {
        matches!(self, State::Pull(_))
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
