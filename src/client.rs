// SPDX-License-Identifier: GPL-2.0

//! The client: pages under keys, put to and got from the device.
//!
//! Those above name an object by a tag and a page by its index, and borrow the client pages to
//! copy from and to. The client decides whether the device is asked at all: its index says what the
//! device has, its credits what the device would take. It knows nothing of where pages come from,
//! or what happens to them afterwards.
//!
//! ```text
//! put of a page that waits      Batch ──► Request ──► virtqueue ──► Handler::done ──► Origin
//! put of a page that does not   Staging ──► (pump thread) ──► Request ──► …
//! get                           index, then as the first; whoever gets polls for a while
//! flush                         index; the device learns of it from the pump thread
//! ```

mod admission;
mod batch;
mod control;
mod counters;
mod credits;
mod gets;
mod half;
mod lanes;
pub(crate) mod logic;
mod pump;
mod request;
mod staging;
mod stored;

use kernel::{
    new_work,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    workqueue::{
        self,
        impl_has_work,
        Work, //
    },
    ThisModule, //
};
use virtio_tmem_abi::{
    Config,
    Event,
    EventKind,
    Opcode,
    Status,
    QUEUE_CONTROL,
    QUEUE_EVENT, //
};
use zerocopy::FromBytes;

use crate::{
    bindings::{
        thread::Bell,
        trace,
        work::OwnedQueue, //
    },
    virtio::{
        frame::MAX_PAGES,
        queue::{
            Handler,
            Notify,
            Queues, //
        },
    },
};

use self::{
    admission::Admission,
    control::Control,
    gets::Polling,
    half::Half,
    request::{
        News,
        Outcomes,
        Request,
        RequestPool, //
    },
    staging::Staging, //
};

pub(crate) use self::{
    batch::{
        Batch,
        Stop, //
    },
    gets::Gets,
    half::Pool,
    lanes::Lanes,
    request::{
        Answers,
        Origin,
        Outcome, //
    },
};

/// How many requests may be in the virtqueues at once.
const REQUESTS: usize = 64;

/// How many requests staged puts and flushes leave to those who wait for theirs.
const RESERVE: usize = 16;

/// How many events the device may have to tell at once.
const EVENTS: usize = 8;

/// What the client is told when it is made.
pub(crate) struct Limits {
    /// The most pages that each pool may have.
    pub(crate) max_pages: u64,
    /// Pages of staging memory.
    pub(crate) staging_pages: u32,
    /// How long the device may take to complete a request, in milliseconds.
    pub(crate) timeout_ms: u32,
    /// For how long at most to look for the answer to a get, before an interrupt has to tell of it,
    /// in microseconds.
    pub(crate) poll_us: u32,
    /// Pages of memory by which to judge which clean pages are worth being put, if that is done.
    pub(crate) admission: Option<u64>,
}

/// What state the device is in.
mod state {
    /// Nothing is put or got yet.
    pub(super) const NEW: u32 = 0;
    /// All works.
    pub(super) const RUNNING: u32 = 1;
    /// Nothing is put any more, but what is there can be got.
    pub(super) const STOPPING: u32 = 2;
    /// Nothing works any more.
    pub(super) const GONE: u32 = 3;
}

/// The client of one device.
#[pin_data]
pub(crate) struct Client<O: Origin> {
    queues: Arc<Queues<Self>>,
    lanes: Lanes,
    growth: Arc<OwnedQueue>,
    state: Atomic<u32>,
    epoch: Atomic<u64>,
    timeout: usize,
    polling: Polling,
    /// Pages, or flushes, in one request.
    max_pages: usize,
    max_flushes: usize,
    #[pin]
    requests: RequestPool<O>,
    #[pin]
    control: Control<O>,
    #[pin]
    staging: Staging,
    #[pin]
    frontswap: Half,
    #[pin]
    cleancache: Half,
    admission: Option<Admission>,
    bell: Bell,
    pump: pump::State,
    growing: Atomic<bool>,
    #[pin]
    grow: Work<Self>,
}

impl_has_work! {
    impl{O: Origin} HasWork<Self> for Client<O> { self.grow }
}

