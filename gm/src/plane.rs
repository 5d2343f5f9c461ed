//! The data plane of the daemon: made from the configuration, shown in snapshots.

use std::collections::BTreeMap;
use std::time::Duration;

use config::{Backend, Gm};
use ctl::event::Event;
use ctl::traffic::{DirectionView, SaTrafficView, SkewView, TrafficView};
use dataplane::esp::{Carrier, DfBit};
use dataplane::path::{CAUSES, Counters};
use dataplane::policy::{Rule, Rules};
use dataplane::selector::Addresses;
use dataplane::tun::{HOST, Pair, Random, TunPlane, TunSettings, VpnSettings, Zone, steer};
use dataplane::xfrm::{self, XfrmPlane};
use dataplane::{DataPlane, DataPlaneError, Fault, Tell, Traffic};
use ike::io::Instant;

use crate::engine::io::Input;

/// How often traffic is looked at.
pub const LOOK: Duration = Duration::from_secs(5);
/// Sending without receiving for so long is worth a question.
const ONE_WAY: Duration = Duration::from_secs(60);

/// What the backend is made with; none when the configuration steers no traffic.
pub fn settings(config: &Gm) -> Option<TunSettings> {
    if config.backend == Backend::None || config.policies.is_empty() {
        return None;
    }
    let zones =
        config.zones.iter().map(|zone| Zone { name: zone.name.clone(), interfaces: zone.interfaces.clone() });
    let zones = zones.chain([Zone { name: HOST.to_owned(), interfaces: Vec::new() }]);
    let pairs = config.policies.iter().map(|policy| Pair {
        from: policy.from_zone.clone(),
        to: policy.to_zone.clone(),
        vpn: policy.vpn.clone(),
    });
    let pairs: Vec<Pair> = pairs.collect();
    let vpns = config.vpns.iter().filter(|vpn| pairs.iter().any(|pair| pair.vpn == vpn.name));
    let vpns = vpns.map(|vpn| VpnSettings {
        name: vpn.name.clone(),
        tunnel_mtu: vpn.tunnel_mtu,
        df: match vpn.df_bit {
            config::DfBit::Clear => DfBit::Clear,
            config::DfBit::Set => DfBit::Set,
            config::DfBit::Copy => DfBit::Copy,
        },
        carrier: match vpn.esp_encapsulation {
            config::EspEncapsulation::Raw => Carrier::Raw,
            config::EspEncapsulation::Udp => Carrier::Udp,
        },
        rules: rules(config, vpn),
    });
    Some(TunSettings { zones: zones.collect(), vpns: vpns.collect(), pairs })
}

/// The rules of a VPN.
pub fn rules(config: &Gm, vpn: &config::Vpn) -> Rules {
    Rules {
        exclude: vpn.exclude.iter().map(rule).collect(),
        fail_open: vpn.fail_open.iter().map(rule).collect(),
        own: config.gateways.iter().filter_map(|gateway| gateway.local_address).collect(),
    }
}

fn rule(rule: &config::Rule) -> Rule {
    let addresses = |prefix: &config::AddressPrefix| Addresses::prefix(prefix.address, prefix.prefix_len);
    Rule {
        name: rule.name.clone(),
        source: addresses(&rule.source),
        destination: addresses(&rule.destination),
        protocol: rule.protocol,
        port: rule.port,
    }
}

/// The pairs for people: `lan -> wan: vpn`.
pub fn describe(settings: &TunSettings) -> Vec<String> {
    settings.pairs.iter().map(|pair| format!("{} -> {}: {}", pair.from, pair.to, pair.vpn)).collect()
}

/// Puts the fail-close steering in place without a data plane: nothing passes between the zones. What it steers, for
/// people.
///
/// # Errors
/// Why the system refuses.
pub fn hold(config: &Gm) -> Result<Vec<String>, DataPlaneError> {
    let Some(settings) = settings(config) else { return Ok(Vec::new()) };
    match config.backend {
        Backend::Xfrm => xfrm::hold(&settings)?,
        Backend::Tun | Backend::None => steer::hold(&settings.layout()?)?,
    }
    Ok(describe(&settings))
}

/// Removes every trace of the steering.
///
/// # Errors
/// While a member is running, whose traffic would pass in clear; why the system refuses.
pub fn release() -> Result<(), DataPlaneError> {
    if steer::is_running()? || xfrm::is_running() {
        let reason = "a data plane is running and its traffic would pass in clear: stop gmd first";
        return Err(DataPlaneError(reason.to_owned()));
    }
    steer::release()?;
    xfrm::release()
}

/// Starts the backend. What the other backend left behind goes when this one holds everything.
///
/// # Errors
/// Why it cannot be started; then what was steered stays closed.
pub fn start(
    config: &Gm,
    settings: TunSettings,
    random: Random,
    tell: Tell,
) -> Result<Box<dyn DataPlane>, DataPlaneError> {
    if config.backend == Backend::Xfrm {
        let plane = XfrmPlane::start(&settings, tell)?;
        steer::remove_rules()?;
        return Ok(Box::new(plane));
    }
    let plane = TunPlane::start(settings, random, tell)?;
    xfrm::clear_policies()?;
    Ok(Box::new(plane))
}

/// What the kernel backend does differently, for who starts or checks it.
pub fn notes(config: &Gm) -> Vec<String> {
    if config.backend != Backend::Xfrm {
        return Vec::new();
    }
    let mut notes = vec![
        "backend \"xfrm\": TEKs with AES-GCM and several senders are refused (the kernel makes IVs without Sender-IDs), \
         and so are groups with anti-replay-time-window"
            .to_owned(),
    ];
    if config.vpns.iter().any(|vpn| vpn.recovery_probe) {
        notes.push(
            "backend \"xfrm\": recovery-probe hears of one-way traffic, not of unknown SPIs".to_owned(),
        );
    }
    notes
}

