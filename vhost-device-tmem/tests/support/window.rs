// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that uses its window.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{fence, AtomicU32, Ordering},
};

use virtio_tmem_abi::{
    Chunk, ChunkGrant, ChunkKind, Chunks, Key, Malformed, Opcode, PageResult, SlotKey, Status,
    WindowHeader, WindowOpen, GENERATIONS, QUEUE_CONTROL,
};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{stat, Daemon, Guest, Place, PAGE};

pub(crate) const CHUNK: u64 = 2 << 20;
pub(crate) const SLOTS: u32 = 512;

/// A chunk as it was granted: number and generation.
pub(crate) type Granted = (u32, u32);

/// A guest's window, as the guest has it.
pub(crate) struct Window {
    pub(crate) file: File,
    region: MmapRegion,
}

impl Window {
    pub(crate) fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.unwrap();
        let len = file.metadata().unwrap().len() as usize;
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let region = MmapRegion::from_file(offset, len).unwrap();
        Self { file, region }
    }

    /// Returns how many bytes of memory it takes.
    pub(crate) fn allocated(&self) -> u64 {
        self.file.metadata().unwrap().blocks() * 512
    }

    pub(crate) fn header(&self) -> WindowHeader {
        let mut bytes = [0; size_of::<WindowHeader>()];
        let slice = self.region.as_volatile_slice();
        slice.read_slice(&mut bytes, 0).unwrap();
        WindowHeader::read_from_bytes(&bytes).unwrap()
    }

    pub(crate) fn generation(&self, number: u32) -> u32 {
        // Whatever was read before is read before.
        fence(Ordering::SeqCst);
        let at = GENERATIONS as usize + 4 * number as usize;
        let word = self.region.get_atomic_ref::<AtomicU32>(at).unwrap();
        u32::from_le(word.load(Ordering::SeqCst))
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let slice = self.region.as_volatile_slice();
        slice.write_slice(bytes, at as usize).unwrap();
    }

    pub(crate) fn fill(&self, slot: u32, fill: u8) {
        self.write(u64::from(slot) * PAGE as u64, &[fill; PAGE]);
    }

    pub(crate) fn read(&self, slot: u32) -> [u8; PAGE] {
        let mut page = [0; PAGE];
        let slice = self.region.as_volatile_slice();
        slice.read_slice(&mut page, slot as usize * PAGE).unwrap();
        page
    }
}

/// Returns slot `n` of a chunk.
pub(crate) fn slot((number, _): Granted, n: u32) -> u32 {
    number * SLOTS + n
}

impl Guest {
    fn window_request(
        &mut self,
        opcode: Opcode,
        count: usize,
        table: &[u8],
        extra: usize,
    ) -> Answer {
        let mut bytes = self.header(opcode, 0, count).as_bytes().to_vec();
        bytes.extend(table);
        let response = self.request(usize::from(QUEUE_CONTROL), &bytes, 32 + extra);
        Answer {
            status: response.status(),
            detail: Malformed::from_wire(response.header.detail.get()),
            rest: response.rest,
        }
    }

    pub(crate) fn open_window(&mut self, flags: u32) -> Status {
        let open = WindowOpen {
            flags: flags.into(),
            ..WindowOpen::new_zeroed()
        };
        let opened = self.window_request(Opcode::WindowOpen, 1, open.as_bytes(), 0);
        opened.status
    }

    pub(crate) fn keep_window(&mut self) -> Status {
        self.window_request(Opcode::WindowKeep, 0, &[], 0).status
    }

    /// Asks for chunks, and returns what came of it.
    pub(crate) fn ask(&mut self, kind: u32, count: u32, ticket: u64) -> (Answer, Vec<Granted>) {
        let wanted = ChunkGrant {
            kind: kind.into(),
            count: count.into(),
            ticket: ticket.into(),
        };
        let extra = size_of::<Chunks>();
        let answer = self.window_request(Opcode::ChunkGrant, 1, wanted.as_bytes(), extra);
        if answer.status != Status::Ok {
            return (answer, Vec::new());
        }
        let chunks = Chunks::read_from_bytes(&answer.rest).unwrap();
        let granted = chunks.chunks[..chunks.count.get() as usize].iter();
        let granted = granted.map(|chunk| (chunk.number.get(), chunk.generation.get()));
        let granted = granted.collect();
        (answer, granted)
    }

    /// Is granted chunks: as many as wanted, or fewer.
    pub(crate) fn grant(&mut self, kind: ChunkKind, count: u32, ticket: u64) -> Vec<Granted> {
        let (answer, granted) = self.ask(kind.to_wire(), count, ticket);
        assert_eq!(answer.status, Status::Ok);
        granted
    }

    pub(crate) fn give_back(&mut self, chunks: &[Granted]) -> Answer {
        let table: Vec<_> = chunks
            .iter()
            .map(|(number, generation)| Chunk {
                number: (*number).into(),
                generation: (*generation).into(),
            })
            .collect();
        self.window_request(Opcode::ChunkReturn, table.len(), table.as_bytes(), 0)
    }

    /// Puts pages that are in slots of chunks.
    pub(crate) fn put_slots(
        &mut self,
        queue: usize,
        pool: u32,
        pages: &[(Key, u32, u32)],
    ) -> Vec<PageResult> {
        let header = self.header(Opcode::PutSlot, pool, pages.len());
        let mut bytes = header.as_bytes().to_vec();
        for (key, slot, generation) in pages {
            let entry = SlotKey {
                key: *key,
                slot: (*slot).into(),
                generation: (*generation).into(),
            };
            bytes.extend(entry.as_bytes());
        }
        let response = self.request(queue, &bytes, 32 + pages.len());
        assert_eq!(response.status(), Status::Ok);
        response.results()
    }
}

/// The answer to a request about the window.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) detail: Option<Malformed>,
    rest: Vec<u8>,
}

/// Sockets, and a directory in memory for windows.
pub(crate) struct WindowPlace {
    pub(crate) sockets: Place,
    directory: tempfile::TempDir,
}

impl WindowPlace {
    pub(crate) fn new() -> Self {
        Self {
            sockets: Place::new(),
            directory: tempfile::tempdir_in("/dev/shm").unwrap(),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn window(&self, guest: &str) -> Window {
        Window::open(&self.directory().join(format!("{guest}.window")))
    }

    /// Starts a daemon for these guests, whose windows are as `more` says.
    pub(crate) fn start(&self, guests: &[&str], more: &[&str]) -> Daemon {
        let control = self.sockets.arg("control.sock");
        let sockets: Vec<_> = guests
            .iter()
            .map(|name| self.sockets.arg(&format!("{name}.sock")))
            .collect();
        let directory = self.directory().to_str().unwrap();
        let mut args = vec!["--control-path", &control, "--window-dir", directory];
        args.extend(sockets.iter().flat_map(|socket| ["--socket-path", socket]));
        args.extend(more);
        let mut daemon = Daemon::start(&args);
        daemon.wait_for("waiting for operators");
        daemon
    }

    /// Returns what the daemon says to operators.
    pub(crate) fn stat(&self) -> serde_json::Value {
        stat(&self.sockets.path("control.sock"))
    }

    /// Returns what it says of a guest's window.
    pub(crate) fn window_stat(&self, guest: usize) -> serde_json::Value {
        self.stat()["guests"][guest]["window"].clone()
    }
}
