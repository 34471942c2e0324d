// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A split virtqueue, seen from the driver.

use std::{
    io,
    num::Wrapping,
    os::fd::AsRawFd,
    sync::atomic::{fence, Ordering},
    thread,
    time::{Duration, Instant},
};

use vhost::VringConfigData;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::desc::{split::Descriptor, RawDescriptor};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::connection::Connection;

/// How long a device may take.
const PATIENCE: Duration = Duration::from_secs(60);

const DESCRIPTOR: usize = size_of::<RawDescriptor>();
const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// One piece of memory of a descriptor chain.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The guest address.
    pub addr: u64,
    /// The length in bytes.
    pub len: usize,
    /// Whether the device writes it; it reads it otherwise.
    pub writable: bool,
}

impl Part {
    /// Memory that the device reads.
    pub fn readable(addr: u64, len: usize) -> Self {
        let writable = false;
        Self {
            addr,
            len,
            writable,
        }
    }

    /// Memory that the device writes.
    pub fn writable(addr: u64, len: usize) -> Self {
        Self {
            writable: true,
            ..Self::readable(addr, len)
        }
    }

    fn descriptor(&self, next: Option<u16>) -> RawDescriptor {
        let write = if self.writable {
            VRING_DESC_F_WRITE as u16
        } else {
            0
        };
        let flags = write | next.map_or(0, |_| NEXT);
        Descriptor::new(self.addr, self.len as u32, flags, next.unwrap_or(0)).into()
    }
}

/// A virtqueue.
///
/// # Invariants
///
/// The rings lie within the memory.
pub struct Queue {
    number: usize,
    size: u16,
    base: u64,
    mem: GuestMemoryMmap,
    event_idx: bool,
    kick: EventFd,
    call: EventFd,
    /// Descriptors that are not in use.
    free: Vec<u16>,
    /// For each descriptor in use, the next one of its chain.
    next: Vec<Option<u16>>,
    /// Chains made available.
    added: Wrapping<u16>,
    /// Of those, the ones that the device was notified of, or did not want to be.
    told: Wrapping<u16>,
    /// Chains found used.
    used: Wrapping<u16>,
}

impl Queue {
    /// Returns how many bytes a virtqueue of so many descriptors takes.
    pub fn bytes(size: u16) -> u64 {
        let (_, _, end) = offsets(size);
        end.next_multiple_of(4096)
    }

    /// Makes a virtqueue of `size` descriptors with its rings from `base` on, which is a multiple
    /// of 16. The device does not know of it yet, see [`Connection::start`].
    ///
    /// # Errors
    ///
    /// The operating system's, where it has no file descriptor left.
    ///
    /// # Panics
    ///
    /// If the rings do not fit into the memory.
    pub fn new(connection: &Connection, number: usize, size: u16, base: u64) -> io::Result<Self> {
        Self::in_memory(connection.mem(), connection.event_idx(), number, size, base)
    }

    /// As [`Self::new`], for a device that is not connected in this way.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    ///
    /// # Panics
    ///
    /// As [`Self::new`].
    pub fn in_memory(
        mem: &GuestMemoryMmap,
        event_idx: bool,
        number: usize,
        size: u16,
        base: u64,
    ) -> io::Result<Self> {
        let mem = mem.clone();
        let end = GuestAddress(base + Self::bytes(size) - 1);
        assert!(mem.get_host_address(end).is_ok(), "the rings do not fit");
        let queue = Self {
            number,
            size,
            base,
            mem,
            event_idx,
            kick: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            call: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            free: (0..size).rev().collect(),
            next: vec![None; usize::from(size)],
            added: Wrapping(0),
            told: Wrapping(0),
            used: Wrapping(0),
        };
        // What had the memory before is not to be taken for a ring.
        let zeros = vec![0; Self::bytes(size) as usize];
        queue.write(base, &zeros);
        Ok(queue)
    }

    /// Returns the virtqueue's number.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Returns how many descriptors it has.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Returns how many chains were made available, modulo 2¹⁶.
    pub fn added(&self) -> u16 {
        self.added.0
    }

    /// Returns the guest address of the available ring.
    pub fn avail_ring(&self) -> u64 {
        self.base + offsets(self.size).0
    }

    /// Returns the guest address of the used ring.
    pub fn used_ring(&self) -> u64 {
        self.base + offsets(self.size).1
    }

