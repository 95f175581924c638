"""How much sooner a study ends on two processes than on one."""

import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from loky import ProcessPoolExecutor

from bench.timing import ratio, side_by_side
from kdlib.data.digits import Digits
from kdlib.distill import KL, Alone
from kdlib.models import Model
from kdlib.store import Store
from kdlib.measures import Predictions
from kdlib.study import WORKER, complete
from kdlib.train import Adadelta, Run, finish

TITLE = "A study on two processes"
SAYS = """Eight KL students of one finished teacher and a measurement of each, the embedded digits at 16 pixels, through
`kdlib.study.complete` with loky: into an empty store each time, in processes that have started already. Start-up, once a
study, stands beside: from nothing to a process that has loaded PyTorch and the data. The last column is an estimate, not a
measurement: Amdahl's law with the parallel share that the speed-up of 2 implies, for eight free cores with the memory to
feed them."""
HEADER = ("students", "speed-up of 2", "start-up / study on 1", "8 processes (estimate)")


def study(epochs: int, limit: int | None) -> list[Predictions]:
    data, net = Digits(limit=limit), Model("mnistnet", {"size": 16})
    teacher = Run(data, ("orig",), net, Alone(), Adadelta(1), "teacher-0")
    return [Predictions(Run(data, ("orig",), net, KL(0.1, 0.9, 8.0), Adadelta(epochs), f"student-{seed}", teacher), data, "orig")
            for seed in range(8)]


def ready(data) -> None:
    """Load what a task needs, and leave the other processes time to do the same."""
    data.train(("orig",), "cpu")
    time.sleep(1)


def rows(quick: bool):
    measures = study(1, 64) if quick else study(4, None)
    with tempfile.TemporaryDirectory() as folder:
        taught, starts = Store(Path(folder, "taught")), []
        finish(measures[0].run.teacher, taught)
        pools = {}
        for n in 1, 2:
            started = time.perf_counter()
            pools[n] = ProcessPoolExecutor(max_workers=n, env=WORKER)
            for future in [pools[n].submit(ready, measures[0].data) for _ in range(n)]:
                future.result()
            starts.append(time.perf_counter() - started - 1)

        def on(n: int) -> float:
            store = Store(Path(folder, "store"))
            shutil.copytree(taught.root, store.root)
            started = time.perf_counter()
            complete(measures, store, jobs=pools[n], progress=lambda line: None)
            ended = time.perf_counter()
            shutil.rmtree(store.root)
            return ended - started

        pair = side_by_side(lambda: on(1), lambda: on(2), 1 if quick else 4)
        for pool in pools.values():
            pool.shutdown()
    of_two = median(pair.ratios)
    parallel = min(1.0, 2 * (1 - 1 / of_two))
    yield (str(len(measures)), ratio(pair.ratios), f"{median(starts) / median(pair.ours):.2g}",
           f"{1 / (1 - parallel + parallel / 8):.2g}")
