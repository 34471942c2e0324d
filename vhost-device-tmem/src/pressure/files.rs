// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's files, opened once: from a sandbox they are out of reach.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    read::{droppable, limit, stalled, Readings, Room},
    Follow,
};
use crate::limits::own_groups;

/// The most that is read of a file, in bytes.
const MOST: usize = 16 << 10;

/// A file, or none where there is none.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    file: File,
    /// The log was told that it makes no sense.
    told: AtomicBool,
}

impl Source {
    fn open(path: PathBuf) -> Option<Self> {
        let file = File::open(&path).ok()?;
        Some(Self {
            path,
            file,
            told: AtomicBool::new(false),
        })
    }

    /// Reads it, and says once where that is not what it should be.
    fn read<T>(&self, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let mut bytes = vec![0; MOST];
        let count = self.file.read_at(&mut bytes, 0);
        let text = count.as_ref().ok().map(|count| &bytes[..*count]);
        let value = text
            .and_then(|text| std::str::from_utf8(text).ok())
            .and_then(parse);
        if value.is_none() && !self.told.swap(true, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::warn!("{path} is not understood, and is left out of account ({count:?})");
        }
        value
    }
}

/// A control group of version 2.
#[derive(Debug)]
struct Group {
    pressure: Option<Source>,
    current: Option<Source>,
    stat: Option<Source>,
    limits: Vec<Source>,
}

impl Group {
    fn open(directory: &Path) -> Self {
        let open = |name: &str| Source::open(directory.join(name));
        Self {
            pressure: open("memory.pressure"),
            current: open("memory.current"),
            stat: open("memory.stat"),
            limits: ["memory.high", "memory.max"]
                .into_iter()
                .filter_map(open)
                .collect(),
        }
    }

    fn room(&self) -> Option<Room> {
        let limits = self.limits.iter();
        let limits = limits.filter_map(|source| source.read(|text| limit(text).ok())?);
        let limit = limits.min()?;
        let current = self.current.as_ref()?;
        let current = current.read(|text| text.trim().parse::<u64>().ok())?;
        let stat = self.stat.as_ref();
        let droppable = stat.and_then(|stat| stat.read(droppable)).unwrap_or(0);
        Some(Room {
            limit,
            taken: current.saturating_sub(droppable),
        })
    }
}

/// What there is to read.
#[derive(Debug)]
pub struct Files {
    host: Option<Source>,
    groups: Vec<Group>,
}

impl Files {
    /// Opens what there is of what is followed. `root` is / but in tests.
    pub fn open(root: &Path, follow: Follow) -> Self {
        let host = follow.host().then(|| root.join("proc/pressure/memory"));
        let groups = if follow.groups() {
            own_groups(root)
        } else {
            Vec::new()
        };
        Self {
            host: host.and_then(Source::open),
            groups: groups.iter().map(|group| Group::open(group)).collect(),
        }
    }

    /// Returns whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.host.is_none() && self.groups.is_empty()
    }

    /// Reads all of it.
    pub fn read(&self) -> Readings {
        let groups = self.groups.iter().map(|group| group.pressure.as_ref());
        let sources = [self.host.as_ref()].into_iter().chain(groups);
        Readings {
            stalled: sources.map(|source| source?.read(stalled)).collect(),
            rooms: self.groups.iter().filter_map(Group::room).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn host_and_control_groups_are_read_again_and_again() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=";
        write(root, "proc/pressure/memory", &format!("{psi}7\n"));
        write(root, "proc/self/cgroup", "0::/a/b\n");
        let mounts = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        write(root, "proc/self/mountinfo", mounts);
        let group = "sys/fs/cgroup/a/b";
        write(
            root,
            &format!("{group}/memory.pressure"),
            &format!("{psi}9\n"),
        );
        write(root, &format!("{group}/memory.current"), "100\n");
        write(root, &format!("{group}/memory.high"), "900\n");
        write(root, &format!("{group}/memory.max"), "max\n");
        let stat = "inactive_file 10\nactive_file 20\n";
        write(root, &format!("{group}/memory.stat"), stat);
        write(root, "sys/fs/cgroup/a/memory.max", "nonsense\n");
        let files = Files::open(root, Follow::Both);
        let read = files.read();
        assert_eq!(read.stalled.first(), Some(&Some(7)));
        assert!(read.stalled.contains(&Some(9)));
        assert_eq!(
            read.rooms,
            [Room {
                limit: 900,
                taken: 70
            }]
        );
        write(root, "proc/pressure/memory", &format!("{psi}8\n"));
        assert_eq!(files.read().stalled[0], Some(8));
        write(root, "proc/pressure/memory", "nonsense\n");
        assert_eq!(files.read().stalled[0], None);
        assert!(Files::open(root, Follow::Off).is_empty());
        assert_eq!(Files::open(root, Follow::Host).read().rooms, []);
    }
}
