"""Accuracy, item by item."""

import torch
from torch import Tensor, nn

version = 1


@torch.no_grad()
def predict(net: nn.Module, x: Tensor, *, batch: int = 500) -> Tensor:
    """Predicted classes (n,) of images x (n, channels, height, width), by the largest logit.

    A network in train mode, or a part of one, is a ValueError: its dropout would answer, and its batch norm would learn from x. So is a logit
    that is NaN or infinite: the largest of such would still be some class. And so is an output that is not (n, classes), with two or more.
    """
    in_eval_mode("predict", net)
    found = []
    for part in x.split(batch):
        logits = net(part)
        if logits.ndim != 2 or len(logits) != len(part) or logits.shape[1] < 2:
            raise ValueError(f"predict: of {len(part)} images the network makes {tuple(logits.shape)}, not logits (n, classes) of two or more classes")
        if not logits.isfinite().all():
            raise ValueError("predict: the network's logits are not all finite numbers, so it predicts nothing; was it trained, and its file whole?")
        found.append(logits.argmax(1))
    return torch.cat(found)


def correct(prediction, labels):
    """Per item, whether the prediction is the label: the mean is top-1 accuracy, in [0, 1]. Shapes (n,), or (seeds, n) for predictions."""
    same_items("correct", prediction, labels)
    return prediction == labels


def in_eval_mode(name: str, *nets: nn.Module) -> None:
    """A ValueError where a network, or a part of one, is in train mode."""
    if any(module.training for net in nets for module in net.modules()):
        raise ValueError(f"{name}: {'the' if len(nets) == 1 else 'a'} network is in train mode; call net.eval() first")


def same_items(name: str, *answers) -> None:
    """A ValueError unless all are arrays or tensors about the same n items, (..., n): a column (n, 1) would be compared with everything."""
    shapes = [getattr(a, "shape", None) for a in answers]
    if not all(shapes) or len({shape[-1] for shape in shapes}) > 1:
        raise ValueError(f"{name}: needs arrays (n,) of the same items, got " + " and ".join(type(a).__name__ if s is None else str(tuple(s)) for a, s in zip(answers, shapes)))
