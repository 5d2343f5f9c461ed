//! What both files share: phase 1 proposals and policies, dead-peer detection, addresses and words of a gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use gdoi_proto::Dialect;
use gdoi_proto::payload::Identification;
use ike::approved;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash};
use ike::phase1::{Credentials, Mode, PeerTrust};

use crate::Options;
use crate::certificates::{self, Certificates};
use crate::error::Report;
use crate::table::{Item, Table};
use crate::units;
use crate::{identity, secret_source};

/// A proposal of `[ike.proposal.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase1Proposal {
    /// Its name.
    pub name: String,
    /// `authentication-method`.
    pub method: AuthMethod,
    /// `dh-group`.
    pub group: DhGroup,
    /// `authentication-algorithm`; SHA-1 only with `allow-legacy`.
    pub hash: Hash,
    /// `encryption-algorithm`.
    pub cipher: Cipher,
    /// Life of the IKE SA, 180-86400 s (from 20 s in a lab), default 86400.
    pub lifetime_seconds: u32,
}

/// `dead-peer-detection` (RFC 3706).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadPeerDetection {
    /// Seconds of silence before asking, 2-60.
    pub interval_seconds: u32,
    /// Questions without answer before the peer is dead, 1-5.
    pub threshold: u32,
}

/// A policy of `[ike.policy.NAME]`, references resolved.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) mode: Mode,
    pub(crate) proposals: Vec<Phase1Proposal>,
    pub(crate) credentials: Credentials,
    pub(crate) certificates: Certificates,
}

/// What may be named, by its name; none for a statement that has problems of its own already.
pub(crate) type Named<T> = BTreeMap<String, Option<T>>;

const METHODS: &[(&str, AuthMethod)] = &[
    ("pre-shared-keys", AuthMethod::PreSharedKey),
    ("rsa-signatures", AuthMethod::RsaSignature),
    ("ecdsa-signatures-256", AuthMethod::Ecdsa256),
    ("ecdsa-signatures-384", AuthMethod::Ecdsa384),
    ("ecdsa-signatures-521", AuthMethod::Ecdsa521),
];

const GROUPS: &[(&str, DhGroup)] = &[
    ("group14", DhGroup::Modp2048),
    ("group15", DhGroup::Modp3072),
    ("group16", DhGroup::Modp4096),
    ("group17", DhGroup::Modp6144),
    ("group18", DhGroup::Modp8192),
    ("group19", DhGroup::Ecp256),
    ("group20", DhGroup::Ecp384),
    ("group21", DhGroup::Ecp521),
    ("group31", DhGroup::Curve25519),
];

const HASHES: &[(&str, Hash)] =
    &[("sha-256", Hash::Sha256), ("sha-384", Hash::Sha384), ("sha-512", Hash::Sha512), ("sha1", Hash::Sha1)];

/// AES-CBC as phase 1 and KEKs name it.
pub(crate) const CIPHERS: &[(&str, Cipher)] = &[
    ("aes-128-cbc", Cipher::Aes128Cbc),
    ("aes-192-cbc", Cipher::Aes192Cbc),
    ("aes-256-cbc", Cipher::Aes256Cbc),
];

/// The smallest life: `usual`, or 20 s in a lab.
pub(crate) fn smallest_life(usual: u64, options: Options) -> u64 {
    if options.lab { usual.min(20) } else { usual }
}

