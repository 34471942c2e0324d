// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Places in the store's tables.

use std::num::NonZeroU32;

/// Declares a place in a table, counted from zero, of which an [`Option`] takes four bytes and is
/// [`None`] where all of them are zero.
macro_rules! table_id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(super) struct $name(NonZeroU32);

        impl $name {
            /// Names the entry at `index`, which is below [`u32::MAX`].
            pub(super) fn from_index(index: usize) -> Self {
                let one_up = u32::try_from(index).ok().and_then(|i| i.checked_add(1));
                Self(one_up.and_then(NonZeroU32::new).expect("a table has less than 2³² entries"))
            }

            /// Returns the entry's place.
            pub(super) fn index(self) -> usize {
                self.0.get() as usize - 1
            }

            /// Returns how the table itself stores a reference to the entry.
            pub(super) fn link(self) -> Link {
                Some(self.0)
            }

            /// Returns the entry that a table refers to.
            pub(super) fn from_link(link: Link) -> Option<Self> {
                link.map(Self)
            }
        }
    };
}

/// A reference from one table entry to another; zero is none.
pub(super) type Link = Option<NonZeroU32>;

table_id! {
    /// The entry that describes a page.
    PageId
}
table_id! {
    /// An object that has at least one page.
    ObjectSlot
}
table_id! {
    /// A span of memory, cut into slots of one size.
    SpanId
}
