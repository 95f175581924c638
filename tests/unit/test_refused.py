"""What would come out as a plausible wrong number is refused, with a line that says what to do."""

import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from kdlib import losses
from kdlib.data.augment import jitter
from kdlib.data.digits import Digits
from kdlib.distill import CRD, KL, Alone, Regressor
from kdlib.measures import Measure
from kdlib.models import Model, features
from kdlib.probes import adversarial, agreement, boundary, divergence, localization
from kdlib.probes.accuracy import correct, predict
from kdlib.store import describe, key
from kdlib.train import Adadelta, OneCycle, Run

G = torch.Generator().manual_seed(0)
X, Y = torch.rand(6, 3, 4, 4, generator=G), torch.arange(6) % 3
A, B = np.arange(6) % 3, np.arange(6) % 2


def net(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes)).eval()


class ChannelsLast(nn.Module):
    """Like a Swin transformer's stages, (n, h, w, c)."""

    def __init__(self):
        super().__init__()
        self.stage, self.head = nn.Conv2d(3, 7, 1), nn.Linear(7, 3)
        self.last = nn.Identity()

    def forward(self, x):
        return self.head(self.last(self.stage(x).movedim(1, 3)).mean((1, 2)))


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return x.flatten(1)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def contrast(classes=2):
    crd = CRD(1, 1, 0.1, 4, "a", "b", dim=8).build((5,), (5,))
    crd.fill(torch.rand(20, 5, generator=G), torch.rand(20, 5, generator=G), torch.arange(20) % classes)
    return crd


def step(crd, idx, labels):
    return crd(torch.zeros(len(labels), 2), labels, torch.rand(len(labels), 5), torch.rand(len(labels), 5), idx)


unit = normalize(torch.rand(6, 8, generator=G), dim=1)

