"""Distillation losses as pure functions of tensors (Ojha et al., 2023, Sec. 3).

Symbols are the paper's: gamma weighs the cross entropy, alpha KL, beta Hint and CRD; tau is a temperature.
Every loss is a scalar, averaged over the batch, computed in float32 or better, inside `torch.autocast` too. KL and Hint give the teacher no gradient.
"""

import math
from contextlib import nullcontext

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
    if not 0 < tau < math.inf:
        raise ValueError(f"kl: tau must be positive and finite, got {tau}")
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
    dtype = torch.promote_types(student_features.dtype, teacher_features.dtype)
    student, teacher = _wide(student_features.to(dtype)), _wide(teacher_features.detach().to(dtype))
    if form == "mean":
        return F.mse_loss(student, teacher, reduction="sum") / student.numel()  # one pass over the maps each way
    if form == "printed":
        return (teacher - student).square().flatten(1).sum(1).mean() / 2
    raise ValueError(f"hint: form is 'mean' or 'printed', not {form!r}")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Classification loss L_CLS (Sec. 3): logits (batch, classes), labels (batch,) integers. In nats."""
    return F.cross_entropy(_wide(logits), labels)


def crd(student: Tensor, teacher: Tensor, bank: Tensor, negative: Tensor, *, tau: float, n: float, z: float, count: Tensor | None = None) -> Tensor:
    """Contrastive representation distillation (Eq. 3; Tian et al., 2020), one direction, exactly over a whole bank.

        h(a, b) = (e^(a.b/tau) / z) / (e^(a.b/tau) / z + N/M)
        loss    = mean_batch [ -log h(s, t) - N / |negatives| * sum over negatives y of log(1 - h(s, t(y))) ]

    which is the expectation of Eq. 3 over N negatives drawn uniformly from the items of other classes.

    student, teacher   (batch, D), rows of one image each, of unit length
    bank               (M, D), a feature of every training item, of unit length
    negative           (batch, M), which items are of another class than the row's image: booleans, or 1.0 and 0.0
    tau                temperature; n is N; z normalises, so that e^(a.b/tau) / z has mean 1/M (see `crd_normalizer`).
                       Eq. 3 as printed lacks it: z = 1.
    count              (batch,), how many negatives each row has, where that is known: it spares a pass over `negative`

    A row without negatives is a ValueError: so is a shape that does not fit.
    """
    if bank.ndim != 2 or negative.shape != (len(student), len(bank)):
        raise ValueError(f"crd: bank is (M, D) and negative (batch, M), got {tuple(bank.shape)} and {tuple(negative.shape)} for a batch of {len(student)}")
    mask = negative.to(torch.promote_types(student.dtype, torch.float32))  # once: a mixed product would convert it in every pass
    count = mask.sum(1) if count is None else count.to(mask.dtype)
    if count.shape != student.shape[:1]:
        raise ValueError(f"crd: count is (batch,), got {tuple(count.shape)} for a batch of {len(student)}")
    if not count.all():
        raise ValueError(f"crd: {int((count == 0).sum())} of {len(count)} rows have no negative; are there two classes?")
    positive, others = _crd_terms("crd", student, teacher, bank, tau=tau, z=z, share=n / len(bank))
    return (positive + n / count * others.mul_(mask).sum(1)).mean()


def crd_sampled(student: Tensor, teacher: Tensor, negatives: Tensor, *, tau: float, m: int, z: float) -> Tensor:
    """The same with N drawn negatives per image, (batch, N, D), as in Eq. 3; `m` is M, the number of training items."""
    if negatives.ndim != 3:
        raise ValueError(f"crd_sampled: negatives are (batch, N, D), not {tuple(negatives.shape)}")
    positive, others = _crd_terms("crd_sampled", student, teacher, negatives, tau=tau, z=z, share=negatives.shape[1] / m)
    return (positive + others.sum(1)).mean()


def crd_normalizer(features: Tensor, bank: Tensor, *, tau: float) -> float:
    """z of `crd`: M times the mean of e^(a.b/tau) over rows a of `features` (n, D) and b of `bank` (M, D), unit rows.

    For a random isotropic bank and large D tau^2 it is near M e^(1 / (2 D tau^2)); a bank of real features has another one.
    ValueError where tau is not positive, or so small that z is no float64: below about 1/700 times the largest cosine.
    """
    if not 0 < tau < math.inf:
        raise ValueError(f"crd_normalizer: tau must be positive and finite, got {tau}")
    with exactly(features):
        parts = [torch.logsumexp((_wide(rows) @ _wide(bank).T / tau).flatten().double(), 0) for rows in features.split(100)]
    log_z = torch.logsumexp(torch.stack(parts), 0).item() - math.log(len(features))
    if not log_z < 709:
        raise ValueError(f"crd_normalizer: z would be e^{log_z:.0f}, which no float64 holds; raise tau, which is {tau}")
    return math.exp(log_z)


def exactly(x: Tensor):
    """A context in which autocast does not round what is computed from x."""
    return torch.autocast(x.device.type, enabled=False) if torch.is_autocast_enabled(x.device.type) else nullcontext()


def _crd_terms(name: str, student: Tensor, teacher: Tensor, others: Tensor, *, tau: float, z: float, share: float) -> tuple[Tensor, Tensor]:
    """-log h of each positive (batch,) and -log(1 - h) of each other (batch, count), as softplus: never e^(1/tau) itself.

    With u = a.b/tau, c = log(z N/M) and `share` N/M: -log h = softplus(c - u) and -log(1 - h) = softplus(u - c).
    """
    _same_shape(name, student, teacher, dims=2)
    if not 0 < tau < math.inf:
        raise ValueError(f"{name}: tau must be positive and finite, got {tau}")
    if not (0 < z < math.inf and 0 < share < math.inf):
        raise ValueError(f"{name}: z and the number of negatives must be positive and finite, got z = {z} and N/M = {share}")
    if others.ndim not in (2, 3) or others.shape[-1] != student.shape[1] or others.ndim == 3 and len(others) != len(student):
        raise ValueError(f"{name}: {tuple(others.shape)} does not go with features {tuple(student.shape)}")
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), others.dtype)
    s, t, o = (_wide(x.to(dtype)) for x in (student, teacher, others))
    offset = math.log(share) + math.log(z)
    with exactly(s):
        negatives = s @ o.T if o.ndim == 2 else (o @ s[:, :, None]).squeeze(2)
    return F.softplus(offset - (s * t).sum(1) / tau), F.softplus(negatives.div_(tau).sub_(offset))  # in place: they may be M for each row


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_shape(name: str, student: Tensor, teacher: Tensor, dims: int | None = None) -> None:
    if student.shape != teacher.shape or (dims and student.ndim != dims):
        raise ValueError(f"{name}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape"
                         + (f" of {dims} dimensions" if dims else ""))
