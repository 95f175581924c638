"""The published book in a browser, opened from disk with the network cut: whole, quiet, readable by everyone, on any screen."""

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdlib.book.render import contents, render

from waiting import rest, still, until

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
THEMES = "light", "dark"
CHAPTER = f"chapters/{contents()[0]}"
# From disk no script may read a style sheet, so axe is not to try; the rules that would need it are not in force.
AXE = {"resultTypes": ["violations"], "preload": False}

FACTS = """() => {
    const text = document.querySelector("main").cloneNode(true);
    for (const node of text.querySelectorAll("pre, code, script, style, mjx-container, svg")) node.remove();
    const levels = [...document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)")].filter(node => node.checkVisibility()).map(node => Number(node.tagName[1]));
    return { raw: text.textContent.match(/\\$\\S[^$\\n]*\\$|\\\\[([]|\\\\(begin|frac|mathrm)\\b/g) ?? [],
             untypeset: [...document.querySelectorAll(".math")].filter(node => !node.querySelector("mjx-container mjx-math") || node.querySelector("mjx-merror"))
                                                               .map(node => node.textContent),
             levels, blank: [...document.images].filter(node => !node.naturalWidth).map(node => node.src) };
}"""

# Pictures load when they come near the screen; here all of them do, or fail.
LOADED = """async () => {
    for (const image of document.images) image.loading = "eager";
    await Promise.allSettled([...document.images].map(image => image.decode()));
}"""

# What reaches beyond the screen without a region of its own that scrolls, by keyboard too.
LOST = """() => {
    const scrolls = node => node && (/auto|scroll/.test(getComputedStyle(node).overflowX) && node.scrollWidth > node.clientWidth && node.tabIndex === 0
                                     || scrolls(node.parentElement));
    return [...document.querySelectorAll(".bd-article-container :is(p, li, table, pre, img, svg, mjx-math)")]
        .filter(node => !node.closest("figure a") && node.getBoundingClientRect().right > innerWidth + 1 && !scrolls(node))
        .map(node => `${node.tagName} ${node.textContent.trim().slice(0, 40)}`);
}"""

# Presses each button as a script does, without the hovering that alone would change the page, and tells which changed nothing.
INERT = """async patience => {
    const pause = () => new Promise(done => setTimeout(done, 50));
    const state = () => [document.documentElement.outerHTML, scrollY, window.printed].join();
    const quiet = async () => { // what was pressed before has had its effect
        let last = state();
        for (let same = 0, end = performance.now() + patience; same < 4 && performance.now() < end;) {
            await pause();
            const now = state();
            same = now === last ? same + 1 : 0;
            last = now;
        }
        return last;
    };
    const found = [];
    window.printed = 0;
    window.print = () => { window.printed += 1; };
    scrollTo(0, 600);
    for (const node of document.querySelectorAll("button:not(:disabled), summary")) {
        if (node.closest(".kdtoy")) continue;
        const before = await quiet(), end = performance.now() + patience;
        if (!node.checkVisibility({ visibilityProperty: true })) continue;
        node.click();
        while (state() === before && performance.now() < end) await pause();
        if (state() === before) found.push(node.outerHTML);
        document.querySelector("dialog[open]")?.close();
    }
    return found;
}"""


@dataclass
class Seen:
    """What one page showed."""

    complaints: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    facts: dict = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    theme: list[str] = field(default_factory=list)
    shots: list[np.ndarray] = field(default_factory=list)
    width: int = 0
    lost: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def book(tmp_path_factory, browser) -> Path:
    return render(None, tmp_path_factory.mktemp("book") / "html")


@pytest.fixture(scope="module")
def axe(browser):
    """Of a page in some state: the violations that axe-core finds."""
    from axe_playwright_python.sync_playwright import Axe

    engine = Axe()

    def run(page, state: str) -> list[str]:
        found = engine.run(page, options=AXE).response["violations"]
        return [f"{state}: {rule['id']}: {json.dumps(node['target'])} {node['failureSummary']}" for rule in found for node in rule["nodes"]]

    return run


