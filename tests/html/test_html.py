"""The HTML layer: a rendered book is whole, loads nothing from elsewhere, and a warning stops it."""

import base64
import json
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from kdlib.book.execute import digest
from kdlib.book.render import RenderError, check_html, contents, render
from kdlib.book.results import PROVENANCE, Results

SLUG = "domain-adaptation"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
CAPTION, ALT = "Agreement by domain.", "Bars: KL lies above Ind in every domain."
PAGE = "# A chapter\n\nThe gain is {glue:text}`gain:.2f`, see {numref}`fig-agreement` and {cite:t}`ojha2023`: $p(S) - p(T)$."


def executed(folder: Path, text: str = PAGE, alt: str | None = ALT) -> Path:
    """A folder with one executed chapter: a glued number, a captioned figure, a results file."""
    glued = new_output("display_data", {"application/papermill.record/text/plain": "0.0625"},
                       metadata={"scrapbook": {"name": "gain", "mime_prefix": "application/papermill.record/"}})
    figure = new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"})
    mystnb = {"figure": {"caption": CAPTION, "name": "fig-agreement"}} | ({"image": {"alt": alt}} if alt else {})
    cells = [new_markdown_cell(text),
             new_code_cell("glue('gain', gain)", outputs=[glued], execution_count=1),
             new_code_cell("draw()", outputs=[figure], execution_count=2, metadata={"mystnb": mystnb})]
    results = folder / "results" / f"{SLUG}.json"
    Results(SLUG, dict.fromkeys(PROVENANCE) | {"parameters": {}}).write(results)
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}, "kdlib": {"results": digest(results)}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / f"{SLUG}.ipynb")
    return folder


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    return render(executed(folder / "run"), folder / "site" / "html")


def chapter(book: Path) -> BeautifulSoup:
    return BeautifulSoup((book / "chapters" / f"{SLUG}.html").read_text(), "html.parser")


def test_whole_and_self_contained(book):
    assert (book / "index.html").exists()
    assert check_html(book) == []
    assert [path.name for path in book.parent.iterdir()] == ["html"]  # no scratch folder stays


def test_executed_chapter_keeps_number_caption_alt_and_results(book):
    page, number = chapter(book), 1 + contents().index(SLUG)
    assert f"The gain is 0.06, see Fig. {number}.1 and Ojha" in page.article.get_text()
    figure = page.find("figure", id="fig-agreement")
    assert figure.img["alt"] == ALT and CAPTION in figure.figcaption.get_text()
    assert (book / "chapters" / figure.img["src"]).read_bytes() == base64.b64decode(PNG)
    download = page.select_one("a.download")
    assert json.loads((book / "chapters" / download["href"]).read_text())["chapter"] == SLUG


def test_missing_alt_text_is_fatal(tmp_path):
    with pytest.raises(RenderError, match=rf"^chapters/{SLUG}.html: image without alt text: \S+$"):
        render(executed(tmp_path / "run", alt=None), tmp_path / "html")


def test_chapter_without_execution_is_a_stub(tmp_path):
    book = render(tmp_path, tmp_path / "html")
    assert f"kdlib run {SLUG}" in chapter(book).article.get_text()
    assert check_html(book) == []


def test_warning_is_fatal_and_leaves_the_earlier_book(book, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in book.rglob("*.html")}
    run = executed(tmp_path / "run", PAGE + "\n\n{numref}`fig-nowhere`")
    with pytest.raises(RenderError, match=rf"^chapters/{SLUG}.ipynb:\S* WARNING: .*fig-nowhere"):
        render(run, book)
    assert {path: path.stat().st_mtime_ns for path in book.rglob("*.html")} == before
    assert [path.name for path in book.parent.iterdir()] == ["html"]


