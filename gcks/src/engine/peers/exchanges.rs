//! What runs under an established SA: GROUPKEY-PULL (its states are in `pull.rs`) and informational messages.

use std::net::SocketAddr;

use ctl::event::Event;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{CookiePair, GroupId};
use gdoi_proto::payload::KeyDownload;
use gdoi_proto::registry::NotifyType;
use ike::io::{Entropy, Instant};
use ike::phase1::Ends;
use ike::protect::notify::{self, Informational};

use super::super::pull::{Pull, Wish};
use super::{Ask, Asker, Move, PeerOutput, Peers, PolicyAnswer, PullName};

impl Peers {
    /// Exchange 5: informational.
    pub fn on_informational(
        &mut self,
        (local, peer): (SocketAddr, SocketAddr),
        header: &Header,
        octets: &[u8],
        entropy: &mut dyn Entropy,
    ) {
        let Some(known) = self.established.get_mut(&header.cookies) else {
            return self.drop_message(peer, "informational without a phase 1");
        };
        let said = match notify::open(&mut known.sa, header, octets) {
            Ok(said) => said.into_inner(),
            Err(error) => return self.drop_message(peer, error),
        };
        known.heard();
        self.follow(header.cookies, Ends { local, peer });
        for said in said {
            let Some(known) = self.established.get_mut(&header.cookies) else { return };
            match said {
                Informational::DeleteIsakmp => self.forget_established(header.cookies, "deleted by the peer"),
                Informational::RUThere(number)
                    if known.sa.peer_does_dpd && known.sa.questions.take(number) =>
                {
                    let answer = notify::dpd(header.cookies, NotifyType::RUThereAck, number);
                    let octets = notify::seal(&mut known.sa, &[answer], entropy);
                    self.out.push_back(PeerOutput::Transmit(known.local, known.peer, octets));
                }
                Informational::RUThere(_) | Informational::RUThereAck(_) => {}
                // RFC 3947 section 6: by identity, never by address; group keys and membership are untouched.
                Informational::InitialContact => {
                    let identity = known.sa.peer_identity.clone();
                    for old in self.named(&identity).into_iter().filter(|old| *old != header.cookies) {
                        self.forget_established(old, "initial contact");
                    }
                }
                Informational::ResponderLifetime(life) => {
                    known.sa.expires = known.sa.expires.min(known.since + life);
                    self.hasten(header.cookies);
                }
                Informational::Notified(kind) => {
                    self.out.push_back(PeerOutput::Event(Event::NotifyReceived {
                        peer: peer.to_string(),
                        kind: kind.to_string(),
                        protected: true,
                    }))
                }
            }
        }
    }

    /// A fresh authenticated message came along other ends than those known: the NAT before the peer chose a new port or
    /// address, and from now on everything goes there (RFC 3947 section 7). Who is behind a NAT itself never follows.
    ///
    /// Deviation: a key server behind a NAT sends no keep-alives (RFC 3948 section 4): members only find it through a
    /// forwarding that stays.
    fn follow(&mut self, cookies: CookiePair, to: Ends) {
        let Some(known) = self.established.get_mut(&cookies).filter(|known| known.sa.nat.follows()) else {
            return;
        };
        if (known.local, known.peer) == (to.local, to.peer) {
            return;
        }
        let from = std::mem::replace(&mut known.peer, to.peer);
        known.local = to.local;
        let identity = known.sa.peer_identity.clone();
        self.out.push_back(PeerOutput::Event(Event::PeerMoved {
            identity: identity.to_string(),
            from: from.to_string(),
            to: to.peer.to_string(),
        }));
        self.out.push_back(PeerOutput::Moved(identity, Move { from, to }));
    }

