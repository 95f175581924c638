import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlib import losses
from kdlib.distill import CRD, KL, Alone, Hint, Regressor
from kdlib.store import describe, key

LABELS = torch.tensor([0, 2, 1, 1])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# the regressor

@pytest.mark.parametrize("shape", [(8,), (8, 4, 4)])
def test_regressor_is_the_identity_where_shapes_agree(shape):
    regressor = Regressor(shape, shape)
    student, teacher = draw(4, *shape, seed=1), draw(4, *shape, seed=2)
    assert list(regressor.parameters()) == []
    assert all(torch.equal(got, given) for got, given in zip(regressor(student, teacher), (student, teacher)))


@pytest.mark.parametrize("student, teacher, common", [
    ((8, 4, 4), (16, 8, 8), (16, 4, 4)),  # as VGG's larger map against ResNet's
    ((8, 8, 8), (16, 4, 4), (16, 4, 4)),
    ((8, 4, 4), (16, 4, 4), (16, 4, 4)),
    ((8, 6, 6), (8, 4, 4), (8, 4, 4)),
    ((8, 8, 4), (16, 4, 8), (16, 4, 4)),
    ((8,), (16,), (16,)),
])
def test_regressor_brings_both_to_one_shape(student, teacher, common):
    regressor = Regressor(student, teacher)
    mapped, target = regressor(draw(3, *student), draw(3, *teacher))
    assert mapped.shape == target.shape == (3, *common)
    weight, bias = regressor.parameters()
    assert weight.shape[:2] == (teacher[0], student[0]) and weight[0, 0].numel() == 1 and bias.shape == (teacher[0],)


@pytest.mark.parametrize("larger", ["student", "teacher"])
def test_regressor_averages_the_larger_map_and_then_mixes_channels(larger):
    sizes = {"student": 2, "teacher": 2, larger: 4}
    student, teacher = draw(3, 2, sizes["student"], sizes["student"], seed=1), draw(3, 5, sizes["teacher"], sizes["teacher"], seed=2)
    regressor = Regressor(student.shape[1:], teacher.shape[1:])

    def means(f):
        return f if f.shape[-1] == 2 else f.reshape(*f.shape[:2], 2, 2, 2, 2).mean((3, 5))

    mapped, target = regressor(student, teacher)
    mixed = torch.einsum("oi,bihw->bohw", regressor.map.weight[:, :, 0, 0], means(student)) + regressor.map.bias[:, None, None]
    torch.testing.assert_close(mapped, mixed)
    torch.testing.assert_close(target, means(teacher))
    assert (mapped < 0).any(), "no ReLU at the end"


@pytest.mark.parametrize("student, teacher", [((8,), (8, 4, 4)), ((8, 4, 4), (8,)), ((8, 4), (8, 4)), ((), ())])
def test_regressor_refuses_what_it_cannot_map(student, teacher):
    with pytest.raises(ValueError) as error:
        Regressor(student, teacher)
    assert str(error.value).startswith(f"hint: cannot map student features {student} to teacher features {teacher}" + ";")


# the objectives

def test_alone_is_the_cross_entropy():
    logits = draw(4, 3)
    assert Alone().build(None, None)(logits, LABELS, None, None).item() == pytest.approx(F.cross_entropy(logits, LABELS).item())


def test_kl_is_the_weighted_sum():
    logits, target = draw(4, 3, seed=1), draw(4, 3, seed=2)
    p, q = (target / 4).softmax(1), (logits / 4).softmax(1)
    expected = 0.3 * F.cross_entropy(logits, LABELS) + 0.9 * 16 * (p * (p / q).log()).sum() / 4
    got = KL(gamma=0.3, alpha=0.9, tau=4.0).build((3,), (3,))(logits, LABELS, None, target)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("form, scale", [("mean", 1), ("printed", 5 * 2 * 2 / 2)])
def test_hint_is_the_weighted_sum(form, scale):
    logits, features, target = draw(4, 3, seed=1), draw(4, 2, 2, 2, seed=2), draw(4, 5, 4, 4, seed=3)
    loss = Hint(gamma=0.3, beta=2.0, student_layer="a", teacher_layer="b", form=form).build((2, 2, 2), (5, 4, 4))
    distance = (loss.regressor.map(features) - F.avg_pool2d(target, 2)).square().mean()
    expected = 0.3 * F.cross_entropy(logits, LABELS) + 2.0 * scale * distance
    assert loss(logits, LABELS, features, target).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("objective", [Alone(), KL(1.0, 0.9, 4.0), Hint(1.0, 2.0, "a", "b")])
