// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A plugin of QEMU that counts the instructions a guest executes under TCG, by the path that led
//! to them.
//!
//! The guest says what is to be counted: it executes a marker, a `nop` that nothing else executes
//! (`nop dword ptr [rax + 0x6d656d74]`), with the address and the length of a name in RDI and RSI;
//! a name that is empty ends the count. What was counted goes as one line of JSON to the file that
//! the argument `out=` names. Kernel and user mode are told apart by addresses. Each task has a
//! tree of calls of its own, with the interrupts that came while it ran beside them.
//!
//! An instruction with a `rep` prefix counts once, however often it repeats. One that raises an
//! exception counts when it is executed again. Blocks in which a count begins or ends count as a
//! whole, or not at all.

mod api;
mod block;
mod record;
mod recorder;
mod vcpu;

use std::{
    ffi::{c_char, c_int, c_uint, c_void, CStr},
    fs::File,
    io::Write,
    path::PathBuf,
    ptr::null_mut,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use rustc_hash::FxHashSet;

use crate::{
    api::{
        qemu_plugin_insn_data, qemu_plugin_insn_vaddr, qemu_plugin_num_vcpus,
        qemu_plugin_register_vcpu_discon_cb, qemu_plugin_register_vcpu_init_cb,
        qemu_plugin_register_vcpu_insn_exec_cb, qemu_plugin_register_vcpu_tb_exec_cb,
        qemu_plugin_register_vcpu_tb_exec_cond_cb, qemu_plugin_register_vcpu_tb_trans_cb,
        qemu_plugin_scoreboard_new, qemu_plugin_tb_get_insn, qemu_plugin_tb_n_insns,
        qemu_plugin_u64_set, PerVcpu, Tb, COND_NE, EXCEPTION, INTERRUPT, NO_REGS, READ_REGS,
    },
    block::{is_marker, switches_tasks, Block},
    recorder::Recorder,
    vcpu::Reader,
};

/// What QEMU looks at before it installs the plugin.
#[no_mangle]
#[allow(non_upper_case_globals)]
pub static qemu_plugin_version: c_int = api::VERSION;

/// The longest name that a marker may give.
const NAME: usize = 256;

struct State {
    recorder: Recorder,
    reader: Reader,
    blocks: FxHashSet<&'static Block>,
    out: PathBuf,
}

/// Whether a record is being made, for each vCPU, where translated code can look at it.
#[derive(Clone, Copy)]
struct Switch(PerVcpu);

// SAFETY: It is only a name for memory that QEMU manages, with functions that any thread may call.
unsafe impl Send for Switch {}
// SAFETY: As above.
unsafe impl Sync for Switch {}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();
static RECORDING: OnceLock<Switch> = OnceLock::new();

fn state() -> MutexGuard<'static, State> {
    let state = STATE
        .get()
        .expect("callbacks are registered after it is set");
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn recording() -> PerVcpu {
    RECORDING.get().expect("as above").0
}

/// Says whether a record is being made.
fn set_recording(value: bool) {
    // SAFETY: The entry is one that `install()` made.
    unsafe {
        for vcpu in 0..qemu_plugin_num_vcpus() {
            qemu_plugin_u64_set(recording(), vcpu as c_uint, u64::from(value));
        }
    }
}

/// Installs the plugin; QEMU calls it.
///
/// # Safety
///
/// `arguments` must be `count` strings.
#[no_mangle]
pub unsafe extern "C" fn qemu_plugin_install(
    id: u64,
    _info: *const c_void,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let mut out = None;
    for n in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: There are that many strings.
        let argument = unsafe { CStr::from_ptr(*arguments.add(n)) }.to_string_lossy();
        match argument.split_once('=') {
            Some(("out", path)) => out = Some(PathBuf::from(path)),
            _ => {
                eprintln!("insn-plugin: unknown argument {argument}");
                return 1;
            }
        }
    }
    let Some(out) = out else {
        eprintln!("insn-plugin: the argument out=FILE is missing");
        return 1;
    };
    let state = State {
        recorder: Recorder::default(),
        reader: Reader::default(),
        blocks: FxHashSet::default(),
        out,
    };
    if STATE.set(Mutex::new(state)).is_err() {
        eprintln!("insn-plugin: it is installed already");
        return 1;
    }
    // SAFETY: This is where such calls belong, and the functions have the types of callbacks.
    unsafe {
        let score = qemu_plugin_scoreboard_new(size_of::<u64>());
        RECORDING.get_or_init(|| Switch(PerVcpu { score, offset: 0 }));
        qemu_plugin_register_vcpu_init_cb(id, vcpu_begins, null_mut());
        qemu_plugin_register_vcpu_tb_trans_cb(id, translate, null_mut());
        qemu_plugin_register_vcpu_discon_cb(id, INTERRUPT | EXCEPTION, interrupted, null_mut());
    }
    0
}

