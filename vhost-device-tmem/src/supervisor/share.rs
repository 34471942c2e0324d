// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Asking a front-end to map a window into the device's shared memory region.
//!
//! QEMU (11.1) crashes where it is asked while the device is not started, and a device may be
//! stopped at any time: its driver goes, the machine is paused or reset. So the request is sent in
//! two pieces. QEMU reads the first, a message's header, in its main loop, with the lock held that
//! whoever stops a device takes, and then waits there for the rest. Once it has read the header,
//! nothing it says of the device changes until it has the rest: and that is sent only if the device
//! is started. If it is not, the socket is closed, of which QEMU makes nothing but a line in its log.
//!
//! All this has a thread of its own: the one that answers the front-end must go on meanwhile, since
//! to stop a device takes its answers, and a mapping is told of by a new table of memory.

use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
use vhost::vhost_user::message::{BackendReq, VhostUserMMap, VhostUserMMapFlags};
use vm_memory::ByteValued;

use super::hub::Hub;
use crate::link::GuestId;

/// The memory region of the device that is the window.
const REGION: u8 = 0;

/// The flags of a message that wants an answer, and of an answer, with the version of the protocol.
const NEED_REPLY: u32 = 1 | (1 << 3);
const REPLY: u32 = 1 | (1 << 2);

/// The length of a message's header: request, flags, and length of what follows.
const HEADER: usize = 12;

/// How long a front-end may take to read, to answer, or to say that the window is mapped. The
/// driver's first request waits as long.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long messages that the front-end has sent may take to be carried out here. It stands still
/// meanwhile.
const CATCH_UP: Duration = Duration::from_millis(200);

/// The time between two looks at whether something was read.
const PAUSE: Duration = Duration::from_micros(200);

/// What to ask, and on which connection.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) guest: GuestId,
    /// The epoch of the connection.
    pub(super) epoch: u64,
    /// The socket for it.
    pub(super) channel: UnixStream,
    /// The window's file.
    pub(super) window: OwnedFd,
    /// Its size in bytes.
    pub(super) size: u64,
}

/// Why a window is not mapped.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("it was not read within {PATIENCE:?}")]
    NotRead,
    #[error("the device was stopped meanwhile")]
    Stopped,
    #[error("the front-end refuses")]
    Refused,
    #[error("the front-end did not say within {PATIENCE:?} that it is mapped")]
    NotMapped,
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Asks the front-end, by a thread that ends soon.
pub(super) fn start(hub: &Arc<Hub>, asking: Asking) {
    let (guest, epoch) = (asking.guest, asking.epoch);
    let of_thread = Arc::clone(hub);
    let name = "share a window".to_owned();
    let started = std::thread::Builder::new()
        .name(name)
        .spawn(move || run(&of_thread, &asking));
    if let Err(error) = started {
        tracing::error!("guest {:?} has no window: {error}", hub.name(guest));
        hub.give_up_sharing(guest, Some(epoch), false);
    }
}

/// Another process was asking when it ended, and nobody knows how far it was: ends that.
pub(super) fn abort(channel: &impl AsRawFd) {
    let how = nix::sys::socket::Shutdown::Both;
    // Where there is nobody at the other end, nobody waits.
    let _ = nix::sys::socket::shutdown(channel.as_raw_fd(), how);
}

fn run(hub: &Hub, asking: &Asking) {
    let (guest, epoch) = (asking.guest, asking.epoch);
    let name = hub.name(guest);
    let asked = ask(hub, asking).and_then(|()| {
        let shared = hub.wait_shared(guest, epoch, PATIENCE);
        shared.then_some(()).ok_or(AskError::NotMapped)
    });
    let Err(error) = asked else {
        return tracing::debug!("guest {name:?} has its window as a region of its device");
    };
    // What was begun is not gone on with.
    let closed = !matches!(error, AskError::Refused);
    if closed {
        let _ = asking.channel.shutdown(Shutdown::Both);
    }
    tracing::warn!(
        "guest {name:?} has no window until its {}: its front-end was asked to map it: {error}",
        if closed {
            "virtual machine is started anew"
        } else {
            "driver starts anew"
        }
    );
    hub.give_up_sharing(guest, Some(epoch), closed);
}

/// Has the front-end map the window, and returns when it says that it does.
fn ask(hub: &Hub, asking: &Asking) -> Result<(), AskError> {
    let mut channel = &asking.channel;
    channel.set_read_timeout(Some(PATIENCE))?;
    channel.set_write_timeout(Some(PATIENCE))?;
    let request = VhostUserMMap {
        shmid: REGION,
        padding: [0; 7],
        fd_offset: 0,
        shm_offset: 0,
        len: asking.size,
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    };
    let request = request.as_slice();
    let header = header(NEED_REPLY, request.len() as u32);
    let descriptors = [asking.window.as_raw_fd()];
    let sent = sendmsg::<()>(
        channel.as_raw_fd(),
        &[IoSlice::new(&header)],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    if sent.map_err(io::Error::from)? != HEADER {
        return Err(io::Error::from(io::ErrorKind::WriteZero).into());
    }
    let until = Instant::now() + PATIENCE;
    while unread(channel)? > 0 {
        if Instant::now() >= until {
            return Err(AskError::NotRead);
        }
        std::thread::sleep(PAUSE);
    }
    if !hub.wait_started(asking.guest, asking.epoch, CATCH_UP) {
        return Err(AskError::Stopped);
    }
    channel.write_all(request)?;
    let mut answer = [0; HEADER + size_of::<u64>()];
    channel.read_exact(&mut answer)?;
    let (head, value) = answer.split_at(HEADER);
    if *head != self::header(REPLY, size_of::<u64>() as u32) {
        return Err(io::Error::from(io::ErrorKind::InvalidData).into());
    }
    if value.iter().any(|byte| *byte != 0) {
        return Err(AskError::Refused);
    }
    Ok(())
}

fn header(flags: u32, size: u32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let words = [BackendReq::SHMEM_MAP as u32, flags, size];
    for (place, word) in header.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    header
}

/// Returns how much memory what was sent takes that the other end has not read.
fn unread(channel: &UnixStream) -> io::Result<libc::c_int> {
    let mut unread = 0;
    // SAFETY: The socket is open, and the call writes a number of this type.
    let asked = unsafe { libc::ioctl(channel.as_raw_fd(), libc::TIOCOUTQ, &raw mut unread) };
    if asked == 0 {
        Ok(unread)
    } else {
        Err(io::Error::last_os_error())
    }
}
