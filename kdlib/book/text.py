"""Sentences and tables whose words depend on numbers."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from IPython.display import HTML, Markdown

from kdlib.book.chapters import PROFILES, duration, source
from kdlib.book.claims import FEW, in_words, standing
from kdlib.book.results import Results, smallest


NOT_JUDGED = " (not judged)"


def share(value: float | None) -> str:
    """A share in [0, 1] as a percentage: 0.8731 -> '87.3'."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(effect: dict) -> str:
    """An effect in percentage points with its interval: '+8.1 [+2.0, +14.2]'."""
    return _with_interval(effect, 100, 1)


def plain(effect: dict, digits: int = 2) -> str:
    """An effect in its own unit with its interval: '+0.81 [+0.20, +0.97]'."""
    return _with_interval(effect, 1, digits)


def effect(row: dict, unit: str) -> str:
    """An effect in the unit of a claim: points, or a correlation."""
    return points(row) if unit == "points" else plain(row) + typeset(" (correlation)")


def _with_interval(effect: dict, scale: float, digits: int) -> str:
    """An interval gets up to two digits more where rounding would set its end on zero though it is clear of it, or both of its ends."""
    if effect["effect"] is None:
        return "–"
    if effect["low"] is not None:
        digits = _telling(effect, scale, digits)
    numbers = [signed(scale * effect[k], digits) for k in ("effect", "low", "high") if effect[k] is not None]
    return typeset(numbers[0] + (f" [{numbers[1]}, {numbers[2]}]" if len(numbers) == 3 else ""))


def _telling(ends: dict, scale: float, digits: int) -> int:
    telling = scale * (min if clear(ends) else max)(abs(ends["low"]), abs(ends["high"]))
    return next((d for d in (digits, digits + 1) if round(telling, d)), digits + 2)


def signed(value: float, digits: int) -> str:
    """'+8.1', '-0.3'; and '0.0' for what rounds to it from either side."""
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def transfer(effect: dict) -> str:
    """Transfer with Fieller's interval, or the flag that says why there is none."""
    if effect["transfer"] is None:
        return effect["flag"] or "–"
    digits = _telling({"low": effect["transfer_low"], "high": effect["transfer_high"]}, 1, 2)
    return typeset(f"{effect['transfer']:z.{digits}f} [{effect['transfer_low']:z.{digits}f}, {effect['transfer_high']:z.{digits}f}]")


def of_lead(effect: dict) -> str:
    """A gain as part of its teacher's lead, with Fieller's interval: '76 % [29, 86] of the teacher's lead'; '' where there is no clear gain or no lead."""
    if effect["transfer"] is None or not gains(effect):
        return ""
    return typeset(f"{100 * effect['transfer']:.0f} % [{100 * effect['transfer_low']:z.0f}, {100 * effect['transfer_high']:z.0f}]") + " of the teacher's lead"


def verdicts(judged: list[dict], section: str) -> HTML:
    """The table of a chapter's claims: a row for each setting, the verdict with the first of a claim's. A claim of many settings has one row,
    with its extremes; a table of all of them follows, which opens."""
    header = ["claim", "where", "the paper's effect", "effect here", "p (Holm)", "verdict (borne out in)"]
    rows = [row for j in judged for row in ([_extremes(j)] if len(j["rows"]) > FEW else _settings(j))]
    shown = table(header, rows, f"The claims of Sec. {section} and their verdicts, computed from the intervals (effects in points, or as said); "
                                "a verdict is on the claim as a whole, and about direction, not size").data
    many = [row for j in judged if len(j["rows"]) > FEW for row in _settings(j)]
    if many:
        shown += folded(f"All {len(many)} settings of the claims with more than {FEW} of them", table(header, many, f"Every setting of the claims with more than {FEW} of them")).data
    return HTML(shown)


def _settings(judgement: dict) -> Iterator[list[str]]:
    claim = judgement["claim"]
    for n, (where, found) in enumerate(judgement["rows"].items()):
        yield [claim.says, where + NOT_JUDGED * (judgement["settled"][where] == "void"), judgement["paper"][where], effect(found, claim.unit),
               _p(judgement["holm"][where]), "" if n else in_words(judgement)]


def _extremes(judgement: dict) -> list[str]:
    claim, papers = judgement["claim"], list(dict.fromkeys(judgement["paper"].values()))
    ordered = sorted(judgement["rows"].values(), key=lambda row: row["effect"])
    void = list(judgement["settled"].values()).count("void")
    p = sorted(p for p in judgement["holm"].values() if p is not None)
    return [claim.says, count(len(ordered), "setting") + (f", {void} of them not judged" if void else ""), papers[0] if len(papers) == 1 else "by setting, below",
            f"{effect(ordered[0], claim.unit)} to {effect(ordered[-1], claim.unit)}", f"{_p(p[0])} to {_p(p[-1])}" if p else "–", in_words(judgement)]


