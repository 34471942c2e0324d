// SPDX-License-Identifier: GPL-2.0

//! All that there is, and what is known of it.

use std::collections::{
    BTreeMap,
    BTreeSet,
    VecDeque, //
};

use virtio_tmem_logic::index::{
    Buckets,
    Completed,
    Config,
    Entry,
    Flush,
    Found,
    NodeChunk,
    ObjectChunk,
    Older,
    Outcome,
    Shard,
    Supersedes,
    VERSION_MAX, //
};

use super::{
    host::{
        Host,
        Request, //
    },
    ops::Op,
    window::{
        plain,
        Window, //
    },
};

/// The number of nodes that one insertion can need.
pub(crate) const MOST_NODES: usize = 21;

const SHARDS: u32 = 7;
const NUMBER: u32 = 3;

/// A put between its insertion and its outcome.
#[derive(Clone, Debug)]
pub(crate) struct Put {
    pub(crate) tag: u64,
    pub(crate) wire: u64,
    pub(crate) index: u64,
    pub(crate) version: u32,
    pub(crate) supersedes: Supersedes,
    pub(crate) data: u64,
    /// Where in the window the page is, if it is moving.
    pub(crate) slot: Option<u32>,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Pending,
    Stored,
    Slot(u32),
    Moving(u32),
    /// Nowhere any more, but somebody has the right to it.
    Lost,
}

impl Place {
    pub(crate) fn slot(self) -> Option<u32> {
        match self {
            Self::Slot(slot) | Self::Moving(slot) => Some(slot),
            Self::Pending | Self::Stored | Self::Lost => None,
        }
    }

    pub(crate) fn is_pending(self) -> bool {
        matches!(self, Self::Pending | Self::Moving(_))
    }
}

/// What the map says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) version: u32,
    pub(crate) data: u64,
    pub(crate) wire: u64,
    /// That of the chunk when the page was copied there.
    pub(crate) generation: u32,
    pub(crate) place: Place,
}

pub(crate) struct World {
    pub(crate) shard: Shard,
    pub(crate) host: Host,
    pub(crate) pages: BTreeMap<(u64, u64), Page>,
    pub(crate) flags: BTreeMap<u64, u8>,
    /// Puts that the worker has not come to yet.
    pub(crate) staged: VecDeque<Put>,
    /// Puts whose outcome the driver does not know yet.
    pub(crate) outcomes: Vec<(Put, bool)>,
    pub(crate) last_wire: u64,
    pub(crate) tag_of: BTreeMap<u64, u64>,
    pub(crate) given_up: BTreeSet<u64>,
    pub(crate) data: u64,
    pub(crate) plenty: bool,
    pub(crate) window: Window,
}

impl World {
    pub(crate) fn new(max_pages: usize, version: u32, plenty: bool) -> Self {
        let shard = Shard::new(Config {
            number: NUMBER,
            shards: SHARDS,
            max_pages,
            version,
        });
        let mut world = Self {
            shard: shard.unwrap(),
            host: Host::default(),
            pages: BTreeMap::new(),
            flags: BTreeMap::new(),
            staged: VecDeque::new(),
            outcomes: Vec::new(),
            last_wire: 0,
            tag_of: BTreeMap::new(),
            given_up: BTreeSet::new(),
            data: 0,
            plenty,
            window: Window::new(false),
        };
        if plenty {
            while world.shard.add_nodes(NodeChunk::new().unwrap()).is_ok() {}
            while world.shard.add_objects(ObjectChunk::new().unwrap()).is_ok() {}
        }
        world
    }

    /// Checks what a put goes by.
    pub(crate) fn check_name(&mut self, tag: u64, wire: u64, version: u32) {
        assert!((1..=VERSION_MAX).contains(&version));
        assert_eq!(wire % u64::from(SHARDS), u64::from(NUMBER));
        if *self.tag_of.entry(wire).or_insert(tag) != tag || self.given_up.contains(&wire) {
            panic!("wire id {wire} used again");
        }
        if wire != self.last_wire {
            self.last_wire = self.last_wire.max(wire);
        }
    }

