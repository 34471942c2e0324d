// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Giving everything that must live to systemd, in whose hands it outlives the supervisor.
//!
//! systemd keeps descriptors under names (`FDSTORE=1`), and hands them to the next start of the
//! service. What is known of a connection is in a file of its own among them.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
};

use nix::sys::memfd::{memfd_create, MFdFlags};
use sd_notify::NotifyState;
use serde::{de::DeserializeOwned, Serialize};

use super::{activated::Activated, guest::Slot, hub::Connection};
use crate::link::GuestId;

/// What a descriptor is that systemd keeps. As text, it is the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    /// The file with the guests' numbers.
    Roster,
    /// The file with what operators changed.
    Edits,
    /// The file with the guests of whom nothing more is taken.
    Frozen,
    /// The file with the numbers of shared pools.
    Shared,
    /// Memory of the store, of this number.
    Store(u32),
    /// The operator's socket.
    Control,
    /// The socket on which a guest's front-end connects.
    Listener(GuestId),
    /// The connection of a guest's front-end.
    Connection(GuestId),
    /// The file with what is known of it.
    State(GuestId),
    /// The file of a guest's window.
    Window(GuestId),
    /// The file in which book is kept of it.
    WindowBook(GuestId),
    /// Something that the front-end handed over.
    Handed(GuestId, Slot),
}

impl Name {
    fn to_text(self) -> String {
        match self {
            Self::Roster => "roster".to_owned(),
            Self::Edits => "edits".to_owned(),
            Self::Frozen => "frozen".to_owned(),
            Self::Shared => "shared".to_owned(),
            Self::Store(n) => format!("store.{n}"),
            Self::Control => "control".to_owned(),
            Self::Listener(guest) => format!("listener.{guest}"),
            Self::Connection(guest) => format!("connection.{guest}"),
            Self::State(guest) => format!("state.{guest}"),
            Self::Window(guest) => format!("window.{guest}"),
            Self::WindowBook(guest) => format!("window-book.{guest}"),
            Self::Handed(guest, Slot::Memory(n)) => format!("memory.{guest}.{n}"),
            Self::Handed(guest, Slot::Kick(n)) => format!("kick.{guest}.{n}"),
            Self::Handed(guest, Slot::Call(n)) => format!("call.{guest}.{n}"),
            Self::Handed(guest, Slot::Channel) => format!("channel.{guest}"),
        }
    }

    /// Returns the guest whose it is.
    pub(super) fn guest(self) -> Option<GuestId> {
        match self {
            Self::Roster
            | Self::Edits
            | Self::Frozen
            | Self::Shared
            | Self::Store(_)
            | Self::Control => None,
            Self::Listener(guest)
            | Self::Connection(guest)
            | Self::State(guest)
            | Self::Window(guest)
            | Self::WindowBook(guest)
            | Self::Handed(guest, _) => Some(guest),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let kind = parts.next()?;
        let numbers: Vec<u32> = parts.map(|part| part.parse().ok()).collect::<Option<_>>()?;
        let slot = |n: u32| u16::try_from(n).ok();
        Some(match (kind, &numbers[..]) {
            ("roster", []) => Self::Roster,
            ("edits", []) => Self::Edits,
            ("frozen", []) => Self::Frozen,
            ("shared", []) => Self::Shared,
            ("store", [n]) => Self::Store(*n),
            ("control", []) => Self::Control,
            ("listener", [guest]) => Self::Listener(GuestId(*guest)),
            ("connection", [guest]) => Self::Connection(GuestId(*guest)),
            ("state", [guest]) => Self::State(GuestId(*guest)),
            ("window", [guest]) => Self::Window(GuestId(*guest)),
            ("window-book", [guest]) => Self::WindowBook(GuestId(*guest)),
            ("channel", [guest]) => Self::Handed(GuestId(*guest), Slot::Channel),
            ("memory", [guest, n]) => Self::Handed(GuestId(*guest), Slot::Memory(slot(*n)?)),
            ("kick", [guest, n]) => Self::Handed(GuestId(*guest), Slot::Kick(slot(*n)?)),
            ("call", [guest, n]) => Self::Handed(GuestId(*guest), Slot::Call(slot(*n)?)),
            _ => return None,
        })
    }
}

/// Gives things to systemd, if it keeps any.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    /// Whether it keeps any.
    keeps: bool,
    /// What it has, and which of our descriptors that was.
    kept: BTreeMap<Name, RawFd>,
    /// Files with values that change.
    values: BTreeMap<Name, StateFile>,
    /// The log was told of a failure.
    failed: bool,
}

