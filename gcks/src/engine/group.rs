//! One group: its policy, key generations and members. A group lives in one place; peers ask it.
//!
//! Rekeying is in `rekey.rs`, delivery and acknowledgements in `push.rs`, what survives in `rows.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ctl::event::Event;
use ctl::observe::{GroupDurations, LastPushView};
use gdoi_proto::ids::{KekSpi, SeqNumber, Spi};
use gdoi_proto::payload::{Endpoint, GdoiSa, Identification, KeyDownload};
use gdoi_proto::policy::{
    AckRequest, AddressPreservation, Carriage, Direction, GroupPolicy, KekCipher, KekKey, KekPolicy, KeySet,
    SenderIds, SignatureAlgorithm, TekKey, TekPolicy,
};
use gdoi_proto::registry::{IdType, NotifyType};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::{Job, Signer};
use ike::io::{Entropy, Instant, Now};
use ike::protect::ack::AckKey;
use ike::protect::push::KekCipherKey;

use super::durable::Change;
use super::lkh::{Node, NodeKey, Tree};
use super::member::{Member, MemberKey};
use super::membership::{Ends, Former};
use super::pace::Pace;
use super::peers::{Asker, PolicyAnswer};
use super::push::{Delivered, Delivery, Mark};
use super::roster::{NumberSet, Roster};
use super::sender_id::SenderIdPool;
use super::settings::{Channel, CommunicationSettings, GroupSettings, SaSettings, Signing};
use super::signing::{Asking, FormerKey};

/// Keys count as unused this long, however short ATD is: a newcomer must have the time to ask for them.
const LEAST_FRESH: Duration = Duration::from_secs(10);

/// What message 2 of a PULL said: message 4 must keep it even when a rekey happens in between.
#[derive(Debug)]
pub struct Terms {
    /// The SA payload.
    pub sa: GdoiSa,
    /// The policy in it.
    pub policy: GroupPolicy,
    /// Last SEQ under its KEK; none without a KEK.
    pub seq: Option<SeqNumber>,
    /// The last PUSH whose content is in it.
    pub mark: Mark,
    /// Rekeys nobody was told of, when it was made.
    pub untold: u64,
    /// When it was made.
    pub made: Instant,
    /// Its keys.
    pub keys: KeySet,
}

/// A rekey SA.
#[derive(Debug, Clone)]
pub struct Kek {
    /// Cookie pair of its PUSHes.
    pub spi: KekSpi,
    /// CBC IV of its PUSHes.
    pub iv: [u8; 16],
    /// Cipher key.
    pub key: SecretBytes,
    /// How its PUSHes are signed.
    pub signing: Signing,
    /// DER SubjectPublicKeyInfo: what its members verify them with.
    pub public_key: Vec<u8>,
    /// Last number used.
    pub seq: SeqNumber,
    /// KEKs of the group before it.
    pub generation: u64,
    /// When it was made.
    pub made: Instant,
    /// When it ends.
    pub ends: Instant,
    /// The same on the wall clock, seconds since 1970.
    pub ends_unix: u64,
    /// What acknowledgements its members were asked for.
    pub ack: Option<AckRequest>,
    /// Key of its acknowledgements.
    pub ack_key: Option<AckKey>,
    /// The same for peers with `ack-l-output`.
    pub ack_key_output: Option<AckKey>,
    /// PUSHes under it.
    pub cipher: KekCipherKey,
    /// It has a successor; kept for acknowledgements until then.
    pub replaced_until: Option<Instant>,
    /// The multicast group its SAK names: members that hold it listen there.
    pub channel: Option<SocketAddr>,
    /// An expelled member holds it and may listen: its PUSHes go by unicast alone.
    pub overheard: bool,
}

/// A data-security SA.
#[derive(Debug, Clone)]
pub struct Tek {
    /// Name of its SA statement.
    pub sa: String,
    /// SPI.
    pub spi: Spi,
    /// What it was made for; its life stands below.
    pub made_for: TekPolicy,
    /// Keys.
    pub key: TekKey,
    /// When members start sending on it.
    pub activates: Instant,
    /// When it ends.
    pub ends: Instant,
    /// The same on the wall clock.
    pub ends_unix: u64,
    /// It has a successor: members drop it then.
    pub retires: Option<Instant>,
}

