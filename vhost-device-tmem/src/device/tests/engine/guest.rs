// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest of an engine: the test is its driver.

use std::os::fd::AsRawFd;

use virtio_tmem_abi::QUEUE_CONTROL;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::*;
use crate::device::RingLayout;

/// A guest of which the test is the driver.
pub(super) struct Guest {
    pub(super) engine: Arc<Engine>,
    pub(super) id: GuestId,
    pub(super) file: File,
    pub(super) mem: GuestMemoryMmap,
    vrings: Vec<Vring>,
}

impl Guest {
    pub(super) fn connect(engine: &Arc<Engine>, number: u32) -> Self {
        let guest = Self::with_memory(engine, number, tmem_driver::memory(BYTES as usize).unwrap());
        guest.set_memory().unwrap();
        for vring in &guest.vrings {
            guest.start(vring.number() as u16, Some(0)).unwrap();
        }
        guest
    }

    /// A guest whose virtqueues do not run yet.
    fn with_memory(engine: &Arc<Engine>, number: u32, mem: GuestMemoryMmap) -> Self {
        let id = GuestId(number);
        engine
            .add_guest(id, &format!("guest {number}"), EPOCH, 0)
            .unwrap();
        let region = mem.iter().next().unwrap();
        let file = region.file_offset().unwrap();
        let file = file.file().try_clone().unwrap();
        let vring = |n: u16| {
            let base = u64::from(n) * Vring::bytes(RING_SIZE);
            Vring::in_memory(&mem, false, n.into(), RING_SIZE, base).unwrap()
        };
        Self {
            engine: Arc::clone(engine),
            id,
            file,
            vrings: [QUEUE_CONTROL, DATA, DATA + 1].map(vring).into(),
            mem,
        }
    }

    pub(super) fn regions(&self) -> (Vec<MemoryRegion>, Vec<OwnedFd>) {
        let host = self.mem.get_host_address(GuestAddress(0)).unwrap();
        let region = MemoryRegion {
            guest_addr: 0,
            size: BYTES,
            user_addr: host as u64,
            offset: 0,
        };
        (vec![region], vec![self.file.try_clone().unwrap().into()])
    }

    pub(super) fn set_memory(&self) -> Result<(), EngineError> {
        let (regions, fds) = self.regions();
        self.engine.set_memory(self.id, regions, fds)
    }

    pub(super) fn vring(&mut self, ring: u16) -> &mut Vring {
        let mut vrings = self.vrings.iter_mut();
        vrings
            .find(|vring| vring.number() == usize::from(ring))
            .unwrap()
    }

    pub(super) fn layout(&self, ring: u16) -> RingLayout {
        let mut vrings = self.vrings.iter();
        let vring = vrings
            .find(|vring| vring.number() == usize::from(ring))
            .unwrap();
        let at = vring.addresses();
        RingLayout {
            size: RING_SIZE,
            desc: at.desc_table_addr,
            avail: at.avail_ring_addr,
            used: at.used_ring_addr,
        }
    }

    pub(super) fn start(&self, ring: u16, base: Option<u16>) -> Result<(), EngineError> {
        let mut vrings = self.vrings.iter();
        let vring = vrings
            .find(|vring| vring.number() == usize::from(ring))
            .unwrap();
        self.start_with(ring, base, duplicate(vring.kick()), duplicate(vring.call()))
    }

    pub(super) fn start_with(
        &self,
        ring: u16,
        base: Option<u16>,
        kick: OwnedFd,
        call: OwnedFd,
    ) -> Result<(), EngineError> {
        let (kick, call) = (Some(kick), Some(call));
        self.engine
            .start_ring(self.id, ring, self.layout(ring), base, kick, call)
    }

    /// Where the next request of a virtqueue goes, and its answer.
    fn places(&mut self, ring: u16) -> (u64, u64) {
        let n = u64::from(ring * RING_SIZE + self.vring(ring).added() % RING_SIZE);
        (REQUEST + n * 8192, ANSWER + n * 8192)
    }

    /// Makes a request available.
    fn add(&mut self, ring: u16, readable: &[u8], pages: &[Part], writable: usize) {
        let (request, answer) = self.places(ring);
        self.mem
            .write_slice(readable, GuestAddress(request))
            .unwrap();
        self.mem
            .write_slice(&[UNTOUCHED; 64], GuestAddress(answer))
            .unwrap();
        let mut parts = vec![Part::readable(request, readable.len())];
        parts.extend(pages.iter().filter(|part| !part.writable));
        parts.push(Part::writable(answer, writable));
        parts.extend(pages.iter().filter(|part| part.writable));
        self.vring(ring).add(&parts).unwrap();
    }

    pub(super) fn header(opcode: Opcode, pool: u32) -> RequestHeader {
        RequestHeader {
            opcode: opcode.to_wire().into(),
            pool: pool.into(),
            count: 1.into(),
            epoch: EPOCH.into(),
            ..RequestHeader::new_zeroed()
        }
    }

    pub(super) fn create(&mut self, pool: u32, flags: u32) {
        let create = PoolCreate {
            flags: flags.into(),
            page_shift: 12,
            ..PoolCreate::new_zeroed()
        };
        let header = Self::header(Opcode::PoolCreate, pool);
        let bytes = [header.as_bytes(), create.as_bytes()].concat();
        self.add(QUEUE_CONTROL, &bytes, &[], 32);
        self.vring(QUEUE_CONTROL).kick_now();
        assert_eq!(self.vring(QUEUE_CONTROL).poll().unwrap().1, 32);
    }

    /// Makes a put or a get of one page available, whose contents are at `page`.
    pub(super) fn add_page(&mut self, ring: u16, opcode: Opcode, index: u64, page: u64) {
        let header = Self::header(opcode, 0);
        let bytes = [header.as_bytes(), key(index, 1).as_bytes()].concat();
        let part = match opcode {
            Opcode::Put => Part::readable(page, PAGE_SIZE),
            _ => Part::writable(page, PAGE_SIZE),
        };
        self.add(ring, &bytes, &[part], 33);
    }

    /// Sends a put or a get of one page, and returns what became of it.
    fn page(&mut self, ring: u16, opcode: Opcode, index: u64, page: u64) -> PageResult {
        let (_, answer) = self.places(ring);
        self.add_page(ring, opcode, index, page);
        self.vring(ring).kick_now();
        self.vring(ring).poll().unwrap();
        let at = GuestAddress(answer + 32);
        PageResult::from_wire(self.mem.read_obj(at).unwrap()).unwrap()
    }

    /// Puts a page and gets it back.
    pub(super) fn assert_works(&mut self, ring: u16) {
        let (from, to) = (0x3f_0000, 0x3f_1000);
        self.mem
            .write_slice(&[0x5a; 4096], GuestAddress(from))
            .unwrap();
        assert_eq!(self.page(ring, Opcode::Put, 77, from), PageResult::Stored);
        self.mem.write_slice(&[0; 4096], GuestAddress(to)).unwrap();
        assert_eq!(self.page(ring, Opcode::Get, 77, to), PageResult::Hit);
        let mut bytes = [0; 4096];
        self.mem.read_slice(&mut bytes, GuestAddress(to)).unwrap();
        assert_eq!(bytes, [0x5a; 4096]);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.engine.remove_guest(self.id);
    }
}

pub(super) fn duplicate(fd: &impl AsRawFd) -> OwnedFd {
    // SAFETY: The descriptor is open, and the copy is new and ours.
    unsafe {
        let copy = libc::dup(fd.as_raw_fd());
        assert!(copy >= 0);
        OwnedFd::from_raw_fd(copy)
    }
}
