// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Listening sockets in the file system, each of one daemon only, and who may connect to them.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{lchown, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            bind, connect, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr,
        },
        stat::{fchmod, Mode},
    },
};

/// The longest path of a socket in bytes: `sun_path` less the byte that ends it.
pub const MAX_PATH: usize = 107;

/// What a socket is for on which metrics are served.
pub const METRICS: &str = "metrics";

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long a path may be in use by a daemon that is dying. One that was killed while it started a
/// worker leaves a child behind, which has its descriptors until the kernel has killed it as well.
const DYING: Duration = Duration::from_secs(1);

/// Who may connect to a socket: its mode and group in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// The permission bits.
    pub mode: u32,
    /// The group, if not that of the daemon.
    pub group: Option<u32>,
}

impl Default for Rights {
    /// The daemon's own user alone.
    fn default() -> Self {
        Self {
            mode: 0o600,
            group: None,
        }
    }
}

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
    /// The path does not fit into an address.
    #[error(
        "cannot listen on {path}: the path is {len} bytes long, and that of a socket has at most \
         {MAX_PATH}; choose a shorter one"
    )]
    LongPath {
        /// The socket.
        path: PathBuf,
        /// The length of its path.
        len: usize,
    },
    /// Another daemon listens there.
    #[error(
        "cannot listen on {0}: another daemon is listening there; stop it, or choose another path"
    )]
    InUse(PathBuf),
    /// Somebody listens at an address of the network.
    #[error("cannot listen on {0}: somebody else does; stop that, or choose another port")]
    AddressInUse(SocketAddr),
    /// An address of the network cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        #[source]
        error: io::Error,
    },
    /// Something that is no socket has the path.
    #[error("cannot listen on {0}: a file that is no socket is there; choose another path")]
    NoSocket(PathBuf),
    /// systemd listens, and not where it should.
    #[error(
        "systemd listens on {} for {purpose}, and the configuration says {path}; let ListenStream= \
         of the socket unit be the same",
        .there.as_deref().unwrap_or(Path::new("no path")).display()
    )]
    Activated {
        /// What the socket is for.
        purpose: String,
        /// The path that was configured.
        path: PathBuf,
        /// Where it is, if it is one that can be connected to by a path.
        there: Option<PathBuf>,
    },
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

/// A lock file beside a socket, which says that a living process is responsible for the socket, and
/// what the socket is for.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Says what the socket is for, in place of what was said before.
    fn say(&mut self, purpose: &str) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        writeln!(self.file, "{purpose}")
    }

    fn path(socket: &Path) -> PathBuf {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        path.into()
    }

    fn take(socket: &Path, purpose: &str) -> Result<Self, SocketError> {
        let path = Self::path(socket);
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
                    let mut this = Self {
                        path: path.clone(),
                        file,
                    };
                    this.say(purpose).map_err(failed("write"))?;
                    return Ok(this);
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

/// Returns what the daemon that listens on `path` has it for, if the caller may know that.
pub fn purpose(path: &Path) -> Option<String> {
    let mut purpose = String::new();
    let file = File::open(Lock::path(path)).ok()?;
    file.take(256).read_to_string(&mut purpose).ok()?;
    Some(purpose.trim_end().to_owned())
}

/// Returns the directory that a socket of this path is in.
pub fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    }
}

/// A path that this process alone listens on. Socket and lock file are removed when it is dropped,
/// unless something else has the path by then, or the socket is systemd's.
#[derive(Debug)]
pub struct OwnedSocket {
    path: PathBuf,
    /// Device and inode, if the file is this process's.
    node: Option<(u64, u64)>,
    lock: Lock,
}

