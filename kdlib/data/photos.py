"""Photographs, and unseen domains to put to networks that were trained on them (paper, Sec. 4.1-4.4).

photo         the photographs themselves; networks learn from them as they are, or recoloured at random ("photo jittered", Sec. 4.3)
grey, edges, low-pass, high-pass, shuffled
              made from the test photographs, item by item: `kdlib.data.derive`
cue-conflict, edge, silhouette
              stimuli of Geirhos et al. (2019), three of the paper's five domains (Sec. 4.4); 80 of the 1,280 cue conflicts show one class
              in shape and texture alike
photo (PACS), art, cartoon, sketch
              PACS (Li et al., 2017) without its class person: this suite reads no faces

The stimuli and PACS have other classes than the networks: a dog is no English springer, and a truck no garbage truck. So their labels are
-1, and only what networks predict for them can be compared.
"""

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Generator, Tensor

from kdlib.data import DataError, DataSet, MissingData, data_root, derive
from kdlib.data.augment import Pictures, as_images, held_out
from kdlib.data.files import installed
from kdlib.data.pixels import Collection, decoded, pictures
from kdlib.store import cache_root, first_line

JITTER = (0.4, 0.2)  # strength and hue of the colour jitter of Sec. 4.3
GRID = 4  # of "shuffled": patches a side
LOW_PASS, HIGH_PASS = 1 / 32, 1 / 64  # standard deviations of the blur, in parts of the side

DERIVED = {
    "grey": derive.greyscale,
    "edges": derive.edges,
    "low-pass": lambda x: derive.low_pass(x, LOW_PASS * x.shape[-1]),
    "high-pass": lambda x: derive.high_pass(x, HIGH_PASS * x.shape[-1]),
    "shuffled": lambda x: derive.shuffle_patches(x, GRID, Generator().manual_seed(20231210)),
}

IMAGENETTE = {"n01440764": "tench", "n02102040": "English springer", "n02979186": "cassette player", "n03000684": "chain saw",
              "n03028079": "church", "n03394916": "French horn", "n03417042": "garbage truck", "n03425413": "gas pump",
              "n03445777": "golf ball", "n03888257": "parachute"}
SHOWN = ("cassette player", "church", "garbage truck", "gas pump", "golf ball")  # classes whose pictures seldom show people; look before publishing


@dataclass(frozen=True)
class Source:
    """A data set: for each part the number of its pictures and the names that its folder may have; in it, a folder for each class."""

    what: str
    parts: dict[str, tuple[int, tuple[str, ...]]]
    classes: tuple[str, ...]
    get: str


SOURCES = {
    "imagenette": Source(
        "13,394 photographs of ten classes of ImageNet", {"train": (9469, ("train",)), "test": (3925, ("val",))}, tuple(IMAGENETTE),
        "set KDLIB_DATA to a folder that holds imagenette2/{train,val}/CLASS/*, or imagenette2-160 or imagenette2-320 for the sources "
        "imagenette-160 and imagenette-320; or leave it unset and choose one of these two, and torchvision downloads it"),
    "geirhos": Source(
        "1,600 stimuli of Geirhos et al.: cue conflicts, edges and silhouettes",
        {"cue-conflict": (1280, ("cue-conflict", "style-transfer-preprocessed-512")), "edge": (160, ("edge", "edges")),
         "silhouette": (160, ("silhouette", "filled-silhouettes"))},
        ("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat", "chair", "clock", "dog", "elephant", "keyboard", "knife",
         "oven", "truck"),
        "set KDLIB_DATA to a folder that holds geirhos/{cue-conflict,edge,silhouette}/CLASS/*, or texture-vs-shape, a clone of "
        "https://github.com/rgeirhos/texture-vs-shape"),
    "pacs": Source(
        "8,545 pictures of PACS, in four styles and without its class person",
        {"photo (PACS)": (1238, ("photo",)), "art": (1599, ("art_painting",)), "cartoon": (1939, ("cartoon",)), "sketch": (3769, ("sketch",))},
        ("dog", "elephant", "giraffe", "guitar", "horse", "house"),
        "set KDLIB_DATA to a folder that holds pacs/{photo,art_painting,cartoon,sketch}/CLASS/* (its authors' page: "
        "https://dali-dl.github.io/project_iccv2017.html)"),
}
# Folders below KDLIB_DATA. A name without a number is whatever copy is there.
EDITIONS = {"imagenette-112": ("imagenette2",), "imagenette-160": ("imagenette2-160",), "imagenette-320": ("imagenette2-320",),
            "imagenette": ("imagenette2",), "geirhos-128": ("geirhos",), "geirhos": ("geirhos", "texture-vs-shape/stimuli"),
            "pacs-96": ("pacs",), "pacs": ("pacs", "PACS")}
