// SPDX-License-Identifier: GPL-2.0

//! A window of a few small chunks, and what the driver and the device do with it.

use virtio_tmem_logic::index::{
    Completed,
    Entry,
    Older,
    Supersedes, //
};

use super::world::{
    Page,
    Place,
    Put,
    World,
    MOST_NODES, //
};

/// Slots of a chunk.
const CHUNK: u32 = 4;
const CHUNKS: u32 = 4;

/// What is in a slot that the device has taken.
const SCRAMBLED: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Granted,
    /// The device wants it back: nothing new goes there.
    Recalled,
    /// The device has taken it, and its pages are still in the index.
    Taken,
}

/// A page that is being got: some other processor copies it.
#[derive(Clone, Copy, Debug)]
struct Copying {
    key: (u64, u64),
    slot: u32,
    generation: u32,
    data: u64,
    /// Whether the page was taken out of the index, so that the slot is its own.
    taken: bool,
    /// What has been copied.
    copied: Option<u64>,
}

/// A page between the beginning of a move and whatever ends it.
#[derive(Clone, Debug)]
pub(crate) struct Move {
    put: Put,
    slot: u32,
}

pub(crate) struct Window {
    ephemeral: bool,
    content: Vec<u64>,
    /// Last in, first out.
    free: Vec<u32>,
    /// Free slots of chunks that are not to be used.
    idle: Vec<u32>,
    states: Vec<State>,
    generations: Vec<u32>,
    copying: Vec<Copying>,
    moves: Vec<Move>,
}

fn chunk_of(slot: u32) -> usize {
    (slot / CHUNK) as usize
}

impl Window {
    pub(crate) fn new(ephemeral: bool) -> Self {
        let slots = CHUNK * CHUNKS;
        Self {
            ephemeral,
            content: vec![SCRAMBLED; slots as usize],
            free: (0..slots).collect(),
            idle: Vec::new(),
            states: vec![State::Granted; CHUNKS as usize],
            generations: vec![2; CHUNKS as usize],
            copying: Vec::new(),
            moves: Vec::new(),
        }
    }

    pub(crate) fn is_ephemeral(&self) -> bool {
        self.ephemeral
    }

    pub(crate) fn content(&self, slot: u32) -> u64 {
        self.content[slot as usize]
    }

    pub(crate) fn generation(&self, slot: u32) -> u32 {
        self.generations[chunk_of(slot)]
    }

    /// Gives back a slot that nobody may have given back before.
    pub(crate) fn free(&mut self, slot: u32) {
        assert!(
            !self.free.contains(&slot) && !self.idle.contains(&slot),
            "slot {slot} is free twice"
        );
        match self.states[chunk_of(slot)] {
            State::Granted => self.free.push(slot),
            State::Recalled | State::Taken => self.idle.push(slot),
        }
    }

    /// Takes all of a chunk's memory, and grants it again once nothing is left in it.
    fn take(&mut self, chunk: usize) {
        for slot in 0..CHUNK {
            self.content[chunk * CHUNK as usize + slot as usize] = SCRAMBLED;
        }
        self.generations[chunk] += 2;
    }

    /// Grants chunks again that have been given up, and in which no slot is in use.
    fn grant(&mut self) {
        for chunk in 0..CHUNKS as usize {
            let idle = self.idle.iter().filter(|slot| chunk_of(**slot) == chunk);
            if self.states[chunk] == State::Granted || idle.count() != CHUNK as usize {
                continue;
            }
            if self.states[chunk] == State::Recalled {
                self.take(chunk);
            }
            self.states[chunk] = State::Granted;
            let (back, idle) = self
                .idle
                .drain(..)
                .partition::<Vec<_>, _>(|slot| chunk_of(*slot) == chunk);
            self.free.extend(back);
            self.idle = idle;
        }
    }

    /// Checks that all slots are free, or that of one page each.
    pub(crate) fn check_quiet<'a>(&self, pages: impl Iterator<Item = &'a Page>) {
        assert!(self.copying.is_empty() && self.moves.is_empty());
        let mut slots: Vec<u32> = self.free.iter().chain(&self.idle).copied().collect();
        slots.extend(pages.filter_map(|page| page.place.slot()));
        slots.sort_unstable();
        assert_eq!(slots, (0..CHUNK * CHUNKS).collect::<Vec<_>>());
    }
}

impl World {
    /// Puts a page into the window, if there is a slot.
    pub(crate) fn put_slot(&mut self, tag: u64, index: u64) {
        let Some(slot) = self.window.free.pop() else {
            return;
        };
        let before = self.shard.stats();
        let data = self.data;
        self.window.content[slot as usize] = data;
        let mut replaced = None;
        let inserted = self.shard.insert_slots(tag, index, 1, |_, entry| {
            replaced = entry;
            slot
        });
        if inserted == 0 {
            assert_eq!(self.shard.stats(), before);
            assert!(!self.plenty || before.nodes_free < MOST_NODES);
            self.window.free(slot);
            return;
        }
        let page = Page {
            version: 0,
            data,
            wire: 0,
            generation: self.window.generation(slot),
            place: Place::Slot(slot),
        };
        let old = self.pages.insert((tag, index), page);
        self.check_replaced(replaced, old);
        self.data += 1;
    }

