//! What the engine needs to know of the configuration, resolved: no names to look up, no units to convert.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use gdoi_proto::Dialect;
use gdoi_proto::ids::GroupId;
use gdoi_proto::payload::{Endpoint, Identification};
use gdoi_proto::policy::{AckRequest, Encapsulation, SignatureAlgorithm, SignatureHash, TekCipher};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::phase1::PeerPolicy;

/// The whole configuration of a key server.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who may talk to us.
    pub gateways: Vec<GatewaySettings>,
    /// What they may join.
    pub groups: Vec<GroupSettings>,
    /// Phase 1 negotiations not yet authenticated, in all.
    pub half_open_limit: usize,
    /// The same per source address.
    pub half_open_limit_per_address: usize,
    /// Life of a negotiation not yet authenticated.
    pub half_open_timeout: Duration,
    /// `approved-only`, to be shown; the policies of the gateways carry what it means.
    pub approved_only: bool,
}

/// A gateway statement.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Its name.
    pub name: String,
    /// Address and prefix length; the longest prefix wins. None for `dynamic`: found by its identity, from anywhere
    /// that no prefix covers.
    pub address: Option<(IpAddr, u8)>,
    /// How to negotiate with it.
    pub policy: Arc<PeerPolicy>,
    /// How to ask whether it is there; none: not at all.
    pub dead_peer_detection: Option<ike::dpd::Settings>,
    /// When memberships by this statement end, in Unix seconds; none: never.
    pub valid_until: Option<u64>,
    /// Configuration line, for refusals.
    pub line: usize,
}

impl GatewaySettings {
    /// True when memberships by this statement have ended, at `now` in Unix seconds.
    pub fn is_over(&self, now: u64) -> bool {
        self.valid_until.is_some_and(|end| end <= now)
    }

    /// True when `address` lies in this gateway's prefix.
    pub fn covers(&self, address: IpAddr) -> bool {
        let Some((net, length)) = self.address else { return false };
        match (net, address) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let shift = 32u32.saturating_sub(u32::from(length));
                (net.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let shift = 128u32.saturating_sub(u32::from(length));
                (net.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// True when the statement names one address instead of a prefix.
    pub fn is_one_address(&self) -> bool {
        self.address.is_some_and(|(net, length)| length == if net.is_ipv4() { 32 } else { 128 })
    }

    /// True when a peer at `address` may claim `identity` under this statement.
    pub fn admits(&self, identity: &Identification, address: IpAddr) -> bool {
        self.policy.remote.iter().any(|rule| rule.accepts(identity, address))
    }
}

/// A group statement.
#[derive(Debug, Clone)]
pub struct GroupSettings {
    /// Its name.
    pub name: String,
    /// Its name on the wire.
    pub id: GroupId,
    /// Its second name, for gateways with `group-id-address`.
    pub address: Option<GroupId>,
    /// Deviations of its PUSHes: one is signed for all members.
    pub push_dialect: Dialect,
    /// Gateways that may register.
    pub gateways: BTreeSet<String>,
    /// Most members; further new ones get no answer.
    pub member_threshold: Option<usize>,
    /// 8, 12 or 16.
    pub sender_id_bits: u8,
    /// New keys when a member is expelled.
    pub rekey_on_leave: bool,
    /// New keys for everybody before a newcomer gets any.
    pub rekey_on_join: bool,
    /// Rekeying; none: no KEK, members re-register.
    pub communication: Option<CommunicationSettings>,
    /// Data-security SAs.
    pub sas: Vec<SaSettings>,
    /// Configuration line, for who asks why.
    pub line: usize,
}

/// What acknowledgements are asked for and what their absence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// Asked for; a member that stays silent is removed.
    Required,
    /// Asked for and recorded.
    Requested,
    /// Not asked for.
    None,
}

/// How PUSHes travel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Way {
    /// To each member.
    #[default]
    Unicast,
    /// To a multicast group, every copy; to members that cannot hear it, one by one.
    Multicast(Channel),
    /// The first copy like that, the others to each member that did not acknowledge.
    Both(Channel),
}

impl Way {
    /// The multicast group, if there is one.
    pub fn channel(&self) -> Option<&Channel> {
        match self {
            Way::Unicast => None,
            Way::Multicast(channel) | Way::Both(channel) => Some(channel),
        }
    }
}

/// A multicast group that PUSHes go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channel {
    /// Its address and UDP port.
    pub group: SocketAddr,
    /// Where they leave this machine.
    pub interface: String,
}

