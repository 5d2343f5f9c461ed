//! A machine that loses power while the state is written: what a commit had synced is there, and of the next one all or
//! nothing, wherever its octets end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use gcks::store::Store;
use gcks::store::embedded::Embedded;

use super::*;

const LOG: &str = "state.sqlite-wal";
const FILE: &str = "state.sqlite";
/// Octets of a disk sector: written whole, in any order.
const SECTOR: usize = 512;
/// Octets of a frame of the log: header and page.
const FRAME: usize = 24 + 4096;

type Rows = BTreeMap<(Kind, String), Vec<u8>>;

fn fold(rows: &mut Rows, batch: &[Change]) {
    for change in batch {
        match change {
            Change::Put(row) => drop(rows.insert((row.kind, row.key.clone()), row.body.expose().to_vec())),
            Change::Remove { kind, key } => drop(rows.remove(&(*kind, key.clone()))),
        }
    }
}

fn private_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    directory
}

/// Registrations, rekeys, acknowledgements, an expiry and an expulsion, as they were written.
fn eventful(lkh: bool) -> (Settings, Vec<Vec<Change>>) {
    let mut settings = settings();
    settings.groups[0].communication.as_mut().unwrap().lkh = lkh;
    let mut bench = Bench::with(settings.clone());
    bench.drain();
    let mut one = joined(&mut bench, 1);
    joined(&mut bench, 2);
    bench.rekey(true);
    if !lkh {
        let octets = bench.received(one.address).remove(0);
        let ack = one.take(&bench, &octets);
        bench.tell(one.address, ack);
    }
    bench.pass(Duration::from_secs(40));
    joined(&mut bench, 3);
    bench.rekey(false);
    let member = "10.1.0.3".to_owned();
    let leave = match lkh {
        true => Command::Revoke { group: "g1".to_owned(), member },
        false => Command::Expel { group: "g1".to_owned(), member },
    };
    bench.command(leave).expect("it leaves");
    bench.pass(Duration::from_secs(60));
    (settings, bench.batches)
}

/// Files as a machine finds them that went down between two commits.
struct Crashed<'a> {
    settings: &'a Settings,
    key: Option<&'a SecretBytes>,
    file: &'a [u8],
    /// What may be found: before the commit, after it.
    either: [&'a Rows; 2],
}

impl Crashed<'_> {
    /// Starts on `log`; true when it found the commit.
    fn start(&self, log: &[u8], what: &str) -> bool {
        let directory = private_directory();
        for (name, octets) in [(FILE, self.file), (LOG, log)] {
            let path = directory.path().join(name);
            fs::write(&path, octets).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let mut store =
            Embedded::open(directory.path(), self.key).unwrap_or_else(|error| panic!("{what}: {error}"));
        let rows = store.load().unwrap_or_else(|error| panic!("{what}: {error}"));
        let found: Rows =
            rows.iter().map(|row| ((row.kind, row.key.clone()), row.body.expose().to_vec())).collect();
        let place = self.either.iter().position(|rows| **rows == found);
        let place = place.unwrap_or_else(|| panic!("{what}: neither before nor after the commit"));
        let now = Now { at: Instant(9_000_000), unix_seconds: 1_800_000_100 };
        let entropy = Box::new(Random(default_provider()));
        KeyServer::new(self.settings.clone(), rows, now, entropy)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        place == 1
    }
}

/// The first octet of `after` that a commit wrote.
fn first_change(before: &[u8], after: &[u8]) -> usize {
    before.iter().zip(after).position(|(old, new)| old != new).unwrap_or(before.len().min(after.len()))
}

/// `after` where `written` says so of a sector, else what stood there.
fn torn(before: &[u8], after: &[u8], mut written: impl FnMut() -> bool) -> Vec<u8> {
    let mut log = before.to_vec();
    log.resize(before.len().max(after.len()), 0);
    for (new, old) in after.chunks(SECTOR).zip(log.chunks_mut(SECTOR)) {
        let (old, _) = old.split_at_mut(new.len());
        // A sector that a commit does not change is what it was.
        if old != new && written() {
            old.copy_from_slice(new);
        }
    }
    log
}