def _p(p: float | None) -> str:
    return "–" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def uncorrected(judged: list[dict]) -> str:
    """Which judged intervals clear of zero have a Holm-adjusted p above .05: a verdict looks at each by itself."""
    tested = [v for v in judged if not v["verdict"].startswith("not tested")]
    clear_ = [v["holm"][where] for v in tested for where, row in v["rows"].items() if clear(row) and v["settled"][where] != "void"]
    weak = sum(p > 0.05 for p in clear_)
    without = {v["holm"][where] is None for v in judged for where in v["rows"] if v not in tested or v["settled"][where] == "void"}
    family = "all claims in the table" + (", those included that are not judged" if False in without else "") + (
        ", without settings in which noise does as much or too few seeds were trained" if True in without else "")
    return (f"Verdicts look at each interval by itself. Adjusted for {family}, p is above .05 for "
            + (f"{weak} of the {len(clear_)} judged intervals that exclude zero." if len(clear_) > 1 else "the one judged interval that excludes zero.") if weak else "")


def count(n: int, what: str) -> str:
    """'1 epoch', '1,200 images'."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def clear(effect: dict) -> bool:
    """Whether the interval excludes zero."""
    return effect["low"] is not None and (effect["low"] > 0 or effect["high"] < 0)


def gains(effect: dict) -> bool:
    """Whether the interval lies above zero."""
    return clear(effect) and effect["effect"] > 0


def listed(names: Sequence[str], none: str) -> str:
    """'orig, color and M', or `none`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or none


_OWN = re.compile(r"(?<![\w/])(residual|plain|transformer)-\d+x\d+(?![\w@])")


def pairs(names: Sequence[str]) -> dict[str, str]:
    """What pairs of networks are called in prose: 'residual → residual' for 'residual-32x2->residual-16x1', the families alone, where that tells
    it from every other one of `names`; else its whole name."""
    whole = {pair for name in names for pair in name.split(" minus ")}  # a difference of two pairs is named after both
    families = {pair: _OWN.sub(r"\1", pair) for pair in whole}
    told = {pair: unbroken(short if list(families.values()).count(short) == 1 else pair) for pair, short in families.items()}
    return {name: " minus ".join(told[pair] for pair in name.split(" minus ")) for name in names}


def unbroken(pair: str) -> str:
    """The name of a pair, which a line breaks behind its arrow only."""
    return pair.replace("->", "\N{NO-BREAK SPACE}→ ").replace("-", "\N{NON-BREAKING HYPHEN}")


class OwnTeacher(NamedTuple):
    """What students have from their very own teacher, as `own_teacher` finds it."""

    particular: dict[str, list[str]]  #: by method, the domains that stand after Holm's correction
    before: list[str]  #: 'KL on M': those that only stand before it
    below: list[str]  #: 'CRD on M': those below zero, each by itself
    asked: int  #: intervals that the correction is over
    astray: list[str]  #: 'Ind on color': those of students that never met T, and yet exclude zero
    controls: list[str]  #: sentences about these


def own_teacher(rows: Mapping[tuple[str, str], dict], distilled: Sequence[str]) -> OwnTeacher:
    """From the differences between own students and those of other seeds by (method, domain); a starred method is a twin of T*."""
    asked = {at: row for at, row in rows.items() if at[0] in distilled}
    stands = standing(asked)
    alone = {"Independent students, which met no T": [at for at in rows if at[0] in ("Ind", "Ind2")],
             "Students of T\\*, a teacher that began with T's weights and saw T's plain digits in T's order, but no other domain": [at for at in rows if at[0].endswith("*")]}
    astray, controls = [], []
    for who, its in alone.items():
        held = [at for at in its if rows[at]["low"] is not None]
        clear_ = [" on ".join(at) for at in held if clear(rows[at])]
        astray += clear_
        if held:
            controls.append(f"{who}, should hardly show a difference: of {count(len(held), 'interval')} {len(clear_)} exclude{'s' * (len(clear_) == 1)} zero"
                            + (f" ({', '.join(clear_)})." if clear_ else "."))
    return OwnTeacher({m: [domain for method, domain in asked if method == m and (m, domain) in stands] for m in distilled},
                      [" on ".join(at) for at, row in asked.items() if gains(row) and at not in stands],
                      [" on ".join(at) for at, row in asked.items() if clear(row) and not gains(row)], len(asked), astray, controls)


def would_have_found(effects: Sequence[dict]) -> str:
    """Of differences of shares, those whose interval holds zero: how large a true difference would have shown. '' where there are none."""
    sizes = sorted(100 * smallest(e) for e in effects if e["low"] is not None and not clear(e))
    if not sizes:
        return ""
    ends = list(dict.fromkeys("more than 100" if size > 100 else f"{size:.{1 if size < 10 else 0}f}" for size in (sizes[0], sizes[-1])))
    return (f"Where the interval holds zero, this run would have shown an effect of {' to '.join(ends)}\N{NO-BREAK SPACE}points four times out of five, "
            "if seeds scatter as they did; more seeds would show smaller ones.")


def _cell(text: str) -> str:
    """Escaped, and a pair of networks broken only behind its arrow."""
    return re.sub(r"(\S+-&gt;)([^\s,;:]+)", r'<span class="kdlib-name">\1</span><wbr><span class="kdlib-name">\2</span>', html.escape(text))