impl Keeper {
    /// Uses what the service manager that started this process offers.
    pub(super) fn of_service() -> Self {
        let store = std::env::var("FDSTORE")
            .ok()
            .and_then(|most| most.parse::<u32>().ok());
        let keeps =
            std::env::var_os("NOTIFY_SOCKET").is_some() && store.is_some_and(|most| most > 0);
        Self {
            keeps,
            ..Self::default()
        }
    }

    /// Returns whether what is kept outlives the process.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// Takes note that systemd has something already.
    pub(super) fn has(&mut self, name: Name, file: &impl AsRawFd) {
        self.kept.insert(name, file.as_raw_fd());
    }

    /// Takes over a file with a value that changes.
    pub(super) fn has_value(&mut self, name: Name, file: StateFile) {
        self.has(name, &file.file);
        self.values.insert(name, file);
    }

    /// Gives a descriptor to systemd, in place of what it had under this name.
    pub(super) fn give(&mut self, name: Name, file: BorrowedFd<'_>) {
        if !self.keeps || self.kept.get(&name) == Some(&file.as_raw_fd()) {
            return;
        }
        self.take_back(name);
        let text = name.to_text();
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(&text),
            NotifyState::Custom("FDPOLL=0"),
        ];
        self.check(sd_notify::notify_with_fds(&state, &[file]));
        self.kept.insert(name, file.as_raw_fd());
    }

    /// Tells systemd that something is not needed any more.
    pub(super) fn take_back(&mut self, name: Name) {
        if self.kept.remove(&name).is_some() {
            let text = name.to_text();
            let state = [NotifyState::FdStoreRemove, NotifyState::FdName(&text)];
            self.check(sd_notify::notify(&state));
        }
    }

    /// Tells systemd that nothing is needed of other guests than these.
    pub(super) fn keep_only(&mut self, guests: &[GuestId]) {
        let gone = |name: &Name| name.guest().is_some_and(|guest| !guests.contains(&guest));
        let names: Vec<_> = self.kept.keys().copied().filter(gone).collect();
        for name in names {
            self.take_back(name);
            self.values.remove(&name);
        }
    }

    /// Sees to it that another process could go on with a guest's connection as it is now, or that
    /// nothing of it is left if there is none.
    pub(super) fn keep(&mut self, guest: GuestId, connection: Option<&Connection>) {
        if !self.keeps {
            return;
        }
        let Some(connection) = connection else {
            for name in self.names(guest) {
                self.take_back(name);
            }
            self.values.remove(&Name::State(guest));
            return;
        };
        let wanted = |name: &Name| match name {
            Name::Handed(_, slot) => connection.files.contains_key(slot),
            _ => true,
        };
        // Descriptors come before the state that names them, and go after it.
        for (slot, file) in &connection.files {
            self.give(Name::Handed(guest, *slot), file.as_fd());
        }
        self.give(Name::Connection(guest), connection.socket.as_fd());
        self.keep_value(Name::State(guest), &connection.state.resumable());
        for name in self.names(guest).into_iter().filter(|name| !wanted(name)) {
            self.take_back(name);
        }
    }

    /// Sees to it that another process finds a value under a name.
    pub(super) fn keep_value(&mut self, name: Name, value: &impl Serialize) {
        if self.keeps {
            let written = self.write(name, value);
            self.check(written);
        }
    }

    fn names(&self, guest: GuestId) -> Vec<Name> {
        let of = |name: &&Name| match name {
            Name::Connection(of) | Name::State(of) | Name::Handed(of, _) => *of == guest,
            // These do not go with the connection.
            Name::Roster
            | Name::Edits
            | Name::Frozen
            | Name::Shared
            | Name::Store(_)
            | Name::Control
            | Name::Listener(_)
            | Name::Window(_)
            | Name::WindowBook(_) => false,
        };
        self.kept.keys().filter(of).copied().collect()
    }

    fn write(&mut self, name: Name, value: &impl Serialize) -> io::Result<()> {
        if let Some(file) = self.values.get_mut(&name) {
            return file.write(value);
        }
        let mut file = StateFile::new()?;
        file.write(value)?;
        let copy = file.file.try_clone()?;
        self.give(name, copy.as_fd());
        self.values.insert(name, file);
        Ok(())
    }

    fn check(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            if !std::mem::replace(&mut self.failed, true) {
                tracing::error!("systemd does not keep what a restart needs: {error}");
            }
        }
    }
}

