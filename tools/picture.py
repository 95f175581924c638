"""Draw docs/page.png, the picture in README.md: the head of a published chapter's page, as Chromium shows it.

    .venv/bin/python tools/picture.py [SLUG]

Needs chromium on the PATH (Debian: apt install chromium). Run it after the chapter has been published anew.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from kdlib.book import ROOT, BookError
from kdlib.book.chapters import source
from kdlib.book.render import render

SIZE = (1280, 870)


def picture(slug: str, out: Path) -> None:
    browser = shutil.which("chromium") or sys.exit("picture: no chromium on the PATH; install it (Debian: apt install chromium)")
    page = f"chapters/{source(slug).slug}.html"
    with TemporaryDirectory() as folder:
        html, shot = render(None, Path(folder, "html")), Path(folder, "shot.png")
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
                        f"--user-data-dir={folder}/profile", f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}",
                        (html / page).as_uri()], check=True, capture_output=True, timeout=300)
        out.parent.mkdir(exist_ok=True)
        with Image.open(shot) as image:
            image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"wrote {out.relative_to(ROOT)}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    try:
        picture(*sys.argv[1:2] or ["domain-adaptation"], ROOT / "docs" / "page.png")
    except BookError as error:
        sys.exit(f"picture: {error}")
