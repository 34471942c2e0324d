# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the daemon and QEMU are told of windows."""

from pathlib import Path

import pytest

from harness import daemon as module
from harness.daemon import Daemon


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "binary", Path)


def test_there_is_none_unless_asked_for(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    assert not any("window" in str(word) for word in daemon.command())
    assert not any("ivshmem" in word for word in daemon.qemu_options())


def test_qemu_is_told_of_what_the_daemon_makes(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, name="web", window="64MiB")
    command = [str(word) for word in daemon.command()]
    folder = Path(command[command.index("--window-dir") + 1])
    assert command[command.index("--window-size") + 1] == "64MiB"
    # As the daemon would.
    folder.mkdir()
    with (folder / "web.window").open("wb") as file:
        file.truncate(64 << 20)
    options = daemon.qemu_options()
    backend = options[options.index("-object") + 1].split(",")
    assert f"mem-path={folder}/web.window" in backend
    assert {f"size={64 << 20}", "share=on", "align=2M"} <= set(backend)
    (name,) = (word.removeprefix("id=") for word in backend if word.startswith("id="))
    assert f"ivshmem-plain,memdev={name}" in options


def test_the_device_lends_its_own_by_nothing_that_qemu_is_told(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, window="64MiB", window_source="virtio")
    command = [str(word) for word in daemon.command()]
    assert command[command.index("--window-source") + 1] == "virtio"
    assert not any("ivshmem" in word for word in daemon.qemu_options())
