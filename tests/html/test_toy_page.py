"""The toy example in a browser, with the network cut: it computes what kdlib.toy computes, and can be dragged, keyed, touched and linked."""

import base64
import io
import re

import numpy as np
import pytest

from bench.toy_frame import link
from kdlib import toy
from kdlib.book.command import main
from kdlib.book.render import check_html
from kdlib.book.toy import HERE, _segment, arrays, boundaries, scenes

from waiting import rest, until

SOURCE = base64.b64encode((HERE / "toy.js").read_bytes()).decode()
LINE = ".kdtoy-line.kdtoy-"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "toy.html"
    assert main(["toy", "--out", str(out)]) == 0
    return out


@pytest.fixture
def visit(browser, file):
    """Open the page; at the end it must have asked for nothing and complained of nothing."""
    opened, complaints, asked = [], [], []

    def visit(fragment="", width=1280, height=900, script=True, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, offline=True, java_script_enabled=script, **options)
        opened.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # on a busy machine
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on("request", lambda r: asked.append(r.url.partition("#")[0]))
        page.goto(file.as_uri() + fragment)
        if script:
            rest(page)
        return page

    yield visit
    for context in opened:
        context.close()
    assert not complaints and set(asked) == {file.as_uri()}


def hash_points(page):
    found = re.search(r"points=([-.\d_]*)", page.evaluate("location.hash"))
    return [tuple(map(int, p.split("."))) for p in found[1].split("_")]


def centre(page, i):
    box = page.locator(".kdtoy-point .kdtoy-shape").nth(i).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drawn(page, name):
    return page.get_attribute(LINE + name, "d")


def drag(page, i, dx, dy):
    x, y = centre(page, i)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + dx / 2, y + dy / 2)
    page.mouse.move(x + dx, y + dy)
    page.mouse.up()
    rest(page)


COMPUTE = """async ({ source, given: { points, seed, noise, steps, gamma, alpha, tau } }) => {
    const m = await import(`data:text/javascript;base64,${source}`);
    const teacher = m.teacher(points), normals = m.normals(seed, points.length), start = m.start(seed);
    points.forEach((p, i) => { p.target = m.logit(teacher, p) + noise * normals[i]; });
    const lr = m.stepSize(points, { gamma, alpha }), student = m.train(points, start, { lr, steps, gamma, alpha, tau });
    return { teacher, normals, start, lr, student, losses: m.losses(student, points, { gamma, alpha, tau }), fan: m.fan(points),
             distance: points.map(p => m.distance(student, p)), rank: m.rank(points) };
}"""


@pytest.fixture(scope="module")
def empty(browser):
    page = browser.new_page()  # an empty one: the toy's own page may import nothing
    yield page
    page.close()


@pytest.mark.parametrize("case", range(24))
def test_the_front_end_computes_what_python_computes(empty, case):
    rng = np.random.default_rng(case)
    n, seed, noise, steps = int(rng.integers(2, 30)), int(rng.integers(1, 2**31)), [0, 1.5][case % 2], [0, 1, 40, 1000, 1000][case % 5]
    (gamma, alpha), tau = [(0, 1), (1, 0), (0.1, 0.9), (0.5, 0.25)][case % 4], [0.1, 0.5, 1, 4, 20, 4, 4][case % 7]
    x, y = np.round(rng.uniform([-5, -4], [5, 4], (n, 2)), 2), rng.integers(0, 2, n)
    if case % 3:  # separable, so that there is a fan
        y = (x @ rng.standard_normal(2) + rng.standard_normal() > 0).astype(int)
    points = [{"x": a, "y": b, "label": k} for (a, b), k in zip(x.tolist(), y.tolist())]
    given = {"points": points, "seed": seed, "noise": noise, "steps": steps, "gamma": gamma, "alpha": alpha, "tau": tau}
    found = empty.evaluate(COMPUTE, {"source": SOURCE, "given": given})
    teacher, start = toy.teacher(x, y), toy.start(seed)
    told = dict(labels=y, targets=toy.logits(teacher, x) + noise * toy.normals(seed, n), gamma=gamma, alpha=alpha, tau=tau)
    lr = toy.step_size(x, gamma=gamma, alpha=alpha)
    student = toy.train(x, start=start, lr=lr, steps=steps, **told)
    wanted = {"teacher": teacher, "normals": toy.normals(seed, n), "start": start, "lr": lr, "student": student, "fan": toy.fan(x, y),
              "losses": toy.losses(student, x, **told), "distance": toy.distance(student, x), "rank": toy.rank(x)}
    for name, value in wanted.items():
        np.testing.assert_allclose(np.array(found[name]).reshape(np.shape(value)), value, atol=1e-6, rtol=1e-6, err_msg=name)


