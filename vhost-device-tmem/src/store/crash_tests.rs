// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the next process finds, had this one ended just before or after a store that counts. Such
//! moments are too short for a signal to meet them: here the files are copied at each.

use std::{cell::RefCell, collections::BTreeMap, fs::File, os::unix::fs::FileExt, rc::Rc, thread};

use virtio_tmem_abi::{Key, ObjectId, PageResult, Range};

use super::{
    memory::written, Compression, Config, Guest, Memory, PageBytes, PageSink, PageSource, PoolKind,
    Progress, Store, Walk, PAGE_SIZE,
};

thread_local! {
    static WATCH: RefCell<Option<Box<dyn FnMut()>>> = const { RefCell::new(None) };
}

/// Called before and after each store that counts.
pub(super) fn moment() {
    // What looks at this moment writes as well.
    let watch = WATCH.with_borrow_mut(Option::take);
    if let Some(mut watch) = watch {
        watch();
        WATCH.with_borrow_mut(|slot| *slot = Some(watch));
    }
}

/// The pool and the index of a page.
type Place = (u32, u64);

const POOLS: [(u32, PoolKind); 2] = [(0, PoolKind::Persistent), (1, PoolKind::Ephemeral)];
/// Pages of each object.
const OBJECT: u64 = 16;

fn key((_, index): Place, version: u64) -> Key {
    Key {
        object: ObjectId([(index / OBJECT).into(), 0.into(), 0.into()]),
        index: (index % OBJECT).into(),
        version: version.into(),
    }
}

/// The page of a version: a word, something that is compressed, or noise.
fn contents(version: u64) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    let mut noise = version | 1;
    for (at, bytes) in page.chunks_exact_mut(8).enumerate() {
        noise = noise
            .wrapping_mul(6_364_136_223_846_793_005)
            .rotate_left(31);
        let word = match version % 4 {
            0 => version,
            1 => noise,
            other => version ^ (at as u64 >> other),
        };
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    page
}

struct Versions<'v>(&'v [u64]);

impl PageSource for Versions<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(self.0[n]);
        true
    }
}

impl PageSink for Versions<'_> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        assert!(*page == contents(self.0[n]), "contents of another page");
        true
    }
}

/// What the guest was answered, and what it asked for since.
#[derive(Default)]
struct Known {
    there: BTreeMap<Place, u64>,
    gone: Vec<(Place, u64)>,
    /// What the request that is under way may change, and the versions that it puts.
    touched: Vec<(Place, Option<u64>)>,
    /// The pool that it destroys.
    destroyed: Option<u32>,
    moments: u64,
}

impl Known {
    fn touch(&mut self, touched: Vec<(Place, Option<u64>)>) {
        self.touched = touched;
    }

    /// Notes the answer: `stored` says which of the versions that were put are there.
    fn answered(&mut self, stored: impl Fn(usize) -> bool) {
        for (n, (place, version)) in std::mem::take(&mut self.touched).into_iter().enumerate() {
            self.gone
                .extend(self.there.remove(&place).map(|v| (place, v)));
            match version {
                Some(version) if stored(n) => {
                    self.there.insert(place, version);
                }
                Some(version) => self.gone.push((place, version)),
                None => {}
            }
        }
        self.destroyed = None;
    }
}

/// Copies a store's files, as they are at this moment.
fn copied(memory: &Memory, into: &Memory) {
    let files = |memory: &Memory| {
        let own = |fd: std::os::fd::BorrowedFd<'_>| File::from(fd.try_clone_to_owned().unwrap());
        memory.descriptors().map(own)
    };
    for (from, to) in files(memory).iter().zip(files(into)) {
        let len = from.metadata().unwrap().len();
        for (first, end) in written(from, 0, len).unwrap() {
            let mut bytes = vec![0; (end - first) as usize];
            from.read_exact_at(&mut bytes, first).unwrap();
            to.write_all_at(&bytes, first).unwrap();
        }
    }
}

