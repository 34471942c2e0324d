// SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0

//! Properties that hold for all values.

use std::fmt::Debug;

use proptest::prelude::*;
use virtio_tmem_abi::{
    Chunk,
    ChunkGrant,
    ChunkKind,
    ChunkReport,
    Chunks,
    Config,
    Event,
    EventKind,
    Key,
    Malformed,
    ObjectId,
    Opcode,
    PageResult,
    PoolCreate,
    PoolStats,
    Range,
    RequestHeader,
    ResponseHeader,
    SlotKey,
    Status,
    WindowHeader,
    WindowOpen,
    WindowReport, //
};
use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes,
    Unaligned, //
};

/// Checks that all of `bytes` is kept by reading a `T` from it and writing that again, and that
/// other lengths are refused.
fn bytes_survive<T>(bytes: &[u8])
where
    T: FromBytes + IntoBytes + Immutable + Unaligned + PartialEq + Debug,
{
    let exact = &bytes[..size_of::<T>()];
    let value = T::read_from_bytes(exact).unwrap();
    assert_eq!(value.as_bytes(), exact);
    assert_eq!(T::read_from_bytes(value.as_bytes()).unwrap(), value);

    assert!(T::read_from_bytes(&bytes[..size_of::<T>() - 1]).is_err());
    assert!(T::read_from_bytes(&bytes[..size_of::<T>() + 1]).is_err());
}

proptest! {
    /// Every pattern of bits is a value, and none of them is lost.
    #[test]
    fn any_bytes_are_a_value(bytes in prop::collection::vec(any::<u8>(), 513)) {
        bytes_survive::<Chunk>(&bytes);
        bytes_survive::<ChunkGrant>(&bytes);
        bytes_survive::<ChunkReport>(&bytes);
        bytes_survive::<Chunks>(&bytes);
        bytes_survive::<Config>(&bytes);
        bytes_survive::<Event>(&bytes);
        bytes_survive::<Key>(&bytes);
        bytes_survive::<ObjectId>(&bytes);
        bytes_survive::<PoolCreate>(&bytes);
        bytes_survive::<PoolStats>(&bytes);
        bytes_survive::<Range>(&bytes);
        bytes_survive::<RequestHeader>(&bytes);
        bytes_survive::<ResponseHeader>(&bytes);
        bytes_survive::<SlotKey>(&bytes);
        bytes_survive::<WindowHeader>(&bytes);
        bytes_survive::<WindowOpen>(&bytes);
        bytes_survive::<WindowReport>(&bytes);
    }

    /// What is written into the fields of a request is read from them.
    #[test]
    fn request_header_round_trip(
        opcode: u16, flags: u16, pool: u32, count: u32, reserved: u32, epoch: u64, reserved1: u64,
    ) {
        let header = RequestHeader {
            opcode: opcode.into(),
            flags: flags.into(),
            pool: pool.into(),
            count: count.into(),
            reserved: reserved.into(),
            epoch: epoch.into(),
            reserved1: reserved1.into(),
        };
        let header = RequestHeader::read_from_bytes(header.as_bytes()).unwrap();
        prop_assert_eq!(header.opcode.get(), opcode);
        prop_assert_eq!(header.flags.get(), flags);
        prop_assert_eq!(header.pool.get(), pool);
        prop_assert_eq!(header.count.get(), count);
        prop_assert_eq!(header.reserved.get(), reserved);
        prop_assert_eq!(header.epoch.get(), epoch);
        prop_assert_eq!(header.reserved1.get(), reserved1);
    }

    /// What is written into an entry of a put from the window is read from it.
    #[test]
    fn slot_key_round_trip(index: u64, version: u64, slot: u32, generation: u32) {
        let entry = SlotKey {
            key: Key {
                object: ObjectId::default(),
                index: index.into(),
                version: version.into(),
            },
            slot: slot.into(),
            generation: generation.into(),
        };
        let entry = SlotKey::read_from_bytes(entry.as_bytes()).unwrap();
        prop_assert_eq!(entry.key.index.get(), index);
        prop_assert_eq!(entry.key.version.get(), version);
        prop_assert_eq!(entry.slot.get(), slot);
        prop_assert_eq!(entry.generation.get(), generation);
    }

    /// What is written into the fields of a response is read from them.
    #[test]
    fn response_header_round_trip(
        status: u32, detail: u32, count: u32, persistent: u32, ephemeral: u32, epoch: u64,
    ) {
        let header = ResponseHeader {
            status: status.into(),
            detail: detail.into(),
            count: count.into(),
            persistent_credits: persistent.into(),
            ephemeral_credits: ephemeral.into(),
            reserved: 0.into(),
            epoch: epoch.into(),
        };
        let header = ResponseHeader::read_from_bytes(header.as_bytes()).unwrap();
        prop_assert_eq!(header.status.get(), status);
        prop_assert_eq!(header.detail.get(), detail);
        prop_assert_eq!(header.count.get(), count);
        prop_assert_eq!(header.persistent_credits.get(), persistent);
        prop_assert_eq!(header.ephemeral_credits.get(), ephemeral);
        prop_assert_eq!(header.epoch.get(), epoch);
    }

    /// A table is read where it lies: at any address, entry by entry.
    #[test]
    fn tables_need_no_alignment(
        shift in 0usize..8,
        entries in prop::collection::vec(any::<([u64; 3], u64, u64)>(), 1..40),
    ) {
        let table: Vec<Key> = entries
            .iter()
            .map(|&(object, index, version)| Key {
                object: ObjectId(object.map(Into::into)),
                index: index.into(),
                version: version.into(),
            })
            .collect();
        let mut bytes = vec![0xff; shift];
        bytes.extend(table.as_bytes());
        let read = <[Key]>::ref_from_bytes(&bytes[shift..]).unwrap();
        prop_assert_eq!(read, &table[..]);
        for (key, &(object, index, version)) in read.iter().zip(&entries) {
            prop_assert_eq!(key.object.0.map(|word| word.get()), object);
            prop_assert_eq!(key.index.get(), index);
            prop_assert_eq!(key.version.get(), version);
        }
    }

    #[test]
    fn status_is_total(value: u32) {
        check(value, Status::ALL, Status::from_wire, Status::to_wire);
    }

    #[test]
    fn malformed_is_total(value: u32) {
        check(value, Malformed::ALL, Malformed::from_wire, Malformed::to_wire);
    }

    #[test]
    fn chunk_kind_is_total(value: u32) {
        check(value, ChunkKind::ALL, ChunkKind::from_wire, ChunkKind::to_wire);
    }
}