COUNT = """async ({ source, sets }) => {
    const m = await import(`data:text/javascript;base64,${source}`), { exp, log1p } = Math;
    let calls;
    Math.exp = z => (calls.exp += 1, exp(z));
    Math.log1p = z => (calls.log1p += 1, log1p(z));
    const found = sets.map(points => (calls = { exp: 0, log1p: 0 }, m.teacher(points), calls));
    Object.assign(Math, { exp, log1p });
    return found;
}"""


def test_the_front_end_too_halves_no_step_where_only_rounding_makes_the_objective_grow(empty):
    sets = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = np.round(rng.uniform([-5, -4], [5, 4], (int(rng.integers(2, 200)), 2)), 2)
        y = (x @ rng.standard_normal(2) + rng.standard_normal() > 0).astype(int) if seed % 3 else rng.integers(0, 2, len(x))
        sets.append([{"x": a, "y": b, "label": k} for (a, b), k in zip(x.tolist(), y.tolist())])
    for calls, points in zip(empty.evaluate(COUNT, {"source": SOURCE, "sets": sets}), sets):
        tried, gradients = calls["log1p"] / len(points) - 1, (calls["exp"] - calls["log1p"]) / len(points)
        assert tried == gradients - 1 < 10


CLOCK = """step => {
    let now = 0;
    performance.now = () => now += step;
    const ask = window.requestAnimationFrame.bind(window);
    window.frames_asked = 0;
    window.requestAnimationFrame = work => (window.frames_asked += 1, ask(work));
}"""


def test_training_is_divided_by_the_clock_and_ends_with_the_same_bits(visit):
    found = {}
    for step in 0, 0.3, 5:  # ms that go by between two looks at the clock
        page = visit()
        page.context.add_init_script(f"({CLOCK})({step})")
        page.goto(page.url.partition("#")[0] + link(1) + "&steps=300")
        page.reload()
        page.wait_for_selector(".kdtoy-picture[aria-busy=false]")
        asked = page.evaluate("frames_asked")
        found[step] = [drawn(page, name) for name in ("teacher", "distilled", "independent")], page.inner_text(".kdtoy-results"), asked
    assert found[0][:2] == found[0.3][:2] == found[5][:2]
    assert found[0][2] < 5 < 8 <= found[0.3][2] < 12 < 30 <= found[5][2] < 35  # of 10 steps of 200 points between two looks


def test_the_picture_is_drawn_anew_in_another_size(visit):
    page = visit("#scene=noise")
    before = drawn(page, "teacher")
    page.set_viewport_size({"width": 700, "height": 900})
    until(page, "was => document.querySelector('.kdtoy-line.kdtoy-teacher').getAttribute('d') !== was", before)
    rest(page)
    fresh = visit("#scene=noise", width=700)
    for part in ".kdtoy-line.kdtoy-teacher", ".kdtoy-line.kdtoy-distilled", ".kdtoy-circles", ".kdtoy-radii", ".kdtoy-fan":
        assert page.get_attribute(part, "d") == fresh.get_attribute(part, "d") != ""
    assert page.get_attribute(".kdtoy-point", "transform") == fresh.get_attribute(".kdtoy-point", "transform")


