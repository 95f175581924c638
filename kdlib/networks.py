"""Small image networks for a CPU, of the families that the paper pairs: residual, plain (VGG-like) and transformer.

All end in a map of `width` channels, global average pooling and one linear layer, `fc`. `stride` and `kernel` are those of the first convolution, so that 32
pixels (stride 1) and 64 (stride 2) alike reach a last map of 8 x 8 after three stages. Layers to tap: stage1, stage2, ...
(block1, ... of the transformer), `map` (the last map), `flatten` (the penultimate features).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class Layers(NamedTuple):
    """A network's layers, by names that `kdlib.models.taps` takes, for each part that a layer plays in the paper."""

    map: str  # the last map, (n, c, h, w): before the global pooling, in MnistNet the pooled one; for Grad-CAM
    flatten: str  # the penultimate features, (n, c): what the last linear layer gets, in MnistNet before dropout; for CRD
    hint: str  # a map in the middle, in transformers of equal blocks one at the end: for Hint (the paper's appendix)
    depths: tuple[str, ...]  # from a first map to the logits: the paper's F1 to F7 (Sec. 4.3)


class Normalize(nn.Module):
    """(x - mean) / std per channel, as a network's first layer, so that eps and pixels mean the same for all."""

    def __init__(self, mean=(0.0,), std=(1.0,)):
        super().__init__()
        for name, value in ("mean", mean), ("std", std):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Named(nn.Sequential):
    """Layers one after the other, by name."""

    def __init__(self, **layers: nn.Module):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Flatten(nn.Flatten):
    """(n, c, h, w) to (n, h w c), channels varying fastest: as the channels-last maps of a CPU lie in memory, so nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).flatten(1)


class Dropout(nn.Dropout):
    """Inverted dropout that draws a byte for each number, eight of them at a time: on a CPU the draws of `nn.Dropout` take longer than a
    small network. ValueError for a `p` that is no multiple of 1 / 256."""

    def __init__(self, p: float = 0.5):
        super().__init__(p)
        if 256 * p % 1:
            raise ValueError(f"Dropout: p is a multiple of 1 / 256, not {p}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        bytes_ = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-2**63, None).view(torch.uint8)
        last = x.movedim(1, -1)  # the order of memory
        kept = (bytes_[: x.numel()] >= int(256 * self.p)).view(last.shape).movedim(-1, 1)
        return x * (kept / (1 - self.p)).to(x.dtype) if self.p < 1 else torch.zeros_like(x)


def _convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]


class Residual(nn.Module):
    """y = ReLU(x' + BN(conv(ReLU(BN(conv x))))), with x' a 1 x 1 convolution of x where shapes differ (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*_convolution(inputs, outputs, stride), nn.ReLU(), *_convolution(outputs, outputs))
        self.skip = nn.Identity() if stride == 1 and inputs == outputs else nn.Sequential(*_convolution(inputs, outputs, stride, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.skip(x) + self.body(x))


class ResidualNet(Named):
    """A residual network with `blocks` in each stage; from the second stage on, a stage halves the map."""

    version = 1

    def __init__(self, widths: Sequence[int] = (24, 48, 96), blocks: int = 1, stride: int = 1, classes: int = 10, mean=MEAN, std=STD, kernel: int = 3):
        _check("residual", widths, stride, blocks)
        inputs = (widths[0], *widths)
        stages = {f"stage{k + 1}": nn.Sequential(*[
            Residual(inputs[k] if b == 0 else width, width, 2 if k and b == 0 else 1) for b in range(blocks)])
            for k, width in enumerate(widths)}
        super().__init__(normalize=Normalize(mean, std), stem=nn.Sequential(*_convolution(3, widths[0], stride, kernel), nn.ReLU()),
                         **stages, map=nn.Identity(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(widths[-1], classes))


class PlainNet(Named):
    """A stack of `convolutions` a stage with batch norm, without skips, a max-pool between stages: VGG's form (Simonyan and
    Zisserman, 2015) with global average pooling in the place of its linear layers."""

    version = 1

    def __init__(self, widths: Sequence[int] = (24, 48, 96), convolutions: int = 2, stride: int = 1, classes: int = 10, mean=MEAN, std=STD, kernel: int = 3):
        _check("plain", widths, stride, convolutions)
        inputs, stages = (3, *widths), {}
        for k, width in enumerate(widths):
            layers = [nn.MaxPool2d(2)] if k else []
            for c in range(convolutions):
                layers += [*_convolution(inputs[k] if c == 0 else width, width, *((stride, kernel) if k == c == 0 else ())), nn.ReLU()]
            stages[f"stage{k + 1}"] = nn.Sequential(*layers)
        super().__init__(normalize=Normalize(mean, std), **stages, map=nn.Identity(), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
                         fc=nn.Linear(widths[-1], classes))


class Tokens(nn.Module):
    """A map (n, c, h, w) as tokens (n, h w, c) with learned positions."""

    def __init__(self, width: int, side: int):
        super().__init__()
        self.position = nn.Parameter(0.02 * torch.randn(1, side * side, width))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2) + self.position


class Map(nn.Module):
    """Tokens (n, h h, c) as a map (n, c, h, h)."""

    def forward(self, tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        return tokens.transpose(1, 2).unflatten(2, (side, side))


class Attention(nn.Module):
    """A pre-norm transformer block: x + attention(LN x), then x + MLP(LN x) (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TransformerNet(Named):
    """A vision transformer with a convolutional stem (Xiao et al., 2021): `reduce` stride-2 convolutions, `depth` blocks on the
    tokens of a map of size / 2^reduce, their mean into the head. For images of `size` pixels only."""

    version = 1

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, reduce: int = 2, size: int = 32, classes: int = 10, mean=MEAN, std=STD):
        if width % heads:
            raise ValueError(f"transformer: heads must divide the width, and {heads} does not divide {width}")
        if reduce < 1 or size % 2**reduce:
            raise ValueError(f"transformer: size must be a multiple of 2^reduce with reduce at least 1, not {size} with {reduce}")
        if depth < 1 or width < 2 ** (reduce - 1):
            raise ValueError(f"transformer: depth is at least 1 and width at least {2 ** (reduce - 1)} for a stem of {reduce} convolutions, not {depth} and {width}")
        stem, inputs = [], 3
        for k in range(reduce):
            outputs = width // 2 ** (reduce - 1 - k)
            stem += [*_convolution(inputs, outputs, 2), nn.ReLU()]
            inputs = outputs
        super().__init__(normalize=Normalize(mean, std), stem=nn.Sequential(*stem), tokens=Tokens(width, size // 2**reduce),
                         **{f"block{k + 1}": Attention(width, heads) for k in range(depth)}, norm=nn.LayerNorm(width), map=Map(),
                         pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(width, classes))


def _check(name: str, widths: Sequence[int], stride: int, deep: int) -> None:
    if not widths or min(widths) < 1:
        raise ValueError(f"{name}: widths are those of one stage or more, at least 1 each, not {tuple(widths)}")
    if stride < 1 or deep < 1:
        raise ValueError(f"{name}: stride and layers a stage are at least 1, not {stride} and {deep}")
