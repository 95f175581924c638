import json
import os
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from bs4 import BeautifulSoup

from kdlib import stats
from kdlib.book import ROOT, BookError, claims, results, text
from kdlib.book.chapter import Chapter
from kdlib.book.chapters import published, source, sources
from kdlib.data.digits import DOMAINS, Digits
from kdlib.distill import CRD, KL, Hint
from kdlib.models import Model
from kdlib.measures import Divergence, Items, Planes, Predictions, Regions
from kdlib.store import Store
from kdlib.study import arms
from kdlib.train import Adadelta
from notebooks_command import CHAPTERS, SLUG, kdlib


def outputs(path, mime):
    """Every output of this type, glued ones included, as text."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            for kind, body in output.get("data", {}).items():
                if kind.endswith(mime):
                    yield body


def nbval(notebook, cache, results_file, slug=SLUG):
    order = {"results": str(results_file), "progress": str(results_file.with_suffix(".progress")), "profile": "smoke",
             "source": source(slug).digest}
    return subprocess.run([sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", str(notebook)],
                          cwd=notebook.parent, capture_output=True, text=True,
                          env={**os.environ, "KDLIB_CACHE": str(cache), "KDLIB_RUN": json.dumps(order)})


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A store that is empty when the first of the chapters is executed again."""
    return tmp_path_factory.mktemp("empty")


@pytest.mark.parametrize("slug", CHAPTERS)
def test_executing_again_from_an_empty_store_gives_the_same(smoke, empty, tmp_path, slug):
    out, _ = smoke
    again = tmp_path / "again.json"
    done = nbval(out / f"{slug}.ipynb", empty, again, slug)
    assert done.returncode == 0, done.stdout[-3000:]
    one, two = (json.loads(p.read_text()) for p in (out / "results" / f"{slug}.json", again))
    for body in (one, two):
        del body["provenance"]["start"], body["provenance"]["duration"], body["provenance"]["commit"]
    assert one == two


def test_nbval_finds_a_planted_random_number(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("import random\nrandom.random()")])
    notebook.cells[0].outputs = [nbformat.v4.new_output("execute_result", {"text/plain": "0.5"}, execution_count=1)]
    nbformat.write(notebook, tmp_path / "planted.ipynb")
    done = nbval(tmp_path / "planted.ipynb", tmp_path / "cache", tmp_path / "none.json")
    assert done.returncode == 1 and "1 failed" in done.stdout


@pytest.fixture(scope="session")
def measured(smoke):
    """The runs with predictions and labels read back from the store, by a route that does not use the chapter's code."""
    out, cache = smoke
    body = json.loads((out / "results" / f"{SLUG}.json").read_text())
    given = body["provenance"]["parameters"]
    suite, net = Digits(given["source"], given["patches"], given["limit"]), Model("mnistnet", {"size": 16, "dropout": True})
    taught = {"KL": KL(0.1, 0.9, 8.0), "Hint": Hint(1.0, 2.0, "conv2", "conv2"), "CRD": CRD(1.0, 0.1, 0.1, 32, "relu3", "relu3")}
    runs = arms(data=suite, teacher=net, student=net, teacher_domains=suite.domains, teacher_star_domains=("orig",),
                student_domains=("orig",), objectives=taught | {f"{m}*": o for m, o in taught.items()}, seeds=range(3),
                schedule=Adadelta(1), device="cpu", dtype=given["dtype"])
    store = Store(cache)
    said = {(m, s, d): store.read("measure", Predictions(run, suite, d).key).arrays["prediction"]
            for (m, s), run in runs.items() for d in DOMAINS}
    label = {d: store.read("measure", Items(suite, d, 100 if d == "color" else 8).key).arrays["label"] for d in DOMAINS}
    return said, label, runs, suite


def test_records_and_effects_are_those_of_the_measurements(smoke, measured):
    found, (said, label, *_) = results.read(smoke[0] / "results" / f"{SLUG}.json"), measured
    for domain in DOMAINS:
        right = {m: np.stack([said[m, s, domain] == label[domain] for s in range(3)]) for m in ("T", "Ind", "Ind2", "KL", "Hint", "CRD", "KL*")}
        for m, values in right.items():
            assert found.values(method=m, domain=domain, measure="accuracy") == pytest.approx(values.mean(1))
        for m in ("Ind2", "KL", "Hint", "CRD", "KL*"):
            row, wanted = (found.find(method=m, reference="Ind", domain=domain, measure="accuracy"),
                           stats.effect(right[m], right["Ind"], None if m.endswith("*") else right["T"]))
            assert row["effect"] == pytest.approx(right[m].mean() - right["Ind"].mean())
            assert (row["low"], row["high"], row["transfer"], row["flag"]) == (wanted.low, wanted.high, wanted.transfer, wanted.flag)
            same = np.array([(said[m, s, domain] == said["T", s, domain]).mean() for s in range(3)])
            assert found.values(method=m, domain=domain, measure="agreement") == pytest.approx(same)
        missed = [said["T", j, domain] != label[domain] for j in range(3)]
        wrong = [[said["KL", i, domain][missed[j]] == said["T", j, domain][missed[j]] for j in range(3)] for i in range(3)]
        wanted = stats.own_teacher([[same.mean() for same in student] for student in wrong])
        row = found.find(method="KL", domain=domain, measure="agreement, T wrong, own students minus other seeds'")
        assert (row["effect"], row["low"], row["df"]) == (pytest.approx(wanted.mean), pytest.approx(wanted.low), 2)
        others = [np.mean([wrong[i][j].mean() for i in range(3) if i != j]) for j in range(3)]
        assert found.values(method="KL", domain=domain, measure="agreement of other seeds, T wrong") == pytest.approx(others)
    assert found.find(method="KL", reference="KL*", domain="M", measure="accuracy")["transfer"] is None


