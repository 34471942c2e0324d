// SPDX-License-Identifier: GPL-2.0

//! Draining: pages that only the host has are written to their slots of their swap areas.
//!
//! A worker takes one window of pages after the other, in the order of the slots: it gets them, as
//! anybody does, into pages of its own, and writes those with bios of its own to where the area's
//! extents say. The kernel's own function to submit a swap request is of no use here. It takes the
//! place on the disk, and the cgroup that pays, from folios of the swap cache; it ends their
//! writeback; and it tells nobody whether the disk has taken them.
//!
//! All memory is there from the beginning, and what the worker waits for is the host and the disk,
//! never reclaim: so it goes on when the guest has no memory left. Those who reclaim wait for it only
//! where they write to a slot that it is just writing to, and for no longer than the disk takes. In
//! which order what happens, and why that is right, is said in [`crate::client::logic::drain`].
//!
//! A slot cannot be read from the area before its page is there; whoever looked for a page in the
//! index before that, and does not get it, looks for it in the area: see
//! [`Request`](super::request::Request). An area cannot go while one of its slots is being written to:
//! it is held, as get_swap_device() would.

mod handle;

use kernel::{
    new_condvar,
    new_mutex,
    new_spinlock,
    new_spinlock_irq,
    page::Page,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        CondVar,
        Mutex,
        SpinLock,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies, //
};

use crate::{
    bindings::{
        self,
        block::Transfer,
        page::PageRef,
        work::OwnedQueue, //
    },
    client::{
        logic::drain::{
            Course,
            End,
            Goal,
            InFlight,
            Next,
            Window,
            WINDOW, //
        },
        Answers,
        Moves,
        Outcome,
        Pool,
        Stop, //
    },
    params,
};

use super::{
    super::{
        Context,
        Entered,
        Origin,
        PageOf, //
    },
    areas::{
        self,
        key,
        Held,
        OBJECT_PAGES,
        OBJECT_SHIFT, //
    },
};

pub(crate) use self::handle::Drain;

/// How long to wait for pages on their way to the host, or for an area that is being swapped off,
/// before looking again, in milliseconds.
const WAIT_MS: u32 = 20;

/// What is wanted, and how it goes.
struct State {
    goal: Goal,
    running: bool,
    stop: bool,
    written: u64,
    failed: u64,
    end: End,
}

/// What a window needs.
struct Memory {
    window: Window,
    transfer: Transfer<WINDOW>,
    pages: KVec<Page>,
    /// Those that are in the host's window.
    moves: Moves,
}

/// Answers that are still to come, plus one while questions are asked.
struct Expected {
    left: u32,
    /// A bit for each page of the window that did not come.
    failed: u64,
}

/// The one drain that there can be at a time.
#[pin_data]
pub(in crate::hooks) struct Drainer {
    #[pin]
    state: SpinLockIrq<State>,
    #[pin]
    changed: CondVar,
    #[pin]
    memory: Mutex<KBox<Memory>>,
    #[pin]
    expected: SpinLockIrq<Expected>,
    #[pin]
    answered: CondVar,
    /// Whether `in_flight` has anything.
    flying: Atomic<bool>,
    #[pin]
    in_flight: SpinLock<InFlight>,
    #[pin]
    landed: CondVar,
    /// Whether nothing is put.
    closed: Atomic<bool>,
    /// How many have seen that it is not, and may be putting.
    putting: Atomic<u32>,
    queue: OwnedQueue,
}

/// The right to put pages, which a drain waits for.
pub(super) struct Putting<'a>(&'a Drainer);

impl Drop for Putting<'_> {
    fn drop(&mut self) {
        self.0.putting.fetch_sub(1, Release);
    }
}

impl Drainer {
    /// Allocates all that a drain needs.
    ///
    /// May sleep.
    pub(in crate::hooks) fn new() -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            // Where the areas have all pages too, nothing is got or written.
            let count = if params::write_through() { 0 } else { WINDOW };
            let mut pages = KVec::with_capacity(count, GFP_KERNEL)?;
            for _ in 0..count {
                pages.push(Page::alloc_page(GFP_KERNEL)?, GFP_KERNEL)?;
            }