extern "C" fn vcpu_begins(_vcpu: c_uint, _data: *mut c_void) {
    state().reader.learn_registers();
}

extern "C" fn translate(tb: *mut Tb, _data: *mut c_void) {
    let (block, switches) = {
        let (pc, bytes, sizes) = read_block(tb);
        let mut rest = &bytes[..];
        let insns = sizes.iter().map(|&size| {
            let (insn, after) = rest.split_at(size);
            rest = after;
            insn
        });
        (Block::new(pc, insns), switches_tasks(&bytes))
    };
    let block = keep(block);
    let data = std::ptr::from_ref(block).cast_mut().cast::<c_void>();
    // SAFETY: `tb` is being translated, and the block lives for ever.
    unsafe {
        qemu_plugin_register_vcpu_tb_exec_cond_cb(
            tb,
            executed,
            NO_REGS,
            COND_NE,
            recording(),
            0,
            data,
        );
        if switches {
            qemu_plugin_register_vcpu_tb_exec_cb(tb, switching, READ_REGS, null_mut());
        }
    }
}

/// Reads a block, and registers the marker if it has one. Returns where it begins, its bytes, and
/// the sizes of its instructions.
fn read_block(tb: *mut Tb) -> (u64, Vec<u8>, Vec<usize>) {
    let mut pc = 0;
    let mut bytes = Vec::new();
    let mut sizes = Vec::new();
    // SAFETY: `tb` is being translated, and its instructions are valid until that is over.
    unsafe {
        for n in 0..qemu_plugin_tb_n_insns(tb) {
            let insn = qemu_plugin_tb_get_insn(tb, n);
            let mut data = [0u8; 16];
            let size = qemu_plugin_insn_data(insn, data.as_mut_ptr().cast(), data.len());
            if n == 0 {
                pc = qemu_plugin_insn_vaddr(insn);
            }
            if is_marker(&data[..size]) {
                qemu_plugin_register_vcpu_insn_exec_cb(insn, marked, READ_REGS, null_mut());
            }
            bytes.extend_from_slice(&data[..size]);
            sizes.push(size);
        }
    }
    (pc, bytes, sizes)
}

/// Keeps a block for ever, once.
fn keep(block: Block) -> &'static Block {
    let mut state = state();
    if let Some(&known) = state.blocks.get(&block) {
        return known;
    }
    let block = &*Box::leak(Box::new(block));
    state.blocks.insert(block);
    block
}

extern "C" fn executed(vcpu: c_uint, data: *mut c_void) {
    // SAFETY: `translate()` gave a block that lives for ever.
    let block: &'static Block = unsafe { &*data.cast::<Block>() };
    state().recorder.execute(vcpu as usize, block);
}

extern "C" fn interrupted(vcpu: c_uint, kind: c_int, from: u64, to: u64, _data: *mut c_void) {
    state()
        .recorder
        .interrupt(vcpu as usize, kind == EXCEPTION, from, to);
}

extern "C" fn switching(vcpu: c_uint, _data: *mut c_void) {
    let mut state = state();
    let State {
        recorder, reader, ..
    } = &mut *state;
    let Some((previous, next)) = reader.arguments() else {
        return;
    };
    reader.learn_names(previous);
    reader.learn_names(next);
    let name = if recorder.recording() {
        reader.task_name(next)
    } else {
        String::new()
    };
    recorder.switch(vcpu as usize, next, &name);
}

extern "C" fn marked(_vcpu: c_uint, _data: *mut c_void) {
    let mut state = state();
    let State {
        recorder,
        reader,
        out,
        ..
    } = &mut *state;
    if let Some(record) = recorder.end() {
        set_recording(false);
        let written = record.json().map_err(Into::into).and_then(|line| {
            let mut file = File::options().create(true).append(true).open(&*out)?;
            writeln!(file, "{line}")
        });
        if let Err(error) = written {
            eprintln!("insn-plugin: {}: {error}", out.display());
        }
    }
    let Some((start, len)) = reader.arguments() else {
        return;
    };
    let len = usize::try_from(len).unwrap_or(NAME).min(NAME);
    let name = reader.memory(start, len).unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    if !name.is_empty() {
        let tasks: Vec<_> = recorder
            .running()
            .into_iter()
            .map(|task| reader.task_name(task))
            .collect();
        recorder.begin(name, &tasks);
        set_recording(true);
    }
}
