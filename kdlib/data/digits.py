"""Handwritten digits in three domains (paper, Sec. 5.1): orig, color and M.

orig    the grey digit x, in [0, 1], as three equal channels
color   c (1 - x) + x with one background colour c ~ U[0, 1]^3 per image; fresh colours each time it is drawn in
        training, fixed in testing
M       |patch - x| with a patch of a photograph, fixed per image as in MNIST-M (Ganin et al., 2016); training and
        testing use different photographs
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from kdlib.data import DataError, data_root

DOMAINS = ("orig", "color", "M")
SIZES = {"embedded": 16, "mnist": 28}
BUNDLED = {  # photographs without people that scikit-learn (jpg) and scikit-image (png, rocket) install
    "train": ("china.jpg", "brick.png", "chelsea.png", "coins.png", "grass.png", "motorcycle_left.png"),
    "test": ("flower.jpg", "coffee.png", "gravel.png", "ihc.png", "rocket.jpg"),
}
DIGESTS = {"embedded": "87ff0c9e40dc7e2c", "mnist": "06b0d1f124c4e5fa", "bundled": "c12d3691e6b2463b", "bsds500": "fb650d89d5411a27"}


def color(x: Tensor, c: Tensor) -> Tensor:
    """Digits x (n, 1, h, w) on background colours c (n, 3): c (1 - x) + x, shape (n, 3, h, w)."""
    return c[:, :, None, None] * (1 - x) + x


@dataclass(frozen=True)
class Digits:
    """The digits suite. `source` is embedded (scikit-learn's digits at 16 px: 1,200 + 597) or mnist (60,000 + 10,000).

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


def _patches(photographs: list[np.ndarray], n: int, size: int, split: str) -> np.ndarray:
    """n square patches (n, 3, size, size) at uniformly random places of uniformly chosen photographs (h, w, 3)."""
    random = np.random.default_rng([20231210, {"train": 5, "test": 4}[split]])
    which, places = random.integers(len(photographs), size=n), random.random((n, 2))
    patches = np.empty((n, 3, size, size), np.uint8)
    for i, (photograph, (down, right)) in enumerate(zip((photographs[w] for w in which), places)):
        top, left = int(down * (photograph.shape[0] - size + 1)), int(right * (photograph.shape[1] - size + 1))
        patches[i] = photograph[top:top + size, left:left + size].transpose(2, 0, 1)
    return patches


def _embedded(split: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    _verify("embedded", images.tobytes() + digits.target.astype(np.uint8).tobytes())
    order = np.random.default_rng(0).permutation(len(images))
    chosen = order[:1200] if split == "train" else order[1200:]
    small = torch.from_numpy(images[chosen]).float()[:, None] / 16 * 255
    large = torch.nn.functional.interpolate(small, size=16, mode="bilinear", align_corners=False)
    return large[:, 0].round().byte().numpy(), digits.target[chosen].astype(np.int64)


def _mnist(split: str) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.datasets import MNIST

    from kdlib.store import cache_root

    root = data_root()
    where = f"{root} (KDLIB_DATA)" if root else "torchvision's download"
    try:
        parts = [MNIST(root or cache_root() / "data", train=train, download=root is None) for train in (True, False)]
    except Exception as error:  # torchvision raises RuntimeError, ValueError, OSError and struct.error here
        raise DataError(f"MNIST: not readable from {where}: {(str(error) or type(error).__name__).splitlines()[0]}; set KDLIB_DATA to a folder that "
                        "holds MNIST/raw/*-ubyte") from error
    _verify("mnist", b"".join(t.numpy().tobytes() for p in parts for t in (p.data, p.targets.byte())), f" from {where}")
    part = parts[split == "test"]
    return part.data.numpy(), part.targets.numpy()


def _bundled(split: str) -> list[np.ndarray]:
    """The installed photographs at half size (means of 2x2 pixels), so that a 16-pixel patch shows something."""
    def path(name: str) -> Path:
        package = "sklearn.datasets.images" if name in ("china.jpg", "flower.jpg") else "skimage.data"
        return Path(str(resources.files(package) / name))

    _verify("bundled", b"".join(path(name).read_bytes() for names in BUNDLED.values() for name in names))
    photographs = [_rgb(path(name)) for name in BUNDLED[split]]
    return [p[: len(p) // 2 * 2, : p.shape[1] // 2 * 2].reshape(len(p) // 2, 2, p.shape[1] // 2, 2, 3)
            .mean((1, 3)).round().astype(np.uint8) for p in photographs]


def bsds500_folder() -> Path | None:
    """The folder with BSDS500's train and test photographs, or None: KDLIB_DATA/bsds500, or the release's own layout."""
    root = data_root()
    for name in ("bsds500", "BSDS500/data/images", "BSR/BSDS500/data/images") if root else ():
        if (root / name / "train").is_dir():
            return root / name
    return None


def _bsds500(split: str) -> list[np.ndarray]:
    folder = bsds500_folder()
    if folder is None:
        raise DataError("BSDS500: no photographs found; set KDLIB_DATA to a folder that holds bsds500/train and "
                        "bsds500/test, or choose the bundled photographs (patches=bundled)")
    files = {s: sorted((folder / s).glob("*.jpg")) for s in ("train", "test")}
    _verify("bsds500", b"".join(f.read_bytes() for s in files for f in files[s]), f" in {folder}")
    return [_rgb(f) for f in files[split]]


def _rgb(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _verify(name: str, content: bytes, where: str = "") -> None:
    found = hashlib.sha256(content).hexdigest()[:16]
    if found != DIGESTS[name]:
        raise DataError(f"{name}: the content{where} is not the declared one (digest {found}, declared {DIGESTS[name]}): "
                        "incomplete, damaged or another edition; fetch it anew")
