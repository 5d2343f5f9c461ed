//! GROUPKEY-PULL, the asking side (RFC 6407 section 3). Open it beside the server's `pull.rs`.
//!
//! ```text
//! (1) HASH(1), Ni, ID   ->                                     AwaitPolicy
//! (2) HASH(2), Nr, SA   <- is this policy ours to accept?      AwaitKeys
//! (3) HASH(3)           ->
//! (4) HASH(4), SEQ, KD  <- keys
//! ```
//!
//! Message 3 carries no GAP: one Sender-ID is implied (RFC 6407 section 3.5). Nothing is installed before message 4.

use bytes::Bytes;
use gdoi_proto::Dialect;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{MessageId, SeqNumber};
use gdoi_proto::payload::{Identification, Payload};
use gdoi_proto::policy::{Carriage, GroupPolicy, KeySet};
use gdoi_proto::registry::ExchangeType;
use ike::io::{Entropy, Instant};
use ike::phase1::NONCE_LEN;
use ike::protect::OpenError;
use ike::protect::phase2::{Exchange, same};
use ike::retransmit::{Attempt, Retransmit, Schedule};
use ike::sa::IkeSa;
use std::sync::Arc;

use super::accept;
use super::settings::VpnSettings;
use super::terms::Age;

/// One PULL.
#[derive(Debug)]
pub struct Pull {
    vpn: Arc<VpnSettings>,
    exchange: Exchange,
    last_sent: Bytes,
    retransmit: Retransmit,
    fresh_sa: bool,
    /// When message 1 left for the first time.
    begun: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    AwaitPolicy { ni: Vec<u8> },
    AwaitKeys { ni: Vec<u8>, nr: Vec<u8>, policy: GroupPolicy, told: Instant },
    Over,
}

/// What a registration brought.
#[derive(Debug)]
pub struct Download {
    /// Rekey SA, delays, data-security SAs.
    pub policy: GroupPolicy,
    /// Their keys.
    pub keys: KeySet,
    /// Last number used under the KEK; 0 without one.
    pub seq: SeqNumber,
    /// How old its terms are.
    pub age: Age,
}

/// What a message of a PULL leads to.
#[derive(Debug)]
pub enum Progress {
    /// Message 3.
    Send(Bytes),
    /// Message 4 was good.
    Complete(Box<Download>),
}

/// Why a message of a PULL led nowhere.
#[derive(Debug)]
pub enum PullError {
    /// Dropped without a trace; the exchange is unchanged.
    Dropped(OpenError),
    /// The authenticated server sent what we do not accept: the exchange is over.
    Refused(String),
}

/// What a timeout asks for.
#[derive(Debug)]
pub enum Repeat {
    /// Nothing yet.
    Wait,
    /// Send these octets again.
    Again(Bytes),
    /// The SA was not made for this PULL and two copies stayed unanswered: the server may have lost it.
    StaleSa,
    /// All repeats went unanswered.
    GiveUp,
}

impl Pull {
    /// Message 1. `fresh_sa` says that the SA was made for this PULL.
    pub fn start(
        vpn: Arc<VpnSettings>,
        sa: &mut IkeSa,
        fresh_sa: bool,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> (Pull, Bytes) {
        let message_id = sa.fresh_message_id(entropy);
        let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, message_id);
        let mut ni = vec![0; NONCE_LEN];
        entropy.fill(&mut ni);
        let payloads = [
            Payload::Nonce(ni.clone()),
            Payload::Id(Identification::from(&sa.dialect.group_id(vpn.group.clone()))),
        ];
        let first = exchange.seal(sa, &[], &payloads);
        let retransmit = Retransmit::sent(Schedule::PULL, now, entropy);
        let pull = Pull {
            vpn,
            exchange,
            last_sent: first.clone(),
            retransmit,
            fresh_sa,
            begun: now,
            state: State::AwaitPolicy { ni },
        };
        (pull, first)
    }

    /// Its message ID.
    pub fn message_id(&self) -> MessageId {
        self.exchange.message_id()
    }

    /// The VPN it is for.
    pub fn vpn(&self) -> &Arc<VpnSettings> {
        &self.vpn
    }

    /// True while message 2 is due: the only time at which a server refuses.
    pub fn awaits_policy(&self) -> bool {
        matches!(self.state, State::AwaitPolicy { .. })
    }

    /// When [`Pull::on_timeout`] is due.
    pub fn due(&self) -> Instant {
        self.retransmit.due()
    }

