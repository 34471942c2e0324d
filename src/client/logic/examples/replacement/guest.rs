// SPDX-License-Identifier: GPL-2.0

//! A guest: a page cache as Linux has it, and a window behind it that pages go to and are taken from.

use std::collections::{
    HashMap,
    HashSet,
    VecDeque, //
};

use crate::policies::Policy;

/// Pages in the order in which they were added last.
#[derive(Default)]
struct List {
    order: VecDeque<(u64, u64)>,
    added: HashMap<u64, u64>,
    count: u64,
}

impl List {
    fn add(&mut self, page: u64) {
        self.count += 1;
        self.order.push_front((page, self.count));
        self.added.insert(page, self.count);
    }

    fn pop(&mut self) -> Option<u64> {
        while let Some((page, count)) = self.order.pop_back() {
            if self.added.get(&page) == Some(&count) {
                self.added.remove(&page);
                return Some(page);
            }
        }
        None
    }

    fn remove(&mut self, page: u64) -> bool {
        self.added.remove(&page).is_some()
    }

    fn has(&self, page: u64) -> bool {
        self.added.contains_key(&page)
    }

    fn len(&self) -> usize {
        self.added.len()
    }
}

/// One memory, of which the page goes that was used least recently.
pub(crate) struct Lru {
    pages: List,
    size: usize,
}

impl Lru {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            pages: List::default(),
            size,
        }
    }

    /// Returns whether a page was there; it is now.
    pub(crate) fn read(&mut self, page: u64) -> bool {
        let there = self.pages.has(page);
        self.pages.add(page);
        if self.pages.len() > self.size {
            self.pages.pop();
        }
        there
    }
}

/// What a policy is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Put(u32, u64),
    Got(u32, u64),
    Victim(u32),
}

/// A page cache of an inactive and an active list, which remembers when pages were evicted.
pub(crate) struct Guest {
    inactive: List,
    active: List,
    referenced: HashSet<u64>,
    size: usize,
    evictions: u64,
    evicted: HashMap<u64, u64>,
    window: HashMap<u64, u32>,
    owners: HashMap<u32, u64>,
    free: Vec<u32>,
    steps: Vec<Step>,
}

impl Guest {
    pub(crate) fn new(size: usize, slots: u32) -> Self {
        let first = crate::policies::FIRST_SLOT;
        Self {
            inactive: List::default(),
            active: List::default(),
            referenced: HashSet::new(),
            size,
            evictions: 0,
            evicted: HashMap::new(),
            window: HashMap::new(),
            owners: HashMap::new(),
            free: (first..first + slots).rev().collect(),
            steps: Vec::new(),
        }
    }

    pub(crate) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Reads a page; returns whether it did not have to come from the disk.
    pub(crate) fn read(&mut self, page: u64, policy: &mut dyn Policy) -> bool {
        if self.active.has(page) {
            self.referenced.insert(page);
            return true;
        }
        if self.inactive.has(page) {
            // The second time it is activated.
            if !self.referenced.insert(page) {
                self.referenced.remove(&page);
                self.inactive.remove(page);
                self.active.add(page);
            }
            return true;
        }
        let slot = self.window.remove(&page);
        if let Some(slot) = slot {
            policy.got(slot, page);
            self.steps.push(Step::Got(slot, page));
            self.free.push(slot);
        }
        self.add(page, policy);
        slot.is_some()
    }

    fn add(&mut self, page: u64, policy: &mut dyn Policy) {
        while self.inactive.len() + self.active.len() >= self.size {
            while self.active.len() > self.inactive.len() * 2 {
                if let Some(page) = self.active.pop() {
                    self.referenced.remove(&page);
                    self.inactive.add(page);
                }
            }
            if let Some(page) = self.inactive.pop() {
                self.referenced.remove(&page);
                self.evictions += 1;
                self.evicted.insert(page, self.evictions);
                self.put(page, policy);
            }
        }
        // A page that was evicted not long ago belongs to the working set.
        let distance = self.evicted.remove(&page).map(|at| self.evictions - at);
        let near = (self.active.len() + self.inactive.len() / 2) as u64;
        if distance.is_some_and(|distance| distance <= near) {
            self.active.add(page);
        } else {
            self.inactive.add(page);
        }
    }

    fn put(&mut self, page: u64, policy: &mut dyn Policy) {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = policy.victim();
            self.steps.push(Step::Victim(slot));
            if let Some(page) = self.owners.remove(&slot) {
                self.window.remove(&page);
            }
            slot
        });
        policy.put(slot, page);
        self.steps.push(Step::Put(slot, page));
        self.window.insert(page, slot);
        self.owners.insert(slot, page);
    }
}
