//! Offering and choosing a transform; every refusal says why (RFC 2409 section 5 and appendix A).

use std::time::Duration;

use gdoi_proto::attribute::Attribute;
use gdoi_proto::payload::{Proposal, Sa, Transform};
use gdoi_proto::registry::{Doi, NotifyType};

use super::{Offer, PeerPolicy, Refusal};
use crate::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};

const ENCRYPTION: u16 = 1;
const HASH: u16 = 2;
const AUTHENTICATION: u16 = 3;
const GROUP: u16 = 4;
const LIFE_TYPE: u16 = 11;
const LIFE_DURATION: u16 = 12;
const KEY_LENGTH: u16 = 14;

const SECONDS: u64 = 1;
const KILOBYTES: u64 = 2;
const AES_CBC: u64 = 7;
const KEY_IKE: u8 = 1;
const PROTO_ISAKMP: u8 = 1;

/// Life when a transform names none.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(28_800);
/// Shortest life accepted from a peer, unless ours is shorter still.
pub const SHORTEST_LIFE: Duration = Duration::from_secs(60);

/// A transform as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Its suite.
    pub suite: Suite,
    /// Its life.
    pub life: Duration,
}

/// Our offer: one proposal, transforms in order of preference, attributes in the order that satisfies order-sensitive peers.
pub fn offer(policy: &PeerPolicy) -> Sa {
    let transforms = policy
        .usable_offers()
        .iter()
        .zip(1u8..)
        .map(|(offer, number)| Transform { number, id: KEY_IKE, attributes: attributes(offer) })
        .collect();
    Sa {
        doi: if policy.dialect.phase1_doi_ipsec { Doi::Ipsec } else { Doi::Gdoi },
        situation: u32::from(policy.dialect.phase1_doi_ipsec),
        proposals: vec![Proposal { number: 1, protocol: PROTO_ISAKMP, spi: Vec::new(), transforms }],
    }
}

fn attributes(offer: &Offer) -> Vec<Attribute> {
    let suite = offer.suite;
    let seconds = u32::try_from(offer.lifetime.as_secs()).unwrap_or(u32::MAX);
    let life = match u16::try_from(seconds) {
        Ok(short) => Attribute::basic(LIFE_DURATION, short),
        Err(_) => Attribute::variable(LIFE_DURATION, seconds.to_be_bytes()),
    };
    vec![
        Attribute::basic(ENCRYPTION, AES_CBC as u16),
        Attribute::basic(KEY_LENGTH, (suite.cipher.key_len() * 8) as u16),
        Attribute::basic(HASH, suite.hash.number()),
        Attribute::basic(GROUP, suite.group.number()),
        Attribute::basic(AUTHENTICATION, suite.method.number()),
        Attribute::basic(LIFE_TYPE, 1),
        life,
    ]
}

/// Reads a transform by meaning; none when it holds anything we do not know, lacks a mandatory attribute, or is AES
/// without Key Length (RFC 3602 section 5.3).
pub fn read(transform: &Transform) -> Option<Reading> {
    if transform.id != KEY_IKE {
        return None;
    }
    let (mut cipher, mut key_bits, mut hash, mut group, mut method) = (None, None, None, None, None);
    let (lives, others): (Vec<&Attribute>, Vec<&Attribute>) =
        transform.attributes.iter().partition(|it| matches!(it.kind, LIFE_TYPE | LIFE_DURATION));
    for attribute in others {
        let value = attribute.integer()?;
        let short = u16::try_from(value).ok();
        let again = match attribute.kind {
            ENCRYPTION => cipher.replace(value).is_some(),
            KEY_LENGTH => key_bits.replace(value).is_some(),
            HASH => hash.replace(Hash::from_number(short?)?).is_some(),
            GROUP => group.replace(DhGroup::from_number(short?)?).is_some(),
            AUTHENTICATION => method.replace(AuthMethod::from_number(short?)?).is_some(),
            _ => return None,
        };
        if again {
            return None;
        }
    }
    let life = life_of(&lives)?;
    if cipher != Some(AES_CBC) {
        return None;
    }
    let cipher = Cipher::with_key_len(usize::try_from(key_bits? / 8).ok()?)?;
    if key_bits? % 64 != 0 {
        return None;
    }
    let suite = Suite { cipher, hash: hash?, group: group?, method: method? };
    Some(Reading { suite, life: life.unwrap_or(DEFAULT_LIFE) })
}

