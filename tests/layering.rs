//! Arrows go down only: the table of ARCHITECTURE.md against the manifests, and no async crate in the pure ones.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Which crates of ours a crate may name.
const ALLOWED: &[(&str, &str, &[&str])] = &[
    ("gdoi-proto", "gdoi-proto", &[]),
    ("ike", "ike", &["gdoi-proto"]),
    ("ctl", "ctl", &["gdoi-proto"]),
    ("config", "config", &["gdoi-proto", "ike"]),
    ("runtime", "runtime", &["ike", "ctl"]),
    ("dataplane", "dataplane", &["gdoi-proto", "ike"]),
    ("gcks", "gcks", &["gdoi-proto", "ike", "ctl", "config", "runtime"]),
    ("gm", "gm", &["gdoi-proto", "ike", "ctl", "config", "runtime", "dataplane"]),
    ("ctl/gdoictl", "gdoictl", &["ctl", "gdoi-proto", "ike", "config", "runtime", "gm"]),
    ("tests/lab", "gdoi-lab", &["ctl", "runtime"]),
    ("tests/harness", "gdoi-sim", &["gdoi-proto", "ike", "ctl", "dataplane", "gcks", "gm"]),
];

/// Crates that do I/O or run tasks.
const IMPURE: &[&str] = &["tokio", "socket2", "rustix", "rusqlite", "tracing", "libc", "nix"];

fn manifest(directory: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory).join("Cargo.toml");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names in `[dependencies]`, with true for optional ones.
fn dependencies(text: &str) -> BTreeMap<String, bool> {
    text.lines()
        .skip_while(|line| line.trim() != "[dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| {
            let name = line
                .split(['.', '=', ' '])
                .next()
                .filter(|name| !name.is_empty() && !name.starts_with('#'))?;
            Some((name.to_owned(), line.contains("optional = true")))
        })
        .collect()
}

#[test]
fn every_crate_names_only_crates_below_it() {
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(_, name, _)| *name).collect();
    for (directory, name, allowed) in ALLOWED {
        for dependency in dependencies(&manifest(directory)).keys() {
            assert!(
                !ours.contains(dependency.as_str()) || allowed.contains(&dependency.as_str()),
                "{name} names {dependency}, which is not below it"
            );
        }
    }
}

#[test]
fn the_protocol_crates_and_engines_do_no_input_or_output() {
    for directory in ["gdoi-proto", "ike", "ctl", "gcks", "gm", "tests/harness"] {
        for (dependency, optional) in dependencies(&manifest(directory)) {
            assert!(
                optional || !IMPURE.contains(&dependency.as_str()),
                "{directory} always depends on {dependency}"
            );
        }
    }
}

#[test]
fn engines_open_no_socket_and_read_no_clock() {
    fn walk(directory: &Path, files: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for directory in ["gdoi-proto/src", "ike/src", "gcks/src/engine", "gm/src/engine"] {
        walk(&root.join(directory), &mut files);
    }
    assert!(files.len() > 40, "only {} source files found", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a source file");
        for forbidden in ["UdpSocket", "std::thread", "SystemTime", "tokio::", "std::fs"] {
            assert!(!text.contains(forbidden), "{} names {forbidden}", file.display());
        }
    }
}
