//! Capabilities: what may be had again, and what is had.

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

fn failed(error: CapsError) -> io::Error {
    io::Error::other(error.to_string())
}

/// Takes all but `keep` out of what a program run by us could get back.
pub fn bound(keep: &[Capability]) -> io::Result<()> {
    if !caps::read(None, CapSet::Permitted).map_err(failed)?.contains(&Capability::CAP_SETPCAP) {
        return Ok(());
    }
    for capability in caps::all() {
        if !keep.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability).map_err(failed)? {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives up all but `keep`; the names of what is left.
pub fn keep_only(keep: &[Capability]) -> io::Result<Vec<String>> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(failed)?;
    let left: CapsHashSet = keep.iter().filter(|wanted| permitted.contains(wanted)).copied().collect();
    caps::clear(None, CapSet::Ambient).map_err(failed)?;
    caps::set(None, CapSet::Effective, &left).map_err(failed)?;
    caps::set(None, CapSet::Permitted, &left).map_err(failed)?;
    caps::clear(None, CapSet::Inheritable).map_err(failed)?;
    let mut names: Vec<String> = left.iter().map(ToString::to_string).collect();
    names.sort();
    Ok(names)
}
