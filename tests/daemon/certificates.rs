//! Certificates on real daemons, exchanged by SIGHUP: from one trust anchor to the next with members on both, and a
//! revocation list.

use ctl::control::Request;
use ctl::event::Event;
use gdoi_lab::daemon::{Daemon, Mark};
use gdoi_lab::network::{GCKS, MEMBERS};
use gdoi_lab::site::{MemberPlan, ServerPlan, Site, Timing};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};

use crate::support::{Lab, SOON, site};

pub type Ca = CertifiedIssuer<'static, KeyPair>;

pub fn root(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Lets `host` prove its address by a certificate of `issuer`, and check others against `anchors`.
pub fn certify(site: &Site, host: &str, issuer: &Ca, anchors: &[&str]) {
    issue(site, host, issuer);
    replace(site, host, "\"pre-shared-keys\"", "\"ecdsa-signatures-256\"");
    let own = format!(
        "certificates = [{{ certificate = \"{host}.pem\", private-key = {{ file = \"{host}.key\" }} }}]\n\
         trust-anchors = {anchors:?}"
    );
    replace(site, host, &format!("pre-shared-key = {{ file = \"{host}.psk\" }}"), &own);
}

/// A certificate of `issuer` and its key, in the files of `host`.
pub fn issue(site: &Site, host: &str, issuer: &Ca) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![site.network.ip(host).to_string()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, host);
    params.serial_number = Some(serial(host));
    std::fs::write(site.path(&format!("{host}.pem")), params.signed_by(&key, issuer).unwrap().pem()).unwrap();
    site.write_secret(&format!("{host}.key"), &key.serialize_pem()).unwrap();
}

/// The number of the certificate of a host, by its place among the machines.
fn serial(host: &str) -> SerialNumber {
    let place = [GCKS, MEMBERS[0], MEMBERS[1]].iter().position(|name| *name == host).unwrap();
    SerialNumber::from(place as u64 + 1)
}

