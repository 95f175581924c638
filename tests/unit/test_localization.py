import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdlib.data.digits import Digits
from kdlib.distill import Alone
from kdlib.measures import MapCosine, Maps
from kdlib.models import MnistNet, Model
from kdlib.probes import localization
from kdlib.probes.localization import closer, cosine, energy, gradcam, integrated_gradients, nearer, pointing
from kdlib.store import Store
from kdlib.study import complete
from kdlib.train import Adadelta, Run


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def fixed(layer, weight, bias=None):
    layer.weight.data = torch.tensor(weight).view_as(layer.weight)
    if layer.bias is not None:
        layer.bias.data = torch.tensor(bias)
    return layer


def named(**layers):
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net.eval()


def pooled():
    """Maps x and -2x of grey images, global average pooling, a linear head."""
    return named(maps=fixed(nn.Conv2d(1, 2, 1, bias=False), [1.0, -2]), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
                 head=fixed(nn.Linear(2, 2), [[3.0, 1], [1, 2]], [5.0, -7]))


def rectified():
    """The same maps on two cells, then an inplace ReLU and a linear layer on all four numbers."""
    return named(maps=fixed(nn.Conv2d(1, 2, 1, bias=False), [1.0, -2]), relu=nn.ReLU(inplace=True), flat=nn.Flatten(),
                 head=fixed(nn.Linear(4, 2), [[1.0, 3, 5, 7], [0, -6, -4, 0]], [0.0, 0]))


def check(found, wanted, tolerance=1e-5):
    """Equal, as measured by the largest value: random networks' maps are small."""
    assert found.shape == wanted.shape and wanted.abs().max() > 0
    assert (found - wanted).abs().max() <= tolerance * wanted.abs().max(), (found - wanted).abs().max() / wanted.abs().max()


def resnet18():
    torch.manual_seed(0)
    return torchvision.models.resnet18(num_classes=10).eval()


def vgg11():
    torch.manual_seed(0)
    net = torchvision.models.vgg11(num_classes=10)
    net.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))  # smaller, so quicker
    return net.eval()


def vit():
    torch.manual_seed(0)
    net = torchvision.models.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32,
                                               num_classes=5)
    nn.init.normal_(net.heads.head.weight)  # zero as it comes
    return net.eval()


def tokens(t):
    return t[:, 1:].unflatten(1, (4, 4)).movedim(3, 1)


LAYERS = [(resnet18, "layer4"), (resnet18, "layer2"), (vgg11, "features"), (vgg11, "features.10")]


# Grad-CAM

def test_gradcam_before_pooling_by_hand():
    x = torch.tensor([[[[1.0, 2], [3, -4]]], [[[1.0, 0], [0, 0]]]])
    # class 0: w = (3, 1) / 4, so the map is relu(3 x - 2 x) / 4; class 1: w = (1, 2) / 4, relu(x - 4 x) / 4
    assert gradcam(pooled(), x, torch.tensor([0, 1]), layer="maps").tolist() == [[[0.25, 0.5], [0.75, 0]], [[0, 0], [0, 0]]]
    assert gradcam(pooled(), x, torch.tensor([1, 0]), layer="maps").tolist() == [[[0, 0], [0, 3]], [[0.25, 0], [0, 0]]]


def test_gradcam_before_an_inplace_relu_by_hand():
    x = torch.tensor([[[[2.0, -1]]], [[[2.0, -1]]]])  # maps (2, -1) and (-4, 2): the first passes in cell 0, the second in cell 1
    # class 0: w = (1 / 2, 7 / 2), 1/2 (2, -1) + 7/2 (-4, 2) = (-13, 6.5); class 1: w = (0, 0)
    assert gradcam(rectified(), x, torch.tensor([0, 1]), layer="maps").tolist() == [[[0, 6.5]], [[0, 0]]]


