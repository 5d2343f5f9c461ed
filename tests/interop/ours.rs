//! Our own end of a phase 1 on a socket, as initiator or as responder, and what is said under its SA.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use gdoi_proto::header::Header;
use gdoi_proto::ids::Cookie;
use gdoi_proto::message::Dialect;
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::registry::{ExchangeType, IdType, NotifyType};
use ike::crypto::provider::{self, Done, Provider, Random, default_provider};
use ike::identity::IdentityRule;
use ike::phase1::{
    Credentials, Ends, FirstAggressive, Initiator, Mode, Offer, PeerPolicy, Refusal, Responder, Step,
};
use ike::protect::notify::{self, Informational};
use ike::sa::IkeSa;
use runtime::clock::Clock;

use crate::ground::{self, Cell, OURS, SOON};

/// A socket of ours, connected to the peer.
pub struct Ours {
    socket: UdpSocket,
    dialect: Dialect,
    clock: Clock,
    random: Random,
    provider: Arc<dyn Provider>,
}

impl Ours {
    pub fn new(local: SocketAddr, peer: SocketAddr, dialect: Dialect) -> Ours {
        let socket = UdpSocket::bind(local).expect("a socket");
        socket.connect(peer).expect("a peer");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        let provider = default_provider();
        Ours { socket, dialect, clock: Clock::start(), random: Random(Arc::clone(&provider)), provider }
    }

    fn receive(&self) -> Option<(Header, Vec<u8>)> {
        let mut octets = vec![0; 65536];
        let length = self.socket.recv(&mut octets).ok()?;
        octets.truncate(length);
        Some((Header::decode(&octets).ok()?, octets))
    }

    fn ends(&self) -> Result<Ends, String> {
        let said = |address: std::io::Result<SocketAddr>| address.map_err(|error| error.to_string());
        Ok(Ends { local: said(self.socket.local_addr())?, peer: said(self.socket.peer_addr())? })
    }

    fn policy(&self, cell: &Cell, credentials: &Credentials) -> PeerPolicy {
        let identity = |name: &str| Identification {
            id_type: IdType::Fqdn,
            protocol: 0,
            port: 0,
            data: name.as_bytes().to_vec(),
        };
        PeerPolicy {
            mode: cell.mode,
            offers: vec![Offer { suite: cell.suite(), lifetime: Duration::from_secs(3600) }],
            credentials: credentials.clone(),
            local_identity: Some(identity(OURS)),
            remote: vec![IdentityRule::Exactly { id_type: IdType::Fqdn, data: cell.identity().into_bytes() }],
            nat_traversal: false,
            fragmentation: false,
            dialect: self.dialect,
        }
    }

    /// Forgets what came for an earlier SA.
    pub fn forget(&self) {
        while self.receive().is_some() {}
    }

