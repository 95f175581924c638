"""Objectives: what a student is asked to do beside classifying (paper, Sec. 3).

An objective is a value (part of a run's key). `build` gives the module that holds what it trains beside the student;
called with what the student computed, what the teacher computed and which items they are, it returns the loss.
"""

import math
import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses
from kdlib.store import floats


class Regressor(nn.Module):
    """r of Eq. 2: brings two feature maps together. Returns (r(f_s), f_t), of one shape.

    Maps of different size are average-pooled to the smaller of the two; then a 1x1 convolution (a linear layer for
    vectors) gives the student the teacher's channels. No ReLU, so that pre-activation features can be matched. The
    identity where shapes agree. In float32, whatever the networks compute in. `student` and `teacher` are shapes
    without the batch: (channels, height, width) or (channels,).
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]):
        super().__init__()
        student, teacher = tuple(student), tuple(teacher)
        if len(student) != len(teacher) or len(student) not in (1, 3):
            raise ValueError(f"hint: cannot map student features {student} to teacher features {teacher}; both are (channels, height, width) or "
                             "(channels,), and of a transformer's block the layer NAME:tokens gives a map")
        self.grid = tuple(map(min, student[1:], teacher[1:])) if student[1:] != teacher[1:] else None
        layer = nn.Linear if len(student) == 1 else lambda i, o: nn.Conv2d(i, o, 1)
        self.map = nn.Identity() if student == teacher else layer(student[0], teacher[0])

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = student.float(), teacher.float()
        if self.grid:
            student, teacher = (F.adaptive_avg_pool2d(f, self.grid) for f in (student, teacher))
        with losses.exactly(student):
            return self.map(student), teacher


@dataclass(frozen=True)
class Alone:
    """Cross entropy only: how teachers and independent students are trained."""

    version: ClassVar[int] = 1
    student_layer: ClassVar[None] = None
    teacher_layer: ClassVar[None] = None

    def build(self, student_shape, teacher_shape) -> nn.Module:
        return _Alone()


class _Alone(nn.Module):
    def forward(self, logits, labels, features, target, idx=None) -> Tensor:
        return losses.cross_entropy(logits, labels)


@dataclass(frozen=True)
class KL:
    """gamma * cross entropy + alpha * L_KL at temperature tau (Eq. 1)."""

    gamma: float
    alpha: float
    tau: float

    version: ClassVar[int] = 1
    student_layer: ClassVar[None] = None
    teacher_layer: ClassVar[str] = "logits"

    def __post_init__(self):
        floats(self, "gamma", "alpha", "tau")
        _temperature(self)

    def build(self, student_shape, teacher_shape) -> nn.Module:
        return _KL(self)


class _KL(nn.Module):
    def __init__(self, objective: KL):
        super().__init__()
        self.objective = objective

    def forward(self, logits, labels, features, target, idx=None) -> Tensor:
        o = self.objective
        return o.gamma * losses.cross_entropy(logits, labels) + o.alpha * losses.kl(logits, target, tau=o.tau)


@dataclass(frozen=True)
class Hint:
    """gamma * cross entropy + beta * L_Hint between one layer of each network (Eq. 2)."""

    gamma: float
    beta: float
    student_layer: str
    teacher_layer: str
    form: str = "mean"

    version: ClassVar[int] = 1

    def __post_init__(self):
        floats(self, "gamma", "beta")
        if self.form not in ("mean", "printed"):
            raise ValueError(f"Hint: form is mean or printed, not {self.form!r}")

    def build(self, student_shape, teacher_shape) -> nn.Module:
        return _Hint(self, student_shape, teacher_shape)


class _Hint(nn.Module):
    def __init__(self, objective: Hint, student_shape, teacher_shape):
        super().__init__()
        self.objective, self.regressor = objective, Regressor(student_shape, teacher_shape)

    def forward(self, logits, labels, features, target, idx=None) -> Tensor:
        o = self.objective
        return o.gamma * losses.cross_entropy(logits, labels) + o.beta * losses.hint(*self.regressor(features, target), form=o.form)


@dataclass(frozen=True)
class CRD:
    """gamma * cross entropy + beta * L_CRD between the penultimate features of both networks (Eq. 3; Tian et al., 2020).

    Both features go through a trained linear head to `dim` unit-length dimensions. Two banks hold such a feature of every
    training item, filled before training and then updated with `momentum` (they are no part of the module's state_dict); the student is scored against the teacher's
    bank and the teacher against the student's. `n` is N. The positive of an image is

        bank      its own entry in the other's bank, as in the authors' code
        current   the other's present feature of it, which is fresher than every negative: heads that move tell it from them by that
                  alone, without a look at the image, and the loss is low for nothing

    and the negatives are

        exact     over the whole bank, the expectation of the sampled form
        sampled   N drawn negatives for each image
        printed   exact, without the normaliser z: Eq. 3 as the paper prints it
    """

    gamma: float
    beta: float
    tau: float
    n: int
    student_layer: str
    teacher_layer: str
    dim: int = 128
    momentum: float = 0.5
    form: str = "exact"
    positive: str = "bank"

    version: ClassVar[int] = 1

    def __post_init__(self):
        floats(self, "gamma", "beta", "tau", "momentum")
        _temperature(self)
        for name in "n", "dim":
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if self.n < 1 or self.dim < 1 or not 0 <= self.momentum <= 1:
            raise ValueError(f"CRD: n and dim are 1 or more and momentum in [0, 1], not {self.n}, {self.dim} and {self.momentum:g}")
        if self.form not in ("exact", "sampled", "printed"):
            raise ValueError(f"CRD: form is exact, sampled or printed, not {self.form!r}")
        if self.positive not in ("bank", "current"):
            raise ValueError(f"CRD: positive is bank or current, not {self.positive!r}")

    def build(self, student_shape, teacher_shape) -> nn.Module:
        return _Contrast(self, math.prod(student_shape), math.prod(teacher_shape))


class _Contrast(nn.Module):
    def __init__(self, objective: CRD, student_width: int, teacher_width: int):
        super().__init__()
        self.objective = objective
        self.heads = nn.ModuleList([nn.Linear(student_width, objective.dim), nn.Linear(teacher_width, objective.dim)])
        self.draws = int(torch.randint(2**62, ()))  # of a stream of its own, so that drawing negatives shifts no dropout
        self.info, self.seen, self.labels = {}, None, torch.empty(0, dtype=torch.long)

    def embed(self, which: int, features: Tensor) -> Tensor:
        with losses.exactly(features):
            return F.normalize(self.heads[which](features.flatten(1).float()), dim=1)

    @torch.no_grad()
    def fill(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Fill both banks from the features of all M training items, in their order, and measure z on them."""
        self.banks, self.labels = [self.embed(0, student), self.embed(1, teacher)], labels
        self.generator = torch.Generator(labels.device).manual_seed(self.draws)
        anchors = slice(None, None, max(1, len(labels) // 1000))  # about 1,000 over the whole set: it may be sorted by class
        self.z = [1.0, 1.0] if self.objective.form == "printed" else [
            losses.crd_normalizer(self.banks[1 - which][anchors], self.banks[which], tau=self.objective.tau) for which in (0, 1)]
        self.info = {"crd z": {"student bank": self.z[0], "teacher bank": self.z[1], "items": len(labels)}}
        self.others, order = len(labels) - labels.bincount(), labels.argsort(stable=True)
        if not self.others[labels].all():
            raise ValueError("CRD: every training item is of one class, so there are no negatives")
        self.first = labels.bincount().cumsum(0) - labels.bincount()
        rank = torch.arange(len(labels), device=labels.device) - self.first[labels[order]]
        self.before = labels[order] * len(labels) + order - rank  # in the order of classes: how many of other classes come before an item

    def forward(self, logits, labels, features, target, idx) -> Tensor:
        """`idx` (batch,) are the items' places in what `fill` was given. In eval mode the banks stay as they are."""
        if not self.labels.numel():
            raise ValueError("CRD: its banks are empty; call fill(student features, teacher features, labels) of all training items first")
        if not torch.equal(labels, self.labels[idx]):
            raise ValueError("CRD: these labels are not those that `fill` was given for the items idx; idx are places among all training items, not in the batch")
        if self.training:
            self._update()
        objective, current = self.objective, [self.embed(0, features), self.embed(1, target)]
        drawn = self._draw(labels) if objective.form == "sampled" else None
        negative = None if objective.form == "sampled" else (labels[:, None] != self.labels).float()
        positives = [feature.detach() for feature in current] if objective.positive == "current" else [bank[idx] for bank in self.banks]
        contrast = sum(self._direction(current[which], positives[1 - which], 1 - which, labels, negative, drawn) for which in (0, 1))
        if self.training:
            self.seen = idx, [feature.detach() for feature in current]
        return objective.gamma * losses.cross_entropy(logits, labels) + objective.beta * contrast

    @torch.no_grad()
    def _update(self) -> None:
        """Move the banks towards the last step's features; only now, as that step's backward pass needed them as they were."""
        if self.seen:
            idx, features = self.seen
            for bank, feature in zip(self.banks, features):
                bank[idx] = F.normalize(self.objective.momentum * bank[idx] + (1 - self.objective.momentum) * feature, dim=1)

    def _draw(self, labels: Tensor) -> Tensor:
        """Places (batch, N) in the banks of items of other classes than each label's, each as likely, with replacement.

        On a CPU they are those that torch.multinomial draws from the mask of these items, without its passes over all M of them: of
        k = 1, 2, ... the first whose share k / others, rounded to float32, is not below a random number. On a GPU torch.multinomial
        draws others from the same generator.
        """
        others = self.others[labels, None]
        u = torch.rand(len(labels), self.objective.n, dtype=torch.float64, device=labels.device, generator=self.generator)
        k = (u * others).ceil().long()
        k += ((k.float() / others).double() < u).long() - ((k - 1).float() / others >= u).long()
        k = k.clamp(min=1) - 1  # from 0
        items = torch.searchsorted(self.before, labels[:, None] * len(self.labels) + k, right=True) - self.first[labels, None]
        return k + items  # those of its class that come before the k-th other one

    def _direction(self, anchor, positive, which, labels, negative, drawn) -> Tensor:
        bank, common = self.banks[which], dict(tau=self.objective.tau, z=self.z[which])
        if drawn is not None:
            return losses.crd_sampled(anchor, positive, bank[drawn], m=len(bank), **common)
        return losses.crd(anchor, positive, bank, negative, n=self.objective.n, count=self.others[labels], **common)


def _temperature(objective) -> None:
    if not 0 < objective.tau < math.inf:
        raise ValueError(f"{type(objective).__name__}: tau must be positive and finite, got {objective.tau:g}")
