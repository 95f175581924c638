"""The chapters' sources: which there are, what they need, their profiles and typed parameters.

A chapter is one notebook under notebooks/. Its metadata carry a `kdlib` block (section, needs, profiles, minutes);
its parameters are the cell tagged `parameters`, one annotated assignment a line, whose comment papermill shows as help.
A comment may end in the allowed values: "in [1, 100]", "0 or in [20, 100]" or "one of a, b".
"""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdlib.book import ROOT, BookError

PROFILES = ("smoke", "cpu", "real", "gpu", "paper")
_LINE = re.compile(r"(?P<name>\w+)\s*:\s*(?P<type>bool|int|float|str)\s*=\s*(?P<default>.+?)\s*#\s*(?P<help>.+)$")
_RANGE = re.compile(r"(?P<zero>\b0 or )?in \[(?P<low>[^,\]]+), (?P<high>[^,\]]+)\]$")
_CHOICE = re.compile(r"one of (?P<values>[^()]+)$")


@dataclass(frozen=True)
class Parameter:
    name: str
    type: type
    default: object
    help: str

    @property
    def choices(self) -> list[str]:
        """The values it can take, where its comment lists them."""
        match = _CHOICE.search(self.help)
        return re.split(r",\s*", match["values"]) if match else []

    def parse(self, text: str) -> object:
        """A value given as text (or JSON), checked for type and range."""
        try:
            if self.type is bool:
                value = {"true": True, "false": False}[text.lower()]
            elif self.type is not str and "_" in text:  # Python reads 1_0 as 10
                raise ValueError
            else:
                value = self.type(text)
        except (KeyError, ValueError):
            raise BookError(f"parameter {self.name} takes {'true or false' if self.type is bool else self.type.__name__}, "
                            f"not {text!r} ({self.help})") from None
        return self.check(value)

    def check(self, value: object) -> object:
        if type(value) is not self.type and not (self.type is float and type(value) is int):
            raise BookError(f"parameter {self.name} takes {self.type.__name__}, not {value!r} ({self.help})")
        if (match := _RANGE.search(self.help)) and not (float(match["low"]) <= value <= float(match["high"]) or match["zero"] and value == 0):
            raise BookError(f"parameter {self.name} = {value} is out of range ({self.help})")
        if self.choices and value not in self.choices:
            raise BookError(f"parameter {self.name} = {value!r} is not allowed ({self.help})")
        return self.type(value)


@dataclass(frozen=True)
class Source:
    """One chapter's notebook as it stands under notebooks/."""

    slug: str
    path: Path

    @cached_property
    def notebook(self):
        notebook = read_notebook(self.path)
        if not {"section", "needs", "profiles", "minutes"} <= set(notebook.metadata.get("kdlib", {})) or not notebook.cells \
                or not any("parameters" in c.metadata.get("tags", []) for c in notebook.cells):
            raise BookError(f"{self.path}: not a chapter: it needs a kdlib block in its metadata (section, needs, profiles, minutes) "
                            "and a cell tagged parameters")
        return notebook

    @property
    def facts(self) -> dict:
        return self.notebook.metadata["kdlib"]

    @property
    def title(self) -> str:
        return self.notebook.cells[0].source.splitlines()[0].lstrip("# ")

    @cached_property
    def parameters(self) -> dict[str, Parameter]:
        cell = next(c for c in self.notebook.cells if "parameters" in c.metadata.get("tags", []))
        found = {}
        for line in cell.source.splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            try:
                match = _LINE.match(line)
                kind = {"bool": bool, "int": int, "float": float, "str": str}[match["type"]]
                default = json.loads(match["default"].lower() if kind is bool else match["default"])
            except (TypeError, ValueError):  # no match, or not a value
                raise BookError(f"{self.path.name}: cannot read the parameter line {line!r}; write NAME: TYPE = VALUE  # help") from None
            found[match["name"]] = Parameter(match["name"], kind, default, match["help"])
        return found

    def values(self, profile: str, given: dict[str, str]) -> dict[str, object]:
        """Every parameter's value: the notebook's default, changed by the profile, changed by what was given."""
        near("profile", profile, self.facts["profiles"])
        values = {name: p.default for name, p in self.parameters.items()} | dict(self.facts["profiles"][profile])
        for name in (*values, *given):
            near(f"parameter of {self.slug}", name, self.parameters)
        values |= {name: self.parameters[name].parse(text) for name, text in given.items()}
        return {name: self.parameters[name].check(value) for name, value in values.items()}

    def as_published(self, was: dict[str, object]) -> dict[str, object]:
        """The parameters of the published chapter, if they are still this chapter's."""
        if was.keys() != self.parameters.keys():
            raise BookError(f"{self.slug}: its parameters have changed since it was published "
                            f"({', '.join(sorted(was.keys() ^ self.parameters.keys()))}); run it without --as-published")
        return {name: self.parameters[name].check(value) for name, value in was.items()}

    @property
    def digest(self) -> str:
        return source_digest(self.notebook)


