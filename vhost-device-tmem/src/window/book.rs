// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file in which those who serve a window keep book of it, one after the other.
//!
//! It is apart from the window, to which the guest can write. All that changes is written in single
//! calls of a few bytes, which a process that is killed makes wholly or not at all.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use rustix::fs::{
    fallocate, fcntl_add_seals, fcntl_get_seals, memfd_create, FallocateFlags, MemfdFlags,
    SealFlags,
};
use virtio_tmem_abi::{FIRST_CHUNK, MAX_CHUNKS};
use zerocopy::{
    little_endian::{U32, U64},
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout,
};

use super::{create::WindowError, entry::Entry};

/// What the file begins with.
const MAGIC: [u8; 8] = *b"tmemwbok";

/// The layout of the file. Whoever changes what is in it changes this.
const FORMAT: u32 = 1;

/// Where the [`Record`] is.
const RECORD: u64 = 64;

/// Where the words of the chunks are.
const WORDS: u64 = 4096;

/// What never changes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    format: U32,
    chunks: U32,
    identity: [u8; 16],
    reserved: U32,
    check: U32,
}

/// Whether the driver uses the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It does not.
    #[default]
    Closed,
    /// It does, and a reset of the device takes all chunks back.
    Held,
    /// It does, or means to come back: a reset takes nothing back.
    Kept,
}

/// What is known of the window as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) mode: Mode,
    /// The epoch for which the window was opened last; 0: none.
    pub(super) epoch: u64,
    /// The ticket of the last request for chunks.
    pub(super) ticket: Option<u64>,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawRecord {
    epoch: U64,
    ticket: U64,
    mode: U32,
    check: U32,
}

const CLOSED: u32 = 1;
const HELD: u32 = 2;
const KEPT: u32 = 3;
const MODE: u32 = 3;
const TICKET: u32 = 1 << 2;

/// The book of one window.
#[derive(Debug)]
pub(super) struct Book {
    file: File,
    identity: [u8; 16],
    chunks: u32,
}

impl Book {
    /// Makes the book of a window with so many chunks, none of which was ever granted.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn create(identity: [u8; 16], chunks: u32) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // A kernel before 6.3 does not know that a file is never to be executed.
        let fd = memfd_create("tmem-window-book", flags | MemfdFlags::NOEXEC_SEAL)
            .or_else(|_| memfd_create("tmem-window-book", flags))?;
        let file = File::from(fd);
        file.set_len(length(chunks))?;
        // What is written later finds memory.
        fallocate(&file, FallocateFlags::empty(), 0, length(chunks))?;
        let mut header = Header {
            magic: MAGIC,
            format: FORMAT.into(),
            chunks: chunks.into(),
            identity,
            reserved: 0.into(),
            check: 0.into(),
        };
        header.check = check(header.as_bytes()).into();
        file.write_all_at(header.as_bytes(), 0)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file.into())
    }

    /// Opens a book.
    ///
    /// # Errors
    ///
    /// [`WindowError::Foreign`] where the file is something else.
    pub(super) fn open(fd: OwnedFd) -> Result<Self, WindowError> {
        let foreign = |why: String| WindowError::Foreign { what: "book", why };
        let file = File::from(fd);
        let mut header = Header::new_zeroed();
        file.read_exact_at(header.as_mut_bytes(), 0)
            .map_err(|error| foreign(format!("it cannot be read: {error}")))?;
        if header.magic != MAGIC || header.check.get() != check(header.as_bytes()) {
            return Err(foreign("it was not made by this daemon".into()));
        }
        if header.format.get() != FORMAT {
            let format = header.format.get();
            return Err(foreign(format!(
                "it has format {format}, and this version of the daemon reads {FORMAT}"
            )));
        }
        let chunks = header.chunks.get();
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let len = file.metadata().map(|metadata| metadata.len());
        if chunks > MAX_CHUNKS || !sealed || len.ok() != Some(length(chunks)) {
            return Err(foreign("it is not a sealed file of its length".into()));
        }
        Ok(Self {
            file,
            identity: header.identity,
            chunks,
        })
    }

    /// Returns what the window is known by.
    pub(super) fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Returns how many chunks the window has, the first two included.
    pub(super) fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Reads what is known of the window as a whole: nothing, if it is damaged.
    pub(super) fn record(&self) -> io::Result<Record> {
        let mut raw = RawRecord::new_zeroed();
        self.file.read_exact_at(raw.as_mut_bytes(), RECORD)?;
        let word = raw.mode.get();
        let mode = match word & MODE {
            CLOSED => Mode::Closed,
            HELD => Mode::Held,
            KEPT => Mode::Kept,
            _ => return Ok(Record::default()),
        };
        if raw.check.get() != check(raw.as_bytes()) {
            return Ok(Record::default());
        }
        Ok(Record {
            mode,
            epoch: raw.epoch.get(),
            ticket: (word & TICKET != 0).then(|| raw.ticket.get()),
        })
    }

    /// Writes what is known of the window as a whole.
    pub(super) fn write_record(&self, record: Record) -> io::Result<()> {
        let mode = match record.mode {
            Mode::Closed => CLOSED,
            Mode::Held => HELD,
            Mode::Kept => KEPT,
        };
        let ticket = record.ticket.map_or(0, |_| TICKET);
        let mut raw = RawRecord {
            epoch: record.epoch.into(),
            ticket: record.ticket.unwrap_or(0).into(),
            mode: (mode | ticket).into(),
            check: 0.into(),
        };
        raw.check = check(raw.as_bytes()).into();
        self.file.write_all_at(raw.as_bytes(), RECORD)
    }

    /// Reads the words of all chunks, from [`FIRST_CHUNK`] on.
    pub(super) fn words(&self) -> io::Result<Vec<u64>> {
        let count = self.chunks.saturating_sub(FIRST_CHUNK) as usize;
        let mut bytes = vec![0; count * size_of::<u64>()];
        self.file.read_exact_at(&mut bytes, WORDS)?;
        let words = <[U64]>::ref_from_bytes(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(words.iter().map(|word| word.get()).collect())
    }

    /// Writes what is known of a chunk.
    pub(super) fn write(&self, number: u32, entry: Entry) -> io::Result<()> {
        let at = WORDS + u64::from(number - FIRST_CHUNK) * size_of::<u64>() as u64;
        let word = entry.word(number).to_le_bytes();
        self.file.write_all_at(&word, at)
    }
}

