// SPDX-License-Identifier: GPL-2.0

//! Who waits for tokens, and whether the device has to interrupt for it.

/// How many kinds of tokens there are, told apart by who waits for them.
pub(super) const KINDS: usize = 8;

/// Who waits for a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    /// Somebody who sleeps until the device interrupts.
    pub(super) const SLEEPER: Self = Self(0);

    /// Returns the number, which is below [`KINDS`].
    #[inline]
    pub(super) const fn number(self) -> usize {
        self.0 as usize % KINDS
    }

    /// Returns the kind with this number, modulo [`KINDS`].
    #[inline]
    pub(super) const fn from_number(number: usize) -> Self {
        // CAST: `KINDS` is small.
        Self((number % KINDS) as u8)
    }
}

/// Who waits for the tokens of one virtqueue.
///
/// The device need not interrupt as long as all who wait look for their tokens themselves. It has
/// to if nobody looks, and if anybody waits who does not look, or does not any more: those who do
/// may not get to run for long, or look at the virtqueue only until they have got their own.
///
/// # Invariants
///
/// `asleep` is the sum of `out` over the kinds whose bit is not set in `polling`; that of
/// [`Kind::SLEEPER`] never is.
pub(super) struct Watchers {
    /// How many tokens of each kind the device has.
    out: [u32; KINDS],
    /// A bit for each kind for which somebody looks.
    polling: u32,
    /// How many tokens the device has for which nobody looks.
    asleep: u32,
}

impl Watchers {
    #[inline]
    pub(super) const fn new() -> Self {
        // INVARIANT: All is zero.
        Self {
            out: [0; KINDS],
            polling: 0,
            asleep: 0,
        }
    }

    /// Returns the kind of the tokens of somebody who looks for them from now on, or [`None`] if
    /// there are too many who do.
    #[inline]
    pub(super) fn poll(&mut self) -> Option<Kind> {
        let kind = (1..KINDS)
            .map(Kind::from_number)
            .find(|&kind| !self.is_polled(kind) && self.out(kind) == 0)?;

        // INVARIANT: There are no tokens of the kind.
        self.polling |= bit(kind);
        Some(kind)
    }

    /// Nobody looks for tokens of this kind any more: whoever waits for those that are out sleeps.
    #[inline]
    pub(super) fn leave(&mut self, kind: Kind) {
        if self.is_polled(kind) {
            self.polling &= !bit(kind);
            // INVARIANT: They count from now on.
            self.asleep = self.asleep.wrapping_add(self.out(kind));
        }
    }

    /// The device was given a token.
    ///
    /// Returns whether it did not need to interrupt before, but now does.
    #[inline]
    pub(super) fn added(&mut self, kind: Kind) -> bool {
        let before = self.want_interrupt();

        self.change(kind, 1);
        !before && self.want_interrupt()
    }

    /// The device gave a token back.
    #[inline]
    pub(super) fn used(&mut self, kind: Kind) {
        // CAST: Minus one.
        self.change(kind, u32::MAX);
    }

    /// Returns how many tokens of this kind the device has.
    #[inline]
    pub(super) fn out(&self, kind: Kind) -> u32 {
        self.out[kind.number()]
    }

    /// Returns whether the device has to interrupt when it has used a token.
    #[inline]
    pub(super) fn want_interrupt(&self) -> bool {
        self.polling == 0 || self.asleep > 0
    }

    #[inline]
    fn is_polled(&self, kind: Kind) -> bool {
        self.polling & bit(kind) != 0
    }

    #[inline]
    fn change(&mut self, kind: Kind, by: u32) {
        let out = &mut self.out[kind.number()];

        *out = out.wrapping_add(by);
        if !self.is_polled(kind) {
            // INVARIANT: As `out` of a kind for which nobody looks.
            self.asleep = self.asleep.wrapping_add(by);
        }
    }
}

#[inline]
fn bit(kind: Kind) -> u32 {
    1 << kind.number()
}
