"""The losses beside torchdistill's (`pip install kdlib[bench]`): the same values, in what time?"""

from importlib.metadata import version

import torch
from torch import nn

from bench.contrast import BATCH, TAU, problem
from bench.timing import ratio, side_by_side, timed
from kdlib import losses
from kdlib.distill import CRD

TITLE = "Beside torchdistill's losses"
SAYS = """Loss and gradient on the same tensors, float32, one thread, against torchdistill {torchdistill}. KL: `KDLoss`, 1,000 classes.
Hint: its wrapper around PyTorch's mean squared error, maps of 256 x 14 x 14. CRD: both directions with the update of both
banks; torchdistill draws N rows for each image (its own drawing raises an AttributeError, so the rows are drawn as its data
sets do), ours is exact or draws in each step. The values of CRD are compared on the same drawn rows, where torchdistill adds 1e-7 inside its
logarithms; drawn rows include the image's own class, which ours leaves out otherwise."""
HEADER = ("loss", "batch", "ours / torchdistill", "relative difference of values")
NEEDS = ("torchdistill",)


def gradient(loss, *inputs):
    def work():
        for x in inputs:
            x.grad = None
        value = loss()
        value.sum().backward()
        return value.detach().sum()
    return work


def kl(batch: int):
    from torchdistill.losses.mid_level import KDLoss

    student, teacher, labels = torch.randn(batch, 1000, requires_grad=True), torch.randn(batch, 1000), torch.randint(1000, (batch,))
    theirs = KDLoss("net", "output", "net", "output", temperature=4.0, alpha=0.1, beta=0.9)
    return (gradient(lambda: 0.1 * losses.cross_entropy(student, labels) + 0.9 * losses.kl(student, teacher, tau=4.0), student),
            gradient(lambda: theirs({"net": {"output": student}}, {"net": {"output": teacher}}, labels), student))


def hint(batch: int):
    from torchdistill.losses.mid_level import SimpleLossWrapper

    student, teacher = torch.randn(batch, 256, 14, 14, requires_grad=True), torch.randn(batch, 256, 14, 14)
    side = {"module_path": "hint", "io": "output"}
    theirs = SimpleLossWrapper(nn.MSELoss(), input={"is_from_teacher": False, **side}, target={"is_from_teacher": True, **side})
    return (gradient(lambda: losses.hint(student, teacher), student),
            gradient(lambda: theirs({"hint": {"output": student}}, {"hint": {"output": teacher}}, None), student))


def crd(m: int, n: int, form: str):
    """(ours, theirs, relative difference of the values on the same drawn rows)."""
    from torchdistill.losses.mid_level import CRDLoss

    student, teacher, bank, labels = problem(m)
    teacher.requires_grad_()
    ours = CRD(gamma=0.0, beta=1.0, tau=TAU, n=n, student_layer="-", teacher_layer="-", form=form).build((128,), (128,))
    ours.heads = nn.ModuleList([nn.Identity(), nn.Identity()])
    ours.fill(bank, bank, labels)
    theirs = CRDLoss("norm", "empty", "norm", 128, m, n, m, temperature=TAU)
    theirs.memory_v1, theirs.memory_v2 = (b.clone() for b in ours.banks)
    theirs.params[2:4] = torch.tensor([ours.z[1], ours.z[0]])  # z of the scores of the student, and of the teacher
    idx, logits = torch.arange(BATCH), torch.zeros(BATCH, 10)

    def their_loss():
        rows = torch.randint(m, (BATCH, n + 1))
        rows[:, 0] = idx
        return theirs({"norm": {"output": student}, "empty": {"input": {"pos_idx": idx, "contrast_idx": rows}}},
                      {"norm": {"output": teacher}})

    torch.manual_seed(1)
    before = [b.clone() for b in ours.banks]
    value = their_loss().item()
    torch.manual_seed(1)
    rows = torch.randint(m, (BATCH, n + 1))[:, 1:]
    same = sum(losses.crd_sampled(a, bank[idx], bank[rows], tau=TAU, m=m, z=z).item()
               for a, bank, z in ((student, before[1], ours.z[1]), (teacher, before[0], ours.z[0])))
    return (gradient(lambda: ours(logits, labels[:BATCH], student, teacher, idx), student, teacher),
            gradient(their_loss, student, teacher), abs(same - value) / abs(value))


def rows(quick: bool):
    rounds, m = (1, 500) if quick else (15, 50_000)
    for name, make, batches in ("KL", kl, (64, 256)), ("Hint", hint, (64,)):
        for batch in (4,) if quick else batches:
            ours, theirs = make(batch)
            pair = side_by_side(timed(ours, 1 if quick else 20), timed(theirs, 1 if quick else 20), rounds)
            yield name, str(batch), ratio(pair.ratios), f"{abs(ours() / theirs() - 1):.1g}"
    for n in (8,) if quick else (32, 16_384):
        for form in "exact", "sampled":
            ours, theirs, difference = crd(m, n, form)
            pair = side_by_side(timed(ours), timed(theirs), rounds)
            yield f"CRD, {form}, N = {n:,} of {m:,}", str(BATCH), ratio(pair.ratios), f"{difference:.1g}"


def facts() -> dict[str, str]:
    import torchdistill  # noticed to be absent before anything is timed

    return {"torchdistill": version("torchdistill")}
