//! Peers that fail to prove who they are, told at a level that operators see: a wrong pre-shared key is the first mistake
//! of every installation. Once per gateway and minute, because whoever reaches the port can cause it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ike::io::Instant;

/// Time between two complaints about a gateway.
const INTERVAL: Duration = Duration::from_secs(60);

/// When each gateway was complained about last, and what failed last. No larger than the configuration.
#[derive(Debug, Default)]
pub struct Complaints {
    last: BTreeMap<String, Instant>,
    failures: BTreeMap<String, (Instant, SocketAddr, String)>,
}

impl Complaints {
    /// True when peers of this gateway may be complained about now; then it counts.
    pub fn take(&mut self, gateway: &str, now: Instant) -> bool {
        if self.last.get(gateway).is_some_and(|last| now.since(*last) < INTERVAL) {
            return false;
        }
        self.last.insert(gateway.to_owned(), now);
        true
    }

    /// Remembers a failure for who asks why.
    pub fn note(&mut self, gateway: &str, now: Instant, peer: SocketAddr, reason: &str) {
        self.failures.insert(gateway.to_owned(), (now, peer, reason.to_owned()));
    }

    /// The last failure with a gateway: when, with whom, why.
    pub fn failure(&self, gateway: &str) -> Option<(Instant, SocketAddr, &str)> {
        self.failures.get(gateway).map(|(at, peer, reason)| (*at, *peer, reason.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gateway_is_complained_about_once_a_minute() {
        let mut complaints = Complaints::default();
        let at = |seconds: u64| Instant(seconds * 1_000_000);
        assert!(complaints.take("a", at(5)) && complaints.take("b", at(6)));
        assert!(
            !complaints.take("a", at(64)) && complaints.take("a", at(65)) && !complaints.take("b", at(65))
        );
    }
}
