// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What systemd does for a service with `Type=notify`, a descriptor store and socket units.

use std::{
    collections::BTreeSet,
    io::IoSliceMut,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use nix::{
    cmsg_space,
    sys::socket::{recvmsg, ControlMessageOwned, MsgFlags},
};

use super::{wait_until, Daemon, Place};

const FIRST: RawFd = 3;

#[derive(Debug, Default)]
struct Heard {
    /// The descriptor store.
    kept: Vec<(String, OwnedFd)>,
    /// What the service said of itself, a line each, in its order.
    said: Vec<String>,
    /// Sockets that are tried when the service says that it is ready.
    tried: BTreeSet<PathBuf>,
    /// Those of them that nobody listened on then.
    silent: BTreeSet<PathBuf>,
}

impl Heard {
    fn hear(&mut self, text: &str, files: Vec<OwnedFd>) {
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let name = value("FDNAME=").unwrap_or_default();
        if value("FDSTORE=1").is_some() {
            let files = files.into_iter().map(|file| (name.to_owned(), file));
            self.kept.extend(files);
        } else if value("FDSTOREREMOVE=1").is_some() {
            self.kept.retain(|(of, _)| of != name);
        } else {
            self.said.extend(text.lines().map(str::to_owned));
        }
        if value("READY=1").is_some() {
            let silent = |path: &&PathBuf| UnixStream::connect(path).is_err();
            self.silent = self.tried.iter().filter(silent).cloned().collect();
        }
    }
}

pub(crate) struct Systemd {
    path: String,
    heard: Arc<Mutex<Heard>>,
    has_store: bool,
    /// What the socket units of the service listen on.
    sockets: Vec<(String, UnixListener)>,
}

impl Systemd {
    pub(crate) fn new(place: &Place) -> Self {
        let path = place.arg("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let this = Self {
            path,
            heard: Arc::clone(&heard),
            has_store: true,
            sockets: Vec::new(),
        };
        thread::spawn(move || loop {
            let mut bytes = [0; 4096];
            let mut control = cmsg_space!([RawFd; 8]);
            let mut data = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            let received = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut control), flags);
            let received = received.unwrap();
            let mut files = Vec::new();
            for message in received.cmsgs().unwrap() {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    // SAFETY: The kernel has just made them for us.
                    files.extend(fds.iter().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }));
                }
            }
            let len = received.bytes;
            let text = std::str::from_utf8(&bytes[..len]).unwrap().to_owned();
            heard.lock().unwrap().hear(&text, files);
        });
        this
    }

    /// Keeps nothing over a restart (`FileDescriptorStoreMax=0`).
    pub(crate) fn without_store(mut self) -> Self {
        self.has_store = false;
        self
    }

    /// Listens as a socket unit does, with this `FileDescriptorName=`.
    pub(crate) fn listen(&mut self, name: &str, path: &Path) {
        let listener = UnixListener::bind(path).unwrap();
        self.sockets.push((name.to_owned(), listener));
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    /// Returns the names of what is in the descriptor store.
    pub(crate) fn names(&self) -> Vec<String> {
        let heard = self.heard();
        heard.kept.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Returns what the service said of itself, but for lines that begin with one of `but`.
    pub(crate) fn said(&self, but: &[&str]) -> Vec<String> {
        let told = |line: &&String| !but.iter().any(|but| line.starts_with(but));
        self.heard().said.iter().filter(told).cloned().collect()
    }

    /// Has sockets tried whenever the service says that it is ready.
    pub(crate) fn try_when_ready(&self, paths: impl IntoIterator<Item = PathBuf>) {
        self.heard().tried = paths.into_iter().collect();
    }

    /// Returns those that nobody listened on when it last said so.
    pub(crate) fn silent(&self) -> BTreeSet<PathBuf> {
        self.heard().silent.clone()
    }

    fn times_ready(&self) -> usize {
        let said = self.said(&[]);
        said.iter().filter(|line| *line == "READY=1").count()
    }

    /// Starts the service, with what it left here before, and waits until it is ready.
    pub(crate) fn start(&self, args: &[&str]) -> Daemon {
        let before = self.times_ready();
        let daemon = self.spawn(args);
        wait_until("the service is ready", || self.times_ready() > before);
        daemon
    }

    /// Starts the service.
    pub(crate) fn spawn(&self, args: &[&str]) -> Daemon {
        let heard = self.heard();
        let sockets = self.sockets.iter();
        let sockets = sockets.map(|(name, socket)| (name.as_str(), socket.as_raw_fd()));
        let kept = heard.kept.iter();
        let kept = kept.map(|(name, file)| (name.as_str(), file.as_raw_fd()));
        let (names, fds): (Vec<_>, Vec<_>) = sockets.chain(kept).unzip();
        let mut command = Command::new("/bin/sh");
        // The number of its process is known to the process alone.
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]);
        command
            .arg(env!("CARGO_BIN_EXE_vhost-device-tmem"))
            .args(args)
            .stderr(Stdio::piped());
        command.env("NOTIFY_SOCKET", &self.path);
        if self.has_store {
            command.env("FDSTORE", "1000");
        }
        if !fds.is_empty() {
            command
                .env("LISTEN_FDS", fds.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
        }
        // SAFETY: System calls alone are made between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let above = FIRST + fds.len() as RawFd;
                for (n, fd) in fds.iter().enumerate() {
                    // Out of the way of those that come first.
                    let high = libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above + 1000);
                    let to = above + 10_000 + n as RawFd;
                    if libc::dup2(high, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                for n in 0..fds.len() as RawFd {
                    libc::dup2(above + 10_000 + n, FIRST + n);
                    libc::close(above + 10_000 + n);
                }
                Ok(())
            });
        }
        // What is kept stays open until the process has it.
        let daemon = Daemon::spawn(command);
        drop(heard);
        daemon
    }
}
