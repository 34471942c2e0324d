// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The store against a map: whatever guests do, what they get is what they put.

mod pages;

use std::collections::BTreeMap;

use pages::contents;
use proptest::prelude::*;
use vhost_device_tmem::store::{
    Compression, Guest, PageBytes, PageSink, PageSource, PoolError, PoolKind, Store, PAGE_SIZE,
};
use virtio_tmem_abi::{Key, ObjectId, PageResult, Range};

/// Small, so that it fills up.
const CAPACITY: u64 = 1 << 20;
const GUESTS: usize = 2;
/// The most pages of one put that are on their way at a time.
const BATCH: u64 = 32;
/// Each guest's pools: number and kind.
const POOLS: [(u32, PoolKind); 3] = [
    (0, PoolKind::Persistent),
    (5, PoolKind::Ephemeral),
    (9, PoolKind::Ephemeral),
];

/// An object of a guest's pool, and an index.
type Place = (usize, u32, u64, u64);
/// Its version, and the contents that go with it.
type Stored = (u64, u64);

fn key(object: u64, index: u64, version: u64) -> Key {
    Key {
        object: ObjectId([7.into(), object.into(), u64::MAX.into()]),
        index: index.into(),
        version: version.into(),
    }
}

struct Stamps {
    stamps: Vec<u64>,
    /// The page at which copying fails half-way, if any.
    broken: Option<usize>,
}

impl PageSource for Stamps {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(self.stamps[n]);
        if self.broken == Some(n) {
            frame[PAGE_SIZE / 2..].fill(0xee);
            return false;
        }
        true
    }
}

#[derive(Default)]
struct Seen {
    pages: BTreeMap<usize, Box<PageBytes>>,
    broken: Option<usize>,
}

impl PageSink for Seen {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        if self.broken == Some(n) {
            return false;
        }
        self.pages.insert(n, Box::new(*page));
        true
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<(u64, u64, u64)>, Option<usize>),
    Get(Vec<(u64, u64, u64)>, bool, Option<usize>),
    FlushPages(Vec<(u64, u64, u64)>),
    FlushRange(u64, u64, u64),
    FlushObject(u64),
    FlushPool,
    Destroy,
    Reconnect,
}

fn ops() -> impl Strategy<Value = Vec<(usize, usize, Op)>> {
    let page = || {
        (
            0..4u64,
            prop_oneof![4 => 0..90u64, 1 => Just(u64::MAX)],
            0..3u64,
        )
    };
    let pages = move || prop::collection::vec(page(), 1..80);
    let broken = || prop::option::weighted(0.1, 0..80usize);
    let op = prop_oneof![
        8 => (pages(), broken()).prop_map(|(pages, broken)| Op::Put(pages, broken)),
        6 => (pages(), any::<bool>(), broken()).prop_map(|(p, take, b)| Op::Get(p, take, b)),
        2 => pages().prop_map(Op::FlushPages),
        2 => (0..4u64, 0..90u64, 0..90u64)
            .prop_map(|(object, a, b)| Op::FlushRange(object, a.min(b), a.max(b))),
        1 => (0..4u64, 0..90u64).prop_map(|(object, a)| Op::FlushRange(object, a, u64::MAX)),
        1 => (0..4u64).prop_map(Op::FlushObject),
        1 => Just(Op::FlushPool),
        1 => Just(Op::Destroy),
        1 => Just(Op::Reconnect),
    ];
    prop::collection::vec((0..GUESTS, 0..POOLS.len(), op), 1..60)
}

/// The store, and what has to be in it.
struct World {
    store: Store,
    guests: Vec<Guest>,
    model: BTreeMap<Place, Stored>,
    stamp: u64,
}

impl World {
    fn new(compression: Compression) -> Self {
        let store = Store::new(&pages::config(CAPACITY, compression)).unwrap();
        let mut world = Self {
            guests: (0..GUESTS).map(|_| store.add_guest()).collect(),
            store,
            model: BTreeMap::new(),
            stamp: 0,
        };
        for guest in 0..GUESTS {
            world.create_pools(guest);
        }
        world
    }

    fn create_pools(&mut self, guest: usize) {
        for (number, kind) in POOLS {
            self.store
                .create_pool(&self.guests[guest], number, kind)
                .unwrap();
        }
    }

    fn forget(&mut self, forgotten: impl Fn(&Place) -> bool) -> usize {
        let before = self.model.len();
        self.model.retain(|place, _| !forgotten(place));
        before - self.model.len()
    }