_HEAD = re.compile(r'<div class="kdlib-table"><p aria-hidden="true">(.*?)</p><div tabindex="0" role="region" aria-label="\1"><table><caption>\1</caption>')


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> HTML:
    """A table with a caption, whose first column names its rows. A row that repeats the name above leaves it out."""
    def row(cells, before):
        name = "" if before and before[0] == cells[0] else _cell(cells[0])
        first = f'<tr{" class=first" if name else ""}><th scope="row">{name or f"<span class=again>{_cell(cells[0])}</span>"}</th>'
        return first + "".join(f"<td>{_cell(c)}</td>" for c in cells[1:]) + "</tr>"

    head = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in header)
    body = "".join(row(r, before) for r, before in zip(rows, [None, *rows]))
    title = html.escape(caption)
    return HTML(f'<div class="kdlib-table"><p aria-hidden="true">{title}</p><div tabindex="0" role="region" aria-label="{title}"><table>'
                f'<caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></div>')


def crd_variant(positive: str, *, whole: bool = False) -> str:
    """What a page says of CRD students whose positive was not the memory's entry (parameter `crd_positive`), with `whole` the reason too; else ''."""
    if positive == "bank":
        return ""
    if whole:
        return ("\n\n**CRD on this page is a variant**: it draws an image to the other network's *present* feature of it, while its negatives come from a memory that lags behind. "
                "The fresh one can be told from the stale ones without a look at the image, as the chapter on the three methods shows, so a student can lower this loss and learn "
                "little from its teacher. The authors' CRD draws to the memory's own entry (`crd_positive=bank`). No claim about CRD is judged here.")
    return "(CRD is a variant here, with a shortcut; *What was done* says which. Its numbers do not speak for the authors' CRD.)"


def folded(summary: str, made: HTML) -> HTML:
    """What a reader opens to see; on paper it is open."""
    return HTML(f'<details class="kdlib-folded"><summary>{html.escape(summary)}</summary>{made.data}</details>')


def numbered(page: str, chapter: int, tables: Iterator[int]) -> str:
    """HTML with tables made by `table`: the captions say "Table 3.2" for the second of chapter 3, and each has the anchor `table-2`.

    `tables` counts the tables of the chapter, over all of its outputs.
    """
    def number(match: re.Match) -> str:
        n = next(tables)
        label = f"Table {chapter}.{n}"
        return (f'<div class="kdlib-table" id="table-{n}"><p aria-hidden="true"><span class="caption-number">{label}</span> {match[1]}</p>'
                f'<div tabindex="0" role="region" aria-label="{label} {match[1]}"><table><caption>{label} {match[1]}</caption>')

    return _HEAD.sub(number, page)


def breakable(page: str) -> str:
    """HTML in whose table cells a line may break between a number and its interval, and nowhere else in the two."""
    return re.sub(r"(<t[dh][^>]*>[^<]*)", lambda cell: cell[1].replace("\N{NO-BREAK SPACE}[", " ["), page)


def settings(slug: str) -> HTML:
    """The table of a chapter's parameters in each profile, with expected durations."""
    chapter = source(slug)
    profiles = [p for p in PROFILES if p in chapter.facts["profiles"]]
    rows = [[p.name, p.help, *[str(chapter.facts["profiles"][name].get(p.name, p.default)) for name in profiles]]
            for p in chapter.parameters.values()]
    minutes = [chapter.facts["minutes"].get(name) for name in profiles]
    rows.append(["time", "first run, about", *[duration(m) if m else "not measured" for m in minutes]])
    on_gpu = [name for name in profiles if name in ("gpu", "paper")]
    return table(["parameter", "meaning", *profiles], rows, "Settings by profile; times on 2 CPU cores" + (f" ({', '.join(on_gpu)}: one GPU)" if on_gpu else ""))


def provenance(results: Results) -> HTML:
    """Where this page's numbers come from."""
    facts = results.provenance
    chapter, changed = source(results.chapter), []
    if facts["profile"] in chapter.facts["profiles"]:
        own = chapter.values(facts["profile"], {})
        changed = [f"{n}={v}" for n, v in facts["parameters"].items() if n in own and own[n] not in (v, "auto")]
    rows = [["parameters", ", ".join(f"{k}={v}" for k, v in facts["parameters"].items())],
            ["profile", facts["profile"] + (f", changed: {', '.join(changed)}" if changed else "")], ["commit", (facts["commit"] or "–").replace("+", ", with changes not committed")], ["device", f"{facts['device']}, {facts['dtype']}"],
            ["versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())],
            ["seeds", ", ".join(map(str, facts["seeds"]))], ["start", facts["start"]],
            ["duration", f"{facts['duration']:.0f} s (runs and measurements found in the store are read, not repeated)"]]
    return table(["fact", "value"], rows, "Provenance")


def say(*sentences: str) -> Markdown | None:
    """The sentences that are not empty, or None, which a notebook does not show. A line does not break before %."""
    return Markdown(" ".join(said).replace(" %", "\N{NO-BREAK SPACE}%")) if (said := [s for s in sentences if s]) else None


def typeset(text: str) -> str:
    """True minus signs, and spaces that do not break an interval over two lines."""
    return text.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")
