//! The simulator: the engines of key server and members with one clock, a lossy seeded network and a deterministic
//! crypto provider. No daemon code, no sockets, no real time.
#![forbid(unsafe_code)]

pub mod net;
pub mod provider;
pub mod trace;
pub mod world;

pub use net::Weather;
pub use world::{Timing, World};
