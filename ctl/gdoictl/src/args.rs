//! The command line. Words are those of Junos where it has one.

use std::path::PathBuf;

use crate::load::options::LoadArgs;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Operate a GDOI key server or group member.
#[derive(Debug, Parser)]
#[command(name = "gdoictl", version, propagate_version = true)]
pub struct Args {
    /// Local socket of the daemon [default: /run/gcks/control.sock or /run/gm/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// JSON instead of tables: snake_case names, seconds, RFC 3339, SPIs as 0x…
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The key server
    #[command(subcommand)]
    Server(ServerCommand),
    /// The group member
    #[command(subcommand)]
    Member(MemberCommand),
    /// Events as they happen, until interrupted
    Watch(WatchFilter),
    /// Prometheus metrics of the daemon over HTTP, until interrupted (docs/metrics.md)
    Metrics(Listen),
    /// Metrics and a read-only web page over HTTP, until interrupted
    Serve(Listen),
    /// Load generator: many members on loopback addresses register with a running key server
    Load(LoadArgs),
    /// Completions for a shell, to stdout
    Completions {
        /// Which one
        shell: clap_complete::Shell,
    },
}

/// Where HTTP is spoken.
#[derive(Debug, ClapArgs)]
pub struct Listen {
    /// Address and port; whoever reaches it reads everything but keys, so a loopback address is best
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: std::net::SocketAddr,
}

/// Which events to print.
#[derive(Debug, ClapArgs)]
pub struct WatchFilter {
    /// Only events of this group, by name
    #[arg(long, value_name = "G")]
    pub group: Option<String>,
    /// Only events at least this loud
    #[arg(long, value_enum, default_value_t = LevelName::Info)]
    pub level: LevelName,
}

/// Names of levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LevelName {
    /// Every datagram
    Trace,
    /// What a stranger can cause at will
    Debug,
    /// Members and keys changed
    Info,
    /// May deserve an operator
    Warn,
    /// Service is lost or about to be
    Error,
}

/// What the key server can be told.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Show what is
    #[command(subcommand)]
    Show(ServerShow),
    /// Replace keys now and wait for the acknowledgements
    Rekey {
        /// Name or number
        #[arg(long, value_name = "G")]
        group: String,
        /// Only the TEKs
        #[arg(long, conflicts_with_all = ["kek", "both"])]
        tek: bool,
        /// Only the KEK
        #[arg(long, conflicts_with = "both")]
        kek: bool,
        /// TEKs and KEK (the default)
        #[arg(long)]
        both: bool,
    },
    /// Take a member out of the list
    Expel {
        /// Name or number
        #[arg(long, value_name = "G")]
        group: String,
        /// Address, address:port or identity as shown
        #[arg(long, value_name = "M")]
        member: String,
    },
    /// Forget members or counters
    #[command(subcommand)]
    Clear(ClearWhat),
    /// Expel, block and change the keys: it can decrypt nothing from then on
    Revoke {
        /// Name or number
        #[arg(long, value_name = "G")]
        group: String,
        /// Address, address:port or identity as shown
        #[arg(long, value_name = "M")]
        member: String,
    },
    /// Lift a revocation
    Unrevoke {
        /// Name or number
        #[arg(long, value_name = "G")]
        group: String,
        /// Identity as shown
        #[arg(long, value_name = "M")]
        member: String,
    },
    /// Verify, back up or reseal the stored state
    #[command(subcommand)]
    State(StateWhat),
    /// What a configuration would change: nothing changes
    Plan {
        /// Read by the daemon
        file: PathBuf,
    },
    /// Use a configuration, with one rekey per group
    Apply {
        /// Read by the daemon [default: the file it was started with]
        file: Option<PathBuf>,
    },
    /// Why a member may or may not register: every step up to the first "no"
    Explain {
        /// Address, address:port or identity
        #[arg(long, value_name = "M")]
        member: String,
        /// Name or number [default: every group its gateway is in]
        #[arg(long, value_name = "G")]
        group: Option<String>,
    },
    /// One member's protocol events as they happen, until interrupted
    Trace(TraceArgs),
}

/// Whose events to print.
#[derive(Debug, ClapArgs)]
pub struct TraceArgs {
    /// Address, address:port or identity
    #[arg(long, value_name = "M")]
    pub member: String,
    /// A new file for its messages, decrypted, for Wireshark; of a key server started with --lab
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
}

