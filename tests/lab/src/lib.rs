//! `gcksd`, `gmd` and `gdoictl` as real processes, for `cargo lab` and for tests.
//!
//! ```text
//! binaries   finds the programs, or has Cargo build them
//! network    three machines: network namespaces with a bridge, or addresses of the loopback interface
//! lans       hosts behind the members, in namespaces: pings from one to the other
//! wire       what passes between the members, packet by packet
//! spoof      a stranger on the wire, who sends ESP that no key opens
//! site       a temporary directory with the configurations, secrets and sockets of one lab
//! daemon     a started process: its log read as events, its control socket, signals; killed on drop
//! relay      a UDP relay that sees, records and may lose what passes between a member and its key server
//! capture    what a relay saw, as a file for Wireshark
//! table      what was shown, at the end
//! ```
//!
//! Everything waits for events, never for a guessed time, and every wait has a limit after which it fails.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod capture;
pub mod daemon;
pub mod lans;
pub mod network;
pub mod relay;
pub mod site;
pub mod spoof;
pub mod table;
pub mod wire;

use std::fs::OpenOptions;
use std::io::{self, Write};

use thiserror::Error;

/// Names a file that hears of every test that is skipped; `tests/run` sets it and prints it at its end.
const SKIPPED: &str = "GDOI_SKIPPED";

/// A test, or a part of it, is skipped and says so: what, and what is missing here.
pub fn skipped(what: &str, missing: &str) {
    let line = format!("skipped: {what}: {missing}");
    println!("{line}");
    if let Some(file) = std::env::var_os(SKIPPED) {
        let file = OpenOptions::new().append(true).create(true).open(file);
        let noted = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        noted.expect("what is skipped is noted");
    }
}

/// Why a lab did not hold what it promised.
#[derive(Debug, Error)]
pub enum LabError {
    /// A file, socket or process could not be had.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{0}")]
    Program(String),
    /// A daemon did not do what was waited for.
    #[error("{daemon}: {what}: not within {seconds} s")]
    Late {
        /// Its name.
        daemon: String,
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A daemon ended by itself.
    #[error("{daemon} ended while this was waited for: {what}; its last line: {last}")]
    Ended {
        /// Its name.
        daemon: String,
        /// What was waited for.
        what: String,
        /// The end of its log.
        last: String,
    },
    /// Something is not as it must be.
    #[error("{0}")]
    Wrong(String),
}

impl LabError {
    /// For `map_err`: what was wanted.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
        let what = what.into();
        move |source| LabError::System { what, source }
    }
}
