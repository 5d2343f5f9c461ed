//! Everything that must be refused is refused by name, and everything odd but valid is accepted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gdoi_proto::header::Header;
use gdoi_proto::ids::Cookie;
use gdoi_proto::message::{Chain, Dialect, Message, Rules};
use gdoi_proto::payload::{GdoiSa, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::PayloadType;
use gdoi_proto::secret::SecretBytes;
use gdoi_sim::provider::SeededEntropy;
use ike::crypto::provider::{default_provider, run};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::identity::IdentityRule;
use ike::io::{Instant, Now};
use ike::phase1::proposal;
use ike::phase1::{Credentials, Ends, Mode, Offer, PeerPolicy, Refusal, Responder, Step};
use serde_json::Value;

use crate::expected;
use crate::support::{list, octets, text, vectors};

const NOW: Now = Now { at: Instant(0), unix_seconds: 1_800_000_000 };

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn ends() -> Ends {
    Ends { local: address("192.0.2.1:848"), peer: address("192.0.2.10:848") }
}

fn policy() -> Arc<PeerPolicy> {
    let suite = Suite {
        cipher: Cipher::Aes128Cbc,
        hash: Hash::Sha256,
        group: DhGroup::Modp2048,
        method: AuthMethod::PreSharedKey,
    };
    Arc::new(PeerPolicy {
        mode: Mode::Main,
        offers: vec![Offer { suite, lifetime: Duration::from_secs(86_400) }],
        credentials: Credentials::pre_shared(SecretBytes::copy(b"gdoi test pre-shared key #1")),
        local_identity: None,
        remote: vec![IdentityRule::PeerAddress],
        nat_traversal: false,
        fragmentation: false,
        dialect: Dialect::STRICT,
    })
}

fn respond(packet: &[u8]) -> Result<(Responder, Vec<Step>), Refusal> {
    let header = Header::decode(packet).map_err(|error| Refusal::Dropped(error.to_string()))?;
    let cookie = Cookie([0x38, 0xe4, 0x23, 0x50, 0x00, 0x63, 0xc5, 0x96]);
    Responder::start(policy(), cookie, ends(), &header, packet)
}

/// What became of a refused message: silence and its reason, or the notify that is sent.
fn told(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Dropped(reason) => format!("silence: {reason}"),
        Refusal::Unacceptable { notify, reason } => format!("{notify:?}: {reason}"),
        Refusal::Failed { reason, answer } => {
            format!("over, {}: {reason}", if answer.is_some() { "told" } else { "silent" })
        }
    }
}

#[test]
fn every_bad_first_and_third_message_is_refused_for_its_own_fault_and_answered_only_where_that_helps() {
    let good = vectors("phase1-psk-modp14-aes128-sha256");
    let first = octets(&list(&good, "messages")[0], "packet");
    let file = vectors("phase1-parser-rejects");
    let cases = list(&file, "cases");
    assert_eq!(cases.len(), expected::PHASE1.len());
    let expected = BTreeMap::from(expected::PHASE1);
    for case in cases {
        let (reason, packet) = (text(case, "reason"), octets(case, "packet"));
        let found = match text(case, "based_on") {
            "m1" => told(&respond(&packet).expect_err(reason)),
            "m3" => {
                let (mut responder, _) = respond(&first).expect("message 1 of the vector is good");
                let refusal = third(&mut responder, &packet).expect_err(reason);
                assert_eq!(responder.state(), "AwaitKe", "{reason} changed the state");
                told(&refusal)
            }
            other => panic!("unknown base {other}"),
        };
        assert_eq!(Some(&found.as_str()), expected.get(reason), "{reason}");
    }
}

/// Gives message 3 to a responder and runs the job it asks for.
fn third(responder: &mut Responder, packet: &[u8]) -> Result<Vec<Step>, Refusal> {
    let header = Header::decode(packet).map_err(|error| Refusal::Dropped(error.to_string()))?;
    let mut entropy = SeededEntropy::new(1);
    let provider = default_provider();
    let mut out = Vec::new();
    for step in responder.on_message(NOW, ends(), &header, packet, &mut entropy)? {
        match step {
            Step::Run(job) => {
                out.extend(responder.on_done(NOW, run(provider.as_ref(), job), &mut entropy)?)
            }
            Step::Send(_) | Step::Established(_) => out.push(step),
        }
    }
    Ok(out)
}

#[test]
fn the_good_third_message_does_lead_on() {
    let good = vectors("phase1-psk-modp14-aes128-sha256");
    let messages = list(&good, "messages");
    let (mut responder, _) = respond(&octets(&messages[0], "packet")).expect("message 1");
    let steps = third(&mut responder, &octets(&messages[2], "packet")).expect("message 3");
    assert!(matches!(steps[..], [Step::Send(_)]), "{steps:?}");
}

