//! What the kernel's packet filter (nf_tables) holds and copies, in tables of ours named `gdoi`.
//!
//! ```text
//! arriving   multicast of a steered interface      -> a copy to the zone's TUN device: policy routing never sees it
//!            to this machine, from a zone of `host` -> the TUN device instead of this machine, but for key management
//! onward     gdoi<zone> or its interfaces, towards an interface of a zone it forms a pair with -> dropped
//! leaving    of this machine, towards a zone of `host` -> HOST_MARK: routed again, into the TUN device of `host`
//! ```
//!
//! `onward` is what no race of route changes passes: what was decided for a zone comes back from the TUN device of *that*
//! zone, so a packet that the kernel would now take elsewhere meets the rule. Tables are replaced whole, in one transaction.

use std::io;

use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, Expressions, Hook, HookNumber, Immediate,
    InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register,
    RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::steer::{HOST_MARK, Layout, MARK, device_name};
use crate::DataPlaneError;
use crate::header::protocol;
use crate::policy::CONTROL_PORTS;

/// Name of our tables.
const TABLE: &str = "gdoi";
/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
/// Before connection tracking and everything of the operator's.
const RAW: i32 = -300;
/// With the operator's changes of marks.
const MANGLE: i32 = -150;
/// NF_DROP and NF_ACCEPT.
const DROP: Verdict = Verdict::Other(0);
const ACCEPT: Verdict = Verdict::Other(1);
/// IFNAMSIZ.
const NAME: usize = 16;
/// Types of ICMPv6: listener queries, reports and ends; router and neighbour solicitation and advertisement; redirect.
const NEIGHBOUR_DISCOVERY: (u8, u8) = (130, 137);

type Element = Expressions;
type Message = NetlinkMessage<NetfilterMessage>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Four,
    Six,
}

impl From<Family> for NetfilterProtoFamily {
    fn from(family: Family) -> NetfilterProtoFamily {
        match family {
            Family::Four => NetfilterProtoFamily::IPv4,
            Family::Six => NetfilterProtoFamily::IPv6,
        }
    }
}

/// One rule: all of its expressions, the last one acts.
type Rule = Vec<Element>;

/// A chain with its hook.
struct Chain {
    name: &'static str,
    kind: &'static str,
    hook: InetHookNumber,
    priority: i32,
    rules: Vec<Rule>,
}

/// Puts our filters in place for `layout`, in place of those that are there. `devices` are the indices of the TUN devices,
/// zone by zone; without them nothing is copied, only dropped.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses; then what was there stays.
pub(super) fn set(layout: &Layout, devices: &[u32]) -> Result<(), DataPlaneError> {
    let mut batch = Vec::new();
    for family in [Family::Four, Family::Six] {
        remove(&mut batch, family);
        batch.push(to(family, NfTablesMessage::NewTable(table())));
        for chain in chains(layout, devices, family) {
            add(&mut batch, family, chain);
        }
    }
    talk(batch).map_err(|error| DataPlaneError(format!("packet filter (nf_tables): {error}")))
}

/// Removes them. A kernel without packet filter has none.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses.
pub(crate) fn clear() -> Result<(), DataPlaneError> {
    let mut batch = Vec::new();
    for family in [Family::Four, Family::Six] {
        remove(&mut batch, family);
    }
    match talk(batch) {
        Err(error) if is_absent(&error) => Ok(()),
        other => other.map_err(|error| DataPlaneError(format!("packet filter (nf_tables): {error}"))),
    }
}

/// EPROTONOSUPPORT, EOPNOTSUPP: there is no such thing in this kernel.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(93 | 95))
}

fn chains(layout: &Layout, devices: &[u32], family: Family) -> Vec<Chain> {
    let mut chains = vec![
        Chain {
            name: "arriving",
            kind: "filter",
            hook: InetHookNumber::PreRouting,
            priority: RAW,
            rules: arriving(layout, devices, family),
        },
        Chain {
            name: "onward",
            kind: "filter",
            hook: InetHookNumber::Forward,
            priority: MANGLE,
            rules: onward(layout),
        },
    ];
    if layout.host.is_some() {
        chains.push(Chain {
            name: "leaving",
            kind: "route",
            hook: InetHookNumber::LocalOut,
            priority: MANGLE,
            rules: leaving(layout, family),
        });
    }
    chains
}

