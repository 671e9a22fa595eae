"""The commands of docs/weights.md and docs/demo.md have settings that exist."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

import rfdit.demo
from rfdit.config import composed, register
from rfdit.convert import ConvertConfig
from rfdit.export import ExportConfig

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = [
    (name, shlex.split(words, comments=True))
    for document in ("weights", "demo")
    for name, words in re.findall(
        r"^python -m rfdit\.(\w+) (.*)", (DOCS / f"{document}.md").read_text(), re.MULTILINE
    )
]


@pytest.fixture(autouse=True)
def _schemas() -> None:
    register()
    rfdit.demo.register_schema()
    ConfigStore.instance().store(name="export_schema", node=ExportConfig)
    ConfigStore.instance().store(name="convert_schema", node=ConvertConfig)


def test_there_are_commands() -> None:
    assert {name for name, _ in COMMANDS} == {"export", "convert", "demo"}


@pytest.mark.parametrize(
    ("name", "words"), COMMANDS, ids=lambda part: part if isinstance(part, str) else None
)
def test_a_command_composes(name: str, words: list[str]) -> None:
    config = composed(name, words)
    for key, value in (word.split("=", 1) for word in words):
        assert str(config[key]) == value
