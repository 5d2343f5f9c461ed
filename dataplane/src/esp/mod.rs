//! ESP (RFC 4303) as arithmetic over the caller's buffers: nothing is allocated, the payload is never copied.

mod keys;
mod open;
mod packet;
mod seal;
#[cfg(test)]
mod tests;
mod window;

pub use keys::{KeyError, Keys, MAX_ICV, Shape};
pub use open::{OpenError, Opened, Opening, Refused, open};
pub use packet::{Carrier, DfBit, HEADROOM, Peeked, TAILROOM, UDP_PORT, overhead, peek, room};
pub(crate) use seal::seal_read;
pub use seal::{SealError, Sealing, seal};
pub use window::{Replay, Window};
