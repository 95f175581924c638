"""Drawn scenes: one object before a background, whose class its shape always tells, and its texture and colour often.

scene         the object with its texture and colour, before a dull photograph or paper; the domain that networks learn
sketch        its outline, drawn twice by an unsteady hand, and hatching, on white
stylized      object and background in the texture of one photograph and in one hue, both unrelated to the class
edge          the edges of the object and of its texture, on white
silhouette    the object in black, on white
cue-conflict  a scene whose texture and colour are those of another class; its label is its shape's

They mean what the stimuli of Geirhos et al. (2019) mean, but are drawn: a test domain holds the same objects in the same
poses as the test scenes. What networks learn here shows mechanisms; only photographs test a claim.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdlib.data import DataError, DataSet
from kdlib.data.augment import Pictures, as_images, held_out, turn_hue
from kdlib.data.files import photographs, rgb

DOMAINS = ("scene", "sketch", "stylized", "edge", "silhouette", "cue-conflict")
JITTER = (0.4, 0.2)  # strength and hue of the colour jitter of Sec. 4.3
SHAPES = ("disc", "ring", "square", "triangle", "star", "cross", "crescent", "heart", "arrow", "hourglass")
TEXTURES = {  # file: (pixels averaged per side, left, top, right, bottom of the part that shows the texture)
    "brick.png": (4, 0, 0, 512, 512), "grass.png": (2, 0, 0, 512, 512), "gravel.png": (3, 0, 0, 512, 512),
    "coins.png": (4, 0, 0, 384, 303), "chelsea.png": (1, 96, 10, 240, 74), "flower.jpg": (2, 254, 130, 404, 280),
    "ihc.png": (2, 0, 0, 512, 512), "text.png": (2, 0, 0, 448, 172), "page.png": (2, 0, 20, 384, 191),
    "hubble_deep_field.jpg": (3, 0, 0, 1000, 872)}
PATCH = 32  # pixels of such a part behind every scene, whatever its size
PAPER = 0.25  # the share of scenes before plain paper in the place of a photograph
REACH = 0.95  # no object reaches further from the centre, in half image sides
DIGEST = "08158f592b9fcdc1"


@dataclass(frozen=True)
class Scenes:
    """`train` and `test` scenes of `size` pixels, drawn from `seed`. `texture` and `colour` are the probabilities with which an
    object's texture and colour are those of its class; otherwise they are another's, each equally often.

    `held_out` is for choosing settings: a fifth of the training scenes are the test domain "scene", and the only one.
    """

    size: int = 32
    train_items: int = 3000
    test_items: int = 1000
    texture: float = 0.4
    colour: float = 0.5
    seed: int = 0
    held_out: bool = False

    version: ClassVar[int] = 2
    domains: ClassVar[tuple[str, ...]] = DOMAINS
    sharing: ClassVar[dict[str, tuple[str, ...]]] = {}  # each scene is drawn by itself
    seen: ClassVar[str] = "scene"
    jittered: ClassVar[str] = "scene jittered"
    names: ClassVar[tuple[str, ...]] = SHAPES
    classes: ClassVar[int] = len(SHAPES)

    def __post_init__(self):
        if self.size < 16:
            raise DataError(f"scenes: size is at least 16 pixels, not {self.size}")
        for name in "train_items", "test_items":
            if getattr(self, name) < self.classes:
                raise DataError(f"scenes: {name} is at least {self.classes}, a scene a class, not {getattr(self, name)}")
        for name in "texture", "colour":
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"scenes: {name} is a probability in [0, 1], not {getattr(self, name)}")

    def describe(self) -> dict:
        return {"suite": "scenes", "version": self.version, "photographs": DIGEST, "size": self.size, "train": self.train_items,
                "test": self.test_items, "texture": float(self.texture), "colour": float(self.colour), "seed": self.seed,
                **({"held out": True} if self.held_out else {})}

    def train(self, domains: tuple[str, ...], device) -> Pictures:
        if domains not in ((self.seen,), (self.jittered,)):
            raise DataError(f"scenes: networks learn from {self.seen!r} or {self.jittered!r}, not {', '.join(map(repr, domains)) or 'nothing'}")
        drawn = _draw(replace(self, held_out=False), "train", self.seen, str(device))
        kept = ~held_out(drawn.labels) if self.held_out else slice(None)
        return Pictures(drawn.pixels[kept], drawn.labels[kept], JITTER if domains == (self.jittered,) else None)

    def test(self, domain: str, device) -> tuple[Tensor, Tensor]:
        """The test images of one domain: x (n, 3, size, size) in [0, 1] and labels y (n,), the classes of their shapes."""
        drawn = self._test(domain, device)
        return as_images(drawn.pixels), drawn.labels.clone()

    def masks(self, domain: str, device) -> Tensor:
        """The share of each pixel that the object covers, (n, size, size) in [0, 1], for the test images of one domain."""
        return self._test(domain, device).masks.clone()

    def textures(self, domain: str, device) -> Tensor:
        """The class (n,) whose texture each test object has."""
        return self._test(domain, device).textures.clone()

    def _test(self, domain: str, device) -> "Drawn":
        if domain not in (known := DOMAINS[:1] if self.held_out else DOMAINS):
            raise DataError(f"scenes: domains are {', '.join(known)}, not {domain!r}")
        if not self.held_out:
            return _draw(self, "test", domain, str(device))
        whole = _draw(replace(self, held_out=False), "train", domain, str(device))
        kept = held_out(whole.labels)
        return Drawn(*(part[kept] for part in (whole.pixels, whole.labels, whole.masks, whole.textures)))


@dataclass(frozen=True)
class Drawn:
    pixels: Tensor  # (n, size, size, 3) uint8
    labels: Tensor  # (n,)
    masks: Tensor  # (n, size, size)
    textures: Tensor  # (n,)


@lru_cache(maxsize=8)
def _draw(suite: Scenes, split: str, domain: str, device: str) -> Drawn:
    n = suite.train_items if split == "train" else suite.test_items
    random = torch.Generator().manual_seed(2 * suite.seed + (split == "test"))
    labels = torch.arange(n) % suite.classes
    pose = _pose(labels, random)
    texture, colour = (_cue(labels, agree, suite.classes, random) for agree in (suite.texture, suite.colour))
    other = (labels + torch.randint(1, suite.classes, (n,), generator=random)) % suite.classes
    style, behind = (torch.randint(suite.classes, (n,), generator=random) for _ in range(2))
    hand = torch.rand(n, 16, generator=random)  # of the sketch, and of light and background
    place = torch.rand(n, 2, 2, generator=random)
    if domain == "cue-conflict":
        texture = colour = other
    if domain == "stylized":
        texture = colour = behind = style
    labels, texture, colour, behind, hand, place, pose = (t.to(device) for t in (labels, texture, colour, behind, hand, place, pose))
    size = suite.size
    mask = _cover(labels, pose, size)
    inside, outside = (_patches(which, place[:, i], size, split, device) for i, which in enumerate((texture, behind)))
    if domain == "silhouette":
        image = (1 - mask)[:, None].expand(-1, 3, -1, -1)
    elif domain == "sketch":
        image = _sketch(labels, pose, mask, hand, size)
    elif domain == "edge":
        image = _edges(mask * (0.15 + 0.6 * inside) + (1 - mask))
    else:
        light = 0.75 + 0.25 * hand[:, 0]
        back_hue, back_colour = (colour.float() / suite.classes, 0.75) if domain == "stylized" else (hand[:, 1], 0.2)
        dark = (0.35 * (hand[:, 2] > 0.5).float())[:, None, None]  # of the background
        back = _paint(0.55 - dark + 0.35 * outside, back_hue, back_colour)
        if domain == "stylized":  # one palette, so what is left to see the object by is its light
            front = _paint(0.15 + dark + 0.5 * inside, back_hue, back_colour)
        else:
            front = _paint(0.35 + 0.65 * inside, (colour.float() + 0.5 * (hand[:, 3] - 0.5)) / suite.classes, 0.3 + 0.6 * hand[:, 5])
            back = torch.where(hand[:, 4, None, None, None] < PAPER, 0.95, back)
        image = light[:, None, None, None] * (mask[:, None] * front + (1 - mask[:, None]) * back)
    pixels = (255 * image.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).contiguous()
    return Drawn(pixels, labels, mask, texture)


def _pose(labels: Tensor, random) -> Tensor:
    """(n, 5): angle, radius and centre (in half image sides), and the ratio of the object's axes. An object that would be cut at
    the image's border is moved inwards, and shrunk where that does not do."""
    u = torch.rand(len(labels), 5, generator=random)
    angle, radius, ratio = 2 * math.pi * u[:, 0], 0.5 + 0.25 * u[:, 1], 0.8 + 0.4 * u[:, 4]
    centre = (2 * u[:, 2:4] - 1) * (REACH - radius)[:, None]
    low, high = _extent(labels, angle, ratio)
    radius = torch.minimum(radius, 2 * REACH / (high - low).amax(1))
    centre = torch.minimum(torch.maximum(centre, -REACH - radius[:, None] * low), REACH - radius[:, None] * high)
    return torch.stack([angle, radius, centre[:, 0], centre[:, 1], ratio], dim=1)


