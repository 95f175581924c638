import os
import subprocess
import sys

SLUG = "domain-adaptation"
CHAPTERS = ("methods", "domain-adaptation", "decision-boundary")


def kdlib(*words, **environment):
    """The command, as a user calls it."""
    return subprocess.run([sys.executable, "-m", "kdlib.book.command", *map(str, words)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env={**os.environ, **environment})
