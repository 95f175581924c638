import os
import re
import time
from threading import Event, Thread

import nbformat
import numpy as np
import pytest

from kdlib.book import ROOT, results, stock
from kdlib.book.chapters import Source, source
from kdlib.book.command import main
from kdlib.data.digits import Digits
from kdlib.distill import KL, Alone
from kdlib.models import Model
from kdlib.store import Store, describe, key
from kdlib.measures import Items, Predictions
from kdlib.train import Adadelta, Run
from notebooks_command import CHAPTERS, SLUG

SPARE = {"type": "Example", "version": 1, "seed": "a"}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "store"))
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def keys():
    return stock.asked(source(SLUG))


def teacher(**changes):
    """A teacher of the chapter as a machine without a GPU and without bfloat16 would train it."""
    values = {"source": "embedded", "patches": "bundled", "limit": None, "epochs": 30, "device": "cpu", "dtype": "float32"} | changes
    data = Digits(values["source"], values["patches"], values["limit"])
    return Run(data, data.domains, Model("mnistnet", {"size": data.size, "dropout": True}), Alone(), Adadelta(values["epochs"], 64),
               "teacher-0", device=values["device"], dtype=values["dtype"])


def everything(run):
    student = Run(run.data, ("orig",), run.model, KL(0.1, 0.9, 8.0), run.schedule, "student-0", run, run.device, run.dtype)
    return {("run", run.key), ("run", student.key), ("measure", Predictions(student, run.data, "M").key),
            ("measure", Items(run.data, "M", 8).key)}


def put(store, kind, age, spec=SPARE):
    """An entry that landed `age` seconds ago."""
    store.write(kind, spec, {"a": np.zeros(1000)}, {})
    folder = store.root / kind / key(spec)
    for path in (folder, *folder.iterdir()):
        os.utime(path, (time.time() - age,) * 2)
    return next(kept for kept in store.folders() if kept.folder == folder)


# what chapters ask for

def test_a_chapter_asks_for_what_any_machine_would_compute(keys, monkeypatch, tmp_path):
    assert set(keys) >= {"smoke", "cpu", "real", "gpu", "paper"}
    assert everything(teacher()) <= keys["cpu"] and everything(teacher(limit=128, epochs=1)) <= keys["smoke"]
    for device in "cpu", "cuda":
        for dtype in "float32", "bfloat16":
            assert everything(teacher(device=device, dtype=dtype)) <= keys["cpu"]
    for patches in "bundled", "bsds500":  # with the photographs at hand or not
        assert everything(teacher(source="mnist", patches=patches, epochs=14)) <= keys["real"]
    on_gpu = teacher(source="mnist", patches="bsds500", epochs=14, device="cuda", dtype="bfloat16")
    assert everything(on_gpu) <= keys["gpu"]
    on_cpu = teacher(source="mnist", patches="bsds500", epochs=14)
    assert ("run", on_cpu.key) not in keys["gpu"] and ("run", teacher(epochs=29).key) not in frozenset().union(*keys.values())
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "nowhere"))
    assert stock.asked(source(SLUG)) == keys, "no data are needed to tell"


def test_a_published_chapter_asks_for_what_it_was_published_with(keys):
    path = ROOT / "book" / "results" / f"{SLUG}.json"
    if not path.exists():
        pytest.skip(f"{SLUG} is not published")
    assert {("measure", key) for key in results.read(path).provenance["measurements"]} <= keys["published"]


def test_what_a_run_computed_is_what_was_planned(smoke, keys):
    there = {(kept.kind, kept.key) for kept in Store(smoke[1]).folders()}
    assert len(there & keys["smoke"]) == 30 + 93
    assert there <= frozenset().union(*(stock.asked(source(slug))["smoke"] for slug in CHAPTERS))


def test_chapters_on_the_same_networks_share_them(keys):
    others = {slug: stock.asked(source(slug)) for slug in CHAPTERS}
    for profile in "smoke", "cpu", "real", "gpu":
        runs = {slug: {key for kind, key in others[slug][profile] if kind == "run"} for slug in CHAPTERS}
        assert runs[SLUG] and runs[SLUG] == runs["decision-boundary"] and runs["methods"] < runs[SLUG]


