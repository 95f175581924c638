"""The parts of the prose pages that are computed: the landing page's figure of the headline effects with what they say and rest on,
the edition's date, the citation."""

import datetime
import re
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import yaml
from matplotlib.figure import Figure

from kdlib.book import ROOT, figures
from kdlib.book.chapters import sources
from kdlib.book.claims import CLAIMS, Claim
from kdlib.book.headline import against_control, basis, judge
from kdlib.book.results import Results
from kdlib.book.text import count, gains, listed, points

METHODS = ("KL", "Hint", "CRD")
WORDS = {"orig": "plain digits (both saw them)", "color": "coloured digits", "M": "digits over photographs"}
NOTHING = "This copy of the book holds no results yet. The commands at the end of this page make some.\n"


def citation(root: Path = ROOT) -> str:
    """BibTeX of the book, as CITATION.cff has it, and of the paper."""
    cff = yaml.safe_load((root / "CITATION.cff").read_text())
    authors = " and ".join(f"{{{a['name']}}}" if "name" in a else f"{a['family-names']}, {a['given-names']}" for a in cff["authors"])
    fields = {"title": cff["title"], "author": authors, "year": str(cff["date-released"])[:4], "version": cff["version"],
              "url": cff.get("repository-code")}
    own = "".join(f"  {name:<8}= {{{value}}},\n" for name, value in fields.items() if value)
    paper = re.search(r"@\w+\{ojha2023,.*?^\}\n", (root / "book" / "references.bib").read_text(), re.DOTALL | re.MULTILINE)
    return f"```bibtex\n@software{{kdlib,\n{own}}}\n\n{paper[0]}```\n"


class Property(NamedTuple):
    """One property on the landing page: where it is measured, and in words that follow "a student"."""

    chapter: str
    measure: str
    says: str


PROPERTIES = (
    Property("localization", "share nearer", "looks where its teacher looks"),
    Property("adversarial", "fooled", "is fooled by what fools its teacher"),
    Property("invariance", "agreement", "keeps its answer when colours change"),
    Property("unseen-domains", "consensus", "answers like its teacher on unfamiliar pictures"),
    Property("domain-adaptation", "accuracy", "knows what only its teacher saw"),
    Property("decision-boundary", "boundary agreement", "draws its boundary where its teacher does"),
)


class Row(NamedTuple):
    """A property in one setting: effects against the independent twin and against the control (T*'s student), by method."""

    of: Property
    domain: str
    pair: str
    twin: dict[str, dict]
    control: dict[str, dict]


def place(found: dict[str, Results], folder: Path) -> None:
    """Write found.md, and found.png where there is something to draw, into a folder of the book's source."""
    folder.mkdir(exist_ok=True)
    shown = rows(found)
    if shown:
        with plt.rc_context():
            figures.use_style()
            figure = draw(shown, title(shown, found))
            figure.savefig(folder / "found.png", dpi=200, metadata={"Software": None})
            plt.close(figure)
    (folder / "found.md").write_text(page(shown, found, folder.name) if shown else NOTHING)
    (folder / "edition.md").write_text(edition(found))
    (folder / "citation.md").write_text(citation())


def edition(found: dict[str, Results]) -> str:
    """'Edition of 25 November 2026.', the day on which the newest of the results was computed; nothing where there are none."""
    starts = [results.provenance["start"] for results in found.values() if results.provenance["start"]]
    if not starts:
        return ""
    day = max(map(datetime.datetime.fromisoformat, starts))
    return f"Edition of {day.day} {day:%B %Y}, the day of its newest results.\n"


def rows(found: dict[str, Results]) -> list[Row]:
    """A row for each property, pair of networks and setting that the paper makes a claim about."""
    made = []
    for of in PROPERTIES:
        settings: dict[tuple, Row] = {}
        for claim, effect in _effects(of, found):
            row = settings.setdefault((effect["pair"], effect["domain"]), Row(of, effect["domain"], effect["pair"], {}, {}))
            if claim.method not in row.twin:
                row.twin[claim.method] = effect
                if control := against_control(claim, effect, found[of.chapter]):
                    row.control[claim.method] = control
        made += settings.values()
    return made


