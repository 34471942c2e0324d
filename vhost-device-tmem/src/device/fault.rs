// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that cannot be had.
//!
//! A guest's memory is a file that somebody else has in hand. It may shrink, the file system that
//! it is on may be full when a page is touched for the first time, a page may be poisoned. The
//! kernel then sends `SIGBUS` to the thread that touched it, and that would end the daemon, with
//! what it keeps for all other guests.
//!
//! Here the guest's mapping is replaced by memory of our own, and the access is made again: whoever
//! copies gets zeros, or writes to memory that nobody reads. Then it asks [`Watch::fault`], as it
//! does after every copy, and throws the result away. Nothing of the guest is carried out any more.

use std::{
    io, ptr,
    sync::{
        atomic::{fence, AtomicU32, AtomicUsize, Ordering},
        Mutex, OnceLock, PoisonError,
    },
};

/// Mappings that can be watched at once, of all guests.
const ENTRIES: usize = 8192;

/// A mapping, for the signal handler to find.
///
/// # Invariants
///
/// `version` is odd while another field than `fault` changes. The mappings of one guest share the
/// `owner`, which is the number of the first one's entry; what happened is written to its `fault`.
struct Entry {
    version: AtomicU32,
    owner: AtomicU32,
    start: AtomicUsize,
    end: AtomicUsize,
    /// The address of the access that failed, 0 if none did.
    fault: AtomicUsize,
}

impl Entry {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            fault: AtomicUsize::new(0),
        }
    }

    /// Changes what it says. There is one writer at a time.
    fn set(&self, owner: u32, start: usize, end: usize) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.owner.store(owner, Ordering::Relaxed);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Returns the owner and the bounds if `address` is within them; [`None`] also while they
    /// change, as nobody uses a mapping then.
    fn find(&self, address: usize) -> Option<(u32, usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let owner = self.owner.load(Ordering::Relaxed);
        let start = self.start.load(Ordering::Relaxed);
        let end = self.end.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let stable = version % 2 == 0 && self.version.load(Ordering::Relaxed) == version;
        (stable && (start..end).contains(&address)).then_some((owner, start, end))
    }
}

static TABLE: [Entry; ENTRIES] = [const { Entry::new() }; ENTRIES];

/// Entries from here on were never used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Entries below that which are free. Whoever has the lock is the one writer.
static FREE: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Handles `SIGBUS` from now on.
///
/// # Errors
///
/// The operating system's.
pub(super) fn handle_bus_errors() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_bus_error;
        // SAFETY: All of it is plain data, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: The action is initialised, with a handler of the form that `SA_SIGINFO` takes,
        // which does nothing that a signal handler may not: see there.
        match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        }
    });
    done.map_err(io::Error::from_raw_os_error)
}

/// Replaces the mapping in which an access failed; where it is none of a guest, the process ends
/// as it would have without a handler.
///
/// It may run between any two instructions of any thread. So it takes no lock and no memory from
/// an allocator, and calls nothing but `mmap`, `sigaction` and `raise`, which are bare system
/// calls. The table is read without a lock.
extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: The kernel passes the description of the signal, and for a bus error it has an
    // address; of another sender's it is not looked at.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    let memory = [libc::BUS_ADRERR, libc::BUS_MCEERR_AR, libc::BUS_MCEERR_AO];
    if memory.contains(&code) && replace(address) {
        return;
    }
    // SAFETY: All of it is plain data, for which zeros are valid: the default action. The signal
    // is blocked until the handler returns, and then ends the process.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const default, ptr::null_mut());
        libc::raise(signal);
    }
}

/// Replaces the mapping around an address; false if there is none to replace, or it cannot be.
fn replace(address: usize) -> bool {
    let entries = TABLE.iter().take(USED.load(Ordering::Acquire));
    let Some((owner, start, end)) = entries.filter_map(|entry| entry.find(address)).next() else {
        return false;
    };
    let Some(owner) = TABLE.get(owner as usize) else {
        return false;
    };
    // Whoever made the access looks for it afterwards.
    owner.fault.store(address, Ordering::SeqCst);
    // All of it and not just a page, which may be a huge one that cannot be replaced in part.
    // SAFETY: Whoever watches the range promised that it is a mapping which may be replaced at any
    // time, and that it is one until it is not watched any more. It is watched, since its bounds
    // were found: whoever made the access uses it. What was mapped is shared memory that is only
    // accessed by volatile or atomic operations, to which the change looks like another's write.
    let new = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(start),
            end - start,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    new != libc::MAP_FAILED
}

