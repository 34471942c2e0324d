// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finding pages and objects by their names.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
};

use virtio_tmem_abi::ObjectId;
use zerocopy::FromZeros;

use super::{
    id::{FrameId, Link, ObjectSlot},
    mapping::Table,
};

/// What a page frame is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(u8)]
pub(super) enum PageState {
    /// It is free, or a put is copying into it: no key leads here.
    Unlinked = 0,
    /// It holds a page that a key leads to.
    Linked = 1,
    /// As `Linked`, but a get is taking it: a key leads here, and finds nothing.
    Taking = 2,
    /// No key leads here any more; the last get that still copies from it frees it.
    Orphan = 3,
}

/// The entry of one page frame.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Page {
    pub(super) index: u64,
    pub(super) version: u64,
    pub(super) object: Link,
    bucket_next: Link,
    pub(super) object_prev: Link,
    pub(super) object_next: Link,
    pub(super) lru_prev: Link,
    pub(super) lru_next: Link,
    /// Gets that are copying from the frame.
    pub(super) pins: u32,
    pub(super) state: PageState,
    pub(super) reserved: [u8; 3],
}

/// One object that has pages.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Object {
    pub(super) id: ObjectId,
    pub(super) pool: u32,
    /// Pages, never zero in an object that is in use.
    pub(super) pages: u32,
    bucket_next: Link,
    pub(super) first: Link,
    pub(super) last: Link,
    pub(super) pool_prev: Link,
    pub(super) pool_next: Link,
    pub(super) reserved: u32,
}

/// Pages for each object bucket.
const PAGES_PER_OBJECT_BUCKET: usize = 2;

/// What every frame takes up front in both bucket tables, in bytes.
pub(super) const BUCKET_OVERHEAD: usize = size_of::<Link>() + size_of::<Link>() / 2;

/// Both tables of entries, and the hash tables that lead to them. The hash is keyed by a secret,
/// so that no guest can make the chains of another long.
///
/// # Invariants
///
/// - A page is in a chain of `page_buckets` exactly where its state is `Linked` or `Taking`; its
///   `object` is then in use, and lists it.
/// - `(object, index)` is found at most once, `(pool, id)` is found at most once.
/// - An object is in use exactly where it is in a chain of `object_buckets`.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) pages: Table<Page>,
    pub(super) objects: Table<Object>,
    page_buckets: Table<Link>,
    object_buckets: Table<Link>,
    page_bucket_count: usize,
    object_bucket_count: usize,
    free_objects: Link,
    /// Object entries that were ever in use: their memory is taken.
    touched_objects: usize,
    used_objects: usize,
    /// The object that was found last: the next key is often one of the same.
    recent: Option<ObjectSlot>,
    secret: RandomState,
}