TORCHVISION = {"imagenette-160": "160px", "imagenette-320": "320px", "imagenette": "full"}  # what torchvision calls the editions it downloads
# `Collection.content` of copies that were scaled to 112, 128 and 96 pixels and encoded again.
DIGESTS = {"imagenette-112": "3b9465f83cededba", "geirhos-128": "2be2d4b10e29ef48", "pacs-96": "b28eb9a9dda7a6f3"}


@dataclass(frozen=True)
class Photos:
    """A suite of photographs, `size` pixels square (a multiple of 4): the centre square of each picture, scaled.

    `source` is imagenette-112, or imagenette-160, imagenette-320 or imagenette (as torchvision has them), or imagefolder: any `folder`
    with train/CLASS/* and val/CLASS/* or test/CLASS/*, or with CLASS/* alone, of which a fifth of each class is kept for testing.
    `unseen` names the data sets that give further test domains: geirhos-128 or geirhos, pacs-96 or pacs. `limit` keeps the first so many
    images of each split and domain, one of each class in turn; None keeps all. `held_out` is for choosing settings: the test photographs
    are then a fifth of the training photographs, which are learned from without them.

    The key holds digests of content, never a path or an edition's name. Those of imagenette-112, geirhos-128 and pacs-96 are declared, so
    that the key can be formed without the data. Those of all others are computed from the files, once.
    """

    source: str = "imagenette-112"
    size: int = 64
    unseen: tuple[str, ...] = ("geirhos-128", "pacs-96")
    folder: str | None = None
    limit: int | None = None
    held_out: bool = False

    version: ClassVar[int] = 1
    seen: ClassVar[str] = "photo"
    jittered: ClassVar[str] = "photo jittered"

    def __post_init__(self):
        object.__setattr__(self, "unseen", tuple(self.unseen))
        known = [*(name for name in EDITIONS if _family(name) == "imagenette"), "imagefolder"]
        if self.source not in known:
            raise DataError(f"photos: source is one of {', '.join(known)}, not {self.source!r}")
        if (self.folder is None) == (self.source == "imagefolder"):
            raise DataError("photos: source imagefolder needs a folder" if self.folder is None
                            else f"photos: folder is for source imagefolder, not for {self.source}")
        if self.size < 8 or self.size % GRID:
            raise DataError(f"photos: size is a multiple of {GRID} from 8 pixels on, not {self.size}")
        others = [name for name in EDITIONS if _family(name) != "imagenette"]
        if unknown := set(self.unseen) - set(others):
            raise DataError(f"photos: unseen are some of {', '.join(others)}, not {', '.join(sorted(unknown))}")
        if len(set(map(_family, self.unseen))) < len(self.unseen):
            raise DataError(f"photos: unseen holds two editions of one data set: {', '.join(self.unseen)}")
        if self.limit is not None and self.limit < 2:
            raise DataError(f"photos: limit is None or at least 2, not {self.limit}")

    @property
    def domains(self) -> tuple[str, ...]:
        """The test domains."""
        return ("photo", *DERIVED, *self._elsewhere)

    @property
    def sharing(self) -> dict[str, tuple[str, ...]]:
        """What test images may have in common, by domain: the cue conflicts are made of 160 shapes and 48 textures."""
        return {"cue-conflict": ("shape", "texture")} if "cue-conflict" in self._elsewhere else {}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""
        return tuple(IMAGENETTE.values()) if self.source != "imagefolder" else tuple(self._find(self.source).parts["train"])

    @property
    def classes(self) -> int:
        return len(self.names)

    def describe(self) -> dict:
        return {"suite": "photos", "version": self.version, "size": self.size, "limit": self.limit, "photographs": self._content[self.source],
                "unseen": {_family(name): self._content[name] for name in self.unseen}, **({"held out": True} if self.held_out else {})}

    def train(self, domains: tuple[str, ...], device) -> Pictures:
        """The training photographs, `seen` as they are or `jittered`, moved and mirrored at random."""
        if domains not in ((self.seen,), (self.jittered,)):
            raise DataError(f"photos: networks learn from {self.seen!r} or {self.jittered!r}, not {', '.join(map(repr, domains)) or 'nothing'}")
        pixels, labels = (t.to(device) for t in self._seen("train"))
        return Pictures(pixels, labels, JITTER if domains == (self.jittered,) else None)

    def test(self, domain: str, device) -> tuple[Tensor, Tensor]:
        """The test images of one domain: x (n, 3, size, size) in [0, 1] and labels y (n,), -1 where the classes are others."""
        if domain not in self.domains:
            raise DataError(f"photos: test domains are {', '.join(self.domains)}, not {domain!r}")
        if domain in self._elsewhere:
            pixels, labels = self._load(self._elsewhere[domain], domain)
            return as_images(pixels).to(device), torch.full_like(labels, -1).to(device)
        pixels, labels = self._seen("test")
        x = as_images(pixels)
        return (DERIVED[domain](x) if domain in DERIVED else x).to(device), labels.clone().to(device)

    def groups(self, domain: str) -> np.ndarray:
        """For each thing in `sharing[domain]` a number for each test image, (ways, n) int16: images of one number show the same one."""
        if domain not in self.sharing:
            raise DataError(f"photos: the images of {domain!r} have nothing in common that is known")
        found = self._find(name := self._elsewhere[domain])
        _verify(name, found, self._content[name])
        stems = [file.stem.split("-") for file, _ in found.interleaved(domain)[: self.limit]]
        if odd := next((parts for parts in stems if len(parts) != 2), None):
            raise DataError(f"{name}: {'-'.join(odd)} in {found.root} is not named SHAPE-TEXTURE, as a picture of {domain} should be")
        return np.stack([np.unique(names, return_inverse=True)[1] for names in zip(*stems)]).astype(np.int16)

    @property
    def _elsewhere(self) -> dict[str, str]:
        return {domain: name for name in self.unseen for domain in SOURCES[_family(name)].parts}

    @cached_property
    def _content(self) -> dict[str, str]:
        return {name: DIGESTS.get(name) or self._find(name).content(tuple(DIGESTS.values())) for name in (self.source, *self.unseen)}

    def _find(self, name: str) -> Collection:
        return _folder(Path(self.folder).expanduser()) if name == "imagefolder" else _find(name, download=True)

    def _seen(self, part: str) -> tuple[Tensor, Tensor]:
        if not self.held_out:
            return self._load(self.source, part)
        pixels, labels = self._load(self.source, "train")
        kept = held_out(labels) == (part == "test")
        return pixels[kept], labels[kept]

    def _load(self, name: str, part: str) -> tuple[Tensor, Tensor]:
        spec = {"suite": "photos", "version": self.version, "content": self._content[name], "part": part, "size": self.size, "limit": self.limit}

        def find() -> tuple[Collection, list[tuple[Path, int]]]:
            found = self._find(name)
            _verify(name, found, self._content[name])
            return found, found.interleaved(part)[: self.limit]

        return decoded(name, spec, self.size, find)


