"""The page in a browser, served by the real command."""

import base64
import io
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.training.checkpoints import LABELS, write_checkpoint

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
WAIT = 90_000  # milliseconds, for anything the page is to do
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page for prompts."""
    folder = tmp_path_factory.mktemp("page")
    write_checkpoint(folder / "run.ckpt")
    yield from served(folder)


@pytest.fixture(scope="module")
def class_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page for classes, on which sampling may take minutes and is not shown."""
    folder = tmp_path_factory.mktemp("classes")
    write_checkpoint(folder / "run.ckpt", *LABELS)
    (folder / "names.txt").write_text("0 cat\n1 dog\n2 cow\n3 hen\n4 pig\n")
    yield from served(folder, f"class_names={folder / 'names.txt'}", "max_steps=20000", "previews=0")


def served(folder: Path, *overrides: str) -> Iterator[str]:
    """The address of `rfdit demo`, which Ctrl-C ends in a line."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = [f"ckpt={folder / 'run.ckpt'}", f"port={port}", "accelerator=cpu", *overrides]
    log = (folder / "log.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "rfdit", "demo", *settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        first = process.stdout.readline()  # pytest's time limit bounds it
        assert first.startswith(f"http://127.0.0.1:{port} shows "), Path(log.name).read_text()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
        assert rest == "the page has ended\n"
        assert Path(log.name).read_text() == ""
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait(timeout=120)
        log.close()


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(server: str, browser: Any) -> Iterator[Any]:
    """The open page; a request to any other address fails the test."""
    requested: list[str] = []
    page = opened(browser)
    page.on("request", lambda request: requested.append(request.url))
    page.goto(server)
    page.wait_for_selector("#prompt textarea")
    yield page
    assert len(requested) > 5
    assert [url for url in requested if not url.startswith((server + "/", "data:", "blob:"))] == []


def opened(browser: Any) -> Any:
    """A new tab, still empty."""
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(WAIT)
    return page


def shown(page: Any) -> np.ndarray:
    """The images on the page, from its own <img> elements."""
    sources = page.eval_on_selector_all("#images a img", "all => all.map(img => img.src)")
    images = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    return np.stack([np.asarray(Image.open(io.BytesIO(image))) for image in images])


# All previews that the page shows, however briefly.
WATCH = """() => {
    window.previews = new Set();
    new MutationObserver(() => {
        const image = document.querySelector("#images img");
        if (image && document.querySelector("#status progress")) window.previews.add(image.src);
    }).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""


def press(page: Any) -> None:
    """Clicks until a request is sent: none is, until the end of the last result has reached the page."""
    from playwright.sync_api import TimeoutError

    for _ in range(30):
        try:
            with page.expect_request("**/queue/join*", timeout=3000):
                page.click("#generate")
            return
        except TimeoutError:
            pass
    raise AssertionError("no click on Generate sends a request")


def generate(page: Any, made: int) -> None:
    """Clicks, and waits for the result with a number."""
    press(page)
    page.wait_for_function(
        "n => document.querySelectorAll('#table [role=row][data-index]').length == n", arg=made
    )
    page.wait_for_selector("#status .done")


def value(page: Any, field: str) -> str:
    return str(page.input_value(f"#{field} textarea, #{field} input"))


def test_a_visit(page: Any, tmp_path: Path) -> None:
    # Images, watched while they are sampled.
    page.fill("#prompt textarea", 'a "small" red circle')
    page.fill("#negative textarea", "a blue star")
    page.fill("#seed input", "9007199254740993")  # which no floating-point number is
    page.fill("#count input", "2")
    page.fill("#steps input", "100")
    page.evaluate(WATCH)
    press(page)
    page.wait_for_selector("#status .done")
    first = shown(page)
    assert first.shape == (2, 32, 32, 3)
    assert page.evaluate("window.previews.size") >= 3
    # The command makes it again.
    command = value(page, "command")
    assert "seed=9007199254740993 " in command
    python, *words = shlex.split(command)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *words, f"out={tmp_path / 'again'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    again = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / "again").glob("0*.png"))])
    assert np.array_equal(first, again)

    # Another, with another solver and no guidance: its settings come with it, and fields go.
    page.click("#solver input")
    page.get_by_role("option", name="sde").click()
    page.wait_for_function("document.querySelector('#steps input').value == '100'")
    page.click("#guidance input")
    page.get_by_role("option", name="none", exact=True).click()
    page.wait_for_selector("#scale", state="detached")
    page.fill("#steps input", "3")
    page.click("#random")
    page.wait_for_function("document.querySelector('#seed input').value != '9007199254740993'")
    assert re.fullmatch(r"\d+", value(page, "seed"))
    generate(page, 2)
    second = shown(page)
    assert not np.array_equal(first, second)
    assert "guidance=none" in value(page, "command")
    assert "negative" not in value(page, "command")

    # What is wrong is said in a sentence, and the images stay.
    for field, wrong, right, sentence in (
        ("seed", "seven", "7", "Seed: seven is not a whole number from 0 to 9223372036854775807."),
        ("prompt", "", "a red circle", "Prompt: it is empty; describe an image."),
    ):
        box = f"#{field} textarea, #{field} input"
        page.fill(box, wrong)
        press(page)
        page.wait_for_function(
            "words => document.querySelector('#status .error')?.textContent == words", arg=sentence
        )
        page.fill(box, right)
    assert np.array_equal(shown(page), second)

    # History: two images of the second result, then two of the first; a click brings one back.
    assert page.locator("#gallery img").count() == 4
    page.locator("#gallery .thumbnail-item").nth(3).click()
    page.wait_for_selector("#scale input")
    page.wait_for_function("document.querySelector('#seed input').value == '9007199254740993'")
    assert value(page, "prompt") == 'a "small" red circle'
    assert value(page, "negative") == "a blue star"
    assert (value(page, "steps"), value(page, "solver"), value(page, "guidance")) == ("100", "euler", "cfg")
    assert np.array_equal(shown(page), first)
    assert value(page, "command") == command
    # So does a row of the table.
    page.locator("#table [data-testid=cell-0-1]").click()
    page.wait_for_function("document.querySelector('#steps input').value == '3'")
    page.wait_for_selector("#scale", state="detached")
    assert value(page, "solver") == "sde"


def test_stop_ends_sampling_and_leaves_the_page_of_use(page: Any) -> None:
    page.fill("#prompt textarea", "a red circle")
    page.fill("#steps input", "250")
    page.fill("#count input", "16")
    press(page)
    page.wait_for_selector("#status progress")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').textContent.trim() == 'Stopped.'")
    page.fill("#steps input", "2")
    page.fill("#count input", "1")
    generate(page, 1)
    assert len(shown(page)) == 1


def test_classes_are_chosen_by_name(class_server: str, browser: Any) -> None:
    page = opened(browser)
    page.goto(class_server)
    page.wait_for_selector("#class input")
    assert page.locator("#prompt").count() == 0
    page.wait_for_selector("#negative", state="hidden")
    page.fill("#steps input", "2")
    for made, (typed, name, number) in enumerate((("he", "3: hen", 3), ("do", "1: dog", 1)), start=1):
        page.click("#class input")
        page.fill("#class input", typed)
        page.get_by_role("option", name=name).click()
        generate(page, made)
        assert f"labels=[{number}]" in value(page, "command")
    dog = shown(page)
    page.locator("#gallery .thumbnail-item").nth(1).click()
    page.wait_for_function("document.querySelector('#class input').value == '3: hen'")
    assert "labels=[3]" in value(page, "command")
    assert not np.array_equal(shown(page), dog)


def test_who_closes_the_tab_keeps_nobody_waiting(class_server: str, browser: Any) -> None:
    first, second = opened(browser), opened(browser)
    for page, steps in ((first, 20_000), (second, 1)):
        page.goto(class_server)
        page.click("#class input")
        page.get_by_role("option", name="0: cat").click()
        page.fill("#steps input", str(steps))
        page.fill("#count input", "16")
    first.click("#generate")
    first.wait_for_function("document.querySelector('#status').textContent.includes('Sampling begins')")
    first.close()
    generate(second, 1)  # within WAIT, where all of the first would take several times as long
