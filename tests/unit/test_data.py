import hashlib
import io
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import skimage
import sklearn.datasets
import torch
from PIL import Image

from kdlib.data import DataError, data_sets, digits
from kdlib.data.digits import DOMAINS, Digits, color
from kdlib.measures import Groups
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
    files = {split: sorted((folder / split).glob("*.jpg")) for split in ("train", "test")}
    return {split: [np.asarray(Image.open(f).convert("RGB")) for f in found[:: len(found) // (200 if split == "train" else 100)]]
            for split, found in files.items()}


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
    assert refused(lambda: Digits().train(("orig", "M", "orig"), "cpu")) == "digits: a domain is named once, not orig, M, orig"


@pytest.mark.parametrize("name", ["embedded", "bundled"])
def test_content_that_is_not_the_declared_one(monkeypatch, name):
    monkeypatch.setitem(digits.DIGESTS, name, "0" * 16)
    message = refused(lambda: Digits().test("orig", "cpu"))
    assert message.startswith(f"{name}: the content") and "declared 0000000000000000" in message


@pytest.mark.parametrize("suite", [Digits("mnist"), Digits("embedded", "bsds500")])
def test_a_data_folder_that_does_not_exist(monkeypatch, tmp_path, suite):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path / "nowhere"))
    assert refused(lambda: suite.test("orig", "cpu")).startswith(f"KDLIB_DATA is {tmp_path / 'nowhere'}, but there is no such folder")


def idx_file(shape):
    """MNIST's format, all zeros."""
    return b"\0\0\x08" + bytes([len(shape)]) + b"".join(d.to_bytes(4, "big") for d in shape) + bytes(np.prod(shape))


def write_mnist(root, change=lambda content: content):
    """Black digits, all zero, where MNIST stands; `change` is done to the labels of the test images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in ("train", 60_000), ("t10k", 10_000):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx_file((n, 28, 28)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx_file((n,)))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(change(idx_file((10_000,))))


@pytest.mark.parametrize("change, problem", [
    (lambda c: c[:-1], "has 10,007 bytes, not 10,008"), (lambda c: b"", "has 0 bytes"), (lambda c: b"<html>not found", "has 15 bytes"),
    (lambda c: b"\0\0\x08\x03" + c[4:], "starts with 00000803, not 00000801"), (lambda c: b"\x1f\x8b" + c[2:], "starts with 1f8b0801"),
], ids=["truncated", "empty", "a web page", "wrong magic number", "still packed"])
def test_damaged_mnist(monkeypatch, tmp_path, change, problem):
    write_mnist(tmp_path, change)
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    message = refused(lambda: Digits("mnist").test("orig", "cpu"))
    assert message.startswith(f"mnist: not readable from {tmp_path}/MNIST/raw (KDLIB_DATA): t10k-labels-idx1-ubyte {problem}")
    assert "set KDLIB_DATA to a folder that holds MNIST/raw" in message
    assert data_sets()["mnist"].state() == ("not complete", message)


def test_missing_incomplete_and_foreign_mnist(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    missing = refused(lambda: Digits("mnist").test("orig", "cpu"))
    assert missing.startswith(f"mnist: nothing in {tmp_path}/MNIST/raw (KDLIB_DATA); set KDLIB_DATA")
    assert data_sets()["mnist"].state() == ("missing", missing)
    write_mnist(tmp_path)  # of the right form, but not MNIST
    assert refused(lambda: Digits("mnist").test("orig", "cpu")).startswith(f"mnist: the content of {tmp_path}/MNIST/raw (KDLIB_DATA) is not the declared one")
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").unlink()
    assert "train-images-idx3-ubyte is missing" in refused(lambda: Digits("mnist").test("orig", "cpu"))


def test_asking_what_is_there_downloads_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "cache"))
    state, why = data_sets()["mnist"].state()
    assert state == "missing" and f"nothing in {tmp_path}/cache/data/MNIST/raw" in why and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["embedded", "bundled"])
def test_packages_that_are_not_installed(monkeypatch, name):
    monkeypatch.setattr(resources, "files", lambda package: (_ for _ in ()).throw(ModuleNotFoundError(package)))
    state, why = data_sets()[name].state()
    assert state == "missing" and why == f"{name}: needs scikit-learn, which is not installed; pip install 'kdlib[data]'"


def test_every_source_of_digits_and_patches_is_a_data_set_that_can_be_asked_about():
    assert set(digits.SETS) == set(digits.DIGESTS) and digits.SETS.items() <= data_sets().items()
    assert data_sets()["embedded"].state()[0] == data_sets()["bundled"].state()[0] == "complete"
    assert Path(data_sets()["embedded"].state()[1]).is_file()


# BSDS500

def jpeg(color):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), color).save(file, "JPEG")
    return file.getvalue()


def write_bsds500(folder, test=200):
    """Photographs in BSDS500's place, all different; returns what our suite is to read of them, in order."""
    names = [f"{100 + i}.jpg" for i in range(200)]
    for split, n in ("train", 200), ("test", test):
        (folder / split).mkdir(parents=True)
        for i, name in enumerate(names[:n]):
            (folder / split / name).write_bytes(jpeg((i, n % 7, 9 if split == "train" else 99)))
        (folder / split / "Thumbs.db").touch()
    return [folder / "train" / n for n in names] + [folder / "test" / n for n in (names[::2] if test == 200 else names[:test])]


