"""Bad input and mishaps, through the command: one clear line, an exit status that is not 0, earlier results untouched."""

import functools
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdlib.book import ROOT, chapters, command, stock
from kdlib.book import publish as publishing
from kdlib.store import Store, key
from notebooks_command import CHAPTERS, SLUG, executed, kdlib


def contents(*folders):
    """The digest of every file."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for folder in folders for path in folder.rglob("*") if path.is_file() and "locks" not in path.parts}


def is_one_clear_line(said, message):
    assert said.startswith("kdlib: ") and said.count("\n") == 1 and message in said, said
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def good(smoke, tmp_path_factory):
    """Earlier results: an executed chapter that may be published, and the store behind it."""
    folder = tmp_path_factory.mktemp("good")
    shutil.copytree(smoke[1], folder / "store")
    return executed(smoke[0], folder / "out"), folder / "store"


@pytest.fixture
def place(good, tmp_path, monkeypatch):
    """What a case may spoil: `root` (another repository), `out` (executed chapters), `data`, and `file`, which is one."""
    place = {name: tmp_path / name for name in ("root", "out", "data", "file", "empty", "store")}
    for name in "notebooks", "book":
        shutil.copytree(ROOT / name, place["root"] / name)
    shutil.copytree(good[0], place["out"])
    for name in "data", "empty":
        place[name].mkdir()
    place["file"].write_text("a file")
    monkeypatch.setenv("KDLIB_CACHE", str(good[1]))
    monkeypatch.setenv("KDLIB_DATA", str(place["data"]))
    return place


# what a case spoils: functions of `place` that return changes of the environment, or None

def nothing(place):
    pass


def notebook(change, where="root"):
    """Change the chapter's notebook: its source, or the executed one in `out`."""
    def spoil(place):
        path = place[where] / ("notebooks" if where == "root" else ".") / f"{SLUG}.ipynb"
        body = json.loads(path.read_text())
        change(body)
        path.write_text(json.dumps(body))

    return spoil


def parameters(body):
    return next(c for c in body["cells"] if "parameters" in c["metadata"].get("tags", []))


def parameter_line(old, new):
    def change(body):
        text = "".join(parameters(body)["source"])
        assert old in text
        parameters(body)["source"] = text.replace(old, new)

    return notebook(change)


def code(old, new):
    def change(body):
        hits = [c for c in body["cells"] if old in "".join(c["source"])]
        hits[0]["source"] = "".join(hits[0]["source"]).replace(old, new)

    return notebook(change)


def write(where, name, text):
    return lambda place: (place[where] / name).write_text(text) and None


def remove(where, name):
    return lambda place: (place[where] / name).unlink()


def results(**changes):
    """Change the results in `out` without telling the notebook."""
    def spoil(place):
        path = place["out"] / "results" / f"{SLUG}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def mnist(change=None):
    """Files of MNIST's form, empty of content; `change` is done to one of them."""
    def spoil(place):
        raw = place["data"] / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, start, size in (("train-images-idx3", 3, 47_040_016), ("train-labels-idx1", 1, 60_008), ("t10k-images-idx3", 3, 7_840_016),
                                  ("t10k-labels-idx1", 1, 10_008)):
            path = raw / f"{name}-ubyte"
            path.write_bytes(bytes([0, 0, 8, start]) + ((10_000 if "t10k" in name else 60_000).to_bytes(4, "big"))
                             + (28).to_bytes(4, "big") * (start - 1))
            os.truncate(path, size)
        if change:
            change(raw / "t10k-labels-idx1-ubyte")

    return spoil


def bsds500(change):
    def spoil(place):
        file = io.BytesIO()
        Image.new("RGB", (32, 32)).save(file, "JPEG")
        for split, n in ("train", 200), ("test", 100):
            (place["data"] / "bsds500" / split).mkdir(parents=True)
            for i in range(n):
                (place["data"] / "bsds500" / split / f"{i}.jpg").write_bytes(file.getvalue())
        change(place["data"] / "bsds500" / "train" / "7.jpg")

    return spoil


def overwrite(content):
    def change(path):
        with open(path, "r+b") as file:
            file.write(content)

    return change


def variables(**names):
    return lambda place: {name: value.format(**place) for name, value in names.items()}


def empty_store(place):
    return {"KDLIB_CACHE": str(place["store"])}


