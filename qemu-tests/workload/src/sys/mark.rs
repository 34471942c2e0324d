// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Markers that whoever measures this process from outside looks for.

use std::arch::{asm, x86_64::__cpuid_count};

/// A leaf of CPUID that no CPU has.
const LEAF: u32 = u32::from_le_bytes(*b"tmem");

/// Says that what is measured as `name` begins, or ends if that is empty.
///
/// The plugin `tmem-insn-plugin` sees a `nop` that nothing else executes. Of CPUID every hypervisor
/// gets to know; KVM traces it with its leaf, and 1 or 0 as that of the leaf.
pub fn mark(name: &str) {
    // SAFETY: Every CPU with 64 bits has CPUID. The other is a `nop`, which reads no memory, whatever
    // its operand; the plugin reads the name.
    unsafe {
        __cpuid_count(LEAF, u32::from(!name.is_empty()));
        asm!(
            "nop dword ptr [rax + 0x6d656d74]",
            in("rdi") name.as_ptr(),
            in("rsi") name.len(),
            options(readonly, nostack, preserves_flags),
        );
    }
}
