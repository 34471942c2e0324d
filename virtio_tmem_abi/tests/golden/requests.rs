// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! Whole requests, responses and events.

use std::fmt::Debug;

use virtio_tmem_abi::{
    cap,
    pool_flags,
    request_flags,
    Config,
    Event,
    EventKind,
    Key,
    Malformed,
    Opcode,
    PageResult,
    PoolCreate,
    PoolStats,
    Range,
    RequestHeader,
    ResponseHeader,
    Status,
    ABI_MAJOR,
    ABI_MINOR,
    CREDITS_UNLIMITED,
    DEVICE_ID,
    EPOCH_NONE,
    FIRST_DATA_QUEUE,
    MAGIC,
    QUEUE_CONTROL,
    QUEUE_EVENT, //
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes, //
};

use crate::{
    both_ways,
    hex,
    object,
    take,
    PAGE, //
};

#[test]
fn config_of_a_device() {
    assert_eq!(DEVICE_ID, 6);
    assert_eq!([QUEUE_CONTROL, QUEUE_EVENT, FIRST_DATA_QUEUE], [0u16, 1, 2]);
    both_ways(
        Config {
            magic: MAGIC.into(),
            abi_major: ABI_MAJOR.into(),
            abi_minor: ABI_MINOR.into(),
            capabilities: cap::ALL.into(),
            page_shift: 12,
            reserved0: 0,
            data_queues: 4.into(),
            max_pages: 32.into(),
            max_flushes: 512.into(),
            max_pools: 64.into(),
            epoch: 0x1122_3344_5566_7788.into(),
            window: *b"\x12\x3e\x45\x67\xe8\x9b\x42\xd3\xa4\x56\x42\x66\x14\x17\x40\x00",
            reserved1: [0; 7],
            end: 0,
        },
        &hex("
            54 4d 45 4d  0100  0200
            3f00000000000000
            0c  00  0400  20000000
            00020000  40000000
            8877665544332211
            123e4567 e89b 42d3 a456 426614174000
            00000000000000  00
        "),
    );
}

/// A put of two pages into pool 3; the device stores one and refuses the other.
#[test]
fn put_of_two_pages() {
    let header = RequestHeader {
        opcode: Opcode::Put.to_wire().into(),
        flags: 0.into(),
        pool: 3.into(),
        count: 2.into(),
        reserved: 0.into(),
        epoch: 0x1122_3344_5566_7788.into(),
        reserved1: 0.into(),
    };
    let keys = [
        Key {
            object: object(0xa1, 0xb1, 0xc1),
            index: 0x1_0000_0002.into(),
            version: 9.into(),
        },
        Key {
            object: object(0xa2, 0xb2, 0xc2),
            index: u64::MAX.into(),
            version: 10.into(),
        },
    ];
    let mut request = Vec::new();
    request.extend(header.as_bytes());
    request.extend(keys.as_bytes());
    request.extend([0x5a; PAGE]);
    request.extend([0xa5; PAGE]);

    let mut golden = hex("
        0100 0000 03000000 02000000 00000000
        8877665544332211 0000000000000000

        a100000000000000 b100000000000000 c100000000000000
        0200000001000000 0900000000000000

        a200000000000000 b200000000000000 c200000000000000
        ffffffffffffffff 0a00000000000000
    ");
    golden.extend(hex(&"5a".repeat(PAGE)));
    golden.extend(hex(&"a5".repeat(PAGE)));
    assert_eq!(golden.len(), 32 + 2 * 40 + 2 * PAGE);
    assert_eq!(request, golden);

    let mut rest = &golden[..];
    assert_eq!(take::<RequestHeader>(&mut rest), header);
    assert_eq!(take::<[Key; 2]>(&mut rest), keys);
    assert_eq!(take::<[u8; PAGE]>(&mut rest), [0x5a; PAGE]);
    assert_eq!(take::<[u8; PAGE]>(&mut rest), [0xa5; PAGE]);
    assert!(rest.is_empty());
    assert_eq!(Opcode::from_wire(header.opcode.get()), Some(Opcode::Put));

    let header = ResponseHeader {
        status: Status::Ok.to_wire().into(),
        detail: 0.into(),
        count: 2.into(),
        persistent_credits: 0.into(),
        ephemeral_credits: CREDITS_UNLIMITED.into(),
        reserved: 0.into(),
        epoch: 0x1122_3344_5566_7788.into(),
    };
    let results = [PageResult::Stored, PageResult::OverQuota];
    let mut response = header.as_bytes().to_vec();
    response.extend(results.map(PageResult::to_wire));
    let golden = hex("
        01000000 00000000 02000000 00000000
        ffffffff 00000000 8877665544332211
        01 10
    ");
    assert_eq!(response, golden);

    let mut rest = &golden[..];
    assert_eq!(take::<ResponseHeader>(&mut rest), header);
    assert_eq!(
        take::<[u8; 2]>(&mut rest).map(PageResult::from_wire),
        results.map(Some)
    );
    assert!(rest.is_empty());
}

/// A get that takes: the device has two of three pages, and one of them it cannot read.
#[test]
fn get_and_take() {
    let header = RequestHeader {
        opcode: Opcode::Get.to_wire().into(),
        flags: request_flags::TAKE.into(),
        pool: 0x0102_0304.into(),
        count: 3.into(),
        reserved: 0.into(),
        epoch: 1.into(),
        reserved1: 0.into(),
    };
    let keys = [7, 8, 9].map(|index: u64| Key {
        object: object(1, 0, 0),
        index: index.into(),
        version: (index << 32).into(),
    });
    let mut request = header.as_bytes().to_vec();
    request.extend(keys.as_bytes());
    let golden = hex("
        0200 0100 04030201 03000000 00000000
        0100000000000000 0000000000000000

        0100000000000000 0000000000000000 0000000000000000
        0700000000000000 0000000007000000

        0100000000000000 0000000000000000 0000000000000000
        0800000000000000 0000000008000000

        0100000000000000 0000000000000000 0000000000000000
        0900000000000000 0000000009000000
    ");
    assert_eq!(golden.len(), 32 + 3 * 40);
    assert_eq!(request, golden);

    let mut rest = &golden[..];
    assert_eq!(take::<RequestHeader>(&mut rest), header);
    assert_eq!(take::<[Key; 3]>(&mut rest), keys);
    assert!(rest.is_empty());

    let header = ResponseHeader {
        status: Status::Ok.to_wire().into(),
        detail: 0.into(),
        count: 3.into(),
        persistent_credits: 5.into(),
        ephemeral_credits: 6.into(),
        reserved: 0.into(),
        epoch: 1.into(),
    };
    let results = [PageResult::Hit, PageResult::Miss, PageResult::Damaged];
    let mut response = header.as_bytes().to_vec();
    response.extend(results.map(PageResult::to_wire));
    response.extend([0x3c; PAGE]);
    response.extend([0; 2 * PAGE]);
    let mut golden = hex("
        01000000 00000000 03000000 05000000
        06000000 00000000 0100000000000000
        02 03 20
    ");
    golden.extend(hex(&"3c".repeat(PAGE)));
    golden.extend(hex(&"00".repeat(2 * PAGE)));
    assert_eq!(golden.len(), 32 + 3 + 3 * PAGE);
    assert_eq!(response, golden);

    let mut rest = &golden[..];
    assert_eq!(take::<ResponseHeader>(&mut rest), header);
    assert_eq!(
        take::<[u8; 3]>(&mut rest).map(PageResult::from_wire),
        results.map(Some)
    );
    assert_eq!(take::<[u8; PAGE]>(&mut rest), [0x3c; PAGE]);
    assert_eq!(rest.len(), 2 * PAGE);
}

/// A flush of a page, of a range and of an object, and the answer to each of them.
#[test]
fn flushes() {
    fn header(opcode: Opcode, count: u32) -> RequestHeader {
        RequestHeader {
            opcode: opcode.to_wire().into(),
            flags: 0.into(),
            pool: 2.into(),
            count: count.into(),
            reserved: 0.into(),
            epoch: 0xfe.into(),
            reserved1: 0.into(),
        }
    }

    fn both<T>(header: RequestHeader, entry: T, golden: &[u8])
    where
        T: FromBytes + IntoBytes + Immutable + PartialEq + Debug,
    {
        assert_eq!([header.as_bytes(), entry.as_bytes()].concat(), golden);
        let mut rest = golden;
        assert_eq!(take::<RequestHeader>(&mut rest), header);
        assert_eq!(take::<T>(&mut rest), entry);
        assert!(rest.is_empty());
    }

    both(
        header(Opcode::FlushPage, 1),
        Key {
            object: object(1, 2, 3),
            index: 4.into(),
            version: 5.into(),
        },
        &hex("
            0300 0000 02000000 01000000 00000000 fe00000000000000 0000000000000000
            0100000000000000 0200000000000000 0300000000000000
            0400000000000000 0500000000000000
        "),
    );
    both(
        header(Opcode::FlushRange, 1),
        Range {
            object: object(1, 2, 3),
            first: 0x10.into(),
            last: u64::MAX.into(),
        },
        &hex("
            0400 0000 02000000 01000000 00000000 fe00000000000000 0000000000000000
            0100000000000000 0200000000000000 0300000000000000
            1000000000000000 ffffffffffffffff
        "),
    );
    both(
        header(Opcode::FlushObject, 2),
        [object(1, 2, 3), object(4, 5, 6)],
        &hex("
            0500 0000 02000000 02000000 00000000 fe00000000000000 0000000000000000
            0100000000000000 0200000000000000 0300000000000000
            0400000000000000 0500000000000000 0600000000000000
        "),
    );
    assert_eq!(
        header(Opcode::FlushPool, 0).as_bytes(),
        hex("0600 0000 02000000 00000000 00000000 fe00000000000000 0000000000000000")
    );

    let header = ResponseHeader {
        status: Status::Ok.to_wire().into(),
        detail: 0.into(),
        count: 2.into(),
        persistent_credits: 1.into(),
        ephemeral_credits: 2.into(),
        reserved: 0.into(),
        epoch: 0xfe.into(),
    };
    let golden = hex("
        01000000 00000000 02000000 01000000
        02000000 00000000 fe00000000000000
        04 05
    ");
    let mut rest = &golden[..];
    assert_eq!(take::<ResponseHeader>(&mut rest), header);
    assert_eq!(
        rest,
        [PageResult::Flushed, PageResult::Absent].map(PageResult::to_wire)
    );
    assert_eq!([header.as_bytes(), rest].concat(), golden);
}

/// The creation of a shared pool, of a persistent one and of one that a reset releases.
#[test]
fn pool_creation() {
    let header = RequestHeader {
        opcode: Opcode::PoolCreate.to_wire().into(),
        flags: 0.into(),
        pool: 63.into(),
        count: 1.into(),
        reserved: 0.into(),
        epoch: 0x0100_0000_0000_0000.into(),
        reserved1: 0.into(),
    };
    let shared = PoolCreate {
        flags: pool_flags::SHARED.into(),
        page_shift: 12,
        reserved: [0; 11],
        uuid: *b"\x12\x3e\x45\x67\xe8\x9b\x42\xd3\xa4\x56\x42\x66\x14\x17\x40\x00",
    };
    let golden = hex("
        1000 0000 3f000000 01000000 00000000
        0000000000000001 0000000000000000

        02000000 0c 0000000000000000000000
        123e4567 e89b 42d3 a456 426614174000
    ");
    assert_eq!(golden.len(), 64);
    assert_eq!([header.as_bytes(), shared.as_bytes()].concat(), golden);

    let mut rest = &golden[..];
    assert_eq!(take::<RequestHeader>(&mut rest), header);
    assert_eq!(take::<PoolCreate>(&mut rest), shared);
    assert!(rest.is_empty());

    both_ways(
        PoolCreate {
            flags: pool_flags::PERSISTENT.into(),
            page_shift: 16,
            reserved: [0; 11],
            uuid: [0; 16],
        },
        &hex("
            01000000 10 0000000000000000000000
            00000000 0000 0000 0000 000000000000
        "),
    );
    both_ways(
        PoolCreate {
            flags: (pool_flags::PERSISTENT | pool_flags::RELEASED_BY_RESET).into(),
            page_shift: 12,
            reserved: [0; 11],
            uuid: [0; 16],
        },
        &hex("
            05000000 0c 0000000000000000000000
            00000000 0000 0000 0000 000000000000
        "),
    );
}

/// What a driver says of a pool before a reset from which it means to come back.
#[test]
fn pool_keep() {
    both_ways(
        RequestHeader {
            opcode: Opcode::PoolKeep.to_wire().into(),
            flags: 0.into(),
            pool: 1.into(),
            count: 0.into(),
            reserved: 0.into(),
            epoch: 0xfe.into(),
            reserved1: 0.into(),
        },
        &hex("1300 0000 01000000 00000000 00000000 fe00000000000000 0000000000000000"),
    );
}

/// What a driver reads that was given less than the whole configuration space: ones.
#[test]
fn config_that_was_cut_short() {
    let mut bytes = hex("
        54 4d 45 4d  0100  0100
        0300000000000000
        0c  00  0400  20000000
        00020000  40000000
    ");
    bytes.resize(size_of::<Config>(), 0xff);
    let config = Config::read_from_bytes(&bytes).unwrap();
    assert_eq!(config.magic.get(), MAGIC);
    assert_eq!(config.epoch.get(), EPOCH_NONE);
    assert_ne!(config.end, 0);
}

/// What the device answers to a pool-stats request.
#[test]
fn pool_stats_response() {
    assert_eq!(Opcode::PoolDestroy.to_wire().to_le_bytes(), [0x11, 0]);
    assert_eq!(Opcode::PoolStats.to_wire().to_le_bytes(), [0x12, 0]);

    let header = ResponseHeader {
        status: Status::Ok.to_wire().into(),
        detail: 0.into(),
        count: 0.into(),
        persistent_credits: 1.into(),
        ephemeral_credits: 2.into(),
        reserved: 0.into(),
        epoch: 3.into(),
    };
    let stats = PoolStats {
        pages: 10.into(),
        bytes: 20_480.into(),
        puts: 30.into(),
        puts_stored: 25.into(),
        gets: 9.into(),
        gets_hit: 8.into(),
        flushes: 7.into(),
        pages_flushed: 6.into(),
        pages_evicted: 5.into(),
        ..Default::default()
    };
    let mut golden = hex("
        01000000 00000000 00000000 01000000
        02000000 00000000 0300000000000000

        0a00000000000000 0050000000000000
        1e00000000000000 1900000000000000
        0900000000000000 0800000000000000
        0700000000000000 0600000000000000
        0500000000000000
    ");
    golden.extend([0; 56]);
    assert_eq!(golden.len(), 160);
    assert_eq!([header.as_bytes(), stats.as_bytes()].concat(), golden);

    let mut rest = &golden[..];
    assert_eq!(take::<ResponseHeader>(&mut rest), header);
    assert_eq!(take::<PoolStats>(&mut rest), stats);
    assert!(rest.is_empty());
}

/// The answer to a request that breaks a rule.
#[test]
fn malformed_response() {
    both_ways(
        ResponseHeader {
            status: Status::Malformed.to_wire().into(),
            detail: Malformed::WritableLength.to_wire().into(),
            count: 0.into(),
            persistent_credits: 1.into(),
            ephemeral_credits: 2.into(),
            reserved: 0.into(),
            epoch: 3.into(),
        },
        &hex("
            02000000 06000000 00000000 01000000
            02000000 00000000 0300000000000000
        "),
    );
}

/// An event of each kind.
#[test]
fn events() {
    let vectors = [
        (
            EventKind::Credits,
            0,
            "0100 000000000000 10000000 ffffffff 0000000000000080 0000000000000000",
        ),
        (
            EventKind::Shrink,
            0x1234,
            "0200 000000000000 10000000 ffffffff 0000000000000080 3412000000000000",
        ),
        (
            EventKind::Epoch,
            0,
            "0300 000000000000 10000000 ffffffff 0000000000000080 0000000000000000",
        ),
        (
            EventKind::Recall,
            0x400,
            "0400 000000000000 10000000 ffffffff 0000000000000080 0004000000000000",
        ),
    ];
    assert_eq!(vectors.len(), EventKind::ALL.len());
    for (kind, pages, golden) in vectors {
        both_ways(
            Event {
                kind: kind.to_wire().into(),
                reserved: [0; 6],
                persistent_credits: 16.into(),
                ephemeral_credits: CREDITS_UNLIMITED.into(),
                epoch: (1 << 63).into(),
                pages: pages.into(),
            },
            &hex(golden),
        );
    }
}
