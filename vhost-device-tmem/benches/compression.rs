// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What it costs to store pages compressed, beside the bare compressor on the same pages, and what
//! they take.
//!
//! Ratios are of times that were taken in turns. Times are the thread's processor time.

mod support;

use std::{ffi::c_int, hint::black_box};

use support::{cpu_nanoseconds, pages};
use vhost_device_tmem::store::{
    Compression, Config, Guest, PageBytes, PageSink, PageSource, PoolKind, Store, PAGE_SIZE,
};
use virtio_tmem_abi::{Key, ObjectId, PageResult};
use zstd_safe::{CCtx, CParameter, DCtx};

const ROUNDS: usize = 9;
const BATCH: usize = 32;

/// A compressor without a store around it.
trait Bare {
    fn compress(&mut self, page: &PageBytes, out: &mut [u8]) -> usize;
    fn decompress(&mut self, packed: &[u8], page: &mut PageBytes) -> usize;
}

struct Copy;

impl Bare for Copy {
    fn compress(&mut self, page: &PageBytes, out: &mut [u8]) -> usize {
        out[..PAGE_SIZE].copy_from_slice(page);
        PAGE_SIZE
    }

    fn decompress(&mut self, packed: &[u8], page: &mut PageBytes) -> usize {
        page.copy_from_slice(packed);
        PAGE_SIZE
    }
}

struct Lz4;

impl Bare for Lz4 {
    fn compress(&mut self, page: &PageBytes, out: &mut [u8]) -> usize {
        // SAFETY: The lengths are those of what the pointers point to.
        let len = unsafe {
            lz4_sys::LZ4_compress_default(
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                PAGE_SIZE as c_int,
                out.len() as c_int,
            )
        };
        len as usize
    }

    fn decompress(&mut self, packed: &[u8], page: &mut PageBytes) -> usize {
        // SAFETY: The lengths are those of what the pointers point to.
        let len = unsafe {
            lz4_sys::LZ4_decompress_safe(
                packed.as_ptr().cast(),
                page.as_mut_ptr().cast(),
                packed.len() as c_int,
                PAGE_SIZE as c_int,
            )
        };
        len as usize
    }
}

struct Zstd(CCtx<'static>, DCtx<'static>);

impl Zstd {
    fn new() -> Self {
        let mut compress = CCtx::create();
        compress
            .set_parameter(CParameter::CompressionLevel(1))
            .unwrap();
        Self(compress, DCtx::create())
    }
}

impl Bare for Zstd {
    fn compress(&mut self, page: &PageBytes, out: &mut [u8]) -> usize {
        self.0.compress2(out, &page[..]).unwrap()
    }

    fn decompress(&mut self, packed: &[u8], page: &mut PageBytes) -> usize {
        self.1.decompress(&mut page[..], packed).unwrap()
    }
}

/// Pages of a request.
struct Given<'p>(&'p [PageBytes]);

impl PageSource for Given<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        frame.copy_from_slice(&self.0[n]);
        true
    }
}

/// Where the pages of a request go to.
struct Taken<'p>(&'p mut [PageBytes]);

impl PageSink for Taken<'_> {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        self.0[n].copy_from_slice(page);
        true
    }
}

fn key(index: usize) -> Key {
    Key {
        object: ObjectId([0.into(), 0.into(), 0.into()]),
        index: (index as u64).into(),
        version: 1.into(),
    }
}

struct World {
    store: Store,
    guest: Guest,
}

impl World {
    fn new(compression: Compression, pages: usize) -> Self {
        let capacity = pages as u64 * PAGE_SIZE as u64 * 5 / 4;
        let store = Store::new(&Config {
            compression,
            ..Config::new(capacity)
        })
        .unwrap();
        let guest = store.add_guest();
        store.create_pool(&guest, 0, PoolKind::Persistent).unwrap();
        Self { store, guest }
    }

    fn put(&self, pages: &[PageBytes]) {
        for (n, pages) in pages.chunks(BATCH).enumerate() {
            let keys: Vec<_> = (n * BATCH..).take(pages.len()).map(key).collect();
            let mut results = [PageResult::Absent; BATCH];
            let results = &mut results[..pages.len()];
            self.store
                .put(&self.guest, 0, &keys, &mut Given(pages), results)
                .unwrap();
            assert!(results.iter().all(|result| *result == PageResult::Stored));
        }
    }

