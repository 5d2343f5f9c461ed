//! A group's state as rows and back: the fold of `durable.rs`. Bodies are JSON with a `version`; octets are
//! hexadecimal, times are Unix seconds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gdoi_proto::ids::{KekSpi, SenderId, SeqNumber, Spi};
use gdoi_proto::message::{Chain, Rules, encode_payload};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{
    AckRequest, Carriage, GroupPolicy, SignatureAlgorithm, SignatureHash, TekKey, TekPolicy,
};
use gdoi_proto::registry::{IdType, PayloadType};
use gdoi_proto::secret::SecretBytes;
use ike::io::{Instant, Now};
use ike::protect::push::Unsigned;
use ike::trust::{CertificateName, PeerCertificate};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::change::EARLIEST_END;
use super::durable::{Change, Kind, Row};
use super::group::{Group, GroupOutput, Kek, Tek, policy_of};
use super::lkh::{Changed, Node, NodeKey, Tree};
use super::member::{Member, MemberKey, member_key};
use super::push::{Delivery, Mark, Stage};
use super::rekey::{Wanted, make_kek};
use super::roster::NumberSet;
use super::sender_id::SenderIdPool;
use super::settings::Signing;
use super::signing::FormerKey;

/// Version of every body this build writes.
const VERSION: u32 = 1;

