"""What the store holds beside what today's chapters ask of it, and its measurements as files (`kdlib store`)."""

import ast
import contextlib
import io
import itertools
import json
import os
import re
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from kdlib.book import ROOT, BookError, results
from kdlib.book.chapters import PROFILES, Source, aligned, near, sources
from kdlib.store import KINDS, Kept, Store, changing, first_line, pack, unpack

DAY = 24 * 60 * 60  # seconds
AGAIN = "nothing was removed yet; the same command with --yes removes it"
Keys = frozenset[tuple[str, str]]  # (kind, key)


def report(store: Store) -> Iterator[str]:
    """The store in lines: what it holds, by the chapter and profile that first asks for it."""
    folders = store.folders()
    if not folders:
        yield f"{store.root}: nothing in the store"
        return
    try:
        wanted, rest, note = _wanted(), "no chapter", []
    except BookError as error:
        wanted, rest, note = {}, "not known", [str(error)]
    yield f"{store.root}: {_counted(folders)}"
    yield from _table(folders, wanted, rest)
    yield from note


def prune(store: Store, *, young: bool, yes: bool) -> Iterator[str]:
    """Remove what no chapter asks for and what was left unfinished or damaged, in lines about it.

    What no chapter asks for stays while it is younger than a day (unless `young`): it may be an experiment under way. So does
    what a process is computing. Without `yes` nothing is removed. A chapter that cannot be planned is a BookError.
    """
    known = frozenset().union(*_wanted().values())
    old, recent = [], []
    for kept in store.folders():
        if kept.kind not in KINDS or (kept.kind, kept.key) not in known:
            (recent if kept.kind in KINDS and not young and time.time() - kept.written < DAY else old).append(kept)
    gone, busy = _clear(store, old, yes)
    if gone:
        yield f"{store.root}: {'removed' if yes else 'to remove'}: {_counted(gone)}"
        yield from _table(gone, {}, "no chapter")
    else:
        yield f"{store.root}: nothing to remove"
    if busy:
        yield f"kept, a process is computing them: {_counted(busy)}"
    if recent:
        yield f"kept, younger than a day (--all takes them too): {_counted(recent)}"
    if gone and not yes:
        yield AGAIN


def drop(store: Store, weights: str, *, yes: bool) -> Iterator[str]:
    """Remove every run and measurement that rests on a network with these weights (8 or more first digits of their digest), in lines
    about it. Without `yes` nothing is removed."""
    if not re.fullmatch("[0-9a-f]{8,64}", weights):
        raise BookError(f"--drop takes the first 8 or more digits of weights, as the message about two copies gives them, not {weights!r}")
    gone, busy = _clear(store, [kept for kept in store.folders() if kept.kind in KINDS and any(
        digest.startswith(weights) for digest in store.weights(kept.kind, kept.key).values())], yes)
    if not gone and not busy:
        raise BookError(f"nothing in {store.root} rests on weights {weights}; an archive that does has to be moved away")
    if gone:
        yield f"{store.root}: {'removed' if yes else 'to remove'}: {_counted(gone)}"
    if busy:
        yield f"kept, a process is computing them: {_counted(busy)}; the same command removes them later"
    if gone and not yes:
        yield AGAIN


def save(store: Store, file: Path, slugs: list[str]) -> Iterator[str]:
    """Write the store's measurements to an archive, in a line about it; what else that file holds already stays in it.

    With `slugs` only what these chapters ask for, under any profile or as published; archives under book/results/ are looked into
    then too.
    """
    if file.suffix != ".npz":
        raise BookError(f"--save takes a file whose name ends in .npz, not {file}")
    if slugs:
        known, wanted = sources(), set()
        for slug in slugs:
            near("chapter", slug, known)
            wanted |= {key for keys in asked(known[slug]).values() for kind, key in keys if kind == "measure"}
        archives = results.archives()
    else:
        wanted, archives = {kept.key for kept in store.folders() if kept.kind == "measure"}, []
    source = Store(store.root, archives)
    found = {key: entry for key in wanted if (entry := source.read("measure", key)) is not None}
    if not found:
        which = f" that {', '.join(slugs)} asks for" if slugs else ""
        raise BookError(f"no measurement in {store.root}{which}, so {file} is not written")
    with changing(file):
        earlier = unpack(file) if os.path.lexists(file) else {}
        weights = {run: digest for entry in earlier.values() for run, digest in entry.info.get("weights", {}).items()}
        for entry in found.values():
            for run, digest in entry.info.get("weights", {}).items():
                if (there := weights.setdefault(run, digest)) != digest:
                    raise BookError(f"{file} is left as it is, as no study reads two copies of a network: of run {run[:8]} it holds measurements with the weights {there[:8]}, and "
                                    f"{entry.place} with {digest[:8]}; save to another file, or keep one copy (kdlib store --drop)")
        pack(found | earlier, file)
    yield f"{file}: {_measurements(found | earlier)}, {len(found.keys() - earlier.keys())} of them new, {_bytes(file.stat().st_size)}"


def load(store: Store, file: Path) -> Iterator[str]:
    """Put an archive's measurements, each of them verified, into the store, in a line about it. Those that are there stay."""
    entries = unpack(file)
    new = [entry for key, entry in entries.items() if store.read("measure", key) is None]
    for entry in new:
        store.write("measure", entry.spec, entry.arrays, entry.info)
    yield f"{store.root}: {_measurements(entries)} from {file}, {len(new)} of them new"


