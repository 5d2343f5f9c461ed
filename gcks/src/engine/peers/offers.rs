//! First messages that need not be stored.
//!
//! The hashes of messages 5 and 6 cover the SA payload of message 1, and message 3 does not repeat it (RFC 2409
//! section 5): a negotiation cannot be kept in a cookie alone. But members are configured alike and send first messages
//! that differ in nothing but their cookie. So the first messages of peers that proved an identity are remembered, a few
//! of them, without cookies and addresses. When another peer sends the same octets, the cookie it gets says all the rest:
//!
//! ```text
//! number of the offer, 1 octet | HMAC-SHA-256(secret, local end, peer's end, epoch, CKY-I, offer)[0..7]
//! ```
//!
//! and message 3, which returns it, makes the negotiation anew. So whoever offers what others offered before them finds
//! room in any flood, and costs no memory before it showed that it can receive.
//!
//! A cookie lives for 15 to 30 s and serves one negotiation: those used are remembered for as long.

use std::time::Duration;

use bytes::Bytes;
use gdoi_proto::ids::{Cookie, CookiePair};
use gdoi_proto::secret::{SecretBytes, ct_eq};
use ike::crypto::Hash;
use ike::crypto::prf::prf;
use ike::io::Instant;
use ike::phase1::Ends;

use super::generations::Generations;

/// Offers remembered. An octet says which one.
const OFFERS: usize = 64;
/// Longest offer remembered, octets: many times that of members.
const MAX_OCTETS: usize = 1024;
/// A cookie is good in the epoch it was made in, and in the next one.
const EPOCH: Duration = Duration::from_secs(15);
/// Cookies that were used and could still be good: more than the server can exchange keys for in that time.
const SPENT: usize = 65_536;

/// First messages that led to a proved identity.
pub struct Offers {
    secret: SecretBytes,
    known: Vec<Known>,
    spent: Generations<CookiePair>,
    epoch: u64,
}

/// One of them.
struct Known {
    octets: Bytes,
    /// Identities proved with it.
    proved: u64,
    /// The last of these, in the order of all.
    last: u64,
}

/// What a first message says besides the cookies; none of one too long to be remembered.
pub fn offer_of(first: &[u8]) -> Option<&[u8]> {
    first.get(16..).filter(|offer| offer.len() <= MAX_OCTETS)
}

fn epoch(now: Instant) -> u64 {
    let length = u64::try_from(EPOCH.as_micros()).unwrap_or(u64::MAX);
    now.0 / length
}

impl Offers {
    /// No offer is known yet.
    pub fn new(secret: SecretBytes) -> Offers {
        Offers { secret, known: Vec::new(), spent: Generations::new(SPENT), epoch: 0 }
    }

    /// A peer proved its identity after this offer. Of too many, the one that served least goes: a peer that makes up
    /// offers pushes out its own.
    pub fn learn(&mut self, offer: &Bytes) {
        let next = self.known.iter().map(|known| known.last).max().unwrap_or_default() + 1;
        if let Some(known) = self.known.iter_mut().find(|known| known.octets == *offer) {
            (known.proved, known.last) = (known.proved + 1, next);
            return;
        }
        let fresh = Known { octets: offer.clone(), proved: 1, last: next };
        if self.known.len() < OFFERS {
            self.known.push(fresh);
        } else if let Some(least) = self.known.iter_mut().min_by_key(|known| (known.proved, known.last)) {
            *least = fresh;
        }
    }

    /// The cookie for a first message with a known offer, and the offer. None when the offer is not known, or when that
    /// cookie was used.
    pub fn cookie(
        &self,
        now: Instant,
        ends: Ends,
        initiator: Cookie,
        first: &[u8],
    ) -> Option<(Cookie, Bytes)> {
        let offer = offer_of(first)?;
        let (number, known) = (0..).zip(&self.known).find(|(_, known)| known.octets == offer)?;
        let responder = self.make(number, offer, epoch(now), ends, initiator)?;
        let usable = responder != initiator && !self.spent.contains(&CookiePair { initiator, responder });
        usable.then(|| (responder, known.octets.clone()))
    }

    fn make(&self, number: u8, offer: &[u8], epoch: u64, ends: Ends, initiator: Cookie) -> Option<Cookie> {
        let text = format!("offer|{}|{}|{epoch}|", ends.local, ends.peer);
        let mac = prf(Hash::Sha256, self.secret.expose(), &[text.as_bytes(), &initiator.0, offer]);
        let [a, b, c, d, e, f, g] = *mac.expose().first_chunk::<7>()?;
        Some(Cookie([number, a, b, c, d, e, f, g])).filter(|cookie| !cookie.is_zero())
    }

