// SPDX-License-Identifier: GPL-2.0

//! Free slots: a put takes them out of its processor's magazine, and they come back to one.

use kernel::{
    cpu::CpuId,
    sync::{
        atomic::Relaxed,
        SpinLockIrq, //
    }, //
};

use super::{
    super::logic::window::{
        by_chunk,
        Kind,
        Magazine, //
    },
    Window,
    LEAVING, //
};

impl Window {
    fn magazine(&self, kind: Kind) -> Option<&SpinLockIrq<Magazine>> {
        // CAST: To more bits.
        let own = self.magazines.get(CpuId::current().as_u32() as usize)?;

        Some(own.of(kind))
    }

    /// Takes free slots of a kind, as many as there are, into the first of `slots`; returns how many.
    ///
    /// They are the caller's until they are [noted](Self::note) or [given back](Self::give_back).
    /// Any context.
    pub(in super::super) fn take(&self, kind: Kind, slots: &mut [u32]) -> usize {
        let mut taken = 0;

        if !self.is_open() {
            return 0;
        }
        let Some(mut magazine) = self.magazine(kind).map(|magazine| magazine.lock()) else {
            return 0;
        };
        while let Some(rest) = slots.get_mut(taken..).filter(|rest| !rest.is_empty()) {
            let count = magazine.take(rest);

            if count > 0 {
                taken += self.keep_writable(rest.get_mut(..count).unwrap_or_default());
            } else if magazine.fill(&mut self.depot.lock(), kind) == 0 {
                break;
            }
        }
        taken
    }

    /// Keeps the slots that a page may be put into, and gives those whose chunks are on their way back
    /// to the depot; returns how many are kept, the first ones.
    #[inline]
    fn keep_writable(&self, slots: &mut [u32]) -> usize {
        let mut kept = 0;

        if by_chunk(slots).all(|same| self.may_write(same)) {
            return slots.len();
        }
        for n in 0..slots.len() {
            if slots.get(n..=n).is_some_and(|slot| self.may_write(slot)) {
                slots.swap(kept, n);
                kept += 1;
            }
        }
        if let Some(others) = slots.get(kept..) {
            self.depot.lock().give_all(others, |_| ());
        }
        kept
    }

    /// Gives slots back that no page came to be in. Any context.
    pub(in super::super) fn give_back(&self, kind: Kind, slots: &[u32]) {
        if slots.is_empty() {
            return;
        }
        let Some(mut magazine) = self.magazine(kind).map(|magazine| magazine.lock()) else {
            return;
        };
        for same in by_chunk(slots) {
            let mut left = same;

            if !self.may_write(same) {
                self.depot.lock().give_all(same, |_| ());
                continue;
            }
            loop {
                left = left.get(magazine.put(left)..).unwrap_or_default();
                if left.is_empty() {
                    break;
                }
                // It is half empty then.
                magazine.spill(&mut self.depot.lock(), |_| ());
            }
        }
    }

    /// Returns whether pages may be put into slots of one chunk.
    #[inline]
    fn may_write(&self, same: &[u32]) -> bool {
        let granted = same
            .first()
            .and_then(|&slot| self.chunk(slot))
            .map_or(0, |chunk| chunk.granted.load(Relaxed));

        granted != 0 && granted & LEAVING == 0
    }
}