@pytest.fixture
def visit(browser, book):
    """Open a page of the book; in the end no page may have complained."""
    opened, seen = [], Seen()

    def visit(name: str, size=WIDE, **options):
        opened.append(browser.new_context(viewport=size, offline=True, **options))
        return load(opened[-1], book / f"{name}.html", seen)

    yield visit
    for context in opened:
        context.close()
    assert seen.complaints == [] and {url for url in seen.asked if not url.startswith(("file:", "data:"))} == set()


def load(context, path: Path, seen: Seen):
    page = context.new_page()
    page.set_default_timeout(60_000)  # on a busy machine
    page.on("console", lambda m: seen.complaints.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: seen.complaints.append(str(e)))
    page.on("requestfailed", lambda r: seen.complaints.append(f"failed: {r.url}"))
    page.on("request", lambda r: seen.asked.add(r.url))
    page.goto(path.as_uri())
    page.evaluate("() => window.MathJax?.startup.promise.then(() => {})")
    still(page)
    return page


def look(context, path: Path, axe) -> Seen:
    seen = Seen()
    page = load(context, path, seen)
    page.evaluate(LOADED)
    page.add_style_tag(content="* { transition: none !important }")  # no colour is on its way to another
    seen.facts = page.evaluate(FACTS)
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    for theme in THEMES:
        page.emulate_media(color_scheme=theme)
        until(page, "theme => (document.documentElement.dataset.theme ?? theme) === theme", theme)
        still(page)
        seen.theme.append(page.evaluate("document.documentElement.dataset.theme"))
        seen.shots.append(np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), dtype=int))
        seen.violations += axe(page, theme)
    page.set_viewport_size(NARROW)
    until(page, f"() => ({LOST})().length === 0", timeout=5_000)  # the theme hears of it with some delay
    seen.width, seen.lost = page.evaluate("document.documentElement.scrollWidth"), page.evaluate(LOST)
    page.close()
    return seen


@pytest.fixture(scope="module")
def pages(browser, book, axe) -> dict[str, Seen]:
    """Every page of the book, each looked at once."""
    names = [path.relative_to(book).with_suffix("").as_posix() for path in sorted(book.rglob("*.html")) if "_static" not in path.parts]
    names.remove("index")  # which leads elsewhere
    assert {"search", *(f"chapters/{slug}" for slug in contents())} <= set(names)
    context = browser.new_context(viewport=WIDE, offline=True, reduced_motion="reduce")
    yield {name: look(context, book / f"{name}.html", axe) for name in names}
    context.close()


def test_no_page_complains_or_asks_for_anything_elsewhere(pages):
    assert {name: seen.complaints for name, seen in pages.items() if seen.complaints} == {}
    elsewhere = {name: [url for url in seen.asked if not url.startswith(("file:", "data:"))] for name, seen in pages.items()}
    assert {name: urls for name, urls in elsewhere.items() if urls} == {}


def test_axe_finds_no_violation_in_light_or_dark(pages):
    assert {name: seen.violations for name, seen in pages.items() if seen.violations} == {}


def test_mathematics_is_typeset_and_pictures_are_there(pages):
    for what in "raw", "untypeset", "blank":
        assert {name: seen.facts[what] for name, seen in pages.items() if seen.facts[what]} == {}


def test_headings_are_in_order(pages):
    for name, seen in pages.items():
        levels = seen.facts["levels"]
        assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])), name


def test_a_telephone_shows_all_without_scrolling_the_page_sideways(pages):
    assert {name: seen.width for name, seen in pages.items() if seen.width > NARROW["width"]} == {}
    assert {name: seen.lost for name, seen in pages.items() if seen.lost} == {}


def test_light_and_dark_are_what_they_say(pages):
    for name, seen in pages.items():
        light, dark = seen.shots
        assert seen.theme == ["light", "dark"], name
        assert np.median(light) > 230 and np.median(dark) < 40, name
        assert all((np.abs(shot - np.median(shot)) > 60).mean() > 0.005 for shot in seen.shots), name  # something is written there


