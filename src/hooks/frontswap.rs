// SPDX-License-Identifier: GPL-2.0

//! Swapped pages: put when they are written to a swap area, got when they are read from it.
//!
//! There are two front-ends of one thing. The [transparent](transparent) one serves any swap area, by
//! hooks, where this kernel has what they need. The other one is [block devices](device) to swap to,
//! which need none. Each page is served by one of the two: what is swapped to such a device is left
//! alone by the hooks.
//!
//! If the host takes all pages of a [request] they are nowhere else, unless whatever is put is
//! written through to the swap area. If it refuses some, the whole request goes to the swap area as
//! if nothing had happened, and the host forgets the rest. A page stays in the host until its slot
//! in the swap area is freed or written again, or until it is [drained](drain) to its slot.

mod areas;
mod builder;
mod device;
mod drain;
mod inline;
mod iocb;
mod read;
mod request;
mod transparent;

use self::{
    iocb::Iocb,
    read::{
        read,
        read_whole,
        Patience, //
    },
    request::{
        Queues,
        Request, //
    },
};

pub(super) use self::drain::Drainer;
pub(crate) use self::{
    device::{
        Devices,
        Submitted, //
    },
    drain::Drain, //
};

use super::{
    Answers,
    Client,
    Entered,
    Gets,
    Origin,
    PageOf, //
};

/// What serves swapped pages of a client.
pub(super) struct Hooks {
    transparent: Option<transparent::Hooks>,
}

impl Hooks {
    /// Hooks swapping, as far as this kernel has the hook points. May sleep.
    pub(super) fn install(client: &Client) -> Self {
        Self {
            transparent: transparent::Hooks::install(client).ok(),
        }
    }

    /// Returns whether all swap areas are served.
    pub(super) fn is_transparent(&self) -> bool {
        self.transparent.is_some()
    }
}

/// A request of the kernel's for swapped pages, whichever way it came.
#[derive(Clone, Copy)]
pub(crate) enum Asker {
    /// By a hook.
    Iocb(Iocb),
    /// By a block device of our own.
    Bio(Submitted),
}

impl Asker {
    /// Takes the outcome of a batch. Any context.
    pub(super) fn done(self, answers: &Answers<'_, PageOf>) {
        match self {
            Self::Iocb(request) => request.done(answers),
            Self::Bio(request) => request.done(answers),
        }
    }

    /// Returns whether it is to be written.
    pub(super) fn is_write(&self) -> bool {
        match self {
            Self::Iocb(request) => request.is_write(),
            Self::Bio(request) => request.is_write(),
        }
    }

    /// Has a batch of it not be waited for: then all of it goes to the swap area. Sleeps.
    pub(super) fn leave(self) {
        match self {
            Self::Iocb(request) => request.leave(),
            Self::Bio(request) => request.leave(),
        }
    }
}

/// The requests that wait for somebody who may sleep, or for the host.
pub(super) struct Waiting {
    iocbs: Queues<Iocb>,
    bios: Queues<Submitted>,
}

impl Waiting {
    pub(super) const fn new() -> Self {
        Self {
            iocbs: Queues::new(),
            bios: Queues::new(),
        }
    }

    /// Ends those that wait for somebody who may sleep. Sleeps.
    pub(super) fn finish(&self, context: &Entered) {
        self.iocbs.finish(context);
        self.bios.finish(context);
    }

    /// Reads those that wait for the host from there, or wherever their pages are by now. Sleeps.
    pub(super) fn read(&self, context: &Entered) {
        self.iocbs
            .for_each_to_host(|request| read(context, request, Patience::Endless));
        // What is not there any more was drained, and is read from where it was drained to.
        self.bios
            .for_each_to_host(|request| read_whole(context, request, true, Patience::Endless));
    }
}
