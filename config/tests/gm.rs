//! Every rule of `gm.toml`: a change to a good file, and what it is told, with line and column.

mod support;

use config::{IdentityPattern, Options};
use support::{change, gm, lines};

/// A good file; the line numbers below count in it.
const GOOD: &str = r#"[member]
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
server-address = ["10.10.10.1", "10.10.10.2:8480"]
[vpn.V]
ike-gateway = "gw"
group = 1
"#;

fn problems(text: &str) -> Vec<String> {
    match gm(text, Options::default()) {
        Ok(_) => Vec::new(),
        Err(errors) => lines(&errors.to_string()),
    }
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
    let loaded = gm(GOOD, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.warnings.is_empty());
    assert_eq!(loaded.notices, ["no ipsec-policy: keys are shown and protect no traffic"]);
    assert_eq!(loaded.config.backend, config::Backend::Tun);
    let gateway = &loaded.config.gateways[0];
    assert_eq!(gateway.servers[0].to_string(), "10.10.10.1:848");
    assert_eq!(gateway.servers[1].to_string(), "10.10.10.2:8480");
    assert!(gateway.remote_identity.is_empty());
    assert_eq!(gateway.identity_of(0), None);
    assert!(gateway.dead_peer_detection.is_none());
    let any = config::AddressPrefix::parse("0.0.0.0/0").unwrap();
    assert!(loaded.config.vpns[0].allows(&any, &any));
    assert_eq!(loaded.config.member.control_socket.to_str(), Some("/run/gm/control.sock"));
}

#[test]
fn a_list_of_identities_gives_one_per_server() {
    let text = change(
        GOOD,
        "[vpn.V]",
        "remote-identity = [{ hostname = \"a.example\" }, { hostname = \"b.example\" }]\n[vpn.V]",
    );
    let loaded = gm(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.config.gateways[0].identity_of(1), Some(&IdentityPattern::Fqdn("b.example".into())));
}

#[test]
fn gateways_name_one_to_four_servers_and_who_they_are() {
    let servers = "server-address = [\"10.10.10.1\", \"10.10.10.2:8480\"]";
    each(&[
        (
            servers,
            "server-address = []",
            "13:18: ike.gateway.gw.server-address: 0 servers (1-4, tried in order)",
        ),
        (
            servers,
            "server-address = [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\", \"10.0.0.4\", \"10.0.0.5\"]",
            "13:18: ike.gateway.gw.server-address: 5 servers (1-4, tried in order)",
        ),
        (
            servers,
            "server-address = [\"gcks.example\"]",
            "13:19: ike.gateway.gw.server-address: \"gcks.example\" is not an address (\"192.0.2.1\", \"192.0.2.1:848\" or \"[2001:db8::1]:848\")",
        ),
        (
            servers,
            "server-address = [\"10.0.0.1\", \"10.0.0.1:848\"]",
            "13:31: ike.gateway.gw.server-address: this server is listed twice",
        ),
        (
            "[vpn.V]",
            "local-address = \"2001:db8::1\"\n[vpn.V]",
            "14:1: ike.gateway.gw.local-address: not the address family of every server-address",
        ),
        (
            "[vpn.V]",
            "local-address = \"10.0.0.1:848\"\n[vpn.V]",
            "14:17: ike.gateway.gw.local-address: not an address (IPv4 or IPv6, without a port)",
        ),
        (
            "[vpn.V]",
            "remote-identity = []\n[vpn.V]",
            "14:19: ike.gateway.gw.remote-identity: an identity rule must not be empty ({ hostname = \"gcks.example\" })",
        ),
        (
            "[vpn.V]",
            "remote-identity = [{ inet = \"10.0.0.1\" }, { inet = \"10.0.0.2\" }, { inet = \"10.0.0.3\" }]\n[vpn.V]",
            "14:19: ike.gateway.gw.remote-identity: 3 identities for 2 servers (one for all, or one per server-address)",
        ),
    ]);
}

#[test]
fn vpns_name_a_gateway_and_a_group_of_their_own() {
    each(&[
        (
            "ike-gateway = \"gw\"",
            "ike-gateway = \"gateway\"",
            "15:15: vpn.V.ike-gateway: no ike.gateway is named \"gateway\" (one of gw)",
        ),
        ("group = 1", "group = 0", "16:9: vpn.V.group: 0 is out of range (1-4294967295)"),
        ("group = 1\n", "", "14:6: vpn.V: group is missing (a number, 1-4294967295)"),
        (
            "group = 1",
            "group = 1\n[vpn.W]\nike-gateway = \"gw\"\ngroup = 1",
            "19:1: vpn.W.group: group 1 of this ike-gateway is that of vpn.V already (one vpn per group)",
        ),
        (
            "group = 1",
            "group = 1\ntunnel-mtu = 100",
            "17:14: vpn.V.tunnel-mtu: 100 is out of range (256-9192)",
        ),
        (
            "group = 1",
            "group = 1\naccept = { encryption = [\"3des-cbc\"] }",
            "17:26: vpn.V.accept.encryption: \"3des-cbc\" is not known (aes-128-cbc | aes-192-cbc | aes-256-cbc | aes-128-gcm | aes-256-gcm)",
        ),
        (
            "group = 1",
            "group = 1\naccept = { encryption = [] }",
            "17:25: vpn.V.accept.encryption: accepts nothing (leave it out to accept what this build supports)",
        ),
        (
            "group = 1",
            "group = 1\nallowed-flows = []",
            "17:1: vpn.V.allowed-flows: allows nothing (leave it out to allow all)",
        ),
        (
            "group = 1",
            "group = 1\nallowed-flows = [ { source = \"10.0.0.0/8\" } ]",
            "17:19: vpn.V.allowed-flows: destination is missing (a prefix)",
        ),
    ]);
}

