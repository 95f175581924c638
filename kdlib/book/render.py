"""Rendering: prose pages and executed chapters, assembled in a scratch folder, become HTML by jupyter-book."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup, SoupStrainer, Tag

from kdlib.book import ROOT, BookError, downloads, landing, sheet, toy
from kdlib.book import results as results_file
from kdlib.book.chapters import contents, read_notebook, sources
from kdlib.book.execute import digest
from kdlib.book.results import Results
from kdlib.book.text import breakable, numbered

BOOK = ROOT / "book"
LINKS = "external-links.txt"
LAUNCH = {"binderhub_url": "https://mybinder.org", "notebook_interface": "jupyterlab"}

STUB = """\
# {title}

:::{{admonition}} Not executed here
:class: note
This edition was rendered from a folder that does not hold this chapter in executed form. The command that runs it:

```bash
kdlib run {slug}
```

[How to re-run a chapter](../reproduce.md) tells more.
:::
"""


class RenderError(BookError):
    """jupyter-book warned or failed; the message holds its first complaints."""


def render(chapters_dir: Path | None, out: Path, config: Path = ROOT / "_config.yml") -> Path:
    """Render the book with the executed chapters of a folder (default: the published ones) to `out`/index.html.

    A chapter that the folder lacks becomes a page that says how to run it. Warnings are fatal, and so is what `check_html`
    finds: RenderError, and an earlier `out` stays as it was. `out`/external-links.txt lists the links that lead out of the book.
    """
    if chapters_dir and not Path(chapters_dir).is_dir():
        raise RenderError(f"no folder {chapters_dir}; run chapters into it first: kdlib run SLUG --out {chapters_dir}")
    chapters_dir = Path(chapters_dir or BOOK / "chapters")
    out = Path(out).resolve()
    if out.exists() and any(out.iterdir()) and not (out / LINKS).exists():
        raise RenderError(f"{out} holds something other than a rendered book; name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".render-", dir=out.parent) as work:
        source = Path(work, "source")
        shutil.copytree(BOOK, source, ignore=shutil.ignore_patterns("chapters", "results"))
        found = {slug: results for slug in contents() if (results := _place(slug, chapters_dir, source))}
        landing.place(found, source / "generated")
        sheet.place(source / "generated")
        html = _jupyter_book(source, Path(work), config)
        for page in _pages(html):
            _mend(page)
        if problems := check_html(html):
            raise RenderError("\n".join(problems[:10]))
        Path(html, LINKS).write_text("".join(f"{url}\t{', '.join(pages)}\n" for url, pages in links_out(html).items()))
        if out.exists():
            out.rename(Path(work, "earlier"))
        html.rename(out)
    return out


def _place(slug: str, chapters_dir: Path, source: Path) -> Results | None:
    """Put a chapter into the source folder: its executed notebook with its downloads, or a stub. Its results, if it has any."""
    (source / "chapters").mkdir(exist_ok=True)
    executed = chapters_dir / f"{slug}.ipynb"
    if not executed.exists():
        title = sources()[slug].title if slug in sources() else slug.replace("-", " ").capitalize()
        (source / "chapters" / f"{slug}.md").write_text(STUB.format(slug=slug, title=title))
        return None
    read_notebook(executed)  # or one line about it
    notebook = json.loads(executed.read_text())
    _still(notebook)
    tagged = {tag: cell for cell in notebook["cells"] for tag in cell["metadata"].get("tags", [])}
    if "injected-parameters" in tagged:  # what the page was run with is shown, the defaults are folded
        tagged["parameters"]["metadata"]["tags"].append("hide-input")
    _number_tables(notebook, 1 + contents().index(slug))
    stores = (chapters_dir / "results", chapters_dir.parent / "results")
    told = notebook["metadata"].get("kdlib", {}).get("results")  # plain papermill tells of none
    path = next((path for store in stores if (path := store / f"{slug}.json").exists()), None) if told else None
    found = results_file.read(path) if path else None
    if path and digest(path) != told:
        raise RenderError(f"{executed} and {path} are not of one execution; run it again: kdlib run {slug} --out {chapters_dir}")
    cell_id = {"id": "downloads"} if notebook["nbformat_minor"] >= 5 else {}
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": downloads.place(executed, path, found, source)} | cell_id)
    (source / "chapters" / f"{slug}.ipynb").write_text(json.dumps(notebook))
    return found


def _still(notebook: dict) -> None:
    """Leave out what needs a kernel: widgets, save for what they show without one. The toy example is shown as it is today."""
    widget = "application/vnd.jupyter.widget-view+json"
    notebook["metadata"].pop("widgets", None)
    for cell in (c for c in notebook["cells"] if c["cell_type"] == "code"):
        cell["outputs"] = [o for o in cell["outputs"] if widget not in o.get("data", {}) or "text/html" in o["data"]]
        for data in (o["data"] for o in cell["outputs"] if "data" in o):
            data.pop(widget, None)
            if toy.HOST in "".join(data.get("text/html", "")):
                data["text/html"] = toy.inline()


def _number_tables(notebook: dict, chapter: int) -> None:
    """Number the tables that cells display, as Sphinx numbers the figures, and let narrow screens break their cells."""
    tables = count(1)
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if page := output.get("data", {}).get("text/html"):
                output["data"]["text/html"] = numbered(breakable("".join(page)), chapter, tables)


def _with_buttons(config: dict) -> dict:
    """The configuration, with buttons to the repository, its issues and Binder where it names a repository."""
    if not (config.get("repository") or {}).get("url"):
        return config
    return config | {"html": config["html"] | {"use_repository_button": True, "use_issues_button": True}, "launch_buttons": LAUNCH}


def _jupyter_book(source: Path, work: Path, config: Path) -> Path:
    """Build with warnings as errors; the folder of the HTML."""
    Path(work, "config.yml").write_text(yaml.safe_dump(_with_buttons(yaml.safe_load(config.read_text()))))
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", source]
    command += ["--config", work / "config.yml", "--toc", source / "_toc.yml", "--path-output", work, "-W", "-n", "--keep-going"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        log = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).replace(f"{source}/", "").splitlines()
        complaints = [line for line in log if re.search(r"WARNING|ERROR|CRITICAL|Error:|Exception", line)]
        raise RenderError("\n".join((complaints or log[-10:])[:10]))
    return work / "_build" / "html"


def _mend(path: Path) -> None:
    """Correct what the theme's markup denies to assistive technology, and no setting changes."""
    page = BeautifulSoup(path.read_text(), "html.parser")
    if page.html and page.html.get("data-theme") == "auto":  # no stylesheet knows it: without scripts there would be no colours
        del page.html["data-theme"]
    for sidebar in page.select("#pst-primary-sidebar"):  # the book's title and its search lie in no landmark
        sidebar.attrs |= {"role": "complementary", "aria-label": "Book"}
    for toggle in page.select("nav li.has-children > details > summary"):  # an arrow without a name
        toggle["aria-label"] = f"Pages of {toggle.find_parent('li').a.get_text(strip=True)}"
    for toggle in page.select("img.toggler"):  # folds the index of modules, for a mouse alone
        toggle.decompose()
    for tip in page.select("[data-bs-toggle=tooltip]"):  # else it is shown behind the last landmark
        tip["data-bs-container"] = "#main-content"
    for entry in page.select("div.citation"):  # of a list; Sphinx gives a role that ARIA has dropped
        entry["role"] = "listitem"
    path.write_text(str(page))


