// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests in all shapes, in memory that is there or not.

use proptest::prelude::*;

use super::*;

#[test]
fn the_used_length_ends_at_the_first_gap() {
    let mut device = Device::new();
    device.put(0, &[key(1, 1), key(2, 1), key(4, 1)], 1);
    let response = device.get(0, 0, &[key(1, 1), key(2, 1), key(3, 1), key(4, 1)]);
    let (hit, miss) = (PageResult::Hit, PageResult::Miss);
    assert_eq!(response.results(), [hit, hit, miss, hit]);
    assert_eq!(response.len as usize, 36 + 2 * PAGE_SIZE);
    let pages: Vec<_> = response.bytes[36..]
        .chunks(PAGE_SIZE)
        .map(|p| p[17])
        .collect();
    assert_eq!(pages, [1, 2, UNTOUCHED, 3]);
}

/// Addresses of a page of which not all is in memory, and how much of it is at the start.
const BAD: [(u64, usize); 5] = [
    (MEMORY as u64, 0),
    (MEMORY as u64 - 4095, 4095),
    (u64::MAX, 0),
    (u64::MAX - 4095, 0),
    (1 << 63, 0),
];

#[test]
fn a_page_that_cannot_be_read_is_refused_and_the_others_are_not() {
    for (n, (bad, _)) in (1..).zip(BAD) {
        let mut device = Device::new();
        device.put(0, &[key(2, 1)], 0x70);
        let keys = [key(1, 1), key(2, 2), key(3, 1)];
        let request = device.put_bytes(0, &keys, 1);
        let table = 32 + 3 * 40;
        let pieces = [
            (READABLE, table, false),
            (READABLE + u64::from(table), 4096, false),
            (bad, 4096, false),
            (READABLE + u64::from(table) + 8192, 4096, false),
            (WRITABLE, 35, true),
        ];
        let sent = device.send_pieces(QueueKind::Data, &request, 35, &pieces);
        let (stored, refused) = (PageResult::Stored, PageResult::NoMemory);
        assert_eq!(sent.results(), [stored, refused, stored]);
        assert_eq!(device.session.counters.out_of_reach.get(), 1, "{n}");
        // What was there before is gone, as after any refusal.
        let got = device.get(0, 0, &[key(1, 1), key(2, 1), key(2, 2), key(3, 1)]);
        let (hit, miss) = (PageResult::Hit, PageResult::Miss);
        assert_eq!(got.results(), [hit, miss, miss, hit]);
        assert_eq!(got.bytes[36], 1);
        assert_eq!(got.bytes[36 + 3 * PAGE_SIZE], 3);
        assert_eq!(device.session.counters.malformed.get(), 0);
    }
}

#[test]
fn a_page_that_cannot_be_written_stays_for_the_next_get() {
    for (bad, there) in BAD {
        for (pool, flags) in [(0, 0), (1, 0), (1, request_flags::TAKE)] {
            let mut device = Device::new();
            let keys = [key(1, 1), key(2, 1), key(3, 1)];
            device.put(pool, &keys, 0x40);
            let request = device.get_bytes(pool, flags, &keys);
            let pieces = [
                (READABLE, request.len() as u32, false),
                (WRITABLE, 35 + 4096, true),
                (bad, 4096, true),
                (WRITABLE + 35 + 8192, 4096, true),
            ];
            let len = 35 + 3 * PAGE_SIZE;
            let sent = device.send_pieces(QueueKind::Data, &request, len, &pieces);
            let (hit, miss) = (PageResult::Hit, PageResult::Miss);
            assert_eq!(sent.results(), [hit, miss, hit]);
            assert_eq!(sent.len as usize, 35 + PAGE_SIZE);
            assert_eq!(sent.bytes[35 + 2 * PAGE_SIZE..], [0x42; PAGE_SIZE]);
            assert!(there <= PAGE_SIZE);
            let again = device.get(pool, flags, &[key(2, 1)]);
            assert_eq!(again.results(), [hit]);
            assert_eq!(again.bytes[33..], [0x41; PAGE_SIZE]);
        }
    }
}