/// A number known to fit because its range was checked.
pub(crate) fn narrow(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Reads the proposals below `[ike.proposal]`.
pub(crate) fn read_proposals(ike: &Table<'_>, options: Options) -> Named<Phase1Proposal> {
    let tables = ike.named_tables("proposal");
    tables.iter().map(|(name, table)| ((*name).to_owned(), read_proposal(name, table, options))).collect()
}

fn read_proposal(name: &str, table: &Table<'_>, options: Options) -> Option<Phase1Proposal> {
    let report = table.report();
    let method = table.word("authentication-method", METHODS, None);
    let group = table.word("dh-group", GROUPS, None);
    let hash = table.word("authentication-algorithm", HASHES, None);
    let cipher = table.word("encryption-algorithm", CIPHERS, None);
    let lifetime = table.seconds("lifetime-seconds", (smallest_life(180, options), 86_400)).unwrap_or(86_400);
    let legacy = table.boolean("allow-legacy", false);
    if hash == Some(Hash::Sha1) && !legacy {
        report.problem(
            &table.place_of("authentication-algorithm"),
            "sha1 is a legacy algorithm",
            "sha-256, or allow-legacy = true",
        );
    } else if hash == Some(Hash::Sha1) && !report.is_approved_only() {
        report.warning(
            &table.place_of("authentication-algorithm"),
            "sha1 is a legacy algorithm, and each use of it is logged",
            "sha-256, as soon as every peer has it",
        );
    }
    let outside = |name: &str, is_approved: Option<bool>, hint: &str| {
        if is_approved == Some(false)
            && let Some(word) = table.get(name).and_then(|item| item.value.as_str())
        {
            report.unapproved(&table.place_of(name), word, hint);
        }
    };
    let methods = "pre-shared-keys | ecdsa-signatures-256 | ecdsa-signatures-384 | ecdsa-signatures-521";
    outside("authentication-method", method.map(approved::method), methods);
    outside("dh-group", group.map(approved::group), "group14 to group21");
    outside("authentication-algorithm", hash.map(approved::hash), "sha-256 | sha-384 | sha-512");
    table.finish();
    Some(Phase1Proposal {
        name: name.to_owned(),
        method: method?,
        group: group?,
        hash: hash?,
        cipher: cipher?,
        lifetime_seconds: narrow(lifetime),
    })
}

/// Reads the policies below `[ike.policy]`.
pub(crate) fn read_policies(ike: &Table<'_>, proposals: &Named<Phase1Proposal>) -> Named<Policy> {
    let tables = ike.named_tables("policy");
    tables.iter().map(|(name, table)| ((*name).to_owned(), read_policy(name, table, proposals))).collect()
}

fn read_policy(name: &str, table: &Table<'_>, known: &Named<Phase1Proposal>) -> Option<Policy> {
    let report = table.report();
    let modes = [("main", Mode::Main), ("aggressive", Mode::Aggressive)];
    let mode = table.word("mode", &modes, Some(Mode::Main));
    let proposals = table.require("proposals", "a list of ike.proposal names").and_then(|item| {
        let names = item.items(report);
        if names.is_empty() && item.value.is_array() {
            report.problem(&item.place, "is empty", "a list of ike.proposal names");
        }
        let mut seen: Vec<&str> = Vec::new();
        for name in names.iter().filter_map(|name| name.value.as_str()) {
            if seen.contains(&name) {
                report.problem(&item.place, format!("{name:?} is named twice"), "");
            }
            seen.push(name);
        }
        names.iter().map(|name| resolve(name, report, "ike.proposal", known)).collect::<Option<Vec<_>>>()
    });
    let proposals: Option<Vec<Phase1Proposal>> =
        proposals.map(|proposals| proposals.into_iter().cloned().collect());
    let key = table.get("pre-shared-key").map(|item| secret_source::read_shared_key(&item, report));
    let certificates = certificates::read(table);
    if let Some(proposals) = &proposals {
        check_credentials(table, proposals, certificates.as_ref());
    }
    table.finish();
    let (proposals, mode) = (proposals?, mode?);
    if mode == Mode::Aggressive {
        check_aggressive(table, &proposals);
    }
    let pre_shared_key = match key {
        Some(key) => Some(key?),
        None => None,
    };
    let certificates = certificates?;
    let trust = certificates.trust.clone().map(|trust| trust as Arc<dyn PeerTrust>);
    let own = certificates.own.iter().cloned().map(Arc::new).collect();
    let credentials = Credentials { pre_shared_key, certificates: own, trust };
    Some(Policy { name: name.to_owned(), mode, proposals, credentials, certificates })
}

/// Every proposal has its credential, every credential a proposal. `certificates` is none when it has problems of its
/// own.
fn check_credentials(table: &Table<'_>, proposals: &[Phase1Proposal], certificates: Option<&Certificates>) {
    let report = table.report();
    let signs = |proposal: &&Phase1Proposal| proposal.method != AuthMethod::PreSharedKey;
    let unused = |name: &str, what: &str| {
        if table.states(name) {
            report.warning(&table.place_of(name), format!("no proposal of this policy uses {what}"), "");
        }
    };
    match proposals.iter().any(|proposal| proposal.method == AuthMethod::PreSharedKey) {
        true => drop(table.require("pre-shared-key", "{ file = \"…\" }")),
        false => unused("pre-shared-key", "it"),
    }
    if !proposals.iter().any(|proposal| signs(&proposal)) {
        unused("certificates", "them");
        unused("trust-anchors", "them");
        return;
    }
    let form = "[{ certificate = \"pki/own.pem\", private-key = { file = \"pki/own.key\" } }]";
    let stated = table.require("certificates", form).is_some();
    table.require("trust-anchors", "[\"pki/root.pem\"]");
    let Some(certificates) = certificates.filter(|_| stated) else { return };
    for proposal in proposals.iter().filter(signs) {
        if !certificates.own.iter().any(|own| own.signer.method() == proposal.method) {
            report.problem(
                &table.place_of("certificates"),
                format!("none has the kind of key that ike.proposal.{} signs with", proposal.name),
                "a certificate for each authentication-method of the proposals",
            );
        }
    }
}

/// KE is in message 1 already, so every proposal has one group (RFC 2409 section 5); and what this mode gives away.
fn check_aggressive(table: &Table<'_>, proposals: &[Phase1Proposal]) {
    let report = table.report();
    let of = |proposal: &Phase1Proposal| (proposal.group, proposal.method);
    let Some(first) = proposals.first().map(of) else { return };
    if let Some(other) = proposals.iter().find(|proposal| of(proposal) != first) {
        report.problem(
            &table.place_of("proposals"),
            format!(
                "ike.proposal.{} has another dh-group or authentication-method than the first",
                other.name
            ),
            "one of each in aggressive mode: its first message holds the public value already",
        );
    }
    let (what, hint) = match first.1 {
        AuthMethod::PreSharedKey => (
            "aggressive mode shows the identities of both sides to everyone on the way, and answers whoever names a \
             known identity, in whatever address, with a key exchange and a hash by which the pre-shared key can be \
             guessed offline (250 answers a second, 4 to one address)",
            "main mode; else a key of 32 random octets: openssl rand -hex 32",
        ),
        _ => (
            "aggressive mode shows the identities and certificates of both sides to everyone on the way, and answers whoever \
             names a known identity, in whatever address, with a key exchange, a signature and certificates (250 answers a \
             second, 4 to one address)",
            "main mode",
        ),
    };
    report.warning(&table.place_of("mode"), what, hint);
}

/// The statement that `item` names; a dangling name is a problem with the nearest existing one.
pub(crate) fn resolve<'n, T>(
    item: &Item<'_>,
    report: &Report<'_>,
    kind: &str,
    known: &'n Named<T>,
) -> Option<&'n T> {
    let name = item.text(report)?;
    match known.get(name) {
        Some(found) => found.as_ref(),
        None => {
            let hint = match units::nearest(name, known.keys().map(String::as_str)) {
                Some(near) => format!("did you mean {near:?}?"),
                None if known.is_empty() => format!("there is no {kind} at all"),
                None => format!("one of {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
            };
            report.problem(&item.place, format!("no {kind} is named {name:?}"), hint);
            None
        }
    }
}

