"""The paper's claims as data, and their verdicts, computed from results: never typed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import t as student_t

from kdlib import stats
from kdlib.book.results import Results, smallest


K = TypeVar("K")
FEW = 3  # settings of a claim, up to which each has a row of its own where its verdict is shown
FAMILIES = {"residual": ("residual", "resnet"), "plain": ("plain", "vgg"), "transformer": ("transformer", "vit"), "swin": ("swin",)}
PAPER_PAIRS = {("residual", "residual"): "ResNet50->ResNet18", ("plain", "plain"): "VGG19->VGG11", ("plain", "residual"): "VGG19->ResNet18",
               ("transformer", "residual"): "ViT-B-32->ResNet18", ("swin", "residual"): "Swin-T->ResNet18", ("swin", "swin"): "Swin-B->Swin-T"}


def paper_pair(pair: str) -> str | None:
    """The paper's pair whose networks are of the families of this pair's, if it has one."""
    sides = (side.removeprefix("timm/") for side in pair.split("->"))
    return PAPER_PAIRS.get(tuple(next((f for f, names in FAMILIES.items() if side.startswith(names)), None) for side in sides))


@dataclass(frozen=True)
class Claim:
    """What the paper says, in a form that results can contradict.

    `method` - `reference` on `measure` lies on the side `side` of zero in each of `domains`, or of those that a run has, for each of
    its pairs (with `families`, those whose networks are of the families of one of these pairs of the paper). A `side` of 0 claims that
    there is no rise (a fall bears it out). `paper` and `margin` go by the paper's pair and the domain where they name both, else by the pair, else by
    the domain. `margin` is what still
    counts as no effect: a quarter of the paper's own KL effect on that measure and domain, else 0.02
    (a correlation: 0.1). `data` are the parameters that make a run one on the paper's data, or on photographs; a tuple allows several
    values. `condition` selects among effects that were measured under several. `above` names the condition of a baseline: where it moves the
    independent student as much as `condition` does, a setting can say nothing.
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
    condition: dict | None = None  # None: any
    above: dict | None = None
    needs: str = "not in the published run"  # why nothing speaks to it, where nothing does
    beyond: dict | None = None  # columns of the row that shows the effect beyond a control; None: the reference is the method's student of T*
    families: tuple[str, ...] | None = None  # None: all pairs


_DIGITS = {"source": "mnist", "patches": "bsds500", "limit": 0}
# Margins: Table 13 of the appendix has KL at 91.76 (color) and 67.92 (M) against Ind's 72.86 and 56.09.
_UNSEEN = dict(chapter="domain-adaptation", section="5.1, Fig. 6", reference="Ind", measure="accuracy", domains=("color", "M"),
               margin={"color": (0.9176 - 0.7286) / 4, "M": (0.6792 - 0.5609) / 4}, data=_DIGITS)
# Table 1 has KL at .9341, .6711 and .5872 against Ind's .9107, .4156 and .4691.
_NEARER = dict(chapter="decision-boundary", section="6, Table 1", reference="Ind", measure="boundary agreement", data=_DIGITS, items="plane",
               margin={"orig": (0.9341 - 0.9107) / 4, "color": (0.6711 - 0.4156) / 4, "M": (0.5872 - 0.4691) / 4})
_PHOTOGRAPHS = {"source": ("imagenette-112", "imagenette-160", "imagenette-320", "imagenette"), "limit": 0}
# Table 11: consensus of Ind, KL, Hint and CRD with the teacher, per cent; its columns edge and silhouette exchanged, as in Fig. 5.
TABLE_11 = {"VGG19->ResNet18": {"sketch": (33.62, 37.56, 37.18, 40.50), "stylized": (21.68, 28.81, 27.19, 30.75), "edge": (12.81, 31.25, 10.00, 37.81),
                                "silhouette": (26.25, 31.25, 29.69, 35.00), "cue-conflict": (22.81, 29.30, 27.73, 30.93), "ImageNet": (75.60, 77.21, 76.49, 78.36)},
            "Swin-B->Swin-T": {"sketch": (51.37, 56.93, 52.56, 54.18), "stylized": (33.75, 38.43, 35.18, 34.75), "edge": (22.50, 27.50, 26.87, 26.25),
                               "silhouette": (50.00, 57.81, 54.37, 50.62), "cue-conflict": (37.26, 42.61, 38.51, 39.22), "ImageNet": (88.79, 89.39, 89.03, 88.97)}}
