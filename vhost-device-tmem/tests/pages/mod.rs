// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages to put into a store, and to recognise when they come out.

// Not every test uses all of it.
#![allow(dead_code)]

use vhost_device_tmem::store::{Compression, Config, PageBytes, PageSink, PageSource, PAGE_SIZE};
use virtio_tmem_abi::{Key, ObjectId};

/// Every way to compress, and not to.
pub(crate) const COMPRESSIONS: [Compression; 3] =
    [Compression::None, Compression::Lz4, Compression::Zstd];

/// Returns a store of this capacity that compresses in this way.
pub(crate) fn config(capacity: u64, compression: Compression) -> Config {
    Config {
        compression,
        ..Config::new(capacity)
    }
}

pub(crate) fn key(object: u64, index: u64, version: u64) -> Key {
    Key {
        object: ObjectId([object.into(), 0.into(), 0.into()]),
        index: index.into(),
        version: version.into(),
    }
}

/// Kinds of contents.
pub(crate) const KINDS: u64 = 8;
/// The kind that no compression makes smaller.
const RANDOM: u64 = 3;

/// Returns the number of the `n`th page that no compression makes smaller.
pub(crate) const fn random_page(n: u64) -> u64 {
    n * KINDS + RANDOM
}

/// The page of this number, which is of kind `number % KINDS`. No two are the same but for the
/// kind of zeros.
pub(crate) fn contents(number: u64) -> PageBytes {
    let mut page = [0; PAGE_SIZE];
    match number % KINDS {
        // Zeros.
        0 => {}
        // The same word, again and again.
        1 => fill(&mut page, |_| number.to_le_bytes()),
        // Text.
        2 => fill(&mut page, |at| {
            let word = mixed(number ^ (mixed(at) % 97)) % 1000;
            let text = format!("{word:03} the ");
            text.as_bytes().try_into().unwrap()
        }),
        RANDOM => fill(&mut page, |at| {
            mixed(number.rotate_left(32) ^ at).to_le_bytes()
        }),
        // Random but for a little, from which some compressors gain something.
        4 => fill(&mut page, |at| {
            let from = if at < 60 { at % 20 } else { at };
            mixed(number.rotate_left(32) ^ from).to_le_bytes()
        }),
        // Hardly anything.
        5 => page[(number as usize / 8) % 4000..][..8].copy_from_slice(&number.to_le_bytes()),
        // The same word but in the end.
        6 => {
            fill(&mut page, |_| number.to_le_bytes());
            page[PAGE_SIZE - 1] ^= 1;
        }
        // Pointers, say.
        _ => fill(&mut page, |at| {
            let below = mixed(number ^ at) % (1 << (number / 8 % 24));
            (0x7fff_0000_0000 | below).to_le_bytes()
        }),
    }
    if number % KINDS == 2 {
        page[..8].copy_from_slice(&number.to_le_bytes());
    }
    page
}

fn fill(page: &mut PageBytes, mut word: impl FnMut(u64) -> [u8; 8]) {
    for (at, bytes) in (0..).zip(page.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(at));
    }
}

/// Mixes the bits of a number.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Pages of which the first has this number, and each the one after that of the page before.
pub(crate) struct Stamped(pub(crate) u64);

impl PageSource for Stamped {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        *frame = contents(self.0 + n as u64);
        true
    }
}

impl PageSink for Stamped {
    fn write_page(&mut self, n: usize, page: &PageBytes) -> bool {
        assert!(*page == contents(self.0 + n as u64), "a foreign page");
        true
    }
}
