from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn.datasets
import torch
from PIL import Image

from kdlib.data import DataError, digits
from kdlib.data.digits import DOMAINS, Digits, color
from kdlib.store import describe, key

FIRST = torch.arange(6)


@pytest.fixture(autouse=True)
def nothing_loaded(request, monkeypatch):
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("KDLIB_DATA", raising=False)
    digits._load.cache_clear()
    yield
    digits._load.cache_clear()


@pytest.fixture
def mnist(real_data):
    if not (real_data / "MNIST" / "raw").is_dir():
        pytest.skip("KDLIB_DATA has no MNIST/raw")
    return Digits("mnist", "bsds500")


@pytest.fixture
def bsds500(real_data):
    if digits.bsds500_folder() is None:
        pytest.skip("KDLIB_DATA has no bsds500")
    folder = digits.bsds500_folder()
    return {split: [np.asarray(Image.open(f).convert("RGB")) for f in sorted((folder / split).glob("*.jpg"))]
            for split in ("train", "test")}


def whole(suite, domains, seed=0):
    """All training images of these domains."""
    data = suite.train(domains, "cpu")
    return data.batch(torch.arange(data.n), data.draw(torch.Generator().manual_seed(seed)))


# scikit-learn's digits

@pytest.mark.parametrize("domain", DOMAINS)
def test_embedded_shapes_and_range(domain):
    for n, (x, y) in (1200, whole(Digits(), (domain,))), (597, Digits().test(domain, "cpu")):
        assert x.shape == (n, 3, 16, 16) and y.shape == (n,) and (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert 0 <= x.min() < 0.05 and 0.95 < x.max() <= 1
        assert domain != "orig" or torch.equal(x[:, 0], x[:, 1]) and torch.equal(x[:, 0], x[:, 2])


def test_embedded_splits_are_disjoint_and_complete():
    # 8 to 16 pixels, bilinear, written as a matrix: neighbours weigh 3/4 and 1/4, and 1 at the border
    up = np.zeros((16, 8))
    for i in range(16):
        for j, weight in ((i // 2, 0.75), (i // 2 + (1 if i % 2 else -1), 0.25)):
            up[i, min(max(j, 0), 7)] += weight
    source = sklearn.datasets.load_digits()
    originals = Counter((np.round(up @ image @ up.T / 16 * 255).astype(np.uint8).tobytes(), int(label))
                        for image, label in zip(source.images, source.target))
    train, test = (Counter(((image[0] * 255).round().byte().numpy().tobytes(), int(label)) for image, label in zip(*split))
                   for split in (whole(Digits(), ("orig",)), Digits().test("orig", "cpu")))
    assert train.keys().isdisjoint(test) and train + test == originals


def test_embedded_class_counts():
    counts = [torch.bincount(y) for _, y in (whole(Digits(), ("orig",)), Digits().test("orig", "cpu"))]
    assert (counts[0] + counts[1]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert counts[0].min() > 100 and counts[1].min() > 40


# color

def test_color_by_hand():
    x = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    got = color(x, torch.tensor([[0.2, 0.6, 1.0]]))
    expected = torch.tensor([[[[0.2, 0.6, 1.0]], [[0.6, 0.8, 1.0]], [[1.0, 1.0, 1.0]]]])
    torch.testing.assert_close(got, expected)


def test_color_paints_the_background_with_one_color_and_leaves_the_ink_white():
    x, _ = Digits().test("color", "cpu")
    grey, _ = Digits().test("orig", "cpu")
    c = x[:, :, 0, 0]
    assert (grey[:, 0, 0, 0] == 0).float().mean() > 0.9
    clean = grey[:, 0, 0, 0] == 0
    torch.testing.assert_close(x[clean], color(grey[clean, :1], c[clean]))
    assert len(c.unique(dim=0)) == 597 and abs(c.mean() - 0.5) < 0.03 and c.min() < 0.02 and c.max() > 0.98


def test_testing_is_fixed():
    for domain in DOMAINS:
        (x, y), (again, _) = Digits().test(domain, "cpu"), Digits().test(domain, "cpu")
        assert torch.equal(x, again)
        assert torch.equal(y, Digits().test("orig", "cpu")[1]), "the same items in every domain"


def test_training_colors_are_fresh_each_epoch_and_repeat_from_a_seed():
    data = Digits().train(("color",), "cpu")
    generator = torch.Generator().manual_seed(1)
    first, second = (data.batch(FIRST, data.draw(generator))[0] for _ in range(2))
    again = data.batch(FIRST, data.draw(torch.Generator().manual_seed(1)))[0]
    assert torch.equal(first, again) and not torch.equal(first, second)


def test_only_color_is_random():
    for domains, fixed in ((("orig",), True), (("orig", "M"), True), (("color",), False), (DOMAINS, False)):
        data = Digits().train(domains, "cpu")
        assert data.fixed == fixed and (data.draw(torch.Generator()) is None) == fixed and data.views == len(domains)


# M

BUNDLED = {"train": ["china.jpg", "brick.png", "chelsea.png", "coins.png", "grass.png", "motorcycle_left.png"],
           "test": ["flower.jpg", "coffee.png", "gravel.png", "ihc.png", "rocket.jpg"]}


def bundled(split):
    """The photographs at half size."""
    folders = Path(sklearn.datasets.__file__).parent / "images", Path(skimage.__file__).parent / "data"
    for name in BUNDLED[split]:
        file = next(f / name for f in folders if (f / name).exists())
        p = np.asarray(Image.open(file).convert("RGB")).astype(float)
        p = p[: len(p) // 2 * 2, : p.shape[1] // 2 * 2]
        yield np.round((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4)


def is_made_of(m, grey, photographs):
    """Whether M's image is |patch - x| with some patch of some photograph: all places are tried."""
    m, grey = ((t * 255).round().numpy().astype(np.int16) for t in (m, grey))
    size = grey.shape[-1]
    for photograph in photographs:
        photograph = photograph.astype(np.int16)
        height, width = photograph.shape[0] - size + 1, photograph.shape[1] - size + 1
        fits = np.ones((height, width), bool)
        for i, j in np.ndindex(size, size):
            fits &= (np.abs(photograph[i:i + height, j:j + width] - grey[0, i, j]) == m[:, i, j]).all(-1)
            if not fits.any():
                break
        else:
            return True
    return False


@pytest.mark.parametrize("split, other", [("train", "test"), ("test", "train")])
def test_m_is_made_of_the_splits_own_photographs(split, other):
    m, grey = (whole(Digits(), (d,))[0] if split == "train" else Digits().test(d, "cpu")[0] for d in ("M", "orig"))
    own, foreign = list(bundled(split)), list(bundled(other))
    for i in (0, 1, 100, len(m) - 1):
        assert is_made_of(m[i], grey[i], own) and not is_made_of(m[i], grey[i], foreign)


def test_training_and_testing_use_different_photographs():
    assert {split: list(names) for split, names in digits.BUNDLED.items()} == BUNDLED
    assert not set(BUNDLED["train"]) & set(BUNDLED["test"])


# batches

def test_a_batch_holds_its_items_domain_after_domain():
    data = Digits().train(("M", "color", "orig"), "cpu")
    parameters, idx = data.draw(torch.Generator().manual_seed(1)), torch.tensor([7, 3, 1100])
    x, y = data.batch(idx, parameters)
    labels = whole(Digits(), ("orig",))[1][idx]
    assert x.shape == (9, 3, 16, 16) and y.tolist() == labels.tolist() * 3
    for part, domain in zip(x.split(3), data.domains):
        alone = Digits().train((domain,), "cpu").batch(idx, parameters)
        assert torch.equal(part, alone[0]) and torch.equal(alone[1], labels)


def test_an_items_image_does_not_depend_on_its_batch():
    data = Digits().train(DOMAINS, "cpu")
    parameters = data.draw(torch.Generator().manual_seed(1))
    x, _ = data.batch(torch.tensor([5, 900]), parameters)
    alone, _ = data.batch(torch.tensor([900]), parameters)
    assert torch.equal(x[1::2], alone)


@pytest.mark.parametrize("domain", DOMAINS)
def test_limit_keeps_the_first_of_each_split(domain):
    for (x, y), (few, labels) in ((whole(Digits(), (domain,)), whole(Digits(limit=50), (domain,))),
                                  (Digits().test(domain, "cpu"), Digits(limit=50).test(domain, "cpu"))):
        assert len(few) == 50 and torch.equal(labels, y[:50]) and torch.equal(few, x[:50])


# the suite as a value

def test_a_suite_can_be_described_without_its_data(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "nowhere"))
    keys = {key(describe(suite)) for suite in (Digits(), Digits("mnist"), Digits("embedded", "bsds500"), Digits(limit=9))}
    assert len(keys) == 4


def test_other_content_is_another_suite(monkeypatch):
    before = key(describe(Digits()))
    monkeypatch.setitem(digits.DIGESTS, "bundled", "0" * 16)
    assert key(describe(Digits())) != before


def test_the_suites_content():
    """If this fails because images changed, bump the suite's version; what was trained on them is then trained anew."""
    assert whole(Digits(), ("orig",))[1][:10].tolist() == [6, 6, 6, 2, 5, 6, 6, 2, 2, 1]
    x, y = Digits().test("color", "cpu")
    assert y[:10].tolist() == [4, 4, 8, 2, 7, 9, 9, 2, 4, 3]
    assert x[0, :, 0, 0].tolist() == pytest.approx([0.9274, 0.1401, 0.8521], abs=1e-4)
    # photographs whose pixels tell their row, column and number: where the first patches come from
    photographs = [np.stack([*np.indices((h, w)), np.full((h, w), k)], -1).astype(np.uint8)
                   for k, (h, w) in enumerate([(60, 200), (150, 90)])]
    corners = {split: digits._patches(photographs, 4, 16, split)[:, :, 0, 0].tolist() for split in ("train", "test")}
    assert corners == {"train": [[15, 44, 0], [93, 72, 1], [131, 58, 1], [9, 90, 0]],
                       "test": [[13, 145, 0], [69, 34, 1], [37, 139, 0], [114, 51, 1]]}


# errors

def refused(call):
    """The message, which is one line."""
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unknown_names():
    assert refused(lambda: Digits("svhn")) == "digits: source is one of embedded, mnist, not 'svhn'"
    assert refused(lambda: Digits(patches="mine")) == "digits: patches is one of bundled, bsds500, not 'mine'"
    assert refused(lambda: Digits().test("colour", "cpu")) == "digits: domains are some of orig, color, M, not colour"
    assert refused(lambda: Digits().train(("orig", "m"), "cpu")) == "digits: domains are some of orig, color, M, not m"
    assert refused(lambda: Digits().train((), "cpu")) == "digits: domains are some of orig, color, M, not none"


@pytest.mark.parametrize("name", ["embedded", "bundled"])
def test_content_that_is_not_the_declared_one(monkeypatch, name):
    monkeypatch.setitem(digits.DIGESTS, name, "0" * 16)
    message = refused(lambda: Digits().test("orig", "cpu"))
    assert message.startswith(f"{name}: the content") and "declared 0000000000000000" in message


@pytest.mark.parametrize("suite", [Digits("mnist"), Digits("embedded", "bsds500")])
def test_a_data_folder_that_does_not_exist(monkeypatch, tmp_path, suite):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "nowhere"))
    assert refused(lambda: suite.test("orig", "cpu")).startswith(f"KDLIB_DATA is {tmp_path / 'nowhere'}, but there is no such folder")


def idx_file(content, dims):
    return b"\0\0\x08" + bytes([len(dims)]) + b"".join(d.to_bytes(4, "big") for d in dims) + content


def write_mnist(root, images):
    """Ten black digits a split in MNIST's format, but for the training images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(idx_file(bytes(7840), (10, 28, 28)))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(idx_file(bytes(10), (10,)))
    (raw / "train-images-idx3-ubyte").write_bytes(images)


@pytest.mark.parametrize("images", [idx_file(bytes(5000), (10, 28, 28)), idx_file(b"", (10, 28, 28)), b"\0\0\x08", b"", b"<html>not found"])
def test_damaged_mnist(monkeypatch, tmp_path, images):
    write_mnist(tmp_path, images)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    message = refused(lambda: Digits("mnist").test("orig", "cpu"))
    assert message.startswith(f"MNIST: not readable from {tmp_path} (KDLIB_DATA): ") and "MNIST/raw" in message


def test_missing_and_foreign_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    assert refused(lambda: Digits("mnist").test("orig", "cpu")).startswith("MNIST: not readable from")
    write_mnist(tmp_path, idx_file(bytes(7840), (10, 28, 28)))  # readable, but not MNIST
    assert refused(lambda: Digits("mnist").test("orig", "cpu")).startswith(f"mnist: the content from {tmp_path} (KDLIB_DATA) is not the declared one")


def test_missing_bsds500(monkeypatch, tmp_path):
    suite = Digits("embedded", "bsds500")
    assert refused(lambda: suite.test("M", "cpu")).startswith("BSDS500: no photographs found; set KDLIB_DATA")
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    assert refused(lambda: suite.test("M", "cpu")).startswith("BSDS500: no photographs found; set KDLIB_DATA")
    (tmp_path / "bsds500" / "train").mkdir(parents=True)
    message = refused(lambda: suite.test("M", "cpu"))
    assert message.startswith("bsds500: the content in ") and "incomplete" in message


# real data

def test_real_mnist(mnist):
    x, y = mnist.test("orig", "cpu")
    assert x.shape == (10_000, 3, 28, 28) and y[:5].tolist() == [7, 2, 1, 0, 4]
    data = mnist.train(("orig",), "cpu")
    assert data.n == 60_000 and data.batch(FIRST, None)[1].tolist() == [5, 0, 4, 1, 9, 2]
    assert 0.12 < x.mean() < 0.14, "pixels in [0, 1]: MNIST's mean is 0.13"


def test_real_m_is_made_of_bsds500(mnist, bsds500):
    suite = Digits("mnist", "bsds500", 20)
    for split, other in ("train", "test"), ("test", "train"):
        m, grey = (whole(suite, (d,))[0] if split == "train" else suite.test(d, "cpu")[0] for d in ("M", "orig"))
        for i in (0, 19):
            assert is_made_of(m[i], grey[i], bsds500[split]) and not is_made_of(m[i], grey[i], bsds500[other])
