//! A whole SA payload: rekey SA, delays and data-security SAs (RFC 6407 sections 5.2 and 5.4).

use super::{Carriage, KekPolicy, TekPolicy, number, refuse_repeats};
use crate::attribute::Attribute;
use crate::error::PolicyError;
use crate::payload::{ACTIVATION_TIME_DELAY, DEACTIVATION_TIME_DELAY, Gap, GdoiSa, SaTek};
use crate::registry::{GapAttribute, PayloadType, TekProtocol};

/// A whole SA payload read. SATs of other protocols than ESP are refused as unsupported here; IEC 61850 policies
/// are read by [`crate::payload::Iec61850Tek`] itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupPolicy {
    /// Rekey SA.
    pub kek: Option<KekPolicy>,
    /// ATD in seconds, 0 when absent.
    pub activation_delay: u16,
    /// DTD in seconds, none when absent: nothing is replaced early.
    pub deactivation_delay: Option<u16>,
    /// Data-security SAs in the order sent.
    pub teks: Vec<TekPolicy>,
}

impl GroupPolicy {
    /// Reads an SA payload.
    ///
    /// # Errors
    /// [`PolicyError`] of the first SAK, GAP or SAT that cannot be used; a GAP with SENDER_ID_REQUEST or an
    /// unknown attribute is refused.
    pub fn read(sa: &GdoiSa, carriage: Carriage) -> Result<GroupPolicy, PolicyError> {
        let kek = sa.kek.as_ref().map(|sak| KekPolicy::read(sak, carriage)).transpose()?;
        let (activation_delay, deactivation_delay) = match &sa.gap {
            None => (0, None),
            Some(gap) => read_delays(gap)?,
        };
        let mut teks: Vec<TekPolicy> = Vec::new();
        for sat in &sa.teks {
            let tek = match sat {
                SaTek::Esp(sat) => TekPolicy::read(sat)?,
                SaTek::Ah(_) => return Err(unsupported_protocol(TekProtocol::Ah)),
                SaTek::Iec61850(_) => return Err(unsupported_protocol(TekProtocol::Iec61850)),
            };
            if teks.iter().any(|earlier| earlier.spi == tek.spi) {
                return Err(PolicyError::Forbidden {
                    payload: PayloadType::SaTek,
                    rule: "two SATs with one SPI",
                });
            }
            teks.push(tek);
        }
        Ok(GroupPolicy { kek, activation_delay, deactivation_delay, teks })
    }

    /// Writes the SA payload; the GAP is left out when there is no deactivation delay and no activation delay.
    pub fn write(&self, carriage: Carriage) -> GdoiSa {
        let mut delays = vec![Attribute::basic(ACTIVATION_TIME_DELAY, self.activation_delay)];
        delays.extend(self.deactivation_delay.map(|delay| Attribute::basic(DEACTIVATION_TIME_DELAY, delay)));
        let gap = (self.activation_delay != 0 || self.deactivation_delay.is_some())
            .then_some(Gap { attributes: delays });
        GdoiSa {
            kek: self.kek.as_ref().map(|kek| kek.write(carriage)),
            gap,
            teks: self.teks.iter().map(|tek| SaTek::Esp(tek.write())).collect(),
            wide_id_lengths: false,
        }
    }
}

/// Reads SENDER_ID_REQUEST of a member's GAP (message 3): 1 when there is no GAP.
///
/// # Errors
/// [`PolicyError`] when the GAP holds anything else.
pub fn read_sender_id_request(gap: Option<&Gap>) -> Result<u16, PolicyError> {
    let Some(gap) = gap else {
        return Ok(1);
    };
    refuse_repeats(PayloadType::Gap, &gap.attributes, |_| false)?;
    let mut count = 1;
    for attribute in &gap.attributes {
        count = match GapAttribute::from_number(attribute.kind) {
            GapAttribute::SenderIdRequest => number(PayloadType::Gap, "SENDER_ID_REQUEST", attribute)?,
            GapAttribute::ActivationTimeDelay | GapAttribute::DeactivationTimeDelay => {
                return Err(PolicyError::Forbidden {
                    payload: PayloadType::Gap,
                    rule: "delays come from the key server only",
                });
            }
            GapAttribute::Other(kind) => return Err(unknown_attribute(kind)),
        };
    }
    Ok(count)
}

fn unsupported_protocol(protocol: TekProtocol) -> PolicyError {
    let value = u64::from(protocol.number());
    PolicyError::Unsupported { payload: PayloadType::SaTek, what: "SAT protocol", value }
}

fn unknown_attribute(kind: u16) -> PolicyError {
    PolicyError::Unsupported { payload: PayloadType::Gap, what: "GAP attribute", value: u64::from(kind) }
}