CASES = {
    "one logit": (lambda: predict(net(1), X), "predict: of 6 images the network makes (6, 1), not logits (n, classes)"),
    "a map of logits": (lambda: predict(nn.Conv2d(3, 5, 1).eval(), X), "predict: of 6 images the network makes (6, 5, 4, 4), not logits"),
    "labels in a column": (lambda: correct(Y, Y[:, None]), "correct: needs arrays (n,) of the same items, got (6,) and (6, 1)"),
    "lists": (lambda: agreement.agree([1, 2], [1, 3]), "agree: needs arrays (n,) of the same items, got list and list"),
    "kappa of a column": (lambda: agreement.kappa(A, B[:, None]), "kappa: needs arrays (n,) of the same items"),
    "kappa of tensors": (lambda: agreement.kappa(torch.tensor(A), torch.tensor(B)), "kappa: needs NumPy arrays (n,), got Tensor (6,), Tensor (6,)"),
    "errors of rows": (lambda: agreement.error_consistency(np.stack([A, A]), B, A), "error_consistency: needs NumPy arrays (n,), got ndarray (2, 6), ndarray (6,)"),
    "other items": (lambda: agreement.agreement_by_teacher(A, B[:5], A), "agreement_by_teacher: needs arrays (n,) of the same items, got (6,) and (5,) and (6,)"),
    "fooled by a column": (lambda: adversarial.fooled(A, B, A[:, None], by="label"), "fooled: needs arrays (n,) of the same items"),
    "a plane of bytes": (lambda: boundary.plane((X[:3] * 255).byte()), "plane: x are three images of floating-point numbers, not (3, 3, 4, 4) torch.uint8"),
    "a plane of four": (lambda: boundary.regions(net(3), X[:4]), "plane: x are three images"),
    "KL of other classes": (lambda: divergence.kl(net(1), net(5), X), "kl: the networks give (6, 5) and (6, 1), not logits"),
    "KL of one logit": (lambda: divergence.kl(net(1), net(1), X), "kl: the networks give (6, 1) and (6, 1), not logits"),
    "maps with channels last": (lambda: localization.gradcam(ChannelsLast().eval(), X, Y, layer="last"), "gradcam: layer 'last' gives (6, 4, 4, 7), which looks like (n, h, w, c)"),
    "masks of bytes": (lambda: localization.energy(torch.rand(2, 3, 3), 255 * torch.ones(2, 6, 6)), "localization: masks are bool or shares in [0, 1], not from 255 to 255"),
    "eps in levels": (lambda: adversarial.ifgsm(net(3), X, Y, eps=8, step=2), "ifgsm: eps is a part of the range of pixels, in [0, 1] (4 / 255 is four levels of a byte), got 8"),
    "no label": (lambda: adversarial.ifgsm(net(3), X, Y - 100, eps=0.1, step=0.1), "ifgsm: labels are 0 or more, got -100"),
    "normalised pixels": (lambda: adversarial.ifgsm(net(3), X - 0.5, Y, eps=0.1, step=0.1), "by kdlib.networks.Normalize as its first layer"),
    "recolouring normalised pixels": (lambda: jitter(X - 0.5, torch.ones(6, 4)), "jitter: pixels must lie in [0, 1], not from -0."),
    "drawn negatives in a table": (lambda: losses.crd_sampled(unit, unit, unit, tau=0.1, m=6, z=1), "crd_sampled: negatives are (batch, N, D), not (6, 8)"),
    "CRD of one class": (lambda: losses.crd(unit, unit, unit, torch.zeros(6, 6).bool(), tau=0.1, n=4, z=1), "crd: 6 of 6 rows have no negative; are there two classes?"),
    "CRD of another bank": (lambda: losses.crd(unit, unit, unit, torch.ones(6, 5).bool(), tau=0.1, n=4, z=1), "crd: bank is (M, D) and negative (batch, M), got (6, 8) and (6, 5)"),
    "CRD without z": (lambda: losses.crd(unit, unit, unit, ~torch.eye(6).bool(), tau=0.1, n=4, z=0), "crd: z and the number of negatives must be positive and finite, got z = 0"),
    "CRD before its banks": (lambda: step(CRD(1, 1, 0.1, 4, "a", "b").build((5,), (5,)), torch.arange(4), torch.arange(4) % 2), "CRD: its banks are empty; call fill("),
    "CRD by places in the batch": (lambda: step(contrast(), torch.arange(4), torch.arange(1, 5) % 2), "CRD: these labels are not those that `fill` was given for the items idx"),
    "tokens to a map": (lambda: Regressor((17, 192), (128, 4, 4)), "hint: cannot map student features (17, 192) to teacher features (128, 4, 4); both are (channels, height, width) or"),
    "a layer that is not run": (lambda: features(Idle().eval(), X, "idle"), "layer 'idle' of Idle is not run"),
    "a run in half precision": (lambda: run(dtype="float16"), "Run: device is cpu or cuda and dtype float32 or bfloat16, not 'cpu' and 'float16'; kdlib.train.machine resolves auto"),
    "KL at no temperature": (lambda: KL(0.1, 0.9, 0), "KL: tau must be positive and finite, got 0"),
    "CRD at a temperature that is none": (lambda: CRD(1, 1, float("nan"), 4, "a", "b"), "CRD: tau must be positive and finite, got nan"),
    "CRD of no negatives": (lambda: CRD(1, 1, 0.1, 0, "a", "b"), "CRD: n and dim are 1 or more and momentum in [0, 1], not 0, 128 and 0.5"),
    "a momentum beyond one": (lambda: CRD(1, 1, 0.1, 4, "a", "b", momentum=2), "momentum in [0, 1], not 4, 128 and 2"),
    "CRD of infinitely many": (lambda: losses.crd(unit, unit, unit, ~torch.eye(6).bool(), tau=0.1, n=float("inf"), z=1), "must be positive and finite, got z = 1 and N/M = inf"),
    "z at no temperature": (lambda: losses.crd_normalizer(unit, unit, tau=-1), "crd_normalizer: tau must be positive and finite, got -1"),
    "z beyond a float": (lambda: losses.crd_normalizer(unit, unit, tau=1e-3), "crd_normalizer: z would be e^1000, which no float64 holds; raise tau, which is 0.001"),
    "epochs below none": (lambda: Adadelta(-1), "Adadelta: needs epochs from 0, batches from 1 and a positive lr, got -1, 64 and 1"),
    "a batch of none": (lambda: OneCycle(1, batch=0), "OneCycle: needs epochs from 0, batches from 1 and a positive lr, got 1, 0 and 0.2"),
    "a warmup of twice": (lambda: OneCycle(1, warmup=2), "OneCycle: warmup is a share of all steps, in [0, 1), not 2"),
    "one domain in letters": (lambda: Run(Digits(), "orig", Model("mnistnet", {"size": 16}), Alone(), Adadelta(1), "s"), "Run: domains are a tuple of names, not 'orig'"),
    "regions of other planes": (lambda: boundary.agreement(torch.zeros(5, 5), torch.zeros(5)), "agreement: needs two networks' regions of one plane, got (5, 5) and (5,)"),
    "a Jaccard index of nothing": (lambda: boundary.jaccard(torch.zeros(0), torch.zeros(0)), "jaccard: needs two networks' regions of one plane, got (0,) and (0,)"),
    "a plane of one point": (lambda: boundary.plane(X[:3], resolution=1), "plane: margin is finite and not negative and resolution 2 or more, got 0.1 and 1"),
    "a plane without end": (lambda: boundary.plane(X[:3], margin=float("nan")), "plane: margin is finite and not negative"),
    "no triplet": (lambda: boundary.triplets(Y, 0), "triplets: count is 1 or more, got 0"),
    "a label beyond the classes": (lambda: adversarial.ifgsm(net(2), X, Y, eps=0.1, step=0.1), "ifgsm: the network has 2 classes, and there is a label 2"),
    "features that are no tensor": (lambda: features(nn.Sequential(Pair()).eval(), X, "0"), "layer '0' of Sequential: its output is a tuple, not a tensor"),
    "a run anywhere": (lambda: run(device="auto"), "not 'auto' and 'float32'"),
}


