//! Why a peer is, or is not, a member: the way of a registration walked without one, up to the first "no".

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ctl::control::Explanation;
use ctl::time::{rfc3339, span};
use gdoi_proto::policy::TekPolicy;
use ike::io::{Instant, Now};

use super::KeyServer;
use super::group::Group;
use super::member::MemberKey;
use super::revoke::identity;
use super::settings::GatewaySettings;

/// Who is meant, as far as it is known.
#[derive(Default)]
struct Who {
    identity: Option<MemberKey>,
    address: Option<IpAddr>,
    gateway: Option<Arc<GatewaySettings>>,
    /// Cipher, hash, group of its phase 1, where it is, and when it ends.
    sa: Option<(String, SocketAddr, Instant)>,
    is_member: bool,
}

fn step(step: &str, yes: bool, text: impl Into<String>, line: Option<usize>) -> Explanation {
    let line = line.map(|line| line as u64);
    Explanation { group: None, step: step.to_owned(), yes, text: text.into(), line }
}

impl KeyServer {
    /// Walks phase 1, identity, authorisation, policy, sender IDs and keys for a member by identity, address, or address
    /// and port; in each group its gateway is in, or in one by name or number. The last step is the first that says no.
    ///
    /// # Errors
    /// For the operator: several members are meant, or there is no such group.
    pub fn explain(&self, now: Now, member: &str, group: Option<&str>) -> Result<Vec<Explanation>, String> {
        let groups: Vec<&Group> = match group {
            None => self.groups.values().collect(),
            Some(name) => {
                let found = self.groups.values().find(|group| group.settings.id.to_string() == name);
                let found = found.or_else(|| self.groups.get(name));
                vec![found.ok_or_else(|| format!("no group {name}"))?]
            }
        };
        let who = self.who(member)?;
        let mut steps = Vec::new();
        let Some(gateway) = who.gateway.clone() else {
            let text = match who.address {
                Some(address) => {
                    format!("no ike.gateway covers {address} and none is dynamic: it gets no answer")
                }
                None => format!("no ike.gateway has a remote-identity that admits {member}"),
            };
            steps.push(step("gateway", false, text, None));
            return Ok(steps);
        };
        let named = format!("ike.gateway.{}", gateway.name);
        steps.push(step("gateway", true, named.clone(), Some(gateway.line)));
        steps.push(self.explain_phase1(now.at, &who, &gateway));
        if steps.last().is_some_and(|last| !last.yes) {
            return Ok(steps);
        }
        let Some(key) = &who.identity else { return Ok(steps) };
        let admitted = who.address.is_none_or(|address| gateway.admits(key, address));
        let text = match admitted {
            true => format!("{key} is what the remote-identity of {named} admits"),
            false => format!("the remote-identity of {named} does not admit {key}"),
        };
        steps.push(step("identity", admitted, text, Some(gateway.line)));
        if !admitted {
            return Ok(steps);
        }
        let listing: Vec<&Group> = match group {
            Some(_) => groups,
            None => groups.into_iter().filter(|it| it.settings.gateways.contains(&gateway.name)).collect(),
        };
        if listing.is_empty() {
            let text = format!("no group has {named} among its ike-gateways");
            steps.push(step("authorisation", false, text, Some(gateway.line)));
        }
        for group in listing {
            let name = group.settings.name.clone();
            let of_group = group.explain(now, key, &gateway, self.store_failing);
            steps.extend(of_group.into_iter().map(|step| Explanation { group: Some(name.clone()), ..step }));
        }
        Ok(steps)
    }

    fn who(&self, text: &str) -> Result<Who, String> {
        let mut who = Who::default();
        for group in self.groups.values() {
            if let Some(key) = group.find_member(text)? {
                let member = group.members.get(&key);
                who.address = member.map(|member| member.peer.ip());
                who.gateway = member.and_then(|member| self.peers.gateway_named(&member.gateway));
                who.identity = Some(key);
                who.is_member = true;
                break;
            }
        }
        if who.identity.is_none() {
            who.address = text.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()));
            if who.address.is_none() {
                who.identity = Some(identity(text));
            }
        }
        let sa = self.peers.established().find(|(sa, _, peer, _)| match &who.identity {
            Some(key) => super::member::member_key(sa.peer_identity.clone()) == *key,
            None => who.address == Some(peer.ip()),
        });
        if let Some((sa, _, peer, _)) = sa {
            who.identity = Some(super::member::member_key(sa.peer_identity.clone()));
            who.address = Some(peer.ip());
            who.sa = Some((sa.suite.to_string(), peer, sa.expires));
            who.gateway = who.gateway.or_else(|| self.peers.gateway_of(sa, peer.ip()));
        }
        // Found by its address, or by what its statement admits.
        who.gateway = who.gateway.or_else(|| match (who.address, &who.identity) {
            (Some(address), _) => self.peers.gateway_for(address),
            (None, Some(key)) => self.peers.gateway_admitting(key),
            (None, None) => None,
        });
        Ok(who)
    }

    fn explain_phase1(&self, now: Instant, who: &Who, gateway: &GatewaySettings) -> Explanation {
        let line = Some(gateway.line);
        if let Some((suite, peer, expires)) = &who.sa {
            let left = span(expires.since(now).as_secs());
            return step("phase 1", true, format!("established with {peer}: {suite}, ends in {left}"), line);
        }
        if who.is_member {
            return step(
                "phase 1",
                true,
                "it proved its identity; the SA ended after the registration",
                line,
            );
        }
        let text = match self.peers.last_failure(&gateway.name) {
            Some((at, peer, reason)) => {
                let ago = span(now.since(at).as_secs());
                format!(
                    "none; the last failure with ike.gateway.{}, {peer} {ago} ago: {reason}",
                    gateway.name
                )
            }
            None => format!(
                "none, and no failure with ike.gateway.{}: nothing came, or it stopped half way",
                gateway.name
            ),
        };
        step("phase 1", false, text, line)
    }
}

