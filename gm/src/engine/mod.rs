//! The member's engine: one VPN per joined group, one phase 1 per key server; dispatch by exchange type. No I/O.
//!
//! Where to look: `servers.rs` phase 1 and who runs under it, `path.rs` the NAT on the way, `pull.rs` the four messages of a
//! registration, `vpn.rs` which server is asked when, `push.rs` what a rekey does, `keyring.rs` when a key encrypts and when
//! it goes, `probe.rs` what traffic under unknown keys leads to, `change.rs` what a changed configuration does.

pub mod accept;
pub mod change;
mod doubts;
pub mod io;
pub mod kek;
pub mod keyring;
pub mod lkh;
pub mod path;
pub mod probe;
pub mod pull;
pub mod push;
pub mod servers;
pub mod settings;
mod snapshot;
mod terms;
#[cfg(test)]
mod testing;
pub mod vpn;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use ctl::event::Event;
use ctl::observe::MemberStatistics;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{Cookie, KekSpi, Spi};
use gdoi_proto::registry::ExchangeType;
use gdoi_proto::secret::SecretBytes;
use ike::crypto::provider::Job;
use ike::fragment::is_fragment;
use ike::io::{Datagram, Entropy, JobId, JobRequest, JobResult, Machine, Now, Wakeup};

use io::{Command, Input, Output};
use keyring::Limit;
use probe::Trigger;
use servers::{Letters, News, Server, ServerName};
use settings::Settings;
use vpn::Vpn;

/// The group member.
pub struct GroupMember {
    servers: BTreeMap<ServerName, Server>,
    vpns: BTreeMap<String, Vpn>,
    stopped: bool,
    approved_only: bool,
    entropy: Box<dyn Entropy>,
    out: Outputs,
}

/// What one step works with.
pub struct Cx<'a> {
    /// Both clocks.
    pub now: Now,
    /// Randomness.
    pub entropy: &'a mut dyn Entropy,
    /// Where wishes go.
    pub out: &'a mut Outputs,
}

/// Whose job it is.
#[derive(Debug, Clone)]
pub enum Owner {
    /// A negotiation.
    Server(ServerName, Cookie),
    /// A PUSH of a VPN.
    Push(String),
}

/// Wishes collected, and what all parts of the member count together.
#[derive(Debug, Default)]
pub struct Outputs {
    queue: VecDeque<Output>,
    jobs: BTreeMap<JobId, Owner>,
    next_job: u64,
    contacted: BTreeSet<String>,
    /// Counters of the whole member.
    pub statistics: MemberStatistics,
}

impl Outputs {
    /// Wants `output`.
    pub fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    /// Sends.
    pub fn transmit(&mut self, datagram: Datagram) {
        self.push(Output::Transmit(datagram));
    }

    /// Tells.
    pub fn event(&mut self, event: Event) {
        self.push(Output::Event(event));
    }

    /// Counts and tells a message that got no answer.
    pub fn dropped(&mut self, peer: SocketAddr, reason: String) {
        self.statistics.messages_dropped += 1;
        self.event(Event::MessageDropped { peer: peer.to_string(), reason });
    }

    /// Asks for asymmetric work.
    pub fn request(&mut self, owner: Owner, job: Job) -> JobId {
        self.next_job += 1;
        let id = JobId(self.next_job);
        self.jobs.insert(id, owner);
        self.push(Output::Job(JobRequest { id, job }));
        id
    }

    /// True while no server of the gateway was reached since the start.
    pub fn first_contact(&self, gateway: &str) -> bool {
        !self.contacted.contains(gateway)
    }

    /// A server of the gateway was reached.
    pub fn contacted(&mut self, gateway: &str) {
        self.contacted.insert(gateway.to_owned());
    }
}

