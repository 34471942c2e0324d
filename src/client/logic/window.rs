// SPDX-License-Identifier: GPL-2.0

//! The window: memory that the device lends, in chunks, and that the driver copies to and from.
//!
//! A chunk is cut into slots of a page each. Which page is in which slot only the driver knows: the
//! [index](super::index) says of each page in which slot it is, and what is here says of each slot
//! whether it is in use, and whose page is in it.
//!
//! ```text
//!               device                        depot               magazines        index
//!   wanted ──► (grants) ──► Depot::grant() ──► free ──► fill() ──► pop() ──► put ──► in use
//!                                               ▲                   │                  │
//!   Depot::collect() ◄── all of a chunk free ◄──┴───── spill() ◄─── push() ◄── get, flush
//! ```
//!
//! # Locks
//!
//! Nothing here locks, allocates (but where it is made) or sleeps. Who calls holds:
//!
//! | what | which lock | who |
//! |---|---|---|
//! | [`Magazine`] | its own, of one kind and one processor | that processor; whoever empties it |
//! | [`Depot`] | one for the window | whoever fills or spills a magazine; the worker |
//! | [`Order`] | one for each kind | whoever puts, gets or flushes a page in the window; the worker |
//! | [`Shard`](super::index::Shard) | its own | see there |
//!
//! All are spin locks with interrupts off. A shard's lock is taken first, then a magazine's, then
//! the depot's; an order's is a leaf beside these two. So a put takes its slots before it locks a
//! shard, and a slot that comes free is given to the order and to a magazine under the shard's lock,
//! or after it. Nobody holds the locks of two shards: who takes a slot over looks up whose it is,
//! lets go of the order's lock, and asks the shard of the page to [give it
//! up](super::index::Shard::erase_slot), which it does only if the page still is there.
//!
//! # Who owns a slot
//!
//! Exactly one of these: the depot; a magazine; an entry of the index that says that its page is
//! there; a move of that page; or a piece of code that has it in its hands, between a magazine and
//! the index. A slot of a chunk that was taken back goes the same ways: there is nothing in it any
//! more, but it is not handed out again before all of its chunk's slots are back.

mod depot;
mod header;
mod magazine;
pub mod near;
mod order;
mod report;
mod supply;

pub use depot::{
    Broken,
    Depot,
    Given,
    Level, //
};
pub use header::{
    chunks_recalled,
    Serves, //
};
pub use magazine::Magazine;
pub use order::{
    Order,
    Page,
    Slots,
    PROBE, //
};
pub use report::{
    ChunkReport,
    Report,
    AGES,
    REPORT_SIZE, //
};
pub use supply::{
    Step,
    Supply,
    Way,
    MOST_AT_ONCE, //
};

/// The number of slots of a chunk.
pub const SLOTS_PER_CHUNK: u32 = 512;

/// The first chunk with slots: those before it are the header and the report.
pub const FIRST_CHUNK: u32 = 2;

/// The most chunks of a window, the first two included.
pub const MAX_CHUNKS: u32 = 1 << 17;

/// Which pages may be in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Those that the driver can do without: the device takes the chunk back at any time.
    Ephemeral,
    /// Those that nobody else has: the device has to ask for the chunk.
    Persistent,
}

impl Kind {
    /// Both kinds.
    pub const ALL: [Self; 2] = [Self::Ephemeral, Self::Persistent];

    /// Returns where the kind is in an array of two.
    #[inline]
    const fn place(self) -> usize {
        match self {
            Self::Ephemeral => 0,
            Self::Persistent => 1,
        }
    }
}

/// One thing for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Each<T>([T; 2]);

impl<T> Each<T> {
    /// Makes one thing of each.
    pub const fn new(ephemeral: T, persistent: T) -> Self {
        Self([ephemeral, persistent])
    }

    /// Returns that of a kind.
    #[inline]
    pub fn of(&self, kind: Kind) -> &T {
        // The compiler sees that this is in bounds.
        &self.0[kind.place()]
    }

    /// Returns that of a kind.
    #[inline]
    pub fn of_mut(&mut self, kind: Kind) -> &mut T {
        &mut self.0[kind.place()]
    }
}

/// Returns the chunk of a slot.
#[inline]
pub const fn chunk_of(slot: u32) -> u32 {
    slot / SLOTS_PER_CHUNK
}

/// Returns the first slot of a chunk.
#[inline]
pub const fn first_slot(chunk: u32) -> u32 {
    chunk.wrapping_mul(SLOTS_PER_CHUNK)
}

/// Returns the hash of a page.
#[inline]
fn hash_of(tag: u64, index: u64) -> u64 {
    // The multiplier is that of `include/linux/hash.h`; the upper bits depend on all others.
    let hash = (tag ^ index.rotate_left(32)).wrapping_mul(0x61c8_8646_80b5_83eb);
    (hash ^ (hash >> 32)).wrapping_mul(0x61c8_8646_80b5_83eb)
}

/// Returns slots as runs of neighbours that are of one chunk, none of which is empty.
#[inline]
pub fn by_chunk(slots: &[u32]) -> impl Iterator<Item = &[u32]> {
    slots.chunk_by(|&one, &next| chunk_of(one) == chunk_of(next))
}
