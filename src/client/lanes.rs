// SPDX-License-Identifier: GPL-2.0

//! Which virtqueue is for what.

use virtio_tmem_abi::FIRST_DATA_QUEUE;

use crate::virtio::queue::Interrupts;

/// How the data virtqueues are shared out.
///
/// Puts and flushes go over some, by the object, so that the device sees those of one key in their
/// order. Gets go over the others, by the CPU: nobody who waits for a page waits behind puts, and
/// while a get is out there is no put or flush of its key, nor the other way round. With a single
/// virtqueue all go over that.
#[derive(Clone, Copy)]
pub(crate) struct Lanes {
    puts: usize,
    gets: usize,
}

impl Lanes {
    const FIRST: usize = FIRST_DATA_QUEUE as usize;

    /// Shares out so many data virtqueues.
    pub(crate) const fn new(data_queues: usize) -> Self {
        let puts = if data_queues < 2 { 1 } else { data_queues / 2 };

        Self {
            puts,
            gets: data_queues.saturating_sub(puts),
        }
    }

    /// Returns how many virtqueues there are, with those that are not for data.
    pub(crate) const fn queues(self) -> usize {
        Self::FIRST
            + if self.gets == 0 {
                self.puts
            } else {
                self.puts + self.gets
            }
    }

    /// Returns how many virtqueues are for puts.
    pub(super) const fn puts(self) -> usize {
        self.puts
    }

    /// Returns the virtqueues for puts and flushes.
    pub(super) fn all_puts(self) -> impl Iterator<Item = usize> {
        Self::FIRST..Self::FIRST + self.puts
    }

    /// Returns the virtqueue for puts and flushes of the objects of a shard.
    pub(super) const fn put(self, shard: usize) -> usize {
        match shard.checked_rem(self.puts) {
            Some(n) => Self::FIRST + n,
            None => Self::FIRST,
        }
    }

    /// Returns the virtqueue for gets on a CPU.
    pub(super) const fn get(self, cpu: usize) -> usize {
        match cpu.checked_rem(self.gets) {
            Some(n) => Self::FIRST + self.puts + n,
            None => Self::FIRST,
        }
    }

    /// Returns when the device is to interrupt because of a virtqueue.
    ///
    /// Nobody waits for a put but reclaim, which waits for many.
    pub(crate) const fn interrupts(self, queue: usize) -> Interrupts {
        if self.gets > 0 && queue >= Self::FIRST && queue < Self::FIRST + self.puts {
            Interrupts::Late
        } else {
            Interrupts::Soon
        }
    }
}
