// SPDX-License-Identifier: GPL-2.0

//! Hibernation.
//!
//! The image of memory that the machine goes on from names pages that the host has: but hours later,
//! and perhaps on another host, nobody has them. So nothing is put from before the image is made
//! until the machine has gone on, swapped pages are drained, and clean ones are forgotten. An image is
//! not made if some pages are left that only the host has.
//!
//! Swap slots for the image are taken from the same area, and written without a hook noticing. The
//! drain is over before the first of them is.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

use crate::{
    bindings::pm::{
        Event,
        Handler, //
    },
    client::Pool, //
};

use super::Drain;

/// What is told of hibernation.
pub(super) struct Power {
    /// Whether nothing was put before.
    closed: Atomic<bool>,
}

impl Power {
    pub(super) const fn new() -> Self {
        Self {
            closed: Atomic::new(false),
        }
    }

    fn prepare(&self, drain: &Drain) -> Result {
        let client = &drain.context().client;

        self.closed.store(drain.is_closed(), Relaxed);
        client.quiesce();
        client.forget(Pool::Cleancache);
        drain.run_to_end(true).inspect_err(|&error| {
            let left = drain.progress().left;

            if error != EINTR {
                pr_err!(
                    "no hibernation: {left} swapped pages are only in the host, and could not be \
                     written to their swap areas: swapoff first, or see what the log says about \
                     the disk or the host\n"
                );
            }
            self.go_on(drain);
        })
    }

    fn go_on(&self, drain: &Drain) {
        if !self.closed.load(Relaxed) {
            drain.stop();
        }
        drain.context().client.go_on();
    }
}

impl Handler for Power {
    fn notify(&self, event: Event) -> Result {
        let Some(drain) = Drain::get() else {
            return Ok(());
        };

        match event {
            Event::HibernationPrepare => self.prepare(&drain)?,
            Event::HibernationOver => self.go_on(&drain),
            // Memory stays as it is; or it is another kernel's.
            Event::SuspendPrepare
            | Event::SuspendOver
            | Event::RestorePrepare
            | Event::RestoreFailed => (),
        }
        Ok(())
    }
}