def test_a_map_shows_where_the_class_is():
    # class 0 is the amount of red, class 1 of green; a red and a green square on blue
    net = named(maps=fixed(nn.Conv2d(3, 2, 1, bias=False), [1.0, 0, 0, 0, 1, 0]), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(),
                head=fixed(nn.Linear(2, 2), [[1.0, -1], [-1, 1]], [0.0, 0]))
    x, red, green = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)
    red[:, :3, :3], green[:, 4:, 5:], x[:, 2] = True, True, 1
    x[:, 0][red] = x[:, 1][green] = 1
    for y, inside, outside in (0, red, green), (1, green, red):
        maps = gradcam(net, x, torch.tensor([y]), layer="maps")
        assert energy(maps, inside) == pointing(maps, inside) == 1 and energy(maps, outside) == pointing(maps, outside) == 0


def test_before_pooling_the_weights_are_the_heads_rows():
    net, x, y = resnet18(), draw(3, 3, 64, 96), torch.tensor([0, 9, 4])
    maps = gradcam(net, x, y, layer="layer4")
    with torch.no_grad():
        a = nn.Sequential(*list(net.children())[:-2])(x)
        wanted = torch.einsum("nc,nchw->nhw", net.fc.weight[y] / 6, a).relu()
    check(maps, wanted)


@pytest.mark.parametrize("make, layer", [*LAYERS, (resnet18, "layer3.0.bn2"), (vgg11, "features.8"), (vgg11, "classifier.0")])
def test_gradcam_by_a_whole_backward_pass(make, layer):
    """Also where what follows overwrites the layer's output: an inplace ReLU, a residual sum."""
    net, x, y, kept = make(), draw(3, 3, 64, 64), torch.tensor([1, 2, 3]), {}
    reshape = (lambda t: t[:, :, None, None]) if layer == "classifier.0" else None  # 64 maps of one cell
    maps = gradcam(net, x, y, layer=layer, reshape=reshape)

    def keep(module, args, output):
        kept["a"], kept["at once"] = output, output.detach().clone()
        output.retain_grad()
        return output.clone()

    net.get_submodule(layer).register_forward_hook(keep)
    net(x)[range(3), y].sum().backward()
    a, g = (t if reshape is None else reshape(t) for t in (kept["at once"], kept["a"].grad))
    check(maps, torch.einsum("nc,nchw->nhw", g.mean((2, 3)), a).relu())


@pytest.mark.parametrize("make, layer", LAYERS)
def test_gradcam_is_captums(make, layer):
    attr = pytest.importorskip("captum.attr")
    net, x, y = make(), draw(4, 3, 64, 64), torch.tensor([3, 1, 4, 1])
    theirs = attr.LayerGradCam(net, net.get_submodule(layer)).attribute(x, target=y, relu_attributions=True)
    check(gradcam(net, x, y, layer=layer), theirs[:, 0].detach())


def their_maps(net, x, y, layer, reshape=None):
    """pytorch-grad-cam's map before it is scaled to its own minimum and maximum."""
    cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(label)) for label in y]
    with cam.GradCAM(net, [net.get_submodule(layer)], reshape_transform=reshape) as method:
        method(x, targets)
        a, g = method.activations_and_grads.activations[0].numpy(), method.activations_and_grads.gradients[0].numpy()
        return torch.from_numpy(method.get_cam_image(x, None, targets, a, g)).relu()


@pytest.mark.parametrize("make, layer", LAYERS)
def test_gradcam_is_pytorch_grad_cams(make, layer):
    net, x, y = make(), draw(4, 3, 64, 64), torch.tensor([3, 1, 4, 1])
    check(gradcam(net, x, y, layer=layer), their_maps(net, x, y, layer))


def test_gradcam_of_tokens_is_pytorch_grad_cams():
    net, x, y, layer = vit(), draw(4, 3, 32, 32), torch.tensor([3, 1, 4, 1]), "encoder.layers.encoder_layer_1.ln_1"
    check(gradcam(net, x, y, layer=layer, reshape=tokens), their_maps(net, x, y, layer, tokens))


