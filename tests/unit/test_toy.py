import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit

from kdlib import losses, toy
from kdlib.probes import boundary


def draw(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, m)), rng.standard_normal(m + 1)


def along(directions, vector):
    """The projection of a vector onto the span of the rows."""
    return np.linalg.pinv(directions) @ directions @ vector


def ones(x):
    return np.column_stack([x, np.ones(len(x))])


def test_the_stream_is_mulberry32():
    # the reference's first numbers for seeds 1 and 2^32 - 1, written out with Python's unbounded integers masked at every step
    def reference(a, n):
        found = []
        for _ in range(n):
            a = (a + 0x6D2B79F5) % 2**32
            t = ((a ^ (a >> 15)) * (1 | a)) % 2**32
            t = ((t + (((t ^ (t >> 7)) * (61 | t)) % 2**32)) % 2**32) ^ t
            found.append(((t ^ (t >> 14)) % 2**32) / 4294967296)
        return found

    for seed in 1, 2**32 - 1:
        assert list(itertools.islice(toy.stream(seed), 5)) == reference(seed, 5)
    u = np.array(list(itertools.islice(toy.stream(3), 20000)))
    assert 0 <= u.min() and u.max() < 1 and u.mean() == pytest.approx(0.5, abs=0.01) and u.var() == pytest.approx(1 / 12, abs=0.003)


def test_normals_have_mean_0_and_variance_1_and_start_lies_within_1():
    z = toy.normals(1, 4000)
    assert z.shape == (4000,) and abs(z.mean()) < 0.06 and z.std() == pytest.approx(1, abs=0.05) and np.abs(z).max() <= 6
    assert toy.normals(1, 3).tolist() == z[:3].tolist()
    assert toy.start(7, m=4).shape == (5,) and np.abs(toy.start(7, m=4)).max() < 1
    assert toy.start(7).tolist() == [2 * u - 1 for u in itertools.islice(toy.stream(7), 3)]


def test_distance_by_hand():
    theta = np.array([3.0, 4.0, -5.0])  # 3 x1 + 4 x2 = 5
    assert toy.logits(theta, np.array([[0.0, 0], [3, 4]])).tolist() == [-5, 20]
    assert toy.distance(theta, np.array([[0.0, 0], [3, 4]])).tolist() == [-1, 4]
    with pytest.raises(ValueError, match="w is 0"):
        toy.distance(np.array([0.0, 0, 1]), np.zeros((1, 2)))


def test_teacher_of_two_mirrored_points_solves_one_equation():
    # points -1 and 1: b = 0 by symmetry, and w = sigmoid(-w) / penalty
    theta = toy.teacher(np.array([[-1.0], [1.0]]), np.array([0, 1]), penalty=0.1)
    assert theta[1] == pytest.approx(0, abs=1e-12) and theta[0] == pytest.approx(expit(-theta[0]) / 0.1, abs=1e-8)


def test_teacher_minimises_its_objective_whatever_the_points():
    x, truth = draw(40, 3)
    rng = np.random.default_rng(1)
    for y in (toy.logits(truth, x) > 0).astype(int), rng.integers(0, 2, 40), np.ones(40, int):
        def objective(theta):
            return np.logaddexp(0, -(2 * y - 1) * toy.logits(theta, x)).mean() + toy.PENALTY / 2 * theta @ theta

        found = toy.teacher(x, y)
        assert found == pytest.approx(minimize(objective, np.zeros(4), tol=1e-12).x, abs=1e-4)
        assert objective(found) <= min(objective(found + 1e-3 * rng.standard_normal(4)) for _ in range(50))
    assert toy.teacher(np.empty((0, 2)), np.empty(0)).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="penalty must be positive"):
        toy.teacher(x, y, penalty=0)


@pytest.fixture
def newton(monkeypatch):
    """Of the teacher of some points: Newton's iterations, and how often a step of them was halved."""
    calls = {}

    def counted(name):
        of = getattr(toy, name)

        def call(*given):
            calls[name] += 1
            return of(*given)
        monkeypatch.setattr(toy, name, call)

    counted("_cross_entropy")  # once for the start, and for each step tried
    counted("expit")  # once an iteration, and once more to see that the gradient is 0

    def newton(x, y, **options):
        calls.update(_cross_entropy=0, expit=0)
        toy.teacher(x, y, **options)
        return calls["expit"] - 1, calls["_cross_entropy"] - calls["expit"]

    return newton