impl OwnedSocket {
    /// Listens on `path`, to which those connect whom `rights` let. A socket that a dead process
    /// left there is replaced. `purpose` is for [`purpose`] to tell.
    ///
    /// Nobody else can connect at any time, whatever the umask is.
    ///
    /// # Errors
    ///
    /// [`SocketError`], which says what to do.
    pub fn bind(
        path: &Path,
        rights: Rights,
        purpose: &str,
    ) -> Result<(Self, UnixListener), SocketError> {
        let directory = directory(path);
        let len = path.as_os_str().as_bytes().len();
        if len > MAX_PATH {
            return Err(SocketError::LongPath {
                path: path.to_owned(),
                len,
            });
        }
        if !directory.is_dir() {
            return Err(SocketError::NoDirectory {
                path: path.to_owned(),
                directory: directory.to_owned(),
            });
        }
        let failed = |what| {
            move |error: io::Error| SocketError::Io {
                what,
                path: path.to_owned(),
                error,
            }
        };
        let lock = unless_dying(|| Lock::take(path, purpose))?;
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NoSocket(path.to_owned()));
            }
            unless_dying(|| {
                // A daemon of another kind knows nothing of the lock file.
                if answers(path) {
                    return Err(SocketError::InUse(path.to_owned()));
                }
                Ok(())
            })?;
            tracing::info!("taking over the stale socket {}", path.display());
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        // From now on the socket is removed if something fails.
        let (listener, node) = listen_on(path).map_err(failed("listen on"))?;
        let socket = Self {
            path: path.to_owned(),
            node: Some(node),
            lock,
        };
        if let Some(group) = rights.group {
            lchown(path, None, Some(group)).map_err(failed("give a group to"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(rights.mode))
            .map_err(failed("set the mode of"))?;
        Ok((socket, listener))
    }

    /// Takes over a path on which a process before listened, and left the socket to this one.
    ///
    /// # Errors
    ///
    /// [`SocketError`], which says what to do.
    pub fn adopt(path: &Path, purpose: &str) -> Result<Self, SocketError> {
        let lock = unless_dying(|| Lock::take(path, purpose))?;
        let node = node(path).map_err(|error| SocketError::Io {
            what: "examine",
            path: path.to_owned(),
            error,
        })?;
        Ok(Self {
            path: path.to_owned(),
            node: Some(node),
            lock,
        })
    }

    /// Takes over, for the life of this process, a path on which systemd listens. The socket is not
    /// removed.
    ///
    /// # Errors
    ///
    /// [`SocketError`], which says what to do.
    pub fn borrow(path: &Path, purpose: &str) -> Result<Self, SocketError> {
        Ok(Self {
            path: path.to_owned(),
            node: None,
            lock: unless_dying(|| Lock::take(path, purpose))?,
        })
    }

    /// Has the socket be for something else from now on.
    pub fn set_purpose(&mut self, purpose: &str) {
        // It is said for who looks, and nothing hangs on it.
        let _ = self.lock.say(purpose);
    }

    /// Leaves the path to a process that comes after this one.
    pub fn leave(self) {
        // The lock goes with the process.
        std::mem::forget(self);
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the directory that socket and lock file are in.
    pub fn directory(&self) -> &Path {
        directory(&self.path)
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        if self.node.is_some() && node(&self.path).ok() == self.node {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at an address of the network.
///
/// # Errors
///
/// [`SocketError`], which says what to do.
pub fn listen_at(address: SocketAddr) -> Result<TcpListener, SocketError> {
    unless_dying(|| {
        TcpListener::bind(address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => SocketError::AddressInUse(address),
            _ => SocketError::Address { address, error },
        })
    })
}

/// Repeats what finds a path in use, until nobody can be dying any more who has it.
fn unless_dying<T>(mut take: impl FnMut() -> Result<T, SocketError>) -> Result<T, SocketError> {
    let until = Instant::now() + DYING;
    loop {
        match take() {
            Err(SocketError::InUse(_) | SocketError::AddressInUse(_)) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(5));
            }
            taken => return taken,
        }
    }
}

/// Returns whether somebody listens on a socket. Does not wait for them to accept.
fn answers(path: &Path) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let connected = UnixAddr::new(path).and_then(|address| {
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(socket.as_raw_fd(), &address)
    });
    // So many wait for its owner already.
    matches!(connected, Ok(()) | Err(Errno::EAGAIN))
}

/// Listens on a path that does not exist, as the owner alone, and returns which file it is.
fn listen_on(path: &Path) -> io::Result<(UnixListener, (u64, u64))> {
    let address = UnixAddr::new(path)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    // The file gets the mode that the socket has (unix_bind() in the kernel), less the umask. So
    // there is no moment in which others could connect, and no need to change the umask, which
    // belongs to all threads.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &address)?;
    let node = node(path)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok((socket.into(), node))
}

/// Returns device and inode of a file.
fn node(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_socket_is_made_for_its_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        // Before anything is done to it by its path.
        listen_on(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn mode_and_group_are_as_wanted() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        // The only group that everybody may give.
        let group = nix::unistd::getegid().as_raw();
        let rights = Rights {
            mode: 0o660,
            group: Some(group),
        };
        let (_socket, _listener) = OwnedSocket::bind(&path, rights, "test").unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(fs::symlink_metadata(&path).unwrap().gid(), group);
    }

    #[test]
    fn what_a_socket_is_for_can_be_asked() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        assert_eq!(purpose(&path), None);
        fs::write(Lock::path(&path), "of somebody who died, and long").unwrap();
        let bound = OwnedSocket::bind(&path, Rights::default(), "guest \"a\"");
        assert_eq!(purpose(&path).as_deref(), Some("guest \"a\""));
        drop(bound);
        assert_eq!(purpose(&path), None);
        assert!(!path.exists());
    }

    #[test]
    fn the_socket_of_somebody_else_is_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        let (socket, listener) = OwnedSocket::bind(&path, Rights::default(), "test").unwrap();
        fs::rename(&path, place.path().join("b.sock")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop((socket, listener));
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn whoever_is_dying_is_waited_for() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        // Of a daemon that was killed: its files are there, and a child has its descriptors.
        let mut lock = Lock::take(&path, "test").unwrap();
        lock.path = PathBuf::new();
        let listener = listen_on(&path).unwrap();
        let dies = thread::spawn(move || {
            thread::sleep(Duration::from_millis(50));
            drop((lock, listener));
        });
        OwnedSocket::bind(&path, Rights::default(), "test").unwrap();
        dies.join().unwrap();
    }

    #[test]
    fn a_socket_whose_backlog_is_full_is_in_use() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("a.sock");
        let (listener, _) = listen_on(&path).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let _waits = UnixStream::connect(&path).unwrap();
        let bound = OwnedSocket::bind(&path, Rights::default(), "test");
        assert!(matches!(bound, Err(SocketError::InUse(_))));
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let rest = MAX_PATH - place.path().as_os_str().as_bytes().len() - 1;
        let bind = |len| {
            let path = place.path().join("x".repeat(len));
            OwnedSocket::bind(&path, Rights::default(), "test").map(|_| ())
        };
        bind(rest).unwrap();
        let error = bind(rest + 1).unwrap_err().to_string();
        assert!(error.contains("108 bytes long"), "{error}");
    }
}
