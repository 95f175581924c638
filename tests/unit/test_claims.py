"""Verdicts are computed from intervals: by domain, by pair, and for claims that there is no rise."""

import re

import numpy as np
import pytest

from kdlib.book import text
from kdlib.book.claims import Claim, adjusted, paper_pair, settle, standing, verdict, verdicts
from kdlib.book.results import PROVENANCE, Results, smallest

COMMON = dict(chapter="x", section="4", says="it rises", method="KL", reference="Ind", measure="share", data={"source": ("a", "b"), "limit": 0})


def results(rows, **given):
    """Rows (pair, domain, gain, condition): six seeds that scatter by .01 about that gain over Ind."""
    found = Results("x", dict.fromkeys(PROVENANCE) | {"parameters": {"source": "a", "limit": 0} | given})
    for pair, domain, gain, condition in rows:
        spread = 0.01 * np.array([-1, 1, -1, 1, -1, 1])
        found.effect(0.5 + gain + spread, np.full(6, 0.5), pair=pair, domain=domain, method="KL", against="Ind", measure="share", condition=condition)
    return found


def claim(**changed):
    return Claim(**COMMON | {"domains": ("d", "e"), "paper": {"d": "+1", "ResNet50->ResNet18": "+9"}, "margin": {"d": 0.05, "e": 0.05}} | changed)


def test_pairs_are_matched_with_the_papers_by_their_families():
    wanted = {"residual-48x2->residual-24x1": "ResNet50->ResNet18", "timm/resnet26->resnet18": "ResNet50->ResNet18", "vgg19_bn->vgg11_bn": "VGG19->VGG11",
              "plain-8x1->residual-8x1": "VGG19->ResNet18", "transformer-128x4->residual-24x1": "ViT-B-32->ResNet18", "swin_t->resnet18": "Swin-T->ResNet18",
              "swin_b->swin_t": "Swin-B->Swin-T", "residual-8x1->plain-8x1": None, "timm/ghostnet_050->resnet18": None, "MnistNet->MnistNet": None}
    assert {pair: paper_pair(pair) for pair in wanted} == wanted


def test_every_pair_and_domain_is_a_setting():
    one = verdict(claim(), results([("p->q", "d", 0.2, {}), ("p->q", "e", 0.1, {})]))
    assert list(one["rows"]) == ["d", "e"] and one["verdict"] == "replicated" and one["paper"] == {"d": "+1", "e": "–"}
    two = verdict(claim(), results([("residual-1x1->residual-1x1", "d", 0.2, {}), ("p->q", "d", -0.2, {})]))
    assert two["settled"] == {"d, residual-1x1->residual-1x1": "yes", "d, p->q": "no"} and two["verdict"] == "partly"
    assert two["paper"] == {"d, residual-1x1->residual-1x1": "+9", "d, p->q": "+1"}, "the paper's number for a pair goes before one for a domain"


def test_families_and_conditions_select():
    rows = [("residual-1x1->residual-1x1", "d", 0.2, {"s": 1}), ("residual-1x1->residual-1x1", "d", -0.2, {"s": 2}), ("p->q", "d", -0.2, {"s": 1})]
    chosen = verdict(claim(families=("ResNet50->ResNet18",), condition={"s": 1}), results(rows))
    assert chosen["settled"] == {"d, residual-1x1->residual-1x1": "yes"}, "the run has other pairs"
    assert verdict(claim(families=("VGG19->VGG11",)), results(rows)) is None


def test_a_claim_of_no_rise():
    rows = lambda gain: results([("p->q", "d", gain, {})])
    settled = {gain: verdict(claim(side=0, domains=("d",)), rows(gain))["settled"]["d"] for gain in (0.0, 0.03, 0.045, 0.2)}
    assert settled == {0.0: "yes", 0.03: "yes", 0.045: "no", 0.2: "no"}, "inside the margin, if only just; else refuted where the interval excludes zero"
    wide = rows(0.0).effects[0] | {"effect": 0.02, "low": -0.1, "high": 0.14, "se": 0.05, "df": 5}
    assert settle(claim(side=0), wide) == "open"
    fall = wide | {"effect": -0.2, "low": -0.25, "high": -0.15, "se": 0.02}
    assert settle(claim(side=0), fall) == "yes" and settle(claim(), fall) == "no", "no more often: less often bears it out"
    assert settle(claim(), wide) == "open" and settle(claim(), wide | {"low": 0.01}) == "yes" and settle(claim(), wide | {"low": None}) == "open"


