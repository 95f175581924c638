"""Handwritten digits in three domains (paper, Sec. 5.1): orig, color and M.

orig    the grey digit x, in [0, 1], as three equal channels
color   c (1 - x) + x with one background colour c ~ U[0, 1]^3 per image; fresh colours each time it is drawn in
        training, fixed in testing
M       |patch - x| with a patch of a photograph, fixed per image as in MNIST-M (Ganin et al., 2016); training and
        testing use different photographs
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from kdlib.data import DataError, DataSet, MissingData, data_root
from kdlib.data.files import decodes, installed, photographs, rgb, verify
from kdlib.store import first_line

DOMAINS = ("orig", "color", "M")
SIZES = {"embedded": 16, "mnist": 28}
BUNDLED = {  # photographs without people that scikit-learn (jpg) and scikit-image (png, rocket) install
    "train": ("china.jpg", "brick.png", "chelsea.png", "coins.png", "grass.png", "motorcycle_left.png"),
    "test": ("flower.jpg", "coffee.png", "gravel.png", "ihc.png", "rocket.jpg"),
}
DIGESTS = {"embedded": "87ff0c9e40dc7e2c", "mnist": "06b0d1f124c4e5fa", "bundled": "c12d3691e6b2463b", "bsds500": "fb650d89d5411a27"}


MNIST_FILES = {f"{part}-{what}-ubyte": (size, bytes([0, 0, 8, dims]))  # bytes, and the first four of them
               for what, dims, sizes in (("images-idx3", 3, (47_040_016, 7_840_016)), ("labels-idx1", 1, (60_008, 10_008)))
               for part, size in zip(("train", "t10k"), sizes)}
GET = {
    "mnist": "set KDLIB_DATA to a folder that holds MNIST/raw/*-ubyte (its four files, unpacked), or leave it unset, and torchvision "
             "downloads MNIST when a chapter asks for it",
    "bsds500": "set KDLIB_DATA to a folder that holds bsds500/{train,test}/*.jpg, or BSR as the release of the Berkeley Computer Vision "
               "Group unpacks (https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html)",
}


def color(x: Tensor, c: Tensor) -> Tensor:
    """Digits x (n, 1, h, w) on background colours c (n, 3): c (1 - x) + x, shape (n, 3, h, w)."""
    return c[:, :, None, None] * (1 - x) + x


@dataclass(frozen=True)
class Digits:
    """The digits suite. `source` is embedded (scikit-learn's digits at 16 px: 1,200 + 597, divided at random, so that writers are on both
    sides: accuracies are higher than on writers that nobody has seen) or mnist (60,000 + 10,000, of different writers).

    `patches` are the photographs behind domain M: bundled or bsds500. `limit` keeps the first so many images of
    each split (for quick trials); None keeps all.
    """

    source: str = "embedded"
    patches: str = "bundled"
    limit: int | None = None

    version: ClassVar[int] = 1
    domains: ClassVar[tuple[str, ...]] = DOMAINS
    classes: ClassVar[int] = 10

    def __post_init__(self):
        for name, known in ("source", SIZES), ("patches", ("bundled", "bsds500")):
            if getattr(self, name) not in known:
                raise DataError(f"digits: {name} is one of {', '.join(known)}, not {getattr(self, name)!r}")

        if self.limit is not None and self.limit < 2:
            raise DataError(f"digits: limit is None or at least 2, not {self.limit}")

    @property
    def size(self) -> int:
        return SIZES[self.source]

    def describe(self) -> dict:
        return {"suite": "digits", "version": self.version, "source": self.source, "digits": DIGESTS[self.source],
                "patches": self.patches, "photographs": DIGESTS[self.patches], "limit": self.limit}

    @property
    def sharing(self) -> dict[str, tuple[str, ...]]:
        """What test images may have in common, by domain: BSDS500's photographs behind M. (The bundled ones are too few to stand for others.)"""
        return {"M": ("photograph",)} if self.patches == "bsds500" else {}

    def groups(self, domain: str) -> np.ndarray:
        """For each thing in `sharing[domain]` a number for each test image, (ways, n) int16: images of one number show the same one."""
        if domain not in self.sharing:
            raise DataError(f"digits: the images of {domain!r} have nothing in common that is known")
        n = len((_embedded if self.source == "embedded" else _mnist)("test")[1])
        return _places(len(_bsds500_files()["test"]), n, "test")[0][None, : self.limit].astype(np.int16)

    def train(self, domains: tuple[str, ...], device) -> "DigitDomains":
        return DigitDomains(domains, *(t.to(device) for t in _load(self, "train")))

    def test(self, domain: str, device) -> tuple[Tensor, Tensor]:
        """The test images of one domain: x (n, 3, size, size) in [0, 1] and labels y (n,)."""
        data = DigitDomains((domain,), *(t.to(device) for t in _load(self, "test")))
        everything = torch.arange(data.n, device=device)
        return data.batch(everything, data.draw(torch.Generator().manual_seed(20231210)))


