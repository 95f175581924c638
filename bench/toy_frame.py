"""The toy page while a point is dragged: how long its script works for each frame."""

import tempfile
from pathlib import Path
from statistics import quantiles

import numpy as np

from bench.browser import opened
from bench.timing import ratio
from kdlib.book.toy import write

TITLE = "A frame of the toy example"
SAYS = """The page that `kdlib toy` writes, in headless {chromium}, while a point is dragged across the picture: milliseconds that script
works for a frame, in the frame's callback and in the handlers of the pointer's moves before it; layout and painting come on top.
Training that takes long is spread over frames. At most 200 points are allowed. Target: at most 8 ms."""
NEEDS = ("playwright",)
HEADER = ("points", "frames", "script a frame, ms", "95th percentile, ms", "longer than 8 ms")
TARGET = 8  # ms
CASES = {"14, the opening scene": None, "200, a half seen by the student": 2, "200, all seen by the student": 1}

CLOCK = """
window.spent = 0; window.frames = [];
const clocked = work => function (...given) {
    const began = performance.now();
    try { return work.apply(this, given); } finally { window.spent += performance.now() - began; }
};
const ask = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = work => ask(time => {
    clocked(work)(time);
    window.frames.push(window.spent);
    window.spent = 0;
});
const listen = EventTarget.prototype.addEventListener;
EventTarget.prototype.addEventListener = function (name, work, ...more) {
    return listen.call(this, name, name === "pointermove" ? clocked(work) : work, ...more);
};"""


def link(every: int | None) -> str:
    """200 points of two classes beside a line, of which the student sees one in `every`."""
    if not every:
        return ""
    x = np.random.default_rng(0).uniform([-4.8, -3.8], [4.8, 3.8], (200, 2))
    return "#points=" + "_".join(f"{round(100 * a)}.{round(100 * b)}.{(a + b > 0.5) + 2 * (i % every == 0)}" for i, (a, b) in enumerate(x))


def frames(url: str, moves: int) -> list[float]:
    """Milliseconds of each frame, while the first point goes round in circles."""
    with opened() as tab:
        tab.add_init_script(CLOCK)
        tab.goto(url)
        tab.wait_for_selector(".kdtoy-picture[aria-busy=false]")
        box = tab.locator(".kdtoy-picture").bounding_box()
        point = tab.locator(".kdtoy-point .kdtoy-shape").first.bounding_box()
        tab.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
        tab.mouse.down()
        tab.evaluate("() => { window.frames = []; window.spent = 0; }")
        for angle in np.linspace(0, 4 * np.pi, moves):
            tab.mouse.move(box["x"] + box["width"] * (0.5 + 0.4 * np.cos(angle)), box["y"] + box["height"] * (0.5 + 0.4 * np.sin(angle)))
            tab.wait_for_timeout(16)
        found = tab.evaluate("window.frames")
        tab.mouse.up()
        return found


def rows(quick: bool):
    with tempfile.TemporaryDirectory() as folder:
        page = write(Path(folder, "toy.html")).as_uri()
        for name, every in CASES.items():
            found = frames(page + link(every), 10 if quick else 300)
            yield name, str(len(found)), ratio(found), f"{quantiles(found, n=20, method='inclusive')[-1]:.3g}", str(sum(ms > TARGET for ms in found))


def facts() -> dict[str, str]:
    with opened() as tab:  # a browser that is absent is noticed before anything is timed
        return {"chromium": f"Chromium {tab.context.browser.version}"}
