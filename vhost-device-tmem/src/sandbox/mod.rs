// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon gives up, so that who takes it over from a guest has little of it.
//!
//! | | supervisor | worker |
//! |---|---|---|
//! | privileges | none new, no capabilities | none new, no capabilities |
//! | files (landlock) | makes and removes sockets and windows, reads its configuration, reads and runs programs | none |
//! | network (landlock) | none | none |
//! | system calls (seccomp) | what it and the worker need | no files, programs, processes or sockets |
//! | core dumps, debuggers | none | none |
//!
//! All of it is inherited: a worker has what it gives up itself and what its supervisor did.

mod syscalls;

use std::{
    io,
    path::{Path, PathBuf},
};

use caps::{CapSet, CapsHashSet};
use clap::ValueEnum;
use landlock::{
    path_beneath_rules, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use nix::sys::prctl;
use serde::{Deserialize, Serialize};

/// Whether there is a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sandbox {
    /// There is.
    #[default]
    On,
    /// There is none: to debug.
    None,
}

/// What the process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds sockets and descriptors, and starts workers.
    Supervisor,
    /// Serves guests by the descriptors that it was given.
    Worker,
}

/// What the process still needs of the file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Directories of which it removes files when it ends: those of its sockets.
    pub sockets: Vec<PathBuf>,
    /// Directories in which it makes sockets and windows while it runs, and removes them.
    pub made: Vec<PathBuf>,
    /// Files and directories of programs and libraries that it runs.
    pub programs: Vec<PathBuf>,
    /// Files and directories that it, or a program that it runs, reads.
    pub read: Vec<PathBuf>,
}

impl Places {
    /// What it takes to run `program` later, which is linked to the libraries of the system, and
    /// what is put in its place meanwhile.
    pub fn to_run(program: &Path) -> Self {
        let libraries = ["/usr", "/lib", "/lib64"].map(PathBuf::from);
        let folder = program.parent().map(Path::to_owned);
        Self {
            programs: libraries.into_iter().chain(folder).collect(),
            // What a program, its linker and its language's runtime look at when it starts.
            read: ["/etc/ld.so.cache", "/proc", "/sys"]
                .map(PathBuf::from)
                .to_vec(),
            ..Self::default()
        }
    }
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Other threads would stay outside.
    #[error("cannot enter the sandbox: the process has {0} threads already; this is a bug")]
    Threads(usize),
    /// Capabilities are still there.
    #[error("cannot give up capabilities: {0}; --sandbox none runs without a sandbox")]
    Capabilities(#[from] caps::errors::CapsError),
    /// Files are still in reach.
    #[error("cannot give up files: {0}; --sandbox none runs without a sandbox")]
    Landlock(#[from] RulesetError),
    /// System calls are still allowed.
    #[error("cannot give up system calls: {0}; --sandbox none runs without a sandbox")]
    Seccomp(#[from] seccompiler::Error),
    /// Anything else.
    #[error("cannot enter the sandbox: {0}; --sandbox none runs without a sandbox")]
    Io(#[from] io::Error),
}

/// Gives up what a process of this role does not need, for good. Returns what of it this kernel
/// cannot take: sentences for the log.
///
/// # Errors
///
/// [`SandboxError`]; some may have been given up then.
pub fn enter(role: Role, places: &Places) -> Result<Vec<String>, SandboxError> {
    // Landlock, capabilities and filters are those of a thread, and of those that it starts.
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(SandboxError::Threads(threads));
    }
    let mut missing = Vec::new();
    prctl::set_no_new_privs().map_err(io::Error::from)?;
    // No core dump, no debugger of the same user, no reading of its memory by others.
    prctl::set_dumpable(false).map_err(io::Error::from)?;
    drop_capabilities()?;
    if restrict_files(role, places)? == RulesetStatus::NotEnforced {
        missing.push(
            "this kernel has no landlock (CONFIG_SECURITY_LANDLOCK, and lsm= with it): files are \
             kept from the daemon by their owners and modes alone"
                .to_owned(),
        );
    }
    for program in syscalls::filters(role).map_err(seccompiler::Error::from)? {
        match seccompiler::apply_filter(&program) {
            Err(seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error))
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) =>
            {
                missing.push(format!(
                    "this kernel has no seccomp filters (CONFIG_SECCOMP_FILTER): no system call is \
                     kept from the daemon ({error})"
                ));
                break;
            }
            result => result?,
        }
    }
    Ok(missing)
}

/// Drops all capabilities. Those that a program of root would get again when it starts go first, if
/// that is allowed.
fn drop_capabilities() -> Result<(), SandboxError> {
    let none = CapsHashSet::new();
    if caps::has_cap(None, CapSet::Effective, caps::Capability::CAP_SETPCAP)? {
        for cap in caps::read(None, CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, cap)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &none)?;
    }
    Ok(())
}

/// Leaves of files what is in `places`, and of other things that landlock knows nothing, as far as
/// the kernel knows them.
fn restrict_files(role: Role, places: &Places) -> Result<RulesetStatus, RulesetError> {
    const KNOWN: ABI = ABI::V6;
    let none = Places::default();
    let places = match role {
        Role::Supervisor => places,
        Role::Worker => &none,
    };
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(&places.sockets, AccessFs::RemoveFile))?
        .add_rules(path_beneath_rules(
            &places.made,
            AccessFs::MakeSock
                | AccessFs::MakeReg
                | AccessFs::RemoveFile
                | AccessFs::ReadFile
                | AccessFs::WriteFile
                | AccessFs::Truncate,
        ))?
        .add_rules(path_beneath_rules(
            &places.programs,
            AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .add_rules(path_beneath_rules(
            &places.read,
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .restrict_self()?;
    Ok(status.ruleset)
}
