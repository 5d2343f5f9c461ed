//! Elliptic curves: RustCrypto for P-256, P-384 and P-521, x25519-dalek for Curve25519.

use gdoi_proto::secret::SecretBytes;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{AffinePoint, CurveArithmetic, FieldBytesSize, PublicKey, SecretKey};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

use crate::crypto::DhGroup;
use crate::crypto::provider::{CryptoError, DhKey};

/// Lead octet of an uncompressed point, never on the wire (RFC 5903 section 7).
const UNCOMPRESSED: u8 = 0x04;

/// A scalar of a NIST curve with its point as x | y.
struct CurveKey<C: CurveArithmetic> {
    group: DhGroup,
    secret: SecretKey<C>,
    public: Vec<u8>,
}

impl<C> DhKey for CurveKey<C>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
    SecretKey<C>: Send,
{
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let refused = CryptoError::PublicValue { group: self.group };
        if peer_public.len() != self.group.public_len() {
            return Err(refused);
        }
        // Reads coordinates below p on the curve, nothing else; the cofactor is 1.
        let point = PublicKey::<C>::from_sec1_bytes(&[&[UNCOMPRESSED], peer_public].concat());
        let shared = self.secret.diffie_hellman(&point.map_err(|_| refused)?);
        Ok(SecretBytes::copy(shared.raw_secret_bytes()))
    }
}

fn on_curve<C>(group: DhGroup, private: &[u8]) -> Option<Box<dyn DhKey>>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
    SecretKey<C>: Send,
{
    let secret = SecretKey::<C>::from_slice(private).ok()?;
    let public = secret.public_key().to_sec1_point(false).as_bytes().strip_prefix(&[UNCOMPRESSED])?.to_vec();
    Some(Box::new(CurveKey { group, secret, public }))
}

struct X25519Key {
    secret: StaticSecret,
    public: [u8; 32],
}

impl DhKey for X25519Key {
    fn public(&self) -> &[u8] {
        &self.public
    }

    fn agree(self: Box<Self>, peer_public: &[u8]) -> Result<SecretBytes, CryptoError> {
        let refused = CryptoError::PublicValue { group: DhGroup::Curve25519 };
        let Ok(peer) = <[u8; 32]>::try_from(peer_public) else { return Err(refused) };
        let shared = self.secret.diffie_hellman(&peer.into());
        if shared.was_contributory() { Ok(SecretBytes::copy(shared.as_bytes())) } else { Err(refused) }
    }
}

/// The key of a private value of exactly [`DhGroup::shared_len`] octets; none when it is out of range.
pub(super) fn key(group: DhGroup, private: &[u8]) -> Option<Box<dyn DhKey>> {
    if private.len() != group.shared_len() {
        return None;
    }
    match group {
        DhGroup::Ecp256 => on_curve::<p256::NistP256>(group, private),
        DhGroup::Ecp384 => on_curve::<p384::NistP384>(group, private),
        DhGroup::Ecp521 => on_curve::<p521::NistP521>(group, private),
        DhGroup::Curve25519 => {
            let octets = Zeroizing::new(<[u8; 32]>::try_from(private).ok()?);
            let secret = StaticSecret::from(*octets);
            let public = x25519_dalek::PublicKey::from(&secret).to_bytes();
            Some(Box::new(X25519Key { secret, public }))
        }
        DhGroup::Modp2048 | DhGroup::Modp3072 | DhGroup::Modp4096 | DhGroup::Modp6144 | DhGroup::Modp8192 => {
            None
        }
    }
}
