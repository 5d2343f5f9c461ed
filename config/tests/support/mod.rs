//! A directory with secrets and a file under test.
#![allow(dead_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use config::{Errors, Gcks, Gm, Loaded, Options};

/// Writes a secret that its owner alone may read.
pub fn secret(directory: &Path, name: &str, content: &str) {
    let path = directory.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// A directory with every secret the tests name; `open` is readable by all.
pub fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    secret(directory.path(), "key", "a secret of more than 16 octets\n");
    secret(directory.path(), "short", "too short\n");
    secret(directory.path(), "open", "a secret of more than 16 octets\n");
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(directory.path().join("open"), open).unwrap();
    directory
}

/// Loads `text` as `gcks.toml`.
pub fn gcks(text: &str, options: Options) -> Result<Loaded<Gcks>, Errors> {
    let directory = directory();
    let path = directory.path().join("gcks.toml");
    std::fs::write(&path, text).unwrap();
    config::load_gcks(&path, options)
}

/// Loads `text` as `gm.toml`.
pub fn gm(text: &str, options: Options) -> Result<Loaded<Gm>, Errors> {
    let directory = directory();
    let path = directory.path().join("gm.toml");
    std::fs::write(&path, text).unwrap();
    config::load_gm(&path, options)
}

/// `text` with its only `from` replaced.
pub fn change(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} must occur once");
    text.replace(from, to)
}

/// Printed lines without the directory.
pub fn lines(printed: &str) -> Vec<String> {
    printed.lines().map(|line| line.rsplit_once(".toml:").map_or(line, |(_, rest)| rest).to_owned()).collect()
}