    fn insert(&mut self, tag: u64, index: u64) {
        let before = self.shard.stats();
        let slot = self.data as u32;
        let Ok(inserted) = self.shard.insert_pending(tag, index, slot) else {
            assert_eq!(self.shard.stats(), before);
            assert!(!self.plenty || before.nodes_free < MOST_NODES);
            return;
        };
        let (wire, version) = (inserted.wire, inserted.version);
        self.check_name(tag, wire, version);
        let page = Page {
            version,
            data: self.data,
            wire,
            generation: 0,
            place: Place::Pending,
        };
        let old = self.pages.insert((tag, index), page);
        self.check_replaced(inserted.replaced, old);
        if let Some(replaced) = inserted.replaced {
            assert_ne!(replaced.version(), version);
        }
        self.staged.push_back(Put {
            tag,
            wire,
            index,
            version,
            supersedes: inserted.supersedes,
            data: self.data,
            slot: None,
        });
        self.data += 1;
    }

    /// Does what the worker does with the oldest put: submits it, if it is current and `send`.
    fn worker(&mut self, send: bool) {
        let Some(put) = self.staged.pop_front() else {
            return;
        };
        let current = self.is_current(&put);
        assert_eq!(
            self.shard
                .is_current(put.tag, put.wire, put.index, put.version),
            current
        );
        if current && send {
            self.host.submit(put.wire, Request::Put(put));
        } else {
            self.abandon(&put);
        }
    }

    /// Returns whether a put, or a move to the store, is still wanted.
    pub(crate) fn is_current(&self, put: &Put) -> bool {
        let place = put.slot.map_or(Place::Pending, Place::Moving);
        self.pages
            .get(&(put.tag, put.index))
            .is_some_and(|page| page.place == place && page.data == put.data)
    }

    pub(crate) fn abandon(&mut self, put: &Put) {
        let current = self.is_current(put);
        self.shard
            .abandon(put.tag, put.wire, put.index, put.version, put.supersedes);
        self.not_stored(put, current);
    }

    /// Takes note that the store does not have a page.
    fn not_stored(&mut self, put: &Put, current: bool) {
        let key = (put.tag, put.index);
        match put.slot {
            // It is in its slot again.
            Some(slot) if current => {
                self.pages.get_mut(&key).unwrap().place = Place::Slot(slot);
            }
            Some(slot) => self.window.free(slot),
            None if current => drop(self.pages.remove(&key)),
            None => (),
        }
    }

    fn complete(&mut self, pick: u8) {
        if self.outcomes.is_empty() {
            return;
        }
        let (put, stored) = self
            .outcomes
            .swap_remove(usize::from(pick) % self.outcomes.len());
        let key = (put.tag, put.index);
        let current = self.is_current(&put);
        let outcome = if stored {
            Outcome::Stored {
                crc: put.data as u32,
            }
        } else {
            Outcome::Refused
        };
        let completed = self
            .shard
            .complete(put.tag, put.wire, put.index, put.version, outcome);
        assert_eq!(completed == Completed::Current, current);
        if !stored {
            self.not_stored(&put, current);
            return;
        }
        if current {
            self.pages.get_mut(&key).unwrap().place = Place::Stored;
        }
        if let Some(slot) = put.slot {
            self.window.free(slot);
        }
    }

    /// Harvests, and submits at once. Returns whether there is more.
    fn harvest(&mut self, max: usize) -> bool {
        let mut flushes = Vec::new();
        let mut freed = Vec::new();
        let more =
            self.shard
                .harvest_slots(max, |flush| flushes.push(flush), |slot| freed.push(slot));
        freed.into_iter().for_each(|slot| self.window.free(slot));
        assert!(flushes.len() <= max);
        assert_eq!(more, self.shard.has_work());
        for flush in flushes {
            let wire = match flush {
                Flush::Object { wire } => {
                    assert!(self.given_up.insert(wire));
                    wire
                }
                Flush::Page { wire, .. } | Flush::Any { wire, .. } => wire,
            };
            self.host.submit(wire, Request::Flush(flush));
        }
        more
    }

