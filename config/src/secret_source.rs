//! Where secrets come from: a file, the environment or a systemd credential, never the configuration itself.
//! No message of this module quotes a value.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gdoi_proto::secret::SecretBytes;

use crate::error::Report;
use crate::table::Item;

/// Octets a secret may have at most; an RSA key of 4096 bits has 3300 in PEM.
const MAX_SECRET: u64 = 65_536;
/// Octets a pre-shared key should have at least.
const WEAK_KEY: usize = 16;
/// Octets a state key must have at least.
const STATE_KEY: usize = 32;

/// Where one secret is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file that neither group nor others may read.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// A file below `$CREDENTIALS_DIRECTORY`, guarded by systemd.
    Credential(String),
}

impl Source {
    /// The file it is in.
    fn path(&self, environment: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
        match self {
            Source::File(path) => Some(path.clone()),
            Source::Environment(_) => None,
            Source::Credential(name) => Some(Path::new(&environment("CREDENTIALS_DIRECTORY")?).join(name)),
        }
    }

    /// Reads a secret of text: as [`Source::read`], without one trailing newline, never empty.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_text(
        &self,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<SecretBytes, (String, String)> {
        decode(self.read(environment)?, false)
    }

    /// Reads the octets; `environment` looks up variables, so that a test can be the environment.
    ///
    /// # Errors
    /// What is wrong and what would be right; never the octets.
    pub fn read(
        &self,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<SecretBytes, (String, String)> {
        match self {
            Source::File(path) => read_file(path, true),
            Source::Environment(name) => match environment(name) {
                Some(value) => Ok(SecretBytes::new(std::os::unix::ffi::OsStringExt::into_vec(value))),
                None => Err((format!("environment variable {name} is not set"), String::new())),
            },
            Source::Credential(name) => {
                if name.contains('/') || name == ".." {
                    return Err((
                        format!("{name:?} is not the name of a credential"),
                        "a name without /".into(),
                    ));
                }
                match environment("CREDENTIALS_DIRECTORY") {
                    Some(directory) => read_file(&Path::new(&directory).join(name), false),
                    None => Err((
                        "CREDENTIALS_DIRECTORY is not set".into(),
                        format!("LoadCredential={name}:… in the systemd unit"),
                    )),
                }
            }
        }
    }
}

fn read_file(path: &Path, private: bool) -> Result<SecretBytes, (String, String)> {
    let named = path.display();
    let failed = |error: std::io::Error| (format!("{named} cannot be read: {error}"), String::new());
    // First by name, because opening a FIFO would wait for a writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err((format!("{named} is not a regular file"), String::new()));
    }
    let file = File::open(path).map_err(failed)?;
    // Of the open file, so that nothing can be exchanged between check and read.
    let metadata = file.metadata().map_err(failed)?;
    if private && metadata.mode() & 0o077 != 0 {
        let mode = metadata.mode() & 0o777;
        return Err((
            format!("{named} may be read by group or others (mode {mode:03o})"),
            format!("chmod 600 {named}"),
        ));
    }
    if metadata.len() > MAX_SECRET {
        return Err((format!("{named} has more than {MAX_SECRET} octets"), String::new()));
    }
    // Room for all of it at once: growing would leave copies behind that nobody wipes.
    let mut octets = Vec::with_capacity(usize::try_from(MAX_SECRET).unwrap_or(0));
    let result = file.take(MAX_SECRET).read_to_end(&mut octets);
    let secret = SecretBytes::new(octets);
    result.map_err(failed)?;
    Ok(secret)
}

/// Reads `{ file | env | credential = "…", encoding = "hex" }` and the secret it names.
pub(crate) fn read<'t>(item: &Item<'t>, report: &'t Report<'t>) -> Option<SecretBytes> {
    read_with(item, report, &|name| std::env::var_os(name))
}

fn read_with<'t>(
    item: &Item<'t>,
    report: &'t Report<'t>,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Option<SecretBytes> {
    const FORM: &str = "{ file = \"…\" }, { env = \"…\" } or { credential = \"…\" }";
    if !item.value.is_table() {
        report.problem(&item.place, "a secret is never in this file, it is named", FORM);
        return None;
    }
    let table = item.table(report)?;
    let file = table.get("file");
    let variable = table.get("env");
    let credential = table.get("credential");
    let hexadecimal = table.word("encoding", &[("text", false), ("hex", true)], Some(false));
    table.finish();
    let (named, source): (&Item<'_>, fn(&Path, &str) -> Source) = match (&file, &variable, &credential) {
        (Some(item), None, None) => (item, |directory, text| Source::File(directory.join(text))),
        (None, Some(item), None) => (item, |_, text| Source::Environment(text.to_owned())),
        (None, None, Some(item)) => (item, |_, text| Source::Credential(text.to_owned())),
        _ => {
            report.problem(&item.place, "a secret has exactly one source", FORM);
            return None;
        }
    };
    let source = source(report.directory(), named.filled_text(report)?);
    let hexadecimal = hexadecimal?;
    if let Some(path) = source.path(environment) {
        report.reads(&path);
    }
    match source.read(environment).and_then(|secret| decode(secret, hexadecimal)) {
        Ok(secret) => Some(secret),
        Err((what, hint)) => {
            report.problem(&named.place, what, hint);
            None
        }
    }
}

