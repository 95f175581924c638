import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax

from kdlib import losses
from kdlib.losses import cross_entropy, hint, kl

LOG2, LOG3 = 0.6931471805599453, 1.0986122886681098
FORMS = ["divergence", "cross entropy"]


def logits(batch, classes, seed=0, scale=2.0):
    return scale * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, student, *teacher, **options):
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, *teacher, **options), student)[0]


# KL by hand

@pytest.mark.parametrize("student, teacher, tau, divergence, entropy", [
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2, and log 2
    ([0, 0], [LOG3, 0], 1, 0.13081203594113697, LOG2),
    # the other way round: 1/2 log 2/3 + 1/2 log 2, and -1/2 log 3/4 - 1/2 log 1/4
    ([LOG3, 0], [0, 0], 1, 0.14384103622589042, 0.8369882167858358),
    # the first again at tau = 2: the softened probabilities are the same, so 4 times its values
    ([0, 0], [2 * LOG3, 0], 2, 0.5232481437645479, 4 * LOG2),
    # p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): 1/4 log 2, and 7/4 log 2
    ([0, 0, LOG2], [LOG2, 0, 0], 1, 0.17328679513998632, 1.2130075659799042),
])
def test_kl_by_hand(student, teacher, tau, divergence, entropy):
    student, teacher = (torch.tensor([z], dtype=torch.float64) for z in (student, teacher))
    assert kl(student, teacher, tau=tau).item() == pytest.approx(divergence, rel=1e-12)
    assert kl(student, teacher, tau=tau, form="cross entropy").item() == pytest.approx(entropy, rel=1e-12)


def test_kl_is_the_mean_over_the_batch():
    student = torch.tensor([[0, 0, LOG2], [0, 0, 0]])
    teacher = torch.tensor([[LOG2, 0, 0], [0, 0, 0]])
    assert kl(student, teacher, tau=1).item() == pytest.approx(0.17328679513998632 / 2)


@pytest.mark.parametrize("tau", [0.5, 1, 4])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_kl_against_scipy(classes, tau):
    z_s, z_t = logits(7, classes, 1), logits(7, classes, 2)
    q, p = (softmax(z.numpy() / tau, axis=1) for z in (z_s, z_t))
    assert kl(z_s, z_t, tau=tau).item() == pytest.approx(tau**2 * rel_entr(p, q).sum(1).mean())
    assert kl(z_s, z_t, tau=tau, form="cross entropy").item() == pytest.approx(tau**2 * (-p * np.log(q)).sum(1).mean())


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_kl_sums_over_classes_and_does_not_average_over_them(classes):
    z_s, z_t = logits(5, classes, 1), logits(5, classes, 2)
    both = F.log_softmax(z_s / 3, 1), F.log_softmax(z_t / 3, 1)
    got = kl(z_s, z_t, tau=3.0).item()
    assert got == pytest.approx(9 * F.kl_div(*both, reduction="sum", log_target=True).item() / 5)
    assert got == pytest.approx(classes * 9 * F.kl_div(*both, reduction="none", log_target=True).mean().item())


# KL's properties

def test_both_forms_have_one_gradient():
    z_s, z_t = logits(6, 5, 1), logits(6, 5, 2)
    one, other = (gradient(kl, z_s, z_t, tau=4.0, form=form) for form in FORMS)
    torch.testing.assert_close(one, other)
    assert one.abs().max() > 0.01


def test_both_forms_differ_by_the_teachers_entropy():
    z_s, z_t = logits(6, 5, 1), logits(6, 5, 2)
    entropy = torch.distributions.Categorical(logits=z_t / 4).entropy().mean()
    difference = kl(z_s, z_t, tau=4.0, form="cross entropy") - kl(z_s, z_t, tau=4.0)
    assert difference.item() == pytest.approx(16 * entropy.item())


def test_kl_is_zero_where_both_agree_and_positive_elsewhere():
    z = logits(6, 5)
    assert kl(z, z, tau=4.0).item() == 0
    assert kl(z + 100, z, tau=4.0).item() == pytest.approx(0, abs=1e-12)
    assert kl(z, z.flip(1), tau=4.0).item() > 0.1


@pytest.mark.parametrize("form", FORMS)
def test_kl_ignores_a_constant_added_to_an_items_logits(form):
    z_s, z_t = logits(6, 5, 1), logits(6, 5, 2)
    shift = logits(6, 1, 3, scale=50)
    assert kl(z_s + shift, z_t - shift, tau=2.0, form=form).item() == pytest.approx(kl(z_s, z_t, tau=2.0, form=form).item())