REMOTE = re.compile(r"\s*(https?:)?//", re.IGNORECASE)
REMOTE_CSS = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
REMOTE_JS = re.compile(
    r"""(?:\bfrom|\bimport\s*\(?|\bfetch\s*\(|\.src\s*=)\s*["'`]((?:https?:)?//[^"'`]+)"""
    r"""|["'`]((?:https?:)?//[^"'`\s]+\.(?:m?js|css|wasm))["'`]"""
)
LOADING_RELS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}


def check_html(out: Path) -> list[str]:
    """Problems of a rendered book: broken internal links, images without alt text, anything loaded from another host."""
    out = Path(out).resolve()
    pages = {path: BeautifulSoup(path.read_text(), "html.parser") for path in _pages(out)}
    anchors = {path: {tag.get("id") or tag.get("name") for tag in page.select("[id], a[name]")} for path, page in pages.items()}
    problems = [f"{path.relative_to(out)}: {problem}" for path, page in pages.items() for problem in _page_problems(path, page, anchors)]
    for path in sorted(out.rglob("*.css")):
        problems += [f"{path.relative_to(out)}: loads {url}" for url in REMOTE_CSS.findall(path.read_text())]
    for path in sorted([*out.rglob("*.js"), *out.rglob("*.mjs")]):
        if "mathjax" not in path.parts:  # it names what it would load in browsers that know no XPath, of which there are none left
            problems += [f"{path.relative_to(out)}: loads {a or b}" for a, b in REMOTE_JS.findall(path.read_text(errors="replace"))]
    return problems


