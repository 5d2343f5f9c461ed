use std::collections::BTreeMap;
use std::fmt::Write;

use ctl::observe::{
    CertificateView, CommunicationView, GcksSnapshot, GmSnapshot, GroupView, KekView, LastPushView,
    MemberCounts, PolicyView, ProcessView, ServerStatistics, Snapshot, TekView, VpnView,
};
use ctl::traffic::{DirectionView, SaTrafficView, SkewView, TrafficView};

use super::page::Kind;
use super::text;

/// A key server that has something to say about every metric; keys are in it, as over a control socket of a lab.
fn server() -> Snapshot {
    let kek = KekView { spi: "0x0a".to_owned(), key_hex: Some("5ec2e7".to_owned()), ..KekView::default() };
    let tek = TekView {
        spi: "0x00000100".to_owned(),
        sa: "S/m".to_owned(),
        state: "current".to_owned(),
        key_hex: Some("5ec2e7".to_owned()),
        ..TekView::default()
    };
    let mut group = GroupView {
        name: "g\"1\n".to_owned(),
        kek: Some(kek),
        teks: vec![tek],
        counts: MemberCounts {
            registered: 3,
            suspect: 1,
            revoked: 2,
            by_anchor: BTreeMap::from([("CN=root".to_owned(), 4)]),
        },
        member_threshold: Some(9),
        communication: Some(CommunicationView { lifetime_seconds: 3600, ..CommunicationView::default() }),
        policy: vec![PolicyView { sa: "S/m".to_owned(), ..PolicyView::default() }],
        last_push: Some(LastPushView { seq: 7, seconds: 1.5, retransmits: 2, missing: 1 }),
        lkh_depth: Some(2),
        ..GroupView::default()
    };
    group.statistics.pull_succeeded = 11;
    for milliseconds in [3, 300, 70_000] {
        group.durations.registration.count(std::time::Duration::from_millis(milliseconds));
    }
    let anchor =
        CertificateView { kind: "anchor".to_owned(), remaining_seconds: 60, ..CertificateView::default() };
    Snapshot::Gcks(GcksSnapshot {
        groups: vec![group],
        // One that serves two gateways is listed twice.
        certificates: vec![anchor.clone(), anchor],
        statistics: ServerStatistics { ack_latency_milliseconds: Some(250), ..ServerStatistics::default() },
        process: ProcessView {
            version: "1".to_owned(),
            uptime_seconds: 5,
            events: BTreeMap::from([("store_failed".to_owned(), 6)]),
        },
        ..GcksSnapshot::default()
    })
}

fn member() -> Snapshot {
    let dropped = |cause: &str| BTreeMap::from([(cause.to_owned(), 8)]);
    let traffic = TrafficView {
        outbound: DirectionView { protected: 5, dropped: dropped("no_key"), ..DirectionView::default() },
        inbound: DirectionView { dropped: dropped("d3p_too_old"), ..DirectionView::default() },
        sas: vec![SaTrafficView { spi: "0x00000100".to_owned(), octets_in: 640, ..SaTrafficView::default() }],
        skews: vec![SkewView {
            sender: "192.0.2.1".to_owned(),
            last_microseconds: -1500,
            least_microseconds: -2_000_000,
            ..SkewView::default()
        }],
    };
    let tek = TekView { spi: "0x00000100".to_owned(), state: "current".to_owned(), ..TekView::default() };
    let vpn = VpnView {
        name: "v".to_owned(),
        state: "registered".to_owned(),
        kek: Some(KekView { key_hex: Some("5ec2e7".to_owned()), ..KekView::default() }),
        teks: vec![tek],
        keys_end_in_seconds: Some(100),
        reregister_in_seconds: Some(90),
        traffic: Some(traffic),
        ..VpnView::default()
    };
    Snapshot::Gm(GmSnapshot { vpns: vec![vpn], ..GmSnapshot::default() })
}

