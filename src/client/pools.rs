// SPDX-License-Identifier: GPL-2.0

//! Requests about pools, one at a time, by who waits for the answer.

use kernel::{
    new_condvar, new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{
        CondVar,
        CondVarTimeoutResult,
        Mutex,
        SpinLockIrq, //
    },
    time::msecs_to_jiffies,
};
use virtio_tmem_abi::{
    pool_flags,
    Le32,
    Opcode,
    PoolCreate,
    Status,
    QUEUE_CONTROL, //
};
use zerocopy::IntoBytes;

use crate::virtio::queue::Notify;

use super::{
    frame::Direction,
    logic::wire::{
        self,
        decode_control,
        RESPONSE_BYTES, //
    },
    request::{
        Origin,
        Request, //
    },
    Client,
    Pool,
    NO_PLACE, //
};

/// How long to wait for an answer at least, in milliseconds: a device that is started may take its
/// time.
const PATIENCE: u32 = 10_000;

/// What has come back.
struct Answer<O: Origin> {
    /// Where the request is that somebody waits for; zero while nobody does.
    awaited: usize,
    request: Option<(KBox<Request<O>>, Option<usize>)>,
    closed: bool,
}

/// The control virtqueue's one request.
#[pin_data]
pub(super) struct Control<O: Origin> {
    #[pin]
    turn: Mutex<()>,
    #[pin]
    answer: SpinLockIrq<Answer<O>>,
    #[pin]
    came_back: CondVar,
}

impl<O: Origin> Control<O> {
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            turn <- new_mutex!((), "Control::turn"),
            answer <- new_spinlock_irq!(
                Answer { awaited: 0, request: None, closed: false },
                "Control::answer"
            ),
            came_back <- new_condvar!("Control::came_back"),
        })
    }

    /// Takes a request back. Any context.
    ///
    /// One that came too late is of no interest any more: it answers another question than the one that
    /// is being asked now.
    pub(super) fn done(&self, request: KBox<Request<O>>, written: Option<usize>) {
        let mut answer = self.answer.lock();

        if answer.awaited == address_of(&request) {
            answer.awaited = 0;
            answer.request = Some((request, written));
            drop(answer);
            self.came_back.notify_all();
        }
    }

    /// Lets nobody wait any more. Any context.
    pub(super) fn close(&self) {
        self.answer.lock().closed = true;
        self.came_back.notify_all();
    }
}

