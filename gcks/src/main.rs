//! `gcksd`: arguments, configuration, run.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use config::{Gcks, Loaded};
use gcks::{daemon, state};
use runtime::log::{self, Format};

/// The key server of a GDOI group (RFC 6407). It stays in the foreground and logs to stderr.
///
/// Exit codes: 0 stopped, 1 configuration, 2 usage, 3 cannot start (port, lock, permission), 4 state damaged.
#[derive(Debug, Parser)]
#[command(name = "gcksd", version, about, long_about)]
#[command(group(ArgGroup::new("instead").args(["check", "verify_state", "restore"])))]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/gcks/gcks.toml")]
    config: PathBuf,
    /// Read the configuration, say what is wrong with it, and end.
    #[arg(long)]
    check: bool,
    /// Lifetimes down to 20 s, and --show-keys. Never with real traffic.
    #[arg(long)]
    lab: bool,
    /// Show key octets on the control socket.
    #[arg(long)]
    show_keys: bool,
    /// How lines of the log look: text or json.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log: Format,
    /// Check the stored state without starting.
    #[arg(long)]
    verify_state: bool,
    /// Replace the stored state by a backup: every key is made anew and every member registers again.
    #[arg(long, value_name = "FILE")]
    restore: Option<PathBuf>,
    /// With --restore: do not ask.
    #[arg(long, requires = "restore")]
    yes: bool,
}

/// Exit code of a configuration that cannot be used.
const CONFIGURATION: u8 = 1;
/// Exit code of a daemon that cannot start.
const CANNOT_START: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let loaded = match config::load_gcks(&arguments.config, config::Options { lab: arguments.lab }) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(CONFIGURATION);
        }
    };
    if arguments.check {
        check(&loaded);
        return ExitCode::SUCCESS;
    }
    let config = loaded.config;
    if (arguments.verify_state || arguments.restore.is_some())
        && let Err(error) = state::become_owner(&config.server)
    {
        eprintln!("gcksd: {error}");
        return ExitCode::from(CANNOT_START);
    }
    if arguments.verify_state {
        return ended(state::verify(&config).map(|text| println!("{text}")));
    }
    if let Some(backup) = &arguments.restore {
        return ended(state::restore(&config, backup, arguments.yes));
    }
    // The configuration knows five levels, the same as the log.
    let level = log::level(&config.server.log_level).unwrap_or(ctl::event::Level::Info);
    log::start(arguments.log, level);
    for warning in &loaded.warnings {
        tracing::warn!(target: "configuration", "{warning}");
    }
    for notice in &loaded.notices {
        tracing::info!(target: "configuration", "{notice}");
    }
    let options = daemon::Options {
        path: arguments.config,
        files: loaded.files,
        lab: arguments.lab,
        show_keys: arguments.show_keys,
    };
    match daemon::run(&config, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gcksd: cannot start: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn ended(result: Result<(), state::StateError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gcksd: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn check(loaded: &Loaded<Gcks>) {
    let config = &loaded.config;
    for warning in &loaded.warnings {
        println!("warning: {warning}");
    }
    for notice in &loaded.notices {
        println!("note: {notice}");
    }
    println!("good: {} gateways, {} groups", config.gateways.len(), config.groups.len());
}
