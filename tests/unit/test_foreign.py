"""Networks by name: our own by their size, torchvision's and timm's, with or without weights from a file."""

import dataclasses
import os
import sys
from typing import ClassVar

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from kdlib.distill import Alone, Hint
from kdlib.foreign import shell
from kdlib.measures import Maps
from kdlib.models import Layers, Model, Normalize, features, layers, network, taps
from kdlib.probes.localization import gradcam
from kdlib.store import Store, describe, key
from kdlib.train import OneCycle, Run, finish, fit
from tests.unit import tiny


@dataclasses.dataclass(frozen=True)
class Noise:
    """16 random images of 32 pixels."""

    version: ClassVar[int] = 1

    def train(self, domains, device):
        return Sixteen(*self.test("noise", device))

    def test(self, domain, device):
        return images(32, 16).to(device), torch.arange(16, device=device) % 10


class Sixteen(tiny.Batches):
    n = 16


NOISE = Noise()


def images(size, n=2):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def built(model, seed=0):
    torch.manual_seed(seed)
    return model.build().eval()


def shapes(model, *names):
    """Of what the layers give for an image, without computing it."""
    net, x = shell(model.build).eval(), torch.rand(1, 3, model.arguments["size"], model.arguments["size"], device="meta")
    with torch.no_grad():
        return [tuple(features(net, x, name).shape[1:]) for name in names]


# keys

@pytest.mark.parametrize("name, arguments, as_described, wanted", [
    ("mnistnet", {"size": 16}, {"size": 16}, "ad51314c2f2d607acafad270c9e072ee"),
    ("residual", {"widths": (48, 96, 192), "blocks": 2, "stride": 2}, {"widths": [48, 96, 192], "blocks": 2, "stride": 2},
     "79d0c9a8d1d80cc3ed87fa0c8ec40d36"),
    ("plain", {"widths": [8, 16], "mean": (0.5,)}, {"widths": [8, 16], "mean": [0.5]}, "18436d5b9547f86f7122c2d4ec49141d"),
    ("transformer", {}, {}, "5f7e6a5e1d14d018f237467c9cb06860")])
def test_keys_of_our_own_networks_are_what_they_were(name, arguments, as_described, wanted):
    assert describe(Model(name, arguments)) == {"type": "Model", "version": {"mnistnet": 2}.get(name, 1), "name": name, "arguments": as_described}
    assert key(describe(Model(name, arguments))) == wanted


def test_what_was_done_for_small_images_is_in_the_key():
    one, other = network("resnet18", size=64, classes=10), network("resnet18", size=128, classes=10)
    assert describe(one) == {"type": "Model", "version": 1, "name": "torchvision/resnet18",
                             "arguments": {"size": 64, "classes": 10, "strides": {"maxpool": 1, "conv1": 1}}}
    assert other.arguments == {"size": 128, "classes": 10, "strides": {"maxpool": 1}}
    assert network("resnet18", size=224, classes=10).arguments == {"size": 224, "classes": 10}, "as published"
    assert network("torchvision/resnet18", size=64, classes=10) == one
    theirs = network("timm/resnet18", size=64, classes=10)
    assert theirs.name == "timm/resnet18" and theirs.arguments["release"] == sys.modules["timm"].__version__


def test_another_release_of_timm_is_another_network():
    model = network("timm/resnet18", size=64, classes=10)
    with pytest.raises(ValueError, match=r"^timm/resnet18 was chosen with timm 0\.1, and .* is installed here"):
        dataclasses.replace(model, arguments={**model.arguments, "release": "0.1"}).build()


# our own

@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", ["residual-4x2", "plain-4x2", "transformer-16x3"])
def test_our_own_by_size_have_8_by_8_cells(name, size):
    model = network(name, size=size, classes=7)
    part, net = layers(model), built(model)
    assert model.name == name.partition("-")[0] and net(images(size)).shape == (2, 7)
    assert features(net, images(size), part.map).shape == (2, 16, 8, 8) and features(net, images(size), part.flatten).shape == (2, 16)
    assert features(net, images(size), part.hint).ndim == 4
    depths = [features(net, images(size), layer).ndim for layer in part.depths]
    assert depths == sorted(depths, reverse=True) and depths[-1] == 2 and len(depths) >= 5, "maps, then vectors"