    /// Compares what a put has replaced with what there was, and frees its slot.
    pub(crate) fn check_replaced(&mut self, replaced: Option<Entry>, old: Option<Page>) {
        let replaced = replaced.filter(|entry| entry.is_live());
        assert_eq!(replaced.map(plain), old.map(|page| self.expected(&page)));
        if let Some(slot) = replaced.and_then(Entry::slot) {
            self.window.free(slot);
        }
    }

    /// Begins to copy a page out of the window, as another processor than the one that goes on.
    pub(crate) fn begin_copy(&mut self, tag: u64, index: u64, take: bool) {
        let key = (tag, index);
        let Some(page) = self.pages.get(&key).copied() else {
            return;
        };
        let Place::Slot(slot) = page.place else {
            return;
        };
        if take {
            let found = self.shard.take(tag, index).unwrap();
            assert_eq!(plain(found.entry), self.expected(&page));
            self.pages.remove(&key);
        }
        self.window.copying.push(Copying {
            key,
            slot,
            generation: page.generation,
            data: page.data,
            taken: take,
            copied: None,
        });
    }

    /// Goes on with a copy: copies, and the next time sees whether the copy is right.
    pub(crate) fn go_on_copying(&mut self, pick: u8) {
        let count = self.window.copying.len();
        if count == 0 {
            return;
        }
        let n = usize::from(pick) % count;
        let slot = self.window.copying[n].slot;
        let content = self.window.content(slot);
        let copying = &mut self.window.copying[n];
        let Some(copied) = copying.copied else {
            copying.copied = Some(content);
            return;
        };
        let copying = self.window.copying.swap_remove(n);
        let (tag, index) = copying.key;
        let intact = self.window.generation(slot) == copying.generation;
        if copying.taken {
            // A miss, if it is not intact.
            assert!(!intact || copied == copying.data, "a wrong page");
            assert!(intact || self.window.ephemeral, "a lost page");
            self.window.free(slot);
        } else if intact && self.shard.is_in_slot(tag, index, slot) {
            // Whoever gets a page keeps others from putting another one in its place.
            let same = self
                .pages
                .get(&copying.key)
                .is_some_and(|page| page.data == copying.data);
            assert!(!same || copied == copying.data, "a wrong page");
        }
    }

    /// Picks a page that is in the window, and not moving.
    fn resting(&self, pick: u8) -> Option<(u64, u64)> {
        let mut keys: Vec<(u64, u64)> = self
            .pages
            .iter()
            .filter(|(_, page)| matches!(page.place, Place::Slot(_)))
            .map(|(key, _)| *key)
            .collect();
        (!keys.is_empty()).then(|| keys.swap_remove(usize::from(pick) % keys.len()))
    }

    /// Takes note that a page is not in its slot any more; whoever has the right to it keeps it.
    pub(crate) fn lose_slot(&mut self, pick: u8) {
        let Some(key) = self.resting(pick) else {
            return;
        };
        let slot = self.pages[&key].place.slot().unwrap();
        assert!(!self.shard.lose_slot(key.0, key.1, slot + 1));
        assert!(self.shard.lose_slot(key.0, key.1, slot));
        assert!(!self.shard.lose_slot(key.0, key.1, slot));
        self.pages.get_mut(&key).unwrap().place = Place::Lost;
        self.window.free(slot);
    }

    /// Begins to move a page; it goes to the store, unless the move ends otherwise.
    pub(crate) fn begin_move(&mut self, pick: u8, to_store: bool) {
        let Some(key) = self.resting(pick) else {
            return;
        };
        let page = self.pages[&key];
        let slot = page.place.slot().unwrap();
        if self.window.generation(slot) != page.generation {
            return;
        }
        // Only what is in the slot can be moved.
        assert!(self.shard.begin_move(key.0, key.1, slot + 1).is_none());
        let begun = self.shard.begin_move(key.0, key.1, slot).unwrap();
        self.check_name(key.0, begun.wire, begun.version);
        let put = Put {
            tag: key.0,
            wire: begun.wire,
            index: key.1,
            version: begun.version,
            supersedes: begun.supersedes,
            data: page.data,
            slot: Some(slot),
        };
        let page = self.pages.get_mut(&key).unwrap();
        page.place = Place::Moving(slot);
        page.version = begun.version;
        page.wire = begun.wire;
        if to_store {
            self.staged.push_back(put);
        } else {
            self.window.moves.push(Move { put, slot });
        }
    }

