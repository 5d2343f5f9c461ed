//! GROUPKEY-PULL, the answering side (RFC 6407 section 3). Open it beside the member's `pull.rs`.
//!
//! ```text
//! (1) HASH(1), Ni, ID   -> ask the group for its policy        AwaitPolicy
//! (2) HASH(2), Nr, SA   <- policy                              AwaitReceipt
//! (3) HASH(3) [, GAP]   -> the member is live: ask to join     AwaitKeys
//! (4) HASH(4), SEQ, KD  <- keys                                Done
//! ```
//!
//! No group state changes before a valid message 3; a repeated message gets the cached answer, at most ten times.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{GroupId, MessageId, SeqNumber};
use gdoi_proto::payload::{Gap, KeyDownload, Payload};
use gdoi_proto::policy::read_sender_id_request;
use gdoi_proto::registry::ExchangeType;
use ike::io::{Entropy, Instant};
use ike::phase1::{Answered, NONCE_LEN};
use ike::protect::OpenError;
use ike::protect::phase2::Exchange;
use ike::sa::IkeSa;

use super::group::Terms;

/// An exchange that got no further is forgotten after this.
pub const LIFE: Duration = Duration::from_secs(60);
/// SIDs one PULL may ask for.
pub const MAX_SENDER_IDS: u16 = 16;

/// One PULL.
#[derive(Debug)]
pub struct Pull {
    exchange: Exchange,
    /// When it began.
    pub started: Instant,
    answered: Option<Answered>,
    state: State,
}

#[derive(Debug)]
enum State {
    AwaitPolicy { ni: Vec<u8>, question: Bytes },
    AwaitReceipt { ni: Vec<u8>, nr: Vec<u8>, group: GroupId, terms: Arc<Terms> },
    AwaitKeys { ni: Vec<u8>, nr: Vec<u8>, terms: Arc<Terms>, question: Bytes },
    Done,
}

/// What a message of a PULL asks for.
#[derive(Debug)]
pub enum Wish {
    /// Message 1: the policy of a group.
    Policy {
        /// The group as named.
        group: GroupId,
    },
    /// Message 3: membership.
    Join {
        /// The group.
        group: GroupId,
        /// What message 2 promised.
        terms: Arc<Terms>,
        /// SIDs wanted.
        sender_ids: u16,
    },
    /// A repeat: the cached answer.
    Repeat(Bytes),
}

impl Pull {
    /// Message 1: decrypts, checks HASH(1) and reads nonce and group.
    ///
    /// # Errors
    /// [`OpenError`]; nothing is kept.
    pub fn start(
        sa: &IkeSa,
        now: Instant,
        header: &Header,
        octets: &[u8],
    ) -> Result<(Pull, Wish), OpenError> {
        let mut exchange = Exchange::new(sa, ExchangeType::GroupkeyPull, header.message_id);
        let payloads = exchange.open(sa, header, octets, &[])?.into_inner();
        let (mut nonce, mut id) = (None, None);
        for payload in payloads {
            match payload {
                Payload::Nonce(found) => nonce = Some(found),
                Payload::Id(found) => id = Some(found),
                _ => return Err(OpenError::Payloads("message 1 is HASH, Ni, ID")),
            }
        }
        let (Some(ni), Some(id)) = (nonce, id) else {
            return Err(OpenError::Payloads("message 1 is HASH, Ni, ID"));
        };
        let question = Bytes::copy_from_slice(octets);
        let group = sa.dialect.group_id(GroupId { id_type: id.id_type, data: id.data });
        let pull =
            Pull { exchange, started: now, answered: None, state: State::AwaitPolicy { ni, question } };
        Ok((pull, Wish::Policy { group }))
    }

    /// Its message ID.
    pub fn message_id(&self) -> MessageId {
        self.exchange.message_id()
    }

    /// True when there is nothing left of it but the answer for a repeated message 3.
    pub fn is_finished(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Message 2.
    pub fn offer(
        &mut self,
        sa: &IkeSa,
        group: GroupId,
        terms: Arc<Terms>,
        entropy: &mut dyn Entropy,
    ) -> Option<Bytes> {
        let State::AwaitPolicy { ni, question } = std::mem::replace(&mut self.state, State::Done) else {
            return None;
        };
        let mut nr = vec![0; NONCE_LEN];
        entropy.fill(&mut nr);
        let payloads = [Payload::Nonce(nr.clone()), Payload::GdoiSa(sa.dialect.sa_to_peer(terms.sa.clone()))];
        let answer = self.exchange.seal(sa, &[&ni], &payloads);
        self.answered = Some(Answered::new(question, answer.clone()));
        self.state = State::AwaitReceipt { ni, nr, group, terms };
        Some(answer)
    }

    /// A later message under this message ID: message 3, or a repeat of 1 or 3.
    ///
    /// # Errors
    /// [`OpenError`]; the exchange is unchanged.
    pub fn on_message(&mut self, sa: &IkeSa, header: &Header, octets: &[u8]) -> Result<Wish, OpenError> {
        if let Some(answered) = self.answered.as_mut().filter(|answered| answered.is_for(octets)) {
            return answered.repeat(octets).map(Wish::Repeat).ok_or(OpenError::Replay);
        }
        let State::AwaitReceipt { ni, nr, group, terms } = &self.state else {
            return Err(OpenError::Payloads("no message is due in this state"));
        };
        let mut exchange = self.exchange.clone();
        let payloads = exchange.open(sa, header, octets, &[ni, nr])?.into_inner();
        let gap: Option<Gap> = match <[Payload; 1]>::try_from(payloads) {
            Ok([Payload::Gap(gap)]) => Some(gap),
            Ok(_) => return Err(OpenError::Payloads("message 3 is HASH [, GAP]")),
            Err(rest) if rest.is_empty() => None,
            Err(_) => return Err(OpenError::Payloads("message 3 is HASH [, GAP]")),
        };
        let sender_ids = read_sender_id_request(gap.as_ref())
            .ok()
            .filter(|count| (1..=MAX_SENDER_IDS).contains(count))
            .ok_or(OpenError::Payloads("the GAP asks for something else than 1 to 16 SIDs"))?;
        let wish = Wish::Join { group: group.clone(), terms: terms.clone(), sender_ids };
        self.exchange = exchange;
        self.state = State::AwaitKeys {
            ni: ni.clone(),
            nr: nr.clone(),
            terms: terms.clone(),
            question: Bytes::copy_from_slice(octets),
        };
        Ok(wish)
    }

    /// Message 4; SEQ is there exactly when message 2 had a SAK.
    pub fn deliver(&mut self, sa: &IkeSa, kd: KeyDownload) -> Option<Bytes> {
        let State::AwaitKeys { ni, nr, terms, question } = std::mem::replace(&mut self.state, State::Done)
        else {
            return None;
        };
        let seq: Option<SeqNumber> = terms.seq;
        let mut payloads: Vec<Payload> = seq.map(Payload::Seq).into_iter().collect();
        payloads.push(Payload::Kd(sa.dialect.kd_to_peer(kd, None)));
        let answer = self.exchange.seal(sa, &[&ni, &nr], &payloads);
        self.answered = Some(Answered::new(question, answer.clone()));
        Some(answer)
    }
}
