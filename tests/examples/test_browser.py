"""The browser example: a digit is drawn with the mouse in headless Chromium, and read by the module of a release."""

import functools
import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

from compiler import CompileOptions, Target, compile_model
from compiler.options import Normalization
from controller.bundling.compilation import DEVICES_FIRST, compile_file
from tests.compiler.execution import Runner
from tests.compiler.models import BUILT, PACKAGED
from tests.compiler.models.quantised import quantised
from tests.conftest import find_tool
from tests.tour import HOUSE, Tour, blocks

README = HOUSE / "examples" / "browser" / "README.md"
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
"""Flags with which Chromium runs as root, and asks nobody on the network for anything."""

STROKES = {
    "7": [[(70, 50), (210, 50), (150, 150), (120, 240)]],
    "1": [[(140, 40), (140, 240)]],
    "0": [[(140, 40), (80, 90), (75, 180), (140, 240), (205, 180), (200, 90), (140, 40)]],
    "4": [[(150, 40), (70, 170), (215, 170)], [(170, 110), (165, 245)]],
    "3": [[(80, 60), (140, 40), (195, 70), (180, 120), (130, 138), (195, 165), (200, 215), (140, 242), (75, 220)]],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of the README that need no fleet make."""
    folder = tmp_path_factory.mktemp("browser")
    tour = Tour(folder, README)
    for command in [command for block in blocks(README.read_text()) for command, _ in block]:
        if not command.startswith(("fleetctl push", "node")):
            tour.run(command)
    return folder / "examples" / "browser" / "build"


@pytest.fixture(scope="module")
def site(built: Path) -> Iterator[str]:
    """The folder of the example, served."""
    handler = functools.partial(_Quiet, directory=str(built.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def page(site: str) -> Iterator[Page]:
    """The page, with its model loaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_tool("chromium"), args=list(QUIET))
        opened = browser.new_page(viewport={"width": 800, "height": 560})
        faults: list[str] = []
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        opened.goto(site)
        opened.wait_for_selector("body[data-state=ready]", timeout=20_000)
        yield opened
        browser.close()
    assert [] == faults


def draw(page: Page, strokes: list[list[tuple[int, int]]]) -> None:
    """Draw with the mouse, on a clean canvas."""
    page.click("button")
    box = page.locator("canvas").bounding_box()
    assert box
    for stroke in strokes:
        places = [(box["x"] + x, box["y"] + y) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in places[1:]:
            page.mouse.move(*place, steps=8)
        page.mouse.up()


@pytest.mark.slow
@pytest.mark.needs("chromium")
@pytest.mark.parametrize("digit", STROKES)
def test_a_drawn_digit_is_read(page: Page, digit: str, tmp_path: Path) -> None:
    """Mouse events make strokes, the module reads them, and the page shows which digit it is, and how sure it is."""
    draw(page, STROKES[digit])
    page.screenshot(path=tmp_path / f"{digit}.png")
    assert digit == page.inner_text("output")
    shares = page.eval_on_selector_all("meter", "meters => meters.map(meter => meter.value)")
    assert 10 == len(shares)
    assert shares[int(digit)] > 0.5
    assert abs(sum(shares) - 1) < 1e-3
    assert [digit] == page.locator("li.best b").all_inner_texts()


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_a_clean_canvas_says_nothing(page: Page) -> None:
    """Neither a digit nor a share."""
    draw(page, STROKES["1"])
    page.click("button")
    assert "" == page.inner_text("output")
    assert [0] * 10 == page.eval_on_selector_all("meter", "meters => meters.map(meter => meter.value)")
    assert "KiB of WebAssembly" in page.inner_text("footer")


@pytest.mark.slow
def test_the_page_has_the_module_of_the_release(built: Path) -> None:
    """What `build` wrote is byte for byte what `push` releases for browsers."""
    options = CompileOptions(
        uint8_inputs={"drawing": Normalization((0.0,), (255.0,))}, labels={"digit": tuple("0123456789")}
    )
    released = compile_file(built / "digit.onnx", options, DEVICES_FIRST, lambda *_: None).source()
    assert released.fallbacks == ((built / "digit.wasm").read_bytes(),)


NODE = """
import { readFile } from "node:fs/promises";
import { loadModel } from "./examples/browser/model.mjs";
const [wasm, calls] = process.argv.slice(1);
const model = await loadModel(await readFile(wasm));
const bytes = (view) => Buffer.from(view.buffer, view.byteOffset, view.byteLength).toString("hex");
const answers = [];
for (const call of JSON.parse(await readFile(calls, "utf8"))) {
  if (call === null) { model.reset(); continue; }
  const inputs = Object.fromEntries(model.spec.inputs.map(({ name, datatype }) => {
    const raw = Uint8Array.from(Buffer.from(call[name], "hex")).buffer;
    const kind = { FP32: Float32Array, INT32: Int32Array, INT64: BigInt64Array }[datatype];
    return [name, new kind(raw)];
  }));
  answers.push(Object.values(model.infer(inputs)).map(bytes));
}
console.log(JSON.stringify(answers));
"""


@pytest.mark.needs("node")
@pytest.mark.parametrize("name", ["small-cnn", "small-cnn qdq", "step-decoder", "magika", "silero-vad", "pp-ocr-cls"])
def test_node_answers_as_devices_do(name: str, tmp_path: Path) -> None:
    """The same bytes for the same inputs, with a state too, which a reset forgets, and with weights that expand."""
    name, *kind = name.split()
    [model] = [each for each in (*BUILT, *PACKAGED) if each.name == name]
    states = {"state": "stateN"} if name == "silero-vad" else {}
    source = quantised(model, *kind) if kind else model.read()
    compiled = compile_model(source, msgspec.structs.replace(model.options, states=states, target=Target.SIMD128))
    calls = [model.inputs(seed) for seed in range(3)]
    given: list[object] = [{k: np.ascontiguousarray(v).tobytes().hex() for k, v in call.items()} for call in calls]
    (tmp_path / "model.wasm").write_bytes(compiled.wasm)
    (tmp_path / "calls.json").write_text(json.dumps([*given, None, given[0]]))
    node = find_tool("node")
    assert node
    command = [node, "--input-type=module", "-e", NODE, str(tmp_path / "model.wasm"), str(tmp_path / "calls.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HOUSE, timeout=60)
    with Runner(compiled) as runner:
        answers = [runner.run(call) for call in calls]
        runner.reset()
        answers.append(runner.run(calls[0]))
    assert [[output.tobytes().hex() for output in answer] for answer in answers] == json.loads(done.stdout)