    fn grow(&mut self) {
        let wants = self.shard.wants();
        if wants.nodes {
            assert!(self.shard.add_nodes(NodeChunk::new().unwrap()).is_ok());
        }
        if wants.objects {
            assert!(self.shard.add_objects(ObjectChunk::new().unwrap()).is_ok());
        }
        if let Some(count) = wants.buckets {
            drop(self.shard.rehash(Buckets::new(count).unwrap()));
        }
    }

    pub(crate) fn expected(&self, page: &Page) -> Entry {
        let Page { version, data, .. } = *page;
        let rest = data as u32;
        match page.place {
            Place::Pending => Entry::Pending {
                version,
                slot: rest,
            },
            Place::Stored => Entry::Remote { version, crc: rest },
            Place::Moving(slot) => Entry::Moving { version, slot },
            Place::Slot(slot) => Entry::Window {
                older: Older::NOTHING,
                slot,
            },
            Place::Lost => Entry::Lost,
        }
    }

    /// Compares what can be had with what there should be.
    fn check_found(&self, found: Option<Found>, expected: Option<&Page>) {
        assert_eq!(
            found.map(|found| plain(found.entry)),
            expected.map(|page| self.expected(page))
        );
        if let (Some(found), Some(page)) = (found, expected) {
            // One in the window need not have a name.
            let nameless = matches!(page.place, Place::Slot(_) | Place::Lost);
            assert!(page.wire == found.wire || nameless);
        }
    }

    /// Compares what has been taken with what there was, and gets it.
    pub(crate) fn taken(&mut self, index: u64, found: Option<Found>, expected: Option<Page>) {
        self.check_found(found, expected.as_ref());
        self.erased(found.map(|found| found.entry));
        if let Some(page) = expected.filter(|page| page.place == Place::Stored) {
            let Page { version, data, .. } = page;
            self.host.submit(
                page.wire,
                Request::Take {
                    index,
                    version,
                    data,
                },
            );
        }
    }

    /// Gives back the slot of a page that has been erased.
    fn erased(&mut self, entry: Option<Entry>) {
        if let Some(slot) = entry.and_then(Entry::slot) {
            self.window.free(slot);
        }
    }

