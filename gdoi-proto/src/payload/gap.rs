//! Group associated policy (RFC 6407 section 5.4).

use crate::attribute::Attribute;
use crate::codec::{Reader, Writer};
use crate::error::DecodeError;
use crate::registry::GapAttribute;

/// ATD and DTD from the key server, the SID request from a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gap {
    /// Attributes in the order of the wire.
    pub attributes: Vec<Attribute>,
}

/// ACTIVATION_TIME_DELAY.
pub const ACTIVATION_TIME_DELAY: u16 = GapAttribute::ActivationTimeDelay.number();
/// DEACTIVATION_TIME_DELAY.
pub const DEACTIVATION_TIME_DELAY: u16 = GapAttribute::DeactivationTimeDelay.number();
/// SENDER_ID_REQUEST.
pub const SENDER_ID_REQUEST: u16 = GapAttribute::SenderIdRequest.number();

impl Gap {
    /// The policy a key server sends: delays in seconds.
    pub fn delays(activation: u16, deactivation: u16) -> Gap {
        Gap {
            attributes: vec![
                Attribute::basic(ACTIVATION_TIME_DELAY, activation),
                Attribute::basic(DEACTIVATION_TIME_DELAY, deactivation),
            ],
        }
    }

    /// A member's request for `count` Sender-IDs.
    pub fn sender_ids(count: u16) -> Gap {
        Gap { attributes: vec![Attribute::basic(SENDER_ID_REQUEST, count)] }
    }

    pub(crate) fn decode(r: Reader<'_>) -> Result<Gap, DecodeError> {
        Ok(Gap { attributes: Attribute::decode_all(r)? })
    }

    pub(crate) fn encode(&self, w: &mut Writer) {
        Attribute::encode_all(&self.attributes, w);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::PayloadType;

    #[test]
    fn delays_and_requests_go_both_ways() {
        for (gap, octets) in [(Gap::delays(30, 60), "8001001e8002003c"), (Gap::sender_ids(2), "80030002")] {
            let mut w = Writer::new();
            gap.encode(&mut w);
            let encoded = w.finish();
            assert_eq!(hex::encode(&encoded), octets);
            assert_eq!(Gap::decode(Reader::new(PayloadType::Gap, &encoded)), Ok(gap));
        }
    }
}
