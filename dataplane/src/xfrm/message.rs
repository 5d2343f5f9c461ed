//! Policies and states as netlink messages of the kernel (XFRM), and what it tells of them.

use std::net::IpAddr;
use std::time::Duration;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::{TekAuthentication, TekCipher};
use netlink_packet_xfrm::constants::{
    AF_INET, AF_INET6, IPPROTO_ESP, XFRM_MODE_TRANSPORT, XFRM_MODE_TUNNEL, XFRM_POLICY_ALLOW,
    XFRM_POLICY_BLOCK, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_SA_XFLAG_OSEQ_MAY_WRAP, XFRM_STATE_NOPMTUDISC,
};
use netlink_packet_xfrm::monitor::AcquireMessage;
use netlink_packet_xfrm::policy::{DelGetMessage as DeletePolicy, ModifyMessage as ModifyPolicy};
use netlink_packet_xfrm::state::{DelGetMessage as DeleteState, ModifyMessage as ModifyState};
use netlink_packet_xfrm::{
    Address, Alg, AlgAead, AlgAuth, Id, LifetimeConfig, Mark, Selector, UserPolicyId, UserPolicyInfo,
    UserSaId, UserSaInfo, UserTemplate, XfrmAttrs, XfrmMessage,
};
use zeroize::Zeroize;

use super::flow::{Flow, Prefix};
use super::plan::{Action, MARK, MAX_VPNS, Policy, PolicyKey, State, StateKey, Way};

/// Octets of the name of an algorithm.
const NAME: usize = 64;
/// All bits of a mark count.
const EXACT: u32 = u32::MAX;
/// Packets the kernel's sequence window spans, for flows of one sender.
const WINDOW: u8 = 32;

fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn selector(flow: &Flow) -> Selector {
    let exact = |port: u16| if port == 0 { 0 } else { u16::MAX };
    Selector {
        daddr: Address::from_ip(&flow.destination.address),
        saddr: Address::from_ip(&flow.source.address),
        dport: flow.destination_port,
        dport_mask: exact(flow.destination_port),
        sport: flow.source_port,
        sport_mask: exact(flow.source_port),
        family: family(flow.source.address),
        prefixlen_d: flow.destination.length,
        prefixlen_s: flow.source.length,
        proto: flow.protocol,
        ifindex: 0,
        user: 0,
    }
}

fn flow(selector: &Selector) -> Flow {
    Flow {
        source: Prefix { address: address(&selector.saddr, selector.family), length: selector.prefixlen_s },
        destination: Prefix {
            address: address(&selector.daddr, selector.family),
            length: selector.prefixlen_d,
        },
        source_port: selector.sport,
        destination_port: selector.dport,
        protocol: selector.proto,
    }
}

fn address(octets: &Address, family: u16) -> IpAddr {
    if family == AF_INET { octets.to_ipv4().into() } else { octets.to_ipv6().into() }
}

fn direction(way: Way) -> u8 {
    match way {
        Way::Out => XFRM_POLICY_OUT,
        Way::In => XFRM_POLICY_IN,
    }
}

fn mode(tunnel: bool) -> u8 {
    if tunnel { XFRM_MODE_TUNNEL } else { XFRM_MODE_TRANSPORT }
}