_GAINED = {m: {d: [rows[d][k] - rows[d][0] for rows in TABLE_11.values()] for d in TABLE_11["VGG19->ResNet18"] if d != "ImageNet"}
           for k, m in enumerate(("KL", "Hint", "CRD"), 1)}
# Not on sketches: the paper's are those of Geirhos et al., the suite's are PACS's, of other classes.
_CONSENSUS = tuple(
    Claim(chapter="unseen-domains", section="4.4, Fig. 5, Table 11", says=f"{m}: the student agrees more with its teacher on domains that neither has seen",
          method=m, reference="Ind", measure="consensus", domains=tuple(d for d in gains if d != "sketch"), data=_PHOTOGRAPHS,
          paper={d: f"{a:+.1f} (VGG19), {b:+.1f} (Swin)".replace("-", "−") for d, (a, b) in gains.items()},
          margin={d: _GAINED["KL"][d][0] / 400 for d in gains} | {(p, d): gained / 400 for d in gains for p, gained in zip(TABLE_11, _GAINED["KL"][d])})
    for m, gains in _GAINED.items())
# Sec. 4.2. Per cent of T's adversarial images that fool Ind, KL, Hint and CRD.
TABLE_6 = {"ResNet50->ResNet18": (44.16, 51.98, 48.34, 50.46), "VGG19->VGG11": (62.29, 69.74, 79.78, 70.51),
           "VGG19->ResNet18": (36.19, 43.02, 47.68, 48.99), "ViT-B-32->ResNet18": (21.93, 21.57, 23.34, 23.47)}
TABLE_6_FOREIGN = {"VGG19->VGG11": (69.02, 70.54, 70.68, 70.59)}  # the same students, images made for a ResNet18
_FOOLED = dict(chapter="adversarial", reference="Ind", measure="fooled", domains=("photo", "scene"), data=_PHOTOGRAPHS, above={"images": "noise"})


def _above_ind(table: dict[str, tuple[float, ...]], column: int) -> dict[str, str]:
    return {pair: f"{row[column] - row[0]:+.1f} (Table 6)".replace("-", "−") for pair, row in table.items()}


def _quarter_of_kl(pairs: tuple[str, ...]) -> dict[str, float]:
    return {pair: (TABLE_6[pair][1] - TABLE_6[pair][0]) / 400 for pair in pairs}


_CNNS = ("ResNet50->ResNet18", "VGG19->VGG11", "VGG19->ResNet18")
_ADVERSARIAL = (  # T* shares T's first weights and pictures: what fools it is no test of the last three, which no chapter measures yet
    *(Claim(says=f"{m}: images that fool a CNN teacher fool its student more often than an independent one", method=m, section="4.2, Fig. 3",
            paper=_above_ind(TABLE_6, k), margin=_quarter_of_kl(_CNNS), families=_CNNS, condition={"images": "T"}, **_FOOLED)
      for k, m in enumerate(("KL", "Hint", "CRD"), 1)),
    *(Claim(says=f"{m}: images that fool a transformer fool its CNN student no more often than an independent one", method=m, side=0,
            section="4.2, Fig. 3e", paper=_above_ind(TABLE_6, k), margin={"ViT-B-32->ResNet18": 0.02}, families=("ViT-B-32->ResNet18",),
            condition={"images": "T"}, **_FOOLED) for k, m in enumerate(("KL", "Hint", "CRD"), 1)),
    *(Claim(says=f"{m}: images made for another network fool the student no more often than an independent one", method=m, side=0,
            section="4.2, Fig. 3c", paper=_above_ind(TABLE_6_FOREIGN, k), margin=_quarter_of_kl(("VGG19->VGG11",)), families=("VGG19->VGG11",),
            condition={"images": "unrelated"}, needs="no pictures of an unrelated network", **_FOOLED) for k, m in enumerate(("KL", "Hint", "CRD"), 1)),
)
# Fig. 2, read off: KL at 67.2 and 59.2 % beside Ind's 50.3 and 50.2.
_NEARER_MAPS = {"KL": (16.9, 9.0), "Hint": (2.6, 2.7), "CRD": (5.3, 17.4)}
_LOCALIZATION = tuple(
    Claim(chapter="localization", section="4.1, Fig. 2", method=m,
          says=f"{m}: the teacher's map is nearer to the distilled student's than to an independent one's", reference="Ind2",
          measure="share nearer", domains=("photo", "scene"), data=_PHOTOGRAPHS, condition={},
          families=("ResNet50->ResNet18", "VGG19->VGG11"),
          paper={p: f"+{gain:.1f} (Fig. 2)" for p, gain in zip(("ResNet50->ResNet18", "VGG19->VGG11"), gains)},
          margin={"ResNet50->ResNet18": 0.169 / 4, "VGG19->VGG11": 0.09 / 4}) for m, gains in _NEARER_MAPS.items())
