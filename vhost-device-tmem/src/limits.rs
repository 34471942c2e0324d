// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the host lets the daemon have: descriptors and memory.

use std::{
    fs, io,
    path::{Component, Path, PathBuf},
};

use nix::sys::{
    mman::{mlockall, MlockAllFlags},
    resource::{getrlimit, setrlimit, Resource, RLIM_INFINITY},
};

/// Descriptors that the supervisor has open besides those of guests. (A worker has fewer, as it
/// closes those of memory that it has mapped.)
const OWN: u64 = 48;

/// Descriptors of a guest besides those of its virtqueues: socket, connection, window, the socket by
/// which a front-end is asked to map that, memory, and memory that takes its place.
const EACH_GUEST: u64 = 24;

/// Descriptors of a virtqueue.
const EACH_QUEUE: u64 = 2;

/// Descriptors of a guest's socket to which nobody is connected.
const EACH_SOCKET: u64 = 2;

/// Raises the limit of open descriptors as far as this process may, and returns it.
///
/// # Errors
///
/// The operating system's.
pub fn raise_descriptors() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// Raises the limit of locked memory as far as this process may: for itself, and for workers, which
/// have no privileges.
///
/// # Errors
///
/// The operating system's.
pub fn raise_locked() -> io::Result<()> {
    if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err() {
        let (_, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
        setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard)?;
    }
    Ok(())
}

/// Keeps what this process has mapped in memory: its program above all. To be called before pages
/// and guests' memory are mapped.
///
/// Where memory is short, and its control group is full, the kernel drops the program's own pages
/// first, since it can read them again. Then it would wait for a disk with each step that it makes to
/// give memory back. Where the limit of locked memory does not allow it, the log says so.
pub fn stay_in_memory() {
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT) {
        tracing::info!(
            "the daemon's own program may be paged out, so that it is slow to give memory back \
             where the host is short of it ({error}); raise the limit of locked memory \
             (LimitMEMLOCK= of the service, or ulimit -l)"
        );
    }
}

/// Descriptors are too few for what the daemon was told to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{guests} guests with {queues} virtqueues each need up to {need} descriptors, and {have} is \
     all that this process may have open; raise the hard limit (LimitNOFILE= of the service, or \
     ulimit -Hn)"
)]
pub struct FewDescriptors {
    /// How many there may be.
    pub have: u64,
    /// How many it takes when all guests are connected.
    pub need: u64,
    /// The guests.
    pub guests: usize,
    /// The virtqueues of each.
    pub queues: u16,
    /// Whether not even the sockets can be listened on.
    pub hopeless: bool,
}

/// Compares what so many guests need with what there may be.
///
/// # Errors
///
/// [`FewDescriptors`].
pub fn check_descriptors(have: u64, guests: usize, queues: u16) -> Result<(), FewDescriptors> {
    let count = guests as u64;
    let need = OWN + count * (EACH_GUEST + u64::from(queues) * EACH_QUEUE);
    if have >= need {
        return Ok(());
    }
    Err(FewDescriptors {
        have,
        need,
        guests,
        queues,
        hopeless: have < OWN + count * EACH_SOCKET,
    })
}

/// Whose memory it is that the daemon can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryOf {
    /// All of the host's.
    Host,
    /// What a control group may take, which this is the file of.
    ControlGroup(PathBuf),
}

/// The memory that the daemon can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// How much that is.
    pub bytes: u64,
    /// Who says so.
    pub of: MemoryOf,
}

