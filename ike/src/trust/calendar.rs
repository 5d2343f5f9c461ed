//! What an operator wants to know of certificates before they end: which there are, and what peers' paths lead to.

use super::{CertificateFacts, CertificateName, ListFacts};

/// The certificate by which a peer proved its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Which one.
    pub name: CertificateName,
    /// Last second of validity, Unix seconds.
    pub not_after: u64,
    /// The anchor its path ended at; none when a rehearsal accepted it without a path.
    pub anchor: Option<CertificateName>,
}

/// Anchors and revocation lists that peers are checked against.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Calendar {
    /// The anchors, in the order given.
    pub anchors: Vec<CertificateFacts>,
    /// The lists, newest first.
    pub lists: Vec<ListFacts>,
}
