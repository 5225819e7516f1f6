"""The page itself: Gradio's server, asked over HTTP, and a real browser in which a circle is drawn by the mouse.

`PAGE_RUNS` names a folder with a trained ControlNet, where it is not in runs/; `PAGE_PICTURE` a file for a picture of
the page.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from browser import CHROMIUM, Browser
from metrics import score
from page.found import controlnets
from processes import BASE, ROOT
from rendered_discs import Disc, render_condition

pytest.importorskip("gradio", reason="there is no Gradio, which `make page` installs: the page itself was not tried")

RUNS = Path(os.environ.get("PAGE_RUNS", ROOT / "runs"))
MEGABYTE = 2**20


@contextmanager
def served(runs, log):
    """The page's process, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "page", "--base", BASE, "--runs", str(runs), "--port", str(port)]
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 180
            while "in a browser" not in log.read_text():
                assert process.poll() is None and time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def nothing_trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "runs").mkdir()
    with served(folder / "runs", folder / "log") as page:
        yield page


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from diffusers import UNet2DConditionModel

    if not controlnets(RUNS, UNet2DConditionModel.load_config(BASE, subfolder="unet"))[0]:
        pytest.skip(f"{RUNS} has no ControlNet for the embedded base, which `make demo` trains: nothing was drawn")
    with served(RUNS, tmp_path_factory.mktemp("page") / "log") as page:
        yield page


@pytest.fixture
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("there is no Chromium, which apt installs: what happens in the browser was not tried")
    folder = tmp_path_factory.mktemp("browser")  # not removed at once: parts of the browser write to the last
    made = Browser(folder / "profile", folder)
    made.ask("Emulation.setDeviceMetricsOverride", width=1320, height=960, deviceScaleFactor=1, mobile=False)
    yield made
    made.close()


def opened(browser, address):
    browser.open(f"{address}/")
    browser.until("!!document.querySelector('#canvas canvas') && !!document.querySelector('#draw')")
    return browser


def canvas_box(browser):
    """Left, top and side of the canvas in the window, px."""
    return browser.evaluate(
        "(() => { const box = document.querySelector('#canvas canvas').getBoundingClientRect();"
        " return [box.left, box.top, box.width]; })()"
    )


def press(browser, button, result="#result"):
    """Presses a button and waits for the end of what it does; says what is then to be read, and the seconds."""
    browser.evaluate(f"document.querySelectorAll('{result} .said').forEach(line => line.textContent = '')")
    start = time.monotonic()
    browser.evaluate(f"document.querySelector('{button}').click()")
    said = f"document.querySelector('{result} .problem, {result} .said')?.textContent"
    browser.until(f"/^Done|^[^.]*:|^There/.test({said} || '')")
    return browser.evaluate(said), time.monotonic() - start


def picture_of(browser, tile):
    url = browser.evaluate(f"document.querySelector('[data-tile=\"{tile}\"] img.picture').src")
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def draw_circle(browser, tool, center, radius):
    """Draws with the mouse; `center` and `radius` are shares of the canvas."""
    browser.evaluate(f"document.querySelector('#canvas [data-tool={tool}]').click()")
    left, top, side = canvas_box(browser)
    x, y = left + side * center[0], top + side * center[1]
    if tool == "circle":
        return browser.drag((x, y), (x + side * radius / 2, y), (x + side * radius, y))
    turns = np.linspace(0, 2 * np.pi, 49)
    browser.drag(*zip((x + side * radius * np.cos(turns)).tolist(), (y + side * radius * np.sin(turns)).tolist()))


@pytest.mark.parametrize("tool, center, radius", [("pen", (0.4, 0.55), 0.25), ("circle", (0.62, 0.4), 0.3)])
def test_a_circle_drawn_by_the_mouse_is_where_the_picture_has_its_disc(trained, browser, tool, center, radius):
    page = opened(browser, trained[1])
    draw_circle(page, tool, center, radius)
    said, seconds = press(page, "#draw")
    assert said == "Done."
    drawn = render_condition(Disc(512 * center[0], 512 * center[1], 512 * radius), 512)  # where the mouse was
    prompt = page.evaluate("document.querySelector('#prompt textarea').value")
    iou = {tile: score(picture_of(page, tile), drawn, prompt).iou for tile in ("with", "without")}
    print(f"{tool}: IoU {iou['with']:.3f}, without ControlNet {iou['without']:.3f}; both in {seconds:.1f} s")
    if os.environ.get("PAGE_PICTURE"):
        Path(os.environ["PAGE_PICTURE"]).write_bytes(page.picture())
    assert iou["with"] > 0.8 and iou["with"] > iou["without"]
    shown = page.evaluate("document.querySelector('[data-tile=with] .score').textContent")
    assert shown.startswith("IoU ") and abs(float(shown[4:]) - iou["with"]) < 0.05
    assert not page.errors


def test_a_drawing_can_be_taken_back_stopped_and_looked_into(trained, browser):
    page = opened(browser, trained[1])
    draw_circle(page, "circle", (0.5, 0.5), 0.3)
    page.evaluate("document.querySelector('#canvas [data-do=undo]').click()")
    assert "canvas is empty" in press(page, "#draw")[0]
    page.evaluate("document.querySelector('#canvas [data-test=\"2\"]').click()")
    page.until("document.querySelector('#prompt textarea').value.startsWith('deep sky blue circle')")
    page.evaluate("document.querySelector('#scales').click()")
    page.until("!!document.querySelector('[data-tile=\"scale-0.25\"] img')")
    page.evaluate("document.querySelector('#stop').click()")
    page.until("document.querySelector('#result .said').textContent === 'Stopped.'")
    page.evaluate(
        "[...document.querySelectorAll('button[role=tab]')].find(tab => /Inside/.test(tab.innerText)).click()"
    )
    said, _ = press(page, "#look-inside", "#result-inside")
    assert "7 residuals in 12 steps" in said
    assert picture_of(page, "sizes").width > 500 and picture_of(page, "maps").width > 500
    assert "scale-2" in page.evaluate("document.querySelector('#result').innerHTML")
    assert not page.evaluate("!!document.querySelector('[data-tile=\"scale-2\"] img')"), "it was stopped"


