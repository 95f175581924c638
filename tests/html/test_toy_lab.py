"""The toy example live: JupyterLab with a kernel, in a browser. Python reads what was dragged, and the picture follows Python."""

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

CELLS = ["from kdlib.book.toy import demo\npicture = demo(True)\npicture", "picture.controls()",
         'print("read", picture.x[7], picture.y[7], picture.seen.sum(), picture.state["tau"], picture.boundaries()["teacher"].round(3))',
         'picture.place(picture.x[:9], picture.y[:9], picture.seen[:9])\npicture.set(tau=2.5, gamma=0.33)',
         'picture.set(tau=1000)', 'print("last", picture.state["tau"], picture.state["gamma"], len(picture.x))']


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a notebook in a JupyterLab of its own."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [], "execution_count": None, "source": s} for i, s in enumerate(CELLS)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    (folder / "live.ipynb").write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
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
        yield f"http://127.0.0.1:{port}/lab/tree/live.ipynb?token=kdlib&reset"
    finally:
        server.terminate()
        server.wait()
        log.close()


def test_the_widget_and_python_share_one_state_in_jupyterlab(browser, lab):
    page, asked, complaints = browser.new_page(viewport={"width": 1400, "height": 1600}), set(), []
    page.set_default_timeout(40_000)  # until a kernel has started
    page.on("request", lambda r: asked.add(r.url.split("/")[2]) if r.url.startswith(("http", "ws")) else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.goto(lab)
    page.wait_for_selector(r"text=/\| Idle/")
    cells = page.locator(".jp-CodeCell")

    def run(i):
        cells.nth(i).locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_function("""i => /^\\[\\d+\\]:$/.test(document.querySelectorAll(".jp-CodeCell")[i].querySelector(".jp-InputPrompt").textContent)""", arg=i)

    def output(i):
        return cells.nth(i).locator(".jp-OutputArea-output").first.inner_text()

    run(0)
    page.wait_for_selector(".kdtoy-picture[aria-busy=false]")
    run(1)
    sliders = cells.nth(1).locator(".widget-readout")
    sliders.nth(4).wait_for()
    page.locator(".kdtoy-picture").scroll_into_view_if_needed()
    box = page.locator(".kdtoy-point .kdtoy-shape").nth(7).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    teacher = page.get_attribute(".kdtoy-line.kdtoy-teacher", "d")
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 50, y + 10)
    page.mouse.move(x - 100, y + 20)
    page.mouse.up()
    page.wait_for_function("was => document.querySelector('.kdtoy-line.kdtoy-teacher').getAttribute('d') !== was", arg=teacher)
    page.wait_for_timeout(600)  # the state is sent once things are at rest
    run(2)
    read = re.match(r"read \[\s*([-\d.]+)\s+([-\d.]+)\s*\] 1 3 ([\d.]+) ", output(2))
    scale = page.locator(".kdtoy-ground").evaluate("n => n.getAttribute('width') / 10")
    assert float(read[1]) == pytest.approx(3.6 - 100 / scale, abs=0.03) and float(read[2]) == pytest.approx(0.6 - 20 / scale, abs=0.03)
    assert read[3] == "4.0"  # showing the controls has changed nothing

    run(3)
    page.wait_for_function("document.querySelectorAll('.kdtoy-point').length === 9")
    page.wait_for_function("document.querySelector('.kdtoy-note').textContent.includes('2 points do not determine')")
    assert sliders.all_inner_texts() == ["0.33", "1.00", "2", "0.00", "300"]
    run(4)
    assert "tau must lie between 0.1 and 20, not 1000" in cells.nth(4).inner_text()
    run(5)
    assert output(5).strip() == "last 2.5 0.33 9"
    assert asked == {lab.split("/")[2]} and not complaints
    page.close()
