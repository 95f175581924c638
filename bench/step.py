"""A distillation step of `kdlib.train` against a bare loop that does only the unavoidable work on the same batches."""

import math
import time
from unittest.mock import patch

import torch
import torch.nn.functional as F
from loky import ProcessPoolExecutor
from torch import nn

from bench.timing import Pair, ratio, side_by_side
from kdlib import losses
from kdlib.data.digits import DigitDomains
from kdlib.distill import CRD, KL, Alone, Hint
from kdlib.models import Model
from kdlib.study import WORKER
from kdlib.train import Adadelta, Run, fit, repeatable

TITLE = "A distillation step"
SAYS = """Ours is `kdlib.train.fit`: batches drawn and coloured, teacher, student, loss, backward pass, optimizer.
The bare loop has its batches ready and does the teacher's and the student's forward pass, the same loss, the
backward pass and the same optimizer. CRD meets banks of 60,000 items of ten classes, N = 32; its bare loop multiplies with
the whole bank (exact) or draws rows from all of it and gathers them (sampled), in both directions, and moves the banks.
Filling them, once a training, is in neither. The paper's MNIST network at 28 pixels for both, in a process like those in which
`kdlib.study` trains: one thread, and memory that is freed is kept. Target: a ratio of at most 1.05."""
HEADER = ("device", "objective", "dtype", "batch", "ours / bare")

NET = Model("mnistnet", {"size": 28})
WARM, STEPS = 2, 12  # not timed and timed, in each round


class Enough(Exception):
    """All steps that are timed have begun."""


class Clocked:
    """Training data that note when batches are asked for, and end the training once there were `steps` of them."""

    def __init__(self, data, batch: int, steps: int):
        self.data, self.clock, self.size, self.steps = data, [], batch, steps
        self.n, self.views, self.fixed = data.n, data.views, data.fixed

    def train(self, domains, device):
        return self

    def draw(self, generator):
        return self.data.draw(generator)

    def batch(self, idx, parameters):
        if len(idx) == self.size:
            timed = len(self.clock) in (WARM, self.steps)  # between the two a GPU is not waited for
            self.clock.append(now(idx.device) if timed else None)
            if len(self.clock) > self.steps:
                raise Enough
        return self.data.batch(idx, parameters)


