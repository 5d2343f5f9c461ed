//! `[group.NAME.server-member-communication]` of `gcks.toml`: the KEK, its pushes and their acknowledgements.

use std::net::SocketAddr;

use gdoi_proto::policy::{SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;

use crate::Options;
use crate::common::{self, CIPHERS, narrow};
use crate::secret_source;
use crate::signing_key;
use crate::table::Table;
use crate::units;

/// The port of a multicast group that names none (RFC 6407 section 1.5).
const GDOI_PORT: u16 = 848;

/// What acknowledgements of pushes are asked for and what their absence means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// Asked for; a member that stays silent is removed.
    Required,
    /// Asked for and recorded.
    Requested,
    /// Not asked for.
    None,
}

/// `communication-type`, with where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommunicationType {
    /// To each member.
    Unicast,
    /// To a multicast group.
    Multicast(Multicast),
    /// The first copy to a multicast group, the others to each member that did not acknowledge.
    Both(Multicast),
}

/// `multicast-group` and `multicast-outgoing-interface`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multicast {
    /// Address and UDP port, 848 unless stated.
    pub group: SocketAddr,
    /// Name of the interface.
    pub interface: String,
}

/// `[group.NAME.server-member-communication]`.
#[derive(Debug, Clone)]
pub struct Communication {
    /// How pushes travel, default unicast.
    pub communication_type: CommunicationType,
    /// KEK cipher.
    pub cipher: Cipher,
    /// Hash of the signature; with ECDSA the one its curve implies.
    pub signature_hash: SignatureHash,
    /// Signature of pushes.
    pub signature: SignatureAlgorithm,
    /// 2048, 3072, 4096 for RSA; 256, 384 for ECDSA.
    pub signature_key_bits: u16,
    /// PKCS#8 DER; none: one key per group, made at first start.
    pub signing_key: Option<SecretBytes>,
    /// KEK life, 300-2592000 s (from 20 s in a lab), default 3600.
    pub lifetime_seconds: u32,
    /// Copies after the first, 0-60, default 2.
    pub number_of_retransmission: u32,
    /// Time between copies, 2-60 s, default 10.
    pub retransmission_period_seconds: u32,
    /// Default required.
    pub acknowledgement: Acknowledgement,
    /// Unanswered rekeys before a member is removed, 1-100, default 1.
    pub missed_rekeys: u32,
    /// ATD, 0-900 s, default number-of-retransmission x retransmission-period + 10.
    pub activation_delay_seconds: u16,
    /// DTD, more than ATD, up to 3600 s, default ATD + 15.
    pub deactivation_delay_seconds: u16,
    /// The KEK is the root of a key tree, so that one member can be locked out without touching the others; default false.
    pub lkh: bool,
    /// Octets of UDP payload of a push, 576-65507, default 1280.
    pub max_push_size: u32,
    /// Seconds before the KEK's end at which its successor goes out; derived.
    pub rekey_margin_kek_seconds: u32,
}

impl Communication {
    /// The part of every rekey margin that does not depend on the life: all copies, then DTD, then 5 s.
    pub fn rekey_span_seconds(&self) -> u32 {
        rekey_span(
            self.number_of_retransmission,
            self.retransmission_period_seconds,
            u32::from(self.deactivation_delay_seconds),
        )
    }
}

fn rekey_span(retransmissions: u32, period: u32, deactivation: u32) -> u32 {
    (retransmissions + 1) * period + deactivation + 5
}

/// `max(10 % of the life, span)`; without a KEK nothing is pushed and 10 % remain.
pub(crate) fn rekey_margin(life: u32, span: u32) -> u32 {
    (life / 10).max(span)
}

/// Refuses a life that cannot hold its rekey margin twice.
fn check_life(table: &Table<'_>, life: u64, span: u32, what: &str) {
    let smallest = u64::from(span) * 2;
    if life < smallest {
        table.report().problem(
            &table.place_of("lifetime-seconds"),
            format!("{what} of {life} s cannot hold its rekey margin of {span} s twice"),
            format!("at least {smallest} s"),
        );
    }
}

/// Signatures of pushes with their key size in bits.
pub(crate) const SIGNATURES: &[(&str, (SignatureAlgorithm, u16))] = &[
    ("rsa-2048", (SignatureAlgorithm::Rsa, 2048)),
    ("rsa-3072", (SignatureAlgorithm::Rsa, 3072)),
    ("rsa-4096", (SignatureAlgorithm::Rsa, 4096)),
    ("ecdsa-256", (SignatureAlgorithm::Ecdsa256, 256)),
    ("ecdsa-384", (SignatureAlgorithm::Ecdsa384, 384)),
];