class DigitDomains:
    """Digits drawn from one or more domains; a batch holds its items once per domain, domain after domain."""

    def __init__(self, domains: tuple[str, ...], grey: Tensor, m: Tensor, labels: Tensor):
        unknown = set(domains) - set(DOMAINS)
        if unknown or not domains:
            raise DataError(f"digits: domains are some of {', '.join(DOMAINS)}, not {', '.join(sorted(unknown)) or 'none'}")
        if len(set(domains)) < len(domains):
            raise DataError(f"digits: a domain is named once, not {', '.join(domains)}")
        self.domains, self.grey, self.m, self.labels = domains, grey, m, labels
        self.n, self.views, self.fixed = len(labels), len(domains), "color" not in domains

    def draw(self, generator: Generator) -> Tensor | None:
        return None if self.fixed else torch.rand(self.n, 3, generator=generator).to(self.grey.device)

    def batch(self, idx: Tensor, parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.grey[idx].float() / 255
        views = {"orig": lambda: x.expand(-1, 3, -1, -1), "color": lambda: color(x, parameters[idx]),
                 "M": lambda: self.m[idx].float() / 255}
        return torch.cat([views[d]() for d in self.domains]), self.labels[idx].repeat(self.views)


@lru_cache(maxsize=4)
def _load(suite: Digits, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """Grey digits (n, 1, s, s), domain M (n, 3, s, s), both uint8, and labels (n,)."""
    digits, labels = _embedded(split) if suite.source == "embedded" else _mnist(split)
    photographs = _bundled(split) if suite.patches == "bundled" else _bsds500(split)
    patches = _patches(photographs, len(digits), suite.size, split)[: suite.limit]
    digits, labels = digits[: suite.limit], labels[: suite.limit]
    m = np.abs(patches.astype(np.int16) - digits[:, None])
    return torch.from_numpy(digits[:, None]), torch.from_numpy(m.astype(np.uint8)), torch.from_numpy(labels)


def _places(photographs: int, n: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Which photograph each of n patches is of, (n,), and where in it, (n, 2) in [0, 1)."""
    random = np.random.default_rng([20231210, {"train": 5, "test": 4}[split]])
    return random.integers(photographs, size=n), random.random((n, 2))


def _patches(photographs: list[np.ndarray], n: int, size: int, split: str) -> np.ndarray:
    """n square patches (n, 3, size, size) at uniformly random places of uniformly chosen photographs (h, w, 3)."""
    which, places = _places(len(photographs), n, split)
    patches = np.empty((n, 3, size, size), np.uint8)
    for i, (photograph, (down, right)) in enumerate(zip((photographs[w] for w in which), places)):
        top, left = int(down * (photograph.shape[0] - size + 1)), int(right * (photograph.shape[1] - size + 1))
        patches[i] = photograph[top:top + size, left:left + size].transpose(2, 0, 1)
    return patches


def _embedded(split: str) -> tuple[np.ndarray, np.ndarray]:
    _, images, labels = _embedded_whole()
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:1200] if split == "train" else order[1200:]
    small = torch.from_numpy(images[chosen]).float()[:, None] / 16 * 255
    large = torch.nn.functional.interpolate(small, size=16, mode="bilinear", align_corners=False)
    return large[:, 0].round().byte().numpy(), labels[chosen].astype(np.int64)


def _embedded_whole() -> tuple[Path, np.ndarray, np.ndarray]:
    folder = installed("sklearn.datasets.data", "embedded", "scikit-learn")
    from sklearn.datasets import load_digits

    try:
        digits = load_digits()
    except Exception as error:  # whatever gzip and NumPy say of a damaged file
        raise DataError(f"embedded: not readable from {folder}: {first_line(error)}; install scikit-learn anew") from error
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    verify("embedded", DIGESTS["embedded"], images.tobytes() + labels.tobytes(), f"of {folder}", "install scikit-learn anew")
    return folder / "digits.csv.gz", images, labels


def _mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    _, parts = _mnist_whole(download=data_root() is None)
    part = parts[split == "test"]
    return part.data.numpy(), part.targets.numpy()


def _mnist_whole(download: bool) -> tuple[Path, list]:
    from kdlib.store import cache_root

    named = data_root()
    root = named or cache_root() / "data"
    where = f"{root / 'MNIST' / 'raw'} ({'KDLIB_DATA' if named else 'torchvision downloads to it'})"
    if not download and not (root / "MNIST" / "raw").is_dir():
        raise MissingData(f"mnist: nothing in {where}; {GET['mnist']}")
    installed("torchvision", "mnist", "torchvision")
    from torchvision.datasets import MNIST

    try:
        if download:
            MNIST(root, download=True)
        wrong = [f"{name} {problem}" for name, (size, start) in MNIST_FILES.items()
                 if (problem := _problem(root / "MNIST" / "raw" / name, size, start))]
        if wrong:
            raise ValueError(", ".join(wrong))
        parts = [MNIST(root, train=train) for train in (True, False)]
    except Exception as error:  # torchvision raises RuntimeError, ValueError, OSError and struct.error here
        raise DataError(f"mnist: not readable from {where}: {first_line(error)}; {GET['mnist']}") from error
    verify("mnist", DIGESTS["mnist"], b"".join(t.numpy().tobytes() for p in parts for t in (p.data, p.targets.byte())), f"of {where}",
            f"fetch it anew and {GET['mnist']}")
    return root / "MNIST" / "raw", parts


def _problem(path: Path, size: int, start: bytes) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size:,} bytes, not {size:,}"
    with open(path, "rb") as file:
        found = file.read(len(start))
    return None if found == start else f"starts with {found.hex()}, not {start.hex()}"


def _bundled(split: str) -> list[np.ndarray]:
    """The installed photographs at half size (means of 2x2 pixels), so that a 16-pixel patch shows something."""
    photographs = [rgb(path) for path in _bundled_files()[split]]
    return [p[: len(p) // 2 * 2, : p.shape[1] // 2 * 2].reshape(len(p) // 2, 2, p.shape[1] // 2, 2, 3)
            .mean((1, 3)).round().astype(np.uint8) for p in photographs]


def _bundled_files() -> dict[str, list[Path]]:
    files = photographs("bundled", [name for names in BUNDLED.values() for name in names], DIGESTS["bundled"])
    return {split: [files[name] for name in names] for split, names in BUNDLED.items()}


def bsds500_folder() -> Path | None:
    """The folder with BSDS500's train and test photographs, or None: KDLIB_DATA/bsds500, or the release's own layout."""
    root = data_root()
    for name in ("bsds500", "BSDS500/data/images", "BSR/BSDS500/data/images") if root else ():
        if (root / name / "train").is_dir():
            return root / name
    return None


def _bsds500(split: str) -> list[np.ndarray]:
    return [rgb(f) for f in _bsds500_files()[split]]


def _bsds500_files() -> dict[str, list[Path]]:
    """All 200 train photographs, and every second of the release's 200 test photographs, in the order of their names."""
    folder = bsds500_folder()
    if folder is None:
        where = f"in {data_root()} (KDLIB_DATA)" if data_root() else "since KDLIB_DATA is not set"
        raise MissingData(f"bsds500: no photographs found {where}; {GET['bsds500']}; or choose the bundled photographs (patches=bundled)")
    files = {split: sorted((folder / split).glob("*.jpg")) for split in ("train", "test")}
    found = {split: len(part) for split, part in files.items()}
    if found["train"] != 200 or found["test"] not in (100, 200):
        raise DataError(f"bsds500: {found['train']} train and {found['test']} test photographs in {folder}, not 200 and 200; {GET['bsds500']}")
    files["test"] = files["test"][::found["test"] // 100]
    every = [f for part in files.values() for f in part]
    try:
        verify("bsds500", DIGESTS["bsds500"], b"".join(f.read_bytes() for f in every), f"in {folder}", f"fetch it anew and {GET['bsds500']}")
    except DataError as error:
        damaged = [str(f.relative_to(folder)) for f in every if not decodes(f)]
        if damaged:
            raise DataError(f"bsds500: {', '.join(damaged[:3])}{f' and {len(damaged) - 3} more' if damaged[3:] else ''} in {folder} "
                            f"cannot be decoded; fetch it anew and {GET['bsds500']}") from error
        raise
    return files


SETS = {
    "embedded": DataSet("1,797 handwritten digits, 8 pixels wide, of scikit-learn", lambda: str(_embedded_whole()[0])),
    "bundled": DataSet("11 photographs of scikit-learn and scikit-image",
                       lambda: " and ".join(sorted({str(f.parent) for f in _bundled_files()["train"]}))),
    "mnist": DataSet("70,000 handwritten digits, 28 pixels wide", lambda: str(_mnist_whole(download=False)[0])),
    "bsds500": DataSet("300 photographs, 481 x 321 pixels", lambda: str(_bsds500_files()["train"][0].parents[1])),
}
