//! Payloads of phase 1 messages in the order they are sent, and what a received message holds. Only the layout is known
//! here; a message may carry more than its own payloads ([`Extras`]).
//!
//! ```text
//! main        1, 2  SA, [VID..]
//!             3, 4  KE, NONCE, [CERTREQ..], [NAT-D..]
//!             5, 6  ID, [CERT..], [CERTREQ..], HASH | SIG, [N..]
//! aggressive  1     SA, KE, NONCE, ID, [CERTREQ..], [VID..]
//!             2     SA, KE, NONCE, ID, [CERT..], [CERTREQ..], [VID..], [NAT-D..], HASH | SIG
//!             3     [CERT..], [NAT-D..], HASH | SIG
//! ```

use bytes::Bytes;
use gdoi_proto::header::{Flags, HEADER_LEN, Header};
use gdoi_proto::ids::{CookiePair, MessageId};
use gdoi_proto::message::{Message, encode_payload};
use gdoi_proto::payload::{Certificate, CertificateRequest, Identification, Notify, Payload, Sa};
use gdoi_proto::registry::{ExchangeType, PayloadType};

use super::nat::VENDOR_NAT_T;
use super::{Refusal, VENDOR_DPD};
use crate::crypto::{AuthMethod, Suite};
use crate::fragment::is_announcement;
use crate::trust::{Limits, wrapped_certificates};

/// Certificate encoding of X.509 for signatures, the only one sent (RFC 2408 section 3.9).
const X509_SIGNATURE: u8 = 4;
/// CERT and CERTREQ encoding: X.509 certificates in PKCS#7. Read, never sent (RFC 4945 section 3.3.4).
const PKCS7_WRAPPED: u8 = 1;

/// What a message carries besides its own payloads, at the places above. Empty: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Vendor IDs, raw.
    pub vendors: Vec<Vec<u8>>,
    /// NAT detection hashes: the destination's first (RFC 3947 section 3.2).
    pub nat_d: Vec<Vec<u8>>,
}

impl Extras {
    fn vendors(&self) -> impl Iterator<Item = Payload> {
        self.vendors.iter().cloned().map(Payload::VendorId)
    }

    fn nat_d(&self) -> impl Iterator<Item = Payload> {
        self.nat_d.iter().cloned().map(Payload::NatD)
    }
}

fn certificates(chain: &[Vec<u8>]) -> impl Iterator<Item = Payload> {
    chain.iter().map(|der| Payload::Cert(Certificate { encoding: X509_SIGNATURE, data: der.clone() }))
}

fn requests(names: &[Vec<u8>]) -> impl Iterator<Item = Payload> {
    names.iter().map(|name| {
        Payload::CertRequest(CertificateRequest { encoding: X509_SIGNATURE, authority: name.clone() })
    })
}

/// Main mode 1 and 2.
pub fn offer(sa: Sa, extras: &Extras) -> Vec<Payload> {
    [Payload::Sa(sa)].into_iter().chain(extras.vendors()).collect()
}

/// Main mode 3 and 4; `names` for CERTREQ belong in 4.
pub fn key_exchange(ke: &[u8], nonce: &[u8], names: &[Vec<u8>], extras: &Extras) -> Vec<Payload> {
    [Payload::Ke(ke.to_vec()), Payload::Nonce(nonce.to_vec())]
        .into_iter()
        .chain(requests(names))
        .chain(extras.nat_d())
        .collect()
}

/// Main mode 5 and 6; `names` for CERTREQ belong in 5. `proof` is HASH or SIG.
pub fn authentication(
    id: &Identification,
    chain: &[Vec<u8>],
    names: &[Vec<u8>],
    proof: Payload,
    notifies: Vec<Payload>,
) -> Vec<Payload> {
    [Payload::Id(id.clone())]
        .into_iter()
        .chain(certificates(chain))
        .chain(requests(names))
        .chain([proof])
        .chain(notifies)
        .collect()
}

/// Aggressive mode 1.
pub fn aggressive_first(
    sa: Sa,
    (ke, nonce): (&[u8], &[u8]),
    id: &Identification,
    names: &[Vec<u8>],
    extras: &Extras,
) -> Vec<Payload> {
    [Payload::Sa(sa), Payload::Ke(ke.to_vec()), Payload::Nonce(nonce.to_vec()), Payload::Id(id.clone())]
        .into_iter()
        .chain(requests(names))
        .chain(extras.vendors())
        .collect()
}