# Sec. 4.3. Tables 8 and 9 at strength 0.4 have Ind at 52.32 and KL at 68.56 (ResNet50->ResNet18) and 54.18 (Swin-T->ResNet18).
_KEEPS = dict(chapter="invariance", measure="agreement", domains=("photo", "scene"), data=_PHOTOGRAPHS, condition={"strength": 0.4})
_OF_CNN = dict(families=("ResNet50->ResNet18",), margin={d: (0.6856 - 0.5232) / 4 for d in ("photo", "scene")}, **_KEEPS)
_OF_TRANSFORMER = dict(families=("ViT-B-32->ResNet18", "Swin-T->ResNet18"), margin={d: (0.5418 - 0.5232) / 4 for d in ("photo", "scene")}, **_KEEPS)


def _alike(paper: str) -> dict[str, str]:
    return {"photo": paper, "scene": paper}


_INVARIANCE = (
    *(Claim(says=f"{m}: the student of a teacher trained on recoloured pictures keeps its answer more often when colours change", method=m,
            reference="Ind", section="4.3, Fig. 4b, Table 8", paper=_alike(paper), **_OF_CNN)
      for m, paper in (("KL", "+16.2 (Table 8), +10.8 (Table 7)"), ("CRD", "+12.0 (Table 8), +8.2 (Table 7)"))),
    Claim(says="Hint at a middle layer is ineffective: it passes on hardly any invariance", method="Hint", reference="Ind", side=0,
          section="4.3, Table 8", paper=_alike("+1.0 (Tables 7 and 8)"), **_OF_CNN),
    *(Claim(says=f"{m}: the student keeps its answer more often than its twin that a teacher without colour jitter taught", method=m,
            reference=f"{m}*", section="4.3, Fig. 4a, Table 7", paper=_alike(f"{paper} (Table 7)"), **_OF_CNN)
      for m, paper in (("KL", "+8.1"), ("CRD", "+8.2"))),
    *(Claim(says=f"{m}: from a transformer to a CNN, some of the invariance passes too", method=m, reference="Ind",
            section="4.3, Fig. 4c, Table 9", paper=_alike(f"{paper} (Table 9)"), **_OF_TRANSFORMER)
      for m, paper in (("KL", "+1.9"), ("Hint", "+1.3"), ("CRD", "+0.5"))),
    Claim(says="KL: a student gains less invariance from a transformer than from a CNN", method="KL", reference="Ind",
          section="4.3, Fig. 4c", paper=_alike("+14.4 (Tables 8 and 9)"), margin=_OF_CNN["margin"],
          **_KEEPS | {"measure": "gain in agreement, from a CNN minus from a transformer"}),
    Claim(says="the deeper the layer that Hint matches, the more invariance passes", method="Hint", reference=None,
          section="4.3, Fig. 4d", paper=_alike("rises from F1 to F7 (Fig. 4d)"), **_OF_CNN | {"measure": "rise of agreement with Hint's depth"}),
)
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
          beyond={"method": "other students"},
          data=_DIGITS, unit="correlation", argued=True),
    *_ADVERSARIAL,
    *_LOCALIZATION,
    *_INVARIANCE,
    *_CONSENSUS,
    Claim(chapter="unseen-domains", section="4.4", says="KL: the student gains more consensus on unseen domains than on the seen one", method="KL",
          reference="Ind", measure="gain in consensus, unseen minus seen", domains=("all unseen",), data=_PHOTOGRAPHS,
          margin={"all unseen": 0.066 / 4, "Swin-B->Swin-T": 0.051 / 4}, paper={"all unseen": "+6.6 (VGG19), +5.1 (Swin)"}),
)


