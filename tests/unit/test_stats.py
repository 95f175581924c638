"""Effects and transfer: known answers, properties, and what the intervals cover in simulation."""

import dataclasses

import numpy as np
import pytest
from scipy import stats as scipy_stats

from kdlib import stats

MOVED = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]  # a teacher moves its students on the same items
SEEDS = [[1, 0], [0, 0], [1, 1]]  # seeds differ, items hardly


def spread_by_definition(d):
    """SE^2 and df from sums of squares: nothing shared with the implementation."""
    n, m = d.shape
    v_s, v_i = np.var(d.mean(1), ddof=1), np.var(d.mean(0), ddof=1)
    total = np.sum((d - d.mean()) ** 2)
    v_r = (total - m * (n - 1) * v_s - n * (m - 1) * v_i) / ((n - 1) * (m - 1))
    square = max(v_s / n + v_i / m - v_r / (n * m), v_s / n)
    return square, max(square**2 / ((v_s / n) ** 2 / (n - 1) + (v_i / m) ** 2 / (m - 1)), min(n, m) - 1)


def accepted(numerator, denominator, thetas):
    """Fieller's test put to each theta in turn."""
    if numerator.ndim == 1:
        n = len(numerator)
        threshold = scipy_stats.t.ppf(0.975, n - 1)
        return np.array([abs((e := numerator - x * denominator).mean()) <= threshold * e.std(ddof=1) / np.sqrt(n)
                         for x in thetas])
    point = numerator - numerator.mean() / denominator.mean() * denominator
    threshold = scipy_stats.t.ppf(0.975, spread_by_definition(point)[1])
    return np.array([abs((e := numerator - x * denominator).mean()) <= threshold * spread_by_definition(e)[0] ** 0.5
                     for x in thetas])


