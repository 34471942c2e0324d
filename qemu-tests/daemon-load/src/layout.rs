// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is where in the memory that is shared with the devices.

use std::ops::Range;

use anyhow::{ensure, Result};
use tmem_driver::{Queue, TmemDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The size of a page in bytes.
pub(crate) const PAGE: usize = 4096;

/// Descriptors of each virtqueue.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// Room for the requests of one virtqueue, each with a page for all that is not a page itself.
pub(crate) const SLOTS: usize = 256;

/// Data virtqueues that a guest has at most.
pub(crate) const MAX_QUEUES: u16 = 4;

/// The order in which pages are used is the same in each run.
const SEED: u64 = 7;

/// The shared memory: virtqueues and requests of all devices, the pages that are put, and as many
/// that come back.
///
/// Neither the pages that a request carries nor the requests that follow each other are
/// neighbours: no cache, and nothing that reads ahead, is of help.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pages: u32,
    tmem: usize,
    blk: usize,
    /// A permutation: where in memory each page is.
    places: Vec<u32>,
}

impl Layout {
    /// Makes room for so many pages, tmem and block devices.
    pub(crate) fn new(pages: u32, tmem: usize, blk: usize) -> Self {
        let mut places: Vec<_> = (0..pages).collect();
        fastrand::Rng::with_seed(SEED).shuffle(&mut places);
        Self {
            pages,
            tmem,
            blk,
            places,
        }
    }

    /// Returns how many pages there are to put.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Returns how many bytes all of it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.sources() as usize + 2 * self.pages as usize * PAGE
    }

    /// Returns where the virtqueues and requests of a guest begin.
    pub(crate) fn guest(&self, n: usize) -> u64 {
        n as u64 * Self::guest_bytes()
    }

    fn guest_bytes() -> u64 {
        Self::requests_from() + u64::from(MAX_QUEUES) * (SLOTS * PAGE) as u64
    }

    fn requests_from() -> u64 {
        TmemDevice::queue_bytes(MAX_QUEUES, QUEUE_SIZE)
    }

    /// Returns where the requests of a data virtqueue of a guest begin.
    pub(crate) fn guest_requests(&self, n: usize, queue: usize) -> u64 {
        self.guest(n) + Self::requests_from() + (queue * SLOTS * PAGE) as u64
    }

    /// Returns where the virtqueue of a block device begins.
    pub(crate) fn disk(&self, n: usize) -> u64 {
        let each = Queue::bytes(QUEUE_SIZE) + (SLOTS * PAGE) as u64;
        self.guest(self.tmem) + n as u64 * each
    }

    /// Returns where the requests of a block device begin.
    pub(crate) fn disk_requests(&self, n: usize) -> u64 {
        self.disk(n) + Queue::bytes(QUEUE_SIZE)
    }

    fn sources(&self) -> u64 {
        // To be mapped by huge pages, where that is possible.
        self.disk(self.blk).next_multiple_of(2 << 20)
    }

    fn targets(&self) -> u64 {
        self.sources() + u64::from(self.pages) * PAGE as u64
    }

    /// Returns where page `n` is that is put.
    pub(crate) fn source(&self, n: u32) -> u64 {
        self.sources() + u64::from(self.places[n as usize]) * PAGE as u64
    }

    /// Returns where page `n` is to come back to.
    pub(crate) fn target(&self, n: u32) -> u64 {
        self.targets() + u64::from(self.places[n as usize]) * PAGE as u64
    }

    /// Fills the pages that are put with `bytes`, again and again.
    pub(crate) fn fill(&self, mem: &GuestMemoryMmap, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() >= PAGE, "less than a page");
        let bytes = &bytes[..bytes.len() / PAGE * PAGE];
        let (mut at, end) = (self.sources(), self.targets());
        while at < end {
            let len = bytes.len().min((end - at) as usize);
            mem.write_slice(&bytes[..len], GuestAddress(at))?;
            at += len as u64;
        }
        Ok(())
    }

    /// Makes every page that is to come back another than it was put.
    pub(crate) fn spoil(&self, mem: &GuestMemoryMmap) -> Result<()> {
        for n in 0..self.pages {
            let first: u64 = mem.read_obj(GuestAddress(self.source(n)))?;
            mem.write_obj(!first, GuestAddress(self.target(n)))?;
        }
        Ok(())
    }

    /// Checks that pages came back as they were put.
    pub(crate) fn check(&self, mem: &GuestMemoryMmap, pages: Range<u32>) -> Result<()> {
        let (mut source, mut target) = ([0; PAGE], [0; PAGE]);
        for n in pages {
            mem.read_slice(&mut source, GuestAddress(self.source(n)))?;
            mem.read_slice(&mut target, GuestAddress(self.target(n)))?;
            ensure!(source == target, "page {n} came back other than it was put");
        }
        Ok(())
    }

    /// Returns the numbers below `count` in an order in which none follows its neighbour.
    pub(crate) fn shuffled(count: u32) -> Vec<u32> {
        let mut order: Vec<_> = (0..count).collect();
        fastrand::Rng::with_seed(SEED + 1).shuffle(&mut order);
        order
    }
}
