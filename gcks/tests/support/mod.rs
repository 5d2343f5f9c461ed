//! What tests of `gcksd` as a process share: a directory with a configuration, the running daemon, and a member played
//! by hand ([`member`]).
#![allow(dead_code, reason = "every test takes what it needs")]

pub mod member;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use ctl::client::Client;
use ctl::control::{Reply, Request};
use ctl::observe::{GcksSnapshot, Snapshot};
use rustix::process::{Pid, Signal, kill_process};

/// The pre-shared key of every [`Site`].
pub const KEY: &str = "a secret of more than 16 octets";

/// A directory with a configuration; port 0 lets the system choose.
pub struct Site {
    directory: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Site {
        let site = Site { directory: tempfile::tempdir().unwrap() };
        std::fs::write(site.path("key"), KEY).unwrap();
        set_mode(&site.path("key"), 0o600);
        let (state, control, observe) = (site.path("state"), site.path("c.sock"), site.path("o.sock"));
        let text = format!(
            r#"
[server]
listen = ["127.0.0.1:0"]
nat-traversal = false
state-directory = {state:?}
control-socket = {control:?}
observe-socket = {observe:?}
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = {{ file = "key" }}
[ike.gateway.gw]
ike-policy = "pol"
address = "127.0.0.0/8"
[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.g1]
group-id = 1
ike-gateways = ["gw"]
[group.g1.server-member-communication]
encryption-algorithm = "aes-256-cbc"
signature = "ecdsa-256"
sig-hash-algorithm = "sha-256"
[group.g1.ipsec-sa.S]
proposal = "esp"
[[group.g1.ipsec-sa.S.match-policy]]
name = "m"
source = "10.0.0.0/8"
destination = "10.0.0.0/8"
"#
        );
        std::fs::write(site.path("gcks.toml"), text).unwrap();
        site
    }

    pub fn root(&self) -> &Path {
        self.directory.path()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces text of the configuration; it must be there.
    pub fn configure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path("gcks.toml")).unwrap();
        assert!(text.contains(from), "{from:?} is not in the configuration");
        std::fs::write(self.path("gcks.toml"), text.replace(from, to)).unwrap();
    }

    pub fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let config = self.path("gcks.toml").to_str().unwrap().to_owned();
        let more = arguments.iter().map(|argument| (*argument).to_owned());
        ["--config".to_owned(), config].into_iter().chain(more).collect()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gcksd"));
        command.args(self.arguments(arguments));
        command
    }

    /// Exit code and everything printed.
    pub fn ends(&self, arguments: &[&str]) -> (Option<i32>, String) {
        ends(self.command(arguments))
    }

    pub fn start(&self, arguments: &[&str]) -> Daemon {
        Daemon::spawn(self.command(arguments), self.root()).ready()
    }
}

/// Exit code and everything printed by a command that ends.
pub fn ends(mut command: Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A running `gcksd`; killed when a test fails.
pub struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    pub seen: String,
    address: Option<SocketAddr>,
    site: PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Starts the process and waits for nothing.
    pub fn spawn(mut command: Command, site: &Path) -> Daemon {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Daemon { child, log, seen: String::new(), address: None, site: site.to_owned() }
    }

    /// Waits for the first keys, or the state: from then on members and operators are served.
    pub fn ready(mut self) -> Daemon {
        while !(self.seen.contains("group_created") || self.seen.contains("state_restored")) {
            assert!(self.read_line(), "it ended: {}", self.seen);
        }
        self
    }

    /// Reads its log until a line has this text.
    pub fn until(&mut self, text: &str) {
        while !self.seen.contains(text) {
            assert!(self.read_line(), "it ended without {text:?}: {}", self.seen);
        }
    }

    /// Throws its log away from here on: a pipe that nobody reads would stop it.
    pub fn ignore_log(&self) {
        let log = self.log.get_ref().as_fd().try_clone_to_owned().unwrap();
        std::thread::spawn(move || std::io::copy(&mut std::fs::File::from(log), &mut std::io::sink()));
    }

    fn read_line(&mut self) -> bool {
        let mut line = String::new();
        let there = self.log.read_line(&mut line).unwrap() > 0;
        if let Some((_, listening)) = line.split_once("listening on ") {
            self.address = Some(listening.trim().parse().unwrap());
        }
        self.seen.push_str(&line);
        there
    }

    pub fn address(&self) -> SocketAddr {
        self.address.expect("an address")
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn control(&self) -> PathBuf {
        self.site.join("c.sock")
    }

    pub fn ask(&self, request: &Request) -> Reply {
        Client::connect(&self.control()).unwrap().ask(request).unwrap()
    }

    pub fn snapshot(&self) -> GcksSnapshot {
        let Reply::Snapshot(snapshot) = self.ask(&Request::Snapshot) else { panic!("no snapshot") };
        server(*snapshot)
    }

    /// A rekey of `g1`: its SEQ, none with nobody to tell. The signing key may still be on its way from the disk.
    pub fn rekey(&self, kek: bool) -> Option<u32> {
        let request = Request::Rekey { group: "g1".to_owned(), tek: true, kek };
        for _ in 0..2000 {
            match self.ask(&request) {
                Reply::Done { seq, .. } => return seq,
                Reply::Refused { reason } if reason.contains("not ready") => {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("the signing key was not ready within 10 s");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// SIGKILL: nothing is closed, flushed or told. Gives the whole log.
    pub fn kill(mut self) -> String {
        let _ = self.child.kill();
        self.rest().1
    }

    /// Stops it; exit code and the whole log.
    pub fn stop(mut self) -> (Option<i32>, String) {
        self.signal(Signal::TERM);
        self.rest()
    }

    fn rest(&mut self) -> (Option<i32>, String) {
        let mut log = std::mem::take(&mut self.seen);
        self.log.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

pub fn server(snapshot: Snapshot) -> GcksSnapshot {
    match snapshot {
        Snapshot::Gcks(server) => server,
        Snapshot::Gm(_) => panic!("not a key server"),
    }
}
