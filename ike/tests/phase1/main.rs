//! Phase 1 against itself with real crypto: both modes, every method.

mod aggressive_mode;
mod certificates;
mod main_mode;
mod pair;
mod signatures;
