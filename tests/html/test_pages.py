"""What the book's other pages hold: the landing page's figure, the library's docstrings, downloads, numbers, buttons, links out."""

import csv
import io
import json
import pkgutil
import re
import shutil
from importlib.metadata import version

import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from matplotlib.image import imread

import kdlib
from kdlib.book import ROOT, BookError, claims, landing, reference, render, sheet, text
from kdlib.book import results as results_file
from kdlib.book.chapters import contents
from kdlib.book.command import main
from kdlib.book.results import EFFECT, PROVENANCE, RECORD, Results

SLUG = "domain-adaptation"
RESULTS = ROOT / "book" / "results" / f"{SLUG}.json"
REPOSITORY = "https://github.com/someone/somewhere"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of one chapter with results, and what the command said."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "run" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "book" / "chapters" / f"{SLUG}.ipynb", folder / "run")
    shutil.copy(RESULTS, folder / "run" / "results")
    with pytest.MonkeyPatch.context() as patch:
        said = io.StringIO()
        patch.setattr("sys.stdout", said)
        assert main(["book", "--from", str(folder / "run"), "--out", str(folder / "html")]) == 0
    return folder / "html", said.getvalue()


@pytest.fixture(scope="module")
def with_repository(tmp_path_factory):
    """A book whose configuration names a repository, of one chapter without results."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "run").mkdir()
    shutil.copy(ROOT / "book" / "chapters" / f"{SLUG}.ipynb", folder / "run")
    commented = (ROOT / "_config.yml").read_text()
    config = re.sub(r"^# (repository:|  (?:url|branch|path_to_book): )", r"\1", commented, flags=re.MULTILINE).replace("https://github.com/OWNER/NAME", REPOSITORY)
    (folder / "config.yml").write_text(config)
    return render.render(folder / "run", folder / "html", folder / "config.yml")


def page(book, name):
    return BeautifulSoup((book / f"{name}.html").read_text(), "html.parser")


# the landing page

def test_landing_page_draws_the_results_that_the_folder_holds(book):
    found = page(book[0], "intro")
    [figure] = found.article.find_all("figure")
    only = {SLUG: results_file.read(RESULTS)}
    assert figure["id"] == "fig-found" and figure.img["alt"].startswith(landing.title(landing.rows(only), only)) and "Fig. 1" in figure.figcaption.get_text()
    picture = imread(book[0] / figure.img["src"])
    assert picture.shape[1] > 2 * 700 and len(np.unique(picture.reshape(-1, 4), axis=0)) > 50  # sharp on a 2x screen, and drawn
    twin, control = found.article.find_all("table")
    results = only[SLUG]
    for table, reference in (twin, "Ind"), (control, "{}*"):
        rows = [[cell.get_text(strip=True).replace(" [", "\N{NO-BREAK SPACE}[") for cell in row.find_all("td")] for row in table.find_all("tr")[1:]]
        assert [row[:2] for row in rows] == [["knows more of what only its teacher saw", where] for where in ("coloured digits", "digits over photographs")]
        for (_, _, *cells), domain in zip(rows, ("color", "M")):
            assert cells == [text.points(results.find(measure="accuracy", domain=domain, method=m, reference=reference.format(m))) for m in landing.METHODS if not claims.variant(m, results)]


def test_landing_page_without_results_says_so_and_has_no_figure(with_repository):
    found = page(with_repository, "intro")
    assert not found.article.find("figure") and landing.NOTHING.split(".")[0] in found.article.get_text()
    assert "Edition of" not in found.article.get_text() + page(with_repository, "colophon").article.get_text()


def published():
    return {slug: results_file.read(ROOT / "book" / "results" / f"{slug}.json") for slug in contents()
            if (ROOT / "book" / "results" / f"{slug}.json").exists()}


def test_every_published_property_is_a_row_and_the_title_counts_them():
    found = published()
    shown = landing.rows(found)
    assert [of.chapter for of in landing.PROPERTIES] == [slug for slug in contents() if any(c.chapter == slug for c in claims.CLAIMS)]
    assert {row.of for row in shown} == set(landing.PROPERTIES)
    for method in landing.METHODS:
        lows = {of: [row.twin[method]["low"] for row in shown if row.of == of and method in row.twin] for of in landing.PROPERTIES}
        assert {of.chapter for of in lows if not lows[of]} == {slug for slug in found if claims.variant(method, found[slug])} & {of.chapter for of in lows}
        tried = [min(low) > 0 for low in lows.values() if low]
        which, of = landing.handed_on(shown, method, "twin")
        assert (len(which), of) == (sum(tried), len(tried))
        assert bool(re.search(rf"{sum(tried) or 'none'} of {len(tried)}( properties)? by {method}", landing.title(shown, found))) == bool(tried)


def test_a_variant_of_crd_is_named_and_not_counted():
    found = {SLUG: made(GAINS)}
    assert "CRD is a variant" not in landing.page(landing.rows(found), found, "generated")
    found[SLUG].provenance["parameters"]["crd_positive"] = "current"
    every = landing.rows(found)
    said = landing.page(every, found, "generated")
    assert landing.title(every, found) == "Students take over 1 of 1 properties by KL, none of 1 by Hint"
    assert f"**CRD is a variant** in {{doc}}`chapters/{SLUG}`" in said and "| a student … | where | KL | Hint |" in said
    assert [v["verdict"] for v in claims.verdicts(SLUG, found[SLUG]) if v["claim"].method == "CRD"] == ["not tested (a variant of CRD)"]
    assert shaded(found) == [1, 0]


def made(effects, seeds=3, pairs=("A->B",), source="mnist"):
    """Results of the chapter on digits: {(method, domain): gain}, Ind at one half, T*'s students in the middle."""
    results = Results(SLUG, dict.fromkeys(PROVENANCE) | {"parameters": {"source": source, "patches": "bsds500", "limit": 0, "crd_positive": "bank"}, "seeds": [0, 1, 2],
                                                         "profile": "real", "device": "a CPU", "start": "2026-02-03T23:00:00+00:00"})
    spread = 0.01 * (np.arange(seeds) - (seeds - 1) / 2)
    for n, pair in enumerate(pairs):
        for (method, domain), gain in effects.items():
            for reference, share in ("Ind", 0.5), (f"{method}*", 0.5 + gain / 2):
                results.effect(0.5 + gain + spread + 0.1 * n, np.full(seeds, share), pair=pair, domain=domain, method=method, against=reference, measure="accuracy")
    return results