impl<O: Origin> Client<O> {
    /// Makes a client that talks over `queues` to the device that has `config`.
    ///
    /// May sleep.
    pub(crate) fn new(
        queues: Arc<Queues<Self>>,
        growth: Arc<OwnedQueue>,
        config: &Config,
        limits: &Limits,
        module: &'static ThisModule,
    ) -> Result<Arc<Self>> {
        let lanes = Lanes::new(config.data_queues.get().into());
        let max_pages = (config.max_pages.get() as usize).clamp(1, MAX_PAGES);
        let max_flushes = (config.max_flushes.get() as usize).clamp(1, MAX_PAGES);
        let timeout = kernel::time::msecs_to_jiffies(limits.timeout_ms) as usize;
        let polling = Polling::new(limits.poll_us);
        let staging_pages = limits.staging_pages;
        let pages = limits.max_pages;
        let epoch = config.epoch.get();

        let client = Arc::pin_init(
            try_pin_init!(Self {
                queues,
                lanes,
                growth,
                state: Atomic::new(state::NEW),
                epoch: Atomic::new(epoch),
                timeout: timeout.max(1),
                polling,
                max_pages,
                max_flushes,
                requests <- RequestPool::new(REQUESTS),
                control <- Control::new(),
                staging <- Staging::new(staging_pages, lanes.puts()),
                frontswap <- Half::new(Pool::Frontswap, pages, module),
                cleancache <- Half::new(Pool::Cleancache, pages, module),
                admission: limits.admission.map(Admission::new).transpose()?,
                bell: Bell::new(),
                pump: pump::State::new(),
                growing: Atomic::new(false),
                grow <- new_work!("Client::grow"),
            }? Error),
            GFP_KERNEL,
        )?;

        client.grow_index();
        Ok(client)
    }

    /// Gives the device buffers for its events.
    ///
    /// May sleep.
    pub(crate) fn listen(&self) -> Result {
        for _ in 0..EVENTS {
            let mut event = Request::new()?;

            event
                .frame
                .reset(size_of::<Event>(), crate::virtio::frame::Direction::Out);
            let queue = usize::from(QUEUE_EVENT);
            if self.queues.submit(queue, event, Notify::Later).is_err() {
                break;
            }
        }
        self.queues.kick(usize::from(QUEUE_EVENT));
        Ok(())
    }

    /// Lets puts happen from now on.
    pub(crate) fn run(&self) {
        self.state.store(state::RUNNING, Release);
    }

    /// Lets no put happen from now on, and ephemeral pages not be got.
    pub(crate) fn quiesce(&self) {
        let _ = self
            .state
            .cmpxchg(state::RUNNING, state::STOPPING, kernel::sync::atomic::Full);
    }

    /// Lets puts happen again after [`Self::quiesce()`], unless the device is gone.
    pub(crate) fn go_on(&self) {
        let _ = self
            .state
            .cmpxchg(state::STOPPING, state::RUNNING, kernel::sync::atomic::Full);
    }

    /// Returns whether pages may be put.
    pub(crate) fn running(&self) -> bool {
        self.state.load(Acquire) == state::RUNNING
    }