/// Returns the memory that this process can have: the host's, or what the smallest of its control
/// groups may take.
pub fn memory() -> Memory {
    // SAFETY: Plain queries.
    let (pages, size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    let bytes = match (u64::try_from(pages), u64::try_from(size)) {
        (Ok(pages), Ok(size)) => pages.saturating_mul(size),
        // It is not known.
        _ => u64::MAX,
    };
    let host = Memory {
        bytes,
        of: MemoryOf::Host,
    };
    smallest(host, control_groups(Path::new("/")))
}

/// The file of what a control group of version 2 may take.
const MAX_OF_VERSION_2: &str = "memory.max";

fn smallest(host: Memory, limits: Vec<(u64, PathBuf)>) -> Memory {
    match limits.into_iter().min() {
        Some((bytes, file)) if bytes < host.bytes => Memory {
            bytes,
            of: MemoryOf::ControlGroup(file),
        },
        _ => host,
    }
}

/// Returns the limits of this process's control groups, of both versions, and of their parents.
/// `root` is / but in tests.
fn control_groups(root: &Path) -> Vec<(u64, PathBuf)> {
    let limits = group_files(root).into_iter().filter_map(|path| {
        let limit = fs::read_to_string(root.join(path.strip_prefix("/").unwrap_or(&path)));
        // No limit is "max", and something huge in version 1.
        Some((limit.ok()?.trim().parse().ok()?, path))
    });
    limits.collect()
}

/// Returns the directories of this process's control group of version 2, and of its parents. `root` is
/// / but in tests, and what is returned is in it.
pub(crate) fn own_groups(root: &Path) -> Vec<PathBuf> {
    let files = group_files(root).into_iter();
    let own = files.filter(|path| path.ends_with(MAX_OF_VERSION_2));
    let directories = own.filter_map(|path| {
        let directory = path.parent()?;
        Some(root.join(directory.strip_prefix("/").unwrap_or(directory)))
    });
    directories.collect()
}

/// Returns the paths of the limits of this process's control groups, of both versions, and of their
/// parents, which need not be there.
fn group_files(root: &Path) -> Vec<PathBuf> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut files = Vec::new();
    for line in groups.lines() {
        // hierarchy:controllers:path
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (kind, controller, file) = match controllers {
            "" => ("cgroup2", None, MAX_OF_VERSION_2),
            some if some.split(',').any(|name| name == "memory") => {
                ("cgroup", Some("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for (from, at) in mounts
            .lines()
            .filter_map(|line| mount(line, kind, controller))
        {
            let Ok(below) = Path::new(group).strip_prefix(from) else {
                continue;
            };
            // A group outside of the mount's namespace is shown with such steps.
            if below.components().any(|step| step == Component::ParentDir) {
                continue;
            }
            let groups = below.ancestors();
            files.extend(groups.map(|group| Path::new(at).join(group).join(file)));
        }
    }
    files
}

/// Returns what of a hierarchy a line of mountinfo shows, and where.
fn mount<'m>(line: &'m str, kind: &str, controller: Option<&str>) -> Option<(&'m str, &'m str)> {
    // number parent device from at options [tags…] - kind source superblock's-options
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (from, at) = (head.next()?, head.next()?);
    let mut tail = tail.split(' ');
    let found = tail.next()? == kind;
    let options = tail.nth(1)?;
    let there = controller.is_none_or(|name| options.split(',').any(|option| option == name));
    (found && there).then_some((from, at))
}

/// Makes the kernel less, or more, inclined to kill this process where memory runs out: `adj` is
/// -1000 (never) to 1000. Processes started later have it from this one.
///
/// # Errors
///
/// The operating system's; less than before is for those with `CAP_SYS_RESOURCE`.
pub fn adjust_oom_score(adj: i16) -> io::Result<()> {
    fs::write("/proc/self/oom_score_adj", adj.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_reckoned_with() {
        assert_eq!(check_descriptors(160, 1, 4), Ok(()));
        let few = check_descriptors(1024, 64, 4).unwrap_err();
        assert_eq!((few.need, few.hopeless), (48 + 64 * 32, false));
        let text = few.to_string();
        assert!(
            text.contains("64 guests") && text.contains("1024"),
            "{text}"
        );
        assert!(check_descriptors(175, 64, 4).unwrap_err().hopeless);
        let raised = raise_descriptors().unwrap();
        assert_eq!(
            getrlimit(Resource::RLIMIT_NOFILE).unwrap(),
            (raised, raised)
        );
    }

    /// Files below a root, and what is said of them.
    fn limits(files: &[(&str, &str)]) -> Vec<(u64, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mut limits: Vec<_> = control_groups(root.path())
            .into_iter()
            .map(|(limit, path)| (limit, path.to_str().unwrap().to_owned()))
            .collect();
        limits.sort();
        limits
    }

    const MOUNTS: &str = "\
        22 1 0:21 / /proc rw shared:1 - proc proc rw\n\
        30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
        31 1 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
        32 1 0:28 /box /mnt/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn the_limits_of_all_groups_and_their_parents_count() {
        let at = |limit, path: &str| (limit, path.to_owned());
        assert_eq!(limits(&[]), []);
        let version2 = [
            ("proc/self/cgroup", "0::/system.slice/tmem.service\n"),
            ("proc/self/mountinfo", MOUNTS),
            (
                "sys/fs/cgroup/system.slice/tmem.service/memory.max",
                "max\n",
            ),
            ("sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/other/memory.max", "1\n"),
        ];
        let slice = "/sys/fs/cgroup/system.slice/memory.max";
        assert_eq!(limits(&version2), [at(1 << 30, slice)]);
        let version1 = [
            (
                "proc/self/cgroup",
                "4:cpu:/\n3:hugetlb,memory:/box/a/b:c\n0::/\n",
            ),
            ("proc/self/mountinfo", MOUNTS),
            ("mnt/memory/a/b:c/memory.limit_in_bytes", "4096\n"),
            (
                "mnt/memory/a/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("mnt/memory/memory.limit_in_bytes", "8192\n"),
            ("sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n"),
        ];
        let limits = limits(&version1);
        assert_eq!(limits.len(), 3);
        assert_eq!(
            limits[0],
            at(4096, "/mnt/memory/a/b:c/memory.limit_in_bytes")
        );
        assert_eq!(limits[1], at(8192, "/mnt/memory/memory.limit_in_bytes"));
    }

    #[test]
    fn groups_out_of_sight_are_left_out() {
        let outside = [
            (
                "proc/self/cgroup",
                "0::/../elsewhere\nnonsense\n3:memory:/else\n",
            ),
            ("proc/self/mountinfo", MOUNTS),
            ("sys/fs/cgroup/memory.max", "1\n"),
            ("mnt/memory/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(limits(&outside), []);
    }

    #[test]
    fn the_smallest_says_how_much_there_is() {
        let host = Memory {
            bytes: 100,
            of: MemoryOf::Host,
        };
        let limit = |bytes| (bytes, PathBuf::from(format!("/{bytes}")));
        assert_eq!(smallest(host.clone(), vec![]), host);
        assert_eq!(smallest(host.clone(), vec![limit(100), limit(300)]), host);
        let smallest = smallest(host, vec![limit(90), limit(80)]);
        assert_eq!(smallest.bytes, 80);
        assert_eq!(smallest.of, MemoryOf::ControlGroup("/80".into()));
    }
}
