// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The engine, without a connection: guests whose memory is a memfd of the test.

mod guest;

use std::{
    fs::File,
    os::fd::{FromRawFd, OwnedFd},
    sync::mpsc,
};

use guest::{duplicate, Guest};
use tmem_driver::{Part, Queue as Vring};
use virtio_tmem_abi::{ChunkKind, FIRST_DATA_QUEUE};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::{
    device::{Engine, EngineConfig, EngineError, GuestId, MemoryError, MemoryRegion, Observer},
    store::PoolKind,
};

const DATA: u16 = FIRST_DATA_QUEUE;
const RING_SIZE: u16 = 16;
const BYTES: u64 = 4 << 20;
const REQUEST: u64 = 1 << 20;
const ANSWER: u64 = 2 << 20;

/// Tells the test of guests that failed.
struct Told(mpsc::Sender<(GuestId, String)>);

impl Observer for Told {
    fn guest_failed(&self, guest: GuestId, why: &str) {
        let _ = self.0.send((guest, why.to_owned()));
    }
}

fn engine(threads: usize) -> (Arc<Engine>, mpsc::Receiver<(GuestId, String)>) {
    engine_on(Store::new(&StoreConfig::new(32 << 20)).unwrap(), threads)
}

fn engine_on(
    store: impl Into<Arc<Store>>,
    threads: usize,
) -> (Arc<Engine>, mpsc::Receiver<(GuestId, String)>) {
    let config = EngineConfig {
        threads,
        poll: Duration::from_micros(50),
        limits: Limits::new(2),
        taken_anyway: 0,
    };
    let (sender, failed) = mpsc::channel();
    let engine = Engine::start(store.into(), config, Arc::new(Told(sender)));
    (Arc::new(engine.unwrap()), failed)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "in vain: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_few_threads_serve_many_guests() {
    let (engine, _failed) = engine(2);
    let mut guests: Vec<_> = (0..64).map(|n| Guest::connect(&engine, n)).collect();
    for guest in &mut guests {
        guest.create(0, pool_flags::PERSISTENT);
    }
    for round in 0..3 {
        // All have something to do at once.
        for guest in &mut guests {
            for (index, ring) in (0..4).flat_map(|index| [(index, DATA), (index + 4, DATA + 1)]) {
                guest.add_page(ring, Opcode::Put, index + 8 * round, 3 << 20);
                guest.vring(ring).notify();
            }
        }
        for guest in &mut guests {
            for ring in [DATA, DATA + 1] {
                (0..4).for_each(|_| assert_eq!(guest.vring(ring).poll().unwrap().1, 33));
            }
        }
    }
    for guest in &guests {
        let slot = engine.slot(guest.id, "");
        let state = slot.state();
        assert_eq!(state.session.as_ref().unwrap().pools()[0].pages, 24);
    }
    let gone = guests.pop().unwrap();
    let dropped = engine.remove_guest(gone.id);
    assert_eq!(dropped.persistent.pages, 24);
    guests[0].assert_works(DATA);
}

/// Its connection ended while a worker began, which has the pages of one before it.
#[test]
fn a_guest_that_an_engine_never_served_leaves_nothing_either() {
    let store = Store::new(&StoreConfig::new(32 << 20)).unwrap();
    store
        .create_pool(&store.guest(3), 0, PoolKind::Persistent)
        .unwrap();
    let (engine, _failed) = engine_on(store, 1);
    engine.remove_guest(GuestId(3));
    let mut next = Guest::connect(&engine, 3);
    let pools = |guest: &Guest| {
        let slot = engine.slot(guest.id, "");
        let state = slot.state();
        state.session.as_ref().unwrap().pools().len()
    };
    assert_eq!(pools(&next), 0);
    next.create(0, 0);
    next.assert_works(DATA);
    assert_eq!(pools(&next), 1);
}

