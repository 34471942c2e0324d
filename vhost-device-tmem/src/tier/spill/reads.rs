// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Threads that read records, for whoever must not wait.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Condvar, Mutex, PoisonError,
    },
    thread,
    time::{Duration, Instant},
};

use zerocopy::IntoBytes;

use super::{
    super::{seal::MAX_SEALED, Arrival, Place, TierError},
    blocks, lock,
    log::extent,
    BLOCK,
};

/// How many read at a time. Disks are read by several at a time; more would wait for each other.
const THREADS: usize = 8;

/// How often a read that fails is tried.
const TRIES: u32 = 3;

/// The time between two of those.
const PAUSE: Duration = Duration::from_millis(20);

/// A record that is to be read.
#[derive(Debug)]
struct Job {
    place: Place,
    arrival: Arc<Arrival>,
    since: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// When each thread began with what it reads.
    reading: [Option<Instant>; THREADS],
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    read: AtomicU64,
    errors: AtomicU64,
}

/// The threads. How many records wait is bounded by those that wait for them.
#[derive(Debug)]
pub(super) struct Reads {
    shared: Arc<Shared>,
}

impl Reads {
    /// Starts them, to run until the process ends.
    ///
    /// # Errors
    ///
    /// The operating system's, where there is no thread left.
    pub(super) fn start(file: &Arc<File>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        for number in 0..THREADS {
            let (shared, file) = (Arc::clone(&shared), Arc::clone(file));
            let name = format!("spill {number}");
            let read = move || shared.run(number, &file);
            thread::Builder::new().name(name).spawn(read)?;
        }
        Ok(Self { shared })
    }

    /// Has a record read.
    pub(super) fn read(&self, place: Place, arrival: Arc<Arrival>) {
        let since = Instant::now();
        let job = Job {
            place,
            arrival,
            since,
        };
        lock(&self.shared.queue).waiting.push_back(job);
        self.shared.more.notify_one();
    }

    /// Returns how many records were read, how many could not be, how many are waited for, and since
    /// when the oldest of those is.
    pub(super) fn report(&self) -> (u64, u64, u64, Option<Duration>) {
        let shared = &*self.shared;
        let queue = lock(&shared.queue);
        let reading = queue.reading.iter().flatten();
        let waiting = queue.waiting.len() + reading.clone().count();
        let since = queue.waiting.iter().map(|job| &job.since);
        let oldest = reading.chain(since).map(Instant::elapsed).max();
        (
            shared.read.load(Ordering::Relaxed),
            shared.errors.load(Ordering::Relaxed),
            waiting as u64,
            oldest,
        )
    }
}

impl Shared {
    fn run(&self, number: usize, file: &File) {
        // A record may begin and end anywhere.
        let mut buffer = blocks(MAX_SEALED.div_ceil(BLOCK) + 1);
        loop {
            let queue = lock(&self.queue);
            let idle = |queue: &mut Queue| queue.waiting.is_empty();
            let waited = self.more.wait_while(queue, idle);
            let mut queue = waited.unwrap_or_else(PoisonError::into_inner);
            let Some(job) = queue.waiting.pop_front() else {
                continue;
            };
            queue.reading[number] = Some(job.since);
            drop(queue);
            // Nobody waits for one that is late.
            if job.arrival.is_waiting() {
                job.arrival.arrive(self.read(file, job.place, &mut buffer));
            }
            lock(&self.queue).reading[number] = None;
        }
    }

    fn read(
        &self,
        file: &File,
        place: Place,
        buffer: &mut [super::Block],
    ) -> Result<Vec<u8>, TierError> {
        let (at, len) = extent(place);
        let start = at / BLOCK as u64 * BLOCK as u64;
        let before = (at - start) as usize;
        let bytes = buffer.as_mut_bytes();
        let whole = (before + len).next_multiple_of(BLOCK);
        let Some(to) = bytes.get_mut(..whole) else {
            return Err(TierError::Damaged);
        };
        let mut tried = 1;
        while let Err(error) = file.read_exact_at(to, start) {
            if tried == TRIES {
                self.errors.fetch_add(1, Ordering::Relaxed);
                let what = format!("the spill file cannot be read at {at}: {error}");
                return Err(TierError::Failed(what));
            }
            tried += 1;
            thread::sleep(PAUSE);
        }
        self.read.fetch_add(1, Ordering::Relaxed);
        Ok(to[before..before + len].to_vec())
    }
}
