//! The octets: worked examples of an independent program, and recorded exchanges of foreign peers.

mod captures;
mod expected;
mod live;
mod machines;
mod observer;
mod phase1;
mod pull_push;
mod rejects;
mod requirements;
mod support;
