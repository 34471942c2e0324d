// SPDX-License-Identifier: GPL-2.0

//! How the driver stands with its device, and what may be done then.
//!
//! It is a set of reasons, kept in one word, so that who puts a page has a single question to ask:
//! whether there is any reason not to. Reasons come and go independently: a device may fall silent
//! while it is drained.

/// Why not all is done that could be. No reason at all: everything works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing(u32);

/// Nothing has been set up yet.
pub const FRESH: u32 = 1 << 0;
/// Nothing new is put: what is there is on its way out.
pub const LEAVING: u32 = 1 << 1;
/// The device does not answer.
pub const SILENT: u32 = 1 << 2;
/// The device is reset and has no virtqueues, but is going to be back.
pub const SUSPENDED: u32 = 1 << 3;
/// The device has named another epoch, which has not been taken over yet.
pub const OUTDATED: u32 = 1 << 4;
/// There is no device any more.
pub const GONE: u32 = 1 << 5;
/// The device has lost a page that it had promised to keep: it is given no more of them.
pub const UNTRUSTED: u32 = 1 << 6;

/// What whoever wants a page that only the device has is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Ask for it.
    Ask,
    /// Wait: it may be asked for later.
    Wait,
    /// Do without.
    Never,
}

impl Standing {
    /// The standing for a word.
    #[inline]
    pub const fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// Returns whether any of some reasons is there.
    #[inline]
    pub const fn is(self, reasons: u32) -> bool {
        self.0 & reasons != 0
    }

    /// Returns whether pages may be put.
    #[inline]
    pub const fn may_put(self) -> bool {
        self.0 == 0
    }

    /// Returns whether pages may be put where the device need not be asked.
    #[inline]
    pub const fn may_put_here(self) -> bool {
        self.0 & !SILENT == 0
    }

    /// Returns whether ephemeral pages may be got from where the device need not be asked.
    #[inline]
    pub const fn may_get_here(self) -> bool {
        !self.is(FRESH | SUSPENDED | OUTDATED | GONE)
    }

    /// Returns whether the device can be asked for something, and be expected to answer.
    #[inline]
    pub const fn answers(self) -> bool {
        !self.is(FRESH | SILENT | SUSPENDED | OUTDATED | GONE)
    }

    /// Returns what is to be done about an ephemeral page: it can be read elsewhere, now.
    #[inline]
    pub const fn ephemeral(self) -> Access {
        if self.0 == 0 {
            Access::Ask
        } else {
            Access::Never
        }
    }

    /// Returns what is to be done about a persistent page: nobody else has it.
    #[inline]
    pub const fn persistent(self) -> Access {
        if self.is(GONE) {
            Access::Never
        } else if self.is(SUSPENDED | OUTDATED | FRESH) {
            Access::Wait
        } else {
            Access::Ask
        }
    }

    /// Returns the word that the operator sees.
    pub const fn name(self) -> &'static str {
        if self.is(GONE) {
            "gone"
        } else if self.is(SUSPENDED | FRESH) {
            "suspended"
        } else if self.is(SILENT) {
            "silent"
        } else if self.is(UNTRUSTED) {
            "untrusted"
        } else if self.is(LEAVING) {
            "draining"
        } else {
            "running"
        }
    }
}
