"""What the chapters on images (paper, Sec. 4.1-4.4) share: pictures, teacher-student pairs and the arms of a study.

One set of runs serves them all. A pair has two teachers, P (plain) and J (trained on recoloured pictures), and students of each.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from IPython.display import HTML
from torch import nn

from kdlib import models, study
from kdlib.book import ROOT, BookError, claims, figures, text
from kdlib.book.results import Results
from kdlib.data.photos import SHOWN, Photos
from kdlib.data.scenes import Scenes
from kdlib.distill import CRD, KL, Alone, Hint
from kdlib.foreign import shell
from kdlib.models import Model
from kdlib.store import describe, key
from kdlib.train import OneCycle, Run

UNCHOSEN = {"KL": 0.9, "Hint": 1.0, "CRD": 0.8}  # where nobody has chosen
WEIGHTS = ROOT / "book" / "weights.json"
TABLE_5 = {"ResNet50->ResNet18": (0.7613, 0.7004, 0.7098, 0.7056, 0.7073), "VGG19->VGG11": (0.7237, 0.6888, 0.6974, 0.6938, 0.6974),
           "VGG19->ResNet18": (0.7237, 0.7004, 0.7062, 0.7021, 0.7042), "ViT-B-32->ResNet18": (0.7591, 0.7004, 0.7039, 0.7059, 0.7058),
           "Swin-B->Swin-T": (0.8350, 0.8113, 0.8123, 0.8133, 0.8127)}  # top-1 of teacher, Ind, KL, Hint, CRD on ImageNet
TABLE_5_COLOUR = {"ResNet50->ResNet18": (0.7532, 0.7004, 0.7101, 0.7041, 0.7097)}  # with a teacher trained on recoloured pictures
PARAMETERS = {"KL": "alpha", "Hint": "beta", "CRD": "beta_crd"}


@dataclass(frozen=True)
class Pair:
    name: str  # TEACHER->STUDENT
    teacher: Model
    student: Model
    teacher_layers: models.Layers
    student_layers: models.Layers
    both: bool  # whether the teacher that lacks the property teaches Hint and CRD students too, or only KL ones

    @property
    def hint(self) -> tuple[str, str]:
        """The student's and the teacher's layer that Hint matches: where it is the tokens that a transformer ends with, they meet the
        student's last map, as in the paper."""
        theirs = self.teacher_layers
        ends = theirs.hint == theirs.map or theirs.hint.endswith(":tokens")
        return self.student_layers.map if ends else self.student_layers.hint, theirs.hint


