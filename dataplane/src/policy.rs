//! What becomes of a packet: a decision over its header, without effects.
//!
//! ```text
//! control traffic of this host -> clear
//! exclude rule                 -> clear
//! policy, valid TEK            -> out: sealed              in: dropped, it should have been ESP
//! policy without valid TEK     -> clear if fail-open, else dropped
//! no policy known at all       -> clear if fail-open, else dropped
//! no match                     -> dropped
//! ```
//!
//! A valid TEK that covers a packet beats every keyless policy that covers it too: fail-open ends the moment a key is
//! there. Rules hold for a packet and its answer; policies are read as their sender sees them (RFC 5374 section 4.1.1).

use std::net::IpAddr;
use std::sync::Arc;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::Direction;

use crate::header::{Header, protocol};
use crate::sa::{Moment, Sa};
use crate::selector::{Addresses, Selector};

/// Policies without a key that are remembered per VPN.
const KEYLESS: usize = 64;

/// Ports of key management, never protected by what it manages.
pub(crate) const CONTROL_PORTS: [u16; 3] = [500, 848, 4500];

/// An exclude or fail-open rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Where packets come from.
    pub source: Addresses,
    /// Where they go to.
    pub destination: Addresses,
    /// IP protocol, 0 any.
    pub protocol: u8,
    /// Port of either side, 0 any.
    pub port: u16,
}

impl Rule {
    fn covers_one_way(&self, packet: &Header) -> bool {
        let port = self.port == 0
            || packet.ports.is_some_and(|(source, destination)| [source, destination].contains(&self.port));
        port && (self.protocol == 0 || self.protocol == packet.protocol)
            && self.source.contain(packet.source)
            && self.destination.contain(packet.destination)
    }

    /// True for packets of the flow and, unless it is multicast, of its answer.
    pub fn covers(&self, packet: &Header) -> bool {
        self.covers_one_way(packet)
            || (!packet.destination.is_multicast() && self.covers_one_way(&packet.reversed()))
    }
}

/// The operator's rules for one VPN.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Never protected; the first that covers a packet counts.
    pub exclude: Vec<Rule>,
    /// Clear while there is no valid TEK.
    pub fail_open: Vec<Rule>,
    /// Addresses of this host, whose key management passes in clear.
    pub own: Vec<IpAddr>,
}

/// Why a packet passes in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clear {
    /// Key management of this host.
    Control,
    /// The exclude rule of that index.
    Exclude(usize),
    /// The fail-open rule of that index.
    FailOpen(usize),
}

/// Why a packet is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocked {
    /// A policy covers it and has no valid TEK.
    NoKey,
    /// A valid TEK covers it and may not send yet, or not any more.
    NotSending,
    /// No policy covers it.
    NoMatch,
    /// No policy is known.
    NoPolicy,
    /// It came in clear and should have been ESP.
    ClearText,
}

/// What to do with a packet that goes out.
#[derive(Debug, Clone)]
pub enum Outbound<'a> {
    /// Send as it is.
    Clear(Clear),
    /// Seal with this SA.
    Seal(&'a Arc<Sa>),
    /// Drop.
    Drop(Blocked),
}

/// What to do with a packet that came in without our protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound {
    /// Deliver.
    Clear(Clear),
    /// Drop.
    Drop(Blocked),
}

/// A policy and the SAs that serve it, in the order of their installation. Without SAs it is keyless.
#[derive(Debug, Clone)]
struct Entry {
    selector: Selector,
    direction: Direction,
    sas: Vec<Arc<Sa>>,
}

impl Entry {
    fn sends(&self) -> bool {
        self.direction != Direction::ReceiverOnly
    }

    fn receives(&self) -> bool {
        self.direction != Direction::SenderOnly
    }

    /// Of several SAs the one activated last.
    fn sending(&self, now: Moment) -> Option<&Arc<Sa>> {
        self.sas.iter().filter(|sa| sa.sends(now)).max_by_key(|sa| sa.activated())
    }

    fn has_key(&self, now: Moment) -> bool {
        self.sas.iter().any(|sa| sa.is_valid(now))
    }
}

/// What the policies say before fail-open is asked.
enum Policies<'a> {
    Send(&'a Arc<Sa>),
    /// A valid TEK covers the packet.
    Covered,
    Keyless,
    NoMatch,
    Unknown,
}

