// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What of the capacity is lent to guests, for pages that they keep by themselves.
//!
//! The store knows of it only how much it is: it has so much less for pages of its own, and counts it
//! as its guest's.

use super::{
    inner::{Inner, Refusal},
    spans::SPAN_SIZE,
    Guest, PoolKind, Store, BATCH, PAGE_SIZE,
};

/// How often room is made, under one hold of the lock each, before it is given up that there is any:
/// others may take what was made.
const ROUNDS: usize = 64;

/// The part of the capacity that is not lent for ephemeral pages, and for whose sake what was lent
/// is wanted back.
const RESERVE: u64 = 32;

/// What one hold of the lock came to.
enum Lent {
    Done,
    /// Some room was made.
    More,
}

impl Store {
    /// Lends so many bytes of the capacity to a guest. For persistent pages it evicts ephemeral ones
    /// of anybody, takes nothing that another guest was promised, and goes no further than the guest's
    /// limit; for ephemeral pages it takes what is free, up to the guest's share where others have
    /// shares. False if there is not so much.
    pub fn lend(&self, guest: &Guest, kind: PoolKind, bytes: u64) -> bool {
        for _ in 0..ROUNDS {
            match self.lock().lend_step(guest.number(), kind, bytes) {
                Ok(Lent::Done) => return true,
                Ok(Lent::More) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// Lends what a guest has already, as the next process learns.
    pub fn lend_again(&self, guest: &Guest, kind: PoolKind, bytes: u64) {
        if !self.lend(guest, kind, bytes) {
            self.lock().note_lent(guest.number(), kind, bytes);
        }
    }

    /// Takes note that a guest gave back what it was lent.
    pub fn end_loan(&self, guest: &Guest, kind: PoolKind, bytes: u64) {
        self.lock().end_loan(guest.number(), kind, bytes);
        self.wake_watchers();
    }

    /// Returns whether a guest has less than it was promised.
    pub fn is_promised_more(&self, guest: &Guest) -> bool {
        let inner = self.lock();
        let guest = inner.guests.get(&guest.number());
        guest.is_some_and(|guest| inner.accounts.unmet(guest.account).0 > 0)
    }

    /// Returns how many bytes are wanted back of what was lent for ephemeral pages, so that there is
    /// some room for whoever puts next.
    pub fn wanted_back(&self) -> u64 {
        let inner = self.lock();
        let room = inner.room() as u64 * PAGE_SIZE as u64;
        let lacking = inner.budget.lent_too_much() as u64;
        inner.kept_free().saturating_sub(room) + lacking
    }
}

impl Inner {
    fn kept_free(&self) -> u64 {
        self.budget.capacity() as u64 / RESERVE
    }

    fn lend_step(&mut self, guest: u32, kind: PoolKind, bytes: u64) -> Result<Lent, Refusal> {
        let account = self.guest_pools(guest).account;
        let room = self.room();
        let grown = usize::try_from(bytes).ok();
        let grown = grown.and_then(|bytes| self.budget.lend(bytes));
        let grown = grown.ok_or(Refusal::OverQuota)?;
        let limit = grown.span_limit();
        match kind {
            PoolKind::Persistent => {
                let room = self.room_of(room, account) as u64 * PAGE_SIZE as u64;
                if room < bytes {
                    return Err(Refusal::OverQuota);
                }
                for _ in 0..BATCH {
                    if self.slots.spans().used() <= limit {
                        break;
                    }
                    self.make_room()?;
                }
                if self.slots.spans().used() > limit {
                    return Ok(Lent::More);
                }
            }
            PoolKind::Ephemeral => {
                if !self.accounts.may_borrow(account) {
                    return Err(Refusal::OverQuota);
                }
                let used = self.slots.spans().used() as u64 * SPAN_SIZE as u64;
                if used + self.kept_free() > limit as u64 * SPAN_SIZE as u64 {
                    return Err(Refusal::OverQuota);
                }
            }
        }
        if !self.trim(limit) {
            return Err(Refusal::OverQuota);
        }
        self.note_lent(guest, kind, bytes);
        Ok(Lent::Done)
    }

    fn note_lent(&mut self, guest: u32, kind: PoolKind, bytes: u64) {
        let account = self.guest_pools(guest).account;
        self.budget = self.budget.lent_anyway(bytes as usize);
        self.accounts.lend(account, kind, bytes);
    }

    fn end_loan(&mut self, guest: u32, kind: PoolKind, bytes: u64) {
        let Some(account) = self.guests.get(&guest).map(|guest| guest.account) else {
            return;
        };
        let bytes = self.accounts.end_loan(account, kind, bytes);
        self.budget = self.budget.returned(bytes as usize);
    }
}
