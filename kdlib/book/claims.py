"""The paper's claims as data, and their verdicts, computed from results: never typed."""

from dataclasses import dataclass

from scipy.stats import t as student_t

from kdlib import stats
from kdlib.book.results import Results


@dataclass(frozen=True)
class Claim:
    """What the paper says, in a form that results can contradict.

    `method` - `reference` on `measure` lies on the side `side` of zero in each of `domains`. `margin` is what still
    counts as no effect: a quarter of the paper's own KL effect on that measure and domain, else 0.02 (a correlation: 0.1).
    `data` are the parameters that make a run one on the paper's data.
    """

    chapter: str
    section: str
    says: str
    paper: dict[str, str]  # by domain, in words
    method: str
    reference: str | None
    measure: str
    domains: tuple[str, ...]
    margin: dict[str, float]
    data: dict[str, object]
    items: str = "test image"  # what the effect's items are, in the singular
    side: int = 1
    unit: str = "points"  # or "correlation"
    argued: bool = False  # the paper argues it and measured nothing


_DIGITS = {"source": "mnist", "patches": "bsds500", "limit": 0}
# Margins: Table 13 of the appendix has KL at 91.76 (color) and 67.92 (M) against Ind's 72.86 and 56.09.
_UNSEEN = dict(chapter="domain-adaptation", section="5.1, Fig. 6", reference="Ind", measure="accuracy", domains=("color", "M"),
               margin={"color": (0.9176 - 0.7286) / 4, "M": (0.6792 - 0.5609) / 4}, data=_DIGITS)
# Table 1 has KL at .9341, .6711 and .5872 against Ind's .9107, .4156 and .4691.
_NEARER = dict(chapter="decision-boundary", section="6, Table 1", reference="Ind", measure="boundary agreement", data=_DIGITS, items="plane",
               margin={"orig": (0.9341 - 0.9107) / 4, "color": (0.6711 - 0.4156) / 4, "M": (0.5872 - 0.4691) / 4})
CLAIMS = (
    Claim(says="KL: the student gains accuracy on the domains that only its teacher saw", method="KL",
          paper={"color": "+18.9 (Table 13), +25.8 (Fig. 6)", "M": "+11.8 (Table 13), +13.1 (Fig. 6)"}, **_UNSEEN),
    Claim(says="Hint: the student gains accuracy on the domains that only its teacher saw", method="Hint",
          paper={"color": "+24.2 (Table 13), +34.2 (Fig. 6)", "M": "+8.0 (Table 13), +16.2 (Fig. 6)"}, **_UNSEEN),
    Claim(says="CRD: the student gains accuracy on the domains that only its teacher saw", method="CRD",
          paper={"color": "+11.1 (Table 13), +4.2 (Fig. 6)", "M": "+4.3 (Table 13), −0.3 (Fig. 6)"}, **_UNSEEN),
    Claim(says="KL: the student's decision boundary is nearer to its teacher's", method="KL",
          paper={"orig": "+2.3 (Table 1)", "color": "+25.6 (Table 1)", "M": "+11.8 (Table 1)"}, domains=("orig", "color", "M"), **_NEARER),
    Claim(says="Hint: the student's decision boundary is nearer to its teacher's", method="Hint",
          paper={"orig": "+2.1 (Table 1)", "color": "+38.2 (Table 1)", "M": "+18.5 (Table 1)"}, domains=("orig", "color", "M"), **_NEARER),
    Claim(says="CRD: the student's decision boundary is nearer to its teacher's on domains that it has not seen", method="CRD",
          paper={"color": "+5.8 (Table 1)", "M": "+1.7 (Table 1)"}, domains=("color", "M"), **_NEARER),
    Claim(says="among students of one seed, a boundary between seen images that is more like T's goes with accuracy on an unseen domain",
          chapter="decision-boundary", section="6", paper={"color": "argued, not measured", "M": "argued, not measured"}, method="students",
          reference=None, measure="accuracy from similarity on planes of orig", domains=("color", "M"), margin={"color": 0.1, "M": 0.1},
          data=_DIGITS, unit="correlation", argued=True),
)


def settle(claim: Claim, row: dict, domain: str) -> str:
    """One setting: `yes` (the interval lies on the paper's side), `no` (it excludes that direction, or contains zero while
    the 90 % interval lies inside the margin) or `open`."""
    if row["low"] is None:
        return "open"
    low, high = sorted((claim.side * row["low"], claim.side * row["high"]))
    if low > 0:
        return "yes"
    half = student_t.ppf(0.95, row["df"]) * row["se"] if row["se"] else 0.0
    return "no" if high < 0 or abs(row["effect"]) + half < claim.margin[domain] else "open"


def verdict(claim: Claim, results: Results) -> dict:
    """The claim's verdict with what it rests on. Only the paper's data earn one; drawn or stand-in data say `not tested`.

    What the paper only argues cannot be replicated: it is supported or not.
    """
    real = all(results.provenance["parameters"].get(name) == value for name, value in claim.data.items())
    rows = {d: results.find(method=claim.method, reference=claim.reference, measure=claim.measure, domain=d)
            for d in claim.domains}
    settled = {d: settle(claim, row, d) for d, row in rows.items()}
    if not real:
        word = "not tested (not the paper's data)"
    elif all(v == "yes" for v in settled.values()):
        word = "replicated"
    elif any(v == "yes" for v in settled.values()):
        word = "partly"
    elif all(v == "no" for v in settled.values()):
        word = "not replicated"
    else:
        word = "inconclusive"
    if claim.argued:
        word = word.replace("replicated", "supported")
    smallest = max((stats.smallest_effect(stats.Interval(r["effect"], r["low"], r["high"], r["se"], r["df"], r["p"]))
                    for r in rows.values() if r["low"] is not None), default=None)
    return {"claim": claim, "verdict": word, "rows": rows, "settled": settled, "smallest": smallest}


def verdicts(chapter: str, results: Results) -> list[dict]:
    """All of a chapter's verdicts, with Holm-adjusted p values over every setting of every claim."""
    found = [verdict(c, results) for c in CLAIMS if c.chapter == chapter]
    adjusted = iter(stats.holm([row["p"] for v in found for row in v["rows"].values()]))
    return [v | {"holm": {d: next(adjusted) for d in v["rows"]}} for v in found]
