//! The main routing table as the data plane knows it: which zone a destination lies behind, and our address towards it.
//!
//! The kernel keeps the table; a thread of ours reads it whole at the start and again whenever it, a link or an address
//! changes. Packets are looked up in the copy, without a system call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Error, Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};
use tokio::sync::oneshot;

use super::steer::TABLE_MAIN;
use crate::DataPlaneError;

/// What the copy is made anew for.
const CHANGES: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Where a destination lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Behind an interface of the zone with that number.
    Zone(usize),
    /// Behind an interface of no zone, or where the kernel drops it.
    Elsewhere,
}

/// Routes by prefix, the longest first. Addresses of both families are the upper bits of 128.
#[derive(Debug, Default, Clone)]
struct Table(Vec<(u8, BTreeMap<u128, Route>)>);

#[derive(Debug, Clone, Copy)]
struct Route {
    metric: u32,
    /// 0: the kernel drops what takes this route.
    interface: u32,
}

fn upper(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128u32.saturating_sub(u32::from(length))).unwrap_or(0)
}

impl Table {
    fn add(&mut self, to: u128, length: u8, route: Route) {
        let at = self.0.partition_point(|(other, _)| *other > length);
        if self.0.get(at).is_none_or(|(other, _)| *other != length) {
            self.0.insert(at, (length, BTreeMap::new()));
        }
        if let Some((_, prefixes)) = self.0.get_mut(at) {
            let known = prefixes.entry(to & mask(length)).or_insert(route);
            if route.metric < known.metric {
                *known = route;
            }
        }
    }

    fn find(&self, to: u128) -> Option<u32> {
        self.0
            .iter()
            .find_map(|(length, prefixes)| prefixes.get(&(to & mask(*length))))
            .map(|route| route.interface)
    }
}

/// A copy of the main table with the zones of its interfaces.
#[derive(Debug, Default, Clone)]
pub struct Routes {
    four: Table,
    six: Table,
    zones: BTreeMap<u32, usize>,
    addresses: BTreeMap<u32, Vec<IpAddr>>,
    own: BTreeSet<IpAddr>,
}

impl Routes {
    fn interface(&self, to: IpAddr) -> Option<u32> {
        if to.is_ipv4() { &self.four } else { &self.six }.find(upper(to))
    }

    /// Where `to` lies; none without a route.
    pub fn behind(&self, to: IpAddr) -> Option<Behind> {
        let interface = self.interface(to)?;
        Some(self.zones.get(&interface).map_or(Behind::Elsewhere, |zone| Behind::Zone(*zone)))
    }

    /// An address of ours on the interface towards `to`; of any interface when that one has none.
    pub fn own_address_towards(&self, to: IpAddr) -> Option<IpAddr> {
        let fits = |own: &&IpAddr| own.is_ipv4() == to.is_ipv4() && !is_link_local(own);
        let near = self.interface(to).and_then(|interface| self.addresses.get(&interface)?.iter().find(fits));
        near.or_else(|| self.addresses.values().flatten().find(fits)).copied()
    }

    /// True for an address of this machine.
    pub fn is_own(&self, address: IpAddr) -> bool {
        self.own.contains(&address)
    }

    fn add(&mut self, message: &RouteMessage) {
        let mut table = u32::from(message.header.table);
        let mut route = Route { metric: 0, interface: 0 };
        let mut to = None;
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Oif(interface) => route.interface = *interface,
                RouteAttribute::MultiPath(hops) => {
                    route.interface = hops.first().map_or(0, |hop| hop.interface_index);
                }
                RouteAttribute::Destination(RouteAddress::Inet(address)) => to = Some(IpAddr::V4(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => to = Some(IpAddr::V6(*address)),
                _ => {}
            }
        }
        let drops = [RouteType::BlackHole, RouteType::Unreachable, RouteType::Prohibit, RouteType::Throw];
        if drops.contains(&message.header.kind) {
            route.interface = 0;
        } else if message.header.kind != RouteType::Unicast {
            return;
        }
        if table != TABLE_MAIN {
            return;
        }
        let v4 = message.header.address_family == rtnetlink::packet_route::AddressFamily::Inet;
        let length = message.header.destination_prefix_length;
        if v4 { &mut self.four } else { &mut self.six }.add(to.map_or(0, upper), length, route);
    }

    async fn read(handle: &Handle, zones: &[Vec<String>]) -> Result<Routes, Error> {
        let mut routes = Routes::default();
        let links: Vec<_> = handle.link().get().execute().try_collect().await?;
        for link in links {
            let name = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            });
            let zone = name.and_then(|name| zones.iter().position(|zone| zone.contains(name)));
            if let Some(zone) = zone {
                routes.zones.insert(link.header.index, zone);
            }
        }
        let addresses: Vec<_> = handle.address().get().execute().try_collect().await?;
        for message in addresses {
            // On a cable with two ends `Address` is the other end, `Local` is ours.
            let own = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let own = own.or_else(|| {
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })
            });
            routes.addresses.entry(message.header.index).or_default().extend(own);
            routes.own.extend(own);
        }
        let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for filter in [four, six] {
            let found: Vec<RouteMessage> = handle.route().get(filter).execute().try_collect().await?;
            found.iter().for_each(|message| routes.add(message));
        }
        Ok(routes)
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    }
}

