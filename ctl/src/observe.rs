//! What is, as snapshots: what `show` prints and the observe socket begins with.
//!
//! JSON field names are stable. Durations are seconds, SPIs `0x…`, addresses `address:port`. A key is its length in
//! octets and a fingerprint (the first 16 octets of its SHA-256 in hexadecimal); `key_hex` is absent unless the daemon
//! runs with `--show-keys`, and never on the observe socket: see [`Snapshot::without_keys`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::durations::Durations;
use crate::traffic::TrafficView;

/// A snapshot of either daemon. JSON: an object whose `daemon` is `gcks` or `gm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "daemon", rename_all = "snake_case")]
pub enum Snapshot {
    /// Of the key server.
    Gcks(GcksSnapshot),
    /// Of a member.
    Gm(GmSnapshot),
}

impl Snapshot {
    /// The snapshot with every `key_hex` taken out.
    pub fn without_keys(mut self) -> Snapshot {
        fn blank(kek: &mut Option<KekView>, teks: &mut [TekView]) {
            if let Some(kek) = kek {
                kek.key_hex = None;
            }
            for tek in teks {
                tek.key_hex = None;
            }
        }
        match &mut self {
            Snapshot::Gcks(server) => {
                server.groups.iter_mut().for_each(|group| blank(&mut group.kek, &mut group.teks))
            }
            Snapshot::Gm(member) => member.vpns.iter_mut().for_each(|vpn| blank(&mut vpn.kek, &mut vpn.teks)),
        }
        self
    }
}

/// The key server at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GcksSnapshot {
    /// Groups by name.
    pub groups: Vec<GroupView>,
    /// Established phase 1s.
    pub ike_sas: Vec<IkeSaView>,
    /// Counters of the whole server.
    pub statistics: ServerStatistics,
    /// Only approved algorithms are configured and negotiated.
    pub approved_only: bool,
    /// Certificates and revocation lists of the configuration, what ends first at the head.
    pub certificates: Vec<CertificateView>,
    /// The daemon itself.
    pub process: ProcessView,
}

/// What a daemon says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessView {
    /// Of the program.
    pub version: String,
    /// Since its start.
    pub uptime_seconds: u64,
    /// Events it told since its start, by name; those that did not happen are left out.
    pub events: BTreeMap<String, u64>,
}

/// A certificate or revocation list of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CertificateView {
    /// `own`, `intermediate` (of ours), `anchor` or `crl`.
    pub kind: String,
    /// Subject; of a list its issuer.
    pub subject: String,
    /// Issuer.
    pub issuer: String,
    /// Serial number in hexadecimal; of a list nothing.
    pub serial: String,
    /// Kind and size of its key; of a list nothing.
    pub key: String,
    /// First moment of validity, or when a list was made; RFC 3339.
    pub not_before: String,
    /// Last moment of validity, or when the next list is due; RFC 3339.
    pub not_after: String,
    /// Until then; 0 when it is over.
    pub remaining_seconds: u64,
    /// `valid`, `expired` or `not yet valid`.
    pub state: String,
    /// Of a list: how many certificates it revokes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// Gateways that it serves.
    pub gateways: Vec<String>,
}

/// The certificate by which a member proved its identity at its last registration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberCertificateView {
    /// Subject.
    pub subject: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Last moment of validity, RFC 3339.
    pub not_after: String,
    /// Until then; 0 when it is over.
    pub remaining_seconds: u64,
    /// Subject of the anchor it chained to; none when a rehearsal accepted it without.
    pub anchor: Option<String>,
    /// Serial number of that anchor.
    pub anchor_serial: Option<String>,
}

