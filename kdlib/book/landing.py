"""The parts of the prose pages that are computed: the landing page's figure of the headline effects with what they say and rest on,
the edition's date, the citation."""

import datetime
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import yaml
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kdlib.book import ROOT, figures
from kdlib.book.chapters import sources
from kdlib.book.claims import CLAIMS, Claim, against_control, standing, variant, verdict, verdicts
from kdlib.book.headline import basis
from kdlib.book.results import Results
from kdlib.book.text import clear, count, gains, listed, pairs, points

METHODS = ("KL", "Hint", "CRD")
WORDS = {"orig": "plain digits (both saw them)", "color": "coloured digits", "M": "digits over photographs"}
HOLLOW = {"markerfacecolor": "white", "markeredgewidth": 1}
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
    Property("domain-adaptation", "accuracy", "knows more of what only its teacher saw"),
    Property("decision-boundary", "boundary agreement", "draws its boundary more like its teacher"),
)


OWN = {  # what a student can have from its very own teacher, where each seed has one
    ("domain-adaptation", "agreement, T wrong, own students minus other seeds'"): "repeats its teacher's errors",
    ("decision-boundary", "boundary agreement, own students minus other seeds'"): "draws its boundary more like its teacher",
}


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
            figure = draw(shown, found)
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
        domains = list(dict.fromkeys(domain for _, domain in settings))
        made += sorted(settings.values(), key=lambda row: domains.index(row.domain))
    return made


def _pairs(every: list[Row]) -> dict[Property, list[str]]:
    """The pairs that each property was measured on, in the order of its chapter."""
    found: dict[Property, dict[str, None]] = {}
    for row in every:
        found.setdefault(row.of, {})[row.pair] = None
    return {of: list(names) for of, names in found.items()}


def _several(every: list[Row]) -> bool:
    return any(len(names) > 1 for names in _pairs(every).values())


def _effects(of: Property, found: dict[str, Results]) -> Iterator[tuple[Claim, dict]]:
    """The claims about a property, each with its effects against independent students; those of a variant are in its chapter alone."""
    for claim in CLAIMS if of.chapter in found else ():
        if (claim.chapter, claim.measure) == (of.chapter, of.measure) and claim.method in METHODS and claim.reference in ("Ind", "Ind2") \
                and not variant(claim.method, found[of.chapter]):
            if judgement := verdict(claim, found[of.chapter]):
                yield from ((claim, effect) for where, effect in judgement["rows"].items()
                            if effect["effect"] is not None and (judgement["settled"][where] != "void" or effect["low"] is None))


def _methods(every: list[Row]) -> list[str]:
    """Those that have effects here."""
    return [m for m in METHODS if any(m in row.twin for row in every)]


def handed_on(every: list[Row], method: str, *panels: str) -> tuple[list[Property], int]:
    """The properties whose interval lies above zero in every pair and setting, in each of these panels ("twin", "control"); and the number
    of those that have effects there (with "control": that have them in every pair and setting)."""
    tried: dict[Property, list[bool]] = {}
    for row in every:
        for panel in panels:
            if method in (effects := getattr(row, panel)):
                tried.setdefault(row.of, []).append(gains(effects[method]))
    if "control" in panels:
        tried = {of: clear for of, clear in tried.items() if all(method in row.control for row in every if row.of == of and method in row.twin)}
    return [of for of, clear in tried.items() if all(clear)], len(tried)


def tally(every: list[Row]) -> str:
    """'Students take over 4 of 6 properties by KL, 4 of 6 by Hint, none of 6 by CRD', and whether that is said of several pairs."""
    counts = {m: handed_on(every, m, "twin") for m in METHODS}
    parts = [f"{len(which) or 'none'} of {of}{' properties' if m == METHODS[0] else ''} by {m}" for m, (which, of) in counts.items() if of]
    if not parts:
        return ""
    return ("In every pair that a claim is about, students take over " if _several(every) else "Students take over ") + ", ".join(parts)


def _which(every: list[Row], *panels: str) -> str:
    """'KL: is fooled by what fools its teacher, ...; Hint: ...; CRD: no property in all of its settings'."""
    found = {m: handed_on(every, m, *panels) for m in METHODS}
    return "; ".join(f"*{m}* " + ("no property in all of its settings" if not which else ", ".join(of.says for of in which)) for m, (which, of) in found.items() if of)


def title(every: list[Row], found: dict[str, Results]) -> str:
    """The finding in words, or why there is none."""
    return _nothing(every, found) or tally(every)


def _nothing(shown: list[Row], found: dict[str, Results]) -> str:
    if any(found[row.of.chapter].provenance["profile"] == "smoke" for row in shown):
        return "A trial run (profile smoke), which finds nothing"
    return "Too few seeds for a finding" if all(effect["low"] is None for row in shown for effect in row.twin.values()) else ""


