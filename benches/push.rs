//! GROUPKEY-PUSH: building and signing one, its way to many members through engine and socket, its acknowledgements.

mod support;

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use gcks::engine::io::Input;
use gdoi_proto::ids::{KekSpi, SeqNumber};
use gdoi_proto::policy::{AckRequest, Carriage, SignatureAlgorithm, SignatureHash};
use gdoi_proto::secret::SecretBytes;
use ike::crypto::Cipher;
use ike::crypto::cipher::CipherKey;
use ike::crypto::provider::default_provider;
use ike::io::Datagram;
use ike::protect::ack::AckKey;
use ike::protect::push::{KekCipherKey, PushContent, Unsigned};
use runtime::udp::{Listen, Sockets};

use support::{SERVER, Server};

fn main() {
    divan::main();
}

const KEYS: [(SignatureAlgorithm, u16, usize); 5] = [
    (SignatureAlgorithm::Rsa, 2048, 256),
    (SignatureAlgorithm::Rsa, 3072, 384),
    (SignatureAlgorithm::Rsa, 4096, 512),
    (SignatureAlgorithm::Ecdsa256, 256, 64),
    (SignatureAlgorithm::Ecdsa384, 384, 96),
];

/// Policy and keys to payloads, layout, signature, encryption: once per rekey, whatever the number of members.
#[divan::bench(args = [0, 1, 2, 3, 4], sample_count = 50)]
fn build_and_sign(bencher: Bencher<'_, '_>, which: usize) {
    let (algorithm, bits, octets) = KEYS[which];
    let provider = default_provider();
    let pkcs8 = provider.generate_signing_key(algorithm, bits).expect("a key");
    let signer = provider.signer(algorithm, &pkcs8).expect("a signer");
    let (policy, keys) = support::policy(algorithm, bits, signer.public_key().to_vec());
    let hash = match algorithm {
        SignatureAlgorithm::Ecdsa384 => SignatureHash::Sha384,
        _ => SignatureHash::Sha256,
    };
    let spi = KekSpi([7; 16]);
    let key = CipherKey::new(Cipher::Aes256Cbc, SecretBytes::copy(&[6; 32])).expect("a key");
    let kek = KekCipherKey { spi, key, iv: [5; 16] };
    bencher.bench(|| {
        let content = PushContent {
            seq: SeqNumber(7),
            deletes: Vec::new(),
            keys: Some((policy.write(Carriage::Push), keys.write(&policy))),
        };
        let unsigned = Unsigned::new(spi, &content, octets);
        let signature = signer.sign(hash, &unsigned.signature_input(false)).expect("a signature");
        unsigned.seal(&kek, &signature)
    });
}

/// A rekey in the engine, from the command to the list of destinations.
#[divan::bench(args = [10_000, 100_000], sample_count = 10, sample_size = 1)]
fn fan_out_engine(bencher: Bencher<'_, '_>, members: u32) {
    bencher
        .counter(ItemsCount::new(members))
        .with_inputs(|| Server::with_members(members))
        .bench_local_values(|mut server| {
            server.rekey();
            server
        });
}

/// The same octets to many addresses of loopback, where a socket nobody reads drops them.
#[divan::bench(args = [10_000, 100_000], sample_count = 10, sample_size = 1)]
fn fan_out_socket(bencher: Bencher<'_, '_>, members: u32) {
    let listen = |address: Ipv4Addr| Listen { address: (address, 0).into(), marker: false };
    let unread = Sockets::bind(&[listen(Ipv4Addr::UNSPECIFIED)]).expect("a socket");
    let sockets = Sockets::bind(&[listen(Ipv4Addr::LOCALHOST)]).expect("a socket");
    let port = unread.addresses()[0].port();
    let local = sockets.addresses()[0];
    let to: Vec<(SocketAddr, SocketAddr)> =
        (0..members).map(|index| (local, SocketAddr::new(support::address(index).ip(), port))).collect();
    let octets = vec![1; 600];
    bencher.counter(ItemsCount::new(members)).bench_local(|| sockets.send_many(&octets, &to));
}

/// Every member acknowledges one push: decoded, found, checked, noted.
#[divan::bench(args = [10_000, 100_000], sample_count = 10, sample_size = 1)]
fn acknowledgements(bencher: Bencher<'_, '_>, members: u32) {
    let mut server = Server::with_members(members);
    let inputs = || {
        server.rekey();
        let (spi, seq, key) = server.kek();
        let key = AckKey::derive(AckRequest::KekSha256, &key, spi);
        // Taken by turns from all over the list, as they would come.
        let order = (0..members).map(|n| n.wrapping_mul(7919) % members);
        let acks: Vec<(SocketAddr, Bytes)> =
            order.map(|n| (support::address(n), key.seal(spi, seq, support::address(n).ip()))).collect();
        (std::mem::replace(&mut server, Server::with_members(members)), acks)
    };
    bencher.counter(ItemsCount::new(members)).with_inputs(inputs).bench_local_values(|(mut server, acks)| {
        for (peer, octets) in acks {
            server.handle(Input::Datagram(Datagram { local: SERVER, peer, octets }));
        }
        server
    });
}
