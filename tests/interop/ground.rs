//! What every foreign phase 1 is tried with: the cells of the matrix, certificates, our key server's configuration,
//! and the network namespaces all of it runs in.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use gdoi_lab::binaries::{Binaries, Profile};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};
use ike::phase1::{Credentials, Mode};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use runtime::clock::Clock;

/// The foreign program's name in certificates and identities.
pub const PEER: &str = "peer.example";
/// Ours.
pub const OURS: &str = "gcks.example";
/// The pre-shared key of everybody.
pub const SECRET: &str = "challenger deep, 10935 m";
/// Limit of what a foreign program does at once, on a machine with much else to do.
pub const SOON: Duration = Duration::from_secs(60);
/// Where the directory of our programs is told to the process in the namespaces.
const INSIDE: &str = "GDOI_INTEROP_INSIDE";

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    pub mode: Mode,
    pub method: AuthMethod,
    pub group: DhGroup,
    pub hash: Hash,
}

pub const GROUPS: [u16; 4] = [14, 19, 20, 31];
pub const HASHES: [(Hash, &str); 3] = [(Hash::Sha256, "256"), (Hash::Sha384, "384"), (Hash::Sha512, "512")];
const KINDS: [&str; 3] = ["PSK", "RSA", "ECDSA"];

impl Cell {
    /// All of them; ECDSA goes with the curve of the hash's size (RFC 4754).
    pub fn all(kinds: usize) -> Vec<Cell> {
        let mut cells = Vec::new();
        for mode in [Mode::Main, Mode::Aggressive] {
            for kind in 0..kinds {
                for group in GROUPS {
                    for (hash, _) in HASHES {
                        let method = match (kind, hash) {
                            (0, _) => AuthMethod::PreSharedKey,
                            (1, _) => AuthMethod::RsaSignature,
                            (_, Hash::Sha384) => AuthMethod::Ecdsa384,
                            (_, Hash::Sha512) => AuthMethod::Ecdsa521,
                            (_, _) => AuthMethod::Ecdsa256,
                        };
                        let group = DhGroup::from_number(group).expect("a group");
                        cells.push(Cell { mode, method, group, hash });
                    }
                }
            }
        }
        cells
    }

    /// All with `GDOI_INTEROP=full`, else one of each mode and kind, which together hold every group and hash.
    pub fn chosen(kinds: usize) -> Vec<Cell> {
        let all = Cell::all(kinds);
        if full() {
            return all;
        }
        let block = GROUPS.len() * HASHES.len();
        let one = |(number, cells): (usize, &[Cell])| {
            cells.get(number % GROUPS.len() * HASHES.len() + number % HASHES.len()).copied()
        };
        all.chunks(block).enumerate().filter_map(one).collect()
    }

    pub fn kind(&self) -> &'static str {
        match self.method {
            AuthMethod::PreSharedKey => KINDS[0],
            AuthMethod::RsaSignature => KINDS[1],
            AuthMethod::Ecdsa256 | AuthMethod::Ecdsa384 | AuthMethod::Ecdsa521 => KINDS[2],
        }
    }

    pub fn mode_name(&self) -> &'static str {
        if self.mode == Mode::Main { "main" } else { "aggressive" }
    }

    pub fn hash_name(&self) -> &'static str {
        HASHES.iter().find(|(hash, _)| *hash == self.hash).map_or("", |(_, name)| *name)
    }

    pub fn suite(&self) -> Suite {
        let Cell { method, group, hash, .. } = *self;
        Suite { cipher: Cipher::Aes256Cbc, hash, group, method }
    }

    /// The stem of the certificate files that fit.
    pub fn certificate(&self) -> Option<&'static str> {
        match self.method {
            AuthMethod::PreSharedKey => None,
            AuthMethod::RsaSignature => Some("rsa"),
            AuthMethod::Ecdsa256 => Some("ec256"),
            AuthMethod::Ecdsa384 => Some("ec384"),
            AuthMethod::Ecdsa521 => Some("ec521"),
        }
    }

    /// What the foreign program calls itself: a name for each kind of key, since charon finds its key by the name.
    pub fn identity(&self) -> String {
        format!("{}.{PEER}", self.certificate().unwrap_or("psk"))
    }

    /// Address the foreign initiator comes from: our gateways are chosen by it, and one in aggressive mode takes a
    /// single group and method.
    pub fn address(&self) -> String {
        let group = GROUPS.iter().position(|group| *group == self.group.number()).unwrap_or(0);
        match self.mode {
            Mode::Main => "192.0.2.11".to_owned(),
            Mode::Aggressive => {
                format!("192.0.2.{}", 101 + usize::from(self.method.number()) * 4 + group)
            }
        }
    }
}