            let memory = KBox::new(
                Memory {
                    window: Window::EMPTY,
                    transfer: Transfer::new(),
                    pages,
                    moves: Moves::new(),
                },
                GFP_KERNEL,
            )?;
            let state = State {
                goal: Goal::All,
                running: false,
                stop: false,
                written: 0,
                failed: 0,
                end: End::Done,
            };
            let expected = Expected { left: 0, failed: 0 };
            Ok(try_pin_init!(Self {
                state <- new_spinlock_irq!(state, "Drainer::state"),
                changed <- new_condvar!("Drainer::changed"),
                memory <- new_mutex!(memory, "Drainer::memory"),
                expected <- new_spinlock_irq!(expected, "Drainer::expected"),
                answered <- new_condvar!("Drainer::answered"),
                flying: Atomic::new(false),
                in_flight <- new_spinlock!(InFlight::NONE, "Drainer::in_flight"),
                landed <- new_condvar!("Drainer::landed"),
                closed: Atomic::new(false),
                putting: Atomic::new(0),
                queue: OwnedQueue::new(c"virtio_tmem_drain", true)?,
            }? Error))
        })
    }

    /// Begins to put pages, unless nothing is to be put. Any context.
    pub(super) fn begin_put(&self) -> Option<Putting<'_>> {
        // Whoever closes sees this, or this is closed.
        self.putting.fetch_add(1, Full);
        let putting = Putting(self);

        (!self.closed.load(Acquire)).then_some(putting)
    }

    /// Waits as long as what is being written is in the way. Sleeps, for as long as the disk needs.
    ///
    /// To be called by those who write to the area, once what the host has of their pages cannot be
    /// got any more.
    pub(super) fn wait_while(&self, in_the_way: impl Fn(&InFlight) -> bool) {
        // The worker sets this before it looks for the pages in the index.
        if !self.flying.load(Acquire) {
            return;
        }
        let mut flight = self.in_flight.lock();

        while in_the_way(&flight) {
            self.landed.wait(&mut flight);
        }
    }

    /// Takes the answers to gets. Any context.
    pub(in crate::hooks) fn done(&self, answers: &Answers<'_, PageOf>) {
        let mut failed = 0;

        for (page, outcome) in answers.iter() {
            if let (PageOf::Place(place), Outcome::Failed) = (page, outcome) {
                failed |= 1u64 << (place & 63);
            }
        }
        self.answer(failed);
    }

    fn answer(&self, failed: u64) {
        let mut expected = self.expected.lock();

        expected.failed |= failed;
        expected.left -= 1;
        let all = expected.left == 0;
        drop(expected);
        if all {
            self.answered.notify_all();
        }
    }

    /// Says that pages on their way to the host have arrived, or have not. Any context.
    pub(super) fn nudge(&self) {
        if self.closed.load(Relaxed) {
            self.changed.notify_all();
        }
    }

    /// Has the worker begin soon. Any context.
    pub(in crate::hooks) fn enqueue(&self, context: Arc<Context>) {
        let _ = self.queue.enqueue::<_, 2>(context);
    }

    /// Has the worker stop, and waits for it. Sleeps.
    pub(in crate::hooks) fn end(&self) {
        self.state.lock().stop = true;
        self.changed.notify_all();
        self.queue.flush();
    }

    /// Drains as much as is wanted. For the worker.
    pub(in crate::hooks) fn run(&self, context: &Entered) {
        let mut memory = self.memory.lock();
        let mut course = Course::new(self.state.lock().goal);

        let end = loop {
            if !self.pass(context, &mut memory, &mut course) {
                break End::Stopped;
            }
            // In this order: what is being put is on its way before it is not being put any more,
            // and counts as there before it is not on its way any more.
            let unsettled =
                self.putting.load(Acquire) > 0 || context.client.pending(Pool::Frontswap) > 0;
            let left = context.client.pages(Pool::Frontswap).load(Relaxed);

            match course.end_pass(left, unsettled) {
                Next::Again => (),
                Next::Wait => {
                    let ticks = msecs_to_jiffies(WAIT_MS) as usize;
                    let mut state = self.state.lock();

                    if state.stop {
                        break End::Stopped;
                    }
                    let _ = self.changed.wait_interruptible_timeout(&mut state, ticks);
                }
                Next::Over(end) => break end,
            }
        };
        self.finish(context, end, &course);
    }

    fn finish(&self, context: &Entered, end: End, course: &Course) {
        let mut state = self.state.lock();
        let goal = state.goal;

        // Somebody has started it again before it stopped.
        if end == End::Stopped && !state.stop {
            drop(state);
            context.drain_later();
            return;
        }
        state.written = course.written();
        state.failed = course.failed();
        state.end = end;
        state.running = false;
        drop(state);
        self.changed.notify_all();

        let written = course.written();
        match (goal, end) {
            (Goal::All, End::Done) if written > 0 => {
                pr_info!("{written} swapped pages were drained\n")
            }
            (_, End::Left(left)) if course.failed() > 0 => pr_err!(
                "{left} swapped pages are only in the host and could not be written to their swap \
                 areas: see what the log says about the disk or the host, or swapoff\n"
            ),
            _ => (),
        }
    }

    /// Drains one area that nobody puts pages from any more, whatever else is to be drained; returns
    /// whether nothing of it is left. Sleeps.
    pub(super) fn empty(&self, context: &Entered, area: u32) -> bool {
        let mut memory = self.memory.lock();
        let mut course = Course::new(Goal::All);

        loop {
            self.pass_area(context, &mut memory, &mut course, area, |_| true);
            let left = areas::present(&context.client, area);
            let unsettled = context.client.pending(Pool::Frontswap) > 0;

            match course.end_pass(left, unsettled && left > 0) {
                Next::Again => (),
                // SAFETY: Whoever calls may sleep, as this function says, and holds no spin lock.
                Next::Wait => unsafe { bindings::msleep(WAIT_MS) },
                Next::Over(end) => return end == End::Done,
            }
        }
    }

    /// Goes through all areas, and returns false if it was stopped.
    fn pass(&self, context: &Entered, memory: &mut Memory, course: &mut Course) -> bool {
        for (area, objects) in areas::all() {
            if objects > 0 {
                let goes_on = |course: &mut Course| {
                    let mut state = self.state.lock();

                    course.set_goal(state.goal);
                    state.written = course.written();
                    state.failed = course.failed();
                    !state.stop
                };

                if !self.pass_area(context, memory, course, area, goes_on) {
                    return false;
                }
            }
            if course.is_enough() {
                break;
            }
        }
        true
    }

    /// Goes through an area as long as `goes_on` says, and returns false if that was not to its end, or
    /// to that of the drain.
    fn pass_area(
        &self,
        context: &Entered,
        memory: &mut Memory,
        course: &mut Course,
        area: u32,
        goes_on: impl Fn(&mut Course) -> bool,
    ) -> bool {
        let end = areas::objects(area) << OBJECT_SHIFT;
        let mut offset = 0;

        while offset < end {
            if !goes_on(course) {
                return false;
            }
            if course.is_enough() {
                return true;
            }
            offset = fill(context, memory, area, offset, end);
            if memory.window.is_empty() {
                continue;
            }
            let is_there = self.window(context, memory, area, course);

            context.client.end_moves(Pool::Frontswap, &mut memory.moves);
            if !is_there {
                course.pass_over();
                break;
            }
        }
        true
    }

    /// Drains the pages of a window, and returns false if their area is about to go.
    fn window(
        &self,
        context: &Entered,
        memory: &mut Memory,
        area: u32,
        course: &mut Course,
    ) -> bool {
        let counters = context.client.counters(Pool::Frontswap);

        // Those that are in the area too need only be forgotten.
        if !params::write_through() {
            self.fetch(context, memory, area);
            // Not before: whoever swaps it off waits for the disk alone.
            let Some(held) = Held::new(area) else {
                return false;
            };
            *self.in_flight.lock() = memory.window.in_flight(area);
            self.flying.store(true, Release);
            memory.window.confirm(|page| {
                let (tag, index) = key(area, page.offset);

                context
                    .client
                    .is_away(Pool::Frontswap, tag, index, page.version)
            });
            memory.write(&held);
        }
        let Memory { window, moves, .. } = memory;
        let tally = window.settle(|page| {
            let (tag, index) = key(area, page.offset);
            let version = (tag, index, page.version);

            context.client.taken_back(Pool::Frontswap, version, moves)
        });
        if self.flying.load(Relaxed) {
            *self.in_flight.lock() = InFlight::NONE;
            self.flying.store(false, Release);
            self.landed.notify_all();
        }

        // CAST: There are at most 64.
        counters.drained.add(tally.written as usize);
        counters.drain_failed.add(tally.failed as usize);
        course.note(tally);
        true
    }

    /// Gets the pages of the window. Sleeps.
    fn fetch(&self, context: &Entered, memory: &mut Memory, area: u32) {
        let client = &context.client;
        let Memory { window, pages, .. } = memory;
        let mut gets = client.gets();
        let mut batch = None;
        let mut n = 0;

        *self.expected.lock() = Expected { left: 1, failed: 0 };
        while let Some(page) = window.page(n) {
            let count = window.neighbours(n, OBJECT_PAGES);
            let here = client.get_here(Pool::Frontswap, key(area, page.offset), count, |k| {
                page_of(pages, n + k)
            });
            if here.got > 0 {
                n += here.got;
                continue;
            }
            if here.lost {
                // It is not that nobody wants it any more: that would be another pass, for ever.
                window.fail(n);
                n += 1;
                continue;
            }
            if batch.is_none() {
                batch = gets.begin_waiting(Pool::Frontswap).ok();
            }
            let Some(open) = &mut batch else {
                // There is no host any more.
                window.fail(n);
                n += 1;
                continue;
            };
            let places = (n..).take(count);
            // CAST: There are at most 64.
            let pages = places.filter_map(|n| Some((page_of(pages, n)?, PageOf::Place(n as u8))));

            let (done, stop) = client.push_gets(open, key(area, page.offset), count, pages);
            n += done;
            match stop {
                Stop::Done => (),
                Stop::Full if open.len() > 0 => {
                    if let Some(batch) = batch.take() {
                        self.expected.lock().left += 1;
                        gets.submit(batch, Origin::Drain);
                    }
                }
                Stop::Full | Stop::Refused => {
                    window.let_go(n);
                    n += 1;
                }
            }
        }
        match batch.take() {
            Some(batch) if batch.len() > 0 => {
                self.expected.lock().left += 1;
                gets.submit(batch, Origin::Drain);
            }
            Some(batch) => client.cancel(batch),
            None => (),
        }
        drop(gets);
        self.answer(0);

        let mut expected = self.expected.lock();
        while expected.left > 0 {
            // No signal comes here. It is no task that hangs if this takes long.
            let _ = self.answered.wait_interruptible(&mut expected);
        }
        for n in (0..window.len()).filter(|n| expected.failed >> n & 1 != 0) {
            window.fail(n);
        }
    }
}

