// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files in memory that hold the pages and their descriptions, and outlive the process.

use std::{
    fs::File,
    hash::{BuildHasher, RandomState},
    io,
    mem::offset_of,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
    sync::Arc,
};

use rustix::fs::{
    fcntl_add_seals, fcntl_get_seals, fstat, fstatfs, memfd_create, MemfdFlags, SealFlags,
};
use rustix::rand::{getrandom, GetRandomFlags};
use zerocopy::{
    little_endian::{U32, U64},
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout,
};

use super::{
    arena::has_huge_pages,
    budget::Budget,
    entry::{Move, Object, Page},
    records::{PoolRecord, MAX_POOLS},
    spans::SPAN_SIZE,
    Compression, Config, StoreError, PAGE_SIZE,
};
use crate::{tier::seal::SECRET, tmpfs::Tmpfs};

/// What both files begin or end with.
const MAGIC: [u8; 8] = *b"tmemstor";

/// The layout of both files. Whoever changes what an entry means changes this.
const FORMAT: u32 = 2;

/// Says what a file is, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    format: U32,
    /// [`Compression`], as contents can only be read back in the same way.
    compression: U32,
    capacity: U64,
    spans: U64,
    pages: U64,
    span_size: U32,
    entry_size: U32,
    /// Drawn at random: both files have the same.
    id: U64,
    /// Not zero where contents can be in huge pages, which whoever takes them over cannot find out.
    huge: U32,
    check: U32,
}

impl Header {
    fn new(config: &Config, budget: &Budget, id: u64, huge: bool) -> Self {
        let mut this = Self {
            magic: MAGIC,
            format: FORMAT.into(),
            compression: match config.compression {
                Compression::None => 0,
                Compression::Lz4 => 1,
                Compression::Zstd => 2,
            }
            .into(),
            capacity: config.capacity.into(),
            spans: (budget.max_spans() as u64).into(),
            pages: (budget.max_pages() as u64).into(),
            span_size: (SPAN_SIZE as u32).into(),
            entry_size: (size_of::<Page>() as u32).into(),
            id: id.into(),
            huge: u32::from(huge).into(),
            check: 0.into(),
        };
        this.check = this.computed_check().into();
        this
    }

    fn computed_check(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c(&bytes[..bytes.len() - size_of::<U32>()])
    }

    /// Reads the header of a file, and compares it with what it has to be.
    fn read(file: &File, name: &'static str, at: u64, wanted: &Self) -> Result<Self, StoreError> {
        let foreign = |why: String| StoreError::Foreign { name, why };
        let mut found = Self::new_zeroed();
        file.read_exact_at(found.as_mut_bytes(), at)
            .map_err(|error| foreign(format!("it cannot be read: {error}")))?;
        if found.magic != MAGIC {
            return Err(foreign("it was not made by this daemon".into()));
        }
        if found.format != wanted.format || found.entry_size != wanted.entry_size {
            let (found, wanted) = (found.format.get(), wanted.format.get());
            return Err(foreign(format!(
                "it has format {found}, and this version of the daemon reads {wanted}"
            )));
        }
        if found.check.get() != found.computed_check() {
            return Err(foreign("its header is damaged".into()));
        }
        if found.compression != wanted.compression {
            return Err(foreign(
                "its pages are compressed in another way than --compression says".into(),
            ));
        }
        if found.capacity != wanted.capacity {
            let (found, wanted) = (found.capacity.get(), wanted.capacity.get());
            return Err(foreign(format!(
                "it was made for a capacity of {found} bytes, and --capacity is {wanted}"
            )));
        }
        let own = Self {
            id: found.id,
            huge: found.huge,
            check: found.check,
            ..*wanted
        };
        if found != own {
            return Err(foreign("its pages are laid out in another way".into()));
        }
        Ok(found)
    }
}

/// What pages are sealed with that leave the process.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Secret {
    /// Drawn at random.
    key: [u8; SECRET],
    /// A check of it.
    check: U32,
    zeros: U32,
    /// Processes that have used it.
    starts: U64,
}

