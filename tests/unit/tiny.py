"""A study of milliseconds that writes down what it does, for processes that share a store and are killed."""

import os
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from kdlib.distill import KL, Alone
from kdlib.store import Store, digest
from kdlib.measures import Measure
from kdlib.study import complete
from kdlib.train import Adadelta, Run


def log(*words):
    with open(os.environ["TINY_LOG"], "a") as file:
        print(*words, file=file)


@dataclass(frozen=True)
class Points:
    """64 random points; each name is a seed of its own, so that the log tells which run it was."""

    name: str

    version: ClassVar[int] = 1

    def train(self, domains, device):
        log("train", self.name, os.getpid())
        while os.path.exists(os.environ["TINY_LOG"] + ".hold"):
            time.sleep(0.01)
        return Batches(*self.test("a", device))

    def test(self, domain, device):
        random = torch.Generator().manual_seed(int(self.name))
        return torch.randn(64, 3, 4, 4, generator=random).to(device), torch.arange(64, device=device) % 8


@dataclass
class Batches:
    x: torch.Tensor
    y: torch.Tensor

    n: ClassVar[int] = 64
    views: ClassVar[int] = 1
    fixed: ClassVar[bool] = True

    def draw(self, generator):
        return None

    def batch(self, idx, parameters):
        return self.x[idx], self.y[idx]


@dataclass(frozen=True)
class Linear:
    version: ClassVar[int] = 1
    name: ClassVar[str] = "linear"

    def build(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 8))


@dataclass(frozen=True)
class Scores(Measure):
    run: Run
    version = 1

    def compute(self, net):
        log("measure", self.run.data.name, os.getpid())
        return {"score": net(self.run.data.test("a", "cpu")[0]).detach().numpy()}


def run(name="0", teacher=None):
    return Run(Points(name), ("a",), Linear(), KL(0.1, 0.9, 4.0) if teacher else Alone(), Adadelta(4, 8), "s", teacher)


def study(teachers=range(4)):
    """A measurement of each teacher and of its two students: of the runs 0, 1, 2, 10, 11, 12, 20..."""
    runs = []
    for i in teachers:
        runs.append(run(str(10 * i)))
        runs += [run(str(10 * i + s), runs[-1]) for s in (1, 2)]
    return [Scores(r) for r in runs]


def contents(store):
    """Every entry, verified, by kind and key: (digest of its arrays, when it landed)."""
    found = {}
    for kind in ("run", "measure"):
        for folder in (store.root / kind).glob("*"):
            entry = store.read(kind, folder.name)
            assert entry is not None, f"{folder} does not verify"
            found[kind, folder.name] = digest(entry.arrays), folder.stat().st_mtime_ns
    return found


def arrays(found):
    return {name: content for name, (content, _) in found.items()}


def quiet(line):
    pass


def work(root, log, measures, processes=0):
    """Complete a study, in this process or in some of its own."""
    os.environ["TINY_LOG"] = str(log)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) if processes else ThreadPoolExecutor(1) as executor:
        return complete(measures, Store(Path(root)), jobs=executor, progress=quiet)


# what child processes do

def work_in_a_group(root, log, measures):
    os.setsid()
    work(root, log, measures, processes=2)


def write_and_die(root, spec, at):
    """Killed just before the write's request number `at` to the system; exits with 0 if there are fewer."""
    import signal
    import sys

    import numpy as np

    seen = iter(range(at + 1))
    store, content = Store(Path(root)), {"a": np.arange(1000.0)}

    def request(event, _):
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl") and next(seen, None) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(request)
    store.write("run", spec, content, {})


def fail(root, log, measures, prepare, answer):
    """Send back what the study says when it cannot write, and what it could still read."""
    prepare()
    before = arrays(contents(Store(Path(root))))
    try:
        work(root, log, measures)
    except Exception as error:
        answer.put((type(error).__name__, str(error), arrays(contents(Store(Path(root)))) == before))
    else:
        answer.put(("", "nothing went wrong", False))
