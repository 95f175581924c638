import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib.data.digits import Digits
from kdlib.distill import KL, Alone
from kdlib.measures import Divergence, Planes, Predictions, Regions
from kdlib.models import MnistNet, Model
from kdlib.probes import boundary, divergence
from kdlib.store import digest
from kdlib.train import Adadelta, Run

SUITE = Digits(limit=64)
ALONE = Run(data=SUITE, domains=("orig",), model=Model("mnistnet", {"size": 16}), objective=Alone(), schedule=Adadelta(1),
            seed="a")
TAUGHT = Run(data=SUITE, domains=("orig",), model=Model("mnistnet", {"size": 16}), objective=KL(0.1, 0.9, 8), teacher=ALONE,
             schedule=Adadelta(1), seed="b")
PLANES = Planes(SUITE, "color", count=3, resolution=5, images=2)


def network(seed):
    torch.manual_seed(seed)
    return MnistNet(16).eval()


def test_regions_are_those_of_the_probe_on_the_drawn_planes():
    net, (x, y) = network(0), SUITE.test("color", "cpu")
    rows = PLANES.compute()["triplet"]
    assert rows.shape == (3, 3) and all(len(set(y[r].tolist())) == 3 for r in rows)
    region = Regions(ALONE, PLANES).compute(net)["region"]
    assert region.shape == (3, 5, 5) and region.dtype == np.uint8
    for row, found in zip(rows, region):
        assert (boundary.regions(net, x[row], resolution=5).numpy() == found).all()


def test_the_planes_are_the_same_for_every_network_and_each_time():
    assert digest(PLANES.compute()) == digest(PLANES.compute())
    wide = Planes(SUITE, "color", count=3, resolution=9)
    assert (wide.compute()["triplet"] == PLANES.compute()["triplet"]).all(), "resolution draws nothing"
    longer = Planes(SUITE, "color", count=5, resolution=5)
    assert (longer.compute()["triplet"][:3] == PLANES.compute()["triplet"]).all()


def test_the_pictured_images_and_corners_are_those_of_the_triplets():
    got, (x, _) = PLANES.compute(), SUITE.test("color", "cpu")
    assert got["image"].shape == (2, 3, 3, 16, 16) and got["corner"].shape == (3, 3, 2)
    assert (got["image"][1] == (x[got["triplet"][1]] * 255).round().byte().numpy()).all()
    a, b = (x[got["triplet"][0][i]] - x[got["triplet"][0][0]] for i in (1, 2))
    np.testing.assert_allclose(np.linalg.norm(got["corner"][0], axis=1), [0, a.norm(), b.norm()], rtol=1e-5)


@pytest.mark.parametrize("change", [dict(count=4), dict(resolution=6), dict(margin=0.2), dict(distinct=False), dict(clip=True),
                                    dict(domain="M")])
def test_every_setting_of_the_planes_is_in_the_key(change):
    settings = dict(data=SUITE, domain="color", count=3, resolution=5)
    assert Regions(ALONE, Planes(**settings)).key != Regions(ALONE, Planes(**settings | change)).key


def test_how_many_are_pictured_is_not_in_the_key_of_the_regions():
    assert Regions(ALONE, PLANES).key == Regions(ALONE, Planes(SUITE, "color", 3, 5)).key
    assert PLANES.key != Planes(SUITE, "color", 3, 5).key


def test_keys_tell_the_networks_and_measures_apart():
    keys = {Divergence(TAUGHT, ALONE, SUITE, "M", 8).key, Divergence(TAUGHT, TAUGHT, SUITE, "M", 8).key,
            Divergence(ALONE, ALONE, SUITE, "M", 8).key, Divergence(TAUGHT, ALONE, SUITE, "M", 9).key,
            Divergence(TAUGHT, ALONE, SUITE, "orig", 8).key, Predictions(TAUGHT, SUITE, "M").key, Regions(TAUGHT, PLANES).key}
    assert len(keys) == 7


def test_divergence_by_hand():
    # softmax(0, 0) against softmax(0, log 3) = (1/4, 3/4): 1/2 log((1/2)/(1/4)) + 1/2 log((1/2)/(3/4))
    class Constant(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.tensor(logits)

        def forward(self, x):
            return self.logits.expand(len(x), -1)

    teacher, student = Constant([0.0, 0.0]).eval(), Constant([0.0, float(np.log(3))]).eval()
    x = torch.zeros(3, 1)
    wanted = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    np.testing.assert_allclose(divergence.kl(student, teacher, x).numpy(), [wanted] * 3, rtol=1e-6)
    assert divergence.kl(student, student, x).tolist() == [0.0] * 3


def test_divergence_against_torch_and_in_its_measure():
    student, teacher, x = network(1), network(2), SUITE.test("M", "cpu")[0]
    with torch.no_grad():
        q, p = (torch.distributions.Categorical(logits=net(x[:20])) for net in (student, teacher))
    wanted = torch.distributions.kl_divergence(p, q)
    torch.testing.assert_close(divergence.kl(student, teacher, x[:20], batch=7), wanted, rtol=1e-4, atol=1e-6)
    nats = Divergence(TAUGHT, ALONE, SUITE, "M", 20).compute(student, teacher)["nats"]
    assert nats.dtype == np.float16
    np.testing.assert_allclose(nats, wanted.numpy(), rtol=2e-3, atol=1e-6)


def test_a_network_in_train_mode_has_no_divergence():
    with pytest.raises(ValueError, match="train mode"):
        divergence.kl(network(0).train(), network(1), torch.rand(2, 3, 16, 16))
