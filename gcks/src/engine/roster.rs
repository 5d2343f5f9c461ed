//! The members of a group: records under small dense numbers, found by identity and by address. Deliveries name members
//! by number, so that a rekey of a hundred thousand holds a bit each instead of an identity each.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::member::{Member, MemberKey};

/// Names a member while it is registered; given again after it left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberNumber(u32);

impl MemberNumber {
    /// The smallest.
    pub const FIRST: MemberNumber = MemberNumber(0);

    /// The one after it.
    pub fn next(self) -> MemberNumber {
        MemberNumber(self.0.saturating_add(1))
    }
}

/// Registered members.
#[derive(Debug, Clone, Default)]
pub struct Roster {
    records: Vec<Option<Record>>,
    free: Vec<MemberNumber>,
    by_key: BTreeMap<Arc<MemberKey>, MemberNumber>,
    by_address: BTreeMap<SocketAddr, MemberNumber>,
}

#[derive(Debug, Clone)]
struct Record {
    key: Arc<MemberKey>,
    member: Member,
}

impl Roster {
    /// How many.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// True without members.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// The number of an identity.
    pub fn number(&self, key: &MemberKey) -> Option<MemberNumber> {
        self.by_key.get(key).copied()
    }

    /// Who registered from an address and port.
    pub fn at(&self, address: SocketAddr) -> Option<MemberNumber> {
        self.by_address.get(&address).copied()
    }

    /// Who registered from an address, when it is one alone: from whatever port.
    pub fn only_at(&self, address: IpAddr) -> Option<MemberNumber> {
        let ports = SocketAddr::new(address, 0)..=SocketAddr::new(address, u16::MAX);
        let mut there = self.by_address.range(ports).map(|(_, number)| *number);
        there.next().filter(|_| there.next().is_none())
    }

    fn record(&self, number: MemberNumber) -> Option<&Record> {
        self.records.get(number.0 as usize)?.as_ref()
    }

    /// The record of an identity.
    pub fn get(&self, key: &MemberKey) -> Option<&Member> {
        self.record(self.number(key)?).map(|record| &record.member)
    }

    /// The identity of a number.
    pub fn key(&self, number: MemberNumber) -> Option<&MemberKey> {
        self.record(number).map(|record| record.key.as_ref())
    }

    /// The record of a number.
    pub fn at_number(&self, number: MemberNumber) -> Option<&Member> {
        self.record(number).map(|record| &record.member)
    }

    /// The record of a number, to change anything but its address.
    pub fn get_mut(&mut self, number: MemberNumber) -> Option<&mut Member> {
        self.records.get_mut(number.0 as usize)?.as_mut().map(|record| &mut record.member)
    }

    /// Identities and records, by identity.
    pub fn iter(&self) -> impl Iterator<Item = (&MemberKey, &Member)> {
        self.by_key
            .iter()
            .filter_map(|(key, number)| self.record(*number).map(|record| (key.as_ref(), &record.member)))
    }

    /// Every number.
    pub fn numbers(&self) -> NumberSet {
        self.numbers_where(|_| true)
    }

    /// The numbers of the members that are `wanted`.
    pub fn numbers_where(&self, wanted: impl Fn(&Member) -> bool) -> NumberSet {
        let mut set = NumberSet::default();
        for number in self.by_key.values() {
            if self.record(*number).is_some_and(|record| wanted(&record.member)) {
                set.insert(*number);
            }
        }
        set
    }

    /// Adds or replaces a record. Whoever else was at its address must have been removed.
    pub fn put(&mut self, key: MemberKey, member: Member) -> MemberNumber {
        let address = member.peer;
        let number = match self.number(&key) {
            Some(number) => {
                if let Some(known) = self.get_mut(number) {
                    let old = std::mem::replace(known, member).peer;
                    self.vacate(old, number);
                }
                number
            }
            None => {
                let key = Arc::new(key);
                let record = Some(Record { key: Arc::clone(&key), member });
                let number = match self.free.pop() {
                    Some(number) => number,
                    None => {
                        self.records.push(None);
                        MemberNumber(u32::try_from(self.records.len() - 1).unwrap_or(u32::MAX))
                    }
                };
                if let Some(slot) = self.records.get_mut(number.0 as usize) {
                    *slot = record;
                }
                self.by_key.insert(key, number);
                number
            }
        };
        self.by_address.insert(address, number);
        number
    }

    /// Takes a member out.
    pub fn remove(&mut self, key: &MemberKey) -> Option<MemberNumber> {
        let number = self.by_key.remove(key)?;
        let record = self.records.get_mut(number.0 as usize)?.take()?;
        self.vacate(record.member.peer, number);
        self.free.push(number);
        Some(number)
    }

    fn vacate(&mut self, address: SocketAddr, number: MemberNumber) {
        if self.at(address) == Some(number) {
            self.by_address.remove(&address);
        }
    }
}

/// A set of members.
#[derive(Debug, Clone, Default)]
pub struct NumberSet {
    words: Vec<u64>,
    len: usize,
}