/// A group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupView {
    /// Name in the configuration.
    pub name: String,
    /// Group number, address or OID as text.
    pub id: String,
    /// Registered members by identity; left out of a summary.
    pub members: Vec<MemberView>,
    /// How many there are of them, and of what kind.
    pub counts: MemberCounts,
    /// Members that expired or whose membership ended since the server started, the last 256.
    pub former_members: Vec<FormerMemberView>,
    /// The rekey SA; none in a group without pushes, or before its first keys.
    pub kek: Option<KekView>,
    /// Data-security SAs, oldest first.
    pub teks: Vec<TekView>,
    /// How pushes are delivered; none in a group without.
    pub communication: Option<CommunicationView>,
    /// What traffic the group protects.
    pub policy: Vec<PolicyView>,
    /// Most members; none: no limit.
    pub member_threshold: Option<u64>,
    /// Counters.
    pub statistics: GroupStatistics,
    /// How long registrations and rekeys took.
    pub durations: GroupDurations,
    /// The PUSH that waits for acknowledgements.
    pub pending_push: Option<PendingPushView>,
    /// The last one that was over.
    pub last_push: Option<LastPushView>,
    /// Width of a SID in bits.
    pub sender_id_bits: u64,
    /// SIDs left before new keys are needed.
    pub sender_ids_left: u64,
    /// Levels of the key tree above its leaves; none without a tree.
    pub lkh_depth: Option<u64>,
}

/// Members of a group, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberCounts {
    /// In state `registered`.
    pub registered: u64,
    /// In state `suspect`.
    pub suspect: u64,
    /// Identities that may not register because they were revoked.
    pub revoked: u64,
    /// Those that proved their identity by a certificate, by subject of the anchor it chained to.
    pub by_anchor: BTreeMap<String, u64>,
}

/// How long registrations and rekeys of a group took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupDurations {
    /// From the first message of a GROUPKEY-PULL to its keys.
    pub registration: Durations,
    /// From the decision to rekey to a member's acknowledgement.
    pub acknowledgement: Durations,
    /// From the decision to rekey until all have answered or the last copy's time is up.
    pub rekey: Durations,
}

/// A PUSH that is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastPushView {
    /// Its number.
    pub seq: u64,
    /// From the decision to its end.
    pub seconds: f64,
    /// Rounds of copies after the first.
    pub retransmits: u64,
    /// Members that did not acknowledge.
    pub missing: u64,
}

/// A registered member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberView {
    /// Identity phase 1 proved.
    pub identity: String,
    /// Address and port of its last registration.
    pub address: String,
    /// The gateway statement that admitted it.
    pub gateway: String,
    /// Since its registration.
    pub registered_seconds_ago: u64,
    /// Last PUSH number it acknowledged.
    pub last_ack_seq: Option<u64>,
    /// Rekeys unanswered in a row.
    pub missed_rekeys: u64,
    /// `registered`, or `suspect` when it left its last rekey unanswered.
    pub state: String,
    /// When its membership ends by itself, RFC 3339; none: never.
    pub valid_until: Option<String>,
    /// Until then.
    pub membership_remaining_seconds: Option<u64>,
    /// SIDs of its last registration.
    pub sender_ids: Vec<u64>,
    /// PUSH datagrams sent to it, copies included.
    pub pushes_sent: u64,
    /// Acknowledgements accepted.
    pub acks: u64,
    /// What proved its identity; none with a pre-shared key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<MemberCertificateView>,
}

/// Somebody who was a member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FormerMemberView {
    /// Identity phase 1 proved.
    pub identity: String,
    /// Address and port of its last registration.
    pub address: String,
    /// The gateway statement that admitted it.
    pub gateway: String,
    /// `expired` (it did not acknowledge) or `ended` (`valid-until`).
    pub state: String,
    /// Rekeys it left unanswered in a row.
    pub missed_rekeys: u64,
    /// Since it went.
    pub seconds_ago: u64,
}

