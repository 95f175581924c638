"""The toy example: in a page of its own (one self-contained file), in a chapter's page, and live in Jupyter. One front-end, toy.js,
serves all three; the picture is also drawn here, for pages without JavaScript."""

import base64
import hashlib
import json
import os
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from kdlib import __version__, toy
from kdlib.book import BookError

HERE = Path(__file__).parent
X, Y = 5, 4  # the picture shows [-5, 5] x [-4, 4]
SCALE = 48  # SVG units in one unit of the plane
HOST = '<div id="kdtoy" data-chapter>'
MOST = 200  # points
LIMITS = {  # lowest, highest, decimals: as in toy.js
    "gamma": (0, 1, 2), "alpha": (0, 1, 2), "tau": (0.1, 20, 2), "noise": (0, 5, 2), "draw": (1, 999999, 0), "start": (1, 999999, 0),
    "steps": (0, 1000, 0)}
SHAPES = "M0-8.5 8 6H-8Z", "M-6.5-6.5H6.5V6.5H-6.5Z"  # a triangle is class 0, a square class 1


def scenes() -> list[dict]:
    """The presets, as the front-end's states: points are dictionaries with x, y, label and seen."""
    found = json.loads(_text("scenes.json"))
    for scene in found:
        scene["points"] = [dict(x=x, y=y, label=label, seen=bool(seen)) for x, y, label, seen in scene["points"]]
    return found


def check(given: dict) -> dict:
    """A copy of a state that holds what it must and nothing else, rounded as the front-end rounds it; a ValueError says what is wrong."""
    names = [scene["scene"] for scene in scenes()]
    if given.get("scene") not in names:
        raise ValueError(f"scene must be one of {', '.join(names)}, not {given.get('scene')!r}")
    state = {"scene": given["scene"]}
    for name, (low, high, decimals) in LIMITS.items():
        value = given.get(name)
        if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"{name} must lie between {low} and {high}, not {value!r}")
        state[name] = round(float(value), decimals) if decimals else int(round(value))
    points = given.get("points", ())
    if len(points) > MOST:
        raise ValueError(f"there can be at most {MOST} points, not {len(points)}")
    for p in points:
        if not (np.isfinite([p["x"], p["y"]]).all() and abs(p["x"]) <= X and abs(p["y"]) <= Y):
            raise ValueError(f"a point lies outside the picture, [-{X}, {X}] x [-{Y}, {Y}]: ({p['x']:g}, {p['y']:g})")
        if p["label"] not in (0, 1):
            raise ValueError(f"a point's class must be 0 or 1, not {p['label']!r}")
    state["points"] = [dict(x=round(float(p["x"]), 2), y=round(float(p["y"]), 2), label=int(p["label"]), seen=bool(p["seen"])) for p in points]
    return state


