// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What each rule of the specification makes of requests that break it.

use uuid::Uuid;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_tmem_abi::{Chunk, ChunkGrant, ChunkKind, Chunks, SlotKey, WindowOpen, FIRST_CHUNK};

use super::*;
use crate::{
    device::{protocol_features, RestoreError},
    store::{SharedPool, FIRST_SHARED},
};

/// Operations on the window.
const WINDOW: [Opcode; 5] = [
    Opcode::PutSlot,
    Opcode::WindowOpen,
    Opcode::WindowKeep,
    Opcode::ChunkGrant,
    Opcode::ChunkReturn,
];

fn writable(opcode: Opcode, count: usize) -> usize {
    match opcode {
        Opcode::Get => 32 + count * (1 + PAGE_SIZE),
        Opcode::PoolStats => 32 + size_of::<PoolStats>(),
        Opcode::ChunkGrant => 32 + size_of::<Chunks>(),
        Opcode::FlushPool
        | Opcode::PoolCreate
        | Opcode::PoolDestroy
        | Opcode::PoolKeep
        | Opcode::WindowOpen
        | Opcode::WindowKeep
        | Opcode::ChunkReturn => 32,
        _ => 32 + count,
    }
}

fn queue_of(opcode: Opcode) -> QueueKind {
    match opcode {
        Opcode::FlushPool
        | Opcode::PoolCreate
        | Opcode::PoolDestroy
        | Opcode::PoolStats
        | Opcode::PoolKeep
        | Opcode::WindowOpen
        | Opcode::WindowKeep
        | Opcode::ChunkGrant
        | Opcode::ChunkReturn => QueueKind::Control,
        _ => QueueKind::Data,
    }
}

/// A well-formed request of each operation, with one table entry where there is a table.
fn valid(device: &Device, opcode: Opcode) -> (RequestHeader, Vec<u8>) {
    let table = match opcode {
        Opcode::Put => [key(1, 1).as_bytes(), &[5; PAGE_SIZE]].concat(),
        Opcode::Get | Opcode::FlushPage => key(1, 1).as_bytes().to_vec(),
        Opcode::FlushRange => Range::new_zeroed().as_bytes().to_vec(),
        Opcode::FlushObject => ObjectId::default().as_bytes().to_vec(),
        Opcode::PoolCreate => PoolCreate {
            flags: pool_flags::PERSISTENT.into(),
            page_shift: 12,
            ..PoolCreate::new_zeroed()
        }
        .as_bytes()
        .to_vec(),
        Opcode::PutSlot => SlotKey::default().as_bytes().to_vec(),
        Opcode::WindowOpen => vec![0; size_of::<WindowOpen>()],
        Opcode::ChunkGrant => ChunkGrant {
            kind: ChunkKind::Ephemeral.to_wire().into(),
            count: 1.into(),
            ticket: 1.into(),
        }
        .as_bytes()
        .to_vec(),
        Opcode::ChunkReturn => Chunk {
            number: FIRST_CHUNK.into(),
            generation: 2.into(),
        }
        .as_bytes()
        .to_vec(),
        _ => Vec::new(),
    };
    let header = device.header(opcode, 0, u32::from(!table.is_empty()));
    (header, table)
}

/// Sends each operation's valid request after `change`, and expects it to be answered so.
fn each_opcode(
    change: impl Fn(&mut RequestHeader, &mut Vec<u8>, &mut usize),
    expect: impl Fn(Opcode, &Response),
) {
    for opcode in Opcode::ALL.iter().copied() {
        let mut device = Device::with_window();
        let (mut header, mut table) = valid(&device, opcode);
        let mut writable = writable(opcode, 1);
        change(&mut header, &mut table, &mut writable);
        let request = [header.as_bytes(), &table].concat();
        let response = device.send(queue_of(opcode), &request, writable);
        expect(opcode, &response);
        let malformed = response.len == 0 || response.status() != Status::Ok;
        let counted = matches!(response.len, 0) || response.status() == Status::Malformed;
        assert_eq!(device.session.counters.malformed.get(), u64::from(counted));
        if malformed {
            assert_eq!(
                device.session.pools()[0].counters.puts,
                0,
                "it was carried out"
            );
        }
        device.create(0, pool_flags::PERSISTENT);
        device.assert_works();
    }
}

