from pathlib import Path

import pytest

from notebooks_command import SLUG, kdlib


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The chapter executed once in the smoke profile, from an empty store: (folder, store)."""
    out, cache = tmp_path_factory.mktemp("smoke"), tmp_path_factory.mktemp("smoke-cache")
    done = kdlib("run", SLUG, "--profile", "smoke", "--out", out, KDLIB_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "24/24 trained" in done.stdout, "progress is reported"
    return Path(out), Path(cache)