@pytest.mark.parametrize("seed", [17, 54, 123, 131, 237, 243])
def test_no_step_is_halved_where_only_rounding_makes_the_objective_grow(newton, seed):
    rng = np.random.default_rng(seed)
    x = np.round(rng.uniform([-5, -4], [5, 4], (int(rng.integers(2, 200)), 2)), 2)
    y = (x @ rng.standard_normal(2) + rng.standard_normal() > 0).astype(int) if seed % 3 else rng.integers(0, 2, len(x))
    iterations, halvings = newton(x, y)
    assert halvings == 0 and iterations < 10


def test_a_step_that_goes_too_far_is_halved(newton):
    x, y = np.array([[-20.0, 0], [0, 70], [50, -40], [80, -70]]), np.array([1, 1, 1, 0])
    iterations, halvings = newton(x, y, penalty=1e-6)
    assert halvings > 0 and iterations < 30


def test_a_training_step_by_hand():
    # one point at x = 2 from w = 0, b = 0: z = 0. CE: g = 1/2 - 1; KL at tau = 2, target 2 log 3: g = 2 (1/2 - 3/4)
    common = dict(start=np.zeros(2), lr=0.1, steps=1, labels=np.array([1]), targets=np.array([2 * np.log(3)]), tau=2.0)
    x = np.array([[2.0]])
    assert toy.train(x, gamma=1, **common) == pytest.approx([0.1, 0.05])
    assert toy.train(x, alpha=1, **common) == pytest.approx([0.1, 0.05])
    assert toy.train(x, gamma=0.5, alpha=3, **common) == pytest.approx([0.35, 0.175])


@pytest.mark.parametrize("gamma, alpha, tau", [(1, 0, 1), (0, 1, 4), (0.1, 0.9, 4), (0.3, 0.7, 0.5)])
def test_training_descends_the_librarys_own_losses(gamma, alpha, tau):
    # two logits (0, z) make the library's softmax losses those of one logit
    x, truth = draw(12, 3)
    targets, labels = toy.logits(truth, x), (toy.logits(truth, x) > 0.3).astype(int)
    theta = torch.tensor(toy.start(2, m=3), requires_grad=True)
    z = torch.tensor(x) @ theta[:-1] + theta[-1]

    def two(z):
        return torch.stack([torch.zeros_like(z), z], 1)

    loss = gamma * losses.cross_entropy(two(z), torch.tensor(labels)) + alpha * losses.kl(two(z), two(torch.tensor(targets)), tau=tau)
    loss.backward()
    rest = dict(labels=labels, targets=targets, gamma=gamma, alpha=alpha, tau=tau)
    stepped = toy.train(x, start=theta.detach().numpy(), lr=0.2, steps=1, **rest)
    assert stepped == pytest.approx((theta - 0.2 * theta.grad).detach().numpy(), abs=1e-12)
    assert toy.losses(theta.detach().numpy(), x, **rest).mean() == pytest.approx(loss.item(), abs=1e-12)


def test_the_step_size_never_raises_the_loss_and_ten_times_it_can():
    x, truth = draw(6, 2, seed=3)
    rest = dict(labels=(toy.logits(truth, x) > 0).astype(int), targets=0.1 * toy.logits(truth, x), gamma=0.2, alpha=0.8, tau=4.0)
    lr = toy.step_size(3 * x, gamma=0.2, alpha=0.8)

    def course(lr):
        return np.array([toy.losses(t, 3 * x, **rest).mean()
                         for t in toy.train(3 * x, start=np.array([1.0, -1, 1]), lr=lr, steps=60, path=True, **rest)])

    assert (np.diff(course(lr)) <= 1e-15).all() and (np.diff(course(10 * lr)) > 0).any()
    assert toy.step_size(x, gamma=0, alpha=0) == toy.step_size(np.empty((0, 2)), gamma=1, alpha=0) == 0


