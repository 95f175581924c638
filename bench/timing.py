"""Two ways of doing the same, timed side by side."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Pair:
    """Seconds of each round. Neighbours in time share what else the machine does, so ratios are taken round by round."""

    ours: list[float]
    other: list[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other)]


def side_by_side(ours: Callable[[], float], other: Callable[[], float], rounds: int) -> Pair:
    """Time both in turn (each returns its seconds), first one and then the other first, after a round to warm up."""
    seconds = [], []
    for i in range(rounds + 1):
        pair = [None, None]
        for which in (0, 1) if i % 2 else (1, 0):
            pair[which] = (ours, other)[which]()
        if i:
            seconds[0].append(pair[0])
            seconds[1].append(pair[1])
    return Pair(*seconds)


def timed(work: Callable[[], object], times: int = 1) -> Callable[[], float]:
    """Seconds that one call of `work` takes, of `times` in a row."""
    def run() -> float:
        started = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - started) / times
    return run


def ratio(values: list[float]) -> str:
    """The median with quartiles: '1.02 [1.01, 1.04]'."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"
