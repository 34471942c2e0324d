// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The entries of pages and objects. They are their own descriptions for the next process: each is
//! in force or not by one store of one word, which has a check of what it says.
//!
//! The process may end at any instruction. Its memory stays coherent then, so that what matters is
//! the order in which a thread writes, and not when other processors see it: an entry is in force
//! only while all that it says, and the contents that it leads to, are there.

use std::{
    num::NonZeroU32,
    sync::atomic::{compiler_fence, Ordering},
};

use virtio_tmem_abi::ObjectId;
use zerocopy::{little_endian::U64, FromZeros};

use super::{id::Link, slots::Slot};
use crate::tier::Below;

/// What a page's entry and its slot are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageState {
    /// It is free, or about to be linked: no key leads here.
    Unlinked = 0,
    /// A key leads here.
    Linked = 1,
    /// As `Linked`, but a get is taking it: a key leads here, and finds nothing.
    Taking = 2,
    /// No key leads here any more; the last get or put that still copies frees it.
    Orphan = 3,
    /// As `Linked`, but a put is copying into the slot: a key leads here, and finds nothing yet.
    Filling = 4,
}

impl PageState {
    /// Returns whether the next process is to find the page.
    fn is_in_force(self) -> bool {
        matches!(self, Self::Linked | Self::Taking)
    }
}

/// What a page consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Nothing. Where a key leads to the page, its contents were lost.
    Nothing,
    /// The same word, again and again.
    Same(u64),
    /// The first `len` bytes of a slot: the page as it is, or compressed.
    Slot { slot: Slot, len: u16 },
    /// It is in the tier below the store.
    Below(Below),
}

impl Body {
    fn form(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Same(_) => 1,
            Self::Slot { .. } => 2,
            Self::Below(_) => 3,
        }
    }

    fn bits(self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::Same(word) => word,
            Self::Slot { slot, len } => (slot.to_bits() << 16) | u64::from(len),
            Self::Below(below) => below.to_bits(),
        }
    }
}

const STATE: u32 = 16;
const FORM: u32 = 19;
const USED: u32 = 21;
const PIN: u32 = 22;
const STATE_MASK: u32 = 7 << STATE;
const FORM_MASK: u32 = 3 << FORM;
const USED_MASK: u32 = 1 << USED;
const CHECK_MASK: u32 = (1 << STATE) - 1;

/// The most gets and puts that can copy a page at a time.
pub(super) const MAX_PINS: u32 = u32::MAX >> PIN;

/// The entry of one page.
///
/// # Invariants
///
/// The fields that the check covers only change while the entry is not in force, or by
/// [`Self::set_moved`].
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Page {
    pub(super) index: U64,
    version: U64,
    /// The word, or the slot.
    body: U64,
    pub(super) object: Link,
    pub(super) bucket_next: Link,
    pub(super) object_prev: Link,
    pub(super) object_next: Link,
    /// The neighbours of an ephemeral page in its list. Of a persistent one, a check of its
    /// contents if it has one, and whether this process knows that they are right.
    pub(super) lru_prev: Link,
    pub(super) lru_next: Link,
    /// A check of 16 bits, the state, the form of the body, whether the page was used, and the pins:
    /// gets that are copying from the slot or wait for the tier, what moves the page there, and the
    /// put that is copying into it. The check is zero where the entry is not
    /// in force, and never where it is.
    word: u32,
}

/// A check of the contents of a page, as they are stored.
pub(super) type Check = NonZeroU32;

/// Returns the check of some contents.
pub(super) fn check_of(contents: &[u8]) -> Check {
    NonZeroU32::new(crc32c::crc32c(contents)).unwrap_or(NonZeroU32::MIN)
}

/// What a page's entry says to a process that finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No page is here.
    Free,
    /// A page that was stored.
    InForce,
    /// It was damaged: something was here, or not.
    Broken,
}

impl Page {
    pub(super) fn state(&self) -> PageState {
        match (self.word & STATE_MASK) >> STATE {
            0 => PageState::Unlinked,
            1 => PageState::Linked,
            2 => PageState::Taking,
            4 => PageState::Filling,
            _ => PageState::Orphan,
        }
    }

    pub(super) fn version(&self) -> u64 {
        self.version.get()
    }