/// Two zones and a policy between them.
const ZONES: &str = "group = 1\n[zone.lan]\ninterfaces = [\"eth1\"]\n[zone.wan]\ninterfaces = [\"eth0\"]\n\
    [[ipsec-policy]]\nfrom-zone = \"lan\"\nto-zone = \"wan\"\nvpn = \"V\"";

#[test]
fn zones_have_interfaces_of_their_own_and_a_pair_has_one_vpn() {
    let good = change(GOOD, "group = 1", ZONES);
    assert!(problems(&good).is_empty(), "{:#?}", problems(&good));
    let own = change(&good, "from-zone = \"lan\"", "from-zone = \"host\"");
    assert!(problems(&own).is_empty(), "{:#?}", problems(&own));
    let rows = [
        ("[\"eth0\"]", "[]", "20:14: zone.wan.interfaces: a zone without interfaces ([\"eth1\"])"),
        (
            "[\"eth0\"]",
            "[\"eth1\"]",
            "20:15: zone.wan.interfaces: eth1 is in zone lan already (one zone per interface)",
        ),
        (
            "[\"eth0\"]",
            "[\"a name of 16 ch\"]",
            "20:15: zone.wan.interfaces: \"a name of 16 ch\" is no name of an interface (\"eth1\")",
        ),
        ("to-zone = \"wan\"", "to-zone = \"lan\"", "21:1: ipsec-policy: from a zone to itself (two zones)"),
        (
            "to-zone = \"wan\"",
            "to-zone = \"host\"",
            "23:1: ipsec-policy.to-zone: ESP goes to a zone of interfaces (from-zone = \"host\"; it holds for answers too)",
        ),
        (
            "vpn = \"V\"",
            "vpn = \"V\"\n[[ipsec-policy]]\nfrom-zone = \"wan\"\nto-zone = \"lan\"\nvpn = \"V\"",
            "25:1: ipsec-policy: between wan and lan there is a vpn already (one vpn per zone pair; it holds for answers too)",
        ),
    ];
    for (from, to, expected) in rows {
        assert_eq!(problems(&change(&good, from, to)), [expected], "{to}");
    }
}

#[test]
fn policies_that_nothing_obeys_are_a_warning() {
    let text = change(GOOD, "group = 1", &format!("{ZONES}\n[data-plane]\nbackend = \"none\""));
    let loaded = gm(&text, Options::default()).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.warnings.len(), 1);
    assert!(loaded.warnings[0].to_string().contains("traffic passes in clear"), "{}", loaded.warnings[0]);
}

#[test]
fn rules_are_read_and_checked() {
    let rule = "group = 1\n[[vpn.V.exclude]]\nname = \"bgp\"\nsource-address = \"0.0.0.0/0\"\n\
        destination-address = \"0.0.0.0/0\"\napplication = \"icmp/8\"\n\
        [[ipsec-policy]]\nfrom-zone = \"lan\"\nto-zone = \"host\"\nvpn = \"W\"";
    let found = problems(&change(GOOD, "group = 1", rule));
    for expected in [
        "21:15: vpn.V.exclude.application: \"icmp/8\" is no application (\"any\", \"tcp\" or \"tcp/179\")",
        "23:13: ipsec-policy.from-zone: no zone is named \"lan\" (one of host)",
        "25:7: ipsec-policy.vpn: no vpn is named \"W\" (did you mean \"V\"?)",
    ] {
        assert!(found.contains(&expected.to_owned()), "{found:#?}");
    }
    let many =
        "\n[[vpn.V.fail-open]]\nname = \"r\"\nsource-address = \"::/0\"\ndestination-address = \"::/0\"";
    let found = problems(&change(GOOD, "group = 1", &format!("group = 1{}", many.repeat(11))));
    assert_eq!(found, ["17:9: vpn.V.fail-open: 11 rules (at most 10)"]);
}

#[test]
fn statements_of_the_key_server_are_unknown_to_a_member() {
    each(&[
        ("[vpn.V]", "address = \"10.0.0.1\"\n[vpn.V]", "14:1: ike.gateway.gw.address: unknown statement"),
        (
            "log-level",
            "state-directory = \"/tmp\"\nlog-level",
            "2:1: member.state-directory: unknown statement",
        ),
    ]);
}

#[test]
fn the_kernel_backend_is_for_this_machine_and_says_what_else_it_does_not_do() {
    let zones = change(ZONES, "from-zone = \"lan\"", "from-zone = \"host\"");
    let good = change(GOOD, "group = 1", &format!("{zones}\n[data-plane]\nbackend = \"xfrm\""));
    assert!(problems(&good).is_empty(), "{:#?}", problems(&good));
    let rows = [
        (
            "from-zone = \"host\"",
            "from-zone = \"lan\"",
            "xfrm protects traffic of this machine only, not from zone lan (\"tun\", or from-zone = \"host\")",
        ),
        (
            "group = 1",
            "group = 1\nesp-encapsulation = \"udp\"",
            "xfrm has no esp-encapsulation \"udp\" (vpn V) (\"raw\")",
        ),
        (
            "group = 1",
            "group = 1\ndf-bit = \"set\"",
            "xfrm has no df-bit \"set\" (vpn V) (\"clear\" or \"copy\")",
        ),
        (
            "group = 1",
            "group = 1\ntunnel-mtu = 1400",
            "xfrm follows the path MTU, not tunnel-mtu (vpn V) (no tunnel-mtu)",
        ),
    ];
    for (from, to, wrong) in rows {
        let found = problems(&change(&good, from, to));
        assert!(found.iter().any(|line| line.ends_with(wrong)), "{to}: {found:#?}");
    }
}
