// SPDX-License-Identifier: GPL-2.0

//! What the device has to be told.

use super::{
    super::{
        entry,
        object::state,
        tree::Kind, //
    },
    Flush,
    Shard, //
};

impl Shard {
    /// The number of nodes that [`Shard::harvest()`] gives back, or looks at, at once.
    const NODES_AT_ONCE: usize = 256;

    /// Returns whether [`Shard::harvest()`] has anything to do.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.objects.first().is_some()
    }

    /// Calls `f` for at most `max` things that the device is to be told, and forgets them.
    ///
    /// Also gives back the memory of objects that have been given up. Takes time in proportion to
    /// the work done, which is bounded. Returns whether there is more to do, perhaps after the lock
    /// has been released and taken again.
    pub fn harvest(&mut self, max: usize, f: impl FnMut(Flush)) -> bool {
        self.harvest_slots(max, f, |_| ())
    }

    /// As [`Shard::harvest()`], and calls `freed` with each slot of the window that is free now,
    /// because it was that of a page of an object that has been given up.
    pub fn harvest_slots(
        &mut self,
        max: usize,
        mut f: impl FnMut(Flush),
        mut freed: impl FnMut(u32),
    ) -> bool {
        let mut left = max;
        let mut budget = Self::NODES_AT_ONCE;
        while let Some(at) = self.objects.first() {
            if left == 0 || budget == 0 {
                return true;
            }
            budget = budget.saturating_sub(1);
            let Some(object) = self.objects.get_mut(at) else {
                return false;
            };
            let wire = object.wire;
            if object.is(state::RETIRED) {
                if wire != 0 {
                    f(Flush::Object { wire });
                    object.wire = 0;
                    left = left.saturating_sub(1);
                }
                let windowed = object.is(state::WINDOW);
                if !object
                    .tree
                    .dissolve(&mut self.nodes, &mut budget, windowed, &mut freed)
                {
                    return true;
                }
                self.objects.dequeue();
                let Some(object) = self.objects.get_mut(at) else {
                    return false;
                };
                if object.is(state::HASHED) {
                    object.reset();
                } else {
                    self.objects.free(at);
                }
                continue;
            }

            let mut marks = 0u32;
            let next = object.tree.rewrite(
                &mut self.nodes,
                0,
                u64::MAX,
                Kind::Stale,
                budget,
                |index, raw| {
                    left = left.checked_sub(1)?;
                    marks = marks.wrapping_add(1);
                    match entry::outdated(raw) {
                        0 => f(Flush::Any { wire, index }),
                        version => f(Flush::Page {
                            wire,
                            index,
                            version,
                        }),
                    }
                    Some(entry::told(raw))
                },
            );
            object.stale = object.stale.wrapping_sub(marks);
            self.stale = self.stale.wrapping_sub(marks.into());
            if object.stale != 0 && next.is_some() {
                return true;
            }
            // INVARIANT: It has no stale entries any more.
            self.objects.dequeue();
            self.settle(at, false);
        }
        false
    }
}
