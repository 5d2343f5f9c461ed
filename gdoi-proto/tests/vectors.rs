//! Every octet string of the vectors: conforming ones go both ways, malformed ones are refused, none panics.

use gdoi_proto::header::Header;
use gdoi_proto::message::{Chain, Domain, Message, Rules, Trailing, encode_chain};
use gdoi_proto::payload::{GdoiSa, KeyDownload, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet, read_sender_id_request};
use gdoi_proto::pretty;
use gdoi_proto::registry::{ExchangeType, PayloadType};
use serde_json::Value;

const GROUP_CLEAR: Rules = Rules { trailing: Trailing::Alignment, ..Rules::GROUP_OPENED };

fn vectors(name: &str) -> Value {
    let path = format!("{}/../tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

fn octets(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Decodes a chain, checks that it encodes to the same octets and that every shorter one is refused.
fn both_ways(first: PayloadType, octets: &[u8], rules: Rules) -> Vec<Payload> {
    let chain = Chain::decode(first, octets, rules)
        .unwrap_or_else(|error| panic!("{error}: {}", hex::encode(octets)));
    assert_eq!(chain.end, octets.len());
    let payloads: Vec<Payload> = chain.payloads.iter().map(|located| located.payload.clone()).collect();
    assert_eq!(encode_chain(&payloads), (first, octets.to_vec()));
    for located in &chain.payloads {
        assert!(located.start < located.end && located.end <= octets.len());
    }
    for end in 0..octets.len() {
        assert!(Chain::decode(first, &octets[..end], rules).is_err(), "{end} of {}", hex::encode(octets));
    }
    payloads
}

fn sa(payloads: &[Payload]) -> Option<&GdoiSa> {
    payloads.iter().find_map(|payload| match payload {
        Payload::GdoiSa(sa) => Some(sa),
        _ => None,
    })
}

fn kd(payloads: &[Payload]) -> Option<&KeyDownload> {
    payloads.iter().find_map(|payload| match payload {
        Payload::Kd(kd) => Some(kd),
        _ => None,
    })
}

/// The four messages of a PULL, hash payload first.
fn pull(case: &Value) -> Vec<Vec<Payload>> {
    let messages = case["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| {
            let header = Header::decode(&octets(&message["message"])).unwrap();
            assert_eq!((header.exchange, header.next), (ExchangeType::GroupkeyPull, PayloadType::Hash));
            let payloads = both_ways(PayloadType::Hash, &octets(&message["plaintext"]), Rules::GROUP_OPENED);
            let pad = usize::try_from(message["pad_len"].as_u64().unwrap()).unwrap();
            let mut padded = octets(&message["plaintext"]);
            padded.resize(padded.len() + pad, 0);
            let chain = Chain::decode(PayloadType::Hash, &padded, Rules::GROUP_OPENED).unwrap();
            assert_eq!(chain.end + pad, padded.len());
            payloads
        })
        .collect()
}

#[test]
fn pulls_go_both_ways_and_their_keys_fit_their_policy() {
    for case in vectors("gdoi-pull")["cases"].as_array().unwrap() {
        let messages = pull(case);
        let policy = GroupPolicy::read(sa(&messages[1]).unwrap(), Carriage::Pull).unwrap();
        let kd = kd(&messages[3]).unwrap();
        let keys = KeySet::read(kd, &policy, Carriage::Pull).unwrap();
        assert_eq!(keys.write(&policy), *kd);
        assert_eq!(keys.teks.len(), policy.teks.len());
        let gap = messages[2].iter().find_map(|payload| match payload {
            Payload::Gap(gap) => Some(gap),
            _ => None,
        });
        let asked = usize::from(read_sender_id_request(gap).unwrap());
        if let Some(sender_ids) = &keys.sender_ids {
            assert_eq!(sender_ids.values.len(), asked);
        }
        if let (Some(kek), Some(key)) = (&policy.kek, &keys.kek) {
            assert_eq!(kek.cipher.key_octets_for(key.iv.len() + key.key.len()), Some(key.key.len()));
        }
    }
    for case in vectors("gdoi-iec61850")["cases"].as_array().unwrap() {
        let messages = pull(case);
        assert_eq!(sa(&messages[1]).unwrap().teks.len(), 2);
        assert!(GroupPolicy::read(sa(&messages[1]).unwrap(), Carriage::Pull).is_err());
    }
}

#[test]
fn pushes_go_both_ways_and_their_keys_fit_their_policy() {
    let push = vectors("gdoi-push");
    let lkh = vectors("gdoi-lkh");
    for case in push["cases"].as_array().unwrap().iter().chain([&lkh["push"]]) {
        let payloads = both_ways(PayloadType::Seq, &octets(&case["plaintext"]), Rules::GROUP_OPENED);
        let (Some(sa), Some(kd)) = (sa(&payloads), kd(&payloads)) else {
            assert!(payloads.iter().any(|payload| matches!(payload, Payload::Delete(_))));
            continue;
        };
        let policy = GroupPolicy::read(sa, Carriage::Push).unwrap();
        let keys = KeySet::read(kd, &policy, Carriage::Push).unwrap();
        assert_eq!(keys.write(&policy), *kd, "{}", case["name"]);
        if case["name"] == "push-lkh-exclude-12" {
            assert!(policy.kek.is_some_and(|kek| kek.lkh) && keys.kek.is_none());
            assert_eq!(keys.lkh_updates.len(), 3);
        }
    }
}

#[test]
fn download_arrays_give_the_kek_of_every_leaf() {
    let lkh = vectors("gdoi-lkh");
    let messages = pull(&vectors("gdoi-pull")["cases"][0]);
    let mut policy = GroupPolicy::read(sa(&messages[1]).unwrap(), Carriage::Pull).unwrap();
    policy.teks.clear();
    let root = text(&lkh["node_key_data_generation_1"]["1"]);
    for (leaf, body) in lkh["download_kd_payload_body_by_leaf"].as_object().unwrap() {
        let body = octets(body);
        let mut payload = vec![0, 0];
        payload.extend(u16::try_from(body.len() + 4).unwrap().to_be_bytes());
        payload.extend(body);
        let payloads = both_ways(PayloadType::Kd, &payload, Rules::GROUP_OPENED);
        let kd = kd(&payloads).unwrap();
        let keys = KeySet::read(kd, &policy, Carriage::Pull).unwrap();
        let kek = keys.kek.as_ref().unwrap();
        assert_eq!(hex::encode([&kek.iv, kek.key.expose()].concat()), root);
        let download = keys.lkh_download.as_ref().unwrap();
        assert_eq!(download.keys.first().unwrap().id.to_string(), *leaf);
        assert_eq!(keys.write(&policy), *kd);
        assert!(KeySet::read(kd, &policy, Carriage::Push).is_err());
    }
}

#[test]
fn acknowledgements_go_both_ways() {
    for case in vectors("gdoi-ack")["cases"].as_array().unwrap() {
        let datagram = octets(&case["message"]);
        let message = Message::decode(&datagram, GROUP_CLEAR).unwrap();
        assert_eq!(message.header.exchange, ExchangeType::GroupkeyPushAck);
        assert!(matches!(message.payloads.as_slice(), [Payload::Hash(_), Payload::Seq(_), Payload::Id(_)]));
        assert_eq!(message.encode(), datagram);
    }
}

/// What the decoder leaves to the state machine: exchange types, message IDs, values of phase 1 and of the group.
const NOT_OURS: &[&str] = &[
    "unknown exchange type 239",
    "phase 1 with message ID 1",
    "DOI 3",
    "GDOI situation neither 0 nor 1",
    "protocol ID 3 in phase 1",
    "KE one octet short for group 14",
    "KE value 0",
    "KE value 1",
    "KE value p-1",
    "KE value p",
];

#[test]
fn malformed_phase_1_messages_are_refused() {
    let rejects = vectors("phase1-parser-rejects");
    for case in rejects["cases"].as_array().unwrap() {
        let reason = text(&case["reason"]);
        let datagram = octets(&case["packet"]);
        let result = Message::decode(&datagram, Rules::PHASE1_CLEAR);
        assert_eq!(result.is_ok(), NOT_OURS.contains(&reason), "{reason}: {result:?}");
        assert!(!pretty::one_line(&datagram).is_empty());
    }
}

#[test]
fn unusual_phase_1_messages_are_accepted_and_go_both_ways() {
    let accepts = vectors("phase1-parser-accepts");
    for case in accepts["cases"].as_array().unwrap() {
        let reason = text(&case["reason"]);
        let datagram = octets(&case["packet"]);
        let message =
            Message::decode(&datagram, Rules::PHASE1_CLEAR).unwrap_or_else(|e| panic!("{reason}: {e}"));
        // Alignment octets are not part of a message.
        if !reason.contains("alignment") {
            assert_eq!(message.encode(), datagram, "{reason}");
        }
        for end in 0..datagram.len() {
            let mut cut = datagram[..end].to_vec();
            assert!(Message::decode(&cut, Rules::PHASE1_CLEAR).is_err());
            if let Some(length) = cut.get_mut(24..28) {
                length.copy_from_slice(&u32::try_from(end).unwrap().to_be_bytes());
            }
            // Only a cut within the alignment leaves a whole message.
            assert_eq!(
                Message::decode(&cut, Rules::PHASE1_CLEAR).is_ok(),
                end + 3 >= datagram.len() && reason.contains("alignment")
            );
        }
    }
}

#[test]
fn clear_messages_of_phase_1_vectors_go_both_ways() {
    let mut count = 0;
    let directory = format!("{}/../tests/data/vectors", env!("CARGO_MANIFEST_DIR"));
    for entry in std::fs::read_dir(directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.starts_with("phase1-") || name.contains("parser") {
            continue;
        }
        each_string(&vectors(name.trim_end_matches(".json")), &mut |text| {
            let Ok(octets) = hex::decode(text) else { return };
            if let Ok(header) = Header::decode(&octets)
                && !header.flags.encrypted()
            {
                let message =
                    Message::decode(&octets, Rules::PHASE1_CLEAR).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(message.encode(), octets);
                count += 1;
            }
        });
    }
    assert!(count >= 20, "{count} clear messages found");
}

fn each_string(value: &Value, visit: &mut impl FnMut(&str)) {
    match value {
        Value::String(text) => visit(text),
        Value::Array(items) => items.iter().for_each(|item| each_string(item, visit)),
        Value::Object(fields) => fields.values().for_each(|field| each_string(field, visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn forbidden_group_structures_are_refused() {
    let messages = pull(&vectors("gdoi-pull")["cases"][0]);
    let pull_policy = GroupPolicy::read(sa(&messages[1]).unwrap(), Carriage::Pull).unwrap();
    for case in vectors("gdoi-rejects")["cases"].as_array().unwrap() {
        let name = text(&case["name"]);
        let body = octets(&case["body"]);
        let kind = PayloadType::from_number(u8::try_from(case["payload"].as_u64().unwrap()).unwrap());
        let carriage = if case["where"] == "push" { Carriage::Push } else { Carriage::Pull };
        let mut payload = vec![0, 0];
        payload.extend(u16::try_from(body.len() + 4).unwrap().to_be_bytes());
        payload.extend(&body);
        let Ok(chain) = Chain::decode(kind, &payload, Rules::GROUP_OPENED) else { continue };
        match &chain.payloads[0].payload {
            Payload::GdoiSa(sa) => assert!(GroupPolicy::read(sa, carriage).is_err(), "{name}"),
            Payload::Kd(kd) => {
                let mut policy = pull_policy.clone();
                if carriage == Carriage::Push {
                    policy.kek = None;
                }
                // Another packet must not be what is missed.
                let error = KeySet::read(kd, &policy, carriage).expect_err(name);
                assert!(!error.to_string().contains("packet is required"), "{name}: {error}");
            }
            other => panic!("{name} accepted as {other:?}"),
        }
    }
}

#[test]
fn domain_decides_what_may_stand_in_a_chain() {
    let seq = [0, 0, 0, 8, 0, 0, 0, 1];
    assert!(Chain::decode(PayloadType::Seq, &seq, Rules::GROUP_OPENED).is_ok());
    assert!(Chain::decode(PayloadType::Seq, &seq, Rules::PHASE1_OPENED).is_err());
    for kind in [2, 3, 14, 15, 16, 19, 23, 130, 255] {
        let kind = PayloadType::from_number(kind);
        assert!(Chain::decode(kind, &seq, Rules { domain: Domain::Group, ..GROUP_CLEAR }).is_err(), "{kind}");
    }
    assert!(Chain::decode(PayloadType::None, &[], GROUP_CLEAR).is_err());
}

#[test]
fn payloads_are_limited_in_number() {
    let chain = |kind: u8, count: usize| {
        let mut octets = Vec::new();
        for index in 0..count {
            octets.extend([if index + 1 < count { kind } else { 0 }, 0, 0, 4]);
        }
        Chain::decode(PayloadType::from_number(kind), &octets, Rules::PHASE1_CLEAR).is_ok()
    };
    assert!(chain(13, 40) && !chain(13, 41));
    assert!(chain(20, 8) && !chain(20, 9));
    assert!(chain(4, 1) && !chain(4, 2));
    assert!(chain(8, 1) && !chain(8, 2));
}

#[test]
fn trailing_octets_follow_the_rule() {
    let with = |tail: &[u8], rules| {
        let octets = [&[0, 0, 0, 4], tail].concat();
        Chain::decode(PayloadType::VendorId, &octets, rules).map(|chain| chain.end)
    };
    assert_eq!(with(&[0; 3], Rules::PHASE1_CLEAR), Ok(4));
    assert!(with(&[0; 4], Rules::PHASE1_CLEAR).is_err());
    assert!(with(&[1], Rules::PHASE1_CLEAR).is_err());
    assert_eq!(with(&[9; 255], Rules::PHASE1_OPENED), Ok(4));
    assert!(with(&[9; 256], Rules::PHASE1_OPENED).is_err());
}
