// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers to requests, and what the lies make of them.

use fastrand::Rng;
use virtio_tmem_abi::{
    Key, ObjectId, Opcode, PageResult, Range, RequestHeader, ResponseHeader, Status,
    CREDITS_UNLIMITED,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{
    lies::{Lies, EPOCH},
    store::Store,
};

const PAGE: usize = 4096;
const HEADER: usize = size_of::<ResponseHeader>();

/// What goes into the device-writable part, and the used length that the driver is told.
pub(crate) struct Answer {
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// The length.
    pub(crate) used: u32,
}

/// Carries out the request `readable`, whose answer has room for `writable` bytes.
pub(crate) fn honest(store: &mut Store, readable: &[u8], writable: usize) -> Option<Answer> {
    let (header, rest) = RequestHeader::read_from_prefix(readable).ok()?;
    let pool = header.pool.get();
    let count = usize::try_from(header.count.get()).ok()?;
    let results: Vec<PageResult>;
    let mut pages = Vec::new();
    match Opcode::from_wire(header.opcode.get())? {
        Opcode::Put => {
            let (keys, data) = <[Key]>::ref_from_prefix_with_elems(rest, count).ok()?;
            let put = |(key, page): (&Key, &[u8])| store.put(pool, key, page.into());
            results = keys.iter().zip(data.chunks_exact(PAGE)).map(put).collect();
        }
        Opcode::Get => {
            let (keys, _) = <[Key]>::ref_from_prefix_with_elems(rest, count).ok()?;
            pages = vec![0; count * PAGE];
            let get = |(key, place): (&Key, &mut [u8])| match store.get(pool, key) {
                Some(page) => {
                    place.copy_from_slice(page);
                    PageResult::Hit
                }
                None => PageResult::Miss,
            };
            results = keys
                .iter()
                .zip(pages.chunks_exact_mut(PAGE))
                .map(get)
                .collect();
        }
        Opcode::FlushPage => {
            let (keys, _) = <[Key]>::ref_from_prefix_with_elems(rest, count).ok()?;
            results = keys.iter().map(|key| store.flush(pool, key)).collect();
        }
        Opcode::FlushRange => {
            let (ranges, _) = <[Range]>::ref_from_prefix_with_elems(rest, count).ok()?;
            let flush = |range| store.flush_range(pool, range);
            results = ranges.iter().map(flush).collect();
        }
        Opcode::FlushObject => {
            let (objects, _) = <[ObjectId]>::ref_from_prefix_with_elems(rest, count).ok()?;
            let flush = |object| store.flush_object(pool, object);
            results = objects.iter().map(flush).collect();
        }
        Opcode::FlushPool | Opcode::PoolDestroy => {
            store.flush_pool(pool);
            results = Vec::new();
        }
        Opcode::PoolCreate | Opcode::PoolKeep => results = Vec::new(),
        Opcode::PoolStats => return None,
    }
    let mut response = ResponseHeader::new_zeroed();
    response.status = Status::Ok.to_wire().into();
    response.count = u32::try_from(results.len()).ok()?.into();
    response.persistent_credits = CREDITS_UNLIMITED.into();
    response.ephemeral_credits = CREDITS_UNLIMITED.into();
    response.epoch = EPOCH.into();
    let mut bytes = response.as_bytes().to_vec();
    bytes.extend(results.iter().map(|result| result.to_wire()));
    bytes.extend(pages);
    bytes.truncate(writable);
    let used = u32::try_from(bytes.len()).ok()?;
    Some(Answer { bytes, used })
}

/// Makes of an honest answer what the lies say. A page that is not there is never said to be.
pub(crate) fn distort(lies: &Lies, rng: &mut Rng, readable: &[u8], answer: &mut Answer) {
    let Ok((request, _)) = RequestHeader::read_from_prefix(readable) else {
        return;
    };
    let is_get = Opcode::from_wire(request.opcode.get()) == Some(Opcode::Get);
    let count = usize::try_from(request.count.get()).unwrap_or(0);
    let end = answer.bytes.len();
    let often = |percent: u8, rng: &mut Rng| rng.u8(0..100) < percent;

    let header_end = HEADER.min(end);
    let results_end = (HEADER + count).min(end);
    if is_get {
        let (results, pages) = answer.bytes[header_end..].split_at_mut(results_end - header_end);
        for result in results {
            if often(lies.false_miss_percent, rng) {
                *result = PageResult::Miss.to_wire();
            }
        }
        for page in pages.chunks_exact_mut(PAGE) {
            if often(lies.corrupt_percent, rng) {
                page[rng.usize(0..PAGE)] ^= 0x40;
            }
        }
    }
    if often(lies.garbage_result_percent, rng) && results_end > header_end {
        let at = rng.usize(header_end..results_end);
        let nonsense = [0, 1, 3, 4, 5, 6, 16, 17, 18, 19, 31, 32, 33, 128, 255];
        answer.bytes[at] = nonsense[rng.usize(0..nonsense.len())];
    }
    if often(lies.garbage_header_percent, rng) && header_end == HEADER {
        let at = 4 * rng.usize(0..6);
        let nonsense = [0, 1, 2, 7, 8, 9, 0xffff, 0x8000_0000, u32::MAX, rng.u32(..)];
        let value = nonsense[rng.usize(0..nonsense.len())];
        answer.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    if often(lies.garbage_epoch_percent, rng) && header_end == HEADER {
        answer.bytes[24..32].copy_from_slice(&rng.u64(..).to_le_bytes());
    }
    if often(lies.garbage_length_percent, rng) {
        let lengths = [0, 1, 31, 32, answer.used.wrapping_add(1), u32::MAX];
        answer.used = lengths[rng.usize(0..lengths.len())];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(opcode: Opcode, index: u64, page: &[u8]) -> Vec<u8> {
        let mut header = RequestHeader::new_zeroed();
        header.opcode = opcode.to_wire().into();
        header.count = 1.into();
        let key = Key {
            index: index.into(),
            ..Key::default()
        };
        [header.as_bytes(), key.as_bytes(), page].concat()
    }

    #[test]
    fn honest_answers_are_those_of_a_device() {
        let mut store = Store::default();
        let put = honest(&mut store, &request(Opcode::Put, 3, &[7; PAGE]), 33).unwrap();
        assert_eq!(put.bytes[32], PageResult::Stored.to_wire());
        let get = honest(&mut store, &request(Opcode::Get, 3, &[]), 33 + PAGE).unwrap();
        assert_eq!(get.bytes[32], PageResult::Hit.to_wire());
        assert_eq!(get.bytes[33..], [7; PAGE]);
        let miss = honest(&mut store, &request(Opcode::Get, 4, &[]), 33 + PAGE).unwrap();
        assert_eq!(miss.bytes[32], PageResult::Miss.to_wire());
    }

    #[test]
    fn no_lie_turns_a_miss_into_a_hit() {
        let mut rng = Rng::with_seed(1);
        let args = ["x", "--socket-path", "s", "--garbage-result-percent", "100"];
        let lies = <crate::Args as clap::Parser>::parse_from(args).lies;
        let readable = request(Opcode::Get, 4, &[]);
        for _ in 0..1000 {
            let mut answer = honest(&mut Store::default(), &readable, 33 + PAGE).unwrap();
            distort(&lies, &mut rng, &readable, &mut answer);
            assert_ne!(answer.bytes[32], PageResult::Hit.to_wire());
        }
    }
}
