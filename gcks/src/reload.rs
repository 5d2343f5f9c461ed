//! A changed configuration file: read whole, compared with the one in use, planned or applied.

use std::path::Path;

use config::{Gcks, Options, Server};

/// Reads a file as at the start. What only warns goes to the log.
///
/// # Errors
/// Every problem with its line, for the operator.
pub fn read(path: &Path, options: Options) -> Result<Gcks, String> {
    let loaded = config::load_gcks(path, options).map_err(|errors| errors.to_string())?;
    for warning in &loaded.warnings {
        tracing::warn!(target: "configuration", "{warning}");
    }
    Ok(loaded.config)
}

/// Statements that differ and that only a restart takes.
pub fn restart(old: &Server, new: &Server) -> Vec<String> {
    let mut needs = Vec::new();
    let mut compare = |name: &str, differs: bool, says: String| {
        if differs {
            needs.push(format!("server.{name} = {says}"));
        }
    };
    compare("listen", old.listen != new.listen, format!("{:?}", new.listen));
    let nat =
        (old.nat_traversal, &old.nat_traversal_listen) != (new.nat_traversal, &new.nat_traversal_listen);
    compare("nat-traversal", nat, format!("{} at {:?}", new.nat_traversal, new.nat_traversal_listen));
    let (state, moved) = (&new.state_directory, old.state_directory != new.state_directory);
    compare("state-directory", moved, format!("{state:?}"));
    compare("user", old.user != new.user, format!("{:?}", new.user));
    let (backup, moved) = (&new.backup_directory, old.backup_directory != new.backup_directory);
    compare("backup-directory", moved, format!("{backup:?}"));
    let moved = old.control_socket != new.control_socket;
    compare("control-socket", moved, format!("{:?}", new.control_socket));
    let moved = old.observe_socket != new.observe_socket;
    compare("observe-socket", moved, format!("{:?}", new.observe_socket));
    compare("socket-group", old.socket_group != new.socket_group, format!("{:?}", new.socket_group));
    compare("log-level", old.log_level != new.log_level, format!("{:?}", new.log_level));
    needs
}
