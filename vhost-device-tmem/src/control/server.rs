// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon's end of the operator's socket.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        atomic::{AtomicBool, Ordering},
        Arc, Mutex, PoisonError,
    },
    thread,
    time::Duration,
};

use super::{
    protocol::{Envelope, Reply, Request, MAX_LINE, VERSION},
    report::stat,
};
use crate::{
    device::Slot,
    socket::{OwnedSocket, SocketError},
    store::Store,
};

/// How long an operator may take to send or receive a line.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the operator's socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The operating system has no thread left.
    #[error("cannot serve the control socket: {0}")]
    Start(#[source] io::Error),
}

/// What requests are answered from.
struct Shared {
    store: Arc<Store>,
    slots: Vec<Arc<Slot>>,
    stopping: AtomicBool,
    /// The operator that is being served.
    current: Mutex<Option<UnixStream>>,
}

/// The operator's socket, served by a thread of its own, one operator at a time. Dropping it waits
/// for the thread and removes the socket.
pub struct ControlServer {
    shared: Arc<Shared>,
    socket: OwnedSocket,
    thread: Option<thread::JoinHandle<()>>,
}

impl ControlServer {
    /// Listens on `path`, and answers from `store` and `slots`.
    ///
    /// # Errors
    ///
    /// [`ControlError`].
    pub fn start(
        path: &Path,
        store: Arc<Store>,
        slots: Vec<Arc<Slot>>,
    ) -> Result<Self, ControlError> {
        let (socket, listener) = OwnedSocket::bind(path)?;
        let shared = Arc::new(Shared {
            store,
            slots,
            stopping: AtomicBool::new(false),
            current: Mutex::default(),
        });
        let server = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || server.run(&listener))
            .map_err(ControlError::Start)?;
        tracing::info!("waiting for operators on {}", path.display());
        Ok(Self {
            shared,
            socket,
            thread: Some(thread),
        })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Some(current) = &*self.shared.current() {
            let _ = current.shutdown(Shutdown::Both);
        }
        // Wakes the thread where it waits for an operator.
        let _ = UnixStream::connect(self.socket.path());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn current(&self) -> std::sync::MutexGuard<'_, Option<UnixStream>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, listener: &UnixListener) {
        for stream in listener.incoming() {
            let served = stream.and_then(|stream| {
                *self.current() = Some(stream.try_clone()?);
                if self.stopping.load(Ordering::SeqCst) {
                    return Ok(());
                }
                self.serve(&stream)
            });
            *self.current() = None;
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            if let Err(error) = served {
                tracing::debug!("an operator's connection failed: {error}");
            }
        }
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        let mut writer = stream;
        loop {
            let mut line = Vec::new();
            reader
                .by_ref()
                .take(MAX_LINE)
                .read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Ok(());
            }
            let mut reply = serde_json::to_vec(&self.answer(&line))?;
            reply.push(b'\n');
            writer.write_all(&reply)?;
        }
    }

    fn answer(&self, line: &[u8]) -> Reply {
        let error = |message| Reply::Error {
            version: VERSION,
            message,
        };
        match serde_json::from_slice::<Envelope>(line) {
            Ok(Envelope { version, .. }) if version != VERSION => error(format!(
                "this daemon speaks version {VERSION} and not {version}; use its own tmemctl"
            )),
            Ok(Envelope {
                request: Request::Stat,
                ..
            }) => Reply::Stat(stat(&self.store, self.slots.iter().map(|slot| &**slot))),
            Err(problem) => error(format!("this is no request: {problem}")),
        }
    }
}
