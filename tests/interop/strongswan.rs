//! strongSwan's charon, IKEv1 from port 500, as initiator against our key server and as responder to our initiator, both
//! on port 848. Where neither port is 500, charon puts a non-ESP marker before every message.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::site::Site;
use gdoi_proto::message::Dialect;
use ike::phase1::Mode;

use crate::ground::{self, Cell, OURS, Outcome, PEER, SECRET, SOON};
use crate::ours::Ours;
use crate::table;

pub const CHARON: &str = "/usr/lib/ipsec/charon";
const INITIATE: [&str; 5] = ["--initiate", "--ike", "cell", "--timeout", "60"];
const TERMINATE: [&str; 5] = ["--terminate", "--ike", "cell", "--timeout", "60"];

/// A running charon; ended on drop.
pub struct Charon {
    child: Child,
    directory: PathBuf,
}

impl Drop for Charon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Charon {
    /// On a host of the network; `more` settings are words of strongswan.conf.
    pub fn start(network: &Network, host: &str, directory: &Path, more: &str) -> Charon {
        let directory = directory.to_owned();
        let (log, socket) = (directory.join("charon.log"), directory.join("charon.vici"));
        let conf = format!(
            "charon {{\n port = 500\n port_nat_t = 4500\n\n load = random nonce aes sha1 sha2 hmac kdf gmp openssl curve25519 x509 \
             constraints pubkey pkcs1 pkcs8 pem kernel-netlink socket-default vici\n install_routes = no\n {more}\n retransmit_tries = 2\n\
             i_dont_care_about_security_and_use_aggressive_mode_psk = yes\n\
             plugins {{ vici {{ socket = unix://{} }} }}\n\
             filelog {{ log {{ path = {}\n flush_line = yes\n default = 1\n enc = 1\n }} }}\n}}\n",
            socket.display(),
            log.display()
        );
        std::fs::write(directory.join("strongswan.conf"), conf).expect("its configuration");
        for (from, to) in [("pem", "x509"), ("key", "private")] {
            let target = directory.join("swanctl").join(to);
            std::fs::create_dir_all(&target).expect("a directory");
            for kind in ["rsa", "ec256", "ec384", "ec521"] {
                let name = format!("{PEER}-{kind}.{from}");
                std::fs::copy(directory.join(&name), target.join(&name)).expect("a copy");
            }
        }
        let anchors = directory.join("swanctl/x509ca");
        std::fs::create_dir_all(&anchors).expect("a directory");
        std::fs::copy(directory.join("ca.pem"), anchors.join("ca.pem")).expect("a copy");
        let mut command = network.command(host, Path::new(CHARON));
        command.env("STRONGSWAN_CONF", directory.join("strongswan.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let charon = Charon { child: command.spawn().expect("charon starts"), directory };
        let up = ground::soon(|| charon.swanctl(&["--stats"]).is_ok());
        assert!(up, "charon does not answer: {}", charon.log());
        let secrets = format!("secrets {{\n ike-any {{\n secret = \"{SECRET}\"\n }}\n}}\n");
        std::fs::write(charon.directory.join("swanctl/secrets.conf"), secrets).expect("its secrets");
        let file = charon.directory.join("swanctl/secrets.conf");
        charon.swanctl(&["--load-creds", "--file", &file.to_string_lossy()]).expect("credentials");
        charon
    }

    pub fn swanctl(&self, arguments: &[&str]) -> Result<String, String> {
        let (command, arguments) = arguments.split_first().expect("a command");
        let output = Command::new("swanctl")
            .arg(command)
            .args(["--uri", &format!("unix://{}", self.directory.join("charon.vici").display())])
            .args(arguments)
            .env("SWANCTL_DIR", self.directory.join("swanctl"))
            .env("STRONGSWAN_CONF", self.directory.join("strongswan.conf"))
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if output.status.success() { Ok(said) } else { Err(said) }
    }

    pub fn log(&self) -> String {
        std::fs::read(self.directory.join("charon.log"))
            .map(|octets| String::from_utf8_lossy(&octets).into_owned())
            .unwrap_or_default()
    }

    /// Waits until its log says `word` beyond `from` octets.
    pub fn says(&self, from: usize, word: &str) -> Result<(), String> {
        let said = ground::soon(|| self.log().get(from..).is_some_and(|text| text.contains(word)));
        said.then_some(()).ok_or_else(|| format!("charon did not log `{word}`"))
    }

    /// Its only connection.
    pub fn load(&self, cell: &Cell, local: &str, remote: &str, dpd: u32) -> Result<(), String> {
        let group = match cell.group.number() {
            14 => "modp2048",
            19 => "ecp256",
            20 => "ecp384",
            _ => "curve25519",
        };
        let auth = if cell.certificate().is_some() { "pubkey" } else { "psk" };
        let certs = cell.certificate().map_or(String::new(), |kind| format!("certs = {PEER}-{kind}.pem"));
        let aggressive = if cell.mode == Mode::Aggressive { "yes" } else { "no" };
        let mut text = String::new();
        let _ = write!(
            text,
            "connections {{\n cell {{\n version = 1\n aggressive = {aggressive}\n local_addrs = {local}\n\
             remote_addrs = {remote}\n local_port = 500\n remote_port = 848\n dpd_delay = {dpd}s\n\
             proposals = aes256-sha{}-{group}\n\
             local {{\n auth = {auth}\n id = {}\n {certs}\n }}\n\
             remote {{\n auth = {auth}\n id = {OURS}\n }}\n children {{ c {{ }} }}\n }}\n}}\n",
            cell.hash_name(),
            cell.identity()
        );
        let file = self.directory.join("swanctl/cell.conf");
        std::fs::write(&file, text).map_err(|error| error.to_string())?;
        self.swanctl(&["--load-conns", "--file", &file.to_string_lossy()]).map(drop)
    }
}

/// `gm2.toml`: a member of ours that registers with charon on gm1, as this cell says. SHA-256.
pub fn member(site: &Site, cell: &Cell) {
    let (method, proof) = match cell.certificate() {
        None => ("pre-shared-keys", "pre-shared-key = { file = \"gcks.psk\" }".to_owned()),
        Some(kind) => (
            "rsa-signatures",
            format!(
                "certificates = [{{ certificate = \"{OURS}-{kind}.pem\", private-key = {{ file = \"{OURS}-{kind}.key\" }} }}]\n\
                 trust-anchors = [\"ca.pem\"]"
            ),
        ),
    };
    let text = format!(
        r#"[member]
listen = ["192.0.2.12:848"]
nat-traversal-listen = ["192.0.2.12:4500"]
control-socket = {:?}
observe-socket = {:?}
[ike.proposal.p]
authentication-method = {method:?}
dh-group = "group{}"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
mode = {:?}
proposals = ["p"]
{proof}
[ike.gateway.servers]
ike-policy = "pol"
server-address = ["192.0.2.11:500"]
local-identity = {{ hostname = {OURS:?} }}
remote-identity = {{ hostname = {:?} }}
compat = ["phase1-doi-ipsec"]
[vpn.v]
ike-gateway = "servers"
group = 1
[data-plane]
backend = "none"
"#,
        site.control("gm2"),
        site.path("gm2.observe"),
        cell.group.number(),
        cell.mode_name(),
        cell.identity(),
    );
    ground::write(&site.path("gm2.toml"), &text);
}

#[test]
fn strongswan_and_we_agree_on_phase_1_both_ways() {
    let test = "strongswan::strongswan_and_we_agree_on_phase_1_both_ways";
    if !Path::new("/usr/sbin/swanctl").is_file() {
        gdoi_lab::skipped(test, "swanctl");
        return;
    }
    let Some(binaries) = ground::enter(test, Path::new(CHARON)) else { return };
    let cells = Cell::chosen(3);
    let network = Network::namespaces().expect("namespaces");
    ground::addresses(&cells);
    let site = Site::new(network, binaries).expect("a directory");
    let directory = site.directory().to_owned();
    ground::certificates(&directory);
    ground::server(&directory, &cells, "192.0.2.1:848");
    let gcks = site.start(GCKS, None).expect("gcksd starts");
    gcks.wait_named(gcks.beginning(), SOON, "listening").expect("it listens");
    let charon = Charon::start(&site.network, "gm1", &directory, "");
    let mut outcomes: Vec<Outcome> = Vec::new();
    let (here, there) = ("192.0.2.254:848".parse().unwrap(), "192.0.2.11:500".parse().unwrap());
    // It names DOI 1 in every offer and in every answer.
    let doi_1 = Dialect { phase1_doi_ipsec: true, ..Dialect::STRICT };
    let mut ours = Ours::new(here, there, doi_1);
    let credentials = ground::credentials(&directory, &cells);

    for (cell, credentials) in &credentials {
        let mut asks = || -> Result<(), String> {
            charon.load(cell, &cell.address(), "192.0.2.1", 1)?;
            let (mark, from) = (gcks.mark(), charon.log().len());
            charon.swanctl(&INITIATE)?;
            let late = |error: gdoi_lab::LabError| error.to_string();
            let suite = cell.suite().to_string();
            gcks.wait(mark, SOON, "phase 1 of that suite", |event| {
                matches!(event, ctl::event::Event::Phase1Established { suite: it, .. } if *it == suite)
            })
            .map_err(late)?;
            charon.says(from, "N(DPD_ACK)")?;
            let mark = gcks.mark();
            charon.swanctl(&TERMINATE)?;
            gcks.wait_named(mark, SOON, "phase1_deleted").map_err(late)?;

            charon.load(cell, "192.0.2.11", "192.0.2.254", 0)?;
            ours.forget();
            let mut sa = std::thread::scope(|scope| {
                let asked = scope.spawn(|| charon.swanctl(&INITIATE));
                let sa = ours.answer(cell, credentials);
                asked.join().map_err(|_| "swanctl")?.and(sa)
            })?;
            ours.is_answered(&mut sa)?;
            let from = charon.log().len();
            ours.delete(&mut sa)?;
            charon.says(from, "received DELETE for IKE_SA")
        };
        let failed = asks().err();
        if failed.is_some() {
            println!("{}", gcks.tail(6).join("\n"));
        }
        outcomes.push(table::note("strongSwan", "asks", *cell, failed));
    }

    for (cell, credentials) in &credentials {
        let mut answers = || -> Result<(), String> {
            charon.load(cell, "192.0.2.11", "192.0.2.254", 1)?;
            let mut sa = ours.ask(cell, credentials)?;
            ours.is_answered(&mut sa)?;
            let from = charon.log().len();
            ours.delete(&mut sa)?;
            charon.says(from, "received DELETE for IKE_SA")?;

            let mut sa = ours.ask(cell, credentials)?;
            charon.swanctl(&TERMINATE)?;
            ours.hears_delete(&mut sa)
        };
        outcomes.push(table::note("strongSwan", "answers", *cell, answers().err()));
    }
    if std::env::var_os("GDOI_INTEROP_LOG").is_some() {
        println!("{}", charon.log());
    }
    let version = charon.swanctl(&["--version"]).expect("its version");
    drop(charon);
    table::settle("strongSwan", &version, &outcomes);
}

#[test]
fn a_member_of_ours_comes_up_with_strongswan_and_says_goodbye() {
    let test = "strongswan::a_member_of_ours_comes_up_with_strongswan_and_says_goodbye";
    let Some(binaries) = ground::enter(test, Path::new(CHARON)) else { return };
    let cell = *Cell::all(1).first().expect("a cell");
    let site = Site::new(Network::namespaces().expect("namespaces"), binaries).expect("a directory");
    let directory = site.directory().to_owned();
    ground::certificates(&directory);
    let charon = Charon::start(&site.network, "gm1", &directory, "");
    charon.load(&cell, "192.0.2.11", "192.0.2.12", 0).expect("its connection");
    member(&site, &cell);
    let gm2 = site.start("gm2", None).expect("gmd starts");
    let up = gm2.wait_named(gm2.beginning(), SOON, "phase1_established");
    let up = up.unwrap_or_else(|error| panic!("{error}\n{}", charon.log())).to_string();
    assert!(up.contains(&cell.identity()) && up.contains("group14"), "{up}");
    // It knows no GROUPKEY-PULL: whether it says so or not, there are no keys, and phase 1 ends with the member.
    let vpn = gm2.vpn().expect("a vpn");
    assert!(vpn.state != "registered" && vpn.teks.is_empty() && vpn.kek.is_none(), "{}", vpn.state);
    assert_eq!(gm2.stop().expect("it stops").0, Some(0));
    charon.says(0, "received DELETE for IKE_SA").expect("a goodbye");
}