#[test]
fn each_operation_works_as_it_is_meant() {
    each_opcode(
        |_, _, _| (),
        |opcode, response| {
            assert_eq!(response.status(), Status::Ok, "{opcode:?}");
            let count = response.header().count.get();
            assert_eq!(count, u32::from(queue_of(opcode) == QueueKind::Data));
            // A get that misses writes no page.
            let len = if opcode == Opcode::Get {
                33
            } else {
                writable(opcode, 1)
            };
            assert_eq!(response.len as usize, len);
        },
    );
}

#[test]
fn a_request_without_a_header_is_short() {
    let mut device = Device::new();
    for len in 0..32 {
        let response = device.send(QueueKind::Data, &vec![1; len], 40);
        response.assert_malformed(Malformed::Short);
    }
    device.assert_works();
}

#[test]
fn a_request_without_its_table_is_short() {
    each_opcode(
        |header, table, _| {
            let entry = match Opcode::from_wire(header.opcode.get()).unwrap() {
                Opcode::Put => 40,
                _ => table.len(),
            };
            table.truncate(entry.saturating_sub(1));
        },
        |opcode, response| match opcode {
            Opcode::FlushPool
            | Opcode::PoolDestroy
            | Opcode::PoolStats
            | Opcode::PoolKeep
            | Opcode::WindowKeep => {
                assert_eq!(response.status(), Status::Ok);
            }
            _ => response.assert_malformed(Malformed::Short),
        },
    );
}

#[test]
fn reserved_fields_are_zero() {
    for field in 0..2 {
        each_opcode(
            |header, _, _| match field {
                0 => header.reserved = 1.into(),
                _ => header.reserved1 = (1 << 63).into(),
            },
            |_, response| response.assert_malformed(Malformed::Reserved),
        );
    }
}

#[test]
fn unknown_flags_are_refused_and_so_is_take_where_it_has_no_meaning() {
    for flags in [2, 0x8000, 0xffff] {
        each_opcode(
            |header, _, _| header.flags = flags.into(),
            |_, response| response.assert_malformed(Malformed::Flags),
        );
    }
    each_opcode(
        |header, _, _| header.flags = request_flags::TAKE.into(),
        |_, response| response.assert_malformed(Malformed::Flags),
    );
}

#[test]
fn take_is_for_ephemeral_pools() {
    let mut device = Device::new();
    device.put(1, &[key(1, 1)], 1);
    let take = |device: &mut Device, pool| device.get(pool, request_flags::TAKE, &[key(1, 1)]);
    take(&mut device, 0).assert_malformed(Malformed::Flags);
    assert_eq!(take(&mut device, 1).results(), [PageResult::Hit]);
    assert_eq!(take(&mut device, 1).results(), [PageResult::Miss]);
}

#[test]
fn the_count_is_within_its_bounds() {
    for count in [0, 2, 62, 63, 256, 257, 1024, 1025, 0x8000_0000, u32::MAX] {
        each_opcode(
            |header, _, _| header.count = count.into(),
            |opcode, response| {
                let max = match opcode {
                    Opcode::Put | Opcode::Get | Opcode::PutSlot => 1..=256,
                    Opcode::FlushPage | Opcode::FlushRange | Opcode::FlushObject => 1..=1024,
                    Opcode::PoolCreate | Opcode::WindowOpen | Opcode::ChunkGrant => 1..=1,
                    Opcode::ChunkReturn => 1..=62,
                    _ => 0..=0,
                };
                if !max.contains(&count) {
                    response.assert_malformed(Malformed::Count);
                } else if count > 1 {
                    // Part of a put's page passes for table.
                    let long = opcode == Opcode::Put && count <= 103;
                    response.assert_malformed(if long {
                        Malformed::ReadableLength
                    } else {
                        Malformed::Short
                    });
                }
            },
        );
    }
}

