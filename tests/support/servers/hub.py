"""A cache of models from the Hugging Face hub, without the hub."""

from pathlib import Path

import pytest


def empty_snapshot(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, yet to be written, that someone/model is read from, laid out as huggingface_hub does it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
    repository = Path("cache/models--someone--model")
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    snapshot.parent.mkdir(parents=True)
    return snapshot
