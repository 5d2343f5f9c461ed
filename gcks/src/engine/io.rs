//! Input and output of the key server's engine. The order of outputs is meaning: whatever follows a
//! [`Output::Persist`] must wait until that batch is on disk.

use std::net::SocketAddr;

use bytes::Bytes;
use ctl::event::Event;
use gdoi_proto::ids::{KekSpi, SeqNumber};
use ike::io::{Datagram, JobRequest, JobResult};

use super::durable::Change;
use super::settings::Settings;

/// What the key server is told.
#[derive(Debug)]
pub enum Input {
    /// A datagram arrived.
    Datagram(Datagram),
    /// [`ike::io::Machine::poll_timeout`] is due.
    Timeout,
    /// A job is done.
    Job(JobResult),
    /// An operator's wish; `ticket` comes back with the [`Output::Reply`].
    Command {
        /// Names the wish.
        ticket: u64,
        /// The wish.
        command: Command,
    },
    /// Another configuration; what it does is known by [`super::KeyServer::plan`].
    Apply(Box<Settings>),
    /// The store refuses writes (`true`) or takes them again (`false`): registrations wait meanwhile.
    StoreFailing(bool),
    /// The daemon ends: peers are told that their IKE SAs do. Memberships and keys live on.
    Stop,
}

/// An operator's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Replace keys now.
    Rekey {
        /// Group name.
        group: String,
        /// New TEKs.
        tek: bool,
        /// New KEK.
        kek: bool,
    },
    /// Forget all members: they register again.
    ClearMembers {
        /// Group name.
        group: String,
    },
    /// Out of the list; rekey when `rekey-on-leave`.
    Expel {
        /// Group name.
        group: String,
        /// Identity, address or address:port as shown.
        member: String,
    },
    /// Out of the list, may not register any more, and opens nothing from now on.
    Revoke {
        /// Group name.
        group: String,
        /// Identity, address or address:port as shown.
        member: String,
    },
    /// A revoked identity may register again.
    Unrevoke {
        /// Group name.
        group: String,
        /// Identity as shown.
        member: String,
    },
    /// Counters to zero; all groups when none is named.
    ClearStatistics {
        /// Group name.
        group: Option<String>,
    },
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// A line for the operator.
    pub text: String,
    /// The rekey it started or queued, counted in its group since the server started.
    pub rekey: Option<u64>,
    /// KEK and number of the last PUSH it started; none when it is queued, or there was nobody to tell.
    pub push: Option<(KekSpi, SeqNumber)>,
}

impl From<String> for Outcome {
    fn from(text: String) -> Outcome {
        Outcome { text, rekey: None, push: None }
    }
}

/// What the key server wants.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit(Datagram),
    /// Send the same octets to many: `(local, peer)` each.
    Fanout {
        /// The datagram.
        octets: Bytes,
        /// Destinations.
        to: Vec<(SocketAddr, SocketAddr)>,
    },
    /// Write these changes in one transaction before anything that follows.
    Persist(Vec<Change>),
    /// Run this.
    Job(JobRequest),
    /// Tell.
    Event(Event),
    /// Answer a command.
    Reply {
        /// From the command.
        ticket: u64,
        /// Done, or refused with the reason.
        result: Result<Outcome, String>,
    },
}
