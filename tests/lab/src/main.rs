//! `cargo lab`: builds everything, starts a key server and two members on this machine, and shows what they do.
//!
//! Exit codes: 0 everything held, 1 something did not (the reason and the ends of the logs are on stderr), 2 usage.
#![forbid(unsafe_code)]

mod speed;
mod story;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use clap::{Parser, Subcommand};
use gdoi_lab::LabError;
use gdoi_lab::binaries::{Binaries, Profile};
use gdoi_lab::network::Network;

/// The inner process could not make the namespaces; nothing was shown yet.
const NO_NAMESPACES: u8 = 77;

/// A key server and two members on this machine: registration, rekeys with acknowledgements, traffic between hosts behind
/// the members (in network namespaces only), a member that is killed, one that falls silent and comes back, a key server that is killed and comes back. Needs no root.
#[derive(Debug, Parser)]
#[command(name = "cargo lab", version, about, long_about)]
struct Arguments {
    /// Use addresses of the loopback interface even where network namespaces are allowed
    #[arg(long)]
    loopback: bool,
    /// Use the programs of this directory instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Already within the namespaces
    #[arg(long, hide = true, requires = "binaries")]
    inside: bool,
    #[command(subcommand)]
    instead: Option<Instead>,
}

#[derive(Debug, Subcommand)]
enum Instead {
    /// How fast traffic crosses the data plane, beside the tunnels of others: docs/performance.md
    Speed(speed::Plan),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let binaries = match find(&arguments) {
        Ok(binaries) => binaries,
        Err(error) => return fail(&error),
    };
    if arguments.inside {
        return match Network::namespaces() {
            Ok(network) => tell(&arguments, network, binaries),
            Err(error) => {
                eprintln!("cargo lab: {error}");
                ExitCode::from(NO_NAMESPACES)
            }
        };
    }
    if let (Some(Instead::Speed(_)), true) = (&arguments.instead, arguments.loopback) {
        return fail(&LabError::Wrong("traffic needs network namespaces".to_owned()));
    }
    let refused = match arguments.loopback {
        true => "as asked for".to_owned(),
        false => match inside(&binaries) {
            Ok(code) => return code,
            Err(reason) => reason,
        },
    };
    println!("On loopback addresses, not in network namespaces: {refused}.");
    match Network::loopback() {
        Ok(network) => tell(&arguments, network, binaries),
        Err(error) => fail(&error),
    }
}

/// The programs: built by the Cargo that runs us, else those beside us.
fn find(arguments: &Arguments) -> Result<Binaries, LabError> {
    if let Some(directory) = &arguments.binaries {
        return Binaries::in_directory(directory);
    }
    if std::env::var_os("CARGO").is_some() {
        println!("Building gcksd, gmd and gdoictl (the first time takes some minutes) ...");
        return Binaries::build(Profile::Release);
    }
    let own = std::env::current_exe().map_err(LabError::system("our own path"))?;
    Binaries::in_directory(own.parent().unwrap_or(&own))
}

/// Runs the lab within its own user, network and mount namespace, or says why that is not possible here.
fn inside(binaries: &Binaries) -> Result<ExitCode, String> {
    let unshare = |program: &std::path::Path, arguments: &[&std::ffi::OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--mount", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null());
        command
    };
    let probe = unshare("true".as_ref(), &[]).output();
    let probe = probe.map_err(|error| format!("unshare of util-linux cannot be run ({error})"))?;
    if !probe.status.success() {
        let said = String::from_utf8_lossy(&probe.stderr);
        return Err(format!("this system does not allow them ({})", said.trim()));
    }
    let own = std::env::current_exe().map_err(|error| format!("our own path is not known ({error})"))?;
    let arguments = ["--inside".as_ref(), "--binaries".as_ref(), binaries.directory().as_os_str()];
    let status = unshare(&own, &arguments)
        // What is to be done instead comes behind our own arguments.
        .args(std::env::args_os().skip_while(|word| word != "speed"))
        .status()
        .map_err(|error| format!("unshare cannot be run ({error})"))?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(NO_NAMESPACES) => Err("they cannot be set up here (see above)".to_owned()),
        Some(code) => Ok(ExitCode::from(code)),
        None => Ok(ExitCode::FAILURE),
    }
}

fn tell(arguments: &Arguments, network: Network, binaries: Binaries) -> ExitCode {
    let told = match &arguments.instead {
        Some(Instead::Speed(plan)) => speed::compare(plan, network, &binaries),
        None => story::tell(network, binaries),
    };
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &LabError) -> ExitCode {
    eprintln!("\ncargo lab: {error}");
    ExitCode::FAILURE
}