@pytest.mark.parametrize("form", FORMS)
def test_kl_does_not_depend_on_batch_size_or_on_classes_that_nobody_expects(form):
    z_s, z_t = logits(6, 5, 1), logits(6, 5, 2)
    once = kl(z_s, z_t, tau=2.0, form=form).item()
    assert kl(torch.cat([z_s, z_s]), torch.cat([z_t, z_t]), tau=2.0, form=form).item() == pytest.approx(once)
    assert kl(F.pad(z_s, (0, 95), value=-200), F.pad(z_t, (0, 95), value=-200), tau=2.0, form=form).item() == pytest.approx(once)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_at_high_temperature_is_the_difference_of_logits_over_classes(form, dtype):
    z_s, z_t = (logits(1, 10, seed).to(dtype) for seed in (1, 2))
    z_s, z_t = z_s - z_s.mean(), z_t - z_t.mean()
    torch.testing.assert_close(gradient(kl, z_s, z_t, tau=1000.0, form=form), (z_s - z_t) / 10, rtol=0.02, atol=0.002)


def test_the_gradient_hardly_depends_on_tau_once_tau_is_at_the_logits_scale():
    z_s, z_t = logits(64, 10, 1), logits(64, 10, 2)  # scale 2
    size = {tau: gradient(kl, z_s, z_t, tau=tau).norm().item() for tau in (0.1, 2.0, 4.0, 8.0, 16.0)}
    assert all(size[tau] == pytest.approx(size[8.0], rel=0.2) for tau in (2.0, 4.0, 16.0)), size
    assert size[0.1] < 0.5 * size[8.0], "far below the logits' scale it does depend on tau"


def test_kl_is_finite_for_very_sure_networks():
    z = torch.tensor([[1e4, 0.0, -1e4]])
    assert math.isfinite(kl(z, -z, tau=1.0).item()) and gradient(kl, z, -z, tau=1.0).isfinite().all()


# Hint

@pytest.mark.parametrize("form, expected", [("mean", 30 / 8), ("printed", 30 / 4)])  # 2 items, 4 features: squares add up to 30
def test_hint_by_hand(form, expected):
    student = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]])
    assert hint(student, torch.zeros(2, 2, 2), form=form).item() == pytest.approx(expected)
    assert hint(torch.zeros(2, 2, 2), student, form=form).item() == pytest.approx(expected)
    assert hint(student, student, form=form).item() == 0


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 4, 4)])
def test_printed_hint_is_half_the_number_of_features_times_the_mean(shape):
    f_s, f_t = (logits(3, math.prod(shape[1:]), seed).reshape(shape) for seed in (1, 2))
    assert hint(f_s, f_t, form="printed").item() == pytest.approx(math.prod(shape[1:]) / 2 * hint(f_s, f_t).item())


@pytest.mark.parametrize("form", ["mean", "printed"])
def test_hint_does_not_depend_on_batch_size(form):
    f_s, f_t = (logits(3, 32, seed).reshape(3, 8, 2, 2) for seed in (1, 2))
    assert hint(torch.cat([f_s, f_s]), torch.cat([f_t, f_t]), form=form).item() == pytest.approx(hint(f_s, f_t, form=form).item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_hint_is_the_plain_mean_of_squares_to_the_last_bit(dtype):
    # the weights of every trained Hint student hang on it
    f_s, f_t = (logits(3, 5 * 7 * 7, seed).reshape(3, 5, 7, 7).to(dtype) for seed in (1, 2))
    wide, gradients, values = torch.promote_types(dtype, torch.float32), [], []
    for loss in hint, lambda s, t: (t.to(wide) - s.to(wide)).square().mean():
        student = f_s.detach().clone().requires_grad_()
        values.append(loss(student, f_t))
        (1.7 * values[-1]).backward()
        gradients.append(student.grad)
    assert torch.equal(*values) and torch.equal(*gradients) and values[0].dtype == wide


def test_hint_between_two_precisions_is_computed_in_the_wider():
    student = torch.ones(2, 3, requires_grad=True)
    value = hint(student, torch.full((2, 3), 1 + 1e-9, dtype=torch.float64))
    value.backward()
    assert value.item() == pytest.approx(1e-18, rel=1e-6) and student.grad.dtype == torch.float32


# cross entropy

def test_cross_entropy_by_hand():
    z, labels = torch.tensor([[LOG3, 0], [0, 0]]), torch.tensor([1, 0])
    assert cross_entropy(z, labels).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


# types, the teacher, errors

@pytest.mark.parametrize("loss, options", [(kl, {"tau": 2.0}), (kl, {"tau": 2.0, "form": "cross entropy"}), (hint, {}),
                                           (hint, {"form": "printed"})])
def test_types_and_gradients(loss, options):
    student, teacher = logits(4, 5, 1), logits(4, 5, 2)
    assert loss(student, teacher, **options).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, **options), student.clone().requires_grad_())
    low = student.bfloat16(), teacher.bfloat16()
    assert loss(*low, **options).dtype == torch.float32
    torch.testing.assert_close(loss(*low, **options), loss(*(t.float() for t in low), **options), rtol=0, atol=0)
    torch.testing.assert_close(loss(low[0], low[1].float(), **options), loss(*low, **options), rtol=0, atol=0)