/// A server-member-communication statement.
#[derive(Debug, Clone)]
pub struct CommunicationSettings {
    /// How PUSHes travel.
    pub way: Way,
    /// KEK cipher.
    pub cipher: Cipher,
    /// Hash of the signature.
    pub signature_hash: SignatureHash,
    /// Signature algorithm.
    pub signature: SignatureAlgorithm,
    /// RSA modulus, or the curve's bits.
    pub signature_key_bits: u16,
    /// PKCS#8 DER; none: made at first start and kept in the state.
    pub signing_key: Option<SecretBytes>,
    /// KEK life.
    pub lifetime: Duration,
    /// Copies after the first.
    pub retransmissions: u32,
    /// Time between copies.
    pub retransmission_period: Duration,
    /// What acknowledgements mean.
    pub acknowledgement: Acknowledgement,
    /// Unanswered rekeys before a member is removed.
    pub missed_rekeys: u32,
    /// ATD in seconds.
    pub activation_delay: u16,
    /// DTD in seconds.
    pub deactivation_delay: u16,
    /// The KEK is the root of a key tree (RFC 6407 section 5.6.3).
    pub lkh: bool,
    /// Octets of UDP payload of a PUSH; what is larger is split where TEKs allow.
    pub max_push_size: usize,
    /// Time before the KEK's end at which its successor goes out.
    pub margin: Duration,
}

/// How PUSHes are signed: SIG_ALGORITHM, SIG_ALGORITHM_KEY_LENGTH and SIG_HASH_ALGORITHM of a SAK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signing {
    /// Signature algorithm.
    pub algorithm: SignatureAlgorithm,
    /// RSA modulus, or the curve's bits.
    pub key_bits: u16,
    /// Hash of the signature.
    pub hash: SignatureHash,
}

impl Signing {
    /// Octets of a SIG body.
    pub fn octets(self) -> usize {
        self.algorithm.octets(self.key_bits)
    }
}

impl CommunicationSettings {
    /// How PUSHes of a new KEK are signed.
    pub fn signing(&self) -> Signing {
        let (algorithm, key_bits, hash) = (self.signature, self.signature_key_bits, self.signature_hash);
        Signing { algorithm, key_bits, hash }
    }

    /// KEK_ACK_REQUESTED for this group.
    pub fn ack_request(&self) -> Option<AckRequest> {
        let short = matches!(self.signature_hash, SignatureHash::Sha1 | SignatureHash::Sha256);
        match (self.acknowledgement, self.lkh, short) {
            (Acknowledgement::None, _, _) => None,
            (_, false, true) => Some(AckRequest::KekSha256),
            (_, false, false) => Some(AckRequest::KekSha512),
            (_, true, true) => Some(AckRequest::LkhSha256),
            (_, true, false) => Some(AckRequest::LkhSha512),
        }
    }
}

/// One data-security SA: an ipsec-sa statement with one match policy.
#[derive(Debug, Clone)]
pub struct SaSettings {
    /// Unique in the group: `SA1/lan-to-lan`.
    pub name: String,
    /// Cipher and integrity.
    pub cipher: TekCipher,
    /// TEK life.
    pub lifetime: Duration,
    /// Time before the TEK's end at which its successor goes out.
    pub margin: Duration,
    /// Tunnel or transport.
    pub encapsulation: Encapsulation,
    /// IP protocol, 0 any.
    pub ip_protocol: u8,
    /// Source selector.
    pub source: Endpoint,
    /// Destination selector.
    pub destination: Endpoint,
    /// Width of the window of IP-D3P timestamps; none: no timestamps.
    pub delay_window: Option<Duration>,
}