/// ATD, 0 when absent, and DTD.
fn read_delays(gap: &Gap) -> Result<(u16, Option<u16>), PolicyError> {
    refuse_repeats(PayloadType::Gap, &gap.attributes, |_| false)?;
    let (mut activation, mut deactivation) = (0, None);
    for attribute in &gap.attributes {
        match GapAttribute::from_number(attribute.kind) {
            GapAttribute::ActivationTimeDelay => {
                activation = number(PayloadType::Gap, "ACTIVATION_TIME_DELAY", attribute)?;
            }
            GapAttribute::DeactivationTimeDelay => {
                deactivation = Some(number(PayloadType::Gap, "DEACTIVATION_TIME_DELAY", attribute)?);
            }
            GapAttribute::SenderIdRequest => {
                return Err(PolicyError::Forbidden {
                    payload: PayloadType::Gap,
                    rule: "SENDER_ID_REQUEST comes from a member only",
                });
            }
            GapAttribute::Other(kind) => return Err(unknown_attribute(kind)),
        }
    }
    Ok((activation, deactivation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Chain, Rules, encode_payload};
    use crate::payload::Payload;

    fn vectors(text: &str) -> serde_json::Value {
        serde_json::from_str(text).unwrap()
    }

    fn sas(plaintext: &serde_json::Value) -> Vec<GdoiSa> {
        let octets = hex::decode(plaintext.as_str().unwrap()).unwrap();
        let first = if octets[0] == 10 || octets[3] == 0x24 { PayloadType::Hash } else { PayloadType::Seq };
        let chain = Chain::decode(first, &octets, Rules::GROUP_OPENED).unwrap();
        chain
            .payloads
            .into_iter()
            .filter_map(|located| match located.payload {
                Payload::GdoiSa(sa) => Some(sa),
                _ => None,
            })
            .collect()
    }

    /// The vectors spell out some defaults, which we leave out.
    fn without_defaults(mut sa: GdoiSa) -> GdoiSa {
        for sat in &mut sa.teks {
            if let SaTek::Esp(tek) = sat {
                tek.attributes.retain(|attribute| {
                    !matches!((attribute.kind, attribute.integer()), (14, Some(4)) | (15, Some(3)))
                });
            }
        }
        sa
    }

    #[test]
    fn policies_of_the_vectors_are_written_as_read() {
        let pull = vectors(include_str!("../../../tests/data/vectors/gdoi-pull.json"));
        let push = vectors(include_str!("../../../tests/data/vectors/gdoi-push.json"));
        let lkh = vectors(include_str!("../../../tests/data/vectors/gdoi-lkh.json"));
        let pulls = pull["cases"].as_array().unwrap().iter().map(|case| &case["messages"][1]["plaintext"]);
        let pushes =
            push["cases"].as_array().unwrap().iter().chain([&lkh["push"]]).map(|case| &case["plaintext"]);
        let all = pulls.map(|text| (text, Carriage::Pull)).chain(pushes.map(|text| (text, Carriage::Push)));
        let mut count = 0;
        for (text, carriage) in all {
            for sa in sas(text) {
                let policy = GroupPolicy::read(&sa, carriage).unwrap();
                let written = policy.write(carriage);
                let octets = |sa| hex::encode(encode_payload(&Payload::GdoiSa(sa), PayloadType::None));
                assert_eq!(octets(written), octets(without_defaults(sa)));
                count += 1;
            }
        }
        assert_eq!(count, 7);
    }

    #[test]
    fn a_gap_is_written_only_when_there_is_a_delay() {
        let policy = |activation_delay, deactivation_delay| GroupPolicy {
            kek: None,
            activation_delay,
            deactivation_delay,
            teks: vec![],
        };
        assert_eq!(policy(0, None).write(Carriage::Pull).gap, None);
        assert_eq!(policy(30, Some(60)).write(Carriage::Pull).gap, Some(Gap::delays(30, 60)));
        for delays in [(0, None), (0, Some(60)), (30, None), (30, Some(60))] {
            let policy = policy(delays.0, delays.1);
            assert_eq!(GroupPolicy::read(&policy.write(Carriage::Push), Carriage::Push), Ok(policy));
        }
    }

    #[test]
    fn sender_id_requests_are_read_from_the_members_gap_only() {
        assert_eq!(read_sender_id_request(None), Ok(1));
        assert_eq!(read_sender_id_request(Some(&Gap::sender_ids(5))), Ok(5));
        assert!(read_sender_id_request(Some(&Gap::delays(1, 2))).is_err());
        assert!(read_sender_id_request(Some(&Gap { attributes: vec![Attribute::basic(128, 0)] })).is_err());
        let sa = GdoiSa { gap: Some(Gap::sender_ids(2)), ..GdoiSa::default() };
        assert!(matches!(GroupPolicy::read(&sa, Carriage::Pull), Err(PolicyError::Forbidden { .. })));
    }
}
