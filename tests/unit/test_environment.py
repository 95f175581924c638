"""environment.yml pins what requirements.lock pins."""

import runpy
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
environment = runpy.run_path(str(ROOT / "tools" / "environment.py"))["environment"]


def test_environment_is_the_locks():
    assert (ROOT / "environment.yml").read_text() == environment((ROOT / "requirements.lock").read_text())


def test_keeps_versions_and_markers_and_drops_hashes():
    lock = "numpy==2.4.6 ; python_full_version < '3.12' \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\nuv==0.13.9 \\\n    --hash=sha256:22\n"
    pip = yaml.safe_load(environment(lock))["dependencies"][-1]["pip"]
    assert pip == ["numpy==2.4.6 ; python_full_version < '3.12'", "uv==0.13.9"]


def test_lists_every_pin_of_the_lock():
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line and line[0] not in " #"]
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert pip == [pin.removesuffix("\\").rstrip() for pin in pins]