GAINS = {("KL", "color"): 0.3, ("KL", "M"): 0.2, ("Hint", "color"): 0.3, ("Hint", "M"): 0.0, ("CRD", "color"): -0.2, ("CRD", "M"): 0.001}


def test_a_property_is_handed_on_where_every_setting_is_clear_of_zero():
    found = {SLUG: made(GAINS)}
    shown = landing.rows(found)
    assert [(row.domain, list(row.twin)) for row in shown] == [("color", list(landing.METHODS)), ("M", list(landing.METHODS))]
    assert landing.title(shown, found) == "Students take over 1 of 1 properties by KL, none of 1 by Hint, none of 1 by CRD"
    says = landing.PROPERTIES[4].says
    assert f"independent twins**: *KL* {says}; *Hint* no property in all of its settings; *CRD* no property in all of its settings." in landing.page(shown, found, "generated")
    assert f"of T\\***: *KL* {says}; *Hint* no property in all of its settings" in landing.page(shown, found, "generated")
    for effect in found[SLUG].effects:  # a gain that the control has, too
        if effect["reference"] == "KL*":
            effect["low"] = -0.1
    assert "of T\\***: *KL* no property in all of its settings" in landing.page(landing.rows(found), found, "generated")


def test_what_students_have_from_their_very_own_teacher_is_said_where_it_was_asked():
    found = {SLUG: made(GAINS)}
    assert "trained like its own" not in landing.page(landing.rows(found), found, "generated")
    rng = np.random.default_rng(0)
    [(_, measure), *_] = landing.OWN
    for method, own in ("KL", 0.1), ("Hint", 0.0), ("KL*", 0.1):
        for domain, share in ("orig", own), ("color", own), ("M", 0.0):
            found[SLUG].own_teacher(0.5 + rng.normal(0, 0.3, (4, 1)) + share * np.eye(4) + rng.normal(0, 0.003, (4, 4)), pair="A->B", domain=domain,
                                    method=method, measure=measure)
    said = re.sub(r" \+[\d.]+\N{NO-BREAK SPACE}\[.*?\]", " …", landing.page(landing.rows(found), found, "generated"))
    assert "(asked on digits, where each seed has a teacher): repeats its teacher's errors (KL on plain digits … and coloured digits …) (in points; after Holm's correction over 6 such intervals). Of" in said
    assert "Of 3 such intervals of students that never met that teacher, which should hold zero, 2 exclude it, each by itself; one in twenty would by chance." in said
    asked = [row for row in found[SLUG].effects if row["measure"] == measure and row["method"] == "KL"]
    p = [row["p"] for row in asked]
    for row in asked:  # clear by itself, and not among six
        row["p"] = 0.02
    assert "nothing; not shown: repeats its teacher's errors (in points; after" in landing.page(landing.rows(found), found, "generated")
    for row, was in zip(asked, p):
        row["p"] = was
    found[SLUG].effects = [row for row in found[SLUG].effects if row["method"] != "KL" or row["measure"] != measure]
    assert "nothing; not shown: repeats its teacher's errors (in points; after Holm's correction over 3 such intervals). Of" in landing.page(landing.rows(found), found, "generated")
    published_ = published()
    assert all(published_[slug].matching(measure=name) for slug, name in landing.OWN), "the chapters' own words for these measures"


