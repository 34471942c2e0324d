# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which clean pages are put, and which are not worth it."""

import pytest

from harness.guest import Guest
from harness.lab import Lab
from harness.small import SmallMachine

MEMORY = 256
STREAM = 768
AGAIN = 384
FILES = 12
PAGES = 256
SAMPLE = 128
ROUNDS = (1, 2, 3)

SCRIPT = f"""
# anew: with nothing in the page cache, and nothing in the host.
anew() {{
	umount /tmp/data && mounted data /tmp/data
}}

# reads NAME FOLDER MIB [FILES]: reads files from their beginning to their end.
reads() {{
	snapshot "before $1"
	must "$1" "$WORKLOAD" file-set read --dir "/tmp/data/$2" --mib "$3" --files "${{4:-1}}"
	drop_caches
	snapshot "after $1"
}}

must load modprobe virtio_tmem
must driver wait_for 30 bound
must mount mounted data /tmp/data
# What is written has been put, too, and not come back, before it is read.
must "create set" "$WORKLOAD" file-set create --dir /tmp/data/set --mib {AGAIN} --files {FILES}
for round in {" ".join(map(str, ROUNDS))}; do
	reads "set $round" set {AGAIN} {FILES}
done
must "create stream" "$WORKLOAD" file-set create --dir /tmp/data/stream --mib {STREAM} --files 1
must "create again" "$WORKLOAD" file-set create --dir /tmp/data/again --mib {AGAIN} --files 1
must "new before" anew
must "warm up" wait_for 30 warmed_up /tmp/data
reads stream stream {STREAM}
for round in {" ".join(map(str, ROUNDS))}; do
	reads "again $round" again {AGAIN}
done
must "reload" load_module admission=0
must "bound again" wait_for 30 bound
must "new again" anew
must "warm up again" wait_for 30 warmed_up /tmp/data
reads "all of it" stream {STREAM}
step umount umount /tmp/data
"""


@pytest.fixture(scope="module")
def guest(module_lab: Lab) -> Guest:
    """One guest for all tests of this file."""
    daemon = module_lab.daemon(capacity="2GiB")
    disk = module_lab.disk("data", STREAM + 2 * AGAIN + 256, "ext4")
    guest = module_lab.boot(SCRIPT, SmallMachine(MEMORY, disks=[disk], devices=[daemon], modules=["ext4"]))
    guest.finish(300)
    return guest


def more(guest: Guest, name: str, counter: str) -> int:
    """By how much a counter of the driver's grew."""
    before, after = (guest.snapshot(f"{when} {name}").driver for when in ("before", "after"))
    return int(after[f"cleancache/{counter}"] - before[f"cleancache/{counter}"])


def sectors(guest: Guest, name: str) -> int:
    """Sectors that the disk had to give."""
    before, after = (guest.snapshot(f"{when} {name}").read("data") for when in ("before", "after"))
    return after - before


def test_a_stream_is_hardly_put(guest: Guest) -> None:
    pages = STREAM * PAGES
    puts, left_out = (more(guest, "stream", name) for name in ("puts", "not_admitted"))
    # As long as there is trust in it, and then only a sample: see the module's admission.rs.
    assert puts < MEMORY * PAGES // 2 + 2 * pages // SAMPLE
    assert puts > pages // SAMPLE // 2
    assert left_out > pages // 2


def test_a_set_of_files_is_found_at_the_second_reading(guest: Guest) -> None:
    # Some of it at the first, even: what was written is in the host, too.
    assert sectors(guest, "set 2") < AGAIN * PAGES * 8 // 10


def test_a_file_that_comes_back_is_put(guest: Guest) -> None:
    first, _, third = (sectors(guest, f"again {round}") for round in ROUNDS)
    assert first >= AGAIN * PAGES * 8
    assert third < first // 4


def test_all_is_put_where_that_is_wanted(guest: Guest) -> None:
    assert more(guest, "all of it", "not_admitted") == 0
    assert more(guest, "all of it", "puts") > STREAM * PAGES // 2