/// A rekey SA.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KekView {
    /// 16 octets.
    pub spi: String,
    /// KEK cipher, as in the configuration.
    pub algorithm: String,
    /// Length of the key.
    pub key_octets: u64,
    /// First 16 octets of SHA-256 over the key, in hexadecimal.
    pub key_fingerprint: String,
    /// Life left.
    pub remaining_seconds: u64,
    /// Last PUSH number.
    pub seq: u64,
    /// Signature algorithm of the pushes.
    pub signature: String,
    /// Hash of that signature.
    pub signature_hash: String,
    /// Fingerprint of the public key that verifies it.
    pub signing_key_fingerprint: String,
    /// Acknowledgements: `required`, `requested` or `none`.
    pub acknowledgement: String,
    /// Only with `--show-keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hex: Option<String>,
}

/// A data-security SA.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TekView {
    /// 4 octets.
    pub spi: String,
    /// The `ipsec-sa` statement it belongs to.
    pub sa: String,
    /// ESP algorithm, as in the configuration.
    pub algorithm: String,
    /// Length of the encryption key, without salt.
    pub key_octets: u64,
    /// First 16 octets of SHA-256 over the key as delivered, in hexadecimal.
    pub key_fingerprint: String,
    /// Life left.
    pub remaining_seconds: u64,
    /// `current` (encrypts), `next` (decrypts, will encrypt) or `retiring` (only decrypts, will go).
    pub state: String,
    /// Until it encrypts, in state `next`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activates_in_seconds: Option<u64>,
    /// Only with `--show-keys`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_hex: Option<String>,
}

/// How pushes of a group are delivered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommunicationView {
    /// `unicast`, `multicast` or `both`.
    pub communication_type: String,
    /// Address and port of the multicast group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast_group: Option<String>,
    /// Where it is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multicast_outgoing_interface: Option<String>,
    /// KEK cipher.
    pub encryption_algorithm: String,
    /// Hash of the signature.
    pub sig_hash_algorithm: String,
    /// Signature algorithm.
    pub signature: String,
    /// Life of a new KEK.
    pub lifetime_seconds: u64,
    /// Copies after the first.
    pub number_of_retransmission: u64,
    /// Seconds between copies.
    pub retransmission_period: u64,
    /// `required`, `requested` or `none`.
    pub acknowledgement: String,
    /// Unanswered rekeys before a member is removed.
    pub missed_rekeys: u64,
    /// Seconds until a new TEK encrypts (ATD).
    pub activation_time_delay: u64,
    /// Seconds until an old TEK goes (DTD).
    pub deactivation_time_delay: u64,
    /// Seconds before the end of a key at which its successor goes out.
    pub rekey_margin_seconds: u64,
}

/// What one `ipsec-sa` protects.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PolicyView {
    /// The `ipsec-sa` statement.
    pub sa: String,
    /// The match policy within it.
    pub name: String,
    /// ESP algorithm.
    pub algorithm: String,
    /// `tunnel` or `transport`.
    pub encapsulation: String,
    /// Prefix.
    pub source: String,
    /// Prefix.
    pub destination: String,
    /// 0: any.
    pub source_port: u64,
    /// 0: any.
    pub destination_port: u64,
    /// IP protocol number, 0: any.
    pub protocol: u64,
    /// Life of a new TEK.
    pub lifetime_seconds: u64,
}

/// A PUSH on its way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingPushView {
    /// Its number.
    pub seq: u64,
    /// Rounds of copies sent so far.
    pub attempt: u64,
    /// Identities that have not acknowledged; left out of a summary.
    pub outstanding: Vec<String>,
    /// How many these are.
    pub outstanding_count: u64,
    /// Since the rekey began.
    pub started_seconds_ago: u64,
}

/// An established phase 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IkeSaView {
    /// Address and port of the peer.
    pub peer: String,
    /// Its proved identity.
    pub identity: String,
    /// Our address and port.
    pub local: String,
    /// Initiator cookie, 8 octets in hexadecimal.
    pub initiator_cookie: String,
    /// Responder cookie, 8 octets in hexadecimal.
    pub responder_cookie: String,
    /// Cipher, hash, group.
    pub suite: String,
    /// Ours: `initiator` or `responder`.
    pub role: String,
    /// Life left.
    pub remaining_seconds: u64,
}

