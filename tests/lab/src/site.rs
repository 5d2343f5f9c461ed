//! The files of one lab in a temporary directory: configurations, pre-shared keys, state, local sockets.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::LabError;
use crate::binaries::Binaries;
use crate::daemon::{Daemon, Watcher};
use crate::network::{GCKS, MEMBERS, Network, THIRD};

/// The group of the lab, by name.
pub const GROUP: &str = "lab";
/// The group of the lab, by number.
pub const GROUP_NUMBER: u32 = 1;
/// The pre-shared key of everybody.
const PRE_SHARED_KEY: &str = "mariana trench, 10935 m";
/// What seals the state of the key server.
const STATE_KEY: &str = "a sealed chamber 6 km below ground";

/// Lifetimes and delays, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// `lifetime-seconds` of TEKs.
    pub tek_life: u32,
    /// `lifetime-seconds` of the KEK.
    pub kek_life: u32,
    /// `number-of-retransmission`.
    pub copies: u32,
    /// `retransmission-period`.
    pub period: u32,
    /// `activation-time-delay`.
    pub activation: u32,
    /// `deactivation-time-delay`.
    pub deactivation: u32,
}

impl Timing {
    /// Lives that need `--lab`: a TEK is replaced after 14 s, a silent member is expired after 4 s.
    pub const SHORT: Timing =
        Timing { tek_life: 26, kek_life: 60, copies: 1, period: 2, activation: 2, deactivation: 3 };
    /// No scheduled rekey while anybody watches; the same quick retransmission.
    pub const LONG: Timing = Timing { tek_life: 3600, kek_life: 7200, ..Timing::SHORT };
}

/// The configuration of the key server.
#[derive(Debug, Clone)]
pub struct ServerPlan {
    /// Lifetimes and delays.
    pub timing: Timing,
    /// `member-threshold`.
    pub threshold: Option<u32>,
    /// Members whose gateway the group admits.
    pub admitted: Vec<&'static str>,
    /// A second policy, for the IPv6 LANs of [`crate::lans`].
    pub ipv6: bool,
    /// `anti-replay-time-window` in milliseconds: packets carry timestamps (IP-D3P).
    pub delay_window: Option<u32>,
    /// Policies before those of the LANs, that match nothing.
    pub idle_policies: usize,
    /// `encryption-algorithm` of TEKs.
    pub encryption: &'static str,
    /// `key-management`: `flat` or `lkh`.
    pub key_management: &'static str,
    /// `communication-type`; others than `unicast` in namespaces only, with the group 239.192.0.1.
    pub communication_type: &'static str,
    /// With a `state-key`.
    pub sealed: bool,
    /// Appended to the file.
    pub more: String,
}

impl ServerPlan {
    /// Everybody is admitted.
    pub fn new(timing: Timing) -> ServerPlan {
        let admitted = MEMBERS.to_vec();
        ServerPlan {
            timing,
            threshold: None,
            admitted,
            ipv6: false,
            delay_window: None,
            idle_policies: 0,
            encryption: "aes-256-gcm",
            key_management: "flat",
            communication_type: "unicast",
            sealed: false,
            more: String::new(),
        }
    }
}

/// The configuration of a member.
#[derive(Debug, Clone, Default)]
pub struct MemberPlan {
    /// `group`; none: the group of the lab.
    pub group: Option<u32>,
    /// Its pre-shared key; none: the right one.
    pub pre_shared_key: Option<&'static str>,
    /// `server-address`; none: that of the key server.
    pub server: Option<SocketAddr>,
    /// Protects what goes from its `lan` to its `wan`; without: keys only.
    pub traffic: bool,
    /// ESP in UDP.
    pub udp: bool,
    /// More of its VPN: rules.
    pub rules: String,
    /// Appended to the file.
    pub more: String,
}

/// One lab.
#[derive(Debug)]
pub struct Site {
    /// Its machines.
    pub network: Network,
    binaries: Binaries,
    directory: tempfile::TempDir,
}