#[test]
fn the_pool_number_is_below_the_limit() {
    for pool in [64, 65, 0x8000_0000, u32::MAX] {
        each_opcode(
            |header, _, _| header.pool = pool.into(),
            |_, response| response.assert_malformed(Malformed::Pool),
        );
    }
    each_opcode(
        |header, _, _| header.pool = 63.into(),
        |opcode, response| match opcode {
            Opcode::PoolCreate => assert_eq!(response.status(), Status::Ok),
            // They are about none.
            Opcode::WindowOpen | Opcode::WindowKeep | Opcode::ChunkGrant | Opcode::ChunkReturn => {
                response.assert_malformed(Malformed::Pool)
            }
            _ => response.assert_status(Status::NoPool, 0),
        },
    );
}

#[test]
fn the_readable_part_is_exactly_as_long_as_it_has_to_be() {
    for more in [1, PAGE_SIZE] {
        each_opcode(
            |_, table, _| table.resize(table.len() + more, 0),
            |_, response| response.assert_malformed(Malformed::ReadableLength),
        );
    }
    let mut device = Device::new();
    let request = device.put_bytes(0, &[key(1, 1)], 1);
    for len in [request.len() - 1, 32 + 40] {
        let response = device.send(QueueKind::Data, &request[..len], 33);
        response.assert_malformed(Malformed::ReadableLength);
    }
    device.assert_works();
}

#[test]
fn the_writable_part_is_exactly_as_long_as_it_has_to_be() {
    each_opcode(
        |_, _, writable| *writable += 1,
        |_, response| response.assert_malformed(Malformed::WritableLength),
    );
    each_opcode(
        |header, _, writable| {
            let opcode = Opcode::from_wire(header.opcode.get()).unwrap();
            *writable -= usize::from(*writable > 32 && opcode != Opcode::PoolCreate);
        },
        |opcode, response| match opcode {
            Opcode::FlushPool
            | Opcode::PoolCreate
            | Opcode::PoolDestroy
            | Opcode::PoolKeep
            | Opcode::WindowOpen
            | Opcode::WindowKeep
            | Opcode::ChunkReturn => {
                assert_eq!(response.status(), Status::Ok);
            }
            _ => response.assert_malformed(Malformed::WritableLength),
        },
    );
}

#[test]
fn where_no_response_fits_there_is_none() {
    for len in [0, 1, 31] {
        each_opcode(
            |_, _, writable| *writable = len,
            |_, response| {
                assert_eq!(response.len, 0);
                assert!(response.bytes.iter().all(|byte| *byte == UNTOUCHED));
            },
        );
    }
}

#[test]
fn a_stale_epoch_is_refused() {
    each_opcode(
        |header, _, _| header.epoch = (header.epoch.get() ^ 1).into(),
        |_, response| response.assert_status(Status::StaleEpoch, 0),
    );
}

#[test]
fn an_operation_belongs_to_its_kind_of_virtqueue() {
    for opcode in Opcode::ALL.iter().copied() {
        let mut device = Device::with_window();
        let (header, table) = valid(&device, opcode);
        let other = match queue_of(opcode) {
            QueueKind::Control => QueueKind::Data,
            QueueKind::Data => QueueKind::Control,
        };
        let request = [header.as_bytes(), &table].concat();
        let response = device.send(other, &request, writable(opcode, 1));
        response.assert_status(Status::Unsupported, 0);
    }
    let mut device = Device::new();
    for unknown in [0u16, 8, 15, 20, 36, 0xffff] {
        let mut header = device.header(Opcode::Put, 0, 1);
        header.opcode = unknown.into();
        for kind in [QueueKind::Control, QueueKind::Data] {
            let response = device.send(kind, header.as_bytes(), 33);
            response.assert_status(Status::Unsupported, 0);
        }
    }
    device.assert_works();
}

#[test]
fn a_device_without_a_window_knows_no_operation_on_one() {
    let mut device = Device::new();
    for opcode in WINDOW {
        let header = device.header(opcode, 0, 1);
        let request = [header.as_bytes(), &[0; 48]].concat();
        for kind in [QueueKind::Control, QueueKind::Data] {
            let response = device.send(kind, &request, 33);
            response.assert_status(Status::Unsupported, 0);
        }
    }
    device.assert_works();
}

