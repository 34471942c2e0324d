// SPDX-License-Identifier: GPL-2.0

//! A shard against a map, together with a device that is slow, and out of order where it may be.

mod host;
mod ops;

use std::collections::{
    BTreeMap,
    BTreeSet,
    VecDeque, //
};

use proptest::prelude::*;
use virtio_tmem_logic::index::{
    Buckets,
    Completed,
    Config,
    Entry,
    Flush,
    NodeChunk,
    ObjectChunk,
    Outcome,
    Shard,
    Supersedes,
    VERSION_MAX, //
};

use host::{
    Host,
    Request, //
};
use ops::{
    ops,
    ops_on_two_pages,
    Op, //
};

/// The number of nodes that one insertion can need.
const MOST_NODES: usize = 21;

const SHARDS: u32 = 7;
const NUMBER: u32 = 3;

/// A put between its insertion and its outcome.
#[derive(Clone, Debug)]
struct Put {
    tag: u64,
    wire: u64,
    index: u64,
    version: u32,
    supersedes: Supersedes,
    data: u64,
}

/// What the map says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    version: u32,
    data: u64,
    wire: u64,
    pending: bool,
}

struct World {
    shard: Shard,
    host: Host,
    pages: BTreeMap<(u64, u64), Page>,
    flags: BTreeMap<u64, u8>,
    /// Puts that the worker has not come to yet.
    staged: VecDeque<Put>,
    /// Puts whose outcome the driver does not know yet.
    outcomes: Vec<(Put, bool)>,
    last_wire: u64,
    tag_of: BTreeMap<u64, u64>,
    given_up: BTreeSet<u64>,
    data: u64,
    plenty: bool,
}

