// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store whose process is killed at any moment, and the one that takes its memory over.
//!
//! The child is this program again, in [`child`]. Each of its threads has a guest of its own and
//! carries out operations that follow from a number, so that the journal says no more than which
//! was begun and what each was answered.

mod pages;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use pages::{config, contents, COMPRESSIONS};
use proptest::prelude::*;
use rustix::io::{fcntl_setfd, FdFlags};
use vhost_device_tmem::store::{
    Compression, Config, Guest, Hold, HugePages, Memory, PageBytes, PageSink, PageSource, PoolKind,
    Recovered, Store, StoreError, PAGE_SIZE,
};
use virtio_tmem_abi::{Key, ObjectId, PageResult, Range};

/// Small, so that pages are evicted and moved.
const CAPACITY: u64 = 1 << 20;
const THREADS: u32 = 2;
const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;
const POOLS: [(u32, PoolKind); 2] = [
    (PERSISTENT, PoolKind::Persistent),
    (EPHEMERAL, PoolKind::Ephemeral),
];

/// A pool, an object and an index.
type Place = (u32, u64, u64);

fn key((_, object, index): Place, version: u64) -> Key {
    Key {
        object: ObjectId([object.into(), 0.into(), 7.into()]),
        index: index.into(),
        version: version.into(),
    }
}

struct Stamps<'s>(&'s [u64]);

impl PageSource for Stamps<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(self.0[n]);
        true
    }
}

/// Takes pages whose number has to be that of their version.
struct Versions<'s>(&'s [u64]);

impl PageSink for Versions<'_> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        assert!(*page == contents(self.0[n]), "contents of another page");
        true
    }
}

/// What a thread does at a time. Versions are the numbers of contents.
#[derive(Clone, Debug)]
enum Op {
    Put(u32, Vec<(Place, u64)>),
    Take(Vec<Place>),
    FlushPages(u32, Vec<Place>),
    FlushRanges(u32, Vec<(u64, u64, u64)>),
    FlushPool(u32),
    Destroy(u32),
    Tidy,
}

/// Numbers that follow from another.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % below
    }

    fn place(&mut self, pool: u32) -> Place {
        (pool, self.roll(3), self.roll(60))
    }
}

/// Returns the `n`th operation of a thread in a round.
fn op(round: u64, thread: u32, n: u64) -> Op {
    let number = (round << 32) | (u64::from(thread) << 28) | (n << 8);
    let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    dice.roll(2);
    let pool = dice.roll(2) as u32;
    let count = 1 + dice.roll(40);
    match dice.roll(40) {
        0..20 => Op::Put(
            pool,
            (0..count).map(|n| (dice.place(pool), number + n)).collect(),
        ),
        20..26 => Op::Take((0..count).map(|_| dice.place(EPHEMERAL)).collect()),
        26..31 => Op::FlushPages(pool, (0..count).map(|_| dice.place(pool)).collect()),
        31..35 => {
            let mut range = || {
                let (a, b) = (dice.roll(60), dice.roll(60));
                (dice.roll(3), a.min(b), a.max(b))
            };
            Op::FlushRanges(pool, (0..3).map(|_| range()).collect())
        }
        35 => Op::FlushPool(pool),
        36 => Op::Destroy(pool),
        _ => Op::Tidy,
    }
}

impl Op {
    /// Returns the keys that it may change.
    fn touches(&self, place: &Place) -> bool {
        let (pool, object, index) = *place;
        match self {
            Self::Put(_, pages) => pages.iter().any(|(at, _)| at == place),
            Self::Take(places) | Self::FlushPages(_, places) => places.contains(place),
            Self::FlushRanges(of, ranges) => {
                let named = |(o, first, last): &(u64, u64, u64)| {
                    *o == object && (*first..=*last).contains(&index)
                };
                *of == pool && ranges.iter().any(named)
            }
            Self::FlushPool(of) | Self::Destroy(of) => *of == pool,
            Self::Tidy => false,
        }
    }
}

/// What a guest has, by what it was answered.
type Model = BTreeMap<Place, u64>;

