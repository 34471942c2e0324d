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

#[test]
fn memory_that_is_not_there_makes_a_request_too_short() {
    let mut device = Device::new();
    let request = device.put_bytes(0, &[key(1, 1)], 1);
    let end = MEMORY as u64;
    let (header, page) = ((READABLE, 72, false), (READABLE + 72, 4096, false));
    let response = (WRITABLE, 33, true);
    for bad in [end, end - 4095, u64::MAX, u64::MAX - 4095, 1 << 63] {
        let sent = device.send_pieces(
            QueueKind::Data,
            &request,
            33,
            &[header, (bad, 4096, false), response],
        );
        sent.assert_malformed(Malformed::ReadableLength);
        // What follows does not take its place.
        let pieces = [header, (bad, 4096, false), page, response];
        let sent = device.send_pieces(QueueKind::Data, &request, 33, &pieces);
        sent.assert_malformed(Malformed::ReadableLength);
        let pieces = [
            header,
            page,
            (WRITABLE, 32, true),
            (end, 1, true),
            (WRITABLE, 1, true),
        ];
        let sent = device.send_pieces(QueueKind::Data, &request, 33, &pieces);
        sent.assert_malformed(Malformed::WritableLength);
        let sent = device.send_pieces(QueueKind::Data, &request, 33, &[(bad, 4096, false)]);
        assert_eq!(sent.len, 0);
        let pieces = [header, page, (WRITABLE, 32, true), (bad, 1, true)];
        // The last byte of memory is there.
        if bad != end - 4095 {
            let sent = device.send_pieces(QueueKind::Data, &request, 33, &pieces);
            sent.assert_malformed(Malformed::WritableLength);
        }
    }
    device.assert_works();
}

#[test]
fn a_get_into_memory_that_is_not_there_takes_nothing() {
    let mut device = Device::new();
    device.put(1, &[key(1, 1)], 0x42);
    let request = device.get_bytes(1, request_flags::TAKE, &[key(1, 1)]);
    let pieces = [
        (READABLE, request.len() as u32, false),
        (WRITABLE, 33, true),
        (MEMORY as u64 - 4095, 4096, true),
    ];
    let response = device.send_pieces(QueueKind::Data, &request, 33, &pieces);
    response.assert_malformed(Malformed::WritableLength);
    let again = device.get(1, request_flags::TAKE, &[key(1, 1)]);
    assert_eq!(again.results(), [PageResult::Hit]);
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
        let mut device = Device::new();
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
