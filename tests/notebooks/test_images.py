"""What the chapters on images share: pairs, arms, held-out pictures and the choice of loss weights."""

import json
from functools import partial

import pytest
import torch

from kdlib.book import BookError, images, weights
from kdlib.book.chapters import source
from kdlib.data import DataError, photos
from kdlib.data.scenes import Scenes
from kdlib.distill import KL
from kdlib.measures import Predictions
from kdlib.models import network, view
from kdlib.probes.localization import gradcam
from kdlib.store import Store
from kdlib.train import fit

CHAPTERS = ("localization", "adversarial", "invariance", "unseen-domains")
SMALL = {"limit": 40, "epochs": 1, "teacher_epochs": 1, "seeds": 3, "batch": 20, "negatives": 8, "first_seeds": 0, "pairs": "residual-4x1->residual-4x1*, plain-4x1->residual-4x1"}


def study_of(**changed):
    parameters = {n: p.default for n, p in source("unseen-domains").parameters.items()} | SMALL | changed
    return images.Images(parameters, "cpu", "float32")


def test_one_set_of_runs_serves_all_chapters():
    study = study_of()
    starred, other = study.pairs
    plain, jittered = study.arms(starred), study.arms(starred, jittered=True)
    assert len(plain) == 3 * 10 and len({r.key for r in plain.values()}) == 2 + 3 * 8, "one teacher of each kind for all seeds"
    for a, b in ("T", "T*"), ("T*", "T"), ("KL", "KL*"), ("KL*", "KL"), ("Hint*", "Hint"), ("CRD", "CRD*"), ("Ind", "Ind"), ("Ind2", "Ind2"):
        assert [plain[a, s].key for s in range(3)] == [jittered[b, s].key for s in range(3)]
    assert plain["T", 0].domains == ("scene",) and plain["T*", 0].domains == ("scene jittered",)
    assert all(run.domains == ("scene",) for (m, _), run in plain.items() if m != "T*"), "students never see recoloured pictures"
    assert plain["CRD", 1].teacher == plain["T", 1] and plain["CRD*", 1].teacher == plain["T*", 1]
    less = study.arms(other)
    assert {m for m, _ in less} == {"T", "T*", "Ind", "Ind2", "KL", "Hint", "CRD", "KL*"}
    assert less["Ind", 2].key == plain["Ind", 2].key, "pairs with one student share what has no teacher"


def test_the_first_pair_can_have_more_seeds_than_the_others():
    study = study_of(first_seeds=5)
    assert [study.seeds(pair) for pair in study.pairs] == [[0, 1, 2, 3, 4], [0, 1, 2]]
    assert [max(seed for _, seed in study.arms(pair)) for pair in study.pairs] == [4, 2]
    assert study.arms(study.pairs[0])["KL", 2].key == study_of().arms(study.pairs[0])["KL", 2].key
    assert study.seeds_in_words() == "5 seeds of the first pair and 3 of the other"
    assert study_of().seeds_in_words() == study_of(first_seeds=3).seeds_in_words() == "3 seeds"
    assert study_of(first_seeds=5, seeds=1, pairs="residual-4x1->residual-4x1, plain-4x1->residual-4x1, plain-4x1->plain-4x1").seeds_in_words() == \
        "5 seeds of the first pair and 1 of the others"
    assert study_of(first_seeds=1).seeds_in_words() == "3 seeds", "never fewer than the others"


def test_hint_meets_the_last_map_where_a_transformer_ends_with_tokens():
    study = study_of(pairs="residual-4x1->residual-4x1, transformer-16x1->residual-4x1", size=32)
    assert [pair.hint for pair in study.pairs] == [("stage2", "stage2"), ("map", "map")]
    [deep] = {run.objective for (m, _), run in study.arms(study.pairs[0], hint=("stage3", "stage3")).items() if m == "Hint"}
    assert (deep.student_layer, deep.teacher_layer) == ("stage3", "stage3")


def test_transformers_have_a_schedule_of_their_own_and_given_weights_are_taken_as_they_are():
    of = {name: images.schedule(network(name, size=32, classes=10), 7, 64) for name in ("residual-4x1", "plain-4x1", "transformer-16x1")}
    assert [s.optimizer_name for s in of.values()] == ["sgd", "sgd", "adamw"] and {s.epochs for s in of.values()} == {7}
    assert of["residual-4x1"].lr == pytest.approx(0.1)


