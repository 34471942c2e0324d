// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which chunks of a window are whose.
//!
//! It decides, and does nothing: whoever uses it writes down what [`Ledger::take_changes`] returns,
//! and has memory come and go.

use std::{collections::BTreeSet, ops::Range};

use serde::{Deserialize, Serialize};
use virtio_tmem_abi::{ChunkKind, FIRST_CHUNK};

use super::entry::{Entry, State};

/// The most chunks that are made ready before they are asked for.
const MOST_AHEAD: u32 = 8;

/// How many chunks there are of each sort. All but the `ready` ones together are those that the
/// window has for granting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Free, with or without memory.
    pub free: u32,
    /// Of those, the ones that have memory.
    pub ready: u32,
    /// Granted, to be taken back at any time.
    pub ephemeral: u32,
    /// Granted until they are returned.
    pub persistent: u32,
    /// Being taken back.
    pub leaving: u32,
    /// Of no use any more.
    pub gone: u32,
}

impl Counts {
    fn of(&mut self, entry: Entry) -> &mut u32 {
        match entry.granted() {
            Some(ChunkKind::Ephemeral) => &mut self.ephemeral,
            Some(ChunkKind::Persistent) => &mut self.persistent,
            None if entry.is_leaving() => &mut self.leaving,
            None if entry.is_free() => &mut self.free,
            None => &mut self.gone,
        }
    }
}

/// The chunks of a window.
///
/// # Invariants
///
/// - `free` has the chunks that may be granted and have no memory, `ready` those that have.
/// - `counts` is the number of entries of each sort, but that those which are ready are not counted
///   as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ledger {
    /// From [`FIRST_CHUNK`] on.
    entries: Vec<Entry>,
    free: BTreeSet<u32>,
    ready: BTreeSet<u32>,
    counts: Counts,
    /// The ticket of the last request.
    ticket: Option<u64>,
    /// How many chunks the last request was granted.
    last: u32,
    /// Chunks whose entries changed and were not taken note of.
    changed: Vec<u32>,
}

impl Ledger {
    /// The ledger of a window with so many chunks, the first two included, of which none was ever
    /// granted.
    #[cfg(test)]
    pub(super) fn new(chunks: u32) -> Self {
        Self::of(vec![
            Entry::UNUSED;
            chunks.saturating_sub(FIRST_CHUNK) as usize
        ])
    }

    /// The ledger of which another process wrote down these words, the first of which is that of
    /// [`FIRST_CHUNK`], and this ticket. Returns it, and how many words were damaged: their chunks
    /// are lost to everybody.
    pub(super) fn restore(words: &[u64], ticket: Option<u64>) -> (Self, u32) {
        let mut damaged = Vec::new();
        let entries = (FIRST_CHUNK..).zip(words).map(|(number, word)| {
            Entry::from_word(number, *word).unwrap_or_else(|| {
                damaged.push(number);
                Entry::GONE
            })
        });
        let mut this = Self::of(entries.collect());
        this.ticket = ticket;
        let lost = damaged.len() as u32;
        this.changed = damaged;
        (this, lost)
    }

    fn of(entries: Vec<Entry>) -> Self {
        let mut counts = Counts::default();
        for entry in &entries {
            *counts.of(*entry) += 1;
        }
        let numbers = (FIRST_CHUNK..).zip(&entries);
        let free = numbers.filter(|(_, entry)| entry.is_free());
        Self {
            free: free.map(|(number, _)| number).collect(),
            ready: BTreeSet::new(),
            entries,
            counts,
            ticket: None,
            last: 0,
            changed: Vec::new(),
        }
    }

