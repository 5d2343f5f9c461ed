//! What happened, as text: one line per datagram and event. Never an octet of a key.

use std::fmt::Write;

use ctl::event::Event;
use ike::io::Instant;

/// A growing trace.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Trace {
    /// Nothing is noted: for worlds too large or too long to be read.
    pub quiet: bool,
    text: String,
    events: Vec<(Instant, String, String)>,
}

impl Trace {
    /// Notes a datagram.
    pub fn datagram(&mut self, now: Instant, from: &str, line: &str, arrives: bool) {
        let fate = if arrives { "" } else { "  (lost)" };
        let _ = writeln!(self.text, "{now:?} {from}: {line}{fate}");
    }

    /// Notes an event.
    pub fn event(&mut self, now: Instant, who: &str, event: &Event) {
        if self.quiet {
            return;
        }
        let _ = writeln!(self.text, "{now:?} {who}! {event}");
        self.events.push((now, who.to_owned(), event.name().to_owned()));
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How often `who` told of `event`.
    pub fn count(&self, who: &str, event: &str) -> usize {
        self.events.iter().filter(|(_, teller, name)| teller == who && name == event).count()
    }
}
