// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moving pages together, so that spans of which little is used become free for slots of any size.

use super::{
    classes::{CLASSES, OWNER, RAW},
    entry::Body,
    id::{PageId, SpanId},
    index::Index,
    slots::{Slot, Slots, DENSE, NO_LIST, SPARSE},
};

/// Spans of a class that are tried: those with pages that are being copied have to stay.
const TRIES: usize = 8;

impl Slots {
    /// Empties a span of a class whose free slots are worth a span or more, and returns whether
    /// there was one. Unless `thorough`, only one that is half empty at least.
    ///
    /// Once it finds none even `thorough`, all spans together are as few as the slots in use need,
    /// but for what is being copied.
    pub(super) fn compact(&mut self, index: &mut Index, thorough: bool) -> bool {
        let lists: &[u8] = if thorough {
            &[SPARSE, DENSE]
        } else {
            &[SPARSE]
        };
        let mut loose = self.loose;
        while loose != 0 {
            let class = loose.trailing_zeros() as usize;
            loose &= loose - 1;
            for list in lists {
                let mut link = self.bins[class].lists[usize::from(*list)];
                for _ in 0..TRIES {
                    let Some(span) = SpanId::from_link(link) else {
                        break;
                    };
                    if self.empty(index, span) {
                        return true;
                    }
                    link = self.table[span.index()].next;
                }
            }
        }
        false
    }

    /// Moves all pages of a span to other spans of its class, which have room, if none of them is
    /// being copied.
    fn empty(&mut self, index: &mut Index, span: SpanId) -> bool {
        let slots = CLASSES[usize::from(self.table[span.index()].class)].slots;
        let movable = |slot: Slot| index.pages[self.owner(slot).index()].is_idle();
        let mut numbers = (0..slots).filter_map(|number| self.slot_in_use(span, number));
        if !numbers.all(movable) {
            return false;
        }
        // Nothing is to move into it.
        self.relist(span, NO_LIST);
        for number in 0..slots {
            let Some(from) = self.slot_in_use(span, number) else {
                continue;
            };
            let page = self.owner(from);
            let lists = self.bins[usize::from(from.class())].lists;
            let target = SpanId::from_link(lists[0].or(lists[1]));
            let to = self.take(
                target.expect("the class has a span's worth of free slots"),
                page,
            );
            let len = usize::from(CLASSES[usize::from(from.class())].size)
                - if from.class() == RAW { 0 } else { OWNER };
            let (source, target) = (self.arena.contents(from, len), self.arena.contents(to, len));
            // SAFETY: Both slots are in bounds, and no two slots overlap. No get reads from `from`,
            // as the page is not pinned, no put writes to it, as a key leads to it, and `to` was
            // free.
            unsafe { source.copy_to_nonoverlapping(target, len) };
            if let Body::Slot { len, .. } = index.pages[page.index()].body() {
                index.move_contents(page, Body::Slot { slot: to, len });
            }
        }
        self.forget_span(span);
        true
    }

    /// Returns the page that a slot in use was allocated for.
    fn owner(&self, slot: Slot) -> PageId {
        let link = self.owner_link(slot);
        PageId::from_link(link).expect("a slot in use has an owner")
    }
}