def links_out(out: Path) -> dict[str, list[str]]:
    """Addresses outside the book that its pages link to, each with the pages that do. A reader may follow them; no page needs them."""
    found: dict[str, set[str]] = {}
    for path in _pages(out):
        for link in BeautifulSoup(path.read_text(), "html.parser", parse_only=SoupStrainer("a", href=True)).find_all("a"):
            if REMOTE.match(link["href"]):
                found.setdefault(link["href"], set()).add(path.relative_to(out).as_posix())
    return {url: sorted(pages) for url, pages in sorted(found.items())}


def _pages(out: Path) -> list[Path]:
    return [path for path in sorted(out.rglob("*.html")) if "_static" not in path.parts]


def _page_problems(path: Path, page: BeautifulSoup, anchors: dict[Path, set[str]]) -> Iterator[str]:
    for img in page.find_all("img"):
        alt, decorative = img.get("alt"), img.get("role") in ("presentation", "none") or img.get("aria-hidden") == "true"
        if alt is None or (not alt.strip() and not decorative) or (alt and alt == img.get("src")):  # Sphinx's default is the path
            yield f"image without alt text: {img.get('src', '')[:80]}"
    for tag, url in _urls(page):
        if not REMOTE.match(url):
            if complaint := _broken(path, url, anchors):
                yield f"{complaint}: <{tag.name}> {url}"
        elif tag.name not in ("a", "area") and (tag.name != "link" or LOADING_RELS & set(tag.get("rel", []))):
            yield f"loads {url}: <{tag.name}>"
    styles = [tag.get_text() for tag in page.find_all("style")] + [tag["style"] for tag in page.select("[style]")]
    scripts = [tag.get_text() for tag in page.find_all("script", src=False)]
    yield from (f"loads {url}: style" for text in styles for url in REMOTE_CSS.findall(text))
    yield from (f"loads {a or b}: script" for text in scripts for a, b in REMOTE_JS.findall(text))


def _urls(page: BeautifulSoup) -> Iterator[tuple[Tag, str]]:
    """Every address that an attribute of the page names, with its tag."""
    for tag in page.find_all(True):
        yield from ((tag, tag[key]) for key in ("href", "xlink:href", "src", "poster", "data", "action", "formaction") if tag.get(key))
        yield from ((tag, part.split()[0]) for part in tag.get("srcset", "").split(",") if part.strip())


def _broken(path: Path, url: str, anchors: dict[Path, set[str]]) -> str | None:
    """What is wrong with a link to a place inside the book, if anything."""
    parts = urlsplit(url)
    if parts.scheme:  # mailto:, data:, javascript:
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if not target.exists():
        return "broken link"
    if parts.fragment and target in anchors and unquote(parts.fragment) not in anchors[target]:
        return "broken anchor"
    return None