#[test]
fn a_request_that_cannot_be_read_or_answered_is_not_carried_out() {
    for (bad, there) in BAD {
        let mut device = Device::new();
        let request = device.put_bytes(0, &[key(1, 1)], 1);
        let (header, table) = ((READABLE, 32, false), (READABLE + 32, 40, false));
        let (page, response) = ((READABLE + 72, 4096, false), (WRITABLE, 33, true));
        let chains: [&[Piece]; 5] = [
            &[(bad + there as u64, 32, false), table, page, response],
            &[header, (bad + there as u64, 40, false), page, response],
            &[header, table, page, (bad + there as u64, 33, true)],
            &[
                header,
                table,
                page,
                (WRITABLE, 32, true),
                (bad + there as u64, 1, true),
            ],
            &[
                header,
                table,
                page,
                (WRITABLE, 31, true),
                (bad + there as u64, 2, true),
            ],
        ];
        for (n, pieces) in (1..).zip(chains) {
            let sent = device.send_pieces(QueueKind::Data, &request, 33, pieces);
            assert_eq!(sent.len, 0, "{bad:#x}");
            assert_eq!(device.session.counters.out_of_reach.get(), n);
        }
        assert_eq!(device.session.pools()[0].counters.puts, 0);
        assert_eq!(device.session.counters.malformed.get(), 0);
        let sent = device.send(QueueKind::Data, &request, 33);
        assert_eq!(sent.results(), [PageResult::Stored]);
    }
}

/// What is out of reach has its length, and what is malformed is said where it can be.
#[test]
fn lengths_count_what_is_out_of_reach() {
    let mut device = Device::new();
    let request = device.put_bytes(0, &[key(1, 1)], 1);
    let end = MEMORY as u64;
    let pieces = [
        (READABLE, 72, false),
        (end, 4097, false),
        (WRITABLE, 33, true),
    ];
    let sent = device.send_pieces(QueueKind::Data, &request, 33, &pieces);
    sent.assert_malformed(Malformed::ReadableLength);
    let pieces = [
        (READABLE, 72 + 4096, false),
        (WRITABLE, 32, true),
        (end, 2, true),
    ];
    let sent = device.send_pieces(QueueKind::Data, &request, 33, &pieces);
    sent.assert_malformed(Malformed::WritableLength);
    device.assert_works();
}

/// An indirect table of which only the first descriptors can be read: the request is not what they
/// say.
#[test]
fn a_table_that_ends_too_soon_is_no_request() {
    let mut device = Device::new();
    let request = device.put_bytes(0, &[key(1, 1)], 1);
    device
        .mem
        .write_slice(&request, GuestAddress(READABLE))
        .unwrap();
    let (next, write) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16);
    let table = [
        Descriptor::new(WRITABLE, 33, next | write, 1),
        Descriptor::new(READABLE, 72, next, 2),
        Descriptor::new(READABLE + 72, 4096, 0, 0),
    ];
    let at = MEMORY as u64 - 32;
    for (n, descriptor) in table[..2].iter().enumerate() {
        let descriptor = RawDescriptor::from(*descriptor);
        let at = GuestAddress(at + 16 * n as u64);
        device.mem.write_obj(descriptor, at).unwrap();
    }
    let indirect = Descriptor::new(at, 48, VRING_DESC_F_INDIRECT as u16, 0);
    assert_eq!(device.serve(QueueKind::Data, &[indirect]), 0);
    assert_eq!(device.session.pools()[0].counters.puts, 0);
    device.assert_works();
}

#[test]
fn chains_that_lead_nowhere_or_in_circles_end() {
    let mut device = Device::new();
    let (next, indirect) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_INDIRECT as u16);
    let tables: [&[Descriptor]; 5] = [
        // To itself, past the table, and to an indirect table that is itself, broken or absent.
        &[Descriptor::new(READABLE, 16, next, 0)],
        &[Descriptor::new(READABLE, 16, next, 1024)],
        &[Descriptor::new(DESCRIPTORS, 16, indirect, 0)],
        &[Descriptor::new(READABLE, 17, indirect, 0)],
        &[Descriptor::new(u64::MAX - 7, 32, indirect, 0)],
    ];
    for table in tables {
        assert_eq!(device.serve(QueueKind::Data, table), 0);
    }
    device.assert_works();
}

