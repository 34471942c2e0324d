// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file or a block device of this host, written as a log.
//!
//! ```text
//! header │ segment │ segment │ segment │ …
//!   4 KiB     2 MiB
//! ```
//!
//! Records are appended to one segment after the other, a batch by one write. A segment all of whose
//! pages are gone is free again, and one of which few are there is emptied into another by the store,
//! which knows what is there. Nothing on the disk says which records are still of use: the entries of
//! pages do, in memory that outlives the worker, and each process begins with what they say.
//!
//! Input and output are direct, by `pread` and `pwrite` of a few threads. `io_uring` would save some
//! processor time at rates that no disk of a host has which pages are spilled to, and it takes calls
//! that the sandbox kills a process for, with good reason: no filter sees what is asked for by it.

mod header;
mod log;
mod reads;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    time::Instant,
};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Arrival, Place, Record, Tier, TierError, TierReport};
use log::{Log, SEGMENT};
use reads::Reads;

pub(crate) use header::is_size;
pub use header::{identity, prepare, SpillError};
pub use log::MIN_SIZE;

/// What direct input and output goes by: no disk has larger sectors.
const BLOCK: usize = 4096;

/// Memory that direct input and output takes.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

const _: () = assert!(size_of::<Block>() == BLOCK && align_of::<Block>() == BLOCK);

/// Returns so many blocks of zeros.
fn blocks(count: usize) -> Vec<Block> {
    vec![Block::new_zeroed(); count]
}

/// The spill file.
#[derive(Debug)]
pub struct Spill {
    file: Arc<File>,
    log: Mutex<Log>,
    reads: Reads,
    /// What is written at the moment, and since when.
    writing: Mutex<Option<Instant>>,
    written: AtomicU64,
    write_errors: AtomicU64,
}

impl Spill {
    /// Uses a file that was [prepared](prepare), of so many bytes, of which nothing is in use until it
    /// is [adopted](Tier::adopt). Its threads run until the process ends.
    ///
    /// # Errors
    ///
    /// The operating system's, where there is no thread left.
    pub fn start(file: File, size: u64) -> io::Result<Self> {
        let file = Arc::new(file);
        Ok(Self {
            reads: Reads::start(&file)?,
            file,
            log: Mutex::new(Log::new(size)),
            writing: Mutex::default(),
            written: AtomicU64::new(0),
            write_errors: AtomicU64::new(0),
        })
    }

    /// Does something that may take long, and counts if it fails.
    fn write<R>(&self, write: impl FnOnce(&File) -> io::Result<R>) -> Result<R, TierError> {
        *lock(&self.writing) = Some(Instant::now());
        let written = write(&self.file);
        *lock(&self.writing) = None;
        written.map_err(|error| {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => TierError::Failed(
                    "the disk beneath the spill file is full; make room there".to_owned(),
                ),
                _ => TierError::Failed(format!("the spill file cannot be written: {error}")),
            }
        })
    }
}

impl Tier for Spill {
    fn put(&self, records: &[Record]) -> Result<Vec<Place>, TierError> {
        let lens = records.iter().map(|record| record.bytes.len());
        let len = log::batch_len(lens);
        let at = lock(&self.log).reserve(len).ok_or(TierError::Full)?;
        let mut batch = blocks(len / BLOCK);
        let bytes = batch.as_mut_slice().as_mut_bytes();
        let mut places = Vec::with_capacity(records.len());
        let mut next = 0;
        for record in records {
            let len = record.bytes.len();
            bytes[next..next + len].copy_from_slice(&record.bytes);
            places.push(log::place(at + next as u64, len));
            next += log::padded(len);
        }
        // Where this fails, what was reserved stays unused until the segment is free again.
        self.write(|file| file.write_all_at(bytes, at))?;
        let mut log = lock(&self.log);
        for (place, record) in places.iter().zip(records) {
            log.add(*place, record.owner);
        }
        self.written
            .fetch_add(records.len() as u64, Ordering::Relaxed);
        Ok(places)
    }

    fn sync(&self) -> Result<(), TierError> {
        self.write(File::sync_data)
    }

    fn get(&self, place: Place, arrival: Arc<Arrival>) {
        self.reads.read(place, arrival);
    }

    fn remove(&self, place: Place) {
        lock(&self.log).remove(place);
    }

    fn adopt(&self, place: Place, owner: u32) -> bool {
        let mut log = lock(&self.log);
        let can_be = log.has(place);
        if can_be {
            log.add(place, owner);
        }
        can_be
    }

    fn is_crowded(&self) -> bool {
        lock(&self.log).is_sparse()
    }

    fn crowded(&self) -> Vec<(Place, u32)> {
        lock(&self.log).sparsest().to_vec()
    }

    fn report(&self) -> TierReport {
        let (read, read_errors, waiting, oldest) = self.reads.report();
        let writing = lock(&self.writing).as_ref().map(Instant::elapsed);
        let slowest = writing.max(oldest).unwrap_or_default();
        let log = lock(&self.log);
        TierReport {
            engine: "spill".to_owned(),
            size_bytes: log.size(),
            used_bytes: log.live(),
            free_bytes: log.free(),
            written: self.written.load(Ordering::Relaxed),
            read,
            write_errors: self.write_errors.load(Ordering::Relaxed),
            read_errors,
            waiting,
            slowest_ms: u64::try_from(slowest.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most bytes of records that are put at once.
pub const MAX_BATCH: u64 = SEGMENT / 4;

const _: () = assert!(SEGMENT % BLOCK as u64 == 0);