const HASHES: &[(&str, SignatureHash)] = &[
    ("sha-256", SignatureHash::Sha256),
    ("sha-384", SignatureHash::Sha384),
    ("sha-512", SignatureHash::Sha512),
];

/// Reads the section. The second value is the span of every rekey margin of the group, known even when the rest
/// is unusable.
pub(crate) fn read(table: &Table<'_>, options: Options) -> (Option<Communication>, u32) {
    let report = table.report();
    let communication_type = read_type(table);
    let cipher = table.word("encryption-algorithm", CIPHERS, None);
    let lkh = read_management(table, cipher);
    let signature = table.word("signature", SIGNATURES, None);
    let hash = read_hash(table, signature.map(|(algorithm, _)| algorithm));
    let signing_key = table.get("signing-key").map(|item| {
        let secret = secret_source::read(&item, report)?;
        let (algorithm, bits) = signature?;
        signing_key::read(&secret, algorithm, bits)
            .map_err(|(what, hint)| report.problem(&item.place, what, hint))
            .ok()
    });
    let life_range = (common::smallest_life(300, options), 2_592_000);
    let lifetime = table.seconds("lifetime-seconds", life_range).unwrap_or(3600);
    let retransmissions = narrow(table.number("number-of-retransmission", (0, 60), 2));
    let period = narrow(table.seconds("retransmission-period", (2, 60)).unwrap_or(10));
    let words = [
        ("required", Acknowledgement::Required),
        ("requested", Acknowledgement::Requested),
        ("none", Acknowledgement::None),
    ];
    let acknowledgement = table.word("acknowledgement", &words, Some(Acknowledgement::Required));
    let missed_rekeys = narrow(table.number("missed-rekeys", (1, 100), 1));
    let (activation, deactivation) = read_delays(table, retransmissions * period);
    let max_push_size = narrow(table.number("max-push-size", (576, 65_507), 1280));
    let span = rekey_span(retransmissions, period, u32::from(deactivation));
    check_life(table, lifetime, span, "a KEK life");
    table.finish();
    let read = || {
        let (signature, signature_key_bits) = signature?;
        Some(Communication {
            communication_type: communication_type?,
            cipher: cipher?,
            signature_hash: hash?,
            signature,
            signature_key_bits,
            signing_key: match signing_key {
                Some(key) => Some(key?),
                None => None,
            },
            lifetime_seconds: narrow(lifetime),
            number_of_retransmission: retransmissions,
            retransmission_period_seconds: period,
            acknowledgement: acknowledgement?,
            missed_rekeys,
            activation_delay_seconds: activation,
            deactivation_delay_seconds: deactivation,
            lkh,
            max_push_size,
            rekey_margin_kek_seconds: rekey_margin(narrow(lifetime), span),
        })
    };
    (read(), span)
}

/// `communication-type` with the multicast group it needs; none when that is unusable.
fn read_type(table: &Table<'_>) -> Option<CommunicationType> {
    let report = table.report();
    let types = [("unicast", "unicast"), ("multicast", "multicast"), ("both", "both")];
    let word = table.word("communication-type", &types, Some("unicast"));
    let group = table.get("multicast-group").map(|item| {
        let text = item.text(report)?;
        let group = units::socket_address(text, GDOI_PORT).filter(|group| group.ip().is_multicast());
        if group.is_none() {
            let hint = "\"239.192.0.1:848\" or \"[ff08::1]:848\"";
            report.problem(&item.place, format!("{text:?} is no multicast address and port"), hint);
        }
        group
    });
    let interface =
        table.get("multicast-outgoing-interface").map(|item| item.filled_text(report).map(str::to_owned));
    let word = word?;
    if word == "unicast" {
        for name in ["multicast-group", "multicast-outgoing-interface"] {
            if table.states(name) {
                let hint = "communication-type = \"multicast\" or \"both\", or leave it out";
                report.problem(&table.place_of(name), "pushes go out as \"unicast\"", hint);
            }
        }
        return Some(CommunicationType::Unicast);
    }
    if group.is_none() {
        let hint = "multicast-group = \"239.192.0.1:848\"";
        report.problem(&table.place, format!("communication-type = {word:?} needs a multicast-group"), hint);
    }
    if interface.is_none() {
        let hint = "multicast-outgoing-interface = \"eth0\"";
        let what = format!("communication-type = {word:?} needs a multicast-outgoing-interface");
        report.problem(&table.place, what, hint);
    }
    let multicast = Multicast { group: group??, interface: interface?? };
    Some(match word {
        "multicast" => CommunicationType::Multicast(multicast),
        _ => CommunicationType::Both(multicast),
    })
}

