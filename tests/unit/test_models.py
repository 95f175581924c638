import pytest
import torch
from torch import nn

from kdlib.models import ARCHITECTURES, MnistNet, Model, Normalize, taps

IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return MnistNet(16).eval()


# the paper's network

def test_mnistnet_is_the_examples_network():
    layers = [layer for layer in MnistNet(28) if not isinstance(layer, Normalize)]
    assert [str(layer) for layer in layers] == [str(layer) for layer in (
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(),
        nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))]


def test_mnistnet_has_as_many_parameters():
    # 3*32*9 + 32, 32*64*9 + 64, 9216*128 + 128, 128*10 + 10; the example's one-channel net has 2*32*9 fewer: 1,199,882
    sizes = {name: p.numel() for name, p in MnistNet(28).named_parameters()}
    assert sizes == {"conv1.weight": 864, "conv1.bias": 32, "conv2.weight": 18432, "conv2.bias": 64,
                     "fc1.weight": 1179648, "fc1.bias": 128, "fc2.weight": 1280, "fc2.bias": 10}
    assert sum(sizes.values()) == 1_200_458


@pytest.mark.parametrize("size, classes, inputs", [(28, 10, 9216), (16, 10, 2304), (17, 7, 2304), (6, 2, 64)])
def test_mnistnet_of_other_sizes(size, classes, inputs):
    net = MnistNet(size, classes)
    assert net.fc1.in_features == inputs
    assert net(torch.rand(5, 3, size, size)).shape == (5, classes)


@pytest.mark.parametrize("size", [5, 4, 0])
def test_mnistnet_needs_six_pixels(size):
    with pytest.raises(ValueError, match=rf"^mnistnet: size must be at least 6 pixels, got {size}$"):
        MnistNet(size)


def test_outputs_are_logits(net):
    logits = net(IMAGES)
    assert (logits > 0).any() and not torch.allclose(logits.exp().sum(1), torch.ones(2)), "no softmax inside"


def test_dropout_switch():
    torch.manual_seed(0)
    with_dropout, without = MnistNet(16).train(), MnistNet(16, dropout=False).train()
    assert not torch.equal(with_dropout(IMAGES), with_dropout(IMAGES))
    assert torch.equal(without(IMAGES), without(IMAGES))
    assert torch.equal(with_dropout.eval()(IMAGES), with_dropout(IMAGES))
    assert with_dropout.state_dict().keys() == without.state_dict().keys(), "weights fit both"


def test_equal_seeds_give_equal_weights_with_and_without_dropout():
    nets = []
    for dropout in (True, False):
        torch.manual_seed(0)
        nets.append(MnistNet(16, dropout=dropout).eval())
    assert torch.equal(nets[0](IMAGES), nets[1](IMAGES))


def test_normalisation_is_inside():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    x = torch.full((1, 3, 6, 6), 0.6)
    expected = torch.tensor([1.0, 1.6, 0.15]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    torch.testing.assert_close(Normalize(mean, std)(x), expected)
    assert torch.equal(Normalize()(x), x)
    net = MnistNet(6, mean=mean, std=std).eval()
    with taps(net, "normalize", "conv1") as seen:
        net(x)
    torch.testing.assert_close(seen["normalize"], expected)
    torch.testing.assert_close(seen["conv1"], net.conv1(expected))
    assert {"normalize.mean", "normalize.std"} < set(net.state_dict()), "they travel with the weights"


# taps

def test_taps_record_the_named_layers(net):
    with taps(net, "conv2", "fc1") as seen:
        logits = net(IMAGES)
    before_relu = net.conv2(net.relu1(net.conv1(IMAGES)))
    assert torch.equal(seen["conv2"], before_relu) and (before_relu < 0).any()
    assert torch.equal(seen["fc1"], net.fc1(net.flatten(net.pool(before_relu.relu()))))
    assert set(seen) == {"conv2", "fc1"} and logits.shape == (2, 10)


def test_taps_change_nothing_and_let_gradients_through(net):
    plain, x = net(IMAGES), IMAGES.clone().requires_grad_()
    with taps(net, "conv2") as seen:
        assert torch.equal(net(x), plain)
    seen["conv2"].square().sum().backward()
    assert x.grad.abs().sum() > 0 and net.conv1.weight.grad.abs().sum() > 0


def test_taps_hold_the_last_batch(net):
    with taps(net, "conv1") as seen:
        net(IMAGES)
        net(IMAGES[:1])
    assert torch.equal(seen["conv1"], net.conv1(IMAGES[:1]))


def hooks(net):
    return sum(len(module._forward_hooks) for module in net.modules())


def test_taps_are_removed_after_the_block(net):
    with taps(net, "conv1", "conv2") as seen:
        assert hooks(net) == 2
    net(IMAGES)
    assert hooks(net) == 0 and not seen


def test_taps_are_removed_after_an_exception(net):
    with pytest.raises(ZeroDivisionError):
        with taps(net, "conv1", "conv2"):
            1 / 0
    assert hooks(net) == 0


def test_taps_nest(net):
    with taps(net, "conv1") as outer, taps(net, "conv1", "conv2") as inner:
        net(IMAGES)
    assert torch.equal(outer["conv1"], inner["conv1"]) and set(outer) == {"conv1"}


def test_taps_find_layers_inside_layers():
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), nn.Linear(3, 2))
    x = torch.rand(4, 2)
    with taps(net, "0.0") as seen:
        net(x)
    assert torch.equal(seen["0.0"], net[0][0](x))


def test_an_unknown_layer_suggests_the_nearest(net):
    message = r"^no layer named 'convv2' in MnistNet; did you mean 'conv2'\? \(known: normalize, conv1, .*fc2\)$"
    with pytest.raises(ValueError, match=message):
        with taps(net, "conv1", "convv2"):
            pass
    with pytest.raises(ValueError, match=r"^no layer named 'xyzzy' in MnistNet \(known: "):
        with taps(net, "xyzzy"):
            pass
    assert hooks(net) == 0


# models by name

def test_model_builds_by_name():
    net = Model("mnistnet", {"size": 16, "classes": 3}).build()
    assert isinstance(net, MnistNet) and net(IMAGES).shape == (2, 3)
    assert Model("mnistnet").build().fc1.in_features == 9216
    assert Model("mnistnet").version == MnistNet.version


def test_equal_models_are_equal_values():
    one, same, other = (Model("mnistnet", {"size": size}) for size in (16, 16, 28))
    assert one == same and hash(one) == hash(same) and one != other


@pytest.mark.parametrize("use", [Model.build, lambda model: model.version])
def test_an_unknown_model_suggests_the_nearest(use):
    with pytest.raises(ValueError, match=r"^no model named 'mnistnett'; did you mean 'mnistnet'\? \(known: mnistnet"):
        use(Model("mnistnett"))
    with pytest.raises(ValueError, match=r"^no model named 'xyzzy' \(known: "):
        use(Model("xyzzy"))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_takes_pixels_and_gives_logits(name):
    net = Model(name, {"size": 32} if name in ("mnistnet", "transformer") else {}).build().eval()
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10) and isinstance(net.version, int)
    assert isinstance(next(net.children()), Normalize), "normalisation is the first layer"


def test_taps_keep_what_a_later_inplace_layer_overwrites():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)).eval()
    with torch.no_grad(), taps(net, "0") as seen:
        net(torch.rand(2, 3, 4, 4) - 0.5)
    assert seen["0"].min() < 0