/// Policies and rules of one VPN (RFC 5374 section 4.1). Cheap to clone: SAs are shared.
#[derive(Debug, Clone, Default)]
pub struct Gspd {
    rules: Arc<Rules>,
    entries: Vec<Entry>,
}

impl Gspd {
    /// Rules and no policy yet.
    pub fn new(rules: Rules) -> Gspd {
        Gspd { rules: Arc::new(rules), entries: Vec::new() }
    }

    /// Takes other rules.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = Arc::new(rules);
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The SAs, in the order of their policies.
    pub fn sas(&self) -> impl Iterator<Item = &Arc<Sa>> {
        self.entries.iter().flat_map(|entry| &entry.sas)
    }

    /// The SA with an SPI.
    pub fn find(&self, spi: Spi) -> Option<&Arc<Sa>> {
        self.sas().find(|sa| sa.spi == spi)
    }

    /// True when a policy is known, with or without keys.
    pub fn knows_policy(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Adds an SA; one with the same SPI is replaced. A new policy comes behind those that are there.
    pub fn install(&mut self, sa: Arc<Sa>) {
        for entry in &mut self.entries {
            entry.sas.retain(|other| other.spi != sa.spi);
        }
        let same = |entry: &&mut Entry| entry.selector == sa.selector && entry.direction == sa.direction;
        match self.entries.iter_mut().find(same) {
            Some(entry) => entry.sas.push(sa),
            None => {
                // What was known before belongs to keys that are gone: the new policy replaces it whole.
                if self.entries.iter().all(|entry| entry.sas.is_empty()) {
                    self.entries.clear();
                }
                let (selector, direction) = (sa.selector, sa.direction);
                self.entries.push(Entry { selector, direction, sas: vec![sa] });
            }
        }
        let mut excess =
            self.entries.iter().filter(|entry| entry.sas.is_empty()).count().saturating_sub(KEYLESS);
        self.entries.retain(|entry| {
            let drop = excess > 0 && entry.sas.is_empty();
            excess -= usize::from(drop);
            !drop
        });
    }

    /// Removes an SA. Its policy stays known when its life ended (nobody said that it no longer holds), and goes with
    /// it when it was replaced or deleted.
    pub fn remove(&mut self, spi: Spi, now: Moment) {
        self.entries.retain_mut(|entry| {
            let Some(at) = entry.sas.iter().position(|sa| sa.spi == spi) else { return true };
            let expired = !entry.sas.remove(at).is_valid(now);
            expired || !entry.sas.is_empty()
        });
    }

    /// The group policy rows of the table above, for one direction.
    fn policies(&self, covers: impl Fn(&Entry) -> bool, sending: bool, now: Moment) -> Policies<'_> {
        let mut found = if self.entries.is_empty() { Policies::Unknown } else { Policies::NoMatch };
        for entry in self.entries.iter().filter(|entry| covers(entry)) {
            if sending && let Some(sa) = entry.sending(now) {
                return Policies::Send(sa);
            }
            if entry.has_key(now) {
                found = Policies::Covered;
            } else if !matches!(found, Policies::Covered) {
                found = Policies::Keyless;
            }
        }
        found
    }

    fn before_policies(&self, packet: &Header) -> Option<Clear> {
        let own = |address| self.rules.own.contains(address);
        if packet.protocol == protocol::UDP
            && (own(&packet.source) || own(&packet.destination))
            && packet
                .ports
                .is_some_and(|(from, to)| CONTROL_PORTS.contains(&from) || CONTROL_PORTS.contains(&to))
        {
            return Some(Clear::Control);
        }
        self.rules.exclude.iter().position(|rule| rule.covers(packet)).map(Clear::Exclude)
    }

    fn fail_open(&self, packet: &Header) -> Option<Clear> {
        self.rules.fail_open.iter().position(|rule| rule.covers(packet)).map(Clear::FailOpen)
    }

