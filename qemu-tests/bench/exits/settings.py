# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Ways to set up the module, the daemon and the device, to be compared."""

import os
from dataclasses import dataclass, replace

# Others than DEFAULTS may be asked for: NAME|module parameters|daemon options|device properties|
# sysctls, separated by semicolons.
VARIABLE = "TMEM_BENCH_SETTINGS"


@dataclass(frozen=True)
class Setting:
    """One way."""

    name: str
    # Of the module, such as "poll_us=0".
    parameters: str = ""
    # Of the daemon.
    options: tuple[str, ...] = ()
    # Of QEMU's device, such as "packed=on event_idx=off".
    properties: str = ""
    # Whether a process in the guest never stops computing.
    busy: bool = False
    # Of the guest's kernel, such as "vm.page-cluster=5".
    sysctls: str = ""

    @classmethod
    def parse(cls, text: str) -> "Setting":
        """A setting as the variable names it."""
        name, parameters, options, properties, sysctls, *_ = [*text.split("|"), "", "", "", ""]
        return cls(
            name.strip(),
            parameters,
            tuple(options.split()),
            properties.strip(),
            sysctls=sysctls,
        )


# Time in an emulated host is long: what takes a real one microseconds takes milliseconds, so that
# what may take no longer than so many microseconds never happens.
PATIENT = Setting("limits of polling as long as time is", "poll_us=10000", ("--poll-us", "10000"))

LOADED = "beside a process that computes"

DEFAULTS = (
    PATIENT,
    replace(PATIENT, name=f"the same, {LOADED}", busy=True),
    Setting(f"as it is, {LOADED}", busy=True),
    Setting("only the guest polls so long", "poll_us=10000", ("--poll-us", "0")),
    Setting("only the daemon polls so long", "poll_us=0", ("--poll-us", "10000")),
    Setting("nobody polls", "poll_us=0", ("--poll-us", "0")),
    Setting("32 swapped pages are read ahead", sysctls="vm.page-cluster=5"),
    Setting("no event index", properties="event_idx=off"),
    Setting("all clean pages are put", "admission=0"),
    Setting("64 pages for staging", "staging_pages=64"),
    Setting("4096 pages for staging", "staging_pages=4096"),
)

# What cannot be compared, and why.
MISSING = {
    "packed ring": "the daemon's virtqueues (rust-vmm) are split ones",
    "in order": "the daemon's virtqueues (rust-vmm) do not offer it",
}


def asked_for() -> list[Setting]:
    """The settings to compare with the one that is there without any."""
    if (text := os.environ.get(VARIABLE)) is None:
        return list(DEFAULTS)
    return [Setting.parse(part) for part in text.split(";") if part.strip()]
