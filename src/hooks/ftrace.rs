// SPDX-License-Identifier: GPL-2.0

//! Hooking functions and tracepoints of the kernel.
//!
//! - A [`Redirect`] replaces a function: whoever calls it calls the replacement. The replacement
//!   calls the original like anybody else, by [`original`]; what the module itself calls is not
//!   redirected.
//! - A [`Watch`] is told of each call of a function, with its first argument, or the first two.
//! - A [`Probe`] is told by a tracepoint.
//!
//! All of them are removed when they are dropped. Somebody may be inside a replacement for much
//! longer; see [`super::teardown`].

use core::{
    arch::asm,
    ptr, //
};

use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

use crate::bindings;

use super::symbol;

/// A function, to whoever does not call it.
pub(super) type Code = *const c_void;

/// A hook of a function by ftrace.
///
/// # Invariants
///
/// `ops` is registered, and belongs to ftrace as long as it is.
#[repr(C)]
struct Hook {
    ops: Opaque<bindings::ftrace_ops>,
    /// The replacement, or what to call with arguments.
    code: Code,
}

/// A registered [`Hook`].
struct Registered(Pin<KBox<Hook>>);

// SAFETY: A hook is only looked at by ftrace, which does so from any thread; it may be unregistered
// from any thread that may sleep.
unsafe impl Send for Registered {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for Registered {}

impl Registered {
    fn new(addr: usize, func: bindings::ftrace_func_t, flags: u32, code: Code) -> Result<Self> {
        let ops = bindings::ftrace_ops {
            func,
            flags: (flags | bindings::FTRACE_OPS_FL_PERMANENT) as c_ulong,
            ..Default::default()
        };
        let hook = KBox::pin(
            Hook {
                ops: Opaque::new(ops),
                code,
            },
            GFP_KERNEL,
        )?;
        let ops = hook.ops.get();

        // SAFETY: The operations are zeroed but for function and flags, and are not moved.
        to_result(unsafe { bindings::ftrace_set_filter_ip(ops, addr, 0, 0) })?;
        // SAFETY: The operations have a function and a filter; they are pinned, and only freed after
        // they are unregistered.
        let result = to_result(unsafe { bindings::register_ftrace_function(ops) });
        if let Err(error) = result {
            // SAFETY: It has a filter, and is not registered.
            unsafe { bindings::ftrace_free_filter(ops) };
            return Err(error);
        }
        // INVARIANT: It is registered now.
        Ok(Self(hook))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let ops = self.0.ops.get();

        // SAFETY: By the type invariants it is registered.
        while unsafe { bindings::unregister_ftrace_function(ops) } != 0 {
            // Only where ftrace has stopped itself after an error of its own. The code that it
            // calls must not go away.
            kernel::pr_err_once!("ftrace is broken, and the module cannot be unloaded: restart\n");
            // SAFETY: Hooks are dropped in process context, with no lock held that forbids to
            // sleep: unregistering one sleeps, too.
            unsafe { bindings::msleep(60_000) };
        }
        // SAFETY: It is not registered any more.
        unsafe { bindings::ftrace_free_filter(ops) };
    }
}

/// A function that is replaced.
pub(super) struct Redirect {
    _hook: Registered,
}

impl Redirect {
    /// Replaces the function with this name.
    ///
    /// May sleep.
    ///
    /// # Safety
    ///
    /// `code` must be a function of the same type as the one with this name.
    pub(super) unsafe fn new(name: &CStr, code: Code) -> Result<Self> {
        let addr = resolve(name)?;

        // SAFETY: `addr` is that of the function with this name, whose type `code` has.
        unsafe { Self::at(addr, code) }.inspect_err(|error| report(name, *error))
    }

