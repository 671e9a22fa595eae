"""The commands of the README and of docs/ compose: their groups, options and settings exist."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.commands.composing import composed

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FAST = {"README", "weights", "demo"}
COMMAND = re.compile(r"^(?:python (train|sample)\.py|rfdit (\w+)) ?(.*)$", re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(command, overrides) of each line in the page's blocks of code, without sweeps and listings."""
    fenced = re.findall(r"```(\w*)\n(.*?)```", page.read_text(), re.DOTALL)
    blocks = "\n".join(text for language, text in fenced if language in ("", "bash"))
    found = [
        (script or name, shlex.split(words, comments=True)) for script, name, words in COMMAND.findall(blocks)
    ]
    return [(name, words) for name, words in found if not {"-m", "--cfg", "--help"} & set(words)]


def test_there_are_commands() -> None:
    names = {name for page in PAGES for name, _ in commands(page)}
    assert names >= {"train", "sample", "encode", "pack", "index", "reference", "plan", "posthoc"}
    assert names >= {"export", "convert", "report", "demo"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=str(p.relative_to(ROOT)), marks=[] if p.stem in FAST else pytest.mark.slow)
        for p in PAGES
    ],
)
def test_commands_compose(page: Path) -> None:
    for name, words in commands(page):
        positional = "data.shards" if name == "data" else "runs"
        overrides = [word if "=" in word else f"{positional}={word}" for word in words]
        overrides += ["run_dir=x"] if name in ("train", "plan") else []
        # What the commands do before they compose: parts of micro are added, and encode has no patches.
        overrides = [f"++{word}" if word.startswith("micro.") else word for word in overrides]
        overrides += ["data.buckets.token=[1]"] if name == "encode" and "buckets=aspect" in words else []
        assert composed(name, *dict.fromkeys(overrides)), (name, words)
