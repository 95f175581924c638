"""Images of unseen domains made from photographs: pure functions of images x (n, 3, h, w) in [0, 1], of which they keep the shape."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdlib.data.augment import grey


def greyscale(x: Tensor) -> Tensor:
    """The luminance (ITU-R BT.601) as three equal channels."""
    return grey(x).repeat(1, 3, 1, 1)


def edges(x: Tensor) -> Tensor:
    """Dark lines on white: 1 - min(2 |g|, 1) in three equal channels, |g| being the Sobel magnitude of the luminance.

    The Sobel kernels are divided by 4, so that |g| = 1 beside a straight edge from black to white, and an edge of half that contrast is
    black already. Borders are repeated: they draw no line. Softer than the stimuli of Geirhos et al. (2019), which Canny's detector drew.
    """
    y = F.pad(grey(x), (1, 1, 1, 1), mode="replicate")
    columns = y[:, :, :-2] + 2 * y[:, :, 1:-1] + y[:, :, 2:]
    rows = y[..., :-2] + 2 * y[..., 1:-1] + y[..., 2:]
    g = torch.hypot(columns[..., 2:] - columns[..., :-2], rows[:, :, 2:] - rows[:, :, :-2]) / 4
    return (1 - 2 * g).clamp(0, 1).repeat(1, 3, 1, 1)


def low_pass(x: Tensor, sigma: float) -> Tensor:
    """Blurred by a Gaussian with a standard deviation of `sigma` pixels, cut off at 4 sigma, the image being reflected at its border.

    As the low-pass images of Geirhos et al. (2018), in colour. ValueError where 4 sigma reaches beyond the reflection.
    """
    reach = int(4 * sigma + 0.5)
    if not 0 < sigma or reach >= min(x.shape[2:]):
        raise ValueError(f"low_pass: sigma is above 0, and 4 sigma less than the side of {min(x.shape[2:])} pixels, not sigma {sigma}")
    down, across = (_blur(side, sigma, reach).to(x) for side in x.shape[2:])
    return (down @ x @ across.T).clamp(0, 1)


def high_pass(x: Tensor, sigma: float) -> Tensor:
    """What `low_pass` takes away, about mid-grey: x - low_pass(x, sigma) + 1/2, clipped to [0, 1].

    As the high-pass images of Geirhos et al. (2018), but in colour and about 1/2.
    """
    return (x - low_pass(x, sigma) + 0.5).clamp(0, 1)


def shuffle_patches(x: Tensor, grid: int, generator: Generator) -> Tensor:
    """Cut into grid x grid patches that change places at random, in each image in another way (Zhang and Zhu, 2019): local texture stays,
    shape goes. ValueError where the sides are no multiples of `grid`."""
    n, channels, height, width = x.shape
    if grid < 1 or height % grid or width % grid:
        raise ValueError(f"shuffle_patches: {height} x {width} pixels cannot be cut into {grid} x {grid} equal patches")
    patches = x.reshape(n, channels, grid, height // grid, grid, width // grid).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = torch.rand(n, grid * grid, generator=generator).argsort(dim=1).to(x.device)
    patches = patches[torch.arange(n, device=x.device)[:, None], order]
    return patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


def _blur(side: int, sigma: float, reach: int) -> Tensor:
    """The blur of one axis as a matrix (side, side): each row the Gaussian about its pixel, folded back at both ends."""
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
    index = (side - 1) - ((side - 1) - (torch.arange(side)[:, None] + offsets).abs()).abs()
    return torch.zeros(side, side, dtype=torch.float64).scatter_add_(1, index, (weights / weights.sum()).expand(side, -1))