def draw(every: list[Row], found: dict[str, Results]) -> Figure:
    """A column for each method, a line for each setting and pair of networks: filled, the student against its twin, and thin below it, against
    T*'s student, each with its 95 % interval. A property's block is shaded where it counts as taken over. The first pair is drawn large."""
    lanes, blocks = _lanes(every)
    height, first = max(bottom for _, bottom in blocks.values()), {of: names[0] for of, names in _pairs(every).items()}
    values = [effect["effect"] for row in every for panel in (row.twin, row.control) for effect in panel.values()]
    low, high = min(0, *values) - 0.12, max(0, *values) + 0.12
    methods = _methods(every)
    figure, axes = plt.subplots(1, len(methods), figsize=(figures.WIDTH, 1.6 + 0.155 * height), sharex=True, sharey=True, squeeze=False)
    axes = axes[0]
    for axis, method in zip(axes, methods):
        for of in [] if _nothing(every, found) else handed_on(every, method, "twin")[0]:
            axis.axhspan(*blocks[of], color=figures.marker(method)["color"], alpha=0.14, linewidth=0)
        for top, _ in blocks.values():
            axis.axhline(top, color="#bbbbbb", linewidth=0.8)
        axis.axvline(0, color="black", linewidth=1)
        for line, _, row in lanes:
            large = row and row.pair == first[row.of]
            if row and method in row.twin:
                _interval(axis, line - 0.2, row.twin[method], figures.marker(method, 6 if large else 4.2), low, high, width=2.2 if large else 1.3)
            if row and method in row.control:
                _interval(axis, line + 0.3, row.control[method], figures.marker(method, 3.8) | HOLLOW, low, high, width=0.8)
        axis.set_title(method, fontweight="bold")
        axis.set(xlabel="difference, points", xlim=(low, high), ylim=(height, 0))
        axis.tick_params(axis="y", length=0)
        axis.xaxis.set_major_formatter(figures.points)
    axes[0].set_yticks([line for line, *_ in lanes], [words for _, words, _ in lanes], fontsize=9.5)
    for label, (_, _, row) in zip(axes[0].get_yticklabels(), lanes):
        label.set_fontweight("normal" if row else "bold")
    grey = dict(color="#555555", marker="o", linestyle="-")
    keys = {"minus its independent twin": plt.Line2D([], [], **grey, markersize=6, linewidth=2.2),
            "minus its twin of teacher T*": plt.Line2D([], [], **grey | HOLLOW, markersize=3.8, linewidth=0.8),
            "taken over": Patch(color="#555555", alpha=0.2, linewidth=0)}
    figure.legend(keys.values(), keys, loc="outside lower center", ncols=len(keys), fontsize=10)
    figure.suptitle(figures.wrapped(title(every, found)))
    return figure


def _lanes(every: list[Row]) -> tuple[list[tuple[float, str, Row | None]], dict[Property, tuple[float, float]]]:
    """The figure's lines, each with its place, its words, and its row, if it is not a property's name above its rows. Then where each
    property's block begins and ends."""
    short, of_pairs, lanes, blocks, top = _short(every), _pairs(every), [], {}, 0.0
    for of, group in groupby(every, lambda row: row.of):
        begin, words = top, figures.wrapped(f"{of.says}:", 36)
        tall = 0.35 + words.count("\n") + 1
        lanes.append((top + tall / 2 + 0.1, words, None))
        top += tall
        own = list(group)
        for domain, settings in groupby(own, lambda row: row.domain):
            for n, row in enumerate(settings):
                setting = [_setting(row)] * (n == 0 and own[0].domain != own[-1].domain)
                lanes.append((top + 0.5, ": ".join(setting + [short[row.pair]] * (len(of_pairs[of]) > 1)), row))
                top += 1
            top += 0.25
        top += 0.15
        blocks[of] = begin, top
    return lanes, blocks


def _setting(row: Row) -> str:
    return WORDS.get(row.domain, row.domain)


def _interval(axis, line: float, effect: dict, style: dict, low: float, high: float, width: float) -> None:
    """An effect with its interval; an arrow where the interval goes on beyond the panel."""
    if effect["low"] is not None:
        axis.plot([max(effect["low"], low), min(effect["high"], high)], [line, line], color=style["color"], linewidth=width, solid_capstyle="butt")
        inside = 0.02 * (high - low)
        for beyond, edge, arrow in (effect["low"] < low, low + inside, "<"), (effect["high"] > high, high - inside, ">"):
            if beyond:
                axis.plot(edge, line, arrow, color=style["color"], markersize=3 + width)
    axis.plot(effect["effect"], line, **style)


