// SPDX-License-Identifier: GPL-2.0

//! Installing the hooks for a device, and removing them.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

use crate::{
    bindings::pm::Notifier,
    client::{
        self,
        Pool, //
    },
};

use super::{
    cleancache,
    context::{
        self,
        Context, //
    },
    frontswap,
    left_behind,
    power,
    Client,
    Drain, //
};

/// Whether a device has the hooks.
static TAKEN: Atomic<bool> = Atomic::new(false);

/// The right to install hooks, of which there is one.
pub(crate) struct Seat(());

impl Seat {
    /// Takes the right. May sleep.
    pub(crate) fn take() -> Result<Self> {
        if TAKEN.xchg(true, Full) {
            return Err(EBUSY);
        }
        let seat = Self(());

        if !left_behind::clear() {
            return Err(EBUSY);
        }
        Ok(seat)
    }

    /// Installs the hooks of the halves that are wanted.
    ///
    /// A half that this kernel has not got all hook points for is left off, and a line says which
    /// and why. May sleep.
    pub(crate) fn install(self, client: &Arc<Client>, wants: client::Wants) -> Result<Hooks> {
        Context::install(client)?;
        let mut hooks = Hooks {
            frontswap: None,
            cleancache: None,
            power: None,
            seat: self,
        };
        if wants.frontswap {
            let frontswap = frontswap::Hooks::install(client);

            if !frontswap.is_transparent() {
                pr_warn!(
                    "frontswap is on for tmswap devices only: this kernel lacks a hook point that it \
                     needs for other swap areas\n"
                );
            }
            hooks.frontswap = Some(KBox::new(frontswap, GFP_KERNEL)?);
        }
        if wants.cleancache {
            hooks.cleancache = cleancache::Hooks::install(client)
                .inspect_err(|_| {
                    pr_warn!("cleancache is off: this kernel lacks a hook point that it needs\n");
                })
                .ok();
        }
        hooks.power = Some(KBox::pin_init(
            Notifier::new(power::Power::new()),
            GFP_KERNEL,
        )?);
        Ok(hooks)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        TAKEN.store(false, Release);
    }
}

/// The hooks of a device.
pub(crate) struct Hooks {
    frontswap: Option<KBox<frontswap::Hooks>>,
    cleancache: Option<cleancache::Hooks>,
    power: Option<Pin<KBox<Notifier<power::Power>>>>,
    seat: Seat,
}

impl Hooks {
    /// Returns which swapped pages are put, in a few words.
    pub(crate) fn frontswap(&self) -> &'static str {
        match &self.frontswap {
            Some(hooks) if hooks.is_transparent() => "on",
            Some(_) => "on for tmswap devices",
            None => "off",
        }
    }

    /// Returns whether clean pages are put.
    pub(crate) fn cleancache(&self) -> bool {
        self.cleancache.is_some()
    }

    /// Has nothing be left that only the host has, as far as that can be. Sleeps.
    pub(crate) fn empty(&self) {
        let Some(drain) = Drain::get() else {
            return;
        };

        let result = loop {
            match drain.run_to_end(false) {
                // Whoever stopped it did not know what it is for.
                Err(error) if error == ECANCELED => (),
                result => break result,
            }
        };
        if let Err(error) = result {
            pr_err!(
                "{} swap pages could not be written to their swap areas ({error:?})\n",
                drain.progress().left
            );
        }
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        drop(self.power.take());
        // What puts goes first: the tracepoints. Nothing can be got from now on.
        drop(self.cleancache.take());
        // It was made before these hooks were, and goes below, or later.
        let Some(context) = Context::get() else {
            return;
        };
        context.client.quiesce();
        context.flush_work();
        drop(context.held_up.lock().take());
        let reads = core::mem::take(&mut *context.reads.lock());
        drop(reads);

        let pages = context.client.pages(Pool::Frontswap).load(Relaxed);
        drop(context);
        match self.frontswap.take() {
            Some(hooks) if pages > 0 => left_behind::keep(hooks),
            hooks => {
                drop(hooks);
                context::teardown();
            }
        }
        let _ = &self.seat;
    }
}
