// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are served together are answered as if they had come one by one.

use proptest::prelude::*;

use super::*;

/// How far the requests are apart in memory.
const APART: u64 = 128 << 10;

#[derive(Clone, Debug)]
struct Ask {
    opcode: Opcode,
    flags: u16,
    pool: u32,
    keys: Vec<Key>,
    contents: u8,
    /// Bytes by which the writable part is too short.
    missing: usize,
}

fn ask() -> impl Strategy<Value = Ask> {
    let kinds = prop_oneof![
        4 => Just((Opcode::Put, 0)),
        3 => Just((Opcode::Get, 0)),
        2 => Just((Opcode::Get, request_flags::TAKE)),
        1 => Just((Opcode::FlushPage, 0)),
    ];
    // There is no pool 2.
    let pools = prop_oneof![4 => Just(1), 2 => Just(0), 1 => Just(2)];
    let keys = prop::collection::vec((0..6u64, 0..2u64), 1..20);
    let missing = prop_oneof![8 => Just(0), 1 => Just(1), 1 => Just(usize::MAX)];
    (kinds, pools, keys, any::<u8>(), missing).prop_map(
        |((opcode, flags), pool, keys, contents, missing)| Ask {
            opcode,
            flags,
            pool,
            keys: keys.into_iter().map(|(i, v)| key(i, v)).collect(),
            contents,
            missing,
        },
    )
}

/// Several of the same kind, as a guest sends them.
fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let alike = (ask(), 1..6usize).prop_flat_map(|(first, count)| {
        let others = prop::collection::vec((ask(), any::<bool>()), count);
        others.prop_map(move |others| {
            let alike = |(other, alike): (Ask, bool)| Ask {
                opcode: first.opcode,
                flags: first.flags,
                pool: if alike { first.pool } else { other.pool },
                ..other
            };
            others.into_iter().map(alike).collect::<Vec<_>>()
        })
    });
    prop::collection::vec(alike, 1..8).prop_map(|asks| asks.concat())
}

impl Device {
    /// Serves requests, `together` of them at a time, in turns of so much, and returns what was written and the used
    /// lengths, but for what differs from device to device or from moment to moment.
    fn serve_asks(&mut self, asks: &[Ask], together: usize, turn: Quantum) -> Vec<(u32, Vec<u8>)> {
        let mut answers = Vec::new();
        for asks in asks.chunks(together) {
            let mut places = Vec::new();
            for (n, ask) in asks.iter().enumerate() {
                let readable = match ask.opcode {
                    Opcode::Put => self.put_bytes(ask.pool, &ask.keys, ask.contents),
                    Opcode::Get => self.get_bytes(ask.pool, ask.flags, &ask.keys),
                    opcode => {
                        let header = self.header(opcode, ask.pool, ask.keys.len() as u32);
                        [header.as_bytes(), ask.keys.as_bytes()].concat()
                    }
                };
                let each = if ask.opcode == Opcode::Get {
                    1 + PAGE_SIZE
                } else {
                    1
                };
                let writable = 32 + ask.keys.len() * each;
                let writable = writable.saturating_sub(ask.missing).max(8);
                let offset = n as u64 * APART;
                let place = (READABLE + offset, WRITABLE + offset, writable);
                let untouched = vec![UNTOUCHED; writable];
                self.mem
                    .write_slice(&readable, GuestAddress(place.0))
                    .unwrap();
                self.mem
                    .write_slice(&untouched, GuestAddress(place.1))
                    .unwrap();
                places.push((place, readable.len()));
            }
            let requests = places.iter().map(|((readable, writable, room), len)| {
                let next = VRING_DESC_F_NEXT as u16;
                let first = Descriptor::new(*readable, *len as u32, next, 1);
                let write = VRING_DESC_F_WRITE as u16;
                let second = Descriptor::new(*writable, *room as u32, write, 0);
                collect(&self.mem, &[first, second])
            });
            let requests: Vec<_> = requests.collect();
            let (session, scratch) = (&self.session, &mut self.scratch);
            let lens = serve_parts(session, QueueKind::Data, &requests, scratch, turn);
            for (((_, writable, room), _), len) in places.into_iter().zip(lens) {
                let mut bytes = vec![0; room];
                self.mem
                    .read_slice(&mut bytes, GuestAddress(writable))
                    .unwrap();
                if room >= 32 {
                    // Credits and epoch.
                    bytes[12..32].fill(0);
                }
                answers.push((len, bytes));
            }
        }
        answers
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn requests_served_together_are_answered_as_one_by_one(asks in asks()) {
        let mut one = Device::new();
        let expected = one.serve_asks(&asks, 1, PLENTY);
        let malformed = |device: &Device| device.session.counters.malformed.get();
        for (together, turn) in [(16, PLENTY), (16, LITTLE), (1, LITTLE)] {
            let mut many = Device::new();
            prop_assert_eq!(&many.serve_asks(&asks, together, turn), &expected);
            prop_assert_eq!(many.session.pools(), one.session.pools());
            prop_assert_eq!(malformed(&many), malformed(&one));
        }
    }
}
