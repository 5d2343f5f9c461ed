//! The words of `gdoictl load`.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ike::crypto::{AuthMethod, Cipher, DhGroup, Hash, Suite};

/// Who registers, where, how fast, and what happens then.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Address and port of the key server; it must reach loopback addresses
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:848")]
    pub server: SocketAddrV4,
    /// Members that register, each once and with a source address of its own
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub members: u32,
    /// Address of the first member; the others follow it
    #[arg(long, value_name = "ADDRESS", default_value = "127.1.0.1")]
    pub first_address: Ipv4Addr,
    /// Number of the group (ID_KEY_ID of 4 octets)
    #[arg(long, value_name = "NUMBER")]
    pub group: u32,
    /// File with the pre-shared key, closed to group and others; one newline at its end does not count
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub key_file: Option<PathBuf>,
    /// Configuration of a member: phase 1 is that of its first gateway, certificates included. All members then have one
    /// identity, so that they are one member to the key server, which comes again and again
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key_file", "dh_group", "encryption", "hash"])]
    pub config: Option<PathBuf>,
    /// Diffie-Hellman group of phase 1
    #[arg(long, value_enum, value_name = "GROUP", default_value = "group31")]
    pub dh_group: GroupWord,
    /// Cipher of phase 1
    #[arg(long, value_enum, value_name = "CIPHER", default_value = "aes-256-cbc")]
    pub encryption: CipherWord,
    /// Hash of phase 1
    #[arg(long, value_enum, value_name = "HASH", default_value = "sha-256")]
    pub hash: HashWord,
    /// Most registrations under way at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub window: u32,
    /// Most registrations begun per second; 0: as fast as the window allows
    #[arg(long, value_name = "PER-SECOND", default_value_t = 0)]
    pub rate: u32,
    /// Threads, each with a socket of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub threads: u32,
    /// Give a registration up after this many seconds; lost messages are repeated meanwhile
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    pub patience: u32,
    /// Stay this many seconds after the last registration and acknowledge pushes (RFC 8263)
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub acknowledge: u32,
    /// While staying, ask the key server once over its control socket to replace the group's TEKs
    #[arg(long, requires = "acknowledge")]
    pub rekey: bool,
    /// While staying, ask the key server once over its control socket to revoke the first member
    #[arg(long, requires = "acknowledge", conflicts_with = "rekey")]
    pub revoke: bool,
    /// Process of the key server on this machine: tells the CPU time it used, from /proc/PID/stat
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
}

impl LoadArgs {
    /// What phase 1 offers.
    pub fn suite(&self) -> Suite {
        Suite {
            cipher: match self.encryption {
                CipherWord::Aes128 => Cipher::Aes128Cbc,
                CipherWord::Aes192 => Cipher::Aes192Cbc,
                CipherWord::Aes256 => Cipher::Aes256Cbc,
            },
            hash: match self.hash {
                HashWord::Sha256 => Hash::Sha256,
                HashWord::Sha384 => Hash::Sha384,
                HashWord::Sha512 => Hash::Sha512,
            },
            group: match self.dh_group {
                GroupWord::Group14 => DhGroup::Modp2048,
                GroupWord::Group15 => DhGroup::Modp3072,
                GroupWord::Group16 => DhGroup::Modp4096,
                GroupWord::Group19 => DhGroup::Ecp256,
                GroupWord::Group20 => DhGroup::Ecp384,
                GroupWord::Group21 => DhGroup::Ecp521,
                GroupWord::Group31 => DhGroup::Curve25519,
            },
            method: AuthMethod::PreSharedKey,
        }
    }

    /// The address of member `index`.
    pub fn address(&self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first_address.to_bits().wrapping_add(index))
    }

    /// The member an address belongs to.
    pub fn index(&self, address: Ipv4Addr) -> Option<u32> {
        let index = address.to_bits().checked_sub(self.first_address.to_bits())?;
        (index < self.members).then_some(index)
    }

    /// True when every member has an address of 127.0.0.0/8 that is not its last one.
    pub fn stays_on_loopback(&self) -> bool {
        let last = self.first_address.to_bits().checked_add(self.members - 1).map(Ipv4Addr::from_bits);
        let broadcast = Ipv4Addr::new(127, 255, 255, 255);
        self.first_address.is_loopback() && last.is_some_and(|last| last.is_loopback() && last < broadcast)
    }
}

/// Diffie-Hellman groups as the configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum GroupWord {
    /// MODP 2048
    Group14,
    /// MODP 3072
    Group15,
    /// MODP 4096
    Group16,
    /// P-256
    Group19,
    /// P-384
    Group20,
    /// P-521
    Group21,
    /// Curve25519
    Group31,
}

/// Ciphers as the configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CipherWord {
    /// 16 octets of key
    #[value(name = "aes-128-cbc")]
    Aes128,
    /// 24 octets of key
    #[value(name = "aes-192-cbc")]
    Aes192,
    /// 32 octets of key
    #[value(name = "aes-256-cbc")]
    Aes256,
}

/// Hashes as the configuration names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HashWord {
    /// 32 octets
    #[value(name = "sha-256")]
    Sha256,
    /// 48 octets
    #[value(name = "sha-384")]
    Sha384,
    /// 64 octets
    #[value(name = "sha-512")]
    Sha512,
}
