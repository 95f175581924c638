import dataclasses
import hashlib
import itertools
import json
import os
import pickle
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlib import models
from kdlib import store as store_module
from kdlib.data.digits import Digits
from kdlib.distill import CRD, KL, Alone, Hint
from kdlib.models import MnistNet, Model
from kdlib.store import Store, StoreError, cache_root, describe, digest, key
from kdlib.measures import Items, Predictions
from kdlib.train import Adadelta, Run

SPEC = {"type": "Example", "version": 1, "seed": "a"}
KEY = key(SPEC)
INFO = {"loss": [0.5, 0.25], "by class": {2: 0.5, 10: 0.4}}
ARRAYS = {
    "weights": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),
    "prediction": np.array([0, 255], np.uint8),
    "fooled": np.array([True, False]),
    "steps": np.array(7),  # no dimensions, as batch norm's counter
    "columns": np.arange(6.0).reshape(2, 3).T,  # not contiguous
    "none": np.empty((0, 4), np.float64),
}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def run(**changes):
    """A distilled run, made afresh, so that no key is remembered."""
    teacher = Run(Digits(), ("orig", "color", "M"), Model("mnistnet", {"size": 16}), Alone(), Adadelta(10), "teacher-0")
    student = Run(Digits(), ("orig",), Model("mnistnet", {"size": 16}), KL(0.1, 0.9, 8.0), Adadelta(10), "student-0", teacher)
    return dataclasses.replace(student, **changes)


def same(arrays, others):
    return arrays.keys() == others.keys() and all(
        a.dtype == others[n].dtype and a.shape == others[n].shape and np.array_equal(a, others[n]) for n, a in arrays.items())


# keys

def test_keys_are_stable():
    # canonical JSON: sorted, without spaces
    text = b'{"a":1,"b":[1.5,null,"x"]}'
    assert key({"b": [1.5, None, "x"], "a": 1}) == hashlib.sha256(text).hexdigest()[:32]
    assert key({"b": [1.5, None, "x"], "a": 1}) == "51824779aebdb7dec1ca0574e25433df"


