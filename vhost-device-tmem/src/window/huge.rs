// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether windows can consist of huge pages, which is up to how their tmpfs is mounted.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// What the host allows all files in memory, however their tmpfs is mounted.
const HOST: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Returns why windows in a directory have pages of 4 KiB, and what to do, where that is so.
pub fn small_pages(directory: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let host = fs::read_to_string(HOST).unwrap_or_default();
    why_small(directory, setting(&mounts, &device_of(directory)?)?, &host)
}

fn device_of(directory: &Path) -> Option<String> {
    let device = fs::metadata(directory).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    Some(format!("{major}:{minor}"))
}

fn why_small(directory: &Path, setting: &str, host: &str) -> Option<String> {
    let directory = directory.display();
    let small =
        format!("the windows in {directory} consist of pages of 4 KiB, which cost guests time");
    if host.is_empty() || host.contains("[deny]") {
        return Some(format!(
            "{small}: the host has no huge pages for files in memory (see {HOST})"
        ));
    }
    (setting == "never" && !host.contains("[force]")).then(|| {
        format!(
            "{small}: their tmpfs is mounted with huge=never; give them one of their own: mount -t \
             tmpfs -o huge=always,mode=755 tmem {directory}"
        )
    })
}

/// Returns whether a tmpfs has huge pages, by its number in the list of mounts: `never`, `advise`,
/// `within_size` or `always`.
fn setting<'m>(mounts: &'m str, device: &str) -> Option<&'m str> {
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(device))?;
    let (_, about) = line.split_once(" - ")?;
    let mut options = about.split(' ').nth(2)?.split(',');
    Some(
        options
            .find_map(|option| option.strip_prefix("huge="))
            .unwrap_or("never"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
        24 30 0:22 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw,size=1024k,inode64\n\
        31 30 0:27 / /run/a rw,relatime shared:5 - tmpfs tmem rw,huge=always,inode64\n\
        32 30 0:28 / /run/b rw - tmpfs tmem rw,mode=755,huge=advise\n";

    #[test]
    fn what_a_tmpfs_is_mounted_with_is_found() {
        assert_eq!(setting(MOUNTS, "0:22"), Some("never"));
        assert_eq!(setting(MOUNTS, "0:27"), Some("always"));
        assert_eq!(setting(MOUNTS, "0:28"), Some("advise"));
        assert_eq!(setting(MOUNTS, "0:2"), None);
    }

    #[test]
    fn it_says_what_to_do_where_pages_are_small() {
        let why = |setting, host| why_small(Path::new("/run/w"), setting, host);
        let usual = "always within_size advise [never] deny force";
        for setting in ["always", "within_size", "advise"] {
            assert_eq!(why(setting, usual), None);
        }
        let never = why("never", usual).unwrap();
        assert!(
            never.contains("huge=never") && never.ends_with("tmem /run/w"),
            "{never}"
        );
        assert_eq!(
            why("never", "always within_size advise never deny [force]"),
            None
        );
        let deny = "always within_size advise never [deny] force";
        assert!(why("always", deny).unwrap().contains("shmem_enabled"));
        assert!(why("always", "").unwrap().contains("shmem_enabled"));
    }

    #[test]
    fn the_tmpfs_of_every_machine_is_found() {
        let device = device_of(Path::new("/dev/shm")).unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(setting(&mounts, &device).is_some(), "{device} {mounts}");
    }
}