def test_a_teacher_from_a_file_keeps_its_weights_and_its_control_is_trained(tmp_path):
    from safetensors.torch import save_file

    net = network("residual-4x1", size=32, classes=10).build()
    save_file(net.state_dict(), tmp_path / "mine.safetensors")
    study = study_of(pairs=f"residual-4x1@{tmp_path / 'mine.safetensors'}->residual-4x1")
    arms = study.arms(study.pairs[0])
    assert arms["T", 0].schedule.epochs == 0 and arms["T*", 0].schedule.epochs == 1 and arms["T*", 0].model.weights is None
    store = Store(tmp_path / "store")
    from kdlib.study import complete
    complete([Predictions(arms[m, 0], study.suite, "scene") for m in ("T", "KL")], store, jobs=1, progress=lambda line: None)
    kept = store.read("run", arms["T", 0].key).arrays
    assert all((kept[n] == t.numpy()).all() for n, t in net.state_dict().items()), "a run of no epochs is the file itself"


def test_a_student_from_a_file_is_refused():
    with pytest.raises(BookError, match="only a teacher can have weights from a file, as students start from random ones; not 'residual-4x1@mine.pt'"):
        study_of(pairs="residual-4x1->residual-4x1@mine.pt")


GPU = source("localization").facts["profiles"]["gpu"]


@pytest.mark.parametrize("name", [name.strip() for name in GPU["pairs"].split(",")])
def test_a_pair_of_the_gpu_profile_is_trained_and_mapped_at_its_size(name):
    study = study_of(pairs=name, size=GPU["size"], limit=10, batch=10)
    [pair], runs = study.pairs, study.arms(study.pairs[0])
    x, y = torch.rand(2, 3, GPU["size"], GPU["size"]), torch.tensor([0, 1])
    teacher = pair.teacher.build().eval()
    for net, layer in (teacher, pair.teacher_layers.map), (pair.student.build().eval(), pair.student_layers.map):
        layer, reshape = view(layer)
        maps = gradcam(net, x, y, layer=layer, reshape=reshape)
        assert maps.ndim == 3 and min(maps.shape[1:]) >= 7
    for method in "KL", "Hint", "CRD":
        net, _ = fit(runs[method, 0], teacher)  # a loss that is not finite is an error
        assert net(x).shape == (2, study.suite.classes) and net(x).isfinite().all()


@pytest.mark.parametrize("pairs, message", [
    ("residual-4x1", "TEACHER->STUDENT"), ("->residual-4x1", "TEACHER->STUDENT"), ("residual-4x1->residual-4x1, residual-4x1->residual-4x1*", "each once"),
    ("residual-4x1->residuel-4x1", "did you mean"), ("", "TEACHER->STUDENT")])
def test_bad_pairs_are_one_clear_line(pairs, message):
    with pytest.raises(BookError, match=message) as error:
        study_of(pairs=pairs)
    assert "\n" not in str(error.value)


def test_unseen_data_sets_go_with_photographs():
    with pytest.raises(BookError, match="goes with photographs"):
        study_of(unseen="geirhos-128").wider
    study = study_of(source="imagenette-112", size=64, unseen="geirhos-128, pacs-96", limit=0)
    assert study.on("photo") == study.on("edges") == study.suite and study.on("sketch") == study.wider != study.suite
    assert study.suite.unseen == (), "what a network is trained on does not depend on what it will be asked"


def test_a_folder_goes_with_its_source():
    with pytest.raises(BookError, match="^parameter folder = pics goes with source=imagefolder, and source is scenes$"):
        study_of(folder="pics").suite


def test_held_out_pictures_are_a_fifth_of_each_class_and_not_learned_from():
    whole, held = Scenes(32, 100, 20), Scenes(32, 100, 20, held_out=True)
    every, kept, (x, y) = whole.train(("scene",), "cpu"), held.train(("scene",), "cpu"), held.test("scene", "cpu")
    assert kept.n == 80 and len(y) == 20 and torch.bincount(y).tolist() == 10 * [2]
    both = torch.cat([kept.pixels, (x * 255).round().byte().permute(0, 2, 3, 1)])
    order = lambda pixels: sorted(p.numpy().tobytes() for p in pixels)
    assert order(both) == order(every.pixels), "together they are the training scenes"
    assert whole.describe() != held.describe() and "held out" not in whole.describe()
    with pytest.raises(DataError, match="domains are scene, not"):
        held.test("sketch", "cpu")
    with pytest.raises(DataError, match="fewer than five of a class"):
        Scenes(32, 40, 20, held_out=True).test("scene", "cpu")


