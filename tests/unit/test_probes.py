import ast
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import nn

import kdlib
from kdlib.probes.accuracy import correct, predict
from kdlib.probes.agreement import agree, agreement_by_teacher, error_consistency, kappa


def ints(*values):
    return np.array(values)


# predictions

@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5)).eval()


@pytest.mark.parametrize("batch", [1, 3, 10, 11, 500])
def test_predict_is_the_largest_logit_whatever_the_batch(net, batch):
    x = torch.rand(10, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([net(image[None])[0].argmax() for image in x])
    assert torch.equal(predict(net, x, batch=batch), expected) and len(set(expected.tolist())) > 1


def test_predict_takes_no_gradient_and_leaves_the_network_as_it_was(net):
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert not predict(net, torch.rand(3, 3, 6, 6, requires_grad=True)).requires_grad
    assert not net.training and all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_correct_and_agree_are_per_item():
    a, b = ints(3, 1, 2, 2), ints(3, 0, 2, 1)
    assert correct(a, b).tolist() == agree(a, b).tolist() == [True, False, True, False]
    assert correct(torch.from_numpy(a), torch.from_numpy(b)).tolist() == [True, False, True, False]


# kappa

@pytest.mark.parametrize("a, b, expected", [
    ([0, 0, 1, 1], [0, 0, 1, 1], 1),
    ([0, 0, 1, 1], [1, 1, 0, 0], -1),
    ([0, 0, 1, 1], [0, 1, 0, 1], 0),  # observed and chance 1/2
    ([0, 0, 0, 1], [0, 0, 1, 1], 1 / 2),  # observed 3/4; chance 3/4 * 1/2 + 1/4 * 1/2 = 1/2
    ([0, 1, 2, 2], [0, 2, 2, 2], 5 / 9),  # observed 3/4; chance 1/4 * 1/4 + 1/2 * 3/4 = 7/16
    ([0, 0, 0, 0], [1, 1, 1, 1], 0),
])
def test_kappa_by_hand(a, b, expected):
    assert kappa(np.array(a), np.array(b)) == kappa(np.array(b), np.array(a)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_kappa_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2 + 3 * seed, 300)
    b = np.where(rng.random(300) < 0.2 * seed, a, rng.integers(0, 5, 300))
    assert kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))


@pytest.mark.parametrize("a, b", [([255, 0, 255, 0], [255, 0, 0, 0]), ([200, 100, 200, 100], [200, 100, 100, 100])])
def test_kappa_of_bytes_as_they_are_stored(a, b):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kappa(np.array(a, np.uint8), np.array(b, np.uint8)) == pytest.approx(1 / 2)


def test_kappa_is_undefined_where_chance_is_1():
    assert math.isnan(kappa(ints(2, 2, 2), ints(2, 2, 2)))


def test_independent_networks_agree_but_have_no_kappa():
    rng = np.random.default_rng(0)
    a, b = (rng.random(100_000) < 0.9 for _ in range(2))  # both right on 90 %
    assert agree(a, b).mean() == pytest.approx(0.82, abs=0.01)
    assert kappa(a.astype(int), b.astype(int)) == pytest.approx(0, abs=0.02)


# errors

LABELS = ints(0, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("wrong_a, wrong_b, expected", [
    ([0, 1], [0, 1], 1),  # the same items, whatever is said instead
    ([0, 1], [2, 3], -1 / 3),  # observed 1/2, chance 3/4 * 3/4 + 1/4 * 1/4 = 5/8
    ([0, 1, 2, 3], [0, 1, 4, 5], 0),
    ([0, 1, 2, 3], [0, 1], 1 / 2),  # observed 3/4, chance 1/2
])
def test_error_consistency_by_hand(wrong_a, wrong_b, expected):
    a, b = LABELS.copy(), LABELS.copy()
    a[wrong_a], b[wrong_b] = 8, 9  # never the same wrong answer
    assert error_consistency(a, b, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize("observer", [LABELS, LABELS + 1], ids=["always right", "always wrong"])
def test_error_consistency_is_undefined_for_a_constant_observer(observer):
    other = np.where(LABELS < 4, LABELS, 0)
    assert math.isnan(error_consistency(observer, other, LABELS))
    assert math.isnan(error_consistency(other, observer, LABELS))
    assert math.isnan(error_consistency(observer, observer, LABELS))
    assert error_consistency(other, other, LABELS) == 1


def test_agreement_by_teacher_by_hand():
    labels = ints(0, 0, 0, 0, 0, 1, 1)
    teacher = ints(0, 0, 0, 2, 2, 2, 1)  # right on four items, wrong on three
    student = ints(0, 0, 1, 2, 0, 1, 1)  # agrees on three of the four and on one of the three
    assert agreement_by_teacher(student, teacher, labels) == pytest.approx((3 / 4, 1 / 3))


def test_agreement_by_teacher_where_the_teacher_is_always_right_or_wrong():
    student = ints(0, 1, 1)
    right, wrong = agreement_by_teacher(student, ints(0, 1, 2), ints(0, 1, 2))
    assert right == pytest.approx(2 / 3) and math.isnan(wrong)
    right, wrong = agreement_by_teacher(student, ints(0, 1, 2), ints(1, 2, 0))
    assert math.isnan(right) and wrong == pytest.approx(2 / 3)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_predict_refuses_logits_that_are_no_numbers(broken):
    spoilt = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    x = torch.rand(5, 3, 2, 2)
    predict(spoilt, x)
    spoilt[1].bias.data[1] = broken
    with pytest.raises(ValueError, match="predict: the network's logits are not all finite numbers"):
        predict(spoilt, x)


def test_predict_refuses_a_network_in_train_mode():
    part = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).eval()
    part[0].train()  # as who thaws one stage would have it
    for net in nn.Flatten().train(), part:
        with pytest.raises(ValueError, match="train mode"):
            predict(net, torch.rand(2, 3, 4, 4))


def test_probes_need_nothing_but_probes_and_the_library_never_the_book():
    def needs(file):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
        return {f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name for node in nodes for alias in node.names}

    package = Path(kdlib.__file__).parent
    pure = [*(package / "probes").glob("*.py"), package / "losses.py", package / "stats.py"]
    assert len(pure) > 8 and not [(file.name, name) for file in pure for name in needs(file) if name.startswith("kdlib") and not name.startswith("kdlib.probes.")]
    library = [file for file in package.rglob("*.py") if "book" not in file.relative_to(package).parts and file.name != "__main__.py"]
    assert len(library) > 20 and not [(file.name, name) for file in library for name in needs(file) if name.startswith("kdlib.book")]
