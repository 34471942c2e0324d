// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sealing pages, so that nobody else reads them, and none comes back that is another.
//!
//! The cipher is XChaCha20-Poly1305. It derives a key from the first 16 bytes of its nonce (by
//! HChaCha20), and uses the last 8 with that. The first say the guest and the start of the worker, so
//! that each guest has a key of its own for each start; the last count. No nonce is ever used twice
//! under one secret: the number of a start is written down before anything is sealed, and no other
//! start has it, whatever became of the worker before.
//!
//! What a page is goes in as associated data: a record of another guest, pool, object, index or
//! version does not open, nor one of a pool that had the same number before.
//!
//! ```text
//! start (8) │ number (8) │ length (2) │ zeros (6) │ ciphertext │ tag (16)
//! ```

use std::{
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use chacha20poly1305::{
    aead::{AeadInPlace, KeyInit},
    Tag, XChaCha20Poly1305, XNonce,
};
use virtio_tmem_abi::Key;
use zerocopy::{
    little_endian::{U16, U32, U64},
    FromBytes, Immutable, IntoBytes, KnownLayout,
};

use super::mark;
use crate::store::PAGE_SIZE;

/// The bytes of a secret.
pub const SECRET: usize = 32;

/// The bytes of a tag.
const TAG: usize = 16;

/// What comes before the ciphertext.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    start: U64,
    number: U64,
    len: U16,
    zeros: [u8; 6],
}

const HEAD: usize = size_of::<Head>();

/// The most bytes that a sealed page has.
pub const MAX_SEALED: usize = HEAD + PAGE_SIZE + TAG;

/// What a page is, for nothing else to pass for it.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Binding {
    /// Whose pool it is in: a guest, or a shared pool.
    pub owner: U32,
    /// The number of the pool.
    pub pool: U32,
    /// What no other pool of that number has.
    pub life: U64,
    /// Object, index and version.
    pub key: Key,
}

/// Seals and opens pages of one start.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    start: u64,
    next: AtomicU64,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the secret.
        let mut sealer = f.debug_struct("Sealer");
        sealer.field("start", &self.start).finish_non_exhaustive()
    }
}

fn nonce(owner: u32, head: &Head) -> XNonce {
    let mut nonce = XNonce::default();
    nonce[..4].copy_from_slice(&owner.to_le_bytes());
    nonce[4..12].copy_from_slice(head.start.as_bytes());
    nonce[16..].copy_from_slice(head.number.as_bytes());
    nonce
}

impl Sealer {
    /// Uses a secret. Nobody has used this start with it before.
    pub fn new(secret: &[u8; SECRET], start: u64) -> Self {
        Self {
            cipher: XChaCha20Poly1305::new(secret.into()),
            start,
            next: AtomicU64::new(0),
        }
    }

    /// Seals what a page was stored as. Returns it, and the number that it got.
    ///
    /// # Panics
    ///
    /// If that is longer than a page.
    pub fn seal(&self, binding: &Binding, contents: &[u8]) -> (Vec<u8>, u64) {
        assert!(contents.len() <= PAGE_SIZE);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let head = Head {
            start: self.start.into(),
            number: number.into(),
            len: (contents.len() as u16).into(),
            zeros: [0; 6],
        };
        let mut sealed = Vec::with_capacity(HEAD + contents.len() + TAG);
        sealed.extend(head.as_bytes());
        sealed.extend(contents);
        let nonce = nonce(binding.owner.get(), &head);
        let tag =
            self.cipher
                .encrypt_in_place_detached(&nonce, binding.as_bytes(), &mut sealed[HEAD..]);
        sealed.extend(tag.expect("a page is not too long for the cipher"));
        (sealed, number)
    }

