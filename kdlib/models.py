"""Networks. `net(x)` returns logits for pixels in [0, 1]; features come from taps by layer name."""

import difflib
import math
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from kdlib import foreign, weights
from kdlib.networks import Dropout, Flatten, Layers, Map, Named, Normalize, PlainNet, ResidualNet, TransformerNet
from kdlib.store import describe

class MnistNet(Named):
    """The PyTorch MNIST example's network, which the paper uses for teacher and student (Sec. 5.1, appendix).

    Input (batch, 3, size, size). At 28 pixels the first linear layer has 9,216 inputs, as in the paper. `dropout=False`
    leaves out both dropout layers, as the author code does. The hint layer is `conv2`, before its ReLU. The example flattens by
    channel; the order here is another, of a layer that knows none.
    """

    version = 2

    def __init__(self, size: int = 28, classes: int = 10, dropout: bool = True, mean=(0.0,), std=(1.0,)):
        side = (size - 4) // 2
        if side < 1:
            raise ValueError(f"mnistnet: size must be at least 6 pixels, got {size}")
        super().__init__(
            normalize=Normalize(mean, std),
            conv1=nn.Conv2d(3, 32, 3), relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 64, 3), relu2=nn.ReLU(), pool=nn.MaxPool2d(2),
            dropout1=Dropout(0.25 if dropout else 0.0), flatten=Flatten(),
            fc1=nn.Linear(64 * side * side, 128), relu3=nn.ReLU(),
            dropout2=Dropout(0.5 if dropout else 0.0), fc2=nn.Linear(128, classes))


ARCHITECTURES = {"mnistnet": MnistNet, "residual": ResidualNet, "plain": PlainNet, "transformer": TransformerNet}
LIBRARIES = ("torchvision", "timm")
OWN = ("residual-48x2", "plain-48x2", "transformer-128x4", "mnistnet")  # what `network` is asked for, as examples


@dataclass(frozen=True)
class Model:
    """A network by name and arguments: what a run needs to build it, and part of the run's key. torchvision/NAME and timm/NAME are
    those libraries' networks, with the arguments of `kdlib.foreign.Foreign`; `network` finds them for a name.

    `weights` is the SHA-256 of a file of weights to start from, `file` where it lies on this machine (no part of the key).
    """

    name: str
    arguments: dict = field(default_factory=dict)
    weights: str | None = None
    file: str | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def version(self) -> int:
        return self.maker.version

    def describe(self) -> dict:
        return {"type": "Model", "version": self.version, "name": self.name, "arguments": describe(self.arguments),
                **({"weights": self.weights} if self.weights else {})}

    def build(self) -> nn.Module:
        net = self.maker(**self.arguments)
        if self.weights:
            found, digest = weights.read(self.file or f"(no file given for SHA-256 {self.weights})")
            if digest != self.weights:
                raise ValueError(f"weights: {self.file} has changed: its SHA-256 is {digest}, the model's {self.weights}")
            weights.fit(net, found, self.file)
        return net

    @property
    def maker(self):
        """What `build` calls with the arguments: a class, or a `kdlib.foreign.Foreign`."""
        library, _, name = self.name.rpartition("/")
        if library in LIBRARIES:
            return foreign.Foreign(library, name)
        if self.name not in ARCHITECTURES:
            raise ValueError(f"no model named {self.name!r}{_nearest(self.name, ARCHITECTURES)} (known: {', '.join(ARCHITECTURES)})")
        return ARCHITECTURES[self.name]


def network(name: str, *, size: int, classes: int) -> Model:
    """The model of that name for images of `size` pixels:

        residual-48x2      widths 48, 96, 192, two blocks a stage; its last map, like the next two's, has 8 x 8 cells
        plain-48x2         the same widths, two convolutions a stage
        transformer-128x4  width 128, four blocks of four heads
        mnistnet           the paper's network for digits
        resnet18, vgg11_bn, vit_b_32, swin_t, ...  any classifier of torchvision, else of timm; timm/resnet18 is always timm's
        NAME@FILE          any of these with weights from a .safetensors file, or a .pt or .pth file that holds tensors only

    Without a file, weights are random. The first three are for sizes that are powers of two from 32 on. For small images foreign networks
    are changed by the rules of `kdlib.foreign.arguments`, and the model's arguments say how. A file is for the very network: with
    `classes` outputs, and a first convolution of the shape that it has at this size. A run of 0 epochs takes the network as it is.

    ValueError: an unknown name, a size that the network cannot take, a library that is not installed, weights that do not fit.
    """
    name, _, file = name.partition("@")
    own = re.fullmatch(r"(residual|plain|transformer)-(\d+)x(\d+)", name)
    if own:
        model = Model(own[1], _own(own[1], int(own[2]), int(own[3]), size, classes))
        foreign.shell(model.build)  # ValueError for widths that cannot be
    elif name == "mnistnet":
        model = Model(name, {"size": size, "classes": classes})
    else:
        library, name = _find(name)
        model = Model(f"{library}/{name}", foreign.arguments(library, name, size, classes))
    if not file:
        return model
    found, digest = weights.read(file)
    weights.fit(foreign.shell(model.build), found, file)
    return replace(model, weights=digest, file=str(Path(file).expanduser().absolute()))