fn get(store: &Store, guest: &Guest, place: Place, version: u64) -> PageResult {
    let mut result = [PageResult::Absent];
    let keys = [key(place, version)];
    let versions = [version];
    let mut sink = Versions(&versions);
    let got = store.get(guest, place.0, false, &keys, &mut sink, &mut result);
    drop(got.unwrap());
    result[0]
}

/// Compares what the next process finds with what the guest was answered.
fn check(config: &Config, memory: Memory, known: &Known) {
    let (store, recovered) = Store::recover(config, memory).unwrap();
    assert_eq!((recovered.damaged, recovered.lost), (0, 0));
    let guest = store.guest(0);
    let mut found = 0;
    for (place, version) in &known.there {
        if store.pool_kind(&guest, place.0).is_err() {
            assert_eq!(known.destroyed, Some(place.0));
            continue;
        }
        let got = get(&store, &guest, *place, *version);
        let touched = known.touched.iter().any(|(touched, _)| touched == place);
        // Making room for a put may evict any.
        let may = touched || place.0 == 1;
        assert!(got == PageResult::Hit || may, "{place:?} was lost");
        found += u64::from(got == PageResult::Hit);
    }
    for (place, version) in &known.touched {
        if let Some(version) = version {
            found += u64::from(get(&store, &guest, *place, *version) == PageResult::Hit);
        }
    }
    for (place, version) in known.gone.iter().rev().take(200) {
        if store.pool_kind(&guest, place.0).is_ok() {
            let got = get(&store, &guest, *place, *version);
            assert_eq!(got, PageResult::Miss, "{place:?} came back");
        }
    }
    let pages: u64 = store.pools(&guest).iter().map(|pool| pool.pages).sum();
    assert_eq!(pages, found, "there are pages that nobody has put");
}

