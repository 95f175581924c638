"""Linear teachers and students: the illustrative example of the paper's Sec. 6, exactly (Ojha et al., 2023). A step beyond it, at the
end: networks of two layers on points in the plane.

A linear classifier of two classes in m dimensions is one vector theta = (w, b) of m + 1 float64 numbers, the bias last. Its logit
is z = w.x + b; class 1 has the probability sigmoid(z / tau). Points are x (n, m), classes y (n,) of 0 and 1.

`kdlib/book/toy/toy.js` computes `stream`, `normals`, `start`, `teacher`, `step_size`, `train`, `losses`, `distance` and `fan` by
the same formulas, in the same order of steps; a test in a browser holds the two together.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray as Array
from scipy.special import expit, log_expit, logit
from torch import Tensor, nn

from kdlib.probes import boundary

PENALTY = 0.01  # of the teacher's squared weights: on separable classes an unpenalised one would grow without end
ROUNDING = 1e-12  # of the teacher's objective: growth by less is no growth. At the optimum a perfect step can seem to grow it by some 1e-16.


def stream(seed: int) -> Iterator[float]:
    """Uniform numbers in [0, 1), multiples of 2^-32: the 32-bit generator mulberry32, alike in every language with integers."""
    mask = 0xFFFFFFFF
    state = seed & mask
    while True:
        state = (state + 0x6D2B79F5) & mask
        t = (state ^ state >> 15) * (state | 1) & mask
        t = (t + ((t ^ t >> 7) * (t | 61) & mask) & mask) ^ t
        yield (t ^ t >> 14) / 2**32


def normals(seed: int, n: int) -> Array:
    """(n,) nearly normal numbers of mean 0 and variance 1: each the sum of the stream's next 12, less 6. All lie within 6."""
    return np.array(list(islice(stream(seed), 12 * n))).reshape(n, 12).sum(1) - 6


def start(seed: int, m: int = 2) -> Array:
    """Where training starts: theta (m + 1,), each 2 u - 1 with the stream's next u."""
    return 2 * np.array(list(islice(stream(seed), m + 1))) - 1


def logits(theta: Array, x: Array) -> Array:
    """z = w.x + b, (n,)."""
    return x @ theta[:-1] + theta[-1]


def distance(theta: Array, x: Array) -> Array:
    """Signed distance of points from the boundary, z / |w|, (n,): positive on the side of class 1. ValueError for w = 0."""
    size = np.linalg.norm(theta[:-1])
    if not size > 0:
        raise ValueError("distance: w is 0, so there is no boundary")
    return logits(theta, x) / size


def teacher(x: Array, y: Array, *, penalty: float = PENALTY) -> Array:
    """The theta that minimises mean_i CE(z_i, y_i) + penalty / 2 |theta|^2, to a gradient below 1e-10.

    Newton's method from 0; a step is halved, at most 30 times, until the objective does not grow by more than rounding. The penalty, on
    b too, makes the answer unique whatever the points.
    """
    if not penalty > 0:
        raise ValueError(f"teacher: penalty must be positive, got {penalty}")
    x1 = _with_one(x)
    theta = np.zeros(x1.shape[1])
    if not len(x):
        return theta

    def objective(theta):
        return _cross_entropy(x1 @ theta, y).mean() + penalty / 2 * theta @ theta

    value = objective(theta)
    for _ in range(100):
        q = expit(x1 @ theta)
        gradient = (q - y) @ x1 / len(x) + penalty * theta
        if np.abs(gradient).max() < 1e-10:
            break
        step = np.linalg.solve((x1.T * (q * (1 - q))) @ x1 / len(x) + penalty * np.eye(len(theta)), gradient)
        for _ in range(30):
            if (moved := objective(theta - step)) <= value * (1 + ROUNDING):
                break
            step = step / 2
        theta, value = theta - step, moved
    return theta


def step_size(x: Array, *, gamma: float, alpha: float) -> float:
    """A step with which `train` never diverges: 4 / ((gamma + alpha) mean_i (|x_i|^2 + 1)); 0 without weights or points.

    The second derivative of gamma CE + alpha tau^2 KL in z is at most (gamma + alpha) / 4, so that this is at most 1 / L, L being
    the largest curvature. Only the ratio of gamma and alpha changes the path.
    """
    return 4 / ((gamma + alpha) * (_with_one(x) ** 2).sum(1).mean()) if len(x) and gamma + alpha > 0 else 0.0


