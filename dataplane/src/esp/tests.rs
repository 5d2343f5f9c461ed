//! Sealing and opening against the vectors and against each other.

use std::time::Duration;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::{Encapsulation, TekAuthentication, TekCipher, TekKey};
use gdoi_proto::secret::SecretBytes;
use proptest::prelude::*;

use super::*;
use crate::d3p::{Refusal, Timestamp};
use crate::header::Header;
use crate::sa::Stamp;

const WINDOW: Duration = Duration::from_secs(1);
const NOW: Timestamp = Timestamp { seconds: 0x6553_f100, microseconds: 250_000 };

fn keys(cipher: TekCipher, encryption: &[u8]) -> Keys {
    let integrity = cipher.authentication().map(|kind| SecretBytes::new(vec![9; kind.key_octets()]));
    Keys::new(cipher, &TekKey { encryption: SecretBytes::copy(encryption), integrity }).unwrap()
}

fn ciphers() -> [Keys; 6] {
    let gcm = |icv_octets| TekCipher::AesGcm { key_octets: 32, icv_octets };
    [
        keys(gcm(16), &[7; 36]),
        keys(gcm(8), &[7; 36]),
        keys(TekCipher::AesGmac { key_octets: 16 }, &[7; 20]),
        keys(TekCipher::AesCbc { key_octets: 16, authentication: TekAuthentication::HmacSha256 }, &[7; 16]),
        keys(TekCipher::AesCbc { key_octets: 32, authentication: TekAuthentication::HmacSha512 }, &[7; 32]),
        keys(TekCipher::Null { authentication: TekAuthentication::HmacSha384 }, &[]),
    ]
}

fn sealing(keys: &Keys, encapsulation: Encapsulation, timestamp: Option<Timestamp>) -> Sealing<'_> {
    Sealing {
        keys,
        spi: Spi(0x0001_0001),
        encapsulation,
        carrier: Carrier::Raw,
        stamp: Stamp { sequence: 9, iv: [0xa5; 16] },
        timestamp,
        df: DfBit::Copy,
        identification: 2,
    }
}

fn opening(keys: &Keys, encapsulation: Encapsulation, window: Option<Duration>) -> Opening<'_> {
    Opening { keys, encapsulation, carrier: Carrier::Raw, window, now: NOW }
}

fn sealed(how: &Sealing<'_>, packet: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut buffer = vec![0; HEADROOM];
    buffer.extend_from_slice(packet);
    buffer.extend([0; TAILROOM]);
    let at = seal(how, &mut buffer, HEADROOM..HEADROOM + packet.len())?;
    Ok(buffer[at].to_vec())
}

fn opened(how: &Opening<'_>, packet: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut buffer = packet.to_vec();
    let outer = Header::read(packet)?;
    let opened = open(how, &mut buffer, 0..packet.len(), &outer).map_err(|refused| refused.error)?;
    Ok(buffer[opened.packet].to_vec())
}

/// UDP with `payload`, checksums of IPv4 right.
fn packet(v4: bool, class: u8, payload: &[u8]) -> Vec<u8> {
    let udp = 8 + payload.len() as u16;
    let mut packet = if v4 {
        let [high, low] = (20 + udp).to_be_bytes();
        let mut ip = vec![0x45, class, high, low, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9];
        let sum = crate::header::checksum(&ip).to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
        ip
    } else {
        let [high, low] = udp.to_be_bytes();
        let mut ip = vec![0x60 | class >> 4, class << 4 | 3, 7, 9, high, low, 17, 64];
        ip.extend([0x20; 16]);
        ip.extend([0x30; 16]);
        ip
    };
    packet.extend([0x9c, 0x40, 0, 9]);
    packet.extend(udp.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend_from_slice(payload);
    packet
}

#[test]
fn the_vectors_of_address_preserving_tunnels_are_met_octet_for_octet() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/vectors/gdoi-dataplane.json");
    let vectors: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 2);
    for case in cases {
        let octets = |name: &str| hex::decode(case[name].as_str().unwrap()).unwrap();
        let number = |name: &str| case[name].as_u64().unwrap();
        let with_time = case["name"] == "esp-gcm-sid-ipd3p";
        let keys = keys(TekCipher::AesGcm { key_octets: 16, icv_octets: 16 }, &octets("key_and_salt"));
        let mut iv = [0; 16];
        iv[..8].copy_from_slice(&(number("sid") << (64 - number("sid_bits")) | number("seq")).to_be_bytes());
        assert_eq!(iv[..8], octets("iv"));
        let how = Sealing {
            stamp: Stamp { sequence: number("seq") as u32, iv },
            ..sealing(&keys, Encapsulation::Tunnel, with_time.then_some(NOW))
        };
        let (inner, outer) = (octets("inner_packet"), octets("outer_packet"));
        assert_eq!(sealed(&how, &inner).unwrap(), outer, "{}", case["name"]);
        let window = with_time.then_some(WINDOW);
        assert_eq!(opened(&opening(&keys, Encapsulation::Tunnel, window), &outer).unwrap(), inner);
    }
}

