//! ESP (RFC 4303) as arithmetic over the caller's buffers: nothing is allocated, the payload is never copied.

mod keys;
mod window;

pub use keys::{KeyError, Keys, MAX_ICV, Shape};
pub use window::{Replay, Window};
