//! Events to everyone who listens: the log always, watchers and observers while they are connected. In a lab, datagrams to
//! who traces a member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ctl::control::to_line;
use ctl::event::{Event, Stamped};
use ctl::tap::Tapped;
use tokio::sync::broadcast;

/// Events a slow listener may be behind before it loses the oldest and is told how many.
const BEHIND: usize = 8192;

/// The same for datagrams, whose lines are longer.
const TAPPED: usize = 1024;

/// Where a daemon publishes its events. Clones publish to the same listeners.
#[derive(Debug, Clone)]
pub struct Hub {
    lines: broadcast::Sender<Bytes>,
    /// How often each event was published, by [`Event::place`].
    told: Arc<[AtomicU64]>,
}

impl Hub {
    /// A hub without listeners.
    #[expect(
        clippy::new_without_default,
        reason = "a default hub would be a different hub each time, easily by mistake"
    )]
    pub fn new() -> Hub {
        Hub {
            lines: broadcast::channel(BEHIND).0,
            told: Event::NAMES.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Logs the event and sends it to every listener. It never waits.
    pub fn publish(&self, unix_seconds: u64, event: &Event) {
        crate::log::event(event);
        if let Some(told) = self.told.get(event.place()) {
            told.fetch_add(1, Ordering::Relaxed);
        }
        // Written once for all listeners, and not at all without one.
        if self.lines.receiver_count() > 0
            && let Ok(line) = to_line(&Stamped::new(unix_seconds, event.clone()))
        {
            let _ = self.lines.send(line.into());
        }
    }

    /// How often each event was published, by name; those that were not are left out.
    pub fn told(&self) -> BTreeMap<String, u64> {
        let counts = self.told.iter().map(|told| told.load(Ordering::Relaxed));
        let named = Event::NAMES.iter().map(|name| (*name).to_owned()).zip(counts);
        named.filter(|(_, count)| *count > 0).collect()
    }

    /// Everything published from now on, one JSON line each.
    pub fn subscribe(&self) -> Lines {
        Lines { lines: self.lines.subscribe() }
    }
}

/// Where a daemon in a lab shows its datagrams. Clones show to the same listeners.
#[derive(Debug, Clone)]
pub struct Tap {
    lines: broadcast::Sender<Bytes>,
}

impl Tap {
    /// A tap without listeners.
    #[expect(clippy::new_without_default, reason = "like a hub")]
    pub fn new() -> Tap {
        Tap { lines: broadcast::channel(TAPPED).0 }
    }

    /// True when somebody listens.
    pub fn is_open(&self) -> bool {
        self.lines.receiver_count() > 0
    }

    /// Sends it to every listener. It never waits.
    pub fn show(&self, tapped: &Tapped) {
        if let Ok(line) = to_line(tapped) {
            let _ = self.lines.send(line.into());
        }
    }

    /// Everything shown from now on, one JSON line each.
    pub fn subscribe(&self) -> Lines {
        Lines { lines: self.lines.subscribe() }
    }
}

/// A listener.
#[derive(Debug)]
pub struct Lines {
    lines: broadcast::Receiver<Bytes>,
}

impl Lines {
    /// The next line with its end; none when the hub is gone. Safe to drop and call again.
    pub async fn next(&mut self) -> Option<Bytes> {
        match self.lines.recv().await {
            Ok(line) => Some(line),
            Err(broadcast::error::RecvError::Lagged(count)) => {
                let lost = Stamped::new(crate::clock::unix_seconds(), Event::EventsLost { count });
                to_line(&lost).ok().map(Bytes::from)
            }
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_gets_what_is_published_after_it_came() {
        let hub = Hub::new();
        hub.publish(0, &Event::LabMode);
        let mut lines = hub.subscribe();
        hub.publish(0, &Event::ShowKeys);
        drop(hub);
        assert_eq!(
            lines.next().await.unwrap().as_ref(),
            b"{\"time\":\"1970-01-01T00:00:00Z\",\"event\":\"show_keys\"}\n".as_slice()
        );
        assert_eq!(lines.next().await, None);
    }

    #[tokio::test]
    async fn what_is_told_is_counted_with_and_without_listeners() {
        let hub = Hub::new();
        hub.publish(0, &Event::LabMode);
        let _lines = hub.subscribe();
        hub.clone().publish(0, &Event::LabMode);
        hub.publish(0, &Event::ShowKeys);
        let told = hub.told();
        assert_eq!(told.get("lab_mode"), Some(&2));
        assert_eq!((told.get("show_keys"), told.len()), (Some(&1), 2));
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_how_much_it_lost() {
        let hub = Hub::new();
        let mut lines = hub.subscribe();
        for _ in 0..BEHIND + 5 {
            hub.publish(0, &Event::LabMode);
        }
        let line = String::from_utf8(lines.next().await.unwrap().to_vec()).unwrap();
        assert!(line.contains("\"event\":\"events_lost\",\"count\":5"), "{line}");
    }
}
