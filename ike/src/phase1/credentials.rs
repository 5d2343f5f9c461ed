//! What proves who we are, and by what the peer may prove who it is: chosen by the method that is negotiated.

use std::sync::Arc;

use gdoi_proto::payload::Identification;
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;

use super::auth::Basis;
use crate::crypto::AuthMethod;
use crate::crypto::provider::{CertifiedKey, PeerTrust, ProofSigner};
use crate::trust::{Calendar, PeerCertificate, Trust, same_name, subject};

/// A certificate of ours with its private key.
#[derive(Debug, Clone)]
pub struct OwnCertificate {
    /// DER: the end entity, then its intermediates; no root (RFC 4945 section 3.3.7).
    pub chain: Vec<Vec<u8>>,
    /// Its private key; its method is the one the certificate serves.
    pub signer: Arc<dyn ProofSigner>,
}

/// Everything we hold for one peer. A method without its credential is neither offered nor accepted.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// For pre-shared keys.
    pub pre_shared_key: Option<SecretBytes>,
    /// For signatures: one per method; of several for one method the first counts.
    pub certificates: Vec<Arc<OwnCertificate>>,
    /// Decides on the peer's certificates; without it no signature method works.
    pub trust: Option<Arc<dyn PeerTrust>>,
}

/// The credential of one method, complete.
#[derive(Debug, Clone)]
pub enum Credential {
    /// Method 1.
    PreSharedKey(SecretBytes),
    /// Methods 3, 9, 10 and 11.
    Certificate {
        /// Ours.
        own: Arc<OwnCertificate>,
        /// Decides on the peer's.
        trust: Arc<dyn PeerTrust>,
    },
}

impl Credentials {
    /// A pre-shared key and nothing else.
    pub fn pre_shared(key: SecretBytes) -> Credentials {
        Credentials { pre_shared_key: Some(key), ..Credentials::default() }
    }

    /// Certificates of ours and who decides on the peer's.
    pub fn certificates(own: Vec<OwnCertificate>, trust: Arc<dyn PeerTrust>) -> Credentials {
        Credentials {
            pre_shared_key: None,
            certificates: own.into_iter().map(Arc::new).collect(),
            trust: Some(trust),
        }
    }

    /// `id` as our certificate has it: a distinguished name goes out octet for octet as the subject, in whatever string
    /// types it was configured (RFC 4945 section 3.1.5).
    pub(super) fn own_identity(&self, id: Identification) -> Identification {
        let ends = self.certificates.iter().filter_map(|own| own.chain.first());
        let mut subjects = ends.filter_map(|end| subject(end).ok());
        let named = |subject: &Vec<u8>| id.id_type == IdType::DerAsn1Dn && same_name(subject, &id.data);
        match subjects.find(named) {
            Some(data) => Identification { data, ..id },
            None => id,
        }
    }

    /// The credential of `method`, none when we hold none.
    pub fn for_method(&self, method: AuthMethod) -> Option<Credential> {
        match method {
            AuthMethod::PreSharedKey => self.pre_shared_key.clone().map(Credential::PreSharedKey),
            AuthMethod::RsaSignature | AuthMethod::Ecdsa256 | AuthMethod::Ecdsa384 | AuthMethod::Ecdsa521 => {
                let own = self.certificates.iter().find(|own| own.signer.method() == method)?.clone();
                Some(Credential::Certificate { own, trust: self.trust.clone()? })
            }
        }
    }
}

impl Credential {
    /// What SKEYID is made from.
    pub(super) fn basis(&self) -> Basis<'_> {
        match self {
            Credential::PreSharedKey(key) => Basis::PreSharedKey(key),
            Credential::Certificate { .. } => Basis::Signatures,
        }
    }

    /// Names for our CERTREQ payloads: each anchor once; more than a peer must read become one request for any.
    pub(super) fn requests(&self) -> Vec<Vec<u8>> {
        let Credential::Certificate { trust, .. } = self else { return Vec::new() };
        let mut names: Vec<Vec<u8>> = Vec::new();
        for name in trust.anchors() {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.len() > MAX_REQUESTS { vec![Vec::new()] } else { names }
    }

    /// Our certificates for a peer that asked for some (RFC 4945 section 3.3.6).
    pub(super) fn certificates(&self, wanted: bool) -> &[Vec<u8>] {
        match self {
            Credential::Certificate { own, .. } if wanted => &own.chain,
            Credential::Certificate { .. } | Credential::PreSharedKey(_) => &[],
        }
    }
}

/// CERTREQ payloads a message may hold, ours and a peer's.
const MAX_REQUESTS: usize = 16;

impl PeerTrust for Trust {
    fn check(
        &self,
        chain: &[Vec<u8>],
        id: &Identification,
        unix_seconds: u64,
    ) -> Result<CertifiedKey, String> {
        let checked = Trust::check(self, chain, id, unix_seconds).map_err(|error| error.to_string())?;
        let refused: Vec<String> = checked.would_refuse.iter().map(ToString::to_string).collect();
        let remark = (!refused.is_empty()).then(|| refused.join("; "));
        let certificate = PeerCertificate {
            name: checked.certificate.name(),
            not_after: checked.certificate.not_after,
            anchor: checked.anchor,
        };
        Ok(CertifiedKey { public_key: checked.public_key, remark, certificate: Some(Arc::new(certificate)) })
    }

    fn anchors(&self) -> Vec<Vec<u8>> {
        Trust::anchors(self)
    }

    fn calendar(&self) -> Calendar {
        Trust::calendar(self)
    }
}
