//! What `gdoictl` may see. A key is its length and a fingerprint; its octets only with `--show-keys`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ctl::observe::{
    CommunicationView, FormerMemberView, GcksSnapshot, GroupStatistics, GroupView, IkeSaView, KekView,
    MemberCounts, MemberView, PendingPushView, PolicyView, ServerStatistics, TekView,
};
use ctl::tap::Opener;
use ctl::time::rfc3339;
use gdoi_proto::header::Header;
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{Encapsulation, SignatureAlgorithm, SignatureHash, TekAuthentication, TekCipher};
use gdoi_proto::registry::ExchangeType;
use ike::crypto::Hash;
use ike::crypto::prf::hash;
use ike::io::{Instant, Now};

use super::KeyServer;
use super::calendar;
use super::group::{Group, Kek, Tek};
use super::membership::Gone;
use super::settings::{Acknowledgement, CommunicationSettings, SaSettings, Signing, Way};

/// How much a snapshot holds.
#[derive(Debug, Clone, Copy)]
struct Detail {
    /// Key octets.
    keys: bool,
    /// Members and phase 1s one by one.
    each: bool,
}

impl KeyServer {
    /// What opens a message, for whoever runs a lab: the ISAKMP SA of its cookies, or the KEK whose SPI they are.
    pub fn opener(&self, header: &Header) -> Option<Opener> {
        if header.exchange == ExchangeType::GroupkeyPush {
            let spi = header.cookies.into();
            let kek = self.groups.values().find_map(|group| group.kek_of(spi))?;
            return Some(Opener::new(None, kek.key.expose(), &kek.iv));
        }
        let sa = self.peers.sa(header.cookies)?;
        let hash = Some(sa.suite.hash.number());
        Some(Opener::new(hash, sa.key().key().expose(), sa.last_phase1_block()))
    }

    /// Everything an operator may see now; key octets only when `show_keys`.
    pub fn snapshot(&self, now: Now, show_keys: bool) -> GcksSnapshot {
        self.view(now, Detail { keys: show_keys, each: true })
    }

    /// The same without members and phase 1s one by one, and without key octets.
    pub fn summary(&self, now: Now) -> GcksSnapshot {
        self.view(now, Detail { keys: false, each: false })
    }

    fn view(&self, now: Now, detail: Detail) -> GcksSnapshot {
        let counters = &self.peers.counters;
        GcksSnapshot {
            groups: self
                .groups
                .values()
                .filter(|group| !group.leaving)
                .map(|group| group.view(now, detail))
                .collect(),
            ike_sas: self
                .peers
                .established()
                .filter(|_| detail.each)
                .map(|(sa, local, peer, _)| IkeSaView {
                    peer: peer.to_string(),
                    identity: sa.peer_identity.to_string(),
                    local: local.to_string(),
                    initiator_cookie: sa.cookies.initiator.to_string(),
                    responder_cookie: sa.cookies.responder.to_string(),
                    suite: sa.suite.to_string(),
                    role: "responder".to_owned(),
                    remaining_seconds: sa.expires.since(now.at).as_secs(),
                })
                .collect(),
            statistics: ServerStatistics {
                phase1_established: counters.established,
                phase1_failed: counters.failed,
                half_open_limited: counters.limited,
                half_open: self.peers.half_open() as u64,
                ike_sas: self.peers.established().count() as u64,
                messages_dropped: counters.dropped,
                acks_unknown_sa: counters.acks_unknown,
                registration_storm: self.admission.is_storm(),
                registration_storms: self.admission.counters.storms,
                registrations_waiting: self.admission.waiting() as u64,
                registrations_delayed: self.admission.counters.delayed,
                push_window: self.pace.window() as u64,
                push_unanswered: self.pace.unanswered() as u64,
                ack_latency_milliseconds: self
                    .pace
                    .latency()
                    .map(|it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX)),
                ..ServerStatistics::default()
            },
            approved_only: self.peers.approved_only,
            certificates: calendar::certificates(self.peers.gateways(), now.unix_seconds),
            ..GcksSnapshot::default()
        }
    }
}

