//! Phase 1 against itself with real crypto: both modes, every method.

mod aggressive_mode;
// Signing with RSA: the portable provider cannot.
#[cfg(feature = "aws-lc")]
mod certificates;
mod main_mode;
mod nat_traversal;
mod pair;
#[cfg(feature = "aws-lc")]
mod signatures;
