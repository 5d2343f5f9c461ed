//! What became of a VPN's traffic, as a snapshot.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The traffic of one VPN since the start of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrafficView {
    /// From the zone of clear packets to that of ESP.
    pub outbound: DirectionView,
    /// The other way.
    pub inbound: DirectionView,
    /// Installed SAs by SPI.
    pub sas: Vec<SaTrafficView>,
    /// Clocks of senders, where packets carry the time (IP-D3P).
    pub skews: Vec<SkewView>,
}

/// Packets of one direction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DirectionView {
    /// Encrypted or decrypted.
    pub protected: u64,
    /// Clear: key management of this machine.
    pub clear_control: u64,
    /// Clear: an exclude rule.
    pub clear_exclude: u64,
    /// Clear: a fail-open rule.
    pub clear_fail_open: u64,
    /// Encrypted in fragments, because the whole was longer than the tunnel takes; inbound: ESP that came in fragments.
    pub fragmented: u64,
    /// Encrypted, and not sent by the system.
    pub not_sent: u64,
    /// Dropped, by cause; causes that did not occur are listed too.
    pub dropped: BTreeMap<String, u64>,
}

/// Traffic under one SA: inner packets and their octets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SaTrafficView {
    /// Its SPI.
    pub spi: String,
    /// Encrypted.
    pub packets_out: u64,
    /// Encrypted.
    pub octets_out: u64,
    /// Decrypted.
    pub packets_in: u64,
    /// Decrypted.
    pub octets_in: u64,
}

/// How far a sender's clock is from ours, with the way here; negative when its time is earlier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SkewView {
    /// Its address.
    pub sender: String,
    /// Of the last packet.
    pub last_microseconds: i64,
    /// Smallest.
    pub least_microseconds: i64,
    /// Largest.
    pub most_microseconds: i64,
    /// Packets dropped for it.
    pub refused: u64,
}
