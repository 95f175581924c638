"""Where a network finds a class in an image, and whether two networks find it in the same place (the paper's Sec. 4.1, Fig. 2).

Maps are (n, h, w), one for each image, and are compared as they are: a cosine needs no upsampling, and min-max rescaling
would change it. The paper's measure is the mean of `nearer`.
"""

import difflib
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.probes.accuracy import in_eval_mode

version = 1


def gradcam(net: nn.Module, x: Tensor, y: Tensor, *, layer: str, reshape: Callable[[Tensor], Tensor] | None = None,
            batch: int = 250) -> Tensor:
    """Grad-CAM (Selvaraju et al., 2017) of the classes y: relu(sum_c w_c A_c), (n, h, w), float32, neither scaled nor enlarged.

    A (n, c, h, w) is the output of the layer of that name, and w_c the mean over its h w cells of d logit_y / d A_c. Images x
    (n, channels, height, width), classes y (n,). A map is all zero where nothing at the layer speaks for the class.

    The graph begins at the layer, and only the gradient there is computed. Where A enters global average pooling and then a
    linear head that is one product with the head's rows, w = W_y / (h w): such networks need no shortcut, nor to be recognised.

    `reshape` makes maps (n, c, h, w) of another output, only by moving and dropping entries: of a transformer's tokens
    (n, 1 + 49, c) `lambda t: t[:, 1:].unflatten(1, (7, 7)).movedim(3, 1)`, which drops the class token; of Swin's (n, h, w, c)
    `lambda t: t.movedim(3, 1)`. Where only the class token is read in the end, the others have no gradient behind the last
    attention, and all maps there are zero: name the norm before that attention.

    ValueError: a network in train mode; a layer that is unknown, not run exactly once, without influence on the logits, or
    whose output is not (n, c, h, w) or, without `reshape`, looks like (n, h, w, c); y that are not classes of the network.
    """
    _check(net, x, y)
    modules, rows = dict(net.named_modules()), []
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, 1)
        raise ValueError(f"gradcam: no layer named {layer!r} in {type(net).__name__}" + (f"; did you mean {near[0]!r}?" if near else "")
                         + f" (known: {', '.join(m for m in modules if m)})")
    for part, labels in zip(x.split(batch), y.split(batch)):
        with _graph_from(modules[layer]) as outputs:
            score = _score(net, part.clone(), labels.clone())  # what inference mode made could not be part of a graph
            if len(outputs) != 1:
                raise ValueError(f"gradcam: layer {layer!r} is run {len(outputs)} times for an image, not once")
            output, a = outputs[0], outputs[0] if reshape is None else reshape(outputs[0])
            if reshape is None and a.ndim == 4 and a.shape[1] == a.shape[2] != a.shape[3]:
                raise ValueError(f"gradcam: layer {layer!r} gives {tuple(a.shape)}, which looks like (n, h, w, c); if so, reshape=lambda t: t.movedim(3, 1), else lambda t: t")
            if a.ndim != 4 or len(a) != len(part):
                raise ValueError(f"gradcam: layer {layer!r} gives {tuple(a.shape)}, not maps (n, c, h, w); see `reshape`")
            slope = torch.autograd.grad(score, output, allow_unused=True)[0] if score.requires_grad else None
        if slope is None:
            raise ValueError(f"gradcam: the logits do not depend on layer {layer!r}")
        weights = (slope if reshape is None else reshape(slope)).float().mean((2, 3), keepdim=True)
        rows.append((weights * a.detach().float()).sum(1).relu())
    return torch.cat(rows)