/// A copy that follows the kernel's until it is dropped.
#[derive(Debug)]
pub struct Follower {
    routes: Arc<RwLock<Arc<Routes>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Follower {
    /// Reads the table and follows it. `zones` are the interfaces of each zone.
    ///
    /// # Errors
    /// [`DataPlaneError`] when the kernel does not tell.
    pub fn start(zones: Vec<Vec<String>>) -> Result<Follower, DataPlaneError> {
        let routes = Arc::new(RwLock::new(Arc::new(Routes::default())));
        let (stop, stopped) = oneshot::channel();
        let (ready, first) = std::sync::mpsc::sync_channel(1);
        let copy = Arc::clone(&routes);
        let failed = |error: String| DataPlaneError(format!("routes: {error}"));
        let follow = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(follow(&zones, &copy, &ready, stopped)),
                Err(error) => Err(error.to_string()),
            };
            // After the first reading nobody listens: packets keep to the last copy then.
            let _ = ready.try_send(result);
        };
        let thread = std::thread::Builder::new().name("gdoi-routes".to_owned()).spawn(follow);
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        first.recv().unwrap_or_else(|_| Err("its thread ended".to_owned())).map_err(failed)?;
        Ok(Follower { routes, stop: Some(stop), thread: Some(thread) })
    }

    /// The copy as of now.
    pub fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn follow(
    zones: &[Vec<String>],
    copy: &RwLock<Arc<Routes>>,
    ready: &std::sync::mpsc::SyncSender<Result<(), String>>,
    mut stopped: oneshot::Receiver<()>,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    loop {
        // The subscription comes before the reading: no change falls between.
        let (connection, handle, mut changes) =
            new_multicast_connection(&CHANGES).map_err(|error| text(&error))?;
        let connection = tokio::spawn(connection);
        loop {
            let routes = Routes::read(&handle, zones).await.map_err(|error| text(&error))?;
            *copy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
            let _ = ready.try_send(Ok(()));
            tokio::select! {
                _ = &mut stopped => return Ok(()),
                // An end of it means that the kernel told more than we took: begin anew.
                change = changes.next() => if change.is_none() { break },
            }
            while changes.try_recv().is_ok() {}
        }
        connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(lines: &[(&str, u8, u32, u32)]) -> Routes {
        let mut routes = Routes { zones: BTreeMap::from([(2, 0), (3, 1)]), ..Routes::default() };
        for (to, length, metric, interface) in lines {
            let to: IpAddr = to.parse().unwrap();
            let route = Route { metric: *metric, interface: *interface };
            if to.is_ipv4() { &mut routes.four } else { &mut routes.six }.add(upper(to), *length, route);
        }
        routes
    }

    #[test]
    fn the_longest_prefix_and_then_the_smallest_metric_decide() {
        let routes = routes(&[
            ("0.0.0.0", 0, 100, 3),
            ("0.0.0.0", 0, 50, 4),
            ("10.1.0.0", 16, 0, 2),
            ("10.1.7.0", 24, 0, 0),
            ("2001:db8::", 32, 0, 3),
        ]);
        let behind = |to: &str| routes.behind(to.parse().unwrap());
        assert_eq!(behind("10.1.2.3"), Some(Behind::Zone(0)));
        assert_eq!(behind("10.1.7.3"), Some(Behind::Elsewhere), "a blackhole");
        assert_eq!(behind("10.2.2.3"), Some(Behind::Elsewhere), "an interface of no zone");
        assert_eq!(behind("2001:db8::1"), Some(Behind::Zone(1)));
        assert_eq!(behind("2001:db9::1"), None);
    }

    #[test]
    fn our_address_is_the_one_nearest_to_the_other_end() {
        let mut routes = routes(&[("10.1.0.0", 16, 0, 2), ("10.2.0.0", 16, 0, 3)]);
        let own = |text: &str| vec![text.parse().unwrap()];
        routes.addresses = BTreeMap::from([(1, own("127.0.0.1")), (2, own("10.1.0.1"))]);
        assert_eq!(routes.own_address_towards("10.1.0.9".parse().unwrap()), "10.1.0.1".parse().ok());
        assert_eq!(routes.own_address_towards("10.2.0.9".parse().unwrap()), "10.1.0.1".parse().ok());
        assert_eq!(routes.own_address_towards("::1".parse().unwrap()), None);
    }
}
