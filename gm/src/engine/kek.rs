//! A KEK as the member holds it, and when a key without a successor sends it to the server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::SeqNumber;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{AckRequest, KekKey, KekPolicy};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::io::{Entropy, Instant};
use ike::protect::push::KekCipherKey;
use ike::retransmit::below;

use super::lkh::KeyPath;

/// A KEK in use.
#[derive(Debug, Clone)]
pub struct Kek {
    /// Its policy.
    pub policy: KekPolicy,
    /// SPI, key and IV.
    pub cipher: KekCipherKey,
    /// DER SubjectPublicKeyInfo that verifies its PUSHes.
    pub public_key: Bytes,
    /// Our keys of the tree whose root it is; none without a tree.
    pub path: Option<KeyPath>,
    /// The multicast group its PUSHes come to: the destination of its SAK.
    pub channel: Option<SocketAddr>,
    /// Last number accepted.
    pub last: SeqNumber,
    /// End of its life.
    pub expires: Instant,
    /// When its coming end sends us to the server.
    pub soft: Option<Instant>,
}

impl Kek {
    /// A KEK from its policy and packet. Without SIG_ALGORITHM_KEY the public key of `before` stays valid.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn new(
        policy: KekPolicy,
        key: KekKey,
        before: Option<&Kek>,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<Kek, String> {
        let iv =
            <[u8; 16]>::try_from(key.iv.as_slice()).map_err(|_| "the KEK's cipher is not AES".to_owned())?;
        let cipher = Cipher::with_key_len(key.key.len())
            .and_then(|cipher| CipherKey::new(cipher, key.key))
            .ok_or("the KEK has a length that is not AES")?;
        let same = before.filter(|before| before.policy.signature == policy.signature);
        let public_key = match (key.public_key, same) {
            (Some(public_key), _) => public_key.into(),
            (None, Some(before)) => before.public_key.clone(),
            (None, None) => return Err("no SIG_ALGORITHM_KEY to verify pushes with".to_owned()),
        };
        let life = Duration::from_secs(u64::from(policy.lifetime_seconds));
        Ok(Kek {
            channel: multicast(&policy.destination),
            cipher: KekCipherKey { spi: policy.spi, key: cipher, iv },
            policy,
            public_key,
            path: None,
            last: SeqNumber(0),
            expires: now + life,
            soft: soft_expiry(life, now, entropy),
        })
    }

    /// The same with our keys of the tree.
    pub fn with_path(self, path: Option<KeyPath>) -> Kek {
        Kek { path, ..self }
    }

    /// The key of our acknowledgements of its PUSHes: that of our leaf for the LKH types (RFC 8263 section 4.2).
    pub fn ack_base(&self, request: AckRequest) -> Option<SecretBytes> {
        match request {
            AckRequest::KekSha256 | AckRequest::KekSha512 => Some(self.key().clone()),
            AckRequest::LkhSha256 | AckRequest::LkhSha512 => self.path.as_ref()?.leaf_key(),
        }
    }

    /// The key without its IV.
    pub fn key(&self) -> &SecretBytes {
        self.cipher.key.key()
    }

    /// The server stated its life anew.
    pub fn life_anew(&mut self, lifetime_seconds: u32, now: Instant, entropy: &mut dyn Entropy) {
        let life = Duration::from_secs(u64::from(lifetime_seconds));
        self.policy.lifetime_seconds = lifetime_seconds;
        self.expires = now + life;
        self.soft = soft_expiry(life, now, entropy);
    }
}

/// The multicast group that an endpoint of a SAK names.
fn multicast(destination: &Endpoint) -> Option<SocketAddr> {
    let address = destination.address().filter(IpAddr::is_multicast)?;
    (destination.port != 0).then(|| SocketAddr::new(address, destination.port))
}

/// When a key without a successor sends us to the server: at max(3 % of life, min(30 s, 10 % of life)) before the end, and
/// up to 3 % of life earlier, so that members do not come all at once (RFC 4046 section 5.5).
pub fn soft_expiry(life: Duration, now: Instant, entropy: &mut dyn Entropy) -> Option<Instant> {
    let three = life * 3 / 100;
    let margin = three.max((life / 10).min(Duration::from_secs(30)));
    let early = margin + below(three, entropy);
    (life > Duration::from_secs(1)).then(|| now + life.saturating_sub(early))
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fixed;
    use super::*;

    #[test]
    fn soft_expiry_leaves_three_percent_but_at_least_thirty_seconds_of_a_long_life() {
        let margin = |life: u64, fill: u8| {
            let now = Instant(5_000_000);
            let soft = soft_expiry(Duration::from_secs(life), now, &mut Fixed(fill)).expect("a moment");
            (now + Duration::from_secs(life)).since(soft).as_secs()
        };
        assert_eq!(margin(3600, 0), 108);
        assert_eq!(margin(600, 0), 30);
        assert_eq!(margin(100, 0), 10);
        assert!((108..=216).contains(&margin(3600, 0xa7)));
        assert_eq!(soft_expiry(Duration::from_secs(1), Instant(0), &mut Fixed(0)), None);
    }
}
