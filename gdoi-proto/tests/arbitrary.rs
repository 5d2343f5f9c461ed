//! Arbitrary and damaged octets never panic, and what decodes survives a second round.

use gdoi_proto::header::Header;
use gdoi_proto::message::{Chain, Dialect, Domain, Message, Rules, Trailing, encode_chain};
use gdoi_proto::payload::{LkhDownload, LkhUpdate, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet, read_sender_id_request};
use gdoi_proto::pretty;
use gdoi_proto::registry::PayloadType;
use proptest::prelude::*;

fn any_rules() -> impl Strategy<Value = Rules> {
    (any::<[bool; 5]>()).prop_map(|[group, padding, sak, ids, offers]| Rules {
        domain: if group { Domain::Group } else { Domain::Phase1 },
        trailing: if padding { Trailing::Padding } else { Trailing::Alignment },
        dialect: Dialect {
            sak_6_octets: sak,
            id_length_2_octets: ids,
            large_offers: offers,
            ..Dialect::STRICT
        },
    })
}

/// The plaintexts of PULL and PUSH vectors, with the type of their first payload.
fn plaintexts() -> Vec<(PayloadType, Vec<u8>)> {
    let mut out = Vec::new();
    for (name, first) in [
        ("gdoi-pull", PayloadType::Hash),
        ("gdoi-iec61850", PayloadType::Hash),
        ("gdoi-push", PayloadType::Seq),
    ] {
        let path = format!("{}/../tests/data/vectors/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let vectors: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let messages = case["messages"].as_array().map_or(std::slice::from_ref(case), Vec::as_slice);
            for message in messages {
                out.push((first, hex::decode(message["plaintext"].as_str().unwrap()).unwrap()));
            }
        }
    }
    out
}

/// Reads everything that can be read from a chain; what decodes must encode to something that decodes the same.
fn read_all(first: PayloadType, octets: &[u8], rules: Rules) {
    let Ok(chain) = Chain::decode(first, octets, rules) else { return };
    let payloads: Vec<Payload> = chain.payloads.into_iter().map(|located| located.payload).collect();
    if !rules.dialect.id_length_2_octets {
        let (first_again, again) = encode_chain(&payloads);
        assert_eq!(first_again, first);
        let chain = Chain::decode(first, &again, rules).expect("what was encoded decodes");
        assert!(payloads.iter().eq(chain.payloads.iter().map(|located| &located.payload)));
    }
    let header = [1u8, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 2, 0, 0, 0, 0, 0, 0, 0, 0, 28];
    let _ = pretty::tree(&Header::decode(&header).unwrap(), &payloads);
    for carriage in [Carriage::Pull, Carriage::Push] {
        read_policies(&payloads, carriage);
    }
}

fn read_policies(payloads: &[Payload], carriage: Carriage) {
    let empty = GroupPolicy { kek: None, activation_delay: 0, deactivation_delay: None, teks: vec![] };
    let mut policy = empty;
    for payload in payloads {
        match payload {
            Payload::GdoiSa(sa) => {
                if let Ok(read) = GroupPolicy::read(sa, carriage) {
                    assert_eq!(GroupPolicy::read(&read.write(carriage), carriage).as_ref(), Ok(&read));
                    policy = read;
                }
            }
            Payload::Kd(kd) => {
                if let Ok(keys) = KeySet::read(kd, &policy, carriage) {
                    let again = KeySet::read(&keys.write(&policy), &policy, carriage)
                        .expect("what was written reads");
                    assert_eq!(again.write(&policy), keys.write(&policy));
                }
            }
            Payload::Gap(gap) => {
                let _ = read_sender_id_request(Some(gap));
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn arbitrary_octets_never_panic(
        first in any::<u8>(),
        octets in proptest::collection::vec(any::<u8>(), 0..600),
        rules in any_rules(),
    ) {
        read_all(PayloadType::from_number(first), &octets, rules);
        let _ = Message::decode(&octets, rules);
        let _ = pretty::one_line(&octets);
        let _ = LkhDownload::decode(&octets);
        let _ = LkhUpdate::decode(&octets);
    }

    #[test]
    fn arbitrary_bodies_of_every_payload_never_panic(
        kind in 1u8..23,
        body in proptest::collection::vec(prop_oneof![3 => 0u8..24, 1 => any::<u8>()], 0..200),
        rules in any_rules(),
    ) {
        let mut octets = vec![0, 0];
        octets.extend(u16::try_from(body.len() + 4).unwrap().to_be_bytes());
        octets.extend(body);
        read_all(PayloadType::from_number(kind), &octets, rules);
    }

    #[test]
    fn damaged_messages_never_panic(
        index in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        rules in any_rules(),
    ) {
        let all = plaintexts();
        let (first, octets) = index.get(&all);
        let mut octets = octets.clone();
        for (at, value) in &damage {
            *at.get_mut(&mut octets) = *value;
        }
        if let Some(cut) = cut {
            octets.truncate(cut.index(octets.len()));
        }
        read_all(*first, &octets, rules);
        read_all(*first, &octets, Rules::GROUP_OPENED);
    }
}