@pytest.mark.parametrize("scene", [s["scene"] for s in scenes()])
def test_each_scene_is_drawn_as_python_draws_it_and_shows_what_it_says(visit, scene):
    page, [state] = visit(f"#scene={scene}"), [s for s in scenes() if s["scene"] == scene]
    found, (x, y, seen) = boundaries(state), arrays(state)
    scale = float(page.get_attribute(".kdtoy-ground", "width")) / 10
    for name in "teacher", "independent", "distilled":
        ours = np.array(re.findall(r"[-\d.]+", _segment(found[name])), dtype=float) / 48
        theirs = np.array(re.findall(r"[-\d.]+", drawn(page, name)), dtype=float) / scale
        np.testing.assert_allclose(theirs, ours, atol=0.01)
    assert page.locator(".kdtoy-point").count() == len(x) and page.locator(".kdtoy-seen").count() == seen.sum()
    assert page.get_attribute(".kdtoy-circles", "d").count("M") == seen.sum() and page.get_attribute(".kdtoy-fan", "d").count("M") > 9
    t, d = found["teacher"], found["distilled"]
    off = np.degrees(np.arccos(t[:2] @ d[:2] / np.linalg.norm(t[:2]) / np.linalg.norm(d[:2])))
    assert page.locator(".kdtoy-results .kdtoy-distilled td").first.inner_text() == f"{off:.1f}°"
    assert (off < 0.05) == (scene == "three") and (off > 5 or scene == "three")
    assert toy.rank(x[seen]) == (2 if scene in ("two", "row") else 3)
    assert {"three": "the student has found it", "two": "2 points do not determine", "row": "3 points lie on one line", "noise": "fits the noise",
            "cold": "after 300 steps"}[scene] in page.inner_text(".kdtoy-note")
    for label in "teacher", "distilled", "independent":  # every line is named, and no two names cover each other
        assert page.is_visible(f".kdtoy-label.kdtoy-{label}")
    boxes = [b.bounding_box() for b in page.locator(".kdtoy-label").all() if b.is_visible()]
    assert not any(a["x"] < b["x"] + b["width"] and b["x"] < a["x"] + a["width"] and a["y"] < b["y"] + b["height"] and b["y"] < a["y"] + a["height"]
                   for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_point_is_dragged_and_the_boundary_follows_and_undo_and_start_over_lead_back(visit):
    page = visit()
    before = {name: drawn(page, name) for name in ("teacher", "distilled", "independent")}
    assert page.evaluate("location.hash") == "" and page.is_disabled("text=Undo")
    drag(page, 7, -150, 40)  # a hollow point: the student has not seen it, and follows its teacher all the same
    [a, b] = [hash_points(page)[7], (360, 60, 1)]
    assert a[0] < b[0] - 100 and a[1] < b[1] - 20 and a[2] == 1
    assert drawn(page, "teacher") != before["teacher"] and drawn(page, "distilled") != before["distilled"]
    assert drawn(page, "independent") == before["independent"]
    drag(page, 7, 2000, 0)
    assert hash_points(page)[7][0] == 500  # not out of the picture
    page.click("button:text-is('Undo')")
    page.click("button:text-is('Undo')")  # one drag, one step
    rest(page)
    assert {name: drawn(page, name) for name in before} == before and hash_points(page)[7] == b and page.is_disabled("text=Undo")
    drag(page, 6, 30, 30)
    page.click("button:text-is('Start over')")
    rest(page)
    assert {name: drawn(page, name) for name in before} == before


def test_keys_move_flip_show_and_remove_a_point(visit):
    page = visit()
    page.locator(".kdtoy-point").nth(6).focus()
    for key in "ArrowRight", "ArrowUp", "Shift+ArrowLeft", "ArrowDown", "ArrowDown":
        page.keyboard.press(key)
    rest(page)
    assert hash_points(page)[6] == (0, 280, 2) and "point 7, triangle, seen by the student, at 0.0, 2.8" in page.get_attribute(
        ".kdtoy-point:nth-child(7)", "aria-label").lower()
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    rest(page)
    assert hash_points(page)[6] == (0, 280, 1)
    page.keyboard.press("Delete")
    rest(page)
    assert len(hash_points(page)) == 13 and hash_points(page)[6] == (360, 60, 1)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Point 7,")
    for _ in range(4):  # the removal, Enter, Space, and all the moves together
        page.keyboard.press("Control+z")
    rest(page)
    assert hash_points(page)[6] == (40, 290, 2) and page.is_disabled("text=Undo")


def test_every_control_is_reached_by_tab(visit):
    page, reached = visit("#scene=two"), set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("(n => n.getAttribute('aria-label') ?? n.labels?.[0]?.textContent ?? n.textContent)(document.activeElement)"))
    for wanted in ("Three points", "Too cold", "Start over", "Skip the points", "Change class", "Remove", "What is the student told?", "Play", "One step",
                   "steps", "New random start", "Keys"):
        assert wanted in reached, wanted
    assert sum(label.startswith("Point ") for label in reached) == 14


