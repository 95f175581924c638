"""Draw a contact sheet of Imagenette: a row for each test domain, eight images of it.

    KDLIB_DATA=~/data .venv/bin/python tools/contact.py OUT.png [SOURCE]

It is for looking at. Of the photographs it shows classes with few people, but people there are.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from kdlib.data import DataError
from kdlib.data.photos import SHOWN, Photos

COLUMNS, LABEL, GAP = 8, 110, 2


def sheet(suite: Photos, out: Path) -> None:
    """Domains made from the photographs show the same ones, column by column."""
    side = suite.size + GAP
    page = Image.new("RGB", (LABEL + COLUMNS * side, len(suite.domains) * side), "white")
    for row, domain in enumerate(suite.domains):
        x, y = suite.test(domain, "cpu")
        x = x[[label < 0 or suite.names[label] in SHOWN for label in y.tolist()]]
        ImageDraw.Draw(page).text((4, row * side + 4), domain, fill="black")
        for column, image in enumerate(x[:COLUMNS]):
            pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
            page.paste(Image.fromarray(np.ascontiguousarray(pixels)), (LABEL + column * side, row * side))
    page.save(out)
    print(f"wrote {out}, {page.width} x {page.height} pixels")


if __name__ == "__main__":
    try:
        sheet(Photos(*sys.argv[2:3], limit=100), Path(sys.argv[1]))
    except DataError as error:
        sys.exit(f"contact: {error}")