/// Aggressive mode 2. `proof` is HASH_R or SIG_R.
pub fn aggressive_second(
    sa: Sa,
    (ke, nonce): (&[u8], &[u8]),
    id: &Identification,
    (chain, names): (&[Vec<u8>], &[Vec<u8>]),
    extras: &Extras,
    proof: Payload,
) -> Vec<Payload> {
    [Payload::Sa(sa), Payload::Ke(ke.to_vec()), Payload::Nonce(nonce.to_vec()), Payload::Id(id.clone())]
        .into_iter()
        .chain(certificates(chain))
        .chain(requests(names))
        .chain(extras.vendors())
        .chain(extras.nat_d())
        .chain([proof])
        .collect()
}

/// Aggressive mode 3. `proof` is HASH_I or SIG_I.
pub fn aggressive_third(chain: &[Vec<u8>], extras: &Extras, proof: Payload) -> Vec<Payload> {
    certificates(chain).chain(extras.nat_d()).chain([proof]).collect()
}

/// Encodes a clear message of `exchange`.
pub fn clear(exchange: ExchangeType, cookies: CookiePair, payloads: Vec<Payload>) -> Bytes {
    let header = Header {
        cookies,
        next: PayloadType::None,
        exchange,
        flags: Flags::NONE,
        message_id: MessageId(0),
        length: 0,
    };
    Message { header, payloads }.encode().into()
}

/// What a message held, by kind. Certificates of other encodings, and repeats, are left out.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// SA.
    pub sa: Option<Sa>,
    /// KE.
    pub ke: Option<Vec<u8>>,
    /// NONCE.
    pub nonce: Option<Vec<u8>>,
    /// ID.
    pub id: Option<Identification>,
    /// HASH.
    pub hash: Option<Vec<u8>>,
    /// SIG.
    pub signature: Option<Vec<u8>>,
    /// X.509 certificates, DER.
    pub certificates: Vec<Vec<u8>>,
    /// The peer asked for X.509 certificates.
    pub wants_certificate: bool,
    /// Notifications.
    pub notifies: Vec<Notify>,
    /// Vendor IDs.
    pub vendors: Vec<Vec<u8>>,
    /// NAT detection hashes.
    pub nat_d: Vec<Vec<u8>>,
}

impl Heard {
    /// Sorts the payloads of a message that may hold `expected` besides VID, CERT, CERTREQ and N, which any message may
    /// (RFC 2408 sections 3.9 and 3.10).
    ///
    /// # Errors
    /// [`Refusal::Dropped`] naming the payload that has no place.
    pub fn from_payloads(
        payloads: impl IntoIterator<Item = Payload>,
        expected: &[PayloadType],
    ) -> Result<Heard, Refusal> {
        let mut heard = Heard::default();
        for payload in payloads {
            let kind = payload.payload_type();
            match payload {
                Payload::Cert(found) => {
                    let certificates = match found.encoding {
                        X509_SIGNATURE => vec![found.data],
                        PKCS7_WRAPPED => wrapped_certificates(&found.data),
                        _ => Vec::new(),
                    };
                    for certificate in certificates {
                        // One more than is taken says that they are too many; the others are not looked at.
                        let room = heard.certificates.len() <= Limits::default().certificates;
                        if room && !heard.certificates.contains(&certificate) {
                            heard.certificates.push(certificate);
                        }
                    }
                }
                // Who asks for wrapped ones reads plain ones too.
                Payload::CertRequest(found) => {
                    heard.wants_certificate |= [X509_SIGNATURE, PKCS7_WRAPPED].contains(&found.encoding);
                }
                Payload::VendorId(found) => heard.vendors.push(found),
                Payload::Notify(found) => heard.notifies.push(found),
                _ if !expected.contains(&kind) => {
                    return Err(Refusal::Dropped(format!("{kind} has no place here")));
                }
                Payload::Sa(found) => heard.sa = Some(found),
                Payload::Ke(found) => heard.ke = Some(found),
                Payload::Nonce(found) => heard.nonce = Some(found),
                Payload::Id(found) => heard.id = Some(found),
                Payload::Hash(found) => heard.hash = Some(found),
                Payload::Sig(found) => heard.signature = Some(found),
                Payload::NatD(found) => heard.nat_d.push(found),
                Payload::GdoiSa(_)
                | Payload::Delete(_)
                | Payload::NatOa(_)
                | Payload::Kd(_)
                | Payload::Seq(_)
                | Payload::Gap(_) => {}
            }
        }
        Ok(heard)
    }

    /// True when dead-peer detection of major version 1 was announced (RFC 3706 section 5.1).
    pub fn announces_dpd(&self) -> bool {
        self.vendors.iter().any(|vid| match (vid.split_at_checked(14), VENDOR_DPD.split_at_checked(14)) {
            (Some((name, [1, _])), Some((wanted, _))) => name == wanted,
            _ => false,
        })
    }

