//! A whole SA payload: rekey SA, delays and data-security SAs (RFC 6407 sections 5.2 and 5.4).

use std::time::Duration;

use super::{Carriage, KekPolicy, TekPolicy, number, refuse_repeats};
use crate::attribute::Attribute;
use crate::error::PolicyError;
use crate::payload::{ACTIVATION_TIME_DELAY, DEACTIVATION_TIME_DELAY, Gap, GdoiSa, SaTek};
use crate::registry::{GapAttribute, PayloadType, TekProtocol};

/// D3P-TYPE and D3P-WINDOWSIZE of draft-weis-delay-detection-03, whose numbers were never assigned: private ones, which
/// members of ours know.
const DELAY_DETECTION_TYPE: u16 = GapAttribute::DelayDetectionType.number();
const DELAY_DETECTION_WINDOW: u16 = GapAttribute::DelayDetectionWindow.number();
/// POSIX-TIME, the only D3P-TYPE.
const POSIX_TIME: u16 = 1;

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
        let Delays { activation: activation_delay, deactivation: deactivation_delay, window } = match &sa.gap
        {
            None => Delays::default(),
            Some(gap) => read_delays(gap)?,
        };
        let mut teks: Vec<TekPolicy> = Vec::new();
        for sat in &sa.teks {
            let tek = match sat {
                SaTek::Esp(sat) => TekPolicy { delay_window: window, ..TekPolicy::read(sat)? },
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
        // While keys with and without timestamps overlap, the newest speaks for all: nothing on the wire tells them apart.
        let window = self.teks.last().and_then(|tek| tek.delay_window);
        if let Some(width) = window {
            let milliseconds = u32::try_from(width.as_millis()).unwrap_or(u32::MAX);
            delays.push(Attribute::basic(DELAY_DETECTION_TYPE, POSIX_TIME));
            delays.push(Attribute::variable(DELAY_DETECTION_WINDOW, milliseconds.to_be_bytes()));
        }
        let says = self.activation_delay != 0 || self.deactivation_delay.is_some() || window.is_some();
        let gap = says.then_some(Gap { attributes: delays });
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
            GapAttribute::ActivationTimeDelay
            | GapAttribute::DeactivationTimeDelay
            | GapAttribute::DelayDetectionType
            | GapAttribute::DelayDetectionWindow => {
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

/// What a key server's GAP says.
#[derive(Debug, Clone, Copy, Default)]
struct Delays {
    /// ATD, 0 when absent.
    activation: u16,
    /// DTD.
    deactivation: Option<u16>,
    /// Width of the window of timestamps.
    window: Option<Duration>,
}

fn read_delays(gap: &Gap) -> Result<Delays, PolicyError> {
    refuse_repeats(PayloadType::Gap, &gap.attributes, |_| false)?;
    let (mut activation, mut deactivation) = (0, None);
    let (mut timestamps, mut window) = (None, None);
    for attribute in &gap.attributes {
        match GapAttribute::from_number(attribute.kind) {
            GapAttribute::ActivationTimeDelay => {
                activation = number(PayloadType::Gap, "ACTIVATION_TIME_DELAY", attribute)?;
            }
            GapAttribute::DeactivationTimeDelay => {
                deactivation = Some(number(PayloadType::Gap, "DEACTIVATION_TIME_DELAY", attribute)?);
            }
            GapAttribute::DelayDetectionType => {
                timestamps = Some(number::<u16>(PayloadType::Gap, "D3P-TYPE", attribute)?);
            }
            GapAttribute::DelayDetectionWindow => {
                let milliseconds: u32 = number(PayloadType::Gap, "D3P-WINDOWSIZE", attribute)?;
                window = Some(Duration::from_millis(u64::from(milliseconds))).filter(|it| !it.is_zero());
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
    match (timestamps, window) {
        (None, None) | (Some(POSIX_TIME), Some(_)) => Ok(Delays { activation, deactivation, window }),
        (Some(kind), Some(_)) if kind != POSIX_TIME => Err(PolicyError::Unsupported {
            payload: PayloadType::Gap,
            what: "D3P-TYPE",
            value: u64::from(kind),
        }),
        _ => Err(PolicyError::Forbidden {
            payload: PayloadType::Gap,
            rule: "timestamps have a type and a window (draft-weis-delay-detection-03)",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Spi;
    use crate::message::{Chain, Rules, encode_payload};
    use crate::payload::{Endpoint, Payload};
    use crate::policy::{AddressPreservation, Direction, Encapsulation, TekCipher};
    use crate::registry::IdType;

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
    fn the_window_of_timestamps_is_for_all_keys_of_the_payload_and_needs_its_type() {
        let any = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![0; 8] };
        let tek = TekPolicy {
            spi: Spi(300),
            ip_protocol: 0,
            source: any.clone(),
            destination: any,
            cipher: TekCipher::AesGcm { key_octets: 32, icv_octets: 16 },
            lifetime_seconds: 3600,
            lifetime_kilobytes: None,
            encapsulation: Encapsulation::Tunnel,
            address_preservation: AddressPreservation::Both,
            direction: Direction::Symmetric,
            delay_window: Some(Duration::from_millis(1500)),
        };
        let teks = vec![TekPolicy { spi: Spi(301), ..tek.clone() }, tek];
        let policy = GroupPolicy { kek: None, activation_delay: 30, deactivation_delay: Some(60), teks };
        let mut sa = policy.write(Carriage::Pull);
        assert_eq!(GroupPolicy::read(&sa, Carriage::Pull).unwrap(), policy);
        let gap = sa.gap.clone().unwrap();
        for left_out in [2, 3] {
            let mut gap = gap.clone();
            gap.attributes.remove(left_out);
            sa.gap = Some(gap);
            assert!(GroupPolicy::read(&sa, Carriage::Pull).is_err(), "attribute {left_out}");
        }
        let mut gap = gap;
        gap.attributes[2] = Attribute::basic(DELAY_DETECTION_TYPE, 2);
        sa.gap = Some(gap);
        assert!(GroupPolicy::read(&sa, Carriage::Pull).is_err(), "a clock nobody knows");
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
        let own = Gap { attributes: vec![Attribute::basic(DELAY_DETECTION_TYPE, 1)] };
        assert!(read_sender_id_request(Some(&own)).is_err());
        assert!(read_sender_id_request(Some(&Gap::delays(1, 2))).is_err());
        assert!(read_sender_id_request(Some(&Gap { attributes: vec![Attribute::basic(128, 0)] })).is_err());
        let sa = GdoiSa { gap: Some(Gap::sender_ids(2)), ..GdoiSa::default() };
        assert!(matches!(GroupPolicy::read(&sa, Carriage::Pull), Err(PolicyError::Forbidden { .. })));
    }
}
