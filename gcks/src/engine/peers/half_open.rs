//! Negotiations not yet authenticated, within limits that hold when first messages are forged by the thousand.
//!
//! A newcomer over a limit takes the place of the oldest negotiation that has not shown that its peer can receive (return
//! routability: message 3 with our cookie). Those whose offer is known ([`super::offers`]) go first: they come back whole.
//! Addresses that are known keep a part of the table to themselves, so that members come through a flood from the very
//! prefixes that are configured.
//!
//! Deviation: a negotiation younger than [`GRACE`] that would be lost is not evicted, and the newcomer is dropped instead.
//! To evict the oldest always keeps each for as long as the table takes to fill; above a table of forgeries per round trip
//! nobody would ever send message 3 in time. So a retry is admitted with a probability that falls with the rate of the
//! flood, and who is admitted gets through. One member that did is enough for all that offer the same.
//!
//! Every step is a look-up in an ordered table; nothing is searched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::{Cookie, CookiePair};
use ike::io::Instant;
use ike::phase1::{Ends, Responder};

use super::super::settings::{GatewaySettings, Settings};

/// A negotiation is not evicted before: time for a round trip, and for the peer's half of Diffie-Hellman.
pub const GRACE: Duration = Duration::from_millis(500);
/// Octets of first messages that negotiations keep together, about.
const OCTETS: usize = 16 << 20;
/// One in this many places is for known addresses alone.
const RESERVE: usize = 4;

/// One negotiation.
pub struct HalfOpen {
    /// Its state.
    pub responder: Responder,
    /// The statement it came in by.
    pub gateway: Arc<GatewaySettings>,
    /// Where the peer's message 1 came from: what the tables know it by.
    pub first: SocketAddr,
    /// Where the last message that fitted came along, and where answers go: with a NAT on the way the peer floats.
    pub ends: Ends,
    /// Its message 1 without the cookies; empty when it is nothing to remember.
    pub offer: Bytes,
    /// When it is given up.
    pub until: Instant,
    /// Of its message 1, octets.
    size: usize,
    place: Place,
}

impl HalfOpen {
    /// Its address is a configured or a proven one.
    pub fn is_known(&self) -> bool {
        self.place.known
    }
}

/// What is known of a negotiation that begins.
pub struct Newcomer {
    /// The statement it comes in by.
    pub gateway: Arc<GatewaySettings>,
    /// Its address is a configured or a proven one.
    pub known: bool,
    /// Its message 1 without the cookies; empty when it is nothing to remember.
    pub offer: Bytes,
    /// Its cookie brings it back: evicted, it loses nothing.
    pub recallable: bool,
    /// Octets of its message 1.
    pub size: usize,
}

/// Where a negotiation stands in the tables.
#[derive(Clone, Copy)]
struct Place {
    /// Its age: negotiations are numbered as they come.
    number: u64,
    started: Instant,
    known: bool,
    recallable: bool,
    /// The peer answered a message of ours once.
    returned: bool,
}

impl Place {
    /// Its queue among those that did not return.
    fn queue(self) -> usize {
        match (self.known, self.recallable) {
            (false, true) => 0,
            (false, false) => 1,
            (true, _) => 2,
        }
    }
}

/// Whether a newcomer may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// No limit is reached.
    Free,
    /// One is; this negotiation has to go.
    Instead(CookiePair),
    /// One is, and nothing may be evicted.
    None,
}

/// All negotiations.
pub struct HalfOpenTable {
    limit: usize,
    limit_per_source: usize,
    timeout: Duration,
    table: BTreeMap<CookiePair, Box<HalfOpen>>,
    by_first: BTreeMap<(Cookie, SocketAddr), CookiePair>,
    per_source: BTreeMap<IpAddr, usize>,
    /// Of the others.
    strangers: usize,
    /// Octets of all first messages.
    octets: usize,
    next: u64,
    /// Those that did not return, oldest first: of strangers that lose nothing, of other strangers, of known addresses.
    silent: [BTreeMap<u64, CookiePair>; 3],
    /// The same by source.
    silent_here: BTreeSet<(IpAddr, u64)>,
}

/// What counts as one source: an IPv4 address, or an IPv6 /64.
fn source(peer: SocketAddr) -> IpAddr {
    match peer.ip() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
        address => address,
    }
}

impl HalfOpenTable {
    /// An empty table.
    pub fn new(settings: &Settings) -> HalfOpenTable {
        HalfOpenTable {
            limit: settings.half_open_limit,
            limit_per_source: settings.half_open_limit_per_address,
            timeout: settings.half_open_timeout,
            table: BTreeMap::new(),
            by_first: BTreeMap::new(),
            per_source: BTreeMap::new(),
            strangers: 0,
            octets: 0,
            next: 0,
            silent: [const { BTreeMap::new() }; 3],
            silent_here: BTreeSet::new(),
        }
    }

    /// Other limits, for what comes from now on.
    pub fn set_limits(&mut self, settings: &Settings) {
        self.limit = settings.half_open_limit;
        self.limit_per_source = settings.half_open_limit_per_address;
        self.timeout = settings.half_open_timeout;
    }

