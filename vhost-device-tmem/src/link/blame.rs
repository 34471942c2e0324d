// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whom each thread of the worker serves right now.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::sys::memfd::{memfd_create, MFdFlags};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::GuestId;

/// The length of the page, in bytes.
const SIZE: usize = 4096;

/// Set by the thread that is about to kill its process.
const CULPRIT: u64 = 1 << 63;

/// The bits of a guest's number plus one.
const GUEST: u64 = (1 << 24) - 1;

/// Bits below the number of the turn.
const TURN_SHIFT: u32 = 24;

/// A page of memory that the worker's threads write and the supervisor reads, also when the worker
/// is dead: it says whose turn killed it, or hangs.
///
/// # Invariants
///
/// The mapping is as long as a page of 4 KiB, and so is the file, which cannot shrink.
#[derive(Debug)]
pub struct BlamePage {
    file: OwnedFd,
    mapping: MmapRegion,
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The guest whose turn it is, if any.
    pub guest: Option<GuestId>,
    /// The number of turns before. A thread whose number does not change for long hangs.
    pub turn: u64,
    /// Whether it is this thread that killed the process.
    pub culprit: bool,
}

impl BlamePage {
    /// The most threads that have a place; others are not seen.
    pub const THREADS: usize = SIZE / size_of::<u64>();

    /// Makes a page.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = memfd_create(c"tmem blame", flags)?;
        let file = File::from(file);
        file.set_len(SIZE as u64)?;
        let seals = nix::fcntl::SealFlag::F_SEAL_SHRINK | nix::fcntl::SealFlag::F_SEAL_SEAL;
        nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(file)
    }

    /// Takes the page that another process made.
    ///
    /// # Errors
    ///
    /// The operating system's; and if it is no such page.
    pub fn open(file: OwnedFd) -> io::Result<Self> {
        let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS)?;
        let seals = nix::fcntl::SealFlag::from_bits_truncate(seals);
        let file = File::from(file);
        let whole = file.metadata()?.len() == SIZE as u64;
        if !whole || !seals.contains(nix::fcntl::SealFlag::F_SEAL_SHRINK) {
            let what = "this is no page of blame";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Self::map(file)
    }

    fn map(file: File) -> io::Result<Self> {
        let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), SIZE);
        Ok(Self {
            mapping: mapping.map_err(io::Error::other)?,
            file: file.into(),
        })
    }

    fn slot(&self, thread: usize) -> Option<&AtomicU64> {
        let offset = thread.checked_mul(size_of::<u64>())?;
        self.mapping.get_atomic_ref(offset).ok()
    }

    /// Says that `thread` begins to serve `guest`.
    pub fn begin(&self, thread: usize, guest: GuestId) {
        if let Some(slot) = self.slot(thread) {
            // Nobody else writes there.
            let turn = (slot.load(Ordering::Relaxed) & !CULPRIT) >> TURN_SHIFT;
            let next = ((turn + 1) << TURN_SHIFT) & !CULPRIT;
            slot.store(next | ((u64::from(guest.0) + 1) & GUEST), Ordering::Release);
        }
    }

    /// Says that `thread` serves nobody.
    pub fn end(&self, thread: usize) {
        if let Some(slot) = self.slot(thread) {
            let turn = slot.load(Ordering::Relaxed) & !(GUEST | CULPRIT);
            slot.store(turn, Ordering::Release);
        }
    }

    /// Says that `thread` is about to kill the process. It may be called in a signal handler.
    pub fn confess(&self, thread: usize) {
        if let Some(slot) = self.slot(thread) {
            slot.fetch_or(CULPRIT, Ordering::AcqRel);
        }
    }

    /// Returns what `thread` does, or did last.
    pub fn serving(&self, thread: usize) -> Serving {
        let slot = self
            .slot(thread)
            .map_or(0, |slot| slot.load(Ordering::Acquire));
        let guest = (slot & GUEST).checked_sub(1);
        Serving {
            // It has no more than 24 bits.
            guest: guest.map(|guest| GuestId(guest as u32)),
            turn: (slot & !CULPRIT) >> TURN_SHIFT,
            culprit: slot & CULPRIT != 0,
        }
    }

    /// Forgets everything, for the next worker. No thread of another one is left.
    pub fn clear(&self) {
        for slot in (0..Self::THREADS).filter_map(|thread| self.slot(thread)) {
            slot.store(0, Ordering::Release);
        }
    }
}

impl AsFd for BlamePage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_side_sees_whose_turn_it_is() {
        let ours = BlamePage::new().unwrap();
        let theirs = BlamePage::open(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let (guest, last) = (GuestId(7), BlamePage::THREADS - 1);
        theirs.begin(1, guest);
        theirs.begin(last, GuestId(0));
        let mut seen = ours.serving(1);
        assert_eq!((seen.guest, seen.culprit), (Some(guest), false));
        assert_eq!(ours.serving(last).guest, Some(GuestId(0)));
        assert_eq!(ours.serving(0).guest, None);
        let before = seen.turn;
        theirs.end(1);
        seen = ours.serving(1);
        assert_eq!((seen.guest, seen.turn), (None, before));
        theirs.begin(1, guest);
        theirs.confess(1);
        seen = ours.serving(1);
        assert_eq!((seen.guest, seen.turn), (Some(guest), before + 1));
        assert!(seen.culprit);
        ours.clear();
        assert_eq!(theirs.serving(1).guest, None);
        // Threads without a place are not seen, and do no harm.
        theirs.begin(BlamePage::THREADS, guest);
        assert_eq!(ours.serving(BlamePage::THREADS).guest, None);
    }

    #[test]
    fn another_file_is_no_page() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE as u64).unwrap();
        BlamePage::open(file.into()).unwrap_err();
    }
}
