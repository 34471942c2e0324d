// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtqueue: taking requests from it, and putting events on it.

use std::sync::{
    atomic::{fence, Ordering},
    Arc,
};

use serde::{Deserialize, Serialize};
use virtio_queue::{desc::split::Descriptor, Error, Queue, QueueOwnedT, QueueT};
use virtio_tmem_abi::Event;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::IntoBytes;

use super::{
    chain::{will_read, Parts},
    config::MAX_QUEUE_SIZE,
    eventfd::{Call, Kick},
    execute::{serve, Group, Pending, Scratch},
    memory::GuestMap,
    meter::Meter,
    polling::Polling,
    request::QueueKind,
    session::Session,
};
use crate::{prefetch::prefetch_to_write, store::PAGE_SIZE, tier::Wake};

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no interrupt, where there is no event index.
const NO_INTERRUPT: u16 = 1;

/// The steps of [`Ring::foresee`].
pub(super) const STEPS_AHEAD: usize = 4;

/// Bytes at the start of a request that are looked at ahead.
const AHEAD: usize = 128;

/// Requests that are taken from a virtqueue at once.
const MOST: usize = 16;

/// Where a virtqueue is, by the front-end's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingLayout {
    /// How many descriptors it has: a power of two, [`MAX_QUEUE_SIZE`] at most.
    pub size: u16,
    /// The address of the descriptor table.
    pub desc: u64,
    /// The address of the available ring.
    pub avail: u64,
    /// The address of the used ring.
    pub used: u64,
}

/// Why a virtqueue cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The size is not possible.
    #[error("{0} is no size for a virtqueue: it is a power of two, and at most {MAX_QUEUE_SIZE}")]
    Size(u16),
    /// It is not, or not all of it, in the memory that is shared.
    #[error("it is not in the memory that is shared")]
    OutOfReach,
    /// Its parts are not aligned, or cannot be used for another reason.
    #[error("{0}")]
    Queue(#[from] Error),
}

/// What is put on a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingKind {
    /// Requests.
    Requests(QueueKind),
    /// Buffers for events.
    Events,
}

impl RingKind {
    fn name(self) -> &'static str {
        match self {
            Self::Requests(QueueKind::Control) => "control",
            Self::Requests(QueueKind::Data) => "data",
            Self::Events => "event",
        }
    }
}

/// What became of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There is nothing more to do.
    Empty,
    /// There may be more to do.
    More,
    /// There is nothing to do until pages have arrived, at which the virtqueue is woken.
    Waiting,
    /// The guest broke the virtqueue, and may notify again.
    Broken,
    /// The guest's memory cannot be had.
    Failed,
}

/// Memory that a thread uses for the requests of one virtqueue after the other.
#[derive(Default)]
pub(super) struct Buffers {
    scratch: Scratch,
    /// At least as many as are needed for a group, once they were.
    spare: Vec<Parts<'static>>,
    group: Vec<Parts<'static>>,
}

/// A virtqueue that runs.
///
/// # Invariants
///
/// `layout` was translated by `map`, and all of it lies within that.
pub(super) struct Ring {
    pub(super) session: Arc<Session>,
    pub(super) kind: RingKind,
    layout: RingLayout,
    map: Arc<GuestMap>,
    queue: Queue,
    pub(super) kick: Option<Kick>,
    call: Option<Call>,
    pub(super) polling: Polling,
    /// Has the virtqueue be looked at again.
    wake: Option<Wake>,
    /// The request that was left in the middle, and its first descriptor.
    pending: Option<(u16, Box<Pending>)>,
    /// The driver was told that it need not notify.
    quiet: bool,
    /// The used index at which it was last decided whether to interrupt the driver.
    told: u16,
}

/// What a virtqueue is made of.
pub(super) struct RingParts {
    pub(super) session: Arc<Session>,
    pub(super) kind: RingKind,
    pub(super) layout: RingLayout,
    pub(super) map: Arc<GuestMap>,
    pub(super) event_idx: bool,
    pub(super) kick: Option<Kick>,
    pub(super) call: Option<Call>,
    pub(super) polling: Polling,
}

