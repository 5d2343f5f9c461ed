//! A network that loses, doubles and reorders, by seed.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ike::io::{Datagram, Instant};

use crate::provider::SeededEntropy;

/// How bad the network is. Percentages are per datagram.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Lost.
    pub loss_percent: u64,
    /// Delivered twice.
    pub duplication_percent: u64,
    /// Delayed by up to ten times the latency, so that others overtake.
    pub reorder_percent: u64,
    /// One way.
    pub latency: Duration,
}

impl Weather {
    /// Nothing bad, 5 ms.
    pub const FAIR: Weather = Weather {
        loss_percent: 0,
        duplication_percent: 0,
        reorder_percent: 0,
        latency: Duration::from_millis(5),
    };

    /// Every evil at `percent`.
    pub const fn bad(percent: u64) -> Weather {
        Weather {
            loss_percent: percent,
            duplication_percent: percent,
            reorder_percent: percent,
            latency: Duration::from_millis(5),
        }
    }
}

/// Datagrams under way, `local` and `peer` already from the receiver's point of view.
#[derive(Debug)]
pub struct Network {
    /// May be changed at any time.
    pub weather: Weather,
    entropy: SeededEntropy,
    under_way: BTreeMap<(Instant, u64), (SocketAddr, Datagram)>,
    cut: BTreeSet<IpAddr>,
    count: u64,
}

impl Network {
    /// A quiet network.
    pub fn new(weather: Weather, seed: u64) -> Network {
        Network {
            weather,
            entropy: SeededEntropy::new(seed),
            under_way: BTreeMap::new(),
            cut: BTreeSet::new(),
            count: 0,
        }
    }

    /// Nothing reaches or leaves this address any more.
    pub fn cut(&mut self, address: IpAddr) {
        self.cut.insert(address);
    }

    /// Undoes [`Network::cut`].
    pub fn mend(&mut self, address: IpAddr) {
        self.cut.remove(&address);
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.entropy.below(100) < percent
    }

    /// Takes a datagram from its sender; true when it will arrive at least once.
    pub fn send(&mut self, now: Instant, sent: Datagram) -> bool {
        let to = sent.peer;
        self.send_to(now, to, sent)
    }

    /// The same for one who hears a multicast group: `to`.
    pub fn send_to(&mut self, now: Instant, to: SocketAddr, sent: Datagram) -> bool {
        if self.cut.contains(&sent.local.ip()) || self.cut.contains(&to.ip()) {
            return false;
        }
        let received = Datagram { local: sent.peer, peer: sent.local, octets: sent.octets };
        let copies = if self.chance(self.weather.loss_percent) {
            0
        } else if self.chance(self.weather.duplication_percent) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let late = self.chance(self.weather.reorder_percent);
            let extra = if late { self.entropy.below(10) } else { 0 };
            self.count += 1;
            let at = now + self.weather.latency * (1 + extra as u32);
            self.under_way.insert((at, self.count), (to, received.clone()));
        }
        copies > 0
    }

    /// When the next datagram arrives.
    pub fn next(&self) -> Option<Instant> {
        self.under_way.keys().next().map(|(at, _)| *at)
    }

    /// The next datagram that has arrived by `now`, and where.
    pub fn arrive(&mut self, now: Instant) -> Option<(SocketAddr, Datagram)> {
        let key = *self.under_way.keys().next().filter(|(at, _)| *at <= now)?;
        self.under_way.remove(&key)
    }
}
