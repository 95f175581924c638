import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version

import pytest

from kdlib.book import ROOT, BookError
from kdlib.book.chapters import Parameter, read_notebook, source
from kdlib.book.command import _absolute
from kdlib.book.publish import publish
from kdlib.data import data_sets
from notebooks_command import SLUG, executed, kdlib


def test_chapters_lists_every_chapter():
    done = kdlib("chapters")
    assert done.returncode == 0 and f"{SLUG} " in done.stdout and "5.1" in done.stdout and "published" in done.stdout


def test_the_version_is_that_of_the_package():
    assert kdlib("--version").stdout.split() == ["kdlib", version("kdlib")]


def test_data_tells_of_every_data_set_whether_it_is_there(tmp_path):
    done = kdlib("data", KDLIB_DATA="", KDLIB_CACHE=str(tmp_path))
    told = re.findall(r"^(\w+): .+\n    (complete|missing|not complete): .+$", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0 and not done.stderr and len(done.stdout.splitlines()) == 2 * len(told), done.stdout
    assert list(dict(told)) == list(data_sets()) and {name for name, state in told if state == "complete"} == {"embedded", "bundled", "textures"}
    assert kdlib("data", "embedded", KDLIB_DATA="").stdout == "".join(done.stdout.splitlines(keepends=True)[:2])


def test_a_relative_cache_is_the_callers(tmp_path):
    words = [sys.executable, "-m", "kdlib.book.command", "run", SLUG, "--profile", "smoke", "-p", "limit=64", "--only", "method=T*", "--only", "seed=0"]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "KDLIB_CACHE": "here"}, capture_output=True, text=True)
    assert done.returncode == 0 and len(list((tmp_path / "here" / "run").iterdir())) == 1, done.stderr


def test_a_part_is_stored_and_writes_nothing_and_parts_add_up(tmp_path):
    words = ["run", SLUG, "--profile", "smoke", "-p", "limit=64", "--out", tmp_path / "out"]
    part = kdlib(*words, "--only", "seed=1", "--only", "method=KL", KDLIB_CACHE=str(tmp_path / "cache"))
    assert part.returncode == 0 and "3 of 90 measurements are in the store" in part.stdout, part.stdout + part.stderr
    assert "2 networks to train" in part.stdout and not list((tmp_path / "out").iterdir())
    rest = kdlib(*words, KDLIB_CACHE=str(tmp_path / "cache"))
    assert rest.returncode == 0 and "28 networks to train" in rest.stdout, rest.stdout + rest.stderr
    assert (tmp_path / "out" / "results" / f"{SLUG}.json").exists()


def test_plain_papermill_runs_a_chapter(tmp_path):
    """The README's command, with less to train."""
    [line] = re.findall(r"^\.venv/bin/papermill (.+)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    notebook, _, *parameters = shlex.split(line)
    words = [ROOT / notebook, tmp_path / "executed.ipynb", *parameters, "-p", "epochs", "1", "-p", "limit", "64", "--cwd", tmp_path]
    done = subprocess.run([sys.executable, "-m", "papermill", *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "KDLIB_CACHE": str(tmp_path / "cache")})
    assert done.returncode == 0, done.stderr
    executed = read_notebook(tmp_path / "executed.ipynb")
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source)
    said = "".join("".join(output.get("text", "")) for cell in executed.cells for output in cell.get("outputs", []))
    assert "networks to train" in said, said
    assert "seeds=3" in str(executed) and sorted(path.name for path in tmp_path.iterdir()) == ["cache", "executed.ipynb"]


@pytest.mark.parametrize("line, text, value", [
    ("in [1, 5]", "3", 3), ("in [1, 5]", "6", None), ("in [1, 5]", "0", None), ("0 or in [2, 5]", "0", 0), ("0 or in [2, 5]", "1", None), ("0 or in [2, 5]", "2", 2), ("no range", "99", 99), ("no range", "x", None)])
def test_parameters_are_parsed_and_checked(line, text, value):
    parameter = Parameter("n", int, 1, line)
    if value is None:
        with pytest.raises(BookError, match="parameter n"):
            parameter.parse(text)
    else:
        assert parameter.parse(text) == value


def test_paths_in_parameters_are_the_callers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    given = {"folder": "pictures", "tau": "2", "pairs": "residual-4x1@mine.pt->residual-4x1*, a@ ../b c-d.pth* -> b ,x->y,n@~/w.safetensors->m"}
    assert _absolute(given) == {"folder": f"{tmp_path}/pictures", "tau": "2", "pairs":
                                f"residual-4x1@{tmp_path}/mine.pt->residual-4x1*, a@{tmp_path.parent}/b c-d.pth* -> b ,x->y,n@/home/someone/w.safetensors->m"}
    assert _absolute({"pairs": "x->y", "folder": ""}) == {"pairs": "x->y", "folder": ""}


def book_root(tmp_path):
    (tmp_path / "book" / "results").mkdir(parents=True)
    return tmp_path


def test_publishing_carries_notebook_results_and_measurements(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_CACHE", str(smoke[1]))
    root = book_root(tmp_path)
    line = publish(source(SLUG), executed(smoke[0], tmp_path / "executed"), root)
    assert "published domain-adaptation (cpu profile" in line and "93 measurements" in line
    assert {p.name for p in (root / "book").rglob("*") if p.is_file()} == {f"{SLUG}.ipynb", f"{SLUG}.json", f"{SLUG}.npz"}