/// Applies an operation that was answered.
fn apply(model: &mut Model, op: &Op, results: &[u8]) {
    match op {
        Op::Put(_, pages) => {
            for ((place, version), result) in pages.iter().zip(results) {
                model.remove(place);
                if *result == PageResult::Stored.to_wire() {
                    model.insert(*place, *version);
                }
            }
        }
        // A page of which the answer was another is not there any more, or was evicted.
        Op::Take(places) => places.iter().for_each(|place| {
            model.remove(place);
        }),
        other => model.retain(|place, _| !other.touches(place)),
    }
}

/// Carries an operation out, and returns the results. The guest names versions that it knows.
fn carry_out(store: &Store, guest: &Guest, model: &Model, op: &Op) -> Vec<u8> {
    let version = |place: &Place| model.get(place).copied().unwrap_or(1);
    let mut results = Vec::new();
    match op {
        Op::Put(pool, pages) => {
            let keys: Vec<_> = pages.iter().map(|(place, v)| key(*place, *v)).collect();
            let stamps: Vec<_> = pages.iter().map(|(_, version)| *version).collect();
            results.resize(keys.len(), PageResult::Absent);
            store
                .put(guest, *pool, &keys, &mut Stamps(&stamps), &mut results)
                .unwrap();
        }
        Op::Take(places) => {
            let versions: Vec<_> = places.iter().map(version).collect();
            let keys: Vec<_> = places.iter().map(|at| key(*at, version(at))).collect();
            results.resize(keys.len(), PageResult::Absent);
            let mut sink = Versions(&versions);
            let taken = store
                .get(guest, EPHEMERAL, true, &keys, &mut sink, &mut results)
                .unwrap();
            drop(taken);
        }
        Op::FlushPages(pool, places) => {
            let keys: Vec<_> = places.iter().map(|at| key(*at, version(at))).collect();
            results.resize(keys.len(), PageResult::Absent);
            store
                .flush_pages(guest, *pool, &keys, &mut results)
                .unwrap();
        }
        Op::FlushRanges(pool, ranges) => {
            let range = |(object, first, last): &(u64, u64, u64)| Range {
                object: key((*pool, *object, 0), 0).object,
                first: (*first).into(),
                last: (*last).into(),
            };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            results.resize(ranges.len(), PageResult::Absent);
            store
                .flush_ranges(guest, *pool, &ranges, &mut results)
                .unwrap();
        }
        Op::FlushPool(pool) => store.flush_pool(guest, *pool).unwrap(),
        Op::Destroy(pool) => {
            store.destroy_pool(guest, *pool).unwrap();
            create(store, guest, *pool);
        }
        Op::Tidy => {
            let _ = store.tidy_step(64);
        }
    }
    results.into_iter().map(PageResult::to_wire).collect()
}

fn create(store: &Store, guest: &Guest, pool: u32) {
    let kind = POOLS[pool as usize].1;
    let hold = if pool == PERSISTENT {
        Hold::Kept
    } else {
        Hold::Held
    };
    store.create_pool_with(guest, pool, kind, hold).unwrap();
}

/// Runs in a process of its own until it is killed. Does nothing where no parent asked for it.
#[test]
fn child() {
    let Ok(task) = env::var("TMEM_RECOVER_CHILD") else {
        return;
    };
    let words: Vec<_> = task.split(' ').collect();
    let number = |n: usize| words[n].parse::<u64>().unwrap();
    let fd = |n: usize| {
        // SAFETY: The parent has left these open for this process, which owns them.
        unsafe { OwnedFd::from_raw_fd(number(n) as i32) }
    };
    let config = config(CAPACITY, COMPRESSIONS[number(1) as usize]);
    let memory = Memory::from_descriptors([fd(2), fd(3)]);
    let (store, _) = Store::recover(&config, memory).unwrap();
    let models: Vec<Model> = (0..THREADS)
        .map(|thread| read_model(&Path::new(words[4]).join(format!("model{thread}"))))
        .collect();
    thread::scope(|scope| {
        for (thread, mut model) in (0..THREADS).zip(models) {
            let (store, folder, round) = (&store, Path::new(words[4]), number(0));
            scope.spawn(move || {
                let guest = store.guest(thread);
                let mut journal = File::create(folder.join(format!("journal{thread}"))).unwrap();
                for (pool, _) in POOLS {
                    create(store, &guest, pool);
                }
                for n in 0.. {
                    let op = op(round, thread, n);
                    // One write each: the kernel has all of it or nothing.
                    journal.write_all(b"B").unwrap();
                    let results = carry_out(store, &guest, &model, &op);
                    apply(&mut model, &op, &results);
                    let mut answer = vec![b'A', results.len() as u8];
                    answer.extend(results);
                    journal.write_all(&answer).unwrap();
                }
            });
        }
    });
}

