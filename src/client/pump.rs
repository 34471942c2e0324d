// SPDX-License-Identifier: GPL-2.0

//! The thread that sends what nobody waits for, and watches over the device.
//!
//! It never waits for the device and never allocates, so that whatever the device does, it gets to
//! see that requests are not answered in time.

use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        Mutex, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    },
};

use crate::bindings::thread::{
    self,
    Bell, //
};

use super::{
    logic::{
        standing::Access,
        watchdog::{
            Verdict,
            Watchdog, //
        },
    },
    request::Origin,
    Client,
    END,
    GROW,
    IN_FLIGHT,
    RENEW,
    TEND, //
};

/// What the thread remembers.
#[pin_data]
pub(super) struct State {
    /// Whether staged pages have waited for more to come.
    pub(super) lingered: Atomic<bool>,
    /// When to tell the device of flushes, in jiffies; 0 for never.
    pub(super) flush_at: Atomic<usize>,
    /// Requests with flushes that the device may not have been notified of.
    pub(super) unkicked: Atomic<u32>,
    /// When to notify it at the latest, in jiffies.
    pub(super) kick_at: Atomic<usize>,
    /// Whether requests are watched.
    watching: Atomic<bool>,
    /// When to look at them again, in jiffies.
    look_at: Atomic<usize>,
    /// When the thread was made.
    start: Instant<Monotonic>,
    #[pin]
    watchdog: Mutex<Watchdog<IN_FLIGHT>>,
}

impl State {
    /// A device is given `timeout_ms` for an answer, and given up after `give_up_ms`, if at all.
    pub(super) fn new(timeout_ms: u32, give_up_ms: Option<u32>) -> impl PinInit<Self> {
        let watchdog = Watchdog::new(timeout_ms.into(), give_up_ms.map(u64::from));

        pin_init!(Self {
            lingered: Atomic::new(false),
            flush_at: Atomic::new(0),
            unkicked: Atomic::new(0),
            kick_at: Atomic::new(0),
            watching: Atomic::new(false),
            look_at: Atomic::new(thread::jiffies()),
            start: Instant::now(),
            watchdog <- new_mutex!(watchdog, "State::watchdog"),
        })
    }
}

impl<O: Origin> thread::Work for Client<O> {
    fn work(this: &Arc<Self>) -> Option<usize> {
        if this.is_gone() {
            let _ = this.urgent.enqueue::<_, END>(this.clone());
            return None;
        }
        if this.growing.load(Relaxed) {
            let _ = this.growth.enqueue::<_, GROW>(this.clone());
        }
        if this.is_outdated() {
            let _ = this.growth.enqueue::<_, RENEW>(this.clone());
        }
        this.staging.trim(this.stages());
        this.offer_parked();
        // There may not have been memory for it.
        let parked = this.parked.any() && this.standing().persistent() == Access::Ask;

        [
            parked.then_some(1),
            this.pump_staged(),
            this.pump_shared(),
            this.pump_flushes(),
            this.pump_kicks(),
            this.offer_again(),
            Self::watch_requests(this),
            Self::watch_chunks(this),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn bell(&self) -> &Bell {
        &self.bell
    }
}

impl<O: Origin> Client<O> {
    /// Has requests watched. Any context.
    #[inline]
    pub(super) fn watch(&self) {
        if !self.pump.watching.load(Relaxed) {
            self.bell.ring();
        }
    }

    /// Has chunks of the window looked after if it is time; returns in how many jiffies to look again.
    fn watch_chunks(this: &Arc<Self>) -> Option<usize> {
        let (left, due) = this.chunks_due()?;

        if due {
            let _ = this.growth.enqueue::<_, TEND>(this.clone());
        }
        Some(left)
    }

    /// Looks whether requests are answered in time; returns in how many jiffies to look again.
    fn watch_requests(this: &Arc<Self>) -> Option<usize> {
        let pump = &this.pump;
        let now = thread::jiffies();

        if pump.watching.load(Relaxed) {
            let left = pump.look_at.load(Relaxed).wrapping_sub(now) as isize;
            if left > 0 {
                return Some(left as usize);
            }
        }
        // Before looking, so that who submits after that rings the bell.
        pump.watching.xchg(false, Full);
        // What has come back is not waited for, whoever was to take it.
        this.queues.look();
        if this.queues.is_broken() {
            Self::give_up(this, format_args!("its virtqueues are broken"));
            return None;
        }

        let mut watchdog = pump.watchdog.lock();
        // CAST: Time does not go back.
        let time = pump.start.elapsed().as_millis() as u64;
        let (verdict, any) = watchdog.look(time, |place| {
            this.flights
                .look(place, |queue| this.queues.notified(queue))
        });
        let period = msecs_to_jiffies(watchdog.period() as u32).max(1);
        let silent = watchdog.is_silent();
        drop(watchdog);

        match verdict {
            Verdict::AsBefore => (),
            Verdict::Silent { waited } => Self::falls_silent(this, waited),
            Verdict::Answers { after } => this.answers_again(after),
            Verdict::GiveUp { waited } => {
                Self::give_up(
                    this,
                    format_args!("it has not answered for {} s", waited / 1000),
                );
                return None;
            }
        }
        if silent {
            // More may have been asked since that can do without the answer.
            Self::leave_behind(this);
        }
        if !any {
            return None;
        }
        pump.watching.store(true, Relaxed);
        pump.look_at.store(now.wrapping_add(period), Relaxed);
        Some(period)
    }
}
