//! A group takes a changed configuration: one rekey says all of it, at once and in one write.
//!
//! ```text
//! SA added      its first TEK
//! SA changed    a new TEK; the old one ends early, and is deleted by name when it served another flow
//! SA removed    a Delete payload at the head of the PUSH
//! gateway gone  its members are expelled; new keys to the rest when `rekey-on-leave`
//! KEK changed   a new KEK in the same PUSH
//! key of the signature changed   the same, signed with the key before, which members know
//! ```
//!
//! A restart with another configuration comes to the same by the same rules: what a TEK was made for is stored with it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ctl::event::Event;
use ctl::plan::{GroupPlan, PushPlan};
use gdoi_proto::ids::Spi;
use gdoi_proto::payload::Delete;
use gdoi_proto::policy::TekPolicy;
use gdoi_proto::registry::{Doi, TekProtocol};
use ike::io::{Entropy, Instant, Now};

use super::durable::Change;
use super::group::{Group, GroupOutput, Tek, policy_of};
use super::layout::{Besides, delete_everything};
use super::lkh::{Node, Tree};
use super::member::MemberKey;
use super::rekey::Cause;
use super::roster::NumberSet;
use super::sender_id::SenderIdPool;
use super::settings::{CommunicationSettings, GatewaySettings, GroupSettings, SaSettings};

/// A replaced SA ends after 5 % of its life, within these bounds.
pub(super) const EARLIEST_END: (Duration, Duration) = (Duration::from_secs(90), Duration::from_secs(3600));
/// Between ATD and DTD of such a PUSH, at least: make before break.
const AFTER_ACTIVATION: u16 = 15;

/// How long a TEK of a policy that is no more lives on: min(remaining, max(90 s, min(5 % of its life, 3600 s))). Its life
/// counts from its activation.
fn early_end(tek: &Tek, at: Instant) -> Duration {
    let (least, most) = EARLIEST_END;
    let part = tek.ends.since(tek.activates) / 20;
    tek.ends.since(at).min(part.min(most).max(least))
}

fn same_flow(left: &TekPolicy, right: &TekPolicy) -> bool {
    left.ip_protocol == right.ip_protocol
        && left.source == right.source
        && left.destination == right.destination
        && left.direction == right.direction
}

/// True when PUSHes are signed by another key; another hash alone leaves it as it is.
fn other_signing_key(left: &CommunicationSettings, right: &CommunicationSettings) -> bool {
    let same = match (&left.signing_key, &right.signing_key) {
        (Some(left), Some(right)) => left.ct_eq(right.expose()),
        (None, None) => true,
        (Some(_), None) | (None, Some(_)) => false,
    };
    (left.signature, left.signature_key_bits) != (right.signature, right.signature_key_bits) || !same
}

/// The statement of a group under which an identity at this address may be its member at `now`, in Unix seconds.
fn admitting<'a>(
    now: u64,
    gateways: &'a [GatewaySettings],
    names: &BTreeSet<String>,
    before: &str,
    identity: &MemberKey,
    address: IpAddr,
) -> Option<&'a str> {
    let fits = |gateway: &&GatewaySettings| {
        names.contains(&gateway.name)
            && !gateway.is_over(now)
            && (gateway.address.is_none() || gateway.covers(address))
            && gateway.admits(identity, address)
    };
    let mut same = gateways.iter().filter(|gateway| gateway.name == before);
    if same.clone().any(|gateway| gateway.is_over(now)) {
        // Wider statements do not prolong it: its registrations come by this one.
        return None;
    }
    let same = same.find(fits);
    same.or_else(|| gateways.iter().find(fits)).map(|gateway| gateway.name.as_str())
}

impl Group {
    /// TEKs whose SA is gone from the configuration, and that no member was told to drop.
    pub(super) fn departed(&self) -> impl Iterator<Item = &Tek> {
        self.teks.iter().filter(|tek| tek.retires.is_none() && self.sa_settings(&tek.sa).is_none())
    }

