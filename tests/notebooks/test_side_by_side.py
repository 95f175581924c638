"""Chapters in processes of their own: how many at once, who takes turns, and what an interrupt leaves."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing import Process
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from notebooks_command import SLUG, kdlib

from kdlib import study
from kdlib.book import ROOT, execute
from kdlib.book.chapter import Chapter
from kdlib.book.chapters import source
from kdlib.book.execute import side_by_side


def task(log, name, code, meet=1, *, turn):
    """Note when it begins and ends, and when it has the turn."""
    def note(word):
        with open(log, "a") as file:
            file.write(f"{word} {name}\n")

    note("begin")
    for _ in range(1000):  # the first ones meet
        if log.read_text().count("begin") >= meet:
            break
        time.sleep(0.02)
    with FileLock(turn):
        note("take")
        time.sleep(0.05)
        note("give")
    note("end")
    if code is None:
        raise RuntimeError("broken")
    return code


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_so_many_at_once_and_in_turn(tmp_path, at_once, capfd):
    log = tmp_path / "log"
    codes = [0, 1, None, 0]
    assert side_by_side([partial(task, log, i, code, min(at_once, 4)) for i, code in enumerate(codes)], tmp_path / "out", at_once) == [0, 1, 1, 0]
    assert "RuntimeError: broken" in capfd.readouterr().err
    lines = [line.split() for line in log.read_text().splitlines()]
    begun = np.cumsum([{"begin": 1, "end": -1}.get(word, 0) for word, _ in lines])
    assert begun.max() == min(at_once, 4) and begun[-1] == 0 and len(lines) == 16
    turns = [(word, name) for word, name in lines if word in ("take", "give")]
    assert all(a == ("take", b[1]) and b == ("give", a[1]) for a, b in zip(turns[::2], turns[1::2])), turns
    assert list((tmp_path / "out").iterdir()) == []


def test_a_chapter_waits_for_its_turn_to_train(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_RUN", json.dumps({"turn": str(tmp_path / "turn")}))
    monkeypatch.setattr(study, "complete", lambda measures, *_, **__: dict.fromkeys(measures, {}))
    chapter = Chapter(SLUG, {name: parameter.default for name, parameter in source(SLUG).parameters.items()})
    done = threading.Thread(target=chapter.complete, args=({}, {}), daemon=True)
    with FileLock(tmp_path / "turn"):
        started = chapter._started
        done.start()
        done.join(0.5)
        assert done.is_alive()
    done.join(60)
    assert not done.is_alive() and chapter._started >= started + 0.4, "the time of waiting is not the chapter's"


def test_an_execution_is_told_of_the_turn(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(execute.papermill, "execute_notebook", lambda *_, **__: told.append(json.loads(os.environ["KDLIB_RUN"])["turn"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        execute.execute(source(SLUG), {}, tmp_path, profile="smoke", turn=tmp_path / "turn")
    assert told == [str(tmp_path / "turn")]


def sleeper(log, *, turn):
    """Say who it is, and go on for ever."""
    log.write_text(str(os.getpid()))
    time.sleep(600)


def test_chapters_end_with_the_command_that_is_killed(tmp_path):
    log = tmp_path / "log"
    process = Process(target=side_by_side, args=([partial(sleeper, log)], tmp_path / "out", 2))
    process.start()
    while not (log.exists() and log.read_text()):
        time.sleep(0.05)
    child = int(log.read_text())
    process.kill()
    process.join()
    for _ in range(600):
        if not Path(f"/proc/{child}").exists() or Path(f"/proc/{child}/stat").read_text().split(")")[1].split()[0] == "Z":
            break
        time.sleep(0.1)
    else:
        raise AssertionError("it goes on")


def test_one_chapter_that_fails_does_not_stop_the_other(tmp_path):
    done = kdlib("run", "methods", SLUG, "--profile", "smoke", "-p", "limit=64", "-p", "items=64", "--out", tmp_path / "out", KDLIB_CACHE=str(tmp_path / "cache"))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and "no parameter of domain-adaptation named 'items'" in done.stderr
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "methods.ipynb").mkdir()  # cannot be replaced by a file
    (tmp_path / "out" / "methods.ipynb" / "x").touch()
    done = kdlib("run", "methods", SLUG, "--profile", "smoke", "-p", "limit=64", "--out", tmp_path / "out", KDLIB_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 1 and done.stderr.startswith("kdlib: ") and done.stderr.count("\n") == 1 and "methods.ipynb: " in done.stderr, done.stderr
    assert (tmp_path / "out" / f"{SLUG}.ipynb").exists() and f"{SLUG}: wrote " in done.stdout


@pytest.mark.parametrize("number, code, word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_an_interrupt_ends_all_of_them_and_is_said_once(tmp_path, number, code, word):
    process = subprocess.Popen([sys.executable, "-m", "kdlib", "run", "methods", SLUG, "--profile", "smoke", "-p", "limit=64", "-p", "epochs=50",
                                "--out", tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT,
                               env={**os.environ, "KDLIB_CACHE": str(tmp_path / "cache")}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while "1/" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=120)  # or somebody still holds the pipe
    assert process.returncode == code
    assert said == f"kdlib: {word}; what had finished is in the store, the same command goes on from there\n"
    assert list((tmp_path / "out").iterdir()) == []
