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
    unacceptable(
        NotifyType::NoProposalChosen,
        format!("no offered transform is one of {}", wanted.join(", ")),
    )
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