    pub(super) fn body(&self) -> Body {
        let body = self.body.get();
        match (self.word & FORM_MASK) >> FORM {
            1 => Body::Same(body),
            2 => Body::Slot {
                slot: Slot::from_bits(body >> 16),
                len: body as u16,
            },
            3 => Body::Below(Below::from_bits(body)),
            _ => Body::Nothing,
        }
    }

    /// Returns whether its contents are in the tier.
    pub(super) fn is_below(&self) -> bool {
        (self.word & FORM_MASK) >> FORM == 3
    }

    /// Returns whether it was used: of an ephemeral page, whether its guest is known to come back for
    /// it; of a persistent one, whether it was put or got since the store looked for cold pages last.
    pub(super) fn is_used(&self) -> bool {
        self.word & USED_MASK != 0
    }

    /// Notes whether it was used. That is a hint, which no check is of.
    pub(super) fn set_used(&mut self, used: bool) {
        self.word = (self.word & !USED_MASK) | (u32::from(used) << USED);
    }

    pub(super) fn pins(&self) -> u32 {
        self.word >> PIN
    }

    /// Adds a pin; false if there are too many.
    pub(super) fn pin(&mut self) -> bool {
        let may = self.pins() < MAX_PINS;
        if may {
            self.word += 1 << PIN;
        }
        may
    }

    pub(super) fn unpin(&mut self) {
        debug_assert_ne!(self.pins(), 0);
        self.word -= 1 << PIN;
    }

    /// Notes the check of a persistent page's contents, which were just written, if it has one.
    pub(super) fn set_contents(&mut self, check: Option<Check>) {
        self.lru_prev = check;
        self.set_verified(true);
    }

    /// Returns the check that the contents of a persistent page are to be compared with, if they
    /// have not been yet.
    pub(super) fn unverified(&self) -> Option<Check> {
        self.lru_prev.filter(|_| self.lru_next.is_none())
    }

    /// Notes whether this process knows that a persistent page's contents are right.
    pub(super) fn set_verified(&mut self, verified: bool) {
        self.lru_next = verified.then_some(NonZeroU32::MIN);
    }

    /// Returns whether a key leads to the page and nobody copies it.
    pub(super) fn is_idle(&self) -> bool {
        self.state() == PageState::Linked && self.pins() == 0
    }

    /// Has a put fill the page with another version. Nobody copies it.
    pub(super) fn begin_filling(&mut self, version: u64) {
        self.set_state(PageState::Filling);
        self.word += 1 << PIN;
        self.version = version.into();
    }

    /// Changes the state, by one store, and puts the entry in force by it or out of force.
    pub(super) fn set_state(&mut self, state: PageState) {
        let check = if state.is_in_force() {
            u32::from(self.computed_check())
        } else {
            0
        };
        let rest = self.word & !(STATE_MASK | CHECK_MASK);
        self.store_word(rest | ((state as u32) << STATE) | check);
    }

    /// Changes the body of an entry that is not in force.
    pub(super) fn set_body(&mut self, body: Body) {
        debug_assert!(!self.state().is_in_force());
        self.body = body.bits().into();
        self.word = (self.word & !FORM_MASK) | (body.form() << FORM);
    }

    /// Returns the entry as it is with its contents in another slot.
    pub(super) fn moved(&self, body: Body) -> Self {
        let mut moved = *self;
        moved.body = body.bits().into();
        moved.word = (moved.word & !(FORM_MASK | CHECK_MASK)) | (body.form() << FORM);
        moved.word |= u32::from(moved.computed_check());
        moved
    }

    /// Takes over what [`Self::moved`] returned. An end between two stores leaves the entry broken,
    /// so that whoever calls this has written down what it is to be before.
    pub(super) fn set_moved(&mut self, body: u64, word: u32) {
        self.body = body.into();
        self.store_word(word);
    }

    /// Returns what [`Self::set_moved`] takes.
    pub(super) fn to_moved(self) -> (u64, u32) {
        (self.body.get(), self.word)
    }

    /// Returns what the entry says to a process that finds it.
    pub(super) fn verdict(&self) -> Verdict {
        let check = self.word & CHECK_MASK;
        let state = (self.word & STATE_MASK) >> STATE;
        if self.state().is_in_force() && check == u32::from(self.computed_check()) {
            Verdict::InForce
        } else if state <= 4 && !self.state().is_in_force() && check == 0 {
            Verdict::Free
        } else {
            Verdict::Broken
        }
    }