/// A revocation list of `issuer`, in the file `ca.crl`.
pub fn revoke(site: &Site, issuer: &Ca, hosts: &[&str]) {
    let revoked = hosts.iter().map(|host| RevokedCertParams {
        serial_number: serial(host),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(4096, 1, 1),
        crl_number: SerialNumber::from(hosts.len() as u64 + 1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    std::fs::write(site.path("ca.crl"), params.signed_by(issuer).unwrap().pem().unwrap()).unwrap();
}

/// Replaces text of the file of `host`; it must be there.
pub fn replace(site: &Site, host: &str, from: &str, to: &str) {
    let file = site.path(&format!("{host}.toml"));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{from:?} is not in {text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// A daemon takes its file again.
pub fn reload(daemon: &Daemon) -> Mark {
    let mark = daemon.mark();
    daemon.reload().unwrap();
    daemon.wait_named(mark, SOON, "configuration_reloaded").unwrap();
    mark
}

/// No phase 1 ended since, but of idleness.
fn drops_none(server: &Daemon, since: Mark) {
    let ended = server.events(since).into_iter().filter_map(|event| match event {
        Event::Phase1Deleted { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(
        ended.clone().all(|reason| reason == "idle since its last PULL"),
        "{:?}",
        ended.collect::<Vec<_>>()
    );
}

/// The anchor of each member, in the order of the members.
pub fn anchors(server: &Daemon) -> Vec<Option<String>> {
    let members = server.group().unwrap().members;
    members.into_iter().map(|member| member.certificate.and_then(|held| held.anchor)).collect()
}

/// Waits until the server refuses a chain because of `cause`.
fn refused(server: &Daemon, since: Mark, cause: &str) {
    let is_it = |event: &Event| {
        matches!(event, Event::Phase1Failed { reason, .. }
            if reason.contains("chain refused: certificate \"CN=gm") && reason.contains(cause))
    };
    if let Err(error) = server.wait(since, SOON, cause, is_it) {
        panic!("{error}: {:#?}", server.tail(20));
    }
}

#[test]
fn one_anchor_gives_way_to_the_next_by_sighup_with_members_on_both_and_no_sa_is_dropped() {
    let site = site();
    let (old, new) = (root("Old"), root("New"));
    for (name, ca) in [("old.pem", &old), ("new.pem", &new)] {
        std::fs::write(site.path(name), ca.pem()).unwrap();
    }
    site.write_server(&ServerPlan::new(Timing::LONG)).unwrap();
    certify(&site, GCKS, &old, &["old.pem"]);
    for (host, issuer) in MEMBERS.into_iter().zip([&old, &new]) {
        site.write_member(host, &MemberPlan::default()).unwrap();
        certify(&site, host, issuer, &["old.pem", "new.pem"]);
    }
    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "group_created").unwrap();
    let first = site.start(MEMBERS[0], None).unwrap();
    first.wait_named(first.beginning(), SOON, "registered").unwrap();
    // The new authority is nobody yet.
    let mark = server.mark();
    let second = site.start(MEMBERS[1], None).unwrap();
    refused(&server, mark, "issuer \"CN=New\" is no trust anchor; expected one of: CN=Old");
    // Its attempt is over: what it is asked to do from now on is another one.
    second.wait_named(second.beginning(), SOON, "registration_failed").unwrap();

    // Both authorities count.
    replace(&site, GCKS, "trust-anchors = [\"old.pem\"]", "trust-anchors = [\"old.pem\", \"new.pem\"]");
    let both = reload(&server);
    second.ask(&Request::Register { vpn: None }).unwrap();
    second.wait_named(second.beginning(), SOON, "registered").unwrap();
    server.wait_until(SOON, "two members", |server| Ok(server.group()?.members.len() == 2)).unwrap();
    let name = |name: &str| Some(format!("CN={name}"));
    assert_eq!(anchors(&server), [name("Old"), name("New")]);
    drops_none(&server, both);

    // The old one goes: who is in stays in and follows a rekey.
    replace(&site, GCKS, "trust-anchors = [\"old.pem\", \"new.pem\"]", "trust-anchors = [\"new.pem\"]");
    let last = reload(&server);
    let mut lab = Lab { site, server, members: [first, second] };
    let (number, mark) = lab.rekey();
    assert_eq!(lab.over(number, mark), (2, Vec::new()));
    lab.same_keys();
    drops_none(&lab.server, last);
    let calendar = lab.server.server().unwrap().certificates;
    let configured: Vec<_> = calendar.iter().filter(|it| it.kind == "anchor").map(|it| &it.subject).collect();
    assert_eq!(configured, ["CN=New"]);
    assert_eq!(anchors(&lab.server), [name("Old"), name("New")], "what the operator still has to replace");

    // A new phase 1 needs the new authority.
    for (index, host) in MEMBERS.into_iter().enumerate() {
        lab.members[index].kill();
        let mark = lab.server.mark();
        let again = lab.site.start(host, None).unwrap();
        match index {
            0 => refused(&lab.server, mark, "issuer \"CN=Old\" is no trust anchor; expected one of: CN=New"),
            _ => drop(again.wait_named(again.beginning(), SOON, "registered").unwrap()),
        }
        lab.members[index] = again;
    }
}

#[test]
fn a_revocation_list_counts_from_sighup_on_for_new_phase_1s_alone() {
    let site = site();
    let ca = root("Root");
    std::fs::write(site.path("ca.pem"), ca.pem()).unwrap();
    revoke(&site, &ca, &[]);
    site.write_server(&ServerPlan::new(Timing::LONG)).unwrap();
    certify(&site, GCKS, &ca, &["ca.pem"]);
    replace(&site, GCKS, "trust-anchors", "crls = [\"ca.crl\"]\ntrust-anchors");
    let server = site.start(GCKS, None).unwrap();
    server.wait_named(server.beginning(), SOON, "group_created").unwrap();
    let members = MEMBERS.map(|host| {
        site.write_member(host, &MemberPlan::default()).unwrap();
        certify(&site, host, &ca, &["ca.pem"]);
        site.start(host, None).unwrap()
    });
    for member in &members {
        member.wait_named(member.beginning(), SOON, "registered").unwrap();
    }

    // The file says something else; the configuration that names it does not.
    revoke(&site, &ca, &[MEMBERS[1]]);
    let since = reload(&server);
    let mut lab = Lab { site, server, members };
    let (number, mark) = lab.rekey();
    assert_eq!(lab.over(number, mark), (2, Vec::new()), "a revoked certificate is not a revoked member");
    drops_none(&lab.server, since);

    for (index, host) in MEMBERS.into_iter().enumerate() {
        lab.members[index].kill();
        let mark = lab.server.mark();
        let again = lab.site.start(host, None).unwrap();
        match index {
            0 => drop(again.wait_named(again.beginning(), SOON, "registered").unwrap()),
            _ => refused(&lab.server, mark, "revoked by the list of \"CN=Root\""),
        }
        lab.members[index] = again;
    }
}
