// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front-ends that hand over what cannot be used, and guests beside them that notice nothing.

mod support;

use std::{
    ffi::CString,
    fs::OpenOptions,
    io::{Read, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt, net::UnixStream},
    path::Path,
};

use support::{key, nobody_starts, stat, wait_until, Daemon, Guest, Place, BUFFERS, MEMORY, PAGE};
use tmem_driver::{Connection, Part, TmemDevice, EVENT_IDX, FEATURES};
use virtio_tmem_abi::{pool_flags, Opcode, PageResult, Status};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use zerocopy::IntoBytes;

const DATA: usize = 2;

/// A daemon with a guest `evil` and a guest `victim`, which has a page.
fn start(place: &Place) -> (Daemon, Guest) {
    let (evil, victim) = (place.arg("evil.sock"), place.arg("victim.sock"));
    let control = place.arg("control.sock");
    let args = ["-s", &evil, "-s", &victim, "--control-path", &control];
    let more = ["-c", "64MiB", "--data-queues", "2", "--threads", "1"];
    let mut daemon = Daemon::start(&[&args[..], &more].concat());
    daemon.wait_for("waiting for operators");
    let mut guest = Guest::connect(&place.path("victim.sock"));
    assert_eq!(guest.create_pool(0, pool_flags::PERSISTENT), Status::Ok);
    let put = guest.put(DATA, 0, &[(key(1, 1, 1), 0x42)]);
    assert_eq!(put.results(), [PageResult::Stored]);
    (daemon, guest)
}

fn assert_unharmed(victim: &mut Guest) {
    let got = victim.get(DATA, 0, 0, &[key(1, 1, 1)]);
    assert_eq!(got.page(0), [0x42; PAGE]);
    let put = victim.put(DATA + 1, 0, &[(key(1, 1, 1), 0x42)]);
    assert_eq!(put.results(), [PageResult::Stored]);
}

#[test]
fn memory_past_the_end_of_its_file_is_refused_with_the_reason() {
    let place = Place::new();
    let (mut daemon, mut victim) = start(&place);
    let mem = tmem_driver::memory(MEMORY).unwrap();
    let region = mem.iter().next().unwrap();
    let file = region.file_offset().unwrap().file();
    file.set_len(MEMORY as u64 / 2).unwrap();
    let connection = Connection::open(&place.path("evil.sock"), &mem, FEATURES).unwrap();
    let line = daemon.wait_for("cannot be served");
    assert!(line.contains("\"evil\""), "{line}");
    assert!(line.contains("too short for the memory"), "{line}");
    assert_unharmed(&mut victim);
    // A virtqueue in it cannot run.
    file.set_len(MEMORY as u64).unwrap();
    let mut connection = connection;
    let queue = tmem_driver::Queue::new(&connection, 0, 64, 0).unwrap();
    connection.start(&queue).unwrap();
    assert_eq!(connection.stop(&queue).unwrap(), 0);
    drop(connection);
    // The next one may have memory that is there.
    let mut again = Guest::connect(&place.path("evil.sock"));
    assert_eq!(again.create_pool(0, 0), Status::Ok);
}

/// A file system in memory with room for little.
struct Tmpfs(CString);