    fn get(&self, pages: &mut [PageBytes]) {
        for (n, pages) in pages.chunks_mut(BATCH).enumerate() {
            let keys: Vec<_> = (n * BATCH..).take(pages.len()).map(key).collect();
            let mut results = [PageResult::Absent; BATCH];
            let results = &mut results[..pages.len()];
            self.store
                .get(&self.guest, 0, false, &keys, &mut Taken(pages), results)
                .unwrap();
            assert!(results.iter().all(|result| *result == PageResult::Hit));
        }
    }
}

/// Returns the nanoseconds that `work` takes for each of `pages`.
fn time(pages: usize, work: impl FnOnce()) -> f64 {
    let start = cpu_nanoseconds();
    work();
    (cpu_nanoseconds() - start) as f64 / pages as f64
}

/// The median, and the lowest and the highest.
fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

fn measure(pages: &[PageBytes], compression: Compression, bare: &mut dyn Bare) -> String {
    let world = World::new(compression, pages.len());
    let mut copies = vec![[0; PAGE_SIZE]; pages.len()];
    let mut out = vec![0; 2 * PAGE_SIZE];
    let mut turned = pages.to_vec();
    let mut packed = Vec::new();
    for page in pages {
        let len = bare.compress(page, &mut out);
        packed.push(out[..len].to_vec());
    }
    world.put(&turned);
    let (mut put, mut get) = ([vec![], vec![], vec![]], [vec![], vec![], vec![]]);
    for _ in 0..ROUNDS {
        // Another page for each key, or else the slots would always fit.
        turned.rotate_left(1);
        let with = time(pages.len(), || world.put(&turned));
        let without = time(pages.len(), || {
            for page in &turned {
                black_box(bare.compress(page, &mut out));
            }
        });
        put[0].push(with);
        put[1].push(without);
        put[2].push(100.0 * without / with);
        let with = time(pages.len(), || world.get(&mut copies));
        assert!(copies == turned);
        let without = time(pages.len(), || {
            for (packed, page) in packed.iter().zip(&mut copies) {
                black_box(bare.decompress(packed, page));
            }
        });
        get[0].push(with);
        get[1].push(without);
        get[2].push(100.0 * without / with);
    }
    let report = world.store.report();
    let count = report.used_pages as f64;
    let contents = report.contents;
    let payload = contents.compressed_bytes + contents.raw_pages * PAGE_SIZE as u64;
    let of_pages = |n: u64| 100.0 * n as f64 / count;
    let [put_with, put_without, put_ratio] = put.map(spread);
    let [get_with, get_without, get_ratio] = get.map(spread);
    format!(
        "put {:5.0} ns, bare {:5.0}, {:3.0} % ({:.0}–{:.0}); get {:5.0} ns, bare {:5.0}, {:3.0} % \
         ({:.0}–{:.0}); {:4.0} bytes of {:.0} %, {:.1} % waste, {:.1} % more free; {:.1} % same, \
         {:.1} % raw",
        put_with.0,
        put_without.0,
        put_ratio.0,
        put_ratio.1,
        put_ratio.2,
        get_with.0,
        get_without.0,
        get_ratio.0,
        get_ratio.1,
        get_ratio.2,
        contents.slot_bytes as f64 / count,
        100.0 * contents.slot_bytes as f64 / (count * PAGE_SIZE as f64),
        100.0 * (contents.slot_bytes - payload) as f64 / contents.slot_bytes.max(1) as f64,
        100.0 * report.resident_bytes as f64 / report.used_bytes as f64 - 100.0,
        of_pages(contents.same_filled_pages),
        of_pages(contents.raw_pages),
    )
}

fn main() {
    let wanted: Vec<_> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    for kind in pages::all() {
        println!("{}: {} pages", kind.name, kind.pages.len());
        let methods: [(&str, Compression, &mut dyn Bare); 3] = [
            ("none", Compression::None, &mut Copy),
            ("lz4", Compression::Lz4, &mut Lz4),
            ("zstd", Compression::Zstd, &mut Zstd::new()),
        ];
        for (name, compression, bare) in methods {
            if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
                println!("  {name:4} {}", measure(&kind.pages, compression, bare));
            }
        }
    }
}
