"""Measurements: probes put to runs on data. Each is a value, like a run, and its arrays are what the store keeps.

What several networks are asked about (the test items, the planes) is a measurement without runs; an attack is one of the
network that it was made for.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from kdlib.data import augment
from kdlib.models import features, view
from kdlib.probes import accuracy, adversarial, boundary, divergence, invariance, localization
from kdlib.store import Arrays, describe, key
from kdlib.train import Run, stream


class Measure:
    """Subclasses are frozen dataclasses with a `version`. Their fields that are runs, and those runs that a measurement among
    their fields is about, are `runs`, in their order, whose networks `compute` gets; it returns the arrays to keep."""

    @property
    def runs(self) -> tuple[Run, ...]:
        return sum(((value,) if isinstance(value, Run) else value.runs for value in self._fields().values()
                    if isinstance(value, (Run, Measure))), ())

    def describe(self) -> dict:
        return {"type": type(self).__name__, "version": self.version,
                **{n: v.key if isinstance(v, Run) else describe(v) for n, v in self._fields().items()}}

    @cached_property
    def key(self) -> str:
        return key(self.describe())

    def _fields(self) -> dict:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def compute(self, *nets: torch.nn.Module) -> Arrays:
        raise NotImplementedError


@dataclass(frozen=True)
class Items(Measure):
    """A test domain itself: `label` (n,) of all items (-1 where it is of no class), and `image` (k, 3, size, size) uint8 of the first `images`."""

    data: object
    domain: str
    images: int = 0

    version: ClassVar[int] = 1

    def compute(self):
        x, y = self.data.test(self.domain, "cpu")
        return {"label": _small(y), "image": _pixels(x[: self.images])}


@dataclass(frozen=True)
class Predictions(Measure):
    """The classes that one network predicts on a test domain: `prediction` (n,), uint8 (int16 beyond 256 classes)."""

    run: Run
    data: object
    domain: str

    version: ClassVar[int] = accuracy.version

    def compute(self, net):
        x, _ = self.data.test(self.domain, self.run.device)
        return {"prediction": _small(accuracy.predict(net, x))}


@dataclass(frozen=True)
class Recolouring(Measure):
    """Random recolourings of the images of a test domain, `draws` of each, the same for every network: brightness, contrast and saturation
    times U[1 - strength, 1 + strength], hue turned by U[-hue, hue] of a full turn; with `step`, one of `augment.STEPS`, that one alone.

    All strengths and steps share their random numbers: an image is changed in one direction, only further or in part. The first draw is
    the same whatever `draws`. `image` (k, 3, size, size) uint8 shows it on the first `images`.
    """

    data: object
    domain: str
    strength: float
    hue: float
    draws: int = 1
    step: str | None = None
    images: int = 0

    version: ClassVar[int] = invariance.version

    def __post_init__(self):
        for name in "strength", "hue":  # equal settings, equal keys
            object.__setattr__(self, name, float(getattr(self, name)))
        if self.step not in (None, *augment.STEPS):
            raise ValueError(f"recolouring: step is one of {', '.join(augment.STEPS)}, not {self.step!r}")

    def factors(self, n: int) -> torch.Tensor:
        """Of n images, (draws, n, 4), as `augment.jitter` takes them."""
        generator = torch.Generator().manual_seed(stream("20231210", "recolouring"))
        drawn = augment.jitter_factors(self.draws * n, strength=self.strength, hue=self.hue, generator=generator).view(self.draws, n, 4)
        return augment.only(drawn, self.step) if self.step else drawn

    def compute(self):
        x = self.data.test(self.domain, "cpu")[0]
        return {"image": _pixels(augment.jitter(x[: self.images], self.factors(len(x))[0, : self.images]))}


@dataclass(frozen=True)
class Recoloured(Measure):
    """The classes that one network predicts on the recoloured images: `prediction` (draws, n), uint8 (int16). See `kdlib.probes.invariance`."""

    run: Run
    recolouring: Recolouring

    version: ClassVar[int] = invariance.version

    def describe(self) -> dict:
        whole = super().describe()
        del whole["recolouring"]["images"]  # how many are pictured changes no prediction
        return whole

    def compute(self, net):
        r = self.recolouring
        x = r.data.test(r.domain, self.run.device)[0]
        return {"prediction": _small(invariance.predict_changed(net, x, augment.jitter, r.factors(len(x))))}


@dataclass(frozen=True)
class Features(Measure):
    """What one layer (or `logits`) says of the first `items` images of a test domain: `feature` (items, ...), logits in float32,
    else float16."""

    run: Run
    data: object
    domain: str
    layer: str
    items: int

    version: ClassVar[int] = 1

    @torch.no_grad()
    def compute(self, net):
        x = self.data.test(self.domain, self.run.device)[0][: self.items]
        found = torch.cat([features(net, part, self.layer) for part in x.split(500)])
        return {"feature": (found.float() if self.layer == "logits" else found.half()).contiguous().cpu().numpy()}


@dataclass(frozen=True)
class Divergence(Measure):
    """KL(teacher || student) on the first `items` images of a test domain: `nats` (items,), float16 (3 digits)."""

    run: Run
    teacher: Run
    data: object
    domain: str
    items: int

    version: ClassVar[int] = divergence.version

    def compute(self, student, teacher):
        x = self.data.test(self.domain, self.run.device)[0][: self.items]
        return {"nats": divergence.kl(student, teacher, x).half().cpu().numpy()}


@dataclass(frozen=True)
class Maps(Measure):
    """Where one network finds the true class in the first `items` images of a test domain: `map` (items, h, w), each divided by its
    largest absolute value, so that no cosine changes; all-zero maps stay so.

    Grad-CAM at `layer`, also with an ending of `kdlib.models.view`, is stored as uint8, 0 to 255; `method` "integrated" (no layer: None)
    is signed, as int8, -127 to 127. `grid` average-pools maps to grid x grid cells; integrated maps have the image's size otherwise. On 3,925 photographs with maps of 8 x 8
    cells, rounding moved cosines by 0.0002 on average (int8, on 150: 0.0006) and the share of `nearer` by 0.0005, and an archive took 216 kB a
    network (float16: 370 kB). So this is for some hundred images and for pictures; `MapCosine` serves whole test sets.
    """

    run: Run
    data: object
    domain: str
    layer: str | None
    items: int
    method: str = "gradcam"
    grid: int | None = None

    version: ClassVar[int] = localization.version

    def __post_init__(self):
        if self.method not in ("gradcam", "integrated") or (self.method == "integrated") != (self.layer is None):
            raise ValueError(f"maps: method is gradcam, at a layer, or integrated, without one; not {self.method!r} at {self.layer!r}")

    def of(self, net: torch.nn.Module) -> torch.Tensor:
        """The maps as they are, float32."""
        x, y = (t[: self.items] for t in self.data.test(self.domain, self.run.device))
        if self.layer is None:
            maps = localization.integrated_gradients(net, x, y)
        else:
            layer, reshape = view(self.layer)
            maps = localization.gradcam(net, x, y, layer=layer, reshape=reshape)
        return maps if self.grid is None else F.adaptive_avg_pool2d(maps, self.grid)

    def compute(self, net):
        maps, (top, kind) = self.of(net), (127, torch.int8) if self.layer is None else (255, torch.uint8)
        largest = maps.abs().amax((1, 2), keepdim=True)
        return {"map": (top * (maps / largest.where(largest > 0, 1))).round().to(kind).cpu().numpy()}


@dataclass(frozen=True)
class MapCosine(Measure):
    """How alike two networks' maps of the same images are: `cosine` (items,), float32 from the unrounded maps, NaN where either is all
    zero. `localization.closer` compares two students by it; 3,925 images take 13 kB in an archive."""

    maps: Maps
    teacher: Maps

    version: ClassVar[int] = localization.version

    def __post_init__(self):
        if any(getattr(self.maps, name) != getattr(self.teacher, name) for name in ("data", "domain", "items", "method")):
            raise ValueError("map cosine: the two maps are not of the same images by the same method")

    @property
    def runs(self):
        return self.maps.run, self.teacher.run

    def compute(self, net, teacher):
        return {"cosine": localization.cosine(self.maps.of(net), self.teacher.of(teacher)).cpu().numpy()}


@dataclass(frozen=True)
class Planes(Measure):
    """Planes through random triplets of test items, equal for every network that is asked about them.

    `triplet` (count, 3) are the items, `corner` (count, 3, 2) their places on the plane, and `image` (k, 3, 3, size, size)
    uint8 shows the triplets of the first `images` planes. For the other fields see `kdlib.probes.boundary`.
    """

    data: object
    domain: str
    count: int
    resolution: int
    margin: float = 0.1
    distinct: bool = True
    clip: bool = False
    images: int = 0

    version: ClassVar[int] = boundary.version

    def draw(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The triplets (count, 3) and their images (count, 3, channels, size, size)."""
        x, y = self.data.test(self.domain, device)
        rows = boundary.triplets(y.cpu(), self.count, distinct=self.distinct, generator=torch.Generator().manual_seed(20231210))
        return rows, x[rows.to(device)]

    def compute(self):
        rows, x = self.draw("cpu")
        corners = [boundary.plane(three, margin=self.margin, resolution=2)[1] for three in x]
        return {"triplet": rows.to(torch.int32).numpy(), "corner": torch.stack(corners).numpy(), "image": _pixels(x[: self.images])}


