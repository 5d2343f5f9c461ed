//! IKE fragmentation with strongSwan: messages with long certificates go and come in fragments, both ways, both modes.

use std::path::Path;
use std::time::Duration;

use gdoi_lab::network::{GCKS, Network};
use gdoi_lab::site::Site;
use ike::crypto::{AuthMethod, Hash};

use crate::ground::{self, Cell};
use crate::strongswan::{self, CHARON, Charon};

const SOON: Duration = Duration::from_secs(30);
/// charon's fragments are this long at most, so that its short certificate needs some.
const SMALL: &str = "fragment_size = 600";
/// Names in our certificate, so that it is longer than one of our fragments.
const NAMES: usize = 60;

#[test]
fn strongswan_and_we_put_each_others_fragments_together() {
    let test = "fragments::strongswan_and_we_put_each_others_fragments_together";
    let Some(binaries) = ground::enter(test, Path::new(CHARON)) else { return };
    let all = Cell::all(2);
    let rsa = |cell: &&Cell| {
        (cell.method, cell.group.number(), cell.hash) == (AuthMethod::RsaSignature, 19, Hash::Sha256)
    };
    let cells: Vec<Cell> = all.iter().filter(rsa).copied().collect();
    assert_eq!(cells.len(), 2, "main and aggressive mode");
    let network = Network::namespaces().expect("namespaces");
    ground::addresses(&cells);
    let site = Site::new(network, binaries).expect("a directory");
    let directory = site.directory().to_owned();
    ground::certificates_with(&directory, NAMES);
    ground::server(&directory, &cells, "192.0.2.1:848");
    let gcks = site.start(GCKS, None).expect("gcksd starts");
    gcks.wait_named(gcks.beginning(), SOON, "listening").expect("it listens");
    let charon = Charon::start(&site.network, "gm1", &directory, SMALL);
    // What each side of a talk said of fragments, and that it came up and lives.
    let talked = |from: usize| {
        charon.says(from, "into").expect("charon's fragments");
        charon.says(from, "reassembled fragmented IKE message").expect("our fragments");
        assert!(charon.log()[from..].contains("splitting IKE message"), "{}", charon.log());
    };
    for cell in &cells {
        charon.load(cell, &cell.address(), "192.0.2.1", 1).expect("its connection");
        let (mark, from) = (gcks.mark(), charon.log().len());
        let said = charon.swanctl(&["--initiate", "--ike", "cell", "--timeout", "8"]);
        let up = gcks.wait_named(mark, SOON, "phase1_established");
        up.unwrap_or_else(|error| panic!("{error}: {said:?} {}\n{}", charon.log(), gcks.tail(20).join("\n")));
        talked(from);
        charon.says(from, "N(DPD_ACK)").expect("dead-peer detection");
        charon.swanctl(&["--terminate", "--ike", "cell", "--timeout", "5"]).expect("it ends");

        charon.load(cell, "192.0.2.11", "192.0.2.12", 0).expect("its connection");
        strongswan::member(&site, cell);
        let from = charon.log().len();
        let gm2 = site.start("gm2", None).expect("gmd starts");
        let up = gm2.wait_named(gm2.beginning(), SOON, "phase1_established");
        up.unwrap_or_else(|error| panic!("{error}\n{}\n{}", charon.log(), gm2.tail(20).join("\n")));
        talked(from);
        assert_eq!(gm2.stop().expect("it stops").0, Some(0));
        charon.says(from, "received DELETE for IKE_SA").expect("a goodbye");
    }
}