def test_only_hint_trains_something_beside_the_student(objective):
    parameters = list(objective.build((2, 2, 2), (5, 4, 4)).parameters())
    assert sum(p.numel() for p in parameters) == (2 * 5 + 5 if isinstance(objective, Hint) else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("objective", [KL(0.0, 0.9, 4.0), Hint(0.0, 2.0, "a", "b")])
def test_the_student_and_the_regressor_learn_and_the_teacher_does_not(objective, dtype):
    logits, teacher_logits = draw(4, 3, seed=1).to(dtype), draw(4, 3, seed=2).to(dtype)
    features, teacher_features = draw(4, 2, 2, 2, seed=3).to(dtype), draw(4, 5, 4, 4, seed=4).to(dtype)
    of_hint = isinstance(objective, Hint)
    target = (teacher_features if of_hint else teacher_logits).requires_grad_()
    learnt = (features if of_hint else logits).requires_grad_()
    loss = objective.build(features.shape[1:], target.shape[1:])
    loss(logits, LABELS, features, target).backward()
    assert learnt.grad.abs().sum() > 0 and target.grad is None
    assert all(p.grad.abs().sum() > 0 for p in loss.parameters())


def test_a_hint_can_be_learnt_below_zero():
    # a regressor that ended in ReLU could not: the features of a layer before its ReLU are negative too
    features, target = draw(16, 2, 2, 2, seed=1), -1 - draw(16, 5, 2, 2, seed=2).abs()
    loss = Hint(0.0, 1.0, "a", "b").build((2, 2, 2), (5, 2, 2))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(200):
        value = loss(draw(16, 3), torch.zeros(16, dtype=torch.long), features, target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value.item() < 0.6 < target.square().mean().item()


@pytest.mark.parametrize("positive", ["bank", "current"])
def test_crd_scores_both_ways_against_banks_that_follow_by_half(positive):
    """Two steps with heads that stay as they are: Eq. 3 in both directions, and where the positive comes from."""
    idx, labels = torch.tensor([0, 3]), torch.arange(6) % 3
    filled, now = [[F.normalize(draw(n, 4, seed=seed), dim=1) for seed in seeds] for n, seeds in ((6, (1, 2)), (2, (3, 4)))]
    loss = CRD(0.5, 2.0, 0.2, 8, "a", "b", positive=positive).build((4,), (4,))
    loss.heads = nn.ModuleList([nn.Identity(), nn.Identity()])
    loss.fill(*filled, labels)
    logits, banks = draw(2, 3, seed=5), [bank.clone() for bank in filled]
    for _ in range(2):
        positives = now if positive == "current" else [bank[idx] for bank in banks]
        contrast = sum(losses.crd(now[a], positives[b], banks[b], labels[idx][:, None] != labels, tau=0.2, n=8, z=loss.z[b]) for a, b in ((0, 1), (1, 0)))
        wanted = 0.5 * F.cross_entropy(logits, labels[idx]) + 2 * contrast
        assert loss(logits, labels[idx], *now, idx).item() == pytest.approx(wanted.item(), rel=1e-6)
        for bank, feature in zip(banks, now):
            bank[idx] = F.normalize(bank[idx] / 2 + feature / 2, dim=1)


@pytest.mark.parametrize("form", ["exact", "sampled"])
def test_crd_learns_nothing_from_features_that_say_nothing(form):
    """All images have the same features, so no score is better than the same h for all: log(N + 1) + N log(1 + 1/N) a direction.
    A positive that is fresher than the negatives is told from them by heads that move, and by nothing in the images."""
    n, blind, labels = 32, torch.ones(256, 8), torch.arange(256) % 4

    def lowest(positive):
        torch.manual_seed(0)
        loss = CRD(0.0, 1.0, 0.1, n, "a", "b", dim=16, form=form, positive=positive).build((8,), (8,))
        loss.fill(blind, blind, labels)
        optimizer, epochs = torch.optim.SGD(loss.parameters(), lr=0.01, momentum=0.9), []
        for _ in range(10):
            epochs.append(0.0)
            for idx in torch.randperm(256).split(32):
                value = loss(torch.zeros(32, 4), labels[idx], blind[idx], blind[idx], idx)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                epochs[-1] += value.item() / 8
        return min(epochs)

    uninformed = 2 * (math.log(n + 1) + n * math.log(1 + 1 / n))
    assert lowest("bank") > uninformed - 0.05 and lowest("current") < uninformed / 2


def test_the_printed_form_is_the_exact_one_without_z():
    crd, (s, t) = CRD(0.0, 1.0, 0.3, 4, "a", "b", dim=8, form="printed"), (draw(40, 5), draw(40, 5, seed=1))
    labels, idx = torch.arange(40) % 4, torch.arange(0, 40, 5)
    module = crd.build((5,), (5,)).eval()
    module.fill(s, t, labels)
    own = module.embed(0, s[idx]), module.embed(1, t[idx])
    wanted = sum(losses.crd(own[i], module.banks[1 - i][idx], module.banks[1 - i], labels[idx][:, None] != labels, tau=0.3, n=4, z=1) for i in (0, 1))
    assert module(torch.zeros(8, 4), labels[idx], s[idx], t[idx], idx).item() == pytest.approx(wanted.item())


def test_negatives_are_drawn_alike_from_all_items_of_other_classes():
    labels = torch.tensor([2, 0, 5, 2, 2, 0, 5, 0, 2, 5])  # of unequal size, unsorted, with classes that are absent
    torch.manual_seed(0)
    loss = CRD(0.0, 1.0, 0.1, 20_000, "a", "b", dim=4, form="sampled").build((4,), (4,))
    loss.fill(draw(10, 4, seed=1), draw(10, 4, seed=2), labels)
    drawn = loss._draw(torch.tensor([2, 0, 5, 2]))
    assert drawn.shape == (4, 20_000) and not torch.equal(drawn[0], drawn[3])
    for row, label in zip(drawn, (2, 0, 5, 2)):
        share = row.bincount(minlength=10) / 20_000
        others = labels != label
        assert not share[~others].any() and torch.allclose(share[others], 1 / others.sum(), atol=0.011)  # four standard errors of 1 / 6


@pytest.mark.parametrize("m, classes", [(60_000, 10), (50_000, 1000), (7, 2), (300_000, 3), (97, 97)])
def test_drawn_negatives_are_those_of_multinomial_over_the_mask(m, classes):
    labels = torch.randint(classes, (m,), generator=torch.Generator().manual_seed(1))
    labels[:2] = torch.tensor([0, classes - 1])
    loss = CRD(0.0, 1.0, 0.1, 500, "a", "b", dim=4, form="sampled").build((4,), (4,))
    loss.fill(draw(m, 4, seed=1), draw(m, 4, seed=2), labels)
    batch = labels[torch.randperm(m, generator=torch.Generator().manual_seed(2))[:64]]
    twin = torch.Generator().manual_seed(loss.draws)
    for _ in range(3):
        assert torch.equal(loss._draw(batch), torch.multinomial((batch[:, None] != labels).float(), 500, replacement=True, generator=twin))


def test_the_sampled_form_is_on_average_the_exact_one_of_whole_training():
    features, labels, idx = [draw(40, 4, seed=seed) for seed in (1, 2)], torch.arange(40) % 3, torch.arange(5)
    torch.manual_seed(0)
    made = {form: CRD(0.0, 1.0, 0.2, 8, "a", "b", dim=4, form=form).build((4,), (4,)) for form in ("exact", "sampled")}
    made["sampled"].load_state_dict(made["exact"].state_dict())
    for loss in made.values():
        loss.fill(*features, labels)
        loss.eval()  # the banks stay as they are
    values = torch.stack([made["sampled"](draw(5, 3), labels[idx], *(f[idx] for f in features), idx) for _ in range(2000)]).detach()
    exact = made["exact"](draw(5, 3), labels[idx], *(f[idx] for f in features), idx).item()
    assert abs(values.mean().item() - exact) < 4 * values.std().item() / 2000**0.5 < 0.01 * exact


def test_negatives_of_a_set_of_one_class_are_refused():
    loss = CRD(0.0, 1.0, 0.1, 8, "a", "b", dim=4, form="sampled").build((4,), (4,))
    with pytest.raises(ValueError, match="every training item is of one class"):
        loss.fill(draw(6, 4), draw(6, 4), torch.ones(6, dtype=torch.long))


@pytest.mark.parametrize("make, message", [
    (lambda: CRD(1.0, 1.0, 0.1, 8, "a", "b", form="some"), "CRD: form is exact, sampled or printed, not 'some'"),
    (lambda: CRD(1.0, 1.0, 0.1, 8, "a", "b", positive="fresh"), "CRD: positive is bank or current, not 'fresh'"),
    (lambda: Hint(1.0, 1.0, "a", "b", form="sum"), "Hint: form is mean or printed, not 'sum'"),
])
def test_objectives_refuse_what_they_do_not_know(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("objective", [Alone(), KL(1.0, 0.9, 4.0), Hint(1.0, 2.0, "a", "b")])
def test_objectives_are_values(objective):
    with pytest.raises(AttributeError):
        objective.gamma = 2.0
    assert objective == eval(repr(objective)) and hash(objective) == hash(eval(repr(objective)))
    assert isinstance(objective.build((2, 2, 2), (5, 4, 4)), nn.Module)


def test_equal_settings_are_equal_keys():
    assert key(describe(KL(1, 0, 4))) == key(describe(KL(1.0, 0.0, 4.0)))
    assert key(describe(KL(1, 0, 4))) != key(describe(KL(1, 0, 5)))
    with pytest.raises(TypeError, match="integer"):
        CRD(1, 1, 0.1, 512.0, "a", "b")