impl Group {
    fn view(&self, now: Now, detail: Detail) -> GroupView {
        let at = now.at;
        let counters = &self.counters;
        let pending = self.deliveries().first();
        GroupView {
            name: self.settings.name.clone(),
            id: self.settings.id.to_string(),
            members: self
                .members()
                .filter(|_| detail.each)
                .map(|(identity, member)| MemberView {
                    identity: identity.to_string(),
                    address: member.peer.to_string(),
                    gateway: member.gateway.to_string(),
                    registered_seconds_ago: at.since(member.registered).as_secs(),
                    last_ack_seq: member.last_ack.map(|seq| u64::from(seq.0)),
                    missed_rekeys: u64::from(member.missed),
                    state: if member.missed == 0 { "registered" } else { "suspect" }.to_owned(),
                    valid_until: self.ends.of(&member.gateway).map(rfc3339),
                    membership_remaining_seconds: self
                        .ends
                        .of(&member.gateway)
                        .map(|end| end.saturating_sub(now.unix_seconds)),
                    sender_ids: member.sender_ids.iter().map(|sid| u64::from(sid.0)).collect(),
                    pushes_sent: member.pushes_sent,
                    acks: member.acks,
                    certificate: member
                        .certificate
                        .as_deref()
                        .map(|certificate| calendar::of_member(certificate, now.unix_seconds)),
                })
                .collect(),
            counts: self.counts(),
            former_members: self
                .former()
                .filter(|_| detail.each)
                .map(|former| FormerMemberView {
                    identity: former.key.to_string(),
                    address: former.member.peer.to_string(),
                    gateway: former.member.gateway.to_string(),
                    state: match former.gone {
                        Gone::Expired => "expired",
                        Gone::Ended => "ended",
                    }
                    .to_owned(),
                    missed_rekeys: u64::from(former.member.missed),
                    seconds_ago: at.since(former.since).as_secs(),
                })
                .collect(),
            kek: self
                .kek()
                .zip(self.settings.communication.as_ref())
                .map(|(kek, communication)| self.kek_view(kek, communication, at, detail.keys)),
            teks: self.teks().iter().map(|tek| self.tek_view(tek, at, detail.keys)).collect(),
            communication: self.settings.communication.as_ref().map(communication_view),
            policy: self.settings.sas.iter().map(policy_view).collect(),
            member_threshold: self.settings.member_threshold.map(|most| most as u64),
            statistics: GroupStatistics {
                pull_succeeded: counters.pulls,
                pull_failed: counters.pulls_unauthorised,
                pull_exceed_member_threshold: counters.pulls_over_threshold,
                push_sent: counters.pushes_sent,
                push_multicast: counters.pushes_multicast,
                push_retransmitted: counters.retransmissions,
                push_acknowledged: counters.acks,
                push_unacknowledged: counters.unacknowledged,
                rekeys: counters.rekeys,
                acks_duplicate: counters.acks_duplicate,
                acks_late: counters.acks_late,
                acks_unexpected: counters.acks_unexpected,
                acks_forged: counters.acks_forged,
                acks_stranger: counters.acks_stranger,
                members_suspected: counters.suspected,
                members_expired: counters.expired,
                memberships_ended: counters.ended,
                lkh_keys_sent: counters.lkh_keys,
            },
            durations: counters.durations,
            pending_push: pending.map(|delivery| PendingPushView {
                seq: u64::from(delivery.seq.0),
                attempt: u64::from(delivery.copies()),
                outstanding: if detail.each { self.names(&delivery.outstanding) } else { Vec::new() },
                outstanding_count: delivery.outstanding.len() as u64,
                started_seconds_ago: at.since(delivery.started).as_secs(),
            }),
            last_push: self.last_push,
            sender_id_bits: u64::from(self.sids.bits()),
            sender_ids_left: u64::from(self.sids.left()),
            lkh_depth: self.tree.as_ref().map(|tree| u64::from(tree.depth())),
        }
    }

    fn counts(&self) -> MemberCounts {
        let mut counts = MemberCounts { revoked: self.revoked.len() as u64, ..MemberCounts::default() };
        for (_, member) in self.members() {
            *if member.missed == 0 { &mut counts.registered } else { &mut counts.suspect } += 1;
            let anchor = member.certificate.as_deref().and_then(|certificate| certificate.anchor.as_ref());
            let Some(anchor) = anchor else { continue };
            match counts.by_anchor.get_mut(&anchor.subject) {
                Some(count) => *count += 1,
                None => drop(counts.by_anchor.insert(anchor.subject.clone(), 1)),
            }
        }
        counts
    }

    fn kek_view(
        &self,
        kek: &Kek,
        communication: &CommunicationSettings,
        at: Instant,
        show_keys: bool,
    ) -> KekView {
        KekView {
            spi: kek.spi.to_string(),
            algorithm: format!("aes-{}-cbc", kek.key.len() * 8),
            key_octets: kek.key.len() as u64,
            key_fingerprint: fingerprint(kek.key.expose()),
            remaining_seconds: kek.ends.since(at).as_secs(),
            seq: u64::from(kek.seq.0),
            signature: signature_name(kek.signing),
            signature_hash: hash_name(kek.signing.hash).to_owned(),
            signing_key_fingerprint: fingerprint(&kek.public_key),
            acknowledgement: acknowledgement_name(communication.acknowledgement).to_owned(),
            key_hex: show_keys.then(|| hex(kek.key.expose())),
        }
    }

    fn tek_view(&self, tek: &Tek, at: Instant, show_keys: bool) -> TekView {
        let waits = tek.activates.since(at);
        let state = match (tek.retires, waits.is_zero()) {
            (Some(_), _) => "retiring",
            (None, true) => "current",
            (None, false) => "next",
        };
        let octets =
            [tek.key.encryption.expose(), tek.key.integrity.as_ref().map_or(&[][..], |key| key.expose())]
                .concat();
        TekView {
            spi: tek.spi.to_string(),
            sa: tek.sa.clone(),
            algorithm: self.sa_settings(&tek.sa).map(|sa| cipher_name(sa.cipher)).unwrap_or_default(),
            key_octets: octets.len() as u64,
            key_fingerprint: fingerprint(&octets),
            remaining_seconds: tek.life(at).as_secs(),
            state: state.to_owned(),
            activates_in_seconds: (!waits.is_zero()).then_some(waits.as_secs()),
            key_hex: show_keys.then(|| hex(&octets)),
        }
    }
}