#[test]
fn every_odd_but_valid_first_message_is_answered_with_the_right_transform() {
    let file = vectors("phase1-parser-accepts");
    let cases = list(&file, "cases");
    assert_eq!(cases.len(), 23);
    for case in cases {
        let (reason, packet) = (text(case, "reason"), octets(case, "packet"));
        let (_, steps) = respond(&packet).unwrap_or_else(|refusal| panic!("{reason}: {refusal}"));
        let [Step::Send(answer)] = &steps[..] else { panic!("{reason}: {steps:?}") };
        let answer = Message::decode(answer, Rules::PHASE1_CLEAR).expect("our own message");
        let Some(Payload::Sa(sa)) = answer.payloads.first() else { panic!("{reason}: no SA") };
        let [proposal] = &sa.proposals[..] else { panic!("{reason}: {sa:?}") };
        let [transform] = &proposal.transforms[..] else { panic!("{reason}: {sa:?}") };
        assert_eq!(Some(u64::from(transform.number)), case["selected_transform"].as_u64(), "{reason}");
        let offered = Message::decode(&packet, Rules::PHASE1_CLEAR).expect("the offer");
        let Some(Payload::Sa(offered)) = offered.payloads.first() else { panic!("{reason}: no SA") };
        assert!(offered.proposals[0].transforms.contains(transform), "{reason}: it comes back unchanged");
        assert_eq!(proposal.number, offered.proposals[0].number, "{reason}");
        let choice = proposal::choose(offered, &policy()).expect("a choice");
        assert_eq!(Some(choice.life.as_secs()), case["life_seconds"].as_u64(), "{reason}");
    }
}

/// The SA of the PULL that key packets are read against.
fn full_pull_sa() -> GdoiSa {
    let file = vectors("gdoi-pull");
    let plain = octets(&list(&list(&file, "cases")[0], "messages")[1], "plaintext");
    let chain = Chain::decode(PayloadType::Hash, &plain, Rules::GROUP_OPENED).expect("the vector");
    let found = chain.payloads.into_iter().find_map(|located| match located.payload {
        Payload::GdoiSa(sa) => Some(sa),
        _ => None,
    });
    found.expect("an SA")
}

/// Policy of the PUSH with new TEKs: what keys in a PUSH are read against.
fn push_policy() -> GroupPolicy {
    let file = vectors("gdoi-push");
    let plain = octets(&list(&file, "cases")[0], "plaintext");
    let chain = Chain::decode(PayloadType::Seq, &plain, Rules::GROUP_OPENED).expect("the vector");
    let found = chain.payloads.into_iter().find_map(|located| match located.payload {
        Payload::GdoiSa(sa) => Some(GroupPolicy::read(&sa, Carriage::Push)),
        _ => None,
    });
    found.expect("an SA").expect("the vector's policy")
}

#[test]
fn every_forbidden_group_structure_is_refused_by_the_rule_it_breaks() {
    let pull = GroupPolicy::read(&full_pull_sa(), Carriage::Pull).expect("the vector's policy");
    let push = push_policy();
    let file = vectors("gdoi-rejects");
    let cases = list(&file, "cases");
    assert_eq!(cases.len(), expected::GROUP.len());
    let expected = BTreeMap::from(expected::GROUP);
    for case in cases {
        let name = text(case, "name");
        let found = refusal(case, &pull, &push).unwrap_or_else(|| panic!("{name} was accepted"));
        assert_eq!(Some(&found.as_str()), expected.get(name), "{name}: {}", text(case, "rule"));
    }
}

/// The decoder's or the policy's error; none when the structure is accepted.
fn refusal(case: &Value, pull: &GroupPolicy, push: &GroupPolicy) -> Option<String> {
    let number = u8::try_from(case["payload"].as_u64().expect("a number")).expect("8 bits");
    let body = octets(case, "body");
    let (carriage, policy) =
        if text(case, "where") == "push" { (Carriage::Push, push) } else { (Carriage::Pull, pull) };
    let payload = [&[0, 0], &((body.len() + 4) as u16).to_be_bytes()[..], &body].concat();
    let chain = match Chain::decode(PayloadType::from_number(number), &payload, Rules::GROUP_OPENED) {
        Ok(chain) => chain,
        Err(error) => return Some(format!("decode, {error}")),
    };
    let error = match &chain.payloads[0].payload {
        Payload::GdoiSa(sa) => GroupPolicy::read(sa, carriage).err(),
        Payload::Kd(kd) => KeySet::read(kd, policy, carriage).err(),
        _ => None,
    };
    error.map(|error| format!("policy, {error}"))
}
