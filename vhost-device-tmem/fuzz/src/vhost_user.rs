// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A front-end that sends whatever comes to its mind, with descriptors that are none of those that
//! are expected.

use std::{
    io::{IoSlice, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use vhost_device_tmem::{
    device::{Limits, Listening},
    socket::{OwnedSocket, Rights},
    store::{Compression, Faults, HugePages, Store},
};

/// The bytes of guest memory that the front-end shares.
const MEMORY: i64 = 64 << 10;

/// Descriptors with one message at most.
const DESCRIPTORS: usize = 8;

/// A device that waits on a socket, for one front-end after the other.
struct Device {
    path: PathBuf,
    _listening: Listening,
    _place: tempfile::TempDir,
}

fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("guest.sock");
        let socket = OwnedSocket::bind(&path, Rights::default(), "fuzz").expect("a socket");
        let store = Store::new(
            1 << 20,
            Compression::None,
            Faults::default(),
            HugePages::Off,
        );
        let store = Arc::new(store.expect("memory"));
        let limits = Limits::new(1);
        let listening = Listening::start("fuzz", socket, &store, limits, Duration::ZERO);
        Device {
            path,
            _listening: listening.expect("a thread"),
            _place: place,
        }
    })
}

/// Makes a descriptor of a kind.
fn descriptor(kind: u8) -> Option<OwnedFd> {
    // SAFETY: Plain system calls, with names that are strings; each returns a new descriptor.
    unsafe {
        let fd = match kind % 4 {
            0 | 1 => libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC),
            2 => {
                let fd = libc::memfd_create(c"fuzz".as_ptr(), libc::MFD_CLOEXEC);
                libc::ftruncate(fd, MEMORY);
                fd
            }
            _ => libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC),
        };
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

/// Takes messages off the input: what they ask for, what comes with it.
fn message(data: &mut &[u8]) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    // The request, its flags, how many descriptors, their kinds, how long it says that it is.
    let (head, rest) = data.split_first_chunk::<5>()?;
    let [request, flags, count, kinds, len] = *head;
    let payload = rest.len().min(len.into());
    let (payload, rest) = rest.split_at(payload);
    *data = rest;
    let mut bytes = Vec::new();
    bytes.extend(u32::from(request).to_ne_bytes());
    // The version is right most often, or nothing else would be looked at.
    bytes.extend(u32::from(flags ^ 1).to_ne_bytes());
    bytes.extend(u32::from(len).to_ne_bytes());
    bytes.extend(payload);
    let count = usize::from(count) % (DESCRIPTORS + 1);
    let fds = (0..count).filter_map(|n| descriptor(kinds.rotate_left(2 * n as u32)));
    Some((bytes, fds.collect()))
}

/// Sends messages to a device, and goes away. The device must survive that, and take the next
/// front-end.
pub fn vhost_user(mut data: &[u8]) {
    let mut stream = UnixStream::connect(&device().path).expect("the device is there");
    // What it answers is of no interest, but must not fill the socket.
    let mut reading = stream.try_clone().expect("a descriptor");
    let reading =
        std::thread::spawn(move || while reading.read(&mut [0; 4096]).unwrap_or(0) > 0 {});
    while let Some((bytes, fds)) = message(&mut data) {
        let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let with = [ControlMessage::ScmRights(&fds)];
        let with: &[_] = if fds.is_empty() { &[] } else { &with };
        let bytes = [IoSlice::new(&bytes)];
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &bytes,
            with,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        if sent.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    // It ends when the device has let go.
    let _ = reading.join();
    let _ = stream.read(&mut [0]);
}