def arrays(state: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A state's points x (n, 2), classes y (n,) and which of them the student sees (n,)."""
    points = state["points"]
    return (np.array([[p["x"], p["y"]] for p in points], dtype=float).reshape(-1, 2), np.array([p["label"] for p in points], dtype=int),
            np.array([p["seen"] for p in points], dtype=bool))


def boundaries(state: dict) -> dict[str, np.ndarray]:
    """What the page draws of a state: theta of `teacher`, `independent` and `distilled`, the `fan` (k, 3), the `targets` (n,)."""
    x, y, seen = arrays(state)
    teacher = toy.teacher(x, y)
    targets = toy.logits(teacher, x) + (state["noise"] * toy.normals(state["draw"], len(x)) if state["noise"] else 0)
    soft = {"gamma": state["gamma"], "alpha": state["alpha"]}
    common = {"start": toy.start(state["start"]), "steps": state["steps"], "labels": y[seen]}
    return {"teacher": teacher, "targets": targets, "fan": toy.fan(x[seen], y[seen]),
            "independent": toy.train(x[seen], gamma=1, lr=toy.step_size(x[seen], gamma=1, alpha=0), **common),
            "distilled": toy.train(x[seen], targets=targets[seen], tau=state["tau"], lr=toy.step_size(x[seen], **soft), **soft, **common)}


def figure(state: dict) -> str:
    """The picture of a state as SVG, styled by toy.css. Labels stand where the lines leave the frame."""
    x, y, seen = arrays(state)
    found = boundaries(state)
    slope = np.linalg.norm(found["teacher"][:2])
    paths = [("fan", "".join(map(_segment, found["fan"])))]
    if slope > 0:
        at, told = x[seen], found["targets"][seen]
        feet = at - told[:, None] / slope**2 * found["teacher"][:2]
        paths += [("circles", "".join(_circle(p, abs(t) / slope) for p, t in zip(at, told))),
                  ("radii", "".join(f"M{_place(p)}L{_place(q)}" for p, q in zip(at, feet)))]
    lines = {"independent": "independent student", "teacher": "teacher", "distilled": "distilled student"}
    paths += [(f"line kdtoy-{name}", _segment(found[name])) for name in lines]
    body = [f'<rect class="kdtoy-ground" width="{2 * X * SCALE}" height="{2 * Y * SCALE}"/>']
    body += [f'<path class="kdtoy-{name}" d="{d}"/>' for name, d in paths]
    body += [f'<g class="kdtoy-{("triangle", "square")[k]}{" kdtoy-seen" if s else ""}" transform="translate({_place(p)})">'
             f'<path class="kdtoy-shape" d="{SHAPES[k]}"/></g>' for p, k, s in zip(x, y, seen)]
    for name, text in lines.items():
        if (two := _ends(found[name])) is not None:
            p = two[0] if name == "distilled" else two[1]
            px, py = (np.array([X, Y]) + p * [1, -1]) * SCALE
            half = 4.3 * len(text) + 8
            body.append(f'<text class="kdtoy-label kdtoy-{name}" x="{np.clip(px, half, 2 * X * SCALE - half):.0f}" '
                        f'y="{np.clip(py, 22, 2 * Y * SCALE - 12):.0f}">{escape(text)}</text>')
    return (f'<svg class="kdtoy-picture" viewBox="0 0 {2 * X * SCALE} {2 * Y * SCALE}" role="img" aria-label="Two classes of points in the plane, '
            'with the boundaries of the teacher, the independent and the distilled student">' + "\n".join(body) + "</svg>")


def plot(axis, state: dict, labels: bool = True) -> None:
    """The picture of a state on a matplotlib axis, with the lines' names where `labels`."""
    x, y, seen = arrays(state)
    found = boundaries(state)
    for theta in found["fan"]:
        _draw(axis, theta, color="#b5b5b5", linewidth=0.6)
    slope = np.linalg.norm(found["teacher"][:2])
    for at, told in zip(x[seen], found["targets"][seen]):
        angle = np.linspace(0, 2 * np.pi, 200)
        circle = at[:, None] + abs(told) / slope * np.stack([np.cos(angle), np.sin(angle)])
        axis.plot(*circle, color="black", linewidth=0.9)
        axis.plot(*np.stack([at, at - told / slope**2 * found["teacher"][:2]]).T, ":", color="black", linewidth=1)
    lines = {"independent": ("#636363", ":", 2.2), "teacher": ("black", "-", 3.6), "distilled": ("#ff8f3f", (0, (5, 2.5)), 1.8)}
    for name, (color, style, width) in lines.items():
        _draw(axis, found[name], color=color, linestyle=style, linewidth=width)
    for label, (marker, color) in enumerate((("^", "#0067a5"), ("s", "#9c3a78"))):
        for shown in False, True:
            at = x[(y == label) & (seen == shown)]
            axis.plot(at[:, 0], at[:, 1], marker, markersize=7 if labels else 5, markeredgecolor=color, markerfacecolor=color if shown else "white",
                      markeredgewidth=1.3, linestyle="none", zorder=3)
    if labels:
        for name, color in ("independent", "#4f4f4f"), ("teacher", "black"), ("distilled", "#a84300"):
            if (two := _ends(found[name])) is not None:
                end = two[0] if name == "distilled" else two[1]
                axis.annotate(name, np.clip(end, [-X + 1.3, -Y + 0.3], [X - 1.3, Y - 0.3]), ha="center", va="center", fontsize=9,
                              color=color, fontweight="bold", bbox=dict(facecolor="white", edgecolor="none", pad=1.2), zorder=4)
    axis.set(xlim=(-X, X), ylim=(-Y, Y), xticks=[], yticks=[], aspect="equal")
    axis.grid(False)


def page() -> str:
    """The whole page: style, picture, scenes and script inside, and a policy under which a browser loads nothing else."""
    script, style = "\n" + _text("toy.js") + _text("page.js"), "\n" + _text("toy.css") + _text("page.css")
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"
    first = scenes()[0]
    return Template(_text("page.html")).substitute(policy=policy, style=style, script=script, figure=figure(first), steps=first["steps"],
                                                   version=__version__, scenes=_scenes())


def inline() -> str:
    """The example inside a chapter's page, which has one: a link to `#scene=NAME` opens that scene. Other fragments are left to the page."""
    anchors = "".join(f'<span id="scene={scene["scene"]}"></span>' for scene in scenes())
    return (f'<style>{_text("toy.css")}</style>{anchors}{HOST}</div><noscript><p>The points of the figure above can be '
            f'dragged here in a browser that runs JavaScript.</p></noscript><script type="application/json" id="kdtoy-scenes">{_scenes()}</script>'
            f'<script type="module">{_text("toy.js")}{_text("page.js")}</script>')


class Demo:
    """The example in a notebook. `state` is what the front-end shows: a dictionary with `scene`, `points` and the numbers of `LIMITS`."""

    state: dict

    @property
    def x(self) -> np.ndarray:
        """The points (n, 2)."""
        return arrays(self.state)[0]

    @property
    def y(self) -> np.ndarray:
        """Their classes (n,), 0 or 1."""
        return arrays(self.state)[1]

    @property
    def seen(self) -> np.ndarray:
        """Which of them the student sees (n,)."""
        return arrays(self.state)[2]

    def boundaries(self) -> dict[str, np.ndarray]:
        """`boundaries` of the state."""
        return boundaries(self.state)

    def place(self, x: np.ndarray, y: np.ndarray | None = None, seen: np.ndarray | None = None) -> None:
        """Replace the points; classes, and which the student sees, stay where they are not given. ValueError for what does not fit."""
        y, seen = self.y if y is None else np.asarray(y), self.seen if seen is None else np.asarray(seen)
        x = np.asarray(x, dtype=float)
        if x.shape != (len(y), 2) or len(seen) != len(y):
            raise ValueError(f"place: points must be ({len(y)}, 2), with a class and a `seen` for each, got {x.shape} and {len(seen)} `seen`")
        self.set(points=[dict(x=a, y=b, label=k, seen=s) for (a, b), k, s in zip(x.tolist(), y.tolist(), seen.tolist())])

    def set(self, **changes) -> None:
        """Change parts of the state: demo.set(tau=2, steps=1000); with `scene`, everything to that scene's. ValueError for what it cannot be."""
        if unknown := set(changes) - {"scene", "points", *LIMITS}:
            raise ValueError(f"set: a state has no {', '.join(sorted(unknown))}; it has scene, points, {', '.join(LIMITS)}")
        base = self.state if changes.get("scene") is None else next((s for s in scenes() if s["scene"] == changes["scene"]), self.state)
        self.state = check({**base, **changes})


class Still(Demo):
    """The example in an executed chapter: Python holds its opening state, and the page computes by itself."""

    def __init__(self):
        self.state = check(scenes()[0])

    def _repr_html_(self) -> str:
        return inline()


def demo(live: bool) -> Demo:
    """The example: live in Jupyter, where page and Python change one state, else as a page shows it."""
    if not live:
        return Still()
    try:
        from kdlib.book.toy.live import Live
    except ModuleNotFoundError as error:
        raise BookError(f"{error.name} is not installed, which the live example needs: pip install -e '.[lab]'") from None
    return Live()


def write(out: Path) -> Path:
    """Write the page; it replaces an earlier one in one step. BookError where it can't be written."""
    if out.is_dir():
        raise BookError(f"{out} is a folder; name a file in it: --out {out / 'toy.html'}")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.write_text(page(), encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None
        raise BookError(f"{out}: {error.strerror}; name a file in a folder that exists and can be written to") from None
    return out


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _scenes() -> str:
    return json.dumps(scenes(), ensure_ascii=False).replace("<", "\\u003c")


def _draw(axis, theta: np.ndarray, **style) -> None:
    if (two := _ends(theta)) is not None:
        axis.plot(*two.T, solid_capstyle="butt", dash_capstyle="butt", **style)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _place(p: np.ndarray) -> str:
    return f"{(X + p[0]) * SCALE:.1f} {(Y - p[1]) * SCALE:.1f}"


def _circle(p: np.ndarray, radius: float) -> str:
    r = f"{radius * SCALE:.1f}"
    return f"M{_place(p - [radius, 0])}a{r} {r} 0 1 0 {2 * radius * SCALE:.1f} 0a{r} {r} 0 1 0 {-2 * radius * SCALE:.1f} 0"


def _ends(theta: np.ndarray) -> np.ndarray | None:
    """Where a boundary crosses the picture's frame, (2, 2), or None."""
    w, b = theta[:2], theta[2]
    if not w.any():
        return None
    middle, along = -b * w / (w @ w), np.array([-w[1], w[0]]) / np.linalg.norm(w)
    with np.errstate(divide="ignore"):
        cuts = np.sort((np.array([[-X, -Y], [X, Y]]) - middle) / along, axis=0)
    low, high = cuts[0].max(), cuts[1].min()
    return np.stack([middle + low * along, middle + high * along]) if low < high else None


def _segment(theta: np.ndarray) -> str:
    two = _ends(theta)
    return "" if two is None else f"M{_place(two[0])}L{_place(two[1])}"