    /// Decides about a packet that goes out.
    pub fn outbound(&self, packet: &Header, now: Moment) -> Outbound<'_> {
        if let Some(clear) = self.before_policies(packet) {
            return Outbound::Clear(clear);
        }
        let blocked = match self.policies(|entry| entry.sends() && entry.selector.matches(packet), true, now)
        {
            Policies::Send(sa) => return Outbound::Seal(sa),
            Policies::Covered => return Outbound::Drop(Blocked::NotSending),
            Policies::NoMatch => return Outbound::Drop(Blocked::NoMatch),
            Policies::Keyless => Blocked::NoKey,
            Policies::Unknown => Blocked::NoPolicy,
        };
        self.fail_open(packet).map_or(Outbound::Drop(blocked), Outbound::Clear)
    }

    /// Decides about a packet that came in without our protection.
    pub fn inbound(&self, packet: &Header, now: Moment) -> Inbound {
        if let Some(clear) = self.before_policies(packet) {
            return Inbound::Clear(clear);
        }
        let covers = |entry: &Entry| entry.receives() && entry.selector.matches_either_way(packet);
        let blocked = match self.policies(covers, false, now) {
            Policies::Send(_) | Policies::Covered => return Inbound::Drop(Blocked::ClearText),
            Policies::NoMatch => return Inbound::Drop(Blocked::NoMatch),
            Policies::Keyless => Blocked::NoKey,
            Policies::Unknown => Blocked::NoPolicy,
        };
        self.fail_open(packet).map_or(Inbound::Drop(blocked), Inbound::Clear)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::sa::SEED;
    use crate::sa::tests::gcm;
    use crate::selector::tests::{packet, prefix, selector};

    const LIFE: u64 = 3600;

    fn rule(source: &str, destination: &str, protocol: u8, port: u16) -> Rule {
        Rule {
            name: "r".to_owned(),
            source: prefix(source),
            destination: prefix(destination),
            protocol,
            port,
        }
    }

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    /// Installs and activates a TEK for one flow at `second`.
    fn key(gspd: &mut Gspd, spi: u32, flow: Selector, second: u64) -> Arc<Sa> {
        let mut sa = Sa::new(&gcm(spi), at(second), &[3; SEED]).unwrap();
        sa.selector = flow;
        sa.activate(u64::from(spi)).unwrap();
        let sa = Arc::new(sa);
        gspd.install(Arc::clone(&sa));
        sa
    }

    fn out(gspd: &Gspd, packet: &Header, second: u64) -> String {
        match gspd.outbound(packet, at(second)) {
            Outbound::Seal(sa) => format!("seal {}", sa.spi.0),
            Outbound::Clear(why) => format!("clear {why:?}"),
            Outbound::Drop(why) => format!("drop {why:?}"),
        }
    }

    fn inn(gspd: &Gspd, packet: &Header, second: u64) -> String {
        match gspd.inbound(packet, at(second)) {
            Inbound::Clear(why) => format!("clear {why:?}"),
            Inbound::Drop(why) => format!("drop {why:?}"),
        }
    }

    /// {no key, valid key, expired key, two SAs one expired} x {exclude, policy, fail-open, none} x {in, out} x {v4, v6}.
    /// `exclude` and `fail-open` packets are covered by the policy too; `none` is covered by nothing.
    #[test]
    fn the_matrix_of_keys_rules_directions_and_families() {
        let expected = [
            ("no key", "exclude", "clear Exclude(0)", "clear Exclude(0)"),
            ("no key", "policy", "drop NoPolicy", "drop NoPolicy"),
            ("no key", "fail-open", "clear FailOpen(0)", "clear FailOpen(0)"),
            ("no key", "none", "drop NoPolicy", "drop NoPolicy"),
            ("valid key", "exclude", "clear Exclude(0)", "clear Exclude(0)"),
            ("valid key", "policy", "seal 301", "drop ClearText"),
            ("valid key", "fail-open", "seal 301", "drop ClearText"),
            ("valid key", "none", "drop NoMatch", "drop NoMatch"),
            ("expired key", "exclude", "clear Exclude(0)", "clear Exclude(0)"),
            ("expired key", "policy", "drop NoKey", "drop NoKey"),
            ("expired key", "fail-open", "clear FailOpen(0)", "clear FailOpen(0)"),
            ("expired key", "none", "drop NoMatch", "drop NoMatch"),
            ("two SAs one expired", "exclude", "clear Exclude(0)", "clear Exclude(0)"),
            ("two SAs one expired", "policy", "seal 302", "drop ClearText"),
            ("two SAs one expired", "fail-open", "seal 302", "drop ClearText"),
            ("two SAs one expired", "none", "drop NoMatch", "drop NoMatch"),
        ];
        let families = [
            ("10.0.0.0/8", "10.1.0.1", "10.2.0.1", "192.0.2.1", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db8:2::1", "2001:db9::1", "::/0"),
        ];
        for (net, here, there, elsewhere, everywhere) in families {
            for (keys, kind, outward, inward) in expected {
                let rules = Rules {
                    exclude: vec![rule(everywhere, everywhere, 6, 179)],
                    fail_open: vec![rule(everywhere, everywhere, 17, 123)],
                    own: Vec::new(),
                };
                let mut gspd = Gspd::new(rules);
                let flow = selector(net, net);
                match keys {
                    "valid key" => drop(key(&mut gspd, 301, flow, 5000)),
                    "expired key" => {
                        key(&mut gspd, 301, flow, 0);
                        // Whether the engine has removed it or not makes no difference.
                        if kind != "policy" {
                            gspd.remove(Spi(301), at(LIFE));
                        }
                    }
                    "two SAs one expired" => {
                        key(&mut gspd, 301, flow, 0);
                        key(&mut gspd, 302, flow, 5000);
                    }
                    _ => {}
                }
                let (protocol, ports, far) = match kind {
                    "exclude" => (6, Some((5000, 179)), there),
                    "policy" => (6, Some((5000, 80)), there),
                    "fail-open" => (17, Some((5000, 123)), there),
                    _ => (6, Some((5000, 80)), elsewhere),
                };
                let going = packet(here, far, protocol, ports);
                assert_eq!(out(&gspd, &going, 6000), outward, "{keys}, {kind}, out, {net}");
                let coming = going.reversed();
                assert_eq!(inn(&gspd, &coming, 6000), inward, "{keys}, {kind}, in, {net}");
            }
        }
    }

    #[test]
    fn a_keyed_flow_is_sealed_and_an_expired_one_beside_it_fails_open_or_closed() {
        let rules = Rules { fail_open: vec![rule("0.0.0.0/0", "0.0.0.0/0", 17, 123)], ..Rules::default() };
        let mut gspd = Gspd::new(rules);
        key(&mut gspd, 301, selector("10.1.0.0/16", "10.2.0.0/16"), 0);
        key(&mut gspd, 302, selector("10.1.0.0/16", "10.3.0.0/16"), 5000);
        let to =
            |net: u8, protocol, port| packet("10.1.0.1", &format!("10.{net}.0.1"), protocol, Some((9, port)));
        assert_eq!(out(&gspd, &to(2, 17, 123), 6000), "clear FailOpen(0)");
        assert_eq!(out(&gspd, &to(2, 17, 53), 6000), "drop NoKey");
        assert_eq!(out(&gspd, &to(3, 17, 123), 6000), "seal 302");
        assert_eq!(out(&gspd, &to(4, 17, 123), 6000), "drop NoMatch");
    }

    #[test]
    fn other_rules_hold_from_the_next_packet_on_and_leave_the_keys_alone() {
        let exclude =
            |port| Rules { exclude: vec![rule("0.0.0.0/0", "0.0.0.0/0", 17, port)], ..Rules::default() };
        let mut gspd = Gspd::new(exclude(53));
        key(&mut gspd, 301, selector("10.1.0.0/16", "10.2.0.0/16"), 0);
        let to = |port| packet("10.1.0.1", "10.2.0.1", 17, Some((9, port)));
        assert_eq!(
            (out(&gspd, &to(53), 10), out(&gspd, &to(123), 10)),
            ("clear Exclude(0)".into(), "seal 301".into())
        );
        gspd.set_rules(exclude(123));
        assert_eq!(
            (out(&gspd, &to(53), 10), out(&gspd, &to(123), 10)),
            ("seal 301".into(), "clear Exclude(0)".into())
        );
    }

    #[test]
    fn fail_open_ends_when_a_key_is_installed_though_it_may_not_send_yet() {
        let rules = Rules { fail_open: vec![rule("0.0.0.0/0", "0.0.0.0/0", 0, 0)], ..Rules::default() };
        let mut gspd = Gspd::new(rules);
        let ntp = packet("10.1.0.1", "10.2.0.1", 17, Some((9, 123)));
        assert_eq!(out(&gspd, &ntp, 0), "clear FailOpen(0)");
        let sa = Arc::new(Sa::new(&gcm(301), at(0), &[3; SEED]).unwrap());
        gspd.install(Arc::clone(&sa));
        assert_eq!(out(&gspd, &ntp, 0), "drop NotSending");
        assert_eq!(inn(&gspd, &ntp, 0), "drop ClearText");
        sa.activate(1).unwrap();
        assert_eq!(out(&gspd, &ntp, 0), "seal 301");
    }

    #[test]
    fn the_key_activated_last_seals_until_it_is_removed() {
        let mut gspd = Gspd::new(Rules::default());
        let flow = selector("10.0.0.0/8", "10.0.0.0/8");
        let first = key(&mut gspd, 301, flow, 0);
        key(&mut gspd, 302, flow, 0);
        let ping = packet("10.1.0.1", "10.2.0.1", 1, None);
        assert_eq!(out(&gspd, &ping, 1), "seal 302");
        gspd.remove(Spi(302), at(1));
        assert_eq!(out(&gspd, &ping, 1), "seal 301");
        first.activate(400).unwrap();
        key(&mut gspd, 303, flow, 1);
        assert_eq!(out(&gspd, &ping, 1), "seal 301");
    }

    #[test]
    fn a_deleted_policy_is_forgotten_and_an_expired_one_is_not() {
        let mut gspd = Gspd::new(Rules::default());
        key(&mut gspd, 301, selector("10.0.0.0/8", "10.0.0.0/8"), 0);
        key(&mut gspd, 302, selector("10.0.0.0/8", "11.0.0.0/8"), 0);
        gspd.remove(Spi(301), at(1));
        assert_eq!(out(&gspd, &packet("10.1.0.1", "10.2.0.1", 1, None), 2), "drop NoMatch");
        gspd.remove(Spi(302), at(LIFE));
        assert!(gspd.knows_policy() && gspd.sas().next().is_none());
        assert_eq!(out(&gspd, &packet("10.1.0.1", "11.2.0.1", 1, None), LIFE), "drop NoKey");
        gspd.remove(Spi(302), at(LIFE + 1));
        assert!(gspd.knows_policy());
        key(&mut gspd, 303, selector("12.0.0.0/8", "12.0.0.0/8"), LIFE);
        assert_eq!(out(&gspd, &packet("10.1.0.1", "11.2.0.1", 1, None), LIFE), "drop NoMatch");
    }

    #[test]
    fn policies_of_one_direction_say_nothing_about_the_other() {
        let mut gspd = Gspd::new(Rules::default());
        let mut tek = gcm(301);
        tek.policy.direction = Direction::ReceiverOnly;
        let mut sa = Sa::new(&tek, at(0), &[3; SEED]).unwrap();
        sa.selector = selector("10.1.0.0/16", "239.1.0.0/16");
        gspd.install(Arc::new(sa));
        let feed = packet("10.1.0.1", "239.1.0.1", 17, Some((1, 2)));
        assert_eq!(
            (out(&gspd, &feed, 1), inn(&gspd, &feed, 1)),
            ("drop NoMatch".into(), "drop ClearText".into())
        );
    }

    #[test]
    fn key_management_of_this_host_passes_and_that_of_others_is_protected() {
        let own = vec!["10.1.0.254".parse().unwrap()];
        let mut gspd = Gspd::new(Rules { own, ..Rules::default() });
        key(&mut gspd, 301, selector("10.0.0.0/8", "10.0.0.0/8"), 0);
        let gdoi = |source| packet(source, "10.9.0.1", 17, Some((848, 848)));
        assert_eq!(out(&gspd, &gdoi("10.1.0.254"), 1), "clear Control");
        assert_eq!(inn(&gspd, &gdoi("10.1.0.254").reversed(), 1), "clear Control");
        assert_eq!(out(&gspd, &gdoi("10.1.0.1"), 1), "seal 301");
    }

    #[test]
    fn a_rule_with_a_port_covers_both_ways_and_no_later_fragment() {
        let bgp = rule("0.0.0.0/0", "10.0.0.5/32", 6, 179);
        let there = packet("10.1.0.1", "10.0.0.5", 6, Some((4000, 179)));
        assert!(bgp.covers(&there) && bgp.covers(&there.reversed()));
        assert!(!bgp.covers(&Header { ports: None, ..there }));
        assert!(!bgp.covers(&packet("10.0.0.5", "239.0.0.1", 6, Some((4000, 179)))));
    }
}
