//! The tokio shell both daemons share. Each piece stands alone; the loop that joins them is the daemon's own:
//!
//! ```text
//! network ──> udp threads ──┐                             ┌──> udp::Sockets::send, send_many
//! operators ──> control ────┼──> the daemon's one loop ───┼──> workers::Workers::submit
//! workers ──> results ──────┤    (engine, timers, store)  └──> hub::Hub::publish ──> log, watch, observe
//! signals ──────────────────┘
//! ```
//!
//! Where to look: [`clock`] the only reader of the time, [`udp`] the sockets and [`incoming`] what waits in them, [`workers`] asymmetric crypto on all
//! cores, [`hub`] events to everyone who listens, [`log`] their lines, [`control`] and [`observe`] the local sockets
//! ([`local`] binds them), [`signals`] what the system wants, [`supervisor`]
//! what the service manager is told, [`lock`] one daemon per state directory,
//! [`confine`] what they give up.
#![forbid(unsafe_code)]

pub mod clock;
pub mod confine;
pub mod control;
pub mod hub;
pub mod incoming;
pub mod local;
pub mod lock;
pub mod log;
pub mod observe;
pub mod signals;
pub mod supervisor;
pub mod udp;
pub mod workers;
