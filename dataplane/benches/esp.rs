//! Nanoseconds per packet of the whole way, rules and policies included: parse, decide, seal; parse, look up, open.
//! `cargo bench -p dataplane`; figures are the median of 15 rounds on one thread.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use dataplane::TekInstall;
use dataplane::esp::{Carrier, DfBit, HEADROOM, TAILROOM};
use dataplane::path::{Counters, Shape, When, inbound, outbound};
use dataplane::policy::{Gspd, Rules};
use dataplane::sa::{SEED, Sa};
use gdoi_proto::ids::{SenderId, Spi};
use gdoi_proto::payload::Endpoint;
use gdoi_proto::policy::{
    AddressPreservation, Direction, Encapsulation, SenderIds, TekAuthentication, TekCipher, TekKey, TekPolicy,
};
use gdoi_proto::registry::IdType;
use gdoi_proto::secret::SecretBytes;

const ROUNDS: usize = 15;
const PACKETS: u32 = 20_000;

fn member(cipher: TekCipher) -> Gspd {
    let any = Endpoint { id_type: IdType::Ipv4Subnet, port: 0, data: vec![10, 0, 0, 0, 255, 0, 0, 0] };
    let integrity = cipher.authentication().map(|kind| SecretBytes::new(vec![2; kind.key_octets()]));
    let tek = TekInstall {
        vpn: "v".to_owned(),
        policy: TekPolicy {
            spi: Spi(300),
            ip_protocol: 0,
            source: any.clone(),
            destination: any,
            cipher,
            lifetime_seconds: 3600,
            lifetime_kilobytes: None,
            encapsulation: Encapsulation::Tunnel,
            address_preservation: AddressPreservation::Both,
            direction: Direction::Symmetric,
            delay_window: None,
        },
        key: TekKey { encryption: SecretBytes::new(vec![1; cipher.encryption_octets()]), integrity },
        sender_ids: Some(SenderIds { bits: 16, values: vec![SenderId(7)] }),
        activate_after: Some(Duration::ZERO),
        delay_detection: None,
    };
    let sa = Sa::new(&tek, Duration::ZERO, &[3; SEED]).expect("the TEK is good");
    sa.activate(1).expect("it sends");
    let mut gspd = Gspd::new(Rules::default());
    gspd.install(Arc::new(sa));
    gspd
}

/// UDP of `octets` in all.
fn packet(octets: u16) -> Vec<u8> {
    let [high, low] = octets.to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 1, 0, 5, 10, 2, 0, 9];
    packet.resize(usize::from(octets), 7);
    packet
}

/// Nanoseconds per packet, of the median round.
fn nanoseconds(mut work: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = cpu_time();
            (0..PACKETS).for_each(|_| work());
            (cpu_time() - start).as_secs_f64() * 1e9 / f64::from(PACKETS)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// CPU time of this process: being descheduled does not count.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn main() {
    let sha256 = TekAuthentication::HmacSha256;
    let ciphers = [
        ("aes-128-gcm", TekCipher::AesGcm { key_octets: 16, icv_octets: 16 }),
        ("aes-256-gcm", TekCipher::AesGcm { key_octets: 32, icv_octets: 16 }),
        ("aes-256-cbc hmac-sha-256-128", TekCipher::AesCbc { key_octets: 32, authentication: sha256 }),
    ];
    println!("{:<30} {:>7} {:>9} {:>9}", "ns per packet", "octets", "outbound", "inbound");
    for (name, cipher) in ciphers {
        for octets in [64u16, 1400] {
            let (gspd, inner) = (member(cipher), packet(octets));
            let mut counters = Counters::default();
            let mut buffer = vec![0; HEADROOM + inner.len() + TAILROOM];
            let at = HEADROOM..HEADROOM + inner.len();
            let mut sealed = Vec::new();
            let seal = nanoseconds(|| {
                buffer[at.clone()].copy_from_slice(&inner);
                let when = When::default();
                let passed = outbound(
                    &gspd,
                    &mut counters,
                    when,
                    Shape { df: DfBit::Clear, mtu: 1500, carrier: Carrier::Raw },
                    &mut buffer,
                    at.clone(),
                );
                sealed = black_box(passed).map(|passed| passed.packet).map_or(Vec::new(), |range| {
                    if sealed.is_empty() { buffer[range].to_vec() } else { std::mem::take(&mut sealed) }
                });
            });
            let mut buffer = sealed.clone();
            let open = nanoseconds(|| {
                buffer.copy_from_slice(&sealed);
                let passed = inbound(
                    &gspd,
                    &mut counters,
                    When::default(),
                    Carrier::Raw,
                    &mut buffer,
                    0..sealed.len(),
                );
                assert!(black_box(passed).is_ok());
            });
            println!("{name:<30} {octets:>7} {seal:>9.0} {open:>9.0}");
        }
    }
}
