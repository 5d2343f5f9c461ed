//! A whole member in virtual time, and key servers that obey the test: silent, refusing, or with keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::header::{Flags, Header};
use gdoi_proto::ids::{Cookie, CookiePair, MessageId, SenderId, Spi};
use gdoi_proto::message::Message;
use gdoi_proto::payload::Payload;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet, SenderIds};
use gdoi_proto::registry::{ExchangeType, NotifyType, PayloadType};
use ike::crypto::provider::{Provider, default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::io::{Datagram, Entropy, Instant, JobResult, Machine, Now};
use ike::phase1::{Ends, Offer, PeerPolicy, Responder, Step};
use ike::protect::notify::{self, Informational};
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;

use super::super::GroupMember;
use super::super::io::{Input, Locals, Output};
use super::super::settings::{GatewaySettings, Settings, VpnSettings};
use super::{MEMBER, peer_policy, policy, tek, tek_key, vpn_settings};

/// Entropy that never says the same twice.
pub struct Counting(pub u64);

impl Entropy for Counting {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&(self.0 ^ self.0 >> 29).to_be_bytes()[..chunk.len()]);
        }
    }
}

/// How a server takes phase 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It is away.
    Silent,
    /// NO-PROPOSAL-CHOSEN in clear.
    NoProposal,
    /// It does not answer message 5.
    DeafToProofs,
    /// It serves.
    Serves,
}

/// A key server.
pub struct KeyServer {
    /// How it takes phase 1.
    pub manner: Manner,
    /// Groups it refuses with INVALID-ID-INFORMATION.
    pub refuses: BTreeSet<u32>,
    /// Message 3 is not answered: PULLs stay open.
    pub holds_keys: bool,
    /// So many messages of PULLs go unheard yet.
    pub deaf_to_pulls: usize,
    /// An older TEK of the same flow lives this long yet, s.
    pub leaving: Option<u32>,
    /// No route leads to it at the start.
    pub routeless: bool,
    /// SPI of the TEK of group 0.
    pub first_spi: u32,
    /// TEK life, s.
    pub life: u32,
    /// Groups whose PULL was completed, in order.
    pub served: Vec<u32>,
    /// Most PULLs that were open at a time.
    pub most_open: usize,
    /// Questions whether it is there, answered or not.
    pub asked: usize,
    address: SocketAddr,
    half_open: BTreeMap<CookiePair, Responder>,
    sas: BTreeMap<CookiePair, IkeSa>,
    pulls: BTreeMap<MessageId, Served>,
    entropy: Counting,
}

struct Served {
    exchange: Exchange,
    group: u32,
    ni: Vec<u8>,
    policy: GroupPolicy,
    answers: BTreeMap<Bytes, Bytes>,
    done: bool,
}

const NR: [u8; 32] = [8; 32];

/// A policy for negotiations that happen.
pub fn working_policy() -> PeerPolicy {
    let suite = Suite {
        cipher: Cipher::Aes128Cbc,
        hash: Hash::Sha256,
        group: DhGroup::Ecp256,
        method: AuthMethod::PreSharedKey,
    };
    PeerPolicy { offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }], ..peer_policy() }
}

impl KeyServer {
    fn new(address: SocketAddr, manner: Manner) -> KeyServer {
        KeyServer {
            manner,
            refuses: BTreeSet::new(),
            holds_keys: false,
            deaf_to_pulls: 0,
            leaving: None,
            routeless: false,
            first_spi: 300,
            life: 3600,
            served: Vec::new(),
            most_open: 0,
            asked: 0,
            address,
            half_open: BTreeMap::new(),
            sas: BTreeMap::new(),
            pulls: BTreeMap::new(),
            entropy: Counting(u64::from(address.port()) + 17),
        }
    }