/// Why a stored row cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("stored {kind} {key}: {reason}")]
pub struct RestoreError {
    /// Kind of the row.
    pub kind: &'static str,
    /// Its key.
    pub key: String,
    /// What is wrong; never its content.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
struct GroupBody {
    version: u32,
    signing_key: Option<Hex>,
    public_key: Option<Hex>,
    sids_reserved: u32,
    sid_bits: u8,
    /// What the signing key is for.
    #[serde(default)]
    signature: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    former: Vec<FormerBody>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wanted: Option<WantedBody>,
}

/// A signing key before, for KEKs that were made under it.
#[derive(Serialize, Deserialize)]
struct FormerBody {
    signature: String,
    signing_key: Hex,
    public_key: Hex,
}

/// A rekey that waits for its turn.
#[derive(Serialize, Deserialize)]
struct WantedBody {
    /// SAs that get new TEKs.
    sas: Vec<String>,
    kek: bool,
    why: String,
}

#[derive(Serialize, Deserialize)]
struct KekBody {
    version: u32,
    iv: Hex,
    key: Hex,
    seq: u32,
    ends: u64,
    replaced: bool,
    /// When a replaced one goes.
    #[serde(default)]
    until: Option<u64>,
    #[serde(default)]
    generation: u64,
    /// KEK_ACK_REQUESTED its members hold; absent in rows of older builds.
    #[serde(default)]
    ack: Option<Option<u16>>,
    /// The multicast group of its SAK.
    #[serde(default)]
    channel: Option<SocketAddr>,
    #[serde(default)]
    overheard: bool,
    /// What signs its PUSHes, absent in rows of older builds: kind, hash (SIG_HASH_ALGORITHM) and public key.
    #[serde(default)]
    signed: Option<(String, u16, Hex)>,
}

#[derive(Serialize, Deserialize)]
struct TekBody {
    version: u32,
    sa: String,
    encryption: Hex,
    integrity: Option<Hex>,
    activates: u64,
    ends: u64,
    retires: Option<u64>,
    /// The SA payload with its SAT.
    #[serde(default)]
    made_for: Option<Hex>,
}

#[derive(Serialize, Deserialize)]
struct PushBody {
    version: u32,
    kek_spi: Hex,
    seq: u32,
    unsigned: Option<Hex>,
    signature_len: usize,
    datagram: Option<Hex>,
    /// Where it goes besides the members.
    #[serde(default)]
    farewell: Vec<(SocketAddr, SocketAddr)>,
    /// Never by multicast.
    #[serde(default)]
    whispered: bool,
    /// SPIs of the TEKs that it tells.
    #[serde(default)]
    tells: Vec<u32>,
    /// Level and index of the nodes of the key tree whose holders alone can use it.
    #[serde(default)]
    holders: Vec<(u8, u32)>,
}

#[derive(Serialize, Deserialize)]
struct MemberBody {
    version: u32,
    id_type: u8,
    data: Hex,
    protocol: u8,
    port: u16,
    peer: SocketAddr,
    local: SocketAddr,
    #[serde(default)]
    behind_nat: bool,
    gateway: String,
    sids: Vec<u32>,
    /// Generation and SEQ of what its PULL gave it.
    #[serde(default)]
    joined: (u64, u32),
    #[serde(default)]
    leaf: Option<u32>,
    /// Rekeys unanswered in a row, where that expires it.
    #[serde(default, skip_serializing_if = "is_zero")]
    missed: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<CertificateBody>,
}

/// Subject, serial number, last second of validity; subject and serial number of the anchor.
#[derive(Serialize, Deserialize)]
struct CertificateBody(String, String, u64, Option<(String, String)>);

impl From<WantedBody> for Wanted {
    fn from(WantedBody { sas, kek, why }: WantedBody) -> Wanted {
        Wanted { tek: sas.into_iter().collect(), kek, why: Some(why.into()), ..Wanted::default() }
    }
}

impl From<&PeerCertificate> for CertificateBody {
    fn from(certificate: &PeerCertificate) -> CertificateBody {
        let CertificateName { subject, serial } = certificate.name.clone();
        let anchor = certificate.anchor.clone().map(|anchor| (anchor.subject, anchor.serial));
        CertificateBody(subject, serial, certificate.not_after, anchor)
    }
}

impl From<CertificateBody> for PeerCertificate {
    fn from(CertificateBody(subject, serial, not_after, anchor): CertificateBody) -> PeerCertificate {
        let anchor = anchor.map(|(subject, serial)| CertificateName { subject, serial });
        PeerCertificate { name: CertificateName { subject, serial }, not_after, anchor }
    }
}

#[derive(Serialize, Deserialize)]
struct NodeBody {
    version: u32,
    handle: u32,
    /// IV and key.
    data: Hex,
}

#[derive(Serialize, Deserialize)]
struct RevokedBody {
    version: u32,
    id_type: u8,
    data: Hex,
    since: u64,
}

/// Octets as hexadecimal text, wiped on drop.
struct Hex(SecretBytes);

impl Hex {
    fn of(octets: &[u8]) -> Hex {
        Hex(SecretBytes::copy(octets))
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = zeroize::Zeroizing::new(String::with_capacity(self.0.len() * 2));
        for octet in self.0.expose() {
            text.push(char::from(b"0123456789abcdef"[usize::from(octet >> 4)]));
            text.push(char::from(b"0123456789abcdef"[usize::from(octet & 15)]));
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Hex, D::Error> {
        let text = zeroize::Zeroizing::new(String::deserialize(deserializer)?);
        let digit = |octet: u8| char::from(octet).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let octets = text
            .as_bytes()
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
                _ => None,
            })
            .collect::<Option<Vec<u8>>>();
        octets
            .map(|octets| Hex(SecretBytes::new(octets)))
            .ok_or_else(|| serde::de::Error::custom("not hexadecimal"))
    }
}

/// What makes stored rows fit to run again when newer ones were lost: every key, number and membership goes, so that
/// nothing which was used meanwhile is used again. Groups keep their signing keys and whom they revoked.
///
/// # Errors
/// [`RestoreError`] naming the row that cannot be read.
pub fn without_keys(rows: &[Row]) -> Result<Vec<Change>, RestoreError> {
    let mut changes = Vec::new();
    for stored in rows {
        match stored.kind {
            Kind::Group => {
                let mut body: GroupBody = body(stored)?;
                check(stored, body.version)?;
                (body.sids_reserved, body.former, body.wanted) = (0, Vec::new(), None);
                // SIDs count within a TEK, and every TEK goes.
                changes.push(row(Kind::Group, stored.key.clone(), &body));
            }
            Kind::Kek | Kind::Tek | Kind::Push | Kind::Member | Kind::Node => changes.push(gone(stored)),
            // Who was revoked stays out.
            Kind::Revoked => {}
        }
    }
    Ok(changes)
}

fn row(kind: Kind, key: String, body: &impl Serialize) -> Change {
    // Serialising these structs to memory cannot fail: every map key is a string.
    let body = serde_json::to_vec(body).unwrap_or_default();
    Change::Put(Row { kind, key, body: SecretBytes::new(body) })
}

fn body<'a, T: Deserialize<'a>>(row: &'a Row) -> Result<T, RestoreError> {
    serde_json::from_slice(row.body.expose())
        .map_err(|error| refuse(row, format!("not readable at column {}", error.column())))
}

fn refuse(row: &Row, reason: impl Into<String>) -> RestoreError {
    RestoreError { kind: row.kind.name(), key: row.key.clone(), reason: reason.into() }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

impl Group {
    fn kek_key_name(&self, spi: KekSpi) -> String {
        format!("{}/{}", self.settings.name, hex(&spi.0))
    }

    fn tek_key_name(&self, spi: Spi) -> String {
        format!("{}/{:08x}", self.settings.name, spi.0)
    }

    fn push_key_name(&self, spi: KekSpi, seq: SeqNumber) -> String {
        format!("{}/{}/{}", self.settings.name, hex(&spi.0), seq.0)
    }

    fn member_key_name(&self, key: &MemberKey) -> String {
        format!("{}/{}:{}", self.settings.name, key.id_type.number(), hex(&key.data))
    }

    pub(super) fn group_row(&self) -> Change {
        let body = GroupBody {
            version: VERSION,
            signing_key: self.signing_key.as_ref().map(|key| Hex(key.clone())),
            public_key: self.public_key.as_deref().map(Hex::of),
            sids_reserved: self.sids.reserved(),
            sid_bits: self.sids.bits(),
            signature: self
                .settings
                .communication
                .as_ref()
                .map(|it| signature_name(it.signature, it.signature_key_bits)),
            former: self.former_keys.iter().map(former_body).collect(),
            wanted: self.wanted.why.as_ref().map(|why| WantedBody {
                sas: self.wanted.tek.iter().cloned().collect(),
                kek: self.wanted.kek,
                why: why.to_string(),
            }),
        };
        row(Kind::Group, self.settings.name.clone(), &body)
    }

    pub(super) fn group_gone(&self) -> Change {
        Change::Remove { kind: Kind::Group, key: self.settings.name.clone() }
    }

    pub(super) fn kek_row(&self, kek: &Kek) -> Change {
        let body = KekBody {
            version: VERSION,
            iv: Hex::of(&kek.iv),
            key: Hex(kek.key.clone()),
            seq: kek.seq.0,
            ends: kek.ends_unix,
            replaced: kek.replaced_until.is_some(),
            until: kek.replaced_until.map(|until| wall(kek.ends, kek.ends_unix, until)),
            generation: kek.generation,
            ack: Some(kek.ack.map(|ack| ack.registry().number())),
            channel: kek.channel,
            overheard: kek.overheard,
            signed: Some((
                signature_name(kek.signing.algorithm, kek.signing.key_bits),
                kek.signing.hash.registry().number(),
                Hex::of(&kek.public_key),
            )),
        };
        row(Kind::Kek, self.kek_key_name(kek.spi), &body)
    }

    pub(super) fn kek_gone(&self, spi: KekSpi) -> Change {
        Change::Remove { kind: Kind::Kek, key: self.kek_key_name(spi) }
    }

    pub(super) fn tek_row(&self, tek: &Tek) -> Change {
        let unix = |at: Instant| wall(tek.ends, tek.ends_unix, at);
        let body = TekBody {
            version: VERSION,
            sa: tek.sa.clone(),
            encryption: Hex(tek.key.encryption.clone()),
            integrity: tek.key.integrity.clone().map(Hex),
            activates: unix(tek.activates),
            ends: tek.ends_unix,
            retires: tek.retires.map(unix),
            made_for: Some(Hex::of(&sa_octets(&tek.made_for))),
        };
        row(Kind::Tek, self.tek_key_name(tek.spi), &body)
    }

    pub(super) fn tek_gone(&self, spi: Spi) -> Change {
        Change::Remove { kind: Kind::Tek, key: self.tek_key_name(spi) }
    }

    pub(super) fn push_row(&self, delivery: &Delivery) -> Change {
        let (unsigned, signature_len, datagram) = match &delivery.stage {
            Stage::Unsigned { unsigned, .. } => {
                let (plain, signature_len) = unsigned.parts();
                (Some(Hex::of(plain)), signature_len, None)
            }
            Stage::Signed { datagram, .. } => (None, 0, Some(Hex::of(datagram))),
        };
        let body = PushBody {
            version: VERSION,
            kek_spi: Hex::of(&delivery.kek_spi.0),
            seq: delivery.seq.0,
            unsigned,
            signature_len,
            datagram,
            farewell: delivery.farewell.clone(),
            whispered: delivery.whispered,
            tells: delivery.tells.iter().map(|spi| spi.0).collect(),
            holders: delivery.holders.iter().map(|node| (node.level, node.index)).collect(),
        };
        row(Kind::Push, self.push_key_name(delivery.kek_spi, delivery.seq), &body)
    }

    pub(super) fn push_gone(&self, delivery: &Delivery) -> Change {
        Change::Remove { kind: Kind::Push, key: self.push_key_name(delivery.kek_spi, delivery.seq) }
    }

    pub(super) fn member_row(&self, key: &MemberKey, member: &Member) -> Change {
        let body = MemberBody {
            version: VERSION,
            id_type: key.id_type.number(),
            data: Hex::of(&key.data),
            protocol: key.protocol,
            port: key.port,
            peer: member.peer,
            local: member.local,
            behind_nat: member.behind_nat,
            gateway: member.gateway.to_string(),
            sids: member.sender_ids.iter().map(|sid| sid.0).collect(),
            joined: (member.joined.generation, member.joined.seq),
            leaf: member.leaf,
            missed: member.missed,
            certificate: member.certificate.as_deref().map(CertificateBody::from),
        };
        row(Kind::Member, self.member_key_name(key), &body)
    }

    pub(super) fn member_gone(&self, key: &MemberKey) -> Change {
        Change::Remove { kind: Kind::Member, key: self.member_key_name(key) }
    }

    fn node_key_name(&self, node: Node) -> String {
        format!("{}/{}/{}", self.settings.name, node.level, node.index)
    }

    /// The rows of what a change of the key tree made and took out.
    pub(super) fn node_rows(&self, changed: &Changed) -> Vec<Change> {
        let key = |node: &Node| self.tree.as_ref().and_then(|tree| tree.key(*node));
        let made = changed.made.iter().filter_map(|node| {
            let NodeKey { handle, data } = key(node)?;
            let body = NodeBody { version: VERSION, handle: *handle, data: Hex(data.clone()) };
            Some(row(Kind::Node, self.node_key_name(*node), &body))
        });
        made.chain(changed.gone.iter().map(|node| self.node_gone(*node))).collect()
    }

    pub(super) fn node_gone(&self, node: Node) -> Change {
        Change::Remove { kind: Kind::Node, key: self.node_key_name(node) }
    }

    pub(super) fn revoked_row(&self, key: &MemberKey, since: u64) -> Change {
        let (id_type, data) = (key.id_type.number(), Hex::of(&key.data));
        let body = RevokedBody { version: VERSION, id_type, data, since };
        row(Kind::Revoked, self.member_key_name(key), &body)
    }

    pub(super) fn revoked_gone(&self, key: &MemberKey) -> Change {
        Change::Remove { kind: Kind::Revoked, key: self.member_key_name(key) }
    }

    /// True when a row of this kind and key is this group's.
    pub(super) fn owns(&self, row: &Row) -> bool {
        let name = &self.settings.name;
        row.key == *name || row.key.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Folds one row into the state. Keys that ended meanwhile stay out, and their rows go: a wall clock that is set
    /// back must not bring them to life.
    pub(super) fn restore(&mut self, now: Now, row: &Row) -> Result<(), RestoreError> {
        match row.kind {
            Kind::Group => self.restore_group(row),
            Kind::Kek => self.restore_kek(now, row),
            Kind::Tek => self.restore_tek(now, row),
            Kind::Push => self.restore_push(now, row),
            Kind::Member => self.restore_member(now, row),
            Kind::Node => self.restore_node(row),
            Kind::Revoked => self.restore_revoked(row),
        }
    }

    fn restore_group(&mut self, row: &Row) -> Result<(), RestoreError> {
        let body: GroupBody = body(row)?;
        check(row, body.version)?;
        let wanted = self
            .settings
            .communication
            .as_ref()
            .map(|it| signature_name(it.signature, it.signature_key_bits));
        let configured = self.settings.communication.as_ref().and_then(|it| it.signing_key.as_ref());
        self.former_keys = body.former.iter().filter_map(former_key).collect();
        let signature = body.signature.or(wanted.clone());
        if let (Some(key), Some(public_key), Some(signature)) = (body.signing_key, body.public_key, signature)
        {
            let fits = wanted.as_ref() == Some(&signature)
                && configured.is_none_or(|configured| configured.ct_eq(key.0.expose()));
            self.stored_signing = parse_signature(&signature)
                .map(|(algorithm, key_bits)| (algorithm, key_bits, public_key.0.expose().to_vec()));
            if fits {
                (self.signing_key, self.public_key) = (Some(key.0), Some(public_key.0.expose().to_vec()));
            } else {
                // Another one is configured by now: this one tells the members so.
                self.former_keys.extend(former_key(&FormerBody { signature, signing_key: key, public_key }));
            }
        }
        self.wanted = body.wanted.map(Wanted::from).unwrap_or_default();
        self.foreign_sids = body.sid_bits != self.settings.sender_id_bits;
        self.sids = SenderIdPool::new(self.settings.sender_id_bits, body.sids_reserved);
        Ok(())
    }

    fn restore_kek(&mut self, now: Now, row: &Row) -> Result<(), RestoreError> {
        let body: KekBody = body(row)?;
        check(row, body.version)?;
        let communication = self.settings.communication.clone().filter(|_| body.ends > now.unix_seconds);
        let Some(communication) = communication else {
            self.stale.push(gone(row));
            return Ok(());
        };
        let spi = row
            .key
            .rsplit('/')
            .next()
            .and_then(parse_hex::<16>)
            .map(KekSpi)
            .ok_or_else(|| refuse(row, "no SPI"))?;
        let iv = <[u8; 16]>::try_from(body.iv.0.expose()).map_err(|_| refuse(row, "IV is not 16 octets"))?;
        let ends_unix = end(now, body.ends, communication.lifetime, communication.margin);
        let ends = at(now, ends_unix);
        let made = ends - communication.lifetime;
        let ack = match body.ack {
            Some(stored) => stored.and_then(ack_request),
            None => communication.ack_request(),
        };
        let signed = match body.signed {
            Some((signature, hash, public_key)) => {
                let (algorithm, key_bits) =
                    parse_signature(&signature).ok_or_else(|| refuse(row, "kind of signature"))?;
                let hash = signature_hash(hash).ok_or_else(|| refuse(row, "hash of signature"))?;
                (Signing { algorithm, key_bits, hash }, public_key.0.expose().to_vec())
            }
            None => {
                let now = communication.signing();
                let first =
                    self.former_keys.first().map(|it| (it.algorithm, it.key_bits, it.public_key.clone()));
                let (algorithm, key_bits, public_key) = first
                    .or_else(|| self.stored_signing.clone())
                    .ok_or_else(|| refuse(row, "no signing key"))?;
                let hash = algorithm.implied_hash().unwrap_or(now.hash);
                (Signing { algorithm, key_bits, hash }, public_key)
            }
        };
        let life = (made, ends, ends_unix);
        let mut kek = make_kek(spi, iv, body.key.0, SeqNumber(body.seq), life, ack, signed)
            .ok_or_else(|| refuse(row, "key length"))?;
        kek.generation = body.generation;
        (kek.channel, kek.overheard) = (body.channel, body.overheard);
        if body.replaced {
            let overlap = now.at + self.kek_overlap();
            kek.replaced_until = Some(body.until.map_or(overlap, |until| at(now, until).min(overlap)));
            self.old_keks.push(kek);
        } else {
            self.kek = Some(kek);
        }
        Ok(())
    }

    fn restore_tek(&mut self, now: Now, row: &Row) -> Result<(), RestoreError> {
        let body: TekBody = body(row)?;
        check(row, body.version)?;
        let spi = row.key.rsplit('/').next().and_then(parse_hex::<4>).ok_or_else(|| refuse(row, "no SPI"))?;
        let live =
            body.ends > now.unix_seconds && body.retires.is_none_or(|retires| retires > now.unix_seconds);
        let sa = self.sa_settings(&body.sa);
        // Of an SA that is gone from the configuration, members were told when it retires.
        if !live || (sa.is_none() && (body.retires.is_some() || self.settings.communication.is_none())) {
            self.stale.push(gone(row));
            return Ok(());
        }
        let left = Duration::from_secs(body.ends.saturating_sub(now.unix_seconds));
        let (lifetime, margin) = sa.map_or((left, Duration::ZERO), |sa| (sa.lifetime, sa.margin));
        let ends_unix = end(now, body.ends, lifetime, margin);
        let delays = self.settings.communication.as_ref();
        let (activation, deactivation) = delays.map_or((lifetime, lifetime), |delays| {
            let seconds = |delay| Duration::from_secs(u64::from(delay));
            // A change of policy has a longer one than the configured.
            (seconds(delays.activation_delay), seconds(delays.deactivation_delay).max(EARLIEST_END.1))
        });
        let spi = Spi(u32::from_be_bytes(spi));
        let made_for = match &body.made_for {
            Some(octets) => sa_policy(octets.0.expose()).ok_or_else(|| refuse(row, "no SAT"))?,
            None => match sa {
                Some(sa) => policy_of(sa, spi),
                None => return Err(refuse(row, "no SAT")),
            },
        };
        self.teks.push(Tek {
            sa: body.sa,
            spi,
            made_for: TekPolicy { lifetime_seconds: 0, ..made_for },
            key: TekKey { encryption: body.encryption.0, integrity: body.integrity.map(|key| key.0) },
            activates: at(now, body.activates).min(now.at + activation),
            ends: at(now, ends_unix),
            ends_unix,
            retires: body.retires.map(|retires| at(now, retires).min(now.at + deactivation)),
        });
        Ok(())
    }

    fn restore_push(&mut self, now: Now, row: &Row) -> Result<(), RestoreError> {
        let body: PushBody = body(row)?;
        check(row, body.version)?;
        let spi =
            <[u8; 16]>::try_from(body.kek_spi.0.expose()).map(KekSpi).map_err(|_| refuse(row, "no SPI"))?;
        let Some(kek) = self.kek.iter().chain(&self.old_keks).find(|kek| kek.spi == spi) else {
            self.stale.push(gone(row));
            return Ok(());
        };
        let mark = Mark { generation: kek.generation, seq: body.seq };
        let stage = match (body.datagram, body.unsigned) {
            (Some(datagram), _) => Stage::Signed {
                datagram: datagram.0.expose().to_vec().into(),
                copies: 0,
                due: now.at,
                round: None,
            },
            (None, Some(plain)) => Stage::Unsigned {
                unsigned: Unsigned::from_parts(spi, plain.0.expose().to_vec(), body.signature_len),
                asked: false,
            },
            (None, None) => return Err(refuse(row, "neither signed nor unsigned")),
        };
        let mut delivery =
            Delivery::new(spi, mark, Unsigned::from_parts(spi, Vec::new(), 0), NumberSet::default(), now.at);
        delivery.stage = stage;
        delivery.farewell = body.farewell;
        delivery.whispered = body.whispered;
        delivery.tells = body.tells.into_iter().map(Spi).collect();
        delivery.holders = body.holders.into_iter().map(|(level, index)| Node { level, index }).collect();
        self.deliveries.push(delivery);
        Ok(())
    }

    fn restore_member(&mut self, now: Now, row: &Row) -> Result<(), RestoreError> {
        let body: MemberBody = body(row)?;
        check(row, body.version)?;
        // A member whose gateway may no longer register is forgotten.
        let Some(gateway) = self.gateway(&body.gateway) else {
            self.stale.push(gone(row));
            return Ok(());
        };
        let key = member_key(Identification {
            id_type: IdType::from_number(body.id_type),
            protocol: body.protocol,
            port: body.port,
            data: body.data.0.expose().to_vec(),
        });
        let member = Member {
            peer: body.peer,
            local: body.local,
            behind_nat: body.behind_nat,
            gateway,
            joined: Mark { generation: body.joined.0, seq: body.joined.1 },
            leaf: body.leaf,
            certificate: body.certificate.map(|certificate| Arc::new(certificate.into())),
            sender_ids: body.sids.into_iter().map(SenderId).collect(),
            registered: now.at,
            last_ack: None,
            missed: body.missed,
            pushes_sent: 0,
            pushed: Instant::default(),
            acks: 0,
        };
        // A row of an identity that was not in its one form yet.
        if self.member_key_name(&key) != row.key {
            self.stale.extend([gone(row), self.member_row(&key, &member)]);
        }
        self.members.put(key, member);
        Ok(())
    }

    fn restore_node(&mut self, row: &Row) -> Result<(), RestoreError> {
        let body: NodeBody = body(row)?;
        check(row, body.version)?;
        let place =
            row.key.strip_prefix(&format!("{}/", self.settings.name)).and_then(|place| place.split_once('/'));
        let place = place.and_then(|(level, index)| Some((level.parse().ok()?, index.parse().ok()?)));
        let (level, index) = place.ok_or_else(|| refuse(row, "no place in a tree"))?;
        self.found.insert(Node { level, index }, NodeKey { handle: body.handle, data: body.data.0 });
        Ok(())
    }

    /// The key tree from its nodes. Its root is the KEK; whatever else was found is no tree of this group any more, and
    /// `fill_keys` tells the members that hold it to come again.
    fn restore_tree(&mut self) {
        let nodes = std::mem::take(&mut self.found);
        let key_octets =
            self.settings.communication.as_ref().filter(|it| it.lkh).map(|it| it.cipher.key_len());
        let places: Vec<Node> = nodes.keys().copied().collect();
        self.tree = key_octets.and_then(|key_octets| Tree::restore(key_octets, nodes)).filter(|tree| {
            let root = self.kek.as_ref().map(|kek| tree.root_of(&kek.iv, &kek.key));
            root.is_none_or(|root| root == Some(tree.root()))
        });
        if self.tree.is_none() {
            self.other_keys = !places.is_empty() || (key_octets.is_some() && self.kek.is_some());
            self.stale.extend(places.into_iter().map(|node| self.node_gone(node)).collect::<Vec<_>>());
            for number in self.members.numbers_where(|member| member.leaf.is_some()).iter() {
                let Some(member) = self.members.get_mut(number) else { continue };
                member.leaf = None;
                let member = member.clone();
                let Some(key) = self.members.key(number) else { continue };
                self.stale.push(self.member_row(key, &member));
            }
        }
    }

    fn restore_revoked(&mut self, row: &Row) -> Result<(), RestoreError> {
        let body: RevokedBody = body(row)?;
        check(row, body.version)?;
        let identity = Identification::new(IdType::from_number(body.id_type), body.data.0.expose());
        self.revoked.insert(member_key(identity), body.since);
        Ok(())
    }

    /// After the last row: PUSHes on their way go again, in order, to every member that did not register with their
    /// content (acknowledgements are not stored).
    pub(super) fn restored(&mut self) {
        self.restore_tree();
        self.forget_former_keys();
        for mut delivery in std::mem::take(&mut self.deliveries) {
            delivery.outstanding = self.readers(&delivery.holders, |member| member.joined < delivery.mark);
            delivery.addressed = delivery.outstanding.len() + delivery.farewell.len();
            self.deliveries.push(delivery);
        }
        self.deliveries.sort_by_key(|delivery| delivery.mark);
        // Rows come by SPI; the order of TEKs is their age.
        self.teks.sort_by_key(|tek| (tek.retires.is_none(), tek.ends));
        let stale = std::mem::take(&mut self.stale);
        if !stale.is_empty() {
            self.out.push_back(GroupOutput::Persist(stale));
        }
    }

    /// The wall clock was set: stored ends follow it, since keys live by the monotonic one.
    pub(super) fn on_wall_clock(&mut self, now: Now, seconds: i64) {
        self.schedule_ends(now);
        let moved = |unix: &mut u64| *unix = unix.saturating_add_signed(seconds);
        self.kek.iter_mut().chain(&mut self.old_keks).for_each(|kek| moved(&mut kek.ends_unix));
        self.teks.iter_mut().for_each(|tek| moved(&mut tek.ends_unix));
        let keks = self.kek.iter().chain(&self.old_keks).map(|kek| self.kek_row(kek));
        let rows: Vec<Change> = keks.chain(self.teks.iter().map(|tek| self.tek_row(tek))).collect();
        if !rows.is_empty() {
            self.out.push_back(GroupOutput::Persist(rows));
        }
    }
}

fn check(row: &Row, version: u32) -> Result<(), RestoreError> {
    if version == VERSION {
        return Ok(());
    }
    Err(refuse(row, format!("version {version} was written by a newer release; this one reads {VERSION}")))
}

fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    for (octet, index) in out.iter_mut().zip((0..).step_by(2)) {
        *octet = u8::from_str_radix(&text[index..index + 2], 16).ok()?;
    }
    Some(out)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The monotonic moment of a wall-clock one, as of now.
pub(super) fn at(now: Now, unix: u64) -> Instant {
    if unix >= now.unix_seconds {
        now.at + Duration::from_secs(unix - now.unix_seconds)
    } else {
        now.at - Duration::from_secs(now.unix_seconds - unix)
    }
}

/// The wall-clock moment of a monotonic one, by the end of a key.
fn wall(ends: Instant, ends_unix: u64, at: Instant) -> u64 {
    ends_unix.saturating_sub(ends.since(at).as_secs())
}

/// The stored end of a key. When more than a whole life is left, the clock was set back while nobody ran (or the
/// configuration shortened the life): members end it at a moment we cannot know, so that it is due now.
fn end(now: Now, stored: u64, life: Duration, margin: Duration) -> u64 {
    if stored > now.unix_seconds.saturating_add(life.as_secs()) {
        return now.unix_seconds + margin.as_secs();
    }
    stored
}

/// A row that means nothing any more.
pub(super) fn gone(row: &Row) -> Change {
    Change::Remove { kind: row.kind, key: row.key.clone() }
}

/// Names a signing key's kind: another kind cannot sign for the group.
fn signature_name(algorithm: SignatureAlgorithm, key_bits: u16) -> String {
    format!("{algorithm:?}-{key_bits}")
}

/// The reverse of [`signature_name`].
fn parse_signature(name: &str) -> Option<(SignatureAlgorithm, u16)> {
    let (algorithm, key_bits) = name.split_once('-')?;
    let algorithm = [
        SignatureAlgorithm::Rsa,
        SignatureAlgorithm::Ecdsa256,
        SignatureAlgorithm::Ecdsa384,
        SignatureAlgorithm::Ecdsa521,
    ]
    .into_iter()
    .find(|known| format!("{known:?}") == algorithm)?;
    Some((algorithm, key_bits.parse().ok()?))
}

fn signature_hash(number: u16) -> Option<SignatureHash> {
    [SignatureHash::Sha1, SignatureHash::Sha256, SignatureHash::Sha384, SignatureHash::Sha512]
        .into_iter()
        .find(|hash| hash.registry().number() == number)
}

fn former_body(former: &FormerKey) -> FormerBody {
    FormerBody {
        signature: signature_name(former.algorithm, former.key_bits),
        signing_key: Hex(former.pkcs8.clone()),
        public_key: Hex::of(&former.public_key),
    }
}

fn former_key(body: &FormerBody) -> Option<FormerKey> {
    let (algorithm, key_bits) = parse_signature(&body.signature)?;
    let (pkcs8, public_key) = (body.signing_key.0.clone(), body.public_key.0.expose().to_vec());
    Some(FormerKey { algorithm, key_bits, pkcs8, public_key, signer: None })
}

fn ack_request(number: u16) -> Option<AckRequest> {
    [AckRequest::KekSha256, AckRequest::LkhSha256, AckRequest::KekSha512, AckRequest::LkhSha512]
        .into_iter()
        .find(|request| request.registry().number() == number)
}

/// A TEK's policy as the SA payload that would announce it alone.
fn sa_octets(policy: &TekPolicy) -> Vec<u8> {
    let policy =
        GroupPolicy { kek: None, activation_delay: 0, deactivation_delay: None, teks: vec![policy.clone()] };
    encode_payload(&Payload::GdoiSa(policy.write(Carriage::Pull)), PayloadType::None)
}

fn sa_policy(octets: &[u8]) -> Option<TekPolicy> {
    let chain = Chain::decode(PayloadType::Sa, octets, Rules::GROUP_OPENED).ok()?;
    let Some(Payload::GdoiSa(sa)) = chain.payloads.into_iter().next().map(|located| located.payload) else {
        return None;
    };
    GroupPolicy::read(&sa, Carriage::Pull).ok()?.teks.pop()
}
