"""Measurements: probes put to runs on data. Each is a value, like a run, and its arrays are what the store keeps.

What several networks are asked about (the test items, the planes) is a measurement without runs; an attack is one of the
network that it was made for.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from kdlib import toy
from kdlib.data import augment
from kdlib.distill import CRD
from kdlib.models import features, view
from kdlib.probes import accuracy, adversarial, boundary, divergence, invariance, localization
from kdlib.store import Arrays, describe, floats, key, kind
from kdlib.train import Run, begin, keyless, stream


class Measure:
    """Subclasses are frozen dataclasses with a `version`. Their fields that are runs, and those runs that a measurement among
    their fields is about, are `runs`, in their order, whose networks `compute` gets; it returns the arrays to keep."""

    @property
    def runs(self) -> tuple[Run, ...]:
        return sum(((value,) if isinstance(value, Run) else value.runs for value in self._fields().values()
                    if isinstance(value, (Run, Measure))), ())

    @property
    def shared(self) -> str | None:
        """What is costly to make: one process computes the measurements that have it in common, one after the other."""
        return None

    def describe(self) -> dict:
        return kind(self) | {n: v.key if isinstance(v, Run) else describe(v) for n, v in self._fields().items()}

    @cached_property
    def key(self) -> str:
        return key(self.describe())

    def __getstate__(self) -> dict:
        return keyless(self)

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
class Groups(Measure):
    """What the items of a test domain have in common: `group` (ways, n) int16, for each thing in `data.sharing[domain]` a number for each item;
    items of one number share it, and are not independent (`kdlib.stats.crossed`)."""

    data: object
    domain: str

    version: ClassVar[int] = 1

    def compute(self):
        return {"group": self.data.groups(self.domain)}


@dataclass(frozen=True)
class Pictures(Measure):
    """Those of the first `items` images of a test domain whose class is one of `classes`: `index` (k,), and `image` (k, 3, size, size) uint8."""

    data: object
    domain: str
    items: int
    classes: tuple[int, ...]

    version: ClassVar[int] = 1

    def compute(self):
        x, y = self.data.test(self.domain, "cpu")
        index = _pictured(y, self.items, self.classes)
        return {"index": index.to(torch.int32).numpy(), "image": _pixels(x[index])}


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
    the same whatever `draws`. `image` (k, 3, size, size) uint8 shows it on those of the first `images` whose class is one of `classes` (None:
    any), which are `index` (k,).
    """

    data: object
    domain: str
    strength: float
    hue: float
    draws: int = 1
    step: str | None = None
    images: int = 0
    classes: tuple[int, ...] | None = None

    version: ClassVar[int] = invariance.version

    def __post_init__(self):
        floats(self, "strength", "hue")
        if self.step not in (None, *augment.STEPS):
            raise ValueError(f"recolouring: step is one of {', '.join(augment.STEPS)}, not {self.step!r}")

    def factors(self, n: int) -> torch.Tensor:
        """Of n images, (draws, n, 4), as `augment.jitter` takes them."""
        generator = torch.Generator().manual_seed(stream("20231210", "recolouring"))
        drawn = augment.jitter_factors(self.draws * n, strength=self.strength, hue=self.hue, generator=generator).view(self.draws, n, 4)
        return augment.only(drawn, self.step) if self.step else drawn

    def compute(self):
        x, y = self.data.test(self.domain, "cpu")
        index = _pictured(y, self.images, self.classes)
        return {"index": index.to(torch.int32).numpy(), "image": _pixels(augment.jitter(x[index], self.factors(len(x))[0, index]))}


