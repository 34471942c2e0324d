// SPDX-License-Identifier: GPL-2.0

//! Draining: which pages to write back to where they would otherwise be, and when that is over.
//!
//! Whoever drains takes one [`Window`] of pages after the other:
//!
//! 1. It [fills](Window::push) the window with pages that only the device has, and gets them.
//! 2. It publishes [`Window::in_flight()`], and after that [confirms](Window::confirm) that the index
//!    still has each page in the version that was got. One that it has not is let go.
//! 3. It writes the rest, [run](Window::run) by run.
//! 4. It [settles](Window::settle) what was written: each page leaves the index, unless there is
//!    another version of it by now. Then it takes back what it published.
//!
//! Whoever else wants to write to the same place first takes the page out of the index, and then
//! waits until [`InFlight`] does not have the place. So either step 2 sees that the page is gone, and
//! nothing is written, or the other one sees that the place is in flight, and its write comes later.
//!
//! A page leaves the index only when it can be read from where it was written to. Whoever looked
//! for it in the index before, and does not get it from the device, finds it there.

/// The most pages that are dealt with at once.
pub const WINDOW: usize = 64;

const _: () = assert!(WINDOW <= u64::BITS as usize);

/// A page of an area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Where it is in the area, in pages.
    pub offset: u64,
    /// The version that the index had when the page was taken into the window.
    pub version: u32,
}

/// Pages that can be written in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which page of the window is the first one.
    pub first: usize,
    /// How many there are.
    pub count: usize,
    /// Where on the device the first one goes, in pages.
    pub block: u64,
}

/// Pages that are dealt with together, all of one area.
#[derive(Clone, Debug)]
pub struct Window {
    pages: [Page; WINDOW],
    len: usize,
    /// A bit for each page that is still to be dealt with.
    open: u64,
    tally: Tally,
}

/// What became of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages that were written, and that the device need not keep any more.
    pub written: u64,
    /// Pages that could not be got or written.
    pub failed: u64,
    /// Pages that were not wanted any more when it came to them, or that had another version.
    pub outdated: u64,
}

impl Window {
    /// A window without pages.
    pub const EMPTY: Self = Self {
        pages: [Page {
            offset: 0,
            version: 0,
        }; WINDOW],
        len: 0,
        open: 0,
        tally: Tally {
            written: 0,
            failed: 0,
            outdated: 0,
        },
    };

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.len = 0;
        self.open = 0;
        self.tally = Tally::default();
    }

    /// Takes a page in, and returns whether there was room for it.
    ///
    /// Pages are to come in the order of their offsets.
    pub fn push(&mut self, offset: u64, version: u32) -> bool {
        let Some(page) = self.pages.get_mut(self.len) else {
            return false;
        };

        *page = Page { offset, version };
        self.open |= bit(self.len);
        self.len = self.len.wrapping_add(1);
        true
    }

    /// Returns how many pages were taken in.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns page `n`, if it is still to be dealt with.
    pub fn page(&self, n: usize) -> Option<Page> {
        self.pages
            .get(n)
            .copied()
            .filter(|_| self.open & bit(n) != 0)
    }

    /// Returns how many pages from `n` on have offsets that follow each other, and are still to be
    /// dealt with: at most up to the end of a piece of `align` pages of the area.
    pub fn neighbours(&self, n: usize, align: u64) -> usize {
        let Some(first) = self.page(n) else {
            return 0;
        };
        let end = (first.offset / align)
            .saturating_add(1)
            .saturating_mul(align);
        // CAST: To more bits.
        let follows = |k: &usize| {
            let offset = first
                .offset
                .saturating_add((*k as u64).wrapping_sub(n as u64));

            offset < end && self.page(*k).is_some_and(|page| page.offset == offset)
        };

        (n..self.len).take_while(follows).count()
    }

    /// Lets a page go that is not wanted any more.
    pub fn let_go(&mut self, n: usize) {
        if self.close(n) {
            self.tally.outdated = self.tally.outdated.saturating_add(1);
        }
    }

    /// Lets a page go that could not be got or written.
    pub fn fail(&mut self, n: usize) {
        if self.close(n) {
            self.tally.failed = self.tally.failed.saturating_add(1);
        }
    }

    fn close(&mut self, n: usize) -> bool {
        let open = self.open & bit(n) != 0;

        self.open &= !bit(n);
        open
    }

    /// Returns what others that write to the area have to wait for.
    pub fn in_flight(&self, area: u32) -> InFlight {
        let mut flight = InFlight {
            area,
            offsets: [0; WINDOW],
            len: 0,
        };

        for n in 0..self.len {
            if let (Some(page), Some(offset)) = (self.page(n), flight.offsets.get_mut(flight.len)) {
                *offset = page.offset;
                flight.len = flight.len.wrapping_add(1);
            }
        }
        flight
    }

    /// Lets those pages go that the index does not have in the version that was got.
    ///
    /// To be called once [`Window::in_flight()`] can be seen by those who write.
    pub fn confirm(&mut self, mut is_stored: impl FnMut(Page) -> bool) {
        for n in 0..self.len {
            if self.page(n).is_some_and(|page| !is_stored(page)) {
                self.let_go(n);
            }
        }
    }

    /// Returns the next pages from `from` on that can be written in one go.
    ///
    /// `block_of` says where on the device an offset of the area is. A page that it knows no place
    /// of has failed.
    pub fn run(&mut self, from: usize, block_of: impl Fn(u64) -> Option<u64>) -> Option<Run> {
        let mut run: Option<Run> = None;

        for n in from..self.len {
            let Some(page) = self.page(n) else {
                match run {
                    Some(_) => break,
                    None => continue,
                }
            };
            let Some(block) = block_of(page.offset) else {
                self.fail(n);
                match run {
                    Some(_) => break,
                    None => continue,
                }
            };

            match &mut run {
                None => {
                    run = Some(Run {
                        first: n,
                        count: 1,
                        block,
                    });
                }
                // CAST: To more bits.
                Some(run) if block == run.block.wrapping_add(run.count as u64) => {
                    run.count = run.count.wrapping_add(1);
                }
                Some(_) => break,
            }
        }
        run
    }

    /// Says that what is still open was written; `erase` takes a page out of the index, and returns
    /// whether it was there in this version.
    pub fn settle(&mut self, mut erase: impl FnMut(Page) -> bool) -> Tally {
        for n in 0..self.len {
            let Some(page) = self.page(n) else {
                continue;
            };

            if erase(page) {
                self.close(n);
                self.tally.written = self.tally.written.saturating_add(1);
            } else {
                self.let_go(n);
            }
        }
        self.tally
    }
}

