// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making pages smaller, and whole again.

use std::{cell::RefCell, ffi::c_int};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use zstd_safe::{CCtx, CParameter, DCtx};

use super::{
    classes::{class_of, ClassId, MAX_PACKED, RAW},
    PageBytes, BATCH, PAGE_SIZE,
};

/// How pages are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all: every page takes a page.
    #[default]
    None,
    /// By LZ4, which is fast.
    Lz4,
    /// By Zstandard at its level 1, which is slower and makes pages smaller.
    Zstd,
}

/// The level of Zstandard: higher ones take longer, and do not make single pages much smaller.
const ZSTD_LEVEL: i32 = 1;

/// What a page came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoded {
    /// The source did not give all of it.
    Failed,
    /// It repeats this word.
    Same(u64),
    /// It is compressed to so many bytes, at most [`MAX_PACKED`].
    Packed(u16),
    /// It is as it was.
    Raw,
}

impl Encoded {
    /// Returns the class of slots that it goes into, if any.
    pub(super) fn class(self) -> Option<ClassId> {
        match self {
            Self::Failed | Self::Same(_) => None,
            Self::Packed(len) => Some(class_of(len.into())),
            Self::Raw => Some(RAW),
        }
    }

    /// Returns the bytes that it takes.
    pub(super) fn packed_len(self) -> usize {
        match self {
            Self::Failed | Self::Same(_) => 0,
            Self::Packed(len) => len.into(),
            Self::Raw => PAGE_SIZE,
        }
    }
}

/// Memory that a thread works in. Guests may write to their pages at any time, so that what is
/// compressed is always a copy of ours; and one that the processor has in its cache.
pub(super) struct Workspace {
    page: PageBytes,
    /// What a batch of pages came to, one after the other, as many as `len` bytes.
    packed: Box<[u8]>,
    len: usize,
    zstd: Option<(CCtx<'static>, DCtx<'static>)>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace {
        page: [0; PAGE_SIZE],
        packed: vec![0; BATCH * PAGE_SIZE].into_boxed_slice(),
        len: 0,
        zstd: None,
    });
}

impl Workspace {
    /// Lends the thread's.
    pub(super) fn with<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        WORKSPACE.with_borrow_mut(work)
    }

    /// Starts another batch.
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    /// Encodes the page that `fill` gives, as one more of the batch.
    pub(super) fn encode(
        &mut self,
        compression: Compression,
        fill: impl FnOnce(&mut PageBytes) -> bool,
    ) -> Encoded {
        if !fill(&mut self.page) {
            return Encoded::Failed;
        }
        if let Some(word) = same_filled(&self.page) {
            return Encoded::Same(word);
        }
        let (_, rest) = self.packed.split_at_mut(self.len);
        let packed = &mut rest[..MAX_PACKED];
        let len = match compression {
            Compression::None => None,
            Compression::Lz4 => lz4_compress(&self.page, packed),
            Compression::Zstd => {
                let zstd = self.zstd.get_or_insert_with(zstd_contexts);
                zstd.0.compress2(packed, &self.page[..]).ok()
            }
        };
        match len {
            Some(len) => {
                self.len += len;
                Encoded::Packed(len as u16)
            }
            None => {
                rest[..PAGE_SIZE].copy_from_slice(&self.page);
                self.len += PAGE_SIZE;
                Encoded::Raw
            }
        }
    }

    /// Returns the bytes of the batch.
    pub(super) fn packed(&self) -> &[u8] {
        &self.packed[..self.len]
    }

    /// Returns the page that was compressed to `packed`; [`None`] if it was not one.
    pub(super) fn decode(&mut self, compression: Compression, packed: &[u8]) -> Option<&PageBytes> {
        let len = match compression {
            Compression::None => None,
            Compression::Lz4 => lz4_decompress(packed, &mut self.page),
            Compression::Zstd => {
                let zstd = self.zstd.get_or_insert_with(zstd_contexts);
                zstd.1.decompress(&mut self.page[..], packed).ok()
            }
        };
        // Less would leave some of another page.
        (len == Some(PAGE_SIZE)).then_some(&self.page)
    }

    /// Returns a page that repeats `word`.
    pub(super) fn repeat(&mut self, word: u64) -> &PageBytes {
        for bytes in self.page.chunks_exact_mut(8) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        &self.page
    }
}

/// Returns the word that a page repeats, if it does.
fn same_filled(page: &PageBytes) -> Option<u64> {
    let (first, rest) = page.split_first_chunk::<8>()?;
    // That each byte equals the one eight before it says the same, and is one fast comparison.
    (*rest == page[..PAGE_SIZE - 8]).then(|| u64::from_ne_bytes(*first))
}

