//! What `gmd` keeps: capabilities for interfaces, routes, filters and marks, raw sockets and UDP 848; its configuration to
//! read; its local sockets, the TUN device and the network's switches to write.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use config::Gm;
use runtime::confine::{Capability, ConfineError, Confined, Files, Kept, confine};

/// Where the TUN interfaces come from.
const TUN: &str = "/dev/net/tun";
/// Forwarding is read, reverse path filters are set for the time of the steering.
const SWITCHES: &str = "/proc/sys/net";
/// What interfaces there are.
const INTERFACES: [&str; 2] = ["/sys/class/net", "/sys/devices/virtual/net"];

/// Gives up everything else, before the first thread. `files` are those the configuration at `path` was read from.
///
/// # Errors
/// When the system refuses to take something away.
pub fn of_member(config: &Gm, path: &Path, files: &[PathBuf]) -> Result<Confined, ConfineError> {
    let member = &config.member;
    let mut kept = vec![Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE];
    if !member.socket_group.is_empty() {
        // The observe socket is given to the group.
        kept.push(Capability::CAP_CHOWN);
    }
    let mut keep = Files {
        read: INTERFACES.iter().map(PathBuf::from).collect(),
        write: vec![PathBuf::from(SWITCHES)],
        devices: vec![PathBuf::from(TUN)],
        ..Files::default()
    };
    keep.read_beside(path);
    for file in files {
        keep.read_beside(file);
    }
    for socket in [&member.control_socket, &member.observe_socket] {
        if let Some(directory) = socket.parent() {
            // Whoever cannot make it is told so where the socket is opened.
            let _ = fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        }
        keep.socket(socket);
    }
    confine(&Kept { capabilities: kept, files: keep, ..Kept::default() })
}
