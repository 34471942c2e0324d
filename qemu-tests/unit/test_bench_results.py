# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What was measured comes back from the JSON that it is written down as, and onto pages."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import publish
from bench.sample import Sample
from bench.table import Mark, Missing, Table, table_of

HOW = "native"


def _table() -> Table:
    table = Table("times", "Times", ["pages", "rate"], HOW, ",.2f")
    table.add("put", 1, Sample.of([1.0, 2.0, 4.0]))
    # A name may come again.
    table.add("put", 32, Sample.of([1000.5]))
    table.add("get | all", 1, None)
    table.cannot("zram", "there is none")
    return table


def _mark(*values: float, **bounds: float) -> Mark:
    return Mark("a page", Sample.of(values), HOW, **bounds)


def _results(folder: Path) -> publish.Results:
    (folder / "daemon").mkdir()
    document = {
        "marks": [_mark(0.3, most=1.0).as_json()],
        "tables": {"times": _table().as_json()},
        "plots": {"rates": "Rates"},
    }
    (folder / "daemon" / "results.json").write_text(json.dumps(document))
    return publish.Results(folder, ["daemon", "guest"])


def test_a_table_comes_back_from_json() -> None:
    table = _table()
    again = Table.from_json("times", json.loads(json.dumps(table.as_json())))
    assert again == table
    assert again.text() == table.text()


def test_a_table_on_a_page() -> None:
    assert _table().markdown().splitlines() == [
        "|  | pages | rate |",
        "| --- | --: | --: |",
        "| put | 1 | 2.00 (1.00–4.00) |",
        "| put | 32 | 1,000.50 |",
        "| get &#124; all | 1 | – |",
        "| zram | *not run: there is none* |  |",
    ]


def test_the_median_has_to_reach_the_mark() -> None:
    assert _mark(0.5, 1.0, 9.0, most=1.0).reached
    assert not _mark(0.5, 1.1, 1.2, most=1.0).reached
    assert _mark(0.5, 1.0, 9.0, least=1.0).reached
    assert not _mark(0.5, 0.9, 9.0, least=1.0).reached
    assert not _mark(0.001, most=0.0).reached
    assert _mark(1.0).reached is None
    assert Mark("a page", Missing("no reason"), HOW, most=1.0).reached is None


def test_marks_come_back_from_json() -> None:
    missing = Mark("a page", Missing("no reason"), HOW, least=2.0)
    for mark in (_mark(1.0, 2.0, most=1.5), missing):
        assert Mark.from_json(json.loads(json.dumps(mark.as_json()))) == mark
    assert table_of([missing]).rows == [
        ("a page", ("not run: no reason", "≥ 2", "–", "native"))
    ]


def test_blocks_of_a_page_are_made_of_the_results(tmp_path: Path) -> None:
    results = _results(tmp_path)
    page = "a\n<!-- results: {} -->\nold\n<!-- end -->\nb\n"

    def filled(what: str) -> str:
        return results.fill(page.format(what), "results/")

    assert "![Rates](results/daemon/rates.svg)" in filled("plot daemon rates")
    assert "| put | 32 | 1,000.50 |" in filled("table daemon times")
    assert "| a page | 0.30 | ≤ 1 | yes | native |" in filled("marks")
    for what in ("plot daemon rates", "table daemon times", "marks"):
        text = filled(what)
        assert text.startswith("a\n<!-- results: ") and text.endswith("<!-- end -->\nb\n")
        assert "old" not in text
        assert results.fill(text, "results/") == text


def test_the_front_page_has_what_matters_most(tmp_path: Path) -> None:
    last, first = publish.HEADLINES[-1], publish.HEADLINES[0]
    marks = [replace(_mark(0.3, most=1.0), what=name) for name in (last, "a page", first)]
    (tmp_path / "daemon").mkdir()
    document = {"marks": [mark.as_json() for mark in marks]}
    (tmp_path / "daemon" / "results.json").write_text(json.dumps(document))
    rows = publish.Results(tmp_path, ["daemon"]).block("headlines", "").splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {first}", f"| {last}"]


def test_what_the_front_page_has_is_measured() -> None:
    parts = [folder.name for folder in publish.RESULTS.iterdir() if folder.is_dir()]
    measured = publish.Results(publish.RESULTS, parts)
    assert set(publish.HEADLINES) <= {mark.what for mark in measured.marks()}


def test_a_block_of_what_is_not_there_yet(tmp_path: Path) -> None:
    results = _results(tmp_path)
    assert "not published yet" in results.block("table guest zipf", "")
    for what in ("table daemon zipf", "plot daemon zipf", "table nobody zipf", "nothing"):
        with pytest.raises(publish.NotPublished):
            results.block(what, "")