#[test]
fn every_metric_is_on_a_page_of_a_daemon_that_has_everything() {
    let pages = [text(Some(&server())), text(Some(&member()))];
    for metric in super::page::names::ALL {
        let suffix = if metric.kind == Kind::Histogram { "_count" } else { "" };
        let name = metric.full_name() + suffix;
        let is_sample =
            |line: &str| line.strip_prefix(&name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let found = pages.iter().flat_map(|page| page.lines()).find(|line| is_sample(line));
        let line = found.unwrap_or_else(|| panic!("{name} is nowhere"));
        for label in metric.labels {
            assert!(line.contains(&format!("{label}=\"")), "{line} lacks {label}");
        }
    }
}

#[test]
fn values_labels_and_buckets_are_those_of_the_snapshot() {
    let page = text(Some(&server()));
    for line in [
        "gdoi_up 1.0",
        "gcks_server_registered_members 4.0",
        r#"gcks_group_members{group="g\"1\\n",state="suspect"} 1.0"#,
        r#"gcks_pull_succeeded_total{group="g\"1\\n"} 11"#,
        r#"gcks_registration_seconds_sum{group="g\"1\\n"} 70.303"#,
        r#"gcks_registration_seconds_bucket{le="0.25",group="g\"1\\n"} 1"#,
        r#"gcks_registration_seconds_bucket{le="0.5",group="g\"1\\n"} 2"#,
        r#"gcks_registration_seconds_bucket{le="+Inf",group="g\"1\\n"} 3"#,
        "gcks_ack_latency_seconds 0.25",
        r#"gdoi_events_total{event="store_failed",level="error"} 6"#,
        r#"gdoi_events_total{event="store_recovered",level="info"} 0"#,
    ] {
        assert!(page.lines().any(|it| it == line), "{line} is not in\n{page}");
    }
    assert_eq!(page.lines().filter(|line| line.starts_with("gcks_cert_expires_seconds{")).count(), 1);
    let page = text(Some(&member()));
    for line in [
        r#"gm_registration_state{vpn="v",state="registered"} 1.0"#,
        r#"gm_registration_state{vpn="v",state="expired"} 0.0"#,
        r#"gm_rule_hits_total{vpn="v",dir="out",rule="fail_close"} 8"#,
        r#"gm_replay_errors_total{vpn="v",cause="too_old"} 8"#,
        r#"gm_time_sync_error_seconds{vpn="v",sender="192.0.2.1"} -0.0015"#,
        r#"gm_max_time_delta_seconds{vpn="v",sender="192.0.2.1"} 2.0"#,
        r#"gm_sa_bytes_total{vpn="v",spi="0x00000100",dir="in"} 640"#,
    ] {
        assert!(page.lines().any(|it| it == line), "{line} is not in\n{page}");
    }
    assert!(page.ends_with("# EOF\n"));
}

#[test]
fn no_key_octets_are_on_a_page() {
    assert!(!text(Some(&server())).contains("5ec2e7") && !text(Some(&member())).contains("5ec2e7"));
}

#[test]
fn a_daemon_that_is_away_is_down_and_nothing_else_is_said() {
    let page = text(None);
    let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(samples, ["gdoi_up 0.0"]);
}

const PREFACE: &str = "# Metrics

`gdoictl metrics --listen ADDRESS:PORT` answers `GET /metrics` for Prometheus, for the daemon every other `gdoictl` command finds, or the
one whose control or observe socket `--socket` names. Each scrape asks the daemon anew; over the control socket only counts are asked for,
whatever the number of members. The observe socket only ever writes, and writes every member: for more than some ten thousand members let
the exporter have the control socket. While the daemon is away `gdoi_up` is 0 and the scrape succeeds. Key octets are on no page.

The names below do not change between releases; metrics and labels are only added. Counters begin anew with the daemon, those of the key
server also with `gdoictl server clear statistics`, except `gdoi_events_total`. Units are in the names: seconds, or bytes; without one it is a
number. A histogram has `_bucket`, `_sum` and `_count`. `deploy/` has alert rules and a Grafana dashboard that use them.

This page is written from the program: `BLESS=1 cargo test -p gdoictl documented`.
";

const NOT_COUNTED: &str = "
## Not counted

What other makers count, or an operator may look for, and why it is not here.

| elsewhere | why not |
| --- | --- |
| role, peers, announcements of a cluster (`cgmGdoiCoopPeer*`) | there is no cluster |
| rekeys, copies and acknowledgements per member | a label per member would be unbounded: `gdoictl server show registered-members detail` |
| failed registrations by reason | the reason is text: event `pull_refused`, `gdoictl server explain` |
| KEK status new and old | only the KEK in use is shown; the old one only takes late acknowledgements |
| life a TEK began with, by SPI | `gcks_tek_lifetime_seconds` is that of a new one |
| octets of each message | `octets` of the event `rekey_started` |
| time-based replay window, direction and mismatch action of a TEK | configuration: `gdoictl server show policy` |
| encapsulation and decapsulation failures, invalid protocol, internal errors of a member | `gm_packets_dropped_total` by our causes |
| sender IDs used, by member | `gcks_sid_remaining`; each member's are in `show registered-members` |
";

fn document() -> String {
    let mut page = PREFACE.to_owned();
    let unit = |name: &str| match name {
        name if name.ends_with("_seconds") => "seconds",
        name if name.ends_with("_bytes") => "bytes",
        _ => "",
    };
    for (prefix, title) in [("gdoi_", "Both daemons"), ("gcks_", "Key server"), ("gm_", "Member")] {
        let _ = write!(
            page,
            "\n## {title}\n\n| metric | type | unit | labels | meaning |\n| --- | --- | --- | --- | --- |\n"
        );
        for metric in super::page::names::ALL.iter().filter(|metric| metric.name.starts_with(prefix)) {
            let kind = match metric.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Histogram => "histogram",
            };
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, unit, labels) = (metric.full_name(), unit(metric.name), labels.join(", "));
            let _ = writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {} |", metric.help);
        }
    }
    page + NOT_COUNTED
}

/// With `BLESS=1` the page is written instead.
#[test]
fn every_metric_is_documented() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, document()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == document(), "docs/metrics.md is not what the program says: write it with BLESS=1");
}
