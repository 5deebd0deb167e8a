import pickle
from pathlib import Path

import pytest

from pliant.data import DataError, Problem, ProblemLog


def test_a_problem_is_counted_once():
    log = ProblemLog()
    assert log.report("a.xml", "zero-area box", "object 1")
    assert not log.report("a.xml", "zero-area box", "object 1")
    assert log.report("a.xml", "zero-area box", "object 2")
    assert log.report("b.xml", "box partly outside", "object 1", "clipped")
    assert len(log) == 3
    assert log.counts() == {"zero-area box": 2, "box partly outside": 1}
    assert next(iter(log)) == Problem(Path("a.xml"), "zero-area box", "object 1", "skipped")


def test_summary_names_kinds_counts_actions_and_paths():
    log = ProblemLog()
    assert log.summary() == "no problems"
    for number in range(4):
        log.report(f"{number}.xml", "zero-area box", "object 1")
    text = log.summary(limit=2)
    assert text.splitlines() == [
        "4 problems",
        "  zero-area box: 4 (skipped)",
        "    0.xml: object 1",
        "    1.xml: object 1",
        "    ... and 2 more",
    ]


def test_strict_raises_with_path_and_detail():
    log = ProblemLog(strict=True)
    with pytest.raises(DataError, match=r"a\.xml: zero-area box: object 1") as caught:
        log.report("a.xml", "zero-area box", "object 1")
    assert caught.value.path == Path("a.xml")
    assert len(log) == 0


def test_data_error_survives_the_way_out_of_a_worker():
    error = pickle.loads(pickle.dumps(DataError("a.xml", "broken")))
    assert (error.path, error.detail, str(error)) == (Path("a.xml"), "broken", "a.xml: broken")


def test_summary_shows_names_that_are_no_text():
    log = ProblemLog()
    log.report("a\ud800\x1b[2J.xml", "unknown class", "é\n\u202e")
    line = log.summary().splitlines()[-1]
    assert line == "    a\\ud800\\x1b[2J.xml: é\\n\\u202e"