/// Drops one trailing newline; with `hexadecimal`, reads pairs of digits.
fn decode(secret: SecretBytes, hexadecimal: bool) -> Result<SecretBytes, (String, String)> {
    let octets = secret.expose();
    let octets = octets.strip_suffix(b"\n").map_or(octets, |line| line.strip_suffix(b"\r").unwrap_or(line));
    let decoded = if hexadecimal {
        let octets = decode_hex(octets).map(SecretBytes::new);
        octets.ok_or_else(|| {
            ("the secret is not hexadecimal".into(), "pairs of 0-9 a-f, nothing else".into())
        })?
    } else {
        SecretBytes::copy(octets)
    };
    if decoded.is_empty() {
        return Err(("the secret is empty".into(), String::new()));
    }
    Ok(decoded)
}

/// Octets of pairs of hexadecimal digits.
pub(crate) fn decode_hex(digits: &[u8]) -> Option<Vec<u8>> {
    let (pairs, rest) = digits.as_chunks::<2>();
    let digit = |octet: u8| char::from(octet).to_digit(16).and_then(|value| u8::try_from(value).ok());
    rest.is_empty().then_some(())?;
    // The length is known, so collecting never leaves a shorter copy behind.
    let mut out = Vec::with_capacity(pairs.len());
    for [high, low] in pairs {
        out.push((digit(*high)? << 4) | digit(*low)?);
    }
    Some(out)
}

/// Reads a pre-shared key; one below 16 octets is weak.
pub(crate) fn read_shared_key<'t>(item: &Item<'t>, report: &'t Report<'t>) -> Option<SecretBytes> {
    let key = read(item, report)?;
    if key.len() < WEAK_KEY {
        report.weak(
            &item.place,
            format!("a pre-shared key of {} octets can be guessed", key.len()),
            format!("at least {WEAK_KEY} octets: openssl rand -hex 32"),
        );
    }
    Some(key)
}

/// The key that seals a state. Two are equal when they are the same key.
#[derive(Debug, Clone)]
pub struct StateKey(pub SecretBytes);

impl PartialEq for StateKey {
    fn eq(&self, other: &StateKey) -> bool {
        self.0.ct_eq(other.0.expose())
    }
}

impl Eq for StateKey {}

/// Reads a `state-key`. It is not stretched, so it has to be random: 32 octets at least.
pub(crate) fn read_state_key<'t>(item: &Item<'t>, report: &'t Report<'t>) -> Option<StateKey> {
    let key = read(item, report)?;
    if key.len() < STATE_KEY {
        report.problem(
            &item.place,
            format!("a state-key of {} octets can be guessed", key.len()),
            format!("at least {STATE_KEY} random octets: openssl rand -hex 32"),
        );
        return None;
    }
    Some(StateKey(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(directory: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn nothing(_: &str) -> Option<OsString> {
        None
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            let path = file(directory.path(), "psk", b"tell nobody", mode);
            let (what, hint) = Source::File(path).read(&nothing).unwrap_err();
            assert!(what.contains(&format!("(mode {mode:o})")), "{what}");
            assert!(hint.starts_with("chmod 600 "), "{hint}");
        }
        for mode in [0o600, 0o400] {
            let path = file(directory.path(), &format!("psk{mode}"), b"tell nobody", mode);
            assert!(Source::File(path).read(&nothing).unwrap().ct_eq(b"tell nobody"));
        }
    }

    #[test]
    fn a_directory_or_a_missing_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        let (what, _) = Source::File(directory.path().to_owned()).read(&nothing).unwrap_err();
        assert!(what.ends_with("is not a regular file"), "{what}");
        let (what, _) = Source::File(directory.path().join("psk")).read(&nothing).unwrap_err();
        assert!(what.contains("psk cannot be read"), "{what}");
    }

    #[test]
    fn variables_and_credentials_come_from_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        file(directory.path(), "psk", b"credential", 0o440);
        let environment = |name: &str| match name {
            "PSK" => Some(OsString::from("variable")),
            "CREDENTIALS_DIRECTORY" => Some(directory.path().as_os_str().to_owned()),
            _ => None,
        };
        assert!(Source::Environment("PSK".into()).read(&environment).unwrap().ct_eq(b"variable"));
        assert!(Source::Environment("NONE".into()).read(&environment).is_err());
        assert!(Source::Credential("psk".into()).read(&environment).unwrap().ct_eq(b"credential"));
        assert!(Source::Credential("../psk".into()).read(&environment).is_err());
        let (what, _) = Source::Credential("psk".into()).read(&nothing).unwrap_err();
        assert_eq!(what, "CREDENTIALS_DIRECTORY is not set");
    }

    #[test]
    fn one_trailing_newline_is_dropped_and_no_more() {
        let text = |octets: &[u8]| decode(SecretBytes::copy(octets), false).unwrap();
        assert!(text(b"key\n").ct_eq(b"key"));
        assert!(text(b"key\n\n").ct_eq(b"key\n"));
        assert!(text(b" key ").ct_eq(b" key "));
        assert!(decode(SecretBytes::copy(b"\n"), false).is_err());
    }

    #[test]
    fn hexadecimal_secrets_are_octets() {
        assert!(decode(SecretBytes::copy(b"00fFa1\n"), true).unwrap().ct_eq(&[0, 0xff, 0xa1]));
        for wrong in [b"0".as_slice(), b"0g", b"00 11", b""] {
            assert!(decode(SecretBytes::copy(wrong), true).is_err());
        }
    }
}
