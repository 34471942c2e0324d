# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Pages with contents of each kind, in a file each."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.process import wait_until

PAGE = 4096

# Bytes of each kind: more than any cache holds, and little enough to be had everywhere.
SIZE = 64 << 20

TEXT = ("/usr/lib/python3", "/usr/lib/python3.13", "/usr/share/perl", "/usr/src")
BINARY = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/gcc", "/usr/lib/llvm-19/lib", "/usr/bin")
TEXT_ENDINGS = (".py", ".pl", ".pm", ".txt", ".rst", ".c", ".h", ".rs")

# Puts what a program has in memory there, says so, and waits until nobody listens.
PYTHON = """
import ast, pathlib, sys
trees = {p: ast.parse(p.read_text()) for p in sorted(pathlib.Path(ast.__file__).parent.glob("*.py"))}
words = {p: p.read_text().split() for p in trees}
print("ready", flush=True)
sys.stdin.read()
"""


def collect(folder: Path) -> dict[str, Path]:
    """Makes the files, by kind."""
    made = {
        "zero": b"\0" * PAGE,
        "text": _files(TEXT, TEXT_ENDINGS),
        "binary": _files(BINARY, None),
        "random": random.Random(1).randbytes(SIZE),
        "process": _memory(folder),
    }
    kinds = {}
    for kind, pages in made.items():
        kinds[kind] = folder / f"{kind}.pages"
        kinds[kind].write_bytes(pages)
    return kinds


def _files(folders: tuple[str, ...], endings: tuple[str, ...] | None) -> bytes:
    """What files hold: whole pages of each, as the page cache has them."""
    pages = bytearray()
    for path in _walk(folders):
        if endings is None:
            with path.open("rb") as file:
                if file.read(4) != b"\x7fELF":
                    continue
        elif path.suffix not in endings:
            continue
        with path.open("rb") as file:
            # No file is to be most of it.
            whole = file.read(SIZE // 16)
        pages += whole + b"\0" * (-len(whole) % PAGE)
        if len(pages) >= SIZE:
            break
    assert len(pages) >= PAGE, f"there is nothing to read in {folders}"
    return bytes(pages[:SIZE])


def _walk(folders: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        for parent, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                path = Path(parent) / name
                if path.is_file() and not path.is_symlink():
                    yield path


def _memory(folder: Path) -> bytes:
    """What swap would get: the anonymous memory of programs at work, without empty pages."""
    pages = bytearray()
    for start in (_interpreter, lambda: _database(folder / "database.sock")):
        process = start()
        try:
            pages += _anonymous(process.pid)
        finally:
            process.kill()
            process.wait()
    # Each gets its share of what is used.
    order = list(range(len(pages) // PAGE))
    random.Random(2).shuffle(order)
    chosen = order[: SIZE // PAGE]
    return b"".join(pages[n * PAGE : (n + 1) * PAGE] for n in chosen)


def _interpreter() -> subprocess.Popen[bytes]:
    """An interpreter with syntax trees in memory."""
    process = subprocess.Popen(
        [sys.executable, "-c", PYTHON], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n", "the interpreter ended"
    return process


def _database(socket: Path) -> subprocess.Popen[bytes]:
    """A database with small records in memory."""
    process = subprocess.Popen(
        ["valkey-server", "--port", "0", "--save", "", "--unixsocket", str(socket)],
        stdout=subprocess.DEVNULL,
    )
    wait_until("the database to listen", 20, socket.is_socket)
    script = (
        "for i = 1, 200000 do redis.call('hset', 'user:' .. i, 'name', 'user ' .. i * 7919, "
        "'mail', i .. '@example.org', 'visits', i % 97) end"
    )
    subprocess.run(
        ["valkey-cli", "-s", str(socket), "eval", script, "0"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return process


def _anonymous(pid: int) -> bytes:
    """The writable memory of a process that no file is behind."""
    pages = bytearray()
    empty = b"\0" * PAGE
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            bounds, access, _offset, _device, inode, *name = line.split(maxsplit=5)
            if not access.startswith("rw") or inode != "0" or name[:1] == ["[vvar]\n"]:
                continue
            first, last = (int(bound, 16) for bound in bounds.split("-"))
            for at in range(first, min(last, first + SIZE), 1 << 20):
                try:
                    memory.seek(at)
                    chunk = memory.read(min(1 << 20, last - at))
                except OSError:
                    continue
                for n in range(0, len(chunk) - PAGE + 1, PAGE):
                    if chunk[n : n + PAGE] != empty:
                        pages += chunk[n : n + PAGE]
    return bytes(pages)