fn fingerprint(octets: &[u8]) -> String {
    hex(&hash(Hash::Sha256, &[octets])[..16])
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn communication_view(communication: &CommunicationSettings) -> CommunicationView {
    CommunicationView {
        communication_type: match communication.way {
            Way::Unicast => "unicast",
            Way::Multicast(_) => "multicast",
            Way::Both(_) => "both",
        }
        .to_owned(),
        multicast_group: communication.way.channel().map(|channel| channel.group.to_string()),
        multicast_outgoing_interface: communication.way.channel().map(|channel| channel.interface.clone()),
        encryption_algorithm: format!("aes-{}-cbc", communication.cipher.key_len() * 8),
        sig_hash_algorithm: hash_name(communication.signature_hash).to_owned(),
        signature: signature_name(communication.signing()),
        lifetime_seconds: communication.lifetime.as_secs(),
        number_of_retransmission: u64::from(communication.retransmissions),
        retransmission_period: communication.retransmission_period.as_secs(),
        acknowledgement: acknowledgement_name(communication.acknowledgement).to_owned(),
        missed_rekeys: u64::from(communication.missed_rekeys),
        activation_time_delay: u64::from(communication.activation_delay),
        deactivation_time_delay: u64::from(communication.deactivation_delay),
        rekey_margin_seconds: communication.margin.as_secs(),
    }
}

fn policy_view(sa: &SaSettings) -> PolicyView {
    PolicyView {
        sa: sa.name.clone(),
        name: sa.name.rsplit('/').next().unwrap_or_default().to_owned(),
        algorithm: cipher_name(sa.cipher),
        encapsulation: match sa.encapsulation {
            Encapsulation::Tunnel => "tunnel",
            Encapsulation::Transport => "transport",
        }
        .to_owned(),
        source: selector(&sa.source),
        destination: selector(&sa.destination),
        source_port: u64::from(sa.source.port),
        destination_port: u64::from(sa.destination.port),
        protocol: u64::from(sa.ip_protocol),
        lifetime_seconds: sa.lifetime.as_secs(),
    }
}

fn selector(endpoint: &Endpoint) -> String {
    let data = endpoint.data.as_slice();
    if let Ok([a, b, c, d, mask @ ..]) = <[u8; 8]>::try_from(data) {
        return format!("{}/{}", Ipv4Addr::new(a, b, c, d), u32::from_be_bytes(mask).leading_ones());
    }
    if let (32, Some(address), Some(mask)) = (data.len(), data.first_chunk::<16>(), data.last_chunk::<16>()) {
        return format!("{}/{}", Ipv6Addr::from(*address), u128::from_be_bytes(*mask).leading_ones());
    }
    format!("{}:{}", endpoint.id_type, hex(data))
}

fn cipher_name(cipher: TekCipher) -> String {
    let integrity = |authentication| match authentication {
        TekAuthentication::HmacSha1 => "hmac-sha1-96",
        TekAuthentication::HmacSha256 => "hmac-sha-256-128",
        TekAuthentication::HmacSha384 => "hmac-sha-384-192",
        TekAuthentication::HmacSha512 => "hmac-sha-512-256",
    };
    match cipher {
        TekCipher::AesCbc { key_octets, authentication } => {
            format!("aes-{}-cbc/{}", key_octets * 8, integrity(authentication))
        }
        TekCipher::AesGcm { key_octets, .. } => format!("aes-{}-gcm", key_octets * 8),
        TekCipher::AesGmac { key_octets } => format!("aes-{}-gmac", key_octets * 8),
        TekCipher::Null { authentication } => format!("null/{}", integrity(authentication)),
    }
}

fn signature_name(signing: Signing) -> String {
    match signing.algorithm {
        SignatureAlgorithm::Rsa => format!("rsa-{}", signing.key_bits),
        SignatureAlgorithm::Ecdsa256 => "ecdsa-256".to_owned(),
        SignatureAlgorithm::Ecdsa384 => "ecdsa-384".to_owned(),
        SignatureAlgorithm::Ecdsa521 => "ecdsa-521".to_owned(),
    }
}

fn hash_name(hash: SignatureHash) -> &'static str {
    match hash {
        SignatureHash::Sha1 => "sha1",
        SignatureHash::Sha256 => "sha-256",
        SignatureHash::Sha384 => "sha-384",
        SignatureHash::Sha512 => "sha-512",
    }
}

fn acknowledgement_name(acknowledgement: Acknowledgement) -> &'static str {
    match acknowledgement {
        Acknowledgement::Required => "required",
        Acknowledgement::Requested => "requested",
        Acknowledgement::None => "none",
    }
}
