// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that direct I/O takes.

use std::ops::{Deref, DerefMut};

/// The alignment, enough for any disk.
const ALIGNMENT: usize = 4096;

/// Bytes that begin at a multiple of 4096.
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Makes `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let bytes = vec![0; len + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, len }
    }

    /// Copies `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut aligned = Self::zeroed(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_multiple_of_the_alignment() {
        for len in [1, 512, 4096, 70_000] {
            let aligned = Aligned::zeroed(len);
            assert_eq!(aligned.as_ptr().align_offset(ALIGNMENT), 0);
            assert_eq!(aligned.len(), len);
        }
    }
}
