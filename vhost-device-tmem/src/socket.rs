// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listening sockets in the file system, each of one daemon only.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The directory is missing.
    #[error("cannot listen on {path}: the directory {directory} does not exist; create it first")]
    NoDirectory {
        /// The socket.
        path: PathBuf,
        /// Its directory.
        directory: PathBuf,
    },
    /// Another daemon listens there.
    #[error(
        "cannot listen on {0}: another daemon is listening there; stop it, or choose another path"
    )]
    InUse(PathBuf),
    /// Something that is no socket has the path.
    #[error("cannot listen on {0}: a file that is no socket is there; choose another path")]
    NoSocket(PathBuf),
    /// The operating system refused.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file that it was tried on.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
}

/// A lock file beside a socket, which says that a living process is responsible for the socket.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    fn take(socket: &Path) -> Result<Self, SocketError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let failed = |what| {
            let path = path.clone();
            move |error| SocketError::Io { what, path, error }
        };
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed("create the lock file"))?;
            // SAFETY: The descriptor is open.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let error = io::Error::last_os_error();
                return Err(match error.kind() {
                    io::ErrorKind::WouldBlock => SocketError::InUse(socket.to_owned()),
                    _ => failed("lock")(error),
                });
            }
            // Its last holder may have removed it in between: then nobody else would see it.
            let ours = file.metadata().map_err(failed("examine"))?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Self { path, _file: file });
                }
                _ => continue,
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A path that this process alone listens on. Socket and lock file are removed when it is dropped.
#[derive(Debug)]
pub struct OwnedSocket {
    path: PathBuf,
    _lock: Lock,
}

impl OwnedSocket {
    /// Listens on `path`. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    ///
    /// [`SocketError`], which says what to do.
    pub fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let directory = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => Path::new("/"),
        };
        if !directory.is_dir() {
            return Err(SocketError::NoDirectory {
                path: path.to_owned(),
                directory: directory.to_owned(),
            });
        }
        let failed = |what| {
            move |error| SocketError::Io {
                what,
                path: path.to_owned(),
                error,
            }
        };
        let lock = Lock::take(path)?;
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            // A daemon of another kind knows nothing of the lock file.
            if UnixStream::connect(path).is_ok() {
                return Err(SocketError::InUse(path.to_owned()));
            }
            tracing::info!("taking over the stale socket {}", path.display());
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
        let path = path.to_owned();
        Ok((Self { path, _lock: lock }, listener))
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
