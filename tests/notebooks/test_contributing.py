"""CONTRIBUTING.md's probe and chapter, verbatim, in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest

from kdlib.book import ROOT, results
from kdlib.book.execute import digest
from kdlib.book.headline import END, START

BLOCK = re.compile(r"^`(?P<path>[\w/.]+)`(?: (?P<kind>metadata|markdown|code)(?:, tags: (?P<tags>[^\n]+))?)?\n\n```\w+\n(?P<body>.*?)^```$",
                   flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name in ("kdlib", "book", "tests/conftest.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, root / name)
    shutil.rmtree(root / "book" / "results")  # archives that this chapter does not read
    notebook = nbformat.v4.new_notebook(metadata={  # what JupyterLab writes
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}, "language_info": {"name": "python"}})
    for block in BLOCK.finditer((ROOT / "CONTRIBUTING.md").read_text()):
        path, body = root / block["path"], block["body"].rstrip("\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        if block["kind"] == "metadata":
            notebook.metadata.update(json.loads(body))
        elif block["kind"]:
            cell = getattr(nbformat.v4, f"new_{block['kind']}_cell")(body)
            cell.metadata["tags"] = re.split(", ", block["tags"]) if block["tags"] else []
            notebook.cells.append(cell)
        else:
            path.write_text(body + "\n")
    nbformat.write(notebook, root / "notebooks" / "flips.ipynb")
    toc = root / "book" / "_toc.yml"
    toc.write_text(toc.read_text().replace("- file: chapters/domain-adaptation\n", "- file: chapters/domain-adaptation\n      - file: chapters/flips\n"))
    return root


def python(root, *words):
    return subprocess.run([sys.executable, *map(str, words)], cwd=root, capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env={**os.environ, "PYTHONPATH": str(root), "KDLIB_CACHE": str(root / "cache"), "KDLIB_DATA": ""})


@pytest.fixture(scope="module")
def run(project):
    done = python(project, "-m", "kdlib.book.command", "run", "flips", "--profile", "smoke")
    assert done.returncode == 0, done.stderr
    return project / "_build" / "smoke"


def test_the_probes_own_tests_pass(project):
    done = python(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/unit/test_flips.py")
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


def test_the_chapter_runs_and_its_effects_are_those_of_its_records(run):
    found = results.read(run / "results" / "flips.json")
    share = {m: np.mean(found.values(method=m, measure="negative flips")) for m in ("Ind", "Ind2", "KL", "KL*")}
    assert len(found.effects) == 4 and 0 < share["Ind"] < 1
    for row in found.effects:
        assert row["effect"] == pytest.approx(share[row["method"]] - share[row["reference"]])
        assert (row["n_seeds"], row["n_items"]) == (3, 64)


def test_a_chapter_without_its_last_call_is_told_so_and_a_scratch_notebook_is_none(project):
    notebook = nbformat.read(project / "notebooks" / "flips.ipynb", as_version=4)
    nbformat.write(nbformat.v4.new_notebook(cells=notebook.cells[-1:]), project / "notebooks" / "Untitled.ipynb")
    last = next(cell for cell in notebook.cells if "chapter.finish()" in cell.source)
    last.source = "pass"
    nbformat.write(notebook, project / "notebooks" / "endless.ipynb")
    try:
        done = python(project, "-m", "kdlib.book.command", "run", "endless", "--profile", "smoke", "--out", "_build/endless")
        assert done.returncode == 1 and done.stderr.splitlines() == [
            f"kdlib: endless: no cell called chapter.finish(), which writes its results; the last one should ({project}/_build/endless/endless.failed.ipynb is what it made)"]
        assert (project / "_build" / "endless" / "endless.failed.ipynb").exists()
        listed = python(project, "-m", "kdlib.book.command", "chapters")
        assert listed.returncode == 0 and "endless" in listed.stdout and "Untitled" not in listed.stdout, listed.stderr
    finally:
        for name in "Untitled", "endless":
            (project / "notebooks" / f"{name}.ipynb").unlink()


def test_publishing_it_brings_the_readme_up_to_date(run, project):
    path = run / "results" / "flips.json"
    path.write_text(path.read_text().replace('"profile": "smoke"', '"profile": "cpu"'))  # smoke is not published
    notebook = nbformat.read(run / "flips.ipynb", as_version=4)
    notebook.metadata["kdlib"]["results"] = digest(path)
    nbformat.write(notebook, run / "flips.ipynb")
    (project / "README.md").write_text(f"Above.\n{START}\nstale\n{END}\nBelow.\n")
    done = python(project, "-m", "kdlib.book.command", "publish", "flips", "--from", run)
    assert done.returncode == 0 and "published flips (cpu profile" in done.stdout, done.stderr
    assert (project / "README.md").read_text() == f"Above.\n{START}\nNo chapter is published yet.\n{END}\nBelow.\n"