def test_our_own_have_their_widths_and_depths():
    names = "residual-48x2", "plain-24x3", "transformer-128x4"
    residual, plain, transformer = (network(name, size=64, classes=10).arguments for name in names)
    assert residual == {"widths": [48, 96, 192], "blocks": 2, "stride": 2, "classes": 10}
    assert plain == {"widths": [24, 48, 96], "convolutions": 3, "stride": 2, "classes": 10}
    assert transformer == {"width": 128, "depth": 4, "heads": 4, "reduce": 3, "size": 64, "classes": 10}
    assert network("mnistnet", size=28, classes=10).build().fc1.in_features == 9216
    assert layers(Model("residual")) == Layers("map", "flatten", "stage2", ("stem", "stage1", "stage2", "stage3", "flatten", "logits"))
    assert layers(Model("mnistnet")) == Layers("pool", "relu3", "conv2", ("conv1", "conv2", "pool", "relu3", "logits")), "the paper's"
    assert network("plain-8x1", size=128, classes=10).arguments == {"widths": [8, 16, 32], "convolutions": 1, "stride": 4, "kernel": 7, "classes": 10}


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("name", ["residual-4x1", "plain-4x1", "transformer-16x1"])
def test_our_own_see_every_pixel(name, size):
    net, x = built(network(name, size=size, classes=3)), images(size)[:1].requires_grad_()
    first = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    first(x).abs().sum().backward()
    assert x.grad.abs().amin() > 0


def test_widths_that_cannot_be_are_refused_when_named():
    for name, says in ("transformer-6x1", "heads must divide the width"), ("transformer-4x1", "width at least 8 for a stem of 4 convolutions"):
        with pytest.raises(ValueError, match=says):
            network(name, size=128, classes=10)


@pytest.mark.parametrize("size", [0, 16, 48, 100])
@pytest.mark.parametrize("name", ["residual-8x1", "transformer-16x1"])
def test_sizes_of_which_they_make_no_8_by_8_map_are_refused(name, size):
    with pytest.raises(ValueError, match=rf"^{name}: size is a power of two from 32 up, .*; not {size}$"):
        network(name, size=size, classes=10)


# torchvision's and timm's

@pytest.mark.parametrize("name, size", [
    ("resnet18", 64), ("vgg11_bn", 64), ("shufflenet_v2_x0_5", 64), ("timm/vit_tiny_patch16_224", 64),
    ("timm/mobilenetv3_small_050", 64), ("timm/regnetx_002", 64), ("timm/ghostnet_050", 64), ("timm/test_convnext", 64)])
def test_foreign_networks_take_pixels_and_keep_their_maps(name, size):
    model = network(name, size=size, classes=10)
    part, net, x = layers(model), built(model), images(size)
    assert isinstance(next(net.children()), Normalize), "normalisation is the first layer"
    with torch.no_grad(), taps(net, "normalize", part.map, part.hint, part.flatten, *part.depths[:-1]) as seen:
        logits = net(x)
    assert logits.shape == (2, 10) and logits.isfinite().all()
    published = timm.models.get_pretrained_cfg(name[5:]) if name.startswith("timm/") else None
    mean, std = (torch.tensor(v) for v in ((published.mean, published.std) if published else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))))
    torch.testing.assert_close(seen["normalize"][0, :, 0, 0], (x[0, :, 0, 0] - mean) / std)
    assert seen[part.map].shape[2] == seen[part.map].shape[3] >= 7 and seen[part.hint].shape[2] >= seen[part.map].shape[2]
    assert seen[part.flatten].ndim == 2 and part.depths[-2:] == (part.flatten, "logits")
    sides = [seen[layer].shape[2] for layer in part.depths[:-2]]
    assert sides == sorted(sides, reverse=True) and len(sides) >= 3 and sides[-1] == seen[part.map].shape[2]
    classifier = net.get_submodule(part.flatten.removesuffix(":input"))
    torch.testing.assert_close(classifier(seen[part.flatten]), logits), "what the last linear layer gets"


