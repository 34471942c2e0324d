// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tmpfs of the daemon's own, for files in memory that consist of huge pages.
//!
//! Whether a memfd gets huge pages is up to a setting of the host
//! (`/sys/kernel/mm/transparent_hugepage/shmem_enabled`), which is `never` unless somebody has
//! changed it. Each tmpfs has a setting of its own. So the daemon mounts one, but nowhere: it has no
//! path, and whoever has no descriptor of its root or of a file cannot reach it. It lives as long as
//! there is such a descriptor, in whichever process.
//!
//! Where the daemon may not mount, a child may in a user namespace of its own, and hands the mount
//! over.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    sched::{unshare, CloneFlags},
    sys::wait::waitpid,
    unistd::{fork, getegid, geteuid, ForkResult, Gid, Uid},
};
use rustix::{
    fs::{openat, unlinkat, AtFlags, Mode, OFlags},
    mount::{
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, FsMountFlags, FsOpenFlags,
        MountAttrFlags,
    },
};

use crate::link::Link;

/// How it is mounted.
const OPTIONS: &[(&CStr, &CStr)] = &[
    // Huge pages are for mappings that ask for them (`MADV_HUGEPAGE`). The others, and reads and
    // writes, take as much memory as they touch.
    (c"huge", c"advise"),
    // No limit. The usual one is half of the host's memory, and past it a mapping raises SIGBUS;
    // what may be taken is for the owners of the files to say, and for the control group.
    (c"size", c"0"),
    (c"mode", c"0700"),
];

/// The root of the mount.
#[derive(Debug)]
pub struct Tmpfs(OwnedFd);

impl Tmpfs {
    /// Mounts one, which takes `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    ///
    /// The operating system's: above all where it is not allowed, or there are no huge pages.
    pub fn mount() -> io::Result<Self> {
        let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in OPTIONS {
            fsconfig_set_string(&context, *key, *value)?;
        }
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self(root))
    }

    /// As [`Self::mount`], by a child in namespaces of its own, which takes no privileges. The
    /// process has a single thread.
    ///
    /// # Errors
    ///
    /// The operating system's, where it lets nobody have user namespaces.
    pub fn mount_in_namespace() -> io::Result<Self> {
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("the process has threads already"));
        }
        let (uid, gid) = (geteuid(), getegid());
        let (ours, theirs) = Link::pair()?;
        // SAFETY: There is no other thread that could hold a lock which the child would wait for.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(ours);
                let _ = match enter_namespace(uid, gid).and_then(|()| Self::mount()) {
                    Ok(tmpfs) => theirs.send(&Ok::<_, String>(()), &[tmpfs.0.as_fd()]),
                    Err(error) => theirs.send(&Err::<(), _>(error.to_string()), &[]),
                };
                // SAFETY: Nothing of the parent's is to be done once more here.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(theirs);
                let received = ours.receive::<Result<(), String>>();
                // It does not live longer than that takes.
                let _ = waitpid(child, None);
                let received = received.map_err(io::Error::other)?;
                received.message.map_err(io::Error::other)?;
                let root = received.descriptors.into_iter().next();
                root.map(Self)
                    .ok_or_else(|| io::Error::other("there is no mount"))
            }
        }
    }

    /// Makes a file of `len` bytes that takes no memory yet. It has no name any more: `name` is what
    /// `/proc` shows of its mappings.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn create(&self, name: &str, len: u64) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = File::from(openat(&self.0, name, flags, Mode::RUSR | Mode::WUSR)?);
        unlinkat(&self.0, name, AtFlags::empty())?;
        file.set_len(len)?;
        Ok(file)
    }
}

/// Enters a user namespace and a mount namespace, in which this process may mount. Its user and
/// group are in there what they are outside, so that those outside can use what is mounted.
fn enter_namespace(uid: Uid, gid: Gid) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
    // Without this nobody unprivileged may say which groups there are.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}
