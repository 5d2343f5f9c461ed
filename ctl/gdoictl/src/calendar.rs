//! `gdoictl server show certificates`: what ends when, and which members chain to which anchor.

use ctl::observe::{CertificateView, GcksSnapshot, MemberCertificateView};
use ctl::time::span;
use serde_json::{Value, json};

use crate::Failure;
use crate::table::{self, Table, list};

/// A member of a group with its certificate.
struct Holder<'s> {
    group: &'s str,
    member: &'s str,
    certificate: &'s MemberCertificateView,
}

impl Holder<'_> {
    fn chains_to(&self, anchor: &CertificateView) -> bool {
        let MemberCertificateView { anchor: subject, anchor_serial: serial, .. } = self.certificate;
        (subject.as_deref(), serial.as_deref()) == (Some(&anchor.subject), Some(&anchor.serial))
    }
}

/// The calendar as tables or JSON.
///
/// # Errors
/// As [`table::json`].
pub fn show(snapshot: &GcksSnapshot, json: bool) -> Result<String, Failure> {
    let holders: Vec<Holder<'_>> = snapshot
        .groups
        .iter()
        .flat_map(|group| group.members.iter().map(move |member| (group, member)))
        .filter_map(|(group, member)| {
            let certificate = member.certificate.as_ref()?;
            Some(Holder { group: &group.name, member: &member.identity, certificate })
        })
        .collect();
    let anchors: Vec<&CertificateView> =
        snapshot.certificates.iter().filter(|certificate| certificate.kind == "anchor").collect();
    if json { as_json(snapshot, &holders, &anchors) } else { Ok(tables(snapshot, &holders, &anchors)) }
}

