"""A headless Chromium, cut from the network, for what is measured of pages."""

import shutil
from contextlib import contextmanager

NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class NoBrowser(Exception):
    """None is installed."""


def find() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise NoBrowser(f"none of {', '.join(NAMES)} is installed (Debian, Ubuntu: apt install chromium)")
    return found


@contextmanager
def opened():
    """A page of 1280 by 900 pixels."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find(), args=FLAGS)
        yield browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
        browser.close()