fn bit(n: usize) -> u64 {
    // CAST: More than 64 has no bit.
    1u64.checked_shl(n as u32).unwrap_or(0)
}

/// The places that are being written.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    area: u32,
    offsets: [u64; WINDOW],
    len: usize,
}

impl InFlight {
    /// No places.
    pub const NONE: Self = Self {
        area: 0,
        offsets: [0; WINDOW],
        len: 0,
    };

    /// Returns whether one of `count` places at `first..` of an area is being written.
    pub fn overlaps(&self, area: u32, first: u64, count: u64) -> bool {
        let offsets = self.offsets.get(..self.len).unwrap_or_default();

        area == self.area
            && offsets
                .iter()
                .any(|offset| offset.checked_sub(first).is_some_and(|far| far < count))
    }
}

/// How much is to be drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// All pages.
    All,
    /// So many.
    Some(u64),
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its goal was reached.
    Done,
    /// So many pages are left, though all that could be written was.
    Left(u64),
    /// Somebody stopped it.
    Stopped,
}

/// What is to be done after a pass over all pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another pass.
    Again,
    /// Another pass, when some of what was on its way has arrived.
    Wait,
    /// Nothing.
    Over(End),
}

/// A drain: passes over all pages, until there is nothing left that can be written.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    goal: Goal,
    written: u64,
    pass: Tally,
    /// Whether something was passed over that will be there later.
    passed_over: bool,
}

impl Course {
    /// Begins a drain.
    pub const fn new(goal: Goal) -> Self {
        Self {
            goal,
            written: 0,
            pass: Tally {
                written: 0,
                failed: 0,
                outdated: 0,
            },
            passed_over: false,
        }
    }

    /// Goes for more, or less.
    pub fn set_goal(&mut self, goal: Goal) {
        self.goal = goal;
    }

    /// Takes note of a window.
    pub fn note(&mut self, tally: Tally) {
        self.written = self.written.saturating_add(tally.written);
        self.pass.written = self.pass.written.saturating_add(tally.written);
        self.pass.failed = self.pass.failed.saturating_add(tally.failed);
        self.pass.outdated = self.pass.outdated.saturating_add(tally.outdated);
    }

    /// Takes note of an area that cannot be written to any more, and whose pages will be gone soon.
    pub fn pass_over(&mut self) {
        self.passed_over = true;
    }

    /// Returns how many pages were written in all.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Returns how many pages failed in this pass.
    pub fn failed(&self) -> u64 {
        self.pass.failed
    }

    /// Returns whether the goal is reached before the pass is over.
    pub fn is_enough(&self) -> bool {
        matches!(self.goal, Goal::Some(pages) if self.written >= pages)
    }

    /// Ends a pass, after which the index has `left` pages.
    ///
    /// `unsettled` says whether some of them, or more, may be on their way to the device. Whoever
    /// wants all has to wait for those; whoever wants some takes what there is.
    pub fn end_pass(&mut self, left: u64, unsettled: bool) -> Next {
        let pass = core::mem::take(&mut self.pass);
        let unsettled = core::mem::take(&mut self.passed_over) || unsettled;

        // What fails is tried again as long as others succeed, and once more after that.
        let all = self.goal == Goal::All;
        let next = if self.is_enough() || (left == 0 && !(all && unsettled)) {
            Next::Over(End::Done)
        } else if pass.written > 0 || pass.outdated > 0 {
            Next::Again
        } else if all && unsettled {
            Next::Wait
        } else {
            Next::Over(End::Left(left))
        };

        if let Next::Over(_) = next {
            // For whoever asks afterwards.
            self.pass.failed = pass.failed;
        }
        next
    }
}