/// What the kernel must be told by the operator before packets are routed at all; empty when all is well.
pub fn doubts() -> Vec<String> {
    let switches = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];
    let off = |path: &&str| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
    let warn = |path| format!("{path} is 0: this machine routes no traffic of that family between zones");
    switches.into_iter().filter(off).map(warn).collect()
}

/// Traffic as a snapshot shows it.
pub fn view(traffic: &Traffic) -> TrafficView {
    TrafficView {
        outbound: direction(&traffic.outbound),
        inbound: direction(&traffic.inbound),
        sas: traffic
            .sas
            .iter()
            .map(|(spi, counters)| SaTrafficView {
                spi: spi.to_string(),
                packets_out: counters.packets_out,
                octets_out: counters.octets_out,
                packets_in: counters.packets_in,
                octets_in: counters.octets_in,
            })
            .collect(),
        skews: traffic
            .inbound
            .skews
            .iter()
            .map(|(sender, skew)| SkewView {
                sender: sender.to_string(),
                last_microseconds: skew.last,
                least_microseconds: skew.least,
                most_microseconds: skew.most,
                refused: skew.refused,
            })
            .collect(),
    }
}

fn direction(counters: &Counters) -> DirectionView {
    let [clear_control, clear_exclude, clear_fail_open] = counters.clear;
    let dropped = CAUSES
        .iter()
        .map(|cause| ((*cause).to_owned(), counters.dropped.get(cause).copied().unwrap_or_default()));
    DirectionView {
        protected: counters.protected,
        clear_control,
        clear_exclude,
        clear_fail_open,
        fragmented: counters.fragmented,
        not_sent: counters.not_sent,
        dropped: dropped.collect(),
    }
}

/// What an operator should see of a fault; registrations that follow from it have events of their own.
pub fn event(fault: &Fault) -> Option<Event> {
    match fault {
        Fault::UnknownSpi { vpn, spi, source } => {
            Some(Event::UnknownSpi { vpn: vpn.clone(), spi: spi.to_string(), source: source.to_string() })
        }
        Fault::Spent { vpn, spi } => Some(Event::TekSpent { vpn: vpn.clone(), spi: spi.to_string() }),
        Fault::SoftLimit { .. } => None,
    }
}

/// What the engine is told of a fault.
pub fn input(fault: Fault) -> Input {
    match fault {
        Fault::UnknownSpi { vpn, spi, .. } => Input::UnknownSpi { vpn: Some(vpn), spi },
        Fault::SoftLimit { vpn, spi } => Input::SoftLimit { vpn, spi },
        Fault::Spent { vpn, spi } => Input::Spent { vpn, spi },
    }
}

/// Notices traffic that goes out under the keys of a VPN while nothing comes back under them.
#[derive(Debug, Default)]
pub struct Observer(BTreeMap<String, Watched>);

#[derive(Debug, Default)]
struct Watched {
    outbound: u64,
    inbound: u64,
    /// Since when packets go out and none come in.
    since: Option<Instant>,
    told: bool,
}

impl Observer {
    /// A look at the numbers of packets sealed and opened so far: what the engine should be told.
    pub fn look(&mut self, at: Instant, vpn: &str, (outbound, inbound): (u64, u64)) -> Option<Input> {
        let watched = self.0.entry(vpn.to_owned()).or_default();
        let (went, came) = (outbound > watched.outbound, inbound > watched.inbound);
        (watched.outbound, watched.inbound) = (outbound, inbound);
        if came {
            watched.since = None;
            return std::mem::take(&mut watched.told).then(|| Input::InboundAgain { vpn: vpn.to_owned() });
        }
        if !went {
            return None;
        }
        let since = *watched.since.get_or_insert(at);
        if watched.told || at < since + ONE_WAY {
            return None;
        }
        watched.told = true;
        Some(Input::OutboundWithoutInbound { vpn: vpn.to_owned() })
    }
}

/// Carries faults from any thread to the loop of the daemon; what it cannot take is only counted.
pub fn teller(faults: tokio::sync::mpsc::Sender<Fault>) -> Tell {
    Box::new(move |fault| {
        let _ = faults.try_send(fault);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_that_goes_one_way_for_a_minute_is_told_once_and_so_is_its_end() {
        let mut observer = Observer::default();
        let mut told = Vec::new();
        // Packets go out all the time; some come in until second 20 and again at 200.
        for second in (0..300).step_by(5) {
            let inbound = second.min(20) + u64::from(second >= 200);
            let at = Instant(0) + Duration::from_secs(second);
            match observer.look(at, "v", (second + 1, inbound)) {
                Some(Input::OutboundWithoutInbound { vpn }) => told.push((second, "one way", vpn)),
                Some(Input::InboundAgain { vpn }) => told.push((second, "again", vpn)),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        let v = || "v".to_owned();
        assert_eq!(told, [(85, "one way", v()), (200, "again", v()), (265, "one way", v())]);
    }

    #[test]
    fn a_member_that_sends_nothing_is_left_alone() {
        let mut observer = Observer::default();
        for second in 0..300 {
            let at = Instant(0) + Duration::from_secs(second);
            assert!(observer.look(at, "v", (7, 0)).is_none(), "second {second}");
        }
    }
}
