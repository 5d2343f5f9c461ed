//! Messages for people: one line per datagram, a tree per message. Nothing here prints key material: nonces, public
//! values, hashes, signatures and the keys of a KD are shown by their length.

use std::fmt::{self, Display, Write};

use crate::attribute::{Attribute, AttributeValue};
use crate::header::Header;
use crate::message::{Dialect, Domain, Message, Rules};
use crate::payload::id::Readable;
use crate::payload::{
    Delete, Endpoint, EspTek, GdoiSa, Iec61850Tek, KeyDownload, KeyPacket, Notify, Payload, Sa, SaKek, SaTek,
};
use crate::registry::{
    EspTransform, ExchangeType, GapAttribute, IecAttribute, IkeAttribute, IpsecAttribute, KekAttribute,
    KekKeyAttribute, LkhAttribute, NotifyType, SidAttribute, TekKeyAttribute, TekProtocol,
};

/// One line about a datagram: cookies, exchange, message ID, length, and the payloads when they are not encrypted.
/// Anything may be given; what is not ISAKMP is called malformed with the reason. `datagram` is the UDP payload
/// without a non-ESP marker.
pub fn one_line(datagram: &[u8]) -> String {
    let header = match Header::decode(datagram) {
        Ok(header) => header,
        Err(error) => return format!("not ISAKMP, {} octets ({error})", datagram.len()),
    };
    let mut line = head(&header);
    if header.flags.encrypted() {
        line.push_str(" encrypted");
        return line;
    }
    let domain = match header.exchange {
        ExchangeType::GroupkeyPull | ExchangeType::GroupkeyPush | ExchangeType::GroupkeyPushAck => {
            Domain::Group
        }
        ExchangeType::Base
        | ExchangeType::MainMode
        | ExchangeType::AuthenticationOnly
        | ExchangeType::Aggressive
        | ExchangeType::Informational
        | ExchangeType::Other(_) => Domain::Phase1,
    };
    let dialect = Dialect { large_offers: true, ..Dialect::STRICT };
    line.push(':');
    match Message::decode(datagram, Rules { domain, dialect, ..Rules::PHASE1_CLEAR }) {
        Ok(message) => message.payloads.iter().for_each(|payload| {
            line.push(' ');
            line.push_str(&brief(payload));
        }),
        Err(error) => add(&mut line, format_args!(" malformed ({error})")),
    }
    line
}

/// A message as a tree, one field or payload per line, two spaces per level, each line ended by a newline.
pub fn tree(header: &Header, payloads: &[Payload]) -> String {
    let mut tree = Tree { text: String::new(), depth: 0 };
    tree.line(head(header));
    for payload in payloads {
        tree.nested(|tree| tree.payload(payload));
    }
    tree.text
}

/// Writing into a `String` cannot fail.
fn add(text: &mut String, arguments: fmt::Arguments<'_>) {
    let _ = text.write_fmt(arguments);
}

fn head(header: &Header) -> String {
    let Header { cookies, exchange, message_id, length, .. } = header;
    format!("{cookies} {exchange} id {message_id} len {length}")
}

fn notify_name(notify: &Notify) -> NotifyType {
    NotifyType::from_number(notify.kind)
}

/// A payload in one or two words.
fn brief(payload: &Payload) -> String {
    let kind = payload.payload_type();
    match payload {
        Payload::Sa(sa) => {
            let transforms: usize = sa.proposals.iter().map(|proposal| proposal.transforms.len()).sum();
            format!("SA({transforms} transforms)")
        }
        Payload::GdoiSa(sa) => {
            let sak = if sa.kek.is_some() { "SAK, " } else { "" };
            let gap = if sa.gap.is_some() { "GAP, " } else { "" };
            format!("SA({sak}{gap}{} SAT)", sa.teks.len())
        }
        Payload::Id(id) => format!("ID({id})"),
        Payload::Notify(notify) => format!("N({})", notify_name(notify)),
        Payload::Delete(delete) => format!("D({} SPIs)", delete.spis.len()),
        Payload::NatOa(oa) => format!("NAT-OA({})", oa.address),
        Payload::Kd(kd) => format!("KD({} packets)", kd.packets.len()),
        Payload::Seq(seq) => format!("SEQ({seq})"),
        Payload::Gap(gap) => format!("GAP({} attributes)", gap.attributes.len()),
        Payload::Cert(cert) => format!("CERT({})", cert.data.len()),
        Payload::CertRequest(request) => format!("CERTREQ({})", request.authority.len()),
        Payload::Nonce(octets) => format!("NONCE({})", octets.len()),
        Payload::Ke(octets)
        | Payload::Hash(octets)
        | Payload::Sig(octets)
        | Payload::VendorId(octets)
        | Payload::NatD(octets) => format!("{kind}({})", octets.len()),
    }
}

