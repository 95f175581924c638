"""A study over a Dask scheduler and worker processes, started as a user starts them."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest

from kdlib import cluster
from kdlib.book import BookError
from kdlib.book.chapter import Chapter
from kdlib.book.command import main
from kdlib.cluster import ClusterError, connect, everywhere
from kdlib.data.digits import Digits
from kdlib.distill import KL, Alone
from kdlib.models import Model
from kdlib.store import Store, digest
from kdlib.measures import Attack, Attacked, Measure, Predictions
from kdlib.study import complete
from kdlib.train import Adadelta, Run, TrainingError

SLUG = "domain-adaptation"
SMALL = Digits(limit=96)
NET = Model("mnistnet", {"size": 16})
TEACHER = Run(SMALL, ("orig",), NET, Alone(), Adadelta(3), "teacher-0")
STUDENT = Run(SMALL, ("orig",), NET, KL(0.1, 0.9, 4.0), Adadelta(3), "student-0", TEACHER)


@dataclasses.dataclass(frozen=True)
class Trap(Digits):
    """The same digits, but the first `victims` processes that train on them note their id in `folder` and go no further."""

    folder: str = ""
    victims: int = 1

    def train(self, domains, device):
        data, calls = super().train(domains, device), []
        batch = data.batch

        def trapped(idx, parameters):
            calls.append(1)
            if len(calls) == 4 and len(list(Path(self.folder).iterdir())) < self.victims:
                (Path(self.folder) / str(os.getpid())).touch()
                threading.Event().wait()
            return batch(idx, parameters)

        data.batch = trapped
        return data


@dataclasses.dataclass(frozen=True)
class Environment(Measure):
    """What a worker finds in KDLIB_DATA."""

    name: str
    version = 1

    def compute(self):
        return {"data": np.frombuffer(os.environ.get("KDLIB_DATA", "").encode(), np.uint8)}


def silent(line):
    pass


@contextmanager
def dask(folder, *workers, **environment):
    """A scheduler's address, the processes of it and of a worker for each of `workers` (its options), and what they print."""
    file, processes = folder / "scheduler.json", []
    environment = {**{k: v for k, v in os.environ.items() if k != "KDLIB_DATA"}, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]), **environment}

    def start(*words):
        with open(folder / "log", "a") as log:
            processes.append(subprocess.Popen([sys.executable, "-m", "dask", *words, "--no-dashboard", "--scheduler-file", str(file)],
                                              stdout=log, stderr=log, env=environment, start_new_session=True))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not file.exists() or not file.read_text():
            assert processes[0].poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        for options in workers:
            start("worker", "--nthreads", "1", "--local-directory", str(folder / "dask"), *options.split())
        address = json.loads(file.read_text())["address"]
        if workers:
            from distributed import Client

            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(len(workers))
        yield address, processes
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with dask(tmp_path_factory.mktemp("dask"), "--no-nanny", "--no-nanny") as (address, _):
        yield address


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """What the default executor makes of the small study."""
    store = Store(tmp_path_factory.mktemp("default"))
    complete(study(SMALL), store, jobs=2, progress=silent)
    return store


def study(data):
    """A teacher, its student and an independent one, with their measurements."""
    runs = [dataclasses.replace(TEACHER, data=data), dataclasses.replace(STUDENT, data=data, teacher=dataclasses.replace(TEACHER, data=data)),
            dataclasses.replace(TEACHER, data=data, seed="student-0")]
    attack = Attack(runs[0], SMALL, "orig", eps=0.1)  # made once: what asks for it is one job
    return [*(Predictions(run, SMALL, domain) for run in runs for domain in ("orig", "color")), *(Attacked(run, attack) for run in runs)]


def contents(store):
    """Every finished entry of a store, verified, as digests by key."""
    return {p.name: digest(store.read(p.parent.name, p.name).arrays) for p in store.root.glob("run/*")} | {
        p.name: digest(store.read(p.parent.name, p.name).arrays) for p in store.root.glob("measure/*")}


def reap(folder, ended):
    """Kill each process that the trap has caught, until `ended()`."""
    killed = set()
    while not ended():
        for caught in {p.name for p in folder.iterdir()} - killed:
            os.kill(int(caught), signal.SIGKILL)
            killed.add(caught)
        time.sleep(0.02)
    return killed


def completed_while_reaping(measures, store, address, folder):
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(complete, measures, store, jobs=address, progress=silent)
        return reap(folder, future.done), future.exception()


