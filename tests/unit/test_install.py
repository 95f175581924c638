"""`pip install .` gives a light kdlib: whole, without the packages of the extras, and with a command that says what is missing."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution, distributions, packages_distributions

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kdlib.book import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HIDE = """
import sys
from importlib.machinery import PathFinder

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in HIDDEN else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""
LIBRARY = ["kdlib.losses", "kdlib.distill", "kdlib.models", "kdlib.foreign", "kdlib.weights", "kdlib.stats", "kdlib.study", "kdlib.store",
           "kdlib.toy", "kdlib.train", "kdlib.data",
           *(f"kdlib.{folder}.{p.stem}" for folder in ("data", "probes") for p in (ROOT / "kdlib" / folder).glob("*.py") if p.stem != "__init__")]


def needed(requirements):
    """The distributions that these requirements bring, by name."""
    found, todo = set(), [Requirement(r) for r in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name not in found and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
            found.add(name)
            todo += map(Requirement, distribution(name).requires or ())
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tree, without an index."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "kdlib", folder / "tree" / "kdlib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in "pyproject.toml", "README.md", "LICENSE":
        shutil.copy(ROOT / name, folder / "tree")
    pip(folder, "wheel", folder / "tree", "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    [built] = folder.glob("kdlib-*.whl")
    return built


def pip(folder, *words):
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words), "--no-index", "--quiet"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    """A function that runs the installed wheel with nothing but its own dependencies, in an empty folder."""
    root, empty = tmp_path_factory.mktemp("light"), tmp_path_factory.mktemp("empty")
    pip(root, "install", wheel, "--no-deps", "--target", root / "site")
    kept = needed(PROJECT["dependencies"])
    assert {"torch", "numpy", "sympy"} <= kept and not {"nbformat", "papermill", "matplotlib", "scikit-learn", "torchvision", "pillow"} & kept
    installed = {canonicalize_name(d.metadata["Name"]) for d in distributions()}
    assert {"nbformat", "papermill", "matplotlib", "scikit-learn", "torchvision", "pillow"} <= installed
    hidden = {module for module, owners in packages_distributions().items()
              if not (kept | {"kdlib"}) & set(map(canonicalize_name, owners))}
    (root / "hide").mkdir()
    (root / "hide" / "sitecustomize.py").write_text(f"HIDDEN = {hidden}\n{HIDE}")

    def run(*words):
        environment = os.environ | {"PYTHONPATH": f"{root / 'hide'}{os.pathsep}{root / 'site'}", "OMP_NUM_THREADS": "1"}
        return subprocess.run(list(map(str, words)), cwd=empty, capture_output=True, text=True, env=environment)

    run.site = root / "site"
    return run


def test_the_wheel_holds_every_module_and_the_command(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {n for n in names if n.endswith(".py")} == {str(p.relative_to(ROOT)) for p in (ROOT / "kdlib").rglob("*.py")}
    [entry] = [zipfile.ZipFile(wheel).read(n).decode() for n in names if n.endswith("entry_points.txt")]
    assert "kdlib = kdlib.book.command:main" in entry


def test_the_extras_are_hidden(light):
    for module in "nbformat", "sklearn", "torchvision", "matplotlib.pyplot", "PIL":
        done = light(sys.executable, "-c", f"import {module}")
        assert done.returncode == 1 and f"No module named '{module.split('.')[0]}'" in done.stderr


def test_the_library_needs_none_of_the_extras(light):
    script = f"import importlib, kdlib; [importlib.import_module(m) for m in {LIBRARY}]; print(kdlib.__file__)"
    done = light(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(light.site / "kdlib" / "__init__.py")


def test_readmes_lines_for_ones_own_models_run_in_it(light):
    [code] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    done = light(sys.executable, "-c", code)
    assert done.returncode == 0 and done.stdout.count("same class for") == 1, done.stderr


def test_foreign_networks_say_what_they_lack_and_our_own_lack_nothing(light):
    done = light(sys.executable, "-c", "from kdlib.models import network; network('residual-4x1', size=32, classes=2).build()\n"
                                       "network('resnet18', size=64, classes=2)")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("ValueError: no network named 'resnet18'") and "pip install 'kdlib[data]'" in last, done.stderr


@pytest.mark.parametrize("words", [["chapters"], ["run", "domain-adaptation"], ["book"], ["publish", "x", "--from", "y"], ["headline"]])
def test_the_command_says_in_one_line_what_it_lacks(light, words):
    done = light(light.site / "bin" / "kdlib", *words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("kdlib: ") and "clone of the repository" in done.stderr and "pip install -e '.[book]'" in done.stderr


def test_the_toy_example_needs_none_of_the_extras(light, tmp_path):
    done = light(light.site / "bin" / "kdlib", "toy", "--out", tmp_path / "toy.html")
    assert done.returncode == 0 and (tmp_path / "toy.html").read_text().count("<svg") == 1, done.stderr


def test_the_command_has_its_help(light):
    done = light(light.site / "bin" / "kdlib", "--help")
    assert done.returncode == 0 and "chapters" in done.stdout, done.stderr


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == PROJECT["version"] == __import__("kdlib").__version__
    assert citation["license"] == PROJECT["license"] and citation["references"][0]["authors"][0]["family-names"] == "Ojha"