/// Mappings of one guest, in which accesses that fail do not end the process.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    entries: Vec<u32>,
}

/// There are too many mappings in all.
#[derive(Debug)]
pub(crate) struct TooMany;

impl Watch {
    /// Watches mappings, given by address and length.
    ///
    /// # Errors
    ///
    /// [`TooMany`].
    ///
    /// # Safety
    ///
    /// Until the value is dropped, each is a whole mapping of the caller's, and accessed in no
    /// other way than by volatile or atomic operations; it may be replaced by other memory, with
    /// zeros in it, at any time.
    pub(crate) unsafe fn new(
        mappings: impl IntoIterator<Item = (usize, usize)>,
    ) -> Result<Self, TooMany> {
        // What is in it already is given back where there is no room for the rest.
        let mut this = Self::default();
        for (start, len) in mappings {
            let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = match free.pop() {
                Some(entry) => entry,
                None => {
                    let entry = USED.load(Ordering::Relaxed);
                    if entry == ENTRIES {
                        return Err(TooMany);
                    }
                    USED.store(entry + 1, Ordering::Release);
                    entry as u32
                }
            };
            this.entries.push(entry);
            let owner = this.entries[0];
            let there = &TABLE[entry as usize];
            there.fault.store(0, Ordering::Relaxed);
            there.set(owner, start, start + len);
        }
        Ok(this)
    }

    /// Returns the address of an access that failed, if any did.
    pub(crate) fn fault(&self) -> Option<usize> {
        let first = self.entries.first()?;
        // The handler ran on this very thread, or what another thread met is news in any case.
        match TABLE[*first as usize].fault.load(Ordering::Acquire) {
            0 => None,
            address => Some(address),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in self.entries.drain(..) {
            TABLE[entry as usize].set(0, 0, 0);
            free.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    #[test]
    fn an_entry_is_found_by_the_addresses_within_it() {
        let entry = Entry::new();
        assert_eq!(entry.find(0), None);
        entry.set(7, 0x1000, 0x3000);
        assert_eq!(entry.find(0xfff), None);
        assert_eq!(entry.find(0x1000), Some((7, 0x1000, 0x3000)));
        assert_eq!(entry.find(0x2fff), Some((7, 0x1000, 0x3000)));
        assert_eq!(entry.find(0x3000), None);
        // As seen in the middle of a change.
        entry.version.fetch_add(1, Ordering::Relaxed);
        assert_eq!(entry.find(0x1000), None);
    }

    #[test]
    fn entries_are_used_again() {
        let addresses = (1..4).map(|n| (n << 40, 0x1000));
        for _ in 0..ENTRIES {
            // SAFETY: Nothing accesses them.
            let watch = unsafe { Watch::new(addresses.clone()) }.unwrap();
            assert_eq!(watch.fault(), None);
        }
    }

    const VICTIM: &str = "TMEM_TEST_BUS_ERROR";

    /// Run in a process of its own, which it ends.
    #[test]
    fn a_bus_error_elsewhere_ends_the_process() {
        if std::env::var_os(VICTIM).is_some() {
            handle_bus_errors().unwrap();
            let file = tempfile::tempfile().unwrap();
            // SAFETY: A new mapping of a file that has no page there.
            unsafe {
                use std::os::fd::AsRawFd;
                let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
                let page = libc::mmap(ptr::null_mut(), 4096, prot, flags, file.as_raw_fd(), 0);
                assert_ne!(page, libc::MAP_FAILED);
                page.cast::<u8>().read_volatile();
            }
            unreachable!("the page is not there");
        }
        let name = "device::fault::tests::a_bus_error_elsewhere_ends_the_process";
        let status = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(VICTIM, "1")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}
