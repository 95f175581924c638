"""README.md says what is so: its numbers, links, commands and code."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup

from kdlib.book import ROOT, BookError, claims, headline
from kdlib.book.chapters import contents, source
from kdlib.book.command import _parser
from kdlib.book.results import PROVENANCE, Results, read
from kdlib.book.text import pairs, points

README = (ROOT / "README.md").read_text()
BLOCKS = [(kind, body) for kind, body in re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)]
COMMANDS = [shlex.split(line, comments=True) for kind, body in BLOCKS if kind == "bash" for line in body.splitlines()]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


# what was found

def test_what_was_found_is_what_the_published_results_say():
    assert README.split(headline.START)[1].split(headline.END)[0] == f"\n{headline.found()}\n", "run kdlib headline"


def test_verdicts_and_effects_are_those_on_the_published_pages():
    judged = {}
    for slug in contents():
        page = ROOT / "book" / "chapters" / f"{slug}.ipynb"
        short = pairs(list(dict.fromkeys(row["pair"] for row in read(ROOT / "book" / "results" / f"{slug}.json").effects))) if page.exists() else {}
        for cell in nbformat.read(page, as_version=4).cells if page.exists() else ():
            for output in cell.get("outputs", []):
                for table in BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser").find_all("table"):
                    head, *rows = ([c.get_text() for c in row.find_all(["th", "td"])] for row in table.find_all("tr"))
                    for says, where, paper, effect, _, verdict in rows if head[0] == "claim" else ():
                        where = max((where.replace(name, said) for name, said in sorted(short.items(), key=lambda pair: -len(pair[0]))), key=lambda said: said != where, default=where)
                        judged.setdefault(says, {})[where] = effect, paper.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}"), verdict
    found = {}
    for line in README.split(headline.START)[1].split(headline.END)[0].splitlines():
        if line.startswith("| ") and not line.startswith(("| ---", "| claim of")):
            says, where, effect, _, paper, verdict = cells(line)
            says, verdict = says or last[0], verdict or last[1]
            last = says, verdict
            if not verdict.startswith(("not tested (not in", "not tested (no pictures")):
                found.setdefault(says, {})[where] = effect, paper, verdict
    assert found.keys() == judged.keys() and found
    for says, rows in found.items():
        on_page, verdicts = judged[says], [verdict for *_, verdict in judged[says].values() if verdict]
        for where, (effect, paper, verdict) in rows.items():
            if where.endswith("settings"):
                assert int(where.split()[0]) == len(on_page) - 1 > claims.FEW and set(verdicts) == {verdict}, "a row for all, and the list of them"
                assert set(effect.removeprefix("from ").split(" to ")) <= {f"{theirs} ({at})" for at, (theirs, *_) in on_page.items()}
            else:
                assert (effect, paper) == on_page[where][:2] and set(verdicts) == {verdict}
                assert rows.keys() == on_page.keys()


CLAIM = dict(chapter="digits", section="5", method="KL", reference="Ind", measure="accuracy", domains=("color",), margin={"color": 0.02},
             data={"source": "mnist", "limit": 0}, paper={"color": "+9.0 (Table 1)"})


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of two chapters, one of them without claims: a function that publishes results of `digits`."""
    (tmp_path / "book" / "results").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book" / "_toc.yml").write_text("chapters:\n  - file: chapters/methods\n  - file: chapters/digits\n")
    for slug in "methods", "digits":
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# About {slug}"), nbformat.v4.new_code_cell(
            "epochs: int = 2  # passes", metadata={"tags": ["parameters"]})])
        notebook.metadata["kdlib"] = {"section": "5.1", "needs": "", "minutes": {}, "profiles": {"cpu": {}, "paper": {"epochs": 14}}}
        nbformat.write(notebook, tmp_path / "notebooks" / f"{slug}.ipynb")
    monkeypatch.setattr(headline, "CLAIMS", (claims.Claim(says="KL gains", **CLAIM),))

    def publish(slug="digits", arms=("Ind", "KL", "KL*"), **given):
        facts = dict.fromkeys(PROVENANCE) | {"profile": "real", "device": "a CPU", "seeds": [0, 1, 2], "measurements": [],
                                             "parameters": {"source": "mnist", "limit": 0, "epochs": 4} | given}
        results, rng = Results(slug, facts), np.random.default_rng(0)
        values = {arm: rng.random((3, 1000)) < share for arm, share in {"Ind": 0.5, "KL": 0.8, "KL*": 0.6}.items() if arm in arms}
        for method, reference in ("KL", "Ind"), ("KL", "KL*"):
            if {method, reference} <= set(arms):
                results.effect(values[method], values[reference], pair="A->B", domain="color", method=method, against=reference, measure="accuracy")
        results.write(tmp_path / "book" / "results" / f"{slug}.json")
        return results

    return tmp_path, publish