/// Counters of the whole key server since its start or the last clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerStatistics {
    /// Phase 1 negotiations that ended with two identities proved.
    pub phase1_established: u64,
    /// Those that ended otherwise.
    pub phase1_failed: u64,
    /// First messages dropped or negotiations evicted because of a limit.
    pub half_open_limited: u64,
    /// Negotiations not yet authenticated, now.
    pub half_open: u64,
    /// Established phase 1s, now.
    pub ike_sas: u64,
    /// Messages that got no answer.
    pub messages_dropped: u64,
    /// Of these, acknowledgements of a rekey SA no group has.
    pub acks_unknown_sa: u64,
    /// More register than the cores can take: those whose keys end soonest go first.
    pub registration_storm: bool,
    /// How often that was so.
    pub registration_storms: u64,
    /// Registrations that wait, now.
    pub registrations_waiting: u64,
    /// Those that had to wait.
    pub registrations_delayed: u64,
    /// Unicast PUSHes that may be unanswered at a time: as many acknowledgements find room in the receive buffer.
    pub push_window: u64,
    /// Those that are.
    pub push_unanswered: u64,
    /// Time from a PUSH to its acknowledgement, smoothed; none before the first.
    pub ack_latency_milliseconds: Option<u64>,
    /// Datagrams received by the sockets.
    pub datagrams_received: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Datagrams dropped because the engine was behind.
    pub datagrams_overflowed: u64,
    /// Datagrams the system refused to send.
    pub send_errors: u64,
}

/// Counters of one group since the start or the last clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GroupStatistics {
    /// Registrations completed.
    pub pull_succeeded: u64,
    /// Registrations refused.
    pub pull_failed: u64,
    /// Registrations left unanswered because the group is full.
    pub pull_exceed_member_threshold: u64,
    /// PUSH datagrams sent, copies included.
    pub push_sent: u64,
    /// Of these, to a multicast group.
    pub push_multicast: u64,
    /// Of these, copies after the first.
    pub push_retransmitted: u64,
    /// Acknowledgements accepted.
    pub push_acknowledged: u64,
    /// Members that left a rekey unanswered, one per rekey and member.
    pub push_unacknowledged: u64,
    /// Rekeys begun.
    pub rekeys: u64,
    /// Replayed acknowledgements: of something this member acknowledged already.
    pub acks_duplicate: u64,
    /// Acknowledgements of a PUSH nobody waits for any more.
    pub acks_late: u64,
    /// Unsolicited acknowledgements: of nothing sent, or in a group that asks for none.
    pub acks_unexpected: u64,
    /// Acknowledgements whose HASH is wrong, or that name another address.
    pub acks_forged: u64,
    /// Acknowledgements of nobody registered.
    pub acks_stranger: u64,
    /// Members that left a rekey unanswered and were not removed for it yet.
    pub members_suspected: u64,
    /// Members removed for silence.
    pub members_expired: u64,
    /// Memberships that ended by themselves (`valid-until`).
    pub memberships_ended: u64,
    /// Keys of the LKH tree handed out: those of each registration, and those of each rekey once for all its copies.
    pub lkh_keys_sent: u64,
}

/// A member at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GmSnapshot {
    /// VPNs by name.
    pub vpns: Vec<VpnView>,
    /// Established phase 1s.
    pub ike_sas: Vec<IkeSaView>,
    /// Counters of the whole daemon.
    pub statistics: MemberStatistics,
    /// Only approved algorithms are offered and accepted.
    pub approved_only: bool,
    /// The daemon itself.
    pub process: ProcessView,
}

