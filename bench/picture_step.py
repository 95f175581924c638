"""A distillation step on pictures against a bare loop, as `bench.step` does it on digits."""

import time

import torch
import torch.nn.functional as F
from loky import ProcessPoolExecutor

from bench.step import WARM, Clocked, of_training
from bench.timing import Pair, ratio, side_by_side
from kdlib import models
from kdlib.data.scenes import Scenes
from kdlib.distill import KL, Alone
from kdlib.study import WORKER
from kdlib.train import OneCycle, Run, repeatable

TITLE = "A distillation step on pictures"
SAYS = """Ours is `kdlib.train.fit` on drawn scenes of 32 pixels, which it shifts and mirrors; the bare loop has these batches ready. KL from
residual-16x1 to residual-8x1, as in the default profile, in a process like those in which `kdlib.study` trains. The ratio is of times
a step, so the bare loop's images a second are that many times ours. Target: at most 1.05."""
HEADER = ("dtype", "batch", "ours / bare")

OBJECTIVE = KL(0.5, 0.5, 4.0)


def scenes(n: int):
    return Scenes(32, train_items=n, test_items=10).train(("scene",), torch.device("cpu"))


def networks():
    return (models.network(name, size=32, classes=10) for name in ("residual-8x1", "residual-16x1"))


def ours(dtype: str, batch: int, steps: int) -> float:
    data, (student, teacher) = Clocked(scenes(batch * (steps + WARM + 1)), batch, steps + WARM), networks()
    common = dict(data=data, domains=("scene",), schedule=OneCycle(1, batch), seed="bench", dtype=dtype)
    return of_training(Run(objective=OBJECTIVE, model=student, teacher=Run(objective=Alone(), model=teacher, **common), **common), data, teacher.build())


def bare(dtype: str, batch: int, steps: int) -> float:
    data = scenes(batch * (steps + WARM))
    drawn = data.draw(torch.Generator().manual_seed(0))
    batches = [data.batch(idx, drawn) for idx in torch.arange(data.n).split(batch)]
    student, teacher = (model.build().to(memory_format=torch.channels_last) for model in networks())
    teacher.eval().requires_grad_(False)
    optimizer, autocast = OneCycle(1, batch).optimizer(student.parameters()), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with repeatable("cpu"):
        for i, (x, y) in enumerate(batches):
            if i == WARM:
                started = time.perf_counter()
            with autocast:
                with torch.no_grad():
                    target = teacher(x)
                logits = student(x)
            tau = OBJECTIVE.tau
            loss = OBJECTIVE.gamma * F.cross_entropy(logits.float(), y) + OBJECTIVE.alpha * tau**2 * F.kl_div(
                F.log_softmax(logits.float() / tau, 1), F.log_softmax(target.float() / tau, 1), reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - started) / steps


def both(dtype: str, batch: int, steps: int, rounds: int) -> Pair:
    return side_by_side(lambda: ours(dtype, batch, steps), lambda: bare(dtype, batch, steps), rounds)


def rows(quick: bool):
    for dtype in "float32", "bfloat16":
        for batch in (8,) if quick else (32, 128):
            with ProcessPoolExecutor(1, env=WORKER) as pool:
                pair = pool.submit(both, dtype, batch, 2 if quick else 2048 // batch, 1 if quick else 5).result()
            yield dtype, str(batch), ratio(pair.ratios)
