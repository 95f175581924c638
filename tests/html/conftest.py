"""The browser of the pages' tests."""

import os
import shutil

import pytest

BROWSERS = "chromium", "chromium-browser", "google-chrome", "chrome"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser():
    lacking = pytest.fail if os.environ.get("KDLIB_BROWSER") == "required" else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        lacking("no browser tests: playwright is not installed (pip install -e '.[test]')")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        lacking(f"no browser tests: none of {', '.join(BROWSERS)} is installed (Debian, Ubuntu: apt install chromium)")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=FLAGS)  # with an empty user data folder of its own
        yield browser
        browser.close()