def test_a_cluster_gives_the_default_executors_results_bit_for_bit(two_workers, default, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines, store = [], Store(Path("relative"))
    got = complete(study(SMALL), store, jobs=two_workers, progress=lines.append)
    assert contents(store) == contents(default) and len(contents(store)) == 12
    assert lines[:2] == [f"2 workers at {two_workers}", "3 networks to train, 9 measurements to take"] and "3/3 trained" in lines[-1]
    assert [a["prediction"].shape for a in got.values()] == [(96,)] * 9


def test_a_worker_killed_in_mid_run_has_its_run_tried_again_until_none_is_left(default, tmp_path, monkeypatch):
    (folder := tmp_path / "trap").mkdir()
    with dask(tmp_path, "--no-nanny", "--no-nanny") as (address, _):
        store = Store(tmp_path / "store")
        killed, error = completed_while_reaping(study(Trap(limit=96, folder=str(folder))), store, address, folder)
        assert error is None and len(killed) == 1
        assert contents(store) == contents(default), "the run tried again on the other worker gave other weights"

        monkeypatch.setattr(cluster, "PATIENCE", 2)
        deadly = dataclasses.replace(TEACHER, data=Trap(limit=96, folder=str(folder), victims=99), seed="deadly")
        measures = [Predictions(TEACHER, SMALL, "M"), Predictions(deadly, SMALL, "orig")]
        killed, error = completed_while_reaping(measures, store, address, folder)
        assert isinstance(error, ClusterError) and len(killed) == 2
        assert str(error).startswith(f"no worker is left at {address} (killed, or out of memory?)") and "\n" not in str(error)
        assert store.read("measure", measures[0].key) is not None, "what had finished is lost"
        with pytest.raises(ClusterError, match=f"^no worker at {address} in 2 s; start some: dask worker {address} --nthreads 1$"):
            complete(measures, store, jobs=address, progress=silent)


def test_a_run_that_kills_every_worker_that_tries_it_is_given_up_and_named(tmp_path):
    (folder := tmp_path / "trap").mkdir()
    deadly = dataclasses.replace(TEACHER, data=Trap(limit=96, folder=str(folder), victims=99))
    with dask(tmp_path, "--nanny", DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="1") as (address, _):  # a nanny starts its worker again
        killed, error = completed_while_reaping([Predictions(deadly, SMALL, "orig")], Store(tmp_path / "store"), address, folder)
    assert isinstance(error, ClusterError) and len(killed) == 2
    assert str(error) == f"2 workers died one after another of {deadly} (out of memory?); see their logs; what had finished is in the store"


def test_a_scheduler_that_dies_ends_the_study_in_one_line(tmp_path):
    (folder := tmp_path / "trap").mkdir()
    caught = dataclasses.replace(TEACHER, data=Trap(limit=96, folder=str(folder)))
    with dask(tmp_path, "--no-nanny") as (address, processes), ThreadPoolExecutor(1) as pool:
        future = pool.submit(complete, [Predictions(caught, SMALL, "orig")], Store(tmp_path / "store"), jobs=address, progress=silent)
        while not list(folder.iterdir()):
            assert not future.done(), future.exception()
            time.sleep(0.02)
        processes[0].kill()
        assert isinstance(future.exception(), ClusterError)
        assert str(future.exception()) == f"lost the scheduler at {address}; what had finished is in the store"


def test_a_run_that_fails_is_named_and_not_tried_again(two_workers, tmp_path):
    bad = dataclasses.replace(TEACHER, schedule=Adadelta(1, lr=1e30))
    with pytest.raises(TrainingError, match=rf"^loss is (nan|inf) in epoch 1, step [12] of .*{bad.key[:8]}\)$"):
        complete([Predictions(bad, SMALL, "orig")], Store(tmp_path), jobs=two_workers, progress=silent)


def test_workers_read_the_callers_data_and_forget_the_folder(two_workers, tmp_path, monkeypatch):
    def found(name):
        [arrays] = complete([Environment(name)], Store(tmp_path), jobs=two_workers, progress=silent).values()
        return arrays["data"].tobytes().decode()

    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    there = [found(f"with {i}") for i in range(4)]
    monkeypatch.delenv("KDLIB_DATA")
    assert there == [str(tmp_path)] * 4 and [found(f"without {i}") for i in range(4)] == [""] * 4


def test_a_worker_that_does_not_see_the_store(two_workers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = r"^worker tcp://[\d.:]+: it does not see the caller's store /proc/self/cwd/store; set the caller's KDLIB_CACHE to a folder that"
    with pytest.raises(ClusterError, match=line):  # the same path, but another folder in each process
        complete(study(SMALL), Store("/proc/self/cwd/store"), jobs=two_workers, progress=silent)
    with connect(two_workers, Store(tmp_path / "store"), progress=silent) as executor:
        Path(executor.order["nonce"]).unlink()  # as for a worker that joins later
        future = executor.submit(sorted, (Environment("late"),), [])
        with pytest.raises(ClusterError, match=r"^worker tcp://[\d.:]+: it does not see"):
            future.result()


def test_a_worker_with_another_kdlib(two_workers, tmp_path, monkeypatch):
    other = Environment("other")
    assert other.key
    object.__setattr__(other, "name", "changed")  # so that the worker finds another key than the caller
    with pytest.raises(ClusterError, match="^worker tcp://.*: its kdlib is not the caller's; install the same one everywhere$"):
        complete([other], Store(tmp_path), jobs=two_workers, progress=silent)
    monkeypatch.setattr(cluster, "version", lambda name: {"kdlib": "0.1.0", "torch": "9.9.9+cpu"}[name])
    with pytest.raises(ClusterError, match=r"^worker tcp://.*: it has torch [\d.]+, and the caller 9.9.9; install the same one everywhere$"):
        complete(study(SMALL), Store(tmp_path), jobs=two_workers, progress=silent)


@pytest.mark.parametrize("options, preload, message", [
    ("--nthreads 2", "", "it runs 2 tasks at a time; start it with --nthreads 1 (--nworkers 2 makes as many of them)"),
    ("", "import sys; sys.modules['kdlib'] = None", "'kdlib' is not a package\"); install the same kdlib everywhere"),
], ids=["threads", "no kdlib"])
def test_a_worker_that_cannot_work(tmp_path, options, preload, message):
    (tmp_path / "preload.py").write_text(preload)
    with dask(tmp_path, f"--no-nanny --preload {tmp_path / 'preload.py'} {options}") as (address, _):
        with pytest.raises(ClusterError) as error:
            complete(study(SMALL), Store(tmp_path / "store"), jobs=address, progress=silent)
    assert str(error.value).startswith("worker tcp://") and message in str(error.value) and "\n" not in str(error.value)


@pytest.fixture
def silent_server():
    """It takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def a_worker(two_workers):
    return min(everywhere(two_workers, os.getpid))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "127.0.0.1:9", "nowhere", "morse://127.0.0.1:9", "silent_server", "a_worker"])
def test_an_unreachable_scheduler_is_one_clear_line(address, request, capfd, monkeypatch):
    address = request.getfixturevalue(address) if "_" in address else address
    monkeypatch.setattr(cluster, "CONNECT", 1)
    capfd.readouterr()
    assert main(["run", SLUG, "--profile", "smoke", "--scheduler", address]) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"kdlib: no Dask scheduler answers at {address}") and said.count("\n") == 1, said


@pytest.mark.parametrize("words, message", [
    (["--jobs", "2"], "--jobs counts processes of this machine; leave it out with --scheduler"),
    (["--as-published"], "--as-published takes every parameter from the published chapter and trains nothing"),
])
def test_options_that_do_not_go_with_a_scheduler(words, message, capsys):
    assert main(["run", SLUG, "--scheduler", "tcp://127.0.0.1:9", *words]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"kdlib: {message}") and said.count("\n") == 1


def test_without_distributed_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["run", SLUG, "--profile", "smoke", "--scheduler", "tcp://127.0.0.1:9"]) == 1
    said = capsys.readouterr().err
    assert "pip install kdlib[cluster]" in said and said.count("\n") == 1


def test_a_chapter_run_on_a_cluster_is_the_one_run_here(two_workers, tmp_path):
    def run(name, *words):
        words = ["run", SLUG, "--profile", "smoke", "-p", "limit=64", "-p", "seeds=1", "--out", tmp_path / name, *words]
        done = subprocess.run([sys.executable, "-m", "kdlib.book.command", *map(str, words)], capture_output=True, text=True,
                              env={**os.environ, "KDLIB_CACHE": str(tmp_path / f"{name}-cache")})
        assert done.returncode == 0 and not done.stderr, done.stderr
        body = json.loads((tmp_path / name / "results" / f"{SLUG}.json").read_text())
        return done.stdout, body, contents(Store(tmp_path / f"{name}-cache"))

    said, there, stored_there = run("there", "--scheduler", two_workers)
    _, here, stored_here = run("here")
    assert f"{SLUG}: 2 workers at {two_workers}\n{SLUG}: 10 networks to train" in said
    assert stored_there == stored_here and (there["records"], there["effects"]) == (here["records"], here["effects"])
    assert all(there["provenance"][name] == here["provenance"][name] for name in ("device", "dtype", "parameters", "measurements"))
    notebook = nbformat.read(tmp_path / "there" / f"{SLUG}.ipynb", as_version=4)
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"], "dask's messages are in the page"


def test_device_and_dtype_are_the_workers(two_workers, monkeypatch):
    chapter = Chapter.__new__(Chapter)
    chapter.order, chapter.published = {"scheduler": two_workers}, None
    assert len(everywhere(two_workers, os.getpid)) == 2 and len(set(everywhere(two_workers, os.getpid).values())) == 2
    assert chapter._machine("auto", "float32")[:2] == ("cpu", "float32")
    with pytest.raises(ClusterError, match="^worker tcp://.*: device is one of auto, cpu, cuda, not 'tpu'$"):
        chapter._machine("tpu", "auto")
    monkeypatch.setattr(cluster, "everywhere", lambda *_: {"a": ("cpu", "float32", "old"), "b": ("cuda", "bfloat16", "new")})
    with pytest.raises(BookError, match=r"^the workers do not agree on device and dtype \(cpu, float32; cuda, bfloat16\); name them with"):
        chapter._machine("auto", "auto")
