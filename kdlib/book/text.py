"""Sentences and tables whose words depend on numbers."""

import html
from collections.abc import Sequence

from IPython.display import HTML, Markdown

from kdlib.book.chapters import PROFILES, source
from kdlib.book.results import Results


def share(value: float | None) -> str:
    """A share in [0, 1] as a percentage: 0.8731 -> '87.3'."""
    return "–" if value is None else f"{100 * value:.1f}"


def points(effect: dict) -> str:
    """An effect in percentage points with its interval: '+8.1 [+2.0, +14.2]'."""
    text = "–" if effect["effect"] is None else f"{100 * effect['effect']:+.1f}"
    return text if effect["low"] is None else f"{text} [{100 * effect['low']:+.1f}, {100 * effect['high']:+.1f}]"


def plain(effect: dict) -> str:
    """The same for measures that are not shares (kappa): '+0.08 [+0.02, +0.14]'."""
    text = "–" if effect["effect"] is None else f"{effect['effect']:+.2f}"
    return text if effect["low"] is None else f"{text} [{effect['low']:+.2f}, {effect['high']:+.2f}]"


def transfer(effect: dict) -> str:
    """Transfer with Fieller's interval, or the flag that says why there is none."""
    if effect["transfer"] is None:
        return effect["flag"] or "–"
    return f"{effect['transfer']:.2f} [{effect['transfer_low']:.2f}, {effect['transfer_high']:.2f}]"


def changed(effect: dict, *, up: str = "gains", down: str = "loses", neither: str = "shows no clear change") -> str:
    """A verb phrase that the interval chooses: 'gains 8.1 points', 'shows no clear change'."""
    if effect["low"] is None or effect["low"] <= 0 <= effect["high"]:
        return neither
    return f"{up if effect['effect'] > 0 else down} {100 * abs(effect['effect']):.1f} points"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> HTML:
    """A table with a caption and row headings, for a page and for a screen reader."""
    def cells(values, tag):
        return "".join(f"<{tag if i else 'th scope=row' if tag == 'td' else tag}>{html.escape(str(v))}</{tag if i else 'th' if tag == 'td' else tag}>"
                       for i, v in enumerate(values))

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return HTML(f'<div class="kdlib-table"><table><caption>{html.escape(caption)}</caption>'
                f"<thead><tr>{cells(header, 'th')}</tr></thead><tbody>{body}</tbody></table></div>")


def settings(slug: str) -> HTML:
    """The table of a chapter's parameters in each profile, with expected durations."""
    chapter = source(slug)
    profiles = [p for p in PROFILES if p in chapter.facts["profiles"]]
    rows = [[p.name, p.help, *[str(chapter.facts["profiles"][name].get(p.name, p.default)) for name in profiles]]
            for p in chapter.parameters.values()]
    minutes = [chapter.facts["minutes"].get(name) for name in profiles]
    rows.append(["time", "first run, about", *[f"{m:g} min" if m else "not measured" for m in minutes]])
    return table(["parameter", "meaning", *profiles], rows, "Settings by profile; times on 2 CPU cores (gpu, paper: one GPU)")


def provenance(results: Results) -> HTML:
    """Where this page's numbers come from."""
    facts = results.provenance
    rows = [["parameters", ", ".join(f"{k}={v}" for k, v in facts["parameters"].items())],
            ["profile", facts["profile"]], ["commit", facts["commit"] or "–"], ["device", f"{facts['device']}, {facts['dtype']}"],
            ["versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())],
            ["seeds", ", ".join(map(str, facts["seeds"]))], ["start", facts["start"]],
            ["duration", f"{facts['duration']:.0f} s (runs and measurements found in the store are read, not repeated)"]]
    return table(["fact", "value"], rows, "Provenance")


def say(*sentences: str) -> Markdown:
    return Markdown(" ".join(s for s in sentences if s))
