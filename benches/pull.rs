//! GROUPKEY-PULL: the two messages of either side without the group, and through the whole key server with its group,
//! its rows and its events.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use gcks::engine::group::Terms;
use gcks::engine::io::Input;
use gcks::engine::pull as server;
use gdoi_proto::header::Header;
use gdoi_proto::ids::{GroupId, SeqNumber};
use gdoi_proto::policy::{Carriage, SignatureAlgorithm};
use gm::engine::pull as member;
use gm::engine::settings::VpnSettings;
use ike::crypto::DhGroup;
use ike::crypto::provider::{Random, default_provider, run};
use ike::io::Datagram;
use ike::phase1::{Ends, Initiator, Step};
use ike::sa::IkeSa;

use support::{MainMode, NOW, SERVER, Server};

fn main() {
    divan::main();
}

fn terms() -> Arc<Terms> {
    let (policy, keys) = support::policy(SignatureAlgorithm::Ecdsa256, 256, vec![8; 91]);
    Arc::new(Terms {
        sa: policy.write(Carriage::Pull),
        policy,
        seq: Some(SeqNumber(7)),
        mark: Default::default(),
        untold: 0,
        made: Default::default(),
        keys,
    })
}

/// Both sides of one PULL.
struct Pair {
    random: Random,
    terms: Arc<Terms>,
    ours: IkeSa,
    theirs: IkeSa,
}

impl Pair {
    fn new() -> Pair {
        let (_, ours, theirs) = MainMode::whole(DhGroup::Curve25519);
        Pair { random: Random(default_provider()), terms: terms(), ours, theirs }
    }

    fn ask(&mut self) -> (member::Pull, Bytes) {
        let vpn = VpnSettings { group: GroupId::number(1), ..VpnSettings::default() };
        member::Pull::start(Arc::new(vpn), &mut self.ours, true, NOW.at, &mut self.random)
    }

    fn offer(&mut self, first: &[u8]) -> (server::Pull, Bytes) {
        let header = Header::decode(first).expect("a header");
        let (mut pull, _) = server::Pull::start(&self.theirs, NOW.at, &header, first).expect("message 1");
        let offer = pull.offer(&self.theirs, GroupId::number(1), Arc::clone(&self.terms), &mut self.random);
        (pull, offer.expect("message 2"))
    }

    fn accept(&mut self, pull: &mut member::Pull, octets: &[u8]) -> member::Progress {
        let header = Header::decode(octets).expect("a header");
        pull.on_message(&self.ours, NOW.at, &header, octets, &mut self.random).expect("message 2 or 4")
    }

    fn deliver(&mut self, pull: &mut server::Pull, third: &[u8]) -> Bytes {
        let header = Header::decode(third).expect("a header");
        pull.on_message(&self.theirs, &header, third).expect("message 3");
        pull.deliver(&self.theirs, self.terms.keys.write(&self.terms.policy)).expect("message 4")
    }
}

fn third(progress: member::Progress) -> Bytes {
    let member::Progress::Send(third) = progress else { panic!("message 3 is due") };
    third
}

/// Takes message 1, makes 2.
#[divan::bench]
fn server_1_to_2(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new();
    let (_, first) = pair.ask();
    bencher.bench_local(|| pair.offer(&first));
}

/// Takes message 3, makes 4.
#[divan::bench]
fn server_3_to_4(bencher: Bencher<'_, '_>) {
    let inputs = || {
        let mut pair = Pair::new();
        let (mut asking, first) = pair.ask();
        let (pull, second) = pair.offer(&first);
        let third = third(pair.accept(&mut asking, &second));
        (pair, pull, third)
    };
    bencher.with_inputs(inputs).bench_local_values(|(mut pair, mut pull, third)| {
        let fourth = pair.deliver(&mut pull, &third);
        (pair, pull, fourth)
    });
}

/// Makes message 1, takes 2 and 4, makes 3. The server's two messages are included here and measured above.
#[divan::bench]
fn both_sides(bencher: Bencher<'_, '_>) {
    let mut pair = Pair::new();
    bencher.bench_local(|| {
        let (mut asking, first) = pair.ask();
        let (mut pull, second) = pair.offer(&first);
        let third = third(pair.accept(&mut asking, &second));
        let fourth = pair.deliver(&mut pull, &third);
        pair.accept(&mut asking, &fourth)
    });
}

/// A whole registration by main mode with group 31 and PULL, in the key server's engine and a member: sockets and disk
/// are missing, crypto is not. `members` are registered already.
#[divan::bench(args = [0, 10_000])]
fn registration(bencher: Bencher<'_, '_>, members: u32) {
    let provider = default_provider();
    let mut random = Random(Arc::clone(&provider));
    let mut server = Server::with_members(members);
    let mut index = members;
    bencher.bench_local(|| {
        index += 1;
        let peer = support::address(index);
        let tell = |server: &mut Server, octets: Bytes| {
            server.handle(Input::Datagram(Datagram { local: SERVER, peer, octets }));
            server.rows.clear();
            server.transmits.pop().expect("an answer").octets
        };
        let policy = support::peer_policy(DhGroup::Curve25519);
        let (mut initiator, mut steps) =
            Initiator::start(policy, Ends { local: peer, peer: SERVER }, false, NOW.at, &mut random);
        let mut sa = loop {
            match steps.pop().expect("a step") {
                Step::Send(octets) => {
                    let answer = tell(&mut server, octets);
                    let header = Header::decode(&answer).expect("a header");
                    steps = initiator.on_message(NOW, &header, &answer, &mut random).expect("an answer");
                }
                Step::Run(job) => {
                    let done = run(provider.as_ref(), job);
                    steps = initiator.on_done(NOW, done, &mut random).expect("our own job");
                }
                Step::Established(done) => break done.sa,
            }
        };
        let vpn = VpnSettings { group: GroupId::number(1), ..VpnSettings::default() };
        let (mut pull, first) = member::Pull::start(Arc::new(vpn), &mut sa, true, NOW.at, &mut random);
        let second = tell(&mut server, first);
        let header = Header::decode(&second).expect("a header");
        let progress = pull.on_message(&sa, NOW.at, &header, &second, &mut random).expect("message 2");
        tell(&mut server, third(progress))
    });
}
