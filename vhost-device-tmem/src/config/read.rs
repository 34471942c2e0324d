// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading files.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use super::{
    file::{parse_other, File, GuestFile},
    problem::{Place, Problem, Problems},
};

/// The longest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

fn problem(path: &Path, what: String) -> Problem {
    let place = Place::File {
        path: path.to_owned(),
        line: None,
        key: String::new(),
    };
    Problem { place, what }
}

fn text(path: &Path) -> Result<String, Problems> {
    let read = || {
        let about = fs::metadata(path)?;
        if !about.is_file() || about.len() > MAX_FILE {
            let what = format!("it is no file of at most {MAX_FILE} bytes");
            return Err(io::Error::other(what));
        }
        fs::read_to_string(path)
    };
    read().map_err(|error| {
        let what =
            format!("cannot be read: {error}; it has to be there, open to who reads it, and UTF-8");
        problem(path, what).into()
    })
}

/// Reads the configuration file.
///
/// # Errors
///
/// What is wrong with it first.
pub(super) fn read_file(path: &Path) -> Result<File, Problems> {
    File::parse(path, &text(path)?)
}

/// Reads another file in TOML, whose tables are `T`.
///
/// # Errors
///
/// What is wrong with it first.
pub fn read_other<T: DeserializeOwned>(path: &Path) -> Result<T, Problems> {
    parse_other(path, &text(path)?)
}

/// A guest's file, as it was found.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) file: Result<GuestFile, Problems>,
}

/// Reads the files of all guests in a directory: those whose names end in `.toml` and do not begin
/// with a dot. Returns them in the order of their names.
///
/// # Errors
///
/// Where the directory cannot be read.
pub(super) fn read_guest_files(directory: &Path) -> Result<Vec<Found>, Problems> {
    let failed = |error: io::Error| {
        let what = format!("cannot be read: {error}; it has to be a directory");
        Problems::from(problem(directory, what))
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().as_bytes();
        if name.ends_with(b".toml") && !name.starts_with(b".") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let file = text(&path).and_then(|text| GuestFile::parse(&path, &text));
        Found { path, file }
    };
    Ok(paths.into_iter().map(read).collect())
}