    /// Ends a move that does not go to the store: in another slot, on the disk, or where it was.
    pub(crate) fn end_move(&mut self, pick: u8, way: u8) {
        let count = self.window.moves.len();
        if count == 0 {
            return;
        }
        let Move { put, slot } = self.window.moves.swap_remove(usize::from(pick) % count);
        let key = (put.tag, put.index);
        let current = self
            .pages
            .get(&key)
            .is_some_and(|page| page.place == Place::Moving(slot) && page.data == put.data);
        let to = match way % 3 {
            0 => self.window.free.pop(),
            _ => None,
        };
        if way % 3 == 2 {
            self.abandon(&put);
            return;
        }
        // Whatever else was in the slot meanwhile, nothing else is now.
        let content = self.window.content(slot);
        assert!(
            content == put.data || self.window.ephemeral,
            "moved another page"
        );
        if let Some(to) = to {
            self.window.content[to as usize] = content;
        }
        let moved = self.moved(&put, put.supersedes, to);
        assert_eq!(moved == Completed::Current, current);
        self.window.free(slot);
        match to {
            Some(to) if current => {
                let generation = self.window.generation(to);
                let page = self.pages.get_mut(&key).unwrap();
                page.place = Place::Slot(to);
                page.generation = generation;
                if content != put.data {
                    // It was gone before it was copied, which the generation of its chunk says.
                    self.shard.erase_slot(key.0, key.1, to);
                    self.pages.remove(&key);
                    self.window.free(to);
                }
            }
            Some(to) => self.window.free(to),
            None if current => drop(self.pages.remove(&key)),
            None => (),
        }
    }

    fn moved(&mut self, put: &Put, supersedes: Supersedes, to: Option<u32>) -> Completed {
        let name = (put.wire, put.index, put.version);
        self.shard.moved(put.tag, name, supersedes, to)
    }

    /// Brings a page back from the store.
    pub(crate) fn promote(&mut self, tag: u64, index: u64) {
        let key = (tag, index);
        let Some(page) = self.pages.get(&key).copied() else {
            return;
        };
        // Whoever gets a page is the only one to.
        let busy = self.window.copying.iter().any(|copying| copying.key == key);
        if page.place != Place::Stored || busy {
            return;
        }
        let Some(slot) = self.window.free.pop() else {
            return;
        };
        assert!(!self.shard.promote(tag, index, page.version + 1, slot));
        self.window.content[slot as usize] = page.data;
        assert!(self.shard.promote(tag, index, page.version, slot));
        let generation = self.window.generation(slot);
        let page = self.pages.get_mut(&key).unwrap();
        page.place = Place::Slot(slot);
        page.generation = generation;
    }

    /// The device takes a chunk, or asks for it where it has to.
    pub(crate) fn take_back(&mut self, pick: u8) {
        let chunk = usize::from(pick) % CHUNKS as usize;
        let window = &mut self.window;
        if window.states[chunk] != State::Granted {
            return;
        }
        if window.ephemeral {
            window.states[chunk] = State::Taken;
            window.take(chunk);
        } else {
            window.states[chunk] = State::Recalled;
        }
        let (idle, free) = window
            .free
            .drain(..)
            .partition::<Vec<_>, _>(|slot| chunk_of(*slot) == chunk);
        window.free = free;
        window.idle.extend(idle);
    }

    /// The driver lets go of what was in chunks that the device has taken, and gets them again.
    pub(crate) fn sweep(&mut self) {
        let gone = |page: &Page, window: &Window| {
            page.place
                .slot()
                .filter(|slot| window.states[chunk_of(*slot)] == State::Taken)
        };
        let gone: Vec<((u64, u64), u32)> = self
            .pages
            .iter()
            .filter_map(|(key, page)| Some((*key, gone(page, &self.window)?)))
            .collect();
        for (key, slot) in gone {
            if matches!(self.pages[&key].place, Place::Slot(_)) {
                assert!(!self.shard.erase_slot(key.0, key.1, slot + 1));
                assert!(self.shard.erase_slot(key.0, key.1, slot));
                self.pages.remove(&key);
                self.window.free(slot);
            }
        }
        self.window.grant();
    }

    /// Lets all copies and moves come to their end.
    pub(crate) fn quiesce_window(&mut self) {
        while !self.window.copying.is_empty() {
            self.go_on_copying(0);
        }
        while !self.window.moves.is_empty() {
            self.end_move(0, 2);
        }
    }
}

/// Returns the entry without what the store may have below it.
pub(crate) fn plain(entry: Entry) -> Entry {
    match entry {
        Entry::Window { slot, .. } => Entry::Window {
            older: Older::NOTHING,
            slot,
        },
        entry => entry,
    }
}
