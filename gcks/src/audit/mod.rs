//! Who decided what about members and keys, when, why, and by which statement of the configuration: a log that cannot be
//! changed unseen. A thread of its own writes it; nothing ever waits for it, and what it could not write is named.

pub mod log;
pub mod statements;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ctl::event::{Event, Level};
use ctl::time::rfc3339;
use log::{Log, Record};

/// The directory of the log in the state directory.
pub const DIRECTORY: &str = "audit";
/// Octets of a file before the next begins.
const FILE_SIZE: u64 = 16 * 1024 * 1024;
/// Full files that are kept.
const KEEP: usize = 64;
/// Records that may wait for the disk; more are counted and lost.
const WAITING: usize = if cfg!(test) { 4096 } else { 65_536 };
/// Records under one signature at most.
const BATCH: usize = 1024;
/// Time between tries when the disk refuses.
const RETRY: Duration = Duration::from_secs(1);

/// The log of a running daemon. Dropping it writes what waits; a disk that refuses is tried once more.
#[derive(Debug)]
pub struct Audit {
    records: SyncSender<Option<Record>>,
    lost: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A way into the log; clones write to the same.
#[derive(Debug, Clone)]
pub struct Recorder {
    records: SyncSender<Option<Record>>,
    lost: Arc<AtomicU64>,
}

/// True for what is a decision about members or keys, or about the log itself.
pub fn is_decision(event: &Event) -> bool {
    match event {
        // The keys a member was given.
        Event::PullCompleted { .. } => true,
        Event::Listening { .. }
        | Event::EventsLost { .. }
        | Event::Phase1Established { .. }
        | Event::Phase1Deleted { .. }
        | Event::PushSent { .. }
        // The thread of the log records these itself.
        | Event::AuditFailed { .. }
        | Event::AuditRecovered { .. }
        | Event::AuditGap { .. }
        | Event::AuditClosed
        | Event::AuditFileRemoved { .. } => false,
        event => event.level() >= Level::Info,
    }
}

impl Recorder {
    /// Records a decision and the statements of the configuration it rests on. It never waits.
    pub fn event(&self, unix_seconds: u64, event: &Event, statement: Option<&str>) {
        let Some(mut record) = record(unix_seconds, event) else { return };
        if let Some(text) = statement.and_then(|statement| serde_json::to_string(statement).ok()) {
            record.fields.push_str(",\"statement\":");
            record.fields.push_str(&text);
        }
        if self.records.try_send(Some(record)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Audit {
    /// Starts the thread, which opens the log in `directory` with the first record. `tell` is called on it when the disk
    /// refuses, when it works again, and when something is missing.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(directory: &Path, tell: impl Fn(&Event) + Send + 'static) -> io::Result<Audit> {
        Audit::work(Place::Closed(directory.to_owned()), tell)
    }

    fn work(log: Place, tell: impl Fn(&Event) + Send + 'static) -> io::Result<Audit> {
        let (records, waiting) = sync_channel(WAITING);
        let (lost, closing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let writer = Writer {
            log,
            lost: Arc::clone(&lost),
            closing: Arc::clone(&closing),
            tell,
            batch: Vec::new(),
            failing: false,
        };
        let thread =
            std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&waiting))?;
        Ok(Audit { records, lost, closing, thread: Some(thread) })
    }

    /// A way in.
    pub fn recorder(&self) -> Recorder {
        Recorder { records: self.records.clone(), lost: Arc::clone(&self.lost) }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        // Wakes the thread; when there is no room for it, it does not sleep.
        let _ = self.records.try_send(None);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where the log is.
enum Place {
    Closed(PathBuf),
    Open(Box<Log>),
}

/// What the thread has.
struct Writer<T> {
    log: Place,
    lost: Arc<AtomicU64>,
    closing: Arc<AtomicBool>,
    tell: T,
    batch: Vec<Record>,
    failing: bool,
}

impl<T: Fn(&Event)> Writer<T> {
    fn run(mut self, waiting: &Receiver<Option<Record>>) {
        loop {
            let closing = self.closing.load(Ordering::SeqCst);
            if self.failing && self.batch.len() >= BATCH {
                // The queue fills meanwhile, and what it cannot take is counted.
                std::thread::sleep(RETRY);
            } else if self.failing {
                self.batch.extend(waiting.recv_timeout(RETRY).ok().flatten());
            } else if self.batch.is_empty() && !closing {
                let Ok(order) = waiting.recv() else { return };
                self.batch.extend(order);
            }
            while self.batch.len() < BATCH
                && let Ok(order) = waiting.try_recv()
            {
                self.batch.extend(order);
            }
            if self.batch.is_empty() {
                if closing {
                    self.batch.extend(record(runtime::clock::unix_seconds(), &Event::AuditClosed));
                    // Without it the next start names a gap.
                    let _ = self.append();
                    return;
                }
                continue;
            }
            if !self.write() && closing {
                return;
            }
        }
    }

    /// Writes the batch to the open log.
    fn append(&mut self) -> io::Result<()> {
        let opened = match &mut self.log {
            Place::Open(log) => return log.append(&self.batch),
            Place::Closed(directory) => Log::open(directory, FILE_SIZE, KEEP)?,
        };
        let (mut log, gaps) = opened;
        let notes: Vec<Event> = gaps.into_iter().map(|reason| Event::AuditGap { reason }).collect();
        notes.iter().for_each(|event| (self.tell)(event));
        let now = runtime::clock::unix_seconds();
        self.batch.splice(..0, notes.iter().filter_map(|event| record(now, event)));
        let result = log.append(&self.batch);
        self.log = Place::Open(Box::new(log));
        result
    }

    /// Writes the batch; false when the disk refuses.
    fn write(&mut self) -> bool {
        if let Err(error) = self.append() {
            if !std::mem::replace(&mut self.failing, true) {
                (self.tell)(&Event::AuditFailed { reason: error.to_string() });
            }
            return false;
        }
        self.batch.clear();
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if std::mem::take(&mut self.failing) {
            self.note(&Event::AuditRecovered { lost });
        } else if lost > 0 {
            self.note(&Event::AuditGap { reason: format!("{lost} records found no room in memory") });
        }
        let Place::Open(log) = &mut self.log else { return true };
        for file in log.rotate().unwrap_or_default() {
            self.note(&Event::AuditFileRemoved { file });
        }
        true
    }

    /// Tells of the log itself, and records it.
    fn note(&mut self, event: &Event) {
        (self.tell)(event);
        self.batch.extend(record(runtime::clock::unix_seconds(), event));
    }
}

fn record(unix_seconds: u64, event: &Event) -> Option<Record> {
    let text = serde_json::to_string(event).ok()?;
    let fields = text.strip_prefix('{')?.strip_suffix('}')?.to_owned();
    Some(Record { time: rfc3339(unix_seconds), fields })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn revoked(number: usize) -> Event {
        Event::MemberRevoked { group: "g1".to_owned(), member: format!("gm{number}") }
    }

    #[test]
    fn a_full_disk_loses_no_record_that_fits_in_memory_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(directory.path(), FILE_SIZE, KEEP).unwrap();
        let full = log.full_disk();
        full.store(true, Ordering::SeqCst);
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = Arc::clone(&told);
        let audit =
            Audit::work(Place::Open(Box::new(log)), move |event| teller.lock().unwrap().push(event.name()))
                .unwrap();
        let recorder = audit.recorder();
        for number in 0..2000 {
            recorder.event(0, &revoked(number), Some("gcks.toml:7 group.g1"));
        }
        while told.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        full.store(false, Ordering::SeqCst);
        drop(recorder);
        drop(audit);
        assert_eq!(*told.lock().unwrap(), ["audit_failed", "audit_recovered"]);
        let records = verify::records(directory.path(), 5000).unwrap();
        assert_eq!(records.len(), 2002, "two of the log itself");
        assert!(records.iter().any(|line| line.contains("audit_recovered")));
        assert!(
            records[0].contains("\"member\":\"gm0\",\"statement\":\"gcks.toml:7 group.g1\"}"),
            "{}",
            records[0]
        );
        assert!(verify::check(directory.path()).unwrap().starts_with("good: lines 1 to "));
    }

    #[test]
    fn what_finds_no_room_in_memory_is_counted_and_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(directory.path(), FILE_SIZE, KEEP).unwrap();
        let full = log.full_disk();
        full.store(true, Ordering::SeqCst);
        let (tell, told) = std::sync::mpsc::channel();
        let audit = Audit::work(Place::Open(Box::new(log)), move |event| {
            let _ = tell.send(event.name());
        })
        .unwrap();
        let recorder = audit.recorder();
        recorder.event(0, &revoked(0), None);
        assert_eq!(told.recv().unwrap(), "audit_failed");
        let all = WAITING + 10 * BATCH;
        for number in 1..all {
            recorder.event(0, &revoked(number), None);
        }
        full.store(false, Ordering::SeqCst);
        drop(recorder);
        drop(audit);
        let records = verify::records(directory.path(), usize::MAX).unwrap();
        let note = records.iter().find(|line| line.contains("\"event\":\"audit_recovered\"")).unwrap();
        let lost: usize =
            serde_json::from_str::<serde_json::Value>(note).unwrap()["lost"].as_u64().unwrap() as usize;
        assert!(lost >= 8 * BATCH, "{lost}");
        assert_eq!(records.len() - 2 + lost, all, "each is there or counted");
        verify::check(directory.path()).unwrap();
    }
}