    /// Does what a phase 1 wants, and what follows from that; its SA once it is established.
    fn work(
        &mut self,
        steps: Vec<Step>,
        mut on_done: impl FnMut(Done, &Clock, &mut Random) -> Result<Vec<Step>, String>,
    ) -> Result<Option<IkeSa>, String> {
        let mut steps = VecDeque::from(steps);
        let mut sa = None;
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(octets) => drop(self.socket.send(&octets)),
                Step::Run(job) => {
                    let done = provider::run(self.provider.as_ref(), job);
                    steps.extend(on_done(done, &self.clock, &mut self.random)?);
                }
                Step::Established(it) => sa = Some(it.sa),
            }
        }
        Ok(sa)
    }

    /// Phase 1 that we begin.
    pub fn ask(&mut self, cell: &Cell, credentials: &Credentials) -> Result<IkeSa, String> {
        self.forget();
        let (policy, ends, now) = (self.policy(cell, credentials), self.ends()?, self.clock.now());
        let (mut phase1, mut steps) = Initiator::start(policy, ends, false, now.at, &mut self.random);
        let (end, mut refused) = (now.at + SOON, Vec::new());
        while self.clock.now().at < end {
            let on_done = |done, clock: &Clock, random: &mut Random| {
                let more = phase1.on_done(clock.now(), done, random);
                more.map_err(|error| format!("in {}: {error}", phase1.state()))
            };
            if let Some(sa) = self.work(steps, on_done)? {
                return Ok(sa);
            }
            let now = self.clock.now();
            let more = match self.receive() {
                Some((header, octets)) if header.exchange == cell.mode.exchange() => {
                    phase1.on_message(now, &header, &octets, &mut self.random)
                }
                Some((header, octets)) => phase1.on_informational(now, &header, &octets).map(|()| Vec::new()),
                None => phase1.on_timeout(now.at, &mut self.random),
            };
            steps = match more {
                Ok(more) => more,
                Err(Refusal::Dropped(reason)) => {
                    refused.push(reason);
                    Vec::new()
                }
                Err(error) => return Err(format!("in {}: {error}", phase1.state())),
            };
        }
        Err(format!("nothing after {}; dropped: {}", phase1.state(), refused.join("; ")))
    }

    /// Phase 1 that the peer begins.
    pub fn answer(&mut self, cell: &Cell, credentials: &Credentials) -> Result<IkeSa, String> {
        let (policy, ends) = (Arc::new(self.policy(cell, credentials)), self.ends()?);
        let (end, mut refused) = (self.clock.now().at + SOON, Vec::new());
        let mut phase1: Option<Responder> = None;
        while self.clock.now().at < end {
            let Some((header, octets)) = self.receive() else { continue };
            if header.exchange != cell.mode.exchange() {
                continue;
            }
            let now = self.clock.now();
            let heard = match &mut phase1 {
                Some(phase1) => phase1.on_message(now, ends, &header, &octets, &mut self.random),
                None => {
                    let (policy, cookie) = (Arc::clone(&policy), Cookie([7; 8]));
                    let started = match cell.mode {
                        Mode::Main => Responder::start(policy, cookie, ends, &header, &octets),
                        Mode::Aggressive => FirstAggressive::read(&header, &octets).and_then(|first| {
                            Responder::start_aggressive(policy, cookie, ends, first, &mut self.random)
                        }),
                    };
                    started.map(|(started, steps)| {
                        phase1 = Some(started);
                        steps
                    })
                }
            };
            let steps = match (heard, &phase1) {
                (Ok(steps), _) => steps,
                (Err(Refusal::Dropped(reason)), _) => {
                    refused.push(reason);
                    continue;
                }
                (Err(error), it) => {
                    return Err(format!("in {}: {error}", it.as_ref().map_or("message 1", Responder::state)));
                }
            };
            let Some(phase1) = &mut phase1 else { continue };
            let on_done = |done, clock: &Clock, random: &mut Random| {
                let more = phase1.on_done(clock.now(), done, random);
                more.map_err(|error| format!("in {}: {error}", phase1.state()))
            };
            if let Some(sa) = self.work(steps, on_done)? {
                return Ok(sa);
            }
        }
        let state = phase1.as_ref().map_or("no first message", Responder::state);
        Err(format!("nothing after {state}; dropped: {}", refused.join("; ")))
    }

    fn say(&mut self, sa: &mut IkeSa, payload: Payload) -> bool {
        let octets = notify::seal(sa, &[payload], &mut self.random);
        self.socket.send(&octets).is_ok()
    }

    /// Waits for `wanted` under `sa`, answers R-U-THERE, and calls `again` while nothing comes: a read waits 200 ms.
    fn hears(
        &mut self,
        sa: &mut IkeSa,
        wanted: &Informational,
        mut again: impl FnMut(&UdpSocket),
    ) -> Result<(), String> {
        let mut said = Vec::new();
        let heard = ground::soon(|| {
            again(&self.socket);
            while let Some((header, octets)) = self.receive() {
                if header.exchange != ExchangeType::Informational {
                    continue;
                }
                match notify::open(sa, &header, &octets) {
                    Ok(opened) => said.extend(opened.into_inner()),
                    Err(error) => println!("    not opened: {error}"),
                }
                if let Some(Informational::RUThere(number)) = said.last() {
                    let answer = notify::dpd(sa.cookies, NotifyType::RUThereAck, *number);
                    self.say(sa, answer);
                }
                if said.contains(wanted) {
                    return true;
                }
            }
            false
        });
        if heard { Ok(()) } else { Err(format!("no {wanted:?}; heard {said:?}")) }
    }

    /// R-U-THERE is acknowledged.
    pub fn is_answered(&mut self, sa: &mut IkeSa) -> Result<(), String> {
        let number = 4711;
        let question = notify::dpd(sa.cookies, NotifyType::RUThere, number);
        let question = notify::seal(sa, &[question], &mut self.random);
        self.hears(sa, &Informational::RUThereAck(number), |socket| drop(socket.send(&question)))
    }

    /// Ends the SA.
    pub fn delete(&mut self, sa: &mut IkeSa) -> Result<(), String> {
        let delete = notify::delete_isakmp(sa.cookies);
        if self.say(sa, delete) { Ok(()) } else { Err("DELETE was not sent".to_owned()) }
    }

    /// The peer ends the SA.
    pub fn hears_delete(&mut self, sa: &mut IkeSa) -> Result<(), String> {
        self.hears(sa, &Informational::DeleteIsakmp, |_| ())
    }
}
