//! Requests about the stored state. Reading it takes time, so it is done beside the loop, on another connection to the
//! database; sealing is done by the thread that writes.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ctl::control::Reply;
use ctl::event::Event;
use gdoi_proto::secret::SecretBytes;
use tokio::sync::oneshot;

use crate::audit;
use crate::store::StoreError;
use crate::store::offline;
use crate::store::writer::Writer;

/// Records in one answer at most; the files have all.
const RECORDS: usize = 10_000;

/// True for a name below `directory` that leads nowhere else.
fn below(path: &Path, directory: &Path) -> bool {
    let up = path.components().any(|part| part == Component::ParentDir);
    path != directory && path.starts_with(directory) && !up
}

/// Where an event goes, from any thread.
pub type Tell = Arc<dyn Fn(&Event) + Send + Sync>;

/// The state as a file, with the key it is sealed under now.
#[derive(Clone)]
pub struct Keeper {
    directory: PathBuf,
    /// Backups go below it.
    backups: PathBuf,
    state_key: Arc<Mutex<Option<SecretBytes>>>,
    tell: Tell,
}

impl Keeper {
    /// Of an open state.
    pub fn new(directory: PathBuf, backups: PathBuf, state_key: Option<SecretBytes>, tell: Tell) -> Keeper {
        Keeper { directory, backups, state_key: Arc::new(Mutex::new(state_key)), tell }
    }

    fn state_key(&self) -> Option<SecretBytes> {
        self.state_key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads every page and record.
    pub fn verify(&self, reply: oneshot::Sender<Reply>) {
        self.beside(reply, |keeper| {
            let verified = offline::verify(&keeper.directory, keeper.state_key().as_ref())?;
            Ok(format!("good: {verified}"))
        });
    }

    /// The last records of the audit log, after a check of all of it when wanted.
    pub fn audit(&self, last: u64, verify: bool, reply: oneshot::Sender<Reply>) {
        let directory = self.directory.join(audit::DIRECTORY);
        tokio::task::spawn_blocking(move || {
            let found = || -> Result<Reply, String> {
                let verified = if verify {
                    let wrong = |what| format!("the audit log is not as it was written: {what}");
                    Some(audit::verify::check(&directory).map_err(wrong)?)
                } else {
                    None
                };
                let last = usize::try_from(last).unwrap_or(usize::MAX).min(RECORDS);
                let records = audit::verify::records(&directory, last)
                    .map_err(|error| format!("{}: {error}", directory.display()))?;
                Ok(Reply::Audit { records, verified })
            };
            // Who asked may be gone.
            let _ = reply.send(found().unwrap_or_else(|reason| Reply::Refused { reason }));
        });
    }

    /// Copies the state into the new file `to`, as of `time`.
    pub fn backup(&self, to: PathBuf, time: String, reply: oneshot::Sender<Reply>) {
        self.beside(reply, move |keeper| {
            if !to.is_absolute() {
                let reason = "name the file with its whole path".to_owned();
                return Err(StoreError::Refused { path: to, reason });
            }
            if !below(&to, &keeper.backups) {
                let below = keeper.backups.display();
                let reason = format!("backups go below {below}, see backup-directory in [server]");
                return Err(StoreError::Refused { path: to, reason });
            }
            let copied = offline::backup(&keeper.directory, keeper.state_key().as_ref(), &to, &time)?;
            let file = to.display().to_string();
            let text = format!("backup written to {file} and read back: {copied}");
            (keeper.tell)(&Event::StateBackedUp { file, records: copied.rows.len() as u64 });
            Ok(text)
        });
    }

    /// Has every record sealed under `state_key`.
    pub fn reseal(&self, writer: &mut Writer, state_key: SecretBytes, reply: oneshot::Sender<Reply>) {
        let keeper = self.clone();
        let key = state_key.clone();
        writer.reseal(
            state_key,
            Box::new(move |done| {
                let answer = match done {
                    Ok(records) => {
                        *keeper.state_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key);
                        (keeper.tell)(&Event::StateResealed { records: records as u64 });
                        Reply::done(format!(
                            "{records} records sealed under the configured state-key, with a new salt"
                        ))
                    }
                    Err(reason) => Reply::Refused { reason },
                };
                let _ = reply.send(answer);
            }),
        );
    }

    fn beside(
        &self,
        reply: oneshot::Sender<Reply>,
        act: impl FnOnce(&Keeper) -> Result<String, StoreError> + Send + 'static,
    ) {
        let keeper = self.clone();
        tokio::task::spawn_blocking(move || {
            let answer = match act(&keeper) {
                Ok(text) => Reply::done(text),
                Err(error) => Reply::Refused { reason: error.to_string() },
            };
            // Who asked may be gone.
            let _ = reply.send(answer);
        });
    }
}
