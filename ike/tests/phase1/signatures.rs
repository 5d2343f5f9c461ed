//! Phase 1 with certificates, both modes: every method, the certificate chosen by the method, and what must not pass.

use std::sync::Arc;

use super::pair::{Known, Pair, Party, fqdn, suite};
use gdoi_proto::registry::NotifyType;
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::phase1::{Mode, PeerPolicy, Refusal};

const METHODS: [AuthMethod; 4] =
    [AuthMethod::RsaSignature, AuthMethod::Ecdsa256, AuthMethod::Ecdsa384, AuthMethod::Ecdsa521];
const EC: [AuthMethod; 3] = [AuthMethod::Ecdsa256, AuthMethod::Ecdsa384, AuthMethod::Ecdsa521];

fn with(method: AuthMethod) -> Suite {
    suite(DhGroup::Ecp256, Hash::Sha256, Cipher::Aes256Cbc, method)
}

/// Two parties that know each other.
struct Meeting {
    gm: Party,
    gcks: Party,
    trust: Arc<Known>,
}

impl Meeting {
    fn of(gm: &[AuthMethod], gcks: &[AuthMethod]) -> Meeting {
        let (gm, gcks) = (Party::new("gm1.example", gm), Party::new("gcks.example", gcks));
        let trust = Arc::new(Known(gm.known().chain(gcks.known()).collect()));
        Meeting { gm, gcks, trust }
    }

    fn policies(&self, offered: &[Suite], accepted: &[Suite]) -> (PeerPolicy, PeerPolicy) {
        (self.gm.policy(offered, &self.gcks, &self.trust), self.gcks.policy(accepted, &self.gm, &self.trust))
    }
}

fn in_mode(mode: Mode, (mut member, mut server): (PeerPolicy, PeerPolicy)) -> (PeerPolicy, PeerPolicy) {
    (member.mode, server.mode) = (mode, mode);
    (member, server)
}

#[test]
fn every_method_establishes_in_both_modes_and_under_every_hash() {
    let meeting = Meeting::of(&METHODS, &METHODS);
    for mode in [Mode::Main, Mode::Aggressive] {
        for method in METHODS {
            for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha384, Hash::Sha512] {
                let suites = [suite(DhGroup::Curve25519, hash, Cipher::Aes192Cbc, method)];
                let (member, server) = in_mode(mode, meeting.policies(&suites, &suites));
                let mut pair = Pair::run(member, server, 1);
                assert!(pair.talks(), "{mode:?} {}: {}", suites[0], pair.said());
                let up = pair.server_sa.expect("established");
                assert_eq!(up.sa.peer_identity, fqdn("gm1.example"));
                assert_eq!(
                    up.initial_contact,
                    mode == Mode::Main,
                    "a status has no place in aggressive mode"
                );
            }
        }
    }
}

#[test]
fn a_server_with_two_certificates_takes_the_one_of_the_method() {
    let both = [AuthMethod::RsaSignature, AuthMethod::Ecdsa256];
    let suites = both.map(with);
    for method in both {
        let meeting = Meeting::of(&[method], &both);
        let (member, server) = meeting.policies(&suites, &suites);
        let mut pair = Pair::run(member, server, 1);
        assert!(pair.talks(), "{}", pair.said());
        assert_eq!(pair.server_sa.expect("established").sa.suite.method, method);
    }
}

#[test]
fn a_method_without_a_certificate_is_neither_offered_nor_accepted() {
    let meeting = Meeting::of(&METHODS, &[AuthMethod::Ecdsa384]);
    let suites = METHODS.map(with);
    let (member, server) = meeting.policies(&suites, &suites);
    let mut pair = Pair::run(member, server, 1);
    assert!(pair.talks(), "{}", pair.said());
    assert_eq!(pair.server_sa.as_ref().expect("established").sa.suite.method, AuthMethod::Ecdsa384);

    let (member, server) = meeting.policies(&[with(AuthMethod::RsaSignature)], &suites);
    let pair = Pair::run(member, server, 1);
    let [Refusal::Unacceptable { notify, reason }] = &pair.refusals[..] else { panic!("{}", pair.said()) };
    assert_eq!(*notify, NotifyType::NoProposalChosen);
    assert!(reason.ends_with("ecdsa-signatures-384"), "{reason}");
}

#[test]
fn repeated_messages_change_nothing() {
    let meeting = Meeting::of(&EC, &EC);
    for mode in [Mode::Main, Mode::Aggressive] {
        let suites = [with(AuthMethod::Ecdsa256)];
        let (member, server) = in_mode(mode, meeting.policies(&suites, &suites));
        let mut pair = Pair::run(member, server, 2);
        assert!(pair.talks(), "{mode:?} {}", pair.said());
    }
}

#[test]
fn certificates_go_only_to_who_asks_for_them() {
    let meeting = Meeting::of(&EC, &EC);
    let suites = [with(AuthMethod::Ecdsa256)];
    let (mut member, server) = meeting.policies(&suites, &suites);
    #[derive(Debug)]
    struct Silent(Arc<Known>);
    impl ike::phase1::PeerTrust for Silent {
        fn check(
            &self,
            chain: &[Vec<u8>],
            id: &gdoi_proto::payload::Identification,
            unix_seconds: u64,
        ) -> Result<ike::phase1::CertifiedKey, String> {
            self.0.check(chain, id, unix_seconds)
        }
        fn anchors(&self) -> Vec<Vec<u8>> {
            Vec::new()
        }
    }
    member.credentials.trust = Some(Arc::new(Silent(meeting.trust.clone())));
    let pair = Pair::run(member, server, 1);
    assert!(pair.server_sa.is_some(), "the server asked and got one: {}", pair.said());
    assert!(pair.member_sa.is_none() && pair.said().contains("sent no certificate"), "{}", pair.said());
}

