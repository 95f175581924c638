"""One training loop, used by everything. A run is a value; training it is a pure function of that value."""

import hashlib
import math
import os
import platform
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlib.models import Model, features, taps
from kdlib.store import Store, describe, floats, key

CACHED_TARGETS = 2**29  # bytes of teacher outputs worth keeping; part of a run's meaning, since bfloat16 rounds by batch


class TrainingError(Exception):
    """Training failed; the message says which run and where."""


@dataclass(frozen=True)
class Adadelta:
    """The schedule of the PyTorch MNIST example, which the paper used: Adadelta, lr 1, batches of 64.

    The example multiplies lr by 0.7 after each of its 14 epochs. Here the same curve is stretched over `epochs`:
    lr * 0.7^(14 e / epochs) in epoch e, which is the example's own at 14. A batch is a number of items, each of them
    once per domain.
    """

    epochs: int
    batch: int = 64
    lr: float = 1.0

    version: ClassVar[int] = 1

    def __post_init__(self):
        floats(self, "lr")
        _schedule(self)

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        return torch.optim.Adadelta(parameters, lr=self.lr)

    def rate(self, done: float) -> float:
        """The learning rate once `done` epochs are over."""
        return self.lr * 0.7 ** (14 * int(done) / self.epochs)


@dataclass(frozen=True)
class OneCycle:
    """SGD with Nesterov momentum (or AdamW), its learning rate rising linearly from 0 to `lr` over the first `warmup` of all steps and
    falling linearly to 0 over the rest (Smith and Topin, 2018). Weight decay is on every parameter."""

    epochs: int
    batch: int = 128
    lr: float = 0.2
    weight_decay: float = 5e-4
    optimizer_name: str = "sgd"
    momentum: float = 0.9
    warmup: float = 0.2

    version: ClassVar[int] = 1

    def __post_init__(self):
        if self.optimizer_name not in ("sgd", "adamw"):
            raise ValueError(f"OneCycle: optimizer_name is sgd or adamw, not {self.optimizer_name!r}")
        floats(self, "lr", "weight_decay", "momentum", "warmup")
        _schedule(self)
        if not 0 <= self.warmup < 1:
            raise ValueError(f"OneCycle: warmup is a share of all steps, in [0, 1), not {self.warmup:g}")

    def optimizer(self, parameters) -> torch.optim.Optimizer:
        if self.optimizer_name == "adamw":
            return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0, weight_decay=self.weight_decay)

    def rate(self, done: float) -> float:
        share = done / self.epochs
        return self.lr * (share / self.warmup if share < self.warmup else (1 - share) / (1 - self.warmup))


@dataclass(frozen=True)
class Run:
    """Everything that determines a trained network. `seed` is a name; equal names give equal initial weights, order,
    augmentation and dropout, whatever the objective. `device` is a type (cpu, cuda), `dtype` is resolved, not auto."""

    data: object  # a suite
    domains: tuple[str, ...]
    model: Model
    objective: object  # of kdlib.distill
    schedule: Adadelta | OneCycle
    seed: str
    teacher: "Run | None" = None
    device: str = "cpu"
    dtype: str = "float32"

    version: ClassVar[int] = 1  # of the engine

    def __post_init__(self):
        if isinstance(self.domains, str) or not self.domains:
            raise ValueError(f"Run: domains are a tuple of names, not {self.domains!r}")
        if (self.objective.teacher_layer is None) != (self.teacher is None):
            raise ValueError(f"{type(self.objective).__name__} {'needs a' if self.teacher is None else 'takes no'} teacher")
        if self.device not in ("cpu", "cuda") or self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"Run: device is cpu or cuda and dtype float32 or bfloat16, not {self.device!r} and {self.dtype!r}; kdlib.train.machine resolves auto")

    def describe(self) -> dict:
        return {"type": "Run", "version": self.version, "torch": torch.__version__.split("+")[0],
                "data": describe(self.data), "domains": list(self.domains), "model": describe(self.model),
                "objective": describe(self.objective), "schedule": describe(self.schedule), "seed": self.seed,
                "teacher": self.teacher and self.teacher.key, "device": self.device, "dtype": self.dtype}

    @cached_property
    def key(self) -> str:
        return key(self.describe())

    def __getstate__(self) -> dict:
        return keyless(self)

    @property
    def cost(self) -> float:
        """Relative duration, for estimates: forward and backward passes, the teacher's forward being a third of one."""
        return max(self.schedule.epochs, 0.02) * len(self.domains) * (4 / 3 if self.teacher else 1)

    def __str__(self) -> str:
        return f"{type(self.objective).__name__} {self.model.name} {self.seed} on {'+'.join(self.domains)} ({self.key[:8]})"


