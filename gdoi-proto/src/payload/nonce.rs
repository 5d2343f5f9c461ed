//! Nonce: raw octets whose number depends on the exchange (RFC 2409 section 5, RFC 6407 section 5.8).

use crate::codec::Reader;
use crate::error::DecodeError;
use crate::message::Domain;

/// 8 to 256 octets in phase 1, 8 to 128 in a group message.
pub(crate) fn decode(r: Reader<'_>, domain: Domain) -> Result<Vec<u8>, DecodeError> {
    let most = match domain {
        Domain::Phase1 => 256,
        Domain::Group => 128,
    };
    super::raw(r, "nonce", 8..=most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    #[test]
    fn length_limits_differ_by_domain() {
        let ok =
            |length: usize, domain| decode(Reader::new(PayloadType::Nonce, &vec![7; length]), domain).is_ok();
        assert!(
            !ok(7, Domain::Phase1)
                && ok(8, Domain::Phase1)
                && ok(256, Domain::Phase1)
                && !ok(257, Domain::Phase1)
        );
        assert!(
            !ok(7, Domain::Group)
                && ok(8, Domain::Group)
                && ok(128, Domain::Group)
                && !ok(129, Domain::Group)
        );
    }
}