impl Secret {
    fn draw() -> io::Result<Self> {
        let mut this = Self::new_zeroed();
        let drawn = getrandom(&mut this.key[..], GetRandomFlags::empty())?;
        if drawn != SECRET {
            return Err(io::Error::other("the kernel gives no random numbers"));
        }
        this.check = crc32c::crc32c(&this.key).into();
        Ok(this)
    }

    fn is_sound(&self) -> bool {
        self.check.get() == crc32c::crc32c(&self.key)
    }
}

/// Where the tables are in the file of descriptions, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    secret: u64,
    pub(super) moves: u64,
    pub(super) pools: u64,
    pub(super) objects: u64,
    pub(super) pages: u64,
    /// The length of that file.
    end: u64,
    /// The length of the spans, after which the header of the other file follows.
    spans: u64,
}

impl Layout {
    pub(super) fn new(budget: &Budget) -> Self {
        let after = |at: u64, count: usize, size: usize| {
            (at + count as u64 * size as u64).next_multiple_of(PAGE_SIZE as u64)
        };
        let entries = budget.max_pages().max(1);
        let secret = after(0, 1, size_of::<Header>());
        let moves = after(secret, 1, size_of::<Secret>());
        let pools = after(moves, 1, size_of::<Move>());
        let objects = after(pools, MAX_POOLS, size_of::<PoolRecord>());
        let pages = after(objects, entries, size_of::<Object>());
        Self {
            secret,
            moves,
            pools,
            objects,
            pages,
            end: after(pages, entries, size_of::<Page>()),
            spans: budget.max_spans() as u64 * SPAN_SIZE as u64,
        }
    }
}

/// The memory of a store: two files in memory, of which one holds the contents of pages and the
/// other what describes them. As long as somebody keeps both,
/// [`Store::recover`](super::Store::recover) finds all pages again, whatever became of the process
/// that served them.
///
/// A file that became shorter would be the end of whoever has it mapped. Memfds are sealed against
/// that. A file on a tmpfs cannot be; but who has no descriptor cannot open it, as it has no name,
/// and the worker, which has one, is not allowed to truncate files.
#[derive(Debug)]
pub struct Memory {
    index: OwnedFd,
    pages: OwnedFd,
}

impl Memory {
    /// Makes the memory of a store without pages: on `tmpfs`, or as memfds if there is none. It takes
    /// next to none of the host's memory yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooSmall`], and [`StoreError::Memory`] where the operating system refuses.
    pub fn create(config: &Config, tmpfs: Option<&Tmpfs>) -> Result<Self, StoreError> {
        let budget = Budget::of(config)?;
        let layout = Layout::new(&budget);
        let create = |name, len| match tmpfs {
            Some(tmpfs) => tmpfs.create(&format!("tmem-{name}"), len),
            None => memfd(&format!("tmem-{name}"), len),
        };
        let failed = |name| move |error| StoreError::Memory { name, error };
        let index = create("index", layout.end).map_err(failed("index"))?;
        let end = layout.spans + PAGE_SIZE as u64;
        let pages = Arc::new(create("pages", end).map_err(failed("pages"))?);
        let huge = has_huge_pages(&pages, budget.max_spans()).map_err(failed("pages"))?;
        let id = RandomState::new().hash_one(std::process::id());
        let header = Header::new(config, &budget, id, huge);
        let write = |file: &File, at| file.write_all_at(header.as_bytes(), at);
        write(&index, 0).map_err(failed("index"))?;
        let secret = Secret::draw().map_err(failed("index"))?;
        index
            .write_all_at(secret.as_bytes(), layout.secret)
            .map_err(failed("index"))?;
        write(&pages, layout.spans).map_err(failed("pages"))?;
        let pages = Arc::into_inner(pages).expect("the mapping is gone");
        Ok(Self {
            index: index.into(),
            pages: pages.into(),
        })
    }

    /// Takes over memory of another process, in the order of [`Self::descriptors`].
    pub fn from_descriptors([index, pages]: [OwnedFd; 2]) -> Self {
        Self { index, pages }
    }