def keyless(value) -> dict:
    """What to pickle of a value that keeps its key: another process forms it anew, from its own versions."""
    return {name: part for name, part in vars(value).items() if name != "key"}


def resolve_device(device: str) -> str:
    """auto, cpu or cuda to what this machine has."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is one of auto, cpu, cuda, not {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device here; use auto or cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def resolve_dtype(dtype: str, device: str) -> str:
    """auto to bfloat16 where the machine computes in it (amx, or avx512_bf16 on a CPU), else float32, as on Intel CPUs
    without amx: one of them took longer in bfloat16 than in float32, for convolutions and more so for a transformer."""
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"dtype is one of auto, float32, bfloat16, not {dtype!r}")
    if dtype != "auto":
        return dtype
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        cpu = torch.cpu.get_capabilities()
        fast = cpu.get("amx_bf16") or cpu.get("avx512_bf16") and not cpu.get("cpu_name", "").startswith("Intel")
    return "bfloat16" if fast else "float32"


def machine(device: str, dtype: str) -> tuple[str, str, str]:
    """Device and dtype as this machine resolves them, and the device in words: never a GPU's name for what a CPU computed."""
    device = resolve_device(device)
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        names = [l.split(":", 1)[1].strip() for l in cpuinfo.read_text().splitlines() if l.startswith("model name")] \
            if cpuinfo.exists() else []
        name = f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    return device, resolve_dtype(dtype, device), name


def _schedule(schedule) -> None:
    if not (schedule.epochs >= 0 and schedule.batch >= 1 and schedule.lr > 0):
        raise ValueError(f"{type(schedule).__name__}: needs epochs from 0, batches from 1 and a positive lr, got {schedule.epochs}, {schedule.batch} and {schedule.lr:g}")


