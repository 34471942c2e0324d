// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Blocks of instructions that are executed from the first to the last.

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// With a call.
    Call,
    /// With a return from a call.
    Return,
    /// With a return from an interrupt.
    InterruptReturn,
    /// With a jump, or without any.
    Other,
}

impl End {
    /// The end of a block of which this is the last instruction.
    pub(crate) fn of(insn: &[u8]) -> Self {
        let mut bytes = insn;
        // Prefixes that branches may have.
        while let [0x2e | 0x3e | 0x40..=0x4f | 0x66 | 0xf2 | 0xf3, rest @ ..] = bytes {
            bytes = rest;
        }
        match bytes {
            [0xe8, ..] => Self::Call,
            // The extension of the opcode says what is done with the operand: 2 is a call.
            [0xff, modrm, ..] if (modrm >> 3) & 7 == 2 => Self::Call,
            [0xc2 | 0xc3, ..] => Self::Return,
            [0xcf, ..] => Self::InterruptReturn,
            _ => Self::Other,
        }
    }
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Block {
    /// Where it begins.
    pub(crate) pc: u64,
    /// How far from there each of its instructions begins.
    pub(crate) offsets: Box<[u16]>,
    /// How long it is.
    pub(crate) len: u16,
    /// How it ends.
    pub(crate) end: End,
}

impl Block {
    /// A block of these instructions.
    pub(crate) fn new<'a>(pc: u64, insns: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut len = 0u16;
        let mut last: &[u8] = &[];
        let offsets = insns
            .map(|insn| {
                let at = len;
                // An instruction has at most 15 bytes, and a block at most 512 instructions.
                len += insn.len() as u16;
                last = insn;
                at
            })
            .collect();
        Self {
            pc,
            offsets,
            len,
            end: End::of(last),
        }
    }

    /// The number of its instructions.
    pub(crate) fn insns(&self) -> u64 {
        self.offsets.len() as u64
    }

    /// Where the next block would begin, if there were no jump.
    pub(crate) fn next(&self) -> u64 {
        self.pc.wrapping_add(u64::from(self.len))
    }

    /// How many of its instructions are left from `pc` on, if one of them begins there.
    pub(crate) fn left_from(&self, pc: u64) -> Option<u64> {
        let offset = u16::try_from(pc.checked_sub(self.pc)?).ok()?;
        let index = self.offsets.binary_search(&offset).ok()?;
        Some((self.offsets.len() - index) as u64)
    }
}

/// Whether an address is the kernel's.
pub(crate) fn is_kernel(pc: u64) -> bool {
    pc >> 63 != 0
}

/// Whether these are the first instructions of `__switch_to_asm()`: all that a call must preserve
/// is pushed, and then the stack pointer is saved in one task and loaded from another.
pub(crate) fn switches_tasks(bytes: &[u8]) -> bool {
    const PUSHED: [u8; 10] = [0x55, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
    bytes
        .windows(PUSHED.len() + 10)
        .take(8)
        .any(|window| match window.strip_prefix(&PUSHED) {
            Some([0x48, 0x89, 0xa7, _, _, _, _, 0x48, 0x8b, 0xa6]) => true,
            Some(_) | None => false,
        })
}

/// Whether the instruction is the marker: a `nop` with an operand that nothing else has.
pub(crate) fn is_marker(insn: &[u8]) -> bool {
    matches!(insn, [0x0f, 0x1f, 0x80, b't', b'm', b'e', b'm'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_told_apart() {
        for (insn, end) in [
            (&[0xe8, 1, 2, 3, 4][..], End::Call),
            (&[0xff, 0xd0], End::Call),
            (&[0x41, 0xff, 0xd3], End::Call),
            (&[0x2e, 0x2e, 0xe8, 1, 2, 3, 4], End::Call),
            (&[0xff, 0xe0], End::Other),
            (&[0xe9, 1, 2, 3, 4], End::Other),
            (&[0xc3], End::Return),
            (&[0xf3, 0xc3], End::Return),
            (&[0x48, 0xcf], End::InterruptReturn),
            (&[0x0f, 0x05], End::Other),
        ] {
            assert_eq!(End::of(insn), end, "{insn:x?}");
        }
    }

    #[test]
    fn what_is_left_is_counted_from_the_beginning_of_an_instruction() {
        let block = Block::new(0x1000, [&[1u8, 2][..], &[3], &[0xc3]].into_iter());
        assert_eq!(block.insns(), 3);
        assert_eq!(block.next(), 0x1004);
        assert_eq!(block.left_from(0x1000), Some(3));
        assert_eq!(block.left_from(0x1001), None);
        assert_eq!(block.left_from(0x1002), Some(2));
        assert_eq!(block.left_from(0x1003), Some(1));
        assert_eq!(block.left_from(0x1004), None);
        assert_eq!(block.left_from(0xfff), None);
    }

    #[test]
    fn the_switch_of_tasks_is_recognised() {
        let mut bytes = vec![0xf3, 0x0f, 0x1e, 0xfa];
        bytes.extend([0x55, 0x53, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57]);
        bytes.extend([0x48, 0x89, 0xa7, 1, 2, 0, 0, 0x48, 0x8b, 0xa6, 1, 2, 0, 0]);
        assert!(switches_tasks(&bytes));
        assert!(switches_tasks(&bytes[4..]));
        assert!(!switches_tasks(&bytes[5..]));
    }
}
