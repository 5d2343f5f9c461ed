//! A decrypted group message: the first octet is the type of the first payload.
#![no_main]

use gdoi_proto::message::{Chain, Rules, encode_chain};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::PayloadType;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| {
    let [first, octets @ ..] = octets else { return };
    let Ok(chain) = Chain::decode(PayloadType::from_number(*first), octets, Rules::GROUP_OPENED) else { return };
    let payloads: Vec<Payload> = chain.payloads.into_iter().map(|located| located.payload).collect();
    let (first, again) = encode_chain(&payloads);
    let chain = Chain::decode(first, &again, Rules::GROUP_OPENED).expect("what was encoded decodes");
    assert!(payloads.iter().eq(chain.payloads.iter().map(|located| &located.payload)));
});
