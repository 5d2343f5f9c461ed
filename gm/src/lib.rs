//! "Keep my traffic keyed, and decide what happens when I cannot": the group member.
//!
//! ```text
//! engine/   sans-IO: registration, pushes, keyring; (now, input) -> outputs
//! convert   configuration -> settings of the engine          feature `daemon`
//! plane     configuration -> data plane, and what it shows    feature `daemon`
//! notify    changes of keys -> other programs                 feature `daemon`
//! confine   what the process gives up                         feature `daemon`
//! reload    a changed file -> in use, or why not             feature `daemon`
//! daemon    outputs -> sockets, data plane, log              feature `daemon`
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod confine;
#[cfg(feature = "convert")]
pub mod convert;
#[cfg(feature = "daemon")]
pub mod daemon;
/// The sans-IO member.
pub mod engine;
#[cfg(feature = "daemon")]
pub mod notify;
#[cfg(feature = "daemon")]
pub mod plane;
#[cfg(feature = "daemon")]
pub mod reload;
