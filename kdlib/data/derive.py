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
    padded = F.pad(grey(x), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=x.device) / 4
    g = F.conv2d(padded, torch.stack([across, across.T])[:, None])
    return (1 - 2 * g.norm(dim=1, keepdim=True)).clamp(0, 1).repeat(1, 3, 1, 1)


def low_pass(x: Tensor, sigma: float) -> Tensor:
    """Blurred by a Gaussian with a standard deviation of `sigma` pixels, cut off at 4 sigma, the image being reflected at its border.

    As the low-pass images of Geirhos et al. (2018), in colour. ValueError where 4 sigma reaches beyond the reflection.
    """
    reach = int(4 * sigma + 0.5)
    if not 0 < sigma or reach >= min(x.shape[2:]):
        raise ValueError(f"low_pass: sigma is above 0, and 4 sigma less than the side of {min(x.shape[2:])} pixels, not sigma {sigma}")
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    planes = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, kernel[None, None, :, None]), kernel[None, None, None])
    return planes.view(x.shape).clamp(0, 1)


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