def settle(claim: Claim, row: dict) -> str:
    """One setting: `yes` (the interval lies on the paper's side), `no` (it excludes that direction, or contains zero while
    the 90 % interval lies inside the margin) or `open`. A claim of no rise: `yes` where the 90 % interval lies below the upper margin, else
    `no` where the interval lies above zero. Fewer than three seeds settle nothing: `void`."""
    if row["low"] is None:
        return "void" if row["n_seeds"] < 3 else "open"
    half = student_t.ppf(0.95, row["df"]) * row["se"] if row["se"] else 0.0
    margin = _of_pair(claim.margin, row)
    negligible = abs(row["effect"]) + half < margin
    if claim.side == 0:
        return "yes" if row["effect"] + half < margin else "no" if row["low"] > 0 else "open"
    low, high = sorted((claim.side * row["low"], claim.side * row["high"]))
    return "yes" if low > 0 else "no" if high < 0 or negligible else "open"


def against_control(claim: Claim, row: dict, results: Results) -> dict | None:
    """The effect beyond the claim's control, where that was measured: against the same student of T*, unless the claim names another row.
    None of a claim that is about that student already."""
    same = {name: row.get(name) for name in ("pair", "condition", "domain", "measure", "method", "reference")}
    found = next(iter(results.matching(**same | (claim.beyond or {"reference": f"{claim.method}*"}))), None)
    return None if found is row else found


def drowned(results: Results, condition: dict, baseline: dict, **setting) -> bool:
    """Whether the condition `baseline` moves the independent students of a setting (pair, measure, domain) as much as `condition` does, in the mean."""
    ind, base = (results.values(method="Ind", condition=c, **setting) for c in (condition, baseline))
    return bool(ind and base) and sum(base) / len(base) >= sum(ind) / len(ind)


def _of_pair(values: dict, row: dict, default=None):
    """What a claim says of a row's pair, by the paper's pair of the same families, else of its domain."""
    pair = paper_pair(row["pair"])
    return next((values[name] for name in ((pair, row["domain"]), pair, row["domain"]) if name in values), default)


def variant(method: str, results: Results) -> bool:
    """Whether these students are of another objective than the paper's: of a CRD whose positive is not the memory's (`kdlib.distill.CRD`)."""
    return method.rstrip("*") == "CRD" and results.provenance["parameters"].get("crd_positive") != "bank"


