"""How far a student's class probabilities are from its teacher's, image by image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlib.probes.accuracy import in_eval_mode

version = 1


@torch.no_grad()
def kl(student: nn.Module, teacher: nn.Module, x: Tensor, *, batch: int = 500) -> Tensor:
    """KL(teacher || student) of the predicted class probabilities at temperature 1, (n,), in nats: zero where they agree.

    Images x (n, channels, height, width). The teacher-student KL of Stanton et al. (2021), item by item; unlike agreement
    it sees how sure both are. A network in train mode is a ValueError, and so are networks of other or different numbers of classes than two or more.
    """
    in_eval_mode("kl", student, teacher)
    rows = []
    for part in x.split(batch):
        said = [net(part) for net in (teacher, student)]
        if said[0].shape != said[1].shape or said[0].ndim != 2 or said[0].shape[1] < 2:
            raise ValueError(f"kl: the networks give {tuple(said[0].shape)} and {tuple(said[1].shape)}, not logits (n, classes) of the same two or more classes")
        log_p, log_q = (F.log_softmax(logits.double(), dim=1) for logits in said)
        rows.append(F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1).clamp(min=0))
    return torch.cat(rows).float()
