"""torchvision's and timm's classifiers as they are: pixels in [0, 1], their own layers' names, never a download.

A network made for 224 pixels leaves a map of 2 x 2 cells of an image of 64. What is changed so that the last map has `CELLS` x `CELLS`
cells at least is decided by `arguments`, once, and is part of a model's key; `Foreign` builds what it is told.
"""

import functools
import importlib
import json
import math
import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdlib.networks import Layers, Normalize
from kdlib.store import first_line

CELLS = 7  # of ImageNet's 224 pixels, at a stride of 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCK = re.compile(r"(blocks\.|encoder\.layers\.encoder_layer_)(\d+)")  # a transformer's, in timm and in torchvision


@dataclass(frozen=True)
class Foreign:
    """The maker of `library`'s network of that name. Called, it returns that network with random weights and with a layer `normalize`
    before all others; the other layers keep their names.

    `options` go to the library's builder. `strides` gives layers another stride: patches shrink with it, pooling by 1 is none, and a
    convolution on pixels that loses its stride becomes 3 x 3 (He et al., 2016, for CIFAR). Such a convolution, and smaller patches of a
    convolutional stem, start from PyTorch's defaults or He's, not from what the library draws for its own. `release` is that of timm with which the
    arguments were chosen (torchvision's goes with torch's, which a run's key holds); another one here is a ValueError. `size` is that of
    the images that `layers` asks about.
    """

    library: str
    name: str

    version: ClassVar[int] = 1

    def __call__(self, size: int, classes: int = 10, options: dict | None = None, strides: dict[str, int] | None = None,
                 release: str | None = None, mean=MEAN, std=STD) -> nn.Module:
        if release not in (None, _release(self.library)):
            raise ValueError(f"{self.library}/{self.name} was chosen with {self.library} {release}, and {_release(self.library)} is "
                             "installed here; install the former, or choose it anew with network(...)")
        net = self._published(classes, **options or {})
        for layer, stride in (strides or {}).items():
            _restride(net, layer, stride)
        net.normalize = Normalize(mean, std)
        net._modules = {"normalize": net._modules.pop("normalize"), **net._modules}
        net.register_forward_pre_hook(_normalized)
        return net

    def _published(self, classes: int, **options) -> nn.Module:
        if self.library == "timm":
            return _library("timm").create_model(self.name, pretrained=False, num_classes=classes, **options)
        models = _library("torchvision").models
        if "patch_size" not in options:
            return models.get_model(self.name, weights=None, num_classes=classes, **options)
        peer = shell(lambda: models.get_model(self.name, weights=None))  # takes no patch size, so it is asked for the rest
        block = peer.encoder.layers[0]
        return models.VisionTransformer(**options, num_layers=len(peer.encoder.layers), num_heads=block.num_heads,
                                        hidden_dim=peer.hidden_dim, mlp_dim=block.mlp[0].out_features, num_classes=classes)


def names(library: str) -> list[str]:
    """Its classifiers. ValueError where the library is not installed."""
    if library == "timm":
        return _library("timm").list_models()
    models = _library("torchvision").models
    return models.list_models(module=models)


def arguments(library: str, name: str, size: int, classes: int) -> dict:
    """What `Foreign` is to be told for images of `size` pixels, by rules that a run on shapes alone tries out:

    - transformers get the largest patches (a divisor of `size`, at most the published) that leave CELLS x CELLS cells at the end;
    - elsewhere strides are taken away, one after the other, until the last map has as many cells, or none is left that can go: the second
      (a ResNet's max-pool), the first, then the last and backwards. Patches of convolutional stems (torchvision's Swin, ConvNeXt) shrink
      before all others; where pooling comes before any other stride (VGG), the last go first.

    `mean` and `std` are those of the library's published weights, where they are not ImageNet's. Where nothing helps, the network is the
    published one: look at the size of its map. ValueError where it cannot take such images.
    """
    make, common = Foreign(library, name), {"size": size, "classes": classes, "release": _release(library), **_normalization(library, name)}
    common = {k: v for k, v in common.items() if v is not None}
    found, cells, said = None, -1, None
    for options in _options(make, size):
        try:
            now = _cells(_outputs(make, **common, options=options))
        except Exception as error:  # whatever a network says of an option that it does not know, or of an image that it cannot take
            said = said or error
            continue
        if now > cells:
            found, cells = {**common, **({"options": options} if options else {})}, now
        if cells >= CELLS:
            return found
    if found is None:
        raise ValueError(f"{library}/{name} cannot take images of {size} pixels: {first_line(said)}")
    strides, published = {}, cells
    for change in _changes(_outputs(make, **found)):
        trial = {**strides, **change}
        try:
            now = _cells(_outputs(make, **found, strides=trial))
        except Exception:  # branches that no longer fit together, a fixed number of tokens
            continue
        if now >= cells:  # equal where the last map had one cell
            strides, cells = trial, now
        if cells >= CELLS:
            break
    return {**found, "strides": strides} if cells > published else found


