from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from kdlib.data.digits import Digits
from kdlib.distill import CRD, KL, Alone
from kdlib import measures
from kdlib.measures import Attack, Attacked, Divergence, Missed, Noise, Normalizer, Planes, Predictions, Regions
from kdlib.models import MnistNet, Model
from kdlib.probes import adversarial, boundary, divergence
from kdlib.probes.accuracy import predict
from kdlib.store import Store, digest
from kdlib.study import complete
from kdlib.train import Adadelta, Run, finish, fit

SUITE = Digits(limit=64)
ALONE = Run(data=SUITE, domains=("orig",), model=Model("mnistnet", {"size": 16}), objective=Alone(), schedule=Adadelta(1),
            seed="a")
TAUGHT = Run(data=SUITE, domains=("orig",), model=Model("mnistnet", {"size": 16}), objective=KL(0.1, 0.9, 8), teacher=ALONE,
             schedule=Adadelta(1), seed="b")
PLANES = Planes(SUITE, "color", count=3, resolution=5, images=2)
ATTACK = Attack(ALONE, SUITE, "color", eps=0.2, step_of_eps=0.25, steps=3, items=20, images=2)
NOISE = Noise(ATTACK)
FOUND = replace(ATTACK, eps=None, rate=0.6, calibrated_on=30)


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


def test_features_missed_are_a_share_of_the_teachers_variance():
    student, teacher, (x, _) = network(0), network(1), SUITE.test("orig", "cpu")
    ours, theirs = (net.conv2(net.relu1(net.conv1(x[:50]))).flatten(1).detach().double() for net in (student, teacher))
    missed = Missed(TAUGHT, ALONE, SUITE, "orig", "conv2", "conv2", 50).compute(student, teacher)["missed"]
    np.testing.assert_allclose(missed, ((ours - theirs) ** 2).mean(1) / ((theirs - theirs.mean()) ** 2).mean(), rtol=1e-4)
    assert not Missed(TAUGHT, ALONE, SUITE, "orig", "conv2", "conv2", 50).compute(teacher, teacher)["missed"].any()
    with pytest.raises(ValueError, match="missed: .* features of conv1 cannot be compared with .* of conv2"):
        Missed(TAUGHT, ALONE, SUITE, "orig", "conv1", "conv2", 50).compute(student, teacher)


def test_the_normalizer_of_a_student_is_the_one_that_its_training_reports(tmp_path):
    run = replace(TAUGHT, objective=CRD(1.0, 0.1, 0.1, 8, "relu3", "relu3"))
    measure, store = Normalizer(run), Store(tmp_path)
    found = complete([measure], store, jobs=1, progress=lambda line: None)[measure]
    assert store.read("run", run.key) is None and store.read("run", ALONE.key), "its student was trained, too"
    reported = fit(run, finish(ALONE, store))[1]["crd z"]
    assert found["z"].tolist() == [reported["student bank"], reported["teacher bank"]] and found["items"] == reported["items"] == 64
    assert measure.key != Normalizer(replace(run, seed="c")).key
    with pytest.raises(ValueError, match="normalizer: KL has none, only CRD does"):
        Normalizer(TAUGHT)


def test_a_network_in_train_mode_has_no_divergence():
    with pytest.raises(ValueError, match="train mode"):
        divergence.kl(network(0).train(), network(1), torch.rand(2, 3, 16, 16))


# attacks

@pytest.fixture
def crafted(monkeypatch):
    """A process that has made and calibrated nothing yet, and the number of images in each crafting."""
    made, craft = [], adversarial.ifgsm
    monkeypatch.setattr(measures, "_made", {})
    monkeypatch.setattr(measures, "_sizes", {})
    monkeypatch.setattr(adversarial, "ifgsm", lambda net, x, y, **settings: made.append(len(x)) or craft(net, x, y, **settings))
    return made


def varied(seed):
    """An untrained network that does not give all images one class."""
    net, (x, _) = network(seed), SUITE.test("color", "cpu")
    with torch.no_grad():
        net.fc2.bias -= net(x).mean(0)
    assert len(predict(net, x[:20]).unique()) > 3
    return net


def by_the_probe(net, items=20, **change):
    x, y = (part[:items] for part in SUITE.test("color", "cpu"))
    return adversarial.ifgsm(net, x, y, **dict(eps=0.2, step=0.05, steps=3) | change)


def test_a_student_is_asked_about_the_images_made_for_its_teacher(crafted):
    student, teacher = varied(1), varied(0)
    asked = Attacked(TAUGHT, ATTACK)
    assert asked.runs == (TAUGHT, ALONE)
    prediction = asked.compute(student, teacher)["prediction"]
    assert prediction.dtype == np.uint8 and (prediction == predict(student, by_the_probe(teacher)).numpy()).all()
    assert (prediction != predict(student, SUITE.test("color", "cpu")[0][:20]).numpy()).any()


