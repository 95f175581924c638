"""Papermill, so that nothing half-done is left behind and errors are one line."""

import hashlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import Process, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from kdlib.book import BookError
from kdlib.book.chapters import Source


def execute(chapter: Source, values: dict, out: Path, *, profile: str, jobs: int | None = None, scheduler: str | None = None,
            only: dict | None = None, as_published: dict | None = None, afresh: bool = False, turn: Path | None = None,
            say: Callable[[str], None] = print) -> str:
    """Execute a chapter into OUT/SLUG.ipynb and OUT/results/SLUG.json, or leave both as they were.

    Returns a line that says what was done. A failure is a BookError; the partly executed notebook then stands beside
    as OUT/SLUG.failed.ipynb. `turn` is a file that chapters side by side lock while they train and measure.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{chapter.slug}-", dir=out) as making:
        notebook, results, progress = Path(making, "executed.ipynb"), Path(making, "results.json"), Path(making, "progress")
        progress.touch()
        order = {"results": str(results), "progress": str(progress), "profile": profile, "source": chapter.digest,
                 "jobs": jobs, "scheduler": scheduler, "only": only or {}, "as_published": as_published,
                 "afresh": afresh, "turn": turn and str(turn)}
        folders = {n: os.path.abspath(os.path.expanduser(os.environ[n])) for n in ("KDLIB_CACHE", "KDLIB_DATA") if os.environ.get(n)}
        try:
            with _environment(KDLIB_RUN=json.dumps(order), JUPYTER_PREFER_ENV_PATH="1", **folders), \
                    _follow(progress, say), _quiet(Path(making, "stderr")):
                papermill.execute_notebook(chapter.path, notebook, parameters=values, progress_bar=False, kernel_name="python3", language="python",
                                           cwd=making, config=Config({"KernelManager": {"transport": "ipc"}}),
                                           start_timeout=300, iopub_timeout=60)
        except PapermillExecutionError as error:
            if error.ename == "PartDone":
                return error.evalue
            failed = out / f"{chapter.slug}.failed.ipynb"
            shutil.move(notebook, failed)
            raise BookError(f"{chapter.slug}: {error.ename}: {_first_line(error.evalue)} (cell {error.cell_index}; "
                            f"all of it in {failed})") from error
        except KeyboardInterrupt:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the abandoned cell's traceback
            raise
        except (DeadKernelError, RuntimeError, TimeoutError) as error:
            said = [line.strip() for line in Path(making, "stderr").read_text(errors="replace").splitlines() if "error" in line.lower()]
            last = f"; it had said: {said[-1]}" if said else ""
            if not isinstance(error, DeadKernelError):
                raise BookError(f"{chapter.slug}: the kernel did not answer ({_first_line(str(error))}); run it again{last}") from error
            raise BookError(f"{chapter.slug}: the kernel died (out of memory?); what had finished is in the store, "
                            f"run it again to go on{last}") from error
        except OSError as error:
            raise BookError(f"{chapter.slug}: cannot write to {out}: {error.strerror or error}; make room, or name another folder "
                            "(--out)") from error
        if not results.exists():
            failed = out / f"{chapter.slug}.failed.ipynb"
            shutil.move(notebook, failed)
            raise BookError(f"{chapter.slug}: no cell called chapter.finish(), which writes its results; the last one should ({failed} is what it made)")
        _tidy(notebook, results)
        (out / "results").mkdir(exist_ok=True)
        os.replace(results, out / "results" / f"{chapter.slug}.json")
        os.replace(notebook, out / f"{chapter.slug}.ipynb")
        (out / f"{chapter.slug}.failed.ipynb").unlink(missing_ok=True)
    return f"wrote {out / chapter.slug}.ipynb and {out / 'results' / chapter.slug}.json"


def side_by_side(tasks: list[Callable[..., int]], out: Path, at_once: int) -> list[int]:
    """Call tasks with `turn=` (see `execute`), each in a process of its own, so many at once; what they returned, 1 for one that broke.

    Chapters take turns to train and measure, where each uses all cores; they start and draw side by side.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".turn-", dir=out) as folder:
        processes = [Process(target=_alone, args=(task, Path(folder, "turn"))) for task in tasks]
        waiting, running = list(processes), []
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    signal.pthread_sigmask(signal.SIG_BLOCK, CUT_OFF)  # until the new process knows what to do of them
                    try:
                        waiting[0].start()
                        running.append(waiting.pop(0))
                    finally:
                        signal.pthread_sigmask(signal.SIG_UNBLOCK, CUT_OFF)
                wait([process.sentinel for process in running])
                running = [process for process in running if process.is_alive()]
        finally:
            for process in running:
                process.terminate()
            for process in running:
                process.join()
    return [min(1, abs(process.exitcode)) for process in processes]


CUT_OFF = {signal.SIGINT, signal.SIGTERM}


def _alone(task: Callable[..., int], turn: Path) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)  # one from the keyboard comes through the parent, as this:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CUT_OFF)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    try:
        sys.exit(task(turn=turn))
    except KeyboardInterrupt:
        sys.exit(1)
    except BrokenPipeError:
        os._exit(1)  # there is nobody to tell, and no use in flushing


def _end_with(parent) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def digest(results: Path) -> str:
    """What ties a notebook to the results file that it was executed with."""
    return hashlib.sha256(results.read_bytes()).hexdigest()[:16]


def _tidy(path: Path, results: Path) -> None:
    """Drop papermill's clock times and paths of this machine; note which results belong to the notebook."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kdlib"]["results"] = digest(results)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
    nbformat.write(notebook, path)


class _environment:
    def __init__(self, **names: str):
        self.names = names

    def __enter__(self):
        self.before = {n: os.environ.get(n) for n in self.names}
        os.environ.update(self.names)

    def __exit__(self, *exc):
        for name, value in self.before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class _quiet:
    """Send what this process and its children write to stderr to a file: kernels report shutdowns and trackers leaks there
    that are none. What matters comes as an exception or as progress."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self):
        sys.stderr.flush()
        self.before = os.dup(2)
        with open(self.path, "wb") as file:
            os.dup2(file.fileno(), 2)

    def __exit__(self, *exc):
        sys.stderr.flush()
        os.dup2(self.before, 2)
        os.close(self.before)


class _follow:
    """Say each line that the kernel appends to a file, while the block runs."""

    def __init__(self, path: Path, say: Callable[[str], None]):
        self.path, self.say, self.ended = path, say, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def __exit__(self, *exc):
        self.ended.set()
        self.thread.join()

    def _read(self):
        with open(self.path) as file:
            while True:
                last = self.ended.is_set()
                for line in file:
                    self.say(line.rstrip())
                if last:
                    return
                self.ended.wait(0.3)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "no message"
