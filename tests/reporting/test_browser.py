"""The page in a real browser: it sorts, enlarges, copies, sends no requests, and fits laptops and phones."""

import shutil
from pathlib import Path

import pytest

from rfdit.commands.report import write_report
from tests.support.training.runs import MakeRun, evaluation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
def test_the_page_in_a_browser(make_run: MakeRun, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    make_run("p2", "patch=p2", evaluations=[evaluation(10, 9.5)])
    make_run("p8", "patch=p8", evaluations=[evaluation(10, 10.25)])
    make_run("p4", "patch=p4")
    page_file = write_report(tmp_path / "runs", tmp_path / "out", None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        wrong: list[str] = []
        page.on("request", lambda request: wrong.append(request.url))
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(page_file.as_uri())

        def order() -> list[str]:
            names = "cells => cells.map(cell => cell.dataset.value)"
            return page.locator("tbody tr td:first-child").evaluate_all(names)

        assert order() == ["p2", "p4", "p8"]
        page.get_by_role("button", name="forward pass", exact=True).click()
        assert order() == ["p8", "p4", "p2"]
        page.get_by_role("button", name="forward pass", exact=True).click()
        assert order() == ["p2", "p4", "p8"]
        assert page.locator("th[aria-sort=descending]").get_by_role("button").inner_text() == "forward pass"
        for _ in range(2):  # by number, not by letter; what is missing comes last either way
            page.get_by_role("button", name="fid (a)", exact=True).click()
            assert order()[-1] == "p4"
        assert order() == ["p8", "p2", "p4"]
        page.get_by_role("button", name="run", exact=True).press("Enter")
        assert order() == ["p2", "p4", "p8"]
        loaded = page.evaluate(
            "[...document.querySelectorAll('.zoom img')].every(image => image.naturalWidth > 200)"
        )
        assert loaded
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        dialog = page.locator("dialog")
        page.locator(".sheets .zoom").first.click()
        assert dialog.locator("p").inner_text() == "samples of p2, step 10"
        page.keyboard.press("ArrowRight")
        assert dialog.locator("p").inner_text() == "samples of p4, step 10"
        page.keyboard.press("Escape")
        assert not dialog.is_visible()
        page.locator(".copy").first.click()
        assert page.locator(".copy").first.inner_text() == "Copied"
        page.set_viewport_size({"width": 420, "height": 800})
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 22)"
        browser.close()
    assert [url for url in wrong if not url.startswith(("data:", page_file.as_uri()))] == []
