// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Taking requests from a virtqueue and putting events on one.

use std::{
    ops::Deref,
    sync::{atomic::Ordering, Arc},
};

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_queue::{Error, QueueOwnedT, QueueT};
use virtio_tmem_abi::Event;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use zerocopy::IntoBytes;

use super::{
    chain::Parts,
    execute::{serve, Scratch},
    request::QueueKind,
    session::Session,
};

/// The guest's memory, as it is at the moment.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no interrupt, where there is no event index.
const NO_INTERRUPT: u16 = 1;

/// Serves all requests of a virtqueue, until there are none or it is stopped.
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
) -> Result<(), Error> {
    loop {
        // Held over many requests.
        let snapshot = memory.memory();
        let mem = snapshot.deref();
        vring.get_mut().get_queue_mut().disable_notification(mem)?;
        let mut parts = Parts::default();
        let mut changed = false;
        loop {
            // The virtqueue's lock is held for the length of a statement only.
            let Some(chain) = pop(session, &mut vring.get_mut(), mem)? else {
                break;
            };
            // The driver may use memory that was plugged in before it made the chain available.
            if !std::ptr::eq(mem, memory.memory().deref()) {
                vring.get_mut().get_queue_mut().go_to_previous_position();
                changed = true;
                break;
            }
            let head = chain.head_index();
            parts.collect(chain, mem);
            let len = serve(session, kind, &parts, scratch);
            push(session, &mut vring.get_mut(), mem, head, len)?;
        }
        if changed {
            continue;
        }
        let mut vring = vring.get_mut();
        if stopped(session, &vring) || !vring.get_queue_mut().enable_notification(mem)? {
            return Ok(());
        }
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
        push(session, &mut vring, mem, head, len)?;
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

fn push(
    session: &Session,
    vring: &mut VringState,
    mem: &GuestMemoryMmap,
    head: u16,
    len: u32,
) -> Result<(), Error> {
    let queue = vring.get_queue_mut();
    queue.add_used(mem, head, len)?;
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
