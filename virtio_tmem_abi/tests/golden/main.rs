// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! Golden vectors: the bytes of every structure, and of whole requests and responses.
//!
//! Whoever has to change a vector here changes the ABI.

mod requests;
mod structures;
mod window;

use std::fmt::Debug;

use virtio_tmem_abi::ObjectId;
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

pub(crate) const PAGE: usize = 4096;

/// Decodes hexadecimal digits; whitespace between them is for the reader only.
pub(crate) fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| u8::try_from(c.to_digit(16).expect("A digit")).unwrap())
        .collect();
    assert_eq!(digits.len() % 2, 0);
    digits
        .chunks_exact(2)
        .map(|pair| (pair[0] << 4) | pair[1])
        .collect()
}

/// Checks that `value` is written as `bytes`, and that `bytes` are read as `value`.
#[track_caller]
pub(crate) fn both_ways<T>(value: T, bytes: &[u8])
where
    T: FromBytes + IntoBytes + Immutable + PartialEq + Debug,
{
    assert_eq!(value.as_bytes(), bytes);
    assert_eq!(T::read_from_bytes(bytes).unwrap(), value);
}

/// Takes a `T` off the front of `bytes`.
#[track_caller]
pub(crate) fn take<T: FromBytes>(bytes: &mut &[u8]) -> T {
    let (value, rest) = T::read_from_prefix(bytes).expect("Bytes for the type");
    *bytes = rest;
    value
}

/// Returns the bytes 1, 2, 3 and so on, so that each field of a structure, and each byte of a
/// field, has a value of its own.
pub(crate) fn counting(len: u8) -> Vec<u8> {
    (1..=len).collect()
}

pub(crate) fn object(a: u64, b: u64, c: u64) -> ObjectId {
    ObjectId([a.into(), b.into(), c.into()])
}
