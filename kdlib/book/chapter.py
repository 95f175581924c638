"""What a chapter's cells call: set-up, load or run, results, provenance."""

import datetime
import json
import os
import platform
import subprocess
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from kdlib import cluster, study
from kdlib.book import ROOT, BookError
from kdlib.book.chapters import source
from kdlib.book.results import Results, archives, contents
from kdlib.measures import Measure
from kdlib.store import Store, describe
from kdlib.train import machine


class At(NamedTuple):
    """Where a measurement stands in a chapter; `--only` selects by these names."""

    pair: str
    method: str
    seed: int
    domain: str
    probe: str = ""


class PartDone(Exception):
    """A part of a chapter (`--only`) is in the store; there is nothing to write until all of it is."""


class Planned(Exception):
    """What a chapter asks for is known, and nothing was computed."""

    def __init__(self, measures: list[Measure]):
        super().__init__(f"{len(measures)} measurements are asked for")
        self.measures = measures


class Chapter:
    """One execution of a chapter. Device and dtype are resolved here and pinned in the provenance; a chapter without these two
    parameters computes on a CPU in float64.

    `kdlib run` says by the environment variable KDLIB_RUN (JSON) where results go, how many processes to use, which
    part to compute and where to report progress; without it (in Jupyter) progress is printed and nothing is written.
    `kdlib store` says by it that what the chapter asks for is to be planned only.
    """

    def __init__(self, slug: str, namespace: dict):
        """`namespace` holds the notebook's parameters by name; what else it holds is not looked at."""
        self.order = json.loads(os.environ.get("KDLIB_RUN", "{}"))
        self.parameters = parameters = {name: parameter.check(namespace[name]) for name, parameter in source(slug).parameters.items()}
        self.planning = self.order.get("plan", False)
        resolved = {name: parameters[name] for name in ("device", "dtype") if name in parameters}
        if self.planning:  # for any machine: device and dtype are given
            self.device, self.dtype = resolved.get("device", "cpu"), resolved.get("dtype", "float64")
            return
        self._started = time.monotonic()
        self.published = self.order.get("as_published")
        self.live = "results" not in self.order  # in Jupyter: cells can be run again, and widgets be used
        if resolved:
            self.device, self.dtype, name = self._machine(**resolved)
            resolved = {"device": self.device, "dtype": self.dtype}
        else:
            self.device, self.dtype, name = "cpu", "float64", self.published["device"] if self.published else machine("cpu", "float32")[2]
        if self.published:  # what was published and nothing else: a store may hold what this machine got under the same keys
            self.store = Store(Path(self.order["results"]).with_name("no store"), [ROOT / "book" / "results" / f"{slug}.npz"], self.say)
        else:
            self.store = Store(archives=[] if self.order.get("afresh") else archives(slug), say=self.say)
        self.results = Results(slug, {
            "parameters": parameters | resolved,
            "profile": self.order.get("profile", "notebook"), "commit": commit(), "source": self.order.get("source"),
            "device": name, "dtype": self.dtype,
            "versions": {"python": platform.python_version(), **{p: version(p) for p in ("kdlib", "torch", "numpy", "scipy")}},
            "seeds": list(range(max(parameters.get("seeds", 1), parameters.get("first_seeds", 0)))),
            "start": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "duration": None, "measurements": [], "contents": contents({})})
        if self.published:  # the numbers are those of that machine and day
            self.results.provenance.update({name: self.published[name] for name in ("versions", "start", "duration")})

    def pin(self, name: str, value) -> None:
        """Replace an `auto` parameter in the provenance by what it was resolved to."""
        if not self.planning:
            self.results.provenance["parameters"][name] = value

    def complete(self, measures: Mapping[At, Measure], shared: Mapping[str, Measure]) -> tuple[dict, dict]:
        """Load or compute all measurements: (arrays by At, arrays by the name of what the arms share).

        A chapter calls it once, and nothing before it trains or needs data: so what it asks for can be planned.
        """
        if self.planning:
            raise Planned([*measures.values(), *shared.values()])
        self.results.records.clear()  # a cell may be run again
        self.results.effects.clear()
        wanted = self._part(measures)
        if self.published:
            lacking = sum(self.store.read("measure", m.key) is None for m in (*wanted.values(), *shared.values()))
            if lacking:
                raise BookError(f"{lacking} of {len(wanted) + len(shared)} measurements are not among the published ones, which "
                                f"torch {self.published['versions']['torch']} made (this is {version('torch')}; a change of book/weights.json "
                                "can be why, too); install that, or run the chapter without --as-published")
        asked = time.monotonic()
        with FileLock(turn) if (turn := self.order.get("turn")) else nullcontext():
            self._started += time.monotonic() - asked  # waiting for another chapter is no part of the duration
            got = study.complete([*wanted.values(), *shared.values()], self.store, jobs=self.order.get("scheduler") or self.order.get("jobs"),
                                 progress=self.say)
        if self.order.get("only"):
            raise PartDone(f"{len(wanted)} of {len(measures)} measurements are in the store; "
                           "run without --only to write the chapter")
        self.results.provenance["measurements"] = sorted(m.key for m in got)
        self.results.provenance["contents"] = contents({m.key: arrays for m, arrays in got.items()})
        self.results.provenance["objectives"] = objectives = {}  # with the loss weights that parameters may leave to a file
        for at, m in measures.items():
            if run := getattr(m, "run", None):
                asked = {name: value for name, value in describe(run.objective).items() if name != "version"}
                if len(asked) > 1:
                    objectives.setdefault(at.pair, {}).setdefault(at.method, asked)
        if not self.published:  # of machines that shared the work, each is named, the one that did the most first
            devices = Counter(device for m in [m for m in got if m.runs] or got for device in self.store.devices(m.key))
            self.results.provenance["device"] = " and ".join(name for name, _ in devices.most_common()) or self.results.provenance["device"]
        return {at: got[m] for at, m in measures.items()}, {name: got[m] for name, m in shared.items()}

    def finish(self) -> Results:
        """Write the results where `kdlib run` wants them."""
        if not self.published:
            self.results.provenance["duration"] = round(time.monotonic() - self._started, 1)
        if "results" in self.order:
            self.results.write(Path(self.order["results"]))
        return self.results

    def _machine(self, device: str, dtype: str) -> tuple[str, str, str]:
        """Device, dtype and the device's name: the published ones, those of a cluster's workers, or this machine's."""
        if self.published:
            return device, dtype, self.published["device"]
        if not self.order.get("scheduler"):
            return machine(device, dtype)
        workers = cluster.everywhere(self.order["scheduler"], machine, device, dtype).values()
        settings = sorted({w[:2] for w in workers})
        if len(settings) > 1:
            raise BookError(f"the workers do not agree on device and dtype ({'; '.join(', '.join(s) for s in settings)}); name them with "
                            "-p device=... -p dtype=..., or use workers of one kind")
        return *settings[0], "; ".join(sorted({name for *_, name in workers}))

    def _part(self, measures: Mapping[At, Measure]) -> dict[At, Measure]:
        chosen = dict(measures)
        for name, text in self.order.get("only", {}).items():
            known = {str(getattr(at, name)) for at in measures}
            if text not in known:
                raise BookError(f"--only {name}={text}: this chapter has {', '.join(sorted(known))}")
            chosen = {at: m for at, m in chosen.items() if str(getattr(at, name)) == text}
        return chosen

    def say(self, line: str) -> None:
        """Report progress."""
        if "progress" in self.order:
            with open(self.order["progress"], "a") as file:
                print(line, file=file, flush=True)
        else:
            print(line, flush=True)


def commit() -> str | None:
    """The repository's commit, with + where the tree has changes; None outside a repository."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "kdlib", "notebooks", "book/weights.json") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