/// True when everything is to be tried.
pub fn full() -> bool {
    std::env::var("GDOI_INTEROP").is_ok_and(|word| word == "full")
}

/// What came of a cell: none when everything held.
pub type Outcome = (&'static str, Cell, Option<String>);

/// Runs `test` again in namespaces of its own, or says why that is not possible here. None: this is the inner process.
pub fn enter(test: &str, program: &Path) -> Option<Binaries> {
    if let Some(directory) = std::env::var_os(INSIDE) {
        return Some(Binaries::in_directory(directory.as_ref()).expect("the programs"));
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--mount", "--kill-child", "--fork", "--"]);
        command.stdin(Stdio::null());
        command
    };
    if !program.is_file() {
        gdoi_lab::skipped(test, &program.display().to_string());
        return None;
    }
    if !unshare().arg("true").output().is_ok_and(|output| output.status.success()) {
        gdoi_lab::skipped(test, "network namespaces");
        return None;
    }
    let binaries = Binaries::build(Profile::Debug).expect("the programs");
    let own = std::env::current_exe().expect("our own path");
    let mut command = unshare();
    command.arg(own).args([test, "--exact", "--nocapture"]).env(INSIDE, binaries.directory());
    assert!(command.status().expect("unshare runs").success(), "{test} failed in its namespaces");
    None
}

/// A command line of plain words that must succeed.
pub fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().expect("a word")).args(words).output().expect("it runs");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Asks ten times a second whether it `holds` by now; false when it does not within [`SOON`].
pub fn soon(mut holds: impl FnMut() -> bool) -> bool {
    let clock = Clock::start();
    let end = clock.now().at + SOON;
    while !holds() {
        if clock.now().at >= end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    true
}

/// Every address the cells come from, on gm1, and one on the bridge for our initiator.
pub fn addresses(cells: &[Cell]) {
    let mut wanted: Vec<String> = cells.iter().map(Cell::address).collect();
    wanted.sort();
    wanted.dedup();
    for address in wanted.iter().filter(|address| *address != "192.0.2.11") {
        run(&format!("ip -n gm1 address add {address}/24 dev wan"));
    }
    run("ip address add 192.0.2.254/24 dev lab");
}

/// A CA and for each of both names a certificate of every kind: `NAME-rsa.pem`, `NAME-rsa.key`, ...; `ca.pem`.
pub fn certificates(directory: &Path) {
    certificates_with(directory, 0);
}

/// The same; ours have so many more names, so that they are long.
pub fn certificates_with(directory: &Path, more: usize) {
    let mut ca = CertificateParams::default();
    ca.distinguished_name = rcgen::DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "Interop Root");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a root");
    write(&directory.join("ca.pem"), &ca.pem());
    let kinds = [
        ("rsa", &rcgen::PKCS_RSA_SHA256),
        ("ec256", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("ec384", &rcgen::PKCS_ECDSA_P384_SHA384),
        ("ec521", &rcgen::PKCS_ECDSA_P521_SHA512),
    ];
    for name in [PEER, OURS] {
        for (kind, algorithm) in kinds {
            let key = KeyPair::generate_for(algorithm).expect("a key");
            let names = match name {
                PEER => vec![format!("{kind}.{name}")],
                _ => [name.to_owned()]
                    .into_iter()
                    .chain((0..more).map(|n| format!("site-{n}.{name}")))
                    .collect(),
            };
            let mut params = CertificateParams::new(names).expect("names");
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, format!("{name} {kind}"));
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.use_authority_key_identifier_extension = true;
            let certificate = params.signed_by(&key, &ca).expect("a certificate");
            write(&directory.join(format!("{name}-{kind}.pem")), &certificate.pem());
            write(&directory.join(format!("{name}-{kind}.key")), &key.serialize_pem());
        }
    }
    write(&directory.join("gcks.psk"), SECRET);
}

/// Phase 1 as key server and member of ours both state it; the key is the file `psk` beside the configuration.
pub fn phase1(mode: &str) -> String {
    format!(
        "[ike.proposal.strong]\nauthentication-method = \"pre-shared-keys\"\ndh-group = \"group19\"\n\
         authentication-algorithm = \"sha-256\"\nencryption-algorithm = \"aes-256-cbc\"\n\
         [ike.policy.branches]\nmode = {mode:?}\nproposals = [\"strong\"]\npre-shared-key = {{ file = \"psk\" }}\n"
    )
}

/// The group `lab`, number 1: rekeyed by acknowledged pushes, for the traffic inside `lan`.
pub fn group(gateway: &str, lan: &str) -> String {
    format!(
        r#"[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.lab]
group-id = 1
ike-gateways = ["{gateway}"]
[group.lab.server-member-communication]
encryption-algorithm = "aes-256-cbc"
sig-hash-algorithm = "sha-256"
signature = "ecdsa-256"
number-of-retransmission = 1
retransmission-period = 2
acknowledgement = "required"
[group.lab.ipsec-sa.SA1]
proposal = "esp"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "lan"
source = "{lan}"
destination = "{lan}"
"#
    )
}

