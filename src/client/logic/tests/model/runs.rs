// SPDX-License-Identifier: GPL-2.0

//! Pages next to each other, and all that are away.

use virtio_tmem_logic::index::Entry;

use super::{
    window::plain,
    world::{
        Page,
        Place,
        World, //
    },
};

impl World {
    /// Returns the pages at `index..` that are next to each other and as they are to be.
    fn run(&self, tag: u64, index: u64, count: u64, is: impl Fn(&Page) -> bool) -> Vec<Page> {
        (0..count)
            .map_while(|n| self.pages.get(&(tag, index.checked_add(n)?)))
            .take_while(|page| is(page))
            .copied()
            .collect()
    }

    /// Takes pages as one that reads ahead does.
    pub(crate) fn take_run(&mut self, tag: u64, index: u64, count: u64) {
        let expected = self.run(tag, index, count, |_| true);
        let mut found = Vec::new();
        let taken = self
            .shard
            .take_run(tag, index, count, |page| found.push(page));
        assert_eq!(taken, found.len() as u64);
        assert_eq!(found.len(), expected.len());
        for ((found, page), at) in found.into_iter().zip(expected).zip(index..=u64::MAX) {
            self.pages.remove(&(tag, at));
            self.taken(at, Some(found), Some(page));
        }
    }

    pub(crate) fn slots_of(&self, tag: u64, index: u64, count: u64) {
        let expected: Vec<_> = self
            .run(tag, index, count, |page| page.place.slot().is_some())
            .iter()
            .filter_map(|page| page.place.slot())
            .collect();
        let mut slots = Vec::new();
        let seen = self.shard.slots_of(tag, index, count, |slot| {
            slots.push(slot);
            true
        });
        assert_eq!(seen, slots.len() as u64);
        assert_eq!(slots, expected);
    }

    pub(crate) fn take_slots(&mut self, tag: u64, index: u64, count: u64) {
        let expected = self.run(tag, index, count, |page| {
            matches!(page.place, Place::Slot(_))
        });
        let mut slots = Vec::new();
        let taken = self
            .shard
            .take_slots(tag, index, count, |slot| slots.push(slot));
        assert_eq!(taken, slots.len() as u64);
        assert_eq!(slots.len(), expected.len());
        for ((slot, page), at) in slots.into_iter().zip(expected).zip(index..=u64::MAX) {
            assert_eq!(Some(slot), page.place.slot());
            self.pages.remove(&(tag, at));
            self.window.free(slot);
        }
    }

    /// Looks for all that nobody in the guest has, up to so many.
    pub(crate) fn away_from(&self, tag: u64, from: u64, most: usize) {
        let expected: Vec<_> = self
            .pages
            .range((tag, from)..=(tag, u64::MAX))
            .filter(|(_, page)| matches!(page.place, Place::Stored | Place::Slot(_)))
            .map(|(key, page)| (key.1, self.expected(page)))
            .take(most)
            .collect();
        let mut found: Vec<(u64, Entry)> = Vec::new();
        let mut from = Some(from);
        while let Some(start) = from {
            from = self.shard.away_from(tag, start, |index, entry| {
                found.push((index, plain(entry)));
                found.len() < most
            });
            if found.len() == most {
                assert_eq!(from, found.last().map(|page| page.0));
                break;
            }
            assert!(from.is_none_or(|next| next > start));
        }
        assert_eq!(found, expected);
    }
}
