// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows: memory that guests put pages into by themselves.
//!
//! ```text
//! create ── files ──┬── file: header │ report │ chunks     the guest has it mapped, and can write
//!                   └── book: what is granted              nobody else has it
//! Window = book + ledger (what is whose) + mapping
//!          choice (what goes first)
//! ```
//!
//! The supervisor makes the files and keeps them; a worker lends the chunks, and the next one goes
//! on with what the book says. Nothing that is in the window is believed.
//!
//! What the file takes of the host's memory is what is granted and the first two chunks, as long as
//! the guest writes nowhere else. Where it does it takes more, up to the size of the file, and
//! [`Window::trim`] takes that away again.

mod book;
mod choice;
mod create;
mod entry;
mod huge;
mod ledger;
mod mapping;
mod source;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{fallocate, FallocateFlags};
use virtio_tmem_abi::{
    ChunkKind, WindowHeader, WindowReport, CHUNK_SHIFT, FIRST_CHUNK, MAX_CHUNKS, WINDOW_MAGIC,
    WINDOW_VERSION,
};

pub use book::Mode;
pub use create::{create, OwnedPath, WindowError, WindowFiles};
pub use huge::small_pages;
pub use ledger::Counts;
pub use source::WindowSource;

use book::{Book, Record};
use choice::coldest;
use ledger::Ledger;
use mapping::Mapping;

use crate::store::{taken, PageBytes, PAGE_SHIFT};

/// The size of a chunk in bytes.
pub const CHUNK: u64 = 1 << CHUNK_SHIFT;

/// The slots of a chunk.
pub const CHUNK_SLOTS: u32 = 1 << (CHUNK_SHIFT - PAGE_SHIFT);

/// The smallest window in bytes: two chunks can be granted.
pub const MIN_SIZE: u64 = 4 * CHUNK;

/// The largest window in bytes.
pub const MAX_SIZE: u64 = MAX_CHUNKS as u64 * CHUNK;

/// The bytes that a window takes while it is open, besides what is granted.
pub const OVERHEAD: u64 = FIRST_CHUNK as u64 * CHUNK;

/// The most chunks of which the memory is taken under one hold of the lock: 64 MiB.
const TRIMMED_AT_ONCE: u32 = 32;

#[derive(Debug)]
struct Inner {
    ledger: Ledger,
    record: Record,
    /// What is written cannot be written down, or the memory is gone.
    failed: bool,
}

/// A guest's window, served.
///
/// # Locking
///
/// `memory` is taken before `inner`, and held while memory comes or goes. `inner` is held for short.
#[derive(Debug)]
pub struct Window {
    file: File,
    mapping: Mapping,
    book: Book,
    memory: Mutex<()>,
    inner: Mutex<Inner>,
}

impl Window {
    /// Opens the files of a window, which nobody else serves, and goes on with what was granted.
    ///
    /// # Errors
    ///
    /// [`WindowError`].
    pub fn open(file: OwnedFd, book: OwnedFd) -> Result<Self, WindowError> {
        let failed = |what| {
            move |error| WindowError::Io {
                what,
                path: "a window".into(),
                error,
            }
        };
        let book = Book::open(book)?;
        let len = u64::from(book.chunks()) * CHUNK;
        let file = File::from(file);
        let has = file.metadata().map_err(failed("examine"))?.len();
        if has != len {
            let why = format!("it has {has} bytes, and not {len}");
            return Err(WindowError::Foreign { what: "file", why });
        }
        let copy = file.try_clone().map_err(failed("open"))?;
        let mapping = Mapping::new(copy, len as usize).map_err(failed("map"))?;
        let record = book.record().map_err(failed("read the book of"))?;
        let words = book.words().map_err(failed("read the book of"))?;
        let (ledger, damaged) = Ledger::restore(&words, record.ticket);
        if damaged > 0 {
            tracing::error!(
                "what is known of {damaged} chunks of a window is damaged: they are lost"
            );
        }
        let this = Self {
            file,
            mapping,
            book,
            memory: Mutex::default(),
            inner: Mutex::new(Inner {
                ledger,
                record,
                failed: false,
            }),
        };
        this.resume();
        Ok(this)
    }

