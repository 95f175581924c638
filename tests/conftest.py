import os
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Tests never read or write the user's store."""
    before = os.environ.get("KDLIB_CACHE")
    os.environ["KDLIB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("KDLIB_CACHE")
    if before:
        os.environ["KDLIB_CACHE"] = before


@pytest.fixture
def real_data():
    if not os.environ.get("KDLIB_DATA"):
        pytest.skip("KDLIB_DATA is not set: no real data here")
    return Path(os.environ["KDLIB_DATA"])


def pytest_terminal_summary(terminalreporter):
    """Say once what was skipped and why."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", [])]
    for reason, n in Counter(text[2] for text in skipped if isinstance(text, tuple)).items():
        terminalreporter.write_line(f"{n} skipped: {reason.removeprefix('Skipped: ')}")