def verdict(claim: Claim, results: Results) -> dict | None:
    """The claim's verdict with what it rests on, by domain, or by domain and pair where the run has several pairs. None where the results
    cannot speak to it: published before it was written down, or without a pair or domain that it is about.

    Only the paper's data, or photographs in their place, earn one; drawn or stand-in data say `not tested`, and so does a `variant`. Nor does
    a setting count that its baseline drowns, or that has fewer than three seeds (`settled`: "void").

    What the paper only argues cannot be replicated: it is supported or not.
    """
    given = results.provenance["parameters"]
    real = all(given.get(name) in value if isinstance(value, tuple) else given.get(name) == value for name, value in claim.data.items())
    found = [row for d in claim.domains for row in results.matching(method=claim.method, reference=claim.reference, measure=claim.measure, domain=d)
             if claim.condition in (None, row["condition"]) and (claim.families is None or paper_pair(row["pair"]) in claim.families)]
    if not found:
        return None
    pairs = list(dict.fromkeys(row["pair"] for row in found))
    several = len({row["pair"] for row in results.effects}) > 1
    label = {id(row): f"{row['domain']}, {row['pair']}" if several else row["domain"] for row in found}
    rows = {label[id(row)]: row for row in sorted(found, key=lambda row: pairs.index(row["pair"]))}
    settled = {where: settle(claim, row) for where, row in rows.items()}
    settled |= {where: "void" for where, row in rows.items() if claim.above
                and drowned(results, row["condition"], claim.above, pair=row["pair"], domain=row["domain"], measure=row["measure"])}
    told = set(settled.values()) - {"void"}
    if not real:
        word = "not tested (not the paper's data)"
    elif variant(claim.method, results):
        word = "not tested (a variant of CRD)"
    elif not told:
        word = "not tested (fewer than three seeds)" if all(row["n_seeds"] < 3 for row in rows.values()) else "not tested (noise of the same ε does as much)"
    elif told == {"yes"}:
        word = "replicated"
    elif "yes" in told:
        word = "partly"
    elif told == {"no"}:
        word = "not replicated"
    else:
        word = "inconclusive"
    if claim.argued:
        word = word.replace("replicated", "supported")
    seen = max((smallest(r) for r in rows.values() if r["low"] is not None), default=None)
    return {"claim": claim, "verdict": word, "rows": rows, "settled": settled, "smallest": seen,
            "beyond": {where: against_control(claim, row, results) for where, row in rows.items()},
            "paper": {where: _of_pair(claim.paper, row, "–") for where, row in rows.items()}}


def verdicts(chapter: str, results: Results) -> list[dict]:
    """The verdicts on all those of a chapter's claims that a run can speak to, with Holm-adjusted p values over every setting of every claim."""
    return adjusted([found for claim in CLAIMS if claim.chapter == chapter and (found := verdict(claim, results))])


def adjusted(judged: list[dict]) -> list[dict]:
    """Verdicts with Holm-adjusted p values by setting ("holm"), over all settings of all of them that count."""
    p = iter(stats.holm([row["p"] for v in judged for where, row in v["rows"].items() if v["settled"][where] != "void"]))
    return [v | {"holm": {where: None if word == "void" else next(p) for where, word in v["settled"].items()}} for v in judged]


def standing(rows: Mapping[K, dict]) -> set[K]:
    """Which of these effects lie above zero by their interval, and with a Holm-adjusted p of at most .05 over all of them."""
    p = dict(zip(rows, stats.holm([row["p"] for row in rows.values()])))
    return {name for name, row in rows.items() if row["low"] is not None and row["low"] > 0 and p[name] <= 0.05}


def in_words(judgement: dict) -> str:
    """The verdict with the number of settings that bear the claim out, where it has several, and of those that still do after Holm's
    correction, and beyond a control that the claim names, where these are fewer."""
    settled, told = judgement["settled"], [word for word in judgement["settled"].values() if word != "void"]
    borne = [where for where, word in settled.items() if word == "yes"]
    stand = [where for where in borne if judgement["holm"][where] <= 0.05]
    if judgement["verdict"].startswith("not tested"):
        return judgement["verdict"]
    notes = [f"{len(borne)} of {len(told)}"] * (len(told) > 1) + [f"clear after Holm's correction in {len(stand)} of {len(told)}"] * (
        judgement["claim"].side != 0 and len(stand) < len(borne) and judgement["verdict"].split()[0] != "not")
    if judgement["claim"].beyond and borne:
        tried = [row for where in borne if (row := judgement["beyond"][where])]
        above = sum(row["low"] is not None and row["low"] > 0 for row in tried)
        notes += [f"beyond the control in {above} of {len(tried)}"] * (above < len(tried))
    return judgement["verdict"] + (f" ({'; '.join(notes)})" if notes else "")
