// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the store takes of the host's memory, by what the kernel says: it goes back, and what was
//! in it does not stay there.

mod pages;

use std::{
    fs::File,
    os::{
        fd::AsFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::Path,
};

use caps::{CapSet, Capability};
use pages::{config, contents, key, random_page, Stamped, COMPRESSIONS, KINDS};
use vhost_device_tmem::store::{
    Compression, Config, Guest, HugePages, PageBytes, PageSource, PoolKind, Progress, Store,
    PAGE_SIZE,
};
use virtio_tmem_abi::PageResult;

const PERSISTENT: u32 = 0;

struct World {
    store: Store,
    guest: Guest,
}

/// Pages by their numbers.
struct Numbers<'n>(&'n [u64]);

impl PageSource for Numbers<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(self.0[n]);
        true
    }
}

impl World {
    fn new(config: &Config) -> Self {
        let store = Store::new(config).unwrap();
        let guest = store.guest(0);
        store
            .create_pool(&guest, PERSISTENT, PoolKind::Persistent)
            .unwrap();
        Self { store, guest }
    }

    /// Puts pages, each as the only one of an object, or all of one.
    fn put(&self, pages: u64, spread: bool, number: impl Fn(u64) -> u64) {
        let all: Vec<_> = (0..pages).collect();
        for some in all.chunks(64) {
            let keys: Vec<_> = some.iter().map(|n| place(*n, spread)).collect();
            let numbers: Vec<_> = some.iter().map(|n| number(*n)).collect();
            let mut results = vec![PageResult::Absent; keys.len()];
            self.store
                .put(
                    &self.guest,
                    PERSISTENT,
                    &keys,
                    &mut Numbers(&numbers),
                    &mut results,
                )
                .unwrap();
            assert!(results.iter().all(|result| *result == PageResult::Stored));
        }
    }

    fn flush(&self, pages: impl Iterator<Item = u64>, spread: bool) {
        let keys: Vec<_> = pages.map(|n| place(n, spread)).collect();
        let mut results = vec![PageResult::Absent; keys.len()];
        self.store
            .flush_pages(&self.guest, PERSISTENT, &keys, &mut results)
            .unwrap();
        assert!(results.iter().all(|result| *result == PageResult::Flushed));
    }

    fn tidy(&self) {
        while self.store.tidy_step(100) == Progress::More {}
    }

    /// Returns the bytes that both files take.
    fn taken(&self) -> u64 {
        let taken = |fd: std::os::fd::BorrowedFd<'_>| {
            let file = File::from(fd.try_clone_to_owned().unwrap());
            file.metadata().unwrap().blocks() * 512
        };
        self.store.descriptors().map(taken).iter().sum()
    }
}

fn place(n: u64, spread: bool) -> virtio_tmem_abi::Key {
    key(if spread { n } else { 1 }, n, 1)
}

/// Returns whether a page is one of the tenth that stays.
fn stays(n: u64) -> bool {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 10 == 0
}

/// What may be taken beside 1.25 times what is used.
const SLACK: u64 = 8 << 20;

#[test]
fn an_empty_store_takes_next_to_nothing() {
    for compression in COMPRESSIONS {
        let world = World::new(&config(4 << 30, compression));
        let report = world.store.report();
        assert_eq!(report.used_bytes, 0);
        assert!(report.resident_bytes < 1 << 20, "{report:?}");
    }
}

#[test]
fn what_is_taken_follows_what_is_used_whatever_was_flushed() {
    for (compression, pages) in [
        (Compression::None, 20_000),
        (Compression::Lz4, 20_000),
        (Compression::Zstd, 20_000),
    ] {
        for huge_pages in [HugePages::On, HugePages::Off] {
            let world = World::new(&Config {
                huge_pages,
                ..config(128 << 20, compression)
            });
            let number = |n: u64| match compression {
                Compression::None => random_page(n),
                // Of all kinds that are compressed.
                _ => n - n % KINDS + [2, 3, 5, 7][n as usize % 4],
            };
            world.put(pages, true, number);
            let full = world.taken();
            world.flush((0..pages).filter(|n| !stays(*n)), true);
            world.tidy();
            let report = world.store.report();
            let most = report.used_bytes + report.used_bytes / 4 + SLACK;
            assert!(full > 2 * most, "{full} {report:?}");
            assert!(report.resident_bytes <= most, "{report:?}");
            assert!(world.taken() <= most, "{} {report:?}", world.taken());
            // What stays is as it was.
            for n in (0..pages).filter(|n| stays(*n)) {
                let mut result = [PageResult::Absent];
                let keys = [place(n, true)];
                let mut sink = Stamped(number(n));
                let got = world.store.get(
                    &world.guest,
                    PERSISTENT,
                    false,
                    &keys,
                    &mut sink,
                    &mut result,
                );
                drop(got.unwrap());
                assert_eq!(result, [PageResult::Hit]);
            }
        }
    }
}

