//! libreswan's pluto, IKEv1 between ports 500, as initiator against our key server and as responder to our initiator. It
//! takes DOI 1 only (`compat = ["phase1-doi-ipsec"]`) and knows no ECDSA in IKEv1.
//!
//! Its Debian package excludes strongSwan's: `tests/run` unpacks it below `target/interop`, and its programs are bound
//! over the path they insist on in the mount namespace of the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::site::Site;
use gdoi_proto::message::Dialect;
use ike::phase1::Mode;

use crate::ground::{self, Cell, OURS, Outcome, PEER, SECRET, SOON};
use crate::ours::Ours;
use crate::table;

const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/interop/libreswan");
const PROGRAMS: &str = "/usr/libexec";
const INITIATE: [&str; 4] = ["--initiate", "--name", "cell", "--asynchronous"];
const TERMINATE: [&str; 3] = ["--terminate", "--name", "cell"];

/// A running pluto; ended on drop.
struct Pluto {
    child: Child,
    directory: PathBuf,
}

impl Drop for Pluto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn libraries() -> PathBuf {
    Path::new(UNPACKED).join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// One of its programs, or of NSS, that must succeed.
fn tool(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).env("LD_LIBRARY_PATH", libraries()).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{} {arguments:?}: {said}", program.display()))
    }
}

impl Pluto {
    fn start(network: &Network, directory: &Path) -> Pluto {
        ground::run(&format!("mount --bind {UNPACKED}{PROGRAMS} {PROGRAMS}"));
        let directory = directory.join("pluto");
        for part in ["run", "nss", "ipsec.d"] {
            std::fs::create_dir_all(directory.join(part)).expect("a directory");
        }
        ground::write(&directory.join("secrets"), &format!(": PSK \"{SECRET}\"\n"));
        ground::write(&directory.join("ipsec.conf"), "config setup\n ikev1-policy=accept\n");
        certificates(&directory);
        let log = std::fs::File::create(directory.join("log")).expect("its log");
        let mut command = network.command("gm1", &Path::new(PROGRAMS).join("ipsec/pluto"));
        let path = |name: &str| directory.join(name);
        command.args(["--nofork", "--stderrlog", "--no-dnssec"]);
        command.arg("--config").arg(path("ipsec.conf")).arg("--rundir").arg(path("run"));
        command.arg("--nssdir").arg(path("nss")).arg("--secretsfile").arg(path("secrets"));
        command.arg("--ipsecdir").arg(path("ipsec.d")).env("LD_LIBRARY_PATH", libraries());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let pluto = Pluto { child: command.spawn().expect("pluto starts"), directory };
        let up = ground::soon(|| pluto.whack(&["--listen"]).is_ok());
        assert!(up, "pluto does not answer: {}", pluto.log());
        pluto.whack(&["--debug", "base"]).expect("a long log");
        pluto
    }

    fn control(&self) -> String {
        self.directory.join("run/pluto.ctl").display().to_string()
    }

    fn whack(&self, arguments: &[&str]) -> Result<String, String> {
        let control = self.control();
        tool(&Path::new(PROGRAMS).join("ipsec/whack"), &[&["--ctlsocket", &control], arguments].concat())
    }

    fn log(&self) -> String {
        let octets = std::fs::read(self.directory.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&octets).into_owned()
    }

    /// Waits until its log says `word` beyond `from` octets.
    fn says(&self, from: usize, word: &str) -> Result<(), String> {
        let said = ground::soon(|| self.log().get(from..).is_some_and(|text| text.contains(word)));
        said.then_some(()).ok_or_else(|| format!("pluto did not log `{word}`"))
    }

    /// Its only connection.
    fn load(&self, cell: &Cell, local: &str, remote: &str) -> Result<(), String> {
        let group = match cell.group.number() {
            14 => "modp2048".to_owned(),
            number => format!("dh{number}"),
        };
        let auth = match cell.certificate() {
            None => "authby=secret".to_owned(),
            Some(kind) => {
                format!(
                    "authby=rsasig\n leftcert={PEER}-{kind}\n leftsendcert=always\n rightca=\"CN=Interop Root\""
                )
            }
        };
        let aggressive = if cell.mode == Mode::Aggressive { "yes" } else { "no" };
        let text = format!(
            "conn cell\n ikev2=no\n aggressive={aggressive}\n left={local}\n right={remote}\n leftid=@{}\n rightid=@{OURS}\n \
             {auth}\n ike=aes256-sha2_{};{group}\n esp=aes256-sha2_256\n pfs=no\n dpddelay=1\n dpdtimeout=20\n \
             dpdaction=clear\n auto=add\n",
            cell.identity(),
            cell.hash_name(),
        );
        let file = self.directory.join("ipsec.conf");
        ground::write(&file, &text);
        let _ = self.whack(&["--delete", "--name", "cell"]);
        let (file, control) = (file.display().to_string(), self.control());
        let add = ["--config", &file, "--ctlsocket", &control, "cell"];
        tool(&Path::new(PROGRAMS).join("ipsec/addconn"), &add).map(drop)
    }
}

