"""The browser of the pages' tests."""

import os

import pytest

from bench.browser import FLAGS, NoBrowser, find


@pytest.fixture(scope="module")
def browser():
    lacking = pytest.fail if os.environ.get("KDLIB_BROWSER") == "required" else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        lacking("no browser tests: playwright is not installed (pip install -e '.[test]')")
    try:
        found = find()
    except NoBrowser as error:
        lacking(f"no browser tests: {error}")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=FLAGS)  # with an empty user data folder of its own
        yield browser
        browser.close()