/// One joined group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpnView {
    /// Name in the configuration.
    pub name: String,
    /// Group number, address or OID as text.
    pub group: String,
    /// `unregistered`, `registering`, `registered` or `expired`.
    pub state: String,
    /// Address and port of the key server in use or tried last.
    pub server: String,
    /// The rekey SA, if any.
    pub kek: Option<KekView>,
    /// Data-security SAs, oldest first.
    pub teks: Vec<TekView>,
    /// What traffic they protect.
    pub policy: Vec<PolicyView>,
    /// Our SIDs.
    pub sender_ids: Vec<u64>,
    /// Width of a SID in bits, 0: none assigned.
    pub sid_bits: u64,
    /// Until the planned registration.
    pub reregister_in_seconds: Option<u64>,
    /// Until the first flow is without a key if no more come; keys stay in use that long while every server is away.
    pub keys_end_in_seconds: Option<u64>,
    /// Counters.
    pub statistics: VpnStatistics,
    /// What became of its traffic; none when the data plane carries none for it.
    pub traffic: Option<TrafficView>,
}

/// Counters of the whole member daemon since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberStatistics {
    /// Phase 1 negotiations that ended with two identities proved.
    pub phase1_established: u64,
    /// Those that ended otherwise.
    pub phase1_failed: u64,
    /// Messages that got no answer.
    pub messages_dropped: u64,
    /// Datagrams received by the sockets.
    pub datagrams_received: u64,
    /// Datagrams sent.
    pub datagrams_sent: u64,
    /// Datagrams dropped because the engine was behind.
    pub datagrams_overflowed: u64,
    /// Datagrams the system refused to send.
    pub send_errors: u64,
}

/// Counters of one VPN since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VpnStatistics {
    /// Registrations completed.
    pub pull_succeeded: u64,
    /// Registrations refused, or failed for another reason than silence.
    pub pull_failed: u64,
    /// Registrations given up because the server was silent.
    pub pull_timeout: u64,
    /// Registrations broken off by us.
    pub pull_aborted: u64,
    /// Pushes applied.
    pub push_succeeded: u64,
    /// Pushes refused.
    pub push_failed: u64,
    /// Copies of a PUSH already applied.
    pub push_duplicate: u64,
    /// Pushes that showed that others were missed.
    pub push_gaps: u64,
    /// Acknowledgements sent.
    pub acks_sent: u64,
    /// Changes to another key server.
    pub server_failover: u64,
    /// Deletes obeyed.
    pub delete_received: u64,
    /// Policies refused because an algorithm is not supported or allowed.
    pub unsupported_algorithm: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> Snapshot {
        let kek = KekView { spi: "0x01".to_owned(), key_hex: Some("aa".to_owned()), ..KekView::default() };
        let tek = TekView { spi: "0x02".to_owned(), key_hex: Some("bb".to_owned()), ..TekView::default() };
        let group =
            GroupView { name: "g1".to_owned(), kek: Some(kek), teks: vec![tek], ..GroupView::default() };
        Snapshot::Gcks(GcksSnapshot { groups: vec![group], ..GcksSnapshot::default() })
    }

    #[test]
    fn a_snapshot_survives_json() {
        for snapshot in
            [server(), Snapshot::Gm(GmSnapshot { vpns: vec![VpnView::default()], ..GmSnapshot::default() })]
        {
            let text = serde_json::to_string(&snapshot).unwrap();
            assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
        }
    }

    #[test]
    fn without_keys_no_field_is_even_named() {
        assert!(serde_json::to_string(&server()).unwrap().contains("key_hex"));
        assert!(!serde_json::to_string(&server().without_keys()).unwrap().contains("key_hex"));
    }

    #[test]
    fn fields_an_older_daemon_does_not_send_are_empty() {
        let snapshot: Snapshot = serde_json::from_str(r#"{"daemon":"gm","vpns":[{"name":"v"}]}"#).unwrap();
        let Snapshot::Gm(member) = snapshot else { panic!("not a member") };
        assert_eq!(member.vpns[0].statistics, VpnStatistics::default());
    }
}