    pub(crate) fn apply(&mut self, op: &Op) {
        match *op {
            Op::Insert(tag, index) => self.insert(tag, index),
            Op::InsertRun(tag, index, n) => {
                for i in 0..n {
                    self.insert(tag, index.saturating_add(i));
                }
            }
            Op::Worker(n, send) => (0..n).for_each(|_| self.worker(send)),
            Op::Host(pick, n, refuse) => {
                for i in 0..n {
                    let outcome = self.host.step(
                        pick.wrapping_mul(i | 1),
                        refuse & (1 << i) != 0,
                        &self.window,
                    );
                    self.outcomes.extend(outcome);
                }
            }
            Op::Complete(pick, n) => (0..n).for_each(|_| self.complete(pick)),
            Op::Harvest(max) => {
                self.harvest(max);
            }
            Op::Grow => self.grow(),
            Op::Erase(tag, index) => {
                let expected = self.pages.remove(&(tag, index));
                let erased = self.shard.erase(tag, index);
                assert_eq!(erased.map(plain), expected.map(|page| self.expected(&page)));
                self.erased(erased);
            }
            Op::Take(tag, index) => {
                let expected = self.pages.remove(&(tag, index));
                let found = self.shard.take(tag, index);
                self.taken(index, found, expected);
            }
            Op::TakeRun(tag, index, n) => self.take_run(tag, index, n),
            Op::Peek(tag, index) => {
                let found = self.shard.peek(tag, index);
                self.check_found(found, self.pages.get(&(tag, index)));
            }
            Op::Contains(tag, index, n) => {
                let expected = match n.checked_sub(1) {
                    Some(n) => self
                        .pages
                        .range((tag, index)..=(tag, index.saturating_add(n)))
                        .count(),
                    None => 0,
                };
                assert_eq!(self.shard.contains_range(tag, index, n), expected as u64);
            }
            Op::EraseRange(tag, first, last) => {
                let mut seen = Vec::new();
                let mut count = 0;
                let mut from = Some(first);
                while let Some(first) = from {
                    let erased = self.shard.erase_range(tag, first, last, |e| seen.push(e));
                    count += erased.count;
                    assert!(erased.next.is_none_or(|next| first <= next && next <= last));
                    from = erased.next;
                }
                let mut expected = Vec::new();
                let (first, last) = ((tag, first), (tag, last));
                if first <= last {
                    for (_, page) in self.pages.range(first..=last) {
                        expected.push(self.expected(page));
                    }
                }
                self.pages.retain(|key, _| *key < first || *key > last);
                assert_eq!(count, seen.len() as u64);
                assert_eq!(
                    seen.iter().copied().map(plain).collect::<Vec<_>>(),
                    expected
                );
                seen.into_iter().for_each(|entry| self.erased(Some(entry)));
            }
            Op::EraseAll(tag) => {
                let before = self.pages.len();
                self.pages.retain(|(t, _), _| *t != tag);
                let count = (before - self.pages.len()) as u64;
                assert_eq!(self.shard.erase_all(tag), count);
            }
            Op::Drop(tag) => {
                self.pages.retain(|(t, _), _| *t != tag);
                self.flags.remove(&tag);
                self.shard.drop_object(tag);
            }
            Op::SetFlags(tag, flags) => {
                let known = self.flags.contains_key(&tag)
                    || self.pages.range((tag, 0)..=(tag, u64::MAX)).count() != 0;
                match self.shard.set_flags(tag, flags) {
                    Ok(()) if flags == 0 => drop(self.flags.remove(&tag)),
                    Ok(()) => drop(self.flags.insert(tag, flags)),
                    Err(_) => assert!(flags != 0 && !known && !self.plenty),
                }
            }
            Op::Forget => {
                // What has been stored is lost, what has been done may still be told.
                let mut freed = Vec::new();
                self.shard.forget_all_slots(|slot| freed.push(slot));
                freed.into_iter().for_each(|slot| self.window.free(slot));
                let lost = self.host.reset();
                self.pages.clear();
                lost.iter().for_each(|put| self.abandon(put));
            }
            Op::PutSlot(tag, index, n) => {
                for i in 0..n {
                    self.put_slot(tag, index.saturating_add(i));
                }
            }
            Op::BeginCopy(tag, index, take) => self.begin_copy(tag, index, take),
            Op::Copy(pick) => self.go_on_copying(pick),
            Op::BeginMove(pick, to_store) => self.begin_move(pick, to_store),
            Op::EndMove(pick, way) => self.end_move(pick, way),
            Op::Promote(tag, index) => self.promote(tag, index),
            Op::TakeBack(pick) => self.take_back(pick),
            Op::Sweep => self.sweep(),
            Op::SlotsOf(tag, index, n) => self.slots_of(tag, index, n),
            Op::TakeSlots(tag, index, n) => self.take_slots(tag, index, n),
            Op::LoseSlot(pick) => self.lose_slot(pick),
            Op::AwayFrom(tag, index, most) => self.away_from(tag, index, most),
        }
    }

