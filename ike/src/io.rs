//! The engine contract: time and randomness come in as arguments, effects go out as values.

use std::fmt;
use std::net::SocketAddr;
use std::ops::{Add, Sub};
use std::time::Duration;

use bytes::Bytes;

use crate::crypto::provider::{Done, Job};

/// A point on a clock that never goes back: microseconds since the shell started. Not wall time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(pub u64);

impl Instant {
    /// Time since `earlier`, zero when it is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, rhs: Duration) -> Instant {
        Instant(self.0.saturating_sub(u64::try_from(rhs.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// Both clocks at one moment. Timers run on `at`; `unix_seconds` is only for what leaves the process: stored
/// expiries, certificates, logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Monotonic.
    pub at: Instant,
    /// Wall clock, seconds since 1970. It may jump.
    pub unix_seconds: u64,
}

/// A UDP payload with the addresses it came from or goes to. `local` is the socket's own address.
#[derive(Clone, PartialEq, Eq)]
pub struct Datagram {
    /// Our address and port.
    pub local: SocketAddr,
    /// The other side's.
    pub peer: SocketAddr,
    /// ISAKMP from its first octet; a non-ESP marker is the shell's business.
    pub octets: Bytes,
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} <-> {} ({} octets)", self.local, self.peer, self.octets.len())
    }
}

/// When a machine wants to be handled again, and why: the log can say why it woke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wakeup {
    /// The moment.
    pub at: Instant,
    /// The timer's name.
    pub why: &'static str,
}

impl Wakeup {
    /// The earlier of two wake-ups.
    pub fn earlier(a: Option<Wakeup>, b: Option<Wakeup>) -> Option<Wakeup> {
        match (a, b) {
            (Some(a), Some(b)) => Some(if b.at < a.at { b } else { a }),
            (a, b) => a.or(b),
        }
    }
}

/// A source of random octets for cookies, nonces, message IDs and keys.
pub trait Entropy: Send {
    /// Fills `out` with octets fit for keys.
    fn fill(&mut self, out: &mut [u8]);

    /// A random array.
    fn array<const N: usize>(&mut self) -> [u8; N]
    where
        Self: Sized,
    {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

/// Names a [`Job`] so that its result finds the way back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct JobId(pub u64);

/// A state machine without I/O: the shell (or the simulator) drives it.
pub trait Machine {
    /// What it is told.
    type Input;
    /// What it wants.
    type Output;

    /// Takes exactly one input.
    fn handle(&mut self, now: Now, input: Self::Input);

    /// The next wish; to be drained until none before the next [`Machine::handle`]. The order is meaning: what
    /// follows a wish to persist must wait until it is persisted.
    fn poll(&mut self) -> Option<Self::Output>;

    /// When it wants a timeout input.
    fn poll_timeout(&self) -> Option<Wakeup>;
}

/// Asymmetric work an engine asks of its shell.
#[derive(Debug)]
pub struct JobRequest {
    /// Echoed with the result.
    pub id: JobId,
    /// The work.
    pub job: Job,
}

/// The result of a [`JobRequest`].
#[derive(Debug)]
pub struct JobResult {
    /// From the request.
    pub id: JobId,
    /// What came of it.
    pub done: Done,
}
