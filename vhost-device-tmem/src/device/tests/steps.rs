// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests that are left in the middle and gone on with.

use super::*;

impl Device {
    /// Prepares a request of two descriptors.
    fn prepare(&self, readable: &[u8], writable: usize) -> Parts<'_> {
        self.mem
            .write_slice(readable, GuestAddress(READABLE))
            .unwrap();
        let next = VRING_DESC_F_NEXT as u16;
        let write = VRING_DESC_F_WRITE as u16;
        let descriptors = [
            Descriptor::new(READABLE, readable.len() as u32, next, 1),
            Descriptor::new(WRITABLE, writable as u32, write, 0),
        ];
        collect(&self.mem, &descriptors)
    }

    fn pages(&self, pool: usize) -> u64 {
        self.session.pools()[pool].pages
    }
}

/// Carries out one turn of so many pages; returns whether the request was finished, and calls
/// `done` when it is published.
fn turn(
    device: &Device,
    parts: &[Parts<'_>],
    pages: u32,
    pending: &mut Option<Box<Pending>>,
    scratch: &mut Scratch,
    mut done: impl FnMut(),
) -> bool {
    let mut left = Allowance::default();
    left.top_up(Quantum { pages, ..PLENTY });
    let mut meter = Meter::new(Instant::now());
    meter.begin(left);
    let group = Group {
        queue: QueueKind::Data,
        requests: parts,
        watch: &Watch::default(),
        wake: None,
    };
    let served = serve(&device.session, group, pending, scratch, &mut meter, |_| {
        done();
        Ok::<_, Infallible>(())
    });
    served.unwrap() == 1
}

fn keys(count: u64) -> Vec<Key> {
    (0..count).map(|index| key(index, 1)).collect()
}

#[test]
fn a_turn_ends_in_the_middle_of_a_request() {
    let device = Device::new();
    let mut scratch = Scratch::default();
    let request = device.put_bytes(0, &keys(100), 1);
    let parts = [device.prepare(&request, 132)];
    let mut pending = None;
    let mut turns = 0;
    while !turn(&device, &parts, 16, &mut pending, &mut scratch, || ()) {
        turns += 1;
        assert_eq!(device.pages(0), turns * 16);
        // But for those that made the pools.
        assert_eq!(device.session.counters.requests.get(), 2);
    }
    assert_eq!((turns, device.pages(0)), (6, 100));
    assert!(pending.is_none());
}

#[test]
fn what_is_taken_is_there_until_the_driver_has_it() {
    for step in [100, 16] {
        let mut device = Device::new();
        device.put(1, &keys(100), 7);
        let request = device.get_bytes(1, request_flags::TAKE, &keys(100));
        let parts = [device.prepare(&request, 32 + 100 * (1 + PAGE_SIZE))];
        let (mut scratch, mut pending) = (Scratch::default(), None);
        let mut told = 0;
        loop {
            let tell = || {
                told += 1;
                assert_eq!(device.pages(1), 100);
            };
            if turn(&device, &parts, step, &mut pending, &mut scratch, tell) {
                break;
            }
            assert_eq!(device.pages(1), 100);
        }
        assert_eq!((told, device.pages(1)), (1, 0));
    }
}

#[test]
fn what_was_taken_in_vain_is_there_again() {
    let mut device = Device::new();
    device.put(1, &keys(100), 7);
    let request = device.get_bytes(1, request_flags::TAKE, &keys(100));
    {
        let parts = [device.prepare(&request, 32 + 100 * (1 + PAGE_SIZE))];
        let (mut scratch, mut pending) = (Scratch::default(), None);
        let told = || unreachable!("it is not finished");
        assert!(!turn(&device, &parts, 16, &mut pending, &mut scratch, told));
        // As when the virtqueue is stopped.
        pending.unwrap().abandon(&device.session.store);
    }
    let got = device.get(1, request_flags::TAKE, &keys(100));
    assert_eq!(got.results(), [PageResult::Hit; 100]);
    assert_eq!(device.pages(1), 0);
}

/// The chain is another when it is looked at again, and the request is the one that was read.
#[test]
fn what_was_read_is_not_read_again() {
    let device = Device::new();
    let (mut scratch, mut pending) = (Scratch::default(), None);
    let request = device.put_bytes(0, &keys(40), 1);
    let parts = [device.prepare(&request, 72)];
    assert!(!turn(
        &device,
        &parts,
        16,
        &mut pending,
        &mut scratch,
        || ()
    ));
    // Another operation, in a chain of another shape.
    let parts = [device.prepare(&[0xff; 64], 33)];
    while !turn(&device, &parts, 16, &mut pending, &mut scratch, || ()) {}
    let report = device.session.pools()[0];
    assert_eq!((report.counters.puts, report.pages), (40, 16));
    assert_eq!(device.session.counters.malformed.get(), 0);
}

#[test]
fn a_chain_of_too_many_pieces_is_no_request() {
    let mut device = Device::new();
    let request = device.put_bytes(0, &[key(1, 1)], 1);
    device
        .mem
        .write_slice(&request, GuestAddress(READABLE))
        .unwrap();
    let (next, write) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16);
    let table = 6 << 20;
    let mut send = |pieces: usize| {
        let empty = pieces - 2;
        for n in 0..pieces {
            let flags = if n + 1 < pieces { next } else { write };
            let (addr, len) = match n {
                n if n < empty => (READABLE, 0),
                n if n == empty => (READABLE, request.len() as u32),
                _ => (WRITABLE, 33),
            };
            let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, n as u16 + 1));
            let at = GuestAddress(table + 16 * n as u64);
            device.mem.write_obj(descriptor, at).unwrap();
        }
        let flags = VRING_DESC_F_INDIRECT as u16;
        let indirect = Descriptor::new(table, 16 * pieces as u32, flags, 0);
        device.serve(QueueKind::Data, &[indirect])
    };
    assert_eq!(send(1024), 33);
    assert_eq!(send(1025), 0);
    assert_eq!(send(65535), 0);
    device.assert_works();
}
