"""A study in parts: what measurements say of the networks behind them, and that two copies of a network never meet in one study."""

import os
import re
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np
import pytest

import tiny
from kdlib import train
from kdlib.measures import Measure
from kdlib.store import Store, StoreError, describe, digest, key, unpack
from kdlib.study import complete
from kdlib.train import finish, fit, machine

TEACHER, ALONE = tiny.run("0"), tiny.run("3")
STUDENT = tiny.run("1", TEACHER)
GRANDSTUDENT = tiny.run("2", STUDENT)
T, IND, KL = map(tiny.Scores, (TEACHER, ALONE, STUDENT))
HERE = machine("cpu", "float32")[2]


@dataclass(frozen=True)
class Distance(Measure):
    """Of two networks."""

    run: tiny.Run
    other: tiny.Run
    version = 1

    def compute(self, net, other):
        return {"distance": (net[1].weight - other[1].weight).abs().sum().detach().numpy()}


@pytest.fixture(autouse=True)
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_LOG", str(tmp_path / "log"))


def begun():
    """What was trained and measured since the last call."""
    path = Path(os.environ["TINY_LOG"])
    lines = [tuple(line.split()[:2]) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def work(measures, store):
    return complete(measures, store, jobs=tiny.ThreadPoolExecutor(1), progress=tiny.quiet)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def other(tmp_path):
    """The store of a machine on which the teacher came out a little differently."""
    store, net = Store(tmp_path / "other"), fit(TEACHER)[0]
    weights = {n: t.numpy() for n, t in net.state_dict().items()}
    weights["1.bias"] = np.nextafter(weights["1.bias"], np.float32(9))
    store.write("run", TEACHER.describe(), weights, {})
    begun()
    return store


def archived(store, measures, file):
    store.archive([m.key for m in measures], file)
    return file


def weights(store, run):
    return digest(store.read("run", run.key).arrays)


# what is recorded

def test_a_measurement_names_the_weights_of_its_networks_and_of_their_teachers(store):
    measures = [T, KL, tiny.Scores(GRANDSTUDENT), Distance(STUDENT, ALONE)]
    keys = [m.key for m in measures]
    work(measures, store)
    d = {run: {run.key: weights(store, run)} for run in (TEACHER, ALONE, STUDENT, GRANDSTUDENT)}
    line = d[TEACHER] | d[STUDENT]
    assert [store.read("measure", k).info for k in keys] == [
        {"weights": w, "device": HERE, "trained": [HERE]} for w in (d[TEACHER], line, line | d[GRANDSTUDENT], line | d[ALONE])]
    assert store.read("run", STUDENT.key).info["weights"] == d[TEACHER] and "weights" not in store.read("run", TEACHER.key).info
    assert store.read("run", GRANDSTUDENT.key).info["weights"] == line
    assert [store.weights("run", r.key) for r in (TEACHER, GRANDSTUDENT)] == [d[TEACHER], line | d[GRANDSTUDENT]]
    assert store.weights("measure", KL.key) == line
    assert len({*(d for w in [line, d[ALONE], d[GRANDSTUDENT]] for d in w.values())}) == 4


def test_weights_are_told_without_reading_them_and_never_wrongly(store):
    finish(STUDENT, store)
    told, folder = store.weights("run", STUDENT.key), store.root / "run" / STUDENT.key
    (folder / "data.safetensors").unlink()
    assert store.weights("run", STUDENT.key) == told and len(told) == 2
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace(told[TEACHER.key], "0" * 64))
    assert store.weights("run", STUDENT.key) == {} == store.weights("run", "0" * 32) == store.weights("measure", STUDENT.key)


# two copies

SAYS = re.compile(r"store: two copies of \w+ linear s on a \((\w{8})\): its weights are (\w{8}) in (\w+ \w{8} of \S+) "
                  r"and (\w{8}) in (\w+ \w{8} of \S+); "
                  r"keep one: kdlib store --drop WEIGHTS removes from the store .*")


def conflict(measures, store):
    """(run, one copy, where, other copy, where) of the error that the study ends with."""
    with pytest.raises(StoreError) as error:
        work(measures, store)
    return SAYS.fullmatch(str(error.value)).groups()


def test_parts_of_one_copy_are_put_together_and_nothing_is_trained(store, tmp_path):
    whole = work([T, IND, KL], store)
    parts = [archived(store, part, tmp_path / f"{i}.npz") for i, part in enumerate([[T], [IND, KL]])]
    begun()
    got = work([T, IND, KL], Store(tmp_path / "empty", parts))
    assert begun() == [] and not (tmp_path / "empty").exists()
    assert all(np.array_equal(got[m]["score"], whole[m]["score"]) for m in (T, IND, KL))


