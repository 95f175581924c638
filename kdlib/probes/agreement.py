"""How far two networks give the same answers, beyond what their accuracies alone bring about.

All functions take integer predictions or labels of shape (n,) on the same items, as NumPy arrays (`agree` also rows of them). Other
shapes are a ValueError.
"""

import numpy as np

from kdlib.probes.accuracy import same_items


def agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per item, whether two networks predict the same class (the paper's consensus, Sec. 4.4): the mean is in [0, 1]."""
    same_items("agree", a, b)
    return a == b


def kappa(a: np.ndarray, b: np.ndarray) -> float:
    """Cohen's kappa (Cohen, 1960): (observed - chance) / (1 - chance) agreement, at most 1.

    Chance is what two independent networks with these class frequencies would agree on. NaN where chance is 1.
    """
    _vectors("kappa", a, b)
    classes = np.union1d(a, b)
    chance = float(((a[:, None] == classes).mean(0) * (b[:, None] == classes).mean(0)).sum())
    return (float((a == b).mean()) - chance) / (1 - chance) if chance < 1 else float("nan")


def error_consistency(a: np.ndarray, b: np.ndarray, labels: np.ndarray) -> float:
    """Cohen's kappa on correctness (Geirhos et al., 2020): do two networks err on the same items?

    NaN where either network is always right or always wrong: then there is nothing to be consistent about.
    """
    _vectors("error_consistency", a, b, labels)
    right_a, right_b = a == labels, b == labels
    if any(r.all() or not r.any() for r in (right_a, right_b)):
        return float("nan")
    return kappa(right_a.astype(int), right_b.astype(int))


def agreement_by_teacher(student: np.ndarray, teacher: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Agreement where the teacher is right, and where it is wrong: does the student take over errors?

    Each is a share in [0, 1], or NaN where there is no such item.
    """
    _vectors("agreement_by_teacher", student, teacher, labels)
    same, right = student == teacher, teacher == labels
    return tuple(float(same[part].mean()) if part.any() else float("nan") for part in (right, ~right))


def _vectors(name: str, *answers: np.ndarray) -> None:
    same_items(name, *answers)
    if any(not isinstance(a, np.ndarray) or a.ndim != 1 for a in answers):
        raise ValueError(f"{name}: needs NumPy arrays (n,), got " + ", ".join(f"{type(a).__name__} {tuple(a.shape)}" for a in answers))
