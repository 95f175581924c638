"""What a chapter's page offers for download: its notebook, its results, and their two tables as CSV."""

import csv
import json
import shutil
from pathlib import Path

from kdlib.book.results import EFFECT, RECORD, Results

HEADING = "## Downloads\n\n"
NUMBERS = """\
- Every number of this page: {{download}}`{slug}.json <../downloads/{slug}.json>`, {{ref}}`explained <results-file>`
- The same as tables: {{download}}`{slug}-records.csv <../downloads/{slug}-records.csv>`, a row for each value of a seed, and
  {{download}}`{slug}-effects.csv <../downloads/{slug}-effects.csv>`, a row for each comparison
"""
NOTEBOOK = "- This page as an executed notebook: {{download}}`{slug}.ipynb <../downloads/{slug}.ipynb>`\n"


def place(notebook: Path, path: Path | None, results: Results | None, source: Path) -> str:
    """Copy a chapter's files into the book's source and write its tables there. Returns the section of Markdown that links to them."""
    folder, slug = source / "downloads", notebook.stem
    folder.mkdir(exist_ok=True)
    shutil.copy(notebook, folder)
    if not results:
        return HEADING + NOTEBOOK.format(slug=slug)
    shutil.copy(path, folder)
    write_csv(folder / f"{slug}-records.csv", RECORD, results.records)
    write_csv(folder / f"{slug}-effects.csv", EFFECT, results.effects)
    return (HEADING + NUMBERS + NOTEBOOK).format(slug=slug)


def write_csv(path: Path, columns: tuple[str, ...], rows: list[dict]) -> None:
    """A table with a line of column names; `condition` as JSON, an empty cell for null."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(row | {"condition": json.dumps(row["condition"])} for row in rows)
