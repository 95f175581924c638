"""Measurements: probes put to runs on data. Each is a value, like a run, and its arrays are what the store keeps.

Subclasses of `Measure` are frozen dataclasses with `runs` and `compute`. What several networks are asked about (the test
items, the planes) is a measurement without runs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from kdlib.models import features
from kdlib.probes import accuracy, boundary, divergence
from kdlib.store import Arrays, describe, key
from kdlib.train import Run


class Measure:
    """`compute` gets the networks of `runs`, in their order, and returns the arrays to keep."""

    runs: tuple[Run, ...] = ()

    @cached_property
    def key(self) -> str:
        return key(describe(self))

    def compute(self, *nets: torch.nn.Module) -> Arrays:
        raise NotImplementedError


@dataclass(frozen=True)
class Items(Measure):
    """A test domain itself: `label` (n,) of all items, and `image` (k, 3, size, size) uint8 of the first `images`."""

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

    @property
    def runs(self):
        return (self.run,)

    def describe(self) -> dict:
        return {"type": "Predictions", "version": accuracy.version, "run": self.run.key, "data": describe(self.data),
                "domain": self.domain}

    def compute(self, net):
        x, _ = self.data.test(self.domain, self.run.device)
        return {"prediction": _small(accuracy.predict(net, x))}


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

    @property
    def runs(self):
        return (self.run,)

    def describe(self) -> dict:
        return {"type": "Features", "version": self.version, "run": self.run.key, "data": describe(self.data), "domain": self.domain,
                "layer": self.layer, "items": self.items}

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

    @property
    def runs(self):
        return self.run, self.teacher

    def describe(self) -> dict:
        return {"type": "Divergence", "version": divergence.version, "run": self.run.key, "teacher": self.teacher.key,
                "data": describe(self.data), "domain": self.domain, "items": self.items}

    def compute(self, student, teacher):
        x = self.data.test(self.domain, self.run.device)[0][: self.items]
        return {"nats": divergence.kl(student, teacher, x).half().cpu().numpy()}


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

    @property
    def runs(self):
        return (self.run,)

    def describe(self) -> dict:
        planes = {name: value for name, value in describe(self.planes).items() if name != "images"}
        return {"type": "Regions", "version": boundary.version, "run": self.run.key, "planes": planes}

    def compute(self, net):
        p, (_, x) = self.planes, self.planes.draw(self.run.device)
        return {"region": _small(torch.stack([
            boundary.regions(net, three, margin=p.margin, resolution=p.resolution, clip=p.clip) for three in x]))}


def _small(classes: torch.Tensor) -> np.ndarray:
    return classes.to(torch.uint8 if classes.max() < 256 else torch.int16).cpu().numpy()


def _pixels(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().numpy()