impl NumberSet {
    fn place(number: MemberNumber) -> (usize, u64) {
        ((number.0 / 64) as usize, 1 << (number.0 % 64))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for the empty set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// True when it is in.
    pub fn contains(&self, number: MemberNumber) -> bool {
        let (word, bit) = NumberSet::place(number);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Puts it in; false when it was.
    pub fn insert(&mut self, number: MemberNumber) -> bool {
        let (index, bit) = NumberSet::place(number);
        if self.words.len() <= index {
            self.words.resize(index + 1, 0);
        }
        let Some(word) = self.words.get_mut(index).filter(|word| **word & bit == 0) else { return false };
        *word |= bit;
        self.len += 1;
        true
    }

    /// Takes it out; false when it was not in.
    pub fn remove(&mut self, number: MemberNumber) -> bool {
        let (index, bit) = NumberSet::place(number);
        let Some(word) = self.words.get_mut(index).filter(|word| **word & bit != 0) else { return false };
        *word &= !bit;
        self.len -= 1;
        true
    }

    /// Its numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = MemberNumber> + '_ {
        self.iter_from(MemberNumber::FIRST)
    }

    /// The words that hold `from` and what is greater, with their indices; smaller numbers of the first are left out.
    fn words_from(&self, from: MemberNumber) -> impl Iterator<Item = (u64, u32)> + '_ {
        let (first, bit) = (from.0 / 64, from.0 % 64);
        let words = self.words.iter().zip(0u32..).skip(first as usize);
        words.map(move |(word, index)| (if index == first { word >> bit << bit } else { *word }, index))
    }

    /// How many of its numbers are `from` or greater.
    pub fn len_from(&self, from: MemberNumber) -> usize {
        self.words_from(from).map(|(word, _)| word.count_ones() as usize).sum()
    }

    /// Those, ascending.
    pub fn iter_from(&self, from: MemberNumber) -> impl Iterator<Item = MemberNumber> + '_ {
        self.words_from(from).flat_map(|(word, index)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(MemberNumber(index * 64 + bit))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use gdoi_proto::registry::IdType;
    use ike::io::Instant;

    use super::*;

    fn key(last: u8) -> MemberKey {
        MemberKey::new(IdType::Ipv4Addr, [10, 0, 0, last])
    }

    fn member(peer: &str) -> Member {
        Member {
            peer: peer.parse().unwrap(),
            local: "10.0.0.1:848".parse().unwrap(),
            behind_nat: false,
            certificate: None,
            gateway: "gw".into(),
            joined: Default::default(),
            leaf: None,
            sender_ids: Vec::new(),
            registered: Instant(0),
            last_ack: None,
            missed: 0,
            pushes_sent: 0,
            pushed: Instant(0),
            acks: 0,
        }
    }

    #[test]
    fn a_member_is_found_by_identity_and_by_its_latest_address_alone() {
        let mut roster = Roster::default();
        let one = roster.put(key(1), member("10.0.0.1:848"));
        assert_eq!(roster.put(key(1), member("10.0.0.9:848")), one);
        assert_eq!(roster.at("10.0.0.1:848".parse().unwrap()), None);
        assert_eq!(roster.at("10.0.0.9:848".parse().unwrap()), Some(one));
        assert_eq!((roster.len(), roster.key(one)), (1, Some(&key(1))));
    }

    #[test]
    fn a_number_is_given_again_only_after_its_member_left() {
        let mut roster = Roster::default();
        let numbers: Vec<_> =
            (1..=3).map(|n| roster.put(key(n), member(&format!("10.0.0.{n}:848")))).collect();
        assert_eq!(roster.numbers().iter().collect::<Vec<_>>(), numbers);
        assert_eq!(roster.remove(&key(2)), Some(numbers[1]));
        assert_eq!((roster.remove(&key(2)), roster.key(numbers[1]).is_none()), (None, true));
        assert_eq!(roster.put(key(4), member("10.0.0.4:848")), numbers[1]);
        let keys: Vec<_> = roster.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(keys, [key(1), key(3), key(4)]);
    }

    #[test]
    fn a_set_counts_what_is_in_it_once() {
        let mut set = NumberSet::default();
        for number in [0, 63, 64, 1000, 64] {
            set.insert(MemberNumber(number));
        }
        assert_eq!(set.len(), 4);
        assert!(
            set.remove(MemberNumber(63)) && !set.remove(MemberNumber(63)) && !set.remove(MemberNumber(5000))
        );
        assert_eq!(set.iter().map(|number| number.0).collect::<Vec<_>>(), [0, 64, 1000]);
        assert!(set.contains(MemberNumber(64)) && !set.contains(MemberNumber(65)));
        for (from, left) in [(0, 3), (1, 2), (64, 2), (65, 1), (1000, 1), (1001, 0), (9999, 0)] {
            let from = MemberNumber(from);
            assert_eq!((set.len_from(from), set.iter_from(from).count()), (left, left), "{from:?}");
            assert!(set.iter_from(from).all(|number| number >= from));
        }
    }
}
