// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Changing the configuration while guests are served.
//!
//! What is to be done is [planned](crate::config::plan). What can fail of it is done first, and undone
//! if something fails; the rest cannot fail. So all of it happens, or nothing.

mod operations;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::Arc,
};

pub(super) use shared::SharedNumbers;

use super::{acceptor::Acceptor, hub::Hub};
use crate::{
    args::{Args, Config, GuestConfig},
    config::{
        plan, Circumstances, GuestEdit, GuestFile, Key, Place, Problem, Problems, Sources, Step,
    },
    limits::{check_descriptors, Memory},
    link::GuestId,
    policy::Terms,
    socket::{OwnedSocket, Rights},
    window::{self, OwnedPath, WindowFiles},
};

/// What a guest has in the file system.
#[derive(Debug)]
pub struct Premises {
    /// Its socket.
    pub socket: OwnedSocket,
    /// The path of its window, if that is there.
    pub window: Option<OwnedPath>,
}

/// The configuration of a daemon that runs.
#[derive(Debug)]
pub struct Settings {
    /// All that was said.
    pub sources: Sources,
    /// What came of it.
    pub config: Config,
    /// The memory that the daemon can have.
    pub memory: Memory,
    /// Who may connect to guests' sockets.
    pub rights: Rights,
    /// The number of the group whose members may operate the daemon.
    pub operators: Option<u32>,
    /// How many descriptors there may be.
    pub descriptors: u64,
}

/// A guest that is served.
///
/// # Invariants
///
/// It has a socket, but for a moment while it gets another one.
#[derive(Debug)]
struct Member {
    guest: GuestId,
    name: String,
    socket: Option<OwnedSocket>,
    window: Option<OwnedPath>,
}

impl Member {
    fn is_on(&self, path: &Path) -> bool {
        self.socket
            .as_ref()
            .is_some_and(|socket| socket.path() == path)
    }
}

/// A socket that is listened on, and for which there may be a guest.
type Listening = (OwnedSocket, Arc<UnixListener>);

/// What was made for a step that is still to be taken.
#[derive(Debug, Default)]
struct Made {
    socket: Option<Listening>,
    window: Option<(WindowFiles, OwnedPath)>,
}

/// Changes what is served. It is called by the supervisor's own thread alone.
#[derive(Debug)]
pub(super) struct Changes {
    settings: Settings,
    /// The circumstances that do not change: where sockets may be.
    start: Circumstances,
    guests: Vec<Member>,
    shared: SharedNumbers,
    hub: Arc<Hub>,
    acceptor: Arc<Acceptor>,
}

impl Changes {
    pub(super) fn new(
        settings: Settings,
        guests: Vec<(GuestId, String, Premises)>,
        shared: SharedNumbers,
        hub: Arc<Hub>,
        acceptor: Arc<Acceptor>,
    ) -> Self {
        let start = Circumstances {
            dirs: settings.config.directories(),
            ..Circumstances::default()
        };
        let guests = guests.into_iter().map(|(guest, name, premises)| Member {
            guest,
            name,
            socket: Some(premises.socket),
            window: premises.window,
        });
        let mut this = Self {
            settings,
            start,
            guests: guests.collect(),
            shared,
            hub,
            acceptor,
        };
        this.number_shared();
        this.keep();
        this
    }

    /// Returns what is in force.
    pub(super) fn config(&self) -> &Config {
        &self.settings.config
    }

    /// Returns what workers are told of it.
    pub(super) fn options(&self) -> Args {
        Args {
            // A worker cannot look up names: it has no files.
            control_group: self.settings.operators.map(|group| group.to_string()),
            ..self.settings.sources.options()
        }
    }

    /// Returns the guests.
    pub(super) fn guests(&self) -> Vec<(GuestId, String)> {
        let guests = self.guests.iter();
        guests.map(|it| (it.guest, it.name.clone())).collect()
    }

    /// Returns the terms of all guests, and of all shared pools.
    pub(super) fn terms(&self) -> Vec<Terms> {
        let config = self.config();
        let guests = self.guests.iter().filter_map(|it| {
            let guest = config.guests.iter().find(|guest| guest.name == it.name)?;
            Some(config.terms(guest, it.guest.0))
        });
        guests.chain(self.shared_terms()).collect()
    }

