// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Doing what the supervisor says.

use std::{
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{operated::Daemon, watched::Watched};
use crate::{
    control::ControlServer,
    device::{Engine, EngineError},
    link::{FromWorker, GuestId, Link, LinkError, Received, ToWorker},
    log,
    metrics::MetricsServer,
};

/// How long operators, and others who ask, may take to hear the last of this worker.
const PATIENCE: Duration = Duration::from_millis(200);

/// Guests at which the worker misbehaves, to test what the supervisor does then.
#[derive(Clone, Debug, Default)]
pub(super) struct ServeFaults {
    /// The worker dies when it starts a virtqueue of this one.
    pub(super) crash: Option<String>,
    /// The worker hangs when it starts a virtqueue of this one.
    pub(super) hang: Option<String>,
}

/// Those who serve somebody other than guests.
pub(super) struct Servers {
    pub(super) control: Option<ControlServer>,
    pub(super) metrics: Option<MetricsServer>,
}

impl Servers {
    fn end(self, until: Instant) {
        let control = self.control.map(|server| server.end(until));
        let metrics = self.metrics.map(|server| server.end(until));
        for ended in control.into_iter().chain(metrics) {
            if let Err(late) = ended {
                tracing::warn!("{late}");
            }
        }
    }
}

/// A worker that has begun.
pub(super) struct Worker {
    pub(super) link: Arc<Link>,
    pub(super) watched: Arc<Watched>,
    pub(super) engine: Arc<Engine>,
    pub(super) daemon: Arc<Daemon>,
    pub(super) faults: ServeFaults,
}

impl Worker {
    /// Does what the supervisor says until that says to stop.
    ///
    /// # Errors
    ///
    /// [`LinkError`], also where the supervisor is gone.
    pub(super) fn run(&self, servers: Servers) -> Result<(), LinkError> {
        loop {
            let Received {
                message,
                descriptors,
            } = self.link.receive()?;
            match message {
                ToWorker::Ping { token } => {
                    let persistent = self.daemon.persistent();
                    self.link
                        .send(&FromWorker::Pong { token, persistent }, &[])?;
                }
                ToWorker::Summarise => self.daemon.summarise(),
                ToWorker::SetTerms { terms } => self.daemon.set_terms(terms),
                ToWorker::SetShared { pools } => {
                    self.daemon.set_shared(pools);
                    self.watched.tidy();
                }
                ToWorker::SetLogLevel { level } => match level.parse() {
                    Ok(level) => log::set_level(level),
                    Err(_) => tracing::error!("the supervisor names no level: {level:?}"),
                },
                ToWorker::Stop => break,
                message => self.about_guest(message, descriptors)?,
            }
        }
        self.engine.stop();
        servers.end(Instant::now() + PATIENCE);
        self.link.send(&FromWorker::Stopped, &[])
    }

    fn about_guest(&self, message: ToWorker, descriptors: Vec<OwnedFd>) -> Result<(), LinkError> {
        let Some(guest) = guest_of(&message) else {
            tracing::error!("the supervisor says what it should not: {message:?}");
            return Ok(());
        };
        let done = self
            .watched
            .serving(guest, || self.obey(message, descriptors));
        match done {
            Ok(None) => Ok(()),
            Ok(Some(answer)) => self.link.send(&answer, &[]),
            Err(error) => {
                let why = error.to_string();
                let name = self.daemon.name(guest);
                tracing::error!("guest {name:?} cannot be served: {why}");
                self.link.send(&FromWorker::GuestFailed { guest, why }, &[])
            }
        }
    }

    /// Does something for a guest. Returns what is to be answered.
    fn obey(
        &self,
        message: ToWorker,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<FromWorker>, EngineError> {
        let engine = &self.engine;
        let mut descriptors = descriptors.into_iter();
        let mut take = |some: bool| some.then(|| descriptors.next()).flatten();
        match message {
            ToWorker::SetWindow { guest, epoch } => {
                self.set_window(guest, epoch, descriptors);
            }
            ToWorker::NameGuest { guest, name } => self.daemon.name_guest(engine, guest, &name),
            ToWorker::FreezeGuest { guest, frozen } => self.daemon.freeze(guest, frozen),
            ToWorker::ForgetGuest { guest } => {
                let dropped = engine.forget_guest(guest);
                self.daemon.forget(guest);
                return Ok(Some(FromWorker::Forgotten { guest, dropped }));
            }
            ToWorker::AddGuest {
                guest,
                name,
                epoch,
                renewed,
                features,
            } => {
                engine.add_guest(guest, &name, epoch, features)?;
                self.daemon.share();
                if renewed {
                    engine.tell_epoch(guest)?;
                }
            }
            ToWorker::RemoveGuest { guest } => {
                let dropped = engine.remove_guest(guest);
                self.daemon.share();
                return Ok(Some(FromWorker::Removed { guest, dropped }));
            }
            ToWorker::SetMemory { guest, regions } => {
                engine.set_memory(guest, regions, descriptors.collect())?;
            }
            ToWorker::SetFeatures { guest, features } => engine.set_features(guest, features)?,
            ToWorker::StartRing {
                guest,
                ring,
                layout,
                base,
                kick,
                call,
            } => {
                self.misbehave(guest);
                let (kick, call) = (take(kick), take(call));
                engine.start_ring(guest, ring, layout, base, kick, call)?;
            }
            ToWorker::SetCall { guest, ring, call } => engine.set_call(guest, ring, take(call))?,
            ToWorker::StopRing { guest, ring } => {
                // One that could not be started was where it was to begin.
                let base = engine.stop_ring(guest, ring)?.unwrap_or(0);
                return Ok(Some(FromWorker::RingStopped { guest, ring, base }));
            }
            ToWorker::SetEpoch { guest, epoch } => engine.set_epoch(guest, epoch)?,
            ToWorker::ResetGuest { guest } => engine.reset_guest(guest)?,
            ToWorker::AbandonGuest { guest } => engine.abandon_guest(guest)?,
            // These are not about a guest.
            ToWorker::Start { .. }
            | ToWorker::Ping { .. }
            | ToWorker::Summarise
            | ToWorker::SetLogLevel { .. }
            | ToWorker::SetTerms { .. }
            | ToWorker::SetShared { .. }
            | ToWorker::Stop => {}
        }
        Ok(None)
    }
}

impl Worker {
    /// A window that cannot be used is none: its guest goes on without.
    fn set_window(
        &self,
        guest: GuestId,
        epoch: Option<u64>,
        mut descriptors: impl Iterator<Item = OwnedFd>,
    ) {
        let name = self.daemon.name(guest);
        let (Some(file), Some(book)) = (descriptors.next(), descriptors.next()) else {
            return tracing::error!("the supervisor hands over no window of guest {name:?}");
        };
        if let Err(error) = self.engine.set_window(guest, epoch, file, book) {
            tracing::error!("guest {name:?} goes on without a window: {error}");
        }
    }

    fn misbehave(&self, guest: GuestId) {
        let name = self.daemon.name(guest);
        if self.faults.crash.as_ref() == Some(&name) {
            panic!("crashing at guest {name:?} on purpose");
        }
        while self.faults.hang.as_ref() == Some(&name) {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn guest_of(message: &ToWorker) -> Option<GuestId> {
    match message {
        ToWorker::SetWindow { guest, .. }
        | ToWorker::NameGuest { guest, .. }
        | ToWorker::FreezeGuest { guest, .. }
        | ToWorker::ForgetGuest { guest }
        | ToWorker::AddGuest { guest, .. }
        | ToWorker::RemoveGuest { guest }
        | ToWorker::SetMemory { guest, .. }
        | ToWorker::SetFeatures { guest, .. }
        | ToWorker::StartRing { guest, .. }
        | ToWorker::SetCall { guest, .. }
        | ToWorker::StopRing { guest, .. }
        | ToWorker::SetEpoch { guest, .. }
        | ToWorker::ResetGuest { guest }
        | ToWorker::AbandonGuest { guest } => Some(*guest),
        ToWorker::Start { .. }
        | ToWorker::Ping { .. }
        | ToWorker::Summarise
        | ToWorker::SetLogLevel { .. }
        | ToWorker::SetTerms { .. }
        | ToWorker::SetShared { .. }
        | ToWorker::Stop => None,
    }
}