def train(x: Array, *, start: Array, lr: float, steps: int, labels: Array | None = None, targets: Array | None = None,
          gamma: float = 0.0, alpha: float = 0.0, tau: float = 1.0, path: bool = False) -> Array:
    """Full-batch gradient descent on mean_i [gamma CE(z_i, labels_i) + alpha tau^2 KL(sigmoid(targets_i / tau) || sigmoid(z_i / tau))].

        g_i   = gamma (sigmoid(z_i) - labels_i) + alpha tau (sigmoid(z_i / tau) - sigmoid(targets_i / tau))
        w    <- w - lr mean_i g_i x_i,    b <- b - lr mean_i g_i        both from the same z

    `labels` (n,) are 0 or 1, `targets` (n,) the teacher's logits. Returns theta (m + 1,), with `path` all of them (steps + 1, m + 1).
    The independent student is gamma = 1, alpha = 0. The objective is convex and the step at most 1 / L, so rounding is not amplified:
    two programs that sum in another order stay within about steps * 1e-15 of each other.
    """
    if not 0 < tau < np.inf:
        raise ValueError(f"train: tau must be positive and finite, got {tau}")
    for name, weight, given in ("labels", gamma, labels), ("targets", alpha, targets):
        if weight and (given is None or len(given) != len(x)):
            raise ValueError(f"train: {name} must have one value for each of the {len(x)} points")
    x1, theta = _with_one(x), np.array(start, dtype=float)
    if theta.shape != (x1.shape[1],):
        raise ValueError(f"train: start must be ({x1.shape[1]},), one more than the points' dimension, got {theta.shape}")
    told = expit(np.asarray(targets) / tau) if alpha else 0.0
    thetas = [theta]
    for _ in range(steps if len(x) else 0):
        z = x1 @ theta
        g = (gamma * (expit(z) - labels) if gamma else 0) + (alpha * tau * (expit(z / tau) - told) if alpha else 0)
        theta = theta - lr * (g @ x1 / len(x) if gamma or alpha else 0)
        thetas.append(theta)
    return np.array(thetas) if path else theta


def losses(theta: Array, x: Array, *, labels: Array, targets: Array, gamma: float, alpha: float, tau: float) -> Array:
    """Each point's gamma CE + alpha tau^2 KL, (n,), in nats: what `train` averages."""
    z, t = logits(theta, x), np.asarray(targets)
    p = expit(t / tau)
    kl = p * (log_expit(t / tau) - log_expit(z / tau)) + (1 - p) * (log_expit(-t / tau) - log_expit(-z / tau))
    return gamma * _cross_entropy(z, labels) + alpha * tau**2 * kl


def rank(x: Array) -> int:
    """Rank of the vectors (x, 1). Points are affinely independent where it equals their number; m + 1 determines theta."""
    return int(np.linalg.matrix_rank(_with_one(x)))


def recover(x: Array, z: Array, *, start: Array | None = None, penalise_bias: bool = True) -> Array:
    """The distilled student that matches logits z (n,) by least squares: theta (m + 1,).

    Sec. 6: with a linear teacher and rank m + 1 it is the teacher. Below, many fit, and this is the one nearest to `start` (default
    0): the start, moved by the projection of (teacher - start) onto the span of the (x, 1). Gradient descent on the KL objective ends
    there too, if it ends. With `penalise_bias=False` the nearest counts w alone: w - start is projected onto the span of the
    x - mean x, and b is what then fits best. ValueError for logits that are not finite.
    """
    z = np.asarray(z, dtype=float)
    if not np.isfinite(z).all():
        raise ValueError("recover: a logit is not finite; the probabilities that it comes from are exactly 0 or 1")
    theta = np.zeros(x.shape[1] + 1) if start is None else np.asarray(start, dtype=float)
    rest = z - logits(theta, x)
    if penalise_bias:
        return theta + np.linalg.lstsq(_with_one(x), rest, rcond=None)[0]
    middle = x.mean(0)
    w = np.linalg.lstsq(x - middle, rest - rest.mean(), rcond=None)[0]
    return theta + np.append(w, rest.mean() - middle @ w)


def heard(z: Array, *, tau: float, dtype: type = np.float32) -> Array:
    """The logits that can be read back from probabilities sigmoid(z / tau) kept in `dtype`: tau log(p / (1 - p)).

    The error is about tau eps / (1 - p) where p is near 1: a low temperature saturates the sigmoid and loses the distances. Infinite
    where p rounds to 1 (z / tau above 17 in float32).
    """
    return tau * logit(expit(np.asarray(z) / tau).astype(dtype).astype(float))


def recovery_error(m: int, n: int, *, noise: float = 0.0, tau: float | None = None, seed: int = 0) -> float:
    """|theta_student - theta_teacher| / |theta_teacher| of `recover` from n points in m dimensions.

    Points and teacher are standard normal, the teacher's w divided by sqrt(m) so that its logits have the same size in every
    dimension; `noise` is the standard deviation of what is added to them. With `tau` the student hears probabilities at that
    temperature, in float32. Infinite where one of them rounds to 0 or 1.
    """
    rng = np.random.default_rng(seed)
    x, theta = rng.standard_normal((n, m)), rng.standard_normal(m + 1)
    theta[:-1] /= np.sqrt(m)
    z = logits(theta, x) + noise * rng.standard_normal(n)
    z = z if tau is None else heard(z, tau=tau)
    return float(np.linalg.norm(recover(x, z) - theta) / np.linalg.norm(theta)) if np.isfinite(z).all() else np.inf