/// What to do with the stored state. A backup is put back by gcksd --restore.
#[derive(Debug, Subcommand)]
pub enum StateWhat {
    /// Read every page and record
    Verify,
    /// Copy it into a new file, which the key server writes
    Backup {
        /// The file; it must not exist
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Seal every record again, under the state-key of the configuration as it is now
    Reseal,
}

/// What to forget.
#[derive(Debug, Subcommand)]
pub enum ClearWhat {
    /// All members of a group: they register again
    Members {
        /// Name or number
        #[arg(long, value_name = "G")]
        group: String,
    },
    /// Counters of a group, or of all
    Statistics {
        /// Name or number
        #[arg(long, value_name = "G")]
        group: Option<String>,
    },
}

/// What of the key server to show.
#[derive(Debug, Subcommand)]
pub enum ServerShow {
    /// Who is registered
    RegisteredMembers {
        /// How much
        #[arg(value_enum)]
        size: Option<Size>,
        /// Only this group, by name or number
        #[arg(long, value_name = "G")]
        group: Option<String>,
        /// Only members at this address
        #[arg(long, value_name = "ADDRESS")]
        peer: Option<String>,
    },
    /// Rekey SAs
    #[command(subcommand)]
    Kek(Associations),
    /// Data-security SAs
    #[command(subcommand)]
    Ipsec(Associations),
    /// Phase 1 SAs
    #[command(subcommand)]
    Ike(Associations),
    /// Counters
    Statistics {
        /// Only this group, by name or number
        #[arg(long, value_name = "G")]
        group: Option<String>,
    },
    /// How pushes are delivered
    ServerMemberCommunication,
    /// One line per group
    Groups,
    /// What traffic is protected
    Policy,
    /// Expiry calendar of certificates, and which members chain to which anchor
    Certificates,
    /// Who decided what about members and keys, and why
    Audit {
        /// Records
        #[arg(long, value_name = "N", default_value_t = 50)]
        last: u64,
        /// Check every hash and signature of the whole log first
        #[arg(long)]
        verify: bool,
    },
}

/// `security-associations`, as in Junos.
#[derive(Debug, Subcommand)]
pub enum Associations {
    /// The SAs
    SecurityAssociations {
        /// How much
        #[arg(value_enum)]
        size: Option<Size>,
        /// Only this group or VPN
        #[arg(long, value_name = "G")]
        group: Option<String>,
    },
}

/// How much to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Size {
    /// A table (the default)
    Brief,
    /// Everything
    Detail,
}

/// What the member can be told.
#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// Show what is
    #[command(subcommand)]
    Show(MemberShow),
    /// Register again, now
    Register {
        /// Only this VPN
        #[arg(long, value_name = "V")]
        vpn: Option<String>,
    },
    /// Use a changed configuration; keys in use stay until others replace them
    Apply {
        /// Read by the daemon [default: the file it was started with]
        file: Option<PathBuf>,
    },
    /// Can the key server be reached, does phase 1 work, do the certificates hold, are the clocks right
    Check,
}

/// What of the member to show.
#[derive(Debug, Subcommand)]
pub enum MemberShow {
    /// The rekey SA
    #[command(subcommand)]
    Kek(Associations),
    /// Data-security SAs
    #[command(subcommand)]
    Ipsec(IpsecShow),
    /// Phase 1 SAs
    #[command(subcommand)]
    Ike(Associations),
    /// What traffic is protected
    Policy,
    /// Counters
    Statistics,
    /// VPNs that encrypt nothing, and why
    InactiveTunnels,
}

/// Of the member's data-security SAs.
#[derive(Debug, Subcommand)]
pub enum IpsecShow {
    /// The SAs
    SecurityAssociations {
        /// How much
        #[arg(value_enum)]
        size: Option<Size>,
        /// Only this VPN
        #[arg(long, value_name = "V")]
        group: Option<String>,
    },
    /// Packets and octets
    Statistics {
        /// Only this VPN
        #[arg(long, value_name = "V")]
        group: Option<String>,
    },
}

/// Arguments of a command that does not exist yet: anything.
#[derive(Debug, ClapArgs)]
pub struct Later {
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    _rest: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_manual_is_understood() {
        for line in [
            "gdoictl server show registered-members detail --group g1 --peer 10.0.0.1",
            "gdoictl server show kek security-associations detail",
            "gdoictl server show ipsec security-associations --json",
            "gdoictl server show ike security-associations",
            "gdoictl server show statistics --group 1",
            "gdoictl server show server-member-communication",
            "gdoictl server show groups",
            "gdoictl server show policy",
            "gdoictl server show certificates",
            "gdoictl server show audit --verify",
            "gdoictl server state backup file",
            "gdoictl server state verify",
            "gdoictl server state reseal",
            "gdoictl server rekey --group g1 --tek",
            "gdoictl server rekey --group g1 --both",
            "gdoictl server expel --group g1 --member 10.0.0.1:848",
            "gdoictl server revoke --group g1 --member 10.0.0.1",
            "gdoictl server unrevoke --group g1 --member gm7.example",
            "gdoictl server clear members --group g1",
            "gdoictl server clear statistics",
            "gdoictl server plan file",
            "gdoictl server apply",
            "gdoictl server apply file",
            "gdoictl server explain --member m --group g",
            "gdoictl server trace --member m --pcap f",
            "gdoictl member show kek security-associations detail",
            "gdoictl member show ipsec security-associations",
            "gdoictl member show ipsec statistics",
            "gdoictl member show ike security-associations",
            "gdoictl member show policy",
            "gdoictl member show statistics",
            "gdoictl member show inactive-tunnels",
            "gdoictl member register --vpn v",
            "gdoictl member apply",
            "gdoictl member apply file",
            "gdoictl member check",
            "gdoictl --socket /tmp/s watch --level debug",
            "gdoictl metrics --listen 127.0.0.1:9848",
            "gdoictl load --server 127.0.0.1:848 --members 10 --group 1 --key-file k --rate 100 --acknowledge 5",
            "gdoictl completions bash",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn contradictions_and_omissions_are_usage_errors() {
        for line in [
            "gdoictl server rekey",
            "gdoictl server rekey --group g --tek --kek",
            "gdoictl",
            "gdoictl server expel",
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }
}
