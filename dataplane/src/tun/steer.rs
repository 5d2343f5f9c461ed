//! Steering by policy routing: what arrives on the interfaces of a zone goes to the TUN device of that zone.
//!
//! ```text
//! 8480  fwmark 0x6d0848       lookup main          what we send ourselves
//! 8480  iif gdoi0, gdoi1 ...  lookup main          what we hand back
//! 8481  iif <interface>       lookup 84800 + zone  default dev gdoi<zone>; blackhole default
//! 8481  fwmark 0x6d0849       lookup 84800 + host  what this machine sends to a zone that forms a pair with it
//! 8481  oif gdoi<zone>        lookup 84800 + zone  copies of multicast
//! ```
//!
//! Beside them stand the packet filters of `filter.rs`. Rules, blackholes and filters do not depend on the process:
//! when it dies its devices go, their routes with them, and the blackholes drop what is left, until [`release`]. A set-up
//! found there is completed and what is stale in it goes.

use std::future::Future;
use std::ops::Range;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};

use super::filter;
use crate::DataPlaneError;

/// Mark of what the data plane sends itself.
pub const MARK: u32 = 0x006d_0848;
/// Mark of what this machine sends to a zone that forms a pair with the zone `host`.
pub const HOST_MARK: u32 = 0x006d_0849;
/// Table of the first zone; the others follow.
pub const FIRST_TABLE: u32 = 84800;
/// Most zones.
pub const MAX_ZONES: usize = 64;
/// Marks rules and routes as ours, so that a later process knows them.
const OURS: u8 = 184;
/// The main table.
pub(super) const TABLE_MAIN: u32 = 254;
const FIRST: u32 = 8480;
const EEXIST: i32 = 17;

/// What is steered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The interfaces of each zone; none for the zone `host`.
    pub interfaces: Vec<Vec<String>>,
    /// Which of the zones is this machine itself.
    pub host: Option<usize>,
    /// The zones that form pairs, each pair once.
    pub pairs: Vec<(usize, usize)>,
}

impl Layout {
    /// True when a zone forms a pair with this machine.
    pub fn is_paired_with_host(&self, zone: usize) -> bool {
        let is = |one: usize, other: usize| Some(one) == self.host && other == zone;
        self.pairs.iter().any(|(one, other)| is(*one, *other) || is(*other, *one))
    }
}

/// What a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Of {
    Mark(u32),
    Input(String),
    Output(String),
}

/// One rule, as far as we tell them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    v4: bool,
    of: Of,
    table: u32,
}

/// The TUN device of a zone.
pub fn device_name(zone: usize) -> String {
    format!("gdoi{zone}")
}

fn tables(zones: usize) -> Range<u32> {
    FIRST_TABLE..FIRST_TABLE.saturating_add(u32::try_from(zones).unwrap_or(0))
}

/// Runs netlink requests on a thread of their own: the caller may be inside another runtime.
pub(crate) fn run<F: Future<Output = Result<(), Error>>>(
    what: &str,
    work: impl FnOnce(Handle) -> F + Send,
) -> Result<(), DataPlaneError> {
    let failed = |why: String| DataPlaneError(format!("{what}: {why}"));
    let result = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| failed(error.to_string()))?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().map_err(|error| failed(error.to_string()))?;
                tokio::spawn(connection);
                work(handle).await.map_err(|error| failed(error.to_string()))
            })
        });
        worker.join()
    });
    result.unwrap_or_else(|_| Err(failed("its thread ended".to_owned())))
}

/// Puts filters, rules and blackholes in place for the interfaces of each zone; nothing of them passes from then on. Stale
/// rules and routes of ours go, last.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses, or for more than 64 zones.
pub fn hold(layout: &Layout) -> Result<(), DataPlaneError> {
    let zones = layout.interfaces.len();
    if zones > MAX_ZONES {
        return Err(DataPlaneError(format!("{zones} zones, at most {MAX_ZONES} can be steered")));
    }
    let mut wanted = Vec::new();
    for v4 in [true, false] {
        wanted.push(Rule { v4, of: Of::Mark(MARK), table: TABLE_MAIN });
        for (zone, (interfaces, table)) in layout.interfaces.iter().zip(tables(zones)).enumerate() {
            wanted.push(Rule { v4, of: Of::Input(device_name(zone)), table: TABLE_MAIN });
            wanted.push(Rule { v4, of: Of::Output(device_name(zone)), table });
            wanted.extend(interfaces.iter().map(|name| Rule { v4, of: Of::Input(name.clone()), table }));
            if layout.host == Some(zone) {
                wanted.push(Rule { v4, of: Of::Mark(HOST_MARK), table });
            }
        }
    }
    // Before the rules: no moment in which a packet is routed and not filtered.
    filter::set(layout, &[])?;
    run("steering", async |handle: Handle| {
        for table in tables(zones) {
            let protocol = RouteProtocol::from(OURS);
            let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().table_id(table).priority(2);
            let four = four.protocol(protocol).kind(RouteType::BlackHole).build();
            handle.route().add(four).replace().execute().await?;
            let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().table_id(table).priority(2);
            let six = six.protocol(protocol).kind(RouteType::BlackHole).build();
            handle.route().add(six).replace().execute().await?;
        }
        for rule in &wanted {
            add_rule(&handle, rule).await?;
        }
        delete_rules(&handle, &wanted).await?;
        delete_routes(&handle, &tables(zones)).await
    })
}

