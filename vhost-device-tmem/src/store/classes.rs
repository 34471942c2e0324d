// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The sizes of the slots that spans are cut into.

use super::{spans::SPAN_SIZE, PAGE_SIZE};

/// What a slot has before its contents, to say whose they are, unless it is of class [`RAW`].
pub(super) const OWNER: usize = size_of::<u32>();

/// Sizes of slots are multiples of this.
const UNIT: usize = 16;

/// The smallest slot.
const MIN_SIZE: usize = 128;

/// The most slots in a span.
pub(super) const MAX_SLOTS: usize = SPAN_SIZE / MIN_SIZE;

/// One size of slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    /// The size of a slot in bytes.
    pub(super) size: u16,
    /// Slots in a span.
    pub(super) slots: u16,
}

/// A place in [`CLASSES`].
pub(super) type ClassId = u8;

/// The class of pages as they are, a slot for each.
pub(super) const RAW: ClassId = 0;

const COUNT: usize = list().1;

/// All sizes that fill a span well, the largest first.
pub(super) const CLASSES: [Class; COUNT] = {
    let mut classes = [list().0[0]; COUNT];
    let mut at = 0;
    while at < COUNT {
        classes[at] = list().0[at];
        at += 1;
    }
    classes
};

const fn list() -> ([Class; MAX_SLOTS], usize) {
    let raw = Class {
        size: PAGE_SIZE as u16,
        slots: (SPAN_SIZE / PAGE_SIZE) as u16,
    };
    let mut classes = [raw; MAX_SLOTS];
    let mut count = 1;
    let mut slots = SPAN_SIZE / PAGE_SIZE + 1;
    while slots <= MAX_SLOTS {
        let size = SPAN_SIZE / slots / UNIT * UNIT;
        if size < classes[count - 1].size as usize && size >= MIN_SIZE {
            classes[count] = Class {
                size: size as u16,
                slots: (SPAN_SIZE / size) as u16,
            };
            count += 1;
        }
        slots += 1;
    }
    (classes, count)
}

/// The largest contents that take less than a page.
pub(super) const MAX_PACKED: usize = CLASSES[1].size as usize - OWNER;

/// The class of each number of units.
const BY_UNITS: [ClassId; (MAX_PACKED + OWNER) / UNIT + 1] = {
    let mut by_units = [RAW; (MAX_PACKED + OWNER) / UNIT + 1];
    let mut units = 0;
    while units < by_units.len() {
        let mut class = COUNT - 1;
        while (CLASSES[class].size as usize) < units * UNIT {
            class -= 1;
        }
        by_units[units] = class as ClassId;
        units += 1;
    }
    by_units
};

/// Returns the class of the smallest slots that have room for `len` bytes, at most
/// [`MAX_PACKED`], and for their owner.
pub(super) fn class_of(len: usize) -> ClassId {
    BY_UNITS[(len + OWNER).div_ceil(UNIT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_fill_their_span() {
        for class in CLASSES {
            let (size, slots) = (usize::from(class.size), usize::from(class.slots));
            assert!(slots <= MAX_SLOTS && size * slots <= SPAN_SIZE, "{class:?}");
            assert!(SPAN_SIZE - size * slots < SPAN_SIZE / 8, "{class:?}");
        }
    }

    #[test]
    fn contents_get_the_smallest_slot_that_has_room() {
        for len in 0..=MAX_PACKED {
            let class = usize::from(class_of(len));
            assert!(usize::from(CLASSES[class].size) >= len + OWNER, "{len}");
            let smaller = CLASSES.get(class + 1);
            assert!(
                smaller.is_none_or(|class| usize::from(class.size) < len + OWNER),
                "{len}"
            );
        }
        assert_ne!(class_of(MAX_PACKED), RAW);
    }

    #[test]
    fn a_slot_wastes_an_eighth_at_most() {
        let waste = |len: usize| {
            let size = usize::from(CLASSES[usize::from(class_of(len))].size);
            (size - len) as f64 / size as f64
        };
        for len in 512..=MAX_PACKED {
            assert!(waste(len) < 0.125, "{len}: {}", waste(len));
        }
    }
}
