// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it costs to find, add and forget pages, without copying them: the sources and sinks here
//! do nothing, so that the store's memory for pages is not touched either. And what it costs to
//! scrub pages that were, and to take over those of another process.

mod support;

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use support::CpuTime;
use vhost_device_tmem::store::{
    Compression, Config, Guest, Memory, PageBytes, PageSink, PageSource, PoolKind, Progress, Store,
    PAGE_SIZE,
};
use virtio_tmem_abi::{Key, ObjectId, PageResult};

/// Enough for tables that are larger than the processor's caches.
const CAPACITY: u64 = 4 << 30;
const PERSISTENT: u32 = 0;
const EPHEMERAL: u32 = 1;
/// Pages of one file, for the ephemeral pool; swap is one object.
const FILE: u64 = 64;

struct Nothing;

impl PageSource for Nothing {
    fn read_page(&mut self, _n: usize, _frame: &mut PageBytes) -> bool {
        true
    }
}

impl PageSink for Nothing {
    fn write_page(&mut self, _n: usize, _page: &PageBytes) -> bool {
        true
    }
}

struct World {
    store: Store,
    guest: Guest,
    pages: u64,
    /// The next page of which there never was one.
    fresh: u64,
    dice: u64,
}

impl World {
    fn new() -> Self {
        let store = Store::new(&Config::new(CAPACITY)).unwrap();
        let guest = store.add_guest();
        for (pool, kind) in [
            (PERSISTENT, PoolKind::Persistent),
            (EPHEMERAL, PoolKind::Ephemeral),
        ] {
            store.create_pool(&guest, pool, kind).unwrap();
        }
        Self {
            store,
            guest,
            pages: 0,
            fresh: 0,
            dice: 1,
        }
    }

    /// Puts `pages` pages, in batches.
    fn filled(pool: u32, pages: u64) -> Self {
        let mut world = Self::new();
        while world.fresh < pages {
            let keys = world.fresh_keys(pool, 32);
            world.put(pool, &keys);
        }
        world.pages = pages;
        world
    }

    fn key(pool: u32, page: u64) -> Key {
        let (object, index) = if pool == PERSISTENT {
            (0, page)
        } else {
            (page / FILE, page % FILE)
        };
        Key {
            object: ObjectId([object.into(), 0.into(), 0.into()]),
            index: index.into(),
            version: 1.into(),
        }
    }

    fn fresh_keys(&mut self, pool: u32, count: u64) -> Vec<Key> {
        let first = self.fresh;
        self.fresh += count;
        (first..self.fresh).map(|n| Self::key(pool, n)).collect()
    }

    /// Returns the keys of one run of pages that are there, somewhere.
    fn some_keys(&mut self, pool: u32, count: u64) -> Vec<Key> {
        self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005) + 1;
        let first = (self.dice >> 20) % (self.pages / count) * count;
        let keys = first..first + count;
        keys.map(|n| Self::key(pool, n)).collect()
    }

    /// Returns the keys of pages that are there, each anywhere.
    fn scattered_keys(&mut self, pool: u32, count: u64) -> Vec<Key> {
        (0..count).map(|_| self.some_keys(pool, 1)[0]).collect()
    }

    fn put(&self, pool: u32, keys: &[Key]) {
        let mut results = [PageResult::Absent; 32];
        let results = &mut results[..keys.len()];
        self.store
            .put(&self.guest, pool, keys, &mut Nothing, results)
            .unwrap();
        assert_eq!(results[0], PageResult::Stored);
    }

    fn get(&self, pool: u32, keys: &[Key], expected: PageResult) {
        let mut results = [PageResult::Absent; 32];
        let results = &mut results[..keys.len()];
        self.store
            .get(&self.guest, pool, false, keys, &mut Nothing, results)
            .unwrap();
        assert_eq!(results[0], expected);
    }

    fn flush(&self, pool: u32, keys: &[Key]) {
        let mut results = [PageResult::Absent; 32];
        let results = &mut results[..keys.len()];
        self.store
            .flush_pages(&self.guest, pool, keys, results)
            .unwrap();
        black_box(results);
    }
}