def measured_again(place):
    """The store behind `out`, one of whose measurements came out differently."""
    shutil.copytree(os.environ["KDLIB_CACHE"], place["store"])
    store = Store(place["store"])
    entry = store.read("measure", min(json.loads((place["out"] / "results" / f"{SLUG}.json").read_text())["provenance"]["measurements"]))
    shutil.rmtree(place["store"] / "measure" / key(entry.spec))
    store.write("measure", entry.spec, {name: array[::-1] for name, array in entry.arrays.items()}, entry.info)
    return empty_store(place)


def damaged_archive(place):
    (place["root"] / "book" / "results" / f"{SLUG}.npz").write_bytes(b"PK\3\4 and no more")
    return empty_store(place)


def kept_is_damaged(place):
    (place["root"] / "book" / "results" / "kept").mkdir(exist_ok=True)
    (place["root"] / "book" / "results" / "kept" / "part.npz").write_bytes(b"PK\3\4 and no more")
    return empty_store(place)


def half_an_archive(place):
    """Of two measurements, the second damaged."""
    store, file = Store(place["store"]), place["root"] / "half.npz"
    for seed in 0, 1:
        store.write("measure", {"seed": seed}, {"a": np.arange(9)}, {})
    store.archive([key({"seed": seed}) for seed in (0, 1)], file)
    with np.load(file) as data:
        arrays = {name: data[name] for name in data.files}
    arrays[f"{max(key({'seed': seed}) for seed in (0, 1))}/a"][4] = 7
    np.savez(file, **arrays)


def locks_are_a_file(place):
    place["store"].mkdir()
    (place["store"] / "locks").touch()
    Path(place["store"], "damaged", "abc-1").mkdir(parents=True)
    return empty_store(place)