/// What a group wants.
#[derive(Debug)]
pub enum GroupOutput {
    /// Write before anything that follows.
    Persist(Vec<Change>),
    /// Send the same octets to many.
    Fanout(Bytes, Vec<(SocketAddr, SocketAddr)>),
    /// Send to a multicast group.
    Multicast(Bytes, Channel),
    /// Run for this group.
    Job(Job),
    /// Tell.
    Event(Event),
    /// A member is gone: its IKE SA goes too.
    DeleteIdentity(Identification, String),
}

/// Counters of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupCounters {
    /// PULLs completed.
    pub pulls: u64,
    /// PULLs refused: identity not authorised.
    pub pulls_unauthorised: u64,
    /// PULLs of new members beyond the threshold.
    pub pulls_over_threshold: u64,
    /// Rekeys begun.
    pub rekeys: u64,
    /// PUSH datagrams sent.
    pub pushes_sent: u64,
    /// Of these, to a multicast group.
    pub pushes_multicast: u64,
    /// Of these, copies after the first.
    pub retransmissions: u64,
    /// Acknowledgements accepted.
    pub acks: u64,
    /// Replayed acknowledgements: of something this member acknowledged already.
    pub acks_duplicate: u64,
    /// Acknowledgements that came when the PUSH was not waited for any more.
    pub acks_late: u64,
    /// Unsolicited acknowledgements: of nothing sent, or in a group that asks for none.
    pub acks_unexpected: u64,
    /// Acknowledgements with a wrong HASH or of somebody else.
    pub acks_forged: u64,
    /// Acknowledgements from nobody registered.
    pub acks_stranger: u64,
    /// Rekeys a member left unanswered, copies included.
    pub unacknowledged: u64,
    /// Members that left a rekey unanswered and were not removed for it yet.
    pub suspected: u64,
    /// Members removed for silence.
    pub expired: u64,
    /// Memberships that ended by themselves.
    pub ended: u64,
    /// Keys of the tree handed out.
    pub lkh_keys: u64,
    /// How long registrations and rekeys took.
    pub durations: GroupDurations,
}

/// A group.
pub struct Group {
    /// Its configuration.
    pub settings: GroupSettings,
    pub(super) signer: Option<Arc<dyn Signer>>,
    pub(super) signing_key: Option<SecretBytes>,
    pub(super) public_key: Option<Vec<u8>>,
    /// Signing keys before it, while rekey SAs made under them last.
    pub(super) former_keys: Vec<FormerKey>,
    /// The signing key that is being made or read: one at a time, results do not say whose they are.
    pub(super) asking: Option<Asking>,
    pub(super) kek: Option<Kek>,
    pub(super) old_keks: Vec<Kek>,
    pub(super) teks: Vec<Tek>,
    pub(super) sids: SenderIdPool,
    /// SIDs of another width are in use: they overlap with fresh ones.
    pub(super) foreign_sids: bool,
    pub(super) members: Roster,
    /// The key tree whose root is the KEK.
    pub(super) tree: Option<Tree>,
    /// Nodes read by restore.
    pub(super) found: BTreeMap<Node, NodeKey>,
    /// Members hold keys of another kind than the configuration wants: flat ones, or of a tree.
    pub(super) other_keys: bool,
    /// The last rekey that replaced every key: when, and the TEKs made since then.
    pub(super) fresh: Option<(Instant, BTreeSet<Spi>)>,
    /// A newcomer waits for keys that nobody used yet.
    pub(super) join_waits: bool,
    /// Identities that may not register, and since when, in Unix seconds.
    pub(super) revoked: BTreeMap<MemberKey, u64>,
    pub(super) ends: Ends,
    pub(super) former: VecDeque<Former>,
    /// The last delivery that was over.
    pub(super) last_push: Option<LastPushView>,
    /// `settings.gateways`, shared by the records of their members.
    pub(super) gateways: BTreeSet<Arc<str>>,
    /// In the order of their marks.
    pub(super) deliveries: Vec<Delivery>,
    /// PUSHes that are delivered, for members that registered with older terms meanwhile.
    pub(super) delivered: VecDeque<Delivered>,
    /// Rekeys that no member was told of: each makes the terms before it void.
    pub(super) untold: u64,
    /// The stored signing key's kind and public key, for KEK rows of older builds, which do not say.
    pub(super) stored_signing: Option<(SignatureAlgorithm, u16, Vec<u8>)>,
    /// Rows that mean nothing any more, found by restore.
    pub(super) stale: Vec<Change>,
    pub(super) wanted: super::rekey::Wanted,
    /// Rekeys so far, for who follows one.
    pub(super) rekeys: u64,
    /// Since when the store refuses writes: nothing is sent, so that nobody is counted as silent.
    pub(super) frozen: Option<Instant>,
    /// TEK SPIs of all groups of the server, lent to whoever makes TEKs: a member of several has one data plane.
    pub(super) spis: BTreeSet<Spi>,
    /// How fast PUSHes leave, lent like them.
    pub(super) pace: Pace,
    /// Jobs of the signing key that failed in a row, and when it is tried again.
    pub(super) failures: u32,
    pub(super) retry: Option<Instant>,
    /// It is gone from the configuration and tells its members so.
    pub(super) leaving: bool,
    /// A copy that a change is tried on.
    pub(super) tried: bool,
    pub(super) out: VecDeque<GroupOutput>,
    /// Counters.
    pub counters: GroupCounters,
}