/// Octets that are no secret, in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// `192.0.2.1`, `192.0.2.1:848` or `any`.
struct End<'a>(&'a Endpoint);

impl Display for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Endpoint { id_type, port, data } = self.0;
        match self.0.is_any() {
            true => f.write_str("any")?,
            false => Readable(*id_type, data).fmt(f)?,
        }
        match port {
            0 => Ok(()),
            port => write!(f, " port {port}"),
        }
    }
}

struct Tree {
    text: String,
    depth: usize,
}

impl Tree {
    fn line(&mut self, line: impl Display) {
        let indent = self.depth.saturating_mul(2);
        add(&mut self.text, format_args!("{:indent$}{line}\n", ""));
    }

    fn nested(&mut self, inner: impl FnOnce(&mut Tree)) {
        self.depth = self.depth.saturating_add(1);
        inner(self);
        self.depth = self.depth.saturating_sub(1);
    }

    /// Attributes by name; the octets of a TLV only as a number of at most 8 octets, or as their length when they
    /// may be a key.
    fn attributes(&mut self, attributes: &[Attribute], keys: bool, name: impl Fn(u16) -> String) {
        self.nested(|tree| {
            for attribute in attributes {
                let name = name(attribute.kind);
                match (&attribute.value, attribute.integer()) {
                    (AttributeValue::Basic(value), _) => tree.line(format_args!("{name} = {value}")),
                    (AttributeValue::Variable(_), Some(value)) if !keys => {
                        tree.line(format_args!("{name} = {value}"));
                    }
                    (AttributeValue::Variable(octets), _) => {
                        tree.line(format_args!("{name}: {} octets", octets.len()));
                    }
                }
            }
        });
    }

    fn payload(&mut self, payload: &Payload) {
        match payload {
            Payload::Sa(sa) => self.phase1_sa(sa),
            Payload::GdoiSa(sa) => self.group_sa(sa),
            Payload::Kd(kd) => self.kd(kd),
            Payload::Gap(gap) => {
                self.line("GAP");
                self.attributes(&gap.attributes, false, |kind| GapAttribute::from_number(kind).to_string());
            }
            Payload::Notify(notify) => self.line(format_args!(
                "N {} DOI {} protocol {} SPI {} data {} octets",
                notify_name(notify),
                notify.doi,
                notify.protocol,
                Hex(&notify.spi),
                notify.data.len()
            )),
            Payload::Delete(delete) => self.delete(delete),
            Payload::Id(id) => {
                self.line(format_args!("ID {:?} {id} protocol {} port {}", id.id_type, id.protocol, id.port))
            }
            Payload::Cert(cert) => {
                self.line(format_args!("CERT encoding {}: {} octets", cert.encoding, cert.data.len()));
            }
            Payload::CertRequest(request) => {
                self.line(format_args!("CERTREQ encoding {}: {}", request.encoding, Hex(&request.authority)));
            }
            Payload::VendorId(octets) => self.line(format_args!("VID {}", Hex(octets))),
            Payload::NatOa(oa) => self.line(format_args!("NAT-OA {}", oa.address)),
            Payload::Seq(seq) => self.line(format_args!("SEQ {seq}")),
            Payload::Nonce(octets) => self.line(format_args!("NONCE: {} octets", octets.len())),
            Payload::Ke(octets) | Payload::Hash(octets) | Payload::Sig(octets) | Payload::NatD(octets) => {
                self.line(format_args!("{}: {} octets", payload.payload_type(), octets.len()));
            }
        }
    }

