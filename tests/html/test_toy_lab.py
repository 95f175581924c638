"""The toy chapter in JupyterLab, with a kernel, in a browser: Python reads what was dragged, and the picture follows Python."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from kdlib.book import ROOT

from waiting import rest, until

PATIENCE = 300  # seconds for what takes a few on an idle machine


def code(name, source, tags=()):
    return {"cell_type": "code", "id": name, "metadata": {"tags": list(tags)}, "outputs": [], "execution_count": None, "source": source}


def chapter() -> dict:
    """The chapter as it stands, its parameters those of the smoke profile, with an empty cell at its end."""
    notebook = json.loads((ROOT / "notebooks" / "toy.ipynb").read_text())
    [at] = [i for i, cell in enumerate(notebook["cells"]) if "parameters" in cell["metadata"].get("tags", ())]
    smoke = notebook["metadata"]["kdlib"]["profiles"]["smoke"]
    notebook["cells"].insert(at + 1, code("smoke", "\n".join(f"{name} = {value!r}" for name, value in smoke.items())))
    notebook["cells"].append(code("scratch", ""))
    return notebook


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of the chapter in a JupyterLab of its own."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "toy.ipynb").write_text(json.dumps(chapter()))
    settings = folder / "SETTINGS" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # cells out of sight are there, too
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {f"JUPYTER_{n}_DIR": str(folder / n) for n in ("CONFIG", "DATA", "RUNTIME")} | {
        f"JUPYTERLAB_{n}_DIR": str(folder / n) for n in ("SETTINGS", "WORKSPACES")}
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=kdlib", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    log = open(folder / "log", "w")
    server = subprocess.Popen([sys.executable, "-m", "jupyter", "lab", *options], env={**os.environ, **own, "JUPYTER_PREFER_ENV_PATH": "1"}, stdout=log, stderr=log)
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=kdlib")
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/lab/tree/toy.ipynb?token=kdlib&reset"
    finally:
        server.terminate()
        server.wait()
        log.close()


RAN = """before => {
    const counts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(node => /^\\[(\\d+)\\]:$/.exec(node.textContent)?.[1]);
    return document.querySelector(FAILED) || (before === null ? counts.slice(0, -1).every(Boolean) : Number(counts.at(-1) ?? 0) > before);
}""".replace("FAILED", '"[data-mime-type=\'application/vnd.jupyter.error\']"')


def test_the_chapter_runs_in_jupyterlab_and_its_picture_and_python_share_one_state(browser, lab):
    page, asked, complaints = browser.new_page(viewport={"width": 1400, "height": 1600}), set(), []
    page.set_default_timeout(1000 * PATIENCE)
    page.on("request", lambda r: asked.add(r.url.split("/")[2]) if r.url.startswith(("http", "ws")) else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(lab)
    page.wait_for_selector(r"text=/\| Idle/")
    cells, failed = page.locator(".jp-CodeCell"), page.locator("[data-mime-type='application/vnd.jupyter.error']")
    picture = cells.filter(has=page.locator(".kdtoy-picture"))

    def python(source) -> str:
        """What the last cell says with this source."""
        count = re.search(r"\d+", cells.last.locator(".jp-InputPrompt").inner_text())
        cells.last.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(source)
        page.keyboard.press("Control+Enter")
        until(page, RAN, int(count[0]) if count else 0)
        return cells.last.locator(".jp-OutputArea").first.inner_text()

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    until(page, RAN)
    assert failed.all_inner_texts() == []
    assert "3 of 14 points are seen" in page.inner_text(".jp-Notebook")
    rest(page, 1000 * PATIENCE)
    sliders = cells.locator(".widget-readout")
    assert sliders.all_inner_texts() == ["0.00", "1.00", "4", "0.00", "300"]

    picture.locator(".kdtoy-picture").scroll_into_view_if_needed()
    box = page.locator(".kdtoy-point .kdtoy-shape").nth(7).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    teacher = page.get_attribute(".kdtoy-line.kdtoy-teacher", "d")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 50, y + 10)
    page.mouse.move(x - 100, y + 20)
    page.mouse.up()
    rest(page, 1000 * PATIENCE)
    assert page.get_attribute(".kdtoy-line.kdtoy-teacher", "d") != teacher
    scale = float(page.get_attribute(".kdtoy-ground", "width")) / 10
    wanted = [3.6 - 100 / scale, 0.6 - 20 / scale]
    for _ in range(20):  # the widget's message may come after ours
        read = json.loads(python('import json; print(json.dumps([*picture.x[7].tolist(), int(picture.seen.sum()), picture.state["tau"], picture.y[7].item()]))'))
        if read[:2] == pytest.approx(wanted, abs=0.03):
            break
    assert read[:2] == pytest.approx(wanted, abs=0.03) and read[2:] == [3, 4, 1]  # showing the controls has changed nothing

    python("picture.place(picture.x[:9], picture.y[:9], picture.seen[:9])\npicture.set(tau=2.5, gamma=0.33)")
    until(page, "document.querySelectorAll('.kdtoy-point').length === 9")
    until(page, "document.querySelector('.kdtoy-note').textContent.includes('2 points do not determine')")
    until(page, "document.querySelector('.widget-readout').textContent === '0.33'")
    assert page.locator(".kdtoy-point").count() == 9 and "2 points do not determine" in page.inner_text(".kdtoy-note")
    assert sliders.all_inner_texts() == ["0.33", "1.00", "2", "0.00", "300"]
    assert failed.count() == 0
    assert "tau must lie between 0.1 and 20, not 1000" in python("picture.set(tau=1000)")
    assert asked == {lab.split("/")[2]} and not complaints
    page.close()
