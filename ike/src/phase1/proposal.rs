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

const AES_CBC: u64 = 7;
const KEY_IKE: u8 = 1;
const PROTO_ISAKMP: u8 = 1;

/// Life when a transform names none.
pub const DEFAULT_LIFE: Duration = Duration::from_secs(28_800);
/// Shortest life accepted from a peer.
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
    let mut life = None;
    let mut life_type = None;
    for attribute in &transform.attributes {
        let value = attribute.integer()?;
        let short = u16::try_from(value).ok();
        match attribute.kind {
            ENCRYPTION => cipher = Some(value),
            KEY_LENGTH => key_bits = Some(value),
            HASH => hash = Some(Hash::from_number(short?)?),
            GROUP => group = Some(DhGroup::from_number(short?)?),
            AUTHENTICATION => method = Some(AuthMethod::from_number(short?)?),
            LIFE_TYPE => life_type = Some(value),
            LIFE_DURATION if life_type == Some(1) => life = Some(Duration::from_secs(value)),
            LIFE_DURATION => life_type.map(drop)?,
            _ => return None,
        }
    }
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
            if reading.life < SHORTEST_LIFE {
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

/// Checks a responder's answer: exactly one transform, equal by meaning to one of ours.
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
    let offers = policy.usable_offers();
    // Nothing changed, added or left out; the order, and the form of a long number, are free (RFC 2409 section 5).
    let same = |offer: &&Offer| canonical(&attributes(offer)) == canonical(&transform.attributes);
    let offered = offers.iter().find(same).filter(|_| transform.id == KEY_IKE);
    offered
        .map(|offer| Reading { suite: offer.suite, life: offer.lifetime })
        .ok_or_else(|| Refusal::dropped("answer with a transform that was not offered"))
}

/// Class and value of every attribute, in an order of their own.
fn canonical(attributes: &[Attribute]) -> Vec<(u16, Option<u64>)> {
    let mut all: Vec<_> = attributes.iter().map(|it| (it.kind, it.integer())).collect();
    all.sort_unstable();
    all
}
