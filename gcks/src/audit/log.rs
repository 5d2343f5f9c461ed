//! The files of the audit log: one JSON line per record with the hash of the line before, and after every batch a line
//! that signs the hash of what precedes it.
//!
//! ```text
//! {"n":1,"prev":"00…","time":"…","event":"started",…}
//! {"n":2,"prev":"<SHA-256 of line 1 without its end>","time":"…","event":"member_registered",…}
//! {"n":3,"prev":"<SHA-256 of line 2>","time":"…","event":"signature","signature":"<base64>"}
//! ```
//!
//! A signature is ECDSA P-256 in DER over SHA-256 of the text `gcksd audit N PREV` with the `n` and `prev` of its line.
//! Numbers and hashes go on over files: `audit.jsonl` is written, `audit-N.jsonl` are full ones, by their first number.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64ct::{Base64, Encoding};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Hash;
use ike::crypto::at_rest::LogKey;
use ike::crypto::prf::hash;
use pem_rfc7468::LineEnding;

/// The file that is written.
pub const FILE: &str = "audit.jsonl";
/// The public key, for whoever checks.
pub const PUBLIC_KEY: &str = "audit.pub";
const PRIVATE_KEY: &str = "audit.key";
/// `prev` of the first line.
const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Where one line ends up at most, for finding the last one.
const TAIL: u64 = 256 * 1024;

/// One record: its moment and its JSON object without the outer braces.
#[derive(Debug, Clone)]
pub struct Record {
    /// RFC 3339.
    pub time: String,
    /// `"event":"…",…`
    pub fields: String,
}

/// An open log.
#[derive(Debug)]
pub struct Log {
    directory: PathBuf,
    file: File,
    length: u64,
    limit: u64,
    keep: usize,
    key: LogKey,
    /// Number of the first line of the file.
    first: u64,
    /// Of the next line.
    next: u64,
    previous: String,
    /// Something is behind `length` that does not belong there.
    dirty: bool,
    #[cfg(test)]
    full: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Log {
    /// Opens (or makes) the log in `directory`: files of `limit` octets, `keep` full ones. What is missing in it comes
    /// with it, to be recorded.
    ///
    /// # Errors
    /// When a file or the key cannot be read or made.
    pub fn open(directory: &Path, limit: u64, keep: usize) -> io::Result<(Log, Vec<String>)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join(FILE);
        let mut gaps = Vec::new();
        let (key, fresh) = key(directory)?;
        if fresh && path.exists() {
            let aside = set_aside(directory)?;
            gaps.push(format!("the signing key was missing: the log before is in {aside}, a new one begins"));
        }
        publish(directory, &key)?;
        let mut file = open(&path)?;
        let (mut first, mut next, mut previous) = (1, 1, ZERO.to_owned());
        let mut tail = tail(&mut file)?;
        if tail.torn > 0 {
            file.set_len(tail.whole)?;
            gaps.push(format!("{} octets of an unfinished line were removed", tail.torn));
        }
        if tail.lines.is_empty() {
            // Between two files: the newest full one says where to go on.
            if let Some(name) = full(directory)?.last() {
                tail = self::tail(&mut File::open(directory.join(name))?)?;
            }
        } else {
            first = first_number(&path)?.unwrap_or(1);
        }
        match tail.lines.last().map(|line| (number(line), digest(line))) {
            Some((Some(last), hash)) => {
                (next, previous) = (last + 1, hash);
                if file.metadata()?.len() == 0 {
                    first = next;
                }
                if !tail.closed() {
                    gaps.push(
                        "the server ended without closing the log: its last records may be missing"
                            .to_owned(),
                    );
                }
            }
            Some((None, _)) => {
                let aside = set_aside(directory)?;
                gaps.push(format!(
                    "the last line cannot be read: the log before is in {aside}, a new one begins"
                ));
                publish(directory, &key)?;
                file = open(&path)?;
                first = 1;
            }
            None => {}
        }
        let length = file.seek(SeekFrom::End(0))?;
        let log = Log {
            directory: directory.to_owned(),
            file,
            length,
            limit,
            keep,
            key,
            first,
            next,
            previous,
            dirty: false,
            #[cfg(test)]
            full: std::sync::Arc::default(),
        };
        Ok((log, gaps))
    }