    /// Forgets all that another process was doing with the page.
    pub(super) fn let_go(&mut self) {
        self.word &= (1 << PIN) - 1;
        if self.state() == PageState::Taking {
            self.set_state(PageState::Linked);
        }
    }

    /// Makes an entry say that it is free, if it does not say just that.
    pub(super) fn clear(&mut self) {
        // What was never written is not written now.
        if self.word != 0 {
            self.store_word(0);
        }
    }

    fn computed_check(&self) -> u16 {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.index.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.version.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.body.get().to_le_bytes());
        bytes[24..28].copy_from_slice(&self.object.map_or(0, u32::from).to_le_bytes());
        bytes[28..].copy_from_slice(&(self.word & FORM_MASK).to_le_bytes());
        let check = crc32c::crc32c(&bytes);
        // Folded so that no three bits that are wrong make up for each other.
        ((check as u16) ^ ((check >> 16) as u16).swap_bytes()).max(1)
    }

    fn store_word(&mut self, word: u32) {
        store_last(&mut self.word, word);
    }
}

/// Stores what puts all else that this thread has written in force, or out of force what it writes
/// after it: no store moves over this one.
pub(super) fn store_last<T: Copy>(to: &mut T, value: T) {
    #[cfg(test)]
    super::crash_tests::moment();
    compiler_fence(Ordering::SeqCst);
    // SAFETY: A reference is valid and aligned. Being volatile, the store stays one, here.
    unsafe { std::ptr::from_mut(to).write_volatile(value) };
    compiler_fence(Ordering::SeqCst);
    #[cfg(test)]
    super::crash_tests::moment();
}

/// One object that has pages.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Object {
    pub(super) id: ObjectId,
    pub(super) pool: u32,
    /// Pages, never zero in an object that is in use.
    pub(super) pages: u32,
    pub(super) bucket_next: Link,
    pub(super) first: Link,
    pub(super) last: Link,
    pub(super) pool_prev: Link,
    pub(super) pool_next: Link,
    /// Of the pool and the id. An object without pages in force says nothing to anybody, whatever
    /// this is.
    check: u32,
}

impl Object {
    /// Returns an object without pages.
    pub(super) fn new(pool: u32, id: ObjectId) -> Self {
        let mut this = Self {
            id,
            pool,
            ..Self::new_zeroed()
        };
        this.check = this.computed_check();
        this
    }

    /// Returns whether it is what was written.
    pub(super) fn is_sound(&self) -> bool {
        self.check == self.computed_check()
    }

    fn computed_check(&self) -> u32 {
        let mut bytes = [0; 28];
        for (to, word) in bytes.chunks_exact_mut(8).zip(self.id.0) {
            to.copy_from_slice(&word.get().to_le_bytes());
        }
        bytes[24..].copy_from_slice(&self.pool.to_le_bytes());
        // Zeros are no object.
        !crc32c::crc32c(&bytes)
    }
}

/// A move of a page's contents that is under way: what its entry is to be. At most one is, as the
/// store's lock is held over it.
#[derive(Clone, Copy, Debug, FromZeros)]
#[repr(C)]
pub(super) struct Move {
    body: U64,
    page: Link,
    word: u32,
    /// Zero where there is none.
    check: u32,
}

impl Move {
    /// Writes a move down.
    pub(super) fn begin(&mut self, page: Link, (body, word): (u64, u32)) {
        self.body = body.into();
        self.page = page;
        self.word = word;
        let check = self.computed_check();
        store_last(&mut self.check, check);
    }

    /// Notes that the entry is what it is to be.
    pub(super) fn end(&mut self) {
        store_last(&mut self.check, 0);
    }

    /// Returns the move that is under way, if any.
    pub(super) fn pending(&self) -> Option<(Link, u64, u32)> {
        let valid = self.check != 0 && self.check == self.computed_check();
        valid.then_some((self.page, self.body.get(), self.word))
    }