impl Site {
    /// An empty directory.
    ///
    /// # Errors
    /// [`LabError::System`] when it cannot be made.
    pub fn new(network: Network, binaries: Binaries) -> Result<Site, LabError> {
        let directory = tempfile::Builder::new().prefix("gdoi-lab-").tempdir();
        let directory = directory.map_err(LabError::system("a temporary directory"))?;
        Ok(Site { network, binaries, directory })
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file of it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The control socket of a host's daemon.
    pub fn control(&self, host: &str) -> PathBuf {
        self.path(&format!("{host}.control"))
    }

    /// Writes `gcks.toml` and what it names.
    ///
    /// # Errors
    /// [`LabError::System`] when the directory takes no file.
    pub fn write_server(&self, plan: &ServerPlan) -> Result<(), LabError> {
        let Timing { tek_life, kek_life, copies, period, activation, deactivation } = plan.timing;
        let (listen, state) = (self.network.address(GCKS).to_string(), self.path("state"));
        let mut text = format!("[server]\nlisten = [{listen:?}]\nstate-directory = {state:?}\n");
        if plan.sealed {
            text.push_str("state-key = { file = \"state-key\" }\n");
            self.write_secret("state-key", STATE_KEY)?;
        }
        text.push_str(&self.common(GCKS));
        let third = plan.admitted.contains(&THIRD).then_some(THIRD);
        for member in MEMBERS.into_iter().chain(third) {
            let address = self.network.ip(member).to_string();
            let _ =
                write!(text, "[ike.gateway.{member}]\nike-policy = \"branches\"\naddress = {address:?}\n");
        }
        let threshold = plan.threshold.map_or(String::new(), |limit| format!("member-threshold = {limit}\n"));
        let window = plan.delay_window.map(|window| format!("anti-replay-time-window = {window}\n"));
        let window = window.unwrap_or_default();
        let multicast = match plan.communication_type {
            "unicast" => String::new(),
            word => format!(
                "communication-type = {word:?}\nmulticast-group = \"239.192.0.1\"\nmulticast-outgoing-interface = \"wan\"\n"
            ),
        };
        let (admitted, encryption, key_management) = (&plan.admitted, plan.encryption, plan.key_management);
        let authentication = match encryption.ends_with("cbc") {
            true => "authentication-algorithm = \"hmac-sha-256-128\"\n",
            false => "",
        };
        let _ = write!(
            text,
            r#"[ipsec.proposal.esp]
encryption-algorithm = "{encryption}"
{authentication}lifetime-seconds = {tek_life}
[group.{GROUP}]
group-id = {GROUP_NUMBER}
ike-gateways = {admitted:?}
{threshold}{window}[group.{GROUP}.server-member-communication]
{multicast}encryption-algorithm = "aes-256-cbc"
sig-hash-algorithm = "sha-256"
signature = "ecdsa-256"
lifetime-seconds = {kek_life}
number-of-retransmission = {copies}
retransmission-period = {period}
acknowledgement = "required"
key-management = "{key_management}"
activation-time-delay = {activation}
deactivation-time-delay = {deactivation}
[group.{GROUP}.ipsec-sa.SA1]
proposal = "esp"
"#
        );
        for number in 0..plan.idle_policies {
            let nets = format!("source = \"10.{number}.0.0/16\"\ndestination = \"10.{number}.0.0/16\"\n");
            let _ =
                write!(text, "[[group.{GROUP}.ipsec-sa.SA1.match-policy]]\nname = \"idle-{number}\"\n{nets}");
        }
        let nets = "source = \"172.16.0.0/12\"\ndestination = \"172.16.0.0/12\"\n";
        let _ = write!(text, "[[group.{GROUP}.ipsec-sa.SA1.match-policy]]\nname = \"lan-to-lan\"\n{nets}");
        if plan.ipv6 {
            let policy = format!("[[group.{GROUP}.ipsec-sa.SA1.match-policy]]\nname = \"lan-to-lan-6\"\n");
            let nets = "source = \"2001:db8::/44\"\ndestination = \"2001:db8::/44\"\n";
            text.push_str(&(policy + nets));
        }
        text.push_str(&plan.more);
        self.write(GCKS, &text, PRE_SHARED_KEY)
    }

    /// Writes `gm1.toml` or `gm2.toml` and what it names.
    ///
    /// # Errors
    /// [`LabError::System`] when the directory takes no file.
    pub fn write_member(&self, host: &str, plan: &MemberPlan) -> Result<(), LabError> {
        let own = self.network.address(host).to_string();
        let (ip, server_ip) = (self.network.ip(host).to_string(), self.network.ip(GCKS).to_string());
        let server = plan.server.unwrap_or_else(|| self.network.address(GCKS)).to_string();
        let group = plan.group.unwrap_or(GROUP_NUMBER);
        let key = plan.pre_shared_key.unwrap_or(PRE_SHARED_KEY);
        let rules = &plan.rules;
        let common = self.common(host);
        let zones = format!(
            r#"[zone.lan]
interfaces = ["lan"]
[zone.wan]
interfaces = ["wan"]
[[ipsec-policy]]
from-zone = "lan"
to-zone = "wan"
vpn = "{GROUP}"
"#
        );
        let more = &plan.more;
        let carrier = if plan.udp { "esp-encapsulation = \"udp\"\n" } else { "" };
        let zones = if plan.traffic { zones } else { String::new() };
        let text = format!(
            r#"[member]
listen = [{own:?}]
{common}[ike.gateway.servers]
ike-policy = "branches"
server-address = [{server:?}]
local-address = {ip:?}
remote-identity = {{ inet = {server_ip:?} }}
[vpn.{GROUP}]
ike-gateway = "servers"
group = {group}
{carrier}{rules}{zones}{more}"#
        );
        self.write(host, &text, key)
    }

    /// The rest of `[server]` or `[member]`, and phase 1: the same on both sides.
    fn common(&self, host: &str) -> String {
        let (control, observe) = (self.control(host), self.path(&format!("{host}.observe")));
        format!(
            r#"nat-traversal = false
control-socket = {control:?}
observe-socket = {observe:?}
log-level = "debug"
[ike.proposal.strong]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.branches]
proposals = ["strong"]
pre-shared-key = {{ file = "{host}.psk" }}
"#
        )
    }