def stream(seed: str, name: str) -> int:
    """A random stream's own seed. Separate streams keep two arms paired when one of them draws more than the other."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


@contextmanager
def repeatable(device: str):
    """The same sums each time: one thread on a CPU (their order depends on it), deterministic kernels on a GPU."""
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    strict, warn = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        else:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cudnn.allow_tf32 = False  # float32 is float32
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(strict, warn_only=warn)


@contextmanager
def seeded(seed: int, device: str):
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fit(run: Run, teacher: nn.Module | None = None) -> tuple[nn.Module, dict]:
    """Train `run` and return the network (eval mode, on the device) with {"loss": mean of each epoch, "seconds"}.

    `teacher` is the network of `run.teacher`; it is put in eval mode and its weights and buffers are not changed (its gradients are switched off).
    A loss that is not finite is a TrainingError that names the run and the step.
    """
    if (teacher is None) != (run.teacher is None):
        raise ValueError(f"fit: {run} {'needs the network of its teacher' if run.teacher else 'has no teacher'}")
    started, device = time.perf_counter(), torch.device(run.device)
    with repeatable(run.device):
        data, student, teacher, loss, shape = begin(run, teacher)
        autocast = torch.autocast(run.device, torch.bfloat16, enabled=run.dtype == "bfloat16")
        student.train()
        optimizer = run.schedule.optimizer([*student.parameters(), *loss.parameters()])
        order, augment = (torch.Generator().manual_seed(stream(run.seed, name)) for name in ("order", "augment"))
        targets = _targets(run, teacher, data, shape, autocast)
        history = []
        with seeded(stream(run.seed, "dropout"), run.device), taps(student, *filter(None, [run.objective.student_layer])) as seen:
            for epoch in range(run.schedule.epochs):
                parameters, indices = data.draw(augment), torch.randperm(data.n, generator=order).to(device)
                steps = []
                batches = indices.split(run.schedule.batch)
                for step, idx in enumerate(batches):
                    for group in optimizer.param_groups:
                        group["lr"] = run.schedule.rate(epoch + step / len(batches))
                    x, y = data.batch(idx, parameters)
                    with autocast:
                        target = targets(x, idx)
                        logits = student(x)
                    value = loss(logits, y, seen.get(run.objective.student_layer), target, idx)
                    optimizer.zero_grad(set_to_none=True)
                    value.backward()
                    optimizer.step()
                    steps.append(value.detach())
                history.append(_finite(run, epoch, torch.stack(steps)))
    return student.eval(), {"loss": history, "seconds": round(time.perf_counter() - started, 2),
                            **getattr(loss, "info", {})}


def begin(run: Run, teacher: nn.Module | None = None) -> tuple:
    """What `fit` starts from: (training data, student, teacher, the objective's module with its banks filled, the shape of a target)."""
    device = torch.device(run.device)
    data = run.data.train(run.domains, device)
    with seeded(stream(run.seed, "init"), run.device):
        student = run.model.build().to(device, memory_format=torch.channels_last)
    if teacher is not None:
        teacher = teacher.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    first = data.batch(torch.zeros(1, dtype=torch.long, device=device), data.draw(torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        shapes = [net and features(net.eval(), first, layer).shape[1:] for net, layer in
                  ((student, run.objective.student_layer), (teacher, run.objective.teacher_layer))]
    with seeded(stream(run.seed, "head"), run.device):
        loss = run.objective.build(*shapes).to(device)
    if hasattr(loss, "fill"):
        loss.fill(*_everything(run, student, teacher, data))
    return data, student, teacher, loss, shapes[1]


def finish(run: Run, store: Store) -> nn.Module:
    """The network of `run`, from the store or else trained and stored; its teacher likewise.

    A student's entry tells in its info under `weights` the digest of its teacher's, by the teacher's key.
    """
    entry = store.read("run", run.key)
    if entry is None:
        with store.lock(run.key):
            entry = store.read("run", run.key)  # another process may have finished it meanwhile
            if entry is None:
                teacher = finish(run.teacher, store) if run.teacher else None
                taught_by = {"weights": store.weights("run", run.teacher.key)} if run.teacher else {}  # now: training may take hours
                net, info = fit(run, teacher)
                weights = {n: t.detach().cpu().contiguous().numpy() for n, t in net.state_dict().items()}
                store.write("run", run.describe(), weights, info | taught_by | {"device": machine(run.device, run.dtype)[2]})
                return net
    with seeded(0, run.device):  # whatever weights it starts from, drawn here or read from a file, are replaced
        net = (replace(run.model, weights=None, file=None) if isinstance(run.model, Model) else run.model).build()
    net.load_state_dict({n: torch.from_numpy(a) for n, a in entry.arrays.items()})
    return net.to(run.device, memory_format=torch.channels_last).eval()


@torch.no_grad()
def _everything(run: Run, student, teacher, data) -> tuple[Tensor, Tensor, Tensor]:
    """Both networks' features of every training item, in their order, and the labels: what a memory bank starts from."""
    if data.views > 1:
        raise ValueError(f"{type(run.objective).__name__} needs training data of one domain, not {data.views}: {run}")
    parameters = data.draw(torch.Generator().manual_seed(stream(run.seed, "bank")))
    rows = []
    for idx in torch.arange(data.n, device=run.device).split(500):
        x, y = data.batch(idx, parameters)
        rows.append((features(student, x, run.objective.student_layer), features(teacher, x, run.objective.teacher_layer), y))
    return tuple(torch.cat(part) for part in zip(*rows))


def _targets(run: Run, teacher, data, shape, autocast):
    """(x, idx) -> what the teacher says of that batch: looked up where inputs repeat and it fits, else computed."""
    if teacher is None:
        return lambda x, idx: None
    layer = run.objective.teacher_layer

    @torch.no_grad()
    def compute(x: Tensor, idx: Tensor) -> Tensor:
        return features(teacher, x, layer)

    if not data.fixed or data.views > 1 or 4 * data.n * math.prod(shape) > CACHED_TARGETS:
        return compute
    with autocast:
        known = torch.cat([compute(data.batch(idx, None)[0], idx)
                           for idx in torch.arange(data.n, device=run.device).split(500)])
    return lambda x, idx: known[idx]


def _finite(run: Run, epoch: int, losses: Tensor) -> float:
    mean = losses.mean().item()
    if not math.isfinite(mean):
        step = int((~losses.isfinite()).nonzero()[0])
        raise TrainingError(f"loss is {losses[step].item()} in epoch {epoch + 1}, step {step + 1} of {run}")
    return mean
