//! Reads the audit log back: its end for a look, all of it for a check.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use base64ct::{Base64, Encoding};
use ike::crypto::at_rest::verify_log;
use serde::Deserialize;

use super::log::{FILE, PUBLIC_KEY, digest, full, signed};

/// The fields every line has.
#[derive(Deserialize)]
struct Line {
    n: u64,
    prev: String,
    event: String,
    #[serde(default)]
    signature: String,
}

/// The last `last` records as they are in the files, oldest first; signatures left out.
///
/// # Errors
/// When the files cannot be read.
pub fn records(directory: &Path, last: usize) -> io::Result<Vec<String>> {
    let mut out: Vec<String> = Vec::new();
    for name in names(directory)?.iter().rev() {
        let text = match fs::read_to_string(directory.join(name)) {
            Ok(text) => text,
            // Removed meanwhile: as many newer ones are kept as may be.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        // A line without its end is being written.
        let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
        let is_record = |line: &&str| !line.is_empty() && !line.contains(SIGNATURE);
        out.extend(whole.lines().filter(is_record).rev().take(last - out.len()).map(str::to_owned));
        if out.len() >= last {
            break;
        }
    }
    out.reverse();
    Ok(out)
}

/// How the fields of a signature begin; within a text its quotes would be escaped.
const SIGNATURE: &str = "\"event\":\"signature\",\"signature\":\"";
/// Checks that a change of files may interrupt.
const TRIES: usize = 5;

fn names(directory: &Path) -> io::Result<Vec<String>> {
    Ok(full(directory)?.into_iter().chain([FILE.to_owned()]).collect())
}

/// Checks every number, hash and signature, also while the log is written; what was found.
///
/// # Errors
/// The first line that is not as it was written, and why.
pub fn check(directory: &Path) -> Result<String, String> {
    let readable = |error: io::Error| error.to_string();
    let mut result = Err(String::new());
    for _ in 0..TRIES {
        let files = names(directory).map_err(readable)?;
        result = check_files(directory, &files);
        if result.is_ok() || names(directory).map_err(readable)? == files {
            break;
        }
    }
    result
}

/// What was read so far.
#[derive(Default)]
struct Chain {
    /// Number and hash of the line before.
    before: Option<(u64, String)>,
    first: u64,
    signatures: u64,
    unsigned: u64,
}

impl Chain {
    /// The next line.
    fn take(&mut self, key: &[u8], octets: &[u8]) -> Result<(), String> {
        let line: Line = serde_json::from_slice(octets).map_err(|_| "not a record".to_owned())?;
        match &self.before {
            Some((number, _)) if line.n != number + 1 => return Err("its number does not follow".to_owned()),
            Some((_, hash)) if line.prev != *hash => {
                return Err("prev is not the hash of the line before: one of them was changed".to_owned());
            }
            Some(_) => {}
            None => self.first = line.n,
        }
        self.unsigned += 1;
        if line.event == "signature" {
            let signature = Base64::decode_vec(&line.signature).map_err(|_| "not base64".to_owned())?;
            verify_log(key, signed(line.n, &line.prev).as_bytes(), &signature)
                .map_err(|_| "its signature is not one of the key in audit.pub".to_owned())?;
            (self.signatures, self.unsigned) = (self.signatures + 1, 0);
        }
        self.before = Some((line.n, digest(octets)));
        Ok(())
    }
}

fn check_files(directory: &Path, files: &[String]) -> Result<String, String> {
    let pem = fs::read(directory.join(PUBLIC_KEY)).map_err(|error| format!("{PUBLIC_KEY}: {error}"))?;
    let (_, key) = pem_rfc7468::decode_vec(&pem).map_err(|error| format!("{PUBLIC_KEY}: {error}"))?;
    let mut chain = Chain::default();
    for name in files {
        let file = fs::File::open(directory.join(name)).map_err(|error| format!("{name}: {error}"))?;
        let mut file = BufReader::new(file);
        let (mut octets, mut number) = (Vec::new(), 0u64);
        while file.read_until(b'\n', &mut octets).map_err(|error| format!("{name}: {error}"))? > 0 {
            number += 1;
            let Some(line) = octets.strip_suffix(b"\n") else {
                if name == FILE {
                    // It is being written.
                    break;
                }
                return Err(format!("{name} line {number}: it has no end"));
            };
            chain.take(&key, line).map_err(|what| format!("{name} line {number}: {what}"))?;
            octets.clear();
        }
    }
    let Chain { before, first, signatures, unsigned } = chain;
    let Some((last, _)) = before else { return Ok("good: nothing is in it".to_owned()) };
    let older = if first > 1 { " (older files are gone)" } else { "" };
    let end = if unsigned > 0 { format!(", the last {unsigned} not signed yet") } else { String::new() };
    Ok(format!("good: lines {first} to {last}{older}, {signatures} signatures{end}"))
}
