"""All targets of links in README and docs exist, and no placeholder is left in them."""

import re
from pathlib import Path

import pytest

import rfdit

ROOT = Path(rfdit.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# In docs/reference, made by docs/site/ when the site is built.
MADE = ("commands.md", "messages.md", "settings/", "python/")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_that_are_linked_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    targets = {(page.parent / link).resolve() for link in links if "://" not in link}
    made = tuple(f"{ROOT / 'docs/reference'}/{name}" for name in MADE)
    assert not [target for target in targets if not target.exists() and not str(target).startswith(made)]


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(
        r"^#+ (.*)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_headings_that_are_linked_exist(page: Path) -> None:
    links = re.findall(r"\]\(([\w./]*\.md)#([^)]+)\)", page.read_text())
    missing = [(target, anchor) for target, anchor in links if anchor not in headings(page.parent / target)]
    assert not missing


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = {f"docs/{page}" for page in re.findall(r"[\w/]+\.md", navigation.replace("docs/site", ""))}
    assert named == set(NAMES) - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_placeholder_is_left(page: Path) -> None:
    assert not re.findall(r"@@\w+|\{[A-Z]{2,}[A-Z ]*\d*\}", page.read_text())
