"""A distillation step of `kdlib.train` against a bare loop that does only the unavoidable work on the same batches."""

import time

import torch
import torch.nn.functional as F
from loky import ProcessPoolExecutor
from torch import nn

from bench.timing import Pair, ratio, side_by_side
from kdlib.data.digits import DigitDomains
from kdlib.distill import KL, Alone, Hint
from kdlib.models import Model
from kdlib.study import WORKER
from kdlib.train import Adadelta, Run, fit, repeatable

TITLE = "A distillation step"
SAYS = """Ours is `kdlib.train.fit`: batches drawn and coloured, teacher, student, loss, backward pass, optimizer, a finite loss
checked. The bare loop has its batches ready and does the teacher's and the student's forward pass, the same loss, the
backward pass and the same optimizer. The paper's MNIST network at 28 pixels for both, in a process like those in which
`kdlib.study` trains: one thread, and memory that is freed is kept. Target: a ratio of at most 1.05."""
HEADER = ("objective", "dtype", "batch", "ours / bare")

NET = Model("mnistnet", {"size": 28})
WARM = 2  # steps


class Clocked:
    """Training data that note when each batch is asked for."""

    def __init__(self, data):
        self.data, self.clock = data, []
        self.n, self.views, self.fixed = data.n, data.views, data.fixed

    def train(self, domains, device):
        return self

    def draw(self, generator):
        return self.data.draw(generator)

    def batch(self, idx, parameters):
        self.clock.append(time.perf_counter())
        return self.data.batch(idx, parameters)


def digits(n: int) -> Clocked:
    """Random ones, in colours."""
    random = torch.Generator().manual_seed(0)
    grey, labels = torch.randint(256, (n, 1, 28, 28), generator=random, dtype=torch.uint8), torch.randint(10, (n,), generator=random)
    return Clocked(DigitDomains(("color",), grey, grey, labels))


def ours(objective, dtype: str, batch: int, steps: int) -> float:
    data = digits(batch * (steps + WARM + 1))
    common = dict(data=data, domains=("color",), model=NET, schedule=Adadelta(1, batch), seed="bench", dtype=dtype)
    fit(Run(objective=objective, teacher=Run(objective=Alone(), **common), **common), NET.build())
    return (data.clock[-1] - data.clock[-1 - steps]) / steps


def bare(objective, dtype: str, batch: int, steps: int) -> float:
    data = digits(batch * (steps + WARM))
    colours = data.draw(torch.Generator().manual_seed(0))
    batches = [data.batch(idx, colours) for idx in torch.arange(data.n).split(batch)]
    student, teacher = (NET.build().to(memory_format=torch.channels_last) for _ in range(2))
    teacher.eval().requires_grad_(False)
    cut = 1 + [name for name, _ in student.named_children()].index("conv2")
    (start, rest), (t_start, t_rest) = ((nn.Sequential(*layers[:cut]), nn.Sequential(*layers[cut:]))
                                        for layers in (list(net.children()) for net in (student, teacher)))
    optimizer, autocast = torch.optim.Adadelta(student.parameters(), lr=1.0), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with repeatable("cpu"):
        for i, (x, y) in enumerate(batches):
            if i == WARM:
                started = time.perf_counter()
            with autocast:
                with torch.no_grad():
                    t_features = t_start(x)
                    t_logits = t_rest(t_features)
                features = start(x)
                logits = rest(features)
            if isinstance(objective, Hint):
                loss = objective.beta * F.mse_loss(features.float(), t_features.float())
            else:
                loss = objective.alpha * objective.tau**2 * F.kl_div(
                    F.log_softmax(logits.float() / objective.tau, 1), F.log_softmax(t_logits.float() / objective.tau, 1),
                    reduction="batchmean", log_target=True)
            loss = loss + objective.gamma * F.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / steps


def both(objective, dtype: str, batch: int, steps: int, rounds: int) -> Pair:
    return side_by_side(lambda: ours(objective, dtype, batch, steps), lambda: bare(objective, dtype, batch, steps), rounds)


def rows(quick: bool):
    for objective in KL(0.1, 0.9, 8.0), Hint(1.0, 2.0, "conv2", "conv2"):
        for dtype in "float32", "bfloat16":
            for batch in (8,) if quick else (64, 256):
                settings = objective, dtype, batch, 2 if quick else 1024 // batch + 4
                with ProcessPoolExecutor(1, env=WORKER) as pool:
                    pair = pool.submit(both, *settings, 1 if quick else 5).result()
                yield type(objective).__name__, dtype, str(batch), ratio(pair.ratios)
