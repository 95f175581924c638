"""What was found, for README.md: the paper's claims with the effects and verdicts of the published chapters."""

from pathlib import Path

from kdlib.book import ROOT, BookError
from kdlib.book import results as results_file
from kdlib.book.chapters import Source, contents, sources
from kdlib.book.claims import CLAIMS, FEW, Claim, adjusted, in_words, verdict
from kdlib.book.results import Results
from kdlib.book.text import NOT_JUDGED, count, effect, gains, pairs, typeset, unbroken

START, END = "<!-- found: written by `kdlib headline` and `kdlib publish`; do not edit -->", "<!-- end of found -->"
NAMES = {"imagenette-112": "Imagenette", "mnist": "MNIST", "bsds500": "BSDS500", "embedded": "scikit-learn's digits", "bundled": "bundled photographs"}
HEADER = ("claim of the paper", "where", "effect", "beyond the control", "the paper's effect", "verdict")


def update(root: Path = ROOT) -> str:
    """Bring README.md between its two markers up to date. Returns a line about it."""
    path = root / "README.md"
    text = path.read_text()
    if text.count(START) != 1 or text.count(END) != 1 or text.index(END) < text.index(START):
        raise BookError(f"{path}: cannot fill in what was found; it needs the lines {START} and {END}, once each")
    before, rest = text.split(START)
    made = f"{before}{START}\n{found(root)}\n{END}{rest.split(END)[1]}"
    if made != text:
        path.write_text(made)
    return f"README.md: what was found is {'as it was' if made == text else 'brought up to date'}"


def found(root: Path = ROOT) -> str:
    """Markdown: for each published chapter that tests claims, what it rests on and a row for each claim and domain."""
    chapters, parts = sources(root), []
    for slug in contents(root):
        claims, path = [c for c in CLAIMS if c.chapter == slug], root / "book" / "results" / f"{slug}.json"
        if claims and slug in chapters and path.exists():
            parts.append(_chapter(chapters[slug], claims, results_file.read(path)))
    return "\n\n".join(parts) or "No chapter is published yet."


def _chapter(chapter: Source, claims: list[Claim], results: Results) -> str:
    judged = [(claim, verdict(claim, results)) for claim in claims]
    corrected = iter(adjusted([found for _, found in judged if found]))
    judged = [(claim, found and next(corrected)) for claim, found in judged]
    rows = [row for claim, found in judged for row in _rows(claim, found, results)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER), *rows))
    return f"**[{chapter.title}](book/chapters/{chapter.slug}.ipynb)** {basis(chapter, judged, results)}\n\n{table}"


def _rows(claim: Claim, judged: dict | None, results: Results) -> list[tuple[str, ...]]:
    """A row for each setting of a claim; one for all where they are more than `FEW`, with the smallest and the largest effect."""
    if judged is None:
        return [(claim.says, "–", "–", "–", "–", f"not tested ({claim.needs})")]
    short = pairs(list(dict.fromkeys(row["pair"] for row in results.effects)))
    named = {where: where.replace(row["pair"], short[row["pair"]]) for where, row in judged["rows"].items()}
    settings = judged["rows"]
    beyond = judged["beyond"]
    if len(settings) > FEW:
        ends = [f(settings, key=lambda where: settings[where]["effect"]) for f in (min, max)]
        tried = [found for found in beyond.values() if found]
        return [(claim.says, count(len(settings), "setting"), "from " + " to ".join(f"{effect(settings[where], claim.unit)} ({named[where]})" for where in ends),
                 f"above zero in {sum(map(gains, tried))} of {len(tried)}" if tried else "–", "in the chapter",
                 in_words(judged))]
    return [("" if n else claim.says, named[where] + NOT_JUDGED * (judged["settled"][where] == "void"), effect(row, claim.unit), effect(beyond[where], claim.unit) if beyond[where] else "–", typeset(judged["paper"][where]),
             "" if n else in_words(judged)) for n, (where, row) in enumerate(settings.items())]


def basis(chapter: Source, judged: list[tuple[Claim, dict | None]], results: Results) -> str:
    """Data, pairs, seeds, items, machine and, where they are not the paper's, epochs."""
    facts, given = results.provenance, results.provenance["parameters"]
    data = list(dict.fromkeys(NAMES.get(given[name], given[name]) for claim, _ in judged for name in claim.data
                              if isinstance(given.get(name), str)))
    if given.get("limit"):
        data.append(f"the first {count(given['limit'], 'image')} of each split")
    rested_on = [(claim.items, row) for claim, found in judged if found for row in found["rows"].values()]
    whole = list(dict.fromkeys(row["pair"] for _, row in rested_on if " minus " not in row["pair"]))
    named = [short if short == unbroken(name) else f"{short} (`{name}`)" for name, short in pairs(whole).items()]
    seeds = sorted({row["n_seeds"] for _, row in rested_on}) or [len(facts["seeds"])]
    numbers = {what: sorted({row["n_items"] for kind, row in rested_on if kind == what and row["n_items"]}) for what, _ in rested_on}
    items = [count(n[0], what) if len(n) == 1 else f"{n[0]:,} to {count(n[-1], what)}" for what, n in numbers.items() if n]
    parts = [*data, *named, count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {count(seeds[-1], 'seed')}", *items, f"profile `{facts['profile']}` on {facts['device']}"]
    epochs, paper = given.get("epochs"), chapter.facts["profiles"].get("paper", {}).get("epochs")
    if epochs and paper and epochs != paper:
        parts.append(f"{count(epochs, 'epoch')} (the paper: {paper})")
    return f"Sec. {chapter.facts['section']}: " + "; ".join(parts) + "."
