// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can wait until there is nothing else to do: scrubbing what was freed, moving pages together,
//! and giving memory back; and what is not to be waited for, taking it.

use super::{
    inner::Inner,
    spans::{CHUNK_SPANS, SPAN_SIZE},
    walk::Progress,
    Store,
};

/// Pages that are forgotten, moved or scrubbed under one hold of the lock, about.
const HOLD: usize = 64;

/// What a span counts for, whatever its slots.
const SPAN_COST: usize = 8;

/// Memory that may be free beside what is used, in bytes: so much is soon used again, and the last
/// span of each size of slots is hardly ever full.
const SLACK: usize = 4 << 20;

/// Returns whether more memory is taken than what is used is worth.
fn is_too_much(used: usize, resident: usize) -> bool {
    resident > used + used / 4 + SLACK
}

/// What was done under one hold of the lock.
enum Done {
    /// So much of the budget.
    Some(usize),
    /// Nothing, as nothing is left.
    Nothing,
}

impl Store {
    /// Does some of what can wait, and returns whether there is more: empties pools that a
    /// [`Walk`](super::Walk) left half-way, scrubs what was freed, and gives memory back until what
    /// is resident is not more than 1.25 times what is used, and a few MiB.
    ///
    /// `budget` is in pages, about. Whoever has nothing else to do calls this until it is done; it
    /// never holds the store's lock for longer than it takes to move a few dozen pages.
    pub fn tidy_step(&self, budget: usize) -> Progress {
        let mut left = budget.max(1);
        loop {
            let done = self.lock().tidy(left.min(HOLD));
            let spent = match done {
                Done::Some(spent) => spent,
                // A whole chunk at a time, without the lock.
                Done::Nothing if self.release_chunk() => HOLD,
                Done::Nothing => {
                    let trimmed = self.lock().trim_excess();
                    if !trimmed {
                        self.wake_watchers();
                        return Progress::Done;
                    }
                    SPAN_COST
                }
            };
            left = left.saturating_sub(spent);
            if left == 0 {
                self.wake_watchers();
                return Progress::More;
            }
        }
    }
}

impl Store {
    /// Returns whether [`Self::prepare`] may have something to do. It costs next to nothing.
    pub fn wants_memory(&self) -> bool {
        self.arena.is_wanted()
    }

    /// Takes the memory that will be wanted next, up to 2 MiB, from the operating system, which has
    /// to find and clear it, so that no put waits for that. Holds no lock meanwhile.
    pub fn prepare(&self) {
        self.arena.want(false);
        let mut inner = self.lock();
        // What is too much would only go back again.
        let limit = match inner.has_excess(CHUNK_SPANS) {
            true => 0,
            false => inner.budget.span_limit(),
        };
        let Some(chunk) = inner.slots.spans_mut().prepare(limit) else {
            return;
        };
        drop(inner);
        self.arena.populate_chunk(chunk);
        self.lock().slots.spans_mut().prepared(chunk);
    }
}

impl Inner {
    fn tidy(&mut self, budget: usize) -> Done {
        let mut spent = 0;
        while let Some(pool) = self.ending() {
            self.end_step(pool);
            spent += 1;
            if spent == budget {
                return Done::Some(spent);
            }
        }
        while spent < budget && self.slots.scrub() {
            spent += SPAN_COST;
        }
        while spent < budget && self.has_excess(0) && self.slots.compact(&mut self.index, true) {
            spent += SPAN_COST;
        }
        if spent == 0 {
            Done::Nothing
        } else {
            Done::Some(spent)
        }
    }

    /// Returns whether too much memory would be taken if it were `more` spans.
    fn has_excess(&self, more: usize) -> bool {
        let used = usize::try_from(self.contents.slot_bytes).unwrap_or(usize::MAX);
        let spans = self.slots.spans().resident() + more;
        is_too_much(used, spans * SPAN_SIZE)
    }

    /// Gives the memory of one free span back, if too much is taken; false if not.
    fn trim_excess(&mut self) -> bool {
        let resident = self.slots.spans().resident();
        resident > self.slots.spans().used() && self.has_excess(0) && self.trim(resident - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_is_not_too_much() {
        assert!(!is_too_much(0, SLACK));
        assert!(is_too_much(0, SLACK + 1));
        assert!(!is_too_much(400 << 20, 504 << 20));
        assert!(is_too_much(400 << 20, (504 << 20) + 1));
    }
}