/// `key-management`: true for a key tree, whose keys must be whole blocks with their IV.
fn read_management(table: &Table<'_>, cipher: Option<Cipher>) -> bool {
    let lkh = table.word("key-management", &[("flat", false), ("lkh", true)], Some(false)) == Some(true);
    if lkh && cipher == Some(Cipher::Aes192Cbc) {
        table.report().problem(
            &table.place_of("key-management"),
            "\"lkh\" with aes-192-cbc: IV and key are not whole blocks, no key of the tree could carry another",
            "encryption-algorithm = \"aes-128-cbc\" or \"aes-256-cbc\"",
        );
    }
    lkh
}

/// `sig-hash-algorithm`; an ECDSA curve implies its own (RFC 6407 section 5.3).
fn read_hash(table: &Table<'_>, signature: Option<SignatureAlgorithm>) -> Option<SignatureHash> {
    let hash = table.word("sig-hash-algorithm", HASHES, None)?;
    let (implied, word) = match signature {
        Some(SignatureAlgorithm::Ecdsa256) => (SignatureHash::Sha256, "sha-256"),
        Some(SignatureAlgorithm::Ecdsa384) => (SignatureHash::Sha384, "sha-384"),
        Some(SignatureAlgorithm::Ecdsa521) => (SignatureHash::Sha512, "sha-512"),
        Some(SignatureAlgorithm::Rsa) | None => return Some(hash),
    };
    if hash != implied {
        table.report().problem(
            &table.place_of("sig-hash-algorithm"),
            "signature implies another hash",
            format!("{word:?} with this signature"),
        );
        return None;
    }
    Some(hash)
}

/// ATD and DTD in seconds; `span` is the time from the first copy of a push to the last.
fn read_delays(table: &Table<'_>, span: u32) -> (u16, u16) {
    let report = table.report();
    let usual = u64::from(span) + 10;
    let activation = match table.seconds("activation-time-delay", (0, 900)) {
        Some(stated) => {
            if stated < u64::from(span) {
                report.warning(
                    &table.place_of("activation-time-delay"),
                    format!("{stated} s end before the last copy of a push at {span} s"),
                    format!("at least {span} s, or members reached only by the last copy miss packets"),
                );
            }
            stated
        }
        // A stated value that is out of range has its problem already.
        None if table.states("activation-time-delay") => 0,
        None if usual > 900 => {
            report.problem(
                &table.place,
                format!("activation-time-delay would be {usual} s: number-of-retransmission x retransmission-period + 10"),
                "state activation-time-delay (0-900 s), or fewer or faster copies",
            );
            900
        }
        None => usual,
    };
    let deactivation = match table.seconds("deactivation-time-delay", (0, 3600)) {
        Some(stated) if stated <= activation => {
            report.problem(
                &table.place_of("deactivation-time-delay"),
                format!("{stated} s is not more than activation-time-delay ({activation} s)"),
                format!("{}-3600 s", activation + 1),
            );
            activation + 15
        }
        Some(stated) => stated,
        None => activation + 15,
    };
    warn_of_early_end(table, activation, deactivation, u64::from(span));
    let seconds = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
    (seconds(activation), seconds(deactivation))
}

/// Who is reached by the last copy only sends under the old TEK until ATD after it, when who got the first may have dropped it.
/// A file that says nothing of times and copies has the given defaults and is not warned.
fn warn_of_early_end(table: &Table<'_>, activation: u64, deactivation: u64, span: u64) {
    let needed = activation + span;
    let named = [
        "deactivation-time-delay",
        "activation-time-delay",
        "number-of-retransmission",
        "retransmission-period",
    ];
    let Some(stated) = named.into_iter().find(|name| table.states(name)) else { return };
    if deactivation >= needed {
        return;
    }
    let whose = if stated == "deactivation-time-delay" { "" } else { "deactivation-time-delay: " };
    let hint = match needed {
        ..=3600 => format!("deactivation-time-delay = {needed} or more, or packets are lost in between"),
        _ => "fewer or faster copies, or a shorter activation-time-delay".to_owned(),
    };
    table.report().warning(
        &table.place_of(stated),
        format!(
            "{whose}{deactivation} s end before the member of the last copy ({span} s) leaves the old TEK: ATD {activation} s + {span} s = {needed} s"
        ),
        hint,
    );
}