impl Group {
    /// A group without keys.
    pub fn new(settings: GroupSettings) -> Group {
        let sids = SenderIdPool::new(settings.sender_id_bits, 0);
        let gateways = settings.gateways.iter().map(|name| Arc::from(name.as_str())).collect();
        Group {
            settings,
            signer: None,
            signing_key: None,
            public_key: None,
            former_keys: Vec::new(),
            asking: None,
            kek: None,
            old_keks: Vec::new(),
            teks: Vec::new(),
            sids,
            foreign_sids: false,
            members: Roster::default(),
            tree: None,
            found: BTreeMap::new(),
            other_keys: false,
            fresh: None,
            join_waits: false,
            revoked: BTreeMap::new(),
            ends: Ends::default(),
            former: VecDeque::new(),
            last_push: None,
            gateways,
            deliveries: Vec::new(),
            delivered: VecDeque::new(),
            untold: 0,
            stored_signing: None,
            stale: Vec::new(),
            wanted: super::rekey::Wanted::default(),
            rekeys: 0,
            frozen: None,
            spis: BTreeSet::new(),
            pace: Pace::default(),
            failures: 0,
            retry: None,
            leaving: false,
            tried: false,
            out: VecDeque::new(),
            counters: GroupCounters::default(),
        }
    }

    /// The next wish.
    pub fn poll(&mut self) -> Option<GroupOutput> {
        self.out.pop_front()
    }

    /// Members by identity.
    pub fn members(&self) -> impl Iterator<Item = (&MemberKey, &Member)> {
        self.members.iter()
    }

    /// A gateway whose members may register here, by its name.
    pub(super) fn gateway(&self, name: &str) -> Option<Arc<str>> {
        self.gateways.get(name).cloned()
    }

    /// Identities of some members, sorted, for people.
    pub(super) fn names(&self, numbers: &NumberSet) -> Vec<String> {
        let mut keys: Vec<&MemberKey> = numbers.iter().filter_map(|n| self.members.key(n)).collect();
        keys.sort_unstable();
        keys.into_iter().map(ToString::to_string).collect()
    }

    /// The current rekey SA.
    pub fn kek(&self) -> Option<&Kek> {
        self.kek.as_ref()
    }

    /// Live data-security SAs.
    pub fn teks(&self) -> &[Tek] {
        &self.teks
    }

