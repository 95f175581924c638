"""A study: measurements asked of runs. What the store has is read, the rest is computed side by side.

Parts of a study may be computed on different machines. Each network must then be one: every measurement names the weights that
it was taken from, and those of the networks' teachers, and a study that finds two copies of a network stops (`Copies`).

The executor is anything with the interface of `concurrent.futures.Executor`: by default loky, a process per core, or the
workers of a Dask scheduler.
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from dataclasses import replace
from functools import cache

from loky import cpu_count, get_reusable_executor

from kdlib import cluster
from kdlib.distill import Alone
from kdlib.foreign import shell
from kdlib.measures import Measure
from kdlib.models import Model, taps
from kdlib.store import Arrays, Entry, Store, StoreError, describe
from kdlib.train import Run, finish, machine, repeatable


Job = tuple[Run | Measure, ...]  # a run, or measurements: what one process does in one go

# One thread, and glibc keeps the memory that a step frees: the next one needs it again, page by page.
WORKER = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**29), "MALLOC_TOP_PAD_": str(2**26)}


def arms(*, data, teacher: Model, student: Model, teacher_domains, teacher_star_domains, student_domains, objectives: dict,
         seeds: Iterable[int], schedule, device: str, dtype: str, teacher_schedule=None, one_teacher: bool = False,
         teacher_star: Run | None = None) -> dict[tuple[str, int], Run]:
    """The runs of a teacher-student pair, controls included, by (method, seed).

    T and T* (the teacher that lacks the property: it saw other domains) start alike, and so do Ind and every distilled
    student of a seed; Ind2 is a second independent student. `objectives` maps methods to objectives; a name that ends
    in * is taught by T*. Each seed has a teacher of its own unless `one_teacher` serves them all; what is found is then
    conditional on it. Teachers train by `schedule` too unless they have one of their own; `teacher_star` is a T* of its own kind.
    """
    common = dict(data=data, device=device, dtype=dtype)
    runs = {}
    for seed in seeds:
        for method, domains in ("T", teacher_domains), ("T*", teacher_star_domains):
            runs[method, seed] = Run(domains=domains, model=teacher, objective=Alone(), schedule=teacher_schedule or schedule,
                                     seed=f"teacher-{0 if one_teacher else seed}", **common)
        runs["T*", seed] = teacher_star or runs["T*", seed]
        for method, name in ("Ind", "student"), ("Ind2", "second"):
            runs[method, seed] = Run(domains=student_domains, model=student, objective=Alone(), schedule=schedule,
                                     seed=f"{name}-{seed}", **common)
        for method, objective in objectives.items():
            runs[method, seed] = Run(domains=student_domains, model=student, objective=objective, schedule=schedule,
                                     seed=f"student-{seed}", teacher=runs["T*" if method.endswith("*") else "T", seed], **common)
    return runs


def complete(measures: Iterable[Measure], store: Store, *, jobs: int | str | Executor | None = None,
             progress: Callable[[str], None] = print) -> dict[Measure, Arrays]:
    """Every measurement's arrays, in the order asked; what is missing is trained and measured first.

    `jobs` is a number of processes (default: one per core, one where the runs are on a GPU), the address of a Dask
    scheduler (see `kdlib.cluster`) or an executor whose processes see the store. Each finished run and measurement lands
    in the store at once, so an interrupted study goes on where it stopped. Measurements of two copies of one network are a
    StoreError, as soon as it is known: before anything is trained, or when a network that had to be trained anew came out
    differently, or at the end.
    """
    measures, copies = list(dict.fromkeys(measures)), Copies()
    todo = _missing(measures, store, copies)
    if todo:
        _layers_exist([job[0] for job in todo if isinstance(job[0], Run)])
        on_gpu = any(run.device == "cuda" for m in measures for run in m.runs)
        jobs = (1 if on_gpu else cpu_count()) if jobs is None else jobs
        if isinstance(jobs, str):
            with cluster.connect(jobs, store, progress=progress) as executor:
                _work(todo, store, copies, executor, progress)
        elif not isinstance(jobs, int):
            _work(todo, store, copies, jobs, progress)
        else:
            executor = get_reusable_executor(max_workers=jobs, env=WORKER)
            try:
                with warnings.catch_warnings():  # a worker that has loaded its data has not leaked memory
                    warnings.filterwarnings("ignore", "A worker (was restarted|stopped)", module="loky")
                    _work(todo, store, copies, executor, progress)
            except BaseException:
                executor.shutdown(kill_workers=True)  # nothing finished is lost: what lands in the store lands whole
                raise
    return {m: _read(m, store, copies) for m in measures}


class Copies:
    """Of each network one copy: what was first said of its weights. What says otherwise is a StoreError, teachers before students."""

    def __init__(self):
        self.digests: dict[str, str] = {}  # by the key of the run
        self._first: dict[str, str] = {}

    def trained(self, run: Run, store: Store) -> None:
        self._note([run], store.weights("run", run.key), f"run {run.key[:8]} of {store.root}")

    def measured(self, measure: Measure, entry: Entry) -> None:
        self._note(measure.runs, entry.info.get("weights", {}), f"measurement {measure.key[:8]} of {entry.place}")

    def _note(self, runs: Iterable[Run], weights: dict[str, str], where: str) -> None:
        for run in _with_teachers(runs):
            if (digest := weights.get(run.key)) is None:
                continue
            known, first = self.digests.setdefault(run.key, digest), self._first.setdefault(run.key, where)
            if digest != known:
                raise StoreError(f"store: two copies of {run}: its weights are {known[:8]} in {first} and {digest[:8]} in {where}; "
                                 "keep one: kdlib store --drop WEIGHTS removes from the store what rests on the other (an archive that "
                                 "holds it has to be moved away, or kdlib run --afresh looks into none), then go on with a machine of the "
                                 "kind that made the one you kept")


def _missing(measures: list[Measure], store: Store, copies: Copies) -> dict[Job, set[Job]]:
    """What has to be computed, with what each of it waits for. Runs whose measurements are all there are not needed.

    Measurements that share something costly are one job: it is made once, and not by each process again as students finish.
    """
    todo: dict[Job, set[Job]] = {}
    together: dict[str, list[Measure]] = {}

    @cache
    def need(run: Run) -> frozenset:
        if store.read("run", run.key) is not None:
            copies.trained(run, store)
            return frozenset()
        todo[run,] = set(need(run.teacher)) if run.teacher else set()
        return frozenset({(run,)})

    for measure in measures:
        entry = store.read("measure", measure.key)
        if entry is None:
            together.setdefault(measure.shared or measure.key, []).append(measure)
        else:
            copies.measured(measure, entry)
    for job in map(tuple, together.values()):
        todo[job] = set().union(*(need(run) for measure in job for run in measure.runs))
    return todo


def _layers_exist(runs: list[Run]) -> None:
    """A ValueError of `taps` now, and not once hours have gone into a teacher."""
    named = {(run.model, run.objective.student_layer) for run in runs} | {(run.teacher.model, run.objective.teacher_layer) for run in runs if run.teacher}
    for model, layer in named:
        if layer and isinstance(model, Model):
            with taps(shell(replace(model, weights=None, file=None).build), layer):
                pass


def _work(todo: dict[Job, set[Job]], store: Store, copies: Copies, executor: Executor, progress: Callable[[str], None]) -> None:
    started, total, done = time.monotonic(), sum(map(_cost, todo)), 0.0
    tasks = sum(map(len, todo))
    runs = sum(isinstance(job[0], Run) for job in todo)
    progress(f"{runs} networks to train, {tasks - runs} measurements to take")
    finished, waiting, running = set(), dict(todo), {}
    while waiting or running:
        # measurements first: they are short, and what they belong to is settled once they have landed; then networks that
        # were measured elsewhere: they may come out differently
        for job in sorted((j for j, needs in waiting.items() if needs <= finished),
                          key=lambda j: isinstance(j[0], Run) and 2 - (j[0].key in copies.digests)):
            running[executor.submit(_compute, job, [task.key for task in job], Store(store.root.absolute()))] = job  # archives hold nothing that is missing
            del waiting[job]
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            job = running.pop(future)
            try:
                future.result()
                if isinstance(job[0], Run):
                    copies.trained(job[0], store)  # before its students are trained
            except BaseException as error:
                begun = [other for other in running if not other.cancel()]
                if isinstance(error, BrokenExecutor):
                    raise StoreError("study: a process died while it computed, perhaps for lack of memory; what had finished is in the store, "
                                     "the same command goes on from there; with --jobs 1 it needs the least memory") from error
                if begun and isinstance(error, Exception):  # hours of work, perhaps; an interrupt does not wait for them
                    progress(f"{job[0] if isinstance(job[0], Run) else type(job[0]).__name__} failed ({type(error).__name__}); "
                             f"{len(begun)} begun beside it will be finished first")
                    wait(begun)
                raise
            finished.add(job)
            done += _cost(job)
            if isinstance(job[0], Run):
                trained = sum(isinstance(j[0], Run) for j in finished)
                left = (time.monotonic() - started) / done * (total - done)
                progress(f"{trained}/{runs} trained, about {_duration(left)} left: {job[0]}")


def _compute(job: Job, keys: list[str], store: Store) -> None:
    if [task.key for task in job] != keys:
        raise StoreError("study: the kdlib of a process that computes is not the caller's; was it changed meanwhile? Run it again")
    for task in job:
        if isinstance(task, Run):
            finish(task, store)
            continue
        with store.lock(task.key):
            if store.read("measure", task.key) is None:
                device = task.runs[0].device if task.runs else "cpu"
                with repeatable(device):
                    nets, copies = [finish(run, store) for run in task.runs], Copies()
                    for run in task.runs:
                        copies.trained(run, store)
                    arrays = task.compute(*nets)
                trained = {store.trained_on(run.key) for run in _with_teachers(task.runs)} - {None}
                store.write("measure", describe(task), arrays, {"weights": copies.digests, "device": machine(device, "float32")[2], "trained": sorted(trained)})


def _read(measure: Measure, store: Store, copies: Copies) -> Arrays:
    entry = store.read("measure", measure.key)
    if entry is None:
        raise StoreError(f"store: the measurement {measure.key} vanished from {store.root} while it was being read")
    copies.measured(measure, entry)
    return entry.arrays


def _with_teachers(runs: Iterable[Run]) -> Iterator[Run]:
    for run in runs:
        if run.teacher:
            yield from _with_teachers([run.teacher])
        yield run


def _cost(job: Job) -> float:
    return sum(task.cost if isinstance(task, Run) else 0.02 for task in job)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