fn arriving(layout: &Layout, devices: &[u32], family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (zone, interfaces) in layout.interfaces.iter().enumerate() {
        let to_host = layout.is_paired_with_host(zone);
        let copy = devices.get(zone).map(|device| duplicate(family, *device)).unwrap_or_default();
        for interface in interfaces {
            let from = || arrives_by(interface);
            let mut rule = |parts: &[Rule], verdict: Option<Verdict>| {
                let mut rule = from();
                rule.extend(parts.iter().flatten().cloned());
                rule.extend(verdict.map(decide));
                rules.push(rule);
            };
            for exempt in link_local_multicast(family) {
                rule(&[exempt], Some(ACCEPT));
            }
            if to_host {
                for exempt in neighbours(family) {
                    rule(&[exempt], Some(ACCEPT));
                }
            }
            for control in key_management() {
                rule(&[multicast(family), control.clone()], Some(ACCEPT));
                if to_host {
                    rule(&[is_local(), control], Some(ACCEPT));
                }
            }
            if !copy.is_empty() || to_host {
                rule(&[multicast(family), copy.clone()], to_host.then_some(DROP));
            }
            if to_host {
                rule(&[is_local(), copy.clone()], Some(DROP));
            }
        }
        if to_host {
            // What is for this machine comes back from the device of `host`.
            let mut rule = arrives_by(&device_name(zone));
            rule.extend(is_local());
            rule.push(decide(DROP));
            rules.push(rule);
        }
    }
    rules
}

fn onward(layout: &Layout) -> Vec<Rule> {
    let mut rules = Vec::new();
    for (one, other) in &layout.pairs {
        for (from, to) in [(*one, *other), (*other, *one)] {
            let Some(towards) = layout.interfaces.get(to) else { continue };
            let own = layout.interfaces.get(from).into_iter().flatten().cloned();
            for source in own.chain([device_name(from)]) {
                for interface in towards {
                    let mut rule = arrives_by(&source);
                    rule.extend(leaves_by(interface));
                    rule.push(decide(DROP));
                    rules.push(rule);
                }
            }
        }
    }
    rules
}

fn leaving(layout: &Layout, family: Family) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut own = meta(MetaKey::Mark);
    own.push(compare(Operator::Equal, &MARK.to_ne_bytes()));
    own.push(decide(ACCEPT));
    rules.push(own);
    rules.extend(of_the_link(family));
    for (zone, interfaces) in layout.interfaces.iter().enumerate() {
        if !layout.is_paired_with_host(zone) {
            continue;
        }
        for interface in interfaces {
            let mut rule = leaves_by(interface);
            rule.extend(set_mark(HOST_MARK));
            rules.push(rule);
        }
    }
    rules
}

/// What this machine needs on a link, and its key management, is left alone.
fn of_the_link(family: Family) -> impl Iterator<Item = Rule> {
    let exempt = link_local_multicast(family)
        .into_iter()
        .chain(neighbours(family))
        .chain(link_local(family))
        .chain(key_management());
    exempt.map(|mut rule| {
        rule.push(decide(ACCEPT));
        rule
    })
}

/// Marks what this machine sends and receives by these interfaces, for the policies of the kernel; in place of all filters of
/// ours that are there.
///
/// # Errors
/// [`DataPlaneError`] when the kernel refuses; then what was there stays.
pub(crate) fn set_marks(marks: &[(String, u32)]) -> Result<(), DataPlaneError> {
    let mut batch = Vec::new();
    for family in [Family::Four, Family::Six] {
        remove(&mut batch, family);
        batch.push(to(family, NfTablesMessage::NewTable(table())));
        let rules = |by: fn(&str) -> Rule| {
            let marked = marks.iter().map(|(interface, mark)| {
                let mut rule = by(interface);
                rule.extend(set_mark(*mark));
                rule
            });
            of_the_link(family).chain(marked).collect()
        };
        // A packet that gets a mark on its way out is routed again, and meets the policies then.
        let (hook, priority) = (InetHookNumber::LocalOut, MANGLE);
        add(
            &mut batch,
            family,
            Chain { name: "leaving", kind: "route", hook, priority, rules: rules(leaves_by) },
        );
        // On its way in it meets them behind this hook.
        let (hook, priority) = (InetHookNumber::LocalIn, MANGLE);
        add(
            &mut batch,
            family,
            Chain { name: "entering", kind: "filter", hook, priority, rules: rules(arrives_by) },
        );
    }
    talk(batch).map_err(|error| DataPlaneError(format!("packet filter (nf_tables): {error}")))
}