    /// SPIs whose acknowledgements belong here.
    pub fn kek_spis(&self) -> impl Iterator<Item = KekSpi> + '_ {
        self.kek.iter().chain(&self.old_keks).map(|kek| kek.spi)
    }

    pub(super) fn event(&mut self, event: Event) {
        self.out.push_back(GroupOutput::Event(event));
    }

    /// Counts and tells that somebody may not register.
    pub(super) fn refuse(&mut self, asker: &Asker, reason: String) {
        self.counters.pulls_unauthorised += 1;
        self.event(asker.refused(self.settings.name.clone(), reason));
    }

    /// May this identity know the policy (message 1)? Nothing changes here (RFC 6407 section 3.2).
    pub fn on_policy_ask(&mut self, now: Now, asker: &Asker) -> PolicyAnswer {
        if !self.settings.gateways.contains(&asker.gateway.name) {
            let Asker { gateway, .. } = asker;
            let (name, line) = (&gateway.name, gateway.line);
            self.refuse(asker, format!("gateway {name} (line {line}) is not among the group's ike-gateways"));
            return PolicyAnswer::Refused(NotifyType::InvalidIdInformation);
        }
        if self.revoked.contains_key(&asker.identity) {
            self.refuse_revoked(asker);
            return PolicyAnswer::Refused(NotifyType::InvalidIdInformation);
        }
        if self.refuses_ended(now, asker) {
            return PolicyAnswer::Refused(NotifyType::InvalidIdInformation);
        }
        if self.over_threshold(&asker.identity) {
            self.refuse_over_threshold(&asker.identity);
            return PolicyAnswer::Silence;
        }
        // The tree grows as soon as it may, and the member asks again.
        if self.tree.as_ref().is_some_and(|tree| tree.is_full() && self.leaf_of(&asker.identity).is_none()) {
            return PolicyAnswer::Later;
        }
        // Backward access control (RFC 6407 section 7.4.2): the others change their keys first, and the member asks again.
        if self.is_kept_from_old_keys(&asker.identity) && self.fresh_teks(now.at).is_none() {
            self.join_waits = true;
            return PolicyAnswer::Later;
        }
        match self.terms(now, asker) {
            Some(terms) => PolicyAnswer::Terms(Arc::new(terms)),
            // The signing key is being made: a matter of seconds, which the member's repeats outlast. A notification
            // would send it to another server, or to its backoff.
            None => PolicyAnswer::Later,
        }
    }

    pub(super) fn over_threshold(&self, identity: &MemberKey) -> bool {
        self.settings
            .member_threshold
            .is_some_and(|most| self.members.len() >= most && self.members.number(identity).is_none())
    }

    fn refuse_over_threshold(&mut self, identity: &MemberKey) {
        self.counters.pulls_over_threshold += 1;
        let threshold = self.settings.member_threshold.unwrap_or(0);
        self.event(Event::MemberThresholdReached {
            group: self.settings.name.clone(),
            threshold: threshold as u64,
            member: identity.to_string(),
        });
    }

    /// Policy and keys as of now; none while the keys are being made.
    fn terms(&self, now: Now, asker: &Asker) -> Option<Terms> {
        if self.settings.communication.is_some() && (self.kek.is_none() || !self.is_ready()) {
            return None;
        }
        let at = now.at;
        let newcomer = self.is_kept_from_old_keys(&asker.identity);
        let fresh = self.fresh_teks(at).filter(|_| newcomer);
        let may_know = |tek: &Tek| fresh.is_none_or(|fresh| fresh.contains(&tek.spi));
        // What members are told to drop is nothing to begin with.
        let wanted = |tek: &Tek| self.sa_settings(&tek.sa).is_some();
        let live = |tek: &&Tek| tek.life(at) > Duration::ZERO && may_know(tek) && wanted(tek);
        let teks: Vec<&Tek> = self.teks.iter().filter(live).collect();
        if teks.is_empty() {
            return None;
        }
        let kek_policy = match (&self.settings.communication, &self.kek) {
            (Some(communication), Some(kek)) => Some(self.kek_policy(
                communication,
                kek,
                at,
                endpoint(asker.local, asker.local.port()),
                communication.way.channel().map_or_else(
                    || endpoint(asker.peer, asker.peer.port()),
                    |channel| endpoint_of(channel.group),
                ),
            )),
            _ => None,
        };
        let (activation_delay, deactivation_delay) = self.delays(at);
        let mut policy = GroupPolicy {
            kek: kek_policy,
            activation_delay,
            deactivation_delay,
            teks: teks.iter().map(|tek| tek.policy(at)).collect(),
        };
        self.spread(at, &asker.identity, &mut policy);
        let keys = KeySet {
            kek: self.kek.as_ref().map(Group::kek_key),
            teks: teks.iter().map(|tek| (tek.spi, tek.key.clone())).collect(),
            ..KeySet::default()
        };
        let seq = self.kek.as_ref().map(|kek| kek.seq);
        Some(Terms {
            sa: policy.write(Carriage::Pull),
            policy,
            seq,
            mark: self.mark(),
            untold: self.untold,
            made: at,
            keys,
        })
    }

    /// True for who must not learn keys that were in use before it came.
    fn is_kept_from_old_keys(&self, identity: &MemberKey) -> bool {
        self.settings.rekey_on_join && self.members.number(identity).is_none()
    }

    /// The TEKs that came with or after the last new KEK, while members do not send under them yet: newcomers of that time
    /// share them.
    pub(super) fn fresh_teks(&self, at: Instant) -> Option<&BTreeSet<Spi>> {
        let activation = self.settings.communication.as_ref().map_or(0, |it| it.activation_delay);
        let span = Duration::from_secs(u64::from(activation)).max(LEAST_FRESH);
        self.fresh.as_ref().filter(|(since, _)| *since + span > at).map(|(_, teks)| teks)
    }

    /// ATD and DTD for a joiner: what is left of a rollover under way. Else the others send under these keys already, and so
    /// must who comes again with older ones: they have dropped those.
    ///
    /// Of several rollovers at once the shortest overlap counts: under what it has left everybody sends for that much longer,
    /// so that a joiner never takes a TEK for one the others have left already.
    fn delays(&self, at: Instant) -> (u16, Option<u16>) {
        let deactivation = self.settings.communication.as_ref().map(|it| it.deactivation_delay);
        let pending =
            self.teks.iter().map(|tek| tek.activates.since(at)).max().filter(|left| !left.is_zero());
        let retiring = self.teks.iter().filter_map(|tek| tek.retires).map(|at_| at_.since(at)).max();
        let overlap = |new: &Tek| {
            let replaced =
                self.teks.iter().filter(|old| old.sa == new.sa).filter_map(|old| old.retires).max()?;
            Some(replaced.since(new.activates))
        };
        let overlap = self.teks.iter().filter(|tek| tek.activates > at).filter_map(overlap).min();
        match (pending, retiring) {
            (None, None) => (0, deactivation),
            (pending, retiring) => {
                let activation = pending.map_or(0, ceil_seconds);
                let rollover = pending.zip(overlap).map(|(pending, overlap)| pending + overlap);
                let left = rollover.or(retiring).map(ceil_seconds).or(deactivation).unwrap_or(0);
                (activation, Some(left.max(activation.saturating_add(1))))
            }
        }
    }

    pub(super) fn kek_policy(
        &self,
        communication: &CommunicationSettings,
        kek: &Kek,
        at: Instant,
        source: Endpoint,
        destination: Endpoint,
    ) -> KekPolicy {
        KekPolicy {
            spi: kek.spi,
            source,
            destination,
            cipher: KekCipher::AesCbc { key_octets: kek.key.len() },
            lifetime_seconds: seconds(kek.ends.since(at)),
            signature_hash: kek.signing.hash,
            signature: kek.signing.algorithm,
            signature_key_bits: Some(kek.signing.key_bits),
            acknowledgement: kek.ack,
            lkh: communication.lkh,
        }
    }

    pub(super) fn kek_key(kek: &Kek) -> KekKey {
        KekKey { iv: kek.iv.to_vec(), key: kek.key.clone(), public_key: Some(kek.public_key.clone()) }
    }

    pub(super) fn sa_settings(&self, name: &str) -> Option<&SaSettings> {
        self.settings.sas.iter().find(|sa| sa.name == name)
    }

    /// Message 3 was valid: the member is live. Its record and SIDs are written before its keys leave.
    pub fn on_join(
        &mut self,
        now: Now,
        asker: &Asker,
        terms: &Terms,
        sender_ids: u16,
        entropy: &mut dyn Entropy,
    ) -> Option<KeyDownload> {
        let gateway = self.gateway(&asker.gateway.name)?;
        if self.revoked.contains_key(&asker.identity) {
            self.refuse_revoked(asker);
            return None;
        }
        if self.refuses_ended(now, asker) {
            return None;
        }
        if self.over_threshold(&asker.identity) {
            self.refuse_over_threshold(&asker.identity);
            return None;
        }
        // Nothing is lost: it asks again and gets what is current.
        let missed = self.missed_since(terms)?;
        let root = self.root_for(&asker.identity, terms)?;
        let mut changes = Vec::new();
        let mut keys = terms.keys.clone();
        let mut sids = Vec::new();
        if terms.policy.teks.iter().any(TekPolicy::needs_sender_id) {
            let Some(allocation) = self.sids.allocate(u32::from(sender_ids.max(1))) else {
                self.event(Event::SenderIdsExhausted { group: self.settings.name.clone() });
                return None;
            };
            if allocation.reserve {
                changes.push(self.group_row());
            }
            sids = allocation.sids;
            keys.sender_ids = Some(SenderIds { bits: self.sids.bits(), values: sids.clone() });
        }
        let leaf = match root {
            Some(root) => {
                let leaf = self.seat(&asker.identity, entropy, &mut changes)?;
                keys.lkh_download = self.tree.as_ref().and_then(|tree| tree.path_to(leaf, root));
                self.counters.lkh_keys += keys.lkh_download.as_ref().map_or(0, |path| path.keys.len()) as u64;
                Some(leaf)
            }
            None => None,
        };
        let known = self.members.get(&asker.identity);
        let again = known.is_some();
        let member = Member {
            peer: asker.peer,
            local: asker.local,
            behind_nat: asker.behind_nat,
            certificate: asker.certificate.clone(),
            gateway,
            joined: terms.mark,
            leaf,
            sender_ids: sids,
            registered: known.map_or(now.at, |member| member.registered),
            last_ack: known.and_then(|member| member.last_ack),
            missed: 0,
            pushes_sent: known.map_or(0, |member| member.pushes_sent),
            pushed: Instant::default(),
            acks: known.map_or(0, |member| member.acks),
        };
        changes.push(self.member_row(&asker.identity, &member));
        let sender_ids = member.sender_ids.iter().map(|sid| u64::from(sid.0)).collect();
        // Two identities behind one address and port: the later one is there now.
        let there = self.members.at(asker.peer).and_then(|number| self.members.key(number)).cloned();
        if let Some(other) = there.filter(|other| *other != asker.identity) {
            changes.extend(self.forget_member(&other, "its address registered another identity"));
        }
        self.members.put(asker.identity.clone(), member);
        Group::is_back(&mut self.former, &asker.identity);
        changes.extend(self.returned(asker.peer));
        for delivered in missed {
            changes.push(self.deliver_again(now, delivered));
        }
        self.counters.pulls += 1;
        self.counters.durations.registration.count(now.at.since(terms.made));
        self.out.push_back(GroupOutput::Persist(changes));
        let (group, member, address) =
            (self.settings.name.clone(), asker.identity.to_string(), asker.peer.to_string());
        let gateway = asker.gateway.name.clone();
        self.event(if again {
            Event::MemberReregistered {
                group: group.clone(),
                member: member.clone(),
                address: address.clone(),
                gateway: gateway.clone(),
            }
        } else {
            Event::MemberRegistered {
                group: group.clone(),
                member: member.clone(),
                address: address.clone(),
                gateway: gateway.clone(),
            }
        });
        self.event(Event::PullCompleted { group, member, address, sender_ids, gateway });
        self.catch_up(now, &asker.identity, terms.mark);
        Some(keys.write(&terms.policy))
    }

    /// Takes a member out of every table; the change that makes it durable.
    pub(super) fn forget_member(&mut self, key: &MemberKey, reason: &str) -> Option<Change> {
        let gateway = self.members.get(key).map_or_else(String::new, |member| member.gateway.to_string());
        let number = self.members.remove(key)?;
        for delivery in &mut self.deliveries {
            delivery.outstanding.remove(number);
        }
        self.event(Event::MemberRemoved {
            group: self.settings.name.clone(),
            member: key.to_string(),
            reason: reason.to_owned(),
            gateway,
        });
        Some(self.member_gone(key))
    }

    /// Takes a member out of the list and ends its IKE SA; the change goes with what follows from it.
    pub(super) fn remove_member(&mut self, key: &MemberKey, reason: &str) -> Vec<Change> {
        let change = self.forget_member(key, reason);
        self.out.push_back(GroupOutput::DeleteIdentity(key.clone(), reason.to_owned()));
        change.into_iter().collect()
    }

    /// A member by identity, address, or address and port, as `show` prints them; none when nobody is meant.
    ///
    /// # Errors
    /// For the operator: several are meant, and how each of these is named alone.
    pub fn find_member(&self, text: &str) -> Result<Option<MemberKey>, String> {
        let found: Vec<(&MemberKey, &Member)> = self
            .members
            .iter()
            .filter(|(key, member)| {
                key.to_string() == text
                    || member.peer.to_string() == text
                    || member.peer.ip().to_string() == text
            })
            .collect();
        match found.as_slice() {
            [] => Ok(None),
            [(key, _)] => Ok(Some((*key).clone())),
            several => {
                let names: Vec<String> =
                    several.iter().map(|(key, member)| format!("{} ({key})", member.peer)).collect();
                Err(format!("{text} means several members, say which: {}", names.join(", ")))
            }
        }
    }
}