async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), Error> {
    let mut request = handle.rule().add().table_id(rule.table).action(RuleAction::ToTable);
    let priority = if rule.table == TABLE_MAIN { FIRST } else { FIRST + 1 };
    request = match &rule.of {
        Of::Input(name) => request.priority(priority).input_interface(name),
        Of::Output(name) => request.priority(priority).output_interface(name),
        Of::Mark(mark) => request.priority(priority).fw_mark(*mark),
    };
    request.message_mut().attributes.push(RuleAttribute::Protocol(RouteProtocol::from(OURS)));
    let added = if rule.v4 { request.v4().execute().await } else { request.v6().execute().await };
    match added {
        Err(Error::NetlinkError(error)) if error.raw_code() == -EEXIST => Ok(()),
        other => other,
    }
}

/// Deletes the rules of ours that are not wanted.
async fn delete_rules(handle: &Handle, wanted: &[Rule]) -> Result<(), Error> {
    for v4 in [true, false] {
        let version = if v4 { IpVersion::V4 } else { IpVersion::V6 };
        let found: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await?;
        for message in found {
            let mut rule = Rule { v4, of: Of::Mark(0), table: u32::from(message.header.table) };
            let mut ours = false;
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::Iifname(name) => rule.of = Of::Input(name.clone()),
                    RuleAttribute::Oifname(name) => rule.of = Of::Output(name.clone()),
                    RuleAttribute::FwMark(mark) => rule.of = Of::Mark(*mark),
                    RuleAttribute::Table(table) => rule.table = *table,
                    RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == OURS,
                    _ => {}
                }
            }
            if ours && !wanted.contains(&rule) {
                handle.rule().del(message).execute().await?;
            }
        }
    }
    Ok(())
}

/// Deletes the routes of ours in tables outside `kept`.
async fn delete_routes(handle: &Handle, kept: &Range<u32>) -> Result<(), Error> {
    let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    for filter in [four, six] {
        let routes: Vec<_> = handle.route().get(filter).execute().try_collect().await?;
        for route in routes {
            let table = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Table(table) => Some(*table),
                _ => None,
            });
            let stale = |table: &u32| tables(MAX_ZONES).contains(table) && !kept.contains(table);
            if u8::from(route.header.protocol) == OURS && table.as_ref().is_some_and(stale) {
                handle.route().del(route).execute().await?;
            }
        }
    }
    Ok(())
}

/// Sends the tables to the TUN devices with these indices, zone by zone.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn connect(layout: &Layout, devices: &[u32]) -> Result<(), DataPlaneError> {
    filter::set(layout, devices)?;
    run("steering to the TUN devices", async |handle: Handle| {
        for (table, device) in tables(devices.len()).zip(devices) {
            let protocol = RouteProtocol::from(OURS);
            let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().table_id(table).priority(1);
            let four = four.protocol(protocol).scope(RouteScope::Link).output_interface(*device).build();
            handle.route().add(four).replace().execute().await?;
            let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().table_id(table).priority(1);
            let six = six.protocol(protocol).output_interface(*device).build();
            handle.route().add(six).replace().execute().await?;
        }
        Ok(())
    })
}

/// Removes every rule, route and filter of ours, whoever made them: the host's own routing holds again.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn release() -> Result<(), DataPlaneError> {
    remove_rules()?;
    filter::clear()
}

/// Removes the rules and routes of ours, not the filters: another backend holds the traffic.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn remove_rules() -> Result<(), DataPlaneError> {
    run("releasing", async |handle: Handle| {
        delete_rules(&handle, &[]).await?;
        delete_routes(&handle, &(0..0)).await
    })
}

/// True while the devices of a running data plane are there.
///
/// # Errors
/// [`DataPlaneError`] when the kernel does not tell.
pub fn is_running() -> Result<bool, DataPlaneError> {
    let mut found = false;
    run("looking for devices", async |handle: Handle| {
        let named = handle.link().get().match_name(device_name(0)).execute().try_collect::<Vec<_>>().await;
        // Without such a device the kernel answers with an error.
        found = named.is_ok_and(|links| !links.is_empty());
        Ok(())
    })?;
    Ok(found)
}
