// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whose turn it is, and how much it may do.
//!
//! One thread serves many guests, one after the other. A turn is over when the guest has nothing
//! more to do, or has used up its allowance: of pages, and of time. What it took beyond that is
//! taken from its next turns (this is deficit round robin, with the deficit paid afterwards), so
//! that in the long run all guests that want something get the same, and nobody waits for longer
//! than for one turn of each of the others. How many virtqueues a guest has makes no difference:
//! they share its turn.
//!
//! It is all arithmetic; no clock is read here.

use std::{collections::VecDeque, time::Duration};

/// What a turn may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantum {
    /// Pages copied, or as much work as that.
    pub(super) pages: u32,
    /// Time of the thread.
    pub(super) time: Duration,
}

/// While others wait: a few times what a request of one page takes, so that who sends those waits
/// for each of the others a few times as long as for itself.
pub(super) const SHARED: Quantum = Quantum {
    pages: 8,
    time: Duration::from_micros(8),
};

/// While nobody else has anything to do: after this, the thread looks whether that is still so.
pub(super) const ALONE: Quantum = Quantum {
    pages: 32,
    time: Duration::from_micros(24),
};

/// Turns that one request can cost a guest at most, however long it took.
const MOST_TURNS: i64 = 32;

/// What is left to a guest. Below zero, it is in debt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowance {
    pages: i64,
    nanos: i64,
}

impl Allowance {
    /// Adds a turn's share. What was not used before is not saved.
    pub(super) fn top_up(&mut self, quantum: Quantum) {
        let (pages, nanos) = (i64::from(quantum.pages), nanos(quantum.time));
        let add = |left: i64, share: i64| (left + share).clamp(-MOST_TURNS * share, share);
        self.pages = add(self.pages, pages);
        self.nanos = add(self.nanos, nanos);
    }

    /// Takes what was used.
    pub(super) fn spend(&mut self, pages: u32, time: Duration) {
        self.pages = self.pages.saturating_sub(pages.into());
        self.nanos = self.nanos.saturating_sub(nanos(time));
    }

    /// Returns whether there is nothing left.
    pub(super) fn is_spent(&self) -> bool {
        self.pages <= 0 || self.nanos <= 0
    }

    /// Returns how many pages may be copied, if each takes so much time: at least one.
    pub(super) fn pages(&self, each: Duration) -> usize {
        let in_time = self.nanos / nanos(each).max(1);
        usize::try_from(self.pages.min(in_time)).map_or(1, |pages| pages.max(1))
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// A guest, as far as turns are concerned.
#[derive(Debug)]
struct Member<R> {
    left: Allowance,
    /// Its turn has begun.
    begun: bool,
    /// What it has to do, in the order in which it is looked at.
    rings: VecDeque<R>,
}

/// A guest's turn at one of its virtqueues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn<R> {
    /// The guest.
    pub(super) member: usize,
    /// The virtqueue.
    pub(super) ring: R,
    /// How much it may do.
    pub(super) left: Allowance,
}

/// The order of those who have something to do.
///
/// # Invariants
///
/// `order` has exactly the members with rings, each once.
#[derive(Debug, Default)]
pub(super) struct Turns<R> {
    members: Vec<Member<R>>,
    order: VecDeque<usize>,
}

impl<R: Copy + PartialEq> Turns<R> {
    /// Returns whether nobody has anything to do.
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// A virtqueue of a guest has something to do. It waits for those that had so before.
    pub(super) fn wake(&mut self, member: usize, ring: R) {
        while self.members.len() <= member {
            self.members.push(Member {
                left: Allowance::default(),
                begun: false,
                rings: VecDeque::new(),
            });
        }
        let it = &mut self.members[member];
        if it.rings.contains(&ring) {
            return;
        }
        if it.rings.is_empty() {
            it.begun = false;
            self.order.push_back(member);
        }
        it.rings.push_back(ring);
    }

    /// A virtqueue is not there any more.
    pub(super) fn remove(&mut self, member: usize, ring: R) {
        if let Some(it) = self.members.get_mut(member) {
            it.rings.retain(|other| *other != ring);
            if it.rings.is_empty() {
                self.order.retain(|other| *other != member);
            }
        }
    }

    /// A guest is not there any more; the next that is called so owes nothing.
    pub(super) fn forget(&mut self, member: usize) {
        if let Some(it) = self.members.get_mut(member) {
            it.left = Allowance::default();
            it.rings.clear();
            self.order.retain(|other| *other != member);
        }
    }

