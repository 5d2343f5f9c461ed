//! The default store: one SQLite file, write-ahead log, every commit on disk before it returns.
//!
//! ```text
//! meta   (name TEXT PRIMARY KEY, value TEXT)
//! record (kind TEXT, key TEXT, body BLOB, sum BLOB, PRIMARY KEY (kind, key))
//! ```
//!
//! | name in `meta` | value |
//! | --- | --- |
//! | `schema` | `2`; `1` had no `sum` and is carried over when it is opened |
//! | `seal` | how bodies are sealed (`seal.rs`); absent: they are not |
//! | `sweep` | rows were sealed anew, what stood there before is still to be overwritten |
//! | `backup` | when it was copied: a backup is restored, never run |

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gdoi_proto::secret::SecretBytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};

use super::seal::{self, HeaderError, Seal};
use super::{Store, StoreError};
use crate::engine::durable::{Change, Kind, Row};

/// The schema this release writes.
pub(super) const SCHEMA: &str = "2";
/// The schema before: no checksums.
const SCHEMA_WITHOUT_SUMS: &str = "1";
/// The file's name in the state directory.
pub(super) const FILE: &str = "state.sqlite";
/// Its write-ahead log, by SQLite's rule.
pub(super) const LOG: &str = "state.sqlite-wal";
/// Says that a restore has begun and not ended.
pub(super) const PENDING: &str = "restore-pending";

/// An open state file.
#[derive(Debug)]
pub struct Embedded {
    connection: Connection,
    path: PathBuf,
    seal: Option<Seal>,
}

impl Embedded {
    /// Opens (or makes) the state in `directory`. Directory and file must belong to their owner alone. With a key its rows
    /// are sealed; rows in clear are sealed now.
    ///
    /// # Errors
    /// [`StoreError`]; a damaged, newer or otherwise sealed file is left untouched.
    pub fn open(directory: &Path, state_key: Option<&SecretBytes>) -> Result<Embedded, StoreError> {
        let refuse = |path: &Path, reason: String| StoreError::Refused { path: path.to_owned(), reason };
        if !directory.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| refuse(directory, format!("cannot be made: {error}")))?;
        }
        private(directory, 0o700)?;
        refuse_pending(directory)?;
        let path = directory.join(FILE);
        if path.exists() {
            private(&path, 0o600)?;
        }
        let empty = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0;
        if empty(&path) && !empty(&directory.join(LOG)) {
            // SQLite would throw the log away as a leftover; it may hold the only copy of the last batches.
            let reason = format!("{LOG} has content and this file has none");
            return Err(StoreError::Damaged { path, reason });
        }
        // SQLite gives its log the mode of the file.
        fs::OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| refuse(&path, format!("cannot be opened: {error}")))?;
        let failed = |error: rusqlite::Error| described(&path, &error);
        let connection = Connection::open(&path).map_err(failed)?;
        connection.busy_timeout(Duration::from_secs(1)).map_err(failed)?;
        // Closing would write the log into a file that is found to be damaged.
        let keep = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        connection.set_db_config(keep, true).map_err(failed)?;
        // Looked at before anything is written: what is damaged, sealed otherwise or of another release stays as it is.
        let header = inspect(&connection, &path, "quick_check")?;
        if header.backup.is_some() {
            let reason =
                "this is a backup, its numbers may have been used since: gcksd --restore FILE".to_owned();
            return Err(refuse(&path, reason));
        }
        let seal = header.seal(&path, state_key)?;
        connection.set_db_config(keep, false).map_err(failed)?;
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))
            .map_err(failed)?;
        if mode != "wal" {
            let reason = format!("this file system takes no write-ahead log (SQLite stays in mode {mode})");
            return Err(StoreError::Refused { path, reason });
        }
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.pragma_update(None, "secure_delete", "ON").map_err(failed)?;
        // Nothing of a row goes to a file of its own.
        connection.pragma_update(None, "temp_store", "MEMORY").map_err(failed)?;
        if header.schema.is_none() {
            connection.execute_batch(FRESH).map_err(failed)?;
            // SQLite syncs its files; that they are there at all is in their directory, and that in its own.
            sync(directory).map_err(|error| refuse(directory, format!("cannot be synced: {error}")))?;
        }
        let mut store = Embedded { connection, path, seal };
        let wanted = match (&store.seal, state_key) {
            (None, Some(key)) => Some(new_seal(&store.path, key)?),
            _ => None,
        };
        if header.schema.as_deref() == Some(SCHEMA_WITHOUT_SUMS) {
            let transaction =
                store.connection.transaction().map_err(|error| described(&store.path, &error))?;
            carry_over(&transaction)?;
            transaction.commit().map_err(|error| described(&store.path, &error))?;
        }
        if let Some(seal) = wanted {
            store.rewrite(seal)?;
        } else if header.sweep {
            store.sweep()?;
        }
        Ok(store)
    }

    /// Seals every row; all or none.
    fn rewrite(&mut self, seal: Seal) -> Result<usize, StoreError> {
        let path = self.path.clone();
        let failed = |error: rusqlite::Error| described(&path, &error);
        let rows = read(&self.connection, &path, self.seal.as_ref())?;
        let transaction = self.connection.transaction().map_err(failed)?;
        for row in &rows {
            put(&transaction, Some(&seal), row)?;
        }
        for (name, value) in [("seal", seal.header()), ("sweep", "1")] {
            transaction
                .execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)", [name, value])
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        self.seal = Some(seal);
        self.sweep()?;
        Ok(rows.len())
    }

    /// Overwrites what stood in the files before the rows were sealed.
    fn sweep(&mut self) -> Result<(), StoreError> {
        let swept = || {
            self.connection.execute_batch("VACUUM")?;
            let held: bool =
                self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            // A reader, which is a backup, holds the log up: the mark stays, and the next start sweeps again.
            if !held {
                self.connection.execute("DELETE FROM meta WHERE name = 'sweep'", [])?;
            }
            Ok(())
        };
        swept().map_err(|error: rusqlite::Error| {
            let path = self.path.display();
            StoreError::Failed(format!(
                "{path}: the rows are sealed, but what stood there before is not overwritten yet: {error}"
            ))
        })
    }

    /// Pages the file may have at most: fills the disk.
    #[cfg(test)]
    pub(super) fn limit_pages(&mut self, pages: u32) -> Result<(), StoreError> {
        let path = self.path.clone();
        self.connection
            .pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))
            .map_err(|error| described(&path, &error))
    }
}

