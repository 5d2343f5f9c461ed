//! `gdoictl server trace`: one member's protocol events as they happen.

use ctl::client::ClientError;
use ctl::event::Stamped;
use ctl::observe::GcksSnapshot;

use crate::args::TraceArgs;
use crate::connect::Daemon;
use crate::watch::{json_line, line};
use crate::{Failure, say};

/// Fields of an event that name who it is about.
const NAMING: [&str; 6] = ["member", "identity", "peer", "address", "from", "to"];

/// Prints the events of one member until the daemon or the reader ends.
///
/// # Errors
/// When the daemon cannot be reached or the connection breaks; [`Failure::Refused`] for `--pcap`.
pub fn run(daemon: &Daemon, options: &TraceArgs, json: bool) -> Result<(), Failure> {
    if options.pcap.is_some() {
        let reason = "not supported: --pcap; no daemon hands out decrypted messages";
        return Err(Failure::Refused(reason.to_owned()));
    }
    let events = daemon.watch()?;
    let traced = Traced::new(&options.member, &daemon.gcks()?);
    for event in events {
        match event {
            Ok(stamped) if traced.is_meant(&stamped) => {
                say(&if json { json_line(&stamped)? } else { line(&stamped) })?;
            }
            Ok(_) => {}
            // An event of a newer daemon: the rest still counts.
            Err(ClientError::NotUnderstood(reason)) => eprintln!("gdoictl: event not understood: {reason}"),
            Err(error) => return Err(error.into()),
        }
    }
    Err(Failure::Unreachable("the daemon stopped".to_owned()))
}

/// Who is traced: by every name it has now.
struct Traced {
    names: Vec<String>,
}

impl Traced {
    /// `member` as typed, and, when it is registered, by identity and address.
    fn new(member: &str, snapshot: &GcksSnapshot) -> Traced {
        let mut names = vec![member.to_owned()];
        for it in snapshot.groups.iter().flat_map(|group| &group.members) {
            if it.identity == member || is_at(&it.address, member) {
                names.extend([it.identity.clone(), it.address.clone()]);
            }
        }
        Traced { names }
    }

    fn is_meant(&self, stamped: &Stamped) -> bool {
        let event = serde_json::to_value(&stamped.event).unwrap_or_default();
        let texts = NAMING.iter().filter_map(|field| event.get(field)?.as_str());
        let meant = |text: &str| self.names.iter().any(|name| text == name || is_at(text, name));
        texts.into_iter().any(meant)
    }
}

/// True when `address` (address:port) is `wanted`, an address with or without port.
pub fn is_at(address: &str, wanted: &str) -> bool {
    let ip = |text: &str| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip());
    address == wanted || (ip(address).is_some() && ip(address) == wanted.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctl::event::Event;
    use ctl::observe::{GroupView, MemberView};

    #[test]
    fn a_member_is_traced_by_identity_and_address_whichever_was_typed() {
        let member = MemberView {
            identity: "gm1.example".to_owned(),
            address: "10.0.0.1:848".to_owned(),
            ..MemberView::default()
        };
        let group = GroupView { members: vec![member], ..GroupView::default() };
        let snapshot = GcksSnapshot { groups: vec![group], ..GcksSnapshot::default() };
        let dropped = |peer: &str| {
            Stamped::new(
                0,
                Event::MessageDropped { peer: peer.to_owned(), reason: "10.0.0.1:848".to_owned() },
            )
        };
        let recovered = |member: &str| {
            let (group, member, gateway) = ("g".to_owned(), member.to_owned(), String::new());
            Stamped::new(0, Event::MemberRecovered { group, member, missed: 1, gateway })
        };
        for typed in ["gm1.example", "10.0.0.1", "10.0.0.1:848"] {
            let traced = Traced::new(typed, &snapshot);
            assert!(traced.is_meant(&dropped("10.0.0.1:848")), "{typed}");
            assert!(traced.is_meant(&recovered("gm1.example")), "{typed}");
            assert!(!traced.is_meant(&dropped("10.0.0.2:848")), "{typed}");
            assert!(!traced.is_meant(&recovered("gm2.example")), "{typed}");
            assert!(!traced.is_meant(&Stamped::new(0, Event::LabMode)), "{typed}");
        }
        // Somebody who is not registered yet.
        assert!(Traced::new("10.0.0.9", &snapshot).is_meant(&dropped("10.0.0.9:4500")));
    }
}