impl Ring {
    /// Makes a virtqueue that goes on at available index `base`. Without one it goes on where the
    /// used ring ends: what was available then and not used is carried out, again if it was
    /// carried out before.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub(super) fn new(parts: RingParts, base: Option<u16>) -> Result<Self, RingError> {
        let mut queue = queue(&parts.layout, &parts.map)?;
        queue.set_event_idx(parts.event_idx);
        let used = queue.used_idx(parts.map.mem(), Ordering::Acquire)?.0;
        queue.set_next_used(used);
        queue.set_next_avail(base.unwrap_or(used));
        Ok(Self {
            session: parts.session,
            kind: parts.kind,
            layout: parts.layout,
            map: parts.map,
            queue,
            kick: parts.kick,
            call: parts.call,
            polling: parts.polling,
            wake: None,
            pending: None,
            quiet: false,
            told: used,
        })
    }

    /// The guest's memory is elsewhere.
    ///
    /// # Errors
    ///
    /// [`RingError`]: the virtqueue is in the memory that it was in, and must not be used any more.
    pub(super) fn move_to(&mut self, map: Arc<GuestMap>) -> Result<(), RingError> {
        let mut moved = queue(&self.layout, &map)?;
        moved.set_event_idx(self.queue.event_idx_enabled());
        moved.set_next_used(self.queue.next_used());
        moved.set_next_avail(self.queue.next_avail());
        (self.queue, self.map) = (moved, map);
        // What the driver was told, it was told in memory that may be another now.
        self.quiet = false;
        Ok(())
    }

    /// Says whether the event index is used.
    pub(super) fn set_event_idx(&mut self, event_idx: bool) {
        self.queue.set_event_idx(event_idx);
        self.quiet = false;
    }

    /// Says what to interrupt the driver by.
    pub(super) fn set_call(&mut self, call: Option<Call>) {
        self.call = call;
    }

    /// Says what has the virtqueue looked at again when pages have arrived.
    pub(super) fn set_wake(&mut self, wake: Wake) {
        self.wake = Some(wake);
    }

    /// Ends it, and returns the available index at which it goes on.
    pub(super) fn stop(mut self) -> u16 {
        if self.is_untold() {
            fence(Ordering::SeqCst);
            self.tell();
        }
        self.abandon();
        self.queue.next_avail()
    }

    fn abandon(&mut self) {
        if let Some((_, pending)) = self.pending.take() {
            pending.abandon(&self.session.store);
        }
    }

    /// Returns whether an access to the guest's memory failed.
    pub(super) fn has_failed(&self) -> bool {
        self.map.watch().fault().is_some()
    }

    /// Returns why the guest cannot be served any more, if it cannot.
    pub(super) fn failure(&self) -> Option<String> {
        self.map.failure()
    }

    /// Returns whether there is something to do, as far as can be seen at a glance.
    pub(super) fn has_more(&self) -> bool {
        if self.pending.is_some() || self.kind == RingKind::Events {
            return self.pending.is_some();
        }
        let available = self.queue.avail_idx(self.map.mem(), Ordering::Acquire);
        // What is wrong is found out by who serves it.
        available.map_or(true, |index| index.0 != self.queue.next_avail())
    }

    /// Returns whether the driver may wait for an interrupt that is due.
    pub(super) fn is_untold(&self) -> bool {
        self.queue.next_used() != self.told
    }

    /// Interrupts the driver if something that it waits for was used since this was asked last. The
    /// caller made a fence since, which is not cheap: one does for many virtqueues.
    pub(super) fn tell(&mut self) {
        let mem = self.map.mem();
        tell(
            &self.session,
            &self.queue,
            &mut self.told,
            self.call.as_ref(),
            mem,
        );
    }

    /// Has the processor fetch what [`Self::has_more`] looks at.
    pub(super) fn foresee_more(&self) {
        let index = GuestAddress(self.queue.avail_ring());
        will_read_guest(self.map.mem(), index, 4);
    }

    /// Has the driver notify of what it makes available from now on. Returns whether there is
    /// something to do already.
    pub(super) fn sleep(&mut self) -> bool {
        if self.kind == RingKind::Events {
            return false;
        }
        self.quiet = false;
        let more = self.queue.enable_notification(self.map.mem());
        more.unwrap_or(false)
    }

    /// Has the processor fetch what the first request consists of, one step of several: each step
    /// leads to the next, from the available ring over the descriptors to the request. The last
    /// one is `left` = 1, shortly before its turn; there are [`STEPS_AHEAD`].
    ///
    /// Requests of one virtqueue are looked at together, and the processor fetches for all of them
    /// what each leads to. Those of many guests come one by one, and would be waited for at each
    /// step.
    pub(super) fn foresee(&self, left: usize) {
        if self.pending.is_some() || self.kind == RingKind::Events {
            return;
        }
        let (mem, queue) = (self.map.mem(), &self.queue);
        let slot = u64::from(queue.next_avail() % queue.size());
        let slot = GuestAddress(queue.avail_ring().wrapping_add(4 + 2 * slot));
        if left >= STEPS_AHEAD {
            let used = u64::from(queue.next_used() % queue.size());
            let used = queue.used_ring().wrapping_add(4 + 8 * used);
            for at in [queue.used_ring(), used] {
                if let Ok(slice) = mem.get_slice(GuestAddress(at), 4) {
                    prefetch_to_write(slice.ptr_guard().as_ptr());
                }
            }
            return will_read_guest(mem, slot, size_of::<u16>());
        }
        // What it says is read again by who depends on it.
        let Ok(head) = mem.read_obj::<u16>(slot) else {
            return;
        };
        let offset = u64::from(u16::from_le(head)) * DESCRIPTOR as u64;
        let at = GuestAddress(queue.desc_table().wrapping_add(offset));
        if left == STEPS_AHEAD - 1 {
            return will_read_guest(mem, at, DESCRIPTOR);
        }
        let Ok(mut first) = mem.read_obj::<Descriptor>(at) else {
            return;
        };
        if left == 1 && first.refers_to_indirect_table() {
            match mem.read_obj::<Descriptor>(first.addr()) {
                Ok(within) => first = within,
                Err(_) => return,
            }
        }
        let len = (first.len() as usize).min(TABLE);
        will_read_guest(mem, first.addr(), len.min(AHEAD));
    }

    /// Does what there is to do, as far as the meter allows.
    pub(super) fn turn(&mut self, buffers: &mut Buffers, meter: &mut Meter) -> Outcome {
        let done = match self.kind {
            RingKind::Requests(kind) => self.serve(kind, buffers, meter),
            RingKind::Events => self.send_events(meter),
        };
        // Whatever else was seen was seen in memory that cannot be had.
        if self.map.watch().fault().is_some() {
            self.abandon();
            return Outcome::Failed;
        }
        done.unwrap_or_else(|error| {
            self.abandon();
            self.session.note_ring_error(self.kind.name(), &error);
            Outcome::Broken
        })
    }

    /// Serves requests.
    fn serve(
        &mut self,
        kind: QueueKind,
        buffers: &mut Buffers,
        meter: &mut Meter,
    ) -> Result<Outcome, Error> {
        let Self {
            session,
            map,
            queue,
            call,
            pending,
            quiet,
            told,
            wake,
            ..
        } = self;
        let (mem, watch) = (map.mem(), map.watch());
        if !*quiet {
            queue.disable_notification(mem)?;
            *quiet = true;
        }
        let Buffers {
            scratch,
            spare,
            group,
        } = buffers;
        while !meter.is_spent() {
            let mut chains = [const { None }; MOST];
            let mut count = 0;
            let table = queue.desc_table();
            // In this order, so that no more are taken than there are places.
            for (place, chain) in chains.iter_mut().zip(queue.iter(mem)?) {
                *place = Some(chain);
                count += 1;
            }
            if count == 0 {
                return Ok(Outcome::Empty);
            }
            // Whoever waits for what was used before does not wait for these.
            if *told != queue.next_used() {
                fence(Ordering::SeqCst);
                tell(session, queue, told, call.as_ref(), mem);
            }
            let mut parts: Vec<Parts<'_>> = std::mem::take(group);
            let least = pending.as_ref().map_or(0, |(_, pending)| pending.count());
            read(
                &chains[..count],
                table,
                mem,
                least,
                meter,
                spare,
                &mut parts,
            );
            let mut heads = chains.iter().flatten().map(Chain::head_index);
            let first = heads.clone().next();
            // It is the first one that was left; who changed that has to see what comes of it.
            let mut left = match pending.take() {
                Some((head, left)) if Some(head) == first => Some(left),
                Some((_, left)) => {
                    left.abandon(&session.store);
                    None
                }
                None => None,
            };
            let requests = Group {
                queue: kind,
                requests: &parts,
                watch,
                wake: wake.as_ref(),
            };
            let served = serve(session, requests, &mut left, scratch, meter, |lens| {
                let used = lens.iter().copied().zip(&mut heads);
                push(queue, mem, used)
            });
            spare.extend(parts.drain(..).map(Parts::recycle));
            *group = recycle(parts);
            // What was not finished is taken again next time.
            let done = served.as_ref().map_or(0, |done| *done);
            for _ in done..count {
                queue.go_to_previous_position();
            }
            *pending = heads.next().zip(left);
            served?;
            if watch.fault().is_some() {
                return Ok(Outcome::Failed);
            }
            if pending.as_ref().is_some_and(|(_, it)| it.is_waiting()) {
                return Ok(Outcome::Waiting);
            }
        }
        Ok(Outcome::More)
    }

    /// Puts the event that is due, if any, on the virtqueue.
    fn send_events(&mut self, meter: &mut Meter) -> Result<Outcome, Error> {
        let session = Arc::clone(&self.session);
        let mem = self.map.mem();
        let mut parts = Parts::default();
        while session.event_due() {
            if meter.is_spent() {
                return Ok(Outcome::More);
            }
            meter.walked(1);
            let Some(chain) = self.queue.iter(mem)?.next() else {
                // The driver's next buffer brings a notification, unless it came just now.
                if !self.queue.enable_notification(mem)? {
                    break;
                }
                continue;
            };
            let head = chain.head_index();
            parts.collect(chain, mem);
            let mut len = 0;
            if parts.writable_len() < size_of::<Event>() {
                session.note_malformed("a buffer is too short for an event");
            } else if let Some(event) = session.take_event() {
                parts.writer().write(event.as_bytes());
                session.counters.events.add(1);
                len = size_of::<Event>() as u32;
            }
            if self.map.watch().fault().is_some() {
                return Ok(Outcome::Failed);
            }
            push(&mut self.queue, mem, [(len, head)])?;
        }
        Ok(Outcome::Empty)
    }
}