def test_a_teacher_from_elsewhere_sees_pixels_as_it_did_there(tmp_path):
    torch.manual_seed(0)
    theirs, x = timm.create_model("tf_efficientnet_lite0", num_classes=10).eval(), images(64)
    save_file(theirs.state_dict(), tmp_path / "lite.safetensors")
    ours = network(f"timm/tf_efficientnet_lite0@{tmp_path / 'lite.safetensors'}", size=64, classes=10)
    config = timm.data.resolve_model_data_config(theirs)
    assert config["mean"] == (0.5, 0.5, 0.5) and ours.arguments["mean"] == [0.5, 0.5, 0.5] == ours.arguments["std"]
    net = ours.build().eval()
    for name, layer in net.named_modules():  # strides that were taken away would change what it says
        if name in ours.arguments.get("strides", {}):
            layer.stride = theirs.get_submodule(name).stride
    net.load_state_dict(theirs.state_dict(), strict=False)
    with torch.no_grad():
        torch.testing.assert_close(net(x), theirs((x - 0.5) / 0.5))
    assert network("efficientnet_v2_l", size=64, classes=10).arguments["mean"] == [0.5, 0.5, 0.5]
    assert not {"mean", "std"} & network("resnet18", size=64, classes=10).arguments.keys(), "ImageNet's"


def test_maps_of_as_many_channels_as_rows_have_their_axes_where_the_others_have_them():
    model = network("swin_t", size=96, classes=10)
    part = layers(model)
    assert part.depths[:4] == ("features.1:nhwc", "features.3:nhwc", "features.5:nhwc", "permute"), "the last map is turned by the network itself"
    assert not any(layer.endswith(":nhwc") for layer in layers(network("resnet18", size=64, classes=10)).depths)


def test_equal_seeds_give_equal_weights():
    model = network("timm/mobilenetv3_small_050", size=64, classes=10)
    one, same, other = (built(model, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.values(), same.values()))
    assert not torch.equal(one["classifier.weight"], other["classifier.weight"])


def test_published_networks_are_untouched():
    model = network("resnet18", size=224, classes=10)
    ours = built(model)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    x, normalize = images(224, 1), torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(normalize(x)), rtol=1e-6, atol=1e-6)
    assert [n for n in ours.state_dict() if not n.startswith("normalize.")] == list(theirs.state_dict())


def test_stems_for_small_images():
    small, middle = (shell(network("resnet18", size=size, classes=10).build) for size in (64, 128))
    assert (small.conv1.kernel_size, small.conv1.stride, small.maxpool.kernel_size) == ((3, 3), (1, 1), 1)
    assert (middle.conv1.kernel_size, middle.conv1.stride, middle.maxpool.kernel_size) == ((7, 7), (2, 2), 1)
    assert shell(network("vit_b_32", size=64, classes=10).build).conv_proj.kernel_size == (8, 8)
    assert shell(network("vit_b_32", size=224, classes=10).build).conv_proj.kernel_size == (32, 32)
    assert shell(network("swin_t", size=128, classes=10).build).features[0][0].kernel_size == (2, 2)
    x = images(8)
    assert torch.equal(nn.MaxPool2d(1, 1, 0)(x), x), "so is a max-pool that lost its stride: nothing"


@pytest.mark.parametrize("name, size, cells, hint", [
    ("resnet50", 224, 7, ("layer2", 28)), ("resnet50", 128, 8, ("layer2", 32)),
    ("vgg11", 224, 7, ("features.8", 56)), ("vgg19", 224, 7, ("features.14", 56)), ("vgg19_bn", 64, 8, ("features.21", 16)),
    ("swin_t", 224, 7, ("features.3:nhwc", 28)), ("vit_b_32", 224, 7, ("encoder.layers.encoder_layer_11:tokens", 7)),
    ("timm/swin_tiny_patch4_window7_224", 64, 8, ("layers.1:nhwc", 32)), ("timm/ghostnetv2_100", 64, 8, ("blocks.3", 32))])
def test_hints_are_the_papers_and_maps_have_their_cells(name, size, cells, hint):
    model = network(name, size=size, classes=10)
    part = layers(model)
    last, middle, flat = shapes(model, part.map, part.hint, part.flatten)
    assert last[1:] == (cells, cells) and len(flat) == 1
    assert (part.hint, middle[1]) == hint and middle[1] == middle[2]


