# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What KVM has traced: exits, and why each of them was."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

# Reasons of exits, as AMD's SVM numbers them.
INTR, VINTR, CPUID, HLT, IOIO, MSR, NPF = 0x060, 0x064, 0x072, 0x078, 0x07B, 0x07C, 0x400

# Registers of the local APIC: end of interrupt, and those that set its timer.
X2APIC_EOI, XAPIC_EOI = 0x80B, 0xFEE000B0
# Which interrupts are by level: Linux looks at it whenever one of these ends.
X2APIC_LEVELS = range(0x818, 0x820)
CLOCK_MSRS = (0x6E0, 0x838, 0x83E, 0x839)
CLOCK_MMIO = (0xFEE00380, 0xFEE003E0, 0xFEE00390)

# The vectors from here on are the CPU's own: its timer, and what CPUs tell each other.
OWN_VECTORS = 0xEC

# What the marker of the workload asks CPUID for.
MARKER = int.from_bytes(b"tmem", "little")

# Exits by kind, in the order in which tables have them. The last two are not the work's: the first
# touch of memory, and the clock with what it wakes.
KINDS = ("notify", "ISR", "EOI", "interrupt", "halt", "other", "memory", "clock")
WORK = KINDS[:6]

# Where QEMU puts the parts of a modern virtio device in its memory.
ISR, NOTIFY, END = 0x1000, 0x3000, 0x4000

# Fields that KVM prints in hexadecimal without saying so.
HEXADECIMAL = ("ecx", "function", "index")

_LINE = re.compile(r"^.*?-\d+\s+\[\d+\]\S*\s+\d+\.\d+: +(kvm_\w+): +(.*)$")
_FIELD = re.compile(r"(\w+)=(\S+)")


@dataclass
class Exit:
    """One exit, with what KVM did before it entered the guest again."""

    reason: int
    events: list[tuple[str, dict[str, int]]] = field(default_factory=list)

    def first(self, name: str) -> dict[str, int] | None:
        """The fields of the first event of that name."""
        return next((fields for event, fields in self.events if event == name), None)

    @property
    def vectors(self) -> list[int]:
        """The interrupts that the guest was given."""
        return [fields["vector"] for event, fields in self.events if event == "kvm_inj_virq"]


@dataclass
class Phase:
    """Exits between two markers."""

    kinds: Counter[str] = field(default_factory=Counter)
    details: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, detail: str) -> None:
        """Counts one."""
        self.kinds[kind] += 1
        self.details[f"{kind}: {detail}"] += 1


def exits(lines: Iterable[str]) -> Iterator[Exit]:
    """The exits of the guest's only CPU, in their order."""
    current: Exit | None = None
    for line in lines:
        if not (match := _LINE.match(line)):
            continue
        name = match[1]
        fields = {key: _number(key, value) for key, value in _FIELD.findall(match[2])}
        if name == "kvm_exit":
            if current is not None:
                yield current
            current = Exit(fields["exit_reason"])
        elif current is not None:
            current.events.append((name, fields))
    if current is not None:
        yield current


def _number(key: str, text: str) -> int:
    try:
        return int(text, 16 if key in HEXADECIMAL else 0)
    except ValueError:
        return -1


class Devices:
    """Where the guest's devices have their memory."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._places: list[tuple[int, int, str]] = []
        for line in lines:
            words = line.split(None, 4)
            if words[:1] != ["device"] or words[2] != "0x1af4":
                continue
            number = int(words[3], 16)
            name = {0x1001: "disk", 0x1042: "disk", 0x1046: "tmem"}.get(number, words[3])
            for place in re.findall(r"(0x[0-9a-f]{16}) (0x[0-9a-f]{16}) 0x", line):
                start, end = (int(text, 16) for text in place)
                if end - start + 1 == END:
                    self._places.append((start, end, name))

    def at(self, address: int) -> tuple[str, int] | None:
        """The device that an address belongs to, and the place in its memory."""
        for start, end, name in self._places:
            if start <= address <= end:
                return name, address - start
        return None


def phases(all_exits: Iterable[Exit], devices: Devices) -> Iterator[Phase]:
    """What was traced between markers, one after the other."""
    phase: Phase | None = None
    last_vector = 0
    halt: Exit | None = None
    for one in all_exits:
        cpuid = one.first("kvm_cpuid")
        if cpuid is not None and cpuid["function"] == MARKER:
            if phase is not None:
                if halt is not None:
                    phase.add("clock", "halt")
                yield phase
            phase = Phase() if cpuid["index"] else None
            halt = None
        elif phase is not None:
            # A halt is the work's if a device ends it.
            if halt is not None and (vectors := halt.vectors or one.vectors):
                kind = "halt" if any(map(_of_device, vectors)) else "clock"
                phase.add(kind, "halt")
                halt = None
            if one.reason == HLT:
                if one.vectors:
                    kind = "halt" if any(map(_of_device, one.vectors)) else "clock"
                    phase.add(kind, "halt")
                else:
                    halt = one
            else:
                phase.add(*_kind(one, devices, last_vector))
        if one.vectors:
            last_vector = one.vectors[-1]


def _of_device(vector: int) -> bool:
    return vector < OWN_VECTORS


def _kind(one: Exit, devices: Devices, last_vector: int) -> tuple[str, str]:
    """What an exit was for, and more exactly."""
    mmio, msr = one.first("kvm_mmio"), one.first("kvm_msr")
    if one.reason in (INTR, VINTR):
        kind = "interrupt" if any(map(_of_device, one.vectors)) else "clock"
        return kind, "window" if one.reason == VINTR else "of the host"
    if one.reason == MSR and msr is not None:
        if msr["ecx"] == X2APIC_EOI:
            return "EOI" if _of_device(last_vector) else "clock", "EOI"
        if msr["ecx"] in X2APIC_LEVELS:
            return "EOI", "by level?"
        return "clock" if msr["ecx"] in CLOCK_MSRS else "other", f"MSR {msr['ecx']:#x}"
    if mmio is not None:
        address = mmio["gpa"]
        if address == XAPIC_EOI:
            return "EOI" if _of_device(last_vector) else "clock", "EOI"
        if address in CLOCK_MMIO:
            return "clock", "APIC timer"
        if place := devices.at(address):
            name, offset = place
            if offset >= NOTIFY:
                return "notify", name
            if ISR <= offset < NOTIFY:
                return "ISR", name
        return "other", f"memory of a device at {address:#x}"
    if one.reason == NPF:
        return "memory", "first touch"
    pio = one.first("kvm_pio")
    if pio is not None:
        return "other", f"port {pio['port']:#x}"
    return "other", f"reason {one.reason:#x}"
