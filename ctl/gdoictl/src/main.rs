//! The operator's command for `gcksd` and `gmd`: shows, acts and watches over their local sockets.
//!
//! Exit codes: 0 done, 1 refused or failed (reason on stderr), 2 wrong usage, 3 daemon not reachable.
#![forbid(unsafe_code)]

mod act;
mod args;
mod audit;
mod calendar;
mod check;
mod connect;
mod explain;
mod load;
mod member;
mod metrics;
mod plan;
mod server;
mod table;
mod trace;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use ctl::client::ClientError;

use args::{Args, Command, Listen, MemberCommand, ServerCommand, ServerShow};
use connect::Daemon;

/// Why a command ends without success; each kind has its exit code.
#[derive(Debug)]
enum Failure {
    /// 1: the daemon said no, or it did not work out.
    Refused(String),
    /// 2: the command line needs a change.
    Usage(String),
    /// 3: no daemon.
    Unreachable(String),
    /// 0: whoever read our output closed it.
    ReaderGone,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        match error {
            ClientError::Unreachable { .. } => Failure::Unreachable(error.to_string()),
            other => Failure::Refused(other.to_string()),
        }
    }
}

/// Writes to stdout at once.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Failure::ReaderGone,
        _ => Failure::Refused(format!("cannot write: {error}")),
    })
}

fn main() -> ExitCode {
    let (code, reason) = match run(Args::parse()) {
        Ok(()) | Err(Failure::ReaderGone) => return ExitCode::SUCCESS,
        Err(Failure::Refused(reason)) => (1, reason),
        Err(Failure::Usage(reason)) => (2, reason),
        Err(Failure::Unreachable(reason)) => (3, reason),
    };
    eprintln!("gdoictl: {}", ctl::event::printable(&reason));
    ExitCode::from(code)
}

fn run(args: Args) -> Result<(), Failure> {
    let (socket, json) = (args.socket.as_deref(), args.json);
    match args.command {
        Command::Server(command) => on_server(command, &Daemon::server(socket), json),
        Command::Member(command) => on_member(command, &Daemon::member(socket), json),
        Command::Watch(filter) => watch::run(&Daemon::either(socket)?, &filter, json),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "gdoictl", &mut text);
            say(&String::from_utf8_lossy(&text))
        }
        Command::Metrics(Listen { listen }) => metrics::http::serve(args.socket, listen, false),
        Command::Serve(Listen { listen }) => metrics::http::serve(args.socket, listen, true),
        Command::Load(options) => load::run(&options, &Daemon::server(socket), json),
    }
}

fn on_server(command: ServerCommand, daemon: &Daemon, json: bool) -> Result<(), Failure> {
    match command {
        ServerCommand::Show(ServerShow::Audit { last, verify }) => audit::show(daemon, last, verify, json),
        ServerCommand::Show(what) => say(&server::show(&daemon.gcks()?, &what, json)?),
        ServerCommand::Rekey { group, tek, kek, both: _ } => act::rekey(daemon, &group, (tek, kek), json),
        ServerCommand::Expel { group, member } => act::expel(daemon, group, member, json),
        ServerCommand::Clear(what) => act::clear(daemon, what, json),
        ServerCommand::Revoke { group, member } => act::revoke(daemon, &group, member, json),
        ServerCommand::Unrevoke { group, member } => act::unrevoke(daemon, group, member, json),
        ServerCommand::State(what) => act::state(daemon, what, json),
        ServerCommand::Plan { file } => plan::plan(daemon, &file, json),
        ServerCommand::Apply { file } => plan::apply(daemon, file.as_deref(), json),
        ServerCommand::Explain { member, group } => explain::explain(daemon, member, group, json),
        ServerCommand::Trace(options) => trace::run(daemon, &options, json),
    }
}

fn on_member(command: MemberCommand, daemon: &Daemon, json: bool) -> Result<(), Failure> {
    match command {
        MemberCommand::Show(what) => say(&member::show(&daemon.gm()?, &what, json)?),
        MemberCommand::Register { vpn } => act::register(daemon, vpn, json),
        MemberCommand::Apply { file } => act::apply(daemon, file.as_deref(), json),
        MemberCommand::Check => check::check(daemon, json),
    }
}
