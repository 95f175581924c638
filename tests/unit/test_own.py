"""The code of book/own.md runs as it stands."""

import json
import os
import re
import subprocess
import sys

from kdlib.book import ROOT

LOOP, STUDY = re.findall(r"```python\n(.*?)```", (ROOT / "book" / "own.md").read_text(), re.DOTALL)


def run(code, folder):
    (folder / "mine.py").write_text(code)
    done = subprocess.run([sys.executable, "mine.py"], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_training_loop_of_ones_own(tmp_path):
    lines = run(LOOP, tmp_path)
    assert [line.split(":")[0] for line in lines] == ["Alone", "KL", "Hint", "CRD"]
    assert all(float(share) > 75 for line in lines for share in re.findall(r"([\d.]+)%", line)), lines


def test_a_study_of_ones_own_goes_on_where_it_stopped(tmp_path):
    first, again = run(STUDY, tmp_path), run(STUDY, tmp_path)
    assert first[0] == "18 networks to train, 18 measurements to take"
    assert [line.split(":")[0] for line in again] == ["KL minus Ind", "KL minus KL*", "Ind2 minus Ind"] and again == first[-3:]
    assert len(list((tmp_path / "store" / "run").iterdir())) == 18


def test_ten_lines_of_the_chapter_on_methods_use_all_three_losses():
    cells = [cell["source"] for cell in json.loads((ROOT / "notebooks" / "methods.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    [ten] = ["".join(source) for source in cells if "losses.kl(s_logits" in "".join(source)]
    assert len(ten.splitlines()) == 10 and all(f"losses.{name}(" in ten for name in ("kl", "hint", "crd"))
