"""The toy example in a notebook: a state that is checked, read and changed from Python, live or still."""

import re

import numpy as np
import pytest

from kdlib import toy
from kdlib.book import toy as page
from kdlib.book.chapter import Chapter
from kdlib.book.chapters import source


def drawn(axis, color):
    return [line for line in axis.lines if line.get_color() == color]


@pytest.fixture(params=[False, True], ids=["still", "live"])
def demo(request):
    return page.demo(request.param)


def test_it_opens_with_the_first_scene_and_computes_its_boundaries(demo):
    x, y, seen = page.arrays(page.scenes()[0])
    assert (demo.x == x).all() and (demo.y == y).all() and (demo.seen == seen).all()
    assert demo.boundaries()["teacher"] == pytest.approx(toy.teacher(x, y))


def test_points_and_numbers_are_set_from_python(demo):
    demo.place(demo.x + [0.25, 0])
    assert demo.x[0].tolist() == [-3.35, -0.4] and demo.seen.sum() == 3
    demo.place(np.array([[0.123, 1], [2, 3]]), np.array([0, 1]), np.array([True, False]))
    assert demo.x.tolist() == [[0.12, 1], [2, 3]] and demo.seen.tolist() == [True, False]
    demo.set(tau=2, steps=np.int64(10))
    assert demo.state["tau"] == 2 and demo.state["steps"] == 10 and len(demo.x) == 2
    demo.set(scene="two", gamma=0.5)
    assert demo.seen.sum() == 2 and demo.state["gamma"] == 0.5 and len(demo.x) == 14


@pytest.mark.parametrize("change, says", [
    (lambda d: d.place(d.x[:3]), r"points must be \(14, 2\)"), (lambda d: d.place(d.x * 9), "outside the picture"),
    (lambda d: d.place(d.x, d.y + 3), "class must be 0 or 1"), (lambda d: d.place(d.x * np.nan), "outside the picture"),
    (lambda d: d.place(np.zeros((201, 2)), np.zeros(201), np.zeros(201)), "at most 200 points"),
    (lambda d: d.set(tau=0), "tau must lie between 0.1 and 20, not 0"), (lambda d: d.set(tau="hot"), "not 'hot'"),
    (lambda d: d.set(steps=True), "steps must lie"), (lambda d: d.set(colour=1), "has no colour"), (lambda d: d.set(scene="four"), "scene must be one of three")])
def test_what_cannot_be_is_refused_in_one_line_and_nothing_changes(demo, change, says):
    before = demo.state
    with pytest.raises(ValueError, match=says) as raised:
        change(demo)
    assert demo.state == before and "\n" not in str(raised.value)


def test_controls_and_state_follow_each_other():
    demo = page.demo(True)
    boxes = {box.description: box for box in demo.controls().children}
    boxes["temperature τ"].value = 10
    boxes["noise"].value = 1.25
    assert demo.state["tau"] == 10 and demo.state["noise"] == 1.25
    demo.set(tau=2.4, gamma=0.37)
    assert boxes["temperature τ"].value == 2 and boxes["hard labels γ"].value == 0.37 and demo.state["tau"] == 2.4
    boxes["scene"].value = "cold"
    assert demo.state == page.check(page.scenes()[4]) and boxes["temperature τ"].value == 0.3


def test_the_front_end_may_not_put_nonsense_into_the_state():
    from traitlets import TraitError

    demo = page.demo(True)
    with pytest.raises(TraitError, match="tau must lie between"):
        demo.set_state({"state": {**demo.state, "tau": -1}})  # as it comes from the browser
    assert demo.state["tau"] == 4


def test_a_page_of_a_live_notebook_shows_what_needs_no_kernel():
    data = page.demo(True)._repr_mimebundle_()[0]
    assert data["text/html"] == page.demo(False)._repr_html_() and "application/vnd.jupyter.widget-view+json" in data


def test_limits_and_stops_are_the_front_ends():
    from kdlib.book.toy.live import TAUS

    script = (page.HERE / "toy.js").read_text()
    numbers = re.search(r"const NUMBERS = \{(.*?)\};", script, flags=re.DOTALL)[1]
    found = {name: tuple(map(float, values.split(","))) for name, values in re.findall(r"(\w+): \[([^\]]+)\]", numbers)}
    assert found == page.LIMITS and f"MOST = {page.MOST};" in script
    assert re.search(r"const TAUS = \[(.*?)\]", script)[1] == ", ".join(f"{t:g}" for t in TAUS)


def test_the_still_picture_shows_the_boundaries_circles_and_points():
    from matplotlib.figure import Figure

    state = page.scenes()[0]
    axis = Figure().add_subplot()
    page.plot(axis, state)
    found = page.boundaries(state)
    [distilled] = drawn(axis, "#ff8f3f")
    assert toy.logits(found["distilled"], np.column_stack(distilled.get_data())) == pytest.approx(0, abs=1e-9)
    circles = [line for line in drawn(axis, "black") if len(line.get_xdata()) == 200]
    x, _, seen = page.arrays(state)
    for circle, at in zip(circles, x[seen], strict=True):
        distances = toy.distance(found["teacher"], np.column_stack(circle.get_data()))
        assert np.abs(distances).min() < 0.02 * np.abs(distances).max()  # the teacher's line is its tangent
        assert np.ptp(np.sign(distances[np.abs(distances) > 0.01])) == 0
    assert {text.get_text() for text in axis.texts} == {"teacher", "distilled", "independent"}


def test_a_chapter_without_device_computes_on_the_cpu_in_float64():
    chapter = Chapter("toy", {name: p.default for name, p in source("toy").parameters.items()})
    facts = chapter.results.provenance
    assert chapter.live and facts["dtype"] == "float64" and "device" not in facts["parameters"] and "cores" in facts["device"]
