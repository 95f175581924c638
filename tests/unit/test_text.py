"""Numbers and sentences of the pages, computed from rows."""

import pytest

from kdlib.book import figures, text


def row(effect, low, high, p=0.5, **more):
    return dict(effect=effect, low=low, high=high, p=p, transfer=None, transfer_low=None, transfer_high=None, flag=None) | more


@pytest.mark.parametrize("effect, low, high, shown", [
    (0.081, 0.02, 0.142, "+8.1 [+2.0, +14.2]"),
    (-0.002, -0.003, -0.0003, "−0.20 [−0.30, −0.03]"),  # clear of zero, and seen to be
    (0.002, 0.00002, 0.004, "+0.200 [+0.002, +0.400]"),
    (0.002, 0.0000001, 0.004, "+0.200 [0.000, +0.400]"),
    (-0.0003, -0.0012, 0.0001, "0.0 [−0.1, 0.0]"),  # holds zero: no sign of a zero
    (-0.0001, -0.0004, 0.0003, "−0.01 [−0.04, +0.03]"),  # no interval without a width
    (0.0, 0.0, 0.0, "0.000 [0.000, 0.000]"),
    (0.081, None, None, "+8.1"),
])
def test_an_interval_shows_on_which_side_of_zero_it_lies(effect, low, high, shown):
    assert text.points(row(effect, low, high)).replace("\N{NO-BREAK SPACE}", " ") == shown


def test_a_part_of_the_teachers_lead_has_its_interval():
    gained = row(0.2, 0.1, 0.3, transfer=0.757, transfer_low=-0.001, transfer_high=0.861)
    assert text.of_lead(gained).replace("\N{NO-BREAK SPACE}", " ") == "76 % [0, 86] of the teacher's lead"
    assert text.of_lead(gained | {"low": -0.1}) == text.of_lead(gained | {"transfer": None}) == ""


def test_what_comes_from_the_very_own_teacher_is_told_from_what_does_not():
    rows = {("KL", "a"): row(0.2, 0.1, 0.3, 0.001), ("KL", "b"): row(0.2, 0.01, 0.4, 0.04), ("Hint", "a"): row(0.0, -0.1, 0.1, 0.9),
            ("Hint", "b"): row(-0.2, -0.3, -0.1, 0.001), ("Ind", "a"): row(-0.1, -0.2, -0.05, 0.01), ("Ind2", "a"): row(0.0, -0.1, 0.1),
            ("KL*", "a"): row(0.0, -0.1, 0.1)}
    found = text.own_teacher(rows, ("KL", "Hint"))
    assert found.particular == {"KL": ["a"], "Hint": []} and found.before == ["KL on b"] and found.below == ["Hint on b"] and found.asked == 4
    assert found.astray == ["Ind on a"]
    assert [said.split(": ")[1] for said in found.controls] == ["of 2 intervals 1 excludes zero (Ind on a).", "of 1 interval 0 exclude zero."]
    nothing = text.own_teacher({at: its | {"low": None, "high": None, "p": None} for at, its in rows.items()}, ("KL", "Hint"))
    assert nothing.particular == {"KL": [], "Hint": []} and not nothing.before + nothing.below + nothing.astray + nothing.controls
    assert text.own_teacher({}, ("KL",)).asked == 0


def test_scatter_draws_the_least_squares_line_of_each_seed():
    by_method = {"KL": ([0.1, 0.4], [0.2, 0.1]), "Ind": ([0.3, 0.4], [0.6, 0.3]), "Hint": ([0.2, 0.4], [0.4, 0.2])}  # second seed: no spread in x, no line
    axis = figures.scatter([[by_method]], x=[["x"]], y=["y"], title="t").axes[0]
    lines = [line for line in axis.lines if line.get_color() == "#999999"]
    assert len(lines) == 1 and list(lines[0].get_xdata()) == [0.1, 0.3] and lines[0].get_ydata() == pytest.approx([0.2, 0.6])
    figures.plt.close("all")
