# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The reading of what guests say."""

from harness.steps import Transcript

LINES = """\
noise before
{"mark":"booted"}
{"begin":"mount"}
some text
{"of":"file-set","wrong":0}
{broken
{"beat":1}
{"snapshot":"middle","driver":{"cleancache/puts":5},"disks":{"data":{"read":8,"written":16}},"vmstat":{"pswpin":1}}
{"end":"mount","status":3,"seconds":1.5}
between
{"begin":"never ends"}
the last words
"""


def transcript() -> Transcript:
    result = Transcript()
    for line in LINES.splitlines():
        result.add(line + "\r\n")
    return result


def test_a_step_has_its_output_and_status() -> None:
    step = transcript().steps["mount"]
    assert (step.status, step.seconds) == (3, 1.5)
    assert step.text == 'some text\n{"of":"file-set","wrong":0}\n{broken'
    assert step.objects == [{"of": "file-set", "wrong": 0}]


def test_snapshots_belong_to_no_step() -> None:
    snapshot = transcript().snapshots["middle"]
    assert snapshot.driver == {"cleancache/puts": 5}
    assert (snapshot.read("data"), snapshot.written("data")) == (8, 16)


def test_a_step_that_did_not_end_has_no_status() -> None:
    step = transcript().steps["never ends"]
    assert step.status is None
    assert step.text == "the last words"


def test_marks_are_kept() -> None:
    assert transcript().marks == {"booted"}


def test_signs_of_life_are_counted_and_belong_to_no_step() -> None:
    assert transcript().beats == 1
