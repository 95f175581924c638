import dataclasses
import multiprocessing
import os
import pickle
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from kdlib.data import DataError, MissingData, data_sets, derive, photos, pixels
from kdlib.data.photos import DIGESTS, Photos
from kdlib.distill import Alone
from kdlib.measures import Groups, Items
from kdlib.models import Model
from kdlib.store import cache_root, describe, key
from kdlib.train import Adadelta, Run, fit

DERIVED = ("grey", "edges", "low-pass", "high-pass", "shuffled")
STIMULI, PACS = ("cue-conflict", "edge", "silhouette"), ("photo (PACS)", "art", "cartoon", "sketch")


@pytest.fixture(autouse=True)
def own_data(request, monkeypatch, tmp_path):
    """No data but the test's own, nothing decoded yet; with `real_data` those of KDLIB_DATA."""
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("KDLIB_DATA", raising=False)
        monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "cache"))
    pixels._open.cache_clear()
    yield
    pixels._open.cache_clear()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def refused(call, kind=DataError):
    """The message, which is one line."""
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# derived images

def test_greyscale_by_hand():
    x = torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
    torch.testing.assert_close(derive.greyscale(x), torch.full((1, 3, 1, 1), 0.2989 + 0.587 * 0.5 + 0.114 * 0.2))


@pytest.mark.parametrize("turned", [False, True])
def test_edges_by_hand(turned):
    """A step of 0.2 has |g| = 0.2 in the two columns beside it, so they are 1 - 2 * 0.2; flat parts and borders are white."""
    x = torch.full((1, 3, 6, 6), 0.3)
    x[..., 3:] = 0.5
    expected = torch.ones(1, 3, 6, 6)
    expected[..., 2:4] = 0.6
    if turned:
        x, expected = x.mT, expected.mT
    torch.testing.assert_close(derive.edges(x), expected, atol=1e-3, rtol=0)  # the weights of luminance add up to 0.9999
    x[x > 0.4] = 0.9
    assert derive.edges(x).unique().tolist() == [0, 1], "a step above one half is black"


def test_edges_against_scipy():
    x = 0.3 * torch.rand(2, 3, 9, 7, generator=seeded())
    grey = derive.greyscale(x)[:, 0].double().numpy()
    g = np.stack([np.hypot(ndimage.sobel(i, 0, mode="nearest"), ndimage.sobel(i, 1, mode="nearest")) / 4 for i in grey])
    assert 2 * g.max() < 1
    torch.testing.assert_close(derive.edges(x), torch.from_numpy(1 - 2 * g).float()[:, None].expand(-1, 3, -1, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.7])
def test_low_and_high_pass(sigma):
    x = torch.rand(2, 3, 9, 11, generator=seeded())
    low, high = derive.low_pass(x, sigma), derive.high_pass(x, sigma)
    expected = ndimage.gaussian_filter(x.double().numpy(), sigma, axes=(2, 3), mode="mirror", truncate=4)
    torch.testing.assert_close(low, torch.from_numpy(expected).float(), atol=1e-5, rtol=0)
    kept = (high > 0) & (high < 1)
    torch.testing.assert_close((low + high - 0.5)[kept], x[kept])
    assert kept.float().mean() > 0.9
    flat = torch.full((1, 3, 9, 11), 0.7)
    torch.testing.assert_close(derive.low_pass(flat, sigma), flat)
    torch.testing.assert_close(derive.high_pass(flat, sigma), torch.full_like(flat, 0.5))


def test_high_pass_is_clipped():
    x = torch.zeros(1, 3, 9, 9)
    x[..., 4, 4] = 1
    high = derive.high_pass(x, 2.0)
    assert high[0, 0, 4, 4] == 1 and (high < 0.5).any()


@pytest.mark.parametrize("sigma", [0, -1, 2.3])
def test_a_blur_beyond_the_image(sigma):
    with pytest.raises(ValueError, match=r"low_pass: sigma is above 0, and 4 sigma less than the side of 9 pixels"):
        derive.low_pass(torch.rand(1, 3, 9, 12), sigma)


def test_shuffled_images_hold_the_same_patches():
    x = torch.rand(20, 3, 6, 9, generator=seeded())
    got = derive.shuffle_patches(x, 3, seeded(1))
    assert got.shape == x.shape and not torch.equal(got, x)

    def patches(image):
        return [image[:, 2 * i:2 * i + 2, 3 * j:3 * j + 3].contiguous().numpy().tobytes() for i in range(3) for j in range(3)]

    orders = {tuple(patches(a).index(p) for p in patches(b)) for a, b in zip(x, got)}
    assert all(Counter(patches(a)) == Counter(patches(b)) for a, b in zip(x, got))
    assert len(orders) == 20, "each image in its own order"
    assert torch.equal(got, derive.shuffle_patches(x, 3, seeded(1))) and not torch.equal(got, derive.shuffle_patches(x, 3, seeded(2)))
    assert torch.equal(derive.shuffle_patches(x, 1, seeded()), x)