fn lz4_compress(page: &PageBytes, packed: &mut [u8]) -> Option<usize> {
    // SAFETY: It reads no more than the first length from the first pointer, and writes no more
    // than the second to the second.
    let len = unsafe {
        lz4_sys::LZ4_compress_default(
            page.as_ptr().cast(),
            packed.as_mut_ptr().cast(),
            PAGE_SIZE as c_int,
            packed.len() as c_int,
        )
    };
    usize::try_from(len).ok().filter(|len| *len > 0)
}

fn lz4_decompress(packed: &[u8], page: &mut PageBytes) -> Option<usize> {
    let len = c_int::try_from(packed.len()).ok()?;
    // SAFETY: As above; it checks what it reads.
    let len = unsafe {
        lz4_sys::LZ4_decompress_safe(
            packed.as_ptr().cast(),
            page.as_mut_ptr().cast(),
            len,
            PAGE_SIZE as c_int,
        )
    };
    usize::try_from(len).ok()
}

fn zstd_contexts() -> (CCtx<'static>, DCtx<'static>) {
    let mut compress = CCtx::create();
    for parameter in [
        CParameter::CompressionLevel(ZSTD_LEVEL),
        // Each is a page long.
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ] {
        compress
            .set_parameter(parameter)
            .expect("Zstandard has these parameters");
    }
    (compress, DCtx::create())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPRESSORS: [Compression; 2] = [Compression::Lz4, Compression::Zstd];

    /// A page of which little repeats, but enough.
    fn page() -> PageBytes {
        let mut page = [0; PAGE_SIZE];
        for (at, byte) in page.iter_mut().enumerate() {
            *byte = (at * at / 7) as u8;
        }
        page
    }

    #[test]
    fn a_page_that_repeats_a_word_is_that_word() {
        let mut page = [0xa5; PAGE_SIZE];
        assert_eq!(same_filled(&page), Some(0xa5a5_a5a5_a5a5_a5a5));
        for at in [0, 7, 8, 2048, PAGE_SIZE - 1] {
            page[at] ^= 1;
            assert_eq!(same_filled(&page), None, "{at}");
            page[at] ^= 1;
        }
        for bytes in page.chunks_exact_mut(8) {
            bytes.copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_ne_bytes());
        }
        assert_eq!(same_filled(&page), Some(0x0123_4567_89ab_cdef));
        Workspace::with(|space| assert_eq!(*space.repeat(0x0123_4567_89ab_cdef), page));
    }

    #[test]
    fn what_is_compressed_comes_back() {
        for compression in COMPRESSORS {
            Workspace::with(|space| {
                space.clear();
                let encoded = space.encode(compression, |into| {
                    *into = page();
                    true
                });
                let Encoded::Packed(len) = encoded else {
                    panic!("{encoded:?}");
                };
                let packed = space.packed().to_vec();
                assert_eq!(packed.len(), usize::from(len));
                assert_eq!(space.decode(compression, &packed), Some(&page()));
            });
        }
    }

    #[test]
    fn what_is_not_a_whole_page_is_none() {
        let more = [page(), page()].concat();
        for compression in COMPRESSORS {
            for bytes in [&more[..PAGE_SIZE / 2], &more[..PAGE_SIZE - 1], &more] {
                let packed = packed(compression, bytes);
                Workspace::with(|space| assert_eq!(space.decode(compression, &packed), None));
            }
            let mut whole = packed(compression, &page());
            whole.pop();
            Workspace::with(|space| {
                assert_eq!(space.decode(compression, &whole), None);
                assert_eq!(space.decode(compression, &[]), None);
                // What cannot be had is not the page before.
                assert_eq!(space.encode(compression, |_| false), Encoded::Failed);
            });
        }
    }

    fn packed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        let mut packed = vec![0; 3 * PAGE_SIZE];
        let len = match compression {
            Compression::Zstd => zstd_safe::compress(&mut packed[..], bytes, 1).unwrap(),
            _ => {
                // SAFETY: The lengths are those of what the pointers point to.
                let len = unsafe {
                    lz4_sys::LZ4_compress_default(
                        bytes.as_ptr().cast(),
                        packed.as_mut_ptr().cast(),
                        bytes.len() as c_int,
                        packed.len() as c_int,
                    )
                };
                len as usize
            }
        };
        packed.truncate(len);
        packed
    }
}
