// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operator does to a guest's pages.

use super::{lender::slots_of, session::Session};
use crate::store::{PoolKind, PoolReport, Walk};

/// Ephemeral memory that was taken from a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Pages of the store.
    pub pages: u64,
    /// Chunks of the window.
    pub chunks: u64,
}

/// What the destruction of a guest's pools comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destruction {
    /// There was nothing but ephemeral pages, and they are gone. The pools are the driver's, and empty.
    Emptied(Flushed),
    /// Persistent pages are to be lost. Nothing was done yet: the one way to tell a driver of that is
    /// a new epoch, which ends all of its pools.
    TakesEpoch {
        /// Pages of persistent pools.
        pages: u64,
        /// Pages for which there is room in persistent chunks of the window.
        window: u64,
    },
}

/// Why something is not done to a guest's pages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OperateError {
    /// The guest has no pool of this number.
    #[error("there is no pool {0}")]
    NoPool(u32),
    /// The pool is not the guest's alone.
    #[error("pool {0} is shared with other guests: tmemctl shared flush drops its pages")]
    Shared(u32),
    /// The pool's pages are not to be dropped.
    #[error("pool {0} is persistent: only destroy drops its pages")]
    Persistent(u32),
    /// The pool's pages cannot be lost alone.
    #[error(
        "persistent pages are lost by a new epoch, which ends all pools: leave out --pool {0} if that \
         is what you want"
    )]
    NotAlone(u32),
    /// The guest would lose persistent pages.
    #[error("{}; --force loses them", losses(.pools, .window))]
    WouldLose {
        /// The pools, each with its pages.
        pools: Vec<(u32, u64)>,
        /// Pages for which there is room in persistent chunks of the window.
        window: u64,
    },
}

fn losses(pools: &[(u32, u64)], window: &u64) -> String {
    let all: u64 = pools.iter().map(|(_, pages)| pages).sum();
    let each = pools
        .iter()
        .map(|(pool, pages)| format!("{pages} of pool {pool}"));
    let each: Vec<_> = each.collect();
    let mut said = format!("it would lose {all} persistent pages");
    if !each.is_empty() {
        said += &format!(" ({})", each.join(", "));
    }
    if *window > 0 {
        said += &format!(" and up to {window} in its window");
    }
    said
}

impl Session {
    /// Returns how many persistent pages the guest has in the store.
    pub fn persistent_pages(&self) -> u64 {
        let pools = self.pools().into_iter();
        let persistent = pools.filter(|pool| pool.kind == PoolKind::Persistent);
        persistent.map(|pool| pool.pages).sum()
    }

    /// Drops the guest's ephemeral pages, or those of one pool: with one, what is in the window stays,
    /// of which only the guest knows the pools.
    ///
    /// # Errors
    ///
    /// [`OperateError`].
    pub fn flush_ephemeral(&self, pool: Option<u32>) -> Result<Flushed, OperateError> {
        let mut flushed = Flushed::default();
        for report in self.chosen(pool)? {
            match report.kind {
                PoolKind::Ephemeral => flushed.pages += self.flush_pool(report.pool),
                PoolKind::Persistent if pool.is_some() => {
                    return Err(OperateError::Persistent(report.pool));
                }
                PoolKind::Persistent => {}
            }
        }
        if let (Some(lender), None) = (&self.lender, pool) {
            flushed.chunks = lender.abandon();
        }
        Ok(flushed)
    }

    /// Forgets the pages that a pool has now. Returns how many those were.
    fn flush_pool(&self, number: u32) -> u64 {
        // One that was destroyed meanwhile has no pages.
        let walk = Walk::flush_pool(&*self.store, self.pools.guest(), number);
        walk.map_or(0, |mut walk| {
            walk.finish();
            walk.visited()
        })
    }

    /// Drops all that the guest has put, or what is in one pool. Persistent pages are lost by `force`
    /// alone.
    ///
    /// # Errors
    ///
    /// [`OperateError`], and nothing was done.
    pub fn destroy_pools(
        &self,
        pool: Option<u32>,
        force: bool,
    ) -> Result<Destruction, OperateError> {
        let chosen = self.chosen(pool)?.into_iter();
        let losing = chosen.filter(|it| it.kind == PoolKind::Persistent && it.pages > 0);
        let losing: Vec<_> = losing.map(|report| (report.pool, report.pages)).collect();
        let lender = self.lender.as_ref().filter(|_| pool.is_none());
        let window = lender.map_or(0, |lender| slots_of(lender.persistent()));
        if losing.is_empty() && window == 0 {
            return match self.flush_ephemeral(pool) {
                // It has no pages.
                Err(OperateError::Persistent(_)) => Ok(Flushed::default()),
                flushed => flushed,
            }
            .map(Destruction::Emptied);
        }
        match pool {
            Some(number) if force => Err(OperateError::NotAlone(number)),
            _ if force => Ok(Destruction::TakesEpoch {
                pages: losing.iter().map(|(_, pages)| pages).sum(),
                window,
            }),
            _ => Err(OperateError::WouldLose {
                pools: losing,
                window,
            }),
        }
    }

    /// Returns the pools that there are, or one of them.
    fn chosen(&self, pool: Option<u32>) -> Result<Vec<PoolReport>, OperateError> {
        let pools = self.pools().into_iter();
        let chosen = pools.filter(|report| pool.is_none_or(|number| number == report.pool));
        let chosen: Vec<_> = chosen.collect();
        match pool {
            Some(number) if chosen.is_empty() => {
                // One that there is, and that is not among its own.
                match self.store.is_shared(self.pools.guest(), number) {
                    Ok(true) => Err(OperateError::Shared(number)),
                    _ => Err(OperateError::NoPool(number)),
                }
            }
            _ => Ok(chosen),
        }
    }
}