def test_an_independent_student_separates_and_grows_towards_the_widest_margin():
    # classes at -1 and 1 on the first axis, the second irrelevant: the widest margin is w along the first axis, b = 0
    x, y = np.array([[-1.0, 0.3], [-1, -0.3], [1, 0.3], [1, -0.3]]), np.array([0, 0, 1, 1])
    path = toy.train(x, labels=y, start=np.array([0.2, 1.0, 0.5]), gamma=1, lr=toy.step_size(x, gamma=1, alpha=0), steps=3000, path=True)
    assert path.shape == (3001, 3) and ((toy.logits(path[-1], x) > 0) == y).all()
    tilt = np.abs(path[:, 1] / path[:, 0])
    assert tilt[-1] < 0.06 < tilt[300] < 0.1 < tilt[0] and path[-1, 0] > path[300, 0]


def test_training_refuses_what_does_not_fit():
    x = np.zeros((3, 2))
    for words, message in [(dict(gamma=1), "labels must have one value for each of the 3"), (dict(alpha=1, targets=[1]), "targets must have"),
                           (dict(tau=0), "tau must be positive"), (dict(start=np.zeros(2)), r"start must be \(3,\)")]:
        with pytest.raises(ValueError, match=message):
            toy.train(x, **(dict(start=np.zeros(3), lr=1, steps=1) | words))


@pytest.mark.parametrize("m", [2, 3, 20, 200, 1000])
def test_m_plus_1_points_recover_the_teacher(m):
    assert toy.recovery_error(m, m + 1) < 1e-7
    if m <= 200:
        assert toy.recovery_error(m, 2 * m + 2) < 1e-10


@pytest.mark.parametrize("m, n", [(2, 1), (2, 2), (20, 5), (20, 20)])
def test_below_that_the_student_is_the_teachers_projection(m, n):
    x, theta = draw(n, m, seed=m)
    found = toy.recover(x, toy.logits(theta, x))
    assert found == pytest.approx(along(ones(x), theta), abs=1e-9) and toy.logits(found, x) == pytest.approx(toy.logits(theta, x))
    begin = toy.start(1, m)
    assert toy.recover(x, toy.logits(theta, x), start=begin) == pytest.approx(begin + along(ones(x), theta - begin), abs=1e-9)
    free = toy.recover(x, toy.logits(theta, x), penalise_bias=False)
    assert free[:-1] == pytest.approx(along(x - x.mean(0), theta[:-1]), abs=1e-9) and toy.logits(free, x) == pytest.approx(toy.logits(theta, x))
    assert np.linalg.norm(free[:-1]) <= np.linalg.norm(found[:-1]) + 1e-12


def test_points_in_a_row_count_for_two():
    x = np.array([[0.0, 0], [1, 2], [3, 6], [-2, -4]])
    assert toy.rank(x) == 2 and toy.rank(np.vstack([x, [0, 1]])) == 3 and toy.rank(x[:1]) == 1 and toy.rank(np.array([[1.0, 1], [1, 1]])) == 1
    theta = np.array([1.0, 1, -1])
    assert np.linalg.norm(toy.recover(x, toy.logits(theta, x)) - theta) > 0.1
    more = np.vstack([x, [0, 1]])
    assert toy.recover(more, toy.logits(theta, more)) == pytest.approx(theta)


def test_the_error_falls_at_m_plus_1_and_then_with_noise_over_n():
    m = 30
    below = [np.mean([toy.recovery_error(m, n, seed=s) ** 2 for s in range(200)]) for n in (10, 20, 30)]
    # a random teacher keeps n of m + 1 directions: the squared error is near 1 - n / (m + 1)
    assert below == pytest.approx([1 - n / (m + 1) for n in (10, 20, 30)], abs=0.06)
    assert toy.recovery_error(m, m + 1) < 1e-10
    few, many = (np.mean([toy.recovery_error(m, n, noise=0.1, seed=s) ** 2 for s in range(60)]) for n in (200, 800))
    # least squares: E|error|^2 = noise^2 tr E[(X'X)^-1], about noise^2 (m + 1) / (n - m - 2) for standard normal points
    assert few / many == pytest.approx((800 - m - 2) / (200 - m - 2), rel=0.15)
    assert toy.recovery_error(m, m + 1, noise=0.1) > toy.recovery_error(m, 10 * m, noise=0.1)


