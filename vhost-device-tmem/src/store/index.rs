// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Finding pages and objects by their names.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    io,
};

use virtio_tmem_abi::{Key, ObjectId};

use super::{
    buckets::Buckets,
    budget::STEP,
    cursors::Cursors,
    entry::{Body, Move, Object, Page, PageState},
    id::{Link, ObjectSlot, PageId},
    mapping::Table,
    memory::Files,
    vacancies::Vacancies,
    BATCH,
};

pub(super) use super::cursors::CursorId;

/// Pages whose buckets are in one cache line.
const NEIGHBOURS: u64 = 16;

const _: () = assert!(NEIGHBOURS as usize * size_of::<Link>() == 64);

/// Both tables of entries, and the hash tables that lead to them. The hash is keyed by a secret,
/// so that no guest can make the chains of another long.
///
/// # Invariants
///
/// - A page is in a chain of `page_buckets` exactly where its state is `Linked`, `Taking` or `Filling`;
///   its `object` is then in use, and lists it.
/// - `(object, index)` is found at most once, `(pool, id)` is found at most once.
/// - An object is in use exactly where it is in a chain of `object_buckets`.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) pages: Table<Page>,
    pub(super) objects: Table<Object>,
    /// A move of contents that is under way.
    moves: Table<Move>,
    vacancies: Vacancies,
    page_buckets: Buckets,
    object_buckets: Buckets,
    free_objects: Link,
    /// Object entries that were ever in use: their memory is taken.
    touched_objects: usize,
    used_objects: usize,
    /// The most pages that there was ever room for, and so the number of buckets to come to.
    pages_peak: usize,
    /// The object that was found last: the next key is often one of the same.
    recent: Option<ObjectSlot>,
    /// The neighbours whose hash was asked for last.
    recent_group: (Link, u64, u64),
    secret: RandomState,
    cursors: Cursors,
}

impl Index {
    /// Takes over tables for `max` pages and as many objects, and reserves what leads to them. There
    /// is room for `pages` already, and none of these is in use, nor is an object.
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no address space left.
    pub(super) fn new(files: &Files, max: usize, pages: usize) -> io::Result<Self> {
        let max = max.max(1);
        let (file, layout) = (&files.index, &files.layout);
        let mut index = Self {
            // SAFETY: Of these three tables: the header says that the file is laid out so, and
            // whoever hands it over has it to himself. The entries are of numbers only.
            pages: unsafe { Table::shared(file, layout.pages, max)? },
            // SAFETY: See above.
            objects: unsafe { Table::shared(file, layout.objects, max)? },
            // SAFETY: See above.
            moves: unsafe { Table::shared(file, layout.moves, 1)? },
            vacancies: Vacancies::new(max)?,
            page_buckets: Buckets::new(max, pages.max(1))?,
            object_buckets: Buckets::new(max, 1)?,
            free_objects: None,
            touched_objects: 0,
            used_objects: 0,
            pages_peak: pages,
            recent: None,
            recent_group: (None, 0, 0),
            secret: RandomState::new(),
            cursors: Cursors::default(),
        };
        if pages == max {
            index.page_buckets.prefer_huge_pages();
        }
        index.vacancies.grant(pages);
        Ok(index)
    }

