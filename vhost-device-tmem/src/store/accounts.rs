// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each guest holds, and which of its ephemeral pages goes first.

use std::collections::BTreeMap;

use super::{
    entry::Page,
    evicted::{Evicted, NearMisses},
    fairness::{excess, victim, Holding, Part, Parts},
    id::PageId,
    lru::Lru,
    mapping::Table,
    reused::Reused,
    PoolKind,
};

/// A guest's place in the accounts.
pub(super) type AccountId = usize;

#[derive(Debug, Default)]
struct Account {
    guest: u32,
    part: Part,
    holding: Holding,
    /// What of the holding is lent.
    lent: Holding,
    lru: Lru,
    /// Of those whose contents are in the tier.
    below: Lru,
    evicted: Evicted,
    reused: Reused,
    /// Pools that are counted here, those that are being emptied included.
    pools: usize,
    /// The guest is there.
    open: bool,
}

impl Account {
    fn unmet(&self) -> u64 {
        self.holding.unmet(self.part.promised)
    }

    /// Returns the list that a page is in, or is to be in.
    fn list(&mut self, page: &Page) -> &mut Lru {
        if page.is_below() {
            &mut self.below
        } else {
            &mut self.lru
        }
    }
}

/// The accounts of all guests.
///
/// # Invariants
///
/// - `unmet` is the sum of what all guests that were promised something do not have yet, whether
///   they are there or not.
/// - `ephemeral_pages` is the sum of the lengths of all lists, and `ephemeral_below` of those of pages
///   in the tier.
#[derive(Debug)]
pub(super) struct Accounts {
    accounts: Vec<Account>,
    parts: Parts,
    unmet: u64,
    ephemeral_pages: usize,
    ephemeral_below: usize,
    /// It is remembered which pages guests come back for.
    remembers: bool,
}

