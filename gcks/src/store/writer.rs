//! The thread that writes: takes batches, puts all that wait into one transaction, and says when they are on disk. When
//! the disk refuses it keeps every batch and tries again each second.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use gdoi_proto::secret::SecretBytes;

use super::Store;
use crate::engine::durable::Change;

/// Time between tries when the disk refuses.
const RETRY: Duration = Duration::from_secs(1);
/// Batches in one transaction at most.
const GROUP: usize = 1024;

/// What the writer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Every batch up to this ticket is on disk.
    Written(u64),
    /// The disk refuses; batches are kept.
    Failing(String),
    /// It works again.
    Recovered,
}

/// Takes the number of rows sealed, or why they are not.
pub type Resealed = Box<dyn FnOnce(Result<usize, String>) + Send>;

/// What the thread is told.
enum Order {
    Write(Vec<Change>),
    Reseal(SecretBytes, Resealed),
}

/// The writing thread.
#[derive(Debug)]
pub struct Writer {
    orders: Option<Sender<Order>>,
    next: u64,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread; `report` is called on it.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        store: impl Store + 'static,
        report: impl FnMut(Report) + Send + 'static,
    ) -> std::io::Result<Writer> {
        let (orders, waiting) = channel();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || work(store, &waiting, report))?;
        Ok(Writer { orders: Some(orders), next: 0, thread: Some(thread) })
    }

    /// Hands a batch over; its ticket is one above the last.
    pub fn write(&mut self, changes: Vec<Change>) -> u64 {
        self.next += 1;
        if let Some(orders) = &self.orders {
            // The thread ends only after this sender is dropped.
            let _ = orders.send(Order::Write(changes));
        }
        self.next
    }

    /// Seals every row under a new key when what was handed over before is on disk; `done` is called on the thread.
    pub fn reseal(&mut self, state_key: SecretBytes, done: Resealed) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Order::Reseal(state_key, done));
        }
    }

    /// Writes what waits, then ends the thread. A disk that refuses is tried once more.
    pub fn finish(&mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

fn work(mut store: impl Store, waiting: &Receiver<Order>, mut report: impl FnMut(Report)) {
    let mut written = 0;
    let mut group: Vec<Vec<Change>> = Vec::new();
    let mut failing = false;
    loop {
        let mut reseal = None;
        let mut take = |group: &mut Vec<Vec<Change>>, order| match order {
            Order::Write(batch) => group.push(batch),
            Order::Reseal(key, done) => reseal = Some((key, done)),
        };
        let open = if failing {
            // Wait the retry out, collecting what comes.
            match waiting.recv_timeout(RETRY) {
                Ok(order) => {
                    take(&mut group, order);
                    true
                }
                Err(RecvTimeoutError::Timeout) => true,
                Err(RecvTimeoutError::Disconnected) => false,
            }
        } else {
            match waiting.recv() {
                Ok(order) => {
                    take(&mut group, order);
                    true
                }
                Err(_) => false,
            }
        };
        while group.len() < GROUP
            && let Ok(order) = waiting.try_recv()
        {
            let last = matches!(order, Order::Reseal(..));
            take(&mut group, order);
            if last {
                break;
            }
        }
        if !group.is_empty() {
            match store.apply(&group) {
                Ok(()) => {
                    written += group.len() as u64;
                    group.clear();
                    if std::mem::take(&mut failing) {
                        report(Report::Recovered);
                    }
                    report(Report::Written(written));
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        report(Report::Failing(error.to_string()));
                    }
                }
            }
        }
        if let Some((key, done)) = reseal {
            done(match failing {
                false => store.reseal(&key).map_err(|error| error.to_string()),
                true => Err("the state cannot be written".to_owned()),
            });
        }
        if !open {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use gdoi_proto::secret::SecretBytes;

    use super::super::StoreError;
    use super::super::embedded::Embedded;
    use super::super::memory::Memory;
    use super::*;
    use crate::engine::durable::{Kind, Row};

    fn batch(key: u32) -> Vec<Change> {
        vec![Change::Put(Row { kind: Kind::Tek, key: key.to_string(), body: SecretBytes::copy(b"x") })]
    }

    #[test]
    fn batches_that_wait_share_a_transaction_and_tickets_come_in_order() {
        let store = Memory::default();
        let (reports, said) = channel();
        let mut writer = Writer::start(store.clone(), move |report| drop(reports.send(report))).unwrap();
        let last = (0..500).map(|key| writer.write(batch(key))).last().unwrap();
        writer.finish();
        let said: Vec<Report> = said.iter().collect();
        assert_eq!(said.last(), Some(&Report::Written(last)));
        let tickets: Vec<u64> = said
            .iter()
            .filter_map(|report| if let Report::Written(n) = report { Some(*n) } else { None })
            .collect();
        assert!(tickets.is_sorted() && store.transactions() == tickets.len());
        assert_eq!(store.clone().load().unwrap().len(), 500);
    }

    #[test]
    fn a_full_disk_is_tried_again_until_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(directory.path(), private).unwrap();
        let mut store = Embedded::open(directory.path(), None).unwrap();
        store.limit_pages(6).unwrap();
        let room = Arc::new(AtomicBool::new(false));
        let store = Filling { store, room: Arc::clone(&room) };
        let (reports, said) = channel();
        let mut writer = Writer::start(store, move |report| drop(reports.send(report))).unwrap();
        let large =
            Row { kind: Kind::Tek, key: "large".to_owned(), body: SecretBytes::new(vec![1; 100_000]) };
        writer.write(vec![Change::Put(large)]);
        let Report::Failing(reason) = said.recv().unwrap() else { panic!("it cannot fit") };
        assert!(reason.contains("full"), "{reason}");
        room.store(true, Ordering::SeqCst);
        assert_eq!(said.recv().unwrap(), Report::Recovered);
        assert_eq!(said.recv().unwrap(), Report::Written(1));
        writer.finish();
        assert_eq!(Embedded::open(directory.path(), None).unwrap().load().unwrap().len(), 1);
    }

    /// A disk that has room when told.
    struct Filling {
        store: Embedded,
        room: Arc<AtomicBool>,
    }

    impl Store for Filling {
        fn load(&mut self) -> Result<Vec<Row>, StoreError> {
            self.store.load()
        }

        fn apply(&mut self, batches: &[Vec<Change>]) -> Result<(), StoreError> {
            if self.room.load(Ordering::SeqCst) {
                self.store.limit_pages(100_000)?;
            }
            self.store.apply(batches)
        }
    }

    #[test]
    fn a_disk_that_refuses_loses_nothing() {
        let store = Memory::default();
        store.fail(true);
        let (reports, said) = channel();
        let mut writer = Writer::start(store.clone(), move |report| drop(reports.send(report))).unwrap();
        writer.write(batch(1));
        assert!(matches!(said.recv().unwrap(), Report::Failing(_)));
        writer.write(batch(2));
        store.fail(false);
        writer.write(batch(3));
        assert_eq!(said.recv().unwrap(), Report::Recovered);
        writer.finish();
        assert_eq!(said.iter().last(), Some(Report::Written(3)));
        assert_eq!(store.clone().load().unwrap().len(), 3);
    }
}
