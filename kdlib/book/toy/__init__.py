"""The toy example as a page: one self-contained file, whose picture is also drawn without JavaScript."""

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
SHAPES = "M0-8.5 8 6H-8Z", "M-6.5-6.5H6.5V6.5H-6.5Z"  # a triangle is class 0, a square class 1


def scenes() -> list[dict]:
    """The presets, as the front-end's states: points are dictionaries with x, y, label and seen."""
    found = json.loads((HERE / "scenes.json").read_text(encoding="utf-8"))
    for scene in found:
        scene["points"] = [dict(x=x, y=y, label=label, seen=bool(seen)) for x, y, label, seen in scene["points"]]
    return found


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


def page() -> str:
    """The whole page: style, picture, scenes and script inside, and a policy under which a browser loads nothing else."""
    script = "\n" + (HERE / "toy.js").read_text(encoding="utf-8") + (HERE / "page.js").read_text(encoding="utf-8")
    style = "\n" + (HERE / "toy.css").read_text(encoding="utf-8") + (HERE / "page.css").read_text(encoding="utf-8")
    known = scenes()
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'; form-action 'none'"
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        policy=policy, style=style, script=script, figure=figure(known[0]), steps=known[0]["steps"], version=__version__,
        scenes=json.dumps(known, ensure_ascii=False).replace("<", "\\u003c"))


def write(out: Path) -> Path:
    """Write the page; it replaces an earlier one in one step. BookError where it can't be written."""
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        if out.is_dir():
            raise BookError(f"{out} is a folder; name a file in it: --out {out / 'toy.html'}")
        beside.write_text(page(), encoding="utf-8")
        beside.replace(out)
    except OSError as error:
        beside.unlink(missing_ok=True) if beside.parent.is_dir() else None
        raise BookError(f"{out}: {error.strerror}; name a file in a folder that exists and can be written to") from None
    return out


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
