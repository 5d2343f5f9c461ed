//! `gdoictl server trace`: one member's protocol events as they happen and, in a lab, its messages in clear.

mod capture;
mod opened;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ctl::client::ClientError;
use ctl::event::{Event, Stamped};
use ctl::observe::GcksSnapshot;
use ctl::tap::Tapped;

use capture::Capture;
use opened::Opened;

use crate::args::TraceArgs;
use crate::connect::Daemon;
use crate::watch::{json_line, line};
use crate::{Failure, say};

/// Fields of an event that name who it is about.
const NAMING: [&str; 6] = ["member", "identity", "peer", "address", "from", "to"];

/// What the daemon tells.
enum Told {
    Event(Stamped),
    Datagram(Tapped),
    /// One of both streams ended: why, when the daemon did not just stop.
    Over(Option<ClientError>),
}

/// Prints the events of one member until the daemon or the reader ends, and writes its messages into the file of `--pcap`.
///
/// # Errors
/// When the daemon cannot be reached or the connection breaks; [`Failure::Refused`] for `--pcap` when the key server runs
/// outside a lab or the file cannot be written.
pub fn run(daemon: &Daemon, options: &TraceArgs, json: bool) -> Result<(), Failure> {
    let (sender, told) = channel();
    if options.pcap.is_some() {
        listen(daemon.tap()?, sender.clone(), Told::Datagram);
    }
    listen(daemon.watch()?, sender, Told::Event);
    let capture = options.pcap.as_ref().map(|path| Capture::create(path)).transpose();
    let capture = capture.map_err(Failure::Refused)?;
    let traced = Traced::new(&options.member, &daemon.gcks()?);
    follow(&told, traced, capture, json)
}

/// Hands on what a stream brings.
fn listen<T: Send + 'static>(
    stream: impl Iterator<Item = Result<T, ClientError>> + Send + 'static,
    sender: Sender<Told>,
    told: fn(T) -> Told,
) {
    thread::spawn(move || {
        for item in stream {
            let told = match item {
                Ok(item) => told(item),
                // Of a newer daemon: the rest still counts.
                Err(ClientError::NotUnderstood(reason)) => {
                    eprintln!("gdoictl: line not understood: {reason}");
                    continue;
                }
                Err(error) => Told::Over(Some(error)),
            };
            if sender.send(told).is_err() {
                return;
            }
        }
        let _ = sender.send(Told::Over(None));
    });
}

fn follow(
    told: &Receiver<Told>,
    mut traced: Traced,
    mut capture: Option<Capture>,
    json: bool,
) -> Result<(), Failure> {
    let mut opened = Opened::default();
    for told in told {
        match told {
            Told::Event(stamped) => {
                traced.learn(&stamped.event);
                if traced.is_meant(&stamped) {
                    say(&if json { json_line(&stamped)? } else { line(&stamped) })?;
                }
            }
            // Everybody's, since a member may be known by its identity only when its negotiation is over.
            Told::Datagram(tapped) => {
                for shown in opened.take(tapped) {
                    if let Some(capture) = capture.as_mut().filter(|_| traced.is_at_either_end(&shown.tapped))
                    {
                        capture.write(&shown).map_err(Failure::Refused)?;
                    }
                }
            }
            Told::Over(Some(error)) => return Err(error.into()),
            Told::Over(None) => break,
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

    /// A peer turns out to be the member.
    fn learn(&mut self, event: &Event) {
        if let Event::Phase1Established { peer, identity, .. } = event
            && self.names.contains(identity)
            && !self.names.contains(peer)
        {
            self.names.push(peer.clone());
        }
    }

    /// True for a message of the member, or to everybody.
    fn is_at_either_end(&self, tapped: &Tapped) -> bool {
        let (from, to) = (tapped.from.to_string(), tapped.to.to_string());
        tapped.to.ip().is_multicast() || self.names.iter().any(|name| is_at(&from, name) || is_at(&to, name))
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
        // Known by its identity only, until phase 1 says where it is.
        let mut traced = Traced::new("gm2.example", &snapshot);
        assert!(!traced.is_meant(&dropped("10.0.0.2:848")));
        traced.learn(&Event::Phase1Established {
            peer: "10.0.0.2:848".to_owned(),
            identity: "gm2.example".to_owned(),
            suite: String::new(),
            role: "responder".to_owned(),
        });
        let way = |from: &str| {
            Tapped::new(0, (from.parse().unwrap(), "10.0.0.254:848".parse().unwrap()), &[], None)
        };
        assert!(traced.is_meant(&dropped("10.0.0.2:848")) && traced.is_at_either_end(&way("10.0.0.2:848")));
        assert!(!traced.is_at_either_end(&way("10.0.0.1:848")));
        // Somebody who is not registered yet.
        assert!(Traced::new("10.0.0.9", &snapshot).is_meant(&dropped("10.0.0.9:4500")));
    }
}