@dataclass(frozen=True)
class Regions(Measure):
    """The classes that one network gives those planes: `region` (count, resolution, resolution), uint8 (int16)."""

    run: Run
    planes: Planes

    version: ClassVar[int] = boundary.version

    def describe(self) -> dict:
        whole = super().describe()
        del whole["planes"]["images"]  # how many are pictured changes no region
        return whole

    def compute(self, net):
        p, (_, x) = self.planes, self.planes.draw(self.run.device)
        return {"region": _small(torch.stack([
            boundary.regions(net, three, margin=p.margin, resolution=p.resolution, clip=p.clip) for three in x]))}


CRAFTED = 2**30  # bytes of adversarial images that a process keeps: each student is asked about the same ones
_crafted: dict[str, torch.Tensor] = {}  # by key, the latest used last


@dataclass(frozen=True)
class Attack(Measure):
    """Images that iterative FGSM makes of the first `items` images of a test domain (None: of all) to fool the network of `run`;
    see `kdlib.probes.adversarial.ifgsm`. They are too many to store: `clean` and `perturbed` (k, 3, size, size) uint8 show the
    first `images`."""

    run: Run
    data: object
    domain: str
    eps: float
    step: float
    steps: int = 5
    items: int | None = None
    images: int = 0

    version: ClassVar[int] = adversarial.version

    def __post_init__(self):
        _floats(self, "eps", "step")

    def draw(self, device: str, net: torch.nn.Module) -> torch.Tensor:
        """The adversarial images (n, channels, size, size); `net` is the network of `run`."""
        name = replace(self, images=0).key
        made = _crafted.pop(name, None)
        if made is None:
            x, y = (part[: self.items] for part in self.data.test(self.domain, self.run.device))
            made = adversarial.ifgsm(net, x, y, eps=self.eps, step=self.step, steps=self.steps)
            while _crafted and made.nbytes + sum(kept.nbytes for kept in _crafted.values()) > CRAFTED:
                del _crafted[next(iter(_crafted))]
        _crafted[name] = made
        return made.to(device)

    def compute(self, net):
        return _pictures(self, net)