impl Store for Embedded {
    fn load(&mut self) -> Result<Vec<Row>, StoreError> {
        read(&self.connection, &self.path, self.seal.as_ref())
    }

    fn apply(&mut self, batches: &[Vec<Change>]) -> Result<(), StoreError> {
        let failed = |error: rusqlite::Error| StoreError::Failed(error.to_string());
        // Dropping the transaction on an error rolls it back.
        let transaction = self.connection.transaction().map_err(failed)?;
        write(&transaction, self.seal.as_ref(), batches.iter().flatten())?;
        transaction.commit().map_err(failed)
    }

    fn reseal(&mut self, state_key: &SecretBytes) -> Result<usize, StoreError> {
        let seal = new_seal(&self.path, state_key)?;
        self.rewrite(seal)
    }
}

/// A state whose restore was interrupted is neither the old one nor the new.
pub(super) fn refuse_pending(directory: &Path) -> Result<(), StoreError> {
    if directory.join(PENDING).exists() {
        let reason = "a restore was interrupted here: run gcksd --restore FILE again".to_owned();
        return Err(StoreError::Refused { path: directory.join(PENDING), reason });
    }
    Ok(())
}

/// One transaction: a crash leaves an empty file or a whole one.
const FRESH: &str = "BEGIN;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE record (
        kind TEXT NOT NULL, key TEXT NOT NULL, body BLOB NOT NULL, sum BLOB, PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    INSERT INTO meta (name, value) VALUES ('schema', '2');
    COMMIT;";

fn new_seal(path: &Path, state_key: &SecretBytes) -> Result<Seal, StoreError> {
    Seal::new(state_key).map_err(|_| {
        StoreError::Failed(format!("{}: the crypto library makes no key to seal with", path.display()))
    })
}