def _extent(labels: Tensor, angle: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """How far objects of radius 1 reach from their centres: left and up (n, 2), negative, and right and down (n, 2)."""
    low, high = torch.empty(2, len(labels), 2).unbind()
    v, u = torch.meshgrid(*2 * [torch.linspace(-1.3, 1.3, 131)], indexing="ij")
    for number, shape in enumerate(SHAPES):
        rows, inside = labels == number, _inside(shape, u, v)
        rim = inside & (F.avg_pool2d(inside.float()[None], 3, 1, 1)[0] < 1)
        a, q = angle[rows, None], ratio[rows, None]
        along, across = u[rim] * q, v[rim] / q
        points = torch.stack([along * a.cos() - across * a.sin(), along * a.sin() + across * a.cos()])
        low[rows], high[rows] = points.amin(2).T, points.amax(2).T
    return low, high


def _cue(labels: Tensor, agree: float, classes: int, random) -> Tensor:
    other = (labels + torch.randint(1, classes, labels.shape, generator=random)) % classes
    return torch.where(torch.rand(labels.shape, generator=random) < agree, labels, other)


def _cover(labels: Tensor, pose: Tensor, size: int, wobble: Tensor | None = None) -> Tensor:
    """The share of each pixel (n, size, size) inside the shape, from 3 x 3 points a pixel; `wobble` (n, 8) bends the outline."""
    fine = 3 * size
    line = (torch.arange(fine, device=pose.device) + 0.5) / fine * 2 - 1
    angle, radius, right, down, ratio = (p.view(-1, 1, 1) for p in pose.unbind(1))
    masks = torch.empty(len(labels), size, size, device=pose.device)
    for number, shape in enumerate(SHAPES):
        for rows in (labels == number).nonzero()[:, 0].split(250):
            a, r, cx, cy, q = (p[rows] for p in (angle, radius, right, down, ratio))
            x, y = (line[None, None, :] - cx) / r, (line[None, :, None] - cy) / r
            u, v = (x * a.cos() + y * a.sin()) / q, (y * a.cos() - x * a.sin()) * q
            if wobble is not None:
                phase, depth = 2 * math.pi * wobble[rows, :4, None, None], 0.16 * (wobble[rows, 4:, None, None] - 0.5)
                u = u + depth[:, 0] * (4 * v + phase[:, 0]).sin() + depth[:, 1] * (7 * v + phase[:, 1]).sin()
                v = v + depth[:, 2] * (4 * u + phase[:, 2]).sin() + depth[:, 3] * (7 * u + phase[:, 3]).sin()
            masks[rows] = F.avg_pool2d(_inside(shape, u, v).float()[:, None], 3)[:, 0]
    return masks


def _inside(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Whether points lie inside a shape about as large as the unit disc."""
    if shape in POLYGONS:
        corners, inside = POLYGONS[shape], torch.zeros_like(u, dtype=torch.bool)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):  # even-odd rule
            if y0 != y1:
                inside ^= ((y0 > v) != (y1 > v)) & (u < (x1 - x0) * (v - y0) / (y1 - y0) + x0)
        return inside
    square = u**2 + v**2
    if shape == "disc":
        return square < 0.75
    if shape == "ring":
        return (square < 0.9) & (square > 0.3)
    if shape == "crescent":
        return (square < 0.95) & ((u - 0.45) ** 2 + v**2 > 0.62)
    x, y = 1.25 * u, 0.15 - 1.25 * v
    return (x**2 + y**2 - 1) ** 3 < x**2 * y**3  # heart


def _star(points: int, inner: float, outer: float = 1.05) -> list[tuple[float, float]]:
    return [((outer, inner)[k % 2] * math.sin(math.pi * k / points), -(outer, inner)[k % 2] * math.cos(math.pi * k / points))
            for k in range(2 * points)]


POLYGONS = {
    "square": [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)],
    "triangle": [(1.05 * math.sin(k), -1.05 * math.cos(k)) for k in (0, 2 * math.pi / 3, 4 * math.pi / 3)],
    "star": _star(5, 0.42),
    "cross": [(-0.3, -0.95), (0.3, -0.95), (0.3, -0.3), (0.95, -0.3), (0.95, 0.3), (0.3, 0.3),
              (0.3, 0.95), (-0.3, 0.95), (-0.3, 0.3), (-0.95, 0.3), (-0.95, -0.3), (-0.3, -0.3)],
    "arrow": [(0.0, -1.0), (0.8, -0.1), (0.32, -0.1), (0.32, 0.95), (-0.32, 0.95), (-0.32, -0.1), (-0.8, -0.1)],
    "hourglass": [(-0.8, -0.95), (0.8, -0.95), (0.12, 0.0), (0.8, 0.95), (-0.8, 0.95), (-0.12, 0.0)],
}


def _paint(value: Tensor, hue: Tensor, saturation: float | Tensor) -> Tensor:
    """Colours (n, 3, h, w) of HSV value (n, h, w), and hue in turns and saturation (n,), or one for all."""
    low = value * (1 - torch.as_tensor(saturation, device=value.device).view(-1, 1, 1))
    return turn_hue(torch.stack([value, low, low], dim=1), hue.view(-1, 1, 1, 1))


def _sketch(labels: Tensor, pose: Tensor, mask: Tensor, hand: Tensor, size: int) -> Tensor:
    drawing = torch.zeros_like(mask)
    for start in 0, 8:
        strokes = _cover(labels, pose, size, wobble=hand[:, start:start + 8])
        drawing = torch.maximum(drawing, 0.85 * _outline(strokes))
    line = torch.arange(size, device=pose.device)
    slope = (hand[:, 0, None, None] - 0.5) * 2
    hatching = ((line[None, None, :] + slope * line[None, :, None]) % (size // 6) < 1).float() * 0.35 * (mask > 0.9)
    return (1 - torch.maximum(drawing, hatching))[:, None].expand(-1, 3, -1, -1)


def _outline(mask: Tensor) -> Tensor:
    spread = F.max_pool2d(mask[:, None], 3, 1, 1)[:, 0]
    return (spread + F.max_pool2d(-mask[:, None], 3, 1, 1)[:, 0]).clamp(0, 1)


def _edges(value: Tensor) -> Tensor:
    """Dark edges on white: 1 minus the gradient's length, scaled so that a step of a half is black."""
    kernel = torch.tensor([[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]], device=value.device) / 4
    padded = F.pad(value[:, None], (1, 1, 1, 1), mode="replicate")
    steps = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return (1 - 2 * steps.norm(dim=1, keepdim=True)).clamp(0, 1).expand(-1, 3, -1, -1)


def _patches(which: Tensor, place: Tensor, size: int, split: str, device) -> Tensor:
    """Patches (n, size, size) of textures, in [0, 1], each with mean 0.5 and standard deviation 0.22 before clipping."""
    found = torch.empty(len(which), PATCH, PATCH, device=device)
    line = torch.arange(PATCH, device=device)
    for number, photograph in enumerate(_textures(split)):
        rows = (which == number).nonzero()[:, 0]
        if not len(rows):
            continue
        photograph = photograph.to(device)
        room = torch.tensor([photograph.shape[0] - PATCH + 1, photograph.shape[1] - PATCH + 1], device=device)
        top, left = (place[rows] * room).long().unbind(1)
        patch = photograph[(top[:, None] + line)[:, :, None], (left[:, None] + line)[:, None, :]]
        spread, mean = torch.std_mean(patch, (1, 2), keepdim=True)
        found[rows] = 0.5 + 0.22 * (patch - mean) / spread.clamp(min=1e-3)
    return F.interpolate(found.clamp(0, 1)[:, None], size=(size, size), mode="bilinear", align_corners=False, antialias=True)[:, 0]


@lru_cache
def _textures(split: str) -> tuple[Tensor, ...]:
    """The photographs' luminance; scenes to learn from show the left or upper half of each, scenes to test on the other."""
    parts = []
    for name, path in _files().items():
        step, left, top, right, bottom = TEXTURES[name]
        picture = torch.from_numpy(rgb(path)[top:bottom, left:right].astype(np.float32)).mean(2) / 255
        picture = F.avg_pool2d(picture[None], step)[0]
        along = picture.shape[1] >= picture.shape[0]
        cut = max(picture.shape) // 2
        first = slice(None, cut) if split == "train" else slice(cut, None)
        parts.append(picture[:, first] if along else picture[first])
    return tuple(parts)


def _files() -> dict[str, Path]:
    return photographs("textures", TEXTURES, DIGEST)


SETS = {
    "textures": DataSet("10 photographs of scikit-learn and scikit-image, for the textures of drawn scenes",
                        lambda: " and ".join(sorted({str(f.parent) for f in _files().values()}))),
}
