"""results/SLUG.json: one schema, read by everything downstream (documented in book/reproduce.md)."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kdlib import stats
from kdlib.book import ROOT, BookError
from kdlib.store import Arrays, digest

VERSION = 1
RECORD = ("pair", "condition", "domain", "method", "seed", "measure", "value", "n")
EFFECT = ("pair", "condition", "domain", "method", "reference", "measure",
          *(f.name for f in dataclasses.fields(stats.Effect)))
PROVENANCE = ("parameters", "profile", "commit", "source", "device", "dtype", "versions", "seeds", "start", "duration",
              "measurements", "contents")


@dataclasses.dataclass
class Results:
    chapter: str
    provenance: dict
    records: list[dict] = dataclasses.field(default_factory=list)
    effects: list[dict] = dataclasses.field(default_factory=list)

    def record(self, values: np.ndarray, seeds: list[int], *, pair: str, domain: str, method: str, measure: str,
               condition: dict | None = None) -> None:
        """One row a seed. `values` is per seed and item (n, m), its row mean being the value; or per seed (n,)."""
        values = np.asarray(values, float)
        for seed, row in zip(seeds, values, strict=True):
            self.records.append({"pair": pair, "condition": condition or {}, "domain": domain, "method": method,
                                 "seed": seed, "measure": measure, "value": _number(row.mean()),
                                 "n": row.size if values.ndim == 2 else None})

    def effect(self, student: np.ndarray, reference: np.ndarray, teacher=None, *, pair: str, domain: str, method: str,
               against: str | None, measure: str, condition: dict | None = None, groups=()) -> stats.Effect:
        """The effect of `method` on `measure` against the method `against` (None where the measure is a difference itself), as
        `kdlib.stats.effect` computes it, with these `groups` of items.

        A measure that some seed leaves undefined (NaN) has no effect; its flag says so.
        """
        if all(np.isfinite(np.asarray(v, float)).all() for v in (student, reference, 0.0 if teacher is None else teacher)):
            found = stats.effect(student, reference, teacher, groups=groups)
        else:
            nothing = {f.name: None for f in dataclasses.fields(stats.Effect)}
            found = stats.Effect(**nothing | {"n_seeds": len(student), "flag": "undefined"})
        self.effects.append({"pair": pair, "condition": condition or {}, "domain": domain, "method": method,
                             "reference": against, "measure": measure,
                             **{k: _number(v) for k, v in dataclasses.asdict(found).items()}})
        return found

    def correlation(self, r: list[float], **where) -> None:
        """A correlation within each seed (n,), averaged over seeds by Fisher's z. Undefined in some seed: no value, a flag."""
        self._over_seeds(stats.correlation(r) if (np.abs(r) < 1).all() else None, len(r), **where)  # NaN is not

    def own_teacher(self, table: np.ndarray, **where) -> None:
        """How much more of a measure a student has with its own seed's teacher than with others', as `kdlib.stats.own_teacher` computes it
        from the measure between the students and the teachers of all seeds (n, n). Undefined somewhere: no value, a flag."""
        self._over_seeds(stats.own_teacher(table) if np.isfinite(table).all() else None, len(table), **where)

    def _over_seeds(self, found: stats.Interval | None, seeds: int, *, pair: str, domain: str, method: str, measure: str,
                    condition: dict | None = None) -> None:
        row = dict.fromkeys(EFFECT) | {"pair": pair, "condition": condition or {}, "domain": domain, "method": method, "measure": measure,
                                       "n_seeds": seeds, "flag": "undefined"}
        if found:
            row |= {"effect": found.mean, "low": found.low, "high": found.high, "low_seeds": found.low, "high_seeds": found.high,
                    "se": _number(found.se), "df": found.df, "p": found.p, "flag": "fewer than 3 seeds" if seeds < 3 else "no spread" if found.low is None else None}
        self.effects.append(row)

    def find(self, **wanted) -> dict:
        """The one effect row that has these values."""
        rows = self.matching(**wanted)
        if len(rows) != 1:
            raise KeyError(f"{len(rows)} effects match {wanted}")
        return rows[0]

    def matching(self, **wanted) -> list[dict]:
        """Every effect row that has these values."""
        return [e for e in self.effects if all(e[k] == v for k, v in wanted.items())]

    def values(self, **wanted) -> list[float]:
        """The recorded values, a seed each, that match."""
        return [r["value"] for r in self.records if all(r[k] == v for k, v in wanted.items())]

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        body = {"schema_version": VERSION, **dataclasses.asdict(self)}
        path.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Results:
    """Read and check a results file; one clear line says what is wrong with it."""
    try:
        body = json.loads(path.read_text())
    except FileNotFoundError:
        raise BookError(f"no results at {path}; run the chapter first: kdlib run {path.stem}") from None
    except ValueError as error:
        raise BookError(f"{path} is not JSON ({error}); run the chapter again: kdlib run {path.stem}") from None
    if not isinstance(body, dict) or not isinstance(body.get("provenance"), dict) or "chapter" not in body or not all(
            isinstance(body.get(part), list) and all(isinstance(row, dict) for row in body[part]) for part in ("records", "effects")):
        raise BookError(f"{path} is not a results file; run the chapter again: kdlib run {path.stem}")
    problems = []
    if body.get("schema_version") != VERSION:
        problems.append(f"schema_version is {body.get('schema_version')!r}, this kdlib reads {VERSION}")
    if lacking := set(PROVENANCE) - set(body["provenance"]):
        problems.append(f"provenance lacks {', '.join(sorted(lacking))}")
    for part, columns in ("records", RECORD), ("effects", EFFECT):
        if any(set(row) != set(columns) for row in body[part]):
            problems.append(f"{part} do not have the columns {', '.join(columns)}")
    if problems:
        raise BookError(f"{path}: {'; '.join(problems)}; run the chapter again: kdlib run {path.stem}")
    return Results(body["chapter"], body["provenance"], body["records"], body["effects"])


def contents(measured: Mapping[str, Arrays]) -> str:
    """A digest of what measurements hold, by their keys."""
    return hashlib.sha256("".join(f"{key} {digest(measured[key])}\n" for key in sorted(measured)).encode()).hexdigest()[:16]


def archives(slug: str = "", root: Path = ROOT) -> list[Path]:
    """The archives of measurements under book/results/: parts of studies (kept/), and the published chapters', this chapter's last.
    Of a measurement that several hold, the last counts."""
    folder = root / "book" / "results"
    return sorted(folder.glob("kept/*.npz")) + sorted(folder.glob("*.npz"), key=lambda file: (file.stem == slug, file))


def smallest(row: dict) -> float | None:
    """The smallest true effect that a run like that of an effect row finds four times out of five; None where the row has no interval."""
    return stats.smallest_effect(stats.Interval(*(row[name] for name in ("effect", "low", "high", "se", "df", "p"))))


def _number(value):
    """Plain JSON numbers; what is not finite is null."""
    if isinstance(value, (np.floating, np.integer)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
