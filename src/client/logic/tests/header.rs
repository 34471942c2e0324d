// SPDX-License-Identifier: GPL-2.0

//! What the window's header says, and what it means for what was put there.

use virtio_tmem_abi::{
    WindowHeader,
    CHUNK_SHIFT,
    WINDOW_MAGIC,
    WINDOW_VERSION, //
};
use virtio_tmem_logic::window::{
    chunks_recalled,
    Serves, //
};

const IDENTITY: [u8; 16] = [7; 16];
const OLD: u64 = 10;
const NEW: u64 = 11;

fn header(epoch: u64) -> WindowHeader {
    WindowHeader {
        magic: WINDOW_MAGIC.into(),
        version: WINDOW_VERSION.into(),
        page_shift: 12,
        chunk_shift: CHUNK_SHIFT,
        chunks: 64.into(),
        identity: IDENTITY,
        epoch: epoch.into(),
        reserved: [0; 24],
    }
}

fn serves(header: &WindowHeader, opened: Option<u64>) -> Serves {
    Serves::of(Some(header), 12, &IDENTITY, NEW, opened)
}

#[test]
fn a_window_that_was_opened_in_this_epoch_is_the_devices() {
    assert_eq!(serves(&header(NEW), Some(OLD)), Serves::Now);
    assert_eq!(serves(&header(NEW), Some(NEW)), Serves::Now);
    assert_eq!(serves(&header(NEW), None), Serves::Now);
}

#[test]
fn a_window_that_nobody_touched_has_what_was_put_there() {
    assert_eq!(serves(&header(OLD), Some(OLD)), Serves::Before);
    // Some other epoch is not the one in which this driver had it.
    assert_eq!(serves(&header(OLD), Some(OLD - 1)), Serves::Nobody);
    assert_eq!(serves(&header(OLD), None), Serves::Nobody);
}

#[test]
fn what_is_anything_else_has_nothing() {
    assert_eq!(
        Serves::of(None, 12, &IDENTITY, NEW, Some(OLD)),
        Serves::Nobody
    );
    let other = |change: fn(&mut WindowHeader)| {
        let mut header = header(NEW);
        change(&mut header);
        serves(&header, Some(NEW))
    };
    assert_eq!(other(|header| header.magic = 0.into()), Serves::Nobody);
    assert_eq!(other(|header| header.version = 2.into()), Serves::Nobody);
    assert_eq!(other(|header| header.page_shift = 14), Serves::Nobody);
    assert_eq!(other(|header| header.chunk_shift = 20), Serves::Nobody);
    assert_eq!(other(|header| header.identity[15] = 0), Serves::Nobody);
}

#[test]
fn what_is_leaving_already_is_not_asked_for_twice() {
    assert_eq!(chunks_recalled(0, 0), 0);
    assert_eq!(chunks_recalled(1, 0), 1);
    assert_eq!(chunks_recalled(10 * 512, 0), 10);
    assert_eq!(chunks_recalled(10 * 512, 4), 6);
    assert_eq!(chunks_recalled(10 * 512, 40), 0);
    assert_eq!(chunks_recalled(u64::MAX, 1), u64::MAX / 512);
}