def duration(minutes: float) -> str:
    """'20 s', '12 min', '4 h'."""
    return f"{minutes * 60:.0f} s" if minutes < 1 else f"{minutes:g} min" if minutes < 90 else f"{minutes / 60:.2g} h"


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """A table for a terminal, a line a row."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def near(what: str, name: str, known) -> None:
    """Raise a BookError that suggests the nearest known name, unless `name` is known."""
    if name not in known:
        [close] = difflib.get_close_matches(name, list(known), 1, cutoff=0)
        raise BookError(f"no {what} named {name!r}; did you mean {close}? (known: {', '.join(known)})")


def contents(root: Path = ROOT) -> list[str]:
    """The slugs of the chapters in the book's table of contents."""
    if not (root / "notebooks").is_dir() or not (root / "book" / "_toc.yml").exists():
        raise BookError(f"no notebooks/ and book/_toc.yml under {root}: the book's commands need a clone of the repository, "
                        "with pip install -e '.[book]' in it")
    return re.findall(r"^\s*- file: chapters/([\w-]+)", (root / "book" / "_toc.yml").read_text(), flags=re.MULTILINE)


def sources(root: Path = ROOT) -> dict[str, Source]:
    """The chapters by slug, in the order of the book's table of contents; those it does not list come last."""
    listed = contents(root)
    found = {p.stem: Source(p.stem, p) for p in sorted((root / "notebooks").glob("*.ipynb")) if p.stem in listed or _claims_to_be_one(p)}
    return {s: found[s] for s in sorted(found, key=lambda s: (listed.index(s) if s in listed else len(listed), s))}


def _claims_to_be_one(path: Path) -> bool:
    """Whether a notebook that the book does not list says that it is a chapter; a scratch one (Untitled.ipynb) does not."""
    return "kdlib" in read_notebook(path).metadata


def source(slug: str) -> Source:
    known = sources()
    near("chapter", slug, known)
    return known[slug]


def source_digest(notebook) -> str:
    """Of what a person wrote: every cell's kind, tags and source, and the profiles, without what papermill injected."""
    written = [(c.cell_type, sorted(c.metadata.get("tags", [])), c.source) for c in notebook.cells
               if "injected-parameters" not in c.metadata.get("tags", [])]
    profiles = notebook.metadata.get("kdlib", {}).get("profiles")
    return hashlib.sha256(json.dumps([written, profiles], sort_keys=True).encode()).hexdigest()[:16]


def read_notebook(path: Path):
    import nbformat  # of the book's extra

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat and json each have their own
        raise BookError(f"{path}: not a notebook that can be read ({str(error).splitlines()[0]})") from error


def published(slug: str, root: Path = ROOT) -> str:
    """The published chapter's state: absent, current, or stale where its source has changed since."""
    path = root / "book" / "chapters" / f"{slug}.ipynb"
    if not path.exists():
        return "absent"
    return "current" if source_digest(read_notebook(path)) == source(slug).digest else "stale"