def test_gradcam_of_tokens_by_a_whole_backward_pass():
    net, x, y, kept = vit(), draw(2, 3, 32, 32), torch.tensor([3, 1]), []
    block = "encoder.layers.encoder_layer_1"
    maps, behind = (gradcam(net, x, y, layer=layer, reshape=tokens) for layer in (f"{block}.ln_1", block))
    net.get_submodule(f"{block}.ln_1").register_forward_hook(lambda module, args, output: kept.append(output))
    score = net(x)[range(2), y].sum()
    a, g = (t.detach()[:, 1:].view(2, 4, 4, 16) for t in (kept[0], torch.autograd.grad(score, kept[0])[0]))
    check(maps, (g.mean((1, 2), keepdim=True) * a).sum(3).relu())
    assert (behind == 0).all(), "only the class token is read"


@pytest.mark.parametrize("batch", [1, 2, 5, 250])
def test_gradcam_of_an_image_depends_on_no_other(batch):
    net, x, y = resnet18(), draw(5, 3, 32, 64), torch.tensor([3, 1, 4, 1, 5])
    one_by_one = torch.cat([gradcam(net, x[i:i + 1], y[i:i + 1], layer="layer3") for i in range(5)])
    check(gradcam(net, x, y, layer="layer3", batch=batch), one_by_one)


def operations(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_only_the_gradient_at_the_layer_is_computed():
    net = named(a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 5, 3), c=nn.Conv2d(5, 6, 3), d=nn.Conv2d(6, 7, 3), pool=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten())
    x, y = draw(2, 3, 12, 12).requires_grad_(), torch.tensor([0, 3])
    forward = operations(lambda: net(x.detach()))
    behind = 2 * 2 * 9 * (6 * 6 * 5 * 6 + 4 * 4 * 6 * 7)  # a gradient costs c and d, at 6 x 6 and 4 x 4 places, what their outputs cost
    assert operations(lambda: gradcam(net, x, y, layer="b")) == forward + behind
    assert x.grad is None and all(p.grad is None for p in net.parameters())


def test_before_pooling_it_costs_the_heads_product_beside_the_forward_pass():
    net, x, y = resnet18(), draw(2, 3, 64, 64), torch.tensor([0, 3])
    assert operations(lambda: gradcam(net, x, y, layer="layer4")) == operations(lambda: net(x)) + 2 * 2 * 512 * 10


@pytest.mark.parametrize("probe", [lambda net, x, y: gradcam(net, x, y, layer="layer2"),
                                   lambda net, x, y: integrated_gradients(net, x, y, steps=2)], ids=["gradcam", "integrated"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_nothing_is_left_behind_in_any_grad_mode(probe, mode):
    net, x, y = resnet18(), draw(2, 3, 32, 32), torch.tensor([0, 1])
    net.layer1.requires_grad_(False)
    flags, state = [p.requires_grad for p in net.parameters()], {name: t.clone() for name, t in net.state_dict().items()}
    wanted = probe(net, x, y)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        maps = probe(net, x.clone(), y.clone())
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(maps, wanted) and not maps.requires_grad and maps.dtype == torch.float32
    assert not net.training and [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters()) and not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(state[name], t) for name, t in net.state_dict().items())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.unused, self.beside = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x):
        self.beside(x)
        return self.conv(self.conv(x)).mean((2, 3))


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(3, 3, 1)

    @torch.no_grad()
    def forward(self, x):
        return self.maps(x).mean((2, 3))


@pytest.mark.parametrize("make, layer, words", [
    (resnet18, "layer_4", r"gradcam: no layer named 'layer_4' in ResNet; did you mean 'layer4'"),
    (resnet18, "fc", r"layer 'fc' gives \(2, 10\), not maps \(n, c, h, w\)"),
    (vit, "encoder.ln", r"layer 'encoder.ln' gives \(2, 17, 16\), not maps"),
    (vit, "encoder.layers.encoder_layer_0.self_attention", "gives a tuple, not maps"),
    (Twice, "conv", "layer 'conv' is run 2 times for an image, not once"),
    (Twice, "unused", "layer 'unused' is run 0 times for an image, not once"),
    (Twice, "beside", "the logits do not depend on layer 'beside'"),
    (Cut, "maps", "the logits do not depend on layer 'maps'"),
])
def test_a_layer_without_a_map_is_refused(make, layer, words):
    net = make().eval()
    with pytest.raises(ValueError, match=words):
        gradcam(net, draw(2, 3, 32, 32), torch.tensor([0, 1]), layer=layer)
    assert not any(m._forward_hooks for m in net.modules()) and torch.is_grad_enabled()