@pytest.mark.parametrize("theme", THEMES)
def test_what_opens_on_a_page_is_accessible_too(visit, axe, theme):
    page = visit(CHAPTER, NARROW, color_scheme=theme, reduced_motion="reduce")
    found = axe(page, "narrow")
    for toggle in ".primary-toggle", ".secondary-toggle":
        page.click(toggle)
        page.wait_for_selector("dialog[open]")
        still(page)
        assert page.locator("dialog[open] a").count() > 5
        found += axe(page, toggle)
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
    page.set_viewport_size(WIDE)
    page.click(".dropdown-download-buttons button")
    page.wait_for_selector(".dropdown-menu")
    still(page)
    found += axe(page, "downloads")
    page.keyboard.press("Escape")
    page.mouse.move(0, 0)  # under the pointer it stays open
    page.wait_for_selector(".dropdown-menu", state="hidden")
    page.keyboard.press("Control+k")
    page.wait_for_selector("#pst-search-dialog input")
    still(page)
    assert found + axe(page, "search") == []


@pytest.mark.parametrize("name, size", [(CHAPTER, WIDE), ("reproduce", NARROW)], ids=["wide", "narrow"])
def test_every_button_does_something(visit, name, size):
    page = visit(name, size)
    assert page.evaluate(INERT, 10_000) == []


def test_search_finds_a_word_of_a_chapter(visit, axe):
    page = visit("intro")
    page.keyboard.press("Control+k")
    page.wait_for_selector("#pst-search-dialog input:focus")
    page.keyboard.type("adversarial")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/search\.html\?q=adversarial"))
    page.wait_for_selector("text=Search finished")
    still(page)
    assert page.locator("#search-results li a").count() and axe(page, "results") == []
    page.click("#search-results a[href*='chapters/adversarial.html']")
    page.wait_for_url(re.compile(r"/chapters/adversarial\.html"))  # and until it is loaded
    assert "adversarial" in page.inner_text("article")
    page.goto(page.url.split("chapters")[0] + "search.html?q=xyzzyplugh")
    page.wait_for_selector("text=did not match any documents")


FOCUS = "(node => node === document.body ? null : (node.ariaLabel || node.title || node.textContent).trim())(document.activeElement)"


def test_the_keyboard_alone_reaches_everything(visit):
    page = visit(CHAPTER)
    page.keyboard.press("Tab")
    still(page)
    assert page.evaluate(FOCUS) == "Skip to main content" and page.locator(":focus").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    until(page, "location.hash === '#main-content'")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('#main-content').contains(document.activeElement)")
    page = visit(CHAPTER)
    wanted = page.evaluate("""() => [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
        .filter(node => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && node.tabIndex >= 0 && !node.disabled).length""")
    page.evaluate("""() => { window.reached = new Set(); addEventListener("focusin", event => window.reached.add(event.target)); }""")
    for _ in range(wanted + 10):
        page.keyboard.press("Tab")
    assert page.evaluate("reached.size") >= wanted
    page = visit(CHAPTER, NARROW)
    for toggle in ".primary-toggle", ".secondary-toggle":
        page.focus(toggle)
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelector('dialog[open]')?.contains(document.activeElement)")
        page.keyboard.press("Escape")
        page.wait_for_function("toggle => document.activeElement.matches(toggle)", arg=toggle)
    page.focus(".theme-switch-button")
    before = page.evaluate("document.documentElement.dataset.mode")
    page.keyboard.press("Enter")
    until(page, "before => document.documentElement.dataset.mode !== before", before)
    assert page.evaluate("document.documentElement.dataset.mode") != before and page.evaluate("document.activeElement.matches('.theme-switch-button')")


def test_the_front_door_leads_in(browser, book):
    page = browser.new_page(offline=True)
    page.goto((book / "index.html").as_uri(), wait_until="commit")
    page.wait_for_url("**/intro.html")
    page.close()


def test_without_scripts_a_page_is_still_read(browser, book):
    page = browser.new_page(offline=True, java_script_enabled=False, color_scheme="dark")
    page.goto((book / "intro.html").as_uri())
    assert page.evaluate("getComputedStyle(document.body).getPropertyValue('--pst-color-text-base')")  # a style sheet knows the colour mode
    assert page.is_visible("article h1") and not page.locator(".pst-js-only").first.is_visible()
    page.close()