/// Takes what systemd kept for this start of the service, and the sockets that it listens on for it.
///
/// # Errors
///
/// The operating system's.
pub(super) fn received() -> io::Result<(BTreeMap<Name, OwnedFd>, Activated)> {
    let (mut kept, mut activated) = (BTreeMap::new(), Activated::default());
    for (fd, name) in sd_notify::listen_fds_with_names()? {
        use std::os::fd::FromRawFd;
        // SAFETY: systemd opened the descriptor for this process, and nobody else takes it: this is
        // called once, when the process begins.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        match Name::parse(&name) {
            Some(name) => {
                kept.insert(name, fd);
            }
            None => activated.add(&name, fd),
        }
    }
    Ok((kept, activated))
}

/// A file with one value, which is whole at any time: who writes it may be killed.
///
/// # Invariants
///
/// Of its two halves, the one with the higher sequence number is whole. The other one is written
/// next: first the value, and then the header, in one piece.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    sequence: u64,
}

/// The length of a half.
const HALF: u64 = 64 << 10;

/// The length of its header: sequence number, and length of the value.
const HEADER: usize = 16;

impl StateFile {
    /// Makes one without a value.
    fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"tmem state", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(2 * HALF)?;
        Ok(Self { file, sequence: 0 })
    }

    fn write(&mut self, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value)?;
        if bytes.len() as u64 > HALF - HEADER as u64 {
            return Err(io::Error::other("what is to be kept is too long"));
        }
        let next = self.sequence + 1;
        let at = next % 2 * HALF;
        self.file.write_all_at(&bytes, at + HEADER as u64)?;
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&next.to_le_bytes());
        header[8..].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.file.write_all_at(&header, at)?;
        self.sequence = next;
        Ok(())
    }

    /// Takes a file that another process wrote, and returns its value.
    ///
    /// # Errors
    ///
    /// The operating system's; and if there is no such value.
    pub(super) fn open<T: DeserializeOwned>(file: OwnedFd) -> io::Result<(Self, T)> {
        let file = File::from(file);
        let mut last = (0, 0, 0);
        for at in [0, HALF] {
            let mut header = [0; HEADER];
            file.read_exact_at(&mut header, at)?;
            let number = |bytes: &[u8]| {
                bytes
                    .iter()
                    .rev()
                    .fold(0, |n, byte| (n << 8) | u64::from(*byte))
            };
            last = last.max((number(&header[..8]), at, number(&header[8..])));
        }
        let (sequence, at, len) = last;
        if sequence == 0 || len > HALF - HEADER as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "there is no state in it",
            ));
        }
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at + HEADER as u64)?;
        Ok((Self { file, sequence }, serde_json::from_slice(&bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_read_again() {
        let guest = GuestId(12);
        let names = [
            Name::Store(3),
            Name::Roster,
            Name::Edits,
            Name::Frozen,
            Name::Shared,
            Name::Control,
            Name::Listener(guest),
            Name::Connection(guest),
            Name::State(guest),
            Name::Window(guest),
            Name::WindowBook(guest),
            Name::Handed(guest, Slot::Memory(0)),
            Name::Handed(guest, Slot::Kick(63)),
            Name::Handed(guest, Slot::Call(1)),
            Name::Handed(guest, Slot::Channel),
        ];
        for name in names {
            assert_eq!(Name::parse(&name.to_text()), Some(name));
        }
        for other in [
            "",
            "stored",
            "unknown",
            "socket-control",
            "socket-guest-1",
            "store",
            "store.x",
            "control.1",
            "kick.1",
            "kick.1.65536",
        ] {
            assert_eq!(Name::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_value_is_whole_whenever_its_writer_is_killed() {
        let read = |file: &StateFile| {
            let copy = file.file.try_clone().unwrap();
            StateFile::open::<String>(copy.into()).map(|(_, value)| value)
        };
        let mut file = StateFile::new().unwrap();
        read(&file).unwrap_err();
        for value in ["first", "second", "third and longer"] {
            file.write(&value).unwrap();
            assert_eq!(read(&file).unwrap(), value);
            // The next one has begun to be written.
            let at = (file.sequence + 1) % 2 * HALF;
            file.file
                .write_all_at(b"garbage", at + HEADER as u64)
                .unwrap();
            assert_eq!(read(&file).unwrap(), value);
        }
        file.write(&"x".repeat(HALF as usize)).unwrap_err();
        assert_eq!(read(&file).unwrap(), "third and longer");
    }
}