    /// Those whose gateway is `wanted`.
    pub fn where_gateway(&self, wanted: impl Fn(&str) -> bool) -> Vec<CookiePair> {
        let found = self.table.iter().filter(|(_, half)| wanted(&half.gateway.name));
        found.map(|(cookies, _)| *cookies).collect()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// True when the pair names one.
    pub fn contains(&self, cookies: &CookiePair) -> bool {
        self.table.contains_key(cookies)
    }

    /// One by its cookies.
    pub fn get(&self, cookies: &CookiePair) -> Option<&HalfOpen> {
        self.table.get(cookies).map(Box::as_ref)
    }

    /// One by its cookies; [`HalfOpenTable::settle`] is due when a message changed it.
    pub fn get_mut(&mut self, cookies: &CookiePair) -> Option<&mut HalfOpen> {
        self.table.get_mut(cookies).map(Box::as_mut)
    }

    /// One by its initiator's cookie and address: all that message 1 has.
    pub fn by_first(&self, initiator: Cookie, peer: SocketAddr) -> Option<CookiePair> {
        self.by_first.get(&(initiator, peer)).copied()
    }

    /// Whether there is room for `peer` at `now`. `known`: its address is a configured or a proven one. `returned`: it
    /// answered us; then nobody who did not has a grace.
    pub fn room(&self, now: Instant, peer: SocketAddr, known: bool, returned: bool) -> Room {
        let source = source(peer);
        let grace = if returned { Duration::ZERO } else { GRACE };
        let [whole, strangers, acquainted] = &self.silent;
        let victim = if self.per_source.get(&source).is_some_and(|here| *here >= self.limit_per_source) {
            let oldest = self.silent_here.range((source, 0)..=(source, u64::MAX)).next();
            oldest.and_then(|(_, number)| {
                let whole = whole.get(number).map(|cookies| (*cookies, Duration::ZERO));
                whole.or_else(|| Some((*strangers.get(number).or_else(|| acquainted.get(number))?, grace)))
            })
        } else if self.len() < self.limit
            && self.octets < OCTETS
            && (known || self.strangers < self.limit - self.limit / RESERVE)
        {
            return Room::Free;
        } else {
            // Strangers give way to the known at once.
            let wait = if known { Duration::ZERO } else { grace };
            let first = |queue: &BTreeMap<u64, CookiePair>| queue.first_key_value().map(|(_, it)| *it);
            let whole = first(whole).map(|cookies| (cookies, Duration::ZERO));
            let stranger = || first(strangers).map(|cookies| (cookies, wait));
            let acquainted = || first(acquainted).filter(|_| known).map(|cookies| (cookies, grace));
            whole.or_else(stranger).or_else(acquainted)
        };
        let ripe = |(cookies, wait): &(CookiePair, Duration)| {
            self.table.get(cookies).is_some_and(|half| now.since(half.place.started) >= *wait)
        };
        victim.filter(ripe).map_or(Room::None, |(cookies, _)| Room::Instead(cookies))
    }

    /// Adds one that found room; when it is given up.
    pub fn insert(&mut self, now: Instant, ends: Ends, responder: Responder, newcomer: Newcomer) -> Instant {
        let Newcomer { gateway, known, offer, recallable, size } = newcomer;
        let cookies = responder.cookies();
        let (number, until, first) = (self.next, now + self.timeout, ends.peer);
        self.next += 1;
        let place = Place { number, started: now, known, recallable, returned: false };
        self.by_first.insert((cookies.initiator, first), cookies);
        *self.per_source.entry(source(first)).or_default() += 1;
        self.strangers += usize::from(!known);
        self.octets += size;
        self.silent_at(place).insert(number, cookies);
        self.silent_here.insert((source(first), number));
        self.table.insert(
            cookies,
            Box::new(HalfOpen { responder, gateway, first, ends, offer, until, size, place }),
        );
        until
    }

    fn silent_at(&mut self, place: Place) -> &mut BTreeMap<u64, CookiePair> {
        &mut self.silent[place.queue()]
    }

    /// Notes whether the peer showed that it can receive: once it did, it is not evicted. True when it just did.
    pub fn settle(&mut self, cookies: &CookiePair) -> bool {
        let Some(half) = self.table.get_mut(cookies) else { return false };
        let settles = half.responder.returned() && !half.place.returned;
        if settles {
            half.place.returned = true;
            let (place, source) = (half.place, source(half.first));
            self.silent_at(place).remove(&place.number);
            self.silent_here.remove(&(source, place.number));
        }
        settles
    }

    /// Takes one out.
    pub fn remove(&mut self, cookies: &CookiePair) -> Option<Box<HalfOpen>> {
        let half = self.table.remove(cookies)?;
        let (place, source) = (half.place, source(half.first));
        self.by_first.remove(&(cookies.initiator, half.first));
        self.silent_at(place).remove(&place.number);
        self.silent_here.remove(&(source, place.number));
        self.strangers -= usize::from(!place.known);
        self.octets -= half.size;
        if let Some(count) = self.per_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.per_source.remove(&source);
            }
        }
        Some(half)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_source_is_a_64_and_an_ipv4_source_an_address() {
        let source = |text: &str| source(text.parse().unwrap()).to_string();
        assert_eq!(source("[2001:db8::1:2:3:4]:848"), "2001:db8::");
        assert_eq!(source("192.0.2.7:848"), "192.0.2.7");
    }
}
