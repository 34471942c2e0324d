// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What this plugin uses of QEMU's plugin interface, version 7 (QEMU 11), and of GLib.
//!
//! No package has the header of that version, and the crates that wrap it know older ones only.

use std::ffi::{c_char, c_int, c_uint, c_void};

/// The version of the interface that is meant here.
pub(crate) const VERSION: c_int = 7;

/// The callback reads no registers.
pub(crate) const NO_REGS: c_int = 0;
/// The callback reads registers.
pub(crate) const READ_REGS: c_int = 1;

/// Call back if the value is not that one.
pub(crate) const COND_NE: c_int = 3;

/// An interrupt, before the next instruction.
pub(crate) const INTERRUPT: c_int = 1;
/// An exception, of an instruction that is not over.
pub(crate) const EXCEPTION: c_int = 2;

/// A block while it is translated.
#[repr(C)]
pub(crate) struct Tb([u8; 0]);

/// An instruction while it is translated.
#[repr(C)]
pub(crate) struct Insn([u8; 0]);

/// Memory of which each vCPU has its own.
#[repr(C)]
pub(crate) struct Scoreboard([u8; 0]);

/// A number of which each vCPU has its own.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PerVcpu {
    pub(crate) score: *mut Scoreboard,
    pub(crate) offset: usize,
}

/// A register.
#[repr(C)]
pub(crate) struct Register {
    pub(crate) handle: *mut c_void,
    pub(crate) name: *const c_char,
    pub(crate) feature: *const c_char,
    pub(crate) read_only: bool,
}

/// GLib's array of some type.
#[repr(C)]
pub(crate) struct Array<T> {
    pub(crate) data: *mut T,
    pub(crate) len: c_uint,
}

type VcpuCallback = extern "C" fn(vcpu: c_uint, data: *mut c_void);
type TbCallback = extern "C" fn(tb: *mut Tb, data: *mut c_void);
type DisconCallback = extern "C" fn(vcpu: c_uint, kind: c_int, from: u64, to: u64, *mut c_void);

// SAFETY: These are functions of the header, with the types that it gives them. (Clippy does not
// know that such a block is unsafe.)
#[allow(clippy::unnecessary_safety_comment)]
unsafe extern "C" {
    pub(crate) fn qemu_plugin_register_vcpu_init_cb(id: u64, cb: VcpuCallback, data: *mut c_void);
    pub(crate) fn qemu_plugin_register_vcpu_tb_trans_cb(id: u64, cb: TbCallback, data: *mut c_void);
    pub(crate) fn qemu_plugin_register_vcpu_discon_cb(
        id: u64,
        kinds: c_int,
        cb: DisconCallback,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_tb_exec_cb(
        tb: *mut Tb,
        cb: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        tb: *mut Tb,
        cb: VcpuCallback,
        flags: c_int,
        condition: c_int,
        entry: PerVcpu,
        value: u64,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        cb: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    pub(crate) fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    pub(crate) fn qemu_plugin_tb_get_insn(tb: *const Tb, index: usize) -> *mut Insn;
    pub(crate) fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    pub(crate) fn qemu_plugin_insn_data(insn: *const Insn, to: *mut c_void, len: usize) -> usize;
    pub(crate) fn qemu_plugin_scoreboard_new(size: usize) -> *mut Scoreboard;
    pub(crate) fn qemu_plugin_u64_set(entry: PerVcpu, vcpu: c_uint, value: u64);
    pub(crate) fn qemu_plugin_num_vcpus() -> c_int;
    pub(crate) fn qemu_plugin_get_registers() -> *mut Array<Register>;
    pub(crate) fn qemu_plugin_read_register(register: *mut c_void, to: *mut Array<u8>) -> bool;
    pub(crate) fn qemu_plugin_read_memory_vaddr(at: u64, to: *mut Array<u8>, len: usize) -> bool;

    pub(crate) fn g_byte_array_new() -> *mut Array<u8>;
    pub(crate) fn g_byte_array_set_size(array: *mut Array<u8>, len: c_uint) -> *mut Array<u8>;
}
