// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Answers to requests, and what the lies make of them.

use fastrand::Rng;
use virtio_tmem_abi::{
    Key, ObjectId, Opcode, PageResult, Range, RequestHeader, ResponseHeader, Status,
    CREDITS_UNLIMITED,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::{
    behaviour::{wrong_result, Behaviour},
    lies::Lies,
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

/// The operation that a request asks for.
pub(crate) fn opcode(readable: &[u8]) -> Option<Opcode> {
    let (header, _) = RequestHeader::read_from_prefix(readable).ok()?;
    Opcode::from_wire(header.opcode.get())
}

fn response(status: Status, count: u32, epoch: u64) -> ResponseHeader {
    let mut response = ResponseHeader::new_zeroed();
    response.status = status.to_wire().into();
    response.count = count.into();
    response.persistent_credits = CREDITS_UNLIMITED.into();
    response.ephemeral_credits = CREDITS_UNLIMITED.into();
    response.epoch = epoch.into();
    response
}

/// Carries out the request `readable` in an epoch. Its answer has room for `writable` bytes, and
/// pages of which `reaches` says that they cannot be reached are not copied.
pub(crate) fn honest(
    store: &mut Store,
    epoch: u64,
    readable: &[u8],
    writable: usize,
    reaches: impl Fn(usize) -> bool,
) -> Option<Answer> {
    let (header, rest) = RequestHeader::read_from_prefix(readable).ok()?;
    if header.epoch.get() != epoch {
        let mut bytes = response(Status::StaleEpoch, 0, epoch).as_bytes().to_vec();
        bytes.truncate(writable);
        let used = u32::try_from(bytes.len()).ok()?;
        return Some(Answer { bytes, used });
    }
    let pool = header.pool.get();
    let count = usize::try_from(header.count.get()).ok()?;
    let results: Vec<PageResult>;
    let mut pages = Vec::new();
    match Opcode::from_wire(header.opcode.get())? {
        Opcode::Put => {
            let (keys, data) = <[Key]>::ref_from_prefix_with_elems(rest, count).ok()?;
            let put = |(n, (key, page)): (usize, (&Key, &[u8]))| {
                if reaches(n) {
                    store.put(pool, key, page.into())
                } else {
                    store.forget_page(pool, key);
                    PageResult::NoMemory
                }
            };
            let pages = keys.iter().zip(data.chunks_exact(PAGE)).enumerate();
            results = pages.map(put).collect();
        }
        Opcode::Get => {
            let (keys, _) = <[Key]>::ref_from_prefix_with_elems(rest, count).ok()?;
            pages = vec![0; count * PAGE];
            let get = |(n, (key, place)): (usize, (&Key, &mut [u8]))| match store.get(pool, key) {
                Some(page) if reaches(n) => {
                    place.copy_from_slice(page);
                    PageResult::Hit
                }
                _ => PageResult::Miss,
            };
            let places = keys.iter().zip(pages.chunks_exact_mut(PAGE)).enumerate();
            results = places.map(get).collect();
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
        // It has no window.
        Opcode::PoolStats
        | Opcode::PutSlot
        | Opcode::WindowOpen
        | Opcode::WindowKeep
        | Opcode::ChunkGrant
        | Opcode::ChunkReturn => return None,
    }
    let response = response(Status::Ok, u32::try_from(results.len()).ok()?, epoch);
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

/// Makes of an honest answer what a behaviour says; `turn` counts the answers.
pub(crate) fn misbehave(
    behaviour: &Behaviour,
    turn: u64,
    readable: &[u8],
    room: usize,
    answer: &mut Answer,
) {
    let Ok((request, _)) = RequestHeader::read_from_prefix(readable) else {
        return;
    };
    let header = |answer: &mut Answer, at: usize, value: u32| {
        if let Some(field) = answer.bytes.get_mut(at..at + 4) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    };
    match behaviour {
        Behaviour::WrongOp => {
            let Some(opcode) = Opcode::from_wire(request.opcode.get()) else {
                return;
            };
            let count = usize::try_from(request.count.get()).unwrap_or(0);
            // The place of a page keeps what was there.
            answer.bytes.truncate(HEADER + count);
            for result in answer.bytes.iter_mut().skip(HEADER) {
                *result = wrong_result(opcode).to_wire();
            }
        }
        Behaviour::Status(status) => header(answer, 0, *status),
        Behaviour::Count(count) => header(answer, 8, *count),
        Behaviour::EpochFlap => {
            if turn % 2 == 1 {
                if let Some(epoch) = answer.bytes.get_mut(24..32) {
                    epoch[0] ^= 0xff;
                }
            }
        }
        Behaviour::BadCredits => {
            let credits = [0, 1, CREDITS_UNLIMITED - 1, 0x8000_0000];
            header(answer, 12, credits[turn as usize % credits.len()]);
            header(answer, 16, credits[(turn as usize + 1) % credits.len()]);
        }
        Behaviour::Short(used) => {
            answer.used = answer.used.min(*used);
            answer.bytes.truncate(*used as usize);
        }
        Behaviour::LongUsed => answer.used = (room + PAGE) as u32,
        Behaviour::AnswerNothing(_)
        | Behaviour::LoseOne(_)
        | Behaviour::LoseEvery(_)
        | Behaviour::Hold(_)
        | Behaviour::UsedZero(_)
        | Behaviour::Unreachable(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lies::EPOCH;

    fn carry_out(store: &mut Store, readable: &[u8], room: usize) -> Answer {
        honest(store, EPOCH, readable, room, |_| true).unwrap()
    }

    fn request(opcode: Opcode, index: u64, page: &[u8]) -> Vec<u8> {
        let mut header = RequestHeader::new_zeroed();
        header.opcode = opcode.to_wire().into();
        header.count = 1.into();
        header.epoch = EPOCH.into();
        let key = Key {
            index: index.into(),
            ..Key::default()
        };
        [header.as_bytes(), key.as_bytes(), page].concat()
    }

    #[test]
    fn honest_answers_are_those_of_a_device() {
        let mut store = Store::default();
        let put = carry_out(&mut store, &request(Opcode::Put, 3, &[7; PAGE]), 33);
        assert_eq!(put.bytes[32], PageResult::Stored.to_wire());
        let get = carry_out(&mut store, &request(Opcode::Get, 3, &[]), 33 + PAGE);
        assert_eq!(get.bytes[32], PageResult::Hit.to_wire());
        assert_eq!(get.bytes[33..], [7; PAGE]);
        let miss = carry_out(&mut store, &request(Opcode::Get, 4, &[]), 33 + PAGE);
        assert_eq!(miss.bytes[32], PageResult::Miss.to_wire());
        let stale = honest(&mut store, 1, &request(Opcode::Get, 3, &[]), 33, |_| true).unwrap();
        assert_eq!(stale.bytes[0], Status::StaleEpoch.to_wire() as u8);
        assert_eq!(stale.used, 32);
    }

    #[test]
    fn a_page_out_of_reach_is_not_lost() {
        let mut store = Store::default();
        carry_out(&mut store, &request(Opcode::Put, 3, &[7; PAGE]), 33);
        let get = request(Opcode::Get, 3, &[]);
        let out = honest(&mut store, EPOCH, &get, 33 + PAGE, |_| false).unwrap();
        assert_eq!(out.bytes[32], PageResult::Miss.to_wire());
        assert_eq!(carry_out(&mut store, &get, 33 + PAGE).bytes[33], 7);
        let put = request(Opcode::Put, 3, &[8; PAGE]);
        let out = honest(&mut store, EPOCH, &put, 33, |_| false).unwrap();
        assert_eq!(out.bytes[32], PageResult::NoMemory.to_wire());
        let miss = carry_out(&mut store, &get, 33 + PAGE);
        assert_eq!(miss.bytes[32], PageResult::Miss.to_wire());
    }

    #[test]
    fn each_behaviour_changes_what_it_says() {
        let mut store = Store::default();
        let get = request(Opcode::Get, 3, &[]);
        carry_out(&mut store, &request(Opcode::Put, 3, &[7; PAGE]), 33);
        let mut with = |behaviour: &str, turn| {
            let mut answer = carry_out(&mut store, &get, 33 + PAGE);
            misbehave(
                &behaviour.parse().unwrap(),
                turn,
                &get,
                33 + PAGE,
                &mut answer,
            );
            answer
        };
        let wrong = with("wrong-op", 0);
        assert_eq!(wrong.bytes[32..], [PageResult::Flushed.to_wire()]);
        assert_eq!(with("status:77", 0).bytes[..4], [77, 0, 0, 0]);
        assert_eq!(with("count:9", 0).bytes[8], 9);
        assert_eq!(with("short", 0).used, 16);
        assert_eq!(with("long-used", 0).used as usize, 33 + 2 * PAGE);
        let epoch = |answer: &Answer| answer.bytes[24..32].to_vec();
        assert_ne!(epoch(&with("epoch-flap", 0)), epoch(&with("epoch-flap", 1)));
        let credits = |answer: &Answer| answer.bytes[12..20].to_vec();
        assert_ne!(credits(&with("bad-credits", 0)), [0xff; 8]);
        let hold = with("hold:1", 0);
        assert_eq!((hold.used as usize, hold.bytes[33]), (33 + PAGE, 7));
    }

    #[test]
    fn no_lie_turns_a_miss_into_a_hit() {
        let mut rng = Rng::with_seed(1);
        let args = ["x", "--socket-path", "s", "--garbage-result-percent", "100"];
        let lies = <crate::Args as clap::Parser>::parse_from(args).lies;
        let readable = request(Opcode::Get, 4, &[]);
        for _ in 0..1000 {
            let mut answer = carry_out(&mut Store::default(), &readable, 33 + PAGE);
            distort(&lies, &mut rng, &readable, &mut answer);
            assert_ne!(answer.bytes[32], PageResult::Hit.to_wire());
        }
    }
}
