"""Paths in the configuration of somebody else's model are not opened, whatever is done with the model."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rfdit.checkpoint.registry import GROUPS
from rfdit.checkpoint.saved_run import SavedRun, read_checkpoint, read_raw
from rfdit.checkpoint.saved_run import write_checkpoint as write
from rfdit.commands.demo import load_model
from rfdit.config.build import composed, register
from rfdit.generate.request import read_request
from rfdit.interchange.folder import read_folder, write_folder
from rfdit.loading import load
from tests.support.training.checkpoints import LABELS, write_checkpoint

WATCHED: dict[str, list[str]] = {}  # folder -> what was opened or listed in it


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        for folder, seen in WATCHED.items():
            if path.startswith(folder):
                seen.append(path)


sys.addaudithook(_watch)  # stays, and does nothing while nothing is watched


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What is opened or listed in a folder in the meantime."""
    seen = WATCHED.setdefault(str(folder), [])
    try:
        yield seen
    finally:
        del WATCHED[str(folder)]


def with_traps(node: Any, trap: str) -> Any:
    """Settings in which every text is the path of a trap."""
    if isinstance(node, dict):
        return {name: x if name == "_target_" else with_traps(x, trap) for name, x in node.items()}
    if isinstance(node, list):
        return [with_traps(x, trap) for x in node]
    return trap if isinstance(node, str) else node


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_only_what_the_user_names_is_opened(kind: str, tmp_path: Path) -> None:
    register()
    secrets, path = tmp_path / "secrets", tmp_path / "run.ckpt"
    trap = secrets / "trap"
    secrets.mkdir()
    if kind == "file":
        trap.write_text("".join(f"n{name} secret {name}\n" for name in "abcde"))
    else:
        for name in "abcde":
            (trap / name).mkdir(parents=True)
    write_checkpoint(path, *LABELS)
    raw = read_raw(path)
    config = raw["rfdit"]["config"]
    for group, node in config.items():
        if group not in GROUPS:
            config[group] = with_traps(node, str(trap))
    names = {"names": str(trap) if kind == "file" else None}
    config["data"] |= {"reader": names, "decoder": names, "shards": str(trap)}
    config["teacher"] = config["init"] = {"ckpt": str(trap), "file": str(trap)}
    write(raw, path)

    with watched(secrets) as opened:
        trap.read_text() if kind == "file" else list(trap.iterdir())
        assert len(opened) == 1  # the watch itself works
        opened.clear()
        saved = read_checkpoint(path)
        write_folder(tmp_path / "exported", saved, "raw", card="")
        for model in (saved, read_folder(tmp_path / "exported")):
            assert used(model) == ["0", "1", "2", "3", "4"]
        assert opened == []


def used(saved: SavedRun) -> list[str]:
    """Uses a model as the page, `rfdit.load` and sample.py do; returns the classes that the page shows."""
    page = load_model(composed("demo") | {"ckpt": str(saved.path), "accelerator": "cpu"})
    assert len(load(saved.path, accelerator="cpu")(1, steps=1)) == 1
    request = read_request(saved, composed("sample", [f"ckpt={saved.path}", "labels=[1]"]))
    assert request is not None
    assert request.captions == ["1"]
    assert page.form.classes is not None
    return list(page.form.classes)
