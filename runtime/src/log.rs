//! The log: one line per event on stderr, as text or JSON. A thread writes them once the daemon runs: who reads them slowly,
//! or not at all, holds nothing up.
//!
//! ```text
//! 2026-11-24T02:28:23Z INFO  member_registered: g1: 10.18.101.1 registered from 10.18.101.1:848
//! {"time":"2026-11-24T02:28:23Z","level":"info","event":"member_registered","group":"g1",…,"message":"g1: 10.18.…"}
//! ```

use std::fmt;
use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use ctl::event::{Event, Level, printable};
use ctl::time::rfc3339;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Lines that may wait to be written; what comes then is lost and counted.
const WAITING: usize = 16_384;

/// The queue of the thread that writes; none while lines are written where they are made.
static QUEUE: RwLock<Option<NonBlocking>> = RwLock::new(None);
/// Lost lines that were told.
static TOLD: AtomicUsize = AtomicUsize::new(0);

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people and the journal.
    #[default]
    Text,
    /// One object per line.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "json" => Ok(Format::Json),
            other => Err(format!("{other:?} is not a log format: text or json")),
        }
    }
}

/// A level by its name: `error`, `warn`, `info`, `debug`, `trace`.
pub fn level(name: &str) -> Option<Level> {
    [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error]
        .into_iter()
        .find(|level| level.name() == name)
}

/// Sends everything at least as loud as `level` to stderr from now on. The first call counts: a process has one log.
pub fn start(format: Format, level: Level) {
    let subscriber = subscriber(format, level, Stderr);
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Lines are written by a thread of their own until this is dropped, which writes what waits.
pub struct Background {
    _thread: WorkerGuard,
}

impl Drop for Background {
    fn drop(&mut self) {
        QUEUE.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Starts the thread that writes. It has the rights of whoever starts it: to be called when they are given up.
pub fn in_background() -> Background {
    let stderr = BufWriter::with_capacity(64 * 1024, io::stderr());
    let (queue, thread) = NonBlockingBuilder::default()
        .buffered_lines_limit(WAITING)
        .lossy(true)
        .thread_name("log")
        .finish(stderr);
    QUEUE.write().unwrap_or_else(PoisonError::into_inner).replace(queue);
    Background { _thread: thread }
}

/// Where a line goes now.
struct Stderr;

enum Line {
    Queued(NonBlocking),
    Direct(io::Stderr),
}

impl<'writer> MakeWriter<'writer> for Stderr {
    type Writer = Line;

    fn make_writer(&'writer self) -> Line {
        match QUEUE.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(queue) => Line::Queued(queue.clone()),
            None => Line::Direct(io::stderr()),
        }
    }
}

impl Write for Line {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        match self {
            Line::Queued(queue) => queue.write(octets),
            Line::Direct(stderr) => stderr.write(octets),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Says how many lines were lost so far, when there are more of them. Nothing but another line says so.
fn tell_lost() {
    let lost = QUEUE
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .as_ref()
        .map_or(0, |queue| queue.error_counter().dropped_lines());
    if TOLD.fetch_max(lost, Ordering::Relaxed) < lost {
        tracing::warn!(target: "log", "{lost} lines are lost so far: whoever reads stderr is too slow");
    }
}

fn subscriber<W>(format: Format, level: Level, writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_max_level(filter(level))
        .event_format(Lines { format })
        .with_writer(writer)
        .finish()
}

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    }
}

/// Logs an event at its level. Its text and fields are written only when the level is on.
pub fn event(event: &Event) {
    // The level of a tracing call is fixed where it stands, hence one per level.
    macro_rules! at {
        ($level:ident) => {
            tracing::event!(
                target: "gdoi",
                tracing::Level::$level,
                event = event.name(),
                fields = %Json(event),
                "{event}"
            )
        };
    }
    match event.level() {
        Level::Trace => at!(TRACE),
        Level::Debug => at!(DEBUG),
        Level::Info => at!(INFO),
        Level::Warn => at!(WARN),
        Level::Error => at!(ERROR),
    }
    if filter(event.level()) <= LevelFilter::current() {
        tell_lost();
    }
}

/// The event as JSON, written when a line is.
struct Json<'a>(&'a Event);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self.0).map_err(|_| fmt::Error)?)
    }
}