class Images:
    """Pictures, pairs and arms by the parameters that these chapters have in common."""

    def __init__(self, parameters: Mapping[str, object], device: str, dtype: str, *, held_out: bool = False):
        self.parameters, self.device, self.dtype = parameters, device, dtype
        self.suite = suite(parameters, held_out=held_out)
        self.pairs = list(_pairs(parameters, self.suite.classes))

    def arms(self, pair: Pair, *, jittered: bool = False, hint: tuple[str, str] | None = None,
             weights: Mapping[str, float] | None = None) -> dict[tuple[str, int], Run]:
        """Runs by (method, seed). T is the plain teacher P, or with `jittered` the recoloured J; T* is the other one. `hint` names other
        layers (the student's, the teacher's) for Hint to match, `weights` other loss weights than `self.weights(pair)`."""
        p, weights = self.parameters, weights or self.weights(pair)
        objectives = objectives_of(pair, p, weights, hint=hint)
        objectives |= {f"{m}*": objectives[m] for m in (objectives if pair.both else ("KL",))}
        domains = [(self.suite.jittered,), (self.suite.seen,)] if jittered else [(self.suite.seen,), (self.suite.jittered,)]
        common = dict(data=self.suite, device=self.device, dtype=self.dtype)
        star = None
        if pair.teacher.weights:  # trained elsewhere, whatever on: another one is trained here
            untrained = replace(pair.teacher, weights=None, file=None)
            star = Run(domains=domains[1], model=untrained, objective=Alone(), seed="teacher-0",
                       schedule=schedule(untrained, p["teacher_epochs"], p["batch"]), **common)
        return study.arms(teacher=pair.teacher, student=pair.student, objectives=objectives, seeds=self.seeds(pair),
                          teacher_domains=domains[0], teacher_star_domains=domains[1], student_domains=(self.suite.seen,),
                          schedule=schedule(pair.student, p["epochs"], p["batch"]),
                          teacher_schedule=schedule(pair.teacher, p["teacher_epochs"], p["batch"]), one_teacher=True, teacher_star=star, **common)

    def seeds(self, pair: Pair) -> list[int]:
        """Of a pair's students; the first pair can have more of them than the others."""
        least = self.parameters.get("first_seeds", 0) if pair == self.pairs[0] else 0
        return list(range(max(self.parameters["seeds"], least)))

    def seeds_in_words(self) -> str:
        """'3 seeds', or where the first pair has others '5 seeds of the first pair and 3 of the others'."""
        first, *others = (len(self.seeds(pair)) for pair in self.pairs)
        return text.count(first, "seed") + (f" of the first pair and {others[0]} of the other{'s' * (len(others) > 1)}" if others and others[0] != first else "")

    def weights(self, pair: Pair) -> dict[str, float]:
        """The loss weight of each method: the parameter, or where that is 0 the one chosen on held-out pictures, or else a common one."""
        return {m: self.parameters[name] or self._chosen.get(choice(pair, self.parameters, m), {}).get("chosen", UNCHOSEN[m]) for m, name in PARAMETERS.items()}

    def source_of_weights(self, pair: Pair) -> str:
        """In words, for the page."""
        given = [m for m, name in PARAMETERS.items() if self.parameters[name]]
        if len(given) == len(PARAMETERS):
            return "given"
        common = [m for m in PARAMETERS if m not in given and choice(pair, self.parameters, m) not in self._chosen]
        said = ("chosen on held-out training pictures" if not common else "not chosen for this pair: common values" if len(common) + len(given) == len(PARAMETERS)
                else f"chosen on held-out training pictures, but not {text.listed(common, '')}: a common value")
        return said + (f"; {', '.join(given)} given" if given else "")

    def on(self, domain: str) -> Scenes | Photos:
        """The suite that has this test domain: that of training wherever it does, so that chapters share what they measure."""
        return self.suite if domain in self.suite.domains else self.wider

    @cached_property
    def wider(self) -> Photos:
        """The suite with the data sets of parameter `unseen`, whose domains networks never learn from."""
        named = tuple(filter(None, (name.strip() for name in self.parameters.get("unseen", "").split(","))))
        if named and self.parameters["source"] == "scenes":
            raise BookError(f"parameter unseen goes with photographs, not with scenes: {', '.join(named)}")
        return replace(self.suite, unseen=named) if named else self.suite

    def in_words(self) -> str:
        """What the networks learn from and are tested on."""
        p, suite = self.parameters, self.suite
        limited = f", the first {p['limit']:,} of each split" if p["limit"] else ""
        moved = " (in training, each is moved by up to an eighth of its side and half are mirrored; the paper crops at random and mirrors)"
        if p["source"] == "scenes":
            return (f"drawn scenes of {suite.size}×{suite.size} pixels{moved}: {suite.train_items:,} to learn from, {suite.test_items:,} to test on, {suite.classes} classes. "
                    f"An object's shape is its class; its texture is that of its class in {100 * suite.texture:.0f} % of the scenes and its colour in "
                    f"{100 * suite.colour:.0f} %, else another class's")
        copy = re.fullmatch(r"imagenette-(\d+)", p["source"])
        what = f"the photographs of a folder, {suite.classes} classes," if p["source"] == "imagefolder" else "Imagenette, ten classes of ImageNet," + (
            f" the centre square of each kept at {copy[1]} pixels," if copy and copy[1] == "112" else f" its copy of {copy[1]} pixels," if copy else "")
        return f"{what} at {suite.size}×{suite.size} pixels{limited}{moved}"

    @cached_property
    def _chosen(self) -> dict[str, dict]:
        return read_choices()


