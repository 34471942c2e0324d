// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making pages smaller, and whole again.

use std::{cell::RefCell, ffi::c_int};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use zstd_safe::{CCtx, CParameter, DCtx};

use super::{classes::MAX_PACKED, PageBytes, BATCH, PAGE_SIZE};

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