    /// Returns whose turn it is. `alone` says that nobody else is about to have something to do.
    pub(super) fn next(&mut self, alone: bool) -> Option<Turn<R>> {
        loop {
            let member = *self.order.front()?;
            let alone = alone && self.order.len() == 1;
            let it = &mut self.members[member];
            if !it.begun {
                it.begun = true;
                it.left.top_up(if alone { ALONE } else { SHARED });
            }
            // Who is in debt lets the others go first, until it is paid.
            if it.left.is_spent() {
                it.begun = false;
                self.order.rotate_left(1);
                continue;
            }
            let (ring, left) = (*it.rings.front()?, it.left);
            return Some(Turn { member, ring, left });
        }
    }

    /// The guest did what it could, and has `turn.left` left. `more` says whether the virtqueue
    /// still has something to do.
    pub(super) fn done(&mut self, turn: Turn<R>, more: bool) {
        let Some(it) = self.members.get_mut(turn.member) else {
            return;
        };
        it.left = turn.left;
        // Nobody came in between, as a rule.
        if it.rings.front() == Some(&turn.ring) {
            it.rings.pop_front();
        } else {
            it.rings.retain(|ring| *ring != turn.ring);
        }
        if more {
            it.rings.push_back(turn.ring);
        }
        let first = self.order.front() == Some(&turn.member);
        if it.rings.is_empty() {
            if first {
                self.order.pop_front();
            } else {
                self.order.retain(|other| *other != turn.member);
            }
        } else if it.left.is_spent() {
            it.begun = false;
            if first {
                self.order.rotate_left(1);
            }
        }
    }

