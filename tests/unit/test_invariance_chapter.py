"""What the chapter on invariance adds to the book: layers for Hint, numbers by comma, curves, claims."""

import numpy as np
import pytest

from kdlib import stats
from kdlib.book import BookError, claims, figures, images
from kdlib.book.results import Results
from kdlib.models import Layers

FACTS = {"parameters": {"source": "imagenette-112", "limit": 0}}


def pair(ours, theirs, hint=("b", "b")):
    layers = [Layers(map="m", flatten="f", hint=h, depths=tuple(d)) for d, h in ((ours, hint[0]), (theirs, hint[1]))]
    return images.Pair("T->S", None, None, layers[1], layers[0], True)


# layers for Hint

def test_all_depths_go_with_those_of_the_same_rank():
    assert images.depths(pair("abcfl", "ABCFL"), 0) == {"a": ("a", "A"), "b": ("b", "B"), "c": ("c", "C"), "f": ("f", "F"), "l": ("l", "L")}


@pytest.mark.parametrize("count, wanted", [(1, "ab"), (2, "abl"), (3, "abcl"), (5, "abcfl"), (20, "abcfl")])
def test_some_depths_are_spread_and_hints_own_is_among_them(count, wanted):
    assert "".join(images.depths(pair("abcfl", "abcfl"), count)) == wanted
    assert "".join(images.depths(pair("abcfl", "ABCFL"), 2)) == "al", "not its own layer: the teacher's would be another"


def test_unlike_numbers_of_layers_end_alike():
    found = images.depths(pair("abcfl", "AFL"), 0)
    assert [theirs for _, theirs in found.values()] == list("AAAFL")
    assert [theirs for _, theirs in images.depths(pair("afl", "ABCFL"), 0).values()] == list("AFL")
    assert [theirs for _, theirs in images.depths(pair("abcfl", "ABCDEFL"), 0).values()] == list("ACEFL")


# numbers by comma

def test_numbers_by_comma():
    assert images.numbers("s", "0.4, 0.2,.4", 0.01, 1) == [0.2, 0.4]


@pytest.mark.parametrize("value", ["", "0.2,", "0", "0.2, 2", "a", "nan", "0.2,nan,0.4", "0.2 0.3"])
def test_what_is_no_list_of_numbers_is_refused(value):
    with pytest.raises(BookError, match=r"parameter s takes numbers in \[0.01, 1\], by comma, not "):
        images.numbers("s", value, 0.01, 1)


# curves and the accuracy table

def measured(gain=0.2, seeds=3, domain="photo", name="resnet50->resnet18", chance=0):
    """Results with agreement under two strengths: Ind's and KL's, and a KL* that is Ind's equal but for noise."""
    rng, results, seen = np.random.default_rng(chance), Results("invariance", FACTS), list(range(seeds))
    for strength in (0.2, 0.4):
        share = 0.9 - strength
        values = {m: rng.random((seeds, 400)) < share + g for m, g in (("Ind", 0), ("KL", gain), ("KL*", 0), ("Hint", 0))}
        for m, v in values.items():
            where = dict(pair=name, domain=domain, measure="agreement", condition={"strength": strength}, method=m)
            results.record(v, seen, **where)
            for reference in ("Ind", f"{m}*"):
                if m != reference and reference in values:
                    results.effect(v, values[reference], 1.0, against=reference, **where)
    return results


def test_a_curve_stands_at_the_means_and_its_bars_are_the_effects_on_inds():
    results = measured()
    along = {s: {"strength": s} for s in (0.2, 0.4)}
    figure = figures.curves(results, measure="agreement", methods=["Ind", "KL"], along=along, panels={"resnet50->resnet18": "x", "other": "y"}, title="t",
                            label="l", across="s", bands={"KL*": {"strength": 0.4}})
    axis, empty = figure.axes
    lines = [line.get_ydata() for line in axis.lines]
    ind, kl = ([np.mean(results.values(method=m, condition=c)) for c in along.values()] for m in ("Ind", "KL"))
    assert any(np.allclose(y, ind) for y in lines if len(y) == 2) and any(np.allclose(y, kl) for y in lines if len(y) == 2)
    for base, condition in zip(ind, along.values()):
        row = results.find(method="KL", reference="Ind", condition=condition)
        assert sum(np.allclose(y, [base + row["low"], base + row["high"]]) for y in lines) == 1
    assert any(np.allclose(y, np.mean(results.values(method="KL*", condition={"strength": 0.4}))) for y in lines)
    assert not empty.lines, "a pair without results has an empty panel"
    figures.plt.close(figure)


