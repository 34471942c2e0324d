// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Ways to give a name to another file.

use std::{
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

use anyhow::Result;
use rustix::fs::{linkat, open, AtFlags, Mode, OFlags, CWD};

use super::{create, Generations, Tracked};

impl Tracked {
    /// Removes the name and creates an empty file under it.
    ///
    /// Returns whether it has the inode number of the old one.
    pub fn recreate(&mut self) -> Result<bool> {
        let old = self.file.metadata()?.ino();
        fs::remove_file(&self.path)?;
        // Closing the old file lets its inode go, and its number be used again.
        self.file = File::open("/dev/null")?;
        self.file = create(&self.path)?;
        self.model.clear();
        let reused = self.file.metadata()?.ino() == old;
        self.note(format!("unlink and create, inode number reused: {reused}"));
        Ok(reused)
    }

    /// Takes the name, the content and the model of `other`; returns the old file, nameless.
    pub fn replace_by(&mut self, other: Self) -> Result<Self> {
        fs::rename(&other.path, &self.path)?;
        let mut other = other;
        other.path.clone_from(&self.path);
        std::mem::swap(self, &mut other);
        self.note("renamed over another");
        other.note("another was renamed over it");
        Ok(other)
    }
}

/// A file that has no name yet.
pub struct Anonymous(Tracked);

impl Anonymous {
    /// Opens a nameless file in `dir`.
    pub fn create(dir: &Path, number: u8, generations: &Generations) -> Result<Self> {
        let file = open(dir, OFlags::RDWR | OFlags::TMPFILE, Mode::RUSR | Mode::WUSR)?;
        Ok(Self(Tracked {
            path: dir.into(),
            file: file.into(),
            number,
            generations: generations.clone(),
            model: Vec::new(),
            history: ["nameless".into()].into(),
        }))
    }

    /// The file.
    pub fn file(&mut self) -> &mut Tracked {
        &mut self.0
    }

    /// Gives it the name `path`, which nothing has.
    pub fn link(self, path: &Path) -> Result<Tracked> {
        let mut file = self.0;
        let own = format!("/proc/self/fd/{}", file.file.as_raw_fd());
        linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        file.path = path.into();
        file.note("linked");
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_the_content_expected() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("a");
        let generations = Generations::default();
        let mut file = Tracked::create(&path, 1, &generations).unwrap();
        file.write_buffered(0, 5000).unwrap();
        file.recreate().unwrap();
        assert!(fs::read(&path).unwrap().is_empty());
        file.write_buffered(0, 300).unwrap();

        let mut other = Tracked::create(&dir.path().join("b"), 2, &generations).unwrap();
        other.write_buffered(0, 4000).unwrap();
        let old = file.replace_by(other).unwrap();
        assert_eq!(fs::read(&path).unwrap(), file.model());
        assert_eq!(old.len(), 300);

        let mut nameless = Anonymous::create(dir.path(), 3, &generations).unwrap();
        nameless.file().write_buffered(0, 6000).unwrap();
        let linked = nameless.link(&dir.path().join("c")).unwrap();
        assert_eq!(fs::read(linked.path()).unwrap(), linked.model());
    }
}