/// Gives a file of the schema before its checksums, within a transaction of the caller's.
pub(super) fn carry_over(connection: &Connection) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| StoreError::Failed(error.to_string());
    let old: String = connection
        .query_row("SELECT value FROM meta WHERE name = 'schema'", [], |row| row.get(0))
        .map_err(failed)?;
    if old != SCHEMA_WITHOUT_SUMS {
        return Ok(());
    }
    let rows = read(connection, Path::new(FILE), None)?;
    connection.execute_batch("ALTER TABLE record ADD COLUMN sum BLOB").map_err(failed)?;
    for row in &rows {
        put(connection, None, row)?;
    }
    connection.execute("UPDATE meta SET value = ?1 WHERE name = 'schema'", [SCHEMA]).map_err(failed)?;
    Ok(())
}

/// Applies changes within a transaction of the caller's.
pub(super) fn write<'a>(
    connection: &Connection,
    seal: Option<&Seal>,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<(), StoreError> {
    for change in changes {
        match change {
            Change::Put(row) => put(connection, seal, row)?,
            Change::Remove { kind, key } => {
                let mut remove = connection
                    .prepare_cached("DELETE FROM record WHERE kind = ?1 AND key = ?2")
                    .map_err(|error| StoreError::Failed(error.to_string()))?;
                remove
                    .execute(params![kind.name(), key])
                    .map_err(|error| StoreError::Failed(error.to_string()))?;
            }
        }
    }
    Ok(())
}

