//! Steering by policy routing: what arrives on the interfaces of the zones goes to our two TUN devices.
//!
//! ```text
//! 8480  fwmark 0x6d0848            lookup main     what we send ourselves
//! 8481  iif <inside interface>     lookup 84800    default dev gdoi-out; blackhole default
//! 8481  iif <outside interface>    lookup 84801    default dev gdoi-in;  blackhole default
//! ```
//!
//! Rules and blackholes do not depend on the process: when it dies its devices go, their routes with them, and the
//! blackholes drop what is left, until [`release`]. A set-up found there is completed and what is stale in it goes.

use std::future::Future;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::route::{RouteAttribute, RouteProtocol, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Error, Handle, IpVersion, RouteMessageBuilder};

use crate::DataPlaneError;

/// Mark of what the data plane sends itself.
pub const MARK: u32 = 0x006d_0848;
/// Table of what arrives from inside.
pub const TABLE_OUT: u32 = 84800;
/// Table of what arrives from outside.
pub const TABLE_IN: u32 = 84801;
/// Marks rules and routes as ours, so that a later process knows them.
const OURS: u8 = 184;
const TABLE_MAIN: u32 = 254;
const FIRST: u32 = 8480;
const EEXIST: i32 = 17;

/// One rule, as far as we tell them apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    v4: bool,
    interface: Option<String>,
    table: u32,
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

/// Puts rules and blackholes in place; nothing passes from then on. Stale rules of ours go.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn hold(inside: &[String], outside: &[String]) -> Result<(), DataPlaneError> {
    let mut wanted = Vec::new();
    for v4 in [true, false] {
        wanted.push(Rule { v4, interface: None, table: TABLE_MAIN });
        let inside = inside.iter().map(|name| (name, TABLE_OUT));
        for (name, table) in inside.chain(outside.iter().map(|name| (name, TABLE_IN))) {
            wanted.push(Rule { v4, interface: Some(name.clone()), table });
        }
    }
    run("steering", async |handle: Handle| {
        for table in [TABLE_OUT, TABLE_IN] {
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
        delete_rules(&handle, &wanted).await
    })
}

async fn add_rule(handle: &Handle, rule: &Rule) -> Result<(), Error> {
    let mut request = handle.rule().add().table_id(rule.table).action(RuleAction::ToTable);
    request = match &rule.interface {
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

/// Sends the tables to the TUN devices with these indices.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub fn connect(out: u32, inward: u32) -> Result<(), DataPlaneError> {
    run("steering to the TUN devices", async |handle: Handle| {
        for (table, device) in [(TABLE_OUT, out), (TABLE_IN, inward)] {
            let protocol = RouteProtocol::from(OURS);
            let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().table_id(table).priority(1);
            let four = four.protocol(protocol).scope(RouteScope::Link).output_interface(device).build();
            handle.route().add(four).replace().execute().await?;
            let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().table_id(table).priority(1);
            let six = six.protocol(protocol).output_interface(device).build();
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
        let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for filter in [four, six] {
            let routes: Vec<_> = handle.route().get(filter).execute().try_collect().await?;
            for route in routes {
                let ours = u8::from(route.header.protocol) == OURS
                    && route
                        .attributes
                        .iter()
                        .any(|attribute| matches!(attribute, RouteAttribute::Table(TABLE_OUT | TABLE_IN)));
                if ours {
                    handle.route().del(route).execute().await?;
                }
            }
        }
        Ok(())
    })
}
