//! Values with a form of their own: durations, prefixes, socket addresses, protocols; and the nearest word.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use toml::value::{Datetime, Offset};

/// An IPv4 or IPv6 prefix whose host bits are zero; a single address has all its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPrefix {
    /// The network address.
    pub address: IpAddr,
    /// Bits of the network: 0-32 or 0-128.
    pub prefix_len: u8,
}

impl AddressPrefix {
    /// Reads `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    ///
    /// # Errors
    /// What is wrong and what would be right, for a person.
    pub fn parse(text: &str) -> Result<AddressPrefix, (String, String)> {
        let wrong =
            || (format!("{text:?} is not a prefix"), "10.0.0.0/8, 2001:db8::/32, or an address".to_owned());
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = match length {
            None => bits,
            Some(length) => {
                // `parse` alone would take "+8".
                let digits = !length.is_empty() && length.bytes().all(|octet| octet.is_ascii_digit());
                length.parse().ok().filter(|length| digits && *length <= bits).ok_or_else(wrong)?
            }
        };
        let prefix = AddressPrefix { address, prefix_len };
        let network = AddressPrefix { address: prefix.network(), prefix_len };
        if network.address != address {
            return Err((format!("{text:?} has bits set behind its prefix length"), network.to_string()));
        }
        Ok(prefix)
    }

    fn network(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => {
                let shift = 32u32.saturating_sub(u32::from(self.prefix_len));
                IpAddr::V4((address.to_bits() & u32::MAX.checked_shl(shift).unwrap_or(0)).into())
            }
            IpAddr::V6(address) => {
                let shift = 128u32.saturating_sub(u32::from(self.prefix_len));
                IpAddr::V6((address.to_bits() & u128::MAX.checked_shl(shift).unwrap_or(0)).into())
            }
        }
    }

    /// True when `address` lies in this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && AddressPrefix { address, prefix_len: self.prefix_len }.network() == self.network()
    }

    /// True when all of `inner` lies in this prefix.
    pub fn covers(&self, inner: &AddressPrefix) -> bool {
        self.prefix_len <= inner.prefix_len && self.contains(inner.address)
    }
}

impl fmt::Display for AddressPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// Milliseconds of `90s`, `15m`, `24h`, `7d` or `500ms`; none for anything else, a bare number included.
pub fn duration_milliseconds(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let scale = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(scale)
}

/// A date with time and offset in Unix seconds; none without one of them, or before 1970. Parts of a second do not count.
pub fn unix_seconds(datetime: &Datetime) -> Option<u64> {
    let (date, time, offset) = (datetime.date?, datetime.time?, datetime.offset?);
    let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
    // Years begin in March, so that the day of a leap year is their last (Gregorian calendar, 400 years have 146,097 days).
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let seconds = i64::from(time.hour) * 3600 + (i64::from(time.minute) - minutes) * 60;
    u64::try_from(days * 86_400 + seconds + i64::from(time.second.unwrap_or(0))).ok()
}

/// `10.0.0.1`, `10.0.0.1:848`, `2001:db8::1` or `[2001:db8::1]:848`; `port` where none is given.
pub fn socket_address(text: &str, port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(address) => Some(SocketAddr::new(address, port)),
        Err(_) => text.parse().ok().filter(|address: &SocketAddr| address.port() != 0),
    }
}

/// IP protocols by name, for `protocol` and `application`.
pub const PROTOCOLS: &[(&str, u8)] = &[
    ("any", 0),
    ("icmp", 1),
    ("igmp", 2),
    ("tcp", 6),
    ("udp", 17),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("icmp6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("sctp", 132),
];

/// The IP protocol of a name or a number in text.
pub fn protocol(text: &str) -> Option<u8> {
    match PROTOCOLS.iter().find(|(name, _)| *name == text) {
        Some((_, number)) => Some(*number),
        None => text.parse().ok(),
    }
}

/// The candidate that was probably meant: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().max(3) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Letters to insert, remove or change between two words.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = i;
        let mut before = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(&right) {
            let here = (diagonal + usize::from(a != *b)).min(before + 1).min(*cell + 1);
            diagonal = std::mem::replace(cell, here);
            before = here;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_have_no_host_bits() {
        assert_eq!(AddressPrefix::parse("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(AddressPrefix::parse("10.0.0.1").unwrap().prefix_len, 32);
        assert_eq!(AddressPrefix::parse("::/0").unwrap().prefix_len, 0);
        assert_eq!(AddressPrefix::parse("10.0.0.1/8").unwrap_err().1, "10.0.0.0/8");
        for wrong in ["10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "10.0.0/8", "::/129", "all"] {
            assert!(AddressPrefix::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn prefixes_contain_their_addresses_and_cover_longer_ones() {
        let net = AddressPrefix::parse("10.16.0.0/12").unwrap();
        assert!(net.contains("10.31.255.255".parse().unwrap()));
        assert!(!net.contains("10.32.0.0".parse().unwrap()));
        assert!(!net.contains("::".parse().unwrap()));
        assert!(net.covers(&AddressPrefix::parse("10.17.0.0/16").unwrap()));
        assert!(!net.covers(&AddressPrefix::parse("10.0.0.0/8").unwrap()));
        assert!(AddressPrefix::parse("0.0.0.0/0").unwrap().covers(&net));
    }

    #[test]
    fn a_moment_is_a_date_with_time_and_offset() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T00:00:00Z", Some(951_782_400)),
            ("2000-03-01T01:30:00+01:30", Some(951_868_800)),
            ("2024-12-31T16:59:59.9-07:00", Some(1_735_689_599)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("1970-01-01T00:00:00+01:00", None),
            ("2027-01-31T00:00:00", None),
            ("2027-01-31", None),
            ("12:00:00", None),
        ] {
            assert_eq!(unix_seconds(&text.parse().unwrap()), seconds, "{text}");
        }
    }

    #[test]
    fn durations_carry_a_unit() {
        assert_eq!(duration_milliseconds("90s"), Some(90_000));
        assert_eq!(duration_milliseconds("24h"), Some(86_400_000));
        assert_eq!(duration_milliseconds("500ms"), Some(500));
        for wrong in ["90", "s", "", "-1s", "1.5h", "99999999999999999999d", "18446744073709551615d"] {
            assert_eq!(duration_milliseconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn server_addresses_take_port_848_when_none_is_given() {
        assert_eq!(socket_address("10.0.0.1", 848), "10.0.0.1:848".parse().ok());
        assert_eq!(socket_address("10.0.0.1:8480", 848), "10.0.0.1:8480".parse().ok());
        assert_eq!(socket_address("2001:db8::1", 848), "[2001:db8::1]:848".parse().ok());
        assert_eq!(socket_address("[2001:db8::1]", 848), "[2001:db8::1]:848".parse().ok());
        assert_eq!(socket_address("10.0.0.1:0", 848), None);
        assert_eq!(socket_address("gcks.example", 848), None);
    }

    #[test]
    fn a_misspelt_word_finds_its_neighbour() {
        let words = ["lifetime-seconds", "dh-group"];
        assert_eq!(nearest("lifetime-secconds", words.into_iter()), Some("lifetime-seconds"));
        assert_eq!(nearest("dhgroup", words.into_iter()), Some("dh-group"));
        assert_eq!(nearest("mode", words.into_iter()), None);
    }
}