    /// What a rekey of these SAs says of TEKs whose policy is no more.
    fn besides(&self, at: Instant, sas: &BTreeSet<String>) -> Besides {
        let (mut gone, mut early): (Vec<Spi>, Vec<Duration>) = (Vec::new(), Vec::new());
        for tek in self.teks.iter().filter(|tek| tek.retires.is_none()) {
            match self.sa_settings(&tek.sa) {
                None => {
                    gone.push(tek.spi);
                    early.push(early_end(tek, at));
                }
                Some(sa) if sas.contains(&sa.name) => {
                    let policy = policy_of(sa, tek.spi);
                    if !same_flow(&policy, &tek.made_for) {
                        gone.push(tek.spi);
                    }
                    if policy != tek.made_for || tek.ends > at + sa.lifetime {
                        early.push(early_end(tek, at));
                    }
                }
                Some(_) => {}
            }
        }
        let spis: Vec<Vec<u8>> = gone.iter().map(|spi| spi.0.to_be_bytes().to_vec()).collect();
        let delete = Delete { doi: Doi::Gdoi, protocol: TekProtocol::Esp.number(), spi_size: 4, spis };
        let activation = self.settings.communication.as_ref().map_or(0, |it| it.activation_delay);
        let seconds = |time: Duration| u16::try_from(time.as_secs()).unwrap_or(u16::MAX);
        Besides {
            deletes: if gone.is_empty() { Vec::new() } else { vec![delete] },
            deactivation: early
                .into_iter()
                .max()
                .map(|time| seconds(time).max(activation.saturating_add(AFTER_ACTIVATION))),
        }
    }

    /// The same, with the TEKs of SAs that are gone on their way out.
    pub(super) fn leave_behind(
        &mut self,
        at: Instant,
        sas: &BTreeSet<String>,
        changes: &mut Vec<Change>,
    ) -> Besides {
        let besides = self.besides(at, sas);
        let gone: Vec<Spi> = self.departed().map(|tek| tek.spi).collect();
        // Without a rekey SA nobody can be told: members keep such a TEK to its end.
        let told = self.settings.communication.is_some();
        let delay = Duration::from_secs(u64::from(besides.deactivation.unwrap_or(0)));
        for tek in self.teks.iter_mut().filter(|tek| gone.contains(&tek.spi)) {
            tek.retires = Some(if told { (at + delay).min(tek.ends) } else { tek.ends });
        }
        changes.extend(self.teks.iter().filter(|tek| gone.contains(&tek.spi)).map(|tek| self.tek_row(tek)));
        besides
    }

    /// A copy to try a change on: no timers, no PUSHes under way.
    pub(super) fn shadow(&self) -> Group {
        let mut shadow = Group::new(self.settings.clone());
        shadow.signer.clone_from(&self.signer);
        shadow.signing_key.clone_from(&self.signing_key);
        shadow.public_key.clone_from(&self.public_key);
        shadow.former_keys.clone_from(&self.former_keys);
        shadow.tried = true;
        shadow.kek.clone_from(&self.kek);
        shadow.old_keks.clone_from(&self.old_keks);
        shadow.teks.clone_from(&self.teks);
        shadow.sids = self.sids.clone();
        shadow.foreign_sids = self.foreign_sids;
        shadow.members = self.members.clone();
        shadow.tree.clone_from(&self.tree);
        shadow.fresh.clone_from(&self.fresh);
        shadow.revoked.clone_from(&self.revoked);
        shadow.rekeys = self.rekeys;
        shadow
    }

