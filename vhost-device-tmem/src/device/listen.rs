// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Serving one guest after the other on a socket.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, MutexGuard, PoisonError,
    },
    thread,
};

use vhost::vhost_user::{BackendReqHandler, Error as VhostUserError};
use vmm_sys_util::eventfd::EventFd;

use super::{
    config::random_epoch,
    engine::{Engine, GuestId},
    frontend::Frontend,
    slot::Slot,
};
use crate::socket::{OwnedSocket, SocketError};

/// Milliseconds that nobody is accepted for after that could not be done.
const PAUSE: i32 = 1000;

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// It cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
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

/// Asks a listening thread to stop.
struct Stop {
    asked: AtomicBool,
    wake: EventFd,
    connection: Mutex<Option<UnixStream>>,
}

impl Stop {
    fn connection(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
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
    /// Listens on `path` for the guest `name`, which is served by `engine` under a number of its
    /// own.
    ///
    /// # Errors
    ///
    /// [`ListenError`].
    pub fn start(
        engine: &Arc<Engine>,
        guest: GuestId,
        name: &str,
        path: &Path,
    ) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Start {
            name: name.to_owned(),
            error,
        };
        let (socket, listener) = OwnedSocket::bind(path)?;
        let slot = engine.slot(guest, name);
        let stop = Arc::new(Stop {
            asked: AtomicBool::new(false),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(failed)?,
            connection: Mutex::default(),
        });
        let server = Server {
            engine: Arc::clone(engine),
            guest,
            slot: Arc::clone(&slot),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new()
            .name(format!("guest {name}"))
            .spawn(move || server.run(&listener))
            .map_err(failed)?;
        tracing::info!("waiting for guest {name:?} on {}", path.display());
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
        if let Some(connection) = &*self.stop.connection() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread of a socket needs.
struct Server {
    engine: Arc<Engine>,
    guest: GuestId,
    slot: Arc<Slot>,
    stop: Arc<Stop>,
}

impl Server {
    fn run(&self, listener: &UnixListener) {
        let name = self.slot.name();
        loop {
            let waited = self.wait(Some(listener), -1);
            let accepted = match waited {
                Ok(()) if self.stop.asked.load(Ordering::SeqCst) => return,
                Ok(()) => listener.accept(),
                Err(error) => {
                    tracing::error!("guest {name:?} is not served any more: {error}");
                    return;
                }
            };
            let served = accepted.and_then(|(stream, _)| self.serve(stream));
            if let Err(error) = served {
                if self.slot.may_tell_fault() {
                    tracing::warn!("the connection of guest {name:?} failed: {error}");
                }
                // What failed fails again at once: there are no descriptors left, most likely.
                let _ = self.wait(None, PAUSE);
            }
        }
    }

    /// Waits for somebody to connect, or until the thread is to stop.
    fn wait(&self, listener: Option<&UnixListener>, milliseconds: i32) -> io::Result<()> {
        let fds = [
            self.stop.wake.as_raw_fd(),
            listener.map_or(-1, AsRawFd::as_raw_fd),
        ];
        let mut fds = fds.map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let count = fds.len() as libc::nfds_t;
        loop {
            // SAFETY: `fds` is an array of so many entries.
            let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, milliseconds) };
            if ready >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Serves a guest until its connection ends.
    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let (guest, name) = (self.guest, self.slot.name());
        *self.stop.connection() = Some(stream.try_clone()?);
        let epoch = random_epoch();
        let added = self.engine.add_guest(guest, name, epoch, 0);
        added.map_err(io::Error::other)?;
        if self.slot.may_tell() {
            tracing::info!("guest {name:?} connected, epoch {epoch:#x}");
        }
        let frontend = Frontend::new(&self.engine, guest, Arc::clone(&self.slot), epoch);
        let frontend = Arc::new(Mutex::new(frontend));
        let mut handler = BackendReqHandler::from_stream(stream, frontend);
        let end = loop {
            if self.stop.asked.load(Ordering::SeqCst) {
                break None;
            }
            match handler.handle_request() {
                // What was refused, the front-end was told, if it asked.
                Ok(())
                | Err(VhostUserError::InvalidParam | VhostUserError::InvalidOperation(_)) => {}
                Err(VhostUserError::Disconnected | VhostUserError::PartialMessage) => break None,
                Err(error) => break Some(error),
            }
        };
        *self.stop.connection() = None;
        if let Some(error) = end.filter(|_| self.slot.may_tell_fault()) {
            tracing::warn!("guest {name:?} sent a message that is none: {error}");
        }
        let dropped = self.engine.remove_guest(guest).map_err(io::Error::other)?;
        drop(handler);
        let (persistent, ephemeral) = (dropped.persistent.pages, dropped.ephemeral.pages);
        if persistent > 0 {
            tracing::warn!(
                "guest {name:?} disconnected: {persistent} persistent pages are lost, \
                 {ephemeral} ephemeral pages dropped"
            );
        } else if self.slot.may_tell() {
            tracing::info!("guest {name:?} disconnected: {ephemeral} ephemeral pages dropped");
        }
        Ok(())
    }
}