def _family(name: str) -> str:
    return name.partition("-")[0]


def _find(name: str, download: bool) -> Collection:
    """An edition of a data set where it lies, with all its pictures; else MissingData or a DataError."""
    named, source = data_root(), SOURCES[_family(name)]
    base = named or cache_root() / "data"
    if download and named is None and name in TORCHVISION:
        _download(name, base)
    root = next((base / folder for folder in EDITIONS[name] if (base / folder).is_dir()), None)
    if root is None:
        raise MissingData(f"{name}: no {' or '.join(EDITIONS[name])} in {base} ({'KDLIB_DATA' if named else 'KDLIB_DATA is not set'}); {source.get}")
    parts = {}
    for part, (_, folders) in source.parts.items():
        folder = root / next((f for f in folders if (root / f).is_dir()), folders[0])
        parts[part] = {c: pictures(folder / c) for c in source.classes}
    counts = {part: sum(map(len, classes.values())) for part, classes in parts.items()}
    if wrong := [part for part, (n, _) in source.parts.items() if counts[part] != n]:
        raise DataError(f"{name}: {' and '.join(f'{counts[p]:,} pictures of {p}' for p in wrong)} in {root}, not "
                        f"{' and '.join(f'{source.parts[p][0]:,}' for p in wrong)}; delete it, fetch it anew and {source.get}")
    return Collection(name, root, parts, f"fetch it anew and {source.get}")