/// Finds a virtqueue in memory.
fn queue(layout: &RingLayout, map: &GuestMap) -> Result<Queue, RingError> {
    let mut queue = Queue::new(MAX_QUEUE_SIZE)?;
    let size = layout.size;
    queue
        .try_set_size(size)
        .map_err(|_| RingError::Size(size))?;
    let size = u64::from(size);
    let at = |user, len| map.translate(user, len).ok_or(RingError::OutOfReach);
    queue.try_set_desc_table_address(at(layout.desc, DESCRIPTOR as u64 * size)?)?;
    queue.try_set_avail_ring_address(at(layout.avail, 6 + 2 * size)?)?;
    queue.try_set_used_ring_address(at(layout.used, 6 + 8 * size)?)?;
    queue.set_ready(true);
    Ok(queue)
}

/// What a request consists of is in guest memory, and the processor that wrote it last is another
/// one: each step from the descriptor to the header would be waited for. So each step is made for
/// all requests before the next, and says ahead what the next will look at.
///
/// It ends with the request that the meter will probably end with, so that nothing is read in vain, but
/// not before there are `least`.
fn read<'m>(
    chains: &[Option<Chain<'m>>],
    table: u64,
    mem: &'m GuestMemoryMmap,
    least: usize,
    meter: &Meter,
    spare: &mut Vec<Parts<'static>>,
    group: &mut Vec<Parts<'m>>,
) {
    // One alone is waited for in any case.
    let several = chains.len() > 1;
    if several {
        let descriptor = |chain: &Chain<'_>| {
            let offset = u64::from(chain.head_index()) * DESCRIPTOR as u64;
            // Whether there is memory is for others to say.
            GuestAddress(table.wrapping_add(offset))
        };
        for chain in chains.iter().flatten() {
            will_read_guest(mem, descriptor(chain), DESCRIPTOR);
        }
        for chain in chains.iter().flatten() {
            // What it says is read again by who depends on it.
            if let Ok(table) = mem.read_obj::<Descriptor>(descriptor(chain)) {
                if table.refers_to_indirect_table() {
                    will_read_guest(mem, table.addr(), (table.len() as usize).min(TABLE));
                }
            }
        }
    }
    let most = meter.pages();
    let mut pages = 0;
    for chain in chains.iter().flatten() {
        let mut parts: Parts<'m> = spare.pop().unwrap_or_default();
        parts.collect(chain.clone(), mem);
        if several {
            parts.prefetch();
        }
        pages += (parts.readable_len() + parts.writable_len()) / PAGE_SIZE;
        group.push(parts);
        if pages > most && group.len() >= least {
            break;
        }
    }
}