/// Nor does it keep what it was granted of its window.
#[test]
fn a_guest_that_an_engine_never_served_loses_its_chunks_too() {
    let file = window_files();
    let before = open_window(&file);
    assert!(before.open_for(EPOCH, false));
    before.begin_grant(1);
    for kind in [ChunkKind::Persistent, ChunkKind::Ephemeral] {
        assert!(before.make_ready() && before.grant(kind));
    }
    let granted = before.granted();
    assert_eq!(granted.len(), 2);
    // The worker that granted it is gone.
    drop(before);

    let store = Arc::new(Store::new(&StoreConfig::new(32 << 20)).unwrap());
    let (engine, _failed) = engine_on(Arc::clone(&store), 1);
    let id = GuestId(3);
    let [window, book] = descriptors(&file);
    engine.set_window(id, Some(EPOCH), window, book).unwrap();
    assert_eq!(store.report().lent_bytes, 4 * window::CHUNK);
    engine.remove_guest(id);
    let state = engine.lenders().of(id).unwrap().state();
    assert_eq!((state.open, state.allocated), (false, 0));
    assert_eq!((state.chunks.free, state.chunks.persistent), (2, 0));
    assert_eq!(store.report().lent_bytes, 0);
    // Nor does the next process find anything that is granted, and each has another generation.
    let after = open_window(&file);
    for (number, generation) in granted {
        assert!(!after.holds(number, generation) && !after.holds(number, generation + 2));
    }
    assert!(after.open_for(EPOCH + 1, false));
    after.begin_grant(1);
    assert!(after.make_ready() && after.grant(ChunkKind::Persistent));
    assert_eq!(after.granted(), [(2, 4)]);
}

#[test]
fn a_virtqueue_goes_on_where_it_was_stopped() {
    let (engine, _failed) = engine(1);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    guest.assert_works(DATA);
    assert_eq!(engine.stop_ring(guest.id, DATA).unwrap(), Some(2));
    assert_eq!(engine.stop_ring(guest.id, DATA).unwrap(), None);
    // Nothing of it is looked at meanwhile.
    guest.add_page(DATA, Opcode::Put, 1, 3 << 20);
    guest.vring(DATA).kick_now();
    guest.assert_works(DATA + 1);
    assert_eq!(guest.vring(DATA).next_used(), None);
    guest.start(DATA, Some(2)).unwrap();
    assert_eq!(guest.vring(DATA).poll().unwrap().1, 33);
    guest.assert_works(DATA);
}

/// As after a worker that died: what was available and not used is carried out.
#[test]
fn without_a_base_it_goes_on_where_the_used_ring_ends() {
    let (engine, _failed) = engine(1);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    guest.assert_works(DATA);
    assert_eq!(engine.stop_ring(guest.id, DATA).unwrap(), Some(2));
    for index in 0..3 {
        guest.add_page(DATA, Opcode::Put, index, 3 << 20);
    }
    // One that was carried out, but that the driver was not told of, comes again.
    let session = {
        let slot = engine.slot(guest.id, "");
        let state = slot.state();
        Arc::clone(state.session.as_ref().unwrap())
    };
    guest.start(DATA, None).unwrap();
    for _ in 0..3 {
        assert_eq!(guest.vring(DATA).poll().unwrap().1, 33);
    }
    let puts = session.pools()[0].counters.puts;
    assert_eq!(engine.stop_ring(guest.id, DATA).unwrap(), Some(5));
    // The used index of before, as if nothing after that had been published.
    let used = GuestAddress(guest.vring(DATA).used_ring() + 2);
    guest
        .mem
        .store(2u16.to_le(), used, std::sync::atomic::Ordering::Release)
        .unwrap();
    guest.start(DATA, None).unwrap();
    wait_until("they are used again", || {
        let index: u16 = guest
            .mem
            .load(used, std::sync::atomic::Ordering::Acquire)
            .unwrap();
        u16::from_le(index) == 5
    });
    assert_eq!(session.pools()[0].counters.puts, puts + 3);
    assert_eq!(engine.stop_ring(guest.id, DATA).unwrap(), Some(5));
}