/// Puts a policy in place, or in the place of the one with this key.
pub(super) fn set_policy(key: &PolicyKey, policy: &Policy) -> XfrmMessage {
    let template = |tunnel: bool, reqid: u32| UserTemplate {
        id: Id { proto: IPPROTO_ESP, ..Id::default() },
        family: family(key.flow.source.address),
        reqid,
        mode: mode(tunnel),
        ..UserTemplate::default()
    };
    let template = match policy.action {
        Action::Allow | Action::Block => None,
        Action::Ask { reqid } => Some(template(false, reqid)),
        Action::Require { tunnel, reqid } => Some(template(tunnel, reqid)),
        Action::Protect { spi, ends, tunnel, reqid } => {
            let mut template = template(tunnel, reqid);
            template.id.spi = spi.0;
            template.id.daddr = Address::from_ip(&ends.1);
            template.saddr = Address::from_ip(&ends.0);
            Some(template)
        }
    };
    let mut nlas: Vec<XfrmAttrs> =
        template.map(|template| XfrmAttrs::Template(vec![template])).into_iter().collect();
    nlas.push(XfrmAttrs::Mark(Mark { value: key.mark, mask: EXACT }));
    let user_policy_info = UserPolicyInfo {
        selector: selector(&key.flow),
        lifetime_cfg: LifetimeConfig::default(),
        priority: policy.priority,
        direction: direction(key.way),
        action: if policy.action == Action::Block { XFRM_POLICY_BLOCK } else { XFRM_POLICY_ALLOW },
        ..UserPolicyInfo::default()
    };
    XfrmMessage::UpdatePolicy(ModifyPolicy { user_policy_info, nlas })
}

/// Removes a policy.
pub(super) fn delete_policy(key: &PolicyKey) -> XfrmMessage {
    let id = UserPolicyId {
        selector: selector(&key.flow),
        direction: direction(key.way),
        ..UserPolicyId::default()
    };
    let nlas = vec![XfrmAttrs::Mark(Mark { value: key.mark, mask: EXACT })];
    XfrmMessage::DeletePolicy(DeletePolicy { user_policy_id: id, nlas })
}

/// The key of a policy the kernel shows, when it is one of ours.
pub(super) fn our_policy(message: &ModifyPolicy) -> Option<PolicyKey> {
    let mark = message.nlas.iter().find_map(|attribute| match attribute {
        XfrmAttrs::Mark(mark) => Some(mark),
        _ => None,
    })?;
    let number = mark.value.checked_sub(MARK)?;
    if mark.mask != EXACT || number as usize >= MAX_VPNS {
        return None;
    }
    let way = match message.user_policy_info.direction {
        XFRM_POLICY_OUT => Way::Out,
        XFRM_POLICY_IN => Way::In,
        _ => return None,
    };
    Some(PolicyKey { mark: mark.value, way, flow: flow(&message.user_policy_info.selector) })
}

fn name(text: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    for (octet, from) in name.iter_mut().zip(text.bytes()) {
        *octet = from;
    }
    name
}

fn bits(octets: usize) -> u32 {
    u32::try_from(octets * 8).unwrap_or(u32::MAX)
}

/// The keys of a state. What holds them is wiped by [`wipe`].
fn algorithms(state: &State) -> Vec<XfrmAttrs> {
    let key = &state.tek.install.key;
    let encryption = key.encryption.expose();
    match state.tek.install.policy.cipher {
        TekCipher::AesCbc { authentication, .. } => {
            let (hash, icv) = match authentication {
                TekAuthentication::HmacSha1 => ("hmac(sha1)", 12),
                TekAuthentication::HmacSha256 => ("hmac(sha256)", 16),
                TekAuthentication::HmacSha384 => ("hmac(sha384)", 24),
                TekAuthentication::HmacSha512 => ("hmac(sha512)", 32),
            };
            let integrity = key.integrity.as_ref().map(|key| key.expose()).unwrap_or_default();
            vec![
                XfrmAttrs::EncryptionAlg(Alg {
                    alg_name: name("cbc(aes)"),
                    alg_key_len: bits(encryption.len()),
                    alg_key: encryption.to_vec(),
                }),
                XfrmAttrs::AuthenticationAlgTrunc(AlgAuth {
                    alg_name: name(hash),
                    alg_key_len: bits(integrity.len()),
                    alg_trunc_len: bits(icv),
                    alg_key: integrity.to_vec(),
                }),
            ]
        }
        // The key and its salt, as the kernel wants them.
        TekCipher::AesGcm { icv_octets, .. } => vec![XfrmAttrs::EncryptionAlgAead(AlgAead {
            alg_name: name("rfc4106(gcm(aes))"),
            alg_key_len: bits(encryption.len()),
            alg_icv_len: bits(icv_octets),
            alg_key: encryption.to_vec(),
        })],
        // Refused when they are installed; the kernel refuses a state without an algorithm.
        TekCipher::AesGmac { .. } | TekCipher::Null { .. } => Vec::new(),
    }
}

