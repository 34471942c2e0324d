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
    request::{
        Origin,
        Page,
        Request, //
    },
    Client,
    Pool, //
};

/// What has come back.
struct Answer<O: Origin> {
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
                Answer { request: None, closed: false },
                "Control::answer"
            ),
            came_back <- new_condvar!("Control::came_back"),
        })
    }

    /// Takes the request back. Any context.
    pub(super) fn done(&self, request: KBox<Request<O>>, written: Option<usize>) {
        let old = self.answer.lock().request.replace((request, written));

        self.came_back.notify_all();
        drop(old);
    }

    /// Lets nobody wait any more. Any context.
    pub(super) fn close(&self) {
        self.answer.lock().closed = true;
        self.came_back.notify_all();
    }
}

impl<O: Origin> Client<O> {
    /// Creates a pool, in the place of one that an earlier driver may have left there.
    ///
    /// May sleep, but not for longer than the device is given time for.
    pub(crate) fn create_pool(&self, pool: Pool) -> Result {
        let number = pool.number();

        match self.control(Opcode::PoolDestroy, number, &[])? {
            Status::Ok | Status::NoPool => (),
            status => return Err(refused("destroy", number, status)),
        }

        let flags = match pool {
            Pool::Frontswap => pool_flags::PERSISTENT,
            Pool::Cleancache => 0,
        };
        let create = PoolCreate {
            flags: Le32::new(flags),
            page_shift: kernel::page::PAGE_SHIFT as u8,
            reserved: [0; 11],
            uuid: [0; 16],
        };
        match self.control(Opcode::PoolCreate, number, create.as_bytes())? {
            Status::Ok => Ok(()),
            status => Err(refused("create", number, status)),
        }
    }

    fn control(&self, opcode: Opcode, pool: u32, entry: &[u8]) -> Result<Status> {
        let _turn = self.control.turn.lock();
        let queue = usize::from(QUEUE_CONTROL);
        let epoch = self.epoch.load(kernel::sync::atomic::Relaxed);

        let mut request = Request::new()?;
        request.begin(opcode, pool, epoch, 0)?;
        if !entry.is_empty() {
            request.push_entry(entry, Page::default())?;
        }
        // There are no results.
        request
            .frame
            .set_answer_len(size_of::<virtio_tmem_abi::ResponseHeader>());
        request.seal();
        self.queues
            .submit(queue, request, Notify::Now)
            .map_err(|_| ENODEV)?;

        let mut answer = self.control.answer.lock();
        let mut patience = self.timeout;
        loop {
            if let Some((request, written)) = answer.request.take() {
                drop(answer);
                let Some((status, news)) = written.and_then(|w| request.status(w)) else {
                    pr_err!("the host's answer to {:?} makes no sense\n", opcode);
                    return Err(EPROTO);
                };

                self.heed(&news);
                return Ok(status);
            }
            if answer.closed {
                return Err(ENODEV);
            }
            patience = match self
                .control
                .came_back
                .wait_interruptible_timeout(&mut answer, patience)
            {
                CondVarTimeoutResult::Woken { jiffies } => jiffies.max(1),
                CondVarTimeoutResult::Timeout => {
                    pr_err!("the host does not answer: is it up, and is its virtqueue served?\n");
                    return Err(ETIMEDOUT);
                }
                CondVarTimeoutResult::Signal { .. } => return Err(EINTR),
            };
        }
    }
}

fn refused(what: &str, pool: u32, status: Status) -> Error {
    pr_err!("the host does not {what} pool {pool}: {status:?}\n");
    match status {
        Status::NotAllowed => EPERM,
        Status::NoMemory => ENOMEM,
        Status::Unsupported => ENODEV,
        _ => EPROTO,
    }
}