    /// Returns the virtqueue whose turn it probably is after `n` others, of other guests.
    pub(super) fn upcoming(&self, n: usize) -> Option<R> {
        let member = *self.order.get(n)?;
        self.members[member].rings.front().copied()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Nanoseconds that a page takes here.
    const PAGE: u64 = 500;

    fn time(pages: u32) -> Duration {
        Duration::from_nanos(u64::from(pages) * PAGE)
    }

    /// Has turns taken until `pages` were copied. Each virtqueue, `(guest, ring)`, always has
    /// something to do, in steps of so many pages. Returns what each guest got, and for how many
    /// pages of others a guest waited at most.
    fn run(steps: &BTreeMap<(usize, u16), u32>, pages: u32) -> (Vec<u32>, Vec<u32>) {
        let guests = steps.keys().map(|(guest, _)| guest + 1).max().unwrap();
        let mut turns = Turns::default();
        for (guest, ring) in steps.keys() {
            turns.wake(*guest, *ring);
        }
        let (mut got, mut waited) = (vec![0; guests], vec![0; guests]);
        let mut since = vec![0; guests];
        let mut all = 0;
        while all < pages {
            let mut turn = turns.next(true).unwrap();
            let step = steps[&(turn.member, turn.ring)];
            waited[turn.member] = waited[turn.member].max(all - since[turn.member]);
            while !turn.left.is_spent() {
                turn.left.spend(step, time(step));
                got[turn.member] += step;
                all += step;
            }
            since[turn.member] = all;
            turns.done(turn, true);
        }
        (got, waited)
    }

    #[test]
    fn all_get_the_same_however_large_their_steps_are() {
        let steps = [((0, 0), 1), ((1, 0), 16), ((2, 0), 256)].into();
        let (got, _) = run(&steps, 300_000);
        for pages in &got {
            assert!((95_000..105_000).contains(pages), "{got:?}");
        }
    }

    #[test]
    fn virtqueues_share_the_turn_of_their_guest() {
        let mut steps: BTreeMap<_, _> = (0..8).map(|ring| ((0, ring), 16)).collect();
        steps.insert((1, 0), 1);
        let (got, waited) = run(&steps, 100_000);
        assert!((49_000..51_000).contains(&got[1]), "{got:?}");
        // The flood of eight virtqueues is waited for as one.
        assert!(waited[1] <= SHARED.pages.max(16), "{waited:?}");
    }

    #[test]
    fn nobody_waits_for_more_than_a_turn_of_each_of_the_others() {
        let mut steps: BTreeMap<_, _> = (0..63).map(|guest| ((guest, 0), 8)).collect();
        steps.insert((63, 0), 1);
        let (_, waited) = run(&steps, 1_000_000);
        assert!(waited[63] <= 63 * SHARED.pages, "{waited:?}");
    }

    #[test]
    fn who_is_alone_has_long_turns_and_others_end_that() {
        let mut turns = Turns::default();
        turns.wake(0, 0);
        let mut turn = turns.next(true).unwrap();
        assert_eq!(turn.left.pages(Duration::ZERO), ALONE.pages as usize);
        turn.left.spend(1, Duration::ZERO);
        turns.done(turn, true);
        // The turn goes on.
        let mut turn = turns.next(true).unwrap();
        assert_eq!(turn.left.pages(Duration::ZERO), ALONE.pages as usize - 1);
        turn.left.spend(ALONE.pages - 1, Duration::ZERO);
        turns.done(turn, true);
        turns.wake(1, 0);
        let turn = turns.next(true).unwrap();
        assert_eq!((turn.member, turn.left.pages), (0, SHARED.pages.into()));
        // Nor has it one while others may come any moment.
        turns.done(turn, false);
        let turn = turns.next(false).unwrap();
        assert_eq!((turn.member, turn.left.pages), (1, SHARED.pages.into()));
    }

    #[test]
    fn a_long_step_is_paid_for_and_the_debt_is_bounded() {
        let mut turns = Turns::default();
        turns.wake(0, 0);
        turns.wake(1, 0);
        let mut turn = turns.next(true).unwrap();
        assert_eq!(turn.member, 0);
        turn.left.spend(1, SHARED.time * 10);
        turns.done(turn, true);
        for _ in 0..10 {
            let mut turn = turns.next(true).unwrap();
            assert_eq!(turn.member, 1);
            turn.left.spend(SHARED.pages, Duration::ZERO);
            turns.done(turn, true);
        }
        let mut turn = turns.next(true).unwrap();
        assert_eq!(turn.member, 0);
        turn.left.spend(1, Duration::from_secs(3600));
        turns.done(turn, true);
        let others = std::iter::from_fn(|| {
            let mut turn = turns.next(true).unwrap();
            turn.left.spend(SHARED.pages, Duration::ZERO);
            turns.done(turn, true);
            (turn.member == 1).then_some(())
        });
        assert!(others.count() <= MOST_TURNS as usize + 2);
    }

    #[test]
    fn idling_pays_no_debt_and_saves_nothing() {
        let mut turns = Turns::default();
        turns.wake(0, 0);
        let mut turn = turns.next(true).unwrap();
        turn.left.spend(0, ALONE.time * 3);
        turns.done(turn, false);
        assert!(turns.is_empty() && turns.next(true).is_none());
        turns.wake(0, 0);
        turns.wake(1, 0);
        assert_eq!(turns.next(true).unwrap().member, 1);
        turns.forget(0);
        turns.wake(0, 0);
        let turn = turns.next(true).unwrap();
        turns.done(turn, false);
        let turn = turns.next(true).unwrap();
        assert_eq!((turn.member, turn.left.is_spent()), (0, false));
    }

    #[test]
    fn the_clock_bounds_the_pages_of_a_step() {
        let mut left = Allowance::default();
        left.top_up(SHARED);
        assert_eq!(left.pages(Duration::ZERO), SHARED.pages as usize);
        assert_eq!(left.pages(SHARED.time / 4), 4);
        assert_eq!(left.pages(SHARED.time * 4), 1);
        left.spend(SHARED.pages + 1, Duration::ZERO);
        assert!(left.is_spent());
        assert_eq!(left.pages(Duration::ZERO), 1);
    }

    proptest! {
        /// Whatever comes and goes, everybody who has something to do gets a turn.
        #[test]
        fn nobody_is_forgotten(
            steps in prop::collection::vec((0..5usize, 0..3u16, 0..4u8), 1..200),
        ) {
            let mut turns = Turns::default();
            let mut busy = std::collections::BTreeSet::new();
            for (guest, ring, what) in steps {
                match what {
                    0 | 1 => {
                        turns.wake(guest, ring);
                        busy.insert((guest, ring));
                    }
                    2 => {
                        turns.remove(guest, ring);
                        busy.remove(&(guest, ring));
                    }
                    _ => if let Some(mut turn) = turns.next(true) {
                        prop_assert!(busy.contains(&(turn.member, turn.ring)));
                        turn.left.spend(20, Duration::from_micros(3));
                        turns.done(turn, true);
                    }
                }
                prop_assert_eq!(turns.is_empty(), busy.is_empty());
            }
            while let Some(turn) = turns.next(false) {
                prop_assert!(busy.remove(&(turn.member, turn.ring)));
                turns.done(turn, false);
            }
            prop_assert!(busy.is_empty());
        }
    }
}
