//! The programs of the lab: built by Cargo, or found in a directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::LabError;

/// Where `gcksd`, `gmd` and `gdoictl` are.
#[derive(Debug, Clone)]
pub struct Binaries {
    directory: PathBuf,
}

/// How they are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As tests are.
    Debug,
    /// As operators run them.
    Release,
}

const NAMES: [&str; 3] = ["gcksd", "gmd", "gdoictl"];

impl Binaries {
    /// Has Cargo build the programs of this workspace; it prints what it does on stderr. Nothing is built when nothing
    /// changed.
    ///
    /// # Errors
    /// [`LabError::Program`] when the build fails.
    pub fn build(profile: Profile) -> Result<Binaries, LabError> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // Asked when it runs: what is compiled in is another checkout's where a target directory came from there.
        let package = std::env::var_os("CARGO_MANIFEST_DIR");
        let package = package.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let mut command = Command::new(cargo);
        command.args(["build", "--bins", "--message-format=json-render-diagnostics", "--manifest-path"]);
        command.arg(package.join("Cargo.toml"));
        // The whole workspace, so that crates are built with the features everything else builds them with; not the
        // program that runs now.
        command.args(["--workspace", "--exclude", "gdoi-lab"]);
        if profile == Profile::Release {
            command.arg("--release");
        }
        // What Cargo tells the program it runs is not meant for the Cargo that program runs: build scripts would run again.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
                .iter()
                .any(|it| text.starts_with(it))
            {
                command.env_remove(&name);
            }
        }
        command.env_remove("LD_LIBRARY_PATH").stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().map_err(LabError::system("cargo cannot be run"))?;
        if !output.status.success() {
            return Err(LabError::Program(format!("cargo build: {}", output.status)));
        }
        let built = String::from_utf8_lossy(&output.stdout);
        let directory = built
            .lines()
            .find_map(directory_of_gcksd)
            .ok_or_else(|| LabError::Program("cargo build succeeded but names no gcksd".to_owned()))?;
        Binaries::in_directory(&directory)
    }

    /// The programs of a directory.
    ///
    /// # Errors
    /// [`LabError::Wrong`] when one is missing.
    pub fn in_directory(directory: &Path) -> Result<Binaries, LabError> {
        for name in NAMES {
            let path = directory.join(name);
            if !path.is_file() {
                return Err(LabError::Wrong(format!("{} is not there", path.display())));
            }
        }
        Ok(Binaries { directory: directory.to_owned() })
    }

    /// Their directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One of them.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The directory of `gcksd`, from a line of Cargo's messages about it.
fn directory_of_gcksd(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = Path::new(message.get("executable")?.as_str()?);
    (path.file_name()? == "gcksd").then(|| path.parent().map(Path::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_that_of_the_key_server() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"gcksd"},"executable":"/t/debug/gcksd"}"#;
        assert_eq!(directory_of_gcksd(line), Some(PathBuf::from("/t/debug")));
        for other in [r#"{"executable":null}"#, r#"{"executable":"/t/debug/gmd"}"#, "Compiling", "{}"] {
            assert_eq!(directory_of_gcksd(other), None);
        }
    }

    #[test]
    fn a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = Binaries::in_directory(directory.path()).unwrap_err();
        assert!(error.to_string().ends_with("gcksd is not there"), "{error}");
    }
}
