import pytest

from kdlib.book.claims import CLAIMS, paper_pair, verdict
from kdlib.book.results import EFFECT, Results

OURS = [c for c in CLAIMS if c.chapter == "adversarial"]
REAL = {"source": "imagenette-112", "limit": 0}


def row(pair, effect, *, method="KL", images="T", domain="photo", se=0.003):
    half = 4.3 * se  # two degrees of freedom
    return dict.fromkeys(EFFECT) | {
        "pair": pair, "condition": {"images": images}, "domain": domain, "method": method, "reference": "Ind", "measure": "fooled",
        "effect": effect, "low": effect - half, "high": effect + half, "low_seeds": effect - half, "high_seeds": effect + half,
        "n_seeds": 3, "n_items": 900, "se": se, "df": 2.0, "p": 0.01}


def claim(method, images, side):
    return next(c for c in OURS if (c.method, c.condition, c.side) == (method, {"images": images}, side))


def judged(of, *rows, parameters=REAL):
    return verdict(of, Results("adversarial", {"parameters": parameters}, [], list(rows)))


@pytest.mark.parametrize("pair, margin", [("ResNet50->ResNet18", 0.0782 / 4), ("VGG19->VGG11", 0.0745 / 4), ("VGG19->ResNet18", 0.0683 / 4)])
def test_a_margin_is_a_quarter_of_the_papers_effect_of_kl_on_that_pair(pair, margin):
    for method in "KL", "Hint", "CRD":
        assert claim(method, "T", 1).margin[pair] == pytest.approx(margin)
    assert claim("KL", "unrelated", 0).margin == {"VGG19->VGG11": pytest.approx(0.0745 / 4)}
    assert claim("CRD", "T", 0).margin == {"ViT-B-32->ResNet18": 0.02}


def test_there_is_a_claim_for_each_method_and_kind_of_pair():
    assert {(c.method, c.condition["images"], c.side) for c in OURS} == {
        (m, *kind) for m in ("KL", "Hint", "CRD") for kind in (("T", 1), ("T", 0), ("unrelated", 0))} and len(OURS) == 9


def test_pairs_count_by_their_families():
    plain, mixed, vit, swin = "plain-48x2->plain-24x1", "vgg19_bn->resnet18", "transformer-128x4->residual-24x1", "swin_t->resnet18"
    assert [paper_pair(p) for p in (plain, mixed, vit)] == ["VGG19->VGG11", "VGG19->ResNet18", "ViT-B-32->ResNet18"]
    rows = [row(plain, 0.06), row(mixed, 0.05), row(vit, 0.06), row(swin, 0.05)]
    rise = judged(claim("KL", "T", 1), *rows)
    assert set(rise["rows"]) == {f"photo, {plain}", f"photo, {mixed}"} and rise["verdict"] == "replicated"
    assert rise["paper"][f"photo, {plain}"].startswith("+7.4") and rise["paper"][f"photo, {mixed}"].startswith("+6.8")
    assert list(judged(claim("KL", "T", 0), *rows)["rows"]) == [f"photo, {vit}"]
    assert judged(claim("KL", "T", 1), row(vit, 0.06)) is None


def test_a_rise_where_the_paper_finds_none_is_no_replication():
    vit, none = "vit_b_32->resnet18", claim("KL", "T", 0)
    assert judged(none, row(vit, 0.005))["verdict"] == "replicated"
    assert judged(none, row(vit, 0.06))["verdict"] == "not replicated"
    assert judged(none, row(vit, 0.01, se=0.02))["verdict"] == "inconclusive"


def test_foreign_images_are_judged_by_images_of_an_unrelated_network():
    own, foreign = (row("plain-48x2->plain-24x1", e, images=i) for e, i in ((0.08, "T"), (0.002, "unrelated")))
    assert judged(claim("KL", "unrelated", 0), own, foreign)["rows"]["photo"] is foreign
    assert judged(claim("KL", "unrelated", 0), own, foreign)["verdict"] == "replicated"
    assert judged(claim("KL", "T", 1), own, foreign)["rows"]["photo"] is own
    assert judged(claim("KL", "unrelated", 0), row("plain-48x2->plain-24x1", 0.05, images="unrelated"))["verdict"] == "not replicated"
    assert judged(claim("KL", "unrelated", 0), row("plain-48x2->plain-24x1", 0.0, images="T*")) is None  # T's twin is no unrelated network
    assert judged(claim("KL", "unrelated", 0), row("residual-48x2->residual-24x1", 0.0, images="unrelated")) is None  # the paper made them for VGG19->VGG11 alone


def test_where_noise_moves_independent_students_as_much_as_the_attack_nothing_is_judged():
    found = Results("adversarial", {"parameters": REAL}, [], [row("vit_b_32->resnet18", 0.06)])
    for images, value in ("T", 0.6), ("noise", 0.7):
        found.record([value, value], [0, 1], pair="vit_b_32->resnet18", domain="photo", method="Ind", measure="fooled", condition={"images": images})
    assert verdict(claim("KL", "T", 0), found)["verdict"].startswith("not tested (noise")
    found.records[2]["value"] = found.records[3]["value"] = 0.1
    assert verdict(claim("KL", "T", 0), found)["verdict"] == "not replicated"


def test_drawn_scenes_earn_no_verdict():
    found = judged(claim("KL", "T", 1), row("plain-8x1->plain-4x1", 0.08, domain="scene"), parameters={"source": "scenes", "limit": 0})
    assert found["verdict"].startswith("not tested") and list(found["settled"].values()) == ["yes"]
