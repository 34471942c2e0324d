// SPDX-License-Identifier: GPL-2.0

//! Requests that the device has, as far as the driver may know of them meanwhile.
//!
//! The memory of a request belongs to the device until it comes back. Two things have to be known
//! all the same: since when the device has it, and, should it fall silent, who can go on without
//! it. So each request has a place here for as long as it is in flight.
//!
//! ```text
//!                 depart()                 leave()
//!   Free ───────────────────► InFlight ─────────────► Leaving ────────► Left
//!     ▲                          │                       │                │
//!     │         arrive()         │              arrive() │                │ arrive()
//!     └──────────────────────────┘                       ▼                │
//!     └──────────────────────────────────────────────── Back ◄────────────┘
//! ```

use kernel::{
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        SpinLockIrq, //
    },
};

use super::{
    logic::watchdog::InFlight,
    request::{
        Blank,
        Origin,
        Record,
        Request, //
    },
};

/// Whose turn it is with a request that can be left behind.
enum Turn<O: Origin> {
    /// Nobody's: there is none, or it cannot be left.
    Nobodys,
    /// The device has it.
    InFlight(KBox<Record<O>>),
    /// The device has it, and whoever asked is being told to go on.
    Leaving,
    /// The device has it, and whoever asked has gone on.
    Left(KBox<Record<O>>),
    /// It came back while whoever asked was being told.
    Back(KBox<Request<O>>, usize),
}

/// One request in flight.
#[pin_data]
struct Flight<O: Origin> {
    /// The number of the flight, or 0 while there is none.
    serial: Atomic<u64>,
    /// Where the request is, and how many had been added there before it.
    queue: Atomic<usize>,
    before: Atomic<u64>,
    #[pin]
    turn: SpinLockIrq<Turn<O>>,
}

/// All requests in flight, by their place.
pub(super) struct Flights<O: Origin> {
    flights: KVec<Pin<KBox<Flight<O>>>>,
    last: Atomic<u64>,
}

/// What there is to be done about a request that came back.
pub(super) enum Arrival<O: Origin> {
    /// To look at the answer.
    Answer(Blank<O>),
    /// Nothing: whoever is telling the one who asked will.
    Later,
}

impl<O: Origin> Flights<O> {
    /// Makes room for `total` requests. May sleep.
    pub(super) fn new(total: usize) -> Result<Self> {
        let mut flights = KVec::with_capacity(total, GFP_KERNEL)?;

        for _ in 0..total {
            flights.push(
                KBox::pin_init(
                    pin_init!(Flight {
                        serial: Atomic::new(0),
                        queue: Atomic::new(0),
                        before: Atomic::new(0),
                        turn <- new_spinlock_irq!(Turn::Nobodys, "Flight::turn"),
                    }),
                    GFP_KERNEL,
                )?,
                GFP_KERNEL,
            )?;
        }
        Ok(Self {
            flights,
            last: Atomic::new(0),
        })
    }

    /// Takes note of a request that is about to go into a virtqueue, to which `added` were added
    /// before. Any context.
    pub(super) fn depart(&self, blank: Blank<O>, queue: usize, added: u64) -> KBox<Request<O>> {
        let Blank {
            mut request,
            record,
        } = blank;
        let Some(flight) = self.flights.get(request.place) else {
            request.record = Some(record);
            return request;
        };

        flight.queue.store(queue, Relaxed);
        flight.before.store(added, Relaxed);
        if record.origin.as_ref().is_some_and(Origin::can_leave) {
            *flight.turn.lock() = Turn::InFlight(record);
        } else {
            request.record = Some(record);
        }
        let serial = self.last.fetch_add(1, Relaxed).wrapping_add(1);
        flight.serial.store(serial, Release);
        request
    }

    /// Takes note of a request that came back, used or not. Any context.
    pub(super) fn arrive(&self, mut request: KBox<Request<O>>, written: usize) -> Arrival<O> {
        let flight = self.flights.get(request.place);

        if let Some(flight) = flight {
            flight.serial.store(0, Relaxed);
        }
        if let Some(record) = request.record.take() {
            return Arrival::Answer(Blank { request, record });
        }
        let Some(mut turn) = flight.map(|flight| flight.turn.lock()) else {
            return Arrival::Later;
        };
        match core::mem::replace(&mut *turn, Turn::Nobodys) {
            Turn::InFlight(record) | Turn::Left(record) => {
                Arrival::Answer(Blank { request, record })
            }
            _ => {
                *turn = Turn::Back(request, written);
                Arrival::Later
            }
        }
    }

    /// Lets whoever asked for the request in a place go on, if he can.
    ///
    /// Returns the request, and how many bytes the device claims to have written, if it came back
    /// meanwhile. Process context; may sleep.
    pub(super) fn leave(&self, place: usize) -> Option<(Blank<O>, usize)> {
        let flight = self.flights.get(place)?;
        let mut record = {
            let mut turn = flight.turn.lock();

            match core::mem::replace(&mut *turn, Turn::Leaving) {
                Turn::InFlight(record) => record,
                other => {
                    *turn = other;
                    return None;
                }
            }
        };

        record.leave();

        let mut turn = flight.turn.lock();
        match core::mem::replace(&mut *turn, Turn::Nobodys) {
            Turn::Back(request, written) => Some((Blank { request, record }, written)),
            _ => {
                *turn = Turn::Left(record);
                None
            }
        }
    }

    /// Returns what the watchdog has to know of a place; `notified` says of how many that were
    /// added to a virtqueue the device has been told. Any context.
    pub(super) fn look(&self, place: usize, notified: impl Fn(usize) -> u64) -> Option<InFlight> {
        let flight = self.flights.get(place)?;
        let serial = flight.serial.load(Acquire);

        (serial != 0).then(|| InFlight {
            serial,
            told: notified(flight.queue.load(Relaxed)) > flight.before.load(Relaxed),
        })
    }

    /// Returns how many places there are.
    pub(super) fn places(&self) -> usize {
        self.flights.len()
    }
}