    fn phase1_sa(&mut self, sa: &Sa) {
        self.line(format_args!("SA DOI {} situation {}", sa.doi, sa.situation));
        for proposal in &sa.proposals {
            self.nested(|tree| {
                tree.line(format_args!("P {} protocol {}", proposal.number, proposal.protocol));
                for transform in &proposal.transforms {
                    tree.nested(|tree| {
                        tree.line(format_args!("T {} id {}", transform.number, transform.id));
                        tree.attributes(&transform.attributes, false, |kind| {
                            IkeAttribute::from_number(kind).to_string()
                        });
                    });
                }
            });
        }
    }

    fn group_sa(&mut self, sa: &GdoiSa) {
        self.line("SA DOI GDOI situation 0");
        self.nested(|tree| {
            if let Some(kek) = &sa.kek {
                tree.sak(kek);
            }
            if let Some(gap) = &sa.gap {
                tree.line("GAP");
                tree.attributes(&gap.attributes, false, |kind| GapAttribute::from_number(kind).to_string());
            }
            for tek in &sa.teks {
                match tek {
                    SaTek::Esp(tek) => tree.sat(TekProtocol::Esp, tek),
                    SaTek::Ah(tek) => tree.sat(TekProtocol::Ah, tek),
                    SaTek::Iec61850(tek) => tree.iec61850(tek),
                }
            }
        });
    }

    fn sak(&mut self, sak: &SaKek) {
        let (source, destination) = (End(&sak.source), End(&sak.destination));
        self.line(format_args!("SAK {} from {source} to {destination}", sak.spi));
        self.attributes(&sak.attributes, false, |kind| KekAttribute::from_number(kind).to_string());
    }

    fn sat(&mut self, protocol: TekProtocol, tek: &EspTek) {
        let (source, destination) = (End(&tek.source), End(&tek.destination));
        let transform = match protocol {
            TekProtocol::Esp => EspTransform::from_number(tek.transform).to_string(),
            TekProtocol::Ah | TekProtocol::Iec61850 | TekProtocol::Other(_) => tek.transform.to_string(),
        };
        self.line(format_args!(
            "SAT {protocol} {} {transform} IP protocol {} from {source} to {destination}",
            tek.spi, tek.ip_protocol
        ));
        self.attributes(&tek.attributes, false, |kind| IpsecAttribute::from_number(kind).to_string());
    }

    fn iec61850(&mut self, tek: &Iec61850Tek) {
        self.line(format_args!(
            "SAT {} {} OID {} authentication {} encryption {} life {} s",
            TekProtocol::Iec61850,
            tek.spi,
            Hex(&tek.oid),
            tek.authentication,
            tek.encryption,
            tek.remaining_lifetime
        ));
        self.attributes(&tek.attributes, false, |kind| IecAttribute::from_number(kind).to_string());
    }

    fn kd(&mut self, kd: &KeyDownload) {
        self.line("KD");
        for packet in &kd.packets {
            self.nested(|tree| {
                let name = |kind| match packet {
                    KeyPacket::Tek { .. } => TekKeyAttribute::from_number(kind).to_string(),
                    KeyPacket::Kek { .. } => KekKeyAttribute::from_number(kind).to_string(),
                    KeyPacket::Lkh { .. } => LkhAttribute::from_number(kind).to_string(),
                    KeyPacket::SenderIds { .. } => SidAttribute::from_number(kind).to_string(),
                };
                match packet {
                    KeyPacket::Tek { spi, .. } => tree.line(format_args!("TEK {spi}")),
                    KeyPacket::Kek { spi, .. } => tree.line(format_args!("KEK {spi}")),
                    KeyPacket::Lkh { spi, .. } => tree.line(format_args!("LKH {spi}")),
                    KeyPacket::SenderIds { .. } => tree.line("SID"),
                }
                let keys = !matches!(packet, KeyPacket::SenderIds { .. });
                tree.attributes(packet.attributes(), keys, name);
            });
        }
    }

