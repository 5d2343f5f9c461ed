//! Selectors and rules as the kernel takes them: prefixes, ports, protocol, one family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::policy::Rule;
use crate::selector::{Addresses, Selector};

/// Addresses that share their first bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The first of them.
    pub address: IpAddr,
    /// How many bits they share.
    pub length: u8,
}

impl Prefix {
    /// Exactly one address.
    pub fn host(address: IpAddr) -> Prefix {
        Prefix { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    fn contains(&self, other: &Prefix) -> bool {
        self.address.is_ipv4() == other.address.is_ipv4()
            && self.length <= other.length
            && Addresses::prefix(self.address, self.length).contain(other.address)
    }

    /// What both contain: of two prefixes one is within the other, or there is nothing.
    fn common(&self, other: &Prefix) -> Option<Prefix> {
        match (self.contains(other), other.contains(self)) {
            (true, _) => Some(*other),
            (_, true) => Some(*self),
            _ => None,
        }
    }
}

/// Every address of both families.
const EVERY: [Prefix; 2] = [
    Prefix { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 },
    Prefix { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 },
];

fn prefixes(addresses: &Addresses) -> Option<Vec<Prefix>> {
    let one =
        |address: IpAddr, length: u32| Some(vec![Prefix { address, length: u8::try_from(length).ok()? }]);
    match *addresses {
        Addresses::Any => Some(EVERY.to_vec()),
        Addresses::V4Mask(base, mask) if mask.leading_ones() == mask.count_ones() => {
            one(Ipv4Addr::from_bits(base).into(), mask.count_ones())
        }
        Addresses::V6Mask(base, mask) if mask.leading_ones() == mask.count_ones() => {
            one(Ipv6Addr::from_bits(base).into(), mask.count_ones())
        }
        Addresses::V4Range(low, high) if low == high => one(Ipv4Addr::from_bits(low).into(), 32),
        Addresses::V6Range(low, high) if low == high => one(Ipv6Addr::from_bits(low).into(), 128),
        Addresses::V4Mask(..) | Addresses::V6Mask(..) | Addresses::V4Range(..) | Addresses::V6Range(..) => {
            None
        }
    }
}

/// The packets a policy of the kernel is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Where they come from.
    pub source: Prefix,
    /// Where they go to, of the same family.
    pub destination: Prefix,
    /// 0 any.
    pub source_port: u16,
    /// 0 any.
    pub destination_port: u16,
    /// IP protocol, 0 any.
    pub protocol: u8,
}

impl Flow {
    /// Everything, family by family.
    pub fn all() -> impl Iterator<Item = Flow> {
        EVERY.into_iter().map(|every| Flow {
            source: every,
            destination: every,
            source_port: 0,
            destination_port: 0,
            protocol: 0,
        })
    }

    /// The flows of a selector; none when its addresses are no prefixes.
    pub fn of(selector: &Selector) -> Option<Vec<Flow>> {
        let (sources, destinations) = (prefixes(&selector.source)?, prefixes(&selector.destination)?);
        Some(cross(
            &sources,
            &destinations,
            selector.protocol,
            &[(selector.source_port, selector.destination_port)],
        ))
    }

    /// The flows of a rule and, unless it is multicast, of its answers.
    pub fn of_rule(rule: &Rule) -> Vec<Flow> {
        let ports: &[(u16, u16)] = if rule.port == 0 { &[(0, 0)] } else { &[(rule.port, 0), (0, rule.port)] };
        // Rules are made of prefixes.
        let (Some(sources), Some(destinations)) = (prefixes(&rule.source), prefixes(&rule.destination))
        else {
            return Vec::new();
        };
        let there = cross(&sources, &destinations, rule.protocol, ports);
        let back = there.iter().filter_map(Flow::answer).collect::<Vec<_>>();
        there.into_iter().chain(back).collect()
    }

    /// The flow of the answers; a multicast flow has none (RFC 5374 section 4.1.1).
    pub fn answer(&self) -> Option<Flow> {
        let multicast = self.destination.address.is_multicast();
        (!multicast).then_some(Flow {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        })
    }

    /// The packets of both flows.
    pub fn common(&self, other: &Flow) -> Option<Flow> {
        let both = |one: u16, other: u16| match (one, other) {
            (0, known) | (known, 0) => Some(known),
            (one, other) => (one == other).then_some(one),
        };
        Some(Flow {
            source: self.source.common(&other.source)?,
            destination: self.destination.common(&other.destination)?,
            source_port: both(self.source_port, other.source_port)?,
            destination_port: both(self.destination_port, other.destination_port)?,
            protocol: u8::try_from(both(self.protocol.into(), other.protocol.into())?).ok()?,
        })
    }
}

fn cross(sources: &[Prefix], destinations: &[Prefix], protocol: u8, ports: &[(u16, u16)]) -> Vec<Flow> {
    let mut flows = Vec::new();
    for source in sources {
        for destination in destinations.iter().filter(|it| it.address.is_ipv4() == source.address.is_ipv4()) {
            for (source_port, destination_port) in ports {
                flows.push(Flow {
                    source: *source,
                    destination: *destination,
                    source_port: *source_port,
                    destination_port: *destination_port,
                    protocol,
                });
            }
        }
    }
    flows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::tests::{prefix, selector};

    fn rule(source: &str, destination: &str, protocol: u8, port: u16) -> Rule {
        Rule {
            name: "r".to_owned(),
            source: prefix(source),
            destination: prefix(destination),
            protocol,
            port,
        }
    }

    #[test]
    fn any_address_is_a_flow_of_each_family_and_a_range_is_none() {
        let any =
            Selector { source: Addresses::Any, destination: Addresses::Any, ..selector("::/0", "::/0") };
        assert_eq!(Flow::of(&any), Some(Flow::all().collect()));
        let range = Selector { source: Addresses::V4Range(1, 2), ..selector("10.0.0.0/8", "10.0.0.0/8") };
        assert_eq!(Flow::of(&range), None);
        let holes = Selector { source: Addresses::V4Mask(0, 0xff00_ff00), ..range };
        assert_eq!(Flow::of(&holes), None);
    }

    #[test]
    fn a_rule_with_a_port_is_four_flows_and_a_multicast_rule_has_no_answer() {
        assert_eq!(Flow::of_rule(&rule("10.0.0.0/8", "10.0.0.5/32", 6, 179)).len(), 4);
        assert_eq!(Flow::of_rule(&rule("10.0.0.0/8", "239.0.0.0/8", 17, 0)).len(), 1);
        assert_eq!(Flow::of_rule(&rule("10.0.0.0/8", "::/0", 17, 0)), []);
    }

    #[test]
    fn flows_have_the_narrower_of_both_in_common_or_nothing() {
        let wide = Flow::of(&selector("10.0.0.0/8", "0.0.0.0/0")).unwrap()[0];
        let ntp = Flow {
            destination_port: 123,
            protocol: 17,
            ..Flow::of(&selector("10.1.0.0/16", "10.0.0.5/32")).unwrap()[0]
        };
        assert_eq!(wide.common(&ntp), Some(ntp));
        assert_eq!(ntp.common(&wide), Some(ntp));
        assert_eq!(ntp.common(&Flow { protocol: 6, ..wide }), None);
        assert_eq!(ntp.common(&Flow { destination_port: 53, ..wide }), None);
        assert_eq!(ntp.common(&Flow::of(&selector("11.0.0.0/8", "0.0.0.0/0")).unwrap()[0]), None);
    }
}