    /// Returns whether the device is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.state.load(Acquire) == state::GONE
    }

    /// Gives the device up: all requests fail, now and from now on.
    ///
    /// What only the device had is lost. Returns false if that happened before. May sleep.
    pub(crate) fn give_up(&self) -> bool {
        if self.state.xchg(state::GONE, kernel::sync::atomic::Full) == state::GONE {
            return false;
        }
        self.frontswap.credits.clear();
        self.cleancache.credits.clear();
        self.requests.close();
        self.control.close();
        self.queues.stop();
        // What is staged, and all that is ephemeral, is not there any more.
        self.staging.drain();
        self.forget(Pool::Cleancache);
        true
    }

    fn half(&self, pool: Pool) -> &Half {
        match pool {
            Pool::Frontswap => &self.frontswap,
            Pool::Cleancache => &self.cleancache,
        }
    }

    /// Returns the counters of a pool.
    pub(crate) fn counters(&self, pool: Pool) -> &counters::Counters {
        &self.half(pool).counters
    }

    /// Returns how many pages of a pool the index has.
    pub(crate) fn pages(&self, pool: Pool) -> &Atomic<u64> {
        self.half(pool).pages()
    }

    /// Returns how many pages wait to be sent, for a file.
    pub(crate) fn staged_pages(&self) -> &Atomic<usize> {
        self.staging.waiting_counter()
    }

    /// Returns how many more pages of a pool the device would take.
    pub(crate) fn credits(&self, pool: Pool) -> i64 {
        self.half(pool).credits.available()
    }

    /// Returns the virtqueues.
    pub(crate) fn queues(&self) -> &Queues<Self> {
        &self.queues
    }

    /// Returns how many of the pages at `index..index + n` can be got.
    ///
    /// Any context.
    pub(crate) fn present(&self, pool: Pool, tag: u64, index: u64, n: u64) -> u64 {
        let half = self.half(pool);

        if half.pages().load(Relaxed) == 0 {
            return 0;
        }
        half.shard(tag)
            .map_or(0, |s| s.contains_range(tag, index, n))
    }

    /// Forgets a page, so that it cannot be got any more.
    ///
    /// Any context.
    pub(crate) fn flush_page(&self, pool: Pool, tag: u64, index: u64) {
        let half = self.half(pool);
        let erased = half.shard(tag).and_then(|mut s| s.erase(tag, index));

        if erased.is_some() {
            half.counters.flushes.add(1);
            trace::flush(pool.number(), tag, index, 1);
            self.flush_later();
        }
    }

    /// Forgets the pages at `first..=last`, so that they cannot be got any more.
    ///
    /// Any context.
    pub(crate) fn flush_range(&self, pool: Pool, tag: u64, first: u64, last: u64) {
        let half = self.half(pool);
        let mut count = 0;
        let mut next = Some(first);

        while let Some(from) = next {
            let Some(mut shard) = half.shard(tag) else {
                break;
            };
            let erased = shard.erase_range(tag, from, last, |_| ());

            count += erased.count;
            next = erased.next;
        }
        if count > 0 {
            half.counters.flushes.add(count as usize);
            trace::flush(
                pool.number(),
                tag,
                first,
                count.min(u64::from(u32::MAX)) as u32,
            );
            self.flush_later();
        }
    }

    /// Forgets an object, its pages and its marks; its tag may be used again.
    ///
    /// Any context.
    pub(crate) fn flush_object(&self, pool: Pool, tag: u64) {
        let half = self.half(pool);

        if let Some(mut shard) = half.shard(tag) {
            let before = shard.stats().live;
            shard.drop_object(tag);
            half.counters
                .flushes
                .add(before.saturating_sub(shard.stats().live) as usize);
        }
        self.flush_later();
    }

    /// Returns the marks of an object.
    ///
    /// Any context.
    pub(crate) fn marks(&self, pool: Pool, tag: u64) -> u8 {
        self.half(pool).shard(tag).map_or(0, |s| s.flags(tag))
    }

    /// Adds marks to an object; they stay until the object is forgotten.
    ///
    /// Returns whether it has them now: they take memory that may not be there. Any context.
    pub(crate) fn mark(&self, pool: Pool, tag: u64, marks: u8) -> bool {
        let Some(mut shard) = self.half(pool).shard(tag) else {
            return false;
        };
        let marks = shard.flags(tag) | marks;
        let marked = shard.set_flags(tag, marks).is_ok();

        drop(shard);
        if !marked {
            self.want_growth();
        }
        marked
    }

    /// Forgets all pages of a pool, and does not tell the device.
    pub(crate) fn forget(&self, pool: Pool) {
        for mut shard in self.half(pool).shards() {
            shard.forget_all();
        }
    }

    /// Returns the virtqueue for puts and flushes of the object with this tag.
    fn put_queue(&self, tag: u64) -> usize {
        self.lanes.put(Half::shard_of(tag))
    }

    /// Takes note of what a response or an event said.
    fn heed(&self, news: &News) {
        self.frontswap.credits.set(news.persistent_credits);
        self.cleancache.credits.set(news.ephemeral_credits);

        let epoch = self.epoch.load(Relaxed);
        if epoch != news.epoch
            && self
                .epoch
                .cmpxchg(epoch, news.epoch, kernel::sync::atomic::Full)
                .is_ok()
        {
            pr_warn!("the host's epoch changed: its pages are not used any more\n");
            self.forget(Pool::Cleancache);
        }
    }

    /// Has the index grow soon.
    ///
    /// Any context.
    fn want_growth(&self) {
        if !self.growing.xchg(true, kernel::sync::atomic::Full) {
            self.bell.ring();
        }
    }

    /// Gives the index the memory that it wants.
    ///
    /// May sleep, and enters reclaim.
    fn grow_index(&self) {
        for half in [&self.frontswap, &self.cleancache] {
            for n in 0..half.shard_count() {
                half.grow_shard(n);
            }
        }
    }
}