def test_least_squares_error_in_closed_form():
    x, theta = draw(9, 2, seed=5)
    errors = 0.3 * np.random.default_rng(0).standard_normal((4000, 9))
    found = np.array([toy.recover(x, toy.logits(theta, x) + e) for e in errors]) - theta
    assert (found**2).sum(1).mean() == pytest.approx(0.09 * np.trace(np.linalg.inv(ones(x).T @ ones(x))), rel=0.06)


def test_a_low_temperature_loses_the_distances():
    z = np.array([-3.0, 0, 2, 8])
    assert toy.heard(z, tau=1, dtype=np.float64) == pytest.approx(z, abs=1e-9)
    # rounding p to float32 moves the logit by at most tau (eps / 2) / (1 - p)
    assert np.abs(toy.heard(z, tau=1) - z).max() <= np.finfo(np.float32).eps / 2 / (1 - expit(8)) * 1.01
    assert np.isinf(toy.heard(np.array([8.0]), tau=0.4)).all() and np.isfinite(toy.heard(np.array([8.0]), tau=0.5)).all()
    warm, cool, cold = (toy.recovery_error(5, 6, tau=tau, seed=1) for tau in (4, 0.1, 0.05))
    assert warm < 1e-5 < 100 * warm < cool < 1 and cold == np.inf
    with pytest.raises(ValueError, match="not finite"):
        toy.recover(np.eye(3), np.array([1, 2, np.inf]))


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_gradient_descent_on_kl_ends_nearest_to_its_start(n, tau):
    x, theta = draw(n, 2, seed=n)
    targets, begin = toy.logits(theta, x), toy.start(9)
    found = toy.train(x, start=begin, targets=targets, alpha=1, tau=tau, lr=toy.step_size(x, gamma=0, alpha=1), steps=20000)
    assert found == pytest.approx(toy.recover(x, targets, start=begin), abs=1e-6)
    if n >= 3:
        assert found == pytest.approx(theta, abs=1e-6)
        assert np.abs(toy.distance(found, x)) == pytest.approx(np.abs(toy.distance(theta, x)), abs=1e-6)  # tangent to every circle


def test_softmax_leaves_one_function_of_x_open():
    rng = np.random.default_rng(0)
    x, weights, bias = rng.standard_normal((7, 3)), rng.standard_normal((4, 3)), rng.standard_normal(4)
    other = toy.shifted(weights, bias, rng.standard_normal(3), 2.5)
    first, second = (torch.tensor(x @ w.T + b) for w, b in ((weights, bias), other))
    assert (first - second).abs().min() > 0.01 and losses.kl(second, first, tau=3.0).item() == pytest.approx(0, abs=1e-12)
    for a, b in zip(toy.centred(weights, bias), toy.centred(*other)):
        assert a == pytest.approx(b) and a.mean(0) == pytest.approx(0)


