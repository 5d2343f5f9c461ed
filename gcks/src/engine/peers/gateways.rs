//! Which gateway statement a peer belongs to: by its address before it proved anything, by its identity afterwards.

use std::net::IpAddr;
use std::sync::Arc;

use gdoi_proto::payload::Identification;
use ike::phase1::Mode;
use ike::sa::IkeSa;

use super::super::settings::GatewaySettings;
use super::Peers;

impl Peers {
    /// The gateway statement of that name.
    pub(in super::super) fn gateway_named(&self, name: &str) -> Option<Arc<GatewaySettings>> {
        self.gateways.iter().find(|gateway| gateway.name == name).cloned()
    }

    /// The first gateway statement that admits an identity, wherever it is.
    pub(in super::super) fn gateway_admitting(
        &self,
        identity: &Identification,
    ) -> Option<Arc<GatewaySettings>> {
        let nowhere = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
        self.gateways.iter().find(|gateway| gateway.admits(identity, nowhere)).cloned()
    }

    /// The gateway statement of an established SA.
    pub(in super::super) fn gateway_of(&self, sa: &IkeSa, peer: IpAddr) -> Option<Arc<GatewaySettings>> {
        self.gateway_for(peer).map(|known| self.gateway_proved(&known, sa, peer))
    }

    /// The gateway statement a first message from an address is answered by.
    pub(in super::super) fn gateway_for(&self, address: IpAddr) -> Option<Arc<GatewaySettings>> {
        self.gateways
            .iter()
            .filter(|gateway| gateway.covers(address))
            .max_by_key(|gateway| gateway.address.map_or(0, |(_, length)| length))
            .or(self.dynamic.as_ref())
            .cloned()
    }

    /// The gateway of aggressive mode for a peer that claims `identity`: the one of its address, else a dynamic one.
    pub(super) fn gateway_claimed(
        &self,
        identity: &Identification,
        address: IpAddr,
    ) -> Option<Arc<GatewaySettings>> {
        let aggressive = |gateway: &&Arc<GatewaySettings>| gateway.policy.mode == Mode::Aggressive;
        let here = self.gateways.iter().filter(|gateway| gateway.covers(address));
        let here = here.max_by_key(|gateway| gateway.address.map_or(0, |(_, length)| length));
        here.filter(aggressive)
            .filter(|gateway| gateway.admits(identity, address))
            .or_else(|| {
                let mut dynamic = self.gateways.iter().filter(|gateway| gateway.address.is_none());
                dynamic.find(|gateway| aggressive(gateway) && gateway.admits(identity, address))
            })
            .cloned()
    }

    /// The statement an authenticated peer belongs to: of the dynamic ones, the one that names it.
    pub(super) fn gateway_proved(
        &self,
        known: &Arc<GatewaySettings>,
        sa: &IkeSa,
        peer: IpAddr,
    ) -> Arc<GatewaySettings> {
        if !self.dynamic.as_ref().is_some_and(|joint| Arc::ptr_eq(joint, known)) {
            return known.clone();
        }
        let mut dynamic = self.gateways.iter().filter(|gateway| gateway.address.is_none());
        let named = dynamic
            .find(|gateway| gateway.policy.mode == Mode::Main && gateway.admits(&sa.peer_identity, peer));
        named.unwrap_or(known).clone()
    }
}

/// All `dynamic` gateways of main mode as one that admits whom any of them admits. Their configuration makes sure that
/// they share everything else.
pub(super) fn joint(gateways: &[GatewaySettings]) -> Option<GatewaySettings> {
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
