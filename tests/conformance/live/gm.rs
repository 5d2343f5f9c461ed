//! A member on the bench, and the key server's side of phase 1 by hand.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::message::{Dialect, Message, Rules};
use gdoi_proto::payload::{Identification, Payload, Sa};
use gdoi_proto::registry::{ExchangeType, PayloadType};
use gdoi_sim::provider::SeededEntropy;
use gdoi_sim::world::{SERVER, member_address, member_settings};
use gm::engine::GroupMember;
use gm::engine::io::{Input, Output};
use gm::engine::settings::Settings;
use ike::crypto::provider::{Provider, default_provider, run};
use ike::identity::address_identity;
use ike::io::{Datagram, Instant, JobResult, Machine, Now};
use ike::phase1::auth::{Basis, Facts, Proof};
use ike::phase1::messages::{self, Extras, Heard};
use ike::phase1::{PeerPolicy, VENDOR_DPD};
use ike::sa::{IkeSa, Role};

use super::gcks::Gcks;
use super::hand::{Hand, key, key_exchange, sa_body, suite};
use super::{header, only};

/// The engine, its clock, and everything it wanted so far.
pub struct Gm {
    pub engine: GroupMember,
    pub now: Now,
    /// Datagrams that were not looked at yet.
    pub sent: Vec<Datagram>,
    /// Everything it ever sent, with the time.
    pub log: Vec<(Instant, Datagram)>,
    pub events: Vec<Event>,
    /// TEKs handed to the data plane.
    pub installed: usize,
    provider: Arc<dyn Provider>,
}

/// A member of group 1 at 10.1.0.1 that knows one server.
pub fn settings() -> Settings {
    member_settings(0, Dialect::STRICT)
}

pub fn local() -> SocketAddr {
    member_address(0)
}

impl Gm {
    pub fn new() -> Gm {
        Gm::with(settings(), 1)
    }

    /// A member whose phase 1 is by this policy.
    pub fn by(policy: PeerPolicy, seed: u64) -> Gm {
        let mut settings = settings();
        settings.gateways[0].policies = vec![policy];
        Gm::with(settings, seed)
    }

    pub fn with(settings: Settings, seed: u64) -> Gm {
        let now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
        let engine = GroupMember::new(settings, now, Box::new(SeededEntropy::new(seed)));
        let mut gm = Gm {
            engine,
            now,
            sent: Vec::new(),
            log: Vec::new(),
            events: Vec::new(),
            installed: 0,
            provider: default_provider(),
        };
        gm.drain();
        gm
    }

    fn drain(&mut self) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Transmit(datagram) => {
                    self.log.push((self.now.at, datagram.clone()));
                    self.sent.push(datagram);
                }
                Output::Job(request) => {
                    let done = run(self.provider.as_ref(), request.job);
                    self.engine.handle(self.now, Input::Job(JobResult { id: request.id, done }));
                }
                Output::Event(event) => self.events.push(event),
                Output::Install(_) => self.installed += 1,
                Output::Activate { .. }
                | Output::Remove { .. }
                | Output::SenderIds { .. }
                | Output::Route { .. }
                | Output::Listen { .. }
                | Output::Reply { .. } => {}
            }
        }
    }

    pub fn input(&mut self, input: Input) {
        self.engine.handle(self.now, input);
        self.drain();
    }

    /// A datagram arrives from `peer`; what is sent.
    pub fn tell_from(&mut self, peer: SocketAddr, octets: &[u8]) -> Vec<Bytes> {
        let octets = Bytes::copy_from_slice(octets);
        self.input(Input::Datagram(Datagram { local: local(), peer, octets }));
        self.take()
    }

    /// A datagram arrives from the server; what is sent.
    pub fn tell(&mut self, octets: &[u8]) -> Vec<Bytes> {
        self.tell_from(SERVER, octets)
    }

    /// What was sent and not looked at yet.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.sent.drain(..).map(|datagram| datagram.octets).collect()
    }

    /// Lets time pass, stopping at every timer.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now.at + time;
        while let Some(wakeup) = self.engine.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.set(wakeup.at.max(self.now.at));
            self.input(Input::Timeout);
        }
        self.set(end);
    }

    pub fn set(&mut self, at: Instant) {
        self.now = Now { at, unix_seconds: 1_800_000_000 + at.0 / 1_000_000 };
    }

    pub fn count(&self, name: &str) -> usize {
        self.events.iter().filter(|event| event.name() == name).count()
    }
}

/// Carries datagrams between the two until nobody speaks.
pub fn talk(gcks: &mut Gcks, gm: &mut Gm) {
    loop {
        let mut to_gm = gcks.to(local());
        for datagram in std::mem::take(&mut gm.sent) {
            if datagram.peer == SERVER {
                to_gm.extend(gcks.tell(datagram.local, &datagram.octets));
            }
        }
        if to_gm.is_empty() {
            return;
        }
        for octets in to_gm {
            gm.input(Input::Datagram(Datagram { local: local(), peer: SERVER, octets }));
        }
    }
}