def now(device: torch.device) -> float:
    """The time at which all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def digits(n: int, device: str) -> DigitDomains:
    """Random ones, in colours."""
    random = torch.Generator().manual_seed(0)
    grey, labels = torch.randint(256, (n, 1, 28, 28), generator=random, dtype=torch.uint8), torch.randint(10, (n,), generator=random)
    return DigitDomains(("color",), grey.to(device), grey.to(device), labels.to(device))


def of_training(run: Run, data: Clocked, teacher: nn.Module) -> float:
    """Seconds that a step of `fit` takes."""
    try:
        fit(run, teacher)
    except Enough:
        return (data.clock[-1] - data.clock[WARM]) / (data.steps - WARM)
    raise AssertionError("the training ended before its steps were timed")


def ours(objective, device: str, dtype: str, batch: int, steps: int, items: int) -> float:
    data = Clocked(digits(items, device), batch, steps + WARM)
    common = dict(data=data, domains=("color",), model=NET, schedule=Adadelta(1, batch), seed="bench", device=device, dtype=dtype)
    filled = torch.rand(items, 128, device=device)
    with patch("kdlib.train._everything", lambda *_: (filled, filled, data.data.labels)):
        return of_training(Run(objective=objective, teacher=Run(objective=Alone(), **common), **common), data, NET.build())


def bare(objective, device: str, dtype: str, batch: int, steps: int, items: int) -> float:
    data = digits(items, device)
    colours = data.draw(torch.Generator().manual_seed(0))
    places = torch.randperm(items)[: batch * (steps + WARM)].to(device).split(batch)
    batches = [data.batch(idx, colours) for idx in places]
    student, teacher = (NET.build().to(device, memory_format=torch.channels_last) for _ in range(2))
    teacher.eval().requires_grad_(False)
    names = [name for name, _ in student.named_children()]
    cut = 1 + names.index(getattr(objective, "student_layer", None) or "conv2")
    (start, rest), (t_start, t_rest) = ((nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:]))
                                        for layers in (list(net.children()) for net in (student, teacher)))
    contrast = Contrast(objective, data.labels) if isinstance(objective, CRD) else None
    trained = [*student.parameters(), *(contrast.heads.parameters() if contrast else ())]
    optimizer, autocast = torch.optim.Adadelta(trained, lr=1.0), torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")
    with repeatable(device):
        for i, (x, y) in enumerate(batches):
            if i == WARM:
                started = now(x.device)
            with autocast:
                with torch.no_grad():
                    t_features = t_start(x)
                    t_logits = t_rest(t_features)
                features = start(x)
                logits = rest(features)
            if isinstance(objective, Hint):
                loss = objective.beta * F.mse_loss(features.float(), t_features.float())
            elif isinstance(objective, KL):
                loss = objective.alpha * objective.tau**2 * F.kl_div(
                    F.log_softmax(logits.float() / objective.tau, 1), F.log_softmax(t_logits.float() / objective.tau, 1),
                    reduction="batchmean", log_target=True)
            else:
                loss = objective.beta * contrast.loss(features.float(), t_features.float(), y, places[i])
            loss = loss + objective.gamma * F.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if contrast:
                contrast.move(places[i])
        return (now(x.device) - started) / steps


class Contrast:
    """Eq. 3 in both directions, in as few operations as it takes."""

    def __init__(self, objective: CRD, labels: torch.Tensor):
        self.objective, self.labels, device = objective, labels, labels.device
        self.heads = nn.ModuleList([nn.Linear(128, objective.dim) for _ in range(2)]).to(device)
        filled = torch.rand(len(labels), 128, device=device)
        with torch.no_grad():
            self.banks = [F.normalize(head(filled), dim=1) for head in self.heads]
        z = losses.crd_normalizer(self.banks[0][:1000], self.banks[1], tau=objective.tau)
        self.offset = math.log(objective.n / len(labels)) + math.log(z)
        self.minus = torch.full((1, 1), -self.offset, device=device)
        self.negatives = len(labels) - labels.bincount()

    def loss(self, student, teacher, labels, idx):
        o = self.objective
        self.seen = [F.normalize(head(f), dim=1) for head, f in zip(self.heads, (student, teacher))]
        if exact := o.form == "exact":
            weight = (labels[:, None] != self.labels) * (o.n / self.negatives[labels])[:, None]
        else:
            drawn = torch.randint(len(self.labels), (len(labels), o.n), device=labels.device)
        total = 0.0
        for a, bank in zip(self.seen, reversed(self.banks)):
            scaled = a / o.tau
            u = torch.addmm(self.minus, scaled, bank.T) if exact else (bank[drawn] @ scaled[:, :, None]).squeeze(2) - self.offset
            others = F.softplus(u)
            total = total + (F.softplus(self.offset - (a * bank[idx]).sum(1) / o.tau) + (others * weight if exact else others).sum(1)).mean()
        return total

    @torch.no_grad()
    def move(self, idx):
        for bank, feature in zip(self.banks, self.seen):
            bank[idx] = F.normalize(0.5 * bank[idx] + 0.5 * feature, dim=1)


def both(*settings, rounds: int) -> Pair:
    return side_by_side(lambda: ours(*settings), lambda: bare(*settings), rounds)


def rows(quick: bool):
    objectives = {"KL": KL(0.1, 0.9, 8.0), "Hint": Hint(1.0, 2.0, "conv2", "conv2"),
                  **{f"CRD, {form}": CRD(1.0, 0.1, 0.1, 32, "relu3", "relu3", form=form) for form in ("exact", "sampled")}}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name, objective in objectives.items():
            for dtype in "float32", "bfloat16":
                for batch in (8,) if quick else (64, 256):
                    steps = 2 if quick else STEPS
                    items = batch * (steps + WARM + 1) if quick or not isinstance(objective, CRD) else 60_000
                    with ProcessPoolExecutor(1, env=WORKER) as pool:
                        pair = pool.submit(both, objective, device, dtype, batch, steps, items, rounds=1 if quick else 8).result()
                    yield device, name, dtype, str(batch), ratio(pair.ratios)
