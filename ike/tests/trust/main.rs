//! Certificates of peers: every way a chain or a name can be wrong, each refused by the rule that says so.

mod chain;
mod hostile;
mod identity;
mod pki;
mod revocation;
mod rollover;
