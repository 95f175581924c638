"""A Sphinx extension: the pages on `kdlib` from its docstrings, which are plain text with indented formulas."""

import importlib
import re
import textwrap
from itertools import groupby

from sphinx.application import Sphinx

NAME = re.compile(r"kdlib(\.\w+)+$")
COLUMNS = re.compile(r"\S {2,}\S")


def setup(app: Sphinx) -> dict:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("missing-reference", _unlinked)
    app.connect("config-inited", _configure)
    return {"parallel_read_safe": True}


def _configure(app: Sphinx, config) -> None:
    config.autodoc_default_options = {"members": True, "member-order": "bysource"}
    config.autodoc_inherit_docstrings = False
    config.autodoc_typehints_format = "short"
    config.autodoc_preserve_defaults = True
    config.add_module_names = False
    config.python_use_unqualified_type_names = True
    config.toc_object_entries_show_parents = "hide"


def _docstring(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    lines[:] = restructured(lines)


def _unlinked(app: Sphinx, env, node, contnode):
    """A Python name that these pages do not explain (a type of torch, a parameter) is shown as it is."""
    return contnode if node.get("refdomain") == "py" else None


def restructured(lines: list[str]) -> list[str]:
    """A plain docstring as reStructuredText: indented lines and columns become literal blocks, `names` code, and all else is
    taken by the letter."""
    made = []
    for blank, group in groupby(lines, lambda line: not line.strip()):
        paragraph = [] if blank else list(group)
        if any(map(COLUMNS.search, paragraph)):
            text = 0
        else:
            text = next((i for i, line in enumerate(paragraph) if line.startswith(" ") and not paragraph[0].startswith("- ")), len(paragraph))
        made += [*map(_text, paragraph[:text]), ""]
        if literal := paragraph[text:]:
            made += [".. code-block:: none", "", *(f"    {line}" for line in textwrap.dedent("\n".join(literal)).split("\n")), ""]
    return made


def _text(line: str) -> str:
    parts = re.split(r"`([^`]+)`", line)
    return "".join(_code(part) if n % 2 else re.sub(r"([\\*|_])", r"\\\1", part) for n, part in enumerate(parts))


def _code(name: str) -> str:
    """A name in backticks: a link if it is one of kdlib's, else code."""
    return f":py:obj:`{name}`" if NAME.match(name) and _exists(name) else f"``{name}``"


def _exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False
