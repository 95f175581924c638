"""`kdlib weights`: choose the loss weights of image pairs on held-out training pictures, once; never on test pictures."""

import datetime
import json
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from kdlib import study
from kdlib.book import images
from kdlib.measures import Items, Predictions
from kdlib.store import Store, changing
from kdlib.train import machine

# What is tried, by method: alpha of KL (beside 1 - alpha for the cross entropy), beta of Hint and CRD (beside 1).
CANDIDATES = {"KL": (0.5, 0.9), "Hint": (0.2, 1.0, 5.0), "CRD": (0.2, 0.8)}
COMMON = ("source", "size", "limit", "epochs", "teacher_epochs", "batch")  # parameters to note beside a choice, and those of one method
OWN = {"KL": ("tau",), "Hint": (), "CRD": ("tau_crd", "negatives", "crd_positive")}


def choose(parameters: dict[str, object], *, seeds: int, jobs: int | None, say: Callable[[str], None]) -> None:
    """Train each pair's students with each candidate on four fifths of the training pictures, and keep what does best on the rest.

    `parameters` are those that the image chapters share. A method that has been chosen for with these pictures, networks and
    schedules keeps its choice. What is trained lands in the store, each pair's choices in book/weights.json at once.
    """
    device, dtype, name = machine(parameters["device"], parameters["dtype"])
    study_of = images.Images({**parameters, "seeds": seeds, "first_seeds": 0}, device, dtype, held_out=True)
    for pair in study_of.pairs:
        where, before = {m: images.choice(pair, parameters, m) for m in CANDIDATES}, images.read_choices()
        if known := [before[at] for at in where.values() if at in before]:
            say(f"{pair.name}: chosen before, {_words(known)}")
        candidates = {m: values for m, values in CANDIDATES.items() if where[m] not in before}
        if not candidates:
            continue
        suite, runs = study_of.suite, {}
        for method, values in candidates.items():
            for value in values:
                arms = study_of.arms(pair, weights={**images.UNCHOSEN, method: value})
                runs |= {("Ind", None, s): arms["Ind", s] for s in range(seeds)} | {(method, value, s): arms[method, s] for s in range(seeds)}
        asked = {at: Predictions(run, suite, suite.seen) for at, run in runs.items()}
        items = Items(suite, suite.seen)
        got = study.complete([items, *asked.values()], Store(say=say), jobs=jobs, progress=lambda line: say(f"{pair.name}: {line}"))
        label = got[items]["label"]
        accuracy = {at: float((got[m]["prediction"] == label).mean()) for at, m in asked.items()}
        means = {method: {f"{v:g}": round(np.mean([accuracy[method, v, s] for s in range(seeds)]).item(), 4) for v in values}
                 for method, values in candidates.items()}
        alone = round(np.mean([accuracy["Ind", None, s] for s in range(seeds)]).item(), 4)
        found = {m: {"pair": pair.name, "method": m, "chosen": float(max(by, key=by.get)), "held-out accuracy": {"Ind": alone, **by}, "held-out pictures": len(label),
                     "seeds": seeds, "parameters": {n: parameters[n] for n in (*COMMON, *OWN[m])}, "device": name, "dtype": dtype, "torch": version("torch"),
                     "date": datetime.date.today().isoformat()} for m, by in means.items()}
        _keep({where[m]: choice for m, choice in found.items()})
        say(f"{pair.name}: {_words(list(found.values()))}")


def _words(choices: list[dict]) -> str:
    return "; ".join(f"{c['method']} {c['chosen']:g} (" + ", ".join(f"{'independent' if v == 'Ind' else v}: {100 * a:.1f} %" for v, a in c["held-out accuracy"].items()) + ")"
                     for c in choices)


def _keep(choices: dict) -> None:
    with changing(images.WEIGHTS), tempfile.TemporaryDirectory(dir=images.WEIGHTS.parent, prefix=".making-") as folder:
        made = Path(folder, images.WEIGHTS.name)
        made.write_text(json.dumps(images.read_choices() | choices, indent=1, sort_keys=True) + "\n")
        os.replace(made, images.WEIGHTS)
