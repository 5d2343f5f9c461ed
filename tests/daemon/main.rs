//! Key server and members as processes on loopback, over real sockets, with lives of a lab.

mod refusals;
mod rekey;
mod restart;
mod support;
mod traffic;