fn length(chunks: u32) -> u64 {
    WORDS + u64::from(chunks) * size_of::<u64>() as u64
}

/// Returns the check of bytes that end with it.
fn check(bytes: &[u8]) -> u32 {
    crc32c::crc32c(&bytes[..bytes.len() - size_of::<U32>()])
}

#[cfg(test)]
mod tests {
    use virtio_tmem_abi::ChunkKind;

    use super::{super::entry::State, *};

    #[test]
    fn what_is_written_is_read_by_the_next() {
        let fd = Book::create([7; 16], 64).unwrap();
        let open = || Book::open(fd.try_clone().unwrap()).unwrap();
        let book = open();
        assert_eq!((book.identity(), book.chunks()), ([7; 16], 64));
        assert_eq!(book.record().unwrap(), Record::default());
        assert_eq!(book.words().unwrap(), vec![0; 62]);
        for mode in [Mode::Closed, Mode::Held, Mode::Kept] {
            for ticket in [None, Some(0), Some(u64::MAX)] {
                let record = Record {
                    mode,
                    epoch: 0x1234,
                    ticket,
                };
                book.write_record(record).unwrap();
                assert_eq!(open().record().unwrap(), record);
            }
        }
        let entry = Entry {
            state: State::Granted(ChunkKind::Persistent),
            generation: 4,
            fresh: true,
        };
        book.write(63, entry).unwrap();
        let words = open().words().unwrap();
        assert_eq!(Entry::from_word(63, words[61]), Some(entry));
        assert!(words[..61].iter().all(|word| *word == 0));
        // What is damaged says nothing.
        book.file.write_all_at(&[9], RECORD + 1).unwrap();
        assert_eq!(open().record().unwrap(), Record::default());
    }

    #[test]
    fn something_else_is_no_book() {
        let refused = |fd: OwnedFd| Book::open(fd).unwrap_err().to_string();
        let other = tempfile::tempfile().unwrap();
        assert!(refused(other.into()).contains("cannot be read"));
        let fd = Book::create([7; 16], 64).unwrap();
        let file = File::from(fd.try_clone().unwrap());
        file.write_all_at(&[1], 20).unwrap();
        assert!(refused(fd).contains("not made by"));
        // One that is not sealed could become shorter while it is used.
        let fd = Book::create([7; 16], 4).unwrap();
        let mut bytes = vec![0; length(4) as usize];
        File::from(fd).read_exact_at(&mut bytes, 0).unwrap();
        let copy = tempfile::tempfile().unwrap();
        copy.write_all_at(&bytes, 0).unwrap();
        assert!(refused(copy.into()).contains("sealed"));
    }
}