def test_a_claim_is_a_row_and_its_basis_stands_above(book):
    root, publish = book
    results = publish()
    publish("methods")  # has no claims
    effect, own = (points(results.find(method="KL", reference=r)) for r in ("Ind", "KL*"))
    paper = "+9.0\N{NO-BREAK SPACE}(Table\N{NO-BREAK SPACE}1)"
    assert headline.found(root).splitlines() == [
        "**[About digits](book/chapters/digits.ipynb)** Sec. 5.1: MNIST; A\N{NO-BREAK SPACE}→ B; 3 seeds; 1,000 test images; profile `real` on a CPU; "
        "4 epochs (the paper: 14).",
        "",
        "| claim of the paper | where | effect | beyond the control | the paper's effect | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| KL gains | color | {effect} | {own} | {paper} | replicated |"]


def test_pairs_are_short_in_the_rows_and_stand_in_full_above(book):
    root, publish = book
    results = publish()
    for effect in list(results.effects):
        effect["pair"] = "residual-8x2->plain-8x1"
        results.effects.append({**effect, "pair": "C->D", "n_seeds": 5})
    results.write(root / "book" / "results" / "digits.json")
    above, *_, first, second = headline.found(root).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "MNIST; residual → plain (`residual-8x2->plain-8x1`); C → D; 3 to 5 seeds;" in above
    assert first.startswith("| KL gains | color, residual → plain |") and second.startswith("|  | color, C → D |")


@pytest.mark.parametrize("given, said, unsaid", [
    ({"epochs": 14}, "| replicated |", "epoch"),
    ({"source": "embedded"}, "scikit-learn's digits; A → B; 3 seeds", "| replicated |"),
    ({"source": "embedded"}, "| not tested (not the paper's data) |", "| replicated |"),
    ({"limit": 128}, "the first 128 images of each split", "| replicated |"),
    ({"arms": ("Ind", "KL")}, "] | – | +9.0", "KL*"),
    ({"arms": ("Ind",)}, "| KL gains | – | – | – | – | not tested (not in the published run) |", "test image"),
])
def test_what_differs_is_said(book, given, said, unsaid):
    root, publish = book
    publish(**given)
    assert said in headline.found(root).replace("\N{NO-BREAK SPACE}", " ") and unsaid not in headline.found(root)


def test_a_claim_of_many_settings_is_one_row(book, monkeypatch):
    root, publish = book
    monkeypatch.setattr(headline, "CLAIMS", (claims.Claim(says="KL gains", **CLAIM | {"domains": tuple("abcd"), "margin": dict.fromkeys("abcd", 0.02)}),))
    results = publish()
    for domain, gain in zip("abcd", (0.3, -0.2, 0.1, 0.0)):
        spread = 0.01 * np.array([-1, 0, 1])
        results.effect(0.5 + gain + spread, np.full(3, 0.5), pair="A->B", domain=domain, method="KL", against="Ind", measure="accuracy")
        if domain in "ab":
            results.effect(0.5 + gain + spread, np.full(3, 0.4), pair="A->B", domain=domain, method="KL", against="KL*", measure="accuracy")
    results.write(root / "book" / "results" / "digits.json")
    low, high = (points(results.find(method="KL", reference="Ind", domain=d)) for d in "ba")
    assert headline.found(root).splitlines()[-1] == f"| KL gains | 4 settings | from {low} (b) to {high} (a) | above zero in 1 of 2 | in the chapter | partly (2 of 4) |"


def test_a_verdict_says_how_many_settings_stand_after_holms_correction(book, monkeypatch):
    root, publish = book
    monkeypatch.setattr(headline, "CLAIMS", (claims.Claim(says="KL gains", **CLAIM | {"domains": ("a", "b"), "margin": dict.fromkeys("ab", 0.02)}),
                                             claims.Claim(says="KL gains more", **CLAIM | {"domains": ("b",), "margin": {"b": 0.02}})))
    results = publish()
    for domain, gain in zip("ab", (0.3, 0.027)):  # p = .0004 and .043: three settings in all
        results.effect(0.5 + gain + 0.01 * np.array([-1, 0, 1]), np.full(3, 0.5), pair="A->B", domain=domain, method="KL", against="Ind", measure="accuracy")
    results.write(root / "book" / "results" / "digits.json")
    assert results.effects[-1]["p"] < 0.05 < 2 * results.effects[-1]["p"]
    *_, first, _, last = headline.found(root).splitlines()
    assert first.endswith("| replicated (2 of 2; clear after Holm's correction in 1 of 2) |") and last.endswith("| replicated (clear after Holm's correction in 0 of 1) |")