fn power_goes_at_every_commit(lkh: bool, key: Option<&SecretBytes>) {
    let (settings, batches) = eventful(lkh);
    let directory = private_directory();
    let at = |name: &str| directory.path().join(name);
    let read = |path: &Path| fs::read(path).unwrap_or_default();
    let mut store = Embedded::open(directory.path(), key).unwrap();
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    let (mut rows, mut starts, mut lost) = (Rows::new(), 0, 0);
    for (number, batch) in batches.iter().enumerate() {
        if number % 8 == 7 {
            // The log begins anew after this: what a commit writes then replaces older frames.
            let other = rusqlite::Connection::open(at(FILE)).unwrap();
            other.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
        }
        let (file, before) = (read(&at(FILE)), read(&at(LOG)));
        let old = rows.clone();
        store.apply(std::slice::from_ref(batch)).unwrap();
        fold(&mut rows, batch);
        let after = read(&at(LOG));
        assert_eq!(read(&at(FILE)), file, "a commit writes to the log alone");
        let crashed = Crashed { settings: &settings, key, file: &file, either: [&old, &rows] };
        let first = first_change(&before, &after);
        let grown = after.len().max(first + 1) - first;

        let mut places: Vec<usize> = (first..after.len()).step_by(FRAME).collect();
        places.extend((0..6).map(|_| first + next(grown)));
        places.extend([first + 1, after.len() - 1]);
        for place in places.into_iter().filter(|place| *place < after.len()) {
            let what = format!("commit {number}, the log ends at {place} of {}", after.len());
            lost += usize::from(!crashed.start(&after[..place], &what));
            starts += 1;
        }
        for _ in 0..4 {
            let log = torn(&before, &after, || next(2) == 0);
            crashed.start(&log, &format!("commit {number}, some sectors were not written"));
            starts += 1;
        }
        assert!(crashed.start(&after, "all of it"), "commit {number} is on the disk when it returned");
    }
    assert!(batches.len() > 15 && starts > 200, "{} commits, {starts} starts", batches.len());
    assert!(lost > 100, "a commit that was cut off is not there");
}

#[test]
fn power_may_go_at_any_octet_of_the_log() {
    power_goes_at_every_commit(false, None);
}

#[test]
fn power_may_go_at_any_octet_of_a_sealed_log_with_a_key_tree() {
    power_goes_at_every_commit(true, Some(&SecretBytes::new(vec![7; 32])));
}

/// A state in one file, its log folded in, and its rows.
fn folded(key: Option<&SecretBytes>) -> (Vec<u8>, Rows) {
    let (_, batches) = eventful(true);
    let directory = private_directory();
    let mut store = Embedded::open(directory.path(), key).unwrap();
    store.apply(&batches).unwrap();
    let mut rows = Rows::new();
    batches.iter().for_each(|batch| fold(&mut rows, batch));
    drop(store);
    assert!(!directory.path().join(LOG).exists(), "closed in order");
    (fs::read(directory.path().join(FILE)).unwrap(), rows)
}

fn damage_is_named(key: Option<&SecretBytes>) {
    let (file, rows) = folded(key);
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(random >> 33).unwrap() % below
    };
    let (mut named, mut harmless) = (0, 0);
    for number in 0..600 {
        let mut damaged = file.clone();
        let place = match number {
            // Every octet of the file's head.
            0..100 => number,
            _ => next(file.len()).max(1),
        };
        let what = match number % 3 {
            1 if number > 100 => {
                let end = file.len().min(place - place % SECTOR + SECTOR);
                damaged[place - place % SECTOR..end].fill(0);
                format!("the sector at {place} is zero")
            }
            2 if number > 100 => {
                damaged.truncate(place);
                format!("it ends at {place}")
            }
            _ => {
                damaged[place] ^= 1 << next(8);
                format!("a bit at {place} is flipped")
            }
        };
        let directory = private_directory();
        let path = directory.path().join(FILE);
        fs::write(&path, &damaged).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let loaded = Embedded::open(directory.path(), key).and_then(|mut store| store.load());
        match loaded {
            Err(error) => {
                named += 1;
                let said = error.to_string();
                assert!(said.contains(FILE), "{what}: {said}");
                assert!(fs::read(&path).unwrap() == damaged, "{what}: {said}, and it was changed");
            }
            // Where nothing stands, or what only SQLite counts.
            Ok(found) => {
                harmless += 1;
                let found: Rows = found
                    .iter()
                    .map(|row| ((row.kind, row.key.clone()), row.body.expose().to_vec()))
                    .collect();
                assert!(found == rows, "{what}: other rows, and nobody is told");
            }
        }
    }
    println!("{} octets: {named} damages named, {harmless} without harm", file.len());
    assert!(named > 200, "{named} named, {harmless} harmless");
}

#[test]
fn a_damaged_file_is_named_and_left_as_it_is() {
    damage_is_named(None);
}

#[test]
fn a_damaged_sealed_file_is_named_and_left_as_it_is() {
    damage_is_named(Some(&SecretBytes::new(vec![7; 32])));
}
