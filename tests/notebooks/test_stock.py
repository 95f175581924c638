import os
import re
import shutil
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
from kdlib.store import Store, describe, digest, key, unpack
from kdlib.measures import Items, Predictions
from kdlib.train import Adadelta, Run
from kdlib.book.publish import publish
from notebooks_command import CHAPTERS, SLUG, executed, kdlib

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
        assert runs["localization"] and runs["localization"] == runs["adversarial"] == runs["unseen-domains"]
        depths = runs["invariance"] - runs["localization"]  # its Hint students at other depths are its own
        assert len(runs["invariance"] & runs["localization"]) > len(depths) > 0


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
    assert said.err.startswith(f"kdlib: {SLUG}: what it asks of the store cannot be planned, so nothing is pruned or saved: {reason}")
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


# measurements as files

WEIGHTS = "ab" * 32


def asked_for(limit=128):
    """A measurement that the chapter asks for (in its smoke profile, with this limit)."""
    return describe(Items(teacher(limit=limit, epochs=1).data, "M", 8))


def content(entries):
    return {k: (e.spec, e.info, digest(e.arrays)) for k, e in entries.items()}


def measured(store):
    return content({k.key: store.read("measure", k.key) for k in store.folders() if k.kind == "measure"})


def test_what_is_saved_and_loaded_is_the_same_to_the_byte(store, tmp_path, monkeypatch, capsys):
    for spec, info in (asked_for(), {}), (SPARE, {"weights": {"a": WEIGHTS}}):
        store.write("measure", spec, {"a": np.random.default_rng(3).random((50, 3)), "b": np.float16([np.nan, -0.0])}, info)
    put(store, "run", 0)
    file, before = tmp_path / "new" / "part.npz", measured(store)
    assert main(["store", "--save", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 2 measurements, 2 of them new, {file.stat().st_size / 1e3:.1f} kB\n"
    assert content(unpack(file)) == before and len(before) == 2
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "another"))
    another = Store(tmp_path / "another")
    another.write("measure", SPARE, {"mine": np.zeros(1)}, {})
    mine = measured(another)
    assert main(["store", "--load", str(file)]) == 0
    assert capsys.readouterr().out == f"{another.root}: 2 measurements from {file}, 1 of them new\n"
    assert measured(another) == before | mine, "what is there stays"
    for name in "meta.json", "data.safetensors":
        one, two = (s.root / "measure" / key(asked_for()) / name for s in (store, another))
        assert one.read_bytes() == two.read_bytes()
    assert main(["store", "--load", str(file)]) == 0 and ", 0 of them new\n" in capsys.readouterr().out


def test_saving_adds_to_what_a_file_holds(store, tmp_path, monkeypatch, capsys):
    file = tmp_path / "part.npz"
    put(store, "measure", 0)
    assert main(["store", "--save", str(file)]) == 0
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "another"))  # of another machine
    another = Store(tmp_path / "another")
    put(another, "measure", 0, {**SPARE, "seed": "b"})
    assert main(["store", "--save", str(file)]) == 0
    assert "2 measurements, 1 of them new" in capsys.readouterr().out and content(unpack(file)) == measured(store) | measured(another)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["another", "part.npz", "store"]


def test_an_archive_keeps_one_copy_of_a_network(store, tmp_path, monkeypatch, capsys):
    file, run = tmp_path / "part.npz", "a" * 32
    store.write("measure", SPARE, {"a": np.zeros(3)}, {"weights": {run: "aa" * 32}})
    assert main(["store", "--save", str(file)]) == 0
    held = file.read_bytes()
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "another"))
    another = Store(tmp_path / "another")
    another.write("measure", SPARE, {"a": np.ones(3)}, {"weights": {run: "bb" * 32}})
    another.write("measure", {**SPARE, "seed": "b"}, {"a": np.ones(3)}, {"weights": {run: "bb" * 32}})
    capsys.readouterr()
    assert main(["store", "--save", str(file)]) == 1 and file.read_bytes() == held
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "of run aaaaaaaa it holds measurements with the weights aaaaaaaa, and" in said and "with bbbbbbbb" in said
    third = Store(tmp_path / "third")
    monkeypatch.setenv("KDLIB_CACHE", str(third.root))
    third.write("measure", SPARE, {"a": np.ones(3)}, {})  # of an earlier version
    third.write("measure", {**SPARE, "seed": "c"}, {"a": np.ones(3)}, {})
    assert main(["store", "--save", str(file)]) == 0
    assert not unpack(file)[key(SPARE)].arrays["a"].any() and len(unpack(file)) == 2, "what the file holds stays"


def test_of_two_that_save_to_one_file_at_once_both_stay(store, tmp_path):
    file, others = tmp_path / "part.npz", [Store(tmp_path / f"store {i}") for i in range(4)]
    put(store, "measure", 0)
    assert main(["store", "--save", str(file)]) == 0
    for i, other in enumerate(others):
        put(other, "measure", 0, {**SPARE, "seed": f"{i}"})
    threads = [Thread(target=lambda s=s: list(stock.save(s, file, []))) for s in others]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(unpack(file)) == 5