@pytest.mark.parametrize("probe", [lambda net, x, y: gradcam(net, x, y, layer="layer4"), integrated_gradients], ids=["gradcam", "integrated"])
def test_train_mode_and_wrong_classes_are_refused(probe):
    net, x = resnet18(), draw(2, 3, 32, 32)
    for wrong in [0, 10], [-1, 0]:
        with pytest.raises(ValueError, match="the network has 10 classes, y are from"):
            probe(net, x, torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"a class for each image, got y \(1,\) for x \(2, 3, 32, 32\)"):
        probe(net, x, torch.tensor([0]))
    net.layer1[0].bn1.train()
    with pytest.raises(ValueError, match="train mode"):
        probe(net, x, torch.tensor([0, 1]))


# integrated gradients

class Polynomial(nn.Module):
    """logit_0 = sum of x^power over all pixels, logit_1 = twice that."""

    def __init__(self, power):
        super().__init__()
        self.power = power

    def forward(self, x):
        score = (x**self.power).sum((1, 2, 3))
        return torch.stack([score, 2 * score], 1)


@pytest.mark.parametrize("power, steps", [(1, 1), (2, 1), (3, 2), (4, 2), (6, 3)])
def test_integrated_gradients_of_polynomials_are_exact(power, steps):
    x = draw(2, 3, 4, 5)
    found = integrated_gradients(Polynomial(power).eval(), x, torch.tensor([0, 1]), baseline=0.25, steps=steps)
    torch.testing.assert_close(found, torch.tensor([1, 2])[:, None, None] * (x**power - 0.25**power).sum(1), rtol=1e-4, atol=1e-6)


def test_one_node_is_not_enough_for_a_cubic():
    x = draw(2, 3, 4, 5)
    found = integrated_gradients(Polynomial(3).eval(), x, torch.tensor([0, 0]), baseline=0, steps=1)
    torch.testing.assert_close(found, 0.75 * (x**3).sum(1))  # x * 3 (x / 2)^2


def test_the_baseline_is_grey_a_number_or_an_image():
    net, x, y, image = Polynomial(2).eval(), draw(2, 3, 4, 5), torch.tensor([0, 0]), draw(3, 4, 5, seed=1)
    torch.testing.assert_close(integrated_gradients(net, x, y), (x**2 - 0.25).sum(1))
    torch.testing.assert_close(integrated_gradients(net, x, y, baseline=image), (x**2 - image**2).sum(1))


def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, 4)).eval()


@pytest.mark.parametrize("make, size, steps, tolerance", [(smooth, 12, 32, 1e-5), (resnet18, 32, 64, 0.05)])
def test_integrated_gradients_are_complete(make, size, steps, tolerance):
    net, x, y = make(), draw(3, 3, size, size), torch.tensor([3, 0, 2])
    with torch.no_grad():
        wanted = (net(x) - net(torch.full_like(x, 0.5)))[range(3), y]
    check(integrated_gradients(net, x, y, steps=steps).sum((1, 2)), wanted, tolerance)


def test_integrated_gradients_depend_on_no_other_image():
    net, x, y = resnet18(), draw(3, 3, 32, 32), torch.tensor([7, 0, 2])
    check(integrated_gradients(net, x, y, steps=3, batch=2), integrated_gradients(net, x, y, steps=3))


@pytest.mark.parametrize("make", [smooth, resnet18, vit])
def test_integrated_gradients_are_captums(make):
    attr = pytest.importorskip("captum.attr")
    net, y = make(), torch.tensor([3, 1])
    x = draw(2, 3, 12 if make is smooth else 32, 12 if make is smooth else 32)
    theirs = attr.IntegratedGradients(net).attribute(x, baselines=0.5, target=y, n_steps=16, method="gausslegendre")
    check(integrated_gradients(net, x, y, steps=16), theirs.sum(1).float())