#[test]
fn a_range_does_not_end_before_it_begins() {
    let mut device = Device::new();
    device.put(0, &[key(5, 1)], 1);
    let range = |first: u64, last: u64| Range {
        object: key(0, 0).object,
        first: first.into(),
        last: last.into(),
    };
    let flush = |device: &mut Device, ranges: &[Range]| {
        let header = device.header(Opcode::FlushRange, 0, ranges.len() as u32);
        let request = [header.as_bytes(), ranges.as_bytes()].concat();
        device.send(QueueKind::Data, &request, 32 + ranges.len())
    };
    let ranges = [range(0, u64::MAX), range(6, 5)];
    flush(&mut device, &ranges).assert_malformed(Malformed::Range);
    assert_eq!(
        device.session.pools()[0].pages,
        1,
        "nothing of it was carried out"
    );
    let ranges = [range(6, 6), range(5, 5), range(u64::MAX, u64::MAX)];
    let (flushed, absent) = (PageResult::Flushed, PageResult::Absent);
    assert_eq!(
        flush(&mut device, &ranges).results(),
        [absent, flushed, absent]
    );
}

#[test]
fn what_a_pool_is_to_be_has_to_make_sense() {
    let mut device = Device::new();
    let both = pool_flags::PERSISTENT | pool_flags::SHARED;
    let mut create = |change: &dyn Fn(&mut PoolCreate)| device.create_as(7, change);
    create(&|c| c.reserved[10] = 1).assert_malformed(Malformed::Reserved);
    create(&|c| c.flags = 8.into()).assert_malformed(Malformed::Flags);
    create(&|c| c.flags = 6.into()).assert_malformed(Malformed::Flags);
    create(&|c| c.flags = 7.into()).assert_malformed(Malformed::Flags);
    create(&|c| c.flags = both.into()).assert_malformed(Malformed::Flags);
    create(&|c| c.uuid[0] = 1).assert_malformed(Malformed::Reserved);
    create(&|c| c.page_shift = 16).assert_malformed(Malformed::PageShift);
    // Nobody is authorised.
    let shared = |c: &mut PoolCreate| {
        c.flags = pool_flags::SHARED.into();
        c.uuid = [9; 16];
    };
    create(&shared).assert_status(Status::NotAllowed, 0);
    assert_eq!(create(&|_| ()).status(), Status::Ok);
    assert_eq!(create(&|_| ()).status(), Status::Ok);
    create(&|c| c.flags = 1.into()).assert_status(Status::PoolExists, 0);
    create(&shared).assert_status(Status::PoolExists, 0);
}

/// Has the guest share a pool, or not.
fn share(device: &Device, uuid: [u8; 16], guests: &[u32]) {
    let pool = SharedPool {
        number: FIRST_SHARED,
        uuid: Uuid::from_bytes(uuid),
        guests: guests.iter().copied().collect(),
        max: None,
    };
    device.session.store.set_shared([pool]);
}

#[test]
fn a_shared_pool_is_for_those_who_are_authorised() {
    let mut device = Device::new();
    let keys = [key(1, 1)];
    let shared = |c: &mut PoolCreate| {
        c.flags = pool_flags::SHARED.into();
        c.uuid = [9; 16];
    };
    // Others may have it.
    share(&device, [9; 16], &[5]);
    let create = device.create_as(7, shared);
    create.assert_status(Status::NotAllowed, 0);
    share(&device, [9; 16], &[0, 5]);
    assert_eq!(device.create_as(7, shared).status(), Status::Ok);
    assert_eq!(device.create_as(7, shared).status(), Status::Ok);
    assert_eq!(device.put(7, &keys, 0x55).results(), [PageResult::Stored]);
    // Another UUID, or a pool of its own, is something else.
    let other = |c: &mut PoolCreate| {
        shared(c);
        c.uuid[15] = 0;
    };
    device
        .create_as(7, other)
        .assert_status(Status::PoolExists, 0);
    device.create(7, 0).assert_status(Status::PoolExists, 0);
    device
        .create_as(0, shared)
        .assert_status(Status::PoolExists, 0);
    let take = device.get(7, request_flags::TAKE, &keys);
    take.assert_malformed(Malformed::Flags);
    assert_eq!(device.get(7, 0, &keys).results(), [PageResult::Hit]);
    // It is not among the guest's own, and resets leave it as it is. Who has it has been served
    // already, and is not given pages that were saved.
    assert_eq!(device.session.pools().len(), 2);
    let restored = device.session.may_restore();
    assert!(matches!(restored, Err(RestoreError::HasPools(3))));
    device.session.reset();
    assert_eq!(device.get(7, 0, &keys).results(), [PageResult::Hit]);
    share(&device, [9; 16], &[5]);
    let get = device.get(7, 0, &keys);
    get.assert_status(Status::NoPool, 0);
    let create = device.create_as(7, shared);
    create.assert_status(Status::NotAllowed, 0);
}

