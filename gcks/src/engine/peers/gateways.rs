//! Which gateway statement a peer belongs to: by its address before it proved anything, by its identity afterwards.
//!
//! A site may have a statement per member, and whoever reaches the port asks for the one of an address: nothing here that
//! a first message leads to looks at all of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use gdoi_proto::payload::Identification;
use ike::phase1::Mode;
use ike::sa::IkeSa;

use super::super::settings::GatewaySettings;
use super::Peers;

/// The statements, by name and by address.
pub struct Gateways {
    all: Vec<Arc<GatewaySettings>>,
    by_name: BTreeMap<String, Arc<GatewaySettings>>,
    by_prefix: Prefixes<Arc<GatewaySettings>>,
    /// Those without an address.
    dynamic: Vec<Arc<GatewaySettings>>,
    /// Those of main mode among these as one: which of them a peer is shows when it has proved its identity.
    joint: Option<Arc<GatewaySettings>>,
}

/// Things by prefix. An IPv4 and an IPv6 prefix share nothing.
struct Prefixes<T> {
    /// By family, by length, then by network.
    tables: BTreeMap<(bool, u8), BTreeMap<IpAddr, T>>,
}

/// The first `length` bits of an address.
fn network(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32u32.saturating_sub(length.into())).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128u32.saturating_sub(length.into())).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

impl<T> Prefixes<T> {
    /// Of two with one prefix the later counts.
    fn new(things: impl IntoIterator<Item = ((IpAddr, u8), T)>) -> Prefixes<T> {
        let mut tables = BTreeMap::<_, BTreeMap<_, _>>::new();
        for ((net, length), thing) in things {
            tables.entry((net.is_ipv6(), length)).or_default().insert(network(net, length), thing);
        }
        Prefixes { tables }
    }

    /// The one with the longest prefix around an address.
    fn around(&self, address: IpAddr) -> Option<&T> {
        let family = address.is_ipv6();
        let mut longest_first = self.tables.range((family, 0)..=(family, u8::MAX)).rev();
        longest_first.find_map(|((_, length), nets)| nets.get(&network(address, *length)))
    }
}

impl Gateways {
    /// As configured.
    pub fn new(settings: &[GatewaySettings]) -> Gateways {
        let all: Vec<Arc<GatewaySettings>> = settings.iter().cloned().map(Arc::new).collect();
        let named = |gateway: &Arc<GatewaySettings>| (gateway.name.clone(), gateway.clone());
        let placed = |gateway: &Arc<GatewaySettings>| Some((gateway.address?, gateway.clone()));
        Gateways {
            by_name: all.iter().map(named).collect(),
            by_prefix: Prefixes::new(all.iter().filter_map(placed)),
            dynamic: all.iter().filter(|gateway| gateway.address.is_none()).cloned().collect(),
            joint: joint(settings).map(Arc::new),
            all,
        }
    }

    /// All, in the order of the configuration.
    pub fn all(&self) -> impl Iterator<Item = &Arc<GatewaySettings>> {
        self.all.iter()
    }

    /// The one of that name.
    pub fn named(&self, name: &str) -> Option<&Arc<GatewaySettings>> {
        self.by_name.get(name)
    }
}

impl Peers {
    /// The gateway statement of that name.
    pub(in super::super) fn gateway_named(&self, name: &str) -> Option<Arc<GatewaySettings>> {
        self.gateways.named(name).cloned()
    }

    /// The first gateway statement that admits an identity, wherever it is.
    pub(in super::super) fn gateway_admitting(
        &self,
        identity: &Identification,
    ) -> Option<Arc<GatewaySettings>> {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.gateways.all.iter().find(|gateway| gateway.admits(identity, nowhere)).cloned()
    }

    /// The gateway statement of an established SA.
    pub(in super::super) fn gateway_of(&self, sa: &IkeSa, peer: IpAddr) -> Option<Arc<GatewaySettings>> {
        self.gateway_for(peer).map(|known| self.gateway_proved(&known, sa, peer))
    }

    /// The gateway statement a first message from an address is answered by.
    pub(in super::super) fn gateway_for(&self, address: IpAddr) -> Option<Arc<GatewaySettings>> {
        self.gateways.by_prefix.around(address).or(self.gateways.joint.as_ref()).cloned()
    }

    /// The gateway of aggressive mode for a peer that claims `identity`: the one of its address, else a dynamic one.
    pub(super) fn gateway_claimed(
        &self,
        identity: &Identification,
        address: IpAddr,
    ) -> Option<Arc<GatewaySettings>> {
        let fits = |gateway: &&Arc<GatewaySettings>| {
            gateway.policy.mode == Mode::Aggressive && gateway.admits(identity, address)
        };
        let here = self.gateways.by_prefix.around(address).filter(fits);
        here.or_else(|| self.gateways.dynamic.iter().find(fits)).cloned()
    }

    /// The statement an authenticated peer belongs to: of the dynamic ones, the one that names it.
    pub(super) fn gateway_proved(
        &self,
        known: &Arc<GatewaySettings>,
        sa: &IkeSa,
        peer: IpAddr,
    ) -> Arc<GatewaySettings> {
        if !self.gateways.joint.as_ref().is_some_and(|joint| Arc::ptr_eq(joint, known)) {
            return known.clone();
        }
        let mut dynamic = self.gateways.dynamic.iter();
        let named = dynamic
            .find(|gateway| gateway.policy.mode == Mode::Main && gateway.admits(&sa.peer_identity, peer));
        named.unwrap_or(known).clone()
    }
}

/// All `dynamic` gateways of main mode as one that admits whom any of them admits. Their configuration makes sure that
/// they share everything else.
fn joint(gateways: &[GatewaySettings]) -> Option<GatewaySettings> {
    let mut dynamic =
        gateways.iter().filter(|gateway| gateway.address.is_none() && gateway.policy.mode == Mode::Main);
    let mut joint = dynamic.next()?.clone();
    let mut policy = joint.policy.as_ref().clone();
    for other in dynamic {
        policy.remote.extend(other.policy.remote.iter().cloned());
    }
    joint.policy = Arc::new(policy);
    Some(joint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_around_an_address_is_found() {
        let prefix = |text: &str| {
            let (net, length) = text.split_once('/').unwrap();
            (net.parse::<IpAddr>().unwrap(), length.parse::<u8>().unwrap())
        };
        let texts = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3/32",
            "::/0",
            "2001:db8::/32",
            "::ffff:0:0/96",
        ];
        let prefixes = Prefixes::new(texts.iter().map(|text| (prefix(text), *text)));
        let around = |address: &str| prefixes.around(address.parse().unwrap()).copied();
        assert_eq!(around("10.1.2.3"), Some("10.1.2.3/32"));
        assert_eq!(around("10.1.2.4"), Some("10.1.0.0/16"));
        assert_eq!(around("10.2.2.4"), Some("10.0.0.0/8"));
        assert_eq!(around("192.0.2.1"), Some("0.0.0.0/0"));
        assert_eq!(around("2001:db8::1"), Some("2001:db8::/32"));
        assert_eq!(around("2001:db9::1"), Some("::/0"));
        assert_eq!(around("::ffff:10.1.2.3"), Some("::ffff:0:0/96"), "another family");
        assert_eq!(Prefixes::<u8>::new([]).around("10.1.2.3".parse().unwrap()), None);
    }
}
