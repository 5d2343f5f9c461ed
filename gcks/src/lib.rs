//! "Who is in the group, and which keys are current": the group controller / key server. The engine decides and does
//! no I/O; with the feature `daemon` the shell around it is here too.
#![forbid(unsafe_code)]

#[cfg(feature = "daemon")]
pub mod audit;
#[cfg(feature = "daemon")]
pub mod confine;
#[cfg(feature = "daemon")]
pub mod convert;
#[cfg(feature = "daemon")]
pub mod daemon;
/// The sans-IO key server.
pub mod engine;
#[cfg(feature = "daemon")]
mod inbox;
#[cfg(feature = "daemon")]
mod keeper;
#[cfg(feature = "daemon")]
#[cfg(feature = "daemon")]
mod reload;
#[cfg(feature = "daemon")]
pub mod state;
#[cfg(feature = "daemon")]
pub mod store;
#[cfg(feature = "daemon")]
mod teller;
