// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The compressors that the daemon has, without the daemon.

use std::ffi::c_int;

use anyhow::{ensure, Result};
use serde::Deserialize;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zstd_safe::{CCtx, CParameter, DCtx};

use crate::{
    bare::{timed, Speed},
    layout::{Layout, PAGE},
};

/// How pages are compressed, as the daemon does it.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    Lz4,
    Zstd,
}

/// Room for a page that becomes larger.
const ROOM: usize = PAGE + 512;

type Page = [u8; PAGE];

/// Compresses all pages that are put, or decompresses them to where they come back to.
pub(crate) fn run(
    method: Method,
    decompress: bool,
    mem: &GuestMemoryMmap,
    layout: &Layout,
    cpu: usize,
) -> Result<Speed> {
    let pages = layout.pages();
    let mut codec = Codec::new(method)?;
    let mut packed = [0; ROOM];
    let mut page = [0; PAGE];
    if !decompress {
        return timed(cpu, pages, || {
            for n in Layout::shuffled(pages) {
                // As whoever shares memory with a guest has to copy it first.
                mem.read_slice(&mut page, GuestAddress(layout.source(n)))?;
                codec.pack(&page, &mut packed)?;
            }
            Ok(())
        });
    }
    let mut all = Vec::new();
    let mut ends = Vec::new();
    for n in 0..pages {
        mem.read_slice(&mut page, GuestAddress(layout.source(n)))?;
        let len = codec.pack(&page, &mut packed)?;
        all.extend(&packed[..len]);
        ends.push(all.len());
    }
    timed(cpu, pages, || {
        for n in Layout::shuffled(pages) {
            let end = ends[n as usize];
            let start = n.checked_sub(1).map_or(0, |before| ends[before as usize]);
            codec.unpack(&all[start..end], &mut page)?;
            mem.write_slice(&page, GuestAddress(layout.target(n)))?;
        }
        Ok(())
    })
}

enum Codec {
    Lz4,
    Zstd(CCtx<'static>, DCtx<'static>),
}

impl Codec {
    fn new(method: Method) -> Result<Self> {
        Ok(match method {
            Method::Lz4 => Self::Lz4,
            Method::Zstd => {
                let mut context = CCtx::create();
                let set = context.set_parameter(CParameter::CompressionLevel(1));
                ensure!(set.is_ok(), "Zstandard has no level 1");
                Self::Zstd(context, DCtx::create())
            }
        })
    }

    fn pack(&mut self, page: &Page, packed: &mut [u8; ROOM]) -> Result<usize> {
        let len = match self {
            Self::Lz4 => {
                // SAFETY: It reads no more than the first length from the first pointer, and
                // writes no more than the second to the second.
                let len = unsafe {
                    lz4_sys::LZ4_compress_default(
                        page.as_ptr().cast(),
                        packed.as_mut_ptr().cast(),
                        PAGE as c_int,
                        ROOM as c_int,
                    )
                };
                usize::try_from(len).unwrap_or(0)
            }
            Self::Zstd(context, _) => context.compress2(&mut packed[..], &page[..]).unwrap_or(0),
        };
        ensure!(len > 0, "a page cannot be compressed");
        Ok(len)
    }

    fn unpack(&mut self, packed: &[u8], page: &mut Page) -> Result<()> {
        let len = match self {
            Self::Lz4 => {
                // SAFETY: As above; it checks what it reads.
                let len = unsafe {
                    lz4_sys::LZ4_decompress_safe(
                        packed.as_ptr().cast(),
                        page.as_mut_ptr().cast(),
                        packed.len() as c_int,
                        PAGE as c_int,
                    )
                };
                usize::try_from(len).unwrap_or(0)
            }
            Self::Zstd(_, context) => context.decompress(&mut page[..], packed).unwrap_or(0),
        };
        ensure!(len == PAGE, "a page cannot be decompressed");
        Ok(())
    }
}