def tables(seed, n=5, m=30, student=0.3, teacher=0.6):
    """Per-item values of a student, its reference and one teacher."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(0, 0.3, (n, m))
    moved = rng.normal(student, 0.2, m) + rng.normal(0, 0.05, (n, 1))
    return reference + moved + rng.normal(0, 0.1, (n, m)), reference, rng.normal(teacher, 0.2, m)


# known answers

def test_crossed_where_items_dominate():
    got = stats.crossed(MOVED)  # v_s/n = 1/144, v_i/m = 9/144, v_r/(n m) = 1/144
    assert got.mean == pytest.approx(5 / 12)
    assert got.se == pytest.approx(1 / 4)
    assert got.df == pytest.approx(162 / 55)
    half = scipy_stats.t.ppf(0.975, 162 / 55) / 4
    assert (got.low, got.high) == pytest.approx((5 / 12 - half, 5 / 12 + half))
    assert got.p == pytest.approx(2 * scipy_stats.t.sf(5 / 3, 162 / 55))


def test_crossed_of_two_items_may_have_fewer_than_n_minus_1_degrees():
    got = stats.crossed(SEEDS)  # v_s/n = 1/12, v_i/m = v_r/(n m) = 1/36
    assert got.mean == pytest.approx(1 / 2)
    assert got.se == pytest.approx(12**-0.5)
    assert got.df == pytest.approx(18 / 11)  # Satterthwaite's; two items have one degree


def test_crossed_never_falls_below_the_variance_over_seeds():
    opposed = [[1, 0, 0], [0, 1, 0], [0, 0, 2]]  # residuals so large that v_i/m - v_r/(n m) < 0
    got = stats.crossed(opposed)
    assert got.se == pytest.approx(stats.over_seeds(np.mean(opposed, 1)).se)
    assert got.df >= 2


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_over_seeds_is_the_one_sample_t_test(level):
    d = np.array([0.03, 0.11, -0.02, 0.08, 0.05])
    got, expected = stats.over_seeds(d, level=level), scipy_stats.ttest_1samp(d, 0)
    bounds = expected.confidence_interval(level)
    assert (got.low, got.high, got.p, got.df) == pytest.approx((bounds.low, bounds.high, expected.pvalue, 4))


def test_fieller_of_values_per_seed_against_test_inversion():
    a, b = np.array([0.10, 0.16, 0.07, 0.12]), np.array([0.21, 0.30, 0.24, 0.22])
    ratio, low, high = stats.fieller(a, b)
    grid = np.arange(0, 2, 1e-4)
    inside = grid[accepted(a, b, grid)]
    assert ratio == pytest.approx(0.45 / 0.97)
    assert (low, high) == pytest.approx((inside[0], inside[-1]), abs=1.1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_fieller_of_tables_against_test_inversion(seed):
    s, r, t = tables(seed)
    ratio, low, high = stats.fieller(s - r, t - r)
    grid = np.arange(-1, 3, 5e-4)
    inside = grid[accepted(s - r, t - r, grid)]
    assert ratio == pytest.approx((s - r).mean() / (t - r).mean())
    assert (low, high) == pytest.approx((inside[0], inside[-1]), abs=6e-4)


def test_fieller_holds_every_accepted_ratio_of_small_ragged_tables():
    rng = np.random.default_rng(5)
    grid, bounded = np.linspace(-20, 20, 401), 0
    for _ in range(80):
        n, m = rng.integers(3, 6), rng.integers(2, 5)
        a, b = rng.normal(0.5, 0.6, (n, m)), rng.normal(1.5, 0.6, (n, m))
        found = stats.fieller(a, b)
        if found is None:
            assert accepted(a, b, [-1e7, 1e7]).any()
        else:
            ratio, low, high = found
            inside = grid[accepted(a, b, grid)]
            assert low <= ratio <= high and np.all((low <= inside) & (inside <= high))
            assert not accepted(a, b, [low - 1e-4, high + 1e-4, -1e7, 1e7]).any()
            assert accepted(a, b, [low + 1e-9, high - 1e-9]).all()
            bounded += 1
    assert 20 < bounded < 80  # both kinds occur


def test_holm_by_hand():
    assert stats.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert stats.holm([0.6, 0.5]) == [1.0, 1.0]
    assert stats.holm([]) == [] and stats.holm([None]) == [None]
    with pytest.raises(ValueError, match="holm: p values lie in"):
        stats.holm([0.2, 1.2])


def test_a_correlation_that_is_the_same_in_every_seed_has_no_interval():
    got = stats.correlation([0.5, 0.5, 0.5])
    assert got.mean == pytest.approx(0.5) and (got.low, got.high, got.p) == (None, None, None)
    assert stats.correlation([-0.2, 0.0, 0.2]).low < 0 < stats.correlation([-0.2, 0.0, 0.2]).high


def test_smallest_effect_by_hand():
    got = stats.over_seeds([-1.0, 0.0, 1.0])  # se = 3^-1/2, df = 2
    assert stats.smallest_effect(got) == pytest.approx(5.653489 / 3**0.5, abs=1e-5)
    for df in (2, 3, 7.5, 400):  # scipy's noncentral t
        interval, bound = stats.Interval(0.0, -1.0, 1.0, 0.25, df, 1.0), stats.student_t.ppf(0.975, df)
        theta, nct = stats.smallest_effect(interval) / 0.25, scipy_stats.nct
        assert nct.sf(bound, df, theta) + nct.cdf(-bound, df, theta) == pytest.approx(0.8, abs=1e-5)
    assert stats.smallest_effect(got, power=0.9) > stats.smallest_effect(got)
    assert stats.smallest_effect(stats.over_seeds([0.1, 0.2])) is None
    with pytest.raises(ValueError, match="power must lie in"):
        stats.smallest_effect(got, power=1)


# properties

def test_effect_fills_the_columns_of_results():
    s, r, t = tables(0)
    got, whole, seeds = stats.effect(s, r, t), stats.crossed(s - r), stats.over_seeds((s - r).mean(1))
    assert [f.name for f in dataclasses.fields(got)] == [
        "effect", "low", "high", "low_seeds", "high_seeds", "transfer", "transfer_low", "transfer_high",
        "n_seeds", "n_items", "flag", "se", "df", "p"]
    assert (got.effect, got.low, got.high, got.se, got.df, got.p) == (
        whole.mean, whole.low, whole.high, whole.se, whole.df, whole.p)
    assert (got.low_seeds, got.high_seeds) == pytest.approx((seeds.low, seeds.high))
    assert (got.transfer, got.transfer_low, got.transfer_high) == stats.fieller(s - r, t - r)
    assert (got.n_seeds, got.n_items, got.flag) == (5, 30, None)


def test_order_of_seeds_and_items_does_not_matter():
    s, r, t = tables(1)
    rows, columns = np.random.default_rng(0).permutation(5), np.random.default_rng(1).permutation(30)
    shuffled = stats.effect(s[rows][:, columns], r[rows][:, columns], t[columns])
    assert dataclasses.astuple(shuffled) == pytest.approx(dataclasses.astuple(stats.effect(s, r, t)))


def test_effects_scale_and_shift_and_transfer_does_not():
    s, r, t = tables(2)
    one, other = stats.effect(s, r, t), stats.effect(5 - 3 * s, 5 - 3 * r, 5 - 3 * t)
    assert (other.effect, other.low, other.high) == pytest.approx((-3 * one.effect, -3 * one.high, -3 * one.low))
    assert (other.transfer, other.transfer_low, other.transfer_high) == pytest.approx(
        (one.transfer, one.transfer_low, one.transfer_high))
    assert other.p == pytest.approx(one.p)


def test_a_student_that_is_its_teacher_inherits_all():
    s, r, _ = tables(3)
    got = stats.effect(s, r, s)
    assert (got.transfer, got.transfer_low, got.transfer_high) == pytest.approx((1, 1, 1), abs=1e-6)


def test_one_teacher_is_a_teacher_repeated_and_a_number_is_a_constant_one():
    s, r, t = tables(4)
    assert stats.effect(s, r, t) == stats.effect(s, r, np.tile(t, (5, 1)))
    assert stats.effect(s, r, 1.0) == stats.effect(s, r, np.ones(30))


def test_booleans_are_counted_not_combined():
    s, r = np.array(MOVED, bool), np.zeros((3, 4), bool)
    assert stats.effect(s, r).effect == pytest.approx(5 / 12)
    assert stats.effect(r, s).effect == pytest.approx(-5 / 12)


def test_measures_without_shared_items_use_t_over_seeds():
    s, r, t = np.array([0.5, 0.6, 0.52, 0.57]), np.array([0.3, 0.36, 0.31, 0.38]), np.array([0.8, 0.79, 0.83, 0.78])
    got, seeds = stats.effect(s, r, t), stats.over_seeds(s - r)
    assert got.n_items is None and got.n_seeds == 4
    assert (got.low, got.high) == (got.low_seeds, got.high_seeds) == (seeds.low, seeds.high)
    assert (got.transfer, got.transfer_low, got.transfer_high) == stats.fieller(s - r, t - r)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_seeds_give_no_interval_and_no_transfer(n):
    s, r, t = (x[:n] if x.ndim == 2 else x for x in tables(0))
    got = stats.effect(s, r, t)
    assert got.effect == pytest.approx((s - r).mean())
    assert got.flag == "fewer than 3 seeds" and (got.n_seeds, got.n_items) == (n, 30)
    assert {getattr(got, f.name) for f in dataclasses.fields(got)[1:8]} == {None} and got.p is None
    assert stats.effect(s, r).flag == stats.effect(s[:, 0], r[:, 0], 1.0).flag == "fewer than 3 seeds"
    assert stats.fieller(s - r, t - r) is None
    for interval in (stats.crossed(s - r), stats.over_seeds((s - r).mean(1))):
        assert interval.low is interval.high is interval.p is None and not interval.excludes_zero
        assert np.isnan(interval.se) == (n == 1)


def test_no_teacher_gap_and_student_only():
    r = np.tile([0.2, 0.6, 0.4, 0.8], (3, 1))
    t = r[0] + [0.1, -0.1, 0.1, -0.1]
    wobble = np.array([[0.1, -0.1, 0, 0.1], [0, 0.1, -0.1, 0], [0, -0.1, 0.1, -0.1]])
    nothing, moved = stats.effect(r + wobble, r, t), stats.effect(r + wobble + 0.5, r, t)
    assert nothing.flag == "no teacher gap" and moved.flag == "student only"
    for got in (nothing, moved):
        assert got.transfer is got.transfer_low is got.transfer_high is None
        assert got.low is not None
    assert stats.effect(r + wobble, r).flag is None  # no transfer is defined, so none is missed


def test_unbounded_though_the_teacher_has_a_gap():
    # the gap varies over 40 items (many degrees of freedom), the effect over 3 seeds (2 of them)
    gap = np.where(np.arange(40) % 2, 1.4, -0.6)
    r = np.zeros((3, 40))
    s = r + np.array([[0.5], [-0.5], [1.0]])
    assert stats.crossed(r + gap).excludes_zero
    got = stats.effect(s, r, gap)
    assert got.flag == "unbounded"
    assert got.transfer is got.transfer_low is got.transfer_high is None
    assert accepted(s, r + gap, [1e7]).all()


def test_equal_seeds_on_a_saturated_measure_have_no_spread():
    # every seed gains exactly one of ten items, each another one: v_s = 0 and v_i/m = v_r/(n m), so SE = 0
    r = np.zeros((3, 10))
    s = r.copy()
    s[[0, 1, 2], [2, 5, 7]] = 1
    got = stats.effect(s, r, np.ones(10))
    assert got.effect == pytest.approx(0.1) and got.flag == "no spread"
    assert {got.low, got.high, got.low_seeds, got.high_seeds, got.transfer, got.p} == {None}


def test_without_spread_there_is_no_interval():
    for same in 0.25, 0.1, 0.0:  # the means of 0.1 differ by their rounding
        for got in stats.crossed(np.full((3, 5), same)), stats.over_seeds([same] * 3):
            assert got.mean == pytest.approx(same) and got.se == pytest.approx(0, abs=1e-16)
            assert (got.low, got.high, got.p, got.excludes_zero) == (None, None, None, False)
    rows_agree = stats.effect(np.array([[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0]]), np.zeros((3, 4)))
    assert rows_agree.flag is None and rows_agree.low < rows_agree.high and rows_agree.low_seeds is rows_agree.high_seeds is None
    assert stats.fieller(np.full((3, 4), 0.25), np.full((3, 4), 0.5)) == (0.5, 0.5, 0.5)
    assert stats.fieller(np.full((3, 4), 0.25), np.zeros((3, 4))) is None
    same = stats.effect(np.ones((3, 4)), np.ones((3, 4)), np.ones(4))
    assert (same.effect, same.low, same.high, same.p, same.flag) == (0, None, None, None, "no spread")
    rounded = stats.effect(0.3 + np.array([[0, 1], [1, 0], [1, 1]]) * 2**-54, np.full((3, 2), 0.3))
    assert rounded.flag == "no spread" and rounded.p is None


@pytest.mark.parametrize("call, message", [
    (lambda: stats.crossed([1, 2, 3]), r"crossed: d must be \(seeds, at least 2 items\), got shape \(3,\)"),
    (lambda: stats.crossed(np.zeros((3, 1))), r"got shape \(3, 1\)"),
    (lambda: stats.crossed(np.zeros((0, 4))), r"got shape \(0, 4\)"),
    (lambda: stats.crossed(np.zeros((2, 3, 4))), r"got shape \(2, 3, 4\)"),
    (lambda: stats.crossed([[0, np.nan], [np.inf, 1]]), "crossed: d has 2 values that are not finite"),
    (lambda: stats.crossed(MOVED, level=95), "level must lie strictly between 0 and 1, got 95"),
    (lambda: stats.over_seeds(MOVED), r"over_seeds: d must be \(seeds,\), got shape \(3, 4\)"),
    (lambda: stats.fieller(MOVED, SEEDS), r"fieller: numerator \(3, 4\) and denominator \(3, 2\) must have one shape"),
    (lambda: stats.effect(MOVED, SEEDS), r"effect: student \(3, 4\) and reference \(3, 2\) must have one shape"),
    (lambda: stats.effect(1.0, 1.0), r"effect: student must be \(seeds,\) or \(seeds, at least 2 items\)"),
    (lambda: stats.effect(MOVED, MOVED, [1, 1, 1]), r"effect: teacher \(3,\) must be a number, \(4,\) or \(3, 4\)"),
    (lambda: stats.effect(MOVED, MOVED, np.nan), "effect: teacher has 1 values that are not finite"),
])
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# simulation: new seeds and new items in every study

STUDIES, BATCH = 4000, 250
SIZES = [(n, m) for m in (160, 1000) for n in (3, 5, 10)]


def studies(n, m, *, student_lift=0.4, teacher_lift=0.4, seed_sd=0.01, seed=0):
    """Correctness of students, references and one teacher in batches: student - reference, teacher - reference.

    An item's probability of being answered right is Beta(1/2, 1/2) squeezed into [0.06, 0.54]. The student's is higher
    by `student_lift` on a random fifth of the items, the teacher's by `teacher_lift` on these and as many as make half.
    A seed adds N(0, seed_sd) of its own. A pair of arms shares four fifths of its chance, as equal initial weights and
    data order do. So the mean differences of the population are student_lift / 5 and teacher_lift / 2.
    """
    rng = np.random.default_rng([seed, n, m])
    uniform = lambda *shape: rng.random(shape, dtype=np.float32)
    for _ in range(STUDIES // BATCH):
        base = 0.06 + 0.48 * rng.beta(0.5, 0.5, (BATCH, 1, m)).astype(np.float32)
        place = uniform(BATCH, 1, m)
        own = np.clip(seed_sd * rng.standard_normal((BATCH, n, 1), dtype=np.float32), -0.06, 0.06)
        chance = uniform(BATCH, n, m)
        student = np.where(uniform(BATCH, n, m) < 0.8, chance, uniform(BATCH, n, m)) < (
            base + student_lift * (place < 0.2) + own)
        reference = (chance < base).astype(np.float32)
        teacher = uniform(BATCH, 1, m) < base + teacher_lift * (place < 0.5)
        yield student - reference, teacher - reference


def half_width(d, df=None, forms=None):
    variance, own_df = stats._spread(d, forms)
    return scipy_stats.t.ppf(0.975, own_df if df is None else df) * np.sqrt(variance)


def covers(d, truth):
    return abs(d.mean((-2, -1)) - truth) <= half_width(d)


def test_stacks_of_tables_agree_with_single_ones():
    d, gap = (x[:40].astype(float) for x in next(studies(3, 160, teacher_lift=0.2)))
    half, ratios = half_width(d), np.array(stats._fieller(d, gap, 0.95))
    for k in range(40):
        single = stats.crossed(d[k])
        assert (single.high - single.low) / 2 == pytest.approx(half[k])
        found = stats.fieller(d[k], gap[k])
        assert np.isnan(ratios[1:, k]).all() if found is None else found == pytest.approx(tuple(ratios[:, k]))
    assert 0 < np.isnan(ratios[1]).sum() < 40


@pytest.mark.parametrize("n, m", SIZES)
def test_the_crossed_interval_covers_and_seeds_alone_do_not(n, m):
    crossed, seeds = np.mean([(covers(d, 0.08).mean(), covers(d.mean(-1, keepdims=True), 0.08).mean())
                              for d, _ in studies(n, m)], axis=0)
    print(f"n = {n}, m = {m}: crossed {crossed:.3f}, seeds alone {seeds:.3f}")
    assert (0.91 if n == 3 else 0.93) <= crossed <= 0.97
    if n > 3:  # three seeds pay with t = 4.3 for what they do not see
        assert seeds < crossed - (0.08 if n == 10 else 0.03)


def test_three_seeds_that_differ_much_cover_a_little_less():
    # Satterthwaite's weak spot: v_s/n outweighs the rest, and where it comes out small by chance, t does so with it
    coverage = np.mean([covers(d, 0.08) for d, _ in studies(3, 1000, seed_sd=0.02)])
    print(f"coverage {coverage:.3f}")
    assert 0.90 <= coverage <= 0.95


def by_loops(d, groups):
    """SE^2 of a two-way clustered mean as defined, item by item and pair by pair: pairs that share a group count."""
    n, m = d.shape
    def over_items(x):
        x, total = x - x.mean(), 0.0
        sharing = [groups[0][:, None] == groups[0], groups[1][:, None] == groups[1]]
        for sign, same in (1, sharing[0]), (1, sharing[1]), (-1, sharing[0] & sharing[1]):
            count = len(np.unique(same, axis=0))
            total += sign * count / (count - 1) * sum(x[i] * x[j] for i in range(m) for j in range(m) if same[i, j]) / m**2
        return total
    seeds = d.mean(1).var(ddof=1) / n
    residual = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    return max(seeds + over_items(d.mean(0)) - sum(map(over_items, residual)) / (n - 1) / n, seeds)


def test_items_in_two_ways_of_groups_by_hand():
    rng = np.random.default_rng(0)
    d, groups = rng.normal(size=(4, 12)) + rng.normal(size=12), [np.arange(12) // 3, rng.permutation(12) % 3]
    found = stats.crossed(d, groups=groups)
    assert found.se**2 == pytest.approx(by_loops(d, groups)) and found.se != pytest.approx(stats.crossed(d).se)
    assert found.df == pytest.approx(max(found.se**4 / ((d.mean(1).var(ddof=1) / 4)**2 / 3 + items_part(d, groups)**2 / 2), 3))
    assert stats.effect(d, np.zeros_like(d), groups=groups).se == found.se


def items_part(d, groups):
    """What items contribute, as a run of one seed with no residual shows it."""
    return stats._parts(*2 * (d.mean(0, keepdims=True),), stats._forms(groups, d.shape[1]))[1]


def test_groups_of_equal_size_are_items_themselves():
    """With one way of groups, all equally large, clustering is the same as taking each group's mean for an item."""
    rng = np.random.default_rng(1)
    d, gap, group = rng.normal(0.5, 1, (5, 60)) + rng.normal(size=60), rng.normal(3, 1, (5, 60)), rng.permutation(60) % 20
    means = lambda x: np.stack([x[:, group == g].mean(1) for g in range(20)], axis=1)
    for names, wanted in ([group], stats.crossed(means(d))), ([group, group], stats.crossed(means(d))), ([np.arange(60)], stats.crossed(d)):
        found = stats.crossed(d, groups=names)
        assert [getattr(found, k) for k in ("mean", "low", "high", "se", "df", "p")] == pytest.approx([getattr(wanted, k) for k in ("mean", "low", "high", "se", "df", "p")])
    assert stats.fieller(d, gap, groups=[group]) == pytest.approx(stats.fieller(means(d), means(gap)))
    whole = stats.effect(d, 0 * d, gap, groups=[group])
    assert (whole.transfer, whole.transfer_low, whole.transfer_high) == pytest.approx(stats.fieller(means(d), means(gap))) and whole.n_items == 60