def test_kl_with_c_classes_recovers_the_teacher_up_to_that():
    rng = np.random.default_rng(1)
    x, weights, bias = rng.standard_normal((4, 3)), rng.standard_normal((3, 3)), rng.standard_normal(3)
    targets = torch.tensor(x @ weights.T + bias)
    student = torch.nn.Linear(3, 3).double()
    before = student.weight.detach().numpy().mean(0), student.bias.detach().mean().item()
    solver = torch.optim.LBFGS(student.parameters(), max_iter=300, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = losses.kl(student(torch.tensor(x)), targets, tau=2.0)
        loss.backward()
        return loss

    solver.step(closure)
    w, b = student.weight.detach().numpy(), student.bias.detach().numpy()
    for found, wanted in zip(toy.centred(w, b), toy.centred(weights, bias)):
        assert found == pytest.approx(wanted, abs=1e-5)
    assert w.mean(0) == pytest.approx(before[0], abs=1e-7) and b.mean() == pytest.approx(before[1], abs=1e-7)  # as it was at the start


def test_the_arc_by_hand():
    # one difference (0, 1): w may point anywhere above; a second, (1, 0), leaves the first quadrant
    x = np.array([[0.0, 0], [0, 1], [1, 0]])
    assert toy.arc(x[:2], np.array([0, 1])) == pytest.approx((0, np.pi))
    assert toy.arc(x, np.array([0, 1, 1])) == pytest.approx((0, np.pi / 2))
    assert toy.arc(x, np.array([1, 0, 0])) == pytest.approx((-np.pi, -np.pi / 2))


def test_the_fan_holds_lines_that_separate_and_its_arc_holds_all_of_them():
    for seed in range(20):
        x, theta = draw(8, 2, seed)
        y = (toy.logits(theta, x) > 0).astype(int)
        if len(set(y.tolist())) < 2:
            continue
        lines = toy.fan(x, y, directions=7, offsets=3)
        assert lines.shape == (21, 3) and np.linalg.norm(lines[:, :2], axis=1) == pytest.approx(1)
        for line in lines:
            assert ((toy.logits(line, x) > 0) == y).all()
        low, high = toy.arc(x, y)
        for angle in np.linspace(low, low + 2 * np.pi, 500, endpoint=False):
            w = np.array([np.cos(angle), np.sin(angle)])
            separates = (x[y == 0] @ w).max() < (x[y == 1] @ w).min()
            assert separates == (low < angle < high) or min(abs(angle - low), abs(angle - high)) < 1e-9
        # a wider gap than a quarter of the directions' own spacing lies on either side of each offset
        assert ((lines[:, 2].reshape(7, 3)[:, 0] - lines[:, 2].reshape(7, 3)[:, 2]) > 0).all()


@pytest.mark.parametrize("x, y", [([[0, 0], [1, 1]], [1, 1]), ([], []), ([[0, 0], [1, 0], [2, 0]], [0, 1, 0]), ([[1, 1], [1, 1]], [0, 1]),
                                  ([[0, 0], [1, 1], [0, 1], [1, 0]], [0, 0, 1, 1])])
def test_no_fan_where_no_line_separates(x, y):
    x = np.array(x, dtype=float).reshape(-1, 2)
    assert toy.arc(x, np.array(y)) is None and toy.fan(x, np.array(y)).shape == (0, 3)


def test_moons_take_turns_and_no_line_parts_them():
    x, y = toy.moons(400, noise=0.0, seed=1)
    assert x.shape == (400, 2) and y[:4].tolist() == [0, 1, 0, 1]
    centre = np.array([[-1, -0.7], [1, 0.7]])[y]
    assert np.linalg.norm(x - centre, axis=1) == pytest.approx(2) and (np.where(y == 0, 1, -1) * (x - centre)[:, 1] >= 0).all()
    assert toy.arc(x, y) is None
    noisy, _ = toy.moons(400, noise=0.5, seed=1)
    assert (noisy - x).std() == pytest.approx(0.5, abs=0.03) and (toy.moons(400, noise=0.5, seed=1)[0] == noisy).all()


def test_two_layers_by_hand_and_beside_others():
    nets = toy.TwoLayers([3, 8, 5], 4).requires_grad_(False)
    x = torch.tensor(toy.moons(7)[0])
    z = nets(x)
    assert z.shape == (3, 7) and z.dtype == torch.float64
    for i, p in itertools.product(range(3), range(7)):
        hidden = [max(0.0, (x[p] @ nets.w1[i, :, k] + nets.b1[i, 0, k]).item()) for k in range(4)]
        assert float(z[i, p]) == pytest.approx(sum(h * w.item() for h, w in zip(hidden, nets.w2[i, 0])) + float(nets.b2[i, 0]))
    assert torch.equal(toy.TwoLayers([8], 4)(x)[0], z[1])  # a seed is a network, whatever stands beside it
    assert torch.equal(nets(x.expand(3, 7, 2)), z)
    assert torch.equal(nets.alone(2)(x), torch.stack([torch.zeros(7).double(), z[2]], 1))


@pytest.mark.parametrize("gamma, alpha, tau", [(1, 0, 1.0), (0, 1, 4.0), (0.3, 0.7, 2.0)])
def test_fit_descends_each_networks_own_loss_on_the_points_it_sees(gamma, alpha, tau):
    x, y = (torch.tensor(v) for v in toy.moons(20))
    teacher = toy.TwoLayers([9], 6)(x).detach()
    seen = torch.stack([torch.arange(20) < 5, torch.arange(20) < 20])
    nets, lr = toy.TwoLayers([1, 2], 6), 1e-3
    alone = [toy.TwoLayers([s], 6) for s in (1, 2)]
    toy.fit(nets, x.expand(2, 20, 2), seen=seen, labels=y.expand(2, 20), targets=teacher.expand(2, 20), gamma=gamma, alpha=alpha, tau=tau, steps=1, lr=lr)
    for i, one in enumerate(alone):
        z = one(x[seen[i]])[0]
        two, told = (torch.stack([torch.zeros_like(v), v], 1) for v in (z, teacher[0, seen[i]]))
        (gamma * losses.cross_entropy(two, y[seen[i]]) + alpha * losses.kl(two, told, tau=tau)).backward()
        for p, q in zip(nets.parameters(), one.parameters()):  # Adam's first step is lr times the gradient's sign
            assert p[i].detach() == pytest.approx((q - lr * q.grad / (q.grad.abs() + 1e-8)).detach()[0], abs=1e-9)


def test_a_two_layer_student_told_all_answers_matches_its_teacher():
    x, y = (torch.tensor(v)[None] for v in toy.moons(60))
    everything = torch.ones_like(y)
    teacher, student = toy.TwoLayers([1], 16), toy.TwoLayers([2], 16)
    toy.fit(teacher, x, seen=everything, labels=y, gamma=1.0, steps=1500)
    assert ((teacher(x) > 0) == (y > 0)).double().mean() > 0.95
    targets = teacher(x).detach()
    before = (student(x) - targets).abs().mean()
    toy.fit(student, x, seen=everything, labels=y, targets=targets, alpha=1.0, tau=4.0, steps=1500)
    assert (student(x) - targets).abs().mean() < 0.2 * before and ((student(x) > 0) == (targets > 0)).double().mean() > 0.96


def test_bend_compares_each_student_with_its_own_teacher():
    settings = dict(seeds=2, width=4, steps=30, tau=4.0, triplets=3, resolution=5)
    found = toy.bend(counts=(4, 20), shown=20, **settings)
    assert found["agreement"].shape == (4, 2, 2, 3) and found["logit"].shape == (4, 129, 181)
    # one of them by hand: the KL student of seed 1 with 20 points, and its teacher
    x, y = (torch.tensor(v)[None] for v in toy.moons(toy.POINTS, seed=1001))
    teacher, student = toy.TwoLayers([101], 4), toy.TwoLayers([1], 4)
    toy.fit(teacher, x, seen=torch.ones_like(y), labels=y, gamma=1.0, steps=30)
    toy.fit(student, x[:, :20], seen=torch.ones_like(y[:, :20]), labels=y[:, :20], targets=teacher(x[:, :20]).detach(), alpha=1.0, tau=4.0, steps=30)
    tests = torch.tensor(toy.moons(100, seed=5001)[0])
    for k, three in enumerate(boundary.triplets(torch.zeros(100), 3, distinct=False, generator=torch.Generator().manual_seed(1))):
        points, _ = boundary.plane(tests[three], resolution=5)
        same = ((student(points)[0] > 0) == (teacher(points)[0] > 0)).double().mean().item()
        assert found["agreement"][toy.BENT.index("KL"), 1, 1, k] == pytest.approx(same, abs=1e-6)
    alone = toy.bend(counts=(20,), shown=20, **settings)
    assert alone["agreement"][:, 0] == pytest.approx(found["agreement"][:, 1], abs=1e-6), "what is trained beside them changes nothing"