@dataclass(frozen=True)
class Recoloured(Measure):
    """The classes that one network predicts on the recoloured images: `prediction` (draws, n), uint8 (int16). See `kdlib.probes.invariance`."""

    run: Run
    recolouring: Recolouring

    version: ClassVar[int] = invariance.version

    def describe(self) -> dict:
        return super().describe() | {"recolouring": replace(self.recolouring, images=0, classes=None).describe()}  # what is pictured changes no prediction

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
class Missed(Measure):
    """How far a student's features are from its teacher's at one layer of each, on the first `items` images of a test domain: `missed` (items,)
    float32, an image's mean squared difference as a share of the variance of all the teacher's features (their mean alone would miss them by 1)."""

    run: Run
    teacher: Run
    data: object
    domain: str
    layer: str
    teacher_layer: str
    items: int

    version: ClassVar[int] = 1

    @torch.no_grad()
    def compute(self, student, teacher):
        parts = self.data.test(self.domain, self.run.device)[0][: self.items].split(100)
        ours, theirs = (torch.cat([features(net, x, layer).float().flatten(1) for x in parts]) for net, layer in
                        ((student, self.layer), (teacher, self.teacher_layer)))
        if ours.shape != theirs.shape:
            raise ValueError(f"missed: {tuple(ours.shape[1:])} features of {self.layer} cannot be compared with {tuple(theirs.shape[1:])} of {self.teacher_layer}")
        return {"missed": ((ours - theirs).square().mean(1) / theirs.var(correction=0)).cpu().numpy()}


@dataclass(frozen=True)
class Normalizer(Measure):
    """The constant z of CRD that the training of `run` starts with: `z` (2,) float64, against the student's bank and the teacher's; `items`,
    how many these hold (M). Needs the teacher alone, as the banks are filled before the first step."""

    run: Run

    version: ClassVar[int] = 1

    def __post_init__(self):
        if not isinstance(self.run.objective, CRD):
            raise ValueError(f"normalizer: {type(self.run.objective).__name__} has none, only CRD does")

    @property
    def runs(self):
        return (self.run.teacher,)

    def compute(self, teacher):
        loss = begin(self.run, teacher)[3]
        return {"z": np.array(loss.z), "items": np.array(len(loss.labels))}


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
    """Where one network finds the true class in the first `items` images of a test domain (None: in all): `map` (items, h, w), each
    divided by its largest absolute value, so that no cosine changes; all-zero maps stay so.

    Grad-CAM at `layer`, also with an ending of `kdlib.models.view`, is stored as uint8, 0 to 255; `method` "integrated" (no layer: None)
    is signed, as int8, -127 to 127. `grid` average-pools maps to grid x grid cells; integrated maps have the image's size otherwise. On 3,925 photographs with maps of 8 x 8
    cells, rounding moved cosines by 0.0002 on average (int8, on 150: 0.0006) and the share of `nearer` by 0.0005, and an archive took 216 kB a
    network (float16: 370 kB). So this is for some hundred images and for pictures; `MapCosine` serves whole test sets.
    """

    run: Run
    data: object
    domain: str
    layer: str | None
    items: int | None
    method: str = "gradcam"
    grid: int | None = None

    version: ClassVar[int] = localization.version

    def __post_init__(self):
        if self.method not in ("gradcam", "integrated") or (self.method == "integrated") != (self.layer is None):
            raise ValueError(f"maps: method is gradcam, at a layer, or integrated, without one; not {self.method!r} at {self.layer!r}")
        if (self.layer or "").endswith(":input"):
            raise ValueError(f"maps: a map is one of a layer's output, not of {self.layer!r}")

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


MAPPED = 2**28  # bytes of teachers' maps that a process keeps: each student is compared with the same ones
_maps: dict[str, torch.Tensor] = {}  # by key, the latest used last


@dataclass(frozen=True)
class MapCosine(Measure):
    """How alike two networks' maps of the same images are: `cosine` (items,), from the unrounded maps, as float16, NaN where either is all
    zero; `zero` (2, items), whether the one's map and the other's is; `grid` (2,), the rows and columns that both were brought to.

    `localization.closer` compares two students by the cosines. Steps of 0.0005 make ties of one image in 200 to 500, which count one half; 3,925 images
    take 7 kB in an archive (float32: 14 kB).
    """

    maps: Maps
    teacher: Maps

    version: ClassVar[int] = localization.version

    def __post_init__(self):
        if any(getattr(self.maps, name) != getattr(self.teacher, name) for name in ("data", "domain", "items", "method")):
            raise ValueError("map cosine: the two maps are not of the same images by the same method")

    def compute(self, net, teacher):
        ours, theirs = self.maps.of(net), self._of_teacher(teacher)
        return {"cosine": localization.cosine(ours, theirs).half().cpu().numpy(),
                "zero": torch.stack([(maps == 0).all(2).all(1) for maps in (ours, theirs)]).cpu().numpy(),
                "grid": np.minimum(ours.shape[1:], theirs.shape[1:]).astype(np.int16)}

    def _of_teacher(self, teacher: torch.nn.Module) -> torch.Tensor:
        found = _maps.pop(self.teacher.key, None)
        if found is None:
            found = self.teacher.of(teacher)
            while _maps and found.nbytes + sum(kept.nbytes for kept in _maps.values()) > MAPPED:
                del _maps[next(iter(_maps))]
        _maps[self.teacher.key] = found
        return found


