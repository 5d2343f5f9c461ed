//! Every rule of `gcks.toml`: a change to a good file, and what it is told, with line and column.

mod support;

use config::Options;
use support::{change, gcks, lines};

/// A good file; the line numbers below count in it.
const GOOD: &str = r#"[server]
log-level = "info"
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = { file = "key" }
[ike.gateway.gw]
ike-policy = "pol"
address = "10.0.0.0/8"
[ipsec.proposal.esp]
encryption-algorithm = "aes-256-gcm"
[group.G]
group-id = 1
ike-gateways = ["gw"]
[group.G.server-member-communication]
encryption-algorithm = "aes-256-cbc"
signature = "ecdsa-256"
sig-hash-algorithm = "sha-256"
[group.G.ipsec-sa.S]
proposal = "esp"
[[group.G.ipsec-sa.S.match-policy]]
name = "m"
source = "10.0.0.0/8"
destination = "10.0.0.0/8"
"#;

fn problems(text: &str) -> Vec<String> {
    match gcks(text, Options::default()) {
        Ok(_) => Vec::new(),
        Err(errors) => lines(&errors.to_string()),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let loaded = gcks(text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    loaded.warnings.iter().flat_map(|warning| lines(&warning.to_string())).collect()
}

/// Checks rows of `(from, to, expected line)`: exactly one problem each.
#[track_caller]
fn each(rows: &[(&str, &str, &str)]) {
    for (from, to, expected) in rows {
        assert_eq!(problems(&change(GOOD, from, to)), [*expected], "{to}");
    }
}

#[test]
fn a_short_file_is_complete_because_the_rest_has_defaults() {
    let loaded = gcks(GOOD, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.warnings.is_empty());
    assert!(loaded.notices.is_empty() && loaded.config.server.ike_fragmentation);
    let listen: Vec<String> = loaded.config.server.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["0.0.0.0:848", "[::]:848"]);
    let group = &loaded.config.groups[0];
    assert_eq!((group.sender_id_bits, group.rekey_on_leave, group.rekey_on_join), (16, true, false));
    let communication = group.communication.as_ref().unwrap();
    assert_eq!(communication.number_of_retransmission, 2);
    assert_eq!(communication.retransmission_period_seconds, 10);
    assert_eq!((communication.activation_delay_seconds, communication.deactivation_delay_seconds), (30, 45));
    let detection = loaded.config.gateways[0].dead_peer_detection.unwrap();
    assert_eq!((detection.interval_seconds, detection.threshold), (10, 5));
}

#[test]
fn a_state_key_has_32_octets_at_least() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state-key");
    let text = change(GOOD, "[server]", &format!("[server]\nstate-key = {{ file = {path:?} }}"));
    for (octets, good) in [(31, false), (32, true)] {
        std::fs::write(&path, "k".repeat(octets)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let found = problems(&text);
        assert_eq!(found.is_empty(), good, "{found:?}");
        assert!(good || found[0].contains("openssl rand"), "{found:?}");
    }
}

#[test]
fn an_empty_file_is_a_server_without_members() {
    assert!(problems("").is_empty());
}

#[test]
fn all_problems_are_reported_in_one_run_in_the_order_of_the_file() {
    let text = change(GOOD, "\"group19\"", "\"group2\"");
    let text = change(&text, "address = \"10.0.0.0/8\"", "address = \"10.0.0.1/8\"\ncolour = 1");
    let text = change(&text, "group-id = 1", "group-id = 0");
    assert_eq!(
        problems(&text),
        [
            "5:12: ike.proposal.p.dh-group: \"group2\" is not known (group14 | group15 | group16 | group17 | group18 | \
             group19 | group20 | group21 | group31)",
            "13:11: ike.gateway.gw.address: \"10.0.0.1/8\" has bits set behind its prefix length (10.0.0.0/8)",
            "14:1: ike.gateway.gw.colour: unknown statement",
            "18:12: group.G.group-id: 0 is out of range (1-4294967295)",
        ]
    );
}

#[test]
fn syntax_errors_have_a_position_and_quote_nothing() {
    let found = problems("[server]\nlog-level = \"in\nfo\"\n");
    assert!(found[0].starts_with("2:"), "{found:?}");
    let found = problems(&change(GOOD, "{ file = \"key\" }", "\"hunter2hunter2"));
    assert!(!found.is_empty());
    assert!(found.iter().all(|line| !line.contains("hunter2")), "{found:?}");
}

#[test]
fn unknown_statements_are_refused_with_a_guess() {
    each(&[
        (
            "dh-group =",
            "dh-group = \"group19\"\ndhgroup =",
            "6:1: ike.proposal.p.dhgroup: unknown statement (did you mean dh-group?)",
        ),
        ("[server]", "colour = 1\n[server]", "1:1: colour: unknown statement"),
        (
            "log-level",
            "socket_group = \"\"\nlog-level",
            "2:1: server.socket_group: unknown statement (did you mean socket-group?)",
        ),
        (
            "name = \"m\"",
            "name = \"m\"\nport = 1",
            "27:1: group.G.ipsec-sa.S.match-policy.port: unknown statement",
        ),
        (
            "{ file = \"key\" }",
            "{ file = \"key\", mode = 1 }",
            "10:34: ike.policy.pol.pre-shared-key.mode: unknown statement",
        ),
    ]);
}

#[test]
fn server_values_have_ranges() {
    each(&[
        (
            "log-level = \"info\"",
            "log-level = \"loud\"",
            "2:13: server.log-level: \"loud\" is not known (error | warn | info | debug | trace)",
        ),
        (
            "log-level = \"info\"",
            "listen = [\"10.0.0.1\"]",
            "2:11: server.listen: \"10.0.0.1\" is not an address and port (\"192.0.2.1:848\" or \"[2001:db8::1]:848\")",
        ),
        (
            "log-level = \"info\"",
            "listen = []",
            "2:10: server.listen: is empty ([\"0.0.0.0:848\", \"[::]:848\"])",
        ),
        (
            "log-level = \"info\"",
            "half-open-limit = 0",
            "2:19: server.half-open-limit: 0 is out of range (1-1000000)",
        ),
        (
            "log-level = \"info\"",
            "half-open-limit-per-address = 5000",
            "2:1: server.half-open-limit-per-address: 5000 is more than half-open-limit (1-4096)",
        ),
        (
            "log-level = \"info\"",
            "half-open-timeout-seconds = \"2d\"",
            "2:29: server.half-open-timeout-seconds: 172800 s is out of range (1-3600 s)",
        ),
        (
            "log-level = \"info\"",
            "half-open-timeout-seconds = \"soon\"",
            "2:29: server.half-open-timeout-seconds: \"soon\" is not a duration in whole s (a number with a unit: \"90s\", \"15m\", \"24h\", \"7d\")",
        ),
        (
            "log-level = \"info\"",
            "half-open-timeout-seconds = true",
            "2:29: server.half-open-timeout-seconds: boolean where integer or duration belongs",
        ),
        ("log-level = \"info\"", "state-directory = \"\"", "2:19: server.state-directory: is empty"),
        (
            "log-level = \"info\"",
            "control-socket = \"/run/gcks/observe.sock\"",
            "1:2: server: observe-socket and control-socket are the same (two paths)",
        ),
    ]);
}

#[test]
fn phase_1_words_are_checked_and_sha1_needs_allow_legacy() {
    each(&[
        (
            "authentication-algorithm = \"sha-256\"",
            "authentication-algorithm = \"sha1\"",
            "6:1: ike.proposal.p.authentication-algorithm: sha1 is a legacy algorithm (sha-256, or allow-legacy = true)",
        ),
        (
            "dh-group = \"group19\"\n",
            "",
            "3:15: ike.proposal.p: dh-group is missing (group14 | group15 | group16 | group17 | group18 | group19 | group20 | group21 | group31)",
        ),
        (
            "dh-group = \"group19\"",
            "dh-group = \"group19\"\nlifetime-seconds = 179",
            "6:20: ike.proposal.p.lifetime-seconds: 179 s is out of range (180-86400 s)",
        ),
        (
            "proposals = [\"p\"]",
            "proposals = [\"q\"]",
            "9:14: ike.policy.pol.proposals: no ike.proposal is named \"q\" (did you mean \"p\"?)",
        ),
        (
            "proposals = [\"p\"]",
            "proposals = []",
            "9:13: ike.policy.pol.proposals: is empty (a list of ike.proposal names)",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"headquarters\"",
            "12:14: ike.gateway.gw.ike-policy: no ike.policy is named \"headquarters\" (one of pol)",
        ),
    ]);
    let legacy = change(
        GOOD,
        "authentication-algorithm = \"sha-256\"",
        "authentication-algorithm = \"sha1\"\nallow-legacy = true",
    );
    assert!(problems(&legacy).is_empty());
    assert_eq!(
        warnings(&legacy),
        [
            "6:1: ike.proposal.p.authentication-algorithm: sha1 is a legacy algorithm, and each use of it is logged (sha-256, as soon as every peer has it)"
        ]
    );
}

#[test]
fn approved_only_refuses_every_statement_outside_its_list_with_its_place() {
    let strict = change(GOOD, "log-level = \"info\"", "approved-only = true");
    assert_eq!(problems(&strict), [""; 0]);
    assert!(gcks(&strict, Options::default()).unwrap().config.server.approved_only);
    let methods = "(pre-shared-keys | ecdsa-signatures-256 | ecdsa-signatures-384 | ecdsa-signatures-521)";
    let all = [
        ("\"pre-shared-keys\"", "\"rsa-signatures\""),
        ("group19", "group31"),
        (
            "authentication-algorithm = \"sha-256\"",
            "authentication-algorithm = \"sha1\"\nallow-legacy = true",
        ),
        ("file = \"key\"", "file = \"short\""),
    ];
    let text = all.iter().fold(strict.clone(), |text, (from, to)| change(&text, from, to));
    assert_eq!(
        problems(&text),
        [
            &format!(
                "4:1: ike.proposal.p.authentication-method: rsa-signatures is outside approved-only {methods}"
            ),
            "5:1: ike.proposal.p.dh-group: group31 is outside approved-only (group14 to group21)",
            "6:1: ike.proposal.p.authentication-algorithm: sha1 is outside approved-only (sha-256 | sha-384 | sha-512)",
            "9:13: ike.policy.pol: certificates is missing ([{ certificate = \"pki/own.pem\", private-key = { file = \"pki/own.key\" } }])",
            "9:13: ike.policy.pol: trust-anchors is missing ([\"pki/root.pem\"])",
            "11:18: ike.policy.pol.pre-shared-key: a pre-shared key of 9 octets can be guessed (at least 16 octets: openssl rand -hex 32)",
        ]
    );
    let weaker = change(&strict, "\"aes-256-cbc\"\n[ike.policy", "\"aes-128-cbc\"\n[ike.policy");
    assert_eq!(
        problems(&weaker),
        [
            "18:1: group.G.ike-gateways: ike.gateway.gw may use ike.proposal.p, whose cipher of 128 bits carries keys of 256 bits (a stronger phase 1 cipher)"
        ]
    );
    // The same choices without it are warnings at most.
    let loose = |text: &str| problems(&change(text, "approved-only = true", "approved-only = false"));
    assert_eq!(loose(&weaker), [""; 0]);
    for (from, to) in &all[1..] {
        assert_eq!(loose(&change(&strict, from, to)), [""; 0], "{to}");
    }
}

#[test]
fn secrets_are_named_and_never_quoted() {
    for (to, expected) in [
        (
            "\"hunter2hunter2hunter2\"",
            "10:18: ike.policy.pol.pre-shared-key: a secret is never in this file, it is named ({ file = \"…\" }, { env = \"…\" } or { credential = \"…\" })",
        ),
        (
            "{}",
            "10:18: ike.policy.pol.pre-shared-key: a secret has exactly one source ({ file = \"…\" }, { env = \"…\" } or { credential = \"…\" })",
        ),
        (
            "{ file = \"key\", env = \"PSK\" }",
            "10:18: ike.policy.pol.pre-shared-key: a secret has exactly one source ({ file = \"…\" }, { env = \"…\" } or { credential = \"…\" })",
        ),
        (
            "{ env = \"GDOI_TEST_UNSET\" }",
            "10:26: ike.policy.pol.pre-shared-key.env: environment variable GDOI_TEST_UNSET is not set",
        ),
        (
            "{ file = \"key\", encoding = \"hex\" }",
            "10:27: ike.policy.pol.pre-shared-key.file: the secret is not hexadecimal (pairs of 0-9 a-f, nothing else)",
        ),
    ] {
        assert_eq!(problems(&change(GOOD, "{ file = \"key\" }", to)), [expected]);
    }
    let open = problems(&change(GOOD, "{ file = \"key\" }", "{ file = \"open\" }"));
    assert!(open[0].starts_with("10:27: ike.policy.pol.pre-shared-key.file: "), "{open:?}");
    assert!(open[0].contains("may be read by group or others (mode 644)"), "{open:?}");
}

#[test]
fn a_short_pre_shared_key_or_a_weak_phase_1_is_a_warning() {
    assert_eq!(
        warnings(&change(GOOD, "{ file = \"key\" }", "{ file = \"short\" }")),
        [
            "10:18: ike.policy.pol.pre-shared-key: a pre-shared key of 9 octets can be guessed (at least 16 octets: openssl rand -hex 32)"
        ]
    );
    let text = change(
        GOOD,
        "encryption-algorithm = \"aes-256-cbc\"\n[ike",
        "encryption-algorithm = \"aes-128-cbc\"\n[ike",
    );
    assert_eq!(
        warnings(&text),
        [
            "18:1: group.G.ike-gateways: ike.gateway.gw may use ike.proposal.p, whose cipher of 128 bits carries keys of 256 bits (a stronger phase 1 cipher)"
        ]
    );
}

#[test]
fn gateways_have_an_address_of_their_own_and_an_identity_rule_that_says_something() {
    each(&[
        (
            "address = \"10.0.0.0/8\"\n",
            "",
            "11:14: ike.gateway.gw: address is missing (an address, a prefix, or dynamic)",
        ),
        (
            "address = \"10.0.0.0/8\"",
            "address = \"ten\"",
            "13:11: ike.gateway.gw.address: \"ten\" is not a prefix (10.0.0.0/8, 2001:db8::/32, or an address)",
        ),
        (
            "[ipsec.proposal.esp]",
            "[ike.gateway.other]\nike-policy = \"pol\"\naddress = \"10.0.0.0/8\"\n[ipsec.proposal.esp]",
            "16:1: ike.gateway.other.address: 10.0.0.0/8 is the address of ike.gateway.gw already (one gateway per address or prefix; one gateway may serve many members)",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\nremote-identity = {}",
            "13:19: ike.gateway.gw.remote-identity: an identity rule must not be empty (exactly one of inet | hostname | user-at-hostname | distinguished-name | key-id)",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\nremote-identity = { hostname = \"\" }",
            "13:32: ike.gateway.gw.remote-identity.hostname: an identity rule must not be empty (hostname = \"…\")",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\nremote-identity = { hostname = \"gm*.example\" }",
            "13:32: ike.gateway.gw.remote-identity.hostname: \"*\" may only be the first character (\"*.example\")",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\nlocal-identity = { hostname = \"*.example\" }",
            "13:18: ike.gateway.gw.local-identity: \"*\" cannot be said of oneself (the name in full)",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\ndead-peer-detection = { interval = 1 }",
            "13:25: ike.gateway.gw.dead-peer-detection.interval: 1 s is out of range (0 (off) or 2-60 s)",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\ncompat = [\"group-id-address\"]",
            "17:8: group.G: a gateway has group-id-address (group-address = \"239.192.0.1\")",
        ),
        (
            "ike-policy = \"pol\"",
            "ike-policy = \"pol\"\ncompat = [\"large-offer\"]",
            "13:11: ike.gateway.gw.compat: \"large-offer\" is not known (did you mean \"large-offers\"?)",
        ),
    ]);
}

#[test]
fn groups_have_a_number_of_their_own_and_gateways_that_exist() {
    each(&[
        ("group-id = 1\n", "", "16:8: group.G: group-id is missing (a number, 1-4294967295)"),
        (
            "group-id = 1",
            "group-id = 4294967296",
            "17:12: group.G.group-id: 4294967296 is out of range (1-4294967295)",
        ),
        (
            "ike-gateways = [\"gw\"]",
            "ike-gateways = [\"gx\"]",
            "18:17: group.G.ike-gateways: no ike.gateway is named \"gx\" (did you mean \"gw\"?)",
        ),
        (
            "ike-gateways = [\"gw\"]",
            "ike-gateways = [\"gw\", \"gw\"]",
            "18:23: group.G.ike-gateways: \"gw\" is named twice",
        ),
        (
            "group-id = 1",
            "group-id = 1\nsender-id-bits = 10",
            "18:1: group.G.sender-id-bits: 10 is not known (8 | 12 | 16)",
        ),
        (
            "group-id = 1",
            "group-id = 1\nmember-threshold = 0",
            "18:20: group.G.member-threshold: 0 is out of range (1-4294967295)",
        ),
        (
            "proposal = \"esp\"",
            "proposal = \"ah\"",
            "24:12: group.G.ipsec-sa.S.proposal: no ipsec.proposal is named \"ah\" (one of esp)",
        ),
    ]);
    let second = format!(
        "{GOOD}[group.H]\ngroup-id = 1\nike-gateways = [\"gw\"]\n[group.H.ipsec-sa.S]\nproposal = \"esp\"\n[[group.H.ipsec-sa.S.match-policy]]\nname = \"m\"\nsource = \"10.0.0.0/8\"\ndestination = \"10.0.0.0/8\"\n"
    );
    assert_eq!(
        problems(&second),
        [
            "30:1: group.H.group-id: group-id 1 is that of group.G already (a number of its own for every group)"
        ]
    );
}

#[test]
fn communication_is_checked_against_itself() {
    each(&[
        (
            "sig-hash-algorithm = \"sha-256\"",
            "sig-hash-algorithm = \"sha-512\"",
            "22:1: group.G.server-member-communication.sig-hash-algorithm: signature implies another hash (\"sha-256\" with this signature)",
        ),
        (
            "signature = \"ecdsa-256\"\n",
            "",
            "19:10: group.G.server-member-communication: signature is missing (rsa-2048 | rsa-3072 | rsa-4096 | ecdsa-256 | ecdsa-384)",
        ),
        (
            "signature = \"ecdsa-256\"",
            "signature = \"ecdsa-256\"\nlifetime-seconds = 299",
            "22:20: group.G.server-member-communication.lifetime-seconds: 299 s is out of range (300-2592000 s)",
        ),
        (
            "signature = \"ecdsa-256\"",
            "signature = \"ecdsa-256\"\nnumber-of-retransmission = 61",
            "22:28: group.G.server-member-communication.number-of-retransmission: 61 is out of range (0-60)",
        ),
        (
            "signature = \"ecdsa-256\"",
            "signature = \"ecdsa-256\"\nretransmission-period = 1",
            "22:25: group.G.server-member-communication.retransmission-period: 1 s is out of range (2-60 s)",
        ),
        (
            "signature = \"ecdsa-256\"",
            "signature = \"ecdsa-256\"\nmissed-rekeys = 0",
            "22:17: group.G.server-member-communication.missed-rekeys: 0 is out of range (1-100)",
        ),
        (
            "signature = \"ecdsa-256\"",
            "signature = \"ecdsa-256\"\ndeactivation-time-delay = 30",
            "22:1: group.G.server-member-communication.deactivation-time-delay: 30 s is not more than activation-time-delay (30 s) (31-3600 s)",
        ),
        (
            "signature = \"ecdsa-256\"",
            "signature = \"ecdsa-256\"\nsigning-key = { file = \"key\" }",
            "22:15: group.G.server-member-communication.signing-key: holds no PRIVATE KEY block (openssl pkcs8 -topk8 -nocrypt -in key -out key.pem)",
        ),
    ]);
    let short =
        change(GOOD, "signature = \"ecdsa-256\"", "signature = \"ecdsa-256\"\nactivation-time-delay = 10");
    assert_eq!(
        warnings(&short),
        [
            "22:1: group.G.server-member-communication.activation-time-delay: 10 s end before the last copy of a push at 20 s (at least 20 s, or members reached only by the last copy miss packets)"
        ]
    );
}

#[test]
fn a_life_must_hold_its_rekey_margin_twice() {
    // (4 + 1) x 60 + (4 x 60 + 10 + 15) + 5 = 570
    let text = change(
        GOOD,
        "signature = \"ecdsa-256\"",
        "signature = \"ecdsa-256\"\nnumber-of-retransmission = 4\nretransmission-period = 60\nlifetime-seconds = 1139",
    );
    let text = change(
        &text,
        "encryption-algorithm = \"aes-256-gcm\"",
        "encryption-algorithm = \"aes-256-gcm\"\nlifetime-seconds = 1139",
    );
    assert_eq!(
        problems(&text),
        [
            "25:1: group.G.server-member-communication.lifetime-seconds: a KEK life of 1139 s cannot hold its rekey margin of 570 s twice (at least 1140 s)",
            "28:1: group.G.ipsec-sa.S.proposal: its TEK life of 1139 s cannot hold the group's rekey margin of 570 s twice (lifetime-seconds of at least 1140)",
        ]
    );
    let loaded =
        gcks(&text.replace("1139", "1140"), Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let group = &loaded.config.groups[0];
    assert_eq!(group.communication.as_ref().unwrap().rekey_margin_kek_seconds, 570);
    assert_eq!(group.sas[0].rekey_margin_seconds, 570);
}

#[test]
fn a_lab_lowers_the_smallest_lives_to_20_s() {
    let text = change(
        GOOD,
        "signature = \"ecdsa-256\"",
        "signature = \"ecdsa-256\"\nnumber-of-retransmission = 0\nretransmission-period = 2\nactivation-time-delay = 1\ndeactivation-time-delay = 2\nlifetime-seconds = 20",
    );
    let text = change(
        &text,
        "encryption-algorithm = \"aes-256-gcm\"",
        "encryption-algorithm = \"aes-256-gcm\"\nlifetime-seconds = 20",
    );
    assert_eq!(problems(&text).len(), 2);
    let loaded = gcks(&text, Options { lab: true }).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.groups[0].sas[0].rekey_margin_seconds, 9);
    let shorter =
        gcks(&text.replace("lifetime-seconds = 20", "lifetime-seconds = 19"), Options { lab: true });
    assert_eq!(shorter.unwrap_err().0.len(), 2);
}

#[test]
fn ipsec_statements_fit_together() {
    let row = |extra: &str| format!("destination = \"10.0.0.0/8\"\n{extra}");
    let twin = "[[group.G.ipsec-sa.S.match-policy]]\nname = \"n\"\nsource = \"10.0.0.0/8\"\ndestination = \"10.0.0.0/8\"";
    each(&[
        (
            "\"aes-256-gcm\"",
            "\"aes-256-cbc\"",
            "14:17: ipsec.proposal.esp: authentication-algorithm is missing: CBC alone protects nothing (hmac-sha-256-128 | hmac-sha-384-192 | hmac-sha-512-256)",
        ),
        (
            "\"aes-256-gcm\"",
            "\"aes-256-gcm\"\nauthentication-algorithm = \"hmac-sha-256-128\"",
            "16:28: ipsec.proposal.esp.authentication-algorithm: GCM authenticates by itself (leave it out)",
        ),
        (
            "\"aes-256-gcm\"",
            "\"aes-256-gcm\"\nprotocol = \"ah\"",
            "16:12: ipsec.proposal.esp.protocol: \"ah\" is not known (esp)",
        ),
        (
            "\"aes-256-gcm\"",
            "\"aes-256-gcm\"\nlifetime-seconds = 2592001",
            "16:20: ipsec.proposal.esp.lifetime-seconds: 2592001 s is out of range (180-2592000 s)",
        ),
        (
            "destination = \"10.0.0.0/8\"",
            "destination = \"2001:db8::/32\"",
            "28:1: group.G.ipsec-sa.S.match-policy.destination: not the address family of source",
        ),
        (
            "destination = \"10.0.0.0/8\"",
            &row("protocol = 256"),
            "29:12: group.G.ipsec-sa.S.match-policy.protocol: 256 is out of range (0-255)",
        ),
        (
            "destination = \"10.0.0.0/8\"",
            &row("source-port = 65536"),
            "29:15: group.G.ipsec-sa.S.match-policy.source-port: 65536 is out of range (0-65535)",
        ),
        (
            "destination = \"10.0.0.0/8\"",
            &row(twin),
            "29:1: group.G.ipsec-sa.S.match-policy: match-policy \"n\" is identical to \"m\" of ipsec-sa S (every match-policy of a group selects something else)",
        ),
        (
            "[[group.G.ipsec-sa.S.match-policy]]\nname = \"m\"\nsource = \"10.0.0.0/8\"\ndestination = \"10.0.0.0/8\"\n",
            "",
            "23:19: group.G.ipsec-sa.S: match-policy is missing ([[group.NAME.ipsec-sa.SA1.match-policy]])",
        ),
    ]);
    let second = change(
        GOOD,
        "destination = \"10.0.0.0/8\"",
        &row(&twin.replace(
            "source = \"10.0.0.0/8\"",
            "source = \"10.1.0.0/16\"\nprotocol = \"tcp\"\nsource-port = 22",
        )),
    );
    let loaded = gcks(&second, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    let policies = &loaded.config.groups[0].sas[0].policies;
    assert_eq!((policies.len(), policies[1].protocol, policies[1].source_port), (2, 6, 22));
}

#[test]
fn a_socket_of_nat_traversal_is_not_one_of_the_others() {
    let (off, on) = ("nat-traversal = false\n", "log-level = \"info\"");
    let both = "nat-traversal-listen = [\"192.0.2.1:4500\", \"0.0.0.0:848\"]";
    each(&[(
        on,
        both,
        "2:1: server.nat-traversal-listen: 0.0.0.0:848 is in listen too (a socket of its own: messages there carry a marker)",
    )]);
    let loaded = gcks(&change(GOOD, on, &format!("{off}{both}")), Options::default()).unwrap();
    assert!(!loaded.config.server.nat_traversal);
    let loaded = gcks(GOOD, Options::default()).unwrap();
    assert!(loaded.config.server.nat_traversal);
    assert_eq!(loaded.config.server.nat_traversal_listen[0], "0.0.0.0:4500".parse().unwrap());
}

#[test]
fn statements_of_later_versions_are_refused_and_never_ignored() {
    each(&[(
        "group-id = 1",
        "group-oid = \"1.0.62351.1\"",
        "17:1: group.G.group-oid: not supported yet: group-oid names a group of RFC 8052; group-id takes a number",
    )]);
}

#[test]
fn a_membership_ends_at_a_moment_that_no_clock_reads_differently() {
    let stated = |text: &str| {
        change(GOOD, "ike-policy = \"pol\"", &format!("ike-policy = \"pol\"\nvalid-until = {text}"))
    };
    let loaded = gcks(&stated("2027-01-31T01:00:00+01:00"), Options::default());
    let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.gateways[0].valid_until, Some(1_801_353_600));
    for (text, expected) in [
        (
            "2027-01-31T00:00:00",
            "13:15: ike.gateway.gw.valid-until: 2027-01-31T00:00:00 is not a moment from 1970 on (date, time and offset: 2027-01-31T00:00:00Z, or with +01:00 for Z)",
        ),
        ("\"tomorrow\"", "13:15: ike.gateway.gw.valid-until: string where datetime belongs"),
    ] {
        assert_eq!(problems(&stated(text)), [expected]);
    }
}

#[test]
fn multicast_names_its_group_and_where_it_leaves() {
    let stated =
        |more: &str| change(GOOD, "signature = \"ecdsa-256\"", &format!("signature = \"ecdsa-256\"\n{more}"));
    for (word, group, port) in [
        ("multicast", "239.192.0.1", 848),
        ("both", "239.192.0.1:8480", 8480),
        ("both", "[ff08::1]:848", 848),
    ] {
        let text = stated(&format!(
            "communication-type = {word:?}\nmulticast-group = {group:?}\nmulticast-outgoing-interface = \"eth0\""
        ));
        let loaded = gcks(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
        let way = &loaded.config.groups[0].communication.as_ref().unwrap().communication_type;
        let (config::CommunicationType::Multicast(channel) | config::CommunicationType::Both(channel)) = way
        else {
            panic!("{way:?}")
        };
        assert_eq!((channel.group.port(), channel.interface.as_str()), (port, "eth0"));
        assert_eq!(matches!(way, config::CommunicationType::Both(_)), word == "both");
    }
    let signature = "signature = \"ecdsa-256\"";
    let refused = |more: &str, what: &str| {
        let all = problems(&stated(more));
        assert!(all.len() == 1 && all[0].contains(what), "{more}: {all:?}");
    };
    assert!(GOOD.contains(signature));
    refused("multicast-group = \"239.192.0.1:848\"", "multicast-group: pushes go out as \"unicast\"");
    let leaves = "multicast-outgoing-interface = \"eth0\"";
    refused(&format!("communication-type = \"both\"\n{leaves}"), "\"both\" needs a multicast-group");
    refused(
        "communication-type = \"multicast\"\nmulticast-group = \"239.192.0.1\"",
        "\"multicast\" needs a multicast-outgoing-interface",
    );
    refused(
        &format!("communication-type = \"both\"\nmulticast-group = \"10.0.0.1:848\"\n{leaves}"),
        "\"10.0.0.1:848\" is no multicast address and port",
    );
}

#[test]
fn new_keys_for_joiners_need_a_way_to_tell_the_others() {
    let text = change(GOOD, "group-id = 1", "group-id = 1\nrekey-on-join = true");
    let loaded = gcks(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.config.groups[0].rekey_on_join);
    let start = text.find("[group.G.server-member-communication]").unwrap();
    let end = start + 1 + text[start + 1..].find("\n[").unwrap();
    let problems = problems(&format!("{}{}", &text[..start], &text[end..]));
    assert!(problems.iter().any(|problem| problem.contains("rekey-on-join: without")), "{problems:?}");
}

#[test]
fn a_key_tree_needs_keys_that_are_whole_blocks() {
    let text =
        change(GOOD, "signature = \"ecdsa-256\"", "signature = \"ecdsa-256\"\nkey-management = \"lkh\"");
    let loaded = gcks(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.config.groups[0].communication.as_ref().unwrap().lkh);
    let kek = "server-member-communication]\nencryption-algorithm = \"aes-256-cbc\"";
    let text = change(&text, kek, &kek.replace("256", "192"));
    let problems = problems(&text);
    assert!(
        problems.len() == 1 && problems[0].contains("key-management: \"lkh\" with aes-192-cbc"),
        "{problems:?}"
    );
}

#[test]
fn gateways_of_one_group_agree_on_the_words_that_shape_a_push() {
    let other = "[ike.gateway.other]\nike-policy = \"pol\"\naddress = \"11.0.0.0/8\"\ncompat = [\"kek-old-spi\", \"sid-little-endian\"]\n";
    let text = change(GOOD, "[ipsec.proposal.esp]", &format!("{other}[ipsec.proposal.esp]"));
    let text = change(&text, "ike-gateways = [\"gw\"]", "ike-gateways = [\"gw\", \"other\"]");
    assert_eq!(
        problems(&text),
        [
            "22:1: group.G.ike-gateways: one push is signed for the whole group, but ike.gateway.gw needs compat none and ike.gateway.other kek-old-spi (a group of its own for old peers)"
        ]
    );
    // The order of Sender-IDs shows in a PULL only.
    assert_eq!(problems(&text.replace("\"kek-old-spi\", ", "")), [""; 0]);
}

#[test]
fn a_group_may_have_an_address_for_old_members() {
    let text = change(GOOD, "group-id = 1", "group-id = 1\ngroup-address = \"239.192.0.1\"");
    let loaded = gcks(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.groups[0].address, Some("239.192.0.1".parse().unwrap()));
    let second = format!(
        "{text}[group.H]\ngroup-id = 2\ngroup-address = \"239.192.0.1\"\nike-gateways = [\"gw\"]\n[group.H.ipsec-sa.S]\nproposal = \"esp\"\n[[group.H.ipsec-sa.S.match-policy]]\nname = \"m\"\nsource = \"10.0.0.0/8\"\ndestination = \"10.0.0.0/8\"\n"
    );
    assert_eq!(
        problems(&second),
        [
            "32:1: group.H.group-address: 239.192.0.1 is the address of group.G already (an address of its own for every group)"
        ]
    );
}

#[test]
fn the_name_of_a_group_fits_into_the_keys_of_its_rows() {
    for name in ["", "a/b", "a\\u0007"] {
        let text = GOOD.replace("group.G", &format!("group.\"{name}\""));
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].ends_with("the name of a group is empty, or has a / or a control character"),
            "{found:?}"
        );
    }
}

/// A second dynamic gateway after `gw`.
fn two_dynamic(first: &str, second: &str) -> String {
    let text = change(GOOD, "address = \"10.0.0.0/8\"", &format!("dynamic = {first}"));
    let other =
        format!("[ike.gateway.other]\nike-policy = \"pol\"\ndynamic = {second}\n[ipsec.proposal.esp]");
    change(&text, "[ipsec.proposal.esp]", &other)
}

#[test]
fn dynamic_gateways_are_told_apart_by_their_identity() {
    let text = two_dynamic("{ hostname = \"gm1.example\" }", "{ hostname = \"*.branch.example\" }");
    let config = gcks(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}")).config;
    let [one, two] = &config.gateways[..] else { panic!("{:?}", config.gateways) };
    assert_eq!((one.address, two.address), (None, None));
    assert_eq!(one.remote_identity, Some(config::IdentityPattern::Fqdn("gm1.example".into())));
    assert_eq!(two.remote_identity, Some(config::IdentityPattern::Fqdn("*.branch.example".into())));

    let same = two_dynamic("{ key-id = \"a\" }", "{ key-id = \"a\" }");
    assert_eq!(
        problems(&same),
        [
            "16:1: ike.gateway.other.dynamic: this is the identity of ike.gateway.gw already (one gateway per identity; one gateway may serve many members)"
        ]
    );
    each(&[
        (
            "address = \"10.0.0.0/8\"",
            "address = \"10.0.0.0/8\"\ndynamic = { key-id = \"a\" }",
            "14:11: ike.gateway.gw.dynamic: address is stated already (one of address and dynamic)",
        ),
        (
            "address = \"10.0.0.0/8\"",
            "dynamic = { key-id = \"a\" }\nremote-identity = { key-id = \"a\" }",
            "14:19: ike.gateway.gw.remote-identity: dynamic says already who it must be (leave it out)",
        ),
    ]);
}

#[test]
fn dynamic_gateways_of_main_mode_share_everything_but_the_identity() {
    let text = two_dynamic("{ key-id = \"a\" }", "{ key-id = \"b\" }");
    assert_eq!(
        warnings(&text),
        [
            "13:1: ike.gateway.gw.dynamic: main mode takes one pre-shared key for all addresses: whoever holds it can pose as this server (certificates, or mode = \"aggressive\" with a key for each identity)"
        ]
    );
    let other = change(
        &text,
        "dynamic = { key-id = \"b\" }",
        "dynamic = { key-id = \"b\" }\ncompat = [\"large-offers\"]",
    );
    assert_eq!(
        problems(&other),
        [
            "16:1: ike.gateway.other.dynamic: another ike-policy, local-identity or compat than ike.gateway.gw (main mode knows a dynamic peer when phase 1 is complete: one of each for all of them)"
        ]
    );
    let aggressive = change(&other, "proposals = [\"p\"]", "proposals = [\"p\"]\nmode = \"aggressive\"");
    assert!(problems(&aggressive).is_empty(), "each has its own first message");
}

#[test]
fn aggressive_mode_says_what_it_exposes_and_takes_one_group() {
    let text = change(GOOD, "proposals = [\"p\"]", "proposals = [\"p\"]\nmode = \"aggressive\"");
    assert_eq!(
        warnings(&text),
        [
            "10:1: ike.policy.pol.mode: aggressive mode shows the identities of both sides to everyone on the way, and answers whoever names a known identity, in whatever address, with a key exchange and a hash by which the pre-shared key can be guessed offline (250 answers a second, 4 to one address) (main mode; else a key of 32 random octets: openssl rand -hex 32)"
        ]
    );
    let second = "[ike.proposal.q]\nauthentication-method = \"pre-shared-keys\"\ndh-group = \"group20\"\nauthentication-algorithm = \"sha-256\"\nencryption-algorithm = \"aes-256-cbc\"\n[ike.policy.pol]";
    let text = change(
        &change(&text, "[ike.policy.pol]", second),
        "proposals = [\"p\"]",
        "proposals = [\"p\", \"q\"]",
    );
    assert_eq!(
        problems(&text),
        [
            "14:1: ike.policy.pol.proposals: ike.proposal.q has another dh-group or authentication-method than the first (one of each in aggressive mode: its first message holds the public value already)"
        ]
    );
}
