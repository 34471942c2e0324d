// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each guest holds, and which of its ephemeral pages goes first.

use super::{
    entry::Page,
    fairness::{victim, Holding, Promise},
    id::PageId,
    lru::Lru,
    mapping::Table,
    PoolKind,
};

/// A guest's place in the accounts.
pub(super) type AccountId = usize;

#[derive(Debug, Default)]
struct Account {
    guest: u32,
    /// What the guest is promised.
    promised: u64,
    holding: Holding,
    /// What of the holding is lent.
    lent: Holding,
    lru: Lru,
    /// Pools that are counted here, those that are being emptied included.
    pools: usize,
    /// The guest is there.
    open: bool,
}

impl Account {
    fn unmet(&self) -> u64 {
        self.holding.unmet(self.promised)
    }
}

/// The accounts of all guests.
///
/// # Invariants
///
/// - `unmet` is the sum of what all guests that were promised something do not have yet, whether
///   they are there or not.
/// - `ephemeral_pages` is the sum of the lengths of all lists.
#[derive(Debug)]
pub(super) struct Accounts {
    accounts: Vec<Account>,
    promise: Promise,
    unmet: u64,
    ephemeral_pages: usize,
}

impl Accounts {
    pub(super) fn new(promise: Promise) -> Self {
        Self {
            accounts: Vec::new(),
            unmet: promise.total(),
            promise,
            ephemeral_pages: 0,
        }
    }

    /// Promises guests something else than before.
    pub(super) fn promise(&mut self, promise: Promise) {
        self.unmet = promise.total();
        for account in &mut self.accounts {
            account.promised = promise.to(account.guest);
            if account.open {
                self.unmet -= account.promised - account.unmet();
            }
        }
        self.promise = promise;
    }

    /// Opens the account of a guest that has none.
    pub(super) fn open(&mut self, guest: u32) -> AccountId {
        let free = |account: &Account| !account.open && account.pools == 0;
        let id = self.accounts.iter().position(free).unwrap_or_else(|| {
            self.accounts.push(Account::default());
            self.accounts.len() - 1
        });
        self.accounts[id] = Account {
            guest,
            promised: self.promise.to(guest),
            open: true,
            ..Account::default()
        };
        id
    }

    /// Notes that a guest is gone. The account stays until its last pool is removed, and the guest
    /// who has its number next is promised all that it was.
    pub(super) fn close(&mut self, id: AccountId) {
        let account = &mut self.accounts[id];
        account.open = false;
        self.unmet += account.promised - account.unmet();
    }

    pub(super) fn add_pool(&mut self, id: AccountId) {
        self.accounts[id].pools += 1;
    }

    pub(super) fn remove_pool(&mut self, id: AccountId) {
        self.accounts[id].pools -= 1;
    }

    /// Counts that a guest holds so many bytes more, or less.
    pub(super) fn hold(&mut self, id: AccountId, kind: PoolKind, more: i64) {
        let account = &mut self.accounts[id];
        match kind {
            PoolKind::Ephemeral => {
                let held = &mut account.holding.ephemeral;
                *held = held.wrapping_add_signed(more);
            }
            PoolKind::Persistent => {
                let before = account.unmet();
                let held = &mut account.holding.persistent;
                *held = held.wrapping_add_signed(more);
                if account.open {
                    self.unmet += account.unmet();
                    self.unmet -= before;
                }
            }
        }
    }

    /// Counts that a guest is lent so many bytes more.
    pub(super) fn lend(&mut self, id: AccountId, kind: PoolKind, bytes: u64) {
        *self.accounts[id].lent.of(kind) += bytes;
        self.hold(id, kind, bytes as i64);
    }

    /// Counts that a guest is lent so many bytes less, or all of them if it is not lent so many.
    /// Returns how many.
    pub(super) fn end_loan(&mut self, id: AccountId, kind: PoolKind, bytes: u64) -> u64 {
        let lent = self.accounts[id].lent.of(kind);
        let bytes = bytes.min(*lent);
        *lent -= bytes;
        self.hold(id, kind, -(bytes as i64));
        bytes
    }

    /// Returns what a guest was promised and does not have yet, and what all others were.
    pub(super) fn unmet(&self, id: AccountId) -> (u64, u64) {
        let account = &self.accounts[id];
        let own = account.unmet();
        (own, self.unmet - if account.open { own } else { 0 })
    }

    /// Returns how many ephemeral pages there are.
    pub(super) fn ephemeral_pages(&self) -> usize {
        self.ephemeral_pages
    }

    /// Adds a guest's ephemeral page that was just put.
    pub(super) fn push(&mut self, id: AccountId, pages: &mut Table<Page>, page: PageId) {
        self.accounts[id].lru.push(pages, page);
        self.ephemeral_pages += 1;
    }

    /// Takes a guest's ephemeral page out.
    pub(super) fn remove(&mut self, id: AccountId, pages: &mut Table<Page>, page: PageId) {
        self.accounts[id].lru.remove(pages, page);
        self.ephemeral_pages -= 1;
    }

    /// Notes that a guest's ephemeral page was used.
    pub(super) fn touch(&mut self, id: AccountId, pages: &mut Table<Page>, page: PageId) {
        self.accounts[id].lru.touch(pages, page);
    }

    /// Returns the page to evict next, [`None`] if there is none that nobody is reading.
    pub(super) fn victim(&self, pages: &Table<Page>) -> Option<PageId> {
        let holdings = self.accounts.iter().map(|account| account.holding);
        let first = victim(holdings.enumerate())?;
        let of = |id: AccountId| self.accounts[id].lru.victim(pages);
        // Where all of its pages are being read, somebody else's goes.
        of(first).or_else(|| (0..self.accounts.len()).find_map(of))
    }
}
