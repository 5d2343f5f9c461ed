//! The answer that is kept for a question that comes again.

use bytes::Bytes;

/// Answers to one repeated message.
pub(super) const MAX_REPEATS: u32 = 10;

/// The last message answered and its answer.
#[derive(Debug)]
pub struct Answered {
    question: Bytes,
    pub(super) answer: Bytes,
    repeats: u32,
}

impl Answered {
    /// An answer to a question; empty while it is being worked on.
    pub fn new(question: Bytes, answer: Bytes) -> Answered {
        Answered { question, answer, repeats: 0 }
    }

    /// The cached answer when `question` is the same octets; at most ten times.
    pub fn repeat(&mut self, question: &[u8]) -> Option<Bytes> {
        if self.question == question { self.again() } else { None }
    }

    /// The cached answer once more, for another sign than the question that it did not arrive; counted with the repeats.
    pub fn again(&mut self) -> Option<Bytes> {
        if self.repeats >= MAX_REPEATS || self.answer.is_empty() {
            return None;
        }
        self.repeats += 1;
        Some(self.answer.clone())
    }

    /// True when `question` is the one answered.
    pub fn is_for(&self, question: &[u8]) -> bool {
        self.question == question
    }
}