/// Empties a vector, and takes its memory over, as for the pieces of [`Parts`].
fn recycle<'n>(mut parts: Vec<Parts<'_>>) -> Vec<Parts<'n>> {
    parts.clear();
    parts.into_iter().map(Parts::recycle).collect()
}

/// The length of a descriptor.
const DESCRIPTOR: usize = size_of::<Descriptor>();

/// Bytes of an indirect table that are looked at ahead.
const TABLE: usize = 256;

/// Says that guest memory will be read.
fn will_read_guest(mem: &GuestMemoryMmap, addr: GuestAddress, len: usize) {
    if let Ok(slice) = mem.get_slice(addr, len) {
        will_read(&slice);
    }
}

type Chain<'m> = virtio_queue::DescriptorChain<&'m GuestMemoryMmap>;

/// Gives chains back.
fn push(
    queue: &mut Queue,
    mem: &GuestMemoryMmap,
    used: impl IntoIterator<Item = (u32, u16)>,
) -> Result<(), Error> {
    for (len, head) in used {
        queue.add_used(mem, head, len)?;
    }
    Ok(())
}

/// See [`Ring::tell`].
fn tell(
    session: &Session,
    queue: &Queue,
    told: &mut u16,
    call: Option<&Call>,
    mem: &GuestMemoryMmap,
) {
    let used = queue.next_used();
    let since = used.wrapping_sub(std::mem::replace(told, used));
    let avail = queue.avail_ring();
    let read = |offset| {
        let value = mem.load(GuestAddress(avail.wrapping_add(offset)), Ordering::Relaxed);
        value.map(u16::from_le)
    };
    // All of it lies within the memory; if it did not, nobody would wait.
    let wanted = if queue.event_idx_enabled() {
        let event = read(4 + 2 * u64::from(queue.size()));
        event.is_ok_and(|event| used.wrapping_sub(event).wrapping_sub(1) < since)
    } else {
        read(0).is_ok_and(|flags| flags & NO_INTERRUPT == 0)
    };
    if let (true, Some(call)) = (wanted, call) {
        session.counters.calls.add(1);
        call.signal();
    }
}