impl GroupMember {
    /// A member that begins to register at once: what it wants is polled as usual. A VPN whose gateway does not exist or has
    /// no server stays unregistered.
    pub fn new(settings: Settings, now: Now, entropy: Box<dyn Entropy>) -> GroupMember {
        let mut servers = BTreeMap::new();
        for gateway in &settings.gateways {
            servers.extend(change::servers_of(gateway).map(|server| (server.name().clone(), server)));
        }
        let mut vpns = BTreeMap::new();
        for vpn in settings.vpns {
            if let Some(gateway) = settings.gateways.iter().find(|gateway| gateway.name == vpn.gateway) {
                vpns.insert(vpn.name.clone(), Vpn::new(vpn, gateway));
            }
        }
        let approved_only = settings.approved_only;
        let mut member =
            GroupMember { servers, vpns, stopped: false, approved_only, entropy, out: Outputs::default() };
        let names: Vec<String> = member.vpns.keys().cloned().collect();
        for name in names {
            member.register(now, &name);
        }
        member
    }

    /// `unregistered`, `registering`, `registered` or `expired`; `unknown` for a VPN that is not configured.
    pub fn state(&self, vpn: &str) -> &'static str {
        self.vpns.get(vpn).map_or("unknown", Vpn::state)
    }

    /// The VPNs by name.
    pub fn vpns(&self) -> &BTreeMap<String, Vpn> {
        &self.vpns
    }

    /// Encryption keys of the installed TEKs, oldest first: for comparing two ends in tests.
    pub fn installed(&self, vpn: &str) -> Vec<(Spi, SecretBytes)> {
        let teks = self.vpns.get(vpn).map(|vpn| vpn.keyring.teks()).unwrap_or_default();
        teks.iter().map(|tek| (tek.policy.spi, tek.key.encryption.clone())).collect()
    }

    /// Runs one step with everything it needs borrowed apart.
    fn step<T>(
        &mut self,
        now: Now,
        run: impl FnOnce(&mut BTreeMap<ServerName, Server>, &mut BTreeMap<String, Vpn>, &mut Cx<'_>) -> T,
    ) -> T {
        let mut cx = Cx { now, entropy: self.entropy.as_mut(), out: &mut self.out };
        run(&mut self.servers, &mut self.vpns, &mut cx)
    }

    fn register(&mut self, now: Now, name: &str) {
        let index = self.step(now, |_, vpns, cx| vpns.get_mut(name).and_then(|vpn| vpn.begin(cx)));
        self.ask(now, name, index);
    }

    /// Lets a VPN register with a server of its gateway.
    fn ask(&mut self, now: Now, name: &str, index: Option<usize>) {
        let Some(index) = index else { return };
        let asked = self.step(now, |servers, vpns, cx| {
            let settings = vpns.get(name)?.settings.clone();
            let server = (settings.gateway.clone(), index);
            let letters = servers.get_mut(&server)?.register(&settings, cx);
            Some((server, letters))
        });
        if let Some((server, letters)) = asked {
            self.deliver(now, server, letters);
        }
    }

    /// Carries a server's news to its VPNs, and what follows from them.
    fn deliver(&mut self, now: Now, server: ServerName, letters: Letters) {
        for (name, news) in letters {
            if !self.vpns.get(&name).is_some_and(|vpn| vpn.tries(server.1)) {
                continue;
            }
            match news {
                News::Keys(download) => {
                    let refused = self.step(now, |servers, vpns, cx| {
                        let (vpn, from) = (vpns.get_mut(&name)?, servers.get_mut(&server)?);
                        let reason = vpn.on_keys(*download, from.local.ip(), cx).err()?;
                        Some(from.policy_refused(name.clone(), reason, cx))
                    });
                    if let Some(letters) = refused {
                        self.deliver(now, server.clone(), letters);
                    }
                }
                News::Failed { reason, kind } => {
                    let next =
                        self.step(now, |_, vpns, cx| vpns.get_mut(&name)?.on_failed(&reason, kind, cx));
                    self.ask(now, &name, next);
                }
            }
        }
    }

    fn at_server(
        &mut self,
        now: Now,
        name: ServerName,
        run: impl FnOnce(&mut Server, &mut Cx<'_>) -> Letters,
    ) {
        let letters = self.step(now, |servers, _, cx| servers.get_mut(&name).map(|server| run(server, cx)));
        self.deliver(now, name, letters.unwrap_or_default());
    }

    fn at_vpn(&mut self, now: Now, name: &str, run: impl FnOnce(&mut Vpn, &mut Cx<'_>)) {
        self.step(now, |_, vpns, cx| {
            if let Some(vpn) = vpns.get_mut(name) {
                run(vpn, cx);
            }
        });
    }

    fn on_datagram(&mut self, now: Now, datagram: &Datagram) {
        let octets = datagram.octets.as_ref();
        let header = match Header::decode(octets) {
            Ok(header) => header,
            Err(error) => return self.out.dropped(datagram.peer, error.to_string()),
        };
        let cookie = header.cookies.initiator;
        let from = |server: &&Server| {
            let under = server.negotiating().or(server.sa().map(|sa| sa.cookies.initiator));
            server.peer.ip() == datagram.peer.ip() && under == Some(cookie)
        };
        if is_fragment(&header) {
            let Some(name) = self.find_server(from) else {
                return self.out.dropped(datagram.peer, "a fragment of no negotiation".to_owned());
            };
            let take = |servers: &mut BTreeMap<ServerName, Server>, cx: &mut Cx<'_>| {
                servers.get_mut(&name).and_then(|server| server.on_fragment(octets, cx))
            };
            if let Some(octets) = self.step(now, |servers, _, cx| take(servers, cx)) {
                self.on_datagram(now, &Datagram { octets, ..datagram.clone() });
            }
            return;
        }
        match header.exchange {
            ExchangeType::MainMode | ExchangeType::Aggressive => match self.find_server(from) {
                Some(name) => self.at_server(now, name, |server, cx| server.on_phase1(&header, octets, cx)),
                None => self.out.dropped(datagram.peer, "no such negotiation".to_owned()),
            },
            ExchangeType::Informational if !header.flags.encrypted() => {
                let cookie = Some(header.cookies.initiator);
                let asked = |server: &&Server| server.peer == datagram.peer && server.negotiating() == cookie;
                match self.find_server(asked) {
                    Some(name) => self.at_server(now, name, |server, cx| {
                        server.on_clear_informational(octets, cx);
                        Letters::new()
                    }),
                    None => {
                        let reason = "an informational message in clear proves nothing";
                        self.out.dropped(datagram.peer, reason.to_owned());
                    }
                }
            }
            ExchangeType::Informational | ExchangeType::GroupkeyPull => {
                let under = |server: &&Server| server.sa().is_some_and(|sa| sa.cookies == header.cookies);
                let pull = header.exchange == ExchangeType::GroupkeyPull;
                let cookie = Some(header.cookies.initiator);
                let early = |server: &&Server| {
                    !pull && server.peer.ip() == datagram.peer.ip() && server.negotiating() == cookie
                };
                match (self.find_server(under), self.find_server(early)) {
                    (Some(name), _) => self.at_server(now, name, |server, cx| match pull {
                        true => server.on_pull(&header, octets, cx),
                        false => server.on_informational(&header, octets, cx),
                    }),
                    (None, Some(name)) => self.at_server(now, name, |server, cx| {
                        server.on_early_informational(&header, octets, cx)
                    }),
                    (None, None) => self.out.dropped(datagram.peer, "no such phase 1".to_owned()),
                }
            }
            ExchangeType::GroupkeyPush => {
                let spi = KekSpi::from(header.cookies);
                let known = self.step(now, |_, vpns, cx| {
                    let ours = |vpn: &&mut Vpn| {
                        vpn.keyring.find_kek(spi).is_some() || vpn.pushes.knows(&datagram.octets)
                    };
                    vpns.values_mut().find(ours).map(|vpn| vpn.on_push(datagram, &header, cx)).is_some()
                });
                if !known {
                    self.out.dropped(datagram.peer, "a push under an unknown KEK".to_owned());
                }
            }
            ExchangeType::Base
            | ExchangeType::AuthenticationOnly
            | ExchangeType::GroupkeyPushAck
            | ExchangeType::Other(_) => {
                self.out.dropped(datagram.peer, format!("exchange {} is not for a member", header.exchange));
            }
        }
    }

    fn find_server(&self, wanted: impl Fn(&&Server) -> bool) -> Option<ServerName> {
        self.servers.iter().find(|(_, server)| wanted(server)).map(|(name, _)| name.clone())
    }

    fn on_job(&mut self, now: Now, result: JobResult) {
        match self.out.jobs.remove(&result.id) {
            Some(Owner::Server(name, cookie)) => {
                self.at_server(now, name, |server, cx| server.on_done(cookie, result.done, cx));
            }
            Some(Owner::Push(name)) => self.step(now, |_, vpns, cx| {
                if let Some(vpn) = vpns.get_mut(&name) {
                    vpn.on_verified(result.id, result.done, cx);
                }
            }),
            None => {}
        }
    }

    fn on_timeout(&mut self, now: Now) {
        let due = |wakeup: Option<Wakeup>| wakeup.is_some_and(|wakeup| wakeup.at <= now.at);
        let servers: Vec<ServerName> = self
            .servers
            .iter()
            .filter(|(_, server)| due(server.poll_timeout()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in servers {
            self.at_server(now, name, |server, cx| server.on_timeout(cx));
        }
        let vpns: Vec<String> = self
            .vpns
            .iter()
            .filter(|(_, vpn)| due(vpn.poll_timeout()))
            .map(|(name, _)| name.clone())
            .collect();
        for name in vpns {
            let index = self.step(now, |_, vpns, cx| vpns.get_mut(&name).and_then(|vpn| vpn.on_timeout(cx)));
            self.ask(now, &name, index);
        }
    }

    fn on_command(&mut self, now: Now, ticket: u64, command: Command) {
        let Command::Register { vpn } = command;
        let names: Vec<String> = match vpn {
            Some(name) => vec![name],
            None => self.vpns.keys().cloned().collect(),
        };
        let unknown = names.iter().find(|name| !self.vpns.contains_key(*name));
        let result = match unknown {
            Some(name) => Err(format!("no vpn {name}")),
            None => {
                let busy = names.iter().filter(|name| self.vpns[*name].is_trying()).count();
                names.iter().for_each(|name| self.register(now, name));
                Ok(format!("{} vpns register, {busy} of them already did", names.len()))
            }
        };
        self.out.push(Output::Reply { ticket, result });
    }

    fn stop(&mut self, now: Now) {
        self.stopped = true;
        self.step(now, |servers, _, cx| {
            servers.values_mut().for_each(|server| server.stop("the member stops", cx));
        });
    }
}

impl Machine for GroupMember {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input) {
        if self.stopped {
            return;
        }
        self.on_input(now, input);
        for vpn in self.vpns.values_mut() {
            vpn.listen(&mut self.out);
        }
    }

    fn poll(&mut self) -> Option<Output> {
        self.out.queue.pop_front()
    }

    fn poll_timeout(&self) -> Option<Wakeup> {
        if self.stopped {
            return None;
        }
        let servers = self.servers.values().map(Server::poll_timeout).fold(None, Wakeup::earlier);
        self.vpns.values().map(Vpn::poll_timeout).fold(servers, Wakeup::earlier)
    }
}

impl GroupMember {
    fn on_input(&mut self, now: Now, input: Input) {
        match input {
            Input::Datagram(datagram) => self.on_datagram(now, &datagram),
            Input::Timeout => self.on_timeout(now),
            Input::Job(result) => self.on_job(now, result),
            Input::Route { server, locals } => {
                self.at_server(now, server, |server, cx| server.on_route(locals, cx));
            }
            Input::UnknownSpi { vpn, spi } => self.step(now, |_, vpns, cx| {
                let meant =
                    vpns.values_mut().filter(|known| vpn.as_deref().is_none_or(|it| it == known.name()));
                meant.for_each(|known| known.on_unknown_spi(spi, cx));
            }),
            Input::OutboundWithoutInbound { vpn } => self.at_vpn(now, &vpn, |vpn, cx| {
                vpn.on_trouble(Trigger::OutboundWithoutInbound, cx);
            }),
            Input::InboundAgain { vpn } => self.at_vpn(now, &vpn, |vpn, _| {
                vpn.on_recovery(Trigger::OutboundWithoutInbound);
            }),
            Input::SoftLimit { vpn, spi } => {
                self.at_vpn(now, &vpn, |vpn, cx| vpn.on_limit(spi, Limit::Soft, cx));
            }
            Input::Spent { vpn, spi } => {
                self.at_vpn(now, &vpn, |vpn, cx| vpn.on_limit(spi, Limit::Spent, cx));
            }
            Input::Command { ticket, command } => self.on_command(now, ticket, command),
            Input::Apply(settings) => self.apply(now, &settings),
            Input::Stop => self.stop(now),
        }
    }
}
