"""`python -m bench.pages` finds what is too large or not sharp, and nothing else."""

import subprocess
import sys

from PIL import Image

from kdlib.book import ROOT


def budgets(folder):
    return subprocess.run([sys.executable, "-m", "bench.pages", str(folder)], cwd=ROOT, capture_output=True, text=True)


def test_budgets(browser, tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "theme.html").write_text("no page")
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    (tmp_path / "large.bin").write_bytes(bytes(2_000_000))
    (tmp_path / "sharp.html").write_text('<img src="a.png" width="100"><a href="large.bin">shared</a><img src="a.png" hidden>')
    fine = budgets(tmp_path)
    assert fine.returncode == 0 and fine.stdout.splitlines()[-1] == "all within their budgets", fine.stderr
    (tmp_path / "blurred.html").write_text('<img src="a.png" width="101" loading="lazy">')
    (tmp_path / "heavy.html").write_text(f"<!-- {'x' * 1_500_000} -->")
    found = budgets(tmp_path)
    assert found.returncode == 1 and [line.split()[0] for line in found.stdout.splitlines()[1:]] == ["blurred.html", "heavy.html", "sharp.html", "2"]
    assert ["not sharp" in found.stdout.splitlines()[1], "too large" in found.stdout.splitlines()[2]] == [True, True]
    none = budgets(tmp_path / "nowhere")
    assert none.returncode == 2 and "no pages in nowhere" in none.stderr