impl World {
    fn new(max_pages: usize, version: u32, plenty: bool) -> Self {
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
        };
        if plenty {
            while world.shard.add_nodes(NodeChunk::new().unwrap()).is_ok() {}
            while world.shard.add_objects(ObjectChunk::new().unwrap()).is_ok() {}
        }
        world
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
        assert!((1..=VERSION_MAX).contains(&version));
        assert_eq!(wire % u64::from(SHARDS), u64::from(NUMBER));
        if *self.tag_of.entry(wire).or_insert(tag) != tag || self.given_up.contains(&wire) {
            panic!("wire id {wire} used again");
        }
        if wire != self.last_wire {
            self.last_wire = self.last_wire.max(wire);
        }
        let page = Page {
            version,
            data: self.data,
            wire,
            pending: true,
        };
        match (inserted.replaced, self.pages.insert((tag, index), page)) {
            (Some(Entry::Pending { version: v, slot }), Some(old)) => {
                assert!(old.pending && old.version == v && old.data as u32 == slot);
            }
            (Some(Entry::Remote { version: v, crc }), Some(old)) => {
                assert!(!old.pending && old.version == v && old.data as u32 == crc);
            }
            (None | Some(Entry::Stale { .. }), None) => (),
            other => panic!("{other:?}"),
        }
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
        });
        self.data += 1;
    }

    /// Does what the worker does with the oldest put: submits it, if it is current and `send`.
    fn worker(&mut self, send: bool) {
        let Some(put) = self.staged.pop_front() else {
            return;
        };
        let page = self.pages.get(&(put.tag, put.index));
        let current = page.is_some_and(|p| p.pending && p.data == put.data);
        assert_eq!(
            self.shard
                .is_current(put.tag, put.wire, put.index, put.version),
            current
        );
        if current && send {
            self.host.submit(put.wire, Request::Put(put));
        } else {
            self.shard
                .abandon(put.tag, put.wire, put.index, put.version, put.supersedes);
            if current {
                self.pages.remove(&(put.tag, put.index));
            }
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
        let current = self.pages.get(&key).is_some_and(|p| p.data == put.data);
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
        if current && stored {
            self.pages.get_mut(&key).unwrap().pending = false;
        } else if current {
            self.pages.remove(&key);
        }
    }

    /// Harvests, and submits at once. Returns whether there is more.
    fn harvest(&mut self, max: usize) -> bool {
        let mut flushes = Vec::new();
        let more = self.shard.harvest(max, |flush| flushes.push(flush));
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

    fn expected(&self, page: &Page) -> Entry {
        let Page { version, data, .. } = *page;
        if page.pending {
            Entry::Pending {
                version,
                slot: data as u32,
            }
        } else {
            Entry::Remote {
                version,
                crc: data as u32,
            }
        }
    }

    fn apply(&mut self, op: &Op) {
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
                    let outcome = self
                        .host
                        .step(pick.wrapping_mul(i | 1), refuse & (1 << i) != 0);
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
                assert_eq!(
                    self.shard.erase(tag, index),
                    expected.map(|page| self.expected(&page))
                );
            }
            Op::Take(tag, index) => {
                let expected = self.pages.remove(&(tag, index));
                let found = self.shard.take(tag, index);
                assert_eq!(
                    found.map(|f| (f.wire, f.entry)),
                    expected.map(|page| (page.wire, self.expected(&page)))
                );
                if let Some(page) = expected.filter(|page| !page.pending) {
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
            Op::Peek(tag, index) => {
                let found = self.shard.peek(tag, index);
                assert_eq!(
                    found.map(|f| (f.wire, f.entry)),
                    self.pages
                        .get(&(tag, index))
                        .map(|page| (page.wire, self.expected(page)))
                );
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
                assert_eq!(seen, expected);
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
                self.shard.forget_all();
                self.host.reset();
                self.pages.clear();
            }
        }
    }

    /// Compares everything that can be seen.
    fn check(&self) {
        let mut live = BTreeMap::new();
        self.shard.for_each_live(|tag, index, entry| {
            assert!(live.insert((tag, index), entry).is_none());
        });
        let expected = self.pages.iter().map(|(k, page)| (*k, self.expected(page)));
        assert_eq!(live, expected.collect::<BTreeMap<_, _>>());

        let stats = self.shard.stats();
        let pending = self.pages.values().filter(|page| page.pending).count();
        assert_eq!(stats.live, self.pages.len() as u64);
        assert_eq!(stats.pending, pending as u64);
        for (tag, flags) in &self.flags {
            assert_eq!(self.shard.flags(*tag), *flags);
        }
        // Whatever the index has as stored, the device has, and has it right.
        for ((_, index), page) in self.pages.iter().filter(|(_, page)| !page.pending) {
            assert_eq!(
                self.host.pages.get(&(page.wire, *index)),
                Some(&(page.version, page.data)),
                "lost"
            );
        }
    }

    /// Lets everything come to its end.
    fn quiesce(&mut self) {
        loop {
            while !self.staged.is_empty() {
                self.worker(true);
            }
            while self.harvest(3) {}
            while !self.host.is_idle() {
                let outcome = self.host.step(0, false);
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
        let indexed = self
            .pages
            .iter()
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

    fn finish(mut self) {
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

fn cases(count: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 4 } else { count },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn versions() -> impl Strategy<Value = u32> {
    prop_oneof![
        Just(0),
        VERSION_MAX - 40..=VERSION_MAX,
        VERSION_MAX / 2 - 20..VERSION_MAX / 2 + 20,
        any::<u32>(),
    ]
}

proptest! {
    #![proptest_config(cases(400))]

    /// With as much memory as there can be use for.
    #[test]
    fn with_plenty(ops in ops(250), version in versions()) {
        let mut world = World::new(1 << 14, version, true);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }

    /// With memory that comes late and does not suffice.
    #[test]
    fn with_little(ops in ops(250), version in versions(), pages in 0..300usize) {
        let mut world = World::new(pages, version, false);
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }

}

proptest! {
    #![proptest_config(cases(4000))]

    /// With more happening to each page.
    #[test]
    fn with_two_pages(
        ops in ops_on_two_pages(60),
        version in versions(),
        second in prop::bool::weighted(0.8),
    ) {
        let mut world = World::new(64, version, true);
        if second {
            // Keep the object from being given up.
            world.apply(&Op::Insert(0, 7));
            world.apply(&Op::Worker(1, true));
        }
        for op in &ops {
            world.apply(op);
            world.check();
        }
        world.finish();
    }
}
