"""Effects and transfer with intervals over seeds and test items, crossed.

Row i of every table belongs to seed i, column j to test item j. Arms are paired by seed (same initial weights, same
data in the same order) and all seeds answer for the same items, so neither axis may be treated as if it were fixed:
a teacher moves its students on the *same* images, and an interval over seeds alone does not see that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from scipy.stats import t as student_t


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, in the units of the data; `p` is the two-sided p value of "mean = 0".

    `low`, `high` and `p` are None with fewer than 3 seeds, and where all seeds are off by the same amount (but for rounding): a few
    seeds can be by chance, on a nearly saturated measure say, and the interval would have no width. With one seed `se` is nan and `df` 0.
    """

    mean: float
    low: float | None
    high: float | None
    se: float
    df: float
    p: float | None

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Effect:
    """The statistical columns of one row of results; None where there is no value, `flag` then says why."""

    effect: float
    low: float | None
    high: float | None
    low_seeds: float | None
    high_seeds: float | None
    transfer: float | None
    transfer_low: float | None
    transfer_high: float | None
    n_seeds: int
    n_items: int | None
    flag: str | None
    se: float | None
    df: float | None
    p: float | None


def crossed(d: ArrayLike, *, groups: Sequence[ArrayLike] = (), level: float = 0.95) -> Interval:
    """Mean of paired differences d (n seeds, m items), with an interval for new seeds and new items.

        SE^2 = max(v_s/n + v_t/m - v_r/(n m), v_s/n)
        df   = max(SE^4 / ((v_s/n)^2/(n-1) + (v_t/m)^2/(m-1)), min(n-1, m-1))        (Satterthwaite, 1946)
        mean -+ t_df SE

    v_s is the variance of the n row means, v_t of the m column means, v_r the mean square of the residuals
    d_ij - row_i - column_j + mean (divisor (n-1)(m-1)), which v_s/n and v_t/m both contain and which is taken off once.
    The model is two-way random effects without replication (Searle, Casella and McCulloch, Variance Components, 1992).

    `groups` tell which items are not independent, as they show the same thing: label arrays (m,), one for each kind of thing that items
    share. With one of them, of G groups, v_t/m becomes the cluster-robust G/(G - 1) sum_g (sum_{j in g} column_j - mean)^2 / m^2, with several
    that of each alone, minus that of their pairs' intersections, and so on (Cameron, Gelbach and Miller, 2011). v_r/(n m) is treated alike,
    seed by seed, and m - 1 becomes the smallest G - 1.

    Raises ValueError unless d is finite, two-dimensional and has n >= 1, m >= 2, and each of `groups` is (m,), of at least two groups.
    """
    d = _table("crossed: d", d, (2,))
    return _interval(d, level, _forms(groups, d.shape[1]))


