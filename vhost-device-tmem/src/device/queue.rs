// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking requests from a virtqueue and putting events on one.

use std::{
    ops::Deref,
    sync::{atomic::Ordering, Arc},
};

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::{desc::split::Descriptor, Error, QueueOwnedT, QueueT};
use virtio_tmem_abi::Event;
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap,
};
use zerocopy::IntoBytes;

use super::{
    chain::{will_read, Parts},
    execute::{serve, Scratch},
    polling::{Look, Polling},
    request::QueueKind,
    session::Session,
};

/// The guest's memory, as it is at the moment.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no interrupt, where there is no event index.
const NO_INTERRUPT: u16 = 1;

/// Requests that are taken from a virtqueue at once.
const GROUP: usize = 16;

/// Serves all requests of a virtqueue, until there are none, even after a while, or it is stopped.
///
/// # Errors
///
/// The guest broke the virtqueue.
pub(super) fn serve_queue(
    session: &Arc<Session>,
    kind: QueueKind,
    vring: &VringMutex,
    memory: &Memory,
    scratch: &mut Scratch,
    polling: &mut Polling,
) -> Result<(), Error> {
    loop {
        // Held over many requests.
        let snapshot = memory.memory();
        let mem = snapshot.deref();
        vring.get_mut().get_queue_mut().disable_notification(mem)?;
        let mut group = Group::default();
        // The virtqueue's lock is held for the length of a statement only.
        while group.take(session, &mut vring.get_mut(), mem)? {
            // The driver may use memory that was plugged in before it made a chain available.
            if !std::ptr::eq(mem, memory.memory().deref()) {
                group.give_back(&mut vring.get_mut());
                break;
            }
            let (chains, requests) = group.read(mem);
            let mut heads = chains.iter().map(Chain::head_index);
            serve(session, kind, requests, scratch, |lens| {
                let used = lens.iter().zip(&mut heads);
                push(session, &mut vring.get_mut(), mem, used)
            })?;
        }
        // Meanwhile the driver need not notify.
        let seen = polling.wait(|| look(session, vring, memory, mem))?;
        if let Some(seen) = seen {
            session.counters.polls.add(1);
            if seen == Look::Found {
                session.counters.polls_found.add(1);
                continue;
            }
        }
        let mut vring = vring.get_mut();
        if stopped(session, &vring) || !vring.get_queue_mut().enable_notification(mem)? {
            return Ok(());
        }
    }
}

/// Looks whether there is a request. Others get the virtqueue's lock between two looks, who will
/// stop it, or change where the memory is.
fn look(
    session: &Session,
    vring: &VringMutex,
    memory: &Memory,
    mem: &GuestMemoryMmap,
) -> Result<Look, Error> {
    let vring = vring.get_ref();
    if stopped(session, &vring) || !std::ptr::eq(mem, memory.memory().deref()) {
        return Ok(Look::Leave);
    }
    let queue = vring.get_queue();
    let available = queue.avail_idx(mem, Ordering::Acquire)?;
    if available.0 == queue.next_avail() {
        Ok(Look::Nothing)
    } else {
        Ok(Look::Found)
    }
}

/// Requests that were taken from a virtqueue together.
///
/// What a request consists of is in guest memory, and the processor that wrote it last is another
/// one: each step from the descriptor to the header would be waited for. So each step is made for
/// all requests before the next, and says ahead what the next will look at.
#[derive(Default)]
struct Group<'m> {
    chains: Vec<Chain<'m>>,
    /// At least as many, to be used again.
    parts: Vec<Parts<'m>>,
    /// Where the descriptors are.
    table: u64,
}

impl<'m> Group<'m> {
    /// Takes what there is, and returns whether there is something.
    fn take(
        &mut self,
        session: &Session,
        vring: &mut VringState,
        mem: &'m GuestMemoryMmap,
    ) -> Result<bool, Error> {
        self.chains.clear();
        if !stopped(session, vring) {
            let queue = vring.get_queue_mut();
            self.table = queue.desc_table();
            self.chains.extend(queue.iter(mem)?.take(GROUP));
        }
        Ok(!self.chains.is_empty())
    }

