//! `gdoictl metrics` beside real daemons: every documented name is there, also over the observe socket, and a daemon that
//! is away is said to be.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gdoi_lab::daemon::Daemon;
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{GROUP, Timing};

use crate::support::{Lab, SOON};

/// Only of a configuration this lab has not: certificates, a limit of members, a key tree.
const NOT_HERE: &[&str] =
    &["gcks_cert_expires_seconds", "gcks_group_member_threshold", "gcks_members_by_anchor", "gcks_lkh_depth"];
/// Only with a data plane, or while a registration is planned.
const NOT_ALWAYS: &[&str] = &[
    "gm_reregister_seconds",
    "gm_packets_total",
    "gm_rule_hits_total",
    "gm_packets_dropped_total",
    "gm_replay_errors_total",
    "gm_sa_packets_total",
    "gm_sa_bytes_total",
    "gm_time_sync_error_seconds",
    "gm_max_time_delta_seconds",
];

/// A running `gdoictl` that answers HTTP; ended with the value.
pub struct Exporter {
    child: Child,
    pub address: SocketAddr,
}

impl Exporter {
    pub fn start(mut gdoictl: Command, command: &str) -> Exporter {
        gdoictl.args([command, "--listen", "127.0.0.1:0"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = gdoictl.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").unwrap().split('/').next().unwrap();
        Exporter { child, address: address.parse().unwrap() }
    }

    /// Status line with headers, and body.
    pub fn get(&self, path: &str) -> (String, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
    }

    pub fn ask(&self, request: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    fn metrics(&self) -> String {
        let (head, body) = self.get("/metrics");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
        body
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names in `docs/metrics.md` that begin so.
fn documented(prefix: &str) -> Vec<String> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let names: Vec<String> = rows
        .filter(|row| row.starts_with(prefix))
        .map(|row| {
            let (name, rest) = row.split_once("` | ").unwrap();
            name.to_owned() + if rest.starts_with("histogram") { "_count" } else { "" }
        })
        .collect();
    assert!(!names.is_empty());
    names
}

/// The value of a sample whose line begins so.
fn value(page: &str, sample: &str) -> f64 {
    let rest = page.lines().find_map(|line| line.strip_prefix(sample));
    rest.unwrap_or_else(|| panic!("{sample} is not in\n{page}")).trim().parse().unwrap()
}

fn assert_names(page: &str, prefix: &str, except: &[&str]) {
    for name in documented(prefix).iter().filter(|name| !except.contains(&name.as_str())) {
        let there =
            |line: &str| line.strip_prefix(name.as_str()).is_some_and(|it| it.starts_with(['{', ' ']));
        assert!(page.lines().any(there), "{name} is not in\n{page}");
    }
}

fn observing(daemon: &Daemon, gdoictl: &Path) -> Command {
    let mut command = Command::new(gdoictl);
    command.arg("--socket").arg(daemon.control().with_extension("observe"));
    command
}

#[test]
fn every_documented_metric_is_there_and_says_what_the_daemons_do() {
    let mut lab = Lab::registered(Timing::LONG);
    let (seq, mark) = lab.rekey();
    assert_eq!(lab.over(seq, mark), (2, vec![]));
    lab.same_keys();

    let exporter = Exporter::start(lab.site.gdoictl(GCKS), "metrics");
    let page = exporter.metrics();
    assert_names(&page, "gdoi_", &[]);
    assert_names(&page, "gcks_", NOT_HERE);
    let group = format!("{{group=\"{GROUP}\"}}");
    for (sample, expected) in [
        ("gdoi_up", 1.0),
        ("gcks_server_registered_members", 2.0),
        (&format!("gcks_pull_succeeded_total{group}"), 2.0),
        (&format!("gcks_registration_seconds_count{group}"), 2.0),
        (&format!("gcks_push_acked_total{group}"), 2.0),
        (&format!("gcks_push_ack_seconds_count{group}"), 2.0),
        (&format!("gcks_push_fanout_seconds_count{group}"), 1.0),
        (&format!("gcks_group_last_rekey_missing{group}"), 0.0),
        ("gdoi_events_total{event=\"rekey_completed\",level=\"info\"}", 1.0),
    ] {
        assert_eq!(value(&page, sample), expected, "{sample}");
    }
    for secret in lab.server.group().unwrap().teks.iter().filter_map(|tek| tek.key_hex.as_ref()) {
        assert!(!page.contains(secret.as_str()), "a key is on the page");
    }
    let (head, _) = exporter.get("/elsewhere");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let (head, _) =
        exporter.ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");

    let gdoictl = lab.site.gdoictl(GCKS).get_program().to_owned();
    let observer = Exporter::start(observing(&lab.server, gdoictl.as_ref()), "metrics");
    assert_eq!(value(&observer.metrics(), "gcks_server_registered_members"), 2.0);

    let member = Exporter::start(lab.site.gdoictl(MEMBERS[0]), "metrics");
    let page = member.metrics();
    assert_names(&page, "gdoi_", &[]);
    assert_names(&page, "gm_", NOT_ALWAYS);
    let rekeys = page.lines().find(|line| line.starts_with("gm_rekeys_received_total{")).unwrap();
    assert!(rekeys.ends_with("} 1"), "{rekeys}");

    let served = Exporter::start(lab.site.gdoictl(GCKS), "serve");
    assert_eq!(value(&served.metrics(), "gcks_server_registered_members"), 2.0);
    let (head, body) = served.get("/");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(body.contains(&format!("<td>{GROUP}</td>")), "{body}");

    lab.server.kill();
    assert!(served.get("/").1.contains("The daemon does not answer."));
    for exporter in [&exporter, &observer] {
        let page = exporter.metrics();
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(samples, ["gdoi_up 0.0"]);
    }
}