/// Seconds among life attributes: pairs of type and duration, one of seconds and one of kilobytes at most; kilobytes are
/// not honoured. None for anything else, an inner none for no seconds.
fn life_of(attributes: &[&Attribute]) -> Option<Option<Duration>> {
    let (mut seconds, mut kilobytes) = (None, None);
    for pair in attributes.chunks(2) {
        let [kind, duration] = pair else { return None };
        if (kind.kind, duration.kind) != (LIFE_TYPE, LIFE_DURATION) {
            return None;
        }
        let again = match kind.integer()? {
            SECONDS => seconds.replace(duration.integer()?),
            KILOBYTES => kilobytes.replace(duration.integer()?),
            _ => return None,
        };
        if again.is_some() {
            return None;
        }
    }
    Some(seconds.map(Duration::from_secs))
}

/// The life stated in attributes that are nothing but lives; none when there is none, or it is zero.
pub(crate) fn life(attributes: &[Attribute]) -> Option<Duration> {
    let attributes: Vec<&Attribute> = attributes.iter().collect();
    life_of(&attributes)?.filter(|life| !life.is_zero())
}

/// Attributes by meaning: any order, any form.
fn meaning(attributes: &[Attribute]) -> Vec<(u16, Option<u64>)> {
    let mut all: Vec<_> = attributes.iter().map(|it| (it.kind, it.integer())).collect();
    all.sort_unstable();
    all
}

/// The answer to an offer: the SA to send, and what it means.
#[derive(Debug, Clone)]
pub struct Choice {
    /// One transform, echoed as offered.
    pub answer: Sa,
    /// The suite.
    pub suite: Suite,
    /// Our life: the offer's, capped by ours.
    pub life: Duration,
}

/// Chooses the first transform of the offer that the policy accepts entirely.
///
/// # Errors
/// [`Refusal::Unacceptable`] with the notify that describes it.
pub fn choose(sa: &Sa, policy: &PeerPolicy) -> Result<Choice, Refusal> {
    let unacceptable = |notify, reason: String| Err(Refusal::Unacceptable { notify, reason });
    let ipsec_ok = policy.dialect.phase1_doi_ipsec && sa.doi == Doi::Ipsec;
    if sa.doi != Doi::Gdoi && !ipsec_ok {
        return unacceptable(
            NotifyType::DoiNotSupported,
            format!("phase 1 SA with DOI {}, 2 expected", sa.doi),
        );
    }
    if sa.situation > 1 {
        return unacceptable(NotifyType::SituationNotSupported, format!("situation {}", sa.situation));
    }
    let offers = policy.usable_offers();
    for proposal in sa.proposals.iter().filter(|proposal| proposal.protocol == PROTO_ISAKMP) {
        for transform in &proposal.transforms {
            let Some(reading) = read(transform) else { continue };
            let Some(offer) = offers.iter().find(|offer| offer.suite == reading.suite) else {
                continue;
            };
            if reading.life < SHORTEST_LIFE.min(offer.lifetime) {
                continue;
            }
            let answer = Sa {
                doi: sa.doi,
                situation: sa.situation,
                proposals: vec![Proposal { transforms: vec![transform.clone()], ..proposal.clone() }],
            };
            return Ok(Choice { answer, suite: reading.suite, life: reading.life.min(offer.lifetime) });
        }
    }
    let wanted: Vec<String> = offers.iter().map(|offer| offer.suite.to_string()).collect();
    let wanted =
        if wanted.is_empty() { "those we take, which are none".to_owned() } else { wanted.join(", ") };
    unacceptable(NotifyType::NoProposalChosen, format!("no offered transform is one of {wanted}"))
}

/// Checks a responder's answer: exactly one transform, equal by meaning to one of ours, with nothing added, dropped or
/// altered (RFC 2409 section 5).
///
/// # Errors
/// [`Refusal::Dropped`]: the answer may be forged.
pub fn accept(answer: &Sa, policy: &PeerPolicy) -> Result<Reading, Refusal> {
    let wanted = if policy.dialect.phase1_doi_ipsec { Doi::Ipsec } else { Doi::Gdoi };
    if answer.doi != wanted {
        return Err(Refusal::dropped(format!("answer with DOI {}, {wanted} expected", answer.doi)));
    }
    let [proposal] = answer.proposals.as_slice() else {
        return Err(Refusal::dropped("answer with several proposals"));
    };
    let [transform] = proposal.transforms.as_slice() else {
        return Err(Refusal::dropped("answer with several transforms"));
    };
    let reading =
        read(transform).ok_or_else(|| Refusal::dropped("answer with a transform that was not offered"))?;
    let offers = policy.usable_offers();
    let answered = meaning(&transform.attributes);
    let ours = offers.iter().find(|offer| meaning(&attributes(offer)) == answered);
    ours.map(|_| reading).ok_or_else(|| Refusal::dropped("answer with a transform that was not offered"))
}