impl Index {
    /// Reserves tables for `frames` pages and as many objects.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(frames: usize) -> io::Result<Self> {
        let object_bucket_count = frames.div_ceil(PAGES_PER_OBJECT_BUCKET).max(1);
        let index = Self {
            pages: Table::new(frames)?,
            objects: Table::new(frames)?,
            page_buckets: Table::new(frames.max(1))?,
            object_buckets: Table::new(object_bucket_count)?,
            page_bucket_count: frames.max(1),
            object_bucket_count,
            free_objects: None,
            touched_objects: 0,
            used_objects: 0,
            recent: None,
            secret: RandomState::new(),
        };
        index.pages.prefer_huge_pages();
        index.page_buckets.prefer_huge_pages();
        index.object_buckets.prefer_huge_pages();
        Ok(index)
    }

    /// Returns how many objects there are.
    pub(super) fn used_objects(&self) -> usize {
        self.used_objects
    }

    /// Returns how many object entries take memory.
    pub(super) fn touched_objects(&self) -> usize {
        self.touched_objects
    }

    /// Returns whether another object would take memory that was not taken before.
    pub(super) fn objects_exhausted(&self) -> bool {
        self.free_objects.is_none()
    }

    fn object_bucket(&self, pool: u32, id: &ObjectId) -> usize {
        let mut hasher = self.secret.build_hasher();
        hasher.write_u32(pool);
        for word in id.0 {
            hasher.write_u64(word.get());
        }
        reduce(hasher.finish(), self.object_bucket_count)
    }

    fn page_bucket(&self, object: ObjectSlot, index: u64) -> usize {
        let mut hasher = self.secret.build_hasher();
        hasher.write_u64(index);
        hasher.write_u32(object.index() as u32);
        reduce(hasher.finish(), self.page_bucket_count)
    }

    /// Finds an object of a pool.
    pub(super) fn find_object(&mut self, pool: u32, id: &ObjectId) -> Option<ObjectSlot> {
        if let Some(slot) = self.recent {
            let object = &self.objects[slot.index()];
            // One that has pages is in use, and no other has its name.
            if object.pages > 0 && object.pool == pool && object.id == *id {
                return Some(slot);
            }
        }
        let mut link = self.object_buckets[self.object_bucket(pool, id)];
        while let Some(slot) = ObjectSlot::from_link(link) {
            let object = &self.objects[slot.index()];
            if object.pool == pool && object.id == *id {
                self.recent = Some(slot);
                return Some(slot);
            }
            link = object.bucket_next;
        }
        None
    }

    /// Adds an object that the pool does not have, without pages. The caller made sure that its
    /// memory may be taken, and adds a page.
    pub(super) fn add_object(&mut self, pool: u32, id: ObjectId) -> ObjectSlot {
        let slot = match ObjectSlot::from_link(self.free_objects) {
            Some(slot) => {
                self.free_objects = self.objects[slot.index()].bucket_next;
                slot
            }
            None => {
                let slot = ObjectSlot::from_index(self.touched_objects);
                self.touched_objects += 1;
                slot
            }
        };
        self.used_objects += 1;
        let bucket = self.object_bucket(pool, &id);
        self.objects[slot.index()] = Object {
            id,
            pool,
            pages: 0,
            bucket_next: self.object_buckets[bucket],
            first: None,
            last: None,
            pool_prev: None,
            pool_next: None,
            reserved: 0,
        };
        self.object_buckets[bucket] = slot.link();
        slot
    }

    /// Removes an object that has no pages left.
    pub(super) fn remove_object(&mut self, slot: ObjectSlot) {
        let object = self.objects[slot.index()];
        debug_assert_eq!(object.pages, 0);
        let bucket = self.object_bucket(object.pool, &object.id);
        let mut at = ObjectSlot::from_link(self.object_buckets[bucket]);
        if at == Some(slot) {
            self.object_buckets[bucket] = object.bucket_next;
        }
        while let Some(here) = at.filter(|here| *here != slot) {
            let next = self.objects[here.index()].bucket_next;
            if next == slot.link() {
                self.objects[here.index()].bucket_next = object.bucket_next;
                break;
            }
            at = ObjectSlot::from_link(next);
        }
        self.objects[slot.index()].bucket_next = self.free_objects;
        self.free_objects = slot.link();
        self.used_objects -= 1;
    }

    /// Finds a page of an object, in whatever version.
    pub(super) fn find_page(&self, object: ObjectSlot, index: u64) -> Option<FrameId> {
        let mut link = self.page_buckets[self.page_bucket(object, index)];
        while let Some(frame) = FrameId::from_link(link) {
            let page = &self.pages[frame.index()];
            if page.object == object.link() && page.index == index {
                return Some(frame);
            }
            link = page.bucket_next;
        }
        None
    }

    /// Makes a key lead to a frame, as the last page of its object.
    pub(super) fn link_page(
        &mut self,
        frame: FrameId,
        object: ObjectSlot,
        index: u64,
        version: u64,
    ) {
        let bucket = self.page_bucket(object, index);
        let last = self.objects[object.index()].last;
        self.pages[frame.index()] = Page {
            index,
            version,
            object: object.link(),
            bucket_next: self.page_buckets[bucket],
            object_prev: last,
            object_next: None,
            lru_prev: None,
            lru_next: None,
            pins: 0,
            state: PageState::Linked,
            reserved: [0; 3],
        };
        self.page_buckets[bucket] = frame.link();
        match FrameId::from_link(last) {
            Some(last) => self.pages[last.index()].object_next = frame.link(),
            None => self.objects[object.index()].first = frame.link(),
        }
        let object = &mut self.objects[object.index()];
        object.last = frame.link();
        object.pages += 1;
    }

    /// Makes no key lead to a frame, and returns the object that it was a page of.
    pub(super) fn unlink_page(&mut self, frame: FrameId) -> ObjectSlot {
        let page = self.pages[frame.index()];
        let object = ObjectSlot::from_link(page.object).expect("a linked page has an object");
        let bucket = self.page_bucket(object, page.index);
        let mut at = FrameId::from_link(self.page_buckets[bucket]);
        if at == Some(frame) {
            self.page_buckets[bucket] = page.bucket_next;
        }
        while let Some(here) = at.filter(|here| *here != frame) {
            let next = self.pages[here.index()].bucket_next;
            if next == frame.link() {
                self.pages[here.index()].bucket_next = page.bucket_next;
                break;
            }
            at = FrameId::from_link(next);
        }
        self.remove_from_object(frame, object);
        self.objects[object.index()].pages -= 1;
        let page = &mut self.pages[frame.index()];
        page.object = None;
        page.state = PageState::Orphan;
        object
    }

    /// Makes a page the last of its object, so that a walk that always looks at the first comes
    /// to the next.
    pub(super) fn rotate(&mut self, frame: FrameId, object: ObjectSlot) {
        self.remove_from_object(frame, object);
        let last = self.objects[object.index()].last;
        let page = &mut self.pages[frame.index()];
        page.object_prev = last;
        page.object_next = None;
        match FrameId::from_link(last) {
            Some(last) => self.pages[last.index()].object_next = frame.link(),
            None => self.objects[object.index()].first = frame.link(),
        }
        self.objects[object.index()].last = frame.link();
    }

    fn remove_from_object(&mut self, frame: FrameId, object: ObjectSlot) {
        let Page {
            object_prev,
            object_next,
            ..
        } = self.pages[frame.index()];
        match FrameId::from_link(object_prev) {
            Some(prev) => self.pages[prev.index()].object_next = object_next,
            None => self.objects[object.index()].first = object_next,
        }
        match FrameId::from_link(object_next) {
            Some(next) => self.pages[next.index()].object_prev = object_prev,
            None => self.objects[object.index()].last = object_prev,
        }
    }
}

/// Maps a hash evenly to `0..count`.
fn reduce(hash: u64, count: usize) -> usize {
    ((u128::from(hash) * count as u128) >> 64) as usize
}
