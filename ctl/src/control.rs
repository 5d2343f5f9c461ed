//! What an operator asks of a daemon, and the answers. One JSON object per line on a Unix stream socket.
//!
//! ```text
//! gdoictl                                       gcksd or gmd
//!   {"request":"rekey","group":"g1",…}   -->
//!                                        <--   {"reply":"done","text":"rekey SEQ 4 …","seq":4}
//!   {"request":"watch"}                  -->
//!                                        <--   {"reply":"done",…}
//!                                        <--   {"time":"…","event":"ack_received",…}   until the client closes
//! ```

use std::io;

use serde::{Deserialize, Serialize};

pub use crate::observe::Snapshot;
pub use crate::plan::Plan;

/// Longest request a daemon reads, in octets with its line end.
pub const MAX_REQUEST: usize = 64 * 1024;

/// Default control socket of the key server.
pub const GCKS_CONTROL: &str = "/run/gcks/control.sock";
/// Default control socket of the member.
pub const GM_CONTROL: &str = "/run/gm/control.sock";

/// A wish. JSON: an object whose `request` names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What is: answered by [`Reply::Snapshot`].
    Snapshot,
    /// The same without members and phase 1s one by one, for who only counts: answered by [`Reply::Snapshot`]. Never has
    /// key octets.
    Summary,
    /// Key server: replace keys now.
    Rekey {
        /// Name or number.
        group: String,
        /// New TEKs.
        tek: bool,
        /// New KEK.
        kek: bool,
    },
    /// Key server: forget all members; they register again.
    ClearMembers {
        /// Name or number.
        group: String,
    },
    /// Key server: counters to zero, of all groups when none is named.
    ClearStatistics {
        /// Name or number.
        group: Option<String>,
    },
    /// Key server: take a member out of the list.
    Expel {
        /// Name or number.
        group: String,
        /// Address, address:port or identity as shown.
        member: String,
    },
    /// Key server: read every page and record of the stored state.
    StateVerify,
    /// Key server: copy the stored state into a new file.
    StateBackup {
        /// Its absolute path.
        file: String,
    },
    /// Key server: seal every record again, under the `state-key` the configuration names now.
    StateReseal,
    /// Key server: the end of the audit log, answered by [`Reply::Audit`].
    Audit {
        /// Records at most.
        last: u64,
        /// Check every hash and signature of the whole log too.
        verify: bool,
    },
    /// Key server: what a member may and has, answered by [`Reply::Explained`].
    Explain {
        /// Address, address:port or identity.
        member: String,
        /// Name or number; none: every group its gateway is in.
        group: Option<String>,
    },
    /// Key server: take a member out, refuse its identity from now on, and change the keys.
    Revoke {
        /// Name or number.
        group: String,
        /// Address, address:port or identity as shown.
        member: String,
    },
    /// Key server: let a revoked identity register again.
    Unrevoke {
        /// Name or number.
        group: String,
        /// Identity as shown.
        member: String,
    },
    /// Member: register again now, all VPNs when none is named.
    Register {
        /// Name.
        vpn: Option<String>,
    },
    /// Key server: what a configuration would change, answered by [`Reply::Plan`].
    Plan {
        /// Absolute path of the file, read by the daemon.
        file: String,
    },
    /// Use a configuration; a key server answers by [`Reply::Plan`], a member by [`Reply::Done`].
    Apply {
        /// Absolute path of the file; none: the one the daemon was started with.
        file: Option<String>,
    },
    /// [`Reply::Done`], then events from that moment on, one [`crate::event::Stamped`] per line, until the client closes.
    Watch,
    /// Key server in a lab: [`Reply::Done`], then datagrams from that moment on, one [`crate::tap::Tapped`] per line, until the
    /// client closes.
    Tap,
    /// Name and version of the daemon: answered by [`Reply::Done`].
    Version,
}