#[test]
fn every_truncation_of_a_sealed_packet_is_refused() {
    for keys in &ciphers() {
        for encapsulation in [Encapsulation::Tunnel, Encapsulation::Transport] {
            let how = opening(keys, encapsulation, None);
            let whole = sealed(&sealing(keys, encapsulation, None), &packet(true, 0, b"gdoi")).unwrap();
            for length in 0..whole.len() {
                assert!(opened(&how, &whole[..length]).is_err());
                // The same with an IP header that agrees.
                let mut short = whole[..length].to_vec();
                if length >= 20 {
                    short[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                    assert!(opened(&how, &short).is_err(), "{keys:?} {length}");
                }
            }
        }
    }
}

#[test]
fn the_outer_header_copies_dscp_ecn_flow_label_and_df_as_told() {
    let keys = &ciphers()[0];
    let how = sealing(keys, Encapsulation::Tunnel, None);
    let four = sealed(&how, &packet(true, 0xba, b"x")).unwrap();
    assert_eq!((four[1], four[6]), (0xba, 0x40));
    let clear = sealed(&Sealing { df: DfBit::Clear, ..how }, &packet(true, 0, b"x")).unwrap();
    assert_eq!(clear[6], 0);
    let six = sealed(&how, &packet(false, 0xba, b"x")).unwrap();
    assert_eq!(six[..4], packet(false, 0xba, b"x")[..4]);
    assert_eq!((six[6], usize::from(u16::from_be_bytes([six[4], six[5]])) + 40), (50, six.len()));
}

#[test]
fn congestion_on_the_way_reaches_the_inner_packet_or_drops_it() {
    let keys = &ciphers()[3];
    for v4 in [true, false] {
        let mut outer = sealed(&sealing(keys, Encapsulation::Tunnel, None), &packet(v4, 2, b"x")).unwrap();
        if v4 {
            outer[1] |= 3
        } else {
            outer[1] |= 0x30
        }
        let how = opening(keys, Encapsulation::Tunnel, None);
        assert_eq!(opened(&how, &outer).unwrap(), packet(v4, 3, b"x"));
        let mut outer = sealed(&sealing(keys, Encapsulation::Tunnel, None), &packet(v4, 0, b"x")).unwrap();
        if v4 {
            outer[1] |= 3
        } else {
            outer[1] |= 0x30
        }
        assert_eq!(opened(&how, &outer), Err(OpenError::Congestion));
    }
}

#[test]
fn outer_addresses_that_are_not_the_inner_ones_are_refused() {
    let keys = &ciphers()[0];
    for at in [12, 16] {
        let mut outer = sealed(&sealing(keys, Encapsulation::Tunnel, None), &packet(true, 0, b"x")).unwrap();
        outer[at] ^= 1;
        assert_eq!(opened(&opening(keys, Encapsulation::Tunnel, None), &outer), Err(OpenError::Address));
    }
}

#[test]
fn fragments_are_neither_opened_nor_sealed_for_transport() {
    let keys = &ciphers()[0];
    let mut outer = sealed(&sealing(keys, Encapsulation::Tunnel, None), &packet(true, 0, b"x")).unwrap();
    outer[6] = 0x20;
    assert_eq!(opened(&opening(keys, Encapsulation::Tunnel, None), &outer), Err(OpenError::Fragment));
    let mut inner = packet(true, 0, b"x");
    inner[6] = 0x20;
    assert_eq!(sealed(&sealing(keys, Encapsulation::Transport, None), &inner), Err(SealError::Fragment));
    assert!(sealed(&sealing(keys, Encapsulation::Tunnel, None), &inner).is_ok());
}

#[test]
fn timestamps_are_demanded_judged_and_refused_by_cause() {
    let keys = &ciphers()[0];
    let tunnel = Encapsulation::Tunnel;
    let late = Timestamp { seconds: NOW.seconds - 2, ..NOW };
    let early = Timestamp { seconds: NOW.seconds + 2, ..NOW };
    let cases = [
        (None, Some(WINDOW), Refusal::NoTimestamp),
        (Some(NOW), None, Refusal::Unexpected),
        (Some(late), Some(WINDOW), Refusal::TooOld),
        (Some(early), Some(WINDOW), Refusal::TooNew),
    ];
    for (time, window, refusal) in cases {
        let outer = sealed(&sealing(keys, tunnel, time), &packet(true, 0, b"x")).unwrap();
        assert_eq!(opened(&opening(keys, tunnel, window), &outer), Err(refusal.into()));
    }
    // A transport SA carries protocol 253 with UDP behind it: no tunnel has that.
    let transport =
        sealed(&sealing(keys, Encapsulation::Transport, Some(NOW)), &packet(true, 0, b"x")).unwrap();
    let how = opening(keys, tunnel, Some(WINDOW));
    assert_eq!(opened(&how, &transport), Err(Refusal::WrongNextHeader.into()));
    assert_eq!(opened(&opening(keys, Encapsulation::Transport, None), &transport).unwrap()[9], 253);
}

#[test]
fn a_buffer_without_room_and_a_packet_too_long_are_refused() {
    let keys = &ciphers()[4];
    let inner = packet(true, 0, b"x");
    let mut tight = inner.clone();
    tight.extend([0; TAILROOM]);
    let how = sealing(keys, Encapsulation::Tunnel, None);
    assert_eq!(seal(&how, &mut tight, 0..inner.len()), Err(SealError::NoRoom));
    let mut tight = vec![0; HEADROOM];
    tight.extend(&inner);
    assert_eq!(seal(&how, &mut tight, HEADROOM..HEADROOM + inner.len()), Err(SealError::NoRoom));
    let long = packet(true, 0, &[0; 65500]);
    assert_eq!(sealed(&how, &long), Err(SealError::TooLong));
}

proptest! {
    #[test]
    fn what_is_sealed_opens_to_itself_within_the_stated_overhead(
        which in 0usize..6, v4 in any::<bool>(), transport in any::<bool>(), timed in any::<bool>(),
        udp in any::<bool>(), payload in proptest::collection::vec(any::<u8>(), 0..200),
        flip in any::<prop::sample::Index>(),
    ) {
        let carrier = if udp { Carrier::Udp } else { Carrier::Raw };
        let keys = &ciphers()[which];
        let mode = if transport { Encapsulation::Transport } else { Encapsulation::Tunnel };
        let inner = packet(v4, 0xb8, &payload);
        let how = Sealing { carrier, ..sealing(keys, mode, timed.then_some(NOW)) };
        let outer = sealed(&how, &inner).unwrap();
        prop_assert!(outer.len() <= inner.len() + overhead(keys.shape(), mode, carrier, v4, timed));
        let peeked = peek(&outer, &Header::read(&outer).unwrap()).unwrap();
        prop_assert_eq!(peeked, Peeked { spi: how.spi, sequence: 9, carrier });
        let how = Opening { carrier, ..opening(keys, mode, timed.then_some(WINDOW)) };
        prop_assert_eq!(opened(&how, &outer).unwrap(), inner);
        // Any changed octet behind the headers is noticed.
        let header = if v4 { 20 } else { 40 } + carrier.octets();
        let mut changed = outer.clone();
        changed[header + flip.index(outer.len() - header)] ^= 0x10;
        prop_assert!(opened(&how, &changed).is_err());
    }

    #[test]
    fn no_octets_make_opening_panic(which in 0usize..6, transport in any::<bool>(),
                                    mut octets in proptest::collection::vec(any::<u8>(), 0..160)) {
        if let Some(first) = octets.first_mut() {
            *first = if *first & 1 == 0 { 0x45 } else { 0x60 };
        }
        if octets.len() > 10 {
            let (total, payload) = (octets.len() as u16, (octets.len() as u16).saturating_sub(40));
            let length = if octets[0] == 0x45 { (2, total) } else { (4, payload) };
            octets[length.0..length.0 + 2].copy_from_slice(&length.1.to_be_bytes());
            let protocol_at = if octets[0] == 0x45 { 9 } else { 6 };
            octets[protocol_at] = 50;
        }
        let keys = &ciphers()[which];
        let mode = if transport { Encapsulation::Transport } else { Encapsulation::Tunnel };
        prop_assert!(opened(&opening(keys, mode, None), &octets).is_err());
    }
}
