//! Key server and members as processes on loopback, over real sockets, with lives of a lab.

mod refusals;
mod rekey;
mod restart;
mod restore;
mod support;
mod traffic;
