from pathlib import Path

import pytest

from notebooks_command import kdlib


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """Every chapter executed once in the smoke profile, from an empty store: (folder, store)."""
    out, cache = tmp_path_factory.mktemp("smoke"), tmp_path_factory.mktemp("smoke-cache")
    done = kdlib("run", "--all", "--profile", "smoke", "--out", out, KDLIB_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    assert "domain-adaptation: 26/26 trained" in done.stdout, "progress is reported, and what another chapter trained is shared"
    assert "decision-boundary: 0 networks to train" in done.stdout
    return Path(out), Path(cache)