# how alike

def test_cosine_by_hand():
    a = torch.tensor([[[3.0, 0], [4, 0]], [[1.0, 1], [1, 1]], [[0.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[1.0, 0], [0, 0]]])
    b = torch.tensor([[[3.0, 0], [0, 4]], [[0.0, 5], [0, 0]], [[1.0, 0], [0, 0]], [[0.0, 0], [0, 0]], [[0.0, 7], [0, 0]]])
    assert cosine(a, b).tolist()[:2] == pytest.approx([9 / 25, 1 / 2]) and cosine(a, b)[2:4].isnan().all() and cosine(a, b)[4] == 0
    assert cosine(a, -2 * a)[[0, 1, 4]].tolist() == [-1, -1, -1]


def test_cosine_is_torchs_and_knows_no_scale():
    a, b = draw(20, 7, 7), draw(20, 7, 7, seed=1)
    wanted = F.cosine_similarity(a.flatten(1), b.flatten(1))
    for scale in 1, 1e-30, 1e30, 1e-38:
        torch.testing.assert_close(cosine(scale * a, b), wanted, rtol=1e-4, atol=0)
    levels = (255 * a).round().byte()
    assert torch.equal(cosine(levels, b.half()), cosine(levels.float(), b.half().float()))


def test_maps_of_different_size_meet_on_the_smaller_grid():
    a, b, wide = draw(3, 8, 8), draw(3, 4, 4, seed=1), draw(3, 2, 8, seed=2)
    coarse = a.view(3, 4, 2, 4, 2).mean((2, 4))
    torch.testing.assert_close(cosine(a, b), F.cosine_similarity(coarse.flatten(1), b.flatten(1)))
    assert torch.equal(cosine(a, b), cosine(b, a))
    torch.testing.assert_close(cosine(b, wide), cosine(b.view(3, 2, 2, 4).mean(2), wide.view(3, 2, 4, 2).mean(3)))


def test_nearer_by_hand():
    teacher = torch.tensor([[[1.0, 0]]] * 8)
    near, far, zero = [[1.0, 0]], [[1.0, 1]], [[0.0, 0]]
    one = torch.tensor([near, far, near, far, zero, near, zero, [[2.0, 0]]])
    other = torch.tensor([far, near, near, far, near, zero, zero, [[1.0, 0]]])
    assert nearer(teacher, one, other).tolist() == [1, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert nearer(teacher * 0, one, other).tolist() == [0.5] * 8
    assert closer(torch.tensor([0.2, 0.1, math.nan, 0.3]), torch.tensor([0.1, 0.1, 0.5, math.nan])).tolist() == [1, 0.5, 0.5, 0.5]


def test_two_students_alike_are_equally_near():
    teacher, one, other = (draw(4000, 4, 4, seed=s) for s in (1, 2, 3))
    assert nearer(teacher, one, other).mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(nearer(teacher, one, other), 1 - nearer(teacher, other, one))
    assert nearer(teacher, 0.5 * teacher + 0.5 * one, one).mean() > 0.95


# against masks

def test_energy_by_hand():
    maps = torch.tensor([[[1.0, 3], [0, 4]], [[1.0, -9], [-2, 1]], [[0.0, 0], [0, -1]], [[2.0, 2], [2, 2]]])
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, :2, 1:] = True  # half of the upper left cell, the upper right cell
    found = energy(maps, mask)
    assert found.tolist()[:2] == pytest.approx([(0.5 + 3) / 8, 0.5 / 2]) and found[2].isnan()
    assert found[3] == mask[3].float().mean(), "a flat map has the mask's share"
    torch.testing.assert_close(energy(maps, mask.float() / 2), found / 2, equal_nan=True)


def test_energy_at_full_resolution_is_the_sum_inside():
    maps, mask = draw(5, 9, 7), draw(5, 9, 7, seed=1) > 0.4
    torch.testing.assert_close(energy(maps, mask), (maps * mask).sum((1, 2)) / maps.sum((1, 2)))


def test_pointing_by_hand():
    mask = torch.zeros(1, 6, 4, dtype=torch.bool)
    mask[0, 4, 3] = True  # the middle pixel of the last cell: floor(1.5 * 6 / 2) = 4, floor(1.5 * 4 / 2) = 3
    for maps, wanted in [([[0.0, 0], [0, 2]], 1), ([[2.0, 0], [0, 1]], 0), ([[0.0, 2], [0, 2]], 1 / 2), ([[1.0, 1], [1, 1]], 1 / 4),
                         ([[-1.0, -2], [-3, 1e-20]], 1)]:
        assert pointing(torch.tensor([maps]), mask).item() == wanted, maps
    assert pointing(torch.tensor([[[0.0, -1], [0, 0]]]), mask).isnan().all()
    assert pointing(torch.tensor([[[0.0, 0], [0, 2]]]), 0.5 * mask) == 1 and pointing(torch.tensor([[[0.0, 0], [0, 2]]]), 0.4 * mask) == 0


@pytest.mark.parametrize("cells, pixels, middles", [(1, 5, [2]), (3, 3, [0, 1, 2]), (2, 8, [2, 6]), (3, 7, [1, 3, 5]), (4, 6, [0, 2, 3, 5])])
def test_a_cell_stands_for_its_middle_pixel(cells, pixels, middles):
    maps = torch.eye(cells).view(cells, cells, 1)  # one map for each cell
    inside = torch.stack([pointing(maps, (torch.arange(pixels) == p).view(1, -1, 1).expand(cells, -1, 1)) for p in range(pixels)])
    assert [inside[:, cell].nonzero().flatten().tolist() for cell in range(cells)] == [[m] for m in middles]


@pytest.mark.parametrize("function", [cosine, energy, pointing])
def test_maps_that_do_not_belong_together_are_refused(function):
    for a, b in [(draw(2, 4, 4), draw(3, 4, 4)), (draw(2, 1, 4, 4), draw(2, 4, 4)), (draw(2, 4, 4), draw(2, 16))]:
        with pytest.raises(ValueError, match=r"needs \(n, h, w\) for the same n images"):
            function(a, b)
    if function is not cosine:
        with pytest.raises(ValueError, match=r"masks \(2, 8, 3\) are coarser than maps \(2, 4, 4\)"):
            function(draw(2, 4, 4), draw(2, 8, 3))


# measurements

SUITE = Digits(limit=64)
RUN = Run(data=SUITE, domains=("orig",), model=Model("mnistnet", {"size": 16}), objective=Alone(), schedule=Adadelta(1), seed="a")
OTHER = dataclasses.replace(RUN, seed="b")


def digits_net(seed=0):
    torch.manual_seed(seed)
    return MnistNet(16).eval()


def test_maps_are_stored_by_their_maximum():
    net, (x, y) = digits_net(), SUITE.test("color", "cpu")
    wanted = gradcam(net, x[:20], y[:20], layer="conv2").numpy()
    found = Maps(RUN, SUITE, "color", "conv2", 20).compute(net)["map"]
    assert found.shape == (20, 12, 12) and found.dtype == np.uint8
    top = wanted.max((1, 2), keepdims=True)
    assert (top > 0).any() and (found.max((1, 2)) == np.where(top > 0, 255, 0).ravel()).all()
    np.testing.assert_allclose(found / 255, wanted / np.where(top > 0, top, 1), atol=0.5 / 255 + 1e-6)


def test_zero_maps_stay_zero_and_others_do_not_become_so():
    net = digits_net()
    net.conv2.weight.data *= 0
    net.conv2.bias.data[:] = -1
    assert (Maps(RUN, SUITE, "color", "conv2", 4).compute(net)["map"] == 0).all(), "nothing passes the ReLU, so no gradient comes back"
    net = digits_net()
    net.fc2.weight.data *= 1e-30
    maps = gradcam(net, *(t[:4] for t in SUITE.test("color", "cpu")), layer="conv2")
    found = Maps(RUN, SUITE, "color", "conv2", 4).compute(net)["map"]
    assert 0 < maps.max() < 1e-25 and (found.max((1, 2)) == np.where(maps.amax((1, 2)) > 0, 255, 0)).all()


def test_integrated_maps_are_pooled_and_signed():
    net, (x, y) = digits_net(), SUITE.test("color", "cpu")
    found = Maps(RUN, SUITE, "color", None, 5, "integrated", grid=4).compute(net)["map"]
    wanted = integrated_gradients(net, x[:5], y[:5]).view(5, 4, 4, 4, 4).mean((2, 4)).numpy()
    assert found.shape == (5, 4, 4) and found.dtype == np.int8 and (np.abs(found).max((1, 2)) == 127).all() and found.min() < 0
    np.testing.assert_allclose(found / 127, wanted / np.abs(wanted).max((1, 2), keepdims=True), atol=0.5 / 127 + 1e-5)


@pytest.mark.parametrize("how", [dict(layer="conv2"), dict(layer="conv2", grid=3), dict(layer=None, method="integrated", grid=8)])
def test_cosines_are_those_of_the_maps_before_rounding(how):
    net, teacher = digits_net(0), digits_net(1)
    ours, theirs = (Maps(run, SUITE, "M", items=12, **how) for run in (RUN, OTHER))
    found = MapCosine(ours, theirs).compute(net, teacher)["cosine"]
    assert found.shape == (12,) and found.dtype == np.float16
    np.testing.assert_array_equal(found, cosine(ours.of(net), theirs.of(teacher)).half().numpy())
    stored = cosine(*(torch.from_numpy(m.compute(n)["map"]) for m, n in ((ours, net), (theirs, teacher)))).numpy()
    np.testing.assert_allclose(stored, found, atol=0.01)
    assert (stored != found).any()


def test_every_setting_is_in_the_keys(monkeypatch):
    common = dict(run=RUN, data=SUITE, domain="color", layer="conv2", items=9)
    maps = [Maps(**common | change) for change in ({}, dict(run=OTHER), dict(data=Digits()), dict(domain="M"), dict(layer="conv1"), dict(items=8),
                                                   dict(grid=8), dict(layer=None, method="integrated"))]
    pairs = [MapCosine(maps[0], maps[1]), MapCosine(maps[1], maps[0]), MapCosine(maps[0], maps[0]), MapCosine(maps[4], maps[1])]
    before = [m.key for m in (*maps, *pairs)]
    assert len(set(before)) == len(before)
    assert pairs[0].runs == (RUN, OTHER) and pairs[1].runs == (OTHER, RUN)
    monkeypatch.setattr(Maps, "version", localization.version + 1)
    assert Maps(**common).key not in before and MapCosine(Maps(**common), Maps(**common)).key not in before


def test_maps_that_cannot_be_are_refused():
    for layer, method in ("conv2", "integrated"), (None, "gradcam"), ("conv2", "cam"):
        with pytest.raises(ValueError, match="maps: method is gradcam, at a layer, or integrated, without one"):
            Maps(RUN, SUITE, "color", layer, 5, method)
    with pytest.raises(ValueError, match="maps: a map is one of a layer's output, not of 'conv2:input'"):
        Maps(RUN, SUITE, "color", "conv2:input", 5)
    for change in dict(domain="M"), dict(items=6), dict(layer=None, method="integrated"), dict(data=Digits()):
        common = dict(run=RUN, data=SUITE, domain="color", layer="conv2", items=5)
        with pytest.raises(ValueError, match="not of the same images by the same method"):
            MapCosine(Maps(**common), Maps(**common | change))


def test_a_study_takes_them(tmp_path):
    maps = [Maps(run, SUITE, "orig", "conv2", 6) for run in (RUN, OTHER)]
    found = complete([*maps, MapCosine(*maps)], Store(tmp_path), jobs=ThreadPoolExecutor(1), progress=lambda line: None)
    a, b = (torch.from_numpy(found[m]["map"]) for m in maps)
    np.testing.assert_allclose(found[MapCosine(*maps)]["cosine"], cosine(a, b).numpy(), atol=0.01)