def test_a_choice_is_made_once_kept_and_used(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "WEIGHTS", tmp_path / "weights.json")
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "store"))
    study_of = partial(globals()["study_of"], limit=100)
    study = study_of(pairs="residual-4x1->residual-4x1")
    [pair] = study.pairs
    assert study.weights(pair) == images.UNCHOSEN and study.source_of_weights(pair).startswith("not chosen")
    lines = []
    weights.choose(study.parameters, seeds=1, jobs=1, say=lines.append)
    found = {c["method"]: c for c in json.loads((tmp_path / "weights.json").read_text()).values()}
    tried = {m: {v: a for v, a in c["held-out accuracy"].items() if v != "Ind"} for m, c in found.items()}
    assert {m: sorted(map(float, by)) for m, by in tried.items()} == {m: sorted(v) for m, v in weights.CANDIDATES.items()}
    assert all(tried[m][f"{c['chosen']:g}"] == max(tried[m].values()) and c["held-out pictures"] == 20 for m, c in found.items())
    chosen = {m: c["chosen"] for m, c in found.items()}
    again = study_of(pairs="residual-4x1->residual-4x1", seeds=5)
    assert again.weights(pair) == chosen and again.source_of_weights(pair) == "chosen on held-out training pictures"
    alpha = again.weights(pair)["KL"]
    assert again.arms(pair)["KL", 4].objective == KL(round(1 - alpha, 6), alpha, 4)
    given = study_of(pairs="residual-4x1->residual-4x1", alpha=0.25)
    assert given.weights(pair) == {**chosen, "KL": 0.25}
    variant = study_of(pairs="residual-4x1->residual-4x1", crd_positive="current")
    assert variant.weights(pair) == {**chosen, "CRD": images.UNCHOSEN["CRD"]}, "what is chosen for one objective stays when another changes"
    assert variant.source_of_weights(pair) == "chosen on held-out training pictures, but not CRD: a common value"
    other = study_of(pairs="residual-4x1->residual-4x1", epochs=2)
    assert other.source_of_weights(pair).startswith("not chosen"), "a choice holds for the schedule it was made with"
    count = len(lines)
    weights.choose(study.parameters, seeds=1, jobs=1, say=lines.append)
    assert "chosen before" in lines[count] and len(lines) == count + 1
    weights.choose(variant.parameters, seeds=1, jobs=1, say=lines.append)
    assert [c["method"] for c in json.loads((tmp_path / "weights.json").read_text()).values()].count("CRD") == 2, "CRD alone was chosen anew"
    assert len(json.loads((tmp_path / "weights.json").read_text())) == 4
    (tmp_path / "weights.json").write_text("{")
    with pytest.raises(BookError, match="is not JSON"):
        study_of(pairs="residual-4x1->residual-4x1").weights(pair)


def test_pictures_of_classes_that_show_people_are_not_published():
    assert images.may_show(Scenes(), "disc") and images.may_show(photos.Photos(), "church") and not images.may_show(photos.Photos(), "tench")


def test_the_chapters_ask_for_the_same_runs():
    """The parameters that decide what is trained have the same names, defaults and profiles in all of them."""
    first, *others = (source(slug) for slug in CHAPTERS)
    shared = list(first.parameters)[: list(first.parameters).index("dtype") + 1]
    for other in others:
        for profile in first.facts["profiles"]:
            one, two = first.values(profile, {}), other.values(profile, {})
            assert {n: one[n] for n in shared if n != "pairs"} == {n: two[n] for n in shared if n != "pairs"}, (other.slug, profile)
            assert set(map(str.strip, two["pairs"].split(","))) <= set(map(str.strip, one["pairs"].split(",")))


def test_a_chapter_runs_on_a_folder_of_pictures_with_networks_of_timm(tmp_path):
    import numpy as np
    from PIL import Image

    from kdlib.book import ROOT
    from kdlib.book.results import read
    from notebooks_command import kdlib

    pair = "timm/resnet10t->timm/mnasnet_small"
    assert not any(name.split("/")[1] in file.read_text() for name in pair.split("->") for file in (ROOT / "kdlib").rglob("*.py"))
    random = np.random.default_rng(0)
    for label, colour in ("apples", (200, 30, 30)), ("pears", (60, 180, 60)), ("plums", (90, 40, 140)):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(10):
            pixels = np.clip(np.array(colour) + random.normal(0, 40, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i}.png")
    done = kdlib("run", "unseen-domains", "--profile", "smoke", "-p", "source=imagefolder", "-p", f"folder={tmp_path / 'pictures'}", "-p", f"pairs={pair}",
                 "-p", "limit=0", "-p", "seeds=1", "-p", "first_seeds=1", "-p", "batch=12", "--out", tmp_path / "out", KDLIB_CACHE=str(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    found = read(tmp_path / "out" / "results" / "unseen-domains.json")
    assert {r["domain"] for r in found.records} == {"photo", "grey", "edges", "low-pass", "high-pass", "shuffled", "all unseen"}
    row = found.find(pair=pair, method="Hint", reference="Ind", domain="photo", measure="consensus")
    assert row["n_items"] == 6 and row["n_seeds"] == 1 and row["flag"] == "fewer than 3 seeds"
