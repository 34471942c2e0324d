// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A window's memory: that there is some before it is promised, and none that was not.

use std::{ffi::CString, fs, fs::File, os::unix::fs::FileExt, path::Path};

use rustix::mount::{mount, unmount, MountFlags, UnmountFlags};
use virtio_tmem_abi::ChunkKind;

use crate::{
    socket::Rights,
    window::{create, Window, WindowFiles, CHUNK, MIN_SIZE, OVERHEAD},
};

const EPOCH: u64 = 0x1234;

/// A tmpfs of so many bytes, which takes root.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(bytes: u64) -> Self {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = CString::new(format!("size={bytes}")).unwrap();
        let (at, flags) = (directory.path(), MountFlags::empty());
        mount("tmem", at, "tmpfs", flags, &*options).unwrap();
        Self(directory)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

/// A window, and its file as the guest has it.
fn window(directory: &Path, size: u64) -> (WindowFiles, File) {
    let (files, path) = create(directory, "a", size, Rights::default()).unwrap();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path.path());
    (files, file.unwrap())
}

fn open(files: &WindowFiles) -> Window {
    let [file, book] = files
        .descriptors()
        .map(|fd| fd.try_clone_to_owned().unwrap());
    Window::open(file, book).unwrap()
}

/// The tmpfs ends in the middle of a chunk: nobody comes to touch memory that is not there.
#[test]
fn where_memory_ends_nothing_is_granted_and_nothing_dies() {
    const PART: u64 = 1 << 20;
    let tmpfs = Tmpfs::mount(OVERHEAD + CHUNK + PART);
    let (files, file) = window(tmpfs.0.path(), 8 * CHUNK);
    let window = open(&files);
    assert!(window.open_for(EPOCH, false));
    window.begin_grant(1);
    assert!(window.make_ready() && window.grant(ChunkKind::Persistent));
    assert!(!window.make_ready());
    assert!(!window.is_ready() && !window.grant(ChunkKind::Persistent));
    // The part that there was has gone back, and the window is as good as before.
    assert_eq!(window.allocated(), OVERHEAD + CHUNK);
    assert!(!window.has_failed());
    let (number, _) = window.granted()[0];
    file.write_all_at(&vec![0x77; CHUNK as usize], u64::from(number) * CHUNK)
        .unwrap();
    assert_eq!(window.take_back(number), Some(ChunkKind::Persistent));
    assert!(window.make_ready());
    drop((window, file, files));
}

#[test]
fn a_window_without_memory_for_its_head_does_not_open() {
    let tmpfs = Tmpfs::mount(OVERHEAD - (1 << 20));
    let (files, _file) = window(tmpfs.0.path(), MIN_SIZE);
    let window = open(&files);
    assert!(!window.open_for(EPOCH, false));
    assert!(window.report().is_none());
    window.trim();
    assert_eq!(window.allocated(), 0);
}

#[test]
fn what_the_guest_takes_is_taken_away_and_nothing_else() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (files, file) = window(directory.path(), 128 * CHUNK);
    let window = open(&files);
    assert!(window.open_for(EPOCH, false));
    window.begin_grant(1);
    assert!(window.make_ready() && window.grant(ChunkKind::Ephemeral));
    assert!(window.make_ready());
    assert_eq!(window.trim(), 0);
    let (number, _) = window.granted()[0];
    for chunk in 0..128 {
        file.write_all_at(&[0x99], chunk * CHUNK + 4096 * chunk)
            .unwrap();
    }
    assert!(window.allocated() > window.expected());
    assert_eq!(window.trim(), 124 * 4096);
    assert_eq!(window.allocated(), OVERHEAD + 2 * CHUNK);
    let mut byte = [0];
    let at = u64::from(number) * (CHUNK + 4096);
    file.read_exact_at(&mut byte, at).unwrap();
    assert_eq!(byte, [0x99]);
}

/// Memory that nobody wrote is found as well: of chunks that a process before was about to grant.
#[test]
fn what_was_ready_for_a_process_that_died_goes() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (files, file) = window(directory.path(), MIN_SIZE);
    let before = open(&files);
    assert!(before.open_for(EPOCH, false));
    before.begin_grant(1);
    assert!(before.make_ready());
    drop(before);
    // One that it had not come to write to.
    let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 3 * CHUNK, CHUNK).unwrap();
    let after = open(&files);
    assert_eq!(after.allocated(), OVERHEAD);
}

/// The next machine of that name finds nothing of what the one before wrote, granted or not.
#[test]
fn nothing_is_left_in_a_window_that_is_closed() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (files, file) = window(directory.path(), MIN_SIZE);
    let window = open(&files);
    assert!(window.open_for(EPOCH, false));
    for chunk in 0..4 {
        file.write_all_at(&[0x99], chunk * CHUNK + 9).unwrap();
    }
    window.close();
    assert_eq!(window.allocated(), 0);
}

#[test]
fn what_the_guest_wrote_before_a_grant_is_not_in_the_chunk() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (files, file) = window(directory.path(), MIN_SIZE);
    let window = open(&files);
    assert!(window.open_for(EPOCH, false));
    file.write_all_at(&[0x99], 2 * CHUNK + 9).unwrap();
    window.begin_grant(1);
    assert!(window.make_ready() && window.grant(ChunkKind::Persistent));
    assert_eq!(window.granted()[0].0, 2);
    let mut byte = [1];
    file.read_exact_at(&mut byte, 2 * CHUNK + 9).unwrap();
    assert_eq!(byte, [0]);
}