@dataclass(frozen=True)
class Localized(Measure):
    """How well one network's maps find the object in a suite that knows where it is (`data.masks`), from the unrounded maps: `energy`
    and `pointing` (items,), float32, NaN where no cell is positive; `object` (items,), the share of the image that the object
    covers, which is the energy of a flat map. See `kdlib.probes.localization`."""

    maps: Maps

    version: ClassVar[int] = localization.version

    def __post_init__(self):
        if not hasattr(self.maps.data, "masks"):
            raise ValueError(f"localized: {type(self.maps.data).__name__} has no masks of its objects")

    def compute(self, net):
        maps, masks = self.maps.of(net), self.maps.data.masks(self.maps.domain, self.maps.run.device)[: self.maps.items]
        return {"energy": localization.energy(maps, masks).cpu().numpy(), "pointing": localization.pointing(maps, masks).cpu().numpy(),
                "object": masks.mean((1, 2)).cpu().numpy()}


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

    def __post_init__(self):
        floats(self, "margin")

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


_made: dict[str, torch.Tensor] = {}  # the images that this process made last, by key: each student is asked about the same ones
_sizes: dict[str, float] = {}  # what this process has calibrated, by key


@dataclass(frozen=True)
class Attack(Measure):
    """Images that iterative FGSM makes of the first `items` images of a test domain (None: of all) to fool the network of `run`; see
    `kdlib.probes.adversarial.ifgsm`. A step is the part `step_of_eps` of eps.

    With `rate` in the place of `eps`, eps is the smallest that changes this share of the network's predictions on the first
    `calibrated_on` images (`adversarial.calibrate`), so that an attack can be asked for before the network is trained. Either is
    multiplied by `scale`. What this comes to is kept as `eps` (). The images are too many to keep: `clean` and `perturbed`
    (k, 3, size, size) uint8 show those of the first `images` whose class is one of `classes` (None: any), which are `index` (k,).
    """

    run: Run
    data: object
    domain: str
    eps: float | None = None
    rate: float | None = None
    calibrated_on: int = 500
    scale: float = 1.0
    step_of_eps: float = 0.25
    steps: int = 5
    items: int | None = None
    images: int = 0
    classes: tuple[int, ...] | None = None

    version: ClassVar[int] = adversarial.version

    def __post_init__(self):
        if (self.eps is None) == (self.rate is None):
            raise ValueError("attack: needs eps, or the rate at which it is to fool its network, one of the two")
        floats(self, "eps", "rate", "scale", "step_of_eps")

    @property
    def unpictured(self) -> "Attack":
        return replace(self, images=0, classes=None)

    @property
    def shared(self):
        return self.unpictured.key

    def size(self, net: torch.nn.Module) -> float:
        """eps; `net` is the network of `run`."""
        if self.eps is not None:
            return self.scale * self.eps
        name = replace(self.unpictured, scale=1, items=None).key
        if name not in _sizes:
            x, y = (part[: self.calibrated_on] for part in self.data.test(self.domain, self.run.device))
            _sizes[name] = adversarial.calibrate(net, x, y, rate=self.rate, steps=self.steps, step_of_eps=self.step_of_eps)
        return self.scale * _sizes[name]

    def draw(self, device: str, net: torch.nn.Module) -> torch.Tensor:
        """The adversarial images (n, channels, size, size); `net` is the network of `run`."""
        def make() -> torch.Tensor:
            x, y = (part[: self.items] for part in self.data.test(self.domain, self.run.device))
            eps = self.size(net)
            return adversarial.ifgsm(net, x, y, eps=eps, step=self.step_of_eps * eps, steps=self.steps)

        return _latest(self, make).to(device)

    def compute(self, net):
        return _pictures(self, self, net)


