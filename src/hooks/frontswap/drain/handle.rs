// SPDX-License-Identifier: GPL-2.0

//! What others do with a drain: start it, stop it, wait for it, and see how far it is.

use kernel::{
    prelude::*,
    sync::atomic::{
        Full,
        Relaxed,
        Release, //
    },
};

use crate::{
    client::{
        logic::drain::{
            End,
            Goal, //
        },
        Pool, //
    },
    hooks::{
        Context,
        Entered, //
    },
};

use super::Drainer;

/// How far a drain is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    /// Whether it goes on.
    pub(crate) running: bool,
    /// Pages that only the host has.
    pub(crate) left: u64,
    /// Pages that this drain, or the last one, has written.
    pub(crate) written: u64,
    /// Pages that could not be got or written when it last came to them.
    pub(crate) failed: u64,
}

/// What drains the swapped pages of the device that is in use.
///
/// The hooks stay as long as there is an instance: whoever removes them waits for it to go.
pub(crate) struct Drain(Entered);

impl Drain {
    /// Returns the drain of the device in use, if there is one that has swapped pages. Any context.
    pub(crate) fn get() -> Option<Self> {
        Context::get().map(Self)
    }

    fn drainer(&self) -> &Drainer {
        &self.0.drain
    }

    /// Puts no more swapped pages from now on, and drains all that there are.
    ///
    /// Returns at once. Nothing is put before [`Self::stop()`], whatever becomes of the drain. Any
    /// context.
    pub(crate) fn start(&self) {
        self.drainer().closed.xchg(true, Full);
        self.want(Goal::All);
    }

    /// Drains so many pages, and goes on to put others meanwhile.
    ///
    /// Returns at once. What another one wants is added to. Any context.
    pub(crate) fn shrink(&self, pages: u64) {
        self.want(Goal::Some(pages));
    }

    fn want(&self, goal: Goal) {
        let mut state = self.drainer().state.lock();

        state.goal = match (state.goal, goal) {
            (Goal::Some(old), Goal::Some(more)) if state.running => {
                Goal::Some(old.saturating_add(more))
            }
            (Goal::All, Goal::Some(_)) if state.running => Goal::All,
            _ => goal,
        };
        state.stop = false;
        if state.running {
            return;
        }
        state.running = true;
        state.written = 0;
        state.failed = 0;
        drop(state);
        self.0.drain_later();
    }

    /// Has the drain stop soon, and lets pages be put again.
    ///
    /// Returns at once. Any context.
    pub(crate) fn stop(&self) {
        self.drainer().state.lock().stop = true;
        self.drainer().closed.store(false, Release);
        self.drainer().changed.notify_all();
    }

    /// Returns whether no swapped pages are put, because of a drain. Any context.
    pub(crate) fn is_closed(&self) -> bool {
        self.drainer().closed.load(Relaxed)
    }

    /// Returns the context of the device that is drained.
    pub(in crate::hooks) fn context(&self) -> &Context {
        &self.0
    }

    /// Returns how far the drain is. Any context.
    pub(crate) fn progress(&self) -> Progress {
        let left = self.0.client.pages(Pool::Frontswap).load(Relaxed);
        let state = self.drainer().state.lock();

        Progress {
            running: state.running,
            left,
            written: state.written,
            failed: state.failed,
        }
    }

    /// Drains all, as [`Self::start()`], and waits for the end.
    ///
    /// `EBUSY` if some pages could not be written: they are where they were. `ECANCELED` if somebody
    /// else stopped it. `EINTR` if it is `interruptible` and there was a signal; then it is stopped,
    /// and pages are put again. Sleeps, for as long as the disk and the host need.
    pub(crate) fn run_to_end(&self, interruptible: bool) -> Result {
        self.start();
        let drainer = self.drainer();
        let mut state = drainer.state.lock();

        while state.running {
            if !interruptible {
                drainer.changed.wait(&mut state);
            } else if drainer.changed.wait_interruptible(&mut state) {
                drop(state);
                self.stop();
                return Err(EINTR);
            }
        }
        match state.end {
            End::Done => Ok(()),
            End::Left(_) => Err(EBUSY),
            End::Stopped => Err(ECANCELED),
        }
    }
}
