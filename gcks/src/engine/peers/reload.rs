//! Other gateways than before: SAs stay as they are, under the new statement of their gateway.

use gdoi_proto::ids::CookiePair;
use ike::io::Entropy;

use super::super::settings::Settings;
use super::Peers;
use super::gateways::Gateways;

impl Peers {
    /// Names of the gateways.
    pub fn gateway_names(&self) -> impl Iterator<Item = String> + '_ {
        self.gateways.all().map(|gateway| gateway.name.clone())
    }

    /// Takes new gateways and limits: keys, proposals and certificates count for negotiations from now on. What belongs
    /// to a gateway that is gone, or that admits its peer no more, ends.
    pub fn reload(&mut self, settings: &Settings, entropy: &mut dyn Entropy) {
        self.gateways = Gateways::new(&settings.gateways);
        self.approved_only = settings.approved_only;
        self.half_open.set_limits(settings);
        for cookies in self.half_open.where_gateway(|name| self.gateways.named(name).is_none()) {
            self.forget_half_open(cookies);
        }
        let mut gone: Vec<CookiePair> = Vec::new();
        for (cookies, sa) in &mut self.established {
            let (name, address) = (&sa.gateway.name, sa.peer.ip());
            let now = self.gateways.named(name).filter(|gateway| {
                (gateway.address.is_none() || gateway.covers(address))
                    && gateway.admits(&sa.sa.peer_identity, address)
            });
            match now {
                Some(gateway) => sa.gateway = gateway.clone(),
                None => gone.push(*cookies),
            }
        }
        for cookies in gone {
            self.delete(cookies, "its gateway is gone from the configuration", entropy);
        }
    }
}