    fn on_datagram(&mut self, now: Now, octets: &Bytes, provider: &dyn Provider) -> Vec<Bytes> {
        let header = Header::decode(octets).expect("a header");
        match (header.exchange, self.manner) {
            (ExchangeType::Informational, _) => self.on_informational(&header, octets),
            (_, Manner::Silent) => Vec::new(),
            (ExchangeType::MainMode, Manner::NoProposal) => vec![no_proposal(&header)],
            (ExchangeType::MainMode, Manner::DeafToProofs) if header.flags.encrypted() => Vec::new(),
            (ExchangeType::MainMode, _) => self.on_main(now, &header, octets, provider),
            (ExchangeType::GroupkeyPull, _) => self.on_pull(&header, octets).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn on_main(&mut self, now: Now, header: &Header, octets: &[u8], provider: &dyn Provider) -> Vec<Bytes> {
        let ends = Ends { local: self.address, peer: MEMBER.parse().expect("an address") };
        let mut name = header.cookies;
        let mut steps: VecDeque<Step> = if name.responder.is_zero() {
            let cookie = Cookie(self.entropy.array());
            let started = Responder::start(Arc::new(working_policy()), cookie, ends, header, octets);
            let (responder, steps) = started.expect("a first message");
            name = responder.cookies();
            self.half_open.insert(name, responder);
            steps.into()
        } else {
            let Some(responder) = self.half_open.get_mut(&name) else { return Vec::new() };
            responder.on_message(now, ends, header, octets, &mut self.entropy).expect("a good message").into()
        };
        let mut answers = Vec::new();
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(octets) => answers.push(octets),
                Step::Run(job) => {
                    let done = run(provider, job);
                    let responder = self.half_open.get_mut(&name).expect("under way");
                    steps.extend(responder.on_done(now, done, &mut self.entropy).expect("a result"));
                }
                Step::Established(done) => {
                    self.sas.insert(name, done.sa);
                    self.half_open.remove(&name);
                }
            }
        }
        answers
    }

    fn on_pull(&mut self, header: &Header, octets: &Bytes) -> Option<Bytes> {
        let sa = self.sas.get_mut(&header.cookies)?;
        if self.deaf_to_pulls > 0 {
            self.deaf_to_pulls -= 1;
            return None;
        }
        if let Some(pull) = self.pulls.get_mut(&header.message_id) {
            if let Some(answer) = pull.answers.get(octets) {
                return Some(answer.clone());
            }
            let mut exchange = pull.exchange.clone();
            exchange.open(sa, header, octets, &[&pull.ni, &NR]).expect("message 3");
            if self.holds_keys {
                return None;
            }
            pull.exchange = exchange;
            pull.done = true;
            self.served.push(pull.group);
            let keys = KeySet {
                teks: pull.policy.teks.iter().map(|tek| (tek.spi, tek_key(tek.spi.0))).collect(),
                sender_ids: Some(SenderIds { bits: 16, values: vec![SenderId(self.served.len() as u32)] }),
                ..KeySet::default()
            };
            let kd = Payload::Kd(keys.write(&pull.policy));
            let answer = pull.exchange.seal(sa, &[&pull.ni, &NR], &[kd]);
            pull.answers.insert(octets.clone(), answer.clone());
            return Some(answer);
        }
        let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, header.message_id);
        let opened = exchange.open(sa, header, octets, &[]).expect("message 1").into_inner();
        let [Payload::Nonce(ni), Payload::Id(id)] = &opened[..] else { panic!("{opened:?}") };
        let group = u32::from_be_bytes(id.data.as_slice().try_into().expect("a number"));
        if self.refuses.contains(&group) {
            let refused = notify::notification(sa.cookies, NotifyType::InvalidIdInformation);
            return Some(notify::seal(sa, &[refused], &mut self.entropy));
        }
        let leaving = self.leaving.map(|life| tek(self.first_spi - 1, life));
        let teks = leaving.into_iter().chain([tek(self.first_spi + group, self.life)]).collect();
        let policy = policy(None, teks);
        let offer = [Payload::Nonce(NR.to_vec()), Payload::GdoiSa(policy.write(Carriage::Pull))];
        let answer = exchange.seal(sa, &[ni], &offer);
        let answers = BTreeMap::from([(octets.clone(), answer.clone())]);
        let pull = Served { exchange, group, ni: ni.clone(), policy, answers, done: false };
        self.pulls.insert(header.message_id, pull);
        self.most_open = self.most_open.max(self.pulls.values().filter(|pull| !pull.done).count());
        Some(answer)
    }

    /// It starts anew: no SA, and other keys.
    pub fn restart(&mut self, first_spi: u32) {
        self.half_open.clear();
        self.sas.clear();
        self.pulls.clear();
        self.first_spi = first_spi;
    }

    /// Dead-peer detection: a silent server hears the question and says nothing.
    fn on_informational(&mut self, header: &Header, octets: &Bytes) -> Vec<Bytes> {
        let Some(sa) = self.sas.get_mut(&header.cookies) else { return Vec::new() };
        let said = notify::open(sa, header, octets).expect("protected").into_inner();
        let mut answers = Vec::new();
        for said in said {
            let Informational::RUThere(number) = said else { continue };
            self.asked += 1;
            if self.manner == Manner::Serves {
                let answer = notify::dpd(sa.cookies, NotifyType::RUThereAck, number);
                answers.push(notify::seal(sa, &[answer], &mut self.entropy));
            }
        }
        answers
    }

    /// RESPONDER-LIFETIME under every SA.
    pub fn tell_life(&mut self, seconds: u16) -> Vec<Bytes> {
        let tell = |sa: &mut IkeSa| {
            let told = notify::notification(sa.cookies, NotifyType::ResponderLifetime);
            let Payload::Notify(mut told) = told else { panic!("a notification") };
            let [high, low] = seconds.to_be_bytes();
            told.data = vec![0x80, 11, 0, 1, 0x80, 12, high, low];
            notify::seal(sa, &[Payload::Notify(told)], &mut self.entropy)
        };
        self.sas.values_mut().map(tell).collect()
    }

    /// Ends every SA; the Deletes it says so with.
    pub fn delete_sas(&mut self) -> Vec<Bytes> {
        let sas = std::mem::take(&mut self.sas).into_values();
        sas.map(|mut sa| {
            let delete = notify::delete_isakmp(sa.cookies);
            notify::seal(&mut sa, &[delete], &mut self.entropy)
        })
        .collect()
    }
}