def test_a_network_is_asked_about_its_own_images_and_about_all_of_them(crafted):
    net, whole = varied(0), replace(ATTACK, items=None)
    assert Attacked(ALONE, whole).runs == (ALONE, ALONE)
    prediction = Attacked(ALONE, whole).compute(net, net)["prediction"]
    assert prediction.shape == (64,) and (prediction == predict(net, by_the_probe(net, None)).numpy()).all()


def test_a_process_crafts_an_attack_once_for_all_students(crafted):
    teacher = varied(0)
    for seed in 1, 2, 3:
        Attacked(TAUGHT, ATTACK).compute(varied(seed), teacher)
    ATTACK.compute(teacher)
    Attacked(TAUGHT, replace(ATTACK, images=0)).compute(varied(1), teacher)  # how many are pictured makes no difference
    assert crafted == [20]
    Attacked(TAUGHT, replace(ATTACK, eps=0.1)).compute(varied(1), teacher)
    assert crafted == [20, 20]


def test_a_process_keeps_the_images_that_it_made_last(crafted):
    net, attacks = varied(0), [replace(ATTACK, eps=e) for e in (0.1, 0.2)]
    for which, total in (0, 1), (0, 1), (1, 2), (0, 3):
        found = attacks[which].draw("cpu", net)
        assert len(crafted) == total and torch.equal(found, by_the_probe(net, eps=attacks[which].eps, step=attacks[which].eps / 4)), crafted.pop()
        crafted.pop()  # the test's own
    assert len(measures._made) == 1


def test_an_eps_that_fools_the_network_at_a_rate(crafted):
    net, (x, y) = varied(0), SUITE.test("color", "cpu")
    wanted = adversarial.calibrate(net, x[:30], y[:30], rate=0.6, steps=3)
    crafted.clear()
    got = FOUND.compute(net)
    assert got["eps"].shape == () and got["eps"] == wanted == FOUND.size(net)
    assert torch.equal(FOUND.draw("cpu", net), by_the_probe(net, eps=wanted, step=wanted / 4))
    half = replace(FOUND, scale=0.5)
    assert half.compute(net)["eps"] == wanted / 2
    assert torch.equal(half.draw("cpu", net), by_the_probe(net, eps=wanted / 2, step=wanted / 8))
    assert replace(ATTACK, scale=0.5).compute(net)["eps"] == 0.1


def test_a_process_calibrates_once_for_all_students_and_scales(crafted):
    teacher = varied(0)
    for attack in FOUND, replace(FOUND, scale=2), Noise(FOUND), replace(FOUND, items=10):
        for seed in 1, 2:
            Attacked(TAUGHT, attack).compute(varied(seed), teacher)
    assert crafted.count(30) == len(crafted) - 3 > 3 and sorted(n for n in crafted if n != 30) == [10, 20, 20]
    calibrated = crafted.count(30)
    Attacked(TAUGHT, replace(FOUND, rate=0.5)).compute(varied(1), teacher)
    assert crafted.count(30) > calibrated


@pytest.mark.parametrize("settings", [dict(), dict(eps=0.1, rate=0.5)])
def test_an_attack_has_an_eps_or_a_rate(settings):
    with pytest.raises(ValueError, match="attack: needs eps, or the rate"):
        Attack(ALONE, SUITE, "color", **settings)


def test_whose_rate_cannot_be_reached_says_so(crafted):
    class Blind(torch.nn.Module):
        def forward(self, x):
            return (x.flatten(1)[:, :10] * 0).requires_grad_()

    with pytest.raises(ValueError, match="calibrate: .* ask for a lower rate, or name an eps"):
        FOUND.draw("cpu", Blind().eval())


def test_the_pictures_are_those_that_the_networks_see(crafted):
    net, (x, _) = varied(0), SUITE.test("color", "cpu")
    got = ATTACK.compute(net)
    assert (got["clean"] == (x[:2] * 255).round().byte().numpy()).all()
    assert (got["perturbed"] == (by_the_probe(net)[:2] * 255).round().byte().numpy()).all()
    difference = np.abs(got["clean"].astype(int) - got["perturbed"])
    assert difference.max() in (38, 39) and got["clean"].shape == (2, 3, 16, 16)  # three steps of 0.05 are 38.25 levels
    assert len(replace(ATTACK, images=0).compute(net)["perturbed"]) == 0


