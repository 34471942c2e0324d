// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's persistent pages as a stream, which can be kept in a file, and given back.
//!
//! ```text
//! stream  = "TMEMSAVE" │ version le32 │ 0 le32 │ record…
//! record  = kind le32 │ length le32 │ check le32 │ payload
//!
//! Guest    epoch le64 │ page_shift u8 │ name
//! Pool     number le32 │ hold u8                    before all pages; a pool comes once
//! Pages    pool le32 │ count le32 │ count × ( key │ 0 u8 │ word le64      the page repeats the word
//!                                           │ key │ 1 u8 │ page )
//! Gone     pool le32 │ key…                         pages that came before and are no more
//! Live     pages le64                               so many came while the guest ran
//! End      pages le64 │ gone le64 │ damaged le64    of all records; nothing follows
//! Failed   text                                     why there is no end
//! Damaged  pages le64                               so many are missing: they could not be read back
//! ```
//!
//! The check of a record is a CRC32C of its kind, its length and its payload, begun with the check of
//! the record before: what is missing, or in another place, is found as well as what was changed. A
//! page that comes again under its object and index takes the place of the one before.

mod reader;
mod record;
mod writer;

pub use reader::{Reader, StreamError};
pub use record::{Contents, GuestHead, Page, PoolHead, Record, Totals, MAX_PAGES};
pub use writer::Writer;

/// The version of the format. It changes with anything that a reader of this one would misunderstand.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"TMEMSAVE";

/// The longest payload, in bytes.
const MAX_PAYLOAD: usize = 256 << 10;

/// The most pools.
const MAX_POOLS: usize = 4096;

/// Returns the check of a record that follows one with the check `before`.
fn check(before: u32, kind: u32, payload: &[u8]) -> u32 {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&kind.to_le_bytes());
    // INVARIANT: No payload is longer than `MAX_PAYLOAD`.
    head[4..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(before, &head), payload)
}

/// Reads a stream that a fuzzer made up.
///
/// # Panics
///
/// Where the reader takes it for what it cannot be.
#[cfg(feature = "fuzzing")]
pub fn saved(data: &[u8]) {
    let Ok(mut reader) = Reader::new(data) else {
        return;
    };
    let mut records = Vec::new();
    loop {
        match reader.read_record() {
            Ok(record) => {
                let last = matches!(record, Record::End(_));
                records.push(record);
                if last {
                    break;
                }
            }
            Err(_) => return,
        }
    }
    // What is whole is written again just as it was.
    let mut written = Vec::new();
    let mut writer = Writer::new(&mut written).expect("there is memory");
    for record in &records {
        writer.write(record).expect("there is memory");
    }
    assert_eq!(data.get(..written.len()), Some(&*written));
}
