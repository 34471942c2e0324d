// SPDX-License-Identifier: GPL-2.0

//! The records of objects, and how they are found.

use super::{
    super::mem::{
        NoMemory,
        Table, //
    },
    slab::{
        Chunk,
        Item,
        Slab,
        NIL, //
    },
    tree::Tree, //
};

/// The number of objects of an [`ObjectChunk`], which is 8 KiB.
pub const OBJECTS_PER_CHUNK: usize = 8192 / size_of::<Object>();

/// Memory for [`OBJECTS_PER_CHUNK`] records of objects, allocated outside of the lock.
pub type ObjectChunk = Chunk<Object, OBJECTS_PER_CHUNK>;

/// Bits of [`Object::state`].
pub(super) mod state {
    /// The record can be found by its tag.
    pub(crate) const HASHED: u8 = 1 << 0;
    /// The record is on the work list.
    pub(crate) const QUEUED: u8 = 1 << 1;
    /// The wire id is to be flushed and not used again, and the tree is void.
    pub(crate) const RETIRED: u8 = 1 << 2;
    /// The device may have a page that the tree could not keep a stale mark of.
    pub(crate) const LEAKY: u8 = 1 << 3;
    /// Pages of the object may be in the window.
    pub(crate) const WINDOW: u8 = 1 << 4;
}

/// The record of an object.
///
/// # Invariants
///
/// - `live`, `pending` and `stale` count the entries of `tree`; `live` includes `pending`, and an
///   entry can be both live and stale. Where `state` has `RETIRED`, they are zero, and the tree
///   counts as empty.
/// - A record with an entry of a page in the window has `WINDOW`.
/// - A record with `RETIRED`, or with stale entries, has `QUEUED`.
/// - A record without `HASHED` has `RETIRED`.
#[derive(Clone, Copy)]
pub struct Object {
    /// The name that the caller gave.
    pub(super) tag: u64,
    /// The name that the device knows; zero if it knows none.
    pub(super) wire: u64,
    pub(super) tree: Tree,
    pub(super) live: u32,
    pub(super) pending: u32,
    pub(super) stale: u32,
    /// The number of puts without an outcome whose entries are gone.
    pub(super) orphans: u32,
    /// The next record of the bucket, or of the list of free ones.
    chain: u32,
    /// The next record of the work list.
    work: u32,
    pub(super) flags: u8,
    pub(super) state: u8,
}

const _: () = assert!(size_of::<Object>() == 64);

impl Item for Object {
    const EMPTY: Self = Self {
        tag: 0,
        wire: 0,
        tree: Tree::EMPTY,
        live: 0,
        pending: 0,
        stale: 0,
        orphans: 0,
        chain: NIL,
        work: NIL,
        flags: 0,
        state: 0,
    };

    fn link(&self) -> u32 {
        self.chain
    }

    fn set_link(&mut self, link: u32) {
        self.chain = link;
    }
}

impl Object {
    /// Returns whether any of some bits of `state` is set.
    #[inline]
    pub(super) fn is(&self, bits: u8) -> bool {
        self.state & bits != 0
    }

    /// Returns whether the object is there under a wire id.
    #[inline]
    pub(super) fn goes_by(&self, wire: u64) -> bool {
        self.wire == wire && !self.is(state::RETIRED)
    }

    /// Returns whether the device has nothing of the object, and will have nothing.
    #[inline]
    pub(super) fn is_clean(&self) -> bool {
        self.live == 0 && self.stale == 0 && self.orphans == 0 && !self.is(state::LEAKY)
    }

    /// Empties the record but for its tag and flags, and for being found.
    pub(super) fn reset(&mut self) {
        *self = Self {
            tag: self.tag,
            chain: self.chain,
            flags: self.flags,
            state: self.state & state::HASHED,
            ..Self::EMPTY
        };
    }
}

/// The heads of the hash chains, allocated outside of the lock.
///
/// # Invariants
///
/// The length is a power of two.
pub struct Buckets(Table<u32>);

impl Buckets {
    /// Allocates `count` buckets, rounded up to a power of two.
    ///
    /// May sleep, and may enter reclaim: whoever calls must not be someone that reclaim waits for.
    pub fn new(count: usize) -> Result<Self, NoMemory> {
        let count = count.checked_next_power_of_two().ok_or(NoMemory)?;
        // INVARIANT: It is a power of two.
        Ok(Self(Table::filled(NIL, count)?))
    }

