"""Networks. `net(x)` returns logits for pixels in [0, 1]; features come from taps by layer name."""

import difflib
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from kdlib.networks import Named, Normalize, PlainNet, ResidualNet, TransformerNet

class MnistNet(Named):
    """The PyTorch MNIST example's network, which the paper uses for teacher and student (Sec. 5.1, appendix).

    Input (batch, 3, size, size). At 28 pixels the first linear layer has 9,216 inputs, as in the paper. `dropout=False`
    leaves out both dropout layers, as the author code does. The hint layer is `conv2`, before its ReLU.
    """

    version = 1

    def __init__(self, size: int = 28, classes: int = 10, dropout: bool = True, mean=(0.0,), std=(1.0,)):
        side = (size - 4) // 2
        if side < 1:
            raise ValueError(f"mnistnet: size must be at least 6 pixels, got {size}")
        super().__init__(
            normalize=Normalize(mean, std),
            conv1=nn.Conv2d(3, 32, 3), relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3), relu2=nn.ReLU(), pool=nn.MaxPool2d(2),
            dropout1=nn.Dropout(0.25 if dropout else 0.0), flatten=nn.Flatten(),
            fc1=nn.Linear(64 * side * side, 128), relu3=nn.ReLU(),
            dropout2=nn.Dropout(0.5 if dropout else 0.0), fc2=nn.Linear(128, classes))


ARCHITECTURES = {"mnistnet": MnistNet, "residual": ResidualNet, "plain": PlainNet, "transformer": TransformerNet}


@dataclass(frozen=True)
class Model:
    """A network by name and arguments: what a run needs to build it, and part of the run's key."""

    name: str
    arguments: dict = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def version(self) -> int:
        return self._class().version

    def build(self) -> nn.Module:
        return self._class()(**self.arguments)

    def _class(self):
        if self.name not in ARCHITECTURES:
            near = difflib.get_close_matches(self.name, ARCHITECTURES, 1)
            raise ValueError(f"no model named {self.name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                             + f" (known: {', '.join(ARCHITECTURES)})")
        return ARCHITECTURES[self.name]


@contextmanager
def taps(net: nn.Module, *layers: str):
    """Record named layers' outputs while `net` runs: `with taps(net, "conv2") as seen: net(x); seen["conv2"]`.

    Names are those of `net.named_modules()`; the network itself is not changed. An unknown name is a ValueError.
    """
    modules, seen, handles = dict(net.named_modules()), {}, []
    overwritten = any(getattr(module, "inplace", False) for module in modules.values())  # by a later layer, as in torchvision
    for layer in layers:
        if layer not in modules:
            near = difflib.get_close_matches(layer, modules, 1)
            raise ValueError(f"no layer named {layer!r} in {type(net).__name__}"
                             + (f"; did you mean {near[0]!r}?" if near else "")
                             + f" (known: {', '.join(m for m in modules if m)})")
    try:
        for layer in layers:
            handles.append(modules[layer].register_forward_hook(
                lambda module, args, output, layer=layer: seen.__setitem__(layer, output.clone() if overwritten else output)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def features(net: nn.Module, x: Tensor, layer: str | None = None) -> Tensor:
    """What one layer says of x, by `taps`; None or "logits" is what the network itself returns."""
    if layer in (None, "logits"):
        return net(x)
    with taps(net, layer) as seen:
        net(x)
    return seen[layer]


# TEMPORARY SHIM
from typing import NamedTuple
class Layers(NamedTuple):
    map: str
    flatten: str
    hint: str
    depths: tuple
    tokens: bool = False

def network(name, *, size, classes):
    family, _, rest = name.partition("-")
    w, _, d = rest.partition("x")
    w, d = int(w), int(d)
    if family == "transformer":
        return Model("transformer", {"width": w, "depth": d, "reduce": {32: 2, 64: 3}[size], "size": size, "classes": classes})
    return Model(family, {"widths": [w, 2*w, 4*w], {"residual": "blocks", "plain": "convolutions"}[family]: d, "stride": size // 32, "classes": classes})

def layers(model):
    if model.name == "transformer":
        return Layers("map", "flatten", "map", ("map", "flatten", "logits"), True)
    return Layers("map", "flatten", "stage2", ("stage1", "stage2", "stage3", "logits"))