    /// Repeats the last message, suspects the SA, or gives up.
    pub fn on_timeout(&mut self, now: Instant, entropy: &mut dyn Entropy) -> Repeat {
        if !self.fresh_sa && self.retransmit.due() <= now && self.retransmit.repeats() >= 1 {
            return Repeat::StaleSa;
        }
        match self.retransmit.attempt(now, entropy) {
            Attempt::Wait => Repeat::Wait,
            Attempt::Again => Repeat::Again(self.last_sent.clone()),
            Attempt::GiveUp => Repeat::GiveUp,
        }
    }

    /// Message 2 or 4.
    ///
    /// # Errors
    /// [`PullError::Dropped`] leaves everything as it was; [`PullError::Refused`] ends the exchange.
    pub fn on_message(
        &mut self,
        sa: &IkeSa,
        now: Instant,
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) -> Result<Progress, PullError> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::AwaitPolicy { ni } => match self.exchange.open(sa, header, octets, &[&ni]) {
                Ok(opened) => self.on_policy(ni, opened.into_inner(), sa, now, entropy),
                Err(error) => {
                    self.state = State::AwaitPolicy { ni };
                    Err(PullError::Dropped(error))
                }
            },
            State::AwaitKeys { ni, nr, policy, told } => {
                match self.exchange.open(sa, header, octets, &[&ni, &nr]) {
                    Ok(opened) => {
                        let age = Age { least: now.since(told), most: now.since(self.begun) };
                        on_keys(policy, age, opened.into_inner(), sa.dialect).map_err(PullError::Refused)
                    }
                    Err(error) => {
                        self.state = State::AwaitKeys { ni, nr, policy, told };
                        Err(PullError::Dropped(error))
                    }
                }
            }
            State::Over => Err(PullError::Dropped(OpenError::Payloads("the exchange is over"))),
        }
    }

    /// Message 2: its policy is checked before the server learns that we are live.
    fn on_policy(
        &mut self,
        ni: Vec<u8>,
        payloads: Vec<Payload>,
        sa: &IkeSa,
        now: Instant,
        entropy: &mut dyn Entropy,
    ) -> Result<Progress, PullError> {
        let Ok([Payload::Nonce(nr), Payload::GdoiSa(offer)]) = <[Payload; 2]>::try_from(payloads) else {
            return Err(PullError::Refused("message 2 is not HASH, Nr, SA".to_owned()));
        };
        if same(&ni, &nr) {
            return Err(PullError::Refused("the server's nonce is ours".to_owned()));
        }
        let policy = GroupPolicy::read(&sa.dialect.sa_from_peer(offer), Carriage::Pull)
            .map_err(|error| PullError::Refused(error.to_string()))?;
        accept::check(&self.vpn, &policy).map_err(PullError::Refused)?;
        accept::check_carrier(&self.vpn, sa.suite.cipher, &policy).map_err(PullError::Refused)?;
        let third = self.exchange.seal(sa, &[&ni, &nr], &[]);
        self.last_sent = third.clone();
        self.retransmit = Retransmit::sent(Schedule::PULL, now, entropy);
        self.state = State::AwaitKeys { ni, nr, policy, told: now };
        Ok(Progress::Send(third))
    }
}

