//! `gdoictl metrics`: what a daemon's snapshot says, for Prometheus; `gdoictl serve`: for a browser too.

mod html;
pub mod http;
mod member;
pub mod page;
mod server;

use ctl::event::Event;
use ctl::observe::{ProcessView, Snapshot};

use page::{Page, names};

/// The page of a daemon as it is now; none while it is away.
pub fn text(snapshot: Option<&Snapshot>) -> String {
    let mut page = Page::default();
    page.whole(&names::UP, &[], u64::from(snapshot.is_some()));
    match snapshot {
        None => {}
        Some(Snapshot::Gcks(snapshot)) => {
            both(&mut page, "gcks", &snapshot.process, snapshot.approved_only);
            server::put(&mut page, snapshot);
        }
        Some(Snapshot::Gm(snapshot)) => {
            both(&mut page, "gm", &snapshot.process, snapshot.approved_only);
            member::put(&mut page, snapshot);
        }
    }
    page.text()
}

fn both(page: &mut Page, daemon: &str, process: &ProcessView, approved_only: bool) {
    page.whole(&names::BUILD, &[daemon, &process.version], 1);
    page.whole(&names::UPTIME, &[], process.uptime_seconds);
    page.whole(&names::APPROVED_ONLY, &[], u64::from(approved_only));
    // Also those that never happened: an increase from nothing would not be seen.
    for (name, level) in Event::NAMES.iter().zip(Event::LEVELS) {
        let count = process.events.get(*name).copied().unwrap_or(0);
        page.counter(&names::EVENTS, &[name, level.name()], count);
    }
}

#[cfg(test)]
mod tests;
