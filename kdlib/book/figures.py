"""The book's figures: one style, one colour for each method, controls as hollow markers."""

import textwrap
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt, zoom

from kdlib.book.results import Results

# Okabe and Ito's palette: told apart by colour-blind readers; the markers tell methods apart in greyscale.
METHODS = {"T": ("#000000", "*"), "Ind": ("#7a7a7a", "o"), "KL": ("#d55e00", "s"), "Hint": ("#0072b2", "D"),
           "CRD": ("#009e73", "^")}
# Ten classes side by side: light, so that numbers can be read on them; the number, not the colour, tells the class.
CLASSES = [to_rgb(c) for c in ("#a6cee3", "#fdbf6f", "#b2df8a", "#fb9a99", "#cab2d6", "#ffff99", "#d9d9d9", "#80cdc1", "#e5a96b", "#f1b6da")]
WIDTH = 7.4  # inches: a page's column is about 700 pixels wide, so type comes out near its nominal size
NAMES = {"T": "teacher T", "T*": "teacher T*", "Ind": "independent", "Ind2": "2nd independent"}


def use_style() -> None:
    """Set matplotlib and Jupyter's inline pictures to the book's style: white ground, no box, sharp on a 2x screen."""
    plt.rcParams.update({
        "figure.dpi": 100, "figure.facecolor": "white", "savefig.facecolor": "white", "figure.constrained_layout.use": True,
        "font.size": 11, "axes.titlesize": 11, "figure.titlesize": 12.5, "figure.titleweight": "bold",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "x",
        "grid.color": "#dddddd", "axes.axisbelow": True, "legend.frameon": False})
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython():
        set_matplotlib_formats("retina")