def test_the_interval_covers_where_items_share_shapes_and_textures_if_it_is_told():
    n, m, rng = 5, 320, np.random.default_rng(2)
    groups = [np.arange(m) // 4, rng.permutation(m) % 24]
    told, untold = [], []
    for _ in range(8):
        d = (0.05 * rng.normal(size=(BATCH, n, 1)) + rng.normal(size=(BATCH, 1, m)) + rng.normal(size=(BATCH, n, m))
             + 0.4 * rng.normal(size=(BATCH, 1, m // 4))[:, :, groups[0]] + 0.4 * rng.normal(size=(BATCH, 1, 24))[:, :, groups[1]])
        told.append(abs(d.mean((-2, -1))) <= half_width(d, forms=stats._forms(groups, m)))
        untold.append(covers(d, 0))
    print(f"told {np.mean(told):.3f}, untold {np.mean(untold):.3f}")
    assert 0.92 <= np.mean(told) <= 0.98 and np.mean(untold) < 0.85


@pytest.mark.parametrize("groups", [[np.zeros(6)], [np.arange(5)], [np.arange(6), np.zeros((2, 3))]])
def test_groups_that_fit_no_table(groups):
    with pytest.raises(ValueError, match="groups are of items, and these values have none"):
        stats.effect([1, 2, 3], [0, 1, 1], groups=groups)
    with pytest.raises(ValueError, match=r"groups must be labels \(6,\) of at least two groups, got"):
        stats.crossed(np.random.default_rng(0).random((3, 6)), groups=groups)


@pytest.mark.parametrize("n, m", SIZES)
def test_identical_arms_differ_in_one_study_of_twenty(n, m):
    wrong = np.mean([~covers(d, 0) for d, _ in studies(n, m, student_lift=0)])
    print(f"n = {n}, m = {m}: {wrong:.3f}")
    assert 0.03 <= wrong <= 0.07


@pytest.mark.parametrize("lift", [0.4, 0.1])
@pytest.mark.parametrize("n, m", SIZES)
def test_fieller_covers_counting_unbounded_sets(n, m, lift):
    truth, hits, unbounded = 0.4, [], []
    for d, gap in studies(n, m, student_lift=lift, teacher_lift=lift):
        ratio, low, high = stats._fieller(d, gap, 0.95)
        with np.errstate(invalid="ignore"):  # a gap of exactly 0 has no point estimate: unbounded, counted as a miss
            df = stats._spread(d - ratio[:, None, None] * gap)[1]
        e = d - truth * gap
        inside = (abs(e.mean((-2, -1))) <= half_width(e, df)) & np.isfinite(ratio)
        none = np.isnan(low)
        assert np.mean(inside[~none] == ((low <= truth) & (truth <= high))[~none]) > 0.99
        hits.append(inside)
        unbounded.append(none)
    hits, unbounded = np.concatenate(hits), np.concatenate(unbounded)
    print(f"n = {n}, m = {m}, lift {lift}: {hits.mean():.3f}, unbounded {unbounded.mean():.3f}, "
          f"bounded ones {hits[~unbounded].mean():.3f}")
    assert 0.93 <= hits.mean() <= 0.97


@pytest.mark.parametrize("n, m", [(3, 160), (10, 1000)])
def test_a_teacher_without_a_gap_is_rarely_given_a_transfer(n, m):
    given = np.mean([~covers(gap, 0) for _, gap in studies(n, m, teacher_lift=0)])
    print(f"n = {n}, m = {m}: {given:.3f}")
    assert 0.03 <= given <= 0.07


def additive(n, own, noise, seed, studies=1):
    """Tables (studies, n, n) of students that agree with every teacher to different degrees, teachers likewise, and `own` on the diagonal."""
    rng = np.random.default_rng(seed)
    return (0.6 + rng.normal(0, 0.2, (studies, n, 1)) + rng.normal(0, 0.1, (studies, 1, n)) + own * np.eye(n)
            + rng.normal(0, noise, (studies, n, n)))


@pytest.mark.parametrize("n", [3, 4, 6])
def test_own_teacher_by_regression_and_by_hand(n):
    [a] = additive(n, 0.05, 0.02, seed=n)
    i, j = np.indices((n, n)).reshape(2, -1)
    design = np.column_stack([i == j, *(i == k for k in range(n)), *(j == k for k in range(1, n))]).astype(float)
    found, (weights, _, rank, _) = stats.own_teacher(a), np.linalg.lstsq(design, a.ravel(), rcond=None)
    assert rank == 2 * n and found.mean == pytest.approx(weights[0]), "least squares with students and teachers as factors"
    assert found.mean == pytest.approx(np.diag(a).mean() - a[~np.eye(n, dtype=bool)].mean())
    d = [n / (n - 1) * (a[k, k] - sum(a[k, :]) / n - sum(a[:, k]) / n + a.sum() / n**2) for k in range(n)]
    v_d = sum((x - sum(d) / n) ** 2 for x in d) / (n - 1)
    bonds = np.column_stack([*((i == k) & (j == k) for k in range(n)), design[:, 1:]]).astype(float)  # each seed's own: the diagonal leaves nothing
    left = a.ravel() - bonds @ np.linalg.lstsq(bonds, a.ravel(), rcond=None)[0]
    v_e = left @ left / (n * n - np.linalg.matrix_rank(bonds))
    se = np.sqrt(max(((n - 1) / (n - 2)) ** 2 * v_d / n - v_e / ((n - 1) * (n - 2)), (n - 1) / (n - 2) * v_d / n))
    assert (found.se, found.df, found.low, found.high) == pytest.approx((se, n - 1, *(found.mean + k * scipy_stats.t.ppf(0.975, n - 1) * se for k in (-1, 1))))
    assert found.p == pytest.approx(2 * scipy_stats.t.sf(abs(weights[0]) / se, n - 1))
    moved = stats.own_teacher(a + np.arange(n)[:, None] - 3 * np.arange(n))
    assert (moved.mean, moved.se) == pytest.approx((found.mean, found.se)), "whoever agrees more with everybody"


@pytest.mark.parametrize("n", [3, 5])
def test_own_teacher_covers_whatever_students_teachers_and_their_bonds_differ_in(n):
    rng = np.random.default_rng(n)
    for scatter in 0, 0.01, 0.02, 0.1:
        tables = additive(n, 0.02, 0.01, seed=n, studies=4000) + rng.normal(0, scatter, (4000, n, 1)) * np.eye(n)
        assert 0.94 <= np.mean([f.low <= 0.02 <= f.high for f in map(stats.own_teacher, tables)]) <= 0.97
    assert 0.03 <= np.mean([stats.own_teacher(a).p < 0.05 for a in additive(n, 0, 0.01, seed=10 + n, studies=4000)]) <= 0.06


def test_own_teacher_of_two_seeds_and_of_no_square():
    found = stats.own_teacher([[0.9, 0.5], [0.4, 0.7]])
    assert found.mean == pytest.approx(0.35) and (found.low, found.high, found.p) == (None, None, None)
    with pytest.raises(ValueError, match="table must be square, a student and a teacher for each seed"):
        stats.own_teacher(np.ones((3, 4)))
    with pytest.raises(ValueError, match="1 values that are not finite"):
        stats.own_teacher([[1, 2], [np.nan, 3]])
    for flat in np.ones((3, 3)), 0.5 + 0.1 * np.eye(3):  # no seed differs from another, but for rounding
        found = stats.own_teacher(flat)
        assert found.mean == pytest.approx(0.1 * (flat[0, 0] != 1)) and (found.low, found.high, found.p, found.excludes_zero) == (None, None, None, False)


def test_partial_correlation_by_the_formula():
    random = np.random.default_rng(4)
    given = random.normal(size=12)
    x, y = 2 * given + random.normal(size=12), -given + random.normal(size=12)
    xy, xz, yz = (np.corrcoef(a, b)[0, 1] for a, b in ((x, y), (x, given), (y, given)))
    wanted = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))
    assert stats.partial_correlation(x, y, given) == pytest.approx(wanted)
    assert stats.partial_correlation(3 * x - 1, y, given) == pytest.approx(wanted), "no unit"


def test_partial_correlation_is_undefined_without_spread():
    line = np.arange(6.0)
    for x, y, given in (line, line[::-1] ** 2, line), (np.ones(6), line, line**2), (line[:3], line[:3] ** 2, np.ones(3)):
        assert np.isnan(stats.partial_correlation(x, y, given))
    assert stats.partial_correlation(line, line, np.ones(6)) == pytest.approx(1), "a constant takes nothing off"
    assert stats.partial_correlation(1e-12 * line, line**2, np.sin(line)) == pytest.approx(stats.partial_correlation(line, line**2, np.sin(line))), "units"


def test_the_mean_correlation_is_fishers():
    r = [0.5, 0.7, 0.9]
    z = [0.5 * np.log((1 + v) / (1 - v)) for v in r]
    t = scipy_stats.ttest_1samp(z, 0)
    bounds = t.confidence_interval()
    found = stats.correlation(r)
    assert found.mean == pytest.approx(np.tanh(np.mean(z)))
    assert (found.low, found.high, found.p) == pytest.approx((np.tanh(bounds.low), np.tanh(bounds.high), t.pvalue))
    assert stats.correlation(r[:2]).low is None
    with pytest.raises(ValueError, match="between -1 and 1"):
        stats.correlation([0.1, 1.0, 0.2])


@pytest.mark.parametrize("groups", [2, 3])
def test_the_interval_covers_with_more_seeds_than_groups(groups):
    rng, labels, hits = np.random.default_rng(groups), np.repeat(np.arange(groups), 20), []
    for _ in range(1500):
        d = rng.normal(0, 0.1, (10, 1)) + rng.normal(0, 1, groups)[labels] + rng.normal(0, 1, (10, labels.size))
        hits.append(covers_zero(stats.crossed(d, groups=[labels])))
    assert 0.9 <= np.mean(hits) <= 0.98, "72 and 83 % with n - 1 degrees of freedom or more"


def covers_zero(found):
    return found.low <= 0 <= found.high