    #[inline]
    fn len(&self) -> usize {
        self.0.len()
    }

    #[inline]
    fn index(&self, tag: u64) -> usize {
        let hash = hash(tag);
        // The upper bits choose the shard, so that they are much the same here.
        // CAST: Only some of the lower bits are of interest.
        (hash ^ (hash >> 32)) as usize & self.len().wrapping_sub(1)
    }

    #[inline]
    fn head(&self, tag: u64) -> u32 {
        self.0.get(self.index(tag)).copied().unwrap_or(NIL)
    }

    #[inline]
    fn set_head(&mut self, tag: u64, at: u32) {
        let i = self.index(tag);
        if let Some(head) = self.0.get_mut(i) {
            *head = at;
        }
    }
}

#[inline]
fn hash(tag: u64) -> u64 {
    // 2^64 divided by the golden ratio, as in `include/linux/hash.h`.
    tag.wrapping_mul(0x61c8_8646_80b5_83eb)
}

/// Returns the number of the shard, of `shards`, that an object belongs to.
#[inline]
pub fn shard_of(tag: u64, shards: u32) -> u32 {
    // CAST: The product has at most 64 bits, and the quotient is below `shards`.
    ((hash(tag) >> 32).wrapping_mul(shards.into()) >> 32) as u32
}

/// The records of a shard: by tag, and in the order in which there is work to do for them.
pub(super) struct Directory {
    slab: Slab<Object, OBJECTS_PER_CHUNK>,
    buckets: Buckets,
    hashed: usize,
    first: u32,
    last: u32,
}

impl Directory {
    /// The number of buckets to begin with.
    const BUCKETS: usize = 64;

    /// Creates an empty directory for up to `limit` records.
    pub(super) fn new(limit: usize) -> Result<Self, NoMemory> {
        Ok(Self {
            slab: Slab::new(limit)?,
            buckets: Buckets::new(Self::BUCKETS)?,
            hashed: 0,
            first: NIL,
            last: NIL,
        })
    }

    /// Returns the record that can be found by a tag.
    #[inline]
    pub(super) fn find(&self, tag: u64) -> Option<(u32, &Object)> {
        let mut at = self.buckets.head(tag);
        while at != NIL {
            let object = self.slab.get(at)?;
            if object.tag == tag {
                return Some((at, object));
            }
            at = object.chain;
        }
        None
    }

    #[inline]
    pub(super) fn get(&self, at: u32) -> Option<&Object> {
        self.slab.get(at)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, at: u32) -> Option<&mut Object> {
        self.slab.get_mut(at)
    }

    /// Adds a record for a tag that none can be found by.
    pub(super) fn insert(&mut self, tag: u64) -> Option<u32> {
        let at = self.slab.alloc()?;
        if let Some(object) = self.slab.get_mut(at) {
            object.tag = tag;
        }
        self.link(at);
        self.hashed = self.hashed.wrapping_add(1);
        Some(at)
    }

    fn link(&mut self, at: u32) {
        if let Some(object) = self.slab.get_mut(at) {
            object.state |= state::HASHED;
            object.chain = self.buckets.head(object.tag);
            self.buckets.set_head(object.tag, at);
        }
    }

    /// Makes a record one that cannot be found by its tag.
    pub(super) fn unhash(&mut self, at: u32) {
        let Some(object) = self.slab.get_mut(at) else {
            return;
        };
        let (tag, next) = (object.tag, object.chain);
        object.state &= !state::HASHED;
        object.chain = NIL;
        self.hashed = self.hashed.saturating_sub(1);
        let mut i = self.buckets.head(tag);
        if i == at {
            self.buckets.set_head(tag, next);
            return;
        }
        while let Some(object) = self.slab.get_mut(i) {
            if object.chain == at {
                object.chain = next;
                return;
            }
            i = object.chain;
        }
    }

    /// Gives back a record that can neither be found by its tag nor is on the work list.
    pub(super) fn free(&mut self, at: u32) {
        self.slab.free(at);
    }

    /// Puts a record at the end of the work list, if it is not on it.
    pub(super) fn enqueue(&mut self, at: u32) {
        let Some(object) = self.slab.get_mut(at) else {
            return;
        };
        if object.is(state::QUEUED) {
            return;
        }
        object.state |= state::QUEUED;
        object.work = NIL;
        match self.slab.get_mut(self.last) {
            Some(last) => last.work = at,
            None => self.first = at,
        }
        self.last = at;
    }

