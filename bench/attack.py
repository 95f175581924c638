"""Iterative FGSM beside the passes that it cannot do without, and beside torchattacks' (`pip install kdlib[bench]`)."""

from importlib.metadata import version

import torch
import torch.nn.functional as F
from loky import ProcessPoolExecutor
from torch import nn
from torchvision.models import resnet18

from bench.timing import Pair, ratio, side_by_side, timed
from kdlib.models import MnistNet
from kdlib.probes.adversarial import ifgsm
from kdlib.study import WORKER
from kdlib.train import repeatable

TITLE = "An attack"
SAYS = """`kdlib.probes.adversarial.ifgsm`, five steps on random images, float32, of networks whose parameters want gradients, as
trained ones do. Bare is five forward passes, and five backward passes to the input, of the same network with its parameters
frozen: no signs, no steps, no clipping. The other is BIM of torchattacks {torchattacks}. In a process like those in which
`kdlib.study` works. Target: at most 1.05 of bare."""
NEEDS = ("torchattacks", "torchvision")
HEADER = ("network", "images", "against", "ours / other", "pixels that differ")
STEPS = 5
EPS, STEP = 4 / 255, 1 / 255
NETWORKS = {"mnistnet, 28 px": (MnistNet, 28), "resnet18, 64 px": (resnet18, 64)}


def problem(name: str, n: int):
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    net = make().to(memory_format=torch.channels_last).eval()
    return net, torch.rand(n, 3, size, size), torch.randint(10, (n,))


def ours(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ifgsm(net, x, y, eps=EPS, step=STEP, steps=STEPS)


def bare(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    x = x.detach().requires_grad_()
    for _ in range(STEPS):
        torch.autograd.grad(F.cross_entropy(net(x), y), x)


def theirs(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    from torchattacks import BIM

    return BIM(net, eps=EPS, alpha=STEP, steps=STEPS)(x, y)


def both(name: str, against: str, n: int, rounds: int) -> tuple[Pair, str]:
    with repeatable("cpu"):
        (net, x, y), frozen = problem(name, n), problem(name, n)[0].requires_grad_(False)
        if against == "bare":
            return side_by_side(timed(lambda: ours(net, x, y)), timed(lambda: bare(frozen, x, y)), rounds), "-"
        pair = side_by_side(timed(lambda: ours(net, x, y)), timed(lambda: theirs(net, x, y)), rounds)
        return pair, f"{int((ours(net, x, y) != theirs(net, x, y)).sum()):,} of {x.numel():,}"


def rows(quick: bool):
    with ProcessPoolExecutor(1, env=WORKER) as pool:
        for name in NETWORKS:
            for n in (4,) if quick else (64, 250):
                for against in "bare", "torchattacks":
                    pair, differ = pool.submit(both, name, against, n, 1 if quick else 9).result()
                    yield name, str(n), against, ratio(pair.ratios), differ


def facts() -> dict[str, str]:
    import torchattacks  # noticed to be absent before anything is timed

    return {"torchattacks": version("torchattacks")}
