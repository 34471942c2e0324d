// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Windows that are memory of the device itself: when the front-end is asked to map them.

mod support;

use std::{
    fs::File,
    io::{ErrorKind, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    time::Duration,
};

use nix::sys::socket::{recvmsg, ControlMessageOwned, MsgFlags};
use support::{kill, wait_until, window::WindowPlace, Daemon, Guest};
use virtio_tmem_abi::{ChunkKind, Status, WINDOW_MAGIC};

const SIZE: u64 = 16 << 20;

/// The request to map, and its length behind the header.
const MAP: u32 = 9;
const MAP_LEN: usize = 40;
const HEADER: usize = 12;

fn start(place: &WindowPlace, source: &str) -> Daemon {
    let window = ["--window-size", "16MiB", "--window-source", source];
    place.start(&["a"], &[&["-c", "64MiB"], &window[..]].concat())
}

/// A front-end that can be asked, as QEMU: it reads the header of a message, and waits for the rest.
struct FrontEnd {
    channel: UnixStream,
}

impl FrontEnd {
    fn connect(place: &WindowPlace) -> (Self, Guest) {
        let (channel, theirs) = UnixStream::pair().unwrap();
        channel
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let guest = Guest::connect_sharing(&place.sockets.path("a.sock"), &theirs);
        (Self { channel }, guest)
    }

    /// Waits for a request, of which nothing is taken.
    fn wait(&self) {
        wait_until("the front-end is asked", || self.is_asked());
    }

    fn is_asked(&self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        nix::sys::socket::recv(self.channel.as_raw_fd(), &mut byte, flags).is_ok()
    }

    /// Takes the header of a request, and the file that comes with it.
    fn header(&mut self) -> (Vec<u32>, File) {
        self.wait();
        let mut header = [0; HEADER];
        let mut space = nix::cmsg_space!(RawFd);
        let mut pieces = [IoSliceMut::new(&mut header)];
        let flags = MsgFlags::empty();
        let socket = self.channel.as_raw_fd();
        let message = recvmsg::<()>(socket, &mut pieces, Some(&mut space), flags).unwrap();
        let control = message.cmsgs().unwrap().next();
        let Some(ControlMessageOwned::ScmRights(files)) = control else {
            panic!("a file comes with it: {control:?}");
        };
        // SAFETY: The kernel has just made it, and nobody else knows of it.
        let file = unsafe { File::from_raw_fd(files[0]) };
        let words = header.chunks_exact(4);
        let words = words.map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        (words.collect(), file)
    }

    /// Takes a whole request, and answers it with this number. Returns the window's file.
    fn answer(&mut self, value: u64) -> File {
        let (header, file) = self.header();
        assert_eq!(header, [MAP, 1 | (1 << 3), MAP_LEN as u32]);
        let mut body = [0; MAP_LEN];
        self.channel.read_exact(&mut body).unwrap();
        let words = body.chunks_exact(8);
        let words = words.map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
        // The region, where in the file and in the region it begins, its length, and for writing.
        assert_eq!(words.collect::<Vec<_>>(), [0, 0, 0, SIZE, 1]);
        let mut answer = Vec::new();
        for word in [MAP, 1 | (1 << 2), 8] {
            answer.extend(word.to_ne_bytes());
        }
        answer.extend(value.to_ne_bytes());
        self.channel.write_all(&answer).unwrap();
        file
    }

    /// Does what it is asked for.
    fn map(&mut self, guest: &mut Guest) {
        let file = self.answer(0);
        guest.connection.map(Some((file, SIZE))).unwrap();
    }
}

fn use_window(place: &WindowPlace, guest: &mut Guest) {
    assert_eq!(guest.open_window(0), Status::Ok);
    let window = place.window("a");
    assert_eq!(window.header().magic.get(), WINDOW_MAGIC);
    assert_eq!(window.header().epoch.get(), guest.epoch());
    assert_eq!(guest.grant(ChunkKind::Persistent, 2, 1).len(), 2);
}

#[test]
fn the_front_end_is_asked_for_the_window_once_for_each_start() {
    let place = WindowPlace::new();
    let daemon = start(&place, "virtio");
    let (mut front_end, mut guest) = FrontEnd::connect(&place);
    let file = front_end.answer(0);
    let node = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let path = place.directory().join("a.window");
    let expected = node(std::fs::metadata(path).unwrap());
    assert_eq!(node(file.metadata().unwrap()), expected);
    guest.connection.map(Some((file, SIZE))).unwrap();
    use_window(&place, &mut guest);

    // The machine is paused, and goes on; another worker takes over.
    guest.stop();
    guest.tell_memory();
    guest.start_anew();
    use_window(&place, &mut guest);
    let worker = daemon.worker();
    kill(worker, libc::SIGKILL);
    use_window(&place, &mut guest);
    assert_ne!(daemon.worker(), worker);
    assert!(!front_end.is_asked());

    // A reset takes the window with it.
    guest.reset();
    guest.connection.map(None).unwrap();
    assert!(!front_end.is_asked());
    guest.start_anew();
    front_end.map(&mut guest);
    use_window(&place, &mut guest);
}

#[test]
fn a_device_that_is_stopped_meanwhile_is_not_asked_for_the_rest() {
    let place = WindowPlace::new();
    let _daemon = start(&place, "virtio");
    let (mut front_end, mut guest) = FrontEnd::connect(&place);
    front_end.wait();
    // It has other things to do before it reads.
    guest.stop();
    front_end.header();
    let mut rest = [0; MAP_LEN];
    let read = front_end.channel.read(&mut rest);
    let ended = |error: &std::io::Error| error.kind() == ErrorKind::ConnectionReset;
    assert!(read.as_ref().is_ok_and(|read| *read == 0) || read.as_ref().is_err_and(ended));
    // It goes on without.
    guest.tell_memory();
    guest.start_anew();
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
}

#[test]
fn a_front_end_that_refuses_is_served_without_a_window_and_asked_at_the_next_start() {
    let place = WindowPlace::new();
    let _daemon = start(&place, "virtio");
    let (mut front_end, mut guest) = FrontEnd::connect(&place);
    front_end.answer(1);
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
    assert!(!front_end.is_asked());
    guest.reset();
    guest.tell_memory();
    guest.start_anew();
    front_end.map(&mut guest);
    use_window(&place, &mut guest);
}

#[test]
fn a_front_end_that_does_not_read_is_served_without_a_window() {
    let place = WindowPlace::new();
    let _daemon = start(&place, "virtio");
    let (mut front_end, mut guest) = FrontEnd::connect(&place);
    assert_eq!(guest.create_pool(0, 0), Status::Ok);
    front_end.header();
    assert_eq!(front_end.channel.read(&mut [0; MAP_LEN]).ok(), Some(0));
}

#[test]
fn nobody_is_asked_who_cannot_be_or_where_the_window_is_another_device() {
    let place = WindowPlace::new();
    let daemon = start(&place, "virtio");
    let mut guest = Guest::connect(&place.sockets.path("a.sock"));
    use_window(&place, &mut guest);
    drop((guest, daemon));

    let _daemon = start(&place, "ivshmem");
    let (_channel, theirs) = UnixStream::pair().unwrap();
    let socket = place.sockets.path("a.sock");
    let mem = tmem_driver::memory(1 << 20).unwrap();
    let known = tmem_driver::FEATURES;
    tmem_driver::Connection::open_sharing(&socket, &mem, known, &theirs)
        .err()
        .expect("it is not offered");
}
