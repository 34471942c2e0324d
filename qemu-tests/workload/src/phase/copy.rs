// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copies of pages, to compare the cost of others with.

use std::arch::asm;

use anyhow::Result;

use super::Phases;
use crate::page::PAGE_SIZE;

/// Goes through all phases.
pub fn run(phases: &Phases, pages: u64) -> Result<()> {
    let from = vec![1u8; PAGE_SIZE];
    let mut to = vec![2u8; PAGE_SIZE];
    phases.run("copy movs", pages, || {
        (0..pages).for_each(|_| copy(&from, &mut to));
        Ok(())
    })?;
    Ok(())
}

/// Copies a page by one instruction that repeats.
fn copy(from: &[u8], to: &mut [u8]) {
    assert!(from.len() == PAGE_SIZE && to.len() == PAGE_SIZE);
    // SAFETY: Both are as long as what is copied.
    unsafe {
        asm!(
            "rep movsq",
            inout("rcx") PAGE_SIZE / 8 => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to.as_mut_ptr() => _,
            options(nostack, preserves_flags),
        );
    }
}
