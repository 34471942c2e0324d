// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the file begins with: whose it is.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{flock, FlockOperation};
use zerocopy::{
    little_endian::{U32, U64},
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout,
};

use super::{blocks, log, BLOCK};
use crate::size::Bytes;

const MAGIC: [u8; 8] = *b"tmemspil";

/// What the file is like.
const FORMAT: u32 = 1;

/// The longest name of a daemon, in bytes.
const MAX_NAME: usize = 512;

/// Says what the file is, and whose.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    format: U32,
    name_len: U32,
    size: U64,
    name: [u8; MAX_NAME],
    zeros: U32,
    check: U32,
}

const _: () = assert!(size_of::<Header>() <= BLOCK);

impl Header {
    fn new(size: u64, name: &str) -> Self {
        let len = name.len().min(MAX_NAME);
        let mut this = Self {
            magic: MAGIC,
            format: FORMAT.into(),
            name_len: (len as u32).into(),
            size: size.into(),
            ..Self::new_zeroed()
        };
        this.name[..len].copy_from_slice(&name.as_bytes()[..len]);
        this.check = this.computed_check().into();
        this
    }

    fn computed_check(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c(&bytes[..bytes.len() - size_of::<U32>()])
    }

    fn name(&self) -> String {
        let len = (self.name_len.get() as usize).min(MAX_NAME);
        String::from_utf8_lossy(&self.name[..len]).into_owned()
    }
}

/// Why there is no spill file.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The operating system refused.
    #[error("the spill file {path} cannot be used: {error}; {hint}")]
    Io {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// There is something else.
    #[error(
        "{0} is no spill file, and something is in it already: name another file, or remove it; of a \
         block device that is not needed any more, overwrite the first 4096 bytes with zeros"
    )]
    NotEmpty(PathBuf),
    /// It is another daemon's.
    #[error(
        "the spill file {path} is that of another daemon ({theirs}), and this one is {ours}: give each \
         daemon its own, or remove the file if that one does not run any more"
    )]
    Foreign {
        /// Its path.
        path: PathBuf,
        /// Whose it is.
        theirs: String,
        /// Who this daemon is.
        ours: String,
    },
    /// Another daemon is using it.
    #[error("the spill file {0} is in use by another process: give each daemon its own")]
    InUse(PathBuf),
    /// Another version has made it.
    #[error(
        "the spill file {path} has format {format}, and this version of the daemon has {FORMAT}: \
         remove it"
    )]
    Format {
        /// Its path.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The device is too small.
    #[error("the block device {path} has {} and is to take {}; give less", Bytes(*have), Bytes(*size))]
    Small {
        /// Its path.
        path: PathBuf,
        /// Its size.
        have: u64,
        /// What was asked for.
        size: u64,
    },
}

/// Returns who the daemon is that has this socket: no other on this host has the same.
pub fn identity(socket: &Path) -> String {
    let host = fs::read_to_string("/etc/machine-id");
    let host = host.map_or_else(|_| "unknown".to_owned(), |id| id.trim().to_owned());
    format!("{} on machine {host}", socket.display())
}

/// Opens the spill file of a daemon, and makes it if there is none. It takes up to so many bytes of its
/// disk as it is used. Nobody else has it as long as it is open.
///
/// # Errors
///
/// [`SpillError`], and nothing that was there was changed.
pub fn prepare(path: &Path, size: u64, ours: &str) -> Result<File, SpillError> {
    let failed = |hint| {
        move |error| SpillError::Io {
            path: path.to_owned(),
            error,
            hint,
        }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(failed(
            "it has to be a block device, or a file on a file system with direct I/O, that the daemon \
             may read and write",
        ))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| SpillError::InUse(path.to_owned()))?;
    let looked = failed("is it a file or a block device?");
    let about = file.metadata().map_err(looked)?;
    let is_device = about.file_type().is_block_device();
    // That of a device is not what its inode says.
    let have = (&file).seek(SeekFrom::End(0)).map_err(looked)?;
    if is_device && have < size {
        let path = path.to_owned();
        return Err(SpillError::Small { path, have, size });
    }
    let mut block = blocks(1);
    let bytes = block.as_mut_slice().as_mut_bytes();
    if have >= BLOCK as u64 {
        file.read_exact_at(bytes, 0)
            .map_err(failed("can its first block be read?"))?;
    }
    let is_new = bytes.iter().all(|byte| *byte == 0) && (is_device || have == 0);
    let header = Header::read_from_prefix(bytes).map(|(header, _)| header);
    let header = header.expect("a block is longer than a header");
    if !is_new {
        check(path, &header, ours)?;
    }
    if !is_device {
        let resize = failed("has the file system room for files of this size?");
        file.set_len(size).map_err(resize)?;
    }
    bytes.fill(0);
    let header = Header::new(size, ours);
    bytes[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    file.write_all_at(bytes, 0)
        .map_err(failed("is there room on the disk?"))?;
    Ok(file)
}

/// Looks whether a file is the spill file of a daemon.
fn check(path: &Path, header: &Header, ours: &str) -> Result<(), SpillError> {
    let path = path.to_owned();
    if header.magic != MAGIC {
        return Err(SpillError::NotEmpty(path));
    }
    let format = header.format.get();
    if format != FORMAT {
        return Err(SpillError::Format { path, format });
    }
    if header.check.get() != header.computed_check() {
        return Err(SpillError::NotEmpty(path));
    }
    let theirs = header.name();
    if theirs != Header::new(0, ours).name() {
        let ours = ours.to_owned();
        return Err(SpillError::Foreign { path, theirs, ours });
    }
    Ok(())
}

/// Returns whether a spill file may have this size.
pub(crate) fn is_size(size: u64) -> bool {
    (log::MIN_SIZE..=log::MAX_SIZE).contains(&size) && size % BLOCK as u64 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = log::MIN_SIZE;

    #[test]
    fn a_daemon_finds_its_own_file_again() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("spill");
        let file = prepare(&path, SIZE, "a").unwrap();
        let inode = |file: &File| std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let before = inode(&file);
        let error = prepare(&path, SIZE, "a").unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(file);
        // Also with another size.
        let file = prepare(&path, 2 * SIZE, "a").unwrap();
        assert_eq!(inode(&file), before);
        assert_eq!(file.metadata().unwrap().len(), 2 * SIZE);
    }

    #[test]
    fn what_is_not_its_own_stays_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("spill");
        drop(prepare(&path, SIZE, "that one").unwrap());
        let refused = |ours: &str, what: &str| {
            let before = fs::read(&path).unwrap();
            let error = prepare(&path, 2 * SIZE, ours).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert_eq!(fs::read(&path).unwrap(), before);
        };
        refused(
            "this one",
            "another daemon (that one), and this one is this one",
        );
        let other = |at: usize, to: u8| {
            let mut bytes = fs::read(&path).unwrap();
            bytes[at] = to;
            fs::write(&path, bytes).unwrap();
        };
        other(8, 9);
        refused("that one", "format 9");
        other(8, FORMAT as u8);
        other(30, b'x');
        refused("that one", "something is in it already");
        fs::write(&path, b"my letters").unwrap();
        refused("that one", "something is in it already");
        fs::write(&path, vec![1; 8192]).unwrap();
        refused("that one", "something is in it already");
    }

    #[test]
    fn a_directory_is_no_spill_file() {
        let place = tempfile::tempdir().unwrap();
        let error = prepare(place.path(), SIZE, "a").unwrap_err().to_string();
        assert!(error.contains("cannot be used"), "{error}");
    }
}
