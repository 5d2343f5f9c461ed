//! The kernel backend in a kernel that has ESP: Debian's, booted under qemu, with two members in namespaces of it.
//!
//! `tests/run` unpacks the kernel to `target/interop/linux`; without it, qemu or a static busybox the test says what is missing
//! and does nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use gdoi_lab::binaries::{Binaries, Profile};
use runtime::clock::Clock;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const BUSYBOX: &str = "/usr/bin/busybox";
const KERNEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/interop/linux");
/// Everything is emulated, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(1200);
/// What the machine needs; what these need is found in them.
const MODULES: [&str; 17] = [
    "veth",
    "bridge",
    "xfrm_user",
    "esp4",
    "esp6",
    "authenc",
    "echainiv",
    "seqiv",
    "gcm",
    "ghash-generic",
    "ctr",
    "drbg",
    "jitterentropy_rng",
    "nf_tables",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "tun",
];

/// Files of the machine, as the kernel unpacks them (cpio, newc).
#[derive(Default)]
struct Image {
    octets: Vec<u8>,
    folders: BTreeSet<PathBuf>,
}

impl Image {
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let name = path.trim_start_matches('/');
        write!(
            self.octets,
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name}\0",
            0, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0
        )
        .unwrap();
        self.pad();
        self.octets.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
    }

    fn add(&mut self, path: &str, mode: u32, content: &[u8]) {
        let folders: Vec<PathBuf> = Path::new(path).ancestors().skip(1).map(Path::to_owned).collect();
        for folder in folders.into_iter().rev().filter(|it| it.components().count() > 1) {
            if self.folders.insert(folder.clone()) {
                self.entry(folder.to_str().unwrap(), 0o040_755, &[]);
            }
        }
        self.entry(path, 0o100_000 | mode, content);
    }

    /// A program with the libraries it is linked to, without its symbols.
    fn add_program(&mut self, path: &Path, at: &str) {
        let stripped = tempfile::NamedTempFile::new().unwrap();
        let strip = Command::new("strip").arg("-o").arg(stripped.path()).arg(path).status();
        let content = if strip.is_ok_and(|status| status.success()) { stripped.path() } else { path };
        self.add(at, 0o755, &fs::read(content).unwrap());
        let listed = Command::new("ldd").arg(path).output().unwrap();
        for word in
            String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/'))
        {
            if self.folders.insert(Path::new("/libraries").join(word.trim_start_matches('/'))) {
                self.add(word, 0o755, &fs::read(word).unwrap());
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.octets
    }
}

/// Modules by name.
fn modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            modules(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            found.insert(path.file_stem().unwrap().to_str().unwrap().replace('-', "_"), path);
        }
    }
}

/// A module behind those it needs, which it names itself. What is not there is part of the kernel.
fn need(name: &str, known: &BTreeMap<String, PathBuf>, order: &mut Vec<PathBuf>) {
    let Some(path) = known.get(&name.replace('-', "_")).filter(|path| !order.contains(path)) else { return };
    let octets = fs::read(path).unwrap();
    let mark = b"\0depends=";
    if let Some(at) = octets.windows(mark.len()).position(|window| window == mark) {
        let rest = octets[at + mark.len()..].split(|octet| *octet == 0).next().unwrap();
        for other in String::from_utf8_lossy(rest).split(',').filter(|other| !other.is_empty()) {
            need(other, known, order);
        }
    }
    order.push(path.clone());
}

