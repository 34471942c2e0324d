// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that front-ends connect to.

use std::{
    io,
    os::{
        fd::AsFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags};
use vmm_sys_util::eventfd::EventFd;

use super::{
    connection::{self, Past},
    guest::GuestState,
    hub::{borrow, Connection, Hub},
};
use crate::{
    backoff::Backoff,
    device::{queue_count, random_epoch, Limits},
    link::GuestId,
    stop::{wait_ready, Running, StopToken},
};

/// How long a front-end that has gone may take to be known for it.
const GONE: Duration = Duration::from_secs(10);

/// What is needed to serve front-ends.
#[derive(Debug)]
pub(super) struct Acceptor {
    hub: Arc<Hub>,
    limits: Limits,
    listeners: Mutex<Vec<(GuestId, Arc<UnixListener>)>>,
    /// Wakes the thread when the listeners change.
    wake: EventFd,
    /// Connections of another supervisor, of which the hub knows already.
    resumed: Mutex<Vec<(GuestId, UnixStream, Past)>>,
}

impl Acceptor {
    /// Makes one that listens for guests of the hub, and goes on with connections that another
    /// supervisor had, of which the hub knows already.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub(super) fn new(
        hub: Arc<Hub>,
        limits: Limits,
        listeners: Vec<(GuestId, UnixListener)>,
        resumed: Vec<(GuestId, UnixStream, Past)>,
    ) -> io::Result<Self> {
        for (_, listener) in &listeners {
            listener.set_nonblocking(true)?;
        }
        let listeners = listeners.into_iter();
        let listeners = listeners.map(|(guest, listener)| (guest, Arc::new(listener)));
        Ok(Self {
            hub,
            limits,
            listeners: Mutex::new(listeners.collect()),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            resumed: Mutex::new(resumed),
        })
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<(GuestId, Arc<UnixListener>)>> {
        let listeners = self.listeners.lock();
        listeners.unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens for a guest on this socket, which does not block, and on no other.
    pub(super) fn listen(&self, guest: GuestId, listener: Arc<UnixListener>) {
        let mut listeners = self.listeners();
        listeners.retain(|(of, _)| *of != guest);
        listeners.push((guest, listener));
        drop(listeners);
        self.rouse();
    }

    /// Does not listen for a guest any more. Returns the socket on which it did.
    pub(super) fn leave(&self, guest: GuestId) -> Option<Arc<UnixListener>> {
        let mut listeners = self.listeners();
        let at = listeners.iter().position(|(of, _)| *of == guest);
        let left = at.map(|at| listeners.remove(at).1);
        drop(listeners);
        self.rouse();
        left
    }

    fn rouse(&self) {
        // It can only fail where the counter is full, and then the thread is awake.
        let _ = self.wake.write(1);
    }

    /// Accepts front-ends until it is asked to stop.
    pub(super) fn run(&self, stop: &StopToken) {
        let resumed =
            std::mem::take(&mut *self.resumed.lock().unwrap_or_else(PoisonError::into_inner));
        for (guest, socket, past) in resumed {
            tracing::info!(
                "guest {:?}: going on with its connection",
                self.hub.name(guest)
            );
            if let Err(error) = self.serve(guest, socket, Some(past), stop) {
                tracing::error!("guest {:?} cannot be served: {error}", self.hub.name(guest));
            }
        }
        let mut backoff = Backoff::default();
        while !stop.is_asked() {
            if let Err(error) = self.wait(stop, &mut backoff) {
                tracing::error!("guests cannot connect any more: {error}");
                return;
            }
        }
    }

    fn wait(&self, stop: &StopToken, backoff: &mut Backoff) -> io::Result<()> {
        let pause = backoff.until(Instant::now());
        let listeners = self.listeners().clone();
        let mut fds = vec![
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(borrow(&self.wake), PollFlags::POLLIN),
        ];
        if pause.is_none() {
            let sockets = listeners.iter().map(|(_, listener)| listener.as_fd());
            fds.extend(sockets.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        }
        wait_ready(&mut fds, pause)?;
        let ready: Vec<_> = fds[1..]
            .iter()
            .map(|fd| fd.any().unwrap_or(false))
            .collect();
        drop(fds);
        // An error says that it was not woken.
        let _ = self.wake.read();
        for ((_, listener), ready) in listeners.iter().zip(&ready[1..]) {
            let ready = *ready;
            if ready && !stop.is_asked() {
                self.accept(listener, stop, backoff);
            }
        }
        Ok(())
    }

    /// Returns whose socket it is now: operators may have given it to another guest meanwhile.
    fn owner(&self, listener: &Arc<UnixListener>) -> Option<GuestId> {
        let listeners = self.listeners();
        let mut of = listeners.iter().filter(|(_, it)| Arc::ptr_eq(it, listener));
        of.next().map(|(guest, _)| *guest)
    }

    fn accept(&self, listener: &Arc<UnixListener>, stop: &StopToken, backoff: &mut Backoff) {
        if self.owner(listener).is_none() {
            // Whoever is to have it is told soon, and finds who waits.
            return;
        }
        let accepted = match listener.accept() {
            Ok((socket, _)) => match self.owner(listener) {
                Some(guest) => self.connect(guest, socket, stop),
                // It is nobody's any more.
                None => return,
            },
            // Who wanted to connect has gone.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
                ) =>
            {
                return
            }
            Err(error) => Err(error),
        };
        match accepted {
            Ok(()) => {
                let failures = backoff.succeeded();
                if failures > 0 {
                    tracing::info!("guests can connect again, after {failures} failures");
                }
            }
            Err(error) => {
                if backoff.failed(Instant::now()) {
                    let name = self.owner(listener).map(|guest| self.hub.name(guest));
                    tracing::error!(
                        "guest {:?} cannot be served, and it is tried again: {error}",
                        name.unwrap_or_default()
                    );
                }
            }
        }
    }

    fn connect(&self, guest: GuestId, socket: UnixStream, stop: &StopToken) -> io::Result<()> {
        let name = self.hub.name(guest);
        socket.set_nonblocking(false)?;
        if !self.hub.wait_free(guest, GONE) {
            tracing::warn!(
                "guest {name:?} is connected already: a second front-end was turned away; give \
                 each virtual machine a --socket-path of its own"
            );
            return Ok(());
        }
        let epoch = random_epoch();
        let connection = Connection {
            state: GuestState::new(guest, &name, epoch, queue_count(&self.limits)),
            files: Default::default(),
            socket: socket.as_fd().try_clone_to_owned()?.into(),
        };
        if self.hub.connect(connection) {
            tracing::info!("guest {name:?} connected, epoch {epoch:#x}");
            let served = self.serve(guest, socket, None, stop);
            if served.is_err() {
                self.hub.disconnect(guest);
            }
            return served;
        }
        Ok(())
    }

    fn serve(
        &self,
        guest: GuestId,
        socket: UnixStream,
        past: Option<Past>,
        stop: &StopToken,
    ) -> io::Result<()> {
        let (hub, limits, stop) = (Arc::clone(&self.hub), self.limits, stop.clone());
        let name = format!("guest {}", self.hub.name(guest));
        // It ends with its connection, or with the process, for which `stop` makes it leave the
        // connection as it is.
        std::thread::Builder::new().name(name).spawn(move || {
            if connection::serve(&hub, guest, limits, socket, past, &stop) {
                hub.disconnect(guest);
            }
        })?;
        Ok(())
    }
}

/// Starts the thread of an acceptor.
///
/// # Errors
///
/// The operating system's, where there is no thread left.
pub(super) fn start(acceptor: Arc<Acceptor>) -> io::Result<Running> {
    Running::start("accept", move |stop| acceptor.run(stop))
}