/// Reads `ike-policy` of a gateway.
pub(crate) fn read_gateway_policy(table: &Table<'_>, known: &Named<Policy>) -> Option<Policy> {
    let item = table.require("ike-policy", "the name of an ike.policy")?;
    resolve(&item, table.report(), "ike.policy", known).cloned()
}

/// Reads `local-identity` of a gateway under `policy`; our certificates must bear it.
pub(crate) fn read_local_identity(table: &Table<'_>, policy: Option<&Policy>) -> Option<Identification> {
    let id = identity::read_local(table);
    if let (Some(policy), Some(id)) = (policy, &id) {
        certificates::check_own_identity(&policy.certificates, id, table);
    }
    id
}

/// Reads `dead-peer-detection = { interval = 10, threshold = 5 }`; interval 0 is off.
pub(crate) fn read_dead_peer_detection(
    table: &Table<'_>,
    default: Option<DeadPeerDetection>,
) -> Option<DeadPeerDetection> {
    let Some(inner) = table.table("dead-peer-detection") else { return default };
    let interval = inner.seconds("interval", (0, 60)).unwrap_or(10);
    let threshold = inner.number("threshold", (1, 5), 5);
    if interval == 1 {
        table.report().problem(&inner.place_of("interval"), "1 s is out of range", "0 (off) or 2-60 s");
    }
    inner.finish();
    (interval > 0)
        .then(|| DeadPeerDetection { interval_seconds: narrow(interval), threshold: narrow(threshold) })
}