def run(**given):
    return Run(Digits(), ("orig",), Model("mnistnet", {"size": 16}), Alone(), Adadelta(1, 64), "student-0", **given)


@pytest.mark.parametrize("call, message", CASES.values(), ids=CASES)
def test_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)


def test_what_looks_like_channels_last_can_be_said_to_be_no_such_thing():
    network = ChannelsLast().eval()
    right = localization.gradcam(network, X, Y, layer="last", reshape=lambda t: t.movedim(3, 1))
    assert right.shape == (6, 4, 4) and localization.gradcam(network, X, Y, layer="last", reshape=lambda t: t).shape == (6, 4, 7)


def test_rounding_and_what_plays_no_part_are_not_refused():
    assert jitter(X.clamp(max=1) + 2e-7, torch.tensor([[1.0, 1, 1, 0]]).expand(6, 4)).max() <= 1
    assert adversarial.fooled(A, B, None, by="change").tolist() == (A != B).tolist()


def test_banks_stay_as_they_are_in_eval_mode():
    crd, idx = contrast(), torch.arange(4)
    before = [bank.clone() for bank in crd.banks]
    crd.eval()
    for _ in range(3):
        step(crd, idx, idx % 2)
    assert all(map(torch.equal, crd.banks, before))
    crd.train()
    step(crd, idx, idx % 2), step(crd, idx, idx % 2)
    assert not any(map(torch.equal, crd.banks, before))


@pytest.mark.parametrize("context", [nullcontext(), torch.autocast("cpu", torch.bfloat16)], ids=["as it is", "autocast"])
def test_losses_are_as_exact_inside_autocast(context):
    torch.manual_seed(0)
    s, t = (normalize(torch.randn(50, 16), dim=1) for _ in range(2))
    negative, regressor, crd = torch.arange(50)[:, None] % 5 != torch.arange(50) % 5, Regressor((8, 4, 4), (6, 2, 2)), contrast()
    maps, idx = (torch.randn(3, 8, 4, 4), torch.randn(3, 6, 2, 2)), torch.arange(4)
    features = torch.rand(4, 5)

    def values():
        z = losses.crd_normalizer(s, t, tau=0.1)
        return [losses.crd(s, t, t, negative, tau=0.1, n=8, z=z), losses.crd_sampled(s, t, t[:40].view(1, 40, 16).expand(50, -1, -1), tau=0.1, m=50, z=z),
                losses.hint(*regressor(*maps)), losses.kl(s, t, tau=4), crd.eval()(torch.zeros(4, 2), idx % 2, features, features, idx)]

    wanted = values()
    with context:
        found = values()
        crd.fill(torch.rand(20, 5).bfloat16(), torch.rand(20, 5).bfloat16(), torch.arange(20) % 2)
    assert all(f.dtype == torch.float32 for f in found) and [f.item() for f in found] == [w.item() for w in wanted]


def test_classes_of_one_name_in_two_modules_have_two_keys():
    def made(module):
        @dataclass(frozen=True)
        class MyModel:
            w: int
            version: ClassVar[int] = 1

        MyModel.__module__ = module
        return MyModel(3)

    assert len({key(describe(made(module))) for module in ("mine", "yours", "kdlib.models", "mine")}) == 3
    assert "module" not in describe(made("kdlib.models")) and describe(made("mine"))["module"] == "mine"

    @dataclass(frozen=True)
    class Mine(Measure):
        a: int
        version: ClassVar[int] = 1

    assert Mine(1).describe() == {"type": "Mine", "version": 1, "module": __name__, "a": 1}

    @dataclass(frozen=True)
    class Unversioned:
        w: int

    with pytest.raises(TypeError, match="cannot describe Unversioned for a key: it needs `version: ClassVar"):
        describe(Unversioned(1))