/// An answer. JSON: an object whose `reply` names it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To [`Request::Snapshot`].
    Snapshot(Box<Snapshot>),
    /// To [`Request::Plan`] and [`Request::Apply`].
    Plan(Box<Plan>),
    /// It is done, or on its way.
    Done {
        /// A line for the operator.
        text: String,
        /// Number of the last PUSH it started, if one.
        seq: Option<u32>,
        /// SPI of the KEK that protects that PUSH.
        #[serde(default)]
        kek_spi: Option<String>,
        /// Key server: the rekey it started or queued, as [`crate::event::Event::RekeyStarted`] counts it.
        #[serde(default)]
        rekey: Option<u64>,
    },
    /// To [`Request::Audit`].
    Audit {
        /// Lines of the log, oldest first, as they are in the file.
        records: Vec<String>,
        /// What the check found, when one was asked for.
        verified: Option<String>,
    },
    /// To [`Request::Explain`].
    Explained {
        /// In order; the first that says no is the last.
        steps: Vec<Explanation>,
    },
    /// It is not done.
    Refused {
        /// Why.
        reason: String,
    },
}

/// One step of [`Reply::Explained`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The group, for steps within one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `gateway`, `phase 1`, `identity`, `authorisation`, `threshold`, `policy`, `sender ID` or `keys`.
    pub step: String,
    /// False: here it ends.
    pub yes: bool,
    /// Why, in words.
    pub text: String,
    /// Line of the statement that says so, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

impl Reply {
    /// Done, and no rekey began.
    pub fn done(text: impl Into<String>) -> Reply {
        Reply::Done { text: text.into(), seq: None, kek_spi: None, rekey: None }
    }
}

/// `message` as one line with its end.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it cannot be written as JSON.
pub fn to_line<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    // Strings escape their line ends in JSON, so the octet 0x0a ends the object and nothing else.
    let mut line = serde_json::to_vec(message).map_err(io::Error::from)?;
    line.push(b'\n');
    Ok(line)
}

/// A line, with or without its end, as a message.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] when it is not such a message; the text says at which column and what is wrong.
pub fn from_line<'a, T: Deserialize<'a>>(line: &'a [u8]) -> io::Result<T> {
    serde_json::from_slice(line)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::{GmSnapshot, Snapshot};

    #[test]
    fn every_request_survives_its_line() {
        let text = |text: &str| text.to_owned();
        for request in [
            Request::Snapshot,
            Request::Summary,
            Request::Rekey { group: text("g\n1"), tek: true, kek: false },
            Request::ClearMembers { group: text("1") },
            Request::ClearStatistics { group: None },
            Request::Expel { group: text("g1"), member: text("10.0.0.1:848") },
            Request::StateVerify,
            Request::StateBackup { file: text("/f") },
            Request::StateReseal,
            Request::Audit { last: 3, verify: true },
            Request::Explain { member: text("m"), group: None },
            Request::Revoke { group: text("g1"), member: text("gm7.example") },
            Request::Unrevoke { group: text("g1"), member: text("gm7.example") },
            Request::Register { vpn: Some(text("v")) },
            Request::Plan { file: text("/a/b") },
            Request::Apply { file: None },
            Request::Watch,
            Request::Version,
        ] {
            let line = to_line(&request).unwrap();
            assert_eq!(line.iter().filter(|octet| **octet == b'\n').count(), 1);
            assert_eq!(from_line::<Request>(&line).unwrap(), request);
        }
    }

    #[test]
    fn every_reply_survives_its_line() {
        for reply in [
            Reply::Snapshot(Box::new(Snapshot::Gm(GmSnapshot::default()))),
            Reply::Plan(Box::new(Plan { applied: true, ..Plan::default() })),
            Reply::Done {
                text: "done".to_owned(),
                seq: Some(4),
                kek_spi: Some("0x0a".to_owned()),
                rekey: Some(2),
            },
            Reply::Audit { records: vec!["{}".to_owned()], verified: Some("good".to_owned()) },
            Reply::Explained {
                steps: vec![Explanation { step: "keys".to_owned(), ..Explanation::default() }],
            },
            Reply::Refused { reason: "no such group".to_owned() },
        ] {
            assert_eq!(from_line::<Reply>(&to_line(&reply).unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn a_misspelt_request_is_refused_with_its_place() {
        let error = from_line::<Request>(br#"{"request":"rekye"}"#).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(error.to_string().contains("rekye"), "{error}");
    }
}