def of_first_pair(every: list[Row]) -> list[Row]:
    """The rows of the first pair that a property was measured on: those that are drawn large, and written down."""
    first = {row.of: row.pair for row in reversed(every)}
    return [row for row in every if row.pair == first[row.of]]


def _effects(of: Property, found: dict[str, Results]) -> Iterator[tuple[Claim, dict]]:
    """The claims about a property, each with its effects against independent students."""
    for claim in CLAIMS if of.chapter in found else ():
        if (claim.chapter, claim.measure) == (of.chapter, of.measure) and claim.method in METHODS and claim.reference in ("Ind", "Ind2"):
            if judgement := judge(claim, found[of.chapter]):
                yield from ((claim, effect) for effect in judgement["rows"].values() if effect["effect"] is not None)


def handed_on(every: list[Row], method: str, *panels: str) -> tuple[list[Property], int]:
    """The properties whose interval lies above zero in every pair and setting, in each of these panels ("twin", "control"); and the number
    of those that have effects there."""
    tried: dict[Property, list[bool]] = {}
    for row in every:
        for panel in panels:
            if method in (effects := getattr(row, panel)):
                tried.setdefault(row.of, []).append(gains(effects[method]))
    if "control" in panels:
        tried = {of: clear for of, clear in tried.items() if any(row.of == of and method in row.control for row in every)}
    return [of for of, clear in tried.items() if all(clear)], len(tried)


def tally(every: list[Row]) -> str:
    """'Students take over 4 of 6 properties by KL, 4 of 6 by Hint, none of 6 by CRD', and whether that is said of several pairs."""
    counts = {m: handed_on(every, m, "twin") for m in METHODS}
    parts = [f"{len(which) or 'none'} of {of}{' properties' if m == METHODS[0] else ''} by {m}" for m, (which, of) in counts.items() if of]
    if not parts:
        return ""
    return ("In every pair tested, students take over " if len(of_first_pair(every)) < len(every) else "Students take over ") + ", ".join(parts)


def _which(every: list[Row], *panels: str) -> str:
    """'KL: is fooled by what fools its teacher, ...; Hint: ...; CRD: none shown'."""
    found = {m: handed_on(every, m, *panels) for m in METHODS}
    return "; ".join(f"*{m}* " + ("none shown" if not which else ", ".join(of.says for of in which)) for m, (which, of) in found.items() if of)


def title(every: list[Row], found: dict[str, Results]) -> str:
    """The finding in words, or why there is none."""
    return _nothing(every, found) or tally(every)


def _nothing(shown: list[Row], found: dict[str, Results]) -> str:
    if any(found[row.of.chapter].provenance["profile"] == "smoke" for row in shown):
        return "A trial run (profile smoke), which finds nothing"
    return "Too few seeds for a finding" if all(effect["low"] is None for row in shown for effect in row.twin.values()) else ""


