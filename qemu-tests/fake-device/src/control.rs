// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The socket on which the device is told how to behave.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread,
};

use crate::device::Device;

/// Listens on `path`, with a thread of its own. Each line is a command, and has a line of reply:
/// `ok`, what was asked for, or `error: …`.
///
/// # Errors
///
/// The operating system's.
pub(crate) fn listen(path: &Path, device: &Arc<Device>) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let device = Arc::clone(device);
    let thread = thread::Builder::new().name("control".into());
    let accept = move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = serve(&stream, &device) {
                eprintln!("control socket: {error}");
            }
        }
    };
    thread.spawn(accept).map(|_| ())
}

fn serve(stream: &UnixStream, device: &Device) -> io::Result<()> {
    let mut replies = stream;
    for line in BufReader::new(stream).lines() {
        let reply = match line?.parse() {
            Ok(command) => device.command(command),
            Err(error) => format!("error: {error}"),
        };
        writeln!(replies, "{reply}")?;
    }
    Ok(())
}