@pytest.mark.parametrize("loss, options", [(kl, {"tau": 2.0}), (kl, {"tau": 2.0, "form": "cross entropy"}), (hint, {})])
def test_the_teacher_gets_no_gradient(loss, options):
    student, teacher = logits(4, 5, 1).requires_grad_(), logits(4, 5, 2).requires_grad_()
    loss(student, teacher, **options).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize("call, message", [
    (lambda: kl(torch.zeros(2, 3), torch.zeros(2, 4), tau=1), r"kl: student (2, 3) and teacher (2, 4) must have one shape of 2 dimensions"),
    (lambda: kl(torch.zeros(3), torch.zeros(3), tau=1), r"kl: student (3,) and teacher (3,) must have one shape of 2 dimensions"),
    (lambda: kl(torch.zeros(2, 3), torch.zeros(1, 3), tau=1), r"kl: student (2, 3) and teacher (1, 3) must have one shape of 2 dimensions"),
    (lambda: hint(torch.zeros(2, 3), torch.zeros(2, 4)), r"hint: student (2, 3) and teacher (2, 4) must have one shape"),
    (lambda: kl(torch.zeros(2, 3), torch.zeros(2, 3), tau=0), "kl: tau must be positive and finite, got 0"),
    (lambda: kl(torch.zeros(2, 3), torch.zeros(2, 3), tau=-1.0), "kl: tau must be positive and finite, got -1.0"),
    (lambda: kl(torch.zeros(2, 3), torch.zeros(2, 3), tau=math.nan), "kl: tau must be positive and finite, got nan"),
    (lambda: kl(torch.zeros(2, 3), torch.zeros(2, 3), tau=1, form="ce"), "kl: form is 'divergence' or 'cross entropy', not 'ce'"),
    (lambda: hint(torch.zeros(2, 3), torch.zeros(2, 3), form="sum"), "hint: form is 'mean' or 'printed', not 'sum'"),
])
def test_errors_are_one_clear_line(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


# CRD (Eq. 3)

def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def crd_case(batch=4, m=60, d=16):
    bank, labels = unit(m, d, seed=1), torch.arange(m) % 5
    return unit(batch, d, seed=2), bank[:batch], bank, labels[:batch, None] != labels


def test_crd_by_hand():
    # one image, two dimensions, bank of three: itself, one of its class, one of another; a.b = 1, 0 and -1
    s, bank = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    negative, tau, n, z = torch.tensor([[False, False, True]]), 0.5, 2.0, 3.0
    h = lambda dot: (math.exp(dot / tau) / z) / (math.exp(dot / tau) / z + n / 3)
    wanted = -math.log(h(1)) - n / 1 * math.log(1 - h(-1))
    assert losses.crd(s, bank[:1], bank, negative, tau=tau, n=n, z=z).item() == pytest.approx(wanted, rel=1e-6)
    # as printed, without z
    h1 = lambda dot: math.exp(dot / tau) / (math.exp(dot / tau) + n / 3)
    assert losses.crd(s, bank[:1], bank, negative, tau=tau, n=n, z=1).item() == pytest.approx(-math.log(h1(1)) - 2 * math.log(1 - h1(-1)), rel=1e-6)


def test_the_printed_form_and_the_normalised_one_are_far_apart_at_the_papers_settings():
    # ImageNet: N = 16,384, M = 1,281,167; at similarity 0. A bank of one with z N/M in the place of z has their h for every pair.
    n, m, d, tau = 16384, 1281167, 128, 0.07
    one, other = torch.eye(d, dtype=torch.float64)[:2, None]
    spread = math.exp(1 / (2 * d * tau**2))
    for z, h, rounded in (1, 1 / (1 + n / m), 0.987), (m * spread, 1 / (1 + n * spread), 2.7e-5):
        loss = losses.crd(one, other, other, torch.ones(1, 1), tau=tau, n=1, z=z * n / m).item()
        assert h == pytest.approx(rounded, rel=0.05) and loss == pytest.approx(-math.log(h) - math.log(1 - h), rel=1e-6)


def test_crd_over_the_bank_is_the_expectation_of_the_sampled_one():
    s, t, bank, negative = crd_case()
    exact = losses.crd(s, t, bank, negative, tau=0.3, n=8, z=70.0).item()
    generator, draws = torch.Generator().manual_seed(3), []
    for _ in range(4000):
        idx = torch.multinomial(negative.float(), 8, replacement=True, generator=generator)
        draws.append(losses.crd_sampled(s, t, bank[idx], tau=0.3, m=60, z=70.0).item())
    draws = torch.tensor(draws)
    assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / len(draws) ** 0.5
    assert draws.std() > 0


def test_crd_does_not_look_at_items_of_the_same_class():
    s, t, bank, negative = crd_case()
    changed = bank.clone()
    same = ~negative[0]
    changed[same] = -changed[same]
    one, two = (losses.crd(s[:1], t[:1], b, negative[:1], tau=0.1, n=32, z=60.0) for b in (bank, changed))
    assert torch.equal(one, two)
    changed[negative[0]] = -changed[negative[0]]
    assert not torch.equal(one, losses.crd(s[:1], t[:1], changed, negative[:1], tau=0.1, n=32, z=60.0))


def test_the_measured_normaliser_is_the_closed_form_on_a_random_bank():
    d, m, tau = 128, 50_000, 0.07
    bank = unit(m, d, seed=5)
    got = losses.crd_normalizer(unit(200, d, seed=6), bank, tau=tau)
    assert got == pytest.approx(m * math.exp(1 / (2 * d * tau**2)), rel=0.02)


def test_crd_is_finite_where_exponentials_overflow():
    s = unit(3, 16).requires_grad_()
    bank = torch.cat([s.detach(), -s.detach(), s.detach()])
    negative = torch.tensor([[False] * 3 + [True] * 6]).expand(3, 9)
    for tau in (0.07, 0.002):  # e^(1/0.002) overflows even float64 sums
        value = losses.crd(s, s.detach(), bank, negative, tau=tau, n=16384, z=1e5)
        value.backward()
        assert value.isfinite() and s.grad.isfinite().all()


def test_crd_is_told_how_many_negatives_there_are_or_counts_them():
    s, t, bank, negative = crd_case()
    counted, told = (losses.crd(s, t, bank, negative, tau=0.1, n=8, z=60.0, count=count) for count in (None, negative.sum(1)))
    assert torch.equal(counted, told)


@pytest.mark.parametrize("change, message", [
    (dict(negative=torch.zeros(4, 60, dtype=torch.bool)), "4 of 4 rows have no negative"),
    (dict(negative=torch.ones(4, 59, dtype=torch.bool)), r"crd: bank is \(M, D\) and negative \(batch, M\), got \(60, 16\)"),
    (dict(negative=torch.ones(60, dtype=torch.bool)), r"crd: bank is \(M, D\) and negative \(batch, M\), got \(60, 16\)"),
    (dict(teacher=unit(4, 15)), "must have one shape"),
    (dict(bank=unit(60, 15)), r"crd: \(60, 15\) does not go with features \(4, 16\)"),
    (dict(tau=0.0), "tau must be positive"),
    (dict(count=torch.tensor([45, 45, 0, 45])), "1 of 4 rows have no negative"),
    (dict(count=torch.tensor([45])), r"crd: count is \(batch,\), got \(1,\) for a batch of 4"),
])
def test_crd_refuses_what_does_not_fit(change, message):
    s, t, bank, negative = crd_case()
    with pytest.raises(ValueError, match=message):
        losses.crd(**dict(student=s, teacher=t, bank=bank, negative=negative, tau=0.1, n=8, z=1.0) | change)
