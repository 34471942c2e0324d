// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The marker that the plugin `tmem-insn-plugin` looks for.

use std::arch::asm;

/// Begins to count instructions under `name`, or ends it if that is empty. Without the plugin, it
/// does nothing.
pub fn mark(name: &str) {
    // SAFETY: It is a `nop`, which reads no memory, whatever its operand; the plugin reads the
    // name.
    unsafe {
        asm!(
            "nop dword ptr [rax + 0x6d656d74]",
            in("rdi") name.as_ptr(),
            in("rsi") name.len(),
            options(readonly, nostack, preserves_flags),
        );
    }
}
