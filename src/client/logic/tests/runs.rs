// SPDX-License-Identifier: GPL-2.0

//! What is done with a run of pages is what is done with each of them.

mod common;

use proptest::prelude::*;
use virtio_tmem_logic::index::{
    Completed,
    Inserted,
    Outcome,
    Shard, //
};

use common::{
    add_nodes,
    add_objects,
    empty,
    harvest, //
};

#[derive(Clone, Copy, Debug)]
enum Op {
    Insert {
        tag: u64,
        index: u64,
        count: u64,
    },
    /// Complete a run of what was inserted, from the one with this number on.
    Complete {
        from: usize,
        count: usize,
    },
    Take {
        tag: u64,
        index: u64,
        count: u64,
    },
    Erase {
        tag: u64,
        index: u64,
    },
    Drop {
        tag: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let key = (
        1..4u64,
        prop_oneof![0..3u64, 0..300u64, 4090..4100u64],
        1..80u64,
    );
    prop_oneof![
        4 => key.clone().prop_map(|(tag, index, count)| Op::Insert { tag, index, count }),
        4 => (any::<u16>(), 1..80usize).prop_map(|(from, count)| Op::Complete {
            from: from.into(),
            count,
        }),
        2 => key.clone().prop_map(|(tag, index, count)| Op::Take { tag, index, count }),
        2 => key.prop_map(|(tag, index, _)| Op::Erase { tag, index }),
        1 => (1..4u64).prop_map(|tag| Op::Drop { tag }),
    ]
}

/// A put that has no outcome yet.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Put {
    tag: u64,
    index: u64,
    inserted: Inserted,
}

fn new(nodes: usize) -> Shard {
    let mut shard = empty(1 << 16);
    for _ in 0..nodes {
        add_nodes(&mut shard);
    }
    add_objects(&mut shard);
    shard
}

fn slot(index: u64) -> u32 {
    index as u32 * 3 + 1
}

fn live(shard: &Shard) -> Vec<String> {
    let mut pages = Vec::new();
    shard.for_each_live(|tag, index, entry| pages.push(format!("{tag} {index} {entry:?}")));
    pages.sort();
    pages
}

/// Both shards have had the same done to them, one in runs and one by the page.
struct Twins {
    runs: Shard,
    pages: Shard,
    puts: Vec<Put>,
}

impl Twins {
    fn insert(&mut self, tag: u64, index: u64, count: u64) {
        let mut by_run = Vec::new();
        let done = self.runs.insert_run(tag, index, count, |n, inserted| {
            by_run.push((index + n, inserted));
            slot(index + n)
        });
        assert_eq!(by_run.len() as u64, done);
        let by_page: Vec<_> = (index..index + done)
            .map(|i| (i, self.pages.insert_pending(tag, i, slot(i)).unwrap()))
            .collect();
        assert_eq!(by_run, by_page);
        self.puts
            .extend(by_run.into_iter().map(|(index, inserted)| Put {
                tag,
                index,
                inserted,
            }));
    }

    fn complete(&mut self, from: usize, count: usize) {
        if self.puts.is_empty() {
            return;
        }
        let from = from % self.puts.len();
        let first = self.puts[from];
        let run: Vec<_> = self.puts[from..]
            .iter()
            .enumerate()
            .take(count)
            .take_while(|(n, put)| {
                put.tag == first.tag
                    && put.inserted.wire == first.inserted.wire
                    && put.index == first.index + *n as u64
            })
            .map(|(_, put)| *put)
            .collect();
        let current = run
            .iter()
            .take_while(|put| {
                let Inserted { wire, version, .. } = put.inserted;
                self.pages.is_current(put.tag, wire, put.index, version)
            })
            .count() as u64;
        let versions = run.iter().map(|put| put.inserted.version);
        let by_run = self
            .runs
            .current_run(first.tag, first.inserted.wire, first.index, versions);
        // As far as the first leaf goes, and there is one.
        assert!(by_run == current.min(64 - first.index % 64) || by_run == 0 && first.index == 0);
        let versions = run.iter().map(|put| (put.inserted.version, 5));
        let done = self
            .runs
            .complete_run(first.tag, first.inserted.wire, first.index, versions);
        let done = done as usize;
        assert!(done <= run.len());
        // The next one is one that was not only to be stored, or is in another leaf.
        for (n, put) in run.iter().enumerate().take(done + 1) {
            let Put {
                tag,
                index,
                inserted,
            } = *put;
            let stored = Outcome::Stored { crc: 5 };
            let (wire, version) = (inserted.wire, inserted.version);
            let completed = self.pages.complete(tag, wire, index, version, stored);
            if n < done {
                assert_eq!(completed, Completed::Current);
            } else {
                assert_eq!(
                    self.runs.complete(tag, wire, index, version, stored),
                    completed
                );
                let next_leaf = index % 64 == 0 && n > 0;
                let alone = index == 0;
                assert!(completed == Completed::Gone || next_leaf || alone);
            }
        }
        self.puts.drain(from..from + run.len().min(done + 1));
    }

    fn take(&mut self, tag: u64, index: u64, count: u64) {
        let mut by_run = Vec::new();
        let done = self
            .runs
            .take_run(tag, index, count, |found| by_run.push(found));
        assert_eq!(by_run.len() as u64, done);
        let by_page: Vec<_> = (index..index + count)
            .map_while(|i| self.pages.take(tag, i))
            .collect();
        assert_eq!(by_run, by_page);
    }

    fn check(&self) {
        assert_eq!(live(&self.runs), live(&self.pages));
        assert_eq!(
            format!("{:?}", self.runs.stats()),
            format!("{:?}", self.pages.stats())
        );
    }
}

proptest! {
    #[test]
    fn runs_are_their_pages(ops in prop::collection::vec(op(), 1..60), nodes in 1..6usize) {
        let mut twins = Twins { runs: new(nodes), pages: new(nodes), puts: Vec::new() };

        for op in ops {
            match op {
                Op::Insert { tag, index, count } => twins.insert(tag, index, count),
                Op::Complete { from, count } => twins.complete(from, count),
                Op::Take { tag, index, count } => twins.take(tag, index, count),
                Op::Erase { tag, index } => {
                    prop_assert_eq!(twins.runs.erase(tag, index), twins.pages.erase(tag, index));
                }
                Op::Drop { tag } => {
                    twins.runs.drop_object(tag);
                    twins.pages.drop_object(tag);
                }
            }
            twins.check();
        }
        prop_assert_eq!(harvest(&mut twins.runs), harvest(&mut twins.pages));
    }
}
