//! One established SA: its life, its dead-peer detection and the PULLs under it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gdoi_proto::ids::MessageId;
use ike::dpd::Watch;
use ike::io::Instant;
use ike::phase1::Answered;
use ike::sa::IkeSa;

use super::super::pull::{self, Pull};
use super::super::settings::GatewaySettings;

/// Message 6 is repeated on request this long after phase 1.
pub const ANSWER_LIFE: Duration = Duration::from_secs(60);
/// An SA is deleted this long after its last PULL: members that come again negotiate anew, and a hundred thousand idle
/// SAs would hold more memory than their members.
const IDLE_LIFE: Duration = Duration::from_secs(60);
/// PULLs under way per SA: each holds the keys of a group.
const MAX_PULLS: usize = 8;
/// Finished PULLs per SA whose message 4 can be repeated.
const MAX_FINISHED: usize = 16;

/// An SA and what runs under it.
pub struct Established {
    /// The SA; its peer's identity is in the normal form of [`super::super::member::member_key`].
    pub sa: IkeSa,
    /// The statement that names its peer.
    pub gateway: Arc<GatewaySettings>,
    /// Our address.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// Message 6, while it may be asked for again.
    pub answered: Option<Answered>,
    /// When it came up.
    pub since: Instant,
    /// Last valid message of a PULL; before the first, the same as `since`.
    pub used: Instant,
    /// Dead-peer detection.
    pub watch: Option<Watch>,
    /// Its moment in the timers: never after [`Established::due`].
    pub timer: Instant,
    /// PULLs under way, and the last finished ones.
    pub pulls: BTreeMap<MessageId, Pull>,
}

impl Established {
    /// When it ends by itself: its life is over, or nobody needs it.
    pub fn ends(&self) -> Instant {
        self.sa.expires.min(self.used + IDLE_LIFE)
    }

    /// When to look at it again.
    pub fn due(&self) -> Instant {
        let watch = self.watch.as_ref().and_then(Watch::due);
        let answer = self.answered.as_ref().map(|_| self.since + ANSWER_LIFE);
        let pull = self.pulls.values().map(|pull| pull.started + pull::LIFE).min();
        [watch, answer, pull].into_iter().flatten().fold(self.ends(), Instant::min)
    }

    /// An authenticated message came.
    pub fn heard(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.heard();
        }
    }

    /// Forgets what is past its time, with the keys in it.
    pub fn prune(&mut self, now: Instant) {
        self.pulls.retain(|_, pull| now.since(pull.started) < pull::LIFE);
        if now.since(self.since) >= ANSWER_LIFE {
            self.answered = None;
        }
    }

    /// True when one more PULL may begin. Finished ones do not count.
    pub fn has_room(&self) -> bool {
        self.pulls.values().filter(|pull| !pull.is_finished()).count() < MAX_PULLS
    }

    /// Keeps the answers of the last finished PULLs alone.
    pub fn bound_finished(&mut self) {
        let finished = || self.pulls.iter().filter(|(_, pull)| pull.is_finished());
        if finished().count() > MAX_FINISHED
            && let Some((oldest, _)) = finished().min_by_key(|(_, pull)| pull.started)
        {
            let oldest = *oldest;
            self.pulls.remove(&oldest);
        }
    }
}
