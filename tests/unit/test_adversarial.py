import gc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlib.models import MnistNet, Normalize
from kdlib.probes.accuracy import predict
from kdlib.probes.adversarial import calibrate, fooled, ifgsm, noise


def images(n, size=8, seed=0, dtype=torch.float32):
    """Random pixels, a tenth of them 0 and a tenth 1, where clipping bites."""
    x = torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return ((x - 0.1) / 0.8).clamp(0, 1)


def labels(n, classes=5):
    return torch.arange(n) % classes


def convolutional(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.25)), nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Dropout(0.5), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    net(torch.rand(64, 3, 8, 8))  # the batch norm's statistics are no longer 0 and 1
    return net.eval()


def linear(weight, bias=None):
    """Logits weight @ pixels + bias, of images with three pixels."""
    weight = torch.tensor(weight)
    net = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], len(weight))).to(weight.dtype).eval()
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.copy_(torch.tensor(bias if bias else [0.0] * len(weight)))
    return net


# iterative FGSM

def test_a_linear_network_by_hand():
    # two classes: the gradient's sign is that of the other class's weights less the label's, at every step
    net = linear([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    x = torch.tensor([[0.5, 0.5, 0.5], [0.1, 0.9, 0.3], [0.05, 0.02, 0.0]]).view(3, 3, 1, 1)
    y = torch.tensor([0, 0, 1])
    far = ifgsm(net, x, y, eps=0.2, step=0.05, steps=5).flatten(1)  # five steps would go 0.25 far
    torch.testing.assert_close(far, torch.tensor([[0.3, 0.7, 0.5], [0.0, 1.0, 0.3], [0.25, 0.0, 0.0]]))
    near = ifgsm(net, x, y, eps=0.2, step=0.05, steps=3).flatten(1)
    torch.testing.assert_close(near, torch.tensor([[0.35, 0.65, 0.5], [0.0, 1.0, 0.3], [0.2, 0.0, 0.0]]))


def test_a_hidden_layer_against_numpy():
    # the loop and the gradient written out: softmax less one-hot, through the second weights, the ReLU and the first
    random = np.random.default_rng(0)
    w1, w2 = random.normal(size=(7, 12)), random.normal(size=(4, 7))
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 7, bias=False), nn.ReLU(), nn.Linear(7, 4, bias=False)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.from_numpy(w1))
        net[3].weight.copy_(torch.from_numpy(w2))
    x, y = images(40, size=2, dtype=torch.float64), labels(40, 4)
    start, moved, turned = x.flatten(1).numpy(), x.flatten(1).numpy(), 0
    before = None
    for _ in range(5):
        hidden = moved @ w1.T
        logits = np.maximum(hidden, 0) @ w2.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        sign = np.sign((((p - np.eye(4)[y.numpy()]) @ w2) * (hidden > 0)) @ w1)
        turned += 0 if before is None else (sign != before).sum()
        before = sign
        moved = np.clip(np.clip(moved + 0.03 * sign, start - 0.1, start + 0.1), 0, 1)
    assert turned > 20, "no step goes another way than the first: a single one would do"
    np.testing.assert_allclose(ifgsm(net, x, y, eps=0.1, step=0.03).flatten(1).numpy(), moved, atol=1e-12)


@pytest.mark.parametrize("n, eps, step, steps", [(64, 8 / 255, 2 / 255, 5), (50, 4 / 255, 1 / 255, 5), (7, 0.3, 0.1, 3), (33, 0.1, 0.2, 1)])
def test_every_pixel_is_torchattacks(n, eps, step, steps):
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(1)
    for net, size in (convolutional(), 8), (MnistNet(16).eval(), 16), (MnistNet(16).to(memory_format=torch.channels_last).eval(), 16):
        x, y = images(n, size), labels(n)
        theirs = torchattacks.BIM(net, eps=eps, alpha=step, steps=steps)(x, y)
        assert torch.equal(ifgsm(net, x, y, eps=eps, step=step, steps=steps), theirs) and not torch.equal(theirs, x)


def test_it_stays_near_the_image_and_within_the_pixels():
    net, x = convolutional(), images(60)
    moved = ifgsm(net, x, labels(60), eps=8 / 255, step=2 / 255)
    assert moved.shape == x.shape and moved.dtype == x.dtype and 0 <= moved.min() and moved.max() <= 1
    assert 7.9 / 255 < (moved - x).abs().max() <= 8 / 255 + 1e-6
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(net(i), labels(60)) for i in (x, moved))
    assert after > before + 0.1
    assert torch.equal(ifgsm(net, x, labels(60), eps=0, step=1 / 255), x)


