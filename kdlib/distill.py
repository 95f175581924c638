"""Objectives: what a student is asked to do beside classifying (paper, Sec. 3).

An objective is a value (part of a run's key). `build` gives the module that holds what it trains beside the student;
called with what the student computed and what the teacher computed, it returns the loss.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlib import losses


class Regressor(nn.Module):
    """r of Eq. 2: brings two feature maps together. Returns (r(f_s), f_t), of one shape.

    Maps of different size are average-pooled to the smaller of the two; then a 1x1 convolution (a linear layer for
    vectors) gives the student the teacher's channels. No ReLU, so that pre-activation features can be matched. The
    identity where shapes agree. In float32, whatever the networks compute in. `student` and `teacher` are shapes
    without the batch: (channels, height, width) or (channels,).
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]):
        super().__init__()
        if len(student) != len(teacher) or len(student) not in (1, 3):
            raise ValueError(f"hint: cannot map student features {tuple(student)} to teacher features {tuple(teacher)}")
        self.grid = tuple(map(min, student[1:], teacher[1:])) if student[1:] != teacher[1:] else None
        layer = nn.Linear if len(student) == 1 else lambda i, o: nn.Conv2d(i, o, 1)
        self.map = nn.Identity() if student == teacher else layer(student[0], teacher[0])

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        student, teacher = student.float(), teacher.float()
        if self.grid:
            student, teacher = (F.adaptive_avg_pool2d(f, self.grid) for f in (student, teacher))
        return self.map(student), teacher


@dataclass(frozen=True)
class Alone:
    """Cross entropy only: how teachers and independent students are trained."""

    version: ClassVar[int] = 1
    student_layer: ClassVar[None] = None
    teacher_layer: ClassVar[None] = None

    def build(self, student_shape, teacher_shape) -> nn.Module:
        return _Loss(lambda logits, labels, features, target: losses.cross_entropy(logits, labels))


@dataclass(frozen=True)
class KL:
    """gamma * cross entropy + alpha * L_KL at temperature tau (Eq. 1)."""

    gamma: float
    alpha: float
    tau: float

    version: ClassVar[int] = 1
    student_layer: ClassVar[None] = None
    teacher_layer: ClassVar[str] = "logits"

    def build(self, student_shape, teacher_shape) -> nn.Module:
        return _Loss(lambda logits, labels, features, target:
                     self.gamma * losses.cross_entropy(logits, labels)
                     + self.alpha * losses.kl(logits, target, tau=self.tau))


@dataclass(frozen=True)
class Hint:
    """gamma * cross entropy + beta * L_Hint between one layer of each network (Eq. 2)."""

    gamma: float
    beta: float
    student_layer: str
    teacher_layer: str
    form: str = "mean"

    version: ClassVar[int] = 1

    def build(self, student_shape, teacher_shape) -> nn.Module:
        loss = _Loss(lambda logits, labels, features, target:
                     self.gamma * losses.cross_entropy(logits, labels)
                     + self.beta * losses.hint(*loss.regressor(features, target), form=self.form))
        loss.regressor = Regressor(student_shape, teacher_shape)
        return loss


class _Loss(nn.Module):
    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, logits, labels, features, target) -> Tensor:
        return self.formula(logits, labels, features, target)
