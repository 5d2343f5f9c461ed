//! What a key server says besides its exchanges: hints in clear, errors and Deletes under protection.

use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::message::{Message, Rules};
use gdoi_proto::payload::Payload;
use gdoi_proto::registry::NotifyType;
use ike::protect::notify::{self, Informational};

use super::super::Cx;
use super::{Failure, Letters, News, Phase, Server, expect_more};

/// Notify types below this say that something failed (RFC 2408 section 3.14.1).
const FIRST_STATUS: u16 = 16384;

impl Server {
    /// An informational message in clear proves nothing; before keys are agreed, an error in it is a hint: the present
    /// interval is the last one this server is given.
    pub fn on_clear_informational(&mut self, octets: &[u8], cx: &mut Cx<'_>) {
        let rules = Rules::PHASE1_CLEAR.for_dialect(self.policy.dialect);
        let payloads = match Message::decode(octets, rules) {
            Ok(message) => message.payloads,
            Err(error) => return cx.out.dropped(self.peer, error.to_string()),
        };
        for payload in payloads {
            let Payload::Notify(notify) = payload else { continue };
            let kind = NotifyType::from_number(notify.kind);
            let (peer, protected) = (self.peer.to_string(), false);
            cx.out.event(Event::NotifyReceived { peer, kind: kind.to_string(), protected });
            if let Phase::Negotiating { initiator, hint } = &mut self.phase
                && initiator.is_without_keys()
                && kind.number() < FIRST_STATUS
            {
                *hint = Some(kind);
            }
        }
    }

    /// A protected informational message while phase 1 is negotiated: an error in it ends the attempt.
    pub fn on_early_informational(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let Phase::Negotiating { initiator, .. } = &mut self.phase else { return Letters::new() };
        let steps = initiator.on_informational(cx.now, header, octets).map(|()| Vec::new());
        self.take_steps(steps, cx)
    }

    /// A protected informational message under our SA.
    pub fn on_informational(&mut self, header: &Header, octets: &[u8], cx: &mut Cx<'_>) -> Letters {
        let Phase::Up { sa, pulls, watch, .. } = &mut self.phase else { return Letters::new() };
        let said = match notify::open(sa, header, octets) {
            Ok(opened) => opened.into_inner(),
            Err(error) => {
                cx.out.dropped(self.peer, error.to_string());
                return Letters::new();
            }
        };
        expect_more(watch, cx.now.at);
        let mut answers = Vec::new();
        let mut refused = Vec::new();
        let mut deleted = false;
        for item in said {
            match item {
                Informational::DeleteIsakmp => deleted = true,
                Informational::RUThere(number) if sa.peer_does_dpd && sa.questions.take(number) => {
                    let payload = notify::dpd(sa.cookies, NotifyType::RUThereAck, number);
                    answers.push(notify::seal(sa, &[payload], cx.entropy));
                }
                Informational::RUThere(_) | Informational::RUThereAck(_) | Informational::InitialContact => {}
                // A longer one changes nothing (RFC 2407 section 4.6.3.1).
                Informational::ResponderLifetime(life) => sa.expires = sa.expires.min(cx.now.at + life),
                Informational::Notified(kind) => {
                    cx.out.event(Event::NotifyReceived {
                        peer: self.peer.to_string(),
                        kind: kind.to_string(),
                        protected: true,
                    });
                    if kind.number() < FIRST_STATUS {
                        refused.extend(pulls.on_error(kind));
                    }
                }
            }
        }
        for answer in answers {
            self.transmit(answer, cx);
        }
        let mut letters = self.fail_refused(refused, cx);
        if deleted {
            letters.extend(self.on_deleted(cx));
        }
        letters
    }

    /// The server ended the SA. Its life may have been over while message 1 of a PULL was on its way: who asked under an
    /// SA of earlier days asks again under a new one; who had it made is refused.
    fn on_deleted(&mut self, cx: &mut Cx<'_>) -> Letters {
        let own = self.close("deleted by the key server", false, cx);
        let reason = "the server deleted phase 1";
        let mut letters = Letters::new();
        for vpn in own {
            self.waiting.remove(&vpn);
            letters.push((vpn, News::Failed { reason: reason.to_owned(), kind: Failure::Refused }));
        }
        letters.extend(self.begin(cx));
        letters
    }
}
