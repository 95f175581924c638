"""Whether a network gives an image and its changed self the same class (the paper's agreement, Sec. 4.3 and Fig. 4).

A change is any function of images and explicit parameters, a row per image, so that the very same changes can be put to every
network: recolouring is `kdlib.data.augment.jitter` with its factors.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from kdlib.probes.accuracy import predict

version = 1


def predict_changed(net: nn.Module, x: Tensor, change: Callable[[Tensor, Tensor], Tensor], parameters: Tensor, *, batch: int = 500) -> Tensor:
    """The classes (draws, n) that a network gives the images x (n, channels, height, width) once they are changed.

    Draw d shows it change(x, parameters[d]), with `parameters` (draws, n, ...). Changed images are made batch by batch and not kept. A
    network in train mode is a ValueError, and so are parameters that do not have a row for each image.
    """
    if parameters.ndim < 2 or parameters.shape[1] != len(x):
        raise ValueError(f"predict_changed: parameters are (draws, n, ...) for {len(x)} images, not {tuple(parameters.shape)}")
    return torch.stack([torch.cat([predict(net, change(part, rows)) for part, rows in zip(x.split(batch), draw.split(batch))])
                        for draw in parameters.to(x.device)])


def kept(clean: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Per item, the share of its changes that leave the predicted class as it was, right or wrong: (n,) in [0, 1].

    `clean` are the classes (n,) of the images as they are, `changed` those (draws, n) of `predict_changed`. The mean is the paper's agreement.
    ValueError for other shapes.
    """
    if np.ndim(changed) != 2 or np.shape(clean) != np.shape(changed)[1:]:
        raise ValueError(f"kept: clean is (n,) and changed (draws, n), not {np.shape(clean)} and {np.shape(changed)}")
    return (clean == changed).mean(0)


def reweighted(kept: np.ndarray, right: np.ndarray, share: float) -> float:
    """The agreement of a network that kept its answers as often as this one does where it is right and where it is wrong, but was right on
    `share` of the images: share mean(kept | right) + (1 - share) mean(kept | wrong), in [0, 1].

    What is more than this in the agreement of another network, one that is right on `share`, is not a matter of accuracy (the
    decomposition of Kitagawa, 1955). `kept` and `right`, booleans or 0 and 1, (n,). NaN where this network is always right or always wrong.
    """
    right = np.asarray(right, bool)
    if right.all() or not right.any():
        return float("nan")
    return float(share * kept[right].mean() + (1 - share) * kept[~right].mean())
