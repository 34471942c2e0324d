// SPDX-License-Identifier: GPL-2.0

//! When to ask for chunks, when to give some back, and when to make room instead.
//!
//! A put never waits for a chunk: where there is no free slot it goes another way. So chunks are asked
//! for ahead of need, while there are still free slots for what comes until the answer does. How much
//! that is grows with what is in use, since a guest that uses much puts much at once, and doubles each
//! time that chunks are used up soon after they came. It shrinks while nothing is asked for.
//!
//! ```text
//!   free slots
//!        0 ........ low .......... high ................ surplus ......
//!          ask, or         nothing          nothing               give back, down to high
//!          make room, up to high
//! ```
//!
//! Between the marks are chunks enough for neither to bring about the other. And what is not needed is
//! not given back before it has not been needed for a while: those who swap do so by fits and starts.

use super::{
    Kind,
    Level,
    SLOTS_PER_CHUNK, //
};

/// The most chunks that are asked for, or given back, at once.
pub const MOST_AT_ONCE: u32 = 62;

/// The most chunks that are to be free ahead of need: two requests bring them, and as many again.
const MOST_AHEAD: u32 = 62;

/// Chunks that were asked for less than this before were used up soon, in milliseconds.
const SOON: u32 = 500;

/// After how long without asking half as much is ahead of need, in milliseconds.
const CALM: u32 = 10_000;

/// How long chunks have not to be needed before they are given back, in milliseconds.
const IDLE: u32 = 30_000;

/// For how long at first not to ask again after the device gave less than was asked for, and at most,
/// in milliseconds.
const FIRST_PAUSE: u32 = 1000;
const LONGEST_PAUSE: u32 = 64_000;

/// What is to be done about the chunks of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Ask for so many chunks, and say what came of it: see [`Supply::answered()`].
    Ask(u32),
    /// Give back up to so many chunks in which no slot is in use.
    GiveBack(u32),
    /// Move so many of the oldest pages to the store: whole requests, or all that there are.
    MakeRoom(u32),
}

/// Where the pages of a chunk go that is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To slots of other chunks.
    Slots,
    /// To the store.
    Store,
    /// To where they would be without the device.
    Home,
}

/// What is asked for and given back, of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Supply {
    kind: Kind,
    /// Pages of a request.
    batch: u32,
    asking: bool,
    /// Chunks ahead of need.
    ahead: u32,
    /// Since when nothing has been asked for, as far as that was taken note of.
    calm_since: u32,
    /// Since when there is more than is needed.
    idle_since: Option<u32>,
    /// Until when not to ask, and for how long that was.
    pause: Option<(u32, u32)>,
}

impl Supply {
    /// Nothing has been asked for; pages go to the store by `batch`.
    pub const fn new(kind: Kind, batch: u32) -> Self {
        Self {
            kind,
            batch: if batch == 0 { 1 } else { batch },
            asking: false,
            ahead: 1,
            calm_since: 0,
            idle_since: None,
            pause: None,
        }
    }

    /// Returns the free slots below which there should be more, and how many there should be then.
    fn marks(&self, level: Level) -> (u32, u32) {
        let ahead = (level.chunks / 16).clamp(self.ahead, MOST_AHEAD);
        let low = ahead.wrapping_mul(SLOTS_PER_CHUNK);
        (low, low.wrapping_mul(2))
    }

    /// Says what is to be done next; `now` is in milliseconds, and may wrap.
    pub fn next(&mut self, level: Level, now: u32) -> Step {
        let quiet = now.wrapping_sub(self.calm_since);
        if quiet >= CALM {
            self.ahead = (self.ahead / 2).max(1);
            self.calm_since = now;
        }
        let (low, high) = self.marks(level);

        if level.free < low {
            let missing = high.saturating_sub(level.free);
            self.idle_since = None;
            if self.may_ask(now) {
                if quiet < SOON {
                    self.ahead = self.ahead.saturating_mul(2).min(MOST_AHEAD);
                }
                self.asking = true;
                self.calm_since = now;
                return Step::Ask(missing.div_ceil(SLOTS_PER_CHUNK).min(MOST_AT_ONCE));
            }
            // Ephemeral pages make room one by one, as others come.
            if self.kind == Kind::Persistent && !self.asking {
                return Step::MakeRoom(missing.next_multiple_of(self.batch));
            }
            return Step::Rest;
        }
        // What is ephemeral the device takes when it wants it.
        let surplus = high.saturating_add(high).saturating_add(SLOTS_PER_CHUNK);
        if self.kind != Kind::Persistent || level.free <= surplus {
            self.idle_since = None;
            return Step::Rest;
        }
        let since = *self.idle_since.get_or_insert(now);
        if now.wrapping_sub(since) < IDLE {
            return Step::Rest;
        }
        let chunks = level.free.saturating_sub(high) / SLOTS_PER_CHUNK;
        Step::GiveBack(chunks.min(MOST_AT_ONCE))
    }

    fn may_ask(&mut self, now: u32) -> bool {
        // Half of all times are past.
        let over = self
            .pause
            .is_none_or(|(until, _)| until.wrapping_sub(now) > u32::MAX / 2 || until == now);
        over && !self.asking
    }

    /// Says how many chunks came of those that were asked for; none if there was no answer.
    pub fn answered(&mut self, asked: u32, got: u32, now: u32) {
        self.asking = false;
        self.pause = if got >= asked {
            None
        } else {
            let before = self.pause.map_or(0, |(_, pause)| pause);
            let pause = if got > 0 { 0 } else { before };
            let pause = pause.saturating_mul(2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            Some((now.wrapping_add(pause), pause))
        };
    }

    /// Says that the device has more to give than it had.
    pub fn there_is_more(&mut self) {
        self.pause = None;
    }

    /// Says where pages of a chunk go that is to leave, of which `left` are still in it, where the
    /// store takes so many more.
    ///
    /// Other slots are free at no cost, but not those that are ahead of need: those who put would get
    /// what the device asked for.
    pub fn way(&self, level: Level, left: u32, credits: u32) -> Way {
        let (low, _) = self.marks(level);

        if level.free.saturating_sub(low) >= left {
            Way::Slots
        } else if credits > 0 {
            Way::Store
        } else {
            Way::Home
        }
    }
}