impl Tmpfs {
    fn mount(at: &Path) -> Option<Self> {
        let at = CString::new(at.as_os_str().as_bytes()).unwrap();
        // SAFETY: All are strings that end with a zero.
        let mounted = unsafe {
            let (name, options) = (c"tmpfs".as_ptr(), c"size=20m".as_ptr());
            libc::mount(name, at.as_ptr(), name, 0, options.cast())
        };
        (mounted == 0).then_some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // SAFETY: The path ends with a zero.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Nobody is hostile here: the host's file system is full.
#[test]
fn memory_that_the_host_has_no_room_for_stops_one_guest() {
    let place = Place::new();
    let folder = place.path("tmpfs");
    std::fs::create_dir(&folder).unwrap();
    let Some(_mounted) = Tmpfs::mount(&folder) else {
        eprintln!("not tested: file systems cannot be mounted here");
        return;
    };
    let (mut daemon, mut victim) = start(&place);
    let length = 64 << 20;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(folder.join("memory")).unwrap();
    file.set_len(length as u64).unwrap();
    let range = (GuestAddress(0), length, Some(FileOffset::new(file, 0)));
    let mem = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
    let known = FEATURES & !EVENT_IDX;
    let socket = place.path("evil.sock");
    let mut device = TmemDevice::connect(&socket, &mem, known, 64, 0).unwrap();
    assert_eq!(device.create_pool(BUFFERS, 0, 0).unwrap(), Status::Ok);
    // Fill the rest of it.
    let filler = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(folder.join("filler"));
    let mut filler = filler.unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    // Request and answer are in memory that is there, the page is not.
    let header = device.header(Opcode::Put, 0, 1);
    let request = [header.as_bytes(), key(1, 1, 1).as_bytes()].concat();
    vm_memory::Bytes::write_slice(&mem, &request, GuestAddress(BUFFERS)).unwrap();
    let parts = [
        Part::readable(BUFFERS, request.len()),
        Part::readable(40 << 20, PAGE),
        Part::writable(BUFFERS + 1024, 33),
    ];
    device.queues[DATA].add(&parts).unwrap();
    device.queues[DATA].kick_now();
    let line = daemon.wait_for("is not served any more");
    assert!(line.contains("\"evil\""), "{line}");
    assert!(line.contains("its memory at 0x2800000"), "{line}");
    assert_unharmed(&mut victim);
    // The connection goes on, and the configuration space can be read.
    assert_eq!(device.connection.read_config(0, 4).unwrap(), b"TMEM");
    assert_eq!(device.connection.stop(&device.queues[DATA]).unwrap(), 0);
    let control = place.path("control.sock");
    let listed = stat(&control);
    assert_eq!(listed["guests"][0]["connected"], true);
    drop(device);
    wait_until("it is gone", || {
        stat(&control)["guests"][0]["connected"] == false
    });
    daemon.stop();
}

#[test]
fn a_front_end_with_too_few_virtqueues_is_told_how_many() {
    let place = Place::new();
    let (mut daemon, mut victim) = start(&place);
    let mem = tmem_driver::memory(MEMORY).unwrap();
    let mut connection = Connection::open(&place.path("evil.sock"), &mem, FEATURES).unwrap();
    for number in 0..2 {
        let base = number as u64 * tmem_driver::Queue::bytes(64);
        let queue = tmem_driver::Queue::new(&connection, number, 64, base).unwrap();
        connection.start(&queue).unwrap();
    }
    connection.read_config(0, 64).unwrap();
    let line = daemon.wait_for("num_vqs=4");
    assert!(line.contains("\"evil\" has 2 virtqueues"), "{line}");
    assert_unharmed(&mut victim);
}

#[test]
fn a_second_front_end_is_turned_away_at_once() {
    let place = Place::new();
    let (mut daemon, mut victim) = start(&place);
    let mut second = UnixStream::connect(place.path("victim.sock")).unwrap();
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
    let line = daemon.wait_for("a second front-end was turned away");
    assert!(line.contains("\"victim\""), "{line}");
    assert_unharmed(&mut victim);
    // One that comes when the first has gone is served, however soon that is.
    let _closed = nobody_starts();
    for _ in 0..10 {
        drop(victim);
        victim = Guest::connect(&place.path("victim.sock"));
        assert_eq!(victim.create_pool(0, 0), Status::Ok);
    }
}

#[test]
fn a_front_end_that_dies_within_a_message_is_let_go_of() {
    let place = Place::new();
    let (_daemon, mut victim) = start(&place);
    let path = place.path("evil.sock");
    // Of nothing, but it has been begun; of a header; and of what should follow one.
    for part in [4, 12, 20] {
        let mut front_end = UnixStream::connect(&path).unwrap();
        let message = [3u32, 1, 100, 0, 0].map(u32::to_ne_bytes).concat();
        front_end.write_all(&message[..part]).unwrap();
    }
    let mut evil = Guest::connect(&path);
    assert_eq!(evil.create_pool(0, 0), Status::Ok);
    assert_unharmed(&mut victim);
}

/// Sends a message of the protocol without descriptors, and returns the payload of the answer, if
/// one is wanted.
fn say(stream: &mut UnixStream, request: u32, flags: u32, payload: &[u8], answer: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [request, flags, payload.len() as u32] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    stream.write_all(&bytes).unwrap();
    if !answer {
        return Vec::new();
    }
    let mut header = [0; 12];
    stream.read_exact(&mut header).unwrap();
    let len = u32::from_ne_bytes(header[8..].try_into().unwrap());
    let mut payload = vec![0; len as usize];
    stream.read_exact(&mut payload).unwrap();
    payload
}

#[test]
fn memory_that_is_not_shared_is_refused_with_what_to_do() {
    const GET_FEATURES: u32 = 1;
    const SET_FEATURES: u32 = 2;
    const SET_MEM_TABLE: u32 = 5;
    const GET_PROTOCOL_FEATURES: u32 = 15;
    const SET_PROTOCOL_FEATURES: u32 = 16;
    const REPLY_ACK: u64 = 1 << 3;
    let place = Place::new();
    let (mut daemon, mut victim) = start(&place);
    let mut evil = UnixStream::connect(place.path("evil.sock")).unwrap();
    let features = say(&mut evil, GET_FEATURES, 1, &[], true);
    say(&mut evil, GET_PROTOCOL_FEATURES, 1, &[], true);
    let ack = REPLY_ACK.to_ne_bytes();
    say(&mut evil, SET_PROTOCOL_FEATURES, 1, &ack, false);
    say(&mut evil, SET_FEATURES, 1, &features, false);
    let mut table = Vec::new();
    table.extend(1u64.to_ne_bytes());
    for word in [0, MEMORY as u64, 0x7000_0000, 0] {
        table.extend(word.to_ne_bytes());
    }
    // It wants to be told, and is.
    let told = say(&mut evil, SET_MEM_TABLE, 1 | (1 << 3), &table, true);
    assert_eq!(told, 1u64.to_ne_bytes());
    let line = daemon.wait_for("\"evil\" cannot be served");
    assert!(line.contains("share=on"), "{line}");
    // The connection is still of use.
    assert_eq!(say(&mut evil, GET_FEATURES, 1, &[], true), features);
    // Half a message keeps nobody waiting.
    evil.write_all(&table[..7]).unwrap();
    assert_unharmed(&mut victim);
}
