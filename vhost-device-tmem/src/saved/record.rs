// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Records and their payloads.

use virtio_tmem_abi::Key;
use zerocopy::{FromBytes, IntoBytes};

use crate::store::{Hold, PageBytes, PAGE_SIZE};

/// The most pages, and the most keys of pages that are gone, of one record.
pub const MAX_PAGES: usize = 32;

/// The longest name, and the longest text, in bytes.
const MAX_TEXT: usize = 4096;

const SAME: u8 = 0;
const RAW: u8 = 1;

/// What a stream consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Whose pages they are. The first record.
    Guest(GuestHead),
    /// A persistent pool.
    Pool(PoolHead),
    /// Pages of a pool.
    Pages {
        /// The pool.
        pool: u32,
        /// The pages, 1 to [`MAX_PAGES`].
        pages: Vec<Page>,
    },
    /// Pages of a pool that are not there any more.
    Gone {
        /// The pool.
        pool: u32,
        /// Their keys, 1 to [`MAX_PAGES`].
        keys: Vec<Key>,
    },
    /// All before that was written while the guest ran.
    Live {
        /// How many pages those were.
        pages: u64,
    },
    /// That was all.
    End(Totals),
    /// It could not be brought to its end.
    Failed(String),
    /// Pages that the guest had and the stream has not, since they could not be read back.
    Damaged {
        /// How many those were.
        pages: u64,
    },
}

/// Whose pages a stream has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestHead {
    /// The epoch in which they were put.
    pub epoch: u64,
    /// The binary logarithm of the page size.
    pub page_shift: u8,
    /// The guest's name.
    pub name: String,
}

/// A persistent pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolHead {
    /// The number that the guest gave it.
    pub number: u32,
    /// What a reset of the device does to it.
    pub hold: Hold,
}

/// A page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Its key, with its version.
    pub key: Key,
    /// What it consists of.
    pub contents: Contents,
}

/// What a page consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// One word, again and again.
    Same(u64),
    /// Bytes that do not repeat one word.
    Raw(Box<PageBytes>),
}

impl Contents {
    /// Returns what a page consists of.
    pub fn of(page: &PageBytes) -> Self {
        let (first, rest) = page.split_at(size_of::<u64>());
        let repeats = rest.chunks_exact(first.len()).all(|word| word == first);
        match first.try_into() {
            Ok(word) if repeats => Self::Same(u64::from_le_bytes(word)),
            _ => Self::Raw(Box::new(*page)),
        }
    }

    /// Writes the page.
    pub fn fill(&self, page: &mut PageBytes) {
        match self {
            Self::Same(word) => {
                for bytes in page.chunks_exact_mut(size_of::<u64>()) {
                    bytes.copy_from_slice(&word.to_le_bytes());
                }
            }
            Self::Raw(bytes) => page.copy_from_slice(&**bytes),
        }
    }
}

/// How much a stream has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Pages, those included that others took the place of.
    pub pages: u64,
    /// Keys of pages that are gone.
    pub gone: u64,
    /// Pages that are missing.
    pub damaged: u64,
}

impl Totals {
    /// Counts a record.
    pub(super) fn add(&mut self, record: &Record) {
        match record {
            Record::Pages { pages, .. } => self.pages += pages.len() as u64,
            Record::Gone { keys, .. } => self.gone += keys.len() as u64,
            Record::Damaged { pages } => self.damaged = *pages,
            _ => {}
        }
    }
}

impl Record {
    /// Returns the number of its kind.
    pub(super) fn kind(&self) -> u32 {
        match self {
            Self::Guest(_) => 1,
            Self::Pool(_) => 2,
            Self::Pages { .. } => 3,
            Self::Gone { .. } => 4,
            Self::Live { .. } => 5,
            Self::End(_) => 6,
            Self::Failed(_) => 7,
            Self::Damaged { .. } => 8,
        }
    }