/// Puts a state in place. `left` is what remains of its life, `df` whether outer headers copy DF.
pub(super) fn add_state(key: &StateKey, state: &State, left: Duration, copy_df: bool) -> XfrmMessage {
    let mut lifetime =
        LifetimeConfig { hard_add_expires_seconds: left.as_secs().max(1), ..LifetimeConfig::default() };
    if let Some(limit) = state.tek.octet_limit() {
        lifetime.soft_byte_limit = limit - limit / 8;
        lifetime.hard_byte_limit = limit;
    }
    let single = state.tek.single;
    let any = match key.destination {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let user_sa_info = UserSaInfo {
        id: Id { daddr: Address::from_ip(&key.destination), spi: key.spi.0, proto: IPPROTO_ESP },
        saddr: Address::from_ip(&state.source.unwrap_or(any)),
        lifetime_cfg: lifetime,
        reqid: state.reqid,
        family: family(key.destination),
        mode: mode(state.tunnel),
        // Several senders under one SPI have no common sequence (RFC 4303 section 2.2).
        replay_window: if single && !state.sends { WINDOW } else { 0 },
        flags: if state.tunnel && !copy_df { XFRM_STATE_NOPMTUDISC } else { 0 },
        ..UserSaInfo::default()
    };
    let mut nlas = algorithms(state);
    if !single {
        nlas.push(XfrmAttrs::ExtraFlags(XFRM_SA_XFLAG_OSEQ_MAY_WRAP));
    }
    XfrmMessage::AddSa(ModifyState { user_sa_info, nlas })
}

/// Removes a state.
pub(super) fn delete_state(key: &StateKey) -> XfrmMessage {
    let id = UserSaId {
        daddr: Address::from_ip(&key.destination),
        spi: key.spi.0,
        family: family(key.destination),
        proto: IPPROTO_ESP,
    };
    XfrmMessage::DeleteSa(DeleteState { user_sa_id: id, nlas: vec![XfrmAttrs::SrcAddr(Address::default())] })
}

/// Wipes the keys in a message that was sent.
pub(super) fn wipe(message: &mut XfrmMessage) {
    let XfrmMessage::AddSa(message) = message else { return };
    for attribute in &mut message.nlas {
        match attribute {
            XfrmAttrs::EncryptionAlg(algorithm) => algorithm.alg_key.zeroize(),
            XfrmAttrs::AuthenticationAlgTrunc(algorithm) => algorithm.alg_key.zeroize(),
            XfrmAttrs::EncryptionAlgAead(algorithm) => algorithm.alg_key.zeroize(),
            _ => {}
        }
    }
}

/// A state the kernel shows or tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) key: StateKey,
    pub(super) reqid: u32,
    pub(super) packets: u64,
    pub(super) octets: u64,
}

impl From<&UserSaInfo> for Shown {
    fn from(info: &UserSaInfo) -> Shown {
        let destination = address(&info.id.daddr, info.family);
        Shown {
            key: StateKey { spi: Spi(info.id.spi), destination },
            reqid: info.reqid,
            packets: info.lifetime_cur.packets,
            octets: info.lifetime_cur.bytes,
        }
    }
}

/// What the kernel asks for: the reqid of the policy's template, source and destination of the packet.
pub(super) fn asked_for(message: &AcquireMessage) -> Option<(u32, IpAddr, IpAddr)> {
    let template = message.nlas.iter().find_map(|attribute| match attribute {
        XfrmAttrs::Template(templates) => templates.first(),
        _ => None,
    })?;
    let flow = flow(&message.acquire.selector);
    Some((template.reqid, flow.source.address, flow.destination.address))
}