    /// Keeps what describes pages out of the host's swap.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn lock(&self) -> io::Result<()> {
        self.pages.lock()?;
        self.objects.lock()
    }

    /// Returns the bytes of memory that what leads to the entries takes.
    pub(super) fn taken(&self) -> u64 {
        self.vacancies.taken() + self.page_buckets.taken() + self.object_buckets.taken()
    }

    /// Returns below which place entries of pages are.
    pub(super) fn places(&self) -> usize {
        self.vacancies.granted()
    }

    /// Returns how many entries of pages are in use.
    pub(super) fn used_pages(&self) -> usize {
        self.vacancies.granted() - self.vacancies.free()
    }

    /// Makes room for more pages.
    pub(super) fn grow_pages(&mut self, count: usize) {
        self.vacancies.grant(count);
        self.pages_peak = self.pages_peak.max(self.vacancies.granted());
    }

    /// Makes room for fewer pages, and gives the memory back; false if there are pages.
    pub(super) fn shrink_pages(&mut self, count: usize) -> bool {
        if !self.vacancies.may_revoke(count) || !self.vacancies.revoke(count) {
            return false;
        }
        self.pages.forget(self.vacancies.granted(), count);
        true
    }

    /// Returns whether there is room for so many more pages that some of it is worth giving up.
    pub(super) fn may_shrink_pages(&self) -> bool {
        self.vacancies.may_revoke(2 * STEP)
    }

    /// Takes a free entry.
    pub(super) fn take_page(&mut self) -> Option<PageId> {
        let page = self.vacancies.take().map(PageId::from_index)?;
        if self.page_buckets.count() < self.pages_peak {
            self.add_page_bucket();
        }
        Some(page)
    }

    /// Gives an entry back that no key leads to.
    pub(super) fn free_page(&mut self, page: PageId) {
        self.vacancies.give(page.index());
    }

    fn add_page_bucket(&mut self) {
        let bucket = self.page_buckets.grow();
        let mut link = self.page_buckets.head(bucket);
        self.page_buckets.set_head(bucket, None);
        while let Some(page) = PageId::from_link(link) {
            let Page {
                object,
                index,
                bucket_next,
                ..
            } = self.pages[page.index()];
            link = bucket_next;
            if let Some(object) = ObjectSlot::from_link(object) {
                let bucket = self.page_bucket(object, index.get());
                self.pages[page.index()].bucket_next = self.page_buckets.head(bucket);
                self.page_buckets.set_head(bucket, page.link());
            }
        }
    }

    fn add_object_bucket(&mut self) {
        let bucket = self.object_buckets.grow();
        let mut link = self.object_buckets.head(bucket);
        self.object_buckets.set_head(bucket, None);
        while let Some(slot) = ObjectSlot::from_link(link) {
            let object = self.objects[slot.index()];
            link = object.bucket_next;
            let bucket = self.object_bucket(object.pool, &object.id);
            self.objects[slot.index()].bucket_next = self.object_buckets.head(bucket);
            self.object_buckets.set_head(bucket, slot.link());
        }
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

    /// Returns a hasher of an object of a pool.
    fn object_hasher(&self, pool: u32, id: &ObjectId) -> impl Hasher {
        let mut hasher = self.secret.build_hasher();
        hasher.write_u32(pool);
        for word in id.0 {
            hasher.write_u64(word.get());
        }
        hasher
    }

    fn object_bucket(&self, pool: u32, id: &ObjectId) -> usize {
        let hasher = self.object_hasher(pool, id);
        self.object_buckets.of(hasher.finish())
    }

    /// Returns a digest of a key of a pool.
    pub(super) fn digest(&self, pool: u32, id: &ObjectId, index: u64) -> u32 {
        let mut hasher = self.object_hasher(pool, id);
        hasher.write_u64(index);
        // CAST: The lower half is as good as any.
        hasher.finish() as u32
    }

    /// Returns the bucket of a page. Those of neighbours are in one cache line: requests name many
    /// neighbours. The hash says which line, and which place in it is that of the first, so that
    /// indices that are far apart do not all have the same.
    fn page_bucket(&mut self, object: ObjectSlot, index: u64) -> usize {
        let (link, group) = (object.link(), index / NEIGHBOURS);
        if (self.recent_group.0, self.recent_group.1) != (link, group) {
            let mut hasher = self.secret.build_hasher();
            hasher.write_u64(group);
            hasher.write_u32(object.index() as u32);
            self.recent_group = (link, group, hasher.finish());
        }
        self.page_buckets
            .of(self.recent_group.2 ^ (index % NEIGHBOURS))
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
        let mut link = self.object_buckets.head(self.object_bucket(pool, id));
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
                if self.object_buckets.count() < self.touched_objects {
                    self.add_object_bucket();
                }
                slot
            }
        };
        self.used_objects += 1;
        let bucket = self.object_bucket(pool, &id);
        let mut object = Object::new(pool, id);
        object.bucket_next = self.object_buckets.head(bucket);
        self.objects[slot.index()] = object;
        self.object_buckets.set_head(bucket, slot.link());
        slot
    }

    /// Removes an object that has no pages left.
    pub(super) fn remove_object(&mut self, slot: ObjectSlot) {
        let object = self.objects[slot.index()];
        debug_assert_eq!(object.pages, 0);
        let bucket = self.object_bucket(object.pool, &object.id);
        let mut at = ObjectSlot::from_link(self.object_buckets.head(bucket));
        if at == Some(slot) {
            self.object_buckets.set_head(bucket, object.bucket_next);
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

    /// Finds the pages of a pool under some keys, at most a batch, in whatever version.
    pub(super) fn find_pages(&mut self, pool: u32, keys: &[Key], found: &mut [Option<PageId>]) {
        let places = self.fetch_pages(pool, keys);
        for ((key, place), found) in keys.iter().zip(places).zip(found) {
            *found = place
                .and_then(|(object, bucket)| self.find_in_bucket(bucket, object, key.index.get()));
        }
    }

    /// Lets the processor fetch what leads to the pages of a pool under some keys, at most a batch.
    /// Each look-up waits for memory twice, at least; after this, all wait together. Returns the
    /// objects and the buckets of those whose objects there are.
    pub(super) fn fetch_pages(
        &mut self,
        pool: u32,
        keys: &[Key],
    ) -> [Option<(ObjectSlot, usize)>; BATCH] {
        let mut places = [None; BATCH];
        for (key, place) in keys.iter().zip(&mut places) {
            let object = self.find_object(pool, &key.object);
            *place = object.map(|object| (object, self.page_bucket(object, key.index.get())));
            if let Some((_, bucket)) = *place {
                self.page_buckets.prefetch(bucket);
            }
        }
        for (_, bucket) in places.iter().flatten() {
            if let Some(page) = PageId::from_link(self.page_buckets.head(*bucket)) {
                self.pages.prefetch(page.index());
            }
        }
        places
    }

    /// Finds a page of an object, in whatever version.
    pub(super) fn find_page(&mut self, object: ObjectSlot, index: u64) -> Option<PageId> {
        let bucket = self.page_bucket(object, index);
        self.find_in_bucket(bucket, object, index)
    }

    fn find_in_bucket(&self, bucket: usize, object: ObjectSlot, index: u64) -> Option<PageId> {
        let mut link = self.page_buckets.head(bucket);
        while let Some(id) = PageId::from_link(link) {
            let page = &self.pages[id.index()];
            if page.object == object.link() && page.index.get() == index {
                return Some(id);
            }
            link = page.bucket_next;
        }
        None
    }

    /// Carries out the move of contents that the process before was at when it ended.
    pub(super) fn finish_move(&mut self) {
        if let Some((page, body, word)) = self.moves[0].pending() {
            if let Some(page) = PageId::from_link(page).filter(|p| p.index() < self.pages.len()) {
                self.pages[page.index()].set_moved(body, word);
            }
        }
        self.moves[0].end();
    }

    /// Takes the entry of a page that is there.
    pub(super) fn claim_page(&mut self, id: PageId) {
        self.vacancies.claim(id.index());
    }

    /// Makes an object of the process before, which is sound, be found. It has no pages yet.
    pub(super) fn attach_object(&mut self, slot: ObjectSlot) {
        self.touched_objects = self.touched_objects.max(slot.index() + 1);
        self.used_objects += 1;
        let Object { id, pool, .. } = self.objects[slot.index()];
        let bucket = self.object_bucket(pool, &id);
        let mut object = Object::new(pool, id);
        object.bucket_next = self.object_buckets.head(bucket);
        self.objects[slot.index()] = object;
        self.object_buckets.set_head(bucket, slot.link());
        if self.object_buckets.count() < self.used_objects {
            self.add_object_bucket();
        }
    }

    /// Makes those of the objects free that have no pages, once all others were attached.
    pub(super) fn free_other_objects(&mut self) {
        for at in (0..self.touched_objects).rev() {
            if self.objects[at].pages == 0 {
                self.objects[at].bucket_next = self.free_objects;
                self.free_objects = ObjectSlot::from_index(at).link();
            }
        }
        while self.object_buckets.count() < self.touched_objects {
            self.add_object_bucket();
        }
    }

    /// Makes a key lead to a page that a put is going to fill, as the last page of its object.
    pub(super) fn link_page(&mut self, id: PageId, object: ObjectSlot, index: u64, version: u64) {
        let page = &mut self.pages[id.index()];
        page.index = index.into();
        page.object = object.link();
        page.begin_filling(version);
        self.attach_page(id, object);
    }

    /// Makes the key that an entry says lead to it, as the last page of its object.
    pub(super) fn attach_page(&mut self, id: PageId, object: ObjectSlot) {
        let index = self.pages[id.index()].index.get();
        let bucket = self.page_bucket(object, index);
        let last = self.objects[object.index()].last;
        let page = &mut self.pages[id.index()];
        page.bucket_next = self.page_buckets.head(bucket);
        page.object_prev = last;
        page.object_next = None;
        self.page_buckets.set_head(bucket, id.link());
        match PageId::from_link(last) {
            Some(last) => self.pages[last.index()].object_next = id.link(),
            None => self.objects[object.index()].first = id.link(),
        }
        let object = &mut self.objects[object.index()];
        object.last = id.link();
        object.pages += 1;
    }

    /// Has the contents of a page be in another slot, where they are already. Should the process
    /// end meanwhile, the next one finds them in either.
    pub(super) fn move_contents(&mut self, id: PageId, body: Body) {
        let moved = self.pages[id.index()].moved(body).to_moved();
        let log = &mut self.moves[0];
        log.begin(id.link(), moved);
        self.pages[id.index()].set_moved(moved.0, moved.1);
        self.moves[0].end();
    }

    /// Makes no key lead to a page, and returns the object that it was a page of.
    pub(super) fn unlink_page(&mut self, id: PageId) -> ObjectSlot {
        self.pages[id.index()].set_state(PageState::Orphan);
        let page = self.pages[id.index()];
        let object = ObjectSlot::from_link(page.object).expect("a linked page has an object");
        let bucket = self.page_bucket(object, page.index.get());
        let mut at = PageId::from_link(self.page_buckets.head(bucket));
        if at == Some(id) {
            self.page_buckets.set_head(bucket, page.bucket_next);
        }
        while let Some(here) = at.filter(|here| *here != id) {
            let next = self.pages[here.index()].bucket_next;
            if next == id.link() {
                self.pages[here.index()].bucket_next = page.bucket_next;
                break;
            }
            at = PageId::from_link(next);
        }
        self.remove_from_object(id, object);
        self.objects[object.index()].pages -= 1;
        self.pages[id.index()].object = None;
        object
    }

    /// Opens a cursor on the first page of an object. Pages linked later come after all others.
    pub(super) fn open_cursor(&mut self, object: ObjectSlot) -> CursorId {
        self.cursors.open(self.objects[object.index()].first)
    }

    /// Closes a cursor.
    pub(super) fn close_cursor(&mut self, cursor: CursorId) {
        self.cursors.close(cursor);
    }

    /// Returns the page that a cursor is on, [`None`] at the end.
    pub(super) fn cursor(&self, cursor: CursorId) -> Option<PageId> {
        self.cursors.get(cursor)
    }

    /// Moves a cursor to the next page of its object.
    pub(super) fn advance_cursor(&mut self, cursor: CursorId) {
        if let Some(page) = self.cursors.get(cursor) {
            self.cursors
                .set(cursor, self.pages[page.index()].object_next);
        }
    }

    fn remove_from_object(&mut self, id: PageId, object: ObjectSlot) {
        let Page {
            object_prev,
            object_next,
            ..
        } = self.pages[id.index()];
        self.cursors.page_leaves(id, object_next);
        match PageId::from_link(object_prev) {
            Some(prev) => self.pages[prev.index()].object_next = object_next,
            None => self.objects[object.index()].first = object_next,
        }
        match PageId::from_link(object_next) {
            Some(next) => self.pages[next.index()].object_prev = object_prev,
            None => self.objects[object.index()].last = object_prev,
        }
    }
}
