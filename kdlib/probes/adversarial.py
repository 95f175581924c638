"""Adversarial images, and whom they fool (paper, Sec. 4.2; appendix, Sec. 10).

Images are (n, channels, height, width), pixels in [0, 1]; eps and step are in the same unit: 4 / 255 is four levels of a byte.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from kdlib.probes.accuracy import in_eval_mode, predict, same_items

version = 1


def ifgsm(net: nn.Module, x: Tensor, y: Tensor, *, eps: float | Sequence[float], step: float | Sequence[float], steps: int = 5,
          batch: int = 250) -> Tensor:
    """Iterative FGSM (Kurakin et al., 2017; Eq. 4): images near x on which the cross entropy with the labels y (n,) is larger.

        x_0 = x,    x_t+1 = clip(x_t + step * sign(gradient at x_t of the cross entropy)),    t = 0 ... steps - 1

    where clip moves each pixel into [x - eps, x + eps] and into [0, 1]. Eq. 4 prints I_N where it means I_t. A pixel whose
    gradient is zero stays. The cross entropy is averaged over a batch, so that rounding, and nothing else, depends on `batch`.

    Shaped like x. For a sequence of k values of eps, with `step` one number or k of them, (k, n, channels, height, width):
    the first gradient, at x itself, serves them all. No gradient is taken in the network's parameters, and none is left
    behind. ValueError for pixels outside [0, 1], and for a network in train mode.
    """
    in_eval_mode("ifgsm", net)
    sizes = [float(e) for e in np.atleast_1d(eps)]
    lengths = [float(s) for s in np.atleast_1d(step)] if np.ndim(step) else [float(step)] * len(sizes)
    _pixels("ifgsm", x, *sizes)
    if not sizes or len(lengths) != len(sizes):
        raise ValueError(f"ifgsm: step is one number or as many as eps, got {len(lengths)} for {len(sizes)}")
    if not all(s > 0 for s in lengths):
        raise ValueError(f"ifgsm: step must be positive, got {step}")
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(f"ifgsm: steps must be a whole number of at least 1, got {steps}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"ifgsm: needs a label for each of {len(x)} images, got {tuple(y.shape)}")
    if len(y) and y.min() < 0:
        raise ValueError(f"ifgsm: labels are 0 or more, got {y.min()}")
    with torch.inference_mode(False):
        found = x.new_empty(len(sizes), *x.shape)
        for part, labels, into in zip(x.split(batch), y.split(batch), found.split(batch, dim=1)):
            part, labels = part.detach().clone(), labels.clone()  # what inference mode made could not be part of a graph
            first = _uphill(net, part, labels)
            for e, s, out in zip(sizes, lengths, into):
                low, high = (part - e).clamp(min=0), (part + e).clamp(max=1)
                moved = torch.add(part, first, alpha=s).clamp(low, high)
                for _ in range(steps - 1):
                    moved = torch.add(moved, _uphill(net, moved, labels), alpha=s).clamp(low, high)
                out.copy_(moved)
    return found if np.ndim(eps) else found[0]


def noise(x: Tensor, *, eps: float, generator: Generator) -> Tensor:
    """The control: each pixel of x moved by eps up or down at random, clipped to [0, 1]. ValueError as in `ifgsm`."""
    _pixels("noise", x, eps)
    signs = 2 * torch.randint(2, x.shape, generator=generator, device=generator.device, dtype=torch.int8) - 1
    return torch.add(x, signs.to(x), alpha=eps).clamp(0, 1)


def fooled(clean, adversarial, labels, *, by: str):
    """Per item, whether an adversarial image fools a network, from its predicted classes (n,) on clean and adversarial images.

        change    its prediction is not the one that it gives the clean image     the paper's; labels play no part
        label     its prediction is not the label                                 so an error that it made anyway counts too
    """
    if by not in ("change", "label"):
        raise ValueError(f"fooled: by is 'change' or 'label', not {by!r}")
    other = clean if by == "change" else labels
    same_items("fooled", adversarial, other)
    return adversarial != other


def calibrate(net: nn.Module, x: Tensor, y: Tensor, *, rate: float = 0.85, steps: int = 5, step_of_eps: float = 0.25,
              largest: float = 64 / 255, batch: int = 250) -> float:
    """The eps at which `ifgsm` with step = step_of_eps * eps changes at least `rate` of the network's predictions on x.

    The paper gives neither eps nor step, but rates near 0.85. A quarter of eps is what Kurakin et al. (2017) have at five
    steps, which are theirs at eps = 4 / 255: step 1 / 255, and min(eps + 4, 1.25 eps) steps with eps in levels of a byte.

    The smallest of the multiples of 1 / 1020, a quarter of a level, by doubling from 1 / 255 and then bisection: the rate
    is reached there and not a quarter of a level below. The share need not rise with each step of eps, so a still smaller eps
    may reach the rate as well. ValueError where it is reached nowhere up to `largest`.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"calibrate: rate must be in (0, 1], got {rate}")
    last = int(largest * 1020 + 1e-6)
    if last < 1:
        raise ValueError(f"calibrate: largest must be at least 1/1020, got {largest}")
    clean = predict(net, x, batch=batch)

    def share(quarters: int) -> float:
        eps = quarters / 4 / 255
        moved = ifgsm(net, x, y, eps=eps, step=step_of_eps * eps, steps=steps, batch=batch)
        return fooled(clean, predict(net, moved, batch=batch), y, by="change").double().mean().item()

    low, high = 0, min(4, last)
    while (reached := share(high)) < rate:
        if high == last:
            raise ValueError(f"calibrate: eps = {last / 4:g}/255 changes {reached:.3f} of the predictions, not {rate}; "
                             "ask for a lower rate, or name an eps")
        low, high = high, min(2 * high, last)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) >= rate else (middle, high)
    return high / 4 / 255


def _uphill(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The signs of the gradient of the cross entropy in x, of which no parameter's gradient is part."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = net(x)
        if len(labels) and labels.max() >= logits.shape[1]:
            raise ValueError(f"ifgsm: the network has {logits.shape[1]} classes, and there is a label {labels.max()}")
        return torch.autograd.grad(F.cross_entropy(logits, labels), x)[0].sign()


def _pixels(name: str, x: Tensor, *sizes: float) -> None:
    if not (x.is_floating_point() and bool(((x >= 0) & (x <= 1)).all())):
        raise ValueError(f"{name}: pixels must be floating-point numbers in [0, 1]; normalise in the network, by kdlib.networks.Normalize as its first layer")
    if not all(e >= 0 for e in sizes):
        raise ValueError(f"{name}: eps must not be negative, got {', '.join(f'{e:g}' for e in sizes)}")
    if max(sizes, default=0) > 1:
        raise ValueError(f"{name}: eps is a part of the range of pixels, in [0, 1] (4 / 255 is four levels of a byte), got {max(sizes):g}")
