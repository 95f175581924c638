"""The store under fault: real processes that share one, are killed, and run out of room."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import tiny
from kdlib.store import Store, StoreError, key
from kdlib.study import complete
from kdlib.train import finish
from test_store import DAMAGE

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["kdlib.study", "torch._dynamo"])  # torch is loaded once, and each process is a fork of that


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The contents of a store in which a study was done in peace."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny.work(folder / "store", folder / "log", tiny.study())
    return tiny.arrays(tiny.contents(Store(folder / "store")))


started = []


def start(function, *arguments):
    process = processes.Process(target=function, args=arguments)
    process.start()
    started.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    yield
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # where it made itself the head of a group: its workers too
        except ProcessLookupError:
            process.kill()
    started.clear()


def done(log):
    """(what, name) of everything that was begun, with the process that began it."""
    return [(*line.split()[:2], int(line.split()[2])) for line in log.read_text().splitlines()] if log.exists() else []


def until(condition, process):
    while not condition():
        assert process.is_alive(), "the process ended before its time"
        time.sleep(0.001)


# several processes

@pytest.mark.parametrize("n", [2, 8])
def test_processes_that_ask_for_the_same_train_it_once(store, log, undisturbed, n):
    hold, measures = Path(f"{log}.hold"), tiny.study()
    hold.touch()
    every = [start(tiny.work, store.root, log, measures[3 * (i % 4):] + measures[:3 * (i % 4)]) for i in range(n)]  # another teacher first
    until(lambda: len(done(log)) == min(n, 4), every[0])
    hold.unlink()
    for process in every:
        process.join()
    assert [p.exitcode for p in every] == [0] * n
    counts = Counter(line[:2] for line in done(log))
    assert len(counts) == 24 and set(counts.values()) == {1} and len({pid for *_, pid in done(log)}) >= min(n, 4)
    assert tiny.arrays(tiny.contents(store)) == undisturbed


def test_one_that_waits_takes_over_from_one_that_is_killed(store, log):
    hold = Path(f"{log}.hold")
    hold.touch()
    measures = [tiny.Scores(tiny.run())]
    first = start(tiny.work, store.root, log, measures)
    until(lambda: done(log), first)
    assert not store.idle(measures[0].run.key)
    others = [start(tiny.work, store.root, log, measures) for _ in range(2)]
    first.kill()
    first.join()
    until(lambda: len(done(log)) == 2, others[0])
    hold.unlink()
    for process in others:
        process.join()
    assert [p.exitcode for p in others] == [0, 0]
    assert Counter(what for what, *_ in done(log)) == {"train": 2, "measure": 1}
    assert len(tiny.contents(store)) == 2 and store.idle(measures[0].run.key)


# kills

def belongs_to(process, pid):
    try:
        return os.getpgid(pid) == process.pid
    except ProcessLookupError:
        return False


def strike(whom, process, workers):
    if whom == "a worker" and workers:
        os.kill(workers[-1], signal.SIGKILL)
    elif whom == "all of it" and workers:  # else it may not yet be the head of a group
        os.killpg(process.pid, signal.SIGKILL)
    else:  # its workers are left behind, and finish what they do
        process.kill()


def test_twenty_kills_at_random_moments_lose_nothing_that_was_finished(store, log, undisturbed):
    chance, studies, kept, struck = random.Random(9), 1, {}, []
    while len(struck) < 20:
        began = len(done(log))
        process = start(tiny.work_in_a_group, store.root, log, tiny.study(range(4 * studies)))
        begins = chance.randrange(5)  # so much it begins, and then a moment of about the time that one of these takes
        while len(done(log)) < began + begins and process.is_alive():
            time.sleep(0.001)
        time.sleep(chance.random() * 0.05)
        whom = chance.choice(["all of it", "the main process", "a worker"])
        strike(whom, process, [pid for *_, pid in done(log)[began:] if belongs_to(process, pid)])
        process.join(60)
        if process.is_alive():  # a worker of concurrent.futures that dies with its queue's lock leaves the others waiting for ever
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == 0:
            studies += 1  # too late: all is complete, so there has to be more of it
        else:
            struck.append(whom)
        found = tiny.contents(store)
        assert kept.items() <= found.items(), "something that was finished is gone or was done again"
        kept = found
    assert set(struck) == {"all of it", "the main process", "a worker"} and kept
    tiny.work(store.root, log, tiny.study(range(4 * studies)))
    found = tiny.contents(store)
    assert kept.items() <= found.items() and len(found) == 24 * studies and undisturbed.items() <= tiny.arrays(found).items()
    assert not (store.root / "damaged").exists()
    for folder in store.folders():
        assert folder.kind in ("run", "measure") or store.remove(folder)
    assert not list((store.root / "making").iterdir()) and tiny.contents(store) == found


def test_a_writer_killed_before_anything_it_asks_of_the_system(store):
    spec, at, code = {"type": "Example", "version": 1}, 0, None
    seen = []
    while code != 0:
        root = store.root / str(at)
        process = start(tiny.write_and_die, root, spec, at)
        process.join()
        code = process.exitcode
        assert code in (0, -signal.SIGKILL)
        one = Store(root)
        seen.append((len(list((root / "making").glob("*"))), one.read("run", key(spec)) is not None))
        one.write("run", spec, {"a": np.arange(1000.0)}, {})
        assert one.read("run", key(spec)).arrays["a"].tolist() == list(range(1000))
        assert not (root / "damaged").exists()
        assert all(one.remove(f) for f in one.folders() if f.kind == "making") and not list((root / "making").iterdir())
        at += 1
    assert at > 10 and {(0, False), (1, False), (0, True)} == set(seen), "killed before, in the middle and afterwards"


def test_what_a_living_process_makes_is_not_removed(store, log):
    hold = Path(f"{log}.hold")
    hold.touch()
    process = start(tiny.work, store.root, log, [tiny.Scores(tiny.run())])
    until(lambda: done(log), process)
    name = tiny.run().key
    (store.root / "making" / f"{name}-0").mkdir(parents=True)  # as if it were writing
    dead = store.root / "making" / f"{tiny.run('1').key}-0"
    dead.mkdir()
    (dead / "data.safetensors").write_bytes(b"half")
    assert {f.key: store.remove(f) for f in store.folders()} == {name: False, tiny.run("1").key: True}
    assert [p.name for p in (store.root / "making").iterdir()] == [f"{name}-0"]
    hold.unlink()
    process.join()
    assert process.exitcode == 0 and all(store.remove(f) for f in store.folders()) and store.folders() == []
    assert not list((store.root / "locks").iterdir())


# damage

@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_computed_again_and_one_line_says_so(store, log, damage):
    said = []
    store = Store(store.root, say=said.append)
    measure = tiny.Scores(tiny.run("1", tiny.run()))
    jobs = tiny.ThreadPoolExecutor(1)
    complete([measure], store, jobs=jobs, progress=tiny.quiet)
    before, folders = tiny.contents(store), [store.root / "measure" / measure.key, store.root / "run" / measure.run.key]
    for folder in folders:
        damage(folder)
    log.unlink()
    complete([measure], store, jobs=jobs, progress=tiny.quiet)
    assert [line[:2] for line in done(log)] == [("train", "1"), ("measure", "1")], "the teacher was whole"
    assert len(said) == 2 and all(line.startswith(f"store: {f} is damaged (") and "\n" not in line for line, f in zip(said, folders))
    assert tiny.arrays(tiny.contents(store)) == tiny.arrays(before)


# no room, no permission

def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # less than a run's weights


def nobody():
    if os.geteuid() == 0:  # whom permissions do not bind
        os.seteuid(65534)


@pytest.fixture
def half(log, undisturbed):
    """A store, where everyone may read, with half of the study in it."""
    folder = Path(tempfile.mkdtemp(prefix="kdlib-"))
    folder.chmod(0o755)
    store = Store(folder / "store")
    tiny.work(store.root, log, tiny.study()[:6])
    yield store
    for path in (store.root, *store.root.rglob("*")):
        path.chmod(0o755)
    shutil.rmtree(folder)


def failure(store, log, prepare):
    answer = processes.SimpleQueue()
    process = start(tiny.fail, store.root, log, tiny.study(), prepare, answer)
    process.join()
    return answer.get()


def is_one_clear_line(kind, message, store, reason):
    assert kind == "StoreError" and message.startswith(f"store: cannot write under {store.root}: ") and reason in message, message
    assert message.endswith("make room, or point KDLIB_CACHE to a folder that can be written") and "\n" not in message


def test_a_file_system_that_refuses_to_write_more(half, log, undisturbed):
    kind, message, whole = failure(half, log, small_files)
    is_one_clear_line(kind, message, half, "File too large")
    assert whole and not any((half.root / "making").iterdir())
    tiny.work(half.root, log, tiny.study())
    assert tiny.arrays(tiny.contents(half)) == undisturbed


def test_a_store_without_permission_to_write(half, log, undisturbed):
    log.touch()
    for path in (log, log.parent):
        path.chmod(0o777)
    for path in (half.root, *half.root.rglob("*")):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH) | 0o444)
    kind, message, whole = failure(half, log, nobody)
    is_one_clear_line(kind, message, half, "Permission denied")
    assert whole and Counter(line[:2] for line in done(log)).most_common(1)[0][1] == 1, "nothing was trained in vain"


MOUNTED = """
import json, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tiny
from kdlib.store import Store

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", sys.argv[2]], check=True)

