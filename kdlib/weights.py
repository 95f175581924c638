"""Weights from local files of tensors: .safetensors, or .pt and .pth without any code in them."""

import hashlib
import io
import pickle
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from kdlib.store import first_line


def read(file: str | Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, and the SHA-256 of its bytes.

    Of a .pt or .pth file the dictionary that it is, or holds as "state_dict" or "model", as training scripts write it; names lose the
    "module." that DataParallel gives them. ValueError: no such file, another ending, what is not tensors, or is damaged.
    """
    file = Path(file).expanduser()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"weights: cannot read {file}: {error.strerror}") from error
    if file.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"weights: {file} is neither .safetensors nor .pt or .pth")
    try:
        if file.suffix == ".safetensors":
            found = safetensors.torch.load(data)
        else:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"weights: {file} is damaged or holds more than tensors, and code is never loaded; save its tensors as "
                         ".safetensors") from error
    except Exception as error:  # each format has errors of its own
        raise ValueError(f"weights: {file} is damaged ({first_line(error).split('. ')[0]})") from error
    for inner in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(inner), dict):
            found = found[inner]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"weights: {file} does not hold a dictionary of tensors (a state_dict)")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}, hashlib.sha256(data).hexdigest()


def fit(net: nn.Module, found: dict[str, Tensor], file: str | Path) -> None:
    """Load them into a network. They may lack the normalisation, and the counters of batch norm (old files do).

    ValueError: other names or shapes than the network's; it names the first three. On the meta device this is all that happens.
    """
    wanted = net.state_dict()
    wrong = [f"{n} is {tuple(found[n].shape)}, not {tuple(t.shape)}" for n, t in wanted.items() if n in found and found[n].shape != t.shape]
    wrong += [f"{n} is missing" for n in wanted
              if n not in found and not n.startswith("normalize.") and not n.endswith("num_batches_tracked")]
    wrong += [f"{n} is not the network's" for n in found if n not in wanted]
    if wrong:
        raise ValueError(f"weights: {file} does not fit {type(net).__name__}: {'; '.join(wrong[:3])}"
                         + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    if not next(iter(wanted.values())).is_meta:
        net.load_state_dict(found, strict=False)
