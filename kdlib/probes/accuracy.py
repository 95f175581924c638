"""Accuracy, item by item."""

import torch
from torch import Tensor, nn

version = 1


@torch.no_grad()
def predict(net: nn.Module, x: Tensor, *, batch: int = 500) -> Tensor:
    """Predicted classes (n,) of images x (n, channels, height, width), by the largest logit.

    A network in train mode, or a part of one, is a ValueError: its dropout would answer, and its batch norm would learn from x.
    """
    if any(module.training for module in net.modules()):
        raise ValueError("predict: the network is in train mode; call net.eval() first")
    return torch.cat([net(part).argmax(1) for part in x.split(batch)])


def correct(prediction, labels):
    """Per item, whether the prediction is the label: the mean is top-1 accuracy, in [0, 1]. Shapes (n,)."""
    return prediction == labels