CAPTION = """\
What a distilled student takes over, in percentage points, by method. Filled: the student minus its independent twin (same initial
weights, same images, no teacher; where maps are compared, minus a second independent student). Hollow: minus the same student of T\\*, a
teacher that lacks the property or, where every teacher has it, simply another teacher. Bars are 95 % intervals over seeds and test items;
in the chapters on images one teacher serves all seeds of a pair, so they say nothing about other teachers. An arrow means that the interval goes on. {pairs}Shaded: the property counts as taken over, which it does if every filled bar of its block lies above
zero (one that does not leaves the block unshaded, however large the others are); the hollow ones show how much of that is owed to what this teacher had learned."""

PAIRS = """\
Where a claim of the paper is about several of the pairs of networks here, each has a line, named by the families of teacher → student, the first drawn
large; pairs of other families, and those where noise does as much as an attack, are in the chapters alone. """

ALT = """\
{title}. A panel for each method; in each, for every property, setting and pair of networks, a difference in percentage points
with its 95 % interval: a student minus its independent twin, and minus its twin of teacher T*. {rows} Tables below hold every value."""


def page(every: list[Row], found: dict[str, Results], folder: str) -> str:
    """Markdown: the figure, what it says, and, folded, its numbers and what they rest on."""
    caption = CAPTION.format(pairs=PAIRS if _several(every) else "")
    lines = [f":::{{figure}} {folder}/found.png", ":name: fig-found", ":width: 740px", f":alt: {_alt(every, found)}", "", caption, ":::", ""]
    if not _nothing(every, found):
        lines.append(f"- **What students do more than their independent twins**: {_which(every, 'twin')}.")
        if against := _which(every, "twin", "control"):
            lines.append(f"- **Of these, also more than the same student of T\\***: {against}. That part is owed to what its teacher had learned, and not to being taught as such. "
                         "What is not shown need not be absent: where bars are wide, these runs cannot tell.")
        if own := _own(found):
            lines.append(f"- **And more than students of other teachers that were trained like its own** (asked on digits, where each seed has a teacher): {own}. "
                         "Of errors and boundaries, " + ("only that" if " on " in own else "nothing") + " is shown to come from one particular teacher."
                         + _met_no_teacher(found))
    lines += [f"- {text}" for text in (_variant(found), _verdicts(found), _stand_in(found)) if text]
    lines += ["", "::::{dropdown} The numbers of this figure, and what they rest on", *_numbers(every, "twin", "independent twin")]
    lines += _numbers(every, "control", "twin of teacher T\\*") if any(row.control for row in every) else []
    chapters, slugs = sources(), dict.fromkeys(row.of.chapter for row in every)
    for slug in slugs:
        claims = [(c, verdict(c, found[slug])) for c in CLAIMS if c.chapter == slug]
        lines.append(f"- {{doc}}`chapters/{slug}` " + basis(chapters[slug], claims, found[slug]))
    return "\n".join([*lines, "::::", ""])