def layers(make: Foreign, given: dict) -> Layers:
    """Which layers play which part, found by a run on shapes alone.

    `map` is the last map before pooling, `flatten` what the last linear layer gets, `depths` the last layer of each resolution (in
    ResNets also the max-pool's place, so that there are the paper's seven), `hint` that of the middle resolution, rounded down: in ResNets
    and Swin transformers after the second stage, as in the paper (appendix). In VGGs `hint` is the convolution that the paper names,
    or its batch norm, before ReLU. In a transformer of equal blocks it is the last block's patches, `map` the norm before that block's
    attention, as only the class token counts behind it, and `depths` four blocks. ValueError for other forms.
    """
    outputs, name = _outputs(make, **given), f"{make.library}/{make.name}"
    linear = [o.name for o in outputs if isinstance(o.module, nn.Linear) and o.shape == (2, given.get("classes", 10))]
    if not linear:
        raise ValueError(f"{name} does not end in a linear layer; name the layers to tap yourself")
    flatten, last = f"{linear[-1]}:input", _spatial(outputs)[-1:]
    if not last:
        raise ValueError(f"{name} has no map of more than one cell on images of {given['size']} pixels; take larger ones")
    if len(last[0].shape) == 3:
        return _of_blocks(name, outputs, flatten)
    ends = _ends([o for o in _spatial(outputs) if len(o.shape) == 4 and _side(o) >= _side(last[0])])  # smaller ones are side branches
    hint, found = ends[(len(ends) - 1) // 2], [o.name for o in outputs]
    if {"maxpool", "layer1", "layer2", "layer3", "layer4"} <= set(found):
        hint, ends = "layer2", ["maxpool", "layer1", "layer2", "layer3", "layer4"]
    elif make.name.startswith("vgg"):
        units = [n for n, after in zip(found, [o.module for o in outputs][1:]) if isinstance(after, nn.ReLU) and n.startswith("features.")]
        hint = units[min(7, {"11": 4, "13": 6}.get(make.name[3:5], 7)) - 1]
    return Layers(map=ends[-1], flatten=flatten, hint=hint, depths=(*ends, flatten, "logits"))


def _of_blocks(name: str, outputs: list["Output"], flatten: str) -> Layers:
    known = {o.name: o for o in outputs}
    blocks = [n for n, o in known.items() if BLOCK.fullmatch(n) and len(o.shape) == 3]
    norm = next((f"{blocks[-1]}.{norm}" for norm in ("norm1", "ln_1") if f"{blocks[-1]}.{norm}" in known), None) if blocks else None
    if norm is None or _side(known[norm]) ** 2 not in (known[norm].shape[1], known[norm].shape[1] - 1):
        raise ValueError(f"{name} ends in tokens that are not one map and at most a class token; name the layers to tap yourself")
    some = [blocks[round(len(blocks) * k / 4) - 1] for k in (1, 2, 3, 4)] if len(blocks) > 4 else blocks
    return Layers(map=f"{norm}:tokens", flatten=flatten, hint=f"{blocks[-1]}:tokens",
                  depths=(*(f"{b}:tokens" for b in some), flatten, "logits"))


class Output(NamedTuple):
    name: str
    module: nn.Module
    before: tuple  # the shape of its input
    shape: tuple
    inner: bool  # whether it is a part of a block, not one of the layers or blocks that follow one another


def shell(make) -> nn.Module:
    """The network that `make` builds, on the meta device: shapes without numbers, so it takes little time, no memory, no random draw."""
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:  # a builder that computes with tensors
        with torch.random.fork_rng(devices=[]):
            return make().to("meta")


def _outputs(make: Foreign, **given) -> list[Output]:
    """What each layer gives for two images, in the order in which layers finish; without those that run more than once."""
    return _run(make, json.dumps(given))


@functools.lru_cache(16)  # whoever chooses a network asks for its layers next
def _run(make: Foreign, text: str) -> list[Output]:
    given = json.loads(text)
    outputs, runs, net = [], {}, shell(lambda: make(**given)).eval()

    def note(name, module, inner, arguments, output):
        runs[name] = runs.get(name, 0) + 1
        if isinstance(output, Tensor) and arguments and isinstance(arguments[0], Tensor):
            outputs.append(Output(name, module, tuple(arguments[0].shape), tuple(output.shape), inner))

    for name, module in net.named_modules():
        if name not in ("", "normalize"):
            parts = name.split(".")
            around = [type(net.get_submodule(".".join(parts[:k]))) for k in range(1, len(parts))]
            inner = not {nn.Sequential, nn.ModuleList}.issuperset(around)
            module.register_forward_hook(lambda module, a, o, name=name, inner=inner: note(name, module, inner, a, o))
    with torch.no_grad():
        logits = net(torch.rand(2, 3, given["size"], given["size"], device="meta"))
    if logits.shape != (2, given.get("classes", 10)):
        raise ValueError(f"it returns {tuple(logits.shape)} for 2 images, not logits")
    return [o for o in outputs if runs[o.name] == 1]


def _spatial(outputs: list[Output]) -> list[Output]:
    """Those of more than one place: (2, c, h, h), (2, h, h, c) or tokens (2, t, c), before the last pooling (in timm's VGG: before the
    convolutions that are its linear layers)."""
    return [o for o in outputs if o.shape[0] == 2 and _side(o) > 1 and not isinstance(o.module, nn.AdaptiveAvgPool2d)
            and not o.name.startswith("pre_logits")]


def _side(o: Output) -> int:
    if len(o.shape) == 3:
        return math.isqrt(o.shape[1])
    return 0 if len(o.shape) != 4 else o.shape[2] if o.shape[2] in (o.shape[3], o.shape[1]) else 0


def _cells(outputs: list[Output]) -> int:
    return max((_side(o) for o in _spatial(outputs)[-1:]), default=0)


def _ends(maps: list[Output]) -> list[str]:
    """The name of the last layer or block of each resolution: of those that finish before the first smaller map. Behind that one,
    larger maps may come in a block's other branch."""
    lasts, start = [], 0
    while start < len(maps):
        side = _side(maps[start])
        stop = next((k for k in range(start, len(maps)) if _side(maps[k]) < side), len(maps))
        level = [o for o in maps[start:stop] if _side(o) == side]
        lasts.append(min(reversed(level), key=lambda o: (o.inner, o.name.count(".") > 1)))
        start = stop
    nhwc = any(o.shape[2] != o.shape[3] for o in lasts)  # asked of all, as one whose side equals its channels does not tell
    return [f"{o.name}:nhwc" if nhwc and o.shape[1] == o.shape[2] else o.name for o in lasts]


def _normalization(library: str, name: str) -> dict:
    """What the library's default weights of that network expect of pixels, if it is not `MEAN` and `STD`."""
    if library == "timm":
        published = _library("timm").models.get_pretrained_cfg(name)
    else:
        models = _library("torchvision").models
        weights = next(iter(models.get_model_weights(name)), None)
        published = weights and weights.DEFAULT.transforms()
    found = {"mean": tuple(getattr(published, "mean", MEAN)), "std": tuple(getattr(published, "std", STD))}
    return {} if found == {"mean": MEAN, "std": STD} else {k: list(v) for k, v in found.items()}


def _options(make: Foreign, size: int):
    """Builder's options to try, the first that leaves enough cells being taken."""
    if make.library == "timm":
        net = shell(lambda: make._published(10))
        patch = next((p for stem in ("patch_embed", "stem") if (p := getattr(getattr(net, stem, None), "patch_size", None))), None)
        if patch is not None:
            yield from ({"img_size": size, "patch_size": p} for p in _divisors(size, patch if isinstance(patch, int) else patch[0]))
        yield from ({"img_size": size}, {})
    elif make.name.startswith("vit_"):
        yield from ({"image_size": size, "patch_size": p} for p in _divisors(size, int(make.name.rpartition("_")[2])))
    elif make.name in ("googlenet", "inception_v3"):
        yield {"aux_logits": False, "init_weights": True}
    else:
        yield {"input_size": [size, size]} if make.name.startswith("maxvit") else {}


def _divisors(size: int, largest: int) -> list[int]:
    return [p for p in range(min(size, largest), 0, -1) if size % p == 0]


def _changes(outputs: list[Output]):
    """Strides to take away, in the order in which to try: each {layer: smaller stride}, for all layers that see maps of one size."""
    levels = {}
    for o in outputs:
        if isinstance(o.module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) and _pair(o.module.stride)[0] > 1:
            levels.setdefault(o.before[-1], {})[o.name] = o.module
    levels = list(levels.values())
    if not levels:
        return
    first = next(iter(levels[0].values()))
    if isinstance(first, nn.Conv2d):
        patches = first.kernel_size == first.stride
        levels = [*(levels[:1] if patches else levels[1::-1]), *reversed(levels[1 if patches else 2:])]
    else:
        levels = levels[::-1]
    for level in levels:
        stride = max(_pair(module.stride)[0] for module in level.values()) // 2
        while stride:
            yield {name: stride for name in level}
            stride //= 2


def _restride(net: nn.Module, layer: str, stride: int) -> None:
    old = net.get_submodule(layer)
    if not isinstance(old, nn.Conv2d):
        old.kernel_size, old.stride, old.padding = stride, stride, 0
    elif old.kernel_size == old.stride:
        net.set_submodule(layer, nn.Conv2d(old.in_channels, old.out_channels, stride, stride, groups=old.groups, bias=old.bias is not None))
    elif stride == 1 and old.in_channels == 3 and old.kernel_size[0] > 3:
        new = nn.Conv2d(3, old.out_channels, 3, padding=1, bias=old.bias is not None)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        net.set_submodule(layer, new)
    else:
        old.stride = (stride, stride)


def _pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _normalized(net: nn.Module, images: tuple) -> tuple:
    return (net.normalize(*images),)


def _release(library: str) -> str | None:
    return _library("timm").__version__ if library == "timm" else None


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = {"timm": "models", "torchvision": "data"}[name]
        raise ValueError(f"{name}'s networks need {name}, which is not installed ({error}); pip install 'kdlib[{extra}]'") from error