#[test]
fn what_cannot_be_notified_by_is_refused() {
    let (engine, _failed) = engine(1);
    let guest = Guest::connect(&engine, 0);
    let eventfd = || duplicate(&EventFd::new(libc::EFD_NONBLOCK).unwrap());
    let (reader, writer) = nix::unistd::pipe().unwrap();
    for (kick, call, what) in [
        (reader, eventfd(), "the kick descriptor"),
        (eventfd(), writer, "the call descriptor"),
    ] {
        let refused = guest.start_with(DATA, Some(0), kick, call).unwrap_err();
        assert!(refused.to_string().contains(what), "{refused}");
        assert!(refused.to_string().contains("no eventfd"), "{refused}");
    }
    let (_, writer) = nix::unistd::pipe().unwrap();
    let refused = engine.set_call(guest.id, DATA, Some(writer));
    assert!(refused.is_err());
    let refused = guest
        .engine
        .start_ring(guest.id, 9, guest.layout(DATA), None, None, None);
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("num_vqs is to be 4"), "{refused}");
}

#[test]
fn an_interrupt_that_would_block_does_not() {
    let (engine, _failed) = engine(1);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    let kick = duplicate(guest.vring(DATA).kick());
    guest
        .start_with(DATA, Some(0), kick, duplicate(&full))
        .unwrap();
    guest.assert_works(DATA);
    guest.assert_works(DATA + 1);
}

#[test]
fn somebody_else_may_read_the_notifications() {
    let (engine, _failed) = engine(1);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    for _ in 0..100 {
        guest.vring(DATA).kick_now();
        let _ = guest.vring(DATA).kick().read();
    }
    guest.assert_works(DATA);
    guest.assert_works(DATA + 1);
}

#[test]
fn a_virtqueue_without_notifications_is_looked_at() {
    let (engine, _failed) = engine(1);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    let layout = guest.layout(DATA);
    engine
        .start_ring(guest.id, DATA, layout, Some(0), None, None)
        .unwrap();
    for index in 0..3 {
        guest.add_page(DATA, Opcode::Put, index, 3 << 20);
        assert_eq!(guest.vring(DATA).poll().unwrap().1, 33);
    }
}

/// Memory that goes away under a request costs that guest its service, and nobody else anything.
#[test]
fn a_file_that_shrinks_stops_one_guest() {
    // In a page that is put, one that is got, a request, an answer, and the virtqueue itself.
    for what in 0..5 {
        let (engine, failed) = engine(1);
        let mut victim = Guest::connect(&engine, 1);
        victim.create(0, pool_flags::PERSISTENT);
        let mut guest = Guest::connect(&engine, 0);
        guest.create(0, pool_flags::PERSISTENT);
        guest.assert_works(DATA);
        engine.stop_ring(guest.id, DATA).unwrap();
        let gone = 3 << 20;
        match what {
            0 => guest.add_page(DATA, Opcode::Put, 5, gone),
            1 => guest.add_page(DATA, Opcode::Get, 77, gone),
            2 => {
                let parts = [Part::readable(gone, 72), Part::writable(ANSWER, 33)];
                guest.vring(DATA).add(&parts).unwrap();
            }
            3 => {
                let header = Guest::header(Opcode::FlushPage, 0);
                let bytes = [header.as_bytes(), key(99, 1).as_bytes()].concat();
                guest
                    .mem
                    .write_slice(&bytes, GuestAddress(REQUEST))
                    .unwrap();
                let parts = [Part::readable(REQUEST, 72), Part::writable(gone, 33)];
                guest.vring(DATA).add(&parts).unwrap();
            }
            _ => guest.add_page(DATA, Opcode::Get, 77, REQUEST),
        }
        let length = if what == 4 { 0 } else { gone };
        if what == 4 {
            // While it runs: it is the next look that fails.
            guest.start(DATA, Some(2)).unwrap();
            guest.vring(DATA).poll().unwrap();
            guest.file.set_len(length).unwrap();
            guest.vring(DATA).kick_now();
        } else {
            guest.file.set_len(length).unwrap();
            guest.start(DATA, Some(2)).unwrap();
        }
        let (id, why) = failed.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(id, guest.id, "{what}");
        assert!(why.contains("the file shrank"), "{why}");
        victim.assert_works(DATA);
        victim.assert_works(DATA + 1);
        let slot = engine.slot(guest.id, "");
        let session = Arc::clone(slot.state().session.as_ref().unwrap());
        assert_eq!(session.failure().as_deref(), Some(&*why));
        // What was being put is not there, what was being got is.
        assert_eq!(session.pools()[0].pages, 1, "{what}");
        // It stays out, whatever it says, until it connects again.
        guest.file.set_len(BYTES).unwrap();
        guest.set_memory().unwrap();
        assert!(engine.stop_ring(guest.id, DATA).unwrap().is_some());
        let added = guest.vring(DATA).added();
        guest.start(DATA, Some(added)).unwrap();
        guest.add_page(DATA, Opcode::Put, 6, 0x8_0000);
        guest.vring(DATA).kick_now();
        victim.assert_works(DATA);
        assert_eq!(session.pools()[0].pages, 1);
        assert_eq!(engine.remove_guest(guest.id).persistent.pages, 1);
        let mut again = Guest::connect(&engine, 0);
        again.create(0, 0);
        again.assert_works(DATA);
    }
}