def shifted(weights: Array, bias: Array, u: Array, v: float) -> tuple[Array, Array]:
    """A classifier of C classes, weights (C, m) and bias (C,), with u.x + v added to the logit of every class.

    Its softmax is the same for each x and each temperature, so no objective on probabilities tells the two apart: with C logits,
    KL leaves these m + 1 numbers undetermined. With one logit for two classes nothing is left open.
    """
    return weights + u, bias + v


def centred(weights: Array, bias: Array) -> tuple[Array, Array]:
    """What softmax does determine: weights and bias less their mean over the classes. Equal for all that `shifted` makes."""
    return weights - weights.mean(0), bias - bias.mean()


def arc(x: Array, y: Array) -> tuple[float, float] | None:
    """The directions, as an open interval of angles, of the normals w of all lines that separate two classes in the plane.

    A direction separates where it has a positive product with every difference x_j - x_i of a point of class 1 and one of class 0.
    With the differences' angles measured from the first of them, in [a, b], these are the angles in (b - pi/2, a + pi/2). None where
    no line separates (or only within 1e-9 of an angle), or where a class is missing.
    """
    zero, one = x[y == 0], x[y == 1]
    if not len(zero) or not len(one):
        return None
    d = (one[:, None] - zero).reshape(-1, 2)
    angle = np.arctan2(d[0, 0] * d[:, 1] - d[0, 1] * d[:, 0], d @ d[0])
    if not d.any(1).all() or angle.max() - angle.min() > np.pi - 1e-9:
        return None
    first = np.arctan2(d[0, 1], d[0, 0])
    return float(first + angle.max() - np.pi / 2), float(first + angle.min() + np.pi / 2)


def fan(x: Array, y: Array, *, directions: int = 15, offsets: int = 1) -> Array:
    """A sample of the lines that separate two classes in the plane, (directions * offsets, 3), each with |w| = 1.

    The directions divide the `arc` evenly, the offsets the gap between the classes along each, both at the middles of equal parts.
    All three columns are those of theta. Empty where no line separates.
    """
    found = arc(x, y)
    if found is None:
        return np.empty((0, 3))
    low, high = found
    angle = low + (high - low) * (np.arange(directions) + 0.5) / directions
    w = np.stack([np.cos(angle), np.sin(angle)], 1)
    near, far = (x[y == 0] @ w.T).max(0), (x[y == 1] @ w.T).min(0)
    b = -(near[:, None] + (far - near)[:, None] * (np.arange(offsets) + 0.5) / offsets)
    return np.column_stack([w.repeat(offsets, 0), b.ravel()])


POINTS = 200  # that a two-layer teacher sees
BENT = "Ind", "Ind2", "KL", "KL*"  # its students


def moons(n: int, *, noise: float = 0.35, seed: int = 0) -> tuple[Array, Array]:
    """Points x (n, 2) of two interleaved half circles of radius 2, with normal noise, and their classes y (n,), which take turns."""
    rng = np.random.default_rng(seed)
    y, angle = np.arange(n) % 2, rng.uniform(0, np.pi, n)
    x = np.stack([2 * np.cos(angle) - 1, 2 * np.sin(angle) - 0.7], 1) * np.where(y == 0, 1, -1)[:, None]
    return x + noise * rng.standard_normal((n, 2)), y


