//! Programs nobody here wrote, against ours. A test whose program is not installed says so.

mod fragments;
mod ground;
mod ipv6;
mod libreswan;
mod nat;
mod ours;
mod scan;
mod strongswan;
mod table;
mod tshark;
