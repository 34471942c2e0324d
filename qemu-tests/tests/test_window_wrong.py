# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Windows that are not as they should be: a line says what is wrong, and pages go by requests."""

from dataclasses import dataclass

import pytest

from harness.daemon import Daemon
from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine


@dataclass
class Wrong:
    """What QEMU lends the guest beside a device, and what the log says of that."""

    says: str
    # Whose window it is, how often it is lent, and how much of it.
    whose: str | None = None
    times: int = 1
    size: int | None = None
    used: bool = False


WINDOWS = {
    "right": Wrong(whose="right", says="is memory of an ivshmem device", used=True),
    "twice": Wrong(whose="twice", times=2, says="two windows have the same identity", used=True),
    "none": Wrong(says="no window"),
    "cut": Wrong(whose="cut", size=4 << 20, says="too small"),
}

FIRST_SLOT = 0x10
SLOTS = {name: FIRST_SLOT + number for number, name in enumerate(WINDOWS)}


class Lender(Daemon):
    """A daemon whose window is lent in some other way than it should be."""

    def __init__(self, *args: object, wrong: Wrong, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._wrong = wrong

    def qemu_options(self) -> list[str]:
        assert self.window is not None
        window, self.window = self.window, None
        window.size = self._wrong.size
        options = super().qemu_options()
        self.window = window
        if self._wrong.whose != self.name:
            return options
        lent = (window.qemu_options(number) for number in range(self._wrong.times))
        return [*(word for words in lent for word in words), *options]


SCRIPT = f"""
try() {{
	local name=$1
	kernel_log >/dev/null
	step "bind $name" bind_device "$2"
	step "log $name" kernel_log
	must "bound $name" bound
	must "swapon $name" with_disk swap swapon
	step "window $name" eval 'tmem window && cat "$REPLY"'
	snapshot "before $name"
	step "anon $name" confined 24 "$WORKLOAD" anon --mib 64 --passes 1
	snapshot "after $name"
	must "swapoff $name" swap_off swap
	must "unbind $name" unbind_device "$2"
	step "log at last $name" kernel_log
}}

must mkswap with_disk swap mkswap
echo 0 >/sys/bus/virtio/drivers_autoprobe
must load modprobe virtio_tmem
{"".join(f"try {name} {slot:02x}" + chr(10) for name, slot in SLOTS.items())}
step unload modprobe -r virtio_tmem
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest that has all of them, one after the other."""
    devices = [
        module_lab.start(
            Lender(
                module_lab.folder,
                name,
                wrong=wrong,
                capacity="256MiB",
                window="64MiB",
                slot=SLOTS[name],
            )
        )
        for name, wrong in WINDOWS.items()
    ]
    disks = [module_lab.disk("swap", 256)]
    return module_lab.run(SCRIPT, SmallMachine(256, disks=disks, devices=devices), 300)


@pytest.mark.parametrize("name", WINDOWS)
def test_pages_come_back_and_the_log_says_why(guest: Guest, name: str) -> None:
    wrong = WINDOWS[name]
    assert guest.step(f"anon {name}").objects[-1]["wrong"] == 0
    said = guest.step(f"log {name}").text
    assert wrong.says in said
    before, after = (guest.snapshot(f"{when} {name}").driver for when in ("before", "after"))
    puts, copies = (
        after[f"frontswap/{counter}"] - before[f"frontswap/{counter}"]
        for counter in ("stored", "window_puts")
    )
    assert (copies > 1000) == wrong.used
    assert wrong.used or puts > 1000
    assert (guest.step(f"window {name}").text.strip() == "none") == (not wrong.used)


def test_unload_after_all_that(guest: Guest) -> None:
    guest.step("unload")
