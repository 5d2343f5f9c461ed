//! What the system wants of a daemon.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// A wish of the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: stop cleanly.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The signals of this process. From the first value on, none of them ends it by itself.
#[derive(Debug)]
pub struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hang_up: Stream,
}

impl Signals {
    /// Takes the signals over. Must run within a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The next wish. Safe to drop and call again.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal as Raw, getpid, kill_process};

    #[tokio::test]
    async fn a_hang_up_means_reload_and_a_terminate_means_stop() {
        let mut signals = Signals::listen().unwrap();
        kill_process(getpid(), Raw::HUP).unwrap();
        assert_eq!(signals.next().await, Signal::Reload);
        kill_process(getpid(), Raw::TERM).unwrap();
        assert_eq!(signals.next().await, Signal::Stop);
    }
}