def test_keys_ignore_order_but_not_content():
    assert key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert len({key(v) for v in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": None}, {"a": [1]}, [])}) == 7
    with pytest.raises(ValueError, match="not JSON compliant"):
        key({"a": float("nan")})


def test_description_of_a_run(monkeypatch):
    """If this fails because a value's meaning changed, bump its version; stored runs are then trained anew."""
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    suite = {"suite": "digits", "version": 1, "source": "embedded", "digits": "87ff0c9e40dc7e2c",
             "patches": "bundled", "photographs": "c12d3691e6b2463b", "limit": None}
    net = {"type": "Model", "version": 2, "name": "mnistnet", "arguments": {"size": 16}}
    schedule = {"type": "Adadelta", "version": 1, "epochs": 10, "batch": 64, "lr": 1.0}
    student = run()
    assert student.teacher.describe() == {
        "type": "Run", "version": 1, "torch": "2.11.0", "data": suite, "domains": ["orig", "color", "M"], "model": net,
        "objective": {"type": "Alone", "version": 1}, "schedule": schedule, "seed": "teacher-0", "teacher": None,
        "device": "cpu", "dtype": "float32"}
    assert student.describe() == {
        "type": "Run", "version": 1, "torch": "2.11.0", "data": suite, "domains": ["orig"], "model": net,
        "objective": {"type": "KL", "version": 1, "gamma": 0.1, "alpha": 0.9, "tau": 8.0}, "schedule": schedule,
        "seed": "student-0", "teacher": student.teacher.key, "device": "cpu", "dtype": "float32"}
    assert describe(Hint(1.0, 2.0, "conv2", "conv1")) == {
        "type": "Hint", "version": 1, "gamma": 1.0, "beta": 2.0, "student_layer": "conv2", "teacher_layer": "conv1", "form": "mean"}
    assert (student.teacher.key, student.key) == ("6a08011939ded341f8fb66380f398759", "d4e33ce09d64ed861379768943dce2ca")
    assert describe(Predictions(student, Digits(), "M")) == {
        "type": "Predictions", "version": 1, "run": student.key, "data": suite, "domain": "M"}
    assert describe(Items(Digits(), "M", 5)) == {"type": "Items", "version": 1, "data": suite, "domain": "M", "images": 5}


OTHERS = {  # for each field of what makes up a run, other values that it may have
    Run: {"data": [Digits("mnist")], "domains": [("orig", "M"), ("M", "orig"), ("M",)], "model": [], "objective": [], "schedule": [],
          "seed": ["student-1", "student-00"], "teacher": [], "device": ["cuda"], "dtype": ["bfloat16"]},
    Digits: {"source": ["mnist"], "patches": ["bsds500"], "limit": [128, 1200, 10**6]},
    Model: {"name": ["another"], "arguments": [{}, {"size": 28}, {"size": 16.0}, {"size": "16"}, {"size": 16, "dropout": False},
                                                  {"size": 16, "dropout": True}, {"size": 16, "dropout": None}, {"sizes": 16}],
            "weights": ["0" * 64, "1" * 64]},
    Adadelta: {"epochs": [11, 100], "batch": [32], "lr": [0.1, 1 + 1e-15]},
    KL: {"gamma": [0.9, 0.0], "alpha": [0.1, 0.8], "tau": [4.0, 8 + 1e-14]},
    Hint: {"gamma": [2.0], "beta": [1.0, 2.5], "student_layer": ["conv1"], "teacher_layer": ["conv1", "logits"], "form": ["printed"]},
    CRD: {"gamma": [0.5], "beta": [0.5], "tau": [0.07, 0.2], "n": [64], "student_layer": ["conv2"], "teacher_layer": ["conv2"],
          "dim": [64], "momentum": [0.9], "form": ["sampled", "printed"], "positive": ["current"]},
    Alone: {},
}
OBJECTIVES = KL(0.1, 0.9, 8.0), Hint(1.0, 2.0, "conv2", "conv2"), CRD(1.0, 1.0, 0.1, 32, "relu3", "relu3"), Alone()


def variants(value):
    """Everything that differs from a value in one field, however deep."""
    fields = [f.name for f in dataclasses.fields(value) if f.compare]
    assert set(fields) == set(OTHERS[type(value)]), f"{type(value).__name__} has other fields now: give values for each"
    for name in fields:
        inner = getattr(value, name)
        others = [*OTHERS[type(value)][name], *(variants(inner) if dataclasses.is_dataclass(inner) else ())]
        assert others or isinstance(inner, Alone) or name == "teacher", f"nothing else to give {type(value).__name__}.{name}"
        yield from (dataclasses.replace(value, **{name: other}) for other in others)


def grid():
    """Runs of every objective on every device in every precision, each with all that differ from it in one field."""
    for objective, device, dtype in itertools.product(OBJECTIVES, ("cpu", "cuda"), ("float32", "bfloat16")):
        one = run(objective=objective, device=device, dtype=dtype, teacher=None if isinstance(objective, Alone) else run().teacher)
        yield from (one, *variants(one))


def test_two_runs_share_a_key_only_if_they_are_the_same(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "another", MnistNet)
    by_key = {}
    for one in grid():
        by_key.setdefault(one.key, one)
        assert by_key[one.key] == one and repr(by_key[one.key]) == repr(one), f"{one!r} has the key of {by_key[one.key]!r}"
        assert dataclasses.replace(one).key == one.key
    assert len(by_key) > 500
    measures = [Predictions(one, data, domain) for one in by_key.values() for data in (Digits(), Digits(limit=9)) for domain in ("orig", "M")]
    measures += [Items(data, domain, n) for data in (Digits(), Digits("mnist")) for domain in ("orig", "M") for n in (0, 8)]
    assert len({m.key for m in measures} | set(by_key)) == len(measures) + len(by_key)


def test_the_torch_version_changes_the_key_and_its_build_does_not(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    before = run().key
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu128")
    assert run().key == before
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    assert run().key != before


@pytest.mark.parametrize("owner, value", [
    (Run, run), (Adadelta, run), (MnistNet, run), (Digits, run), (KL, run),
    (Alone, run),  # through the teacher
    (Hint, lambda: run(objective=Hint(1.0, 2.0, "conv2", "conv2"))),
    (Predictions, lambda: Predictions(run(), Digits(), "M")), (Run, lambda: Predictions(run(), Digits(), "M")),
    (Items, lambda: Items(Digits(), "M")), (Digits, lambda: Items(Digits(), "M")),
], ids=lambda x: getattr(x, "__name__", ""))
def test_every_version_changes_the_key(monkeypatch, owner, value):
    before = value().key
    monkeypatch.setattr(owner, "version", owner.version + 1)
    assert value().key != before


def test_only_plain_values_have_a_description():
    assert describe({"a": (1, [2.5, None, True])}) == {"a": [1, [2.5, None, True]]}
    with pytest.raises(TypeError, match="cannot describe Tensor"):
        describe({"a": torch.zeros(1)})
    with pytest.raises(TypeError, match="cannot describe .* a key that is not a string"):
        describe({"a": {1: "x"}})  # or it would have the key of {"1": "x"}


def test_digest_tells_names_types_shapes_and_values_apart():
    zeros = np.zeros((2, 3), np.float32)
    others = [{"b": zeros}, {"a": zeros.T}, {"a": zeros.astype(np.int32)}, {"a": zeros + 1}, {"a": zeros, "b": zeros},
              {"a": np.zeros((), np.float32)}, {"a": np.zeros(1, np.float32)}, {}]
    assert len({digest(a) for a in [{"a": zeros}, *others]}) == 9
    assert digest({"a": zeros, "b": zeros + 1}) == digest({"b": zeros + 1, "a": zeros.T.copy().T})


# entries

def test_round_trip(store, capsys):
    assert store.read("run", KEY) is None
    store.write("run", SPEC, ARRAYS, INFO)
    entry = store.read("run", KEY)
    assert same(entry.arrays, ARRAYS) and entry.spec == SPEC
    assert entry.info == {"loss": [0.5, 0.25], "by class": {"2": 0.5, "10": 0.4}}
    assert store.read("measure", KEY) is None, "kinds are apart"
    assert Store(store.root).read("run", KEY) is not None and capsys.readouterr().err == ""
    assert sorted(p.name for p in (store.root / "run" / KEY).iterdir()) == ["data.safetensors", "meta.json"]
    assert not any((store.root / "making").iterdir())


def test_an_entry_that_exists_stays(store):
    store.write("run", SPEC, {"a": np.zeros(2)}, {"first": True})
    store.write("run", SPEC, {"a": np.ones(2)}, {"first": False})
    entry = store.read("run", KEY)
    assert entry.info == {"first": True} and entry.arrays["a"].tolist() == [0, 0]
    assert not any((store.root / "making").iterdir())


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def other_meta(folder):
    other = Store(folder.parent / "other")
    other.write("run", {**SPEC, "seed": "b"}, ARRAYS, INFO)
    shutil.copy(next((other.root / "run").iterdir()) / "meta.json", folder / "meta.json")
    shutil.rmtree(other.root)


DAMAGE = {
    "a flipped bit in the data": lambda f: flip(f / "data.safetensors", -1),
    "a flipped bit in the header": lambda f: flip(f / "data.safetensors", 20),
    "truncated data": lambda f: os.truncate(f / "data.safetensors", (f / "data.safetensors").stat().st_size - 1),
    "empty data": lambda f: os.truncate(f / "data.safetensors", 0),
    "no data": lambda f: (f / "data.safetensors").unlink(),
    "truncated meta": lambda f: os.truncate(f / "meta.json", 40),
    "empty meta": lambda f: os.truncate(f / "meta.json", 0),
    "no meta": lambda f: (f / "meta.json").unlink(),
    "meta that is not an object": lambda f: (f / "meta.json").write_text("[]"),
    "meta that is not text": lambda f: (f / "meta.json").write_bytes(b"\xff\xfe"),
    "an edited metric": lambda f: edit(f / "meta.json", info={"loss": [0.1]}),
    "an edited digest": lambda f: edit(f / "meta.json", arrays="0" * 64),
    "meta of another key": other_meta,
    "a file in the place of the folder": lambda f: [shutil.rmtree(f), f.touch()],
    "a folder in the place of a file": lambda f: [(f / "meta.json").unlink(), (f / "meta.json").mkdir()],
    "an empty folder": lambda f: [file.unlink() for file in f.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_set_aside_and_can_be_written_again(store, capsys, damage):
    store.write("run", SPEC, ARRAYS, INFO)
    damage(store.root / "run" / KEY)
    assert store.read("run", KEY) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"store: {store.root / 'run' / KEY} is damaged (")
    assert [p.name.split("-")[0] for p in (store.root / "damaged").iterdir()] == [KEY]
    store.write("run", SPEC, ARRAYS, INFO)
    assert same(store.read("run", KEY).arrays, ARRAYS) and capsys.readouterr().err == ""


def test_a_reader_that_fails_does_not_set_a_good_entry_aside(store, monkeypatch):
    store.write("run", SPEC, ARRAYS, INFO)
    for error in OSError(24, "Too many open files"), PermissionError(13, "Permission denied"), MemoryError():
        with monkeypatch.context() as m:
            m.setattr(store_module, "load_file", lambda file: (_ for _ in ()).throw(error))
            with pytest.raises(StoreError, match=f"^store: cannot read {store.root / 'run' / KEY}: "):
                store.read("run", KEY)
    assert same(store.read("run", KEY).arrays, ARRAYS)


def test_two_readers_of_a_damaged_entry(store, monkeypatch, capsys):
    store.write("run", SPEC, ARRAYS, INFO)

    def another_is_faster(file):
        shutil.rmtree(store.root / "run" / KEY)
        raise ValueError("damaged")

    monkeypatch.setattr(store_module, "load_file", another_is_faster)
    assert store.read("run", KEY) is None and capsys.readouterr().err == ""


# writers that fail

@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["killed", "disk full"])
def test_a_writer_that_stops_between_its_files_leaves_nothing_to_be_seen(store, monkeypatch, error):
    def save(arrays, file):
        file.write_bytes(b"half")
        raise error

    with monkeypatch.context() as m:
        m.setattr(store_module, "save_file", save)
        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else StoreError):
            store.write("run", SPEC, ARRAYS, INFO)
    assert store.read("run", KEY) is None and not (store.root / "run").exists()
    store.write("run", SPEC, ARRAYS, INFO)
    assert same(store.read("run", KEY).arrays, ARRAYS)


def test_a_writer_that_stops_before_the_last_step_leaves_nothing_to_be_seen(store, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            store.write("run", SPEC, ARRAYS, INFO)
    assert store.read("run", KEY) is None
    store.write("run", SPEC, ARRAYS, INFO)
    assert store.read("run", KEY) is not None


def test_what_another_writer_left_behind_does_no_harm(store):
    left = store.root / "making" / "abc"
    left.mkdir(parents=True)
    (left / "data.safetensors").write_bytes(b"half")
    assert store.read("run", KEY) is None and store.read("run", "abc") is None
    store.write("run", SPEC, ARRAYS, INFO)
    assert store.read("run", KEY) is not None


@pytest.mark.parametrize("use", [lambda s: s.write("run", SPEC, ARRAYS, INFO), lambda s: s.lock(KEY).__enter__()], ids=["write", "lock"])
def test_a_store_that_cannot_be_written(tmp_path, use):
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "store")
    assert store.read("run", KEY) is None
    with pytest.raises(StoreError, match=rf"^store: cannot write under {store.root}: .*KDLIB_CACHE") as error:
        use(store)
    assert "\n" not in str(error.value)


def test_info_that_is_not_json_is_the_callers_mistake(store):
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.write("run", SPEC, ARRAYS, {"loss": float("nan")})
    assert not store.root.exists()


def test_lock_excludes_other_threads_and_is_freed(store):
    other = ThreadPoolExecutor(1)  # other processes: test_store_faults
    assert store.idle(KEY)
    with store.lock(KEY):
        assert not other.submit(store.idle, KEY).result()
        with store.lock(KEY):  # a write takes it again
            store.write("run", SPEC, ARRAYS, INFO)
        assert not other.submit(store.idle, KEY).result() and not other.submit(store.remove, *store.folders()).result()
        with pytest.raises(ZeroDivisionError), store.lock("b"):
            1 / 0
        assert store.idle("b")
    assert other.submit(store.idle, KEY).result()


def test_a_writer_holds_the_lock_so_that_nobody_removes_what_it_makes(store, monkeypatch):
    other, seen = ThreadPoolExecutor(1), []

    def save(arrays, file):
        [making] = store.folders()
        seen.append((making.kind, making.key, other.submit(store.remove, making).result()))
        store_module_save(arrays, file)

    store_module_save = store_module.save_file
    monkeypatch.setattr(store_module, "save_file", save)
    store.write("run", SPEC, ARRAYS, INFO)
    assert seen == [("making", KEY, False)] and same(store.read("run", KEY).arrays, ARRAYS)


def test_folders_and_what_is_removed(store):
    assert store.folders() == []
    store.write("run", SPEC, ARRAYS, INFO)
    store.write("measure", {**SPEC, "seed": "b"}, {"prediction": np.array([3])}, {})
    os.utime(store.root / "run" / KEY / "meta.json", (1e9, 1e9))
    run, measure = sorted(store.folders(), key=lambda kept: kept.kind, reverse=True)
    assert (run.kind, run.key, run.folder) == ("run", KEY, store.root / "run" / KEY)
    assert run.size == sum((run.folder / f).stat().st_size for f in ("meta.json", "data.safetensors"))
    assert abs(run.written - time.time()) < 1000 and measure.kind == "measure"
    assert store.remove(run) and store.read("run", KEY) is None and store.folders() == [measure]
    assert store.remove(run), "gone is gone"
    assert not list((store.root / "making").iterdir()) and KEY not in {p.name for p in (store.root / "locks").iterdir()}
    flip(measure.folder / "data.safetensors", -1)
    assert store.read("measure", measure.key) is None
    [damaged] = store.folders()
    assert (damaged.kind, damaged.key, damaged.size) == ("damaged", measure.key, measure.size)
    assert store.remove(damaged) and store.folders() == []


def test_the_root_is_kdlib_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path))
    assert Store().root == cache_root() == tmp_path
    monkeypatch.delenv("KDLIB_CACHE")
    assert cache_root().parts[-2:] == (".cache", "kdlib")


