//! The write-ahead rule: what follows a write leaves only when that write is on disk, and everything leaves in order.

use std::collections::VecDeque;

/// Holds back what must wait for the disk.
#[derive(Debug)]
pub struct Gate<T> {
    /// Last ticket handed to the writer.
    submitted: u64,
    /// Last ticket on disk.
    written: u64,
    /// What waits, with the ticket it waits for; tickets never fall.
    held: VecDeque<(u64, T)>,
}

impl<T> Gate<T> {
    /// A gate that nothing waits at.
    #[expect(clippy::new_without_default, reason = "there is one gate, made with its writer")]
    pub fn new() -> Gate<T> {
        Gate { submitted: 0, written: 0, held: VecDeque::new() }
    }

    /// What comes from now on waits for this ticket.
    pub fn submitted(&mut self, ticket: u64) {
        self.submitted = ticket;
    }

    /// Every ticket up to this one is on disk: [`Gate::release`] until none.
    pub fn written(&mut self, ticket: u64) {
        self.written = ticket;
    }

    /// Queues `output` behind everything before it.
    pub fn push(&mut self, output: T) {
        self.held.push_back((self.submitted, output));
    }

    /// The next output that may leave.
    pub fn release(&mut self) -> Option<T> {
        let (ticket, _) = self.held.front()?;
        if *ticket > self.written {
            return None;
        }
        self.held.pop_front().map(|(_, output)| output)
    }

    /// Outputs that wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(gate: &mut Gate<char>) -> String {
        std::iter::from_fn(|| gate.release()).collect()
    }

    #[test]
    fn nothing_waits_while_everything_is_on_disk() {
        let mut gate = Gate::new();
        gate.push('a');
        gate.push('b');
        assert_eq!(released(&mut gate), "ab");
    }

    #[test]
    fn what_follows_a_write_waits_for_it_and_order_is_kept() {
        let mut gate = Gate::new();
        gate.push('a');
        gate.submitted(1);
        gate.push('b');
        gate.submitted(2);
        gate.submitted(3);
        gate.push('c');
        gate.push('d');
        assert_eq!(released(&mut gate), "a");
        gate.written(1);
        assert_eq!(released(&mut gate), "b");
        gate.written(2);
        assert_eq!((released(&mut gate).as_str(), gate.held()), ("", 2));
        gate.written(3);
        gate.push('e');
        assert_eq!(released(&mut gate), "cde");
    }
}