    /// The first message that was answered with this cookie, not long ago and along these ends.
    pub fn recall(&self, now: Instant, ends: Ends, cookies: CookiePair) -> Option<Bytes> {
        let CookiePair { initiator, responder } = cookies;
        let [number, ..] = responder.0;
        let known = self.known.get(usize::from(number))?;
        let epoch = epoch(now);
        let is_it = |epoch| {
            let made = self.make(number, &known.octets, epoch, ends, initiator);
            made.is_some_and(|made| ct_eq(&responder.0, &made.0))
        };
        if !(is_it(epoch) || is_it(epoch.saturating_sub(1))) || self.spent.contains(&cookies) {
            return None;
        }
        Some([&initiator.0[..], &[0; 8], &known.octets].concat().into())
    }

    /// A cookie came back: it serves no second negotiation.
    pub fn spend(&mut self, now: Instant, cookies: CookiePair) {
        let epoch = epoch(now);
        // What was used two epochs ago is no longer good.
        for _ in 0..epoch.saturating_sub(self.epoch).min(2) {
            self.spent.turn();
        }
        self.epoch = epoch;
        self.spent.insert(cookies);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIATOR: Cookie = Cookie([5; 8]);

    fn first(offer: u8) -> Vec<u8> {
        [&INITIATOR.0[..], &[0; 8], &[offer; 60]].concat()
    }

    fn ends(peer: &str) -> Ends {
        Ends { local: "192.0.2.1:848".parse().unwrap(), peer: peer.parse().unwrap() }
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    fn learned(numbers: impl IntoIterator<Item = u8>) -> Offers {
        let mut offers = Offers::new(SecretBytes::copy(&[3; 32]));
        for number in numbers {
            offers.learn(&Bytes::copy_from_slice(offer_of(&first(number)).unwrap()));
        }
        offers
    }

    fn pair(responder: Cookie) -> CookiePair {
        CookiePair { initiator: INITIATOR, responder }
    }

    #[test]
    fn a_cookie_brings_back_its_first_message_to_the_same_ends_within_its_time_and_once() {
        let mut offers = learned([1, 2]);
        let (cookie, _) = offers.cookie(at(100), ends("192.0.2.7:848"), INITIATOR, &first(2)).unwrap();
        let recalled =
            |offers: &Offers, seconds, peer, cookies| offers.recall(at(seconds), ends(peer), cookies);
        let here = "192.0.2.7:848";
        assert_eq!(recalled(&offers, 100, here, pair(cookie)).unwrap(), first(2));
        assert_eq!(recalled(&offers, 119, here, pair(cookie)).unwrap(), first(2));
        assert_eq!(recalled(&offers, 120, here, pair(cookie)), None, "two epochs later");
        assert_eq!(recalled(&offers, 100, "192.0.2.7:849", pair(cookie)), None);
        let other = CookiePair { initiator: Cookie([6; 8]), responder: cookie };
        assert_eq!(recalled(&offers, 100, here, other), None);
        for octet in 0..8 {
            let mut forged = cookie;
            forged.0[octet] ^= 1;
            assert_eq!(recalled(&offers, 100, here, pair(forged)), None, "{octet}");
        }
        offers.spend(at(101), pair(cookie));
        for seconds in [101, 119] {
            assert_eq!(recalled(&offers, seconds, here, pair(cookie)), None, "used");
        }
        assert!(offers.cookie(at(101), ends(here), INITIATOR, &first(2)).is_none(), "used");
        assert!(offers.cookie(at(131), ends(here), INITIATOR, &first(2)).is_some(), "another epoch");
        offers.spend(at(200), pair(Cookie([1; 8])));
        assert!(!offers.spent.contains(&pair(cookie)), "forgotten with its time");
    }

    #[test]
    fn only_offers_that_served_are_known_and_who_makes_them_up_pushes_out_its_own() {
        let mut offers = learned([1, 1, 2, 2]);
        let known = |offers: &Offers, offer| {
            offers.cookie(at(1), ends("192.0.2.7:848"), INITIATOR, &first(offer)).is_some()
        };
        assert!(!known(&offers, 3));
        for offer in 10..=255 {
            offers.learn(&Bytes::copy_from_slice(offer_of(&first(offer)).unwrap()));
            assert!(offers.known.len() <= OFFERS);
        }
        assert!(known(&offers, 1) && known(&offers, 2) && known(&offers, 255));
        assert!(!known(&offers, 10), "it made room for the last ones");
        assert_eq!(offer_of(&[0; 16 + MAX_OCTETS + 1]), None);
        assert_eq!(offer_of(&[0; 15]), None);
    }
}