impl Tek {
    /// What members are told of it: a key describes itself by what it was made for, whatever the configuration says by now.
    pub fn policy(&self, at: Instant) -> TekPolicy {
        TekPolicy { lifetime_seconds: seconds(self.life(at)), ..self.made_for.clone() }
    }

    /// Time left for members: to its end, or to its retirement.
    pub fn life(&self, at: Instant) -> Duration {
        self.retires.map_or(self.ends, |retires| retires.min(self.ends)).since(at)
    }
}

/// The policy that an SA statement asks for, without a life.
pub(super) fn policy_of(sa: &SaSettings, spi: Spi) -> TekPolicy {
    TekPolicy {
        spi,
        ip_protocol: sa.ip_protocol,
        source: sa.source.clone(),
        destination: sa.destination.clone(),
        cipher: sa.cipher,
        lifetime_seconds: 0,
        lifetime_kilobytes: None,
        encapsulation: sa.encapsulation,
        address_preservation: AddressPreservation::Both,
        direction: Direction::Symmetric,
        delay_window: sa.delay_window,
    }
}

/// An address and port as SAK endpoints name them.
fn endpoint(address: SocketAddr, port: u16) -> Endpoint {
    match address.ip() {
        std::net::IpAddr::V4(a) => Endpoint { id_type: IdType::Ipv4Addr, port, data: a.octets().to_vec() },
        std::net::IpAddr::V6(a) => Endpoint { id_type: IdType::Ipv6Addr, port, data: a.octets().to_vec() },
    }
}

