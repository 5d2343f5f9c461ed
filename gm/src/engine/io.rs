//! Input and output of the member's engine.

use std::net::{IpAddr, SocketAddr};

use ctl::event::Event;
use dataplane::TekInstall;
use gdoi_proto::ids::Spi;
use gdoi_proto::policy::SenderIds;
use ike::io::{Datagram, JobRequest, JobResult};

use super::servers::ServerName;
use super::settings::Settings;

/// What the member is told.
#[derive(Debug)]
pub enum Input {
    /// A datagram arrived.
    Datagram(Datagram),
    /// [`super::GroupMember`]'s wake-up is due.
    Timeout,
    /// A job is done.
    Job(JobResult),
    /// Answers [`Output::Route`].
    Route {
        /// From the question.
        server: ServerName,
        /// Ours, or why there are none.
        locals: Result<Locals, String>,
    },
    /// The data plane got ESP that our policy covers, with an SPI nobody told it.
    UnknownSpi {
        /// The VPN whose policy covers it; none when that cannot be told: then it concerns every VPN.
        vpn: Option<String>,
        /// The SPI, unverified.
        spi: Spi,
    },
    /// The data plane has sent under the keys of a VPN for its time of observation, and nothing came back under them.
    OutboundWithoutInbound {
        /// VPN.
        vpn: String,
    },
    /// After that, a packet verified.
    InboundAgain {
        /// VPN.
        vpn: String,
    },
    /// 7/8 of the packets, octets or IVs of a TEK are used.
    SoftLimit {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: Spi,
    },
    /// A TEK encrypts nothing more.
    Spent {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: Spi,
    },
    /// An operator's wish; `ticket` comes back with the [`Output::Reply`].
    Command {
        /// Names the wish.
        ticket: u64,
        /// The wish.
        command: Command,
    },
    /// A changed configuration, used from now on: see [`super::change`].
    Apply(Box<Settings>),
    /// The daemon ends: the servers are told that their ISAKMP SAs are gone, and nothing more is begun.
    Stop,
}

/// Our addresses and ports towards a key server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locals {
    /// Where a phase 1 begins.
    pub first: SocketAddr,
    /// Where it goes on when a NAT is found; none: there is no socket for NAT traversal.
    pub float: Option<SocketAddr>,
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
    /// Say by [`Input::Route`] which addresses and ports of ours a phase 1 with this key server uses now.
    Route {
        /// Echoed with the answer.
        server: ServerName,
        /// The key server.
        peer: SocketAddr,
        /// Our address, where the configuration names it.
        address: Option<IpAddr>,
    },
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
    /// New Sender-IDs for an installed TEK: it encrypts with them from now on and begins a new IV space.
    SenderIds {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: Spi,
        /// They replace all it had.
        sender_ids: SenderIds,
    },
    /// Remove it.
    Remove {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: Spi,
    },
    /// Listen to these multicast groups for the VPN, and to no others any more.
    Listen {
        /// VPN.
        vpn: String,
        /// Addresses and ports.
        groups: Vec<SocketAddr>,
        /// Our address towards the key server: they are heard on its interface, if none is configured.
        address: Option<IpAddr>,
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
