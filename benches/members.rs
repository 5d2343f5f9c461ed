//! Many members: memory of their records, and the time to have them back at start. It prints a table of its own,
//! because resident memory is a matter of the whole process. `--test` looks at few members.

mod support;

use std::sync::Arc;

use ike::crypto::provider::{Random, default_provider};
use runtime::clock::Clock;

use gcks::engine::KeyServer;
use gcks::engine::durable::Row;
use support::{NOW, Server};

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let sizes: &[u32] = if quick { &[100] } else { &[10_000, 100_000] };
    let clock = Clock::start();
    println!("{:>8}  {:>18}  {:>14}  {:>16}", "members", "octets each", "restored in", "to the first push");
    for members in sizes {
        let mut rows: Vec<Row> = (0..*members).map(support::member_row).collect();
        rows.extend(Server::new(Vec::new()).rows);
        let (before, begin) = (resident(), clock.now().at);
        let server =
            KeyServer::new(support::settings(), rows, NOW, Box::new(Random(Arc::clone(&default_provider()))));
        let restored = clock.now().at.since(begin);
        let octets = resident().saturating_sub(before);
        assert!(server.is_ok_and(|server| server.groups()["g1"].members().count() == *members as usize));

        let mut server = Server::with_members(*members);
        let begin = clock.now().at;
        server.rekey();
        let rekeyed = clock.now().at.since(begin);
        println!("{members:>8}  {:>18}  {restored:>14.3?}  {rekeyed:>16.3?}", octets / u64::from(*members));
    }
}

/// Resident octets of this process, from /proc/self/statm in pages of 4096 octets.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    let pages: u64 = text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number");
    pages * 4096
}