def over_seeds(d: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of d (n,), one value per seed, with Student's t interval: mean -+ t_{n-1} s / sqrt(n).

    For measures without items that all seeds share, or, of row means, for new seeds on this very test set.
    Raises ValueError unless d is finite, one-dimensional and n >= 1.
    """
    return _interval(_table("over_seeds: d", d, (1,)), level)


def fieller(numerator: ArrayLike, denominator: ArrayLike, *, groups: Sequence[ArrayLike] = (),
            level: float = 0.95) -> tuple[float, float, float] | None:
    """Ratio of means N / D of two paired tables, with Fieller's interval: (ratio, low, high), without unit.

        {theta : (N - theta D)^2 <= t^2 Var(N - theta D)}        (Fieller, 1954)

    Both tables are (n, m), or both (n,) for measures without items. Var is SE^2 of `crossed`, with these `groups`, for the table
    numerator - theta denominator, and t has the degrees of freedom of that table at theta = N / D. As SE^2 is the larger
    of two quadratics in theta, the set is the union of two; (low, high) is the smallest interval that holds it.

    None where the set is unbounded, as D is not clear of zero, and with fewer than 3 seeds.
    Raises ValueError unless both are finite, of one shape, with n >= 1 and m >= 2.
    """
    a = _table("fieller: numerator", numerator, (1, 2))
    b = _table("fieller: denominator", denominator, (1, 2))
    if np.shape(numerator) != np.shape(denominator):
        raise ValueError(f"fieller: numerator {np.shape(numerator)} and denominator {np.shape(denominator)} "
                         "must have one shape")
    if len(a) < 3:
        return None
    ratio, low, high = (float(x) for x in _fieller(a, b, level, _forms(groups, a.shape[1])))
    return None if np.isnan(low) else (ratio, low, high)


def effect(student: ArrayLike, reference: ArrayLike, teacher: ArrayLike | None = None, *, groups: Sequence[ArrayLike] = (),
           level: float = 0.95) -> Effect:
    """What a student has over its reference, and the share of the teacher's lead that this makes up.

        effect   = p(S) - p(reference)                                     `crossed`, beside it `over_seeds`
        transfer = (p(S) - p(reference)) / (p(T) - p(reference))           `fieller`; 0: nothing inherited, 1: all

    `student` and `reference` hold per-item values, (n, m), booleans or numbers, row i of both from seed i; or (n,) where
    a measure has no items that all seeds share: then both intervals are t over seeds and n_items is None. `teacher` is
    (n, m), (m,) for one teacher (all is then conditional on it), (n,) beside students of (n,), a number (1.0 for
    relations to T), or None where transfer is not defined. `groups` are those of `crossed`.

    Flags, each of which leaves transfer None:
        fewer than 3 seeds    no interval either
        no spread             no interval either (see `Interval`)
        no teacher gap        the interval of p(T) - p(reference) holds zero, or has no spread
        student only          so it does, yet the effect is clear of zero
        unbounded             the gap is clear of zero, but Fieller's set is not bounded

    Raises ValueError for shapes other than these and for values that are not finite.
    """
    s = _table("effect: student", student, (1, 2))
    r = _table("effect: reference", reference, (1, 2))
    shape = np.shape(student)
    if np.shape(reference) != shape:
        raise ValueError(f"effect: student {shape} and reference {np.shape(reference)} must have one shape")
    difference = s - r
    gap = None if teacher is None else _teacher(teacher, shape) - r
    forms = _forms(groups, s.shape[1])

    scale = max(np.abs(s).max(), np.abs(r).max())
    whole, seeds = _interval(difference, level, forms, scale), _interval(difference.mean(1, keepdims=True), level, scale=scale)
    transfer, flag = (None, None, None), None
    if len(s) < 3:
        flag = "fewer than 3 seeds"
    elif whole.low is None:
        flag, seeds = "no spread", replace(seeds, low=None, high=None, p=None)
    elif gap is not None and not _interval(gap, level, forms).excludes_zero:
        flag = "student only" if whole.excludes_zero else "no teacher gap"
    elif gap is not None:
        ratio, low, high = (float(x) for x in _fieller(difference, gap, level, forms))
        transfer, flag = (transfer, "unbounded") if np.isnan(low) else ((ratio, low, high), None)
    return Effect(whole.mean, whole.low, whole.high, seeds.low, seeds.high, *transfer,
                  n_seeds=len(s), n_items=shape[1] if len(shape) == 2 else None, flag=flag, se=whole.se, df=whole.df, p=whole.p)


def own_teacher(table: ArrayLike, *, level: float = 0.95) -> Interval:
    """How much more a student has to do with its own teacher than with those of other seeds, from a table (n, n): row i
    is the student of seed i, column j the teacher of seed j, the entry a measure between the two, such as their agreement.

        a_ij = mu + s_i + t_j + delta_i [i = j] + e_ij
        d_i  = n/(n - 1) (a_ii - a_i. - a_.i + a_..)                       dots are means over rows or columns
        delta = mean_i d_i = mean_i a_ii - mean_{i != j} a_ij
        SE^2 = max(f^2 v_d/n - v_e/((n - 1)(n - 2)), f v_d/n),  f = (n - 1)/(n - 2),  df = n - 1

    What makes a student agree with every teacher, or a teacher with every student, is in s_i and t_j and moves no d_i
    (the round robin of Warner, Kenny and Stoto, 1979, with its two sides kept apart). v_d is the variance of the n values
    d_i, which the means that they share make look more alike than they are: by 1/f^2 as far as the delta_i differ, and by
    1/f as far as e_ij does. v_e, the variance of e_ij, is the mean square of what s_i + t_j leave off the diagonal (divisor
    n^2 - 3n + 1). New seeds on the same test items are what the interval speaks for.
    Raises ValueError unless the table is finite, square and n >= 2; n = 2 leaves no interval, nor do seeds without spread
    (see `Interval`).
    """
    a = _table("own_teacher: table", table, (2,))
    n = len(a)
    if a.shape != (n, n):
        raise ValueError(f"own_teacher: table must be square, a student and a teacher for each seed, got shape {a.shape}")
    d = n / (n - 1) * (a - a.mean(0) - a.mean(1, keepdims=True) + a.mean()).diagonal()
    delta, df = float(d.mean()), n - 1
    if n < 3:
        return Interval(delta, None, None, float("nan"), df, None)
    off, f = ~np.eye(n, dtype=bool), (n - 1) / (n - 2)
    sides = np.concatenate([np.eye(n)[where] for where in np.nonzero(off)], axis=1)
    left = a[off] - sides @ np.linalg.lstsq(sides, a[off], rcond=None)[0]
    v_d, v_e = d.var(ddof=1), left @ left / (n * n - 3 * n + 1)
    se = float(np.sqrt(max(f**2 * v_d / n - v_e / ((n - 1) * (n - 2)), f * v_d / n)))
    return _bounds(delta, se, df, level, n, np.abs(a).max())


def partial_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike) -> float:
    """Pearson's correlation of x and y (n,) once what `given` (n,) explains linearly is taken off both: in [-1, 1].

    NaN where either is left without spread, which n < 4 points or a constant x or y make sure of.
    """
    x, y, given = (_table(f"partial_correlation: {name}", v, (1,))[:, 0] for name, v in (("x", x), ("y", y), ("given", given)))
    if len(x) < 4:
        return float("nan")
    basis = np.stack([np.ones(len(x)), given - given.mean()], axis=1)
    left = [v - basis @ np.linalg.lstsq(basis, v, rcond=None)[0] for v in (x, y)]
    if any(np.ptp(v) <= 1e-9 * np.abs(w).max() for v, w in zip(left, (x, y))):
        return float("nan")
    return float(np.clip(np.corrcoef(*left)[0, 1], -1, 1))


def correlation(r: ArrayLike, *, level: float = 0.95) -> Interval:
    """Mean of correlations r (n,), one per seed, with Student's t interval on Fisher's z = artanh r (Fisher, 1921).

    `mean`, `low` and `high` are correlations again, `se` is that of z.
    Raises ValueError unless -1 < r < 1 throughout.
    """
    r = _table("correlation: r", r, (1,))[:, 0]
    if not (np.abs(r) < 1).all():
        raise ValueError("correlation: r must lie strictly between -1 and 1")
    z = over_seeds(np.arctanh(r), level=level)
    return replace(z, **{name: None if (value := getattr(z, name)) is None else float(np.tanh(value)) for name in ("mean", "low", "high")})


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values, in the order given; None is passed through and not counted.

    With the k values sorted, p_(1) <= ... <= p_(k): adjusted p_(j) = max_{i <= j} min(1, (k - i + 1) p_(i)) (Holm, 1979).
    Raises ValueError for a value outside [0, 1].
    """
    tested = sorted((i for i, value in enumerate(p) if value is not None), key=lambda i: p[i])
    adjusted, largest = [None] * len(p), 0.0
    for rank, i in enumerate(tested):
        if not 0 <= p[i] <= 1:
            raise ValueError(f"holm: p values lie in [0, 1], got {p[i]}")
        largest = max(largest, min(1.0, (len(tested) - rank) * float(p[i])))
        adjusted[i] = largest
    return adjusted


def smallest_effect(interval: Interval, *, power: float = 0.8, level: float = 0.95) -> float | None:
    """The smallest true effect that a test at 1 - level would have found with this power, in the interval's units.

        theta SE, where P(|t_{df, theta}| > t_{(1 + level)/2, df}) = power        (noncentral t with noncentrality theta)

    None where the interval has no bounds. Raises ValueError unless power lies in [0.5, 1), above 1 - level, and level in (0, 1).
    """
    if not max(0.5, 1 - level) <= power < 1 or power == 1 - level:
        raise ValueError(f"smallest_effect: power must lie in [0.5, 1), above 1 - level, got {power}")
    if interval.low is None:
        return None
    bound = float(_quantile(level, interval.df))
    halves = bound * np.sqrt(chi2.ppf((np.arange(4096) + 0.5) / 4096, interval.df) / interval.df)  # half widths, in true SE, of as likely studies
    missed = lambda theta: power - (norm.cdf(theta - halves) + norm.cdf(-theta - halves)).mean()
    return float(brentq(missed, 0, 100 * bound) * interval.se)


# The core works on stacks of tables, (..., n, m). A measure without items is a table of one column: its item and
# residual deviations vanish, and what is left is Student's t over seeds.

class _Form(NamedTuple):
    """A term of the variance of a mean of items: those of one label add up first."""

    sign: int
    membership: np.ndarray | None  # (m, count) of zeros and ones, None where every item is a group of its own
    count: int


def _forms(groups, m):
    """The terms for items that share these groups, by inclusion and exclusion; the last argument is the number of items."""
    groups, forms = [np.asarray(g) for g in groups], []
    if groups and m == 1:
        raise ValueError("groups are of items, and these values have none")
    for labels in groups:
        if labels.shape != (m,) or len(np.unique(labels)) < 2:
            raise ValueError(f"groups must be labels ({m},) of at least two groups, got {labels.shape} of {len(np.unique(labels))}")
    for k in range(1, len(groups) + 1):
        for chosen in combinations(groups, k):
            met, which = np.unique(np.stack(chosen), axis=1, return_inverse=True)
            count = met.shape[1]
            forms.append(_Form((-1) ** (k + 1), None if count == m else np.eye(count)[which.ravel()], count))
    return forms or [_Form(1, None, m)]


def _over_items(x, y, forms):
    """Cov(mean x, mean y) for deviations x and y (..., m) of items, summed over the axis before."""
    total, m = 0.0, x.shape[-1]
    for sign, membership, count in forms:
        a, b = (x, y) if membership is None else (x @ membership, y @ membership)
        total = total + sign * (a * b).sum((-2, -1)) / max(count - 1, 1) * (count / m) / m
    return total


def _parts(a, b, forms):
    """What seeds, items and residuals contribute to Cov(mean a, mean b): v_s/n, v_t/m and v_r/(n m), each (...)."""
    n = a.shape[-2]
    (row_a, column_a, residual_a), (row_b, column_b, residual_b) = _deviations(a), _deviations(b)
    with np.errstate(divide="ignore", invalid="ignore"):  # one seed: no variance over seeds
        return ((row_a * row_b).sum((-2, -1)) / (n - 1) / n,
                _over_items(column_a, column_b, forms),
                _over_items(residual_a, residual_b, forms) / (n - 1) / n)


def _deviations(x):
    mean = x.mean((-2, -1), keepdims=True)
    row, column = x.mean(-1, keepdims=True) - mean, x.mean(-2, keepdims=True) - mean
    return row, column, x - row - column - mean


def _spread(d, forms=None):
    """SE^2 and degrees of freedom of the mean of d (..., n, m)."""
    forms = forms or _forms((), d.shape[-1])
    n, groups = d.shape[-2], min(form.count for form in forms)
    least = n - 1 if d.shape[-1] == 1 else min(n, groups) - 1  # as few as the part with the fewest has
    seeds, items, residual = _parts(d, d, forms)
    variance = np.maximum(seeds + items - residual, seeds)
    with np.errstate(divide="ignore", invalid="ignore"):  # fmax puts `least` in the place of 0/0
        return variance, np.fmax(variance**2 / (seeds**2 / (n - 1) + items**2 / max(groups - 1, 1)), least)


def _interval(d, level, forms=None, scale=None):
    """`scale`: the largest of the values that d was computed from, if not d's own, next to which an SE may be rounding alone."""
    mean, (variance, df) = float(d.mean()), (float(x) for x in _spread(d, forms))
    return _bounds(mean, np.sqrt(variance).item(), df, level, len(d), np.abs(d).max() if scale is None else scale)


def _bounds(mean, se, df, level, n, scale):
    if n < 3 or se <= 1e-9 * scale:
        return Interval(mean, None, None, se, df, None)
    half = float(_quantile(level, df)) * se
    return Interval(mean, mean - half, mean + half, se, df, float(2 * student_t.sf(abs(mean) / se, df)))


def _fieller(numerator, denominator, level, forms=None):
    """Ratio, low and high, each (...); low and high are nan where the set is unbounded.

    With theta = N/D + x and the table e = numerator - N/D denominator, whose mean is zero, either set is
    (D^2 - t^2 V_DD) x^2 + 2 t^2 V_eD x - t^2 V_ee <= 0.
    """
    gap, forms = denominator.mean((-2, -1)), forms or _forms((), denominator.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = numerator.mean((-2, -1)) / gap
        e = numerator - ratio[..., None, None] * denominator
        t2 = _quantile(level, _spread(e, forms)[1]) ** 2
        parts = [_parts(e, e, forms), _parts(e, denominator, forms), _parts(denominator, denominator, forms)]
        low, high, bounded = ratio, ratio, True
        for v_ee, v_ed, v_dd in [[s + i - r for s, i, r in parts], [s for s, _, _ in parts]]:
            a, b = gap**2 - t2 * v_dd, t2 * v_ed
            root = np.sqrt(b**2 + a * t2 * v_ee)  # nan where the set is empty; fmin and fmax pass over it
            low, high = np.fmin(low, ratio - (b + root) / a), np.fmax(high, ratio - (b - root) / a)
            bounded = bounded & (a > 0)
    return ratio, np.where(bounded, low, np.nan), np.where(bounded, high, np.nan)


def _quantile(level, df):
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    return student_t.ppf((1 + level) / 2, df)


def _table(name, values, dims):
    """Values as floats (n, m), m = 1 for a measure without items."""
    x = np.asarray(values, dtype=float)
    if x.ndim not in dims or len(x) < 1 or (x.ndim == 2 and x.shape[1] < 2):
        wanted = " or ".join({1: "(seeds,)", 2: "(seeds, at least 2 items)"}[k] for k in dims)
        raise ValueError(f"{name} must be {wanted}, got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(x))} values that are not finite")
    return x.reshape(len(x), -1)


def _teacher(values, shape):
    x = np.asarray(values, dtype=float)
    if x.shape not in ((), shape, shape[-1:]):
        raise ValueError(f"effect: teacher {x.shape} must be a number, {shape[-1:]} or {shape}, the student's shape")
    if not np.isfinite(x).all():
        raise ValueError(f"effect: teacher has {np.count_nonzero(~np.isfinite(x))} values that are not finite")
    return np.broadcast_to(x, shape).reshape(shape[0], -1)
