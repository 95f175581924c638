import hashlib

import pytest
import torch

from kdlib.data import DataError, scenes
from kdlib.data.scenes import DOMAINS, JITTER, SHAPES, Scenes, _draw
from kdlib.store import key

SMALL = Scenes(size=24, train_items=200, test_items=200)


def pixels(suite, split, domain):
    return _draw(suite, split, domain, "cpu").pixels


def test_scenes_are_drawn_from_their_seed():
    first = {d: pixels(SMALL, "test", d) for d in DOMAINS}
    _draw.cache_clear()
    assert all(torch.equal(pixels(SMALL, "test", d), drawn) for d, drawn in first.items())
    assert not torch.equal(pixels(Scenes(size=24, train_items=200, test_items=200, seed=1), "test", "scene"), first["scene"])
    assert not torch.equal(pixels(SMALL, "train", "scene"), first["scene"])


def test_what_is_drawn_changes_only_with_the_version():
    tiny = Scenes(size=16, train_items=20, test_items=20)
    total = hashlib.sha256(b"".join(pixels(tiny, "test", d).numpy().tobytes() for d in DOMAINS) + pixels(tiny, "train", "scene").numpy().tobytes())
    assert (tiny.version, total.hexdigest()[:16]) == (2, "c22c835d9e5feb0f")


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_domain_holds_the_same_objects(domain):
    x, y = SMALL.test(domain, "cpu")
    mask = SMALL.masks(domain, "cpu")
    assert x.shape == (200, 3, 24, 24) and 0 <= x.min() and x.max() <= 1 and y.bincount().tolist() == [20] * 10
    assert torch.equal(mask, SMALL.masks("scene", "cpu")) and torch.equal(y, SMALL.test("scene", "cpu")[1])
    assert 0.05 < mask.mean((1, 2)).min() and mask.mean((1, 2)).max() < 0.7
    assert (mask[:, [0, -1]] < 0.5).all() and (mask[:, :, [0, -1]] < 0.5).all(), "no object is cut at the border"


def test_drawings_show_the_mask():
    mask = SMALL.masks("scene", "cpu")
    torch.testing.assert_close(SMALL.test("silhouette", "cpu")[0][:, 0], 1 - mask, atol=1 / 255, rtol=0)
    far = torch.nn.functional.max_pool2d(mask[:, None], 5, 1, 2)[:, 0] == 0
    for domain in "sketch", "edge":
        x = SMALL.test(domain, "cpu")[0][:, 0]
        assert (x[far] > 0.99).float().mean() > 0.98 and (x < 0.5).flatten(1).any(1).all(), domain


@pytest.mark.parametrize("agree", [0.0, 0.4, 1.0])
def test_texture_agrees_with_the_class_as_often_as_asked(agree):
    suite = Scenes(size=16, train_items=10, test_items=1000, texture=agree)
    share = (suite.textures("scene", "cpu") == suite.test("scene", "cpu")[1]).float().mean()
    assert abs(share - agree) <= 3.3 * (agree * (1 - agree) / 1000) ** 0.5


@pytest.mark.parametrize("agree", [0.0, 0.5, 1.0])
def test_colour_agrees_with_the_class_as_often_as_asked(agree):
    suite = Scenes(size=16, train_items=10, test_items=1000, colour=agree)
    (x, y), mask = suite.test("scene", "cpu"), suite.masks("scene", "cpu")
    inside = (x * (mask > 0.99)[:, None]).sum((2, 3))  # its hue is the object's
    high, low = inside.amax(1), inside.amin(1)
    red, green, blue = inside.unbind(1)
    sector = torch.where(high == red, (green - blue) / (high - low), torch.where(high == green, 2 + (blue - red) / (high - low), 4 + (red - green) / (high - low)))
    distance = (10 * sector / 6 - y + 5) % 10 - 5  # in classes
    assert abs((distance.abs() <= 0.3).float().mean() - agree) <= 3.3 * (agree * (1 - agree) / 1000) ** 0.5 + 0.002


def test_cue_conflict_shows_another_class():
    texture, y = SMALL.textures("cue-conflict", "cpu"), SMALL.test("cue-conflict", "cpu")[1]
    assert (texture != y).all() and set((texture - y).remainder(10).tolist()) == set(range(1, 10))


def test_what_is_handed_out_is_the_callers():
    for given in SMALL.test("scene", "cpu")[1], SMALL.masks("scene", "cpu"), SMALL.textures("scene", "cpu"):
        given.zero_()
    assert SMALL.test("scene", "cpu")[1].any() and SMALL.masks("scene", "cpu").any() and SMALL.textures("scene", "cpu").any()


def test_training_scenes_and_their_recoloured_form():
    plain, jittered = SMALL.train(("scene",), "cpu"), SMALL.train(("scene jittered",), "cpu")
    assert torch.equal(plain.pixels, jittered.pixels) and (plain.colour, jittered.colour) == (None, JITTER)
    assert (plain.n, plain.labels.bincount().tolist()) == (200, [20] * 10)


@pytest.mark.parametrize("ask, says", [
    (lambda: Scenes(size=8), "size is at least 16"), (lambda: Scenes(test_items=3), "test_items is at least 10"),
    (lambda: Scenes(texture=1.2), "texture is a probability"), (lambda: Scenes(colour=-0.1), "colour is a probability"),
    (lambda: SMALL.test("photo", "cpu"), "domains are scene, sketch.*'photo'"), (lambda: SMALL.train(("sketch",), "cpu"), "learn from 'scene' or"),
    (lambda: SMALL.train((), "cpu"), "not nothing")])
def test_what_cannot_be_drawn_is_one_clear_line(ask, says):
    with pytest.raises(DataError, match=f"^scenes: .*{says}") as error:
        ask()
    assert "\n" not in str(error.value)


def test_every_field_is_in_the_key_and_no_photograph_is_needed_for_it(monkeypatch):
    monkeypatch.setattr(scenes, "_files", None)
    others = [Scenes(size=48), Scenes(train_items=2000), Scenes(test_items=500), Scenes(texture=0.6), Scenes(colour=0.8), Scenes(seed=1)]
    assert len({key(s.describe()) for s in (Scenes(), *others)}) == 7 and key(Scenes(texture=1).describe()) == key(Scenes(texture=1.0).describe())


def test_altered_photographs_are_one_clear_line(monkeypatch):
    monkeypatch.setattr(scenes, "DIGEST", "0" * 16)
    with pytest.raises(DataError, match="^textures: the content of .* install scikit-learn and scikit-image anew$"):
        scenes._files()


def test_the_shapes_differ():
    mask = Scenes(size=32, train_items=10, test_items=10).masks("scene", "cpu")
    assert len({tuple(m.flatten().tolist()) for m in mask}) == len(SHAPES)