fn write_model(path: &Path, model: &Model) {
    let lines = model
        .iter()
        .map(|((pool, object, index), version)| format!("{pool} {object} {index} {version}\n"));
    fs::write(path, lines.collect::<String>()).unwrap();
}

fn read_model(path: &Path) -> Model {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| {
        let words: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        ((words[0] as u32, words[1], words[2]), words[3])
    });
    lines.collect()
}

/// Returns a store's memory, and what another process needs to take it over.
fn spawn(round: u64, compression: usize, memory: &Memory, folder: &Path) -> Child {
    let handle = memory.try_clone().unwrap();
    let fds = handle.descriptors().map(|fd| {
        fcntl_setfd(fd, FdFlags::empty()).unwrap();
        fd.as_raw_fd()
    });
    let task = format!(
        "{round} {compression} {} {} {}",
        fds[0],
        fds[1],
        folder.display()
    );
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env("TMEM_RECOVER_CHILD", task)
        .stdout(Stdio::null())
        .spawn();
    child.unwrap()
}

/// Returns the operations of a thread that were answered, with their results, and the one that was
/// under way.
fn read_journal(path: &Path, round: u64, thread: u32) -> (Vec<(Op, Vec<u8>)>, Option<Op>) {
    let bytes = fs::read(path).unwrap_or_default();
    let mut bytes = bytes.into_iter();
    let mut answered = Vec::new();
    for n in 0.. {
        if bytes.next() != Some(b'B') {
            return (answered, None);
        }
        let op = op(round, thread, n);
        if bytes.next() != Some(b'A') {
            return (answered, Some(op));
        }
        let count = bytes.next().unwrap();
        answered.push((op, bytes.by_ref().take(count.into()).collect()));
    }
    unreachable!()
}

/// Asks for a page in a version.
fn get(store: &Store, guest: &Guest, place: Place, version: u64) -> PageResult {
    let mut result = [PageResult::Absent];
    let keys = [key(place, version)];
    let versions = [version];
    let mut sink = Versions(&versions);
    let got = store.get(guest, place.0, false, &keys, &mut sink, &mut result);
    drop(got.unwrap());
    result[0]
}

/// Compares what a guest finds with what it was answered, and makes the model what it found.
fn check(
    store: &Store,
    thread: u32,
    model: &mut Model,
    under_way: Option<&Op>,
    gone: &[(Place, u64)],
) {
    let guest = store.guest(thread);
    for (pool, hold) in [(PERSISTENT, Hold::Kept), (EPHEMERAL, Hold::Held)] {
        match store.hold(&guest, pool) {
            Ok(found) => assert_eq!(found, hold),
            Err(_) => {
                let lost = matches!(under_way, Some(Op::Destroy(of)) if *of == pool);
                assert!(lost || under_way.is_none(), "pool {pool} was lost");
                create(store, &guest, pool);
            }
        }
    }
    let mut found = Model::new();
    for (place, version) in &*model {
        match get(store, &guest, *place, *version) {
            PageResult::Hit => {
                found.insert(*place, *version);
            }
            PageResult::Miss => {
                let may = place.0 == EPHEMERAL || under_way.is_some_and(|op| op.touches(place));
                assert!(may, "{place:?} was lost");
            }
            other => panic!("{place:?} was answered {other:?}"),
        }
    }
    // What a put that was not answered has stored is there in that version, or not.
    if let Some(Op::Put(_, pages)) = under_way {
        for (place, version) in pages {
            if get(store, &guest, *place, *version) == PageResult::Hit {
                found.insert(*place, *version);
            }
        }
    }
    for (place, version) in gone {
        if found.get(place) != Some(version) {
            let got = get(store, &guest, *place, *version);
            assert_eq!(got, PageResult::Miss, "{place:?} came back");
        }
    }
    let pages: u64 = store.pools(&guest).iter().map(|pool| pool.pages).sum();
    assert_eq!(
        pages,
        found.len() as u64,
        "there are pages that nobody has put"
    );
    *model = found;
}

