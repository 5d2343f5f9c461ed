//! A key server on the bench.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gcks::engine::KeyServer;
use gcks::engine::io::{Command, Input, Output};
use gcks::engine::settings::Settings;
use gdoi_proto::message::Dialect;
use gdoi_sim::provider::SeededEntropy;
use gdoi_sim::world::{GROUP, SERVER, Timing, server_settings};
use ike::crypto::provider::{Provider, default_provider, run};
use ike::io::{Datagram, Entropy, Instant, JobResult, Machine, Now};
use ike::phase1::PeerPolicy;

/// The engine, its clock, and everything it wanted so far.
pub struct Gcks {
    pub engine: KeyServer,
    pub now: Now,
    pub sent: Vec<Datagram>,
    pub events: Vec<Event>,
    /// Asymmetric work it asked for, by name.
    pub jobs: Vec<String>,
    provider: Arc<dyn Provider>,
}

/// One group with keys, members from 10.1.0.0/16, identities by address.
pub fn settings() -> Settings {
    server_settings(Timing::USUAL, Dialect::STRICT, true)
}

impl Gcks {
    pub fn new() -> Gcks {
        Gcks::with(settings())
    }

    pub fn with(settings: Settings) -> Gcks {
        Gcks::random(settings, Box::new(SeededEntropy::new(1)))
    }

    /// A server whose phase 1 is by this policy.
    pub fn by(policy: PeerPolicy) -> Gcks {
        let mut settings = settings();
        settings.gateways[0].policy = Arc::new(policy);
        Gcks::with(settings)
    }

    /// A server with randomness of the test's choice.
    pub fn random(settings: Settings, entropy: Box<dyn Entropy>) -> Gcks {
        let now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
        let engine = KeyServer::new(settings, Vec::new(), now, entropy).expect("no rows");
        let (sent, events, jobs) = (Vec::new(), Vec::new(), Vec::new());
        let mut gcks = Gcks { engine, now, sent, events, jobs, provider: default_provider() };
        gcks.drain();
        gcks
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Transmit(datagram) => self.sent.push(datagram),
                Output::Multicast { .. } => {}
                Output::Fanout { octets, to } => {
                    self.sent.extend(to.into_iter().map(|(local, peer)| Datagram {
                        local,
                        peer,
                        octets: octets.clone(),
                    }))
                }
                Output::Job(request) => {
                    let name = format!("{:?}", request.job);
                    self.jobs.push(name.split([' ', '(', '{']).next().unwrap_or_default().to_owned());
                    let done = run(self.provider.as_ref(), request.job);
                    self.engine.handle(self.now, Input::Job(JobResult { id: request.id, done }));
                }
                Output::Event(event) => self.events.push(event),
                Output::Persist(_) | Output::Reply { .. } => {}
            }
        }
    }

    /// A datagram arrives; what is sent back to its sender.
    pub fn tell(&mut self, peer: SocketAddr, octets: &[u8]) -> Vec<Bytes> {
        let octets = Bytes::copy_from_slice(octets);
        self.engine.handle(self.now, Input::Datagram(Datagram { local: SERVER, peer, octets }));
        self.drain();
        self.to(peer)
    }

    /// What was sent to `peer` and not looked at yet.
    pub fn to(&mut self, peer: SocketAddr) -> Vec<Bytes> {
        let (mine, others) = std::mem::take(&mut self.sent).into_iter().partition(|it| it.peer == peer);
        self.sent = others;
        let mine: Vec<Datagram> = mine;
        mine.into_iter().map(|datagram| datagram.octets).collect()
    }

    /// Lets time pass, stopping at every timer.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.at + time;
        while let Some(wakeup) = self.engine.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.set(wakeup.at.max(self.now.at));
            self.engine.handle(self.now, Input::Timeout);
            self.drain();
        }
        self.set(end);
    }

    pub fn set(&mut self, at: Instant) {
        self.now = Now { at, unix_seconds: 1_800_000_000 + at.0 / 1_000_000 };
    }

    /// New TEKs, and a new KEK when asked for.
    pub fn rekey(&mut self, kek: bool) {
        let command = Command::Rekey { group: GROUP.to_owned(), tek: true, kek };
        self.engine.handle(self.now, Input::Command { ticket: 1, command });
        self.drain();
    }

    /// Events of this name so far.
    pub fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }

    /// Negotiations under way and SAs.
    pub fn peers(&self) -> (usize, usize) {
        (self.engine.peers().half_open(), self.engine.peers().established().count())
    }

    pub fn members(&self) -> usize {
        self.engine.groups()[GROUP].members().count()
    }

    /// Its randomness, for what tests seal.
    pub fn entropy(&self) -> SeededEntropy {
        SeededEntropy::new(self.now.at.0)
    }
}