/// The SA of a first message.
pub fn offered(first: &[u8]) -> Sa {
    let message = Message::decode(first, Rules::PHASE1_CLEAR).expect("message 1");
    match message.payloads.into_iter().next() {
        Some(Payload::Sa(sa)) => sa,
        other => panic!("{other:?}"),
    }
}

/// CKY-R of the hand.
const COOKIE: Cookie = Cookie([0x77; 8]);

/// Message 2 with this SA.
pub fn second(first: &[u8], sa: Sa) -> Bytes {
    second_by(first, sa, &VENDOR_DPD)
}

/// The same with this vendor ID.
fn second_by(first: &[u8], sa: Sa, vendor: &[u8]) -> Bytes {
    let cookies = CookiePair { responder: COOKIE, ..header(first).cookies };
    let extras = Extras { vendors: vec![vendor.to_vec()], ..Extras::default() };
    messages::clear(ExchangeType::MainMode, cookies, messages::offer(sa, &extras))
}

/// Messages 1 to 5 with a member that has begun; what message 5 said.
pub fn keyed(gm: &mut Gm) -> (Hand, Heard) {
    keyed_by(gm, &VENDOR_DPD)
}

fn keyed_by(gm: &mut Gm, vendor: &[u8]) -> (Hand, Heard) {
    let first = only(gm.take());
    let second = second_by(&first, offered(&first), vendor);
    let third = only(gm.tell(&second));
    let (g_xi, ni) = key_exchange(&third);
    let own = default_provider().dh_generate(suite().group).expect("a key");
    let (g_xr, nr) = (own.public().to_vec(), [0x55; 32]);
    let cookies = header(&second).cookies;
    let payloads = messages::key_exchange(&g_xr, &nr, &[], &Extras::default());
    let fourth = messages::clear(ExchangeType::MainMode, cookies, payloads);
    let fifth = only(gm.tell(&fourth));
    let proof = Proof::new(&Facts {
        exchange: ExchangeType::MainMode,
        suite: suite(),
        cookies,
        basis: Basis::PreSharedKey(&key()),
        ni: &ni,
        nr: &nr,
        g_xi: &g_xi,
        g_xr: &g_xr,
        shared: &own.agree(&g_xi).expect("the member's public value"),
        sai_b: sa_body(&first),
        double_hash: false,
    });
    let iv = proof.first_iv;
    let mut hand =
        Hand { side: Role::Responder, cookies, proof, iv, said: vec![first, second, third, fourth] };
    let heard = hand.open(&fifth);
    (hand, heard)
}

/// A whole phase 1 as responder; the SA and the member's message 1 of a PULL.
pub fn established(gm: &mut Gm) -> (IkeSa, Bytes) {
    established_by(gm, &VENDOR_DPD)
}

/// The same with a server that announces this vendor ID.
pub fn established_by(gm: &mut Gm, vendor: &[u8]) -> (IkeSa, Bytes) {
    let (mut hand, _) = keyed_by(gm, vendor);
    let sixth = hand.prove(&address_identity(SERVER.ip()));
    let first = only(gm.tell(&sixth));
    (hand.sa(), first)
}

/// Aggressive mode up to the member's message 3; what that said.
pub fn aggressive(gm: &mut Gm) -> Heard {
    let first = only(gm.take());
    let message = Message::decode(&first, Rules::PHASE1_CLEAR).expect("message 1");
    let expected = [PayloadType::Sa, PayloadType::Ke, PayloadType::Nonce, PayloadType::Id];
    let heard = Heard::from_payloads(message.payloads, &expected).expect("message 1");
    let (g_xi, ni) = (heard.ke.expect("KE"), heard.nonce.expect("a nonce"));
    let own = default_provider().dh_generate(suite().group).expect("a key");
    let (g_xr, nr) = (own.public().to_vec(), [0x55; 32]);
    let cookies = CookiePair { responder: COOKIE, ..header(&first).cookies };
    let proof = Proof::new(&Facts {
        exchange: ExchangeType::Aggressive,
        suite: suite(),
        cookies,
        basis: Basis::PreSharedKey(&key()),
        ni: &ni,
        nr: &nr,
        g_xi: &g_xi,
        g_xr: &g_xr,
        shared: &own.agree(&g_xi).expect("the member's public value"),
        sai_b: sa_body(&first),
        double_hash: false,
    });
    let id: Identification = address_identity(SERVER.ip());
    let hash = Payload::Hash(proof.hash(Role::Responder, &id).expose().to_vec());
    let payloads = messages::aggressive_second(
        heard.sa.expect("an SA"),
        (&g_xr, &nr),
        &id,
        (&[], &[]),
        &Extras::default(),
        hash,
    );
    let third = gm.tell(&messages::clear(ExchangeType::Aggressive, cookies, payloads)).remove(0);
    proof.open(&proof.first_iv, &header(&third), &third).expect("message 3").0
}
