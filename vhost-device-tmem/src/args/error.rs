// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arguments that make no sense.

use std::path::PathBuf;

/// What is wrong with the arguments, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// A size that is none.
    #[error("--capacity {0:?} is no size; give a number with a unit, such as 512MiB or 1.5GiB")]
    BadSize(String),
    /// A capacity that holds nothing.
    #[error("--capacity {0:?} is too small; give at least 1MiB")]
    TooSmall(String),
    /// A capacity that the host does not have.
    #[error(
        "--capacity {capacity:?} is {bytes} bytes, more than this host's memory of {memory} \
         bytes; give less"
    )]
    TooLarge {
        /// As it was given.
        capacity: String,
        /// As it was understood.
        bytes: u64,
        /// What the host has.
        memory: u64,
    },
    /// A capacity that the daemon's control group may not take.
    #[error(
        "--capacity {capacity:?} is {bytes} bytes, more than the {memory} bytes that {file} lets \
         the daemon have; give less, or raise that (MemoryMax= of the service)"
    )]
    OverLimit {
        /// As it was given.
        capacity: String,
        /// As it was understood.
        bytes: u64,
        /// What the control group may take.
        memory: u64,
        /// The file that says so.
        file: PathBuf,
    },
    /// A name that would be taken for a path.
    #[error(
        "--socket-path {arg:?} gives the guest the name {name:?}, and a name has no slash; choose \
         another, or write NAME=PATH if all of it is a path"
    )]
    SlashInName {
        /// As it was given.
        arg: String,
        /// What was taken for the name.
        name: String,
    },
    /// A guest without a name.
    #[error("--socket-path {0:?} gives no name for the guest; write it as NAME=PATH")]
    NoName(String),
    /// A guest without a socket.
    #[error("--socket-path {0:?} has no path; write it as NAME=PATH")]
    NoPath(String),
    /// A window of a size that is none.
    #[error(
        "--window-size {0:?} is no size of a window; give a power of two from 8MiB to 256GiB, or \
         NAME= and one"
    )]
    BadWindow(String),
    /// A window of a guest that there is not.
    #[error("--window-size {0:?} names no guest; the names are those of --socket-path")]
    WindowOfNobody(String),
    /// Two sizes for one window.
    #[error("--window-size {0:?} gives a size that was given already; give one for each guest")]
    SameWindow(String),
    /// Two guests of one name.
    #[error("two guests are named {0:?}; name them with --socket-path NAME=PATH")]
    SameName(String),
    /// One socket for two purposes.
    #[error("the path {0} is given twice; each socket needs its own")]
    SamePath(PathBuf),
}