def test_noise_is_equal_for_all_networks_and_as_large_as_the_attack(crafted):
    net, teacher, (x, _) = varied(1), varied(0), SUITE.test("color", "cpu")
    assert NOISE.runs == (ALONE,) and Attacked(TAUGHT, NOISE).runs == (TAUGHT, ALONE)
    noisy = NOISE.draw("cpu", teacher)
    assert torch.equal(noisy, NOISE.draw("cpu", teacher)) and len(noisy) == 20 and not crafted
    inside = (x[:20] > 0.2) & (x[:20] < 0.8)
    torch.testing.assert_close((noisy - x[:20]).abs()[inside], torch.full((int(inside.sum()),), 0.2))
    assert (Attacked(TAUGHT, NOISE).compute(net, teacher)["prediction"] == predict(net, noisy).numpy()).all()
    got = NOISE.compute(teacher)
    assert (got["perturbed"] == (noisy[:2] * 255).round().byte().numpy()).all() and len(got["clean"]) == 2 and got["eps"] == 0.2
    assert torch.equal(noisy[:5], Noise(replace(ATTACK, items=5)).draw("cpu", teacher)), "more items move no other's"
    found = Noise(FOUND)
    assert found.compute(teacher)["eps"] == FOUND.size(teacher) and not torch.equal(found.draw("cpu", teacher), noisy)


@pytest.mark.parametrize("change", [dict(run=TAUGHT), dict(data=Digits(limit=32)), dict(domain="M"), dict(eps=0.1),
                                    dict(eps=None, rate=0.2), dict(scale=2), dict(step_of_eps=0.1), dict(steps=4), dict(items=None)])
def test_every_setting_of_an_attack_is_in_the_key(change):
    assert Attacked(TAUGHT, ATTACK).key != Attacked(TAUGHT, replace(ATTACK, **change)).key
    assert ATTACK.key != replace(ATTACK, **change).key
    assert Attacked(TAUGHT, NOISE).key != Attacked(TAUGHT, Noise(replace(ATTACK, **change))).key


def test_a_rate_and_what_it_is_reached_on_are_in_the_key():
    assert len({replace(FOUND, **change).key for change in ({}, dict(rate=0.7), dict(calibrated_on=31), dict(scale=0.5))}) == 4


def test_keys_of_attacks_tell_what_differs_and_nothing_else():
    assert Attacked(TAUGHT, ATTACK).key == Attacked(TAUGHT, replace(ATTACK, images=0)).key != Attacked(ALONE, ATTACK).key
    assert replace(ATTACK, eps=1).key == replace(ATTACK, eps=1.0).key and ATTACK.key != replace(ATTACK, images=0).key
    assert Attacked(TAUGHT, NOISE).key == Attacked(TAUGHT, Noise(replace(ATTACK, images=0))).key != Attacked(TAUGHT, ATTACK).key
    assert Attacked(TAUGHT, ATTACK).describe()["attack"]["run"] == ALONE.key


def test_a_study_trains_whom_an_attack_is_made_for_and_crafts_it_once(crafted, tmp_path):
    other, second = replace(ALONE, seed="c"), replace(TAUGHT, seed="d")
    made = [replace(ATTACK, run=run) for run in (ALONE, other)]
    asked = [Attacked(student, attack) for student in (TAUGHT, ALONE, second) for attack in made] + [ATTACK, Attacked(TAUGHT, NOISE)]
    store = Store(tmp_path)
    with ThreadPoolExecutor(1) as executor:
        got = complete(asked, store, jobs=executor, progress=lambda line: None)
    assert {kept.key for kept in store.folders() if kept.kind == "run"} == {r.key for r in (ALONE, TAUGHT, other, second)}
    assert crafted == [20, 20], "made for the first student, and for the second again"
    assert all(got[a]["prediction"].shape == (20,) for a in asked[:6]) and got[ATTACK]["clean"].shape[0] == 2
    store.remove(next(kept for kept in store.folders() if kept.key == asked[2].key))
    with ThreadPoolExecutor(1) as executor:
        again = complete(asked, store, jobs=executor, progress=lambda line: None)
    assert (again[asked[2]]["prediction"] == got[asked[2]]["prediction"]).all()


def test_what_is_costly_is_shared_by_all_that_ask_for_it():
    asked = [ATTACK, replace(ATTACK, images=5), Attacked(TAUGHT, ATTACK), Attacked(ALONE, replace(ATTACK, images=0))]
    assert len({m.shared for m in asked}) == 1 and ATTACK.shared not in {NOISE.shared, replace(ATTACK, scale=2).shared}
    assert NOISE.shared == Attacked(TAUGHT, NOISE).shared and Predictions(ALONE, SUITE, "M").shared is None