def test_the_batch_changes_nothing():
    net, x = convolutional().double(), images(10, dtype=torch.float64)
    whole = ifgsm(net, x, labels(10), eps=0.1, step=0.03)
    for batch in 1, 3, 10, 11:
        torch.testing.assert_close(ifgsm(net, x, labels(10), eps=0.1, step=0.03, batch=batch), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("step, steps_of", [(0.01, (0.01, 0.01, 0.01)), ([0.005, 0.01, 0.02], (0.005, 0.01, 0.02))])
def test_several_eps_are_each_as_alone(step, steps_of):
    net, x = convolutional(), images(9)
    together = ifgsm(net, x, labels(9), eps=(0.02, 0.0, 0.08), step=step, batch=4)
    assert together.shape == (3, *x.shape)
    for found, eps, alone in zip(together, (0.02, 0.0, 0.08), steps_of):
        assert torch.equal(found, ifgsm(net, x, labels(9), eps=eps, step=alone, batch=4))
    assert ifgsm(net, x, labels(9), eps=[0.02], step=0.01).shape == (1, *x.shape)


@pytest.mark.parametrize("trained", [True, False])
def test_nothing_is_left_behind(trained):
    net, x = convolutional().requires_grad_(trained), images(6).requires_grad_()
    net[1].weight.grad = torch.ones_like(net[1].weight)
    before, start, logits = {n: t.clone() for n, t in net.state_dict().items()}, x.detach().clone(), []
    handle = net.register_forward_hook(lambda module, args, output: logits.append(weakref.ref(output)))
    found = ifgsm(net, x, labels(6), eps=0.1, step=0.03)
    handle.remove()
    assert not found.requires_grad and found.grad_fn is None
    assert x.grad is None and torch.equal(x, start)
    assert torch.equal(net[1].weight.grad, torch.ones_like(net[1].weight))
    assert all(p.requires_grad == trained and (p is net[1].weight or p.grad is None) for p in net.parameters())
    assert not net.training and all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    gc.collect()
    assert len(logits) == 5 and all(reference() is None for reference in logits), "a graph is kept"


def test_neither_the_surroundings_nor_frozen_parameters_matter():
    net, x = convolutional(), images(6)
    wanted = ifgsm(net, x, labels(6), eps=0.1, step=0.03)
    with torch.no_grad():
        assert torch.equal(ifgsm(net, x, labels(6), eps=0.1, step=0.03), wanted) and not torch.is_grad_enabled()
    with torch.inference_mode():
        assert torch.equal(ifgsm(net, x.clone(), labels(6), eps=0.1, step=0.03), wanted) and torch.is_inference_mode_enabled()
    assert torch.equal(ifgsm(net.requires_grad_(False), x, labels(6), eps=0.1, step=0.03), wanted)


class Asked(TorchDispatchMode):
    """Every operation by name, the gradients (of input, weight, bias) that a backward pass takes, and the shapes of products."""

    def __init__(self):
        super().__init__()
        self.names, self.gradients, self.products = Counter(), [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.names[name] += 1
        if name in ("convolution_backward", "native_batch_norm_backward"):
            self.gradients.append(args[-1])
        if name == "mm":
            self.products.append((tuple(args[0].shape), tuple(args[1].shape)))
        return function(*args, **(kwargs or {}))


def test_no_parameters_gradient_is_computed():
    net, x = convolutional(), images(6)
    assert all(p.requires_grad for p in net.parameters())
    with Asked() as seen:
        ifgsm(net, x, labels(6), eps=0.1, step=0.03, steps=1)
    assert seen.gradients == [[True, False, False]] * 3
    assert seen.products == [((6, 5), (5, 64))]  # that of the linear layer's weights would be (5, 6) times (6, 64)


def test_it_costs_one_forward_and_one_backward_pass_a_step():
    net, x = convolutional(), images(6)
    for eps, passes in (0.1, 5), ([0.1], 5), ([0.1, 0.2, 0.05], 1 + 3 * 4):
        with Asked() as seen:
            ifgsm(net, x, labels(6), eps=eps, step=0.03)
        assert seen.names["convolution"] == seen.names["convolution_backward"] == 2 * passes  # two layers


def test_a_network_in_train_mode_is_refused():
    with pytest.raises(ValueError, match="ifgsm: the network is in train mode"):
        ifgsm(convolutional().train(), images(2), labels(2), eps=0.1, step=0.1)


@pytest.mark.parametrize("change, says", [
    (dict(eps=-0.1), "eps must not be negative, got -0.1"), (dict(eps=float("nan")), "eps must not be negative, got nan"),
    (dict(eps=[0.1, -1]), "eps must not be negative"), (dict(step=0), "step must be positive, got 0"),
    (dict(eps=[0.1, 0.2], step=[0.1]), "step is one number or as many as eps, got 1 for 2"),
    (dict(step=[0.1, 0.2]), "as many as eps, got 2 for 1"), (dict(eps=[]), "as many as eps"),
    (dict(steps=0), "steps must be a whole number of at least 1, got 0"), (dict(steps=2.5), "steps must be a whole number"),
    (dict(x=images(2) + 0.1), "pixels must be floating-point numbers in"), (dict(x=images(2) * 255), "pixels must be"),
    (dict(x=images(2) * float("nan")), "pixels must be"), (dict(x=(images(2) * 1).byte()), "pixels must be"),
    (dict(y=labels(3)), r"a label for each of 2 images, got \(3,\)"), (dict(y=labels(2)[:, None]), "a label for each of 2 images"),
])
def test_what_is_refused_is_said_in_a_line(change, says):
    asked = dict(x=images(2), y=labels(2), eps=0.1, step=0.1) | change
    with pytest.raises(ValueError, match="^ifgsm: .*" + says) as error:
        ifgsm(convolutional(), asked.pop("x"), asked.pop("y"), **asked)
    assert "\n" not in str(error.value)


def test_no_images_are_no_images():
    assert ifgsm(convolutional(), images(0), labels(0), eps=0.1, step=0.1).shape == (0, 3, 8, 8)


# the control

def test_noise_moves_each_pixel_by_eps_up_or_down():
    x, before = torch.full((10, 3, 8, 8), 0.5), torch.get_rng_state()
    moved = noise(x, eps=0.1, generator=torch.Generator().manual_seed(3))
    up = (moved > 0.5)
    torch.testing.assert_close(moved, torch.where(up, 0.6, 0.4))
    assert 0.45 < up.double().mean() < 0.55  # 1,920 pixels: 0.5 give or take 0.011
    assert torch.equal(moved, noise(x, eps=0.1, generator=torch.Generator().manual_seed(3)))
    assert not torch.equal(moved, noise(x, eps=0.1, generator=torch.Generator().manual_seed(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_clipped_and_refuses_as_the_attack_does():
    x, generator = images(20), torch.Generator().manual_seed(0)
    moved = noise(x, eps=0.3, generator=generator)
    assert moved.min() == 0 and moved.max() == 1 and (moved - x).abs().max() <= 0.3 + 1e-6
    with pytest.raises(ValueError, match="noise: eps must not be negative"):
        noise(x, eps=-1, generator=generator)
    with pytest.raises(ValueError, match="noise: pixels must be"):
        noise(x * 255, eps=0.1, generator=generator)


# who is fooled

@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_the_two_definitions_by_hand(make):
    #                 right, kept | right, lost | wrong, kept | wrong, another | wrong, put right
    y, clean, adversarial = make([0, 1, 2, 3, 4]), make([0, 1, 0, 0, 0]), make([0, 0, 0, 1, 4])
    assert fooled(clean, adversarial, y, by="change").tolist() == [False, True, False, True, True]
    assert fooled(clean, adversarial, y, by="label").tolist() == [False, True, True, True, False]
    with pytest.raises(ValueError, match="by is 'change' or 'label', not 'changed'"):
        fooled(clean, adversarial, y, by="changed")


# calibration

def separate(margins):
    """Grey images on which the network below changes its mind at eps > margin: it compares three pixels' mean with one half."""
    return (0.5 + torch.tensor(margins, dtype=torch.float64)).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), torch.zeros(len(margins), dtype=torch.long)


THRESHOLD = linear([[1 / 3] * 3, [0.0] * 3], [0.0, 0.5]).double()


@pytest.mark.parametrize("rate, margin", [(0.85, 17), (0.8, 16), (0.05, 1), (1.0, 20), (0.51, 11)])
def test_calibrate_finds_the_eps_by_hand(rate, margin):
    # twenty images with margins of 1.1/1020, 2.1/1020, ...: at eps = k/1020, k - 1 of them are fooled
    x, y = separate([(i + 0.1) / 1020 for i in range(1, 21)])
    assert calibrate(THRESHOLD, x, y, rate=rate) == (margin + 1) / 4 / 255


def test_calibrate_reaches_far_and_near():
    for quarters in 1, 3, 4, 5, 200, 256:
        x, y = separate([(quarters - 0.5) / 1020] * 4)
        assert calibrate(THRESHOLD, x, y) == quarters / 4 / 255


def test_calibrate_steps_as_it_says():
    # four steps of a fifth go 0.8 eps far: a margin of 8 quarters takes eps of more than 10
    x, y = separate([8.1 / 1020] * 3)
    assert calibrate(THRESHOLD, x, y, steps=4, step_of_eps=0.2) == 11 / 4 / 255


def test_the_rate_is_reached_there_and_not_just_below():
    net, x = convolutional(), images(200)
    y = predict(net, x)
    eps = calibrate(net, x, y, rate=0.6)
    share = {e: fooled(y, predict(net, ifgsm(net, x, y, eps=e, step=e / 4)), y, by="change").double().mean()
             for e in (eps, eps - 1 / 1020)}
    assert share[eps] >= 0.6 > share[eps - 1 / 1020] and round(eps * 1020, 6) == round(eps * 1020)


def test_calibrate_says_what_it_cannot_reach():
    x, y = separate([0.3] * 19 + [0.01])
    with pytest.raises(ValueError, match=r"calibrate: eps = 64/255 changes 0.050 of the predictions, not 0.85; ask for a lower rate"):
        calibrate(THRESHOLD, x, y)
    assert calibrate(THRESHOLD, x, y, largest=0.31) == 307 / 4 / 255
    for rate in 0, 1.1:
        with pytest.raises(ValueError, match="rate must be in"):
            calibrate(THRESHOLD, x, y, rate=rate)
    with pytest.raises(ValueError, match="largest must be at least 1/1020"):
        calibrate(THRESHOLD, x, y, largest=0.0005)