@pytest.mark.parametrize("gains, said", [((-0.2, 0.1), "replicated (2 of 2; beyond the control in 1 of 2)"), ((0.2, 0.1), "replicated (2 of 2)"), ((), "replicated (2 of 2)")])
def test_a_verdict_says_what_becomes_of_it_beyond_a_control_that_the_claim_names(book, monkeypatch, gains, said):
    root, publish = book
    monkeypatch.setattr(headline, "CLAIMS", (claims.Claim(says="KL gains", **CLAIM | {"domains": ("a", "b"), "margin": dict.fromkeys("ab", 0.02), "beyond": {"method": "others"}}),))
    results, spread = publish(), 0.01 * np.array([-1, 0, 1])
    for domain in "ab":
        results.effect(0.8 + spread, np.full(3, 0.5), pair="A->B", domain=domain, method="KL", against="Ind", measure="accuracy")
    for domain, gain in zip("ab", gains):
        results.effect(0.5 + gain + spread, np.full(3, 0.5), pair="A->B", domain=domain, method="others", against="Ind", measure="accuracy")
    results.write(root / "book" / "results" / "digits.json")
    assert headline.found(root).splitlines()[-2].endswith(f"| {said} |")


def test_only_what_stands_between_the_markers_changes(book):
    root, publish = book
    (root / "README.md").write_text(f"# Title\n\n{headline.START}\nold\n{headline.END}\nrest | of it\n")
    assert headline.found(root) == "No chapter is published yet."
    assert headline.update(root).endswith("brought up to date")
    publish()
    assert headline.update(root).endswith("brought up to date") and headline.update(root).endswith("as it was")
    assert (root / "README.md").read_text() == f"# Title\n\n{headline.START}\n{headline.found(root)}\n{headline.END}\nrest | of it\n"


@pytest.mark.parametrize("text", ["none", headline.START, f"{headline.END}\n{headline.START}", 2 * f"{headline.START}{headline.END}"])
def test_a_readme_without_its_markers_is_refused_and_left_alone(book, text):
    root, _ = book
    (root / "README.md").write_text(text)
    with pytest.raises(BookError, match="needs the lines") as error:
        headline.update(root)
    assert "\n" not in str(error.value) and (root / "README.md").read_text() == text


# links, commands, code

@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_picture_is_a_small_png():
    content = (ROOT / "docs" / "page.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) < 150_000


def test_every_kdlib_command_is_one():
    kdlib = [words[words.index(".venv/bin/kdlib") + 1:] for words in COMMANDS if ".venv/bin/kdlib" in words]
    assert len(kdlib) > 5
    for words in kdlib:
        options = _parser().parse_args(words)
        for slug in getattr(options, "slugs", []):
            given = dict(pair.split("=") for pair in getattr(options, "parameter", []))
            source(slug).values(getattr(options, "profile", None) or "cpu", given)


def test_every_make_target_is_one():
    targets = [words[1] for words in COMMANDS if words and words[0] == "make"] + re.findall(r"`make (\w+)`", README)
    assert len(targets) > 3 and set(targets) <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_papermill_is_given_parameters_that_the_notebook_has():
    [words] = [words for words in COMMANDS if words and words[0] == ".venv/bin/papermill"]
    given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"}
    assert words[1].startswith("notebooks/") and given
    source(Path(words[1]).stem).values("cpu", given)


def test_uv_knows_the_options_for_a_machine_without_a_gpu():
    pytest.importorskip("uv")
    [words] = [words for words in COMMANDS if "--torch-backend=cpu" in words]
    known = subprocess.run([sys.executable, "-m", "uv", "pip", "install", "--help"], capture_output=True, text=True, check=True).stdout
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", known), option


def test_the_ten_lines_for_ones_own_models_run_as_they_stand(capsys):
    [code] = [body for kind, body in BLOCKS if kind == "python"]
    assert len(code.splitlines()) == 10
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(code, found := {})
    logits, t_logits = (net(found["x"]) for net in (found["student"], found["teacher"]))
    p, q = ((values / 4).softmax(1) for values in (t_logits, logits))
    assert found["kl"].item() == pytest.approx(16 * (p * (p / q).log()).sum(1).mean().item(), rel=1e-3)
    maps = [net.conv2(net.relu1(net.conv1(net.normalize(found["x"])))) for net in (found["student"], found["teacher"])]
    assert found["hint"].item() == pytest.approx((maps[0] - maps[1]).square().mean().item(), rel=1e-4)
    same = (logits.argmax(1) == t_logits.argmax(1)).float().mean().item()
    assert capsys.readouterr().out == f"KL {found['kl']:.2g}, Hint {found['hint']:.2g}, CRD {found['crd']:.2g}; same class for {same:.0%}\n"
    for name in "kl", "hint", "crd":
        found["student"].zero_grad()
        found[name].backward(retain_graph=True)
        assert found["student"].conv1.weight.grad.abs().sum() > 0, name