def test_paper_is_white_and_free_of_controls(visit):
    page = visit(CHAPTER, color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    until(page, "matchMedia('print').matches")
    still(page)
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    assert np.median(shot) > 230
    assert [node for node in page.locator("button, nav.bd-links, summary, .prev-next-area").all() if node.is_visible()] == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


PLANTED = """<!doctype html><html lang="en"><title>T</title><main class="bd-article-container"><h1>T</h1><p style="color: #bbb">At a cost of $x^2$.</p>
<span class="math">x</span><table style="width: 600px"><tr><td>wide</table><button>Nothing</button><button onclick="this.title = 'x'">Something</button>
<img alt="a" src="gone.png"><img alt="b" src="https://example.org/b.png"><script>throw Error("oh")</script></main>"""


def test_what_is_wrong_is_seen(browser, axe, tmp_path):
    (tmp_path / "page.html").write_text(PLANTED)
    context, seen = browser.new_context(viewport=WIDE, offline=True), Seen()
    page = load(context, tmp_path / "page.html", seen)
    assert [text.count("Nothing") for text in page.evaluate(INERT, 1_000)] == [1]
    seen = look(context, tmp_path / "page.html", axe)
    context.close()
    assert any(url.startswith("https:") for url in seen.asked) and {"oh", f"failed: {(tmp_path / 'gone.png').as_uri()}"} <= set(seen.complaints)
    assert seen.facts["raw"] == ["$x^2$"] and seen.facts["untypeset"] == ["x"] and len(seen.facts["blank"]) == 2
    assert sum("light: color-contrast" in text for text in seen.violations) and seen.width > 390 and seen.lost == ["TABLE wide"]


def test_the_toy_example_lives_in_its_chapter(visit):
    page = visit("chapters/toy")
    rest(page)
    teacher, told = ".kdtoy-line.kdtoy-teacher", ".kdtoy-scene strong"
    before = page.get_attribute(teacher, "d")
    page.locator(".kdtoy-picture").scroll_into_view_if_needed()
    box = page.locator(".kdtoy-point .kdtoy-shape").nth(7).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 10)
    page.mouse.move(x - 120, y + 20)
    page.mouse.up()
    rest(page)
    moved = page.get_attribute(teacher, "d")
    assert moved != before and page.evaluate("location.hash").startswith("#v=1&scene=three&")
    page.evaluate("location.hash = 'why-three-are-enough'")  # a heading's address is none of the example's
    rest(page)
    assert page.get_attribute(teacher, "d") == moved and not page.is_visible(".kdtoy-message")
    page.click(".kdlib-steps a[href='#scene=two']")
    rest(page)
    assert page.inner_text(told) == "Two points leave the line free to turn." and page.locator(".kdtoy-seen").count() == 2
    until(page, "(top => -10 < top && top < 400)(document.querySelector('.kdtoy-scenes').getBoundingClientRect().top)")  # scrolled there
    assert -10 < page.locator(".kdtoy-scenes").bounding_box()["y"] < 400, "the link leads to the example"
    page.evaluate("location.hash = 'v=1&tau=<img>'")
    rest(page)
    assert "This link cannot be read" in page.inner_text(".kdtoy-message")
    page.close()
    shared = visit("chapters/toy", NARROW, has_touch=True)
    shared.evaluate("location.hash = 'scene=cold'")
    shared.wait_for_function("document.querySelector('.kdtoy-scene strong').textContent.startsWith('At a low temperature')")


def test_without_scripts_the_toy_chapter_shows_its_picture(browser, book):
    page = browser.new_page(offline=True, java_script_enabled=False)
    page.goto((book / "chapters/toy.html").as_uri())
    assert page.is_visible("#fig-toy-answer img") and "in a browser that runs JavaScript" in page.inner_text("article")
    assert not page.locator("#kdtoy button").count()
    page.close()
