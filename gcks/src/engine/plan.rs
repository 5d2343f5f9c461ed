//! A changed configuration of the whole server: what it would do, and doing it. The plan is the change itself, tried on
//! copies of the groups with keys that nobody keeps: it cannot differ from what is done.

use std::collections::{BTreeMap, BTreeSet};

use ctl::event::Event;
use ctl::plan::{GroupPlan, Plan};
use ike::io::{Entropy, Now};

use super::KeyServer;
use super::group::{Group, GroupOutput};
use super::io::Output;
use super::settings::{GroupSettings, Settings};

/// Octets for keys of a plan: different each time, secret never.
#[derive(Debug, Default)]
struct Counted(u64);

impl Entropy for Counted {
    fn fill(&mut self, out: &mut [u8]) {
        self.0 += 1;
        for (octet, counted) in out.iter_mut().rev().zip(self.0.to_le_bytes().iter().chain(&[1; 64]).cycle())
        {
            *octet = *counted | 0x80;
        }
        if let Some(tail) = out.last_chunk_mut::<4>() {
            *tail = u32::try_from(self.0).unwrap_or(u32::MAX).saturating_add(0x100).to_be_bytes();
        }
    }
}

fn added(settings: &GroupSettings) -> GroupPlan {
    GroupPlan {
        group: settings.name.clone(),
        change: "added".to_owned(),
        sas_added: settings.sas.iter().map(|sa| sa.name.clone()).collect(),
        new_kek: settings.communication.is_some(),
        ..GroupPlan::default()
    }
}

/// The groups in use, and those that a new configuration has.
struct Names {
    before: BTreeSet<String>,
    after: BTreeMap<String, GroupSettings>,
}

impl KeyServer {
    fn names(&self, new: &Settings) -> Names {
        let living = self.groups.iter().filter(|(_, group)| !group.leaving);
        Names {
            before: living.map(|(name, _)| name.clone()).collect(),
            after: new.groups.iter().map(|group| (group.name.clone(), group.clone())).collect(),
        }
    }

    fn plan_gateways(&self, new: &Settings) -> Plan {
        let before: BTreeSet<String> = self.peers.gateway_names().collect();
        let after: BTreeSet<String> = new.gateways.iter().map(|gateway| gateway.name.clone()).collect();
        Plan {
            gateways_added: after.difference(&before).cloned().collect(),
            gateways_removed: before.difference(&after).cloned().collect(),
            ..Plan::default()
        }
    }

    /// What `new` would change. Nothing changes here.
    pub fn plan(&self, now: Now, new: &Settings) -> Plan {
        let mut plan = self.plan_gateways(new);
        let mut entropy = Counted::default();
        let Names { before, after } = self.names(new);
        for name in before.iter().filter(|name| !after.contains_key(*name)) {
            plan.groups.extend(self.groups.get(name).map(|group| group.shadow().leave(now)));
        }
        for (name, settings) in after {
            let known = self.groups.get(&name).filter(|group| !group.leaving);
            plan.groups.push(match known {
                Some(group) => {
                    let mut shadow = group.shadow();
                    shadow.spis.clone_from(&self.spis);
                    shadow.reconfigure(now, settings, &new.gateways, &mut entropy)
                }
                None => added(&settings),
            });
        }
        plan
    }

    /// Uses `new` from now on: everything that is stored for it goes in one write, and each group has one rekey at most.
    /// Phase 1 SAs stay; those of gateways that are gone end.
    pub fn apply(&mut self, now: Now, new: Settings) -> Plan {
        let mut plan = Plan { applied: true, ..self.plan_gateways(&new) };
        let Names { before, after } = self.names(&new);
        for name in before.iter().filter(|name| !after.contains_key(*name)) {
            plan.groups.extend(self.lend(name, |group, _| group.leave(now)));
        }
        for (name, settings) in after {
            if before.contains(&name) {
                let changed = self
                    .lend(&name, |group, entropy| group.reconfigure(now, settings, &new.gateways, entropy));
                plan.groups.extend(changed);
            } else {
                plan.groups.push(added(&settings));
                let mut group = Group::new(settings);
                if self.store_failing {
                    group.on_store(now.at, true);
                }
                group.state_ends(now, &new.gateways);
                self.groups.insert(name.clone(), group);
                self.lend(&name, |group, entropy| group.start(now, entropy));
            }
        }
        self.by_id = super::by_id(&self.groups);
        self.peers.reload(&new, self.entropy.as_mut());
        let (mut changes, mut rest) = (Vec::new(), Vec::new());
        for (name, group) in &mut self.groups {
            while let Some(output) = group.poll() {
                match output {
                    GroupOutput::Persist(more) => changes.extend(more),
                    other => rest.push((name.clone(), other)),
                }
            }
        }
        if !changes.is_empty() {
            self.out.push_back(Output::Persist(changes));
        }
        for (name, output) in rest {
            self.on_group_output(&name, output);
        }
        self.out.push_back(Output::Event(Event::ConfigurationReloaded));
        plan
    }
}
