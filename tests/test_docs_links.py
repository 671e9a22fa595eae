"""What README and docs point to is there, and nothing in them waits to be filled in."""

import re
from pathlib import Path

import pytest

import rfdit

ROOT = Path(rfdit.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_files_that_are_linked_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"@@\w+|\{[A-Z]{2,}[A-Z ]*\d*\}", page.read_text())
