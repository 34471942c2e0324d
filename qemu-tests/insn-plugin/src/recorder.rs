// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Follows the guest from block to block, and so knows which calls it is in.
//!
//! Nothing is read of the guest's stack. A block that ends with a call puts its successor on the
//! stack that is kept here for each task; one that ends with a return takes off what lies above the
//! place that is returned to. What ftrace does (a return to another place than the one that was
//! called from) takes off one call.

use rustc_hash::FxHashMap;

use crate::{
    block::{is_kernel, Block, End},
    record::{Kind, Node, Record},
};

/// Deeper than any stack of the kernel: something went wrong.
const DEPTH: usize = 400;

#[derive(Clone, Copy)]
struct Frame {
    node: u32,
    returns_to: u64,
    interrupt: bool,
}

/// The block that a vCPU executed last.
#[derive(Clone, Copy)]
struct Last {
    block: &'static Block,
    node: u32,
}

#[derive(Default)]
struct Vcpu {
    task: u64,
    root: u32,
    stack: Vec<Frame>,
    last: Option<Last>,
}

/// What is known of all vCPUs.
#[derive(Default)]
pub(crate) struct Recorder {
    record: Option<Record>,
    vcpus: Vec<Vcpu>,
    sleeping: FxHashMap<u64, Vec<Frame>>,
}

impl Recorder {
    fn vcpu(&mut self, number: usize) -> &mut Vcpu {
        if self.vcpus.len() <= number {
            self.vcpus.resize_with(number + 1, Vcpu::default);
        }
        &mut self.vcpus[number]
    }

    /// The tasks that vCPUs run, by number.
    pub(crate) fn running(&self) -> Vec<u64> {
        self.vcpus.iter().map(|vcpu| vcpu.task).collect()
    }

    /// Begins a record; `tasks` are the names of the tasks that vCPUs run.
    pub(crate) fn begin(&mut self, name: String, tasks: &[String]) {
        let mut record = Record::new(name);
        self.sleeping.clear();
        for (vcpu, task) in self.vcpus.iter_mut().zip(tasks) {
            vcpu.root = record.task(task);
            vcpu.stack.clear();
            vcpu.last = None;
        }
        self.record = Some(record);
    }

    /// Ends the record.
    pub(crate) fn end(&mut self) -> Option<Record> {
        self.record.take()
    }

    /// Whether there is a record.
    pub(crate) fn recording(&self) -> bool {
        self.record.is_some()
    }

    /// A vCPU is about to switch to a task of this name.
    pub(crate) fn switch(&mut self, vcpu: usize, task: u64, name: &str) {
        self.vcpu(vcpu);
        let Self {
            record,
            vcpus,
            sleeping,
        } = self;
        let vcpu = &mut vcpus[vcpu];
        if let Some(record) = record {
            let stack = sleeping.remove(&task).unwrap_or_default();
            let before = std::mem::replace(&mut vcpu.stack, stack);
            sleeping.insert(vcpu.task, before);
            vcpu.root = record.task(name);
        }
        vcpu.task = task;
    }

    /// A vCPU is about to execute a block.
    pub(crate) fn execute(&mut self, vcpu: usize, block: &'static Block) {
        self.vcpu(vcpu);
        let Some(record) = &mut self.record else {
            return;
        };
        let vcpu = &mut self.vcpus[vcpu];
        let node = vcpu.arrive(record, block.pc);
        record.add(node, block.pc, block.insns());
        vcpu.last = Some(Last { block, node });
    }

    /// A vCPU was interrupted, or its instruction has raised an exception.
    pub(crate) fn interrupt(&mut self, vcpu: usize, exception: bool, from: u64, to: u64) {
        self.vcpu(vcpu);
        let Some(record) = &mut self.record else {
            return;
        };
        let vcpu = &mut self.vcpus[vcpu];
        let unfinished = vcpu
            .last
            .filter(|_| exception)
            .and_then(|last| Some((last, last.block.left_from(from)?)));
        if let Some((last, left)) = unfinished {
            record.take_back(last.node, last.block.pc, left);
        } else {
            vcpu.arrive(record, from);
        }
        vcpu.last = None;
        // The emulator has only left the block for a while.
        if to == from {
            return;
        }
        // What was interrupted has nothing to do with an interrupt, but everything with an
        // exception.
        let (parent, site) = if exception && is_kernel(from) {
            (vcpu.top(), from)
        } else {
            (vcpu.root, 0)
        };
        let node = record.node(Node {
            parent,
            kind: Kind::Interrupt,
            site,
            entry: to,
        });
        if !is_kernel(from) {
            vcpu.stack.clear();
        }
        vcpu.stack.push(Frame {
            node,
            returns_to: from,
            interrupt: true,
        });
    }
}

