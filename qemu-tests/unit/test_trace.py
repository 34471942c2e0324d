# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Exits are told apart by what KVM did because of them."""

from bench.exits.trace import MARKER, Devices, Phase, exits, phases

DEVICES = Devices(
    [
        "device 0000:00:03.0 0x1af4 0x1046  virtio2 "
        "0x00000000febd4000 0x00000000febd7fff 0x0000000000040200;",
    ]
)


def line(event: str, fields: str) -> str:
    """A line as trace-cmd prints it."""
    return f"       CPU 0/KVM-257   [001]-0x1   316.308294: {event:<21}  {fields}"


def traced(*events: str) -> list[Phase]:
    """The phases of a trace in which these lines lie between two markers."""
    mark = line("kvm_exit:", "exit_reason=114 guest_rip=0x1 vcpu_id=0")
    begin, end = (
        line("kvm_cpuid:", f"function={MARKER:x} index={n} rax=0x0 found=0") for n in (1, 0)
    )
    return list(phases(exits([mark, begin, *events, mark, end]), DEVICES))


def leave(reason: int) -> str:
    """An exit."""
    return line("kvm_exit:", f"exit_reason={reason} guest_rip=0x1 vcpu_id=0")


def test_accesses_of_a_device_are_told_apart() -> None:
    (phase,) = traced(
        leave(0x400),
        line("kvm_mmio:", "type=2 len=2 gpa=0xfebd7004 val=0x1"),
        leave(0x400),
        line("kvm_mmio:", "type=1 len=1 gpa=0xfebd5000 val=0x1"),
        leave(0x400),
    )
    assert dict(phase.kinds) == {"notify": 1, "ISR": 1, "memory": 1}


def test_interrupts_of_the_clock_are_not_the_works() -> None:
    (phase,) = traced(
        leave(0x060),
        line("kvm_inj_virq:", "vector=0xec soft=0 reinjected=0"),
        leave(0x07C),
        line("kvm_msr:", "write=1 ecx=80b data=0x0 exception=0"),
        leave(0x060),
        line("kvm_inj_virq:", "vector=0x23 soft=0 reinjected=0"),
        leave(0x07C),
        line("kvm_msr:", "write=1 ecx=80b data=0x0 exception=0"),
    )
    assert dict(phase.kinds) == {"clock": 2, "interrupt": 1, "EOI": 1}


def test_a_halt_is_the_works_if_a_device_ends_it() -> None:
    (phase,) = traced(
        leave(0x078),
        line("kvm_inj_virq:", "vector=0x23 soft=0 reinjected=0"),
        leave(0x078),
        line("kvm_inj_virq:", "vector=0xec soft=0 reinjected=0"),
    )
    assert dict(phase.kinds) == {"halt": 1, "clock": 1}


def test_what_lies_outside_of_markers_is_not_counted() -> None:
    mark = [leave(0x072), line("kvm_cpuid:", f"function={MARKER:x} index=1 rax=0x0")]
    assert not list(phases(exits([leave(0x078), *mark, leave(0x078)]), DEVICES))