fn as_json(
    snapshot: &GcksSnapshot,
    holders: &[Holder<'_>],
    anchors: &[&CertificateView],
) -> Result<String, Failure> {
    let members: Vec<Value> = holders
        .iter()
        .map(|holder| {
            json!({
                "group": holder.group,
                "member": holder.member,
                "certificate": holder.certificate,
                "anchor_configured": anchors.iter().any(|anchor| holder.chains_to(anchor)),
            })
        })
        .collect();
    table::json(&json!({"certificates": snapshot.certificates, "members": members}))
}

fn tables(snapshot: &GcksSnapshot, holders: &[Holder<'_>], anchors: &[&CertificateView]) -> String {
    let left = |seconds: u64| if seconds == 0 { "over".to_owned() } else { span(seconds) };
    let mut rows: Vec<(&str, [String; 7])> = Vec::new();
    for it in &snapshot.certificates {
        let what = match it.revoked {
            Some(revoked) => format!("{revoked} revoked"),
            None => it.key.clone(),
        };
        let until = [it.not_after.clone(), left(it.remaining_seconds), it.kind.clone()];
        let [until, left, kind] = until;
        let used = list(&it.gateways);
        rows.push((&it.not_after, [until, left, kind, it.subject.clone(), it.serial.clone(), what, used]));
    }
    for Holder { group, member, certificate: it } in holders {
        let used = format!("{group}: {member}");
        let (until, left) = (it.not_after.clone(), left(it.remaining_seconds));
        let row =
            [until, left, "member".to_owned(), it.subject.clone(), it.serial.clone(), String::new(), used];
        rows.push((&it.not_after, row));
    }
    // RFC 3339 in UTC sorts as time does.
    rows.sort_by_key(|(until, _)| *until);
    let mut calendar = Table::new(&["Until", "Left", "Kind", "Subject", "Serial", "Key", "Serves"]);
    for (_, row) in rows {
        calendar.row(row);
    }
    let mut chains = Table::new(&["Anchor", "Serial", "State", "Members"]);
    let named = |held: &mut dyn Iterator<Item = &Holder<'_>>| {
        let names: Vec<String> = held.map(|holder| format!("{}: {}", holder.group, holder.member)).collect();
        if names.is_empty() { "-".to_owned() } else { names.join(", ") }
    };
    for anchor in anchors {
        let members = named(&mut holders.iter().filter(|holder| holder.chains_to(anchor)));
        chains.row([anchor.subject.clone(), anchor.serial.clone(), anchor.state.clone(), members]);
    }
    let gone = |holder: &&Holder<'_>| !anchors.iter().any(|anchor| holder.chains_to(anchor));
    let mut lost: Vec<(&str, &str)> = holders
        .iter()
        .filter(gone)
        .map(|holder| {
            let MemberCertificateView { anchor, anchor_serial, .. } = holder.certificate;
            (anchor.as_deref().unwrap_or("none"), anchor_serial.as_deref().unwrap_or("-"))
        })
        .collect();
    lost.sort_unstable();
    lost.dedup();
    for (subject, serial) in lost {
        let of = |holder: &&Holder<'_>| {
            holder.certificate.anchor.as_deref().unwrap_or("none") == subject
                && holder.certificate.anchor_serial.as_deref().unwrap_or("-") == serial
        };
        let members = named(&mut holders.iter().filter(gone).filter(of));
        chains.row([subject.to_owned(), serial.to_owned(), "not configured".to_owned(), members]);
    }
    format!("{}\n{}", calendar.or("no certificates"), chains.or("no trust anchors"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::observe::{GroupView, MemberView};

    fn anchor(subject: &str, year: u64) -> CertificateView {
        CertificateView {
            kind: "anchor".to_owned(),
            subject: subject.to_owned(),
            serial: "01".to_owned(),
            key: "ECDSA of 256 bits".to_owned(),
            not_after: format!("{year}-01-31T00:00:00Z"),
            remaining_seconds: (year - 2026) * 31_536_000,
            state: "valid".to_owned(),
            gateways: vec!["gw".to_owned()],
            ..CertificateView::default()
        }
    }

    fn member(name: &str, anchor: Option<&str>) -> MemberView {
        let certificate = MemberCertificateView {
            subject: format!("CN={name}"),
            serial: "0101".to_owned(),
            not_after: "2027-06-30T00:00:00Z".to_owned(),
            remaining_seconds: 90_000,
            anchor: anchor.map(str::to_owned),
            anchor_serial: anchor.map(|_| "01".to_owned()),
        };
        MemberView { identity: name.to_owned(), certificate: Some(certificate), ..MemberView::default() }
    }

    fn snapshot() -> GcksSnapshot {
        let list = CertificateView {
            kind: "crl".to_owned(),
            subject: "CN=Old".to_owned(),
            revoked: Some(3),
            not_after: "2026-11-25T00:00:00Z".to_owned(),
            state: "expired".to_owned(),
            ..CertificateView::default()
        };
        let members = vec![
            member("gm1", Some("CN=Old")),
            member("gm2", Some("CN=New")),
            member("gm3", Some("CN=Gone")),
            MemberView { identity: "gm4".to_owned(), ..MemberView::default() },
        ];
        GcksSnapshot {
            groups: vec![GroupView { name: "g1".to_owned(), members, ..GroupView::default() }],
            certificates: vec![list, anchor("CN=New", 2036), anchor("CN=Old", 2027)],
            ..GcksSnapshot::default()
        }
    }

    #[test]
    fn the_calendar_begins_with_what_ends_first_and_members_stand_by_their_anchor() {
        assert_eq!(
            show(&snapshot(), false).unwrap(),
            "Until                 Left      Kind    Subject  Serial  Key                Serves\n\
             2026-11-25T00:00:00Z  over      crl     CN=Old           3 revoked          -\n\
             2027-01-31T00:00:00Z  365d00h   anchor  CN=Old   01      ECDSA of 256 bits  gw\n\
             2027-06-30T00:00:00Z  1d01h     member  CN=gm1   0101                       g1: gm1\n\
             2027-06-30T00:00:00Z  1d01h     member  CN=gm2   0101                       g1: gm2\n\
             2027-06-30T00:00:00Z  1d01h     member  CN=gm3   0101                       g1: gm3\n\
             2036-01-31T00:00:00Z  3650d00h  anchor  CN=New   01      ECDSA of 256 bits  gw\n\
             \n\
             Anchor   Serial  State           Members\n\
             CN=New   01      valid           g1: gm2\n\
             CN=Old   01      valid           g1: gm1\n\
             CN=Gone  01      not configured  g1: gm3\n"
        );
    }

    #[test]
    fn json_tells_whether_the_anchor_of_a_member_is_still_configured() {
        let shown: Value = serde_json::from_str(&show(&snapshot(), true).unwrap()).unwrap();
        let configured: Vec<_> =
            shown["members"].as_array().unwrap().iter().map(|it| it["anchor_configured"].clone()).collect();
        assert_eq!(configured, [true, true, false]);
        assert_eq!(shown["members"][0]["certificate"]["anchor"], "CN=Old");
        assert_eq!(shown["certificates"][0]["revoked"], 3);
    }

    #[test]
    fn without_certificates_it_says_so() {
        assert_eq!(show(&GcksSnapshot::default(), false).unwrap(), "no certificates\n\nno trust anchors\n");
    }
}
