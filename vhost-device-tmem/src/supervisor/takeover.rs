// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What another supervisor has left behind for this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use super::{
    activated::{Activated, Purpose},
    changes::SharedNumbers,
    connection::Past,
    guest::{GuestState, Slot},
    hub::Connection,
    keep::{received, Keeper, Name, StateFile},
    share, GuestSetup,
};
use crate::{config::Edits, link::GuestId, socket::SocketError, window::WindowFiles};

/// A socket on which systemd has listened, or a supervisor before this one.
#[derive(Debug)]
pub struct Passed {
    /// The socket.
    pub listener: UnixListener,
    /// A socket unit has it, and goes on with it when the daemon ends.
    pub activated: bool,
}

/// What systemd kept of a supervisor before this one, or nothing, and the sockets that it listens on
/// for the daemon.
#[derive(Debug, Default)]
pub struct Inherited {
    things: BTreeMap<Name, OwnedFd>,
    activated: Activated,
    /// What systemd has without being given it.
    of_units: BTreeSet<Name>,
    roster: Vec<(String, GuestId)>,
    edits: Edits,
    pub(super) frozen: Vec<GuestId>,
    pub(super) shared: SharedNumbers,
    pub(super) connections: BTreeMap<GuestId, Connection>,
    pub(super) keeper: Keeper,
}

impl Inherited {
    /// Takes it. To be called once, when the process begins.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn take() -> io::Result<Self> {
        let (things, activated) = received()?;
        let mut this = Self {
            things,
            activated,
            keeper: Keeper::of_service(),
            ..Self::default()
        };
        if let Some(file) = this.things.remove(&Name::Roster) {
            match StateFile::open(file) {
                Ok((file, roster)) => {
                    this.roster = roster;
                    this.keeper.has_value(Name::Roster, file);
                }
                Err(error) => {
                    tracing::error!("nothing of the daemon before can be gone on with: {error}");
                    this.things.clear();
                }
            }
        }
        if let Some(file) = this.things.remove(&Name::Edits) {
            match StateFile::open(file) {
                Ok((file, edits)) => {
                    this.edits = edits;
                    this.keeper.has_value(Name::Edits, file);
                }
                Err(error) => tracing::error!("what tmemctl changed of guests is lost: {error}"),
            }
        }
        if let Some(file) = this.things.remove(&Name::Frozen) {
            match StateFile::open(file) {
                Ok((file, frozen)) => {
                    this.frozen = frozen;
                    this.keeper.has_value(Name::Frozen, file);
                }
                Err(error) => tracing::error!("which guests were frozen is lost: {error}"),
            }
        }
        if let Some(file) = this.things.remove(&Name::Shared) {
            match StateFile::open(file) {
                Ok((file, shared)) => {
                    this.shared = shared;
                    this.keeper.has_value(Name::Shared, file);
                }
                Err(error) => tracing::error!("what is in shared pools is lost: {error}"),
            }
        }
        let guests = this.things.keys().filter_map(|name| match name {
            Name::State(guest) => Some(*guest),
            _ => None,
        });
        for guest in guests.collect::<Vec<_>>() {
            match this.connection(guest) {
                Ok(connection) => {
                    this.connections.insert(guest, connection);
                }
                Err(error) => {
                    tracing::warn!(
                        "the connection of guest {guest} cannot be gone on with: {error}"
                    );
                }
            }
        }
        Ok(this)
    }

    fn connection(&mut self, guest: GuestId) -> io::Result<Connection> {
        let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, what.to_owned());
        let file = self
            .things
            .remove(&Name::State(guest))
            .ok_or_else(|| missing("no state"))?;
        let (file, mut state) = StateFile::open::<GuestState>(file)?;
        let socket = self.things.remove(&Name::Connection(guest));
        let socket = socket.ok_or_else(|| missing("its front-end has gone meanwhile"))?;
        let handed = |name: &Name| matches!(name, Name::Handed(of, _) if *of == guest);
        let names: Vec<_> = self.things.keys().copied().filter(handed).collect();
        let mut files = BTreeMap::new();
        for name in names {
            if let (Name::Handed(_, slot), Some(file)) = (name, self.things.remove(&name)) {
                self.keeper.has(name, &file);
                files.insert(slot, file.into());
            }
        }
        if state.is_sharing() {
            let channel = files.remove(&Slot::Channel);
            channel.iter().for_each(share::abort);
            // It is among what is told to the next worker.
            state.give_up_sharing(true);
        }
        self.keeper.has(Name::Connection(guest), &socket);
        self.keeper.has_value(Name::State(guest), file);
        let lost = state
            .slots()
            .into_iter()
            .find(|slot| !files.contains_key(slot));
        if let Some(lost) = lost {
            let why = format!(
                "systemd has not kept {lost:?}; raise FileDescriptorStoreMax= of the service"
            );
            tracing::error!("guest {:?} is not served: {why}", state.name());
            state.failed(why);
        }
        Ok(Connection {
            state,
            files,
            socket: socket.into(),
        })
    }

    /// Returns whether there is something to go on with.
    pub fn is_something(&self) -> bool {
        !self.roster.is_empty()
    }

    /// Returns what operators changed of guests.
    pub fn edits(&self) -> Edits {
        self.edits.clone()
    }

    /// Gives guests of these names their numbers: those that they had, or ones that no guest had.
    /// What there is of other guests goes.
    pub fn number(&mut self, names: &[&str]) -> Vec<GuestId> {
        let numbers = number(names, &self.roster);
        self.connections.retain(|guest, _| numbers.contains(guest));
        let gone = |name: &Name| name.guest().is_some_and(|guest| !numbers.contains(&guest));
        for (name, file) in self.things.iter().filter(|(name, _)| gone(name)) {
            self.keeper.has(*name, file);
        }
        self.keeper.keep_only(&numbers);
        let numbered = names
            .iter()
            .map(|name| (*name).to_owned())
            .zip(numbers.clone());
        self.roster = numbered.collect();
        numbers
    }

    /// Returns the socket at `path` of a guest, if there is one already.
    ///
    /// # Errors
    ///
    /// [`SocketError::Activated`].
    pub fn listener(
        &mut self,
        guest: GuestId,
        name: &str,
        path: &Path,
    ) -> Result<Option<Passed>, SocketError> {
        let purpose = Purpose::Guest(name.to_owned());
        self.passed(Name::Listener(guest), &purpose, path)
    }

    /// Returns the operator's socket at `path`, if there is one already.
    ///
    /// # Errors
    ///
    /// [`SocketError::Activated`].
    pub fn control(&mut self, path: &Path) -> Result<Option<Passed>, SocketError> {
        self.passed(Name::Control, &Purpose::Control, path)
    }

    fn passed(
        &mut self,
        name: Name,
        purpose: &Purpose,
        path: &Path,
    ) -> Result<Option<Passed>, SocketError> {
        let activated = self.activated.claim(purpose, path)?;
        let kept = self.things.remove(&name).map(UnixListener::from);
        if let Some(kept) = &kept {
            self.keeper.has(name, kept);
        }
        let kept = kept.filter(|kept| activated.is_none() && listening_on(kept, path));
        if kept.is_none() {
            // Of the time before there was a unit, or of another path.
            self.keeper.take_back(name);
        }
        if activated.is_some() {
            self.of_units.insert(name);
        }
        let passed = kept.map(|listener| (listener, false));
        let passed = activated.map(|listener| (listener, true)).or(passed);
        Ok(passed.map(|(listener, activated)| Passed {
            listener,
            activated,
        }))
    }

    /// Lets go of sockets that are for nobody.
    pub fn drop_other_sockets(&mut self) {
        self.activated.drop_others();
    }

    /// Returns the store's memory.
    pub fn memory(&mut self) -> Vec<OwnedFd> {
        let mut memory = Vec::new();
        while let Some(file) = self.things.remove(&Name::Store(memory.len() as u32)) {
            self.keeper.has(Name::Store(memory.len() as u32), &file);
            memory.push(file);
        }
        memory
    }

    /// Returns a guest's window, if there is one.
    pub fn window(&mut self, guest: GuestId) -> Option<WindowFiles> {
        let (file, book) = (Name::Window(guest), Name::WindowBook(guest));
        let files = (self.things.remove(&file), self.things.remove(&book));
        let (Some(window), Some(kept)) = files else {
            return None;
        };
        self.keeper.has(file, &window);
        self.keeper.has(book, &kept);
        match WindowFiles::adopt(window, kept) {
            Ok(window) => Some(window),
            Err(error) => {
                tracing::error!("the window of guest {guest} cannot be gone on with: {error}");
                None
            }
        }
    }

    /// Gives the guests' windows to systemd.
    pub(super) fn keep_windows(&mut self, guests: &[GuestSetup]) {
        for guest in guests {
            if let Some(window) = &guest.window {
                let [file, book] = window.descriptors();
                self.keeper.give(Name::Window(guest.number), file);
                self.keeper.give(Name::WindowBook(guest.number), book);
            }
        }
    }

    /// Gives everything that guests do not change to systemd.
    pub(super) fn keep(
        &mut self,
        listeners: &[(GuestId, UnixListener)],
        control: Option<&UnixListener>,
        memory: &[OwnedFd],
    ) {
        for (n, file) in memory.iter().enumerate() {
            self.keeper.give(Name::Store(n as u32), file.as_fd());
        }
        let guests = listeners.iter();
        let guests = guests.map(|(guest, socket)| (Name::Listener(*guest), socket));
        let control = control.map(|socket| (Name::Control, socket));
        for (name, socket) in guests.chain(control) {
            if !self.of_units.contains(&name) {
                self.keeper.give(name, socket.as_fd());
            }
        }
    }
}