impl<O: Origin> Client<O> {
    /// Returns the pools that there are to be.
    pub(super) fn pools(&self) -> impl Iterator<Item = Pool> + '_ {
        [
            (self.wants.frontswap, Pool::Frontswap),
            (self.wants.cleancache, Pool::Cleancache),
        ]
        .into_iter()
        .filter_map(|(wanted, pool)| wanted.then_some(pool))
    }

    /// Destroys the pools that an earlier driver may have left, and creates those that there are
    /// to be.
    ///
    /// May sleep, but not for longer than the device is given time for.
    pub(crate) fn begin_pools(&self) -> Result {
        let shared = (0u8..).take(self.volume_places()).map(Pool::Shared);
        let own = [Pool::Frontswap, Pool::Cleancache].into_iter();

        for pool in Iterator::chain(own, shared) {
            match self.ask(Opcode::PoolDestroy, pool, &[])? {
                Status::Ok | Status::NoPool => (),
                Status::StaleEpoch => return Err(ESTALE),
                status => return Err(refused("destroy", pool, status)),
            }
        }
        self.create_pools()
    }

    /// Creates the pools that there are to be; one that is there already keeps its pages.
    ///
    /// May sleep, but not for longer than the device is given time for.
    pub(super) fn create_pools(&self) -> Result {
        for pool in self.pools() {
            let persistent = match pool {
                Pool::Frontswap => pool_flags::PERSISTENT,
                Pool::Cleancache | Pool::Shared(_) => 0,
            };
            // Should the guest start another kernel, that one need not know of the pools.
            let released = if self.keeps {
                pool_flags::RELEASED_BY_RESET
            } else {
                0
            };
            let create = PoolCreate {
                flags: Le32::new(persistent | released),
                page_shift: kernel::page::PAGE_SHIFT as u8,
                reserved: [0; 11],
                uuid: [0; 16],
            };

            match self.ask(Opcode::PoolCreate, pool, create.as_bytes())? {
                Status::Ok => (),
                // There is another epoch to be taken over first.
                Status::StaleEpoch => return Err(ESTALE),
                status => return Err(refused("create", pool, status)),
            }
        }
        Ok(())
    }

    /// Destroys the pools, as far as the device does so in time.
    pub(super) fn destroy_pools(&self) {
        for pool in self.pools() {
            if self.ask(Opcode::PoolDestroy, pool, &[]).is_err() {
                return;
            }
        }
    }

    /// Asks for something about a pool, and waits for the answer.
    ///
    /// May sleep, but not for longer than the device is given time for.
    pub(super) fn ask(&self, opcode: Opcode, pool: Pool, entry: &[u8]) -> Result<Status> {
        let count = usize::from(!entry.is_empty());

        self.ask_with(opcode, pool, (count, entry), RESPONSE_BYTES)
            .map(|(status, ..)| status)
    }

    /// As [`Self::ask`], with a table of `count` entries, and room for an answer of `room` bytes.
    ///
    /// Returns the request, too, and how much of its answer was written.
    pub(super) fn ask_with(
        &self,
        opcode: Opcode,
        pool: Pool,
        (count, table): (usize, &[u8]),
        room: usize,
    ) -> Result<(Status, KBox<Request<O>>, usize)> {
        let _turn = self.control.turn.lock();
        let queue = usize::from(QUEUE_CONTROL);
        let epoch = self.epoch();
        let header = wire::header(opcode, 0, pool.number(), count, epoch);

        let mut request = Request::new(NO_PLACE)?;
        request.frame.reset(room, Direction::Out);
        request.frame.push_out(header.as_bytes())?;
        request.frame.push_out(table)?;

        // The memory of one that was waited for in vain is the virtqueue's until it comes back, so that
        // no other is in its place.
        let late = {
            let mut answer = self.control.answer.lock();

            answer.awaited = address_of(&request);
            answer.request.take()
        };
        drop(late);
        if self.queues.submit(queue, request, Notify::Now).is_err() {
            self.control.answer.lock().awaited = 0;
            return Err(ENODEV);
        }

        let mut answer = self.control.answer.lock();
        let mut patience = msecs_to_jiffies(self.timeout_ms.max(PATIENCE));
        loop {
            if let Some((request, written)) = answer.request.take() {
                drop(answer);
                // The virtqueues were stopped, if nothing was.
                let written = written.ok_or(ENODEV)?;
                let status = self.read_answer(opcode, epoch, &request, written)?;

                return Ok((status, request, written));
            }
            if answer.closed {
                answer.awaited = 0;
                return Err(ENODEV);
            }
            patience = match self
                .control
                .came_back
                .wait_interruptible_timeout(&mut answer, patience)
            {
                CondVarTimeoutResult::Woken { jiffies } => jiffies.max(1),
                // It came at the last moment.
                CondVarTimeoutResult::Timeout if answer.request.is_some() => 1,
                CondVarTimeoutResult::Timeout => {
                    answer.awaited = 0;
                    drop(answer);
                    pr_err!(
                        "the host does not answer {:?}: is it up, and is the guest's memory \
                         shared with it (share=on)?\n",
                        opcode
                    );
                    return Err(ETIMEDOUT);
                }
                CondVarTimeoutResult::Signal { .. } => {
                    answer.awaited = 0;
                    return Err(EINTR);
                }
            };
        }
    }

    fn read_answer(
        &self,
        opcode: Opcode,
        epoch: u64,
        request: &Request<O>,
        written: usize,
    ) -> Result<Status> {
        match decode_control(request.frame.answer(), written) {
            Ok(Some((status, state))) => {
                self.heed(&state, Some(epoch));
                Ok(status)
            }
            Ok(None) => {
                pr_err!(
                    "the host cannot read the guest's memory, or does not know {:?}: is the \
                     guest's memory shared with it (share=on)?\n",
                    opcode
                );
                Err(EIO)
            }
            Err(lie) => {
                self.accuse(&lie);
                Err(EPROTO)
            }
        }
    }
}

/// Returns where a request is, by which it is known while a virtqueue has it.
fn address_of<O: Origin>(request: &KBox<Request<O>>) -> usize {
    core::ptr::from_ref::<Request<O>>(request).addr()
}

fn refused(what: &str, pool: Pool, status: Status) -> Error {
    pr_err!(
        "the host does not {what} the pool of {:?}: {status:?}\n",
        pool
    );
    match status {
        Status::NotAllowed => EPERM,
        Status::NoMemory => ENOMEM,
        Status::Unsupported => ENODEV,
        _ => EPROTO,
    }
}