fn run(compression: Compression) {
    let config = Config {
        compression,
        ..Config::new(1 << 20)
    };
    let memory = Memory::create(&config, None).unwrap();
    let (store, _) = Store::recover(&config, memory.try_clone().unwrap()).unwrap();
    let guest = store.guest(0);
    for (pool, kind) in POOLS {
        store.create_pool(&guest, pool, kind).unwrap();
    }
    let known = Rc::new(RefCell::new(Known::default()));
    let mut dice = 0x1234_5678_9abc_u64;
    let mut roll = move |below: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        (dice >> 20) % below
    };
    let watching = Rc::clone(&known);
    let mut skip = 0;
    let watch = move || {
        let mut known = watching.borrow_mut();
        known.moments += 1;
        // Each is like many others.
        skip = (skip + 1) % 7;
        if skip == 0 {
            let copy = Memory::create(&config, None).unwrap();
            copied(&memory, &copy);
            // This thread may be at something that only one can be at.
            let known = &*known;
            thread::scope(|scope| {
                let checked = scope.spawn(|| check(&config, copy, known)).join();
                checked.expect("the next process finds what it should");
            });
        }
    };
    WATCH.with_borrow_mut(|slot| *slot = Some(Box::new(watch)));
    let mut version = 100;
    for round in 0..220 {
        let pool = (roll(3) == 0).into();
        let mut places: Vec<Place> = (0..1 + roll(12)).map(|_| (pool, roll(300))).collect();
        places.sort_unstable();
        places.dedup();
        let there = |place: &Place| known.borrow().there.get(place).copied().unwrap_or(1);
        match roll(12) {
            0..6 => {
                let versions: Vec<_> = places.iter().map(|_| roll(4) + 4 * roll(1 << 20)).collect();
                version += 4;
                let versions: Vec<_> = versions.iter().map(|v| v + (version << 24)).collect();
                let keys: Vec<_> = places
                    .iter()
                    .zip(&versions)
                    .map(|(p, v)| key(*p, *v))
                    .collect();
                let puts = places
                    .iter()
                    .copied()
                    .zip(versions.iter().copied().map(Some));
                known.borrow_mut().touch(puts.collect());
                let mut results = vec![PageResult::Absent; keys.len()];
                let mut source = Versions(&versions);
                store
                    .put(&guest, pool, &keys, &mut source, &mut results)
                    .unwrap();
                known
                    .borrow_mut()
                    .answered(|n| results[n] == PageResult::Stored);
            }
            6 => {
                for place in &mut places {
                    place.0 = 1;
                }
                let versions: Vec<_> = places.iter().map(there).collect();
                let keys: Vec<_> = places
                    .iter()
                    .zip(&versions)
                    .map(|(p, v)| key(*p, *v))
                    .collect();
                known
                    .borrow_mut()
                    .touch(places.iter().map(|place| (*place, None)).collect());
                let mut results = vec![PageResult::Absent; keys.len()];
                let mut sink = Versions(&versions);
                let taken = store
                    .get(&guest, 1, true, &keys, &mut sink, &mut results)
                    .unwrap();
                // Until it is said that the guest was answered, they are there.
                moment();
                drop(taken);
                known.borrow_mut().answered(|_| false);
            }
            7 => {
                let versions: Vec<_> = places.iter().map(there).collect();
                let keys: Vec<_> = places
                    .iter()
                    .zip(&versions)
                    .map(|(p, v)| key(*p, *v))
                    .collect();
                known
                    .borrow_mut()
                    .touch(places.iter().map(|place| (*place, None)).collect());
                let mut results = vec![PageResult::Absent; keys.len()];
                store
                    .flush_pages(&guest, pool, &keys, &mut results)
                    .unwrap();
                known.borrow_mut().answered(|_| false);
            }
            8 => {
                let object = roll(300 / OBJECT);
                let all = (0..OBJECT).map(|n| ((pool, object * OBJECT + n), None));
                known.borrow_mut().touch(all.collect());
                let range = Range {
                    object: key((pool, object * OBJECT), 0).object,
                    first: 0.into(),
                    last: u64::MAX.into(),
                };
                let mut result = [PageResult::Absent];
                store
                    .flush_ranges(&guest, pool, &[range], &mut result)
                    .unwrap();
                known.borrow_mut().answered(|_| false);
            }
            9 if round % 5 == 0 => {
                known
                    .borrow_mut()
                    .touch((0..300).map(|n| ((pool, n), None)).collect());
                known.borrow_mut().destroyed = Some(pool);
                let (mut walk, _) = Walk::destroy_pool(&store, &guest, pool).unwrap();
                while walk.step(16) == Progress::More {}
                let kind = POOLS[pool as usize].1;
                store.create_pool(&guest, pool, kind).unwrap();
                known.borrow_mut().answered(|_| false);
            }
            _ => {
                let mut inner = store.lock();
                let inner = &mut *inner;
                while inner.slots.compact(&mut inner.index, true) {}
            }
        }
    }
    WATCH.with_borrow_mut(|slot| *slot = None);
    assert!(known.borrow().moments > 3000, "{}", known.borrow().moments);
}

#[test]
fn at_each_moment_the_next_process_finds_what_was_answered() {
    run(Compression::None);
}

#[test]
fn so_it_does_where_pages_are_compressed() {
    run(Compression::Lz4);
}

/// Copying the files says nothing if they are not all there is.
#[test]
fn a_copy_of_the_files_is_a_store() {
    let config = Config::new(1 << 20);
    let memory = Memory::create(&config, None).unwrap();
    let (store, _) = Store::recover(&config, memory.try_clone().unwrap()).unwrap();
    let guest = store.guest(5);
    store.create_pool(&guest, 0, PoolKind::Persistent).unwrap();
    let mut result = [PageResult::Absent];
    store
        .put(
            &guest,
            0,
            &[key((0, 3), 9)],
            &mut Versions(&[9]),
            &mut result,
        )
        .unwrap();
    let copy = Memory::create(&config, None).unwrap();
    copied(&memory, &copy);
    let fds = copy
        .descriptors()
        .map(|fd| fd.try_clone_to_owned().unwrap());
    let (store, _) = Store::recover(&config, Memory::from_descriptors(fds)).unwrap();
    assert_eq!(get(&store, &store.guest(5), (0, 3), 9), PageResult::Hit);
}