/// Returns the socket of a connection, and what was said on it, for a thread to go on with.
pub(super) fn resume(connection: &Connection) -> io::Result<(UnixStream, Past)> {
    let socket = connection.socket.as_fd().try_clone_to_owned()?;
    let (features, protocol) = connection.state.features();
    Ok((socket.into(), Past { features, protocol }))
}

fn listening_on(listener: &UnixListener, path: &Path) -> bool {
    let address = listener.local_addr().ok();
    address.is_some_and(|address| address.as_pathname() == Some(path)) && path.exists()
}

fn number(names: &[&str], before: &[(String, GuestId)]) -> Vec<GuestId> {
    let had = |name: &str| {
        before
            .iter()
            .find(|(of, _)| of == name)
            .map(|(_, guest)| *guest)
    };
    // Whatever is left of one that is gone is not to be taken for another one's.
    let taken: BTreeSet<_> = before.iter().map(|(_, guest)| *guest).collect();
    let mut free = (0..).map(GuestId).filter(|guest| !taken.contains(guest));
    let numbers = names.iter().map(|name| had(name).or_else(|| free.next()));
    numbers.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_keep_their_numbers() {
        let before = [("a", 0), ("b", 1), ("c", 2)];
        let before = before.map(|(name, guest)| (name.to_owned(), GuestId(guest)));
        let numbers = |names: &[&str]| {
            let numbers = number(names, &before).into_iter();
            numbers.map(|guest| guest.0).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&["a", "b", "c"]), [0, 1, 2]);
        assert_eq!(numbers(&["c", "d", "a", "e"]), [2, 3, 0, 4]);
        assert_eq!(number(&["x", "y"], &[]), [GuestId(0), GuestId(1)]);
    }
}
