"""Measurements: probes put to runs on data. Each is a value, like a run, and its arrays are what the store keeps.

What several networks are asked about (the test items, the planes) is a measurement without runs.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from kdlib.models import features
from kdlib.probes import accuracy, boundary, divergence
from kdlib.store import Arrays, describe, key
from kdlib.train import Run


class Measure:
    """Subclasses are frozen dataclasses with a `version`. Their fields that are runs are `runs`, in their order, whose
    networks `compute` gets; it returns the arrays to keep."""

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(value for value in self._fields().values() if isinstance(value, Run))

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


def _small(classes: torch.Tensor) -> np.ndarray:
    return classes.to(torch.uint8 if 0 <= classes.min() and classes.max() < 256 else torch.int16).cpu().numpy()


def _pixels(x: torch.Tensor) -> np.ndarray:
    return (x * 255).round().byte().numpy()