def test_fewer_than_three_seeds_settle_nothing():
    few = {"low": None, "high": None, "p": None, "n_seeds": 2}
    found = results([("p->q", "d", 0.2, {}), ("residual-1x1->residual-1x1", "d", 0.2, {})])
    found.effects[1] |= few
    some = verdict(claim(domains=("d",)), found)
    assert some["verdict"] == "replicated" and list(some["settled"].values()) == ["yes", "void"]
    assert list(adjusted([some])[0]["holm"].values()) == [some["rows"]["d, p->q"]["p"], None]
    found.effects[0] |= few
    assert verdict(claim(domains=("d",)), found)["verdict"] == "not tested (fewer than three seeds)"


def test_a_margin_goes_by_pair_and_domain_then_by_pair_then_by_domain():
    [row] = results([("residual-1x1->residual-1x1", "d", 0.03, {})]).effects
    pair, values = "ResNet50->ResNet18", {}
    for name, wanted in ("d", "inside"), (pair, "outside"), ((pair, "d"), "inside"):
        values[name] = {"inside": 0.5, "outside": 1e-6}[wanted]
        assert settle(claim(side=0, margin=dict(values)), row) == {"inside": "yes", "outside": "no"}[wanted]


def test_what_stands_after_holms_correction():
    rows = {name: {"low": low, "p": p} for name, low, p in (("a", 0.1, 0.01), ("b", 0.1, 0.03), ("c", -0.1, 0.2), ("d", None, None), ("e", -0.3, 0.001))}
    assert standing(rows) == {"a"} and standing({k: rows[k] for k in "ab"}) == {"a", "b"} and standing({}) == set()


def test_only_real_data_earn_a_verdict():
    rows = [("p->q", "d", 0.2, {})]
    assert verdict(claim(), results(rows, source="b"))["verdict"] == "replicated"
    for given in {"source": "drawn"}, {"limit": 5}:
        assert verdict(claim(), results(rows, **given))["verdict"].startswith("not tested")


def test_a_page_judges_the_claims_that_its_run_speaks_to(monkeypatch):
    from kdlib.book import claims

    monkeypatch.setattr(claims, "CLAIMS", (claim(), claim(families=("VGG19->VGG11",)), claim(chapter="y")))
    [only] = verdicts("x", results([("p->q", "d", 0.2, {}), ("p->q", "e", 0.0, {})]))
    assert only["holm"]["d"] < 0.001 and only["holm"]["e"] == 1.0


def test_a_setting_that_noise_drowns_is_not_judged(monkeypatch):
    """Noise moves the independent students of p->q as much as the attack does, and those of r->s less."""
    of = results([("p->q", "d", 0.2, {"images": "T"}), ("r->s", "d", 0.2, {"images": "T"})])
    for pair, noise in ("p->q", 0.4), ("r->s", 0.1):
        for images, share in ("T", 0.4), ("noise", noise):
            of.record(np.full(6, share), range(6), pair=pair, domain="d", method="Ind", measure="share", condition={"images": images})
    attack = dict(condition={"images": "T"}, above={"images": "noise"}, domains=("d",))
    monkeypatch.setattr("kdlib.book.claims.CLAIMS", (claim(**attack),))
    [both] = verdicts("x", of)
    assert both["settled"] == {"d, p->q": "void", "d, r->s": "yes"} and both["verdict"] == "replicated"
    assert both["holm"]["d, p->q"] is None and both["holm"]["d, r->s"] == of.effects[1]["p"], "nor does it count among the claims"
    of.effects.pop()
    assert verdict(claim(**attack), of)["verdict"] == "not tested (noise of the same ε does as much)"
    assert verdict(claim(**attack | {"above": None}), of)["verdict"] == "replicated"


def test_the_table_of_claims_gives_a_verdict_once_with_the_settings_that_bear_it_out(monkeypatch):
    monkeypatch.setattr("kdlib.book.claims.CLAIMS", (claim(), claim(method="KL", domains=("f",), margin={"f": 0.05})))
    judged = verdicts("x", results([("p->q", "d", 0.2, {}), ("p->q", "e", -0.2, {}), ("p->q", "f", 0.2, {})]))
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in text.verdicts(judged, "4.9").data.split("<tbody>")[1].split("</tr>")[:3]]
    assert [(row[0], row[-1]) for row in cells] == [("d", "partly (1 of 2)"), ("e", ""), ("f", "replicated")]
    assert all(float(row[3].removeprefix("&lt; ")) < 0.05 for row in cells) and "Sec. 4.9" in text.verdicts(judged, "4.9").data


