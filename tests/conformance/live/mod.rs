//! The engines against peers played by hand, datagram by datagram: what is answered, what is not, and what is kept.
//!
//! [`gcks`] and [`gm`] hold an engine with its jobs run at once; [`hand`] plays phase 1 and PULL from the other side and
//! may do everything wrong.

mod approved;
mod gcks;
mod gm;
mod hand;
mod member;
mod member_pull;
mod server_half_open;
mod server_phase1;
mod server_pull;

use std::net::SocketAddr;

use bytes::Bytes;
use gdoi_proto::header::Header;
use gdoi_proto::registry::ExchangeType;

/// An address and port.
fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn header(octets: &[u8]) -> Header {
    Header::decode(octets).expect("a header")
}

/// Exchange types of some datagrams.
fn exchanges(datagrams: &[Bytes]) -> Vec<ExchangeType> {
    datagrams.iter().map(|octets| header(octets).exchange).collect()
}

/// The only datagram.
fn only(datagrams: Vec<Bytes>) -> Bytes {
    assert_eq!(datagrams.len(), 1, "{:?}", exchanges(&datagrams));
    datagrams.into_iter().next().unwrap_or_default()
}