    /// While true the disk takes half of what is written.
    #[cfg(test)]
    pub(super) fn full_disk(&self) -> std::sync::Arc<std::sync::atomic::AtomicBool> {
        std::sync::Arc::clone(&self.full)
    }

    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            self.file.write_all(text.get(..text.len() / 2).unwrap_or_default())?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_all(text)?;
        self.file.sync_data()
    }

    /// Writes records and a signature, and puts them on the disk: all or, when it fails, none.
    ///
    /// # Errors
    /// What the system says; the log is as before and may be tried again.
    pub fn append(&mut self, records: &[Record]) -> io::Result<()> {
        if self.dirty {
            // What is half there must not stand before what comes next.
            self.file.set_len(self.length)?;
            self.dirty = false;
        }
        let (mut next, mut previous, mut text) = (self.next, self.previous.clone(), String::new());
        let mut put = |next: &mut u64, previous: &mut String, time: &str, fields: &str| {
            let line = format!("{{\"n\":{next},\"prev\":\"{previous}\",\"time\":\"{time}\",{fields}}}");
            *previous = digest(line.as_bytes());
            *next += 1;
            text.push_str(&line);
            text.push('\n');
        };
        for record in records {
            put(&mut next, &mut previous, &record.time, &record.fields);
        }
        let Some(time) = records.last().map(|record| &record.time) else { return Ok(()) };
        let signature = self.key.sign(signed(next, &previous).as_bytes()).map_err(io::Error::other)?;
        let fields =
            format!("\"event\":\"signature\",\"signature\":\"{}\"", Base64::encode_string(&signature));
        put(&mut next, &mut previous, time, &fields);
        self.put(text.as_bytes()).inspect_err(|_| self.dirty = true)?;
        self.length += text.len() as u64;
        (self.next, self.previous) = (next, previous);
        Ok(())
    }

    /// Begins a new file when this one is full; names of files that had to go.
    ///
    /// # Errors
    /// What the system says; the log goes on in the file it has.
    pub fn rotate(&mut self) -> io::Result<Vec<String>> {
        if self.length < self.limit {
            return Ok(Vec::new());
        }
        let aside = self.directory.join(format!("audit-{:012}.jsonl", self.first));
        fs::rename(self.directory.join(FILE), &aside)?;
        self.file = open(&self.directory.join(FILE))?;
        (self.length, self.first) = (0, self.next);
        File::open(&self.directory)?.sync_all()?;
        let mut names = full(&self.directory)?;
        let surplus = names.len().saturating_sub(self.keep);
        names.truncate(surplus);
        for name in &names {
            fs::remove_file(self.directory.join(name))?;
        }
        Ok(names)
    }
}

/// What a signature line with these fields signs.
pub fn signed(number: u64, previous: &str) -> String {
    format!("gcksd audit {number} {previous}")
}

