import json
import os
import shutil
import signal
import subprocess
import sys

import nbformat
import pytest

from kdlib.book import ROOT, BookError
from kdlib.book.chapters import Parameter, Source, source
from kdlib.book.command import main
from kdlib.book.execute import digest
from kdlib.book.publish import publish
from kdlib.store import Store
from notebooks_command import SLUG, kdlib


def test_chapters_lists_every_chapter():
    done = kdlib("chapters")
    assert done.returncode == 0 and f"{SLUG} " in done.stdout and "5.1" in done.stdout and "published" in done.stdout


@pytest.mark.parametrize("words, message", [
    (["run", "domain-adaption"], "no chapter named 'domain-adaption'; did you mean domain-adaptation?"),
    (["run"], "run takes chapter names or --all"),
    (["run", SLUG, "--all"], "run takes chapter names or --all"),
    (["run", SLUG, "--profile", "smok"], "no profile named 'smok'; did you mean smoke?"),
    (["run", SLUG, "-p", "epoch=2"], "no parameter of domain-adaptation named 'epoch'; did you mean epochs?"),
    (["run", SLUG, "-p", "epochs=two"], "parameter epochs takes int, not 'two'"),
    (["run", SLUG, "-p", "epochs=2.5"], "parameter epochs takes int, not '2.5'"),
    (["run", SLUG, "-p", "epochs=0"], "parameter epochs = 0 is out of range"),
    (["run", SLUG, "-p", "tau=nan"], "parameter tau = nan is out of range"),
    (["run", SLUG, "-p", "tau=-1"], "parameter tau = -1.0 is out of range"),
    (["run", SLUG, "-p", "dropout=maybe"], "parameter dropout takes true or false, not 'maybe'"),
    (["run", SLUG, "-p", "source=emnist"], "parameter source = 'emnist' is not allowed"),
    (["run", SLUG, "-p", "hint_layer=conv9"], "parameter hint_layer = 'conv9' is not allowed"),
    (["run", SLUG, "-p", "epochs"], "-p takes NAME=VALUE, not 'epochs'"),
    (["run", SLUG, "--only", "domain=M"], "no part (--only) named 'domain'"),
    (["run", SLUG, "--jobs", "0"], "--jobs is at least 1, not 0"),
    (["run", SLUG, "--device", "tpu"], "parameter device = 'tpu' is not allowed"),
    (["run", SLUG, "--as-published", "-p", "epochs=2"], "--as-published takes every parameter from the published chapter"),
    (["run", SLUG, "-p", "tau=2", "-p", "tau=3"], "-p tau was given twice"),
    (["run", SLUG, "--out", "/proc/nowhere"], "/proc/nowhere: No such file or directory"),
    (["book", "--from", "/nowhere"], "no folder /nowhere"),
    (["publish", SLUG, "--from", "/nowhere"], "no executed chapter /nowhere/domain-adaptation.ipynb"),
    (["publish", "nothing", "--from", "/nowhere"], "no chapter named 'nothing'"),
])
def test_bad_input_is_one_clear_line(words, message, capsys):
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"kdlib: {message}") and said.count("\n") == 1


@pytest.mark.parametrize("words, environment, message", [
    (["--only", "method=CRD"], {}, "--only method=CRD: this chapter has Hint, Hint*, Ind, Ind2, KL, KL*, T, T*"),
    (["-p", "source=mnist"], {"KDLIB_DATA": "{empty}"}, "MNIST: not readable from"),
    (["-p", "source=mnist"], {"KDLIB_DATA": "/nowhere"}, "KDLIB_DATA is /nowhere, but there is no such folder"),
    (["-p", "tau=7"], {"KDLIB_CACHE": "{file}/cache"}, "store: cannot write under"),
])
def test_a_run_that_fails_leaves_earlier_results_whole(smoke, tmp_path, words, environment, message):
    out = tmp_path / "out"
    shutil.copytree(smoke[0], out)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    environment = {k: v.format(empty=tmp_path / "empty", file=tmp_path / "file") for k, v in environment.items()}
    done = kdlib("run", SLUG, "--profile", "smoke", "--out", out, *words, **{"KDLIB_CACHE": str(tmp_path / "cache")} | environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
    assert before == {p: p.read_bytes() for p in before}
    assert {p.name for p in out.iterdir()} == {f"{SLUG}.ipynb", f"{SLUG}.failed.ipynb", "results"}


def test_a_relative_cache_is_the_callers(tmp_path):
    words = [sys.executable, "-m", "kdlib.book.command", "run", SLUG, "--profile", "smoke", "-p", "limit=64", "--only", "method=T*", "--only", "seed=0"]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "KDLIB_CACHE": "here"}, capture_output=True, text=True)
    assert done.returncode == 0 and len(list((tmp_path / "here" / "run").iterdir())) == 1, done.stderr


