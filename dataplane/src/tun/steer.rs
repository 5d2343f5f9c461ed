//! Steering by policy routing: what arrives on the interfaces of a zone goes to the TUN device of that zone.
//!
//! ```text
//! 8480  fwmark 0x6d0848       lookup main          what we send ourselves
//! 8480  iif gdoi0, gdoi1 ...  lookup main          what we hand back
//! 8481  iif <interface>       lookup 84800 + zone  default dev gdoi<zone>; blackhole default
//! ```
//!
//! Rules and blackholes do not depend on the process: when it dies its devices go, their routes with them, and the
//! blackholes drop what is left, until [`release`]. A set-up found there is completed and what is stale in it goes.

use std::future::Future;
use std::ops::Range;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};

use crate::DataPlaneError;

/// Mark of what the data plane sends itself.
pub const MARK: u32 = 0x006d_0848;
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

/// One rule, as far as we tell them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    v4: bool,
    interface: Option<String>,
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
fn run<F: Future<Output = Result<(), Error>>>(
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

/// Puts rules and blackholes in place for the interfaces of each zone; nothing of them passes from then on. Stale rules
/// and routes of ours go, last.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses, or for more than 64 zones.
pub fn hold(zones: &[Vec<String>]) -> Result<(), DataPlaneError> {
    if zones.len() > MAX_ZONES {
        return Err(DataPlaneError(format!("{} zones, at most {MAX_ZONES} can be steered", zones.len())));
    }
    let mut wanted = Vec::new();
    for v4 in [true, false] {
        wanted.push(Rule { v4, interface: None, table: TABLE_MAIN });
        for (zone, (interfaces, table)) in zones.iter().zip(tables(zones.len())).enumerate() {
            wanted.push(Rule { v4, interface: Some(device_name(zone)), table: TABLE_MAIN });
            let rules = interfaces.iter().map(|name| Rule { v4, interface: Some(name.clone()), table });
            wanted.extend(rules);
        }
    }
    run("steering", async |handle: Handle| {
        for table in tables(zones.len()) {
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
        delete_routes(&handle, &tables(zones.len())).await
    })
}

async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), Error> {
    let mut request = handle.rule().add().table_id(rule.table).action(RuleAction::ToTable);
    request = match &rule.interface {
        Some(name) if rule.table == TABLE_MAIN => request.priority(FIRST).input_interface(name),
        Some(name) => request.priority(FIRST + 1).input_interface(name),
        None => request.priority(FIRST).fw_mark(MARK),
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
            let mut rule = Rule { v4, interface: None, table: u32::from(message.header.table) };
            let mut ours = false;
            for attribute in &message.attributes {
                match attribute {
                    RuleAttribute::Iifname(name) => rule.interface = Some(name.clone()),
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
pub fn connect(devices: &[u32]) -> Result<(), DataPlaneError> {
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

/// Removes every rule and route of ours, whoever made them: the host's own routing holds again.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn release() -> Result<(), DataPlaneError> {
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
