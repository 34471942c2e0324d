// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! The window: its structures, and requests about it.

use virtio_tmem_abi::{
    window_flags,
    Chunk,
    ChunkGrant,
    ChunkKind,
    ChunkReport,
    Chunks,
    Key,
    Opcode,
    PageResult,
    RequestHeader,
    ResponseHeader,
    SlotKey,
    Status,
    WindowHeader,
    WindowOpen,
    WindowReport,
    CHUNK_SHIFT,
    WINDOW_MAGIC,
    WINDOW_VERSION, //
};
use zerocopy::{
    FromZeros,
    IntoBytes, //
};

use crate::{
    both_ways,
    counting,
    hex,
    object,
    take, //
};

#[test]
fn window_header_bytes() {
    both_ways(
        WindowHeader {
            magic: 0x0807_0605_0403_0201.into(),
            version: 0x0a09.into(),
            page_shift: 0x0b,
            chunk_shift: 0x0c,
            chunks: 0x100f_0e0d.into(),
            identity: [
                0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e,
                0x1f, 0x20,
            ],
            epoch: 0x2827_2625_2423_2221.into(),
            reserved: [
                0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36,
                0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x40,
            ],
        },
        &counting(64),
    );
}

#[test]
fn request_entry_bytes() {
    both_ways(
        WindowOpen {
            flags: 0x0403_0201.into(),
            reserved: [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
        },
        &counting(16),
    );
    both_ways(
        ChunkGrant {
            kind: 0x0403_0201.into(),
            count: 0x0807_0605.into(),
            ticket: 0x100f_0e0d_0c0b_0a09.into(),
        },
        &counting(16),
    );
    both_ways(
        Chunk {
            number: 0x0403_0201.into(),
            generation: 0x0807_0605.into(),
        },
        &counting(8),
    );
    both_ways(
        SlotKey {
            key: Key {
                object: object(
                    0x0807_0605_0403_0201,
                    0x100f_0e0d_0c0b_0a09,
                    0x1817_1615_1413_1211,
                ),
                index: 0x201f_1e1d_1c1b_1a19.into(),
                version: 0x2827_2625_2423_2221.into(),
            },
            slot: 0x2c2b_2a29.into(),
            generation: 0x302f_2e2d.into(),
        },
        &counting(48),
    );
}

#[test]
fn report_bytes() {
    let mut report = WindowReport {
        puts: 0x0807_0605_0403_0201.into(),
        refused: 0x100f_0e0d_0c0b_0a09.into(),
        gets: 0x1817_1615_1413_1211.into(),
        hits: 0x201f_1e1d_1c1b_1a19.into(),
        replaced: 0x2827_2625_2423_2221.into(),
        moved: 0x302f_2e2d_2c2b_2a29.into(),
        ephemeral_free: 0x3433_3231.into(),
        persistent_free: 0x3837_3635.into(),
        near_misses: 0x403f_3e3d_3c3b_3a39.into(),
        near_reach: 0x4847_4645_4443_4241.into(),
        ..WindowReport::new_zeroed()
    };
    report.hits_by_age[0] = 1.into();
    report.hits_by_age[15] = 0x0102.into();
    let mut golden = counting(72);
    golden.resize(256, 0);
    golden[128] = 1;
    golden[248] = 2;
    golden[249] = 1;
    both_ways(report, &golden);
    both_ways(
        ChunkReport {
            used: 0x0201.into(),
            reserved: 0x0403.into(),
            hits: 0x0807_0605.into(),
        },
        &counting(8),
    );
}

/// The header of a window of 4 GiB.
#[test]
fn window_of_a_device() {
    both_ways(
        WindowHeader {
            magic: WINDOW_MAGIC.into(),
            version: WINDOW_VERSION.into(),
            page_shift: 12,
            chunk_shift: CHUNK_SHIFT,
            chunks: 2048.into(),
            identity: *b"\x12\x3e\x45\x67\xe8\x9b\x42\xd3\xa4\x56\x42\x66\x14\x17\x40\x00",
            epoch: 0x1122_3344_5566_7788.into(),
            reserved: [0; 24],
        },
        &hex("
            54 4d 45 4d 57 49 4e 44  0100 0c 15 00080000
            123e4567 e89b 42d3 a456 426614174000
            8877665544332211
            0000000000000000 0000000000000000 0000000000000000
        "),
    );
}

fn header(opcode: Opcode, pool: u32, count: u32) -> RequestHeader {
    RequestHeader {
        opcode: opcode.to_wire().into(),
        flags: 0.into(),
        pool: pool.into(),
        count: count.into(),
        reserved: 0.into(),
        epoch: 0xfe.into(),
        reserved1: 0.into(),
    }
}

fn ok(count: u32) -> ResponseHeader {
    ResponseHeader {
        status: Status::Ok.to_wire().into(),
        detail: 0.into(),
        count: count.into(),
        persistent_credits: 5.into(),
        ephemeral_credits: 6.into(),
        reserved: 0.into(),
        epoch: 0xfe.into(),
    }
}

/// A window that is opened, first by who knows nothing and then by who comes back, and kept.
#[test]
fn opening_and_keeping() {
    let open = |flags: u32| WindowOpen {
        flags: flags.into(),
        reserved: [0; 12],
    };
    let golden = hex("
        2000 0000 00000000 01000000 00000000 fe00000000000000 0000000000000000
        00000000 000000000000000000000000
    ");
    assert_eq!(
        [
            header(Opcode::WindowOpen, 0, 1).as_bytes(),
            open(0).as_bytes(),
        ]
        .concat(),
        golden
    );
    both_ways(
        open(window_flags::RESUME),
        &hex("01000000 000000000000000000000000"),
    );
    both_ways(
        header(Opcode::WindowKeep, 0, 0),
        &hex("2100 0000 00000000 00000000 00000000 fe00000000000000 0000000000000000"),
    );
}

/// Three persistent chunks are asked for, and two granted.
#[test]
fn granting() {
    let wanted = ChunkGrant {
        kind: ChunkKind::Persistent.to_wire().into(),
        count: 3.into(),
        ticket: 0x1_0000_0002.into(),
    };
    let golden = hex("
        2200 0000 00000000 01000000 00000000 fe00000000000000 0000000000000000
        02000000 03000000 0200000001000000
    ");
    assert_eq!(
        [
            header(Opcode::ChunkGrant, 0, 1).as_bytes(),
            wanted.as_bytes(),
        ]
        .concat(),
        golden
    );

    let mut chunks = Chunks::new_zeroed();
    chunks.count = 2.into();
    chunks.chunks[0] = Chunk {
        number: 2.into(),
        generation: 2.into(),
    };
    chunks.chunks[1] = Chunk {
        number: 0x104.into(),
        generation: 6.into(),
    };
    let mut golden = hex("
        01000000 00000000 00000000 05000000 06000000 00000000 fe00000000000000
        02000000 000000000000000000000000
        02000000 02000000
        04010000 06000000
    ");
    golden.resize(544, 0);
    assert_eq!([ok(0).as_bytes(), chunks.as_bytes()].concat(), golden);
    let mut rest = &golden[..];
    assert_eq!(take::<ResponseHeader>(&mut rest), ok(0));
    assert_eq!(take::<Chunks>(&mut rest), chunks);
    assert!(rest.is_empty());
}

#[test]
fn returning() {
    let chunks = [(2, 2), (0x104, 6)].map(|(number, generation): (u32, u32)| Chunk {
        number: number.into(),
        generation: generation.into(),
    });
    let golden = hex("
        2300 0000 00000000 02000000 00000000 fe00000000000000 0000000000000000
        02000000 02000000
        04010000 06000000
    ");
    assert_eq!(
        [
            header(Opcode::ChunkReturn, 0, 2).as_bytes(),
            chunks.as_bytes(),
        ]
        .concat(),
        golden
    );
}

/// A page goes from the window to pool 3, and another is in a chunk that is not the driver's any
/// more.
#[test]
fn putting_by_slot() {
    let entries =
        [(4, 0x401, 2), (5, 0x2_0a00, 6)].map(|(index, slot, generation): (u64, u32, u32)| {
            SlotKey {
                key: Key {
                    object: object(1, 2, 3),
                    index: index.into(),
                    version: 9.into(),
                },
                slot: slot.into(),
                generation: generation.into(),
            }
        });
    let golden = hex("
        0700 0000 03000000 02000000 00000000 fe00000000000000 0000000000000000

        0100000000000000 0200000000000000 0300000000000000
        0400000000000000 0900000000000000 01040000 02000000

        0100000000000000 0200000000000000 0300000000000000
        0500000000000000 0900000000000000 000a0200 06000000
    ");
    assert_eq!(
        [header(Opcode::PutSlot, 3, 2).as_bytes(), entries.as_bytes()].concat(),
        golden
    );

    let results = [PageResult::Stored, PageResult::NoMemory].map(PageResult::to_wire);
    let golden = hex("
        01000000 00000000 02000000 05000000 06000000 00000000 fe00000000000000
        01 12
    ");
    assert_eq!([ok(2).as_bytes(), &results].concat(), golden);
}