/// Checks that `from_wire()` answers the member of value `value` if `ALL` has it, else nothing.
fn check<E, W>(value: W, all: &[E], from_wire: fn(W) -> Option<E>, to_wire: fn(E) -> W)
where
    E: Copy + PartialEq + Debug,
    W: Copy + PartialEq + Debug,
{
    let expected = all.iter().copied().find(|&member| to_wire(member) == value);
    assert_eq!(from_wire(value), expected, "{value:?}");
}

/// Checks that no two members have one value and that none has the value 0.
fn check_members<E, W>(all: &[E], from_wire: fn(W) -> Option<E>, to_wire: fn(E) -> W)
where
    E: Copy + PartialEq + Debug,
    W: Copy + PartialEq + Debug + Default,
{
    assert!(!all.is_empty());
    assert_eq!(from_wire(W::default()), None);
    for (i, &member) in all.iter().enumerate() {
        assert_ne!(to_wire(member), W::default(), "{member:?}");
        assert_eq!(from_wire(to_wire(member)), Some(member));
        assert!(
            all[..i].iter().all(|&m| to_wire(m) != to_wire(member)),
            "{member:?}"
        );
    }
}

#[test]
fn every_member_round_trips() {
    check_members(Opcode::ALL, Opcode::from_wire, Opcode::to_wire);
    check_members(EventKind::ALL, EventKind::from_wire, EventKind::to_wire);
    check_members(Status::ALL, Status::from_wire, Status::to_wire);
    check_members(Malformed::ALL, Malformed::from_wire, Malformed::to_wire);
    check_members(PageResult::ALL, PageResult::from_wire, PageResult::to_wire);
    check_members(ChunkKind::ALL, ChunkKind::from_wire, ChunkKind::to_wire);
}

#[test]
fn every_number_is_answered() {
    for value in 0..=u8::MAX {
        check(
            value,
            PageResult::ALL,
            PageResult::from_wire,
            PageResult::to_wire,
        );
    }
    for value in 0..=u16::MAX {
        check(value, Opcode::ALL, Opcode::from_wire, Opcode::to_wire);
        check(
            value,
            EventKind::ALL,
            EventKind::from_wire,
            EventKind::to_wire,
        );
    }
    // Random numbers hit the few members of a wide enumeration next to never.
    for value in 0..=u32::from(u16::MAX) {
        check(value, Status::ALL, Status::from_wire, Status::to_wire);
        check(
            value,
            Malformed::ALL,
            Malformed::from_wire,
            Malformed::to_wire,
        );
        check(
            value,
            ChunkKind::ALL,
            ChunkKind::from_wire,
            ChunkKind::to_wire,
        );
    }
}