def outcome(study):
    try:
        tiny.work(root, log, study)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""

root, log, answers = Path(sys.argv[2]) / "store", sys.argv[3], []
for small, large in ("size=96k", "remount,size=8m"), ("nr_inodes=90", "remount,nr_inodes=9999"):
    mount(small)
    first = outcome(tiny.study())
    before = tiny.contents(Store(root))
    answers.append([*first, len(before)])
    mount(large)
    again = outcome(tiny.study())
    after = tiny.contents(Store(root))
    answers[-1] += [*again, before.items() <= after.items(), sorted(d for d, _ in after.values())]
mount("remount,ro")
answers.append([*outcome(tiny.study()), *outcome(tiny.study(range(5))), tiny.contents(Store(root)) == after])
print(json.dumps(answers))
"""


def test_a_disk_that_is_full_and_one_that_is_read_only(tmp_path, undisturbed):
    (tmp_path / "disk").mkdir()
    own = ["unshare", "--user", "--map-root-user", "--mount"]  # mounts of its own, which end with the process
    if not shutil.which("unshare") or subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", tmp_path / "disk"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of their own, so there is none to fill")
    ran = subprocess.run([*own, sys.executable, "-c", MOUNTED, os.path.dirname(__file__), tmp_path / "disk", tmp_path / "log"],
                         capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *full, read_only = json.loads(ran.stdout)
    store = Store(tmp_path / "disk" / "store")
    for kind, message, survived, *again, kept, digests in full:
        is_one_clear_line(kind, message, store, "No space left on device")
        assert 0 < survived < len(undisturbed) and again == ["", ""] and kept, "with room made, it went on"
        assert digests == sorted(undisturbed.values())
    assert read_only[:2] == ["", ""], "what is finished can be read"
    is_one_clear_line(*read_only[2:4], store, "Read-only file system")
    assert read_only[4]


@pytest.mark.parametrize("folder", ["locks", "making", "run"])
def test_a_file_in_the_place_of_a_folder(store, log, folder):
    finish(tiny.run("7"), store)
    shutil.rmtree(store.root / folder)
    (store.root / folder).touch()
    with pytest.raises(StoreError) as error:
        finish(tiny.run(), store)
    assert str(error.value).startswith(f"store: cannot write under {store.root}: ") and "\n" not in str(error.value)