/// Message 4: SEQ is there exactly when the policy has a rekey SA (RFC 6407 section 5.7).
fn on_keys(
    policy: GroupPolicy,
    age: Age,
    payloads: Vec<Payload>,
    dialect: Dialect,
) -> Result<Progress, String> {
    let mut payloads = payloads.into_iter().peekable();
    let seq = match payloads.next_if(|payload| matches!(payload, Payload::Seq(_))) {
        Some(Payload::Seq(seq)) => Some(seq),
        _ => None,
    };
    let (Some(Payload::Kd(kd)), None) = (payloads.next(), payloads.next()) else {
        return Err("message 4 is not HASH [, SEQ], KD".to_owned());
    };
    let seq = match (seq, &policy.kek) {
        (Some(seq), Some(_)) => seq,
        (None, None) => SeqNumber(0),
        (None, Some(_)) => return Err("message 4 has no SEQ for its KEK".to_owned()),
        (Some(_), None) => return Err("message 4 has a SEQ without a KEK".to_owned()),
    };
    let kd = dialect.kd_from_peer(kd, policy.kek.as_ref().map(|kek| kek.spi));
    let keys = KeySet::read(&kd, &policy, Carriage::Pull).map_err(|error| error.to_string())?;
    Ok(Progress::Complete(Box::new(Download { policy, keys, seq, age })))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gdoi_proto::ids::{Cookie, CookiePair};
    use gdoi_proto::payload::{LkhDownload, LkhKey};
    use gdoi_proto::policy::TekCipher;
    use gdoi_proto::secret::SecretBytes;
    use ike::crypto::cipher::CipherKey;
    use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
    use ike::identity::address_identity;
    use ike::sa::{Role, SaKeys};

    use super::super::settings::Encryption;
    use super::super::testing::{Bench, Fixed, kek, policy, tek, vpn_settings};
    use super::*;

    const NOW: Instant = Instant(1_000_000);

    fn sa(role: Role) -> IkeSa {
        let suite = Suite {
            cipher: Cipher::Aes128Cbc,
            hash: Hash::Sha256,
            group: DhGroup::Ecp256,
            method: AuthMethod::PreSharedKey,
        };
        let id = address_identity("192.0.2.1".parse().unwrap());
        let keys = SaKeys {
            skeyid_a: SecretBytes::copy(&[3; 32]),
            key: CipherKey::new(Cipher::Aes128Cbc, SecretBytes::copy(&[4; 16])).unwrap(),
            last_phase1_block: [5; 16],
        };
        let cookies = CookiePair { initiator: Cookie([1; 8]), responder: Cookie([2; 8]) };
        IkeSa::new(
            cookies,
            suite,
            role,
            id.clone(),
            id,
            NOW + Duration::from_secs(3600),
            Dialect::STRICT,
            keys,
        )
    }

    /// A PULL up to its message 1, and the server's side of it after reading that.
    fn asked(settings: VpnSettings) -> (Pull, IkeSa, Exchange, Vec<u8>) {
        let mut ours = sa(Role::Initiator);
        let (pull, first) = Pull::start(Arc::new(settings), &mut ours, true, NOW, &mut Fixed(7));
        let theirs = sa(Role::Responder);
        let header = Header::decode(&first).unwrap();
        let mut exchange = Exchange::new(&theirs, ExchangeType::GroupkeyPull, header.message_id);
        let opened = exchange.open(&theirs, &header, &first, &[]).unwrap().into_inner();
        let [Payload::Nonce(ni), Payload::Id(id)] = &opened[..] else { panic!("{opened:?}") };
        assert_eq!((id.protocol, id.port, &id.data[..]), (0, 0, &[0, 0, 0, 1][..]));
        (pull, ours, exchange, ni.clone())
    }

    fn take(pull: &mut Pull, ours: &IkeSa, octets: &[u8]) -> Result<Progress, PullError> {
        pull.on_message(ours, NOW, &Header::decode(octets).unwrap(), octets, &mut Fixed(9))
    }

    #[test]
    fn four_messages_bring_policy_keys_and_seq() {
        let (mut pull, ours, mut exchange, ni) = asked(vpn_settings());
        let theirs = sa(Role::Responder);
        let policy = policy(Some(kek(1, 7200)), vec![tek(300, 3600)]);
        let nr = vec![8; 32];
        let offer = [Payload::Nonce(nr.clone()), Payload::GdoiSa(policy.write(Carriage::Pull))];
        let second = exchange.seal(&theirs, &[&ni], &offer);
        let Ok(Progress::Send(third)) = take(&mut pull, &ours, &second) else { panic!("message 3 is due") };
        let opened = exchange.open(&theirs, &Header::decode(&third).unwrap(), &third, &[&ni, &nr]).unwrap();
        assert!(opened.get().is_empty(), "no GAP");
        let kd = Bench::new().keys(&policy, true).write(&policy);
        let fourth = exchange.seal(&theirs, &[&ni, &nr], &[Payload::Seq(SeqNumber(6)), Payload::Kd(kd)]);
        let mut forged = fourth.to_vec();
        forged[40] ^= 1;
        assert!(matches!(take(&mut pull, &ours, &forged), Err(PullError::Dropped(_))), "and nothing changes");
        let Ok(Progress::Complete(download)) = take(&mut pull, &ours, &fourth) else {
            panic!("keys are due")
        };
        assert_eq!((download.seq, download.keys.teks.len()), (SeqNumber(6), 1));
    }

    #[test]
    fn a_policy_outside_accept_is_refused_before_message_3() {
        let mut settings = vpn_settings();
        settings.accept.encryption = vec![Encryption::AesGcm { key_octets: 32 }];
        let (mut pull, ours, mut exchange, ni) = asked(settings);
        let policy = policy(Some(kek(1, 7200)), vec![tek(300, 3600)]);
        assert_eq!(policy.teks[0].cipher, TekCipher::AesGcm { key_octets: 16, icv_octets: 16 });
        let offer = [Payload::Nonce(vec![8; 32]), Payload::GdoiSa(policy.write(Carriage::Pull))];
        let second = exchange.seal(&sa(Role::Responder), &[&ni], &offer);
        let Err(PullError::Refused(reason)) = take(&mut pull, &ours, &second) else { panic!("refused") };
        assert!(reason.contains("aes-128-gcm"), "{reason}");
    }

    #[test]
    fn approved_only_refuses_keys_outside_or_too_strong_for_their_phase_1_before_message_3() {
        let null = TekCipher::Null { authentication: gdoi_proto::policy::TekAuthentication::HmacSha256 };
        let gcm = |key_octets| TekCipher::AesGcm { key_octets, icv_octets: 16 };
        for (cipher, expected) in [
            (null, Some("a TEK with NULL encryption is outside approved-only")),
            (gcm(32), Some("keys of 256 bits under a phase 1 cipher of 128 bits are outside approved-only")),
            (gcm(16), None),
        ] {
            let settings = VpnSettings { approved_only: true, ..vpn_settings() };
            let (mut pull, ours, mut exchange, ni) = asked(settings);
            let mut policy = policy(None, vec![tek(300, 3600)]);
            policy.teks[0].cipher = cipher;
            let offer = [Payload::Nonce(vec![8; 32]), Payload::GdoiSa(policy.write(Carriage::Pull))];
            let second = exchange.seal(&sa(Role::Responder), &[&ni], &offer);
            match (take(&mut pull, &ours, &second), expected) {
                (Ok(Progress::Send(_)), None) => {}
                (Err(PullError::Refused(reason)), Some(expected)) => {
                    assert!(reason.starts_with(expected), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_seq_without_kek_and_a_kek_without_seq_are_refused() {
        for (with_kek, with_seq) in [(true, false), (false, true)] {
            let policy = policy(with_kek.then(|| kek(1, 7200)), vec![tek(300, 3600)]);
            let mut payloads = vec![Payload::Kd(Bench::new().keys(&policy, true).write(&policy))];
            if with_seq {
                payloads.insert(0, Payload::Seq(SeqNumber(1)));
            }
            assert!(on_keys(policy, Age::default(), payloads, Dialect::STRICT).is_err());
        }
    }

    #[test]
    fn the_last_key_of_a_download_array_is_the_kek() {
        let policy = policy(Some(kek(1, 7200)), vec![tek(300, 3600)]);
        let key = |octet| LkhKey {
            id: 1,
            key_type: 3,
            created: 0,
            expires: 0,
            handle: u32::from(octet),
            data: vec![octet; 32].into(),
        };
        let mut keys = Bench::new().keys(&policy, true);
        keys.lkh_download = Some(LkhDownload { keys: vec![key(7), key(8)] });
        let payloads = vec![Payload::Seq(SeqNumber(1)), Payload::Kd(keys.write(&policy))];
        let Ok(Progress::Complete(download)) = on_keys(policy, Age::default(), payloads, Dialect::STRICT)
        else {
            panic!("keys")
        };
        assert_eq!(download.keys.kek.unwrap().key.expose(), [8; 16]);
        assert_eq!(download.keys.lkh_download.unwrap().keys.len(), 2);
    }

    #[test]
    fn an_old_sa_is_suspected_after_two_unanswered_copies_and_a_fresh_one_is_not() {
        for fresh in [true, false] {
            let mut ours = sa(Role::Initiator);
            let (mut pull, _) = Pull::start(Arc::new(vpn_settings()), &mut ours, fresh, NOW, &mut Fixed(7));
            let first = pull.due();
            assert!(matches!(pull.on_timeout(first, &mut Fixed(0)), Repeat::Again(_)));
            let second = pull.due();
            let repeat = pull.on_timeout(second, &mut Fixed(0));
            assert_eq!(matches!(repeat, Repeat::StaleSa), !fresh);
            assert_eq!(matches!(repeat, Repeat::Again(_)), fresh);
        }
    }
}
