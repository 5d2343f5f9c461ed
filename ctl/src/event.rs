//! What happens, as one enum: logs, `watch`, the audit log and the golden test traces all speak it.
//!
//! A variant is written once, in the table below: its JSON name, its level, its fields and its line for people. Fields
//! are texts and numbers: a group by name, a member by identity, an SPI as `0x…`, an address as `address:port`. Texts
//! that a stranger chose are escaped in the line (no control characters), never in the JSON, which has its own escapes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::rfc3339;

/// How loud an event is, from quiet to loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Every datagram.
    Trace,
    /// What a stranger can cause at will, and early exits.
    Debug,
    /// Members and keys changed.
    Info,
    /// May deserve an operator.
    Warn,
    /// Service is lost or about to be.
    Error,
}

impl Level {
    /// The name in configuration and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Trace => "trace",
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }
}

/// `Variant "json_name" Level { fields } => (format arguments);`, without braces when there are no fields.
macro_rules! events {
    ($(
        $(#[$doc:meta])*
        $variant:ident $name:literal $level:ident $({
            $( $(#[$field_doc:meta])* $field:ident : $type:ty ),* $(,)?
        })? => ($($line:tt)*);
    )*) => {
        /// Something that happened in a daemon. JSON: an object whose `event` is [`Event::name`], then the fields.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "event")]
        pub enum Event {
            $(
                $(#[$doc])*
                #[serde(rename = $name)]
                $variant $({ $( $(#[$field_doc])* $field: $type ),* })?,
            )*
        }

        impl Event {
            /// The stable name in snake_case, as in JSON.
            pub const fn name(&self) -> &'static str {
                match self { $( Event::$variant { .. } => $name, )* }
            }

            /// How loud it is.
            pub const fn level(&self) -> Level {
                match self { $( Event::$variant { .. } => Level::$level, )* }
            }

            /// Every name this build knows, in the order of the table.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The level of each, in the same order.
            pub const LEVELS: &'static [Level] = &[$(Level::$level),*];

            /// Its place in that order.
            pub const fn place(&self) -> usize {
                #[derive(Clone, Copy)]
                enum Place { $($variant),* }
                match self { $( Event::$variant { .. } => Place::$variant as usize, )* }
            }
        }

        impl Event {
            #[allow(unused_variables, reason = "a line need not show every field")]
            fn line(&self) -> String {
                match self { $( Event::$variant { $($($field),*)? } => format!($($line)*), )* }
            }
        }
    };
}

events! {
    // Both daemons.
    /// The daemon began.
    Started "started" Info {
        /// Of the program.
        version: String,
        /// Crypto provider.
        provider: String,
    } => ("started, version {version}, crypto by {provider}");
    /// A UDP socket is open.
    Listening "listening" Info {
        /// Its address and port.
        address: String,
    } => ("listening on {address}");
    /// Started with `--lab`.
    LabMode "lab_mode" Warn => ("LAB MODE: short lifetimes allowed and keys shown; never use this with real traffic");
    /// Started with `--show-keys`.
    ShowKeys "show_keys" Warn => ("KEYS ARE SHOWN on the control socket (--show-keys)");
    /// A changed configuration is in use.
    ConfigurationReloaded "configuration_reloaded" Info => ("configuration reloaded");
    /// A changed configuration is not in use; the old one stays.
    ConfigurationRefused "configuration_refused" Error {
        /// What is wrong with it.
        reason: String,
    } => ("configuration refused, nothing changed: {reason}");
    /// A watcher was too slow; it alone gets this.
    EventsLost "events_lost" Warn {
        /// How many events it missed here.
        count: u64,
    } => ("{count} events lost: the reader is too slow");
    /// The daemon ends.
    DaemonStopping "daemon_stopping" Info => ("stopping");

    // Phase 1 and its exchanges.
    /// Two identities proved.
    Phase1Established "phase1_established" Info {
        /// Address and port of the peer.
        peer: String,
        /// Its identity.
        identity: String,
        /// Cipher, hash, group.
        suite: String,
        /// Ours: `initiator` or `responder`.
        role: String,
    } => ("phase 1 with {identity} at {peer} established as {role}: {suite}");
    /// A negotiation ended without a phase 1.
    Phase1Failed "phase1_failed" Debug {
        /// Address and port of the peer.
        peer: String,
        /// Why.
        reason: String,
        /// The state it was in.
        stage: String,
    } => ("phase 1 with {peer} failed in {stage}: {reason}");
    /// A peer did not prove who it is; told once per gateway and minute.
    Phase1Refused "phase1_refused" Warn {
        /// Address and port of the peer.
        peer: String,
        /// The gateway statement that covers it.
        gateway: String,
        /// Why.
        reason: String,
    } => ("phase 1 with {peer} (gateway {gateway}) refused: {reason}");
    /// A certificate passed that `verification = "enforce"` would refuse.
    CertificateRehearsed "certificate_rehearsed" Warn {
        /// Address and port of the peer.
        peer: String,
        /// The identity it claims.
        identity: String,
        /// Which half would fail, and why.
        reason: String,
    } => ("certificate of {identity} at {peer} would be refused: {reason}");
    /// A phase 1 uses what `allow-legacy` lets in; told at each.
    LegacyAlgorithm "legacy_algorithm" Warn {
        /// Address and port of the peer.
        peer: String,
        /// Its identity.
        identity: String,
        /// Cipher, hash, group, method.
        suite: String,
    } => ("phase 1 with {identity} at {peer} uses a legacy algorithm (allow-legacy): {suite}");
    /// A NAT is on the way to the other side of a phase 1.
    NatFound "nat_found" Info {
        /// Address and port of the peer, floated.
        peer: String,
        /// Ours.
        local: String,
        /// We are behind one.
        ours: bool,
        /// The peer is.
        theirs: bool,
    } => (
        "NAT between {local} and {peer}: {} behind it",
        match (*ours, *theirs) { (true, false) => "we are", (false, _) => "the peer is", (true, true) => "both are" }
    );
    /// The NAT before a peer chose another address or port.
    PeerMoved "peer_moved" Info {
        /// Its identity.
        identity: String,
        /// Address and port until now.
        from: String,
        /// Address and port from now on.
        to: String,
    } => ("{identity} moved from {from} to {to}");
    /// UDP for NAT traversal cannot be opened: it is off.
    NatTraversalOff "nat_traversal_off" Warn {
        /// Why.
        reason: String,
    } => ("NAT traversal is off: {reason}");
    /// A phase 1 ended.
    Phase1Deleted "phase1_deleted" Info {
        /// Address and port of the peer.
        peer: String,
        /// Its identity.
        identity: String,
        /// Why.
        reason: String,
    } => ("phase 1 with {identity} at {peer} ended: {reason}");
    /// More negotiations wait for their authentication than allowed.
    HalfOpenLimit "half_open_limit" Debug {
        /// Who asked for one more.
        peer: String,
    } => ("half-open limit reached by {peer}");
    /// A Notify came.
    NotifyReceived "notify_received" Debug {
        /// Address and port of the peer.
        peer: String,
        /// Its type.
        kind: String,
        /// True under a phase 1; false: in clear, ignored.
        protected: bool,
    } => ("notify {kind} from {peer}{}", if *protected { "" } else { " (in clear, not acted on)" });
    /// A Notify went out.
    NotifySent "notify_sent" Debug {
        /// Address and port of the peer.
        peer: String,
        /// Its type.
        kind: String,
    } => ("notify {kind} to {peer}");
    /// A message got no answer.
    MessageDropped "message_dropped" Debug {
        /// Address and port of the sender.
        peer: String,
        /// Why.
        reason: String,
    } => ("message of {peer} dropped: {reason}");

    // Key server: registration and members.
    /// The stored state is in memory.
    StateRestored "state_restored" Info {
        /// How many groups.
        groups: u64,
        /// How many members in all.
        members: u64,
    } => ("state restored: {groups} groups, {members} members");
    /// Every record of the state is sealed under the configured key.
    StateResealed "state_resealed" Info {
        /// How many records.
        records: u64,
    } => ("state sealed anew: {records} records");
    /// The state was copied for a restore.
    StateBackedUp "state_backed_up" Info {
        /// The copy.
        file: String,
        /// How many records.
        records: u64,
    } => ("state backed up to {file}: {records} records");
    /// The audit log cannot be written; records wait in memory, and nothing else waits for them.
    AuditFailed "audit_failed" Error {
        /// What the system said.
        reason: String,
    } => ("the audit log cannot be written: {reason}");
    /// Records of the audit log are missing, or may be; the log goes on after this one.
    AuditGap "audit_gap" Warn {
        /// Which, and why.
        reason: String,
    } => ("the audit log has a gap here: {reason}");
    /// The audit log ends in order: nothing that was decided before is missing.
    AuditClosed "audit_closed" Info => ("the audit log is closed, nothing is missing before this");
    /// The oldest file of the audit log made room for a new one.
    AuditFileRemoved "audit_file_removed" Info {
        /// Its name.
        file: String,
    } => ("audit file {file} removed: as many newer ones are kept as may be");
    /// An operator asked over the control socket for something that changes the server, and was answered.
    OperatorRequest "operator_request" Info {
        /// User of the process that asked.
        uid: Option<u64>,
        /// The process.
        pid: Option<u64>,
        /// The request as it was sent, in JSON.
        request: String,
        /// It was done or begun.
        done: bool,
        /// What was answered.
        answer: String,
    } => (
        "operator (uid {}, pid {}) asked {request}: {}{answer}",
        uid.map_or("unknown".to_owned(), |uid| uid.to_string()), pid.map_or("unknown".to_owned(), |pid| pid.to_string()),
        if *done { "" } else { "refused: " }
    );
    /// The audit log is written again.
    AuditRecovered "audit_recovered" Warn {
        /// Records that found no room in memory meanwhile.
        lost: u64,
    } => ("the audit log is written again, {lost} records lost");
    /// A registration was refused.
    PullRefused "pull_refused" Warn {
        /// Address and port.
        peer: String,
        /// Proved identity.
        identity: String,
        /// The group asked for.
        group: String,
        /// Why.
        reason: String,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("registration of {identity} at {peer} to {group} refused: {reason}");
    /// A registration is complete.
    PullCompleted "pull_completed" Debug {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Address and port.
        address: String,
        /// SIDs handed out.
        sender_ids: Vec<u64>,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("{group}: keys sent to {member} at {address}, SIDs [{}]", join(sender_ids));
    /// A new member.
    MemberRegistered "member_registered" Info {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Address and port.
        address: String,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("{group}: {member} registered from {address}");
    /// A known member registered again.
    MemberReregistered "member_reregistered" Info {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Address and port.
        address: String,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("{group}: {member} registered again from {address}");
    /// A member left a rekey unanswered, all copies of it; it is removed when that is `limit` of them in a row.
    MemberSuspect "member_suspect" Warn {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Address and port.
        address: String,
        /// Rekeys unanswered in a row.
        missed: u64,
        /// `missed-rekeys`; none where acknowledgements are only asked for.
        limit: Option<u64>,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => (
        "{group}: {member} at {address} is suspect: {missed} rekeys unanswered{}",
        limit.map(|limit| format!(", removed at {limit}")).unwrap_or_default()
    );
    /// A suspect member acknowledged.
    MemberRecovered "member_recovered" Info {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Rekeys it had left unanswered in a row.
        missed: u64,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("{group}: {member} acknowledges again, after {missed} unanswered rekeys");
    /// A membership ended at the `valid-until` of its gateway; it may not register any more.
    MembershipEnded "membership_ended" Warn {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Address and port.
        address: String,
        /// The gateway statement.
        gateway: String,
        /// Its `valid-until`, RFC 3339.
        valid_until: String,
        /// Until the last TEK it holds is out of use.
        keys_end_seconds: u64,
        /// Life of the TEKs that follow; none when `rekey-on-leave` is off.
        next_keys_seconds: Option<u64>,
    } => (
        "{group}: membership of {member} ended, gateway {gateway} valid until {valid_until}; the keys it holds end in \
         {keys_end_seconds} s, {}",
        next_keys_seconds.map_or("no new ones (rekey-on-leave is off)".to_owned(), |seconds| format!("the next live {seconds} s"))
    );
    /// A member was removed because it did not acknowledge.
    MemberExpired "member_expired" Warn {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Address and port.
        address: String,
        /// Rekeys unanswered in a row.
        missed: u64,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("{group}: {member} at {address} expired after {missed} unanswered rekeys");
    /// A member is no longer in the list.
    MemberRemoved "member_removed" Info {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Why.
        reason: String,
        /// The gateway statement it came in by; empty when none is known.
        #[serde(default)]
        gateway: String,
    } => ("{group}: {member} removed: {reason}");
    /// The operator revoked an identity: it may not register and opens nothing that the new keys protect.
    MemberRevoked "member_revoked" Warn {
        /// Group.
        group: String,
        /// Identity.
        member: String,
    } => ("{group}: {member} revoked: it may not register any more, and the keys change");
    /// The operator lifted a revocation.
    MemberUnrevoked "member_unrevoked" Info {
        /// Group.
        group: String,
        /// Identity.
        member: String,
    } => ("{group}: {member} may register again");
    /// More register than the cores can take: those whose keys end soonest go first.
    RegistrationStorm "registration_storm" Warn {
        /// Registrations that wait.
        waiting: u64,
    } => ("registration storm: {waiting} wait, those whose keys end soonest go first");
    /// Nobody has to wait any more.
    RegistrationStormOver "registration_storm_over" Info {
        /// From its beginning.
        seconds: f64,
        /// Registrations that waited in it.
        served: u64,
        /// The longest of them.
        longest_wait_milliseconds: u64,
    } => ("registration storm over after {seconds:.0} s: {served} waited, none longer than {longest_wait_milliseconds} ms");
    /// A new member got no answer: the group is full.
    MemberThresholdReached "member_threshold_reached" Warn {
        /// Group.
        group: String,
        /// Its `member-threshold`.
        threshold: u64,
        /// Who was left outside.
        member: String,
    } => ("{group}: full with {threshold} members, {member} left unanswered");
    /// No SID is left for a member that asks for some.
    SenderIdsExhausted "sender_ids_exhausted" Error {
        /// Group.
        group: String,
    } => ("{group}: no sender ID left; new keys are needed before anyone may register");

    // Key server: keys.
    /// A group got its first keys.
    GroupCreated "group_created" Info {
        /// Group.
        group: String,
        /// SPI of its KEK.
        kek_spi: String,
    } => ("{group}: first keys made, KEK {kek_spi}");
    /// A group's signing key cannot be made, read or used; it is tried again.
    GroupFailed "group_failed" Error {
        /// Group.
        group: String,
        /// Why.
        reason: String,
    } => ("{group}: {reason}");
    /// A rekey is decided and durable.
    RekeyStarted "rekey_started" Info {
        /// Group.
        group: String,
        /// Which rekey of the group, counted since the server started.
        rekey: u64,
        /// PUSHes it takes; each has an event like this one.
        pushes: u64,
        /// Number of its PUSH.
        seq: u64,
        /// SPI of the KEK that protects the PUSH.
        kek_spi: String,
        /// SPIs of new TEKs.
        teks: Vec<String>,
        /// SPI of the new KEK, if one.
        new_kek: Option<String>,
        /// Members it goes to.
        members: u64,
        /// Length of the PUSH.
        octets: u64,
        /// What caused it.
        why: String,
    } => (
        "{group}: rekey SEQ {seq} under KEK {kek_spi} ({why}): new TEKs [{}], new KEK {}, {octets} octets to {members} members",
        join(teks), or(new_kek, "none")
    );
    /// A rekey is over: all have answered or the last copy's time is up.
    RekeyCompleted "rekey_completed" Info {
        /// Group.
        group: String,
        /// Number of its PUSH.
        seq: u64,
        /// SPI of the KEK that protects it: numbers begin again with every KEK.
        kek_spi: String,
        /// Members that acknowledged.
        acknowledged: u64,
        /// Identities of those that did not.
        missing: Vec<String>,
        /// From the decision to the end.
        seconds: f64,
    } => ("{group}: rekey SEQ {seq} done in {seconds:.3} s, {acknowledged} acknowledged, missing [{}]", join(missing));
    /// A PUSH is larger than wished and cannot be split: it relies on IP fragmentation.
    PushTooLarge "push_too_large" Warn {
        /// Group.
        group: String,
        /// Number of the PUSH.
        seq: u64,
        /// SPI of the KEK that protects it: numbers begin again with every KEK.
        kek_spi: String,
        /// Length of the PUSH.
        octets: u64,
        /// `max-push-size`.
        limit: u64,
    } => ("{group}: PUSH SEQ {seq} has {octets} octets, more than max-push-size {limit}, and one key in it");
    /// One round of copies of a PUSH went out.
    PushSent "push_sent" Info {
        /// Group.
        group: String,
        /// Number of the PUSH.
        seq: u64,
        /// SPI of the KEK that protects it: numbers begin again with every KEK.
        kek_spi: String,
        /// 1 for the first round.
        attempt: u64,
        /// Members addressed.
        members: u64,
        /// `unicast`, or `multicast` with the group's address and port.
        way: String,
    } => ("{group}: PUSH SEQ {seq} sent to {members} members by {way}, attempt {attempt}");
    /// The last member will get a PUSH after the first may send under its keys: raise `activation-time-delay`.
    DeliveryLate "delivery_late" Warn {
        /// Group.
        group: String,
        /// Number of the PUSH.
        seq: u64,
        /// SPI of the KEK that protects it: numbers begin again with every KEK.
        kek_spi: String,
        /// Members that did not get it yet.
        left: u64,
        /// From the first to the last member, at the present pace.
        seconds: f64,
        /// `activation-time-delay`.
        activation_seconds: u64,
        /// Time to an acknowledgement; none before the first.
        latency_milliseconds: Option<u64>,
    } => (
        "{group}: PUSH SEQ {seq} takes {seconds:.0} s to reach all members ({left} left), its keys are used after \
         {activation_seconds} s: raise activation-time-delay or the receive buffer"
    );
    /// A multicast group cannot be sent to, or not be joined.
    MulticastFailed "multicast_failed" Warn {
        /// Its address and port.
        group: String,
        /// The interface towards it; empty: the system chooses.
        interface: String,
        /// What the system said.
        reason: String,
    } => ("multicast group {group} on {interface}: {reason}");
    /// A member acknowledged.
    AckReceived "ack_received" Debug {
        /// Group.
        group: String,
        /// Identity.
        member: String,
        /// Number of the PUSH.
        seq: u64,
        /// SPI of the KEK that protects it: numbers begin again with every KEK.
        kek_spi: String,
        /// Since the rekey began.
        milliseconds: u64,
    } => ("{group}: {member} acknowledged SEQ {seq} after {milliseconds} ms");
    /// An acknowledgement did not count.
    AckRefused "ack_refused" Debug {
        /// Address and port of the sender.
        peer: String,
        /// Group.
        group: String,
        /// Why.
        reason: String,
    } => ("{group}: acknowledgement of {peer} refused: {reason}");
    /// The store refuses writes: registrations and rekeys wait.
    StoreFailed "store_failed" Error {
        /// What the store said.
        reason: String,
    } => ("the state cannot be written, registrations and rekeys wait: {reason}");
    /// The store takes writes again.
    StoreRecovered "store_recovered" Info => ("the state is written again");

    // Member.
    /// Registration begins.
    Registering "registering" Info {
        /// VPN.
        vpn: String,
        /// Address and port of the key server.
        server: String,
    } => ("{vpn}: registering with {server}");
    /// Keys are here.
    Registered "registered" Info {
        /// VPN.
        vpn: String,
        /// Address and port of the key server.
        server: String,
        /// SPI of the KEK; none in a group without pushes.
        kek_spi: Option<String>,
        /// SPIs of the TEKs.
        teks: Vec<String>,
        /// Our SIDs.
        sender_ids: Vec<u64>,
    } => (
        "{vpn}: registered with {server}, KEK {}, TEKs [{}], SIDs [{}]",
        or(kek_spi, "none"), join(teks), join(sender_ids)
    );
    /// Registration did not work out; it will be tried again.
    RegistrationFailed "registration_failed" Warn {
        /// VPN.
        vpn: String,
        /// Address and port of the key server.
        server: String,
        /// Why.
        reason: String,
        /// Until the next try.
        retry_seconds: u64,
    } => ("{vpn}: registration with {server} failed, again in {retry_seconds} s: {reason}");
    /// A TEK can decrypt.
    TekInstalled "tek_installed" Info {
        /// VPN.
        vpn: String,
        /// SPI.
        spi: String,
        /// Life left.
        lifetime_seconds: u64,
        /// Until it encrypts (ATD).
        send_after_seconds: u64,
    } => ("{vpn}: TEK {spi} installed for {lifetime_seconds} s, encrypts in {send_after_seconds} s");
    /// A TEK encrypts.
    TekActivated "tek_activated" Info {
        /// VPN.
        vpn: String,
        /// SPI.
        spi: String,
    } => ("{vpn}: TEK {spi} encrypts now");
    /// A TEK is gone.
    TekRemoved "tek_removed" Info {
        /// VPN.
        vpn: String,
        /// SPI.
        spi: String,
        /// Why.
        reason: String,
    } => ("{vpn}: TEK {spi} removed: {reason}");
    /// A KEK is in use.
    KekInstalled "kek_installed" Info {
        /// VPN.
        vpn: String,
        /// SPI.
        spi: String,
        /// Life left.
        lifetime_seconds: u64,
    } => ("{vpn}: KEK {spi} installed for {lifetime_seconds} s");
    /// A PUSH was applied.
    PushAccepted "push_accepted" Info {
        /// VPN.
        vpn: String,
        /// Its number.
        seq: u64,
        /// SPIs of new TEKs.
        new_teks: Vec<String>,
        /// SPI of the new KEK, if one.
        new_kek: Option<String>,
    } => ("{vpn}: PUSH SEQ {seq} accepted: new TEKs [{}], new KEK {}", join(new_teks), or(new_kek, "none"));
    /// A PUSH was not applied.
    PushRefused "push_refused" Debug {
        /// VPN.
        vpn: String,
        /// Why.
        reason: String,
        /// Its number, where it could be read.
        seq: Option<u64>,
    } => ("{vpn}: PUSH{} refused: {reason}", seq.map(|seq| format!(" SEQ {seq}")).unwrap_or_default());
    /// A PUSH came whose predecessors were not seen. Not told of one with key arrays for us: those for others are not sent to
    /// us.
    PushGap "push_gap" Warn {
        /// VPN.
        vpn: String,
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        received: u64,
    } => ("{vpn}: PUSH SEQ {received} came, {expected} was next: rekeys were missed");
    /// A PUSH was acknowledged.
    AckSent "ack_sent" Info {
        /// VPN.
        vpn: String,
        /// Its number.
        seq: u64,
    } => ("{vpn}: SEQ {seq} acknowledged");
    /// A registration is planned.
    ReregistrationScheduled "reregistration_scheduled" Info {
        /// VPN.
        vpn: String,
        /// Until then.
        seconds: u64,
        /// Why.
        reason: String,
    } => ("{vpn}: registering again in {seconds} s: {reason}");
    /// The policy the server sent is not ours to accept.
    PolicyRefused "policy_refused" Error {
        /// VPN.
        vpn: String,
        /// Why.
        reason: String,
    } => ("{vpn}: policy of the key server refused: {reason}");
    /// No usable TEK is left.
    KeysExpired "keys_expired" Error {
        /// VPN.
        vpn: String,
    } => ("{vpn}: no usable key is left");
    /// Traffic between zones takes its way through the data plane.
    DataPlaneStarted "data_plane_started" Info {
        /// Its kind.
        backend: String,
        /// `from -> to: vpn`, for each pair of zones.
        pairs: Vec<String>,
    } => ("data plane {backend}: {}", join(pairs));
    /// The data plane did not do what the keys need.
    DataPlaneFailed "data_plane_failed" Error {
        /// Its kind.
        backend: String,
        /// Why.
        reason: String,
    } => ("data plane {backend}: {reason}");
    /// ESP came that the policy covers and no key of ours opens; told once a second at most.
    UnknownSpi "unknown_spi" Debug {
        /// VPN.
        vpn: String,
        /// Its SPI.
        spi: String,
        /// Its sender, unverified.
        source: String,
    } => ("{vpn}: ESP of {source} with unknown SPI {spi}");
    /// A TEK has no packets or octets left to encrypt with.
    TekSpent "tek_spent" Error {
        /// VPN.
        vpn: String,
        /// SPI.
        spi: String,
    } => ("{vpn}: TEK {spi} is used up and encrypts nothing more");
    /// A key server does not answer.
    ServerUnreachable "server_unreachable" Warn {
        /// VPN.
        vpn: String,
        /// Address and port of the key server.
        server: String,
    } => ("{vpn}: key server {server} does not answer");
}

fn join<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn or<'a>(text: &'a Option<String>, absent: &'a str) -> &'a str {
    text.as_deref().unwrap_or(absent)
}

/// One line for people; what a stranger chose cannot break the line or steer a terminal.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.line()))
    }
}

/// `text` with control characters, and those that reorder or hide text, written as escapes: fit for a terminal.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                out.extend(c.escape_unicode());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// An event with its time, as `watch` carries it: `{"time":"…","event":"…",…}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// RFC 3339, UTC.
    pub time: String,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
}

impl Stamped {
    /// The event as of a wall-clock moment.
    pub fn new(unix_seconds: u64, event: Event) -> Stamped {
        Stamped { time: rfc3339(unix_seconds), event }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rekey() -> Event {
        Event::RekeyStarted {
            group: "g1".to_owned(),
            rekey: 3,
            pushes: 1,
            seq: 7,
            kek_spi: "0x0a".to_owned(),
            teks: vec!["0x00000100".to_owned(), "0x00000101".to_owned()],
            new_kek: None,
            members: 2,
            octets: 300,
            why: "operator".to_owned(),
        }
    }

    #[test]
    fn an_event_survives_json_and_names_itself() {
        let events = [
            rekey(),
            Event::LabMode,
            Event::PushRefused { vpn: "v".to_owned(), reason: "SIG".to_owned(), seq: None },
            Event::RekeyCompleted {
                group: "g1".to_owned(),
                seq: 7,
                kek_spi: "0x0a".to_owned(),
                acknowledged: 1,
                missing: vec!["gm2".to_owned()],
                seconds: 20.5,
            },
        ];
        for event in events {
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["event"], event.name());
            assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        }
    }

    #[test]
    fn a_stamped_event_is_one_flat_object() {
        let stamped = Stamped::new(0, Event::AckSent { vpn: "v".to_owned(), seq: 3 });
        let text = serde_json::to_string(&stamped).unwrap();
        assert_eq!(text, r#"{"time":"1970-01-01T00:00:00Z","event":"ack_sent","vpn":"v","seq":3}"#);
        assert_eq!(serde_json::from_str::<Stamped>(&text).unwrap(), stamped);
    }

    #[test]
    fn the_line_says_it_in_words() {
        assert_eq!(
            rekey().to_string(),
            "g1: rekey SEQ 7 under KEK 0x0a (operator): new TEKs [0x00000100 0x00000101], new KEK none, 300 octets to 2 members"
        );
    }

    #[test]
    fn a_strangers_text_cannot_break_the_line() {
        let event =
            Event::MessageDropped { peer: "p".to_owned(), reason: "a\n\u{1b}[2J\u{202e}é".to_owned() };
        assert_eq!(event.to_string(), "message of p dropped: a\\n\\u{1b}[2J\\u{202e}é");
    }

    #[test]
    fn names_are_unique_snake_case_words() {
        let mut names = Event::NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Event::NAMES.len());
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'))
        );
    }

    #[test]
    fn the_place_of_an_event_is_that_of_its_name() {
        for event in [rekey(), Event::LabMode, Event::AckSent { vpn: String::new(), seq: 0 }] {
            assert_eq!(Event::NAMES[event.place()], event.name());
            assert_eq!(Event::LEVELS[event.place()], event.level());
        }
    }

    #[test]
    fn an_event_of_a_newer_daemon_is_an_error_not_a_guess() {
        assert!(serde_json::from_str::<Event>(r#"{"event":"from_the_future"}"#).is_err());
    }

    #[test]
    fn the_page_of_events_has_every_event_with_its_level_and_fields() {
        let page = include_str!("../../docs/events.md");
        let mut rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        for name in Event::NAMES {
            let place = rows.iter().position(|row| row.starts_with(&format!("| `{name}` | ")));
            rows.swap_remove(place.unwrap_or_else(|| panic!("docs/events.md lacks {name}")));
        }
        assert!(rows.is_empty(), "events that no daemon has: {rows:?}");
        let level = |event: &Event| format!("| `{}` | {} | ", event.name(), event.level().name());
        for event in [rekey(), Event::LabMode, Event::AckSent { vpn: String::new(), seq: 0 }] {
            let row = page.lines().find(|row| row.starts_with(&level(&event)));
            let row = row.unwrap_or_else(|| panic!("{}: another level", event.name()));
            let fields = serde_json::to_value(&event).unwrap();
            for field in fields.as_object().unwrap().keys().filter(|field| *field != "event") {
                assert!(row.contains(&format!("`{field}`")), "{row} lacks {field}");
            }
        }
    }
}
