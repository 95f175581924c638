"""Distillation losses as pure functions of tensors (Ojha et al., 2023, Sec. 3).

Symbols are the paper's: gamma weighs the cross entropy, alpha KL, beta Hint; tau is a temperature.
Every loss is a scalar, averaged over the batch, computed in float32 or better. The teacher gets no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(student_logits: Tensor, teacher_logits: Tensor, *, tau: float, form: str = "divergence") -> Tensor:
    """Match the teacher's softened class probabilities (Eq. 1; Hinton et al., 2014).

    With p = softmax(teacher_logits / tau) and q = softmax(student_logits / tau), both (batch, classes):

        divergence:     tau^2 * mean_batch sum_classes p (log p - log q)     zero where p = q
        cross entropy:  tau^2 * mean_batch sum_classes -p log q              Eq. 1 as printed

    The two differ by the teacher's entropy, so their gradients in the student are equal. In nats.
    """
    _same_shape("kl", student_logits, teacher_logits, dims=2)
    if not tau > 0:
        raise ValueError(f"kl: tau must be positive, got {tau}")
    log_q = F.log_softmax(_wide(student_logits) / tau, dim=1)
    log_p = F.log_softmax(_wide(teacher_logits).detach() / tau, dim=1)
    if form == "divergence":
        return tau**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    if form == "cross entropy":
        return -(tau**2) * (log_p.exp() * log_q).sum(1).mean()
    raise ValueError(f"kl: form is 'divergence' or 'cross entropy', not {form!r}")


def hint(student_features: Tensor, teacher_features: Tensor, *, form: str = "mean") -> Tensor:
    """Match the teacher's features at one layer (Eq. 2; Romero et al., 2015), both (batch, ...).

        mean:     mean over batch and features of (f_t - r(f_s))^2     the form that published betas belong to
        printed:  mean_batch 1/2 ||f_t - r(f_s)||^2                    Eq. 2; (features / 2) times the other

    `student_features` are r(f_s), already mapped to the teacher's shape (see `kdlib.distill.Regressor`).
    """
    _same_shape("hint", student_features, teacher_features)
    squares = (_wide(teacher_features).detach() - _wide(student_features)).square()
    if form == "mean":
        return squares.mean()
    if form == "printed":
        return squares.flatten(1).sum(1).mean() / 2
    raise ValueError(f"hint: form is 'mean' or 'printed', not {form!r}")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Classification loss L_CLS (Sec. 3): logits (batch, classes), labels (batch,) integers. In nats."""
    return F.cross_entropy(_wide(logits), labels)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_shape(name: str, student: Tensor, teacher: Tensor, dims: int | None = None) -> None:
    if student.shape != teacher.shape or (dims and student.ndim != dims):
        raise ValueError(f"{name}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape"
                         + (f" of {dims} dimensions" if dims else ""))