/// SHA-256 of a line without its end, in hexadecimal.
pub fn digest(line: &[u8]) -> String {
    hash(Hash::Sha256, &[line]).iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Names of full files, oldest first.
///
/// # Errors
/// When the directory cannot be read.
pub fn full(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        if let Ok(name) = entry?.file_name().into_string()
            && name.strip_prefix("audit-").and_then(|rest| rest.strip_suffix(".jsonl")).is_some_and(
                |number| number.len() == 12 && number.bytes().all(|octet| octet.is_ascii_digit()),
            )
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// The signing key; true when it was made now.
fn key(directory: &Path) -> io::Result<(LogKey, bool)> {
    let path = directory.join(PRIVATE_KEY);
    let fresh = !path.exists();
    if fresh {
        let pkcs8 = LogKey::generate().map_err(io::Error::other)?;
        let text =
            pem_rfc7468::encode_string("PRIVATE KEY", LineEnding::LF, pkcs8.expose()).map_err(other)?;
        let text = SecretBytes::new(text.into_bytes());
        // A key that is half there would be one that cannot be read.
        let part = directory.join("audit.key.part");
        let _ = fs::remove_file(&part);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        file.write_all(text.expose())?;
        file.sync_all()?;
        fs::rename(&part, &path)?;
    }
    let pem = SecretBytes::new(fs::read(&path)?);
    let (_, der) = pem_rfc7468::decode_vec(pem.expose()).map_err(other)?;
    let key = LogKey::load(&SecretBytes::new(der)).map_err(io::Error::other)?;
    Ok((key, fresh))
}

fn publish(directory: &Path, key: &LogKey) -> io::Result<()> {
    let text = pem_rfc7468::encode_string("PUBLIC KEY", LineEnding::LF, &key.public_key()).map_err(other)?;
    let path = directory.join(PUBLIC_KEY);
    if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(());
    }
    fs::write(path, text)
}

fn other(error: pem_rfc7468::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Moves a chain that cannot be continued into a directory of its own, with the key that checks it; its name.
fn set_aside(directory: &Path) -> io::Result<String> {
    let mut number: u32 = 1;
    while directory.join(format!("before-{number}")).exists() {
        number += 1;
    }
    let name = format!("before-{number}");
    let aside = directory.join(&name);
    fs::DirBuilder::new().mode(0o700).create(&aside)?;
    for file in full(directory)?.into_iter().chain([FILE.to_owned()]) {
        fs::rename(directory.join(&file), aside.join(&file))?;
    }
    if directory.join(PUBLIC_KEY).exists() {
        fs::copy(directory.join(PUBLIC_KEY), aside.join(PUBLIC_KEY))?;
    }
    Ok(name)
}

/// The end of a file.
struct Tail {
    /// Whole lines, oldest first; the first may be half of one.
    lines: Vec<Vec<u8>>,
    /// Octets up to the last line end, and behind it.
    whole: u64,
    torn: u64,
}

impl Tail {
    /// True when the last record is the one that closes a log.
    fn closed(&self) -> bool {
        let signature = |line: &&Vec<u8>| event(line).is_some_and(|event| event == "signature");
        self.lines.iter().rev().find(|line| !signature(line)).and_then(|line| event(line)).as_deref()
            == Some("audit_closed")
    }
}

fn event(line: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(line).ok()?;
    value.get("event")?.as_str().map(str::to_owned)
}

fn tail(file: &mut File) -> io::Result<Tail> {
    let length = file.seek(SeekFrom::End(0))?;
    let start = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(start))?;
    let mut octets = Vec::new();
    file.read_to_end(&mut octets)?;
    let Some(end) = octets.iter().rposition(|octet| *octet == b'\n') else {
        return Ok(Tail { lines: Vec::new(), whole: start, torn: length - start });
    };
    let lines = octets.get(..end).unwrap_or_default();
    let lines = lines.split(|octet| *octet == b'\n').map(<[u8]>::to_vec).collect();
    let whole = start + end as u64 + 1;
    Ok(Tail { lines, whole, torn: length - whole })
}

fn number(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<serde_json::Value>(line).ok()?.get("n")?.as_u64()
}

fn first_number(path: &Path) -> io::Result<Option<u64>> {
    let mut line = Vec::new();
    io::BufRead::read_until(&mut io::BufReader::new(File::open(path)?), b'\n', &mut line)?;
    Ok(number(&line))
}

#[cfg(test)]
mod tests {
    use super::super::verify::{check, records};
    use super::*;

    fn record(number: u32) -> Record {
        Record {
            time: "2026-11-25T00:00:00Z".to_owned(),
            fields: format!("\"event\":\"member_expired\",\"n_of_test\":{number}"),
        }
    }

    fn closed() -> Record {
        Record { time: String::new(), fields: "\"event\":\"audit_closed\"".to_owned() }
    }

    fn open(directory: &Path) -> (Log, Vec<String>) {
        Log::open(directory, 2000, 3).unwrap()
    }

    #[test]
    fn the_chain_goes_on_over_starts_and_files_and_old_files_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut removed = Vec::new();
        for start in 0..12 {
            let (mut log, gaps) = open(directory.path());
            assert_eq!(gaps, [""; 0], "start {start}");
            for number in 0..4 {
                log.append(&[record(number), record(number)]).unwrap();
                removed.extend(log.rotate().unwrap());
            }
            log.append(&[closed()]).unwrap();
            let good = check(directory.path()).unwrap();
            assert!(good.starts_with("good: lines ") && good.contains("signatures"), "{good}");
        }
        assert_eq!(full(directory.path()).unwrap().len(), 3);
        assert!(!removed.is_empty() && check(directory.path()).unwrap().contains("older files are gone"));
        assert_eq!(records(directory.path(), 5).unwrap().len(), 5);
        assert!(records(directory.path(), 20).unwrap().iter().all(|line| !line.contains("\"signature\"")));
    }

    #[test]
    fn a_process_that_dies_at_any_octet_leaves_a_chain_that_goes_on_and_names_the_gap() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, _) = open(directory.path());
        log.append(&[record(1)]).unwrap();
        log.append(&[record(2)]).unwrap();
        let octets = fs::read(directory.path().join(FILE)).unwrap();
        let ends = (0..octets.len()).filter(|place| octets[*place] == b'\n');
        let places: Vec<usize> =
            (0..octets.len()).step_by(13).chain(ends.flat_map(|end| [end, end + 1])).collect();
        for place in places {
            fs::write(directory.path().join(FILE), &octets[..place]).unwrap();
            let (mut log, gaps) = open(directory.path());
            let torn = place > 0 && octets[place - 1] != b'\n';
            assert_eq!(gaps.iter().any(|gap| gap.contains("unfinished line")), torn, "{place}: {gaps:?}");
            let lines = octets[..place].contains(&b'\n');
            assert_eq!(gaps.iter().any(|gap| gap.contains("without closing")), lines, "{place}: {gaps:?}");
            log.append(&[record(9)]).unwrap();
            check(directory.path()).unwrap_or_else(|error| panic!("cut at {place}: {error}"));
        }
    }

    #[test]
    fn whatever_is_changed_removed_or_put_in_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE);
        let (mut log, _) = Log::open(directory.path(), u64::MAX, 3).unwrap();
        for number in 0..3 {
            log.append(&[record(number), record(number)]).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let wrong = |lines: &[&str]| {
            fs::write(&path, format!("{}\n", lines.join("\n"))).unwrap();
            check(directory.path()).expect_err("found")
        };
        for place in 0..lines.len() - 1 {
            let changed = lines[place]
                .replace("member_expired", "member_removed")
                .replace("\"signature\":\"ME", "\"signature\":\"MF");
            assert_ne!(changed, lines[place]);
            let mut others = lines.clone();
            others[place] = &changed;
            let error = wrong(&others);
            assert!(
                error.contains(&format!("line {}", place + 1))
                    || error.contains(&format!("line {}", place + 2)),
                "{place}: {error}"
            );
            let mut others = lines.clone();
            others.remove(place);
            if place > 0 {
                assert!(wrong(&others).contains("does not follow"));
            }
            let mut others = lines.clone();
            others.swap(place, place + 1);
            wrong(&others);
        }
        // A chain of one's own, without the key.
        let mut forged = vec![lines[0].replace("member_expired", "member_removed")];
        forged.push(lines[1].replace(&digest(lines[0].as_bytes()), &digest(forged[0].as_bytes())));
        forged.push(lines[2].replace(&digest(lines[1].as_bytes()), &digest(forged[1].as_bytes())));
        let error = wrong(&forged.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains("line 3: "), "{error}");
    }

    #[test]
    fn a_lost_signing_key_begins_a_new_log_and_keeps_the_old_one_with_its_public_key() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, _) = open(directory.path());
        log.append(&[record(1)]).unwrap();
        fs::remove_file(directory.path().join(PRIVATE_KEY)).unwrap();
        let (mut log, gaps) = open(directory.path());
        assert!(gaps[0].contains("before-1"), "{gaps:?}");
        log.append(&[record(2)]).unwrap();
        check(directory.path()).unwrap();
        check(&directory.path().join("before-1")).unwrap();
        let mode =
            std::os::unix::fs::MetadataExt::mode(&fs::metadata(directory.path().join(PRIVATE_KEY)).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