fn no_proposal(header: &Header) -> Bytes {
    let cookies = CookiePair { initiator: header.cookies.initiator, responder: Cookie([9; 8]) };
    let header = Header {
        cookies,
        next: PayloadType::None,
        exchange: ExchangeType::Informational,
        flags: Flags::NONE,
        message_id: MessageId(7),
        length: 0,
    };
    let refused = notify::notification(cookies, NotifyType::NoProposalChosen);
    Message { header, payloads: vec![refused] }.encode().into()
}

/// A member and its key servers.
pub struct Site {
    /// The member.
    pub member: GroupMember,
    /// Both clocks.
    pub now: Now,
    /// Key servers in the order of the configuration.
    pub servers: Vec<KeyServer>,
    /// Events with their moments.
    pub events: Vec<(Instant, Event)>,
    /// First messages of phase 1 without repeats: the moment and the index of the server.
    pub knocks: Vec<(Instant, usize)>,
    /// New Sender-IDs of installed TEKs, in order.
    pub sender_ids: Vec<(Spi, u32)>,
    /// TEKs taken from the data plane, in order.
    pub removed: Vec<Spi>,
    /// The configuration it was made with.
    pub settings: Settings,
    /// Servers without a route.
    pub no_route: BTreeSet<usize>,
    last_knock: Option<Bytes>,
    provider: Arc<dyn Provider>,
}

/// Address of key server `index`.
pub fn server_address(index: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1 + index as u8], 848))
}

/// A VPN `v01`, `v02` … for group 1, 2 …
pub fn vpn(number: u32) -> VpnSettings {
    VpnSettings {
        name: format!("v{number:02}"),
        group: gdoi_proto::ids::GroupId::number(number),
        ..vpn_settings()
    }
}

impl Site {
    /// A member of these VPNs that just started, and its key servers.
    pub fn new(vpns: Vec<VpnSettings>, manners: &[Manner]) -> Site {
        Site::started(vpns, manners, |_| ())
    }

    /// The same; the servers are prepared before the member starts.
    pub fn started(
        vpns: Vec<VpnSettings>,
        manners: &[Manner],
        prepare: impl FnOnce(&mut Vec<KeyServer>),
    ) -> Site {
        Site::watched(vpns, manners, prepare, None)
    }

    /// The same; the member asks whether its servers are there.
    pub fn watched(
        vpns: Vec<VpnSettings>,
        manners: &[Manner],
        prepare: impl FnOnce(&mut Vec<KeyServer>),
        dead_peer_detection: Option<ike::dpd::Settings>,
    ) -> Site {
        let servers = manners.iter().enumerate();
        let mut servers: Vec<KeyServer> =
            servers.map(|(index, manner)| KeyServer::new(server_address(index), *manner)).collect();
        prepare(&mut servers);
        let gateway = GatewaySettings {
            name: "servers".to_owned(),
            servers: servers.iter().map(|server| server.address).collect(),
            ask_route: true,
            policies: vec![working_policy()],
            dead_peer_detection,
            ..GatewaySettings::default()
        };
        let now = Now { at: Instant(1_000_000), unix_seconds: 1_800_000_000 };
        let no_route = servers.iter().enumerate().filter(|(_, server)| server.routeless);
        let no_route = no_route.map(|(index, _)| index).collect();
        let settings = Settings { gateways: vec![gateway], vpns, ..Settings::default() };
        let mut site = Site {
            member: GroupMember::new(settings.clone(), now, Box::new(Counting(1))),
            now,
            servers,
            events: Vec::new(),
            knocks: Vec::new(),
            sender_ids: Vec::new(),
            removed: Vec::new(),
            settings,
            no_route,
            last_knock: None,
            provider: default_provider(),
        };
        site.settle();
        site
    }