def _numbers(every: list[Row], panel: str, minus: str) -> list[str]:
    """One kind of difference as a table. A property's name is shown once, and there for screen readers in each row."""
    methods = _methods(every)
    head = ["a student …", "where", *methods]
    maps = " (where maps are compared: minus a second independent student)" * (panel == "twin" and any(row.of.chapter == "localization" for row in every))
    lines = [f":::{{table}} A student minus its {minus}{maps}, in points, with 95 % intervals. A dash: the paper claims nothing there, its claim cannot be judged here, or no such student was trained",
             f":name: table-found-{panel}", "",
             "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for of, group in groupby((row for row in every if getattr(row, panel)), lambda row: row.of):
        for n, row in enumerate(group):
            cells = [points(getattr(row, panel)[m]).replace("\N{NO-BREAK SPACE}[", " [") if m in getattr(row, panel) else "–" for m in methods]
            lines.append("| " + " | ".join([f'<span class="kdlib-again">{of.says}</span>' if n else of.says, _where(row, every), *cells]) + " |")
    return [*lines, ":::", ""]


def _where(row: Row, every: list[Row]) -> str:
    """What tells a row from the others of its property: 'sketch, residual → residual'."""
    own = [other for other in every if other.of == row.of]
    setting, pair = (len({getattr(other, part) for other in own}) > 1 for part in ("domain", "pair"))
    return ", ".join([_setting(row)] * setting + [_short(every)[row.pair]] * pair)


def _short(every: list[Row]) -> dict[str, str]:
    return pairs(list(dict.fromkeys(row.pair for row in every)))


def _alt(every: list[Row], found: dict[str, Results]) -> str:
    effects = {m: [row.twin[m] for row in every if m in row.twin] for m in METHODS}
    said = " ".join(f"{m} lies clear above the twin in {sum(map(gains, its))} of {count(len(its), 'line')}." for m, its in effects.items() if its)
    return " ".join(ALT.format(title=title(every, found), rows=said).split())


def _own(found: dict[str, Results]) -> str:
    """'repeats its teacher's errors (KL on coloured digits +1.0 [+0.5, +1.5]); not shown: ...', or '' where nothing was asked."""
    asked = {(what, row["method"], row["domain"]): row for slug, what, row in _of_own_teacher(found) if row["method"] in METHODS and not variant(row["method"], found[slug])}
    stands, said, lacking = standing(asked), [], []
    for what in dict.fromkeys(what for what, *_ in asked):
        shown = {m: [f"{WORDS.get(domain, domain).partition(' (')[0]} {points(asked[of, m, domain])}" for of, method, domain in asked if (of, method) == (what, m) and (of, m, domain) in stands] for m in METHODS}
        if by := "; ".join(f"{m} on {listed(domains, '')}" for m, domains in shown.items() if domains):
            said.append(f"{what} ({by})")
        else:
            lacking.append(what)
    if not asked:
        return ""
    return ((", ".join(said) or "nothing") + (f"; not shown: {', '.join(lacking)}" if lacking else "")
            + (f" (in points; after Holm's correction over {count(len(asked), 'such interval')})" if len(asked) > 1 else ""))


def _met_no_teacher(found: dict[str, Results]) -> str:
    """How often the same is seen of students that never met the teacher, for whom it should not be."""
    controls = [row for _, _, row in _of_own_teacher(found) if row["method"] not in METHODS]
    return (f" Of {count(len(controls), 'such interval')} of students that never met that teacher, which should hold zero, {sum(map(clear, controls))} "
            f"exclude{'s' * (sum(map(clear, controls)) == 1)} it, each by itself; one in twenty would by chance." if controls else "")


def _of_own_teacher(found: dict[str, Results]) -> Iterator[tuple[str, str, dict]]:
    """Chapter, what was asked and the effect: own students minus those of other seeds, where there is an interval."""
    for (slug, measure), what in OWN.items():
        yield from ((slug, what, row) for row in (found[slug].matching(measure=measure) if slug in found else ()) if row["low"] is not None)


def _verdicts(found: dict[str, Results]) -> str:
    """'Of the paper's claims ..., 9 are replicated, 2 partly, ...'."""
    judged = [judgement for slug in sorted({claim.chapter for claim in CLAIMS} & set(found)) for judgement in verdicts(slug, found[slug])
              if not judgement["verdict"].startswith("not tested")]
    if not judged:
        return ""
    words = [judgement["verdict"] for judgement in judged]
    order = ("replicated", "supported", "partly", "not replicated", "not supported", "inconclusive")
    parts = [f"{words.count(word)} {word}" for word in order if word in words]
    borne = [judgement for judgement in judged if judgement["verdict"] in ("replicated", "supported") and judgement["claim"].side]
    weak = [judgement for judgement in borne if not all(p is None or p <= 0.05 for p in judgement["holm"].values())]
    firm = len(borne) - len(weak)
    return (f"**The paper's claims**, of which this edition tests {len(judged)}: {listed(parts, '')}. A verdict is computed from intervals, each by itself, and "
            "judges direction; {doc}`statistics` defines the words."
            + (f" After Holm's correction over the claims of its chapter, {firm} of the {count(len(borne), 'replicated or supported claim')} of a difference "
               f"{'stands' if firm == 1 else 'stand'} in every setting" + (f" (not: {weak[0]['claim'].says})" if len(weak) == 1 else "") + "." if borne else ""))


def _variant(found: dict[str, Results]) -> str:
    """Which chapters ran another CRD than the authors'."""
    slugs = [slug for slug, results in found.items() if variant("CRD", results) and any(row["method"] == "CRD" for row in results.effects)]
    chapters = listed([f"{{doc}}`chapters/{slug}`" for slug in slugs], "")
    return (f"**CRD is a variant** in {chapters}: it has a shortcut, which those pages describe. Its numbers stand there and do not speak for the authors' CRD, so they are left out "
            "here, and no claim about CRD is judged by them.") if slugs else ""


def _stand_in(found: dict[str, Results]) -> str:
    """Which chapters rest on data that earn no verdict."""
    slugs = [slug for slug in found if any((j := verdict(c, found[slug])) and "not the paper's data" in j["verdict"] for c in CLAIMS if c.chapter == slug)]
    chapters = listed([f"{{doc}}`chapters/{slug}`" for slug in slugs], "")
    return f"**No verdict** can rest on drawn or stand-in data, as in {chapters}. They can show that a mechanism works, no more." if slugs else ""
