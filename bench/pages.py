"""`python -m bench.pages DIR`: how large the pages of a rendered book are, and how sharp their pictures. Exit status 1 beyond a budget."""

import argparse
import sys
from pathlib import Path

from bench.browser import NoBrowser, opened

LARGEST = 1.5  # MB: a page with what it alone shows, without what pages share
SHARPEST = 2  # pixels of a picture for each one of the page, so that a 2x display shows it sharply
DRAWN = ".svg", ".svgz"  # sharp at any size

LOOK = """async () => {
    const shown = [...document.images].filter(node => node.checkVisibility());
    for (const node of shown) node.loading = "eager";
    await Promise.allSettled(shown.map(node => node.decode()));
    return shown.map(node => ({ url: node.currentSrc, pixels: node.naturalWidth, width: node.getBoundingClientRect().width }));
}"""


def pages(book: Path) -> list[Path]:
    return [path for path in sorted(book.rglob("*.html")) if "_static" not in path.parts and path != book / "index.html"]


def own_bytes(path: Path, urls: set[str], book: Path) -> int:
    """Of the page and its own pictures; those in the text are counted with it."""
    images = [Path(url.removeprefix("file://").partition("?")[0]) for url in urls if url.startswith("file:")]
    return path.stat().st_size + sum(image.stat().st_size for image in images if book / "_static" not in image.parents)


def survey(book: Path):
    """For each page its name, its MB, the number of its pictures that are no drawings, and the least sharp of them (None without any)."""
    with opened() as tab:
        for path in pages(book):
            tab.goto(path.as_uri())
            found = tab.evaluate(LOOK)
            raster = [image for image in found if image["width"] and not image["url"].startswith("data:image/svg") and not image["url"].endswith(DRAWN)]
            sharp = min((image["pixels"] / image["width"] for image in raster), default=None)
            yield path.relative_to(book).as_posix(), own_bytes(path, {image["url"] for image in found}, book) / 1e6, len(raster), sharp


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.pages", description="Hold the pages of a rendered book to their budgets.")
    parser.add_argument("book", type=Path, metavar="DIR", help="what `kdlib book --out DIR` wrote")
    book, missed = parser.parse_args().book.resolve(), 0
    if not pages(book):
        parser.error(f"no pages in {book.name}; render the book first: kdlib book --out {book.name}")
    print(f"{'page':36} {'MB':>6} {'pictures':>9} {'least sharp':>12}   (at most {LARGEST} MB; at least {SHARPEST} pixels for one)")
    try:
        for name, size, n, sharp in survey(book):
            beyond = [what for what, is_beyond in (("too large", size > LARGEST), ("not sharp", sharp is not None and sharp < SHARPEST)) if is_beyond]
            missed += bool(beyond)
            print(f"{name:36} {size:6.2f} {n:9} {'-' if sharp is None else f'{sharp:.2f}':>12}   {', '.join(beyond)}".rstrip())
    except (ImportError, NoBrowser) as error:
        print(f"bench.pages: {error}", file=sys.stderr)
        return 2
    print(f"{missed} pages beyond a budget" if missed else "all within their budgets")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