def integrated_gradients(net: nn.Module, x: Tensor, y: Tensor, *, baseline: float | Tensor = 0.5, steps: int = 32,
                         batch: int = 250) -> Tensor:
    """Integrated gradients (Sundararajan et al., 2017) of logit_y, summed over the image's channels: (n, height, width), signed.

    (x - b) * integral over a in [0, 1] of d logit_y / dx at b + a (x - b), by Gauss-Legendre quadrature with `steps` nodes
    (exact for polynomials in a up to degree 2 steps - 1). Completeness: the sum over a map is logit_y(x) - logit_y(b). The
    baseline b is mid-grey, so that black and white pixels count alike (what equals b never counts), or an image (channels,
    height, width). Images x (n, channels, height, width), classes y (n,). A forward and a backward pass for each node.

    ValueError: a network in train mode; y that are not classes of the network.
    """
    _check(net, x, y)
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    rows = []
    for part, labels in zip(x.split(batch), y.split(batch)):
        with torch.inference_mode(False), torch.enable_grad():
            path, total = part.detach().clone() - baseline, torch.zeros_like(part)
            labels = labels.clone()  # what inference mode made could not be part of a graph
            for node, weight in zip((1 + nodes) / 2, weights / 2):
                point = (baseline + float(node) * path).requires_grad_()
                total += float(weight) * torch.autograd.grad(_score(net, point, labels), point)[0]
        rows.append((total * path).sum(1).float())
    return torch.cat(rows)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Per image, the cosine of two networks' maps, (n,): in [0, 1] for maps without negative cells, NaN where either is all zero.

    Maps (n, h, w) of any type. Where their grids differ, adaptive average pooling brings both to the smaller number of rows
    and the smaller number of columns. On one cell every cosine is 1. ValueError for other shapes.
    """
    _check_maps(a, b)
    grid = tuple(map(min, a.shape[1:], b.shape[1:]))
    a, b = (F.adaptive_avg_pool2d(maps.double(), grid).flatten(1) for maps in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).float()


def closer(one: Tensor, other: Tensor) -> Tensor:
    """Per image, 1.0 where the first of two cosines is larger, 0.5 where they are equal or either is NaN, else 0.0: (n,)."""
    return 0.5 + 0.5 * ((one > other).float() - (one < other).float())


def nearer(teacher: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Per image, whether the teacher's map T is more like the first student's than the other's (Sec. 4.1), (n,).

    1.0 where cos(T, one) > cos(T, other), 0.5 for ties, among them every image where one of the three maps is all zero, else 0.0. The
    mean is the paper's share (Fig. 2): 1/2 for two students alike. Maps (n, h, w); for their sizes see `cosine`.
    """
    return closer(cosine(teacher, one), cosine(teacher, other))


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    """Per image, the share of the map's positive mass that lies inside the object's mask (Wang et al., 2020), (n,) in [0, 1].

    Maps (n, h, w); masks (n, H, W), bool or shares of a pixel in [0, 1], at least as fine: a cell counts by the share of its
    area inside, by adaptive average pooling. NaN where no cell is positive. A map that is the same everywhere has the mask's share
    of the image (nearly so where the mask's rows are no multiple of the map's). ValueError for other shapes.
    """
    maps = _positive(maps, masks)
    inside = F.adaptive_avg_pool2d(masks.double(), tuple(maps.shape[1:]))
    return ((maps * inside).sum((1, 2)) / maps.sum((1, 2))).float()


def pointing(maps: Tensor, masks: Tensor) -> Tensor:
    """Per image, whether the map's maximum lies inside the object's mask (the pointing game, Zhang et al., 2018), (n,) in [0, 1].

    Maps (n, h, w); masks (n, H, W), bool, or a share of a pixel that counts as inside from 0.5, at least as fine. The cell in row i
    stands for the pixel in its middle, row floor((i + 1/2) H / h), and columns likewise; no tolerance around it. Where several cells
    are the maximum: the share of them that is inside. NaN where no cell is positive. ValueError for other shapes.
    """
    maps = _positive(maps, masks)
    rows, columns = (((torch.arange(cells, device=masks.device) * 2 + 1) * pixels) // (2 * cells)
                     for cells, pixels in zip(maps.shape[1:], masks.shape[1:]))
    inside = masks[:, rows][:, :, columns].double() >= 0.5
    peak = (maps == maps.amax((1, 2), keepdim=True)) & (maps > 0)
    return ((peak & inside).sum((1, 2)) / peak.sum((1, 2))).float()


@contextmanager
def _graph_from(module: nn.Module):
    """Run a network without a graph up to this module's output, which becomes a leaf; yields the list of these leaves."""
    leaves = []

    def cut(module, args, output):
        if not isinstance(output, Tensor):
            raise ValueError(f"gradcam: the layer gives a {type(output).__name__}, not maps (n, c, h, w)")
        leaves.append(output.detach().clone().requires_grad_())
        torch.set_grad_enabled(True)  # until no_grad() below ends
        return leaves[-1].clone()  # what follows may overwrite it

    handle = module.register_forward_hook(cut)
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield leaves
    finally:
        handle.remove()


def _score(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits = net(x)
    if len(y) and not 0 <= y.min() <= y.max() < logits.shape[1]:
        raise ValueError(f"localization: the network has {logits.shape[1]} classes, y are from {y.min()} to {y.max()}")
    return logits.gather(1, y.long()[:, None]).sum()


def _check(net: nn.Module, x: Tensor, y: Tensor) -> None:
    in_eval_mode("localization", net)
    if y.shape != x.shape[:1]:
        raise ValueError(f"localization: needs a class for each image, got y {tuple(y.shape)} for x {tuple(x.shape)}")


def _check_maps(a: Tensor, b: Tensor) -> None:
    if a.ndim != 3 or b.ndim != 3 or len(a) != len(b):
        raise ValueError(f"localization: needs (n, h, w) for the same n images, got {tuple(a.shape)} and {tuple(b.shape)}")


def _positive(maps: Tensor, masks: Tensor) -> Tensor:
    _check_maps(maps, masks)
    if any(cells > pixels for cells, pixels in zip(maps.shape[1:], masks.shape[1:])):
        raise ValueError(f"localization: masks {tuple(masks.shape)} are coarser than maps {tuple(maps.shape)}")
    if masks.dtype != torch.bool and masks.numel() and not -1e-5 <= masks.min() <= masks.max() <= 1 + 1e-5:
        raise ValueError(f"localization: masks are bool or shares in [0, 1], not from {masks.min():g} to {masks.max():g}")
    return maps.double().clamp(min=0)
