// SPDX-License-Identifier: GPL-2.0

//! The driver's tracepoints, in `/sys/kernel/tracing/events/virtio_tmem/`.

use super::raw;

macro_rules! pages_event {
    ($(#[$meta:meta])* $name:ident, $raw:ident) => {
        $(#[$meta])*
        ///
        /// Any context.
        #[inline]
        pub(crate) fn $name(pool: u32, object: u64, index: u64, pages: u32) {
            // SAFETY: There are no requirements.
            unsafe { raw::$raw(pool, object, index, pages) }
        }
    };
}

macro_rules! chain_event {
    ($(#[$meta:meta])* $name:ident, $raw:ident) => {
        $(#[$meta])*
        ///
        /// Any context.
        #[inline]
        pub(crate) fn $name(queue: usize, opcode: u16, count: usize, status: u32) {
            // SAFETY: There are no requirements.
            unsafe { raw::$raw(queue as u32, u32::from(opcode), count as u32, status) }
        }
    };
}

pages_event!(
    /// Pages are on their way to the host.
    put,
    tmem_trace_put
);
pages_event!(
    /// The host, or the guest on its behalf, did not take pages.
    refused,
    tmem_trace_refused
);
pages_event!(
    /// Pages were found in the index and are asked for.
    get,
    tmem_trace_get
);
pages_event!(
    /// Pages that the index promised did not come, or not whole.
    lost,
    tmem_trace_lost
);
pages_event!(
    /// Pages left the index.
    flush,
    tmem_trace_flush
);
chain_event!(
    /// A request went into a virtqueue.
    request,
    tmem_trace_request
);
chain_event!(
    /// Its answer came out; status 0 if the virtqueue was stopped.
    response,
    tmem_trace_response
);
