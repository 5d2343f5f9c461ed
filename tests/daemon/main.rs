//! Key server and members as processes on loopback, over real sockets, with lives of a lab.

mod certificates;
mod kernel;
mod multicast;
mod refusals;
mod rekey;
mod restart;
mod restore;
mod rollover;
mod sites;
mod spoofed;
mod support;
mod traffic;
