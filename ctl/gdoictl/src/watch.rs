//! `gdoictl watch`: events as they happen.

use ctl::client::ClientError;
use ctl::event::{Level, Stamped};
use serde::Serialize;

use crate::args::{LevelName, WatchFilter};
use crate::connect::Daemon;
use crate::{Failure, say};

/// Prints events until the daemon or the reader ends.
///
/// # Errors
/// When the daemon cannot be reached or the connection breaks.
pub fn run(daemon: &Daemon, filter: &WatchFilter, json: bool) -> Result<(), Failure> {
    for event in daemon.watch()? {
        match event {
            Ok(stamped) if wanted(&stamped, filter) => {
                say(&if json { json_line(&stamped)? } else { line(&stamped) })?;
            }
            Ok(_) => {}
            // An event of a newer daemon: the rest still counts.
            Err(ClientError::NotUnderstood(reason)) => eprintln!("gdoictl: event not understood: {reason}"),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Unreachable("the daemon stopped".to_owned()))
}

fn wanted(stamped: &Stamped, filter: &WatchFilter) -> bool {
    let least = match filter.level {
        LevelName::Trace => Level::Trace,
        LevelName::Debug => Level::Debug,
        LevelName::Info => Level::Info,
        LevelName::Warn => Level::Warn,
        LevelName::Error => Level::Error,
    };
    let of_group = |group: &str| {
        let json = serde_json::to_value(&stamped.event).unwrap_or_default();
        json.get("group").or_else(|| json.get("vpn")).and_then(|name| name.as_str()) == Some(group)
    };
    stamped.event.level() >= least && filter.group.as_deref().is_none_or(of_group)
}

/// One line for people.
pub fn line(stamped: &Stamped) -> String {
    let (time, level) =
        (ctl::event::printable(&stamped.time), stamped.event.level().name().to_ascii_uppercase());
    format!("{time} {level:<5} {}: {}\n", stamped.event.name(), stamped.event)
}

/// One object on one line.
///
/// # Errors
/// [`Failure::Refused`] when it cannot be written, which no type of ours causes.
pub fn json_line<T: Serialize>(value: &T) -> Result<String, Failure> {
    Ok(serde_json::to_string(value).map_err(|error| Failure::Refused(error.to_string()))? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::event::Event;

    #[test]
    fn filters_pick_by_level_and_group() {
        let stamped = Stamped::new(0, Event::SenderIdsExhausted { group: "g1".to_owned() });
        let filter = |group: Option<&str>, level| WatchFilter { group: group.map(str::to_owned), level };
        assert!(wanted(&stamped, &filter(None, LevelName::Error)));
        assert!(wanted(&stamped, &filter(Some("g1"), LevelName::Trace)));
        assert!(!wanted(&stamped, &filter(Some("g2"), LevelName::Trace)));
        assert!(!wanted(&Stamped::new(0, Event::LabMode), &filter(None, LevelName::Error)));
        assert!(
            line(&stamped).starts_with("1970-01-01T00:00:00Z ERROR sender_ids_exhausted: g1: no sender ID")
        );
    }
}