def test_a_claim_of_many_settings_is_one_row_above_a_list_that_opens(monkeypatch):
    pairs, gain = ("p->q", "r->s"), iter((0.2, -0.2, 0.1, 0.003))
    monkeypatch.setattr("kdlib.book.claims.CLAIMS", (claim(domains=("d", "e")), claim(domains=("f",), margin={"f": 0.05})))
    of = results([(pair, domain, next(gain), {}) for pair in pairs for domain in "de"] + [("p->q", "f", 0.2, {})])
    short, whole = (re.findall(r"<tr.*?</tr>", body) for body in re.findall(r"<tbody>(.*?)</tbody>", text.verdicts(verdicts("x", of), "4.9").data))
    cells = [[re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in short + whole]
    assert len(short) == 2 and len(whole) == 4, "the other claim keeps its row, and is not listed again"
    assert cells[0][0] == "4 settings" and cells[0][2] == f"{cells[3][2]} to {cells[2][2]}" and cells[0][-1] == cells[2][-1] == "partly (2 of 4)"
    assert cells[0][3] == f"&lt; 0.0001 to {cells[5][3]}" and [row[-1] for row in cells[3:]] == ["", "", ""]


def test_a_table_breaks_pairs_behind_the_arrow_alone_and_escapes_the_rest():
    made = text.table(["pair", "x"], [["a-1->b-2", "<i>"], ["plain", "a->b, c->d"]], "t").data
    assert '<th scope="row"><span class="kdlib-name">a-1-&gt;</span><wbr><span class="kdlib-name">b-2</span></th><td>&lt;i&gt;</td>' in made
    assert re.sub(r"<[^>]+>", "", made.split("<tbody>")[1]) == "a-1-&gt;b-2&lt;i&gt;plaina-&gt;b, c-&gt;d"


def test_pairs_go_by_their_families_where_that_tells_them_apart():
    own = ["residual-32x2->residual-16x1", "plain-32x2->residual-16x1", "timm/resnet26->plain-16x1", "residual-8x1@my-own.pt->resnet18", "MnistNet->MnistNet"]
    both = "residual-32x2->residual-16x1 minus plain-32x2->residual-16x1"
    said = {name: short.replace("\N{NO-BREAK SPACE}", " ") for name, short in text.pairs([both, *own]).items()}
    assert [said[name] for name in own] == ["residual → residual", "plain → residual", "timm/resnet26 → plain",
                                            "residual\u20118x1@my\u2011own.pt → resnet18", "MnistNet → MnistNet"]
    assert said[both] == "residual → residual minus plain → residual"
    twice = text.pairs([own[0], "residual-48x2->residual-16x1", own[1]])
    assert list(twice.values()) == ["residual\u201132x2\u00a0→ residual\u201116x1", "residual\u201148x2\u00a0→ residual\u201116x1", "plain\u00a0→ residual"]
    assert not any("-" in short for short in twice.values()), "a line would break there"


def test_what_a_run_would_have_found():
    [row] = results([("p->q", "d", 0.0, {})]).effects
    one = 100 * 0.01 * (6 / 5) ** 0.5 / 6**0.5 * 3.513903  # noncentrality of t of 5 degrees of freedom at a power of 80 %, over seeds that scatter by 1 point
    assert 100 * smallest(row) == pytest.approx(one)
    words = "Where the interval holds zero, this run would have shown an effect of {}\u00a0points four times out of five, if seeds scatter as they did; more seeds would show smaller ones."
    assert text.would_have_found([row]) == text.would_have_found([row, row]) == words.format(f"{one:.1f}")
    assert text.would_have_found([row | {"se": 20 * row["se"]}, row]) == words.format(f"{one:.1f} to {20 * one:.0f}")
    assert text.would_have_found([row | {"se": 1000 * row["se"]}, row]) == words.format(f"{one:.1f} to more than 100")
    [found] = results([("p->q", "d", 0.05, {})]).effects
    assert text.would_have_found([found, row]) == words.format(f"{one:.1f}"), "only what was not clear"
    assert text.would_have_found([found]) == text.would_have_found([row | {"low": None, "high": None, "p": None}]) == text.would_have_found([]) == ""
