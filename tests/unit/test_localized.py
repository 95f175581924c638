"""What the chapter on localization adds: maps compared and held against the true object, pictures that may be shown, layers by role."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdlib import measures
from kdlib.book import BookError, claims, figures, images, results
from kdlib.data.scenes import Scenes
from kdlib.distill import Alone
from kdlib.measures import Localized, MapCosine, Maps, Pictures
from kdlib.models import Model
from kdlib.probes import localization
from kdlib.train import OneCycle, Run

SUITE = Scenes(size=32, train_items=20, test_items=24)
NETWORK = Model("residual", {"widths": [4, 8], "blocks": 1})
RUN = Run(data=SUITE, domains=("scene",), model=NETWORK, objective=Alone(), schedule=OneCycle(1), seed="a")
OTHER = replace(RUN, seed="b")
OURS, THEIRS = Maps(RUN, SUITE, "scene", "map", None), Maps(OTHER, SUITE, "scene", "stage1", None)


@pytest.fixture
def kept(monkeypatch):
    """An empty cache of this process, and the layers at which maps are made."""
    made, make = [], localization.gradcam
    monkeypatch.setattr(measures, "_maps", {})
    monkeypatch.setattr(localization, "gradcam", lambda *given, layer, **more: made.append(layer) or make(*given, layer=layer, **more))
    return made


def network(seed):
    torch.manual_seed(seed)
    return NETWORK.build().eval()


def blind(seed):
    """A network with evidence for no class: the head speaks against all."""
    net = network(seed)
    net.fc.weight.data = -net.fc.weight.data.abs()
    return net


def test_all_images_are_compared_on_the_smaller_grid(kept):
    found = MapCosine(OURS, THEIRS).compute(network(0), network(1))
    x, y = SUITE.test("scene", "cpu")
    ours, theirs = localization.gradcam(network(0), x, y, layer="map"), localization.gradcam(network(1), x, y, layer="stage1")
    assert ours.shape[1:] == (16, 16) and theirs.shape[1:] == (32, 32) and found["grid"].tolist() == [16, 16]
    np.testing.assert_array_equal(found["cosine"], localization.cosine(ours, theirs).half().numpy())
    assert found["cosine"].shape == (24,) and found["zero"].shape == (2, 24) and found["zero"].dtype == bool
    np.testing.assert_array_equal(found["zero"], [(m == 0).flatten(1).all(1).numpy() for m in (ours, theirs)])


def test_whose_map_is_zero_is_told_apart(kept):
    found = MapCosine(OURS, replace(THEIRS, layer="map")).compute(blind(0), network(1))
    assert found["zero"][0].all() and not found["zero"][1].all() and np.isnan(found["cosine"]).all()
    found = MapCosine(OURS, replace(THEIRS, layer="map", run=replace(RUN, seed="c"))).compute(network(1), blind(0))
    assert found["zero"][1].all() and not found["zero"][0].all()


def test_a_process_makes_a_teachers_maps_once(kept, monkeypatch):
    for seed in 2, 3, 4:
        MapCosine(replace(OURS, run=replace(RUN, seed=str(seed))), THEIRS).compute(network(seed), network(1))
    assert kept == ["map", "stage1", "map", "map"]
    monkeypatch.setattr(measures, "MAPPED", 0)
    again = MapCosine(OURS, replace(THEIRS, layer="map")).compute(network(0), network(1))
    assert len(measures._maps) == 1 and kept[4:] == ["map", "map"]
    monkeypatch.setattr(measures, "_maps", {})
    np.testing.assert_array_equal(again["cosine"], MapCosine(OURS, replace(THEIRS, layer="map")).compute(network(0), network(1))["cosine"])


def test_objects_are_found_by_the_unrounded_maps():
    found = Localized(OURS).compute(network(0))
    x, y = SUITE.test("scene", "cpu")
    maps, masks = localization.gradcam(network(0), x, y, layer="map"), SUITE.masks("scene", "cpu")
    np.testing.assert_array_equal(found["energy"], localization.energy(maps, masks).numpy())
    np.testing.assert_array_equal(found["pointing"], localization.pointing(maps, masks).numpy())
    np.testing.assert_allclose(found["object"], localization.energy(torch.ones(24, 16, 16), masks).numpy(), rtol=1e-5)
    few = Localized(replace(OURS, items=5)).compute(network(0))
    np.testing.assert_array_equal(few["energy"], found["energy"][:5])
    assert np.isnan(Localized(OURS).compute(blind(0))["energy"]).all()


def test_a_suite_without_masks_is_refused():
    with pytest.raises(ValueError, match="SimpleNamespace has no masks of its objects"):
        Localized(replace(OURS, data=SimpleNamespace()))


def test_keys_tell_what_differs():
    given = [Localized(OURS), Localized(THEIRS), Localized(replace(OURS, items=5)), Localized(replace(OURS, grid=4)), MapCosine(OURS, THEIRS),
             Pictures(SUITE, "scene", 9, (1,)), Pictures(SUITE, "scene", 9, (1, 2)), Pictures(SUITE, "scene", 8, (1,)), Pictures(SUITE, "sketch", 9, (1,))]
    assert len({m.key for m in given}) == len(given)
    assert Localized(OURS).runs == (RUN,) and Pictures(SUITE, "scene", 9, (1,)).runs == ()


def test_pictures_are_of_the_classes_asked_for():
    found, (x, y) = Pictures(SUITE, "scene", 15, (2, 7)).compute(), SUITE.test("scene", "cpu")
    assert found["index"].tolist() == [i for i in range(15) if y[i] in (2, 7)] == [2, 7, 12]
    np.testing.assert_array_equal(found["image"], (255 * x[[2, 7, 12]]).round().byte().numpy())
    nothing = Pictures(SUITE, "scene", 15, ()).compute()
    assert nothing["index"].shape == (0,) and nothing["image"].shape == (0, 3, 32, 32)


# the book

def layer_names(*depths, hint="b"):
    return SimpleNamespace(map="z", flatten="f", hint=hint, depths=(*depths, "f", "logits"))


def test_layers_by_role():
    ours, theirs = layer_names("a", "b", "c"), layer_names("A", "B:tokens", hint="B")
    pair = images.Pair("one->two", NETWORK, NETWORK, theirs, ours, False)
    assert images.layers(pair, "map") == ("z", "z") and images.layers(pair, "hint") == pair.hint == ("b", "B")
    assert [images.layers(pair, r) for r in ("1", "2")] == [("a", "A"), ("b", "B:tokens")]
    for role in "0", "3", "a", "flatten", "-1", "":
        with pytest.raises(BookError, match="one->two has its maps at map, hint and the depths 1 to 2, and none at"):
            images.layers(pair, role)


def test_an_overlay_is_darker_where_the_map_is_higher_in_grey_too():
    heat = np.zeros((2, 4, 4), np.uint8)
    heat[0, 0, 0], heat[0, 0, 1] = 255, 100
    figure = figures.maps(np.full((2, 3, 8, 8), 128, np.uint8), {"T": heat}, {"T": ["high", "none"]}, names=["a", "b"], rows=["one", "two"], title="t")
    shown = [axis.images[0].get_array().mean(2) for axis in figure.axes]  # image and overlay of each row
    assert shown[1][0, 0] < shown[1][0, 20] < shown[1][-1, -1] - 0.05 and len(figure.axes[1].collections) == 2
    np.testing.assert_allclose(shown[3], shown[3][0, 0]), "a map of zeros leaves the grey image"
    assert not figure.axes[3].collections
    figures.plt.close(figure)


def test_the_claims_are_about_the_last_map_and_the_papers_families():
    given = dict.fromkeys(results.PROVENANCE) | {"parameters": {"source": "imagenette-112", "limit": 0}}
    made, random = results.Results("localization", given), np.random.default_rng(0)
    for pair, gain in ("residual-8x1->residual-4x1", 0.2), ("plain-8x1->plain-4x1", 0.0), ("transformer-8x1->residual-4x1", -0.3):
        other = (random.random((3, 4000)) < 0.5).astype(float)
        for condition in None, {"layer": "hint"}:
            share = (random.random((3, 4000)) < 0.5 + (gain if condition is None else -0.4)).astype(float)
            for method in "KL", "Hint", "CRD":
                made.effect(share, other, pair=pair, domain="photo", method=method, against="Ind2", measure="share nearer", condition=condition)
    kl, hint, crd = claims.verdicts("localization", made)
    assert [v["claim"].method for v in (kl, hint, crd)] == ["KL", "Hint", "CRD"] and len(kl["rows"]) == 2, "neither the transformer nor the hint layer"
    assert kl["verdict"] == "partly" and [v == "yes" for v in kl["settled"].values()] == [True, False]
    assert list(crd["paper"].values()) == ["+5.3 (Fig. 2)", "+17.4 (Fig. 2)"]
    made.provenance["parameters"]["source"] = "scenes"
    assert claims.verdicts("localization", made)[0]["verdict"].startswith("not tested")
