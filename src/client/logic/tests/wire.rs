// SPDX-License-Identifier: GPL-2.0

//! What answers mean, and which of them no device gives that keeps to the rules.

use proptest::prelude::*;
use virtio_tmem_abi::{
    PageResult,
    ResponseHeader,
    Status, //
};
use virtio_tmem_logic::wire::{
    decode,
    decode_control,
    Answer,
    Lie,
    Operation,
    ANSWER_BYTES,
    MAX_ENTRIES,
    RESPONSE_BYTES, //
};
use zerocopy::IntoBytes;

const OPERATIONS: [Operation; 5] = [
    Operation::Put,
    Operation::Get,
    Operation::FlushPage,
    Operation::FlushRange,
    Operation::FlushObject,
];

fn answer(status: u32, count: u32, results: &[u8]) -> Vec<u8> {
    let header = ResponseHeader {
        status: status.into(),
        detail: 0.into(),
        count: count.into(),
        persistent_credits: 7.into(),
        ephemeral_credits: 9.into(),
        reserved: 0.into(),
        epoch: 0x1234.into(),
    };
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(results);
    bytes
}

fn ok(results: &[u8]) -> Vec<u8> {
    answer(Status::Ok.to_wire(), results.len() as u32, results)
}

fn decode_all(operation: Operation, count: usize, bytes: &[u8]) -> Result<Answer, Lie> {
    decode(operation, count, bytes, bytes.len(), bytes.len())
}

#[test]
fn each_operation_has_results_of_its_own() {
    let mine = |operation, result: PageResult| match (operation, result) {
        (Operation::Put, PageResult::Stored) | (Operation::Get, PageResult::Hit) => Some(true),
        (Operation::Put, result) if result.is_refusal() => Some(false),
        (Operation::Get, PageResult::Miss | PageResult::Damaged) => Some(false),
        (operation, PageResult::Flushed | PageResult::Absent) if operation.is_flush() => Some(true),
        _ => None,
    };

    for operation in OPERATIONS {
        for &result in PageResult::ALL {
            let bytes = ok(&[result.to_wire()]);
            match (decode_all(operation, 1, &bytes), mine(operation, result)) {
                (Ok(Answer::Done { outcomes, .. }), Some(done)) => {
                    assert_eq!(outcomes.is_done(0), done, "{operation:?} {result:?}");
                }
                (Err(Lie::Result { result: told, .. }), None) => {
                    assert_eq!(told, result.to_wire());
                }
                (answer, _) => panic!("{operation:?} {result:?}: {answer:?}"),
            }
        }
    }
}

#[test]
fn each_page_has_its_own_outcome() {
    let stored = PageResult::Stored.to_wire();
    let full = PageResult::OverQuota.to_wire();
    let bytes = ok(&[stored, full, stored]);
    let Ok(Answer::Done { outcomes, state }) = decode_all(Operation::Put, 3, &bytes) else {
        panic!("no answer");
    };
    assert_eq!(
        [0, 1, 2, 3].map(|n| outcomes.is_done(n)),
        [true, false, true, false]
    );
    assert_eq!((outcomes.done(), outcomes.count()), (2, 3));
    assert!(!outcomes.all_done());
    assert_eq!(
        (
            state.persistent_credits,
            state.ephemeral_credits,
            state.epoch
        ),
        (7, 9, 0x1234)
    );
}

#[test]
fn nothing_written_is_no_answer_and_no_lie() {
    let bytes = [0; ANSWER_BYTES];
    assert_eq!(
        decode(Operation::Get, 3, &bytes, 0, bytes.len()),
        Ok(Answer::Unanswered)
    );
    assert_eq!(decode_control(&bytes, 0), Ok(None));
}

#[test]
fn what_was_not_written_is_not_read() {
    let bytes = ok(&[PageResult::Hit.to_wire(); 4]);
    for written in 1..bytes.len() {
        assert_eq!(
            decode(Operation::Get, 4, &bytes, written, bytes.len()),
            Err(Lie::Short { written })
        );
    }
    // Pages that come with it count, too.
    let room = bytes.len() + 4 * 4096;
    assert!(matches!(
        decode(Operation::Get, 4, &bytes, room, room),
        Ok(Answer::Done { .. })
    ));
    let written = room + 1;
    assert_eq!(
        decode(Operation::Get, 4, &bytes, written, room),
        Err(Lie::Long { written, room })
    );
}

#[test]
fn the_count_has_to_be_that_of_the_request() {
    for told in [0, 2, 4, u32::MAX] {
        let bytes = answer(Status::Ok.to_wire(), told, &[PageResult::Hit.to_wire(); 3]);
        assert_eq!(
            decode_all(Operation::Get, 3, &bytes),
            Err(Lie::Count { asked: 3, told })
        );
    }
}

#[test]
fn a_status_is_a_reason_or_a_lie() {
    for status in 0..=u32::from(u8::MAX) {
        let bytes = answer(status, 0, &[]);
        match Status::from_wire(status) {
            Some(Status::Ok) => assert!(decode_all(Operation::Put, 1, &bytes).is_err()),
            Some(why) => assert!(matches!(
                decode_all(Operation::Put, 1, &bytes),
                Ok(Answer::Declined { status, .. }) if status == why
            )),
            None => assert_eq!(
                decode_all(Operation::Put, 1, &bytes),
                Err(Lie::Status(status))
            ),
        }
    }
}

proptest! {
    #[test]
    fn nothing_is_done_that_the_device_did_not_say(
        operation in proptest::sample::select(&OPERATIONS[..]),
        count in 1..=MAX_ENTRIES,
        bytes in proptest::collection::vec(any::<u8>(), 0..ANSWER_BYTES),
        results in proptest::collection::vec(0u8..40, MAX_ENTRIES),
        honest in any::<bool>(),
        written in 0..2 * ANSWER_BYTES,
    ) {
        let bytes = if honest { ok(&results[..count]) } else { bytes };
        if let Ok(Answer::Done { outcomes, .. }) = decode(operation, count, &bytes, written, 2 * ANSWER_BYTES) {
            prop_assert!(written >= RESPONSE_BYTES + count);
            for n in 0..count {
                let result = PageResult::from_wire(bytes[RESPONSE_BYTES + n]).unwrap();
                prop_assert_eq!(operation.accepts(result), Some(outcomes.is_done(n)));
            }
        }
    }
}
