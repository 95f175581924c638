"""CRD: exact over the whole bank against the gathering of drawn negatives."""

import torch
import torch.nn.functional as F

from bench.timing import ratio, side_by_side, timed
from kdlib import losses

TITLE = "CRD: the whole bank against drawn negatives"
SAYS = """One direction of the loss and its gradient, D = 128, 64 images, tau 0.07, float32, one thread. Exact is `kdlib.losses.crd`
over the whole bank, with the mask of other classes. Drawn is `kdlib.losses.crd_sampled` on N rows of the bank for each
image, drawn and gathered anew in each step, as RepDistiller and those that follow it do. The exact loss is what the drawn
one is on average. Target: exact at least 10 times cheaper at N = 16,384; at N = 32 drawing wins."""
HEADER = ("bank", "N", "drawn / exact", "loss, exact", "loss, drawn")
TAU, BATCH = 0.07, 64


def problem(m: int):
    """Random unit features: student and teacher (64, 128), a bank (m, 128) and labels of ten classes."""
    random = torch.Generator().manual_seed(0)
    student, bank = (F.normalize(torch.randn(n, 128, generator=random), dim=1) for n in (BATCH, m))
    teacher = F.normalize(student + 0.05 * torch.randn(BATCH, 128, generator=random), dim=1)
    return student.requires_grad_(), teacher, bank, torch.randint(10, (m,), generator=random)


def exact(m: int, n: int):
    student, teacher, bank, labels = problem(m)
    z = losses.crd_normalizer(student.detach(), bank, tau=TAU)

    def work():
        student.grad = None
        loss = losses.crd(student, teacher, bank, labels[:BATCH, None] != labels, tau=TAU, n=n, z=z)
        loss.backward()
        return loss.item()
    return work


def drawn(m: int, n: int):
    student, teacher, bank, _ = problem(m)
    z = losses.crd_normalizer(student.detach(), bank, tau=TAU)

    def work():
        student.grad = None
        rows = torch.randint(m, (BATCH * n,))
        loss = losses.crd_sampled(student, teacher, bank.index_select(0, rows).view(BATCH, n, 128), tau=TAU, m=m, z=z)
        loss.backward()
        return loss.item()
    return work


def rows(quick: bool):
    m = 500 if quick else 50_000
    for n in (32, 64) if quick else (32, 16_384):
        one, other = exact(m, n), drawn(m, n)
        pair = side_by_side(timed(one), timed(other), 1 if quick else 15)
        yield (f"{m:,}", f"{n:,}", ratio([1 / r for r in pair.ratios]), f"{one():.4g}", f"{other():.4g}")