/// Memory is taken in huge pages where there can be such, and goes back as whole ones.
#[test]
fn huge_pages_are_taken_and_given_back() {
    const HUGE: u64 = 2 << 20;
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap() {
        return eprintln!("not tested: nothing may be mounted");
    }
    if !Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
        return eprintln!("not tested: the kernel has no huge pages");
    }
    for (huge_pages, first) in [(HugePages::On, HUGE), (HugePages::Off, 4096)] {
        let world = World::new(&Config {
            huge_pages,
            ..config(64 << 20, Compression::None)
        });
        let before = world.taken();
        world.put(1, false, random_page);
        let took = world.taken() - before;
        // The entry, and the object's.
        assert!((first..=first + 3 * 4096).contains(&took), "{took}");
        // The next one is there before it is needed, and no more than that.
        let ahead = if huge_pages == HugePages::On { HUGE } else { 0 };
        assert_eq!(world.store.wants_memory(), ahead > 0);
        for _ in 0..2 {
            world.store.prepare();
            assert!(!world.store.wants_memory());
            assert_eq!(world.taken() - before - took, ahead);
            assert!(world.store.report().resident_bytes >= first + ahead);
        }
        while world.store.tidy_step(100) == Progress::More {}
        assert_eq!(world.taken() - before - took, ahead);
        world.put(10 * 512, false, random_page);
        world.flush(0..10 * 512, false);
        world.tidy();
        let left = world.taken();
        assert!(left <= before + SLACK, "{left}");
        assert_eq!(world.store.report().used_pages, 0);
    }
}

/// Returns the bytes of the file of contents that are not zeros, without those of slots' owners.
fn left(world: &World) -> usize {
    let [_, pages] = world.store.descriptors();
    let pages = File::from(pages.as_fd().try_clone_to_owned().unwrap());
    let mut bytes = vec![0; pages.metadata().unwrap().len() as usize - PAGE_SIZE];
    pages.read_exact_at(&mut bytes, 0).unwrap();
    bytes.iter().filter(|byte| **byte != 0).count()
}

#[test]
fn what_was_freed_is_scrubbed() {
    for compression in COMPRESSIONS {
        let world = World::new(&config(8 << 20, compression));
        let number = |n: u64| {
            n - n % KINDS
                + if compression == Compression::None {
                    3
                } else {
                    2
                }
        };
        world.put(500, false, number);
        let full = left(&world);
        world.flush(1..500, false);
        world.tidy();
        let one = left(&world);
        assert!(one > 0 && one <= PAGE_SIZE, "{one} of {full}");
        world.flush(0..1, false);
        world.tidy();
        assert_eq!(left(&world), 0);
    }
}

/// Pages of so many bytes that nothing makes smaller, none of them zero, and zeros.
struct Noise<'l>(&'l [u64]);

impl PageSource for Noise<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        frame.fill(0);
        let mut noise = self.0[n] | 1;
        for byte in &mut frame[..self.0[n] as usize] {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            *byte = (noise >> 40) as u8 | 1;
        }
        true
    }
}

/// A page that takes the slot of a somewhat longer one leaves nothing of it, at once.
#[test]
fn nothing_of_an_older_page_is_behind_a_newer_one() {
    let world = World::new(&config(8 << 20, Compression::Lz4));
    let keys: Vec<_> = (0..300).map(|n| place(n, false)).collect();
    let [(before, more), (after, less)] = [0, 40].map(|shorter| {
        let lens: Vec<_> = (0..300).map(|n| 1500 + n * 5 - shorter).collect();
        let mut results = vec![PageResult::Absent; 300];
        world
            .store
            .put(
                &world.guest,
                PERSISTENT,
                &keys,
                &mut Noise(&lens),
                &mut results,
            )
            .unwrap();
        // Slots that became free are scrubbed, those in use are not.
        world.tidy();
        let contents = world.store.report().contents;
        assert_eq!(contents.compressed_pages, 300);
        (left(&world), contents.compressed_bytes as usize)
    });
    // Hardly any of the bytes is zero: as many are gone as the pages are shorter.
    assert!(more - less >= 300 * 40, "{more} {less}");
    assert!(
        before - after > (more - less) * 9 / 10,
        "{before} {after}, {more} {less}"
    );
}
