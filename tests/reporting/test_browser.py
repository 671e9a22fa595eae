"""The page in a real browser: it sorts, asks for nothing, and fits a laptop."""

import shutil
from pathlib import Path

import pytest

from rfdit.report import write_report
from tests.reporting.conftest import MakeRun, evaluation

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
def test_sorting_in_a_browser(make_run: MakeRun, tmp_path: Path) -> None:
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
            return page.locator("tbody tr td:first-child").all_inner_texts()

        assert order() == ["p2", "p4", "p8"]
        page.get_by_role("button", name="GMACs").click()
        assert order() == ["p8", "p4", "p2"]
        page.get_by_role("button", name="GMACs").click()
        assert order() == ["p2", "p4", "p8"]
        assert page.locator("th[aria-sort=descending]").inner_text() == "GMACs"
        for _ in range(2):  # by number, not by letter; what is missing comes last either way
            page.get_by_role("button", name="fid (a)").click()
            assert order()[-1] == "p4"
        assert order() == ["p8", "p2", "p4"]
        page.get_by_role("button", name="run", exact=True).press("Enter")
        assert order() == ["p2", "p4", "p8"]
        loaded = page.evaluate(
            "[...document.images].every(image => image.complete && image.naturalWidth > 200)"
        )
        assert loaded
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert [url for url in wrong if not url.startswith(("data:", page_file.as_uri()))] == []