    fn put(&mut self, guest: usize, pool: usize, pages: &[(u64, u64, u64)], broken: Option<usize>) {
        let (number, kind) = POOLS[pool];
        let keys: Vec<_> = pages.iter().map(|(o, i, v)| key(*o, *i, *v)).collect();
        let stamps: Vec<_> = (self.stamp..).take(keys.len()).collect();
        self.stamp += keys.len() as u64;
        let mut results = vec![PageResult::Absent; keys.len()];
        let mut source = Stamps {
            stamps: stamps.clone(),
            broken,
        };
        self.store
            .put(
                &self.guests[guest],
                number,
                &keys,
                &mut source,
                &mut results,
            )
            .unwrap();
        for (n, ((object, index, version), result)) in pages.iter().zip(&results).enumerate() {
            let place = (guest, number, *object, *index);
            // R1: whatever the result, the earlier page is gone.
            self.model.remove(&place);
            match result {
                PageResult::Stored => {
                    assert_ne!(broken, Some(n), "half a page was stored");
                    self.model.insert(place, (*version, stamps[n]));
                }
                // What is on its way into the store cannot be evicted for what comes after it; and
                // what came later may have been stored after all, and be evicted in its turn.
                PageResult::OverQuota => {
                    let stored = |result: &&PageResult| {
                        kind == PoolKind::Ephemeral && **result == PageResult::Stored
                    };
                    let later = results[n..].iter().filter(stored).count() as u64;
                    assert!(
                        self.store.report().ephemeral_pages <= BATCH + later,
                        "refused while there was something to evict ({kind:?})"
                    );
                }
                PageResult::NoMemory => assert_eq!(broken, Some(n)),
                other => panic!("a put was answered {other:?}"),
            }
        }
    }

    fn get(
        &mut self,
        guest: usize,
        pool: usize,
        pages: &[(u64, u64, u64)],
        take: bool,
        broken: Option<usize>,
    ) {
        let (number, kind) = POOLS[pool];
        let take = take && kind == PoolKind::Ephemeral;
        let keys: Vec<_> = pages.iter().map(|(o, i, v)| key(*o, *i, *v)).collect();
        let mut results = vec![PageResult::Absent; keys.len()];
        let mut sink = Seen {
            broken,
            ..Seen::default()
        };
        self.store
            .get(
                &self.guests[guest],
                number,
                take,
                &keys,
                &mut sink,
                &mut results,
            )
            .unwrap();
        for (n, ((object, index, version), result)) in pages.iter().zip(&results).enumerate() {
            let place = (guest, number, *object, *index);
            let stored = self.model.get(&place).copied();
            let expected = stored.filter(|(stored, _)| stored == version);
            match result {
                PageResult::Hit => {
                    let (_, stamp) = expected.expect("a page that was not put");
                    assert!(
                        *sink.pages[&n] == contents(stamp),
                        "another page than {stamp}"
                    );
                    if take {
                        // R3
                        self.model.remove(&place);
                    }
                }
                PageResult::Miss if broken == Some(n) => {}
                // A take whose copy failed hides the page from the rest of its batch only.
                PageResult::Miss if take && broken.is_some() => {}
                PageResult::Miss => match (expected, kind) {
                    (None, _) => {}
                    // R2: it has to stay away from now on.
                    (Some(_), PoolKind::Ephemeral) => {
                        self.model.remove(&place);
                    }
                    // R5
                    (Some(_), PoolKind::Persistent) => panic!("{place:?} was lost"),
                },
                other => panic!("a get was answered {other:?}"),
            }
        }
    }

    fn flush(
        &mut self,
        guest: usize,
        pool: usize,
        object: u64,
        first: u64,
        last: u64,
        whole: bool,
    ) {
        let (number, kind) = POOLS[pool];
        let guest_ref = &self.guests[guest];
        let mut result = [PageResult::Hit];
        let ObjectId(id) = key(object, 0, 0).object;
        if whole {
            let objects = [ObjectId(id)];
            self.store
                .flush_objects(guest_ref, number, &objects, &mut result)
                .unwrap();
        } else {
            let ranges = [Range {
                object: ObjectId(id),
                first: first.into(),
                last: last.into(),
            }];
            self.store
                .flush_ranges(guest_ref, number, &ranges, &mut result)
                .unwrap();
        }
        let gone = self.forget(|(g, p, o, i)| {
            (*g, *p, *o) == (guest, number, object) && (first..=last).contains(i)
        });
        match (result[0], kind) {
            (PageResult::Absent, PoolKind::Persistent) => assert_eq!(gone, 0),
            (PageResult::Flushed, _) => assert_ne!(gone, 0),
            (PageResult::Absent, PoolKind::Ephemeral) => {}
            (other, _) => panic!("a flush was answered {other:?}"),
        }
    }