def test_what_the_page_says_is_what_was_recorded(smoke):
    out = smoke[0]
    found = results.read(out / "results" / f"{SLUG}.json")
    tables = {t.caption.get_text(): [[c.get_text() for c in row.find_all(["th", "td"])] for row in t.tbody.find_all("tr")]
              for body in outputs(out / f"{SLUG}.ipynb", "text/html") for t in BeautifulSoup(body, "html.parser").find_all("table")}
    [accuracy] = [rows for caption, rows in tables.items() if caption.startswith("Accuracy, effect and transfer")]
    checked = 0
    for domain, arm, share, effect, _ in accuracy:
        method = {"teacher T": "T", "teacher T*": "T*", "independent": "Ind", "2nd independent": "Ind2"}.get(arm, arm.split(" ")[0])
        assert share == f"{100 * np.mean(found.values(method=method, domain=domain, measure='accuracy')):.1f}"
        if method != "Ind":
            row = found.find(method=method, reference="Ind", domain=domain, measure="accuracy")
            numbers = [float(x.replace("−", "-")) for x in re.findall(r"[+−]?\d+\.\d+", effect)]
            assert numbers == pytest.approx([100 * row[k] for k in ("effect", "low", "high") if row[k] is not None], abs=0.051)
            checked += 1
    assert checked == 3 * 9
    words = " ".join(outputs(out / f"{SLUG}.ipynb", "text/markdown"))
    assert f"{text.points(found.find(method='KL', reference='KL*', domain='color', measure='accuracy'))} on color" in words
    assert all(v["verdict"].startswith("not tested") for v in claims.verdicts(SLUG, found))


def test_boundaries_are_compared_as_the_measurements_say(smoke, measured):
    out, cache = smoke
    found, (said, label, runs, suite), store = results.read(out / "results" / "decision-boundary.json"), measured, Store(cache)
    for domain in DOMAINS:
        region = {m: np.stack([store.read("measure", Regions(runs[m, s], Planes(suite, domain, 3, 6)).key).arrays["region"] for s in range(3)])
                  for m in ("T", "Ind", "KL", "CRD*")}
        same = {m: (region[m] == region["T"]).mean((2, 3)) for m in region}
        assert same["Ind"].shape == (3, 3) and region["T"].shape == (3, 3, 6, 6)
        row = found.find(method="KL", reference="Ind", domain=domain, measure="boundary agreement")
        wanted = stats.effect(same["KL"], same["Ind"], 1.0)
        assert (row["effect"], row["low"], row["flag"], row["n_items"]) == (pytest.approx(wanted.effect), pytest.approx(wanted.low), wanted.flag, 3)
        assert found.values(method="CRD*", domain=domain, measure="boundary agreement") == pytest.approx(same["CRD*"].mean(1))
        table = [[(region["KL"][i] == region["T"][j]).mean() for j in range(3)] for i in range(3)]
        row = found.find(method="KL", domain=domain, measure="boundary agreement, own students minus other seeds'")
        assert (row["effect"], row["low"], row["p"]) == pytest.approx([getattr(stats.own_teacher(table), k) for k in ("mean", "low", "p")])
        nats = [store.read("measure", Divergence(runs["Ind", s], runs["T", s], suite, domain, 32).key).arrays["nats"] for s in range(3)]
        assert found.values(method="Ind", domain=domain, measure="KL(T, S)") == pytest.approx(np.float64(nats).mean(1))


@pytest.mark.parametrize("slug", CHAPTERS)
def test_executed_notebooks_carry_no_clock_and_no_path(smoke, slug):
    body = (smoke[0] / f"{slug}.ipynb").read_text()
    assert "papermill" not in json.loads(body)["metadata"] and str(ROOT) not in body and str(smoke[0]) not in body


def test_afresh_looks_into_no_archive(monkeypatch):
    namespace = {name: p.default for name, p in source(SLUG).parameters.items()}
    for order, there in ({}, True), ({"afresh": True}, False):
        monkeypatch.setenv("KDLIB_RUN", json.dumps(order))
        assert bool(Chapter(SLUG, namespace).store.archives) == there


