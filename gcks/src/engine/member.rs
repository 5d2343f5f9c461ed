//! The server's record of one member.

use std::net::SocketAddr;
use std::sync::Arc;

use gdoi_proto::ids::{SenderId, SeqNumber};
use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use ike::io::Instant;
use ike::trust::PeerCertificate;

use super::push::Mark;

/// Names a member within its group: the authenticated phase 1 identity in the form of [`member_key`].
pub type MemberKey = Identification;

/// The one form of an identity that peers write in several: protocol and port 0 (17/500 says no more, RFC 2407 section
/// 4.6.2), host and mail names in lower case.
pub fn member_key(mut identity: Identification) -> MemberKey {
    (identity.protocol, identity.port) = (0, 0);
    if matches!(identity.id_type, IdType::Fqdn | IdType::UserFqdn) {
        identity.data.make_ascii_lowercase();
    }
    identity
}

/// A registered member.
#[derive(Debug, Clone)]
pub struct Member {
    /// Address and port of its last PULL.
    pub peer: SocketAddr,
    /// Our address that PULL came to; pushes leave from it.
    pub local: SocketAddr,
    /// A NAT is before it: the address it knows itself by, and acknowledges with, is another.
    pub behind_nat: bool,
    /// The gateway statement that admitted it.
    pub gateway: Arc<str>,
    /// What proved its identity then; none with a pre-shared key.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// What its last PULL gave it: later PUSHes are news to it.
    pub joined: Mark,
    /// Its leaf of the key tree; none without a tree.
    pub leaf: Option<u32>,
    /// SIDs of its last PULL.
    pub sender_ids: Vec<SenderId>,
    /// When it registered first in this life of the server.
    pub registered: Instant,
    /// Last number acknowledged.
    pub last_ack: Option<SeqNumber>,
    /// Rekeys unanswered in a row.
    pub missed: u32,
    /// Pushes sent to it, copies included.
    pub pushes_sent: u64,
    /// When the last PUSH to it alone left; zero when that is acknowledged, or it was by multicast.
    pub pushed: Instant,
    /// Acknowledgements accepted.
    pub acks: u64,
}