def test_measurements_of_two_copies_are_refused_before_anything_is_trained(store, other, tmp_path):
    work([T], store)
    work([KL], other)
    parts = [archived(store, [T], tmp_path / "one.npz"), archived(other, [KL], tmp_path / "two.npz")]
    begun()
    a, b = weights(store, TEACHER)[:8], weights(other, TEACHER)[:8]
    places = f"measurement {T.key[:8]} of {parts[0]}", f"measurement {KL.key[:8]} of {parts[1]}"
    said = conflict([T, KL, IND], Store(tmp_path / "empty", parts))
    assert said == (TEACHER.key[:8], a, places[0], b, places[1]) and a != b
    assert begun() == [] and not (tmp_path / "empty").exists()


def test_the_cause_is_named_and_not_what_follows_from_it(store, other, tmp_path):
    for student in (tiny.run(str(n), STUDENT) for n in range(20, 24)):  # all of these differ too; their keys come in any order
        one, two = [tiny.Scores(student)], [Distance(student, STUDENT)]
        work(one, store)
        work(two, other)
        parts = [archived(store, one, tmp_path / "one.npz"), archived(other, two, tmp_path / "two.npz")]
        assert conflict(one + two, Store(tmp_path / "empty", parts))[0] == TEACHER.key[:8]


def test_a_finished_teacher_that_comes_out_the_same_lets_its_students_be_trained(store, tmp_path):
    whole = work([T, IND, KL], Store(tmp_path / "whole"))
    work([T, IND], store)
    part = archived(store, [T, IND], tmp_path / "part.npz")
    begun()
    got = work([T, IND, KL], Store(tmp_path / "empty", [part]))
    assert begun() == [("train", "0"), ("train", "1"), ("measure", "1")]
    assert all(np.array_equal(got[m]["score"], whole[m]["score"]) for m in whole)


def test_a_teacher_that_comes_out_differently_is_said_before_its_students_are_trained(other, tmp_path):
    work([T, IND], other)
    part, here = archived(other, [T, IND], tmp_path / "part.npz"), Store(tmp_path / "here")
    begun()
    study, there = [T, IND, KL], f"measurement {T.key[:8]} of {part}"
    run, kept, first, made, second = conflict(study, Store(here.root, [part]))
    assert begun() == [("train", "0")]
    assert (run, kept, first) == (TEACHER.key[:8], weights(other, TEACHER)[:8], there)
    assert (made, second) == (weights(here, TEACHER)[:8], f"run {run} of {here.root}")
    assert conflict(study, Store(here.root, [part]))[0] == run and begun() == [], "and at once from then on"
    conflict([tiny.Scores(tiny.run("9")), *study], Store(tmp_path / "another", [part]))
    assert begun()[0] == ("train", "0"), "the doubtful one first"
    work(study, here)  # the archive has been moved away
    assert ("train", "1") in begun()


def test_a_student_of_another_copy_does_not_join(store, other):
    """Its teacher's entry was lost, and trained anew elsewhere."""
    work([KL], store)
    store.remove(next(f for f in store.folders() if f.key == TEACHER.key))
    store.write("run", TEACHER.describe(), other.read("run", TEACHER.key).arrays, {})
    begun()
    run, _, first, _, second = conflict([T, KL], store)
    assert (run, first) == (TEACHER.key[:8], f"measurement {KL.key[:8]} of {store.root}") and second == f"run {run} of {store.root}"
    assert conflict([Distance(STUDENT, TEACHER)], store)[2::2] == (f"run {STUDENT.key[:8]} of {store.root}", second) and begun() == []


def test_what_another_process_measured_meanwhile_is_looked_at(store, other, tmp_path):
    """Nothing conflicts when the study begins; its last measurement lands from elsewhere while it works."""
    work([T], store)
    work([KL], other)
    theirs, compute = other.read("measure", KL.key), tiny.Scores.compute

    @dataclass(frozen=True)
    class Meanwhile(tiny.Scores):
        def compute(self, net):
            if store.read("measure", KL.key) is None:
                store.write("measure", theirs.spec, theirs.arrays, theirs.info)
            return compute(self, net)

    said = conflict([T, Meanwhile(ALONE), KL], store)
    assert said[0] == TEACHER.key[:8] and said[4] == f"measurement {KL.key[:8]} of {store.root}"