def test_the_seven_features_of_the_papers_ablation():
    model = network("resnet18", size=224, classes=1000)
    part = layers(model)
    assert part.depths == ("maxpool", "layer1", "layer2", "layer3", "layer4", "fc:input", "logits")
    assert shapes(model, *part.depths) == [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512,), (1000,)]


@pytest.mark.parametrize("size", [32, 64, 128, 224])
def test_the_adaptive_pool_of_a_vgg_does_not_enlarge(size):
    model = network("vgg11", size=size, classes=10)
    entered, left = shapes(model, "avgpool:input", "avgpool")
    assert 7 == left[1] <= entered[1]


def test_choosing_a_network_draws_no_random_number():
    before = torch.random.get_rng_state()
    for name in "resnet18", "regnet_y_400mf":  # the latter's builder computes with tensors
        layers(network(name, size=64, classes=10))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name, size, says", [
    ("squeezenet1_1", 64, "torchvision/squeezenet1_1 does not end in a linear layer; name the layers"),
    ("timm/deit_tiny_distilled_patch16_224", 64, "timm/deit_tiny_distilled_patch16_224 ends in tokens that are not one map"),
    ("timm/test_resnet", 1, "timm/test_resnet has no map of more than one cell on images of 1 pixels")])
def test_forms_that_have_no_such_layers_say_so(name, size, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        layers(network(name, size=size, classes=10))


def test_images_that_a_network_cannot_take_are_one_clear_line():
    with pytest.raises(ValueError, match="^torchvision/maxvit_t cannot take images of 64 pixels: .*not divisible") as error:
        network("maxvit_t", size=64, classes=10)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, near", [
    ("resnet81", "resnet18"), ("residual-48", "residual-48x2"), ("mobilenetv3_smal_050", "mobilenetv3_small_050"),
    ("timm/ghostnet_05", "timm/ghostnet_050"), ("timm/swin_t", None), ("torchvision/regnetx_002", None), ("hf-hub/x", None)])
def test_unknown_names_suggest_the_nearest_of_all_families(name, near):
    with pytest.raises(ValueError, match=rf"^no network named '{name}'(; did you mean '.*'\?)? \(known: residual-48x2, ") as error:
        network(name, size=64, classes=10)
    assert near is None or f"did you mean '{near}'?" in str(error.value)


def test_libraries_that_are_missing_are_named(monkeypatch):
    for library in "timm", "torchvision":
        monkeypatch.setitem(sys.modules, library, None)
    assert network("residual-4x1", size=32, classes=10).build().fc.out_features == 10
    with pytest.raises(ValueError, match=r"^timm's networks need timm, which is not installed \(.*\); pip install 'kdlib\[models\]'$"):
        network("timm/resnet18", size=64, classes=10)
    lacks = r"^no network named 'resnet18' .*; torchvision's networks need torchvision, .*kdlib\[data\]'; timm's networks"
    with pytest.raises(ValueError, match=lacks):
        network("resnet18", size=64, classes=10)


# views of layers

