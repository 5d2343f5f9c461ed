//! A changed configuration file: read whole, and compared with the one in use for what a running member cannot take.

use std::path::Path;

use config::{Gm, Options};

/// Reads a file as at the start. What only warns goes to the log.
///
/// # Errors
/// Every problem with its line, for the operator.
pub fn read(path: &Path, options: Options) -> Result<Gm, String> {
    let loaded = config::load_gm(path, options).map_err(|errors| errors.to_string())?;
    for warning in &loaded.warnings {
        tracing::warn!(target: "configuration", "{warning}");
    }
    Ok(loaded.config)
}

/// Statements that differ and that only a restart takes: sockets, and which traffic is steered how.
pub fn restart(old: &Gm, new: &Gm) -> Vec<String> {
    let (was, is) = (&old.member, &new.member);
    let nat = |member: &config::Member| (member.nat_traversal, member.nat_traversal_listen.clone());
    let whole = [
        ("member.listen", was.listen != is.listen),
        ("member.nat-traversal", nat(was) != nat(is)),
        ("member.observe-socket", was.observe_socket != is.observe_socket),
        ("member.control-socket", was.control_socket != is.control_socket),
        ("member.notify-socket", was.notify_socket != is.notify_socket),
        ("member.socket-group", was.socket_group != is.socket_group),
        ("member.approved-only", was.approved_only != is.approved_only),
        ("member.log-level", was.log_level != is.log_level),
        ("data-plane.backend", old.backend != new.backend),
        ("zone", old.zones != new.zones),
        ("ipsec-policy", old.policies != new.policies),
    ];
    let differs = |(name, differs): (&str, bool)| differs.then(|| name.to_owned());
    let mut needs: Vec<String> = whole.into_iter().filter_map(differs).collect();
    for is in &new.vpns {
        let Some(was) = old.vpns.iter().find(|was| was.name == is.name) else { continue };
        let own = [
            ("df-bit", was.df_bit != is.df_bit),
            ("tunnel-mtu", was.tunnel_mtu != is.tunnel_mtu),
            ("esp-encapsulation", was.esp_encapsulation != is.esp_encapsulation),
            ("group-vpn-external-interface", was.external_interface != is.external_interface),
        ];
        needs.extend(own.into_iter().filter_map(differs).map(|name| format!("vpn.{}.{name}", is.name)));
    }
    needs
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[member]
listen = ["127.0.0.1:0"]
[ike.proposal.p]
authentication-method = "pre-shared-keys"
dh-group = "group19"
authentication-algorithm = "sha-256"
encryption-algorithm = "aes-256-cbc"
[ike.policy.pol]
proposals = ["p"]
pre-shared-key = { file = "key" }
[ike.gateway.servers]
ike-policy = "pol"
server-address = ["127.0.0.1"]
[vpn.v]
ike-gateway = "servers"
group = 9
tunnel-mtu = 1400
[[vpn.v.exclude]]
name = "ntp"
source-address = "0.0.0.0/0"
destination-address = "0.0.0.0/0"
application = "udp/123"
[zone.lan]
interfaces = ["lan"]
[zone.wan]
interfaces = ["wan"]
[[ipsec-policy]]
from-zone = "lan"
to-zone = "wan"
vpn = "v"
"#;

    fn configured(text: &str) -> Gm {
        let directory = tempfile::tempdir().unwrap();
        crate::convert::tests::write_key(directory.path());
        let path = directory.path().join("gm.toml");
        std::fs::write(&path, text).unwrap();
        read(&path, Options::default()).unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn sockets_and_steering_take_a_restart_and_servers_groups_and_rules_do_not() {
        let old = configured(FILE);
        for (from, to, needs) in [
            ("group = 9", "group = 10", &[][..]),
            ("[\"127.0.0.1\"]", "[\"127.0.0.1\", \"127.0.0.2\"]", &[]),
            ("udp/123", "udp/124", &[]),
            ("127.0.0.1:0", "127.0.0.1:1", &["member.listen"]),
            ("1400", "1300", &["vpn.v.tunnel-mtu"]),
            ("[\"lan\"]", "[\"lan\", \"lab\"]", &["zone"]),
            ("[member]", "[member]\nlog-level = \"debug\"", &["member.log-level"]),
            (
                "[[ipsec-policy]]\nfrom-zone = \"lan\"",
                "[data-plane]\nbackend = \"none\"\n[[ipsec-policy]]\nfrom-zone = \"host\"",
                &["data-plane.backend", "ipsec-policy"],
            ),
        ] {
            assert!(FILE.contains(from), "{from}");
            assert_eq!(restart(&old, &configured(&FILE.replacen(from, to, 1))), needs, "{to}");
        }
    }
}
