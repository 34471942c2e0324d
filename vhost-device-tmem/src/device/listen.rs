// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serving one guest after the other on a socket.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixListener},
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    thread,
    time::{Duration, Instant},
};

use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{epoll::EventSet, eventfd::EventFd};

use super::{backend::Backend, session::Session, Limits};
use crate::{backoff::Backoff, socket::OwnedSocket, store::Store};

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The operating system has no thread or file descriptor left.
    #[error("cannot serve guest {name:?}: {error}")]
    Start {
        /// The guest.
        name: String,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
}

/// What is known of the guest of a socket.
#[derive(Debug, Default)]
pub struct SlotState {
    /// The guest that was connected last, if there ever was one.
    pub session: Option<Arc<Session>>,
    /// Whether it is connected now.
    pub connected: bool,
}

/// A socket and its guest.
#[derive(Debug)]
pub struct Slot {
    name: String,
    state: Mutex<SlotState>,
}

impl Slot {
    /// Returns the guest's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what is known of its guest.
    pub fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a listening thread to stop.
struct Stop {
    asked: AtomicBool,
    wake: EventFd,
    connection: Mutex<Option<ShutdownHandle>>,
}

/// A socket that is being served by a thread of its own. Dropping it ends the guest's connection,
/// waits for the thread and removes the socket.
pub struct Listening {
    slot: Arc<Slot>,
    stop: Arc<Stop>,
    thread: Option<thread::JoinHandle<()>>,
    _socket: OwnedSocket,
}

impl Listening {
    /// Waits on a socket for the guest `name`, whose virtqueues are looked at for up to `poll`
    /// before notifications are waited for.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn start(
        name: &str,
        (socket, listener): (OwnedSocket, UnixListener),
        store: &Arc<Store>,
        limits: Limits,
        poll: Duration,
    ) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Start {
            name: name.to_owned(),
            error,
        };
        let slot = Arc::new(Slot {
            name: name.to_owned(),
            state: Mutex::default(),
        });
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed)?,
            connection: Mutex::default(),
        });
        let server = Server {
            slot: Arc::clone(&slot),
            stop: Arc::clone(&stop),
            store: Arc::clone(store),
            limits,
            poll,
        };
        let thread = thread::Builder::new()
            .name(format!("guest {name}"))
            .spawn(move || server.run(Listener::from(listener)))
            .map_err(failed)?;
        let path = socket.path().display();
        tracing::info!("waiting for guest {name:?} on {path}");
        Ok(Self {
            slot,
            stop,
            thread: Some(thread),
            _socket: socket,
        })
    }

    /// Returns the socket's guest.
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::SeqCst);
        // It can only fail where the counter is full, and then the thread is awake.
        let _ = self.stop.wake.write(1);
        let connection = &self.stop.connection;
        if let Some(handle) = &*connection.lock().unwrap_or_else(PoisonError::into_inner) {
            handle.shutdown();
        }
        if let Some(session) = &self.slot.state().session {
            session.stopping.store(true, Ordering::SeqCst);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a guest is not served.
enum Failed {
    /// The connection was not even accepted.
    AtOnce(DaemonError),
    /// The connection broke.
    Later(DaemonError),
}

/// What the thread of a socket needs.
struct Server {
    slot: Arc<Slot>,
    stop: Arc<Stop>,
    store: Arc<Store>,
    limits: Limits,
    poll: Duration,
}

impl Server {
    fn run(&self, mut listener: Listener) {
        let name = &self.slot.name;
        let mut backoff = Backoff::default();
        loop {
            match self.wait(&listener) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!("guest {name:?} is not served any more: {error}");
                    return;
                }
            }
            match self.serve(&mut listener) {
                Ok(()) => {
                    backoff.succeeded();
                }
                Err(Failed::Later(error)) => {
                    backoff.succeeded();
                    tracing::warn!("the connection of guest {name:?} failed: {error}");
                }
                // As it does again and again while descriptors are used up.
                Err(Failed::AtOnce(error)) => {
                    let now = Instant::now();
                    if backoff.failed(now) {
                        tracing::warn!("guest {name:?} cannot be served: {error}; trying again");
                    }
                    if let Some(until) = backoff.until(now) {
                        self.pause(until - now);
                    }
                }
            }
        }
    }

    /// Waits for a while, or until the thread is to stop.
    fn pause(&self, time: Duration) {
        let mut fd = libc::pollfd {
            fd: self.stop.wake.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `fd` is one entry.
        unsafe { libc::poll(&raw mut fd, 1, millis) };
    }

    /// Waits for a guest; false if the thread is to stop instead.
    fn wait(&self, listener: &Listener) -> io::Result<bool> {
        loop {
            let mut fds =
                [self.stop.wake.as_raw_fd(), listener.as_raw_fd()].map(|fd| libc::pollfd {
                    fd,
                    events: libc::POLLIN,
                    revents: 0,
                });
            // SAFETY: `fds` is an array of so many entries.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
            if ready < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            if self.stop.asked.load(Ordering::SeqCst) {
                return Ok(false);
            }
            if fds[1].revents != 0 {
                return Ok(true);
            }
        }
    }

    /// Serves the guest that is waiting until its connection ends.
    fn serve(&self, listener: &mut Listener) -> Result<(), Failed> {
        let at_once = |error| Failed::AtOnce(DaemonError::StartDaemon(error));
        let name = &self.slot.name;
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let session = Session::new(name, Arc::clone(&self.store), self.limits);
        let session = session.map_err(at_once)?;
        let backend = Backend::new(Arc::clone(&session), memory.clone(), self.poll);
        let backend = Arc::new(backend.map_err(at_once)?);
        let daemon = VhostUserDaemon::new(name.clone(), Arc::clone(&backend), memory);
        let mut daemon = daemon.map_err(Failed::AtOnce)?;
        if let Some(worker) = daemon.get_epoll_handlers().first() {
            worker
                .register_listener(session.wake.as_raw_fd(), EventSet::IN, backend.wake_event())
                .map_err(at_once)?;
        }
        daemon.start(listener).map_err(Failed::AtOnce)?;
        tracing::info!("guest {name:?} connected, epoch {:#x}", session.epoch());
        *self.slot.state() = SlotState {
            session: Some(Arc::clone(&session)),
            connected: true,
        };
        *self.connection() = daemon.shutdown_handle();
        if self.stop.asked.load(Ordering::SeqCst) {
            daemon.request_shutdown();
        }
        let result = daemon.wait();
        *self.connection() = None;
        session.stopping.store(true, Ordering::SeqCst);
        // Waits for the workers.
        drop(daemon);
        let dropped = session.end();
        let (persistent, ephemeral) = (dropped.persistent.pages, dropped.ephemeral.pages);
        if persistent > 0 {
            tracing::warn!(
                "guest {name:?} disconnected: {persistent} persistent pages are lost, \
                 {ephemeral} ephemeral pages dropped"
            );
        } else {
            tracing::info!("guest {name:?} disconnected: {ephemeral} ephemeral pages dropped");
        }
        self.slot.state().connected = false;
        match result {
            Err(DaemonError::HandleRequest(
                VhostUserError::Disconnected | VhostUserError::PartialMessage,
            )) => Ok(()),
            result => result.map_err(Failed::Later),
        }
    }

    fn connection(&self) -> MutexGuard<'_, Option<ShutdownHandle>> {
        let connection = &self.stop.connection;
        connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