# archives

@pytest.fixture
def archive(store, tmp_path):
    store.write("measure", SPEC, ARRAYS, INFO)
    store.write("measure", {**SPEC, "seed": "b"}, {"prediction": np.array([3])}, {})
    file = tmp_path / "archive.npz"
    store.archive([KEY, key({**SPEC, "seed": "b"}), KEY], file)
    return file


def test_archive_round_trip(archive, tmp_path):
    reader = Store(tmp_path / "nowhere", [archive])
    entry = reader.read("measure", KEY)
    assert same(entry.arrays, ARRAYS) and entry.spec == SPEC and entry.info["loss"] == [0.5, 0.25]
    assert reader.read("measure", key({**SPEC, "seed": "b"})).arrays["prediction"].tolist() == [3]
    assert reader.read("measure", "0" * 32) is None and reader.read("run", KEY) is None, "only measurements are archived"
    assert not reader.root.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["archive.npz", "store"]


def test_equal_measurements_make_equal_archives(archive, store, tmp_path):
    store.archive([key({**SPEC, "seed": "b"}), KEY], tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == archive.read_bytes()


def test_a_damaged_entry_is_read_from_the_archive(archive, store, capsys):
    flip(store.root / "measure" / KEY / "data.safetensors", -1)
    assert same(Store(store.root, [archive]).read("measure", KEY).arrays, ARRAYS)
    assert "is damaged" in capsys.readouterr().err


def test_only_what_is_stored_can_be_archived(store, tmp_path):
    store.write("measure", SPEC, ARRAYS, INFO)
    with pytest.raises(StoreError, match="^store: 1 of 2 measurements are not in .*run the chapter again$"):
        store.archive([KEY, "0" * 32], tmp_path / "archive.npz")
    assert not (tmp_path / "archive.npz").exists()


def rewrite(file, **changes):
    with np.load(file) as data:
        arrays = {**{n: data[n] for n in data.files}, **changes}
    np.savez(file, **arrays)


@pytest.mark.parametrize("spoil, reason", [(Path.unlink, "No such file or directory"), (lambda f: [f.unlink(), f.mkdir()], "Is a directory")],
                         ids=["missing", "a folder"])
def test_an_archive_that_cannot_be_read_is_not_called_damaged(archive, tmp_path, spoil, reason):
    spoil(archive)
    with pytest.raises(StoreError, match=rf"^store: cannot read the archive {archive}: {reason}; restore it or name another$"):
        Store(tmp_path / "nowhere", [archive]).read("measure", KEY)


def save_one_array(file):
    with open(file, "wb") as handle:
        np.save(handle, np.zeros(3))


@pytest.mark.parametrize("damage", [
    lambda f: f.write_bytes(b""),
    lambda f: f.write_text("no archive"),
    save_one_array,
    lambda f: np.savez(f, a=np.zeros(3)),
    lambda f: f.write_bytes(f.read_bytes()[:-30]),
    lambda f: flip(f, 60),
    lambda f: rewrite(f, **{f"{KEY}/prediction": np.array([1, 255], np.uint8)}),
    lambda f: rewrite(f, **{f"{KEY}/more": np.zeros(1)}),
    lambda f: rewrite(f, index=np.frombuffer(b"{}}", np.uint8)),
], ids=["empty", "text", "npy", "another npz", "truncated", "flipped bit", "other values", "one array too many", "index is not JSON"])
def test_a_damaged_archive_is_refused(archive, tmp_path, damage):
    damage(archive)
    with pytest.raises(StoreError, match=rf"^store: the archive {archive} is damaged: .*; restore it or remove it$"):
        Store(tmp_path / "nowhere", [archive]).read("measure", KEY)


class Bomb:
    gone_off = False

    def __reduce__(self):
        return setattr, (Bomb, "gone_off", True)


@pytest.mark.parametrize("name", [f"{KEY}/prediction", "index"])
def test_archives_are_never_unpickled(archive, tmp_path, name):
    bomb = np.array([Bomb()], object)
    rewrite(archive, **{name: bomb})
    with pytest.raises(StoreError, match="is damaged: .*allow_pickle=False"):
        Store(tmp_path / "nowhere", [archive]).read("measure", KEY)
    assert not Bomb.gone_off
    pickle.loads(pickle.dumps(bomb))
    assert Bomb.gone_off, "unpickled, it would have gone off"
    Bomb.gone_off = False


def test_a_store_can_be_sent_to_another_process(archive, tmp_path):
    reader = pickle.loads(pickle.dumps(Store(tmp_path / "nowhere", [archive])))
    assert reader.read("measure", KEY) is not None
