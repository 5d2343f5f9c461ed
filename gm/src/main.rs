//! `gmd`: arguments, configuration, run.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser};
use config::{Gm, Loaded};
use gm::{confine, daemon, plane};
use runtime::log::{self, Format};

/// A member of GDOI groups (RFC 6407). It stays in the foreground and logs to stderr.
///
/// Exit codes: 0 stopped, 1 configuration, 2 usage, 3 cannot start (port, permission).
#[derive(Debug, Parser)]
#[command(name = "gmd", version, about, long_about)]
#[command(group(ArgGroup::new("instead").args(["check", "hold", "release"])))]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/gm/gm.toml")]
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
    /// Install the fail-close steering and end, before the network comes up.
    #[arg(long)]
    hold: bool,
    /// Remove every trace of the fail-close steering and end.
    #[arg(long)]
    release: bool,
}

/// Exit code of a configuration that cannot be used.
const CONFIGURATION: u8 = 1;
/// Exit code of a daemon that cannot start.
const CANNOT_START: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // Needs no configuration, which may be what is broken.
    if arguments.release {
        return done(
            plane::release().map(|()| "released: traffic follows the routes of this machine".to_owned()),
        );
    }
    let loaded = match config::load_gm(&arguments.config, config::Options { lab: arguments.lab }) {
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
    if arguments.hold {
        return done(plane::hold(&config).map(|pairs| match pairs.as_slice() {
            [] => "nothing to hold: no ipsec-policy".to_owned(),
            pairs => format!("held until gmd runs or --release: {}", pairs.join(", ")),
        }));
    }
    // The configuration knows five levels, the same as the log.
    let level = log::level(&config.member.log_level).unwrap_or(ctl::event::Level::Info);
    log::start(arguments.log, level);
    for warning in &loaded.warnings {
        tracing::warn!(target: "configuration", "{warning}");
    }
    for notice in &loaded.notices {
        tracing::info!(target: "configuration", "{notice}");
    }
    // Before the first thread, which would keep what is given up here.
    let confined = match confine::of_member(&config, &arguments.config, &loaded.files) {
        Ok(confined) => confined,
        Err(error) => {
            eprintln!("gmd: cannot start: giving up privileges: {error}");
            return ExitCode::from(CANNOT_START);
        }
    };
    tracing::info!(target: "confinement", "{}", confined.said());
    let options = daemon::Options {
        path: arguments.config,
        lab: arguments.lab,
        show_keys: arguments.show_keys,
        confined: Some(confined),
    };
    match daemon::run(&config, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gmd: cannot start: {error}");
            ExitCode::from(CANNOT_START)
        }
    }
}

/// Says what was done, or why not.
fn done(result: Result<String, dataplane::DataPlaneError>) -> ExitCode {
    match result {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gmd: {error}");
            ExitCode::from(CANNOT_START)
        }
    }
}

fn check(loaded: &Loaded<Gm>) {
    let config = &loaded.config;
    for warning in &loaded.warnings {
        println!("warning: {warning}");
    }
    for notice in &loaded.notices {
        println!("note: {notice}");
    }
    for note in plane::notes(config) {
        println!("note: {note}");
    }
    println!("good: {} gateways, {} vpns", config.gateways.len(), config.vpns.len());
}