fn image(kernel: &Path) -> Vec<u8> {
    let mut image = Image::default();
    image.add("/init", 0o755, include_bytes!("kernel/init.sh"));
    image.add("/bin/busybox", 0o755, &fs::read(BUSYBOX).unwrap());
    let binaries = Binaries::build(Profile::Debug).unwrap();
    for name in ["gcksd", "gmd", "gdoictl"] {
        image.add_program(&binaries.path(name), &format!("/usr/bin/{name}"));
    }
    for name in ["ip", "ping"] {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(|folder| Path::new(folder).join(name));
        let path = found.iter().find(|path| path.exists()).unwrap();
        image.add_program(&path.canonicalize().unwrap(), &format!("/usr/bin/{name}"));
    }
    let mut known = BTreeMap::new();
    modules(&kernel.join("lib/modules"), &mut known);
    let mut order = Vec::new();
    MODULES.iter().for_each(|name| need(name, &known, &mut order));
    let mut list = String::new();
    for path in &order {
        let name = path.file_name().unwrap().to_str().unwrap();
        image.add(&format!("/modules/{name}"), 0o644, &fs::read(path).unwrap());
        list.push_str(&format!("{name}\n"));
    }
    image.add("/modules/list", 0o644, list.as_bytes());
    image.add("/etc/gdoi/psk", 0o600, b"a pre-shared key of a lab\n");
    image.add("/etc/gdoi/gcks.toml", 0o644, include_bytes!("kernel/gcks.toml"));
    let member = include_str!("kernel/gm.toml");
    image.add("/etc/gdoi/gm1.toml", 0o644, member.as_bytes());
    let second = member.replace("10.0.0.1:", "10.0.0.2:").replace("/run/gm1", "/run/gm2");
    image.add("/etc/gdoi/gm2.toml", 0o644, second.as_bytes());
    image.finish()
}

/// The answers of the machine, and all it printed.
fn boot(kernel: &Path) -> (BTreeMap<String, String>, String) {
    let folder = tempfile::tempdir().unwrap();
    let image_path = folder.path().join("image");
    fs::write(&image_path, image(kernel)).unwrap();
    let vmlinuz = fs::read_dir(kernel.join("boot")).unwrap().map(|entry| entry.unwrap().path());
    let vmlinuz =
        vmlinuz.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz"));
    let mut machine = Command::new(QEMU)
        .args(["-accel", "tcg", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot", "-nic", "none"])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(vmlinuz.unwrap())
        .arg("-initrd")
        .arg(&image_path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let (lines, heard) = channel();
    let mut output = BufReader::new(machine.stdout.take().unwrap());
    std::thread::spawn(move || {
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|octets| octets > 0) {
            if lines.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    let (mut answers, mut said) = (BTreeMap::new(), String::new());
    let clock = Clock::start();
    let began = clock.now().at;
    loop {
        match heard.recv_timeout(PATIENCE.saturating_sub(clock.now().at.since(began))) {
            Ok(line) => {
                if let Some((name, answer)) = line.strip_prefix("@ ").and_then(|line| line.split_once(": ")) {
                    answers.insert(name.to_owned(), answer.to_owned());
                }
                said.push_str(&line);
                said.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                let _ = machine.kill();
                break;
            }
        }
    }
    let _ = machine.wait();
    (answers, said)
}

#[test]
fn members_with_the_kernel_backend_talk_through_esp_in_a_kernel_that_has_it() {
    let kernel = Path::new(KERNEL);
    for (there, what) in [
        (Path::new(QEMU).exists(), "qemu-system-x86"),
        (Path::new(BUSYBOX).exists(), "busybox-static"),
        (kernel.join("boot").exists(), "a kernel in target/interop/linux (tests/run unpacks it)"),
        (cfg!(target_arch = "x86_64"), "a machine of the kernel's kind"),
    ] {
        if !there {
            gdoi_lab::skipped("daemon kernel", what);
            return;
        }
    }
    let (answers, said) = boot(kernel);
    let answer = |name: &str| answers.get(name).map(String::as_str).unwrap_or_default();
    for (name, expected) in [
        ("in clear before", "yes"),
        ("held", "blocked"),
        ("key server", "yes"),
        ("first registered", "yes"),
        ("second registered", "yes"),
        ("IPv4 by tunnel", "yes"),
        ("IPv6 by transport", "yes"),
        ("IPv4", "20"),
        ("IPv6", "20"),
        ("longer than the MTU", "5"),
        ("over rollovers", "600"),
        ("held after the kill", "blocked"),
        ("states after the hold", "0"),
        ("registered again", "yes"),
        ("IPv4 again", "yes"),
        ("states after the end", "0"),
        ("after the end", "blocked"),
        ("policies after the release", "0"),
        ("in clear after", "yes"),
    ] {
        assert_eq!(answer(name), expected, "{name}:\n{said}");
    }
    let keys: u32 = answer("keys").parse().unwrap();
    assert!(keys >= 4, "two TEKs and their successors, {keys} were installed:\n{said}");
    assert!(answer("states of n1 that worked").parse::<u32>().unwrap() >= 2, "{said}");
}