class Rolled(nn.Module):
    """Gives what a Swin transformer's stages give: (n, h, w, c)."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_tokens_are_maps_without_the_class_token():
    net, x = built(network("timm/test_vit", size=64, classes=10)), images(64)
    with torch.no_grad(), taps(net, "blocks.1", "blocks.1:tokens") as seen:
        net(x)
    tokens, maps = seen["blocks.1"], seen["blocks.1:tokens"]
    assert tokens.shape == (2, 65, 64) and maps.shape == (2, 64, 8, 8)
    for row in range(8):
        for column in range(8):
            assert torch.equal(maps[:, :, row, column], tokens[:, 1 + 8 * row + column])
    own = built(network("transformer-16x1", size=32, classes=10))
    assert torch.equal(features(own, images(32), "norm:tokens"), features(own, images(32), "map")), "without a class token"


def test_nhwc_and_input():
    net, x = nn.Sequential(nn.Conv2d(3, 5, 1), Rolled(), nn.Flatten(), nn.Linear(80, 2)), images(4)
    assert torch.equal(features(net, x, "1:nhwc"), features(net, x, "0"))
    assert torch.equal(net[3](features(net, x, "3:input")), net(x)) and torch.equal(features(net, x, "3:input"), features(net, x, "2"))


def test_logits_are_a_layer_too():
    net, x = built(network("residual-4x1", size=32, classes=10)), images(32)
    with torch.no_grad(), taps(net, "logits") as seen:
        assert torch.equal(net(x), seen["logits"])


@pytest.mark.parametrize("layer, says", [("1:token", "layer '1:token': behind the colon may be one of input, tokens, nhwc"),
                                         ("0:tokens", r"\(2, 5, 4, 4\) are not tokens"), ("4:tokens", "no layer named '4' in Sequential"),
                                         ("3:tokens", r"\(2, 6, 1\) are not tokens")])
def test_views_that_cannot_be_are_one_clear_line(layer, says):
    net = nn.Sequential(nn.Conv2d(3, 5, 1), Rolled(), nn.Flatten(), nn.Linear(80, 6), nn.Identity())[:4]
    net[3] = nn.Sequential(nn.Linear(80, 6), nn.Unflatten(1, (6, 1)))
    with pytest.raises(ValueError, match=f"^{says}"):
        features(net, images(4), layer)


def test_grad_cam_takes_a_view():
    model = network("timm/test_vit", size=32, classes=10)
    net, layer = built(model), layers(model).map
    nn.init.normal_(net.head.weight)
    assert layer.endswith(".norm1:tokens")
    run = Run(NOISE, ("noise",), model, Alone(), OneCycle(1, batch=8), "a")
    x, y = (t[:4] for t in NOISE.test("noise", "cpu"))
    wanted = gradcam(net, x, y, layer=layer.removesuffix(":tokens"), reshape=lambda t: t[:, 1:].unflatten(1, (8, 8)).movedim(3, 1))
    assert torch.equal(Maps(run, NOISE, "noise", layer, 4).of(net), wanted) and (wanted > 0).any()


# weights from files

@pytest.fixture
def trained():
    return built(network("residual-4x1", size=32, classes=10), seed=1)


def write(form, net, folder):
    state = net.state_dict()
    file = folder / f"w.{form.split()[0]}"
    if form == "safetensors":
        save_file(state, file)
    else:
        script = {"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}
        torch.save(script if form == "pth of a script" else state, file)
    return file


@pytest.mark.parametrize("form", ["safetensors", "pth", "pt", "pth of a script"])
def test_weights_come_back(form, trained, tmp_path):
    model = network(f"residual-4x1@{write(form, trained, tmp_path)}", size=32, classes=10)
    net = built(model, seed=2)
    assert all(torch.equal(a, net.state_dict()[n]) for n, a in trained.state_dict().items())


def test_weights_of_a_published_network_come_without_normalisation_and_counters(tmp_path):
    state = {n: t for n, t in torchvision.models.resnet18(num_classes=10).state_dict().items() if not n.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    net = network(f"resnet18@{tmp_path / 'old.pth'}", size=128, classes=10).build()
    assert torch.equal(net.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert net.normalize.std.flatten()[0].item() == pytest.approx(0.229)


def test_the_key_holds_the_files_digest_and_not_its_place(trained, tmp_path):
    file = write("safetensors", trained, tmp_path)
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / "v.safetensors"
    other.write_bytes(file.read_bytes())
    one, same = (network(f"residual-4x1@{f}", size=32, classes=10) for f in (file, other))
    assert one == same and describe(one) == describe(same) and str(tmp_path) not in str(describe(one)) + repr(one)
    assert describe(one) == {**describe(network("residual-4x1", size=32, classes=10)), "weights": one.weights} and len(one.weights) == 64
    assert dataclasses.replace(one, weights="0" * 64) != one
    write("safetensors", built(network("residual-4x1", size=32, classes=10), seed=3), tmp_path)
    with pytest.raises(ValueError, match=r"^weights: .*w\.safetensors has changed: its SHA-256 is "):
        one.build()
    with pytest.raises(ValueError, match=r"^weights: cannot read \(no file given for SHA-256 [0-9a-f]{64}\): No such file"):
        Model(one.name, one.arguments, one.weights).build()


def test_a_run_of_no_epochs_takes_a_network_as_it_is(trained, tmp_path):
    model = network(f"residual-4x1@{write('pth', trained, tmp_path)}", size=32, classes=10)
    net, info = fit(Run(NOISE, ("noise",), model, Alone(), OneCycle(0, batch=8), "a"))
    assert info["loss"] == [] and all(torch.equal(a, net.state_dict()[n]) for n, a in trained.state_dict().items())


@pytest.mark.parametrize("name, says", [
    ("residual-6x1", r"ResidualNet: stem\.0\.weight is \(4, 3, 3, 3\), not \(6, 3, 3, 3\); stem\.1\.weight is .*; .*; and \d+ more$"),
    ("plain-4x2", r"PlainNet: .*is missing"),
    ("resnet18", r"ResNet: fc\.weight is \(10, 16\), not \(10, 512\); conv1\.weight is missing; bn1\.weight is missing; and \d+ more$")])
def test_weights_that_do_not_fit_name_the_first_mismatches(name, says, trained, tmp_path):
    with pytest.raises(ValueError, match=rf"^weights: .*w\.safetensors does not fit {says}") as error:
        network(f"{name}@{write('safetensors', trained, tmp_path)}", size=32, classes=10)
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['TRAP']}",)


def test_code_in_a_pickle_is_refused_and_not_run(monkeypatch, trained, tmp_path):
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    torch.save({**trained.state_dict(), "trap": Trap()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"^weights: .*w\.pth is damaged or holds more than tensors, and code is never loaded") as error:
        network(f"residual-4x1@{tmp_path / 'w.pth'}", size=32, classes=10)
    assert not (tmp_path / "sprung").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("name, content, says", [
    ("none.pth", None, "cannot read .*none.pth: No such file or directory"), ("w.npz", b"", "w.npz is neither .safetensors nor"),
    ("w.safetensors", b"xyz", "w.safetensors is damaged"), ("w.pth", b"xyz", "w.pth is damaged"),
    ("w.pt", b"PK\x03\x04xyz", "w.pt is damaged"), ("w.pt", b"", "w.pt is damaged")])
def test_files_that_hold_no_weights_are_one_clear_line(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^weights: .*{says}") as error:
        network(f"residual-4x1@{tmp_path / name}", size=32, classes=10)
    assert "\n" not in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt does not hold a dictionary of tensors"):
        network(f"residual-4x1@{tmp_path / 'list.pt'}", size=32, classes=10)


# training

def test_every_depth_can_be_a_hint():
    model = network("residual-4x1", size=32, classes=10)
    common = dict(data=NOISE, domains=("noise",), schedule=OneCycle(1, batch=8, lr=0.01), model=model)
    teacher = Run(objective=Alone(), seed="teacher-0", **common)
    net, losses = fit(teacher)[0], []
    for layer in layers(model).depths:
        losses += fit(Run(objective=Hint(0.0, 1.0, layer, layer), seed="student-0", teacher=teacher, **common), net)[1]["loss"]
    assert len(set(losses)) == 6 and min(losses) > 0, "each its own"


def test_a_foreign_pair_is_trained_stored_and_read(tmp_path):
    student, teacher = (network(name, size=32, classes=10) for name in ("resnet18", "timm/test_resnet"))
    assert all(shapes(model, layers(model).map)[0][1] == 8 for model in (student, teacher))
    common = dict(data=NOISE, domains=("noise",), schedule=OneCycle(1, batch=8, lr=0.01))
    taught_by = Run(model=teacher, objective=Alone(), seed="teacher-0", **common)
    hint = Hint(1.0, 1.0, layers(student).hint, layers(teacher).hint)
    run, store = Run(model=student, objective=hint, seed="student-0", teacher=taught_by, **common), Store(tmp_path)
    net = finish(run, store)
    start = built(student)
    assert not torch.equal(net.layer1[0].conv1.weight, start.layer1[0].conv1.weight) and torch.isfinite(net.fc.weight).all()
    again = finish(run, store)
    assert again is not net and torch.equal(again(images(32)), net(images(32)))
    assert len(list((tmp_path / "run").iterdir())) == 2
