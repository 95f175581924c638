"""The contact sheet of the drawn scenes: a row a class, a column a domain, and the object's mask."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from kdlib.book import figures
from kdlib.data.scenes import PAPER, Scenes

SUITE = Scenes(test_items=Scenes.classes)  # no more than is shown
MASK = "mask"
CUES = {
    "scene": "the object in its texture and colour, before a dull photograph or paper; networks learn from such pictures only (for Sec. 4.3 recoloured as well)",
    "sketch": "its outline, drawn twice by an unsteady hand, and hatching: shape, nothing else",
    "stylized": "object and background in the texture and colours of one photograph, whatever the class",
    "edge": "the edges of the object and of its texture, without colour",
    "silhouette": "the object in black: shape, nothing else",
    "cue-conflict": "the scene with texture and colour of another class; the label is the shape's",
    MASK: "the share of each pixel that the object covers; {doc}`chapters/localization` asks how well maps find it",
}
ENLARGED = 5  # screen pixels, at twice the density, for a pixel of a scene
GAP, LABEL, HEAD, DPI = 8, 190, 60, 200  # pixels; DPI is twice that of the page


def place(folder: Path) -> None:
    """Write scenes.png and scenes.md, the figure with its caption, into a folder of the book's source."""
    folder.mkdir(exist_ok=True)
    with plt.rc_context():
        figures.use_style()
        figure = draw(SUITE)
        figure.savefig(folder / "scenes.png", dpi=DPI, metadata={"Software": None})
        plt.close(figure)
    (folder / "scenes.md").write_text(page(SUITE, folder.name))


def columns(suite: Scenes) -> dict[str, np.ndarray]:
    """By column, a test scene of each class, in the order of the classes: (classes, size, size, 3) uint8."""
    shown = {domain: suite.test(domain, "cpu")[0].permute(0, 2, 3, 1) for domain in suite.domains}
    shown[MASK] = suite.masks(suite.seen, "cpu")[..., None].expand(-1, -1, -1, 3)
    return {name: (255 * images).round().byte().numpy() for name, images in shown.items()}


def draw(suite: Scenes) -> Figure:
    """Each pixel of a scene as a square of whole pixels, so that none is blurred."""
    shown = columns(suite)
    side = ENLARGED * suite.size + GAP
    width, height = LABEL + len(shown) * side, HEAD + suite.classes * side
    figure = plt.figure(figsize=(width / DPI, height / DPI), layout="none")
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    sheet = np.full((height, width, 3), 255, np.uint8)
    for column, (name, images) in enumerate(shown.items()):
        left = LABEL + column * side
        axis.text(left + side / 2, HEAD / 2, name, ha="center", va="center", fontsize=9)
        for row, image in enumerate(images.repeat(ENLARGED, 1).repeat(ENLARGED, 2)):
            sheet[HEAD + row * side:, left:][:image.shape[0], :image.shape[1]] = image
    for row, name in enumerate(suite.names):
        axis.text(LABEL - 16, HEAD + (row + 0.5) * side - GAP / 2, name, ha="right", va="center", fontsize=9)
    axis.imshow(sheet, extent=(0, width, height, 0), interpolation="none", aspect="auto")
    return figure


def page(suite: Scenes, folder: str) -> str:
    """Markdown: the figure, its caption, and what each column is."""
    texture, colour = (f"{100 * share:g} %" for share in (suite.texture, suite.colour))
    shown = ", ".join(CUES)
    return f"""\
:::{{figure}} {folder}/scenes.png
:name: fig-scenes
:width: {(LABEL + len(CUES) * (ENLARGED * suite.size + GAP)) // 2}px
:alt: A grid of small drawn pictures. Rows: the classes {", ".join(suite.names)}. Columns: {shown}. Along a row the same object stands in the same pose; what each column leaves of it is said below.
A scene of each of the {suite.classes} classes, drawn as the test scenes are, {suite.size} × {suite.size} pixels, in {len(suite.domains)} domains. Along a row, the object and its pose are the
same. The shape always tells the class. An object's texture is that of its class in {texture} of the scenes and its colour in {colour}; else they are
those of another class, each equally often. {100 * PAPER:g} % of the scenes are before plain paper.
:::

{"".join(f"- **{name}**: {said}.{chr(10)}" for name, said in CUES.items())}"""