/// A file only its owner reads.
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
}

/// Proposals and policies for these cells: one policy for main mode, one for each group and method in aggressive mode,
/// named as the address the peer comes from.
fn policies(cells: &[Cell]) -> (String, Vec<String>) {
    let mut addresses: Vec<String> = cells.iter().map(Cell::address).collect();
    addresses.sort();
    addresses.dedup();
    let mut text = String::new();
    for address in &addresses {
        let name = address.replace('.', "-");
        let (mut proposals, mut own) = (Vec::new(), Vec::new());
        let mut mode = "main";
        for (index, cell) in cells.iter().enumerate().filter(|(_, cell)| cell.address() == *address) {
            let suite = cell.suite().to_string();
            let mut words = suite.split('/');
            let (_, hash, group) = (words.next(), words.next(), words.next());
            let method = words.next().unwrap_or_default();
            let (hash, group) = (hash.unwrap_or_default(), group.unwrap_or_default());
            let _ = write!(
                text,
                "[ike.proposal.p{index}]\nauthentication-method = {method:?}\ndh-group = {group:?}\n\
                 authentication-algorithm = {hash:?}\nencryption-algorithm = \"aes-256-cbc\"\n"
            );
            proposals.push(format!("p{index}"));
            own.extend(cell.certificate());
            mode = cell.mode_name();
        }
        let _ = write!(text, "[ike.policy.{name}]\nmode = {mode:?}\nproposals = {proposals:?}\n");
        if cells.iter().any(|cell| cell.address() == *address && cell.certificate().is_none()) {
            text.push_str("pre-shared-key = { file = \"gcks.psk\" }\n");
        }
        own.sort_unstable();
        own.dedup();
        if !own.is_empty() {
            let one = |kind: &str| {
                format!(
                    "{{ certificate = \"{OURS}-{kind}.pem\", private-key = {{ file = \"{OURS}-{kind}.key\" }} }}"
                )
            };
            let own: Vec<String> = own.into_iter().map(one).collect();
            let _ = write!(text, "certificates = [{}]\ntrust-anchors = [\"ca.pem\"]\n", own.join(", "));
        }
    }
    (text, addresses)
}

/// `gcks.toml` for a key server that takes all cells.
pub fn server(directory: &Path, cells: &[Cell], listen: &str) {
    let (policies, addresses) = policies(cells);
    let file = |name: &str| directory.join(name);
    let mut text = format!(
        "[server]\nlisten = [{listen:?}]\nstate-directory = {:?}\ncontrol-socket = {:?}\nobserve-socket = {:?}\n\
         nat-traversal = false\nlog-level = \"trace\"\n{policies}",
        file("state"),
        file("gcks.control"),
        file("gcks.observe")
    );
    let mut names = Vec::new();
    for address in addresses {
        let name = address.replace('.', "-");
        let _ = write!(
            text,
            "[ike.gateway.{name}]\nike-policy = {name:?}\naddress = {address:?}\n\
             remote-identity = {{ hostname = \"*.{PEER}\" }}\nlocal-identity = {{ hostname = {OURS:?} }}\n\
             compat = [\"phase1-doi-ipsec\"]\n"
        );
        names.push(name);
    }
    let _ = write!(
        text,
        r#"[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.lab]
group-id = 1
ike-gateways = {names:?}
[group.lab.ipsec-sa.SA1]
proposal = "esp"
[[group.lab.ipsec-sa.SA1.match-policy]]
name = "lan"
source = "172.16.0.0/12"
destination = "172.16.0.0/12"
"#
    );
    write(&file("gcks.toml"), &text);
}

/// What our member proves itself with, read as gmd reads it.
pub fn credentials(directory: &Path, cells: &[Cell]) -> Vec<(Cell, Credentials)> {
    let one = |cell: &Cell| {
        let (policies, addresses) = policies(&[*cell]);
        let policy = addresses.first().expect("one").replace('.', "-");
        let text = format!(
            "[member]\n{policies}[ike.gateway.g]\nike-policy = {policy:?}\nserver-address = [\"192.0.2.11\"]\n\
             local-identity = {{ hostname = {OURS:?} }}\n[vpn.v]\nike-gateway = \"g\"\ngroup = 1\n\
             [data-plane]\nbackend = \"none\"\n"
        );
        let path = directory.join("gm.toml");
        write(&path, &text);
        let loaded = config::load_gm(&path, config::Options::default());
        let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
        (*cell, loaded.config.gateways.first().expect("one").credentials.clone())
    };
    cells.iter().map(one).collect()
}
