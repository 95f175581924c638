"""Accuracy, item by item."""

import torch
from torch import Tensor, nn

version = 1


@torch.no_grad()
def predict(net: nn.Module, x: Tensor, *, batch: int = 500) -> Tensor:
    """Predicted classes (n,) of images x (n, channels, height, width), by the largest logit.

    A network in train mode, or a part of one, is a ValueError: its dropout would answer, and its batch norm would learn from x. So is a logit
    that is NaN or infinite: the largest of such would still be some class.
    """
    if any(module.training for module in net.modules()):
        raise ValueError("predict: the network is in train mode; call net.eval() first")
    found = []
    for part in x.split(batch):
        logits = net(part)
        if not logits.isfinite().all():
            raise ValueError("predict: the network's logits are not all finite numbers, so it predicts nothing; was it trained, and its file whole?")
        found.append(logits.argmax(1))
    return torch.cat(found)


def correct(prediction, labels):
    """Per item, whether the prediction is the label: the mean is top-1 accuracy, in [0, 1]. Shapes (n,)."""
    return prediction == labels