    /// Returns what the device signals when it has used chains.
    pub fn call(&self) -> &EventFd {
        &self.call
    }

    /// Returns what is signalled to notify the device.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Returns where it is, by addresses of this process.
    pub fn addresses(&self) -> VringConfigData {
        let host = |addr| self.mem.get_host_address(GuestAddress(addr));
        // INVARIANT: The rings lie within the memory.
        let host = |addr| host(addr).map_or(0, |host| host as u64);
        VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: host(self.base),
            used_ring_addr: host(self.used_ring()),
            avail_ring_addr: host(self.avail_ring()),
            log_addr: None,
        }
    }

    /// Makes a chain of `parts` available, and returns its first descriptor; [`None`] if there are
    /// not enough free descriptors. The device is not notified yet.
    pub fn add(&mut self, parts: &[Part]) -> Option<u16> {
        if parts.is_empty() || parts.len() > self.free.len() {
            return None;
        }
        let mut next = None;
        for part in parts.iter().rev() {
            let at = self.free.pop()?;
            let descriptor = part.descriptor(next);
            self.write_object(self.descriptor(at), descriptor);
            self.next[usize::from(at)] = next;
            next = Some(at);
        }
        self.publish(next?);
        next
    }

    /// As [`Self::add`], with descriptors in an indirect table that is written to `table`.
    pub fn add_indirect(&mut self, table: u64, parts: &[Part]) -> Option<u16> {
        for (n, part) in parts.iter().enumerate() {
            let next = (n + 1 < parts.len()).then_some(n as u16 + 1);
            self.write_object(table + (n * DESCRIPTOR) as u64, part.descriptor(next));
        }
        self.add_table(table, (parts.len() * DESCRIPTOR) as u32)
    }

    fn publish(&mut self, head: u16) {
        let slot = u64::from(self.added.0 % self.size);
        self.write_object(self.avail_ring() + 4 + 2 * slot, head.to_le());
        self.added += 1;
        self.store(self.avail_ring() + 2, self.added.0, Ordering::Release);
    }

    /// Makes `len` bytes of an indirect table available that is at `table` already.
    pub fn add_table(&mut self, table: u64, len: u32) -> Option<u16> {
        let head = self.free.pop()?;
        let descriptor = Descriptor::new(table, len, INDIRECT, 0);
        self.write_object(self.descriptor(head), RawDescriptor::from(descriptor));
        self.next[usize::from(head)] = None;
        self.publish(head);
        Some(head)
    }

    /// Notifies the device of the chains that were added, if it wants that. Returns whether it did.
    pub fn notify(&mut self) -> bool {
        // What was added comes before the device's wishes are read.
        fence(Ordering::SeqCst);
        let new = self.added - self.told;
        self.told = self.added;
        let wanted = if self.event_idx {
            self.added - Wrapping(self.avail_event()) - Wrapping(1) < new
        } else {
            self.load(self.used_ring()) & VRING_USED_F_NO_NOTIFY as u16 == 0
        };
        if wanted {
            self.kick_now();
        }
        wanted
    }

    /// Notifies the device whether it wants that or not.
    pub fn kick_now(&self) {
        // It can only fail where the counter is full, and then the device is notified.
        let _ = self.kick.write(1);
    }

    /// Returns the index before which the device wants a notification.
    pub fn avail_event(&self) -> u16 {
        self.load(self.used_ring() + 4 + 8 * u64::from(self.size))
    }

    /// Returns the next chain that the device used, if there is one, by its first descriptor, and
    /// the length that the device gives.
    pub fn next_used(&mut self) -> Option<(u16, u32)> {
        if Wrapping(self.load_acquire(self.used_ring() + 2)) == self.used {
            return None;
        }
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used.0 % self.size);
        let (head, len) = (self.read_u32(slot), self.read_u32(slot + 4));
        self.used += 1;
        let head = u16::try_from(head).ok().filter(|head| *head < self.size);
        let head = head.expect("the device uses what was made available");
        let mut at = Some(head);
        while let Some(descriptor) = at {
            self.free.push(descriptor);
            at = self.next[usize::from(descriptor)].take();
        }
        Some((head, len))
    }

    /// Has the processor fetch what [`Self::next_used`] will look at, which another processor has
    /// written: who looks at many virtqueues one after the other would wait for each.
    pub fn foresee(&self) {
        let slot = self.used_ring() + 4 + 8 * u64::from(self.used.0 % self.size);
        for addr in [self.used_ring(), slot] {
            let at = self.mem.get_host_address(GuestAddress(addr)).expect(WITHIN);
            #[cfg(target_arch = "x86_64")]
            // SAFETY: All x86-64 processors have the instruction, which only gives advice.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = at;
        }
    }

    /// Looks for a used chain until there is one.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] after a minute.
    pub fn poll(&mut self) -> io::Result<(u16, u32)> {
        let start = Instant::now();
        loop {
            if let Some(used) = self.next_used() {
                return Ok(used);
            }
            if start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::yield_now();
        }
    }

    /// Says whether interrupts are wanted, where there is no event index.
    pub fn want_interrupts(&self, wanted: bool) {
        let none = if wanted {
            0
        } else {
            VRING_AVAIL_F_NO_INTERRUPT as u16
        };
        self.store(self.avail_ring(), none, Ordering::Relaxed);
    }

    /// Says when the next interrupt is wanted: the used index before it.
    pub fn set_used_event(&self, event: u16) {
        let at = self.avail_ring() + 4 + 2 * u64::from(self.size);
        self.store(at, event, Ordering::Relaxed);
    }

    /// Says that no interrupts are wanted.
    pub fn poll_only(&self) {
        if self.event_idx {
            // An index that is not reached for long, and [`Self::wait`] sets anew.
            self.set_used_event((self.used - Wrapping(1)).0);
        } else {
            self.want_interrupts(false);
        }
    }

    /// Waits for the interrupt that says that there is a used chain, if there is none.
    ///
    /// # Errors
    ///
    /// The operating system's, and [`io::ErrorKind::TimedOut`] after a minute.
    pub fn wait(&mut self) -> io::Result<()> {
        if self.event_idx {
            self.set_used_event(self.used.0);
        } else {
            self.want_interrupts(true);
        }
        loop {
            // The wish comes before what is used is looked at again.
            fence(Ordering::SeqCst);
            if Wrapping(self.load_acquire(self.used_ring() + 2)) != self.used {
                break;
            }
            self.wait_call()?;
        }
        if !self.event_idx {
            self.want_interrupts(false);
        }
        Ok(())
    }

    fn wait_call(&self) -> io::Result<()> {
        let mut fd = libc::pollfd {
            fd: self.call.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `fd` is one entry.
        let ready = unsafe { libc::poll(&raw mut fd, 1, PATIENCE.as_millis() as i32) };
        match ready {
            0 => Err(io::ErrorKind::TimedOut.into()),
            1.. => self.call.read().map(|_| ()),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                error => Err(error),
            },
        }
    }

    fn descriptor(&self, n: u16) -> u64 {
        self.base + DESCRIPTOR as u64 * u64::from(n)
    }

    fn load(&self, addr: u64) -> u16 {
        self.load_with(addr, Ordering::Relaxed)
    }

    fn load_acquire(&self, addr: u64) -> u16 {
        self.load_with(addr, Ordering::Acquire)
    }

    fn load_with(&self, addr: u64, order: Ordering) -> u16 {
        let value = self.mem.load(GuestAddress(addr), order);
        u16::from_le(value.expect(WITHIN))
    }

    fn store(&self, addr: u64, value: u16, order: Ordering) {
        let stored = self.mem.store(value.to_le(), GuestAddress(addr), order);
        stored.expect(WITHIN);
    }

    fn read_u32(&self, addr: u64) -> u32 {
        let value = self.mem.read_obj(GuestAddress(addr));
        u32::from_le(value.expect(WITHIN))
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        let written = self.mem.write_slice(bytes, GuestAddress(addr));
        written.expect(WITHIN);
    }

    fn write_object<T: ByteValued>(&self, addr: u64, value: T) {
        let written = self.mem.write_obj(value, GuestAddress(addr));
        written.expect(WITHIN);
    }
}

const WITHIN: &str = "rings and tables lie within the memory";

/// Where the available and the used ring begin, and where the virtqueue ends, from its base on.
fn offsets(size: u16) -> (u64, u64, u64) {
    let size = u64::from(size);
    let avail = DESCRIPTOR as u64 * size;
    // Each ring in cache lines of its own: one side writes the one, the other the other.
    let used = (avail + 6 + 2 * size).next_multiple_of(64);
    (avail, used, used + 6 + 8 * size)
}