def test_the_device_of_a_measurement_is_told_from_the_store_and_from_archives(store, tmp_path):
    work([T], store)
    entry, file = store.read("measure", T.key), tmp_path / "part.npz"
    elsewhere = Store(tmp_path / "elsewhere")
    elsewhere.write("measure", describe(KL), entry.arrays, {"device": "another, 64 cores"})
    elsewhere.write("measure", describe(IND), entry.arrays, {})
    elsewhere.archive([KL.key, IND.key], file)
    both = Store(store.root, [file])
    assert [both.devices(m.key) for m in (T, KL, IND)] == [[HERE], ["another, 64 cores"], []]
    assert both.devices("0" * 32) == []


def test_the_device_that_trained_is_named_beside_the_one_that_measured(store, monkeypatch):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(train, "machine", lambda device, dtype: (device, dtype, "another, 64 cores"))
        finish(TEACHER, store)
    work([KL, T], store)
    assert store.devices(KL.key) == [HERE, "another, 64 cores"] == store.devices(T.key)
    assert store.read("measure", KL.key).info["trained"] == sorted({HERE, "another, 64 cores"})


def test_what_was_begun_beside_a_failure_lands_first(store):
    begun_, failed, said = Event(), Event(), []

    @dataclass(frozen=True)
    class Fails(tiny.Scores):
        def compute(self, net):
            begun_.wait(20)
            raise ValueError("not this one")

    @dataclass(frozen=True)
    class Slow(tiny.Scores):
        def compute(self, net):
            begun_.set()
            assert failed.wait(20)
            return super().compute(net)

    def progress(line):
        said.append(line)
        if "failed" in line:
            failed.set()

    with tiny.ThreadPoolExecutor(2) as executor, pytest.raises(ValueError, match="not this one"):
        finish(TEACHER, store), finish(ALONE, store)
        complete([Fails(TEACHER), Slow(ALONE)], store, jobs=executor, progress=progress)
    assert store.read("measure", Slow(ALONE).key) is not None
    assert said[-1] == "Fails failed (ValueError); 1 begun beside it will be finished first"


def test_an_interrupt_waits_for_nothing_and_leaves_nothing_queued(store):
    submitted = []

    class Interrupted(tiny.ThreadPoolExecutor):
        def submit(self, *call):
            submitted.append(Future())
            if len(submitted) == 1:
                submitted[0].set_exception(KeyboardInterrupt())
            return submitted[-1]

    finish(TEACHER, store), finish(ALONE, store)
    with pytest.raises(KeyboardInterrupt):
        complete([T, IND], store, jobs=Interrupted(1), progress=tiny.quiet)
    assert [future.cancelled() for future in submitted] == [False, True]


def test_a_process_that_dies_is_one_clear_line(store):
    class Dead(tiny.ThreadPoolExecutor):
        def submit(self, *call):
            future = Future()
            future.set_exception(BrokenExecutor("A worker process managed by the executor was unexpectedly terminated.\nThis could be ..."))
            return future

    with pytest.raises(StoreError, match="^study: a process died while it computed, perhaps for lack of memory; what had finished is in the store, .*--jobs 1.*$"):
        complete([T], store, jobs=Dead(1), progress=tiny.quiet)


def test_entries_that_name_no_weights_stay_valid(store, other, tmp_path):
    work([T], store)
    work([KL], other)
    old = Store(tmp_path / "old")
    for source, measure in (store, T), (other, KL):
        entry = source.read("measure", measure.key)
        old.write("measure", describe(measure), entry.arrays, {})
    begun()
    assert work([T, KL], old)[KL]["score"].shape == (64, 8) and begun() == []
    assert work([T, IND, KL], old)[IND]["score"].shape == (64, 8) and begun() == [("train", "3"), ("measure", "3")]
    assert old.weights("measure", T.key) == {}


def test_the_weights_change_no_key_and_survive_an_archive(store, tmp_path):
    work([KL], store)
    file = archived(store, [KL], tmp_path / "part.npz")
    [(name, entry)] = unpack(file).items()
    assert name == KL.key == key(describe(KL)) and entry.place == file
    assert entry.info == store.read("measure", KL.key).info and len(entry.info["weights"]) == 2


def test_an_archive_that_cannot_be_written(store, tmp_path):
    work([T], store)
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for file in tmp_path / "file" / "part.npz", tmp_path / "folder.npz":
        with pytest.raises(StoreError, match=f"^store: cannot write {file}: .*; make room, or name another file$"):
            store.archive([T.key], file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.npz", "log", "store"]
