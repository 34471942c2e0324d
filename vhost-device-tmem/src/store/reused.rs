// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which ephemeral pages guests come back for. A guest takes such a page out of the store when it reads
//! it, and puts it again once it has no room for it: that it was read is remembered here meanwhile. So is
//! a page that was asked for shortly after it had been evicted. Of each there is a digest of its key.

use super::PAGE_SIZE;

/// The fewest, and the most, pages that are remembered.
const LEAST: usize = 1 << 10;
const MOST: usize = 1 << 18;

/// The pages of a guest that it came back for last.
///
/// # Invariants
///
/// There is no digest, or there are as many places as a power of two. Each is where its lowest bits
/// say; zero is none.
#[derive(Debug, Default)]
pub(super) struct Reused {
    digests: Vec<u32>,
}

/// Returns of how many pages there is to be room for, where a guest has so many bytes.
fn places(held: u64) -> usize {
    // Compressed, they are more than that.
    let pages = usize::try_from(held / PAGE_SIZE as u64 * 4).unwrap_or(MOST);
    pages.clamp(LEAST, MOST).next_power_of_two()
}

impl Reused {
    fn place(&self, digest: u32) -> usize {
        digest as usize & (self.digests.len() - 1)
    }

    /// Notes that a guest, which has so many bytes, came back for a page. Another one may be forgotten
    /// for it.
    pub(super) fn note(&mut self, digest: u32, held: u64) {
        let places = places(held);
        if self.digests.len() < places {
            let before = std::mem::replace(&mut self.digests, vec![0; places]);
            for digest in before {
                let place = self.place(digest);
                self.digests[place] = digest;
            }
        }
        let place = self.place(digest);
        self.digests[place] = digest;
    }

    /// Returns whether the guest is known to have come back for a page.
    pub(super) fn has(&self, digest: u32) -> bool {
        digest != 0 && !self.digests.is_empty() && self.digests[self.place(digest)] == digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_came_back_for_is_known() {
        let mut reused = Reused::default();
        assert!(!reused.has(5) && !reused.has(0));
        reused.note(5, 0);
        assert!(reused.has(5) && !reused.has(0));
        // Another takes its place.
        reused.note(5 + LEAST as u32, 0);
        assert!(!reused.has(5));
        // There are more places where the guest has more, and nothing is lost by that.
        reused.note(5, u64::MAX);
        assert!(reused.has(5) && reused.has(5 + LEAST as u32));
        assert_eq!(reused.digests.len(), MOST);
    }
}
