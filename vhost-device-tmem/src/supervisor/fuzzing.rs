// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Front-ends that say what a fuzzer made up.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
};

use super::{
    connection,
    guest::GuestState,
    hub::{Connection, Hub},
    keep::Keeper,
};
use crate::{
    device::{queue_count, random_epoch, Limits},
    link::{FromWorker, GuestId, Link, ToWorker},
    stop::StopToken,
    window::WindowSource,
};

const GUEST: GuestId = GuestId(0);
const WORKER: u64 = 1;

/// A supervisor of one guest, with a worker that says that it has done what it is told.
#[derive(Debug)]
pub struct FuzzedSupervisor {
    hub: Arc<Hub>,
    limits: Limits,
    stop: StopToken,
}

impl FuzzedSupervisor {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn start() -> io::Result<Self> {
        let hub = Hub::new(
            vec![(GUEST, "fuzz".to_owned(), None, None)],
            WindowSource::default(),
            Keeper::default(),
        )?;
        let hub = Arc::new(hub);
        let (ours, theirs) = Link::pair()?;
        let ours = Arc::new(ours);
        thread::spawn(move || obey(&theirs));
        hub.attach(WORKER, Arc::clone(&ours))
            .map_err(io::Error::other)?;
        let listening = Arc::clone(&hub);
        thread::spawn(move || {
            while let Ok(received) = ours.receive::<FromWorker>() {
                listening.heard(WORKER, &received.message);
            }
        });
        Ok(Self {
            hub,
            limits: Limits::new(2),
            stop: StopToken::new()?,
        })
    }

    /// Serves a front-end until it is gone.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn serve(&self, socket: UnixStream) -> io::Result<()> {
        let connection = Connection {
            state: GuestState::new(GUEST, "fuzz", random_epoch(), queue_count(&self.limits)),
            files: Default::default(),
            socket: socket.as_fd().try_clone_to_owned().map(OwnedFd::into)?,
        };
        if self.hub.connect(connection) {
            connection::serve(&self.hub, GUEST, self.limits, socket, None, &self.stop);
            self.hub.disconnect(GUEST);
        }
        Ok(())
    }
}

/// Answers what a worker has to answer.
fn obey(link: &Link) {
    while let Ok(received) = link.receive::<ToWorker>() {
        let answer = match received.message {
            ToWorker::Ping { token } => FromWorker::Pong {
                token,
                persistent: 0,
            },
            ToWorker::StopRing { guest, ring } => FromWorker::RingStopped {
                guest,
                ring,
                base: 0,
            },
            _ => continue,
        };
        if link.send(&answer, &[]).is_err() {
            return;
        }
    }
}
