from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.data.augment import STEPS, jitter, jitter_factors, only
from kdlib.data.scenes import Scenes
from kdlib.distill import Alone, Hint
from kdlib.measures import Predictions, Recoloured, Recolouring
from kdlib.models import Model
from kdlib.probes.accuracy import predict
from kdlib.probes.invariance import kept, predict_changed, reweighted
from kdlib.train import OneCycle, Run, fit

SUITE = Scenes(size=32, train_items=20, test_items=30)
NET = Model("residual", {"widths": [4, 8, 16], "blocks": 1, "stride": 1, "classes": 10})
ALONE = Run(data=SUITE, domains=("scene",), model=NET, objective=Alone(), schedule=OneCycle(1, 10), seed="a")
RECOLOURING = Recolouring(SUITE, "scene", strength=0.4, hue=0.2, draws=2, images=3)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()


# the probe

@pytest.mark.parametrize("batch", [1, 3, 7, 500])
def test_each_image_is_changed_by_its_own_row_of_each_draw(net, batch):
    random = torch.Generator().manual_seed(1)
    x, parameters = torch.rand(7, 3, 4, 4, generator=random), torch.randn(2, 7, 3, generator=random)

    def change(x, rows):
        return x * rows[:, :, None, None]

    found = predict_changed(net, x, change, parameters, batch=batch)
    wanted = [[net(change(x[i:i + 1], parameters[d, i:i + 1])).argmax().item() for i in range(7)] for d in range(2)]
    assert found.tolist() == wanted and len({*wanted[0], *wanted[1]}) > 1


@pytest.mark.parametrize("shape", [(7,), (2, 6, 3), (7, 2, 3)])
def test_parameters_need_a_row_for_each_image(net, shape):
    with pytest.raises(ValueError, match="for 7 images"):
        predict_changed(net, torch.rand(7, 3, 4, 4), lambda x, rows: x, torch.zeros(shape))


def test_a_network_in_train_mode_is_refused(net):
    with pytest.raises(ValueError, match="train mode"):
        predict_changed(net.train(), torch.rand(2, 3, 4, 4), lambda x, rows: x, torch.zeros(1, 2, 1))


def test_kept_by_hand():
    clean, changed = np.array([0, 1, 2], np.uint8), np.array([[0, 2, 2], [0, 1, 0], [0, 0, 0], [0, 1, 1]], np.uint8)
    assert kept(clean, changed).tolist() == [1, 0.5, 0.25]


@pytest.mark.parametrize("changed", [[1, 2, 3], [[1, 2]], [[[1, 2, 3]]]])
def test_kept_of_other_shapes(changed):
    with pytest.raises(ValueError, match=r"kept: clean is \(n,\) and changed \(draws, n\), not \(3,\) and"):
        kept(np.array([1, 2, 3]), np.array(changed))


def test_reweighted_takes_zeros_and_ones():
    answers, right = np.array([1.0, 0.5, 0.0, 0.25]), np.array([1, 0, 0, 1])
    assert reweighted(answers, right, 0.5) == reweighted(answers, right.astype(bool), 0.5) == 0.5 * 0.625 + 0.5 * 0.25


def test_reweighted_by_hand():
    answers, right = np.array([1, 1, 0.5, 0, 0.5, 0]), np.array([True, True, True, False, False, False])
    assert reweighted(answers, right, 0.5) == pytest.approx(answers.mean()), "at its own accuracy, its own agreement"
    assert reweighted(answers, right, 1.0) == pytest.approx(2.5 / 3) and reweighted(answers, right, 0.0) == pytest.approx(0.5 / 3)
    assert np.isnan(reweighted(answers, np.ones(6, bool), 0.5)) and np.isnan(reweighted(answers, np.zeros(6, bool), 0.5))


