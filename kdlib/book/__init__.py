"""The book on top of the library: the command, papermill, publishing, rendering, figures, tables, claims."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the repository: notebooks/ and book/ live beside the package


class BookError(Exception):
    """Something the user can mend: one line that says what, where and what to do."""
