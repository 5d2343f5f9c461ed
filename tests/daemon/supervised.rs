//! Under a service manager: what the daemons tell it, and that the units name what there is.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};
use gdoi_lab::skipped;

use crate::support::{SOON, binaries, site};

const UNITS: [&str; 3] = ["gcksd.service", "gmd.service", "gmd-hold.service"];

/// The end of a service manager.
struct Manager(UnixDatagram);

impl Manager {
    fn new(site: &Site) -> Manager {
        let socket = UnixDatagram::bind(site.path("notify")).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        Manager(socket)
    }

    /// Starts a daemon that has to tell it, with a watchdog of one second.
    fn start(&self, site: &Site, host: &str, mut command: Command) -> Daemon {
        command.env("NOTIFY_SOCKET", site.path("notify")).env("WATCHDOG_USEC", "1000000");
        command.env_remove("WATCHDOG_PID");
        Daemon::start(host, command, site.control(host), None).unwrap()
    }

    /// The fields of the next message; signs of life are between any two.
    fn next(&self) -> Vec<String> {
        let mut octets = [0; 512];
        let length = self.0.recv(&mut octets).expect("it tells something");
        let text = std::str::from_utf8(&octets[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn next_but_life(&self) -> Vec<String> {
        loop {
            let fields = self.next();
            if fields != ["WATCHDOG=1"] {
                return fields;
            }
        }
    }

    /// From the start to the end.
    fn follows(&self, daemon: Daemon) {
        assert_eq!(self.next_but_life(), ["READY=1"]);
        for _ in 0..2 {
            assert_eq!(self.next(), ["WATCHDOG=1"]);
        }
        let mark = daemon.mark();
        daemon.reload().unwrap();
        let fields = self.next_but_life();
        assert_eq!(fields[0], "RELOADING=1");
        let since = fields[1].strip_prefix("MONOTONIC_USEC=").unwrap();
        assert!(fields.len() == 2 && since.parse::<u64>().unwrap() > 0, "{fields:?}");
        assert_eq!(self.next_but_life(), ["READY=1"]);
        daemon.wait_named(mark, SOON, "configuration_reloaded").unwrap();
        assert_eq!(daemon.stop().unwrap().0, Some(0));
        assert_eq!(self.next_but_life(), ["STOPPING=1"]);
    }
}

#[test]
fn both_daemons_tell_that_they_are_ready_reload_live_and_stop() {
    let site = site();
    let manager = Manager::new(&site);
    site.write_server(&ServerPlan::new(Timing::LONG)).unwrap();
    manager.follows(manager.start(&site, GCKS, site.gcksd(&["--log", "json"])));
    let member = MEMBERS[0];
    site.write_member(member, &MemberPlan::default()).unwrap();
    manager.follows(manager.start(&site, member, site.gmd(member, "--log=json")));
}

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The values of a setting, in their order.
fn values<'u>(unit: &'u str, name: &str) -> Vec<&'u str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[test]
fn every_unit_starts_a_program_with_arguments_that_it_has() {
    for name in UNITS {
        let text = unit(name);
        let [start] = values(&text, "ExecStart")[..] else { panic!("{name}: one ExecStart") };
        let mut words = start.split(' ');
        let program = words.next().and_then(|path| path.strip_prefix("/usr/bin/")).unwrap();
        let help = Command::new(binaries().path(program)).arg("--help").output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        let flags: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
        assert!(flags.contains(&"--config"), "{name}: {flags:?}");
        for flag in flags {
            assert!(help.split([' ', '\n']).any(|word| word == flag), "{name}: {program} has no {flag}");
        }
        let held = name == "gmd-hold.service";
        let (kind, hold) = if held { ("oneshot", true) } else { ("notify-reload", false) };
        assert_eq!(values(&text, "Type"), [kind], "{name}");
        assert_eq!(start.ends_with(" --hold"), hold, "{name}");
        assert_eq!(values(&text, "NoNewPrivileges"), ["yes"], "{name}");
        assert_eq!(values(&text, "CapabilityBoundingSet").len(), 1, "{name}");
    }
    let hold = unit("gmd-hold.service");
    assert!(values(&hold, "Before")[0].split(' ').any(|unit| unit == "network-pre.target"));
    assert!(values(&unit("gmd.service"), "After")[0].split(' ').any(|unit| unit == "gmd-hold.service"));
}

#[test]
fn systemd_takes_the_units() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skipped("systemd takes the units", "systemd-analyze");
    }
    let directory = tempfile::tempdir().unwrap();
    for name in UNITS {
        // Programs are looked for, and accounts.
        let built = binaries().path("gmd").parent().unwrap().display().to_string();
        let text = unit(name).replace("/usr/bin", &built).replace("=gcks\n", "=root\n");
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).args(UNITS.map(|name| directory.path().join(name)));
    let verified =
        verify.env("SYSTEMD_UNIT_PATH", format!("{}:", directory.path().display())).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // notify-reload is of systemd 253; the ones before take it for simple.
    let younger = |line: &&str| !line.ends_with("ignoring: notify-reload");
    let ours = |line: &&str| line.contains("gcksd.service") || line.contains("gmd");
    let about: Vec<&str> = said.lines().filter(ours).filter(younger).collect();
    assert!(about.is_empty(), "{}", about.join("\n"));
}
