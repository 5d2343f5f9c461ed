//! Multicast between zones: the kernel routes none of it, so it leaves by a socket per interface, and its groups are joined
//! where it should arrive.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};

use super::{failed, raw_socket};
use crate::DataPlaneError;
use crate::selector::Addresses;

/// Groups of one policy that are joined; of a wider one the interfaces must take all multicast by themselves.
const JOINED: u32 = 16;

/// Sends packets with their IP header by a named interface. One per thread.
#[derive(Debug, Default)]
pub(super) struct Senders(BTreeMap<(String, bool), Socket>);

impl Senders {
    /// Sends by `interface`; false when the system did not.
    pub(super) fn send(&mut self, octets: &[u8], to: IpAddr, interface: &str) -> bool {
        let key = (interface.to_owned(), to.is_ipv4());
        if !self.0.contains_key(&key) {
            let Ok(socket) = sender(to.is_ipv4(), interface) else { return false };
            self.0.insert(key.clone(), socket);
        }
        let address = SockAddr::from(SocketAddr::new(to, 0));
        let sent = self.0.get(&key).is_some_and(|socket| socket.send_to(octets, &address).is_ok());
        if !sent {
            // The interface may be another one of that name by now.
            self.0.remove(&key);
        }
        sent
    }
}

fn sender(v4: bool, interface: &str) -> Result<Socket, DataPlaneError> {
    let socket = raw_socket(if v4 { Domain::IPV4 } else { Domain::IPV6 })?;
    socket.bind_device(Some(interface.as_bytes())).map_err(failed(interface))?;
    // Who listens on this machine has heard it already.
    let quiet = if v4 { socket.set_multicast_loop_v4(false) } else { socket.set_multicast_loop_v6(false) };
    quiet.map_err(failed(interface))?;
    Ok(socket)
}

/// Memberships in groups; the kernel reports them by IGMP and MLD and opens the interfaces for them.
#[derive(Debug)]
pub(super) struct Memberships {
    four: Socket,
    six: Option<Socket>,
}

impl Memberships {
    /// None yet.
    ///
    /// # Errors
    /// [`DataPlaneError`] when there are no sockets to be had.
    pub(super) fn new() -> Result<Memberships, DataPlaneError> {
        let socket = |domain| Socket::new(domain, Type::DGRAM, Some(Protocol::UDP));
        let four = socket(Domain::IPV4).map_err(failed("socket for memberships"))?;
        Ok(Memberships { four, six: socket(Domain::IPV6).ok() })
    }

    /// Joins the groups of a policy's destination on these interfaces. One that is missing or has no address of the family
    /// is passed by; the next TEK tries again.
    pub(super) fn join<'a>(
        &self,
        destination: &Addresses,
        interfaces: impl Iterator<Item = &'a String> + Clone,
    ) {
        for group in groups(destination) {
            for name in interfaces.clone() {
                let Ok(index) = rustix::net::netdevice::name_to_index(&self.four, name) else { continue };
                // A membership that exists is an error too.
                let _ = match (group, &self.six) {
                    (IpAddr::V4(group), _) => {
                        self.four.join_multicast_v4_n(&group, &InterfaceIndexOrAddress::Index(index))
                    }
                    (IpAddr::V6(group), Some(six)) => six.join_multicast_v6(&group, index),
                    (IpAddr::V6(_), None) => Ok(()),
                };
            }
        }
    }
}

/// The multicast groups of a set of at most [`JOINED`] addresses.
fn groups(destination: &Addresses) -> Vec<IpAddr> {
    let limit = u128::from(JOINED);
    let few = |first: u128, last: u128| {
        let count = last.saturating_sub(first).saturating_add(1);
        if count > limit { first..first } else { first..first.saturating_add(count) }
    };
    let four = |address: u128| IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(address).unwrap_or_default()));
    let six = |address: u128| IpAddr::V6(Ipv6Addr::from_bits(address));
    let all: Vec<IpAddr> = match *destination {
        Addresses::Any => Vec::new(),
        Addresses::V4Mask(base, mask) => few(base.into(), (base | !mask).into()).map(four).collect(),
        Addresses::V4Range(low, high) => few(low.into(), high.into()).map(four).collect(),
        Addresses::V6Mask(base, mask) => few(base, base | !mask).map(six).collect(),
        Addresses::V6Range(low, high) => few(low, high).map(six).collect(),
    };
    all.into_iter().filter(IpAddr::is_multicast).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selector::tests::prefix;

    #[test]
    fn only_a_few_groups_of_a_policy_are_joined() {
        let of = |text: &str| groups(&prefix(text)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("239.1.1.1/32"), ["239.1.1.1"]);
        assert_eq!(of("239.1.1.0/31"), ["239.1.1.0", "239.1.1.1"]);
        assert_eq!(of("239.1.1.0/24"), Vec::<String>::new());
        assert_eq!(of("10.0.0.0/31"), Vec::<String>::new());
        assert_eq!(of("ff0e::7/128"), ["ff0e::7"]);
        assert_eq!(groups(&Addresses::Any), Vec::<IpAddr>::new());
    }
}