fn put(connection: &Connection, seal: Option<&Seal>, row: &Row) -> Result<(), StoreError> {
    let (body, sum) = seal::stored(seal, row.kind.name(), &row.key, &row.body)
        .ok_or_else(|| StoreError::Failed("the crypto library does not seal".to_owned()))?;
    connection
        .prepare_cached("INSERT OR REPLACE INTO record (kind, key, body, sum) VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut put| put.execute(params![row.kind.name(), row.key, body.expose(), sum]))
        .map(drop)
        .map_err(|error| StoreError::Failed(error.to_string()))
}

/// Every row, opened and checked.
pub(super) fn read(
    connection: &Connection,
    path: &Path,
    seal: Option<&Seal>,
) -> Result<Vec<Row>, StoreError> {
    let failed = |error: rusqlite::Error| described(path, &error);
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let sums: bool = connection
        .query_row("SELECT count(*) FROM pragma_table_info('record') WHERE name = 'sum'", [], |row| {
            row.get(0)
        })
        .map_err(failed)?;
    let columns = if sums { "kind, key, body, sum" } else { "kind, key, body, NULL" };
    let mut statement = connection.prepare(&format!("SELECT {columns} FROM record")).map_err(failed)?;
    let mut found = statement.query([]).map_err(failed)?;
    let mut out = Vec::new();
    while let Some(row) = found.next().map_err(failed)? {
        let (name, key): (String, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let body = SecretBytes::new(row.get(2).map_err(failed)?);
        let sum: Option<Vec<u8>> = row.get(3).map_err(failed)?;
        let Some(kind) = Kind::from_name(&name) else {
            return Err(damaged(format!("record of unknown kind {name}")));
        };
        let body = if sums {
            seal::opened(seal, &name, &key, body, sum.as_deref())
                .map_err(|reason| damaged(format!("record {name} {key}: {reason}")))?
        } else {
            body
        };
        out.push(Row { kind, key, body });
    }
    Ok(out)
}

/// What a file says of itself.
pub(super) struct Header {
    /// None: nothing is in it.
    pub schema: Option<String>,
    pub sealed: Option<String>,
    pub sweep: bool,
    pub backup: Option<String>,
}

impl Header {
    /// The seal of this file, none when it has none.
    pub fn seal(&self, path: &Path, state_key: Option<&SecretBytes>) -> Result<Option<Seal>, StoreError> {
        let Some(sealed) = &self.sealed else { return Ok(None) };
        let refuse = |reason: &str| StoreError::Sealed { path: path.to_owned(), reason: reason.to_owned() };
        let Some(key) = state_key else {
            return Err(refuse("it is sealed and the configuration has no state-key"));
        };
        Seal::open(key, sealed).map(Some).map_err(|error| match error {
            HeaderError::OtherKey => refuse("it is sealed under another state-key than the configured one"),
            HeaderError::Library => {
                StoreError::Failed("the crypto library makes no key to open with".to_owned())
            }
            HeaderError::Damaged => {
                let reason = "how it is sealed cannot be read".to_owned();
                StoreError::Damaged { path: path.to_owned(), reason }
            }
        })
    }
}

/// Looks at a file without changing it. `check` is `quick_check` or `integrity_check`.
pub(super) fn inspect(connection: &Connection, path: &Path, check: &str) -> Result<Header, StoreError> {
    let failed = |error: rusqlite::Error| described(path, &error);
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let verdict: String =
        connection.query_row(&format!("PRAGMA {check}(1)"), [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(damaged(verdict));
    }
    let schema = match schema(connection).map_err(failed)? {
        Schema::Empty => return Ok(Header { schema: None, sealed: None, sweep: false, backup: None }),
        Schema::Version(version) if version == SCHEMA || version == SCHEMA_WITHOUT_SUMS => version,
        Schema::Version(other) => {
            let reason = format!("written by another release (schema {other}, this one reads {SCHEMA})");
            return Err(StoreError::Refused { path: path.to_owned(), reason });
        }
        Schema::Missing => return Err(damaged("the schema version is missing".to_owned())),
    };
    let meta = |name: &str| {
        connection
            .query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get::<_, String>(0))
            .optional()
            .map_err(failed)
    };
    Ok(Header {
        schema: Some(schema),
        sealed: meta("seal")?,
        sweep: meta("sweep")?.is_some(),
        backup: meta("backup")?,
    })
}

/// Puts the names in `directory`, and its own, on the disk.
pub(super) fn sync(directory: &Path) -> std::io::Result<()> {
    fs::File::open(directory)?.sync_all()?;
    match directory.canonicalize()?.parent().map(fs::File::open) {
        // A directory that we may not open was not made by us.
        Some(Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        Some(parent) => parent?.sync_all(),
        None => Ok(()),
    }
}

/// What a file says of its schema.
enum Schema {
    /// Nothing: no table at all.
    Empty,
    /// Its version.
    Version(String),
    /// There are tables, but not ours.
    Missing,
}

fn schema(connection: &Connection) -> rusqlite::Result<Schema> {
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        return Ok(Schema::Empty);
    }
    let ours: i64 =
        connection
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'meta'", [], |row| row.get(0))?;
    if ours == 0 {
        return Ok(Schema::Missing);
    }
    let version: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE name = 'schema'", [], |row| row.get(0))
        .optional()?;
    Ok(version.map_or(Schema::Missing, Schema::Version))
}

pub(super) fn described(path: &Path, error: &rusqlite::Error) -> StoreError {
    let damaged = match error.sqlite_error_code() {
        Some(code) => matches!(code, ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase),
        // A value of another type than this release writes.
        None => {
            matches!(
                error,
                rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::FromSqlConversionFailure(..)
            )
        }
    };
    if damaged {
        return StoreError::Damaged { path: path.to_owned(), reason: error.to_string() };
    }
    StoreError::Failed(format!("{}: {error}", path.display()))
}

/// Refuses what group or others can read, and what is somebody else's.
pub(super) fn private(path: &Path, right: u32) -> Result<(), StoreError> {
    private_to(path, right, rustix::process::geteuid().as_raw())
}

/// The same for the user that the daemon is going to be.
pub(crate) fn private_to(path: &Path, right: u32, us: u32) -> Result<(), StoreError> {
    let refuse = |reason: String| StoreError::Refused { path: path.to_owned(), reason };
    let metadata = fs::metadata(path).map_err(|error| refuse(format!("cannot be looked at: {error}")))?;
    let owner = metadata.uid();
    if owner != us {
        return Err(refuse(format!(
            "belongs to user {owner}, this daemon runs as {us}; it holds keys: chown {us} it"
        )));
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(refuse(format!("mode {mode:04o} lets others in; it holds keys: chmod {right:04o} it")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(key: &str, body: &str) -> Change {
        Change::Put(Row { kind: Kind::Member, key: key.to_owned(), body: SecretBytes::copy(body.as_bytes()) })
    }

    fn private_directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
        directory
    }

    #[test]
    fn what_was_applied_is_there_after_reopening() {
        let directory = private_directory();
        let mut store = Embedded::open(directory.path(), None).unwrap();
        store.apply(&[vec![put("a", "1"), put("b", "2")], vec![put("a", "3")]]).unwrap();
        store.apply(&[vec![Change::Remove { kind: Kind::Member, key: "b".to_owned() }]]).unwrap();
        drop(store);
        let rows = Embedded::open(directory.path(), None).unwrap().load().unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].key.as_str(), rows[0].body.expose()), ("a", &b"3"[..]));
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn what_was_applied_is_there_when_the_process_dies_without_closing() {
        let (directory, copy) = (private_directory(), private_directory());
        let mut store = Embedded::open(directory.path(), None).unwrap();
        for batch in 0..20 {
            store.apply(&[vec![put("a", &batch.to_string()), put(&format!("b{batch}"), "x")]]).unwrap();
            // What is on the disk now is what a process that dies now leaves behind.
            for name in [FILE, LOG] {
                fs::copy(directory.path().join(name), copy.path().join(name)).unwrap();
            }
            let rows = Embedded::open(copy.path(), None).unwrap().load().unwrap();
            assert_eq!(rows.len(), batch + 2);
            assert_eq!(rows[0].body.expose(), batch.to_string().as_bytes());
        }
    }

    #[test]
    fn a_log_without_its_file_is_not_thrown_away() {
        let directory = private_directory();
        let mut store = Embedded::open(directory.path(), None).unwrap();
        store.apply(&[vec![put("a", "1")]]).unwrap();
        fs::remove_file(directory.path().join(FILE)).unwrap();
        let error = Embedded::open(directory.path(), None).expect_err("refused");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert!(fs::metadata(directory.path().join(LOG)).unwrap().len() > 0);
    }

    #[test]
    fn a_database_of_something_else_is_refused() {
        let directory = private_directory();
        let path = directory.path().join(FILE);
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE other (a)").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(Embedded::open(directory.path(), None), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_full_disk_changes_nothing_and_loses_nothing() {
        let directory = private_directory();
        let mut store = Embedded::open(directory.path(), None).unwrap();
        store.apply(&[vec![put("a", "1")]]).unwrap();
        store.limit_pages(6).unwrap();
        let large = "x".repeat(100_000);
        let error = store.apply(&[vec![put("a", "2"), put("large", &large)]]).unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
        assert_eq!(store.load().unwrap()[0].body.expose(), b"1", "no half of a batch");
        store.limit_pages(100_000).unwrap();
        store.apply(&[vec![put("a", "2"), put("large", &large)]]).unwrap();
        assert_eq!(store.load().unwrap().len(), 2);
    }

    #[test]
    fn a_damaged_file_is_named_and_left_as_it_is() {
        let directory = private_directory();
        let path = directory.path().join(FILE);
        let mut store = Embedded::open(directory.path(), None).unwrap();
        for number in 0..200 {
            store.apply(&[vec![put(&format!("member {number}"), &"y".repeat(200))]]).unwrap();
        }
        drop(store);
        let mut octets = fs::read(&path).unwrap();
        octets[4096..12_288].fill(0x5a);
        fs::write(&path, &octets).unwrap();
        let error = Embedded::open(directory.path(), None).expect_err("refused");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), octets, "nothing was replaced");
        fs::write(&path, b"this is no database at all, and long enough to look at").unwrap();
        assert!(matches!(Embedded::open(directory.path(), None), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn a_directory_open_to_others_is_refused_with_the_mode_it_needs() {
        let directory = private_directory();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = Embedded::open(directory.path(), None).expect_err("refused").to_string();
        assert!(error.contains("0755") && error.contains("chmod 0700"), "{error}");
    }

    #[test]
    fn a_file_open_to_others_is_refused_with_the_mode_it_needs() {
        let directory = private_directory();
        drop(Embedded::open(directory.path(), None).unwrap());
        let path = directory.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Embedded::open(directory.path(), None).expect_err("refused").to_string();
        assert!(error.contains("0640") && error.contains("chmod 0600"), "{error}");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let directory = private_directory();
        drop(Embedded::open(directory.path(), None).unwrap());
        let connection = Connection::open(directory.path().join(FILE)).unwrap();
        connection.execute("UPDATE meta SET value = '3' WHERE name = 'schema'", []).unwrap();
        drop(connection);
        let error = Embedded::open(directory.path(), None).expect_err("refused").to_string();
        assert!(error.contains("schema 3"), "{error}");
    }
}
