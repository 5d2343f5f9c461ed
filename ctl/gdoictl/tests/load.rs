//! `gdoictl load` against a key server that runs in this process: everyone registers, and acknowledges a rekey.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

/// A running key server; it ends with the process.
struct Site {
    directory: tempfile::TempDir,
    server: SocketAddrV4,
}

impl Site {
    /// With flat keys, or a key tree.
    fn start(management: &str, port: u16) -> Site {
        let directory = tempfile::tempdir().unwrap();
        // An address of this process alone, so that no other test has the port.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let server = SocketAddrV4::new(Ipv4Addr::new(127, 64 | a, b, c | 1), port);
        let site = Site { directory, server };
        std::fs::write(site.path("key"), "a secret of more than 16 octets\n").unwrap();
        std::fs::set_permissions(site.path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let (state, control, observe) = (site.path("state"), site.path("c.sock"), site.path("o.sock"));
        let text = format!(
            r#"
[server]
listen = ["{server}"]
nat-traversal = false
state-directory = {state:?}
control-socket = {control:?}
observe-socket = {observe:?}
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group31"
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
member-threshold = 100
ike-gateways = ["gw"]
[group.g1.server-member-communication]
encryption-algorithm = "aes-256-cbc"
key-management = "{management}"
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
        let file = site.path("gcks.toml");
        std::fs::write(&file, text).unwrap();
        let config = config::load_gcks(&file, config::Options::default()).expect("a good file").config;
        let options = gcks::daemon::Options { path: file, files: Vec::new(), lab: false, show_keys: false };
        std::thread::spawn(move || gcks::daemon::run(&config, options));
        // It is there when its control socket is; at most 10 s.
        for _ in 0..1000 {
            if control.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn load(&self, arguments: &[&str]) -> Output {
        load(&self.path("key"), self.server, &self.path("c.sock"), arguments)
    }
}

fn load(key: &Path, server: SocketAddrV4, socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gdoictl"));
    command.arg("load").arg("--socket").arg(socket).args(["--server", &server.to_string()]);
    command.arg("--key-file").arg(key).args(arguments);
    command.output().unwrap()
}

fn text(octets: &[u8]) -> &str {
    std::str::from_utf8(octets).unwrap()
}

#[test]
fn fifty_members_register_and_acknowledge_a_rekey_and_a_stranger_to_the_group_is_counted() {
    let site = Site::start("flat", 8848);
    let pid = std::process::id().to_string();
    let output = site.load(&[
        "--group",
        "1",
        "--members",
        "50",
        "--threads",
        "2",
        "--acknowledge",
        "5",
        "--rekey",
        "--json",
        "--server-pid",
        &pid,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["registered"], &report["failed"]), (&50.into(), &0.into()), "{report}");
    assert!(report["latency_milliseconds"]["p50"].as_f64() > Some(0.0), "{report}");
    assert!(report["server_cpu_seconds"].is_f64(), "{report}");
    let acknowledge = &report["acknowledge"];
    assert_eq!(
        (&acknowledge["pushes"], &acknowledge["acknowledgements"]),
        (&1.into(), &50.into()),
        "{report}"
    );

    let output = site.load(&["--group", "2", "--members", "3", "--rate", "100"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with("registered       0 of 3 in "), "{}", text(&output.stdout));
    assert!(text(&output.stdout).contains("failed           3: refused by the key server:"));
    assert!(text(&output.stderr).contains("3 of 3 registrations failed"));
}

#[test]
fn phase_1_is_that_of_a_members_configuration() {
    let site = Site::start("flat", 8850);
    let member = r#"
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group31"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = { file = "key" }
[ike.gateway.servers]
ike-policy = "pol"
server-address = ["127.0.0.1"]
remote-identity = { inet = "IP" }
[vpn.v]
ike-gateway = "servers"
group = 1
"#;
    let file = site.path("gm.toml");
    std::fs::write(&file, member.replace("IP", &site.server.ip().to_string())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gdoictl"));
    command.arg("load").arg("--socket").arg(site.path("c.sock")).args(["--server", &site.server.to_string()]);
    let output =
        command.arg("--config").arg(&file).args(["--group", "1", "--members", "3"]).output().unwrap();
    assert!(text(&output.stdout).starts_with("registered       3 of 3 in "), "{output:?}");
}

#[test]
fn of_fifty_members_of_a_key_tree_one_is_revoked_and_the_others_acknowledge_twice() {
    let site = Site::start("lkh", 8849);
    let arguments = "--group 1 --members 50 --threads 2 --acknowledge 5 --revoke --json";
    let output = site.load(&arguments.split(' ').collect::<Vec<_>>());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["registered"], &report["failed"]), (&50.into(), &0.into()), "{report}");
    let acknowledge = &report["acknowledge"];
    // Its array, then the TEKs under the new KEK.
    assert_eq!(
        (&acknowledge["acknowledgements"], &acknowledge["refused"]),
        (&98.into(), &0.into()),
        "{report}"
    );
}

#[test]
fn a_load_that_cannot_be_is_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    let (key, socket) = (directory.path().join("key"), directory.path().join("c.sock"));
    let nobody = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);
    let far = load(&key, nobody, &socket, &["--group", "1", "--first-address", "127.255.255.250"]);
    assert_eq!(far.status.code(), Some(2));
    assert!(text(&far.stderr).contains("do not fit into 127.0.0.0/8"), "{}", text(&far.stderr));
    let keyless = load(&key, nobody, &socket, &["--group", "1"]);
    assert!(keyless.status.code() == Some(2) && text(&keyless.stderr).contains("cannot be read"));
    std::fs::write(&key, "open to everyone").unwrap();
    let open = load(&key, nobody, &socket, &["--group", "1"]);
    assert!(text(&open.stderr).contains("chmod 600"), "{}", text(&open.stderr));
}