    /// Takes `new` for its configuration; what that does, in words and numbers.
    pub(super) fn reconfigure(
        &mut self,
        now: Now,
        new: GroupSettings,
        gateways: &[GatewaySettings],
        entropy: &mut dyn Entropy,
    ) -> GroupPlan {
        let members = self.members.len() as u64;
        let old = std::mem::replace(&mut self.settings, new);
        self.gateways = self.settings.gateways.iter().map(|name| Arc::from(name.as_str())).collect();
        let mut plan = GroupPlan { group: old.name.clone(), members, ..GroupPlan::default() };
        self.compare_sas(now.at, &old.sas, &mut plan);
        self.state_ends(now, gateways);
        self.readmit(now, gateways, &mut plan);
        if self.settings.sender_id_bits != self.sids.bits() {
            self.sids = SenderIdPool::new(self.settings.sender_id_bits, self.sids.reserved());
            self.foreign_sids = true;
            let row = self.group_row();
            self.out.push_back(GroupOutput::Persist(vec![row]));
            plan.notes.push("sender-id-bits: every key goes, all members register again".to_owned());
        }
        if old.id != self.settings.id {
            plan.notes.push(format!("it is group {} from now on; members keep their keys", self.settings.id));
        }
        match (&old.communication, self.settings.communication.clone()) {
            (Some(before), Some(after)) if other_signing_key(before, &after) => {
                self.change_signer(&after);
                let note = "another signing key: the push that brings it is signed with the one before";
                plan.notes.push(note.to_owned());
            }
            (None, Some(after)) => {
                self.change_signer(&after);
                plan.notes.push("rekeying begins: members get its SA when they register again".to_owned());
            }
            (Some(_), None) => {
                self.end_rekeying();
                plan.notes.push("rekeying ends: members register again before their keys end".to_owned());
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if let (Some(before), Some(after)) = (&old.communication, &self.settings.communication)
            && before.way != after.way
        {
            plan.notes.push("communication-type: the new KEK says where pushes come from then on".to_owned());
        }
        if self.holds_other_keys() {
            self.drop_tree(now, &mut plan, entropy);
        }
        self.rekey_for(now, &mut plan, entropy);
        plan.change = if self.differs(&old, &plan) { "changed" } else { "unchanged" }.to_owned();
        plan
    }

    fn differs(&self, old: &GroupSettings, plan: &GroupPlan) -> bool {
        // Neither shows a secret.
        let text = |settings: &GroupSettings| format!("{settings:?}");
        plan.rekeys > 0 || !plan.notes.is_empty() || text(old) != text(&self.settings)
    }

    fn compare_sas(&self, at: Instant, old: &[SaSettings], plan: &mut GroupPlan) {
        for sa in &self.settings.sas {
            let before = old.iter().find(|before| before.name == sa.name);
            let outlives = self.current_tek(&sa.name).is_some_and(|tek| tek.ends > at + sa.lifetime);
            match before {
                None => plan.sas_added.push(sa.name.clone()),
                Some(before) if policy_of(before, Spi(0)) != policy_of(sa, Spi(0)) => {
                    plan.sas_changed.push(sa.name.clone());
                }
                Some(_) if outlives => plan.sas_shortened.push(sa.name.clone()),
                Some(_) => {}
            }
        }
        let gone = old.iter().filter(|before| self.sa_settings(&before.name).is_none());
        plan.sas_removed = gone.map(|sa| sa.name.clone()).collect();
    }

    /// Members under statements that admit them no more go; others stay, under the statement that admits them now.
    fn readmit(&mut self, now: Now, gateways: &[GatewaySettings], plan: &mut GroupPlan) {
        let mut gone: Vec<MemberKey> = Vec::new();
        let mut moved = Vec::new();
        for (key, member) in self.members.iter() {
            match admitting(
                now.unix_seconds,
                gateways,
                &self.settings.gateways,
                &member.gateway,
                key,
                member.peer.ip(),
            ) {
                None => gone.push(key.clone()),
                Some(name) if *name != *member.gateway => moved.push((key.clone(), name)),
                Some(_) => {}
            }
        }
        let mut changes = Vec::new();
        for (key, name) in moved {
            let (Some(gateway), Some(number)) = (self.gateway(name), self.members.number(&key)) else {
                continue;
            };
            if let Some(member) = self.members.get_mut(number) {
                member.gateway = gateway;
            }
            changes.extend(self.members.get(&key).map(|member| self.member_row(&key, member)));
        }
        let reason = "no gateway of the configuration admits it any more";
        for key in &gone {
            changes.extend(self.forget_member(key, reason));
        }
        if !changes.is_empty() {
            self.out.push_back(GroupOutput::Persist(changes));
        }
        plan.expelled = gone.iter().map(ToString::to_string).collect();
        for key in gone {
            self.out.push_back(GroupOutput::DeleteIdentity(key, reason.to_owned()));
        }
    }

    /// Flat keys lead to no tree, a tree to no flat keys, and neither to a tree of other keys.
    fn holds_other_keys(&self) -> bool {
        let Some(communication) = self.settings.communication.as_ref().filter(|_| self.kek.is_some()) else {
            return false;
        };
        let octets = self.tree.as_ref().map(Tree::key_octets);
        octets != Some(communication.cipher.key_len()).filter(|_| communication.lkh)
    }

    /// Whoever holds keys of the kind before comes again.
    fn drop_tree(&mut self, now: Now, plan: &mut GroupPlan, entropy: &mut dyn Entropy) {
        let before = self.out.len();
        let nodes: Vec<Node> = self.tree.take().iter().flat_map(Tree::nodes).collect();
        let gone = nodes.into_iter().map(|node| self.node_gone(node)).collect();
        self.out.push_back(GroupOutput::Persist(gone));
        let note = "key-management: members are told that the rekey SA is gone, and register again";
        plan.notes.push(note.to_owned());
        (plan.new_kek, plan.rekeys) = (true, 1);
        // The new KEK takes the new signing key: `fill_keys` goes on when it is there.
        self.other_keys = !self.is_ready();
        if self.other_keys {
            return;
        }
        self.clear_members(now, "key-management changed", entropy);
        self.read_pushes(before, 1, plan);
    }

    /// The one rekey of a change, when it takes one.
    fn rekey_for(&mut self, now: Now, plan: &mut GroupPlan, entropy: &mut dyn Entropy) {
        let before = self.out.len();
        let ready = self.is_ready();
        let due = |group: &Group, at| group.kek_due().is_some_and(|due| due <= at);
        let communication = self.settings.communication.as_ref();
        let outlives =
            communication.zip(self.kek.as_ref()).is_some_and(|(it, kek)| kek.ends > now.at + it.lifetime);
        if !plan.expelled.is_empty()
            && let Some(change) = self.is_overheard()
        {
            self.out.push_back(GroupOutput::Persist(vec![change]));
        }
        let communication = self.settings.communication.as_ref();
        // What the new signing key brings is a new KEK.
        let other_key = self.kek.is_some() && !ready;
        let leave = !plan.expelled.is_empty() && self.settings.rekey_on_leave;
        let span =
            communication.map_or(Duration::ZERO, |it| it.retransmission_period * (it.retransmissions + 1));
        let mut sas = self.due_sas(now.at);
        sas.extend(plan.sas_shortened.iter().cloned());
        if leave {
            sas.extend(self.settings.sas.iter().map(|sa| sa.name.clone()));
        }
        let mut kek = self.kek.is_some() && (leave || outlives || other_key || due(self, now.at));
        let wanted = !sas.is_empty() || kek || self.departed().next().is_some();
        if ready && self.sids_end() {
            self.event(Event::SenderIdsExhausted { group: self.settings.name.clone() });
            self.clean_slate(now, "sender-ids end", Vec::new(), Vec::new(), entropy);
            (plan.new_kek, plan.rekeys) = (plan.new_kek || self.kek.is_some(), 1);
        } else if wanted && (ready || self.kek.is_some()) && !self.other_keys {
            // What ends soon after goes along: one rekey instead of two.
            sas.extend(self.due_sas(now.at + span));
            kek = kek || due(self, now.at + span);
            let besides = self.besides(now.at, &sas);
            plan.deactivation_delay = besides.deactivation.map(u64::from);
            (plan.new_kek, plan.rekeys) = (plan.new_kek || kek, 1);
            let deletes: usize = besides.deletes.iter().map(|delete| delete.spis.len()).sum();
            self.rekey_soon(now, sas, kek, "configuration changed", entropy);
            self.read_pushes(before, deletes, plan);
            return;
        }
        self.read_pushes(before, 0, plan);
    }

    /// The PUSHes that began among the wishes from `before` on.
    fn read_pushes(&self, before: usize, deletes: usize, plan: &mut GroupPlan) {
        let limit = self.settings.communication.as_ref().map_or(0, |it| it.max_push_size as u64);
        for output in self.out.iter().skip(before) {
            if let GroupOutput::Event(Event::RekeyStarted { octets, teks, new_kek, members, .. }) = output {
                let first = plan.pushes.is_empty();
                plan.pushes.push(PushPlan {
                    octets: *octets,
                    limit,
                    teks: teks.len() as u64,
                    deletes: if first { deletes as u64 } else { 0 },
                    new_kek: new_kek.is_some(),
                    members: *members,
                });
            }
        }
        if plan.rekeys == 0 {
            return;
        }
        if plan.pushes.is_empty() && self.members.is_empty() {
            plan.notes.push("no member to tell".to_owned());
        } else if plan.pushes.is_empty() && self.settings.communication.is_none() {
            plan.notes.push("without a rekey SA members learn of it when they register again".to_owned());
        } else if plan.pushes.is_empty() {
            plan.notes.push(
                "its pushes follow when those before are signed and the signing key is ready".to_owned(),
            );
        }
        if plan.pushes.iter().any(|push| push.octets > push.limit) {
            plan.notes.push("a push is larger than max-push-size and cannot be split".to_owned());
        }
    }

    /// The group is gone from the configuration: its members are told to drop every key, and nothing of it is kept. It is
    /// over when that PUSH is delivered.
    pub(super) fn leave(&mut self, now: Now) -> GroupPlan {
        let before = self.out.len();
        let group = self.settings.name.clone();
        let mut plan = GroupPlan {
            group,
            change: "removed".to_owned(),
            members: self.members.len() as u64,
            sas_removed: self.settings.sas.iter().map(|sa| sa.name.clone()).collect(),
            ..GroupPlan::default()
        };
        let mut changes: Vec<Change> = Vec::new();
        let everything = vec![delete_everything(TekProtocol::Esp.number(), 4), delete_everything(0, 16)];
        let addresses: Vec<(SocketAddr, SocketAddr)> =
            self.members.iter().map(|(_, member)| (member.local, member.peer)).collect();
        // What was on its way is void.
        changes.extend(self.deliveries.iter().map(|delivery| self.push_gone(delivery)));
        self.deliveries.clear();
        self.wanted = Default::default();
        // Under a former signing key as well.
        let able = self.settings.communication.is_some() && !addresses.is_empty();
        if let Some(part) = able.then(|| self.lay_out_delete(everything)).flatten() {
            plan.rekeys = 1;
            self.counters.rekeys += 1;
            let cause = Cause { rekey: self.next_rekey(), pushes: 1, why: "group removed" };
            self.dispatch(now, part, &cause, (NumberSet::default(), addresses), &mut changes);
        }
        let keys: Vec<MemberKey> = self.members.iter().map(|(key, _)| key.clone()).collect();
        let reason = "its group is gone from the configuration";
        for key in &keys {
            changes.extend(self.forget_member(key, reason));
        }
        changes.extend(self.teks.iter().map(|tek| self.tek_gone(tek.spi)));
        for tek in &self.teks {
            self.spis.remove(&tek.spi);
        }
        self.teks.clear();
        // Neither its keys nor its last PUSH outlive this life of the server.
        changes.extend(self.kek_spis().map(|spi| self.kek_gone(spi)));
        changes.extend(self.deliveries.iter().map(|delivery| self.push_gone(delivery)));
        let nodes = self.tree.iter().flat_map(Tree::nodes);
        changes.extend(nodes.map(|node| self.node_gone(node)));
        changes.extend(self.revoked.keys().map(|key| self.revoked_gone(key)));
        changes.push(self.group_gone());
        self.settings.sas.clear();
        self.leaving = true;
        self.out.push_back(GroupOutput::Persist(changes));
        for key in keys {
            self.out.push_back(GroupOutput::DeleteIdentity(key, reason.to_owned()));
        }
        self.sign_next();
        self.read_pushes(before, 2, &mut plan);
        plan
    }

    /// True when a group that left has nothing more to say.
    pub(super) fn is_over(&self) -> bool {
        self.leaving && self.deliveries.is_empty()
    }
}