    /// Returns the first record of the work list.
    pub(super) fn first(&self) -> Option<u32> {
        (self.first != NIL).then_some(self.first)
    }

    /// Takes the first record from the work list.
    pub(super) fn dequeue(&mut self) {
        if let Some(object) = self.slab.get_mut(self.first) {
            object.state &= !state::QUEUED;
            self.first = object.work;
            object.work = NIL;
            if self.first == NIL {
                self.last = NIL;
            }
        }
    }

    /// Calls `f` for each record that can be found by its tag.
    pub(super) fn for_each(&self, mut f: impl FnMut(&Object)) {
        for i in 0..self.buckets.len() {
            let mut at = self.buckets.0.get(i).copied().unwrap_or(NIL);
            while let Some(object) = self.slab.get(at) {
                f(object);
                at = object.chain;
            }
        }
    }

    /// Calls `f` for each record, whether it can be found or not.
    pub(super) fn for_each_tree(&self, mut f: impl FnMut(&Object)) {
        self.for_each(&mut f);
        // INVARIANT: What cannot be found has been retired, and is on the work list.
        let mut at = self.first;
        while let Some(object) = self.slab.get(at) {
            if !object.is(state::HASHED) {
                f(object);
            }
            at = object.work;
        }
    }

    /// Calls `f` with each record that can be found by its tag; it has to leave the tag as it is.
    pub(super) fn for_each_mut(&mut self, mut f: impl FnMut(&mut Object)) {
        for i in 0..self.buckets.len() {
            let mut at = self.buckets.0.get(i).copied().unwrap_or(NIL);
            while let Some(object) = self.slab.get_mut(at) {
                f(object);
                at = object.chain;
            }
        }
    }

    /// Empties the records that have flags, and gives back all others.
    pub(super) fn forget_all(&mut self) {
        while let Some(at) = self.first() {
            self.dequeue();
            if self.get(at).is_some_and(|o| !o.is(state::HASHED)) {
                self.free(at);
            }
        }
        for i in 0..self.buckets.len() {
            let mut kept = NIL;
            let mut at = self.buckets.0.get(i).copied().unwrap_or(NIL);
            while let Some(object) = self.slab.get_mut(at) {
                let next = object.chain;
                if object.flags != 0 {
                    object.reset();
                    object.chain = kept;
                    kept = at;
                } else {
                    self.slab.free(at);
                    self.hashed = self.hashed.saturating_sub(1);
                }
                at = next;
            }
            if let Some(head) = self.buckets.0.get_mut(i) {
                *head = kept;
            }
        }
    }

    /// Moves all records to other buckets, and returns the old ones.
    pub(super) fn rehash(&mut self, buckets: Buckets) -> Buckets {
        let old = core::mem::replace(&mut self.buckets, buckets);
        for i in 0..old.len() {
            let mut at = old.0.get(i).copied().unwrap_or(NIL);
            while let Some(object) = self.slab.get(at) {
                let next = object.chain;
                self.link(at);
                at = next;
            }
        }
        old
    }

    /// Returns the number of buckets that there should be, if there are too few.
    pub(super) fn wants_buckets(&self) -> Option<usize> {
        // Half of the buckets are empty, so that most look-ups in vain end there.
        let wanted = self.hashed.saturating_mul(2);
        (wanted > self.buckets.len()).then(|| wanted.next_power_of_two())
    }

    /// Adds memory, or gives it back if the limit has been reached.
    pub(super) fn add(&mut self, chunk: ObjectChunk) -> Result<(), ObjectChunk> {
        self.slab.add(chunk)
    }

    /// Returns whether [`Directory::add()`] would add a chunk.
    pub(super) fn may_grow(&self) -> bool {
        self.slab.may_grow()
    }

    /// Returns the number of records that can be added.
    #[inline]
    pub(super) fn room(&self) -> usize {
        self.slab.room()
    }

    /// Returns the number of records that can be found by their tag.
    pub(super) fn hashed(&self) -> usize {
        self.hashed
    }

    /// Returns the number of bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        let buckets = self.buckets.len().saturating_mul(size_of::<u32>());
        self.slab.bytes().saturating_add(buckets)
    }
}
