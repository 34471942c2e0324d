// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Words that say who wrote them, when and where.
//!
//! | bits | what |
//! |---|---|
//! | 0–19 | the word's place in its file when it was written |
//! | 20–43 | the generation: which write of the run it was |
//! | 44–51 | the file that it was written to |
//! | 52–63 | a check of the others, never zero |

use std::fmt;

const CHECK_SHIFT: u32 = 52;
const FILE_SHIFT: u32 = 44;
const GENERATION_SHIFT: u32 = 20;

/// Bytes in the longest file that words can be numbered in.
pub const MAX_FILE: usize = 8 << 20;

/// The generations after which counting would begin anew.
pub const MAX_GENERATION: u32 = 1 << 24;

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file that it was written to.
    pub file: u8,
    /// Which write of the run it was.
    pub generation: u32,
    /// The byte at which it was written.
    pub offset: u64,
}

fn check(rest: u64) -> u64 {
    let hash = (rest ^ (rest >> 23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> CHECK_SHIFT) | 1
}

impl Origin {
    fn encode(self) -> u64 {
        let rest = (self.offset / 8) & ((1 << GENERATION_SHIFT) - 1)
            | (u64::from(self.generation % MAX_GENERATION) << GENERATION_SHIFT)
            | (u64::from(self.file) << FILE_SHIFT);
        rest | (check(rest) << CHECK_SHIFT)
    }

    fn decode(word: u64) -> Option<Self> {
        let rest = word & ((1 << CHECK_SHIFT) - 1);
        (word >> CHECK_SHIFT == check(rest)).then(|| Self {
            file: (rest >> FILE_SHIFT).to_le_bytes()[0],
            generation: u32::try_from((rest >> GENERATION_SHIFT) % u64::from(MAX_GENERATION))
                .unwrap_or(u32::MAX),
            offset: (rest & ((1 << GENERATION_SHIFT) - 1)) * 8,
        })
    }
}

/// Fills `bytes`, which belong at `offset` of `file`, as the write number `generation`.
pub fn fill(bytes: &mut [u8], file: u8, generation: u32, offset: u64) {
    let mut place = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = Origin {
            file,
            generation,
            offset: place,
        };
        let skip = usize::try_from(place % 8).unwrap_or(0);
        let bytes = word.encode().to_le_bytes();
        let count = (8 - skip).min(rest.len());
        let (now, later) = rest.split_at_mut(count);
        now.copy_from_slice(&bytes[skip..skip + count]);
        place += count as u64;
        rest = later;
    }
}

/// What stands at a place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Zeros, as in a hole.
    Zero,
    /// A word of this workload.
    Written(Origin),
    /// Something else, or parts of two words.
    Mixed(u64),
    /// Nothing: the file ends there.
    End,
}

impl Content {
    /// Reads the word around `offset` of `bytes`, which begin at a multiple of eight.
    pub fn at(bytes: &[u8], offset: usize) -> Self {
        let start = offset / 8 * 8;
        let Some(word) = bytes.get(start..start + 8) else {
            return if offset < bytes.len() {
                Self::Mixed(0)
            } else {
                Self::End
            };
        };
        let word = u64::from_le_bytes(word.try_into().unwrap_or([0; 8]));
        match Origin::decode(word) {
            _ if word == 0 => Self::Zero,
            Some(origin) => Self::Written(origin),
            None => Self::Mixed(word),
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "zeros"),
            Self::Written(Origin {
                file,
                generation,
                offset,
            }) => write!(
                f,
                "generation {generation}, written to file {file} at {offset}"
            ),
            Self::Mixed(word) => write!(f, "mixed bytes {word:#018x}"),
            Self::End => write!(f, "the file's end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        let mut bytes = vec![0; 64];
        fill(&mut bytes, 7, 1234, 4096);
        assert_eq!(
            Content::at(&bytes, 17),
            Content::Written(Origin {
                file: 7,
                generation: 1234,
                offset: 4112,
            })
        );
    }

    #[test]
    fn any_byte_range_equals_that_part_of_the_whole() {
        let mut whole = vec![0; 256];
        fill(&mut whole, 1, 5, 0);
        for start in 0..40 {
            for end in start..60 {
                let mut part = vec![0; end - start];
                fill(&mut part, 1, 5, start as u64);
                assert_eq!(part, whole[start..end]);
            }
        }
    }

    #[test]
    fn generations_differ_in_every_word() {
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        fill(&mut old, 1, 1, 0);
        fill(&mut new, 1, 2, 0);
        let pairs = || old.chunks(8).zip(new.chunks(8));
        assert_eq!(pairs().filter(|(old, new)| old == new).count(), 0);
    }

    #[test]
    fn no_word_is_zero() {
        let mut bytes = vec![0; 8];
        fill(&mut bytes, 0, 0, 0);
        assert_ne!(bytes, [0; 8]);
    }

    #[test]
    fn damage_is_no_word() {
        let mut bytes = vec![0; 8];
        fill(&mut bytes, 3, 77, 512);
        bytes[2] ^= 1;
        assert!(matches!(Content::at(&bytes, 0), Content::Mixed(_)));
        assert_eq!(Content::at(&bytes, 8), Content::End);
    }
}