/// Splits `len` bytes at `addr` into descriptors of the given lengths, over and over.
fn split(addr: u64, len: usize, lengths: &[u32], writable: bool) -> Vec<Piece> {
    let (mut at, end) = (addr, addr + len as u64);
    let mut pieces = Vec::new();
    for length in lengths.iter().cycle() {
        if at == end {
            break;
        }
        let length = u64::from(*length).min(end - at);
        pieces.push((at, length as u32, writable));
        at += length;
    }
    pieces
}

fn lengths() -> impl Strategy<Value = Vec<u32>> {
    let length = prop_oneof![1..40u32, 1..5000u32, Just(32), Just(40), Just(4096)];
    // Some long ones, so that the chain fits the virtqueue; now and then an empty one.
    (prop::collection::vec(length, 1..6), prop::bool::ANY).prop_map(|(mut lengths, empty)| {
        lengths.push(3000);
        if empty {
            lengths.push(0);
        }
        lengths
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn how_a_request_is_split_into_descriptors_makes_no_difference(
        count in 1usize..20,
        readable in lengths(),
        writable in lengths(),
        present in prop::collection::vec(any::<bool>(), 20),
    ) {
        let keys: Vec<_> = (0..count as u64).map(|index| key(index, index ^ 5)).collect();
        let stored = keys.iter().zip(&present).filter(|(_, p)| **p).map(|(k, _)| *k);
        let stored: Vec<_> = stored.collect();
        let mut whole = Device::new();
        let mut pieces = Device::new();
        let mut both = |request: &dyn Fn(&Device) -> Vec<u8>, len: usize| {
            let bytes = request(&whole);
            let expected = whole.send(QueueKind::Data, &bytes, len);
            let bytes = request(&pieces);
            let mut chain = split(READABLE, bytes.len(), &readable, false);
            chain.extend(split(WRITABLE, len, &writable, true));
            let got = pieces.send_pieces(QueueKind::Data, &bytes, len, &chain);
            // All but the epochs.
            assert_eq!((got.len, &got.bytes[..24]), (expected.len, &expected.bytes[..24]));
            assert!(got.bytes[32..] == expected.bytes[32..]);
        };
        if !stored.is_empty() {
            both(&|d| d.put_bytes(0, &stored, 0x51), 32 + stored.len());
        }
        both(&|d| d.get_bytes(0, 0, &keys), 32 + count * (1 + PAGE_SIZE));
        both(&|d| d.put_bytes(1, &keys, 0x61), 32 + count);
        both(
            &|d| d.get_bytes(1, request_flags::TAKE, &keys),
            32 + count * (1 + PAGE_SIZE),
        );
    }

    #[test]
    fn no_bytes_make_the_device_fall_over(
        mut request in prop::collection::vec(any::<u8>(), 0..300),
        opcode in prop::option::of(prop::sample::select(Opcode::ALL)),
        count in prop::option::of(0u32..8),
        known in any::<bool>(),
        pieces in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>()), 0..4),
        writable in 0usize..5000,
        control in any::<bool>(),
    ) {
        let mut device = Device::with_window();
        if let (Some(opcode), Some(field)) = (opcode, request.get_mut(..2)) {
            field.copy_from_slice(&opcode.to_wire().to_le_bytes());
        }
        if let (Some(count), Some(field)) = (count, request.get_mut(8..12)) {
            field.copy_from_slice(&count.to_le_bytes());
        }
        if let (true, Some(field)) = (known, request.get_mut(..32)) {
            let mut header = device.header(Opcode::Put, 0, 0);
            header.opcode.as_mut_bytes().copy_from_slice(&field[..2]);
            header.count.as_mut_bytes().copy_from_slice(&field[8..12]);
            field.copy_from_slice(header.as_bytes());
        }
        let mut chain = vec![(READABLE, request.len() as u32, false)];
        chain.extend(pieces);
        chain.push((WRITABLE, writable as u32, true));
        let kind = if control { QueueKind::Control } else { QueueKind::Data };
        let response = device.send_pieces(kind, &request, writable, &chain);
        assert!(response.len == 0 || response.len >= 32);
        device.create(0, pool_flags::PERSISTENT);
        device.assert_works();
    }
}