def accuracies(images: Images, results: Results, methods: Sequence[str], paper: Mapping[str, tuple] = TABLE_5, saw: str = "the pictures as they are") -> HTML:
    """Each pair's accuracy on the domain that all saw, and what distillation gains, beside the rows of the paper's Table 5 whose teacher is T.
    Only what was recorded under no condition counts. `saw` says what T learned from."""
    rows, seen = [], images.suite.seen
    for pair in images.pairs:
        where = dict(pair=pair.name, domain=seen, measure="accuracy", condition={})
        mean = {m: np.mean(v) for m in methods if (v := results.values(method=m, **where))}
        effects = {e["method"]: e for e in results.matching(reference="Ind", **where)}
        rows.append([pair.name, "here", *[text.share(mean.get(m)) + (f" ({text.points(effects[m])})" if m in effects else "") for m in methods]])
        if (like := claims.paper_pair(pair.name)) in paper:
            theirs = dict(zip(("T", "Ind", "KL", "Hint", "CRD"), paper[like]))
            rows.append([pair.name, f"paper, {like}", *[text.share(theirs.get(m)) + (text.typeset(f" ({100 * (theirs[m] - theirs['Ind']):+.1f})")
                         if m in ("KL", "Hint", "CRD") and m in theirs else "") for m in methods]])
    return text.table(["pair", "source", *[f"{figures.name(m)}, %" for m in methods]], rows,
                      f"Accuracy on {seen}, in brackets minus Ind in points with 95 % intervals; T learned from {saw}; the paper's is top-1 on ImageNet (Table 5)")


def recipes(images: Images) -> HTML:
    """The pairs' networks and loss weights."""
    rows = [[pair.name, *[f"{sum(p.numel() for p in model.build().parameters()) / 1e6:.2f}" for model in (pair.teacher, pair.student)],
             *[f"{w:g}" for w in images.weights(pair).values()], images.source_of_weights(pair), " / ".join(pair.hint)]
            for pair in images.pairs]
    return text.table(["pair", "teacher, M parameters", "student, M parameters", "α of KL", "β of Hint", "β of CRD", "weights", "Hint's layers (student / teacher)"],
                      rows, "The pairs, and how their students were taught")


def depths(pair: Pair, count: int) -> dict[str, tuple[str, str]]:
    """Layers for Hint to match, by the student's, from its first to its logits: (the student's, the teacher's).

    `count` of the student's `Layers.depths`, spread evenly (0: all), and the layer that Hint matches anyway where it is one of them. The teacher's layer has
    the same rank. Where the two have unlike numbers of layers, the last two (penultimate features and logits) go with the last two, and the
    maps before them are spread evenly over the teacher's.
    """
    ours, theirs = pair.student_layers.depths, pair.teacher_layers.depths
    maps = np.linspace(0, len(theirs) - 3, len(ours) - 2).round().astype(int)
    matched = [*(theirs[i] for i in maps), *theirs[-2:]]
    chosen = range(len(ours)) if not count else {round(i) for i in np.linspace(0, len(ours) - 1, min(count, len(ours)))}
    return {layer: (layer, other) for i, (layer, other) in enumerate(zip(ours, matched)) if i in chosen or (layer, other) == pair.hint}


def numbers(name: str, value: str, low: float, high: float) -> list[float]:
    """A parameter that holds numbers by comma, each once, in ascending order. BookError unless each lies in [low, high]."""
    try:
        found = sorted({float(part) for part in value.split(",")})
        if not all(low <= number <= high for number in found):  # no NaN either
            raise ValueError
    except ValueError:
        raise BookError(f"parameter {name} takes numbers in [{low:g}, {high:g}], by comma, not {value!r}") from None
    return found


def layers(pair: Pair, role: str) -> tuple[str, str]:
    """The student's and the teacher's layer that play a role: "map" (the last map), "hint" (those that Hint matches), or "1", "2", ... for
    a place in depth among both networks' maps, 1 being the first."""
    if role == "map":
        return pair.student_layers.map, pair.teacher_layers.map
    if role == "hint":
        return pair.hint
    maps = [[name for name in layers.depths if name not in (layers.flatten, "logits")] for layers in (pair.student_layers, pair.teacher_layers)]
    if not role.isdigit() or not 1 <= int(role) <= min(map(len, maps)):
        raise BookError(f"{pair.name} has its maps at map, hint and the depths 1 to {min(map(len, maps))}, and none at {role!r} (parameter layers)")
    return tuple(names[int(role) - 1] for names in maps)