RUN, PUBLISH = ["run", SLUG], ["publish", SLUG, "--from", "{out}"]
PRUNE = ["store", "--prune", "--yes", "--all"]
CASES = {  # name: (what is spoilt, the command, what the line says)
    # names
    "no such chapter to run": (nothing, ["run", "domain-adaption"], "no chapter named 'domain-adaption'; did you mean domain-adaptation?"),
    "no such chapter to publish": (nothing, ["publish", "nothing", "--from", "{out}"], "no chapter named 'nothing'; did you mean "),
    "no such profile": (nothing, [*RUN, "--profile", "smok"], "no profile named 'smok'; did you mean smoke?"),
    "an empty profile": (nothing, [*RUN, "--profile", ""], "no profile named ''; did you mean "),
    "an empty data set": (nothing, ["data", ""], "no data set named ''; did you mean "),
    "an empty scheduler": (nothing, [*RUN, "--scheduler", ""], "no Dask scheduler answers at "),
    "an empty device": (nothing, [*RUN, "--device", ""], "parameter device = '' is not allowed"),
    "no such parameter": (nothing, [*RUN, "-p", "epoch=2"], "no parameter of domain-adaptation named 'epoch'; did you mean epochs?"),
    "no such part": (nothing, [*RUN, "--only", "methods=KL"], "no part (--only) named 'methods'; did you mean method?"),
    "no such data set": (nothing, ["data", "mnits"], "no data set named 'mnits'; did you mean mnist?"),
    "no such digits": (nothing, [*RUN, "-p", "source=emnist"], "parameter source = 'emnist' is not allowed (where the digits come from, one of "),
    "no such photographs": (nothing, [*RUN, "-p", "patches=mine"], "parameter patches = 'mine' is not allowed"),
    "no such layer": (nothing, [*RUN, "-p", "hint_layer=conv9"], "parameter hint_layer = 'conv9' is not allowed"),
    "no such model": (code('Model("mnistnet"', 'Model("mnistnt"'), PRUNE, "no model named 'mnistnt'; did you mean 'mnistnet'?"),
    "no such device": (nothing, [*RUN, "--device", "tpu"], "parameter device = 'tpu' is not allowed"),
    "no such precision": (nothing, [*RUN, "-p", "dtype=float16"], "parameter dtype = 'float16' is not allowed"),
    # values
    "a word for a whole number": (nothing, [*RUN, "-p", "epochs=two"], "parameter epochs takes int, not 'two' (passes over"),
    "a fraction for a whole number": (nothing, [*RUN, "-p", "epochs=2.5"], "parameter epochs takes int, not '2.5'"),
    "a number as programmers write it": (nothing, [*RUN, "-p", "epochs=1_0"], "parameter epochs takes int, not '1_0'"),
    "nothing for a number": (nothing, [*RUN, "-p", "tau="], "parameter tau takes float, not ''"),
    "a word for a number": (nothing, [*RUN, "-p", "tau=warm"], "parameter tau takes float, not 'warm'"),
    "neither true nor false": (nothing, [*RUN, "-p", "dropout=maybe"], "parameter dropout takes true or false, not 'maybe'"),
    "too small": (nothing, [*RUN, "-p", "epochs=0"], "parameter epochs = 0 is out of range"),
    "fewer images than anything can be said of": (nothing, [*RUN, "-p", "limit=2"], "parameter limit = 2 is out of range (images kept of each split (0: all), 0 or in [20, 60000])"),
    "too large": (nothing, [*RUN, "-p", "seeds=1000"], "parameter seeds = 1000 is out of range"),
    "negative": (nothing, [*RUN, "-p", "tau=-1"], "parameter tau = -1.0 is out of range"),
    "not a number at all": (nothing, [*RUN, "-p", "tau=nan"], "parameter tau = nan is out of range"),
    "infinite": (nothing, [*RUN, "-p", "beta=inf"], "parameter beta = inf is out of range"),
    # words
    "a value without a name": (nothing, [*RUN, "-p", "=3"], "-p takes NAME=VALUE, not '=3'"),
    "a name without a value": (nothing, [*RUN, "-p", "epochs"], "-p takes NAME=VALUE, not 'epochs'"),
    "a parameter twice": (nothing, [*RUN, "-p", "tau=2", "-p", "tau=3"], "-p tau was given twice"),
    "a part twice": (nothing, [*RUN, "--only", "seed=0", "--only", "seed=1"], "--only seed was given twice"),
    "a part without a value": (nothing, [*RUN, "--only", "method"], "--only takes NAME=VALUE, not 'method'"),
    "nothing to run": (nothing, ["run"], "run takes chapter names or --all, one of the two"),
    "a chapter and all of them": (nothing, [*RUN, "--all"], "run takes chapter names or --all, one of the two"),
    "no processes": (nothing, [*RUN, "--jobs", "0"], "--jobs is at least 1, not 0"),
    "published with another parameter": (nothing, [*RUN, "--as-published", "-p", "epochs=2"], "--as-published takes every parameter from"),
    "published in another profile": (nothing, [*RUN, "--as-published", "--profile", "cpu"], "--as-published takes every parameter from"),
    "published in part": (nothing, [*RUN, "--as-published", "--only", "seed=0"], "--as-published takes every parameter from"),
    "saving under another name": (nothing, ["store", "--save", "{file}"], "--save takes a file whose name ends in .npz, not {file}"),
    "saving nothing": (empty_store, ["store", "--save", "{empty}/part.npz"], "no measurement in {store}, so {empty}/part.npz is not written"),
    "saving nothing of a chapter": (empty_store, ["store", "--save", "{empty}/part.npz", "--of", "bare"], "no chapter named 'bare'; did you mean "),
    "of nothing": (nothing, ["store", "--of", SLUG], "--of says what --save is to write; add --save FILE"),
    "dropping a word": (nothing, ["store", "--drop", "teacher"], "--drop takes the first 8 or more digits of weights, as the message about"),
    "dropping nothing": (nothing, ["store", "--drop", "0123456789", "--yes"], "rests on weights 0123456789; an archive that does has to be moved"),
    "yes to nothing": (nothing, ["store", "--yes"], "--all and --yes say what --prune is to do; add --prune"),
    # places
    "a folder that cannot be made": (nothing, [*RUN, "--out", "/proc/nowhere"], "/proc/nowhere: No such file or directory"),
    "a file to write into": (nothing, [*RUN, "--out", "{file}"], "{file}: File exists"),
    "a file for a store": (variables(KDLIB_CACHE="{file}"), ["store"], "store: {file} is not a folder; point KDLIB_CACHE to one"),
    "a file for a store to prune": (variables(KDLIB_CACHE="{file}"), PRUNE, "store: {file} is not a folder; point KDLIB_CACHE to one"),
    "a store that cannot be written": (locks_are_a_file, PRUNE, "store: cannot write under {store}: File exists; make room, or point KDLIB_CACHE"),
    "saving over something else": (write("out", "part.npz", "mine"), ["store", "--save", "{out}/part.npz"],
                                   "store: the archive {out}/part.npz is damaged: it is no npz file, or has lost its end; restore it or remove it"),
    "a store below a file": (variables(KDLIB_CACHE="{file}/store"), ["store"], "store: {file}/store is not a folder; point KDLIB_CACHE to one"),
    "saving where no file can be": (nothing, ["store", "--save", "/proc/part.npz"], "store: cannot write /proc/part.npz: No such file or directory"),
    "saving below a file": (nothing, ["store", "--save", "{file}/part.npz"], "store: cannot write {file}/part.npz: "),
    "saving what cannot be planned": (code("chapter.complete(", "1 / 0\nchapter.complete("), ["store", "--save", "{empty}/part.npz", "--of", SLUG],
                                      f"{SLUG}: what it asks of the store cannot be planned, so nothing is pruned or saved: "),
    "loading from nowhere": (nothing, ["store", "--load", "/nowhere.npz"], "store: cannot read the archive /nowhere.npz: No such file or directory"),
    "loading a folder": (nothing, ["store", "--load", "{empty}"], "store: cannot read the archive {empty}: Is a directory; restore it or name"),
    "loading something else": (nothing, ["store", "--load", "{file}"], "store: the archive {file} is damaged: it is no npz file"),
    "loading half an archive": (half_an_archive, ["store", "--load", "{root}/half.npz"], "store: the archive {root}/half.npz is damaged: "),
    "a book from nowhere": (nothing, ["book", "--from", "/nowhere", "--out", "{out}-html"], "no folder /nowhere; run chapters into it first"),
    "a book from a file": (nothing, ["book", "--from", "{file}", "--out", "{out}-html"], "no folder {file}; run chapters into it first"),
    "a book without chapters": (nothing, ["book", "--from", "{empty}", "--out", "{out}-html"], "no executed chapter in {empty}; run chapters"),
    "a book over something else": (nothing, ["book", "--from", "{out}", "--out", "{out}"], "{out} holds something other than a rendered book"),
    "a book of a damaged chapter": (write("out", f"{SLUG}.ipynb", "{"), ["book", "--from", "{out}", "--out", "{out}-html"],
                                    f"{{out}}/{SLUG}.ipynb: not a notebook that can be read"),
    # data
    "no folder of data": (variables(KDLIB_DATA="/nowhere"), ["data", "mnist"], "KDLIB_DATA is /nowhere, but there is no such folder; unpack"),
    "a file for a folder of data": (variables(KDLIB_DATA="{file}"), ["data", "bsds500"], "KDLIB_DATA is {file}, but there is no such folder"),
    "no MNIST": (nothing, ["data", "mnist"], "mnist: nothing in {data}/MNIST/raw (KDLIB_DATA); set KDLIB_DATA to a folder that holds MNIST/raw"),
    "MNIST truncated": (mnist(lambda f: os.truncate(f, 5000)), ["data", "mnist"], "t10k-labels-idx1-ubyte has 5,000 bytes, not 10,008; set KDLIB_DATA"),
    "MNIST in part": (mnist(Path.unlink), ["data", "mnist"], "t10k-labels-idx1-ubyte is missing; set KDLIB_DATA"),
    "MNIST with a wrong magic number": (mnist(overwrite(b"\0\0\x0c")), ["data", "mnist"], "t10k-labels-idx1-ubyte starts with 00000c01, not 00000801"),
    "something else in MNIST's form": (mnist(), ["data", "mnist"], "mnist: the content of {data}/MNIST/raw (KDLIB_DATA) is not the declared one"),
    "no BSDS500": (nothing, ["data", "bsds500"], "bsds500: no photographs found in {data} (KDLIB_DATA); set KDLIB_DATA"),
    "BSDS500 in part": (bsds500(Path.unlink), ["data", "bsds500"], "bsds500: 199 train and 100 test photographs in {data}/bsds500, not 200 and 200"),
    "a damaged photograph": (bsds500(overwrite(b"\0" * 200)), ["data", "bsds500"], "bsds500: train/7.jpg in {data}/bsds500 cannot be decoded; fetch it anew"),
    "other photographs": (bsds500(lambda f: None), ["data", "bsds500"], "bsds500: the content in {data}/bsds500 is not the declared one"),
    # sources
    "a source that is no notebook": (write("root", f"notebooks/{SLUG}.ipynb", "{"), RUN, f"notebooks/{SLUG}.ipynb: not a notebook that can be read"),
    "a source of another kind": (write("root", f"notebooks/{SLUG}.ipynb", "[]"), RUN, f"notebooks/{SLUG}.ipynb: not a notebook that can be read"),
    "a source without parameters": (notebook(lambda b: parameters(b)["metadata"].clear()), RUN, f"{SLUG}.ipynb: not a chapter: it needs"),
    "a source without facts": (notebook(lambda b: b["metadata"].pop("kdlib")), RUN, f"{SLUG}.ipynb: not a chapter: it needs a kdlib block"),
    "a parameter without a type": (parameter_line("tau: float", "tau"), RUN, f"{SLUG}.ipynb: cannot read the parameter line 'tau = 8.0  # temp"),
    "a parameter without a value": (parameter_line("float = 8.0", "float = warm"), RUN, f"{SLUG}.ipynb: cannot read the parameter line 'tau: float = warm"),
    "a profile of another chapter": (notebook(lambda b: b["metadata"]["kdlib"]["profiles"]["cpu"].update(epoch=3)), RUN,
                                     "no parameter of domain-adaptation named 'epoch'; did you mean epochs?"),
    "a profile out of range": (notebook(lambda b: b["metadata"]["kdlib"]["profiles"]["cpu"].update(epochs=0)), RUN, "parameter epochs = 0 is out of range"),
    "no table of contents": (remove("root", "book/_toc.yml"), ["chapters"], "no notebooks/ and book/_toc.yml under {root}: the book's commands need"),
    "what cannot be planned": (code("chapter.complete(", "1 / 0\nchapter.complete("), PRUNE, f"{SLUG}: what it asks of the store cannot be planned"),
    "weights of its own choice": (nothing, ["weights", "-p", "seeds=5"], "-p seeds has no meaning here: weights chooses alpha, beta and beta_crd itself, and --seeds"),
    "weights for a device that is not there": (nothing, ["weights", "-p", "device=cuda"], "weights: "),
    # publishing
    "publishing from nowhere": (nothing, ["publish", SLUG, "--from", "/nowhere"], f"no executed chapter /nowhere/{SLUG}.ipynb; run it first"),
    "publishing from an empty folder": (nothing, ["publish", SLUG, "--from", "{empty}"], f"no executed chapter {{empty}}/{SLUG}.ipynb; run it first"),
    "publishing without results": (remove("out", f"results/{SLUG}.json"), PUBLISH, f"no results at {{out}}/results/{SLUG}.json; run the chapter first"),
    "publishing damaged results": (write("out", f"results/{SLUG}.json", '{"chapter": '), PUBLISH, f"{{out}}/results/{SLUG}.json is not JSON"),
    "publishing results of another form": (results(schema_version=9), PUBLISH, "schema_version is 9, this kdlib reads 1; run the chapter again"),
    "publishing a damaged notebook": (write("out", f"{SLUG}.ipynb", "{}"), PUBLISH, f"{{out}}/{SLUG}.ipynb: not a notebook that can be read"),
    "publishing a stale chapter": (notebook(lambda b: b["cells"][0].update(source="# Another question")), PUBLISH,
                                   f"{SLUG}: its source has changed since it was executed in {{out}}; run it again"),
    "publishing two executions in one": (results(effects=[]), PUBLISH, f"{SLUG}: the notebook and the results file in {{out}} are not of one execution"),
    "a book of two executions in one": (results(effects=[]), ["book", "--from", "{out}", "--out", "{out}-html"],
                                        f"{{out}}/{SLUG}.ipynb and {{out}}/results/{SLUG}.json are not of one execution; run it again: kdlib run {SLUG}"),
    "publishing the smoke profile": (lambda place: shutil.copytree(place["smoke"], place["out"], dirs_exist_ok=True) and None, PUBLISH,
                                     f"{SLUG}: the smoke profile proves that a chapter runs and claims nothing; it is not published"),
    "publishing without measurements": (empty_store, PUBLISH, "store: 93 of 93 measurements are not in {store}, so they cannot be archived"),
    "publishing what was measured again": (measured_again, PUBLISH, f"{SLUG}: the store's measurements are not those that it was executed with in {{out}}; run it again"),
    "a damaged archive": (damaged_archive, PUBLISH, f"store: the archive {{root}}/book/results/{SLUG}.npz is damaged: "),
    "a damaged kept archive": (kept_is_damaged, PUBLISH, "store: the archive {root}/book/results/kept/part.npz is damaged: "),
    "as published, but is not": (remove("root", f"book/results/{SLUG}.json"), [*RUN, "--as-published"], f"no results at {{root}}/book/results/{SLUG}.json"),
    "as published, but damaged": (write("root", f"book/results/{SLUG}.json", "[]"), [*RUN, "--as-published"], f"book/results/{SLUG}.json is not a results file"),
    "as published with other parameters": (parameter_line("tau: float", "heat: float"), [*RUN, "--as-published"],
                                           f"{SLUG}: its parameters have changed since it was published (heat, tau); run it without"),
}


