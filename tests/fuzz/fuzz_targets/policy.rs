//! An SA and a KD as a member reads them: the first octet chooses how they travel, a chain that starts with the SA
//! follows.
#![no_main]

use gdoi_proto::message::{Chain, Rules};
use gdoi_proto::payload::Payload;
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::PayloadType;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| {
    let [choice, octets @ ..] = octets else { return };
    let carriage = if choice & 1 == 0 { Carriage::Pull } else { Carriage::Push };
    let Ok(chain) = Chain::decode(PayloadType::Sa, octets, Rules::GROUP_OPENED) else { return };
    let mut policy = None;
    for located in &chain.payloads {
        match (&located.payload, &policy) {
            (Payload::GdoiSa(sa), None) => policy = GroupPolicy::read(sa, carriage).ok(),
            (Payload::Kd(kd), Some(policy)) => {
                if let Ok(keys) = KeySet::read(kd, policy, carriage) {
                    KeySet::read(&keys.write(policy), policy, carriage).expect("what was written reads");
                }
            }
            _ => {}
        }
    }
});