    /// Tells the member and carries out what follows.
    pub fn tell(&mut self, input: Input) {
        self.member.handle(self.now, input);
        self.settle();
    }

    /// A datagram of server `index`.
    pub fn hear(&mut self, index: usize, octets: Bytes) {
        let local = MEMBER.parse().expect("an address");
        self.tell(Input::Datagram(Datagram { local, peer: server_address(index), octets }));
    }

    fn settle(&mut self) {
        let mut inputs: VecDeque<Input> = VecDeque::new();
        loop {
            while let Some(output) = self.member.poll() {
                match output {
                    Output::Transmit(datagram) => self.carry(datagram, &mut inputs),
                    Output::Job(request) => {
                        let done = run(self.provider.as_ref(), request.job);
                        inputs.push_back(Input::Job(JobResult { id: request.id, done }));
                    }
                    Output::Route { server, peer, .. } => {
                        let first = MEMBER.parse().expect("an address");
                        let index = self.servers.iter().position(|known| known.address == peer);
                        let locals = match self.no_route.contains(&index.expect("a server")) {
                            true => Err(format!("no route to key server {peer}")),
                            false => Ok(Locals { first, float: None }),
                        };
                        inputs.push_back(Input::Route { server, locals });
                    }
                    Output::SenderIds { spi, sender_ids, .. } => {
                        self.sender_ids.push((spi, sender_ids.values[0].0));
                    }
                    Output::Remove { spi, .. } => self.removed.push(spi),
                    Output::Event(event) => self.events.push((self.now.at, event)),
                    _ => {}
                }
            }
            let Some(input) = inputs.pop_front() else { break };
            self.member.handle(self.now, input);
        }
    }

    fn carry(&mut self, datagram: Datagram, inputs: &mut VecDeque<Input>) {
        let found = self.servers.iter().position(|server| server.address == datagram.peer);
        let Some(index) = found else { return };
        let header = Header::decode(&datagram.octets).expect("a header");
        if header.exchange == ExchangeType::MainMode && header.cookies.responder.is_zero() {
            let again = self.last_knock.replace(datagram.octets.clone());
            if again.as_ref() != Some(&datagram.octets) {
                self.knocks.push((self.now.at, index));
            }
        }
        let answers = self.servers[index].on_datagram(self.now, &datagram.octets, self.provider.as_ref());
        let (local, peer) = (datagram.local, datagram.peer);
        inputs.extend(answers.into_iter().map(|octets| Input::Datagram(Datagram { local, peer, octets })));
    }

    /// Lets time pass, stopping at every timer.
    pub fn pass(&mut self, seconds: u64) {
        let end = self.now.at + Duration::from_secs(seconds);
        while let Some(wakeup) = self.member.poll_timeout().filter(|wakeup| wakeup.at <= end) {
            self.now.at = wakeup.at.max(self.now.at);
            self.tell(Input::Timeout);
        }
        self.now.at = end;
    }

    /// Events of a name, as lines.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let named = self.events.iter().filter(|(_, event)| event.name() == name);
        named.map(|(_, event)| event.to_string()).collect()
    }

    /// State of every VPN, in the order of names.
    pub fn states(&self) -> Vec<&'static str> {
        self.member.vpns().values().map(super::super::vpn::Vpn::state).collect()
    }

    /// The first message of phase 1 sent last.
    pub fn last_knock(&self) -> Bytes {
        self.last_knock.clone().expect("the member knocked")
    }

    /// What server 0 answers to a first message.
    pub fn answer_knock(&mut self, knock: &Bytes) -> Vec<Bytes> {
        self.servers[0].on_datagram(self.now, knock, self.provider.as_ref())
    }

    /// NO-PROPOSAL-CHOSEN in clear about a first message.
    pub fn no_proposal(knock: &Bytes) -> Bytes {
        no_proposal(&Header::decode(knock).expect("a header"))
    }
}