#[cfg(test)]
mod tests {
    use gdoi_proto::secret::SecretBytes;

    use super::*;
    use crate::identity::IdentityRule;
    use crate::phase1::{Credentials, Mode};

    fn policy(seconds: u64) -> PeerPolicy {
        let suite = Suite {
            cipher: Cipher::Aes256Cbc,
            hash: Hash::Sha256,
            group: DhGroup::Ecp256,
            method: AuthMethod::PreSharedKey,
        };
        PeerPolicy {
            nat_traversal: false,
            fragmentation: false,
            mode: Mode::Main,
            offers: vec![Offer { suite, lifetime: Duration::from_secs(seconds) }],
            credentials: Credentials::pre_shared(SecretBytes::copy(b"a key of 16 octets and more")),
            local_identity: None,
            remote: vec![IdentityRule::PeerAddress],
            dialect: gdoi_proto::message::Dialect::STRICT,
        }
    }

    /// An offer of an hour, its one transform changed.
    fn changed(change: impl FnOnce(&mut Vec<Attribute>)) -> Sa {
        let mut sa = offer(&policy(3600));
        change(&mut sa.proposals[0].transforms[0].attributes);
        sa
    }

    fn kilobytes(attributes: &mut Vec<Attribute>) {
        attributes.extend([Attribute::basic(LIFE_TYPE, 2), Attribute::basic(LIFE_DURATION, 1000)]);
    }

    #[test]
    fn an_answer_adds_drops_and_alters_nothing_whatever_its_order_and_forms() {
        let same = changed(|it| {
            it.rotate_left(5);
            it[1] = Attribute::variable(LIFE_DURATION, 3600_u32.to_be_bytes());
        });
        assert!(accept(&same, &policy(3600)).is_ok());
        let seconds = |it: &mut Vec<Attribute>| {
            it.extend([Attribute::basic(LIFE_TYPE, 1), Attribute::basic(LIFE_DURATION, 3600)]);
        };
        let altered = |it: &mut Vec<Attribute>| it[6] = Attribute::basic(LIFE_DURATION, 1800);
        let dropped = |it: &mut Vec<Attribute>| it.truncate(5);
        let again = |it: &mut Vec<Attribute>| it.push(it[0].clone());
        for answer in
            [changed(kilobytes), changed(seconds), changed(altered), changed(dropped), changed(again)]
        {
            assert!(accept(&answer, &policy(3600)).is_err(), "{answer:?}");
        }
    }

    #[test]
    fn an_offer_may_have_a_life_in_kilobytes_beside_seconds_and_nothing_twice() {
        assert_eq!(choose(&changed(kilobytes), &policy(3600)).unwrap().life, Duration::from_secs(3600));
        let twice = changed(|it| {
            kilobytes(it);
            kilobytes(it);
        });
        let half = changed(|it| it.push(Attribute::basic(LIFE_TYPE, 2)));
        let two_groups = changed(|it| it.push(Attribute::basic(GROUP, 14)));
        for offer in [twice, half, two_groups] {
            assert!(choose(&offer, &policy(3600)).is_err(), "{offer:?}");
        }
    }

    #[test]
    fn a_life_below_a_minute_is_accepted_by_who_has_such_a_life() {
        let lab = policy(30);
        assert_eq!(choose(&offer(&lab), &lab).unwrap().life, Duration::from_secs(30));
        assert!(choose(&offer(&policy(29)), &lab).is_err());
        assert!(choose(&offer(&lab), &policy(3600)).is_err());
    }

    #[test]
    fn a_responder_lifetime_is_read_in_the_numbers_of_phase_1() {
        let pair = |kind: u16, value| {
            vec![Attribute::basic(kind, 1), Attribute::variable(kind + 1, u32::to_be_bytes(value))]
        };
        assert_eq!(life(&pair(LIFE_TYPE, 28_800)), Some(Duration::from_secs(28_800)));
        // Numbers of phase 2, as some peers send them.
        assert_eq!((life(&pair(1, 28_800)), life(&pair(LIFE_TYPE, 0)), life(&[])), (None, None, None));
    }
}
