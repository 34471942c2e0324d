#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Checks that the module calls the originals of what it hooks, and never jumps to them.

    scripts/in-toolbox scripts/check_originals.py OBJECT

OBJECT is the module as it was linked. A call that a function makes last may be turned into a jump
by the compiler, which nothing in the source shows. The original then seems to be called by whoever
called the hook: it is redirected to the hook once more, and once more again.

The originals are

- the kernel's functions that the object refers to, and whose name it has as a string as well: that
  is how they are looked up to be hooked;
- what the object calls by a static call of its own, and its functions that do so;
- whatever a function of the module's `hooks` calls indirectly: operations of filesystems and of
  swap areas.
"""

import re
import subprocess
import sys
from collections.abc import Iterator

OBJDUMP = ("llvm-objdump-19", "-d", "-r", "--demangle", "--no-show-raw-insn")

# Where a branch goes that has its target from a register or from memory.
INDIRECT = "an address"

# How the functions of the module's hooks are named.
HOOKS = "virtio_tmem::hooks::"

# Called by ftrace, and calls on to functions of the module's own.
NO_REPLACEMENTS = {
    "<virtio_tmem::hooks::ftrace::Watch>::handle",
    "<virtio_tmem::hooks::ftrace::Watch>::handle_two",
}

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
BRANCH = re.compile(r"^\s*[0-9a-f]+:\s+(?:cs\s+|bnd\s+|notrack\s+)*(call|j[a-z]+)q?\s+(.*)$")
RELOCATION = re.compile(r"^\s*[0-9a-f]+:\s+R_X86_64_(?:PLT32|PC32)\s+(.*?)[-+]0x[0-9a-f]+$")
THUNK = re.compile(r"__x86_indirect_(jump_|call_)?thunk_")


def output(*command: str) -> list[str]:
    """The lines that a command prints."""
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.splitlines()


def branches(path: str) -> Iterator[tuple[str, bool, str]]:
    """All branches: the function they are in, whether they are calls, and where they go to."""
    function = ""
    branch: re.Match[str] | None = None
    for line in output(*OBJDUMP, path):
        if found := FUNCTION.match(line):
            function, branch = found[1], None
        elif found := BRANCH.match(line):
            branch = found
            if found[2].startswith("*"):
                yield function, found[1] == "call", INDIRECT
        elif branch is not None and (found := RELOCATION.match(line)):
            to = INDIRECT if THUNK.match(found[1]) else found[1]
            yield function, branch[1] == "call", to
            branch = None


def hooked(path: str) -> set[str]:
    """The kernel's functions that the module refers to, and looks up by their names."""
    strings = output("strings", "-d", path)
    undefined = {line.split()[-1] for line in output("llvm-nm-19", "-u", path)}
    # What lies before it need not end with a zero.
    return {name for name in undefined if any(text.endswith(name) for text in strings)}


def own_static_calls(path: str) -> set[str]:
    """The trampolines of static calls that the module defines, but for tracepoints."""
    defined = {line.split()[-1] for line in output("llvm-nm-19", "--defined-only", path)}
    return {
        name
        for name in defined
        if name.startswith("__SCT__") and not name.startswith("__SCT__tp_func_")
    }


def main(path: str) -> int:
    """Prints what is wrong."""
    everything = list(branches(path))
    static = own_static_calls(path)
    originals = hooked(path) | static
    originals |= {function for function, _, to in everything if to in static}

    wrong = []
    called: set[str] = set()
    for function, is_call, to in everything:
        of_hook = HOOKS in function and function not in NO_REPLACEMENTS
        if to in originals or to == INDIRECT and of_hook:
            called.add(to)
            if not is_call:
                what = "an indirect function" if to == INDIRECT else to
                wrong.append(f"{function} jumps to {what} instead of calling it")

    # If the compiler or the module names things otherwise, nothing would be found any more.
    for what in sorted((originals | {INDIRECT}) - called):
        wrong.append(f"nothing calls {what}, which is hooked")
    for line in wrong:
        print(f"{path}: {line}", file=sys.stderr)
    if wrong:
        print("the original of a hook must be called by ftrace::original()", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