def test_refuses_to_replace_a_folder_that_is_no_book(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RenderError, match="something other than a rendered book"):
        render(None, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_published_book(tmp_path):
    assert contents() == ["methods", "localization", "adversarial", "invariance", "unseen-domains", SLUG, "decision-boundary", "toy"]
    assert check_html(render(None, tmp_path / "html")) == []


GOOD = """<h1 id="top">T</h1><a href="#top">up</a> <a href="b.html#there">b</a> <a href="b.html?q=1">b</a> <a href="https://example.org">out</a>
<img src="x.png" alt="a bar"><img src="x.png" alt="" role="presentation"><a href="mailto:a@example.org">write</a><img alt="dot" src="data:image/png;base64,AA">
<link rel="canonical" href="https://example.org/a.html"><script>const site = "https://example.org/";</script><svg xmlns="http://www.w3.org/2000/svg"></svg>"""


@pytest.mark.parametrize("planted, problem", [
    ('<a href="gone.html">x</a>', "broken link: <a> gone.html"),
    ('<a href="b.html#gone">x</a>', "broken anchor: <a> b.html#gone"),
    ('<a href="#gone">x</a>', "broken anchor: <a> #gone"),
    ('<script src="gone.js"></script>', "broken link: <script> gone.js"),
    ('<img src="x.png">', "image without alt text: x.png"),
    ('<img src="x.png" alt="">', "image without alt text: x.png"),
    ('<img src="x.png" alt="x.png">', "image without alt text: x.png"),
    ('<script src="https://example.org/a.js"></script>', "loads https://example.org/a.js: <script>"),
    ('<script src="//example.org/a.js"></script>', "loads //example.org/a.js: <script>"),
    ('<link rel="stylesheet" href="https://example.org/a.css">', "loads https://example.org/a.css: <link>"),
    ('<link rel="preconnect" href="https://example.org">', "loads https://example.org: <link>"),
    ('<img alt="a" src="http://example.org/a.png">', "loads http://example.org/a.png: <img>"),
    ('<img alt="a" src="x.png" srcset="x.png 1x, https://example.org/a.png 2x">', "loads https://example.org/a.png: <img>"),
    ('<iframe src="https://example.org/"></iframe>', "loads https://example.org/: <iframe>"),
    ('<form action="https://example.org/"></form>', "loads https://example.org/: <form>"),
    ('<p style="background: url(https://example.org/a.png)">x</p>', "loads https://example.org/a.png: style"),
    ('<style>@import "https://example.org/a.css";</style>', "loads https://example.org/a.css: style"),
    ('<script type="module">import x from "https://example.org/x";</script>', "loads https://example.org/x: script"),
    ('<script>require(["https://example.org/lib.min.js"])</script>', "loads https://example.org/lib.min.js: script"),
])
def test_check_html_finds(tmp_path, planted, problem):
    (tmp_path / "a.html").write_text(GOOD + planted)
    (tmp_path / "b.html").write_text('<a name="there"></a>')
    (tmp_path / "x.png").write_bytes(base64.b64decode(PNG))
    assert check_html(tmp_path) == [f"a.html: {problem}"]


def test_check_html_passes_what_is_fine_and_reads_stylesheets(tmp_path):
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<a name="there"></a>')
    (tmp_path / "x.png").write_bytes(base64.b64decode(PNG))
    assert check_html(tmp_path) == []
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/f.woff2'); }")
    (tmp_path / "a.js").write_text('const f = () => fetch("https://example.org/data.json");')
    (tmp_path / "mathjax").mkdir()
    (tmp_path / "mathjax" / "b.js").write_text('const old = "https://example.org/polyfill.js";')
    assert check_html(tmp_path) == ["a.css: loads https://example.org/f.woff2", "a.js: loads https://example.org/data.json"]


def test_what_needs_a_kernel_is_left_out_and_the_toy_example_is_todays(tmp_path):
    from kdlib.book import toy

    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "Widget()"}
    page = new_notebook(cells=[new_markdown_cell("# A chapter"),
                               new_code_cell("sliders", outputs=[new_output("display_data", widget)], execution_count=1),
                               new_code_cell("demo", outputs=[new_output("display_data", widget | {"text/html": f"{toy.HOST}</div>an old picture"})], execution_count=2)],
                        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"},
                                  "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}})
    (tmp_path / "run").mkdir()
    nbformat.write(page, tmp_path / "run" / f"{SLUG}.ipynb")
    html = (render(tmp_path / "run", tmp_path / "html") / "chapters" / f"{SLUG}.html").read_text()
    assert "Widget()" not in html and "widget-view" not in html and "an old picture" not in html
    assert 'id="kdtoy"' in html and "export function render" in html