def asked(chapter: Source) -> dict[str, Keys]:
    """What a chapter asks for, by profile and as it was published.

    Known without data or training: the chapter's cells are executed up to `Chapter.complete`. A parameter that is `auto` is
    tried at each value it can take, so that what another machine computed, or this one with other data at hand, counts too.
    """
    settings = {p: chapter.values(p, {}) for p in PROFILES if p in chapter.facts["profiles"]}
    with contextlib.suppress(BookError):  # not published, or with parameters that the chapter no longer has
        settings["published"] = chapter.as_published(results.read(ROOT / "book" / "results" / f"{chapter.slug}.json").provenance["parameters"])
    return {name: frozenset().union(*(_plan(chapter, v) for v in _variants(chapter, values))) for name, values in settings.items()}


def _wanted() -> dict[tuple[str, str], Keys]:
    return {(slug, profile): keys for slug, chapter in sources().items() for profile, keys in asked(chapter).items()}


def _variants(chapter: Source, values: dict) -> Iterator[dict]:
    undecided = [[(name, choice) for choice in chapter.parameters[name].choices if choice != "auto"]
                 for name, value in values.items() if value == "auto"]
    for chosen in itertools.product(*undecided):
        yield values | dict(chosen)


def _plan(chapter: Source, values: dict) -> Keys:
    from kdlib.book.chapter import Planned

    cells = [c for c in chapter.notebook.cells if c.cell_type == "code"]
    namespace = {"__name__": "__main__"}
    try:
        calls = [_completes(cell.source) for cell in cells]
        if not any(calls):
            return frozenset()
        if sum(calls) > 1:
            raise ValueError("it calls complete more than once")
        try:
            with _planning(), contextlib.redirect_stdout(io.StringIO()):
                for cell in cells[: calls.index(1) + 1]:
                    exec(compile(cell.source, chapter.path.name, "exec"), namespace)
                    if "parameters" in cell.metadata.get("tags", []):
                        namespace.update(values)
        except Planned as plan:
            return _keys(plan.measures)
        raise ValueError("its call of complete is not reached")
    except Exception as error:  # whatever a cell can raise
        raise BookError(f"{chapter.slug}: what it asks of the store cannot be planned, so nothing is pruned or saved: {first_line(error)}") from error


def _completes(cell: str) -> int:
    """How often a cell names a method `complete`."""
    return sum(isinstance(node, ast.Attribute) and node.attr == "complete" for node in ast.walk(ast.parse(cell)))


@contextlib.contextmanager
def _planning() -> Iterator[None]:
    before = os.environ.get("KDLIB_RUN")
    os.environ["KDLIB_RUN"] = json.dumps({"plan": True})
    try:
        yield
    finally:
        os.environ.pop("KDLIB_RUN") if before is None else os.environ.update(KDLIB_RUN=before)


def _keys(measures: list) -> Keys:
    """The measures and their runs, teachers included."""
    found, todo = {("measure", m.key) for m in measures}, {run for m in measures for run in m.runs}
    while todo:
        found |= {("run", run.key) for run in todo}
        todo = {run.teacher for run in todo if run.teacher}
    return frozenset(found)


def _clear(store: Store, folders: list[Kept], yes: bool) -> tuple[list[Kept], list[Kept]]:
    """What is removed (without `yes`: what could be), and what stays as a process is computing it."""
    gone, busy = [], []
    for kept in folders:
        (gone if (store.remove(kept) if yes else store.idle(kept.key)) else busy).append(kept)
    return gone, busy


def _table(folders: list[Kept], wanted: dict[tuple[str, str], Keys], rest: str) -> Iterator[str]:
    shelves = {shelf: [] for shelf in (*wanted, (rest, ""), ("(unfinished)", ""), ("(damaged)", ""))}
    for kept in folders:
        special = {"making": ("(unfinished)", ""), "damaged": ("(damaged)", "")}.get(kept.kind)
        asking = special or next((shelf for shelf, keys in wanted.items() if (kept.kind, kept.key) in keys), (rest, ""))
        shelves[asking].append(kept)
    rows = [("asked for by", "profile", "runs", "measurements", "size", "age")]
    for shelf, there in shelves.items():
        if there:
            counts = [str(sum(k.kind == kind for k in there) or "") for kind in KINDS]
            rows.append((*shelf, *counts, _size(there), _age(there)))
    yield from aligned(rows)


def _counted(folders: list[Kept]) -> str:
    runs, measures = (sum(k.kind == kind for k in folders) for kind in KINDS)
    parts = {"runs": runs, "measurements": measures, "leftovers": len(folders) - runs - measures}
    return ", ".join(f"{n} {what if n > 1 else what[:-1]}" for what, n in parts.items() if n) + f", {_size(folders)}"


def _measurements(keys: Collection) -> str:
    return f"{len(keys)} measurement{'s' * (len(keys) != 1)}"


def _size(folders: list[Kept]) -> str:
    return _bytes(sum(k.size for k in folders))


def _bytes(size: int) -> str:
    return f"{size / 1e3:.1f} kB" if size < 1e5 else f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _age(folders: list[Kept]) -> str:
    """From the youngest to the oldest."""
    youngest, oldest = (_ago(time.time() - end(k.written for k in folders)) for end in (max, min))
    return youngest if youngest == oldest else f"{youngest} to {oldest}"


def _ago(seconds: float) -> str:
    for unit, length in ("days", DAY), ("h", 3600), ("min", 60):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
