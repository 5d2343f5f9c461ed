//! What `gcksd` keeps once its sockets are open: its own user, the state to write, the configuration to read, and no
//! capability at all.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, lchown};
use std::path::{Path, PathBuf};

use config::Server;
use runtime::confine::{Account, ConfineError, Confined, Files, Kept, confine, is_root};

/// Makes `directory` with mode 0700 when it is missing, for `account`. One that is there stays as it is.
///
/// # Errors
/// What the system said.
pub fn private_directory(directory: &Path, account: Option<&Account>) -> io::Result<()> {
    if directory.exists() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    match account.map(Account::owner) {
        Some((uid, gid)) => lchown(directory, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

/// Gives up everything else, before the first thread. `read` are the configuration and the files it names.
///
/// # Errors
/// When the system refuses to take something away.
pub fn of_server(
    server: &Server,
    account: Option<Account>,
    read: &[PathBuf],
) -> Result<Confined, ConfineError> {
    let mut files = Files {
        write: vec![server.state_directory.clone()],
        // A new database is synced by way of the directory its own is in.
        list: server.state_directory.parent().map(Path::to_owned).into_iter().collect(),
        ..Files::default()
    };
    if !server.backup_directory.starts_with(&server.state_directory) {
        files.write.push(server.backup_directory.clone());
    }
    for file in read {
        files.read_beside(file);
    }
    for socket in [&server.control_socket, &server.observe_socket] {
        files.socket(socket);
    }
    let stays_root = account.is_none() && is_root();
    let make = vec![server.backup_directory.clone()];
    let confined = confine(&Kept { account, capabilities: Vec::new(), make, files })?;
    if stays_root {
        tracing::warn!(target: "confinement", "gcksd stays root: name a user of its own, [server] user = \"gcks\"");
    }
    tracing::info!(target: "confinement", "{}", confined.said());
    Ok(confined)
}