def may_show(suite: Scenes | Photos, name: str) -> bool:
    """Whether pictures of a class may be published: drawn ones, and of photographs those classes that seldom show people."""
    return isinstance(suite, Scenes) or name in SHOWN


def suite(parameters: Mapping[str, object], *, held_out: bool = False) -> Scenes | Photos:
    p = parameters
    if p["folder"] and p["source"] != "imagefolder":
        raise BookError(f"parameter folder = {p['folder']} goes with source=imagefolder, and source is {p['source']}")
    if p["source"] == "scenes":
        train, test = (min(n, p["limit"] or n) for n in (Scenes.train_items, Scenes.test_items))
        return Scenes(p["size"], train, test, p["texture"], p["colour"], held_out=held_out)
    return Photos(p["source"], p["size"], unseen=(), folder=p["folder"] or None, limit=p["limit"] or None, held_out=held_out)


def is_transformer(model: Model) -> bool:
    """By its layer norms, so the likes of ConvNeXt count too."""
    return any(isinstance(module, nn.LayerNorm) for module in shell(model.build).modules())


def schedule(model: Model, epochs: int, batch: int) -> OneCycle:
    """SGD, or AdamW for transformers, in one cycle; SGD's rate goes with the batch. A network with weights of its own is taken as it is."""
    if model.weights:
        return OneCycle(0)
    if is_transformer(model):
        return OneCycle(epochs, batch, lr=2e-3, weight_decay=0.05, optimizer_name="adamw")
    return OneCycle(epochs, batch, lr=0.2 * batch / 128)


def objectives_of(pair: Pair, parameters: Mapping[str, object], weights: Mapping[str, float], *, hint=None) -> dict[str, object]:
    p, (ours, theirs) = parameters, hint or pair.hint
    return {"KL": KL(round(1 - weights["KL"], 6), weights["KL"], p["tau"]), "Hint": Hint(1, weights["Hint"], ours, theirs),
            "CRD": CRD(1, weights["CRD"], p["tau_crd"], p["negatives"], pair.student_layers.flatten, pair.teacher_layers.flatten, positive=p["crd_positive"])}


def choice(pair: Pair, parameters: Mapping[str, object], method: str) -> str:
    """The key of what a method's choice of its loss weight holds for: pictures, networks, schedules and the objective, not seeds or machines."""
    p = parameters
    return key({"data": describe(suite(p, held_out=True)), "teacher": describe(pair.teacher), "student": describe(pair.student),
                "schedules": [describe(schedule(pair.teacher, p["teacher_epochs"], p["batch"])), describe(schedule(pair.student, p["epochs"], p["batch"]))],
                "objective": describe(objectives_of(pair, p, UNCHOSEN)[method])})


def read_choices() -> dict[str, dict]:
    """What `kdlib weights` chose, by `choice`."""
    try:
        return json.loads(WEIGHTS.read_text()) if WEIGHTS.exists() else {}
    except ValueError as error:
        raise BookError(f"{WEIGHTS} is not JSON ({error}); restore it, or remove it and choose again: kdlib weights") from None


def _pairs(parameters: Mapping[str, object], classes: int) -> Iterator[Pair]:
    seen = set()
    for text in parameters["pairs"].split(","):
        name, both = text.strip().removesuffix("*").strip(), text.strip().endswith("*")
        teacher, arrow, student = (part.strip() for part in name.partition("->"))
        if not (teacher and arrow and student) or (teacher, student) in seen:
            raise BookError(f"parameter pairs takes TEACHER->STUDENT, ..., each once, not {parameters['pairs']!r}")
        seen.add((teacher, student))
        if "@" in student:
            raise BookError(f"parameter pairs: only a teacher can have weights from a file, as students start from random ones; not {student!r}")
        try:
            built = [models.network(n, size=parameters["size"], classes=classes) for n in (teacher, student)]
            yield Pair(f"{teacher}->{student}", *built, *map(models.layers, built), both)
        except ValueError as error:
            raise BookError(f"parameter pairs: {error}") from None
