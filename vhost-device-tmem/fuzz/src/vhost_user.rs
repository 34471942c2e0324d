// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A front-end that sends whatever comes to its mind, with descriptors that are none of those that
//! are expected.

use std::{
    io::{IoSlice, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::OnceLock,
};

use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use vhost_device_tmem::supervisor::fuzzing::FuzzedSupervisor;

/// The bytes of guest memory that the front-end shares.
const MEMORY: i64 = 64 << 10;

/// Descriptors with one message at most.
const DESCRIPTORS: usize = 8;

fn supervisor() -> &'static FuzzedSupervisor {
    static SUPERVISOR: OnceLock<FuzzedSupervisor> = OnceLock::new();
    SUPERVISOR.get_or_init(|| FuzzedSupervisor::start().expect("descriptors and threads"))
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

/// Sends messages to a supervisor, and goes away. The supervisor must survive that, and take the
/// next front-end.
pub fn vhost_user(mut data: &[u8]) {
    let (stream, theirs) = UnixStream::pair().expect("descriptors");
    let serving = std::thread::spawn(|| supervisor().serve(theirs));
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
    serving
        .join()
        .expect("the supervisor survives")
        .expect("descriptors");
    let _ = stream.shutdown(std::net::Shutdown::Both);
    let _ = reading.join();
}
