// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! The bytes of every structure.

use virtio_tmem_abi::{
    Config,
    Event,
    Key,
    PoolCreate,
    PoolStats,
    Range,
    RequestHeader,
    ResponseHeader, //
};

use crate::{
    both_ways,
    counting,
    object, //
};

#[test]
fn config_bytes() {
    both_ways(
        Config {
            magic: 0x0403_0201.into(),
            abi_major: 0x0605.into(),
            abi_minor: 0x0807.into(),
            capabilities: 0x100f_0e0d_0c0b_0a09.into(),
            page_shift: 0x11,
            reserved0: 0x12,
            data_queues: 0x1413.into(),
            max_pages: 0x1817_1615.into(),
            max_flushes: 0x1c1b_1a19.into(),
            max_pools: 0x201f_1e1d.into(),
            epoch: 0x2827_2625_2423_2221.into(),
            window: [
                0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36,
                0x37, 0x38,
            ],
            reserved1: [0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f],
            end: 0x40,
        },
        &counting(64),
    );
}

#[test]
fn event_bytes() {
    both_ways(
        Event {
            kind: 0x0201.into(),
            reserved: [3, 4, 5, 6, 7, 8],
            persistent_credits: 0x0c0b_0a09.into(),
            ephemeral_credits: 0x100f_0e0d.into(),
            epoch: 0x1817_1615_1413_1211.into(),
            pages: 0x201f_1e1d_1c1b_1a19.into(),
        },
        &counting(32),
    );
}

#[test]
fn request_header_bytes() {
    both_ways(
        RequestHeader {
            opcode: 0x0201.into(),
            flags: 0x0403.into(),
            pool: 0x0807_0605.into(),
            count: 0x0c0b_0a09.into(),
            reserved: 0x100f_0e0d.into(),
            epoch: 0x1817_1615_1413_1211.into(),
            reserved1: 0x201f_1e1d_1c1b_1a19.into(),
        },
        &counting(32),
    );
}

#[test]
fn response_header_bytes() {
    both_ways(
        ResponseHeader {
            status: 0x0403_0201.into(),
            detail: 0x0807_0605.into(),
            count: 0x0c0b_0a09.into(),
            persistent_credits: 0x100f_0e0d.into(),
            ephemeral_credits: 0x1413_1211.into(),
            reserved: 0x1817_1615.into(),
            epoch: 0x201f_1e1d_1c1b_1a19.into(),
        },
        &counting(32),
    );
}

#[test]
fn table_entry_bytes() {
    let id = object(
        0x0807_0605_0403_0201,
        0x100f_0e0d_0c0b_0a09,
        0x1817_1615_1413_1211,
    );
    both_ways(id, &counting(24));
    both_ways(
        Key {
            object: id,
            index: 0x201f_1e1d_1c1b_1a19.into(),
            version: 0x2827_2625_2423_2221.into(),
        },
        &counting(40),
    );
    both_ways(
        Range {
            object: id,
            first: 0x201f_1e1d_1c1b_1a19.into(),
            last: 0x2827_2625_2423_2221.into(),
        },
        &counting(40),
    );
}

#[test]
fn pool_create_bytes() {
    both_ways(
        PoolCreate {
            flags: 0x0403_0201.into(),
            page_shift: 0x05,
            reserved: [6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
            uuid: [
                17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
            ],
        },
        &counting(32),
    );
}

#[test]
fn pool_stats_bytes() {
    both_ways(
        PoolStats {
            pages: 0x0807_0605_0403_0201.into(),
            bytes: 0x100f_0e0d_0c0b_0a09.into(),
            puts: 0x1817_1615_1413_1211.into(),
            puts_stored: 0x201f_1e1d_1c1b_1a19.into(),
            gets: 0x2827_2625_2423_2221.into(),
            gets_hit: 0x302f_2e2d_2c2b_2a29.into(),
            flushes: 0x3837_3635_3433_3231.into(),
            pages_flushed: 0x403f_3e3d_3c3b_3a39.into(),
            pages_evicted: 0x4847_4645_4443_4241.into(),
            reserved: [
                0x504f_4e4d_4c4b_4a49.into(),
                0x5857_5655_5453_5251.into(),
                0x605f_5e5d_5c5b_5a59.into(),
                0x6867_6665_6463_6261.into(),
                0x706f_6e6d_6c6b_6a69.into(),
                0x7877_7675_7473_7271.into(),
                0x807f_7e7d_7c7b_7a79.into(),
            ],
        },
        &counting(128),
    );
}