@pytest.mark.parametrize("seeds, profile, said", [(2, "real", "Too few seeds for a finding"), (3, "smoke", "A trial run (profile smoke), which finds nothing")])
def test_what_is_no_finding_is_not_called_one(seeds, profile, said):
    found = {SLUG: made(GAINS, seeds=seeds)}
    found[SLUG].provenance["profile"] = profile
    shown = landing.rows(found)
    assert landing.title(shown, found) == said
    assert "take over 1" not in landing.page(shown, found, "generated")


def test_all_pairs_are_drawn_with_their_intervals_the_first_large_and_all_must_agree():
    found = {SLUG: made(GAINS, pairs=("residual-2x1->plain-1x1", "C->D"))}
    every = landing.rows(found)
    said = landing.page(every, found, "generated")
    assert [(row.domain, row.pair) for row in every] == [(d, p) for d in ("color", "M") for p in ("residual-2x1->plain-1x1", "C->D")]
    assert "the first drawn\nlarge" in said and "above\nzero" in said and said.count("residual\N{NO-BREAK SPACE}→ plain") == 5, "in two tables of two rows, and in full below"
    assert f"| coloured digits, C\N{NO-BREAK SPACE}→ D | {text.points(every[1].twin['KL'])} |".replace("\N{NO-BREAK SPACE}[", " [") in said
    alone = {SLUG: made(GAINS)}
    assert "drawn\nlarge" not in landing.page(landing.rows(alone), alone, "generated")
    assert landing.title(every, found).startswith("In every pair that a claim is about, students take over 1 of 1 properties by KL, none of 1 by Hint")
    figure = landing.draw(every, found)
    axis, style = figure.axes[0], landing.figures.marker("KL")
    marks = [(float(line.get_xdata()[0]), line.get_markersize()) for line in axis.lines if line.get_marker() == "s" and line.get_markerfacecolor() == style["color"]]
    bars = [[float(x) for x in line.get_xdata()] for line in axis.lines if line.get_color() == style["color"] and len(line.get_xdata()) == 2]
    words = [label.get_text() for label in axis.get_yticklabels()]
    landing.plt.close("all")
    assert [x for x, _ in marks] == pytest.approx([row.twin["KL"]["effect"] for row in every])
    assert [size for _, size in marks] == [6, 4.2, 6, 4.2]
    for row in every:
        for effect in row.twin["KL"], row.control["KL"]:
            assert pytest.approx([effect["low"], effect["high"]]) in bars
    assert words[1:3] == ["coloured digits: residual\N{NO-BREAK SPACE}→ plain", "C\N{NO-BREAK SPACE}→ D"]
    for effect in found[SLUG].effects:
        if (effect["pair"], effect["method"], effect["domain"]) == ("C->D", "KL", "M"):
            effect["low"] = -0.1
    assert "take over none of 1 properties by KL" in landing.title(landing.rows(found), found), "one pair is not clear of zero"


