//! Input and output of the member's engine.

use ctl::event::Event;
use dataplane::{Fault, TekInstall};
use gdoi_proto::ids::Spi;
use ike::io::{Datagram, JobRequest, JobResult};

/// What the member is told.
#[derive(Debug)]
pub enum Input {
    /// A datagram arrived.
    Datagram(Datagram),
    /// [`super::GroupMember`]'s wake-up is due.
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
    /// The data plane noticed something.
    Fault(Fault),
    /// The daemon ends: the servers are told that their ISAKMP SAs are gone, and nothing more is begun.
    Stop,
}

/// An operator's wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Register again now; all VPNs when none is named. Keys in use stay.
    Register {
        /// Name of the VPN.
        vpn: Option<String>,
    },
}

/// What the member wants. The order is meaning: a TEK is installed before it is activated, and its successor is
/// activated before it is removed.
#[derive(Debug)]
pub enum Output {
    /// Send a datagram.
    Transmit(Datagram),
    /// Run this.
    Job(JobRequest),
    /// Install a TEK for decryption.
    Install(TekInstall),
    /// Let it encrypt.
    Activate {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: Spi,
    },
    /// Remove it.
    Remove {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: Spi,
    },
    /// Tell.
    Event(Event),
    /// Answer a command.
    Reply {
        /// From the command.
        ticket: u64,
        /// A line for the operator: done or on its way, or the reason why not.
        result: Result<String, String>,
    },
}