/// Returns page `n` of the worker's own.
fn page_of(pages: &[Page], n: usize) -> Option<PageRef> {
    let page = core::ptr::NonNull::new(pages.get(n)?.as_ptr())?;

    // SAFETY: The page stays until the worker is done, which waits for all answers.
    Some(unsafe { PageRef::new(page) })
}

impl Memory {
    /// Writes what is in the window. Sleeps.
    fn write(&mut self, area: &Held) {
        let Self {
            window,
            transfer,
            pages,
            ..
        } = self;
        let some = |first: usize, count: usize| {
            pages.iter().skip(first).take(count).filter_map(|page| {
                let page = core::ptr::NonNull::new(page.as_ptr())?;
                // SAFETY: The page stays until it is written, which is waited for.
                Some(unsafe { PageRef::new(page) })
            })
        };
        let device = area.device();
        let block = |offset| device.and_then(|_| area.block(offset));
        let mut write = |block, first, count| {
            device.is_some_and(|device| transfer.write(device, block, some(first, count)).is_ok())
        };
        let mut from = 0;

        while let Some(run) = window.run(from, block) {
            from = run.first + run.count;
            if write(run.block, run.first, run.count) {
                continue;
            }
            // Which of them is it that cannot be written?
            for (n, block) in (run.first..from).zip(run.block..) {
                if run.count == 1 || !write(block, n, 1) {
                    window.fail(n);
                }
            }
        }
    }
}

/// Takes pages of an area from `offset` on into the window, and returns where to go on.
fn fill(context: &Entered, memory: &mut Memory, area: u32, mut offset: u64, end: u64) -> u64 {
    let Memory { window, moves, .. } = memory;

    window.clear();
    while offset < end && window.len() < WINDOW {
        let (tag, index) = key(area, offset);
        let base = offset - index;
        let room = WINDOW - window.len();
        let more = context.client.take_back_from(
            Pool::Frontswap,
            tag,
            index,
            room,
            moves,
            |index, version| {
                // There is room.
                let _ = window.push(base + index, version);
            },
        );

        offset = base + more.unwrap_or(OBJECT_PAGES).min(OBJECT_PAGES);
    }
    offset
}
