// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading a stream, which may be damaged, cut off, or no such thing at all.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use super::{
    check,
    record::{Record, Totals},
    MAGIC, MAX_PAYLOAD, MAX_POOLS, VERSION,
};

/// Why a stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It is something else.
    #[error("this is no saved guest")]
    Foreign,
    /// Another program wrote it.
    #[error("it is of version {0}, and this program knows version {VERSION} alone")]
    Version(u32),
    /// There is no end.
    #[error("it is cut off after {0} records")]
    CutOff(u64),
    /// It is not what was written.
    #[error("record {record} is damaged: {what}")]
    Damaged {
        /// Which, from 0 on.
        record: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// There is more than a stream.
    #[error("something follows its end")]
    Trailing,
    /// Whoever wrote it could not go on.
    #[error("it was not saved to its end: {0}")]
    Failed(String),
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[source] io::Error),
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Guest,
    /// Pools, or what comes after them.
    Pools,
    Pages,
    Nothing,
}

/// Reads a stream, and no more than that.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    check: u32,
    totals: Totals,
    next: Next,
    live: bool,
    pools: BTreeSet<u32>,
    /// Records that were read.
    count: u64,
}

impl<R: Read> Reader<R> {
    /// Begins.
    ///
    /// # Errors
    ///
    /// [`StreamError`], where it is nothing to begin with.
    pub fn new(mut input: R) -> Result<Self, StreamError> {
        let mut head = [0; 16];
        input
            .read_exact(&mut head)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => StreamError::Foreign,
                _ => StreamError::Io(error),
            })?;
        if head[..8] != MAGIC {
            return Err(StreamError::Foreign);
        }
        let version = word(&head, 8);
        if version != VERSION {
            return Err(StreamError::Version(version));
        }
        if word(&head, 12) != 0 {
            return Err(StreamError::Foreign);
        }
        Ok(Self {
            input,
            check: 0,
            totals: Totals::default(),
            next: Next::Guest,
            live: false,
            pools: BTreeSet::new(),
            count: 0,
        })
    }

    /// Returns the next record: a [`Record::Guest`] first, then [`Record::Pool`]s, then others, and
    /// [`Record::End`] as the last one, which is to be waited for: only with it the stream is whole.
    ///
    /// # Errors
    ///
    /// [`StreamError`]. A [`Record::Failed`] is one.
    pub fn read_record(&mut self) -> Result<Record, StreamError> {
        let mut head = [0; 12];
        self.read(&mut head)?;
        let (kind, len, sum) = (word(&head, 0), word(&head, 4) as usize, word(&head, 8));
        if len > MAX_PAYLOAD {
            return Err(self.damaged("it is too long"));
        }
        let mut payload = vec![0; len];
        self.read(&mut payload)?;
        self.check = check(self.check, kind, &payload);
        if self.check != sum {
            return Err(self.damaged("its check is another"));
        }
        let record = Record::parse(kind, &payload);
        let record = record.ok_or_else(|| self.damaged("it says nothing of meaning"))?;
        if let Record::Failed(why) = record {
            return Err(StreamError::Failed(why));
        }
        self.admit(&record)?;
        self.totals.add(&record);
        self.count += 1;
        Ok(record)
    }

    /// Returns what is behind the stream.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Looks whether a record may come here.
    fn admit(&mut self, record: &Record) -> Result<(), StreamError> {
        let admitted = match record {
            Record::Guest(_) => self.next == Next::Guest,
            Record::Pool(pool) => {
                self.next == Next::Pools
                    && self.pools.len() < MAX_POOLS
                    && self.pools.insert(pool.number)
            }
            Record::Pages { pool, .. } | Record::Gone { pool, .. } => {
                self.goes_on() && self.pools.contains(pool)
            }
            Record::Live { pages } => {
                let first = !std::mem::replace(&mut self.live, true);
                self.goes_on() && first && *pages == self.totals.pages
            }
            Record::Damaged { pages } => self.goes_on() && self.totals.damaged == 0 && *pages > 0,
            Record::End(totals) => self.goes_on() && *totals == self.totals,
            Record::Failed(_) => true,
        };
        if !admitted {
            return Err(self.damaged("it does not belong there"));
        }
        self.next = match record {
            Record::Guest(_) | Record::Pool(_) => Next::Pools,
            Record::End(_) => Next::Nothing,
            _ => Next::Pages,
        };
        Ok(())
    }

    fn goes_on(&self) -> bool {
        matches!(self.next, Next::Pools | Next::Pages)
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), StreamError> {
        self.input
            .read_exact(bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => StreamError::CutOff(self.count),
                _ => StreamError::Io(error),
            })
    }

    fn damaged(&self, what: &'static str) -> StreamError {
        let record = self.count;
        StreamError::Damaged { record, what }
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    u32::from_le_bytes(word)
}