def layers(model: Model) -> Layers:
    """Which layers of a model play which part; see `kdlib.foreign.layers` for torchvision's and timm's."""
    if isinstance(model.maker, foreign.Foreign):
        return foreign.layers(model.maker, model.arguments)
    if model.name == "mnistnet":
        return Layers(map="pool", flatten="relu3", hint="conv2", depths=("conv1", "conv2", "pool", "relu3", "logits"))
    names = [n for n, _ in foreign.shell(replace(model, weights=None, file=None).build).named_children()]  # needs no file of weights
    if model.name == "transformer":
        return Layers("map", "flatten", "map", (*(f"{n}:tokens" for n in names if n.startswith("block")), "flatten", "logits"))
    stages = [n for n in names if n.startswith("stage")]
    return Layers("map", "flatten", stages[:2][-1], (*(n for n in names if n == "stem"), *stages, "flatten", "logits"))


def _own(family: str, width: int, depth: int, size: int, classes: int) -> dict:
    if size < 32 or size & (size - 1):
        raise ValueError(f"{family}-{width}x{depth}: size is a power of two from 32 up, so that the last map has 8 x 8 cells; not {size}")
    if family == "transformer":
        return {"width": width, "depth": depth, "heads": 4, "reduce": size.bit_length() - 4, "size": size, "classes": classes}
    stride = size // 32
    return {"widths": [width, 2 * width, 4 * width], "blocks" if family == "residual" else "convolutions": depth, "stride": stride,
            **({"kernel": 2 * stride - 1} if stride > 2 else {}), "classes": classes}  # a smaller one would leave pixels unseen


def _find(name: str) -> tuple[str, str]:
    """The library that has a network of that name, written with or without its library, and the name in it."""
    asked, _, bare = name.rpartition("/")
    known, missing = list(OWN), ""
    for library in (asked,) if asked in LIBRARIES else LIBRARIES:
        try:
            names = foreign.names(library)
        except ValueError as error:
            if asked:
                raise
            missing += f"; {error}"
            continue
        if bare in names and asked in ("", library):
            return library, bare
        known += [f"{library}/{n}" for n in names] if asked else names
    raise ValueError(f"no network named {name!r}{_nearest(name, known)} (known: {', '.join(OWN)} with their sizes, and the classifiers of "
                     f"torchvision and timm{missing})")


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _tokens_as_map(tokens: Tensor) -> Tensor:
    cells = math.isqrt(tokens.shape[1]) ** 2
    if tokens.ndim != 3 or tokens.shape[1] - cells > 1:
        raise ValueError(f"{tuple(tokens.shape)} are not tokens (n, h h, c) or (n, 1 + h h, c)")
    return Map()(tokens[:, -cells:])


def _same(output: Tensor) -> Tensor:
    return output


VIEWS = {"": _same, "input": _same, "tokens": _tokens_as_map, "nhwc": lambda maps: maps.movedim(3, 1)}


def view(layer: str) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A layer's name and what makes maps of its output: `encoder.ln:tokens` is a transformer's tokens (n, h h, c) as (n, c, h, h), without
    the class token where it is the first; `features.3:nhwc` is (n, h, w, c) as (n, c, h, w); `fc:input` is what enters the layer, and
    `logits` what the network itself returns. ValueError for another ending."""
    name, _, how = layer.partition(":")
    if how not in VIEWS:
        raise ValueError(f"layer {layer!r}: behind the colon may be one of {', '.join(v for v in VIEWS if v)}")
    return "" if layer == "logits" else name, VIEWS[how]


@contextmanager
def taps(net: nn.Module, *layers: str):
    """Record named layers' outputs while `net` runs: `with taps(net, "conv2") as seen: net(x); seen["conv2"]`.

    Names are those of `net.named_modules()`, also with the endings of `view`; the network itself is not changed. Of a layer that is run
    several times the last output is kept. An unknown name is a ValueError, and so is a layer that gives (or is given) no tensor.
    """
    modules, seen, handles = dict(net.named_modules()), {}, []
    overwritten = any(getattr(module, "inplace", False) for module in modules.values())  # by a later layer, as in torchvision

    def keep(layer, of, value):
        if not isinstance(value, Tensor):
            raise ValueError(f"layer {layer!r} of {type(net).__name__}: {'it is given' if layer.endswith(':input') else 'its output is'} a {type(value).__name__}, not a tensor")
        seen[layer] = of(value.clone() if overwritten else value)

    for layer in layers:
        name = view(layer)[0]
        if name not in modules:
            raise ValueError(f"no layer named {name!r} in {type(net).__name__}{_nearest(name, modules)}"
                             f" (known: {', '.join(m for m in modules if m)})")
    try:
        for layer in layers:
            name, of = view(layer)
            if layer.endswith(":input"):
                handles.append(modules[name].register_forward_pre_hook(lambda m, args, layer=layer, of=of: keep(layer, of, args[0])))
            else:
                handles.append(modules[name].register_forward_hook(lambda m, args, output, layer=layer, of=of: keep(layer, of, output)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def features(net: nn.Module, x: Tensor, layer: str | None = None) -> Tensor:
    """What one layer says of x, by `taps`; None or "logits" is what the network itself returns. A layer that is not run is a ValueError."""
    if layer in (None, "logits"):
        return net(x)
    with taps(net, layer) as seen:
        net(x)
    if layer not in seen:
        raise ValueError(f"layer {layer!r} of {type(net).__name__} is not run")
    return seen[layer]