impl<O: Origin> workqueue::WorkItem for Client<O> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.growing.store(false, Release);
        this.grow_index();
    }
}

impl<O: Origin> Handler for Client<O> {
    type Token = Request<O>;

    fn done(&self, queue: usize, request: KBox<Request<O>>, written: Option<usize>) {
        match queue as u16 {
            QUEUE_CONTROL => self.control.done(request, written),
            QUEUE_EVENT => self.event(request, written),
            _ => self.complete(queue, request, written),
        }
    }
}

impl<O: Origin> Client<O> {
    /// Takes an event, and gives its buffer back to the device.
    fn event(&self, mut buffer: KBox<Request<O>>, written: Option<usize>) {
        let Some(written) = written else {
            return;
        };

        if let Ok((event, _)) = Event::ref_from_prefix(buffer.frame.answer(written)) {
            let kind = EventKind::from_wire(event.kind.get());

            if kind == Some(EventKind::Shrink) {
                O::shrink(event.pages.get());
            }
            if kind.is_some() {
                self.heed(&News {
                    persistent_credits: event.persistent_credits.get(),
                    ephemeral_credits: event.ephemeral_credits.get(),
                    epoch: event.epoch.get(),
                });
            }
        }

        buffer
            .frame
            .reset(size_of::<Event>(), crate::virtio::frame::Direction::Out);
        // If the device does not take it, there are no more events to hear of.
        let _ = self
            .queues
            .submit(usize::from(QUEUE_EVENT), buffer, Notify::Now);
    }

    /// Takes a request about pages back, tells the index and whoever asked.
    fn complete(&self, queue: usize, mut request: KBox<Request<O>>, written: Option<usize>) {
        let count = request.count;
        let (status, mut outcomes, news) = match written {
            Some(written) => request.outcomes(written),
            None => (Status::Malformed, Outcomes::failed(count), None),
        };
        let code = written.map_or(0, |_| status.to_wire());

        trace::response(queue, request.opcode.to_wire(), count, code);
        if written.is_some() && status != Status::Ok {
            pr_warn_ratelimited(request.opcode, status);
        }
        if let Some(news) = news {
            // An answer from another epoch is about other pages.
            if news.epoch != self.epoch.load(Relaxed) {
                outcomes = Outcomes::failed(count);
            }
        }

        match request.opcode {
            Opcode::Put => self.put_done(&mut request, outcomes),
            Opcode::Get => self.get_done(&mut request, &mut outcomes),
            _ => (),
        }
        if let Some(news) = news {
            self.heed(&news);
        }
        request.tell(outcomes);
        self.requests.give(request);
        if self.staging.any() {
            self.bell.ring();
        }
    }
}

fn pr_warn_ratelimited(opcode: Opcode, status: Status) {
    // A device that answers so answers all requests so: once is enough.
    static SAID: Atomic<bool> = Atomic::new(false);

    if !SAID.xchg(true, kernel::sync::atomic::Full) {
        pr_warn!(
            "the host answers {:?} to {:?}: its pages are not used\n",
            status,
            opcode
        );
    }
}