def _download(name: str, base: Path) -> None:
    installed("torchvision", name, "torchvision")
    from torchvision.datasets import Imagenette

    try:
        Imagenette(base, size=TORCHVISION[name], download=True)
    except Exception as error:  # torchvision raises RuntimeError, OSError and more here
        raise DataError(f"{name}: torchvision cannot download it to {base}: {first_line(error)}; {SOURCES['imagenette'].get}") from error


def _folder(root: Path) -> Collection:
    """Any folder of pictures, in folders of classes. Where it has no split of its own, a fifth of each class, but at least one, is for testing."""
    layout = "it holds train/CLASS/* and val/CLASS/* or test/CLASS/*, or CLASS/* alone"
    if not root.is_dir():
        raise MissingData(f"imagefolder: there is no folder {root}; {layout}")
    held = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    train = root / "train" if held and (root / "train").is_dir() else root
    names = sorted(f.name for f in train.iterdir() if f.is_dir() and f.name[0] != ".")
    if len(names) < 2:
        raise DataError(f"imagefolder: {len(names)} classes in {train}, but at least 2 are needed; {layout}")
    found = {name: pictures(train / name) for name in names}
    if train == root:
        kept = {name: max(1, len(files) // 5) for name, files in found.items()}
        parts = {"train": {n: files[kept[n]:] for n, files in found.items()}, "test": {n: files[: kept[n]] for n, files in found.items()}}
    else:
        if unknown := sorted(f.name for f in held.iterdir() if f.is_dir() and f.name[0] != "." and f.name not in names):
            raise DataError(f"imagefolder: {', '.join(unknown[:3])} in {held} is no class of {train}")
        parts = {"train": found, "test": {name: pictures(held / name) for name in names}}
    if empty := [name for name, files in parts["train"].items() if not files]:
        raise DataError(f"imagefolder: {len(found[empty[0]])} pictures in {train / empty[0]}, too few to train and test; {layout}")
    if not any(parts["test"].values()):
        raise DataError(f"imagefolder: no pictures in {held}; {layout}")
    return Collection("imagefolder", root, parts, "replace or remove them")


def _verify(name: str, found: Collection, wanted: str) -> None:
    content = found.content(tuple(DIGESTS.values()))
    if content == wanted:
        return
    if name in DIGESTS:
        raise DataError(f"{name}: the content of {found.root} is not the declared one (digest {content}, declared {wanted}): another edition, or "
                        f"damaged; choose {_family(name)} in the place of {name} to take it as it is, or {found.mend}")
    raise DataError(f"{name}: the content of {found.root} changed after the key was formed (digest {content}, was {wanted}); start again")


def _state(family: str) -> str:
    """Every edition of a data set that is there, its counts verified and all of it read."""
    roots, missing = {}, None
    for name in EDITIONS:
        if _family(name) == family:
            try:
                found = _find(name, download=False)
                roots[found.root] = found
            except MissingData as error:
                missing = missing or error
    if not roots:
        raise missing
    contents = {root: found.content(tuple(DIGESTS.values()), reread=True) for root, found in roots.items()}
    declared = {digest: name for name, digest in DIGESTS.items()}
    return " and ".join(f"{root} ({declared.get(digest) or f'an edition without declared digest; its own is {digest}'})"
                        for root, digest in contents.items())


SETS = {family: DataSet(source.what, partial(_state, family)) for family, source in SOURCES.items()}