impl Vcpu {
    fn top(&self) -> u32 {
        self.stack.last().map_or(self.root, |frame| frame.node)
    }

    /// Goes on to `pc` from the last block, and returns the node that is reached.
    fn arrive(&mut self, record: &mut Record, pc: u64) -> u32 {
        if !is_kernel(pc) {
            self.stack.clear();
            self.last = None;
            return record.node(Node {
                parent: self.root,
                kind: Kind::User,
                site: 0,
                entry: 0,
            });
        }
        if let Some(Last { block, .. }) = self.last.take() {
            match block.end {
                End::Call => self.call(record, block, pc),
                End::Return => self.return_to(pc),
                End::InterruptReturn => self.return_from_interrupt(pc),
                End::Other => {}
            }
        }
        if self.stack.is_empty() || self.stack.len() > DEPTH {
            self.stack.clear();
            let node = record.node(Node {
                parent: self.root,
                kind: Kind::Entry,
                site: 0,
                entry: pc,
            });
            self.stack.push(Frame {
                node,
                returns_to: 0,
                interrupt: false,
            });
        }
        self.top()
    }

    fn call(&mut self, record: &mut Record, from: &Block, pc: u64) {
        let node = record.node(Node {
            parent: self.top(),
            kind: Kind::Call,
            site: from.pc,
            entry: pc,
        });
        self.stack.push(Frame {
            node,
            returns_to: from.next(),
            interrupt: false,
        });
    }

    fn return_to(&mut self, pc: u64) {
        let calls = self.stack.iter().rev().take_while(|frame| !frame.interrupt);
        let depth = calls
            .enumerate()
            .find_map(|(depth, frame)| (frame.returns_to == pc).then_some(depth + 1));
        match depth {
            Some(depth) => self.stack.truncate(self.stack.len() - depth),
            None if self.stack.last().is_some_and(|frame| !frame.interrupt) => {
                self.stack.pop();
            }
            None => {}
        }
    }

