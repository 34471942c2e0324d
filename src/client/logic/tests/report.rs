// SPDX-License-Identifier: GPL-2.0

//! What the device is told of the window.

use virtio_tmem_logic::window::{
    ChunkReport,
    Report,
    AGES, //
};

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn hits_are_told_apart_by_powers_of_two() {
    for (age, place) in [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 2),
        (4, 3),
        (7, 3),
        (8, 4),
        (16_383, 14),
        (16_384, 15),
        (u32::MAX, 15),
    ] {
        assert_eq!(Report::age(age), place, "{age} seconds");
    }
    assert_eq!(Report::age(u32::MAX), AGES - 1);
}

#[test]
fn it_is_written_as_specified() {
    let mut report = Report {
        puts: 1,
        refused: 2,
        gets: 3,
        hits: 4,
        replaced: 5,
        moved: 6,
        near_misses: 11,
        near_reach: 12,
        ..Report::default()
    };
    report.hits_by_age[0] = 7;
    report.hits_by_age[15] = 8;
    let bytes = report.encode(9, 10);
    for n in 0..6 {
        assert_eq!(word(&bytes, 8 * n), n as u64 + 1);
    }
    assert_eq!(word(&bytes, 48), 9 | (10 << 32));
    assert_eq!((word(&bytes, 56), word(&bytes, 64)), (11, 12));
    assert_eq!(bytes[72..128], [0; 56]);
    assert_eq!((word(&bytes, 128), word(&bytes, 248)), (7, 8));
    assert_eq!(bytes.len(), 256);

    let chunk = ChunkReport {
        used: 0x0102,
        hits: 0x0304_0506,
    };
    assert_eq!(chunk.encode(), [2, 1, 0, 0, 6, 5, 4, 3]);
}