def wrapped(text: str, width: int = 66) -> str:
    """On as few lines of at most `width` characters as will do, of much the same length."""
    lines = max(1, len(textwrap.wrap(text, width)))
    return next(found for narrow in range(max(1, len(text) // lines), width + 1) if (found := textwrap.fill(text, narrow)).count("\n") < lines)


def name(method: str) -> str:
    return NAMES.get(method, f"{method} (of T*)" if method.endswith("*") else method)


def marker(method: str, size: float = 9) -> dict:
    """Plot arguments of a method; a control (T*, KL*, Ind2) is its method's hollow twin."""
    color, shape = METHODS[method.rstrip("*2")]
    return dict(marker=shape, color=color, markersize=size * (1.3 if shape == "*" else 1), linestyle="none",
                markerfacecolor="white" if method[-1] in "*2" else color, markeredgewidth=1.6)


def arms(results: Results, *, measure: str, methods: list[str], domains: dict[str, str], title: str, label: str, by: str = "domain",
         chance: float | None = None, **where) -> Figure:
    """A panel a domain, a row a method: each seed as a dot, their mean as the method's marker.

    `domains` maps a domain's name in the results to what the panel's heading says; with `by="pair"` they are pairs, and so on.
    `where` selects among the results beyond that (domain="photo"). A method without results in a panel has an empty row there.
    With `chance`, that value is marked, and bars are the 95 % intervals of the effects against the reference "chance". Dashed lines are the means
    of T and Ind, and with `chance` of Ind2.
    """
    figure, axes = plt.subplots(1, len(domains), figsize=(WIDTH, 1.3 + 0.36 * len(methods)), sharey=True)
    for axis, (domain, heading) in zip(np.atleast_1d(axes), domains.items()):
        if chance is not None:
            axis.axvline(chance, color="black", linewidth=1)
        for row, method in enumerate(methods):
            values = results.values(measure=measure, method=method, **where | {by: domain})
            if not values:
                continue
            for found in results.matching(measure=measure, method=method, reference="chance", **where | {by: domain}) if chance is not None else ():
                if found["low"] is not None:
                    axis.plot([chance + found["low"], chance + found["high"]], [row, row], color=marker(method)["color"], linewidth=2.4,
                              solid_capstyle="butt")
            axis.plot(values, [row] * len(values), "o", color=marker(method)["color"], markersize=4, alpha=0.45, markeredgewidth=0)
            axis.plot(np.mean(values), row, **marker(method))
            if method in ("T", "Ind") or (method == "Ind2" and chance is not None):
                axis.axvline(np.mean(values), color=marker(method)["color"], linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        _label(axis, heading, label, len(domains))
        axis.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.4g}")
    _rows(np.atleast_1d(axes)[0], [name(m) for m in methods])
    figure.suptitle(wrapped(title))
    return figure


def effects(results: Results, *, measure: str, contrasts: list[tuple[str, str]], domains: dict[str, str], title: str,
            label: str, by: str = "domain", **where) -> Figure:
    """A panel a domain, a row a contrast (method, reference): the effect with its 95 % interval, zero marked.

    The thick bar is the interval over seeds and items, the thin black ticks that over seeds alone. `domains`, `by` and `where` as in `arms`.
    """
    figure, axes = plt.subplots(1, len(domains), figsize=(WIDTH, 1.3 + 0.36 * len(contrasts)), sharey=True)
    for axis, (domain, heading) in zip(np.atleast_1d(axes), domains.items()):
        axis.axvline(0, color="black", linewidth=1)
        for row, (method, reference) in enumerate(contrasts):
            for found in results.matching(measure=measure, method=method, reference=reference, **where | {by: domain}):
                _interval(axis, row, found, marker(method) | ({} if reference == "Ind" else {"marker": "P"}))
        _label(axis, heading, label, len(domains))
        axis.xaxis.set_major_formatter(points)
    _rows(np.atleast_1d(axes)[0], [f"{m} − {r}" if r != "Ind" else name(m) for m, r in contrasts])
    figure.suptitle(wrapped(title))
    return figure


def profile(results: Results, *, measure: str, methods: list[str], rows: list[str] | dict[str, dict], panels: dict[str, str], title: str, label: str,
            reference: str = "Ind", row: str = "domain", panel: str = "pair", **where) -> Figure:
    """A panel a pair, a row a domain and in it a marker a method: the effect against `reference` with its 95 % interval, zero marked.

    The reference "*" is each method's twin, taught by T*. A dictionary of `rows` maps what a row is called to what selects its results.
    """
    rows = rows if isinstance(rows, dict) else {of: {row: of} for of in rows}
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 1.6 + (0.16 * len(methods) + 0.1) * len(rows)), sharey=True, squeeze=False)
    for axis, (where_panel, heading) in zip(axes[0], panels.items()):
        axis.axvline(0, color="black", linewidth=1)
        for line in range(1, len(rows)):
            axis.axhline(line - 0.5, color="#dddddd", linewidth=0.8)
        for line, of in enumerate(rows.values()):
            for k, method in enumerate(methods):
                place = line + 0.8 * ((k + 0.5) / len(methods) - 0.5)
                for found in results.matching(measure=measure, method=method, reference=f"{method}*" if reference == "*" else reference,
                                              **where | of | {panel: where_panel}):
                    _interval(axis, place, found, marker(method, 5.5), thin=True)
        _label(axis, heading, label, len(panels))
        axis.xaxis.set_major_formatter(points)
    _rows(axes[0][0], list(rows))
    figure.legend([plt.Line2D([], [], **marker(m, 6)) for m in methods], [name(m) for m in methods], loc="outside lower center", ncols=len(methods))
    figure.suptitle(wrapped(title))
    return figure


def curves(results: Results, *, measure: str, methods: list[str], along: dict[float | str, dict], panels: dict[str, str], title: str, label: str,
           across: str, bands: dict[str, dict] | None = None, panel: str = "pair", **where) -> Figure:
    """A panel a pair, a line a method: the mean over seeds under each condition of `along`, {place or name on the horizontal axis: condition}.

    A bar is the 95 % interval of the effect against Ind, set on Ind's mean: where it does not reach Ind's line, the effect is clear of zero.
    Controls (T*, KL*) are dashed. `bands` are methods that do not vary along the axis, each with its condition: their mean over seeds, and all
    seeds between the edges.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 4.2), sharey=True, squeeze=False)
    named = any(isinstance(place, str) for place in along)
    places = np.arange(len(along)) if named else np.array(list(along))
    step = np.diff(places).min() if len(places) > 1 else 1
    handles = {}
    for axis, (of, heading) in zip(axes[0], panels.items()):
        for method, condition in (bands or {}).items():
            values = results.values(measure=measure, method=method, condition=condition, **where | {panel: of})
            if values:
                color = marker(method)["color"]
                axis.axhspan(min(values), max(values), color=color, alpha=0.25, linewidth=0)
                handles[method] = axis.axhline(np.mean(values), color=color, linewidth=1.4, linestyle="--" if method[-1] in "*2" else "-")
        for k, method in enumerate(methods):
            found = [(place, results.values(measure=measure, method=method, condition=c, **where | {panel: of}), c) for place, c in zip(places, along.values())]
            found = [(place, np.mean(values), c) for place, values, c in found if values]
            if not found:
                continue
            style = marker(method, 6.5) | {"linestyle": "--" if method[-1] in "*2" else "-"}
            x = np.array([place for place, *_ in found]) + 0.05 * step * (k - (len(methods) - 1) / 2)
            handles[method], = axis.plot(x, [mean for _, mean, _ in found], linewidth=1.4, **style)
            for place, (_, mean, condition) in zip(x, found):
                for row in results.matching(measure=measure, method=method, reference="Ind", condition=condition, **where | {panel: of}):
                    if row["low"] is not None:
                        axis.plot([place, place], [mean - row["effect"] + row[k] for k in ("low", "high")], color=style["color"], linewidth=1.4, solid_capstyle="butt")
        axis.set(title=heading, xlabel=across)
        axis.set_xticks(places, list(along), **(dict(rotation=30, ha="right") if named else {}))
        axis.set_xlim(places[0] - 0.4 * step, places[-1] + 0.4 * step)
        axis.grid(True, axis="y")
        axis.yaxis.set_major_formatter(lambda x, _: f"{100 * x:.4g}")
    low, high = axes[0][0].get_ylim()
    axes[0][0].set(ylabel=label, ylim=(max(low, -0.02), min(high, 1.02)))  # an interval may leave [0, 1], a share does not
    figure.legend(list(handles.values()), [name(m) for m in handles], loc="outside lower center", ncols=4)
    figure.suptitle(wrapped(title))
    return figure


def heading(pair: str) -> str:
    """A pair over two lines, for a panel's heading."""
    return pair.replace("->", " →\n")


class Plane(NamedTuple):
    """One plane through three images, as several networks divide it."""

    heading: str
    image: np.ndarray  # (3, 3, h, w) uint8
    label: np.ndarray  # (3,)
    corner: np.ndarray  # (3, 2), the images' places
    region: dict[str, np.ndarray]  # by method, (resolution, resolution) classes, rows along the first coordinate; T among them


def planes(rows: list[Plane], *, margin: float, title: str) -> Figure:
    """A row a plane: its three images, then each network's regions, a colour and a number a class, and the share that is T's."""
    methods = list(rows[0].region)
    figure, axes = plt.subplots(len(rows), 1 + len(methods), figsize=(WIDTH, 0.7 + 1.5 * len(rows)), squeeze=False)
    for line, plane in zip(axes, rows):
        gap = np.full((plane.image.shape[2], 2, 3), 255, np.uint8)
        strip = [part for image in plane.image for part in (gap, image.transpose(1, 2, 0))][1:]
        line[0].imshow(np.concatenate(strip, axis=1), interpolation="nearest")
        width = plane.image.shape[3] + 2
        for i, label in enumerate(plane.label):
            line[0].text((i + 0.5) * width - 1, plane.image.shape[2] + 1, f"{'abc'[i]} ({label})", ha="center", va="top", fontsize=9)
        line[0].set_axis_off()
        line[0].text(-0.05, 0.5, plane.heading, transform=line[0].transAxes, ha="right", va="center", fontsize=11)
        low, high = plane.corner.min(0), plane.corner.max(0)
        low, high = low - margin * (high - low), high + margin * (high - low)
        for axis, method in zip(line[1:], methods):
            region = plane.region[method]
            axis.imshow(np.array(CLASSES)[region.T % 10], origin="lower", extent=(low[0], high[0], low[1], high[1]), aspect="auto",
                        interpolation="nearest")
            for number, (s, t), size in _inside(region, low, high):
                axis.text(s, t, str(number), ha="center", va="center", fontsize=8 + 4 * size, color="#333333")
            for letter, (s, t) in zip("abc", plane.corner):
                axis.text(s, t, letter, ha="center", va="center", fontsize=8, bbox=dict(boxstyle="circle,pad=0.15", facecolor="white", linewidth=0.6))
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            axis.spines[:].set_visible(False)
            axis.set_xlabel("" if method == "T" else f"{100 * (region == plane.region['T']).mean():.0f} % as T", labelpad=2)
    for axis, method in zip(axes[0, 1:], methods):
        axis.set_title(name(method))
    figure.suptitle(wrapped(title))
    return figure


def _inside(region: np.ndarray, low: np.ndarray, high: np.ndarray):
    """For each class with some room: its number, the point deepest inside it, and its share of the plane."""
    for number in np.unique(region):
        mask = np.pad(region == number, 1)
        depth = distance_transform_edt(mask)[1:-1, 1:-1]
        place = np.array(np.unravel_index(depth.argmax(), depth.shape))
        if depth.max() > 0.05 * len(region):
            yield number, low + (place + 0.5) / region.shape * (high - low), (region == number).mean()


def scatter(panels: list[list[dict[str, tuple]]], *, x: list[list[str]], y: list[str], title: str) -> Figure:
    """A grid of panels, each with (x values, y values) by method, one point a seed, and a least-squares line for each seed over its methods.
    `x` labels panels, `y` columns; shares in %."""
    figure, axes = plt.subplots(len(panels), len(panels[0]), figsize=(WIDTH, 0.9 + 2.7 * len(panels)), squeeze=False)
    for line, row, labels in zip(axes, panels, x):
        for axis, by_method, across, up in zip(line, row, labels, y):
            for a, b in np.array(list(by_method.values()), dtype=float).transpose(2, 1, 0):
                if np.ptp(a) > 0:
                    ends = np.array([a.min(), a.max()])
                    axis.plot(ends, np.polyval(np.polyfit(a, b, 1), ends), color="#999999", linewidth=0.8, zorder=1)
            for method, (a, b) in by_method.items():
                axis.plot(a, b, **marker(method, 7), label=name(method), alpha=0.85)
            axis.set(xlabel=across, ylabel=up)
            axis.grid(True, axis="both")
            for direction in axis.xaxis, axis.yaxis:
                direction.set_major_formatter(lambda value, _: f"{100 * value:.4g}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(wrapped(title))
    return figure


def pictures(images: np.ndarray, captions: list[str], *, columns: int, rows: list[str] | None = None, title: str = "") -> Figure:
    """Images (n, 3, h, w) uint8 in a grid, a caption under each; `rows` names the grid's rows."""
    lines = max(caption.count("\n") + 1 if caption else 0 for caption in captions)
    count = -(-len(images) // columns)
    figure, axes = plt.subplots(count, columns, figsize=(WIDTH, count * ((WIDTH - 0.6) / columns + 0.19 * lines) + (0.5 if title else 0)),
                                squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, caption in zip(axes.flat, images, captions):
        axis.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        axis.text(0.5, -0.05, caption, transform=axis.transAxes, ha="center", va="top", fontsize=10, linespacing=1.15)
    for axis, text in zip(axes[:, 0], rows or []):
        axis.text(-0.15, 0.5, text, transform=axis.transAxes, ha="right", va="center", fontsize=11)
    if title:
        figure.suptitle(wrapped(title))
    return figure


HEAT = np.array([0.35, 0.05, 0.45])  # dark and of no method's colour, so that more heat is darker in greyscale too


def maps(images: np.ndarray, heat: dict[str, np.ndarray], captions: dict[str, list[str]], *, names: list[str], rows: list[str], title: str) -> Figure:
    """A row an image: the image (n, 3, h, w) uint8 and its name, then for each method its map (n, cells, cells), at least 0, laid over the
    image in grey, with a caption under it.

    The darker and the more violet, the more heat; the line is at half of a map's maximum. Maps are enlarged by linear interpolation. A map
    that is all zero leaves the image as it is.
    """
    columns, side = 1 + len(heat), 6 * images.shape[2]
    figure, axes = plt.subplots(len(images), columns, figsize=(WIDTH, 0.6 + len(images) * ((WIDTH - 0.9) / columns + 0.26)), squeeze=False)
    for i, line in enumerate(axes):
        grey = _enlarged(images[i].mean(0) / 255, side)
        line[0].imshow(images[i].transpose(1, 2, 0), interpolation="nearest")
        line[0].text(-0.08, 0.5, rows[i], transform=line[0].transAxes, ha="right", va="center", fontsize=10)
        for axis, caption in zip(line, (names[i], *(captions[method][i] for method in heat))):
            axis.text(0.5, -0.04, caption, transform=axis.transAxes, ha="center", va="top", fontsize=9)
        for axis, found in zip(line[1:], heat.values()):
            large = _enlarged(found[i] / (found[i].max() or 1), side)
            share = 0.85 * large[..., None]
            axis.imshow(share * HEAT + (1 - share) * (0.5 + 0.5 * grey[..., None]))
            if large.min() < 0.5 * large.max():
                for color, width in ("white", 2.2), ("black", 1):
                    axis.contour(large, levels=[0.5 * large.max()], colors=[color], linewidths=width)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, heading in zip(axes[0], ("image", *map(name, heat))):
        axis.set_title(heading, fontsize=10)
    figure.suptitle(wrapped(title))
    return figure


def _enlarged(values: np.ndarray, side: int) -> np.ndarray:
    """Values (h, w) on a square of `side` points, linear in between."""
    return zoom(values, (side / values.shape[0], side / values.shape[1]), order=1, mode="nearest", grid_mode=True)


def nothing(text: str) -> Figure:
    """In the place of a figure for which there is nothing to show."""
    figure = plt.figure(figsize=(WIDTH, 0.6))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=9)
    return figure


def _label(axis, heading: str, label: str, panels: int) -> None:
    """A panel's heading and its axis' label, smaller where many stand side by side."""
    size = 11 if panels < 4 else 9 if panels < 6 else 7
    axis.set_title(heading, fontsize=size)
    axis.set_xlabel(label, fontsize=size)


def points(x: float, _) -> str:
    """A difference of shares on an axis, in points."""
    return f"{100 * x:+.4g}".replace("-", "−") if abs(x) > 1e-9 else "0"


def _interval(axis, row: float, effect: dict, style: dict, thin: bool = False) -> None:
    if effect["low"] is not None:
        axis.plot([effect["low"], effect["high"]], [row, row], color=style["color"], linewidth=1.4 if thin else 2.4, solid_capstyle="butt")
    if effect["low_seeds"] is not None and not thin:
        axis.plot([effect["low_seeds"], effect["high_seeds"]], [row, row], "|", color="black", markersize=10, markeredgewidth=0.9)
    if effect["effect"] is not None:
        axis.plot(effect["effect"], row, **style)


def _rows(axis, labels: list[str]) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
