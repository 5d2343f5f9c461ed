//! Files and directories a daemon keeps, by landlock. Opened files stay open.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, LandlockStatus, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What this build knows to restrict; an older kernel restricts less of it.
const KNOWN: ABI = ABI::V6;

/// What the C library and the crypto library may want to read at any time.
const SYSTEM: [&str; 9] = [
    "/usr/lib",
    "/usr/lib64",
    "/lib",
    "/lib64",
    "/proc/self",
    "/sys/fs/cgroup",
    "/sys/devices/system/cpu",
    "/dev/null",
    "/dev/urandom",
];

/// Places a daemon keeps. One that does not exist is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Files {
    /// Files and directories to read.
    pub read: Vec<PathBuf>,
    /// Files and directories to write, make and remove files in.
    pub write: Vec<PathBuf>,
    /// Directories whose names are listed, or that are synced.
    pub list: Vec<PathBuf>,
    /// Directories where local sockets are made and removed.
    pub sockets: Vec<PathBuf>,
    /// Devices.
    pub devices: Vec<PathBuf>,
}

/// What is restricted. Prints as `reads below /etc/gcks, writes below /var/lib/gcks (landlock 6)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restricted {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    version: i32,
    whole: bool,
}

fn named(paths: &[PathBuf]) -> String {
    match paths {
        [] => "nothing".to_owned(),
        paths => paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "),
    }
}

impl Restricted {
    /// Where the daemon may read, for people.
    pub fn reading(&self) -> String {
        named(&self.read)
    }
}

impl fmt::Display for Restricted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reads below {}, writes below {}", named(&self.read), named(&self.write))?;
        let part = if self.whole { "" } else { ", of which this kernel knows a part" };
        write!(f, " (landlock {}{part})", self.version)
    }
}

impl Files {
    /// Adds the directory of a file, as it really is: behind its symbolic links.
    pub fn read_beside(&mut self, file: &Path) {
        let real = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        let directory = real.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
        if !self.read.contains(&directory) {
            self.read.push(directory);
        }
    }

    /// Adds the directory of a local socket.
    pub fn socket(&mut self, path: &Path) {
        if let Some(directory) = path.parent()
            && !self.sockets.iter().any(|known| known == directory)
        {
            self.sockets.push(directory.to_owned());
        }
    }
}

/// Restricts this thread and those it starts; none where the kernel has no landlock.
pub fn restrict(files: &Files) -> io::Result<Option<Restricted>> {
    let failed = |error: RulesetError| io::Error::other(error.to_string());
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let never = AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let write = AccessFs::from_all(KNOWN) & !never;
    let socket = AccessFs::MakeSock | AccessFs::RemoveFile;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let system = SYSTEM.iter().map(PathBuf::from).collect::<Vec<_>>();
    let rules: [(&[PathBuf], BitFlags<AccessFs>); 6] = [
        (&system, read),
        (&files.read, read),
        (&files.write, write),
        (&files.list, AccessFs::ReadDir.into()),
        (&files.sockets, socket),
        (&files.devices, device),
    ];
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|ruleset| ruleset.scope(Scope::Signal))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for (paths, access) in rules {
        for path in paths {
            let Ok(opened) = PathFd::new(path) else { continue };
            // A file has no names in it to make or list.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(KNOWN) };
            ruleset = ruleset.add_rule(PathBeneath::new(opened, access)).map_err(failed)?;
        }
    }
    let status = ruleset.restrict_self().map_err(failed)?;
    let LandlockStatus::Available { effective_abi, .. } = status.landlock else { return Ok(None) };
    Ok(match status.ruleset {
        RulesetStatus::NotEnforced => None,
        enforced => Some(Restricted {
            read: files.read.clone(),
            write: files.write.clone(),
            version: effective_abi as i32,
            whole: enforced == RulesetStatus::FullyEnforced,
        }),
    })
}
