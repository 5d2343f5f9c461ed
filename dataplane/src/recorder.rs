//! The backend that only remembers what it was told: for tests, and for a member that carries no traffic.

use std::collections::BTreeMap;

use gdoi_proto::ids::Spi;
use gdoi_proto::policy::SenderIds;

use crate::{DataPlane, DataPlaneError, TekInstall};

/// Remembers TEKs and does nothing with them.
#[derive(Debug, Default)]
pub struct Recorder {
    teks: BTreeMap<(String, Spi), Recorded>,
    activations: u64,
}

/// One TEK as remembered.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// What was asked for.
    pub install: TekInstall,
    /// When it was activated, as a count of all activations: the largest of a selector encrypts.
    pub activated: Option<u64>,
}

impl Recorder {
    /// An empty one.
    pub fn new() -> Recorder {
        Recorder::default()
    }

    /// The TEK of a VPN.
    pub fn tek(&self, vpn: &str, spi: Spi) -> Option<&Recorded> {
        self.teks.get(&(vpn.to_owned(), spi))
    }

    /// The TEKs of a VPN in the order of their SPIs.
    pub fn teks<'a>(&'a self, vpn: &str) -> impl Iterator<Item = &'a Recorded> + use<'a> {
        let vpn = vpn.to_owned();
        self.teks.values().filter(move |recorded| recorded.install.vpn == vpn)
    }

    /// The TEK of a VPN that encrypts: the one activated last.
    pub fn sending(&self, vpn: &str) -> Option<&Recorded> {
        self.teks(vpn)
            .filter(|recorded| recorded.activated.is_some())
            .max_by_key(|recorded| recorded.activated)
    }
}

impl DataPlane for Recorder {
    fn name(&self) -> &'static str {
        "none"
    }

    fn install(&mut self, tek: TekInstall) -> Result<(), DataPlaneError> {
        self.teks.insert((tek.vpn.clone(), tek.spi()), Recorded { install: tek, activated: None });
        Ok(())
    }

    fn activate(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        let recorded = self
            .teks
            .get_mut(&(vpn.to_owned(), spi))
            .ok_or_else(|| DataPlaneError(format!("{vpn}: TEK {spi} is not installed")))?;
        if !recorded.install.may_send() {
            return Err(DataPlaneError(format!("{vpn}: TEK {spi} is not for sending")));
        }
        self.activations += 1;
        recorded.activated = Some(self.activations);
        Ok(())
    }

    fn set_sender_ids(&mut self, vpn: &str, spi: Spi, sender_ids: SenderIds) -> Result<(), DataPlaneError> {
        let recorded = self
            .teks
            .get_mut(&(vpn.to_owned(), spi))
            .ok_or_else(|| DataPlaneError(format!("{vpn}: TEK {spi} is not installed")))?;
        recorded.install.sender_ids = Some(sender_ids);
        Ok(())
    }

    fn remove(&mut self, vpn: &str, spi: Spi) -> Result<(), DataPlaneError> {
        self.teks.remove(&(vpn.to_owned(), spi));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gdoi_proto::payload::Endpoint;
    use gdoi_proto::policy::{AddressPreservation, Direction, Encapsulation, TekCipher, TekKey, TekPolicy};
    use gdoi_proto::registry::IdType;
    use gdoi_proto::secret::SecretBytes;

    use super::*;

    fn tek(spi: u32, activate_after: Option<Duration>) -> TekInstall {
        let any = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![0; 8] };
        TekInstall {
            vpn: "v".to_owned(),
            policy: TekPolicy {
                spi: Spi(spi),
                ip_protocol: 0,
                source: any.clone(),
                destination: any,
                cipher: TekCipher::AesGcm { key_octets: 16, icv_octets: 16 },
                lifetime_seconds: 3600,
                lifetime_kilobytes: None,
                encapsulation: Encapsulation::Tunnel,
                address_preservation: AddressPreservation::Both,
                direction: Direction::Symmetric,
                delay_window: None,
            },
            key: TekKey { encryption: SecretBytes::copy(&[0x5a; 20]), integrity: None },
            sender_ids: None,
            activate_after,
            delay_detection: None,
        }
    }

    #[test]
    fn the_tek_activated_last_encrypts_until_it_is_removed() {
        let mut recorder = Recorder::new();
        for spi in [256, 257] {
            recorder.install(tek(spi, Some(Duration::ZERO))).unwrap();
            recorder.activate("v", Spi(spi)).unwrap();
        }
        assert_eq!(recorder.sending("v").map(|tek| tek.install.spi()), Some(Spi(257)));
        recorder.remove("v", Spi(257)).unwrap();
        recorder.remove("v", Spi(257)).unwrap();
        assert_eq!(recorder.sending("v").map(|tek| tek.install.spi()), Some(Spi(256)));
    }

    #[test]
    fn a_receive_only_tek_cannot_be_activated() {
        let mut recorder = Recorder::new();
        recorder.install(tek(256, None)).unwrap();
        assert!(recorder.activate("v", Spi(256)).is_err());
        assert!(recorder.activate("v", Spi(300)).is_err());
    }

    #[test]
    fn new_sender_ids_replace_those_of_an_installed_tek() {
        let mut recorder = Recorder::new();
        recorder.install(tek(256, Some(Duration::ZERO))).unwrap();
        let sids = SenderIds { bits: 16, values: vec![gdoi_proto::ids::SenderId(9)] };
        recorder.set_sender_ids("v", Spi(256), sids.clone()).unwrap();
        assert_eq!(recorder.tek("v", Spi(256)).unwrap().install.sender_ids, Some(sids.clone()));
        assert!(recorder.set_sender_ids("v", Spi(257), sids).is_err());
    }

    #[test]
    fn debug_shows_no_key() {
        let shown = format!("{:?}", tek(256, None));
        assert!(!shown.contains("90, 90") && shown.contains("SecretBytes(20 octets)"), "{shown}");
    }
}
