// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was counted between two markers: a tree of calls, and instructions at its nodes.

use rustc_hash::FxHashMap;
use serde::Serialize;

/// What a node stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A task; the entry is its number.
    Task = 0,
    /// A function that was called.
    Call = 1,
    /// An interrupt or an exception.
    Interrupt = 2,
    /// All that a task does outside the kernel.
    User = 3,
    /// A function of which it is not known who called it; the first in the kernel among others.
    Entry = 4,
}

/// A node of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    /// The node that this one was called from.
    pub(crate) parent: u32,
    /// What it stands for.
    pub(crate) kind: Kind,
    /// The block that it was called from. It may belong to another function than the parent's
    /// entry does: one that was jumped to.
    pub(crate) site: u64,
    /// The first block of the function.
    pub(crate) entry: u64,
}

#[derive(Default)]
struct Count {
    times: u64,
    insns: u64,
}

/// All that was counted.
#[derive(Default)]
pub(crate) struct Record {
    name: String,
    tasks: Vec<String>,
    nodes: Vec<Node>,
    index: FxHashMap<Node, u32>,
    counts: FxHashMap<(u32, u64), Count>,
}

/// The same, to be written.
#[derive(Serialize)]
struct Written<'a> {
    region: &'a str,
    tasks: &'a [String],
    /// Parent, kind, site and entry.
    nodes: Vec<(u32, u32, u64, u64)>,
    /// Node, block, times that it was executed, and instructions.
    counts: Vec<(u32, u64, u64, u64)>,
}

impl Record {
    /// The parent of what has none.
    const NONE: u32 = u32::MAX;

    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            ..Self::default()
        }
    }

    /// The node of a task.
    pub(crate) fn task(&mut self, name: &str) -> u32 {
        let known = self.tasks.iter().position(|task| task == name);
        let number = known.unwrap_or_else(|| {
            self.tasks.push(name.to_owned());
            self.tasks.len() - 1
        });
        self.node(Node {
            parent: Self::NONE,
            kind: Kind::Task,
            site: 0,
            entry: number as u64,
        })
    }

    /// The number of a node, which is made if it is new.
    pub(crate) fn node(&mut self, node: Node) -> u32 {
        *self.index.entry(node).or_insert_with(|| {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        })
    }

    /// Counts a block with so many instructions.
    pub(crate) fn add(&mut self, node: u32, block: u64, insns: u64) {
        let count = self.counts.entry((node, block)).or_default();
        count.times += 1;
        count.insns += insns;
    }

    /// Takes back instructions of a block that were not executed after all.
    pub(crate) fn take_back(&mut self, node: u32, block: u64, insns: u64) {
        if let Some(count) = self.counts.get_mut(&(node, block)) {
            count.insns = count.insns.saturating_sub(insns);
        }
    }

    /// The record as one line of JSON.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(&Written {
            region: &self.name,
            tasks: &self.tasks,
            nodes: self
                .nodes
                .iter()
                .map(|node| (node.parent, node.kind as u32, node.site, node.entry))
                .collect(),
            counts: self
                .counts
                .iter()
                .map(|(&(node, block), count)| (node, block, count.times, count.insns))
                .collect(),
        })
    }

    #[cfg(test)]
    pub(crate) fn path(&self, mut node: u32) -> Vec<(Kind, u64)> {
        let mut path = Vec::new();
        while node != Self::NONE {
            let Node {
                parent,
                kind,
                entry,
                ..
            } = self.nodes[node as usize];
            path.push((kind, entry));
            node = parent;
        }
        path.reverse();
        path
    }

    #[cfg(test)]
    pub(crate) fn insns_at(&self, block: u64) -> Vec<(Vec<(Kind, u64)>, u64)> {
        let mut found: Vec<_> = self
            .counts
            .iter()
            .filter(|((_, at), _)| *at == block)
            .map(|((node, _), count)| (self.path(*node), count.insns))
            .collect();
        found.sort_by_key(|(path, _)| path.len());
        found
    }
}