    /// Replaces the function with this name, if this kernel has it, where nothing depends on that.
    ///
    /// `set` is given where the function goes on after it has called ftrace, before it is replaced:
    /// whoever calls that is not redirected, and does not even have to be looked at. May sleep.
    ///
    /// # Safety
    ///
    /// `code` must be a function of the same type as the one with this name. `set` must take an
    /// address to be called by a direct call: it is no place that an indirect one may go to.
    pub(super) unsafe fn optional(
        name: &CStr,
        code: Code,
        set: unsafe extern "C" fn(*mut c_void),
    ) -> Option<Self> {
        let addr = symbol::resolve(name).ok()?;

        // SAFETY: The address is that of a function of the kernel's, and `set` takes what it is given
        // by this function's requirements.
        unsafe { set(ptr::with_exposed_provenance_mut(body(addr))) };
        // SAFETY: `addr` is that of the function with this name, whose type `code` has.
        unsafe { Self::at(addr, code) }
            .inspect_err(|error| report(name, *error))
            .ok()
    }

    /// Replaces the function at this address.
    ///
    /// May sleep.
    ///
    /// # Safety
    ///
    /// `code` must be a function of the same type as the one at this address.
    pub(super) unsafe fn at(addr: usize, code: Code) -> Result<Self> {
        let flags = bindings::FTRACE_OPS_FL_IPMODIFY;

        Ok(Self {
            _hook: Registered::new(addr, Some(Self::handle), flags, code)?,
        })
    }

    /// # Safety
    ///
    /// To be called by ftrace, with the operations of a hook of this kind.
    unsafe extern "C" fn handle(
        _ip: c_ulong,
        parent_ip: c_ulong,
        ops: *mut bindings::ftrace_ops,
        regs: *mut bindings::ftrace_regs,
    ) {
        // SAFETY: ftrace calls with operations that are registered, which are in a `Hook`, and
        // with the registers of the call.
        unsafe {
            if !bindings::tmem_within_text(parent_ip, crate::this_module().as_ptr()) {
                bindings::tmem_regs_set_ip(regs, (*ops.cast::<Hook>()).code.addr());
            }
        }
    }
}

/// Calls the original of a function that is replaced.
///
/// Whatever the replacement does after that, the call stays a call. The compiler would turn one
/// that comes last into a jump, and the original would then return to whoever called the
/// replacement: it would seem to be called from outside of the module, and be redirected again. The
/// build checks what became of all such calls.
#[inline(always)]
pub(super) fn original<R>(call: impl FnOnce() -> R) -> R {
    let result = call();

    // SAFETY: It is no instruction, and does nothing; but it is something to be done afterwards.
    unsafe { asm!("", options(nostack, preserves_flags)) };
    result
}

/// Returns where a function goes on after it has called ftrace.
///
/// # Safety
///
/// `addr` must be that of a function of the kernel's.
unsafe fn body(addr: usize) -> usize {
    /// What there is in the place of the call while nobody wants it.
    const NOP: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
    /// What the call begins with.
    const CALL: u8 = 0xe8;

    // SAFETY: By the safety requirements there is a function at the address, which is longer.
    let code = unsafe { ptr::with_exposed_provenance::<[u8; 5]>(addr).read_volatile() };
    let begins_with_it = code == NOP || code[0] == CALL;

    if cfg!(CONFIG_X86_64) && begins_with_it {
        addr + code.len()
    } else {
        addr
    }
}

/// A function whose calls are watched.
pub(super) struct Watch {
    _hook: Registered,
}

impl Watch {
    /// Calls `code` with the first argument of each call of the function with this name.
    ///
    /// It is called with preemption off and in whatever context the function is called. May sleep.
    pub(super) fn new(name: &CStr, code: fn(usize)) -> Result<Self> {
        Self::with(name, Some(Self::handle), code as Code)
    }

    /// Calls `code` with the first two arguments of each call of the function with this name.
    ///
    /// It is called like that of [`Self::new`]. May sleep.
    ///
    /// # Safety
    ///
    /// `code` may be called with the arguments of any call of the function with this name.
    pub(super) unsafe fn two(name: &CStr, code: unsafe fn(usize, usize)) -> Result<Self> {
        Self::with(name, Some(Self::handle_two), code as Code)
    }