def test_shuffling_is_uniform():
    """1,200 images of 2 x 2 pixels that tell their place: each place gets each pixel about 300 times."""
    x = torch.arange(4.0).view(1, 1, 2, 2).expand(1200, 3, 2, 2)
    got = derive.shuffle_patches(x, 2, seeded())
    counts = torch.stack([(got[:, 0].flatten(1) == value).sum(0) for value in range(4)])
    assert counts.sum() == 4800 and (counts - 300).abs().max() < 75  # 5 standard deviations


def test_patches_that_do_not_fit():
    with pytest.raises(ValueError, match="shuffle_patches: 6 x 8 pixels cannot be cut into 4 x 4 equal patches"):
        derive.shuffle_patches(torch.rand(1, 3, 6, 8), 4, seeded())


# pictures in files

def save(file, image, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image, np.uint8))).save(file, **options)
    return file


def test_the_centre_square_in_the_order_red_green_blue(tmp_path):
    wide = np.zeros((8, 24, 3))
    wide[:, 8:16] = (250, 120, 10)
    wide[0, 8:16] = (1, 2, 3)
    for image in wide, wide.transpose(1, 0, 2):
        got = pixels.square(save(tmp_path / "x.png", image), 8)
        assert np.array_equal(got, wide[:, 8:16] if image is wide else wide[:, 8:16].transpose(1, 0, 2))


def test_scaling_is_antialiased_and_draws_no_halo(tmp_path):
    stripes = np.zeros((64, 64, 3))
    stripes[:, ::2] = 200
    got = pixels.square(save(tmp_path / "x.png", stripes), 16)
    assert abs(got[4:-4, 4:-4].astype(int) - 100).max() <= 2, "stripes of one pixel become grey"
    step = np.full((112, 112, 3), 50)
    step[:, 49:] = 200
    got = pixels.square(save(tmp_path / "x.png", step), 64)
    assert got.min() == 50 and got.max() == 200 and len(np.unique(got)) <= 4
    assert pixels.square(save(tmp_path / "x.png", step[:2, :2]), 8).shape == (8, 8, 3)