    fn apply(&mut self, guest: usize, pool: usize, op: &Op) {
        let number = POOLS[pool].0;
        match op {
            Op::Put(pages, broken) => self.put(guest, pool, pages, *broken),
            Op::Get(pages, take, broken) => self.get(guest, pool, pages, *take, *broken),
            Op::FlushPages(pages) => {
                let keys: Vec<_> = pages.iter().map(|(o, i, v)| key(*o, *i, *v)).collect();
                let mut results = vec![PageResult::Hit; keys.len()];
                let guest_ref = &self.guests[guest];
                self.store
                    .flush_pages(guest_ref, number, &keys, &mut results)
                    .unwrap();
                for ((object, index, version), result) in pages.iter().zip(results) {
                    let place = (guest, number, *object, *index);
                    let there = self.model.get(&place).is_some_and(|(v, _)| v == version);
                    if there {
                        self.model.remove(&place);
                    }
                    let persistent = POOLS[pool].1 == PoolKind::Persistent;
                    assert!(result == PageResult::Absent || there);
                    assert!(!persistent || there == (result == PageResult::Flushed));
                }
            }
            Op::FlushRange(object, first, last) => {
                self.flush(guest, pool, *object, *first, *last, false);
            }
            Op::FlushObject(object) => self.flush(guest, pool, *object, 0, u64::MAX, true),
            Op::FlushPool => {
                self.store.flush_pool(&self.guests[guest], number).unwrap();
                self.forget(|(g, p, ..)| (*g, *p) == (guest, number));
            }
            Op::Destroy => {
                let guest_ref = &self.guests[guest];
                self.store.destroy_pool(guest_ref, number).unwrap();
                let again = self.store.destroy_pool(guest_ref, number);
                assert_eq!(again, Err(PoolError::NoPool));
                self.store
                    .create_pool(guest_ref, number, POOLS[pool].1)
                    .unwrap();
                self.forget(|(g, p, ..)| (*g, *p) == (guest, number));
            }
            Op::Reconnect => {
                let persistent = |(g, p, ..): &Place| *g == guest && *p == POOLS[0].0;
                let lost = self.model.keys().filter(|place| persistent(place)).count();
                let dropped = self.store.remove_guest(&self.guests[guest]);
                assert_eq!(dropped.persistent.pages, lost as u64);
                self.guests[guest] = self.store.add_guest();
                self.create_pools(guest);
                self.forget(|(g, ..)| *g == guest);
            }
        }
    }

    /// Pages that no compression makes smaller are stored, as many as there are credits.
    fn credits_are_kept(&self) {
        let credits = u64::from(self.store.credits().persistent);
        for n in 0..credits {
            let mut result = [PageResult::Absent];
            let mut source = pages::Stamped(pages::random_page(n));
            self.store
                .put(
                    &self.guests[0],
                    0,
                    &[key(100, n, 0)],
                    &mut source,
                    &mut result,
                )
                .unwrap();
            assert_eq!(result, [PageResult::Stored], "page {n} of {credits}");
        }
    }

    /// What the store says of itself is true.
    fn check(&self) {
        let report = self.store.report();
        // What was set aside for contents is not all touched by them.
        assert!(report.used_bytes <= report.resident_bytes + (64 << 10));
        assert!(report.resident_bytes <= report.capacity_bytes);
        let (mut pages, mut ephemeral, mut objects, mut bytes) = (0, 0, 0, 0);
        let (mut same, mut raw, mut compressed, mut packed, mut slots) = (0, 0, 0, 0, 0);
        for (n, guest) in self.guests.iter().enumerate() {
            for pool in self.store.pools(guest) {
                pages += pool.pages;
                objects += pool.objects;
                bytes += pool.bytes;
                same += pool.contents.same_filled_pages;
                raw += pool.contents.raw_pages;
                compressed += pool.contents.compressed_pages;
                packed += pool.contents.compressed_bytes;
                slots += pool.contents.slot_bytes;
                let model = self
                    .model
                    .keys()
                    .filter(|(g, p, ..)| (*g, *p) == (n, pool.pool));
                match pool.kind {
                    PoolKind::Ephemeral => {
                        ephemeral += pool.pages;
                        assert!(pool.pages <= model.count() as u64);
                    }
                    PoolKind::Persistent => assert_eq!(pool.pages, model.count() as u64),
                }
                let c = pool.counters;
                assert_eq!(c.puts, c.puts_stored + c.puts_refused);
                assert!(c.gets_hit <= c.gets);
            }
        }
        assert_eq!((pages, objects), (report.used_pages, report.objects));
        assert_eq!(ephemeral, report.ephemeral_pages);
        assert_eq!(bytes, report.used_bytes);
        let total = report.contents;
        assert_eq!(same, total.same_filled_pages);
        assert_eq!((raw, compressed), (total.raw_pages, total.compressed_pages));
        assert_eq!((packed, slots), (total.compressed_bytes, total.slot_bytes));
        assert_eq!(same + raw + compressed, pages);
        assert!(packed + raw * PAGE_SIZE as u64 <= slots);
        let credits = u64::from(self.store.credits().persistent);
        if report.compression == Compression::None {
            assert_eq!(raw, pages);
            let room = report.capacity_pages - (pages - ephemeral);
            assert!(credits <= room && room - credits <= 64);
        }
    }
}

fn run(compression: Compression, ops: &[(usize, usize, Op)]) {
    let mut world = World::new(compression);
    for (guest, pool, op) in ops {
        world.apply(*guest, *pool, op);
        world.check();
    }
    world.credits_are_kept();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_store_is_a_map_that_may_forget_what_is_ephemeral(ops in ops()) {
        run(Compression::None, &ops);
    }

    #[test]
    fn so_is_one_that_compresses_by_lz4(ops in ops()) {
        run(Compression::Lz4, &ops);
    }

    #[test]
    fn so_is_one_that_compresses_by_zstd(ops in ops()) {
        run(Compression::Zstd, &ops);
    }
}
