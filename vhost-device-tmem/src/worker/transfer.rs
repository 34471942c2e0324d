// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Saving and restoring guests over operators' connections: the worker opens no files.

use std::{
    io::{self, BufReader, BufWriter, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    fcntl::{fcntl, FcntlArg, OFlag},
    poll::{poll, PollFd, PollFlags, PollTimeout},
};

use crate::{
    control::{answer_passed, say_ready},
    device::{Restored, SaveError, Saving, Session},
    saved::Totals,
};

/// How long the other side may take for a piece of the stream.
const PATIENCE: Duration = Duration::from_secs(60);

/// Milliseconds between two looks whether a guest stands still.
const LOOK: u16 = 50;

/// Makes a connection wait for the other side, and not for ever.
fn waiting(operator: OwnedFd) -> io::Result<UnixStream> {
    fcntl(&operator, FcntlArg::F_SETFL(OFlag::empty()))?;
    let stream = UnixStream::from(operator);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Saves a guest: says that the stream follows, or why there is none.
pub(super) fn save(name: &str, session: &Session, live: bool, operator: OwnedFd) {
    let Ok(stream) = waiting(operator) else {
        return;
    };
    let output = || {
        say_ready(&stream)?;
        Ok(BufWriter::new(&stream))
    };
    let saving = match Saving::begin(session, live, output) {
        Ok(saving) => saving,
        Err(error) => {
            let why = format!("guest {name:?} is not saved: {error}");
            return answer_passed(stream.as_fd(), Err(why));
        }
    };
    match go_on(saving, live, &stream) {
        Ok(Totals { pages, damaged, .. }) => {
            tracing::info!("guest {name:?} saved: {pages} pages");
            if damaged > 0 {
                tracing::error!("{damaged} pages of guest {name:?} cannot be read, nor saved");
            }
        }
        Err(error) => tracing::warn!("guest {name:?} is not saved: {error}"),
    }
}

fn go_on<W: Write>(
    mut saving: Saving<'_, W>,
    live: bool,
    stream: &UnixStream,
) -> Result<Totals, SaveError> {
    if live {
        if let Err(error) = empty_window(&saving, stream) {
            saving.fail(&error.to_string());
            return Err(error);
        }
        saving.write_live()?;
        saving.flush()?;
        while !saving.may_finish() {
            wait(stream)?;
        }
    }
    saving.finish()
}

/// Has the guest return the persistent chunks of its window, as long as there come to be fewer.
fn empty_window(saving: &Saving<'_, impl Write>, stream: &UnixStream) -> Result<(), SaveError> {
    let (mut least, mut since) = (u32::MAX, Instant::now());
    loop {
        match saving.recall()? {
            0 => return Ok(()),
            chunks if chunks < least => (least, since) = (chunks, Instant::now()),
            chunks if since.elapsed() > PATIENCE => return Err(SaveError::NotReturned(chunks)),
            _ => {}
        }
        wait(stream)?;
    }
}

/// Waits until it is time for another look. The other side says nothing any more, so that it can only
/// go.
fn wait(stream: &UnixStream) -> io::Result<()> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(LOOK))? {
        0 => Ok(()),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// Reads a guest's pages from an operator's connection, after having said that they may come. Returns
/// them with the connection; nothing if it was said why they are not there.
pub(super) fn restore(
    name: &str,
    session: &Session,
    operator: OwnedFd,
) -> Option<(Restored, UnixStream)> {
    let stream = waiting(operator).ok()?;
    let restored = session.may_restore().and_then(|()| {
        // Who is gone sends nothing.
        let _ = say_ready(&stream);
        session.restore(BufReader::new(&stream))
    });
    match restored {
        Ok(restored) => Some((restored, stream)),
        Err(error) => {
            let why = format!("guest {name:?} is not restored: {error}");
            tracing::warn!("{why}");
            answer_passed(stream.as_fd(), Err(why));
            None
        }
    }
}
