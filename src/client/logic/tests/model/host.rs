// SPDX-License-Identifier: GPL-2.0

//! A device, and the queues before it.

use std::collections::{
    BTreeMap,
    BTreeSet,
    VecDeque, //
};

use virtio_tmem_logic::index::Flush;

use super::{
    window::Window,
    world::Put, //
};

/// What goes over a queue.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Put(Put),
    Flush(Flush),
    /// A get that removes; the page must be this one, if it is there in this version.
    Take {
        index: u64,
        version: u32,
        data: u64,
    },
}

/// A device. Each wire id has a queue of its own, so that all others may overtake it.
#[derive(Default)]
pub(crate) struct Host {
    queues: BTreeMap<u64, VecDeque<Request>>,
    /// Version and content by wire id and index.
    pub(crate) pages: BTreeMap<(u64, u64), (u32, u64)>,
    /// The wire ids that nothing must be put under any more.
    dead: BTreeSet<u64>,
}

impl Host {
    pub(crate) fn submit(&mut self, wire: u64, request: Request) {
        self.queues.entry(wire).or_default().push_back(request);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// Executes the first request of the queue that `pick` stands for. Returns a put that has been
    /// executed, and whether it was stored.
    pub(crate) fn step(&mut self, pick: u8, refuse: bool, window: &Window) -> Option<(Put, bool)> {
        let count = self.queues.len();
        if count == 0 {
            return None;
        }
        let wire = *self.queues.keys().nth(usize::from(pick) % count).unwrap();
        let queue = self.queues.get_mut(&wire).unwrap();
        let request = queue.pop_front().unwrap();
        if queue.is_empty() {
            self.queues.remove(&wire);
        }
        match request {
            Request::Put(put) => {
                assert!(!self.dead.contains(&wire), "{put:?} after the flush");
                // What was moving there is still in the slot, or the chunk is not the driver's.
                let gone = put
                    .slot
                    .is_some_and(|slot| window.content(slot) != put.data);
                assert!(
                    !gone || window.is_ephemeral(),
                    "another page is in the slot"
                );
                let refuse = refuse || gone;
                if refuse {
                    self.pages.remove(&(wire, put.index));
                } else {
                    self.pages
                        .insert((wire, put.index), (put.version, put.data));
                }
                return Some((put, !refuse));
            }
            Request::Flush(Flush::Object { .. }) => {
                assert!(self.dead.insert(wire), "two flushes of an object");
                self.pages.retain(|(w, _), _| *w != wire);
            }
            Request::Flush(Flush::Page { index, version, .. }) => {
                assert_ne!(version, 0);
                if self
                    .pages
                    .get(&(wire, index))
                    .is_some_and(|p| p.0 == version)
                {
                    self.pages.remove(&(wire, index));
                }
            }
            Request::Flush(Flush::Any { index, .. }) => {
                self.pages.remove(&(wire, index));
            }
            Request::Take {
                index,
                version,
                data,
            } => {
                if let Some(&(v, d)) = self.pages.get(&(wire, index)) {
                    if v == version {
                        assert_eq!(d, data, "a stale page");
                        self.pages.remove(&(wire, index));
                    }
                }
            }
        }
        None
    }

    /// Forgets everything, and whatever is on its way; returns the puts among that.
    pub(crate) fn reset(&mut self) -> Vec<Put> {
        self.pages.clear();
        std::mem::take(&mut self.queues)
            .into_values()
            .flatten()
            .filter_map(|request| match request {
                Request::Put(put) => Some(put),
                _ => None,
            })
            .collect()
    }
}