def draw(every: list[Row], title: str) -> Figure:
    """A row for each setting, in it a marker a method with its 95 % interval; the second panel is against T*'s students. Small hollow
    markers: the other pairs of networks."""
    shown = of_first_pair(every)
    labels, places, height = _labels(shown)
    panels = {"twin": "A student minus its\nindependent twin", "control": "A student minus its\ntwin of teacher T*"}
    panels = {panel: heading for panel, heading in panels.items() if any(getattr(row, panel) for row in shown)}
    values = [effect["effect"] for row in every for panel in panels for effect in getattr(row, panel).values()]
    low, high = min(0, *values) - 0.12, max(0, *values) + 0.12
    figure, axes = plt.subplots(1, len(panels), figsize=(figures.WIDTH, 1.7 + 0.37 * height), sharex=True, sharey=True, squeeze=False)
    for axis, (panel, heading) in zip(axes[0], panels.items()):
        axis.axvline(0, color="black", linewidth=1)
        for line, row in zip(places, shown):
            for k, method in enumerate(METHODS):
                if method in (effects := getattr(row, panel)):
                    _interval(axis, line + 0.25 * (k - 1), effects[method], figures.marker(method, 6), low, high)
                others = [getattr(other, panel).get(method) for other in every if (other.of, other.domain) == (row.of, row.domain) and other.pair != row.pair]
                axis.plot([o["effect"] for o in others if o], [line + 0.25 * (k - 1)] * sum(map(bool, others)),
                          **figures.marker(method, 3.5) | {"markerfacecolor": "white", "markeredgewidth": 1})
        axis.set_title(heading)
        axis.set(xlabel="difference, points", xlim=(low, high), ylim=(height, -0.1))
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_formatter(figures.points)
    axes[0][0].set_yticks([place for place, *_ in labels], [words for _, words, _ in labels])
    for label, (*_, weight) in zip(axes[0][0].get_yticklabels(), labels):
        label.set_fontweight(weight)
    figure.legend([plt.Line2D([], [], **figures.marker(m, 6)) for m in METHODS], METHODS, loc="outside lower center", ncols=len(METHODS))
    figure.suptitle(textwrap.fill(title, 66))
    return figure


def _labels(shown: list[Row]) -> tuple[list[tuple[float, str, str]], list[float], float]:
    """The words on the left, each with its place and weight: a property's in bold, above its settings where there are several. Then each
    row's place, and the height of all, counted in rows."""
    labels, places, top = [], [], 0.0
    for of, group in groupby(shown, lambda row: row.of):
        settings = list(group)
        if len(settings) > 1:
            words = _wrapped(f"{of.says}:")
            tall = 0.5 * (words.count("\n") + 1)
            labels.append((top + tall / 2, words, "bold"))
            top += tall
        for row in settings:
            places.append(top + 0.5)
            labels.append((top + 0.5, _wrapped(_setting(row)), "normal") if len(settings) > 1 else (top + 0.5, _wrapped(of.says), "bold"))
            top += 1
        top += 0.2
    return labels, places, top


def _setting(row: Row) -> str:
    return WORDS.get(row.domain, row.domain)