def test_a_part_is_stored_and_writes_nothing_and_parts_add_up(tmp_path):
    words = ["run", SLUG, "--profile", "smoke", "-p", "limit=64", "--out", tmp_path / "out"]
    part = kdlib(*words, "--only", "seed=1", "--only", "method=KL", KDLIB_CACHE=str(tmp_path / "cache"))
    assert part.returncode == 0 and "3 of 72 measurements are in the store" in part.stdout, part.stdout + part.stderr
    assert "2 networks to train" in part.stdout and not list((tmp_path / "out").iterdir())
    rest = kdlib(*words, KDLIB_CACHE=str(tmp_path / "cache"))
    assert rest.returncode == 0 and "22 networks to train" in rest.stdout, rest.stdout + rest.stderr
    assert (tmp_path / "out" / "results" / f"{SLUG}.json").exists()


def test_an_interrupted_run_says_so_and_keeps_what_had_finished(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "kdlib.book.command", "run", SLUG, "--profile", "smoke", "--out", tmp_path / "out"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
                               env={**os.environ, "KDLIB_CACHE": str(tmp_path / "cache")})
    while "1/24 trained" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and said.startswith("kdlib: interrupted") and said.count("\n") == 1, said
    store = Store(tmp_path / "cache")
    finished = [p.name for p in (store.root / "run").iterdir()]
    assert finished and all(store.read("run", key) for key in finished)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("line, text, value", [
    ("in [1, 5]", "3", 3), ("in [1, 5]", "6", None), ("no range", "99", 99), ("no range", "x", None)])
def test_parameters_are_parsed_and_checked(line, text, value):
    parameter = Parameter("n", int, 1, line)
    if value is None:
        with pytest.raises(BookError, match="parameter n"):
            parameter.parse(text)
    else:
        assert parameter.parse(text) == value


def book_root(tmp_path):
    (tmp_path / "book" / "results").mkdir(parents=True)
    return tmp_path


def executed(smoke, tmp_path, profile):
    """The smoke execution, relabelled: what publishing looks at is the label."""
    out = tmp_path / "executed"
    shutil.copytree(smoke[0], out)
    path = out / "results" / f"{SLUG}.json"
    body = json.loads(path.read_text())
    body["provenance"]["profile"] = profile
    path.write_text(json.dumps(body))
    notebook = nbformat.read(out / f"{SLUG}.ipynb", as_version=4)
    notebook.metadata["kdlib"]["results"] = digest(path)
    nbformat.write(notebook, out / f"{SLUG}.ipynb")
    return out


def test_publishing_carries_notebook_results_and_measurements(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_CACHE", str(smoke[1]))
    root = book_root(tmp_path)
    line = publish(source(SLUG), executed(smoke, tmp_path, "cpu"), root)
    assert "published domain-adaptation (cpu profile" in line and "75 measurements" in line
    assert {p.name for p in (root / "book").rglob("*") if p.is_file()} == {f"{SLUG}.ipynb", f"{SLUG}.json", f"{SLUG}.npz"}


def test_publishing_refuses(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_CACHE", str(smoke[1]))
    root = book_root(tmp_path)
    with pytest.raises(BookError, match="smoke profile"):
        publish(source(SLUG), smoke[0], root)
    out = executed(smoke, tmp_path, "cpu")
    path = out / "results" / f"{SLUG}.json"
    whole = path.read_text()
    path.write_text(whole.replace('"seed": 2', '"seed": 3'))
    with pytest.raises(BookError, match="are not of one execution"):
        publish(source(SLUG), out, root)
    path.write_text(whole)
    changed = nbformat.read(ROOT / "notebooks" / f"{SLUG}.ipynb", as_version=4)
    changed.cells[0].source += "\nA new sentence."
    nbformat.write(changed, tmp_path / f"{SLUG}.ipynb")
    with pytest.raises(BookError, match="its source has changed since it was executed"):
        publish(Source(SLUG, tmp_path / f"{SLUG}.ipynb"), out, root)
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "another"))
    with pytest.raises(Exception, match="75 of 75 measurements are not in"):
        publish(source(SLUG), out, root)
    assert not [p for p in (root / "book").rglob("*") if p.is_file()], "nothing is left of a publication that failed"
