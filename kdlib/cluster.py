"""The workers of a Dask scheduler as an executor (`pip install kdlib[cluster]`).

The store is a folder that all workers see under one path, so that only descriptions travel: a student's worker reads
the teacher where another worker wrote it, an entry's lock holds across machines, and what is finished has landed even
if the caller is gone. Weights sent through the scheduler would be lost with the caller, and a teacher would travel once
for each of its students and measurements. A worker computes one job of `kdlib.study` at a time: a run's random streams are the process's.
"""

import asyncio
import logging
import os
import threading
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from kdlib.store import Store, first_line

CONNECT = 5  # seconds that a scheduler has to answer
PATIENCE = 60  # seconds without any worker before a study is given up


class ClusterError(Exception):
    """The cluster cannot do the work; the message says which scheduler or worker, and what to do."""


@contextmanager
def connect(address: str, store: Store, *, progress: Callable[[str], None] = print):
    """An executor for `kdlib.study.complete`, once every worker has been found able to work into `store`.

    The scheduler tries the task of a worker that dies again on another, as often as its `allowed-failures` says (3).
    """
    with _client(address) as client, _order(store) as order:
        workers = _each(client, _check, order)
        progress(f"{len(workers)} worker{'s' * (len(workers) > 1)} at {address}")
        executor = _Workers(client, order)
        try:
            yield executor
        finally:
            executor.shutdown()


def everywhere(address: str, function: Callable, *args) -> dict[str, object]:
    """What `function(*args)` gives on each worker, by the worker's address."""
    with _client(address) as client:
        return _each(client, function, *args)


def reach(address: str) -> None:
    """ClusterError unless a scheduler answers at `address`."""
    with _client(address):
        pass


class _Workers(Executor):
    def __init__(self, client, order: dict):
        self.client, self.order, self.running, self.ended = client, order, {}, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def submit(self, fn, /, job, *args):
        future = Future()
        self.running[future] = remote = self.client.submit(_perform, self.order, fn, job, *args, pure=False)
        remote.add_done_callback(lambda remote: self._settle(future, *self._outcome(job, remote)))
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.ended.set()  # what workers have begun they finish, and it lands in the store

    def _outcome(self, job, remote):
        from distributed import KilledWorker

        if remote.status == "finished":
            return remote.result(), None
        try:
            error = remote.exception()
        except (Exception, CancelledError) as lost:
            error = lost
        if isinstance(error, KilledWorker):
            return None, ClusterError(f"{error.allowed_failures + 1} workers died one after another of {_name(job)} (out of memory?); "
                                      "see their logs; what had finished is in the store")
        if remote.status == "cancelled":
            error = ClusterError(f"lost the scheduler at {self.client.scheduler.address}; what had finished is in the store")
        return None, error

    def _settle(self, future: Future, result, error: BaseException | None) -> None:
        if self.running.pop(future, None) is not None and future.set_running_or_notify_cancel():
            future.set_exception(error) if error else future.set_result(result)

    def _watch(self) -> None:
        """Tasks wait for a worker for ever; give them up when there has been none for a while."""
        seen = time.monotonic()
        while not self.ended.wait(1):
            try:
                if self.client.nthreads():
                    seen = time.monotonic()
            except Exception:
                continue  # the scheduler itself is lost, which the client notices
            if time.monotonic() - seen > PATIENCE:
                for future in list(self.running):
                    self._settle(future, None, ClusterError(
                        f"no worker is left at {self.client.scheduler.address} (killed, or out of memory?); see their logs, start some "
                        "and run it again: what had finished is in the store"))