struct Lines {
    format: Format,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: tracing::Subscriber + for<'lookup> LookupSpan<'lookup>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> fmt::Result {
        let mut parts = Parts { wants_fields: self.format == Format::Json, ..Parts::default() };
        event.record(&mut parts);
        let time = rfc3339(crate::clock::unix_seconds());
        let level = event.metadata().level();
        match self.format {
            Format::Text => {
                let name = parts.event.as_deref().unwrap_or_else(|| event.metadata().target());
                write!(line, "{time} {level:<5} {name}: {}", parts.message)?;
                for (key, value) in &parts.other {
                    write!(line, " {key}={value}")?;
                }
                writeln!(line)
            }
            Format::Json => {
                // Our own keys go first; a field of an event never replaces them.
                let mut object = Map::new();
                object.insert("time".to_owned(), time.into());
                object.insert("level".to_owned(), level.as_str().to_ascii_lowercase().into());
                let fields =
                    parts.fields.as_deref().and_then(|text| serde_json::from_str::<Map<_, _>>(text).ok());
                for (key, value) in fields.into_iter().flatten().chain(parts.other) {
                    object.entry(key).or_insert(value);
                }
                object.entry("message").or_insert(parts.message.into());
                writeln!(line, "{}", Value::Object(object))
            }
        }
    }
}

#[derive(Default)]
struct Parts {
    /// The fields of an event are written for JSON lines only: the text says them.
    wants_fields: bool,
    event: Option<String>,
    fields: Option<String>,
    message: String,
    other: Vec<(String, Value)>,
}

impl Visit for Parts {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "event" => self.event = Some(value.to_owned()),
            "message" => self.message = printable(value),
            name => self.other.push((name.to_owned(), value.into())),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.other.push((field.name().to_owned(), value.into()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.other.push((field.name().to_owned(), value.into()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.other.push((field.name().to_owned(), value.into()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "fields" && !self.wants_fields {
            return;
        }
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = printable(&text),
            "fields" => self.fields = Some(text),
            name => self.other.push((name.to_owned(), text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Page {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(octets)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: Level, write: impl FnOnce()) -> String {
        let page = Page::default();
        let writer = page.clone();
        tracing::subscriber::with_default(subscriber(format, level, move || writer.clone()), write);
        let octets = page.0.lock().unwrap().clone();
        String::from_utf8(octets).unwrap()
    }

    fn registered() -> Event {
        Event::MemberRegistered {
            group: "g1".to_owned(),
            member: "a \"b\"".to_owned(),
            address: "10.0.0.1:848".to_owned(),
            gateway: "members".to_owned(),
        }
    }

    #[test]
    fn text_has_time_level_name_and_the_line() {
        let line = logged(Format::Text, Level::Info, || event(&registered()));
        assert!(
            line.ends_with("Z INFO  member_registered: g1: a \"b\" registered from 10.0.0.1:848\n"),
            "{line}"
        );
    }

    #[test]
    fn json_has_every_field_by_itself() {
        let line = logged(Format::Json, Level::Info, || event(&registered()));
        let object: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(object["level"], "info");
        assert_eq!(object["event"], "member_registered");
        assert_eq!(object["member"], "a \"b\"");
        assert_eq!(object["message"], "g1: a \"b\" registered from 10.0.0.1:848");
    }

    #[test]
    fn what_is_quieter_than_the_level_is_not_written() {
        let dropped = Event::MessageDropped { peer: "p".to_owned(), reason: "r".to_owned() };
        assert_eq!(logged(Format::Text, Level::Info, || event(&dropped)), "");
        assert_ne!(logged(Format::Text, Level::Debug, || event(&dropped)), "");
    }

    #[test]
    fn a_line_of_a_library_stays_one_line() {
        let line = logged(Format::Text, Level::Info, || tracing::info!(count = 3, "a\nb"));
        assert!(line.ends_with("a\\nb count=3\n"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn levels_and_formats_are_found_by_name() {
        assert_eq!(level("warn"), Some(Level::Warn));
        assert_eq!(level("loud"), None);
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("xml".parse::<Format>().is_err());
    }
}
