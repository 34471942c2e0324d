# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Links between documents lead somewhere, and the manual has all of them."""

import re
import subprocess
from pathlib import Path

import pytest

from harness.paths import REPO

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def _documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=REPO,
        check=True,
        capture_output=True,
        text=True,
    )
    names = (name for name in listed.stdout.split() if name != "docs/SUMMARY.md")
    return [REPO / name for name in names if (REPO / name).exists()]


def anchor(heading: str) -> str:
    """What a heading is linked to by."""
    words = re.sub(r"[`*_]|\[|\]\([^)]*\)", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    text = _CODE.sub("", document.read_text())
    found = []
    for target in _LINK.findall(text):
        path, _, part = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (document.parent / path).resolve() if path else document
        if not file.exists():
            found.append(target)
        elif part and file.suffix == ".md":
            headings = _HEADING.findall(_CODE.sub("", file.read_text()))
            if part not in map(anchor, headings):
                found.append(target)
    return found


@pytest.mark.parametrize("document", _documents(), ids=lambda path: str(path.relative_to(REPO)))
def test_links_lead_somewhere(document: Path) -> None:
    assert not broken(document)


def test_the_manual_is_made_of_pages_that_there_are() -> None:
    pages = _LINK.findall((REPO / "docs" / "SUMMARY.md").read_text())
    missing = [page for page in pages if not (REPO / page).exists()]
    assert not missing
    # Whoever reads the manual finds all there is.
    everything = {str(path.relative_to(REPO)) for path in _documents()}
    assert everything == set(pages)


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    there = tmp_path / "there.md"
    there.write_text("# A heading, `with` code\n")
    document = tmp_path / "document.md"
    good = "[a](there.md) [b](there.md#a-heading-with-code) [c](https://example.org/x)\n"
    document.write_text(good + "```\n[code](nowhere.md)\n```\n")
    assert broken(document) == []
    document.write_text(good + "[d](nowhere.md) [e](there.md#nothing) [f](#nothing)\n")
    assert broken(document) == ["nowhere.md", "there.md#nothing", "#nothing"]
