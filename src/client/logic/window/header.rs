// SPDX-License-Identifier: GPL-2.0

//! What the window's header says of what is in it.

use virtio_tmem_abi::WindowHeader;

/// Whose a window is that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// It is that of the device, which has opened it in the epoch that is in force.
    Now,
    /// Nobody has touched it since it was opened in an earlier epoch: what was put there is still
    /// there, but the device does not lend anything of it, as where it has another file by now.
    Before,
    /// It is something else: what was put there is gone, whatever the generations say, which are
    /// somebody else's.
    Nobody,
}

impl Serves {
    /// Reads a header, [`None`] if there is no memory any more.
    ///
    /// `identity` is the window's, `epoch` the one that is in force, and `opened` the one in which the
    /// window was opened last, if it was.
    pub fn of(
        header: Option<&WindowHeader>,
        page_shift: u8,
        identity: &[u8; 16],
        epoch: u64,
        opened: Option<u64>,
    ) -> Self {
        let Some(header) = header else {
            return Self::Nobody;
        };
        let known = header.is_known(page_shift) && header.identity == *identity;

        match header.epoch.get() {
            says if known && says == epoch => Self::Now,
            says if known && Some(says) == opened => Self::Before,
            _ => Self::Nobody,
        }
    }
}

/// Returns how many persistent chunks are to leave for a device that asks for so many slots in all,
/// where so many are leaving already.
///
/// The device asks again as long as it needs memory, so that what is on its way to it counts.
pub fn chunks_recalled(slots: u64, leaving: u32) -> u64 {
    slots
        .div_ceil(super::SLOTS_PER_CHUNK.into())
        .saturating_sub(leaving.into())
}
