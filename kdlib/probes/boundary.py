"""Decision boundaries on planes through three images (Somepalli et al., 2022; the paper's Table 1).

What the paper's Table 1 calls intersection over union is, in the code it cites, the share of grid points that two networks
put into the same class. Here that is `agreement`; the Jaccard index proper stands beside it.
"""

import torch
from torch import Tensor, nn

from kdlib.probes.accuracy import predict

version = 1


def triplets(labels: Tensor, count: int, *, distinct: bool = True, generator: torch.Generator | None = None) -> Tensor:
    """`count` random triplets of item indices, (count, 3), three different items each; of three classes if `distinct`.

    Triplets that are not of three classes are drawn again, which takes long where nearly all items are of two. ValueError where `labels` (n,)
    do not have three items, or three classes if `distinct`, or `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"triplets: count is 1 or more, got {count}")
    if len(labels) < 3 or (distinct and len(labels.unique()) < 3):
        raise ValueError(f"triplets: needs three {'classes' if distinct else 'items'}, got {len(labels)} items of "
                         f"{len(labels.unique())} classes")
    rows = []
    while len(rows) < count:
        row = torch.randperm(len(labels), generator=generator)[:3]
        if not distinct or len(labels[row].unique()) == 3:
            rows.append(row)
    return torch.stack(rows)


def plane(x: Tensor, *, margin: float = 0.1, resolution: int = 50, clip: bool = False) -> tuple[Tensor, Tensor]:
    """A grid on the plane through three images x (3, channels, height, width), and the images' own coordinates (3, 2).

    With u = (x2 - x1) / |x2 - x1| and v the unit part of x3 - x1 orthogonal to u, the images lie at (0, 0), (|x2 - x1|, 0) and
    ((x3 - x1).u, (x3 - x1).v). On each axis the grid has `resolution` points from the smallest coordinate to the largest,
    widened on both sides by `margin` of that range. Returns points (resolution^2, channels, height, width), the second
    coordinate running fastest. `clip` keeps pixels in [0, 1]; the authors do not. ValueError for images on one line, of whole numbers, or
    more or fewer than three, for a margin below 0 and for fewer than two points.
    """
    if not (0 <= margin < float("inf") and resolution >= 2):
        raise ValueError(f"plane: margin is finite and not negative and resolution 2 or more, got {margin} and {resolution}")
    if len(x) != 3 or not x.is_floating_point():
        raise ValueError(f"plane: x are three images of floating-point numbers, not {tuple(x.shape)} {x.dtype}")
    flat = x.flatten(1).double()
    a, b = flat[1] - flat[0], flat[2] - flat[0]
    u = a / a.norm()
    rest = b - (b @ u) * u
    if not rest.norm() > 1e-6 * b.norm():
        raise ValueError("plane: the three images lie on one line, so they span no plane")
    v = rest / rest.norm()
    corners = torch.stack([torch.zeros(2).to(flat), torch.stack([a.norm(), a.new_zeros(())]), torch.stack([b @ u, b @ v])])
    low, high = corners.amin(0), corners.amax(0)
    s, t = (torch.linspace(float(l - margin * (h - l)), float(h + margin * (h - l)), resolution, dtype=torch.float64, device=x.device)
            for l, h in zip(low, high))
    points = flat[0] + s.repeat_interleave(resolution)[:, None] * u + t.repeat(resolution)[:, None] * v
    points = points.to(x.dtype).view(-1, *x.shape[1:])
    return points.clamp(0, 1) if clip else points, corners.float()


def regions(net: nn.Module, x: Tensor, *, margin: float = 0.1, resolution: int = 50, clip: bool = False,
            batch: int = 250) -> Tensor:
    """The classes (resolution, resolution) that a network gives the plane through three images, rows along x1 to x2."""
    points, _ = plane(x, margin=margin, resolution=resolution, clip=clip)
    return predict(net, points, batch=batch).view(resolution, resolution)


def agreement(a: Tensor, b: Tensor) -> float:
    """The share of points that two networks put into the same class, in [0, 1]: the paper's similarity (Table 1).

    Regions of one plane, (resolution, resolution), of both; ValueError for other shapes than one.
    """
    _same_plane("agreement", a, b)
    return (a == b).float().mean().item()


def jaccard(a: Tensor, b: Tensor) -> float:
    """The Jaccard index of two networks' regions, |A and B| / |A or B|, averaged over the classes that either has, in [0, 1].

    Shapes and errors as in `agreement`.
    """
    _same_plane("jaccard", a, b)
    classes = torch.cat([a.flatten(), b.flatten()]).unique()
    inside_a, inside_b = (r.flatten() == classes[:, None] for r in (a, b))
    return ((inside_a & inside_b).sum(1) / (inside_a | inside_b).sum(1)).mean().item()


def _same_plane(name: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or not a.numel():
        raise ValueError(f"{name}: needs two networks' regions of one plane, got {tuple(a.shape)} and {tuple(b.shape)}")
