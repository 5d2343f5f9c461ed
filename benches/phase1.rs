//! Main mode per group and role. The messages of one role add up: the key server's are `server_1_to_4` and
//! `server_5_to_6`, the member's `member_1_to_3`, `member_4_to_5` and `member_6`. Diffie-Hellman is included, since a
//! core has to do it; the engine only asks for it.

mod support;

use divan::Bencher;
use ike::crypto::DhGroup;

use support::MainMode;

fn main() {
    divan::main();
}

const GROUPS: [DhGroup; 7] = [
    DhGroup::Modp2048,
    DhGroup::Modp3072,
    DhGroup::Modp4096,
    DhGroup::Ecp256,
    DhGroup::Ecp384,
    DhGroup::Ecp521,
    DhGroup::Curve25519,
];

/// Takes messages 1 and 3, makes 2 and 4: a fresh key pair and the agreement.
#[divan::bench(args = GROUPS)]
fn server_1_to_4(bencher: Bencher<'_, '_>, group: DhGroup) {
    let inputs = || {
        let (mut mode, first) = MainMode::start(group);
        let (_, second) = mode.respond(&first);
        let third = mode.at_member(&second);
        (mode, first, third)
    };
    bencher.with_inputs(inputs).bench_local_values(|(mut mode, first, third)| {
        let (mut responder, second) = mode.respond(&first);
        let fourth = mode.at_server(&mut responder, &third);
        (mode, responder, second, fourth)
    });
}

/// Takes message 5, makes 6 and the SA.
#[divan::bench(args = [DhGroup::Curve25519])]
fn server_5_to_6(bencher: Bencher<'_, '_>, group: DhGroup) {
    let inputs = || {
        let (mut mode, first) = MainMode::start(group);
        let (mut responder, second) = mode.respond(&first);
        let third = mode.at_member(&second);
        let fourth = mode.at_server(&mut responder, &third);
        let fifth = mode.at_member(&fourth);
        (mode, responder, fifth)
    };
    bencher.with_inputs(inputs).bench_local_values(|(mut mode, mut responder, fifth)| {
        let done = mode.finish(&mut responder, &fifth);
        (mode, responder, done)
    });
}

/// Makes message 1, takes 2, makes 3: a fresh key pair.
#[divan::bench(args = GROUPS)]
fn member_1_to_3(bencher: Bencher<'_, '_>, group: DhGroup) {
    bencher.bench_local(|| {
        let (mut mode, first) = MainMode::start(group);
        // Message 2 is a microsecond of the server's.
        let (_, second) = mode.respond(&first);
        mode.at_member(&second)
    });
}

/// Takes message 4, makes 5: the agreement.
#[divan::bench(args = GROUPS)]
fn member_4_to_5(bencher: Bencher<'_, '_>, group: DhGroup) {
    let inputs = || {
        let (mut mode, first) = MainMode::start(group);
        let (mut responder, second) = mode.respond(&first);
        let third = mode.at_member(&second);
        let fourth = mode.at_server(&mut responder, &third);
        (mode, fourth)
    };
    bencher.with_inputs(inputs).bench_local_values(|(mut mode, fourth)| (mode.at_member(&fourth), mode));
}

/// Takes message 6: the SA.
#[divan::bench(args = [DhGroup::Curve25519])]
fn member_6(bencher: Bencher<'_, '_>, group: DhGroup) {
    let inputs = || {
        let (mut mode, first) = MainMode::start(group);
        let (mut responder, second) = mode.respond(&first);
        let third = mode.at_member(&second);
        let fourth = mode.at_server(&mut responder, &third);
        let fifth = mode.at_member(&fourth);
        let (sixth, _) = mode.finish(&mut responder, &fifth);
        (mode, sixth)
    };
    bencher.with_inputs(inputs).bench_local_values(|(mut mode, sixth)| (mode.end(&sixth), mode));
}
