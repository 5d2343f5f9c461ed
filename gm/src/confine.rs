//! What the daemon gives up before it does anything: capabilities it does not need, new privileges, and system calls no
//! member makes.
//!
//! All of it belongs to a thread and is inherited by those it starts, so it happens before the first one is started.

use std::collections::BTreeMap;
use std::io;

use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// What a member needs: interfaces, routes, filters and marks; raw sockets; UDP 848.
const NEEDED: [Capability; 3] =
    [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_NET_BIND_SERVICE];

/// Programs are not run, the system is not changed, other processes are not looked into.
const REFUSED: [libc::c_long; 22] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_settimeofday,
];
/// EPERM.
const NOT_PERMITTED: u32 = 1;

/// Gives it all up. `chown` keeps the right to give the observe socket to a group.
///
/// # Errors
/// When the system refuses to take something away.
pub fn confine(chown: bool) -> io::Result<()> {
    let kept = NEEDED.into_iter().chain(chown.then_some(Capability::CAP_CHOWN));
    let kept: CapsHashSet = kept.collect();
    let failed = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            // Also those a program run by us could get back.
            if !kept.contains(&capability)
                && caps::has_cap(None, CapSet::Bounding, capability).map_err(failed)?
            {
                caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    let left: CapsHashSet = permitted.intersection(&kept).copied().collect();
    caps::set(None, CapSet::Effective, &left).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &left).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    rustix::thread::set_no_new_privs(true)?;
    refuse_calls()
}

fn refuse_calls() -> io::Result<()> {
    // Elsewhere the numbers are not known to the library.
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(()) };
    let rules: BTreeMap<i64, Vec<seccompiler::SeccompRule>> =
        REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    let refused = SeccompAction::Errno(NOT_PERMITTED);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, architecture);
    let program: BpfProgram =
        filter.and_then(BpfProgram::try_from).map_err(|error| io::Error::other(error.to_string()))?;
    match apply_filter(&program) {
        // EINVAL, ENOSYS: a kernel without seccomp.
        Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
            if matches!(error.raw_os_error(), Some(22 | 38)) =>
        {
            Ok(())
        }
        other => other.map_err(|error| io::Error::other(error.to_string())),
    }
}
