import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from kdlib import models, study, train
from kdlib.data.digits import Digits
from kdlib.data.scenes import Scenes
from kdlib.distill import CRD, KL, Alone, Hint
from kdlib.models import Model
from kdlib.store import Store, StoreError, digest
from kdlib.measures import Items, Predictions
from kdlib.study import arms, complete
from kdlib.train import Adadelta, OneCycle, Run, TrainingError, finish, fit

SMALL = Digits(limit=96)
NET = Model("mnistnet", {"size": 16})
TEACHER = Run(SMALL, ("orig", "color"), NET, Alone(), Adadelta(1), "teacher-0")
ALONE = Run(SMALL, ("orig",), NET, Alone(), Adadelta(2), "student-0")


class BatchNormNet(nn.Sequential):
    """Wider than the digits' network, with batch norm and dropout."""

    version = 1

    def __init__(self):
        super().__init__(nn.Conv2d(3, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
                         nn.Linear(360, 10))


@pytest.fixture
def batch_norm(monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, "batchnorm", BatchNormNet)
    return dataclasses.replace(TEACHER, model=Model("batchnorm"))


def weights(net):
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_repeats_bit_for_bit_whatever_the_number_of_threads():
    first, threads = weights(fit(ALONE)[0]), torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        torch.manual_seed(1)  # the caller's random state does not matter
        again = fit(ALONE)[0]
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert same(first, weights(again)) and not again.training
    assert not same(first, weights(fit(dataclasses.replace(ALONE, seed="student-1"))[0]))


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    fit(dataclasses.replace(ALONE, schedule=Adadelta(1)))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("objective", [
    KL(gamma=1.0, alpha=0.0, tau=4.0),
    Hint(gamma=1.0, beta=0.0, student_layer="conv1", teacher_layer="0"),  # 32 against 40 channels: with a regressor
    CRD(gamma=1.0, beta=0.0, tau=0.1, n=8, student_layer="relu3", teacher_layer="5"),
    CRD(gamma=1.0, beta=0.0, tau=0.1, n=8, student_layer="relu3", teacher_layer="5", form="sampled"),
])
def test_a_distilled_student_without_weight_on_its_teacher_is_the_independent_one(objective, batch_norm):
    # so initialisation, order and dropout are paired, and neither the teacher nor the regressor shifts their streams
    taught = dataclasses.replace(ALONE, objective=objective, teacher=batch_norm)
    assert same(weights(fit(ALONE)[0]), weights(fit(taught, batch_norm.model.build())[0]))


@pytest.mark.parametrize("objective", [KL(0.1, 0.9, 4.0), Hint(1.0, 2.0, "conv1", "0"), CRD(1.0, 0.5, 0.1, 32, "relu3", "5")])
def test_the_teacher_is_frozen(objective, batch_norm):
    teacher = batch_norm.model.build().train()
    before = weights(teacher)
    student, _ = fit(dataclasses.replace(ALONE, objective=objective, teacher=batch_norm), teacher)
    assert same(before, weights(teacher)), "weights or batch-norm statistics moved"
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert not same(weights(student), weights(fit(ALONE)[0])), "the teacher taught nothing"


def test_targets_from_the_cache_are_those_computed_on_the_way(monkeypatch):
    taught = dataclasses.replace(ALONE, objective=KL(0.1, 0.9, 4.0), teacher=TEACHER)
    teacher, calls = fit(TEACHER)[0], []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    cached, with_cache = weights(fit(taught, teacher)[0]), len(calls)
    monkeypatch.setattr(train, "CACHED_TARGETS", 0)
    computed = weights(fit(taught, teacher)[0])
    assert with_cache < len(calls) - with_cache, "the cache spared no forward pass"
    for name in cached:
        torch.testing.assert_close(cached[name], computed[name], rtol=1e-3, atol=1e-4)


def test_distillation_moves_the_student_towards_its_teacher():
    teacher = fit(dataclasses.replace(TEACHER, schedule=Adadelta(6)))[0]
    taught = fit(dataclasses.replace(ALONE, schedule=Adadelta(6), objective=KL(0.0, 1.0, 4.0), teacher=TEACHER), teacher)[0]
    alone = fit(dataclasses.replace(ALONE, schedule=Adadelta(6)))[0]
    x, _ = SMALL.test("orig", "cpu")
    with torch.no_grad():
        wanted, got, other = (net(x).softmax(1) for net in (teacher, taught, alone))
    assert (wanted - got).abs().mean() < 0.8 * (wanted - other).abs().mean()


def test_crd_reports_its_normalisers_and_lowers_its_loss():
    crd = CRD(gamma=0.0, beta=1.0, tau=0.1, n=32, student_layer="relu3", teacher_layer="relu3")
    teacher = fit(dataclasses.replace(TEACHER, schedule=Adadelta(4)))[0]
    _, info = fit(dataclasses.replace(ALONE, schedule=Adadelta(80, lr=0.1), objective=crd, teacher=TEACHER), teacher)
    assert info["crd z"]["items"] == 96 and all(10 < info["crd z"][bank] < 1000 for bank in ("student bank", "teacher bank"))
    assert info["loss"][-1] < 0.93 * info["loss"][0], info["loss"]
    _, printed = fit(dataclasses.replace(ALONE, objective=dataclasses.replace(crd, form="printed"), teacher=TEACHER), teacher)
    assert printed["crd z"]["teacher bank"] == 1
    with pytest.raises(ValueError, match="CRD needs training data of one domain, not 2"):
        fit(dataclasses.replace(ALONE, domains=("orig", "M"), objective=crd, teacher=TEACHER), teacher)


def test_a_loss_that_is_not_finite_names_run_epoch_and_step():
    run = dataclasses.replace(ALONE, schedule=Adadelta(2, lr=1e30))
    with pytest.raises(TrainingError, match=rf"loss is (nan|inf) in epoch 1, step [12] of .*{run.key[:8]}"):
        fit(run)


def test_the_schedule_is_the_examples_at_14_epochs_and_stretches():
    assert Adadelta(14).rate(3) == pytest.approx(0.7**3)
    assert Adadelta(7).rate(1) == pytest.approx(0.7**2) and Adadelta(28).rate(2) == pytest.approx(0.7)


def test_objectives_and_teachers_belong_together():
    with pytest.raises(ValueError, match="KL needs a teacher"):
        dataclasses.replace(ALONE, objective=KL(0.1, 0.9, 4.0))
    with pytest.raises(ValueError, match="Alone takes no teacher"):
        dataclasses.replace(ALONE, teacher=TEACHER)


@pytest.mark.parametrize("call, message", [
    (lambda: train.resolve_device("tpu"), "device is one of auto, cpu, cuda, not 'tpu'"),
    (lambda: train.resolve_dtype("float16", "cpu"), "dtype is one of auto, float32, bfloat16, not 'float16'"),
])
def test_unknown_device_or_dtype(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("cpu, dtype", [
    (dict(cpu_name="Intel Xeon", avx512_bf16=True, amx_bf16=True), "bfloat16"),
    (dict(cpu_name="Intel Xeon", avx512_bf16=True, amx_bf16=False), "float32"),
    (dict(cpu_name="AMD EPYC", avx512_bf16=True, amx_bf16=False), "bfloat16"),
    (dict(cpu_name="AMD EPYC", avx512_bf16=False, amx_bf16=False), "float32"),
    (dict(architecture="aarch64", bf16=True), "float32"),
], ids=str)
def test_auto_is_the_faster_precision_of_a_cpu(monkeypatch, cpu, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert train.resolve_dtype("auto", "cpu") == dtype
    assert train.resolve_dtype("bfloat16", "cpu") == "bfloat16"


def small_study(seeds=1):
    runs = arms(data=SMALL, teacher=NET, student=NET, teacher_domains=SMALL.domains, teacher_star_domains=("orig",),
                student_domains=("orig",), objectives={"KL": KL(0.1, 0.9, 4.0), "Hint*": Hint(1.0, 2.0, "conv2", "conv2")},
                seeds=range(seeds), schedule=Adadelta(1), device="cpu", dtype="float32")
    return runs, [Predictions(run, SMALL, "color") for run in runs.values()] + [Items(SMALL, "color", 3)]


def contents(store, kind):
    """Every finished entry of a store, verified, as digests by key."""
    folder = store.root / kind
    return {p.name: digest(store.read(kind, p.name).arrays) for p in folder.iterdir()} if folder.exists() else {}


def test_arms_differ_in_what_they_should_and_nothing_else():
    runs, _ = small_study(2)
    assert {m for m, _ in runs} == {"T", "T*", "Ind", "Ind2", "KL", "Hint*"} and len(runs) == 12
    assert len({run.schedule for run in runs.values()}) == 1, "equal budgets"
    assert runs["KL", 0].teacher == runs["T", 0] and runs["Hint*", 1].teacher == runs["T*", 1]
    assert runs["Ind", 0].seed == runs["KL", 0].seed == runs["Hint*", 0].seed != runs["Ind2", 0].seed
    assert runs["T", 0].seed == runs["T*", 0].seed != runs["Ind", 0].seed
    assert {run.domains for (m, _), run in runs.items() if m not in ("T",)} == {("orig",)}


def test_several_processes_equal_one(tmp_path):
    runs, measures = small_study()
    many, one = Store(tmp_path / "many"), Store(tmp_path / "one")
    lines = []
    got = complete(measures, many, jobs=2, progress=lines.append)
    for run in runs.values():
        finish(run, one)
    assert contents(many, "run") == contents(one, "run") and len(contents(one, "run")) == 6
    assert lines[0] == "6 networks to train, 7 measurements to take" and "6/6 trained" in lines[-1]
    assert got[measures[0]]["prediction"].shape == (96,) and got[measures[-1]]["image"].shape == (3, 3, 16, 16)
    lines.clear()
    again = complete(measures, many, jobs=2, progress=lines.append)
    assert not lines and all(np.array_equal(again[m][k], got[m][k]) for m in measures for k in got[m])


def test_a_finished_run_needs_no_file_of_weights_and_draws_no_random_numbers(tmp_path):
    start = models.network("mnistnet", size=16, classes=10).build()
    file = tmp_path / "start.safetensors"
    safetensors.torch.save_file(start.state_dict(), file)
    run, store = dataclasses.replace(ALONE, model=models.network(f"mnistnet@{file}", size=16, classes=10), schedule=Adadelta(0)), Store(tmp_path / "store")
    finish(run, store)
    file.unlink()
    state = torch.get_rng_state()
    again = finish(run, store)
    assert torch.equal(torch.get_rng_state(), state) and same(weights(again), weights(start))


def test_measurements_alone_need_no_run(tmp_path):
    runs, measures = small_study()
    full = Store(tmp_path / "full")
    complete(measures, full, jobs=1, progress=lambda line: None)
    full.archive([m.key for m in measures], tmp_path / "archive.npz")
    lines = []
    got = complete(measures, Store(tmp_path / "empty", [tmp_path / "archive.npz"]), jobs=1, progress=lines.append)
    assert not lines and len(got) == len(measures) and not (tmp_path / "empty").exists()


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from test_train import small_study
from kdlib.store import Store
from kdlib.study import complete
complete(small_study()[1], Store(sys.argv[1]), jobs=2, progress=print)
"""


def test_a_study_killed_in_the_middle_loses_nothing_and_ends_in_the_same_weights(tmp_path):
    runs, measures = small_study()
    killed, whole = Store(tmp_path / "killed"), Store(tmp_path / "whole")
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(killed.root), os.path.dirname(__file__)], start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not list((killed.root / "run").glob("*")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    survived = contents(killed, "run")
    assert 0 < len(survived) < len(runs), "killed too late to show anything"
    assert not (killed.root / "damaged").exists()
    stamps = {k: (killed.root / "run" / k).stat().st_mtime_ns for k in survived}
    complete(measures, killed, jobs=2, progress=lambda line: None)
    complete(measures, whole, jobs=2, progress=lambda line: None)
    assert contents(killed, "run") == contents(whole, "run")
    assert stamps == {k: (killed.root / "run" / k).stat().st_mtime_ns for k in survived}, "a finished run was done again"


def test_a_layer_that_is_not_there_is_known_before_a_teacher_is_trained(tmp_path):
    store, common = Store(tmp_path), dict(data=SMALL, teacher=NET, student=NET, teacher_domains=("orig",), teacher_star_domains=("orig",),
                                          student_domains=("orig",), seeds=[0], schedule=Adadelta(1), device="cpu", dtype="float32")
    for layers, name in (("cnv2", "conv2"), "cnv2"), (("conv2", "cnv3"), "cnv3"):
        run = arms(objectives={"Hint": Hint(1.0, 1.0, *layers)}, **common)["Hint", 0]
        with pytest.raises(ValueError, match=f"no layer named '{name}' in MnistNet; did you mean"):
            complete([Predictions(run, SMALL, "orig")], store, progress=lambda line: None)
    assert not contents(store, "run")


def test_keys_are_formed_anew_in_another_process(tmp_path, monkeypatch):
    measure = Predictions(ALONE, SMALL, "orig")
    known = ALONE.key, measure.key
    sent = pickle.dumps((ALONE, measure))
    assert tuple(part.key for part in pickle.loads(sent)) == known
    monkeypatch.setattr(models.MnistNet, "version", 99)
    there = pickle.loads(sent)
    assert all(part.key != key for part, key in zip(there, known)), "another kdlib there, another key"
    with pytest.raises(StoreError, match="the kdlib of a process that computes is not the caller's"):
        study._compute(there[1:], [measure.key], Store(tmp_path))


def test_a_failing_run_is_named_and_the_others_stay(tmp_path):
    store = Store(tmp_path)
    bad = dataclasses.replace(ALONE, schedule=Adadelta(1, lr=1e30))
    with pytest.raises(TrainingError, match=bad.key[:8]):
        complete([Predictions(ALONE, SMALL, "orig"), Predictions(bad, SMALL, "orig")], store, jobs=1, progress=lambda line: None)
    assert store.read("run", ALONE.key) is not None and store.read("run", bad.key) is None


def test_a_short_slice_of_real_mnist(real_data, tmp_path):
    data = Digits("mnist", "bsds500", 1000)
    net = Model("mnistnet", {"size": 28})
    run = Run(data, ("orig", "color", "M"), net, Alone(), Adadelta(5), "teacher-0")
    domains = complete([Predictions(run, data, d) for d in data.domains] + [Items(data, "orig")], Store(tmp_path), jobs=1,
                       progress=lambda line: None)
    *said, items = domains.values()
    accuracy = [float((s["prediction"] == items["label"]).mean()) for s in said]
    assert accuracy[0] > 0.6 and min(accuracy) > 0.2, accuracy


# OneCycle

def test_one_cycle_rises_and_falls_in_straight_lines():
    cycle = OneCycle(10, lr=0.4, warmup=0.2)
    assert [cycle.rate(done) for done in (0, 1, 2, 6, 10)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])


def test_adadelta_keeps_its_rate_for_an_epoch():
    assert [Adadelta(14).rate(done) for done in (0, 0.99, 1, 1.5, 13)] == pytest.approx([1, 1, 0.7, 0.7, 0.7**13])


def test_one_cycles_sgd_is_its_equation():
    weight, gradient = torch.tensor([2.0]), torch.tensor([0.5])
    parameter = torch.nn.Parameter(weight.clone())
    optimizer, velocity = OneCycle(1, lr=0.1, weight_decay=0.01, momentum=0.9).optimizer([parameter]), 0
    for _ in range(3):
        parameter.grad = gradient.clone()
        optimizer.step()
        slope = gradient + 0.01 * weight
        velocity = 0.9 * velocity + slope
        weight = weight - 0.1 * (slope + 0.9 * velocity)
        torch.testing.assert_close(parameter.detach(), weight)


def test_optimizers_go_by_name():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    assert isinstance(OneCycle(1, optimizer_name="adamw").optimizer(parameters), torch.optim.AdamW)
    with pytest.raises(ValueError, match="^OneCycle: optimizer_name is sgd or adamw, not 'adam'$"):
        OneCycle(1, optimizer_name="adam")


def test_a_study_of_scenes_is_repeatable_and_paired():
    data, net, cycle = Scenes(size=16, train_items=40, test_items=20), Model("residual", {"widths": (4, 8)}), OneCycle(2, batch=16)
    common = dict(data=data, domains=("scene",), model=net, schedule=cycle)
    teacher = Run(objective=Alone(), seed="teacher-0", **common)
    taught = Run(objective=KL(0.1, 0.9, 4.0), seed="student-0", teacher=teacher, **common)
    silent = Run(objective=KL(1.0, 0.0, 4.0), seed="student-0", teacher=teacher, **common)
    alone = Run(objective=Alone(), seed="student-0", **common)
    nets = [fit(run, fit(teacher)[0] if run.teacher else None)[0].state_dict() for run in (taught, taught, silent, alone)]
    same = [all(torch.equal(a, b) for a, b in zip(nets[i].values(), nets[j].values())) for i, j in ((0, 1), (2, 3), (0, 3))]
    assert same == [True, True, False], "a student that does not listen is the independent one"
