// SPDX-License-Identifier: GPL-2.0

//! What the device tells without being asked.

use kernel::prelude::*;
use virtio_tmem_abi::{
    Event,
    EventKind,
    QUEUE_EVENT, //
};
use zerocopy::FromBytes;

use crate::virtio::queue::Notify;

use super::{
    frame::Direction,
    logic::wire::DeviceState,
    request::{
        Origin,
        Request, //
    },
    Client,
    NO_PLACE, //
};

/// How many events the device may have to tell at once.
const EVENTS: usize = 8;

impl<O: Origin> Client<O> {
    /// Gives the device buffers for its events.
    ///
    /// May sleep.
    pub(super) fn listen(&self) -> Result {
        let queue = usize::from(QUEUE_EVENT);

        for _ in 0..EVENTS {
            let mut event = Request::new(NO_PLACE)?;

            event.frame.reset(size_of::<Event>(), Direction::Out);
            // A device may have a virtqueue for fewer.
            if self.queues.submit(queue, event, Notify::Later).is_err() {
                break;
            }
        }
        self.queues.kick(queue);
        Ok(())
    }

    /// Takes an event, and gives its buffer back to the device.
    pub(super) fn event(&self, mut buffer: KBox<Request<O>>, written: usize) {
        let bytes = buffer.frame.answer();
        let event = bytes
            .get(..written.min(bytes.len()))
            .and_then(|bytes| Event::read_from_bytes(bytes).ok());

        if let Some(event) = event {
            let kind = EventKind::from_wire(event.kind.get());

            if kind.is_some() {
                let state = DeviceState {
                    persistent_credits: event.persistent_credits.get(),
                    ephemeral_credits: event.ephemeral_credits.get(),
                    epoch: event.epoch.get(),
                };
                self.heed(&state, None);
            }
            match kind {
                Some(EventKind::Shrink) => O::shrink(event.pages.get()),
                Some(EventKind::Recall) => {
                    if let Some(window) = self.window() {
                        window.recall(event.pages.get());
                        self.want_chunks();
                    }
                }
                _ => (),
            }
        }

        buffer.frame.reset(size_of::<Event>(), Direction::Out);
        // If the device does not take it, there are no more events to hear of.
        let _ = self
            .queues
            .submit(usize::from(QUEUE_EVENT), buffer, Notify::Now);
    }
}
