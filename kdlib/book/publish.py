"""Make executed chapters, their results and the measurements they read the published ones under book/."""

import os
import shutil
import tempfile
from pathlib import Path

from kdlib.book import ROOT, BookError
from kdlib.book import results as results_file
from kdlib.book.chapters import Source, read_notebook, source_digest
from kdlib.book.execute import digest
from kdlib.store import Store

LARGEST = 3_000_000  # bytes of measurements beside one chapter


def publish(chapter: Source, executed: Path, root: Path = ROOT) -> str:
    """Check an executed chapter of the folder `executed`, then put it under book/. Returns a line about it.

    Refused, with the reason: a source that has changed since, results of another execution, the smoke profile,
    measurements that are no longer in the store, or no longer the same.
    """
    notebook = executed / f"{chapter.slug}.ipynb"
    if not notebook.exists():
        raise BookError(f"no executed chapter {notebook}; run it first: kdlib run {chapter.slug} --out {executed}")
    content = read_notebook(notebook)
    results = results_file.read(executed / "results" / f"{chapter.slug}.json")
    if source_digest(content) != chapter.digest or results.provenance["source"] != chapter.digest:
        raise BookError(f"{chapter.slug}: its source has changed since it was executed in {executed}; run it again")
    if content.metadata["kdlib"].get("results") != digest(executed / "results" / f"{chapter.slug}.json"):
        raise BookError(f"{chapter.slug}: the notebook and the results file in {executed} are not of one execution; run it again")
    if results.provenance["profile"] == "smoke":
        raise BookError(f"{chapter.slug}: the smoke profile proves that a chapter runs and claims nothing; it is not published")

    target = root / "book"
    for folder in ("chapters", "results"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".publish-") as folder:
        staged = {Path(folder, "npz"): target / "results" / f"{chapter.slug}.npz",
                  Path(folder, "json"): target / "results" / f"{chapter.slug}.json",
                  Path(folder, "ipynb"): target / "chapters" / notebook.name}
        archive, numbers, page = staged
        kept = Store(archives=results_file.archives(chapter.slug, root)).archive(results.provenance["measurements"], archive)
        if results_file.contents({key: entry.arrays for key, entry in kept.items()}) != results.provenance["contents"]:
            raise BookError(f"{chapter.slug}: the store's measurements are not those that it was executed with in {executed}; run it again")
        size = archive.stat().st_size
        if size > LARGEST:
            raise BookError(f"{chapter.slug}: its measurements are {size / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f} MB")
        shutil.copyfile(executed / "results" / f"{chapter.slug}.json", numbers)
        shutil.copyfile(notebook, page)
        for made, place in staged.items():
            os.replace(made, place)
    return (f"published {chapter.slug} ({results.provenance['profile']} profile, {results.provenance['device']}) with "
            f"{len(results.provenance['measurements'])} measurements, {size / 1e6:.2f} MB")
