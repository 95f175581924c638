import json
import re
from pathlib import Path

import pytest
from filelock import FileLock

from notebooks_command import kdlib


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Every chapter executed once in the smoke profile, from an empty store: (folder, store). Pytest's processes share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if base.name.startswith("popen-") else base  # of all processes of this session
    out, cache, said = base / "smoke", base / "smoke-cache", base / "smoke.json"
    with FileLock(base / "smoke.lock"):
        if not said.exists():
            done = kdlib("run", "--all", "--profile", "smoke", "--out", out, KDLIB_CACHE=str(cache))
            said.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    code, output, error = json.loads(said.read_text())
    assert code == 0, error
    trained = {slug: int(n) for slug, n in re.findall(r"^([\w-]+): (\d+) networks to train", output, flags=re.MULTILINE)}
    assert trained["methods"] + trained["domain-adaptation"] + trained["decision-boundary"] == 30, "what another chapter trained is shared"
    assert re.search(r"^methods: \d+/\d+ trained, about ", output, flags=re.MULTILINE), "progress is reported"
    return Path(out), Path(cache)
