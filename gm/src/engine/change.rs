//! A changed configuration: what it does, and doing it. Keys in use stay until others replace them.
//!
//! ```text
//! vpn that is new                         registers
//! vpn that is gone                        its keys are wiped, its registration ends
//! other servers, identities or limits     registers anew: they look at the group, or we at its policy, in this light
//! another group or gateway                registers anew; of the old group nothing more is taken
//! anything else                           nothing happens now; who pauses after a failure asks at once
//! ```
//!
//! SAs with key servers stay, but the next registration negotiates its own: certificates, keys, anchors and revocation
//! lists are then those of the new files.

#[cfg(test)]
mod tests;

use std::fmt;

use ctl::event::Event;
use ike::io::Now;

use super::GroupMember;
use super::servers::{Server, ServerName};
use super::settings::{GatewaySettings, Settings, VpnSettings};
use super::vpn::Vpn;

/// What a configuration changes, by names of VPNs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// New: they register.
    pub added: Vec<String>,
    /// Gone, with their keys.
    pub removed: Vec<String>,
    /// They register anew.
    pub anew: Vec<String>,
    /// They go on.
    pub kept: Vec<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("added", &self.added),
            ("removed", &self.removed),
            ("registering anew", &self.anew),
            ("going on", &self.kept),
        ];
        let parts = parts.iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<String> = parts.map(|(what, names)| format!("{what}: {}", names.join(", "))).collect();
        write!(f, "in use; vpns {}; the next registration negotiates phase 1 anew", parts.join("; "))
    }
}

/// The VPNs that have a gateway.
fn served(settings: &Settings) -> impl Iterator<Item = (&VpnSettings, &GatewaySettings)> {
    settings
        .vpns
        .iter()
        .filter_map(|vpn| Some((vpn, settings.gateways.iter().find(|gateway| gateway.name == vpn.gateway)?)))
}

/// The servers of a gateway.
pub(super) fn servers_of(gateway: &GatewaySettings) -> impl Iterator<Item = Server> {
    (0..gateway.servers.len()).filter_map(|index| Server::new(gateway, index))
}

impl GroupMember {
    /// What `new` would change. Nothing changes here.
    pub fn plan(&self, new: &Settings) -> Change {
        let mut change = Change::default();
        let gone = |name: &&String| !served(new).any(|(vpn, _)| vpn.name == **name);
        change.removed = self.vpns.keys().filter(gone).cloned().collect();
        for (vpn, gateway) in served(new) {
            let names = match self.vpns.get(&vpn.name) {
                None => &mut change.added,
                Some(known) if known.wants_other(vpn) || self.is_another(gateway) => &mut change.anew,
                Some(_) => &mut change.kept,
            };
            names.push(vpn.name.clone());
        }
        change
    }

    /// True when a gateway leads elsewhere, or to somebody else, than before.
    fn is_another(&self, gateway: &GatewaySettings) -> bool {
        let known = self.servers.iter().filter(|((name, _), _)| *name == gateway.name);
        let known: Vec<&Server> = known.map(|(_, server)| server).collect();
        let new: Vec<Server> = servers_of(gateway).collect();
        known.len() != new.len() || known.iter().zip(&new).any(|(known, new)| known.is_another(new))
    }

    /// Uses `new` from now on.
    pub(super) fn apply(&mut self, now: Now, new: &Settings) {
        let change = self.plan(new);
        self.step(now, |servers, vpns, cx| {
            for name in change.removed.iter().chain(&change.anew) {
                servers.values_mut().for_each(|server| server.forget(name));
            }
            for name in &change.removed {
                if let Some(mut vpn) = vpns.remove(name) {
                    vpn.leave(cx);
                }
            }
            let mut before = std::mem::take(servers);
            for server in new.gateways.iter().flat_map(servers_of) {
                let name = server.name().clone();
                let server = match before.remove(&name) {
                    Some(known) if known.is_at(&server) => known.reconfigured(server),
                    Some(mut known) => {
                        known.stop("its place in the configuration is another's", cx);
                        server
                    }
                    None => server,
                };
                servers.insert(name, server);
            }
            for mut gone in before.into_values() {
                gone.stop("it is gone from the configuration", cx);
            }
            for (settings, gateway) in served(new) {
                match vpns.get_mut(&settings.name) {
                    Some(known) => {
                        known.reconfigure(settings.clone(), gateway, change.anew.contains(&settings.name));
                    }
                    None => {
                        vpns.insert(settings.name.clone(), Vpn::new(settings.clone(), gateway));
                    }
                }
            }
            cx.out.event(Event::ConfigurationReloaded);
        });
        let pauses = change.kept.into_iter().filter(|name| self.vpns.get(name).is_some_and(Vpn::pauses));
        let asking: Vec<String> = pauses.chain(change.added).chain(change.anew).collect();
        for name in asking {
            self.register(now, &name);
        }
        let servers: Vec<ServerName> = self.servers.keys().cloned().collect();
        for name in servers {
            self.at_server(now, name, Server::resume);
        }
    }
}
