//! The account a daemon has of its own.

use std::io;

use nix::unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid};

use super::ConfineError;

/// An account of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// The account to become: none when `name` is empty or this process is it already.
    ///
    /// # Errors
    /// [`ConfineError::NoSuchUser`], and [`ConfineError::NotRoot`] when somebody else started this process.
    pub fn to_become(name: &str) -> Result<Option<Account>, ConfineError> {
        if name.is_empty() {
            return Ok(None);
        }
        let found = User::from_name(name)
            .map_err(|error| ConfineError::System { what: "root", source: error.into() })?
            .ok_or_else(|| ConfineError::NoSuchUser(name.to_owned()))?;
        if found.uid == geteuid() {
            return Ok(None);
        }
        if !geteuid().is_root() {
            return Err(ConfineError::NotRoot { wanted: name.to_owned(), uid: geteuid().as_raw() });
        }
        Ok(Some(Account { name: name.to_owned(), uid: found.uid.as_raw(), gid: found.gid.as_raw() }))
    }

    /// Its user and group, as numbers.
    pub fn owner(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Becomes it for good, with its own group and no other.
    ///
    /// # Errors
    /// What the system said.
    pub fn become_it(&self) -> Result<(), ConfineError> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&[])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid))
            .map_err(|error| ConfineError::System { what: "root", source: io::Error::from(error) })
    }
}

/// True for a process of root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Who this process is, for people.
pub fn whoami() -> String {
    let uid = geteuid();
    match User::from_uid(uid) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name),
        _ => format!("uid {uid}"),
    }
}