    /// Returns how many chunks there are of each sort.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            ready: self.ready.len() as u32,
            ..self.counts
        }
    }

    /// Returns how many chunks have memory, or may have it.
    pub(super) fn occupied(&self) -> u32 {
        let Counts {
            ephemeral,
            persistent,
            leaving,
            ..
        } = self.counts;
        self.ready.len() as u32 + ephemeral + persistent + leaving
    }

    /// Returns the first chunks from number `from` on that are next to each other and of which none
    /// has memory, or may have it: at most so many. [`None`] if there are no such.
    pub(super) fn unoccupied(&self, from: u32, most: u32) -> Option<Range<u32>> {
        let is_unoccupied = |number: &u32| {
            let entry = self.entry(*number);
            entry.is_some_and(|entry| entry.state == State::Free) && !self.ready.contains(number)
        };
        let end = FIRST_CHUNK + self.entries.len() as u32;
        let start = (from.max(FIRST_CHUNK)..end).find(is_unoccupied)?;
        let count = (start..end).take(most as usize).take_while(is_unoccupied);
        Some(start..start + count.count() as u32)
    }

    /// Returns what is known of all chunks, by number.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, Entry)> + '_ {
        (FIRST_CHUNK..).zip(self.entries.iter().copied())
    }

    /// Returns what is known of a chunk, [`None`] if there is none of that number.
    pub(super) fn entry(&self, number: u32) -> Option<Entry> {
        let at = number.checked_sub(FIRST_CHUNK)?;
        self.entries.get(at as usize).copied()
    }

    /// Returns whether the driver has a chunk since it was granted in this generation.
    pub(super) fn holds(&self, number: u32, generation: u32) -> bool {
        let entry = self.entry(number);
        entry.is_some_and(|entry| entry.granted().is_some() && entry.generation == generation)
    }

    /// Returns the chunks whose words are not written down yet, each with its entry. Words that are
    /// written later may be written in any order, but before anybody hears of them.
    pub(super) fn take_changes(&mut self) -> Vec<(u32, Entry)> {
        let changed = std::mem::take(&mut self.changed);
        let of = |number| Some((number, self.entry(number)?));
        changed.into_iter().filter_map(of).collect()
    }

    /// Returns the ticket of the last request.
    #[cfg(test)]
    pub(super) fn ticket(&self) -> Option<u64> {
        self.ticket
    }

    /// What comes next is no request that was carried out before, nor like one.
    pub(super) fn forget_requests(&mut self) {
        self.ticket = None;
        self.last = 0;
    }

    /// Memory is short: nothing is made ready before the next request.
    pub(super) fn calm(&mut self) {
        self.last = 0;
    }

    /// A request begins. Returns how many chunks it was granted before: some, if it is the last one
    /// carried out again.
    pub(super) fn begin(&mut self, ticket: u64) -> u32 {
        if self.ticket != Some(ticket) {
            let fresh = self.entries().filter(|(_, entry)| entry.fresh);
            for (number, entry) in fresh.collect::<Vec<_>>() {
                let fresh = false;
                self.set(number, Entry { fresh, ..entry });
            }
            self.ticket = Some(ticket);
        }
        self.last = 0;
        self.granted().count() as u32
    }

    /// Returns the chunks that the last request was granted and that are still the driver's, with
    /// their generations.
    pub(super) fn granted(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let fresh = self
            .entries()
            .filter(|(_, entry)| entry.fresh && entry.granted().is_some());
        fresh.map(|(number, entry)| (number, entry.generation))
    }

    /// Returns a chunk that has memory already and may be granted.
    pub(super) fn next_ready(&self) -> Option<u32> {
        self.ready.first().copied()
    }

    /// Returns a chunk that may be granted once it has memory.
    pub(super) fn next_free(&self) -> Option<u32> {
        self.free.first().copied()
    }

    /// Returns how many chunks are to be given memory before somebody asks: as many as the last
    /// request got, within bounds, and less those that have it.
    pub(super) fn ahead(&self) -> u32 {
        let wanted = self.last.min(MOST_AHEAD);
        wanted.saturating_sub(self.ready.len() as u32)
    }

    /// A chunk that is free got memory.
    pub(super) fn ready(&mut self, number: u32) {
        if self.free.remove(&number) {
            self.ready.insert(number);
        }
    }

    /// Takes the memory of a chunk that nobody has, to be given back.
    pub(super) fn unready(&mut self) -> Option<u32> {
        let number = self.ready.pop_last()?;
        self.free.insert(number);
        Some(number)
    }

    /// Grants a chunk that has memory. False if it is not one that may be granted.
    pub(super) fn grant(&mut self, number: u32, kind: ChunkKind) -> bool {
        if !self.ready.remove(&number) {
            return false;
        }
        let Some(entry) = self.entry(number) else {
            return false;
        };
        self.last += 1;
        let (state, fresh) = (State::Granted(kind), true);
        self.set(
            number,
            Entry {
                state,
                fresh,
                ..entry
            },
        );
        true
    }

    /// Begins to take a chunk back, and returns what it was granted as. [`None`] if the driver does
    /// not have it.
    pub(super) fn begin_return(&mut self, number: u32) -> Option<ChunkKind> {
        let entry = self.entry(number)?;
        let kind = entry.granted()?;
        self.set(number, entry.leaving());
        Some(kind)
    }

    /// A chunk was taken back: it has no memory any more.
    pub(super) fn end_return(&mut self, number: u32) {
        if let Some(entry) = self.entry(number).filter(|entry| entry.is_leaving()) {
            self.set(number, entry.left());
            if entry.left().is_free() {
                self.free.insert(number);
            }
        }
    }

    fn set(&mut self, number: u32, entry: Entry) {
        let at = (number - FIRST_CHUNK) as usize;
        let older = std::mem::replace(&mut self.entries[at], entry);
        *self.counts.of(older) -= 1;
        *self.counts.of(entry) += 1;
        self.changed.push(number);
    }
}
