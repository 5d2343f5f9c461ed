//! Sender-IDs without reuse (RFC 6407 section 3.5): sequential from 0, reserved ahead in blocks so that a restart
//! never hands one out twice.

use gdoi_proto::ids::SenderId;

/// SIDs reserved with one write, at most.
const BLOCK: u32 = 64;
/// A reservation is at most this part of the space: what it skips at a restart is lost.
const PART: u32 = 64;

/// The SIDs of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderIdPool {
    bits: u8,
    next: u32,
    reserved: u32,
}

/// What an allocation gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    /// Fresh SIDs.
    pub sids: Vec<SenderId>,
    /// The reservation grew: it must be written before the SIDs are sent.
    pub reserve: bool,
}

impl SenderIdPool {
    /// A pool of 2^`bits` that continues after everything `reserved` by an earlier life.
    pub fn new(bits: u8, reserved: u32) -> SenderIdPool {
        SenderIdPool { bits, next: reserved, reserved }
    }

    /// Fresh SIDs, or none when the space cannot hold them.
    pub fn allocate(&mut self, count: u32) -> Option<Allocation> {
        let space = 1u32 << self.bits;
        let end = self.next.checked_add(count).filter(|end| *end <= space)?;
        let sids = (self.next..end).map(SenderId).collect();
        self.next = end;
        let reserve = end > self.reserved;
        if reserve {
            self.reserved = end.saturating_add((space / PART).min(BLOCK)).min(space);
        }
        Some(Allocation { sids, reserve })
    }

    /// SIDs left.
    pub fn left(&self) -> u32 {
        (1u32 << self.bits).saturating_sub(self.next)
    }

    /// Everything below this may have been handed out.
    pub fn reserved(&self) -> u32 {
        self.reserved
    }

    /// NUMBER_OF_SID_BITS.
    pub fn bits(&self) -> u8 {
        self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_continues_after_the_reservation() {
        let mut pool = SenderIdPool::new(16, 0);
        let first = pool.allocate(2).unwrap();
        assert_eq!(first.sids, [SenderId(0), SenderId(1)]);
        assert!(first.reserve);
        assert!(!pool.allocate(1).unwrap().reserve);
        let mut restarted = SenderIdPool::new(16, pool.reserved());
        assert_eq!(restarted.allocate(1).unwrap().sids, [SenderId(66)]);
    }

    #[test]
    fn many_restarts_leave_a_small_space_usable() {
        let mut pool = SenderIdPool::new(8, 0);
        for _ in 0..50 {
            assert!(pool.allocate(1).is_some());
            pool = SenderIdPool::new(8, pool.reserved());
        }
    }

    #[test]
    fn the_space_ends() {
        let mut pool = SenderIdPool::new(8, 250);
        assert!(pool.allocate(6).is_some());
        assert!(pool.allocate(1).is_none());
    }
}