def shaded(found):
    figure = landing.draw(landing.rows(found), found)
    landing.plt.close("all")
    return [sum(isinstance(patch, landing.Patch) for patch in axis.patches) for axis in figure.axes]


def test_what_counts_as_taken_over_is_shaded():
    assert shaded({SLUG: made(GAINS)}) == [1, 0, 0] and shaded({SLUG: made(GAINS, seeds=2)}) == [0, 0, 0]
    trial = {SLUG: made(GAINS)}
    trial[SLUG].provenance["profile"] = "smoke"
    assert shaded(trial) == [0, 0, 0]


def test_stand_in_data_are_said_to_earn_no_verdict():
    for source, said in ("mnist", False), ("embedded", True):
        found = {SLUG: made(GAINS, source=source)}
        assert ("No verdict" in landing.page(landing.rows(found), found, "generated")) == said == ("replicated" not in landing.page(landing.rows(found), found, "generated"))


def test_verdicts_are_counted_and_how_many_stand_after_correction():
    found = {SLUG: made(GAINS)}
    assert "tests 3: 1 replicated, 1 partly and 1 not replicated." in (said := landing.page(landing.rows(found), found, "generated"))
    assert "the claims of its chapter, 1 of the 1 replicated or supported claim of a difference stands in every setting." in said
    for row in found[SLUG].matching(method="KL", reference="Ind", domain="M"):  # clear by itself, and not among six
        row["p"] = 0.04
    said = landing.page(landing.rows(found), found, "generated")
    assert "1 replicated, 1 partly" in said and "0 of the 1 replicated or supported claim of a difference stand in every setting (not: KL: " in said


def test_an_interval_beyond_the_panel_ends_in_an_arrow():
    narrow, wide = made(GAINS), made(GAINS)
    next(e for e in wide.effects if e["reference"] == "Ind")["high"] = 3.0
    drawn = [sum(line.get_marker() == ">" for axis in landing.draw(landing.rows({SLUG: r}), {SLUG: r}).axes for line in axis.lines) for r in (narrow, wide)]
    landing.plt.close("all")
    assert drawn == [0, 1]


def test_the_edition_is_the_day_of_the_newest_results():
    older, newer = made({}), made({})
    newer.provenance["start"] = "2026-11-25T08:57:34+00:00"
    assert landing.edition({"a": newer, "b": older}).startswith("Edition of 25 November 2026,") and landing.edition({"b": older}).startswith("Edition of 3 February")
    assert landing.edition({}) == ""