fn set_mark(mark: u32) -> Rule {
    vec![
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(mark.to_ne_bytes().to_vec())),
        ]),
        Expressions::Meta(vec![Meta::Key(MetaKey::Mark), Meta::SourceRegister(Register::Reg1)]),
    ]
}

fn meta(key: MetaKey) -> Rule {
    vec![Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)])]
}

fn compare(how: Operator, value: &[u8]) -> Element {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(how),
        Cmp::Data(DataAttribute::Value(value.to_vec())),
    ])
}

fn named(key: MetaKey, interface: &str) -> Rule {
    let mut name = interface.as_bytes().to_vec();
    name.resize(NAME, 0);
    let mut rule = meta(key);
    rule.push(compare(Operator::Equal, &name));
    rule
}

fn arrives_by(interface: &str) -> Rule {
    named(MetaKey::Iifname, interface)
}

fn leaves_by(interface: &str) -> Rule {
    named(MetaKey::Oifname, interface)
}

/// Loads octets of the packet: base 1 is the network header, 2 the transport header.
fn load(base: u32, offset: u32, length: u32) -> Element {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
}

/// Bits of the destination address, from its first octet on, equal `value` under `mask`.
fn towards(family: Family, mask: &[u8], value: &[u8]) -> Rule {
    let (offset, length) = (if family == Family::Four { 16 } else { 24 }, mask.len() as u32);
    let bits = |octets: &[u8]| DataAttribute::Value(octets.to_vec());
    vec![
        load(1, offset, length),
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(length),
            Bitwise::Mask(bits(mask)),
            Bitwise::Xor(bits(&vec![0; mask.len()])),
        ]),
        compare(Operator::Equal, value),
    ]
}

fn multicast(family: Family) -> Rule {
    match family {
        Family::Four => towards(family, &[0xf0], &[0xe0]),
        Family::Six => towards(family, &[0xff], &[0xff]),
    }
}

/// Multicast no router forwards: 224.0.0.0/24, and scopes of interface and link.
fn link_local_multicast(family: Family) -> Vec<Rule> {
    match family {
        Family::Four => vec![towards(family, &[255; 3], &[224, 0, 0])],
        Family::Six => {
            vec![towards(family, &[0xff, 0x0f], &[0xff, 1]), towards(family, &[0xff, 0x0f], &[0xff, 2])]
        }
    }
}

fn link_local(family: Family) -> Vec<Rule> {
    match family {
        Family::Four => Vec::new(),
        Family::Six => vec![towards(family, &[0xff, 0xc0], &[0xfe, 0x80])],
    }
}

/// What keeps a link going: IGMP, neighbour discovery.
fn neighbours(family: Family) -> Vec<Rule> {
    let mut rule = meta(MetaKey::L4Proto);
    if family == Family::Four {
        rule.push(compare(Operator::Equal, &[protocol::IGMP]));
        return vec![rule];
    }
    rule.push(compare(Operator::Equal, &[protocol::ICMPV6]));
    rule.push(load(2, 0, 1));
    rule.push(compare(Operator::GreatherThanEqual, &[NEIGHBOUR_DISCOVERY.0]));
    rule.push(compare(Operator::LessThanEqual, &[NEIGHBOUR_DISCOVERY.1]));
    vec![rule]
}

/// UDP from or to the ports of key management.
fn key_management() -> Vec<Rule> {
    let mut rules = Vec::new();
    for port in CONTROL_PORTS {
        for offset in [0, 2] {
            let mut rule = meta(MetaKey::L4Proto);
            rule.push(compare(Operator::Equal, &[protocol::UDP]));
            rule.push(load(2, offset, 2));
            rule.push(compare(Operator::Equal, &port.to_be_bytes()));
            rules.push(rule);
        }
    }
    rules
}