@pytest.mark.parametrize("place, test", [("bsds500", 100), ("BSR/BSDS500/data/images", 200), ("BSDS500/data/images", 200)])
def test_bsds500_is_read_as_we_keep_it_and_as_it_is_released(monkeypatch, tmp_path, place, test):
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    wanted = write_bsds500(tmp_path / place, test)
    monkeypatch.setitem(digits.DIGESTS, "bsds500", hashlib.sha256(b"".join(f.read_bytes() for f in wanted)).hexdigest()[:16])
    assert data_sets()["bsds500"].state() == ("complete", str(tmp_path / place))
    assert sum(digits._bsds500_files().values(), []) == wanted and len(wanted) == 300
    suite = Digits("embedded", "bsds500")
    [photograph] = Groups(suite, "M").compute()["group"]
    grey, m = (suite.test(domain, "cpu")[0][:, 0] * 255 for domain in ("orig", "M"))
    red = 2 * photograph if test == 200 else photograph  # of the photographs above
    behind = grey == 0
    assert behind.any((1, 2)).all() and (m - torch.from_numpy(red)[:, None, None])[behind].abs().max() < 4, "the photograph that shows where the digit does not"
    assert Groups(Digits("embedded", "bsds500", 9), "M").compute()["group"].tolist() == [photograph[:9].tolist()]
    assert suite.sharing == {"M": ("photograph",)} and Digits().sharing == {}
    assert refused(lambda: Digits().groups("M")) == "digits: the images of 'M' have nothing in common that is known"


def test_bsds500_that_is_missing_incomplete_or_damaged(monkeypatch, tmp_path):
    suite, folder = Digits("embedded", "bsds500"), tmp_path / "bsds500"
    assert refused(lambda: suite.test("M", "cpu")).startswith("bsds500: no photographs found since KDLIB_DATA is not set; set KDLIB_DATA")
    monkeypatch.setenv("KDLIB_DATA", str(tmp_path))
    missing = refused(lambda: suite.test("M", "cpu"))
    assert missing.startswith(f"bsds500: no photographs found in {tmp_path} (KDLIB_DATA); set KDLIB_DATA") and "patches=bundled" in missing
    assert data_sets()["bsds500"].state() == ("missing", missing)
    (folder / "train").mkdir(parents=True)
    assert f"0 train and 0 test photographs in {folder}, not 200 and 200" in refused(lambda: suite.test("M", "cpu"))
    (folder / "train").rmdir()
    files = write_bsds500(folder)
    assert refused(lambda: suite.test("M", "cpu")).startswith(f"bsds500: the content in {folder} is not the declared one")
    for file in files[3], files[4], files[7], files[200]:
        file.write_bytes(file.read_bytes()[:-300])
    message = refused(lambda: suite.test("M", "cpu"))
    assert message.startswith(f"bsds500: train/103.jpg, train/104.jpg, train/107.jpg and 1 more in {folder} cannot be decoded; fetch it anew")
    assert data_sets()["bsds500"].state() == ("not complete", message)
    files[0].unlink()
    assert "199 train and 200 test photographs" in refused(lambda: suite.test("M", "cpu"))


# real data

def test_real_data_are_complete(mnist, bsds500):
    assert [data_sets()[name].state()[0] for name in ("mnist", "bsds500")] == ["complete", "complete"]


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
