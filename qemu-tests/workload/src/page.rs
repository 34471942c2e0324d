// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pages that say whose they are.
//!
//! The first five words of a page name it; all others follow from the name. A page found in the
//! wrong place therefore tells where it belongs, and one that is torn or damaged tells that.
//! Every eighth page cannot be compressed, and every sixteenth is one word over and over.

use std::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

const WORDS: usize = PAGE_SIZE / 8;
const HEADER_WORDS: usize = 5;
const MAGIC: u64 = u64::from_le_bytes(*b"tmemPAGE");

/// The name of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// What the whole run was started with.
    pub seed: u64,
    /// The file or job that the page belongs to.
    pub owner: u32,
    /// Its place there.
    pub page: u64,
    /// How often it has been written.
    pub generation: u32,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            seed,
            owner,
            page,
            generation,
        } = self;
        write!(
            f,
            "page {page} of {owner}, generation {generation}, seed {seed}"
        )
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Tag {
    fn hash(&self) -> u64 {
        let place = mix(self.seed ^ mix(self.page));
        mix(place ^ ((u64::from(self.owner) << 32) | u64::from(self.generation)))
    }

    fn words(&self) -> [u64; WORDS] {
        let hash = self.hash();
        let mut words = [hash; WORDS];
        match self.page % 16 {
            7 => return words,
            3 | 11 => {
                let mut state = hash;
                for word in &mut words[HEADER_WORDS..] {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *word = state ^ (state >> 29);
                }
            }
            _ => {
                for (place, word) in words.iter_mut().enumerate() {
                    *word = hash.wrapping_add((place / 8) as u64);
                }
            }
        }
        words[0] = MAGIC;
        words[1] = self.seed;
        words[2] = (u64::from(self.owner) << 32) | u64::from(self.generation);
        words[3] = self.page;
        words[4] = hash;
        words
    }

    /// Writes the page of this name into `page`.
    ///
    /// # Panics
    ///
    /// Panics if `page` is not [`PAGE_SIZE`] bytes long.
    pub fn fill(&self, page: &mut [u8]) {
        assert_eq!(page.len(), PAGE_SIZE);
        for (bytes, word) in page.chunks_exact_mut(8).zip(self.words()) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// Returns whether `page` holds exactly the page of this name.
    pub fn matches(&self, page: &[u8]) -> bool {
        page.len() == PAGE_SIZE
            && page
                .chunks_exact(8)
                .zip(self.words())
                .all(|(bytes, word)| bytes == word.to_le_bytes())
    }

    fn named_by(page: &[u8]) -> Option<Self> {
        let word = |place: usize| {
            page.get(place * 8..place * 8 + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u64::from_le_bytes)
        };
        let owner_and_generation = word(2)?;
        let tag = Self {
            seed: word(1)?,
            owner: u32::try_from(owner_and_generation >> 32).ok()?,
            page: word(3)?,
            generation: u32::try_from(owner_and_generation & u64::from(u32::MAX)).ok()?,
        };
        (word(0)? == MAGIC && word(4)? == tag.hash()).then_some(tag)
    }

    /// Says what `page` is, which was expected to be the page of this name.
    pub fn diagnose(&self, page: &[u8]) -> Found {
        if self.matches(page) {
            return Found::Right;
        }
        if page.iter().all(|&byte| byte == 0) {
            return Found::Zero;
        }
        // A page of one word over and over has no header: try what it could have been.
        let older = (0..self.generation)
            .map(|generation| Self {
                generation,
                ..*self
            })
            .find(|tag| tag.matches(page));
        let Some(tag) = older.or_else(|| Self::named_by(page)) else {
            return Found::Garbage;
        };
        if !tag.matches(page) {
            return Found::Torn(tag);
        }
        if (tag.seed, tag.owner, tag.page) == (self.seed, self.owner, self.page) {
            Found::Generation(tag.generation)
        } else {
            Found::Other(tag)
        }
    }
}

/// What a page turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The page expected.
    Right,
    /// Nothing but zeros.
    Zero,
    /// The right page, of another generation: stale if that is a lower one.
    Generation(u32),
    /// Another page of this workload, whole.
    Other(Tag),
    /// A page that begins as the named one and goes on otherwise.
    Torn(Tag),
    /// None of those.
    Garbage,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Right => write!(f, "the right page"),
            Self::Zero => write!(f, "a zero page"),
            Self::Generation(generation) => write!(f, "generation {generation} of it"),
            Self::Other(tag) => write!(f, "another page: {tag}"),
            Self::Torn(tag) => write!(f, "a torn page that begins as: {tag}"),
            Self::Garbage => write!(f, "garbage"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(page: u64) -> Tag {
        Tag {
            seed: 9,
            owner: 3,
            page,
            generation: 2,
        }
    }

    fn filled(tag: Tag) -> Vec<u8> {
        let mut page = vec![0xee; PAGE_SIZE];
        tag.fill(&mut page);
        page
    }

    #[test]
    fn a_page_matches_only_its_own_name() {
        for number in 0..32 {
            let own = tag(number);
            let page = filled(own);
            assert_eq!(own.diagnose(&page), Found::Right);
            for other in [
                Tag { seed: 8, ..own },
                Tag { owner: 4, ..own },
                Tag {
                    page: number + 1,
                    ..own
                },
                Tag {
                    generation: 3,
                    ..own
                },
            ] {
                assert!(!other.matches(&page), "{other}");
            }
        }
    }

    #[test]
    fn an_older_generation_is_recognised_in_every_kind_of_page() {
        for number in 0..16 {
            let page = filled(Tag {
                generation: 1,
                ..tag(number)
            });
            assert_eq!(tag(number).diagnose(&page), Found::Generation(1));
        }
    }

    #[test]
    fn a_misplaced_page_tells_where_it_belongs() {
        let page = filled(tag(5));
        assert_eq!(tag(6).diagnose(&page), Found::Other(tag(5)));
    }

    #[test]
    fn a_zero_page_is_recognised() {
        assert_eq!(tag(1).diagnose(&[0; PAGE_SIZE]), Found::Zero);
    }

    #[test]
    fn one_wrong_byte_anywhere_is_noticed() {
        for place in 0..PAGE_SIZE {
            for number in [0, 3, 7] {
                let mut page = filled(tag(number));
                page[place] ^= 0x10;
                assert_ne!(tag(number).diagnose(&page), Found::Right, "byte {place}");
            }
        }
    }

    #[test]
    fn a_torn_page_is_recognised() {
        let mut page = filled(tag(0));
        page[2048..].fill(0);
        assert_eq!(tag(0).diagnose(&page), Found::Torn(tag(0)));
    }
}