#[test]
fn a_certificate_of_another_name_is_refused_and_the_peer_is_told() {
    for mode in [Mode::Main, Mode::Aggressive] {
        let meeting = Meeting::of(&METHODS, &METHODS);
        let suites = [with(AuthMethod::RsaSignature)];
        let (mut member, mut server) = in_mode(mode, meeting.policies(&suites, &suites));
        // It claims to be gm2, which the gateway admits, with the certificate of gm1.
        member.local_identity = Some(fqdn("gm2.example"));
        server.remote = vec![ike::identity::IdentityRule::AnyOf { id_type: member_id().id_type }];
        let pair = Pair::run(member, server, 1);
        assert!(pair.server_sa.is_none(), "{mode:?}");
        let said = pair.said();
        assert!(said.contains("name: the certificate is of another"), "{mode:?} {said}");
        if mode == Mode::Main {
            assert!(pair.member_sa.is_none());
            assert!(said.contains("the server said AUTHENTICATION-FAILED"), "{said}");
        }
    }
}

fn member_id() -> gdoi_proto::payload::Identification {
    fqdn("any.example")
}

#[test]
fn an_unknown_certificate_and_a_foreign_key_are_told_apart() {
    let suites = [with(AuthMethod::Ecdsa521)];
    let mut meeting = Meeting::of(&EC, &EC);
    meeting.trust = Arc::new(Known(meeting.gcks.known().collect()));
    let (member, server) = meeting.policies(&suites, &suites);
    let pair = Pair::run(member, server, 1);
    assert!(pair.server_sa.is_none() && pair.said().contains("chain: no trust anchor"), "{}", pair.said());

    let thief = Meeting::of(&EC, &EC);
    let (mut member, server) = thief.policies(&suites, &suites);
    let stolen = Party::new("gm1.example", &EC);
    member.credentials.certificates.iter_mut().zip(&stolen.certificates).for_each(|(own, other)| {
        let own = Arc::make_mut(own);
        own.signer = other.signer.clone();
    });
    let pair = Pair::run(member, server, 1);
    assert!(pair.server_sa.is_none() && pair.said().contains("does not verify"), "{}", pair.said());
}

#[test]
fn the_end_entity_is_found_wherever_it_stands() {
    let meeting = Meeting::of(&EC, &EC);
    let suites = [with(AuthMethod::Ecdsa256)];
    let (mut member, server) = meeting.policies(&suites, &suites);
    for own in &mut member.credentials.certificates {
        Arc::make_mut(own).chain.reverse();
    }
    let mut pair = Pair::run(member, server, 1);
    assert!(pair.talks(), "{}", pair.said());
}

#[test]
fn hashing_twice_must_be_agreed_by_both() {
    let meeting = Meeting::of(&EC, &EC);
    for method in [AuthMethod::Ecdsa256, AuthMethod::Ecdsa384, AuthMethod::Ecdsa521] {
        let suites = [suite(DhGroup::Ecp384, Hash::Sha512, Cipher::Aes128Cbc, method)];
        let (mut member, mut server) = meeting.policies(&suites, &suites);
        member.dialect.ecdsa_double_hash = true;
        let pair = Pair::run(member.clone(), server.clone(), 1);
        assert!(pair.server_sa.is_none() && pair.said().contains("does not verify"), "{}", pair.said());
        server.dialect.ecdsa_double_hash = true;
        let mut pair = Pair::run(member, server, 1);
        assert!(pair.talks(), "{}", pair.said());
    }
}

#[test]
fn a_rehearsal_lets_in_whom_it_would_refuse_and_says_so() {
    #[derive(Debug)]
    struct Rehearsal(Arc<Known>);
    impl ike::phase1::PeerTrust for Rehearsal {
        fn check(
            &self,
            chain: &[Vec<u8>],
            _: &gdoi_proto::payload::Identification,
            _: u64,
        ) -> Result<ike::phase1::CertifiedKey, String> {
            let known = self.0.0.iter().find(|(known, _, _)| Some(known) == chain.first());
            let (_, _, key) = known.ok_or("chain: no key in this")?;
            let remark = Some("name: the certificate is of another".to_owned());
            Ok(ike::phase1::CertifiedKey { public_key: key.clone(), remark, certificate: None })
        }
        fn anchors(&self) -> Vec<Vec<u8>> {
            self.0.anchors()
        }
    }
    let meeting = Meeting::of(&EC, &EC);
    let suites = [with(AuthMethod::Ecdsa256)];
    let (member, mut server) = meeting.policies(&suites, &suites);
    server.credentials.trust = Some(Arc::new(Rehearsal(meeting.trust.clone())));
    let mut pair = Pair::run(member, server, 1);
    assert!(pair.talks(), "{}", pair.said());
    let remark = pair.server_sa.and_then(|up| up.remark);
    assert_eq!(remark.as_deref(), Some("name: the certificate is of another"));
}