    fn with(name: &CStr, handle: bindings::ftrace_func_t, code: Code) -> Result<Self> {
        let addr = resolve(name)?;
        let hook = Registered::new(addr, handle, 0, code);

        Ok(Self {
            _hook: hook.inspect_err(|error| report(name, *error))?,
        })
    }

    /// # Safety
    ///
    /// To be called by ftrace, with the operations of a hook that [`Self::new`] made.
    unsafe extern "C" fn handle(
        _ip: c_ulong,
        _parent_ip: c_ulong,
        ops: *mut bindings::ftrace_ops,
        regs: *mut bindings::ftrace_regs,
    ) {
        // SAFETY: ftrace calls with operations that are registered, which are in a `Hook` of which
        // `code` is a `fn(usize)`, and with the registers of the call.
        unsafe {
            let code = core::mem::transmute::<Code, fn(usize)>((*ops.cast::<Hook>()).code);

            code(bindings::tmem_regs_arg(regs, 0));
        }
    }

    /// # Safety
    ///
    /// To be called by ftrace, with the operations of a hook that [`Self::two`] made.
    unsafe extern "C" fn handle_two(
        _ip: c_ulong,
        _parent_ip: c_ulong,
        ops: *mut bindings::ftrace_ops,
        regs: *mut bindings::ftrace_regs,
    ) {
        // SAFETY: ftrace calls with operations that are registered, which are in a `Hook` of which
        // `code` is what `two()` was given, and may be called with these arguments of the call.
        unsafe {
            let code = (*ops.cast::<Hook>()).code;
            let code = core::mem::transmute::<Code, unsafe fn(usize, usize)>(code);

            code(
                bindings::tmem_regs_arg(regs, 0),
                bindings::tmem_regs_arg(regs, 1),
            );
        }
    }
}

/// A tracepoint that is listened to.
///
/// # Invariants
///
/// `code` is registered at `tracepoint`, which is one of the kernel's and so never goes away.
pub(super) struct Probe {
    tracepoint: *mut bindings::tracepoint,
    code: Code,
}

// SAFETY: A tracepoint is not tied to a thread, and the kernel locks what changes its probes.
unsafe impl Send for Probe {}
// SAFETY: A shared reference gives access to nothing.
unsafe impl Sync for Probe {}

impl Probe {
    /// Calls `code` at the tracepoint with this name.
    ///
    /// May sleep.
    ///
    /// # Safety
    ///
    /// `code` must be a function that takes a pointer and then the arguments of the tracepoint.
    pub(super) unsafe fn new(name: &CStr, code: Code) -> Result<Self> {
        let tracepoint = symbol::tracepoint(name).inspect_err(|error| report(name, *error))?;

        // SAFETY: The tracepoint is valid, and the function is what it calls.
        to_result(unsafe {
            bindings::tracepoint_probe_register(tracepoint, code.cast_mut(), core::ptr::null_mut())
        })
        .inspect_err(|error| report(name, *error))?;
        // INVARIANT: It is registered now.
        Ok(Self { tracepoint, code })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `code` is registered at the tracepoint, which is valid; and
        // this is process context, where waiting for whoever is in a probe is possible.
        unsafe {
            bindings::tracepoint_probe_unregister(
                self.tracepoint,
                self.code.cast_mut(),
                core::ptr::null_mut(),
            );
            bindings::tmem_tracepoint_synchronize();
        }
    }
}

fn resolve(name: &CStr) -> Result<usize> {
    symbol::resolve(name).inspect_err(|error| report(name, *error))
}

/// Says which hook point is the trouble, and why.
fn report(name: &CStr, error: Error) {
    let why = if error == ENOENT || error == EADDRNOTAVAIL {
        "this kernel has none, or several, of that name"
    } else if error == EMLINK {
        "this kernel's compiler has made copies of it"
    } else if error == EBUSY {
        "somebody else, perhaps a live patch, has replaced it"
    } else {
        "see the error"
    };

    pr_warn!("{name:?} cannot be hooked ({error:?}): {why}\n");
}