def test_a_finger_drags_a_point_and_scrolls_beside_it(visit):
    page = visit(width=390, height=844, has_touch=True, is_mobile=True)
    touch = page.context.new_cdp_session(page)

    def swipe(x, y, dx, dy):
        for kind, f in ("touchStart", 0), *(("touchMove", k / 8) for k in range(1, 9)), ("touchEnd", 1):
            points = [] if kind == "touchEnd" else [{"x": x + f * dx, "y": y + f * dy}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        rest(page)

    page.locator(".kdtoy-picture").scroll_into_view_if_needed()
    rest(page)
    at = page.evaluate("scrollY")
    swipe(*centre(page, 6), -60, 20)
    moved = hash_points(page)[6]
    assert moved[0] < 40 - 100 and moved[1] < 290 - 30 and page.evaluate("scrollY") == at
    box = page.locator(".kdtoy-picture").bounding_box()
    swipe(box["x"] + box["width"] - 15, box["y"] + box["height"] - 15, 0, -120)  # no point there
    until(page, "at => scrollY > at", at)
    assert page.evaluate("scrollY") > at and hash_points(page)[6] == moved


def test_points_are_added_shown_hidden_flipped_and_removed_by_buttons(visit):
    page = visit()
    box = page.locator(".kdtoy-picture").bounding_box()
    page.mouse.dblclick(box["x"] + 0.9 * box["width"], box["y"] + 0.9 * box["height"])
    rest(page)
    assert hash_points(page)[14] == (400, -320, 3)
    page.click(".kdtoy-actions >> text=Change class")
    page.click(".kdtoy-actions >> text=Hide from the student")
    rest(page)
    assert hash_points(page)[14] == (400, -320, 0) and "It has no part in the student’s loss." in page.inner_text(".kdtoy-about")
    page.click(".kdtoy-actions >> text=Show to the student")
    rest(page)
    assert hash_points(page)[14][2] == 2 and page.locator(".kdtoy-actions >> text=Hide from the student").count() == 1
    page.click(".kdtoy-actions >> text=Remove")
    page.click("text=Which points?")
    page.click("button:text-is('Show all to the student')")
    rest(page)
    assert len(hash_points(page)) == 14 and all(p[2] > 1 for p in hash_points(page))
    page.click("button:text-is('Hide all')")
    rest(page)
    assert "sees no point" in page.inner_text(".kdtoy-note") and page.get_attribute(".kdtoy-circles", "d") == ""
    page.click("button:text-is('Add a point')")
    rest(page)
    assert len(hash_points(page)) == 15
    for _ in range(15):
        page.click(".kdtoy-actions >> text=Remove")
    rest(page)
    assert page.locator(".kdtoy-point").count() == 0 and page.evaluate("location.hash").endswith("points=")


def test_controls_say_and_do_what_they_are_for(visit):
    page = visit()
    page.click("button:text-is('hard labels')")
    rest(page)
    assert drawn(page, "distilled") == drawn(page, "independent") and "Told hard labels only" in page.inner_text(".kdtoy-note")
    page.click("button:text-is('both')")
    page.click("text=At which temperature?")
    page.get_by_label("temperature τ").press("Home")
    page.click("text=How reliable is the teacher?")
    page.get_by_label("noise, standard deviation").press("ArrowRight")
    page.click("button:text-is('Draw other noise')")
    rest(page)
    assert "gamma=0.5&alpha=0.5&tau=0.1&noise=0.25&draw=2&" in page.evaluate("location.hash")


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_training_is_stepped_and_played(visit, motion):
    page = visit("#scene=two", reduced_motion=motion)
    begun = drawn(page, "distilled")
    page.click("button:text-is('To step 0')")
    rest(page)
    assert drawn(page, "distilled") == drawn(page, "independent") and "Before the first step" in page.inner_text(".kdtoy-note")
    page.click("button:text-is('One step')")
    page.click("button:text-is('One step')")
    rest(page)
    assert "steps=2&" in page.evaluate("location.hash") and drawn(page, "distilled") != begun
    page.evaluate("""() => {
        window.seen = new Set();
        const line = document.querySelector('.kdtoy-line.kdtoy-distilled');
        new MutationObserver(() => window.seen.add(line.getAttribute('d'))).observe(line, { attributes: true });
    }""")
    page.click("button:text-is('Play')")
    rest(page)
    assert "steps=1000&" in page.evaluate("location.hash")
    shown = page.evaluate("window.seen.size")
    assert shown > 5 if motion == "no-preference" else shown == 1
    page.click("button:text-is('New random start')")
    rest(page)
    assert "start=8&" in page.evaluate("location.hash")


def test_what_is_said_of_a_point_is_what_python_says(visit):
    page, state = visit("#scene=noise&gamma=0.3&alpha=0.7"), scenes()[3] | {"gamma": 0.3, "alpha": 0.7}
    found, (x, y, seen) = boundaries(state), arrays(state)
    for i in 6, 0:
        page.mouse.move(*centre(page, i))
        rest(page)
        values = [float(v) for v in page.locator(".kdtoy-value").all_inner_texts()]
        z = [found["targets"][i], *(toy.logits(found[name], x[i:i + 1])[0] for name in ("distilled", "independent"))]
        assert values == pytest.approx([1 / (1 + np.exp(-v / 4)) for v in z], abs=6e-4)
    share = toy.losses(found["distilled"], x[seen], labels=y[seen], targets=found["targets"][seen], gamma=0.3, alpha=0.7, tau=4)
    page.mouse.move(*centre(page, 6))
    rest(page)
    assert f"{100 * share[1] / share.sum():.0f} % of {share.mean():#.2g}." in page.inner_text(".kdtoy-share")


def test_a_link_brings_the_whole_picture_back(visit):
    page = visit("#scene=noise")
    drag(page, 6, -40, 25)
    link, lines = page.evaluate("location.hash"), [drawn(page, name) for name in ("teacher", "distilled", "independent")]
    again = visit(link)
    assert [drawn(again, name) for name in ("teacher", "distilled", "independent")] == lines
    assert again.evaluate("location.hash") == link and hash_points(again) == hash_points(page)
    again.evaluate("location.hash = 'scene=two&tau=7'")  # a link followed inside the page
    rest(again)
    assert again.locator(".kdtoy-seen").count() == 2 and again.get_attribute("button:text-is('Too few')", "aria-pressed") == "true"
    bare = visit(link + "&embed")
    assert [b for b in bare.locator("button, input, summary, .lead, footer").all() if b.is_visible()] == [] and bare.is_visible(".kdtoy-picture")
    drag(bare, 6, 30, 0)
    assert bare.evaluate("location.hash").endswith("&embed") and hash_points(bare) != hash_points(page)


HOSTILE = ["points=<img src=x onerror=hacked=1>", "points=%3Csvg%20onload=hacked=1%3E", "tau=1e9", "tau=NaN", "tau=0", "tau=-4", "tau=4&tau=5", "steps=1000000",
           "v=2", "v=1&v=1", "__proto__=1", "constructor=1", "scene=constructor", "scene=__proto__", "scene=", "points=600.0.1", "points=1.1.9", "points=1.1",
           "points=1e3.1.1", "embed=2", "javascript:hacked=1", "=", "a=b=c", "points=" + "1.1.1_" * 201, "points=" + "1" * 10000, "%00%ff", "start=0.5.5"]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_a_hostile_link_does_no_harm(visit, text):
    page = visit("#" + text)
    assert re.match(r"This link cannot be read: .{8,120}\. The opening picture is shown instead\.$", page.inner_text(".kdtoy-message"))
    assert page.locator(".kdtoy-point").count() == 14 and not page.evaluate("'hacked' in window || document.querySelector('img, .kdtoy-picture svg') !== null")
    page.locator(".kdtoy-point").first.press("ArrowUp")
    rest(page)
    assert hash_points(page)[0] == (-360, -30, 0)  # and lives
    page.evaluate("location.hash = 'scene=row'")
    rest(page)
    assert not page.is_visible(".kdtoy-message")


def test_another_host_keeps_the_state_both_ways(empty):
    # what anywidget does: get, set, save_changes, and calls when the other side has changed something
    empty.evaluate("""async ({ source, scenes }) => {
        const { default: { render } } = await import(`data:text/javascript;base64,${source}`);
        const held = { scenes, state: scenes[1] }, heard = {};
        window.saved = [];
        window.model = { get: name => held[name], set: (name, value) => { held[name] = value; }, on: (name, call) => { heard[name] = call; },
                         off: name => delete heard[name], save_changes: () => window.saved.push(structuredClone(held.state)) };
        window.send = state => { held.state = state; heard["change:state"](); };
        window.heard = heard;
        const el = document.body.appendChild(document.createElement("div"));
        window.clear = render({ model, el });
    }""", {"source": SOURCE, "scenes": scenes()})
    rest(empty)
    assert empty.locator(".kdtoy-seen").count() == 2 and empty.evaluate("saved.length") == 0
    empty.locator(".kdtoy-point").first.press("ArrowUp")
    rest(empty)
    assert empty.evaluate("saved.at(-1).points[0]") == {"x": -3.6, "y": -0.3, "label": 0, "seen": False}
    state = empty.evaluate("saved.at(-1)")
    empty.evaluate("send", state | {"points": state["points"][:5], "tau": 2})
    rest(empty)
    assert empty.locator(".kdtoy-point").count() == 5 and empty.get_by_label("temperature τ").input_value() == "7"
    empty.evaluate("send", state | {"tau": "<b>"})
    rest(empty)
    assert empty.inner_text(".kdtoy-message") == "This state cannot be shown: tau must lie between 0.1 and 20."
    assert empty.locator(".kdtoy-point").count() == 5 and empty.evaluate("location.hash") == ""
    empty.evaluate("clear()")
    assert empty.evaluate("Object.keys(heard)") == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_and_is_seen_in_light_and_dark(visit, width, theme):
    from PIL import Image

    for options in {"color_scheme": theme}, {"color_scheme": "dark" if theme == "light" else "light"}:
        page = visit(width=width, height=844, **options)
        if options["color_scheme"] != theme:
            page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")  # the reader's choice on a page of the book
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".kdtoy-picture").scroll_into_view_if_needed()
        shot = np.asarray(Image.open(io.BytesIO(page.locator(".kdtoy-picture").screenshot())).convert("L"))
        assert (np.median(shot) > 230) == (theme == "light") and (np.median(shot) < 40) == (theme == "dark")
        assert 0.02 < (np.abs(shot.astype(int) - np.median(shot)) > 60).mean() < 0.3
        page.click("summary:text-is('Keys')")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1280])