fn word(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// The destination is an address of this machine: `fib daddr type local`.
fn is_local() -> Rule {
    // NFTA_FIB_DREG, _RESULT (address type), _FLAGS (destination); RTN_LOCAL.
    let attributes = vec![word(1, Register::Reg1.into()), word(2, 3), word(3, 2)];
    let fib = Expressions::Other { expression_type: "fib".to_owned(), attributes };
    vec![fib, compare(Operator::Equal, &2u32.to_ne_bytes())]
}

/// A copy of the packet to a TUN device. The address is for the kernel's choice of a route, which has only one.
fn duplicate(family: Family, device: u32) -> Rule {
    let load = |register: Register, value: Vec<u8>| {
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(register),
            Immediate::Data(DataAttribute::Value(value)),
        ])
    };
    let via = match family {
        Family::Four => vec![192, 0, 0, 8],
        Family::Six => vec![0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    };
    // NFTA_DUP_SREG_ADDR, NFTA_DUP_SREG_DEV.
    let attributes = vec![word(1, Register::Reg1.into()), word(2, Register::Reg2.into())];
    vec![
        load(Register::Reg1, via),
        load(Register::Reg2, device.to_ne_bytes().to_vec()),
        Expressions::Other { expression_type: "dup".to_owned(), attributes },
    ]
}

fn decide(verdict: Verdict) -> Element {
    Expressions::Immediate(vec![
        Immediate::DestinationRegister(Register::Verdict),
        Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(verdict)])),
    ])
}

fn table() -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] }
}

fn to(family: Family, message: NfTablesMessage) -> Message {
    let mut message =
        Message::from(NetfilterMessage::new(NetfilterHeader::new(family.into(), 0, 0), message));
    message.header.flags = NLM_F_REQUEST;
    if !matches!(
        &message.payload,
        NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::NfTables(NfTablesMessage::DeleteTable(_)),
            ..
        })
    ) {
        message.header.flags |= NLM_F_CREATE;
    }
    message
}

/// A table that is not there cannot be removed: made first, it is.
fn remove(batch: &mut Vec<Message>, family: Family) {
    batch.push(to(family, NfTablesMessage::NewTable(table())));
    batch.push(to(family, NfTablesMessage::DeleteTable(table())));
}

fn add(batch: &mut Vec<Message>, family: Family, chain: Chain) {
    let attributes = vec![
        ChainAttribute::Table(TABLE.to_owned()),
        ChainAttribute::Name(chain.name.to_owned()),
        ChainAttribute::Hook(vec![
            Hook::Number(HookNumber::Inet(chain.hook)),
            Hook::Priority(chain.priority.cast_unsigned()),
        ]),
        ChainAttribute::Policy(1),
        ChainAttribute::Type(chain.kind.to_owned()),
    ];
    batch.push(to(family, NfTablesMessage::NewChain(ChainMessage { attributes })));
    for rule in chain.rules {
        let attributes = vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(chain.name.to_owned()),
            RuleAttribute::Expressions(rule.into_iter().map(ListAttribute::from).collect()),
        ];
        let mut message = to(family, NfTablesMessage::NewRule(RuleMessage { attributes }));
        message.header.flags |= NLM_F_APPEND;
        batch.push(message);
    }
}

fn edge(message: ControlMessage) -> Message {
    let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM);
    let mut message = Message::from(NetfilterMessage::new(header, message));
    message.header.flags = NLM_F_REQUEST;
    message
}

/// One transaction: all of it or nothing.
fn talk(batch: Vec<Message>) -> io::Result<()> {
    let mut octets = Vec::new();
    let mut last = 0;
    let edges = (edge(ControlMessage::BatchBegin), edge(ControlMessage::BatchEnd));
    let count = batch.len();
    for (number, mut message) in std::iter::once(edges.0).chain(batch).chain([edges.1]).enumerate() {
        message.header.sequence_number = u32::try_from(number).unwrap_or(u32::MAX);
        if number == count {
            message.header.flags |= NLM_F_ACK;
            last = message.header.sequence_number;
        }
        message.finalize();
        let at = octets.len();
        octets.resize(at + message.buffer_len(), 0);
        message.serialize(octets.get_mut(at..).unwrap_or_default());
    }
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    socket.send(&octets, 0)?;
    // The kernel has done it, and answered, when the call returns.
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&datagram).map_err(io::Error::other)?;
        if let NetlinkPayload::Error(error) = answer.payload {
            if error.code.is_some() {
                return Err(error.to_io());
            }
            if answer.header.sequence_number == last {
                return Ok(());
            }
        }
    }
}