def test_results_that_cannot_be_read_stop_the_rendering(tmp_path):
    shutil.copy(ROOT / "book" / "chapters" / f"{SLUG}.ipynb", tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{SLUG}.json").write_text("{}")
    with pytest.raises(BookError, match="not a results file"):
        render.render(tmp_path, tmp_path / "html")


# prose pages

def test_the_citation_is_that_of_the_citation_file(book):
    shown = page(book[0], "colophon").article.get_text()
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["version"] == version("kdlib") and f"version = {{{cff['version']}}}" in shown
    for part in f"title   = {{{cff['title']}}}", f"year    = {{{cff['date-released'].year}}}", "author  = {{The kdlib authors}}", "@inproceedings{ojha2023,", "Yong Jae}":
        assert part in shown
    assert shown.count("{") == shown.count("}")


def test_the_glossary_is_in_order_and_its_terms_are_linked_to(book):
    terms = [term.find(string=True) for term in page(book[0], "glossary").select("dl.glossary dt")]
    assert len(terms) > 20 and terms == sorted(terms, key=str.casefold)
    assert len(page(book[0], "intro").select('a[href^="glossary.html#term-"]')) > 3


def test_the_contact_sheet_shows_every_domain_and_class_sharply(book):
    suite, found = sheet.SUITE, page(book[0], "reproduce")
    figure = found.find("figure", id="fig-scenes")
    picture = imread(book[0] / figure.img["src"])[..., :3]
    assert (book[0] / figure.img["src"]).stat().st_size < 300_000 and picture.shape[1] == 2 * int(figure.img["style"].split("width: ")[1].split("px")[0])
    shown = sheet.columns(suite)
    assert tuple(shown) == tuple(sheet.CUES) == (*suite.domains, sheet.MASK) and all(name in figure.img["alt"] for name in (*shown, *suite.names))
    assert all(f"{name}: " in found.article.get_text() for name in shown) and f"{100 * suite.texture:g} % of the scenes" in figure.figcaption.get_text()
    for column, domain in enumerate(suite.domains):
        images, labels = suite.test(domain, "cpu")
        assert labels.tolist() == list(range(suite.classes))
        for row, first in enumerate(images.permute(0, 2, 3, 1).numpy()):
            top, left = (start + k * (sheet.ENLARGED * suite.size + sheet.GAP) for start, k in ((sheet.HEAD, row), (sheet.LABEL, column)))
            large = picture[top:top + sheet.ENLARGED * suite.size, left:left + sheet.ENLARGED * suite.size]
            for k in 0, sheet.ENLARGED - 1:  # the corners of the squares: none runs into its neighbour
                assert np.abs(large[k::sheet.ENLARGED, k::sheet.ENLARGED] - first).max() < 1 / 255


# the library

def test_every_module_of_the_library_is_explained(book):
    modules = {m.name for m in pkgutil.walk_packages(kdlib.__path__, "kdlib.") if not m.name.startswith("kdlib.book")} - {"kdlib.probes", "kdlib.__main__"}
    headings = {h.find(string=True) for path in (book[0] / "api").glob("*.html") for h in page(book[0], f"api/{path.stem}").article.find_all("h2")}
    assert modules == headings  # a module without a page: add it under book/api/


def test_a_docstring_keeps_its_formulas_and_links(book):
    losses = page(book[0], "api/losses")
    kl = losses.find(id="kdlib.losses.kl")
    assert "student_logits: Tensor" in kl.get_text() and "tau: float" in kl.get_text()
    formula = kl.find_parent("dl").find("pre").get_text()
    assert "divergence:     tau^2 * mean_batch sum_classes p (log p - log q)     zero where p = q\n" in formula
    hint = losses.find(id="kdlib.losses.hint").find_parent("dl")
    assert hint.find("a", href="#kdlib.distill.Regressor") and "1/2 ||f_t - r(f_s)||^2" in hint.find("pre").get_text()
    assert not re.search(r"\S\*\*\S|``|\\[*|_]", " ".join(p.get_text() for p in losses.article.find_all("p")))


BLOCK = ".. code-block:: none"


@pytest.mark.parametrize("plain, restructured", [
    (["x_ is |a * b|, see `tau` and `kdlib.losses.kl`."], [r"x\_ is \|a \* b\|, see ``tau`` and :py:obj:`kdlib.losses.kl`."]),
    (["Formula:", "", "    a  =  b_", "", "and so on."], ["Formula:", BLOCK, "    a  =  b_", "and so on."]),
    (["One of", "    this", "    that"], ["One of", BLOCK, "    this", "    that"]),
    (["a    first", "bcd  second"], [BLOCK, "    a    first", "    bcd  second"]),
    (["- an item", "  goes on"], ["- an item", "  goes on"]),
    (["`kdlib.nothing.here`"], ["``kdlib.nothing.here``"]),
])
def test_plain_docstrings_become_restructured_text(plain, restructured):
    assert list(filter(None, reference.restructured(plain))) == restructured


# downloads and tables

def test_a_chapter_offers_its_notebook_its_results_and_their_tables(book):
    links = {link.get_text(): book[0] / "chapters" / link["href"] for link in page(book[0], f"chapters/{SLUG}").select("a.download")}
    assert list(links) == [f"{SLUG}.json", f"{SLUG}-records.csv", f"{SLUG}-effects.csv", f"{SLUG}.ipynb"]
    results = json.loads(links[f"{SLUG}.json"].read_text())
    assert links[f"{SLUG}.json"].read_bytes() == RESULTS.read_bytes()
    assert links[f"{SLUG}.ipynb"].read_bytes() == (ROOT / "book" / "chapters" / f"{SLUG}.ipynb").read_bytes()
    for part, columns in ("records", RECORD), ("effects", EFFECT):
        with links[f"{SLUG}-{part}.csv"].open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert tuple(rows[0]) == columns and len(rows) == len(results[part]) > 100
        for row, source in zip(rows, results[part]):
            assert json.loads(row.pop("condition")) == source.pop("condition")
            assert row == {name: "" if value is None else str(value) for name, value in source.items()}
    described = " ".join(code.get_text() for code in page(book[0], "reproduce").select("#table-records td code, #table-effects td code"))
    assert set(RECORD) | set(EFFECT) <= set(described.split())


def test_a_chapter_without_results_offers_its_notebook(with_repository):
    assert [link.get_text() for link in page(with_repository, f"chapters/{SLUG}").select("a.download")] == [f"{SLUG}.ipynb"]


def test_tables_are_numbered_like_figures(book):
    chapter, number = page(book[0], f"chapters/{SLUG}"), 1 + contents().index(SLUG)
    tables = chapter.select("div.kdlib-table")
    assert len(tables) > 3
    for n, table in enumerate(tables, 1):
        label = f"Table {number}.{n} "
        assert table["id"] == f"table-{n}"
        assert all(said.startswith(label) for said in (table.p.get_text(), table.caption.get_text(), table.div["aria-label"]))
    assert re.match(r"Table \d+ Flags", page(book[0], "statistics").find(id="table-flags").caption.get_text())


def test_an_interval_in_a_table_breaks_before_its_bracket_only(book):
    cells = " | ".join(cell.get_text() for cell in page(book[0], f"chapters/{SLUG}").select(".kdlib-table td"))
    intervals = re.findall(r"(.)\[([+−][^]]*)\]", cells)
    assert len(intervals) > 20 and all(before == " " and " " not in inside for before, inside in intervals)
    cell = "<td>+1.0\N{NO-BREAK SPACE}[−1.0,\N{NO-BREAK SPACE}+3.0]</td>"
    around = "<p>1\N{NO-BREAK SPACE}[2]</p>"
    assert text.breakable(around + cell) == around + cell.replace("\N{NO-BREAK SPACE}[", " [")


def test_only_tables_of_the_book_are_numbered():
    page = text.table(["a", "b"], [["x", "1"]], "About <x> & y").data
    assert text.numbered(f"<table><caption>t</caption></table>{page}{page}", 3, iter((5, 6))).count("Table 3.") == 6
    assert text.numbered("<table></table>", 3, iter(())) == "<table></table>"


# buttons and links

def test_no_buttons_without_a_repository(book):
    found = page(book[0], f"chapters/{SLUG}")
    assert not found.select(".dropdown-launch-buttons, .dropdown-source-buttons, .btn-source-repository-button") and "mybinder" not in str(found)


def test_a_repository_brings_its_buttons(with_repository):
    links = [a["href"] for a in page(with_repository, f"chapters/{SLUG}").select(".article-header-buttons a")]
    assert REPOSITORY in links and any(link.startswith(f"{REPOSITORY}/issues") for link in links)
    assert f"https://mybinder.org/v2/gh/someone/somewhere/main?urlpath=lab/tree/book/chapters/{SLUG}.ipynb" in links
    assert not any("mybinder" in a["href"] for a in page(with_repository, "statistics").select("a"))
    assert render.check_html(with_repository) == []


def test_links_out_of_the_book_are_listed(book, with_repository):
    lines = dict(line.split("\t") for line in (book[0] / render.LINKS).read_text().splitlines())
    assert lines["https://jobqueue.dask.org"] == "reproduce.html" and "colophon.html" in lines["https://creativecommons.org/licenses/by/4.0/"]
    assert f"links to {len(lines)} addresses outside stand in {render.LINKS}" in book[1]
    assert not any("someone" in url for url in lines) and REPOSITORY in (with_repository / render.LINKS).read_text()
