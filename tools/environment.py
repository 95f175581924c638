"""Write environment.yml, for conda users, from requirements.lock: the same versions, without the hashes."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAD = """\
# Written by tools/environment.py from requirements.lock (make lock): do not edit.
#   conda env create -f environment.yml
#   conda activate kdlib
#   pip install --no-deps -e .      (kdlib itself, from this folder)
name: kdlib
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.11
  - pip
  - pip:
"""


def environment(lock: str) -> str:
    """The text of environment.yml for a lock's text: every `name==version ; marker`, in the lock's order."""
    pins = re.findall(r"^([\w.\[\]-]+==[^\\\n]*?)\s*\\?$", lock, flags=re.MULTILINE)
    return HEAD + "".join(f'      - "{pin}"\n' for pin in pins)


if __name__ == "__main__":
    (ROOT / "environment.yml").write_text(environment((ROOT / "requirements.lock").read_text()))
