"""The site of docs/: its Python blocks run, its figures are drawn by their scripts, and it builds without a warning."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).parents[2]
FIGURES = sorted(path for path in (ROOT / "docs/figures").glob("*.py") if "__main__" in path.read_text())
LEARN = sorted((ROOT / "docs/learn").glob("*.md"))


@pytest.mark.parametrize("page", LEARN, ids=[page.stem for page in LEARN])
def test_python_blocks_run(page: Path) -> None:
    """Those of one page one after the other, as a reader types them."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), names)


def test_errors_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    """What a row quotes is in some message; rows of other programs say whose it is."""
    code = "".join(path.read_text() for path in (ROOT / "rfdit").rglob("*.py"))
    messages = re.sub(r'"\s*\n\s*f?"', "", code)
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs/do/troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [text for row in rows if "'s)" not in row for text in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 40
    assert not [text for text in quoted if text not in messages]


@pytest.mark.slow
@pytest.mark.parametrize("script", FIGURES, ids=[script.stem for script in FIGURES])
def test_figures_are_drawn(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    monkeypatch.syspath_prepend(script.parent)
    plt.switch_backend("agg")
    with matplotlib.rc_context():
        runpy.run_path(str(script), run_name="__main__")
    pages = "".join(page.read_text() for page in LEARN)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn
    assert all((ROOT / "docs/images/learn" / name).exists() and f"learn/{name}" in pages for name in drawn)


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_the_network(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = {
        source
        for page in tmp_path.rglob("*.html")
        for source in re.findall(
            r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]+)', page.read_text()
        )
    }
    assert not loaded
    settings = (tmp_path / "reference/settings/model.html").read_text()
    assert all(text in settings for text in ("model=mmdit", "model.qk_norm"))