    /// Returns what another process needs to take the memory over.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.index.as_fd(), self.pages.as_fd()]
    }

    /// Returns whether contents can be in huge pages, as was found when it was made.
    pub fn has_huge_pages(&self) -> bool {
        let mut header = Header::new_zeroed();
        let read = rustix::io::pread(&self.index, header.as_mut_bytes(), 0);
        read == Ok(size_of::<Header>()) && header.magic == MAGIC && header.huge != 0
    }

    /// Returns another handle of the same memory.
    ///
    /// # Errors
    ///
    /// [`StoreError::Memory`] where the process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self, StoreError> {
        let failed = |name| move |error| StoreError::Memory { name, error };
        Ok(Self {
            index: self.index.try_clone().map_err(failed("index"))?,
            pages: self.pages.try_clone().map_err(failed("pages"))?,
        })
    }

    /// Returns both files, once they were found to be those of a store as `config` says.
    pub(super) fn open(self, config: &Config, budget: &Budget) -> Result<Files, StoreError> {
        let layout = Layout::new(budget);
        let wanted = Header::new(config, budget, 0, false);
        let open = |fd: OwnedFd, name, at, end| {
            let file = File::from(fd);
            let header = Header::read(&file, name, at, &wanted)?;
            let len = file.metadata().map(|metadata| metadata.len());
            let why = match len {
                Ok(len) if len != end => format!("it has {len} bytes, and not {end}"),
                Ok(_) if keeps_its_length(&file) => return Ok((Arc::new(file), header)),
                _ => "it is not a sealed file in memory, nor one without a name".into(),
            };
            Err(StoreError::Foreign { name, why })
        };
        let (index, one) = open(self.index, "index", 0, layout.end)?;
        let end = layout.spans + PAGE_SIZE as u64;
        let (pages, other) = open(self.pages, "pages", layout.spans, end)?;
        if one.id != other.id {
            return Err(StoreError::Foreign {
                name: "pages",
                why: "it belongs to another index".into(),
            });
        }
        Ok(Files {
            index,
            pages,
            layout,
            huge: other.huge != 0,
        })
    }
}

/// Makes a memfd that keeps its length.
fn memfd(name: &str, len: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // A kernel before 6.3 does not know that a file is never to be executed.
    let fd = memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| memfd_create(name, flags))?;
    let file = File::from(fd);
    file.set_len(len)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Returns whether nobody makes a file shorter: it is sealed, or it is in memory and has no name by
/// which anybody could open it.
fn keeps_its_length(file: &File) -> bool {
    let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    let in_memory = || fstatfs(file).is_ok_and(|about| about.f_type == libc::TMPFS_MAGIC);
    sealed || (in_memory() && fstat(file).is_ok_and(|about| about.st_nlink == 0))
}

/// The opened files of a store.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) index: Arc<File>,
    pub(super) pages: Arc<File>,
    pub(super) layout: Layout,
    /// Contents can be in huge pages.
    pub(super) huge: bool,
}

impl Files {
    /// Returns what pages are sealed with, and the number of this process among those that have used it,
    /// which is written down before that.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn begin_start(&self) -> io::Result<([u8; SECRET], u64)> {
        let (file, at) = (&self.index, self.layout.secret);
        let mut secret = Secret::new_zeroed();
        file.read_exact_at(secret.as_mut_bytes(), at)?;
        if !secret.is_sound() {
            // What was sealed with it cannot be opened any more.
            tracing::error!("the key of the pages below the store is damaged: those are lost");
            secret = Secret::draw()?;
            file.write_all_at(secret.as_bytes(), at)?;
        }
        let start = secret.starts.get() + 1;
        let starts = U64::from(start);
        file.write_all_at(starts.as_bytes(), at + offset_of!(Secret, starts) as u64)?;
        Ok((secret.key, start))
    }
}

/// Returns the bytes of memory that a file takes.
pub(crate) fn taken(file: &File) -> u64 {
    fstat(file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
}

/// Returns the parts of a range of a file that were ever written, rounded to pages. Reading the
/// rest would make it take memory.
pub(crate) fn written(file: &File, from: u64, to: u64) -> io::Result<Vec<(u64, u64)>> {
    use rustix::fs::{seek, SeekFrom};
    let mut parts = Vec::new();
    let mut at = from;
    while at < to {
        let first = match seek(file, SeekFrom::Data(at)) {
            Ok(first) if first < to => first,
            // There is nothing any more.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(first))?.min(to);
        parts.push((first, end));
        at = end;
    }
    Ok(parts)
}