def test_without_script_there_is_the_picture_with_its_caption(visit, width):
    page = visit(width=width, script=False)
    assert page.locator("figure svg [d]").count() > 14 and page.is_visible("figcaption") and not page.locator("button").count()
    box = page.locator("figure svg").bounding_box()
    assert 300 < box["width"] <= width and box["height"] == pytest.approx(0.8 * box["width"], rel=0.02)
    assert page.get_attribute("figure .kdtoy-line.kdtoy-teacher", "d") == _segment(boundaries(scenes()[0])["teacher"])


def test_the_file_stands_alone(file, browser):
    assert check_html(file.parent) == []
    text = file.read_text()
    assert "default-src 'none'" in text and not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text) and "innerHTML" not in text
    page = browser.new_page()
    page.goto(file.as_uri())
    refused = page.evaluate("""new Promise(done => {
        document.addEventListener("securitypolicyviolation", event => done(event.effectiveDirective));
        fetch("data:,x").then(() => done("fetched"), () => 0);
    })""")
    page.close()
    assert refused == "connect-src"


def test_the_command_says_in_one_line_what_it_cannot_write(tmp_path, capsys):
    assert main(["toy", "--out", str(tmp_path / "no" / "toy.html")]) == 1
    assert main(["toy", "--out", str(tmp_path)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "name a file in a folder that exists" in errors[0] and "is a folder; name a file in it" in errors[1]
    assert not list(tmp_path.iterdir())
    (tmp_path / "toy.html").write_text("old")
    assert main(["toy", "--out", str(tmp_path / "toy.html")]) == 0 and "in a browser" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["toy.html"] and "</html>" in (tmp_path / "toy.html").read_text()