@pytest.mark.parametrize("along", [{0.4: {"strength": 0.4}}, {"first": {"strength": 0.2}, "second": {"strength": 0.4}}])
def test_one_place_and_named_places_make_a_figure_and_two_seeds_no_bars(along):
    figure = figures.curves(measured(seeds=2), measure="agreement", methods=["Ind", "KL"], along=along, panels={"resnet50->resnet18": "x"}, title="t", label="l", across="s")
    assert len(figure.axes[0].lines) == 2
    figures.plt.close(figure)


def test_accuracies_pass_over_what_was_recorded_under_a_condition():
    class Study:
        pairs = [images.Pair("resnet50->resnet18", None, None, None, None, True)]
        suite = type("suite", (), {"seen": "photo"})

    results = Results("invariance", FACTS)
    for condition, share in ({}, 0.5), ({"depth": "stage1"}, 1.0):
        results.record(np.full((3, 10), share), [0, 1, 2], pair="resnet50->resnet18", domain="photo", method="Ind", measure="accuracy", condition=condition)
    table = images.accuracies(Study, results, ["T", "Ind"], paper=images.TABLE_5_COLOUR, saw="recoloured pictures").data
    assert "<td>50.0</td>" in table and "<td>75.3</td><td>70.0</td>" in table and "T learned from recoloured pictures" in table


# the claims

def verdicts(results):
    return {v["claim"].says: v for v in claims.verdicts("invariance", results)}


def test_kl_gains_and_gains_over_its_twin_where_it_does():
    found = verdicts(measured())
    gain, control = (next(v for says, v in found.items() if says.startswith("KL") and part in says) for part in ("when colours change", "its twin"))
    assert gain["verdict"] == control["verdict"] == "replicated" and list(gain["rows"]) == ["photo"]
    assert gain["rows"]["photo"]["condition"] == {"strength": 0.4} and gain["paper"]["photo"].startswith("+16.2")
    assert not any("transformer" in says for says in found), "a claim about other networks is not judged by these"


def test_hint_without_effect_is_what_the_paper_says_and_a_gain_is_not():
    assert next(v for says, v in verdicts(measured()).items() if says.startswith("Hint"))["verdict"] in ("replicated", "inconclusive")
    results = measured()
    for row in results.effects:
        if row["method"] == "Hint" and row["reference"] == "Ind":
            row.update(effect=0.1, low=0.08, high=0.12, se=0.005, df=2)
    assert next(v for says, v in verdicts(results).items() if says.startswith("Hint"))["verdict"] == "not replicated"


@pytest.mark.parametrize("name", ["vit_b_32->resnet18", "swin_t->resnet18", "transformer-128x4->residual-24x1"])
def test_transformers_of_both_families_have_claims_of_their_own(name):
    found = verdicts(measured(name=name))
    assert all("transformer" in says for says in found) and len(found) == 2  # KL's and Hint's: no CRD here
    assert next(v for says, v in found.items() if says.startswith("KL"))["verdict"] == "replicated"


def test_drawn_scenes_earn_no_verdict():
    results = measured(domain="scene", name="residual-16x1->residual-8x1")
    results.provenance = {"parameters": {"source": "scenes", "limit": 0}}
    assert {v["verdict"] for v in verdicts(results).values()} == {"not tested (not the paper's data)"}


def test_a_trend_has_no_reference():
    results, rise = measured(), np.random.default_rng(0).normal(0.1, 0.3, (3, 400))
    results.effect(rise, 0 * rise, pair="resnet50->resnet18", domain="photo", method="Hint", against=None, measure="rise of agreement with Hint's depth",
                   condition={"strength": 0.4})
    judged = next(v for says, v in verdicts(results).items() if says.startswith("the deeper"))
    assert judged["verdict"] == "replicated" and judged["rows"]["photo"]["low"] == pytest.approx(stats.crossed(rise).low)