    /// Exchange 32: GROUPKEY-PULL.
    pub fn on_pull(
        &mut self,
        now: Instant,
        (local, peer): (SocketAddr, SocketAddr),
        header: &Header,
        octets: &[u8],
    ) {
        let Some(known) = self.established.get_mut(&header.cookies) else {
            return self.on_early_pull(Ends { local, peer }, header.cookies);
        };
        let moved = known.peer != peer;
        if moved && !known.sa.nat.follows() {
            return self.drop_message(peer, "PULL from another address than its phase 1");
        }
        known.prune(now);
        let asker = Asker {
            identity: known.sa.peer_identity.clone(),
            gateway: known.gateway.clone(),
            peer,
            local: if moved { local } else { known.local },
            behind_nat: known.sa.nat.theirs,
            certificate: known.sa.certificate.clone(),
        };
        let name = PullName { sa: header.cookies, message_id: header.message_id };
        let has_room = known.has_room();
        let wish = match known.pulls.get_mut(&header.message_id) {
            Some(pull) => pull.on_message(&known.sa, header, octets),
            None if header.message_id.0 == 0 => return self.drop_message(peer, "PULL with message ID 0"),
            None if known.sa.was_seen(header.message_id) => return self.drop_message(peer, "replayed PULL"),
            None if moved && known.sa.was_heard(header.message_id) => {
                return self.drop_message(peer, "a repeat from another address");
            }
            None if !has_room => return self.drop_message(peer, "too many PULLs under way"),
            None => Pull::start(&known.sa, now, header, octets).map(|(pull, wish)| {
                known.sa.remember(header.message_id);
                known.pulls.insert(header.message_id, pull);
                wish
            }),
        };
        match wish {
            Ok(Wish::Policy { group }) => {
                known.used = now;
                known.heard();
                self.follow(header.cookies, Ends { local: asker.local, peer });
                self.out.push_back(PeerOutput::Ask(Ask::Policy(name, asker, group)));
            }
            Ok(Wish::Join { group, terms, sender_ids }) => {
                known.used = now;
                known.heard();
                self.follow(header.cookies, Ends { local: asker.local, peer });
                self.out.push_back(PeerOutput::Ask(Ask::Join(name, asker, group, terms, sender_ids)));
            }
            // Anybody can repeat what was heard on the way: only what is fresh moves a peer.
            Ok(Wish::Repeat(_)) if moved => return self.drop_message(peer, "a repeat from another address"),
            Ok(Wish::Repeat(answer)) => {
                self.out.push_back(PeerOutput::Transmit(known.local, known.peer, answer))
            }
            Err(error) => return self.drop_message(peer, error),
        }
        self.hasten(header.cookies);
    }

    /// Message 2, a refusal, or nothing.
    pub fn answer_policy(
        &mut self,
        now: Instant,
        name: PullName,
        group: GroupId,
        answer: PolicyAnswer,
        entropy: &mut dyn Entropy,
    ) {
        let Some(known) = self.established.get_mut(&name.sa) else { return };
        match answer {
            PolicyAnswer::Terms(terms) => {
                let octets = known
                    .pulls
                    .get_mut(&name.message_id)
                    .and_then(|pull| pull.offer(&known.sa, group, terms, entropy));
                if let Some(octets) = octets {
                    self.out.push_back(PeerOutput::Transmit(known.local, known.peer, octets));
                    if let Some(watch) = &mut known.watch {
                        watch.expect(now);
                    }
                }
            }
            // Beyond the limit nothing is said, and the same message 1 is heard again when it is repeated.
            PolicyAnswer::Refused(_) if !self.refusals.take(now, known.peer.ip()) => {
                known.pulls.remove(&name.message_id);
                known.sa.forget(name.message_id);
            }
            PolicyAnswer::Refused(kind) => {
                known.pulls.remove(&name.message_id);
                let octets = notify::seal(&mut known.sa, &[notify::notification(name.sa, kind)], entropy);
                self.out.push_back(PeerOutput::Transmit(known.local, known.peer, octets));
                self.out.push_back(PeerOutput::Event(Event::NotifySent {
                    peer: known.peer.to_string(),
                    kind: kind.to_string(),
                }));
            }
            PolicyAnswer::Later => {
                known.pulls.remove(&name.message_id);
                known.sa.forget(name.message_id);
            }
            PolicyAnswer::Silence => {
                known.pulls.remove(&name.message_id);
            }
        }
        self.hasten(name.sa);
    }

    /// Message 4, or nothing.
    pub fn answer_join(&mut self, name: PullName, keys: Option<KeyDownload>) {
        let Some(known) = self.established.get_mut(&name.sa) else { return };
        let octets = match (keys, known.pulls.get_mut(&name.message_id)) {
            (Some(kd), Some(pull)) => pull.deliver(&known.sa, kd),
            _ => None,
        };
        match octets {
            Some(octets) => {
                self.out.push_back(PeerOutput::Transmit(known.local, known.peer, octets));
                known.bound_finished();
            }
            None => {
                known.pulls.remove(&name.message_id);
            }
        }
    }
}