@pytest.mark.parametrize("spoil, words, message", CASES.values(), ids=CASES)
def test_bad_input(good, smoke, place, monkeypatch, capsys, spoil, words, message):
    for name, value in (spoil(place | {"smoke": smoke[0]}) or {}).items():
        monkeypatch.setenv(name, value)
    sources = functools.partial(chapters.sources, place["root"])
    for module in chapters, command, stock:
        monkeypatch.setattr(module, "sources", sources)
    monkeypatch.setattr(command, "ROOT", place["root"])
    monkeypatch.setattr(publishing, "publish", functools.partial(publishing.publish, root=place["root"]))
    before = contents(*good, place["root"], place["out"])
    assert command.main([word.format(**place) for word in words]) == 1
    is_one_clear_line(capsys.readouterr().err, message.format(**place))
    assert contents(*good, place["root"], place["out"]) == before
    assert not Path(f"{place['out']}-html").exists()


@pytest.mark.parametrize("words, message", [
    ([], "the following arguments are required: COMMAND; kdlib --help tells more"),
    (["rnu"], "argument COMMAND: invalid choice: 'rnu' (choose from 'chapters', "),
    (["run", SLUG, "--epochs", "3"], "unrecognized arguments: --epochs 3"),
    (["run", SLUG, "--jobs", "many"], "argument --jobs: invalid int value: 'many'; kdlib run --help tells more"),
    (["store", "--prune", "--load", "part.npz"], "argument --load: not allowed with argument --prune; kdlib store --help tells more"),
    (["publish", SLUG], "the following arguments are required: --from; kdlib publish --help tells more"),
])
def test_usage(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    is_one_clear_line(capsys.readouterr().err, message)


# the command as a user calls it, from here on

@pytest.mark.parametrize("case", ["no such chapter to run", "a file for a store", "no MNIST"])
def test_a_process_says_and_returns_the_same(place, case):
    spoil, words, message = CASES[case]
    done = kdlib(*[word.format(**place) for word in words], **(spoil(place) or {}))
    assert (done.returncode, done.stdout) == (1, "")
    is_one_clear_line(done.stderr, message.format(**place))


SMOKE = [*RUN, "--profile", "smoke", "--out", "{out}", "-p", "limit=64", "--jobs", "1"]  # with this limit, nothing of it is in the store


@pytest.mark.parametrize("spoil, words, message", [
    (nothing, [*SMOKE, "--only", "method=Soft"], "--only method=Soft: this chapter has "),
    (nothing, [*SMOKE, "-p", "source=mnist", "--only", "method=T*"], "MissingData: mnist: nothing in {data}/MNIST/raw (KDLIB_DATA)"),
    (variables(CUDA_VISIBLE_DEVICES=""), [*SMOKE, "--device", "cuda"], "device cuda was asked for, but torch sees no CUDA device here; use auto or cpu"),
    (variables(KDLIB_CACHE="{file}/cache"), SMOKE, "store: cannot write under {file}/cache: Not a directory"),
], ids=["no such method", "no data", "no GPU", "no store"])
def test_a_run_that_fails_leaves_earlier_results_whole(good, place, spoil, words, message):
    before = contents(*good, place["out"])
    done = kdlib(*[word.format(**place) for word in words], **(spoil(place) or {}))
    assert done.returncode == 1
    is_one_clear_line(done.stderr, message.format(**place))
    assert f"all of it in {place['out']}/{SLUG}.failed.ipynb" in done.stderr
    after = contents(*good, place["out"])
    assert before.items() <= after.items() and after.keys() - before.keys() == {place["out"] / f"{SLUG}.failed.ipynb"}


def test_a_loss_that_is_no_number_names_the_run_and_the_step(good, place):
    code("Adadelta(epochs, batch)", "Adadelta(epochs, batch, 1e38)")(place)
    shutil.copytree(ROOT / "kdlib", place["root"] / "kdlib", ignore=shutil.ignore_patterns("__pycache__"))
    before = contents(*good, place["out"])
    done = kdlib(*[word.format(**place) for word in SMOKE], "-p", "batch=16", "--only", "method=Ind", "--only", "seed=0", PYTHONPATH=str(place["root"]), PYTHONSAFEPATH="1")
    assert done.returncode == 1
    is_one_clear_line(done.stderr, f"kdlib: {SLUG}: TrainingError: loss is ")
    assert " in epoch 1, step " in done.stderr and " of Alone mnistnet student-0 on orig (" in done.stderr
    assert before.items() <= contents(*good, place["out"]).items()


def test_a_damaged_store_costs_a_line_each_and_time_and_nothing_else(good, place):
    shutil.copytree(good[1], place["store"])
    store, found = Store(place["store"]), json.loads((place["out"] / "results" / f"{SLUG}.json").read_text())
    of_run = next(entry for name in sorted(found["provenance"]["measurements"]) if (entry := store.read("measure", name)).spec["type"] == "Predictions")
    damaged = [store.root / "measure" / key(of_run.spec), store.root / "run" / of_run.spec["run"]]
    for folder in damaged:
        os.truncate(folder / "data.safetensors", 100)
    done = kdlib(*RUN, "--profile", "smoke", "--out", place["out"], KDLIB_CACHE=str(store.root))
    assert done.returncode == 0 and not done.stderr, done.stderr
    told = [line for line in done.stdout.splitlines() if "is damaged" in line]
    assert len(told) == 2 and all(any(f"store: {folder} is damaged (" in line for line in told) for folder in damaged), done.stdout
    again = json.loads((place["out"] / "results" / f"{SLUG}.json").read_text())
    assert (again["records"], again["effects"]) == (found["records"], found["effects"])
    assert "damaged" not in (place["out"] / f"{SLUG}.ipynb").read_text() and all(folder.is_dir() for folder in damaged)


FULL = 'mount -t tmpfs -o size=16k tmpfs "$1" && cd "$1" && shift && exec "$@"'


def test_a_full_disk_to_write_to(place):
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL, "sh", str(place["empty"])]  # a mount that ends with the process
    if not shutil.which("unshare") or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a file system of their own, so there is none to fill")
    done = subprocess.run([*own, sys.executable, "-m", "kdlib.book.command", *RUN, "--profile", "smoke", "--out", place["empty"] / "out"],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 1
    is_one_clear_line(done.stderr, f"{SLUG}: cannot write to {place['empty']}/out: No space left on device; make room, or name another folder (--out)")


def descendants(pid):
    """The processes below this one, with their command lines."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [(child, Path(f"/proc/{child}/cmdline").read_text()), *descendants(child)]
    return found


def interrupt(process):
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does


def kill_kernel(process):
    [kernel] = [pid for pid, line in descendants(process.pid) if "ipykernel_launcher" in line]
    os.kill(kernel, signal.SIGKILL)


@pytest.mark.parametrize("strike, code, message", [
    (interrupt, 130, "kdlib: interrupted; what had finished is in the store, the same command goes on from there"),
    (subprocess.Popen.terminate, 143, "kdlib: terminated; what had finished is in the store, the same command goes on from there"),
    (kill_kernel, 1, f"kdlib: {SLUG}: the kernel died (out of memory?); what had finished is in the store, run it again to go on"),
], ids=["SIGINT", "SIGTERM", "kernel killed"])
def test_a_run_that_is_cut_off_says_so_and_keeps_what_had_finished(place, strike, code, message):
    before = contents(place["out"])
    process = subprocess.Popen([sys.executable, "-m", "kdlib.book.command", *[word.format(**place) for word in SMOKE]],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
                               env={**os.environ, **empty_store(place)})
    try:
        while "1/30 trained" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        below = descendants(process.pid)
        strike(process)
        _, said = process.communicate()
    finally:
        process.kill()
    for pid, line in below:  # workers whose kernel is gone end by themselves, but not at once
        if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text() == line:
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == code
    is_one_clear_line(said, message)
    store = Store(place["store"])
    finished = [p.name for p in (store.root / "run").iterdir()]
    assert finished and all(store.read("run", key) for key in finished)
    assert before.items() <= contents(place["out"]).items()
    assert {p.name for p in place["out"].iterdir()} <= {*(f"{slug}.ipynb" for slug in CHAPTERS), f"{SLUG}.failed.ipynb", "results"}