    /// True when NAT traversal was announced (RFC 3947 section 3.1); drafts of it do not count.
    pub fn announces_nat_traversal(&self) -> bool {
        self.vendors.iter().any(|vid| *vid == VENDOR_NAT_T)
    }

    /// True when fragmentation was announced.
    pub fn announces_fragmentation(&self) -> bool {
        self.vendors.iter().any(|vid| is_announcement(vid))
    }

    /// KE and NONCE for `suite`. `own_nonce` is ours where it is known already.
    ///
    /// # Errors
    /// [`Refusal::Dropped`] when one is missing, KE is of another length than the group's, or the nonce is ours.
    pub fn key_exchange(
        &mut self,
        suite: Suite,
        own_nonce: Option<&[u8]>,
    ) -> Result<(Bytes, Vec<u8>), Refusal> {
        let (Some(ke), Some(nonce)) = (self.ke.take(), self.nonce.take()) else {
            return Err(Refusal::dropped("no KE or no nonce"));
        };
        if ke.len() != suite.group.public_len() {
            return Err(Refusal::dropped(format!(
                "KE has {} octets, {} expected",
                ke.len(),
                suite.group.public_len()
            )));
        }
        if own_nonce == Some(nonce.as_slice()) {
            return Err(Refusal::dropped("the peer's nonce is ours"));
        }
        Ok((ke.into(), nonce))
    }

    /// The HASH or SIG that `method` calls for.
    pub fn proof(&mut self, method: AuthMethod) -> Option<Vec<u8>> {
        match method {
            AuthMethod::PreSharedKey => self.hash.take(),
            AuthMethod::RsaSignature | AuthMethod::Ecdsa256 | AuthMethod::Ecdsa384 | AuthMethod::Ecdsa521 => {
                self.signature.take()
            }
        }
    }
}

/// SAi_b of a first message, as it stands on the wire: never re-encoded, and no copy.
pub(super) fn sa_body(first_message: &Bytes) -> Bytes {
    let header = HEADER_LEN + 4;
    let length = first_message
        .get(HEADER_LEN + 2..HEADER_LEN + 4)
        .and_then(|octets| <[u8; 2]>::try_from(octets).ok())
        .map_or(0, |octets| usize::from(u16::from_be_bytes(octets)));
    let end = HEADER_LEN + length;
    if header <= end && end <= first_message.len() { first_message.slice(header..end) } else { Bytes::new() }
}

/// IDxx_b: the body with its first four octets.
pub(super) fn id_body(id: &Identification) -> Vec<u8> {
    encode_payload(&Payload::Id(id.clone()), PayloadType::None).split_off(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::signed_data;

    #[test]
    fn of_too_many_certificates_one_more_than_is_taken_is_kept() {
        let many: Vec<Vec<u8>> = (0..40).map(|number| vec![0x30, 1, number]).collect();
        let all: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
        let wrapped = Payload::Cert(Certificate { encoding: PKCS7_WRAPPED, data: signed_data(&all) });
        let plain =
            |der: &Vec<u8>| Payload::Cert(Certificate { encoding: X509_SIGNATURE, data: der.clone() });
        for payloads in [vec![wrapped], many.iter().map(plain).collect()] {
            let heard = Heard::from_payloads(payloads, &[]).unwrap();
            assert_eq!(heard.certificates, many[..=Limits::default().certificates]);
        }
    }

    #[test]
    fn certificates_come_plain_or_in_pkcs_7_and_each_once() {
        let (one, two) = (vec![0x30, 2, 5, 0], vec![0x30, 3, 4, 1, 7]);
        let cert = |encoding, data: Vec<u8>| Payload::Cert(Certificate { encoding, data });
        let request = |encoding| Payload::CertRequest(CertificateRequest { encoding, authority: Vec::new() });
        let payloads = [
            cert(X509_SIGNATURE, one.clone()),
            cert(PKCS7_WRAPPED, signed_data(&[&one, &two])),
            cert(PKCS7_WRAPPED, vec![0x30]),
            cert(5, vec![0x30, 0]),
        ];
        let heard = Heard::from_payloads(payloads, &[]).unwrap();
        assert_eq!(heard.certificates, [one, two]);
        assert!(!heard.wants_certificate);
        for (encoding, wanted) in [(X509_SIGNATURE, true), (PKCS7_WRAPPED, true), (5, false)] {
            let heard = Heard::from_payloads([request(encoding)], &[]).unwrap();
            assert_eq!(heard.wants_certificate, wanted, "encoding {encoding}");
        }
    }
}
