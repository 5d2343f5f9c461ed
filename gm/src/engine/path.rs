//! The way to a key server: where it begins, where it goes on when a NAT is found, and keeping that NAT awake. Our ends of
//! it come from the route, anew for each phase 1.
//!
//! ```text
//! first (848 -> 848) --a NAT is found--> float (4500 -> 4500) --phase 1 is up, we are behind it--> 0xFF every 20 s
//! ```
//!
//! The next phase 1 begins at the first ends again. Keep-alives go on after the ISAKMP SA ended, since pushes come through
//! the same mapping (RFC 3948 section 4), and end with the next phase 1 that finds no NAT before us.
//!
//! Deviation: a member that is not behind a NAT does not follow a key server whose address changes (RFC 3947 section 7):
//! its configuration says where that is.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ike::io::{Datagram, Instant, Wakeup};
use ike::phase1::nat::{KEEPALIVE, PORT};
use ike::phase1::{Behind, Ends};

use super::io::Locals;

/// Silence before a keep-alive (RFC 3948 section 4).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// The way to one key server.
#[derive(Debug)]
pub struct Path {
    server: SocketAddr,
    locals: Locals,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    ends: Ends,
    due: Instant,
}

impl Path {
    /// A way to `server`, whose address and port are those of the configuration.
    pub fn new(server: SocketAddr, locals: Locals) -> Path {
        Path { server, locals, kept: None }
    }

    /// The next phase 1 has these ends on our side. What keeps the mapping of the last one goes on.
    pub fn route(&mut self, locals: Locals) {
        self.locals = locals;
    }

    /// The server as the configuration names it.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Where a phase 1 begins.
    pub fn first(&self) -> Ends {
        Ends { local: self.locals.first, peer: self.server }
    }

    /// True when it could go on elsewhere: only then NAT traversal is announced.
    pub fn can_float(&self) -> bool {
        self.locals.float.is_some()
    }

    /// Where it goes on, when that is elsewhere.
    pub fn floats(&self, here: Ends, nat: Behind) -> Option<Ends> {
        let float = Ends { local: self.locals.float?, peer: SocketAddr::new(self.server.ip(), PORT) };
        (nat.any() && here == self.first() && float != here).then_some(float)
    }

    /// A phase 1 is up along `ends`.
    pub fn established(&mut self, ends: Ends, nat: Behind, now: Instant) {
        self.kept = nat.ours.then(|| Kept { ends, due: now + KEEPALIVE_INTERVAL });
    }

    /// Something else was sent to the server: that keeps the mapping too.
    pub fn sent(&mut self, along: Ends, now: Instant) {
        if let Some(kept) = self.kept.as_mut().filter(|kept| kept.ends == along) {
            kept.due = now + KEEPALIVE_INTERVAL;
        }
    }

    /// When [`Path::keepalive`] is due.
    pub fn due(&self) -> Option<Wakeup> {
        self.kept.as_ref().map(|kept| Wakeup { at: kept.due, why: "NAT keep-alive" })
    }

    /// A keep-alive, when one is due.
    pub fn keepalive(&mut self, now: Instant) -> Option<Datagram> {
        let kept = self.kept.as_mut().filter(|kept| kept.due <= now)?;
        kept.due = now + KEEPALIVE_INTERVAL;
        let Ends { local, peer } = kept.ends;
        Some(Datagram { local, peer, octets: Bytes::from_static(&KEEPALIVE) })
    }

    /// Nothing comes through any more.
    pub fn stop(&mut self) {
        self.kept = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(port: u16) -> Ends {
        Ends { local: ([10, 0, 0, 5], port).into(), peer: ([192, 0, 2, 1], port).into() }
    }

    fn second(second: u64) -> Instant {
        Instant(second * 1_000_000)
    }

    fn path(float: Option<Ends>) -> Path {
        let Ends { local, peer } = ends(848);
        Path::new(peer, Locals { first: local, float: float.map(|ends| ends.local) })
    }

    const INSIDE: Behind = Behind { ours: true, theirs: false };

    #[test]
    fn the_way_floats_once_and_only_with_nat_traversal() {
        let path = path(Some(ends(4500)));
        assert_eq!(path.floats(ends(848), Behind::default()), None);
        assert_eq!(path.floats(ends(848), INSIDE), Some(ends(4500)));
        assert_eq!(path.floats(ends(4500), INSIDE), None, "it is there");
        assert!(path.can_float() && !self::path(None).can_float());
        assert_eq!(self::path(None).floats(ends(848), INSIDE), None);
    }

    #[test]
    fn only_silence_of_20_s_behind_our_own_nat_needs_a_keepalive() {
        let mut path = path(Some(ends(4500)));
        path.established(ends(4500), Behind { ours: false, theirs: true }, second(0));
        assert!(path.due().is_none());
        path.established(ends(4500), INSIDE, second(0));
        path.sent(ends(4500), second(15));
        path.sent(ends(848), second(16));
        assert_eq!(path.due().unwrap().at, second(35), "848 is another mapping");
        assert!(path.keepalive(second(34)).is_none());
        let kept = path.keepalive(second(35)).unwrap();
        assert_eq!((kept.local.port(), kept.peer.port(), kept.octets.as_ref()), (4500, 4500, &[0xff][..]));
        assert_eq!(path.due().unwrap().at, second(55));
        let elsewhere: SocketAddr = ([10, 0, 0, 6], 848).into();
        path.route(Locals { first: elsewhere, float: None });
        assert_eq!(
            (path.first().local, path.due().unwrap().at),
            (elsewhere, second(55)),
            "pushes still come"
        );
        path.stop();
        assert!(path.due().is_none() && path.keepalive(second(100)).is_none());
    }
}