def test_a_network_that_sees_no_hue_keeps_its_answers_when_hue_turns():
    """End to end, on two networks whose invariance is known: the largest channel of all is the same whatever the hue, the red one is not."""
    class Largest(nn.Module):
        def __init__(self, red):
            super().__init__()
            self.red = red

        def forward(self, x):
            value = (x[:, 0] if self.red else x.amax(1)).flatten(1)
            return torch.stack([value.mean(1), value.new_full((len(x),), 0.5)], 1)

    x = torch.rand(200, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    rows = only(jitter_factors(200, strength=0.4, hue=0.5, generator=torch.Generator().manual_seed(1)), "hue")[None]
    shares = [kept(predict(net, x).numpy(), predict_changed(net, x, jitter, rows).numpy()).mean() for net in (Largest(False).eval(), Largest(True).eval())]
    assert shares[0] > 0.98 and shares[1] < 0.8  # but for rounding at 0.5


# single steps of a recolouring

def test_only_keeps_one_step():
    factors = jitter_factors(5, strength=0.4, hue=0.2, generator=torch.Generator().manual_seed(0))
    for k, step in enumerate(STEPS):
        found = only(factors, step)
        assert torch.equal(found[:, k], factors[:, k])
        assert (found[:, [i for i in range(4) if i != k]] == torch.tensor([v for i, v in enumerate([1.0, 1.0, 1.0, 0.0]) if i != k])).all()
    with pytest.raises(ValueError):
        only(factors, "colour")


# the measurements

def test_recoloured_predictions_are_the_networks_on_the_pictured_images():
    torch.manual_seed(0)
    network = NET.build().eval()
    got, x = RECOLOURING.compute()["image"], SUITE.test("scene", "cpu")[0]
    factors = RECOLOURING.factors(30)
    shown = jitter(x[:3], factors[0, :3])
    assert got.shape == (3, 3, 32, 32) and (got == (shown * 255).round().byte().numpy()).all()
    said = Recoloured(ALONE, RECOLOURING).compute(network)["prediction"]
    assert said.shape == (2, 30) and said.dtype == np.uint8
    for d in range(2):
        assert (said[d] == predict(network, jitter(x, factors[d])).numpy()).all()


def test_all_strengths_and_steps_go_in_the_same_direction():
    weak, strong = (replace(RECOLOURING, strength=s, hue=s / 2).factors(30) for s in (0.2, 0.6))
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(3 * (weak - neutral), strong - neutral, atol=1e-6, rtol=0)
    torch.testing.assert_close(replace(RECOLOURING, step="contrast").factors(30)[..., 1], RECOLOURING.factors(30)[..., 1])


def test_more_draws_leave_the_first_as_it_was_and_differ_from_it():
    one, three = (replace(RECOLOURING, draws=n).factors(30) for n in (1, 3))
    assert torch.equal(one[0], three[0]) and not torch.equal(three[1], three[0]) and len({tuple(r) for r in three.view(-1, 4).tolist()}) == 90


def test_strength_zero_keeps_every_answer():
    torch.manual_seed(0)
    network = NET.build().eval()
    still = replace(RECOLOURING, strength=0, hue=0)
    clean = Predictions(ALONE, SUITE, "scene").compute(network)["prediction"]
    assert kept(clean, Recoloured(ALONE, still).compute(network)["prediction"]).tolist() == [1.0] * 30


@pytest.mark.parametrize("change", [dict(strength=0.5), dict(hue=0.1), dict(draws=3), dict(step="hue"), dict(domain="sketch")])
def test_every_setting_is_in_the_key_and_the_pictures_are_not(change):
    assert Recoloured(ALONE, RECOLOURING).key != Recoloured(ALONE, replace(RECOLOURING, **change)).key
    assert Recoloured(ALONE, RECOLOURING).key == Recoloured(ALONE, replace(RECOLOURING, images=0)).key
    assert RECOLOURING.key != replace(RECOLOURING, images=0).key


def test_settings_are_checked_and_equal_ones_have_one_key():
    assert replace(RECOLOURING, strength=1, hue=0).key == replace(RECOLOURING, strength=1.0, hue=0.0).key
    with pytest.raises(ValueError, match="step is one of brightness, contrast, saturation, hue, not 'colour'"):
        replace(RECOLOURING, step="colour")


# hints at the output, the deepest layer of the ablation

def test_a_hint_at_the_logits_pulls_the_students_logits_to_the_teachers():
    teacher, _ = fit(ALONE)
    x = SUITE.test("scene", "cpu")[0]

    def distance(beta):
        run = Run(data=SUITE, domains=("scene",), model=NET, objective=Hint(0, beta, "logits", "logits"), teacher=ALONE, schedule=OneCycle(15, 10, lr=0.02), seed="b")
        student, _ = fit(run, teacher)
        with torch.no_grad():
            return (student(x) - teacher(x)).square().mean().item()

    assert distance(1.0) < 0.5 * distance(0.0)
