//! "Who are you, and how do we talk privately": IKEv1 phase 1 and the protected exchanges of GDOI. No I/O, no
//! clock, no asymmetric crypto inline: state machines emit [`crypto::provider::Job`]s and take their results.
//!
//! ```text
//! GM                                         GCKS
//!  1  HDR, SA, VID                  -->                  clear
//!                                   <--  2  HDR, SA, VID
//!  3  HDR, KE, Ni                   -->
//!                                   <--  4  HDR, KE, Nr
//!  5  HDR*, IDii, HASH_I [, N]      -->                  encrypted
//!                                   <--  6  HDR*, IDir, HASH_R
//! ```
//!
//! Where to look: [`phase1`] the six messages, [`sa`] what they leave behind, [`protect`] sealing and opening of
//! everything after them (PULL, PUSH, acknowledgement, informational), [`trust`] certificates and the names in them,
//! [`dpd`] when a silent peer is given up, [`crypto`] the suite and its providers, [`approved`] what `approved-only` leaves of it. The ladder is main mode with pre-shared
//! keys; [`phase1`] has the others.
#![deny(unsafe_code)]

pub mod approved;
pub mod crypto;
pub mod dpd;
pub mod fragment;
pub mod identity;
pub mod io;
pub mod phase1;
pub mod protect;
pub mod retransmit;
pub mod sa;
pub mod trust;
