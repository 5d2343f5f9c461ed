//! Datagrams on their way from the sockets to the engine: what belongs to something under way goes before what wants to
//! begin, so that a flood of first messages delays nobody who was already answered, and costs a look at 19 octets.

use std::collections::VecDeque;

use gdoi_proto::header::HEADER_LEN;
use gdoi_proto::registry::ExchangeType;
use ike::io::Datagram;

/// First messages that wait; what comes on top is dropped, as the network would, and repeated by whoever is honest.
const NEWCOMERS: usize = 2048;
/// Other datagrams that wait; what comes on top stays in the queue of the sockets.
const OTHERS: usize = 2048;
/// Octets of each kind that wait.
const OCTETS: usize = 4 << 20;

/// What was taken from the sockets and not told to the engine yet.
#[derive(Debug, Default)]
pub struct Inbox {
    others: Waiting,
    newcomers: Waiting,
    /// First messages dropped.
    shed: u64,
}

/// Datagrams of one kind.
#[derive(Debug, Default)]
struct Waiting {
    queue: VecDeque<Datagram>,
    octets: usize,
}

impl Waiting {
    /// True while there are fewer than `datagrams`, and not too many octets.
    fn has_room(&self, datagrams: usize) -> bool {
        self.queue.len() < datagrams && self.octets < OCTETS
    }

    fn put(&mut self, datagram: Datagram) {
        self.octets += datagram.octets.len();
        self.queue.push_back(datagram);
    }

    fn take(&mut self) -> Option<Datagram> {
        let datagram = self.queue.pop_front()?;
        self.octets -= datagram.octets.len();
        Some(datagram)
    }
}

/// True for the first message of a phase 1: the responder's cookie is zero (RFC 2408 section 2.5.1).
fn is_first(octets: &[u8]) -> bool {
    let Some(header) = octets.first_chunk::<HEADER_LEN>() else { return false };
    let exchange = ExchangeType::from_number(header[18]);
    header[8..16] == [0; 8] && matches!(exchange, ExchangeType::MainMode | ExchangeType::Aggressive)
}

impl Inbox {
    /// True while more may be taken from the sockets.
    pub fn has_room(&self) -> bool {
        self.others.has_room(OTHERS)
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.others.queue.is_empty() && self.newcomers.queue.is_empty()
    }

    /// First messages dropped so far.
    pub fn shed(&self) -> u64 {
        self.shed
    }

    /// Adds one.
    pub fn put(&mut self, datagram: Datagram) {
        if !is_first(&datagram.octets) {
            self.others.put(datagram);
        } else if self.newcomers.has_room(NEWCOMERS) {
            self.newcomers.put(datagram);
        } else {
            self.shed += 1;
        }
    }

    /// The next one for the engine.
    pub fn take(&mut self) -> Option<Datagram> {
        self.others.take().or_else(|| self.newcomers.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(responder: u8, exchange: u8) -> Datagram {
        let mut octets = vec![7; HEADER_LEN];
        octets[8..16].fill(responder);
        octets[18] = exchange;
        let address = "127.0.0.1:848".parse().unwrap();
        Datagram { local: address, peer: address, octets: octets.into() }
    }

    #[test]
    fn what_is_under_way_passes_what_begins_and_too_many_beginnings_are_dropped() {
        let mut inbox = Inbox::default();
        for _ in 0..NEWCOMERS + 5 {
            inbox.put(datagram(0, 2));
        }
        assert_eq!(inbox.shed(), 5);
        let mut short = datagram(0, 4);
        short.octets = short.octets.slice(..HEADER_LEN - 1);
        for other in [datagram(1, 2), datagram(0, 32), short] {
            inbox.put(other);
        }
        let order: Vec<bool> = std::iter::from_fn(|| inbox.take()).map(|it| is_first(&it.octets)).collect();
        assert_eq!(order.len(), NEWCOMERS + 3);
        assert_eq!(order.iter().position(|first| *first), Some(3));
        assert!(inbox.is_empty() && inbox.has_room());
    }

    #[test]
    fn long_ones_fill_it_sooner() {
        let long = |responder| {
            let mut datagram = datagram(responder, 2);
            datagram.octets = [&datagram.octets[..], &vec![0; 65_000]].concat().into();
            datagram
        };
        let mut inbox = Inbox::default();
        for _ in 0..200 {
            inbox.put(long(0));
        }
        let length = long(0).octets.len();
        assert_eq!(inbox.shed(), 200 - OCTETS.div_ceil(length) as u64);
        while inbox.has_room() {
            inbox.put(long(1));
        }
        assert_eq!(inbox.others.queue.len(), OCTETS.div_ceil(length));
        while inbox.take().is_some() {}
        assert!(inbox.has_room() && (inbox.others.octets, inbox.newcomers.octets) == (0, 0));
    }
}