fn benches(criterion: &mut Criterion<CpuTime>) {
    for (name, pool) in [("persistent", PERSISTENT), ("ephemeral", EPHEMERAL)] {
        let mut world = World::filled(pool, 900_000);
        let mut group = criterion.benchmark_group(name);
        for count in [1, 32] {
            group.throughput(Throughput::Elements(count));
            group.bench_function(format!("put-and-flush/{count}"), |b| {
                b.iter(|| {
                    let keys = world.fresh_keys(pool, count);
                    world.put(pool, &keys);
                    world.flush(pool, &keys);
                });
            });
            group.bench_function(format!("put-over/{count}"), |b| {
                b.iter(|| {
                    let keys = world.some_keys(pool, count);
                    world.put(pool, &keys);
                });
            });
            group.bench_function(format!("get-run/{count}"), |b| {
                b.iter(|| {
                    let keys = world.some_keys(pool, count);
                    world.get(pool, &keys, PageResult::Hit);
                });
            });
            group.bench_function(format!("get-scattered/{count}"), |b| {
                b.iter(|| {
                    let keys = world.scattered_keys(pool, count);
                    world.get(pool, &keys, PageResult::Hit);
                });
            });
            group.bench_function(format!("get-miss/{count}"), |b| {
                b.iter(|| {
                    let keys = world.fresh_keys(pool, count);
                    world.get(pool, &keys, PageResult::Miss);
                });
            });
        }
        group.finish();
    }
    let mut world = World::filled(EPHEMERAL, 1_200_000);
    let mut group = criterion.benchmark_group("full");
    for count in [1, 32] {
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("put-evicting/{count}"), |b| {
            b.iter(|| {
                let keys = world.fresh_keys(EPHEMERAL, count);
                world.put(EPHEMERAL, &keys);
            });
        });
    }
    group.finish();
}

/// Pages that compress to a third, about.
struct Text(u64);

impl PageSource for Text {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        for (at, bytes) in (0..).zip(frame.chunks_exact_mut(8)) {
            let word = (self.0 + n as u64 * 7 + at / 3) * 0x9e37_79b9;
            bytes.copy_from_slice(&(word & 0x00ff_ffff).to_le_bytes());
        }
        true
    }
}

/// What it costs that nothing of a page is left in memory, beside what the page itself costs; and
/// what a check of the contents of each page would.
fn scrubbing(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("scrub");
    group.throughput(Throughput::Elements(32));
    for compression in [Compression::None, Compression::Lz4] {
        let store = Store::new(&Config {
            compression,
            ..Config::new(256 << 20)
        })
        .unwrap();
        let guest = store.add_guest();
        store
            .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
            .unwrap();
        let mut results = [PageResult::Absent; 32];
        for tidy in [false, true] {
            let name = if tidy {
                "and-scrubbed"
            } else {
                "put-and-flush"
            };
            group.bench_function(format!("{name}/{compression:?}"), |b| {
                let mut round = 0;
                b.iter(|| {
                    round += 1;
                    let keys: Vec<_> = (0..32).map(|n| World::key(PERSISTENT, n)).collect();
                    store
                        .put(&guest, PERSISTENT, &keys, &mut Text(round), &mut results)
                        .unwrap();
                    store
                        .flush_pages(&guest, PERSISTENT, &keys, &mut results)
                        .unwrap();
                    while tidy && store.tidy_step(1000) == Progress::More {}
                });
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("page");
    group.throughput(Throughput::Elements(1));
    let from = vec![7; 64 << 20];
    let mut to = vec![0; PAGE_SIZE];
    let mut pages = from.chunks_exact(PAGE_SIZE).cycle();
    group.bench_function("copy", |b| {
        b.iter(|| black_box(&mut to).copy_from_slice(pages.next().unwrap()));
    });
    group.bench_function("copy-and-check", |b| {
        b.iter(|| {
            black_box(&mut to).copy_from_slice(pages.next().unwrap());
            crc32c::crc32c(&to)
        });
    });
    group.finish();
}

/// How long it takes to find all pages again, before the first request can be served.
fn recovering(criterion: &mut Criterion<CpuTime>) {
    const PAGES: u64 = 900_000;
    let config = Config::new(CAPACITY);
    let mut group = criterion.benchmark_group("recover");
    group
        .throughput(Throughput::Elements(PAGES))
        .sample_size(10);
    for (name, pool) in [("persistent", PERSISTENT), ("ephemeral", EPHEMERAL)] {
        let world = World::filled(pool, PAGES);
        let memory = || {
            let fds = world.store.descriptors();
            Memory::from_descriptors(fds.map(|fd| fd.try_clone_to_owned().unwrap()))
        };
        group.bench_function(name, |b| {
            b.iter(|| {
                let (_store, found) = Store::recover(&config, memory()).unwrap();
                assert_eq!(found.pages, PAGES);
            });
        });
    }
    group.finish();
}

fn main() {
    let mut criterion = CpuTime::criterion();
    benches(&mut criterion);
    scrubbing(&mut criterion);
    recovering(&mut criterion);
    criterion.final_summary();
}