impl Accounts {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            accounts: Vec::new(),
            unmet: parts.promised(),
            parts,
            ephemeral_pages: 0,
            ephemeral_below: 0,
            remembers: false,
        }
    }

    /// Gives guests other parts than before.
    pub(super) fn set_parts(&mut self, parts: Parts) {
        self.unmet = parts.promised();
        for account in &mut self.accounts {
            account.part = parts.of(account.guest);
            if account.open {
                self.unmet -= account.part.promised - account.unmet();
            }
        }
        self.parts = parts;
    }

    /// Returns what each guest holds that is there, or has pages that are still to go, by its number.
    pub(super) fn holdings(&self) -> BTreeMap<u32, Holding> {
        let mut holdings = BTreeMap::<u32, Holding>::new();
        let there = self.accounts.iter();
        for account in there.filter(|account| account.open || account.pools > 0) {
            let of = holdings.entry(account.guest).or_default();
            of.persistent += account.holding.persistent;
            of.ephemeral += account.holding.ephemeral;
        }
        holdings
    }

    /// Returns whether a guest may be lent something for ephemeral pages: up to its share, where
    /// others have shares as well.
    pub(super) fn may_borrow(&self, id: AccountId) -> bool {
        let account = &self.accounts[id];
        let Some(share) = account.part.ephemeral else {
            return true;
        };
        let has_share = |account: &Account| account.open && account.part.ephemeral != Some(0);
        let mut others = self.accounts.iter().enumerate();
        account.holding.ephemeral < share || !others.any(|(of, it)| of != id && has_share(it))
    }

    /// Returns by how many bytes a guest is above its share of ephemeral memory, if it has one.
    pub(super) fn above_share(&self, id: AccountId) -> Option<i128> {
        let account = &self.accounts[id];
        let share = account.part.ephemeral?;
        Some(excess(account.holding, Some(share)))
    }

    /// Returns how many bytes a guest may have of persistent memory besides what it has.
    pub(super) fn quota_left(&self, id: AccountId) -> u64 {
        let account = &self.accounts[id];
        let held = account.holding.persistent;
        account.part.limit.saturating_sub(held)
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
            part: self.parts.of(guest),
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
        self.unmet += account.part.promised - account.unmet();
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

    /// Returns how many bytes of ephemeral memory a guest has.
    pub(super) fn ephemeral_of(&self, id: AccountId) -> u64 {
        self.accounts[id].holding.ephemeral
    }

    /// Returns the ephemeral page that a guest used longest ago, of those that nobody is reading.
    pub(super) fn oldest(&self, id: AccountId, pages: &Table<Page>) -> Option<PageId> {
        self.accounts[id].lru.victim(pages)
    }

    /// Returns how many ephemeral pages there are.
    pub(super) fn ephemeral_pages(&self) -> usize {
        self.ephemeral_pages
    }

    /// Adds a guest's ephemeral page that was just put.
    pub(super) fn push(&mut self, id: AccountId, pages: &mut Table<Page>, page: PageId) {
        let entry = &pages[page.index()];
        self.ephemeral_below += usize::from(entry.is_below());
        self.accounts[id].list(entry).push(pages, page);
        self.ephemeral_pages += 1;
    }

    /// Takes a guest's ephemeral page out.
    pub(super) fn remove(&mut self, id: AccountId, pages: &mut Table<Page>, page: PageId) {
        let entry = &pages[page.index()];
        self.ephemeral_below -= usize::from(entry.is_below());
        self.accounts[id].list(entry).remove(pages, page);
        self.ephemeral_pages -= 1;
    }

    /// Notes that a guest's ephemeral page was used.
    pub(super) fn touch(&mut self, id: AccountId, pages: &mut Table<Page>, page: PageId) {
        let entry = &pages[page.index()];
        self.accounts[id].list(entry).touch(pages, page);
    }

    /// Notes that an ephemeral page of a guest was evicted, by a digest of its key.
    pub(super) fn evict(&mut self, id: AccountId, digest: u32) {
        let account = &mut self.accounts[id];
        account.evicted.evict(digest, account.holding.ephemeral);
    }

    /// Notes that a guest asked in vain for an ephemeral page. `digest` returns that of its key; it is
    /// asked only where something was evicted.
    pub(super) fn miss(&mut self, id: AccountId, digest: impl FnOnce() -> u32) {
        let account = &mut self.accounts[id];
        let missed = account.evicted.miss(digest, account.holding.ephemeral);
        if let (Some(digest), true) = (missed, self.remembers) {
            account.reused.note(digest, account.holding.ephemeral);
        }
    }

    /// Has it be remembered which pages guests come back for, from now on.
    pub(super) fn remember_reuse(&mut self) {
        self.remembers = true;
    }

    /// Notes that a guest came back for an ephemeral page. `digest` returns that of its key.
    pub(super) fn note_reuse(&mut self, id: AccountId, digest: impl FnOnce() -> u32) {
        if self.remembers {
            let account = &mut self.accounts[id];
            account.reused.note(digest(), account.holding.ephemeral);
        }
    }

    /// Returns whether a guest is known to have come back for a page.
    pub(super) fn is_reused(&self, id: AccountId, digest: impl FnOnce() -> u32) -> bool {
        self.remembers && self.accounts[id].reused.has(digest())
    }

    /// Returns the places of all accounts, that of the guest which an ephemeral page is taken from next
    /// first.
    pub(super) fn by_excess(&self) -> Vec<AccountId> {
        let accounts = self.accounts.iter().enumerate();
        let first = victim(accounts.map(|(id, it)| (id, it.holding, it.part.ephemeral)));
        let others = (0..self.accounts.len()).filter(|id| Some(*id) != first);
        first.into_iter().chain(others).collect()
    }

    /// Returns the ephemeral pages in the store that a guest used longest ago, the first of them first.
    pub(super) fn coldest<'a>(
        &'a self,
        id: AccountId,
        pages: &'a Table<Page>,
    ) -> impl Iterator<Item = PageId> + 'a {
        self.accounts[id].lru.oldest(pages)
    }

    /// Returns how many ephemeral pages are in the tier.
    pub(super) fn ephemeral_below(&self) -> usize {
        self.ephemeral_below
    }

    /// Returns the ephemeral page in the tier to drop next, [`None`] if there is none that nobody is
    /// reading.
    pub(super) fn victim_below(&self, pages: &Table<Page>) -> Option<PageId> {
        let of = |id: AccountId| self.accounts[id].below.victim(pages);
        self.by_excess().into_iter().find_map(of)
    }

    /// Returns what more memory would have spared each guest that is there, by its number.
    pub(super) fn near_misses(&self) -> BTreeMap<u32, NearMisses> {
        let there = self.accounts.iter().filter(|account| account.open);
        let near = there.map(|account| {
            let near = account.evicted.near_misses(account.holding.ephemeral);
            (account.guest, near)
        });
        near.collect()
    }

    /// Returns the page to evict next, [`None`] if there is none that nobody is reading.
    pub(super) fn victim(&self, pages: &Table<Page>) -> Option<PageId> {
        let accounts = self.accounts.iter().enumerate();
        let first = victim(accounts.map(|(id, it)| (id, it.holding, it.part.ephemeral)))?;
        let of = |id: AccountId| self.accounts[id].lru.victim(pages);
        // Where all of its pages are being read, somebody else's goes.
        of(first).or_else(|| (0..self.accounts.len()).find_map(of))
    }
}