    /// Returns the payload.
    pub(super) fn payload(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Self::Guest(head) => {
                bytes.extend(head.epoch.to_le_bytes());
                bytes.push(head.page_shift);
                bytes.extend(text(&head.name));
            }
            Self::Pool(head) => {
                bytes.extend(head.number.to_le_bytes());
                bytes.push(hold_number(head.hold));
            }
            Self::Pages { pool, pages } => {
                bytes.extend(pool.to_le_bytes());
                bytes.extend((pages.len() as u32).to_le_bytes());
                for Page { key, contents } in pages {
                    bytes.extend(key.as_bytes());
                    match contents {
                        Contents::Same(word) => {
                            bytes.push(SAME);
                            bytes.extend(word.to_le_bytes());
                        }
                        Contents::Raw(page) => {
                            bytes.push(RAW);
                            bytes.extend(&**page);
                        }
                    }
                }
            }
            Self::Gone { pool, keys } => {
                bytes.extend(pool.to_le_bytes());
                bytes.extend(keys.as_slice().as_bytes());
            }
            Self::Live { pages } | Self::Damaged { pages } => bytes.extend(pages.to_le_bytes()),
            Self::End(totals) => {
                bytes.extend(totals.pages.to_le_bytes());
                bytes.extend(totals.gone.to_le_bytes());
                bytes.extend(totals.damaged.to_le_bytes());
            }
            Self::Failed(why) => bytes.extend(text(why)),
        }
        bytes
    }

    /// Reads a record. [`None`] if there is none that has this payload.
    pub(super) fn parse(kind: u32, payload: &[u8]) -> Option<Self> {
        let mut input = Input(payload);
        let record = match kind {
            1 => Self::Guest(GuestHead {
                epoch: input.u64()?,
                page_shift: input.u8()?,
                name: input.text()?,
            }),
            2 => Self::Pool(PoolHead {
                number: input.u32()?,
                hold: hold_of(input.u8()?)?,
            }),
            3 => {
                let pool = input.u32()?;
                let count = input.u32()? as usize;
                if !(1..=MAX_PAGES).contains(&count) {
                    return None;
                }
                let pages = (0..count).map(|_| input.page()).collect::<Option<_>>()?;
                Self::Pages { pool, pages }
            }
            4 => {
                let pool = input.u32()?;
                let mut keys = Vec::new();
                while !input.0.is_empty() && keys.len() < MAX_PAGES {
                    keys.push(input.key()?);
                }
                if keys.is_empty() {
                    return None;
                }
                Self::Gone { pool, keys }
            }
            5 => Self::Live {
                pages: input.u64()?,
            },
            6 => Self::End(Totals {
                pages: input.u64()?,
                gone: input.u64()?,
                damaged: input.u64()?,
            }),
            7 => Self::Failed(input.text()?),
            8 => Self::Damaged {
                pages: input.u64()?,
            },
            _ => return None,
        };
        input.0.is_empty().then_some(record)
    }
}

/// Returns as much of a text as a record has room for.
fn text(text: &str) -> &[u8] {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}

fn hold_number(hold: Hold) -> u8 {
    match hold {
        Hold::Stays => 0,
        Hold::Held => 1,
        Hold::Kept => 2,
    }
}

fn hold_of(number: u8) -> Option<Hold> {
    [Hold::Stays, Hold::Held, Hold::Kept]
        .into_iter()
        .find(|hold| hold_number(*hold) == number)
}

/// What is left of a payload.
struct Input<'p>(&'p [u8]);

impl<'p> Input<'p> {
    fn take(&mut self, len: usize) -> Option<&'p [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn key(&mut self) -> Option<Key> {
        Key::read_from_bytes(self.take(size_of::<Key>())?).ok()
    }

    fn page(&mut self) -> Option<Page> {
        let key = self.key()?;
        let contents = match self.u8()? {
            SAME => Contents::Same(self.u64()?),
            RAW => {
                let page: &PageBytes = self.take(PAGE_SIZE)?.try_into().ok()?;
                // One way to write a page, and no other.
                match Contents::of(page) {
                    Contents::Same(_) => return None,
                    raw @ Contents::Raw(_) => raw,
                }
            }
            _ => return None,
        };
        Some(Page { key, contents })
    }

    fn text(&mut self) -> Option<String> {
        let bytes = self.take(self.0.len())?;
        if bytes.len() > MAX_TEXT {
            return None;
        }
        String::from_utf8(bytes.to_vec()).ok()
    }
}