    fn return_from_interrupt(&mut self, pc: u64) {
        let is_it = |frame: &Frame| frame.interrupt && frame.returns_to == pc;
        let any = |frame: &Frame| frame.interrupt;
        let place = self.stack.iter().rposition(is_it);
        // The handler may have changed what is returned to.
        if let Some(place) = place.or_else(|| self.stack.iter().rposition(any)) {
            self.stack.truncate(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: u64 = 0xffff_ffff_8000_0000;

    const CALL: &[u8] = &[0xe8, 0, 0, 0, 0];
    const RETURN: &[u8] = &[0xc3];
    const IRET: &[u8] = &[0x48, 0xcf];
    const NOP: &[u8] = &[0x90];

    /// A block of the kernel that ends with `last`.
    fn block(place: u64, last: &[u8]) -> &'static Block {
        let insns = [NOP, NOP, last];
        Box::leak(Box::new(Block::new(KERNEL + place, insns.into_iter())))
    }

    fn recorder() -> Recorder {
        let mut recorder = Recorder::default();
        recorder.switch(0, 1, "one");
        recorder.begin("test".into(), &["one".into()]);
        recorder
    }

    /// The functions that lead to a block, and its instructions, for each way there.
    fn found(record: &Record, place: u64) -> Vec<(Vec<u64>, u64)> {
        record
            .insns_at(KERNEL + place)
            .into_iter()
            .map(|(path, insns)| {
                let functions = path[1..].iter().map(|(_, at)| at - KERNEL).collect();
                (functions, insns)
            })
            .collect()
    }

    #[test]
    fn calls_nest_and_returns_end_them() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, CALL));
        recorder.execute(0, block(0x200, CALL));
        recorder.execute(0, block(0x300, RETURN));
        recorder.execute(0, block(0x207, RETURN));
        recorder.execute(0, block(0x107, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x300), [(vec![0x100, 0x200, 0x300], 3)]);
        assert_eq!(found(&record, 0x207), [(vec![0x100, 0x200], 3)]);
        assert_eq!(found(&record, 0x107), [(vec![0x100], 3)]);
    }

    #[test]
    fn a_return_may_skip_calls() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, CALL));
        recorder.execute(0, block(0x200, CALL));
        recorder.execute(0, block(0x300, RETURN));
        recorder.execute(0, block(0x107, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x107), [(vec![0x100], 3)]);
    }

    #[test]
    fn a_return_to_where_nothing_was_called_from_ends_one_call() {
        // A function that ftrace redirects: its first instruction calls a trampoline, which
        // returns into a replacement, which returns to the caller.
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, CALL));
        recorder.execute(0, block(0x200, CALL));
        recorder.execute(0, block(0x800, RETURN));
        recorder.execute(0, block(0x900, RETURN));
        recorder.execute(0, block(0x107, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x900), [(vec![0x100, 0x200], 3)]);
        assert_eq!(found(&record, 0x107), [(vec![0x100], 3)]);
    }

    #[test]
    fn interrupts_return_to_what_they_have_interrupted() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, CALL));
        // The call is over; the first block of what is called is not begun yet.
        recorder.interrupt(0, false, KERNEL + 0x200, KERNEL + 0xf00);
        recorder.execute(0, block(0xf00, CALL));
        recorder.execute(0, block(0xe00, RETURN));
        recorder.execute(0, block(0xf07, IRET));
        recorder.execute(0, block(0x200, RETURN));
        recorder.execute(0, block(0x107, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0xe00), [(vec![0xf00, 0xe00], 3)]);
        assert_eq!(found(&record, 0x200), [(vec![0x100, 0x200], 3)]);
        assert_eq!(found(&record, 0x107), [(vec![0x100], 3)]);
    }

    #[test]
    fn instructions_after_an_exception_are_counted_once() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, NOP));
        recorder.interrupt(0, true, KERNEL + 0x101, KERNEL + 0xf00);
        recorder.execute(0, block(0xf00, IRET));
        recorder.execute(0, block(0x101, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x100), [(vec![0x100], 1)]);
        assert_eq!(found(&record, 0x101), [(vec![0x100], 3)]);
    }

    #[test]
    fn exceptions_lie_on_what_has_raised_them() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, NOP));
        recorder.interrupt(0, true, KERNEL + 0x101, KERNEL + 0xf00);
        recorder.execute(0, block(0xf00, CALL));
        recorder.execute(0, block(0xe00, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0xe00), [(vec![0x100, 0xf00, 0xe00], 3)]);
    }

    #[test]
    fn a_block_that_is_only_left_for_a_while_goes_on() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, RETURN));
        recorder.interrupt(0, true, KERNEL + 0x101, KERNEL + 0x101);
        recorder.execute(0, block(0x101, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x100), [(vec![0x100], 1)]);
        assert_eq!(found(&record, 0x101), [(vec![0x100], 3)]);
    }

    #[test]
    fn an_exception_may_be_left_to_elsewhere() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, CALL));
        recorder.execute(0, block(0x200, NOP));
        recorder.interrupt(0, true, KERNEL + 0x201, KERNEL + 0xf00);
        recorder.execute(0, block(0xf00, IRET));
        recorder.execute(0, block(0x240, RETURN));
        recorder.execute(0, block(0x107, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x240), [(vec![0x100, 0x200], 3)]);
        assert_eq!(found(&record, 0x107), [(vec![0x100], 3)]);
    }

    #[test]
    fn each_task_has_a_stack_of_its_own() {
        let mut recorder = recorder();
        recorder.execute(0, block(0x100, CALL));
        recorder.execute(0, block(0xa00, NOP));
        recorder.switch(0, 2, "two");
        recorder.execute(0, block(0xb00, RETURN));
        recorder.execute(0, block(0x500, CALL));
        recorder.execute(0, block(0xa00, NOP));
        recorder.switch(0, 1, "one");
        recorder.execute(0, block(0xb00, RETURN));
        recorder.execute(0, block(0x107, NOP));
        let record = recorder.end().unwrap();
        assert_eq!(found(&record, 0x500), [(vec![0x500], 3)]);
        assert_eq!(found(&record, 0x107), [(vec![0x100], 3)]);
        assert!(record.json().unwrap().contains(r#""tasks":["one","two"]"#));
    }

    #[test]
    fn what_is_done_outside_the_kernel_is_one_node() {
        let mut recorder = recorder();
        let user = Box::leak(Box::new(Block::new(0x1000, [NOP].into_iter())));
        recorder.execute(0, user);
        recorder.execute(0, block(0x100, CALL));
        recorder.execute(0, block(0x200, RETURN));
        recorder.execute(0, user);
        let record = recorder.end().unwrap();
        assert_eq!(record.insns_at(0x1000)[0].1, 2);
        assert_eq!(record.insns_at(0x1000)[0].0[1].0, Kind::User);
        assert_eq!(found(&record, 0x200), [(vec![0x100, 0x200], 3)]);
    }
}
