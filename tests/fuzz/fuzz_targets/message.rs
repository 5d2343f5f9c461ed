//! A clear datagram: what decodes encodes to something that decodes the same.
#![no_main]

use gdoi_proto::message::{Message, Rules};
use gdoi_proto::pretty;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|datagram: &[u8]| {
    let _ = pretty::one_line(datagram);
    if let Ok(message) = Message::decode(datagram, Rules::PHASE1_CLEAR) {
        let again = Message::decode(&message.encode(), Rules::PHASE1_CLEAR).expect("what was encoded decodes");
        assert_eq!(again.payloads, message.payloads);
    }
});