    fn write(&self, host: &str, text: &str, key: &str) -> Result<(), LabError> {
        self.write_secret(&format!("{host}.psk"), key)?;
        std::fs::write(self.path(&format!("{host}.toml")), text)
            .map_err(LabError::system(format!("the configuration of {host}")))
    }

    /// Writes a file beside the configurations that only its owner may read.
    ///
    /// # Errors
    /// [`LabError`] when it cannot be written.
    pub fn write_secret(&self, name: &str, secret: &str) -> Result<(), LabError> {
        let path = self.path(name);
        std::fs::write(&path, secret)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)))
            .map_err(LabError::system(format!("the file {name}")))
    }

    /// Starts the daemon of a host in lab mode. Every line of its log goes to `watcher`.
    ///
    /// # Errors
    /// [`LabError::System`] when it cannot be started.
    pub fn start(&self, host: &str, watcher: Option<Watcher>) -> Result<Daemon, LabError> {
        let program = self.binaries.path(if host == GCKS { "gcksd" } else { "gmd" });
        let mut command = self.network.command(host, &program);
        command.arg("--config").arg(self.path(&format!("{host}.toml"))).args(["--lab", "--log", "json"]);
        Daemon::start(host, command, self.control(host), watcher)
    }

    /// `gcksd` with more arguments, such as `--verify-state`: it does that and ends.
    pub fn gcksd(&self, arguments: &[&str]) -> Command {
        let mut command = self.network.command(GCKS, &self.binaries.path("gcksd"));
        command.arg("--config").arg(self.path(&format!("{GCKS}.toml"))).arg("--lab").args(arguments);
        command
    }

    /// `gmd` of a host with one more argument, such as `--release`: it does that and ends.
    pub fn gmd(&self, host: &str, argument: &str) -> Command {
        let mut command = self.network.command(host, &self.binaries.path("gmd"));
        command.arg("--config").arg(self.path(&format!("{host}.toml"))).args(["--lab", argument]);
        command
    }

    /// `gdoictl` for the daemon of a host.
    pub fn gdoictl(&self, host: &str) -> Command {
        let mut command = Command::new(self.binaries.path("gdoictl"));
        command.arg("--socket").arg(self.control(host));
        command
    }
}