    /// Opens what was sealed as this, and has this mark, in place. Bytes may follow that are not of it.
    /// [`None`] if it is anything else.
    pub fn open<'s>(
        &self,
        binding: &Binding,
        of_mark: u32,
        sealed: &'s mut [u8],
    ) -> Option<&'s [u8]> {
        let (head, rest) = sealed.split_at_mut_checked(HEAD)?;
        let head = Head::read_from_bytes(head).ok()?;
        if mark(head.number.get()) != of_mark {
            return None;
        }
        let (contents, rest) = rest.split_at_mut_checked(head.len.get().into())?;
        let tag = Tag::clone_from_slice(rest.get(..TAG)?);
        let nonce = nonce(binding.owner.get(), &head);
        let cipher = &self.cipher;
        cipher
            .decrypt_in_place_detached(&nonce, binding.as_bytes(), contents, &tag)
            .ok()?;
        Some(contents)
    }
}

#[cfg(test)]
mod tests {
    use virtio_tmem_abi::ObjectId;

    use super::*;

    fn binding(numbers: [u64; 7]) -> Binding {
        let [owner, pool, life, one, two, index, version] = numbers;
        Binding {
            owner: (owner as u32).into(),
            pool: (pool as u32).into(),
            life: life.into(),
            key: Key {
                object: ObjectId([one.into(), two.into(), 0.into()]),
                index: index.into(),
                version: version.into(),
            },
        }
    }

    const NUMBERS: [u64; 7] = [1, 2, 3, 4, 5, 6, 7];

    #[test]
    fn what_was_sealed_opens_as_what_it_was_alone() {
        let sealer = Sealer::new(&[7; SECRET], 1);
        for len in [1, 100, PAGE_SIZE] {
            let contents = vec![0x5a; len];
            let (sealed, number) = sealer.seal(&binding(NUMBERS), &contents);
            assert!(sealed.len() <= MAX_SEALED);
            assert!(!sealed.windows(8).any(|bytes| bytes == [0x5a; 8]));
            let open = |binding: &Binding, mark: u32, sealed: &[u8]| {
                let mut sealed = [sealed, &[9; 40]].concat();
                let opened = sealer.open(binding, mark, &mut sealed);
                opened.map(<[u8]>::to_vec)
            };
            let opened = open(&binding(NUMBERS), mark(number), &sealed);
            assert_eq!(opened.as_ref(), Some(&contents));
            for which in 0..NUMBERS.len() {
                let mut numbers = NUMBERS;
                numbers[which] += 1;
                assert_eq!(open(&binding(numbers), mark(number), &sealed), None);
            }
            assert_eq!(open(&binding(NUMBERS), mark(number + 1), &sealed), None);
        }
    }

    #[test]
    fn no_bit_of_it_may_be_another() {
        let sealer = Sealer::new(&[7; SECRET], 1);
        let (sealed, number) = sealer.seal(&binding(NUMBERS), b"contents");
        for bit in 0..sealed.len() * 8 {
            // These are of no use yet.
            if (HEAD - 6..HEAD).contains(&(bit / 8)) {
                continue;
            }
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let opened = sealer.open(&binding(NUMBERS), mark(number), &mut damaged);
            assert_eq!(opened, None, "{bit}");
        }
        for len in 0..sealed.len() {
            let mut short = sealed[..len].to_vec();
            assert_eq!(
                sealer.open(&binding(NUMBERS), mark(number), &mut short),
                None
            );
        }
    }

    #[test]
    fn the_next_start_opens_it_and_repeats_nothing() {
        let (one, other) = (Sealer::new(&[7; SECRET], 1), Sealer::new(&[7; SECRET], 2));
        let (mut sealed, number) = one.seal(&binding(NUMBERS), b"contents");
        let (again, same) = other.seal(&binding(NUMBERS), b"contents");
        assert_eq!(number, same);
        assert_ne!(sealed[HEAD..], again[HEAD..]);
        let opened = other.open(&binding(NUMBERS), mark(number), &mut sealed);
        assert_eq!(opened, Some(&b"contents"[..]));
        let foreign = Sealer::new(&[8; SECRET], 1);
        let (mut sealed, number) = one.seal(&binding(NUMBERS), b"contents");
        assert_eq!(
            foreign.open(&binding(NUMBERS), mark(number), &mut sealed),
            None
        );
    }
}