@pytest.mark.parametrize("body, message", [
    ("[]", "is not a results file"), ("{", "is not JSON"), ('{"chapter": "x", "provenance": {}, "records": [1], "effects": []}', "is not a results"),
    ('{"schema_version": 9, "chapter": "x", "provenance": {}, "records": [{"a": 1}], "effects": []}', "schema_version is 9")])
def test_damaged_results_are_one_clear_line(tmp_path, body, message):
    (tmp_path / "x.json").write_text(body)
    with pytest.raises(BookError, match=message) as error:
        results.read(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_nothing_to_say_shows_nothing():
    assert text.say("", "") is None and text.say("One.", "", "Two.").data == "One. Two."


def test_sources_are_clean_and_typed():
    for slug, chapter in sources().items():
        for cell in chapter.notebook.cells:
            assert not cell.get("outputs") and not cell.get("execution_count"), f"{slug} has outputs"
        assert set(chapter.facts["profiles"]) >= {"smoke", "cpu"} and chapter.title and chapter.facts["section"]
        for profile in chapter.facts["profiles"]:
            assert chapter.values(profile, {}).keys() == chapter.parameters.keys()
        assert ({"device", "dtype"} <= chapter.parameters.keys()) == (slug != "toy")  # which trains no network of a study


@pytest.mark.parametrize("slug", list(sources()))
def test_published_chapters_are_current_and_reexecute_without_data_or_training(slug, tmp_path):
    state = published(slug)
    if state == "absent":
        pytest.skip(f"{slug} is not published")
    assert state == "current", f"{slug} is stale: its source has changed since it was executed; run and publish it again"
    was = results.read(ROOT / "book" / "results" / f"{slug}.json")
    assert was.provenance["profile"] != "smoke" and was.provenance["source"] == source(slug).digest
    assert (ROOT / "book" / "results" / f"{slug}.npz").stat().st_size < 3e6
    store = Store(tmp_path / "none", [ROOT / "book" / "results" / f"{slug}.npz"])
    of_networks = [key for key in was.provenance["measurements"] if store.read("measure", key).info.get("weights")]
    assert {device for key in of_networks or was.provenance["measurements"] for device in store.devices(key)} == set(was.provenance["device"].split(" and "))
    environment = {"KDLIB_CACHE": str(tmp_path / "empty"), "KDLIB_DATA": ""}
    done = kdlib("run", slug, "--as-published", "--out", tmp_path / "out", **environment)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "empty").exists(), "nothing was computed"
    now = results.read(tmp_path / "out" / "results" / f"{slug}.json")
    for again, before in (now.records, was.records), (now.effects, was.effects):
        assert len(again) == len(before)
        for a, b in zip(again, before):  # another processor sums in another order
            assert a == {k: pytest.approx(v, rel=1e-9, abs=1e-12) if isinstance(v, float) else v for k, v in b.items()}
    assert {k: v for k, v in now.provenance.items() if k != "commit"} == {k: v for k, v in was.provenance.items() if k != "commit"}


def test_as_published_reads_what_was_published_though_a_store_has_other_values_under_its_keys(tmp_path, monkeypatch):
    was = results.read(ROOT / "book" / "results" / f"{SLUG}.json").provenance
    archive = Store(tmp_path / "none", [ROOT / "book" / "results" / f"{SLUG}.npz"])
    key, entry = next((k, e) for k in was["measurements"] if "prediction" in (e := archive.read("measure", k)).arrays)
    Store(tmp_path / "store").write("measure", entry.spec, {"prediction": 1 - entry.arrays["prediction"]}, entry.info)
    monkeypatch.setenv("KDLIB_CACHE", str(tmp_path / "store"))
    for published, other in (was, False), (None, True):
        monkeypatch.setenv("KDLIB_RUN", json.dumps({"results": str(tmp_path / "results.json"), "as_published": published}))
        found = Chapter(SLUG, was["parameters"]).store.read("measure", key)
        assert (found.arrays["prediction"] != entry.arrays["prediction"]).any() == other


def test_results_say_what_students_were_trained_on(smoke):
    asked = results.read(smoke[0] / "results" / "invariance.json").provenance
    given = {"KL": "alpha", "Hint": "beta", "CRD": "beta_crd"}
    assert not any(asked["parameters"][name] for name in given.values()), "the weights are those of a file or common ones"
    for pair, by_method in asked["objectives"].items():
        assert by_method.keys() >= given.keys() and "T" not in by_method and "Ind" not in by_method
        assert by_method["KL"]["type"] == "KL" and 0 < by_method["KL"]["alpha"] <= 1 and by_method["KL"]["tau"] == asked["parameters"]["tau"]
        assert by_method["Hint"]["beta"] > 0 and by_method["CRD"]["beta"] > 0