#[test]
fn a_pool_that_is_created_again_keeps_its_pages() {
    let mut device = Device::new();
    device.put(0, &[key(1, 1)], 0x31);
    assert_eq!(
        device.create(0, pool_flags::PERSISTENT).status(),
        Status::Ok
    );
    assert_eq!(device.get(0, 0, &[key(1, 1)]).results(), [PageResult::Hit]);
}

/// Whether pool 7 has the page that was put into it.
fn pool_7_is_there(device: &mut Device) -> bool {
    match device.get(7, 0, &[key(1, 1)]).status() {
        Status::Ok => true,
        status => {
            assert_eq!(status, Status::NoPool);
            false
        }
    }
}

fn keep(device: &mut Device) -> Status {
    let header = device.header(Opcode::PoolKeep, 7, 0);
    device
        .send(QueueKind::Control, header.as_bytes(), 32)
        .status()
}

#[test]
fn a_reset_releases_what_was_not_kept() {
    let released = pool_flags::RELEASED_BY_RESET;
    for flags in [released, released | pool_flags::PERSISTENT] {
        let mut device = Device::new();
        device.put(0, &[key(1, 1)], 1);
        assert_eq!(keep(&mut device), Status::NoPool);
        assert_eq!(device.create(7, flags).status(), Status::Ok);
        device.put(7, &[key(1, 1)], 0x31);
        // However many resets there are until the driver is back.
        assert_eq!(keep(&mut device), Status::Ok);
        assert_eq!(keep(&mut device), Status::Ok);
        for _ in 0..3 {
            device.session.reset();
        }
        assert_eq!(keep(&mut device), Status::Ok);
        assert_eq!(device.create(7, flags).status(), Status::Ok);
        let got = device.get(7, 0, &[key(1, 1)]);
        assert_eq!(got.results(), [PageResult::Hit]);
        // It was good for one absence.
        device.session.reset();
        assert!(!pool_7_is_there(&mut device));
        assert_eq!(keep(&mut device), Status::NoPool);
        // It is as good as new.
        assert_eq!(device.create(7, flags).status(), Status::Ok);
        let got = device.get(7, 0, &[key(1, 1)]);
        assert_eq!(got.results(), [PageResult::Miss]);
        // One that resets do not release was never touched.
        let got = device.get(0, 0, &[key(1, 1)]);
        assert_eq!(got.results(), [PageResult::Hit]);
    }
}

#[test]
fn a_pool_that_was_destroyed_is_not_kept() {
    let mut device = Device::new();
    let released = pool_flags::RELEASED_BY_RESET;
    assert_eq!(device.create(7, released).status(), Status::Ok);
    assert_eq!(keep(&mut device), Status::Ok);
    let header = device.header(Opcode::PoolDestroy, 7, 0);
    let destroyed = device.send(QueueKind::Control, header.as_bytes(), 32);
    assert_eq!(destroyed.status(), Status::Ok);
    device.session.reset();
    // The same number, of the other kind.
    assert_eq!(device.create(7, 0).status(), Status::Ok);
    device.session.reset();
    assert!(pool_7_is_there(&mut device));
    device
        .create(7, released)
        .assert_status(Status::PoolExists, 0);
    assert_eq!(keep(&mut device), Status::Ok);
    device.session.reset();
    assert!(pool_7_is_there(&mut device));
    // And the other way round.
    assert_eq!(device.create(8, released).status(), Status::Ok);
    device.create(8, 0).assert_status(Status::PoolExists, 0);
}

/// See there for why.
#[test]
fn memory_is_told_in_one_piece_and_resets_are_told() {
    for shares in [false, true] {
        let features = protocol_features(shares);
        assert!(!features.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
        assert!(features.contains(VhostUserProtocolFeatures::RESET_DEVICE));
        assert_eq!(features.contains(VhostUserProtocolFeatures::SHMEM), shares);
    }
}