def test_what_chapters_ask_for_is_saved_from_archives_too(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stock, "sources", lambda: {SLUG: source(SLUG)})
    published, kept = Store(tmp_path / "published"), tmp_path / "kept.npz"
    for spec in (in_archive := describe(Items(teacher(limit=128, epochs=1).data, "orig", 8))), {**SPARE, "seed": "b"}:
        put(published, "measure", 0, spec)
    published.archive([k.key for k in published.folders()], kept)
    monkeypatch.setattr(results, "archives", lambda: [kept])
    for spec in asked_for(), asked_for(64), SPARE:
        put(store, "measure", 0, spec)
    file = tmp_path / "part.npz"
    assert main(["store", "--save", str(file), "--of", SLUG]) == 0
    assert unpack(file).keys() == {key(asked_for()), key(in_archive)}
    assert "2 measurements, 2 of them new" in capsys.readouterr().out
    assert main(["store", "--save", str(file), "--of", SLUG]) == 0 and "2 measurements, 0 of them new" in capsys.readouterr().out


def test_a_damaged_measurement_is_left_out_and_one_line_says_so(store, tmp_path, capsys):
    entry = put(store, "measure", 0)
    put(store, "measure", 0, asked_for())
    (entry.folder / "meta.json").write_text("{}")
    assert main(["store", "--save", str(tmp_path / "part.npz")]) == 0
    said = capsys.readouterr()
    assert "1 measurement, 1 of them new" in said.out and said.err.count("\n") == 1 and f"{entry.folder} is damaged" in said.err
    assert unpack(tmp_path / "part.npz").keys() == {key(asked_for())}


def test_one_copy_of_a_network_is_dropped_with_all_that_rests_on_it(store, capsys):
    arrays, specs = {"a": np.zeros(3)}, [{**SPARE, "seed": name} for name in "abcdef"]
    copy, other = digest(arrays), "cd" * 32
    teacher, student, stranger = specs[:3]
    store.write("run", teacher, arrays, {})
    store.write("run", student, {"a": np.ones(3)}, {"weights": {key(teacher): copy}})
    store.write("run", stranger, {"a": np.ones(2)}, {"weights": {"0": other}})
    for spec, digests in zip(specs, ([copy], [copy, other], [other], [])):
        store.write("measure", spec, arrays, {"weights": dict(zip("01", digests))})
    store.write("measure", specs[5], arrays, {})  # of an earlier version
    everything = store.folders()
    assert main(["store", "--drop", copy[:8]]) == 0 and store.folders() == everything
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{store.root}: to remove: 2 runs, 2 measurements, ")
    assert main(["store", "--drop", copy[:8], "--yes"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{store.root}: removed: 2 runs, 2 measurements, ") and said.count("\n") == 1
    assert {(k.kind, k.key) for k in store.folders()} == {("run", key(stranger)), *(("measure", key(specs[i])) for i in (2, 3, 5))}
    assert main(["store", "--drop", copy]) == 1 and f"nothing in {store.root} rests on weights {copy}; " in capsys.readouterr().err


def test_an_own_archive_counts_before_others_and_published_ones_before_kept(tmp_path):
    folder = tmp_path / "book" / "results"
    (folder / "kept").mkdir(parents=True)
    for name in "kept/b.npz", "kept/a.npz", "b.npz", "c.npz", "a.npz", "a.json", "kept/notes.txt":
        (folder / name).touch()
    assert [str(f.relative_to(folder)) for f in results.archives("b", tmp_path)] == ["kept/a.npz", "kept/b.npz", "a.npz", "c.npz", "b.npz"]
    assert results.archives("b", tmp_path / "nowhere") == []


def test_a_chapter_is_finished_and_published_from_kept_parts_alone(smoke, tmp_path, monkeypatch, capsys):
    root, empty = tmp_path / "root", tmp_path / "empty"
    for name in "kdlib", "notebooks", "book":
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "results", "chapters"))
    monkeypatch.setenv("KDLIB_CACHE", str(smoke[1]))
    kept = root / "book" / "results" / "kept" / "part.npz"
    assert main(["store", "--save", str(kept)]) == 0
    environment = {"KDLIB_CACHE": str(empty), "PYTHONPATH": str(root), "PYTHONSAFEPATH": "1"}
    done = kdlib("run", SLUG, "--profile", "smoke", "--out", tmp_path / "out", **environment)
    assert done.returncode == 0 and "to train" not in done.stdout and not empty.exists(), done.stdout + done.stderr
    was, now = (results.read(folder / "results" / f"{SLUG}.json") for folder in (smoke[0], tmp_path / "out"))
    assert (now.records, now.effects) == (was.records, was.effects)
    monkeypatch.setenv("KDLIB_CACHE", str(empty))
    assert "with 93 measurements" in publish(source(SLUG), executed(tmp_path / "out", tmp_path / "executed"), root)
    assert unpack(root / "book" / "results" / f"{SLUG}.npz").keys() == set(now.provenance["measurements"]) and not empty.exists()
