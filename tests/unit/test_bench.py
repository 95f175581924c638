"""The benchmarks run at tiny sizes and write a page that can be read; how long things take is not tested."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import timing, toy_frame
from bench.__main__ import QUESTIONS, updated
from bench.browser import NoBrowser, find
from kdlib.book import ROOT

QUARTILES = re.compile(r"[\d.e+-]+ \[[\d.e+-]+, [\d.e+-]+\]")


def parts(page: str) -> dict[str, list[list[str]]]:
    """Each part's table by its title, as rows of cells."""
    return {part.splitlines()[0]: [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
            for part in page.split("\n## ")[1:]}


def check(page: str, questions) -> None:
    found = parts(page)
    assert list(found) == [q.TITLE for q in questions]
    for question in questions:
        header, _, *rows = found[question.TITLE]
        assert tuple(header) == question.HEADER and rows
        for row in rows:
            assert len(row) == len(header) and all(row) and any(QUARTILES.fullmatch(cell) for cell in row), row
    assert re.search(r" on \d{4}-\d\d-\d\d: .+ cores, PyTorch \d", page) and str(Path.home()) not in page


def needs(question) -> tuple[str, ...]:
    """The modules of the bench extra that it compares with."""
    return getattr(question, "NEEDS", ())


def can_answer(question) -> bool:
    try:
        return all(map(find_spec, needs(question))) and bool("playwright" not in needs(question) or find())
    except NoBrowser:
        return False


def test_every_question_is_answered_at_tiny_sizes(tmp_path):
    asked = [name for name, question in QUESTIONS.items() if can_answer(question)]
    done = subprocess.run([sys.executable, "-m", "bench", *asked, "--quick", "--out", str(tmp_path / "page.md")], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    check(page, [QUESTIONS[name] for name in asked])
    assert "these numbers mean nothing" in page


def test_the_page_is_of_a_full_run():
    page = (ROOT / "bench" / "RESULTS.md").read_text()
    check(page, list(QUESTIONS.values()))
    assert "mean nothing" not in page


def test_a_part_measured_again_takes_the_place_of_the_old_one():
    page = (ROOT / "bench" / "RESULTS.md").read_text()
    first, *_, last = (q.TITLE for q in QUESTIONS.values())
    new = updated(page, [f"## {last}\n\nAnew.\n\n| a |\n| --- |\n| 1 |\n", "## Another\n\n| b |\n"])
    assert parts(new) == parts(page) | {last: [["a"], ["---"], ["1"]], "Another": [["b"]]}
    assert new.partition(f"## {last}")[0].split() == page.partition(f"## {last}")[0].split() and f"## {first}" in new and "Anew." in new
    assert updated(new, []).split() == new.split()


def test_frames_of_a_trace_hold_the_script_since_the_frame_before():
    def event(name, ts, dur, tdur, thread=7, **more):
        return {"name": name, "ph": "X", "pid": 1, "tid": thread, "ts": ts, "dur": dur, "tdur": tdur, **more}

    trace = [event("FireAnimationFrame", 1000, 3000, 2000), event("FunctionCall", 1100, 2000, 1900),  # inside, and not counted twice
             event("EventDispatch", 5000, 500, 400), event("FunctionCall", 5100, 300, 300), event("FunctionCall", 5200, 9000, 9000, thread=8),
             event("Layout", 5600, 2000, 2000), event("TimerFire", 7700, 300, 100), event("FireAnimationFrame", 8000, 1000, 1000),
             event("EventDispatch", 9500, 100, 100), {"name": "thread_name", "ph": "M", "pid": 1, "tid": 7, "ts": 0}]
    assert toy_frame.script(trace[::-1]) == [(2.0, 3.0), (1.5, 1.8)]


@pytest.mark.parametrize("name", [name for name, question in QUESTIONS.items() if needs(question)])
def test_a_missing_peer_is_one_clear_line(tmp_path, name):
    peer = needs(QUESTIONS[name])[0]
    without = (f"import runpy, sys; sys.modules[{peer!r}] = None; sys.argv[1:] = [{name!r}, '--quick', '--out', 'page.md']; "
               f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_module('bench', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", without], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "pip install kdlib[bench]" in done.stderr, done.stderr
    assert not (tmp_path / "page.md").exists()


def test_ratios_are_those_of_neighbours_in_time():
    times = iter([9, 9, 2, 4, 8, 5, 3, 6])  # a round to warm up; then ours first, other first, ours first
    pair = timing.side_by_side(lambda: next(times), lambda: next(times), 3)
    assert (pair.ours, pair.other, pair.ratios) == ([2, 5, 3], [4, 8, 6], [0.5, 0.625, 0.5])
    assert timing.ratio(pair.ratios) == "0.5 [0.5, 0.562]"
