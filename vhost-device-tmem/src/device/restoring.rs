// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Giving a guest that stands still the persistent pages of a stream.

use std::io::Read;

use virtio_tmem_abi::{Key, PageResult, Range, EPOCH_NONE};

use super::session::Session;
use crate::{
    saved::{GuestHead, Page, PoolHead, Reader, Record, StreamError, Totals},
    store::{PageBytes, PageSource, PoolError, PoolKind, PAGE_SHIFT},
};

/// Why a guest is not given the pages of a stream. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It runs.
    #[error("its virtqueues run: connect a machine that was not started (QEMU: -S), or stop it")]
    Runs,
    /// It has pools.
    #[error("it has {0} pools already: pages are restored to a guest that has none")]
    HasPools(usize),
    /// Nothing is taken of it.
    #[error("it is frozen; thaw it first")]
    Frozen,
    /// Somebody else does it.
    #[error("pages are restored to it already")]
    Busy,
    /// The stream cannot be read.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The stream is of no use here.
    #[error("it cannot be restored here: {0}")]
    Unfit(String),
    /// A pool cannot be.
    #[error("pool {0}: {1}")]
    Pool(u32, #[source] PoolError),
    /// There is no room.
    #[error("there is no room for all pages ({0:?}): {1} were restored, and are dropped again")]
    NoRoom(PageResult, u64),
    /// It was started meanwhile.
    #[error("the machine was started before all was restored: what was is dropped again")]
    Started,
}

/// What a guest was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Of whom.
    pub head: GuestHead,
    /// How much the stream has.
    pub totals: Totals,
}

impl Session {
    /// Gives the guest the pools and pages of a stream, all of them or none. It begins no epoch: until
    /// it does, nobody gets the pages.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn restore(&self, input: impl Read) -> Result<Restored, RestoreError> {
        let _only = self.begin_restore().ok_or(RestoreError::Busy)?;
        let starts = self.starts();
        self.may_restore()?;
        let mut pools = Vec::new();
        let restored = self.read_all(Reader::new(input)?, &mut pools);
        let restored = restored.and_then(|restored| {
            let stood = !self.runs() && self.starts() == starts && !self.has_ended();
            stood.then_some(restored).ok_or(RestoreError::Started)
        });
        if restored.is_err() {
            for pool in pools {
                let _ = self.store.destroy_pool(self.pools.guest(), pool);
            }
        }
        restored
    }

    /// Looks whether the guest could be given pages.
    ///
    /// # Errors
    ///
    /// [`RestoreError`].
    pub fn may_restore(&self) -> Result<(), RestoreError> {
        if self.runs() {
            return Err(RestoreError::Runs);
        }
        if self.store.is_frozen(self.pools.guest().number()) {
            return Err(RestoreError::Frozen);
        }
        match self.store.pool_count(self.pools.guest()) {
            0 => Ok(()),
            count => Err(RestoreError::HasPools(count)),
        }
    }

    fn read_all(
        &self,
        mut reader: Reader<impl Read>,
        pools: &mut Vec<u32>,
    ) -> Result<Restored, RestoreError> {
        let Record::Guest(head) = reader.read_record()? else {
            return Err(RestoreError::Unfit(
                "it does not say whose it is".to_owned(),
            ));
        };
        if head.page_shift != PAGE_SHIFT {
            let why = format!("its pages have 2^{} bytes", head.page_shift);
            return Err(RestoreError::Unfit(why));
        }
        if head.epoch == 0 || head.epoch == EPOCH_NONE {
            return Err(RestoreError::Unfit("it is of no epoch".to_owned()));
        }
        let mut stored = 0;
        loop {
            match reader.read_record()? {
                Record::Pool(pool) => {
                    self.make_pool(pool)?;
                    pools.push(pool.number);
                }
                Record::Pages { pool, pages } => {
                    self.put_back(pool, &pages, stored)?;
                    stored += pages.len() as u64;
                }
                Record::Gone { pool, keys } => self.forget(pool, &keys)?,
                Record::End(totals) => return Ok(Restored { head, totals }),
                Record::Guest(_)
                | Record::Live { .. }
                | Record::Damaged { .. }
                | Record::Failed(_) => {}
            }
        }
    }

    fn make_pool(&self, pool: PoolHead) -> Result<(), RestoreError> {
        let PoolHead { number, hold } = pool;
        if number >= self.limits.max_pools {
            let why = format!("pool {number} is not below {}", self.limits.max_pools);
            return Err(RestoreError::Unfit(why));
        }
        let (guest, kind) = (self.pools.guest(), PoolKind::Persistent);
        let made = self.store.create_pool_with(guest, number, kind, hold);
        made.map_err(|error| RestoreError::Pool(number, error))
    }

    fn put_back(&self, pool: u32, pages: &[Page], before: u64) -> Result<(), RestoreError> {
        let keys: Vec<_> = pages.iter().map(|page| page.key).collect();
        let mut results = vec![PageResult::NoMemory; keys.len()];
        let guest = self.pools.guest();
        let put = self
            .store
            .put(guest, pool, &keys, &mut Given(pages), &mut results);
        put.map_err(|error| RestoreError::Pool(pool, error))?;
        let refused = results.iter().find(|it| **it != PageResult::Stored);
        refused.map_or(Ok(()), |why| Err(RestoreError::NoRoom(*why, before)))
    }

    fn forget(&self, pool: u32, keys: &[Key]) -> Result<(), RestoreError> {
        let range = |key: &Key| Range {
            object: key.object,
            first: key.index,
            last: key.index,
        };
        let ranges: Vec<_> = keys.iter().map(range).collect();
        let mut results = vec![PageResult::Absent; keys.len()];
        let guest = self.pools.guest();
        let flushed = self.store.flush_ranges(guest, pool, &ranges, &mut results);
        flushed.map_err(|error| RestoreError::Pool(pool, error))
    }
}

/// Pages of a record.
struct Given<'p>(&'p [Page]);

impl PageSource for Given<'_> {
    fn read_page(&mut self, n: usize, frame: &mut PageBytes) -> bool {
        let page = self.0.get(n);
        page.inspect(|page| page.contents.fill(frame)).is_some()
    }
}