    fn computed_check(&self) -> u32 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.body.get().to_le_bytes());
        bytes[8..12].copy_from_slice(&self.page.map_or(0, u32::from).to_le_bytes());
        bytes[12..].copy_from_slice(&self.word.to_le_bytes());
        crc32c::crc32c(&bytes).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::id::PageId;

    fn page() -> Page {
        let mut page = Page::new_zeroed();
        page.index = 0x1234_5678_9abc_u64.into();
        page.object = PageId::from_index(77).link();
        page.set_body(Body::Same(0xdead_beef));
        page.begin_filling(42);
        page.unpin();
        page
    }

    /// Returns the entry with one bit of what it says the other way round.
    fn flipped(page: &Page, bit: usize) -> Page {
        let mut page = *page;
        let (at, bit) = (bit / 8, 1 << (bit % 8));
        let flip = |word: &mut U64, at: usize| {
            let mut bytes: [u8; 8] = word.get().to_le_bytes();
            bytes[at] ^= bit;
            *word = u64::from_le_bytes(bytes).into();
        };
        match at {
            0..8 => flip(&mut page.index, at),
            8..16 => flip(&mut page.version, at - 8),
            16..24 => flip(&mut page.body, at - 16),
            24..28 => {
                let link = page.object.map_or(0, u32::from) ^ (u32::from(bit) << (8 * (at - 24)));
                page.object = NonZeroU32::new(link);
            }
            _ => page.word ^= u32::from(bit) << (8 * (at - 28)),
        }
        page
    }

    /// The bits of what an entry says, without its pins, and whether it was used.
    const BITS: usize = 28 * 8 + USED as usize;

    #[test]
    fn every_bit_of_an_entry_in_force_is_checked() {
        let mut page = page();
        page.set_state(PageState::Linked);
        assert_eq!(page.verdict(), Verdict::InForce);
        for one in 0..BITS {
            let once = flipped(&page, one);
            let verdict = once.verdict();
            // Whether a get was taking the page does not matter.
            let taking = once.state() == PageState::Taking && verdict == Verdict::InForce;
            assert!(
                verdict == Verdict::Broken || taking,
                "bit {one}: {verdict:?}"
            );
        }
    }

    #[test]
    fn no_two_bits_make_an_entry_in_force_say_something_else() {
        let mut page = page();
        page.set_state(PageState::Linked);
        let said = |page: &Page| {
            let (index, version) = (page.index.get(), page.version());
            (index, version, page.object, page.body())
        };
        for one in 0..28 * 8 + 32 {
            for other in 0..one {
                let twice = flipped(&flipped(&page, one), other);
                if twice.verdict() == Verdict::InForce {
                    assert_eq!(said(&twice), said(&page), "bits {one} and {other}");
                }
                let free = twice.verdict() == Verdict::Free;
                assert!(!free, "bits {one} and {other}");
            }
        }
    }

    #[test]
    fn no_bit_makes_a_free_entry_be_in_force() {
        for state in [PageState::Unlinked, PageState::Orphan, PageState::Filling] {
            let mut page = page();
            page.set_state(PageState::Linked);
            page.set_state(state);
            assert_eq!(page.verdict(), Verdict::Free);
            for bit in 0..BITS {
                assert_ne!(flipped(&page, bit).verdict(), Verdict::InForce);
            }
        }
        assert_eq!(Page::new_zeroed().verdict(), Verdict::Free);
        assert!(!Object::new_zeroed().is_sound());
        assert_eq!(Move::new_zeroed().pending(), None);
    }

    #[test]
    fn pins_are_counted_and_do_not_touch_what_is_said() {
        let mut page = page();
        page.set_state(PageState::Linked);
        for _ in 0..MAX_PINS {
            assert!(page.pin());
        }
        assert!(!page.pin());
        assert_eq!((page.pins(), page.verdict()), (MAX_PINS, Verdict::InForce));
        page.unpin();
        page.set_state(PageState::Taking);
        assert_eq!(page.pins(), MAX_PINS - 1);
        page.let_go();
        assert!(page.is_idle());
    }

    #[test]
    fn a_move_that_was_written_down_can_be_made_up_for() {
        let mut page = page();
        page.set_state(PageState::Linked);
        let moved = page.moved(Body::Same(5)).to_moved();
        let mut log = Move::new_zeroed();
        log.begin(PageId::from_index(3).link(), moved);
        // Half of it was done.
        page.body = 5.into();
        assert_eq!(page.verdict(), Verdict::Broken);
        let (_, body, word) = log.pending().unwrap();
        page.set_moved(body, word);
        assert_eq!(
            (page.verdict(), page.body()),
            (Verdict::InForce, Body::Same(5))
        );
        log.end();
        assert_eq!(log.pending(), None);
    }
}