/// Its certificate, key and anchor in its NSS database.
fn certificates(directory: &Path) {
    let outside = directory.parent().expect("the site's");
    let (nss, program) = (format!("sql:{}", directory.join("nss").display()), |name: &str| {
        Path::new(UNPACKED).join("usr/bin").join(name)
    });
    let file = |name: String| outside.join(name).display().to_string();
    let (anchor, pack) = (file("ca.pem".to_owned()), file("pluto.p12".to_owned()));
    let name = format!("{PEER}-rsa");
    let (certificate, key) = (file(format!("{name}.pem")), file(format!("{name}.key")));
    let certutil = program("certutil");
    tool(&certutil, &["-N", "-d", &nss, "--empty-password"]).expect("a database");
    tool(&certutil, &["-A", "-d", &nss, "-n", "anchor", "-t", "CT,,", "-i", &anchor]).expect("the anchor");
    let export = ["pkcs12", "-export", "-in", &certificate, "-inkey", &key, "-name", &name, "-out", &pack];
    tool(Path::new("openssl"), &[&export[..], &["-passout", "pass:"]].concat()).expect("a pack");
    tool(&program("pk12util"), &["-i", &pack, "-d", &nss, "-W", ""]).expect("the key");
}

#[test]
fn libreswan_and_we_agree_on_phase_1_both_ways() {
    let test = "libreswan::libreswan_and_we_agree_on_phase_1_both_ways";
    let program = format!("{UNPACKED}{PROGRAMS}/ipsec/pluto");
    let Some(binaries) = ground::enter(test, Path::new(&program)) else { return };
    let cells = Cell::chosen(2);
    let network = Network::namespaces().expect("namespaces");
    ground::addresses(&cells);
    let site = Site::new(network, binaries).expect("a directory");
    let directory = site.directory().to_owned();
    ground::certificates(&directory);
    ground::server(&directory, &cells, "192.0.2.1:500");
    let gcks = site.start(GCKS, None).expect("gcksd starts");
    gcks.wait_named(gcks.beginning(), SOON, "listening").expect("it listens");
    let pluto = Pluto::start(&site.network, &directory);
    let mut outcomes: Vec<Outcome> = Vec::new();
    let (here, there) = ("192.0.2.254:500".parse().unwrap(), "192.0.2.11:500".parse().unwrap());
    let mut ours = Ours::new(here, there, Dialect { phase1_doi_ipsec: true, ..Dialect::STRICT });
    let credentials = ground::credentials(&directory, &cells);

    for (cell, credentials) in &credentials {
        let mut asks = || -> Result<(), String> {
            pluto.load(cell, &cell.address(), "192.0.2.1")?;
            let (mark, from) = (gcks.mark(), pluto.log().len());
            pluto.whack(&INITIATE)?;
            let late = |error: gdoi_lab::LabError| error.to_string();
            let suite = cell.suite().to_string();
            gcks.wait(mark, SOON, "phase 1 of that suite", |event| {
                matches!(event, ctl::event::Event::Phase1Established { suite: it, .. } if *it == suite)
            })
            .map_err(late)?;
            // It asks R-U-THERE only under an IPsec SA, which GDOI never makes: that it would is all there is to see.
            pluto.says(from, "peer supports DPD")?;
            let mark = gcks.mark();
            pluto.whack(&TERMINATE)?;
            gcks.wait_named(mark, SOON, "phase1_deleted").map_err(late)?;

            // What it answers when it is asked: our responder asks it.
            pluto.load(cell, "192.0.2.11", "192.0.2.254")?;
            ours.forget();
            pluto.whack(&INITIATE)?;
            let mut sa = ours.answer(cell, credentials)?;
            ours.is_answered(&mut sa)?;
            let from = pluto.log().len();
            ours.delete(&mut sa)?;
            pluto.says(from, "self-deleting ISAKMP")
        };
        let failed = asks().err();
        if failed.is_some() {
            println!("{}", gcks.tail(6).join("\n"));
            let log = pluto.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("{}", lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n"));
        }
        outcomes.push(table::note("libreswan", "asks", *cell, failed));
    }

    for (cell, credentials) in &credentials {
        let mut answers = || -> Result<(), String> {
            pluto.load(cell, "192.0.2.11", "192.0.2.254")?;
            let mut sa = ours.ask(cell, credentials)?;
            ours.is_answered(&mut sa)?;
            let from = pluto.log().len();
            ours.delete(&mut sa)?;
            pluto.says(from, "self-deleting ISAKMP")?;

            let mut sa = ours.ask(cell, credentials)?;
            pluto.whack(&TERMINATE)?;
            ours.hears_delete(&mut sa)
        };
        outcomes.push(table::note("libreswan", "answers", *cell, answers().err()));
    }
    if std::env::var_os("GDOI_INTEROP_LOG").is_some() {
        println!("{}", pluto.log());
    }
    let version = tool(Path::new(&program), &["--version"]).expect("its version");
    drop(pluto);
    table::settle("libreswan", &version, &outcomes);
}