@dataclass(frozen=True)
class Noise(Measure):
    """The control of an attack: the same images, moved by as much at random, alike for all networks. Arrays as an attack's."""

    attack: Attack

    version: ClassVar[int] = adversarial.version

    @property
    def unpictured(self) -> "Noise":
        return Noise(self.attack.unpictured)

    @property
    def shared(self):
        return self.unpictured.key

    def draw(self, device: str, net: torch.nn.Module) -> torch.Tensor:
        """The noisy images (n, channels, size, size); `net` is the network that the attack is made for."""
        def make() -> torch.Tensor:
            x = self.attack.data.test(self.attack.domain, self.attack.run.device)[0][: self.attack.items]
            generator = torch.Generator().manual_seed(stream("20231210", "noise"))
            return adversarial.noise(x, eps=self.attack.size(net), generator=generator)

        return _latest(self, make).to(device)

    def compute(self, net):
        return _pictures(self, self.attack, net)


@dataclass(frozen=True)
class Attacked(Measure):
    """The classes that one network predicts on the images of an attack, on itself or on another network, or on noisy ones:
    `prediction` (n,), uint8 (int16). See `kdlib.probes.adversarial.fooled`."""

    run: Run
    attack: Attack | Noise

    version: ClassVar[int] = adversarial.version

    @property
    def shared(self):
        return self.attack.shared

    def describe(self) -> dict:
        return super().describe() | {"attack": self.attack.unpictured.describe()}  # what is pictured changes no prediction

    def compute(self, net, target):
        return {"prediction": _small(accuracy.predict(net, self.attack.draw(self.run.device, target)))}


@dataclass(frozen=True)
class Recovery(Measure):
    """`toy.recovery_error` for random teachers 0 to `draws` - 1: `error` (draws,)."""

    m: int
    n: int
    draws: int
    noise: float = 0.0
    tau: float | None = None

    version: ClassVar[int] = 1

    def __post_init__(self):
        floats(self, "noise", "tau")

    def compute(self):
        return {"error": np.array([toy.recovery_error(self.m, self.n, noise=self.noise, tau=self.tau, seed=s) for s in range(self.draws)])}


@dataclass(frozen=True)
class Bend(Measure):
    """`toy.bend` for these settings: `agreement` (students, counts, seeds, triplets) and `logit` (4, 129, 181)."""

    counts: tuple[int, ...]
    seeds: int
    width: int
    steps: int
    tau: float
    triplets: int
    resolution: int
    shown: int

    version: ClassVar[int] = 1

    def __post_init__(self):
        floats(self, "tau")

    def describe(self):  # it trains, as a run does, and probes
        return super().describe() | {"torch": torch.__version__.partition("+")[0], "boundary": boundary.version}

    def compute(self):
        return toy.bend(**self._fields())


def _latest(images: Attack | Noise, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    if images.shared not in _made:
        _made.clear()
        _made[images.shared] = make()
    return _made[images.shared]


def _pictures(images: Attack | Noise, attack: Attack, net: torch.nn.Module) -> Arrays:
    x, y = (part[: attack.items] for part in attack.data.test(attack.domain, "cpu"))
    index = _pictured(y, attack.images, attack.classes)
    perturbed = images.draw("cpu", net)[index] if len(index) else x[index]
    return {"eps": np.array(attack.size(net)), "index": index.to(torch.int32).numpy(), "clean": _pixels(x[index]), "perturbed": _pixels(perturbed)}


def _pictured(labels: torch.Tensor, first: int, classes: tuple[int, ...] | None) -> torch.Tensor:
    """Which of the first so many items are of these classes (None: of any)."""
    labels = labels[:first]
    return torch.arange(len(labels)) if classes is None else torch.isin(labels, torch.tensor(classes, dtype=labels.dtype)).nonzero()[:, 0]


def _small(classes: torch.Tensor) -> np.ndarray:
    return classes.to(torch.uint8 if 0 <= classes.min() and classes.max() < 256 else torch.int16).cpu().numpy()


def _pixels(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().numpy()