/// Source and destination of a pushed SAK: the same for everybody, 0.0.0.0 being "the address you registered with".
pub(super) fn pushed_endpoints(communication: &CommunicationSettings) -> (Endpoint, Endpoint) {
    let any = |id_type, octets| Endpoint { id_type, port: 0, data: vec![0; octets] };
    match communication.way.channel().map(|channel| channel.group) {
        Some(group @ SocketAddr::V4(_)) => (any(IdType::Ipv4Addr, 4), endpoint_of(group)),
        Some(group @ SocketAddr::V6(_)) => (any(IdType::Ipv6Addr, 16), endpoint_of(group)),
        None => (any(IdType::Ipv4Addr, 4), any(IdType::Ipv4Addr, 4)),
    }
}

fn endpoint_of(address: SocketAddr) -> Endpoint {
    endpoint(address, address.port())
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1)
}

fn ceil_seconds(time: Duration) -> u16 {
    u16::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u16::MAX)
}

/// The cipher of PUSHes under a KEK.
pub(super) fn kek_cipher(spi: KekSpi, iv: [u8; 16], key: &SecretBytes) -> Option<KekCipherKey> {
    let cipher = ike::crypto::Cipher::with_key_len(key.len())?;
    Some(KekCipherKey { spi, key: CipherKey::new(cipher, key.clone())?, iv })
}

/// Fresh random octets for a key.
pub(super) fn fresh_secret(octets: usize, entropy: &mut dyn Entropy) -> SecretBytes {
    let mut key = vec![0; octets];
    entropy.fill(&mut key);
    SecretBytes::new(key)
}
