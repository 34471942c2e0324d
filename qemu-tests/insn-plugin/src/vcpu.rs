// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads registers and memory of the vCPU that a callback runs for.

use std::{
    ffi::{c_void, CStr},
    ptr::null_mut,
    slice,
};

use crate::api::{
    g_byte_array_new, g_byte_array_set_size, qemu_plugin_get_registers,
    qemu_plugin_read_memory_vaddr, qemu_plugin_read_register, Array,
};

/// Pieces of memory that are read at once while a task's name is looked for.
const PIECE: usize = 1024;

/// The size that no `task_struct` exceeds.
const TASK: usize = 16 * PIECE;

/// The bytes of a task's name, at most.
const NAME: usize = 16;

/// What is needed to read.
pub(crate) struct Reader {
    rdi: *mut c_void,
    rsi: *mut c_void,
    buffer: *mut Array<u8>,
    name_offset: Option<u64>,
}

// SAFETY: The buffer is only used by who has the reader, and a register's handle is a name that
// every thread may use.
unsafe impl Send for Reader {}

impl Default for Reader {
    fn default() -> Self {
        Self {
            rdi: null_mut(),
            rsi: null_mut(),
            // SAFETY: It may be called at any time.
            buffer: unsafe { g_byte_array_new() },
            name_offset: None,
        }
    }
}

impl Reader {
    /// Finds the registers that arguments are passed in, once there is a vCPU.
    pub(crate) fn learn_registers(&mut self) {
        // SAFETY: This is called by a callback of a vCPU. The array that is returned is not freed
        // by anyone else, and its names are strings that live for ever.
        unsafe {
            let registers = qemu_plugin_get_registers();
            let (data, len) = ((*registers).data, (*registers).len);
            for register in slice::from_raw_parts(data, len as usize) {
                match CStr::from_ptr(register.name).to_bytes() {
                    b"rdi" => self.rdi = register.handle,
                    b"rsi" => self.rsi = register.handle,
                    _ => {}
                }
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: QEMU and GLib keep the array valid, and nobody changes it meanwhile.
        unsafe {
            let Array { data, len } = &*self.buffer;
            if data.is_null() {
                return &[];
            }
            slice::from_raw_parts(*data, *len as usize)
        }
    }

    fn register(&mut self, handle: *mut c_void) -> Option<u64> {
        if handle.is_null() {
            return None;
        }
        // SAFETY: The handle is QEMU's, and the callback has asked for registers. QEMU appends.
        let read = unsafe {
            g_byte_array_set_size(self.buffer, 0);
            qemu_plugin_read_register(handle, self.buffer)
        };
        let bytes = self.bytes().first_chunk()?;
        read.then_some(u64::from_le_bytes(*bytes))
    }

    /// The first two arguments of a function that is about to begin.
    pub(crate) fn arguments(&mut self) -> Option<(u64, u64)> {
        Some((self.register(self.rdi)?, self.register(self.rsi)?))
    }

    /// Memory of the guest, if it is there.
    pub(crate) fn memory(&mut self, start: u64, len: usize) -> Option<&[u8]> {
        // SAFETY: The buffer is ours; QEMU makes it as long as it has to be.
        let read = unsafe { qemu_plugin_read_memory_vaddr(start, self.buffer, len) };
        read.then(|| self.bytes())
    }

    /// Finds where tasks have their names, if `task` is an idle one: of those the name is known.
    pub(crate) fn learn_names(&mut self, task: u64) {
        const IDLE: &[u8] = b"swapper/";
        let mut offset = 0;
        while self.name_offset.is_none() && offset < TASK {
            // Pieces overlap, lest the name lie across two.
            let Some(piece) = self.memory(task + offset as u64, PIECE + IDLE.len()) else {
                return;
            };
            let found = piece.windows(IDLE.len()).position(|bytes| bytes == IDLE);
            self.name_offset = found.map(|at| (offset + at) as u64);
            offset += PIECE;
        }
    }

    /// The name of a task.
    pub(crate) fn task_name(&mut self, task: u64) -> String {
        let name = self
            .name_offset
            .filter(|_| task != 0)
            .and_then(|offset| self.memory(task + offset, NAME));
        let name = name.unwrap_or(b"?").split(|&byte| byte == 0).next();
        String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
    }
}
