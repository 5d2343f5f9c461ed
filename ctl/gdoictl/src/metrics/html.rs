//! `gdoictl serve`: what a daemon's snapshot says, as one page for a browser. Nothing in it comes from elsewhere, nothing is
//! executed, and every text of the daemon is escaped.

use std::fmt::Write;

use ctl::event::printable;
use ctl::observe::{CertificateView, GcksSnapshot, GmSnapshot, GroupView, ProcessView, Snapshot, VpnView};
use ctl::time::span;

/// Only the styles of the page itself apply.
pub const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"10\"><title>GDOI</title>
<style>
body { font: 15px/1.4 sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; margin: 0 0 2em }
th, td { text-align: left; padding: .2em .9em .2em 0; border-bottom: 1px solid #ddd; vertical-align: top }
.bad { color: #b00; font-weight: bold }
</style></head><body>
";

/// The page of a daemon as it is now; none while it is away.
pub fn page(snapshot: Option<&Snapshot>) -> String {
    let mut out = HEAD.to_owned();
    match snapshot {
        None => out.push_str("<h1>GDOI</h1>\n<p class=\"bad\">The daemon does not answer.</p>\n"),
        Some(Snapshot::Gcks(snapshot)) => server(&mut out, snapshot),
        Some(Snapshot::Gm(snapshot)) => member(&mut out, snapshot),
    }
    out.push_str("<p><a href=\"/metrics\">metrics</a></p>\n</body></html>\n");
    out
}

/// Text of a daemon within an element.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn heading(out: &mut String, what: &str, process: &ProcessView) {
    let _ = writeln!(
        out,
        "<h1>{what}</h1>\n<p>version {}, running for {}</p>",
        escaped(&process.version),
        span(process.uptime_seconds)
    );
}

fn table(out: &mut String, title: &str, headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let _ = write!(out, "<h2>{title}</h2>\n<table><tr>");
    for heading in headings {
        let _ = write!(out, "<th>{heading}</th>");
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let _ = write!(out, "<td>{}</td>", escaped(&cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

fn server(out: &mut String, snapshot: &GcksSnapshot) {
    heading(out, "GDOI key server", &snapshot.process);
    let it = &snapshot.statistics;
    if it.registration_storm {
        let _ = writeln!(out, "<p class=\"bad\">Registration storm: {} wait.</p>", it.registrations_waiting);
    }
    table(
        out,
        "Groups",
        &[
            "Group",
            "Id",
            "Registered",
            "Suspect",
            "Revoked",
            "KEK left",
            "SEQ",
            "Rekeys",
            "Last push",
            "On its way",
            "Sender IDs left",
        ],
        snapshot.groups.iter().map(group),
    );
    let teks = snapshot.groups.iter().flat_map(|group| group.teks.iter().map(move |tek| (group, tek)));
    table(
        out,
        "TEKs",
        &["Group", "SA", "SPI", "Algorithm", "Life left", "State"],
        teks.map(|(group, tek)| {
            let left = span(tek.remaining_seconds);
            vec![
                group.name.clone(),
                tek.sa.clone(),
                tek.spi.clone(),
                tek.algorithm.clone(),
                left,
                tek.state.clone(),
            ]
        }),
    );
    table(
        out,
        "Certificates",
        &["Ends", "Left", "State", "Kind", "Subject", "Serial"],
        snapshot.certificates.iter().map(certificate),
    );
}

fn group(group: &GroupView) -> Vec<String> {
    let kek = group.kek.as_ref();
    let dash = || "-".to_owned();
    let last = group.last_push.as_ref().map_or_else(dash, |last| {
        format!("SEQ {} in {:.1} s, {} did not answer", last.seq, last.seconds, last.missing)
    });
    let pending = group.pending_push.as_ref();
    let pending =
        pending.map_or_else(dash, |push| format!("SEQ {}, waiting for {}", push.seq, push.outstanding_count));
    vec![
        group.name.clone(),
        group.id.clone(),
        group.counts.registered.to_string(),
        group.counts.suspect.to_string(),
        group.counts.revoked.to_string(),
        kek.map_or_else(dash, |kek| span(kek.remaining_seconds)),
        kek.map_or_else(dash, |kek| kek.seq.to_string()),
        group.statistics.rekeys.to_string(),
        last,
        pending,
        group.sender_ids_left.to_string(),
    ]
}

fn certificate(it: &CertificateView) -> Vec<String> {
    let left = span(it.remaining_seconds);
    vec![it.not_after.clone(), left, it.state.clone(), it.kind.clone(), it.subject.clone(), it.serial.clone()]
}

fn member(out: &mut String, snapshot: &GmSnapshot) {
    heading(out, "GDOI group member", &snapshot.process);
    table(
        out,
        "VPNs",
        &["VPN", "Group", "State", "Key server", "TEKs", "Keys end in", "Rekeys applied", "Missed"],
        snapshot.vpns.iter().map(vpn),
    );
}

fn vpn(vpn: &VpnView) -> Vec<String> {
    let end = vpn.keys_end_in_seconds.map_or_else(|| "-".to_owned(), span);
    vec![
        vpn.name.clone(),
        vpn.group.clone(),
        vpn.state.clone(),
        vpn.server.clone(),
        vpn.teks.len().to_string(),
        end,
        vpn.statistics.push_succeeded.to_string(),
        vpn.statistics.push_gaps.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::observe::MemberCounts;

    #[test]
    fn the_page_shows_groups_and_certificates_and_escapes_what_it_is_told() {
        let group = GroupView {
            name: "<script>\"g'&".to_owned(),
            counts: MemberCounts { registered: 41, suspect: 3, ..MemberCounts::default() },
            ..GroupView::default()
        };
        let root = CertificateView { subject: "CN=root".to_owned(), ..CertificateView::default() };
        let snapshot =
            GcksSnapshot { groups: vec![group], certificates: vec![root], ..GcksSnapshot::default() };
        let page = page(Some(&Snapshot::Gcks(snapshot)));
        assert!(page.contains("<td>&lt;script&gt;&quot;g&#39;&amp;</td>"), "{page}");
        assert!(page.contains("<td>41</td><td>3</td>") && page.contains("<td>CN=root</td>"), "{page}");
        for never in ["<script", "src=", "http://", "https://", "javascript:"] {
            assert!(!page.contains(never), "{never} in {page}");
        }
    }

    #[test]
    fn a_member_has_its_vpns_and_a_daemon_that_is_away_is_said() {
        let vpn = VpnView { name: "branch".to_owned(), state: "registered".to_owned(), ..VpnView::default() };
        let snapshot = GmSnapshot { vpns: vec![vpn], ..GmSnapshot::default() };
        assert!(page(Some(&Snapshot::Gm(snapshot))).contains("<td>branch</td><td></td><td>registered</td>"));
        assert!(page(None).contains("The daemon does not answer."));
    }
}
