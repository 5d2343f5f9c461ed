//! Key server and members as processes on loopback, over real sockets, with lives of a lab.

mod certificates;
mod confine;
mod crowd;
mod gateways;
mod hostile_server;
mod kernel;
mod member_reload;
mod metrics;
mod multicast;
mod refusals;
mod rekey;
mod reload;
mod restart;
mod restore;
mod rollover;
mod sites;
mod spoofed;
mod supervised;
mod support;
mod trace;
mod traffic;