    /// Brings to an end what the process before had begun, and has the window say what the book says.
    fn resume(&self) {
        let is_open = self.mode() != Mode::Closed;
        let leaving = {
            let mut inner = self.inner();
            self.write_down(&mut inner);
            if is_open {
                self.write_generations(&inner.ledger);
            }
            let leaving = inner.ledger.entries();
            let leaving = leaving.filter(|(_, entry)| entry.is_leaving());
            leaving.map(|(number, _)| number).collect::<Vec<_>>()
        };
        for number in leaving {
            self.end_return(number);
        }
        self.trim();
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, ()> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the driver uses it.
    pub fn mode(&self) -> Mode {
        self.inner().record.mode
    }

    /// Returns the epoch for which it was opened last, 0 if it never was.
    pub fn epoch(&self) -> u64 {
        self.inner().record.epoch
    }

    /// Returns how many chunks there are, the first two included.
    pub fn chunks(&self) -> u32 {
        self.book.chunks()
    }

    /// Returns how many chunks of each sort there are.
    pub fn counts(&self) -> Counts {
        self.inner().ledger.counts()
    }

    /// Returns the bytes that it is to take of the host's memory at most.
    pub fn expected(&self) -> u64 {
        let inner = self.inner();
        let open = inner.record.mode != Mode::Closed;
        let overhead = if open { OVERHEAD } else { 0 };
        overhead + u64::from(inner.ledger.occupied()) * CHUNK
    }

    /// Returns the bytes that it takes of the host's memory, as the operating system says.
    pub fn allocated(&self) -> u64 {
        taken(&self.file)
    }

    /// Returns what the guest tells of it, [`None`] if it does not use it.
    pub fn report(&self) -> Option<WindowReport> {
        (self.mode() != Mode::Closed).then(|| self.mapping.report())
    }

    /// Returns whether it is of no use any more: nothing is granted then.
    pub fn has_failed(&self) -> bool {
        self.mapping.has_failed() || self.inner().failed
    }

    /// Opens it for the driver in an epoch. Whoever does not `resume` begins with new tickets. False
    /// if there is no memory for it.
    pub fn open_for(&self, epoch: u64, resume: bool) -> bool {
        // Held until the window is open: before that, nobody else knows that this is to have memory.
        let _memory = self.memory();
        if self.has_failed() || self.allocate(0, OVERHEAD).is_err() {
            return false;
        }
        let mut inner = self.inner();
        inner.record.mode = Mode::Held;
        inner.record.epoch = epoch;
        if !resume {
            inner.record.ticket = None;
            inner.ledger.forget_requests();
        }
        self.write_record(&mut inner);
        self.mapping.write_header(&WindowHeader {
            magic: WINDOW_MAGIC.into(),
            version: WINDOW_VERSION.into(),
            page_shift: PAGE_SHIFT,
            chunk_shift: CHUNK_SHIFT,
            chunks: self.book.chunks().into(),
            identity: self.book.identity(),
            epoch: epoch.into(),
            reserved: [0; 24],
        });
        self.write_generations(&inner.ledger);
        !self.mapping.has_failed()
    }

    /// Has it outlive resets, or not. False if it is not open.
    pub fn keep(&self) -> bool {
        let mut inner = self.inner();
        let open = inner.record.mode != Mode::Closed;
        if open {
            inner.record.mode = Mode::Kept;
            self.write_record(&mut inner);
        }
        open
    }

    /// Closes it, once nothing is granted any more: it takes no memory then.
    pub fn close(&self) {
        let mut inner = self.inner();
        inner.record = Record {
            mode: Mode::Closed,
            epoch: 0,
            ticket: None,
        };
        self.write_record(&mut inner);
        drop(inner);
        while self.unready() {}
        // All of it: the next guest of this window is to find nothing of what this one wrote anywhere.
        let _memory = self.memory();
        self.release(0, u64::from(self.chunks()) * CHUNK);
    }

    /// Begins to grant chunks. Returns how many were granted already, if it is the same request.
    pub fn begin_grant(&self, ticket: u64) -> u32 {
        let mut inner = self.inner();
        let before = inner.ledger.begin(ticket);
        self.write_down(&mut inner);
        inner.record.ticket = Some(ticket);
        self.write_record(&mut inner);
        before
    }

    /// Returns the chunks that the last request was granted, with their generations.
    pub fn granted(&self) -> Vec<(u32, u32)> {
        self.inner().ledger.granted().collect()
    }

    /// Returns whether a chunk is there that has memory and is not granted.
    pub fn is_ready(&self) -> bool {
        self.inner().ledger.next_ready().is_some()
    }

    /// Returns how many chunks are to be made ready before somebody asks for them.
    pub fn ahead(&self) -> u32 {
        let inner = self.inner();
        if inner.record.mode == Mode::Closed {
            0
        } else {
            inner.ledger.ahead()
        }
    }

    /// Gives memory to a chunk that is not granted. False if there is none.
    pub fn make_ready(&self) -> bool {
        let _memory = self.memory();
        if self.has_failed() {
            return false;
        }
        let Some(number) = self.inner().ledger.next_free() else {
            return false;
        };
        let at = u64::from(number) * CHUNK;
        // What the guest wrote there is not to stay, nor are the small pages that it took for that.
        self.release(at, CHUNK);
        if self.allocate(at, CHUNK).is_err() {
            self.release(at, CHUNK);
            return false;
        }
        self.inner().ledger.ready(number);
        true
    }

    /// Takes the memory of a chunk that is not granted. False if none has any.
    pub fn unready(&self) -> bool {
        let _memory = self.memory();
        let number = self.inner().ledger.unready();
        if let Some(number) = number {
            self.release(u64::from(number) * CHUNK, CHUNK);
        }
        number.is_some()
    }

    /// Grants a chunk that is ready. False if there is none.
    pub fn grant(&self, kind: ChunkKind) -> bool {
        let mut inner = self.inner();
        let granted = match inner.ledger.next_ready() {
            Some(number) => inner.ledger.grant(number, kind),
            None => false,
        };
        self.write_down(&mut inner);
        granted && !inner.failed
    }

    /// Returns whether the driver was granted a chunk in this generation, and still has it.
    pub fn holds(&self, number: u32, generation: u32) -> bool {
        self.inner().ledger.holds(number, generation)
    }

    /// Returns the chunks that the driver has, of one kind or of both.
    pub fn held(&self, kind: Option<ChunkKind>) -> Vec<u32> {
        let inner = self.inner();
        let held = inner.ledger.entries().filter(|(_, entry)| {
            let granted = entry.granted();
            granted.is_some() && (kind.is_none() || granted == kind)
        });
        held.map(|(number, _)| number).collect()
    }

    /// Memory is short: nothing is made ready before the driver asks for more.
    pub fn calm(&self) {
        self.inner().ledger.calm();
    }

    /// Returns ephemeral chunks to take back, those first that are of least use to the driver.
    pub fn coldest(&self, count: usize) -> Vec<u32> {
        let inner = self.inner();
        let hint = |number| self.mapping.hint(number);
        coldest(inner.ledger.entries(), hint, count)
    }

    /// Takes a chunk back from the driver, and its memory. Returns what it was granted as, [`None`]
    /// if it was not granted.
    pub fn take_back(&self, number: u32) -> Option<ChunkKind> {
        let mut inner = self.inner();
        let kind = inner.ledger.begin_return(number)?;
        self.write_down(&mut inner);
        // Before the memory goes: who copied out of it looks at the generation after that.
        if let Some(entry) = inner.ledger.entry(number) {
            self.mapping.set_generation(number, entry.generation);
        }
        drop(inner);
        self.end_return(number);
        Some(kind)
    }

    fn end_return(&self, number: u32) {
        let _memory = self.memory();
        if self.mapping.has_failed() {
            // The guest does not see that the chunk goes, so the chunk stays.
            return self.give_up("its memory cannot be had");
        }
        self.release(u64::from(number) * CHUNK, CHUNK);
        let mut inner = self.inner();
        inner.ledger.end_return(number);
        self.write_down(&mut inner);
        if let Some(entry) = inner.ledger.entry(number) {
            self.mapping.set_generation(number, entry.generation);
        }
    }

    /// Copies a page out of a slot. False if the slot is not in a chunk that the driver was granted
    /// in this generation, or was not by the time it was copied.
    pub fn read_slot(&self, slot: u32, generation: u32, frame: &mut PageBytes) -> bool {
        let number = slot / CHUNK_SLOTS;
        // Where it is granted there is memory, which is not taken before the second look says so.
        self.holds(number, generation)
            && self.mapping.read_slot(slot, frame)
            && self.holds(number, generation)
    }

    /// Takes the memory of chunks that are not granted, where the guest wrote to such, or a process
    /// before was about to grant them. Returns how many bytes that was.
    pub fn trim(&self) -> u64 {
        if self.allocated() <= self.expected() {
            return 0;
        }
        let (mut from, mut trimmed) = (0, 0);
        // A part at a time, for nobody to wait long: most of it is empty, and costs next to nothing.
        while from < self.chunks() {
            let _memory = self.memory();
            let Some(part) = self.unoccupied(from) else {
                break;
            };
            let before = self.allocated();
            self.release(u64::from(part.start) * CHUNK, part.len() as u64 * CHUNK);
            trimmed += before.saturating_sub(self.allocated());
            from = part.end;
        }
        trimmed
    }

    /// Returns the next chunks that are to have no memory. The lock of memory is held.
    fn unoccupied(&self, from: u32) -> Option<Range<u32>> {
        let inner = self.inner();
        if from == 0 && inner.record.mode == Mode::Closed {
            return Some(0..FIRST_CHUNK);
        }
        inner.ledger.unoccupied(from, TRIMMED_AT_ONCE)
    }

    fn write_generations(&self, ledger: &Ledger) {
        for (number, entry) in ledger.entries() {
            self.mapping.set_generation(number, entry.generation);
        }
    }

    /// Has the file take memory for a range, all of it or an error. The lock of memory is held.
    fn allocate(&self, at: u64, len: u64) -> io::Result<()> {
        // A file that was made shorter is not made longer again.
        let flags = FallocateFlags::KEEP_SIZE;
        let has = self.file.metadata()?.len();
        if has < u64::from(self.book.chunks()) * CHUNK {
            self.give_up("its file was made shorter");
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // On a tmpfs that has huge pages for who asks, only a mapping can ask. Where this takes less
        // than all, the next line does, or says why not.
        self.mapping.populate(at, len);
        Ok(fallocate(&self.file, flags, at, len)?)
    }

    /// Takes the memory of a range. The lock of memory is held.
    fn release(&self, at: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(&self.file, flags, at, len) {
            self.give_up(&format!("its memory cannot be taken back: {error}"));
        }
    }

    /// Writes down what changed of chunks.
    fn write_down(&self, inner: &mut Inner) {
        for (number, entry) in inner.ledger.take_changes() {
            if let Err(error) = self.book.write(number, entry) {
                self.fail(inner, &format!("its book cannot be written: {error}"));
            }
        }
    }

    fn write_record(&self, inner: &mut Inner) {
        if let Err(error) = self.book.write_record(inner.record) {
            self.fail(inner, &format!("its book cannot be written: {error}"));
        }
    }

    fn give_up(&self, why: &str) {
        self.fail(&mut self.inner(), why);
    }

    fn fail(&self, inner: &mut Inner, why: &str) {
        if !std::mem::replace(&mut inner.failed, true) {
            tracing::error!("a window is of no use any more, and nothing of it is granted: {why}");
        }
    }
}