    fn delete(&mut self, delete: &Delete) {
        self.line(format_args!("D DOI {} protocol {}", delete.doi, delete.protocol));
        self.nested(|tree| delete.spis.iter().for_each(|spi| tree.line(format_args!("SPI {}", Hex(spi)))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Chain;
    use crate::registry::PayloadType;

    fn vectors() -> serde_json::Value {
        serde_json::from_str(include_str!("../../tests/data/vectors/gdoi-pull.json")).unwrap()
    }

    fn message(vectors: &serde_json::Value, index: usize) -> (Header, Vec<Payload>) {
        let message = &vectors["cases"][0]["messages"][index];
        let octets = |field: &str| hex::decode(message[field].as_str().unwrap()).unwrap();
        let header = Header::decode(&octets("message")).unwrap();
        let chain = Chain::decode(PayloadType::Hash, &octets("plaintext"), Rules::GROUP_OPENED).unwrap();
        (header, chain.payloads.into_iter().map(|located| located.payload).collect())
    }

    #[test]
    fn an_encrypted_datagram_shows_its_header() {
        let vectors = vectors();
        let datagram = hex::decode(vectors["cases"][0]["messages"][0]["message"].as_str().unwrap()).unwrap();
        assert_eq!(
            one_line(&datagram),
            "71e0c50d826a0d2e:076fbc829d77352b GROUPKEY-PULL id 0x807b8775 len 108 encrypted"
        );
    }

    #[test]
    fn a_clear_datagram_shows_its_payloads_and_garbage_its_fault() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/vectors/phase1-parser-accepts.json"))
                .unwrap();
        let datagram = hex::decode(vectors["cases"][0]["packet"].as_str().unwrap()).unwrap();
        let line = one_line(&datagram);
        assert!(line.contains("Main Mode") && line.ends_with(": SA(1 transforms) VID(16)"), "{line}");
        assert!(one_line(&datagram[..40]).starts_with("not ISAKMP, 40 octets"));
        assert!(one_line(&[]).starts_with("not ISAKMP"));
        let mut broken = datagram.clone();
        broken[29] = 1;
        assert!(one_line(&broken).contains("malformed"));
    }

    #[test]
    fn a_tree_names_policy_and_hides_keys() {
        let vectors = vectors();
        let (header, payloads) = message(&vectors, 1);
        let text = tree(&header, &payloads);
        for part in [
            "    SAK 0xa27b12ef5f09ee8ebdc480cf760c385b from 192.0.2.1 port 848 to 239.192.0.1 port 848\n",
            "      KEK_KEY_LIFETIME = 86400\n",
            "      ACTIVATION_TIME_DELAY = 30\n",
            "    SAT GDOI_PROTO_IPSEC_ESP 0x00010001 AES-GCM-16 IP protocol 0 from 10.0.0.0/8 to 10.0.0.0/8\n",
            "  NONCE: 16 octets\n",
        ] {
            assert!(text.contains(part), "{part}{text}");
        }
        let (header, payloads) = message(&vectors, 3);
        let text = tree(&header, &payloads);
        assert!(text.contains("      TEK_ALGORITHM_KEY: 20 octets\n"), "{text}");
        assert!(text.contains("    SID\n      NUMBER_OF_SID_BITS = 16\n      SID_VALUE = "), "{text}");
        assert!(!text.contains("6c9e6757"), "{text}");
        assert_eq!(text.matches("SEQ 0").count(), 1);
    }

    #[test]
    fn every_payload_has_a_line() {
        let octets = Payload::VendorId(vec![0xab]);
        assert_eq!(brief(&octets), "VID(1)");
        let mut tree = Tree { text: String::new(), depth: 0 };
        tree.payload(&octets);
        tree.payload(&Payload::Ke(vec![1, 2, 3]));
        assert_eq!(tree.text, "VID ab\nKE: 3 octets\n");
    }
}