def _perform(order: dict, fn: Callable, job: tuple, keys: list[str], *args):
    """On a worker: one job, with the caller's folders."""
    from distributed import get_worker

    try:
        _check(order, get_worker())
        if [task.key for task in job] != keys:
            raise ClusterError("its kdlib is not the caller's; install the same one everywhere")
    except ClusterError as error:
        raise ClusterError(f"worker {get_worker().address}: {error}") from None
    before = {name: os.environ.get(name) for name in order["folders"]}
    try:
        os.environ.update({name: before[name] or folder for name, folder in order["folders"].items()})  # the worker's own comes first
        return fn(job, keys, *args)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _check(order: dict, dask_worker) -> None:
    """On a worker: can it work for this caller? Dask itself gives `dask_worker`."""
    for name, wanted in order["versions"].items():
        if (found := version(name).split("+")[0]) != wanted:
            raise ClusterError(f"it has {name} {found}, and the caller {wanted}; install the same one everywhere")
    if (threads := dask_worker.state.nthreads) != 1:
        raise ClusterError(f"it runs {threads} tasks at a time; start it with --nthreads 1 (--nworkers {threads} makes as many of them)")
    if not Path(order["nonce"]).exists():
        raise ClusterError(f"it does not see the caller's store {order['root']}; set the caller's KDLIB_CACHE to a folder that all "
                           "machines share under one path")


@contextmanager
def _order(store: Store):
    """What workers must know of the caller, with a file in the store that they must see."""
    lock, data = store.lock(uuid.uuid4().hex), os.environ.get("KDLIB_DATA")
    with lock:
        try:
            yield {"root": str(store.root.absolute()), "nonce": os.path.abspath(lock.lock_file),
                   "versions": {name: version(name).split("+")[0] for name in ("kdlib", "torch")},
                   "folders": {"KDLIB_DATA": os.path.abspath(os.path.expanduser(data))} if data else {}}
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


def _each(client, function: Callable, *args) -> dict[str, object]:
    address = client.scheduler.address
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise ClusterError(f"no worker at {address} in {PATIENCE:g} s; start some: dask worker {address} --nthreads 1") from None
    answers = client.run(function, *args, on_error="return")
    for worker, answer in answers.items():
        if isinstance(answer, BaseException):
            absent = "ModuleNotFoundError" in str(answer)  # dask has put it into an exception of its own
            raise ClusterError(f"worker {worker}: {first_line(answer)}" + "; install the same kdlib everywhere" * absent) from answer
    return answers


@contextmanager
def _client(address: str):
    try:
        import distributed
        from distributed.versions import VersionMismatchWarning
    except ImportError as error:
        raise ClusterError(f"a scheduler needs the package distributed ({error}): pip install kdlib[cluster]") from error
    loggers = [logger for name, logger in logging.root.manager.loggerDict.items()
               if name.partition(".")[0] == "distributed" and isinstance(logger, logging.Logger)]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VersionMismatchWarning)  # `_check` looks at what matters
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)  # what matters comes as an exception
            try:
                with ThreadPoolExecutor(1) as pool:  # a notebook's thread has an event loop of its own
                    pool.submit(asyncio.run, asyncio.wait_for(_identity(address), CONNECT)).result()
            except Exception as error:  # OSError, and what a server that is no scheduler or an address that is none brings about
                why = f" ({first_line(error)})" if isinstance(error, ValueError) else ""
                raise ClusterError(f"no Dask scheduler answers at {address}{why}; start one with dask scheduler, and give the address "
                                   "that it prints") from error
            with distributed.Client(address, timeout=CONNECT, set_as_default=False) as client:
                yield client
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


async def _identity(address: str) -> None:
    """Ask who is there: `Client` waits for ever for a server that says nothing, and leaves threads behind where it fails."""
    from distributed import Security
    from distributed.core import rpc

    async with rpc(address, connection_args=Security().get_connection_args("client")) as server:
        if (await server.identity(n_workers=0))["type"] != "Scheduler":
            raise OSError("not a scheduler")


def _name(job: tuple) -> str:
    first = f"{type(job[0]).__name__} of {job[0].runs[0]}" if getattr(job[0], "runs", ()) else str(job[0])
    return first + (f" (or of {len(job) - 1} like it)" if len(job) > 1 else "")
