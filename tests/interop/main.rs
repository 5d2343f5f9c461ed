//! Programs nobody here wrote, against ours. A test whose program is not installed prints a line that begins with SKIP.

mod fragments;
mod ground;
mod ipv6;
mod libreswan;
mod nat;
mod scan;
mod strongswan;
mod table;
mod tshark;
