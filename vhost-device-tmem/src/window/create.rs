// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Making the files of windows, which outlive whoever serves them.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    hash::{BuildHasher, RandomState},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::{fchown, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{renameat_with, RenameFlags, CWD};

use super::{book::Book, MAX_SIZE, MIN_SIZE};
use crate::socket::Rights;

/// Why there is no window.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// The size is not possible.
    #[error(
        "a window of {0} bytes is not possible: give a power of two from {MIN_SIZE} (8MiB) to \
         {MAX_SIZE} (256GiB)"
    )]
    Size(u64),
    /// The directory is on a disk.
    #[error(
        "{0} is not in memory: windows are files on a tmpfs, so give --window-dir a directory on \
         one (such as /dev/shm, or mount -t tmpfs -o huge=always,mode=755 tmem DIR)"
    )]
    NotInMemory(PathBuf),
    /// No file can be made there.
    #[error(
        "cannot make the window {path}: {error}; give --window-dir a directory on a tmpfs that \
         exists, that this daemon's user may write to, and that has a file left"
    )]
    Make {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// Something else has the name.
    #[error("{0} is there, and is no file; remove it")]
    NoFile(PathBuf),
    /// What is there is not what it should be.
    #[error("the {what} is not that of a window: {why}")]
    Foreign {
        /// The file.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The operating system refused.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// What failed.
        what: &'static str,
        /// Of which file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// A guest's window, as who keeps it for the processes that serve it has it: the file, and the one
/// in which they keep book of it.
#[derive(Debug)]
pub struct WindowFiles {
    file: OwnedFd,
    book: OwnedFd,
    identity: [u8; 16],
}

impl WindowFiles {
    /// Takes over files that another process made.
    ///
    /// # Errors
    ///
    /// [`WindowError::Foreign`] where they are something else.
    pub fn adopt(file: OwnedFd, book: OwnedFd) -> Result<Self, WindowError> {
        let failed = |error| WindowError::Io {
            what: "copy the descriptor of",
            path: "a window's book".into(),
            error,
        };
        let copy = book.try_clone().map_err(failed)?;
        let identity = Book::open(copy)?.identity();
        Ok(Self {
            file,
            book,
            identity,
        })
    }

    /// Returns what the window is known by.
    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Returns the size of the window in bytes, if it can be had.
    pub fn size(&self) -> Option<u64> {
        let file = rustix::fs::fstat(&self.file).ok()?;
        u64::try_from(file.st_size).ok()
    }

    /// Returns by what the file is told from others, which are its device and inode.
    pub fn node(&self) -> Option<(u64, u64)> {
        let file = rustix::fs::fstat(&self.file).ok()?;
        Some((file.st_dev, file.st_ino))
    }

    /// Returns the descriptors that [`Self::adopt`] takes, in its order.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.file.as_fd(), self.book.as_fd()]
    }
}

/// The path of a window's file. The file is removed when this is dropped, unless something else has
/// the path by then; who has mapped it keeps it.
#[derive(Debug)]
pub struct OwnedPath {
    path: PathBuf,
    /// Device and inode.
    node: (u64, u64),
}

impl OwnedPath {
    /// Takes over the path at which another process made the file of `window`. [`None`] if the file
    /// is not there any more.
    pub fn adopt(directory: &Path, guest: &str, window: &WindowFiles) -> Option<Self> {
        let path = path_of(directory, guest);
        let metadata = fs::symlink_metadata(&path).ok()?;
        let node = (metadata.dev(), metadata.ino());
        (window.node() == Some(node)).then_some(Self { path, node })
    }

    /// Gives the file the name that it has for another guest's name, unless a file has that.
    ///
    /// # Errors
    ///
    /// [`WindowError`], and it has the name that it had.
    pub fn rename(&mut self, guest: &str) -> Result<(), WindowError> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let path = path_of(directory, guest);
        let flags = RenameFlags::NOREPLACE;
        renameat_with(CWD, &self.path, CWD, &path, flags).map_err(|error| WindowError::Io {
            what: "give a window the name",
            path: path.clone(),
            error: error.into(),
        })?;
        self.path = path;
        Ok(())
    }

    /// Leaves the file to a process that comes after this one.
    pub fn leave(self) {
        std::mem::forget(self);
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let metadata = fs::symlink_metadata(&self.path);
        if metadata.is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.node) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the window of a guest: a file of `size` bytes on a tmpfs, for those whom `rights` let. It
/// takes no memory yet.
///
/// A file that an earlier daemon has left is not used again but removed: a guest that has it mapped
/// goes on with what it put there.
///
/// # Errors
///
/// [`WindowError`], which says what to do.
pub fn create(
    directory: &Path,
    guest: &str,
    size: u64,
    rights: Rights,
) -> Result<(WindowFiles, OwnedPath), WindowError> {
    if !size.is_power_of_two() || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(WindowError::Size(size));
    }
    let path = path_of(directory, guest);
    let failed = |what| {
        let path = path.clone();
        move |error| WindowError::Io { what, path, error }
    };
    if let Ok(metadata) = fs::symlink_metadata(&path) {
        if !metadata.file_type().is_file() {
            return Err(WindowError::NoFile(path));
        }
        fs::remove_file(&path).map_err(failed("remove the window that a daemon before left,"))?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| WindowError::Make {
            path: path.clone(),
            error,
        })?;
    let metadata = file.metadata().map_err(failed("examine"))?;
    // It is removed again from here on if something fails.
    let owned = OwnedPath {
        path: path.clone(),
        node: (metadata.dev(), metadata.ino()),
    };
    if !is_in_memory(&file).map_err(failed("examine"))? {
        return Err(WindowError::NotInMemory(directory.to_owned()));
    }
    if rights.group.is_some() {
        fchown(&file, None, rights.group).map_err(failed("give a group to"))?;
    }
    let mode = Permissions::from_mode(rights.mode);
    file.set_permissions(mode)
        .map_err(failed("set the mode of"))?;
    file.set_len(size).map_err(failed("set the size of"))?;
    let identity = random_identity();
    let book = Book::create(identity, (size >> virtio_tmem_abi::CHUNK_SHIFT) as u32);
    let book = book.map_err(failed("keep book of"))?;
    let window = WindowFiles {
        file: file.into(),
        book,
        identity,
    };
    Ok((window, owned))
}

