// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A store whose process is killed at any moment, and the one that takes its memory over.
//!
//! The child is this program again, in [`child`]. Each of its threads has a guest of its own and
//! carries out operations that follow from a number, so that the journal says no more than which
//! was begun and what each was answered.

mod pages;
mod places;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::Write,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use pages::{config, COMPRESSIONS};
use places::{create, get, key, Place, Stamps, Versions, CAPACITY, EPHEMERAL, PERSISTENT, POOLS};
use rustix::io::{fcntl_setfd, FdFlags};
use vhost_device_tmem::store::{Guest, Hold, Memory, Store};
use virtio_tmem_abi::{PageResult, Range};

const THREADS: u32 = 2;

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
