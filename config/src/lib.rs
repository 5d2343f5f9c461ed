//! The TOML configuration of `gcksd` and `gmd`: names, defaults, ranges and references.
//!
//! ```text
//! file --parse--> tables with positions --read--> Gcks | Gm      everything resolved, nothing left to look up
//!                        \-- problems, all of them, as file:line:column
//! ```
//!
//! Where to look: [`gcks`], [`group`], [`communication`] and [`ipsec`] the key server's statements, [`gm`] and [`vpn`] the member's, [`common`] what both
//! share, [`secret_source`] where secrets come from, [`table`] how a table is read without losing a position.
//! The sample files in `examples/` explain every statement to an operator.
#![forbid(unsafe_code)]

use std::path::Path;

mod certificates;
pub mod common;
pub mod communication;
pub mod error;
pub mod gcks;
pub mod gm;
pub mod group;
pub mod identity;
pub mod ipsec;
pub mod secret_source;
pub mod signing_key;
pub mod table;
pub mod units;
pub mod vpn;

pub use common::{DeadPeerDetection, Phase1Proposal};
pub use communication::{Acknowledgement, Communication};
pub use error::{Errors, Loaded, Problem, Warning};
pub use gcks::{Gateway, Gcks, Server};
pub use gm::{Backend, Gm, GmGateway, Member};
pub use group::Group;
pub use identity::IdentityPattern;
pub use ipsec::{IpsecSa, MatchPolicy};
pub use units::AddressPrefix;
pub use vpn::{Accept, DfBit, Encryption, EspEncapsulation, IpsecPolicy, RekeySignature, Rule, Vpn, Zone};

use error::Report;
use table::Table;

/// How a file is read, from the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// `--lab`: lifetimes down to 20 s.
    pub lab: bool,
}

/// Reads `gcks.toml`: parses, checks every value, resolves every reference, reads every secret and key.
///
/// # Errors
/// Every [`Problem`] of the file; never a secret.
pub fn load_gcks(path: &Path, options: Options) -> Result<Loaded<Gcks>, Errors> {
    load(path, options, gcks::read)
}

/// Reads `gm.toml`: parses, checks every value, resolves every reference, reads every secret.
///
/// # Errors
/// Every [`Problem`] of the file; never a secret.
pub fn load_gm(path: &Path, options: Options) -> Result<Loaded<Gm>, Errors> {
    load(path, options, gm::read)
}

fn load<T>(
    path: &Path,
    options: Options,
    read: fn(&Table<'_>, &Report<'_>, Options) -> Option<T>,
) -> Result<Loaded<T>, Errors> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => return Err(Errors(vec![Problem::of_file(path, &error)])),
    };
    let report = Report::new(path, &text);
    let config = table::with_root(&text, &report, |root| read(root, &report, options)).flatten();
    report.finish(config)
}