def _wrapped(text: str) -> str:
    """On as few lines of at most 30 characters as will do, of much the same length."""
    lines = len(textwrap.wrap(text, 30))
    return next(wrapped for width in range(len(text) // lines, 31) if (wrapped := textwrap.fill(text, width)).count("\n") < lines)


def _interval(axis, line: float, effect: dict, style: dict, low: float, high: float) -> None:
    """An effect with its interval; an arrow where the interval goes on beyond the panel."""
    if effect["low"] is not None:
        axis.plot([max(effect["low"], low), min(effect["high"], high)], [line, line], color=style["color"], linewidth=1.6, solid_capstyle="butt")
        for beyond, edge, arrow in (effect["low"] < low, low, "<"), (effect["high"] > high, high, ">"):
            if beyond:
                axis.plot(edge, line, arrow, color=style["color"], markersize=5, clip_on=False)
    axis.plot(effect["effect"], line, **style)


CAPTION = """\
What a distilled student takes over, in percentage points. Left: the student minus its independent twin (same initial weights, same
images, no teacher; where maps are compared, minus a second independent student). Right: minus the same student of T\\*, a teacher without
the property, or another one where every teacher has it. Bars are 95 % intervals over seeds and test items; an arrow means that the
interval goes on. {pairs}A property counts as taken over if the interval lies above zero in each of its settings{each}."""

ALT = """\
{title}. Two panels, differences in percentage points with 95 % intervals: a student minus its independent twin, and minus its twin of
teacher T*. {rows} Tables below hold every value."""


def page(every: list[Row], found: dict[str, Results], folder: str) -> str:
    """Markdown: the figure, what it says, and, folded, its numbers and what they rest on."""
    shown = of_first_pair(every)
    several = len(shown) < len(every)
    caption = CAPTION.format(pairs="Small hollow markers are further pairs of networks, whose intervals stand in the chapters. " if several else "",
                             each=", in every pair" if several else "")
    lines = [f":::{{figure}} {folder}/found.png", ":name: fig-found", ":width: 740px", f":alt: {_alt(every, found)}", "", caption, ":::", ""]
    if not _nothing(shown, found):
        lines.append(f"- **A student, more than its independent twin**: {_which(every, 'twin')}.")
        if against := _which(every, "twin", "control"):
            lines.append(f"- **And more than the same student of T\\***: {against}. That part is owed to this teacher, and not to being taught as such. "
                         "What is not shown need not be absent: where bars are wide, these runs cannot tell.")
    lines += [f"- {text}" for text in (_verdicts(found), _stand_in(found)) if text]
    lines += ["", "::::{dropdown} The numbers of this figure, and what they rest on", *_numbers(shown, "twin", "independent twin")]
    lines += _numbers(shown, "control", "twin of teacher T\\*") if any(row.control for row in shown) else []
    chapters, slugs = sources(), dict.fromkeys(row.of.chapter for row in shown)
    for slug in slugs:
        claims = [(c, judge(c, found[slug])) for c in CLAIMS if c.chapter == slug]
        lines.append(f"- {{doc}}`chapters/{slug}` " + basis(chapters[slug], claims, found[slug]).replace("->", "→"))
    if several:
        lines.append("\nWhere a chapter has several pairs of networks, the tables are of its first; the chapter shows all.")
    return "\n".join([*lines, "::::", ""])


def _numbers(shown: list[Row], panel: str, minus: str) -> list[str]:
    """One panel of the figure as a table."""
    lines = [f":::{{table}} A student minus its {minus}, in points, with 95 % intervals", f":name: table-found-{panel}", "",
             "| a student … | " + " | ".join(METHODS) + " |", "|---" * (1 + len(METHODS)) + "|"]
    for row in shown:
        where = f": {_setting(row)}" if sum(r.of == row.of for r in shown) > 1 else ""
        effects = getattr(row, panel)
        cells = [points(effects[m]).replace("\N{NO-BREAK SPACE}[", " [") if m in effects else "–" for m in METHODS]
        lines.append(f"| {row.of.says}{where} | " + " | ".join(cells) + " |")
    return [*lines, ":::", ""]


def _alt(every: list[Row], found: dict[str, Results]) -> str:
    shown = of_first_pair(every)
    effects = {m: [row.twin[m] for row in shown if m in row.twin] for m in METHODS}
    said = " ".join(f"{m} lies clear above the twin in {sum(map(gains, its))} of {count(len(its), 'row')}." for m, its in effects.items() if its)
    return " ".join(ALT.format(title=title(every, found), rows=said).split())


def _verdicts(found: dict[str, Results]) -> str:
    """'Of the paper's claims ..., 9 are replicated, 2 partly, ...'."""
    words = [judgement["verdict"] for claim in CLAIMS if claim.chapter in found and (judgement := judge(claim, found[claim.chapter]))]
    tested = [word for word in words if not word.startswith("not tested")]
    if not tested:
        return ""
    order = ("replicated", "supported", "partly", "not replicated", "not supported", "inconclusive")
    parts = [f"{tested.count(word)} {word}" for word in order if word in tested]
    return (f"**The paper's claims**, of which this edition tests {len(tested)}: {listed(parts, '')}. A verdict is computed from intervals and "
            "judges direction; {doc}`statistics` defines the words.")


def _stand_in(found: dict[str, Results]) -> str:
    """Which chapters rest on data that earn no verdict."""
    slugs = [slug for slug in found if any((j := judge(c, found[slug])) and j["verdict"].startswith("not tested") for c in CLAIMS if c.chapter == slug)]
    chapters = listed([f"{{doc}}`chapters/{slug}`" for slug in slugs], "")
    return f"**No verdict** can rest on drawn or stand-in data, as in {chapters}. They can show that a mechanism works, no more." if slugs else ""