fn kill_at_random(compression: usize, rounds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let config = config(CAPACITY, COMPRESSIONS[compression]);
    let memory = Memory::create(&config, None).unwrap();
    let mut models = vec![Model::new(); THREADS as usize];
    let mut dice = Dice(0x1234_5678_9abc + compression as u64);
    let mut answered_in_all = 0;
    for round in 0..rounds {
        let paths: Vec<_> = (0..THREADS)
            .map(|thread| folder.path().join(format!("journal{thread}")))
            .collect();
        for (thread, model) in (0..THREADS).zip(&models) {
            write_model(&folder.path().join(format!("model{thread}")), model);
            let _ = fs::remove_file(&paths[thread as usize]);
        }
        let mut child = spawn(round, compression, &memory, folder.path());
        // The moment is whenever the journals have got so far.
        let enough = dice.roll(6000);
        let len = |path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        while paths.iter().map(len).sum::<u64>() < enough {
            assert_eq!(child.try_wait().unwrap(), None, "the child ended by itself");
            thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (store, recovered) = Store::recover(&config, memory.try_clone().unwrap()).unwrap();
        assert_eq!((recovered.damaged, recovered.lost), (0, 0));
        for (thread, model) in (0..THREADS).zip(&mut models) {
            let (answered, under_way) = read_journal(&paths[thread as usize], round, thread);
            answered_in_all += answered.len();
            let mut gone = BTreeSet::new();
            for (op, results) in &answered {
                let before = model.clone();
                apply(model, op, results);
                gone.extend(
                    before
                        .into_iter()
                        .filter(|(place, v)| model.get(place) != Some(v)),
                );
            }
            let gone: Vec<_> = gone.into_iter().collect();
            check(&store, thread, model, under_way.as_ref(), &gone);
        }
    }
    assert!(answered_in_all > rounds as usize * 10, "{answered_in_all}");
}

#[test]
fn a_killed_store_has_all_that_it_said_it_has() {
    kill_at_random(0, 40);
}

#[test]
fn so_has_one_that_compresses() {
    kill_at_random(1, 40);
    kill_at_random(2, 20);
}

/// Puts a page of each kind of contents, more than once, and returns what there is.
fn filled(config: &Config) -> (Memory, Vec<(Place, u64)>) {
    let memory = Memory::create(config, None).unwrap();
    let (store, _) = Store::recover(config, memory.try_clone().unwrap()).unwrap();
    let guest = store.guest(3);
    let mut put = Vec::new();
    for (pool, _) in POOLS {
        create(&store, &guest, pool);
        for n in 0..48 {
            let place = (pool, n % 5, n);
            put.push((place, 1000 * u64::from(pool) + n));
        }
    }
    for (place, version) in &put {
        let mut result = [PageResult::Absent];
        let keys = [key(*place, *version)];
        let mut source = Stamps(std::slice::from_ref(version));
        store
            .put(&guest, place.0, &keys, &mut source, &mut result)
            .unwrap();
        assert_eq!(result, [PageResult::Stored]);
    }
    (memory, put)
}

#[test]
fn what_is_recovered_is_said() {
    for compression in COMPRESSIONS {
        let config = config(CAPACITY, compression);
        let (memory, put) = filled(&config);
        for _ in 0..2 {
            let (store, recovered) = Store::recover(&config, memory.try_clone().unwrap()).unwrap();
            let [guest] = recovered.guests[..] else {
                panic!("{recovered:?}");
            };
            let all = put.len() as u64;
            assert_eq!((guest.guest, guest.pools, guest.pages), (3, 2, all));
            assert_eq!(
                (recovered.pages, recovered.damaged, recovered.lost),
                (all, 0, 0)
            );
            let report = store.report();
            assert_eq!((report.used_pages, report.objects), (all, 10));
            assert_eq!(report.ephemeral_pages, all / 2);
            assert!(store.credits().persistent > 0);
        }
    }
}

#[test]
fn memory_that_is_not_the_stores_is_refused() {
    let config = config(CAPACITY, Compression::Lz4);
    let refused = |memory: Memory, config: &Config, why: &str| {
        let error = Store::recover(config, memory).expect_err(why);
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    let memory = || Memory::create(&config, None).unwrap();
    let other = |capacity, compression| Config {
        compression,
        ..Config::new(capacity)
    };
    refused(memory(), &other(CAPACITY * 2, Compression::Lz4), "capacity");
    refused(
        memory(),
        &other(CAPACITY, Compression::Zstd),
        "--compression",
    );
    let take = |memory: Memory| {
        memory
            .descriptors()
            .map(|fd| fd.try_clone_to_owned().unwrap())
    };
    let ([index, _], [_, pages]) = (take(memory()), take(memory()));
    refused(
        Memory::from_descriptors([index, pages]),
        &config,
        "another index",
    );
    let [index, pages] = take(memory());
    refused(
        Memory::from_descriptors([pages, index]),
        &config,
        "not made by",
    );
    let file = || OwnedFd::from(tempfile::tempfile().unwrap());
    refused(
        Memory::from_descriptors([file(), file()]),
        &config,
        "cannot be read",
    );
    // Another format, and a header of which a bit is wrong.
    for (at, byte, why) in [(8, 9, "format 9"), (40, 1, "damaged")] {
        let memory = memory();
        let index = memory.descriptors()[0].try_clone_to_owned().unwrap();
        File::from(index).write_all_at(&[byte], at).unwrap();
        refused(memory, &config, why);
    }
    // A file that could become shorter.
    let copy = tempfile::tempfile().unwrap();
    let [index, pages] = take(memory());
    let mut from = File::from(index);
    std::io::copy(&mut from, &mut &copy).unwrap();
    refused(
        Memory::from_descriptors([copy.into(), pages]),
        &config,
        "sealed",
    );
}

#[test]
fn a_store_for_which_there_is_no_address_space_says_so() {
    let error = Store::new(&Config::new(1 << 62)).expect_err("there is no such machine");
    assert!(matches!(error, StoreError::Map(..)), "{error}");
    let error = Store::new(&Config::new(1 << 19)).expect_err("that is no capacity");
    assert!(matches!(error, StoreError::TooSmall(_)), "{error}");
}

#[test]
fn a_store_that_cannot_be_locked_says_so() {
    // SAFETY: The limit is that of this process, in which no other test locks memory.
    let limit = unsafe {
        let limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit)
    };
    assert_eq!(limit, 0);
    let locked = Store::new(&Config {
        lock_memory: true,
        huge_pages: HugePages::Off,
        ..Config::new(CAPACITY)
    });
    // Who is privileged may lock all the same.
    match locked {
        Ok(store) => assert_eq!(store.report().used_pages, 0),
        Err(error) => assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}"),
    }
}