/// As of a file system that is full: the file has its length, and a page cannot be had.
#[test]
fn a_huge_page_that_cannot_be_had_stops_one_guest() {
    const HUGE: u64 = 2 << 20;
    // SAFETY: The descriptor is new, and ours.
    let file = unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        let fd = libc::memfd_create(c"huge".as_ptr(), flags);
        if fd < 0 {
            eprintln!("not tested: this kernel has no huge pages");
            return;
        }
        File::from_raw_fd(fd)
    };
    // More than anybody has.
    let size = 1 << 40;
    if file.set_len(size).is_err() {
        eprintln!("not tested: there is no room for a file of huge pages");
        return;
    }
    let (engine, failed) = engine(1);
    let mut victim = Guest::connect(&engine, 1);
    victim.create(0, 0);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    guest.assert_works(DATA);
    let (mut regions, mut fds) = guest.regions();
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.map_or(true, |free| free.trim() != "0") {
        eprintln!("not tested: there are free huge pages");
        return;
    }
    regions.push(MemoryRegion {
        guest_addr: 1 << 32,
        size: HUGE,
        user_addr: 1 << 46,
        offset: size - HUGE,
    });
    fds.push(file.into());
    engine.set_memory(guest.id, regions, fds).unwrap();
    guest.assert_works(DATA);
    guest.add_page(DATA, Opcode::Get, 77, (1 << 32) + 4096);
    guest.vring(DATA).kick_now();
    let (id, _) = failed.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(id, guest.id);
    victim.assert_works(DATA);
}

#[test]
fn memory_that_cannot_be_used_changes_nothing() {
    let (engine, _failed) = engine(1);
    let mut guest = Guest::connect(&engine, 0);
    guest.create(0, 0);
    let (mut regions, fds) = guest.regions();
    regions[0].size *= 2;
    let refused = engine.set_memory(guest.id, regions, fds).unwrap_err();
    let past_end = matches!(refused, EngineError::Memory(MemoryError::PastEnd { .. }));
    assert!(past_end, "{refused}");
    guest.assert_works(DATA);
    // Memory without its virtqueues stops those.
    let (mut regions, fds) = guest.regions();
    regions[0].user_addr += 1 << 40;
    let lost = engine.set_memory(guest.id, regions, fds).unwrap_err();
    assert!(matches!(lost, EngineError::Ring { .. }), "{lost}");
}

#[test]
fn nobody_waits_for_threads_that_have_ended() {
    let (engine, _failed) = engine(2);
    let guest = Guest::connect(&engine, 0);
    engine.stop();
    assert!(guest.start(DATA, None).is_err());
    assert_eq!(engine.stop_ring(guest.id, DATA + 1).unwrap(), None);
    assert!(guest.set_memory().is_err());
    engine.remove_guest(guest.id);
}