@dataclass(frozen=True)
class Noise(Measure):
    """The control of an attack: the same images, moved by as much at random, equal for all networks. Fields as in `Attack`."""

    data: object
    domain: str
    eps: float
    items: int | None = None
    images: int = 0

    version: ClassVar[int] = adversarial.version

    def __post_init__(self):
        _floats(self, "eps")

    def draw(self, device: str) -> torch.Tensor:
        """The noisy images (n, channels, size, size)."""
        x = self.data.test(self.domain, device)[0][: self.items]
        return adversarial.noise(x, eps=self.eps, generator=torch.Generator().manual_seed(stream("20231210", "noise")))

    def compute(self):
        return _pictures(self)


@dataclass(frozen=True)
class Attacked(Measure):
    """The classes that one network predicts on the images of an attack, on itself or on another network, or on noisy ones:
    `prediction` (n,), uint8 (int16). See `kdlib.probes.adversarial.fooled`."""

    run: Run
    attack: Attack | Noise

    version: ClassVar[int] = adversarial.version

    def describe(self) -> dict:
        whole = super().describe()
        del whole["attack"]["images"]  # how many are pictured changes no prediction
        return whole

    def compute(self, net, *target):
        return {"prediction": _small(accuracy.predict(net, self.attack.draw(self.run.device, *target)))}


def _pictures(attack: Attack | Noise, *target: torch.nn.Module) -> Arrays:
    clean = attack.data.test(attack.domain, "cpu")[0][: attack.items][: attack.images]
    perturbed = attack.draw("cpu", *target)[: attack.images] if attack.images else clean
    return {"clean": _pixels(clean), "perturbed": _pixels(perturbed)}


def _floats(measure: Measure, *names: str) -> None:
    """Equal settings get equal keys: 1 and 1.0 are one eps."""
    for name in names:
        object.__setattr__(measure, name, float(getattr(measure, name)))


def _small(classes: torch.Tensor) -> np.ndarray:
    return classes.to(torch.uint8 if 0 <= classes.min() and classes.max() < 256 else torch.int16).cpu().numpy()


def _pixels(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().numpy()