/// Takes damaged memory over, and sees that no page has contents other than its own.
fn damaged(config: &Config, memory: Memory, put: &[(Place, u64)]) -> Recovered {
    let (store, recovered) = Store::recover(config, memory).unwrap();
    let guest = store.guest(3);
    let (mut missing, mut damaged) = (0, 0);
    for (place, version) in put {
        if store.pool_kind(&guest, place.0).is_err() {
            missing += 1;
            continue;
        }
        match get(&store, &guest, *place, *version) {
            PageResult::Hit => {}
            PageResult::Damaged => {
                assert_eq!(place.0, PERSISTENT);
                assert_eq!(get(&store, &guest, *place, *version), PageResult::Damaged);
                damaged += 1;
                // Until it is flushed, or put anew.
                let keys = [key(*place, *version)];
                let mut result = [PageResult::Absent];
                store
                    .flush_pages(&guest, place.0, &keys, &mut result)
                    .unwrap();
                assert_eq!(result, [PageResult::Flushed]);
                assert_eq!(get(&store, &guest, *place, *version), PageResult::Miss);
            }
            PageResult::Miss => missing += 1,
            other => panic!("{other:?}"),
        }
    }
    // Pages of which nothing is known any more are known to be some. (One whose contents do not
    // come to its check is found out by who asks for it.)
    assert!(
        missing == 0 || recovered.lost > 0,
        "{missing} {recovered:?}"
    );
    assert!(
        damaged >= recovered.damaged || missing > 0,
        "{damaged} {recovered:?}"
    );
    recovered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_damaged_description_is_never_another_page(
        compression in 0..3usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u32), 1..4),
    ) {
        let config = config(CAPACITY, COMPRESSIONS[compression]);
        let (memory, put) = filled(&config);
        let index = File::from(memory.descriptors()[0].try_clone_to_owned().unwrap());
        let len = index.metadata().unwrap().len() as usize;
        // Bits of what was written, but for the header.
        let mut bytes = vec![0; len];
        index.read_exact_at(&mut bytes, 0).unwrap();
        let written: Vec<_> = (PAGE_SIZE..len).filter(|at| bytes[*at] != 0).collect();
        for (at, bit) in flips {
            let at = *at.get(&written);
            index.write_all_at(&[bytes[at] ^ (1 << bit)], at as u64).unwrap();
        }
        damaged(&config, memory, &put);
    }
}