fn path_of(directory: &Path, guest: &str) -> PathBuf {
    directory.join(format!("{guest}.window"))
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: It is plain data, for which zeros are valid, and the descriptor is open.
    unsafe {
        let mut about: libc::statfs = std::mem::zeroed();
        if libc::fstatfs(file.as_raw_fd(), &raw mut about) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(about.f_type == libc::TMPFS_MAGIC)
    }
}

/// Returns what no other window is known by: never zero.
fn random_identity() -> [u8; 16] {
    loop {
        let state = RandomState::new();
        let halves = [1, 2].map(|half| state.hash_one((half, std::process::id())));
        let mut identity = [0; 16];
        identity[..8].copy_from_slice(&halves[0].to_le_bytes());
        identity[8..].copy_from_slice(&halves[1].to_le_bytes());
        if identity != [0; 16] {
            return identity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    #[test]
    fn a_window_is_a_file_in_memory_that_takes_none() {
        let directory = directory();
        let rights = Rights {
            mode: 0o640,
            group: None,
        };
        let (window, path) = create(directory.path(), "web", 16 << 20, rights).unwrap();
        let metadata = fs::metadata(directory.path().join("web.window")).unwrap();
        assert_eq!((metadata.len(), metadata.blocks()), (16 << 20, 0));
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        let [file, book] = window
            .descriptors()
            .map(|fd| fd.try_clone_to_owned().unwrap());
        let adopted = WindowFiles::adopt(file, book).unwrap();
        assert_eq!(adopted.identity(), window.identity());
        assert_ne!(adopted.identity(), [0; 16]);
        let same = OwnedPath::adopt(directory.path(), "web", &adopted).unwrap();
        assert!(OwnedPath::adopt(directory.path(), "other", &adopted).is_none());
        same.leave();
        drop(path);
        assert!(OwnedPath::adopt(directory.path(), "web", &adopted).is_none());
    }

    #[test]
    fn what_an_earlier_daemon_left_is_replaced_and_not_used() {
        let directory = directory();
        let make = || create(directory.path(), "a", MIN_SIZE, Rights::default()).unwrap();
        let (first, path) = make();
        path.leave();
        let (second, _path) = make();
        let inode = |window: &WindowFiles| rustix::fs::fstat(&window.file).unwrap().st_ino;
        assert_ne!(inode(&first), inode(&second));
        assert_ne!(first.identity(), second.identity());
        // The one that is gone is still there for who has it.
        assert_eq!(rustix::fs::fstat(&first.file).unwrap().st_nlink, 0);
    }

    #[test]
    fn what_cannot_be_a_window_is_refused() {
        let directory = directory();
        for size in [0, 1, MIN_SIZE - 1, MIN_SIZE / 2, 3 << 22, 2 * MAX_SIZE] {
            let made = create(directory.path(), "a", size, Rights::default());
            assert!(matches!(made, Err(WindowError::Size(of)) if of == size));
        }
        fs::create_dir(directory.path().join("b.window")).unwrap();
        let made = create(directory.path(), "b", MIN_SIZE, Rights::default());
        assert!(matches!(made, Err(WindowError::NoFile(_))));
        let made = create(Path::new("/nowhere"), "d", MIN_SIZE, Rights::default());
        let why = made.unwrap_err().to_string();
        assert!(why.contains("/nowhere/d.window: No such file"), "{why}");
        assert!(why.contains("--window-dir"), "{why}");
        // The tests are not run from memory.
        let disk = Path::new(env!("CARGO_MANIFEST_DIR"));
        let made = create(disk, "c", MIN_SIZE, Rights::default());
        assert!(matches!(made, Err(WindowError::NotInMemory(_))), "{made:?}");
        assert!(!disk.join("c.window").exists());
    }
}