/// Reads `compat`.
pub(crate) fn read_compat(table: &Table<'_>) -> Dialect {
    let mut compat = Dialect::default();
    let report = table.report();
    let items = table.get("compat").map(|item| item.items(report)).unwrap_or_default();
    for item in items {
        let Some(word) = item.text(report) else { continue };
        if !compat.set(word) {
            let hint = match units::nearest(word, Dialect::WORDS.iter().copied()) {
                Some(near) => format!("did you mean {near:?}?"),
                None => Dialect::WORDS.join(" | "),
            };
            report.problem(&item.place, format!("{word:?} is not known"), hint);
        }
    }
    compat
}

/// Reads a list of UDP addresses, all different; `default` when absent.
pub(crate) fn read_listen(table: &Table<'_>, name: &str, default: &[&str]) -> Vec<SocketAddr> {
    let report = table.report();
    let Some(list) = table.get(name) else {
        return default.iter().filter_map(|text| text.parse().ok()).collect();
    };
    let items = list.items(report);
    if items.is_empty() && list.value.is_array() {
        report.problem(&list.place, "is empty", "[\"0.0.0.0:848\", \"[::]:848\"]");
    }
    let mut out: Vec<SocketAddr> = Vec::new();
    for item in items {
        let Some(text) = item.text(report) else { continue };
        match text.parse::<SocketAddr>() {
            Ok(address) if out.contains(&address) => {
                report.problem(&item.place, format!("{text:?} is listed twice"), "");
            }
            Ok(address) => out.push(address),
            Err(_) => report.problem(
                &item.place,
                format!("{text:?} is not an address and port"),
                "\"192.0.2.1:848\" or \"[2001:db8::1]:848\"",
            ),
        }
    }
    out
}

/// Reads `nat-traversal`, default true, and `nat-traversal-listen`, whose sockets are none of `listen`.
pub(crate) fn read_nat_traversal(table: &Table<'_>, listen: &[SocketAddr]) -> (bool, Vec<SocketAddr>) {
    let on = table.boolean("nat-traversal", true);
    let floated = read_listen(table, "nat-traversal-listen", &["0.0.0.0:4500", "[::]:4500"]);
    if let Some(both) = floated.iter().find(|address| on && listen.contains(address)) {
        table.report().problem(
            &table.place_of("nat-traversal-listen"),
            format!("{both} is in listen too"),
            "a socket of its own: messages there carry a marker",
        );
    }
    (on, floated)
}

/// Reads `approved-only`, default false; true makes every reader after this one strict.
pub(crate) fn read_approved_only(table: &Table<'_>) -> bool {
    let stated = table.boolean("approved-only", false);
    if stated {
        table.report().approve_only();
    }
    stated
}

/// Reads `log-level`, default `info`.
pub(crate) fn read_log_level(table: &Table<'_>) -> String {
    const LEVELS: [(&str, &str); 5] =
        [("error", "error"), ("warn", "warn"), ("info", "info"), ("debug", "debug"), ("trace", "trace")];
    table.word("log-level", &LEVELS, Some("info")).unwrap_or("info").to_owned()
}

/// Reads a path that must not be empty.
pub(crate) fn read_path(table: &Table<'_>, name: &str, default: &str) -> std::path::PathBuf {
    let text = table.get(name).and_then(|item| item.filled_text(table.report())).unwrap_or(default);
    text.into()
}
