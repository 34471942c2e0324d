// SPDX-License-Identifier: GPL-2.0

//! What is counted.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// A number of events since the device was bound.
pub(crate) struct Counter(Atomic<u64>);

impl Counter {
    pub(super) const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Counts `n` events. Any context.
    #[inline]
    pub(crate) fn add(&self, n: usize) {
        self.0.add(n as u64, Relaxed);
    }

    /// Returns the number, for a file.
    pub(crate) fn as_atomic(&self) -> &Atomic<u64> {
        &self.0
    }
}

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// The counters of one pool, in pages.
        pub(crate) struct Counters {
            $($(#[$meta])* pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(super) const fn new() -> Self {
                Self { $($name: Counter::new(),)* }
            }

            /// Calls `f` with the name and value of each counter.
            pub(crate) fn for_each<'a>(
                &'a self,
                mut f: impl FnMut(&'static kernel::str::CStr, &'a Counter),
            ) {
                $(
                    // CAST: A string without a zero in it, with one after it.
                    if let Ok(name) = kernel::str::CStr::from_bytes_with_nul(
                        concat!(stringify!($name), "\0").as_bytes(),
                    ) {
                        f(name, &self.$name);
                    }
                )*
            }
        }
    };
}

counters! {
    /// Pages sent to the device.
    puts,
    /// Pages that the device stored.
    stored,
    /// Pages that the device refused.
    refused,
    /// Pages not sent because there was no credit.
    no_credit,
    /// Pages not put because there may be no more of them.
    over_limit,
    /// Pages not put because the device was not there yet, or not any more.
    not_running,
    /// Pages not put because all that there are are being drained, or were.
    draining,
    /// Pages not put because their swap area is in memory.
    in_memory,
    /// Pages not put because their swap area is on a device that is to be left alone.
    left_alone,
    /// Pages not put because another page of their request was not.
    with_others,
    /// Pages not put because there was no memory in the index.
    no_memory,
    /// Pages not put because all staging memory was in use.
    no_staging,
    /// Pages asked of the device.
    gets,
    /// Pages that it returned.
    hits,
    /// Pages that were returned from the staging memory, without the device.
    staged_hits,
    /// Pages put into the window, without the device.
    window_puts,
    /// Pages that were got from the window, without the device.
    window_hits,
    /// Pages that were in the window until the device took it back.
    window_lost,
    /// Pages of the window that made room for others.
    window_replaced,
    /// Pages that went from the window to the device's store.
    window_moved,
    /// Pages looked for and not in the index.
    misses,
    /// Pages that the index had and the device did not return.
    lost,
    /// Pages that the device could not write to where they were wanted, and did elsewhere.
    bounced,
    /// Pages that the device did not return, or could not, and that were read from their swap area.
    from_area,
    /// Pages that were written to their swap area and forgotten.
    drained,
    /// Times that this failed for a page.
    drain_failed,
    /// Pages that came back other than they were sent.
    bad_crc,
    /// Pages that left the index because they changed, or were not needed any more.
    flushes,
    /// Page, range and object flushes sent to the device.
    flushes_sent,
    /// Pages that reclaim waited with, until there was staging memory for them.
    held_up,
    /// Pages not put because their folio was too large.
    too_large,
    /// Pages not put because their inode may be changed around the page cache.
    unsafe_inode,
    /// Pages not put because such pages do not come back.
    not_admitted,
    /// Inodes that were seen to be written around the page cache.
    bans,
    /// Pages that came from the device and were compared with the disk's.
    verified,
    /// Of these, those that were different.
    verify_different,
    /// Pages that came from the device and could not be compared: the file changed meanwhile.
    verify_skipped,
}
