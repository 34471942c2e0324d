// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is known of a chunk, and the word by which the next process knows it.

use virtio_tmem_abi::ChunkKind;

/// What becomes of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody has it.
    Free,
    /// The driver has it, or had it until it began to be taken back.
    Granted(ChunkKind),
}

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) state: State,
    /// Odd while it is taken back.
    pub(super) generation: u32,
    /// It was granted by the last request.
    pub(super) fresh: bool,
}

/// The generation of a chunk that is never granted any more. It is odd, so that no driver ever has
/// the chunk in it.
const RETIRED: u32 = u32::MAX;

const EPHEMERAL: u64 = 1;
const PERSISTENT: u64 = 2;
const KIND: u64 = 3;
const FRESH: u64 = 1 << 2;
const GENERATION: u32 = 8;
const CHECK: u32 = 40;

impl Entry {
    /// A chunk that was never granted.
    pub(super) const UNUSED: Self = Self {
        state: State::Free,
        // Memory that nobody wrote says of no chunk that it is the driver's.
        generation: 2,
        fresh: false,
    };

    /// A chunk that is of no use any more: its generation is lost, or cannot be counted up.
    pub(super) const GONE: Self = Self {
        generation: RETIRED,
        ..Self::UNUSED
    };

    /// Returns whether the chunk may be granted.
    pub(super) fn is_free(self) -> bool {
        self.state == State::Free && self.generation % 2 == 0
    }

    /// Returns whether it is being taken back.
    pub(super) fn is_leaving(self) -> bool {
        self.state != State::Free && self.generation % 2 == 1
    }

    /// Returns what the driver has it as, if it has it.
    pub(super) fn granted(self) -> Option<ChunkKind> {
        match self.state {
            State::Granted(kind) if self.generation % 2 == 0 => Some(kind),
            _ => None,
        }
    }

    /// Returns it as it is while it is taken back from the driver.
    pub(super) fn leaving(self) -> Self {
        Self {
            generation: self.generation + 1,
            fresh: false,
            ..self
        }
    }

    /// Returns it as it is once it was taken back.
    pub(super) fn left(self) -> Self {
        // The last even generation is not given out, so that there is always an odd one after it.
        match self.generation.checked_add(1) {
            Some(generation) if generation < RETIRED - 1 => Self {
                generation,
                ..Self::UNUSED
            },
            _ => Self::GONE,
        }
    }

    /// Returns the word that says all this of chunk `number`. One that was never used has zero.
    pub(super) fn word(self, number: u32) -> u64 {
        if self == Self::UNUSED {
            return 0;
        }
        let kind = match self.state {
            State::Free => 0,
            State::Granted(ChunkKind::Ephemeral) => EPHEMERAL,
            State::Granted(ChunkKind::Persistent) => PERSISTENT,
        };
        let fresh = if self.fresh { FRESH } else { 0 };
        let word = kind | fresh | (u64::from(self.generation) << GENERATION);
        word | (check(number, word) << CHECK)
    }

    /// Returns what a word says of chunk `number`, [`None`] if it is damaged.
    pub(super) fn from_word(number: u32, word: u64) -> Option<Self> {
        if word == 0 {
            return Some(Self::UNUSED);
        }
        let low = word & ((1 << CHECK) - 1);
        if word >> CHECK != check(number, low) {
            return None;
        }
        let entry = Self {
            state: match low & KIND {
                0 => State::Free,
                EPHEMERAL => State::Granted(ChunkKind::Ephemeral),
                PERSISTENT => State::Granted(ChunkKind::Persistent),
                _ => return None,
            },
            generation: (low >> GENERATION) as u32,
            fresh: low & FRESH != 0,
        };
        // Nothing else is ever written.
        (entry.word(number) == word).then_some(entry)
    }
}

fn check(number: u32, word: u64) -> u64 {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    bytes[4..].copy_from_slice(&word.to_le_bytes());
    u64::from(crc32c::crc32c(&bytes)) & ((1 << (64 - CHECK)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> impl Iterator<Item = Entry> {
        let states = [
            State::Free,
            State::Granted(ChunkKind::Ephemeral),
            State::Granted(ChunkKind::Persistent),
        ];
        states.into_iter().flat_map(|state| {
            [2, 3, 4, 0x1234_5678, RETIRED - 1, RETIRED].map(|generation| Entry {
                state,
                generation,
                fresh: state != State::Free && generation % 4 == 0,
            })
        })
    }

    #[test]
    fn a_word_says_what_was_written_or_that_it_is_damaged() {
        for entry in entries() {
            for number in [2, 3, 0x1_ffff] {
                let word = entry.word(number);
                assert_eq!(Entry::from_word(number, word), Some(entry));
                for bit in 0..64 {
                    let damaged = word ^ (1 << bit);
                    assert_eq!(
                        Entry::from_word(number, damaged),
                        None,
                        "{entry:?} bit {bit}"
                    );
                }
                if word != 0 {
                    assert_eq!(Entry::from_word(number ^ 1, word), None);
                }
            }
        }
    }

    #[test]
    fn a_chunk_whose_generation_cannot_be_counted_up_is_gone() {
        let mut entry = Entry {
            state: State::Granted(ChunkKind::Ephemeral),
            generation: RETIRED - 5,
            fresh: true,
        };
        entry = entry.leaving().left();
        assert_eq!((entry.is_free(), entry.generation), (true, RETIRED - 3));
        entry.state = State::Granted(ChunkKind::Ephemeral);
        assert!(entry.leaving().is_leaving());
        entry = entry.leaving().left();
        assert_eq!(entry, Entry::GONE);
        assert!(!entry.is_free() && !entry.is_leaving() && entry.granted().is_none());
    }
}