class TwoLayers(nn.Module):
    """k networks side by side, each with one hidden layer of ReLUs and one logit, in float64; one a seed.

    Points (n, 2), or a set for each network (k, n, 2), to logits (k, n). Network i begins alike whatever stands beside it.
    """

    def __init__(self, seeds: Sequence[int], width: int):
        super().__init__()
        def normal(shape, g):
            return torch.randn(shape, generator=g, dtype=torch.float64)

        draws = [torch.Generator().manual_seed(s) for s in seeds]
        self.w1, self.b1, self.w2 = (nn.Parameter(torch.stack([normal(shape, g) for g in draws]) / size**0.5)
                                     for shape, size in (((2, width), 2), ((1, width), 1), ((1, width), width)))
        self.b2 = nn.Parameter(torch.zeros(len(seeds), 1, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.relu(x @ self.w1 + self.b1) * self.w2).sum(-1) + self.b2

    def alone(self, i: int) -> nn.Module:
        """Network i as a classifier of two classes: points (n, 2) to logits (n, 2), the first of them 0."""
        return _Alone(self, i)


class _Alone(nn.Module):
    def __init__(self, nets: TwoLayers, i: int):
        super().__init__()
        self.nets, self.i = nets, i

    def forward(self, x: Tensor) -> Tensor:
        z = self.nets(x.double())[self.i]
        return torch.stack([torch.zeros_like(z), z], 1)


def fit(nets: TwoLayers, x: Tensor, *, seen: Tensor, labels: Tensor, targets: Tensor | None = None, gamma: float = 0.0, alpha: float = 0.0,
        tau: float = 1.0, steps: int = 2000, lr: float = 0.01) -> None:
    """Train each of k networks on the mean over its points of gamma CE + alpha tau^2 KL, by Adam on all of them, the step falling as a cosine.

    x (k, n, 2); labels (k, n) of 0 and 1; targets (k, n), the teacher's logits; seen (k, n), which points a network has, at least one.
    """
    weight = seen.double() / seen.sum(1, keepdim=True)
    told = torch.sigmoid(targets / tau) if alpha else None
    optimizer = torch.optim.Adam(nets.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z, loss = nets(x), 0.0
        if gamma:
            loss = loss + gamma * F.binary_cross_entropy_with_logits(z, labels.double(), weight, reduction="sum")
        if alpha:  # the cross entropy with soft targets is KL and a constant
            loss = loss + alpha * tau**2 * F.binary_cross_entropy_with_logits(z / tau, told, weight, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def bend(*, counts: Sequence[int], seeds: int, width: int, steps: int, tau: float, triplets: int, resolution: int, shown: int) -> dict[str, Array]:
    """What is left of the theorem with one hidden layer, on `moons`: boundary agreement of students with their teacher T, on planes.

    T saw `POINTS` points; a student sees the first n, for each n of `counts`: Ind and Ind2 their labels, KL the logits of T, KL* those of T*,
    a teacher that saw these n points only. All seeds and counts are trained side by side. Returns `agreement` (methods, counts, seeds,
    triplets) in the order of `BENT`; and `logit` (4, 129, 181) of seed 0's T, Ind, KL and KL* with `shown` points, on the grid of `view`.
    """
    everyone = range(seeds)
    x, y = (torch.tensor(np.stack(of)) for of in zip(*(moons(POINTS, seed=1000 + seed) for seed in everyone)))
    teachers = TwoLayers([100 + seed for seed in everyone], width)
    fit(teachers, x, seen=torch.ones_like(y), labels=y, gamma=1.0, steps=steps)

    def several(of):
        return of.detach().repeat(len(counts), *[1] * (of.ndim - 1))

    seen = torch.stack([torch.arange(POINTS) < n for n in counts for _ in everyone])
    nets = {}
    for method, first, hard in ("Ind", 0, True), ("Ind2", 500, True), ("KL", 0, False), ("T*", 300, True), ("KL*", 0, False):
        nets[method] = TwoLayers([first + seed for _ in counts for seed in everyone], width)
        targets = {"KL": lambda: several(teachers(x)), "KL*": lambda: nets["T*"](several(x)).detach()}.get(method, lambda: None)()
        fit(nets[method], several(x), seen=seen, labels=several(y), targets=targets, gamma=float(hard), alpha=float(not hard), tau=tau, steps=steps)

    corners = [torch.tensor(moons(100, seed=5000 + seed)[0]) for seed in everyone]
    chosen = [boundary.triplets(torch.zeros(100), triplets, distinct=False, generator=torch.Generator().manual_seed(seed)) for seed in everyone]

    def regions(of, i, seed):
        return [boundary.regions(of.alone(i).eval(), corners[seed][three], resolution=resolution) for three in chosen[seed]]

    theirs = [regions(teachers, seed, seed) for seed in everyone]
    agreement = [[[[boundary.agreement(a, b) for a, b in zip(regions(nets[m], k * seeds + seed, seed), theirs[seed])] for seed in everyone]
                  for k in range(len(counts))] for m in BENT]
    plane = torch.tensor(np.stack(np.meshgrid(*view()), -1).reshape(-1, 2))
    with torch.no_grad():
        pictured = [teachers(plane)[0], *(nets[m](plane)[list(counts).index(shown) * seeds] for m in ("Ind", "KL", "KL*"))]
    return {"agreement": np.array(agreement), "logit": torch.stack(pictured).view(4, 129, 181).half().numpy()}


def view() -> tuple[Array, Array]:
    """The coordinates (181,) and (129,) of the picture of `bend`."""
    return np.linspace(-4.5, 4.5, 181), np.linspace(-3.2, 3.2, 129)


def _with_one(x: Array) -> Array:
    return np.column_stack([x, np.ones(len(x))])


def _cross_entropy(z: Array, y: Array) -> Array:
    """-log sigmoid of the right sign of z: for y = 1 of z, for y = 0 of -z."""
    return -np.where(np.asarray(y) == 1, log_expit(z), log_expit(-z))