#[test]
fn contents_that_are_damaged_are_never_returned() {
    for compression in COMPRESSIONS {
        let config = Config {
            check_contents: true,
            ..config(CAPACITY, compression)
        };
        let (memory, put) = filled(&config);
        let pages = File::from(memory.descriptors()[1].try_clone_to_owned().unwrap());
        // A bit of each slot of pages as they are, and of some of the others.
        let mut bytes = vec![0; CAPACITY as usize / 2];
        pages.read_exact_at(&mut bytes, 0).unwrap();
        for at in (100..bytes.len()).step_by(512) {
            bytes[at] ^= 4;
        }
        pages.write_all_at(&bytes, 0).unwrap();
        let (store, recovered) = Store::recover(&config, memory).unwrap();
        // That is found out by who reads them.
        assert_eq!((recovered.damaged, recovered.lost), (0, 0));
        let guest = store.guest(3);
        let mut damaged = 0;
        for (place, version) in put.iter().filter(|(place, _)| place.0 == PERSISTENT) {
            let once = get(&store, &guest, *place, *version);
            assert_eq!(get(&store, &guest, *place, *version), once);
            match once {
                PageResult::Hit => assert_ne!(compression, Compression::None),
                PageResult::Damaged => damaged += 1,
                other => panic!("{other:?}"),
            }
            // What is put over it is a page as any other.
            let mut result = [PageResult::Absent];
            let keys = [key(*place, 5)];
            store
                .put(&guest, place.0, &keys, &mut Stamps(&[5]), &mut result)
                .unwrap();
            assert_eq!(get(&store, &guest, *place, 5), PageResult::Hit);
        }
        assert!(damaged > 10, "{damaged}");
    }
}

/// A process that wants checks takes over pages that have none, and the other way round.
#[test]
fn contents_with_and_without_checks_are_read_by_either() {
    for compression in COMPRESSIONS {
        let [with, without] = [true, false].map(|check_contents| Config {
            check_contents,
            ..config(CAPACITY, compression)
        });
        for (one, other) in [(&with, &without), (&without, &with)] {
            let (memory, put) = filled(one);
            for config in [other, one, other] {
                let (store, _) = Store::recover(config, memory.try_clone().unwrap()).unwrap();
                let guest = store.guest(3);
                for (place, version) in &put {
                    assert_eq!(get(&store, &guest, *place, *version), PageResult::Hit);
                    // Both pools' entries are used by turns.
                    let (keys, mut result) = ([key(*place, *version)], [PageResult::Absent]);
                    store
                        .flush_pages(&guest, place.0, &keys, &mut result)
                        .unwrap();
                }
                for (place, version) in put.iter().rev() {
                    let mut result = [PageResult::Absent];
                    let keys = [key(*place, *version)];
                    let mut source = Stamps(std::slice::from_ref(version));
                    store
                        .put(&guest, place.0, &keys, &mut source, &mut result)
                        .unwrap();
                    assert_eq!(result, [PageResult::Stored]);
                }
            }
        }
    }
}