impl Group {
    fn explain(
        &self,
        now: Now,
        key: &MemberKey,
        gateway: &GatewaySettings,
        store_failing: bool,
    ) -> Vec<Explanation> {
        let settings = &self.settings;
        let (line, name) = (Some(settings.line), &settings.name);
        let mut steps = Vec::new();
        // Each one says no or lets the next one speak.
        let checks: [&dyn Fn() -> Explanation; 5] = [
            &|| {
                if !settings.gateways.contains(&gateway.name) {
                    let text =
                        format!("ike.gateway.{} is not among the ike-gateways of group.{name}", gateway.name);
                    return step("authorisation", false, text, line);
                }
                match self.revoked.get(key) {
                    Some(since) => {
                        let text = format!(
                            "revoked by an operator at {}; gdoictl server unrevoke --group {name} --member {key} lets it in again",
                            rfc3339(*since)
                        );
                        step("authorisation", false, text, None)
                    }
                    None => {
                        let named = format!("ike.gateway.{}", gateway.name);
                        let text = format!("{named} is among the ike-gateways of group.{name}");
                        let (over, own) = (gateway.is_over(now.unix_seconds), Some(gateway.line));
                        match gateway.valid_until.map(rfc3339) {
                            Some(end) if over => {
                                let text = format!("its membership ended at {end}: valid-until of {named}");
                                step("authorisation", false, text, own)
                            }
                            Some(end) => {
                                step("authorisation", true, format!("{text}, valid until {end}"), line)
                            }
                            None => step("authorisation", true, text, line),
                        }
                    }
                }
            },
            &|| {
                let full = self.over_threshold(key);
                let most = settings.member_threshold.map_or("no member-threshold".to_owned(), |most| {
                    format!("member-threshold {most}{}", if full { ": full, it gets no answer" } else { "" })
                });
                step("threshold", !full, format!("{} members, {most}", self.members.len()), line)
            },
            &|| {
                let pushes = match &settings.communication {
                    Some(it) if it.lkh => "a rekey SA with a key tree",
                    Some(_) => "a rekey SA",
                    None => "no rekey SA: members register again",
                };
                let sas: Vec<&str> = settings.sas.iter().map(|sa| sa.name.as_str()).collect();
                step("policy", true, format!("{pushes}; SAs {}", sas.join(", ")), line)
            },
            &|| {
                if !self
                    .teks
                    .iter()
                    .map(|tek| tek.policy(now.at))
                    .any(|policy| TekPolicy::needs_sender_id(&policy))
                {
                    return step("sender ID", true, "none needed", line);
                }
                let (left, bits) = (self.sids.left(), self.sids.bits());
                let text = match left {
                    0 => format!("none of {bits} bits left: it waits until new keys are out"),
                    _ => format!("{left} of {} left", 1u32 << bits),
                };
                step("sender ID", left > 0, text, line)
            },
            &|| self.explain_keys(now, key, store_failing),
        ];
        for check in checks {
            let said = check();
            let yes = said.yes;
            steps.push(said);
            if !yes {
                break;
            }
        }
        steps
    }

    fn explain_keys(&self, now: Now, key: &MemberKey, store_failing: bool) -> Explanation {
        let line = Some(self.settings.line);
        if store_failing {
            return step(
                "keys",
                false,
                "the state cannot be written: nobody is registered until it can",
                None,
            );
        }
        if self.settings.communication.is_some() && (self.kek.is_none() || !self.is_ready()) {
            return step(
                "keys",
                false,
                "the signing key is still being made or read: it is answered later",
                line,
            );
        }
        if self.teks.is_empty() {
            return step("keys", false, "no TEK yet: it is answered later", line);
        }
        let newcomer = self.members.get(key).is_none();
        if newcomer && self.settings.rekey_on_join && self.fresh_teks(now.at).is_none() {
            return step("keys", false, "rekey-on-join: it waits until the others changed their keys", line);
        }
        let kek = self.kek.as_ref().map(|kek| format!("KEK {} SEQ {}, ", kek.spi, kek.seq));
        let teks: Vec<String> = self.teks.iter().map(|tek| tek.spi.to_string()).collect();
        let keys = format!("{}TEKs [{}]", kek.unwrap_or_default(), teks.join(" "));
        let text = match self.members.get(key) {
            None => format!("not a member; its registration gets {keys}"),
            Some(member) => {
                let ago = span(now.at.since(member.registered).as_secs());
                let acked = member.last_ack.map_or("none yet".to_owned(), |seq| format!("SEQ {seq}"));
                let sids: Vec<String> = member.sender_ids.iter().map(|sid| sid.0.to_string()).collect();
                format!(
                    "member at {} since {ago}, SIDs [{}], last acknowledged {acked}, {} rekeys missed in a row; {keys}",
                    member.peer,
                    sids.join(" "),
                    member.missed
                )
            }
        };
        step("keys", true, text, line)
    }
}