    /// Compares everything that can be seen.
    pub(crate) fn check(&self) {
        let mut live = BTreeMap::new();
        self.shard.for_each_live(|tag, index, entry| {
            assert!(live.insert((tag, index), plain(entry)).is_none());
        });
        let expected = self.pages.iter().map(|(k, page)| (*k, self.expected(page)));
        assert_eq!(live, expected.collect::<BTreeMap<_, _>>());

        let stats = self.shard.stats();
        let pending = self.pages.values().filter(|page| page.place.is_pending());
        assert_eq!(stats.live, self.pages.len() as u64);
        assert_eq!(stats.pending, pending.count() as u64);
        for (tag, flags) in &self.flags {
            assert_eq!(self.shard.flags(*tag), *flags);
        }
        // Whatever the index has as stored, the device has, and has it right; whatever it has in a
        // slot is there, unless the device has taken the chunk.
        for ((_, index), page) in &self.pages {
            match page.place {
                Place::Pending | Place::Lost => (),
                Place::Stored => assert_eq!(
                    self.host.pages.get(&(page.wire, *index)),
                    Some(&(page.version, page.data)),
                    "lost"
                ),
                Place::Slot(slot) | Place::Moving(slot) => {
                    if self.window.generation(slot) == page.generation {
                        assert_eq!(self.window.content(slot), page.data, "a wrong page");
                    }
                }
            }
        }
    }

    /// Lets everything come to its end.
    fn quiesce(&mut self) {
        self.quiesce_window();
        for rounds in 0.. {
            assert!(
                rounds < 1000,
                "there is no end to it: {:?}",
                self.shard.stats()
            );
            while !self.staged.is_empty() {
                self.worker(true);
            }
            for flushes in 0.. {
                assert!(flushes < 10_000, "there is no end of flushes");
                if !self.harvest(3) {
                    break;
                }
            }
            while !self.host.is_idle() {
                let outcome = self.host.step(0, false, &self.window);
                self.outcomes.extend(outcome);
            }
            while !self.outcomes.is_empty() {
                self.complete(0);
            }
            if !self.shard.has_work() {
                break;
            }
        }
        self.check();

        let stats = self.shard.stats();
        assert_eq!((stats.pending, stats.stale), (0, 0));
        assert_eq!(stats.nodes_used, self.nodes());
        self.window.check_quiet(self.pages.values());
        let indexed = self
            .pages
            .iter()
            .filter(|(_, page)| page.place == Place::Stored)
            .map(|((_, index), page)| ((page.wire, *index), (page.version, page.data)))
            .collect::<BTreeMap<_, _>>();
        let leaks = self
            .host
            .pages
            .iter()
            .filter(|(key, _)| !indexed.contains_key(*key))
            .count();
        assert!(leaks as u64 <= stats.leaked, "leaks: {leaks}, {stats:?}");
    }

    /// Returns the number of nodes that trees of what there is must have.
    fn nodes(&self) -> usize {
        let mut nodes = BTreeSet::new();
        let mut highest = BTreeMap::new();
        for (tag, index) in self.pages.keys() {
            // The last one is the highest.
            highest.insert(*tag, *index);
        }
        for (tag, index) in self.pages.keys() {
            let mut rest = highest[tag];
            let mut level = 1;
            while rest != 0 {
                nodes.insert((*tag, level, u128::from(*index) >> (6 * level)));
                rest >>= 6;
                level += 1;
            }
        }
        nodes.len()
    }

    pub(crate) fn finish(mut self) {
        self.quiesce();
        let keys: Vec<u64> = self.pages.keys().map(|key| key.0).collect();
        for tag in keys.into_iter().chain(self.flags.clone().into_keys()) {
            self.apply(&Op::Drop(tag));
        }
        // An object may be known for its orphans alone, and for having leaked.
        let leaked = self.shard.stats().leaked != 0;
        for tag in self.tag_of.clone().into_values().filter(|_| leaked) {
            self.apply(&Op::Drop(tag));
        }
        self.quiesce();
        let stats = self.shard.stats();
        assert_eq!((stats.objects, stats.nodes_used), (0, 0), "{stats:?}");
        assert_eq!(self.host.pages.len(), 0);
    }
}