PICTURE = """
(async () => {
    const drawing = new OffscreenCanvas(700, 500), pen = drawing.getContext("2d");
    pen.fillStyle = "navy"; pen.fillRect(0, 0, 700, 500);
    pen.fillStyle = "gold"; pen.fillRect(250, 150, 200, 200);
    const files = new DataTransfer();
    files.items.add(new File([await drawing.convertToBlob()], "own.png", { type: "image/png" }));
    const input = document.querySelector("[data-file=picture]");
    input.files = files.files;
    input.dispatchEvent(new Event("change"));
})()
"""
BRIGHT = """
(() => {
    const canvas = document.querySelector("#canvas canvas");
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return data.filter((value, i) => i % 4 === 1 && value > 127).length / (data.length / 4);
})()
"""


def test_the_edges_of_a_picture_come_onto_the_canvas_and_no_file_is_uploaded(nothing_trained, browser):
    page = opened(browser, nothing_trained[1])
    assert page.evaluate(BRIGHT) == 0
    page.evaluate(PICTURE)
    page.until(f"(share => share > 0 && share < 0.02)({BRIGHT.strip()})")  # the square's rim, not its face
    assert press(page, "#draw")[0] == "Done."
    assert page.evaluate("document.querySelector('[data-tile=without] .score').textContent").startswith("edge F1")
    assert not [url for url in page.addresses if "upload" in url]


def test_with_nothing_trained_the_page_says_so_and_sees_what_comes(nothing_trained, browser, tmp_path):
    process, address = nothing_trained
    page = opened(browser, address)
    assert "make demo" in page.evaluate("document.querySelector('#note').textContent")
    draw_circle(page, "circle", (0.5, 0.5), 0.3)
    assert press(page, "#draw")[0] == "Done." and picture_of(page, "without").size == (128, 128)
    assert not page.evaluate("!!document.querySelector('[data-tile=with]')")
    runs = Path(process.args[process.args.index("--runs") + 1])
    config = json.loads((ROOT / "tiny_sd" / "unet" / "config.json").read_text())
    folder = tmp_path / "controlnet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**config, "_class_name": "ControlNetModel"}))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    shutil.copytree(tmp_path, runs / "mine")
    page.until("!/make demo/.test(document.querySelector('#note').textContent)")
    page.until("[...document.querySelectorAll('input')].some(input => input.value === 'mine')")


def test_nothing_is_asked_of_any_other_machine(nothing_trained, browser):
    page = opened(browser, nothing_trained[1])
    page.evaluate("document.fonts.ready.then(() => new Promise(done => setTimeout(done, 1500)))")
    elsewhere = [url for url in page.addresses if not url.startswith((nothing_trained[1], "data:", "blob:", "about:"))]
    assert page.addresses and not elsewhere and not page.errors


# ---------------------------------------------------------------------------------------------------------------------
# Without a browser


def ask(address, path, content=None, timeout=120):
    """Status and text of an answer."""
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(address + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("path", ["upload", "file=/etc/passwd", "file=README.md", "proxy=http://localhost/"])
def test_no_file_goes_in_or_out(nothing_trained, path):
    assert ask(nothing_trained[1], f"/gradio_api/{path}") == (404, "There is no such page.")
    assert ask(nothing_trained[1], f"/gradio_api/{path}", {})[0] == 404


def test_it_listens_to_this_machine_only(nothing_trained):
    listening = psutil.Process(nothing_trained[0].pid).net_connections("inet")
    assert {one.laddr.ip for one in listening if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


VALUES = [
    None, "", "a cat", "x" * 100_000, "<script>alert(1)</script>", 0, 1, -1, 1.5, 10**30, 1e308, True, False, [], {},
    [1, 2], {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "data:image/png;base64,AAAA", "../../etc",
]  # fmt: skip


def test_500_random_requests_are_answered_without_a_traceback_and_without_growing(nothing_trained):
    process, address = nothing_trained
    functions = {one["id"]: len(one["inputs"]) for one in json.loads(ask(address, "/config")[1])["dependencies"]}
    rng, watched, sizes = random.Random(0), psutil.Process(process.pid), []
    for number in range(500):
        session = f"session{number % 7}"
        function = rng.choice([*functions, *functions, *functions, 10**6, None, "x"])
        data = rng.choices(VALUES, k=functions.get(function, 1) + rng.choice([0, 0, 0, 0, -1, 1]))
        request = {"data": data, "fn_index": function, "session_hash": session}
        for name in rng.sample(list(request), rng.choice([0, 0, 0, 1])):
            del request[name]
        path = rng.choice(["/gradio_api/queue/join", "/gradio_api/queue/join", "/gradio_api/run/predict"])
        status, said = ask(address, path, request)
        if status == 200 and "event_id" in said:
            said += ask(address, f"/gradio_api/queue/data?session_hash={session}")[1]
        assert "Traceback" not in said and str(ROOT) not in said
        if number in (99, 499):
            sizes.append(watched.memory_info().rss)
    assert sizes[1] - sizes[0] < 60 * MEGABYTE, sizes
    assert process.poll() is None and "controlnet" in ask(address, "/")[1].lower()
