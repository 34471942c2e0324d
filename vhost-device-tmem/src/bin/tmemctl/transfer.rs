// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving guests to files, and restoring them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use vhost_device_tmem::{
    control::{Client, ClientError},
    saved::{Reader, Record, StreamError, Totals},
};

use crate::failure::Failure;

/// Saves a guest to a file, which is there once all of it is. `live` hears how many pages were saved
/// while the guest runs.
///
/// # Errors
///
/// [`Failure`], and no file is there that was not there before.
pub(crate) fn save(
    daemon: &Path,
    guest: &str,
    file: &Path,
    live: Option<&dyn Fn(u64)>,
) -> Result<Totals, Failure> {
    let partial = Partial::create(file)?;
    let stream = Client::connect(daemon)?.save(guest, live.is_some())?;
    let mut tee = Tee {
        input: stream,
        output: BufWriter::new(&partial.file),
        failed: None,
    };
    let read = read_all(&mut tee, live);
    if let Some(error) = tee.failed.take() {
        return Err(error.into());
    }
    let totals = read.map_err(|error| match error {
        StreamError::Failed(why) => ClientError::Refused(why).into(),
        error => Failure::Stream(error),
    })?;
    tee.output.flush()?;
    drop(tee);
    partial.keep()?;
    Ok(totals)
}

/// Restores a guest from a file, and returns what the daemon says of it.
///
/// # Errors
///
/// [`Failure`].
pub(crate) fn restore(daemon: &Path, guest: &str, file: &Path) -> Result<String, Failure> {
    let unusable = |error| Failure::File {
        path: file.to_owned(),
        error,
    };
    let mut input = File::open(file).map_err(|error| unusable(StreamError::Io(error)))?;
    // The daemon is asked for nothing that cannot come to an end.
    check(BufReader::new(&input)).map_err(unusable)?;
    let rewound = input.rewind();
    rewound.map_err(|error| unusable(StreamError::Io(error)))?;
    Ok(Client::connect(daemon)?.restore(guest, &mut input)?)
}

/// Looks whether a stream is whole, and nothing follows it.
fn check(mut input: impl Read) -> Result<(), StreamError> {
    read_all(&mut input, None)?;
    match input.read(&mut [0]).map_err(StreamError::Io)? {
        0 => Ok(()),
        _ => Err(StreamError::Trailing),
    }
}

fn read_all(input: impl Read, live: Option<&dyn Fn(u64)>) -> Result<Totals, StreamError> {
    let mut reader = Reader::new(input)?;
    loop {
        match (reader.read_record()?, live) {
            (Record::End(totals), _) => return Ok(totals),
            (Record::Live { pages }, Some(live)) => live(pages),
            _ => {}
        }
    }
}

/// A file that is not whole yet, beside the one that it is to become. It is gone if it does not.
struct Partial {
    file: File,
    path: PathBuf,
    becomes: PathBuf,
    kept: bool,
}

impl Partial {
    fn create(becomes: &Path) -> io::Result<Self> {
        let mut path = becomes.as_os_str().to_owned();
        path.push(".partial");
        let path = PathBuf::from(path);
        let mut options = OpenOptions::new();
        // Guests' memory is nobody else's business.
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        Ok(Self {
            file: options.open(&path)?,
            path,
            becomes: becomes.to_owned(),
            kept: false,
        })
    }

    fn keep(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.becomes)?;
        self.kept = true;
        let parent = self.becomes.parent().filter(|it| *it != Path::new(""));
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Writes what is read.
struct Tee<R, W> {
    input: R,
    output: W,
    failed: Option<io::Error>,
}

impl<R: Read, W: Write> Read for Tee<R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        if let Err(error) = self.output.write_all(&buffer[..len]) {
            self.failed = Some(error);
            return Err(io::Error::other("what is read cannot be written"));
        }
        Ok(len)
    }
}
