// SPDX-License-Identifier: GPL-2.0

//! Where in the kernel pages come from, and go to.
//!
//! The hooks are functions that the kernel calls with nothing of the driver's; so they find what
//! they need in one place, the [`Context`], of which there is at most one. It is there before the
//! first hook is, and until nobody can be inside any hook any more: see [`context::teardown`].
//!
//! Swapped pages may outlive their device. Then the hooks of frontswap, the context and the client
//! stay, so that whoever wants such a page gets an error, and not what happens to be in the swap
//! area. They go when the last such page is gone.

mod cleancache;
mod context;
mod filesystem;
mod folio;
mod frontswap;
mod ftrace;
mod left_behind;
mod points;
mod power;
mod seat;
mod symbol;
mod volumes;

use crate::client::{
    self,
    Answers, //
};

use self::context::{
    Context,
    Entered, //
};

pub(crate) use self::{
    frontswap::{
        Devices,
        Drain, //
    },
    left_behind::Teardown,
    seat::{
        Hooks,
        Seat, //
    },
};

/// Gets, with this module's origins.
type Gets<'a> = client::Gets<'a, Origin>;

/// The client, with this module's origins.
pub(crate) type Client = client::Client<Origin>;

/// Who asked the client for something.
pub(crate) enum Origin {
    /// A swap request.
    Swap(frontswap::Asker),
    /// A readahead.
    Readahead,
    /// Somebody who waits.
    Waiter(cleancache::Waiter),
    /// What drains swapped pages.
    Drain,
    /// Nobody any more: folios that the host may still write to.
    Left(cleancache::Left),
}

/// What whoever asked has to know about a page.
#[derive(Clone, Copy, Default)]
pub(crate) enum PageOf {
    /// Nothing.
    #[default]
    Any,
    /// Which folio of the swap request it belongs to, or which page of what is being drained it is.
    Place(u8),
    /// Which folio of the readahead.
    Folio(cleancache::Reading),
}

impl client::Origin for Origin {
    type Page = PageOf;

    fn done(self, answers: &Answers<'_, PageOf>) {
        match self {
            Self::Swap(request) => request.done(answers),
            Self::Readahead => cleancache::Reading::done(answers),
            Self::Waiter(waiter) => waiter.done(answers),
            Self::Left(left) => left.done(answers),
            Self::Drain => {
                if let Some(context) = Context::get() {
                    context.drain.done(answers);
                }
            }
        }
    }

    fn shrink(pages: u64) {
        if let Some(drain) = Drain::get() {
            drain.shrink(pages);
        }
    }

    fn can_leave(&self) -> bool {
        match self {
            Self::Swap(request) => request.is_write(),
            Self::Readahead => true,
            Self::Waiter(waiter) => waiter.can_leave(),
            Self::Left(_) | Self::Drain => false,
        }
    }

    fn leave(self, pages: &mut dyn Iterator<Item = PageOf>) -> Option<Self> {
        match self {
            Self::Swap(request) if request.is_write() => {
                request.leave();
                None
            }
            Self::Readahead => Some(Self::Left(cleancache::Left::readahead(pages))),
            Self::Waiter(waiter) => Some(Self::Left(waiter.leave(pages))),
            other => Some(other),
        }
    }
}
