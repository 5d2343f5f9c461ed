//! NAT traversal of phase 1 (RFC 3947): whether a NAT is between the two, and which of them is behind it.
//!
//! ```text
//! main        1, 2  both announce it (VID)   3, 4  hashes of both ends   5 ..  from port 4500 to 4500 when a NAT was found
//! aggressive  1, 2  both announce it (VID)   2, 3  hashes of both ends   3 ..  from port 4500 to 4500 when a NAT was found
//! ```
//!
//! Neither announcements nor hashes are authenticated: who sits between can cause floating or prevent it, nothing more.
//! Which sockets floating leads to is the owner's business, and so is the marker on them (RFC 3948 section 2.2).

use std::net::{IpAddr, SocketAddr};

use gdoi_proto::ids::CookiePair;

use crate::crypto::Hash;
use crate::crypto::prf::hash as digest;

/// Vendor ID of NAT traversal: MD5 of "RFC 3947" (RFC 3947 section 3.1).
pub const VENDOR_NAT_T: [u8; 16] =
    [0x4a, 0x13, 0x1c, 0x81, 0x07, 0x03, 0x58, 0x45, 0x5c, 0x57, 0x28, 0xf2, 0x0e, 0x95, 0x45, 0x2f];

/// The port both sides float to (RFC 3947 section 4).
pub const PORT: u16 = 4500;

/// The only octet of a keep-alive; it goes without a marker and gets no answer (RFC 3948 section 2.3).
pub const KEEPALIVE: [u8; 1] = [0xff];

/// Where a datagram comes from and goes to, as one side sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Our address and port: the one the other side talks to, also on a wildcard socket.
    pub local: SocketAddr,
    /// The other side's.
    pub peer: SocketAddr,
}

/// Who is behind a NAT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behind {
    /// We are.
    pub ours: bool,
    /// The peer is.
    pub theirs: bool,
}

impl Behind {
    /// True when there is a NAT.
    pub fn any(self) -> bool {
        self.ours || self.theirs
    }

    /// True for the side that sees the other's address change: it follows authenticated messages; who is behind the NAT
    /// never does (RFC 3947 section 7).
    pub fn follows(self) -> bool {
        self.theirs && !self.ours
    }
}

impl Ends {
    /// What NAT-D payloads of a message from here say: the destination's first (RFC 3947 section 3.2).
    pub fn hashes(self, hash: Hash, cookies: CookiePair) -> Vec<Vec<u8>> {
        vec![of(hash, cookies, self.peer), of(hash, cookies, self.local)]
    }

    /// What the NAT-D payloads of a message say that came along here; none for fewer than two, which is no NAT traversal.
    pub fn examine(self, hash: Hash, cookies: CookiePair, nat_d: &[Vec<u8>]) -> Option<Behind> {
        let (destination, sources) = nat_d.split_first().filter(|(_, sources)| !sources.is_empty())?;
        let (ours, theirs) = (of(hash, cookies, self.local), of(hash, cookies, self.peer));
        Some(Behind { ours: *destination != ours, theirs: !sources.contains(&theirs) })
    }
}

/// HASH(CKY-I | CKY-R | IP | port): addresses of IPv4 have 4 octets, also where a socket maps them into IPv6.
fn of(hash: Hash, cookies: CookiePair, end: SocketAddr) -> Vec<u8> {
    let port = end.port().to_be_bytes();
    let (four, sixteen);
    let address: &[u8] = match end.ip().to_canonical() {
        IpAddr::V4(address) => {
            four = address.octets();
            &four
        }
        IpAddr::V6(address) => {
            sixteen = address.octets();
            &sixteen
        }
    };
    digest(hash, &[&cookies.initiator.0, &cookies.responder.0, address, &port])
}

#[cfg(test)]
mod tests {
    use gdoi_proto::ids::Cookie;

    use super::*;

    const COOKIES: CookiePair =
        CookiePair { initiator: Cookie(*b"\x01\x02\x03\x04\x05\x06\x07\x08"), responder: Cookie([9; 8]) };

    fn ends(local: &str, peer: &str) -> Ends {
        Ends { local: local.parse().unwrap(), peer: peer.parse().unwrap() }
    }

    /// What each side finds when the member's packets leave its NAT from `outside`.
    fn through(member: &str, outside: &str, server: &str, shown: &str) -> (Behind, Behind) {
        let from_member = ends(member, shown).hashes(Hash::Sha256, COOKIES);
        let from_server = ends(server, outside).hashes(Hash::Sha256, COOKIES);
        let at_server = ends(server, outside).examine(Hash::Sha256, COOKIES, &from_member);
        let at_member = ends(member, shown).examine(Hash::Sha256, COOKIES, &from_server);
        (at_member.unwrap(), at_server.unwrap())
    }

    #[test]
    fn without_a_nat_nobody_is_behind_one() {
        let none = Behind::default();
        let (member, server) = ("192.0.2.10:848", "192.0.2.1:848");
        assert_eq!(through(member, member, server, server), (none, none));
        let (member, server) = ("[2001:db8::10]:848", "[2001:db8::1]:848");
        assert_eq!(through(member, member, server, server), (none, none));
    }

    #[test]
    fn both_sides_agree_who_is_behind_which_nat() {
        let (inside, outside, server) = ("10.0.0.5:848", "198.51.100.7:848", "192.0.2.1:848");
        let member = Behind { ours: true, theirs: false };
        let peer = Behind { ours: false, theirs: true };
        assert_eq!(through(inside, outside, server, server), (member, peer));
        assert_eq!(through(inside, "10.0.0.5:1024", server, server), (member, peer), "another port suffices");
        assert_eq!(through(inside, inside, "10.9.9.9:848", "203.0.113.9:848"), (peer, member));
        let both = Behind { ours: true, theirs: true };
        assert_eq!(through(inside, outside, "10.9.9.9:848", "203.0.113.9:848"), (both, both));
        assert!(peer.follows() && !member.follows() && !both.follows());
    }

    #[test]
    fn one_of_several_source_hashes_suffices_and_one_hash_alone_says_nothing() {
        let here = ends("192.0.2.1:848", "192.0.2.10:848");
        let mut hashes = ends("192.0.2.10:848", "192.0.2.1:848").hashes(Hash::Sha384, COOKIES);
        hashes.insert(1, vec![0; 48]);
        assert_eq!(here.examine(Hash::Sha384, COOKIES, &hashes), Some(Behind::default()));
        assert_eq!(here.examine(Hash::Sha384, COOKIES, &hashes[..1]), None);
        assert_eq!(here.examine(Hash::Sha384, COOKIES, &[]), None);
    }

    #[test]
    fn an_address_mapped_into_ipv6_counts_as_ipv4() {
        let cookies = COOKIES;
        let plain = of(Hash::Sha256, cookies, "192.0.2.1:848".parse().unwrap());
        assert_eq!(plain, of(Hash::Sha256, cookies, "[::ffff:192.0.2.1]:848".parse().unwrap()));
        // SHA-256 over 01..08, eight 09, c0000201, 0350: computed with sha256sum.
        let expected = "89ce456224fca0f7117b42756e52c1c6950ca6ac60288fea28ed2c46766e4e89";
        assert_eq!(hex::encode(plain), expected);
    }
}
