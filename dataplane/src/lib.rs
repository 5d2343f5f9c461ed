//! What becomes of TEKs: the trait every backend implements and the backend that only remembers.
//!
//! ```text
//! install(TEK)   it can decrypt at once
//! activate(SPI)  it encrypts from now on: of several active ones with the same selectors, the one activated last
//! remove(SPI)    it is gone
//! ```
//!
//! The engine of the member decides the moments (RFC 5374 section 4.2.1); a backend only obeys.
#![forbid(unsafe_code)]

pub mod d3p;
pub mod esp;
pub mod fragment;
pub mod header;
pub mod icmp;
pub mod path;
pub mod policy;
pub mod reassembly;
pub mod recorder;
pub mod sa;
pub mod selector;
#[cfg(feature = "linux")]
pub mod tun;
#[cfg(feature = "linux")]
pub mod xfrm;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::{Direction, SenderIds, TekKey, TekPolicy};

pub use recorder::Recorder;

/// A TEK to install. `Debug` shows lengths of keys only.
#[derive(Debug, Clone)]
pub struct TekInstall {
    /// The VPN it belongs to.
    pub vpn: String,
    /// Selectors, cipher, mode and direction. `lifetime_seconds` counts from now.
    pub policy: TekPolicy,
    /// Its keys.
    pub key: TekKey,
    /// Our Sender-IDs; none for ciphers that do not count.
    pub sender_ids: Option<SenderIds>,
    /// When [`DataPlane::activate`] will come: zero for at once, none for never (receive only).
    pub activate_after: Option<Duration>,
    /// Width of the window of IP-D3P timestamps, when the group uses them.
    pub delay_detection: Option<Duration>,
}

impl TekInstall {
    /// Its SPI.
    pub fn spi(&self) -> Spi {
        self.policy.spi
    }

    /// True when it may ever encrypt.
    pub fn may_send(&self) -> bool {
        self.activate_after.is_some() && self.policy.direction != Direction::ReceiverOnly
    }

    /// True when it may decrypt.
    pub fn may_receive(&self) -> bool {
        self.policy.direction != Direction::SenderOnly
    }
}

/// Why a backend did not obey. Holds no key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataPlaneError(pub String);

impl fmt::Display for DataPlaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DataPlaneError {}

/// What a backend noticed and the engine should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// ESP our policy covers came with an SPI nobody told us.
    UnknownSpi {
        /// The VPN whose policy covers it.
        vpn: String,
        /// Its SPI.
        spi: Spi,
        /// Its sender, unverified.
        source: IpAddr,
    },
    /// 7/8 of a TEK's packets or octets are used: a new one is needed.
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
}

impl Fault {
    /// The VPN it is about.
    pub fn vpn(&self) -> &str {
        match self {
            Fault::UnknownSpi { vpn, .. } | Fault::SoftLimit { vpn, .. } | Fault::Spent { vpn, .. } => vpn,
        }
    }
}

/// What became of the traffic of one VPN since the start of the backend.
#[derive(Debug, Clone, Default)]
pub struct Traffic {
    /// What went out.
    pub outbound: path::Counters,
    /// What came in.
    pub inbound: path::Counters,
    /// Packets and octets by SPI, of the SAs that are installed.
    pub sas: BTreeMap<Spi, sa::SaCounters>,
}

/// Takes faults, on any thread; it must not wait.
pub type Tell = Box<dyn Fn(Fault) + Send + Sync>;

/// Something that encrypts and decrypts traffic with TEKs.
pub trait DataPlane: Send {
    /// Its name for logs.
    fn name(&self) -> &'static str;

    /// Installs a TEK for decryption. One with the same VPN and SPI is replaced.
    ///
    /// # Errors
    /// [`DataPlaneError`] when the backend cannot; nothing is installed then.
    fn install(&mut self, tek: TekInstall) -> Result<(), DataPlaneError>;

    /// Lets an installed TEK encrypt.
    ///
    /// # Errors
    /// [`DataPlaneError`] when it is not installed or may not send.
    fn activate(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError>;

    /// Gives an installed TEK new Sender-IDs in place of all it had, with a new IV space each (RFC 6407 section 5.6.4.3).
    ///
    /// # Errors
    /// [`DataPlaneError`] when it is not installed, or the backend cannot: then it goes on with the old ones.
    fn set_sender_ids(&mut self, vpn: &str, spi: Spi, sender_ids: SenderIds) -> Result<(), DataPlaneError>;

    /// Removes a TEK; one that is not there is no error.
    ///
    /// # Errors
    /// [`DataPlaneError`] when the backend cannot.
    fn remove(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError>;

    /// Other rules of the operator for a VPN, from the next packet on. A backend without rules has no use for them.
    fn set_rules(&mut self, _vpn: &str, _rules: policy::Rules) {}

    /// What became of the traffic of a VPN; none when this backend carries none for it.
    fn traffic(&self, _vpn: &str) -> Option<Traffic> {
        None
    }
}
