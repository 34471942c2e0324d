// SPDX-License-Identifier: GPL-2.0

//! The presence index: which pages there are outside of the guest, where, and in which version.
//!
//! The index is the authority. What it does not have is not there, whatever the device may still
//! hold, and a page is asked of the device only in the version that the index names. To tell the
//! device what it need not hold any more is a matter of memory and never of correctness; so the
//! index keeps note of it, and a worker tells the device later and in bulk.
//!
//! # Shards
//!
//! The index is an array of [`Shard`]s, each under a spin lock of its own; [`shard_of()`] says
//! which of them an object belongs to. Everything that takes a `&mut Shard` is meant to be called
//! with that lock held and interrupts off: nothing sleeps, allocates, frees or recurses, and
//! the time that it takes is bounded as far as the function says so. Memory is handed in by a
//! worker, which allocates it before it takes the lock: see [`Shard::wants()`]. Where there is not
//! enough, a put is refused, which it may be at any time.
//!
//! # Names
//!
//! The caller names an object by a *tag*: the address of an inode, say, which may be used again
//! for another one. To the device an object has a *wire id*, which is never used again. The index
//! gives an object a fresh one whenever it has given up the one before, and that is how it lets go
//! of all pages of an object at once: nothing can be read under a wire id that the index does not
//! know any more, and one [`Flush::Object`] tells the device.
//!
//! A version makes a page distinct from earlier ones at the same place, so that neither a get nor
//! a flush, however late, can hit another page than the one that it is about. Versions have 29
//! bits and wrap; a flush would have to be late by half a billion puts to be about a page that it
//! was not meant for.
//!
//! # The life of a page
//!
//! ```text
//!           insert_pending()             complete(Stored)            erase()
//!   vacant ─────────────────► Pending ───────────────────► Remote ───────────► Stale
//!     ▲                        │  │                          │                   │
//!     │ complete(Refused),     │  │ erase(), take()          │ take()            │ harvest()
//!     └─── abandon() ──────────┘  ▼                          ▼                   ▼
//!                               vacant                     vacant     vacant, Flush::Page
//! ```
//!
//! Where there is a [window](super::window), a page can be there instead, and has no version:
//!
//! ```text
//!           insert_slots()          begin_move()           complete(Stored)
//!   vacant ────────────────► Window ─────────────► Moving ──────────────────► Remote
//!                             │  ▲                  │  │                        │
//!         erase(), take(),    │  │ moved(slot),     │  │ moved(None),           │ promote()
//!         erase_slot()        │  │ abandon(),       │  │ erase(), take()        ▼
//!                             │  │ complete(Refused)│  │                      Window
//!                             ▼  └──────────────────┘  ▼
//!                           vacant                   vacant
//! ```
//!
//! A page that is put into the window in place of one that the store has leaves that one there. The
//! entry then has a stale mark below it, which [`Shard::harvest()`] takes away, and which comes to
//! the light as [`Entry::Stale`] where the page is gone before that. A move is a put, and begins and
//! ends as one.
//!
//! [`Shard::insert_pending()`] is followed by exactly one [`Shard::complete()`] or
//! [`Shard::abandon()`] with the same tag, wire id, index and version, whatever else happens to
//! the page, unless [`Shard::forget_all()`] comes first.
//!
//! # Why nothing leaks on the device
//!
//! The caller promises three things:
//!
//! - **One queue.** All requests about one wire id go through one virtqueue, and take effect in
//!   the order in which they were put there.
//! - **One worker.** Puts and flushes of one shard are submitted by one worker. Before it submits a
//!   put, it asks [`Shard::is_current()`], and abandons the put if it is not. What it harvests, it
//!   submits before the next put that it asks about.
//! - **A put drops what was there.** Whether the device stores or refuses a page, an earlier one
//!   under the same key is gone.
//!
//! Say that a put of version *v* under wire id *W* has been inserted, and that its entry is gone
//! before its outcome is known; it is an *orphan*.
//!
//! - *W has been given up.* Either that was before the worker asked whether the put is current.
//!   Then it is abandoned, and the device never sees it. Or it was after that. Then the worker, who
//!   is the one to harvest the flush of *W*, does so later, and the flush follows the put on the
//!   same queue. In both cases the outcome is of no interest, and is known by its wire id.
//! - *W is in use, and the put was submitted and stored.* If the place is vacant when the outcome
//!   comes, a stale mark is left there for *v*. If there is a stale mark for an older version, *v*
//!   takes its place: the put has dropped that older page. A newer entry means that there has been
//!   another put after this one, which drops *v* or has dropped it. If that one is abandoned, see
//!   below. If there is no node for the mark, the page is counted as leaked, and the wire id is
//!   given up as soon as the object has no live pages. So it is if the newer page was in the window
//!   and is lost: that has dropped nothing, and there is no place for a mark below it.
//! - *W is in use, and the put was submitted and refused.* The device has nothing.
//! - *W is in use, and the put is abandoned.* The device may have what the put would have dropped:
//!   the page whose entry the put replaced, or that of an orphan of the same object. What that is
//!   has been noted at the insertion, as [`Supersedes`], and a stale mark is left for it, unless there
//!   has been another put since. That one supersedes at least as much, because this put was replaced
//!   by it or was an orphan when it was inserted.
//!
//! A caller with a second way to submit, as swap-out has, keeps the promises if it submits before
//! the range or the object that the page belongs to can be erased, and if it does not abandon.
//! Where it does abandon, the mark may come to be [`Flush::Any`], and the worker must have
//! submitted that before the page is put again.

mod entry;
mod node;
mod object;
mod shard;
mod slab;
mod tree;

pub use entry::{
    Entry,
    Older,
    VERSION_BITS,
    VERSION_MAX, //
};
pub use node::{
    Node,
    NodeChunk,
    NODES_PER_CHUNK, //
};
pub use object::{
    shard_of,
    Buckets,
    Object,
    ObjectChunk,
    OBJECTS_PER_CHUNK, //
};
pub use shard::{
    Completed,
    Config,
    Erased,
    Flush,
    Found,
    Inserted,
    Outcome,
    Shard,
    Stats,
    Supersedes,
    Wants, //
};
pub use slab::{
    Chunk,
    Item, //
};

/// There is no memory in the index; nothing has changed.
///
/// The worker that adds memory is to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;
