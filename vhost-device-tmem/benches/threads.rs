// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What guests on threads of their own get out of the store together: whether they wait for each
//! other.
//!
//! Each puts batches of pages over what it put before, and gets them back. Rates are by wall time,
//! so that nothing else should run on the machine.

mod support;

use std::{
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use support::pages;
use vhost_device_tmem::store::{
    Compression, Config, PageBytes, PageSink, PageSource, PoolKind, Store, PAGE_SIZE,
};
use virtio_tmem_abi::{Key, ObjectId, PageResult};

const BATCH: usize = 32;
/// Pages of each guest.
const PAGES: usize = 4096;
const TIME: Duration = Duration::from_millis(700);
const ROUNDS: usize = 3;
const THREADS: [usize; 4] = [1, 2, 8, 64];

/// Copies pages, or does not, to see the store alone.
struct Copies<'p> {
    from: &'p [PageBytes],
    to: PageBytes,
    copy: bool,
}

impl PageSource for Copies<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        if self.copy {
            frame.copy_from_slice(&self.from[n]);
        }
        true
    }
}

impl PageSink for Copies<'_> {
    fn write_page(&mut self, _n: usize, page: &PageBytes) -> bool {
        if self.copy {
            self.to.copy_from_slice(page);
            black_box(&self.to);
        }
        true
    }
}

/// Runs guests on `threads` threads, and returns the pages a second of all, and what each batch
/// took.
fn run(store: &Store, threads: usize, pages: &[PageBytes], copy: bool) -> (f64, Vec<Duration>) {
    let start = Barrier::new(threads);
    let guest = |_| {
        let guest = store.add_guest();
        store.create_pool(&guest, 0, PoolKind::Persistent).unwrap();
        let mut copies = Copies {
            from: pages,
            to: [0; PAGE_SIZE],
            copy,
        };
        let mut times = Vec::new();
        let mut batch = |first: usize| {
            let keys: [Key; BATCH] = std::array::from_fn(|n| Key {
                object: ObjectId([1.into(), 0.into(), 0.into()]),
                index: ((first + n) as u64).into(),
                version: 1.into(),
            });
            let mut results = [PageResult::Absent; BATCH];
            copies.from = &pages[first % (pages.len() - BATCH)..];
            store
                .put(&guest, 0, &keys, &mut copies, &mut results)
                .unwrap();
            store
                .get(&guest, 0, false, &keys, &mut copies, &mut results)
                .unwrap();
        };
        (0..PAGES).step_by(BATCH).for_each(&mut batch);
        start.wait();
        let begin = Instant::now();
        'time: loop {
            for first in (0..PAGES).step_by(BATCH) {
                let before = Instant::now();
                if before - begin > TIME {
                    break 'time;
                }
                batch(first);
                times.push(before.elapsed());
            }
        }
        store.remove_guest(&guest);
        times
    };
    let times: Vec<_> = thread::scope(|scope| {
        let guests: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || guest(n)))
            .collect();
        guests
            .into_iter()
            .flat_map(|guest| guest.join().unwrap())
            .collect()
    });
    let rate = (times.len() * BATCH) as f64 / TIME.as_secs_f64();
    (rate, times)
}

fn main() {
    let executables = pages::all().swap_remove(0).pages;
    let kinds = [
        ("none, not copied", Compression::None, false),
        ("none", Compression::None, true),
        ("lz4", Compression::Lz4, true),
    ];
    for (name, compression, copy) in kinds {
        let store = Store::new(&Config {
            compression,
            ..Config::new(2 << 30)
        })
        .unwrap();
        let mut all = THREADS.map(|_| (Vec::new(), Vec::new()));
        for _ in 0..ROUNDS {
            for (threads, (rates, times)) in THREADS.iter().zip(&mut all) {
                let (rate, more) = run(&store, *threads, &executables, copy);
                rates.push(rate);
                times.extend(more);
            }
        }
        println!("{name}:");
        for (threads, (mut rates, mut times)) in THREADS.into_iter().zip(all) {
            rates.sort_by(f64::total_cmp);
            times.sort();
            let micros =
                |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1e6;
            println!(
                "  {threads:2} guests: {:5.2} million pages put and got a second; a batch of {BATCH} \
                 takes {:.0} µs, 1 % longer than {:.0} µs, 0.1 % longer than {:.0} µs",
                rates[ROUNDS / 2] / 1e6,
                micros(0.5),
                micros(0.99),
                micros(0.999),
            );
        }
    }
}
