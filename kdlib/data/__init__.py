"""Data suites. Everything a suite gives lives on the device as tensors, pixels in [0, 1].

A suite is a value: its `describe()` names its content by declared digests, so that a run's key can be formed without
the data. `suite.train(domains, device)` gives a `Trainable`; `suite.test(domain, device)` gives fixed (x, y). Where test images have
something in common, such as a background, `suite.sharing` says what, by domain, and `suite.groups(domain)` which of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the command answers at once, without loading torch
    from torch import Generator, Tensor


class DataError(Exception):
    """Data that are missing, incomplete or not what they should be; the message says what to do."""


class MissingData(DataError):
    """Data of which nothing is there."""


@dataclass(frozen=True)
class DataSet:
    """What `kdlib data` knows of a data set. A suite's module lists its own by name in `SETS`."""

    what: str
    verify: Callable[[], str]  # where it is, all of it read and compared with its declared digest; else a DataError

    def state(self) -> tuple[str, str]:
        """(complete, where it is), or missing or not complete with what is wrong and what to do."""
        try:
            return "complete", self.verify()
        except (DataError, OSError) as error:
            return "missing" if isinstance(error, MissingData) else "not complete", str(error)


def data_sets() -> dict[str, DataSet]:
    """Every data set that some suite reads, by name."""
    from kdlib.data import digits, photos, scenes

    return {name: data_set for suite in (digits, photos, scenes) for name, data_set in suite.SETS.items()}


class Trainable(Protocol):
    """Training data as the engine sees them: n items, drawn by index, randomness as explicit parameters."""

    n: int
    views: int  # images that one index stands for (one per domain)
    fixed: bool  # the same index always gives the same image

    def draw(self, generator: Generator) -> Tensor | None:
        """One epoch's random parameters, a row per item; None where `fixed`."""

    def batch(self, idx: Tensor, parameters: Tensor | None) -> tuple[Tensor, Tensor]:
        """(x, y) of the items idx: x (views * len(idx), 3, size, size), y (views * len(idx),)."""


def data_root() -> Path | None:
    """The folder named by KDLIB_DATA, or None where it is not set. A name without a folder is a DataError."""
    name = os.environ.get("KDLIB_DATA")
    if not name:
        return None
    root = Path(name).expanduser()
    if not root.is_dir():
        raise DataError(f"KDLIB_DATA is {name}, but there is no such folder; unpack the data there or unset it")
    return root