def test_pictures_are_upright(tmp_path):
    image = Image.fromarray((np.arange(8 * 8 * 3).reshape(8, 8, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    got = pixels.square(save(tmp_path / "x.png", image, exif=exif), 8)
    assert np.array_equal(got, np.rot90(np.asarray(image), -1))


def test_transparent_pictures_lie_on_white(tmp_path):
    ink = np.zeros((8, 8, 4))
    ink[2:4, :, 3] = 255
    palette = Image.fromarray(ink[..., 3].astype(np.uint8) // 255, "P")
    palette.putpalette([9, 9, 9, 0, 0, 0])
    for file in save(tmp_path / "a.png", ink), save(tmp_path / "b.png", palette, transparency=0):
        got = pixels.square(file, 8)
        assert (got[2:4] == 0).all() and (np.delete(got, (2, 3), 0) == 255).all()
    assert (pixels.square(save(tmp_path / "c.png", Image.new("L", (8, 8), 77)), 8) == 77).all()


def test_pictures_of_16_bits_are_refused_rather_than_clipped(tmp_path):
    save(tmp_path / "x.png", Image.fromarray(np.full((8, 8), 30_000, np.uint16)))
    with pytest.raises(ValueError, match="not 8 bits"):
        pixels.square(tmp_path / "x.png", 8)


# a folder of pictures

CLASSES = ("ant", "bee", "cat")
COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}


def write(folder, counts, seed=0):
    """Noise in the colour of each class."""
    random = np.random.default_rng(seed)
    for name, n in counts.items():
        for i in range(n):
            save(folder / name / f"{name}{i}.png", random.integers(0, 6, (12, 10, 3)) + COLOURS.get(name, (99, 99, 99)))
    return folder


@pytest.fixture
def folder(tmp_path):
    """7, 6 and 5 pictures to train, 3 each to test, and what else lies about."""
    write(tmp_path / "any" / "train", {"ant": 7, "bee": 6, "cat": 5})
    write(tmp_path / "any" / "val", dict.fromkeys(CLASSES, 3), seed=1)
    for junk in "train/ant/Thumbs.db", "train/ant/._ant0.png", "val/README.txt", "train/.cache/x.png":
        (tmp_path / "any" / junk).parent.mkdir(exist_ok=True)
        (tmp_path / "any" / junk).write_text("no picture")
    return tmp_path / "any"


def suite(folder, size=8, unseen=(), limit=None):
    return Photos("imagefolder", size, unseen, str(folder), limit)


def unmoved(data):
    """Training images neither moved nor mirrored."""
    parameters = torch.zeros(data.n, data.draw(seeded()).shape[1])
    parameters[:, 3:6] = 1
    return data.batch(torch.arange(data.n), parameters)


def test_a_folder_with_its_own_split(folder):
    data = suite(folder).train(("photo",), "cpu")
    x, y = data.batch(torch.arange(data.n), data.draw(seeded()))
    assert (data.n, data.views, data.fixed) == (18, 1, False) and y.bincount().tolist() == [7, 6, 5]
    assert suite(folder).names == CLASSES and suite(folder).classes == 3
    assert suite(folder).domains == ("photo", *DERIVED)
    for images, labels in (x, y), suite(folder).test("photo", "cpu"):
        assert images.shape == (len(labels), 3, 8, 8) and (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert 0 <= images.min() and 0.95 < images.max() <= 1
        assert torch.equal(images.mean((2, 3)).argmax(1), labels), "red, green, blue"
    assert suite(folder).test("photo", "cpu")[1].tolist() == [0, 1, 2] * 3


def test_test_may_be_called_test_and_lack_a_class(folder):
    os.rename(folder / "val", folder / "test")
    shutil.rmtree(folder / "test" / "bee")
    assert suite(folder).test("photo", "cpu")[1].tolist() == [0, 2] * 3


def test_training_items_are_one_of_each_class_in_turn(folder):
    assert unmoved(suite(folder).train(("photo",), "cpu"))[1].tolist() == [0, 1, 2] * 5 + [0, 1, 0]


def test_limit_keeps_the_first_of_each_split_and_domain(folder):
    whole, few = suite(folder), suite(folder, limit=4)
    for (x, y), (first, labels) in [(whole.test(d, "cpu"), few.test(d, "cpu")) for d in whole.domains] + \
            [tuple(unmoved(s.train(("photo",), "cpu")) for s in (whole, few))]:
        assert len(first) == 4 and torch.equal(labels, y[:4])
        torch.testing.assert_close(first, x[:4])


def test_without_a_split_a_fifth_of_each_class_is_for_testing(tmp_path):
    whole = write(tmp_path / "whole", {"ant": 10, "bee": 4, "cat": 14})
    (train, y), (test, z) = unmoved(suite(whole).train(("photo",), "cpu")), suite(whole).test("photo", "cpu")
    assert y.bincount().tolist() == [8, 3, 12] and z.bincount().tolist() == [2, 1, 2]
    seen, held = ({image.numpy().tobytes() for image in part} for part in (train, test))
    assert len(seen) == 23 and len(held) == 5 and not seen & held
    shutil.copytree(whole, tmp_path / "copy")
    assert torch.equal(suite(tmp_path / "copy").test("photo", "cpu")[0], test)


def test_settings_are_chosen_on_a_fifth_of_the_training_pictures(tmp_path):
    write(tmp_path / "any" / "train", {"ant": 11, "bee": 9, "cat": 5})
    write(tmp_path / "any" / "val", dict.fromkeys(CLASSES, 3), seed=1)
    whole, choosing = suite(tmp_path / "any", 32), dataclasses.replace(suite(tmp_path / "any", 32), held_out=True)
    (train, y), (held, z), (every, _), (test, _) = unmoved(choosing.train(("photo",), "cpu")), choosing.test("photo", "cpu"), unmoved(whole.train(("photo",), "cpu")), whole.test("photo", "cpu")
    assert y.bincount().tolist() == [9, 8, 4] and z.bincount().tolist() == [2, 1, 1]
    train, held, every, test = ({image.numpy().tobytes() for image in part} for part in (train, held, every, test))
    assert train | held == every and not train & held and not test & (train | held)
    assert unmoved(choosing.train(("photo jittered",), "cpu"))[1].tolist() == y.tolist() and key(describe(choosing)) != key(describe(whole))


def test_derived_domains_are_of_the_same_items(folder):
    x, y = suite(folder, 32).test("photo", "cpu")
    expected = {"grey": derive.greyscale(x), "edges": derive.edges(x), "low-pass": derive.low_pass(x, 1.0), "high-pass": derive.high_pass(x, 0.5),
                "shuffled": derive.shuffle_patches(x, 4, seeded(20231210))}
    for domain in DERIVED:
        got, labels = suite(folder, 32).test(domain, "cpu")
        assert torch.equal(labels, y) and got.shape == x.shape and not torch.equal(got, x)
        torch.testing.assert_close(got, expected[domain])


def test_jittered_training_is_recoloured_and_else_the_same(folder):
    plain, jittered = (suite(folder).train(domains, "cpu") for domains in ((Photos.seen,), (Photos.jittered,)))
    assert plain.colour is None and jittered.colour == (0.4, 0.2)
    assert torch.equal(plain.draw(seeded()), jittered.draw(seeded())[:, :3]), "the same moves"
    torch.testing.assert_close(unmoved(plain), unmoved(jittered))
    assert not torch.equal(plain.batch(torch.arange(9), plain.draw(seeded()))[0], jittered.batch(torch.arange(9), jittered.draw(seeded()))[0])


def test_the_engine_trains_on_it(folder):
    run = Run(suite(folder, 16), (Photos.jittered,), Model("mnistnet", {"size": 16, "classes": 3}), Alone(), Adadelta(8, batch=6), "0")
    net, info = fit(run)
    x, y = run.data.test("photo", "cpu")
    with torch.no_grad():
        assert (net(x).argmax(1) == y).all() and info["loss"][-1] < info["loss"][0]


# the suite as a value

def test_named_sets_are_described_without_data(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "nowhere"))
    suites = [Photos(), Photos(size=96), Photos(limit=9), Photos(unseen=()), Photos(unseen=("pacs-96",))]
    assert len({key(describe(s)) for s in suites}) == 5
    assert describe(Photos()) == {"suite": "photos", "version": 1, "size": 64, "limit": None, "photographs": DIGESTS["imagenette-112"],
                                  "unseen": {"geirhos": DIGESTS["geirhos-128"], "pacs": DIGESTS["pacs-96"]}}
    assert describe(Photos(unseen=("pacs-96", "geirhos-128"))) == describe(Photos()) and Photos().classes == len(set(Photos().names)) == 10
    assert Photos().domains == ("photo", *DERIVED, *STIMULI, *PACS)


def test_a_folders_key_is_its_contents_not_its_paths(folder, tmp_path):
    before = key(describe(suite(folder)))
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert key(describe(suite(tmp_path / "elsewhere"))) == before
    shutil.move(folder, tmp_path / "moved")
    assert key(describe(suite(tmp_path / "moved"))) == before and str(tmp_path) not in str(describe(suite(tmp_path / "moved")))

    def changed(change):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "moved", folder)
        change()
        return key(describe(suite(folder)))

    def renamed():
        for split in "train", "val":
            os.rename(folder / split / "ant", folder / split / "asp")

    first, other = folder / "train" / "ant" / "ant0.png", folder / "val" / "ant" / "ant0.png"
    keys = {before, changed(lambda: first.rename(first.with_name("new.png"))), changed(renamed), changed(first.unlink),
            changed(lambda: shutil.copy(other, first)), changed(lambda: other.rename(folder / "val/bee/bee9.png"))}
    assert len(keys) == 6
    assert changed(lambda: (folder / "train/ant/Thumbs.db").write_text("other")) == before


def test_a_digest_is_computed_once_and_anew_when_a_file_changes(folder, monkeypatch):
    read = []
    monkeypatch.setattr(pixels.Collection, "_read", lambda self, before=pixels.Collection._read: read.append(self.name) or before(self))
    before = describe(suite(folder))
    assert describe(suite(folder)) == before and len(read) == 1
    save(folder / "train" / "cat" / "cat0.png", np.zeros((12, 10, 3)))
    assert describe(suite(folder)) != before and len(read) == 2
    [place] = (cache_root() / "data" / "digests").glob("*")
    place.write_text("{")
    describe(suite(folder))
    assert len(read) == 3, "what is damaged is computed again"


def test_a_suite_takes_its_digest_along(folder, monkeypatch):
    whole = suite(folder)
    before = describe(whole)
    shutil.rmtree(folder)
    assert describe(pickle.loads(pickle.dumps(whole))) == before


def test_pictures_that_change_after_the_key_was_formed(folder):
    whole = suite(folder)
    describe(whole)
    save(folder / "train" / "cat" / "cat0.png", np.zeros((12, 10, 3)))
    assert "changed after the key was formed" in refused(lambda: whole.train(("photo",), "cpu"))


# decoded pictures in the cache

def decoding(monkeypatch):
    """The files that are decoded from now on."""
    done = []
    monkeypatch.setattr(pixels, "square", lambda file, size, before=pixels.square: done.append(file) or before(file, size))
    return done


def test_pictures_are_decoded_once(folder, monkeypatch):
    describe(suite(folder))
    done = decoding(monkeypatch)
    x, _ = suite(folder).test("photo", "cpu")
    assert len(done) == 9
    pixels._open.cache_clear()
    assert torch.equal(suite(folder).test("photo", "cpu")[0], x) and torch.equal(suite(folder).test("grey", "cpu")[0], derive.greyscale(x))
    assert len(done) == 9
    suite(folder).test("photo", "cpu")[1].zero_()
    assert suite(folder).test("photo", "cpu")[1].tolist() == [0, 1, 2] * 3, "what one does to its labels nobody else sees"
    suite(folder, limit=4).test("photo", "cpu")
    assert len(done) == 13, "a limit decodes no more than it needs"
    suite(folder, 12).test("photo", "cpu")
    assert len(done) == 22
    monkeypatch.setattr(pixels, "version", lambda name: "another")
    suite(folder, 12).test("photo", "cpu")
    assert len(done) == 31, "another decoder may come to other pixels"


def test_decoded_pictures_map_into_memory_and_are_not_changed_through_it(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = suite(folder).train(("photo",), "cpu")
    [file] = (cache_root() / "data" / "pixels").glob("*/pixels.npy")
    assert str(file) in Path("/proc/self/maps").read_text() if sys.platform == "linux" else True
    assert np.array_equal(np.load(file, allow_pickle=False), data.pixels.numpy()) and data.pixels.dtype == torch.uint8
    data.pixels.zero_()
    assert np.load(file).max() > 200


def damage(change):
    [place] = (cache_root() / "data" / "pixels").iterdir()
    change(place)


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [
    lambda p: flip(p / "pixels.npy"), lambda p: flip(p / "labels.npy"), lambda p: (p / "pixels.npy").write_bytes((p / "pixels.npy").read_bytes()[:-100]),
    lambda p: (p / "labels.npy").unlink(), lambda p: (p / "meta.json").write_text("{"), lambda p: (p / "meta.json").write_text("[]"),
    lambda p: np.save(p / "labels.npy", np.array([{}]), allow_pickle=True), lambda p: shutil.rmtree(p) or p.write_text(""),
    lambda p: np.save(p / "pixels.npy", np.load(p / "pixels.npy").reshape(9, 4, 16, 3)),
    lambda p: (p / "meta.json").write_text((p / "meta.json").read_text().replace('"size": 8', '"size": 9')),
], ids=["pixels", "labels", "truncated", "missing", "cut meta", "other meta", "pickle", "a file", "shape", "foreign"])
def test_a_damaged_cache_is_set_aside_and_made_anew(folder, capsys, change):
    x, y = suite(folder).test("photo", "cpu")
    damage(change)
    pixels._open.cache_clear()
    again, labels = suite(folder).test("photo", "cpu")
    assert torch.equal(again, x) and torch.equal(labels, y)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("data: the decoded pictures in ") and "set aside, decoded anew" in said
    assert len(list((cache_root() / "data" / "damaged").iterdir())) == 1
    pixels._open.cache_clear()
    suite(folder).test("photo", "cpu")
    assert capsys.readouterr().err == ""


def test_what_a_kill_left_is_no_hindrance(folder):
    x, _ = suite(folder).test("photo", "cpu")
    damage(lambda place: place.rename(f"{place}.making"))
    damage(lambda place: (place / "labels.npy").unlink())
    pixels._open.cache_clear()
    assert torch.equal(suite(folder).test("photo", "cpu")[0], x)
    damage(lambda place: place.name.endswith(".making") and pytest.fail("left over"))


def test_processes_that_start_at_once_decode_once(folder, tmp_path, monkeypatch):
    describe(suite(folder))
    decode = pixels.square

    def logged(file, size):
        with open(tmp_path / "log", "a") as log:
            log.write(f"{file}\n")
        return decode(file, size)

    def work(barrier, out):
        barrier.wait()
        x, _ = suite(folder).test("photo", "cpu")
        out.put(x.sum().item())

    monkeypatch.setattr(pixels, "square", logged)
    fork = multiprocessing.get_context("fork")
    barrier, out = fork.Barrier(3), fork.Queue()
    workers = [fork.Process(target=work, args=(barrier, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    sums = [out.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len(set(sums)) == 1 and len((tmp_path / "log").read_text().splitlines()) == 9


def test_a_cache_that_cannot_be_written(folder):
    describe(suite(folder))
    (cache_root() / "data" / "pixels").write_text("in the way")
    message = refused(lambda: suite(folder).test("photo", "cpu"))
    assert message.startswith(f"data: cannot keep decoded pictures under {cache_root() / 'data'}: ") and "make room, or point KDLIB_CACHE" in message


# bad input

def test_unknown_names():
    sources = "imagenette-112, imagenette-160, imagenette-320, imagenette, imagefolder"
    assert refused(lambda: Photos("imagenet")) == f"photos: source is one of {sources}, not 'imagenet'"
    assert refused(lambda: Photos("imagefolder")) == "photos: source imagefolder needs a folder"
    assert refused(lambda: Photos(folder="/x")) == "photos: folder is for source imagefolder, not for imagenette-112"
    for size in 4, 30:
        assert refused(lambda: Photos(size=size)) == f"photos: size is a multiple of 4 from 8 pixels on, not {size}"
    assert refused(lambda: Photos(unseen=("vlcs",))) == "photos: unseen are some of geirhos-128, geirhos, pacs-96, pacs, not vlcs"
    assert refused(lambda: Photos(unseen=("pacs", "pacs-96"))) == "photos: unseen holds two editions of one data set: pacs, pacs-96"
    assert refused(lambda: Photos(limit=1)) == "photos: limit is None or at least 2, not 1"


@pytest.mark.parametrize("domains", [(), ("photo", "photo jittered"), ("sketch",), ("grey",)])
def test_domains_that_one_cannot_train_on(domains):
    message = refused(lambda: Photos().train(domains, "cpu"))
    assert message == f"photos: networks learn from 'photo' or 'photo jittered', not {', '.join(map(repr, domains)) or 'nothing'}"


def test_domains_that_one_cannot_test_on():
    message = refused(lambda: Photos(unseen=("geirhos-128",)).test("sketch", "cpu"))
    assert message == f"photos: test domains are {', '.join(('photo', *DERIVED, *STIMULI))}, not 'sketch'"


def test_folders_that_are_no_data_set(folder, tmp_path):
    missing = refused(lambda: describe(suite(tmp_path / "nowhere")), MissingData)
    assert missing == f"imagefolder: there is no folder {tmp_path}/nowhere; it holds train/CLASS/* and val/CLASS/* or test/CLASS/*, or CLASS/* alone"
    (tmp_path / "empty").mkdir()
    assert refused(lambda: suite(tmp_path / "empty").names).startswith(f"imagefolder: 0 classes in {tmp_path}/empty, but at least 2 are needed; it")
    write(tmp_path / "one", {"ant": 5, "bee": 1})
    assert refused(lambda: suite(tmp_path / "one").names).startswith(f"imagefolder: 1 pictures in {tmp_path}/one/bee, too few to train and test; it")
    save(folder / "val" / "dog" / "x.png", np.zeros((8, 8, 3)))
    assert refused(lambda: suite(folder).names) == f"imagefolder: dog in {folder}/val is no class of {folder}/train"
    shutil.rmtree(folder / "val")
    assert "1 classes in" in refused(lambda: suite(folder).names), "train alone is one class"
    (folder / "test").mkdir()
    assert refused(lambda: suite(folder).names).startswith(f"imagefolder: no pictures in {folder}/test; it holds")


def test_pictures_that_cannot_be_decoded(folder):
    for name in "ant0", "ant1", "ant2", "ant3":
        file = folder / "train" / "ant" / f"{name}.png"
        file.write_bytes(file.read_bytes()[:60])
    (folder / "val" / "bee" / "bee0.png").write_bytes(b"")
    message = refused(lambda: describe(suite(folder)))
    assert message.startswith(f"imagefolder: 5 of 27 pictures in {folder} cannot be decoded: train/ant/ant")
    assert message.count("train/ant/ant") == 3 and message.endswith(", ...; replace or remove them") and "(" in message
    assert not (cache_root() / "data" / "digests").exists()
    shutil.rmtree(folder / "train" / "ant")
    assert refused(lambda: describe(suite(folder))).startswith(f"imagefolder: ant in {folder}/val is no class")
    shutil.rmtree(folder / "val" / "ant")
    assert "1 of 17 pictures" in (message := refused(lambda: describe(suite(folder)))) and "val/bee/bee0.png (cannot identify" in message


# data sets by name, remade in small

COUNTS = {"imagenette": {"train": 20, "test": 10}, "geirhos": dict.fromkeys(STIMULI, 16), "pacs": dict.fromkeys(PACS, 6)}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Where KDLIB_DATA would have the data sets, one or two pictures a class, whose content is then the declared one."""
    for name, source in photos.SOURCES.items():
        parts = {part: (COUNTS[name][part], folders) for part, (_, folders) in source.parts.items()}
        monkeypatch.setitem(photos.SOURCES, name, dataclasses.replace(source, parts=parts))
        for seed, (part, (n, folders)) in enumerate(parts.items()):
            root = tmp_path / "data" / {"imagenette": "imagenette2"}.get(name, name) / folders[0]
            write(root, dict.fromkeys(source.classes, n // len(source.classes)), seed)
            for k, file in enumerate(sorted(root.glob("*/*.png")) if part == "cue-conflict" else ()):
                file.rename(file.with_stem(f"{file.stem}-cat{k % 3}"))
    for part in "photo", "sketch":
        (tmp_path / "data" / "pacs" / part / "person").mkdir()
        (tmp_path / "data" / "pacs" / part / "person" / "1.jpg").write_text("nobody reads this")
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "data"))
    for name in DIGESTS:
        monkeypatch.setitem(DIGESTS, name, photos._find(name, download=False).content())
    return tmp_path / "data"


def test_every_domain_of_every_set(small):
    whole = Photos(size=8)
    sizes = {d: len(whole.test(d, "cpu")[1]) for d in whole.domains}
    assert sizes == {**dict.fromkeys(("photo", *DERIVED), 10), **COUNTS["geirhos"], **COUNTS["pacs"]}
    assert whole.train(("photo",), "cpu").n == 20 and whole.test("edges", "cpu")[1].tolist() == list(range(10))
    assert whole.sharing == {"cue-conflict": ("shape", "texture")} and Photos(unseen=("pacs",)).sharing == {}
    shape, texture = Groups(whole, "cue-conflict").compute()["group"]
    assert sorted(shape) == list(range(16)) and np.array_equal(texture[shape.argsort()], np.arange(16) % 3)
    assert Groups(Photos(size=8, limit=5), "cue-conflict").compute()["group"].shape == (2, 5)
    assert refused(lambda: whole.groups("edge")) == "photos: the images of 'edge' have nothing in common that is known"
    for domain in (*STIMULI, *PACS):
        x, y = whole.test(domain, "cpu")
        assert (y == -1).all() and x.shape == (len(y), 3, 8, 8) and Items(whole, domain).compute()["label"].tolist() == [-1] * len(y)
    assert {name: data_sets()[name].state() for name in photos.SETS} == {
        "imagenette": ("complete", f"{small}/imagenette2 (imagenette-112)"), "geirhos": ("complete", f"{small}/geirhos (geirhos-128)"),
        "pacs": ("complete", f"{small}/pacs (pacs-96)")}


def test_persons_are_never_read(small):
    for name in "pacs-96", "pacs":
        assert not [f for f in photos._find(name, download=False).files if "person" in str(f.relative_to(small))]


def test_another_edition_is_another_key_and_no_declared_one(small):
    declared = describe(Photos(size=8))
    own = Photos("imagenette", 8, ("geirhos", "pacs"))
    assert describe(own) == declared, "the same content under another name"
    save(small / "pacs" / "art_painting" / "dog" / "dog0.png", np.zeros((8, 8, 3)))
    own = Photos("imagenette", 8, ("geirhos", "pacs"))
    assert describe(own) != declared and describe(own)["photographs"] == declared["photographs"] and describe(Photos(size=8)) == declared
    assert (own.test("art", "cpu")[0] == 0).all((1, 2, 3)).any()
    message = refused(lambda: Photos(size=8).test("art", "cpu"))
    assert message.startswith(f"pacs-96: the content of {small}/pacs is not the declared one (digest ") and "; choose pacs in the place of pacs-96" in message
    Photos(size=8).test("photo", "cpu")
    state, found = data_sets()["pacs"].state()
    assert state == "complete" and found == f"{small}/pacs (an edition without declared digest; its own is {describe(own)['unseen']['pacs']})"


def test_sets_that_are_missing_are_missed_only_when_asked_for(small):
    for name in "pacs", "geirhos":
        shutil.rmtree(small / name)
    whole = Photos(size=8)
    assert len(whole.test("photo", "cpu")[1]) == 10 and whole.train(("photo",), "cpu").n == 20
    missing = refused(lambda: whole.test("sketch", "cpu"), MissingData)
    assert missing == f"pacs-96: no pacs in {small} (KDLIB_DATA); set KDLIB_DATA to a folder that holds pacs/{{photo,art_painting,cartoon,sketch}}/CLASS/* (its authors' page: https://dali-dl.github.io/project_iccv2017.html)"
    assert refused(lambda: whole.test("edge", "cpu"), MissingData).startswith(f"geirhos-128: no geirhos in {small} (KDLIB_DATA); set KDLIB_DATA")
    assert data_sets()["pacs"].state() == ("missing", missing)
    assert data_sets()["imagenette"].state()[0] == "complete"


def test_without_kdlib_data_everything_is_missing(monkeypatch, tmp_path):
    for name in photos.SETS:
        state, why = data_sets()[name].state()
        assert state == "missing" and "(KDLIB_DATA is not set); set KDLIB_DATA" in why and "\n" not in why
    assert not (tmp_path / "cache").exists()
    assert refused(lambda: Photos().test("photo", "cpu"), MissingData).startswith(f"imagenette-112: no imagenette2 in {cache_root()}/data (KDLIB_DATA is")


def test_sets_that_are_incomplete_or_damaged(small):
    [first, *_] = (small / "imagenette2" / "val" / "n01440764").iterdir()
    content = first.read_bytes()
    first.unlink()
    message = refused(lambda: Photos(size=8).test("photo", "cpu"))
    assert message.startswith(f"imagenette-112: 9 pictures of test in {small}/imagenette2, not 10; delete it, fetch it anew and set KDLIB_DATA")
    assert data_sets()["imagenette"].state() == ("not complete", message)
    first.write_bytes(content[:60])
    message = refused(lambda: Photos(size=8).test("photo", "cpu"))
    assert message.startswith(f"imagenette-112: 1 of 30 pictures in {small}/imagenette2 cannot be decoded: val/n01440764/{first.name} (")
    state, why = data_sets()["imagenette"].state()
    assert state == "not complete" and f"val/n01440764/{first.name}" in why
    first.write_bytes(content)
    assert data_sets()["imagenette"].state()[0] == "complete"
    shutil.rmtree(small / "geirhos" / "edge")
    assert data_sets()["geirhos"].state()[1].startswith(f"geirhos-128: 0 pictures of edge in {small}/geirhos, not 16")


def test_damage_that_leaves_size_and_time_is_found_when_all_is_read(small):
    file = next((small / "pacs" / "photo" / "dog").iterdir())
    assert "(pacs-96)" in data_sets()["pacs"].state()[1]
    facts = file.stat()
    flip(file)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert "(an edition without declared digest; its own is " in data_sets()["pacs"].state()[1]


def test_the_stimuli_are_read_as_they_are_released(small):
    before = Photos(size=8).test("edge", "cpu")[0]
    release = small / "texture-vs-shape" / "stimuli"
    release.mkdir(parents=True)
    for ours, theirs in ("cue-conflict", "style-transfer-preprocessed-512"), ("edge", "edges"), ("silhouette", "filled-silhouettes"):
        os.rename(small / "geirhos" / ours, release / theirs)
    (small / "geirhos").rmdir()
    own = Photos(size=8, unseen=("geirhos",))
    assert torch.equal(own.test("edge", "cpu")[0], before) and describe(own)["unseen"] == {"geirhos": DIGESTS["geirhos-128"]}


def test_torchvision_downloads_what_it_has(small, monkeypatch):
    import torchvision.datasets

    asked = []

    def download(root, size, download):
        asked.append((root, size, download))
        shutil.copytree(small / "imagenette2", root / "imagenette2-160")

    monkeypatch.setattr(torchvision.datasets, "Imagenette", download)
    before = describe(Photos(size=8, unseen=()))
    missing = refused(lambda: describe(Photos("imagenette-160", 8, ())), MissingData)
    assert missing.startswith(f"imagenette-160: no imagenette2-160 in {small} (KDLIB_DATA)") and not asked
    monkeypatch.delenv("KDLIB_DATA")
    assert data_sets()["imagenette"].state()[0] == "missing" and not asked, "asking what is there downloads nothing"
    assert describe(Photos("imagenette-160", 8, ())) == before and asked == [(cache_root() / "data", "160px", True)]
    message = refused(lambda: describe(Photos("imagenette-160", 8, ())))  # the copy fails: it is there
    assert message.startswith(f"imagenette-160: torchvision cannot download it to {cache_root()}/data: ")


# real data

GOLDEN = {  # of each domain the mean of 40 images, and one pixel's red; of training one pixel's red and green
    "photo": (0.472, 0.886), "grey": (0.475, 0.784), "edges": (0.779, 0.667), "low-pass": (0.472, 0.759), "high-pass": (0.5, 0.564),
    "shuffled": (0.472, 0.114), "cue-conflict": (0.497, 0.557), "edge": (0.94, 0.996), "silhouette": (0.561, 0.0),
    "photo (PACS)": (0.472, 0.569), "art": (0.545, 0.584), "cartoon": (0.796, 0.686), "sketch": (0.957, 0.996), "train": (103, 127)}


@pytest.fixture
def real(real_data):
    if not all((real_data / name).is_dir() for name in ("imagenette2", "geirhos", "pacs")):
        pytest.skip("KDLIB_DATA has not all of imagenette2, geirhos and pacs")
    return Photos(limit=40)


def test_real_sets_are_complete(real):
    assert [data_sets()[name].state()[0] for name in photos.SETS] == ["complete"] * 3
    assert not [f for f in photos._find("pacs-96", download=False).files if "person" in f.parts]


def test_real_images(real):
    """If this fails because images changed, bump the suite's version; what was trained on them is then trained anew."""
    data, (x, y) = real.train((real.seen,), "cpu"), real.test("photo", "cpu")
    assert data.n == len(y) == 40 and y.tolist() == data.labels.tolist() == [*range(10)] * 4
    images = {d: real.test(d, "cpu")[0] for d in real.domains}
    assert all(i.shape == (40, 3, 64, 64) and 0 <= i.min() and i.max() <= 1 for i in images.values())
    found = {d: (i.mean().item(), i[1, 0, 20, 40].item()) for d, i in images.items()} | {"train": tuple(data.pixels[1, 20, 40, :2].tolist())}
    for domain, values in GOLDEN.items():  # decoders of JPEG differ a little
        assert found.pop(domain) == pytest.approx(values, abs=3 if domain == "train" else 0.015), domain
    assert not found


def test_real_domains_are_what_they_are_called(real):
    images = {d: real.test(d, "cpu")[0] for d in ("edges", "edge", "silhouette", "sketch", "cue-conflict", "photo (PACS)", "art", "cartoon")}
    for lines in "edges", "edge", "sketch":
        assert images[lines].median() > 0.8, f"{lines}: dark on white"
    for drawn in "edge", "silhouette", "sketch":
        assert (images[drawn].amax(1) - images[drawn].amin(1)).mean() < 0.02, f"{drawn}: without colour"
    middle = (images["silhouette"] > 0.1) & (images["silhouette"] < 0.9)
    assert middle.float().mean() < 0.1 and images["silhouette"][:, :, 28:36, 28:36].mean() < 0.4, "black on white"
    for coloured in "cue-conflict", "photo (PACS)", "art", "cartoon":
        assert (images[coloured].amax(1) - images[coloured].amin(1)).mean() > 0.1
