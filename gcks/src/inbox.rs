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

/// What was taken from the sockets and not told to the engine yet.
#[derive(Debug, Default)]
pub struct Inbox {
    others: VecDeque<Datagram>,
    newcomers: VecDeque<Datagram>,
    /// First messages dropped.
    shed: u64,
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
        self.others.len() < OTHERS
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.others.is_empty() && self.newcomers.is_empty()
    }

    /// First messages dropped so far.
    pub fn shed(&self) -> u64 {
        self.shed
    }

    /// Adds one.
    pub fn put(&mut self, datagram: Datagram) {
        if !is_first(&datagram.octets) {
            self.others.push_back(datagram);
        } else if self.newcomers.len() < NEWCOMERS {
            self.newcomers.push_back(datagram);
        } else {
            self.shed += 1;
        }
    }

    /// The next one for the engine.
    pub fn take(&mut self) -> Option<Datagram> {
        self.others.pop_front().or_else(|| self.newcomers.pop_front())
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
}
