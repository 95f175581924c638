"""Random transformations as functions of explicit parameters, a row per image, so that a probe can replay them."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from kdlib.data import DataError

GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, as torchvision
STEPS = ("brightness", "contrast", "saturation", "hue")  # of `jitter`, in this order


def crop(pixels: Tensor, offset: Tensor, flip: Tensor) -> Tensor:
    """Images moved by `offset` (n, 2) pixels down and right, reflected at the border, and mirrored where `flip` (n,).

    `pixels` (n, h, w, 3) uint8 as stored; returns (n, 3, h, w) in [0, 1], channels last in memory. An offset is less than h, w.
    """
    n, height, width, _ = pixels.shape
    rows = _reflect(torch.arange(height, device=pixels.device) - offset[:, :1], height)
    columns = torch.arange(width, device=pixels.device).expand(n, -1)
    columns = _reflect(torch.where(flip[:, None], width - 1 - columns, columns) - offset[:, 1:], width)
    moved = pixels[torch.arange(n, device=pixels.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return as_images(moved)


def held_out(labels: Tensor) -> Tensor:
    """Which training items (n,) are kept for choosing settings: every fifth of each class."""
    kept = F.one_hot(labels).cumsum(0).gather(1, labels[:, None])[:, 0] % 5 == 0
    if not kept.any():
        raise DataError(f"held_out: {len(labels)} training items are fewer than five of a class; raise the limit")
    return kept


def as_images(pixels: Tensor) -> Tensor:
    """Stored pixels (n, h, w, 3) uint8 as images (n, 3, h, w) in [0, 1], channels last in memory."""
    return pixels.permute(0, 3, 1, 2).float() / 255


def jitter_factors(n: int, *, strength: float, hue: float, generator: Generator) -> Tensor:
    """Random factors (n, 4) for `jitter`: brightness, contrast and saturation from U[1 - strength, 1 + strength] (not below 0),
    hue from U[-hue, hue], as torchvision's ColorJitter draws them, but for each image its own."""
    random = 2 * torch.rand(n, 4, generator=generator) - 1
    return torch.cat([(1 + strength * random[:, :3]).clamp(min=0), hue * random[:, 3:]], dim=1)


def only(factors: Tensor, step: str) -> Tensor:
    """Factors (..., 4) that keep one of `STEPS` and leave the others without effect."""
    return torch.where(torch.arange(4) == STEPS.index(step), factors, torch.tensor([1.0, 1.0, 1.0, 0.0]))


def jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Recoloured images (n, 3, h, w) in [0, 1]: brightness, contrast and saturation times their factors, hue turned, in this order.

    `factors` (n, 4) as of `jitter_factors`; (1, 1, 1, 0) changes nothing. Each step is clipped to [0, 1] and equals
    torchvision.transforms.functional's adjust_brightness, adjust_contrast, adjust_saturation and adjust_hue, of images of floats: none goes
    through uint8. Pixels outside [0, 1], by more than rounding, are a ValueError.
    """
    if len(x) and not -1e-5 <= x.min() <= x.max() <= 1 + 1e-5:
        raise ValueError(f"jitter: pixels must lie in [0, 1], not from {x.min():g} to {x.max():g}")
    return _jitter(x, factors)


def _jitter(x: Tensor, factors: Tensor) -> Tensor:
    brightness, contrast, saturation, hue = (f.view(-1, 1, 1, 1).to(x) for f in factors.unbind(1))
    x = (x * brightness).clamp(0, 1)
    x = _blend(x, grey(x).mean((1, 2, 3), keepdim=True), contrast)
    return turn_hue(_blend(x, grey(x), saturation), hue)


def grey(x: Tensor) -> Tensor:
    """Luminance (n, 1, h, w) of x (n, 3, h, w)."""
    red, green, blue = x.unbind(1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """x (n, 3, h, w) with its hue turned by `turn` (n, 1, 1, 1) of a full turn, at equal saturation and value (HSV)."""
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    red, green, blue = x.unbind(1)
    safe = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(value == red, (green - blue) / safe, torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    sector = sector + 6 * turn[:, 0]
    channels = []
    for offset in 5, 3, 1:
        k = (offset + sector) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=1).clamp(0, 1)


class Pictures:
    """Stored images as training data: each time moved by up to an eighth of its side and mirrored at random; with `colour` (strength,
    hue), recoloured too."""

    views, fixed = 1, False

    def __init__(self, pixels: Tensor, labels: Tensor, colour: tuple[float, float] | None = None):
        self.pixels, self.labels, self.colour, self.n = pixels, labels, colour, len(labels)

    def draw(self, generator: Generator) -> Tensor:
        reach = self.pixels.shape[1] // 8
        drawn = [torch.randint(-reach, reach + 1, (self.n, 2), generator=generator).float(),
                 torch.randint(2, (self.n, 1), generator=generator).float()]
        if self.colour:
            strength, hue = self.colour
            drawn.append(jitter_factors(self.n, strength=strength, hue=hue, generator=generator))
        return torch.cat(drawn, dim=1).to(self.labels.device)

    def batch(self, idx: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        p = parameters[idx]
        x = crop(self.pixels[idx], p[:, :2].long(), p[:, 2] > 0)
        return _jitter(x, p[:, 3:]) if self.colour else x, self.labels[idx]


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def _reflect(index: Tensor, size: int) -> Tensor:
    return (size - 1) - ((size - 1) - index.abs()).abs()