def chapter(tmp_path, *cells):
    """A chapter of these cells, with the parameters and facts of one that there is."""
    notebook = nbformat.from_dict(source(SLUG).notebook)
    parameters = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    notebook.cells = [parameters, *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(notebook, tmp_path / f"{SLUG}.ipynb")
    return Source(SLUG, tmp_path / f"{SLUG}.ipynb")


BEGIN = f"from kdlib.book.chapter import Chapter\nchapter = Chapter('{SLUG}', globals())"


def test_a_chapter_without_measurements_asks_for_nothing_and_is_not_executed(tmp_path):
    assert not any(stock.asked(chapter(tmp_path, BEGIN, "1 / 0")).values())


@pytest.mark.parametrize("cells, reason", [
    (["1 / 0", "chapter.complete({}, {})"], "division by zero"),
    ([BEGIN, "chapter.complete({}, {})\nchapter.complete({}, {})"], "it calls complete more than once"),
    ([BEGIN, "chapter.complete({}, {})", "chapter.complete({}, {})"], "it calls complete more than once"),
    ([BEGIN, "if False:\n    chapter.complete({}, {})"], "its call of complete is not reached"),
    (["%magic", BEGIN, "chapter.complete({}, {})"], "invalid syntax"),
])
def test_what_cannot_be_planned_is_listed_and_not_pruned(store, tmp_path, monkeypatch, capsys, cells, reason):
    monkeypatch.setattr(stock, "sources", lambda: {SLUG: chapter(tmp_path, *cells)})
    put(store, "run", 9 * stock.DAY)
    assert main(["store", "--prune", "--yes", "--all"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"kdlib: {SLUG}: what it asks of the store cannot be planned, so nothing is pruned: {reason}")
    assert said.err.count("\n") == 1 and len(store.folders()) == 1
    assert main(["store"]) == 0
    assert "not known" in (out := capsys.readouterr().out) and reason in out.splitlines()[-1]


# the command

def test_the_list(store, capsys, monkeypatch):
    monkeypatch.setattr(stock, "sources", lambda: {SLUG: source(SLUG)})
    assert main(["store"]) == 0
    assert capsys.readouterr().out == f"{store.root}: nothing in the store\n"
    run = teacher(limit=128, epochs=1)
    entries = [put(store, "run", 3 * stock.DAY, run.describe()), put(store, "measure", 7200, describe(Items(run.data, "M", 8))),
               put(store, "run", 600)]
    left = store.root / "making" / "abc-1"
    left.mkdir()
    os.utime(left, (time.time() - 5 * 3600,) * 2)
    assert main(["store"]) == 0
    total, header, *rows = capsys.readouterr().out.splitlines()
    assert total == f"{store.root}: 2 runs, 1 measurement, 1 leftover, {sum(k.size for k in entries) / 1e3:.1f} kB"
    assert [re.split(" {2,}", row) for row in (header, *rows)] == [
        ["asked for by", "profile", "runs", "measurements", "size", "age"],
        [SLUG, "smoke", "1", "1", f"{(entries[0].size + entries[1].size) / 1e3:.1f} kB", "2 h to 3 days"],
        ["no chapter", "1", f"{entries[2].size / 1e3:.1f} kB", "10 min"],
        ["(unfinished)", "0.0 kB", "5 h"]]


def test_pruning(store, capsys, monkeypatch):
    monkeypatch.setattr(stock, "sources", lambda: {SLUG: source(SLUG)})
    asked = put(store, "run", 100 * stock.DAY, teacher().describe())
    for kind in "run", "measure":
        put(store, kind, 2 * stock.DAY)
    young = put(store, "measure", 3600, {**SPARE, "seed": "b"})
    busy = put(store, "run", 2 * stock.DAY, {**SPARE, "seed": "c"})
    broken = put(store, "run", 0, {**SPARE, "seed": "d"})
    (broken.folder / "meta.json").write_text("")
    assert Store(store.root, say=lambda line: None).read("run", broken.key) is None
    (store.root / "making" / "abc-1").mkdir()
    everything = store.folders()
    assert len(everything) == 7

    free, held = Event(), Event()

    def hold():
        with store.lock(busy.key):
            held.set()
            free.wait()

    Thread(target=hold, daemon=True).start()
    held.wait()
    assert main(["store", "--prune"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{store.root}: to remove: 1 run, 1 measurement, 2 leftovers, ") and "with --yes removes it" in said
    assert "a process is computing them: 1 run, " in said and "younger than a day (--all takes them too): 1 measurement, " in said
    assert store.folders() == everything, "nothing was removed yet"
    assert main(["store", "--prune", "--yes"]) == 0
    assert capsys.readouterr().out.startswith(f"{store.root}: removed: 1 run, 1 measurement, 2 leftovers, ")
    assert {k.key for k in store.folders()} == {asked.key, young.key, busy.key}
    assert main(["store", "--prune", "--all", "--yes"]) == 0
    assert {k.key for k in store.folders()} == {asked.key, busy.key}
    free.set()
    while not store.idle(busy.key):
        time.sleep(0.001)
    assert main(["store", "--prune", "--yes"]) == 0 and [k.key for k in store.folders()] == [asked.key]
    capsys.readouterr()
    assert main(["store", "--prune", "--yes", "--all"]) == 0
    assert capsys.readouterr().out == f"{store.root}: nothing to remove\n" and store.read("run", asked.key) is not None
