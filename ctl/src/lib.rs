//! The management vocabulary both daemons speak: what happens ([`event`]), what is ([`observe`]), what an operator
//! asks for ([`control`]), what a lab shows ([`tap`]), and a blocking client of the local sockets ([`client`]).
//!
//! Everything here is text, numbers and lists: no key type crosses this crate, so none can leak through it. A key is
//! its length and a fingerprint; `key_hex` is filled only by a daemon started with `--show-keys` or `--lab`, on the control
//! socket.
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
pub mod durations;
pub mod event;
pub mod observe;
pub mod plan;
pub mod tap;
pub mod time;
pub mod traffic;