    /// Leaves everything to a process that comes after this one.
    pub(super) fn leave(self) {
        for Member { socket, window, .. } in self.guests {
            socket.into_iter().for_each(OwnedSocket::leave);
            window.into_iter().for_each(OwnedPath::leave);
        }
    }

    /// Sees to it that another process could go on with the guests that there are.
    fn keep(&self) {
        let roster = self.guests.iter().map(|it| (it.name.clone(), it.guest));
        let roster: Vec<_> = roster.collect();
        self.hub.keep_guests(&roster, &self.settings.sources.edits);
        self.hub.keep_shared(&self.shared);
    }

    /// Returns whether there is something to read again.
    pub(super) fn has_file(&self) -> bool {
        self.settings.sources.args.config.is_some() || self.config().guests_dir.is_some()
    }

    /// Does what guests' own files say now, of each that is not as it was. Where that cannot be, or
    /// the file is wrong, the guest stays as it is, and the log says why.
    pub(super) fn guests_changed(&mut self) {
        let Some(directory) = self.config().guests_dir.clone() else {
            return;
        };
        let before = self.settings.sources.guests.clone();
        let (now, wrong) = match Sources::read_guests(&directory, &before) {
            Ok(read) => read,
            Err(problems) => return tracing::error!("guests stay as they are: {problems}"),
        };
        for problems in wrong {
            tracing::error!("a guest stays as it is: {problems}");
        }
        let names: BTreeSet<_> = before.iter().chain(&now).map(|file| &file.name).collect();
        // Those that go first: they make room.
        let (stay, go): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| now.iter().any(|file| file.name == **name));
        for name in go.into_iter().chain(stay) {
            let find = |files: &[GuestFile]| files.iter().find(|file| file.name == *name).cloned();
            let (old, new) = (find(&before), find(&now));
            if old == new {
                continue;
            }
            let mut sources = self.settings.sources.clone();
            sources.guests.retain(|file| file.name != *name);
            sources.guests.extend(new);
            if let Err(problems) = self.change(sources, self.start.clone()) {
                tracing::error!("guest {name:?} stays as it is: {problems}");
            }
        }
    }

    /// Reads the configuration again, and does what it says now. Returns what that was.
    ///
    /// # Errors
    ///
    /// What is wrong; nothing has changed then.
    pub(super) fn reload(&mut self, force: bool) -> Result<String, String> {
        if !self.has_file() {
            let what = "there is nothing to read again: the daemon was started without --config";
            return Err(what.to_owned());
        }
        let read = Sources::read(&self.settings.sources);
        let (mut sources, wrong) = read.map_err(|problems| problems.to_string())?;
        for problems in wrong {
            tracing::error!("a guest stays as it is: {problems}");
        }
        let named = sources.clone();
        sources.edits.forget(|name| named.names(name));
        // It says more than what there is to be: whom it names there has to be, too.
        let checked = sources.config(&self.settings.memory);
        checked.map_err(|problems| problems.to_string())?;
        let circumstances = Circumstances {
            force,
            ..self.start.clone()
        };
        self.change(sources, circumstances)
    }

    /// Adds, removes or renames a guest, or gives it other terms. Returns what was done.
    ///
    /// # Errors
    ///
    /// What is wrong; nothing has changed then.
    pub(super) fn edit(&mut self, edit: &GuestEdit) -> Result<String, String> {
        let mut sources = self.settings.sources.clone();
        let Config { guests, shared, .. } = &self.settings.config;
        let edited = sources.edit(edit, guests);
        edited.map_err(|problems| problems.to_string())?;
        let mut circumstances = self.start.clone();
        match edit {
            GuestEdit::Add { .. } | GuestEdit::Set { .. } => {}
            GuestEdit::Remove { name, force } => {
                sources.rename_shared(name, None, shared);
                circumstances.force = *force;
            }
            GuestEdit::Rename { name, to } => {
                sources.rename_shared(name, Some(to), shared);
                circumstances.renamed = Some((name.clone(), to.clone()));
            }
        }
        self.change(sources, circumstances)
    }

    fn change(&mut self, sources: Sources, around: Circumstances) -> Result<String, String> {
        let told = |problems: Problems| problems.to_string();
        let known = sources.config_of_known(&self.settings.memory);
        let (config, missing) = known.map_err(told)?;
        for problem in missing {
            tracing::warn!("a guest shares nothing until it is there: {problem}");
        }
        let connected = self.hub.connected();
        let connected = self
            .guests
            .iter()
            .filter(|it| connected.contains(&it.guest));
        let around = Circumstances {
            connected: connected.map(|it| it.name.clone()).collect(),
            ..around
        };
        let steps = plan(&self.settings.config, &config, &around).map_err(|problems| {
            // Who is not there any more was said where it was.
            let there = |name: &str| config.guests.iter().any(|guest| guest.name == name);
            let place = |key: Key| match &key {
                Key::Guest(name, _) if !there(name) => self.settings.sources.place(&key),
                _ => sources.place(&key),
            };
            let problems = problems.into_iter().map(|(key, what)| Problem {
                place: place(key),
                what,
            });
            Problems(problems.collect()).to_string()
        })?;
        self.check_numbers(&config, &steps)?;
        let made = self.prepare(&steps).map_err(told)?;
        let done = self.commit(steps, made);
        self.settings.config = config;
        self.settings.sources = sources;
        self.number_shared();
        self.hub.set_shared(self.shared_pools());
        self.hub.set_terms(self.terms());
        self.keep();
        Ok(done)
    }

    fn check_numbers(&self, config: &Config, steps: &[Step]) -> Result<(), String> {
        let added = steps.iter().filter(|step| matches!(step, Step::Add(_)));
        if !self.hub.has_numbers(added.count()) {
            return Err("guests came and went too often; start the daemon anew".to_owned());
        }
        let (have, queues) = (self.settings.descriptors, config.limits.data_queues + 2);
        match check_descriptors(have, config.guests.len(), queues) {
            Err(few) if few.hopeless => Err(few.to_string()),
            Err(few) => {
                tracing::warn!("{few}; until then not all guests can be connected at a time");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Returns the guest that has a socket and gives it up by one of these steps.
    fn gives_up(&self, steps: &[Step], path: &Path) -> bool {
        let has = |name: &str| {
            let mut guests = self.guests.iter();
            guests.any(|it| it.name == name && it.is_on(path))
        };
        steps.iter().any(|step| match step {
            Step::Remove(name) => has(name),
            Step::Move(guest) => has(&guest.name) && guest.path != path,
            _ => false,
        })
    }

    /// Does what can fail of all steps.
    fn prepare(&mut self, steps: &[Step]) -> Result<Vec<Made>, Problems> {
        let mut all = Vec::new();
        for step in steps {
            let mut made = Made::default();
            match step {
                Step::Add(guest) => {
                    made.socket = self.listen(steps, guest)?;
                    made.window = self.make_window(guest)?;
                }
                Step::Move(guest) => made.socket = self.listen(steps, guest)?,
                // It comes alone.
                Step::Rename { from, to } => {
                    let window = self.member(from).and_then(|it| it.window.as_mut());
                    if let Some(window) = window {
                        window.rename(&to.name).map_err(|error| about(to, &error))?;
                    }
                }
                Step::Remove(_)
                | Step::Terms(_)
                | Step::Share(_)
                | Step::Unshare(_)
                | Step::Set(_) => {}
            }
            all.push(made);
        }
        Ok(all)
    }

    /// Listens on a guest's socket, unless another guest gives it up.
    fn listen(&self, steps: &[Step], guest: &GuestConfig) -> Result<Option<Listening>, Problems> {
        if self.gives_up(steps, &guest.path) {
            return Ok(None);
        }
        let bound = OwnedSocket::bind(&guest.path, self.settings.rights, &purpose(&guest.name));
        let (socket, listener) = bound.map_err(|error| about(guest, &error))?;
        let set = listener.set_nonblocking(true);
        set.map_err(|error| about(guest, &error))?;
        Ok(Some((socket, Arc::new(listener))))
    }

    fn make_window(
        &self,
        guest: &GuestConfig,
    ) -> Result<Option<(WindowFiles, OwnedPath)>, Problems> {
        let (Some(directory), Some(size)) = (&self.settings.config.window_dir, guest.window) else {
            return Ok(None);
        };
        let made = window::create(directory, &guest.name, size, self.settings.rights);
        made.map(Some).map_err(|error| about(guest, &error))
    }

    /// Does the rest of all steps, and returns in words what was done.
    fn commit(&mut self, steps: Vec<Step>, made: Vec<Made>) -> String {
        let mut given_up: BTreeMap<PathBuf, Listening> = BTreeMap::new();
        for step in &steps {
            let (Step::Remove(name) | Step::Move(GuestConfig { name, .. })) = step else {
                continue;
            };
            let Some(at) = self.guests.iter().position(|it| it.name == *name) else {
                continue;
            };
            let it = &mut self.guests[at];
            let guest = it.guest;
            let listening = it.socket.take().zip(self.acceptor.leave(guest));
            given_up.extend(listening.map(|it| (it.0.path().to_owned(), it)));
            if matches!(step, Step::Remove(_)) {
                self.guests.remove(at);
                self.hub.remove(guest);
            }
        }
        let mut said = Vec::new();
        for (step, made) in steps.into_iter().zip(made) {
            said.push(match step {
                Step::Remove(name) => format!("guest {name:?} removed"),
                Step::Add(guest) => {
                    // INVARIANT: It was made, or another guest gave it up.
                    let listening = made.socket.or_else(|| given_up.remove(&guest.path));
                    if let Some(listening) = listening {
                        self.add(&guest.name, listening, made.window);
                    }
                    format!("guest {:?} added on {}", guest.name, guest.path.display())
                }
                Step::Move(guest) => {
                    let listening = made.socket.or_else(|| given_up.remove(&guest.path));
                    if let Some(listening) = listening {
                        self.move_to(&guest.name, listening);
                    }
                    format!("guest {:?} moved to {}", guest.name, guest.path.display())
                }
                Step::Rename { from, to } => {
                    self.rename(&from, &to.name);
                    format!("guest {from:?} renamed to {:?}", to.name)
                }
                Step::Terms(name) => format!("guest {name:?} has other terms"),
                Step::Share(pool) => shared::said(&pool),
                Step::Unshare(uuid) => format!("pool {uuid} is not shared any more"),
                Step::Set(options) => format!("{} changed", options.join(", ")),
            });
        }
        let said = if said.is_empty() {
            "nothing has changed".to_owned()
        } else {
            said.join("; ")
        };
        tracing::info!("configuration: {said}");
        said
    }

    fn member(&mut self, name: &str) -> Option<&mut Member> {
        self.guests.iter_mut().find(|it| it.name == name)
    }

    fn add(
        &mut self,
        name: &str,
        (mut socket, listener): Listening,
        window: Option<(WindowFiles, OwnedPath)>,
    ) {
        let (files, window) = window.unzip();
        let guest = self.hub.add(name, files, &listener);
        self.acceptor.listen(guest, listener);
        socket.set_purpose(&purpose(name));
        self.guests.push(Member {
            guest,
            name: name.to_owned(),
            socket: Some(socket),
            window,
        });
    }

    fn move_to(&mut self, name: &str, (mut socket, listener): Listening) {
        socket.set_purpose(&purpose(name));
        let Some(it) = self.member(name) else {
            return;
        };
        it.socket = Some(socket);
        let guest = it.guest;
        self.hub.moved(guest, &listener);
        self.acceptor.listen(guest, listener);
    }

    fn rename(&mut self, from: &str, to: &str) {
        let Some(it) = self.member(from) else {
            return;
        };
        to.clone_into(&mut it.name);
        if let Some(socket) = &mut it.socket {
            socket.set_purpose(&purpose(to));
        }
        let guest = it.guest;
        self.hub.rename(guest, to);
    }
}

/// Returns what a guest's socket is for.
pub fn purpose(guest: &str) -> String {
    format!("guest {guest:?}")
}

fn about(guest: &GuestConfig, error: &dyn std::error::Error) -> Problems {
    let place = Place::Operator(guest.name.clone());
    let what = error.to_string();
    Problem { place, what }.into()
}