    /// Makes the virtqueue forget that they were taken.
    fn give_back(&mut self, vring: &mut VringState) {
        for _ in self.chains.drain(..) {
            vring.get_queue_mut().go_to_previous_position();
        }
    }

    /// Reads the descriptors, and returns the chains and the parts of the requests.
    fn read(&mut self, mem: &'m GuestMemoryMmap) -> (&[Chain<'m>], &[Parts<'m>]) {
        let count = self.chains.len();
        if self.parts.len() < count {
            self.parts.resize_with(count, Parts::default);
        }
        // One alone is waited for in any case.
        let several = count > 1;
        if several {
            for chain in &self.chains {
                will_read_guest(mem, self.descriptor(chain), DESCRIPTOR);
            }
            for chain in &self.chains {
                // What it says is read again by who depends on it.
                let descriptor = mem.read_obj::<Descriptor>(self.descriptor(chain));
                if let Ok(table) = descriptor {
                    if table.refers_to_indirect_table() {
                        will_read_guest(mem, table.addr(), (table.len() as usize).min(TABLE));
                    }
                }
            }
        }
        let parts = &mut self.parts[..count];
        for (chain, parts) in self.chains.iter().zip(&mut *parts) {
            parts.collect(chain.clone(), mem);
            if several {
                parts.prefetch();
            }
        }
        (&self.chains, parts)
    }

    fn descriptor(&self, chain: &Chain<'_>) -> GuestAddress {
        let offset = u64::from(chain.head_index()) * DESCRIPTOR as u64;
        // Whether there is memory is for others to say.
        GuestAddress(self.table.wrapping_add(offset))
    }
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

/// Puts the event that is due, if any, on the event virtqueue.
///
/// # Errors
///
/// The guest broke the virtqueue.
pub(super) fn send_events(
    session: &Arc<Session>,
    vring: &VringMutex,
    memory: &Memory,
) -> Result<(), Error> {
    let memory = memory.memory();
    let mem = memory.deref();
    let mut vring = vring.get_mut();
    let mut parts = Parts::default();
    while session.event_due() {
        let Some(chain) = pop(session, &mut vring, mem)? else {
            // The driver's next buffer brings a notification, unless it came just now.
            if stopped(session, &vring) || !vring.get_queue_mut().enable_notification(mem)? {
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
        push(session, &mut vring, mem, [(&len, head)])?;
    }
    Ok(())
}

fn stopped(session: &Session, vring: &VringState) -> bool {
    session.stopping.load(Ordering::Relaxed) || !vring.is_enabled() || !vring.get_queue().ready()
}

type Chain<'m> = virtio_queue::DescriptorChain<&'m GuestMemoryMmap>;

fn pop<'m>(
    session: &Session,
    vring: &mut VringState,
    mem: &'m GuestMemoryMmap,
) -> Result<Option<Chain<'m>>, Error> {
    if stopped(session, vring) {
        return Ok(None);
    }
    Ok(vring.get_queue_mut().iter(mem)?.next())
}

/// Gives chains back, and interrupts the driver if one of them is what it waits for.
fn push<'l>(
    session: &Session,
    vring: &mut VringState,
    mem: &GuestMemoryMmap,
    used: impl IntoIterator<Item = (&'l u32, u16)>,
) -> Result<(), Error> {
    let queue = vring.get_queue_mut();
    for (len, head) in used {
        queue.add_used(mem, head, *len)?;
    }
    let wanted = if queue.event_idx_enabled() {
        queue.needs_notification(mem)?
    } else {
        let flags = mem.load(GuestAddress(queue.avail_ring()), Ordering::SeqCst);
        u16::from_le(flags.map_err(Error::GuestMemory)?) & NO_INTERRUPT == 0
    };
    if wanted {
        session.counters.calls.add(1);
        if let Err(error) = vring.signal_used_queue() {
            tracing::debug!("cannot interrupt guest {:?}: {error}", session.name);
        }
    }
    Ok(())
}
