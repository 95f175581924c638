import json
import os
import shutil
import subprocess
import sys

import nbformat

from kdlib.book.execute import digest

SLUG = "domain-adaptation"
CHAPTERS = ("methods", "localization", "adversarial", "invariance", "unseen-domains", "domain-adaptation", "decision-boundary", "toy")


def kdlib(*words, **environment):
    """The command, as a user calls it."""
    return subprocess.run([sys.executable, "-m", "kdlib", *map(str, words)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env={**os.environ, **environment})


def executed(smoke, folder, profile="cpu"):
    """The smoke execution, relabelled: what publishing looks at is the label."""
    shutil.copytree(smoke, folder)
    path = folder / "results" / f"{SLUG}.json"
    body = json.loads(path.read_text())
    body["provenance"]["profile"] = profile
    path.write_text(json.dumps(body))
    notebook = nbformat.read(folder / f"{SLUG}.ipynb", as_version=4)
    notebook.metadata["kdlib"]["results"] = digest(path)
    nbformat.write(notebook, folder / f"{SLUG}.ipynb")
    return folder
